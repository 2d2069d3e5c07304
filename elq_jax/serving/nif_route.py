"""Defines the route /nif, by which GERBIL and ELEVANT measure the service."""

# Without `from __future__ import annotations`, as in routes.py.

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated

from elq_jax.linking.arguments import whole_tokens
from elq_jax.linking.links import Link
from elq_jax.questions.rows import Row
from elq_jax.serving import nif, openapi
from elq_jax.serving.gate import BadTypeError
from elq_jax.serving.routes import body_of, service_of
from elq_jax.serving.schemas import check_texts
from elq_jax.serving.service import Service

if TYPE_CHECKING:
    from fastapi import APIRouter, Request

_TURTLE = "text/turtle", "application/x-turtle"
Gone = Callable[[], Awaitable[bool]]


def nif_router() -> "APIRouter":
    """Makes the route /nif."""
    from fastapi import APIRouter, Query, Request, Response

    router = APIRouter(tags=["linking"])
    one_at_a_time = asyncio.Lock()  # Reading and writing Turtle is slow, and in Python.

    @router.post("/nif", openapi_extra=openapi.nif_operation(), response_class=Response)
    async def annotate(
        request: Request, entity_uris: Annotated[nif.EntityUris | None, Query()] = None
    ) -> Response:
        """Links documents in NIF, as GERBIL and ELEVANT send them.

        Of a document with phrases, exactly these are linked (D2KB), and each has an answer. In
        others, mentions are found as well (A2KB). Documents of any length, up to the limits of the
        service, are read to their ends. `entity_uris` names the knowledge base whose URIs name
        entities in the answer.
        """
        try:
            nif.check_media_type(request.headers.get("content-type"))
        except nif.OtherMediaType as error:
            raise BadTypeError(str(error)) from None
        service = service_of(request)
        body = await body_of(request)
        async with one_at_a_time:
            documents = await asyncio.to_thread(nif.read_documents, body)
        texts = request.scope["elq_texts"] = [document.text for document in documents]
        check_texts(texts, service.settings)
        links = await link_documents(service, documents, request.is_disconnected)
        kind = entity_uris or service.settings.entity_uris
        annotations = [
            [annotation_of(document, *answer, kind) for answer in own]
            for document, own in zip(documents, links, strict=True)
        ]
        async with one_at_a_time:
            answer = await asyncio.to_thread(nif.write_documents, documents, annotations)
        return Response(answer, headers={"content-type": _answer_type(request)})

    return router


async def link_documents(
    service: Service, documents: Sequence[nif.Document], disconnected: Gone | None = None
) -> list[list[tuple[nif.Phrase, Link | None]]]:
    """Links the phrases of documents, and finds those of documents that have none.

    Args:
      service: service that links.
      documents: documents.
      disconnected: asynchronous function that says whether the client went away.

    Returns:
      phrases of each document with their links, in the order of the text. None is a phrase that
      cannot be linked: no token of the model lies in it, or it is longer than the model reads at
      once.
    """
    linker = service.linker

    def plan() -> list[list[tuple[int, int] | None]]:
        encoded = linker.encode([x.text if x.phrases else "" for x in documents])
        longest = linker.max_question_tokens
        return [
            whole_tokens(question, [(p.start, p.end) for p in document.phrases], longest)
            for document, question in zip(documents, encoded, strict=True)
        ]

    places = await asyncio.to_thread(plan)
    rows = []
    for number, (document, own) in enumerate(zip(documents, places, strict=True)):
        spans = tuple(place for place in own if place) if document.phrases else None
        if document.text and spans != ():  # Others need no model.
            rows.append(Row(number, document.text, spans=spans))
    # They are not given all at once, so that many documents do not fill the queue.
    results: list[Sequence[Link]] = [()] * len(documents)
    step = service.settings.max_texts
    for first in range(0, len(rows), step):
        part = rows[first : first + step]
        for result in await service.link_rows(part, disconnected=disconnected):
            results[result.row.id] = result.links
    answers: list[list[tuple[nif.Phrase, Link | None]]] = []
    for document, own, links in zip(documents, places, results, strict=True):
        if document.phrases:
            rest = iter(links)
            known = [next(rest) if place else None for place in own]
            answers.append(list(zip(document.phrases, known, strict=True)))
        else:
            answers.append([(document.phrase(link.start, link.end), link) for link in links])
    return answers


def annotation_of(
    document: nif.Document, phrase: nif.Phrase, link: Link | None, kind: nif.EntityUris
) -> nif.Annotation:
    """Returns what the answer says of a phrase.

    The confidence is the probability of the link, or else that of its log score.
    """
    if link is None or link.title is None:
        uri = nif.nil_uri(document.text[phrase.start : phrase.end])
    else:
        uri = nif.entity_uri(kind, link.title, link.wikidata_id)
    if link is None:
        return nif.Annotation(phrase, uri)
    confidence = math.exp(min(link.score, 0.0)) if link.probability is None else link.probability
    return nif.Annotation(phrase, uri, confidence)


def _answer_type(request: "Request") -> str:
    """Returns the Content-Type of the answer; the charset keeps clients from guessing Latin-1."""
    accepted = request.headers.get("accept", "")
    is_old = _TURTLE[1] in accepted and _TURTLE[0] not in accepted
    return f"{_TURTLE[is_old]}; charset=utf-8"
