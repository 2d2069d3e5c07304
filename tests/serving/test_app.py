"""The service in this process: answers like `link`, errors in words, limits."""

import asyncio
import dataclasses
import json
import os
import random
import re

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs pip install 'elq_jax[serve]'")
pytest.importorskip("httpx", reason="needs requirements-extras.txt")

from serving_tools import QUESTIONS, in_process, lines_of, places
from tiny import tiny_linker_directory

from elq_jax.linking.linker import EntityLinker
from elq_jax.linking.rows import link_file
from elq_jax.questions.rows import Row
from elq_jax.serving.app import make_app
from elq_jax.serving.settings import ServeSettings

PATIENCE = 300  # seconds, on a busy machine that compiles
QUIET = ServeSettings(access_log=False, batch_size=8, timeout=PATIENCE)  # few programs


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    """Its threshold is so low that every question has links."""
    return tiny_linker_directory(tmp_path_factory.mktemp("served"), threshold=-30.0)


@pytest.fixture(scope="module")
def tiny_linker(tiny_folder):
    return EntityLinker.from_pretrained(tiny_folder, dtype="float32", devices="cpu")


@pytest.fixture
def app(tiny_linker):
    return make_app(tiny_linker, QUIET)


def app_with(tiny_linker, **settings):
    return make_app(tiny_linker, dataclasses.replace(QUIET, **settings))


def ask(app, *requests):
    """The answers to (method, path, keyword arguments), one after the other."""

    async def scenario(client):
        return [await client.request(m, path, **options) for m, path, options in requests]

    return in_process(app, scenario)


def posts(app, path, *bodies):
    return ask(app, *(("POST", path, {"json": body}) for body in bodies))


@pytest.fixture(scope="module")
def lines(tiny_linker, tmp_path_factory):
    """What `link --input` writes for the questions."""
    path = tmp_path_factory.mktemp("lines") / "links.jsonl"
    rows = [Row(number, text) for number, text in enumerate(QUESTIONS, 1)]
    link_file(tiny_linker, rows, path, {})
    return lines_of(path)


def assert_same(answer, line):
    """Everything is equal but scores, which may differ in the last bits."""
    assert answer["text"] == line["text"]
    assert places(answer["links"]) == places(line["links"])
    for link, own in zip(answer["links"], line["links"], strict=True):
        assert link["title"] == own["title"]
        assert places_of_candidates(link) == places_of_candidates(own)
        np.testing.assert_allclose(link["score"], own["score"], atol=1e-4)


def places_of_candidates(link):
    return [candidate["row"] for candidate in link["candidates"]]


def test_32_clients_get_what_link_writes(app, lines):
    assert any(line["links"] for line in lines)
    draw = random.Random(0)

    async def scenario(client):
        async def one_client(number):
            for _ in range(4):
                chosen = draw.sample(range(len(lines)), draw.randint(1, 5))
                body = {"texts": [lines[i]["text"] for i in chosen]}
                if len(chosen) == 1:
                    body = {"text": body["texts"][0]}
                answer = await client.post("/link", json=body)
                assert answer.status_code == 200
                results = answer.json() if len(chosen) > 1 else [answer.json()]
                assert [result["id"] for result in results] == [*range(1, len(chosen) + 1)]
                for i, result in zip(chosen, results, strict=True):
                    assert_same(result, lines[i])

        await asyncio.gather(*map(one_client, range(32)))

    in_process(app, scenario)


def test_the_text_of_an_answer_is_that_of_a_line(app, lines):
    [one, several] = posts(
        app, "/link", {"text": QUESTIONS[0]}, {"texts": [QUESTIONS[0], QUESTIONS[1]]}
    )
    assert json.dumps(one.json(), ensure_ascii=False) + "\n" == one.text
    # Scores may differ in the last bits.
    first, alone = (re.sub(r"-?\d+\.\d+", "-1.5", answer.text) for answer in (several, one))
    assert first.splitlines()[0] == f"[{alone.strip()},"


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": -3.0},
        {"max_mentions": 2},
        {"num_candidates": 3},
        {"threshold": -20.0, "max_mentions": 4, "num_candidates": 1},
    ],
)
def test_options_are_those_of_link(app, tiny_folder, options):
    """The service uses programs for more mentions and candidates, and leaves the rest out."""
    fresh = EntityLinker.from_pretrained(tiny_folder, dtype="float32", devices="cpu", **options)
    plain = EntityLinker.from_pretrained(tiny_folder, dtype="float32", devices="cpu")
    [answer] = posts(app, "/link", {"texts": QUESTIONS[:3], **options})
    changed = False
    for result, links, default in zip(
        answer.json(), fresh(QUESTIONS[:3]), plain(QUESTIONS[:3]), strict=True
    ):
        assert_same(result, {"text": result["text"], "links": [k.to_dict() for k in links]})
        changed |= links != default
    assert changed


