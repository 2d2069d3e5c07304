"""Requests and answers in NIF: what GERBIL and ELEVANT send, and what they must be able to read."""

import itertools
import json
import random

import pytest

pytest.importorskip("rdflib", reason="NIF needs the extra [serve]")

from elq_jax.core.errors import ElqError
from elq_jax.serving import nif

PREFIXES = """@prefix nif: <http://persistence.uni-leipzig.org/nlp2rdf/ontologies/nif-core#> .
@prefix itsrdf: <http://www.w3.org/2005/11/its/rdf#> .
@prefix xsd: <http://www.w3.org/2001/XMLSchema#> .
"""
NIF = nif.NIF


def request(turtle, **values):
    for name, value in values.items():
        turtle = turtle.replace(name.upper(), json.dumps(value, ensure_ascii=False))
    return (PREFIXES + turtle).encode()


def context(text, uri="http://example.org/7#char=0,14", rest=""):
    return request(f"<{uri}> a nif:Context ; nif:isString TEXT . {rest}", text=text)


def phrase(start, end, of="http://example.org/7#char=0,14", more="", kind="nif:Phrase"):
    return f"""<http://example.org/7#char={start},{end}> a {kind} ; nif:referenceContext <{of}> ;
        nif:beginIndex "{start}"^^xsd:nonNegativeInteger ;
        nif:endIndex "{end}"^^xsd:nonNegativeInteger {more} . """


def only(body):
    [document] = nif.read_documents(body)
    return document


def spans(document):
    return [(phrase.start, phrase.end) for phrase in document.phrases]


