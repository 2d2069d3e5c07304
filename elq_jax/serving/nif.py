"""Reads and writes NIF, the RDF form in which GERBIL and ELEVANT send documents and get links.

A request is a document in Turtle:

    <http://example.org/7#char=0,14>
        a nif:Context ;
        nif:isString "who wrote dune" .

If phrases refer to it, exactly these are to be linked; otherwise mentions are to be found as well.
The answer has the same context and, for each link, a phrase with the URI of its entity:

    <http://example.org/7#char=10,14>
        a nif:Phrase, nif:RFC5147String ;
        nif:referenceContext <http://example.org/7#char=0,14> ;
        nif:anchorOf "dune" ; nif:beginIndex 10 ; nif:endIndex 14 ;
        itsrdf:taIdentRef <http://dbpedia.org/resource/Dune_(novel)> ; itsrdf:taConfidence 0.9 .

Positions count Unicode code points, as Python does. Nothing here knows a linker or a web server.

Source: NIF 2.1 (https://nif.readthedocs.io), RFC 5147, ITS 2.0 (https://www.w3.org/TR/its20/).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple
from urllib.parse import quote

from elq_jax.core.errors import ElqError
from elq_jax.core.extras import require
from elq_jax.core.strings import is_whole

EntityUris = Literal["dbpedia", "wikipedia", "wikidata"]

NIF = "http://persistence.uni-leipzig.org/nlp2rdf/ontologies/nif-core#"
ITSRDF = "http://www.w3.org/2005/11/its/rdf#"
RDF_TYPE = "http://www.w3.org/1999/02/22-rdf-syntax-ns#type"
XSD = "http://www.w3.org/2001/XMLSchema#"
# GERBIL and ELEVANT take an entity with "notInWiki" for one that no knowledge base has.
NIL = "http://aksw.org/notInWiki/"

_RELATIVE = "http://relative.invalid/"  # base of relative URIs, to recognise them
_MEDIA_TYPES = {  # The last two are what clients send that set no type.
    "",
    "text/turtle",
    "application/x-turtle",
    "application/turtle",
    "application/n-triples",
    "text/plain",
    "application/octet-stream",
    "application/x-www-form-urlencoded",
}
# IRIs, comments, strings of four kinds, and escapes elsewhere.
_TURTLE = re.compile(
    r"""<[^<>"{}|^`\s]*+>|\#[^\n]*+|"""
    r'''"""(?:[^"\\]++|\\.|"(?!""))*+"""|"(?:[^"\\\n]++|\\.)*+"|'''
    r"""'''(?:[^'\\]++|\\.|'(?!''))*+'''|'(?:[^'\\\n]++|\\.)*+'|\\.""",
    re.DOTALL,
)
_BAD_ESCAPE = re.compile(r"(\\[tbnrf\"'\\uU])|\\(.)", re.DOTALL)
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_POSITIONS = re.compile(r"#(?:char=|offset_|char_)(\d+)[,_](\d+)")
_NOT_IN_URI = re.compile(r'[\x00-\x20<>"{}|\\^`]')
_BAD_SYNTAX = re.compile(r"at line (\d+) of <.*?>:\n(.*?) at \^", re.DOTALL)
# Parts of a document that annotations refer to and that are no mentions.
_NOT_PHRASES = {
    f"{NIF}{name}"
    for name in ("Context", "Title", "Paragraph", "Sentence", "Structure", "Word", "Annotation")
}


class NotNif(ElqError):
    """Error: a request is no NIF document that can be answered; the message says why."""


class OtherMediaType(NotNif):
    """Error: a request has a Content-Type whose body is no Turtle."""


@dataclass(frozen=True, slots=True)
class Phrase:
    """Describes a mention whose entity a request asks for.

    Attributes:
      start: first character (Unicode code point) in the text.
      end: offset one past the last character.
      uri: URI of the phrase in the request; the answer has the same.
    """

    start: int
    end: int
    uri: str


