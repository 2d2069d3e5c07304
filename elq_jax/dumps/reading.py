"""Reads the pages of an XML dump, each on its own, so that damage costs only the page it hits."""

from __future__ import annotations

import bz2
import dataclasses
import mmap
import os
import pathlib
import re
import zlib
from collections.abc import Iterator, Sequence
from xml.etree import ElementTree

from elq_jax.core.errors import DataError

_CHUNK = 1 << 20
# A page that is larger is not even looked at; one revision has at most 2 MiB of wikitext.
MOST_RAW_BYTES = 64 << 20
_TAG = re.compile(rb"<(?:/?page|title)>")
_TAGS = (b"<page>", b"</page>", b"<title>")
_BEGINNINGS = {tag[:i] for tag in _TAGS for i in range(1, len(tag))}
# A title so near to the beginning of a part belongs to a page that begins before it.
_NEAR = 32
_MULTISTREAM = re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")


@dataclasses.dataclass(frozen=True)
class Split:
    """A part of a dump that one task reads: the pages whose beginning lies in it.

    Attributes:
      path: path of the file.
      form: "xml", "bz2" or "gz".
      start: offset of the first byte in the file.
      end: offset after the last byte.
      streams: offsets of the bz2 streams that begin in the split, where reading is resumed after a
        damaged one.
    """

    path: str
    form: str
    start: int
    end: int
    streams: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Page:
    """One page of a dump.

    Attributes:
      page_id: id of the page.
      namespace: number of its namespace.
      title: title with the namespace.
      redirect: title that the page is a redirect to; None: it is none.
      text: wikitext of the page, "" where the dump has none.
      model: content model, such as "wikitext".
    """

    page_id: int
    namespace: int
    title: str
    redirect: str | None
    text: str
    model: str


@dataclasses.dataclass(frozen=True)
class Damage:
    """Something of a dump that could not be read.

    Attributes:
      reason: word for reports, such as "broken_xml".
      detail: text about what was found and where.
      page_id: id of the page, if it could be read; else -1.
      title: title of the page, if it could be read.
    """

    reason: str
    detail: str
    page_id: int = -1
    title: str = ""


def form_of(path: str | os.PathLike[str]) -> str:
    """Returns "xml", "bz2" or "gz" by the first bytes of a file.

    Raises:
      DataError: there is no such file, or it is of another form.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise DataError("no such file; give a dump such as simplewiki-latest-pages-articles", path)
    with open(path, "rb") as file:
        head = file.read(512)
    if head.startswith(b"BZh"):
        return "bz2"
    if head.startswith(b"\x1f\x8b"):
        return "gz"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
        return "xml"
    message = f"begins with {head[:8]!r}, expected XML, bz2 or gzip; decompress it, or download"
    raise DataError(f"{message} pages-articles.xml.bz2", path)


def stream_offsets(path: str | os.PathLike[str]) -> list[int]:
    """Finds the beginnings of the streams of a bz2 file; one that is no multistream file has one.

    Streams begin at whole bytes with ten bytes that compressed data has by chance once in 10^24.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return [match.start() for match in _MULTISTREAM.finditer(data)]


def index_offsets(path: str | os.PathLike[str], dump: str | os.PathLike[str]) -> list[int]:
    """Reads the beginnings of streams from the index of a multistream dump.

    Args:
      path: path of the index, with lines "offset:page id:title", bz2, gzip or plain.
      dump: path of the dump, at whose offsets streams must begin.

    Raises:
      DataError: a line is no such line, or no stream begins at an offset.
    """
    offsets = {0}
    number = 0
    for number, line in enumerate(_lines(path), 1):
        offset, colon, _ = line.partition(b":")
        if not colon or not offset.isdigit():
            message = f"found {line[:60]!r}, expected offset:page id:title; download it again"
            raise DataError(message, path, number)
        offsets.add(int(offset))
    with open(dump, "rb") as file:
        for offset in offsets:
            file.seek(offset)
            if not _MULTISTREAM.match(file.read(10)):
                message = f"no bz2 stream of {dump} begins at {offset:,}; expected the index of"
                raise DataError(f"{message} this dump: download both again", path)
    return sorted(offsets)


def _lines(path: str | os.PathLike[str]) -> Iterator[bytes]:
    size = os.path.getsize(path)
    rest = b""
    for data in _decompressed(Split(os.fspath(path), form_of_index(path), 0, size)):
        if isinstance(data, Damage):
            raise DataError(f"{data.detail}; download it again", path)
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
    if rest:
        yield rest


def form_of_index(path: str | os.PathLike[str]) -> str:
    """Returns the form of an index file: "bz2", "gz", or "xml" for plain text."""
    with open(path, "rb") as file:
        head = file.read(3)
    return "bz2" if head == b"BZh" else "gz" if head[:2] == b"\x1f\x8b" else "xml"


