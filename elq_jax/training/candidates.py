"""Fits the weights of candidate scoring on questions that training does not see.

The model is a conditional logit: p(entity | mention) is the softmax of a linear function of the
features of each candidate. Its penalised log-likelihood is concave, so there is one maximum, and
every run finds the same.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from elq_jax.core import devices as devices_lib
from elq_jax.entities.name_index import NameIndex
from elq_jax.evaluation.predict import predict
from elq_jax.linking.candidates import FEATURES, Candidates, CandidateScorer, CandidateWeights
from elq_jax.linking.linker import EntityLinker
from elq_jax.linking.scoring import BATCHES_IN_FLIGHT
from elq_jax.linking.settings import LinkingSettings
from elq_jax.questions.align import align_mentions
from elq_jax.questions.records import Question
from elq_jax.retrieval import exact_index
from elq_jax.storage import layout
from elq_jax.storage.checksums import read_json
from elq_jax.storage.files import atomic_folder, write_json
from elq_jax.text.padding import few_shapes
from elq_jax.training.hooks import dev_scores, say

if TYPE_CHECKING:
    from elq_jax.training.run import Run

LEAST_MENTIONS = 50  # to fit on; fewer would say little about a dozen weights
PENALTY = 1.0  # of half the squared weight of a feature of unit standard deviation
_BATCH_SIZE = 64


_FOLDER, _LINKING = "candidates", "linking.json"


def fit_candidate_scorer(run: Run) -> None:
    """Gives a run its candidate scorer and the threshold that is best on dev with it.

    The weights are fitted on the questions of `Run.questions_to_fit`, and kept in the workdir.
    Where there are too few of them, or none, the run is left as it is.

    Args:
      run: run whose stages are done.
    """
    settings = LinkingSettings.from_dict(run.linking)
    questions = run.questions_to_fit()
    if not questions or not settings.candidate_scoring:
        return
    run.workdir.fetch(_FOLDER, again=True)
    folder = run.folder / _FOLDER
    if not _is_ours(folder):
        names = NameIndex.build(run.catalogue)
        linker = linker_of(run, settings)
        weights = fit_candidate_weights(
            linker,
            CandidateScorer(CandidateWeights(weights={}), names, run.embeddings()),
            questions,
        )
        if weights is None:
            say(
                f"candidates are not rescored: fewer than {LEAST_MENTIONS} gold mentions of "
                f"{run.fitted_on()} have their entity among the candidates"
            )
            return
        scorer = CandidateScorer(weights, names, run.embeddings())
        linker = linker.with_candidate_scorer(scorer)
        linking = run.linking | _thresholds(run, linker, weights)
        if devices_lib.is_main():
            with atomic_folder(folder, "a fitted candidate scorer", _is_ours) as temporary:
                names.save(temporary / layout.NAMES)
                weights.write(temporary / layout.CANDIDATES)
                write_json(temporary / _LINKING, linking)
            run.workdir.publish(_FOLDER)
        devices_lib.wait_for_all("candidate scoring is fitted")
        run.workdir.fetch(_FOLDER, again=True)
    again = "remove the folder; it is made again"
    run.linking = read_json(folder / _LINKING, dict[str, Any], again)
    run.candidate_scorer = CandidateScorer(
        CandidateWeights.read(folder / layout.CANDIDATES),
        NameIndex.open(folder / layout.NAMES, run.catalogue.fingerprint),
        run.embeddings(),
    )


def _is_ours(folder: pathlib.Path) -> bool:
    return (folder / _LINKING).is_file()


def _thresholds(run: Run, linker: EntityLinker, weights: CandidateWeights) -> dict[str, Any]:
    """Returns the settings of linking that differ: the best thresholds with and without scoring."""
    fitted = f"candidates rescored, as fitted on {weights.fitted_on:,} mentions"
    threshold = best_threshold_on_dev(run, linker, fitted)
    settings = LinkingSettings.from_dict(run.linking)
    thresholds = {
        settings.way: threshold,
        settings.replace(candidate_scoring=False).way: run.linking["threshold"],
    }
    return {"threshold": threshold, "thresholds": thresholds}


def linker_of(run: Run, settings: LinkingSettings) -> EntityLinker:
    """Returns the linker that a run has trained so far, with exact search."""
    linker = EntityLinker(
        run.model,
        run.catalogue,
        exact_index(run.embeddings(), run.devices, products=run.config.joint.dtype),
        settings,
        dtype=run.config.joint.dtype,
        embeddings=run.embeddings(),
        candidate_scorer=run.candidate_scorer,
        devices=run.devices,
    )
    linker.scorer.shapes = few_shapes(linker.max_question_tokens)
    return linker


def choose_threshold(run: Run) -> None:
    """Gives a run the threshold that is best on dev for its parameters as they are."""
    linker = linker_of(run, LinkingSettings.from_dict(run.linking))
    run.linking |= {"threshold": best_threshold_on_dev(run, linker, "parameters are chosen")}


def best_threshold_on_dev(run: Run, linker: EntityLinker, fitted: str) -> float:
    """Finds the threshold that is best on the dev sets of a run, and prints the scores there.

    Args:
      run: run that names the dev sets and the metric.
      linker: linker to measure.
      fitted: text printed before the scores.
    """
    floor = run.config.eval.threshold_floor
    evaluations = {
        name: predict(linker, questions, floor) for name, questions in run.dev_sets().items()
    }
    scores = dev_scores(evaluations, run.config.eval.metric)
    shown = ", ".join(f"{name[4:]} {value:.3f}" for name, value in scores.items())
    say(f"{fitted}; dev: {shown}")
    return scores["dev_threshold"]


def fit_candidate_weights(
    linker: EntityLinker,
    scorer: CandidateScorer,
    questions: Sequence[tuple[Sequence[Question], float]],
) -> CandidateWeights | None:
    """Fits the weights on the gold mentions of labelled questions.

    Args:
      linker: linker whose candidates are rescored.
      scorer: scorer that finds candidates and features; its weights do not matter.
      questions: sets of labelled questions that the linker was not trained on, each with how much a
        mention of it counts.

    Returns:
      the weights; None if fewer than `LEAST_MENTIONS` mentions have their entity among the
      candidates.
    """
    features, mentions, is_gold, importance = [], [], [], []
    count = 0
    for own, repeat in questions:
        for start in range(0, len(own), BATCHES_IN_FLIGHT * _BATCH_SIZE):
            stop = min(start + BATCHES_IN_FLIGHT * _BATCH_SIZE, len(own))
            part = [own[number] for number in range(start, stop)]
            candidates, rows = candidates_at_gold(linker, scorer, part)
            features.append(candidates.features)
            mentions.append(candidates.mentions + count)
            is_gold.append(candidates.rows == rows[candidates.mentions])
            importance.append(np.full(len(rows), repeat))
            count += len(rows)
    if not count:
        return None
    features, mentions, is_gold, importance = map(
        np.concatenate, (features, mentions, is_gold, importance)
    )
    is_known = np.bincount(mentions, is_gold, minlength=count) > 0
    if is_known.sum() < LEAST_MENTIONS:
        return None
    kept = is_known[mentions]
    vector = fit_conditional_logit(features[kept], mentions[kept], is_gold[kept], importance)
    weights = dict(zip(FEATURES, vector.tolist(), strict=True))
    return CandidateWeights(weights=weights, fitted_on=int(is_known.sum()))


def candidates_at_gold(
    linker: EntityLinker, scorer: CandidateScorer, questions: Sequence[Question]
) -> tuple[Candidates, np.ndarray]:
    """Returns the candidates of all gold mentions that tokens express, and their gold rows."""
    texts = [question.text for question in questions]
    encoded = linker.encode(texts)
    aligned = [
        align_mentions(question, tokens)
        for question, tokens in zip(questions, encoded, strict=True)
    ]
    bounds = [mentions.bounds for mentions in aligned]
    _, known = linker.search_spans(texts, encoded, None, _BATCH_SIZE, bounds, find=False)
    rows = np.concatenate([np.zeros(0, np.int32), *(mentions.rows for mentions in aligned)])
    return scorer.candidates_of(*known), rows


def fit_conditional_logit(
    features: np.ndarray, mentions: np.ndarray, is_gold: np.ndarray, importance: np.ndarray
) -> np.ndarray:
    """Maximises the penalised log-likelihood of the gold candidates.

    Args:
      features: [p, F] float64, features of the candidates.
      mentions: [p] int, number of the mention of each candidate, ascending; each mention has one
        gold candidate.
      is_gold: [p] bool.
      importance: [n] float64, by number of the mention, factors of its log-likelihood.

    Returns:
      [F] float64 weights. A feature that is the same everywhere gets 0.
    """
    import scipy.optimize

    spread = features.std(axis=0)
    scale = np.divide(1, spread, out=np.zeros_like(spread), where=spread > 0)
    result = scipy.optimize.minimize(
        penalised_loss,
        np.zeros(features.shape[1]),
        (features * scale, mentions, is_gold, importance),
        method="L-BFGS-B",
        jac=True,
        options={"maxiter": 1000, "ftol": 1e-12, "gtol": 1e-8},
    )
    return result.x * scale


def penalised_loss(
    weights: np.ndarray,
    features: np.ndarray,
    mentions: np.ndarray,
    is_gold: np.ndarray,
    importance: np.ndarray,
) -> tuple[float, np.ndarray]:
    """Computes the negative log-likelihood plus `PENALTY` / 2 |weights|^2, and its gradient [F].

    The arguments are those of `fit_conditional_logit`, with weights [F] float64.
    """
    scores = features @ weights
    first = np.flatnonzero(np.diff(mentions, prepend=-1))  # candidate of each mention
    lengths = np.diff(np.append(first, len(mentions)))
    scores -= np.repeat(np.maximum.reduceat(scores, first), lengths)
    log_p = scores - np.repeat(np.log(np.add.reduceat(np.exp(scores), first)), lengths)
    factors = importance[mentions]
    loss = PENALTY / 2 * weights @ weights - log_p[is_gold] @ factors[is_gold]
    return loss, features.T @ (factors * (np.exp(log_p) - is_gold)) + PENALTY * weights
