"""Defines `Service`: one linker that many requests share, without any HTTP."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Sequence
from typing import Any

from elq_jax.core.errors import ElqError
from elq_jax.core.machine import return_freed_memory
from elq_jax.core.settings import check_settings
from elq_jax.linking.changes import Changes
from elq_jax.linking.linker import EntityLinker
from elq_jax.linking.links import Link
from elq_jax.linking.rows import EncodedRows, Linked, encode_rows, link_encoded
from elq_jax.questions.rows import Row
from elq_jax.serving import workers
from elq_jax.serving.batching import (
    Batcher,
    DeadlineError,
    Gone,
    GoneError,
    QueueFullError,
    StoppedError,
)
from elq_jax.serving.metrics import Metrics
from elq_jax.serving.schemas import LinkOptions, check_texts
from elq_jax.serving.settings import ServeSettings
from elq_jax.serving.warm_up import KNOWN_BATCH, share_programs, warm_up

_DEFAULT = LinkOptions()
_LOOKED_EVERY = 0.5  # seconds between two looks for changes of the catalogue
_TIDIED_EVERY = 60.0  # seconds after which freed memory is returned
_LINKERS = 64  # with settings of requests, remembered
_CHARACTERS_PER_TOKEN = 4

EncodedBatch = tuple[EntityLinker, EncodedRows, int]


class NotReadyError(Exception):
    """Error: the programs of the model are still being compiled."""


class WorkerError(Exception):
    """Error: linking failed by a fault of the service; `__cause__` says which."""


class Service:
    """Links the texts of many requests with one linker, in shared batches.

        service = Service(linker, ServeSettings())
        await service.start()
        [linked] = await service.link(["who wrote dune?"])

    Attributes:
      linker: linker.
      settings: settings of the service.
      metrics: numbers about the service.
      is_ready: whether all programs that requests need are compiled.
      refused: why the catalogue could not be opened again after another process changed it; "" if
        it could.
    """

    def __init__(
        self,
        linker: EntityLinker,
        settings: ServeSettings | None = None,
        metrics: Metrics | None = None,
    ):
        self.linker, self.settings = linker, settings or ServeSettings()
        check_settings(self.settings)
        self.metrics = metrics or Metrics()
        self.is_ready = self._is_stopped = self._is_warm = False
        share_programs(linker, self.settings.batch_size)
        self.refused = ""
        self._beside: list[asyncio.Task[None]] = []  # tasks beside the requests
        self._changing = asyncio.Lock()
        self._linker_of = functools.lru_cache(_LINKERS)(self._with_options)
        self._batcher = Batcher(
            self._encode,
            self._finish,
            batch_size=self.settings.batch_size,
            wait=self.settings.batch_wait_ms / 1000,
            max_waiting=self.settings.max_queue,
            on_batch=self.metrics.count_batch,
            weight=self._windows,
        )

    @property
    def waiting(self) -> int:
        """Returns the number of questions that wait."""
        return self._batcher.waiting

    async def start(self, *, warm: bool = True) -> None:
        """Starts the worker, and compiles what requests need.

        Args:
          warm: whether to compile; without, the first requests of each shape wait for it.
        """
        self._batcher.start()
        self._beside = [asyncio.create_task(task) for task in (self._watch(), _tidy())]
        if warm and not self._is_warm:
            await asyncio.to_thread(self.warm_up)
        self.is_ready = not self._is_stopped
        if self.is_ready:
            workers.say_ready()

    def warm_up(self) -> None:
        """Compiles what requests need; `start` does it unless it is done already."""
        warm_up(self.linker, self.settings, lambda: self._is_stopped)
        self._is_warm = True

    async def stop(self) -> None:
        """Answers what waits, and stops the worker."""
        self._is_stopped = True
        for task in self._beside:
            task.cancel()
        await self._batcher.stop()
        self.is_ready = False

    async def change(self, method: str, argument: Any) -> Changes:
        """Changes the catalogue, one request after the other.

        Args:
          method: name of a method of `EntityLinker`, such as "add_entities".
          argument: argument of the method.

        Raises:
          ElqError: as the method says.
        """
        async with self._changing:
            return await asyncio.to_thread(getattr(self.linker, method), argument)

    async def _watch(self) -> None:
        """Takes over the changes that other processes make to the catalogue."""
        while True:
            await asyncio.sleep(_LOOKED_EVERY)
            try:
                await asyncio.to_thread(self.linker.refresh)
            except Exception as error:  # The catalogue that is open still serves.
                if self.refused != (text := str(error)):
                    print(f"the catalogue cannot be opened again: {text}", file=sys.stderr)
                self.refused = text

    async def link(
        self,
        texts: Sequence[str],
        options: LinkOptions = _DEFAULT,
        disconnected: Gone | None = None,
    ) -> list[Linked]:
        """Links texts as `python -m elq_jax.link` does.

        Args:
          texts: texts; their rows have the ids 1, 2, ...
          options: settings of linking that the request chose.
          disconnected: asynchronous function that says whether the client went away, such as
            `request.is_disconnected`.

        Returns:
          the texts with their links, in order; `rows.to_line` makes lines of them.

        Raises:
          ElqError: a text or an option is outside the limits of the service.
          NotReadyError, QueueFullError, DeadlineError, GoneError, StoppedError: the texts were not
            linked.
        """
        check_texts(list(texts), self.settings)
        self._linker_of(options)
        rows = [Row(number, text) for number, text in enumerate(texts, 1)]
        return await self.link_rows(rows, options, disconnected)

    async def disambiguate(
        self,
        text: str,
        spans: Sequence[tuple[int, int]],
        disconnected: Gone | None = None,
    ) -> list[Link]:
        """Links the mentions of a text whose places are known, as `EntityLinker.disambiguate` does.

        Args:
          text: text.
          spans: half-open character offsets of the mentions.
          disconnected: asynchronous function that says whether the client went away.

        Returns:
          a link for every span, in the order of `spans`.

        Raises:
          ElqError: a span is not in the text or does not consist of whole tokens, or there are too
            many.
          NotReadyError, QueueFullError, DeadlineError, GoneError, StoppedError: the mentions were
            not linked.
        """
        return list((await self.link_spans(text, spans, disconnected)).links)

    async def link_spans(
        self,
        text: str,
        spans: Sequence[tuple[int, int]],
        disconnected: Gone | None = None,
    ) -> Linked:
        """Does what `disambiguate` does, and returns the text with its links."""
        check_texts([text], self.settings)
        if len(spans) > self.settings.max_spans:
            raise ElqError(
                f"mentions: {len(spans)} mentions; expected at most {self.settings.max_spans}, so "
                "send several requests"
            )
        row = Row(1, text, spans=tuple((start, end) for start, end in spans))
        [linked] = await self.link_rows([row], _DEFAULT, disconnected)
        if linked.row.error is not None:
            raise ElqError(linked.row.error)
        return linked

    async def link_rows(
        self,
        rows: Sequence[Row],
        options: LinkOptions = _DEFAULT,
        disconnected: Gone | None = None,
    ) -> list[Linked]:
        """Links rows, whose texts and mentions the caller has checked.

        Args:
          rows: texts; of those with spans, exactly these are linked.
          options: settings of linking that the request chose.
          disconnected: asynchronous function that says whether the client went away.

        Returns:
          the rows with their links, in order; a row whose mentions cannot be linked has an error.

        Raises:
          NotReadyError, QueueFullError, DeadlineError, GoneError, StoppedError: the texts were not
            linked.
        """
        if not self.is_ready:
            raise NotReadyError
        key = options, any(row.spans is not None for row in rows)
        try:
            linked = await self._batcher(
                rows, key, timeout=self.settings.timeout, gone=disconnected
            )
        except (QueueFullError, DeadlineError, GoneError, StoppedError):
            raise
        except Exception as error:
            raise WorkerError from error
        self.metrics.count_links(linked)
        return linked

    def _windows(self, row: Row) -> int:
        """Returns about how many windows a text is read in, by which batches are filled."""
        return 1 + len(row.text) // (_CHARACTERS_PER_TOKEN * self.linker.max_question_tokens)

    def _with_options(self, options: LinkOptions) -> EntityLinker:
        """Returns the linker with the settings that a request chose.

        Raises:
          ElqError: a setting is out of range.
        """
        changes = options.changes()
        for name in ("max_mentions", "num_candidates"):
            most = getattr(self.linker.settings, name)
            if changes.get(name, 0) > most:
                raise ElqError(
                    f"{name}: {changes[name]}; expected 1 to {most}, with which this service was "
                    "started"
                )
        return self.linker.with_settings(**changes) if changes else self.linker

    def _encode(self, rows: list[Row], key: tuple[LinkOptions, bool]) -> EncodedBatch:
        """Runs the encoder; the first stage of the batcher.

        Args:
          rows: rows of requests with the same key.
          key: settings of linking that the requests chose, and whether their rows have mentions.
        """
        options, has_mentions = key
        linker = self._linker_of(options)
        batch_size = KNOWN_BATCH if has_mentions else self.settings.batch_size
        return linker, encode_rows(linker, rows, batch_size, "skip"), batch_size

    def _finish(self, batch: EncodedBatch) -> Sequence[Linked]:
        """Finds the entities; the second stage of the batcher."""
        return link_encoded(*batch)


async def _tidy() -> None:
    """Returns freed memory to the system now and then; glibc would keep all that was ever used.

    Texts of many sizes leave holes in which the next ones have no room, so that this grows.
    """
    while True:
        await asyncio.sleep(_TIDIED_EVERY)
        await asyncio.to_thread(return_freed_memory, 0)
