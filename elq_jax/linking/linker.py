"""The public API: questions in, links out."""

from __future__ import annotations

import copy
import dataclasses
import numbers
import os
import pathlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elq_jax.data.batches import BATCH_BUCKETS, LENGTH_BUCKETS, length_sorted_batches, pad_tokens
from elq_jax.data.catalogue import Catalogue
from elq_jax.data.tokenization import EncodedQuestion, Tokenizer
from elq_jax.errors import DataError, ElqError, check_count
from elq_jax.linking import directory
from elq_jax.linking.decoding import THRESHOLD_TYPES, Decoded, character_span, decode_batch
from elq_jax.model import spans
from elq_jax.model.elq import ElqConfig, QuestionEncoder
from elq_jax.retrieval import Index, open_index
from elq_jax.training import devices as devices_lib

DTYPES = ("float32", "bfloat16")  # of the encoder's matrix products
_NO_ROW = -1  # where an index finds fewer candidates than it was asked for
_BATCHES_IN_FLIGHT = 16  # bounds memory, however many questions are given at once


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """One entity that a mention may mean.

    Attributes:
      entity: row of the catalogue.
      title: its title.
      wikidata_id: its Wikidata id, if the catalogue has one.
      score: joint log-probability of mention and entity.
    """

    entity: int
    title: str
    wikidata_id: str | None
    score: float


@dataclasses.dataclass(frozen=True, slots=True)
class Link:
    """One mention of a question and the entity it is linked to.

    Attributes:
      start: first character of the mention in the question.
      end: one past its last character.
      mention: text[start:end].
      title: of the entity.
      wikidata_id: of the entity, if the catalogue has one.
      entity: row of the catalogue.
      score: joint log-probability, log p(mention) + log p(entity | mention); what the original
        gives, with another `threshold_type` than "joint".
      mention_score: log p(mention).
      candidates: the best entities for the mention, the linked one first.
    """

    start: int
    end: int
    mention: str
    title: str
    wikidata_id: str | None
    entity: int
    score: float
    mention_score: float
    candidates: tuple[Candidate, ...]


@dataclasses.dataclass(frozen=True)
class LinkingSettings:
    """How scores become links; the "linking" part of config.json.

    Attributes:
      threshold: keep links with score > threshold.
      max_mentions: K, mentions searched for at most in a question.
      num_candidates: C, entities retrieved for a mention; the linking softmax runs over them.
      threshold_type: "joint", or one of the original's two others (see `decode_batch`).
      mention_threshold: of the other two types.
      max_question_tokens: T at most, [CLS] and [SEP] included; None: the model's own.
      allow_special_tokens: let mentions contain [CLS] or [SEP], as the original does.
      special_tokens_in_text: read a literal "[SEP]" in a question as the token, as the original
        does, and not as text.
    """

    threshold: float = -4.5
    max_mentions: int = 10
    num_candidates: int = 10
    threshold_type: str = "joint"
    mention_threshold: float | None = None
    max_question_tokens: int | None = None
    allow_special_tokens: bool = False
    special_tokens_in_text: bool = False

    def __post_init__(self):
        _check_number("threshold", self.threshold)
        check_count("max_mentions", self.max_mentions)
        check_count("num_candidates", self.num_candidates)
        if self.threshold_type not in THRESHOLD_TYPES:
            raise ElqError(
                f"threshold_type: {self.threshold_type!r}; expected one of {THRESHOLD_TYPES}"
            )
        if self.mention_threshold is not None:
            _check_number("mention_threshold", self.mention_threshold)
        if self.max_question_tokens is not None:
            check_count("max_question_tokens", self.max_question_tokens, least=3)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LinkingSettings:
        """Reads the "linking" part of config.json, or settings given by name.

        Raises:
          ElqError: a setting is unknown or out of range.
        """
        return cls().replace(**values)

    def to_dict(self) -> dict[str, Any]:
        """The inverse of `from_dict`."""
        return dataclasses.asdict(self)

    def replace(self, **changes: Any) -> LinkingSettings:
        """The same with other values; raises an ElqError as `from_dict` does."""
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise ElqError(f"setting {name!r}: unknown; expected one of {', '.join(known)}")
        for name in ("threshold", "mention_threshold"):
            if changes.get(name) in ("inf", "-inf"):  # as `write_json` writes them
                changes[name] = float(changes[name])
        return dataclasses.replace(self, **changes)

    @property
    def prune_threshold(self) -> float:
        """log p(mention) must be above this for the mention to be searched for.

        For "joint" nothing is lost: a joint score is never above log p(mention).
        """
        if self.threshold_type == "top_entity_by_mention":
            return self.threshold if self.mention_threshold is None else self.mention_threshold
        return self.threshold