@dataclass(frozen=True, slots=True)
class Document:
    """Holds a text and the mentions in it whose entities a request asks for.

    Attributes:
      uri: URI of the context, which the answer repeats.
      text: text of the document; may be empty.
      phrases: mentions to link, by position; empty: mentions are to be found as well.
      types: URIs of the types of the context, such as nif:OffsetBasedString.
      language: language tag of the text, if it has one.
    """

    uri: str
    text: str
    phrases: tuple[Phrase, ...] = ()
    types: tuple[str, ...] = (f"{NIF}Context",)
    language: str | None = None

    def phrase(self, start: int, end: int) -> Phrase:
        """Makes a phrase with the URI that RFC 5147 gives it: .../7#char=10,14."""
        return Phrase(start, end, f"{self.uri.partition('#')[0]}#char={start},{end}")


@dataclass(frozen=True, slots=True)
class Annotation:
    """Describes a link of a document, for the answer.

    Attributes:
      phrase: mention.
      entity: URI of the entity, see `entity_uri` and `nil_uri`.
      confidence: probability of the link, 0 to 1; None: there is nothing to say.
    """

    phrase: Phrase
    entity: str
    confidence: float | None = None


def check_media_type(content_type: str | None) -> None:
    """Raises `OtherMediaType` if a Content-Type is of something else than Turtle in UTF-8.

    No type at all is accepted, and so are those that clients send when they are told none.
    """
    media_type, _, parameters = (content_type or "").partition(";")
    if media_type.strip().lower() not in _MEDIA_TYPES:
        raise OtherMediaType(
            f"Content-Type: found {media_type.strip()!r}; expected a NIF document in Turtle, "
            "text/turtle or application/x-turtle"
        )
    charset = re.search(r"charset\s*=\s*\"?([^\s\";]+)", parameters, re.IGNORECASE)
    if charset and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise OtherMediaType(f"Content-Type: found charset {charset[1]!r}; Turtle is UTF-8")


def read_documents(body: bytes) -> list[Document]:
    """Reads the documents of a request, in Turtle.

    Escapes that Turtle does not have, such as the \\@ that GERBIL sends, stand for the character
    after the backslash; surrogate pairs in escapes are joined, as Java writes them.

    Args:
      body: body of the request.

    Returns:
      documents by their URIs, at least one.

    Raises:
      NotNif: the body is no Turtle in UTF-8, has no context with a text, or a phrase has no place
        in its text.
    """
    graph = _parse(body)
    texts = {uri: _text(uri, own) for uri, own in graph.items() if f"{NIF}isString" in own}
    if not texts:
        raise NotNif("found no nif:Context with a nif:isString; expected a document to link")
    phrases: dict[str, list[Phrase]] = {uri: [] for uri in texts}
    for uri, own in graph.items():
        types = _types(own)
        if f"{NIF}referenceContext" not in own:
            continue
        if f"{NIF}Phrase" not in types and _NOT_PHRASES.intersection(types):
            continue
        context = _only(uri, own, "referenceContext").text
        if context not in texts:
            raise NotNif(f"<{uri}>: its nif:referenceContext <{context}> has no nif:isString")
        phrases[context].append(_phrase(uri, own, texts[context].text))
    documents = []
    for uri, text in sorted(texts.items()):
        types = tuple(sorted(_types(graph[uri]) - {f"{NIF}Phrase"}))
        by_place = sorted(phrases[uri], key=lambda phrase: (phrase.start, phrase.end, phrase.uri))
        documents.append(Document(uri, text.text, tuple(by_place), types, text.language))
    return documents


