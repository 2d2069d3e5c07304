"""Defines the stages of the pipeline: what one task of each reads and writes.

A task is known by its stage and number. It writes files of its own and, as the last one, its report
NUMBER.json, so a task that was killed is simply run again. docs/wikipedia.md has an overview.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import json
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from elq_jax.dumps import passages, redirects, sql
from elq_jax.dumps.reading import Damage, Page, Split, read_pages
from elq_jax.dumps.rules import Rules
from elq_jax.dumps.runs import SectionWriter, partition, read_section, read_sections
from elq_jax.dumps.sandbox import GivenUp, Sandbox
from elq_jax.dumps.settings import WikipediaSettings
from elq_jax.dumps.siteinfo import TEMPLATE, SiteInfo
from elq_jax.dumps.titles import parse_target
from elq_jax.dumps.wikitext import Block, Link, Wiki, first_paragraph
from elq_jax.storage.files import atomic_write, write_json

_SWITCH = "__DISAMBIG__"
_NOT_INCLUDED = re.compile(r"<noinclude>.*?(?:</noinclude>|$)|<!--.*?-->", re.DOTALL)
# page_props are kept by ranges of page ids, since dumps have pages in the order of their ids.
_IDS_PER_SECTION, _PROP_SECTIONS = 1 << 14, 4096


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything that tasks need to know.

    Attributes:
      folder: path of the folder of unfinished work.
      splits: parts of the dump, one for each task that reads it.
      partitions: number of parts into which titles are divided.
      site: what the wiki says of itself.
      rules: what is known of the wiki's templates.
      settings: settings of the pipeline.
      page_props, items_per_site: paths of SQL dumps; None: not given.
      parent: id of the process whose end ends all tasks; None: none does.
    """

    folder: str
    splits: tuple[Split, ...]
    partitions: int
    site: SiteInfo
    rules: Rules
    settings: WikipediaSettings
    page_props: str | None = None
    items_per_site: str | None = None
    parent: int | None = None

    def path(self, stage: str, number: int, name: str) -> pathlib.Path:
        """Returns the path of a file of a task."""
        return pathlib.Path(self.folder) / stage / f"{number:05}.{name}"

    def paths(self, stage: str, name: str) -> list[pathlib.Path]:
        """Returns the paths of the same file of all tasks of a stage."""
        return [self.path(stage, i, name) for i in range(self.tasks(stage))]

    def tasks(self, stage: str) -> int:
        """Returns the number of tasks of a stage."""
        return {"splits": len(self.splits), "partitions": self.partitions, "one": 1}[
            STAGES[stage].divided_by
        ]

    def section(self, title: str) -> int:
        """Returns the partition of a title."""
        return partition(title, self.partitions)


class Title(msgspec.Struct, array_like=True):
    """A page of the main namespace.

    Attributes:
      title: its title.
      page_id: its id.
      kind: "article", "redirect", or why it is no entity.
      target: title that a redirect leads to.
    """

    title: str
    page_id: int
    kind: str
    target: str = ""


class Article(msgspec.Struct, array_like=True):
    """What the catalogue says of an article, but for its names and links."""

    title: str
    page_id: int
    text: str
    wikidata_id: str


class Parsed(msgspec.Struct, array_like=True):
    """An article as it was read."""

    page_id: int
    title: str
    blocks: list[Block]
    links: list[Link]


def templates(job: Job, number: int) -> dict[str, Any]:
    """Finds redirects among templates, and those that mark disambiguation pages."""
    found: dict[str, Any] = {"redirects": {}, "disambiguation": []}
    for page in read_pages(job.splits[number]):
        if isinstance(page, Damage) or page.namespace != TEMPLATE:
            continue
        name = parse_target(page.title, job.site).title
        if page.redirect is not None:
            found["redirects"][name] = parse_target(page.redirect, job.site).title
        elif _SWITCH in _NOT_INCLUDED.sub("", page.text):
            found["disambiguation"].append(name)
    return found


