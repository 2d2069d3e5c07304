"""Fits the probabilities of links on questions that were held out of training.

The three logistic regressions of `linking.confidence` are fitted one after the other: which spans
are mentions first, then, on the spans that are chosen with it, which links are right and which are
of nothing in the catalogue. A penalised likelihood of this kind is concave, so there is one
maximum, and every run finds the same.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from elq_jax.core import devices as devices_lib
from elq_jax.linking.confidence import (
    BIAS,
    FEATURES,
    LinkScorer,
    LinkWeights,
    log_odds,
    span_features,
)
from elq_jax.linking.decoding import Joint, without_overlaps
from elq_jax.linking.linker import EntityLinker
from elq_jax.linking.links import ScoredSpans
from elq_jax.linking.scoring import BATCHES_IN_FLIGHT
from elq_jax.linking.settings import LinkingSettings
from elq_jax.questions.align import align_mentions
from elq_jax.questions.records import Question
from elq_jax.storage import layout
from elq_jax.storage.checksums import read_json
from elq_jax.storage.files import atomic_folder, write_json
from elq_jax.training.candidates import best_threshold_on_dev, linker_of
from elq_jax.training.hooks import say

if TYPE_CHECKING:
    from elq_jax.training.run import Run

LEAST_LINKS = 50  # right ones, to fit on; as many mentions of nothing in the catalogue, for `nil`
PENALTY = 1.0  # of half the squared weight of a feature of unit standard deviation
_BATCH_SIZE = 64
_FOLDER, _LINKING = "confidence", "linking.json"


def fit_link_scorer(run: Run) -> None:
    """Gives a run its link scorer, the decoder that uses it, and the threshold that is best on dev.

    The weights are fitted on the questions of `Run.questions_to_fit`, and kept in the workdir.
    Where candidates are not rescored, the decoder is not "joint", or there are too few links to fit
    on, the run is left as it is.

    Args:
      run: run with a candidate scorer.
    """
    settings = LinkingSettings.from_dict(run.linking)
    if run.candidate_scorer is None or type(settings.decoding) is not Joint:
        return
    run.workdir.fetch(_FOLDER, again=True)
    folder = run.folder / _FOLDER
    if not _is_ours(folder):
        linker = linker_of(run, settings)
        weights = fit_link_weights(linker, run.questions_to_fit())
        if weights is None:
            say(
                f"links get no probabilities: fewer than {LEAST_LINKS} links of {run.fitted_on()} "
                "are right"
            )
            return
        linker.link_scorer = LinkScorer(weights)
        linking = _with_decoder(run, linker)
        if devices_lib.is_main():
            with atomic_folder(folder, "a fitted link scorer", _is_ours) as temporary:
                weights.write(temporary / layout.CONFIDENCE)
                write_json(temporary / _LINKING, linking)
            run.workdir.publish(_FOLDER)
        devices_lib.wait_for_all("probabilities of links are fitted")
        run.workdir.fetch(_FOLDER, again=True)
    again = "remove the folder; it is made again"
    run.linking = read_json(folder / _LINKING, dict[str, Any], again)
    run.link_scorer = LinkScorer(LinkWeights.read(folder / layout.CONFIDENCE))


def _is_ours(folder: pathlib.Path) -> bool:
    return (folder / _LINKING).is_file()


def _with_decoder(run: Run, linker: EntityLinker) -> dict[str, Any]:
    """Returns the settings of linking with the decoder of probabilities and its best threshold."""
    joint = linker.settings
    settings = dataclasses.replace(joint, decoder="confidence")  # keeps whole_words
    linker = linker.with_settings(**settings.to_dict())
    fitted_on = linker.link_scorer.weights.fitted_on
    fitted = f"links have probabilities, as fitted on {fitted_on:,} spans"
    threshold = best_threshold_on_dev(run, linker, fitted)
    thresholds = {**joint.thresholds, joint.way: joint.threshold, settings.way: threshold}
    return dataclasses.replace(settings, threshold=threshold, thresholds=thresholds).to_dict()


@dataclasses.dataclass(frozen=True)
class LabelledSpans:
    """Holds spans of held-out questions with their features and labels, n rows.

    Attributes:
      spans: spans with their rescored candidates.
      features: [n, F] float64, see `confidence.span_features`.
      is_mention: [n] bool, whether the span is exactly a gold mention.
      is_right: [n] bool, whether it overlaps a gold mention of its first candidate.
      is_nil: [n] bool, whether it is exactly a gold mention of something outside the catalogue.
      all_known: [n] bool, whether all gold of its question is in the catalogue.
      nil_mentions: number of gold mentions of something outside the catalogue, found or not.
    """

    spans: ScoredSpans
    features: np.ndarray
    is_mention: np.ndarray
    is_right: np.ndarray
    is_nil: np.ndarray
    all_known: np.ndarray
    nil_mentions: int


def labelled_spans(linker: EntityLinker, questions: Sequence[Question]) -> Iterator[LabelledSpans]:
    """Yields the spans that a linker would choose from, in chunks of whole questions.

    Args:
      linker: linker that rescores candidates.
      questions: labelled questions that it was not trained on.
    """
    size = BATCHES_IN_FLIGHT * _BATCH_SIZE
    settings = dataclasses.replace(linker.settings, decoder="confidence")
    for start in range(0, len(questions), size):
        part = [questions[i] for i in range(start, min(start + size, len(questions)))]
        texts = [question.text for question in part]
        encoded = linker.encode(texts)
        found, _ = linker.search_spans(texts, encoded, settings, _BATCH_SIZE)
        spans, candidates = linker.candidate_scorer.rescored(*found)
        aligned = [
            align_mentions(question, tokens) for question, tokens in zip(part, encoded, strict=True)
        ]
        counts = [len(mentions.rows) for mentions in aligned]
        bounds = np.concatenate([mentions.bounds for mentions in aligned])
        rows = np.concatenate([mentions.rows for mentions in aligned])
        is_mention, is_right, is_nil = label_spans(
            spans, np.repeat(np.arange(len(part)), counts), bounds, rows
        )
        all_known = np.array([all(m.row >= 0 for m in q.mentions) for q in part], bool)
        yield LabelledSpans(
            spans,
            span_features(spans, candidates),
            is_mention,
            is_right,
            is_nil,
            all_known[spans.question],
            sum(mention.row < 0 for question in part for mention in question.mentions),
        )


def label_spans(
    spans: ScoredSpans, questions: np.ndarray, bounds: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compares n spans with the g gold mentions of their questions.

    Args:
      spans: spans with their candidates.
      questions: [g] int, number of the question of each gold mention, ascending.
      bounds: [g, 2] int, its first and last token (inclusive).
      rows: [g] int, row of its entity; -1 outside the catalogue.

    Returns:
      is_mention, is_right and is_nil, [n] bool each, see `LabelledSpans`.
    """
    first = np.searchsorted(questions, spans.question)
    counts = np.searchsorted(questions, spans.question, "right") - first
    span = np.repeat(np.arange(len(counts)), counts)
    gold = np.arange(len(span)) - np.repeat(np.cumsum(counts) - counts - first, counts)
    (starts, ends), (gold_starts, gold_ends) = spans.bounds[span].T, bounds[gold].T
    is_same = (starts == gold_starts) & (ends == gold_ends)
    overlaps = (starts <= gold_ends) & (gold_starts <= ends)
    labels = (
        is_same,
        overlaps & (rows[gold] >= 0) & (rows[gold] == spans.rows[span, 0]),
        is_same & (rows[gold] < 0),
    )
    return tuple(np.bincount(span, label, len(counts)) > 0 for label in labels)


