"""Writes one line of JSON for every request, without the texts unless they are asked for."""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Mapping
from typing import Any

import msgspec

from elq_jax.core.strings import made_whole


class AccessLog:
    """Writes lines of JSON to a descriptor.

    Args:
      is_on: whether anything is written.
      with_texts: whether the texts of requests are written too.
      descriptor: descriptor of an open file; by default that of stdout.
    """

    def __init__(self, is_on: bool = True, with_texts: bool = False, descriptor: int | None = None):
        self._is_on, self._with_texts = is_on, with_texts
        self._descriptor = sys.stdout.fileno() if is_on and descriptor is None else descriptor

    def write(
        self,
        scope: Mapping[str, Any],
        status: int,
        seconds: float,
        error_id: str | None = None,
        texts: list[str] | None = None,
    ) -> None:
        """Writes the line of a request.

        Args:
          scope: ASGI scope of the request.
          status: HTTP status of the answer; 499 if the client went away before it.
          seconds: seconds that it took.
          error_id: number of an error of the service.
          texts: texts of the request, if it had any.
        """
        if not self._is_on:
            return
        now = datetime.datetime.now(datetime.UTC)
        line: dict[str, Any] = {
            "time": now.isoformat(timespec="milliseconds"),
            "method": scope["method"],
            "path": made_whole(scope["path"]),
            "status": status,
            "ms": round(1000 * seconds, 2),
            "client": scope["client"] and scope["client"][0],
        }
        if texts is not None:
            line["questions"] = len(texts)
            if self._with_texts:
                line["texts"] = list(map(made_whole, texts))
        if error_id is not None:
            line["error"] = error_id
        content = memoryview(msgspec.json.encode(line) + b"\n")
        try:
            while content:
                content = content[os.write(self._descriptor, content) :]
        except OSError:  # The reader of the log is gone; the service is not.
            self._is_on = False
