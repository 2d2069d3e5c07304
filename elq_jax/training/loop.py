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
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
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

from elq_jax.data.batches import TrainingBatches, TrainingExample, bucket, make_examples
from elq_jax.data.catalogue import Catalogue
from elq_jax.data.files import atomic_write
from elq_jax.data.questions import Question, prepare
from elq_jax.data.tokenization import Tokenizer
from elq_jax.errors import ElqError
from elq_jax.evaluation.predictions import predict
from elq_jax.evaluation.report import Evaluation
from elq_jax.linking import directory
from elq_jax.linking.linker import EntityLinker, LinkingSettings
from elq_jax.model.elq import ElqConfig
from elq_jax.retrieval.embeddings import Embeddings
from elq_jax.retrieval.exact import ExactIndex, shard_table
from elq_jax.training import devices as devices_lib
from elq_jax.training import encoding, mining, original
from elq_jax.training.checkpoints import Checkpoints
from elq_jax.training.metrics import MetricsWriter, plot_curves
from elq_jax.training.preemption import Preemption
from elq_jax.training.pretrained import load_pretrained
from elq_jax.training.state import (
    Recipe,
    TrainState,
    create_learning_rate_schedule,
    create_optimizer,
    create_train_state,
)
from elq_jax.training.step import LossConfig, Table, bi_encoder_train_step, joint_train_step

STAGES = ("bi_encoder", "joint")


def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: str | os.PathLike[str]
) -> pathlib.Path:
    """Runs all stages of a configuration, or what is left of them.

    Args:
      config: see `configs/default.py`.
      workdir: made if it is not there.

    Returns:
      the linker directory, `workdir`/linker.

    Raises:
      ElqError: something in the configuration or the data cannot be used, the workdir is of another
        run, or the loss is not finite.
    """
    run = _Run(config, pathlib.Path(workdir))
    for stage in STAGES:
        if stage in config.stages:
            getattr(run, stage)()
    return run.finish()


