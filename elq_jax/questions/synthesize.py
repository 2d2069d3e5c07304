"""Makes labelled questions for a catalogue from patterns, without any label of its own.

A question is a function of the seed and its number alone: a pattern, a shape, for each slot one of
the entities nearest to an entity of the wanted kind, a name of it that says which entity is meant,
and noise. So an interrupted run is resumed with the next line, and any part of the questions can be
made by itself.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
import random
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from elq_jax.core.errors import ElqError
from elq_jax.entities.catalogue import Catalogue
from elq_jax.entities.embeddings import Embeddings
from elq_jax.entities.encode import CatalogueEncoder, open_encoder
from elq_jax.entities.name_index import NameIndex
from elq_jax.entities.segments import plain_folder
from elq_jax.entities.settings import EncodingSettings
from elq_jax.questions import noise, shapes
from elq_jax.questions.kinds import kinds_of_rows, nearest_rows, whole_vectors
from elq_jax.questions.patterns import (
    SHIPPED,
    Pattern,
    PatternEntities,
    entity_files,
    pattern_files,
    read_pattern_entities,
    read_patterns,
)
from elq_jax.questions.records import Span
from elq_jax.questions.settings import SynthesisSettings
from elq_jax.questions.shapes import Piece
from elq_jax.questions.usable_names import UsableNames
from elq_jax.storage import layout
from elq_jax.storage.part_file import PartFile
from elq_jax.storage.progress import progress

_FORMAT = 2  # Raised when the same inputs give other questions.
_AT_ONCE = 2048  # Questions whose entities are looked for together.
_DRAWN = 12  # Entities drawn for a slot, of which the first with a usable name are taken.
_ATTEMPTS = 30  # Patterns tried for a question.
_DEV_PATTERNS = 10  # One in so many patterns is for questions that are not trained on.

Part = Literal["train", "dev", "fit"]


def synthesize(
    folder: pathlib.Path,
    output: pathlib.Path,
    settings: SynthesisSettings,
    patterns: Sequence[pathlib.Path] = (),
    pattern_entities: Sequence[pathlib.Path] = (),
    dev_output: pathlib.Path | None = None,
    fit_output: pathlib.Path | None = None,
    restart: bool = False,
) -> Counter[str]:
    """Writes labelled questions about the entities of a catalogue; resumes an interrupted call.

    Questions for development and for fitting are made from patterns that the others do not use: one
    in ten, by their ids.
    A line is {"id", "text", "mentions", "title", "row", "source": {"pattern", "shape", "noise"}}.
    Progress goes to stderr.

    Args:
      folder: path of a folder that `encode_entities` wrote.
      output: path of the file of questions, which appears when it is whole; .gz is gzip.
      settings: settings of the questions.
      patterns: paths of patterns, see `elq_jax.questions.patterns`, or `SHIPPED`, which stands for
        those of this library, as () does.
      pattern_entities: paths of the entities that patterns come with, or `SHIPPED`, as () is.
      dev_output: path of the file of development questions; None: none are written.
      fit_output: path of the file of questions that candidate scoring and probabilities are fitted
        on; None: none are written.
      restart: whether to start over instead of resuming what an interrupted run left.

    Returns:
      the number of questions in `output` of each shape.

    Raises:
      ElqError: an input cannot be used, `output` holds the beginning of other questions, or the
        disk is full.
    """
    files = pattern_files(patterns or [pathlib.Path(SHIPPED)])
    entities = entity_files(pattern_entities or [pathlib.Path(SHIPPED)])
    _check_outputs([output, *filter(None, [dev_output, fit_output])], [*files, *entities])
    synthesizer = Synthesizer.open(folder, settings, files, entities)
    inputs = {
        "format": _FORMAT,
        "settings": dataclasses.asdict(settings),
        "catalogue": synthesizer.catalogue.path,
        "embeddings": synthesizer.embeddings.fingerprint,
        "patterns": {str(number): path for number, path in enumerate(files)},
        "pattern_entities": {str(number): path for number, path in enumerate(entities)},
    }
    if dev_output is not None:
        _write(synthesizer, "dev", dev_output, settings.dev_questions, inputs, restart)
    if fit_output is not None:
        _write(synthesizer, "fit", fit_output, settings.fit_questions, inputs, restart)
    return _write(synthesizer, "train", output, settings.questions, inputs, restart)


def _check_outputs(outputs: Sequence[pathlib.Path], inputs: Sequence[pathlib.Path]) -> None:
    """Raises an ElqError if a file to be written is one that is read, or is given twice."""
    for number, output in enumerate(outputs):
        for other in (*inputs, *outputs[:number]):
            if output.resolve() == other.resolve():
                raise ElqError(f"{output}: writing it would overwrite {other}; give another name")


def _write(
    synthesizer: Synthesizer,
    part: Part,
    output: pathlib.Path,
    total: int,
    inputs: Mapping[str, Any],
    restart: bool,
) -> Counter[str]:
    """Writes the first `total` questions of a part; see `synthesize`."""
    with PartFile(output, {**inputs, "part": part}, restart) as lines:
        counts = Counter(json.loads(line)["source"]["shape"] for line in lines.written())
        with progress(f"writing {output.name}", total, "questions") as advance:
            advance(counts.total())
            while (first := counts.total()) < total:
                last = min((first // _AT_ONCE + 1) * _AT_ONCE, total)
                made = synthesizer.questions(range(first, last), part)
                lines.write(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in made)
                counts.update(line["source"]["shape"] for line in made)
                advance(len(made))
        lines.finish()
    return counts


class _Plan(NamedTuple):
    """What is decided of a question before its entities are looked for.

    Attributes:
      rng: random choices that are still to be made.
      pattern: pattern of the question.
      shape: shape of the question.
      kinds: for each slot, the number of the entity that shows the kind; None for any.
    """

    rng: random.Random
    pattern: Pattern
    shape: shapes.Shape
    kinds: list[int | None]


class Synthesizer:
    """Makes questions for a catalogue.

    Args:
      catalogue: catalogue of E entities.
      embeddings: vectors of its entities.
      pattern_vectors: [P, D] vectors of the entities that patterns come with.
      pattern_kinds: kinds of these entities, None where unknown.
      styles: patterns by style, which are drawn in proportion to the square roots of their numbers
        of patterns, so that a large file does not hide the others. One in ten patterns is for
        questions of development and of fitting only.
      settings: settings of the questions.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        embeddings: Embeddings,
        pattern_vectors: np.ndarray,
        pattern_kinds: Sequence[str | None],
        styles: Mapping[str, Sequence[Pattern]],
        settings: SynthesisSettings,
    ):
        self.catalogue, self.embeddings = catalogue, embeddings
        self._pattern_vectors, self._settings = pattern_vectors, settings
        self._styles = {part: _part_of(styles, part) for part in get_args(Part)}
        self._kinds = pattern_kinds
        self._kinds_of = kinds_of_rows(embeddings, pattern_vectors, pattern_kinds)
        self._names = NameIndex.build(catalogue)
        self._neighbours = max(1, min(settings.neighbours, len(catalogue) // 20))

    @classmethod
    def open(
        cls,
        folder: pathlib.Path,
        settings: SynthesisSettings,
        files: Sequence[pathlib.Path],
        entities: Sequence[pathlib.Path],
    ) -> Synthesizer:
        """Reads catalogue and patterns; the arguments are those of `synthesize`.

        Raises:
          ElqError: an input cannot be used.
        """
        folder = plain_folder(folder)
        catalogue = Catalogue.open(folder / layout.CATALOGUE)
        embeddings = Embeddings.open(folder / layout.EMBEDDINGS, catalogue.fingerprint)
        pattern_catalogue, known = read_pattern_entities(entities)
        styles: dict[str, list[Pattern]] = {}
        for path in files:
            own, left_out = read_patterns(path, catalogue, pattern_catalogue, known)
            count = sum(map(len, own.values()))
            print(f"{path}: {count:,} patterns, {left_out:,} left out", file=sys.stderr)
            for style, patterns in own.items():
                styles.setdefault(style, []).extend(patterns)
        needed = any(
            kind >= len(catalogue)
            for patterns in styles.values()
            for pattern in patterns
            for slot in pattern.slots
            for kind in slot.kinds
        )
        vectors = np.zeros((0, embeddings.shape[1]), np.float32)
        if needed:
            vectors = _encode(known, embeddings, settings)
        return cls(catalogue, embeddings, vectors, known.kinds, styles, settings)

    def questions(self, numbers: Sequence[int], part: Part = "train") -> list[dict[str, Any]]:
        """Makes the questions of some numbers, as objects of lines.

        Args:
          numbers: numbers of the questions, each of which is made by itself.
          part: what the questions are for: "train", "dev" or "fit".

        Raises:
          ElqError: no pattern that is drawn can be filled with entities of the catalogue.
        """
        lines: dict[int, dict[str, Any]] = {}
        for attempt in range(_ATTEMPTS):
            plans = {n: self._plan(part, n, attempt) for n in numbers if n not in lines}
            if not plans:
                break
            near = self._nearest(plans.values())
            drawn = {
                number: [self._draw(kind, near, plan.rng) for kind in plan.kinds]
                for number, plan in plans.items()
            }
            rows = {row for slots in drawn.values() for own in slots for row in own}
            names = UsableNames(self.catalogue, self._names, np.array(sorted(rows), np.int64))
            for number, plan in plans.items():
                line = self._line(plan, drawn[number], names)
                if line is not None:
                    lines[number] = {"id": f"synthetic-{part}-{number}", **line}
        for number in numbers:
            if number not in lines:
                raise ElqError(
                    f"question {number}: {_ATTEMPTS} patterns were tried, but the catalogue has no "
                    "entities of their kinds with names that say which entity is meant; give "
                    "patterns that fit the catalogue, or more --neighbours"
                )
        return [lines[number] for number in numbers]

    def _plan(self, part: Part, number: int, attempt: int) -> _Plan:
        """Makes the plan of a question; the first attempt whose slots all get names is taken."""
        settings = self._settings
        rng = random.Random(f"{settings.seed} {part} {number} {attempt}")
        styles = self._styles[part]
        [style] = rng.choices(styles, [math.sqrt(len(patterns)) for patterns in styles])
        pattern = rng.choice(style)
        place, shape = rng.random(), shapes.full
        for share, choices in (
            (settings.queries, shapes.QUERIES),
            (settings.several, (shapes.several,)),
            (settings.chats, (shapes.chat,)),
            (settings.fragments, (shapes.fragment,)),
        ):
            if 0 <= place < share:
                shape = rng.choice(choices)
            place -= share
        if not pattern.slots and shape is not shapes.chat:
            shape = shapes.full
        kinds = [rng.choice(slot.kinds) if slot.kinds else None for slot in pattern.slots]
        return _Plan(rng, pattern, shape, kinds)

    def _nearest(self, plans: Iterable[_Plan]) -> dict[int, np.ndarray]:
        """Finds the rows that are of one kind with each entity of plans."""
        numbers = np.array(
            sorted({kind for plan in plans for kind in plan.kinds if kind is not None}), np.int64
        )
        rows = len(self.catalogue)
        own = numbers < rows
        vectors = np.concatenate(
            [
                self.embeddings.rows(numbers[own]).reshape(-1, self.embeddings.shape[1]),
                self._pattern_vectors[numbers[~own] - rows],
            ]
        )
        near = nearest_rows(self.embeddings, vectors, self._neighbours)
        result = {}
        for number, own in zip(numbers.tolist(), near, strict=True):
            kind = self._kinds[number - rows] if number >= rows else None
            result[number] = own if kind is None else own[(self._kinds_of[own] == kind).all(axis=1)]
        return result

    def _draw(
        self, kind: int | None, near: Mapping[int, np.ndarray], rng: random.Random
    ) -> list[int]:
        """Draws rows of a kind, none of them twice."""
        if kind is None:
            return rng.sample(range(len(self.catalogue)), min(_DRAWN, len(self.catalogue)))
        rows = near[kind].tolist()
        return rng.sample(rows, min(_DRAWN, len(rows)))

    def _share_kind(self, kind: int | None, row: int, others: Iterable[int]) -> bool:
        """Returns whether one of other entities may be of the kind that a question tells.

        Where the kinds of entities are known, it is if one of its two kinds is that; else if it is
        nearer to the entity than the one that shows the kind. Both are cautious.

        Args:
          kind: number of the entity that shows the kind; None: the question tells none.
          row: row of the entity that is meant.
          others: rows of the other entities.
        """
        if kind is None:
            return True
        rows = len(self.catalogue)
        label = self._kinds[kind - rows] if kind >= rows else None
        if label is not None:
            return any((self._kinds_of[other] == label).any() for other in others)
        shown = self._pattern_vectors[kind - rows] if kind >= rows else self.embeddings.rows([kind])
        near = self.embeddings.rows(np.array([row, *others]))
        vectors = whole_vectors(np.concatenate([shown.reshape(1, -1), near]))
        to_kind, _, *to_others = vectors @ vectors[1]
        return any(cosine >= to_kind for cosine in to_others)

    def _line(
        self,
        plan: _Plan,
        slots: Sequence[Sequence[int]],
        names: UsableNames,
    ) -> dict[str, Any] | None:
        """Makes a question; None if a slot gets no name."""
        rng, taken = plan.rng, set()
        stands_alone = plan.shape in shapes.NAMES_STAND_ALONE
        pieces = []
        for slot, kind, rows in zip(plan.pattern.slots, plan.kinds, slots, strict=True):
            told = None if stands_alone else kind
            own = []
            for row in rows:
                prefers_alias = rng.random() < self._settings.aliases
                share_kind = functools.partial(self._share_kind, told, row)
                name = names.choose(row, share_kind, prefers_alias, rng)
                if name is not None and row not in taken:
                    taken.add(row)
                    own.append(Piece(name.lower() if slot.is_lower else name, row))
                if len(own) == 3:
                    break
            if not own:
                return None
            pieces.append(own)
        text, spans, rows = shapes.joined(plan.shape(plan.pattern, pieces, rng))
        text, spans, changes = with_noise(text, spans, self._settings, rng)
        return {
            "text": text,
            "mentions": spans,
            "title": self.catalogue.titles(rows),
            "row": rows,
            "source": {"pattern": plan.pattern.id, "shape": plan.shape.__name__, "noise": changes},
        }


def with_noise(
    text: str, spans: list[Span], settings: SynthesisSettings, rng: random.Random
) -> tuple[str, list[Span], list[str]]:
    """Changes a question as people write in haste, each way at the rate of the settings.

    Returns:
      the text, its spans, and the names of the functions of `questions.noise` that changed it.
    """
    changes = []
    symbol = rng.choice((noise.glue_emoji, noise.put_emoji_near, noise.glue_symbols))
    for share, change in (
        (settings.typos, noise.typo),
        (settings.no_apostrophes, noise.drop_apostrophes),
        (settings.no_question_mark, noise.drop_question_mark),
        (settings.no_capitals, noise.lower_case),
        (settings.symbols, symbol),
    ):
        # Both are drawn always, so another rate changes no other choice.
        chosen, own = rng.random() < share, np.random.default_rng(rng.getrandbits(64))
        if chosen:
            changed, spans = change(text, spans, own)
            if changed != text:
                changes.append(change.__name__)
            text = changed
    return text, spans, changes


def _part_of(styles: Mapping[str, Sequence[Pattern]], part: Part) -> list[list[Pattern]]:
    """Returns the patterns of a part by style; all of them where there are too few to divide.

    "dev" and "fit" have the same ones.
    """
    parts = [
        [
            pattern
            for pattern in styles[style]
            if (zlib.crc32(pattern.id.encode()) % _DEV_PATTERNS == 0) == (part != "train")
        ]
        for style in sorted(styles)
    ]
    return [patterns for patterns in parts if patterns] or [*styles.values()]


def _encode(
    entities: PatternEntities, embeddings: Embeddings, settings: SynthesisSettings
) -> np.ndarray:
    """Encodes the entities that patterns come with, by the encoder of the catalogue."""
    names = ("encoder", "pooling", "normalize", "max_tokens")
    model = open_encoder(EncodingSettings(**{name: getattr(settings, name) for name in names}))
    if model.entity_fingerprint != embeddings.encoder_fingerprint:
        given = ", ".join(f"--{name}={getattr(settings, name)}" for name in names)
        raise ElqError(
            f"{embeddings.folder}: vectors of another entity encoder than {given}; give these "
            "flags as encode_entities had them, or patterns whose entities are in the catalogue"
        )
    return CatalogueEncoder(model, batch_size=32, dtype="float32").encode(
        entities.titles, entities.texts
    )