class TestRead:
    def test_a_document_without_phrases(self):
        document = only(context("who wrote dune", rest="# a comment \\@"))
        assert document == nif.Document(
            "http://example.org/7#char=0,14", "who wrote dune", (), (f"{NIF}Context",)
        )

    def test_what_gerbil_sends(self):
        """The form of gerbil.nif.transfer 1.2.1; phrases are to be linked, and nothing else."""
        body = request("""
<http://www.aksw.org/gerbil/NifWebService/request_0#char=10,14>
        a nif:RFC5147String , nif:String , nif:Phrase ;
        nif:anchorOf "dune"^^xsd:string ;
        nif:beginIndex "10"^^xsd:nonNegativeInteger ;
        nif:endIndex "14"^^xsd:nonNegativeInteger ;
        nif:referenceContext <http://www.aksw.org/gerbil/NifWebService/request_0#char=0,14> .

<http://www.aksw.org/gerbil/NifWebService/request_0#char=0,14>
        a nif:RFC5147String , nif:String , nif:Context ;
        nif:beginIndex "0"^^xsd:nonNegativeInteger ;
        nif:endIndex "14"^^xsd:nonNegativeInteger ;
        nif:isString "who wrote dune"^^xsd:string .
""")
        document = only(body)
        uri = "http://www.aksw.org/gerbil/NifWebService/request_0#char="
        assert document.uri == uri + "0,14"
        assert document.phrases == (nif.Phrase(10, 14, uri + "10,14"),)
        assert set(document.types) == {f"{NIF}{x}" for x in ("Context", "String", "RFC5147String")}

    def test_what_elevant_sends(self):
        """The form of pynif 0.3.1: a bare URI, and offset-based strings."""
        body = request("""
<http://example.org/0> a nif:Context, nif:OffsetBasedString ;
    nif:beginIndex "0"^^xsd:nonNegativeInteger ; nif:endIndex "14"^^xsd:nonNegativeInteger ;
    nif:isString "who wrote dune" .
""")
        document = only(body)
        assert (document.uri, document.text) == ("http://example.org/0", "who wrote dune")
        assert f"{NIF}OffsetBasedString" in document.types
        assert document.phrase(10, 14).uri == "http://example.org/0#char=10,14"

    @pytest.mark.parametrize("quotes", ['"', "'", '"""', "'''"])
    def test_a_backslash_that_begins_no_escape_is_dropped(self, quotes):
        body = request(rf"<http://e.org/0> nif:isString {quotes}me\@x.org \\@ \"\t\u00e9{quotes} .")
        assert only(body).text == 'me@x.org \\@ "\té'

    def test_escapes_outside_strings_stay(self):
        body = request(r"@prefix e: <http://e.org/a\u0040> . e:b\@c nif:isString 'it\@' . # \@'")
        assert only(body).uri == "http://e.org/a@b@c"
        assert only(body).text == "it@"

    def test_line_ends_and_quotes_are_kept(self):
        body = PREFIXES + '<http://e.org/0> nif:isString """a\r\nb\n "c" \\r\'""" .'
        assert only(body.encode()).text == 'a\r\nb\n "c" \r\''
        assert only(b"\xef\xbb\xbf" + body.encode()).text == 'a\r\nb\n "c" \r\''

    @pytest.mark.parametrize("text", ["😀 dune", r"\uD83D\uDE00 dune", r"\U0001F600 dune"])
    def test_positions_beyond_the_bmp_count_code_points(self, text):
        of = "http://e.org/0"
        body = request(
            f'<{of}> nif:isString "{text}" .' + phrase(2, 6, of, '; nif:anchorOf "dune"')
        )
        document = only(body)
        assert document.text == "😀 dune"
        assert spans(document) == [(2, 6)]

    def test_several_documents_are_sorted_and_keep_their_phrases(self):
        body = request(
            "<http://e.org/2> nif:isString 'of two' . <http://e.org/1> nif:isString 'one'@en ."
            + phrase(3, 6, "http://e.org/2")
            + phrase(0, 2, "http://e.org/2")
            + phrase(0, 3, "http://e.org/1")
        )
        first, second = nif.read_documents(body)
        assert (first.text, first.language, spans(first)) == ("one", "en", [(0, 3)])
        assert (second.text, second.language, spans(second)) == ("of two", None, [(0, 2), (3, 6)])

    def test_empty_text(self):
        assert only(context("")).text == ""

    def test_a_text_that_is_one_mention_is_context_and_phrase_at_once(self):
        """Both have the same URI in RFC 5147, and so are the same resource in GERBIL's requests."""
        uri = "http://example.org/7#char=0,4"
        body = request(f"<{uri}> a nif:Context ; nif:isString 'dune' . " + phrase(0, 4, uri))
        document = only(body)
        assert document.phrases == (nif.Phrase(0, 4, uri),)
        answer = nif.write_documents(
            [document], [[nif.Annotation(document.phrases[0], "http://a/b")]]
        )
        assert only(answer).phrases == document.phrases
        assert only(answer).text == "dune"

    def test_sentences_and_words_are_no_mentions(self):
        of = "http://example.org/7#char=0,14"
        rest = phrase(0, 14, kind="nif:Sentence") + phrase(0, 3, kind="nif:Word, nif:String")
        rest += f"<{of}> nif:referenceContext <{of}> ."
        assert only(context("who wrote dune", rest=rest)).phrases == ()
        rest += phrase(10, 14, kind="nif:RFC5147String")
        assert spans(only(context("who wrote dune", rest=rest))) == [(10, 14)]

    def test_positions_are_in_the_uri_where_the_phrase_has_none(self):
        of = "http://example.org/7#char=0,14"
        for name in ("char=10,14", "offset_10_14"):
            rest = f"<http://example.org/7#{name}> a nif:Phrase ; nif:referenceContext <{of}> ."
            assert spans(only(context("who wrote dune", rest=rest))) == [(10, 14)]

    def test_anchors_may_differ_in_blanks_and_normal_form(self):
        text = "in New\nYork e\u0301t\u00e9"
        rest = phrase(3, 11, more='; nif:anchorOf "New York"')
        rest += phrase(12, 16, more='; nif:anchorOf "\u00e9t\u00e9"')
        assert spans(only(context(text, rest=rest))) == [(3, 11), (12, 16)]

    @pytest.mark.parametrize(
        ("body", "expected"),
        [
            (b"\xff", "byte 0 is not UTF-8"),
            (b'{"text": "who wrote dune"}', "line 1"),
            (request("<http://e.org/0> nif:isString 'a ."), "not closed"),
            (b"(" * 9000, "nested"),
            (b"", "found no nif:Context with a nif:isString"),
            (request("<http://e.org/0> a nif:Context ."), "found no nif:Context"),
            (request("<http://e.org/0> nif:isString 'a', 'b' ."), "found 2 values of nif:isString"),
            (request("<http://e.org/0> nif:isString <http://e.org/a> ."), "is a URI"),
            (request(r"<http://e.org/0> nif:isString '\uD83D' ."), "half of a surrogate pair"),
            (request("[] nif:isString 'a' ."), "without a URI"),
            (request("<7> nif:isString 'a' ."), "<7>: is relative"),
            (request("<http://e.org/a b> nif:isString 'a' ."), "has characters that no URI has"),
            (context("dune", rest=phrase(0, 4, "http://e.org/9")), "has no nif:isString"),
            (context("dune", rest=phrase(0, 5)), r"\[0, 5\) is no part of the text, which has 4"),
            (context("dune", rest=phrase(3, 1)), "is no part of the text"),
            (context("dune", rest=phrase(0, "x")), "nif:endIndex: found 'x'"),
            (context("dune", rest=phrase(0, 2, more="; nif:endIndex 3")), "found '2', '3'"),
            (
                context("😀 dune", rest=phrase(3, 7, more="; nif:anchorOf 'dune'")),
                "is no part of the text",
            ),
            (
                context("😀 dune?", rest=phrase(3, 7, more="; nif:anchorOf 'dune'")),
                r"nif:anchorOf is 'dune', but the text has 'une\?' .* count Unicode code points",
            ),
            (
                context("dune", rest="<http://e.org/p> nif:referenceContext "
                "<http://example.org/7#char=0,14> ."),
                "nif:beginIndex: found nothing",
            ),
        ],
    )  # fmt: skip
    def test_what_cannot_be_answered_is_said(self, body, expected):
        with pytest.raises(nif.NotNif, match=expected):
            nif.read_documents(body)

    def test_a_hostile_body_takes_no_time(self):
        for body in (b'"' * 200_000, b"'\n" * 100_000, b'"""' + b"a" * 500_000, b"<" * 200_000):
            with pytest.raises(nif.NotNif):
                nif.read_documents(body)


