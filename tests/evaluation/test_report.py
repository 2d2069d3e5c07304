"""Sweeps, scores, intervals, errors and outputs of the evaluation against slow recomputation."""

import dataclasses
import io
import json
import struct

import numpy as np
import pytest
from rich.console import Console
from scipy.optimize import linear_sum_assignment

from elq_jax.core.errors import ElqError
from elq_jax.evaluation import show
from elq_jax.evaluation.matching import (
    Counts,
    Gold,
    Predicted,
    QuestionResult,
    count_matches,
    links_for_calibration,
    match_links,
)
from elq_jax.evaluation.scores import Evaluation
from elq_jax.evaluation.sweep import best_common_threshold
from elq_jax.questions.read import read_questions


def random_results(seed, questions=40):
    """Disjoint spans on a line of 30 characters, few rows and few scores, so that all collide."""
    rng = np.random.default_rng(seed)

    def spans():
        cuts = np.sort(rng.choice(30, 2 * rng.integers(0, 5), replace=False)).tolist()
        return zip(cuts[::2], cuts[1::2], strict=True)

    results = []
    for number in range(questions):
        gold = tuple(Gold(s, e, int(rng.integers(-1, 3))) for s, e in spans())
        predicted = [
            Predicted(s, e, int(rng.integers(0, 3)), -float(rng.integers(1, 12)) / 4)
            for s, e in spans()
        ]
        predicted += [Predicted(g.start, g.end, g.row, -0.3) for g in gold[:1] if g.row > 1]
        results.append(QuestionResult(str(number), "x" * 30, gold, tuple(predicted)))
    return results


def slow_counts(results, threshold):
    total = Counts()
    for result in results:
        gold = [("none" if g.row < 0 else g.row, g.start, g.end) for g in result.gold]
        kept = [(p.row, p.start, p.end) for p in result.predicted if p.score > threshold]
        total += Counts(*count_matches(gold, kept), len(kept), len(gold))
    return total


def test_sweep_equals_counting_at_each_threshold():
    for seed in range(5):
        results = random_results(seed)
        evaluation = Evaluation(results)
        sweep = evaluation.sweep
        scores = {p.score for r in results for p in r.predicted}
        assert len(sweep.thresholds) == len(scores) + 1
        assert (np.diff(sweep.thresholds) < 0).all()
        for i, threshold in enumerate(sweep.thresholds):
            counts = slow_counts(results, threshold)
            assert evaluation.counts(threshold) == counts
            assert (sweep.weak[i], sweep.strong[i]) == (counts.weak, counts.strong)
            assert (sweep.predicted[i], sweep.gold) == (counts.predicted, counts.gold)
            for metric in ("weak", "strong"):
                for name in ("precision", "recall", "f1"):
                    value = getattr(sweep, name)(metric)[i]
                    assert value == pytest.approx(getattr(counts, f"{metric}_{name}"))
        for threshold in np.linspace(-4, 0.5, 50):
            point = sweep.index(threshold)
            counts = slow_counts(results, threshold)
            assert (sweep.weak[point], sweep.predicted[point]) == (counts.weak, counts.predicted)
        for metric in ("weak", "strong"):
            best = slow_counts(results, sweep.best_threshold(metric))
            highest = max(
                getattr(slow_counts(results, t), f"{metric}_f1") for t in np.linspace(-4, 0, 401)
            )
            assert getattr(best, f"{metric}_f1") == pytest.approx(highest)


def test_common_threshold_is_best_by_the_mean_over_sets():
    """Against trying many thresholds; of one set it is that of the set."""
    for seed in range(5):
        sets = [random_results(10 * seed + n, questions=5 * n + 2) for n in range(3)]
        evaluations = [Evaluation(results, decoded_at=-3.4) for results in sets]
        for metric in ("weak", "strong"):
            sweeps = [evaluation.sweep for evaluation in evaluations]
            threshold, f1 = best_common_threshold(sweeps, metric)
            tried = [
                [getattr(slow_counts(results, t), f"{metric}_f1") for results in sets]
                for t in (threshold, *np.linspace(-3.4, 0.1, 351))
            ]
            assert f1.tolist() == pytest.approx(tried[0])
            assert np.mean(tried[0]) == pytest.approx(max(map(np.mean, tried)))
            alone, f1 = best_common_threshold(sweeps[2:], metric)
            assert alone == sweeps[2].best_threshold(metric)
            assert f1.tolist() == pytest.approx([sweeps[2].f1(metric).max()])


