"""The catalogue against the lines it was made of."""

import errno
import gzip
import json
import os
import pickle
import re
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from conftest import OWN_FIXTURES

from elq_jax.core.errors import DataError, ElqError
from elq_jax.entities import build as build_module
from elq_jax.entities import catalogue as catalogue_module
from elq_jax.entities.build import build_catalogue, open_or_build_catalogue
from elq_jax.entities.catalogue import SCHEMA, Catalogue
from elq_jax.entities.names import normal_titles
from elq_jax.entities.wikidata import fill_wikidata_ids
from elq_jax.storage import files


def write_lines(path, records):
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def entity(title, text="A text.", **fields):
    return {"title": title, "text": text, **fields}


def build(tmp_path, records, **options):
    source = write_lines(tmp_path / "entities.jsonl", records)
    report = build_catalogue(source, tmp_path / "catalogue.arrow", **options)
    return report, Catalogue.open(tmp_path / "catalogue.arrow")


@pytest.fixture(params=[2, 7, 32768])
def small_batches(request, monkeypatch):
    """Several record batches, a last one that is full or not, and a single one."""
    monkeypatch.setattr(build_module, "ROWS_PER_BATCH", request.param)


@pytest.mark.usefixtures("small_batches")
def test_published_entity_file_row_by_row(tmp_path):
    lines = (OWN_FIXTURES / "entity.jsonl").read_text().splitlines()[:28]
    report, catalogue = build(tmp_path, lines)
    expected = [json.loads(line) for line in lines]
    assert report.rows == len(catalogue) == 28
    assert report.fingerprint == catalogue.fingerprint
    rows = np.random.default_rng(0).integers(0, 28, 50)
    assert catalogue.titles(rows) == [expected[row]["title"] for row in rows]
    assert catalogue.texts(rows) == [expected[row]["text"] for row in rows]
    assert catalogue.wikidata_ids(rows) == [expected[row].get("kb_idx") for row in rows]
    assert catalogue.aliases(rows) == [[]] * 50
    assert [found.title for found in catalogue] == [record["title"] for record in expected]
    assert catalogue[27].row == 27


@pytest.mark.usefixtures("small_batches")
def test_lookup_equals_a_slow_search(tmp_path):
    random = np.random.default_rng(1)
    records = [
        entity(f"t{random.integers(12)}", wikidata_id=random.choice([None, "Q1", "Q2", "Q33"]))
        for _ in range(30)
    ]
    report, catalogue = build(tmp_path, records)
    titles = [record["title"] for record in records]
    ids = [record["wikidata_id"] for record in records]
    assert report.duplicate_titles == 30 - len(set(titles))
    for wanted in (["t3", "t99", "t3", "T3", "", None, "t0", "x\ud800"], [], titles):
        slow = [titles.index(value) if value in titles else -1 for value in wanted]
        found = catalogue.rows_of_titles(wanted)
        assert found.dtype == np.int64
        assert found.tolist() == slow
    for wanted in (["Q33", None, "Q1", "Q7", "Q1"], [None], ids):
        slow = [ids.index(v) if v is not None and v in ids else -1 for v in wanted]
        assert catalogue.rows_of_wikidata_ids(wanted).tolist() == slow


def test_optional_fields(tmp_path):
    records = [
        entity("Paris", wikidata_id="Q90", kb_idx="Q1", aliases=["Lutetia", "City of Light"]),
        entity("Albedo", kb_idx="enwiki:39", wikidata_id=None, aliases=None),
        entity("Thor", kb_idx="Q42952", unknown_field=[1]),
        entity("naïve 😀", text=" Côte\u2028d'Ivoire \u0301"),
    ]
    report, catalogue = build(tmp_path, records)
    assert catalogue.wikidata_ids(range(4)) == ["Q90", None, "Q42952", None]
    assert catalogue[0].aliases == ("Lutetia", "City of Light")
    assert catalogue[1].aliases == ()
    assert catalogue[3].title == "naïve 😀"
    assert catalogue[3].text == " Côte\u2028d'Ivoire \u0301"
    assert (report.empty_texts, report.duplicate_titles, report.skipped) == (0, 0, [])


