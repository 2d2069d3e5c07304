"""Measures the service: throughput, latency under load and of one client, memory, a long soak.

    python -m benchmarks.serve --linker runs/demo/linker
    python -m benchmarks.serve --linker runs/demo/linker --soak 10
    python -m benchmarks.serve --linker runs/demo/linker --memory

The service, the clients and the linker that is called directly are three processes on the same
cores. In each of `--rounds` rounds the ways take turns, so ratios change less with other load than
the numbers themselves. Processor times say what each question costs, on all cores together.

`direct` is `linker(questions, batch_size=64)`, the fastest way to link a list; `by 64` calls the
linker with 64 questions at a time.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import multiprocessing
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import numpy as np
from absl import flags

from benchmarks import http_load, options
from elq_jax.cli.run import run
from elq_jax.core import machine
from elq_jax.core.errors import ElqError
from elq_jax.linking.linker import EntityLinker
from elq_jax.questions.rows import open_rows

_DEFAULT_QUESTIONS = pathlib.Path("demo/train.jsonl")
_COUNT = flags.DEFINE_integer("count", 1024, "Number of questions of a round.", 64)
_CLIENTS = flags.DEFINE_integer("clients", 32, "Number of clients that send at once.", 1)
_SOAK = flags.DEFINE_float("soak", 0.0, "Minutes of mixed load, in place of the other numbers.", 0)
_MEMORY = flags.DEFINE_bool(
    "memory", False, "Whether to print the memory of 1, 2 and 4 processes instead."
)
_WORKERS = flags.DEFINE_integer("workers", 1, "Number of processes of the service.", 1)


class Served:
    """A service that runs.

    Attributes:
      process: its process, or that which started its workers.
      host: address.
      port: port.
    """

    def __init__(self, process: subprocess.Popen[str], port: int):
        self.process, self.host, self.port = process, "127.0.0.1", port

    def get(self, path: str) -> bytes:
        """Returns the body at a path."""
        with urllib.request.urlopen(f"http://{self.host}:{self.port}{path}") as answer:
            return answer.read()

    def processes(self) -> list[int]:
        """Returns the ids of the process and its children."""
        pid = self.process.pid
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]

    def processor_seconds(self) -> float:
        """Returns the processor time of all its processes so far."""
        ticks = 0
        for pid in self.processes():
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory(self, kind: str) -> int:
        """Returns bytes of memory: "Rss", or "Pss", in which shared pages count once."""
        total = 0
        for pid in self.processes():
            text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += 1024 * int(re.search(rf"^{kind}:\s*(\d+) kB", text, re.MULTILINE)[1])
        return total


@contextlib.contextmanager
def served(linker: pathlib.Path | str, *arguments: str) -> Iterator[Served]:
    """Starts a service, waits until it is ready, and stops it at the end."""
    command = [sys.executable, "-m", "elq_jax.serve", f"--linker={linker}", "--port=0"]
    process = subprocess.Popen(
        [*command, "--noaccess_log", *arguments], stderr=subprocess.PIPE, text=True
    )
    try:
        started, port = time.perf_counter(), None
        lines = []
        while port is None and (line := process.stderr.readline()):
            lines.append(line)
            if match := re.search(r"http://[^ ]*:(\d+) ", line):
                port = int(match[1])
        if port is None:
            raise ElqError(f"the service did not start: {''.join(lines)}")
        service = Served(process, port)
        while True:
            time.sleep(0.1)
            with contextlib.suppress(OSError):
                service.get("/ready")
                break
        print(f"ready after {time.perf_counter() - started:.1f} s")
        yield service
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
        print(f"exit status after SIGTERM: {status}")


def links_of(bodies: list[bytes]) -> list[list[tuple[int, int, int]]]:
    """Returns start, end and row of the links of each answer."""
    return [
        [(link["start"], link["end"], link["row"]) for link in json.loads(body)["links"]]
        for body in bodies
    ]


def measure(service: Served, linker: EntityLinker, texts: list[str], client: object) -> None:
    """Prints throughput, latency under 80% of it, and the latency of one client."""
    count = len(texts)
    rounds = []
    wanted = [[(link.start, link.end, link.row) for link in own] for own in linker(texts)]
    for first in range(0, count, 64):
        linker(texts[first : first + 64])
    closed = http_load.closed_loop, service.host, service.port, texts, _CLIENTS.value
    client.submit(*closed).result()
    for _ in range(options.ROUNDS.value):
        row = {}
        before, started = time.process_time(), time.perf_counter()
        linker(texts)
        row["direct"] = time.perf_counter() - started
        row["direct cpu"] = time.process_time() - before
        started = time.perf_counter()
        for first in range(0, count, 64):
            linker(texts[first : first + 64])
        row["by 64"] = time.perf_counter() - started
        before = service.processor_seconds()
        load = client.submit(*closed).result()
        row["http"] = load.seconds
        row["http cpu"] = service.processor_seconds() - before
        row["client cpu"] = load.processor_seconds
        same = sum(links == own for links, own in zip(links_of(load.bodies), wanted, strict=True))
        row["same"] = same / count
        rounds.append(row)
    median = {name: statistics.median(row[name] for row in rounds) for name in rounds[0]}
    for name in ("direct", "by 64", "http"):
        print(f"{name:12} {count / median[name]:8.1f} questions per second")
    for name in ("direct cpu", "http cpu", "client cpu"):
        print(f"{name:12} {1000 * median[name] / count:8.2f} ms of processor time per question")
    for name in ("direct", "by 64"):
        ratio = statistics.median(row[name] / row["http"] for row in rounds)
        print(f"http / {name:8} {100 * ratio:6.1f}% (wanted: at least 85%)")
    print(f"same links    {100 * median['same']:7.2f}% of questions")
    latency_under_load(service, texts, client)
    one_client(service, linker, texts[:200], client)


def latency_under_load(service: Served, texts: list[str], client: object) -> None:
    """Prints latencies of requests that arrive at random times, at 80% of the throughput.

    The throughput is measured just before, since other load on the machine changes it.
    """
    ratios, latencies, rates = [], [], []
    address = service.host, service.port
    for seed in range(options.ROUNDS.value):
        load = client.submit(http_load.closed_loop, *address, texts, _CLIENTS.value).result()
        rate = 0.8 * len(texts) / load.seconds
        load = client.submit(http_load.open_loop, *address, texts, rate, seed).result()
        median, high = np.percentile(load.latencies, [50, 99])
        ratios.append(high / median)
        latencies += load.latencies
        rates.append(rate)
    names = "median", "p90", "p99"
    values = 1000 * np.percentile(latencies, [50, 90, 99])
    parts = ", ".join(f"{name} {value:.1f} ms" for name, value in zip(names, values, strict=True))
    print(f"at 80% of the load ({statistics.median(rates):.0f} per second): {parts}")
    print(f"p99 / median  {statistics.median(ratios):7.2f} (wanted: below 5)")


def one_client(service: Served, linker: EntityLinker, texts: list[str], client: object) -> None:
    """Prints how much longer a request of one client takes than a direct call."""
    for text in texts:
        linker(text)
    ratios, times = [], {"direct": [], "http": []}
    for first in range(0, len(texts), 20):
        part, direct = texts[first : first + 20], []
        for text in part:
            started = time.perf_counter()
            linker(text)
            direct.append(time.perf_counter() - started)
        load = client.submit(http_load.closed_loop, service.host, service.port, part, 1).result()
        times["direct"] += direct
        times["http"] += load.latencies
        ratios.append(statistics.median(load.latencies) / statistics.median(direct))
    milliseconds = {name: 1000 * statistics.median(values) for name, values in times.items()}
    print("one client:  ", ", ".join(f"{k} {v:.2f} ms" for k, v in milliseconds.items()))
    print(f"http / direct {statistics.median(ratios):7.2f} (wanted: below 1.5)")


def soak(service: Served, texts: list[str], client: object, minutes: float) -> None:
    """Sends mixed load at 80% of the throughput, and prints errors and how memory grows."""
    address = service.host, service.port
    load = client.submit(http_load.closed_loop, *address, texts, _CLIENTS.value).result()
    rate = 0.8 * len(texts) / load.seconds
    running = client.submit(http_load.mixed, *address, texts, rate, 60 * minutes)
    started, samples = time.perf_counter(), []
    while not running.done():
        samples.append(((time.perf_counter() - started) / 60, service.memory("Rss") / 2**20))
        time.sleep(5)
    problems = running.result()
    times, sizes = np.array(samples).T
    late = times > times[-1] / 3
    slope, _ = np.polyfit(times[late], sizes[late], 1)
    minutes_of = {int(time): size for time, size in zip(times, sizes, strict=True)}
    print("resident MiB by minute:", " ".join(f"{size:.0f}" for size in minutes_of.values()))
    metrics = service.get("/metrics").decode()
    counts: dict[str, int] = {}
    for status, count in re.findall(r'elq_requests_total{.*status="(\d+)"} (\d+)', metrics):
        counts[status] = counts.get(status, 0) + int(count)
    print(f"{minutes:g} minutes of mixed load, {rate:.0f} questions per second")
    print("answers by status:", ", ".join(f"{k}: {v:,}" for k, v in sorted(counts.items())))
    print(f"not as expected: {len(problems)}", *problems[:10], sep="\n  ")
    print(
        f"resident memory: {sizes[0]:.0f} MiB at first, {sizes[-1]:.0f} MiB at the end, slope over "
        f"the last two thirds {slope:+.2f} MiB per minute"
    )


def memory_of_workers(texts: list[str], client: object) -> None:
    """Prints the memory of 1, 2 and 4 processes after each has linked questions."""
    for count in (1, 2, 4):
        with served(options.LINKER.value, f"--workers={count}") as service:
            load = http_load.closed_loop, service.host, service.port, texts * count, 8 * count
            client.submit(*load).result()
            sizes = (f"{kind} {service.memory(kind) / 2**20:,.0f} MiB" for kind in ("Pss", "Rss"))
            print(f"memory of {count} process(es): {', '.join(sizes)}", flush=True)


def main(arguments: list[str]) -> None:
    """Prints the numbers."""
    del arguments
    if options.LINKER.value is None:
        raise ElqError("--linker is not set; give a linker directory")
    with open_rows(options.QUESTIONS.value or _DEFAULT_QUESTIONS, with_mentions=False) as (rows, _):
        texts = [row.text for row in rows][: _COUNT.value]
    print(f"{machine.cpu_model()}, {os.cpu_count()} cores, shared by all; {len(texts)} questions")
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as client:
        if _MEMORY.value:
            memory_of_workers(texts, client)
            return
        with served(options.LINKER.value, f"--workers={_WORKERS.value}") as service:
            if _SOAK.value:
                soak(service, texts, client, _SOAK.value)
                return
            linker = EntityLinker.from_pretrained(options.LINKER.value)
            measure(service, linker, texts, client)


if __name__ == "__main__":
    run(main)
