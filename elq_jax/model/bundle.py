"""A model from published BERT encoders, before any training of ours."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import traverse_util

from elq_jax.core.errors import DataError, ElqError
from elq_jax.model.bert import BertConfig, params_from_huggingface
from elq_jax.model.elq import ElqConfig, EntityEncoder, QuestionEncoder, parameter_shapes
from elq_jax.model.huggingface import load_bert_checkpoint
from elq_jax.storage.files import write_json
from elq_jax.storage.hub import resolve_encoder
from elq_jax.storage.layout import CONFIG, PARAMETERS
from elq_jax.storage.safetensors_files import write_safetensors
from elq_jax.text.tokenization import Tokenizer

FORMAT = "elq_jax linker, version 1"


def load_pretrained(
    question_encoder: str | os.PathLike[str],
    entity_encoder: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    **settings: Any,
) -> tuple[ElqConfig, dict[str, Any], Tokenizer]:
    """Builds both encoders from BERT checkpoints; new heads start at random.

    Args:
      question_encoder: "minilm", a folder, or a hub name.
      entity_encoder: likewise; the question encoder's by default.
      seed: of the new parameters.
      **settings: further fields of `ElqConfig`.

    Returns:
      configuration, {"question": tree, "entity": tree} of float32 parameters, and the tokenizer,
      which both encoders share.

    Raises:
      ElqError: a checkpoint cannot be read, or the encoders have different vocabularies.
    """
    folders = {"question": resolve_encoder(question_encoder)}
    folders["entity"] = resolve_encoder(entity_encoder) if entity_encoder else folders["question"]
    tokenizers = {part: Tokenizer.from_pretrained(folder) for part, folder in folders.items()}
    if tokenizers["question"].fingerprint != tokenizers["entity"].fingerprint:
        raise ElqError(
            f"{question_encoder} and {entity_encoder} split text differently; "
            "choose encoders with the same vocabulary and tokenizer"
        )
    configs, berts = {}, {}
    for part, folder in folders.items():
        values, tensors = load_bert_checkpoint(folder)
        with_pooler = part == "entity" and settings.get("entity_pooling") == "pooler_linear"
        try:
            configs[part] = BertConfig.from_huggingface(values)
            berts[part] = params_from_huggingface(tensors, configs[part], with_pooler)
        except (ValueError, KeyError) as error:
            raise DataError(str(error), folder) from error
    for part, bert in configs.items():
        if tokenizers[part].vocab_size > bert.vocab_size:
            raise ElqError(
                f"{folders[part]}: the tokenizer has {tokenizers[part].vocab_size:,} tokens, the "
                f"encoder {bert.vocab_size:,}; they are not of one model"
            )
    try:
        config = ElqConfig(configs["question"], configs["entity"], **settings)
    except ValueError as error:
        raise ElqError(str(error)) from error
    params = initial_params(config, seed)
    for part, bert in berts.items():
        params[part]["bert"] = bert
    return config, params, tokenizers["question"]


def initial_params(config: ElqConfig, seed: int = 0) -> dict[str, Any]:
    """Random parameters of both encoders: {"question": tree, "entity": tree}."""
    question_key, entity_key = jax.random.split(jax.random.key(seed))
    ids, mask = jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool)
    bounds = jnp.zeros((1, 1, 2), jnp.int32)

    @jax.jit
    def initialise() -> Mapping[str, Any]:
        question = QuestionEncoder(config)
        variables = question.init(question_key, ids, mask, bounds, method="encode_mentions")
        entity = EntityEncoder(config).init(entity_key, ids, mask)
        return {"question": variables["params"], "entity": entity["params"]}

    return dict(initialise())


def save_model(
    folder: str | os.PathLike[str],
    config: ElqConfig,
    params: Mapping[str, Any],
    tokenizer: Tokenizer,
    linking: Mapping[str, Any] | None = None,
) -> None:
    """Writes config.json, model.safetensors and tokenizer.json.

    Args:
      folder: made if it is not there.
      config: what the model computes.
      params: {"question": tree, "entity": tree} of float32 arrays, in memory or mapped from files;
        one at a time is copied. Without "entity", any embeddings count as the model's.
      tokenizer: of both encoders.
      linking: defaults of `EntityLinker` (threshold and so on).
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    shapes = {name: np.shape(array) for name, array in flat.items()}
    write_safetensors(folder / PARAMETERS, shapes, lambda name: jax.device_get(flat[name]))
    fingerprint = ""
    if "entity" in params:
        fingerprint = entity_encoder_fingerprint(config, params["entity"], tokenizer)
    _write_config(folder, config, linking or {}, fingerprint)