def test_catalogue_of_one_entity(tmp_path):
    report, catalogue = build(tmp_path, [entity("Dune")])
    assert (report.rows, len(catalogue)) == (1, 1)
    assert catalogue.rows_of_titles(["Dune", "dune"]).tolist() == [0, -1]
    assert catalogue.titles([]) == []


def test_duplicate_titles_are_kept_and_counted(tmp_path):
    report, catalogue = build(tmp_path, [entity("Dune", "A film."), entity("Dune", "A book.")])
    assert report.duplicate_titles == 1
    assert catalogue.texts([0, 1]) == ["A film.", "A book."]
    assert catalogue.rows_of_titles(["Dune"]).tolist() == [0]


def test_empty_text_is_kept_and_counted(tmp_path):
    report, catalogue = build(tmp_path, [entity("Dune", "")])
    assert report.empty_texts == 1
    assert catalogue.texts([0]) == [""]


def test_gzip_byte_order_mark_and_windows_line_ends(tmp_path):
    records = [entity("Dune"), entity("Thor")]
    data = "\ufeff" + "".join(json.dumps(record) + "\r\n" for record in records) + "\n\n"
    with gzip.open(tmp_path / "entities.jsonl.gz", "wt", encoding="utf-8", newline="") as file:
        file.write(data)
    build_catalogue(tmp_path / "entities.jsonl.gz", tmp_path / "catalogue.arrow")
    assert Catalogue.open(tmp_path / "catalogue.arrow").titles([0, 1]) == ["Dune", "Thor"]


def test_fingerprint_is_of_titles_and_texts_in_order(tmp_path):
    def fingerprint(*records):
        return build(tmp_path, records)[1].fingerprint

    first = fingerprint(entity("a", "b"), entity("c", "d"))
    assert fingerprint(entity("a", "b", wikidata_id="Q1"), entity("c", "d")) == first
    others = {
        fingerprint(entity("a", "b")),
        fingerprint(entity("c", "d"), entity("a", "b")),
        fingerprint(entity("ab", ""), entity("c", "d")),
        fingerprint(entity("a", "b"), entity("c", "e")),
    }
    assert len(others | {first}) == 5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"title": "x", ', "invalid JSON"),
        ("[1]", "expected a JSON object"),
        ({"text": "x"}, "field 'title': missing"),
        ({"title": " ", "text": "x"}, "field 'title': found"),
        ({"title": 1984, "text": "x"}, "field 'title': found 1984, expected a string"),
        ({"title": "x"}, "field 'text': missing"),
        ({"title": "x", "text": None}, "field 'text': found null"),
        ({"title": "x", "text": "", "wikidata_id": 42}, "field 'wikidata_id': found 42"),
        ({"title": "x", "text": "", "wikidata_id": "P31"}, "field 'wikidata_id'"),
        ({"title": "x", "text": "", "aliases": "y"}, "field 'aliases'"),
        ({"title": "x", "text": "", "aliases": [1]}, "field 'aliases'"),
        ({"title": "x", "text": "", "aliases": False}, "field 'aliases': found false, expected"),
        ('{"title": "\\ud800", "text": ""}', "surrogate"),
        ("", "blank line"),
    ],
)
def test_bad_third_line(tmp_path, line, message):
    records = [entity("a"), entity("b"), line, entity("c")]
    with pytest.raises(DataError, match=rf"entities\.jsonl:3: .*{message}"):
        build(tmp_path, records)
    assert [path.name for path in tmp_path.iterdir()] == ["entities.jsonl"]
    report, catalogue = build(tmp_path, records, on_error="skip")
    assert catalogue.titles(range(len(catalogue))) == ["a", "b", "c"]
    [skipped] = report.skipped
    assert "entities.jsonl:3: " in skipped
    assert message.split("'")[0] in skipped


