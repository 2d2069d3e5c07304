"""Files of a published model, through `convert`, against all that the original printed.

Nothing but the files is given: a checkpoint rebuilt from the fixtures' state dict, its parameter
file, entity.jsonl and the two matrices. What `convert` makes of them is opened with
`EntityLinker.from_pretrained`, and measured with `python -m elq_jax.evaluate` and its library.
"""

import json
import os
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest
from conftest import FIXTURES
from reference import arrays

from elq_jax.core.errors import ElqError
from elq_jax.linking.linker import EntityLinker
from elq_jax.original import decoding
from elq_jax.original import evaluation as original
from elq_jax.original.conversion import Conversion
from elq_jax.original.convert import convert
from elq_jax.original.torch_files import write_torch_file
from elq_jax.questions.read import read_questions
from elq_jax.storage.lines import read_jsonl

COMPILED_AS_FOR_USERS = True

SCORES = dict(rtol=0, atol=1e-4)  # as the fixtures' README states it
FLAGS = {
    "threshold": "threshold",
    "num_cand_mentions": "max_mentions",
    "num_cand_entities": "candidates",
}
PROGRAM = {"XLA_FLAGS": "", "ELQ_JAX_CACHE": ""}
NAMES = {"num_cand_mentions": "max_mentions", "num_cand_entities": "num_candidates"}


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """The linker directory of the fixtures' model."""
    folder = tmp_path_factory.mktemp("parity")
    model = json.loads((FIXTURES / "params.json").read_text())
    write_torch_file(folder / "elq.bin", arrays("state_dict"))
    (folder / "params.txt").write_text(str(model["params"]))
    (folder / "bert.json").write_text(json.dumps(model["config"]))
    write_torch_file(folder / "all.t7", arrays("kb")["entity_encodings"])
    ids = arrays("kb")["entity_token_ids"]
    write_torch_file(folder / "ids.t7", np.pad(ids, [(0, 0), (0, 128 - ids.shape[1])]))

    return convert(
        Conversion(
            checkpoint=folder / "elq.bin",
            params=folder / "params.txt",
            tokenizer="minilm",
            bert_config=folder / "bert.json",
            catalogue=FIXTURES / "entity.jsonl",
            embeddings=folder / "all.t7",
            token_ids=folder / "ids.t7",
            preset="library",
            output=folder / "linker",
        )
    )


@pytest.fixture(scope="module")
def make_linker(release):
    """Linkers from that directory, which share compiled functions."""
    linker = EntityLinker.from_pretrained(release, devices=jax.devices()[:1])
    linker.scorer.least_mentions = 50  # One number of spans for all settings: few programs.

    def make(**settings):
        settings = {NAMES.get(name, name): value for name, value in settings.items()}
        return linker.with_settings(**settings)

    return make


def settings_of(run):
    """The original's settings as ours, and its batch size."""
    settings = dict(run["settings"])
    if "threshold" in settings:
        settings["threshold"] = float(settings["threshold"])  # one is "-inf"
    if "max_context_length" in settings:
        settings["max_question_tokens"] = settings.pop("max_context_length")
    return settings, settings.pop("eval_batch_size", 8)


PIPELINE = json.loads((FIXTURES / "pipeline.json").read_text())
LABELLED = json.loads((FIXTURES / "labelled_results.json").read_text())
WINDOWS = json.loads((FIXTURES / "windows.json").read_text())


def test_tokens(make_linker):
    """Questions, entities and words put together again, by the tokenizer in the directory."""
    expected = json.loads((FIXTURES / "tokenization.json").read_text())
    linker = make_linker()
    encoded = linker.encode([question["text"] for question in expected["questions"]])
    for question, found in zip(expected["questions"], encoded, strict=True):
        assert found.ids.tolist() == question["model_input_32"]
        tokens = linker.tokenizer.tokens(question["encode"])
        assert decoding.printed_text(tokens) == question["decode_hf"]
    for entity in expected["entities"]:
        title, text, size = (entity[name] for name in ("title", "text", "max_len"))
        [ids] = linker.tokenizer.encode_entities([title], [text], size)
        assert [*ids.tolist(), *[0] * (size - len(ids))] == entity["ids"]