def fit_link_weights(
    linker: EntityLinker, questions: Sequence[tuple[Sequence[Question], float]]
) -> LinkWeights | None:
    """Fits the weights of a `LinkScorer` on labelled questions.

    Probabilities of links are fitted on questions whose gold is all in the catalogue.

    Args:
      linker: linker that rescores candidates.
      questions: sets of labelled questions that it was not trained on, each with how much a span of
        it counts.

    Returns:
      the weights; None if fewer than `LEAST_LINKS` links are right.
    """
    chunks = [
        (chunk, np.full(len(chunk.features), repeat))
        for own, repeat in questions
        for chunk in labelled_spans(linker, own)
    ]
    if not chunks:
        return None
    features = np.concatenate([chunk.features for chunk, _ in chunks])
    importance = np.concatenate([own for _, own in chunks])
    is_mention = np.concatenate([chunk.is_mention for chunk, _ in chunks])
    is_rival = ~np.isnan(features).any(axis=1)  # A span without a candidate is never chosen.
    mention = fit_logistic(features[is_rival], is_mention[is_rival], importance[is_rival])
    chosen = [
        without_overlaps(chunk.spans, log_odds(chunk.features, mention))[0] for chunk, _ in chunks
    ]

    def of_chosen(name: str) -> np.ndarray:
        parts = (getattr(part, name) for part, _ in chunks)
        return np.concatenate([part[own] for part, own in zip(parts, chosen, strict=True)])

    features, is_right, is_nil = map(of_chosen, ("features", "is_right", "is_nil"))
    importance = np.concatenate([own[rows] for (_, own), rows in zip(chunks, chosen, strict=True)])
    known = of_chosen("all_known")
    if is_right[known].sum() < LEAST_LINKS:
        return None
    link = fit_logistic(features[known], is_right[known], importance[known])
    nil, nil_threshold = None, 0.5
    if is_nil.sum() >= LEAST_LINKS:
        nil = fit_logistic(features, is_nil, importance)
        total = sum(own[0] * chunk.nil_mentions for chunk, own in chunks if len(own))
        nil_threshold = best_probability(log_odds(features, nil), is_nil, importance, total)
    return LinkWeights(
        mention=mention,
        link=link,
        nil=nil,
        nil_threshold=nil_threshold,
        fitted_on=int(is_rival.sum()),
    )


