"""Describes the service: the OpenAPI document, and a page that shows it without any script."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import msgspec

from elq_jax.serving.schemas import (
    AddRequest,
    ChangesAnswer,
    DisambiguateRequest,
    EntitiesAnswer,
    EntityAnswer,
    ErrorAnswer,
    LinkedText,
    LinkRequest,
    UpdateRequest,
)

if TYPE_CHECKING:
    from fastapi import FastAPI

_KINDS = (
    LinkRequest,
    DisambiguateRequest,
    LinkedText,
    EntityAnswer,
    EntitiesAnswer,
    AddRequest,
    UpdateRequest,
    ChangesAnswer,
    ErrorAnswer,
)
_REFERENCE = "#/components/schemas/{name}"
_ERRORS = {
    "401": "The token is missing or wrong.",
    "403": "The service was started without a token, so nothing can be changed.",
    "404": "There is no such entity.",
    "408": "The body did not arrive in time.",
    "409": "Another process is changing the catalogue; try again.",
    "413": "The body is too long.",
    "415": "The body is of another type.",
    "422": "The request cannot be used; the answer says why.",
    "429": "Too many texts wait; `Retry-After` says when to try again.",
    "500": "A fault of the service; its log says more under the id of the answer.",
    "503": "The service is not ready yet, or is stopping.",
    "504": "The texts were not linked in time.",
}
_QUESTION = "who wrote dune?"
_NIF = f"""@prefix nif: <http://persistence.uni-leipzig.org/nlp2rdf/ontologies/nif-core#> .
<http://example.org/0> a nif:Context ; nif:isString "{_QUESTION}" .
"""


def content(kind: type, **more: Any) -> dict[str, Any]:
    """Returns the OpenAPI "content" of JSON of a type."""
    return {"application/json": {"schema": _reference(kind), **more}}


def answers(good: dict[str, Any], *statuses: str) -> dict[str, Any]:
    """Returns the OpenAPI "responses" of a route.

    Args:
      good: "content" of the answer with status 200.
      *statuses: other statuses, whose answers are an `ErrorAnswer`.
    """
    errors = {
        status: {"description": _ERRORS[status], "content": content(ErrorAnswer)}
        for status in statuses
    }
    return {"200": {"description": "The answer.", "content": good}, **errors}


def posted(kind: type, example: dict[str, Any], good: dict[str, Any]) -> dict[str, Any]:
    """Returns the description of a route that reads JSON, for `openapi_extra` of FastAPI."""
    return {
        "requestBody": {"required": True, "content": content(kind, example=example)},
        "responses": answers(good, "408", "413", "415", "422", "429", "500", "503", "504"),
    }


def link_operation() -> dict[str, Any]:
    """Describes POST /link."""
    one = _reference(LinkedText)
    schema = {"oneOf": [one, {"type": "array", "items": one}]}
    return posted(LinkRequest, {"text": _QUESTION}, {"application/json": {"schema": schema}})


def disambiguate_operation() -> dict[str, Any]:
    """Describes POST /disambiguate."""
    example = {"text": _QUESTION, "mentions": [[10, 14]]}
    return posted(DisambiguateRequest, example, content(LinkedText))


def change_answers() -> dict[str, Any]:
    """Describes the answers of the routes that change the catalogue."""
    statuses = "401", "403", "408", "409", "413", "415", "422", "500"
    return answers(content(ChangesAnswer), *statuses)


def add_operation() -> dict[str, Any]:
    """Describes POST /entities."""
    entity = {"title": "Dune: Part Two", "text": "Film of 2024.", "id": "dune-2"}
    example = {"entities": [entity | {"aliases": ["Dune 2"]}]}
    return posted(AddRequest, example, {}) | {"responses": change_answers()}


def update_operation() -> dict[str, Any]:
    """Describes PATCH /entities."""
    example = {"entities": [{"id": "dune-2", "aliases": ["Dune 2", "Part Two"]}]}
    return posted(UpdateRequest, example, {}) | {"responses": change_answers()}


def nif_operation() -> dict[str, Any]:
    """Describes POST /nif."""
    turtle = {"schema": {"type": "string"}, "example": _NIF}
    body = {kind: turtle for kind in ("text/turtle", "application/x-turtle")}
    return {
        "requestBody": {"required": True, "content": body},
        "responses": answers(body, "408", "413", "415", "422", "429", "500", "503", "504"),
    }


def document(app: FastAPI) -> dict[str, Any]:
    """Returns the OpenAPI document of an application; FastAPI serves it as /openapi.json."""
    if app.openapi_schema is None:
        from fastapi.openapi.utils import get_openapi

        values = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
        )
        _, schemas = msgspec.json.schema_components(_KINDS, ref_template=_REFERENCE)
        own = values.setdefault("components", {}).setdefault("schemas", {})
        for name in ("HTTPValidationError", "ValidationError"):  # Ours is an ErrorAnswer.
            own.pop(name, None)
        own.update(schemas)
        for operations in values["paths"].values():
            for operation in operations.values():
                if "422" in operation["responses"]:
                    operation["responses"] |= answers({}, "422") | {
                        "200": operation["responses"]["200"]
                    }
        app.openapi_schema = values
    return app.openapi_schema


def page(app: FastAPI) -> str:
    """Returns the OpenAPI document as a page of plain HTML, which asks for nothing else."""
    values = document(app)
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        '<meta name=viewport content="width=device-width, initial-scale=1">',
        f"<title>{_text(values['info']['title'])}: addresses</title>",
        f"<h1>{_text(values['info']['title'])} {_text(values['info']['version'])}</h1>",
        f"<p>{_text(values['info']['description'])}",
        '<p>The same for programs: <a href="openapi.json">openapi.json</a>.',
    ]
    for path, operations in values["paths"].items():
        for method, operation in operations.items():
            parts.append(_section(method.upper(), path, operation))
    parts.append("<h2>Types</h2>")
    for name, schema in values["components"]["schemas"].items():
        parts.append(
            f'<h3 id="{_text(name)}">{_text(name)}</h3><p>{_text(schema.get("description", ""))}'
            f"{_table(_fields(schema))}"
        )
    return "\n".join(parts)


def _section(method: str, path: str, operation: dict[str, Any]) -> str:
    """Returns the HTML of one route."""
    parts = [f"<h2><code>{method} {_text(path)}</code></h2>"]
    paragraphs = operation.get("description", "").split("\n\n")
    parts += [f"<p>{_text(paragraph)}" for paragraph in paragraphs]
    if parameters := operation.get("parameters"):
        rows = [(p["name"], _type(p["schema"]), p["in"]) for p in parameters]
        parts.append(f"<h4>Arguments</h4>{_table(rows)}")
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if body:
        example = msgspec.json.encode(body["example"]).decode()
        command = (
            f"curl localhost:8000{path} -H 'Content-Type: application/json' \\\n    -d '{example}'"
        )
        parts.append(
            f"<h4>Body</h4><p>{_type(body['schema'])}<pre><code>{_text(command)}</code></pre>"
        )
    rows = []
    for status, answer in operation["responses"].items():
        kinds = [_type(kind.get("schema", {})) for kind in answer.get("content", {}).values()]
        rows.append((status, _text(answer["description"]), ", ".join(kinds)))
    parts.append(f"<h4>Answers</h4>{_table(rows)}")
    return "\n".join(parts)


def _fields(schema: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Returns name, type and necessity of the fields of a type."""
    required = schema.get("required", ())
    return [
        (_text(name), _type(part), "required" if name in required else "")
        for name, part in schema.get("properties", {}).items()
    ]


def _type(schema: dict[str, Any]) -> str:
    """Returns the HTML that names a type."""
    if "$ref" in schema:
        name = _text(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if several := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(map(_type, several))
    if "prefixItems" in schema:
        return f"[{', '.join(map(_type, schema['prefixItems']))}]"
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items') or {})}"
    limits = [f"{name} {schema[name]}" for name in ("minimum", "maximum") if name in schema]
    return _text(" ".join([str(schema.get("type", "")), *limits]))


def _table(rows: list[tuple[str, ...]]) -> str:
    cells = ("".join(f"<td>{cell}</td>" for cell in row) for row in rows)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _text(text: object) -> str:
    return html.escape(str(text)).replace("`", "")


def _reference(kind: type) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(name=kind.__name__)}
