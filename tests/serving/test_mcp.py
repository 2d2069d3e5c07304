"""The server for agents, called by the SDK's own client."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import Future

import pytest

pytest.importorskip("mcp", reason="needs pip install 'elq_jax[serve]'")
import anyio
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from elq_jax.core.errors import ElqError
from elq_jax.serving import mcp as mcp_module

ROOT = pathlib.Path(__file__).parent.parent.parent
PATIENCE = 300  # seconds, on a busy machine
THRESHOLD = -9.0
TEXT = "who is obama in paris"
ENVIRONMENT = {name: os.environ[name] for name in os.environ if name.startswith(("JAX_", "ELQ_"))}
ENVIRONMENT["PYTHONPATH"] = str(ROOT)


def call(opening, *calls):
    """The results of (tool, arguments) from a client in this process."""
    if not isinstance(opening, Future):
        linker, opening = opening, Future()
        opening.set_result(linker)

    async def run():
        async with Client(mcp_module.make_server(opening)) as client:
            return [await client.call_tool(name, arguments) for name, arguments in calls]

    return anyio.run(run)


def values(result):
    """The answer, which is the same as text and as values."""
    assert not result.is_error, result.content
    [content] = result.content
    assert json.loads(content.text) == result.structured_content
    return result.structured_content


def words(result):
    """The error."""
    assert result.is_error
    [content] = result.content
    return content.text


def test_a_session_over_stdio(folder, linker):
    command = ["-m", "elq_jax.serve", "--mcp", "--linker", str(folder), "--dtype=float32"]
    parameters = StdioServerParameters(command=sys.executable, args=command, env=ENVIRONMENT)

    async def run():
        with open(os.devnull, "w") as log:
            async with Client(stdio_client(parameters, errlog=log)) as client:
                tools = (await client.list_tools()).tools
                links = await client.call_tool("link_entities", {"text": TEXT})
                title = linker.catalogue[7].title
                entities = await client.call_tool("find_entity", {"title": title.lower()})
                entity = await client.call_tool("get_entity", {"row": 7})
                outside = await client.call_tool("get_entity", {"row": 500})
                return client.instructions, tools, links, entities, entity, outside

    instructions, tools, links, entities, entity, outside = anyio.run(run)
    assert "link_entities" in instructions
    assert [tool.name for tool in tools] == ["link_entities", "find_entity", "get_entity"]
    for tool in tools:
        assert tool.title
        assert len(tool.description) > 40
        assert tool.annotations.read_only_hint
        assert all("description" in x for x in tool.input_schema["properties"].values())
        assert tool.output_schema["type"] == "object"
    expected = linker(TEXT)
    assert len(expected) > 1
    found = values(links)["links"]
    assert [(x["start"], x["end"], x["row"], x["title"]) for x in found] == [
        (link.start, link.end, link.row, link.title) for link in expected
    ]
    assert values(entities)["entities"][0]["row"] == 7
    assert values(entities)["exact"] == 1
    assert values(entity)["description"] == linker.catalogue[7].text
    assert words(outside) == (
        "error: row: 500; expected 0 to 499, as find_entity and link_entities return it"
    )


def test_links_are_short_and_say_what_they_leave_out(linker, monkeypatch):
    monkeypatch.setattr(mcp_module, "_MAX_LINKS", 3)
    monkeypatch.setattr(mcp_module, "_SHORT", 30)
    text = f"{TEXT} of obama in ohio"
    links = linker(text)
    assert len(links) > 3
    [result] = call(linker, ("link_entities", {"text": text}))
    answer = values(result)
    assert answer["links_left_out"] == len(links) - 3
    assert answer["next_start"] == links[3].start
    for found, link in zip(answer["links"], links[:3], strict=True):
        assert found["mention"] == link.mention
        assert found["confidence"] == pytest.approx(2.718281828459045**link.score, abs=1e-3)
        others = [(other.row, other.title) for other in link.candidates[1:3]]
        assert [(other["row"], other["title"]) for other in found["others"]] == others
        assert found["others_left_out"] == len(link.candidates) - 3
    rows = list(dict.fromkeys(link.row for link in links[:3]))
    assert [entity["row"] for entity in answer["entities"]] == rows
    for entity in answer["entities"]:
        description = linker.catalogue[entity["row"]].text
        shown = entity["description"]
        assert shown == description or (
            description.startswith(shown[:-1]) and shown.endswith("…") and len(shown) <= 31
        )


def test_texts_of_any_length_are_read_to_their_end(linker, monkeypatch):
    text = " ".join(f"{TEXT} number {number}." for number in range(45))
    monkeypatch.setattr(mcp_module, "_MAX_LINKS", 1000)
    [result] = call(linker, ("link_entities", {"text": text}))
    links = values(result)["links"]
    assert all(text[link["start"] : link["end"]] == link["mention"] for link in links)
    assert links[-1]["end"] > text.rindex(TEXT)
    blank, long = call(
        linker, ("link_entities", {"text": ""}), ("link_entities", {"text": "x" * 20_001})
    )
    assert values(blank) == {"links": [], "entities": []}
    assert words(long) == (
        "error: text: 20,001 characters; expected at most 20,000, so link it in several calls"
    )


def test_what_is_outside_the_catalogue_has_no_row(linker):
    link = linker(TEXT)[0]
    brief = mcp_module._brief_link(
        type(link)(0, 3, "who", None, None, None, -1.0, -1.0, link.candidates, 0.25)
    )
    assert brief.row is None
    assert brief.confidence == 0.25
    assert brief.others[0].row == link.candidates[0].row


def test_entities(linker, monkeypatch):
    catalogue = linker.catalogue
    titles = catalogue.titles(range(len(catalogue)))
    letter = titles[0][0]
    count = sum(title.lower().startswith(letter.lower()) for title in titles)
    assert count > 8
    many, none, empty = call(
        linker,
        ("find_entity", {"title": letter}),
        ("find_entity", {"title": "no such title"}),
        ("find_entity", {"title": " "}),
    )
    assert len(values(many)["entities"]) == 8
    assert values(many)["entities_left_out"] == count - 8
    assert values(none) == {"entities": [], "exact": 0}
    assert words(empty) == "error: title: ' '; expected a title, or its first letters"
    monkeypatch.setattr(mcp_module, "_LONG", 50)
    row = max(range(20), key=lambda row: len(catalogue[row].text))
    [result] = call(linker, ("get_entity", {"row": row}))
    shown, text = values(result)["description"], catalogue[row].text
    assert text.startswith(shown.removesuffix("…"))
    left_out = values(result)["description_characters_left_out"]
    assert len(shown.removesuffix("…")) + left_out == len(text)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("link_entities", {}, "error: field 'text': missing"),
        ("link_entities", {"text": 3}, "error: field 'text': found 3, expected a string"),
        ("get_entity", {"row": -1}, "error: field 'row': found -1, expected an integer >= 0"),
        ("get_entity", {"row": True}, "error: field 'row': found true, expected an integer"),
        (
            "find_entity",
            {"title": "x", "limit": 3},
            "error: limit: no argument of find_entity; expected title",
        ),
        ("find", {}, "error: find: no such tool; expected one of link_entities, find_entity"),
    ],
)
def test_wrong_calls_are_answered_in_words(name, arguments, message):
    opening = Future()
    opening.set_result(None)  # Nothing needs the linker.
    [result] = call(opening, (name, arguments))
    assert message in words(result)


def test_failures_are_answered_in_words(linker, monkeypatch, capsys):
    opening = Future()
    opening.set_exception(ElqError("/none: no config.json here"))
    [result] = call(opening, ("get_entity", {"row": 1}))
    assert words(result) == "error: /none: no config.json here"

    def failing(linker, arguments):
        raise RuntimeError("a secret")

    tool = dataclasses.replace(mcp_module.TOOLS["get_entity"], run=failing)
    monkeypatch.setitem(mcp_module.TOOLS, "get_entity", tool)
    failed, found = call(linker, ("get_entity", {"row": 1}), ("find_entity", {"title": "zz"}))
    assert words(failed).startswith("error: get_entity failed (RuntimeError); the log")
    assert "a secret" in capsys.readouterr().err
    assert values(found)["exact"] == 0


def test_the_documentation_starts_what_the_program_starts():
    text = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
    block = json.loads(text.partition("```json\n")[2].partition("```")[0])
    [server] = block["mcpServers"].values()
    assert server["args"][:4] == ["-m", "elq_jax.serve", "--mcp", "--linker"]
    for name in mcp_module.TOOLS:
        assert f"| `{name}(" in text


REQUESTS = [
    {
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        },
    },
    {"method": "notifications/initialized"},
    {"id": 2, "method": "tools/call", "params": {"name": "get_entity", "arguments": {"row": 1}}},
]

NOISY = """
import os, sys
from elq_jax.core.errors import ElqError
from elq_jax.serving.mcp import serve_stdio