def _write_config(
    folder: pathlib.Path, config: ElqConfig, linking: Mapping[str, Any], entity_encoder: str
) -> None:
    settings = {
        "format": FORMAT,
        "model": config.to_dict(),
        "entity_encoder": entity_encoder,
        "linking": dict(linking),
    }
    write_json(folder / CONFIG, settings)


def is_linker_directory(folder: str | os.PathLike[str]) -> bool:
    """Whether `folder` has a config.json of ours."""
    path = pathlib.Path(folder) / CONFIG
    return path.is_file() and b'"elq_jax linker' in path.read_bytes()


def load_config(folder: str | os.PathLike[str]) -> tuple[ElqConfig, dict[str, Any]]:
    """Reads config.json.

    Returns:
      the model's configuration and the linking defaults.

    Raises:
      ElqError: the folder is not a linker directory of this version.
    """
    config, linking, _ = _read_config(folder)
    return config, linking


def _read_config(folder: str | os.PathLike[str]) -> tuple[ElqConfig, dict[str, Any], str]:
    """As `load_config`, and the fingerprint of the entity encoder ("" where it was not kept)."""
    path = pathlib.Path(folder) / CONFIG
    if not path.is_file():
        raise ElqError(f"{folder}: no config.json here; expected a linker directory")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        if settings.get("format") != FORMAT:
            raise DataError(
                f'"format" is {settings.get("format")!r}; expected {FORMAT!r}, as train and '
                "save_pretrained write it",
                path,
            )
        config = ElqConfig.from_dict(settings["model"])
        return config, dict(settings["linking"]), settings.get("entity_encoder", "")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ElqError):
            raise
        message = f"not the configuration of a linker ({error}); expected one that train wrote"
        raise DataError(message, path) from error


def load_params(
    folder: str | os.PathLike[str], parts: Sequence[str] = ("question", "entity")
) -> dict[str, Any]:
    """Reads parameters; only those of the encoders asked for are taken from disk.

    Returns:
      {part: tree of float32 arrays}.

    Raises:
      ElqError: the file is missing or broken, lacks a part, is not of the model in config.json, or
        holds NaN or infinity.
    """
    path = pathlib.Path(folder) / PARAMETERS
    if not path.is_file():
        raise ElqError(f"{path}: no such file; expected a linker directory with its parameters")
    config, _ = load_config(folder)
    flat: dict[tuple[str, ...], np.ndarray] = {}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                if name.split("/")[0] in parts:
                    flat[tuple(name.split("/"))] = file.get_tensor(name)
    except safetensors.SafetensorError as error:
        raise DataError(f"not a whole safetensors file ({error})", path) from error
    for part in parts:
        if not any(name[0] == part for name in flat):
            raise DataError(f"holds no parameters of the {part} encoder", path)
    _check_params(flat, config, parts, path)
    return traverse_util.unflatten_dict(flat)


def _check_params(
    flat: Mapping[tuple[str, ...], np.ndarray],
    config: ElqConfig,
    parts: Sequence[str],
    path: pathlib.Path,
) -> None:
    """Raises a DataError unless these are the parameters that config.json describes, all finite."""
    shapes = parameter_shapes(config)
    expected = {name: shape for name, shape in shapes.items() if name[0] in parts}
    for name in sorted({*expected, *flat}):
        found = flat[name].shape if name in flat else "nothing"
        if found != expected.get(name):
            raise DataError(
                f"{'/'.join(name)}: found {found}, config.json says {expected.get(name, 'nothing')}"
                "; the two files are of different models",
                path,
            )
        with np.errstate(all="ignore"):  # a sum keeps NaN and infinity
            if not np.isfinite(flat[name].sum()) and not np.isfinite(flat[name]).all():
                raise DataError(f"{'/'.join(name)}: holds NaN or infinity; train again", path)


def entity_encoder_fingerprint(
    config: ElqConfig, params: Mapping[str, Any], tokenizer: Tokenizer
) -> str:
    """Names everything that entity vectors depend on, but for the catalogue itself.

    Args:
      config: the entity side counts.
      params: the entity encoder's tree.
      tokenizer: of the entities.
    """
    digest = hashlib.sha256()
    settings = {name: value for name, value in config.to_dict().items() if "entity" in name}
    if not config.normalize_entities:  # left out where it is on, as in embeddings of before
        settings["normalize_entities"] = False
    for name in ("dropout_rate", "attention_dropout_rate"):
        del settings["entity_bert"][name]
    digest.update(json.dumps([settings, tokenizer.fingerprint], sort_keys=True).encode())
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    for name in sorted(flat):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(jax.device_get(flat[name]), np.float32).data)
    return digest.hexdigest()
