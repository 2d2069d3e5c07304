"""Pages of dumps in all forms, wherever they are cut, and what damage costs."""

import bz2
import gzip
import itertools
import random
import re

import pytest
from dumps.made import dump, page

from elq_jax.core.errors import ElqError
from elq_jax.dumps import reading
from elq_jax.dumps.reading import Damage, Split


def titles(splits):
    read = itertools.chain.from_iterable(map(reading.read_pages, splits))
    return [page.reason if isinstance(page, Damage) else page.title for page in read]


def whole(path):
    return Split(str(path), reading.form_of(path), 0, path.stat().st_size)


PAGES = [page(i, f"Title {i}", "text " * (i * 37 % 50)) for i in range(40)]
NAMES = [f"Title {i}" for i in range(40)]


def multistream(path, pages, per_stream=3, data=None):
    """Writes a dump as Wikimedia does: its head, groups of pages and its end are streams."""
    head, _, rest = (data or dump(pages)).partition("  <page>")
    body, _, tail = ("  <page>" + rest).rpartition("</mediawiki>")
    parts = re.findall(r"  <page>.*?</page>\n", body, re.DOTALL)
    groups = ["".join(parts[i : i + per_stream]) for i in range(0, len(parts), per_stream)]
    streams = [bz2.compress(text.encode()) for text in (head, *groups, "</mediawiki>" + tail)]
    path.write_bytes(b"".join(streams))
    return list(itertools.accumulate(map(len, streams[:-1]), initial=0))


@pytest.mark.parametrize("size", [1, 5, 6, 7, 8, 63, 64, 65, 500, 10**6])
def test_plain_xml_is_the_same_wherever_it_is_cut(tmp_path, size):
    path = tmp_path / "dump.xml"
    path.write_text(dump(PAGES[:5] if size < 50 else PAGES))
    assert titles(reading.make_splits(path, (), size)) == NAMES[: 5 if size < 50 else 40]


@pytest.mark.parametrize("write", [bz2.compress, gzip.compress])
def test_compressed(tmp_path, write):
    path = tmp_path / "dump"
    data = dump(PAGES).encode()
    path.write_bytes(write(data[:3000]) + write(data[3000:]))
    assert titles([whole(path)]) == NAMES


@pytest.mark.parametrize("size", [1, 300, 900, 10**6])
def test_multistream(tmp_path, size):
    path, index = tmp_path / "dump.xml.bz2", tmp_path / "index.txt.bz2"
    offsets = multistream(path, PAGES)
    lines = [f"{offset}:{i}:Title: {i}\n" for offset in offsets[1:-1] for i in range(3)]
    index.write_bytes(bz2.compress("".join(lines).encode()))
    found = reading.stream_offsets(path)
    assert found == offsets
    assert reading.index_offsets(index, path) == offsets[:-1]
    splits = reading.make_splits(path, found, size)
    assert (len(splits) == 1) == (size == 10**6)
    assert titles(splits) == NAMES
    assert titles(reading.make_splits(path, offsets[:-1], size)) == NAMES


def test_streams_that_cut_pages(tmp_path):
    """As programs that compress in parallel write them."""
    path = tmp_path / "dump.xml.bz2"
    data = dump(PAGES).encode()
    path.write_bytes(b"".join(bz2.compress(data[i : i + 501]) for i in range(0, len(data), 501)))
    assert titles(reading.make_splits(path, reading.stream_offsets(path), 1)) == NAMES


def test_index_of_another_dump(tmp_path):
    path, index = tmp_path / "dump.xml.bz2", tmp_path / "index.txt"
    multistream(path, PAGES)
    index.write_text("17:1:Title 1\n")
    with pytest.raises(ElqError, match=r"no bz2 stream of .* begins at 17"):
        reading.index_offsets(index, path)
    index.write_text("no index\n")
    with pytest.raises(ElqError, match=r"index\.txt:1: found b'no index', expected offset:page"):
        reading.index_offsets(index, path)


