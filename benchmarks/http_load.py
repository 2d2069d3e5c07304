"""Sends questions to a service over HTTP, as many clients at once, and measures how long it takes.

It imports nothing heavy, so that a process that runs it takes little time from the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import random
import time
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Load:
    """Holds what a load measured.

    Attributes:
      seconds: seconds from the first request to the last answer.
      latencies: seconds of each request, in the order of the requests.
      bodies: bodies of the answers, in the order of the requests.
      statuses: statuses of the answers.
      processor_seconds: processor time of this process.
    """

    seconds: float
    latencies: list[float]
    bodies: list[bytes]
    statuses: list[int]
    processor_seconds: float


class Client:
    """One connection that is kept alive."""

    def __init__(self, host: str, port: int):
        self.host, self.port = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Sends JSON; returns the status and the body of the answer."""
        if self._streams is not None and self._streams[0].at_eof():  # It was idle for too long.
            self.close()
        if self._streams is None:
            self._streams = await asyncio.open_connection(self.host, self.port, limit=1 << 24)
        reader, writer = self._streams
        writer.write(
            b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % (path.encode(), len(body)) + body
        )
        head = await reader.readuntil(b"\r\n\r\n")
        lower = head.lower()
        length = int(lower.partition(b"content-length:")[2].partition(b"\r\n")[0])
        content = await reader.readexactly(length)
        if b"connection: close" in lower:
            self.close()
        return int(head[9:12]), content

    def close(self) -> None:
        """Closes the connection; the next request opens another."""
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


def closed_loop(host: str, port: int, texts: Sequence[str], clients: int) -> Load:
    """Sends one text per request; each client sends the next when it has its answer."""
    return asyncio.run(_run(host, port, texts, clients, None))


def open_loop(host: str, port: int, texts: Sequence[str], rate: float, seed: int = 0) -> Load:
    """Sends `rate` requests per second at random times, whether or not earlier ones are answered.

    The latency of a request counts from the time at which it was due.
    """
    gaps = random.Random(seed)
    times = list(itertools.accumulate(gaps.expovariate(rate) for _ in texts))
    return asyncio.run(_run(host, port, texts, 256, times))


async def _run(
    host: str, port: int, texts: Sequence[str], clients: int, times: Sequence[float] | None
) -> Load:
    count = len(texts)
    bodies = [json.dumps({"text": text}).encode() for text in texts]
    latencies, answers, statuses = [0.0] * count, [b""] * count, [0] * count
    numbers = iter(range(count))
    before, started = time.process_time(), time.perf_counter()

    async def work(client: Client) -> None:
        for number in numbers:
            due = time.perf_counter()
            if times is not None:
                due = started + times[number]
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
            statuses[number], answers[number] = await client.post("/link", bodies[number])
            latencies[number] = time.perf_counter() - due
        client.close()

    await asyncio.gather(*(work(Client(host, port)) for _ in range(min(clients, count))))
    seconds = time.perf_counter() - started
    return Load(seconds, latencies, answers, statuses, time.process_time() - before)


def mixed(host: str, port: int, texts: Sequence[str], rate: float, seconds: float) -> list[str]:
    """Sends requests of all kinds for some time, some of them wrong on purpose.

    Args:
      host, port: address of the service.
      texts: texts to link.
      rate: questions per second.
      seconds: length of the load.

    Returns:
      what was not as expected, one line each.
    """
    return asyncio.run(_mixed(host, port, texts, rate, seconds))


async def _mixed(
    host: str, port: int, texts: Sequence[str], rate: float, seconds: float
) -> list[str]:
    draw, problems = random.Random(1), []
    started, due, tasks = time.perf_counter(), 0.0, set()
    clients = [Client(host, port) for _ in range(64)]
    while due < seconds:
        await asyncio.sleep(max(0.0, started + due - time.perf_counter()))
        count = 1 if draw.random() < 0.8 else draw.randint(2, 20)
        due += draw.expovariate(rate / count)
        if clients:  # Otherwise all wait, and the service is behind.
            task = asyncio.create_task(_one_of_many(clients.pop(), draw, texts, count, problems))
            tasks.add(task)
            task.add_done_callback(
                lambda done: (tasks.discard(done), clients.append(done.result()))
            )
    await asyncio.gather(*tasks)
    return problems


async def _one_of_many(
    client: Client, draw: random.Random, texts: Sequence[str], count: int, problems: list[str]
) -> Client:
    """Sends one request, right or wrong; adds a line to `problems` if the answer is another."""
    text = draw.choice(texts)
    kind = draw.random()
    path, expected = "/link", 200
    if kind < 0.75:
        body = json.dumps({"texts": draw.choices(texts, k=count)})
    elif kind < 0.85:
        path, body = "/disambiguate", json.dumps({"text": text, "mentions": [[0, len(text)]]})
        expected = 422 if text[-1:].isspace() or text[:1].isspace() else 200
    elif kind < 0.88:
        body, expected = '{"text": ', 422
    elif kind < 0.91:
        body, expected = json.dumps({"text": 1}), 422
    elif kind < 0.94:
        body = json.dumps({"text": text * 200})
    elif kind < 0.96:
        body, expected = " " * (3 << 20), 413
    else:
        client.close()
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(client.host, client.port)
            writer.write(b"POST /link HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
            await writer.drain()
            writer.close()
        return client
    try:
        status, answer = await client.post(path, body.encode())
        if status != expected:
            problems.append(f"{path} {status} {answer[:200]!r}")
    except (OSError, EOFError) as error:  # A refused body may break the connection.
        client.close()
        if expected != 413:
            problems.append(f"{path} {error!r}")
    return client
