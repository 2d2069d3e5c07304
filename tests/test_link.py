"""The link program: rows in, lines out, stopping and going on, the terminal."""

import dataclasses
import errno
import gzip
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import xla_flags
from rich.console import Console

from elq_jax.cli.flags import LinkerFlags
from elq_jax.core.errors import ElqError
from elq_jax.linking import output as output_lib
from elq_jax.linking import rows as batch
from elq_jax.linking import terminal
from elq_jax.questions import rows as inputs
from elq_jax.storage import part_file

THRESHOLD = -6.0
WORDS = ["who", "obama", "cote", "paris", "ohio", "born", "café", "東京", "dune", "👩‍👧"]
ANSI = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@pytest.fixture
def write(tmp_path):
    def write(content, name="questions.jsonl"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def read(path, on_error="stop", form=None):
    with open(path, "rb") as source:
        return list(inputs.read_rows(source, path, form or inputs.form_of(path), on_error))


def some_rows(count):
    """Questions of a few words, all different."""
    texts = (f"{WORDS[i % 10]} {WORDS[i // 10 % 10]} {i}" for i in range(count))
    return [inputs.Row(f"q{i}", text) for i, text in enumerate(texts)]


def test_text_lines(write):
    path = write("\ufeffwho wrote dune?\r\n\n  café \n👩‍👧", "questions.txt")
    rows = read(path)
    assert [(row.id, row.text) for row in rows] == [
        (1, "who wrote dune?"),
        (2, ""),
        (3, "  café "),
        (4, "👩‍👧"),
    ]
    assert inputs.count_rows(path, "txt") == len(rows)


def test_objects(write):
    lines = [
        '{"id": "a", "text": "x", "mentions": []}',
        "",
        '{"id": 7, "text": ""}',
        '{"text": "y"}',
    ]
    content = "\n".join(lines)
    path = write(content)
    expected = [inputs.Row("a", "x", spans=()), inputs.Row(7, ""), inputs.Row(4, "y")]
    assert read(path) == expected
    assert read(write(gzip.compress(content.encode()), "questions.jsonl.gz")) == expected
    assert inputs.count_rows(path, "jsonl") == 3
    rows = read(write('{"id": 1.5, "text": "who is", "mentions": [[4, 6], [0, 6]]}'))
    assert rows == [inputs.Row(1.5, "who is", spans=((4, 6), (0, 6)))]


@pytest.mark.parametrize("name", ["a.txt", "a.TXT", "a.txt.gz", "A.Txt.GZ"])
def test_gzip_is_told_by_its_first_bytes(write, name):
    for content in (b"who\nis", gzip.compress(b"who\nis")):
        path = write(content, name)
        assert [row.text for row in read(path)] == ["who", "is"]
        assert inputs.count_rows(path, "txt") == 2


def test_text_that_is_something_else(write):
    """Objects where text was guessed, old Macintosh line ends, UTF-16 with and without a mark."""
    path = write('{"text": "who"}\n', "questions.txt")
    assert [row.text for row in read(path, form="txt")] == ['{"text": "who"}']
    with open(path, "rb") as source, pytest.raises(ElqError, match="give --input_format=jsonl"):
        list(inputs.read_rows(source, path, "txt", is_guess=True))
    for content, message in (
        (b"who is\rwhere is\r", ":1: found a carriage return inside the line"),
        ("who".encode("utf-16-le"), ":1: found a NUL, as in UTF-16"),
        ("who".encode("utf-16"), ":1: found UTF-16, expected UTF-8"),
    ):
        with pytest.raises(ElqError, match=message):
            read(write(content, "other.txt"))


@pytest.mark.parametrize("name", ["questions.txt", "questions.jsonl"])
def test_empty_file(write, linker, tmp_path, name):
    path = write("", name)
    assert read(path) == []
    assert inputs.count_rows(path, inputs.form_of(path)) == 0
    batch.link_file(linker, [], tmp_path / "out.jsonl", {})
    assert (tmp_path / "out.jsonl").read_bytes() == b""


BAD_LINES = [
    ('{"text": "x"', 3, "invalid JSON"),
    ('["x"]', 3, "expected a JSON object {...}, found list; write one object a line"),
    ('[{"text": "x"},', 3, "expected one object a line, not an array"),
    ('{"text": "x",', 3, "expected one object a line, not one over several lines"),
    ('{"text": "x"}\r{"text": "y"}', 3, "a carriage return inside the line"),
    ('{"id": "c"}', "c", "field 'text': missing"),
    ('{"id": "c", "text": null}', "c", "field 'text': found null, expected a string"),
    ('{"id": "c", "text": ["x"]}', "c", "field 'text': found [\"x\"], expected a string"),
    ('{"id": [1], "text": "x"}', 3, "field 'id': found [1], expected an integer or a number or a"),
    ('{"id": true, "text": "x"}', 3, "field 'id': found true"),
    ('{"id": "c", "text": "\\ud83d"}', "c", "field 'text': half of a surrogate pair"),
    ('{"id": "\\ud83d", "text": "x"}', "\ufffd", "field 'id': half of a surrogate pair"),
    ('{"id": "c", "text": "who", "mentions": [[0, 4]]}', "c", "[0, 4) is out of range"),
    ('{"id": "c", "text": "who", "mentions": [[0]]}', "c", "field 'mentions[0]': found [0]"),
    (b'{"id": "c", "text": "\xff"}', 3, "not UTF-8"),
    ("[" * 100_000, 3, "JSON that cannot be read (it is nested too deeply)"),
    ('{"text": ' + "9" * 5000 + "}", 3, "JSON that cannot be read (a number has thousands of"),
]


@pytest.mark.parametrize(("line", "identifier", "message"), BAD_LINES)
def test_a_bad_third_line(write, line, identifier, message):
    line = line if isinstance(line, bytes) else line.encode()
    path = write(b'{"text": "x"}\n{"text": "y"}\n' + line + b'\n{"text": "z"}\n')
    where = f"{path}:3: "
    with pytest.raises(ElqError, match=re.escape(where) + ".*" + re.escape(message)):
        read(path)
    rows = read(path, "skip")
    assert [row.id for row in rows] == [1, 2, identifier, 4]
    assert [row.error is None for row in rows] == [True, True, False, True]
    assert rows[2].error.startswith(where)
    assert message in rows[2].error


def test_text_that_is_not_utf8(write):
    path = write(b"who\ncaf\xe9\n", "questions.txt")
    with pytest.raises(ElqError, match=r"questions\.txt:2: not UTF-8 .*byte 3"):
        read(path)
    assert [row.error is None for row in read(path, "skip")] == [True, False]
    with pytest.raises(ElqError, match="question 2 on the command line is not UTF-8"):
        inputs.rows_of_arguments(["who", "caf\udce9"])


def test_names_that_say_nothing():
    with pytest.raises(ElqError, match=r"questions\.csv: the name ends in none of"):
        inputs.form_of("questions.csv")


def test_rows_are_read_as_they_are_needed(write):
    """A stream is not read to its end first; with batches of one each line is answered at once."""

    class Stream(io.RawIOBase):
        """As a pipe to which a line is written whenever there is nothing to read."""

        lines = 0

        def readable(self):
            return True

        def readinto(self, buffer):
            line = f"question {self.lines}\n".encode()
            self.lines += 1
            buffer[: len(line)] = line
            return len(line)

    def chunks(stream, batch_size):
        rows = inputs.read_rows(io.BufferedReader(stream), "stdin", "txt")
        return batch.chunks(rows, batch_size, lambda row: len(row.text))

    stream = Stream()
    assert [row.text for row in next(chunks(stream, 1))] == ["question 0"]
    assert stream.lines == 1
    stream = Stream()
    assert len(next(chunks(stream, 2))) == 32
    assert stream.lines == 32


def test_lines_hold_what_the_linker_says(linker, tmp_path):
    rows = [
        inputs.Row("a", "who is obama café"),
        inputs.Row(2, ""),
        inputs.Row(3, error="f.jsonl:3: missing"),
        inputs.Row("long", "x " * 5000),
    ]
    linked = batch.link_rows(linker, rows, 4)
    cutting = linker.with_settings(decoder="elq_jax.original.decoding:original")
    linked[3:] = batch.link_rows(cutting, rows[3:], 4)
    lines = [json.loads(batch.to_line(one)) for one in linked]
    for one, line in zip(linked, lines, strict=True):
        assert batch.to_line(one) == json.dumps(line, ensure_ascii=False).encode() + b"\n"
    assert [line["id"] for line in lines] == ["a", 2, 3, "long"]
    assert lines[1] == {"id": 2, "text": "", "links": []}
    assert lines[2] == {"id": 3, "error": "f.jsonl:3: missing"}
    assert lines[3]["truncated_at"] == 2 * 126
    assert "truncated_at" not in lines[0]
    expected = linker("who is obama café")
    assert expected
    for found, link in zip(lines[0]["links"], expected, strict=True):
        assert set(found) == {*link.__struct_fields__}
        assert lines[0]["text"][found["start"] : found["end"]] == found["mention"]
        for name in ("start", "end", "mention", "title", "wikidata_id", "row", "id"):
            assert found[name] == getattr(link, name)
        assert found["score"] == pytest.approx(link.score, abs=1e-5)
        assert found["mention_score"] == pytest.approx(link.mention_score, abs=1e-5)
        assert len(found["candidates"]) == 10
        assert set(found["candidates"][0]) == {"title", "wikidata_id", "row", "score", "id"}
        assert found["candidates"][0]["title"] == found["title"]
    assert "café".encode() in batch.to_line(linked[0])  # readable, not escaped


@pytest.fixture(scope="module")
def unbroken(linker, tmp_path_factory):
    """Seventy rows, one of them bad, and the file made of them in one go."""
    rows = some_rows(70)
    rows[40] = inputs.Row("q40", error="q.jsonl:41: missing")
    path = tmp_path_factory.mktemp("unbroken") / "out.jsonl"
    batch.link_file(linker, rows, path, {}, batch_size=2)
    assert [item.name for item in path.parent.iterdir()] == ["out.jsonl"]
    assert len(path.read_bytes().splitlines()) == 70
    return rows, path.read_bytes()


@pytest.mark.parametrize("where", [0, 1, 500, 0.3, 0.5, 0.9, -1, 1.0])
@pytest.mark.parametrize("ahead", [0, 2])
def test_cut_anywhere_it_goes_on_to_the_same_bytes(linker, unbroken, tmp_path, where, ahead):
    rows, whole = unbroken
    cut = int(where * len(whole)) if isinstance(where, float) else where
    output = tmp_path / "out.jsonl"
    with output_lib.PartFile(output, {"batch_size": 2}):
        pass
    (tmp_path / "out.jsonl.part").write_bytes(whole[:cut])
    done = []
    options = {"batch_size": 2, "ahead": ahead, "progress": lambda *args: done.append(args)}
    batch.link_file(linker, rows, output, {}, **options)
    assert output.read_bytes() == whole
    assert [row for chunk, _ in done for row in chunk] == rows
    assert [item.name for item in tmp_path.iterdir()] == ["out.jsonl"]
    # Chunks are of 32 rows; none that is whole is linked again.
    whole_chunks = whole[:cut].count(b"\n") // 32 if cut != len(whole) else 3
    assert [linked is None for _, linked in done] == [n < whole_chunks for n in range(3)]


@pytest.mark.parametrize("ahead", [0, 2])
def test_interrupted_it_leaves_whole_lines_and_no_output(linker, unbroken, tmp_path, ahead):
    rows, whole = unbroken

    def interrupt(chunk, linked):
        raise KeyboardInterrupt

    output = tmp_path / "out.jsonl"
    output.write_text("older\n")
    with pytest.raises(KeyboardInterrupt):
        batch.link_file(linker, rows, output, {}, batch_size=2, ahead=ahead, progress=interrupt)
    assert output.read_text() == "older\n"
    assert whole.startswith((tmp_path / "out.jsonl.part").read_bytes())
    assert (tmp_path / "out.jsonl.part").read_bytes().count(b"\n") == 32
    batch.link_file(linker, rows, output, {}, batch_size=2)
    assert output.read_bytes() == whole


def test_other_settings_and_other_rows_are_refused(linker, unbroken, tmp_path):
    rows, whole = unbroken
    output, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    settings = {"threshold": -4.5, "dtype": "bfloat16"}
    with output_lib.PartFile(output, settings | {"batch_size": 2}):
        pass
    part.write_bytes(whole)

    def refused(message, rows=rows, settings=settings, batch_size=2):
        with pytest.raises(ElqError, match=message + r".*start over with --restart"):
            batch.link_file(linker, rows, output, settings, batch_size=batch_size)
        assert part.read_bytes() == whole
        assert not output.exists()

    refused(
        r"\(threshold \(found -4\.5, now -2\.0\)\); repeat that run's command to resume",
        settings=settings | {"threshold": -2.0},
    )
    refused(
        r"\(dtype \(found 'bfloat16', now 'float32'\)\); repeat that run's command with "
        "--dtype=bfloat16 to resume it",
        settings=settings | {"dtype": "float32"},
    )
    refused(r"index \(found None, now 'exact'\)", settings=settings | {"index": "exact"})
    refused(r"batch_size \(found 2, now 4\)", batch_size=4)
    refused("it has id 'q0' where the input has 'q1'", rows[1:])
    refused("it has id 'q3' where", [*rows[:3], inputs.Row("q3", "another"), *rows[4:]])
    refused("more lines than the input has rows", rows[:32])
    with (
        output_lib.PartFile(output, settings | {"batch_size": 2}),
        pytest.raises(ElqError, match="another process is writing it"),
    ):
        batch.link_file(linker, rows, output, settings, batch_size=2)
    batch.link_file(linker, rows, output, {"threshold": -2.0}, batch_size=2, restart=True)
    assert output.read_bytes() == whole


def test_labelled_questions_are_linked_as_if_without_labels(write):
    path = write('{"text": "who is", "mentions": [[0, 3]]}\n{"text": "who"}', "q.jsonl")
    with inputs.open_rows(path, with_mentions=False) as (rows, total):
        assert [(row.text, row.spans) for row in rows] == [("who is", None), ("who", None)]
    assert total == 2
    with inputs.open_rows(path) as (rows, _):
        assert [row.spans for row in rows] == [((0, 3),), None]


def test_rows_that_carry_mentions(linker, write, tmp_path):
    """They are disambiguated; among rows whose mentions are to be found; resumed like these."""
    lines = [
        {"text": "who is obama"},
        {"id": "b", "text": "paris in ohio", "mentions": [[9, 13], [0, 5]]},
        {"id": "c", "text": "paris in ohio", "mentions": []},
        {"id": "d", "text": "paris in ohio", "mentions": [[1, 5]]},
        {"text": "paris in ohio"},
    ]
    rows = read(write("".join(json.dumps(line) + "\n" for line in lines)))
    message = r"questions.jsonl:4: question d, mention 0 \[1, 5\) 'aris': it begins or ends"
    with pytest.raises(ElqError, match=message):
        batch.link_rows(linker, rows)
    linked = batch.link_rows(linker, rows, 2, "skip")
    assert [result.row.id for result in linked] == [1, "b", "c", "d", 5]
    given = linker.disambiguate("paris in ohio", [(9, 13), (0, 5)])
    assert [(x.start, x.end, x.row) for x in linked[1].links] == [
        (x.start, x.end, x.row) for x in given
    ]
    assert linked[2].links == []
    assert "question d, mention 0" in linked[3].row.error
    for number in (0, 4):
        wanted = linker(lines[number]["text"])
        assert [x.row for x in linked[number].links] == [x.row for x in wanted]

    output, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    batch.link_file(linker, rows, output, {}, batch_size=2, on_error="skip")
    whole = output.read_bytes()
    assert [json.loads(line)["id"] for line in whole.splitlines()] == [1, "b", "c", "d", 5]
    with output_lib.PartFile(output, {"batch_size": 2}):
        pass
    part.write_bytes(whole)
    other = dataclasses.replace(rows[1], spans=((9, 13),))
    with pytest.raises(ElqError, match="it has id 'b' where the input has 'b'"):
        batch.link_file(linker, [rows[0], other, *rows[2:]], output, {}, batch_size=2)
    done = []
    batch.link_file(
        linker, rows, output, {}, batch_size=2, progress=lambda *args: done.append(args)
    )
    assert [linked for _, linked in done] == [None]
    assert output.read_bytes() == whole


def test_predictions_for_elevant_are_resumed_to_the_same_bytes(linker, unbroken, tmp_path):
    rows, whole = unbroken
    output, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    batch.link_file(linker, rows, output, {}, form="simple-jsonl", batch_size=2)
    lines = output.read_bytes()
    for line, other in zip(lines.splitlines(), whole.splitlines(), strict=True):
        line, other = json.loads(line), json.loads(other)
        assert line["id"] == other["id"]
        links = [(x["start_char"], x["end_char"]) for x in line["predictions"]]
        assert links == [(x["start"], x["end"]) for x in other.get("links", ())]
    with output_lib.PartFile(output, {"batch_size": 2, "form": "simple-jsonl"}):
        pass
    part.write_bytes(b"".join(lines.splitlines(keepends=True)[:40])[:-9])
    with pytest.raises(ElqError, match="form"):
        batch.link_file(linker, rows, output, {}, batch_size=2)
    done = []
    options = {"batch_size": 2, "progress": lambda *args: done.append(args)}
    batch.link_file(linker, rows, output, {}, form="simple-jsonl", **options)
    assert output.read_bytes() == lines
    assert [linked is None for _, linked in done] == [True, False, False]
    with output_lib.PartFile(output, {"batch_size": 2, "form": "simple-jsonl"}):
        pass
    part.write_bytes(lines)
    changed = [dataclasses.replace(rows[0], text="another"), *rows[1:]]
    with pytest.raises(ElqError, match="it has id 'q0' where the input has 'q0'"):
        batch.link_file(linker, changed, output, {}, form="simple-jsonl", batch_size=2)


class SmallDisk(io.FileIO):
    """A file on a disk that takes `room` more bytes."""

    room = 0

    def write(self, data):
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = super().write(bytes(data)[: self.room])
        SmallDisk.room -= written
        return written


@pytest.mark.parametrize("room", [0, 10, 40_000])
def test_full_disk(linker, unbroken, tmp_path, monkeypatch, room):
    rows, whole = unbroken
    assert len(whole) > 40_000
    output = tmp_path / "out.jsonl"
    monkeypatch.setattr(SmallDisk, "room", room)
    monkeypatch.setattr(
        part_file,
        "open",
        lambda path, mode: io.BufferedRandom(SmallDisk(path, "a+")),
        raising=False,
    )
    with pytest.raises(
        ElqError, match=r"part: not written, the disk is full; .*same command again"
    ):
        batch.link_file(linker, rows, output, {}, batch_size=2)
    assert not output.exists()
    assert len((tmp_path / "out.jsonl.part").read_bytes()) == room
    monkeypatch.undo()
    batch.link_file(linker, rows, output, {}, batch_size=2)
    assert output.read_bytes() == whole


def test_output_that_is_a_file_of_the_linker(linker):
    catalogue = linker.folder / "catalogue.arrow"
    content = catalogue.read_bytes()
    with pytest.raises(
        ElqError, match=r"catalogue\.arrow: is a file of the linker .*another output"
    ):
        batch.link_all(linker, [], catalogue)
    assert catalogue.read_bytes() == content


def test_output_that_is_a_folder(linker, tmp_path):
    with pytest.raises(ElqError, match="is a folder; give the name of a file"):
        batch.link_file(linker, [], tmp_path, {})


def console():
    return Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=70)