def best_probability(
    scores: np.ndarray, correct: np.ndarray, importance: np.ndarray, total: float
) -> float:
    """Returns the probability above which predictions have the highest F1.

    Args:
      scores: [n] float64, log-odds of the predictions.
      correct: [n] bool.
      importance: [n] float64, how much each counts.
      total: how much there is to find.
    """
    order = np.argsort(-scores, kind="stable")
    right, size = np.cumsum((importance * correct)[order]), np.cumsum(importance[order])
    place = int(np.argmax(2 * right / (size + total)))
    ends = np.append(scores[order], -np.inf)[place : place + 2]
    return float(np.mean(1 / (1 + np.exp(-ends))))


def fit_logistic(
    features: np.ndarray, labels: np.ndarray, importance: np.ndarray
) -> dict[str, float]:
    """Maximises the penalised log-likelihood of labels.

    Args:
      features: [n, F] float64, in the order of `FEATURES`.
      labels: [n] bool.
      importance: [n] float64, factors of the log-likelihoods.

    Returns:
      weights by the name of their feature, and the bias. A feature that is the same everywhere gets
      0. Where all labels are equal, the bias is the log-odds of one more example of each kind.
    """
    import scipy.optimize

    means, spread = features.mean(axis=0), features.std(axis=0)
    scale = np.divide(1, spread, out=np.zeros_like(spread), where=spread > 1e-9)
    positive, negative = importance @ labels, importance @ ~labels
    start = np.zeros(features.shape[1] + 1)
    start[-1] = np.log((positive + 1) / (negative + 1))
    if positive and negative:
        result = scipy.optimize.minimize(
            logistic_loss,
            start,
            ((features - means) * scale, np.where(labels, 1.0, -1.0), importance),
            method="L-BFGS-B",
            jac=True,
            options={"maxiter": 1000, "ftol": 1e-12, "gtol": 1e-8},
        )
        start = result.x
    weights = start[:-1] * scale
    values = [*weights.tolist(), float(start[-1] - weights @ means)]
    return dict(zip((*FEATURES, BIAS), values, strict=True))


def logistic_loss(
    weights: np.ndarray, features: np.ndarray, signs: np.ndarray, importance: np.ndarray
) -> tuple[float, np.ndarray]:
    """Computes the negative log-likelihood plus `PENALTY` / 2 |weights|^2, and its gradient.

    Args:
      weights: [F + 1] float64; the last one is the bias, which is not penalised.
      features: [n, F] float64.
      signs: [n] float64, 1 or -1.
      importance: [n] float64, factors of the log-likelihoods.

    Returns:
      the loss and its gradient [F + 1] float64.
    """
    penalised = np.append(weights[:-1], 0.0)
    margins = signs * (features @ weights[:-1] + weights[-1])
    loss = importance @ np.logaddexp(0.0, -margins) + PENALTY / 2 * penalised @ penalised
    slopes = -signs * importance * np.exp(-np.logaddexp(0.0, margins))
    return loss, np.append(slopes @ features, slopes.sum()) + PENALTY * penalised
