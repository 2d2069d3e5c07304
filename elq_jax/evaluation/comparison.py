"""Reports over several sets of questions: their mean, and the comparison with another run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from elq_jax.evaluation.bootstrap import RESAMPLES, f1_intervals, paired_differences
from elq_jax.evaluation.matching import Predicted, count_by_question
from elq_jax.evaluation.scores import Evaluation


def report_of_sets(
    sets: Mapping[str, Evaluation], threshold: float, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Returns all scores of several sets at a threshold as a JSON-able dict.

    Args:
      sets: predictions on each set, by name.
      threshold: score that a prediction must exceed.
      resamples: number of resamples of the bootstrap; 0 leaves the intervals out.
      seed: seed of the bootstrap.

    Returns:
      the keys of `Evaluation.report` for the questions of all sets together; sets, a list of such
      reports with name; and mean, of which each number is the mean over the sets. Counts have none.
    """
    settings = {"resamples": resamples, "seed": seed}
    reports = [part.report(threshold, **settings) for part in sets.values()]
    mean = _mean(reports)
    if resamples and mean:
        tables = [part.table(threshold) for part in sets.values()]
        for metric, interval in f1_intervals(tables, **settings).items():
            mean["all"][metric]["f1_interval"] = list(interval)
    if len(reports) == 1:
        [pooled] = reports
    else:
        pooled = pool(list(sets.values())).report(threshold, **settings)
    named = [{"name": name} | report for name, report in zip(sets, reports, strict=True)]
    return pooled | {"sets": named, "mean": mean}


def pool(parts: Sequence[Evaluation]) -> Evaluation:
    """Returns the evaluation of the questions of all parts together."""
    results = [result for part in parts for result in part.results]
    problems = [problem for part in parts for problem in part.problems]
    return Evaluation(results, max(part.decoded_at for part in parts), problems)


def _mean(values: Sequence[Any]) -> Any:
    """Returns means of the floats at the same place in every value; None where there are none."""
    if all(isinstance(value, float) for value in values):
        return float(np.mean(values))
    if all(isinstance(value, dict) for value in values):
        shared = [key for key in values[0] if all(key in value for value in values)]
        means = {key: _mean([value[key] for value in values]) for key in shared}
        return {key: mean for key, mean in means.items() if mean is not None} or None
    return None


def compare_runs(
    sets: Mapping[str, Evaluation],
    threshold: float,
    others: Sequence[tuple[Predicted, ...]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Compares a run with another one on the same questions, by the paired bootstrap.

    Args:
      sets: predictions of the run on each set, by name.
      threshold: score that they must exceed.
      others: predictions of the other run, for the questions of all sets in their order; all count.
      resamples: number of resamples of the bootstrap.
      seed: seed of the bootstrap.

    Returns:
      sets, by name, and mean over the sets: weak and strong, each with f1, other_f1, difference,
      interval (95%) and p_value.
    """
    tables, other_tables, start = [], [], 0
    for part in sets.values():
        predicted = others[start : start + len(part.results)]
        start += len(part.results)
        other_results = [
            dataclasses.replace(result, predicted=links)
            for result, links in zip(part.results, predicted, strict=True)
        ]
        tables.append(part.table(threshold))
        other_tables.append(count_by_question(other_results, -np.inf))

    def difference(some: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> dict[str, Any]:
        found = paired_differences(some, other, resamples, seed)
        return {
            metric: {
                "f1": part.f1,
                "other_f1": part.other_f1,
                "difference": part.difference,
                "interval": list(part.interval),
                "p_value": part.p_value,
            }
            for metric, part in found.items()
        }

    rows = zip(sets, tables, other_tables, strict=True)
    return {
        "sets": {name: difference([table], [other]) for name, table, other in rows},
        "mean": difference(tables, other_tables),
    }
