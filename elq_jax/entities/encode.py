"""Encodes all entities of a catalogue into vectors."""

from __future__ import annotations

import collections
import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from elq_jax.core import devices as devices_lib
from elq_jax.core.programs import KeptProgram
from elq_jax.entities.build import open_or_build_catalogue
from elq_jax.entities.catalogue import Catalogue
from elq_jax.entities.embeddings import Embeddings, EmbeddingsWriter
from elq_jax.entities.settings import EncodingSettings
from elq_jax.model.bundle import Model, is_linker_directory
from elq_jax.model.parameters import cast_frozen
from elq_jax.storage import layout
from elq_jax.storage.files import user_address
from elq_jax.storage.progress import progress as show_progress
from elq_jax.storage.remote import Workdir
from elq_jax.text.padding import bucket, pad_tokens

TOKEN_BUCKETS = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 192, 256, 384, 512)
_BATCHES_IN_FLIGHT = 2  # The host prepares a batch while the devices work on another.


def open_encoder(settings: EncodingSettings) -> Model:
    """Opens a model for its entity encoder.

    Args:
      settings: settings with the name of the encoder. A linker directory has pooling, normalisation
        and number of tokens of its own.

    Raises:
      ElqError: it cannot be read.
    """
    folder = user_address(settings.encoder)
    if is_linker_directory(folder):
        return Model.open(folder, ("entity",))
    return Model.from_encoders(
        settings.encoder,
        entity_pooling=settings.pooling,
        normalize_entities=settings.normalize,
        max_entity_tokens=settings.max_tokens,
    )