def test_coloured_text(linker):
    screen = console()
    text = "who is [bold]obama[/bold]\t:smile: \x1b[31m café"
    links = linker(text, -float("inf"))
    terminal.print_links(screen, linker.catalogue, text, links, candidates=2)
    shown = screen.file.getvalue()
    lines = ANSI.sub("", shown).splitlines()
    printable = text.replace("\x1b", "\ufffd").replace("\t", " ")
    assert lines[0] == printable  # no markup, no emoji codes, no escape sequences
    assert len(lines) == 1 + 3 * len(links)
    first = links[0]
    assert lines[1].startswith(f"  {first.mention} -> {first.title}")
    assert f"{first.score:.3f}" in lines[1]
    assert lines[3].startswith(f"     2. {first.candidates[1].title}")
    assert all(len(line) <= 70 for line in lines[1:])
    marked = re.findall(r"\x1b\[1;7;\d+m(.*?)\x1b\[0m", shown.splitlines()[0])
    assert marked == [printable[link.start : link.end] for link in links]


def test_another_threshold_runs_no_model(linker, monkeypatch):
    screen, runs = console(), []
    score_batch = linker.score_batch
    monkeypatch.setattr(
        linker, "score_batch", lambda *args: runs.append(args) or score_batch(*args)
    )
    lines = iter([":t -1", "who is obama", ":t -9", ":c 2", ":t x", ":t nan", ":q", ""])
    terminal.Session(linker, screen, lambda prompt: next(lines)).run()
    assert len(runs) == 1
    shown = ANSI.sub("", screen.file.getvalue())
    assert shown.count("who is obama\n") == 3
    assert "threshold -1\n" in shown
    found = linker("who is obama", -9)
    assert found
    after = shown.split("threshold -9\n")[1]
    for link in found:
        assert f"  {link.mention} -> {link.title}" in after
    assert "  no links\n" in shown.split("threshold -9\n")[0]
    assert shown.count("     2. ") == len(found)
    assert shown.count("expected a number, as in :t -2.0 or :c 3") == 2
    assert "an empty line, or Ctrl-D, ends" in shown
    with pytest.raises(StopIteration):
        next(lines)


