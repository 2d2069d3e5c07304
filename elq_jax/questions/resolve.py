"""Finds the rows of gold entities in the catalogue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from elq_jax.questions.records import OUT_OF_CATALOGUE, UNKNOWN_OFFSET, Mention, Question

if TYPE_CHECKING:
    from elq_jax.entities.catalogue import Catalogue

_SHOWN, _KEPT = 5, 1000  # numbers of lines
_OVERLAPPING = ("row_refused", "ambiguous_title", "no_offsets")  # counts of mentions counted before


@dataclass
class ResolutionReport:
    """Counts the questions of a file, and how their gold entities were found.

    Attributes:
      path: path of the file.
      questions: number of questions read.
      counts: number of mentions by the way their entity was decided: "row", "id", "wikidata_id",
        "title"; "wikidata_id_normalised" (a URL was cut to its id); "title_normalised" (Unicode
        normal form, underscores or the case of the first letter differ); "out_of_catalogue" (the
        row is -1); "unresolved" (the catalogue has neither the id nor the title); "unchecked"
        (there is neither a row nor a catalogue). Three more counts overlap with these:
        "row_refused" (the row does not exist or has another title or id, so other fields decided);
        "ambiguous_title" (several entities have the title, and the first was taken); "no_offsets"
        (the character offsets of the mention cannot be used).
      left_out: number of labels that are no gold mentions, by the reason, see `Question.left_out`.
      unresolved: lines about the first thousand unresolved mentions.
      skipped: lines about each row left out (`on_error="skip"`).
    """

    path: str
    questions: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    unresolved: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def mentions(self) -> int:
        """Returns the number of gold mentions read."""
        return self.counts.total() - sum(self.counts[name] for name in _OVERLAPPING)

    def summary(self) -> str:
        """Returns a few lines for a person to read."""
        counts = ", ".join(f"{name} {number:,}" for name, number in sorted(self.counts.items()))
        lines = [f"{self.path}: {self.questions:,} questions, {self.mentions:,} mentions"]
        if counts:
            lines[0] += f" ({counts})"
        if self.left_out:
            left_out = ", ".join(f"{name} {number:,}" for name, number in self.left_out.items())
            lines.append(f"  {self.left_out.total():,} labels are no gold mentions: {left_out}")
        for name, listed, number in (
            ("skipped", self.skipped, len(self.skipped)),
            ("unresolved", self.unresolved, self.counts["unresolved"]),
        ):
            if listed:
                lines.append(f"  {number:,} {name}:")
                lines += [f"    {line}" for line in listed[:_SHOWN]]
                if number > _SHOWN:
                    lines.append(f"    ... and {number - _SHOWN:,} more")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _Parsed:
    """Holds a question whose mentions have no rows yet, and the rows in the file."""

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
    gold = [
        (item, mention, -2 if row is None else row)
        for item in parsed
        for mention, row in zip(item.question.mentions, item.rows, strict=True)
    ]
    labels = np.array([label for _, _, label in gold], np.int64)
    mentions = [mention for _, mention, _ in gold]
    rows, how = _rows_of(mentions, labels, catalogue, trust_rows, report)
    report.counts.update(how.tolist())
    report.counts["no_offsets"] += sum(m.start == UNKNOWN_OFFSET for m in mentions)
    report.counts = +report.counts  # drops zeros
    for place in np.flatnonzero(how == "unresolved")[: _KEPT - len(report.unresolved)]:
        report.unresolved.append(_unresolved(*gold[place]))

    position = 0
    for item in parsed:
        mentions = item.question.mentions
        pairs = zip(mentions, rows[position : position + len(mentions)].tolist(), strict=True)
        position += len(mentions)
        report.questions += 1
        report.left_out.update(item.question.left_out)
        resolved = tuple(replace(mention, row=row) for mention, row in pairs)
        yield replace(item.question, mentions=resolved)


def _unresolved(item: _Parsed, mention: Mention, label: int) -> str:
    """Returns a line about a mention whose entity was not found."""
    text = item.question.text[mention.start : mention.end] if mention.start >= 0 else "?"
    names = {"title": mention.title, "wikidata_id": mention.wikidata_id}
    names["row"] = label if label >= 0 else None
    values = [f"{name} {value!r}" for name, value in names.items() if value is not None]
    reason = f"{', '.join(values)}: not in the catalogue" if values else "no entity is named"
    return f"line {item.line_number}, question {item.question.id}, mention {text!r}: {reason}"


def _rows_of(
    mentions: Sequence[Mention],
    labels: np.ndarray,
    catalogue: Catalogue | None,
    trust_rows: bool,
    report: ResolutionReport,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the rows of mentions; adds to the counts of `report` that overlap with others.

    Exact matches are looked for first, and near matches only for the remaining mentions.

    Returns:
      the rows [n] int64, and the names [n] of the counts that say how each was found.
    """
    titles = np.array([mention.title for mention in mentions], object)
    wikidata_ids = np.array([mention.wikidata_id for mention in mentions], object)
    ids = np.array([mention.entity_id for mention in mentions], object)
    rows = np.full(len(mentions), OUT_OF_CATALOGUE)
    how = np.full(len(mentions), "unresolved" if catalogue is not None else "unchecked", object)
    how[labels == OUT_OF_CATALOGUE] = "out_of_catalogue"
    trusted = labels >= 0
    if catalogue is not None:
        trusted &= labels < len(catalogue)
        trusted[trusted] = catalogue.are_living(labels[trusted])
        if not trust_rows:
            places = np.flatnonzero(trusted & (titles != None))  # noqa: E711 (elementwise)
            trusted[places] = np.array(catalogue.titles(labels[places]), object) == titles[places]
            places = np.flatnonzero(trusted & (ids != None))  # noqa: E711 (elementwise)
            trusted[places] = np.array(catalogue.ids(labels[places]), object) == ids[places]
    rows[trusted], how[trusted] = labels[trusted], "row"
    report.counts["row_refused"] += int(((labels >= 0) & ~trusted).sum())
    if catalogue is None:
        return rows, how
    for name, values, find in (
        ("id", ids, catalogue.find_ids),
        ("wikidata_id", wikidata_ids, catalogue.find_wikidata_ids),
        ("title", titles, catalogue.find_titles),
        ("wikidata_id_normalised", wikidata_ids, catalogue.find_wikidata_ids),
        ("title_normalised", titles, catalogue.find_titles),
    ):
        places = np.flatnonzero((how == "unresolved") & (values != None))  # noqa: E711
        if not places.size:
            continue
        matches = find(values[places].tolist(), normalised=name.endswith("_normalised"))
        is_there = matches.rows >= 0
        rows[places[is_there]], how[places[is_there]] = matches.rows[is_there], name
        if name.startswith("title"):
            report.counts["ambiguous_title"] += int((matches.counts > 1).sum())
    return rows, how
