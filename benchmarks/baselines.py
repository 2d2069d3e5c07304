"""Compares a linker with look-ups of names that need no training, for docs/quality.md.

    python -m benchmarks.baselines --linker my_linker --passages sample/passages/*.jsonl.gz \\
        --sets webqsp/dev.jsonl,documents/wiki_fair_dev.jsonl --output baselines.json

`--passages` is what `python -m elq_jax.wikipedia` made of a dump, with `--red_links` where the dump
is a part of the Wikipedia of the catalogue. All spans of at most 8 words that are a name of an
entity, or that a passage links to one, are candidates. Overlapping ones are resolved from the
highest score down. The look-ups differ in the score of a span s and an entity e:

  longest name    number of characters of s; of several entities the first, titles before aliases
  popularity      number of pages that link to e
  commonness      link probability of s, times p(e | s): shares of the occurrences of s that are
                  links, and of these links that lead to e
  TAGME           mean of the link probability and the coherence of e with the other mentions: see
                  `tagme`

A look-up links nothing whose score is not above a threshold: the one with the best mean of weak F1
over the sets that are printed, which favours look-ups. The linker is at its own threshold. Gold
mentions outside the catalogue are neutral.
"""

from __future__ import annotations

import collections
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import rich.table
from rich.console import Console

from benchmarks.options import LINKER, OUTPUT, PASSAGES, SETS
from elq_jax.cli.run import run, start_jax
from elq_jax.core.errors import ElqError
from elq_jax.entities.catalogue import Catalogue
from elq_jax.entities.name_index import NameIndex
from elq_jax.evaluation.matching import Gold, Predicted, QuestionResult
from elq_jax.evaluation.predict import predict
from elq_jax.evaluation.scores import Evaluation
from elq_jax.evaluation.sets import read_sets
from elq_jax.evaluation.sweep import best_common_threshold
from elq_jax.questions.records import Question
from elq_jax.storage.lines import read_jsonl

MOST_WORDS = 8
_WORD = re.compile(r"\w+(?:['’.-]\w+)*")

# Figures of the published method: candidates with a smaller p(e | s) are left out; of the best
# entities by votes, the most common is taken among those that have this share of the best.
_LEAST_COMMON, _NEARLY_BEST = 0.02, 0.7

Span = tuple[int, int]
Candidates = dict[Span, list[int]]  # rows of entities, the first names first
Scores = dict[Span, list[tuple[float, int]]]  # (score, row), best first


class Statistics:
    """Counts what the links of passages lead to.

    Args:
      passages: passages in the labelled form: `text`, `mentions`, `title`, `page`.
      catalogue: catalogue of the entities; links to others only count as links.

    Attributes:
      linked: number of links with a text (in lower case) to each entity, by text.
      occurrences: number of times that such a text stands in the passages, as a link or not.
      pages: pages that link to an entity, by its row.
      num_pages: number of pages.
    """

    def __init__(self, passages: Iterable[Mapping[str, Any]], catalogue: Catalogue):
        self.linked: dict[str, collections.Counter[int]] = {}
        self.pages: dict[int, set[str]] = collections.defaultdict(set)
        self.occurrences: collections.Counter[str] = collections.Counter()
        passages = list(passages)
        titles = sorted({title for passage in passages for title in passage["title"]})
        rows = dict(zip(titles, catalogue.rows_of_titles(titles).tolist(), strict=True))
        self.num_pages = len({passage["page"] for passage in passages})
        for passage in passages:
            for (start, end), title in zip(passage["mentions"], passage["title"], strict=True):
                surface = passage["text"][start:end].lower()
                self.linked.setdefault(surface, collections.Counter())[rows[title]] += 1
                if rows[title] >= 0:
                    self.pages[rows[title]].add(passage["page"])
        for passage in passages:
            text = passage["text"].lower()
            self.occurrences.update(
                text[start:end] for start, end in spans_of(text) if text[start:end] in self.linked
            )

    def link_probability(self, surface: str) -> float:
        """Returns the share of the occurrences of a text that are links; 0 for unknown texts."""
        links = self.linked.get(surface.lower())
        if not links:
            return 0.0
        # Links that begin or end inside a word are not among the occurrences.
        return links.total() / max(links.total(), self.occurrences[surface.lower()])

    def commonness(self, surface: str, row: int) -> float:
        """Returns p(e | s): the share of the links with a text that lead to an entity."""
        links = self.linked.get(surface.lower())
        return links[row] / links.total() if links else 0.0

    def relatedness(self, row: int, other: int) -> float:
        """Returns how many pages link to both of two entities, in [0, 1].

        Source: Milne and Witten 2008, from the normalised Google distance.
        """
        pages, others = self.pages.get(row, set()), self.pages.get(other, set())
        shared = len(pages & others)
        if not shared:
            return 0.0
        if row == other:
            return 1.0
        most, least = max(len(pages), len(others)), min(len(pages), len(others))
        if least == self.num_pages:
            return 1.0
        distance = (math.log(most) - math.log(shared)) / (
            math.log(self.num_pages) - math.log(least)
        )
        return max(0.0, 1.0 - distance)


