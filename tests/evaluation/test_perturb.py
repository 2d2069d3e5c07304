"""Perturbed questions: exact offsets, reproducible by the seed, costs against counting again."""

import pytest

from elq_jax.evaluation.matching import Gold, Predicted, QuestionResult
from elq_jax.evaluation.perturb import (
    PERTURBATIONS,
    changed_questions,
    perturb,
    perturbation_report,
)
from elq_jax.evaluation.scores import Evaluation
from elq_jax.questions.records import Mention, Question

TEXTS = ("who wrote dune?", "what is the capital of France ?", "men's basketball in Ohio", "is it")
QUESTIONS = [
    Question(
        str(number),
        text,
        tuple(
            Mention(text.index(name), text.index(name) + len(name), row, name)
            for row, name in enumerate(("dune", "France", "men's basketball", "Ohio"))
            if name in text
        ),
    )
    for number, text in enumerate(TEXTS)
]


def quoted(question):
    return [question.text[m.start : m.end] for m in question.mentions]


def test_mentions_move_along():
    wanted = {
        "upper_case": [["DUNE"], ["FRANCE"], ["MEN'S BASKETBALL", "OHIO"], []],
        "lower_case": [["dune"], ["france"], ["men's basketball", "ohio"], []],
        "no_apostrophes": [["dune"], ["France"], ["mens basketball", "Ohio"], []],
    }
    same = [["dune"], ["France"], ["men's basketball", "Ohio"], []]
    for name in PERTURBATIONS:
        for seed in range(20):
            changed = [perturb(question, name, seed) for question in QUESTIONS]
            if name != "typo":
                assert [*map(quoted, changed)] == wanted.get(name, same)
            for new, old in zip(changed, QUESTIONS, strict=True):
                assert new.id == old.id
                assert [m.row for m in new.mentions] == [m.row for m in old.mentions]
                assert new == perturb(old, name, seed)
    assert perturb(QUESTIONS[1], "no_question_mark").text == "what is the capital of France"


def test_seed_and_text_decide_alone():
    [question] = QUESTIONS[1:2]
    assert len({perturb(question, "typo", seed).text for seed in range(30)}) > 10
    again = Question("other", question.text, question.mentions)
    assert perturb(again, "typo", 3).text == perturb(question, "typo", 3).text


def test_unknown_offsets_stay_unknown():
    question = Question("1", "who wrote dune?", (Mention(-1, -1, 3), Mention(10, 14, 4)))
    changed = perturb(question, "emoji")
    assert changed.mentions[0] == question.mentions[0]
    assert changed.text[slice(changed.mentions[1].start, changed.mentions[1].end)] == "dune"


def link(questions):
    """A linker that only knows names as they are written in `QUESTIONS`, and no emoji."""
    results = []
    for question in questions:
        words = question.text.replace("?", " ").split()
        predicted = tuple(
            Predicted(m.start, m.end, m.row, -0.1)
            for m, part in zip(question.mentions, quoted(question), strict=True)
            if part in " ".join(words) and set(part.split()) <= set(words)
        )
        gold = tuple(Gold(m.start, m.end, m.row) for m in question.mentions)
        results.append(QuestionResult(question.id, question.text, gold, predicted))
    return results


def test_costs_are_those_of_linking_everything_again():
    sets = {"a": QUESTIONS, "b": QUESTIONS[2:]}
    seen = []

    def watched(questions):
        seen.extend(questions)
        return link(questions)

    clean = {name: link(questions) for name, questions in sets.items()}
    changed = {
        name: {key: changed_questions(questions, name) for key, questions in sets.items()}
        for name in PERTURBATIONS
    }
    report = perturbation_report(clean, changed, watched, -1.0)
    assert {question.text for question in seen}.isdisjoint(TEXTS)
    for name, part in report.items():
        for key, questions in sets.items():
            new = [perturb(question, name) for question in questions]
            row = part["sets"][key]
            assert row["changed"] == sum(
                a.text != b.text for a, b in zip(new, questions, strict=True)
            )
            for metric in ("weak", "strong"):
                f1 = [
                    getattr(Evaluation(link(some)).counts(-1.0), f"{metric}_f1")
                    for some in (questions, new)
                ]
                assert (row[metric]["clean_f1"], row[metric]["f1"]) == pytest.approx(tuple(f1))
                assert row[metric]["cost"] == pytest.approx(100 * (f1[0] - f1[1]))
        costs = [row["weak"]["cost"] for row in part["sets"].values()]
        assert part["mean"]["weak"]["cost"] == pytest.approx(sum(costs) / 2)
    assert report["emoji"]["mean"]["weak"]["f1"] == 0.0
    assert report["no_question_mark"]["mean"]["weak"]["cost"] == 0.0