def props(job: Job, number: int) -> dict[str, Any]:
    """Reads page_props and wb_items_per_site into sections."""
    del number
    counts: Counter[str] = Counter()
    if job.page_props:
        wanted = {b"wikibase_item", b"wikibase-shortdesc", b"disambiguation", b"hiddencat"}
        with SectionWriter(job.path("props", 0, "props"), _PROP_SECTIONS) as sections:
            for page_id, name, value, *_ in sql.read_rows(job.page_props, "page_props"):
                if name in wanted:
                    record = (int(page_id or 0), sql.text(name), sql.text(value))
                    sections.add(_prop_section(record[0]), record)
                    counts[sql.text(name)] += 1
    if job.items_per_site:
        with SectionWriter(job.path("props", 0, "items"), job.partitions) as sections:
            for row in sql.read_rows(job.items_per_site, "wb_items_per_site"):
                if sql.text(row[2]) == job.site.database:
                    title = parse_target(sql.text(row[3]), job.site)
                    if title.namespace == 0 and title.kind == "article":
                        record = (title.title, f"Q{int(row[1] or 0)}")
                        sections.add(job.section(title.title), record)
                        counts["sitelinks"] += 1
    return {"properties": counts}


def _prop_section(page_id: int) -> int:
    return page_id // _IDS_PER_SECTION % _PROP_SECTIONS


class _Properties:
    """Looks up properties of pages by their ids, with those of a few ranges of ids in memory."""

    def __init__(self, job: Job):
        self._path = job.path("props", 0, "props") if job.page_props else None
        self._section = functools.lru_cache(maxsize=4)(self._read)

    def _read(self, section: int) -> Mapping[int, dict[str, str]]:
        found: dict[int, dict[str, str]] = {}
        if self._path:
            for page_id, name, value in read_section(self._path, section, tuple[int, str, str]):
                found.setdefault(page_id, {})[name] = value
        return found

    def __call__(self, page_id: int) -> Mapping[str, str]:
        return self._section(_prop_section(page_id)).get(page_id, {})


def parse(job: Job, number: int) -> dict[str, Any]:
    """Reads the pages of a split: titles, redirects, and text and links of articles."""
    output = _ParseOutput(job, number)
    with output:
        for page in read_pages(job.splits[number]):
            if isinstance(page, Damage):
                output.give_up(page)
            else:
                output.page(page)
    return output.report


