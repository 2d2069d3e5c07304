"""Runs the stages by Apache Beam, and resumes what an interrupted run left.

Beam spreads the tasks of a stage over processes or machines; what one stage leaves for the next
lies in files. So memory does not grow with the dump, and a task that is done stays done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import itertools
import json
import logging
import os
import pathlib
import re
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from elq_jax.core.errors import DiskFullError, ElqError
from elq_jax.dumps import reading
from elq_jax.dumps.reading import Damage, Split
from elq_jax.dumps.rules import read_rules
from elq_jax.dumps.runs import UnfinishedError
from elq_jax.dumps.settings import WikipediaSettings
from elq_jax.dumps.siteinfo import SiteInfo, read_siteinfo
from elq_jax.dumps.stages import STAGES, Job, added, missing_tasks, read_reports, run_task
from elq_jax.storage.files import atomic_write, make_folder, write_json
from elq_jax.storage.progress import progress
from elq_jax.storage.resume import resumable_folder

WORK = "work"
ENTITIES, ANCHORS, REPORT = "entities.jsonl.gz", "anchors.jsonl.gz", "report.json"
GIVEN_UP = "given_up.jsonl"
_SPLITS_PER_PARTITION = 4
_TOLD = r"elq_jax\.[\w.]+\.(\w+Error): (.+?)(?: \[while running|$)"
_PROBLEMS = {"damaged_input", "truncated_input"}


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Files that the pipeline reads.

    Attributes:
      dump: path of pages-articles.xml, plain or compressed.
      index: path of the index of a multistream dump; without it, streams are looked for.
      siteinfo: path of siteinfo-namespaces.json.gz.
      page_props: path of page_props.sql.gz.
      items_per_site: path of Wikidata's wb_items_per_site.sql.gz.
      rules: path of rules for the wiki; None: those of its language that come with this package.
    """

    dump: pathlib.Path
    index: pathlib.Path | None = None
    siteinfo: pathlib.Path | None = None
    page_props: pathlib.Path | None = None
    items_per_site: pathlib.Path | None = None
    rules: pathlib.Path | None = None


