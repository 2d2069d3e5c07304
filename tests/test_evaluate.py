"""Measuring a linker: predictions against linking again, the program against slow counting."""

import collections
import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import OWN_FIXTURES, xla_flags
from tiny import arrays, tiny_linker_directory

from elq_jax.core import machine
from elq_jax.core.errors import ElqError
from elq_jax.evaluation import speed
from elq_jax.evaluation.evaluate import evaluate
from elq_jax.evaluation.matching import Counts, count_matches
from elq_jax.evaluation.options import Options
from elq_jax.evaluation.predict import predict
from elq_jax.linking.linker import EntityLinker
from elq_jax.questions.records import Mention, Question
from elq_jax.storage.files import make_results_folder, write_json
from elq_jax.storage.lines import read_jsonl

FLOOR = -7.0
TEXTS = [
    sample["text"] for sample in json.loads((OWN_FIXTURES / "pipeline.json").read_text())["samples"]
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny_linker_directory(tmp_path_factory.mktemp("evaluate"), threshold=-4.5)
    config = json.loads((folder / "config.json").read_text())
    config["model"]["max_question_tokens"] = 32  # as in the fixtures
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def linker(folder):
    return EntityLinker.from_pretrained(folder, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def questions(linker):
    """Gold of all kinds: found, with another entity, other bounds, not in the catalogue, none."""
    rng = np.random.default_rng(0)
    questions = []
    for number, text in enumerate(TEXTS):
        mentions = []
        for link in link_alone(linker, text, FLOOR):
            kind = rng.choice(["found", "entity", "bounds", "outside", "none"])
            mention = Mention(link.start, link.end, link.row, link.title)
            if kind == "entity":
                mention = dataclasses.replace(mention, row=(link.row + 1) % 500)
            elif kind == "bounds":
                mention = dataclasses.replace(mention, end=link.end - 1)
            elif kind == "outside":
                mention = dataclasses.replace(mention, row=-1)
            if kind != "none" and mention.start < mention.end:
                mentions.append(mention)
        questions.append(Question(str(number), text, tuple(mentions)))
    assert sum(len(question.mentions) for question in questions) > 10
    return questions


def write(path, questions):
    """The questions as a file of the plain form."""
    rows = (
        {
            "id": question.id,
            "text": question.text,
            "mentions": [[mention.start, mention.end] for mention in question.mentions],
            "label_id": [mention.row for mention in question.mentions],
        }
        for question in questions
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def link_alone(linker, text, threshold):
    """As linker(text, threshold), without its warning of a question that is cut."""
    return linker.decode(linker.score_batch([text], threshold), threshold)[0]


def slow_counts(linker, questions, threshold):
    """Every question linked by itself at this very threshold."""
    total = Counts()
    for question in questions:
        links = link_alone(linker, question.text, threshold)
        gold = [(m.row if m.row >= 0 else "outside", m.start, m.end) for m in question.mentions]
        predicted = [(link.row, link.start, link.end) for link in links]
        total += Counts(*count_matches(gold, predicted), len(predicted), len(gold))
    return total


def slow_best(linker, questions, metric):
    """The highest F1 over the thresholds just below every score."""
    scores = {
        link.score for question in questions for link in link_alone(linker, question.text, FLOOR)
    }
    counts = (slow_counts(linker, questions, score - 1e-6) for score in sorted(scores)[-25:])
    return max(getattr(one, f"{metric}_f1") for one in counts)


def test_predicting_once_equals_linking_at_each_threshold(linker, questions):
    evaluation = predict(linker, questions, FLOOR, batch_size=4)
    assert [result.text for result in evaluation.results] == TEXTS
    for threshold in (FLOOR, -4.5, -3.2, -2.0):
        assert evaluation.counts(threshold) == slow_counts(linker, questions, threshold)


def test_candidates_at_gold_spans_equal_the_original(linker):
    """The original's candidates (setting 1 of the pipeline) of spans without [CLS] or [SEP]."""
    expected = arrays("pipeline")
    linker = linker.with_settings(decoder="elq_jax.original.decoding:original")  # It cuts texts.
    questions, wanted = [], []
    for number, encoded in enumerate(linker.encode(TEXTS)):
        bounds, rows = (expected[f"1|{number}|{name}"] for name in ("bounds", "nns"))
        inside = (bounds[:, 0] > 0) & (bounds[:, 1] < len(encoded.ids) - 1)
        spans = [(encoded.offsets[i, 0], encoded.offsets[j, 1]) for i, j in bounds[inside]]
        mentions = tuple(Mention(int(start), int(end), 0) for start, end in spans)
        questions.append(Question(str(number), TEXTS[number], mentions))
        wanted.append(rows[inside])
    assert sum(map(len, wanted)) > 20
    evaluation = predict(linker, questions, FLOOR, at_gold_spans=True)
    for result, rows in zip(evaluation.results, wanted, strict=True):
        assert [*map(list, result.gold_candidates)] == rows.tolist()
    hits = evaluation.disambiguation().hits
    assert hits[0] == sum((rows[:, 0] == 0).sum() for rows in wanted)


def test_gold_that_no_tokens_express(linker):
    """It has no candidates, is named, and shifts the candidates of no other mention."""
    text = "where was obama born"
    mentions = (Mention(0, 5, 1), Mention(6, 8, 2), Mention(10, 15, 3))
    evaluation = predict(linker, [Question("q", text, mentions)], FLOOR, at_gold_spans=True)
    [result] = evaluation.results
    assert [(one.kind, one.mention) for one in evaluation.problems] == [("misaligned", 1)]
    [alone] = predict(
        linker, [Question("q", text, mentions[2:])], FLOOR, at_gold_spans=True
    ).results
    assert [len(rows) for rows in result.gold_candidates] == [10, 0, 10]
    assert list(result.gold_candidates[2]) == list(alone.gold_candidates[0])


def test_gold_that_is_too_wide_to_be_found(linker):
    """It is named, and still has candidates."""
    text = "who is " + "obama " * linker.config.max_mention_width + "x"
    mentions = (Mention(0, 3, 1), Mention(7, len(text), 2))
    evaluation = predict(linker, [Question("q", text, mentions)], FLOOR, at_gold_spans=True)
    [result] = evaluation.results
    assert [(one.kind, one.mention) for one in evaluation.problems] == [("too_wide", 1)]
    assert [len(rows) for rows in result.gold_candidates] == [10, 10]


def test_speed(linker):
    found = speed.measure_speed(linker, TEXTS, batch_size=4)
    assert found["questions"] == len(TEXTS)
    assert found["questions_per_second"] * found["seconds"] == pytest.approx(len(TEXTS))
    described = machine.describe_machine()
    assert described["num_devices"] == 8
    assert described["cores"] >= 1
    assert described["cpu"]
    assert machine.peak_memory() > 50e6


def run(*arguments):
    environment = os.environ | {"XLA_FLAGS": xla_flags(1), "ELQ_JAX_CACHE": ""}
    return subprocess.run(
        [sys.executable, "-m", "elq_jax.evaluate", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_program(folder, linker, questions, tmp_path):
    """The threshold comes from one set; two others are a row each, and compared with themselves."""
    tune, one, two = questions[:4], questions[4:9], questions[9:]
    output = tmp_path / "results"
    done = run(
        f"--linker={folder}",
        f"--tune={write(tmp_path / 'tune.jsonl', tune)}",
        f"--questions={write(tmp_path / 'one.jsonl', one)},{write(tmp_path / 'two.jsonl', two)}",
        f"--output={output}",
        f"--floor={FLOOR}",
        "--metric=strong",
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((output / "report.json").read_text())
    threshold = report["threshold"]
    assert report["threshold_from"] == "--tune"
    assert report["tune"]["metric"] == "strong"
    best = slow_best(linker, tune, "strong")
    assert slow_counts(linker, tune, threshold).strong_f1 == pytest.approx(best)
    assert report["tune"]["f1"] == pytest.approx(best)

    known = [q for q in one + two if all(mention.row >= 0 for mention in q.mentions)]
    for name, part in (("all", one + two), ("in_catalogue", known)):
        counts = slow_counts(linker, part, threshold)
        assert report[name]["questions"] == len(part)
        assert (report[name]["gold"], report[name]["predicted"]) == (counts.gold, counts.predicted)
        for metric in ("weak", "strong"):
            interval = report[name][metric].pop("f1_interval")
            assert report[name][metric] == pytest.approx(counts.scores(metric))
            assert interval[0] <= report[name][metric]["f1"] <= interval[1]
    assert [file["questions"] for file in report["questions"]] == [len(one), len(two)]
    assert report["speed"]["questions"] == len(one + two)
    assert report["machine"]["num_devices"] == 1
    assert report["peak_memory_bytes"] > 50e6

    errors = [error["error"] for _, error in read_jsonl(output / "errors.jsonl")]
    assert {kind: errors.count(kind) for kind in report["errors"]} == report["errors"]
    assert (output / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in output.iterdir()) == [
        "calibration.png",
        "curve.png",
        "errors.jsonl",
        "predictions.jsonl",
        "report.json",
    ]
    for shown in ("pooled", f"{report['mean']['all']['weak']['f1']:.3f}", "questions/s", "R@10"):
        assert shown in done.stdout
    assert "questions/s from text to links (second" in done.stdout
    assert f"best strong F1 on --tune: {best:.3f}, at threshold {threshold:.3f}" in done.stderr
    assert f"{tmp_path / 'one.jsonl'}: {len(one)} questions" in done.stderr

    for part, questions_of_set in zip(report["sets"], (one, two), strict=True):
        counts = slow_counts(linker, questions_of_set, threshold)
        assert part["all"]["weak"]["f1"] == pytest.approx(counts.weak_f1)

    # Pooled, against the predictions of the first run, and perturbed.
    done = run(
        f"--linker={folder}",
        f"--questions={tmp_path / 'one.jsonl'}+{tmp_path / 'two.jsonl'}",
        f"--threshold={threshold + 1}",
        f"--against={output}",
        "--perturb",
        "--nospeed",
        f"--output={tmp_path / 'other'}",
    )
    assert done.returncode == 0, done.stderr
    other = json.loads((tmp_path / "other" / "report.json").read_text())
    [part] = other["sets"]
    assert part["name"] == "one+two"
    found = other["against"]["sets"]["one+two"]["strong"]
    assert found["other_f1"] == pytest.approx(report["all"]["strong"]["f1"])
    wanted = slow_counts(linker, one + two, threshold + 1).strong_f1
    assert found["f1"] == pytest.approx(wanted)
    upper = other["perturb"]["perturbations"]["upper_case"]["sets"]["one+two"]
    assert upper["changed"] == len(one + two)
    assert upper["weak"]["cost"] == pytest.approx(0.0)  # The tokenizer ignores case.
    for shown in ("in catalogue", "recall@10", "no question mark", "95% interval"):
        assert shown in done.stdout


def test_program_lists_gold_that_cannot_be_found(folder, tmp_path):
    """An entity or a span out of reach is said, and counts as a miss."""
    rows = [
        {"text": "where is ohio", "mentions": [[9, 13]], "entity": ["No Such Title"]},
        {"text": "where is ohio", "mentions": [[9, 13]], "label_id": [500]},
        {"text": "who is obamaville", "mentions": [[8, 10]], "label_id": [3]},
        {"text": "who " * 40 + "is obama", "mentions": [[163, 168]], "label_id": [3]},
        {"text": "who is it", "mentions": [[7, 4]], "label_id": [3]},
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = (f"--linker={folder}", f"--questions={path}", "--nospeed", f"--output={tmp_path}")
    done = run(*flags, "--on-error=skip")
    assert done.returncode == 0, done.stderr
    for line in (
        f"{path}: 4 questions, 4 mentions (row 2, row_refused 1, unresolved 2)",
        "line 1, question 1, mention 'ohio': title 'No Such Title'",
        "line 2, question 2, mention 'ohio': row 500: not in the catalogue",
        f"{path}:5: mentions[0] = [7, 4) is reversed",
        "question 3, mention 0 [8, 10) 'ba': it begins or ends inside a token",
    ):
        assert line in done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["all"]["questions"], report["all"]["gold"]) == (4, 4)
    assert (report["in_catalogue"]["questions"], report["in_catalogue"]["gold"]) == (2, 2)
    assert report["problems"] == {"misaligned": 1}


def no_constant(name):
    raise AssertionError(f"{name} is not JSON")


def test_options_that_count_nothing():
    for options, message in (
        ({"threshold": float("inf")}, "--threshold: inf; no score exceeds it"),
        ({"floor": float("nan")}, "--floor: nan; no score exceeds it"),
        ({"tune": ["dev.jsonl"], "threshold": -3.0}, "--tune, --threshold: both decide"),
    ):
        with pytest.raises(ElqError, match=message):
            Options(**options)
    assert Options(threshold=-float("inf"), floor=-float("inf")).floor == -float("inf")


@pytest.mark.parametrize(
    ("flags", "written"),
    [
        (["--tune={other}", "--floor=-inf"], {"floor": "-inf", "threshold_from": "--tune"}),
        (
            ["--threshold=-inf", "--index=exact"],
            {"threshold": "-inf", "floor": "-inf", "threshold_from": "--threshold"},
        ),
    ],
)
def test_program_at_infinite_thresholds_and_tuned_on_its_questions(
    folder, questions, tmp_path, flags, written
):
    path, other = write(tmp_path / "questions.jsonl", questions[:3]), tmp_path / "other.jsonl"
    other.symlink_to(path)
    flags = [flag.format(other=other) for flag in flags]
    done = run(
        f"--linker={folder}", f"--questions={path}", "--nospeed", f"--output={tmp_path}", *flags
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text(), parse_constant=no_constant)
    assert {name: report[name] for name in written} == written
    asked = "exact" if "--index=exact" in flags else "auto"
    used = "exact" if jax.default_backend() == "cpu" else "sharded"
    assert (report["index_asked"], report["index"]) == (asked, used)
    warning = f"warning: {other} is in --tune and in --questions; its scores are too good"
    assert (warning in done.stderr) == ("tune" in report)


def test_json_of_any_numbers(tmp_path):
    values = {"a": [1.5, float("-inf"), {"é": float("nan")}], "b": float("inf")}
    write_json(tmp_path / "values.json", values)
    text = (tmp_path / "values.json").read_text()
    found = json.loads(text, parse_constant=no_constant)
    assert found == {"a": [1.5, "-inf", {"é": "nan"}], "b": "inf"}
    assert "é" in text


def test_program_counting_as_the_original(folder, tmp_path):
    [expected] = [
        run["counts"]
        for run in json.loads((OWN_FIXTURES / "labelled_results.json").read_text())
        if run["settings"] == {"num_cand_mentions": 50, "threshold": -4.5}
    ]
    done = run(
        f"--linker={folder}",
        f"--questions={OWN_FIXTURES / 'labelled.jsonl'}",
        "--original=labelled",
        "--preset=interactive",
        f"--output={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    window = report["window"]
    assert window["weak"]["correct"] == expected["correct_weak_window"]
    assert window["strong"]["correct"] == expected["correct_strong_window"]
    assert (window["predicted"], window["gold"]) == (expected["predicted"], expected["gold_window"])
    assert report["text"]["weak"]["correct"] == expected["correct_weak"]
    assert f"{window['weak']['f1']:.4f}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--questions=a.jsonl", "b.jsonl"], "b.jsonl: unexpected argument; expected only flags"),
        (["--questions=a.jsonl", "--tune=b.jsonl", "--threshold=-1"], "give one"),
        (["--questions=no/such.jsonl"], "no/such.jsonl: no such file"),
        (["--questions=a.jsonl+no/such.jsonl"], "a.jsonl: no such file"),
        (["--questions=a.jsonl", "--original=training", "--perturb"], "combined with --original"),
        (["--questions=a.jsonl", "--linker=no/linker"], "linker 'no/linker': n"),
        (
            ["--questions=a.jsonl", f"--output={__file__}"],
            "is not a folder; give the name of a folder",
        ),
        (["--questions=a.jsonl", "--max-mentions=0"], "--max_mentions=0: 0 is not a positive"),
        (["--questions=a.jsonl", "--treshold=-1"], "Did you mean: threshold"),
        (["--questions=a.jsonl", "--original=training", "--threshold=-1"], "is always -2.5"),
        ([], "flag --questions=None"),
    ],
)
def test_program_with_wrong_arguments(folder, arguments, message):
    done = run(f"--linker={folder}", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.removesuffix("--help shows all flags\n").count("\n") == 1
    assert not done.stdout


@pytest.mark.parametrize("name", ["report.json", "errors.jsonl", "curve.png"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "link to a folder"])
def test_results_that_could_not_be_written(tmp_path, name, kind):
    """Known before the work; a pipe that nobody reads was waited for."""
    names = ("report.json", "errors.jsonl", "curve.png")
    folder, path = tmp_path / "results", tmp_path / "results" / name
    make_results_folder(folder, names)
    for other in names:
        (folder / other).write_text("of an earlier run")
    make_results_folder(folder, names)
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("..")
    with pytest.raises(ElqError, match=rf"{name}: (is a folder|a pipe)"):
        make_results_folder(folder, names)


def test_text_is_tokenised_and_encoded_once(linker, questions, monkeypatch):
    """Links and the candidates at the gold spans come from one pass over each text."""
    calls = collections.Counter()
    tokenise, score = linker.tokenizer.encode_questions, linker.scorer._score

    def counting_tokenise(texts, *arguments, **options):
        calls["texts"] += len(texts)
        return tokenise(texts, *arguments, **options)

    def counting_score(*arguments):
        calls["rows"] += arguments[1].shape[0] * arguments[1].shape[1]
        return score(*arguments)

    monkeypatch.setattr(linker.tokenizer, "encode_questions", counting_tokenise)
    monkeypatch.setattr(linker.scorer, "_score", counting_score)
    predict(linker, questions, FLOOR, batch_size=4)
    once = dict(calls)
    assert once["texts"] == len(questions)
    calls.clear()
    predict(linker, questions, FLOOR, batch_size=4, at_gold_spans=True)
    assert calls == once


def test_library_gives_what_the_program_reports(linker, questions, tmp_path):
    path = write(tmp_path / "questions.jsonl", questions)
    outcome = evaluate(linker, [path], Options(threshold=-3.0, floor=FLOOR, speed=False))
    counts = slow_counts(linker, questions, -3.0)
    assert outcome.report["all"]["weak"]["correct"] == counts.weak
    assert outcome.evaluation.counts(FLOOR) == slow_counts(linker, questions, FLOOR)
    outcome.write(tmp_path / "results")
    written = json.loads((tmp_path / "results" / "report.json").read_text())
    assert written == json.loads(json.dumps(outcome.report))
    assert "speed" not in written


def test_links_at_neutral_spans_and_outside_of_the_evaluation_span_do_not_count(linker, tmp_path):
    """Of a file of ELEVANT, compared with the links that remain when the others are taken out."""
    text = max(TEXTS, key=len)
    links = link_alone(linker, text, FLOOR)
    assert len(links) > 2
    gold, neutral = links[0], links[1]
    labels = [
        {"id": 0, "span": [gold.start, gold.end], "entity_id": "<NIL>"},
        {"id": 1, "span": [neutral.start, neutral.end], "entity_id": "DATETIME"},
    ]
    end = links[-1].start
    row = {"id": 5, "text": text, "labels": labels, "evaluation_span": [0, end]}
    (tmp_path / "benchmark.jsonl").write_text(json.dumps(row))
    options = Options(threshold=FLOOR, floor=FLOOR, speed=False)
    outcome = evaluate(linker, [tmp_path / "benchmark.jsonl"], options)
    assert outcome.report["all"]["predicted"] == len(links) - 2
    assert outcome.report["questions"][0]["left_out"] == {"optional": 1}
    [result] = outcome.evaluation.results
    assert len(result.predicted) == len(links)  # They are still written to predictions.jsonl.
