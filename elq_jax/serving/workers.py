"""Runs several processes that serve one port, and starts one again that has ended.

The first process listens and loads nothing; each worker inherits its socket. They tell each other
in a temporary folder who is ready, and keep their numbers for /metrics there.
"""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from elq_jax.core.errors import ElqError
from elq_jax.serving.settings import ServeSettings

_SOCKET, _FOLDER = "ELQ_JAX_SERVE_SOCKET", "ELQ_JAX_SERVE_FOLDER"
_AGAIN = "ELQ_JAX_SERVE_AGAIN"
_METRICS = "PROMETHEUS_MULTIPROC_DIR"
_LEAST_SECONDS = 10.0  # A worker that ends sooner, twice, would end again.


def inherited_socket() -> socket.socket | None:
    """Returns the socket that a worker inherited; None in a process that is no worker."""
    descriptor = os.environ.get(_SOCKET)
    return socket.socket(fileno=int(descriptor)) if descriptor else None


def is_restarted() -> bool:
    """Returns whether this worker takes the place of one that ended, beside others that serve."""
    return bool(os.environ.get(_AGAIN))


def say_ready() -> None:
    """Tells the other workers that this one is ready."""
    if folder := os.environ.get(_FOLDER):
        (pathlib.Path(folder) / f"ready.{os.getpid()}").touch()


def are_ready(count: int) -> bool:
    """Returns whether all workers are ready; True in a process that is no worker."""
    folder = os.environ.get(_FOLDER)
    return not folder or len(list(pathlib.Path(folder).glob("ready.*"))) >= count


def supervise(settings: ServeSettings, listening: socket.socket, arguments: Sequence[str]) -> int:
    """Runs workers until SIGTERM or Ctrl-C.

    Args:
      settings: settings of the service.
      listening: socket that listens.
      arguments: arguments of `python -m elq_jax.serve`, which the workers get too.

    Returns:
      exit status: 0; that of a worker that cannot start.
    """
    stopped: list[int] = []
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda number, _: stopped.append(number))
    with tempfile.TemporaryDirectory(prefix="elq_jax_serve_") as folder:
        group = _Workers(pathlib.Path(folder), listening, arguments)
        for _ in range(settings.workers):
            group.start()
        try:
            while not stopped and group.status is None:
                time.sleep(0.1)
                group.replace_ended()
        finally:
            group.stop(settings.shutdown_seconds + 10)
    return group.status or 0


class _Workers:
    """Holds the processes of the workers."""

    def __init__(self, folder: pathlib.Path, listening: socket.socket, arguments: Sequence[str]):
        self._folder, self._listening, self._arguments = folder, listening, arguments
        self._processes: dict[subprocess.Popen[bytes], float] = {}
        self._early_ends = 0
        self.status: int | None = None  # of a worker that cannot start

    def start(self, again: bool = False) -> None:
        """Starts a worker; `again`: in the place of one that ended."""
        descriptor = self._listening.fileno()
        own = {_SOCKET: str(descriptor), _FOLDER: str(self._folder), _METRICS: str(self._folder)}
        own |= {_AGAIN: "1"} if again else {}
        process = subprocess.Popen(
            [sys.executable, "-m", "elq_jax.serve", *self._arguments],
            pass_fds=[descriptor],
            env=os.environ | own,
        )
        self._processes[process] = time.monotonic()

    def replace_ended(self) -> None:
        """Starts others in the place of workers that have ended, unless they cannot start."""
        for process, started in list(self._processes.items()):
            if process.poll() is None:
                continue
            del self._processes[process]
            was_ready = self._forget(process.pid)
            seconds = time.monotonic() - started
            self._early_ends = self._early_ends + 1 if seconds < _LEAST_SECONDS else 0
            if not was_ready and (process.returncode == 2 or self._early_ends > 1):
                self.status = process.returncode if process.returncode > 0 else 1
                return
            print(
                f"worker {process.pid} ended with status {process.returncode} after "
                f"{seconds:.0f} s; starting another",
                file=sys.stderr,
                flush=True,
            )
            self.start(again=True)

    def stop(self, seconds: float) -> None:
        """Tells all workers to finish, and kills those that have not after some seconds."""
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        end = time.monotonic() + seconds
        for process in self._processes:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _forget(self, pid: int) -> bool:
        """Removes what a worker left in the folder; returns whether it had been ready."""
        from prometheus_client import multiprocess

        multiprocess.mark_process_dead(pid, str(self._folder))
        ready = self._folder / f"ready.{pid}"
        was_ready = ready.exists()
        ready.unlink(missing_ok=True)
        return was_ready


def check_platform() -> None:
    """Raises an ElqError where sockets cannot be inherited."""
    if sys.platform == "win32":
        raise ElqError("--workers: more than one is not possible on Windows; leave it out")