ENVIRONMENT = {
    **os.environ,
    "XLA_FLAGS": xla_flags(1),
    "ELQ_JAX_CACHE": "",
    "TERM": "xterm-256color",
}
ENVIRONMENT.pop("NO_COLOR", None)


def start(*arguments, closed="", **options):
    command = [sys.executable, "-m", "elq_jax.link", *map(str, arguments)]
    if closed:
        command = ["sh", "-c", f'exec "$@" {closed}', "sh", *command]
    return subprocess.Popen(command, stdout=-1, stderr=subprocess.PIPE, env=ENVIRONMENT, **options)


def run(*arguments, stdin=b""):
    process = start(*arguments, stdin=subprocess.PIPE)
    output, errors = process.communicate(stdin, timeout=120)
    return process.returncode, output.decode(), errors.decode()


def test_program_from_stdin_to_stdout(folder, linker, tmp_path, monkeypatch):
    questions = [
        "who is obama",
        "",
        "👩‍👩‍👧 cafe\u0301 in ohio 🇨🇮",
        "is [PAD] or [SEP] [unused2] it",
    ]
    content = "\n".join(questions).encode()
    flags = "--preset=webqsp", "--threshold=-5"
    monkeypatch.setitem(ENVIRONMENT, "ELQ_JAX_CACHE", str(tmp_path / "compiled"))
    status, output, errors = run("--linker", folder, *flags, stdin=content)
    assert status == 0, errors
    assert list((tmp_path / "compiled").iterdir())  # The next start does not compile.
    lines = [json.loads(line) for line in output.splitlines()]
    assert [(line["id"], line["text"]) for line in lines] == list(enumerate(questions, 1))
    expected = linker.with_settings(max_mentions=50)(questions, -5)
    assert [
        [(link["start"], link["end"], link["title"]) for link in line["links"]] for line in lines
    ] == [[(link.start, link.end, link.title) for link in links] for links in expected]
    assert re.search(r"4 questions in .* s \(.*/s\); peak memory \d+\.\d+ GiB", errors)


