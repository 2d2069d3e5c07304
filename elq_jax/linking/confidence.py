"""Says how probably a link is right, and which mentions are of nothing in the catalogue.

Three logistic regressions read the same few features of a span and of its first candidate:

  mention   whether the span is exactly a mention, whatever of; of spans that overlap, the most
            probable mention is chosen
  link      whether the first candidate of a chosen span is right, as `link` and `evaluate` count
            links: the span overlaps a mention of that entity
  nil       whether a chosen span is exactly a mention of something that is not in the catalogue

`training.confidence` fits them on questions that were held out of training. The maximum of the
likelihood is calibrated on them by itself (mean probability and share of right links agree for
every feature), so nothing is rescaled afterwards. Everything is computed for all spans of a batch
at once.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Annotated

import msgspec
import numpy as np

from elq_jax.core.errors import DataError
from elq_jax.entities.name_index import KINDS
from elq_jax.linking.candidates import FEATURES as CANDIDATE_FEATURES
from elq_jax.linking.candidates import Candidates
from elq_jax.linking.decoding import joined, joint_scores, overlaps, pairs_within
from elq_jax.linking.links import Confidence, ScoredSpans
from elq_jax.storage.checksums import read_json
from elq_jax.storage.files import write_json

FORMAT_VERSION = 1
BIAS = "bias"

FEATURES = {
    "logit": "span logit",
    "mention": "log p(mention)",
    "entity": "log p(entity | mention) of the first candidate",
    "margin": "entity less the same of the second candidate, at most 6",
    "product": "inner product of mention and first candidate",
    "words": "number of words",
    "is_name": "whether the span is a name in the catalogue",
    "is_its_name": "whether the span is a name of the first candidate",
    "title_in_span": "whether all words of the candidate's title are in the span",
    "in_longer_name": "whether a longer span that overlaps is a name in the catalogue",
    "in_longer_mention": "whether a longer span that overlaps has the same first candidate",
    "rival": "joint score less the best of spans that overlap, from -6 to 6; 6 if there are none",
    "others": "best joint score of spans of the question that do not overlap, at least -6",
}
"""Features of a span, with what they say. Capital letters are none of them: they said much in the
style of question that they were fitted on, and misled in others."""

_FARTHEST = 6.0


class LinkWeights(msgspec.Struct, frozen=True, kw_only=True):
    """The file confidence.json of a linker directory.

    Attributes:
      format_version: version of the file, `FORMAT_VERSION`.
      mention: weight of each feature, and the bias, for log-odds that the span is a mention; what
        is not named has the weight 0.
      link: the same, for the first candidate of a chosen span being right.
      nil: the same, for mentions of something outside the catalogue; None: the linker was fitted
        without such mentions, and cannot say.
      nil_threshold: probability that a mention of something outside the catalogue must exceed.
      fitted_on: number of spans that the weights were fitted on.
    """

    format_version: Annotated[int, msgspec.Meta(ge=FORMAT_VERSION, le=FORMAT_VERSION)] = (
        FORMAT_VERSION
    )
    mention: dict[str, float]
    link: dict[str, float]
    nil: dict[str, float] | None = None
    nil_threshold: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5
    fitted_on: int = 0

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> LinkWeights:
        """Reads confidence.json.

        Raises:
          DataError: the file is damaged, of another version, or names features that there are not.
        """
        again = "copy the linker directory again"
        weights = read_json(path, cls, again)
        for part in ("mention", "link", "nil"):
            for name, weight in (getattr(weights, part) or {}).items():
                if name not in (*FEATURES, BIAS) or not np.isfinite(weight):
                    raise DataError(
                        f'"{part}": {name!r} is {weight}, expected finite weights of '
                        f"{', '.join((*FEATURES, BIAS))}; {again}",
                        pathlib.Path(path),
                    )
        return weights

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes confidence.json."""
        write_json(path, msgspec.to_builtins(self))


def log_odds(features: np.ndarray, weights: Mapping[str, float]) -> np.ndarray:
    """Returns the log-odds [n] float64 of a logistic regression.

    Args:
      features: [n, F] float64, in the order of `FEATURES`.
      weights: weights by the name of their feature, and the bias.
    """
    return features @ [weights.get(name, 0.0) for name in FEATURES] + weights.get(BIAS, 0.0)


