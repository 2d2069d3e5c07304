"""Reads requests that offer HTTP/2, as Java's client does, as what they are: HTTP/1.1."""

from __future__ import annotations

import re

from elq_jax.core.extras import require

_METHOD = re.compile(rb"[A-Z]+ ")
_OFFER = re.compile(rb"\r\nupgrade:[ \t]*h2c[ \t]*(?=\r\n|\Z)", re.IGNORECASE)


def http_protocol() -> type:
    """Returns the class by which uvicorn reads requests.

    Such a client sends "Upgrade: h2c" with its first request, and may be answered by HTTP/1.1. The
    parser of uvicorn stops at that header, so that the body of the request would be lost.

    Raises:
      ElqError: a package of the extra [serve] is not installed.
    """
    require("serve", "uvicorn", "httptools")
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Protocol(HttpToolsProtocol):
        def data_received(self, data: bytes) -> None:
            is_body = self.cycle is not None and self.cycle.more_body
            super().data_received(data if is_body else without_offer(data))

    return Protocol


def without_offer(data: bytes) -> bytes:
    """Returns what was received without the header that offers HTTP/2.

    Args:
      data: bytes that were received at once, and are no part of a body: the head of a request and
        what follows, or a part of a head.
    """
    if b"h2c" not in data or not _METHOD.match(data):
        return data
    head, end, rest = data.partition(b"\r\n\r\n")
    return _OFFER.sub(b"", head) + end + rest
