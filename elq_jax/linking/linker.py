"""EntityLinker, the public API: links the mentions of questions to entities."""

from __future__ import annotations

import copy
import os
import pathlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from elq_jax.core import devices as devices_lib
from elq_jax.core.devices import COMPUTE_DTYPES
from elq_jax.core.errors import ElqError
from elq_jax.entities.catalogue import Catalogue
from elq_jax.entities.embeddings import Embeddings
from elq_jax.linking import arguments, directory
from elq_jax.linking.decoding import joint_scores, make_links, take
from elq_jax.linking.links import Link, ScoredSpans
from elq_jax.linking.process import check_process
from elq_jax.linking.scoring import Scorer, Search, chunks, find_candidates
from elq_jax.linking.settings import LinkingSettings
from elq_jax.model.bundle import Model, read_description
from elq_jax.retrieval import Index, open_index
from elq_jax.storage import layout
from elq_jax.storage.files import user_path
from elq_jax.storage.hub import resolve_linker
from elq_jax.text.tokenization import EncodedQuestion


class EntityLinker:
    """Finds the entities of questions.

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
      catalogue: catalogue of entities.
      index: index that is searched.
      scorer: device half, which runs the question encoder.
    """

    def __init__(
        self,
        model: Model,
        catalogue: Catalogue,
        index: Index,
        settings: LinkingSettings | None = None,
        *,
        embeddings: Embeddings | np.ndarray | None = None,
        dtype: str = "float32",
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
          dtype: dtype of the matrix products, "float32" or "bfloat16".
          devices: devices, or the name of a platform such as "cpu"; all local ones by default.

        Raises:
          ElqError: index, model and catalogue do not fit together.
        """
        check_process()
        directory.check_parts(model, catalogue, index)
        if dtype not in COMPUTE_DTYPES:
            raise ElqError(f"dtype: {dtype!r}; expected one of {COMPUTE_DTYPES}")
        self.model, self.config, self.tokenizer = model, model.config, model.tokenizer
        self.catalogue, self.index = catalogue, index
        self.settings = settings or LinkingSettings()
        _ = self.max_question_tokens  # for its check
        self._devices = devices_lib.choose(devices)
        self.scorer = Scorer(model, dtype, self._devices)
        self._embeddings = embeddings
        self._lock = threading.RLock()
        self._source: dict[str, Any] | None = None  # arguments of `from_pretrained`
        self._is_changed = False  # since it was opened, but for settings

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        index: str = "auto",
        dtype: str = "float32",
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
          dtype: dtype of the encoder's matrix products, "float32" or "bfloat16".
          devices: devices, or the name of a platform such as "cpu"; all local ones by default.
          **settings: changes to the directory's `LinkingSettings`, such as threshold=-2.0, and to
            the settings of its decoder.

        Raises:
          ElqError: a part is missing or broken, or the parts do not belong together.
        """
        check_process()
        devices_lib.use_compilation_cache()
        path = resolve_linker(path).absolute()
        saved = directory.read_linking(path, read_description(path).linking)
        devices = devices_lib.choose(devices)
        catalogue = Catalogue.open(path / layout.CATALOGUE)
        embeddings = directory.open_embeddings(path, catalogue)
        linker = cls(
            Model.open(path, ("question",)),
            catalogue,
            open_index(path / layout.INDEX, embeddings, index, devices),
            saved.replace(**settings),
            embeddings=embeddings,
            dtype=dtype,
            devices=devices,
        )
        linker.scorer.place()
        linker._source = {"path": path, "index": index, "dtype": dtype}
        return linker

    @property
    def folder(self) -> pathlib.Path | None:
        """Returns the directory that this linker was opened from; None if made in memory."""
        return None if self._source is None or self._is_changed else self._source["path"]

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
        if self._embeddings is None:
            raise ElqError(
                "embeddings: this linker was put together without them; give EntityLinker those "
                "that its index was built over"
            )
        params = {**self.model.params, "question": self.scorer.params}
        if "entity" not in params and self._source is not None:
            params |= Model.open(self._source["path"], ("entity",)).params
        model = self.model.replace(params=params)
        directory.write_linker(path, model, linking, self.catalogue.path, self._embeddings)
        if self.index.has_files:
            self.index.save(path / layout.INDEX)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.folder is None:
            raise ElqError(
                "this linker was put together in memory and cannot be pickled or copied; save it "
                "with save_pretrained and open it from there"
            )
        places = [(device.platform, device.id) for device in self._devices]
        return _reopen, (self._source, self.settings, places)

    def with_params(self, params: Mapping[str, Any]) -> EntityLinker:
        """Returns the linker with other question encoder parameters; see `Scorer.with_params`.

        Nothing is compiled again, and arrays that the devices hold already are not moved.
        """
        other = copy.copy(self)
        other.model = self.model.replace(params={**self.model.params, "question": params})
        other.scorer = self.scorer.with_params(params)
        other._is_changed = True
        return other

    def with_settings(self, **changes: Any) -> EntityLinker:
        """Returns the linker with other `LinkingSettings`, such as threshold=-2.0."""
        other = copy.copy(self)
        other.settings = self.settings.replace(**changes)
        return other

    def __copy__(self) -> EntityLinker:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    @property
    def max_question_tokens(self) -> int:
        """Returns the largest T: that of the settings, or else the model's.

        Raises:
          ElqError: the encoder has fewer positions.
        """
        size, positions = self.settings.max_question_tokens, self.config.question_bert.max_positions
        if size is None:
            return self.config.max_question_tokens
        if size > positions:
            raise ElqError(
                f"max_question_tokens: {size}; expected 3 to {positions} (the encoder's positions)"
            )
        return size

    def __call__(
        self, texts: str | Iterable[str], threshold: float | None = None, batch_size: int = 64
    ) -> Any:
        """Links one question, or many.

        Args:
          texts: question, or any number of them. A question of more than `max_question_tokens`
            tokens is cut; a single warning says how many were.
          threshold: score that links must exceed, instead of the settings' own.
          batch_size: number of questions encoded at a time.

        Returns:
          links of one question in the order of its text, without overlaps; for several questions a
          list of such lists.
        """
        scored = self.score_batch(arguments.texts_of(texts, or_one=True), threshold, batch_size)
        arguments.warn_of_cuts(scored, self.max_question_tokens, 3)
        links = self.decode(scored, threshold)
        return links[0] if isinstance(texts, str) else links

    def pipe(
        self, texts: Iterable[str], threshold: float | None = None, batch_size: int = 64
    ) -> Iterator[list[Link]]:
        """Links a stream of questions, reading only a few batches ahead.

        Args:
          texts: iterable of questions; may be endless.
          threshold: score that links must exceed, instead of the settings' own.
          batch_size: number of questions encoded at a time. 16 times as many are read at once, so
            that questions of similar length are encoded together; with a size of 1 each question
            is linked as soon as it is read.

        Yields:
          the links of each question, in the order of the questions.
        """
        return self._pipe(iter(arguments.stream_of(texts)), threshold, batch_size)

    def _pipe(
        self, texts: Iterator[str], threshold: float | None, batch_size: int
    ) -> Iterator[list[Link]]:
        warned = False
        for chunk in chunks(texts, batch_size):
            scored = self.score_batch(chunk, threshold, batch_size)
            if not warned:
                warned = arguments.warn_of_cuts(scored, self.max_question_tokens, 3)
            yield from self.decode(scored, threshold)

    def disambiguate(
        self, texts: str | Iterable[str], spans: Sequence[Any], batch_size: int = 64
    ) -> Any:
        """Links mentions whose places are known.

        Args:
          texts: question, or any number of them.
          spans: half-open character offsets (start, end) of the mentions of the question; a list of
            such lists for several questions.
          batch_size: questions encoded at a time.

        Returns:
          a link for every span, in the order of `spans`, whatever its score. The score is
          log p(entity | mention), and the mention score is 0. For several strings, a list of such
          lists.

        Raises:
          ElqError: a span lies outside its text, begins or ends inside a token, is empty, or is in
            a part of the text that was cut.

        Example:
          linker.disambiguate("who wrote dune?", [(10, 14)])
        """
        several = not isinstance(texts, str)
        texts = arguments.texts_of(texts, or_one=True)
        spans = list(spans) if several else [spans]
        encoded = self.encode(texts)
        bounds = arguments.token_bounds(texts, spans, encoded)
        _, scored = self._score(texts, encoded, batch_size, None, bounds)
        joint, mention_scores = joint_scores(scored)
        characters = np.array([span for own in spans for span in own], np.int64).reshape(-1, 2)
        everything = np.arange(len(characters))
        decoded = take(scored, everything, characters, joint[:, 0], mention_scores, joint)
        links = make_links(texts, decoded, self.catalogue)
        return links if several else links[0]

    def score_batch(
        self, texts: Iterable[str], threshold: float | None = None, batch_size: int = 64
    ) -> ScoredSpans:
        """Finds spans and their candidates; `decode` makes links of them at several thresholds.

        Args:
          texts: iterable of questions.
          threshold: lowest threshold that `decode` can use later; the settings' own by default.
          batch_size: questions encoded at a time.
        """
        texts = arguments.texts_of(texts)
        return self.score_encoded(texts, self.encode(texts), threshold, batch_size)[0]

    def encode(self, texts: Iterable[str]) -> list[EncodedQuestion]:
        """Tokenises questions, cut to `max_question_tokens`."""
        check_process()
        return self.tokenizer.encode_questions(
            arguments.texts_of(texts),
            self.max_question_tokens,
            special_tokens_in_text=self.settings.decoding.special_tokens_in_text,
        )

    def score_encoded(
        self,
        texts: Sequence[str],
        encoded: Sequence[EncodedQuestion],
        threshold: float | None = None,
        batch_size: int = 64,
        bounds: Sequence[np.ndarray] | None = None,
    ) -> tuple[ScoredSpans, ScoredSpans]:
        """Scores the spans that the model finds, and spans at known bounds, in one encoder pass.

        Args:
          texts: questions.
          encoded: their tokens.
          threshold: as for `score_batch`.
          batch_size: questions encoded at a time.
          bounds: arrays, one per question, [M, 2] int: first and last token (inclusive) of spans to
            score besides.

        Returns:
          spans that the model finds, and the spans at `bounds` in their order.

        Raises:
          ElqError: not as many bounds as texts, or positions that a question does not have.
        """
        settings = self._settings(threshold)
        decoding, unknown = settings.decoding, self.tokenizer.unk_id
        search = Search(
            [decoding.roles(question, unknown) for question in encoded],
            settings.max_mentions,
            decoding.prune_threshold(settings.threshold),
            decoding.keep_any,
        )
        return self._score(texts, encoded, batch_size, search, bounds, settings.threshold)

    def decode(self, scored: ScoredSpans, threshold: float | None = None) -> list[list[Link]]:
        """Returns the links of scored questions in text order; fast, since no model is run.

        Raises:
          ElqError: the threshold is below the one the questions were scored at.
        """
        settings = self._settings(threshold)
        decoded = settings.decoding.decode(scored, settings.threshold)
        links = make_links(scored.texts, decoded, self.catalogue)
        return [sorted(found, key=lambda link: link.start) for found in links]

    def _settings(self, threshold: float | None) -> LinkingSettings:
        if threshold is None:
            return self.settings
        return self.settings.replace(threshold=threshold)

    def _score(
        self,
        texts: Sequence[str],
        encoded: Sequence[EncodedQuestion],
        batch_size: int,
        search: Search | None,
        bounds: Sequence[np.ndarray] | None,
        scored_at: float = -np.inf,
    ) -> tuple[ScoredSpans, ScoredSpans]:
        """Spans that were found and given ones, with their candidates."""
        check_process()
        if bounds is not None:
            bounds = arguments.check_bounds(encoded, bounds)
        count = min(self.settings.num_candidates, len(self.catalogue))
        longest = self.max_question_tokens
        with self._lock:
            parts = self.scorer(encoded, longest, batch_size, search, bounds)
            found, given = find_candidates(parts, self.index, count)
        return tuple(ScoredSpans(texts, encoded, *own, scored_at) for own in (found, given))


def _reopen(
    source: Mapping[str, Any], settings: LinkingSettings, places: Sequence[tuple[str, int]]
) -> EntityLinker:
    """Opens the directory of a pickled linker, on the same devices if this machine has them."""
    here = {(device.platform, device.id): device for device in jax.local_devices()}
    devices = [here[place] for place in places if place in here]
    linker = EntityLinker.from_pretrained(**source, devices=devices or None)
    linker.settings = settings
    return linker