class LinkScorer:
    """Says of scored spans how probably each is a mention and its first candidate right.

    Args:
      weights: weights of the features.
    """

    def __init__(self, weights: LinkWeights):
        self.weights = weights

    def __call__(self, spans: ScoredSpans, candidates: Candidates) -> Confidence:
        """Returns the probabilities of spans.

        Args:
          spans: all n spans found in their questions, with rescored candidates.
          candidates: the candidates that these were chosen from.
        """
        features = span_features(spans, candidates)
        nil, is_nil = None, None
        if self.weights.nil is not None:
            nil = log_sigmoid(log_odds(features, self.weights.nil))
            is_nil = np.exp(nil) > self.weights.nil_threshold
        return Confidence(
            log_odds(features, self.weights.mention),
            log_sigmoid(log_odds(features, self.weights.link)),
            nil,
            is_nil,
        )


def log_sigmoid(values: np.ndarray) -> np.ndarray:
    """Returns log(1 / (1 + exp(-x))) of each value x, below 0 and monotone."""
    with np.errstate(invalid="ignore"):  # NaN of spans without a candidate stays NaN.
        return -np.logaddexp(0.0, -values)


def span_features(spans: ScoredSpans, candidates: Candidates) -> np.ndarray:
    """Computes the features of spans, see `FEATURES`.

    Args:
      spans: all n spans found in their questions, with rescored candidates.
      candidates: the candidates that these were chosen from.

    Returns:
      [n, F] float64, with NaN for spans without a candidate. To others, the joint score of such a
      span is log p(mention).
    """
    count = len(spans.question)
    joint, mention_scores = joint_scores(spans)
    entity = joint - mention_scores[:, None]
    second = entity[:, 1] if entity.shape[1] > 1 else np.full(count, -np.inf)
    is_first = candidates.rows == spans.rows[candidates.mentions, 0]
    has_name = candidates.features[:, _KINDS].any(axis=1)
    is_name = np.bincount(candidates.mentions, has_name, count) > 0

    def of_first(values: np.ndarray) -> np.ndarray:
        column = np.zeros(count)  # A span without a candidate has a NaN in its other features.
        column[candidates.mentions[is_first]] = values[is_first]
        return column

    columns = {
        "logit": spans.logits,
        "mention": mention_scores,
        "entity": entity[:, 0],
        "margin": np.minimum(entity[:, 0] - second, _FARTHEST),
        "product": of_first(candidates.products),
        "words": _word_counts(spans),
        "is_name": is_name,
        "is_its_name": of_first(has_name),
        "title_in_span": of_first(candidates.features[:, _TITLE_IN_MENTION]),
        **_neighbour_features(
            spans, np.where(spans.rows[:, 0] < 0, mention_scores, joint[:, 0]), is_name
        ),
    }
    return np.stack([columns[name] for name in FEATURES], axis=1).astype(np.float64)


*_KINDS, _TITLE_IN_MENTION = (
    list(CANDIDATE_FEATURES).index(name) for name in (*KINDS, "title_in_mention")
)


def _word_counts(spans: ScoredSpans) -> np.ndarray:
    """Returns the number of words [n] of each span; words are those of the tokenizer."""
    words, starts = joined([question.words for question in spans.encoded])
    starts = starts[spans.question]
    return words[starts + spans.bounds[:, 1]] - words[starts + spans.bounds[:, 0]] + 1


def _neighbour_features(
    spans: ScoredSpans, joint: np.ndarray, is_name: np.ndarray
) -> Mapping[str, np.ndarray]:
    """Returns the features that compare spans with others of the same window of a question.

    Args:
      spans: n spans.
      joint: [n] float64, joint score of each with its first candidate, if it has one.
      is_name: [n] bool, whether the span is a name in the catalogue.
    """
    count = len(joint)
    left, right = pairs_within(spans.window)
    overlap = overlaps(spans.bounds[left], spans.bounds[right])
    width = spans.bounds[:, 1] - spans.bounds[:, 0]
    is_longer = overlap & (width[right] > width[left])
    same = spans.rows[left, 0] == spans.rows[right, 0]

    def any_of(mask: np.ndarray) -> np.ndarray:
        return np.bincount(left, mask, count) > 0

    def best_of(mask: np.ndarray) -> np.ndarray:
        best = np.full(count, -np.inf)
        np.fmax.at(best, left[mask], joint[right[mask]])
        return best

    return {
        "in_longer_name": any_of(is_longer & is_name[right]),
        "in_longer_mention": any_of(is_longer & same),
        "rival": np.clip(joint - best_of(overlap), -_FARTHEST, _FARTHEST),
        "others": np.maximum(best_of(~overlap), -_FARTHEST),
    }
