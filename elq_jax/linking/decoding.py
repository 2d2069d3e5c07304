"""Chooses mentions that do not overlap from scored spans, in NumPy.

A decoder of your own is one file: a frozen dataclass whose fields are its settings.

    from elq_jax.linking.decoding import DECODERS, Decoder

    @DECODERS.register("mine")
    @dataclasses.dataclass(frozen=True)
    class Mine(Decoder): ...

    EntityLinker.from_pretrained("my_linker", decoder="my_module:mine")
"""

from __future__ import annotations

import abc
import collections
import dataclasses
import unicodedata
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from elq_jax.core.errors import ElqError
from elq_jax.core.registry import Registry
from elq_jax.entities.catalogue import Catalogue
from elq_jax.linking.links import Candidate, Link, ScoredSpans
from elq_jax.text.corrections import JOINERS
from elq_jax.text.tokenization import EncodedQuestion

DECODERS: Registry[type[Decoder]] = Registry("decoder", "elq_jax.linking.decoding")

# Roles that a token may have in a mention; a token has a sum of them.
INSIDE, FIRST, LAST, MEANINGFUL = 1, 2, 4, 8
_BRACKETS = ["()", "[]", "{}", "“”", "‘’", "«»", "（）", "「」", "『』", "《》", "【】"]
_QUOTES = "\"'"
_COMMAS = ",;:，、；：،؛"
_BLOCK = 1024  # places of a text whose mentions are kept in one number, see `accept`


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """Holds the mentions of Q questions, one row per mention, those of a question best first.

    Attributes:
      question: [m] int32, number of the question, ascending.
      bounds: [m, 2] int32, first and last token (inclusive).
      characters: [m, 2] int64, half-open character offsets in the question.
      scores: [m] float64, scores that the mentions were ranked by.
      mention_scores: [m] float64, log p(mention).
      rows: [m, C] int32, candidates, best first; -1 where the index found fewer than C.
      candidate_scores: [m, C] float64, their joint log-probabilities; -inf where the row is -1.
      is_nil: [m] bool, whether the mention is of something outside the catalogue; None: none is.
      probabilities: [m] float64, probability that the link is right; None: not known.
    """

    question: np.ndarray
    bounds: np.ndarray
    characters: np.ndarray
    scores: np.ndarray
    mention_scores: np.ndarray
    rows: np.ndarray
    candidate_scores: np.ndarray
    is_nil: np.ndarray | None = None
    probabilities: np.ndarray | None = None

    def of(self, number: int) -> slice:
        """Returns the rows of one question."""
        return slice(*np.searchsorted(self.question, [number, number + 1]).tolist())


