"""Runs the question encoder on devices: finds spans and their query vectors."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from elq_jax.core import devices as devices_lib
from elq_jax.core.programs import KeptProgram
from elq_jax.linking.decoding import FIRST, INSIDE, LAST, MEANINGFUL, Decoder
from elq_jax.linking.settings import LinkingSettings
from elq_jax.model import spans
from elq_jax.model.bundle import Model
from elq_jax.model.parameters import cast_frozen
from elq_jax.retrieval.base import Index
from elq_jax.text.padding import (
    EvaluationBatch,
    length_sorted_batches,
    pad_tokens,
)
from elq_jax.text.tokenization import EncodedQuestion

T = TypeVar("T")
BATCHES_IN_FLIGHT = 16  # bounds memory, whatever the number of questions


def chunks(questions: Iterable[T], batch_size: int) -> Iterator[list[T]]:
    """Cuts a stream of questions, or of rows, into chunks that are linked together.

    A chunk is 16 batches, so that questions of similar length are encoded together. With a
    `batch_size` of 1 it is one question, so that each is answered as soon as it is read.
    """
    size = 1 if batch_size == 1 else BATCHES_IN_FLIGHT * batch_size
    questions = iter(questions)
    while chunk := list(itertools.islice(questions, size)):
        yield chunk


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Search:
    """Holds the conditions of the spans to find in each question.

    Attributes:
      roles: arrays, one per question, [T] uint8, see `Decoder.roles`.
      max_mentions: K, largest number of spans found in a question.
      threshold: log p(mention) that a span must exceed.
      keep_any: whether the K best spans are found where none exceeds the threshold.
    """

    roles: Sequence[np.ndarray]
    max_mentions: int
    threshold: float
    keep_any: bool = False

    @classmethod
    def of(
        cls, encoded: Sequence[EncodedQuestion], settings: LinkingSettings, unknown_id: int
    ) -> Search:
        """Returns the conditions that settings of linking put on the spans of questions.

        Args:
          encoded: tokens of the questions.
          settings: settings of linking, with their decoder.
          unknown_id: id of [UNK].
        """
        decoder = settings.decoding
        roles = decoder.roles(encoded, unknown_id)
        ends = np.cumsum([len(question.ids) for question in encoded]).tolist()
        return cls(
            [roles[start:end] for start, end in zip([0, *ends], ends, strict=False)],
            settings.max_mentions,
            decoder.prune_threshold(settings.threshold),
            decoder.keep_any,
        )


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class SpanVectors:
    """Holds the spans of several questions, one row per span.

    Attributes:
      question: [n] int32, number of the question.
      bounds: [n, 2] int32, first and last token (inclusive).
      logits: [n] float32, span logits; inf for a span whose bounds the caller gave.
      vectors: [n, D] float32, query vectors.
    """

    question: np.ndarray
    bounds: np.ndarray
    logits: np.ndarray
    vectors: np.ndarray

    def in_order(self) -> SpanVectors:
        """Returns the spans in the order of their questions, otherwise as they are."""
        order = np.argsort(self.question, kind="stable")
        arrays = (self.question, self.bounds, self.logits, self.vectors)
        return SpanVectors(*(array[order] for array in arrays))


class Scorer:
    """Runs the question encoder over batches, on all devices.

    Questions are padded to a few lengths and batch sizes, so that a stream of them compiles a
    handful of programs, once.

    Args:
      model: model whose question encoder is used; for its parameters see `with_params`.
      dtype: type of the matrix products, "float32", "bfloat16" or "auto"; `Scorer.dtype` is the
        one that is taken, see `devices.compute_dtype`.
      devices: devices to run on, of this process and perhaps of others.

    Attributes:
      least_mentions: smallest K that programs are compiled for. Where fewer spans are asked for,
        the best are chosen on the host. 1 by default: one program for each K.

    Raises:
      ElqError: matrix products have no such dtype.
    """

    def __init__(self, model: Model, dtype: str, devices: Sequence[jax.Device]):
        self.dtype = dtype = devices_lib.compute_dtype(dtype, devices)
        self._pad_id, self._devices = model.tokenizer.pad_id, devices
        self.least_mentions = 1
        apply = functools.partial(model.question_apply, dtype=dtype)
        self._max_width = max_width = model.config.max_mention_width

        def score(params, input_ids, mask, roles, bounds, threshold, k, keep_any):
            hidden, logits = apply(params, input_ids, mask)
            known_vectors = apply(params, hidden, bounds, method="mention_vectors")
            if not k:
                return (known_vectors,)
            allowed = allowed_spans(roles, max_width)
            logits = jnp.where(allowed, logits, -jnp.inf)
            logits, bounds, keep = spans.prune(logits, k, threshold, keep_any)
            vectors = apply(params, hidden, bounds, method="mention_vectors")
            return known_vectors, logits, bounds, keep, vectors

        program = devices_lib.parallel(score, devices, static=(6, 7))
        about = f"spans {model.config} {dtype}"
        self._score = KeptProgram(program, about, devices, static=(6, 7))
        self._set_params(model.params["question"])

    def _set_params(self, params: Mapping[str, Any]) -> None:
        self._params = params
        is_placed = _are_placed(params, devices_lib.local(self._devices))
        self._placed = params if is_placed else None

    def with_params(self, params: Mapping[str, Any]) -> Scorer:
        """Returns the scorer with other parameters; nothing is compiled again.

        Args:
          params: the question encoder's tree: arrays [...] of this host, copied to the devices when
            they are first needed; or arrays [P, ...] that these devices hold (`replicate` makes
            them, and a training step returns them), which are used where they are.
        """
        other = copy.copy(self)
        other._set_params(params)
        return other

    @property
    def params(self) -> Mapping[str, Any]:
        """Returns one copy of the parameters: the question encoder's tree of arrays [...]."""
        is_placed = self._placed is self._params
        return devices_lib.unreplicate(self._params) if is_placed else self._params

    def place(self) -> None:
        """Copies the parameters to the devices, unless they hold them already."""
        if self._placed is None:
            frozen = cast_frozen(self._params, self.dtype)
            self._placed = devices_lib.replicate(frozen, self._devices)

    def __call__(
        self,
        encoded: Sequence[EncodedQuestion],
        longest: int,
        batch_size: int,
        search: Search | None = None,
        known: Sequence[np.ndarray] | None = None,
    ) -> Iterator[tuple[SpanVectors, SpanVectors]]:
        """Encodes questions once: finds spans, and reads the vectors of spans at known bounds.

        Args:
          encoded: tokens of the questions.
          longest: largest T.
          batch_size: number of questions encoded at a time.
          search: conditions of the spans to find; None: no spans are found.
          known: arrays, one per question, [M, 2] int: inclusive bounds of spans to read.

        Yields:
          found spans and spans at `known` bounds, of up to 16 batches. Batches hold questions of
          similar length; within a batch, spans are in the order of its questions.
        """
        self.place()
        most = max((len(bounds) for bounds in known), default=0) if known else 0
        if most:
            most = 8 ** max(1, math.ceil(math.log(most, 8)))  # few widths, few compilations
        lengths = [len(question.ids) for question in encoded]
        batches = iter(length_sorted_batches(lengths, batch_size, longest))
        while group := list(itertools.islice(batches, BATCHES_IN_FLIGHT)):
            # All are dispatched before the first result is waited for.
            outputs = [self._dispatch(encoded, batch, search, known, most) for batch in group]
            results = [
                devices_lib.merge(output, self._devices, len(batch.indices))
                for batch, output in zip(group, outputs, strict=True)
            ]
            found_parts, known_parts = [], []
            for batch, (vectors, *rest) in zip(group, results, strict=True):
                known_parts.append(_known_spans(batch.indices, known, vectors))
                found_parts.append(
                    _found_spans(batch.indices, *rest, most=search.max_mentions)
                    if rest
                    else _known_spans([], known, vectors)
                )
            yield _concatenate(found_parts), _concatenate(known_parts)

    def _dispatch(
        self,
        encoded: Sequence[EncodedQuestion],
        batch: EvaluationBatch,
        search: Search | None,
        known: Sequence[np.ndarray] | None,
        most: int,
    ) -> Any:
        """Starts the encoder on one batch; returns device arrays without waiting for them."""
        tokens = [encoded[i].ids for i in batch.indices]
        input_ids, mask = pad_tokens(tokens, batch.length, batch.size, self._pad_id)
        roles = np.zeros((batch.size, batch.length), np.uint8)
        bounds = np.zeros((batch.size, most, 2), np.int32)
        for row, i in enumerate(batch.indices):
            if search:
                roles[row, : len(search.roles[i])] = search.roles[i]
            if known:
                bounds[row, : len(known[i])] = known[i]
        # A token [PAD] inside a question is padding, as in the original.
        mask &= input_ids != self._pad_id
        roles *= mask
        arrays = {"input_ids": input_ids, "mask": mask, "roles": roles, "bounds": bounds}
        arrays = devices_lib.split(arrays, self._devices)
        threshold = search.threshold if search else 0
        spans_of_band = batch.length * spans.band_width(batch.length, self._max_width)
        return self._score(
            self._placed,
            *arrays.values(),
            np.full(len(devices_lib.local(self._devices)), threshold, np.float32),
            min(max(search.max_mentions, self.least_mentions), spans_of_band) if search else 0,
            bool(search and search.keep_any),
        )


