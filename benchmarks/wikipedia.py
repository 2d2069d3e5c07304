"""Measures reading of Wikipedia dumps: speed, memory on longer input, and output after kills.

    python -m benchmarks.wikipedia --dump ltgwiki-pages-articles.xml.bz2

prints, for the dump and for ten copies of it with other titles, the largest memory of all processes
together; then it kills the program 20 times at random moments, resumes it each time, and compares
the output with that of a run in one piece.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from absl import flags

from elq_jax.cli.run import define_path, run
from elq_jax.dumps import reading, rules, siteinfo, wikitext

_DUMP = define_path("dump", "Dump of pages; a small one.", required=True)
_KILLS = flags.DEFINE_integer("kills", 20, "Number of kills.")
_COPIES = flags.DEFINE_integer("copies", 10, "Number of copies of the dump in the longer input.")
_SHARD = flags.DEFINE_float("shard", 1, "Megabytes of a shard, see --shard_megabytes.")
_LONGEST = flags.DEFINE_float("longest", 15, "Longest time in seconds before a kill.")


def main(arguments: list[str]) -> None:
    """Prints the measurements."""
    del arguments
    _measure_speed(_DUMP.value)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for copies in (1, _COPIES.value):
            path = folder / f"{copies}.xml"
            _write_copies(_DUMP.value, path, copies)
            process = _program(path, folder / f"out{copies}")
            largest = _largest_memory(process)
            size = path.stat().st_size / 1e6
            print(f"{copies} times the dump ({size:.0f} MB of XML): {largest / 2**20:.0f} MiB")
        whole = _contents(folder / "out1")
        killed, finished, same = folder / "killed", 0, True
        moments, kills = random.Random(0), 0
        while kills < _KILLS.value or not killed.exists():
            process = _program(folder / "1.xml", killed)
            with contextlib.suppress(subprocess.TimeoutExpired):
                is_last = kills == _KILLS.value
                process.wait(None if is_last else moments.uniform(0, _LONGEST.value))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
                continue
            finished += 1
            same = same and _contents(killed) == whole
            if kills < _KILLS.value:
                shutil.rmtree(killed)
        print(
            f"{kills} kills until {finished} runs were finished: their output is "
            f"{'the same' if same else 'ANOTHER ONE'}"
        )


def _measure_speed(path: pathlib.Path) -> None:
    """Prints how fast one processor reads articles; processor time, not time on the clock."""
    split = reading.Split(os.fspath(path), reading.form_of(path), 0, path.stat().st_size)
    site = siteinfo.read_siteinfo(reading.read_head(path), path)
    wiki = wikitext.Wiki(site, rules.read_rules(site.language))
    started = time.process_time()
    pages = [page for page in reading.read_pages(split) if isinstance(page, reading.Page)]
    read = time.process_time()
    articles = [page for page in pages if page.namespace == 0 and page.redirect is None]
    for page in articles:
        wikitext.read_wikitext(page.text, page.title, wiki)
    ended = time.process_time()
    size = sum(len(page.text.encode()) for page in articles)
    print(
        f"{len(pages):,} pages decompressed at {len(pages) / (read - started):,.0f} pages/s, "
        f"{len(articles):,} articles of {size / len(articles):,.0f} bytes parsed at "
        f"{len(articles) / (ended - read):.1f} articles/s, {size / (ended - read) / 1e6:.2f} MB/s, "
        "by one processor"
    )


def _write_copies(dump: pathlib.Path, path: pathlib.Path, copies: int) -> None:
    """Writes a dump with so many copies of all pages, each with titles and ids of its own."""
    split = reading.Split(os.fspath(dump), reading.form_of(dump), 0, dump.stat().st_size)
    with open(path, "wb") as file:
        file.write(reading.read_head(dump))
        for copy in range(copies):
            for raw in reading.read_raw_pages(split):
                if isinstance(raw, reading.Damage):
                    continue
                title = b"</title>" if not copy else b" (copy %d)</title>" % copy
                raw = raw.replace(b"</title>", title, 1)
                raw = re.sub(rb"<id>(\d+)</id>", rb"<id>\g<1>%02d</id>" % copy, raw, count=1)
                file.write(raw + b"\n")
        file.write(b"</mediawiki>\n")


def _program(dump: pathlib.Path, output: pathlib.Path) -> subprocess.Popen[bytes]:
    arguments = [f"--dump={dump}", f"--output={output}", f"--shard_megabytes={_SHARD.value}"]
    return subprocess.Popen(
        [sys.executable, "-m", "elq_jax.wikipedia", *arguments, "--", "--direct_num_workers=2"],
        stderr=subprocess.DEVNULL,
    )


def _largest_memory(process: subprocess.Popen[bytes]) -> int:
    """Waits for a program; returns the largest memory in bytes of it and all below it."""
    largest = 0
    while process.poll() is None:
        largest = max(largest, sum(map(_memory, _family(process.pid))))
        time.sleep(0.3)
    return largest


def _family(root: int) -> set[int]:
    """Returns the ids of a process and all that it started, and that those started."""
    parents = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            parents[int(path.parent.name)] = int(fields[1])
    family = {root}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return family


def _memory(process: int) -> int:
    """Returns the memory of a process in bytes, with its share of what others use too."""
    try:
        text = pathlib.Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0
    match = re.search(r"Pss:\s+(\d+) kB", text)
    return int(match[1]) << 10 if match else 0


def _contents(folder: pathlib.Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


if __name__ == "__main__":
    run(main)
