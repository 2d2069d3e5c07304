"""Checks the configuration of a run before anything is written, and records it in the workdir."""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import pathlib
import typing
from collections.abc import Iterable, Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict

from elq_jax.core.devices import COMPUTE_DTYPES
from elq_jax.core.errors import ElqError, check_count
from elq_jax.entities import embeddings
from elq_jax.evaluation.sets import set_names
from elq_jax.linking.settings import LinkingSettings
from elq_jax.losses import LINKING_LOSSES, create_linking_loss
from elq_jax.model.config import ElqConfig
from elq_jax.questions.neutral import SINGLE_WORDS
from elq_jax.storage.files import user_path
from elq_jax.storage.hub import encoder_files
from elq_jax.storage.remote import Workdir
from elq_jax.storage.resume import ResumeRecord
from elq_jax.training.hooks import say
from elq_jax.training.optimizer import create_learning_rate_schedule, recipe_of
from elq_jax.training.stages import STAGES

_AT_LEAST_ONE = (
    "batch_size",
    "accumulate_steps",
    "log_every",
    "checkpoint_every",
    "eval_every",
    "num_negatives",
    "chunk_size",
)
_AT_LEAST_ZERO = (
    *("num_epochs", "learning_rate", "new_module_factor", "warmup_fraction", "weight_decay"),
    *("max_grad_norm", "span_loss_weight"),
)
# Names of the settings; configs/default.py says what they mean.
_OUTERMOST = (
    *("seed", "num_devices", "question_encoder", "entity_encoder", "init_from", "catalogue"),
    *("train_files", "train_repeats", "partially_labelled", "neutral_single_words", "dev_files"),
    *("fit_files", "held_out_share", "length_buckets", "on_error", "stages", "recipe"),
)
_STAGE = (
    *("batch_size", "num_epochs", "num_steps", "accumulate_steps", "learning_rate"),
    *("new_module_factor", "schedule", "warmup_fraction", "weight_decay", "max_grad_norm"),
    *("linking_loss", "span_loss_weight", "num_negatives"),
    *("dtype", "remat", "log_every", "checkpoint_every"),
)
_SECTIONS = {
    "model": (),
    "bi_encoder": (*_STAGE, "mine_every"),
    "joint": (*_STAGE, "chunk_size", "table_dtype", "eval_every"),
    "encode": ("batch_size", "dtype", "storage_dtype"),
    "linking": (),
    "eval": ("metric", "threshold_floor", "max_questions"),
}
# Sections that may also hold fields of a dataclass.
_FIELDS = {"model": ElqConfig, "linking": LinkingSettings}
_RENAMED = {"encode.table_dtype": "encode.storage_dtype"}
_RENAMED_VALUES = {
    "linking_loss": {"hard_negatives_bce": "elq_jax.original.loss:hard_negatives_bce"},
    "recipe": {"original": "elq_jax.original.recipe:original"},
}


def check(config: ml_collections.ConfigDict) -> None:
    """Raises an ElqError that names the first setting that cannot be used.

    Settings that depend on the data or the encoders (`config.model`, files) are checked later.
    """
    _check_names(config)
    stages = tuple(stage.name for stage in STAGES)
    if not set(config.stages) <= {*stages}:
        raise ElqError(f"stages: {tuple(config.stages)}; expected some of {stages}, in this order")
    # Without a stage, only scorers are fitted.
    needed = ("train_files",) if config.stages else ("init_from", "fit_files")
    for name in ("catalogue", "dev_files", *needed):
        if not config[name]:
            without = "" if config.stages else ", and stages is empty"
            raise ElqError(f"--config.{name} is not set{without}; see configs/default.py")
    for name in ("train_files", "dev_files", "fit_files"):
        _check_items(name, config[name], str, "paths of files")
    set_names(config.dev_files)
    _check_items("train_repeats", config.train_repeats, numbers.Real, "numbers")
    share = config.held_out_share
    if not isinstance(share, numbers.Real) or not 0 <= share < 1:
        raise ElqError(f"held_out_share: {share!r}; expected a share, 0 up to but not 1")
    _check_items("length_buckets", config.length_buckets, numbers.Integral, "numbers of tokens")
    _check_items("partially_labelled", config.partially_labelled, bool, "True or False")
    for name, what in (("train_repeats", "numbers"), ("partially_labelled", "values")):
        if len(config[name]) not in (0, len(config.train_files)):
            raise ElqError(
                f"{name}: {len(config[name])} {what}; expected none, or one for each of the "
                f"{len(config.train_files)} train_files"
            )
    _one_of("neutral_single_words", config.neutral_single_words, SINGLE_WORDS)
    for name in config.stages:
        _check_stage(name, config[name])
    _one_of("joint.table_dtype", config.joint.table_dtype, embeddings.DTYPES)
    _one_of("encode.storage_dtype", config.encode.storage_dtype, embeddings.DTYPES)
    _one_of("encode.dtype", config.encode.dtype, COMPUTE_DTYPES)
    check_count("encode.batch_size", config.encode.batch_size)
    check_count("seed", config.seed, least=0)
    if config.eval.max_questions is not None:
        check_count("eval.max_questions", config.eval.max_questions)
    _one_of("eval.metric", config.eval.metric, ("weak", "strong"))
    _one_of("on_error", config.on_error, ("stop", "skip"))
    LinkingSettings.from_dict(config.linking)