def test_line_that_is_not_utf8(tmp_path):
    path = tmp_path / "entities.jsonl"
    path.write_bytes(b'{"title": "a", "text": ""}\n{"title": "\xff", "text": ""}\n')
    with pytest.raises(DataError, match=r"entities\.jsonl:2: not UTF-8"):
        build_catalogue(path, tmp_path / "catalogue.arrow")
    report = build_catalogue(path, tmp_path / "catalogue.arrow", on_error="skip")
    assert (report.rows, len(report.skipped)) == (1, 1)


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_empty_file(tmp_path, content):
    (tmp_path / "entities.jsonl").write_text(content)
    with pytest.raises(DataError, match="found an empty file"):
        build_catalogue(tmp_path / "entities.jsonl", tmp_path / "catalogue.arrow")
    assert not (tmp_path / "catalogue.arrow").exists()


def test_nothing_but_bad_lines(tmp_path):
    with pytest.raises(DataError, match=r"found 2 lines that cannot be used(.|\n)*jsonl:1: "):
        build(tmp_path, ["x", "y"], on_error="skip")


def test_no_such_file_and_wrong_option(tmp_path):
    with pytest.raises(ElqError, match="no such file"):
        build_catalogue(tmp_path / "nothing.jsonl", tmp_path / "catalogue.arrow")
    with pytest.raises(ElqError, match="on_error: 'ignore'; expected"):
        build(tmp_path, [entity("a")], on_error="ignore")


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_gzip_cut_short(tmp_path, on_error):
    records = "".join(json.dumps(entity(f"entity {i}")) + "\n" for i in range(2000))
    data = gzip.compress(records.encode())
    path = tmp_path / "entities.jsonl.gz"
    for damaged in (data[: len(data) // 2], data[:-4]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"entities\.jsonl\.gz:\d+: not a whole gzip file"):
            build_catalogue(path, tmp_path / "catalogue.arrow", on_error=on_error)
        assert [found.name for found in tmp_path.iterdir()] == [path.name]


class FullDisk:
    """A file on a disk that takes `room` more bytes."""

    def __init__(self, file, room):
        self._file, self._room = file, room

    def write(self, data):
        self._room -= len(data)
        if self._room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._file.write(data)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.mark.parametrize("room", [0, 500, 5000])
def test_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, room):
    build(tmp_path, [entity("old")])
    names = sorted(path.name for path in tmp_path.iterdir())
    fdopen = files.os.fdopen
    monkeypatch.setattr(files.os, "fdopen", lambda *a, **k: FullDisk(fdopen(*a, **k), room))
    monkeypatch.setattr(build_module, "ROWS_PER_BATCH", 10)
    with pytest.raises(ElqError, match=r"catalogue\.arrow: not written, the disk is full"):
        build(tmp_path, [entity(f"new {i}") for i in range(1000)])
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert Catalogue.open(tmp_path / "catalogue.arrow").titles([0]) == ["old"]


def test_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    parse = build_module._parse_entity

    def interrupt(line, source, line_number):
        if line_number == 3:
            raise KeyboardInterrupt
        return parse(line, source, line_number)

    monkeypatch.setattr(build_module, "_parse_entity", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, [entity("a"), entity("b"), entity("c")])
    assert [path.name for path in tmp_path.iterdir()] == ["entities.jsonl"]


def test_open_what_is_not_a_catalogue(tmp_path):
    path = tmp_path / "catalogue.arrow"
    with pytest.raises(ElqError, match="no such file"):
        Catalogue.open(path)
    for content in (b"", b"hello\n", b"x" * 1000):
        path.write_bytes(content)
        with pytest.raises(ElqError, match="not a whole Arrow file"):
            Catalogue.open(path)
    table = pa.table({"title": ["a"]})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ElqError, match="not a catalogue"):
        Catalogue.open(path)
    build(tmp_path, [entity(f"entity {i}") for i in range(100)])
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ElqError, match="not a whole Arrow file"):
        Catalogue.open(path)


@pytest.mark.parametrize("rows", [[-1], [0, 3], np.array([3])])
def test_row_outside(tmp_path, rows):
    _, catalogue = build(tmp_path, [entity("a"), entity("b"), entity("c")])
    with pytest.raises(IndexError, match=r"row -?\d is not in the catalogue \(0 to 2\)"):
        catalogue.titles(rows)


