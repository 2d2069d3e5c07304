"""Defines the routes that add, change and remove entities, for those who have the token."""

# Without `from __future__ import annotations`, as in routes.py.

import hmac
from typing import TYPE_CHECKING, Annotated

import msgspec

from elq_jax.linking.changes import Changes
from elq_jax.serving import openapi
from elq_jax.serving.routes import as_json, body_of, service_of
from elq_jax.serving.schemas import AddRequest, ChangesAnswer, UpdateRequest, read

if TYPE_CHECKING:
    from fastapi import APIRouter, Response

_JSON = "application/json"


def changes_router(token: str | None) -> "APIRouter":
    """Makes the routes POST, PATCH and DELETE /entities.

    Args:
      token: token that a request must have; None: nobody can change anything.
    """
    from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response

    async def check(request: Request) -> None:
        if token is None:
            message = "this service was started without --token_file, so nothing can be changed"
            raise HTTPException(403, message)
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {token}".encode()):
            message = "the token is missing or wrong; expected Authorization: Bearer TOKEN"
            raise HTTPException(401, message, {"www-authenticate": "Bearer"})

    router = APIRouter(tags=["catalogue"], dependencies=[Depends(check)])

    @router.post("/entities", openapi_extra=openapi.add_operation())
    async def add(request: Request) -> Response:
        """Adds entities to the catalogue; the next request can be linked to them.

        Entities that are there already, with the same content, are left alone.
        """
        asked = read(await body_of(request, _JSON), AddRequest)
        entities = msgspec.to_builtins(asked.entities)
        return _answer(await service_of(request).change("add_entities", entities))

    @router.patch("/entities", openapi_extra=openapi.update_operation())
    async def update(request: Request) -> Response:
        """Changes entities of the catalogue; fields that are left out stay as they are."""
        asked = read(await body_of(request, _JSON), UpdateRequest)
        entities = msgspec.to_builtins(asked.entities)
        return _answer(await service_of(request).change("update_entities", entities))

    @router.delete("/entities", openapi_extra={"responses": openapi.change_answers()})
    async def remove(request: Request, id: Annotated[list[str], Query(min_length=1)]) -> Response:
        """Removes the entities with these ids, such as `?id=product-17&id=Q42`."""
        return _answer(await service_of(request).change("remove_entities", id))

    return router


def _answer(changes: Changes) -> "Response":
    return as_json(
        ChangesAnswer(changes.added, changes.updated, changes.removed, changes.unchanged)
    )