@pytest.mark.parametrize("number", range(len(PIPELINE["runs"])))
def test_linking(number, make_linker):
    """All settings of the pipeline: entities, positions, scores and printed names."""
    run = PIPELINE["runs"][number]
    settings, batch_size = settings_of(run)
    linker = make_linker(**settings)
    texts = [sample["text"] for sample in PIPELINE["samples"]]
    scored = linker.score_batch(texts, batch_size=batch_size)
    decoded = linker.settings.decoding.decode(scored, linker.settings.threshold)
    for number, expected in enumerate(run["results"]):
        tokens = [int(token) for token in scored.encoded[number].ids[1:-1] if token != 0]
        assert tokens == expected["tokens"]
        triples = decoding.triples(decoded, number)
        assert triples == [tuple(triple) for triple in expected["pred_triples"]]
        np.testing.assert_allclose(decoded.scores[decoded.of(number)], expected["scores"], **SCORES)
        words = linker.tokenizer.tokens(tokens)
        names = [
            [linker.catalogue[int(row)].title, decoding.printed_text(words[start:end])]
            for row, start, end in triples
        ]
        assert names == expected["pred_tuples_string"]


RECORDS = [record for _, record in read_jsonl(FIXTURES / "entity.jsonl")]


@pytest.mark.parametrize("number", range(len(PIPELINE["runs"])))
def test_links(number, make_linker):
    """The same as people see them: rows, scores, titles, ids and characters of the question."""
    run = PIPELINE["runs"][number]
    settings, batch_size = settings_of(run)
    linker = make_linker(**settings)
    texts = [sample["text"] for sample in PIPELINE["samples"]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one is cut
        found = linker(texts, batch_size=batch_size)
    encoded = linker.encode(texts)
    for text, links, question, expected in zip(texts, found, encoded, run["results"], strict=True):
        offsets = [(int(start), int(end)) for start, end in question.offsets]
        wanted = []
        for (row, first, end), score in zip(
            expected["pred_triples"], expected["scores"], strict=True
        ):
            inside = [span for span in offsets[first + 1 : end + 1] if span[0] < span[1]]
            characters = (inside[0][0], inside[-1][1]) if inside else (0, 0)
            wanted.append((int(row), *characters, score))
        by_score = sorted(links, key=lambda link: -link.score)
        assert [(x.row, x.start, x.end) for x in by_score] == [x[:3] for x in wanted]
        scores = [link.score for link in by_score]
        np.testing.assert_allclose(scores, [score for *_, score in wanted], **SCORES)
        assert [link.start for link in links] == sorted(link.start for link in links)
        for link in links:
            assert link.mention == text[link.start : link.end]
            record = RECORDS[link.row]
            assert (link.title, link.wikidata_id) == (record["title"], record.get("kb_idx"))
            assert link.candidates[0].row == link.row
            if linker.settings.decoding.log_probabilities:
                assert link.candidates[0].score == link.score


@pytest.mark.parametrize("run", LABELLED, ids=lambda run: str(run["settings"]))
def test_labelled_evaluation(run, make_linker):
    """Windows of 32 and of 20 tokens, the links in them, and all seven counts."""
    settings, batch_size = settings_of(run)
    linker = make_linker(**settings)
    questions, _ = read_questions(
        FIXTURES / "labelled.jsonl", linker.catalogue, trust_rows=True, allow_overlaps=True
    )
    linked = original.link_windows(linker, questions, batch_size=batch_size)
    size = linker.max_question_tokens
    [windows] = [windows for windows in WINDOWS if windows["max_context_length"] == size]
    for number, (one, mask) in enumerate(zip(linked, windows["mention_mask"], strict=True)):
        ids, gold = one.window.ids.tolist(), [(row, s, e - 1) for row, s, e in one.gold]
        assert [*ids, *[0] * (size - len(ids))] == windows["context"][number]
        labels, bounds = windows["label_idx"][number], windows["mention_idxs"][number]
        expected = zip(labels, *zip(*bounds, strict=True), strict=True)
        assert gold == [mention for mention, real in zip(expected, mask, strict=True) if real]
    for one, expected in zip(linked, run["results"], strict=True):
        assert one.window.ids[1:-1].tolist() == expected["tokens"]
        for found, name in ((one.text_predicted, "pred_triples"), (one.text_gold, "gold_triples")):
            assert [(str(row), *span) for row, *span in found] == [*map(tuple, expected[name])]
            titles = [linker.catalogue[row].title for row, *_ in found]
            names = expected[name.replace("triples", "tuples_string")]
            assert titles == [title for title, _ in names]
        np.testing.assert_allclose(one.scores, expected["scores"], **SCORES)
    counts = original.count_windows(linked)
    assert counts.window.predicted == counts.text.predicted
    assert run["counts"] == {
        "correct_weak": counts.text.weak,
        "correct_strong": counts.text.strong,
        "predicted": counts.text.predicted,
        "gold": counts.text.gold,
        "correct_weak_window": counts.window.weak,
        "correct_strong_window": counts.window.strong,
        "gold_window": counts.window.gold,
    }


def test_evaluate_program(make_linker, tmp_path):
    """`python -m elq_jax.evaluate` reports the precision, recall and F1 the original prints."""
    environment = os.environ | PROGRAM
    started = []
    for number, run in enumerate(LABELLED):
        settings, _ = settings_of(run)
        given = {
            f"--{flag}={settings.pop(name)}"
            for name, flag in FLAGS.items()
            if settings.get(name) is not None
        }
        folder = tmp_path / f"linker_{number}"
        make_linker(**settings).save_pretrained(folder)
        command = [
            *(sys.executable, "-m", "elq_jax.evaluate", "--original=labelled"),
            f"--linker={folder}",
            f"--questions={FIXTURES / 'labelled.jsonl'}",
            f"--output={tmp_path / str(number)}",
            *given,
        ]
        started.append(subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True))
    for number, (run, process) in enumerate(zip(LABELLED, started, strict=True)):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        report = json.loads((tmp_path / str(number) / "report.json").read_text())
        blocks = [
            report[part][metric] for metric in ("weak", "strong") for part in ("text", "window")
        ]
        printed = [f"{name} = " for name in ("precision", "recall", "f1")]
        lines = [line for line in run["stdout"].splitlines() if line.startswith(tuple(printed))]
        expected = [float(line.rpartition("= ")[2]) for line in lines]
        found = [block[name] for block in blocks for name in ("precision", "recall", "f1")]
        assert found == pytest.approx(expected, rel=1e-15)