def test_program_killed_and_given_again(folder, linker, write, tmp_path):
    rows = some_rows(500)
    lines = [json.dumps({"id": row.id, "text": row.text}) for row in rows]
    lines[2] = '{"id": "q2"'
    path = write("\n".join(lines))
    output, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    arguments = ("--linker", folder, "--input", path, "--output", output, "--batch_size=2")
    status, _, errors = run(*arguments)
    assert status == 2
    assert f"error: {path}:3: invalid JSON" in errors

    process = start(*arguments, "--on_error=skip")
    while not (part.exists() and part.stat().st_size):
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not output.exists()

    status, _, errors = run(*arguments, "--on_error=skip")
    assert status == 0, errors
    assert re.search(r"rows already done|1 rows skipped", errors)
    rows[2] = inputs.Row(3, error=read(path, "skip")[2].error)
    batch.link_file(linker, rows, tmp_path / "expected.jsonl", {}, batch_size=2)
    assert output.read_bytes() == (tmp_path / "expected.jsonl").read_bytes()


def test_program_on_a_terminal(folder):
    """A real terminal: colours, the prompt, another threshold, Ctrl-D."""
    descriptor, terminal_side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "elq_jax.link", "--linker", folder],
        stdin=terminal_side,
        stdout=terminal_side,
        stderr=terminal_side,
        env=ENVIRONMENT,
        start_new_session=True,
    )
    os.close(terminal_side)
    typed = [b"who is obama caf\xc3\xa9\n", b":t -9\n", b"\x04"]
    shown = b""
    while select.select([descriptor], [], [], 120)[0]:
        try:
            shown += os.read(descriptor, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if shown.count(b"question>") == 4 - len(typed) and typed:
            os.write(descriptor, typed.pop(0))
    os.close(descriptor)
    assert process.wait(120) == 0, shown.decode()
    assert not typed
    text = shown.decode()
    assert "500 entities, threshold -6" in ANSI.sub("", text)
    links = re.findall(r" -> \x1b\[1m(.*?)\x1b\[0m", text)
    assert links
    assert "\x1b[1;7;36m" in text
    assert "threshold -9" in ANSI.sub("", text)


def test_program_says_what_is_wrong(folder, tmp_path, write):
    status, output, errors = run("--linker", tmp_path, "who wrote dune?")
    assert (status, output) == (2, "")
    assert f"error: {tmp_path}: no config.json here; expected a linker directory" in errors
    assert "Traceback" not in errors
    status, _, errors = run("--linker", folder, "--input", tmp_path / "none.txt")
    assert status == 2
    assert "none.txt: no such file; expected a file of texts" in errors
    status, _, errors = run("--linker", folder, "--max-mentions=none", "who wrote dune?")
    assert status == 2
    assert errors.startswith("error: flag --max_mentions=none: invalid literal")
    status, _, errors = run("--linker", folder, "--threshold=0.5", "who wrote dune?")
    assert status == 2
    assert errors.startswith("error: threshold: 0.5; scores are log-probabilities, below 0")
    status, _, errors = run("--linker", folder, "--restart", "who wrote dune?")
    assert status == 2
    assert errors.startswith("error: --restart: only a run with --output ")
    process = start("--linker", folder, closed="<&-")
    assert process.communicate(timeout=120)[1].startswith(b"error: stdin is closed; give questions")
    assert process.returncode == 2


@pytest.mark.parametrize("name", ["questions.jsonl", "link", "hard", "folder/../questions.jsonl"])
def test_program_spares_its_input(folder, tmp_path, write, name):
    """The output may not be the input by any name, nor may what is beside it until it is whole."""
    content = b'{"text": "who is obama"}\n'
    path = write(content)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "hard").hardlink_to(path)
    there = sorted(tmp_path.iterdir())
    with pytest.raises(ElqError, match=r"writing it would overwrite the input, which is .*; give"):
        output_lib.check_output(tmp_path / name, path)
    assert sorted(tmp_path.iterdir()) == there
    if name == "link":  # The program, reading the file, and reading it as stdin.
        flags = ("--linker", folder, "--output", tmp_path / name)
        assert "would overwrite the input" in run(*flags, "--input", path)[2]
        with open(path, "rb") as source:
            process = start(*flags, stdin=source)
            assert b"would overwrite the input" in process.communicate(timeout=120)[1]
        assert path.read_bytes() == content
    part = write(content, "out.jsonl.part")
    with pytest.raises(ElqError, match=r"out\.jsonl: writing it would .* which is .*\.part; give"):
        output_lib.check_output(tmp_path / "out.jsonl", part)
    output_lib.check_output(tmp_path / "other.jsonl", path)
    output_lib.check_output(None, path)


