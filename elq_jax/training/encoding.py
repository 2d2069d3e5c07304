"""Entity vectors of a whole catalogue."""

from __future__ import annotations

import json
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elq_jax.data.batches import bucket
from elq_jax.data.catalogue import Catalogue, build_catalogue
from elq_jax.data.files import atomic_write
from elq_jax.data.tokenization import Tokenizer
from elq_jax.errors import ElqError
from elq_jax.linking.directory import EMBEDDINGS, entity_encoder_fingerprint
from elq_jax.model.elq import ElqConfig, EntityEncoder
from elq_jax.retrieval.embeddings import Embeddings, EmbeddingsWriter, recorded_catalogue
from elq_jax.training import devices as devices_lib

TOKEN_BUCKETS = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 192, 256, 384, 512)


class CatalogueEncoder:
    """A frozen entity encoder on all local devices.

    Args:
      config: the entity side of a model.
      params: the entity encoder's tree.
      tokenizer: of the entities.
      batch_size: entities per call; rounded up to a multiple of the devices.
      dtype: of the matrix products.
      devices: of this process; all of them by default.
    """

    def __init__(
        self,
        config: ElqConfig,
        params: Mapping[str, Any],
        tokenizer: Tokenizer,
        *,
        batch_size: int = 64,
        dtype: str = "float32",
        devices: Sequence[jax.Device] | None = None,
    ):
        self.config, self.tokenizer = config, tokenizer
        self.fingerprint = entity_encoder_fingerprint(config, params, tokenizer)
        devices = list(devices or devices_lib.local(devices_lib.all_devices()))
        self._devices = devices
        self._batch_size = -(-batch_size // len(devices)) * len(devices)
        self._params = devices_lib.replicate({"params": params}, devices)
        self._apply = devices_lib.parallel(EntityEncoder(config, jnp.dtype(dtype)).apply, devices)

    def encode(
        self,
        titles: Sequence[str],
        texts: Sequence[str],
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Vectors of entities: [N, D] float32.

        Entities of similar length go together, so that short ones are not padded to the longest.

        Args:
          titles: N titles.
          texts: N descriptions.
          progress: called after each batch with its number of entities.
        """
        tokens = self.tokenizer.encode_entities(titles, texts, self.config.max_entity_tokens)
        order = np.argsort([len(ids) for ids in tokens], kind="stable")
        starts = np.arange(0, len(order), self._batch_size)
        # Short and long ones in turn, so that the rate so far says how long the rest takes.
        starts = np.random.default_rng(0).permutation(starts)
        vectors = np.empty((len(tokens), self.config.vector_width), np.float32)
        for start in starts.tolist():
            rows = order[start : start + self._batch_size]
            vectors[rows] = self._encode_batch([tokens[row] for row in rows])
            if progress:
                progress(len(rows))
        return vectors

    def _encode_batch(self, tokens: list[np.ndarray]) -> np.ndarray:
        length = bucket(max(len(ids) for ids in tokens), TOKEN_BUCKETS)
        input_ids = np.zeros((self._batch_size, length), np.int32)
        mask = np.zeros((self._batch_size, length), bool)
        for i, ids in enumerate(tokens):
            input_ids[i, : len(ids)] = ids
            mask[i, : len(ids)] = True
        batch = devices_lib.split({"input_ids": input_ids, "mask": mask}, self._devices)
        vectors = self._apply(self._params, batch["input_ids"], batch["mask"])
        return devices_lib.merge(vectors, self._devices, len(tokens))


def open_or_build_catalogue(
    source: str | os.PathLike[str], path: str | os.PathLike[str], on_error: str = "stop"
) -> Catalogue:
    """Opens `path`, after building it from `source` unless it was built from just that file before.

    Args:
      source: .jsonl, .jsonl.gz, or a catalogue.arrow (which is copied).
      path: the catalogue.arrow of the output; what it was built from is noted beside it.
      on_error: as for `build_catalogue`; what was found is reported on stderr.

    Raises:
      ElqError: there is no such file, it is no catalogue, or there are embeddings beside `path`
        whose catalogue it would replace by another one. Nothing is changed then.
    """
    source, path = pathlib.Path(source), pathlib.Path(path)
    if source.suffix == ".arrow":
        catalogue = Catalogue.open(source)
        if not (path.exists() and path.samefile(source)):
            _check_embeddings_beside(path, catalogue.fingerprint, source)
            catalogue.save(path)
        return Catalogue.open(path)
    if not source.is_file():
        raise ElqError(f"{source}: no such file; expected a catalogue")
    status = source.stat()
    built_from = {"size": status.st_size, "modified_ns": status.st_mtime_ns, "on_error": on_error}
    note = source_note(path)
    if path.exists() and note.exists() and json.loads(note.read_text("utf-8")) == built_from:
        return Catalogue.open(path)
    built = path.with_name(f".{path.name}.built")
    try:
        report = build_catalogue(source, built, on_error=on_error)
        _check_embeddings_beside(path, report.fingerprint, source)
        built.replace(path)
    finally:
        built.unlink(missing_ok=True)
    with atomic_write(note, "w") as file:
        json.dump(built_from, file)
    for message in report.skipped:
        print(f"left out: {message}", file=sys.stderr)
    print(
        f"{path}: {report.rows:,} entities, {report.duplicate_titles:,} with the title of an "
        f"earlier one, {report.empty_texts:,} without text, {len(report.skipped):,} left out",
        file=sys.stderr,
    )
    return Catalogue.open(path)


def _check_embeddings_beside(path: pathlib.Path, fingerprint: str, source: pathlib.Path) -> None:
    folder = path.with_name(EMBEDDINGS)
    if recorded_catalogue(folder) not in (None, fingerprint):
        raise ElqError(
            f"{folder}: embeddings of another catalogue than {source}; give another folder, or "
            f"remove {folder} first"
        )


def source_note(path: pathlib.Path) -> pathlib.Path:
    """Where it is noted what a catalogue.arrow was built from."""
    return path.with_suffix(".source.json")


def encode_catalogue(
    encoder: CatalogueEncoder,
    catalogue: Catalogue,
    folder: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    shard_rows: int = 16384,
    progress: Callable[[int], None] | None = None,
    exchange: Callable[[], None] = lambda: None,
) -> Embeddings:
    """Encodes all entities into shards; goes on with the missing shards of an earlier call.

    A shard is a function of its rows alone, so an interrupted run and an unbroken one write the
    same files. Where several processes work together, each encodes every so many-th of the shards
    that are missing; the folder is one that all see, or `exchange` makes it so.

    Args:
      encoder: the frozen encoder.
      catalogue: E entities.
      folder: where the shards go.
      dtype: on disk, "float32", "bfloat16" or "int8" (with a scale per row).
      shard_rows: entities per shard.
      progress: called with the number of entities done since, first with those found on disk. Of
        what other processes do it hears when this one has written its shard.
      exchange: called by every process before and after its work, to bring the shards that others
        wrote into its folder.

    Returns:
      the embeddings, memory-mapped.

    Raises:
      ElqError: the folder holds embeddings of another catalogue, encoder or setting.
    """
    writer = EmbeddingsWriter(
        folder,
        rows=len(catalogue),
        width=encoder.config.vector_width,
        dtype=dtype,
        shard_rows=shard_rows,
        catalogue_fingerprint=catalogue.fingerprint,
        encoder_fingerprint=encoder.fingerprint,
    )
    exchange()
    devices_lib.wait_for_all(f"{folder}: shards of earlier calls")
    missing = writer.missing_shards()
    devices_lib.wait_for_all(f"{folder}: missing shards")
    rows = [stop - start for start, stop in map(writer.shard_range, range(writer.num_shards))]
    if progress:
        progress(sum(rows) - sum(rows[shard] for shard in missing))
    index, count = jax.process_index(), jax.process_count()
    for first in range(0, len(missing), count):
        together = missing[first : first + count]  # A shard for every process.
        others = sum(rows[shard] for shard in together)
        if index < len(together):
            span = range(*writer.shard_range(together[index]))
            vectors = encoder.encode(catalogue.titles(span), catalogue.texts(span), progress)
            writer.write_shard(together[index], vectors)
            others -= len(span)
        if progress and others:
            progress(others)
    exchange()
    devices_lib.wait_for_all(f"{folder}: all shards")
    return writer.finish()