def test_requests_with_other_options_do_not_mix(app, tiny_linker):
    thresholds = [-3.0, -10.0, None, -1.0] * 8

    async def scenario(client):
        bodies = [
            {"text": QUESTIONS[1]} | ({} if t is None else {"threshold": t}) for t in thresholds
        ]
        return await asyncio.gather(*(client.post("/link", json=body) for body in bodies))

    for threshold, answer in zip(thresholds, in_process(app, scenario), strict=True):
        assert places(answer.json()["links"]) == places(tiny_linker(QUESTIONS[1], threshold))


def test_known_mentions(app, tiny_linker):
    text, mentions = QUESTIONS[0], [[10, 14], [0, 3], [4, 14]]
    [answer, wrong, outside] = posts(
        app,
        "/disambiguate",
        {"text": text, "mentions": mentions},
        {"text": text, "mentions": [[10, 13]]},
        {"text": text, "mentions": [[10, 99]]},
    )
    assert_same(
        answer.json(),
        {"text": text, "links": [k.to_dict() for k in tiny_linker.disambiguate(text, mentions)]},
    )
    assert wrong.status_code == outside.status_code == 422
    assert "[10, 13) 'dun': it begins or ends inside a token" in wrong.json()["error"]
    assert "end <= 15" in outside.json()["error"]


def test_entities(app, tiny_linker):
    catalogue = tiny_linker.catalogue
    title = catalogue[7].title
    get = [("GET", path, {}) for path in ("/entities/7", "/entities/500", "/entities/-1")]
    search = ("GET", "/entities", {"params": {"title": title[:4], "limit": 3}})
    [one, outside, negative, several, nothing, no_title] = ask(
        app, *get, search, ("GET", "/entities?title=qqqq", {}), ("GET", "/entities", {})
    )
    assert one.json()["title"] == title
    assert (outside.status_code, negative.status_code) == (404, 404)
    assert outside.json() == {"error": "row: 500; expected 0 to 499"}
    found = several.json()["entities"]
    assert 1 <= len(found) <= 3
    assert all(entity["title"].lower().startswith(title[:4].lower()) for entity in found)
    assert nothing.json() == {"entities": [], "num_exact": 0, "count": 0}
    assert (no_title.status_code, no_title.json()["error"]) == (
        422,
        "title: missing; give ?title=...",
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "JSON"),
        (b"{", "double quotes at column 2): '{'"),
        (b"[]", "object"),
        (b"{}", "text, texts: neither is there"),
        (b'{"text": "x", "texts": ["y"]}', "both are there"),
        (b'{"texts": []}', "texts: 0 texts; expected 1 to 256"),
        (b'{"text": 3}', "field 'text': found 3, expected a string"),
        (b'{"texts": ["x", null]}', "field 'texts[1]'"),
        (b'{"texts": "x"}', "field 'texts'"),
        (b'{"text": "x", "treshold": -1}', "field 'treshold': no such field"),
        (b'{"text": "x", "threshold": NaN}', "threshold"),
        (b'{"text": "x", "threshold": Infinity}', "threshold"),
        (b'{"text": "x", "threshold": 1e999}', "threshold"),
        (b'{"text": "x", "threshold": 3}', "log-probabilities, below 0"),
        (b'{"text": "x", "max_mentions": 0}', "max_mentions"),
        (b'{"text": "x", "max_mentions": 1000}', "max_mentions: 1000; expected 1 to 10"),
        (b'{"text": "x", "num_candidates": 99999999999999999999}', "num_candidates"),
        (b'{"text": "\\ud83d"}', "surrogate"),
        (b'{"text": "\xff"}', "UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"text": ' + b'{"a":' * 50_000, "nested too deeply"),
        (b'{"text": "' + b"a" * 60_000 + b'"}', "texts[0]: 60,000 characters"),
        (json.dumps({"texts": ["x"] * 300}).encode(), "texts: 300 texts"),
    ],
)
def test_a_bad_body_is_refused_in_words(app, body, words):
    headers = {"content-type": "application/json"}
    [answer] = ask(app, ("POST", "/link", {"content": body, "headers": headers}))
    assert answer.status_code == 422, answer.text
    assert words in answer.json()["error"]
    assert "object a line" not in answer.json()["error"]  # As in files.


