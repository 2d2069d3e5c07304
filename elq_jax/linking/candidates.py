"""Rescores the candidates of mentions by what the catalogue knows of their names.

The search finds the entities whose vectors are near a mention's. Here they are joined by those that
have the mention as a name, and all of them get a score that is linear in a few features: the inner
product, and how the mention agrees with the entity's names. Its softmax over the C best is
p(entity | mention). Everything is computed for all mentions at once, from arrays of hashes.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec
import numpy as np
import pyarrow as pa

from elq_jax.core.errors import DataError, ElqError
from elq_jax.core.strings import made_whole
from elq_jax.entities.embeddings import Embeddings
from elq_jax.entities.name_index import KINDS, Named, NameIndex, words_of
from elq_jax.linking.links import ScoredSpans
from elq_jax.storage.checksums import read_json
from elq_jax.storage.files import write_json
from elq_jax.text.corrections import corrected

FORMAT_VERSION = 1

FEATURES = {
    "product": "inner product less the highest of the mention's candidates",
    "named_product": "product, of an entity that has the mention as a name",
    "title": "whether the mention is the title",
    "name": "whether the mention is the title without its qualifier in parentheses",
    "alias": "whether the mention is an alias",
    "namesakes": "log of the number of equal names in the catalogue, if the mention is a name",
    "jaccard": "share of the words of mention and title that both have",
    "mention_in_title": "whether all words of the mention are in the title",
    "title_in_mention": "whether all words of the title are in the mention",
    "qualified": "whether the title has a qualifier in parentheses",
    "aliases": "log of 1 + the number of aliases",
}
"""Features of a mention and a candidate, with what they say. Titles are without qualifiers, and
words and names are compared as `normal_names` writes them."""


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
    """Candidates of n mentions, one row for each: p in all.

    Attributes:
      mentions: [p] int64, number of the mention, ascending; the candidates of the search come
        first, in their order.
      rows: [p] int64, row of the entity.
      products: [p] float64, inner product of mention and entity.
      features: [p, F] float64, in the order of `FEATURES`.
    """

    mentions: np.ndarray
    rows: np.ndarray
    products: np.ndarray
    features: np.ndarray


class CandidateWeights(msgspec.Struct, frozen=True, kw_only=True):
    """The file candidates.json of a linker directory.

    Attributes:
      format_version: version of the file, `FORMAT_VERSION`.
      weights: weight of each feature; a feature that is not named has the weight 0.
      fitted_on: number of mentions that the weights were fitted on.
    """

    format_version: Annotated[int, msgspec.Meta(ge=FORMAT_VERSION, le=FORMAT_VERSION)] = (
        FORMAT_VERSION
    )
    weights: dict[str, float]
    fitted_on: int = 0

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> CandidateWeights:
        """Reads candidates.json.

        Raises:
          DataError: the file is damaged, of another version, or names features that there are not.
        """
        again = "copy the linker directory again"
        weights = read_json(path, cls, again)
        for name, weight in weights.weights.items():
            if name not in FEATURES or not np.isfinite(weight):
                raise DataError(
                    f'"weights": {name!r} is {weight}, expected finite weights of '
                    f"{', '.join(FEATURES)}; {again}",
                    pathlib.Path(path),
                )
        return weights

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes candidates.json."""
        write_json(path, msgspec.to_builtins(self))

    @property
    def vector(self) -> np.ndarray:
        """Returns the weights [F] float64 in the order of `FEATURES`."""
        return np.array([self.weights.get(name, 0.0) for name in FEATURES])


