"""The small parts: SQL dumps, redirects, rules, files with sections."""

import gzip
import random
import sqlite3
import subprocess
import sys

import pytest

from elq_jax.core.errors import ElqError
from elq_jax.dumps import runs, sql
from elq_jax.dumps.pipeline import Inputs, read_wikipedia
from elq_jax.dumps.redirects import resolve
from elq_jax.dumps.rules import printed, read_rules
from elq_jax.dumps.runs import SectionWriter, UnfinishedError, partition, read_section
from elq_jax.dumps.settings import WikipediaSettings

HEAD = "-- MySQL dump\nCREATE TABLE `page_props` (\n  `pp_page` int(10)\n);\n"
ROWS = [
    (1, "wikibase_item", "Q1", None),
    (2, "wikibase-shortdesc", "It's a 'test' (of, brackets); \\ and \" \n", 1.5),
    (3, "x", "'),(4,'injected','", -2),
    (4, "", "", 3e-07),
    (5, "defaultsort", "Līvōkīļ 日本", None),
    (6, "percent", "INSERT INTO `other` VALUES (1);", 0),
]


def escaped(value):
    if value is None:
        return "NULL"
    if not isinstance(value, str):
        return str(value)
    for raw, written in [("\\", "\\\\"), ("'", "\\'"), ('"', '\\"'), ("\n", "\\n")]:
        value = value.replace(raw, written)
    return f"'{value}'"


def inserts(rows, per_insert):
    groups = [rows[i : i + per_insert] for i in range(0, len(rows), per_insert)]
    lines = [",".join("(" + ",".join(map(escaped, row)) + ")" for row in group) for group in groups]
    return "".join(f"INSERT INTO `page_props` VALUES {line};\n" for line in lines)


def as_read(rows):
    def read(value):
        return None if value is None else str(value).encode()

    return [[read(value) for value in row] for row in rows]


@pytest.mark.parametrize("per_insert", [1, 2, 100])
@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_rows_of_sql(tmp_path, monkeypatch, per_insert, chunk):
    path = tmp_path / "page_props.sql.gz"
    path.write_bytes(gzip.compress((HEAD + inserts(ROWS, per_insert) + "-- end\n").encode()))
    monkeypatch.setattr(sql, "_CHUNK", chunk)
    assert list(sql.read_rows(path, "page_props")) == as_read(ROWS)


def test_rows_of_sql_as_a_database_reads_them(tmp_path):
    """Random strings of special characters; SQLite reads the form with doubled quotes."""
    source = random.Random(3)
    rows = [
        (i, "".join(source.choices("a'(),;\n\"%é", k=source.randrange(12)))) for i in range(300)
    ]
    with sqlite3.connect(":memory:") as database:
        database.execute("create table page_props (a, b)")
        database.executemany("insert into page_props values (?, ?)", rows)
        lines = [line for line in database.iterdump() if line.startswith("INSERT")]
    path = tmp_path / "page_props.sql"
    text = "".join(line.replace('"page_props" VALUES', "`page_props` VALUES ") for line in lines)
    path.write_text(text.replace('"page_props"', "`page_props`"))
    assert list(sql.read_rows(path, "page_props")) == as_read(rows)


def test_sql_that_cannot_be_used(tmp_path):
    path = tmp_path / "a.sql"
    whole = HEAD + inserts(ROWS, 100)
    path.write_text(whole[:-20])
    with pytest.raises(ElqError, match=r"a\.sql: ends inside a row"):
        list(sql.read_rows(path, "page_props"))
    path.write_text(whole)
    with pytest.raises(ElqError, match="holds the table page_props, expected wb_items_per_site"):
        list(sql.read_rows(path, "wb_items_per_site"))
    path.write_bytes(gzip.compress(whole.encode())[:-30])
    with pytest.raises(ElqError, match="damaged gzip"):
        list(sql.read_rows(path, "page_props"))
    path.write_text("nothing")
    with pytest.raises(ElqError, match="found no INSERT INTO page_props"):
        list(sql.read_rows(path, "page_props"))
    path.write_text(HEAD)
    assert list(sql.read_rows(path, "page_props")) == []


