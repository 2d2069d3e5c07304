"""Runs the question encoder on devices: finds spans and their query vectors."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    cheapest_batches,
    length_sorted_batches,
    pad_tokens,
)
from elq_jax.text.tokenization import EncodedQuestion
from elq_jax.text.windows import text_windows

T = TypeVar("T")
BATCHES_IN_FLIGHT = 16  # bounds memory, whatever the number of questions
CHUNK_CHARACTERS = 1 << 18  # so do these; their windows are about as many batches


def chunks(
    items: Iterable[T],
    batch_size: float,
    length: Callable[[T], int] = len,
    characters: int = CHUNK_CHARACTERS,
) -> Iterator[list[T]]:
    """Cuts a stream of texts, or of rows, into chunks that are linked together.

    A chunk is 16 batches, so that texts of similar length are encoded together, or fewer if they
    have too many characters. With a `batch_size` of 1 it is one text, so that each is answered as
    soon as it is read.

    Args:
      items: stream.
      batch_size: number of texts encoded at a time; inf: characters alone decide.
      length: function that returns the number of characters of an item.
      characters: largest number of characters of a chunk of several items.
    """
    most = 1 if batch_size == 1 else BATCHES_IN_FLIGHT * batch_size
    chunk: list[T] = []
    size = 0
    for item in items:
        size += length(item)
        if chunk and size > characters:
            yield chunk
            chunk, size = [], length(item)
        chunk.append(item)
        if len(chunk) >= most:
            yield chunk
            chunk, size = [], 0
    if chunk:
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
      window: [n] int32, number of the window that the span was read in; windows of a question are
        numbered in its order, those of all questions in theirs.
      place: [n] int64, place of the span among those of its question: for a span that was found, by
        first and last token; for one whose bounds the caller gave, among these.
      bounds: [n, 2] int32, first and last token (inclusive).
      logits: [n] float32, span logits; inf for a span whose bounds the caller gave.
      vectors: [n, D] float32, query vectors.
    """

    question: np.ndarray
    window: np.ndarray
    place: np.ndarray
    bounds: np.ndarray
    logits: np.ndarray
    vectors: np.ndarray

    def in_order(self) -> SpanVectors:
        """Returns the spans in the order of their windows and places."""
        order = np.lexsort((self.place, self.window))
        return SpanVectors(*(getattr(self, f.name)[order] for f in dataclasses.fields(self)))


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
      shapes: pairs of B and T that batches are padded to, see `cheapest_batches`. Empty by default:
        those that `length_sorted_batches` chooses.

    Raises:
      ElqError: matrix products have no such dtype.
    """

    def __init__(self, model: Model, dtype: str, devices: Sequence[jax.Device]):
        self.dtype = dtype = devices_lib.compute_dtype(dtype, devices)
        self._pad_id, self._devices = model.tokenizer.pad_id, devices
        self.least_mentions = 1
        self.shapes: Sequence[tuple[int, int]] = ()
        apply = functools.partial(model.question_apply, dtype=dtype)
        self._max_width = max_width = model.config.max_mention_width

        def score(params, input_ids, mask, roles, limits, bounds, threshold, k, keep_any):
            hidden, logits = apply(params, input_ids, mask)
            known_vectors = apply(params, hidden, bounds, method="mention_vectors")
            if not k:
                return (known_vectors,)
            allowed = allowed_spans(roles, max_width) & spans_within(
                limits, roles.shape[1], max_width
            )
            logits = jnp.where(allowed, logits, -jnp.inf)
            logits, bounds, keep = spans.prune(logits, k, threshold, keep_any)
            vectors = apply(params, hidden, bounds, method="mention_vectors")
            return known_vectors, logits, bounds, keep, vectors

        program = devices_lib.parallel(score, devices, replicated=(0,), static=(7, 8))
        about = f"spans {model.config} {dtype}"
        self._score = KeptProgram(program, about, devices, static=(7, 8))
        self._set_params(model.params["question"])

    def _set_params(self, params: Mapping[str, Any]) -> None:
        self._params = params
        is_placed = devices_lib.is_replicated(params, devices_lib.local(self._devices))
        self._placed = params if is_placed else None

    def with_params(self, params: Mapping[str, Any]) -> Scorer:
        """Returns the scorer with other parameters; nothing is compiled again.

        Args:
          params: the question encoder's tree: arrays [...] of this host, copied to the devices when
            they are first needed; or arrays that these devices hold (`replicate` makes them,
            and a training step returns them), which are used where they are.
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
        overlap: int | None = None,
    ) -> Iterator[tuple[SpanVectors, SpanVectors]]:
        """Encodes questions once: finds spans, and reads the vectors of spans at known bounds.

        A question of more than `longest` tokens is read in windows that overlap, see
        `text_windows`.

        Args:
          encoded: tokens of the questions, however many.
          longest: largest T.
          batch_size: number of windows encoded at a time.
          search: conditions of the spans to find; None: no spans are found.
          known: arrays, one per question, [M, 2] int: inclusive bounds of spans to read.
          overlap: number of tokens that two windows share, at least; None: those of the widest
            mention, less one.

        Yields:
          found spans and spans at `known` bounds, of up to 16 batches. Batches hold questions of
          similar length; within a batch, spans are in the order of its questions.
        """
        self.place()
        overlap = self._max_width - 1 if overlap is None else overlap
        windows = windows_of(encoded, longest, overlap, search, known)
        most = max((len(window.bounds) for window in windows), default=0)
        if most:
            most = 8 ** max(1, math.ceil(math.log(most, 8)))  # few widths, few compilations
        lengths = [len(window.ids) for window in windows]
        if shapes := [shape for shape in self.shapes if shape[0] <= batch_size]:
            batches = iter(cheapest_batches(lengths, shapes))
        else:
            batches = iter(length_sorted_batches(lengths, batch_size, longest))
        while group := list(itertools.islice(batches, BATCHES_IN_FLIGHT)):
            # All are dispatched before the first result is waited for.
            outputs = [self._dispatch(windows, batch, search, most) for batch in group]
            results = [
                devices_lib.merge(output, self._devices, len(batch.indices))
                for batch, output in zip(group, outputs, strict=True)
            ]
            found_parts, known_parts = [], []
            for batch, (vectors, *rest) in zip(group, results, strict=True):
                own = [windows[i] for i in batch.indices]
                known_parts.append(_known_spans(own, vectors))
                found_parts.append(
                    _found_spans(own, *rest, most=search.max_mentions)
                    if rest
                    else _known_spans([], vectors)
                )
            yield _concatenate(found_parts), _concatenate(known_parts)

    def _dispatch(
        self, windows: Sequence[Window], batch: EvaluationBatch, search: Search | None, most: int
    ) -> Any:
        """Starts the encoder on one batch; returns device arrays without waiting for them."""
        tokens = [windows[i].ids for i in batch.indices]
        input_ids, mask = pad_tokens(tokens, batch.length, batch.size, self._pad_id)
        roles = np.zeros((batch.size, batch.length), np.uint8)
        limits = np.zeros((batch.size, 2), np.int32)
        bounds = np.zeros((batch.size, most, 2), np.int32)
        for row, window in enumerate(windows[i] for i in batch.indices):
            roles[row, : len(window.roles)] = window.roles
            limits[row] = window.limits
            bounds[row, : len(window.bounds)] = np.clip(window.bounds, *window.ends)
        # A token [PAD] inside a question is padding, as in the original.
        mask &= input_ids != self._pad_id
        roles *= mask
        arrays = {
            "input_ids": input_ids,
            "mask": mask,
            "roles": roles,
            "limits": limits,
            "bounds": bounds,
        }
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
      questions and of their places in these: those of `ScoredSpans` (question, window, bounds,
      logits, scores and rows), and the vectors [n, D] float32.
    """
    empty = (
        np.zeros(0, np.int32),
        np.zeros(0, np.int32),
        np.zeros(0, np.int64),
        np.zeros((0, 2), np.int32),
        np.zeros(0, np.float32),
        np.zeros((0, count), np.float32),
        np.zeros((0, count), np.int32),
        np.zeros((0, index.shape[1]), np.float32),
    )
    columns = [[[values] for values in empty] for _ in ("found", "known")]
    for found, known in parts:
        found, known = found.in_order(), known.in_order()
        searches = decoder.searches(found.window, found.bounds, found.logits)
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
            first = part.question, part.window, part.place, part.bounds, part.logits
            arrays = *first, *candidates, part.vectors
            for array_list, array in zip(lists, arrays, strict=True):
                array_list.append(array)
    results = []
    for question, window, place, *others in (map(np.concatenate, lists) for lists in columns):
        order = np.lexsort((place, question))
        results.append(tuple(array[order] for array in (question, window, *others)))
    return results


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


def spans_within(limits: jax.Array, length: int, max_width: int) -> jax.Array:
    """Returns which cells of the band are spans [i, j] with low < i + j <= high.

    Args:
      limits: [B, 2] int32, low and high.
      length: T.
      max_width: W, largest number of tokens of a mention.

    Returns:
      [B, T, W] bool.
    """
    width = spans.band_width(length, max_width)
    sums = 2 * jnp.arange(length)[:, None] + jnp.arange(width)
    return (sums > limits[:, 0, None, None]) & (sums <= limits[:, 1, None, None])


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Holds the part of a question that the encoder reads at once, in positions of its own.

    Attributes:
      number: number of the window among those of all questions.
      question: number of the question.
      shift: position in the question less position in the window.
      ids: [T] int32, [CLS] ... [SEP].
      roles: [T] uint8, see `Decoder.roles`; empty where no spans are found.
      limits: low and high; spans [i, j] are found here if low < i + j <= high.
      ends: first and last token of the question that is here.
      bounds: [M, 2] int32, spans at known bounds that are read here, as far as they are here.
      places: [M] int64, their places among those of the question.
    """

    number: int
    question: int
    shift: int
    ids: np.ndarray
    roles: np.ndarray
    limits: tuple[int, int]
    ends: tuple[int, int]
    bounds: np.ndarray
    places: np.ndarray