def test_program_reads_a_pipe(folder, tmp_path):
    """Its rows cannot be counted beforehand, since it can be read only once."""
    output = tmp_path / "out.jsonl"
    pipe, other_end = os.pipe()  # as <(...) of a shell
    os.write(other_end, b'{"text": "who is obama"}\n{"text": "dune"}\n')
    os.close(other_end)
    flags = ("--input", f"/dev/fd/{pipe}", "--input_format=jsonl", "--output", output)
    process = start("--linker", folder, *flags, pass_fds=[pipe])
    os.close(pipe)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()
    assert [json.loads(line)["text"] for line in output.read_text().splitlines()] == [
        "who is obama",
        "dune",
    ]
    assert b"2 questions in" in errors


def test_program_shows_text_and_what_it_did(folder, linker):
    questions = "who is obama café\n\xff\ndune\n".encode("latin-1").replace(b"\xe9", b"\xc3\xa9")
    flags = ("--linker", folder, "--output_format=text", "--on_error=skip", "--batch_size=1")
    status, output, errors = run(*flags, stdin=questions)
    assert status == 0, errors
    [links] = linker(["who is obama café"])
    assert links
    shown = output.splitlines()
    assert shown[0] == "who is obama café"
    assert shown[1].startswith(f"  {links[0].mention} -> {links[0].title}")
    assert shown[1 + len(links)] == "dune"
    summary = r"2 questions in .* s \(.*/s\), 1 rows skipped; peak memory"
    assert re.search(summary, errors)

    process = start(*flags, stdin=subprocess.PIPE)
    process.stdout.close()  # as `| head` does when it has enough
    errors = process.communicate(b"dune\n" * 3, timeout=120)[1].decode()
    assert process.returncode == 0
    assert re.search(r"1 questions in .*; peak memory", errors)
    assert "Traceback" not in errors


