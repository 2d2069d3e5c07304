"""Links entities in spaCy pipelines, as the component "elq_jax".

    import spacy

    nlp = spacy.blank("en")
    nlp.add_pipe("elq_jax", config={"linker": "runs/demo/linker"})
    for entity in nlp("who wrote dune?").ents:
        print(entity.text, entity.kb_id_, entity._.elq.title)

The fields of `SpacySettings` are what `config` may hold. spaCy imports this module with every
pipeline that it makes, so nothing heavy is imported before the first text is linked.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import itertools
import math
import os
import pathlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import msgspec

from elq_jax.core.errors import ElqError
from elq_jax.core.settings import fields_of, make_settings
from elq_jax.storage.checksums import read_json
from elq_jax.storage.files import user_path, write_json

if TYPE_CHECKING:
    from spacy.tokens import Doc, Span

    from elq_jax.linking.linker import EntityLinker
    from elq_jax.linking.links import Link

NAME = "elq_jax"
NIL = "NIL"  # as in spaCy's own linker

_REFERENCE = "linker.json"
_COPY = "linker"


@dataclasses.dataclass(frozen=True)
class SpacySettings:
    """Holds the configuration of the component.

    Attributes:
      linker: path of a linker directory, or the name of one on the Hugging Face hub.
      existing: what happens to entities that are there already. "keep": they stay as they are, one
        without an id gets that of a link in the same place, and links elsewhere are added; "link":
        they all get ids, and no others are looked for; "replace": the links take their place.
      span_group: name of the group in `doc.spans` that gets the links, instead of `doc.ents`; what
        is said about existing entities then holds for this group.
      label: label of new entities.
      labels: labels of the existing entities that are linked with "link"; None: all labels.
      kb_id: what `kb_id_` holds: the Wikidata id (and nothing where the catalogue has none), the
        title, the row of the catalogue, or the Wikidata id and else the title.
      alignment: what happens to a link that begins or ends inside a token of spaCy: the entity has
        the whole token ("expand"), goes without it ("contract"), or there is no entity ("strict").
      min_probability: probability that a link must have; None: the threshold of the linker, and
        with "link" none.
      batch_size: largest number of texts that are encoded together.
      save_linker: whether `nlp.to_disk` copies the linker into the pipeline's folder. Otherwise its
        path is stored.
      settings: settings of linking by name, as for `EntityLinker.from_pretrained`, such as
        threshold, max_mentions, index, dtype.
    """

    linker: Annotated[str, msgspec.Meta(min_length=1)] = ""
    existing: Literal["keep", "link", "replace"] = "keep"
    span_group: str | None = None
    label: Annotated[str, msgspec.Meta(min_length=1)] = "ENTITY"
    labels: list[str] | None = None
    kb_id: Literal["wikidata_or_title", "wikidata", "title", "row"] = "wikidata_or_title"
    alignment: Literal["expand", "contract", "strict"] = "expand"
    min_probability: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    batch_size: Annotated[int, msgspec.Meta(ge=1)] = 64
    save_linker: bool = False
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


class Reference(msgspec.Struct, frozen=True):
    """The file linker.json in a stored pipeline.

    Attributes:
      configured: `linker` of the configuration that the pipeline had when it was stored.
      linker: absolute path of that linker, or its name on the hub.
    """

    configured: str
    linker: str


class _Result(NamedTuple):
    """A link of a document and where it goes.

    Attributes:
      link: link, in characters of the document.
      bounds: first token, and number one past the last token, of its span; None: it has no span.
    """

    link: Link
    bounds: tuple[int, int] | None


class ElqComponent:
    """Links the entities of documents; made by `nlp.add_pipe("elq_jax")`.

    Every link of a document is in `doc._.elq`, also one that has no span.

    Attributes:
      name: name of the component in its pipeline.
      settings: configuration.
      left_out: number of links so far that got no span: `alignment` gives them none, or another
        entity stands there.
    """

    def __init__(self, name: str, settings: SpacySettings):
        self.name, self.settings, self.left_out = name, settings, 0
        self._path, self._stored = settings.linker, False
        self._linker: EntityLinker | None = None
        self._process = os.getpid()
        self._warned: set[str] = set()
        self._error_handler: Callable[..., None] = _raise

    @property
    def linker(self) -> EntityLinker:
        """Returns the linker, which is opened when it is first needed.

        Raises:
          ElqError: it cannot be opened.
        """
        if self._linker is None:
            from elq_jax.linking.linker import EntityLinker

            try:
                self._linker = EntityLinker.from_pretrained(self._path, **self.settings.settings)
            except ElqError as error:
                hint = (
                    "; the stored pipeline names this linker. Give another with spacy.load(folder, "
                    f'config={{"components.{self.name}.linker": path}})'
                )
                raise ElqError(
                    f"component {self.name!r}: {error}{hint if self._stored else ''}"
                ) from error
        return self._linker

    def __call__(self, doc: Doc) -> Doc:
        """Links one document."""
        self._annotate([doc])
        return doc

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = 64) -> Iterator[Doc]:
        """Links a stream of documents, `batch_size` at a time.

        If a batch fails, and the pipeline's error handler does not raise, its documents are left
        out, as with other components.
        """
        stream = iter(stream)
        while docs := list(itertools.islice(stream, batch_size)):
            try:
                self._annotate(docs)
            except Exception as error:
                self._error_handler(self.name, self, docs, error)
                continue
            yield from docs

    def _annotate(self, docs: Sequence[Doc]) -> None:
        """Links documents in one batch."""
        if os.getpid() != self._process:
            raise ElqError(
                f"component {self.name!r}: nlp.pipe(n_process=...) forked this process, and JAX "
                "does not survive a fork. Use n_process=1, whose threads use all cores, or call "
                'multiprocessing.set_start_method("spawn") first'
            )
        find = self._of_existing if self.settings.existing == "link" else self._of_texts
        for doc, results in zip(docs, find(docs, [doc.text for doc in docs]), strict=True):
            self._set_spans(doc, results)

    def _of_texts(self, docs: Sequence[Doc], texts: Sequence[str]) -> list[list[_Result]]:
        """Finds the links of documents, and a span for each."""
        size, mode = min(len(texts), self.settings.batch_size), self.settings.alignment
        found = self.linker(texts, None, size, self.settings.min_probability)
        results = []
        for doc, links in zip(docs, found, strict=True):
            spans = [doc.char_span(link.start, link.end, alignment_mode=mode) for link in links]
            bounds = [(span.start, span.end) if span else None for span in spans]
            results.append(list(map(_Result, links, bounds)))
        return results

    def _of_existing(self, docs: Sequence[Doc], texts: Sequence[str]) -> list[list[_Result]]:
        """Links the entities that documents have."""
        from elq_jax.linking.arguments import whole_tokens

        labels, least = self.settings.labels, self.settings.min_probability
        wanted: list[list[Span]] = []
        places: list[list[tuple[int, int]]] = []
        longest = self.linker.max_question_tokens
        for doc, encoded in zip(docs, self.linker.encode(texts), strict=True):
            spans = [x for x in self._spans(doc) if labels is None or x.label_ in labels]
            offsets = [(span.start_char, span.end_char) for span in spans]
            wanted.append([])
            places.append([])
            for span, place in zip(spans, whole_tokens(encoded, offsets, longest), strict=True):
                if place is None:
                    self._leave_out(f"{span.text!r} is longer than the model reads, or blank")
                else:
                    wanted[-1].append(span)
                    places[-1].append(place)
        size = min(len(texts), self.settings.batch_size)
        found = self.linker.disambiguate(texts, places, size)
        return [
            [
                _Result(_at(link, span), (span.start, span.end))
                for span, link in zip(spans, links, strict=True)
                if least is None or math.exp(link.score) >= least  # p(entity | mention)
            ]
            for spans, links in zip(wanted, found, strict=True)
        ]

    def _spans(self, doc: Doc) -> list[Span]:
        """Returns the entities of a document, or the spans of the group."""
        group = self.settings.span_group
        if group is None:
            return list(doc.ents)
        return list(doc.spans[group]) if group in doc.spans else []

    def _set_spans(self, doc: Doc, results: Sequence[_Result]) -> None:
        """Writes links into a document."""
        from spacy.tokens import Span

        existing, group = self.settings.existing, self.settings.span_group
        spans = [] if existing == "replace" else self._spans(doc)
        places: dict[tuple[int, int], list[int]] = {}
        for number, span in enumerate(spans):
            places.setdefault((span.start, span.end), []).append(number)
        is_taken = bytearray(len(doc))
        for span in spans if group is None else ():
            is_taken[span.start : span.end] = b"\1" * len(span)
        stored: list[list[Any]] = []
        for link, bounds in sorted(results, key=lambda result: -result.link.score):
            kb_id = self._kb_id(link)
            if bounds in places:
                for number in places[bounds]:
                    if existing == "link" or not spans[number].kb_id:
                        spans[number] = _with_kb_id(spans[number], kb_id)
            elif bounds is None or any(is_taken[slice(*bounds)]):
                why = "it has no whole token" if bounds is None else "another entity stands there"
                self._leave_out(f"the link of {link.mention!r} has no span in the document: {why}")
                bounds = None
            else:
                spans.append(Span(doc, *bounds, label=self.settings.label, kb_id=kb_id))
                if group is None:
                    is_taken[slice(*bounds)] = b"\1" * (bounds[1] - bounds[0])
            stored.append([*(bounds or (-1, -1)), link.to_dict()])
        spans.sort(key=lambda span: (span.start, span.end))
        if group is None:
            doc.ents = spans
        else:
            doc.spans[group] = spans
        stored.sort(key=lambda entry: entry[2]["start"])
        # Plain values: `doc.to_bytes` and DocBin write them.
        doc.user_data.setdefault(NAME, {})[self.name] = stored

    def _kb_id(self, link: Link) -> str:
        if link.row is None:
            return NIL
        wikidata_id = link.wikidata_id or ""
        ids = {
            "wikidata": wikidata_id,
            "title": link.title,
            "row": str(link.row),
            "wikidata_or_title": wikidata_id or link.title,
        }
        return ids[self.settings.kb_id]

    def _leave_out(self, message: str) -> None:
        self.left_out += 1
        self._warn(
            "left out",
            f"{message}. Others are counted in nlp.get_pipe({self.name!r}).left_out, and all links "
            "are in doc._.elq",
        )

    def _warn(self, kind: str, message: str) -> None:
        """Warns, once for each kind of message."""
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(f"component {self.name!r}: {message}", stacklevel=2)

    def set_error_handler(self, error_handler: Callable[..., None]) -> None:
        """Sets the function that is called with name, component, documents and error."""
        self._error_handler = error_handler

    def get_error_handler(self) -> Callable[..., None]:
        """Returns the function that is called if documents cannot be linked."""
        return self._error_handler

    def to_disk(self, path: str | os.PathLike[str], *, exclude: Iterable[str] = ()) -> None:
        """Writes the linker's absolute path, or with `save_linker` the linker, into a folder."""
        folder = pathlib.Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        if self.settings.save_linker:
            self.linker.save_pretrained(folder / _COPY)
        write_json(folder / _REFERENCE, msgspec.to_builtins(self._reference()))

    def from_disk(self, path: str | os.PathLike[str], *, exclude: Iterable[str] = ()) -> Any:
        """Reads what `to_disk` wrote; another linker in the configuration takes precedence."""
        folder = pathlib.Path(path)
        self._use(read_json(folder / _REFERENCE, Reference, "store the pipeline again"), folder)
        return self

    def to_bytes(self, *, exclude: Iterable[str] = ()) -> bytes:
        """Returns the linker's absolute path; the linker itself is not part of the bytes."""
        return msgspec.json.encode(self._reference())

    def from_bytes(self, data: bytes, *, exclude: Iterable[str] = ()) -> Any:
        """Reads what `to_bytes` returned."""
        self._use(msgspec.json.decode(data, type=Reference))
        return self

    def _reference(self) -> Reference:
        folder = user_path(self._path)
        linker = str(folder.absolute()) if folder.is_dir() else self._path
        return Reference(self.settings.linker, linker)

    def _use(self, reference: Reference, folder: pathlib.Path | None = None) -> None:
        if reference.configured != self.settings.linker:
            return
        self._path, self._stored, self._linker = reference.linker, True, None
        if folder is not None and (folder / _COPY).is_dir():
            self._path = str(folder / _COPY)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _process=os.getpid())


