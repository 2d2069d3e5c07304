"""Training from a configuration to a linker directory, in stages that can be stopped anywhere.

A workdir holds

    config.json            the configuration, to refuse going on with another one
    catalogue.arrow        the entities
    data/                  the questions, prepared (array_record)
    bi_encoder/, joint/    per stage: checkpoints/, metrics.jsonl, curves.png, best/ or model/
    embeddings/            of the frozen entity encoder, unless they came with the catalogue
    linker/                the result

Everything is a function of the configuration and the step, so a run that was killed and started
again ends with the parameters of an unbroken one, bit for bit (on the same kind of machine).

Several processes run these lines together (`devices.initialize`): each trains on its rows of every
batch, encodes its shards of the catalogue and holds its rows of the table; the first one writes.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from elq_jax.core import devices as devices_lib
from elq_jax.core.errors import ElqError
from elq_jax.entities import build, encode
from elq_jax.entities.catalogue import Catalogue
from elq_jax.entities.embeddings import Embeddings
from elq_jax.evaluation.predictions import predict
from elq_jax.evaluation.sweep import Evaluation
from elq_jax.linking import directory
from elq_jax.linking.linker import EntityLinker
from elq_jax.linking.settings import LinkingSettings
from elq_jax.model import bundle, flops
from elq_jax.model.bundle import load_pretrained
from elq_jax.model.elq import ElqConfig
from elq_jax.questions.batches import TrainingBatches
from elq_jax.questions.examples import TrainingExample, make_examples
from elq_jax.questions.prepared import prepare
from elq_jax.questions.records import Question
from elq_jax.retrieval import exact_index
from elq_jax.retrieval.exact import Table
from elq_jax.retrieval.sharded import place_table
from elq_jax.storage import layout
from elq_jax.storage.progress import progress
from elq_jax.storage.remote import Workdir
from elq_jax.text.padding import bucket
from elq_jax.text.tokenization import Tokenizer
from elq_jax.training import configuration, mining
from elq_jax.training.checkpoints import Checkpoints
from elq_jax.training.metrics import MetricsWriter, plot_curves
from elq_jax.training.optimizer import (
    RECIPES,
    Recipe,
    TrainState,
    create_learning_rate_schedule,
    create_optimizer,
    create_train_state,
)
from elq_jax.training.preemption import Preemption
from elq_jax.training.step import bi_encoder_train_step, joint_train_step, loss_config

Batch = Mapping[str, np.ndarray]


def train_and_evaluate(
    config: ml_collections.ConfigDict,
    workdir: str | os.PathLike[str],
    profile_steps: int = 0,
) -> str:
    """Runs all stages of a configuration, or what is left of them.

    Args:
      config: see `configs/default.py`.
      workdir: made if it is not there; may be on gs://, and with several processes on several hosts
        has to be there or on a disk that all of them see.
      profile_steps: so many steps of each stage are traced into `workdir`/<stage>/profile, after
        the first few, which compile.

    Returns:
      the linker directory, `workdir`/linker.

    Raises:
      ElqError: something in the configuration or the data cannot be used, the workdir is of another
        run or in use, or the loss is not finite.
    """
    configuration.check(config)
    folder = Workdir(workdir)
    with folder.lock() if devices_lib.is_main() else contextlib.nullcontext():
        run = _Run(config, folder, profile_steps)
        for stage in configuration.STAGES:
            if stage in config.stages:
                getattr(run, stage)()
        return run.finish()


class _Run:
    """A run in a workdir: its data, its model as far as it is trained, and its stages."""

    def __init__(self, config: ml_collections.ConfigDict, workdir: Workdir, profile_steps: int):
        self.config, self.workdir, self.profile_steps = config, workdir, profile_steps
        self.folder = workdir.path
        workdir.fetch("config.json", again=True)
        configuration.check_recorded(config, self.folder)
        self.devices = devices_lib.all_devices(config.num_devices)
        self.model, self.params, self.tokenizer = _initial_model(config)
        self.given = _fetch_catalogue(config)
        self.catalogue = workdir.made_by_one(
            _open_catalogue, self.given, self.folder, config.on_error
        )
        self.questions = workdir.made_by_one(self._read_questions)
        self.examples = [
            self._make_examples(name, self.questions[name]) for name in _train_splits(config)
        ]
        # Everything could be read: from here on the workdir is this run's.
        if devices_lib.is_main():
            configuration.record(config, self.folder)
            workdir.publish("config.json")

    def bi_encoder(self) -> None:
        """Trains both encoders together: in-batch negatives, then also mined ones."""
        stage = self.config.bi_encoder
        model_folder = self.folder / "bi_encoder" / "model"
        self.workdir.fetch("bi_encoder/model", again=True)
        if not bundle.is_linker_directory(model_folder):
            state = self._train(
                "bi_encoder",
                stage,
                self.params,
                bi_encoder_train_step(self.model, loss_config(stage), stage.dtype, stage.remat),
                mine=self._mined_batches,
            )
            self._save_model("bi_encoder/model", state.params)
            if not devices_lib.is_main():
                self.workdir.fetch("bi_encoder/model", again=True)
        self.params = bundle.load_params(model_folder)

    def joint(self) -> None:
        """Trains the question encoder against frozen entity vectors; keeps the best on dev."""
        stage = self.config.joint
        embeddings = self.embeddings()
        table = place_table(embeddings, self.devices, stage.table_dtype)
        linker = EntityLinker(
            self.model,
            self.params["question"],
            self.tokenizer,
            self.catalogue,
            exact_index(embeddings, self.devices, table),
            LinkingSettings.from_dict(self.config.linking),
            devices=self.devices,
        )
        dev = list(self.questions["dev"])[: self.config.eval.max_questions]

        def evaluate(params: Any) -> Evaluation:
            return predict(linker.with_params(params), dev, self.config.eval.threshold_floor)

        def keep_best(params: Any, threshold: float) -> None:
            linking = linker.settings.replace(threshold=float(threshold)).to_dict()
            whole = {"question": params, "entity": self.params["entity"]}
            self._save_model("joint/best", whole, linking)

        if devices_lib.is_main():
            self.workdir.fetch("joint/best", again=True)
        self._train(
            "joint",
            stage,
            self.params["question"],
            joint_train_step(self.model, loss_config(stage), stage.dtype, stage.remat),
            table=table,
            evaluate=evaluate,
            keep_best=keep_best,
        )

    def finish(self) -> str:
        """Writes the linker directory from the best parameters."""
        embeddings = self.embeddings()
        if devices_lib.is_main():
            if "joint" in self.config.stages:
                best = self.folder / "joint" / "best"
                model, linking = bundle.load_config(best)
                params = bundle.load_params(best)
            else:
                model, params = self.model, self.params
                linking = LinkingSettings.from_dict(self.config.linking).to_dict()
            directory.write_linker(
                self.folder / "linker",
                model,
                params,
                self.tokenizer,
                linking,
                self.catalogue.path,
                embeddings.folder,
            )
            self.workdir.publish("linker")
        devices_lib.wait_for_all("the linker is written")
        return f"{self.workdir.address}/linker"

    def embeddings(self) -> Embeddings:
        """Vectors of the entity encoder as it is now: found beside the catalogue, or encoded."""
        encoder = self._encoder(self.params["entity"])
        given = self.given / layout.EMBEDDINGS
        if given.is_dir():
            found = Embeddings.open(given, self.catalogue.fingerprint)
            if found.encoder_fingerprint == encoder.fingerprint:
                return found
            _say(f"{given}: of another entity encoder; encoding the catalogue for this run")
        return self._encode(encoder, layout.EMBEDDINGS)

    def _encoder(self, params: Any) -> encode.CatalogueEncoder:
        return encode.CatalogueEncoder(
            self.model,
            params,
            self.tokenizer,
            batch_size=self.config.encode.batch_size,
            dtype=self.config.encode.dtype,
            devices=devices_lib.local(self.devices),
        )

    def _encode(self, encoder: encode.CatalogueEncoder, name: str) -> Embeddings:
        """Encodes the catalogue into a folder of the workdir; all processes together."""
        with progress("encoding the catalogue", len(self.catalogue), "entities") as advance:
            return encode.encode_catalogue(
                encoder,
                self.catalogue,
                self.folder / name,
                dtype=self.config.encode.table_dtype,
                progress=advance if devices_lib.is_main() else None,
                exchange=lambda: self.workdir.exchange(name),
            )

    def _save_model(self, name: str, params: Any, linking: Mapping[str, Any] | None = None) -> None:
        if devices_lib.is_main():
            bundle.save_model(self.folder / name, self.model, params, self.tokenizer, linking)
            self.workdir.publish(name)
        devices_lib.wait_for_all(f"{name} is saved")

    def _read_questions(self) -> dict[str, Sequence[Question]]:
        files = dict(zip(_train_splits(self.config), self.config.train_files, strict=True))
        files["dev"] = self.config.dev_file
        builder = prepare(
            "questions",
            files,
            self.folder / "data",
            self.catalogue,
            on_error=self.config.on_error,
        )
        for report in builder.reports.values():
            _say(report.summary())
        return {split: builder.open_split(split) for split in files}

    def _make_examples(self, name: str, questions: Sequence[Question]) -> list[TrainingExample]:
        limits = self.model.max_question_tokens, self.model.max_mention_width
        examples, report = make_examples(questions, self.tokenizer, *limits)
        _say(f"{name}: {report.summary()}")
        return examples

    def _batches(
        self, stage: ml_collections.ConfigDict, examples: Sequence[Sequence[TrainingExample]]
    ) -> TrainingBatches:
        return TrainingBatches(
            examples,
            stage.batch_size,
            self.config.seed,
            shuffle="original" not in self.config,
            repeats=self.config.train_repeats or [1.0] * len(examples),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            length_buckets=self._length_buckets(),
            pad_id=self.tokenizer.pad_id,
        )

    def _length_buckets(self) -> list[int]:
        longest = self.model.max_question_tokens
        return [*(size for size in self.config.length_buckets if size < longest), longest]

    def _recipe(
        self,
        name: str,
        stage: ml_collections.ConfigDict,
        batches: TrainingBatches,
        num_steps: int,
    ) -> Recipe:
        if "original" in self.config:
            part = "question" if name == "joint" else None
            settings = self.config.original
            create_recipe = RECIPES.get("elq_jax.original.recipe:original")
            return create_recipe(settings, stage, self.model, part, batches, num_steps)
        schedule = create_learning_rate_schedule(
            stage.schedule,
            stage.learning_rate,
            max(num_steps // stage.accumulate_steps, 1),
            stage.warmup_fraction,
        )
        tx = create_optimizer(
            schedule,
            new_module_factor=stage.new_module_factor,
            weight_decay=stage.weight_decay,
            max_grad_norm=stage.max_grad_norm,
            accumulate_steps=stage.accumulate_steps,
        )
        return Recipe(tx, lambda step: float(schedule(step // stage.accumulate_steps)))

    def _train(
        self,
        name: str,
        stage: ml_collections.ConfigDict,
        params: Any,
        step_body: Callable[..., tuple[TrainState, Mapping[str, jax.Array]]],
        *,
        mine: Callable[[int, Callable[[], Any]], TrainingBatches] | None = None,
        table: Table | None = None,
        evaluate: Callable[[Any], Evaluation] | None = None,
        keep_best: Callable[[Any, float], None] | None = None,
    ) -> TrainState:
        """Takes the steps of one stage that are left; returns its last state, unreplicated."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        batches = self._batches(stage, self.examples)
        num_steps = stage.num_steps or math.ceil(stage.num_epochs * batches.steps_per_epoch)
        recipe = self._recipe(name, stage, batches, num_steps)
        state = create_train_state(params, recipe.tx)
        checkpoints = Checkpoints(f"{self.workdir.address}/{name}/checkpoints")
        record = {"seed": self.config.seed, "best_f1": -1.0, "best_step": -1}
        if (restored := checkpoints.restore(state)) is not None:
            state, record = restored
            _say(f"{name}: going on from step {int(state.step)} of {num_steps}")
        first_step = int(state.step)
        self.workdir.fetch(f"{name}/metrics.jsonl", again=True)
        writer = MetricsWriter(folder / "metrics.jsonl", first_step)
        state = devices_lib.replicate(state, self.devices)
        seed = devices_lib.replicate(np.int32(self.config.seed), self.devices)
        take_step = devices_lib.parallel(step_body, self.devices, donate=0, static=(4, 5))
        clock = _Clock(name, num_steps, self.devices, stage.dtype)

        def prepared(step: int) -> Iterator[tuple[Batch, Batch]]:
            """Batches from `step` to where their negatives hold, on the host and the devices."""
            nonlocal batches
            stop = num_steps
            if mine and stage.mine_every:
                with clock.paused():
                    batches = mine(step, lambda: devices_lib.unreplicate(state.params))
                stop = min(num_steps, (step // stage.mine_every + 1) * stage.mine_every)
            some = itertools.islice(batches.iterate(step), stop - step)
            if mine:
                some = (self._with_entities(batch) for batch in some)
            return devices_lib.prefetch(some, self.devices)

        step, source = first_step, iter(())
        with (
            Preemption() as preemption,
            _Profile(folder / "profile", self.profile_steps) as profile,
        ):
            while step < num_steps:
                if (pair := next(source, None)) is None:
                    source = prepared(step)
                    continue
                batch, parts = pair
                num_queries = _num_queries(batch, len(self.devices))
                state, metrics = take_step(
                    state, parts, table, seed, num_queries, not recipe.has_dropout(step)
                )
                clock.add(metrics, batch, self._flops(name, stage, batch, num_queries))
                with clock.paused():
                    profile.after(step - first_step, state)
                step += 1
                last = step == num_steps
                stopping = preemption.requested(step)
                saving = stopping or step % stage.checkpoint_every == 0 or last
                scoring = evaluate and (step % stage.eval_every == 0 or last)
                if saving or scoring or step % stage.log_every == 0:
                    values = clock.means()
                    _check_finite(values, folder, checkpoints)
                    values["learning_rate"] = recipe.learning_rate(step - 1)
                    writer.write(step, values | clock.log(step, values))
                if scoring:
                    current = devices_lib.unreplicate(state.params)
                    with clock.paused():
                        scores, threshold = self._score(evaluate(current), step)
                        writer.write(step, scores)
                        if devices_lib.is_main():
                            plot_curves(folder / "metrics.jsonl", folder / "curves.png")
                    if scores[f"dev_{self.config.eval.metric}_f1"] > record["best_f1"]:
                        record["best_f1"] = scores[f"dev_{self.config.eval.metric}_f1"]
                        record["best_step"] = step
                        keep_best(current, threshold)
                if saving:
                    checkpoints.save(devices_lib.unreplicate(state), record)
                    if devices_lib.is_main():
                        self.workdir.publish(f"{name}/metrics.jsonl", f"{name}/curves.png")
                if stopping and not last:
                    checkpoints.close()
                    preemption.leave(f"{name}: saved at step {step} of {num_steps}")
        checkpoints.close()
        if devices_lib.is_main():
            plot_curves(folder / "metrics.jsonl", folder / "curves.png")
            self.workdir.publish(f"{name}/curves.png", f"{name}/profile")
        return devices_lib.unreplicate(state)

    def _flops(
        self, name: str, stage: ml_collections.ConfigDict, batch: Batch, num_queries: int
    ) -> float:
        """Floating-point operations of a step of the model, over all devices."""
        rows, tokens = batch["input_ids"].shape
        shape = rows * jax.process_count(), tokens, num_queries * len(self.devices)
        if name == "bi_encoder":
            *_, entities, entity_tokens = batch["entity_ids"].shape
            return flops.bi_encoder_step_flops(self.model, *shape, entity_tokens, entities - 1)
        return flops.train_step_flops(
            self.model, *shape, len(self.catalogue), stage.linking_loss, stage.num_negatives
        )

    def _with_entities(self, batch: Batch) -> Batch:
        return mining.with_entity_tokens(batch, self.catalogue, self.tokenizer, self.model)

    def _score(self, evaluation: Evaluation, step: int) -> tuple[dict[str, float], float]:
        """Dev F1 at the threshold that is best for the configured metric, and that threshold."""
        sweep = evaluation.sweep
        threshold = sweep.best_threshold(self.config.eval.metric)
        at = sweep.index(threshold)
        scores = {f"dev_{name}_f1": float(sweep.f1(name)[at]) for name in ("weak", "strong")}
        scores["dev_threshold"] = float(threshold)
        shown = ", ".join(f"{name[4:]} {value:.3f}" for name, value in scores.items())
        _say(f"step {step}, dev: {shown}")
        return scores, threshold

    def _mined_batches(self, step: int, params: Callable[[], Any]) -> TrainingBatches:
        """Batches of the bi-encoder stage with the negatives that hold at a step."""
        stage = self.config.bi_encoder
        mined_at = step // stage.mine_every * stage.mine_every
        if not mined_at:
            return self._batches(stage, self.examples)
        name = f"bi_encoder/mined_{mined_at}"
        negatives = self.folder / name / "negatives.npz"
        self.workdir.fetch(f"{name}/negatives.npz")
        mined = mining.load(negatives, self.examples)
        if mined is None:
            now = params()
            found = self._encode(self._encoder(now["entity"]), f"{name}/{layout.EMBEDDINGS}")
            mined, recalls = mining.mine_negatives(
                self.model,
                now["question"],
                self.tokenizer,
                self.examples,
                stage.num_negatives,
                exact_index(found, self.devices),
                self.devices,
                stage.batch_size,
            )
            _say(f"mined: {', '.join(f'{k} {v:.3f}' for k, v in recalls.items())}")
            if devices_lib.is_main():
                mining.save(negatives, mined)
                self.workdir.publish(f"{name}/negatives.npz")
            devices_lib.wait_for_all(f"{name} is saved")
        return self._batches(stage, mined)


def _initial_model(config: ml_collections.ConfigDict) -> tuple[ElqConfig, Any, Tokenizer]:
    if config.init_from:
        model, _ = bundle.load_config(config.init_from)
        params = bundle.load_params(config.init_from)
        return model, params, Tokenizer.from_pretrained(config.init_from)
    return load_pretrained(
        config.question_encoder, config.entity_encoder, seed=config.seed, **config.model
    )


def _fetch_catalogue(config: ml_collections.ConfigDict) -> pathlib.Path:
    """The catalogue on this host: where the configuration says, or a copy of it."""
    if "://" not in config.catalogue:
        return pathlib.Path(config.catalogue)
    folder, _, name = config.catalogue.rpartition("/")
    source = Workdir(folder)
    source.fetch(name)
    return source.path / name


def _open_catalogue(given: pathlib.Path, folder: pathlib.Path, on_error: str) -> Catalogue:
    if given.is_dir():
        return Catalogue.open(given / layout.CATALOGUE)
    return build.open_or_build_catalogue(given, folder / layout.CATALOGUE, on_error)


def _train_splits(config: ml_collections.ConfigDict) -> list[str]:
    return [f"train_{i}" for i in range(len(config.train_files))]


def _num_queries(batch: Batch, num_devices: int) -> int:
    """Room for the mentions of the fullest device; one of a few sizes, so few programs compile.

    The same in every process, whose rows are consecutive and split over devices of its own.
    """
    processes = jax.process_count()
    rows, mentions = batch["gold_mask"].shape
    examples = -(-rows // (num_devices // processes))  # of a device
    counts = np.zeros((processes, num_devices // processes * examples), np.int32)
    counts[:, :rows] = batch["mention_counts"].reshape(processes, rows)
    most = int(counts.reshape(num_devices, examples).sum(axis=1).max())
    room = examples * mentions
    sizes = [size for size in (examples * 3 // 2, examples * 2, examples * 3) if size < room]
    return bucket(most, [*sizes, room])


def _check_finite(values: Mapping[str, float], folder: pathlib.Path, checkpoints: Any) -> None:
    bad = {name: value for name, value in values.items() if not math.isfinite(value)}
    if bad:
        checkpoints.close()
        raise ElqError(
            f"{folder}: {', '.join(f'{k} is {v}' for k, v in bad.items())}; the newest checkpoint "
            "is from before. Lower learning_rate or max_grad_norm and start in another workdir"
        )


def _say(text: str) -> None:
    if devices_lib.is_main():
        print(text, file=sys.stderr, flush=True)


class _Profile:
    """A trace of some steps, which TensorBoard and XProf open."""

    _FIRST = 3  # Steps before are mostly compilation.

    def __init__(self, folder: pathlib.Path, num_steps: int):
        self._folder, self._num_steps = folder, num_steps
        self._running = False

    def __enter__(self) -> _Profile:
        return self

    def __exit__(self, *unused: object) -> None:
        if self._running:
            jax.profiler.stop_trace()

    def after(self, steps: int, state: TrainState) -> None:
        """Begins or ends the trace after so many steps of this start."""
        if self._num_steps and steps == self._FIRST - 1:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)
            self._running = True
        elif self._running and steps == self._FIRST - 1 + self._num_steps:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self._running = False
            _say(f"trace of {self._num_steps} steps: {self._folder}")


class _Clock:
    """Metrics, counts and seconds since the last log line."""

    def __init__(self, name: str, num_steps: int, devices: Sequence[jax.Device], dtype: str):
        self._name, self._num_steps = name, num_steps
        peak = flops.peak_flops(devices[0].device_kind, dtype)
        self._peak = None if peak is None else peak * len(devices)
        self._reset()

    def _reset(self) -> None:
        self._metrics: list[Mapping[str, jax.Array]] = []
        self._examples = self._tokens = 0
        self._flops = 0.0
        self._started = time.monotonic()

    def add(self, metrics: Mapping[str, jax.Array], batch: Batch, step_flops: float) -> None:
        """Notes a step that was dispatched."""
        self._metrics.append(metrics)
        self._flops += step_flops
        self._examples += int(batch["example_mask"].sum()) * jax.process_count()
        self._tokens += int(batch["mask"].sum()) * jax.process_count()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves what happens meanwhile out of the rates."""
        before = time.monotonic()
        yield
        self._started += time.monotonic() - before

    def means(self) -> dict[str, float]:
        """Mean metrics since the last log line; waits for the steps."""
        metrics = [devices_lib.unreplicate(one) for one in self._metrics]
        return {name: float(np.mean([one[name] for one in metrics])) for name in metrics[0]}

    def log(self, step: int, values: dict[str, float]) -> dict[str, float]:
        """Prints a line for people, starts the next interval; returns rates for the record."""
        seconds, steps = time.monotonic() - self._started, len(self._metrics)
        rates = {
            "seconds_per_step": seconds / steps,
            "examples_per_second": self._examples / seconds,
            "tokens_per_second": self._tokens / seconds,
            "model_flops_per_second": self._flops / seconds,
        }
        speed = f"{self._flops / seconds / 1e9:,.0f} GFLOP/s"
        if self._peak:
            rates["mfu"] = rates["model_flops_per_second"] / self._peak
            speed = f"MFU {rates['mfu']:.0%}"
        left = (self._num_steps - step) * seconds / steps / 60
        _say(
            f"{self._name}: step {step} of {self._num_steps}, loss {values['loss']:.3f} (span "
            f"{values['span_loss']:.4f}, linking {values['linking_loss']:.3f}), "
            f"{seconds / steps:.2f} s/step, {rates['examples_per_second']:.0f} examples/s, "
            f"{rates['tokens_per_second']:.0f} tokens/s, {speed}, {left:.1f} min left"
        )
        self._reset()
        return rates
