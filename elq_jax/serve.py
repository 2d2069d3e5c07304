"""Serves a linker over HTTP, or to an agent.

    python -m elq_jax.serve --linker my_linker
    curl localhost:8000/link -H 'Content-Type: application/json' -d '{"text": "who wrote dune?"}'

The answer to {"text": ...} is what `python -m elq_jax.link` writes for it, and that to {"texts":
[...]} a list of such objects. /docs lists all addresses. /ready answers 200 when all programs are
compiled; /metrics has the numbers of the service for Prometheus.

The service needs packages that pip install 'elq_jax[serve]' brings. It listens on 127.0.0.1 only,
unless --host says otherwise, and has no passwords: put it behind a proxy that has. On SIGTERM it
takes no more requests, answers those that it has, and exits with status 0.

    python -m elq_jax.serve --linker my_linker --mcp

With --mcp, the service is a server of the Model Context Protocol, which the client starts itself
and talks to on stdin and stdout. docs/integrations.md says how to tell a client of it.
"""

from __future__ import annotations

import sys
from typing import NoReturn

from absl import flags

from elq_jax.cli.flags import LinkerFlags, SettingsFlags
from elq_jax.cli.run import run
from elq_jax.core.errors import ElqError
from elq_jax.core.extras import require
from elq_jax.serving.settings import ServeSettings

_LINKER = LinkerFlags.define()
_SERVE = SettingsFlags.define(ServeSettings, "serve", batch_size=_LINKER.batch_size)
_MCP = flags.DEFINE_bool(
    "mcp",
    False,
    "Whether to serve agents on stdin and stdout, by the Model Context Protocol, instead of HTTP.",
)


def main(arguments: list[str]) -> int:
    """Opens the linker and answers requests until SIGTERM or Ctrl-C, or until stdin is closed."""
    del arguments
    if _MCP.value:
        _serve_agent()
    require("serve", "fastapi", "uvicorn", "prometheus_client")
    settings = _SERVE.value()

    from elq_jax.serving.server import serve

    return serve(_LINKER.open, settings, sys.argv[1:])


def _serve_agent() -> NoReturn:
    """Answers the client on stdin and stdout.

    Raises:
      ElqError: a flag for HTTP is given, or a package is missing.
    """
    require("serve", "mcp")
    if given := [f"--{name}" for name in _SERVE.names.values() if flags.FLAGS[name].present]:
        raise ElqError(
            f"{', '.join(given)}: of no use with --mcp, which listens on no address; leave out one "
            "or the other"
        )

    from elq_jax.serving.mcp import serve_stdio

    serve_stdio(_LINKER.open)


if __name__ == "__main__":
    run(main)
