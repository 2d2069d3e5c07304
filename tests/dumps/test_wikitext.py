"""What becomes of each kind of markup, as docs/wikipedia.md states it."""

import re

import pytest
from dumps.made import head

pytest.importorskip("mwparserfromhell", reason="needs elq_jax[wikipedia]")

from elq_jax.dumps.rules import read_rules
from elq_jax.dumps.runs import UnfinishedError
from elq_jax.dumps.sandbox import GivenUp, Sandbox
from elq_jax.dumps.siteinfo import read_siteinfo
from elq_jax.dumps.wikitext import Wiki, cleaned, first_paragraph, read_wikitext

WIKI = Wiki(
    read_siteinfo(head().encode(), "dump.xml"),
    read_rules("en"),
    {"Nobreak2": "Nowrap", "L": "Lang"},
)


def read(text):
    return read_wikitext(text, "Own title", WIKI)


def shown(text):
    """Returns the blocks with links as [text|title], one a line, with the kind where it differs."""
    lines = []
    for block in read(text).blocks:
        line, position = "", 0
        for start, end, title in block.links:
            line += f"{block.text[position:start]}[{block.text[start:end]}|{title}]"
            position = end
        kind = "" if block.kind == "paragraph" else f"{block.kind}: "
        lines.append(kind + line + block.text[position:])
    return lines


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        # Links.
        ("a [[thor]] b", ["a [thor|Thor] b"]),
        ("a [[thor|the god]]s b", ["a [the gods|Thor] b"]),
        ("[[bus]]es, [[bus]]Es", ["[buses|Bus], [bus|Bus]Es"]),
        ("[[thor_(film)#Plot|x]]", ["[x|Thor (film)]"]),
        ("a [[#Plot|plot]] b", ["a plot b"]),
        ("[[a| b ]]c", ["[b c|A]"]),
        ("[[:Category:Films|films]] [[user:x]]", ["films user:x"]),
        ("a[[Category:Films]] b [[de:Thor]]c [[:de:Thor|thor]]", ["a b c thor"]),
        ("a [[Foo|]] b", ["a b"]),
        ("a [[b|c [[d]] e]] f", ["a c [d|D] e f"]),
        ("a [[b|[[File:x.jpg|20px]]]] c", ["a c"]),
        ("[[a\nb|c]] d", None),
        ("[[Thor&nbsp;2|t&amp;l]]", ["[t&l|Thor 2]"]),
        ("[http://a.b see [[c]]] [http://a.b] http://c.d", ["see [c|C] http://c.d"]),
        # Quotes.
        ("[[a|'''b]] [[c|'''d''']]", ["[b|A] [d|C]"]),
        ("l''''amour'''' x", ["l'amour' x"]),
        ("''i'' '''b''' '''''bi''''' ''[[thor]]''s", ["i b bi [thor|Thor]s"]),
        ("a '''b c [[thor|''t'' god]]", ["a b c [t god|Thor]"]),
        ("the 1990's ''x", ["the 1990's x"]),
        # Templates.
        ("a {{cite|x=[[b]]}} c", ["a c"]),
        ("a {{nowrap|[[b]] c}} {{nobreak2| d }}e", ["a [b|B] c de"]),
        ("{{lang|fr|[[Le Monde|le {{small|Monde}}]]}} x", ["[le Monde|Le Monde] x"]),
        ("{{convert|5|to|7|km|mi}}, {{cvt|5|km}}", ["5 to 7 km, 5 km"]),
        ("{{quote|A [[b]].|author=C}}", ["A [b|B]."]),
        ("{{PAGENAME}} {{#if:x|y}}is", ["Own title is"]),
        ("{{Template:Nowrap|x}} {{nowrap}}y", ["x y"]),
        ("[[a|{{nowrap|b c}}]]", ["[b c|A]"]),
        ("{{{1|a [[b]]}}}", ["a [b|B]"]),
        ("Thor ({{IPA-en|x}}; born {{dts|y}} 1962)", ["Thor (born 1962)"]),
        ("Thor ({{x}}) and ({{y}}, {{z}}) .", ["Thor and."]),
        # What is no text.
        ("a<!-- [[b]] --> c", ["a c"]),
        ("a\n<!-- b -->\nc", ["a c"]),
        ("a <nowiki>[[b]] ''c''</nowiki> d", ["a [[b]] ''c'' d"]),
        ("a <nowiki>''b''</nowiki> c", ["a ''b'' c"]),
        ("a<ref>[[b]]</ref> c<ref name=x/>", ["a c"]),
        ("a <math>x_{[[b]]}</math> c", ["a c"]),
        ("a <code>x[1]</code> b", ["a x[1] b"]),
        ("a<span style='display: none'>[[b]]</span> c", ["a c"]),
        (
            "a<sub>2</sub><sup>b</sup> <small>c</small><br/>d &lt;e&gt;&nbsp;&#945;",
            ["a2b c d <e> α"],
        ),
        ("__NOTOC__ a __TOC__", ["a"]),
        ("<pre>a [[b]]</pre>c", ["c"]),
        # Blocks.
        ("a\nb\n\nc", ["a b", "c"]),
        ("a\n== H [[x]] ==\nb", ["a", "b"]),
        (
            "* a [[b]]\n** c\n: d\n; e : f\ng",
            ["list: a [b|B]", "list: c", "list: d", "list: e : f", "g"],
        ),
        ("a<ul><li>b</li><li>[[c]]</li></ul>d", ["a", "list: b", "list: [c|C]", "d"]),
        ("a\n----\nb", ["a", "b"]),
        ("<p>a</p><div>b</div>", ["a", "b"]),
        ("{| class=x\n| a || [[b]]\n|}\nc", ["c"]),
        ("a\n{|\n| b || [[c]]\nd", ["a", "d"]),
        ("[[File:x.jpg|thumb|left|200px|alt=y|A [[b|c]] d]]\ne", ["caption: A [c|B] d", "e"]),
        ("[[File:x.jpg|A [[File:y.jpg|thumb|in]] d]] e", None),
        ("<gallery>\nFile:x.jpg|A [[b]]\nx.png\n</gallery>c", ["caption: A [b|B]", "c"]),
        ("a {{b [[c]] d", []),
        ("", []),
    ],
)
def test_markup(text, lines):
    result = shown(text)
    if lines is None:  # Only that it can be read, and what it has of links.
        assert all("[[" not in line for line in result)
    else:
        assert result == lines


