"""Makes the web application of a linker."""

# Without `from __future__ import annotations`, as in routes.py.

import contextlib
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
    token = changes_route.read_token(settings.token_file) if settings.token_file else None
    app.include_router(changes_route.changes_router(token))

    @app.exception_handler(HTTPException)
    async def known_error(request: Request, error: HTTPException) -> Response:
        del request
        return _error(error.status_code, str(error.detail), error.headers)

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


def _in_words(problem: dict[str, Any]) -> str:
    """Returns a sentence about a wrong argument in the address of a request."""
    name = ".".join(map(str, problem["loc"][1:]))
    if problem["type"] == "missing":
        return f"{name}: missing; give ?{name}=..."
    return f"{name}: {problem['input']!r}; {problem['msg']}"
