"""From a dump to the four outputs: what is in them, on any number of workers, after kills."""

import bz2
import gzip
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from xml.etree import ElementTree

import pytest
from dumps.made import dump, page
from dumps.test_reading import multistream

pytest.importorskip("apache_beam", reason="needs elq_jax[wikipedia]")
pytest.importorskip("mwparserfromhell", reason="needs elq_jax[wikipedia]")

from elq_jax.core.errors import DiskFullError, ElqError
from elq_jax.dumps.pipeline import Inputs, read_wikipedia
from elq_jax.dumps.runs import UnfinishedError
from elq_jax.dumps.settings import WikipediaSettings
from elq_jax.entities.build import build_catalogue
from elq_jax.entities.catalogue import Catalogue
from elq_jax.questions.read import read_questions

pytestmark = pytest.mark.filterwarnings("ignore")  # of Beam

ROOT = pathlib.Path(__file__).parents[2]
IN_PROCESS = ("--direct_running_mode=in_memory", "--direct_num_workers=1")
SMALL = WikipediaSettings(shard_megabytes=0.0005, alias_count=2, passage_characters=5)

THOR = """{{Short description|Norse god}}
'''Thor''' is a [[Norse mythology|Norse]] god, a son of [[odin]] and of [[Jörð (goddess)|Jörð]].

Thor has a [[Hammer (tool)|hammer]], says [[thor]] to [[Snorri]], see [[Mercury]] and [[Loop 1]].
* a list entry with [[Odin]]
[[File:Thor.jpg|thumb|A picture of [[Odin|the father]] of Thor]]
[[Category:Gods]] [[de:Thor]]
"""
PAGES = [
    page(1, "Thor", THOR),
    page(2, "Odin", "'''Odin''' is the father of [[Thor]], [[Thor]] and [[The Thunderer]] alone."),
    page(
        3,
        "Norse mythology",
        "Norse mythology is that of the north of Europe, of [[Odin]].",
    ),
    page(4, "Mercury", "'''Mercury''' may be [[Thor]] or [[Odin]]. {{disambig}}"),
    page(5, "The Thunderer", "#REDIRECT [[Donar]]", redirect="Donar"),
    page(6, "Donar", "#REDIRECT [[Thor#Names]]", redirect="Thor#Names"),
    page(7, "Loop 1", "#REDIRECT [[Loop 2]]", redirect="Loop 2"),
    page(8, "Loop 2", "#REDIRECT [[Loop 1]]", redirect="Loop 1"),
    page(9, "Talk:Thor", "[[Odin]]", ns=1),
    page(10, "List of gods", "* [[Thor]]"),
    page(11, "Template:Disambig", "", ns=10, redirect="Template:Dis page"),
    page(12, "Template:Dis page", "<includeonly>__DISAMBIG__</includeonly>", ns=10),
    page(13, "Empty", ""),
    page(14, "Data", "{}", model="json"),
    page(15, "Snorri", "#REDIRECT [[Nobody]]", redirect="Nobody"),
    page(16, "Hammer (tool)", "A '''hammer''' is a tool for [[Thor]], and is heavy."),
    page(17, "Out", "#REDIRECT [[Wikipedia:Out]]", redirect="Wikipedia:Out"),
    page(18, "Self", "#REDIRECT [[Self]]", redirect="Self"),
]
PAGE_PROPS = """CREATE TABLE `page_props` (`pp_page` int);
INSERT INTO `page_props` VALUES (1,'wikibase_item','Q42952',NULL),\
(2,'wikibase-shortdesc','King\\'s god',NULL),(3,'wikibase_item','Q128285',1),\
(16,'disambiguation','',NULL);
"""
ITEMS = """INSERT INTO `wb_items_per_site` VALUES (1,43610,'enwiki','Odin'),(2,7,'dewiki','Empty'),\
(3,9,'enwiki','Thor');
"""


def write(path, pages=PAGES, data=None):
    path.write_bytes(bz2.compress((data or dump(pages)).encode("utf-8", "surrogateescape")))
    return path