def spans_of(text: str) -> list[Span]:
    """Returns the spans of up to `MOST_WORDS` words, as characters."""
    words = [match.span() for match in _WORD.finditer(text)]
    return [
        (words[first][0], words[last][1])
        for first in range(len(words))
        for last in range(first, min(first + MOST_WORDS, len(words)))
    ]


def candidates_of(
    text: str, names: NameIndex, statistics: Statistics, spans: Sequence[Span] | None = None
) -> Candidates:
    """Finds the entities that spans of a text name or are linked to, by span.

    Args:
      text: text of a question.
      names: names of the entities.
      statistics: counts of links.
      spans: spans to look up; None: those of `spans_of`.
    """
    spans = spans_of(text) if spans is None else list(spans)
    rows: Candidates = {span: [] for span in spans}
    named = names.find([text[start:end] for start, end in spans])
    for number, row in zip(named.texts.tolist(), named.rows.tolist(), strict=True):
        rows[spans[number]].append(row)
    for start, end in spans:
        linked = statistics.linked.get(text[start:end].lower(), {})
        rows[start, end] += [row for row in linked if row >= 0 and row not in set(rows[start, end])]
    return {span: of_span for span, of_span in rows.items() if of_span}


def longest_name(text: str, candidates: Candidates, statistics: Statistics) -> Scores:
    """Scores a span by its length, and takes the first entity."""
    del text, statistics
    return {
        (start, end): [(float(end - start), row) for row in rows]
        for (start, end), rows in candidates.items()
    }


def popularity(text: str, candidates: Candidates, statistics: Statistics) -> Scores:
    """Scores an entity by the number of pages that link to it."""
    del text
    return _sorted(candidates, lambda span, row: float(len(statistics.pages.get(row, ()))))


def commonness(text: str, candidates: Candidates, statistics: Statistics) -> Scores:
    """Scores an entity by p(s is a link) * p(e | s)."""

    def score(span: Span, row: int) -> float:
        surface = text[slice(*span)]
        return statistics.link_probability(surface) * statistics.commonness(surface, row)

    return _sorted(candidates, score)


def tagme(text: str, candidates: Candidates, statistics: Statistics) -> Scores:
    """Scores an entity by how well it goes with the entities of the other mentions.

    1. Candidates with a small p(e | s) are left out, unless nothing links this span.
    2. Each other mention votes for an entity by the mean, over its own candidates, of their
       relatedness to the entity times their commonness.
    3. Of the entities with nearly the most votes, the most common is taken.
    4. Its score is the mean of the link probability and of its relatedness to the entities that
       were taken for the other mentions.

    Source: Ferragina and Scaiella 2010, "disambiguation by threshold" and average pruning.
    """
    common = {
        span: {
            row: share
            for row in rows
            if (share := statistics.commonness(text[slice(*span)], row)) >= _LEAST_COMMON
        }
        for span, rows in candidates.items()
    }
    common = {span: shares or {candidates[span][0]: 0.0} for span, shares in common.items()}  # 1
    taken, ordered = {}, {}
    for span, shares in common.items():
        votes = {row: 0.0 for row in shares}
        for other, others in common.items():
            if _apart(span, other):
                for row in votes:
                    total = sum(statistics.relatedness(row, r) * s for r, s in others.items())
                    votes[row] += total / len(others)  # 2
        least = _NEARLY_BEST * max(votes.values())
        rank = {row: (votes[row] >= least, shares[row], votes[row]) for row in shares}
        ordered[span] = sorted(shares, key=lambda row: rank[row], reverse=True)
        taken[span] = ordered[span][0]  # 3
    scores: Scores = {}
    for span, rows in ordered.items():
        others = [row for other, row in taken.items() if _apart(span, other)]
        related = [statistics.relatedness(taken[span], row) for row in others]
        coherence = sum(related) / len(related) if related else 0.0
        score = (statistics.link_probability(text[slice(*span)]) + coherence) / 2  # 4
        scores[span] = [(score, row) for row in rows]
    return scores