def test_strange_texts_are_linked(app, tiny_linker):
    texts = ["\x00", "a\x00b\x00", "\ufeff who", "\u202e who wrote dune", "﷽" * 100, "a" * 5000]
    [answer] = posts(app, "/link", {"texts": texts})
    assert [result["text"] for result in answer.json()] == texts


def test_other_errors(app):
    form = {"content": b"text=x", "headers": {"content-type": "application/x-www-form-urlencoded"}}
    huge = {"content": b" " * (3 << 20), "headers": {"content-type": "application/json"}}
    [typed, large, missing, method] = ask(
        app,
        ("POST", "/link", form),
        ("POST", "/link", huge),
        ("GET", "/nothing", {}),
        ("GET", "/link", {}),
    )
    assert typed.status_code == 415
    assert "expected application/json" in typed.json()["error"]
    assert large.status_code == 413
    assert "2,097,152 bytes" in large.json()["error"]
    assert missing.status_code == 404
    assert missing.json()["error"] == "/nothing: no such address; /docs lists them all"
    assert (method.status_code, method.headers["allow"]) == (405, "POST")
    assert method.json()["error"] == "GET /link: expected POST; /docs says more"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/entities/x", "row: 'x'; expected an integer"),
        ("/entities?title=", "title: ''; expected at least 1 character"),
        ("/entities?title=a&limit=0", "limit: '0'; expected at least 1"),
        ("/entities?title=a&limit=101", "limit: '101'; expected at most 100"),
        ("/entities?title=a&limit=x", "limit: 'x'; expected an integer"),
    ],
)
def test_a_bad_address_is_refused_in_words(app, path, message):
    [answer] = ask(app, ("GET", path, {}))
    assert (answer.status_code, answer.json()) == (422, {"error": message})


class Blocked:
    """A stage that waits until it may go on, or raises."""

    def __init__(self, monkeypatch, app, error=None):
        import threading

        self.free, self.rows, self.error = threading.Event(), [], error
        self.begun = False
        self.inner = app.state.service._batcher._stages
        monkeypatch.setattr(app.state.service._batcher, "_stages", (self.first, self.inner[1]))

    def first(self, rows, key):
        self.begun = True
        assert self.free.wait(PATIENCE)
        self.rows += [row.text for row in rows]
        if self.error is not None and any("bad" in row.text for row in rows):
            raise self.error
        return self.inner[0](rows, key)


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


def test_a_full_queue(tiny_linker, monkeypatch):
    app = app_with(tiny_linker, max_queue=2)
    stage = Blocked(monkeypatch, app)

    async def scenario(client):
        first = asyncio.create_task(client.post("/link", json={"text": "x"}))
        await until(lambda: stage.begun)
        second = asyncio.create_task(client.post("/link", json={"texts": ["y", "z"]}))
        await until(lambda: app.state.service.waiting == 2)
        refused = await client.post("/link", json={"text": "u"})
        stage.free.set()
        return await first, await second, refused, (await client.get("/metrics")).text

    *answers, metrics = in_process(app, scenario)
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert int(answers[2].headers["retry-after"]) >= 1
    assert 'elq_requests_total{path="/link",status="429"} 1.0' in metrics


def test_a_request_that_the_server_cancels(app, monkeypatch):
    """As it does with those that are not finished in time after SIGTERM."""
    stage = Blocked(monkeypatch, app)

    async def scenario(client):
        request = asyncio.create_task(client.post("/link", json={"text": "x"}))
        await until(lambda: stage.begun)
        request.cancel()
        answer = await request
        stage.free.set()
        return answer

    answer = in_process(app, scenario)
    assert (answer.status_code, answer.json()) == (503, {"error": "the service is stopping"})
    assert answer.headers["retry-after"] == "5"


def test_a_deadline(tiny_linker, monkeypatch):
    app = app_with(tiny_linker, timeout=0.5)
    service, stage = app.state.service, Blocked(monkeypatch, app)

    async def scenario(client):
        first = asyncio.create_task(client.post("/link", json={"text": "x0"}))
        await until(lambda: stage.begun)
        answers = [await client.post("/link", json={"text": "x1"}), await first]
        service.settings = dataclasses.replace(service.settings, timeout=PATIENCE)
        stage.free.set()
        return [*answers, await client.post("/link", json={"text": "y"})]

    answers = in_process(app, scenario)
    assert [answer.status_code for answer in answers] == [504, 504, 200]
    assert "0.5 s" in answers[0].json()["error"]
    assert "x1" not in stage.rows  # Nobody waited for it any more.