def with_dev_files(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns a configuration with `dev_files` where it has the former setting `dev_file`.

    A file that sets `dev_file` means no other dev file, so those of `dev_files` are left out.
    """
    if "dev_file" not in config:
        return config
    config = config.copy_and_resolve_references()
    config.unlock()
    if config.dev_file:
        others = [path for path in config.get("dev_files", ()) if path != config.dev_file]
        without = f", and {', '.join(others)} of dev_files left out" if others else ""
        say(f"dev_file is named dev_files now; {config.dev_file} is used{without}")
        config.dev_files = (config.dev_file,)
    del config.dev_file
    return config


def _check_names(config: ml_collections.ConfigDict) -> None:
    """Raises an ElqError that lists the settings that do not exist, and those that are missing."""
    required = {f"{section}.{name}" for section in _SECTIONS for name in _SECTIONS[section]}
    required |= {*_OUTERMOST, *_SECTIONS}
    known = required | {*optional_settings(config)}
    sections = {name.partition(".")[0] for name in known if "." in name}
    known |= sections
    names = set(config.keys())
    for section in names & sections:
        if not isinstance(config[section], ml_collections.ConfigDict):
            raise ElqError(f"--config: {section}: {config[section]!r}; expected a section")
        names |= {f"{section}.{name}" for name in config[section]}
    problems = [f"{name}: no such setting; {hint(name, known)}" for name in names - known]
    problems += [
        f"{name}: missing; begin with configs/default.py."
        for name in required - names
        if name.partition(".")[0] in names or "." not in name
    ]
    if problems:
        raise ElqError("--config: " + " ".join(sorted(problems)))


def optional_settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Lists the optional settings of a configuration, with their defaults.

    These are the settings of the model, of linking, and of the linking losses and the recipe that
    the configuration names.

    Args:
      config: configuration whose names may be wrong.

    Returns:
      defaults by name, such as {"joint.margin": 0.2}; a placeholder where the default is None.

    Raises:
      ElqError: there is no such loss or recipe.
    """
    _check_values_of_before(config)
    settings: dict[str, Any] = {
        "model.symbols_apart": True,  # Of `Model.from_encoders`.
        "dev_file": "",  # As configurations of before have it; see `with_dev_files`.
    }
    fields = _FIELDS | _loss_fields(config) | _recipe_fields(config)
    for section, cls in fields.items():
        types = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            if field.name.endswith("_bert"):  # The encoders say what these are.
                continue
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            if default is None or default is dataclasses.MISSING:
                [kind, *_] = typing.get_args(types[field.name]) or (types[field.name],)
                default = config_dict.placeholder(kind)
            settings[f"{section}.{field.name}"] = default
    return settings


def _check_values_of_before(config: ml_collections.ConfigDict) -> None:
    """Raises an ElqError where a loss or a recipe is given by the name that it had before."""
    values = {f"{stage.name}.linking_loss": config.get(stage.name, {}) for stage in STAGES}
    for name, section in (values | {"recipe": config}).items():
        last = name.rpartition(".")[2]
        value = section.get(last) if hasattr(section, "get") else None
        new = _RENAMED_VALUES[last].get(value) if isinstance(value, str) else None
        if new is not None:
            raise ElqError(f"{name}: {value!r} is named {new} now")


def _loss_fields(config: ml_collections.ConfigDict) -> dict[str, type]:
    """Returns, for the section of each stage, the linking loss whose settings it may hold."""
    return {
        stage.name: LINKING_LOSSES.get(config[stage.name].linking_loss)
        for stage in STAGES
        if "linking_loss" in config.get(stage.name, {})
    }


def _recipe_fields(config: ml_collections.ConfigDict) -> dict[str, type]:
    """Returns the section of the recipe's own settings and their dataclass, if it has any."""
    if "recipe" not in config:
        return {}
    recipe, _ = recipe_of(config)
    return {config.recipe.rpartition(":")[2]: recipe.Settings} if recipe.Settings else {}


def hint(name: str, known: Iterable[str]) -> str:
    """Suggests the setting that was meant by a name that does not exist."""
    if name in _RENAMED:
        return f"it is named {_RENAMED[name]} now."
    section, _, last = name.rpartition(".")
    if section and not any(k.startswith(f"{section}.") for k in known):
        section, last = "", section
    siblings = [k.rpartition(".")[2] for k in sorted(known) if k.rpartition(".")[0] == section]
    nearest = difflib.get_close_matches(last, siblings, 1)
    return f"did you mean {nearest[0]}?" if nearest else "configs/default.py lists them all."


def _check_stage(name: str, stage: ml_collections.ConfigDict) -> None:
    for field in _AT_LEAST_ONE:
        if field in stage:
            check_count(f"{name}.{field}", stage[field])
    check_count(f"{name}.num_steps", stage.num_steps, least=0)
    for field in _AT_LEAST_ZERO:
        value = stage[field]
        if not isinstance(value, numbers.Real) or not 0 <= value < math.inf:
            raise ElqError(f"{name}.{field}: {value!r}; expected a number, at least 0")
    if stage.warmup_fraction > 1:
        fraction = stage.warmup_fraction
        raise ElqError(f"{name}.warmup_fraction: {fraction!r}; expected a share, 0 to 1")
    if not stage.num_steps and not stage.num_epochs > 0:
        raise ElqError(f"{name}.num_steps, {name}.num_epochs: both are 0; give one of them")
    if "mine_every" in stage:
        check_count(f"{name}.mine_every", stage.mine_every, least=0)
    _one_of(f"{name}.dtype", stage.dtype, COMPUTE_DTYPES)
    loss = create_linking_loss(stage)
    if loss.needs_catalogue and name == "bi_encoder":
        raise ElqError(
            f"bi_encoder.linking_loss: {stage.linking_loss!r} needs the vectors of all entities, "
            "which change while their encoder learns; expected hard_negatives or in_batch"
        )
    if stage.get("mine_every") and not hasattr(loss, "num_negatives"):
        raise ElqError(
            f"{name}.mine_every: {stage.mine_every}, but the linking loss {stage.linking_loss} "
            f"uses no negatives; give --config.{name}.linking_loss=hard_negatives, or mine_every=0"
        )
    create_learning_rate_schedule(stage.schedule, stage.learning_rate, 1, stage.warmup_fraction)


def _check_items(name: str, values: Any, kind: type, description: str) -> None:
    """Raises an ElqError unless a setting is a list of the expected items."""
    if not isinstance(values, list | tuple):
        raise ElqError(f"{name}: {values!r}; expected a list of {description}")
    for value in values:
        if not isinstance(value, kind):
            raise ElqError(f"{name}: {value!r}; expected {description}")


def _one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ElqError(f"{name}: {value!r}; expected one of {', '.join(allowed)}")


def has_begun(workdir: Workdir) -> bool:
    """Returns whether a workdir holds anything that a run has trained.

    Where a run failed before that, say for want of memory, its records bind nobody.
    """
    trained = ("checkpoints/*", "mined_*", "best", "model")
    names = [f"{stage.name}/{name}" for stage in STAGES for name in trained]
    return any(map(workdir.has, [*names, "linker"]))


def check_recorded(config: ml_collections.ConfigDict, workdir: Workdir) -> ResumeRecord:
    """Raises an ElqError if the workdir holds a run with another configuration.

    Returns:
      the record, which is written once all other inputs could be read.
    """
    record = ResumeRecord(workdir.path / "config.json", config.to_dict())
    recorded = record.read()
    if recorded is not None and (changes := record.changes(recorded)) and has_begun(workdir):
        raise ElqError(
            f"{workdir.path}: holds a run with another configuration: {changes}; use its "
            "configuration to resume, or another workdir"
        )
    return record


def check_inputs(
    config: ml_collections.ConfigDict,
    workdir: Workdir,
    catalogue: str,
    embeddings: pathlib.Path,
) -> ResumeRecord:
    """Raises an ElqError if the workdir holds a run with other data or encoders.

    Args:
      config: configuration that names the files; pipes and the like cannot be compared.
      workdir: workdir of the run; its inputs.json has the SHA-256 of each file.
      catalogue: fingerprint of the catalogue.
      embeddings: folder of the entity vectors that come with the catalogue; it need not exist.

    Returns:
      the record, which is written once all inputs could be read.
    """
    data = {f"train_files[{i}]": name for i, name in enumerate(config.train_files)}
    data |= {f"dev_files[{i}]": name for i, name in enumerate(config.dev_files)}
    data |= {f"fit_files[{i}]": name for i, name in enumerate(config.fit_files)}
    inputs: dict[str, Any] = {
        setting: path for setting, name in data.items() if (path := user_path(name)).is_file()
    }
    encoders = ("init_from",) if config.init_from else ("question_encoder", "entity_encoder")
    for setting in encoders:
        if config[setting]:
            files = encoder_files(config[setting])
            inputs[setting] = {path.name: path for path in files}
    inputs["catalogue"] = catalogue
    if (description := embeddings / "embeddings.json").is_file():
        inputs["embeddings"] = description
    advice = "give the files that this run began with to resume it, or another workdir"
    record = ResumeRecord(workdir.path / "inputs.json", inputs, advice)
    if has_begun(workdir):
        record.check()
    return record
