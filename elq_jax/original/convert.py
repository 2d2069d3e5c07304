"""Converts files of the original ELQ to a linker directory.

The files may be far larger than memory: the matrix of entity vectors is copied in parts, and the
tensors of a model are memory-mapped.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Mapping

import jax
import numpy as np

from elq_jax.core.errors import DataError, ElqError
from elq_jax.core.settings import fields_of
from elq_jax.entities.build import open_or_build_catalogue, source_note
from elq_jax.entities.catalogue import Catalogue
from elq_jax.entities.embeddings import Embeddings, EmbeddingsWriter
from elq_jax.entities.encode import CatalogueEncoder
from elq_jax.entities.wikidata import fill_wikidata_ids
from elq_jax.linking.settings import LinkingSettings
from elq_jax.model.bundle import Model
from elq_jax.original import checkpoint as original
from elq_jax.original.conversion import Conversion
from elq_jax.original.presets import with_preset
from elq_jax.original.torch_files import StoredTensor, open_torch_file
from elq_jax.retrieval.base import INDEXES
from elq_jax.storage import layout
from elq_jax.storage.files import check_not_a_pointer, user_path
from elq_jax.storage.progress import progress
from elq_jax.storage.resume import resumable_folder, stamp
from elq_jax.text.tokenization import Tokenizer

# Settings with which a linker gives the original's answers.
ORIGINAL_LINKING = {"decoder": "elq_jax.original.decoding:original"}

_FILES = (
    *("checkpoint", "params", "entity_checkpoint", "bert_config", "entity_bert_config"),
    *("catalogue", "wikidata_ids", "embeddings", "token_ids"),
)
_SHARD_BYTES = 1 << 27  # of float32; converting takes about five times as much memory


def convert(conversion: Conversion) -> pathlib.Path:
    """Writes a linker directory that gives the original's answers.

    Remarks about the files, and progress, go to stderr. If a call is interrupted or the disk is
    full, the same call resumes the work; after any other error nothing is left behind.

    Args:
      conversion: files of the original, and settings.

    Returns:
      path of the linker directory.

    Raises:
      ElqError: a file is missing, damaged or of another kind, or does not fit the others.
    """
    conversion.check()
    index = INDEXES.get(conversion.index)
    files = {
        name: _existing(user_path(path))
        for name in _FILES
        if (path := getattr(conversion, name)) is not None
    }
    output = user_path(conversion.output)
    # Whatever the headers of the files show is checked before anything is written.
    model = original.load_model(
        *(files.get(name) for name in ("checkpoint", "params", "entity_checkpoint")),
        *(files.get(name) for name in ("bert_config", "entity_bert_config")),
    )
    linking = _linking_settings(conversion, model)
    tokenizer = Tokenizer.from_pretrained(conversion.tokenizer)
    original.check_tokenizer(tokenizer, model, os.fspath(conversion.tokenizer))
    matrices = {
        name: open_matrix(files[name], kind, width)
        for name, kind, width in (
            ("embeddings", "f", model.config.vector_width),
            ("token_ids", "i", None),
        )
        if name in files
    }
    _warn(model, conversion)
    # The matrix may have tens of gigabytes, so files are compared by time and size, not by content.
    inputs = {
        name: {"path": str(path.resolve()), "stamp": stamp(path)} for name, path in files.items()
    }
    inputs |= {"storage_dtype": conversion.storage_dtype, "tokenizer": tokenizer.fingerprint}
    records = [source_note(pathlib.Path(layout.CATALOGUE)).name]
    with resumable_folder(output, inputs, records) as folder:
        if not index.has_files:  # An interrupted call with another --index may have left one.
            shutil.rmtree(folder / layout.INDEX, ignore_errors=True)
        original.save_model(folder, model, tokenizer, linking.to_dict())
        if "catalogue" in files:
            catalogue = _write_catalogue(files, matrices, tokenizer, folder / layout.CATALOGUE)
            if "embeddings" in matrices:
                embeddings = _write_vectors(
                    conversion, matrices["embeddings"], model, catalogue, folder
                )
                if index.has_files:
                    settings = {"reorder_dtype": conversion.storage_dtype}
                    settings = {n: settings[n] for n in fields_of(index.Settings) if n in settings}
                    built = index.build(embeddings, index.Settings(**settings))
                    built.save(folder / layout.INDEX)
    return output


def _linking_settings(conversion: Conversion, model: original.OriginalModel) -> LinkingSettings:
    """Returns the preset's settings; ElqError if the encoder has too few positions for them."""
    settings = {"max_question_tokens": conversion.max_question_tokens} | ORIGINAL_LINKING
    linking = LinkingSettings.from_dict(with_preset(conversion.preset, settings))
    longest = model.config.question_bert.max_positions
    if (linking.max_question_tokens or 0) > longest:
        raise ElqError(
            f"max_question_tokens: {linking.max_question_tokens}; expected 3 to {longest} (the "
            "number of positions of the question encoder)"
        )
    return linking