def find_candidates(
    parts: Iterable[tuple[SpanVectors, SpanVectors]], index: Index, count: int, decoder: Decoder
) -> list[tuple[np.ndarray, ...]]:
    """Searches for the entities of spans; the spans of each element of `parts` are one search.

    Args:
      parts: pairs of found and known spans, as a `Scorer` yields them.
      index: index over E entities.
      count: C, number of entities found for each span.
      decoder: decoder that says which of the found spans are searched for.

    Returns:
      two tuples of arrays, one of the found and one of the known spans, in the order of the
      questions: those of `ScoredSpans` (question, bounds, logits, scores and rows), and the vectors
      [n, D] float32.
    """
    empty = (
        np.zeros(0, np.int32),
        np.zeros((0, 2), np.int32),
        np.zeros(0, np.float32),
        np.zeros((0, count), np.float32),
        np.zeros((0, count), np.int32),
        np.zeros((0, index.shape[1]), np.float32),
    )
    columns = [[[values] for values in empty] for _ in ("found", "known")]
    for found, known in parts:
        found, known = found.in_order(), known.in_order()
        searches = decoder.searches(found.question, found.bounds, found.logits)
        searches = np.concatenate([searches, np.ones(len(known.question), bool)])
        scores = np.full((len(searches), count), -np.inf, np.float32)
        rows = np.full((len(searches), count), -1, np.int32)
        if searches.any():
            vectors = np.concatenate([found.vectors, known.vectors])[searches]
            scores[searches], rows[searches] = index.search(vectors, count)
        ends = [len(found.vectors)]
        for lists, part, *candidates in zip(
            columns, (found, known), np.split(scores, ends), np.split(rows, ends), strict=True
        ):
            arrays = part.question, part.bounds, part.logits, *candidates, part.vectors
            for array_list, array in zip(lists, arrays, strict=True):
                array_list.append(array)
    spans_of_all = [tuple(map(np.concatenate, lists)) for lists in columns]
    orders = [np.argsort(question, kind="stable") for question, *_ in spans_of_all]
    return [
        tuple(array[order] for array in arrays)
        for arrays, order in zip(spans_of_all, orders, strict=True)
    ]


