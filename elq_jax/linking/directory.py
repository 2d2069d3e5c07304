"""Writes, copies and verifies a linker directory, the folder that holds a whole linker.

config.json        what the model computes (`ElqConfig`), the fingerprint of its entity encoder,
                   and how it links
model.safetensors  parameters, named by their path ("question/bert/layers_0/query/kernel")
tokenizer.json     the fast tokenizer
catalogue.arrow    titles, texts, ids, Wikidata ids, aliases
embeddings/        entity vectors in shards
index/             a saved ScaNN index, if one was built
candidates.json    weights that rescore the candidates of mentions, if they were fitted
names/             names of the entities, which the rescoring needs
confidence.json    weights that say how probably a link is right, if they were fitted
words/             words of the catalogue, by which spelling is corrected, if it is
catalogue.json     list of the catalogue's segments, if entities were added or removed
segments/          these segments, see `entities.segments`
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from elq_jax.core.errors import DataError, ElqError
from elq_jax.entities import name_index, word_index
from elq_jax.entities.catalogue import Catalogue
from elq_jax.entities.embeddings import Embeddings, EmbeddingsWriter, checked_shards
from elq_jax.entities.name_index import NameIndex
from elq_jax.entities.segments import FIRST, Segments, open_segment, open_segments, read_list
from elq_jax.entities.word_index import WordIndex
from elq_jax.linking.candidates import CandidateScorer, CandidateWeights
from elq_jax.linking.confidence import LinkScorer, LinkWeights
from elq_jax.linking.knowledge import Knowledge, open_knowledge
from elq_jax.linking.settings import LinkingSettings
from elq_jax.model import bundle
from elq_jax.model.bundle import Model
from elq_jax.retrieval.base import Index, check_files, read_description
from elq_jax.storage import layout
from elq_jax.storage.files import atomic_folder, link_or_copy


def write_linker(
    folder: str | os.PathLike[str],
    model: Model,
    linking: Mapping[str, Any],
    catalogue: str | os.PathLike[str],
    embeddings: str | os.PathLike[str] | Embeddings | np.ndarray | None,
    index: Index | None = None,
    candidate_scorer: CandidateScorer | None = None,
    link_scorer: LinkScorer | None = None,
    words: WordIndex | None = None,
    segments: Segments | None = None,
) -> None:
    """Writes a linker directory, which appears under its name when it is complete.

    Args:
      folder: path of the directory; an older linker directory there is replaced.
      model: model with both encoders. Without the parameters of the entity encoder, its fingerprint
        is recorded.
      linking: defaults of `EntityLinker` (threshold and so on).
      catalogue: path of a catalogue.arrow.
      embeddings: folder of its entity vectors, or the vectors themselves [E, D]. Files are
        hard-linked where the file system can.
      index: index over the embeddings, whose files are written too if it has any.
      candidate_scorer: what rescores the candidates of mentions; its weights and names are written.
      link_scorer: what says how probably a link is right; its weights are written.
      words: words of the catalogue, which are written too.
      segments: segments whose first one all of these parts are of; the others are written too.

    Raises:
      ElqError: `folder` holds something else, or there are no embeddings.
    """
    if embeddings is None:
        raise ElqError(
            "embeddings: this linker was put together without them; give EntityLinker those "
            "that its index was built over"
        )
    if isinstance(embeddings, Embeddings):
        embeddings = embeddings.folder
    with _replacing(folder) as temporary:
        model.save(temporary, linking)
        link_or_copy(catalogue, temporary / layout.CATALOGUE)
        if isinstance(embeddings, np.ndarray):
            _write_embeddings(temporary, model, embeddings)
        else:
            link_or_copy(embeddings, temporary / layout.EMBEDDINGS)
        if index is not None and index.has_files:
            index.save(temporary / layout.INDEX)
        if candidate_scorer is not None:
            candidate_scorer.weights.write(temporary / layout.CANDIDATES)
            _link_or_save(candidate_scorer.names, temporary / layout.NAMES)
        if link_scorer is not None:
            link_scorer.weights.write(temporary / layout.CONFIDENCE)
        if words is not None:
            _link_or_save(words, temporary / layout.WORDS)
        if segments is not None and not segments.are_plain:
            segments.copy_others(temporary)


def _link_or_save(index: NameIndex | WordIndex, folder: pathlib.Path) -> None:
    if index.folder is not None:
        link_or_copy(index.folder, folder)
    else:
        index.save(folder)


def _write_embeddings(folder: pathlib.Path, model: Model, vectors: np.ndarray) -> None:
    """Writes entity vectors [E, D] into `folder`, for the catalogue there."""
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
    description = dataclasses.replace(bundle.read_description(source), linking=linking)
    if source.resolve() in pathlib.Path(folder).resolve().parents:
        raise ElqError(f"{folder}: lies inside the directory that is copied; give another folder")
    if pathlib.Path(folder).exists() and source.samefile(folder):
        description.write(source)
        return
    with _replacing(folder) as temporary:
        link_or_copy(source, temporary)
        (temporary / layout.CONFIG).unlink()
        description.write(temporary)


def _replacing(folder: str | os.PathLike[str]) -> contextlib.AbstractContextManager[pathlib.Path]:
    """Yields a temporary folder that takes the place of `folder` when the block succeeds."""
    return atomic_folder(folder, "a linker directory", bundle.is_linker_directory)


def open_parts(
    folder: pathlib.Path,
    index: str,
    devices: Sequence[jax.Device],
    settings: Mapping[str, Any],
    dtype: str = "auto",
) -> tuple[Model, LinkingSettings, LinkScorer | None, Knowledge]:
    """Opens the parts of a linker directory.

    Args:
      folder: linker directory.
      index: name of the index, or "auto", see `open_index`.
      devices: devices that may search.
      settings: changes to the directory's `LinkingSettings`.
      dtype: type of matrix products, see `devices.compute_dtype`.

    Returns:
      model (its question encoder), settings, what says how probably a link is right, and what is
      known of the entities.

    Raises:
      ElqError: a part is missing or broken, or the parts do not belong together.
    """
    description = bundle.read_description(folder)
    linking = read_linking(folder, description.linking)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        # Most of the time goes into the checksums of the two largest parts.
        model = pool.submit(Model.open, folder, ("question",))
        known = open_knowledge(folder, index, devices, dtype, description.entity_encoder)
        settings = linking.replace(**settings)
        return model.result(), settings, open_link_scorer(folder), known


def open_link_scorer(folder: pathlib.Path) -> LinkScorer | None:
    """Opens what says how probably a link is right; None where a linker has no such file.

    Raises:
      DataError: the file is damaged.
    """
    path = folder / layout.CONFIDENCE
    return LinkScorer(LinkWeights.read(path)) if path.exists() else None


def read_linking(folder: str | os.PathLike[str], linking: Mapping[str, Any]) -> LinkingSettings:
    """Reads the settings of linking in config.json of a linker directory.

    Raises:
      DataError: there is no such setting, or its value is out of range.
    """
    try:
        return LinkingSettings.from_dict(linking)
    except ElqError as error:
        raise DataError(f'"linking": {error}', pathlib.Path(folder) / layout.CONFIG) from error


def verify(folder: str | os.PathLike[str]) -> dict[str, str]:
    """Reads everything in a linker directory, or in a folder of encode_entities, and checks it.

    Returns:
      a line about each part, by its name; parts that older versions wrote have no checksums.

    Raises:
      ElqError: a part is damaged or does not fit the others, or the folder has no parts.
    """
    folder = pathlib.Path(folder)
    listed = read_list(folder)
    names = [entry.folder for entry in listed.segments] if listed else [FIRST]
    present = _names_in(folder)
    _check_that_parts_belong_together(folder, folder / names[0])
    findings: dict[str, str] = {}
    encoder = None
    if layout.CONFIG in present:
        description = bundle.read_description(folder)
        read_linking(folder, description.linking)
        agree = description.check_files(folder)
        Model.open(folder)
        encoder = description.entity_encoder
        parts = f"{layout.PARAMETERS}, {layout.TOKENIZER}"
        findings[parts] = "checksums agree" if agree else "can be read, no checksums"
    for name in names:
        of_segment = _verify_segment(folder / name, encoder)
        findings |= {os.path.normpath(f"{name}/{part}"): of_segment[part] for part in of_segment}
    if listed:
        deleted = open_segments(folder, encoder=encoder).deleted
        findings[layout.SEGMENT_LIST] = f"segments: {len(names)}, deleted rows: {len(deleted):,}"
    if layout.CANDIDATES in present:
        weights = CandidateWeights.read(folder / layout.CANDIDATES)
        findings[layout.CANDIDATES] = f"{len(weights.weights)} weights, can be read"
    if layout.CONFIDENCE in present:
        LinkWeights.read(folder / layout.CONFIDENCE)
        findings[layout.CONFIDENCE] = "can be read"
    if not findings:
        raise ElqError(
            f"{folder}: nothing to verify; expected a linker directory, or a folder that "
            "encode_entities wrote"
        )
    return findings


def _verify_segment(folder: pathlib.Path, encoder: str | None) -> dict[str, str]:
    """Checks the parts of a segment's folder; returns a line about each, by its name."""
    findings: dict[str, str] = {}
    present, fingerprint = _names_in(folder), None
    if layout.CATALOGUE in present:
        catalogue = Catalogue.open(folder / layout.CATALOGUE)
        has_checksum = catalogue.check_bytes()
        catalogue.check_fingerprint()
        fingerprint = catalogue.fingerprint
        agree = "checksum and fingerprint agree" if has_checksum else "fingerprint agrees"
        findings[layout.CATALOGUE] = f"{len(catalogue):,} entities, {agree}"
    if layout.EMBEDDINGS in present:
        if fingerprint and encoder:
            open_segment(folder, FIRST, encoder)
        embeddings = Embeddings.open(folder / layout.EMBEDDINGS, fingerprint)
        findings[layout.EMBEDDINGS] = _verify_embeddings(embeddings)
    if layout.INDEX in present:
        check_files(folder / layout.INDEX, read_description(folder / layout.INDEX))
        findings[layout.INDEX] = "checksums agree"
    if layout.NAMES in present:
        names = NameIndex.open(folder / layout.NAMES, fingerprint)
        name_index.FILES.check(folder / layout.NAMES)
        findings[layout.NAMES] = f"names of {len(names):,} entities, checksums agree"
    if layout.WORDS in present:
        words = WordIndex.open(folder / layout.WORDS, fingerprint)
        word_index.FILES.check(folder / layout.WORDS)
        findings[layout.WORDS] = f"{len(words):,} words, checksums agree"
    return findings