def _warn(model: original.OriginalModel, conversion: Conversion) -> None:
    """Prints what the files of a model lack."""
    if model.untrained:
        _say(
            f"warning: {conversion.entity_checkpoint}: has no mention head, so the head starts "
            "with random numbers; train the linker before you use it, since the mentions it finds "
            "now are meaningless"
        )
    if not model.has_poolers:
        _say(
            f"{conversion.checkpoint or conversion.entity_checkpoint}: has no poolers, which the "
            "original loads but never uses; --to_torch will write zeros for them"
        )


def _write_catalogue(
    files: Mapping[str, pathlib.Path],
    matrices: Mapping[str, StoredTensor],
    tokenizer: Tokenizer,
    path: pathlib.Path,
) -> Catalogue:
    """Builds the catalogue, fills in ids, and checks that the matrices belong to its entities."""
    catalogue = open_or_build_catalogue(files["catalogue"], path)
    if "wikidata_ids" in files:
        missing = fill_wikidata_ids(path, files["wikidata_ids"])
        _say(f"{path.name}: {missing:,} of {len(catalogue):,} entities have no Wikidata id")
        catalogue = Catalogue.open(path)
    for matrix in matrices.values():
        if matrix.shape[0] != len(catalogue):
            raise DataError(
                f"has {matrix.shape[0]:,} rows, but {files['catalogue']} has {len(catalogue):,} "
                "entities; give the two files that belong together",
                matrix.path,
            )
    if "token_ids" in matrices:
        summary = check_token_ids(matrices["token_ids"], catalogue, tokenizer)
        _say(f"{files['token_ids']}: {summary}")
    return catalogue


def _write_vectors(
    conversion: Conversion,
    matrix: StoredTensor,
    model: original.OriginalModel,
    catalogue: Catalogue,
    folder: pathlib.Path,
) -> Embeddings:
    """Copies the entity vectors into the linker directory, with progress on stderr."""
    tokenizer = Tokenizer.from_pretrained(folder)
    fingerprint = _encoder_fingerprint(model, matrix, catalogue, tokenizer)
    with progress("embeddings", len(catalogue), "entities") as advance:
        embeddings = convert_embeddings(
            matrix,
            folder / layout.EMBEDDINGS,
            catalogue,
            conversion.storage_dtype,
            fingerprint,
            advance,
        )
    return embeddings


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def _existing(path: pathlib.Path) -> pathlib.Path:
    if not path.is_file():
        raise ElqError(f"{path}: no such file; check the path")
    check_not_a_pointer(path)
    return path


def open_matrix(path: str | os.PathLike[str], kind: str, width: int | None = None) -> StoredTensor:
    """Opens a matrix [E, ...] saved by torch.

    Args:
      path: path of the file.
      kind: type of the numbers, "f" (floats: all_entities_large.t7) or "i" (integers:
        entity_token_ids_128.t7).
      width: number of columns to expect; None: any.

    Raises:
      ElqError: there is no such file.
      DataError: the file is damaged or holds something else.
    """
    matrix = open_torch_file(path)
    names = {"f": "float", "i": "integer"}
    expected = f"a {names[kind]} matrix [entities, {width or 'tokens'}]; check which file it is"
    if not isinstance(matrix, StoredTensor):
        content = "state dict" if isinstance(matrix, dict) else type(matrix).__name__
        raise DataError(f"holds a {content}; expected {expected}", path)
    kinds = "fV" if kind == "f" else kind  # NumPy calls the kind of bfloat16 "V".
    if matrix.dtype.kind not in kinds or len(matrix.shape) != 2:
        raise DataError(f"holds {matrix.dtype} {list(matrix.shape)}; expected {expected}", path)
    if width and matrix.shape[1] != width:
        raise DataError(
            f"holds vectors of width {matrix.shape[1]}; expected {width}, the width of the model's "
            "entity vectors; give the vectors that this model made",
            path,
        )
    return matrix