def allowed_spans(roles: jax.Array, max_width: int) -> jax.Array:
    """Returns which cells of the band of spans may be mentions.

    A span [i, j] may be a mention if
      1. it has at most `max_width` tokens, i <= j,
      2. all its tokens are INSIDE,
      3. token i is FIRST and token j is LAST,
      4. one of its tokens is MEANINGFUL.

    Args:
      roles: [B, T] uint8, see `Decoder.roles`.
      max_width: W, largest number of tokens of a mention.

    Returns:
      [B, T, W] bool.
    """
    inside, first, last, meaningful = (
        (roles & role) > 0 for role in (INSIDE, FIRST, LAST, MEANINGFUL)
    )
    width = spans.band_width(roles.shape[1], max_width)
    total = jnp.cumsum(meaningful, axis=1)
    before = total - meaningful
    return (
        spans.valid_spans(inside, max_width)
        & first[:, :, None]
        & spans.at_ends(last, width)
        & (spans.at_ends(total, width) > before[:, :, None])
    )


def _are_placed(params: Mapping[str, Any], devices: Sequence[jax.Device]) -> bool:
    """Returns whether a tree has one copy of each array on each device, as by `replicate`."""
    return all(
        isinstance(leaf, jax.Array)
        and leaf.sharding.device_set == set(devices)
        and leaf.ndim > 0
        and leaf.sharding.shard_shape(leaf.shape) == (1, *leaf.shape[1:])
        for leaf in jax.tree.leaves(params)
    )


def _found_spans(
    indices: np.ndarray,
    logits: np.ndarray,
    bounds: np.ndarray,
    keep: np.ndarray,
    vectors: Any,
    most: int,
) -> SpanVectors:
    """Returns the best `most` spans of each question of a batch [B, K, ...], one row per span."""
    if keep.shape[1] > most:
        # Of equal logits, the span that comes first counts as better, as in `spans.prune`.
        best = np.argsort(np.where(keep, -logits, np.inf), axis=1, kind="stable")
        np.put_along_axis(keep := keep.copy(), best[:, most:], False, axis=1)
    row, column = np.nonzero(keep)
    cells = (array[row, column] for array in (bounds, logits, vectors))
    return SpanVectors(np.asarray(indices, np.int32)[row], *cells)


def _known_spans(
    indices: Sequence[int], known: Sequence[np.ndarray] | None, vectors: np.ndarray
) -> SpanVectors:
    """Returns the spans at known bounds, padded vectors [B, M, D], one row per span."""
    counts = np.array([len(known[i]) for i in indices] if known else [], np.int64)
    question = np.repeat(np.asarray(indices, np.int32)[: len(counts)], counts)
    row = np.repeat(np.arange(len(counts)), counts)
    column = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    bounds = [np.reshape(known[i], (-1, 2)) for i in indices] if known else []
    return SpanVectors(
        question,
        np.concatenate([np.zeros((0, 2), np.int32), *bounds]).astype(np.int32),
        np.full(len(row), np.inf, np.float32),
        vectors[row, column],
    )


def _concatenate(parts: Sequence[SpanVectors]) -> SpanVectors:
    fields = [field.name for field in dataclasses.fields(SpanVectors)]
    return SpanVectors(*(np.concatenate([getattr(p, name) for p in parts]) for name in fields))
