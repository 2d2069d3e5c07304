"""Adds entities to the batches of the bi-encoder stage, and mines negatives for them."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from elq_jax.core import devices as devices_lib
from elq_jax.entities.catalogue import Catalogue
from elq_jax.model.bundle import Model
from elq_jax.questions.batches import TrainingBatches
from elq_jax.questions.examples import ExamplesWithNegatives, TrainingExample
from elq_jax.retrieval import Index, exact_index
from elq_jax.storage import layout
from elq_jax.storage.files import atomic_write
from elq_jax.training.hooks import say

if TYPE_CHECKING:
    from elq_jax.training.run import Run

ExampleSets = Sequence[Sequence[TrainingExample]]


def with_entity_tokens(
    batch: Mapping[str, np.ndarray], catalogue: Catalogue, model: Model
) -> dict[str, np.ndarray]:
    """Adds the tokens of each mention's gold entity and of its mined negatives.

    Args:
      batch: batch of `TrainingBatches`; "negative_rows" [B, M, N] is there if negatives were mined.
      catalogue: catalogue of the rows.
      model: model whose tokenizer splits the entities, and whose configuration says how many
        tokens are read.

    Returns:
      the batch with entity_ids and entity_mask [B, M, 1 + N, T_e], int32 and bool; their values for
      rows of -1 (padding, or no negative) are arbitrary.
    """
    batch = dict(batch)
    rows = batch["gold_rows"][..., None]
    if "negative_rows" in batch:
        rows = np.concatenate([rows, batch["negative_rows"]], axis=-1)
    used, place = np.unique(np.maximum(rows, 0), return_inverse=True)
    length = model.config.max_entity_tokens  # always, so that one program is compiled
    tokens = model.tokenizer.encode_entities(catalogue.titles(used), catalogue.texts(used), length)
    entity_ids = np.zeros((len(tokens), length), np.int32)
    entity_mask = np.zeros((len(tokens), length), bool)
    for i, ids in enumerate(tokens):
        entity_ids[i, : len(ids)], entity_mask[i, : len(ids)] = ids, True
    place = place.reshape(rows.shape)
    batch["entity_ids"], batch["entity_mask"] = entity_ids[place], entity_mask[place]
    return batch


def mine(
    run: Run, settings: Mapping[str, Any], name: str, params: Callable[[], Any]
) -> ExampleSets:
    """Mines negatives for the examples of a run, or reads them from an earlier start.

    Args:
      run: run with examples, catalogue and devices; all processes call this together.
      settings: section of the stage, for `num_negatives` and `batch_size`.
      name: name of the folder.
      params: function that returns {"question": tree, "entity": tree} as trained so far; only
        called if negatives must be mined.
    """
    path = run.folder / name / "negatives.npz"
    run.workdir.fetch(f"{name}/negatives.npz")
    if (mined := load(path, run.examples)) is not None:
        return mined
    trained = run.model.replace(params=params())
    embeddings = run.encode_catalogue(trained, f"{name}/{layout.EMBEDDINGS}")
    mined, recalls = mine_negatives(
        trained,
        run.examples,
        settings["num_negatives"],
        exact_index(embeddings, run.devices),
        run.devices,
        settings["batch_size"],
    )
    say(f"mined negatives: {', '.join(f'{name} {recall:.3f}' for name, recall in recalls.items())}")
    if devices_lib.is_main():
        save(path, mined)
        run.workdir.publish(f"{name}/negatives.npz")
    devices_lib.wait_for_all(f"{name} is saved")
    return mined


def mine_negatives(
    model: Model,
    examples: ExampleSets,
    num_negatives: int,
    index: Index,
    devices: Sequence[jax.Device],
    batch_size: int,
) -> tuple[list[ExamplesWithNegatives], dict[str, float]]:
    """Finds for every gold mention the wrong entities that the model ranks highest.

    Args:
      model: model as trained so far.
      examples: sets of examples.
      num_negatives: N, number of negatives per mention; where the catalogue has fewer, the
        remaining rows are -1.
      index: index over the vectors of all E entities, as these parameters encode them.
      devices: devices to encode on, of all processes, which call this together.
      batch_size: number of questions encoded at a time.

    Returns:
      the sets with negatives, and the recall of gold entities among the first entity and among the
      first N + 1.
    """
    k = min(num_negatives + 1, index.shape[0])
    question_params = devices_lib.replicate(model.params["question"], devices)
    apply = model.question_apply

    def vectors_of(params, input_ids, mask, bounds):
        return apply(params, input_ids, mask, bounds, method="encode_mentions")[1]

    encode = devices_lib.parallel(vectors_of, devices, replicated=(0,))
    mined, hits, total = [], np.zeros(2), 0
    for part in examples:
        batches = TrainingBatches(part, batch_size, shuffle=False, pad_id=model.tokenizer.pad_id)
        part_negatives = []
        for step in range(batches.steps_per_epoch):
            batch = batches[step]
            parts = devices_lib.split(batch, devices)
            vectors = encode(
                question_params, parts["input_ids"], parts["mask"], parts["gold_bounds"]
            )
            vectors = devices_lib.merge(vectors, devices, len(batch["gold_mask"]))
            _, nearest = index.search(vectors[batch["gold_mask"]], k)
            gold = batch["gold_rows"][batch["gold_mask"]]
            wrong = nearest != gold[:, None]
            linkable = gold >= 0
            hits += (~wrong[linkable, 0]).sum(), (~wrong[linkable]).any(axis=1).sum()
            total += int(linkable.sum())
            # Wrong entities come first, in the order of their rank. The gold entity, if it is
            # among the nearest, comes last and is cut off.
            order = np.argsort(~wrong, axis=1, kind="stable")
            ranked = np.take_along_axis(np.where(wrong, nearest, -1), order, axis=1)
            negatives = np.full((len(gold), num_negatives), -1, np.int32)
            width = min(num_negatives, k)
            negatives[:, :width] = ranked[:, :width]
            part_negatives.append(negatives)
        mined.append(ExamplesWithNegatives(part, np.concatenate(part_negatives)))
    recall = hits / max(total, 1)
    return mined, {"mined_recall_at_1": recall[0], f"mined_recall_at_{k}": recall[1]}


def save(path: str | os.PathLike[str], examples: Sequence[ExamplesWithNegatives]) -> None:
    """Writes the negatives of sets of examples to an .npz file."""
    with atomic_write(path) as file:
        np.savez(file, **{str(number): part.negatives for number, part in enumerate(examples)})


def load(path: str | os.PathLike[str], examples: ExampleSets) -> list[ExamplesWithNegatives] | None:
    """Reads the negatives of sets of examples from a file; None if there is no such file."""
    if not pathlib.Path(path).exists():
        return None
    with np.load(path) as saved:
        return [ExamplesWithNegatives(part, saved[str(i)]) for i, part in enumerate(examples)]
