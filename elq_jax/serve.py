"""Serves a linker over HTTP.

    python -m elq_jax.serve --linker my_linker
    curl localhost:8000/link -H 'Content-Type: application/json' -d '{"text": "who wrote dune?"}'

The answer to {"text": ...} is what `python -m elq_jax.link` writes for it, and that to {"texts":
[...]} a list of such objects. /docs lists all addresses. /ready answers 200 when all programs are
compiled; /metrics has the numbers of the service for Prometheus.

The service needs packages that pip install 'elq_jax[serve]' brings. It listens on 127.0.0.1 only,
unless --host says otherwise, and has no passwords: put it behind a proxy that has. On SIGTERM it
takes no more requests, answers those that it has, and exits with status 0.
"""

from __future__ import annotations

from elq_jax.cli.flags import LinkerFlags, SettingsFlags
from elq_jax.cli.run import run
from elq_jax.core.extras import require
from elq_jax.serving.settings import ServeSettings

_LINKER = LinkerFlags.define()
_SERVE = SettingsFlags.define(ServeSettings, "serve", batch_size=_LINKER.batch_size)


def main(arguments: list[str]) -> int:
    """Opens the linker and answers requests until SIGTERM or Ctrl-C."""
    del arguments
    require("serve", "fastapi", "uvicorn", "prometheus_client")
    settings = _SERVE.value()

    from elq_jax.serving.server import serve

    return serve(_LINKER.open, settings)


if __name__ == "__main__":
    run(main)
