"""Serves the page on which a person tries the linker, and what the page asks about the linker.

The page is plain HTML, CSS and JavaScript (`elq_jax/serving/page/`). It makes requests to this
service only, by relative addresses, so it also works behind a proxy that adds a path.
"""

# Without `from __future__ import annotations`: FastAPI must find the types of arguments, which are
# imported inside functions.

import hashlib
import importlib.resources
import math
from typing import TYPE_CHECKING, Any

from elq_jax.entities.catalogue import Catalogue
from elq_jax.linking.settings import LinkingSettings

if TYPE_CHECKING:
    from fastapi import APIRouter

_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
HEADERS = {
    # The files belong together, so a browser asks for each, and gets a 304 if it has it.
    "Cache-Control": "no-cache",
    # Stricter than what `gate` adds to all answers.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
EXAMPLES = (
    ("who played jack in titanic", "Titanic (1997 film)"),
    ("what is michael jordan of berkeley known for", "Michael I. Jordan"),
    ("where did the titanic sink", "RMS Titanic"),
    ("did paris and helen of troy live in greece or in paris?", "Paris (mythology)"),
)
"""Questions to try, each with a title that the catalogue must have."""

_FEWEST_EXAMPLES = 3


def page_router() -> "APIRouter":
    """Makes the routes `/` (the page), `/page/FILE` and `/page/linker.json`."""
    from fastapi import APIRouter, HTTPException, Request, Response

    router = APIRouter(include_in_schema=False)
    folder = importlib.resources.files("elq_jax.serving") / "page"
    contents = {name: (folder / name).read_bytes() for name in _TYPES}
    tags = {name: f'"{hashlib.sha256(data).hexdigest()[:32]}"' for name, data in contents.items()}

    def answer(name: str, request: Request) -> Response:
        headers = {**HEADERS, "ETag": tags[name]}
        if tags[name] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(contents[name], headers=headers, media_type=_TYPES[name])

    @router.get("/")
    @router.head("/")
    async def page(request: Request) -> Response:
        return answer("index.html", request)

    @router.get("/page/linker.json")
    def linker(request: Request, response: Response) -> dict[str, Any]:
        response.headers.update(HEADERS)
        return about(request.app.state.service.linker)

    @router.get("/page/{name}")
    @router.head("/page/{name}")
    async def file(name: str, request: Request) -> Response:
        if name not in _TYPES:
            raise HTTPException(404, f"/page/{name}: no such file")
        return answer(name, request)

    return router


def about(linker: Any) -> dict[str, Any]:
    """Describes a linker to the page.

    Args:
      linker: an `EntityLinker`.

    Returns:
      `entities`, number of entities; `probability`, whether links have a probability; `slider`, see
      `slider_of`; `examples`, questions to try.
    """
    settings = linker.settings
    return {
        "entities": linker.catalogue.num_entities,
        "probability": settings.decoding.needs_confidence,
        "slider": slider_of(settings),
        "examples": examples_of(linker.catalogue),
    }


def slider_of(settings: LinkingSettings) -> dict[str, Any]:
    """Describes the threshold slider of the page.

    Returns:
      `name`, the field of `POST /link` that the slider sets; its `lowest` and `highest` values, its
      `step`, and the `start`, which is the linker's own threshold; and `filters`: whether the page
      may ask once, at the lowest value, and leave links out by itself.
    """
    decoder, threshold = settings.decoding, settings.threshold
    filters = decoder.threshold_filters
    if decoder.needs_confidence:
        start = min(round(math.exp(threshold), 2), 0.99)
        numbers = {"lowest": 0.0, "highest": 0.99, "step": 0.01, "start": start}
        return {"name": "min_probability", **numbers, "filters": filters}
    start = round(threshold, 1) if math.isfinite(threshold) else -10.0
    if decoder.log_probabilities:
        lowest, highest = min(-10.0, math.floor(start) - 3.0), -0.1
        start = min(start, highest)
    else:
        lowest, highest = math.floor(start) - 10.0, math.ceil(start) + 10.0
    numbers = {"lowest": lowest, "highest": highest, "step": 0.1, "start": start}
    return {"name": "threshold", **numbers, "filters": filters}


def examples_of(catalogue: Catalogue) -> list[str]:
    """Returns questions to try: `EXAMPLES` that suit the catalogue, or some about its entities."""
    rows = catalogue.rows_of_titles([title for _, title in EXAMPLES]).tolist()
    texts = [text for (text, _), row in zip(EXAMPLES, rows, strict=True) if row >= 0]
    if len(texts) < _FEWEST_EXAMPLES:
        count = min(len(catalogue), _FEWEST_EXAMPLES)
        places = [number * len(catalogue) // count for number in range(count)]
        texts = [f"tell me about {title.partition(' (')[0]}" for title in catalogue.titles(places)]
    return texts