def links_of_doc(doc: Doc) -> tuple[Link, ...]:
    """Returns all links of a document in the order of its text, also those without a span."""
    return tuple(link for _, _, link in _stored_links(doc))


def link_of_span(span: Span) -> Link | None:
    """Returns the link of a span of tokens; None if there is none."""
    for start, end, link in _stored_links(span.doc):
        if (start, end) == (span.start, span.end):
            return link
    return None


def _stored_links(doc: Doc) -> Iterator[tuple[int, int, Link]]:
    from elq_jax.linking.links import Link

    for entries in doc.user_data.get(NAME, {}).values():
        for start, end, values in entries:
            yield start, end, msgspec.convert(values, Link)


def _at(link: Link, span: Span) -> Link:
    """Returns a link with the offsets of a span, of which the model has read whole tokens."""
    start, end = span.start_char, span.end_char
    return msgspec.structs.replace(link, start=start, end=end, mention=span.text)


def _with_kb_id(span: Span, kb_id: str) -> Span:
    from spacy.tokens import Span

    return Span(span.doc, span.start, span.end, label=span.label, kb_id=kb_id, span_id=span.id_)


def _raise(name: str, component: Any, docs: Sequence[Doc], error: Exception) -> None:
    raise error


def make_component(nlp: Any, name: str, **settings: Any) -> ElqComponent:
    """Makes the component of a pipeline; spaCy calls it in `nlp.add_pipe`.

    Raises:
      ElqError: a setting is unknown or has a wrong value.
    """
    try:
        return ElqComponent(name, make_settings(SpacySettings, settings))
    except ElqError as error:
        raise ElqError(f"component {name!r}: {error}") from error


def _register() -> None:
    """Tells spaCy of the component and of the attributes `_.elq`."""
    from spacy.language import Language
    from spacy.tokens import Doc, Span

    defaults = {name: field.default for name, field in fields_of(SpacySettings).items()}
    # spaCy lets a configuration have what the signature of the factory names.
    make_component.__signature__ = inspect.Signature(
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)
            for name in ("nlp", "name", *defaults)
        ]
    )
    Language.factory(
        NAME,
        default_config=defaults,
        assigns=["doc.ents", "doc.spans", "doc._.elq", "span._.elq"],
        func=make_component,
    )
    Doc.set_extension("elq", getter=links_of_doc, force=True)
    Span.set_extension("elq", getter=link_of_span, force=True)


if importlib.util.find_spec("spacy"):  # Only spaCy can use the component.
    _register()