def test_sweep_without_predictions():
    results = [QuestionResult("1", "dune?", (Gold(0, 4, 3),), ())]
    sweep = Evaluation(results, decoded_at=-5.0).sweep
    assert sweep.thresholds.tolist() == [-5.0]
    assert sweep.best_threshold() == -5.0
    assert sweep.f1().tolist() == [0.0]
    assert Evaluation([]).report(-1.0)["all"]["weak"]["f1"] == 0


def test_threshold_below_the_predictions_is_refused():
    evaluation = Evaluation(random_results(0), decoded_at=-3.0)
    assert evaluation.sweep.thresholds.min() == -3.0
    with pytest.raises(ElqError, match="threshold -4 is below -3"):
        evaluation.counts(-4.0)


TEXT = "who wrote dune and emma in paris?"
DUNE, EMMA, PARIS = (10, 14), (19, 23), (27, 32)


def example():
    """One question each: right, wrong entity, wrong bounds, missed + spurious, not in catalogue."""
    return [
        QuestionResult("ok", TEXT, (Gold(*DUNE, 1),), (Predicted(*DUNE, 1, -0.1),), ([1, 2, 3],)),
        QuestionResult(
            "entity", TEXT, (Gold(*DUNE, 1),), (Predicted(*DUNE, 2, -0.2, (2, 3, 1)),), ([2, 3, 1],)
        ),
        QuestionResult(
            "bounds", TEXT, (Gold(*EMMA, 4),), (Predicted(15, 23, 4, -0.3),), ([4, 5, 6],)
        ),
        QuestionResult("other", TEXT, (Gold(*PARIS, 5),), (Predicted(0, 3, 9, -0.4),), ([8, 5],)),
        QuestionResult(
            "outside",
            TEXT,
            (Gold(*PARIS, -1, "Paris, Texas"), Gold(*DUNE, 1)),
            (Predicted(*PARIS, 5, -0.5), Predicted(*DUNE, 1, -9.0)),
            ([-1, 5], []),
        ),
    ]


def test_scores():
    evaluation = Evaluation(example())
    assert evaluation.counts(-1.0) == Counts(weak=2, strong=1, predicted=5, gold=6)
    assert evaluation.counts(-10.0) == Counts(weak=3, strong=2, predicted=6, gold=6)
    known = evaluation.in_catalogue()
    assert known.counts(-10.0) == Counts(weak=2, strong=1, predicted=4, gold=4)
    known = evaluation.of_catalogue_mentions()  # A link outside of these does not count.
    assert known.counts(-10.0) == Counts(weak=3, strong=2, predicted=5, gold=5)
    assert known.counts(-1.0) == Counts(weak=2, strong=1, predicted=4, gold=5)
    assert [list(c) for c in known.results[-1].gold_candidates] == [[]]
    mentions = evaluation.counts(-1.0, part="mentions")
    assert mentions == Counts(weak=4, strong=3, predicted=5, gold=6)


def test_links_that_are_right_are_as_many_as_counted():
    """One by one against the dynamic programme, on spans that do not overlap."""
    for seed in range(20):
        results = random_results(seed)
        probabilities, right = links_for_calibration(results, -2.0)
        counts = slow_counts(results, -2.0)
        assert len(probabilities) == counts.predicted
        assert (right["weak"].sum(), right["strong"].sum()) == (counts.weak, counts.strong)
        scores = [p.score for r in results for p in r.predicted if p.score > -2.0]
        np.testing.assert_allclose(probabilities, np.exp(scores))
        for result in results:  # The right ones are those that match something.
            for number, link in enumerate(result.predicted):
                weak, strong = (mask[number] for mask in match_links(result.gold, result.predicted))
                same = [g for g in result.gold if g.row == link.row >= 0]
                assert strong <= any((g.start, g.end) == (link.start, link.end) for g in same)
                assert weak <= any(max(g.start, link.start) < min(g.end, link.end) for g in same)


def test_a_probability_of_the_linker_is_used():
    link = Predicted(*DUNE, 1, -0.5, probability=0.25)
    assert link.confidence == 0.25
    report = Evaluation([QuestionResult("1", TEXT, (Gold(*DUNE, 1),), (link,))]).report(-1.0)
    assert report["calibration"]["weak"]["ece"] == {"equal_mass": 0.75, "fixed": 0.75}
    assert Predicted(*DUNE, 1, 1e-16).confidence == 1.0


def with_nil(seed):
    """Random results in which some predictions say that there is no such entity."""
    rng = np.random.default_rng(seed)
    return [
        dataclasses.replace(
            result,
            predicted=tuple(
                dataclasses.replace(p, row=-1) if rng.random() < 0.4 else p
                for p in result.predicted
            ),
        )
        for result in random_results(seed)
    ]