@pytest.mark.parametrize("program", ["link", "evaluate"])
def test_help_shows_the_flags_of_a_linker(program):
    command = [sys.executable, "-m", f"elq_jax.{program}", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    for name in LinkerFlags.__annotations__:
        assert re.search(rf"\n  --(\[no\])?{name}: ", shown)


def test_a_pipe_gets_the_lines_and_a_link_stays(linker, unbroken, tmp_path):
    rows, whole = unbroken
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    batch.link_file(linker, rows, pipe, {}, batch_size=2)
    reader.join(60)
    assert read == [whole]
    assert pipe.is_fifo()
    pipe = pipe.rename(tmp_path / "pipe.gz")  # by its name
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    batch.link_file(linker, rows, pipe, {}, batch_size=2)
    reader.join(60)
    assert gzip.decompress(read[1]) == whole

    (tmp_path / "real.jsonl").write_text("old\n")
    link = tmp_path / "link.jsonl"
    link.symlink_to("real.jsonl")
    batch.link_file(linker, rows, link, {}, batch_size=2)
    assert link.is_symlink()
    assert (tmp_path / "real.jsonl").read_bytes() == whole
    assert len(list(tmp_path.iterdir())) == 3
    link = link.rename(tmp_path / "link.jsonl.gz")  # by the name that was given
    batch.link_file(linker, rows, link, {}, batch_size=2)
    assert gzip.decompress((tmp_path / "real.jsonl").read_bytes()) == whole

    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ElqError, match="loop: a symbolic link that leads to itself"):
        batch.link_file(linker, rows, tmp_path / "loop", {})
    os.mkfifo(tmp_path / "other.part")
    with pytest.raises(ElqError, match=r"other\.part: a pipe or device"):
        batch.link_file(linker, rows, tmp_path / "other", {})