def outcomes(text):
    return [(link.place, link.outcome, link.title, link.surface) for link in read(text).links]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[a]]s", [("paragraph", "article", "A", "as")]),
        ("* [[a]]", [("list", "article", "A", "a")]),
        ("== [[a]] ==", [("heading", "article", "A", "a")]),
        ("<ref>[[a]]</ref>", [("reference", "article", "A", "a")]),
        ("{|\n| [[a]]\n|}", [("table", "article", "A", "a")]),
        ("{{x|{{y|z=[[a|b]]}}}}", [("template", "article", "A", "b")]),
        (
            "[[File:a.jpg|[[b]]]]",
            [("paragraph", "file", "File:a.jpg", ""), ("caption", "article", "B", "b")],
        ),
        ("[[Category:A| ]]", [("paragraph", "category", "Category:A", "")]),
        ("[[:Category:A]]", [("paragraph", "category", ":Category:A", "Category:A")]),
        ("[[de:A]]", [("paragraph", "interwiki", "de:A", "")]),
        ("[[a<b]]", []),
        ("[[a|]]", [("paragraph", "empty", "A", "")]),
        ("[[a|{{x}}]]", [("paragraph", "empty", "A", "")]),
        ("[[#a]]", [("paragraph", "section", "#a", "#a")]),
        ("<nowiki>[[a]]</nowiki><!-- [[b]] -->", []),
        (
            "{{lang|fr|[[a]]|x=[[b]]}}",
            [("template", "article", "B", "b"), ("paragraph", "article", "A", "a")],
        ),
    ],
)
def test_where_links_stand(text, expected):
    assert outcomes(text) == expected


