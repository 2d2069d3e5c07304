"""Defines the routes that link texts and look up entities."""

# Without `from __future__ import annotations`: FastAPI must find the types of arguments, which are
# imported inside functions.

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from elq_jax.linking.rows import to_line
from elq_jax.serving import openapi, workers
from elq_jax.serving.batching import GoneError
from elq_jax.serving.gate import BadTypeError
from elq_jax.serving.schemas import (
    DisambiguateRequest,
    EntitiesAnswer,
    EntityAnswer,
    LinkRequest,
    read,
)
from elq_jax.serving.service import Service

if TYPE_CHECKING:
    from fastapi import APIRouter, Request

_JSON = "application/json"


def service_of(request: "Request") -> Service:
    """Returns the service that a request is for."""
    return request.app.state.service


async def body_of(request: "Request", *types: str) -> bytes:
    """Reads the body of a request.

    Args:
      request: request.
      *types: content types that the route reads; none: any.

    Raises:
      BadTypeError: it is of another type.
      TimeoutError: it does not arrive in time.
      TooLargeError: it is longer than allowed.
      GoneError: the client went away in the middle of it.
    """
    found = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if types and found not in types:
        raise BadTypeError(
            f"content-type: {found or 'none'}; expected {' or '.join(types)}, as by "
            f"curl -H 'Content-Type: {types[0]}'"
        )
    from starlette.requests import ClientDisconnect

    try:
        async with asyncio.timeout(service_of(request).settings.timeout):
            return await request.body()
    except ClientDisconnect:
        raise GoneError from None


def link_router() -> "APIRouter":
    """Makes the routes /link and /disambiguate."""
    from fastapi import APIRouter, Request, Response

    router = APIRouter(tags=["linking"])

    @router.post("/link", openapi_extra=openapi.link_operation())
    async def link(request: Request) -> Response:
        """Links the mentions of one text, or of several, to entities of the catalogue.

        `{"text": ...}` is answered with one object, `{"texts": [...]}` with a list of them in the
        same order. Each is what `python -m elq_jax.link` writes. Settings of linking that the
        request leaves out are those that the service was started with.
        """
        asked = read(await body_of(request, _JSON), LinkRequest)
        texts = asked.all_texts()
        request.scope["elq_texts"] = texts
        linked = await service_of(request).link(texts, asked.options(), request.is_disconnected)
        lines = [to_line(result)[:-1] for result in linked]
        body = lines[0] if asked.text is not None else b"[" + b",\n".join(lines) + b"]"
        return Response(body + b"\n", media_type=_JSON)

    @router.post("/disambiguate", openapi_extra=openapi.disambiguate_operation())
    async def disambiguate(request: Request) -> Response:
        """Links mentions whose places are known, whatever their score.

        The answer has the form of that of `/link`: a link with its candidates for each mention, in
        the order of `mentions`.
        """
        asked = read(await body_of(request, _JSON), DisambiguateRequest)
        request.scope["elq_texts"] = [asked.text]
        linked = await service_of(request).link_spans(
            asked.text, asked.mentions, request.is_disconnected
        )
        return Response(to_line(linked), media_type=_JSON)

    return router


def entities_router() -> "APIRouter":
    """Makes the routes /entities and /entities/{row}."""
    from fastapi import APIRouter, HTTPException, Query, Request, Response

    router = APIRouter(tags=["catalogue"])

    @router.get(
        "/entities/{row}",
        openapi_extra={"responses": openapi.answers(openapi.content(EntityAnswer), "404", "422")},
    )
    async def entity(request: Request, row: int) -> Response:
        """Looks up the entity of a row of the catalogue."""
        catalogue = service_of(request).linker.catalogue
        if not 0 <= row < len(catalogue):
            raise HTTPException(404, f"row: {row}; expected 0 to {len(catalogue) - 1}")
        if catalogue.deleted is not None and catalogue.deleted[row]:
            raise HTTPException(404, f"row: {row}; its entity was removed or updated")
        return as_json(EntityAnswer.of(catalogue[row]))

    @router.get(
        "/entities",
        openapi_extra={"responses": openapi.answers(openapi.content(EntitiesAnswer), "422")},
    )
    async def entities(
        request: Request,
        title: Annotated[str, Query(min_length=1, max_length=500)],
        limit: Annotated[int, Query(ge=1, le=100)] = 10,
    ) -> Response:
        """Finds entities by their title, or by its beginning; those with exactly it come first."""
        catalogue = service_of(request).linker.catalogue

        def search() -> EntitiesAnswer:
            rows, num_exact, count = catalogue.search_titles(title, limit)
            found = [EntityAnswer.of(catalogue[row]) for row in rows.tolist()]
            return EntitiesAnswer(found, num_exact, count)

        return as_json(await asyncio.to_thread(search))

    return router


def state_router() -> "APIRouter":
    """Makes the routes /health, /ready, /metrics and /docs."""
    from fastapi import APIRouter, Request, Response

    from elq_jax.serving.service import NotReadyError

    router = APIRouter(tags=["state"])

    @router.head("/health", include_in_schema=False)
    @router.get("/health")
    async def health() -> dict[str, str]:
        """Answers as long as the process lives."""
        return {"status": "ok"}

    @router.head("/ready", include_in_schema=False)
    @router.get("/ready", responses={503: {"description": "Programs are being compiled."}})
    async def ready(request: Request) -> dict[str, str]:
        """Answers 200 when texts are linked at once, and 503 while programs are compiled."""
        service = service_of(request)
        if not (service.is_ready and workers.are_ready(service.settings.workers)):
            raise NotReadyError
        return {"status": "ready"}

    @router.get("/metrics")
    async def metrics(request: Request) -> Response:
        """Returns the numbers of the service in the text format of Prometheus."""
        service = service_of(request)
        content, kind = service.metrics.text(lambda: service.waiting)
        return Response(content, headers={"content-type": kind})

    @router.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        return Response(openapi.page(request.app), media_type="text/html; charset=utf-8")

    return router


def as_json(answer: Any) -> Any:
    """Returns the response with an answer as JSON."""
    from fastapi import Response

    return Response(msgspec.json.encode(answer), media_type=_JSON)
