"""Opens what a linker knows of its entities: catalogue, vectors, index, names and words.

The first segment has files for all of these. What the other segments need besides their catalogue
and vectors is made when they are opened, since they are small.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from elq_jax.entities.catalogue import Catalogue
from elq_jax.entities.embeddings import Embeddings
from elq_jax.entities.name_index import JoinedNames, NameIndex
from elq_jax.entities.segments import Segment, Segments, open_segments, opened_again
from elq_jax.entities.word_index import WordIndex
from elq_jax.linking.candidates import CandidateScorer, CandidateWeights
from elq_jax.retrieval import open_index
from elq_jax.retrieval.base import Index
from elq_jax.retrieval.segments import SegmentedIndex
from elq_jax.storage import layout


@dataclass(frozen=True, eq=False)
class Knowledge:
    """Holds what a linker knows of its entities; a change of the catalogue makes another one.

    Attributes:
      catalogue: catalogue of entities.
      index: index that is searched.
      embeddings: [E, D] vectors that the index was built over; None if they were not given.
      candidate_scorer: what rescores the candidates of mentions; None: nothing does.
      words: words by which spelling is corrected; None: it is not.
      segments: segments of the catalogue; None of a linker that was made in memory.
      first: what is opened of the first segment.
      others: what is made of the other segments, in their order.
    """

    catalogue: Catalogue
    index: Index
    embeddings: Embeddings | np.ndarray | None = None
    candidate_scorer: CandidateScorer | None = None
    words: WordIndex | None = None
    segments: Segments | None = None
    first: First | None = None
    others: tuple[Other, ...] = ()

    def of_first_segment(self) -> Knowledge:
        """Returns what is known of the entities of the first segment, deleted ones too."""
        if self.first is None or self.segments is None or self.segments.are_plain:
            return self
        first, part = self.first, self.first.segment
        scorer = first.weights and CandidateScorer(first.weights, first.names, part.embeddings)
        return Knowledge(part.catalogue, first.index, part.embeddings, scorer, first.words)


@dataclass(frozen=True, eq=False)
class First:
    """Holds what is opened of the first segment.

    Attributes:
      segment: segment.
      index: index over it.
      weights: weights that rescore candidates; None: the linker has none.
      names: names of its entities, if there are weights.
      words: words of its entities; None: spelling is not corrected.
    """

    segment: Segment
    index: Index
    weights: CandidateWeights | None
    names: NameIndex | None
    words: WordIndex | None


@dataclass(frozen=True, eq=False)
class Other:
    """Makes what is needed of a segment that is not the first, once."""

    segment: Segment

    @functools.cached_property
    def vectors(self) -> np.ndarray:
        """Returns its vectors, [n, D] float32; they are not copied from a file that has these."""
        blocks = [block for _, block in self.segment.embeddings.blocks()]
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    @functools.cached_property
    def names(self) -> NameIndex:
        """Returns the names of its entities."""
        return NameIndex.build(self.segment.catalogue)

    @functools.cached_property
    def words(self) -> WordIndex:
        """Returns the words of its entities."""
        return WordIndex.build(self.segment.catalogue)


def open_knowledge(
    folder: pathlib.Path,
    index: str,
    devices: Sequence[jax.Device],
    dtype: str,
    encoder: str,
    before: Knowledge | None = None,
) -> Knowledge:
    """Opens the entities of a linker directory.

    Args:
      folder: linker directory.
      index: name of the index over the first segment, or "auto", see `open_index`.
      devices: devices that may search.
      dtype: type of matrix products, see `devices.compute_dtype`.
      encoder: fingerprint of the directory's entity encoder; "" if it is not known.
      before: what is open already, and is used again where it did not change.

    Raises:
      ElqError: a part is missing or damaged, or the parts do not belong together.
    """
    arguments = folder, index, devices, dtype, encoder, before
    return opened_again(folder, lambda: _open(*arguments))


def _open(
    folder: pathlib.Path,
    index: str,
    devices: Sequence[jax.Device],
    dtype: str,
    encoder: str,
    before: Knowledge | None,
) -> Knowledge:
    known = before.segments.parts if before and before.segments else ()
    segments = open_segments(folder, known, encoder)
    part = segments.parts[0]
    if before and before.first and before.first.segment is part:
        first = before.first
    else:
        opened = open_index(part.folder / layout.INDEX, part.embeddings, index, devices, dtype)
        if before and before.first:  # so that its programs are shared as before
            opened.least_k = before.first.index.least_k
        first = _open_first(folder, part, opened)
    made = {other.segment: other for other in (before.others if before else ())}
    others = tuple(made.get(part) or Other(part) for part in segments.parts[1:])
    return _known(segments, first, others)


def _open_first(folder: pathlib.Path, part: Segment, index: Index) -> First:
    fingerprint, path = part.catalogue.fingerprint, folder / layout.CANDIDATES
    weights = CandidateWeights.read(path) if path.exists() else None
    names = NameIndex.open(part.folder / layout.NAMES, fingerprint) if weights else None
    words = part.folder / layout.WORDS
    return First(
        part, index, weights, names, WordIndex.open(words, fingerprint) if words.exists() else None
    )


def _known(segments: Segments, first: First, others: tuple[Other, ...]) -> Knowledge:
    catalogue, embeddings = segments.catalogue, segments.embeddings
    index, names, words = first.index, first.names, first.words
    if not segments.are_plain:
        fingerprint, deleted = catalogue.fingerprint, catalogue.deleted
        index = SegmentedIndex(index, [other.vectors for other in others], deleted)
        if names is not None:
            parts = [names, *(other.names for other in others)]
            names = JoinedNames(parts, fingerprint, deleted)
        if words is not None:
            words = words.joined([other.words for other in others], fingerprint)
    scorer = CandidateScorer(first.weights, names, embeddings) if first.weights else None
    return Knowledge(catalogue, index, embeddings, scorer, words, segments, first, others)