def test_a_truncated_file_costs_only_what_is_missing(tmp_path):
    data = dump(PAGES).encode()
    for name, compressed in [("a.bz2", bz2.compress(data)), ("a.gz", gzip.compress(data))]:
        path = tmp_path / name
        path.write_bytes(compressed[: len(compressed) - 20])
        read = titles([whole(path)])
        assert "truncated_input" in read
        pages = [name for name in read if name.startswith("Title")]
        assert pages == NAMES[: len(pages)]
        assert set(read) - set(NAMES) <= {"truncated_input", "broken_xml"}


def test_a_damaged_stream_costs_its_pages(tmp_path):
    path = tmp_path / "dump.xml.bz2"
    offsets = multistream(path, PAGES)
    data = bytearray(path.read_bytes())
    data[offsets[5] + 40] ^= 255
    path.write_bytes(data)
    lost = {f"Title {i}" for i in range(12, 15)}
    expected = [name for name in NAMES if name not in lost]
    for size in (1, 400, 10**6):
        read = titles(reading.make_splits(path, reading.stream_offsets(path), size))
        assert [name for name in read if name.startswith("Title")] == expected
        assert set(read) - set(NAMES) == {"damaged_input"}


@pytest.mark.parametrize(
    ("broken", "reasons"),
    [
        (page(7, "Bad", "text").replace("</text>", ""), ["broken_xml"]),
        (page(7, "Bad", "text").replace("</page>", "</pag"), ["broken_xml"]),
        (page(7, "Bad", "text").replace("<page>", "<pag>"), ["broken_xml"]),
        (page(7, "Bad", "a \x01 b"), ["broken_xml"]),
        (page(7, "B\x02ad", "text"), ["broken_xml"]),
        (page(7, "Bad", "text").replace("<id>7", "<id>x"), ["broken_xml"]),
        (page(7, "", "text"), ["broken_xml"]),
        ("  <page>\n  <title>Cut", ["broken_xml"]),
        ("\udce9 garbage < > & </text>\n", []),
        (page(7, "Bad", "caf\udce9"), ["invalid_utf8"]),
    ],
)
@pytest.mark.parametrize("size", [200, 10**6])
def test_broken_xml_costs_one_page(tmp_path, broken, reasons, size):
    path = tmp_path / "dump.xml"
    path.write_bytes(dump([*PAGES[:5], broken, *PAGES[5:9]]).encode("utf-8", "surrogateescape"))
    read = titles(reading.make_splits(path, (), size))
    assert [name for name in read if name.startswith("Title")] == NAMES[:9]
    assert [name for name in read if not name.startswith("Title")] == reasons


def test_every_byte_of_a_dump_may_be_broken(tmp_path):
    """Any one wrong byte costs at most the page that it is in, and says so."""
    random_bytes = random.Random(0)
    text = dump(PAGES[:6]).encode()
    path = tmp_path / "dump.xml"
    first = text.index(b"<page>")
    for position in range(first, len(text) - 14, 3):
        data = bytearray(text)
        data[position] = random_bytes.randrange(256)
        path.write_bytes(data)
        read = titles(reading.make_splits(path, (), 400))
        lost = [name for name in NAMES[:6] if name not in read]
        assert len(lost) <= 1
        assert len(read) == 6  # in place of the lost one its reason, or what its title has become


def test_a_page_without_text(tmp_path):
    path = tmp_path / "dump.xml"
    path.write_text(
        dump([page(1, "A", "x").replace("<text>x</text>", '<text deleted="deleted"/>')])
    )
    [read] = reading.read_pages(whole(path))
    assert (read.title, read.text) == ("A", "")


def test_a_page_that_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MOST_RAW_BYTES", 5000)
    path = tmp_path / "dump.xml"
    path.write_text(dump([PAGES[0], page(7, "Large", "x" * 10000), PAGES[1]]))
    read = list(reading.read_pages(whole(path)))
    assert [getattr(page, "title", None) for page in read] == ["Title 0", "Large", "Title 1"]
    assert (read[1].reason, read[1].page_id) == ("too_large", 7)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "dump.7z"
    path.write_bytes(b"7z\xbc\xaf\x27\x1c")
    with pytest.raises(ElqError, match="expected XML, bz2 or gzip"):
        reading.form_of(path)
    with pytest.raises(ElqError, match="no such file"):
        reading.form_of(tmp_path / "none")