def test_rows_of_a_wrong_kind(tmp_path):
    _, catalogue = build(tmp_path, [entity("a")])
    for rows in ([0.0], [[0]], ["0"], [True]):
        with pytest.raises(ElqError, match="rows: found"):
            catalogue.titles(rows)


def test_opening_reads_no_rows(tmp_path):
    build(tmp_path, [entity(f"entity {i}", "x" * 1000) for i in range(2000)])
    before = pa.total_allocated_bytes()
    catalogue = Catalogue.open(tmp_path / "catalogue.arrow")
    assert pa.total_allocated_bytes() - before < 100_000
    assert len(catalogue) == 2000


def test_save_and_pickle(tmp_path):
    _, catalogue = build(tmp_path, [entity("a"), entity("b")])
    catalogue.save(tmp_path / "linker" / "catalogue.arrow")
    copy = Catalogue.open(tmp_path / "linker" / "catalogue.arrow")
    assert copy.fingerprint == catalogue.fingerprint
    assert copy.titles([0, 1]) == ["a", "b"]
    assert pickle.loads(pickle.dumps(catalogue)).titles([1]) == ["b"]


def slow_normal_title(title):
    title = " ".join(unicodedata.normalize("NFC", title).replace("_", " ").split())
    return title[:1].upper() + title[1:]


def test_normalised_titles_equal_a_slow_search(tmp_path):
    titles = ["Gaius Julius Caesar", "IPhone", "Cafe\u0301 Noir", "A  b", "Élan", "x", "\u00c9lan"]
    _, catalogue = build(tmp_path, [entity(title) for title in titles])
    wanted = [
        *("Gaius_Julius_Caesar", "gaius Julius Caesar", "gaius julius caesar", "iPhone"),
        *("Caf\u00e9_Noir", "a b", "élan", "E\u0301lan", "X", " x ", "", None, "\ud800", "nothing"),
    ]
    rows, counts = catalogue.find_titles(wanted, normalised=True)
    normal = [slow_normal_title(title) for title in titles]
    for title, row, count in zip(wanted, rows.tolist(), counts.tolist(), strict=True):
        same = [i for i, found in enumerate(normal) if title and found == slow_normal_title(title)]
        assert (row, count) == ((same[0], len(same)) if same else (-1, 0)), title
    assert rows.tolist() == [0, 0, -1, 1, 2, 3, 4, 4, 5, 5, -1, -1, -1, -1]
    assert counts[6] == 2
    exact = catalogue.find_titles(["Élan", "élan", "Gaius_Julius_Caesar"])
    assert (exact.rows.tolist(), exact.counts.tolist()) == ([4, -1, -1], [2, 0, 0])


@pytest.mark.usefixtures("small_batches")
def test_search_of_titles_equals_a_slow_search(tmp_path):
    titles = ["Dune (novel)", "Dune", "DUNE", "dune", "Dune_Messiah", "Sand dune", "Élan vital"]
    titles += ["Dune Messiah", "élan", "Du", "Dunedin", "Dune.*", "Dune"]
    _, catalogue = build(tmp_path, [entity(title) for title in titles])

    def fold(title):
        return " ".join(title.replace("_", " ").split()).lower()

    wanted = ["dune", "Dune", "dune_", "DUNE messiah", "  Dune  messiah", "ÉLAN", "e", "dune.", "x"]
    for title in [*wanted, "\ud800"]:
        rows = [row for row, name in enumerate(titles) if fold(name).startswith(fold(title))]
        exact = [row for row in rows if fold(titles[row]) == fold(title)]
        keys = {row: (row not in exact, titles[row] != title, len(titles[row])) for row in rows}
        slow = sorted(rows, key=lambda row: (*keys[row], row))
        for limit in (1, 3, 20):
            found = catalogue.search_titles(title, limit)
            assert found.rows.tolist() == slow[:limit], title
            assert found.num_exact == min(len(exact), limit)
            assert found.count == len(slow)
    assert catalogue.search_titles("dune").rows.tolist()[:4] == [3, 1, 2, 12]
    for nothing in ("", " _\t", None, 7, ["Dune"]):
        with pytest.raises(ElqError, match=r"title: .*; expected a title, or its first letters"):
            catalogue.search_titles(nothing)
    with pytest.raises(ElqError, match="limit: 0"):
        catalogue.search_titles("Dune", 0)