class _Run:
    """A run in a workdir: its data, its model as far as it is trained, and its stages."""

    def __init__(self, config: ml_collections.ConfigDict, workdir: pathlib.Path):
        self.config, self.workdir = config, workdir
        _check_stages(config)
        workdir.mkdir(parents=True, exist_ok=True)
        _claim(workdir, config)
        self.devices = devices_lib.local_devices(config.num_devices)
        self.model, self.params, self.tokenizer = _initial_model(config)
        self.catalogue = _open_catalogue(config, workdir)
        self.questions = self._read_questions()
        self.examples = [
            self._make_examples(name, self.questions[name]) for name in _train_splits(config)
        ]

    def bi_encoder(self) -> None:
        """Trains both encoders together: in-batch negatives, then also mined ones."""
        stage = self.config.bi_encoder
        model_folder = self.workdir / "bi_encoder" / "model"
        if not directory.is_linker_directory(model_folder):
            state = self._train(
                "bi_encoder",
                stage,
                self.params,
                bi_encoder_train_step(self.model, _loss(stage), stage.dtype, stage.remat),
                mine=self._mined_batches,
            )
            directory.save_model(model_folder, self.model, state.params, self.tokenizer)
        self.params = directory.load_params(model_folder)

    def joint(self) -> None:
        """Trains the question encoder against frozen entity vectors; keeps the best on dev."""
        stage = self.config.joint
        embeddings = self.embeddings()
        rows, _ = embeddings.shape
        shards = shard_table(embeddings, len(self.devices), stage.table_dtype)
        table = Table(devices_lib.place(shards, self.devices), None, rows)
        linker = self._linker(embeddings)
        best = self.workdir / "joint" / "best"

        dev = list(self.questions["dev"])[: self.config.eval.max_questions]

        def evaluate(params: Any) -> Evaluation:
            return predict(linker.with_params(params), dev, self.config.eval.threshold_floor)

        def keep_best(params: Any, threshold: float) -> None:
            linking = dataclasses.asdict(
                dataclasses.replace(linker.settings, threshold=float(threshold))
            )
            whole = {"question": params, "entity": self.params["entity"]}
            directory.save_model(best, self.model, whole, self.tokenizer, linking)

        self._train(
            "joint",
            stage,
            self.params["question"],
            joint_train_step(self.model, _loss(stage), stage.dtype, stage.remat),
            table=table,
            evaluate=evaluate,
            keep_best=keep_best,
        )

    def finish(self) -> pathlib.Path:
        """Writes the linker directory from the best parameters."""
        target = self.workdir / "linker"
        best = self.workdir / "joint" / "best"
        if "joint" in self.config.stages:
            model, linking = directory.load_config(best)
            params = directory.load_params(best)
        else:
            model, params = self.model, self.params
            linking = dataclasses.asdict(LinkingSettings(**self.config.linking))
        embeddings = self.embeddings()
        directory.write_linker(
            target,
            model,
            params,
            self.tokenizer,
            linking,
            self.catalogue.path,
            embeddings.folder,
        )
        return target

    def embeddings(self) -> Embeddings:
        """Vectors of the entity encoder as it is now: found beside the catalogue, or encoded."""
        encoder = encoding.CatalogueEncoder(
            self.model,
            self.params["entity"],
            self.tokenizer,
            batch_size=self.config.encode.batch_size,
            dtype=self.config.encode.dtype,
            devices=self.devices,
        )
        given = pathlib.Path(self.config.catalogue) / directory.EMBEDDINGS
        if given.is_dir():
            found = Embeddings.open(given, self.catalogue.fingerprint)
            if found.encoder_fingerprint == encoder.fingerprint:
                return found
            _say(f"{given}: of another entity encoder; encoding the catalogue for this run")
        return encoding.encode_catalogue(
            encoder,
            self.catalogue,
            self.workdir / directory.EMBEDDINGS,
            dtype=self.config.encode.table_dtype,
            progress=_report_encoding(len(self.catalogue)),
        )

    def _linker(self, embeddings: Embeddings) -> EntityLinker:
        return EntityLinker(
            self.model,
            self.params["question"],
            self.tokenizer,
            self.catalogue,
            ExactIndex(embeddings),
            LinkingSettings(**self.config.linking),
            devices=self.devices,
        )

    def _read_questions(self) -> dict[str, Sequence[Question]]:
        files = dict(zip(_train_splits(self.config), self.config.train_files, strict=True))
        files["dev"] = self.config.dev_file
        builder = prepare(
            "questions",
            files,
            self.workdir / "data",
            self.catalogue,
            on_error=self.config.on_error,
        )
        for report in builder.reports.values():
            _say(report.summary())
        return {split: builder.open_split(split) for split in files}

    def _make_examples(self, name: str, questions: Sequence[Question]) -> list[TrainingExample]:
        limit = self.model.max_question_tokens
        examples, report = make_examples(questions, self.tokenizer, limit)
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
            return original.create_recipe(settings, stage, self.model, part, batches, num_steps)
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
        folder = self.workdir / name
        folder.mkdir(exist_ok=True)
        batches = self._batches(stage, self.examples)
        num_steps = stage.num_steps or math.ceil(stage.num_epochs * batches.steps_per_epoch)
        recipe = self._recipe(name, stage, batches, num_steps)
        state = create_train_state(params, recipe.tx)
        checkpoints = Checkpoints(folder / "checkpoints")
        record = {"seed": self.config.seed, "best_f1": -1.0, "best_step": -1}
        if (restored := checkpoints.restore(state)) is not None:
            state, record = restored
            _say(f"{name}: going on from step {int(state.step)} of {num_steps}")
        first_step = int(state.step)
        writer = MetricsWriter(folder / "metrics.jsonl", first_step)
        state = devices_lib.replicate(state, self.devices)
        seed = devices_lib.replicate(np.int32(self.config.seed), self.devices)
        take_step = devices_lib.parallel(step_body, self.devices, donate=0, static=(4, 5))
        clock = _Clock(name, num_steps)

        with Preemption() as preemption:
            for step in range(first_step, num_steps):
                if (
                    mine
                    and stage.mine_every
                    and (step == first_step or step % stage.mine_every == 0)
                ):
                    with clock.paused():
                        batches = mine(step, lambda: devices_lib.unreplicate(state.params))  # noqa: B023
                batch = batches[step]
                if mine:
                    batch = mining.with_entity_tokens(
                        batch, self.catalogue, self.tokenizer, self.model
                    )
                parts = devices_lib.split(batch, len(self.devices))
                num_queries = _num_queries(parts)
                state, metrics = take_step(
                    state, parts, table, seed, num_queries, not recipe.has_dropout(step)
                )
                clock.add(metrics, batch)
                done = step + 1
                last = done == num_steps
                saving = preemption.requested or done % stage.checkpoint_every == 0 or last
                if saving or done % stage.log_every == 0:
                    values = clock.means()
                    _check_finite(values, folder, checkpoints)
                    values["learning_rate"] = recipe.learning_rate(step)
                    writer.write(done, values | clock.log(done, values))
                if evaluate and (done % stage.eval_every == 0 or last):
                    current = devices_lib.unreplicate(state.params)
                    with clock.paused():
                        scores, threshold = self._score(evaluate(current), done)
                        writer.write(done, scores)
                        plot_curves(folder / "metrics.jsonl", folder / "curves.png")
                    if scores[f"dev_{self.config.eval.metric}_f1"] > record["best_f1"]:
                        record["best_f1"] = scores[f"dev_{self.config.eval.metric}_f1"]
                        record["best_step"] = done
                        keep_best(current, threshold)
                if saving:
                    checkpoints.save(devices_lib.unreplicate(state), record)
                if saving and preemption.requested and not last:
                    checkpoints.close()
                    preemption.leave(f"{name}: saved at step {done} of {num_steps}")
        checkpoints.close()
        plot_curves(folder / "metrics.jsonl", folder / "curves.png")
        return devices_lib.unreplicate(state)

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
        folder = self.workdir / "bi_encoder" / f"mined_{mined_at}"
        examples = mining.load_or_mine(
            folder / "negatives.npz",
            self.examples,
            lambda: mining.mine_negatives(
                self.model,
                params(),
                self.tokenizer,
                self.catalogue,
                self.examples,
                stage.num_negatives,
                folder,
                self.devices,
                stage.batch_size,
            ),
        )
        return self._batches(stage, examples)