def test_nil_links_are_counted_by_themselves():
    """Against sets of spans; they change nothing in what is counted of other links."""
    for seed in range(5):
        results = with_nil(seed)
        evaluation = Evaluation(results)
        strong = weak = predicted = gold = 0
        for result in results:
            golds = [g for g in result.gold if g.row == -1]
            nils = [p for p in result.predicted if p.row == -1 and p.score > -2.0]
            gold, predicted = gold + len(golds), predicted + len(nils)
            strong += len({(g.start, g.end) for g in golds} & {(p.start, p.end) for p in nils})
            pairs = [
                [max(g.start, p.start) < min(g.end, p.end) for p in nils] or [False] for g in golds
            ]
            if pairs:
                rows, columns = linear_sum_assignment(pairs, maximize=True)
                weak += int(np.array(pairs)[rows, columns].sum())
        assert evaluation.counts(-2.0, "nil") == Counts(weak, strong, predicted, gold)
        others = [
            dataclasses.replace(r, predicted=tuple(p for p in r.predicted if p.row >= 0))
            for r in results
        ]
        assert evaluation.counts(-2.0) == slow_counts(others, -2.0)
        assert evaluation.sweep.weak.tolist() == Evaluation(others).sweep.weak.tolist()
        assert evaluation.sweep.predicted.tolist() == Evaluation(others).sweep.predicted.tolist()
        report = evaluation.report(-2.0, resamples=10)
        assert report["nil"]["predicted"] == predicted > 0
        assert report["nil"]["weak"]["recall"] == pytest.approx(weak / gold)
        assert report["calibration"]["weak"]["links"] == report["all"]["predicted"]
        mentions = evaluation.counts(-2.0, "mentions")
        assert mentions.predicted == report["all"]["predicted"] + predicted


def test_disambiguation_at_gold_spans():
    ranking = Evaluation(example()).disambiguation()
    assert ranking.total == 6
    assert ranking.hits.tolist() == [2, 3, 4]
    assert (ranking.accuracy, ranking.recall(2), ranking.recall(50)) == (2 / 6, 3 / 6, 4 / 6)
    known = Evaluation(example()).in_catalogue().disambiguation()
    assert (known.total, known.accuracy, known.recall(3)) == (4, 0.5, 1.0)
    assert Evaluation(random_results(0)).disambiguation() is None
    with pytest.raises(ElqError, match="question '7': gold_candidates has 2 entries, expected one"):
        Evaluation([QuestionResult("7", TEXT, (Gold(*DUNE, 1),), (), ([1], [2]))])


