"""The linker directory: what a person carries around.

config.json        what the model computes (`ElqConfig`), the fingerprint of its entity encoder,
                   and how it links
model.safetensors  parameters, named by their path ("question/bert/layers_0/query/kernel")
tokenizer.json     the fast tokenizer
catalogue.arrow    titles, texts, Wikidata ids, aliases
embeddings/        entity vectors in shards
index/             a saved ScaNN index, if one was built
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import safetensors
from flax import traverse_util

from elq_jax.data.catalogue import Catalogue
from elq_jax.data.files import atomic_write, write_json
from elq_jax.data.safetensors_files import write_safetensors
from elq_jax.data.tokenization import Tokenizer
from elq_jax.errors import DataError, ElqError
from elq_jax.model.elq import ElqConfig, parameter_shapes
from elq_jax.retrieval.embeddings import Embeddings

FORMAT = "elq_jax linker, version 1"
CONFIG, PARAMETERS = "config.json", "model.safetensors"
CATALOGUE, EMBEDDINGS, INDEX = "catalogue.arrow", "embeddings", "index"


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


def write_linker(
    folder: str | os.PathLike[str],
    config: ElqConfig,
    params: Mapping[str, Any],
    tokenizer: Tokenizer,
    linking: Mapping[str, Any],
    catalogue: str | os.PathLike[str],
    embeddings: str | os.PathLike[str],
) -> None:
    """Writes a whole linker directory; it appears under its name when it is complete.

    Args:
      folder: replaced if it is a linker directory.
      config, params, tokenizer, linking: as for `save_model`.
      catalogue: a catalogue.arrow.
      embeddings: the folder of its entity vectors. Both are hard-linked where the file system can.
    """
    with _replacing(folder) as temporary:
        save_model(temporary, config, params, tokenizer, linking)
        _link_or_copy(pathlib.Path(catalogue), temporary / CATALOGUE)
        _link_or_copy_tree(pathlib.Path(embeddings), temporary / EMBEDDINGS)


def copy_linker(
    source: str | os.PathLike[str], folder: str | os.PathLike[str], linking: Mapping[str, Any]
) -> None:
    """Copies a linker directory (hard links where possible) with other linking defaults."""
    source = pathlib.Path(source)
    config, _, entity_encoder = _read_config(source)
    if source.resolve() in pathlib.Path(folder).resolve().parents:
        raise ElqError(f"{folder}: lies in the directory to be copied; give another place")
    if pathlib.Path(folder).exists() and source.samefile(folder):
        _write_config(source, config, linking, entity_encoder)
        return
    with _replacing(folder) as temporary:
        _link_or_copy_tree(source, temporary)
        (temporary / CONFIG).unlink()
        _write_config(temporary, config, linking, entity_encoder)


@contextlib.contextmanager
def _replacing(folder: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A temporary folder that takes the place of `folder` when the block succeeds."""
    folder = pathlib.Path(folder).absolute()
    is_free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_free and not is_linker_directory(folder):
        raise ElqError(f"{folder}: exists and is not a linker directory; give another name")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    temporary.chmod(0o755)
    try:
        yield temporary
        old = temporary.with_name(f"{temporary.name}.old")
        if folder.exists():
            folder.replace(old)
        temporary.replace(folder)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _link_or_copy(source: pathlib.Path, target: pathlib.Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        with open(source, "rb") as file, atomic_write(target) as copy:
            shutil.copyfileobj(file, copy, 1 << 20)


def _link_or_copy_tree(source: pathlib.Path, target: pathlib.Path) -> None:
    shutil.copytree(source, target, copy_function=_link_or_copy, dirs_exist_ok=True)


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


def open_embeddings(folder: str | os.PathLike[str], catalogue: Catalogue) -> Embeddings:
    """Opens the entity vectors of a linker directory without reading them.

    Raises:
      ElqError: there are none, or they are unfinished, damaged, or of another catalogue or another
        entity encoder than the directory's (as far as both encoders are known).
    """
    folder = pathlib.Path(folder)
    embeddings = Embeddings.open(folder / EMBEDDINGS, catalogue.fingerprint)
    _, _, expected = _read_config(folder)
    found = embeddings.encoder_fingerprint
    if expected and found and expected != found:
        raise ElqError(
            f"{embeddings.folder}: embeddings of another entity encoder (fingerprint {found}) than "
            f"the one in {folder / 'model.safetensors'} ({expected}); remove the folder and encode "
            f"the catalogue again: python -m elq_jax.encode_entities --encoder {folder} "
            f"--catalogue {folder / CATALOGUE} --output {folder}"
        )
    return embeddings


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