def _names_in(folder: pathlib.Path) -> set[str]:
    """Lists the names in a folder, broken symbolic links too."""
    return set(os.listdir(folder)) if folder.is_dir() else set()


def _check_that_parts_belong_together(folder: pathlib.Path, first: pathlib.Path) -> None:
    """Raises an ElqError if a part is there, but not the part that it belongs to.

    Args:
      folder: linker directory.
      first: folder of its first segment.
    """
    for part, needed in (
        (folder / layout.PARAMETERS, folder / layout.CONFIG),
        (first / layout.EMBEDDINGS, first / layout.CATALOGUE),
        (first / layout.INDEX, first / layout.EMBEDDINGS),
        (first / layout.NAMES, first / layout.CATALOGUE),
        (folder / layout.CANDIDATES, first / layout.NAMES),
        (folder / layout.CONFIDENCE, folder / layout.CANDIDATES),
        (first / layout.WORDS, first / layout.CATALOGUE),
    ):
        if os.path.lexists(part) and not os.path.lexists(needed):
            raise ElqError(f"{needed}: missing, but {part.name} needs it; copy the folder again")


def _verify_embeddings(embeddings: Embeddings) -> str:
    without = embeddings.check_digests()
    checked_shards(embeddings)
    rows, width = embeddings.shape
    shards = len(embeddings.shards)
    agree = f"no checksums for {len(without)} of {shards} shards" if without else "checksums agree"
    return f"{rows:,} x {width} {embeddings.dtype}, {agree}"