def test_evaluation_during_training(release, tmp_path):
    """Precision, recall and F1 of the frozen branch, to all printed digits."""
    expected = json.loads((FIXTURES / "eval_frozen.json").read_text())
    command = [
        *(sys.executable, "-m", "elq_jax.evaluate", "--original=training"),
        f"--linker={release}",
        f"--questions={FIXTURES / 'eval_frozen.jsonl'}",
        f"--output={tmp_path}",
    ]
    environment = os.environ | PROGRAM
    subprocess.run(command, env=environment, check=True, timeout=300)
    found = json.loads((tmp_path / "report.json").read_text())["training"]["weak"]
    names = {"Precision": "precision", "Recall": "recall", "F1": "f1"}
    assert [f"{shown}: {found[name]:.5f}" for shown, name in names.items()] == expected["log"]
    assert found["f1"] == pytest.approx(expected["result"]["normalized_f1"], rel=1e-15)


def test_plain_questions_are_refused(make_linker, tmp_path):
    path = tmp_path / "plain.jsonl"
    path.write_text('{"id": "q7", "text": "hi", "mentions": [[0, 2]], "label_id": [1]}\n')
    questions, _ = read_questions(path)
    with pytest.raises(ElqError, match="question q7: no 'tokenized_text_ids'"):
        original.link_windows(make_linker(), questions)
