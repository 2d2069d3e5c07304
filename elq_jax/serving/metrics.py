"""Counts what the service does, for Prometheus."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from elq_jax.core.extras import require
from elq_jax.linking.rows import Linked

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_LINKS = (0, 1, 2, 3, 5, 10, 20)


class Metrics:
    """Holds the numbers of /metrics, in a registry of its own.

    Where several processes serve one port, $PROMETHEUS_MULTIPROC_DIR is a folder in which they
    share their numbers, and each answers with the sums of all.
    """

    def __init__(self):
        require("serve", "prometheus_client")
        import prometheus_client as client

        self._client, self._registry = client, client.CollectorRegistry()
        own = {"registry": self._registry}
        self.requests = client.Counter(
            "elq_requests", "Requests answered.", ("path", "status"), **own
        )
        self.seconds = client.Histogram(
            "elq_request_seconds", "Seconds per request.", ("path",), buckets=_SECONDS, **own
        )
        self.errors = client.Counter(
            "elq_errors", "Requests that failed by a fault of the service.", **own
        )
        self.batches = client.Histogram(
            "elq_batch_questions", "Questions per batch.", buckets=_BATCH_SIZES, **own
        )
        self.links = client.Histogram(
            "elq_links_per_question", "Links per question.", buckets=_LINKS, **own
        )
        self._queue = client.Gauge(
            "elq_queue_questions",
            "Questions that wait for a batch.",
            multiprocess_mode="livesum",
            **own,
        )
        if not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            client.ProcessCollector(**own)

    def count_batch(self, count: int) -> None:
        """Counts a batch of questions."""
        self.batches.observe(count)

    def count_links(self, linked: Sequence[Linked]) -> None:
        """Counts the links of questions."""
        for result in linked:
            self.links.observe(len(result.links))

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Counts an answered request.

        Args:
          path: path of the route, of which there are few, and not what was asked for.
          status: HTTP status.
          seconds: seconds that it took.
        """
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def text(self, waiting: Callable[[], int]) -> tuple[bytes, str]:
        """Returns the numbers as Prometheus reads them, and their content type."""
        self._queue.set(waiting())
        registry: Any = self._registry
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            from prometheus_client import multiprocess

            registry = self._client.CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)
        return self._client.generate_latest(registry), self._client.CONTENT_TYPE_LATEST
