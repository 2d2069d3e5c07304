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
import dataclasses
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from elq_jax.core.errors import ElqError
from elq_jax.entities.catalogue import Catalogue
from elq_jax.entities.embeddings import Embeddings, EmbeddingsWriter
from elq_jax.model import bundle
from elq_jax.model.bundle import Model
from elq_jax.storage import layout
from elq_jax.storage.files import atomic_write


def write_linker(
    folder: str | os.PathLike[str],
    model: Model,
    linking: Mapping[str, Any],
    catalogue: str | os.PathLike[str],
    embeddings: str | os.PathLike[str] | Embeddings | np.ndarray,
) -> None:
    """Writes a whole linker directory; it appears under its name when it is complete.

    Args:
      folder: replaced if it is a linker directory.
      model: both encoders; without the entity encoder's parameters, its fingerprint is kept.
      linking: defaults of `EntityLinker` (threshold and so on).
      catalogue: a catalogue.arrow.
      embeddings: the folder of its entity vectors, or the vectors themselves [E, D]. Files are
        hard-linked where the file system can.
    """
    if isinstance(embeddings, Embeddings):
        embeddings = embeddings.folder
    with _replacing(folder) as temporary:
        model.save(temporary, linking)
        _link_or_copy(pathlib.Path(catalogue), temporary / layout.CATALOGUE)
        if isinstance(embeddings, np.ndarray):
            _write_embeddings(temporary, model, embeddings)
        else:
            _link_or_copy_tree(pathlib.Path(embeddings), temporary / layout.EMBEDDINGS)


def _write_embeddings(folder: pathlib.Path, model: Model, vectors: np.ndarray) -> None:
    """Writes entity vectors [E, D] of the catalogue in `folder` there."""
    fingerprint = Catalogue.open(folder / layout.CATALOGUE).fingerprint
    writer = EmbeddingsWriter(
        folder / layout.EMBEDDINGS,
        *vectors.shape,
        catalogue_fingerprint=fingerprint,
        encoder_fingerprint=model.entity_fingerprint,
    )
    for shard in range(writer.num_shards):
        writer.write_shard(shard, vectors[slice(*writer.shard_range(shard))])


def copy_linker(
    source: str | os.PathLike[str], folder: str | os.PathLike[str], linking: Mapping[str, Any]
) -> None:
    """Copies a linker directory (hard links where possible) with other linking defaults."""
    source = pathlib.Path(source)
    described = dataclasses.replace(bundle.read_description(source), linking=linking)
    if source.resolve() in pathlib.Path(folder).resolve().parents:
        raise ElqError(f"{folder}: lies in the directory to be copied; give another place")
    if pathlib.Path(folder).exists() and source.samefile(folder):
        described.write(source)
        return
    with _replacing(folder) as temporary:
        _link_or_copy_tree(source, temporary)
        (temporary / layout.CONFIG).unlink()
        described.write(temporary)


@contextlib.contextmanager
def _replacing(folder: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A temporary folder that takes the place of `folder` when the block succeeds."""
    folder = pathlib.Path(folder).absolute()
    is_free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_free and not bundle.is_linker_directory(folder):
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


def open_embeddings(folder: str | os.PathLike[str], catalogue: Catalogue) -> Embeddings:
    """Opens the entity vectors of a linker directory without reading them.

    Raises:
      ElqError: there are none, or they are unfinished, damaged, or of another catalogue or another
        entity encoder than the directory's (as far as both encoders are known).
    """
    folder = pathlib.Path(folder)
    embeddings = Embeddings.open(folder / layout.EMBEDDINGS, catalogue.fingerprint)
    expected = bundle.read_description(folder).entity_encoder
    found = embeddings.encoder_fingerprint
    if expected and found and expected != found:
        raise ElqError(
            f"{embeddings.folder}: embeddings of another entity encoder (fingerprint {found}) than "
            f"the one in {folder / 'model.safetensors'} ({expected}); remove the folder and encode "
            f"the catalogue again: python -m elq_jax.encode_entities --encoder {folder} "
            f"--catalogue {folder / layout.CATALOGUE} --output {folder}"
        )
    return embeddings
