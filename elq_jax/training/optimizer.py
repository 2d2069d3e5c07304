"""Makes learning-rate schedules, optimisers and training states; a recipe puts them together."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import traverse_util

from elq_jax.core.errors import ElqError
from elq_jax.core.registry import Registry

if TYPE_CHECKING:
    from elq_jax.model.config import ElqConfig
    from elq_jax.questions.batches import TrainingBatches

# Modules that start untrained, and so may learn faster than a published encoder. The linear map of
# mention vectors is not among them: it starts as the identity and should stay near it.
NEW_MODULES = ("mention_head", "mention_hidden", "log_scale")


class TrainState(flax.struct.PyTreeNode):
    """Holds everything that a training step changes.

    Attributes:
      step: int32 scalar, number of steps taken (batches seen).
      params: tree of the trained parameters.
      opt_state: state of the optimiser.
      tx: optimiser (not an array, not saved).
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    tx: optax.GradientTransformation = flax.struct.field(pytree_node=False)

    def apply_gradients(self, grads: Any) -> TrainState:
        """Returns the state after one more step."""
        updates, opt_state = self.tx.update(grads, self.opt_state, self.params)
        params = optax.apply_updates(self.params, updates)
        return self.replace(step=self.step + 1, params=params, opt_state=opt_state)


class Recipe(abc.ABC):
    """Base class of recipes, which decide how the parameters of a stage are optimised.

    Attributes:
      shuffle: whether an epoch has its questions in a random order; otherwise in that of the files.
      Settings: dataclass of the recipe's own settings, which are in the section of its name; None
        for a recipe without settings.
      tx: optimiser of the stage.
    """

    shuffle: ClassVar[bool] = True
    Settings: ClassVar[type | None] = None
    tx: optax.GradientTransformation

    @abc.abstractmethod
    def __init__(
        self,
        settings: Mapping[str, Any],
        stage: ml_collections.ConfigDict,
        config: ElqConfig,
        part: str | None,
        batches: TrainingBatches,
        num_steps: int,
    ):
        """Makes the optimiser of a stage.

        Args:
          settings: settings of the recipe, from the section of its name; empty without one.
          stage: section of the stage in the configuration.
          config: description of what the model computes.
          part: trained encoder, "question"; None: both of them.
          batches: batches of the stage.
          num_steps: number of batches of the stage.

        Raises:
          ElqError: a setting cannot be used.
        """

    @abc.abstractmethod
    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of a step (a batch), for the metrics."""

    def has_dropout(self, step: int) -> bool:
        """Returns whether a step has dropout."""
        return True


# Recipes by the name that a configuration's `recipe` gives them.
RECIPES: Registry[type[Recipe]] = Registry("recipe", "elq_jax.training.optimizer")


def recipe_of(config: ml_collections.ConfigDict) -> tuple[type[Recipe], Mapping[str, Any]]:
    """Finds the recipe that a configuration names, and its settings in the section of that name.

    Raises:
      ElqError: there is no such recipe, or there are settings of another one.
    """
    recipe = RECIPES.get(config.recipe)
    name = config.recipe.rpartition(":")[2]
    if "original" in config and name != "original":
        raise ElqError(
            f"original: this section has settings of another recipe than {config.recipe!r}; give "
            "--config.recipe=elq_jax.original.recipe:original, or remove the section"
        )
    return recipe, config.get(name, {})


def create_learning_rate_schedule(
    schedule: str, learning_rate: float, num_updates: int, warmup_fraction: float
) -> optax.Schedule:
    """Makes a learning-rate schedule: linear warm-up from 0, then decay to 0 at `num_updates`.

    Args:
      schedule: shape of the decay: "linear", "cosine" or "constant" (no decay).
      learning_rate: peak learning rate.
      num_updates: number of updates of the whole run (steps / accumulation).
      warmup_fraction: share of `num_updates` that the warm-up takes.

    Raises:
      ElqError: there is no such schedule.
    """
    warmup = int(num_updates * warmup_fraction)
    rest = max(num_updates - warmup, 1)
    decays = {
        "linear": lambda: optax.linear_schedule(learning_rate, 0.0, rest),
        "cosine": lambda: optax.cosine_decay_schedule(learning_rate, rest),
        "constant": lambda: optax.constant_schedule(learning_rate),
    }
    if schedule not in decays:
        raise ElqError(f"schedule: {schedule!r}; expected one of {', '.join(decays)}")
    decay = decays[schedule]()
    if not warmup:
        return decay
    ramp = optax.linear_schedule(0.0, learning_rate, warmup)
    return optax.join_schedules([ramp, decay], [warmup])


def create_optimizer(
    learning_rate: optax.ScalarOrSchedule,
    *,
    new_module_factor: float = 1.0,
    weight_decay: float = 0.01,
    max_grad_norm: float = 1.0,
    accumulate_steps: int = 1,
) -> optax.GradientTransformation:
    """Makes AdamW with clipping by global norm; biases, norms and the scale do not decay.

    Args:
      learning_rate: learning rate of the pretrained parameters.
      new_module_factor: factor of the learning rate for `NEW_MODULES`.
      weight_decay: factor of the decoupled decay, multiplied by the learning rate.
      max_grad_norm: global L2 norm that gradients are clipped to.
      accumulate_steps: number of batches whose gradients are averaged for one update.
    """
    tx = optax.chain(
        optax.clip_by_global_norm(max_grad_norm),
        optax.scale_by_adam(),
        optax.add_decayed_weights(weight_decay, mask=_is_decayed),
        optax.masked(optax.scale(new_module_factor), _is_new),
        optax.scale_by_learning_rate(learning_rate),
    )
    if accumulate_steps > 1:
        tx = optax.MultiSteps(tx, accumulate_steps).gradient_transformation()
    return tx


@RECIPES.register("standard")
class StandardRecipe(Recipe):
    """The standard recipe: AdamW with warm-up and decay, by the settings of the stage."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        stage: ml_collections.ConfigDict,
        config: ElqConfig,
        part: str | None,
        batches: TrainingBatches,
        num_steps: int,
    ):
        if settings:
            raise ElqError(
                f"standard: found {', '.join(sorted(settings))}, but this recipe has no settings "
                "of its own; remove the section"
            )
        self._accumulate_steps = stage.accumulate_steps
        self._schedule = create_learning_rate_schedule(
            stage.schedule,
            stage.learning_rate,
            max(num_steps // stage.accumulate_steps, 1),
            stage.warmup_fraction,
        )
        self.tx = create_optimizer(
            self._schedule,
            new_module_factor=stage.new_module_factor,
            weight_decay=stage.weight_decay,
            max_grad_norm=stage.max_grad_norm,
            accumulate_steps=stage.accumulate_steps,
        )

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of a step; steps of one update have the same."""
        return float(self._schedule(step // self._accumulate_steps))


def create_train_state(params: Any, tx: optax.GradientTransformation) -> TrainState:
    """Makes a state at step 0."""
    params = jax.tree.map(jnp.asarray, params)
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), tx)


def _is_decayed(params: Mapping[str, Any]) -> Any:
    """Marks with True the parameters that decay: kernels and embeddings."""
    return traverse_util.path_aware_map(lambda path, _: path[-1] in ("kernel", "embedding"), params)


def _is_new(params: Mapping[str, Any]) -> Any:
    """Marks with True the parameters of `NEW_MODULES`."""
    return traverse_util.path_aware_map(
        lambda path, _: any(name in NEW_MODULES for name in path), params
    )
