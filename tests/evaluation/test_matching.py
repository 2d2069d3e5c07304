"""The counting of correct links against the original's counts and against brute force."""

import itertools
import json

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from elq_jax.evaluation.matching import Counts, count_matches
from elq_jax.original.evaluation import shortened


def weak_match(gold, predicted):
    shared = set(range(*gold[1:])) & set(range(*predicted[1:]))
    return gold[0] == predicted[0] and bool(shared)


def strong_match(gold, predicted):
    return gold == predicted


def test_original_counts(fixtures):
    cases = json.loads((fixtures / "metrics.json").read_text())
    assert cases
    for case in cases:
        gold, predicted = case["gold"], case["pred"]
        if any(len(triple) == 1 for triple in gold):  # without spans it looks at the ids alone
            gold, predicted = ([(triple[0], 0, 1) for triple in x] for x in (gold, predicted))
        assert count_matches(gold, predicted) == (case["weak"], case["strong"]), case


def best_in_order(gold, predicted, match):
    """Tries every way to pair some gold mentions, in order, with as many predictions, in order."""
    gold = sorted(gold, key=lambda triple: triple[2])
    predicted = sorted(predicted, key=lambda triple: triple[2])
    for size in range(min(len(gold), len(predicted)), 0, -1):
        for some_gold in itertools.combinations(gold, size):
            for some_predicted in itertools.combinations(predicted, size):
                if all(map(match, some_gold, some_predicted)):
                    return size
    return 0


def random_triples(rng, most):
    starts = rng.integers(0, 7, rng.integers(0, most + 1))
    return [("abc"[rng.integers(3)], int(s), int(rng.integers(s, 9))) for s in starts]


def test_equals_brute_force_in_order():
    rng = np.random.default_rng(0)
    for _ in range(500):
        gold, predicted = random_triples(rng, 5), random_triples(rng, 5)
        assert count_matches(gold, predicted) == (
            best_in_order(gold, predicted, weak_match),
            best_in_order(gold, predicted, strong_match),
        )


def disjoint_triples(rng):
    cuts = np.sort(rng.choice(20, 2 * rng.integers(0, 6), replace=False)).tolist()
    triples = [("ab"[rng.integers(2)], s, e) for s, e in zip(cuts[::2], cuts[1::2], strict=True)]
    rng.shuffle(triples)
    return [(name, int(start), int(end)) for name, start, end in triples]


def test_disjoint_spans_need_no_order():
    """With spans that do not overlap one another, the count is the largest matching of all."""
    rng = np.random.default_rng(1)
    for _ in range(500):
        gold, predicted = disjoint_triples(rng), disjoint_triples(rng)
        weak, strong = count_matches(gold, predicted)
        assert strong == len(set(gold) & set(predicted))
        table = np.array([[weak_match(g, p) for p in predicted] for g in gold])
        table = table.reshape(len(gold), len(predicted))
        assert weak == table[linear_sum_assignment(table, maximize=True)].sum()


def test_where_the_original_counts_less_than_the_largest_matching():
    gold, predicted = [("a", 0, 2), ("b", 0, 2)], [("b", 0, 2), ("a", 0, 2)]
    assert count_matches(gold, predicted) == (1, 1)
    assert count_matches(gold, predicted[::-1]) == (2, 2)


def test_ids():
    assert count_matches([(7, 0, 2)], [("7", 0, 2)]) == (1, 1)
    assert count_matches([(None, 0, 2)], [("", 0, 2)]) == (1, 1)
    assert count_matches([("Q1", 4, 5)], [("q1", 4, 5)]) == (1, 1)
    assert count_matches([], [("a", 0, 1)]) == (0, 0)


def test_inclusive_ends_lose_mentions_of_one_token():
    """As the original's evaluation during training counts."""

    def count(gold, predicted):
        return count_matches(shortened(gold), shortened(predicted))

    gold = [("a", 3, 4), ("b", 6, 8)]
    assert count_matches(gold, gold) == (2, 2)
    assert count(gold, gold) == (1, 2)
    # [6, 8) and [7, 9) share token 7; with ends 7 and 8 compared as if exclusive they do not.
    assert count_matches([("b", 6, 8)], [("b", 7, 9)]) == (1, 0)
    assert count([("b", 6, 8)], [("b", 7, 9)]) == (0, 0)
    assert count([("b", 6, 7)], [("b", 5, 9)]) == (0, 0)


def test_counts():
    counts = Counts(weak=2, strong=1, predicted=4, gold=3) + Counts(1, 1, 1, 2)
    assert counts == Counts(3, 2, 5, 5)
    p, r = 3 / 5, 3 / 5
    assert (counts.weak_precision, counts.weak_recall) == (p, r)
    assert counts.weak_f1 == pytest.approx(2 * p * r / (p + r))
    assert (counts.strong_precision, counts.strong_recall) == (2 / 5, 2 / 5)
    assert counts.strong_f1 == pytest.approx(2 / 5)
    uneven = Counts(weak=3, strong=2, predicted=4, gold=7)
    p, r = uneven.strong_precision, uneven.strong_recall
    assert uneven.strong_f1 == pytest.approx(2 * p * r / (p + r))
    for empty in (Counts(), Counts(predicted=3), Counts(gold=3), Counts(predicted=2, gold=2)):
        assert empty.weak_precision == empty.weak_recall == empty.weak_f1 == 0
        assert empty.strong_precision == empty.strong_recall == empty.strong_f1 == 0


def test_labelled_results_of_the_original(fixtures):
    """Counts of whole runs, of what the original printed."""
    for run in json.loads((fixtures / "labelled_results.json").read_text()):
        total = Counts()
        for result in run["results"]:
            gold, predicted = result["gold_triples"], result["pred_triples"]
            total += Counts(*count_matches(gold, predicted), len(predicted), len(gold))
        expected = run["counts"]
        assert (total.weak, total.strong) == (expected["correct_weak"], expected["correct_strong"])
        assert (total.predicted, total.gold) == (expected["predicted"], expected["gold"])
