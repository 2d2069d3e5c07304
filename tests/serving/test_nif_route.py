"""The route /nif, against the linker in process."""

import asyncio
import math

import jax
import pytest
from tiny import tiny_linker_directory

from elq_jax import EntityLinker
from elq_jax.linking.links import Link
from elq_jax.serving import nif
from elq_jax.serving.app import make_app
from elq_jax.serving.nif_route import annotation_of
from elq_jax.serving.settings import ServeSettings

httpx = pytest.importorskip("httpx", reason="the service is tested with httpx")
for package in ("fastapi", "prometheus_client", "rdflib"):
    pytest.importorskip(package, reason="the service needs the extra [serve]")

SHORT = "who is obama 😀 in paris, ohio?"
LONG = "obama and paris in ohio speak in 2011. the playwrights of unquestionably ohio\n" * 3
URI = "http://example.org/7"


@pytest.fixture(scope="module")
def linker(tmp_path_factory):
    folder = tiny_linker_directory(
        tmp_path_factory.mktemp("linker"), threshold=-9.0, max_question_tokens=16
    )
    return EntityLinker.from_pretrained(folder, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def ask(linker):
    def ask(body, path="/nif", headers=None, **settings):
        async def run():
            app = make_app(
                linker, ServeSettings(**{"access_log": False, "timeout": 300} | settings)
            )
            await app.state.service.start(warm=False)
            transport = httpx.ASGITransport(app)
            try:
                async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                    return await client.post(path, content=body, headers=headers)
            finally:
                await app.state.service.stop()

        return asyncio.run(run())

    return ask


def documents(*texts, phrases=()):
    return [
        nif.Document(f"{URI}{number}#char=0,{len(text)}", text, tuple(phrases))
        for number, text in enumerate(texts)
    ]


def request_of(*texts, phrases=()):
    """A request as GERBIL makes it, from what writes answers; the entities are taken out."""
    written = documents(*texts)
    links = [[nif.Annotation(phrase, "http://example.org/x") for phrase in phrases]] * len(written)
    lines = nif.write_documents(written, links).decode().split("\n")
    return "\n".join(line.replace("itsrdf:taIdentRef", "nif:other") for line in lines).encode()


def answers(response):
    """The (start, end, URI of entity, confidence) of each document, from the triples themselves."""
    import rdflib

    assert response.status_code == 200, response.text
    graph = rdflib.Graph().parse(data=response.text, format="turtle")
    NIF, ITS = rdflib.Namespace(nif.NIF), rdflib.Namespace(nif.ITSRDF)
    found = {str(context): [] for context in graph.subjects(NIF.isString)}
    for phrase, context in graph.subject_objects(NIF.referenceContext):
        text = str(graph.value(context, NIF.isString))
        start, end = (int(graph.value(phrase, name)) for name in (NIF.beginIndex, NIF.endIndex))
        assert str(graph.value(phrase, NIF.anchorOf)) == text[start:end]
        entity, confidence = graph.value(phrase, ITS.taIdentRef), graph.value(
            phrase, ITS.taConfidence
        )  # fmt: skip
        confidence = None if confidence is None else float(confidence)
        found[str(context)].append((start, end, str(entity), confidence))
    return {uri: sorted(own) for uri, own in sorted(found.items())}


def expected(links, offset=0):
    return [
        (x.start + offset, x.end + offset, nif.entity_uri("dbpedia", x.title, x.wikidata_id),
         pytest.approx(math.exp(min(x.score, 0)), abs=1e-4))
        for x in links
    ]  # fmt: skip


@pytest.mark.parametrize("content_type", [None, "application/x-turtle;charset=UTF-8"])
def test_mentions_are_found(linker, ask, content_type):
    links = linker(SHORT)
    assert any(link.start > SHORT.index("😀") for link in links)
    body = request_of(SHORT)
    response = ask(body, headers={"content-type": content_type} if content_type else None)
    assert "content-type" not in response.request.headers or content_type
    assert answers(response) == {f"{URI}0#char=0,{len(SHORT)}": expected(links)}
    assert response.headers["content-type"] == "text/turtle; charset=utf-8"


def test_a_long_text_is_read_to_its_end(linker, ask):
    links = expected(linker(LONG))
    assert links[-1][1] > len(LONG) - 20
    [own] = answers(ask(request_of(LONG))).values()
    assert own == links


def test_given_phrases_are_linked_and_all_are_answered(linker, ask):
    document = documents(LONG)[0]
    inside = LONG.rindex("unquestionably") + 2
    blank = LONG.index(" and")
    spans = [(0, 5), (10, 15), (inside, inside + 4), (blank, blank + 1), (3, 3), (0, len(LONG))]
    spans += [(start, start + 5) for start in range(100, 106)]
    response = ask(request_of(LONG, phrases=[document.phrase(*span) for span in spans]))
    [own] = answers(response).values()
    assert [answer[:2] for answer in own] == sorted(spans)
    by_span = {answer[:2]: answer[2:] for answer in own}
    links = linker.disambiguate(LONG, [(0, 5), (10, 15)])
    assert [(*span, *by_span[span]) for span in spans[:2]] == expected(links)
    assert by_span[spans[2]][0].startswith("http://dbpedia.org/")
    for span in spans[3:6]:
        assert by_span[span][0].startswith("http://aksw.org/notInWiki/")
        assert by_span[span][1] is None
    again = nif.read_documents(response.content)[0]
    assert {phrase.uri for phrase in again.phrases} == {document.phrase(*s).uri for s in spans}


def test_more_phrases_than_a_request_of_json_may_have(ask):
    phrases = [documents(SHORT)[0].phrase(i, i + 1) for i in range(len(SHORT))]
    [own] = answers(ask(request_of(SHORT, phrases=phrases), max_spans=2)).values()
    assert len(own) == len(SHORT)


def test_several_documents_one_of_them_empty(linker, ask):
    response = answers(ask(request_of("who is obama", "", "paris in ohio")))
    assert list(response.values()) == [
        expected(linker("who is obama")), [], expected(linker("paris in ohio"))
    ]  # fmt: skip


def test_the_uris_are_chosen_by_setting_and_by_request(ask):
    body = request_of(SHORT)
    for settings, query, start in (
        ({}, "", "http://dbpedia.org/resource/"),
        ({"entity_uris": "wikipedia"}, "", "http://en.wikipedia.org/wiki/"),
        ({"entity_uris": "wikipedia"}, "?entity_uris=dbpedia", "http://dbpedia.org/resource/"),
    ):
        [own] = answers(ask(body, "/nif" + query, **settings)).values()
        assert own
        assert all(entity.startswith(start) for _, _, entity, _ in own)
    assert ask(body, "/nif?entity_uris=freebase").status_code == 422


def test_what_cannot_be_answered_is_an_error_in_words(ask):
    for body, headers, status, message in (
        (b"{}", {"content-type": "application/json"}, 415, "expected a NIF document in Turtle"),
        (b"{}", None, 422, "the body is no Turtle"),
        (b"", None, 422, "found no nif:Context"),
        (request_of("x" * 60_000), None, 422, "60,000 characters; expected at most 50,000"),
        (request_of("x" * 3_000_000), None, 413, "expected at most"),
    ):
        response = ask(body, headers=headers)
        assert (response.status_code, message in response.json()["error"]) == (status, True)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("application/x-turtle", "application/x-turtle"),
        ("text/turtle, application/x-turtle", "text/turtle"),
        ("*/*", "text/turtle"),
    ],
)
def test_the_type_of_the_answer(ask, accept, expected):
    response = ask(request_of(""), headers={"accept": accept})
    assert response.headers["content-type"] == f"{expected}; charset=utf-8"


def test_what_an_answer_says_of_a_link():
    document = nif.Document(URI, "dune")
    link = Link(0, 4, "dune", "Dune", "Q1", 3, -0.5, 0.0, (), None)
    phrase = document.phrase(0, 4)
    said = annotation_of(document, phrase, link, "wikidata")
    assert said == nif.Annotation(phrase, "http://www.wikidata.org/entity/Q1", math.exp(-0.5))
    nil = Link(0, 4, "dune", None, None, None, -0.5, 0.0, (), 0.25)
    said = annotation_of(document, phrase, nil, "wikidata")
    assert said == nif.Annotation(phrase, "http://aksw.org/notInWiki/dune", 0.25)
    assert annotation_of(document, phrase, None, "dbpedia").confidence is None
