"""Runs the application in a process that listens on a socket."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from elq_jax.core.errors import ElqError
from elq_jax.serving import workers
from elq_jax.serving.settings import ServeSettings

if TYPE_CHECKING:
    from elq_jax.linking.linker import EntityLinker


_BACKLOG = 2048  # connections
_KEEP_ALIVE = 75  # seconds: longer than proxies keep theirs, so that they do not meet a closed one


def serve(
    open_linker: Callable[[], EntityLinker], settings: ServeSettings, arguments: Sequence[str]
) -> int:
    """Answers requests until SIGTERM or Ctrl-C.

    Args:
      open_linker: function that opens the linker; it is called after the address is bound.
      settings: settings of the service.
      arguments: arguments of the program, for the workers that it starts.

    Returns:
      exit status: 0; that of a worker that cannot start.

    Raises:
      ElqError: the address is taken, or not one of this machine; or the file of the token cannot be
        used.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until there are requests to finish
    settings.token()  # Before a large linker is opened, it is said what is wrong with the file.
    inherited = workers.inherited_socket()
    if inherited is None and settings.workers > 1:
        workers.check_platform()
        listening = bound_socket(settings)
        _say_address(listening, f"{settings.workers} workers start")
        return workers.supervise(settings, listening, arguments)
    listening = inherited or bound_socket(settings)
    linker = open_linker()
    if inherited is None:
        _say_address(listening, f"serves {linker.folder}")
    run_server(linker, settings, listening, parent=None if inherited is None else os.getppid())
    return 0


def _say_address(listening: socket.socket, message: str) -> None:
    host, port = listening.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    print(f"http://{host}:{port} {message}", file=sys.stderr, flush=True)


def bound_socket(settings: ServeSettings) -> socket.socket:
    """Returns a socket that listens at the address of the settings.

    Raises:
      ElqError: the address is taken, or not one of this machine.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
        listening.listen(_BACKLOG)  # Who comes before the linker is open, waits.
    except OSError as error:
        listening.close()
        hint = "give an address of this machine, such as --host=127.0.0.1"
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            hint = "give another --port, or --port=0 for a free one"
        raise ElqError(
            f"--host={settings.host} --port={settings.port}: {error.strerror or error}; {hint}"
        ) from error
    return listening


def run_server(
    linker: EntityLinker,
    settings: ServeSettings,
    listening: socket.socket,
    parent: int | None = None,
) -> None:
    """Answers requests on a socket until SIGTERM or Ctrl-C; then finishes what it has.

    Args:
      linker: opened linker.
      settings: settings of the service.
      listening: socket that listens.
      parent: id of the process whose worker this is; when it has ended, the worker ends too.
    """
    import uvicorn

    from elq_jax.serving.app import make_app
    from elq_jax.serving.protocol import http_protocol

    class Server(uvicorn.Server):
        """Server that ends quietly after a signal, instead of raising it again."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            names = signal.SIGINT, signal.SIGTERM
            before = {name: signal.signal(name, self.handle_exit) for name in names}
            try:
                yield
            finally:
                for name, handler in before.items():
                    signal.signal(name, handler)

        async def on_tick(self, counter: int) -> bool:
            is_orphan = parent is not None and os.getppid() != parent
            return await super().on_tick(counter) or is_orphan

    app = make_app(linker, settings)
    if workers.is_restarted():  # Until it is ready, the others take the requests.
        app.state.service.warm_up()
    config = uvicorn.Config(
        app,
        http=http_protocol(),
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )
    Server(config).run([listening])
