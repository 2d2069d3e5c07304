"""Trains as the original ELQ does, step by step, so that our training can be compared with it.

A configuration whose `recipe` is "elq_jax.original.recipe:original" (configs/original_recipe.py) is
trained this way. It differs from common practice in the following:

- AdamW has no bias correction. Weights decay after the update, those of layer norms too.
- `type_optimization` says which parameters learn. Mention heads and poolers never do.
- The gradients of parameters that do not learn are never cleared. They add up over the whole run
  and count in the norm that all gradients are clipped to.
- The learning rate is planned for whole updates of full batches, so it reaches 0 before the end.
- Batches left over at the end of an epoch count in the first update of the next epoch.
- Questions come in the order of their files, in every epoch.
- After the first epoch there is dropout only from the first evaluation within an epoch to its end.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import traverse_util

from elq_jax.core.errors import ElqError
from elq_jax.core.settings import make_settings
from elq_jax.model.config import ElqConfig
from elq_jax.original.names import tensor_names
from elq_jax.questions.batches import TrainingBatches
from elq_jax.training.optimizer import RECIPES, Recipe, create_learning_rate_schedule

# Which parameters learn, by the original's names.
_LEARNING = {
    "additional_layers": "additional",
    "top_layer": r"additional|bert_model\.encoder\.layer\.11\.",
    "top4_layers": r"additional|bert_model\.encoder\.layer\.(8|9|10|11)\.",
    "all_encoder_layers": r"additional|bert_model\.encoder\.layer\.",
    "all": r"additional|bert_model\.(embeddings|encoder\.layer)\.",
}
_NOT_DECAYED = re.compile("bias|gamma|beta")


@dataclasses.dataclass(frozen=True)
class OriginalSettings:
    """Settings of the section `original` of a configuration.

    Attributes:
      type_optimization: name of the group of parameters that learn: "additional_layers",
        "top_layer", "top4_layers", "all_encoder_layers" or "all" (embeddings too).
      eval_interval: number of updates between the evaluations within an epoch; each of them turns
        dropout on again.
    """

    type_optimization: str = "all_encoder_layers"
    eval_interval: int = 500


@dataclasses.dataclass(frozen=True)
class Updates:
    """Counts the updates of a run, and finds the steps that end in one.

    A step is a batch, counted from 0 over all epochs. All methods take integers and arrays.

    Attributes:
      steps_per_epoch: number of batches of an epoch, including the partial one at its end.
      accumulate_steps: number of batches of an update.
    """

    steps_per_epoch: int
    accumulate_steps: int

    def before(self, step: Any) -> Any:
        """Returns the number of updates made before a step."""
        updates_per_epoch = self.steps_per_epoch // self.accumulate_steps
        place = step % self.steps_per_epoch
        return step // self.steps_per_epoch * updates_per_epoch + place // self.accumulate_steps

    def ends_at(self, step: Any) -> Any:
        """Returns whether a step ends in an update; steps are counted anew in every epoch."""
        return (step % self.steps_per_epoch + 1) % self.accumulate_steps == 0


@RECIPES.register("original")
class OriginalRecipe(Recipe):
    """Trains as the original does; ignores `schedule` and `new_module_factor` of a stage.

    Raises:
      ElqError: a setting is unknown or of the wrong type, no parameter would learn, or an epoch has
        fewer questions than an update takes.
    """

    shuffle = False
    Settings = OriginalSettings

    def __init__(
        self,
        settings: Mapping[str, Any],
        stage: ml_collections.ConfigDict,
        config: ElqConfig,
        part: str | None,
        batches: TrainingBatches,
        num_steps: int,
    ):
        try:
            settings = make_settings(OriginalSettings, settings)
        except ElqError as error:
            raise ElqError(f"original.{error}") from error
        learning = learning_parameters(config, settings.type_optimization, part)
        if not learning:
            raise ElqError(
                f"original.type_optimization: {settings.type_optimization!r} names no parameter of "
                f"an encoder with {config.question_bert.num_layers} layers, so nothing would be "
                f"trained; choose another of {', '.join(_LEARNING)}"
            )
        planned_per_epoch = batches.examples_per_epoch // (
            stage.batch_size * stage.accumulate_steps
        )
        planned = planned_per_epoch * num_steps // batches.steps_per_epoch
        if not planned:
            raise ElqError(
                f"batch_size, accumulate_steps: an update takes {stage.accumulate_steps} x "
                f"{stage.batch_size} questions, but an epoch has only "
                f"{batches.examples_per_epoch}, and for this the original plans no learning rate; "
                "lower batch_size or accumulate_steps"
            )
        self._updates = Updates(batches.steps_per_epoch, stage.accumulate_steps)
        self._steps_to_evaluation = settings.eval_interval * stage.accumulate_steps
        self._schedule = create_learning_rate_schedule(
            "linear", stage.learning_rate, planned, stage.warmup_fraction
        )
        self.tx = create_optimizer(
            self._schedule, learning, self._updates, stage.weight_decay, stage.max_grad_norm
        )

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of a step."""
        return float(self._schedule(self._updates.before(step)))

    def has_dropout(self, step: int) -> bool:
        """Returns whether a step has dropout; see the last point of the module."""
        epoch, place = divmod(step, self._updates.steps_per_epoch)
        return epoch == 0 or place >= self._steps_to_evaluation