@pytest.mark.parametrize(
    "content_type",
    [None, "", "text/turtle", "application/x-turtle;charset=UTF-8", 'Text/Turtle; charset="utf-8"',
     "application/x-www-form-urlencoded", "application/octet-stream"],
)  # fmt: skip
def test_content_types_that_are_read(content_type):
    nif.check_media_type(content_type)


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [("application/json", "'application/json'"), ("application/ld+json; x=y", "ld.json"),
     ("text/turtle; charset=ISO-8859-1", "charset 'ISO-8859-1'")],
)  # fmt: skip
def test_content_types_that_are_refused(content_type, expected):
    with pytest.raises(nif.OtherMediaType, match=expected):
        nif.check_media_type(content_type)


class TestWrite:
    def test_the_triples_of_an_answer(self):
        import rdflib

        text = "who wrote 😀 dune"
        document = nif.Document("http://e.org/0", text, types=(f"{NIF}OffsetBasedString",))
        link = nif.Annotation(document.phrase(12, 16), "http://dbpedia.org/resource/Dune", 0.25)
        answer = nif.write_documents([document], [[link]])
        graph = rdflib.Graph().parse(data=answer.decode(), format="turtle")
        xsd = "http://www.w3.org/2001/XMLSchema#"
        its = "http://www.w3.org/2005/11/its/rdf#"
        triples = {
            (s, p.rpartition("#")[2], str(o), str(getattr(o, "datatype", None) or ""))
            for s, p, o in ((str(s), str(p), o) for s, p, o in graph)
        }
        assert {str(p) for p in graph.predicates()} >= {its + "taIdentRef", its + "taConfidence"}
        number = xsd + "nonNegativeInteger"
        uri, own = "http://e.org/0", "http://e.org/0#char=12,16"
        assert triples == {
            (uri, "type", f"{NIF}Context", ""),
            (uri, "type", f"{NIF}OffsetBasedString", ""),
            (uri, "isString", text, ""),
            (uri, "beginIndex", "0", number),
            (uri, "endIndex", "16", number),
            (own, "type", f"{NIF}Phrase", ""),
            (own, "type", f"{NIF}RFC5147String", ""),
            (own, "anchorOf", "dune", ""),
            (own, "beginIndex", "12", number),
            (own, "endIndex", "16", number),
            (own, "referenceContext", uri, ""),
            (own, "taIdentRef", "http://dbpedia.org/resource/Dune", ""),
            (own, "taConfidence", "0.25", xsd + "double"),
        }

    def test_any_text_comes_back_as_it_was(self):
        letters = "ab \t\r\n\"'\\@#<>\x00\x0b\x7f\u2028é😀"
        generator = random.Random(0)
        texts = ["".join(generator.choices(letters, k=generator.randrange(12))) for _ in range(50)]
        documents = [
            nif.Document(
                f"http://e.org/{i:02}", text, (), (f"{NIF}Context",), "en" if i % 2 else None
            )
            for i, text in enumerate(texts)
        ]
        assert nif.read_documents(nif.write_documents(documents, [[]] * len(texts))) == documents


