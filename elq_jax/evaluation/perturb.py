"""Measures what the ways people write cost a linker: emoji, capitals, typos and the like."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from elq_jax.evaluation.matching import Counts, QuestionResult, count_by_question
from elq_jax.questions import noise
from elq_jax.questions.records import Question

PERTURBATIONS: dict[str, noise.Noise] = {
    "emoji": noise.glue_emoji,
    "symbols": noise.glue_symbols,
    "upper_case": noise.upper_case,
    "lower_case": noise.lower_case,
    "no_question_mark": noise.drop_question_mark,
    "typo": noise.typo,
    "no_apostrophes": noise.drop_apostrophes,
}
Link = Callable[[Sequence[Question]], Sequence[QuestionResult]]
Changed = Mapping[int, Question]  # By the number of the question in its set.


def perturb(question: Question, name: str, seed: int = 0) -> Question:
    """Returns a question changed by a perturbation; offsets of its gold mentions move along.

    The change depends on seed, perturbation and text alone, not on other questions.

    Args:
      question: question of the plain form; token ids of the EL4QA form are dropped, and so are
        neutral spans.
      name: name in `PERTURBATIONS`.
      seed: seed of the random choices.
    """
    marks = (zlib.crc32(part.encode("utf-8", "surrogatepass")) for part in (name, question.text))
    rng = np.random.default_rng([seed, *marks])
    known = [number for number, m in enumerate(question.mentions) if m.start >= 0]
    spans = [(question.mentions[n].start, question.mentions[n].end) for n in known]
    text, moved = PERTURBATIONS[name](question.text, spans, rng)
    mentions = list(question.mentions)
    for number, (start, end) in zip(known, moved, strict=True):
        mentions[number] = dataclasses.replace(mentions[number], start=start, end=end)
    return Question(question.id, text, tuple(mentions))


def changed_questions(questions: Sequence[Question], name: str, seed: int = 0) -> Changed:
    """Returns those questions whose text a perturbation changes, by their number.

    Questions with neutral spans stay as they are, since a perturbation does not move these along.
    """
    numbered = [(i, question) for i, question in enumerate(questions) if not question.neutral]
    pairs = ((i, question, perturb(question, name, seed)) for i, question in numbered)
    return {i: new for i, question, new in pairs if new.text != question.text}


def perturbation_report(
    clean: Mapping[str, Sequence[QuestionResult]],
    changed: Mapping[str, Mapping[str, Changed]],
    link: Link,
    threshold: float,
) -> dict[str, Any]:
    """Counts links of perturbed questions, and says what each perturbation costs.

    Args:
      clean: links of the questions as they are, by set.
      changed: changed questions, by perturbation and set.
      link: function that links questions.
      threshold: score that links must exceed.

    Returns:
      by perturbation: sets, by name, each with changed (number of questions whose text is another),
      weak and strong, which have f1, clean_f1 and cost (their difference in points: 1 is 0.01 of
      F1); and mean, the same over the sets, each counted as much.
    """
    report: dict[str, Any] = {}
    for name, of_sets in changed.items():
        rows = {}
        for set_name, questions in of_sets.items():
            results = list(clean[set_name])
            linked = link(list(questions.values()))
            for number, result in zip(questions, linked, strict=True):
                results[number] = result
            costs = _costs(clean[set_name], results, threshold)
            rows[set_name] = {"changed": len(questions)} | costs
        mean: dict[str, Any] = {"changed": sum(row["changed"] for row in rows.values())}
        for metric in ("weak", "strong"):
            parts = [row[metric] for row in rows.values()]
            mean[metric] = {key: float(np.mean([part[key] for part in parts])) for key in parts[0]}
        report[name] = {"sets": rows, "mean": mean}
    return report


def _costs(
    clean: Sequence[QuestionResult], perturbed: Sequence[QuestionResult], threshold: float
) -> dict[str, Any]:
    before, after = (
        Counts(*count_by_question(results, threshold).sum(axis=0).tolist())
        for results in (clean, perturbed)
    )
    costs = {}
    for metric in ("weak", "strong"):
        clean_f1, f1 = (getattr(counts, f"{metric}_f1") for counts in (before, after))
        costs[metric] = {"f1": f1, "clean_f1": clean_f1, "cost": 100 * (clean_f1 - f1)}
    return costs