def test_columns_are_normalised_as_single_titles_are(fixtures):
    lines = (fixtures / "entity.jsonl").read_text().splitlines()
    titles = [json.loads(line)["title"] for line in lines]
    titles += ["ǆ", "_a_", "a\u00a0b", "éa", "日本_語", "e\u0301", " "]
    found = normal_titles(pa.array(titles))
    assert found.to_pylist() == [slow_normal_title(title) for title in titles]


@pytest.mark.parametrize(
    "text",
    [
        *("Q5", "q5", " Q5 ", "wd:Q5", "https://www.wikidata.org/wiki/Q5"),
        *("http://www.wikidata.org/entity/Q5", "<http://www.wikidata.org/entity/Q5>"),
        *("wikidata.org/wiki/Q5#sitelinks", "https://m.wikidata.org/wiki/Special:EntityPage/Q5"),
    ],
)
def test_wikidata_ids_as_people_write_them(tmp_path, text):
    _, catalogue = build(tmp_path, [entity("a", wikidata_id="Q55"), entity("b", wikidata_id="Q5")])
    found = catalogue.find_wikidata_ids([text, "P5", "https://example.org/Q5"], normalised=True)
    assert found.rows.tolist() == [1, -1, -1]
    assert found.counts.tolist() == [1, 0, 0]
    assert catalogue.rows_of_wikidata_ids([text]).tolist() == [1 if text == "Q5" else -1]


def test_one_string_is_no_list_of_titles(tmp_path):
    _, catalogue = build(tmp_path, [entity("Paris")])
    with pytest.raises(ElqError, match="titles: found one string; give a list"):
        catalogue.rows_of_titles("Paris")
    with pytest.raises(ElqError, match=r"wikidata_ids\[1\]: found int, expected a string"):
        catalogue.rows_of_wikidata_ids(["Q1", 2])


def test_batches_are_cut_by_bytes_too(tmp_path, monkeypatch):
    monkeypatch.setattr(build_module, "BYTES_PER_BATCH", 1000)
    monkeypatch.setattr(build_module, "_BYTES_PER_ROW", 3000)
    texts = ["x" * size for size in (1, 400, 400, 400, 2900, 1, 999, 1)]
    _, catalogue = build(tmp_path, [entity(f"t{i}", text) for i, text in enumerate(texts)])
    assert catalogue.texts(range(8)) == texts
    assert [batch.num_rows for batch in catalogue.batches()] == [4, 1, 2, 1]
    with pytest.raises(DataError, match=r"jsonl:2: an entity of 3,001 bytes; expected at most"):
        build(tmp_path, [entity("a"), entity("b", "é" * 1500)])


def test_a_folder_whose_name_is_not_utf8(tmp_path):
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    _, catalogue = build(folder, [entity("a", wikidata_id=None)])
    (folder / "ids.tsv").write_text("a\tQ7\n")
    assert fill_wikidata_ids(catalogue.path, folder / "ids.tsv") == 0
    again = Catalogue.open(catalogue.path)
    assert again.wikidata_ids([0]) == ["Q7"]
    assert again.fingerprint == catalogue.fingerprint
    assert again.check_bytes()


def test_damaged_rows_are_found_at_opening(tmp_path):
    build(tmp_path, [entity(f"entity {i}", "some text") for i in range(100)])
    path = tmp_path / "catalogue.arrow"
    whole = path.read_bytes()
    place = whole.index(b"some text")
    path.write_bytes(whole[:place] + b"S" + whole[place + 1 :])
    with pytest.raises(DataError, match=r"catalogue\.arrow: damaged: the SHA-256 of its rows is"):
        Catalogue.open(path)


