"""The page in a real Chromium: links, slider, candidates, what it copies, and what it says.

`python -m benchmarks.page_picture` takes the picture of the README.
"""

import contextlib
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import jax
import pytest
from tiny import tiny_linker_directory

from elq_jax import EntityLinker
from elq_jax.entities.name_index import NameIndex
from elq_jax.linking.candidates import CandidateScorer, CandidateWeights
from elq_jax.linking.confidence import LinkScorer, LinkWeights
from elq_jax.model.bundle import Model
from elq_jax.serving.page_route import about

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

expect = sync_api.expect
PATIENCE = 60_000  # milliseconds, for busy machines
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
TEXT = "🎉🎉 what river flows through hillsborough ohio, obama?\nIt's 𝒷erkshire & <b>mountains</b>"


@pytest.fixture(scope="module")
def linkers(tmp_path_factory):
    """One linker with probabilities, one with log scores, one with scores of the original."""
    folder = tiny_linker_directory(
        tmp_path_factory.mktemp("linker"), threshold=-3.0, max_question_tokens=64
    )
    plain = EntityLinker.from_pretrained(folder, devices=jax.devices()[:1])
    sure = EntityLinker(
        Model.open(folder),
        plain.catalogue,
        plain.index,
        plain.settings.replace(
            decoder="confidence",
            threshold=-3.0,
            nil=True,
            floor=-30.0,
            search_floor=-30.0,
            search_margin=30.0,
        ),
        embeddings=plain.embeddings,
        candidate_scorer=CandidateScorer(
            CandidateWeights(weights={"product": 1.0, "title": 20.0}),
            NameIndex.build(plain.catalogue),
            plain.embeddings,
        ),
        link_scorer=LinkScorer(
            LinkWeights(
                mention={"logit": 1.0, "words": 0.3},
                link={"entity": 1.0, "mention": 0.5, "bias": 1.0},
                nil={"is_name": -9.0, "words": 0.5},
                nil_threshold=0.7,
            )
        ),
        devices=jax.devices()[:1],
    )
    original = plain.with_settings(
        decoder="elq_jax.original.decoding:original",
        threshold_type="thresholded_entity_by_mention",
        mention_threshold=-4.0,
        threshold=-2.0,
        allow_special_tokens=False,
    )
    return {"": sure, "joint/": plain, "original/": original}


