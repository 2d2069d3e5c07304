"""Makes the web application of a linker."""

# Without `from __future__ import annotations`, as in routes.py.

import contextlib
import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import msgspec

from elq_jax.core.extras import require
from elq_jax.linking.linker import EntityLinker
from elq_jax.serving.access_log import AccessLog
from elq_jax.serving.schemas import ErrorAnswer
from elq_jax.serving.settings import ServeSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

_ABOUT = "Finds the names in a text and links them to the entities of a catalogue."


def make_app(linker: EntityLinker, settings: ServeSettings | None = None) -> "FastAPI":
    """Makes the application; it starts to compile when it is started, and says so at /ready.

    Args:
      linker: opened linker.
      settings: settings of the service.

    Raises:
      ElqError: a package of the extra [serve] is not installed.
    """
    require("serve", "fastapi", "prometheus_client")
    from fastapi import FastAPI, Request, Response
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException
    from starlette.middleware.cors import CORSMiddleware

    from elq_jax import __version__
    from elq_jax.serving import changes_route, nif_route, openapi, page_route, routes
    from elq_jax.serving.gate import Gate
    from elq_jax.serving.service import Service

    service = Service(linker, settings)
    settings = service.settings
    app = FastAPI(
        title="elq_jax",
        version=__version__,
        description=_ABOUT,
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
    )
    app.state.service = service
    app.openapi = lambda: openapi.document(app)
    linking = routes.link_router()
    app.include_router(linking)
    for make_router in (
        routes.entities_router,
        routes.state_router,
        page_route.page_router,
        nif_route.nif_router,
    ):
        app.include_router(make_router())
    app.include_router(changes_route.changes_router(settings.token()))

    @app.exception_handler(HTTPException)
    async def known_error(request: Request, error: HTTPException) -> Response:
        return _error(error.status_code, _of_address(request, error), error.headers)

    @app.exception_handler(RequestValidationError)
    async def bad_argument(request: Request, error: RequestValidationError) -> Response:
        del request
        return _error(422, _in_words(error.errors()[0]))

    log = AccessLog(settings.access_log, settings.log_texts)
    app.add_middleware(Gate, service=service, log=log, direct=linking.routes)
    if settings.origins:  # Outermost, so that errors can be read by other pages too.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["content-type"],
        )
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: "FastAPI") -> AsyncIterator[None]:
    import asyncio

    service = app.state.service
    starting = asyncio.create_task(service.start())
    starting.add_done_callback(_stop_if_failed)
    yield
    await service.stop()
    await asyncio.gather(starting, return_exceptions=True)


def _stop_if_failed(starting: Any) -> None:
    """Ends the process if the programs cannot be compiled: it would never be ready."""
    import os
    import signal
    import traceback

    if error := starting.exception():
        traceback.print_exception(error)
        os.kill(os.getpid(), signal.SIGTERM)


def _error(status: int, message: str, headers: Any = None) -> Any:
    from fastapi import Response

    body = msgspec.json.encode(ErrorAnswer(message))
    return Response(body, status, headers=headers, media_type="application/json")


def _of_address(request: Any, error: Any) -> str:
    """Returns a sentence about an address, or a method, that the service does not have."""
    if error.detail == "Not Found":
        return f"{request.url.path}: no such address; /docs lists them all"
    if error.detail == "Method Not Allowed":
        expected = (error.headers or {}).get("Allow", "another method")
        return f"{request.method} {request.url.path}: expected {expected}; /docs says more"
    return str(error.detail)


def _in_words(problem: dict[str, Any]) -> str:
    """Returns a sentence about a wrong argument in the address of a request."""
    name = ".".join(map(str, problem["loc"][1:]))
    if problem["type"] == "missing":
        return f"{name}: missing; give ?{name}=..."
    expected = re.sub(r"^\w+ should (be|have) |, unable to .*", "", problem["msg"])
    for pydantic, words in (
        ("a valid integer", "an integer"),
        ("greater than or equal to", "at least"),
        ("less than or equal to", "at most"),
    ):
        expected = expected.replace(pydantic, words)
    return f"{name}: {problem['input']!r}; expected {expected}"