class CatalogueEncoder:
    """Encodes entities on all local devices with a frozen entity encoder.

    Args:
      model: model with the parameters of its entity encoder, which go to the devices when the
        first entities are encoded.
      batch_size: number of entities per call; rounded up to a multiple of the devices.
      dtype: type of the matrix products, "float32", "bfloat16" or "auto"; `CatalogueEncoder.dtype`
        is the one that is taken, see `devices.compute_dtype`.
      devices: devices of this process; all of them by default.
    """

    def __init__(
        self,
        model: Model,
        *,
        batch_size: int = 64,
        dtype: str = "auto",
        devices: Sequence[jax.Device] | None = None,
    ):
        self.model = model
        devices = list(devices or devices_lib.local(devices_lib.all_devices()))
        self._devices = devices
        self._batch_size = -(-batch_size // len(devices)) * len(devices)
        self.dtype = devices_lib.compute_dtype(dtype, devices)
        apply = functools.partial(model.entity_apply, dtype=self.dtype)
        program = devices_lib.parallel(apply, devices, replicated=(0,))
        self._apply = KeptProgram(program, f"entities {model.config} {self.dtype}", devices)

    @functools.cached_property
    def _params(self) -> Any:
        frozen = cast_frozen(self.model.params["entity"], self.dtype)
        return devices_lib.replicate(frozen, self._devices)

    def encode(
        self,
        titles: Sequence[str],
        texts: Sequence[str],
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Encodes entities into vectors [N, D] float32.

        Entities of similar length share a batch, so that short ones are not padded to the longest.

        Args:
          titles: titles of N entities.
          texts: descriptions of N entities.
          progress: function called after each batch with its number of entities.
        """
        config = self.model.config
        tokens = self.model.tokenizer.encode_entities(titles, texts, config.max_entity_tokens)
        order = np.argsort([len(ids) for ids in tokens], kind="stable")
        starts = np.arange(0, len(order), self._batch_size)
        # Short and long batches are mixed, so that the rate so far predicts the time left.
        starts = np.random.default_rng(0).permutation(starts)
        vectors = np.empty((len(tokens), config.vector_width), np.float32)
        running: collections.deque[tuple[np.ndarray, jax.Array]] = collections.deque()

        def finish_batch() -> None:
            rows, result = running.popleft()
            vectors[rows] = devices_lib.merge(result, self._devices, len(rows))
            if progress:
                progress(len(rows))

        for start in starts.tolist():
            rows = order[start : start + self._batch_size]
            running.append((rows, self._dispatch([tokens[row] for row in rows])))
            if len(running) == _BATCHES_IN_FLIGHT:
                finish_batch()
        while running:
            finish_batch()
        return vectors

    def _dispatch(self, tokens: list[np.ndarray]) -> jax.Array:
        """Starts the encoder on one batch; returns vectors without waiting for them."""
        length = bucket(max(len(ids) for ids in tokens), TOKEN_BUCKETS)
        input_ids, mask = pad_tokens(tokens, length, self._batch_size)
        batch = devices_lib.split({"input_ids": input_ids, "mask": mask}, self._devices)
        return self._apply(self._params, batch["input_ids"], batch["mask"])


def encode_entities(
    model: Model,
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: EncodingSettings | None = None,
) -> Embeddings:
    """Builds a catalogue in a folder and encodes its entities; resumes an interrupted call.

    Progress goes to stderr. Of several processes that work together, each calls this function.

    Args:
      model: model with an entity encoder.
      source: path of a .jsonl, .jsonl.gz or catalogue.arrow.
      output: folder that gets catalogue.arrow and embeddings/; may be on gs://.
      settings: settings of the encoding; those that `open_encoder` uses do not matter here.

    Returns:
      the embeddings, memory-mapped.

    Raises:
      ElqError: the source cannot be used, the folder holds another catalogue's or encoder's
        embeddings or is being written by another process, or the disk is full.
    """
    settings = settings or EncodingSettings()
    workdir = Workdir(output)
    encoder = CatalogueEncoder(model, batch_size=settings.batch_size, dtype=settings.dtype)
    with workdir.lock() if devices_lib.is_main() else contextlib.nullcontext():
        catalogue = workdir.made_by_one(
            open_or_build_catalogue,
            source,
            workdir.path / layout.CATALOGUE,
            on_error=settings.on_error,
        )
        if devices_lib.is_main():
            workdir.publish(layout.CATALOGUE)
        with show_progress("encoding", len(catalogue), "entities") as advance:
            return encode_catalogue(
                encoder,
                catalogue,
                workdir.path / layout.EMBEDDINGS,
                storage_dtype=settings.storage_dtype,
                shard_rows=settings.shard_rows,
                progress=advance if devices_lib.is_main() else None,
                exchange=lambda: workdir.exchange(layout.EMBEDDINGS),
            )


def encode_catalogue(
    encoder: CatalogueEncoder,
    catalogue: Catalogue,
    folder: str | os.PathLike[str],
    *,
    storage_dtype: str = "float32",
    shard_rows: int = 16384,
    progress: Callable[[int], None] | None = None,
    exchange: Callable[[], None] = lambda: None,
) -> Embeddings:
    """Encodes all entities into shards; resumes with the shards missing from an earlier call.

    A shard is a function of its rows alone, so an interrupted run and an unbroken one write the
    same files. Several processes that work together share out the missing shards; all must see the
    folder, or `exchange` copies between their folders.

    Args:
      encoder: frozen encoder.
      catalogue: catalogue of E entities.
      folder: path of the folder of the shards.
      storage_dtype: type of the vectors on disk, "float32", "bfloat16" or "int8" (with a scale per
        row).
      shard_rows: number of entities per shard.
      progress: function called with the number of entities just done, first with those already on
        disk. Work of other processes is reported when this one has written its next shard.
      exchange: function called by every process before and after its work, to bring the shards of
        other processes into its folder.

    Returns:
      the embeddings, memory-mapped.

    Raises:
      ElqError: the folder holds embeddings of another catalogue, encoder or setting.
    """
    writer = EmbeddingsWriter(
        folder,
        rows=len(catalogue),
        width=encoder.model.config.vector_width,
        dtype=storage_dtype,
        shard_rows=shard_rows,
        catalogue_fingerprint=catalogue.fingerprint,
        encoder_fingerprint=encoder.model.entity_fingerprint,
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
        shards = missing[first : first + count]  # A shard for every process.
        others = sum(rows[shard] for shard in shards)
        if index < len(shards):
            span = range(*writer.shard_range(shards[index]))
            vectors = encoder.encode(catalogue.titles(span), catalogue.texts(span), progress)
            writer.write_shard(shards[index], vectors)
            others -= len(span)
        if progress and others:
            progress(others)
    exchange()
    devices_lib.wait_for_all(f"{folder}: all shards")
    return writer.finish()