def learning_parameters(
    config: ElqConfig, type_optimization: str, part: str | None = None
) -> dict[str, bool]:
    """Lists the names of the parameters that learn, and whether their weights decay.

    Args:
      config: description of the model.
      type_optimization: name of a group of parameters, see `OriginalSettings`.
      part: name of the encoder whose parameters are listed, "question" or "entity"; paths then
        start below it. None: both encoders.

    Returns:
      path of each parameter -> whether it decays, such as
      {"question/bert/layers_0/query/kernel": True}.

    Raises:
      ElqError: there is no such group.
    """
    if type_optimization not in _LEARNING:
        raise ElqError(
            f"original.type_optimization: {type_optimization!r}; expected one of "
            f"{', '.join(_LEARNING)}"
        )
    learns = re.compile(_LEARNING[type_optimization])
    return {
        "/".join(path[1:] if part else path): not _NOT_DECAYED.search(name)
        for name, (path, _) in tensor_names(config).items()
        if learns.search(name) and part in (None, path[0])
    }


class OriginalState(NamedTuple):
    """State of the optimiser; names of parameters are paths joined with "/".

    Attributes:
      step: number of batches seen, int32.
      gradients: gradients of all parameters, added up since they were last cleared.
      grad_norm: global norm of these gradients after the last batch, before clipping, float32.
      mean: first moments of Adam, of the parameters that learn.
      variance: second moments of Adam, of the parameters that learn.
    """

    step: jax.Array
    gradients: dict[str, jax.Array]
    grad_norm: jax.Array
    mean: dict[str, jax.Array]
    variance: dict[str, jax.Array]


def create_optimizer(
    learning_rate: optax.Schedule,
    learning: Mapping[str, bool],
    updates: Updates,
    weight_decay: float = 0.01,
    max_grad_norm: float = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
) -> optax.GradientTransformation:
    """Makes the original's optimiser: accumulation, clipping and AdamW, as the module describes.

    Args:
      learning_rate: schedule over updates, counted from 0.
      learning: names of the parameters that learn, and whether they decay.
      updates: rule that says which batches end in an update.
      weight_decay: rate of decay; after an update, weights lose this rate times the learning rate.
      max_grad_norm: global L2 norm that all gradients are clipped to.
      b1: decay rate of Adam's first moment.
      b2: decay rate of Adam's second moment.
      eps: number added to the denominator of Adam's update.
    """

    def init(params: Any) -> OriginalState:
        flat = traverse_util.flatten_dict(params, sep="/")
        zeros = {name: jnp.zeros_like(value) for name, value in flat.items()}
        moments = {name: zeros[name] for name in learning}
        start = jnp.zeros((), jnp.int32), zeros, jnp.zeros(()), moments, moments
        return OriginalState(*jax.tree.map(jnp.copy, start))

    def update(grads: Any, state: OriginalState, params: Any) -> tuple[Any, OriginalState]:
        weights = traverse_util.flatten_dict(params, sep="/")
        gradients = traverse_util.flatten_dict(grads, sep="/")
        pending = {
            name: state.gradients[name] + value / updates.accumulate_steps
            for name, value in gradients.items()
        }
        norm = optax.tree.norm(pending)
        rate = learning_rate(updates.before(state.step))

        def make_update() -> tuple[Any, ...]:
            clip = jnp.minimum(1.0, max_grad_norm / (norm + 1e-6))
            changes = {name: jnp.zeros_like(value) for name, value in weights.items()}
            remaining = {name: clip * value for name, value in pending.items()}
            mean, variance = {}, {}
            for name, decays in learning.items():
                gradient = remaining[name]
                remaining[name] = jnp.zeros_like(gradient)
                mean[name] = b1 * state.mean[name] + (1 - b1) * gradient
                variance[name] = b2 * state.variance[name] + (1 - b2) * gradient**2
                change = -rate * mean[name] / (jnp.sqrt(variance[name]) + eps)
                if decays:
                    change -= rate * weight_decay * (weights[name] + change)
                changes[name] = change
            return changes, remaining, mean, variance

        def accumulate() -> tuple[Any, ...]:
            changes = {name: jnp.zeros_like(value) for name, value in weights.items()}
            return changes, pending, state.mean, state.variance

        if updates.accumulate_steps == 1:
            changes, remaining, mean, variance = make_update()
        else:
            changes, remaining, mean, variance = jax.lax.cond(
                updates.ends_at(state.step), make_update, accumulate
            )
        changes = traverse_util.unflatten_dict(changes, sep="/")
        return changes, OriginalState(state.step + 1, remaining, norm, mean, variance)

    return optax.GradientTransformation(init, update)
