"""Reads published BERT checkpoints."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np
import safetensors

from elq_jax.core.errors import ElqError
from elq_jax.storage.checksums import read_json
from elq_jax.storage.files import check_not_a_pointer
from elq_jax.storage.hub import resolve_encoder

_CONFIG_KEYS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)


def load_bert_checkpoint(
    name_or_path: str | os.PathLike[str],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads config.json and model.safetensors of a BERT encoder.

    Args:
      name_or_path: name or folder of the encoder, as for `resolve_encoder`.

    Returns:
      configuration, and the encoder's tensors in float32 under the names of Hugging Face's
      BertModel ("embeddings.word_embeddings.weight" [V, D], "encoder.layer.0. ..."): a "bert."
      prefix is cut off, LayerNorm's old names "gamma" and "beta" become "weight" and "bias", and
      what is no part of the encoder (task heads, position ids) is left out.

    Raises:
      ElqError: a file is missing or damaged, the model is not a BERT, or the weights do not fit
        the configuration.
    """
    folder = resolve_encoder(name_or_path)
    config = _read_config(folder / "config.json")
    weights = folder / "model.safetensors"
    if not weights.is_file():
        old = folder / "pytorch_model.bin"
        hint = (
            "convert pytorch_model.bin once with transformers' save_pretrained"
            if old.is_file()
            else "give a folder with config.json and model.safetensors"
        )
        raise ElqError(f"{weights}: no such file; {hint}")

    check_not_a_pointer(weights)
    tensors = {}
    try:
        with safetensors.safe_open(weights, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                if (new_name := _encoder_name(name)) is not None:
                    tensors[new_name] = file.get_tensor(name).astype(np.float32, copy=False)
    except safetensors.SafetensorError as error:
        raise ElqError(
            f"{weights}: not a whole safetensors file ({error}); copy it again"
        ) from error
    _check_fit(config, tensors, weights)
    return config, tensors


def _read_config(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        raise ElqError(f"{path}: no such file; give a folder of a BERT encoder")
    config = read_json(path, dict[str, Any], "give the config.json of a BERT")
    if (kind := config.get("model_type", "bert")) != "bert":
        raise ElqError(f"{path}: model_type is {kind!r}, expected 'bert'; give a BERT encoder")
    missing = [key for key in _CONFIG_KEYS if key not in config]
    if missing:
        raise ElqError(f"{path}: {', '.join(missing)} missing; give the config.json of a BERT")
    return config


def _encoder_name(name: str) -> str | None:
    """Returns a tensor's name in BertModel; None for tensors outside the encoder."""
    name = name.removeprefix("bert.")
    if not name.startswith(("embeddings.", "encoder.", "pooler.")):
        return None
    if name == "embeddings.position_ids":
        return None
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


def _check_fit(
    config: dict[str, Any], tensors: dict[str, np.ndarray], weights: pathlib.Path
) -> None:
    name = "embeddings.word_embeddings.weight"
    expected = (config["vocab_size"], config["hidden_size"])
    found = tensors[name].shape if name in tensors else "no such tensor"
    if found != expected:
        raise ElqError(
            f"{weights}: tensor {name!r}: found {found}, expected {expected}, as config.json "
            "describes it; give the two files of one model"
        )
    layers = {key.split(".")[2] for key in tensors if key.startswith("encoder.layer.")}
    num_layers = config["num_hidden_layers"]
    if len(layers) != num_layers or layers != {str(layer) for layer in range(num_layers)}:
        raise ElqError(
            f"{weights}: found {len(layers)} layers, expected {num_layers}, as config.json "
            "describes it; give the two files of one model"
        )
