"""The public API: questions in, links out."""

from __future__ import annotations

import copy
import dataclasses
import os
import pathlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elq_jax.core import devices as devices_lib
from elq_jax.core.devices import COMPUTE_DTYPES
from elq_jax.core.errors import DataError, ElqError
from elq_jax.entities.catalogue import Catalogue
from elq_jax.linking import directory
from elq_jax.linking.decoding import Decoded, character_span, decode_batch
from elq_jax.linking.links import Candidate, Link
from elq_jax.linking.settings import LinkingSettings
from elq_jax.model import spans
from elq_jax.model.bundle import Model, read_description
from elq_jax.model.elq import QuestionEncoder
from elq_jax.retrieval import Index, open_index
from elq_jax.storage import layout
from elq_jax.text.padding import BATCH_BUCKETS, LENGTH_BUCKETS, length_sorted_batches, pad_tokens
from elq_jax.text.tokenization import EncodedQuestion

_NO_ROW = -1  # where an index finds fewer candidates than it was asked for

_BATCHES_IN_FLIGHT = 16  # bounds memory, however many questions are given at once


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
      model: model whose question encoder is used.
      config: what the model computes.
      settings: defaults of linking; replace it to change them for good.
      tokenizer: of questions.
      catalogue: the entities.
      index: what is searched.
    """

    def __init__(
        self,
        model: Model,
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
          model: model whose question encoder is used.
          catalogue: E entities.
          index: over their E embeddings.
          settings: defaults of linking.
          dtype: of the matrix products, "float32" or "bfloat16".
          devices: all local ones by default.
          folder: the linker directory that all this came from.

        Raises:
          ElqError: index, model and catalogue do not fit together.
        """
        config, tokenizer = model.config, model.tokenizer
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
        if dtype not in COMPUTE_DTYPES:
            raise ElqError(f"dtype: {dtype!r}; expected one of {COMPUTE_DTYPES}")
        self.model, self.config, self.tokenizer = model, config, tokenizer
        self.catalogue, self.index = catalogue, index
        self.settings = settings or LinkingSettings()
        _ = self.max_question_tokens  # for its check
        self._folder = folder
        self._devices = list(devices or devices_lib.local(devices_lib.all_devices()))
        self._params = devices_lib.replicate({"params": model.params["question"]}, self._devices)
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
        linking = read_description(path).linking
        try:
            saved = LinkingSettings.from_dict(linking)
        except ElqError as error:
            raise DataError(f'"linking": {error}', path / layout.CONFIG) from error
        model = Model.open(path, ("question",))
        catalogue = Catalogue.open(path / layout.CATALOGUE)
        embeddings = directory.open_embeddings(path, catalogue)
        return cls(
            model,
            catalogue,
            open_index(path / layout.INDEX, embeddings, index, devices),
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
