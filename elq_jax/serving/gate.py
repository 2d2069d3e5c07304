"""Stands between the server and the routes: limits, errors, security headers, log, metrics."""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any

import msgspec

from elq_jax.core.errors import ElqError, LockedError
from elq_jax.serving.access_log import AccessLog
from elq_jax.serving.batching import DeadlineError, GoneError, QueueFullError, StoppedError
from elq_jax.serving.schemas import ErrorAnswer
from elq_jax.serving.service import NotReadyError, Service, WorkerError

if TYPE_CHECKING:
    from fastapi.routing import APIRoute

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
GONE = 499  # As nginx writes it in its log; nobody gets this status.

_SECURITY = [
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
        b"form-action 'self'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
]


class TooLargeError(Exception):
    """Error: the body of a request is longer than allowed."""


class BadTypeError(Exception):
    """Error: the body of a request is of a type that the route does not read."""


class Gate:
    """ASGI middleware: measures each request, limits its body, and turns exceptions into answers.

    Args:
      app: ASGI application inside.
      service: service whose metrics and settings are used.
      log: access log.
      direct: routes of FastAPI that take POST and nothing but the request. They are called without
        its machinery, which would cost more than all else that happens to a short question in this
        thread.
    """

    def __init__(self, app: Any, service: Service, log: AccessLog, direct: Iterable[APIRoute] = ()):
        from starlette.requests import Request

        self._app, self._service, self._log, self._request = app, service, log, Request
        self._direct = {("POST", route.path): route for route in direct}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, size, error_id = time.perf_counter(), 0, 0, None
        most = self._service.settings.max_body

        async def limited_receive() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > most:
                raise TooLargeError
            return message

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = list(message.get("headers", ()))
                own = {name.lower() for name, _ in headers}
                message["headers"] = headers + [pair for pair in _SECURITY if pair[0] not in own]
            await send(message)

        try:
            if route := self._direct.get((scope["method"], scope["path"])):
                scope["route"] = route
            if _declared_size(scope) > most:
                raise TooLargeError
            if route:
                answer = await route.endpoint(self._request(scope, limited_receive))
                await answer(scope, limited_receive, watched_send)
            else:
                await self._app(scope, limited_receive, watched_send)
        except (Exception, asyncio.CancelledError) as error:
            if status:  # The answer is on its way; the server breaks the connection.
                raise
            code, headers, answer = self._answer_to(error)
            status, error_id = code, answer.id
            if code != GONE:
                await _send_json(watched_send, code, answer, headers)
        finally:
            seconds = time.perf_counter() - started
            path = getattr(scope.get("route"), "path_format", "other")
            self._service.metrics.count_request(path, status or GONE, seconds)
            self._log.write(scope, status or GONE, seconds, error_id, scope.get("elq_texts"))

    def _answer_to(
        self, error: BaseException
    ) -> tuple[int, list[tuple[bytes, bytes]], ErrorAnswer]:
        """Returns the status, headers and body that tell a client about an exception."""
        settings = self._service.settings
        if isinstance(error, LockedError):
            return 409, [(b"retry-after", b"1")], ErrorAnswer(str(error))
        if isinstance(error, ElqError):
            return 422, [], ErrorAnswer(str(error))
        if isinstance(error, QueueFullError):
            wait = str(max(1, round(error.seconds))).encode()
            message = f"the service is busy; try again in {wait.decode()} s"
            return 429, [(b"retry-after", wait)], ErrorAnswer(message)
        if isinstance(error, DeadlineError):
            message = f"not finished within {settings.timeout:g} s; send fewer or shorter texts"
            return 504, [], ErrorAnswer(message)
        if isinstance(error, GoneError):
            return GONE, [], ErrorAnswer("")
        if isinstance(error, NotReadyError):
            message = "the model is being compiled; try again when /ready answers 200"
            return 503, [(b"retry-after", b"5")], ErrorAnswer(message)
        # The server cancels what is not answered in time when it stops.
        if isinstance(error, StoppedError | asyncio.CancelledError):
            return 503, [(b"retry-after", b"5")], ErrorAnswer("the service is stopping")
        if isinstance(error, TooLargeError):
            message = f"body: expected at most {settings.max_body:,} bytes; send several requests"
            return 413, [(b"connection", b"close")], ErrorAnswer(message)
        if isinstance(error, BadTypeError):
            return 415, [], ErrorAnswer(str(error))
        if isinstance(error, TimeoutError):
            message = f"the body did not arrive within {settings.timeout:g} s"
            return 408, [(b"connection", b"close")], ErrorAnswer(message)
        error_id = secrets.token_hex(6)
        cause = error.__cause__ if isinstance(error, WorkerError) and error.__cause__ else error
        trace = "".join(traceback.format_exception(cause))
        print(f"error {error_id}: {trace}", file=sys.stderr, flush=True)
        self._service.metrics.errors.inc()
        message = "a fault of the service; its log says more under this id"
        return 500, [], ErrorAnswer(message, error_id)


def _declared_size(scope: Message) -> int:
    """Returns the number of bytes that a request says its body has, 0 if it does not."""
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0


async def _send_json(
    send: Send, status: int, answer: ErrorAnswer, headers: list[tuple[bytes, bytes]]
) -> None:
    body = msgspec.json.encode(answer)
    own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": own + headers})
    await send({"type": "http.response.body", "body": body})