def _check_number(name: str, value: Any) -> None:
    """A real number, infinite or not."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or value != value:
        raise ElqError(f"{name}: {value!r}; expected a number")


def _check_bounds(encoded: Sequence[EncodedQuestion], bounds: Sequence[np.ndarray]) -> None:
    if len(encoded) != len(bounds):
        raise ElqError(
            f"bounds: found {len(bounds)}, expected one for each of {len(encoded)} texts"
        )
    for number, (one, spans_) in enumerate(zip(encoded, bounds, strict=True)):
        for start, end in np.asarray(spans_).reshape(-1, 2).tolist():
            if not 0 <= start <= end < len(one.ids):
                raise ElqError(
                    f"bounds[{number}]: [{start}, {end}]; expected first and last token of "
                    f"{len(one.ids)}, counted from 0"
                )


def _as_list(texts: Iterable[str]) -> list[str]:
    """The texts of anything that can be iterated over; what they are is checked later."""
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        kind = "one string" if isinstance(texts, str) else type(texts).__name__
        raise ElqError(f"texts: found {kind}; give a list of strings")
    return list(texts)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ScoredQuestion:
    """What the model and the index say of one question; `EntityLinker.decode` makes links of it.

    Attributes:
      text: the question.
      encoded: its tokens.
      mention_logits: [K] float32.
      bounds: [K, 2] int32, inclusive tokens.
      candidate_scores: [K, C] float32 inner products, descending.
      candidate_rows: [K, C] int32.
      scored_at: the threshold that mentions had to pass to be searched for.
    """

    text: str
    encoded: EncodedQuestion
    mention_logits: np.ndarray
    bounds: np.ndarray
    candidate_scores: np.ndarray
    candidate_rows: np.ndarray
    scored_at: float


class EntityLinker:
    """Finds the entities of questions.

        linker = EntityLinker.from_pretrained("my_linker")
        for link in linker("who wrote dune?"):
            print(link.mention, link.title, link.wikidata_id, link.score)

    Questions are padded to a few lengths and batch sizes, so that a stream of them compiles a
    handful of programs, once. One linker may be used from one thread at a time.

    Attributes:
      config: what the model computes.
      settings: defaults of linking; replace it to change them for good.
      tokenizer: of questions.
      catalogue: the entities.
      index: what is searched.
    """

    def __init__(
        self,
        config: ElqConfig,
        params: Mapping[str, Any],
        tokenizer: Tokenizer,
        catalogue: Catalogue,
        index: Index,
        settings: LinkingSettings | None = None,
        *,
        dtype: str = "float32",
        devices: Sequence[jax.Device] | None = None,
        folder: pathlib.Path | None = None,
    ):
        """Puts a linker together; most people want `from_pretrained`.

        Args:
          config: what the model computes.
          params: the question encoder's tree.
          tokenizer: of questions.
          catalogue: E entities.
          index: over their E embeddings.
          settings: defaults of linking.
          dtype: of the matrix products, "float32" or "bfloat16".
          devices: all local ones by default.
          folder: the linker directory that all this came from.

        Raises:
          ElqError: index, model and catalogue do not fit together.
        """
        rows, width = index.shape
        if rows != len(catalogue):
            raise ElqError(
                f"the index has {rows:,} rows, the catalogue {len(catalogue):,}; "
                "encode this catalogue again"
            )
        if width != config.vector_width:
            raise ElqError(
                f"the index has vectors of width {width}, the model of {config.vector_width}; "
                "encode the catalogue with this model's entity encoder"
            )
        if tokenizer.vocab_size > config.question_bert.vocab_size:
            raise ElqError(
                f"the tokenizer has {tokenizer.vocab_size:,} tokens, the question encoder "
                f"{config.question_bert.vocab_size:,}; give the tokenizer it was trained with"
            )
        if dtype not in DTYPES:
            raise ElqError(f"dtype: {dtype!r}; expected one of {DTYPES}")
        self.config, self.tokenizer = config, tokenizer
        self.catalogue, self.index = catalogue, index
        self.settings = settings or LinkingSettings()
        _ = self.max_question_tokens  # for its check
        self._folder = folder
        self._devices = list(devices or devices_lib.local(devices_lib.all_devices()))
        self._params = devices_lib.replicate({"params": params}, self._devices)
        encoder = QuestionEncoder(config, jnp.dtype(dtype))

        def find_mentions(params, input_ids, mask, span_mask, threshold, k, keep_any):
            hidden, logits = encoder.apply(params, input_ids, mask)
            allowed = spans.valid_spans(span_mask, config.max_mention_width)
            logits = jnp.where(allowed, logits, -jnp.inf)
            logits, bounds, keep = spans.prune(logits, k, threshold, keep_any)
            vectors = encoder.apply(params, hidden, bounds, method="mention_vectors")
            return logits, bounds, keep, vectors

        def mention_vectors(params, input_ids, mask, bounds):
            return encoder.apply(params, input_ids, mask, bounds, method="encode_mentions")[1]

        self._find_mentions = devices_lib.parallel(find_mentions, self._devices, static=(5, 6))
        self._mention_vectors = devices_lib.parallel(mention_vectors, self._devices)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        index: str = "auto",
        dtype: str = "float32",
        devices: Sequence[jax.Device] | None = None,
        **settings: Any,
    ) -> EntityLinker:
        """Opens a linker directory.

        Compiled programs are kept on disk, see `devices.use_compilation_cache`.

        Args:
          path: written by `python -m elq_jax.train` or `save_pretrained`.
          index: "exact", "scann", or "auto": ScaNN if such an index was built, else exact.
          dtype: of the encoder's matrix products, "float32" or "bfloat16".
          devices: all local ones by default.
          **settings: changes to the directory's `LinkingSettings`, such as threshold=-2.0.

        Raises:
          ElqError: a part is missing or broken, or the parts are not of one another.
        """
        devices_lib.use_compilation_cache()
        path = pathlib.Path(path).absolute()
        config, linking = directory.load_config(path)
        try:
            saved = LinkingSettings.from_dict(linking)
        except ElqError as error:
            raise DataError(f'"linking": {error}', path / directory.CONFIG) from error
        params = directory.load_params(path, ("question",))["question"]
        catalogue = Catalogue.open(path / directory.CATALOGUE)
        embeddings = directory.open_embeddings(path, catalogue)
        return cls(
            config,
            params,
            Tokenizer.from_pretrained(path),
            catalogue,
            open_index(path / directory.INDEX, embeddings, index, devices),
            saved.replace(**settings),
            dtype=dtype,
            devices=devices,
            folder=path,
        )

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Writes a linker directory with these settings; big files are linked where possible.

        Raises:
          ElqError: this linker was not opened from a directory, or `path` holds something else.
        """
        if self._folder is None:
            raise ElqError(
                "this linker was put together in memory; write its parts with "
                "elq_jax.linking.directory.write_linker"
            )
        directory.copy_linker(self._folder, path, self.settings.to_dict())

    def with_params(self, params: Mapping[str, Any]) -> EntityLinker:
        """The same linker with other question-encoder parameters; nothing is compiled again."""
        other = copy.copy(self)
        other._params = devices_lib.replicate({"params": params}, self._devices)
        other._folder = None
        return other

    def with_settings(self, **changes: Any) -> EntityLinker:
        """The same linker with other `LinkingSettings`, such as threshold=-2.0."""
        other = copy.copy(self)
        other.settings = self.settings.replace(**changes)
        return other

    @property
    def max_question_tokens(self) -> int:
        """T at most: the settings' own, or the model's.

        Raises:
          ElqError: the encoder has not so many positions.
        """
        size, positions = self.settings.max_question_tokens, self.config.question_bert.max_positions
        if size is None:
            return self.config.max_question_tokens
        if size > positions:
            raise ElqError(
                f"max_question_tokens: {size}; expected 3 to {positions} (the encoder's positions)"
            )
        return size

    def __call__(self, text: str, threshold: float | None = None) -> list[Link]:
        """Links one question; see `link_batch`."""
        return self.link_batch([text], threshold)[0]

    def link_batch(
        self, texts: Iterable[str], threshold: float | None = None, batch_size: int = 64
    ) -> list[list[Link]]:
        """Links questions.

        Args:
          texts: any strings. A text of more than `max_question_tokens` tokens is cut, with a
            warning that says where.
          threshold: instead of the settings' own.
          batch_size: questions encoded at a time.

        Returns:
          for each question its links in the order of the text, without overlaps.
        """
        scored = self.score_batch(texts, threshold, batch_size)
        for question in scored:
            if question.encoded.truncated_at is not None:
                warnings.warn(
                    f"only the first {question.encoded.truncated_at} of {len(question.text)} "
                    f"characters are linked (max_question_tokens = {self.max_question_tokens}): "
                    f"{question.text[:40]!r}...",
                    stacklevel=2,
                )
        return self.decode(scored, threshold)

    def score_batch(
        self, texts: Iterable[str], threshold: float | None = None, batch_size: int = 64
    ) -> list[ScoredQuestion]:
        """Runs the model and the index; `decode` can then be called at any threshold from here up.

        Args:
          texts: any strings.
          threshold: lowest threshold to be asked for later; the settings' own by default.
          batch_size: questions encoded at a time.
        """
        texts = _as_list(texts)
        return self.score_encoded(texts, self.encode(texts), threshold, batch_size)

    def encode(self, texts: Iterable[str]) -> list[EncodedQuestion]:
        """Tokens of questions, cut to `max_question_tokens`."""
        return self.tokenizer.encode_questions(
            _as_list(texts),
            self.max_question_tokens,
            special_tokens_in_text=self.settings.special_tokens_in_text,
        )

    def score_encoded(
        self,
        texts: Sequence[str],
        encoded: Sequence[EncodedQuestion],
        threshold: float | None = None,
        batch_size: int = 64,
    ) -> list[ScoredQuestion]:
        """As `score_batch`, for questions whose tokens are given."""
        settings = self._settings(threshold)
        questions: list[Any] = [None] * len(encoded)
        batches = self._batches(encoded, batch_size)
        for start in range(0, len(batches), _BATCHES_IN_FLIGHT):
            group = batches[start : start + _BATCHES_IN_FLIGHT]
            # All are dispatched before the first result is waited for, and searched together.
            outputs = [
                self._dispatch([encoded[i] for i in batch.indices], batch, settings)
                for batch in group
            ]
            results = [
                devices_lib.merge(output, self._devices, len(batch.indices))
                for batch, output in zip(group, outputs, strict=True)
            ]
            scores, rows = self._search(
                np.concatenate([vectors[keep] for _, _, keep, vectors in results])
            )
            first = 0
            for batch, (logits, bounds, keep, _) in zip(group, results, strict=True):
                for i, index in enumerate(batch.indices):
                    kept = keep[i]
                    last = first + int(kept.sum())
                    questions[index] = ScoredQuestion(
                        texts[index],
                        encoded[index],
                        logits[i][kept],
                        bounds[i][kept],
                        scores[first:last],
                        rows[first:last],
                        settings.threshold,
                    )
                    first = last
        return questions

    def decode(
        self, scored: Sequence[ScoredQuestion], threshold: float | None = None
    ) -> list[list[Link]]:
        """Links of scored questions, in the order of the text; fast, no model is run.

        Raises:
          ElqError: the threshold is below the one the questions were scored at.
        """
        decoded = self.decode_tokens(scored, threshold)
        found = {int(row) for links in decoded for link in links for row in link.rows}
        rows = sorted(found - {_NO_ROW})
        names = zip(self.catalogue.titles(rows), self.catalogue.wikidata_ids(rows), strict=True)
        entities = dict(zip(rows, names, strict=True))
        return [
            sorted((self._link(question, one, entities) for one in links), key=lambda x: x.start)
            for question, links in zip(scored, decoded, strict=True)
        ]

    def decode_tokens(
        self,
        scored: Sequence[ScoredQuestion],
        threshold: float | None = None,
        *,
        allow_overlaps: bool = False,
    ) -> list[list[Decoded]]:
        """As `decode`, but token positions and catalogue rows, best score first."""
        settings = self._settings(threshold)
        lowest = max((question.scored_at for question in scored), default=-np.inf)
        if settings.threshold < lowest:
            raise ElqError(
                f"threshold {settings.threshold:g} is below {lowest:g}, at which the questions "
                "were scored; score them again at the lower one"
            )
        if not scored:
            return []
        k = max(1, *(len(question.mention_logits) for question in scored))
        candidates = self._num_candidates()
        shape = (len(scored), k)
        logits = np.full(shape, -np.inf, np.float32)
        bounds = np.zeros((*shape, 2), np.int32)
        keep = np.zeros(shape, bool)
        scores = np.zeros((*shape, candidates), np.float32)
        rows = np.full((*shape, candidates), -1, np.int32)
        for i, question in enumerate(scored):
            n = len(question.mention_logits)
            logits[i, :n], bounds[i, :n], keep[i, :n] = question.mention_logits, question.bounds, 1
            scores[i, :n], rows[i, :n] = question.candidate_scores, question.candidate_rows
        return decode_batch(
            logits,
            bounds,
            keep,
            scores,
            rows,
            settings.threshold,
            settings.threshold_type,
            settings.mention_threshold,
            lengths=[len(question.encoded.ids) for question in scored],
            allow_special_tokens=settings.allow_special_tokens,
            allow_overlaps=allow_overlaps,
        )

    def candidates_at(
        self, texts: Sequence[str], bounds: Sequence[np.ndarray], batch_size: int = 64
    ) -> list[np.ndarray]:
        """Candidates of given spans (disambiguation only).

        Args:
          texts: questions.
          bounds: for each an array [M, 2] of inclusive token positions ([CLS] is 0).
          batch_size: questions encoded at a time.

        Returns:
          for each question the candidate rows [M, C] int32, best first.

        Raises:
          ElqError: not as many bounds as texts, or positions that a question does not have.
        """
        vectors = self.vectors_at(texts, bounds, batch_size)
        counts = [len(one) for one in vectors]
        _, rows = self._search(np.concatenate([*vectors, self._no_vectors()]))
        return np.split(rows, np.cumsum(counts)[:-1]) if counts else []

    def vectors_at(
        self, texts: Sequence[str], bounds: Sequence[np.ndarray], batch_size: int = 64
    ) -> list[np.ndarray]:
        """Query vectors of given spans: for each question [M, D] float32; see `candidates_at`."""
        encoded = self.encode(texts)
        _check_bounds(encoded, bounds)
        most = max((len(one) for one in bounds), default=1)
        most = 1 << max(most - 1, 0).bit_length()  # few widths, few compilations
        found = [self._no_vectors()] * len(encoded)
        for batch in self._batches(encoded, batch_size):
            arrays = self._padded([encoded[i] for i in batch.indices], batch)
            arrays["bounds"] = np.zeros((batch.size, most, 2), np.int32)
            for i, index in enumerate(batch.indices):
                arrays["bounds"][i, : len(bounds[index])] = bounds[index]
            arrays = devices_lib.split(arrays, self._devices)
            vectors = self._mention_vectors(
                self._params, arrays["input_ids"], arrays["mask"], arrays["bounds"]
            )
            vectors = devices_lib.merge(vectors, self._devices, len(batch.indices))
            for i, index in enumerate(batch.indices):
                found[index] = vectors[i, : len(bounds[index])]
        return found

    def _no_vectors(self) -> np.ndarray:
        return np.zeros((0, self.config.vector_width), np.float32)

    def _settings(self, threshold: float | None) -> LinkingSettings:
        if threshold is None:
            return self.settings
        return self.settings.replace(threshold=threshold)

    def _num_candidates(self) -> int:
        return min(self.settings.num_candidates, len(self.catalogue))

    def _batches(self, encoded: Sequence[EncodedQuestion], batch_size: int):
        lengths = [len(one.ids) for one in encoded]
        longest = self.max_question_tokens
        buckets = [*(size for size in LENGTH_BUCKETS if size < longest), longest]
        return length_sorted_batches(lengths, batch_size, buckets, BATCH_BUCKETS)

    def _padded(self, encoded: Sequence[EncodedQuestion], batch) -> dict[str, np.ndarray]:
        tokens = [one.ids for one in encoded]
        input_ids, mask = pad_tokens(tokens, batch.length, batch.size, self.tokenizer.pad_id)
        return {"input_ids": input_ids, "mask": mask}

    def _dispatch(self, encoded: Sequence[EncodedQuestion], batch, settings: LinkingSettings):
        """Starts the encoder on one batch; returns device arrays that are not waited for."""
        arrays = self._padded(encoded, batch)
        if settings.special_tokens_in_text:
            # A literal [PAD] in a question is padding to the original.
            arrays["mask"] &= arrays["input_ids"] != self.tokenizer.pad_id
        span_mask = arrays["mask"].copy()
        if not settings.allow_special_tokens:
            span_mask[:, 0] = False
            for i, one in enumerate(encoded):
                span_mask[i, len(one.ids) - 1] = False
        arrays = devices_lib.split(arrays | {"span_mask": span_mask}, self._devices)
        return self._find_mentions(
            self._params,
            arrays["input_ids"],
            arrays["mask"],
            arrays["span_mask"],
            np.full(len(devices_lib.local(self._devices)), settings.prune_threshold, np.float32),
            min(settings.max_mentions, batch.length**2),
            settings.threshold_type != "joint",
        )

    def _search(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        candidates = self._num_candidates()
        if not len(vectors):
            empty = np.zeros((0, candidates))
            return empty.astype(np.float32), empty.astype(np.int32)
        return self.index.search(vectors, candidates)

    def _link(
        self,
        question: ScoredQuestion,
        decoded: Decoded,
        entities: Mapping[int, tuple[str, str | None]],
    ) -> Link:
        start, end = character_span(
            decoded.start, decoded.end, question.encoded.offsets, question.text
        )
        candidates = tuple(
            Candidate(row, *entities[row], score)
            for row, score in zip(decoded.rows.tolist(), decoded.scores.tolist(), strict=True)
            if row != _NO_ROW
        )
        best = candidates[0]
        return Link(
            start,
            end,
            question.text[start:end],
            best.title,
            best.wikidata_id,
            best.entity,
            decoded.score,
            decoded.mention_score,
            candidates,
        )