def open_linker():
    print("noise of Python", flush=True)
    os.write(1, b"noise of a library\\n")
    if sys.argv[1] == "hang":
        import time
        time.sleep(1000)
    raise ElqError("nothing can be opened")

serve_stdio(open_linker)
"""


@contextlib.contextmanager
def noisy_server(how):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(NOISY), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | ENVIRONMENT,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()


def send(process, requests):
    for request in requests:
        process.stdin.write(json.dumps({"jsonrpc": "2.0"} | request).encode() + b"\n")
    process.stdin.flush()


def test_nothing_but_the_protocol_goes_to_stdout():
    with noisy_server("fail") as process:
        send(process, REQUESTS)
        answers = [json.loads(process.stdout.readline()) for _ in range(2)]
        assert [answer["id"] for answer in answers] == [1, 2]
        assert answers[0]["result"]["serverInfo"]["name"] == "elq_jax"
        assert answers[1]["result"]["isError"]
        assert answers[1]["result"]["content"][0]["text"] == "error: nothing can be opened"
        process.stdin.write(b"no JSON\n")
        process.stdin.flush()
        process.stdin.close()
        assert process.wait(PATIENCE) == 0
        for line in process.stdout.read().splitlines():
            assert json.loads(line)["jsonrpc"] == "2.0"
        log = process.stderr.read().decode()
        assert "noise of Python\nnoise of a library\nerror: nothing can be opened" in log


def test_a_client_that_is_gone_is_no_error():
    with noisy_server("fail") as process:
        send(process, REQUESTS[:2])
        process.stdout.readline()
        process.stdout.close()
        send(process, REQUESTS[2:])
        time.sleep(0.5)
        process.stdin.close()
        assert process.wait(PATIENCE) == 0
        assert "Traceback" not in process.stderr.read().decode()


@pytest.mark.parametrize("how", ["stdin", "interrupt"])
def test_it_ends_while_the_linker_is_opened(how):
    with noisy_server("hang") as process:
        send(process, REQUESTS)
        assert json.loads(process.stdout.readline())["id"] == 1
        if how == "stdin":
            process.stdin.close()
        else:
            process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == (0 if how == "stdin" else 130)


def test_flags_for_http_are_refused(folder):
    command = ["-m", "elq_jax.serve", "--mcp", "--linker", str(folder), "--port=1"]
    done = subprocess.run(
        [sys.executable, *command],
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: --port: of no use with --mcp" in done.stderr