@pytest.mark.usefixtures("small_batches")
def test_no_damaged_file_crashes_the_process(tmp_path, monkeypatch):
    """Without the checksum, as a hostile file would be: errors of ours, or values that are read."""
    records = [entity(f"t{i}é", "x" * i, aliases=["a", "b"][: i % 3]) for i in range(9)]
    build(tmp_path, records)
    path = tmp_path / "catalogue.arrow"
    whole = path.read_bytes()
    monkeypatch.setattr(catalogue_module, "_CHECKED_AT_ONCE", 0)
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] = random.choice([0, 127, 128, 255])
        path.write_bytes(damaged)
        try:
            catalogue = Catalogue.open(path)
            for entity_ in map(catalogue.__getitem__, range(min(len(catalogue), 9))):
                assert isinstance(entity_.title, str)
            rows = np.arange(len(catalogue))[::-1]
            assert catalogue.titles(rows) == [catalogue[row].title for row in rows]
            catalogue.rows_of_titles(["t3é"])
        except ElqError:
            refused += 1
    assert 50 < refused < 300


def test_offsets_that_point_outside_are_an_error_at_first_use(tmp_path, monkeypatch):
    """A large catalogue is not read whole at opening."""
    monkeypatch.setattr(catalogue_module, "_CHECKED_AT_ONCE", 0)
    build(tmp_path, [entity(f"entity {i}") for i in range(4)])
    path = tmp_path / "catalogue.arrow"
    data = path.read_bytes()
    offsets = np.array([0, 8, 16, 24, 32], np.int32).tobytes()
    assert data.count(offsets) == 1
    path.write_bytes(data.replace(offsets, np.array([0, 8, 1 << 30, 24, 32], np.int32).tobytes()))
    catalogue = Catalogue.open(path)
    assert catalogue.texts([1]) == ["A text."]
    for read in (lambda: catalogue.titles([1]), lambda: catalogue.rows_of_titles(["entity 1"])):
        with pytest.raises(DataError, match="damaged: title of rows 0 to 3"):
            read()


def test_a_git_lfs_pointer(tmp_path):
    path = tmp_path / "catalogue.arrow"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(DataError, match="a git-lfs pointer, not the file itself; run: git lfs"):
        Catalogue.open(path)


