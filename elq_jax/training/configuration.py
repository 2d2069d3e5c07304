"""The configuration of a run: checked before anything is written, and recorded in the workdir."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from elq_jax.core.devices import COMPUTE_DTYPES
from elq_jax.core.errors import ElqError, check_count
from elq_jax.entities import embeddings
from elq_jax.linking.settings import LinkingSettings
from elq_jax.storage.files import write_json
from elq_jax.training.optimizer import RECIPES, Recipe, create_learning_rate_schedule
from elq_jax.training.step import loss_config

STAGES = ("bi_encoder", "joint")
_AT_LEAST_ONE = (
    "batch_size",
    "accumulate_steps",
    "log_every",
    "checkpoint_every",
    "eval_every",
    "num_negatives",
    "chunk_size",
)
_FILE = "config.json"


def check(config: ml_collections.ConfigDict) -> None:
    """Raises an ElqError that names the first setting that cannot be used.

    What only the data or the encoders can tell (`config.model`, files) is found when they are read.
    """
    unknown = set(config.stages) - set(STAGES)
    if unknown or not config.stages:
        raise ElqError(f"stages: {tuple(config.stages)}; expected some of {STAGES}, in this order")
    for name in ("catalogue", "dev_file", "train_files"):
        if not config[name]:
            raise ElqError(f"--config.{name} is not set; see configs/default.py")
    if len(config.train_repeats) not in (0, len(config.train_files)):
        raise ElqError(
            f"train_repeats: {len(config.train_repeats)} numbers; expected none, or one for each "
            f"of the {len(config.train_files)} train_files"
        )
    for name in config.stages:
        _check_stage(name, config[name])
    _one_of("joint.table_dtype", config.joint.table_dtype, embeddings.DTYPES)
    _one_of("encode.storage_dtype", config.encode.storage_dtype, embeddings.DTYPES)
    _one_of("encode.dtype", config.encode.dtype, COMPUTE_DTYPES)
    check_count("encode.batch_size", config.encode.batch_size)
    _one_of("eval.metric", config.eval.metric, ("weak", "strong"))
    _one_of("on_error", config.on_error, ("stop", "skip"))
    LinkingSettings.from_dict(config.linking)
    recipe_of(config)


def recipe_of(config: ml_collections.ConfigDict) -> tuple[type[Recipe], Mapping[str, Any]]:
    """Finds the recipe that a configuration names, and its settings in the section of that name.

    Raises:
      ElqError: there is no such recipe, or there are settings of another one.
    """
    recipe = RECIPES.get(config.recipe)
    name = config.recipe.rpartition(":")[2]
    if "original" in config and name != "original":
        raise ElqError(
            f"original: settings of a recipe, but recipe is {config.recipe!r}; give "
            "--config.recipe=elq_jax.original.recipe:original, or remove the section"
        )
    return recipe, config.get(name, {})


def _check_stage(name: str, stage: ml_collections.ConfigDict) -> None:
    for field in _AT_LEAST_ONE:
        if field in stage:
            check_count(f"{name}.{field}", stage[field])
    check_count(f"{name}.num_steps", stage.num_steps, least=0)
    if not stage.num_steps and not stage.num_epochs > 0:
        raise ElqError(f"{name}.num_steps, {name}.num_epochs: both are 0; give one of them")
    if "mine_every" in stage:
        check_count(f"{name}.mine_every", stage.mine_every, least=0)
    _one_of(f"{name}.dtype", stage.dtype, COMPUTE_DTYPES)
    loss_config(stage)
    create_learning_rate_schedule(stage.schedule, stage.learning_rate, 1, stage.warmup_fraction)


def _one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ElqError(f"{name}: {value!r}; expected one of {', '.join(allowed)}")


def record(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Writes config.json of a run, new or going on."""
    write_json(workdir / _FILE, json.loads(config.to_json_best_effort()))


def check_recorded(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Raises an ElqError if the workdir holds a run with another configuration."""
    path = workdir / _FILE
    if not path.exists():
        return
    found = flatten(json.loads(path.read_text(encoding="utf-8")))
    wanted = flatten(json.loads(config.to_json_best_effort()))
    found.setdefault("recipe", wanted["recipe"])  # older ones tell it by their section `original`
    changed = sorted(k for k in {**found, **wanted} if found.get(k) != wanted.get(k))
    if changed:
        shown = ", ".join(f"{k} ({found.get(k)!r}, now {wanted.get(k)!r})" for k in changed)
        raise ElqError(
            f"{workdir}: holds a run with another configuration: {shown}; "
            "use its configuration to go on, or another workdir"
        )


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as {"joint.batch_size": 64, ...}."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
