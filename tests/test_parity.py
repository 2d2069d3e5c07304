"""The whole of linking and the original's two evaluations, against what the original printed."""

import json

import jax
import numpy as np
import pytest
from conftest import FIXTURES
from reference import arrays, tiny_config, tiny_params

from elq_jax.data.catalogue import Catalogue, build_catalogue
from elq_jax.data.files import read_jsonl
from elq_jax.data.questions import Mention, Question, read_questions
from elq_jax.data.tokenization import Tokenizer
from elq_jax.errors import ElqError
from elq_jax.evaluation import original
from elq_jax.linking.decoding import original_triples
from elq_jax.linking.linker import EntityLinker
from elq_jax.retrieval.exact import ExactIndex

SCORES = dict(rtol=0, atol=1e-4)  # as the fixtures' README states it
NAMES = {"num_cand_mentions": "max_mentions", "num_cand_entities": "num_candidates"}


@pytest.fixture(scope="module")
def catalogue(fixtures, tmp_path_factory):
    path = tmp_path_factory.mktemp("parity") / "catalogue.arrow"
    build_catalogue(fixtures / "entity.jsonl", path)
    return Catalogue.open(path)


@pytest.fixture(scope="module")
def make_linker(catalogue):
    """Linkers of the fixtures' model; those of one maximal length share compiled functions."""
    tokenizer = Tokenizer.from_pretrained("minilm")
    index = ExactIndex(arrays("kb")["entity_encodings"])
    made = {}

    def make(max_question_tokens=32, **settings):
        if max_question_tokens not in made:
            config = tiny_config(max_question_tokens=max_question_tokens)
            made[max_question_tokens] = EntityLinker(
                config,
                tiny_params()["question"],
                tokenizer,
                catalogue,
                index,
                devices=jax.devices()[:1],
            )
        settings = {NAMES.get(name, name): value for name, value in settings.items()}
        return made[max_question_tokens].with_settings(
            allow_special_tokens=True, special_tokens_in_text=True, **settings
        )

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


@pytest.mark.parametrize("number", range(10))
def test_linking(number, make_linker, catalogue):
    """All settings of the pipeline: entities, positions, scores and printed names."""
    run = PIPELINE["runs"][number]
    settings, batch_size = settings_of(run)
    linker = make_linker(**settings)
    texts = [sample["text"] for sample in PIPELINE["samples"]]
    scored = linker.score_batch(texts, batch_size=batch_size)
    decoded = linker.decode_tokens(scored)
    assert len(decoded) == len(run["results"])
    for question, links, expected in zip(scored, decoded, run["results"], strict=True):
        tokens = [int(token) for token in question.encoded.ids[1:-1] if token != 0]
        assert tokens == expected["tokens"]
        triples = original_triples(links)
        assert triples == [tuple(triple) for triple in expected["pred_triples"]]
        np.testing.assert_allclose([link.score for link in links], expected["scores"], **SCORES)
        names = [
            [catalogue[int(row)].title, linker.tokenizer.decode(tokens[start:end])]
            for row, start, end in triples
        ]
        assert names == expected["pred_tuples_string"]


@pytest.mark.parametrize("run", LABELLED, ids=lambda run: str(run["settings"]))
def test_labelled_evaluation(run, make_linker, catalogue):
    """Links and all seven counts, of questions that are cut to 32 and to 20 tokens."""
    settings, batch_size = settings_of(run)
    linker = make_linker(**settings)
    questions, _ = read_questions(FIXTURES / "labelled.jsonl", catalogue, trust_label_ids=True)
    linked = original.link_windows(linker, questions, batch_size=batch_size)
    for one, expected in zip(linked, run["results"], strict=True):
        assert one.window.ids[1:-1].tolist() == expected["tokens"]
        for found, name in ((one.text_predicted, "pred_triples"), (one.text_gold, "gold_triples")):
            assert [(str(row), *span) for row, *span in found] == [*map(tuple, expected[name])]
        scores = [link.score for link in one.links]
        np.testing.assert_allclose(scores, expected["scores"], **SCORES)
    counts = original.count_windows(linked)
    window, text = counts.window, counts.text
    assert window.predicted == text.predicted
    assert run["counts"] == {
        "correct_weak": text.weak,
        "correct_strong": text.strong,
        "predicted": text.predicted,
        "gold": text.gold,
        "correct_weak_window": window.weak,
        "correct_strong_window": window.strong,
        "gold_window": window.gold,
    }
    for metric in ("weak", "strong"):
        scores = window.scores(metric)
        assert (
            f"precision = {window.weak} / {window.predicted} = {scores['precision']}"
            in (run["stdout"])
        )
        assert f"f1 = {scores['f1']}" in run["stdout"]


def test_evaluation_during_training(make_linker):
    """Precision, recall and F1 of the frozen branch, to all printed digits."""
    expected = json.loads((FIXTURES / "eval_frozen.json").read_text())
    # Its gold mentions overlap, which `read_questions` refuses.
    rows = [row for _, row in read_jsonl(FIXTURES / "eval_frozen.jsonl")]
    questions = [
        Question(
            str(row["id"]),
            row["text"],
            tuple(Mention(-1, -1, label) for label in row["label_id"]),
            tuple(row["tokenized_text_ids"]),
            tuple(map(tuple, row["tokenized_mention_idxs"])),
        )
        for row in rows
    ]
    counts = original.count_as_in_training(make_linker(), questions)
    scores = {
        "Precision": counts.weak_precision,
        "Recall": counts.weak_recall,
        "F1": counts.weak_f1,
    }
    assert [f"{name}: {score:.5f}" for name, score in scores.items()] == expected["log"]
    assert counts.weak_f1 == pytest.approx(expected["result"]["normalized_f1"], rel=1e-15)


def test_plain_questions_are_refused(make_linker, tmp_path):
    path = tmp_path / "plain.jsonl"
    path.write_text('{"id": "q7", "text": "hi", "mentions": [[0, 2]], "label_id": [1]}\n')
    questions, _ = read_questions(path)
    with pytest.raises(ElqError, match="question q7: no 'tokenized_text_ids'"):
        original.link_windows(make_linker(), questions)