class Decoder(abc.ABC):
    """Decides which spans are searched for, and which of the scored spans become mentions.

    Attributes:
      log_probabilities: whether the threshold is compared with log-probabilities.
      needs_confidence: whether the spans need a `Confidence`, and so the linker a `LinkScorer`.
      special_tokens_in_text: whether a literal "[SEP]" in a question is read as that token.
      keep_any: whether the best spans of a question are searched for where none passes the
        threshold.
      reads_windows: whether texts that are longer than the encoder reads at once are read in
        windows; otherwise they are cut.
      threshold_filters: whether the links at a threshold are those at any lower one whose score is
        above it. Links of a low threshold can then be shown at all higher ones without decoding.
    """

    log_probabilities: ClassVar[bool] = True
    needs_confidence: ClassVar[bool] = False
    special_tokens_in_text: ClassVar[bool] = False
    keep_any: ClassVar[bool] = False
    reads_windows: ClassVar[bool] = True
    threshold_filters: ClassVar[bool] = False

    def prune_threshold(self, threshold: float) -> float:
        """Returns the log p(mention) that a span must exceed to be searched for.

        By default this is `threshold`, which loses no link, since a joint score is never above
        log p(mention).
        """
        return threshold

    def searches(self, window: np.ndarray, bounds: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """Returns for which spans the whole catalogue is searched; by default, for all.

        The candidates of other spans are the entities that have them as a name, where candidates
        are rescored. Without a candidate, a span is no mention.

        Args:
          window: [n] int, number of the window of each span.
          bounds: [n, 2] int, first and last token (inclusive).
          logits: [n] float32, span logits.

        Returns:
          [n] bool.
        """
        return np.ones(len(window), bool)

    def roles(self, encoded: Sequence[EncodedQuestion], unknown_id: int) -> np.ndarray:
        """Returns the roles that each token may have; no other span takes one of the K places.

        A span may be a mention if 1. all its tokens are INSIDE, 2. the first is FIRST, 3. the last
        is LAST, 4. one of them is MEANINGFUL. This method allows all spans without [CLS] and [SEP]
        whose tokens are not all [UNK].

        Args:
          encoded: tokens of questions.
          unknown_id: id of [UNK], which stands for any word outside the vocabulary.

        Returns:
          [n] uint8, roles of the tokens of all questions, one question after the other.
        """
        ids, starts = joined([question.ids for question in encoded])
        roles = np.full(len(ids), INSIDE | FIRST | LAST, np.uint8)
        roles[ids != unknown_id] |= MEANINGFUL
        roles[starts[:-1]] = roles[starts[1:] - 1] = 0
        return roles

    def decode(self, spans: ScoredSpans, threshold: float) -> Decoded:
        """Chooses mentions, after a check that all spans above the threshold were searched for.

        Raises:
          ElqError: the threshold is below the one the questions were scored at.
        """
        if threshold < spans.scored_at:
            raise ElqError(
                f"threshold {threshold:g} is below {spans.scored_at:g}, at which the questions "
                "were scored; score them again at the lower threshold"
            )
        return self(spans, threshold)

    @abc.abstractmethod
    def __call__(self, spans: ScoredSpans, threshold: float) -> Decoded:
        """Chooses mentions.

        Args:
          spans: scored spans with their candidates.
          threshold: score that a mention must exceed; -inf keeps everything.
        """


@DECODERS.register("joint")
@dataclasses.dataclass(frozen=True)
class Joint(Decoder):
    """Accepts mentions from the highest joint score down, if they share no character.

    The joint score of a mention and a candidate is the log softmax over the mention's C retrieved
    candidates plus the log sigmoid of the span logit (Li et al., 2020, section 2.3; the softmax
    runs over the retrieved candidates, not over the catalogue, as in the original code). The score
    of a mention is that of its best candidate, and must exceed the threshold. Of equal scores, the
    span that comes first wins. All comparisons are strict, in float64.

    Attributes:
      whole_words: whether no mention may begin or end inside a word ("beatles" in "beatlesmania").
    """

    whole_words: bool = True

    # A span below the threshold comes last, so it takes no place of one above.
    threshold_filters: ClassVar[bool] = True

    def roles(self, encoded: Sequence[EncodedQuestion], unknown_id: int) -> np.ndarray:
        """Returns roles as in the base class; `whole_words` keeps the tokens of a word together."""
        roles = super().roles(encoded, unknown_id)
        if self.whole_words:
            words, _ = joined([question.words for question in encoded])
            inside_word = words[1:] == words[:-1]
            roles[1:][inside_word] &= 255 - FIRST
            roles[:-1][inside_word] &= 255 - LAST
        return roles

    def __call__(self, spans: ScoredSpans, threshold: float) -> Decoded:
        """Chooses mentions as the class says; mentions whose score is NaN are dropped."""
        joint, mention_scores = joint_scores(spans)
        scores = joint[:, 0]
        order = best_first(spans, scores, scores > threshold)
        characters = character_spans(spans, order)
        accepted = accept(spans.question[order], characters)
        accepted &= characters[:, 0] < characters[:, 1]
        return take(spans, order[accepted], characters[accepted], scores, mention_scores, joint)


@DECODERS.register("confidence")
@dataclasses.dataclass(frozen=True)
class Confident(Joint):
    """Accepts the most probable mentions, and scores them by the probability that a link is right.

    1. Mentions are accepted from the most probable one down, if they share no character.
    2. Their scores are log-probabilities that the link is right, and must be above the threshold.
       So a higher threshold leaves links out and changes no other.

    Emoji, commas and unpaired brackets at the ends of a mention are left out of it, see
    `trim_ends`. Spans are considered above `floor`, whatever the threshold, since the probabilities
    depend on the other spans of a question. Spans whose score is NaN are dropped.

    A search costs much more than anything else that is done for a span. So unlikely spans are
    compared only with the entities that have them as a name, and not with the whole catalogue.

    Attributes:
      nil: whether mentions of something that is not in the catalogue are reported too, as links
        without an entity. Where the linker says so of a mention, this is its only link.
      floor: log p(mention) that a span must exceed to be considered.
      search_floor: log p(mention) that a span must exceed to be searched for.
      search_margin: how much lower the log p(mention) of a span may be than that of a span that
        overlaps, if it is to be searched for.
    """

    nil: bool = False
    floor: float = -5.0
    search_floor: float = -3.0
    search_margin: float = 1.0

    needs_confidence: ClassVar[bool] = True

    def prune_threshold(self, threshold: float) -> float:
        """Returns the floor: which spans are considered does not depend on the threshold."""
        return self.floor

    def searches(self, window: np.ndarray, bounds: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """Returns which spans are likely enough, by themselves and beside those that overlap."""
        scores = log_p_mention(logits)
        left, right = pairs_within(window)
        overlap = overlaps(bounds[left], bounds[right])
        best = np.full(len(scores), -np.inf)
        np.maximum.at(best, left[overlap], scores[right[overlap]])
        return (scores > self.search_floor) & (scores > best - self.search_margin)

    def __call__(self, spans: ScoredSpans, threshold: float) -> Decoded:
        """Chooses mentions as the class says."""
        confidence = spans.confidence
        scores, is_nil = confidence.links, np.zeros(len(spans.question), bool)
        if self.nil:
            is_nil = confidence.is_nil
            scores = np.where(is_nil, confidence.nil, scores)
        order, characters = without_overlaps(spans, confidence.mentions)
        by_score = np.lexsort((-scores[order], spans.question[order]))
        by_score = by_score[scores[order[by_score]] > threshold]
        order, characters = order[by_score], characters[by_score]
        texts = [spans.texts[number] for number in spans.question[order].tolist()]
        trimmed = [trim_ends(*place) for place in zip(texts, *characters.T.tolist(), strict=True)]
        characters = np.array(trimmed, np.int64).reshape(-1, 2)
        joint, mention_scores = joint_scores(spans)
        return dataclasses.replace(
            take(spans, order, characters, scores, mention_scores, joint),
            is_nil=is_nil[order],
            probabilities=np.exp(scores[order]),
        )


def joint_scores(spans: ScoredSpans) -> tuple[np.ndarray, np.ndarray]:
    """Computes the joint log-probability of every span and candidate.

    Returns:
      [n, C] float64, -inf where there is no candidate (NaN where there is none at all or an inner
      product is NaN), and log p(mention) [n] float64.
    """
    products = np.where(spans.rows < 0, -np.inf, spans.scores.astype(np.float64))
    mention_scores = log_p_mention(spans.logits)
    with np.errstate(invalid="ignore"):
        log_normalizer = np.logaddexp.reduce(products, axis=-1, keepdims=True)
        return products - log_normalizer + mention_scores[:, None], mention_scores


def log_p_mention(logits: np.ndarray) -> np.ndarray:
    """Returns log p(mention) of span logits [n], in float64."""
    # NumPy's, since scipy.special takes a quarter of a second to import.
    return -np.logaddexp(0.0, -logits.astype(np.float64))


def pairs_within(groups: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lists all ordered pairs of different members of the same group.

    Args:
      groups: [n] int, number of the group of each member.

    Returns:
      two arrays [p] int64, the members of each pair.

    Example: [0, 0, 3] -> [0, 1], [1, 0].
    """
    order = np.argsort(groups, kind="stable")
    groups = np.asarray(groups)[order]
    first = np.searchsorted(groups, groups)
    sizes = np.searchsorted(groups, groups, "right") - first
    left = np.repeat(np.arange(len(groups)), sizes)
    place = np.arange(len(left)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    right = first[left] + place
    differ = left != right
    return order[left[differ]], order[right[differ]]


def overlaps(bounds: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns whether spans of the same question share a token.

    Args:
      bounds: [n, 2] int, first and last token (inclusive).
      others: [n, 2] int, those of another span each.

    Returns:
      [n] bool.
    """
    return (bounds[:, 0] <= others[:, 1]) & (others[:, 0] <= bounds[:, 1])


def best_first(spans: ScoredSpans, scores: np.ndarray, passes: np.ndarray) -> np.ndarray:
    """Returns the numbers of passing spans, question by question, highest score first."""
    order = np.flatnonzero(passes)
    return order[np.lexsort((-scores[order], spans.question[order]))]  # stable


def without_overlaps(spans: ScoredSpans, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Accepts spans from the highest score of a question down, if they share no character.

    Args:
      spans: n scored spans.
      scores: [n] float64; spans whose score is NaN are left out.

    Returns:
      numbers [m] of the accepted spans, question by question, highest score first, and their
      character offsets [m, 2] int64.
    """
    order = best_first(spans, scores, ~np.isnan(scores))
    characters = character_spans(spans, order)
    accepted = accept(spans.question[order], characters)
    accepted &= characters[:, 0] < characters[:, 1]
    return order[accepted], characters[accepted]


def accept(question: np.ndarray, extents: np.ndarray) -> np.ndarray:
    """Accepts, in order, each mention that shares no place with an accepted one.

    Args:
      question: [m] int, number of each mention's question.
      extents: [m, 2] int, half-open extents of mentions in it, in characters or tokens.

    Returns:
      [m] bool.

    Example: one question, [[0, 4], [3, 6], [4, 6]] -> [True, False, True].
    """
    # bit i of [number, block]: place i of the block belongs to a mention
    taken: dict[tuple[int, int], int] = collections.defaultdict(int)
    accepted = np.zeros(len(question), bool)
    for i, (number, (start, end)) in enumerate(
        zip(question.tolist(), extents.tolist(), strict=True)
    ):
        blocks = [
            ((number, block), _bits(start - block * _BLOCK, end - block * _BLOCK))
            for block in range(start // _BLOCK, max(end - 1, start) // _BLOCK + 1)
        ]
        if not any(taken[block] & bits for block, bits in blocks):
            for block, bits in blocks:
                taken[block] |= bits
            accepted[i] = True
    return accepted


def _bits(start: int, end: int) -> int:
    """Returns a number whose bits from `start` to `end` - 1 are set, as far as in a block."""
    start, end = max(start, 0), min(end, _BLOCK)
    return (1 << end) - (1 << start)


def take(
    spans: ScoredSpans,
    order: np.ndarray,
    characters: np.ndarray,
    scores: np.ndarray,
    mention_scores: np.ndarray,
    joint: np.ndarray,
) -> Decoded:
    """Makes `Decoded` of the mentions that a decoder chose.

    Args:
      spans: n scored spans.
      order: [m] int, numbers of the chosen spans.
      characters: [m, 2] int, character offsets of the chosen spans.
      scores, mention_scores, joint: [n], [n] and [n, C], as in `Decoded`.
    """
    return Decoded(
        spans.question[order],
        spans.bounds[order],
        characters,
        scores[order],
        mention_scores[order],
        spans.rows[order],
        joint[order],
    )


def decode_known(spans: ScoredSpans, characters: Sequence[Any]) -> Decoded:
    """Returns every span as a mention, in the order of the spans, whatever its score.

    Args:
      spans: n scored spans whose places are known.
      characters: sequences, one per question, of (start, end), half-open character offsets of its
        spans.
    """
    joint, mention_scores = joint_scores(spans)
    offsets = [span for spans_of_question in characters for span in spans_of_question]
    offsets = np.array(offsets, np.int64).reshape(-1, 2)
    return take(spans, np.arange(len(offsets)), offsets, joint[:, 0], mention_scores, joint)


def make_links(texts: Sequence[str], decoded: Decoded, catalogue: Catalogue) -> list[list[Link]]:
    """Makes links of the mentions that a decoder chose, with the names of their entities.

    Args:
      texts: Q questions.
      decoded: their mentions.
      catalogue: catalogue of the entities.

    Returns:
      the links of each question, in the order of `decoded`.

    Raises:
      ElqError: a mention has no candidate.
    """
    is_entity = decoded.rows >= 0  # The index may have found fewer than it was asked for.
    rows, place = np.unique(decoded.rows[is_entity], return_inverse=True)
    titles, wikidata_ids = catalogue.titles(rows), catalogue.wikidata_ids(rows)
    ids = catalogue.ids(rows)
    candidates = [
        Candidate(row, titles[place], wikidata_ids[place], score, ids[place])
        for row, place, score in zip(
            decoded.rows[is_entity].tolist(),
            place.tolist(),
            decoded.candidate_scores[is_entity].tolist(),
            strict=True,
        )
    ]
    ends = np.cumsum(is_entity.sum(axis=1)).tolist()
    links: list[list[Link]] = [[] for _ in texts]
    count, probabilities, is_nil = len(decoded.question), decoded.probabilities, decoded.is_nil
    columns = (
        decoded.question,
        decoded.characters,
        decoded.scores,
        decoded.mention_scores,
        np.full(count, None) if probabilities is None else probabilities,
        np.zeros(count, bool) if is_nil is None else is_nil,
    )
    for first, last, number, (start, end), *scores, probability, nil in zip(
        [0, *ends], ends, *(column.tolist() for column in columns), strict=False
    ):
        mention, own = texts[number][start:end], tuple(candidates[first:last])
        if not own:
            raise ElqError(
                f"the index found no entity for the mention {mention!r}, expected at least one; "
                "build the index again, or take --index=exact"
            )
        best = own[0]
        entity = (None, None, None) if nil else (best.title, best.wikidata_id, best.row)
        own_id = None if nil else best.id
        links[number].append(Link(start, end, mention, *entity, *scores, own, probability, own_id))
    return links


def joined(arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Joins arrays of Q questions, for instance of their tokens.

    Args:
      arrays: arrays [T, ...], one per question.

    Returns:
      [n, ...] all of them, one after the other, and [Q + 1] int64, where each begins and the last
      ends. Without questions, integers [0].
    """
    starts = np.cumsum([0, *map(len, arrays)])
    return np.concatenate(arrays) if len(arrays) else np.zeros(0, np.int32), starts


def character_spans(spans: ScoredSpans, order: np.ndarray) -> np.ndarray:
    """Returns half-open character offsets [m, 2] int64 of spans, see `character_span`."""
    if not len(order):
        return np.zeros((0, 2), np.int64)
    offsets, starts = joined([question.offsets for question in spans.encoded])
    question, bounds = spans.question[order], spans.bounds[order]
    ends = offsets[starts[question][:, None] + bounds]  # [m, 2, 2]: of first and last token
    extents = ends[:, [0, 1], [0, 1]].astype(np.int64)
    has_text = (ends[..., 0] < ends[..., 1]).all(axis=1).tolist()
    for i, (number, (first, last)) in enumerate(
        zip(question.tolist(), extents.tolist(), strict=True)
    ):
        text = spans.texts[number]
        mention = text[first:last]
        if not (has_text[i] and text.isascii() and mention == mention.strip()):
            tokens = spans.encoded[number].offsets
            extents[i] = character_span(*bounds[i].tolist(), tokens, text)
    return extents


def trim_ends(text: str, start: int, end: int) -> tuple[int, int]:
    """Returns the offsets of a mention without what is no part of a name at its ends.

    That is emoji and other symbols, blanks, commas, colons, semicolons, and brackets and quotes
    whose counterpart is not in the mention. A mention of nothing else stays as it is.

    Example: trim_ends("who wrote 🎉dune?", 10, 15) -> (11, 15).
    """
    first, last = start, end
    while first < last and _is_loose(text[first:last], 0):
        first += 1
    while first < last and _is_loose(text[first:last], -1):
        last -= 1
    return (first, last) if first < last else (start, end)


def _is_loose(mention: str, end: int) -> bool:
    """Returns whether the first (`end` 0) or last (-1) character is no part of a name."""
    character = mention[end]
    if character.isalnum():
        return False
    if character in _QUOTES:
        return mention.count(character) % 2 == 1
    for pair in _BRACKETS:
        if character == pair[end]:
            return mention.count(character) > mention.count(pair[-1 - end])
    return character in _COMMAS or character in JOINERS or _is_symbol(character)


def _is_symbol(character: str) -> bool:
    return character.isspace() or unicodedata.category(character) in ("So", "Sk", "Cn", "Cs")


def character_span(start: int, end: int, offsets: np.ndarray, text: str) -> tuple[int, int]:
    """Returns the half-open character offsets of the tokens start..end (inclusive).

    Tokens without characters ([CLS] and [SEP] have offsets (0, 0)) add nothing, so a span of only
    such tokens gives (0, 0). Combining marks that the tokenizer stripped after the last token are
    included ("café" written with U+0301 keeps its accent), white space at either end never is.

    Args:
      start: first token.
      end: last token (inclusive).
      offsets: [T, 2] int, half-open character offsets of each token in `text`.
      text: the question.
    """
    inside = offsets[start : end + 1]
    inside = inside[inside[:, 0] < inside[:, 1]]
    if not len(inside):
        return 0, 0
    first, last = int(inside[:, 0].min()), int(inside[:, 1].max())
    later = offsets[end + 1 :, 0]
    limit = int(later[later >= last].min(initial=len(text)))
    while last < limit and unicodedata.category(text[last]) == "Mn":
        last += 1
    while first < last and text[first].isspace():
        first += 1
    while first < last and text[last - 1].isspace():
        last -= 1
    return first, last