def can_be_split(path: str | os.PathLike[str], streams: Sequence[int]) -> bool:
    """Returns whether several tasks can read a dump from the middle on."""
    return form_of(path) == "xml" or len(streams) > 2


def make_splits(path: str | os.PathLike[str], streams: Sequence[int], size: int) -> list[Split]:
    """Divides a dump that can be read from the middle into parts of about equal size.

    Args:
      path: path of the dump, plain XML or multistream bz2.
      streams: beginnings of its streams; empty for plain XML.
      size: number of bytes of a part on disk.
    """
    total = os.path.getsize(path)
    name = os.fspath(path)
    if not streams:
        return [Split(name, "xml", i, min(i + size, total)) for i in range(0, total, size)]
    splits, group = [], [streams[0]]
    for offset in [*streams[1:], total]:
        if offset - group[0] >= size or offset == total:
            splits.append(Split(name, "bz2", group[0], offset, tuple(group)))
            group = []
        group.append(offset)
    return splits


def read_head(path: str | os.PathLike[str]) -> bytes:
    """Returns the beginning of a dump up to its first page; at most 4 MiB."""
    head = b""
    for data in _decompressed(Split(os.fspath(path), form_of(path), 0, os.path.getsize(path))):
        if isinstance(data, Damage):
            break
        head += data
        if b"<page>" in head or len(head) > 4 << 20:
            break
    return head.partition(b"<page>")[0]


def read_pages(split: Split) -> Iterator[Page | Damage]:
    """Yields the pages of a part of a dump, and what of it cannot be read."""
    for raw in read_raw_pages(split):
        yield raw if isinstance(raw, Damage) else parse_page(raw)


def read_raw_pages(split: Split) -> Iterator[bytes | Damage]:
    """Yields the XML of each page whose beginning lies in a part of a dump, and damage in between.

    Memory holds one page at a time, and no page that is larger than 64 MiB.
    """
    scanner = _Scanner(is_whole=split.start == 0)
    for data in _decompressed(split):
        yield from scanner.damaged(data) if isinstance(data, Damage) else scanner.feed(data)
    if not scanner.needs_more:
        return
    # The last page, or its first tag, goes on after the end of the part.
    following = dataclasses.replace(split, start=split.end, end=_size(split.path), streams=())
    own = len(scanner.rest)
    for data in _decompressed(following) if split.form != "gz" else ():
        if isinstance(data, Damage):
            break
        yield from scanner.feed(data, own)
        if not scanner.needs_more:
            return
        own = 0
    yield from scanner.interrupt()


class _Scanner:
    """Cuts a stream of bytes into pages.

    Attributes:
      rest: bytes that may be the beginning of a tag.
      is_open: whether a page has begun and not ended.
    """

    def __init__(self, is_whole: bool):
        self._parts: list[bytes] = []
        self._size = 0
        self._seen = _NEAR if is_whole else 0
        self.is_open = False
        self.rest = b""

    @property
    def needs_more(self) -> bool:
        """Returns whether a page, or perhaps its tag, has begun and not ended."""
        return self.is_open or bool(self.rest)

    def feed(self, data: bytes, own: int | None = None) -> Iterator[bytes | Damage]:
        """Yields the pages that end in the next bytes.

        Args:
          data: next bytes of the stream.
          own: number of bytes, `rest` included, in which a page may begin; None: in all.
        """
        data, position = self.rest + data, 0
        self.rest = b""
        for tag in _TAG.finditer(data):
            is_own = own is None or tag.start() < own
            if tag[0] == b"<title>":
                if is_own and not self.is_open and self._seen + tag.start() >= _NEAR:
                    raw = data[tag.start() : tag.start() + 1024]
                    yield _damage(raw, "broken_xml", "a page without its <page>")
            elif tag[0] == b"<page>":
                self._add(data[position : tag.start()])
                yield from self.interrupt()
                if not is_own:
                    return
                self.is_open, position = True, tag.start()
            elif self.is_open:
                self._add(data[position : tag.end()])
                yield self._page()
        border = data.rfind(b"<", max(position, len(data) - 6))
        if border >= 0 and data[border:] in _BEGINNINGS:
            self.rest = data[border:]
        self._seen += len(data) - len(self.rest)
        self._add(data[position : len(data) - len(self.rest)])
        if own is not None and not self.is_open:
            self.rest = b""

    def _page(self) -> bytes | Damage:
        raw, size = b"".join(self._parts), self._size
        self._close()
        return _damage(raw, "too_large", f"{size:,} bytes") if size > MOST_RAW_BYTES else raw

    def _add(self, data: bytes) -> None:
        if self.is_open:
            self._size += len(data)
            is_large = self._size > MOST_RAW_BYTES
            if not is_large or not self._parts:
                self._parts.append(data[:4096] if is_large else data)

    def _close(self) -> None:
        self.is_open, self._parts, self._size = False, [], 0

    def interrupt(self) -> Iterator[Damage]:
        """Gives up the open page, if there is one."""
        if self.is_open:
            yield _damage(b"".join(self._parts), "broken_xml", "<page> without its </page>")
        self._close()

    def damaged(self, damage: Damage) -> Iterator[Damage]:
        """Gives up the open page because bytes are missing from here on."""
        yield damage
        yield from self.interrupt()
        self.rest, self._seen = b"", 0