def test_a_failure_has_a_number_and_the_others_are_answered(tiny_linker, monkeypatch, capfd):
    app = make_app(tiny_linker, ServeSettings(log_texts=True))
    stage = Blocked(monkeypatch, app, ZeroDivisionError("a fault"))

    async def scenario(client):
        texts = ["first", "good", "bad", "fine"]
        tasks = [asyncio.create_task(client.post("/link", json={"text": t})) for t in texts]
        await asyncio.sleep(0.05)
        stage.free.set()
        return await asyncio.gather(*tasks)

    answers = in_process(app, scenario)
    assert [answer.status_code for answer in answers] == [200, 200, 500, 200]
    number = answers[2].json()["id"]
    out, err = capfd.readouterr()
    assert f"error {number}: " in err
    assert "ZeroDivisionError: a fault" in err
    logged = [json.loads(line) for line in out.splitlines()]
    [line] = [line for line in logged if line["status"] == 500]
    assert (line["error"], line["texts"], line["questions"]) == (number, ["bad"], 1)


def test_the_log_has_no_texts(tiny_linker, capfd):
    app = make_app(tiny_linker, ServeSettings())
    posts(app, "/link", {"text": "my secret question"}, {"text": ["my secret question"]})
    out, err = capfd.readouterr()
    assert "secret" not in out + err
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [
        ("POST", "/link", 200),
        ("POST", "/link", 422),
    ]
    assert lines[0]["questions"] == 1


def test_it_is_not_ready_before_it_is(tiny_linker):
    import httpx

    app = make_app(tiny_linker, QUIET)

    async def main():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answers = [await client.get("/health"), await client.get("/ready")]
            return [*answers, await client.post("/link", json={"text": "x"})]

    health, ready, link = asyncio.run(main())
    assert (health.status_code, ready.status_code, link.status_code) == (200, 503, 503)
    assert "retry-after" in link.headers


def test_security_headers_and_no_cors(tiny_linker):
    origin = {"origin": "https://other.example"}
    closed = app_with(tiny_linker)
    [answer] = ask(closed, ("POST", "/link", {"json": {"text": "x"}, "headers": origin}))
    assert "access-control-allow-origin" not in answer.headers
    for name in ("content-security-policy", "x-content-type-options", "referrer-policy"):
        assert name in answer.headers
    opened = app_with(tiny_linker, cors="https://other.example")
    [good, bad] = ask(
        opened,
        ("POST", "/link", {"json": {"text": "x"}, "headers": origin}),
        ("POST", "/link", {"json": {"text": 3}, "headers": origin}),
    )
    for answer in (good, bad):
        assert answer.headers["access-control-allow-origin"] == "https://other.example"
    [other] = ask(opened, ("GET", "/health", {"headers": {"origin": "https://evil.example"}}))
    assert "access-control-allow-origin" not in other.headers


def test_nothing_comes_from_elsewhere(app):
    [docs, page] = ask(app, ("GET", "/docs", {}), ("GET", "/", {}))
    for answer in (docs, page):
        assert answer.headers["content-type"].startswith("text/html")
        for address in re.findall(r"(?:src|href)=[\"']?([^\"' >]+)", answer.text):
            assert "//" not in address
    assert "POST /disambiguate" in docs.text
    assert "<script" not in docs.text


def test_monitors_may_ask_by_head(app):
    answers = ask(app, ("HEAD", "/health", {}), ("HEAD", "/ready", {}))
    assert [answer.status_code for answer in answers] == [200, 200]


def test_metrics(tiny_linker):
    app = app_with(tiny_linker)
    posts(app, "/link", {"texts": QUESTIONS})
    [answer] = ask(app_with(tiny_linker), ("GET", "/metrics", {}))
    assert "elq_batch_questions_count 0.0" in answer.text  # Each application has its own.
    text = app.state.service.metrics.text(lambda: 0)[0].decode()
    assert f"elq_batch_questions_sum {len(QUESTIONS):.1f}" in text
    assert f"elq_links_per_question_count {len(QUESTIONS):.1f}" in text
    assert 'elq_request_seconds_count{path="/link"} 1.0' in text


def test_schemathesis_finds_no_fault(tiny_linker):
    schemathesis = pytest.importorskip("schemathesis", reason="needs requirements-extras.txt")
    import hypothesis

    app = app_with(tiny_linker, timeout=60.0)
    app.state.service.start = lambda: type(app.state.service).start(app.state.service, warm=False)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)

    @schema.parametrize()
    @hypothesis.settings(
        max_examples=int(os.environ.get("ELQ_JAX_EXAMPLES", "15")),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    def check(case):
        case.call_and_validate()
