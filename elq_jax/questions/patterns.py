"""Reads patterns: questions whose mentions are swapped for other entities of the same kind.

A pattern is a labelled question, whose gold entities say the kinds, or a line of a .txt:

    ## web search
    {film} cast
    {actor|musician} age

`{film}` stands for any entity like those of kind "film" among the entities that the patterns come
with, in .jsonl files of lines {"title", "text", "kind"}; `{actor|musician}` for either kind,
`{any}` for any entity of the catalogue. A heading names the style of the patterns below it; other
lines that begin with # are no patterns either.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from elq_jax.core.errors import DataError, ElqError
from elq_jax.entities.build import build_catalogue
from elq_jax.entities.catalogue import Catalogue
from elq_jax.questions.read import iter_questions
from elq_jax.questions.records import Question
from elq_jax.storage.lines import decode_text, open_lines, read_jsonl

SHIPPED = "shipped"
"""Word for the files that come with this library, where paths of patterns or of their entities are
given."""

_SHIPPED_PATTERNS = ("patterns.txt", "class_patterns.txt", "train.jsonl")
_SHIPPED_ENTITIES = ("catalogue.jsonl", "kinds.jsonl")
_SLOT = re.compile(r"\{([^{}]*)\}")
_ANY = "any"


@dataclasses.dataclass(frozen=True, slots=True)
class Slot:
    """A place of a pattern for the name of an entity.

    Attributes:
      kinds: numbers of the entities that show which kind belongs here, any of which may be chosen:
        a row of the catalogue, or E + i for entity i of those that the patterns come with. Empty:
        any entity belongs here.
      is_lower: whether names here are written in lower case.
    """

    kinds: tuple[int, ...]
    is_lower: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Pattern:
    """A question with places for names.

    Attributes:
      id: file, or style, and id of the question in it.
      texts: texts around the slots, one more than there are slots.
      slots: places for names, in their order.
    """

    id: str
    texts: tuple[str, ...]
    slots: tuple[Slot, ...]


class PatternEntities(NamedTuple):
    """The entities that patterns come with.

    Attributes:
      titles: titles of the entities.
      texts: descriptions of the entities.
      kinds: kinds of the entities, None where unknown.
    """

    titles: list[str]
    texts: list[str]
    kinds: list[str | None]


def shipped_folder() -> pathlib.Path:
    """Returns the folder of the patterns that come with this library.

    It is elq_jax/demo where the package was installed, and demo/ beside elq_jax/ in a checkout.
    """
    package = pathlib.Path(__file__).parent.parent
    installed = package / "demo"
    return installed if installed.is_dir() else package.parent / "demo"


def pattern_files(paths: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """Returns the files that patterns are read from: `SHIPPED` is those of this library.

    Raises:
      ElqError: there is no such file.
    """
    return _files(paths, _SHIPPED_PATTERNS, "patterns; give a .jsonl or .txt")


def entity_files(paths: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """Returns the files of the entities that patterns come with: `SHIPPED` is this library's.

    Raises:
      ElqError: there is no such file.
    """
    return _files(paths, _SHIPPED_ENTITIES, "pattern entities; give a .jsonl")


def _files(paths: Sequence[pathlib.Path], shipped: Sequence[str], what: str) -> list[pathlib.Path]:
    files = []
    for path in paths:
        if str(path) == SHIPPED and not path.exists():
            files += [shipped_folder() / name for name in shipped]
        elif path.is_file():
            files.append(path)
        else:
            raise ElqError(f"{path}: no such file of {what}, or {SHIPPED}")
    return files


def read_pattern_entities(paths: Sequence[pathlib.Path]) -> tuple[Catalogue, PatternEntities]:
    """Reads the entities that patterns come with: as one catalogue, and by their kinds.

    Args:
      paths: paths of .jsonl files, whose entities are numbered in this order.

    Raises:
      ElqError: there is no such file, or a line is no entity.
    """
    kinds: list[str | None] = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        with (folder / "entities.jsonl").open("wb") as file:
            for path in paths:
                build_catalogue(path, folder / "part.arrow")  # An error names this file's line.
                for number, row in read_jsonl(path):
                    kinds.append(_checked_kind(row, path, number))
                    file.write(json.dumps(row).encode() + b"\n")
        build_catalogue(folder / "entities.jsonl", folder / "catalogue.arrow")
        catalogue = Catalogue.open(folder / "catalogue.arrow")
        titles, texts = (
            values(range(len(catalogue))) for values in (catalogue.titles, catalogue.texts)
        )
    return catalogue, PatternEntities(titles, texts, kinds)


def _checked_kind(row: dict[str, Any], path: pathlib.Path, number: int) -> str | None:
    kind = row.get("kind")
    if kind is not None and not (isinstance(kind, str) and kind.isidentifier()):
        raise DataError(f"field 'kind': {kind!r}; expected a word such as film", path, number)
    return kind


def read_patterns(
    path: pathlib.Path,
    catalogue: Catalogue,
    pattern_catalogue: Catalogue,
    entities: PatternEntities,
) -> tuple[dict[str, list[Pattern]], int]:
    """Reads the patterns of a file by their style: the heading in a .txt, else the file's name.

    The gold entities of labelled questions are looked up in the catalogue, then among the entities
    that the patterns come with.

    Args:
      path: path of a .txt, or of labelled questions.
      catalogue: catalogue of E entities that questions are made for.
      pattern_catalogue: catalogue of the entities that the patterns come with.
      entities: these entities by kind.

    Returns:
      the patterns of each style, and the number of questions left out because an entity is in
      neither catalogue.

    Raises:
      ElqError: the file has no patterns.
      DataError: a line cannot be used.
    """
    if path.suffix == ".txt":
        styles, left_out = _read_text(path, len(catalogue), entities), 0
    else:
        patterns, total = [], 0
        here = iter_questions(path, catalogue)
        there = iter_questions(path, pattern_catalogue)
        for question, other in zip(here, there, strict=True):
            total += 1
            if pattern := _of_question(question, other, path.parent.name, len(catalogue)):
                patterns.append(pattern)
        styles, left_out = {f"{path.parent.name}/{path.stem}": patterns}, total - len(patterns)
    if not any(styles.values()):
        raise ElqError(
            f"{path}: no pattern that can be used; expected questions whose entities are in the "
            "catalogue, or among the pattern entities"
        )
    return {style: patterns for style, patterns in styles.items() if patterns}, left_out


def _of_question(question: Question, other: Question, folder: str, rows: int) -> Pattern | None:
    """Makes a pattern of a question; None if an entity is not known.

    Args:
      question: question with rows of the catalogue.
      other: same question with rows of the entities that the patterns come with.
      folder: name of its file's folder.
      rows: E, number of entities in the catalogue.
    """
    pairs = sorted(
        zip(question.mentions, other.mentions, strict=True), key=lambda pair: pair[0].start
    )
    texts, slots, position = [], [], 0
    all_lower = question.text == question.text.lower()
    for mention, elsewhere in pairs:
        if mention.start < position or (mention.row < 0 and elsewhere.row < 0):
            return None
        kind = mention.row if mention.row >= 0 else rows + elsewhere.row
        surface = question.text[mention.start : mention.end]
        texts.append(question.text[position : mention.start])
        slots.append(Slot((kind,), all_lower or surface == surface.lower()))
        position = mention.end
    texts.append(question.text[position:])
    return Pattern(f"{folder}:{question.id}", tuple(texts), tuple(slots))


def _read_text(
    path: pathlib.Path, rows: int, entities: PatternEntities
) -> dict[str, list[Pattern]]:
    styles: dict[str, list[Pattern]] = defaultdict(list)
    style = path.stem
    with open_lines(path) as lines:
        for number, line in lines:
            text = decode_text(line, path, number).strip()
            if text.startswith("##"):
                style = text.lstrip("# ")
            if text.startswith("#"):
                continue
            is_lower = not any(part.isupper() for part in _SLOT.sub("", text))
            slots = tuple(
                Slot(_kinds(kind, entities, rows, path, number), is_lower)
                for kind in _SLOT.findall(text)
            )
            styles[style].append(Pattern(f"{style}:{number}", tuple(_texts(text)), slots))
    return styles


def _texts(text: str) -> Iterator[str]:
    position = 0
    for match in _SLOT.finditer(text):
        yield text[position : match.start()]
        position = match.end()
    yield text[position:]


def _kinds(
    kind: str, entities: PatternEntities, rows: int, path: pathlib.Path, number: int
) -> tuple[int, ...]:
    if kind == _ANY:
        return ()
    names = kind.split("|")
    for name in names:
        if name not in entities.kinds:
            known = ", ".join(sorted({_ANY, *filter(None, entities.kinds)}))
            message = f"{{{kind}}}: no pattern entity is of kind {name!r}; expected {known}"
            raise DataError(message, path, number)
    return tuple(rows + entity for entity, own in enumerate(entities.kinds) if own in names)
