"""The tiny model of the fixtures, with the parameters that the original saved."""

from __future__ import annotations

import functools
import json
import pathlib

import numpy as np
import safetensors.numpy
from conftest import FIXTURES

from elq_jax.entities.build import build_catalogue
from elq_jax.entities.catalogue import Catalogue
from elq_jax.entities.embeddings import EmbeddingsWriter
from elq_jax.linking import directory
from elq_jax.model.bert import BertConfig
from elq_jax.model.bundle import Model
from elq_jax.model.elq import ElqConfig
from elq_jax.original.names import params_from_state_dict
from elq_jax.storage.hub import resolve_encoder
from elq_jax.text.tokenization import Tokenizer


@functools.cache
def arrays(name: str) -> dict[str, np.ndarray]:
    """All arrays of one .npz fixture."""
    with np.load(FIXTURES / f"{name}.npz") as file:
        return dict(file)


@functools.cache
def tiny_config(**changes) -> ElqConfig:
    """Configuration of the fixtures' model (X = 10, so 11 tokens)."""
    huggingface = json.loads((FIXTURES / "params.json").read_text())["config"]
    bert = BertConfig.from_huggingface(huggingface)
    return ElqConfig(bert, bert, **changes)


@functools.cache
def tiny_params() -> dict:
    """{"question": ..., "entity": ...} of the fixtures' model."""
    return params_from_state_dict(arrays("state_dict"), tiny_config())


def tiny_model(**changes) -> Model:
    """The fixtures' model; `changes` are of its configuration."""
    return Model(tiny_config(**changes), tiny_params(), Tokenizer.from_pretrained("minilm"))


def write_tiny_bert(folder: pathlib.Path, layers: int = 2, dropout: float = 0.1) -> None:
    """The fixtures' question encoder as a published checkpoint folder.

    Args:
      folder: is there.
      layers: kept of its two; one without dropout compiles in a third of the time.
      dropout: on hidden states.
    """
    prefix = "context_encoder.bert_model."
    state = arrays("state_dict")
    tensors = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    left_out = tuple(f"encoder.layer.{i}." for i in range(layers, 2))
    tensors = {k: v for k, v in tensors.items() if not k.startswith(left_out)}
    safetensors.numpy.save_file(
        {k: np.ascontiguousarray(v, np.float32) for k, v in tensors.items()},
        folder / "model.safetensors",
    )
    params = json.loads((FIXTURES / "params.json").read_text())
    settings = params["config"] | {
        "hidden_dropout_prob": dropout,
        "model_type": "bert",
        "num_hidden_layers": layers,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    tokenizer = resolve_encoder("minilm") / "tokenizer.json"
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())


def enumerated(grid: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Grid values [B, T, T] in the original's enumeration [B, n]."""
    return np.asarray(grid)[:, bounds[:, 0], bounds[:, 1]]


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
    lines = (FIXTURES / "entity.jsonl").read_text().splitlines(keepends=True)
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