def followed(title, targets):
    """Follows one chain, step by step."""
    seen = set()
    while title in targets:
        if title in seen:
            return None
        seen.add(title)
        title = targets[title]
    return title


def test_redirects_are_followed_to_their_ends():
    loops = {length: [f"{length}-{i}" for i in range(length)] for length in (1, 2, 1000)}
    targets = {
        loop[i]: loop[(i + 1) % len(loop)] for loop in loops.values() for i in range(len(loop))
    }
    targets |= {f"chain {i}": f"chain {i + 1}" for i in range(1000)}
    targets |= {"into a loop": "1000-500", "into a chain": "chain 7"}
    source = random.Random(1)
    names = [f"n{i}" for i in range(300)]
    targets |= {name: source.choice(names) for name in names[:250]}
    ends = resolve(targets)
    assert ends == {title: followed(title, targets) for title in targets}
    assert ends["chain 0"] == "chain 1000"
    assert all(ends[title] is None for loop in loops.values() for title in loop)


def test_sections(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_BUFFERED", 100)
    path = tmp_path / "file"
    records = [(f"title {i}", i) for i in range(500)]
    with SectionWriter(path, 7) as sections:
        for record in records:
            sections.add(partition(record[0], 7), record)
    for section in range(7):
        expected = [record for record in records if partition(record[0], 7) == section]
        assert list(read_section(path, section, tuple[str, int])) == expected
        assert expected
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UnfinishedError, match="damaged"):
        list(read_section(path, 3, tuple[str, int]))


def test_an_interrupted_file_of_sections_does_not_appear(tmp_path):
    def interrupted():
        with SectionWriter(tmp_path / "file", 2) as sections:
            sections.add(1, "a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_partitions_are_the_same_everywhere():
    assert [partition(title, 1000) for title in ("Thor", "", "日本")] == [42, 756, 160]


def test_printed():
    arguments = {"1": "5", "2": "to", "3": "7", "4": "km", "text": ""}
    english = read_rules("en").printing_templates
    text = "".join(
        arguments[part] if is_argument else part
        for part, is_argument in printed(english["Convert"], arguments)
    )
    assert text == "5 to 7 km"
    assert printed(english["Convert"], {"1": "5", "2": "km"}) == [
        ("1", True),
        (" ", False),
        ("2", True),
    ]
    assert printed("{text|2}", {"2": "x", "text": ""}) == [("2", True)]
    assert printed("c. {1}", {}) == [("c. ", False)]


def test_rules_of_a_file(tmp_path):
    path = tmp_path / "rules.json"
    path.write_text('{"list_titles": "("}')
    with pytest.raises(ElqError, match="expected a regular expression"):
        read_rules("xx", path)
    path.write_text('{"printing": {}}')
    with pytest.raises(ElqError, match="printing"):
        read_rules("xx", path)
    assert read_rules("xx").printing_templates == {}
    assert read_rules("../en").printing_templates == {}


def test_without_the_extra_the_program_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ElqError, match=r"pip install 'elq_jax\[wikipedia\]'"):
        read_wikipedia(Inputs(tmp_path / "dump.xml"), tmp_path / "out", WikipediaSettings())


def test_a_lost_worker_ends_the_program():
    """Beam's own runner would wait for it for ever."""
    code = (
        "import threading, time; from elq_jax.dumps import pipeline\n"
        "threading.excepthook = pipeline._end_after_lost_worker\n"
        "def lost(): raise RuntimeError('Worker subprocess exited with return code 137')\n"
        "threading.Thread(target=lost).start(); time.sleep(60)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=50
    )
    assert done.returncode == 2
    assert "error: a process of Apache Beam was ended" in done.stderr
    assert "resumes where it stopped" in done.stderr