LOOK_UPS: dict[str, Callable[[str, Candidates, Statistics], Scores]] = {
    "longest name": longest_name,
    "popularity": popularity,
    "commonness": commonness,
    "TAGME": tagme,
}


def look_up(
    name: str, questions: Sequence[Question], names: NameIndex, statistics: Statistics
) -> Evaluation:
    """Links labelled questions by a look-up, at any score; also at the gold spans.

    Args:
      name: name of the look-up, a key of `LOOK_UPS`.
      questions: labelled questions.
      names: names of the entities.
      statistics: counts of links.
    """
    results = []
    for question in questions:
        text = question.text
        scores = LOOK_UPS[name](text, candidates_of(text, names, statistics), statistics)
        gold = tuple(Gold(m.start, m.end, m.row, m.title) for m in question.mentions)
        spans = [(mention.start, mention.end) for mention in gold]
        at_gold = LOOK_UPS[name](text, candidates_of(text, names, statistics, spans), statistics)
        results.append(
            QuestionResult(
                *(question.id, text, gold, tuple(_without_overlaps(scores))),
                tuple([row for _, row in at_gold.get(span, ())] for span in spans),
                question.neutral,
            )
        )
    return Evaluation(results)


def _sorted(candidates: Candidates, score: Callable[[Span, int], float]) -> Scores:
    return {
        span: sorted(((score(span, row), row) for row in rows), key=lambda pair: -pair[0])
        for span, rows in candidates.items()
    }


def _apart(span: Span, other: Span) -> bool:
    return span[1] <= other[0] or other[1] <= span[0]


def _without_overlaps(scores: Scores) -> list[Predicted]:
    """Takes the best entity of each span, from the highest score down; of equals, the longest."""
    taken: list[Predicted] = []
    best = [
        (values[0][0], end - start, -start, values[0][1]) for (start, end), values in scores.items()
    ]
    for score, length, start, row in sorted(best, reverse=True):
        span = -start, length - start
        if all(_apart(span, (link.start, link.end)) for link in taken):
            taken.append(Predicted(*span, row, score))
    return taken


def main(arguments: list[str]) -> None:
    """Prints a table of all look-ups and of the linker, and writes it."""
    del arguments
    from elq_jax.linking.linker import EntityLinker

    if not LINKER.value or not PASSAGES.value or not SETS.value:
        raise ElqError("--linker, --passages, --sets: expected a value for each")
    if OUTPUT.value and OUTPUT.value.exists():
        raise ElqError(f"{OUTPUT.value}: exists; give another file")
    start_jax()
    linker = EntityLinker.from_pretrained(LINKER.value)
    sets = read_sets(linker.catalogue, SETS.value)
    names = NameIndex.build(linker.catalogue)
    passages = (row for path in PASSAGES.value for _, row in read_jsonl(path))
    statistics = Statistics(passages, linker.catalogue)
    rows = {}
    for name in LOOK_UPS:
        parts = [
            look_up(name, part.questions, names, statistics).of_catalogue_mentions()
            for part in sets
        ]
        threshold, _ = best_common_threshold([part.sweep for part in parts])
        rows[name] = [_scores(part, threshold) for part in parts]
    floor = min(linker.settings.threshold, -8.0)
    parts = [
        predict(linker, part.questions, floor, at_gold_spans=True).of_catalogue_mentions()
        for part in sets
    ]
    rows["this linker"] = [_scores(part, linker.settings.threshold) for part in parts]
    table = rich.table.Table("", "", "weak", "strong", "gold", caption=_caption(statistics))
    for number, part in enumerate(sets):
        for place, (name, values) in enumerate(rows.items()):
            scores = (f"{value:.3f}" for value in values[number])
            table.add_row("" if place else part.name, name, *scores)
        table.add_section()
    Console(width=100).print(table)
    if OUTPUT.value:
        report = {
            name: dict(zip([s.name for s in sets], v, strict=True)) for name, v in rows.items()
        }
        pathlib.Path(OUTPUT.value).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _caption(statistics: Statistics) -> str:
    links = sum(links.total() for links in statistics.linked.values())
    return (
        f"F1, and accuracy of entities at the gold spans; counted on {statistics.num_pages:,} "
        f"pages with {links:,} links"
    )


def _scores(evaluation: Evaluation, threshold: float) -> tuple[float, float, float]:
    counts, at_gold = evaluation.counts(threshold), evaluation.disambiguation()
    return counts.weak_f1, counts.strong_f1, at_gold.accuracy if at_gold else 0.0


if __name__ == "__main__":
    run(main)