def _initial_model(config: ml_collections.ConfigDict) -> tuple[ElqConfig, Any, Tokenizer]:
    if config.init_from:
        model, _ = directory.load_config(config.init_from)
        params = directory.load_params(config.init_from)
        return model, params, Tokenizer.from_pretrained(config.init_from)
    return load_pretrained(
        config.question_encoder, config.entity_encoder, seed=config.seed, **config.model
    )


def _open_catalogue(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Catalogue:
    given = pathlib.Path(config.catalogue)
    if given.is_dir():
        return Catalogue.open(given / directory.CATALOGUE)
    return encoding.open_or_build_catalogue(given, workdir / directory.CATALOGUE, config.on_error)


def _train_splits(config: ml_collections.ConfigDict) -> list[str]:
    return [f"train_{i}" for i in range(len(config.train_files))]


def _check_stages(config: ml_collections.ConfigDict) -> None:
    unknown = set(config.stages) - set(STAGES)
    if unknown or not config.stages:
        raise ElqError(f"stages: {tuple(config.stages)}; expected some of {STAGES}, in this order")
    for name in ("catalogue", "dev_file", "train_files"):
        if not config[name]:
            raise ElqError(f"--config.{name} is not set; see configs/default.py")


def _claim(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Records the configuration in a new workdir, or checks that it is the one there."""
    path = workdir / "config.json"
    wanted = json.loads(config.to_json_best_effort())
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        flat = [_flatten(tree) for tree in (found, wanted)]
        changed = sorted(k for k in {**flat[0], **flat[1]} if flat[0].get(k) != flat[1].get(k))
        if changed:
            shown = ", ".join(f"{k} ({flat[0].get(k)!r}, now {flat[1].get(k)!r})" for k in changed)
            raise ElqError(
                f"{workdir}: holds a run with another configuration: {shown}; "
                "use its configuration to go on, or another workdir"
            )
        return
    with atomic_write(path, "w") as file:
        json.dump(wanted, file, indent=2)
        file.write("\n")


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _loss(stage: ml_collections.ConfigDict) -> LossConfig:
    names = {field.name for field in dataclasses.fields(LossConfig)}
    try:
        return LossConfig(**{name: stage[name] for name in names if name in stage})
    except ValueError as error:
        raise ElqError(str(error)) from error


def _num_queries(parts: Mapping[str, np.ndarray]) -> int:
    """Room for the mentions of the fullest device; one of a few sizes, so few programs compile."""
    mask = parts["gold_mask"]
    _, examples, mentions = mask.shape
    most = int(mask.reshape(len(mask), -1).sum(axis=1).max())
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


def _report_encoding(total: int) -> Callable[[int], None]:
    started, done = time.monotonic(), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        rate = done / max(time.monotonic() - started, 1e-9)
        _say(f"encoding the catalogue: {done:,} of {total:,} entities, {rate:,.0f}/s")

    return advance


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class _Clock:
    """Metrics, counts and seconds since the last log line."""

    def __init__(self, name: str, num_steps: int):
        self._name, self._num_steps = name, num_steps
        self._reset()

    def _reset(self) -> None:
        self._metrics: list[Mapping[str, jax.Array]] = []
        self._examples = self._tokens = 0
        self._started = time.monotonic()

    def add(self, metrics: Mapping[str, jax.Array], batch: Mapping[str, np.ndarray]) -> None:
        """Notes a step that was dispatched."""
        self._metrics.append(metrics)
        self._examples += int(batch["example_mask"].sum())
        self._tokens += int(batch["mask"].sum())

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
        }
        left = (self._num_steps - step) * seconds / steps / 60
        _say(
            f"{self._name}: step {step} of {self._num_steps}, loss {values['loss']:.3f} (span "
            f"{values['span_loss']:.4f}, linking {values['linking_loss']:.3f}), "
            f"{seconds / steps:.2f} s/step, {rates['examples_per_second']:.0f} examples/s, "
            f"{rates['tokens_per_second']:.0f} tokens/s, {left:.1f} min left"
        )
        self._reset()
        return rates