def read_wikipedia(
    inputs: Inputs,
    output: str | os.PathLike[str],
    settings: WikipediaSettings,
    beam_arguments: Sequence[str] = (),
) -> dict[str, Any]:
    """Makes a catalogue, linked passages, anchors and a report from a dump.

    An interrupted run is resumed by a call with the same inputs and settings; the output does not
    depend on the number of workers.

    Args:
      inputs: files to read.
      output: path of the folder to write, which appears when it is whole.
      settings: what is taken from the dump.
      beam_arguments: options of Apache Beam, such as "--runner=FlinkRunner". The folder and the
        inputs must then be on a disk that all machines see.

    Returns:
      the report, which is in `report.json` too.

    Raises:
      ElqError: an input cannot be used, `output` exists, or apache-beam is not installed.
    """
    _check_installed()
    files = {name: path for name, path in vars(inputs).items() if path is not None}
    for path in files.values():
        if not path.is_file():
            raise ElqError(f"{path}: no such file; download it, or leave the flag out")
    head = reading.read_head(inputs.dump)
    site = read_siteinfo(head, inputs.dump, inputs.siteinfo)
    rules = read_rules(site.language, inputs.rules)
    values = {"settings": dataclasses.asdict(settings), "rules_of": site.language}
    with resumable_folder(output, {**files, **values}) as partial:
        work = partial / WORK
        splits = _splits(inputs, work, settings)
        job = Job(
            folder=os.fspath(work.absolute()),
            splits=tuple(splits),
            partitions=-(-len(splits) // _SPLITS_PER_PARTITION),
            site=site,
            rules=rules,
            settings=settings,
            page_props=inputs.page_props and os.path.abspath(inputs.page_props),
            items_per_site=inputs.items_per_site and os.path.abspath(inputs.items_per_site),
            parent=os.getpid() if is_local(beam_arguments) else None,
        )
        for stage in STAGES:
            run_stage(job, stage, beam_arguments)
            if stage == "templates":
                write_json(work / "templates.json", added(read_reports(job, stage)))
        report = _finish(job, partial, site)
        shutil.rmtree(work)
    return report


def _check_installed() -> None:
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # Beam tells that some of its own extras are missing.
    try:
        import apache_beam  # noqa: F401
        import mwparserfromhell  # noqa: F401
    except ImportError as error:
        message = f"{error.name} is not installed, which reading dumps needs"
        raise ElqError(f"{message}; pip install 'elq_jax[wikipedia]'") from error
    finally:
        logging.disable(disabled)


def is_local(beam_arguments: Sequence[str]) -> bool:
    """Returns whether Beam runs its tasks on this machine, by its own runner."""
    runners = [a.partition("=")[2] for a in beam_arguments if a.startswith("--runner=")]
    return not runners or runners[-1] == "DirectRunner"


def _splits(inputs: Inputs, work: pathlib.Path, settings: WikipediaSettings) -> list[Split]:
    """Divides the dump; one that can only be read from its beginning is copied in parts."""
    dump = inputs.dump.absolute()
    size = max(1, round(settings.shard_megabytes * 1e6))
    form = reading.form_of(dump)
    streams: list[int] = []
    if form == "bz2":
        streams = (
            reading.index_offsets(inputs.index, dump)
            if inputs.index
            else reading.stream_offsets(dump)
        )
    if reading.can_be_split(dump, streams):
        return reading.make_splits(dump, streams, size)
    return copy_in_parts(dump, work / "parts", size)


def copy_in_parts(dump: pathlib.Path, folder: pathlib.Path, size: int) -> list[Split]:
    """Copies the pages of a dump to gzip files, which tasks can read at the same time.

    Args:
      dump: path of a dump that can only be read from its beginning.
      folder: path of a folder; parts that an interrupted run left there are kept.
      size: number of bytes of a part, decompressed.
    """
    make_folder(folder)
    total = os.path.getsize(dump)
    whole = Split(os.fspath(dump), reading.form_of(dump), 0, total)
    done = folder / "parts.json"
    if not done.exists():
        pages = reading.read_raw_pages(whole)
        with progress("reading the dump", None, "pages") as advance:
            for number in itertools.count():
                path = folder / f"{number:05}.json"
                if path.exists():
                    count = json.loads(path.read_text("utf-8"))["count"]
                    skipped = sum(1 for _ in itertools.islice(pages, count))
                    advance(skipped)
                    continue
                count = _copy_part(pages, folder, number, size)
                advance(count)
                if not count:
                    break
        write_json(done, {"count": number})
    count = json.loads(done.read_text("utf-8"))["count"]
    paths = [folder / f"{number:05}.xml.gz" for number in range(max(count, 1))]
    if not count:
        paths[0].write_bytes(gzip.compress(b"", mtime=0))
    return [Split(os.fspath(path), "gz", 0, path.stat().st_size) for path in paths]


def _copy_part(
    pages: Iterator[bytes | Damage], folder: pathlib.Path, number: int, size: int
) -> int:
    """Writes one part; returns of how many pages it is, damaged ones included."""
    count = written = 0
    damages = []
    first = next(pages, None)
    if first is None:
        return 0
    with (
        atomic_write(folder / f"{number:05}.xml.gz") as file,
        gzip.GzipFile("", "wb", 1, fileobj=file, mtime=0) as packed,
    ):
        for page in itertools.chain((first,), pages):
            count += 1
            if isinstance(page, Damage):
                damages.append(dataclasses.asdict(page))
            else:
                packed.write(page)
                written += len(page)
            if written >= size:
                break
    write_json(folder / f"{number:05}.json", {"count": count, "damages": damages})
    return count


def run_stage(job: Job, stage: str, beam_arguments: Sequence[str]) -> None:
    """Runs those tasks of a stage that are not done.

    Raises:
      ElqError: a task failed because of its input, or the disk is full.
      UnfinishedError: a task failed for another reason.
    """
    missing = missing_tasks(job, stage)
    if not missing:
        return
    make_folder(pathlib.Path(job.folder) / stage)
    total = job.tasks(stage)
    with _shown_progress(job, stage, total):
        if len(missing) == 1 and is_local(beam_arguments):
            run_task(job, stage, missing[0])  # Starting processes for it would take longer.
        else:
            _run_beam(job, stage, missing, beam_arguments)
    if still := missing_tasks(job, stage):
        message = f"{job.folder}: {len(still)} tasks of the stage {stage} left no report"
        raise UnfinishedError(f"{message}; run the same command again, which resumes")


def _run_beam(job: Job, stage: str, tasks: Sequence[int], beam_arguments: Sequence[str]) -> None:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    arguments = list(beam_arguments)
    given = {argument.partition("=")[0] for argument in arguments}
    if is_local(arguments) and "--direct_num_workers" not in given:
        arguments.append(f"--direct_num_workers={len(os.sched_getaffinity(0))}")
    if is_local(arguments) and "--direct_running_mode" not in given:
        arguments.append("--direct_running_mode=multi_processing")
    options = PipelineOptions(arguments)
    hook, threading.excepthook = threading.excepthook, _end_after_lost_worker
    log = pathlib.Path(job.folder) / "beam.log" if is_local(arguments) else None
    try:
        with _stderr_to(log), beam.Pipeline(options=options) as pipeline:
            _ = (
                pipeline
                | beam.Create(tasks)
                | beam.Reshuffle()
                | beam.Map(functools.partial(_run_in_worker, job, stage))
            )
    except Exception as error:
        # Beam gives errors of workers as text.
        told = re.findall(_TOLD, str(error), re.MULTILINE)
        if not told:
            raise
        kind, message = told[-1]
        # What is done is kept after the first two, since they are no fault of the input.
        kinds = {"DiskFullError": DiskFullError, "UnfinishedError": UnfinishedError}
        raise kinds.get(kind, ElqError)(message) from error
    finally:
        threading.excepthook = hook


@contextlib.contextmanager
def _stderr_to(log: pathlib.Path | None) -> Iterator[None]:
    """Writes to a file what Beam and its processes tell; `sys.stderr` still leads to the user."""
    if log is None:
        yield
        return
    stream, saved = sys.stderr, os.dup(2)
    with open(log, "ab") as file, open(os.dup(saved), "w", encoding="utf-8") as shown:
        sys.stderr = shown
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            sys.stderr = stream


def _end_after_lost_worker(error: threading.ExceptHookArgs) -> None:
    """Ends the program if a worker of Beam is killed, for which its runner would wait for ever."""
    text = str(error.exc_value)
    if "subprocess exited" in text:
        advice = "if memory is short, give fewer workers (-- --direct_num_workers=1)"
        message = f"error: a process of Apache Beam was ended ({text}); {advice}; the same command"
        print(f"{message} resumes where it stopped", file=sys.stderr, flush=True)
        os._exit(2)
    if not error.exc_type.__module__.startswith("grpc"):  # of a thread that listened to a worker
        threading.__excepthook__(error)


def _run_in_worker(job: Job, stage: str, number: int) -> None:
    """Runs a task in a process of Beam; ends the process if the program has been killed."""
    if job.parent is not None:
        try:
            os.kill(job.parent, 0)
        except ProcessLookupError:
            os._exit(1)
    run_task(job, stage, number)


@contextlib.contextmanager
def _shown_progress(job: Job, stage: str, total: int) -> Iterator[None]:
    """Shows how many tasks have left a report while the block runs."""
    ended = threading.Event()

    def watch() -> None:
        with progress(stage, total, "shards") as advance:
            shown = total - len(missing_tasks(job, stage))
            advance(shown)  # of an earlier run, so the rate leaves them out
            is_last = False
            while not is_last:
                is_last = ended.wait(1)
                done = total - len(missing_tasks(job, stage))
                if done > shown:
                    advance(done - shown)
                shown = done

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _finish(job: Job, folder: pathlib.Path, site: SiteInfo) -> dict[str, Any]:
    """Writes the results under their final names, and the report."""
    _concatenate(job.paths("catalogue", "entities.gz"), folder / ENTITIES)
    _concatenate(job.paths("catalogue", "anchors.gz"), folder / ANCHORS)
    count = len(job.splits)
    make_folder(folder / "passages")
    for number, path in enumerate(job.paths("label", "passages.gz")):
        final = folder / "passages" / f"{number:05}-of-{count:05}.jsonl.gz"
        final.unlink(missing_ok=True)
        os.link(path, final)
    totals = {stage: added(read_reports(job, stage)) for stage in STAGES}
    given_up = [*totals["parse"].pop("given_up", []), *_damages_of_parts(job)]
    lines = "".join(json.dumps(page, ensure_ascii=False) + "\n" for page in given_up)
    with atomic_write(folder / GIVEN_UP) as file:
        file.write(lines.encode("utf-8", "backslashreplace"))
    pages = totals["parse"]["pages"]
    for page in _damages_of_parts(job):
        if page["reason"] not in _PROBLEMS:
            unknown = pages.setdefault("unknown", {})
            unknown[page["reason"]] = unknown.get(page["reason"], 0) + 1
    report = {
        "wiki": site.database,
        "language": site.language,
        "source": site.base,
        "pages": pages,
        "redirects": totals["targets"]["redirects"],
        "double_redirects": totals["chains"].get("double_redirects", 0),
        "duplicate_titles": totals["targets"].get("duplicate_titles", 0),
        "properties": totals["props"].get("properties", {}),
        "links": totals["label"].get("links", {}),
        "blocks": totals["label"].get("blocks", {}),
        "mentions": totals["label"].get("mentions", 0),
        "entities": totals["catalogue"]["entities"],
        "entities_with_wikidata_id": totals["catalogue"]["with_wikidata_id"],
        "wikitext_bytes": totals["parse"].get("wikitext_bytes", 0),
        "given_up": len(given_up),
        "input_problems": [page["detail"] for page in given_up if page["reason"] in _PROBLEMS],
    }
    write_json(folder / REPORT, report)
    return report


def _damages_of_parts(job: Job) -> Iterator[dict[str, Any]]:
    """Yields what was damaged in a dump that was copied in parts."""
    for path in sorted((pathlib.Path(job.folder) / "parts").glob("[0-9]*.json")):
        yield from json.loads(path.read_text("utf-8"))["damages"]


def _concatenate(paths: Iterable[pathlib.Path], target: pathlib.Path) -> None:
    """Writes gzip files one after the other, which is a gzip file again."""
    with atomic_write(target) as file:
        for path in paths:
            with open(path, "rb") as source:
                shutil.copyfileobj(source, file, 1 << 20)
