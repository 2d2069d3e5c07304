"""Measures what counts of links would add to candidate scoring, for docs/wikipedia.md.

    python -m benchmarks.priors --linker my_linker --passages sample/passages/*.jsonl.gz \\
        --sets webqsp/dev.jsonl,documents/wiki_fair_dev.jsonl

`--passages` is what `python -m elq_jax.wikipedia` made of a dump. The features of candidate scoring
are joined by log(1 + number of pages that link to e), and by the p(e | s) of the links whose text s
is the mention. Weights are fitted on every second question of all sets and measured at the gold
mentions of the others, and the other way round; so every mention of the catalogue counts once, with
weights that were fitted without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import rich.table
from rich.console import Console

from benchmarks.baselines import Statistics
from benchmarks.options import LINKER, PASSAGES, SETS
from elq_jax.cli.run import run, start_jax
from elq_jax.core.errors import ElqError
from elq_jax.evaluation.sets import read_sets
from elq_jax.linking.candidates import FEATURES, Candidates, CandidateScorer
from elq_jax.linking.linker import EntityLinker
from elq_jax.questions.records import Question
from elq_jax.storage.lines import read_jsonl
from elq_jax.training.candidates import candidates_at_gold, fit_conditional_logit

PRIORS = ("popularity", "p(e | s)")


@dataclasses.dataclass(frozen=True)
class AtGold:
    """Candidates of the gold mentions of questions.

    Attributes:
      candidates: candidates, with the features of `FEATURES` and then those of `PRIORS`.
      rows: [n] int32, the right entity of each mention.
      fold: [n] int, 0 or 1, by the number of the question in its set.
      known: [n] bool, whether a link has the text of the mention.
    """

    candidates: Candidates
    rows: np.ndarray
    fold: np.ndarray
    known: np.ndarray


class _WithPriors(CandidateScorer):
    """Finds the candidates of another scorer, with the counts of links as further features."""

    def __init__(self, scorer: CandidateScorer, statistics: Statistics):
        self.names, self._scorer, self._statistics = scorer.names, scorer, statistics
        self.known = np.zeros(0, bool)  # of the last mentions

    def candidates(
        self, mentions: Sequence[str], vectors: np.ndarray, products: np.ndarray, rows: np.ndarray
    ) -> Candidates:
        found, counts = self._scorer.candidates(mentions, vectors, products, rows), self._statistics
        self.known = np.array([mention.lower() in counts.linked for mention in mentions], bool)
        priors = [
            (np.log1p(len(counts.pages.get(row, ()))), counts.commonness(mentions[number], row))
            for number, row in zip(found.mentions.tolist(), found.rows.tolist(), strict=True)
        ]
        priors = np.array(priors, float).reshape(-1, len(PRIORS))
        return dataclasses.replace(found, features=np.hstack([found.features, priors]))


def at_gold(linker: EntityLinker, statistics: Statistics, questions: Sequence[Question]) -> AtGold:
    """Finds the candidates of the gold mentions of a set.

    Raises:
      ElqError: the linker does not rescore candidates.
    """
    if linker.candidate_scorer is None:
        raise ElqError("--linker: it has no candidate scoring; give one that was trained here")
    scorer = _WithPriors(linker.candidate_scorer, statistics)
    parts, count = [], 0
    for fold in (0, 1):
        found, rows = candidates_at_gold(linker, scorer, questions[fold::2])
        found = dataclasses.replace(found, mentions=found.mentions + count)
        parts.append((found, rows, np.full(len(rows), fold), scorer.known))
        count += len(rows)
    names = [field.name for field in dataclasses.fields(Candidates)]
    found = [np.concatenate([getattr(part[0], name) for part in parts]) for name in names]
    others = [np.concatenate([part[place] for part in parts]) for place in (1, 2, 3)]
    return AtGold(Candidates(*found), *others)


def are_right(sets: Mapping[str, AtGold], columns: Sequence[int]) -> dict[str, np.ndarray]:
    """Returns for each mention of each set, [n] bool, whether its best candidate is the right one.

    Args:
      sets: gold mentions of each set, by its name.
      columns: numbers of the features that are used.
    """
    right = {name: np.zeros(len(own.rows), bool) for name, own in sets.items()}
    for fold in (0, 1):
        features, mentions, is_gold, count = [], [], [], 0
        for own in sets.values():
            found = own.candidates
            gold = found.rows == own.rows[found.mentions]
            has_gold = np.bincount(found.mentions, gold, minlength=len(own.rows)) > 0
            kept = (has_gold & (own.fold != fold))[found.mentions]
            features.append(found.features[kept][:, columns])
            mentions.append(found.mentions[kept] + count)
            is_gold.append(gold[kept])
            count += len(own.rows)
        weights = fit_conditional_logit(
            *map(np.concatenate, (features, mentions, is_gold)), np.ones(count)
        )
        for name, own in sets.items():
            found = own.candidates
            order = np.lexsort((-(found.features[:, columns] @ weights), found.mentions))
            first = order[np.flatnonzero(np.diff(found.mentions, prepend=-1))]
            best = np.full(len(own.rows), -1)
            best[found.mentions[first]] = found.rows[first]
            measured = own.fold == fold
            right[name][measured] = (best == own.rows)[measured]
    return right


def main(arguments: list[str]) -> None:
    """Fits and measures candidate scoring with and without each prior, and prints a table."""
    del arguments
    if not LINKER.value or not PASSAGES.value or not SETS.value:
        raise ElqError("--linker, --passages, --sets: expected a value for each")
    start_jax()
    linker = EntityLinker.from_pretrained(LINKER.value)
    passages = (row for path in PASSAGES.value for _, row in read_jsonl(path))
    statistics = Statistics(passages, linker.catalogue)
    sets = {
        part.name: at_gold(linker, statistics, part.questions)
        for part in read_sets(linker.catalogue, SETS.value)
    }
    names = list(range(len(FEATURES)))
    first, second = len(FEATURES), len(FEATURES) + 1
    ways = {
        "without": names,
        PRIORS[0]: [*names, first],
        PRIORS[1]: [*names, second],
        "both": [*names, first, second],
    }
    right = {way: are_right(sets, columns) for way, columns in ways.items()}
    table = rich.table.Table("", "mentions", "with counts", *ways, "mended / broken by both")
    for name, own in sets.items():
        inside = own.rows >= 0
        before, after = right["without"][name][inside], right["both"][name][inside]
        table.add_row(
            name,
            f"{inside.sum():,}",
            f"{own.known[inside].mean():.0%}",
            *(f"{of_sets[name][inside].mean():.3f}" for of_sets in right.values()),
            f"{(after & ~before).sum()} / {(before & ~after).sum()}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    run(main)
