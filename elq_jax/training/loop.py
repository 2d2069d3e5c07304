"""Training from a configuration to a linker directory, in stages that can be stopped anywhere.

A workdir holds

    config.json            the configuration, to refuse to resume with another one
    inputs.json            checksums of data and encoders, to refuse to resume with others
    catalogue.arrow        the entities
    data/                  the questions, prepared (array_record)
    bi_encoder/, joint/    per stage: checkpoints/, metrics.jsonl, curves.png, best/ or model/
    embeddings/            vectors of the frozen entity encoder, unless the catalogue has them
    candidates/            weights of candidate scoring, fitted on questions that no stage has seen
    confidence/            weights of the probabilities of links, fitted on the same questions
    linker/                the trained linker

Everything is a function of the configuration and the step, so a run that was killed and started
again ends with the parameters of an unbroken one, bit for bit (on the same kind of machine).

Several processes run these lines together (`devices.initialize`): each trains on its rows of every
batch, encodes its shards of the catalogue and holds its rows of the table; the first one writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np

from elq_jax.core import devices as devices_lib
from elq_jax.core.errors import ElqError
from elq_jax.core.strings import is_whole
from elq_jax.evaluation.predict import predict
from elq_jax.evaluation.scores import Evaluation
from elq_jax.linking.linker import EntityLinker
from elq_jax.linking.settings import LinkingSettings
from elq_jax.retrieval import exact_index
from elq_jax.retrieval.table import Table
from elq_jax.storage.remote import Workdir
from elq_jax.text.padding import few_shapes
from elq_jax.training import configuration, hooks
from elq_jax.training.candidates import choose_threshold, fit_candidate_scorer
from elq_jax.training.checkpoints import Checkpoints
from elq_jax.training.confidence import fit_link_scorer
from elq_jax.training.metrics import MetricsWriter, plot_curves
from elq_jax.training.optimizer import (
    Recipe,
    TrainState,
    create_train_state,
    recipe_of,
)
from elq_jax.training.preemption import Preemption
from elq_jax.training.run import Run
from elq_jax.training.stages import STAGES, Stage, StageBatches, count_queries, step_flops
from elq_jax.training.step import Objective, parallel_train_step

# What the time of each hook is counted for. The first wait of a line of metrics is for the steps.
_PARTS = {hooks.Metrics: "steps", hooks.KeepBest: "dev", hooks.Save: "checkpoints"}


def train_and_evaluate(
    config: ml_collections.ConfigDict,
    workdir: str | os.PathLike[str],
    profile_steps: int = 0,
) -> str:
    """Runs all stages of a configuration, resuming an earlier run in the workdir.

    Args:
      config: configuration with the settings of `configs/default.py`.
      workdir: folder of the run, made if it does not exist. It may be on gs://; with several hosts
        it must be there or on a disk that all of them see.
      profile_steps: number of steps of each stage that are traced into `workdir`/<stage>/profile,
        after the first few, which compile.

    Returns:
      the linker directory, `workdir`/linker.

    Raises:
      ElqError: something in the configuration or the data cannot be used, the workdir is of another
        run or in use, or the loss is not finite.
    """
    config = configuration.with_dev_files(config)
    configuration.check(config)
    _check_name(workdir)
    folder = Workdir(workdir)
    with folder.lock() if devices_lib.is_main() else contextlib.nullcontext():
        run = Run(config, folder)
        for stage in STAGES:
            if stage.name in config.stages:
                if not run.has_result(stage):
                    state = train_stage(run, stage, profile_steps)
                    if not stage.keeps_best:
                        run.save_result(stage, state.params)
                run.take_result(stage)
        if not any(stage.keeps_best and stage.name in config.stages for stage in STAGES):
            choose_threshold(run)
        fit_candidate_scorer(run)
        fit_link_scorer(run)
        return run.write_linker()


def _check_name(workdir: str | os.PathLike[str]) -> None:
    """Raises an ElqError for a folder in which array_record and TensorStore cannot write."""
    if not is_whole(os.fspath(workdir)):
        raise ElqError(
            f"{os.fspath(workdir)}: this name is not UTF-8 (or the locale hides that it is), and "
            "checkpoints cannot be written there; give another workdir, or set PYTHONUTF8=1"
        )


@dataclasses.dataclass
class Start:
    """Holds the plan and the state with which a stage begins or resumes.

    Attributes:
      batches: batches of the whole stage.
      recipe: optimiser, learning rates, and which steps have dropout.
      state: training state, on the host.
      record: values saved beside the state: seed, best score on dev, step of that score, and the
        type of matrix products, which a run keeps on other machines too.
      checkpoints: checkpoints of the stage.
      writer: writer of metrics.jsonl.
    """

    batches: StageBatches
    recipe: Recipe
    state: TrainState
    record: dict[str, Any]
    checkpoints: Checkpoints
    writer: MetricsWriter


def start_stage(run: Run, stage: Stage) -> Start:
    """Begins a stage, or resumes it from its newest checkpoint.

    1. The plan follows from the configuration alone: batches, number of steps, learning rates.
    2. The initial state of the stage is made.
    3. The newest checkpoint, if there is one, replaces it: parameters, state of the optimiser, the
       step, which is also the place in the data and in the dropout, and the best score so far.
    4. Lines of metrics of later steps are dropped.

    Mined negatives are read again, or mined, when the first batch is asked for.
    """
    batches = StageBatches(run, stage)  # 1
    recipe = _create_recipe(run, stage, batches)
    state = create_train_state(run.params_of(stage), recipe.tx)  # 2
    record = {"seed": run.config.seed, "best_f1": -1.0, "best_step": -1}
    checkpoints = Checkpoints(f"{run.workdir.address}/{stage.name}/checkpoints")  # 3
    if (restored := checkpoints.restore(state)) is not None:
        state, record = restored
        hooks.say(f"{stage.name}: resumes at step {int(state.step)} of {batches.num_steps}")
    run.workdir.fetch(f"{stage.name}/metrics.jsonl", again=True)  # 4
    if "dtype" not in record:
        dtype = run.config[stage.name].dtype
        devices_lib.say_dtype(dtype, run.devices)
        record["dtype"] = devices_lib.compute_dtype(dtype, run.devices)
    metrics = run.folder / stage.name / "metrics.jsonl"
    writer = MetricsWriter(metrics, int(state.step))
    return Start(batches, recipe, state, record, checkpoints, writer)


def train_stage(run: Run, stage: Stage, profile_steps: int = 0) -> TrainState:
    """Takes the remaining steps of a stage.

    Args:
      run: model, data and workdir.
      stage: stage to train.
      profile_steps: number of steps that are traced.

    Returns:
      the state after the last step, from the first device.
    """
    settings, devices = run.config[stage.name], run.devices
    start = start_stage(run, stage)
    first_step, num_steps = int(start.state.step), start.batches.num_steps
    table = None
    if stage.has_table:
        table = Table.place(run.embeddings(), devices, settings.table_dtype)
        table = dataclasses.replace(table, products=start.record["dtype"])
    objective = Objective.of_stage(run.model.config, settings, start.record["dtype"])
    take_step = parallel_train_step(objective, devices)
    state = devices_lib.replicate(start.state, devices)
    start.state = None  # Only the devices hold it from here on.
    seed = devices_lib.replicate(np.int32(run.config.seed), devices)
    clock = hooks.Clock()
    profile = hooks.Profile(run.folder / stage.name / "profile", first_step, profile_steps, clock)
    after_step = [profile, *create_hooks(run, stage, start, table, clock)]
    shares, pace = hooks.Shares(), hooks.Pace(devices)

    def params() -> Any:
        return devices_lib.unreplicate(state.params)

    step, stopping = first_step, False
    with start.checkpoints, contextlib.closing(profile), Preemption() as preemption:
        batches = start.batches.iterate(first_step, params, clock.paused)
        batches = shares.of_next("waiting for batches", batches)
        for step, (batch, parts) in enumerate(batches, first_step + 1):
            num_queries = count_queries(batch, len(devices))
            with shares.of("steps"):
                state, metrics = take_step(
                    state, parts, table, seed, num_queries, not start.recipe.has_dropout(step - 1)
                )
                pace.after_step(metrics, (num_queries, parts["input_ids"].shape))
            stopping = preemption.requested(step)
            flops = step_flops(run, stage, objective, batch, num_queries)
            due = hooks.Due.after(step, num_steps, settings, stage.keeps_best, stopping)
            for hook in after_step:
                with shares.of(_PARTS.get(type(hook), "others")):
                    hook.after_step(hooks.StepResult(step, state, metrics, batch, flops, due))
            if stopping:
                break
    hooks.say(f"{stage.name}: {step - first_step:,} steps, {shares}")
    if step < num_steps:
        preemption.leave(f"{stage.name}: saved at step {step} of {num_steps}")
    if devices_lib.is_main():
        plot_curves(
            run.folder / stage.name / "metrics.jsonl", run.folder / stage.name / "curves.png"
        )
        run.workdir.publish(f"{stage.name}/curves.png", f"{stage.name}/profile")
    return devices_lib.unreplicate(state)


def create_hooks(
    run: Run, stage: Stage, start: Start, table: Table | None, clock: hooks.Clock
) -> list[hooks.Hook]:
    """Makes the hooks of a stage, in this order: metrics, dev, checkpoints.

    A value that is not finite is seen before it is scored or saved, and a checkpoint is saved after
    the best parameters that its record names.
    """
    stage_hooks: list[hooks.Hook] = [
        hooks.Metrics(
            stage.name,
            start.batches.num_steps,
            run.devices,
            start.record["dtype"],
            start.recipe.learning_rate,
            start.writer,
            clock,
        )
    ]
    if stage.keeps_best:
        stage_hooks.append(
            hooks.KeepBest(
                dev_evaluation(run, table, start.record["dtype"]),
                lambda params, threshold: run.save_result(stage, params, threshold),
                run.config.eval.metric,
                start.record,
                start.writer,
                clock,
            )
        )
    stage_hooks.append(hooks.Save(start.checkpoints, start.record, run.workdir, stage.name))
    return stage_hooks


def dev_evaluation(run: Run, table: Table, dtype: str) -> Callable[[Any], dict[str, Evaluation]]:
    """Makes a function that links the questions of each dev file with a question encoder.

    The parameters stay on the devices, where the training step left them, and the linker uses the
    table that is there already, so an evaluation copies neither.

    Args:
      run: model, catalogue and questions of the run.
      table: entity vectors that the devices already hold.
      dtype: type of the matrix products of the stage, "float32" or "bfloat16".
    """
    sets = run.dev_sets()
    index = exact_index(run.embeddings(), run.devices, table, dtype)
    settings = LinkingSettings.from_dict(run.config.linking)
    linker = EntityLinker(
        run.model, run.catalogue, index, settings, dtype=dtype, devices=run.devices
    )
    linker.scorer.shapes = few_shapes(linker.max_question_tokens)

    def evaluate(params: Any) -> dict[str, Evaluation]:
        trained, floor = linker.with_params(params), run.config.eval.threshold_floor
        return {name: predict(trained, questions, floor) for name, questions in sets.items()}

    return evaluate


def _create_recipe(run: Run, stage: Stage, batches: StageBatches) -> Recipe:
    recipe, settings = recipe_of(run.config)
    section = run.config[stage.name]
    model, plan = run.model.config, batches.plan
    return recipe(settings, section, model, stage.part, plan, batches.num_steps)
