"""Finding the rows of gold entities in the catalogue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from elq_jax.entities.catalogue import Catalogue
from elq_jax.questions.records import OUT_OF_CATALOGUE, UNKNOWN_OFFSET, Question

_SHOWN = 5


@dataclass
class ResolutionReport:
    """What was read from one file, and how its gold entities were found in the catalogue.

    Attributes:
      path: the file.
      questions: number of questions read.
      counts: number of mentions by the way their entity was decided: "row", "wikidata_id",
        "title"; "out_of_catalogue" (the row is -1), "unresolved" (nothing given is in the
        catalogue), "unchecked" (neither a row nor a catalogue was given). Two more are counted
        beside these: "row_refused" (not a row, or its title is another one: the other fields
        decided) and "no_offsets" (EL4QA mentions whose character offsets cannot be used).
      unresolved: one line for each unresolved mention.
      skipped: one line for each row left out (`on_error="skip"`).
    """

    path: str
    questions: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    unresolved: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def mentions(self) -> int:
        """Number of gold mentions read."""
        return self.counts.total() - self.counts["row_refused"] - self.counts["no_offsets"]

    def summary(self) -> str:
        """A few lines for a person to read."""
        counts = ", ".join(f"{name} {number:,}" for name, number in sorted(self.counts.items()))
        lines = [f"{self.path}: {self.questions:,} questions, {self.mentions:,} mentions"]
        if counts:
            lines[0] += f" ({counts})"
        for name, listed in (("skipped", self.skipped), ("unresolved", self.unresolved)):
            if listed:
                lines.append(f"  {len(listed):,} {name}:")
                lines += [f"    {line}" for line in listed[:_SHOWN]]
                if len(listed) > _SHOWN:
                    lines.append(f"    ... and {len(listed) - _SHOWN:,} more")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _Parsed:
    """A question whose mentions have no rows yet, and what the file says of the rows."""

    question: Question
    rows: list[int | None]
    line_number: int


def _resolve(
    parsed: Iterable[_Parsed],
    catalogue: Catalogue | None,
    trust_rows: bool,
    report: ResolutionReport,
) -> Iterator[Question]:
    """Fills in the rows of many questions at once."""
    given = [
        (item, mention, -2 if row is None else row)
        for item in parsed
        for mention, row in zip(item.question.mentions, item.rows, strict=True)
    ]
    labels = np.array([label for _, _, label in given], np.int64)
    titles = np.array([mention.title for _, mention, _ in given], object)
    wikidata_ids = np.array([mention.wikidata_id for _, mention, _ in given], object)

    rows = np.full(len(given), OUT_OF_CATALOGUE)
    how = np.full(len(given), "unresolved" if catalogue is not None else "unchecked", object)

    def decide(places: np.ndarray, found: np.ndarray, name: str) -> None:
        rows[places], how[places] = found, name

    declared_out = labels == OUT_OF_CATALOGUE
    decide(declared_out, labels[declared_out], "out_of_catalogue")
    trusted = labels >= 0
    if catalogue is not None:
        trusted &= labels < len(catalogue)
        if not trust_rows:
            places = np.flatnonzero(trusted & (titles != None))  # noqa: E711 (elementwise)
            trusted[places] = np.array(catalogue.titles(labels[places]), object) == titles[places]
    decide(trusted, labels[trusted], "row")
    if catalogue is not None:
        for name, values, find in (
            ("wikidata_id", wikidata_ids, catalogue.rows_of_wikidata_ids),
            ("title", titles, catalogue.rows_of_titles),
        ):
            places = np.flatnonzero((how == "unresolved") & (values != None))  # noqa: E711
            if places.size:
                found = find(values[places].tolist())
                decide(places[found >= 0], found[found >= 0], name)

    report.counts.update(how.tolist())
    report.counts["row_refused"] += int(((labels >= 0) & ~trusted).sum())
    report.counts["no_offsets"] += sum(m.start == UNKNOWN_OFFSET for _, m, _ in given)
    report.counts = +report.counts  # drops zeros
    for place in np.flatnonzero(how == "unresolved"):
        item, mention, label = given[place]
        text = item.question.text[mention.start : mention.end] if mention.start >= 0 else "?"
        report.unresolved.append(
            f"line {item.line_number}, question {item.question.id}, mention {text!r}: title "
            f"{mention.title!r}, wikidata_id {mention.wikidata_id!r}, row "
            f"{label if label >= 0 else None}: none is in the catalogue"
        )

    position = 0
    for item in parsed:
        mentions = item.question.mentions
        found = rows[position : position + len(mentions)].tolist()
        position += len(mentions)
        report.questions += 1
        filled = (replace(mention, row=row) for mention, row in zip(mentions, found, strict=True))
        yield replace(item.question, mentions=tuple(filled))