def windows_of(
    encoded: Sequence[EncodedQuestion],
    longest: int,
    overlap: int,
    search: Search | None = None,
    known: Sequence[np.ndarray] | None = None,
) -> list[Window]:
    """Cuts questions to windows, see `text_windows`; one that fits is one window, as it is.

    Args:
      encoded: tokens of the questions.
      longest: largest T of a window.
      overlap: number of tokens that two windows share, at least.
      search, known: arguments of `Scorer`; their arrays are cut too. Of a known span that is wider
        than the overlap, at least its middle is in the window. Where no spans are found, parts of a
        text without known spans are left out.
    """
    lengths = [len(question.ids) for question in encoded]
    cuts = text_windows(lengths, [q.sentences for q in encoded], longest, overlap)
    windows = []
    for number, cut in enumerate(cuts):
        question, part = cut.text, slice(cut.start - 1, cut.stop + 1)
        ids, roles = encoded[question].ids, np.zeros(0, np.uint8)
        is_first, is_last = cut.start == 1, cut.stop == len(ids) - 1
        if search:
            roles = search.roles[question][part]
        if not (is_first and is_last):
            ids, roles = np.concatenate([ids[:1], ids[part][1:-1], ids[-1:]]), roles.copy()
            # What stands for [CLS] and [SEP] here is no token of the question.
            roles[: not is_first] = 0
            roles[len(roles) - (not is_last) :] = 0
        bounds = known[question] if known else np.zeros((0, 2), np.int32)
        sums = np.asarray(bounds).reshape(-1, 2).sum(axis=1)
        places = np.flatnonzero((sums > cut.low) & (sums <= cut.high))
        if not (search or len(places) or (is_first and is_last)):
            continue
        shift = cut.start - 1
        windows.append(
            Window(
                number,
                question,
                shift,
                ids,
                roles,
                (cut.low - 2 * shift, cut.high - 2 * shift),
                (int(not is_first), len(ids) - 2 + is_last),
                np.asarray(bounds, np.int32).reshape(-1, 2)[places] - shift,
                places,
            )
        )
    return windows