def lines(path):
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def passages(folder):
    return [row for path in sorted((folder / "passages").iterdir()) for row in lines(path)]


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The outputs for the small dump, with all inputs."""
    folder = tmp_path_factory.mktemp("made")
    inputs = Inputs(write(folder / "dump.xml.bz2"))
    (folder / "page_props.sql").write_text(PAGE_PROPS)
    (folder / "items.sql").write_text(ITEMS)
    with_props = Inputs(inputs.dump, None, None, folder / "page_props.sql", folder / "items.sql")
    read_wikipedia(inputs, folder / "plain", SMALL, IN_PROCESS)
    read_wikipedia(with_props, folder / "props", SMALL, IN_PROCESS)
    return folder


def test_entities(made):
    entities = {row["title"]: row for row in lines(made / "plain" / "entities.jsonl.gz")}
    assert entities.keys() == {"Thor", "Odin", "Norse mythology", "Empty", "Hammer (tool)"}
    assert entities["Thor"] == {
        "title": "Thor",
        "text": "Norse god. Thor is a Norse god, a son of odin and of Jörð.",
        "wikidata_id": None,
        "aliases": ["The Thunderer", "Donar"],
        "alias_counts": [1, 0],
        "page_id": 1,
        "in_links": 2,
    }
    assert (entities["Odin"]["in_links"], entities["Odin"]["aliases"]) == (2, [])
    assert entities["Empty"]["text"] == ""


def test_properties(made):
    entities = {row["title"]: row for row in lines(made / "props" / "entities.jsonl.gz")}
    assert entities.keys() == {"Thor", "Odin", "Norse mythology", "Empty"}
    ids = {title: row["wikidata_id"] for title, row in entities.items()}
    assert ids == {"Thor": "Q42952", "Odin": "Q43610", "Norse mythology": "Q128285", "Empty": None}
    assert entities["Odin"]["text"].startswith("King's god. Odin is the father")
    report = json.loads((made / "props" / "report.json").read_text())
    assert report["pages"]["0"]["disambiguation"] == 2
    assert report["properties"] == {
        "disambiguation": 1,
        "sitelinks": 2,
        "wikibase-shortdesc": 1,
        "wikibase_item": 2,
    }


def test_passages(made):
    rows = {row["id"]: row for row in passages(made / "plain")}
    first, second = rows["1-0"], rows["1-1"]
    assert first["text"] == "Thor is a Norse god, a son of odin and of Jörð."
    assert first["mentions"] == [[10, 15], [30, 34]]
    assert first["title"] == ["Norse mythology", "Odin"]
    assert [first["text"][start:end] for start, end in first["neutral"]] == ["Jörð"]
    neutral = [second["text"][start:end] for start, end in second["neutral"]]
    assert second["title"] == ["Hammer (tool)", "Thor"]
    assert neutral == ["Snorri", "Mercury", "Loop 1"]
    assert rows["2-0"]["title"] == ["Thor", "Thor", "Thor"]
    kinds = Counter(row["kind"] for row in rows.values())
    assert kinds == {"paragraph": 5, "list": 1, "caption": 1}


def test_anchors(made):
    rows = {
        (row["surface"], row["entity"]): row["count"]
        for row in lines(made / "plain" / "anchors.jsonl.gz")
    }
    assert rows == {
        ("Norse", "Norse mythology"): 1,
        ("odin", "Odin"): 1,
        ("Odin", "Odin"): 2,
        ("the father", "Odin"): 1,
        ("hammer", "Hammer (tool)"): 1,
        ("thor", "Thor"): 1,
        ("Thor", "Thor"): 3,
        ("The Thunderer", "Thor"): 1,
    }


def test_report(made):
    report = json.loads((made / "plain" / "report.json").read_text())
    assert report["pages"] == {
        "0": {"article": 5, "disambiguation": 1, "list": 1, "not_wikitext": 1, "redirect": 7},
        "1": {"other_namespace": 1},
        "10": {"other_namespace": 2},
    }
    assert report["redirects"] == {"elsewhere": 1, "entity": 2, "red": 1, "redirect_cycle": 3}
    total = sum((Counter(outcomes) for outcomes in report["links"].values()), Counter())
    assert total == {
        "entity": 11,
        "red": 2,
        "disambiguation": 1,
        "redirect_cycle": 1,
        "file": 1,
        "category": 1,
        "interwiki": 1,
    }
    assert (report["given_up"], report["input_problems"]) == (0, [])


def test_other_parts_read_what_is_written(made):
    """The catalogue and the questions of the rest of the library."""
    build_catalogue(made / "props" / "entities.jsonl.gz", made / "catalogue.arrow")
    catalogue = Catalogue.open(made / "catalogue.arrow")
    assert len(catalogue) == 4
    for path in sorted((made / "plain" / "passages").iterdir()):
        if not gzip.decompress(path.read_bytes()):
            continue
        questions, report = read_questions(path, catalogue)
        assert not report.skipped
        for question in questions:
            for mention in question.mentions:
                expected = -1 if mention.title == "Hammer (tool)" else catalogue[mention.row].title
                assert expected in (-1, mention.title)


@pytest.mark.parametrize("form", ["xml", "gz", "multistream"])
def test_every_form_of_a_dump_gives_the_same(made, tmp_path, form):
    path = tmp_path / f"dump.{form}"
    if form == "xml":
        path.write_text(dump(PAGES))
    elif form == "gz":
        path.write_bytes(gzip.compress(dump(PAGES).encode()))
    else:
        multistream(path, PAGES)
    settings = WikipediaSettings(
        shard_megabytes=0.1 if form == "gz" else 0.0005, alias_count=2, passage_characters=5
    )
    read_wikipedia(Inputs(path), tmp_path / "out", settings, IN_PROCESS)
    assert passages(tmp_path / "out") == passages(made / "plain")
    for name in ("entities.jsonl.gz", "anchors.jsonl.gz"):
        key = json.dumps
        rows = sorted(lines(tmp_path / "out" / name), key=key)
        assert rows == sorted(lines(made / "plain" / name), key=key)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report == json.loads((made / "plain" / "report.json").read_text())


def program(*arguments):
    paths = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    return subprocess.Popen(
        [sys.executable, "-m", "elq_jax.wikipedia", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def test_killed_and_resumed_with_two_workers(made, tmp_path):
    """Three kills at random moments: the files are those of the run in one process."""
    flags = [f"--dump={made / 'dump.xml.bz2'}", f"--output={tmp_path / 'out'}"]
    flags += ["--shard_megabytes=0.0005", "--alias_count=2", "--passage_characters=5"]
    flags += ["--", "--direct_num_workers=2"]
    delays = random.Random(int(time.time()))
    for _ in range(3):
        process = program(*flags)
        time.sleep(delays.uniform(2, 12))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = program(*flags)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told.decode()
    assert contents(tmp_path / "out") == contents(made / "plain")


def test_hostile_pages(tmp_path):
    large = "x" * 10_000_000
    loop = [page(100 + i, f"Loop {i}", redirect=f"Loop {(i + 1) % 1000}") for i in range(1000)]
    pages = [
        page(1, "Before", "Before is a page with a link to [[After]] and to [[Loop 7]]."),
        page(2, "Broken", "x").replace("</text>", ""),
        page(3, "Large", large),
        page(4, "No text").replace("<text></text>", '<text deleted="deleted" />'),
        page(5, "Con\x02trol", "x"),
        page(6, "Del\x7fete", "x"),
        page(7, "Latin", "caf\udce9"),
        page(8, "Deep", "{{a|" * 20_000),
        page(9, "Table", "{|\n|" * 60_000 + "[[x]]" * 100_000),
        *loop,
        page(2000, "After", "After is a page with a link to [[Large]] and to [[Before]]."),
    ]
    settings = WikipediaSettings(page_seconds=1, page_megabytes=512)
    path = write(tmp_path / "dump.xml.bz2", pages)
    report = read_wikipedia(Inputs(path), tmp_path / "out", settings, IN_PROCESS)
    given_up = [json.loads(line) for line in (tmp_path / "out/given_up.jsonl").open()]
    reasons = {row["title"]: row["reason"] for row in given_up}
    assert reasons.pop("Table") in ("time", "memory")
    assert reasons.pop("Deep", "time") in ("time", "memory", "nesting")
    assert reasons == {
        "Broken": "broken_xml",
        "Large": "too_large",
        "Con\x02trol": "broken_xml",
        "Del\x7fete": "bad_title",
        "Latin": "invalid_utf8",
    }
    assert report["redirects"] == {"redirect_cycle": 1000}
    assert sum(map(sum, (outcomes.values() for outcomes in report["pages"].values()))) == 1010
    titles = {row["title"] for row in lines(tmp_path / "out/entities.jsonl.gz")}
    assert titles == {"Before", "After", "Large", "No text", "Deep", "Table"}
    assert {row["page"]: row["title"] for row in passages(tmp_path / "out")} == {
        "Before": ["After"],
        "After": ["Large", "Before"],
    }


def test_a_truncated_dump_is_said_to_be(tmp_path):
    path = tmp_path / "dump.xml.bz2"
    offsets = multistream(path, PAGES)
    path.write_bytes(path.read_bytes()[: offsets[-1] - 20])
    report = read_wikipedia(Inputs(path), tmp_path / "out", SMALL, IN_PROCESS)
    [problem] = report["input_problems"]
    assert "ends inside the bz2 stream" in problem
    assert report["pages"]["0"]["article"] >= 4


def test_repeated_mentions_and_red_links(tmp_path):
    text = (
        "Foo's friend [[Bar]] met Bar and Barry.\n\nBar met Foo, [[Bar]], [[Bar|Ba]] and [[New]]."
    )
    pages = [page(1, "Foo (person)", text), page(2, "Bar", "Bar.")]
    settings = WikipediaSettings(repeat_mentions=True, red_links=True)
    read_wikipedia(Inputs(write(tmp_path / "d", pages)), tmp_path / "out", settings, IN_PROCESS)
    first, second = passages(tmp_path / "out")

    def shown(row):
        spans = zip(row["mentions"], row["title"], row["source"], strict=True)
        return [(row["text"][s:e], title, source) for (s, e), title, source in spans]

    own = ("Foo", "Foo (person)", "own_title")
    repeat, link = ("Bar", "Bar", "repeat"), ("Bar", "Bar", "link")
    assert shown(first) == [own, link, repeat]
    assert shown(second) == [repeat, own, link, ("Ba", "Bar", "link"), ("New", "New", "red_link")]


def test_what_cannot_be_used_is_said(tmp_path):
    path = write(tmp_path / "dump.xml.bz2")
    with pytest.raises(ElqError, match="none: no such file"):
        read_wikipedia(Inputs(path, page_props=tmp_path / "none"), tmp_path / "out", SMALL)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    with pytest.raises(ElqError, match="exists; give another name"):
        read_wikipedia(Inputs(path), tmp_path / "out", SMALL)
    props = tmp_path / "page_props.sql"
    props.write_text("nothing")
    with pytest.raises(ElqError, match="found no INSERT INTO page_props"):
        read_wikipedia(Inputs(path, page_props=props), tmp_path / "new", SMALL, IN_PROCESS)


# An independent count by regular expressions.
OPAQUE = re.compile(
    r"<!--.*?-->|<(nowiki|math|pre|syntaxhighlight|source|timeline|score|chem|hiero|templatedata)\b"
    r"[^>]*(?<!/)>.*?</\1\s*>",
    re.DOTALL | re.IGNORECASE,
)
BRACKETS = re.compile(r"\[\[([^\[\]|{}<>\n]+)(?:\||\]\])")
GALLERY = re.compile(r"<gallery[^>]*>(.*?)</gallery>", re.DOTALL | re.IGNORECASE)
XML = "{http://www.mediawiki.org/xml/export-0.10/}"


def counted(path, spaces):
    """Counts pages and the links of articles; `spaces` are numbers of namespaces by name."""
    pages, links = Counter(), Counter()
    for element in ElementTree.fromstring(bz2.decompress(path.read_bytes())).iter(f"{XML}page"):
        is_redirect = element.find(f"{XML}redirect") is not None
        main = element.findtext(f"{XML}ns") == "0"
        pages["redirect" if main and is_redirect else "main" if main else "other"] += 1
        title = element.findtext(f"{XML}title")
        text = OPAQUE.sub("", element.find(f"{XML}revision").findtext(f"{XML}text") or "")
        if not main or is_redirect:
            continue
        for match in BRACKETS.finditer(text):
            prefix = match[1].lstrip(": ").split(":")[0].strip().lower()
            links[title, spaces.get(prefix, "other")] += 1
        for match in GALLERY.finditer(text):
            names = [line.partition("|")[0].strip() for line in match[1].splitlines()]
            links[title, "file"] += sum(map(bool, names))
    return pages, links


@pytest.mark.parametrize(
    ("name", "spaces", "differences"),
    [
        ("enwiki-sample", {"file": "file", "image": "file", "category": "category"}, {}),
        (
            "ltgwiki",
            dict.fromkeys(("fails", "file", "image"), "file")
            | dict.fromkeys(("kategoreja", "category"), "category"),
            # A line of a gallery without "|" has a link in the name of its file: it is no link.
            {"other": -1},
        ),
    ],
)
def test_counts_of_real_dumps(tmp_path, name, spaces, differences):
    for folder in (ROOT / "data", ROOT.parent / "shared" / "data"):
        path = folder / "dumps" / f"{name}-pages-articles.xml.bz2"
        if path.exists():
            break
    else:
        pytest.skip("the dumps of the data README are not here")
    pages, links = counted(path, spaces)
    report = read_wikipedia(Inputs(path), tmp_path / "out", WikipediaSettings(), IN_PROCESS)
    outcomes = report["pages"]["0"]
    assert sum(map(sum, (row.values() for row in report["pages"].values()))) == pages.total()
    assert outcomes["redirect"] == pages["redirect"]
    assert sum(outcomes.values()) == pages["redirect"] + pages["main"]
    # Links are counted in articles only, so pages of other kinds are left out here.
    articles = {row["title"] for row in lines(tmp_path / "out" / "entities.jsonl.gz")}
    expected = Counter()
    for (title, kind), count in links.items():
        expected[kind] += count * (title in articles)
    total = sum((Counter(row) for row in report["links"].values()), Counter())
    mine = Counter({kind: total[kind] for kind in ("file", "category")})
    unparsed = total["unparsed"]
    mine["other"] = total.total() - total["file"] - total["category"]
    assert abs(mine["file"] - expected["file"]) <= unparsed
    assert abs(mine["category"] - expected["category"]) <= unparsed
    assert mine.total() - expected.total() == sum(differences.values())
    assert report["given_up"] == 0
    for row in passages(tmp_path / "out"):
        for start, end in row["mentions"]:
            anchor = row["text"][start:end]
            assert anchor == anchor.strip() != ""


@pytest.mark.parametrize("error", [DiskFullError, UnfinishedError])
def test_what_is_no_fault_of_the_input_keeps_what_is_done(made, tmp_path, monkeypatch, error):
    """The first run fails in a worker of Beam; the second one goes on with its tasks."""
    inputs = Inputs(made / "dump.xml.bz2")

    def full(*_):
        raise error("x: not written, the disk is full; free some space")

    with monkeypatch.context() as patch:
        patch.setattr("elq_jax.dumps.stages.passages.make_passages", full)
        with pytest.raises(error, match=r"x: not written, the disk is full"):
            read_wikipedia(inputs, tmp_path / "out", SMALL, IN_PROCESS)
    assert sorted((tmp_path / "out.partial/work/parse").glob("*.json"))

    def again(*_):
        raise AssertionError("this stage is done")

    monkeypatch.setattr("elq_jax.dumps.stages._ParseOutput.page", again)
    read_wikipedia(inputs, tmp_path / "out", SMALL, IN_PROCESS)
    assert contents(tmp_path / "out") == contents(made / "plain")


def test_arguments_without_dashes(made):
    process = program(f"--dump={made / 'dump.xml.bz2'}", f"--output={made / 'new'}", "dump.xml")
    _, told = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "error: dump.xml: unexpected argument" in told.decode()