class CandidateScorer:
    """Adds the entities that have a mention as a name, and scores all candidates.

    Args:
      weights: weights of the features.
      names: names of the E entities.
      vectors: [E, D] vectors of the entities.

    Raises:
      ElqError: names and vectors are not of equally many entities.
    """

    def __init__(
        self, weights: CandidateWeights, names: NameIndex, vectors: Embeddings | np.ndarray
    ):
        if len(names) != len(vectors):
            raise ElqError(
                f"the index of names has {len(names):,} entities, the embeddings {len(vectors):,}; "
                "make both of one catalogue"
            )
        self.weights, self.names, self._vectors = weights, names, vectors

    def __call__(
        self, mentions: Sequence[str], vectors: np.ndarray, products: np.ndarray, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the C best candidates of each mention.

        Args:
          mentions: n texts.
          vectors: [n, D] float32, vectors of the mentions.
          products: [n, C] float32, inner products with the candidates of the search, descending.
          rows: [n, C] int32, their rows; -1 where the search found fewer.

        Returns:
          scores [n, C] float32, descending, whose softmax is p(entity | mention); -inf where there
          are fewer candidates; and rows [n, C] int32, -1 there.
        """
        return self._best(self.candidates(mentions, vectors, products, rows), rows.shape)

    def _best(
        self, candidates: Candidates, shape: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        scores = candidates.features @ self.weights.vector
        return best_candidates(candidates.mentions, candidates.rows, scores, shape)

    def rescored(self, spans: ScoredSpans, vectors: np.ndarray) -> tuple[ScoredSpans, Candidates]:
        """Returns scored spans with the C best candidates of each, and all candidates.

        Args:
          spans: n spans with the candidates of the search.
          vectors: [n, D] float32, vectors of the spans.
        """
        candidates = self.candidates_of(spans, vectors)
        scores, rows = self._best(candidates, spans.rows.shape)
        return dataclasses.replace(spans, scores=scores, rows=rows), candidates

    def candidates_of(self, spans: ScoredSpans, vectors: np.ndarray) -> Candidates:
        """Returns all candidates of scored spans; the arguments are those of `rescored`."""
        return self.candidates(_texts_of(spans), vectors, spans.scores, spans.rows)

    def candidates(
        self, mentions: Sequence[str], vectors: np.ndarray, products: np.ndarray, rows: np.ndarray
    ) -> Candidates:
        """Returns the candidates of the search and those by name; the arguments are as above."""
        named = self.names.find(mentions)
        mention, column = np.nonzero(rows >= 0)
        searched = rows[mention, column].astype(np.int64)
        size = len(self.names)
        is_new = ~np.isin(named.texts * size + named.rows, mention * size + searched)
        owner, row = named.texts[is_new], named.rows[is_new].astype(np.int64)
        new_vectors = self._vectors[row].astype(np.float32, copy=False)
        new = np.einsum("nd,nd->n", vectors[owner], new_vectors)
        owners, all_rows = np.concatenate([mention, owner]), np.concatenate([searched, row])
        all_products = np.concatenate([products[mention, column], new]).astype(np.float64)
        order = np.argsort(owners, kind="stable")
        owners, all_rows, all_products = owners[order], all_rows[order], all_products[order]
        columns = {"product": relative(owners, all_products, len(mentions))}
        columns |= self._name_features(owners, all_rows, named, columns["product"])
        columns |= self._word_features(owners, all_rows, mentions)
        features = np.stack([columns[name] for name in FEATURES], axis=1)
        return Candidates(owners, all_rows, all_products, features.astype(np.float64))

    def _name_features(
        self, mentions: np.ndarray, rows: np.ndarray, named: Named, products: np.ndarray
    ) -> Mapping[str, np.ndarray]:
        """Returns the features of p candidates that follow from whole names."""
        size = len(self.names)
        wanted, known = mentions * size + rows, named.texts * size + named.rows
        _, places, sources = np.intersect1d(wanted, known, assume_unique=True, return_indices=True)
        kind, count = np.full(len(rows), len(KINDS)), np.ones(len(rows))
        kind[places], count[places] = named.kinds[sources], named.counts[sources]
        kinds = {name: kind == number for number, name in enumerate(KINDS)}
        return kinds | {
            "named_product": np.where(kind < len(KINDS), products, 0.0),
            "namesakes": np.log(count),
            "qualified": self.names.are_qualified(rows),
            "aliases": np.log1p(self.names.alias_counts(rows), dtype=np.float64),
        }

    def _word_features(
        self, owners: np.ndarray, rows: np.ndarray, mentions: Sequence[str]
    ) -> Mapping[str, np.ndarray]:
        """Returns the features of p candidates that follow from the words of mention and title."""
        words = words_of(pa.array([made_whole(mention) for mention in mentions], pa.string()))
        titles = self.names.title_words(rows)
        known = words.owners << 16 | words.words
        wanted = owners[titles.owners] << 16 | titles.words
        shared = np.bincount(titles.owners, np.isin(wanted, known), minlength=len(rows))
        in_title = np.bincount(titles.owners, minlength=len(rows))
        in_mention = np.bincount(words.owners, minlength=len(mentions))[owners]
        return {
            "jaccard": shared / np.maximum(in_title + in_mention - shared, 1),
            "mention_in_title": (shared == in_mention) & (in_mention > 0),
            "title_in_mention": (shared == in_title) & (in_title > 0),
        }


def _texts_of(spans: ScoredSpans) -> list[str]:
    """Returns the text of each span, from the first character of its first token to its last's.

    Misspelt words are read as the tokens spell them.
    """
    texts = []
    for number, (start, end) in zip(spans.question.tolist(), spans.bounds.tolist(), strict=True):
        question = spans.encoded[number]
        place = question.offsets[start, 0], question.offsets[end, 1]
        texts.append(corrected(spans.texts[number], question.corrections, *place))
    return texts


def relative(mentions: np.ndarray, scores: np.ndarray, count: int) -> np.ndarray:
    """Returns scores [p] less the highest score of the same mention, each at most 0.

    Args:
      mentions: [p] int, number of the mention of each score.
      scores: [p] float64.
      count: number of mentions.
    """
    best = np.full(count, -np.inf)
    np.maximum.at(best, mentions, scores)
    return scores - best[mentions]


def best_candidates(
    mentions: np.ndarray, rows: np.ndarray, scores: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the C best candidates of n mentions, highest score first; of equals, the first.

    Args:
      mentions: [p] int, number of the mention of each candidate, ascending.
      rows: [p] int, row of the entity.
      scores: [p] float.
      shape: n and C.

    Returns:
      scores [n, C] float32, padded with -inf, and rows [n, C] int32, padded with -1.
    """
    order = np.lexsort((-scores, mentions))
    rank = np.arange(len(order)) - np.searchsorted(mentions, mentions)
    kept = rank < shape[1]
    cells, chosen = (mentions[kept], rank[kept]), order[kept]
    best_scores, best_rows = np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int32)
    best_scores[cells], best_rows[cells] = scores[chosen], rows[chosen]
    return best_scores, best_rows