def test_a_catalogue_of_before_without_a_checksum(tmp_path):
    _, catalogue = build(tmp_path, [entity("a"), entity("b")])
    old = tmp_path / "old.arrow"
    of_before = SCHEMA.remove(SCHEMA.get_field_index("id"))
    of_before = of_before.with_metadata({"format": "elq_jax catalogue 1"})
    for schema in (SCHEMA, of_before):
        with pa.OSFile(str(old), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            for batch in catalogue.batches():
                writer.write_batch(batch.select(schema.names))
            empty = pa.RecordBatch.from_pylist([], schema)
            writer.write_batch(empty, custom_metadata={"fingerprint": catalogue.fingerprint})
        if schema is SCHEMA:
            with pytest.raises(DataError, match=r"old\.arrow: its checksum is missing"):
                Catalogue.open(old)
    opened = Catalogue.open(old)
    assert opened.titles([0, 1]) == ["a", "b"]
    assert opened.ids([0, 1]) == catalogue.ids([0, 1])
    assert not opened.check_bytes()


def test_a_pipe_where_the_catalogue_goes(tmp_path):
    """It was waited for."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"title": "Dune", "text": ""}))
    os.mkfifo(tmp_path / "catalogue.arrow")
    with pytest.raises(ElqError, match=r"catalogue\.arrow: a pipe or device"):
        open_or_build_catalogue(tmp_path / "a.jsonl", tmp_path / "catalogue.arrow")


def test_a_catalogue_from_a_pipe_is_built_every_time(tmp_path):
    """As `--catalogue <(zcat entities.jsonl.gz)` of a shell; nothing records what was in it."""
    path = tmp_path / "catalogue.arrow"
    for titles in (["Dune", "Paris"], ["Amazon"]):
        lines = "".join(json.dumps({"title": title, "text": ""}) + "\n" for title in titles)
        reading, writing = os.pipe()
        os.write(writing, gzip.compress(lines.encode()))
        os.close(writing)
        catalogue = open_or_build_catalogue(f"/dev/fd/{reading}", path)
        os.close(reading)
        assert catalogue.titles(range(len(catalogue))) == titles
    assert [file.name for file in tmp_path.iterdir()] == ["catalogue.arrow"]


def test_an_empty_id_is_none(tmp_path):
    _, catalogue = build(tmp_path, [entity("A", wikidata_id=""), entity("B", kb_idx="")])
    assert catalogue.wikidata_ids([0, 1]) == [None, None]


@pytest.mark.parametrize("name", ["copy.ARROW", "copy"])
def test_an_arrow_file_is_told_by_its_content(tmp_path, name):
    _, catalogue = build(tmp_path, [entity("A"), entity("B")])
    (tmp_path / name).write_bytes(catalogue.path.read_bytes())
    opened = open_or_build_catalogue(tmp_path / name, tmp_path / "out/catalogue.arrow")
    assert opened.fingerprint == catalogue.fingerprint


def test_a_folder_given_as_a_catalogue(tmp_path):
    with pytest.raises(
        ElqError, match=r"is a folder; give a file of entities, such as catalogue\.arrow"
    ):
        open_or_build_catalogue(tmp_path, tmp_path / "out/catalogue.arrow")


def test_a_file_that_is_no_catalogue_is_not_replaced(tmp_path):
    source = write_lines(tmp_path / "entities.jsonl", [entity("Dune")])
    path = tmp_path / "catalogue.arrow"
    path.write_text("notes")
    with pytest.raises(ElqError, match=r"catalogue\.arrow: exists and is not a catalogue"):
        build_module.open_or_build_catalogue(source, path)
    assert path.read_text() == "notes"


def test_ids(tmp_path):
    """The file's, else the Wikidata id, else one of title and text; compared with a loop."""
    lines = [
        entity("a", id="own"),
        entity("b", wikidata_id="Q1"),
        entity("c"),
        entity("c", text="other"),
        entity("d", id=7, wikidata_id="Q2"),
        entity("e", wikidata_id="Q1"),
        entity("f", id="Q3"),
    ]
    _, catalogue = build(tmp_path, lines)
    ids = catalogue.ids(range(7))
    assert ids[:2] == ["own", "Q1"]
    assert ids[4:] == ["7", "Q1", "Q3"]
    assert all(re.fullmatch("e[0-9a-f]{20}", own) for own in ids[2:4])
    assert len(set(ids)) == 6
    assert catalogue[2].id == ids[2]
    wanted = [*dict.fromkeys(ids), "Q2", "nothing", "e" + "0" * 20, "\ud800"]
    expected = [(wanted.index(own), row) for row, own in enumerate(ids)]
    titles = ["a", "b", "c", "c", "d", "f", "", "", "c", ""]
    for known in (None, titles):  # with titles, no other row is looked at
        places, rows = catalogue.rows_of_ids(wanted, known)
        assert list(zip(places.tolist(), rows.tolist(), strict=True)) == expected
    deleted = Catalogue.joined([catalogue], catalogue.path, "x", np.array([2, 5]))
    assert deleted.rows_of_ids(wanted)[1].tolist() == [0, 1, 3, 4, 6]
    assert deleted.num_entities == 5
    with pytest.raises(ElqError, match="ids: one is there twice"):
        catalogue.rows_of_ids(["a", "a"])


@pytest.mark.parametrize("wrong", [" ", 1.5, True, ["a"]])
def test_wrong_ids(tmp_path, wrong):
    with pytest.raises(DataError, match=r":1: field 'id': found"):
        build(tmp_path, [entity("a", id=wrong)])
    with pytest.raises(DataError, match='1 values of "id" are there before'):
        build(tmp_path, [entity("a", id="1"), entity("b", id=1)])