def write_documents(
    documents: Sequence[Document], annotations: Sequence[Iterable[Annotation]]
) -> bytes:
    """Writes the answer to a request: the documents with their annotations, as Turtle in UTF-8.

    Each triple is a line (N-Triples, which is Turtle): rdflib writes them 15 times as fast as
    abbreviated ones.

    Args:
      documents: documents of the request.
      annotations: annotations of each document.
    """
    require("serve", "rdflib")
    from rdflib import Graph, Literal, URIRef

    graph = Graph(bind_namespaces="none")

    def add(uri: str, types: Iterable[str], start: int, end: int, **values: Literal | URIRef):
        number = URIRef(f"{XSD}nonNegativeInteger")
        values["beginIndex"] = Literal(str(start), datatype=number)
        values["endIndex"] = Literal(str(end), datatype=number)
        for kind in types:
            graph.add((URIRef(uri), URIRef(RDF_TYPE), URIRef(kind)))
        for name, value in values.items():
            namespace = ITSRDF if name.startswith("ta") else NIF
            graph.add((URIRef(uri), URIRef(namespace + name), value))

    for document, own in zip(documents, annotations, strict=True):
        text = Literal(document.text, lang=document.language)
        types = {*document.types, f"{NIF}Context"}
        add(document.uri, types, 0, len(document.text), isString=text)
        for annotation in own:
            start, end, uri = annotation.phrase.start, annotation.phrase.end, annotation.phrase.uri
            values = {
                "anchorOf": Literal(document.text[start:end]),
                "referenceContext": URIRef(document.uri),
                "taIdentRef": URIRef(annotation.entity),
            }
            if annotation.confidence is not None:
                value = f"{annotation.confidence:.6f}"
                double = URIRef(f"{XSD}double")
                values["taConfidence"] = Literal(value, datatype=double, normalize=False)
            add(uri, (f"{NIF}Phrase", f"{NIF}RFC5147String"), start, end, **values)
    lines = graph.serialize(format="nt", encoding="utf-8").splitlines(keepends=True)
    return b"".join(sorted(lines))


def entity_uri(kind: EntityUris, title: str, wikidata_id: str | None) -> str:
    """Returns the URI of an entity in a knowledge base.

    DBpedia names an entity by the title of its article: blanks are underscores, of ASCII
    `"#%<>?[\\]^`{|}` is percent-encoded, and other characters stay. Wikipedia percent-encodes
    those that are not ASCII, too. The first letter of a title is a capital in both.

    Args:
      kind: knowledge base. An entity without a Wikidata id has its DBpedia URI for "wikidata".
      title: title of the entity.
      wikidata_id: Wikidata id of the entity, such as "Q190192".

    Source: `wikiEncode` in DBpedia's extraction framework, and `wfUrlencode` in MediaWiki.

    Example: ("dbpedia", "Émile Zola", "Q504") -> "http://dbpedia.org/resource/Émile_Zola"
    """
    if kind == "wikidata" and wikidata_id:
        return f"http://www.wikidata.org/entity/{quote(wikidata_id.rpartition('/')[2], safe='')}"
    name = re.sub(r"[\s_]+", "_", title).strip("_")
    capital = name[:1].upper()
    if len(capital) == 1:  # The capital of ß is SS, which is another title.
        name = capital + name[1:]
    if kind == "wikipedia":
        return "http://en.wikipedia.org/wiki/" + quote(name, safe=";@$!*(),/~:")
    escaped = re.sub(r'[\x00-\x20\x7f"#%<>?[\\\]^`{|}]', lambda match: quote(match[0]), name)
    return "http://dbpedia.org/resource/" + escaped


def nil_uri(mention: str) -> str:
    """Returns a URI for something that is in no knowledge base, named by its mention."""
    return NIL + quote("_".join(mention.split()) or "NIL", safe="")


class _Value(NamedTuple):
    """Holds the object of a triple: a URI, a string, or a blank node."""

    text: str
    is_string: bool
    language: str | None


_Values = dict[str, set[_Value]]  # by URI of the property


def _parse(body: bytes) -> dict[str, _Values]:
    """Parses Turtle in UTF-8; returns the properties of each subject of the NIF vocabulary."""
    require("serve", "rdflib")
    from rdflib import Graph, Literal, URIRef

    try:
        turtle = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"byte {error.start} is not UTF-8; expected Turtle in UTF-8"
        raise NotNif(message) from None
    graph = Graph(bind_namespaces="none")
    try:
        # As a string: of bytes, rdflib changes the ends of lines inside of texts.
        graph.parse(data=_TURTLE.sub(_repaired, turtle), format="turtle", publicID=_RELATIVE)
    except RecursionError:
        raise NotNif("the Turtle is nested too deeply") from None
    except Exception as error:  # The parser raises BadSyntax, and others on odd input.
        match = _BAD_SYNTAX.search(str(error))
        reason = f"line {match[1]}: {match[2]}" if match else "is a string or statement not closed?"
        raise NotNif(f"the body is no Turtle ({reason})") from None
    subjects: dict[str, _Values] = {}
    for subject, predicate, value in graph:
        uri, name, is_string = str(subject), str(predicate), isinstance(value, Literal)
        if not name.startswith((NIF, RDF_TYPE)):
            continue
        if name.startswith(NIF) and is_string:
            _check_uri(uri, isinstance(subject, URIRef))
        item = _Value(_joined(str(value)), is_string, value.language if is_string else None)
        subjects.setdefault(uri, {}).setdefault(name, set()).add(item)
    return subjects


