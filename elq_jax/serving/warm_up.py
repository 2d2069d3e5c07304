"""Compiles what requests need before the first one arrives."""

from __future__ import annotations

import functools
import gc
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from elq_jax.core.machine import return_freed_memory
from elq_jax.entities.catalogue import Catalogue
from elq_jax.linking.knowledge import Knowledge
from elq_jax.linking.linker import EntityLinker
from elq_jax.linking.scoring import Search
from elq_jax.retrieval.base import Index
from elq_jax.retrieval.exact import QUERY_BUCKETS
from elq_jax.serving.settings import ServeSettings
from elq_jax.text.padding import LENGTH_BUCKETS
from elq_jax.text.tokenization import EncodedQuestion

KNOWN_BATCH = 1  # questions encoded together if their mentions are known: few programs
_SIZES = (1, 4, 16, 32, 64, 128, 256)  # numbers of questions
_SHORT, _MANY = (10, 14), 16  # lengths, in tokens, of at least so many questions
_TOKENS = 16  # of a full batch, per question
_KNOWN_WIDTHS = (8, 64, 512)  # numbers of known mentions that questions are padded to


def share_programs(linker: EntityLinker, batch_size: int) -> None:
    """Lets all requests share few programs, those with fewer mentions or candidates too.

    When the catalogue was compacted, or entities are removed for the first time, programs are
    compiled for that before the change is taken over.
    """
    linker.scorer.shapes = shapes(linker.max_question_tokens, batch_size)
    linker.scorer.least_mentions = linker.settings.max_mentions
    count = linker.settings.num_candidates
    linker.index.least_k = _least(count, linker.catalogue)
    linker.prepare = functools.partial(_prepare, count)


def shapes(longest: int, batch_size: int) -> list[tuple[int, int]]:
    """Lists what the encoder is compiled for: numbers of questions, and tokens of each.

    Every question fits by itself, and half a batch of short ones fits together: more at a time
    would be hardly faster, and their lengths differ. Most questions are short, and padding is what
    costs most, so there are more lengths for many short ones. A program costs 15 MB of memory and
    seconds to compile, so there are few of others.

    Args:
      longest: largest T.
      batch_size: largest B.

    Returns:
      pairs of B and T.
    """
    pairs = []
    for size in (size for size in _SIZES if size <= min(batch_size, max(batch_size // 2, 4))):
        lengths = sorted({*LENGTH_BUCKETS, *(_SHORT if size >= _MANY else ())})
        for length in (*(length for length in lengths if length < longest), longest):
            if size == 1 or size * length <= _TOKENS * batch_size:
                pairs.append((size, length))
    return pairs


def warm_up(
    linker: EntityLinker,
    settings: ServeSettings,
    is_stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Compiles the programs of all shapes that requests can have, and searches once for each size.

    Args:
      linker: linker, after `share_programs`.
      settings: settings of the service.
      is_stopped: function that says whether the rest is no longer needed.
    """
    linker.scorer.place()
    with ThreadPoolExecutor(2) as threads:  # A compilation keeps one core busy.
        for _ in threads.map(lambda job: is_stopped() or job(), _jobs(linker, settings)):
            pass
    if is_stopped():
        return
    linker(["who wrote dune?"] * 2)
    linker.disambiguate("who wrote dune?", [(10, 14)])
    gc.collect()
    return_freed_memory(0)  # What compiling took.


def _jobs(linker: EntityLinker, settings: ServeSettings) -> Iterator[Callable[[], Any]]:
    """Yields functions that compile one program each."""
    longest, batch_size = linker.max_question_tokens, settings.batch_size

    def encode(size: int, tokens: int, at_most: int, width: int | None = None) -> None:
        questions = [_question(tokens)] * size
        if width is None:
            search = Search.of(questions, linker.settings, linker.tokenizer.unk_id)
            arguments = questions, longest, at_most, search
        else:
            bounds = [np.zeros((width, 2), np.int32)] * size
            arguments = questions, longest, at_most, None, bounds
        list(linker.scorer(*arguments))

    for shape in shapes(longest, batch_size):
        yield functools.partial(encode, *shape, batch_size)
    widest = min(settings.max_spans, _KNOWN_WIDTHS[-1])
    widths = [width for width in _KNOWN_WIDTHS if width < 8 * widest]
    for shape, width in itertools.product(shapes(longest, KNOWN_BATCH), widths):
        yield functools.partial(encode, *shape, KNOWN_BATCH, width)
    count = min(linker.settings.num_candidates, linker.catalogue.num_entities)
    yield from _searches(linker.index, count)


def _least(count: int, catalogue: Catalogue) -> int:
    """Returns twice `count` where entities were removed, so that enough others are found."""
    return 2 * count if catalogue.num_entities < len(catalogue) else count


def _prepare(count: int, known: Knowledge) -> None:
    known.index.least_k = _least(count, known.catalogue)
    for search in _searches(known.index, min(count, known.catalogue.num_entities)):
        search()


def _searches(index: Index, count: int) -> Iterator[Callable[[], Any]]:
    """Yields functions that search for `count` entities, one for every number of queries.

    They search for zeros, to which all rows are equally near, so that exact search takes all ways.
    """
    for number in QUERY_BUCKETS:
        queries = np.zeros((number, index.shape[1]), np.float32)
        yield functools.partial(index.search, queries, count)


def _question(tokens: int) -> EncodedQuestion:
    """Makes a question of a number of tokens, [CLS] and [SEP] included."""
    places = np.arange(tokens, dtype=np.int32)
    words = np.where((places == 0) | (places == tokens - 1), -1, places - 1).astype(np.int32)
    offsets = np.stack([places, places + 1], axis=1)
    return EncodedQuestion(np.ones(tokens, np.int32), offsets, words, None)