def test_templates_and_description():
    page = read(
        "{{Short description|A '''god'''}}{{l|fr|x}} {{main page_x}}{{Short description|B}}"
    )
    assert page.description == "A god"
    assert page.templates == ["Lang", "Main page x", "Short description"]


def test_first_paragraph():
    blocks = read(": ''For x, see y.''\n\nShort.\n\n" + "word " * 10 + "\n\nMore " * 20).blocks
    assert first_paragraph(blocks) == ("word " * 10).strip()
    assert first_paragraph(read("Short.").blocks) == "Short."
    assert first_paragraph([]) == ""


def test_cleaning_moves_spans():
    """Every span keeps its characters but for doubled spaces, whatever goes around it."""
    raw = " a  ( ; b )  [c]   ( , ) d ( )e "
    for start in range(len(raw)):
        for end in range(start + 1, len(raw) + 1):
            text, [(s, e)] = cleaned(raw, [(start, end)])
            assert text == " ".join(text.split())
            assert text[s:e].replace(" ", "") == raw[start:end].replace(" ", "")
            assert text[s:e] == text[s:e].strip()


def test_text_and_offsets_are_built_together():
    """Anchors have numbers that stand nowhere else, so each span can be checked."""
    parts, expected = [], []
    wrappers = ["{}", "''{}''", "({{{{x}}}}; {})", "{{{{nowrap|{}}}}}", "<small>{}</small>", "{} "]
    for number in range(200):
        anchor = f"anchor{number}"
        link = f"[[Page {number}|'''an'''chor{number}]]"
        parts.append(wrappers[number % len(wrappers)].format(link))
        parts.append(["  text &amp; ", "\n", "<ref>x</ref> ", "\n\n", "\n* "][number % 5])
        expected.append((anchor, f"Page {number}"))
    links = [(b.text[s:e], title) for b in read("".join(parts)).blocks for s, e, title in b.links]
    assert links == expected


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(WIKI, seconds=2, megabytes=512) as box:
        yield box


def test_sandbox_reads_what_the_function_reads(sandbox):
    text = "A [[thor]] {{nowrap|[[b]]}}\n* c"
    assert sandbox.read(text, "T") == read_wikitext(text, "T", WIKI)


def test_pages_over_the_limits_are_given_up_and_the_next_one_is_read(sandbox, monkeypatch):
    with pytest.raises(GivenUp, match=r"^(time|memory)$"):
        sandbox.read("{|\n|" * 60_000 + "[[x]]" * 100_000, "T")
    assert sandbox.read("[[a]]", "T").blocks[0].text == "a"
    with pytest.raises(GivenUp, match=r"^(time|memory)$"):
        sandbox.read("[[a]] {{b|''c''}}" * 400_000, "T")
    assert sandbox.read("[[a]]", "T").blocks[0].text == "a"


@pytest.mark.parametrize(
    "text",
    [
        "{{" * 5000,
        "[[" * 5000,
        "{{a|" * 500 + "}}" * 500,
        "[[File:a|" * 500 + "]]" * 500,
        "<div>" * 3000,
        "''" * 5001,
        "{|\n" * 300,
        "[[a|" * 300 + "x" + "]]" * 300,
        "&#1114112; &#xFFFFFFFFF; &#0; &#10;",
    ],
)
def test_deep_nesting(sandbox, text):
    try:
        page = sandbox.read(text + "\n\nafter", "T")
    except GivenUp:
        return
    assert all(not re.search(r"[\n\0]", block.text) for block in page.blocks)


def test_a_process_that_cannot_start_is_no_fault_of_the_page(monkeypatch):
    monkeypatch.setattr("elq_jax.dumps.sandbox.sys.executable", "/bin/false")
    with Sandbox(WIKI, 1, 512) as box, pytest.raises(UnfinishedError, match=r"did not start"):
        box.read("a", "T")