@pytest.fixture(scope="module")
def service(linkers):
    """Addresses of the services by the name of their linker, all of one server."""
    import uvicorn
    from fastapi import FastAPI

    from elq_jax.serving.app import make_app
    from elq_jax.serving.settings import ServeSettings

    apps = {
        name: make_app(linker, ServeSettings(access_log=False, timeout=300))
        for name, linker in linkers.items()
    }

    @contextlib.asynccontextmanager
    async def lifespan(_):
        services = [app.state.service for app in apps.values()]
        for one_service in services:
            await one_service.start(warm=False)
        yield
        for one_service in services:
            await one_service.stop()

    root = FastAPI(lifespan=lifespan)
    for name in reversed(apps):
        root.mount(f"/{name}".rstrip("/"), apps[name])
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(root, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
    while not server.started:
        time.sleep(0.02)
    yield {name: address + name for name in apps}
    server.should_exit = True
    thread.join()
    listening.close()


@pytest.fixture(scope="module")
def browser():
    expect.set_options(timeout=PATIENCE)
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, service):
    """Function that opens the page; errors and requests to elsewhere fail the test."""
    problems, contexts = [], []

    def open_page(name="", viewport=DESKTOP, errors=False, **options):
        context = browser.new_context(viewport=viewport, reduced_motion="reduce", **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.linked = []  # bodies of requests to the model

        def see(request):
            if not request.url.startswith((service[""], "about:")):
                problems.append(f"a request to {request.url}")
            if request.url == service[name] + "link":
                page.linked.append(json.loads(request.post_data))

        page.on("request", see)
        page.on("pageerror", lambda error: problems.append(str(error)))
        if not errors:
            page.on("console", lambda message: problems.append(message.text))
        page.goto(service[name])
        page.wait_for_selector("#examples button")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not problems


def link(page, text):
    page.fill("#text", text)
    page.press("#text", "Enter")
    expect(page.locator("#linked")).to_be_visible()
    expect(page.locator("#linked")).to_have_js_property("textContent", text)


def shown(page):
    """Places of the links that the page shows, in characters as Python counts them."""
    parts = page.eval_on_selector(
        "#linked",
        "node => [...node.childNodes].map(n => [n.className ?? '', n.textContent])",
    )
    places, start = [], 0
    for name, text in parts:
        if name.startswith("mark"):
            places.append((start, start + len(text)))
        start += len(text)
    return places


def posted(address, **body):
    """The answer of POST /link."""
    request = urllib.request.Request(
        address + "link", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def slide(page, value):
    page.eval_on_selector(
        "#threshold", "(n, value) => (n.value = value, n.dispatchEvent(new Event('input')))", value
    )


def places_of(links):
    return [(link["start"], link["end"]) for link in links]


def test_a_text_is_linked(open_page, linkers, service):
    page = open_page()
    assert page.evaluate("document.activeElement.id") == "text"
    page.keyboard.type("what river flows")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("through hillsborough ohio?")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#linked .mark")
    text = "what river flows\nthrough hillsborough ohio?"
    [expected] = linkers[""]([text], min_probability=0.05)  # exp(-3), as the slider shows it
    assert page.input_value("#threshold") == "0.05"
    assert page.inner_text("#linked") == text
    assert shown(page) == [(link.start, link.end) for link in expected]
    titles = list(dict.fromkeys(link.title for link in expected if link.title))
    assert page.locator("#entities .title").all_inner_texts() == titles
    assert page.inner_text("#result-title") == f"{len(expected)} links"
    expect(page.locator("#status")).to_have_text(f"{len(expected)} links.")
    row = next(link.row for link in expected if link.title)
    text = linkers[""].catalogue[row].text
    expect(page.locator("#entities .description").first).to_have_js_property("textContent", text)


@pytest.mark.parametrize("name", ["", "joint/", "original/"])
def test_the_slider_gives_what_the_service_gives(open_page, service, name):
    page = open_page(name)
    link(page, TEXT)
    page.fill("#text", "not asked for")
    slider = page.evaluate("() => fetch('page/linker.json').then(r => r.json())")["slider"]
    assert slider["filters"] == (name != "original/")
    low, high = slider["lowest"], slider["highest"]
    counts = set()
    for value in (slider["start"], low, high, *(low + (high - low) * k / 7 for k in range(1, 7))):
        slide(page, value)
        value = float(page.input_value("#threshold"))  # of a step
        links = posted(service[name], text=TEXT, **{slider["name"]: value})["links"]
        if not slider["filters"]:  # The page asks when the slider rests.
            expect(page.locator(".mark")).to_have_count(len(links))
        assert shown(page) == places_of(links), value
        counts.add(len(links))
    assert len(counts) > 1  # The slider matters.
    if slider["filters"]:
        assert page.linked == [{"text": TEXT, slider["name"]: low}]
    else:
        assert len(page.linked) > 1


def test_equal_entities_have_equal_colours_and_numbers(open_page, linkers):
    page = open_page("joint/")
    text = "obama, obama and hillsborough"
    link(page, text)
    slide(page, -9.9)
    marks = page.locator(".mark").evaluate_all(
        "all => all.map(n => [n.className, n.dataset.number])"
    )
    [links] = linkers["joint/"]([text], threshold=-9.9)
    assert len(marks) == len(links)
    assert len({row.row for row in links}) == len({tuple(mark) for mark in marks})
    colours = {link.row: mark for link, mark in zip(links, marks, strict=True)}
    assert [colours[link.row] for link in links] == marks
    assert page.inner_text(".mark >> nth=0") == links[0].mention


def test_candidates_by_keyboard(open_page, linkers):
    page = open_page()
    link(page, TEXT)
    [links] = linkers[""]([TEXT], min_probability=0.05)
    number = next(i for i, link in enumerate(links) if link.candidates[0].wikidata_id)
    mark = page.locator(".mark").nth(number)
    card = page.locator("#card")
    page.focus("#threshold")
    for _ in range(number + 1):
        page.keyboard.press("Tab")
    assert mark.evaluate("n => n === document.activeElement")
    assert mark.get_attribute("aria-expanded") == "true"
    assert mark.get_attribute("aria-label").startswith(links[number].mention + ": ")
    titles = page.locator("#candidates .title").all_inner_texts()
    assert titles == [candidate.title for candidate in links[number].candidates]
    shares = [
        float(w[:-1])
        for w in card.locator(".filled").evaluate_all("a => a.map(n => n.style.width)")
    ]
    assert sum(shares) == pytest.approx(100, abs=1)
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "card"
    page.keyboard.press("Tab")  # the button that closes
    page.keyboard.press("Tab")
    wikidata_id = next(c.wikidata_id for c in links[number].candidates if c.wikidata_id)
    address = f"https://www.wikidata.org/wiki/{wikidata_id}"
    assert page.evaluate("document.activeElement.href") == address
    page.keyboard.press("Escape")
    assert not card.is_visible()
    assert mark.evaluate("n => n === document.activeElement")
    assert mark.get_attribute("aria-expanded") == "false"
    page.keyboard.press("ArrowDown")
    assert card.is_visible()


def test_candidates_by_pointer(open_page):
    page = open_page("joint/")
    link(page, TEXT)
    slide(page, -9.0)
    card = page.locator("#card")
    page.hover(".mark >> nth=1")
    card.wait_for()
    assert page.inner_text("#card-title") == f"“{page.inner_text('.mark >> nth=1')}”"
    assert re.search(r"log score −\d+\.\d\d$", page.inner_text("#card-note"))
    page.hover("#card")  # The pointer may go there.
    page.wait_for_timeout(400)
    assert card.is_visible()
    page.keyboard.press("Escape")
    assert not card.is_visible()
    page.hover(".mark >> nth=0")
    card.wait_for()
    page.hover("h1")
    card.wait_for(state="hidden")
    page.click(".mark >> nth=0")  # which keeps them open
    page.hover("h1")
    page.wait_for_timeout(400)
    assert card.is_visible()
    page.click("h1")
    assert not card.is_visible()


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read_and_reached(open_page, viewport, scheme):
    is_phone = viewport is PHONE
    page = open_page("", viewport, color_scheme=scheme, has_touch=is_phone)
    link(page, TEXT)
    mark = page.locator(".mark").last
    mark.tap() if is_phone else mark.click()
    box = page.locator("#card").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= viewport["width"]
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
    expect(page.locator("#candidates .description").first).not_to_be_empty()
    faint = page.evaluate(CONTRAST)
    assert not [part for part in faint if part[1] < 4.5]
    assert len(faint) > 20
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    lightness = sum(map(int, re.findall(r"\d+", background)))
    assert lightness < 120 if scheme == "dark" else lightness > 650


CONTRAST = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (colour) => {
    const [r, g, b] = channels(colour).map((value) => {
      const share = value / 255;
      return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if ((channels(colour)[3] ?? 1) === 1) return colour;
    }
    throw new Error("no background");
  };
  const parts = [];
  for (const node of document.body.querySelectorAll("*")) {
    const hasText = [...node.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!hasText || !node.checkVisibility()) continue;
    for (const pseudo of [null, "::before", "::after"]) {
      const style = getComputedStyle(node, pseudo);
      if (pseudo && style.content === "none") continue;
      const [a, b] = [luminance(style.color), luminance(behind(node))];
      const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      parts.push([node.textContent.slice(0, 40) + (pseudo ?? ""), ratio]);
    }
  }
  return parts;
}"""


def test_what_is_copied_can_be_run(open_page, service):
    permissions = ["clipboard-read", "clipboard-write"]
    page = open_page(permissions=permissions)
    text = "It's 🎉 obama's\n\"river\" \\n $HOME `x` in hillsborough!"
    link(page, text)
    slide(page, 0.2)

    def copied(kind):
        page.click(f"[data-copy={kind}]")
        expect(page.locator("#copied")).to_have_text("Copied")
        page.evaluate("document.getElementById('copied').textContent = ''")
        return page.evaluate("navigator.clipboard.readText()")

    expected = posted(service[""], text=text, min_probability=0.2)
    assert expected["links"]
    assert json.loads(copied("json")) == expected
    command = copied("curl")
    arguments = shlex.split(command)
    assert arguments[:2] == ["curl", service[""] + "link"]
    assert json.loads(arguments[-1]) == {"text": text, "min_probability": 0.2}
    if shutil.which("curl"):
        result = subprocess.run(["bash", "-c", command], capture_output=True, check=True)
        assert json.loads(result.stdout) == expected
    program = [sys.executable, "-X", "utf8", "-c", copied("python")]
    printed = subprocess.run(program, capture_output=True, check=True, encoding="utf-8").stdout
    places = [tuple(map(int, line.split()[:2])) for line in printed.splitlines()]
    assert places == places_of(expected["links"])


def test_texts_stay_texts(open_page):
    page = open_page()
    text = '<img src=x onerror="document.title=1"> & <script>obama</script> hillsborough'
    link(page, text)
    assert page.inner_text("#linked") == text
    assert page.locator("#linked img, #linked script").count() == 0
    assert page.title() == "elq_jax: entity linking"


def test_errors_in_words(open_page, service):
    page = open_page(errors=True)

    def said(pattern):
        expect(page.locator("#error")).to_have_text(re.compile(pattern))
        assert not page.locator("#result").is_visible()

    page.fill("#text", " \n")
    page.click("#link")
    said("^Type a text first")
    assert page.get_attribute("#text", "aria-invalid") == "true"
    page.fill("#text", "obama")
    for status, headers, answer, pattern in (
        (429, {"Retry-After": "7"}, {"error": "busy"}, "too much to do. Try again in 7 seconds"),
        (504, {}, {}, "did not answer in time"),
        (422, {}, {"error": "texts[0]: too long"}, r"does not take this text: texts\[0\]: too"),
        (413, {}, {}, "too long"),
        (500, {}, {"error": "a fault", "id": "abc"}, "failed at this text.* abc"),
        (503, {}, {}, "not ready"),
    ):
        answers = {"status": status, "headers": headers, "json": answer}
        page.route("**/link", lambda route, *, answers=answers: route.fulfill(**answers))
        page.click("#link")
        said(pattern)
        page.unroute("**/link")
    page.route("**/link", lambda route: route.abort())
    page.click("#link")
    said("does not answer. Is it still running")
    page.unroute("**/link")
    link(page, "obama")  # An error is gone with the next answer.
    assert not page.locator("#error").is_visible()


def test_nothing_found_and_texts_that_are_cut(open_page, linkers):
    page = open_page("joint/")
    page.route("**/link", lambda route: route.fulfill(json={"text": "?", "links": []}))
    link(page, "?")
    page.unroute("**/link")
    assert page.inner_text("#note") == "No name of the catalogue was found in this text."
    text = "🎉 obama in hillsborough " * 20
    link(page, text)
    assert page.locator("#linked .unread").count() == 0
    slide(page, -0.1)
    assert "No link is above this threshold" in page.inner_text("#note")
    page = open_page("original/")
    link(page, text)
    cut = linkers["original/"].encode([text])[0].truncated_at
    assert page.locator("#linked .unread").text_content() == text[cut:]
    assert "The linker read up to" in page.inner_text("#note")


def test_links_that_overlap_leave_the_text_as_it_is(open_page, service):
    page = open_page("original/")
    answer = posted(service["original/"], text="obama in ohio", threshold=-12)
    [first, *_] = answer["links"]
    overlapping = first | {"end": first["end"] + 1, "row": first["row"] + 1, "title": "Other"}
    answer["links"].insert(1, overlapping)
    page.route("**/link", lambda route: route.fulfill(json=answer))
    link(page, "obama in ohio")
    assert (first["start"], first["end"]) in shown(page)
    assert "Other" in page.locator("#entities .title").all_inner_texts()
    assert page.inner_text("#note").startswith("Links overlap")


def test_examples_are_clicked(open_page, linkers):
    page = open_page()
    examples = page.locator("#examples button")
    assert examples.all_inner_texts() == about(linkers[""])["examples"]
    examples.first.click()
    page.wait_for_selector("#result:not([hidden])")
    assert page.input_value("#text") == examples.first.inner_text()


def test_a_newer_request_replaces_one_that_is_under_way(open_page):
    page = open_page(errors=True)
    page.route("**/link", lambda route: None)  # never answered
    page.fill("#text", "hillsborough")
    page.click("#link")
    page.wait_for_selector("#form[aria-busy=true]")
    page.unroute("**/link")
    link(page, "obama in ohio")
    page.wait_for_selector("#form[aria-busy=false]")
    assert not page.locator("#error").is_visible()


def test_files_have_headers_and_are_not_sent_twice(service):
    for name in ("", "page/page.js", "page/page.css", "page/icon.svg"):
        with urllib.request.urlopen(service[""] + name) as response:
            headers = response.headers
            assert response.read()
        assert headers["X-Content-Type-Options"] == "nosniff"
        [policy] = headers.get_all("Content-Security-Policy")
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        request = urllib.request.Request(
            service[""] + name, headers={"If-None-Match": headers["ETag"]}
        )
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(request)
        assert error.value.code == 304
        error.value.close()
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(service[""] + "page/page_route.py")
    assert error.value.code == 404
    error.value.close()