class _ParseOutput:
    """Writes what is read of the pages of a split."""

    _FILES = ("titles", "redirects", "wanted", "articles", "pages")

    def __init__(self, job: Job, number: int):
        self._job = job
        merged = json.loads((pathlib.Path(job.folder) / "templates.json").read_text("utf-8"))
        wiki = Wiki(job.site, job.rules, merged["redirects"])
        self._wiki, self._properties = wiki, _Properties(job)
        marking = [*merged["disambiguation"], *job.rules.disambiguation_templates]
        self._marking = {wiki.template(name) for name in marking}
        self._is_list = re.compile(job.rules.list_titles or "(?!)").search
        self._sandbox = Sandbox(wiki, job.settings.page_seconds, job.settings.page_megabytes)
        sizes = dict.fromkeys(self._FILES, job.partitions) | {"pages": 1}
        self._sections = {
            name: SectionWriter(job.path("parse", number, name), sizes[name])
            for name in self._FILES
        }
        self._wanted: set[str] = set()
        self._outcomes: Counter[tuple[str, str]] = Counter()
        self._given_up: list[dict[str, Any]] = []
        self._bytes = self._passages = 0

    def __enter__(self) -> None:
        for writer in self._sections.values():
            writer.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._sandbox.__exit__()
        if error[0] is None:
            for title in sorted(self._wanted):
                self._sections["wanted"].add(self._job.section(title), title)
        for writer in self._sections.values():
            writer.__exit__(*error)

    @property
    def report(self) -> dict[str, Any]:
        """Returns what became of the pages."""
        pages: dict[str, dict[str, int]] = {}
        for (namespace, outcome), count in sorted(self._outcomes.items()):
            pages.setdefault(namespace, {})[outcome] = count
        return {"pages": pages, "given_up": self._given_up, "wikitext_bytes": self._bytes}

    def give_up(self, damage: Damage) -> None:
        """Notes something that could not be read."""
        self._given_up.append(dataclasses.asdict(damage))
        if damage.reason not in ("damaged_input", "truncated_input"):
            self._outcomes["unknown", damage.reason] += 1

    def page(self, page: Page) -> None:
        """Writes what is read of a page."""
        space = str(page.namespace)
        target = parse_target(page.title, self._job.site)
        if page.namespace:
            self._outcomes[space, "other_namespace"] += 1
            return
        if target.kind != "article":
            self._outcomes[space, "bad_title"] += 1
            detail = "a title that MediaWiki does not allow"
            self._given_up.append(
                dataclasses.asdict(Damage("bad_title", detail, page.page_id, page.title))
            )
            return
        title, goal = target.title, ""
        if page.redirect is not None:
            kind, end = "redirect", parse_target(page.redirect, self._job.site)
            if end.kind == "article":
                goal = end.title
                self._sections["redirects"].add(self._job.section(goal), (title, goal))
        else:
            kind = self._article(page, title)
        self._outcomes[space, kind] += 1
        self._sections["titles"].add(
            self._job.section(title), Title(title, page.page_id, kind, goal)
        )

    def _article(self, page: Page, title: str) -> str:
        """Writes a page that is no redirect, and returns its kind."""
        if page.model != "wikitext":
            return "not_wikitext"
        properties = self._properties(page.page_id)
        if "disambiguation" in properties or _SWITCH in page.text:
            return "disambiguation"
        blocks: list[Block] = []
        description = properties.get("wikibase-shortdesc", "")
        size = len(page.text.encode("utf-8", "replace"))
        self._bytes += size
        try:
            if size > self._job.settings.page_bytes:
                raise GivenUp("too_large")
            read = self._sandbox.read(page.text, title)
        except GivenUp as reason:
            detail = f"{size:,} bytes of wikitext"
            self._given_up.append(
                dataclasses.asdict(Damage(str(reason), detail, page.page_id, page.title))
            )
            read = None
        if read:
            if self._marking & {*read.templates}:
                return "disambiguation"
            blocks = read.blocks
            description = description or read.description
        if self._is_list(title):
            return "list"
        text = _described(description, first_paragraph(blocks), self._job.settings)
        item = properties.get("wikibase_item", "")
        self._sections["articles"].add(
            self._job.section(title), Article(title, page.page_id, text, item)
        )
        if read:
            self._sections["pages"].add(0, Parsed(page.page_id, title, blocks, read.links))
            self._wanted.update(link.title for link in read.links if link.outcome == "article")
            self._wanted.add(title)
        return "article"


def _described(description: str, paragraph: str, settings: WikipediaSettings) -> str:
    """Joins a short description and a paragraph, cut at a word."""
    if description and not description.endswith((".", "!", "?")):
        description += "."
    text = " ".join(part for part in (description, paragraph) if part)
    if len(text) <= settings.text_characters:
        return text
    cut = text[: settings.text_characters + 1]
    return cut[: cut.rfind(" ")] if " " in cut else cut[:-1]


def _titles(job: Job, number: int) -> tuple[dict[str, Title], int]:
    """Returns the pages of a partition by title, and how many had the title of another."""
    found: dict[str, Title] = {}
    duplicates = 0
    for record in read_sections(job.paths("parse", "titles"), number, Title):
        other = found.get(record.title)
        duplicates += other is not None
        if other is None or record.page_id < other.page_id:
            found[record.title] = record
    return found, duplicates


def hops(job: Job, number: int) -> dict[str, Any]:
    """Tells redirects to pages of a partition from redirects to redirects."""
    titles, _ = _titles(job, number)
    pairs = read_sections(job.paths("parse", "redirects"), number, tuple[str, str])
    finals = SectionWriter(job.path("hops", number, "finals"), job.partitions)
    with finals, SectionWriter(job.path("hops", number, "doubles"), 1) as doubles:
        for source, target in pairs:
            page = titles.get(target)
            if page is not None and page.kind == "redirect":
                doubles.add(0, (source, target))
            else:
                kind = "red" if page is None else page.kind
                finals.add(job.section(source), (source, target, kind))
    return {}