def _check_uri(uri: str, is_uri: bool) -> None:
    """Raises `NotNif` unless a string of NIF has a URI that the answer can repeat."""
    if not is_uri:
        raise NotNif("found a context or phrase without a URI; give it one")
    if uri.startswith(_RELATIVE):
        relative = uri.removeprefix(_RELATIVE)
        raise NotNif(f"<{relative}>: is relative; expected an absolute URI, or an @base")
    if _NOT_IN_URI.search(uri) or not is_whole(uri):
        raise NotNif(f"<{uri!a}>: has characters that no URI has")


def _repaired(match: re.Match[str]) -> str:
    """Returns a string of Turtle without backslashes that begin no escape; others as they are."""
    if match[0][0] not in "\"'":
        return match[0]
    return _BAD_ESCAPE.sub(lambda escape: escape[1] or escape[2], match[0])


def _joined(text: str) -> str:
    """Joins the halves of surrogate pairs, which escapes as Java writes them leave apart."""
    if text.isascii():
        return text
    return _PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)


def _only(uri: str, values: _Values, name: str) -> _Value:
    """Returns the only value of a property of NIF."""
    own = values.get(NIF + name, ())
    if len(own) != 1:
        raise NotNif(f"<{uri}>: found {len(own)} values of nif:{name}, expected one")
    return next(iter(own))


def _types(values: _Values) -> set[str]:
    """Returns the types of a subject whose URIs the answer can repeat."""
    kinds = {kind.text for kind in values.get(RDF_TYPE, ()) if not kind.is_string}
    return {kind for kind in kinds if ":" in kind and not _NOT_IN_URI.search(kind)}


def _text(uri: str, values: _Values) -> _Value:
    """Returns the text of a context."""
    text = _only(uri, values, "isString")
    if not text.is_string:
        raise NotNif(f"<{uri}>: its nif:isString is a URI, expected a string")
    if not is_whole(text.text):
        raise NotNif(f"<{uri}>: its text has half of a surrogate pair, which is no character")
    return text


def _phrase(uri: str, values: _Values, text: str) -> Phrase:
    """Reads a phrase, and checks that it has a place in the text."""
    start, end = (_position(uri, values, *bound) for bound in _BOUNDS)
    if not 0 <= start <= end <= len(text):
        raise NotNif(
            f"<{uri}>: [{start}, {end}) is no part of the text, which has {len(text)} characters"
        )
    quoted = text[start:end]
    for anchor in values.get(f"{NIF}anchorOf", ()):
        if _plain(anchor.text) != _plain(quoted):
            raise NotNif(
                f"<{uri}>: its nif:anchorOf is {anchor.text[:60]!a}, but the text has "
                f"{quoted[:60]!a} at [{start}, {end}); positions count Unicode code points from 0"
            )
    _check_uri(uri, True)
    return Phrase(start, end, uri)


_BOUNDS = (("beginIndex", 1), ("endIndex", 2))


def _position(uri: str, values: _Values, name: str, group: int) -> int:
    """Returns the first or the last position of a phrase; by default, that in its URI."""
    numbers = {value.text.strip() for value in values.get(NIF + name, ())}
    in_uri = _POSITIONS.search(uri)
    if not numbers and in_uri:
        numbers = {in_uri[group]}
    if len(numbers) != 1 or not all(re.fullmatch("[0-9]{1,15}", number) for number in numbers):
        found = ", ".join(f"{number[:20]!a}" for number in sorted(numbers)[:3]) or "nothing"
        raise NotNif(f"<{uri}>: nif:{name}: found {found}, expected one number from 0")
    return int(numbers.pop())


def _plain(text: str) -> str:
    """Returns a text in which blanks and Unicode normal forms do not differ."""
    return " ".join(unicodedata.normalize("NFC", text).split())
