"""Lines of files that are not quite what their names say."""

import bz2
import gzip
import itertools
import lzma

import pytest

from elq_jax.core.errors import DataError, ElqError
from elq_jax.storage.lines import open_lines, read_jsonl

MARK = b"\xef\xbb\xbf"


def test_marks_and_blank_lines(tmp_path):
    path = tmp_path / "two.jsonl"
    content = MARK + b'{"a": 1}\r\n\n' + MARK + b'{"a": 2}\n' + MARK
    for data in (content, gzip.compress(content)):
        path.write_bytes(data)
        assert list(read_jsonl(path)) == [(1, {"a": 1}), (3, {"a": 2})]
        with open_lines(path) as lines:
            assert len(list(lines.lines())) == 3  # the last mark ends the file, and is no line
            assert lines.position == lines.size == len(data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "with `git lfs pull`"),
        ('{"a": 1}'.encode("utf-16"), "found UTF-16, expected UTF-8"),
        ('{"a": 1}'.encode("utf-16-le"), "found a NUL, as in UTF-16"),
        (b'{"a": 1}\r{"a": 2}\r', "a carriage return inside the line"),
        (b'[{"a": 1},\n{"a": 2}]\n', "expected one object a line, not an array"),
        (b'{\n  "a": 1\n}\n', "expected one object a line, not one over several lines"),
        (gzip.compress(b'{"a": 1}\n' * 999)[:-9], "not a whole gzip file"),
        (gzip.compress(b'{"a": 1}\n') + b"more", "not a whole gzip file"),
        (bz2.compress(b'{"a": 1}\n'), "found a bzip2 file, expected lines of text or gzip"),
        (lzma.compress(b'{"a": 1}\n'), "found a xz file"),
        (b"PK\x03\x04\x14\0", "found a zip file"),
    ],
    ids=itertools.count(),  # The workers must agree on the names; a gzip file holds its time.
)
def test_what_a_file_is_instead_is_named(tmp_path, content, message):
    path = tmp_path / "one.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        list(read_jsonl(path))
    assert str(caught.value).startswith(f"{path}:")


def test_no_such_file(tmp_path):
    for path, message in ((tmp_path, "is a folder"), (tmp_path / "none.jsonl", "no such file")):
        with pytest.raises(ElqError, match=message):
            list(read_jsonl(path))
