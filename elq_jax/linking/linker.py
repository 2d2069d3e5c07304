"""Links the mentions of questions to entities: `EntityLinker`, the public API."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import pathlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from elq_jax.core import devices as devices_lib
from elq_jax.core.errors import ElqError, check_count
from elq_jax.entities.catalogue import Catalogue
from elq_jax.entities.embeddings import Embeddings
from elq_jax.entities.segments import read_stamp
from elq_jax.entities.word_index import WordIndex
from elq_jax.linking import arguments, directory
from elq_jax.linking.candidates import CandidateScorer
from elq_jax.linking.changes import CatalogueEditor, Changes
from elq_jax.linking.confidence import LinkScorer
from elq_jax.linking.decoding import decode_known, make_links
from elq_jax.linking.knowledge import Knowledge, open_knowledge
from elq_jax.linking.links import Link, ScoredSpans
from elq_jax.linking.parts import Joiner, length_of, parts_of
from elq_jax.linking.process import check_process
from elq_jax.linking.scoring import Scorer, Search, SpanVectors, chunks, find_candidates
from elq_jax.linking.settings import LinkingSettings
from elq_jax.linking.spelling import Speller
from elq_jax.model.bundle import Model
from elq_jax.retrieval import Index
from elq_jax.storage.files import user_path
from elq_jax.storage.hub import resolve_linker
from elq_jax.text.tokenization import EncodedQuestion
from elq_jax.text.windows import sentence_starts


class EntityLinker:
    """Finds the entities of texts: questions, or texts of any length.

        linker = EntityLinker.from_pretrained("my_linker")
        for link in linker("who wrote dune?"):
            print(link.mention, link.title, link.wikidata_id, link.score)

    One linker may be called from many threads; they take turns. It can be pickled and copied if it
    was opened from a directory, which is then opened again. A process forked after a linker was
    opened cannot use any linker, since JAX does not survive a fork: open it in the child, or start
    children with the method "spawn".

    Attributes:
      model: model whose question encoder is used.
      config: description of what the model computes.
      settings: defaults of linking; replace the object to change them for good.
      tokenizer: tokenizer of questions.
      scorer: scorer, which runs the question encoder on the devices.
      link_scorer: what says how probably a link is right; None: links have no probability.
      folder: directory that this linker was opened from; None if it was made in memory, or has got
        other parameters since.
      prepare: function called with what is known of the entities when the first segment is another
        one, as after `compact`, or the first entity is removed, before questions are linked to
        them: to compile programs, for instance; None: nothing is called.
    """

    def __init__(
        self,
        model: Model,
        catalogue: Catalogue,
        index: Index,
        settings: LinkingSettings | None = None,
        *,
        embeddings: Embeddings | np.ndarray | None = None,
        candidate_scorer: CandidateScorer | None = None,
        link_scorer: LinkScorer | None = None,
        words: WordIndex | None = None,
        dtype: str = "auto",
        devices: str | Sequence[jax.Device] | None = None,
    ):
        """Makes a linker from its parts in memory; to open a directory, use `from_pretrained`.

        Args:
          model: model whose question encoder is used; it is put on the devices with the first
            question, if it is not there already.
          catalogue: catalogue of E entities.
          index: index over their E embeddings.
          settings: defaults of linking.
          embeddings: [E, D] vectors that the index was built over; `save_pretrained` writes them.
          candidate_scorer: what rescores the candidates of mentions, if anything does.
          link_scorer: what says how probably a link is right, if anything does.
          words: words of the catalogue, by which the spelling of questions is corrected, if at all.
          dtype: type of the encoder's matrix products: "float32", "bfloat16", or "auto" for what
            the devices are fast in. bfloat16 changes scores slightly.
          devices: devices, or the name of a platform such as "cpu"; all local ones by default.

        Raises:
          ElqError: index, model and catalogue do not fit together.
        """
        check_process()
        settings = settings or LinkingSettings()
        known = Knowledge(catalogue, index, embeddings, candidate_scorer, words)
        directory.check_parts(model, known, settings, link_scorer)
        self.model, self.config, self.tokenizer = model, model.config, model.tokenizer
        self.settings, self.link_scorer = settings, link_scorer
        self._devices = devices_lib.choose(devices)
        self.scorer = Scorer(model, dtype, self._devices)
        self._entities = _Entities(known, None if words is None else Speller(words, self.tokenizer))
        self._encoding, self._searching = threading.Lock(), threading.Lock()
        self.folder: pathlib.Path | None = None
        self.prepare: Callable[[Knowledge], None] | None = None
        self._arguments: dict[str, Any] | None = None  # of `from_pretrained`

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        index: str = "auto",
        dtype: str = "auto",
        devices: str | Sequence[jax.Device] | None = None,
        **settings: Any,
    ) -> EntityLinker:
        """Opens a linker directory.

        Compiled programs are kept on disk, see `devices.use_compilation_cache`.

        Args:
          path: directory written by `python -m elq_jax.train` or `save_pretrained`, or the name of
            one on the Hugging Face hub, "owner/name".
          index: name in `retrieval.INDEXES`, such as "exact" or "scann", or "auto": the saved one
            if there is one that this machine can use, else exact.
          dtype: type of the encoder's matrix products: "float32", "bfloat16", or "auto" for what
            the devices are fast in. bfloat16 changes scores slightly.
          devices: devices, or the name of a platform such as "cpu"; all local ones by default.
          **settings: changes to the directory's `LinkingSettings`, such as threshold=-2.0, and to
            the settings of its decoder.

        Raises:
          ElqError: a part is missing or broken, or the parts do not belong together.
        """
        check_process()
        devices_lib.use_compilation_cache()
        path = resolve_linker(path).absolute()
        devices = devices_lib.choose(devices)
        model, linking, link_scorer, known = directory.open_parts(
            path, index, devices, settings, dtype
        )
        linker = cls(
            model,
            known.catalogue,
            known.index,
            linking,
            embeddings=known.embeddings,
            candidate_scorer=known.candidate_scorer,
            link_scorer=link_scorer,
            words=known.words,
            dtype=dtype,
            devices=devices,
        )
        linker._entities.known = known
        linker.scorer.place()
        linker.folder = path
        linker._arguments = {"path": path, "index": index, "dtype": dtype}
        return linker

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Writes a linker directory with these settings; big files are linked where possible.

        Args:
          path: folder to write, which appears under its name when it is whole. An older linker
            directory is replaced.

        Raises:
          ElqError: `path` holds something else, or this linker was put together without
            `embeddings`.
        """
        path, linking = user_path(path), self.settings.to_dict()
        if self.folder is not None:
            directory.copy_linker(self.folder, path, linking)
            return
        others = self.model
        if self._arguments is not None:  # What was opened to link has no entity encoder.
            others = Model.open(self._arguments["path"], ("entity",))
        params = {**others.params, "question": self.scorer.params}
        model = self.model.replace(params=params)
        known = self._entities.known
        first = known.of_first_segment()
        directory.write_linker(
            path,
            model,
            linking,
            first.catalogue.path,
            first.embeddings,
            first.index,
            first.candidate_scorer,
            self.link_scorer,
            first.words,
            known.segments,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        if self.folder is None:
            raise ElqError(
                "this linker was put together in memory and cannot be pickled or copied; save it "
                "with save_pretrained and open it from there"
            )
        return _reopen, (self._arguments, self.settings, devices_lib.names_of(self._devices))

    def with_params(self, params: Mapping[str, Any]) -> EntityLinker:
        """Returns the linker with other question encoder parameters; see `Scorer.with_params`.

        Nothing is compiled again, and arrays that the devices hold already are not moved.
        """
        other = copy.copy(self)
        other.model = self.model.replace(params={**self.model.params, "question": params})
        other.scorer = self.scorer.with_params(params)
        other.folder = None
        return other

    def with_settings(self, **changes: Any) -> EntityLinker:
        """Returns the linker with other `LinkingSettings`, such as threshold=-2.0."""
        other = copy.copy(self)
        other.settings = self.settings.replace(**changes)
        directory.check_confidence(other.settings, self.link_scorer)
        return other

    def __copy__(self) -> EntityLinker:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def add_entities(self, entities: Iterable[Mapping[str, Any]]) -> Changes:
        """Adds entities to the linker's directory; the next question can be linked to them.

        Nothing is trained, and only the new entities are encoded. Other processes that have the
        directory open see them after `refresh`.

        Args:
          entities: mappings with "title" and "text", and perhaps "aliases" (a list of names),
            "wikidata_id" and "id". Those that are there already, with the same content, are left
            alone.

        Returns:
          the ids of the new entities, and counts.

        Raises:
          ElqError: an entity cannot be used, or the catalogue has its id with other content; the
            linker was made in memory, or its directory has no entity encoder; another process is
            changing the catalogue; the disk is full. Nothing has changed then.

        Example:
          linker.add_entities([{"title": "Dune: Part Two", "text": "2024 film.", "id": "dune-2"}])
        """
        return self._change(lambda editor: editor.add(entities))

    def update_entities(self, entities: Iterable[Mapping[str, Any]]) -> Changes:
        """Changes entities of the linker's directory; see `add_entities`.

        Args:
          entities: mappings with the "id" of an entity and the fields to change. Only a new title
            or text is encoded.

        Raises:
          ElqError: as `add_entities` says; or no entity has such an id.
        """
        return self._change(lambda editor: editor.update(entities))

    def remove_entities(self, ids: Sequence[str]) -> Changes:
        """Removes entities from the linker's directory; see `add_entities`.

        Args:
          ids: ids of the entities, as `link.id` has them.

        Raises:
          ElqError: no entity has such an id, none would be left, or another process is changing the
            catalogue.
        """
        return self._change(lambda editor: editor.remove(ids))

    def compact(self) -> None:
        """Writes the catalogue of the linker's directory anew, as one segment and one index.

        This is worth its time after many changes. Rows change, ids do not.

        Raises:
          ElqError: the disk is full, or another process is changing the catalogue.
        """
        self._change(lambda editor: editor.compact())

    def refresh(self) -> bool:
        """Takes over the changes that other processes made to the catalogue; one `stat` if none.

        Questions that are being linked meanwhile are linked to the catalogue as it was before.

        Returns:
          whether there were changes.

        Raises:
          ElqError: the directory is damaged.
        """
        shared = self._entities
        with shared.changing:
            segments = shared.known.segments
            if segments is None or read_stamp(segments.folder) == segments.stamp:
                return False
            options = self._arguments["index"], self._devices, self._arguments["dtype"]
            encoder = self.model.entity_fingerprint
            known = open_knowledge(segments.folder, *options, encoder, shared.known)
            directory.check_parts(self.model, known, self.settings, self.link_scorer)
            before = shared.known
            has_deleted = [k.catalogue.num_entities < len(k.catalogue) for k in (before, known)]
            is_other = known.first is not before.first or has_deleted[0] != has_deleted[1]
            if self.prepare is not None and is_other:
                self.prepare(known)
            shared.known = known
            if shared.speller is not None:
                shared.speller = shared.speller.with_words(known.words)
            return True

    def _change(self, change: Callable[[CatalogueEditor], Any]) -> Any:
        """Changes the catalogue of the directory that this linker was opened from."""
        shared = self._entities
        if shared.known.segments is None:
            raise ElqError(
                "this linker was put together in memory; save it with save_pretrained, and change "
                "the entities of the one that is opened from there"
            )
        if shared.editor is None:
            shared.editor = CatalogueEditor(shared.known.segments.folder, shared.known.segments)
        result = change(shared.editor)
        self.refresh()
        return result

    @property
    def catalogue(self) -> Catalogue:
        """Returns the catalogue of entities."""
        return self._entities.known.catalogue

    @property
    def index(self) -> Index:
        """Returns the index that is searched."""
        return self._entities.known.index

    @property
    def embeddings(self) -> Embeddings | np.ndarray | None:
        """Returns the [E, D] vectors that the index was built over; None if not given."""
        return self._entities.known.embeddings

    @property
    def candidate_scorer(self) -> CandidateScorer | None:
        """Returns what rescores the candidates of mentions; None: the search's scores stay."""
        return self._entities.known.candidate_scorer

    @property
    def speller(self) -> Speller | None:
        """Returns what corrects the spelling of questions; None: they are read as they are."""
        return self._entities.speller

    def with_candidate_scorer(self, scorer: CandidateScorer) -> EntityLinker:
        """Returns the linker with another `candidate_scorer`."""
        other = copy.copy(self)
        known = dataclasses.replace(self._entities.known, candidate_scorer=scorer)
        other._entities = _Entities(known, self.speller)
        return other

    @property
    def max_question_tokens(self) -> int:
        """Returns the largest T: that of the settings, or else the model's.

        Raises:
          ElqError: the encoder has fewer positions.
        """
        return self.settings.question_tokens(self.config)

    def __call__(
        self,
        texts: str | Iterable[str],
        threshold: float | None = None,
        batch_size: int = 64,
        min_probability: float | None = None,
    ) -> Any:
        """Links one text, or many.

        Args:
          texts: question, message, article or book, or any number of them. A text of more than
            `max_question_tokens` tokens is read in windows of that many, which overlap. Only the
            original's decoder cuts it, with a warning that says where.
          threshold: score that links must exceed, instead of the settings' own.
          batch_size: number of questions, or windows, encoded at a time.
          min_probability: probability that links must have, instead of a threshold.

        Returns:
          links of one text in its order, without overlaps; for several texts a list of such lists.
        """
        settings = self.settings.at(threshold, min_probability)
        rows = arguments.texts_of(texts, or_one=True)
        links = list(self._linked(rows, settings.threshold, batch_size, math.inf, 4))
        return links[0] if isinstance(texts, str) else links

    def pipe(
        self,
        texts: Iterable[str],
        threshold: float | None = None,
        batch_size: int = 64,
        min_probability: float | None = None,
    ) -> Iterator[list[Link]]:
        """Links a stream of texts, reading only a few batches ahead.

        Args:
          texts: iterable of texts of any length; may be endless.
          threshold: score that links must exceed, instead of the settings' own.
          batch_size: number of questions, or windows of longer texts, encoded at a time. 16 times
            as many are read at once, so that those of similar length are encoded together; with a
            size of 1 each text is linked as soon as it is read.
          min_probability: probability that links must have, instead of a threshold.

        Yields:
          the links of each text, in the order of the texts.
        """
        texts = arguments.stream_of(texts)
        settings = self.settings.at(threshold, min_probability)
        check_count("batch_size", batch_size)
        return self._linked(texts, settings.threshold, batch_size, batch_size, 3)

    def _linked(
        self,
        texts: Iterable[str],
        threshold: float,
        batch_size: int,
        most: float,
        stacklevel: int,
    ) -> Iterator[list[Link]]:
        """Yields the links of each text; `most` batches at a time decide how far it reads ahead.

        Args:
          texts, threshold, batch_size: arguments of `pipe`.
          most: batch size that chunks of the stream have, see `chunks`.
          stacklevel: number of the stack frame that a warning of cut texts names.
        """
        joiner, collected, warned = Joiner(), [], False
        parts = parts_of(
            ((None, text) for text in arguments.checked(texts)), self.settings.decoding
        )
        for chunk in chunks(parts, most, length_of):
            scored = self.score_batch([part.text for part in chunk], threshold, batch_size)
            if not warned:
                longest = self.max_question_tokens
                warned = arguments.warn_of_cuts(scored, longest, stacklevel)
            for part, links in zip(chunk, self.decode(scored, threshold), strict=True):
                collected += joiner.add(part, links)
                if part.is_last:
                    yield collected
                    collected = []

    def disambiguate(
        self, texts: str | Iterable[str], spans: Sequence[Any], batch_size: int = 64
    ) -> Any:
        """Links mentions whose places are known.

        Args:
          texts: question, or any number of them.
          spans: half-open character offsets (start, end) of the mentions of the question; a list of
            such lists for several questions.
          batch_size: number of questions encoded at a time.

        Returns:
          a link for every span, in the order of `spans`, whatever its score. The score is
          log p(entity | mention), and the mention score is 0. Where links have probabilities, these
          are p(entity | mention). For several strings, a list of such lists.

        Raises:
          ElqError: a span lies outside its text, begins or ends inside a token, is empty, has more
            tokens than the model reads at once, or is in a part of the text that was cut.

        Example:
          linker.disambiguate("who wrote dune?", [(10, 14)])
        """
        several = not isinstance(texts, str)
        texts = arguments.texts_of(texts, or_one=True)
        spans = list(spans) if several else [spans]
        encoded = self.encode(texts)
        bounds = arguments.token_bounds(texts, spans, encoded, self.max_question_tokens)
        _, scored = self.score_encoded(texts, encoded, None, batch_size, bounds, find=False)
        decoded = decode_known(scored, spans)
        if self.settings.decoding.needs_confidence:
            decoded = dataclasses.replace(decoded, probabilities=np.exp(decoded.scores))
        links = make_links(texts, decoded, scored.catalogue)
        return links if several else links[0]

    def score_batch(
        self, texts: Iterable[str], threshold: float | None = None, batch_size: int = 64
    ) -> ScoredSpans:
        """Finds and scores the spans of questions that may be mentions, with their candidates.

        `decode` makes links of them. It runs no model, so it can be called at many thresholds.

        Args:
          texts: iterable of questions.
          threshold: lowest threshold that `decode` may be called with later; None: the settings'
            own.
          batch_size: number of questions encoded at a time.
        """
        texts = arguments.texts_of(texts)
        return self.score_encoded(texts, self.encode(texts), threshold, batch_size)[0]

    def encode(self, texts: Iterable[str]) -> list[EncodedQuestion]:
        """Tokenises questions after their spelling is corrected.

        Those of more than `max_question_tokens` tokens are whole, but where they are read as the
        original reads them, they are cut.
        """
        check_process()
        texts, longest = arguments.texts_of(texts), self.max_question_tokens
        whole = self.settings.decoding.reads_windows
        encoded = self.tokenizer.encode_questions(
            texts,
            None if whole else longest,
            special_tokens_in_text=self.settings.decoding.special_tokens_in_text,
            correct=self.speller if self.settings.spelling else None,
        )
        return [
            question
            if len(question.ids) <= longest
            else dataclasses.replace(question, sentences=sentence_starts(text, question.offsets))
            for text, question in zip(texts, encoded, strict=True)
        ]

    def score_encoded(
        self,
        texts: Sequence[str],
        encoded: Sequence[EncodedQuestion],
        threshold: float | None = None,
        batch_size: int = 64,
        bounds: Sequence[np.ndarray] | None = None,
        find: bool = True,
    ) -> tuple[ScoredSpans, ScoredSpans]:
        """Scores the spans that the model finds, and spans at known bounds, in one encoder pass.

        Args:
          texts: questions.
          encoded: tokens of the questions.
          threshold: lowest threshold that `decode` may be called with later; None: the settings'
            own.
          batch_size: number of questions encoded at a time.
          bounds: arrays, one per question, [M, 2] int: first and last token (inclusive) of spans to
            score as well.
          find: whether the model finds spans; otherwise only those at `bounds` are scored.

        Returns:
          spans that the model finds, and the spans at `bounds` in their order.

        Raises:
          ElqError: there are not as many bounds as texts, or a question has no such token.
        """
        settings = self.settings.at(threshold)
        parts = self.find_spans(encoded, settings, batch_size, bounds, find)
        return self.score_spans(texts, encoded, parts, settings)

    def find_spans(
        self,
        encoded: Sequence[EncodedQuestion],
        settings: LinkingSettings | None = None,
        batch_size: int = 64,
        bounds: Sequence[np.ndarray] | None = None,
        find: bool = True,
    ) -> list[tuple[SpanVectors, SpanVectors]]:
        """Runs the question encoder, the first half of `score_encoded`; see there.

        While one thread is here, another can be in `score_spans`, the second half.
        """
        check_process()
        settings = settings or self.settings
        search = Search.of(encoded, settings, self.tokenizer.unk_id) if find else None
        if bounds is not None:
            bounds = arguments.check_bounds(encoded, bounds)
        longest, overlap = self.max_question_tokens, settings.overlap_tokens
        with self._encoding:
            return list(self.scorer(encoded, longest, batch_size, search, bounds, overlap))

    def score_spans(
        self,
        texts: Sequence[str],
        encoded: Sequence[EncodedQuestion],
        parts: Sequence[tuple[SpanVectors, SpanVectors]],
        settings: LinkingSettings | None = None,
    ) -> tuple[ScoredSpans, ScoredSpans]:
        """Finds and scores the candidates of spans, the second half of `score_encoded`; see there.

        Args:
          texts: questions.
          encoded: tokens of the questions.
          parts: spans, as `find_spans` returns them.
          settings: settings of linking that the spans were found with; None: the linker's own.
        """
        settings, knowledge = settings or self.settings, self._entities.known
        found, known = self._search(texts, encoded, parts, settings, knowledge)
        scorer = knowledge.candidate_scorer
        if scorer is None or not settings.candidate_scoring:
            return found[0], known[0]
        spans, candidates = scorer.rescored(*found)
        if settings.decoding.needs_confidence:
            confidence = self.link_scorer(spans, candidates)
            spans = dataclasses.replace(spans, confidence=confidence)
        if not len(known[1]):
            return spans, known[0]
        return spans, scorer.rescored(*known)[0]

    def search_spans(
        self,
        texts: Sequence[str],
        encoded: Sequence[EncodedQuestion],
        settings: LinkingSettings | None = None,
        batch_size: int = 64,
        bounds: Sequence[np.ndarray] | None = None,
        find: bool = True,
    ) -> tuple[tuple[ScoredSpans, np.ndarray], tuple[ScoredSpans, np.ndarray]]:
        """Scores spans as `score_encoded` does, but leaves the candidates as the search found them.

        Args:
          texts, encoded, batch_size, bounds, find: arguments of `score_encoded`.
          settings: settings of linking; None: the linker's own.

        Returns:
          spans that the model finds with their vectors [n, D] float32, and those at `bounds`.
        """
        settings = settings or self.settings
        parts = self.find_spans(encoded, settings, batch_size, bounds, find)
        return self._search(texts, encoded, parts, settings, self._entities.known)

    def _search(
        self,
        texts: Sequence[str],
        encoded: Sequence[EncodedQuestion],
        parts: Sequence[tuple[SpanVectors, SpanVectors]],
        settings: LinkingSettings,
        knowledge: Knowledge,
    ) -> tuple[tuple[ScoredSpans, np.ndarray], tuple[ScoredSpans, np.ndarray]]:
        """Returns spans with the candidates that the search finds; see `search_spans`."""
        catalogue = knowledge.catalogue
        count = min(settings.num_candidates, catalogue.num_entities)
        with self._searching:
            columns = find_candidates(parts, knowledge.index, count, settings.decoding)
        found, known = (
            (ScoredSpans(texts, encoded, *spans, settings.threshold, catalogue=catalogue), vectors)
            for *spans, vectors in columns
        )
        return found, known

    def decode(self, scored: ScoredSpans, threshold: float | None = None) -> list[list[Link]]:
        """Makes links of scored questions, in the order of the text; runs no model.

        Raises:
          ElqError: the threshold is below the one the questions were scored at.
        """
        settings = self.settings.at(threshold)
        decoded = settings.decoding.decode(scored, settings.threshold)
        links = make_links(scored.texts, decoded, scored.catalogue or self.catalogue)
        return [sorted(question_links, key=lambda link: link.start) for question_links in links]


@dataclasses.dataclass
class _Entities:
    """Shares what is known of the entities among a linker and its copies.

    Attributes:
      known: knowledge; a change of the catalogue puts another object here.
      speller: what corrects the spelling of questions, with the words of the catalogue.
      editor: what changes the catalogue; None until something does.
      changing: lock of those who put other objects here.
    """

    known: Knowledge
    speller: Speller | None
    editor: CatalogueEditor | None = None
    changing: threading.Lock = dataclasses.field(default_factory=threading.Lock)


def _reopen(
    arguments: Mapping[str, Any], settings: LinkingSettings, devices: Sequence[tuple[str, int]]
) -> EntityLinker:
    """Opens the directory of a pickled linker, on the same devices if this machine has them."""
    linker = EntityLinker.from_pretrained(**arguments, devices=devices_lib.with_names(devices))
    linker.settings = settings
    return linker