def chains(job: Job, number: int) -> dict[str, Any]:
    """Follows redirects to redirects to their ends. They are few, and all in memory."""
    del number
    targets = dict(read_sections(job.paths("hops", "doubles"), 0, tuple[str, str]))
    ends = redirects.resolve(targets)
    wanted = {end for end in ends.values() if end is not None}
    finals: dict[str, tuple[str, str]] = {}
    for section in range(job.partitions if wanted else 0):
        for source, target, kind in read_sections(
            job.paths("hops", "finals"), section, tuple[str, str, str]
        ):
            if source in wanted:
                finals[source] = (target, kind)
    with SectionWriter(job.path("chains", 0, "finals"), job.partitions) as sections:
        for source, end in sorted(ends.items()):
            # A redirect out of the main namespace has no end among articles.
            final = ("", "redirect_cycle") if end is None else finals.get(end, ("", "elsewhere"))
            sections.add(job.section(source), (source, *final))
    return {"double_redirects": len(ends)}


def targets(job: Job, number: int) -> dict[str, Any]:
    """Answers what the links to titles of a partition lead to."""
    titles, duplicates = _titles(job, number)
    finals: dict[str, tuple[str, str]] = {}
    for path in (*job.paths("hops", "finals"), *job.paths("chains", "finals")):
        for source, target, kind in read_section(path, number, tuple[str, str, str]):
            finals[source] = (target, kind)
    outcomes: Counter[str] = Counter()

    def answer(title: str) -> tuple[str, str]:
        page = titles.get(title)
        if page is None:
            return "red", title
        if page.kind == "redirect":
            target, kind = finals.get(title, ("", "elsewhere"))
        else:
            target, kind = title, page.kind
        return passages.ENTITY if kind == "article" else kind, target

    with SectionWriter(job.path("targets", number, "answers"), len(job.splits)) as answers:
        for split, path in enumerate(job.paths("parse", "wanted")):
            for title in read_section(path, number, str):
                answers.add(split, (title, *answer(title)))
    with SectionWriter(job.path("targets", number, "names"), job.partitions) as names:
        for title, page in sorted(titles.items()):
            if page.kind == "redirect":
                kind, target = answer(title)
                outcomes[kind] += 1
                if kind == passages.ENTITY:
                    names.add(job.section(target), (target, title))
    return {"redirects": outcomes, "duplicate_titles": duplicates}


def label(job: Job, number: int) -> dict[str, Any]:
    """Writes the passages of a split, and counts its links."""
    answers = {
        title: (outcome, target)
        for title, outcome, target in read_sections(
            job.paths("targets", "answers"), number, tuple[str, str, str]
        )
    }
    links: Counter[tuple[str, str]] = Counter()
    blocks: Counter[str] = Counter()
    anchors: Counter[tuple[str, str]] = Counter()
    in_links: Counter[str] = Counter()
    mentions = 0
    with _jsonl(job.path("label", number, "passages")) as write:
        for page in read_section(job.path("parse", number, "pages"), 0, Parsed):
            rows, outcomes = passages.make_passages(
                page.page_id, page.title, page.blocks, answers, job.settings
            )
            blocks += outcomes
            for row in rows:
                write(row)
                mentions += len(row["mentions"])
            entities = set()
            for link in page.links:
                outcome, target = link.outcome, ""
                if outcome == "article":
                    outcome, target = answers[link.title]
                links[link.place, outcome] += 1
                if outcome == passages.ENTITY and link.place != "hidden":
                    anchors[target, link.surface] += 1
                    entities.add(target)
            in_links.update(entities - {page.title})
    with SectionWriter(job.path("label", number, "counts"), job.partitions) as sections:
        for (title, surface), count in sorted(anchors.items()):
            sections.add(job.section(title), (title, surface, count))
        for title, count in sorted(in_links.items()):
            sections.add(job.section(title), (title, "", count))
    by_place: dict[str, dict[str, int]] = {}
    for (place, outcome), count in sorted(links.items()):
        by_place.setdefault(place, {})[outcome] = count
    return {"links": by_place, "blocks": blocks, "mentions": mentions}


