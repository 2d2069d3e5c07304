"""Checks which process may use a linker."""

from __future__ import annotations

import os

from elq_jax.core.errors import ElqError

_process: int | None = None  # id of the process in which a linker was first used


def check_process() -> None:
    """Raises an ElqError in a child forked from a process that has used a linker.

    JAX has threads, which a fork leaves behind with the locks that they hold: the child would hang.
    """
    global _process
    _process = _process or os.getpid()
    if _process != os.getpid():
        raise ElqError(
            "this process was forked from one that had opened a linker, and JAX does not survive a "
            "fork; open the linker in the child alone (with gunicorn: no --preload), or start "
            'children with multiprocessing.get_context("spawn")'
        )
