"""A tiny model with its catalogue, for tests that need a linker and no reference numbers.

Always that of tests/fixtures, whichever set of reference numbers the parity tests compare with.
"""

from __future__ import annotations

import json
import pathlib

import numpy as np
import safetensors.numpy
from conftest import OWN_FIXTURES
from reference import FixtureSet

from elq_jax.entities.build import build_catalogue
from elq_jax.entities.catalogue import Catalogue
from elq_jax.entities.embeddings import EmbeddingsWriter
from elq_jax.linking import directory
from elq_jax.model.config import BertConfig
from elq_jax.questions.examples import AlignmentReport, iter_examples
from elq_jax.storage.hub import resolve_encoder

_OWN = FixtureSet(OWN_FIXTURES)
_DEMO = pathlib.Path(__file__).parent.parent / "demo"
arrays = _OWN.arrays
# An encoder of one narrow layer with random weights, for tests that are about what is around it.
NARROW_BERT = BertConfig(100, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32)
tiny_config, tiny_params, tiny_model = _OWN.config, _OWN.params, _OWN.model


def write_tiny_bert(
    folder: pathlib.Path, layers: int = 2, dropout: float = 0.1, words: int | None = None
) -> None:
    """The fixtures' question encoder as a published checkpoint folder.

    Args:
      folder: is there.
      layers: kept of its two; one without dropout compiles in a third of the time.
      dropout: on hidden states.
      words: number of the first words of the vocabulary that are kept; None: all.
    """
    prefix = "context_encoder.bert_model."
    state = arrays("state_dict")
    tensors = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    left_out = tuple(
        f"encoder.layer.{i}." for i in range(layers, tiny_config().question_bert.num_layers)
    )
    tensors = {k: v for k, v in tensors.items() if not k.startswith(left_out)}
    name = "embeddings.word_embeddings.weight"
    tensors[name] = tensors[name][:words]
    safetensors.numpy.save_file(
        {k: np.ascontiguousarray(v, np.float32) for k, v in tensors.items()},
        folder / "model.safetensors",
    )
    params = _OWN.json("params")
    settings = params["config"] | {
        "hidden_dropout_prob": dropout,
        "model_type": "bert",
        "num_hidden_layers": layers,
        "vocab_size": len(tensors[name]),
    }
    (folder / "config.json").write_text(json.dumps(settings))
    tokenizer = json.loads((resolve_encoder("minilm") / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {
        word: i for word, i in vocabulary.items() if i < len(tensors[name])
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def write_demo_part(folder: pathlib.Path) -> None:
    """60 questions of the demo to train on, 10 as dev, and a catalogue of 90 with their gold."""
    gold = set()
    for name, count in (("train", 60), ("dev", 10)):
        lines = (_DEMO / f"{name}.jsonl").read_text().splitlines(keepends=True)[:count]
        (folder / f"{name}.jsonl").write_text("".join(lines))
        gold.update(title for line in lines for title in json.loads(line)["title"])
    lines = (_DEMO / "catalogue.jsonl").read_text().splitlines(keepends=True)
    lines.sort(key=lambda line: json.loads(line)["title"] not in gold)
    (folder / "catalogue.jsonl").write_text("".join(lines[:90]))


def write_embeddings(
    folder: pathlib.Path, catalogue: Catalogue, vectors: np.ndarray, encoder: str = ""
) -> None:
    """Entity vectors [E, D] of a catalogue, in one shard; `encoder` is a fingerprint."""
    fingerprints = {"catalogue_fingerprint": catalogue.fingerprint, "encoder_fingerprint": encoder}
    writer = EmbeddingsWriter(folder, *vectors.shape, **fingerprints)
    writer.write_shard(0, vectors)


def tiny_linker_directory(
    folder: pathlib.Path, entities: int = 500, **linking: float | str
) -> pathlib.Path:
    """A linker directory of the fixtures' model, its catalogue and its entity vectors.

    Args:
      folder: what is written is `folder`/linker, and its parts beside it.
      entities: E, the first of the catalogue.
      **linking: `LinkingSettings`.

    Returns:
      the linker directory.
    """
    lines = (OWN_FIXTURES / "entity.jsonl").read_text().splitlines(keepends=True)
    (folder / "entity.jsonl").write_text("".join(lines[:entities]))
    build_catalogue(folder / "entity.jsonl", folder / "catalogue.arrow")
    catalogue = Catalogue.open(folder / "catalogue.arrow")
    vectors = arrays("kb")["entity_encodings"][:entities]
    write_embeddings(folder / "embeddings", catalogue, vectors)
    directory.write_linker(
        folder / "linker",
        tiny_model(),
        linking,
        folder / "catalogue.arrow",
        folder / "embeddings",
    )
    return folder / "linker"


def make_examples(questions, tokenizer, max_length, max_mention_width=None):
    """The examples of labelled questions as a list, and the report about them."""
    report = AlignmentReport()
    examples = iter_examples(questions, tokenizer, max_length, max_mention_width, report)
    return list(examples), report