def catalogue(job: Job, number: int) -> dict[str, Any]:
    """Writes the entities of a partition with their names, and the anchors that lead to them."""
    titles, _ = _titles(job, number)
    names: dict[str, list[str]] = {}
    for target, title in read_sections(job.paths("targets", "names"), number, tuple[str, str]):
        names.setdefault(target, []).append(title)
    anchors: dict[str, Counter[str]] = {}
    counts = read_sections(job.paths("label", "counts"), number, tuple[str, str, int])
    for title, surface, count in counts:
        anchors.setdefault(title, Counter())[surface] += count
    items: dict[str, str] = {}
    if job.items_per_site:
        items = dict(read_section(job.path("props", 0, "items"), number, tuple[str, str]))
    articles = {
        article.page_id: article
        for article in read_sections(job.paths("parse", "articles"), number, Article)
        if titles[article.title].page_id == article.page_id
    }
    with (
        _jsonl(job.path("catalogue", number, "entities")) as write_entity,
        _jsonl(job.path("catalogue", number, "anchors")) as write_anchor,
    ):
        for _, article in sorted(articles.items()):
            surfaces = anchors.get(article.title, Counter())
            write_entity(_entity(article, items, names, surfaces, job.settings.alias_count))
            for surface, count in sorted(surfaces.items()):
                if surface:
                    write_anchor({"surface": surface, "entity": article.title, "count": count})
    return {
        "entities": len(articles),
        "with_wikidata_id": sum(
            bool(article.wikidata_id or items.get(article.title)) for article in articles.values()
        ),
    }


def _entity(
    article: Article,
    items: Mapping[str, str],
    names: Mapping[str, list[str]],
    surfaces: Mapping[str, int],
    least: int,
) -> dict[str, Any]:
    """Returns an entity in the form of a catalogue's line."""
    aliases = {name: surfaces.get(name, 0) for name in names.get(article.title, ())}
    aliases |= {name: n for name, n in surfaces.items() if name and n >= least}
    aliases.pop(article.title, None)
    ranked = sorted(aliases.items(), key=lambda alias: (-alias[1], alias[0]))
    return {
        "title": article.title,
        "text": article.text,
        "wikidata_id": article.wikidata_id or items.get(article.title) or None,
        "aliases": [name for name, _ in ranked],
        "alias_counts": [count for _, count in ranked],
        "page_id": article.page_id,
        "in_links": surfaces.get("", 0),
    }


class _jsonl:
    """Opens a gzip file of JSON lines for writing; equal lines give equal files."""

    def __init__(self, path: pathlib.Path):
        self._atomic = atomic_write(path.with_suffix(path.suffix + ".gz"))

    def __enter__(self) -> Callable[[Any], None]:
        file = self._atomic.__enter__()
        self._gzip = gzip.GzipFile("", "wb", 6, fileobj=file, mtime=0)

        def write(value: Any) -> None:
            self._gzip.write(msgspec.json.encode(value) + b"\n")

        return write

    def __exit__(self, *error: Any) -> None:
        self._gzip.close()
        self._atomic.__exit__(*error)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage: its task, and what it is divided by ("splits", "partitions", "one")."""

    run: Callable[[Job, int], dict[str, Any]]
    divided_by: str


STAGES = {
    "templates": Stage(templates, "splits"),
    "props": Stage(props, "one"),
    "parse": Stage(parse, "splits"),
    "hops": Stage(hops, "partitions"),
    "chains": Stage(chains, "one"),
    "targets": Stage(targets, "partitions"),
    "label": Stage(label, "splits"),
    "catalogue": Stage(catalogue, "partitions"),
}


def run_task(job: Job, stage: str, number: int) -> None:
    """Runs a task and writes its report, by which it counts as done."""
    report = STAGES[stage].run(job, number)
    write_json(job.path(stage, number, "json"), report)


def missing_tasks(job: Job, stage: str) -> list[int]:
    """Returns the numbers of tasks that are not done."""
    return [i for i, path in enumerate(job.paths(stage, "json")) if not path.exists()]


def read_reports(job: Job, stage: str) -> Iterator[dict[str, Any]]:
    """Yields the reports of all tasks of a stage."""
    for path in job.paths(stage, "json"):
        yield json.loads(path.read_text("utf-8"))


def added(reports: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Adds numbers of reports, at any depth, and joins their lists."""
    total: dict[str, Any] = {}
    for report in reports:
        for name, value in report.items():
            if isinstance(value, Mapping):
                total[name] = added([total.get(name, {}), value])
            else:
                total[name] = total[name] + value if name in total else value
    return dict(sorted(total.items()))
