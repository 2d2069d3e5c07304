"""Links at neutral spans are neither right nor wrong."""

import dataclasses
import random

import numpy as np
import pytest

from elq_jax.evaluation.comparison import compare_runs
from elq_jax.evaluation.matching import Gold, Predicted, QuestionResult, links_for_calibration
from elq_jax.evaluation.perturb import changed_questions
from elq_jax.evaluation.scores import Evaluation
from elq_jax.questions.records import Question

TEXT = "Louis VIII, Landgrave of Hesse, died on 6 April 1790 in Pirmasens; he was old"
LOUIS = (0, 30)  # gold, with a nested label for each part
NAME, TITLE = (0, 10), (12, 21)
DATE, PIRMASENS, HE, OUTSIDE = (40, 52), (56, 65), (67, 69), (66, 77)
GOLD = (Gold(*LOUIS, 1), Gold(*PIRMASENS, 2))
RESULT = QuestionResult("1", TEXT, GOLD, (), None, (NAME, TITLE, DATE, HE, OUTSIDE))


@pytest.mark.parametrize(
    ("span", "row", "counts"),
    [
        (LOUIS, 1, True),  # right
        (LOUIS, 9, True),  # wrong entity
        (NAME, 1, True),  # right entity, wrong bounds: weakly right
        (NAME, 9, False),  # at a nested label
        (TITLE, 9, False),
        ((12, 30), 9, True),  # part of a gold mention, and no label
        (DATE, 9, False),
        ((43, 48), 9, False),  # overlaps a date
        ((31, 42), 9, False),
        ((31, 39), 9, True),  # where nothing is labelled
        (PIRMASENS, 9, True),
        ((50, 60), 9, True),  # overlaps a date and a gold mention
        ((50, 60), 2, True),
        (HE, 1, False),
        (HE, -1, False),
        ((70, 77), 9, False),  # outside of the evaluation span
        ((60, 70), 9, True),  # partly outside, but overlaps a gold mention
        ((65, 70), 9, False),
    ],
)
def test_which_links_count(span, row, counts):
    link = Predicted(*span, row, -0.5)
    result = dataclasses.replace(RESULT, predicted=(link,))
    assert result.counted() == ([link] if counts else [])
    assert result.counted(-0.5) == []
    assert dataclasses.replace(result, neutral=()).counted() == [link]


def is_counted(link, gold, neutral):
    """The rule, written with sets of positions."""
    positions = set(range(link.start, link.end))
    touched = [g for g in gold if positions & set(range(g.start, g.end))]
    may_be_right = any(g.row == link.row for g in touched)
    at_neutral = any(positions == set(range(*span)) for span in neutral)
    at_gold = any(positions == set(range(g.start, g.end)) for g in gold)
    near_neutral = any(positions & set(range(*span)) for span in neutral)
    ignored = (at_neutral and not at_gold) or (near_neutral and not touched)
    return may_be_right or not ignored


def kept_of(result, links):
    return tuple(link for link in links if is_counted(link, result.gold, result.neutral))


def disjoint(generator, count):
    borders = sorted(generator.sample(range(20), 2 * count))
    return list(zip(borders[::2], borders[1::2], strict=True))


def random_results(count):
    generator = random.Random(3)
    results = []
    for number in range(count):
        gold = tuple(Gold(*span, generator.randrange(-1, 3)) for span in disjoint(generator, 3))
        links = tuple(
            Predicted(*span, generator.randrange(-1, 3), round(-generator.random(), 3))
            for span in disjoint(generator, 4)
        )
        neutral = [tuple(sorted(generator.sample(range(20), 2))) for _ in range(3)]
        neutral += [(link.start, link.end) for link in links[:1]]
        results.append(QuestionResult(str(number), "x" * 20, gold, links, None, tuple(neutral)))
    return results


def test_all_scores_are_those_without_the_neutral_links():
    """Counts at every threshold, errors, calibration and comparison agree with a slow loop."""
    results = random_results(60)
    without = [
        dataclasses.replace(
            result,
            predicted=tuple(
                p for p in result.predicted if is_counted(p, result.gold, result.neutral)
            ),
            neutral=(),
        )
        for result in results
    ]
    links = sum(len(result.predicted) for result in results)
    assert 0.2 * links < sum(len(result.predicted) for result in without) < 0.9 * links
    evaluation, expected = Evaluation(results), Evaluation(without)
    for name in ("thresholds", "weak", "strong", "predicted"):
        assert np.array_equal(getattr(evaluation.sweep, name), getattr(expected.sweep, name))
    for threshold in (-0.9, -0.5, -0.1):
        assert evaluation.errors(threshold) == expected.errors(threshold)
        for part in ("links", "mentions", "nil"):
            assert np.array_equal(
                evaluation.table(threshold, part), expected.table(threshold, part)
            )
        for values, others in zip(
            links_for_calibration(results, threshold), links_for_calibration(without, threshold),
            strict=True,
        ):  # fmt: skip
            np.testing.assert_equal(values, others)
    others = [result.predicted for result in reversed(results)]
    compared = compare_runs({"a": evaluation}, -0.5, others, resamples=10)
    kept = [kept_of(result, links) for result, links in zip(results, others, strict=True)]
    assert compared == compare_runs({"a": expected}, -0.5, kept, resamples=10)


def test_perturbations_leave_questions_with_neutral_spans_alone():
    plain, neutral = Question("1", "who is he?"), Question("2", "who is he?", neutral=((7, 9),))
    assert list(changed_questions([neutral, plain], "upper_case")) == [1]