def test_a_name_that_ends_in_gz(linker, unbroken, tmp_path):
    """Interrupted, it is resumed; two runs give the same file."""
    rows, whole = unbroken
    files = []
    for name in ("a", "b"):
        output = tmp_path / f"{name}.jsonl.gz"
        with output_lib.PartFile(output, {"batch_size": 2}):
            pass
        (tmp_path / f"{name}.jsonl.gz.part").write_bytes(whole[: len(whole) // 2])
        batch.link_file(linker, rows, output, {}, batch_size=2)
        assert gzip.decompress(output.read_bytes()) == whole
        files.append(output.read_bytes())
    assert files[0] == files[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl.gz", "b.jsonl.gz"]


def test_program_without_stdout(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "HOME", str(tmp_path))
    process = start("--linker", folder, "--output=~/out.jsonl", "dune", closed=">&-")
    errors = process.communicate(timeout=120)[1].decode()
    assert process.returncode == 0, errors
    assert json.loads((tmp_path / "out.jsonl").read_bytes())["text"] == "dune"
    process = start("--linker", folder, "dune", closed=">&-")
    assert process.communicate(timeout=120)[1].startswith(b"error: stdout is closed; give a file")
    assert process.returncode == 2


def test_program_without_stderr(folder, tmp_path):
    """What would be told there is not told elsewhere."""
    process = start("--linker", folder, "dune", closed="2>&-")
    [line] = process.communicate(timeout=120)[0].splitlines()
    assert json.loads(line)["text"] == "dune"
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("-", "leave the argument out to get stdout"),
        ("new/", "ends in /; expected the name of a file"),
        (".", "is a folder; give the name of a file"),
    ],
)
def test_outputs_that_are_no_file(folder, output, message):
    status, _, errors = run("--linker", folder, f"--output={output}", "dune")
    assert status == 2
    assert errors.startswith(f"error: flag --output={output}: {output}: ")
    assert message in errors