def check_token_ids(
    matrix: StoredTensor, catalogue: Catalogue, tokenizer: Tokenizer, sample: int = 1000
) -> str:
    """Compares the original's token ids of entities with ours, on evenly spaced rows.

    Args:
      matrix: [E, T] integers, the original's token ids, padded with 0.
      catalogue: catalogue of E entities.
      tokenizer: tokenizer of the model.
      sample: largest number of rows to compare.

    Returns:
      number of equal rows, in words.

    Raises:
      DataError: more than one row in ten differs, so the catalogue or the tokenizer is the wrong
        one.
    """
    rows = _sample(len(catalogue), sample)
    encoded = tokenizer.encode_entities(
        catalogue.titles(rows), catalogue.texts(rows), matrix.shape[1]
    )
    different = []
    for row, ours in zip(rows.tolist(), encoded, strict=True):
        theirs = matrix.rows(row, row + 1)[0]
        theirs = theirs[: np.flatnonzero(theirs)[-1] + 1] if theirs.any() else theirs[:0]
        if ours.tolist() != theirs.tolist():
            different.append((row, theirs[:12].tolist(), ours[:12].tolist()))
    if len(different) > 0.1 * len(rows):
        row, theirs, ours = different[0]
        raise DataError(
            f"{len(different)} of {len(rows)} compared rows are not the token ids of the "
            f"catalogue's entities: row {row} begins with {theirs}, but {catalogue[row].title!r} "
            f"gives {ours}; check that catalogue, matrix and tokenizer belong together",
            matrix.path,
        )
    return f"{len(rows) - len(different)} of {len(rows)} compared rows have the same token ids"


def embedding_error(
    model: original.OriginalModel, matrix: StoredTensor, catalogue: Catalogue, tokenizer: Tokenizer
) -> float:
    """Measures how much a matrix of entity vectors differs from those of the entity encoder.

    Returns:
      median of |row - ours| / |ours| over four evenly spaced rows: about 1e-6 if this encoder made
      the matrix from this catalogue, about 1 if not.
    """
    rows = _sample(len(catalogue), 4)
    encoder = CatalogueEncoder(
        Model(model.config, model.params, tokenizer),
        batch_size=len(rows),
        dtype="float32",
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
    """Returns the entity encoder's fingerprint; "" and a warning if it did not make the matrix."""
    error = embedding_error(model, matrix, catalogue, tokenizer)
    if error < 0.02:
        return Model(model.config, model.params, tokenizer).entity_fingerprint
    _say(
        f"warning: {matrix.path}: the entity encoder gives the catalogue's entities other vectors "
        f"(relative difference {error:.2g}); the vectors are kept as they are, for linking only"
    )
    return ""


def _sample(count: int, size: int) -> np.ndarray:
    return np.linspace(0, count - 1, min(size, count)).astype(np.int64)


def convert_embeddings(
    matrix: StoredTensor,
    folder: str | os.PathLike[str],
    catalogue: Catalogue,
    storage_dtype: str = "float32",
    encoder_fingerprint: str = "",
    progress: Callable[[int], None] | None = None,
) -> Embeddings:
    """Copies a matrix of entity vectors into shards; resumes with the shards that are missing.

    The copy uses less than 1 GiB of memory, whatever the size of the matrix.

    Args:
      matrix: [E, D] floats.
      folder: folder of the shards.
      catalogue: E entities that the rows belong to.
      storage_dtype: type on disk, "float32", "bfloat16" or "int8" (with a scale per row).
      encoder_fingerprint: fingerprint of the encoder that made the matrix; "" if it is not known.
      progress: function that is called with the number of entities just done; the first call is for
        those already on disk.

    Returns:
      embeddings [E, D], memory-mapped.

    Raises:
      ElqError: a row holds NaN or infinity, or the folder holds other embeddings.
    """
    rows, width = matrix.shape
    writer = EmbeddingsWriter(
        folder,
        rows,
        width,
        storage_dtype,
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
