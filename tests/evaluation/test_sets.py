"""Sets of questions, their mean, predictions on disk and the comparison of two runs."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from elq_jax.core.errors import ElqError
from elq_jax.evaluation import show
from elq_jax.evaluation.bootstrap import f1_intervals
from elq_jax.evaluation.comparison import compare_runs, pool, report_of_sets
from elq_jax.evaluation.matching import Gold, Predicted, QuestionResult, count_by_question
from elq_jax.evaluation.predictions import read_predictions, write_predictions
from elq_jax.evaluation.scores import Evaluation
from elq_jax.evaluation.sets import read_sets, set_names
from elq_jax.questions.read import read_questions

TEXT = "who wrote dune and emma in paris?"
DUNE, EMMA, PARIS = (10, 14), (19, 23), (27, 32)


class Names:
    """Stands in for a catalogue of ten entities: row 3 is "title 3" and Q3."""

    def __len__(self):
        return 10

    def titles(self, rows):
        return [f"title {row}" for row in rows]

    def wikidata_ids(self, rows):
        return [f"Q{row}" for row in rows]

    ids = wikidata_ids

    def are_living(self, rows):
        return np.ones(len(rows), bool)

    def find_titles(self, titles, normalised=False):
        rows = [int(t.split()[-1]) if t.startswith("title ") else 99 for t in titles]
        rows = np.array([row if row < 10 else -1 for row in rows])
        return type("Matches", (), {"rows": rows, "counts": (rows >= 0).astype(int)})

    def find_wikidata_ids(self, ids, normalised=False):
        return self.find_titles([f"title {id_.removeprefix('Q')}" for id_ in ids])

    find_ids = find_wikidata_ids


def example(shift=0):
    """Questions with links that are right, wrong, misplaced, missing, and NIL."""
    return [
        QuestionResult("1", TEXT, (Gold(*DUNE, 1),), (Predicted(*DUNE, 1 + shift, -0.1),), ([1],)),
        QuestionResult("2", TEXT, (Gold(*EMMA, 4),), (Predicted(15, 23, 4, -0.3),), ([4],)),
        QuestionResult("3", TEXT, (Gold(*PARIS, 5),), (Predicted(0, 3, 9, -0.4),), ([8],)),
        QuestionResult(
            "4",
            TEXT + " ü",
            (Gold(*PARIS, -1), Gold(*DUNE, 1)),
            (Predicted(*DUNE, 1, -9.0), Predicted(*PARIS, -1, -0.5, probability=0.5)),
            ([5], [1]),
        ),
        QuestionResult("5", TEXT, (Gold(*DUNE, 2),), (), ([2],)),
    ]


def test_names():
    assert set_names(["data/a/dev.jsonl", ("data/b/dev.jsonl", "data/b/oov.jsonl.gz")]) == [
        "a/dev",
        "b/dev+b/oov",
    ]
    assert set_names(["x/test.jsonl"]) == ["test"]
    assert set_names([]) == []
    assert set_names(["/q/dev.jsonl", "/q/dev.jsonl.gz"]) == ["dev.jsonl", "dev.jsonl.gz"]
    assert set_names(["dev", "../dev"])[1] == "dev"
    with pytest.raises(ElqError, match=r"dev.jsonl is given twice; expected different sets"):
        set_names(["dev.jsonl", "./dev.jsonl"])
    with pytest.raises(ElqError, match="a set without files"):
        set_names([()])


def test_sets_are_read_and_pooled(tmp_path, capsys):
    for number, name in enumerate(("a", "b", "c"), 1):
        row = {"id": name, "text": TEXT, "mentions": [DUNE], "title": ["title 3"]}
        (tmp_path / f"{name}.jsonl").write_text((json.dumps(row) + "\n") * number)
    paths = [tmp_path / "a.jsonl", (tmp_path / "b.jsonl", str(tmp_path / "c.jsonl"))]
    one, two = read_sets(Names(), paths)
    assert (one.name, two.name) == ("a", "b+c")
    assert [question.id for question in two.questions] == ["b", "b", "c", "c", "c"]
    assert [file["questions"] for file in two.files] == [2, 3]
    assert one.questions[0].mentions[0].row == 3
    assert "a.jsonl: 1 questions, 1 mentions" in capsys.readouterr().err


def test_report_of_sets_has_each_the_mean_and_all_together():
    sets = {"a": Evaluation(example(), -10.0), "b": Evaluation(example(1)[:3], -8.0)}
    report = report_of_sets(sets, -1.0, resamples=200)
    assert json.loads(json.dumps(report)) == report
    assert [part["name"] for part in report["sets"]] == ["a", "b"]
    alone = [part.report(-1.0, resamples=200) for part in sets.values()]
    assert [{k: v for k, v in part.items() if k != "name"} for part in report["sets"]] == alone
    pooled = pool([*sets.values()])
    assert pooled.decoded_at == -8.0
    assert report["all"] == pooled.report(-1.0, resamples=200)["all"]
    mean = report["mean"]
    for metric in ("weak", "strong"):
        for key in ("precision", "recall", "f1"):
            values = [part["all"][metric][key] for part in alone]
            assert mean["all"][metric][key] == pytest.approx(np.mean(values))
    tables = [part.table(-1.0) for part in sets.values()]
    interval = f1_intervals(tables, resamples=200)["weak"]
    assert mean["all"]["weak"]["f1_interval"] == list(interval)
    assert mean["disambiguation"]["all"]["recall"] == {"1": pytest.approx((4 / 6 + 2 / 3) / 2)}
    assert mean["calibration"]["weak"]["ece"]["fixed"] == pytest.approx(
        np.mean([part["calibration"]["weak"]["ece"]["fixed"] for part in alone])
    )
    assert "questions" not in mean["all"]

    single = report_of_sets({"a": sets["a"]}, -1.0, resamples=0)
    assert single["all"] == single["sets"][0]["all"]


def test_tables_fit_a_terminal_of_80_columns():
    sets = {
        "simplequestions/dev": Evaluation(example() * 30, -10.0),
        "a/very/long/name/of/a/set+another": Evaluation(example(1) * 30, -8.0),
    }
    report = report_of_sets(sets, -1.0, resamples=50)
    others = [result.predicted for part in sets.values() for result in part.results]
    report["against"] = {"path": "runs/other"} | compare_runs(sets, -1.0, others, resamples=50)
    stream = io.StringIO()
    show.print_report(Console(file=stream, width=80), report)
    text = stream.getvalue()
    assert "…" not in text
    for part in ("simplequestions/dev ", "mean", "pooled", "NIL", "ECE", "95% interval"):
        assert part in text
    assert f"{report['mean']['all']['weak']['f1']:.3f} ±" in text
    assert f"{report['sets'][0]['calibration']['weak']['accuracy_at']['0.5']:.3f}" in text


def test_predictions_are_in_the_one_form_and_come_back(tmp_path):
    results = example()
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, results, -1.0, Names())
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["id"] for line in lines] == ["1", "2", "3", "4", "5"]
    assert lines[0]["links"] == [
        {
            **{"start": 10, "end": 14, "mention": "dune", "title": "title 1"},
            **{"wikidata_id": "Q1", "row": 1, "id": "Q1", "score": -0.1},
        }
    ]
    [nil] = lines[3]["links"]  # The other link has a lower score.
    assert nil == {
        **{"start": 27, "end": 32, "mention": "paris", "title": None, "wikidata_id": None},
        **{"row": None, "id": None, "score": -0.5, "probability": 0.5},
    }
    questions, report = read_questions(path, Names())
    assert report.counts["row"] == 3
    assert report.counts["out_of_catalogue"] == 1
    assert questions[3].mentions[0].row == -1
    for where in (path, tmp_path):
        predicted = read_predictions(where, Names(), results)
        wanted = [[p for p in result.predicted if p.score > -1.0] for result in results]
        assert [[(p.start, p.end, p.row) for p in links] for links in predicted] == [
            [(p.start, p.end, p.row) for p in links] for links in wanted
        ]


def test_entities_that_this_catalogue_lacks_are_wrong_and_not_nil(tmp_path):
    link = {"start": 10, "end": 14, "title": "of another catalogue", "row": 77}
    path = tmp_path / "links.jsonl"
    path.write_text(json.dumps({"id": "1", "text": TEXT, "links": [link]}) + "\n")
    [[found]] = read_predictions(path, Names(), example()[:1])
    assert found.row == 10
    result = QuestionResult("1", TEXT, (Gold(*DUNE, -1),), (found,))
    assert count_by_question([result], -1.0).tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda results: results[:4], "found 5 questions, expected the same 4"),
        (lambda results: [results[1], *results[1:]], r"question 1 is 1 .* expected 2 "),
        (lambda results: results[::-1], "in the same order"),
    ],
)
def test_other_questions_are_refused(tmp_path, change, message):
    write_predictions(tmp_path / "predictions.jsonl", example(), -1.0)
    with pytest.raises(ElqError, match=message):
        read_predictions(tmp_path, Names(), change(example()))


def test_a_folder_without_predictions_is_named(tmp_path):
    with pytest.raises(ElqError, match=r"predictions.jsonl: no such file; .* Evaluate that run"):
        read_predictions(tmp_path, Names(), example())


def test_runs_are_compared_set_by_set():
    """The other run is right on the first question, where this one is not; else they are equal."""
    sets = {"a": Evaluation(example(1) * 20, -10.0), "b": Evaluation(example()[:3], -12.0)}
    others = [result.predicted for result in example() * 20 + example()[:3]]
    report = compare_runs(sets, -10.0, others, resamples=500)
    assert json.loads(json.dumps(report)) == report
    weak = report["sets"]["a"]["weak"]
    assert weak["f1"] == pytest.approx(Evaluation(example(1)).counts(-10.0).weak_f1)
    assert weak["other_f1"] == pytest.approx(Evaluation(example()).counts(-10.0).weak_f1)
    assert weak["difference"] == pytest.approx(weak["f1"] - weak["other_f1"])
    assert weak["interval"][0] < weak["difference"] < weak["interval"][1] < 0
    assert weak["p_value"] < 0.01
    assert report["sets"]["b"]["strong"]["p_value"] == 1.0
    assert report["mean"]["weak"]["difference"] == pytest.approx(weak["difference"] / 2)