def check_parts(
    model: Model,
    known: Knowledge,
    settings: LinkingSettings,
    link_scorer: LinkScorer | None = None,
) -> None:
    """Raises an ElqError unless the parts of a linker fit together."""
    config, tokenizer = model.config, model.tokenizer
    catalogue, candidate_scorer, words = known.catalogue, known.candidate_scorer, known.words
    rows, width = known.index.shape
    if rows != len(catalogue):
        raise ElqError(
            f"the index has {rows:,} rows, the catalogue {len(catalogue):,}; "
            "encode this catalogue again"
        )
    if candidate_scorer is not None:
        expected = candidate_scorer.names.catalogue_fingerprint
        if catalogue.fingerprint != expected:
            raise ElqError(
                f"candidate_scorer: names of another catalogue (fingerprint {expected}, expected "
                f"{catalogue.fingerprint}); make it with NameIndex.build(catalogue)"
            )
    if words is not None and catalogue.fingerprint != words.catalogue_fingerprint:
        raise ElqError(
            f"words: of another catalogue (fingerprint {words.catalogue_fingerprint}, expected "
            f"{catalogue.fingerprint}); make them with WordIndex.build(catalogue)"
        )
    if width != config.vector_width:
        raise ElqError(
            f"the index has vectors of width {width}, the model of {config.vector_width}; "
            "encode the catalogue with this model's entity encoder"
        )
    if tokenizer.vocab_size > config.question_bert.vocab_size:
        raise ElqError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens, the question encoder "
            f"{config.question_bert.vocab_size:,}; give the tokenizer it was trained with"
        )
    settings.question_tokens(config)
    check_confidence(settings, link_scorer)


def check_confidence(settings: LinkingSettings, link_scorer: LinkScorer | None) -> None:
    """Raises an ElqError if settings ask for probabilities that a linker cannot give."""
    decoder = settings.decoding
    if not decoder.needs_confidence:
        return
    if link_scorer is None:
        raise ElqError(
            f"decoder: {settings.decoder!r} needs probabilities, and this linker has no "
            f"{layout.CONFIDENCE}, which train writes; give decoder='joint'"
        )
    if decoder.nil and link_scorer.weights.nil is None:
        raise ElqError(
            "nil: this linker cannot tell mentions of something outside the catalogue, since none "
            "was among the questions that its probabilities were fitted on; leave nil out"
        )
