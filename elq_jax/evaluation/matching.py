"""Counts correct links among predicted ones, the way the original ELQ code does.

Everything is computed from plain records, so any linker can be measured.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

Metric = Literal["weak", "strong"]
Part = Literal["links", "mentions", "nil"]
Triple = Sequence[Any]  # (entity id, start, end), end exclusive


@dataclasses.dataclass(frozen=True, slots=True)
class Gold:
    """Describes a labelled mention: half-open character offsets, row (-1: not in the catalogue)."""

    start: int
    end: int
    row: int
    title: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Predicted:
    """Describes a predicted link.

    Attributes:
      start: first character of the mention.
      end: offset one past its last character.
      row: row of the entity in the catalogue; -1: the mention is said to be of something that is
        not in the catalogue (NIL).
      score: joint log-probability.
      candidates: candidate rows [C], best first.
      probability: probability that the link is right, if the linker gives one.
    """

    start: int
    end: int
    row: int
    score: float
    candidates: tuple[int, ...] = ()
    probability: float | None = None

    @property
    def confidence(self) -> float:
        """Returns the probability that the link is right, or else that of its log score."""
        return math.exp(min(self.score, 0.0)) if self.probability is None else self.probability


@dataclasses.dataclass(frozen=True, slots=True)
class QuestionResult:
    """Holds a question with its gold mentions and predicted links.

    Attributes:
      id: name of the question.
      text: text of the question.
      gold: labelled mentions.
      predicted: links whose overlaps are resolved, in any order.
      gold_candidates: candidate rows retrieved for the span of each gold mention, best first (empty
        where the span could not be encoded); None if not computed.
      neutral: half-open character offsets of spans that may or may not be mentions.
    """

    id: str
    text: str
    gold: tuple[Gold, ...]
    predicted: tuple[Predicted, ...]
    gold_candidates: tuple[Sequence[int], ...] | None = None
    neutral: tuple[tuple[int, int], ...] = ()

    def counted(self, threshold: float = -math.inf) -> list[Predicted]:
        """Returns the predictions with score > threshold that are right or wrong.

        A prediction is neither, and left out, if
          1. no gold mention that it overlaps has its entity, and
          2. it overlaps a neutral span and no gold mention, or it is exactly a neutral span and not
             exactly a gold mention.
        """
        predicted = [link for link in self.predicted if link.score > threshold]
        return (
            [link for link in predicted if not self._is_neutral(link)]
            if self.neutral
            else predicted
        )

    def _is_neutral(self, link: Predicted) -> bool:
        span = link.start, link.end
        gold = [g for g in self.gold if _overlap(span, (g.start, g.end))]
        if any(mention.row == link.row for mention in gold):
            return False
        if span in self.neutral:
            return all((mention.start, mention.end) != span for mention in gold)
        return not gold and any(_overlap(span, neutral) for neutral in self.neutral)


@dataclasses.dataclass(frozen=True, slots=True)
class Counts:
    """Holds sums over questions; precision, recall and F1 are micro-averages, 0 where undefined.

    Attributes:
      weak: number of predictions with the entity and an overlapping span of a gold mention.
      strong: number of predictions with the entity and the exact span of a gold mention.
      predicted: number of predictions.
      gold: number of gold mentions.
    """

    weak: int = 0
    strong: int = 0
    predicted: int = 0
    gold: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.weak + other.weak,
            self.strong + other.strong,
            self.predicted + other.predicted,
            self.gold + other.gold,
        )

    @property
    def weak_precision(self) -> float:
        """Returns the share of the predictions that are weakly correct."""
        return self.weak / self.predicted if self.predicted else 0.0

    @property
    def weak_recall(self) -> float:
        """Returns the share of the gold mentions that are matched weakly."""
        return self.weak / self.gold if self.gold else 0.0

    @property
    def weak_f1(self) -> float:
        """Returns the harmonic mean of weak precision and recall."""
        return 2 * self.weak / (self.predicted + self.gold) if self.weak else 0.0

    @property
    def strong_precision(self) -> float:
        """Returns the share of the predictions that are strongly correct."""
        return self.strong / self.predicted if self.predicted else 0.0

    @property
    def strong_recall(self) -> float:
        """Returns the share of the gold mentions that are matched strongly."""
        return self.strong / self.gold if self.gold else 0.0

    @property
    def strong_f1(self) -> float:
        """Returns the harmonic mean of strong precision and recall."""
        return 2 * self.strong / (self.predicted + self.gold) if self.strong else 0.0

    def scores(self, metric: Metric) -> dict[str, float]:
        """Returns correct, precision, recall and f1 for a report."""
        names = ("precision", "recall", "f1")
        scores = {name: getattr(self, f"{metric}_{name}") for name in names}
        return {"correct": getattr(self, metric), **scores}


def _overlap(span: tuple[int, int], other: tuple[int, int]) -> bool:
    return max(span[0], other[0]) < min(span[1], other[1])


def triples(links: Sequence[Gold | Predicted], mentions_only: bool = False) -> list[tuple]:
    """Makes triples for `count_matches`; rows outside the catalogue get the empty id."""
    return [
        (None if mentions_only or link.row < 0 else link.row, link.start, link.end)
        for link in links
    ]


def count_by_question(
    results: Sequence[QuestionResult], threshold: float, part: Part = "links"
) -> np.ndarray:
    """Counts the predictions with score > threshold, question by question.

    Those at neutral spans do not count, see `QuestionResult.counted`.

    Args:
      results: Q questions.
      threshold: score that a prediction must exceed.
      part: what is counted. "links": predictions of entities of the catalogue against all gold, so
        that gold outside the catalogue is a miss. "mentions": spans of all predictions against
        those of all gold, whatever the entities. "nil": predictions of something outside the
        catalogue against gold outside the catalogue.

    Returns:
      [Q, 4] int64: the fields of `Counts`.
    """
    rows = []
    for result in results:
        gold, predicted = result.gold, result.counted(threshold)
        if part == "links":
            predicted = [p for p in predicted if p.row >= 0]
        elif part == "nil":
            gold, predicted = ([x for x in links if x.row < 0] for links in (gold, predicted))
        counts = count_matches(*(triples(links, part != "links") for links in (gold, predicted)))
        rows.append((*counts, len(predicted), len(gold)))
    return np.array(rows, np.int64).reshape(-1, 4)


def match_links(
    gold: Sequence[Gold], predicted: Sequence[Predicted]
) -> tuple[np.ndarray, np.ndarray]:
    """Says of each prediction of one question whether it is right.

    Predictions are taken from the left of the text, and each uses up the leftmost gold mention that
    it matches. Where the spans of each list do not overlap one another, as many are right as
    `count_matches` counts. Predictions outside the catalogue (row -1) are never right.

    Returns:
      weakly and strongly right, [P] bool each, in the order of `predicted`.
    """
    right = {"weak": np.zeros(len(predicted), bool), "strong": np.zeros(len(predicted), bool)}
    by_end = sorted(range(len(predicted)), key=lambda number: predicted[number].end)
    for metric, mask in right.items():
        remaining = sorted((g for g in gold if g.row >= 0), key=lambda g: g.end)
        for number in by_end:
            link = predicted[number]
            for mention in remaining:
                overlap = _overlap((link.start, link.end), (mention.start, mention.end))
                is_same = (link.start, link.end) == (mention.start, mention.end)
                if link.row == mention.row and (overlap if metric == "weak" else is_same):
                    mask[number] = True
                    remaining.remove(mention)
                    break
    return right["weak"], right["strong"]


def links_for_calibration(
    results: Sequence[QuestionResult], threshold: float
) -> tuple[np.ndarray, dict[Metric, np.ndarray]]:
    """Lists the probabilities of the links with score > threshold, and which links are right.

    Returns:
      probabilities [n] float64, and "weak" and "strong" [n] bool, for `evaluation.calibration`.
      Predictions outside the catalogue are left out, and so are those at neutral spans.
    """
    probabilities: list[float] = []
    right: dict[Metric, list[bool]] = {"weak": [], "strong": []}
    for result in results:
        links = [link for link in result.counted(threshold) if link.row >= 0]
        probabilities += [link.confidence for link in links]
        for metric, mask in zip(right, match_links(result.gold, links), strict=True):
            right[metric] += mask.tolist()
    masks = {metric: np.array(mask, bool) for metric, mask in right.items()}
    return np.array(probabilities, np.float64), masks


def count_matches(gold: Sequence[Triple], predicted: Sequence[Triple]) -> tuple[int, int]:
    """Counts the weakly and strongly correct predictions of one question.

    Ids are compared as text, without case; None is the empty id. A pair matches weakly when the
    ids agree and the spans share a position, strongly when ids and spans agree. Both lists are
    sorted by end (stable). The largest set of matching pairs that keeps this order is counted; each
    gold mention and each prediction is in one pair at most.

    The sort looks at ends only, so two predictions with the same end can be in the wrong order, and
    one of them then counts as wrong. Where the spans of each list do not overlap one another, as
    ours do not, this cannot happen, and the result is the largest matching in any order.

    An empty span (start == end) can match strongly but not weakly.

    Args:
      gold: triples (id, start, end), end exclusive.
      predicted: triples of the predictions.

    Returns:
      (weak, strong).

    Source: `entity_linking_tp_with_overlap` of the original.
    """
    gold, predicted = _normalised(gold), _normalised(predicted)
    weak, strong = [0] * (len(predicted) + 1), [0] * (len(predicted) + 1)
    for gold_id, gold_start, gold_end in gold:
        # weak[j]: most matches of the gold mentions so far with the first j predictions. One more
        # mention adds at most one match, so a matching pair is always best taken.
        last_weak, last_strong = weak, strong
        weak, strong = [0], [0]
        for j, (id_, start, end) in enumerate(predicted):
            same = id_ == gold_id
            if same and max(start, gold_start) < min(end, gold_end):
                weak.append(last_weak[j] + 1)
            else:
                weak.append(max(last_weak[j + 1], weak[j]))
            if same and (start, end) == (gold_start, gold_end):
                strong.append(last_strong[j] + 1)
            else:
                strong.append(max(last_strong[j + 1], strong[j]))
    return weak[-1], strong[-1]


def _normalised(triples: Sequence[Triple]) -> list[tuple[str, int, int]]:
    """Returns triples with lower-case ids, sorted by end (stable)."""
    named = [("" if id_ is None else str(id_).lower(), s, e) for id_, s, e in triples]
    return sorted(named, key=lambda triple: triple[2])