class TestUris:
    @pytest.mark.parametrize(
        ("title", "expected"),
        [
            ("Dune (novel)", "Dune_(novel)"),
            ("Émile Zola", "Émile_Zola"),
            ("AC/DC", "AC/DC"),
            ("Johnson & Johnson", "Johnson_&_Johnson"),
            ("What's Up?", "What's_Up%3F"),
            ('"Heroes" (album)', "%22Heroes%22_(album)"),
            ("100% Wolf", "100%25_Wolf"),
            ("a<b>#[c]{d}|e\\f^g`h", "A%3Cb%3E%23%5Bc%5D%7Bd%7D%7Ce%5Cf%5Eg%60h"),
            ("M*A*S*H", "M*A*S*H"),
            ("Who, Me; Us: All! $5 ~ +1 = @x", "Who,_Me;_Us:_All!_$5_~_+1_=_@x"),
            ("landgrave", "Landgrave"),
            ("éclair", "Éclair"),
            ("ß", "ß"),
            ("  New\u00a0 York_ City ", "New_York_City"),
            ("東京", "東京"),
            ("😀", "😀"),
        ],
    )
    def test_dbpedia_encodes_only_what_no_iri_has(self, title, expected):
        assert nif.entity_uri("dbpedia", title, "Q1") == f"http://dbpedia.org/resource/{expected}"

    @pytest.mark.parametrize(
        ("title", "expected"),
        [
            ("Émile Zola", "%C3%89mile_Zola"),
            ("What's Up?", "What%27s_Up%3F"),
            ("AC/DC (band), 2*$!@~:;", "AC/DC_(band),_2*$!@~:;"),
            ("Johnson & Johnson", "Johnson_%26_Johnson"),
        ],
    )
    def test_wikipedia(self, title, expected):
        assert (
            nif.entity_uri("wikipedia", title, "Q1") == f"http://en.wikipedia.org/wiki/{expected}"
        )

    def test_wikidata_and_entities_without_an_id(self):
        assert nif.entity_uri("wikidata", "Dune", "Q190192").endswith("wikidata.org/entity/Q190192")
        assert nif.entity_uri("wikidata", "x y", None) == "http://dbpedia.org/resource/X_y"

    @pytest.mark.parametrize(
        ("mention", "expected"),
        [("the  Big\nOne?", "the_Big_One%3F"), ("ä/b", "%C3%A4%2Fb"), (" \n", "NIL"), ("", "NIL")],
    )
    def test_nil(self, mention, expected):
        assert nif.nil_uri(mention) == f"http://aksw.org/notInWiki/{expected}"

    def test_every_uri_can_be_written(self):
        """Of each character that a title may have, rdflib takes the URIs of all kinds."""
        characters = [chr(i) for i in itertools.chain(range(0x250), [0x2028, 0x3000, 0x1F600])]
        document = nif.Document("http://e.org/0", "x")
        uris = [nif.nil_uri(character) for character in characters]
        for kind in ("dbpedia", "wikipedia", "wikidata"):
            uris += [nif.entity_uri(kind, f"a{x}b", None) for x in characters]
            uris += [nif.entity_uri(kind, "a", x) for x in characters]
        links = [nif.Annotation(document.phrase(0, 1), uri) for uri in uris]
        assert nif.write_documents([document], [links]).count(b"http") >= len(set(uris))


def test_rdflib_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ElqError, match=r"rdflib.*pip install 'elq_jax\[serve\]'"):
        nif.read_documents(b"")
