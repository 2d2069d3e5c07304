"""Offers a linker to agents: a server of the Model Context Protocol on stdin and stdout.

A client starts it as a program, gets the list of tools at once, while the linker is opened, and
calls them. Answers are short, so that they fit the context of a language model, and say what they
leave out.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import msgspec

from elq_jax import __version__
from elq_jax.core.errors import ElqError
from elq_jax.core.typed import convert

if TYPE_CHECKING:
    import mcp_types

    from elq_jax.entities.catalogue import Catalogue
    from elq_jax.linking.linker import EntityLinker
    from elq_jax.linking.links import Link

_MAX_TEXT = 20_000  # characters
_MAX_LINKS = 40
_MAX_OTHERS = 2  # other entities that a mention may mean
_MAX_ENTITIES = 8
_MAX_ALIASES = 20
_SHORT, _LONG = 160, 4000  # characters of descriptions

INSTRUCTIONS = (
    "Use link_entities to find out which entities a text mentions, find_entity to look up an "
    "entity by its title, and get_entity for all that is known about one. An entity is named by "
    "its row: a number of this catalogue, which the tools return. Wikidata ids are given where "
    "they are known."
)


class TextArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Holds the arguments of link_entities."""

    text: Annotated[
        str,
        msgspec.Meta(
            description="Text, such as a question, a sentence or some paragraphs.",
            extra_json_schema={"maxLength": _MAX_TEXT},
        ),
    ]


class TitleArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Holds the arguments of find_entity."""

    title: Annotated[
        str,
        msgspec.Meta(
            min_length=1,
            max_length=500,
            description="Title, or its beginning, such as 'Dune' or 'New York'. Case is ignored.",
        ),
    ]


class RowArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Holds the arguments of get_entity."""

    row: Annotated[
        int,
        msgspec.Meta(ge=0, description="Row of the entity, as the other tools return it."),
    ]


class BriefEntity(msgspec.Struct, frozen=True, omit_defaults=True):
    """An entity in a few words."""

    row: Annotated[int, msgspec.Meta(description="Number of the entity in the catalogue.")]
    title: str
    description: Annotated[str, msgspec.Meta(description="Beginning of the description.")] = ""
    wikidata_id: str | None = None


class OtherEntity(msgspec.Struct, frozen=True):
    """An entity that a mention less probably means."""

    row: int
    title: str
    confidence: float


class BriefLink(msgspec.Struct, frozen=True, omit_defaults=True):
    """A mention and its entity."""

    mention: str
    start: Annotated[int, msgspec.Meta(description="First character of the mention in the text.")]
    end: Annotated[int, msgspec.Meta(description="Offset one past its last character.")]
    confidence: Annotated[float, msgspec.Meta(description="How sure the linker is, 0 to 1.")]
    row: Annotated[
        int | None,
        msgspec.Meta(description="Row of the entity; left out if it is not in the catalogue."),
    ] = None
    title: str | None = None
    others: Annotated[
        list[OtherEntity], msgspec.Meta(description="Next best entities for the mention.")
    ] = msgspec.field(default_factory=list)
    others_left_out: int = 0


class LinksAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer of link_entities."""

    links: Annotated[list[BriefLink], msgspec.Meta(description="In the order of the text.")]
    entities: Annotated[
        list[BriefEntity], msgspec.Meta(description="Entities of the links, each of them once.")
    ]
    links_left_out: int = 0
    next_start: Annotated[
        int | None,
        msgspec.Meta(description="First character of the first link that was left out."),
    ] = None


class EntitiesAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer of find_entity."""

    entities: Annotated[
        list[BriefEntity],
        msgspec.Meta(description="Those with exactly this title first, then shorter titles first."),
    ]
    exact: Annotated[int, msgspec.Meta(description="Number of the first that have this title.")]
    entities_left_out: int = 0


class EntityAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer of get_entity."""

    row: int
    title: str
    description: str
    wikidata_id: str | None = None
    aliases: Annotated[list[str], msgspec.Meta(description="Other names.")] = msgspec.field(
        default_factory=list
    )
    aliases_left_out: int = 0
    description_characters_left_out: int = 0


def link_entities(linker: EntityLinker, arguments: TextArguments) -> LinksAnswer:
    """Finds the mentions of a text and their entities.

    Raises:
      ElqError: the text is too long.
    """
    text = arguments.text
    if len(text) > _MAX_TEXT:
        raise ElqError(
            f"text: {len(text):,} characters; expected at most {_MAX_TEXT:,}, so link it in "
            "several calls"
        )
    links = linker(text)
    shown, rest = links[:_MAX_LINKS], links[_MAX_LINKS:]
    rows = dict.fromkeys(link.row for link in shown if link.row is not None)
    return LinksAnswer(
        [_brief_link(link) for link in shown],
        [_brief_entity(linker.catalogue, row) for row in rows],
        len(rest),
        rest[0].start if rest else None,
    )


def find_entity(linker: EntityLinker, arguments: TitleArguments) -> EntitiesAnswer:
    """Finds entities by their title or its beginning."""
    catalogue = linker.catalogue
    rows, exact, count = catalogue.search_titles(arguments.title, _MAX_ENTITIES)
    entities = [_brief_entity(catalogue, row) for row in rows.tolist()]
    return EntitiesAnswer(entities, exact, count - len(entities))


def get_entity(linker: EntityLinker, arguments: RowArguments) -> EntityAnswer:
    """Reads an entity of the catalogue.

    Raises:
      ElqError: there is no such row.
    """
    catalogue, row = linker.catalogue, arguments.row
    if row >= len(catalogue):
        raise ElqError(
            f"row: {row}; expected 0 to {len(catalogue) - 1}, as find_entity and link_entities "
            "return it"
        )
    entity = catalogue[row]
    description = clipped(entity.text, _LONG)
    return EntityAnswer(
        row,
        entity.title,
        description,
        entity.wikidata_id,
        list(entity.aliases[:_MAX_ALIASES]),
        max(len(entity.aliases) - _MAX_ALIASES, 0),
        0 if description == entity.text else len(entity.text) - len(description) + 1,
    )


@dataclasses.dataclass(frozen=True)
class Tool:
    """A function that agents can call.

    Attributes:
      run: function of the linker and the arguments.
      arguments: type of the arguments.
      answer: type of what `run` returns.
      title: title for people.
      description: description for agents.
    """

    run: Callable[[EntityLinker, Any], Any]
    arguments: type[msgspec.Struct]
    answer: type[msgspec.Struct]
    title: str
    description: str


TOOLS = {
    "link_entities": Tool(
        link_entities,
        TextArguments,
        LinksAnswer,
        "Link the entities of a text",
        "Finds the mentions of entities (people, places, works, organisations, ...) in a text and "
        "says which entity of the catalogue each one means, with the beginning of its description, "
        "its Wikidata id where it is known, and the next best entities. A confidence below 0.5 is "
        f"a guess. At most {_MAX_LINKS} links are returned, and links_left_out counts the others.",
    ),
    "find_entity": Tool(
        find_entity,
        TitleArguments,
        EntitiesAnswer,
        "Find an entity by its title",
        "Finds the entities of the catalogue whose title is this text, or begins with it. It knows "
        "titles only: for another name, or a name in context, use link_entities. At most "
        f"{_MAX_ENTITIES} entities are returned.",
    ),
    "get_entity": Tool(
        get_entity,
        RowArguments,
        EntityAnswer,
        "Read an entity",
        "Returns the title, description, other names and Wikidata id of the entity in a row of the "
        "catalogue.",
    ),
}


def serve_stdio(open_linker: Callable[[], EntityLinker]) -> NoReturn:
    """Answers the client on stdin and stdout until stdin is closed; then exits with status 0.

    Nothing else is written to stdout: what libraries print there goes to stderr.

    Args:
      open_linker: function that opens the linker; it runs in a thread while the client connects.
    """
    # The thread that waits for stdin cannot be interrupted.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    opening: Future[EntityLinker] = Future()
    opening.set_running_or_notify_cancel()  # Clients that cancel a call do not cancel the opening.
    try:
        asyncio.run(_serve(open_linker, opening))
    except* BrokenPipeError:
        pass  # The client is gone without reading its last answers.
    # A thread that still opens the linker would hold up a normal exit, or crash it.
    sys.stderr.flush()
    os._exit(0)


async def _serve(open_linker: Callable[[], EntityLinker], opening: Future[EntityLinker]) -> None:
    from mcp.server.stdio import stdio_server

    server = make_server(opening)
    async with stdio_server() as (requests, answers):  # From here on, file 1 is stderr.
        threading.Thread(target=_open, args=(open_linker, opening), daemon=True).start()
        await server.run(requests, answers, server.create_initialization_options())


def _open(open_linker: Callable[[], EntityLinker], opening: Future[EntityLinker]) -> None:
    """Opens the linker; an error is also what every call of a tool is answered with."""
    started = time.monotonic()
    try:
        linker = open_linker()
    except Exception as error:
        if isinstance(error, ElqError):
            print(f"error: {error}", file=sys.stderr, flush=True)
        opening.set_exception(error)
        return
    seconds = time.monotonic() - started
    print(f"opened {linker.folder} in {seconds:.1f} s", file=sys.stderr, flush=True)
    opening.set_result(linker)


def make_server(opening: Future[EntityLinker]) -> Any:
    """Makes the server, an `mcp.server.Server`, of a linker that may not be open yet."""
    from mcp.server import Server
    from mcp_types import CallToolResult, ListToolsResult, TextContent

    async def list_tools(context: Any, params: Any) -> ListToolsResult:
        return ListToolsResult(tools=describe_tools())

    async def call_tool(context: Any, params: Any) -> CallToolResult:
        try:
            answer = await _call(params.name, params.arguments or {}, opening)
        except ElqError as error:
            return CallToolResult(
                content=[TextContent(type="text", text=f"error: {error}")], is_error=True
            )
        values = msgspec.to_builtins(answer)
        text = msgspec.json.encode(answer).decode()
        return CallToolResult(
            content=[TextContent(type="text", text=text)], structured_content=values
        )

    return Server(
        "elq_jax",
        version=__version__,
        title="elq_jax entity linker",
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


async def _call(name: str, arguments: Mapping[str, Any], opening: Future[EntityLinker]) -> Any:
    """Calls a tool in a thread, when the linker is open.

    Raises:
      ElqError: the tool or its arguments are wrong, or it failed.
    """
    if (tool := TOOLS.get(name)) is None:
        raise ElqError(f"{name}: no such tool; expected one of {', '.join(TOOLS)}")
    names = tool.arguments.__struct_fields__
    if unknown := sorted(set(arguments) - set(names)):
        raise ElqError(f"{unknown[0]}: no argument of {name}; expected {', '.join(names)}")
    checked = convert(dict(arguments), tool.arguments)
    try:
        linker = await asyncio.wrap_future(opening)
        return await asyncio.to_thread(tool.run, linker, checked)
    except ElqError:
        raise
    except Exception as error:
        traceback.print_exception(error)
        raise ElqError(
            f"{name} failed ({type(error).__name__}); the log of the server, on stderr, has the "
            "details"
        ) from error


def describe_tools() -> list[mcp_types.Tool]:
    """Describes the tools, with the JSON schemas of their arguments and answers."""
    from mcp_types import Tool as Description
    from mcp_types import ToolAnnotations

    annotations = ToolAnnotations(
        read_only_hint=True, idempotent_hint=True, destructive_hint=False, open_world_hint=False
    )
    return [
        Description(
            name=name,
            title=tool.title,
            description=tool.description,
            input_schema=_schema(tool.arguments),
            output_schema=_schema(tool.answer),
            annotations=annotations,
        )
        for name, tool in TOOLS.items()
    ]


def _schema(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Returns the JSON schema of a type, with an object at its root, as the protocol wants it."""
    _, parts = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    root = parts.pop(kind.__name__)
    return {**root, "$defs": parts} if parts else root


def _brief_entity(catalogue: Catalogue, row: int) -> BriefEntity:
    entity = catalogue[row]
    return BriefEntity(row, entity.title, clipped(entity.text, _SHORT), entity.wikidata_id)


def _brief_link(link: Link) -> BriefLink:
    others = [candidate for candidate in link.candidates if candidate.row != link.row]
    shown = [
        OtherEntity(candidate.row, candidate.title, _rounded(math.exp(candidate.score)))
        for candidate in others[:_MAX_OTHERS]
    ]
    confidence = math.exp(link.score) if link.probability is None else link.probability
    return BriefLink(
        link.mention,
        link.start,
        link.end,
        _rounded(confidence),
        link.row,
        link.title,
        shown,
        len(others) - len(shown),
    )


def _rounded(probability: float) -> float:
    return round(probability, 3)


def clipped(text: str, longest: int) -> str:
    """Returns the beginning of a text, to the end of a word, with "…" where something follows."""
    if len(text) <= longest:
        return text
    beginning = text[:longest]
    return (beginning.rsplit(None, 1)[0] if " " in beginning else beginning) + "…"