def test_errors(tmp_path):
    class Names:
        """Stands in for a catalogue; it is read once."""

        lookups = 0

        def titles(self, rows):
            self.lookups += 1
            return [f"title {row}" for row in rows]

        def wikidata_ids(self, rows):
            return [f"Q{row}" if row % 2 else None for row in rows]

        def ids(self, rows):
            return [f"id {row}" for row in rows]

    names = Names()
    errors = Evaluation(example()).errors(-1.0, names)
    assert names.lookups == 1
    shown = [(e["id"], e["error"], e["gold"], e["predicted"], e["gold_rank"]) for e in errors]

    def record(start, end, row, title, **score):
        place = dict(start=start, end=end, mention=TEXT[start:end])
        wikidata_id = f"Q{row}" if row > 0 and row % 2 else None
        own = f"id {row}" if row > 0 else None
        return dict(**place, title=title, wikidata_id=wikidata_id, row=row, id=own, **score)

    assert shown == [
        (
            "entity",
            "wrong_entity",
            record(*DUNE, 1, "title 1"),
            record(*DUNE, 2, "title 2", score=-0.2),
            2,
        ),
        (
            "bounds",
            "wrong_bounds",
            record(*EMMA, 4, "title 4"),
            record(15, 23, 4, "title 4", score=-0.3),
            None,
        ),
        ("other", "spurious", None, record(0, 3, 9, "title 9", score=-0.4), None),
        ("other", "missed", record(*PARIS, 5, "title 5"), None, None),
        ("outside", "missed", record(*DUNE, 1, "title 1"), None, None),
        (
            "outside",
            "wrong_entity",
            record(*PARIS, -1, "Paris, Texas"),
            record(*PARIS, 5, "title 5", score=-0.5),
            None,
        ),
    ]
    show.write_errors(tmp_path / "errors.jsonl", errors)
    lines = (tmp_path / "errors.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == errors


@pytest.mark.parametrize("field", ["gold", "predicted"])
def test_links_in_errors_are_read_as_labelled_questions(tmp_path, field):
    """The form of a link is that of `elq_jax.link`, which labelled questions may have too."""
    results = example()
    errors = [e for e in Evaluation(results).errors(-1.0) if e[field]]
    path = tmp_path / "questions.jsonl"
    rows = [{"id": e["id"], "text": e["text"], "links": [e[field]]} for e in errors]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions, _ = read_questions(path)
    by_id = {result.id: getattr(result, field) for result in results}
    assert len(questions) == len(errors)
    for question in questions:
        [mention] = question.mentions
        assert (mention.start, mention.end, mention.row) in [
            (link.start, link.end, link.row) for link in by_id[question.id]
        ]


def test_errors_account_for_everything_that_is_not_exact():
    """Every gold mention and every prediction is exactly right or in one error record."""
    for seed in range(5):
        results = random_results(seed)
        errors = Evaluation(results).errors(-2.0)
        counts = slow_counts(results, -2.0)
        assert sum(e["gold"] is not None for e in errors) == counts.gold - counts.strong
        assert sum(e["predicted"] is not None for e in errors) == counts.predicted - counts.strong


def test_bootstrap_interval_agrees_with_the_binomial():
    """With one gold mention and one prediction per question, F1 is a share of n coin flips."""
    n, p = 400, 0.8
    results = [
        QuestionResult(str(i), TEXT, (Gold(*DUNE, 1),), (Predicted(*DUNE, 1 + (i >= n * p), -1.0),))
        for i in range(n)
    ]
    evaluation = Evaluation(results)
    low, high = evaluation.f1_interval(-2.0)
    half = 1.96 * np.sqrt(p * (1 - p) / n)
    np.testing.assert_allclose([low, high], [p - half, p + half], atol=0.01)
    assert (low, high) == evaluation.f1_interval(-2.0)
    assert evaluation.f1_interval(-2.0, part="mentions") == (1.0, 1.0)


@pytest.mark.parametrize("metric", ["weak", "strong"])
def test_bootstrap_interval_agrees_with_drawing_one_by_one(metric):
    """Questions with several mentions, so that F1 is a ratio of sums that vary together."""
    results = random_results(7, questions=300)
    table = np.array(
        [[*count_matches(*pair), len(pair[1]), len(pair[0])] for pair in map(pair_of, results)]
    )
    rng = np.random.default_rng(5)
    scores = []
    for _ in range(20_000):
        weak, strong, predicted, gold = table[rng.integers(0, 300, 300)].sum(axis=0)
        scores.append(2 * (weak if metric == "weak" else strong) / (predicted + gold))
    found = Evaluation(results).f1_interval(-5.0, metric)
    np.testing.assert_allclose(found, np.quantile(scores, [0.025, 0.975]), rtol=0, atol=0.002)
    narrow = Evaluation(results).f1_interval(-5.0, metric, confidence=0.5)
    np.testing.assert_allclose(narrow, np.quantile(scores, [0.25, 0.75]), rtol=0, atol=0.002)


def pair_of(result):
    """Gold and predicted triples."""
    gold = [("none" if g.row < 0 else g.row, g.start, g.end) for g in result.gold]
    return gold, [(p.row, p.start, p.end) for p in result.predicted]


def test_bootstrap_interval_of_few_questions():
    assert Evaluation([]).f1_interval(-2.0) == (0.0, 0.0)
    assert Evaluation(example()[:1]).f1_interval(-2.0) == (1.0, 1.0)
    low, high = Evaluation(example()).f1_interval(-2.0)
    assert 0 <= low < high <= 1


def test_report_is_json_and_prints():
    evaluation = Evaluation(example())
    made = evaluation.report(-1.0, resamples=50)
    assert json.loads(json.dumps(made)) == made
    assert made["all"]["questions"] == 5
    assert made["in_catalogue"]["questions"] == 4
    assert made["all"]["strong"]["correct"] == 1
    assert made["disambiguation"]["in_catalogue"]["recall"] == {"1": 0.5, "3": 1.0}
    assert made["errors"] == {"missed": 2, "spurious": 1, "wrong_entity": 2, "wrong_bounds": 1}
    assert "f1_interval" not in evaluation.report(-1.0, resamples=0)["all"]["weak"]
    stream = io.StringIO()
    show.print_report(Console(file=stream, width=80), made)
    text = stream.getvalue()
    assert "…" not in text  # nothing is cut at 80 columns
    for part in ("in catalogue", "all questions", "mentions only", "recall@3", "2 wrong entity"):
        assert part in text
    f1 = made["all"]["weak"]["f1"]
    assert f"{f1:.3f} ±" in text


def test_plot(tmp_path):
    evaluation = Evaluation(random_results(1))
    path = tmp_path / "curve.png"
    show.plot_precision_recall(path, evaluation.sweep, -1.3, "random")
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (900, 810)
    assert [p.name for p in tmp_path.iterdir()] == ["curve.png"]
    show.plot_precision_recall(path, Evaluation([]).sweep, 0.0)
