"""Files of the original ELQ to a linker directory.

Files may be far larger than memory: the matrix of entity vectors is copied in parts, and tensors of
a model are memory-mapped.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import sys
from collections.abc import Callable

import jax
import numpy as np

from elq_jax.core.errors import DataError, ElqError
from elq_jax.entities.build import open_or_build_catalogue, source_note
from elq_jax.entities.catalogue import Catalogue
from elq_jax.entities.embeddings import Embeddings, EmbeddingsWriter
from elq_jax.entities.encode import CatalogueEncoder
from elq_jax.entities.wikidata import fill_wikidata_ids
from elq_jax.linking.settings import LinkingSettings
from elq_jax.model.bundle import Model
from elq_jax.original import checkpoint as original
from elq_jax.original.presets import with_preset
from elq_jax.original.torch_files import StoredTensor, open_torch_file
from elq_jax.storage import layout
from elq_jax.storage.progress import progress
from elq_jax.storage.resume import resumable_folder, stamp
from elq_jax.text.tokenization import Tokenizer

# For linkers that are to give the original's answers.
ORIGINAL_LINKING = {"decoder": "elq_jax.original.decoding:original"}

_SHARD_BYTES = 1 << 27  # of float32; converting takes about five times as much memory


def convert(
    output: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None,
    parameter_file: str | os.PathLike[str],
    tokenizer: str | os.PathLike[str],
    *,
    entity_checkpoint: str | os.PathLike[str] | None = None,
    bert_config: str | os.PathLike[str] | None = None,
    entity_bert_config: str | os.PathLike[str] | None = None,
    catalogue: str | os.PathLike[str] | None = None,
    wikidata_ids: str | os.PathLike[str] | None = None,
    embeddings: str | os.PathLike[str] | None = None,
    token_ids: str | os.PathLike[str] | None = None,
    dtype: str = "float32",
    preset: str = "interactive",
    max_question_tokens: int | None = None,
    index: bool = False,
) -> None:
    """Writes a linker directory that gives the original's answers.

    What was found, and progress, go to stderr. Interrupted or out of disk space, the same call goes
    on; after any other error nothing is left behind.

    Args:
      output: the directory; must not exist, or be empty.
      checkpoint, parameter_file, entity_checkpoint, bert_config, entity_bert_config: see
        `original.load_model`.
      tokenizer: what `Tokenizer.from_pretrained` takes.
      catalogue: entity.jsonl (or .jsonl.gz, or a catalogue.arrow). Without one the directory holds
        a model only.
      wikidata_ids: table for entities without an id; see `fill_wikidata_ids`.
      embeddings: all_entities_large.t7, a float matrix [E, D] saved by torch. Without it
        encode_entities is to be run next.
      token_ids: entity_token_ids_128.t7; only used to check catalogue and tokenizer.
      dtype: of the embeddings on disk, "float32", "bfloat16" or "int8".
      preset: published settings to link with by default.
      max_question_tokens: to link with by default, instead of the preset's or the model's.
      index: build a ScaNN index too; memory as `ScannIndex.build` says.

    Raises:
      ElqError: a file is missing, foreign or cut short, or does not fit the others.
    """
    for name, path in {
        "wikidata_ids": wikidata_ids,
        "embeddings": embeddings,
        "token_ids": token_ids,
    }.items():
        if path and not catalogue:
            raise ElqError(f"{name}: needs a catalogue, whose entities its rows are")
    if index and not embeddings:
        raise ElqError("index: needs embeddings; without them, build_index comes later")
    given = {"max_question_tokens": max_question_tokens} | ORIGINAL_LINKING
    linking = LinkingSettings.from_dict(with_preset(preset, given))
    inputs = {
        name: _existing(path)
        for name, path in {
            "checkpoint": checkpoint,
            "parameter_file": parameter_file,
            "entity_checkpoint": entity_checkpoint,
            "bert_config": bert_config,
            "entity_bert_config": entity_bert_config,
            "catalogue": catalogue,
            "wikidata_ids": wikidata_ids,
            "embeddings": embeddings,
            "token_ids": token_ids,
        }.items()
        if path
    }
    # All that can be seen from headers is checked before anything is written.
    model = original.load_model(
        checkpoint, parameter_file, entity_checkpoint, bert_config, entity_bert_config
    )
    longest = model.config.question_bert.max_positions
    if (linking.max_question_tokens or 0) > longest:
        raise ElqError(
            f"max_question_tokens: {linking.max_question_tokens}; expected 3 to {longest} (the "
            "encoder's positions)"
        )
    wordpieces = Tokenizer.from_pretrained(tokenizer)
    original.check_tokenizer(wordpieces, model, os.fspath(tokenizer))
    vectors = open_matrix(embeddings, "f", model.config.vector_width) if embeddings else None
    tokens = open_matrix(token_ids, "i") if token_ids else None

    if model.untrained:
        _say(
            f"warning: {entity_checkpoint}: no mention head in it; it starts at random, so train "
            "before linking: what it takes for mentions means nothing"
        )
    if not model.has_poolers:
        _say(
            f"{checkpoint or entity_checkpoint}: no pooler in it, which the original loads and "
            "never uses; --to_torch will write zeros"
        )
    # The matrix may have tens of gigabytes: time and size of a file stand for its content.
    described = {
        name: {"path": str(path.resolve()), "stamp": stamp(path)} for name, path in inputs.items()
    }
    described |= {"dtype": dtype, "tokenizer": wordpieces.fingerprint}
    records = [source_note(pathlib.Path(layout.CATALOGUE)).name]
    with resumable_folder(output, described, records) as folder:
        if not index:  # one that an interrupted call with it was done with
            shutil.rmtree(folder / layout.INDEX, ignore_errors=True)
        original.save_model(folder, model, wordpieces, linking.to_dict())
        if not catalogue:
            return
        path = folder / layout.CATALOGUE
        entities = open_or_build_catalogue(catalogue, path)
        if wikidata_ids:
            without = fill_wikidata_ids(path, wikidata_ids)
            _say(f"{path.name}: {without:,} of {len(entities):,} without a Wikidata id")
            entities = Catalogue.open(path)
        for matrix in (vectors, tokens):
            if matrix is not None:
                _check_rows(matrix, entities, catalogue)
        if tokens is not None:
            _say(f"{token_ids}: {check_token_ids(tokens, entities, wordpieces)}")
        if vectors is None:
            return
        fingerprint = _encoder_fingerprint(model, vectors, entities, wordpieces)
        with progress("embeddings", len(entities), "entities") as advance:
            converted = convert_embeddings(
                vectors, folder / layout.EMBEDDINGS, entities, dtype, fingerprint, advance
            )
        if index:
            from elq_jax.retrieval.scann import ScannIndex, ScannSettings

            ScannIndex.build(converted, ScannSettings(reorder_dtype=dtype)).save(
                folder / layout.INDEX
            )


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def _existing(path: str | os.PathLike[str]) -> pathlib.Path:
    if not pathlib.Path(path).is_file():
        raise ElqError(f"{path}: no such file")
    return pathlib.Path(path)


def open_matrix(path: str | os.PathLike[str], kind: str, width: int | None = None) -> StoredTensor:
    """Opens a matrix [E, ...] saved by torch.

    Args:
      path: the file.
      kind: "f" (all_entities_large.t7) or "i" (entity_token_ids_128.t7).
      width: columns to expect.

    Raises:
      DataError: it holds something else.
    """
    matrix = open_torch_file(path)
    names = {"f": "float", "i": "integer"}
    expected = f"a {names[kind]} matrix [entities, {width or 'tokens'}]"
    if not isinstance(matrix, StoredTensor):
        found = "state dict" if isinstance(matrix, dict) else type(matrix).__name__
        raise DataError(f"holds a {found}; expected {expected}", path)
    if matrix.dtype.kind not in kind + "V" * (kind == "f") or len(matrix.shape) != 2:
        raise DataError(f"holds {matrix.dtype} {list(matrix.shape)}; expected {expected}", path)
    if width and matrix.shape[1] != width:
        raise DataError(
            f"vectors of width {matrix.shape[1]}; the model's entity vectors have {width}", path
        )
    return matrix


def _check_rows(matrix: StoredTensor, catalogue: Catalogue, source: str | os.PathLike[str]) -> None:
    if matrix.shape[0] != len(catalogue):
        raise DataError(
            f"{matrix.shape[0]:,} rows, and {source} has {len(catalogue):,} entities; they must "
            "be of the same catalogue",
            matrix.path,
        )


def check_token_ids(
    matrix: StoredTensor, catalogue: Catalogue, tokenizer: Tokenizer, sample: int = 1000
) -> str:
    """Compares the original's token ids of entities with ours, on evenly spaced rows.

    Returns:
      the result in words.

    Raises:
      DataError: more than one row in ten differs, so catalogue or tokenizer is another one.
    """
    rows = _sample(len(catalogue), sample)
    ours = tokenizer.encode_entities(catalogue.titles(rows), catalogue.texts(rows), matrix.shape[1])
    different = []
    for row, ids in zip(rows.tolist(), ours, strict=True):
        theirs = matrix.rows(row, row + 1)[0]
        theirs = theirs[: np.flatnonzero(theirs)[-1] + 1] if theirs.any() else theirs[:0]
        if ids.tolist() != theirs.tolist():
            different.append((row, theirs[:12].tolist(), ids[:12].tolist()))
    if len(different) > 0.1 * len(rows):
        row, theirs, found = different[0]
        raise DataError(
            f"{len(different)} of {len(rows)} rows looked at are not the tokens of the catalogue's "
            f"entities: row {row} begins {theirs}, {catalogue[row].title!r} gives {found}; "
            "check that catalogue, matrix and tokenizer belong together",
            matrix.path,
        )
    return f"{len(rows) - len(different)} of {len(rows)} rows looked at have the same token ids"


def embedding_error(
    model: original.OriginalModel, matrix: StoredTensor, catalogue: Catalogue, tokenizer: Tokenizer
) -> float:
    """How far a few rows of a matrix are from what the entity encoder gives for them.

    Returns:
      the median of |row - ours| / |ours| over four evenly spaced rows: about 1e-6 where this
      encoder made the matrix from this catalogue, about 1 where not.
    """
    rows = _sample(len(catalogue), 4)
    encoder = CatalogueEncoder(
        Model(model.config, model.params, tokenizer),
        batch_size=len(rows),
        devices=jax.local_devices()[:1],
    )
    ours = encoder.encode(catalogue.titles(rows), catalogue.texts(rows))
    theirs = np.concatenate([matrix.rows(row, row + 1) for row in rows]).astype(np.float32)
    return float(np.median(np.linalg.norm(theirs - ours, axis=1) / np.linalg.norm(ours, axis=1)))


def _encoder_fingerprint(
    model: original.OriginalModel,
    matrix: StoredTensor,
    catalogue: Catalogue,
    tokenizer: Tokenizer,
) -> str:
    """Of the entity encoder, if it made the matrix; "" and a warning if not."""
    error = embedding_error(model, matrix, catalogue, tokenizer)
    if error < 0.02:
        return Model(model.config, model.params, tokenizer).entity_fingerprint
    _say(
        f"warning: {matrix.path}: not the vectors that this entity encoder gives these entities "
        f"(relative difference {error:.2g}); kept as they are, for linking only"
    )
    return ""


def _sample(count: int, size: int) -> np.ndarray:
    return np.linspace(0, count - 1, min(size, count)).astype(np.int64)


def convert_embeddings(
    matrix: StoredTensor,
    folder: str | os.PathLike[str],
    catalogue: Catalogue,
    dtype: str = "float32",
    encoder_fingerprint: str = "",
    progress: Callable[[int], None] | None = None,
) -> Embeddings:
    """Copies a matrix of entity vectors into shards; goes on with those that are missing.

    Less than 1 GiB of memory is used, whatever the size of the matrix.

    Args:
      matrix: [E, D] floats.
      folder: where the shards go.
      catalogue: its E entities.
      dtype: on disk, "float32", "bfloat16" or "int8" (with a scale per row).
      encoder_fingerprint: of the encoder that made the matrix; "" where that is not known.
      progress: called with the number of entities done, first with those found on disk.

    Raises:
      ElqError: a row holds NaN or infinity, or the folder holds other embeddings.
    """
    rows, width = matrix.shape
    writer = EmbeddingsWriter(
        folder,
        rows,
        width,
        dtype,
        max(1, _SHARD_BYTES // (4 * width)),
        catalogue.fingerprint,
        encoder_fingerprint,
    )
    missing = writer.missing_shards()
    sizes = [stop - start for start, stop in map(writer.shard_range, range(writer.num_shards))]
    if progress:
        progress(rows - sum(sizes[shard] for shard in missing))
    for shard in missing:
        writer.write_shard(shard, matrix.rows(*writer.shard_range(shard)))
        if progress:
            progress(sizes[shard])
    return writer.finish()
