"""Runs the application in a process that listens on a socket."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from elq_jax.core.errors import ElqError
from elq_jax.serving.settings import ServeSettings

if TYPE_CHECKING:
    from elq_jax.linking.linker import EntityLinker


def serve(open_linker: Callable[[], EntityLinker], settings: ServeSettings) -> int:
    """Answers requests until SIGTERM or Ctrl-C.

    Args:
      open_linker: function that opens the linker; it is called after the address is bound.
      settings: settings of the service.

    Returns:
      exit status: 0.

    Raises:
      ElqError: the address is taken, or not one of this machine.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until there are requests to finish
    listening = bound_socket(settings)
    host, port = listening.getsockname()[:2]
    linker = open_linker()
    print(f"http://{host}:{port} serves {linker.folder}", file=sys.stderr, flush=True)
    run_server(linker, settings, listening)
    return 0


def bound_socket(settings: ServeSettings) -> socket.socket:
    """Returns a socket that is bound to the address of the settings.

    Raises:
      ElqError: the address is taken, or not one of this machine.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
    except OSError as error:
        listening.close()
        raise ElqError(
            f"--host={settings.host} --port={settings.port}: {error.strerror or error}; give "
            "another --port, or --port=0 for a free one"
        ) from error
    return listening


def run_server(linker: EntityLinker, settings: ServeSettings, listening: socket.socket) -> None:
    """Answers requests on a socket until SIGTERM or Ctrl-C; then finishes what it has."""
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

    config = uvicorn.Config(
        make_app(linker, settings),
        http=http_protocol(),
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )
    Server(config).run([listening])