def _size(path: str) -> int:
    return os.path.getsize(path)


def _decompressed(split: Split) -> Iterator[bytes | Damage]:
    """Yields the decompressed bytes of a part of a file, and its damage."""
    with open(split.path, "rb") as file:
        file.seek(split.start)
        if split.form == "xml":
            position = split.start
            while position < split.end and (data := file.read(min(_CHUNK, split.end - position))):
                position += len(data)
                yield data
        elif split.form == "gz":
            yield from _gunzip(file)
        else:
            for start, end in zip(
                split.streams or (split.start,), (*split.streams[1:], split.end), strict=True
            ):
                file.seek(start)
                yield from _bunzip(file, end)


def _bunzip(file, end: int) -> Iterator[bytes | Damage]:
    """Decompresses one stream after the other, up to an offset in the file."""
    decompressor, unused, begun = bz2.BZ2Decompressor(), b"", file.tell()
    while True:
        data = unused or file.read(min(_CHUNK, end - file.tell()))
        unused = b""
        if not data:
            break
        try:
            while True:
                plain = decompressor.decompress(data, _CHUNK)
                if plain:
                    yield plain
                data = b""
                if decompressor.eof or decompressor.needs_input:
                    break
        except OSError as error:
            place = f"bz2 stream from byte {begun:,} to {end:,}"
            yield Damage("damaged_input", f"{file.name}: {place}: {error}")
            return
        if decompressor.eof:
            unused = decompressor.unused_data
            begun = file.tell() - len(unused)
            decompressor = bz2.BZ2Decompressor()
    if file.tell() > begun:
        detail = f"{file.name}: ends inside the bz2 stream that begins at byte {begun:,}"
        yield Damage("truncated_input", detail)


def _gunzip(file) -> Iterator[bytes | Damage]:
    decompressor = zlib.decompressobj(wbits=31)
    while data := file.read(_CHUNK):
        while data:
            try:
                plain = decompressor.decompress(data, _CHUNK)
            except zlib.error as error:
                detail = f"{file.name}: gzip before byte {file.tell():,}: {error}"
                yield Damage("damaged_input", detail)
                return
            if plain:
                yield plain
            data = decompressor.unconsumed_tail
            if decompressor.eof:
                data = decompressor.unused_data.lstrip(b"\0")
                if data or file.peek(1):
                    decompressor = zlib.decompressobj(wbits=31)
    if not decompressor.eof:
        yield Damage("truncated_input", f"{file.name}: ends inside its gzip data")


def parse_page(raw: bytes) -> Page | Damage:
    """Parses the XML of one page."""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return _damage(raw, "invalid_utf8", f"byte {error.start:,} of the page")
    try:
        element = ElementTree.fromstring(raw)
    except ElementTree.ParseError as error:
        return _damage(raw, "broken_xml", str(error))
    title = element.findtext("title") or ""
    redirect = element.find("redirect")
    revision = element.find("revision")
    try:
        page_id, namespace = int(element.findtext("id") or ""), int(element.findtext("ns") or "0")
    except ValueError:
        return _damage(raw, "broken_xml", "an <id> or <ns> that is no number")
    if not title:
        return _damage(raw, "broken_xml", "no <title>")
    return Page(
        page_id,
        namespace,
        title,
        None if redirect is None else redirect.get("title") or "",
        (revision.findtext("text") if revision is not None else None) or "",
        (revision.findtext("model") if revision is not None else None) or "wikitext",
    )


def _damage(raw: bytes, reason: str, detail: str) -> Damage:
    """Describes a page that cannot be parsed, with its id and title if they can be read."""
    head = raw[:4096]
    title = re.search(rb"<title>([^<]*)", head)
    page_id = re.search(rb"<id>(\d+)</id>", head)
    return Damage(
        reason,
        detail,
        int(page_id[1]) if page_id else -1,
        title[1].decode("utf-8", "backslashreplace") if title else "",
    )
