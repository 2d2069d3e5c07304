"""Defines the JSON of requests and answers, and reads requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec

from elq_jax.core.errors import ElqError
from elq_jax.linking.links import Link
from elq_jax.storage.lines import LineDecoder

if TYPE_CHECKING:
    from elq_jax.entities.catalogue import Entity
    from elq_jax.serving.settings import ServeSettings

T = TypeVar("T")
_Count = Annotated[int, msgspec.Meta(ge=1)]


class LinkOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Holds what a request may choose; what it leaves out is as the service was started.

    Attributes:
      threshold: score that links must exceed.
      min_probability: probability that links must have, instead of a threshold.
      max_mentions: largest number of mentions looked for in a text.
      num_candidates: number of entities compared for a mention.
    """

    threshold: float | None = None
    min_probability: float | None = None
    max_mentions: _Count | None = None
    num_candidates: _Count | None = None

    def changes(self) -> dict[str, Any]:
        """Returns the settings of linking that the request chose, by name."""
        return {
            name: value for name, value in msgspec.structs.asdict(self).items() if value is not None
        }


class LinkRequest(LinkOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /link: either one text or several.

    Attributes:
      text: text to link.
      texts: texts to link.
    """

    text: str | None = None
    texts: list[str] | None = None

    def options(self) -> LinkOptions:
        """Returns the options of linking, without the texts."""
        return LinkOptions(
            threshold=self.threshold,
            min_probability=self.min_probability,
            max_mentions=self.max_mentions,
            num_candidates=self.num_candidates,
        )

    def all_texts(self) -> list[str]:
        """Returns the texts.

        Raises:
          ElqError: there are none, or both fields are given.
        """
        if (self.text is None) == (self.texts is None):
            how = "neither is there" if self.text is None else "both are there"
            raise ElqError(f"text, texts: {how}; give a string as text, or a list as texts")
        return [self.text] if self.texts is None else self.texts


class DisambiguateRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /disambiguate.

    Attributes:
      text: text.
      mentions: half-open character offsets [start, end] of the mentions to link.
    """

    text: str
    mentions: list[tuple[int, int]]


class LinkedText(msgspec.Struct, frozen=True, omit_defaults=True):
    """A text with its links, as a line of `python -m elq_jax.link`.

    Attributes:
      id: number of the text in the request, from 1.
      text: text.
      links: links in the order of the text, without overlaps.
      truncated_at: number of the first character that was not read, if the text was too long.
    """

    id: int
    text: str
    links: list[Link]
    truncated_at: int | None = None


class EntityAnswer(msgspec.Struct, frozen=True):
    """An entity of the catalogue.

    Attributes:
      row: row of the catalogue.
      title: title.
      text: description.
      wikidata_id: Wikidata id; null if the catalogue has none.
      aliases: other names.
      id: id of the entity, which stays the same when the catalogue changes.
    """

    row: int
    title: str
    text: str
    wikidata_id: str | None
    aliases: list[str]
    id: str

    @classmethod
    def of(cls, entity: Entity) -> EntityAnswer:
        """Returns the answer for an entity."""
        names = list(entity.aliases)
        return cls(entity.row, entity.title, entity.text, entity.wikidata_id, names, entity.id)


class EntitiesAnswer(msgspec.Struct, frozen=True):
    """Entities whose title is as asked or begins so.

    Attributes:
      entities: entities, those with exactly this title first.
      num_exact: number of the first entities that have exactly this title.
      count: number of such entities in the catalogue.
    """

    entities: list[EntityAnswer]
    num_exact: int
    count: int


class NewEntity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An entity to add.

    Attributes:
      title: title.
      text: description.
      wikidata_id: Wikidata id, if there is one.
      aliases: other names.
      id: id of its own; by default the Wikidata id, or derived from title and text.
    """

    title: str
    text: str = ""
    wikidata_id: str | None = None
    aliases: list[str] = []
    id: str | None = None


class ChangedEntity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An entity to change; fields that are left out stay as they are.

    Attributes:
      id: id of the entity.
      title: new title.
      text: new description.
      wikidata_id: new Wikidata id; null: none.
      aliases: new list of other names.
    """

    id: str
    title: str | msgspec.UnsetType = msgspec.UNSET
    text: str | msgspec.UnsetType = msgspec.UNSET
    wikidata_id: str | msgspec.UnsetType | None = msgspec.UNSET
    aliases: list[str] | msgspec.UnsetType = msgspec.UNSET


_MOST_CHANGES = 256


class AddRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /entities.

    Attributes:
      entities: entities to add.
    """

    entities: Annotated[list[NewEntity], msgspec.Meta(min_length=1, max_length=_MOST_CHANGES)]


class UpdateRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of PATCH /entities.

    Attributes:
      entities: entities to change.
    """

    entities: Annotated[list[ChangedEntity], msgspec.Meta(min_length=1, max_length=_MOST_CHANGES)]


class ChangesAnswer(msgspec.Struct, frozen=True):
    """What has changed.

    Attributes:
      added: ids of new entities.
      updated: ids of entities with another content than before.
      removed: ids of entities that are gone.
      unchanged: number of entities that were there already, with the same content.
    """

    added: list[str]
    updated: list[str]
    removed: list[str]
    unchanged: int


class ErrorAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of every answer that is an error.

    Attributes:
      error: sentence that says what was found, what was expected, and what to do.
      id: number of the error in the log of the service, if the fault is not in the request.
    """

    error: str
    id: str | None = None


_REQUESTS = (LinkRequest, DisambiguateRequest, AddRequest, UpdateRequest)
_DECODERS = {kind: LineDecoder(kind) for kind in _REQUESTS}
_PLACE = "body"


def read(body: bytes, kind: type[T]) -> T:
    """Reads the body of a request.

    Raises:
      ElqError: it is not JSON, or a value is not of its type.
    """
    try:
        return _DECODERS[kind](body, _PLACE)
    except ElqError as error:
        raise ElqError(str(error).removeprefix(f"{_PLACE}: ")) from None


def check_texts(texts: list[str], settings: ServeSettings) -> None:
    """Raises an ElqError if a request has no text, too many, or one that is too long."""
    if not 1 <= len(texts) <= settings.max_texts:
        raise ElqError(
            f"texts: {len(texts)} texts; expected 1 to {settings.max_texts}, so send several "
            "requests"
        )
    for place, text in enumerate(texts):
        if len(text) > settings.max_text_length:
            raise ElqError(
                f"texts[{place}]: {len(text):,} characters; expected at most "
                f"{settings.max_text_length:,}, so divide the text"
            )