def _found_spans(
    windows: Sequence[Window],
    logits: np.ndarray,
    bounds: np.ndarray,
    keep: np.ndarray,
    vectors: np.ndarray,
    most: int,
) -> SpanVectors:
    """Returns the best `most` spans of each window of a batch [B, K, ...], one row per span."""
    if keep.shape[1] > most:
        # Of equal logits, the span that comes first counts as better, as in `spans.prune`.
        best = np.argsort(np.where(keep, -logits, np.inf), axis=1, kind="stable")
        np.put_along_axis(keep := keep.copy(), best[:, most:], False, axis=1)
    row, column = np.nonzero(keep)
    bounds, logits, vectors = (array[row, column] for array in (bounds, logits, vectors))
    numbers, questions, bounds = _in_questions(windows, row, bounds)
    starts, ends = bounds.T.astype(np.int64)
    return SpanVectors(questions, numbers, starts << 32 | ends, bounds, logits, vectors)


def _known_spans(windows: Sequence[Window], vectors: np.ndarray) -> SpanVectors:
    """Returns the spans at known bounds, padded vectors [B, M, D], one row per span."""
    counts = np.array([len(window.bounds) for window in windows], np.int64)
    row = np.repeat(np.arange(len(counts)), counts)
    column = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    bounds = np.concatenate([np.zeros((0, 2), np.int32), *(w.bounds for w in windows)])
    places = np.concatenate([np.zeros(0, np.int64), *(w.places for w in windows)])
    numbers, questions, bounds = _in_questions(windows, row, bounds)
    logits = np.full(len(row), np.inf, np.float32)
    return SpanVectors(questions, numbers, places, bounds, logits, vectors[row, column])


def _in_questions(
    windows: Sequence[Window], row: np.ndarray, bounds: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns windows, questions [n] and bounds there [n, 2], int32, of spans of windows.

    Args:
      windows: windows of a batch.
      row: [n] int, place in the batch of the window of each span.
      bounds: [n, 2] int32, first and last token of each in its window.
    """
    facts = [(window.number, window.question, window.shift) for window in windows]
    numbers, questions, shifts = np.array(facts, np.int32).reshape(-1, 3)[row].T
    return numbers, questions, bounds + shifts[:, None]


def _concatenate(parts: Sequence[SpanVectors]) -> SpanVectors:
    fields = [field.name for field in dataclasses.fields(SpanVectors)]
    return SpanVectors(*(np.concatenate([getattr(p, name) for p in parts]) for name in fields))
