"""Reads wikitext in a child process with limits of time and memory for each page.

Some pages need minutes or gigabytes: tables that do not end, deep nesting. The parser is written in
C and cannot be interrupted, so the operating system ends the process, and another one is started
for the next page. The limit is processor time, so it does not depend on what else the machine does.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from typing import BinaryIO, cast

import msgspec

from elq_jax.dumps.runs import UnfinishedError
from elq_jax.dumps.wikitext import PageText, Wiki, read_wikitext

_FAILURES = {"MemoryError": "memory", "RecursionError": "nesting"}
_encode, _decode = msgspec.msgpack.encode, msgspec.msgpack.decode


class GivenUp(Exception):
    """Error: a page could not be read; the argument says why in one word.

    It is "time", "memory", "nesting" (too deep), or "crash".
    """


class Sandbox:
    """A child process that reads the wikitext of one page after the other.

    Args:
      wiki: what is known of the wiki.
      seconds: limit of processor time for a page.
      megabytes: limit of memory of the child process; macOS does not enforce it.
    """

    def __init__(self, wiki: Wiki, seconds: int, megabytes: int):
        self._settings = pickle.dumps((wiki, seconds, megabytes))
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def read(self, text: str, title: str) -> PageText:
        """Reads a page as `read_wikitext` does.

        Raises:
          GivenUp: the page needs more time or memory than allowed, or ends the process.
          UnfinishedError: the child process cannot be started.
        """
        is_fresh = self._child is None
        failure, page = self._ask(text, title)
        if failure in ("memory", "crash") and not is_fresh:
            # The pages before may have left little memory; the page alone decides.
            failure, page = self._ask(text, title)
        if failure:
            raise GivenUp(failure)
        return page

    def _ask(self, text: str, title: str) -> tuple[str, PageText]:
        """Sends a page to the process; returns why it failed, or "", and what was read."""
        source, target = self._child_streams()
        try:
            _write(target, _encode((text, title)))
            failure, page = _decode(_read(source), type=tuple[str, PageText])
        except (EOFError, BrokenPipeError):
            return self._end(), PageText()
        if failure:
            self._end()
        return failure, page

    def _child_streams(self) -> tuple[BinaryIO, BinaryIO]:
        if self._child is None:
            self._start()
        child = cast("subprocess.Popen[bytes]", self._child)
        return cast(BinaryIO, child.stdout), cast(BinaryIO, child.stdin)

    def _start(self) -> None:
        code = "from elq_jax.dumps.sandbox import serve; serve()"
        path = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self._child = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        source, target = self._child_streams()
        try:
            _write(target, self._settings)
            _read(source)
        except (EOFError, BrokenPipeError) as error:
            child = cast("subprocess.Popen[bytes]", self._child)
            self._end()
            status = child.returncode
            message = f"the process that reads wikitext did not start (status {status})"
            advice = "pip install 'elq_jax[wikipedia]', or give it more memory"
            raise UnfinishedError(f"{message}; {advice}") from error

    def _end(self) -> str:
        """Ends the process, if there is one; returns why it had ended itself."""
        child, self._child = self._child, None
        if child is None:
            return ""
        with contextlib.suppress(BrokenPipeError):
            cast(BinaryIO, child.stdin).close()
        cast(BinaryIO, child.stdout).close()
        try:
            status = child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
            status = child.wait()
        if status == -signal.SIGXCPU:
            return "time"
        return "memory" if status == -signal.SIGKILL else "crash"


def serve() -> None:
    """Reads pages from stdin and answers on stdout; the program of the child process."""
    import resource

    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # What a library prints must not get between the answers.
    try:
        wiki, seconds, megabytes = pickle.loads(_read(source))
        import mwparserfromhell  # noqa: F401

        if sys.platform == "linux":
            size = megabytes << 20
            resource.setrlimit(resource.RLIMIT_AS, (size, size))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _write(target, b"ready")
        while True:
            text, title = _decode(_read(source), type=tuple[str, str])
            _limit_time(seconds)
            failure, page = "", PageText()
            try:
                page = read_wikitext(text, title, wiki)
                answer = _encode(("", page))
            except Exception as error:
                failure = _FAILURES.get(type(error).__name__, f"crash ({type(error).__name__})")
                answer = _encode((failure, PageText()))
            del page
            _write(target, answer)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        os._exit(0)


def _limit_time(seconds: int) -> None:
    """Lets this process use so much more processor time; the system ends it then."""
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = int(usage.ru_utime + usage.ru_stime)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    limit = used + seconds + 1
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))


def _write(stream: BinaryIO, data: bytes) -> None:
    stream.write(len(data).to_bytes(8, "little") + data)
    stream.flush()


def _read(stream: BinaryIO) -> bytes:
    size = int.from_bytes(_read_bytes(stream, 8), "little")
    return _read_bytes(stream, size)


def _read_bytes(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data
