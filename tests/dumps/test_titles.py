"""Titles as MediaWiki has them, in wikis of several languages."""

import gzip
import json

import pytest
from dumps.made import ENGLISH, head

from elq_jax.core.errors import ElqError
from elq_jax.dumps.siteinfo import link_trail, read_siteinfo
from elq_jax.dumps.titles import parse_target

LATGALIAN = {0: "", 4: "Vikipedeja", 6: "Fails", 10: "Taiss", 14: "Kategoreja", 2: "Lītuotuojs"}


def site(language="en", names=ENGLISH, path=None):
    return read_siteinfo(head(language, names).encode(), "dump.xml", path)


@pytest.mark.parametrize(
    ("text", "kind", "title", "is_shown"),
    [
        ("thor", "article", "Thor", True),
        ("  thor__(film)_ ", "article", "Thor (film)", True),
        ("Thor#Plot", "article", "Thor", True),
        ("Thor&amp;Loki", "article", "Thor&Loki", True),
        ("Caf%C3%A9", "article", "Café", True),
        ("Caf%C3%A", None, "", True),
        ("Cafe\u0301", "article", "Café", True),
        ("C%23", "article", "C", True),
        ("100% cotton", "article", "100% cotton", True),
        ("AC/DC", "article", "AC/DC", True),
        ("Star Trek: Picard", "article", "Star Trek: Picard", True),
        ("eBay", "article", "EBay", True),
        ("ßeta", "article", "ßeta", True),
        ("ǆur", "article", "Ǆur", True),
        ("\u200eThor\u200f", "article", "Thor", True),
        ("Thor\u00a0\u3000film", "article", "Thor film", True),
        (":Thor", "article", "Thor", True),
        ("#Plot", "section", "", True),
        ("", "bad", "", True),
        (" : ", "bad", "", True),
        ("a|b", "bad", "", True),
        ("a[b", "bad", "", True),
        ("a\x01b", "bad", "", True),
        ("a\x7fb", "bad", "", True),
        ("a&foo;b", "bad", "", True),
        ("..", "bad", "", True),
        ("../a", "bad", "", True),
        ("a/./b", "bad", "", True),
        ("a.b", "article", "A.b", True),
        ("a~~~b", "bad", "", True),
        ("a" * 255, "article", "A" + "a" * 254, True),
        ("a" * 256, "bad", "", True),
        ("ā" * 128, "bad", "", True),
        ("file:thor.jpg", "file", "Thor.jpg", False),
        ("Image : thor.jpg", "file", "Thor.jpg", False),
        (":File:Thor.jpg", "file", "Thor.jpg", True),
        ("CATEGORY:films", "category", "Films", False),
        (":category:films", "category", "Films", True),
        ("user:thor", "other_namespace", "Thor", True),
        ("WP:Foo", "article", "WP:Foo", True),
        ("project:Foo", "other_namespace", "Foo", True),
        ("Gadget definition:foo", "other_namespace", "foo", True),
        ("de:Thor", "interwiki", "Thor", False),
        (":de:Thor", "interwiki", "Thor", True),
        ("wikt:thor", "interwiki", "thor", True),
        ("Be-Tarask:Тор", "interwiki", "Тор", False),
        ("simple:Thor", "interwiki", "Thor", False),
        ("wikt:de:Thor", "interwiki", "de:Thor", True),
        ("iso639-3:eng", "interwiki", "eng", True),
        ("Hanna:Thor", "article", "Hanna:Thor", True),
        ("en:thor", "article", "Thor", True),
    ],
)
def test_targets(text, kind, title, is_shown):
    target = parse_target(text, site())
    if kind is None:  # A broken escape stays, and then looks like one.
        assert target.kind == "bad"
        return
    assert (target.kind, target.title, target.is_shown) == (kind, title, is_shown)


def test_the_wiki_says_what_its_namespaces_are_called():
    latgalian = site("ltg", LATGALIAN)
    kinds = {
        text: parse_target(text, latgalian).kind
        for text in ("Fails:a.jpg", "File:a.jpg", "kategoreja:A", "Category:A", "Wikipedia:A")
    }
    assert kinds == {
        "Fails:a.jpg": "file",
        "File:a.jpg": "file",
        "kategoreja:A": "category",
        "Category:A": "category",
        "Wikipedia:A": "interwiki",
    }
    assert parse_target("Lītuotuojs:a", latgalian).namespace == 2
    assert parse_target("ltg:ōbece", latgalian).title == "Ōbece"


def test_capitals_of_other_languages():
    assert parse_target("istanbul", site("tr")).title == "İstanbul"
    assert parse_target("istanbul", site()).title == "Istanbul"
    assert parse_target("თბილისი", site("ka")).title == "თბილისი"
    assert parse_target("москва", site("ru")).title == "Москва"


def test_the_prefix_of_a_wiki_is_not_always_its_language():
    simple = head().replace("enwiki", "simplewiki").replace("en.wiki", "simple.wiki").encode()
    simple = read_siteinfo(simple, "dump.xml")
    assert parse_target("simple:thor", simple).kind == "article"
    assert parse_target("en:thor", simple).kind == "interwiki"
    old = read_siteinfo(head("be_x_old").encode(), "dump.xml")
    assert parse_target("be-x-old:тор", old).title == "Тор"


def test_case_sensitive_wiki():
    wiktionary = head().replace("first-letter", "case-sensitive").encode()
    assert parse_target("thor", read_siteinfo(wiktionary, "dump.xml")).title == "thor"


def test_siteinfo_file(tmp_path):
    path = tmp_path / "siteinfo-namespaces.json.gz"
    query = {
        "general": {"linktrail": "/^([a-zäöüß]+)(.*)$/sDu", "lang": "de"},
        "namespaces": {"6": {"id": 6, "*": "Datei", "canonical": "File"}},
        "namespacealiases": [{"id": 4, "*": "WP"}, {"id": 6, "alias": "Bild"}],
        "interwikimap": [{"prefix": "Zzz", "url": "x"}, {"prefix": "yyy", "language": "Y"}],
    }
    path.write_bytes(gzip.compress(json.dumps({"query": query}).encode()))
    german = site("de", path=path)
    assert parse_target("WP:Foo", german).namespace == 4
    assert parse_target("bild:x.png", german).kind == "file"
    assert parse_target("zzz:Foo", german).is_shown
    assert not parse_target("yyy:Foo", german).is_shown
    assert parse_target("fr:Foo", german).kind == "article"  # since its list has no such prefix
    assert german.link_trail == "[a-zäöüß]+"
    path.write_text("[]")
    with pytest.raises(ElqError, match="not a siteinfo file"):
        site("de", path=path)


def test_link_trails():
    assert link_trail("/^([a-z]+)(.*)$/sD") == "[a-z]+"
    assert link_trail(r"/^([a-z\x{0430}-\x{044F}]+)(.*)$/sDu") == "[a-zа-я]+"
    assert link_trail(r"/^([\p{L}]+)(.*)$/sDu") == r"[^\W\d_]+"
    assert link_trail("/^()(.*)$/sD") == ""


def test_a_file_that_is_no_dump():
    with pytest.raises(ElqError, match=r"dump.xml: found no <siteinfo>"):
        read_siteinfo(b"<html>", "dump.xml")
