"""Train state, learning-rate schedule and optimiser."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from elq_jax.core.errors import ElqError
from elq_jax.core.registry import Registry

# Modules that learn from nothing, and so may go faster than a published encoder. The linear map of
# mention vectors is not among them: it starts as the identity and should stay near it.
NEW_MODULES = ("mention_head", "mention_hidden", "log_scale")


class TrainState(flax.struct.PyTreeNode):
    """What a training step changes.

    Attributes:
      step: int32 scalar, number of steps taken (batches seen).
      params: the tree that is trained.
      opt_state: of the optimiser.
      tx: the optimiser (not an array, not saved).
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    tx: optax.GradientTransformation = flax.struct.field(pytree_node=False)

    def apply_gradients(self, grads: Any) -> TrainState:
        """The state after one more step."""
        updates, opt_state = self.tx.update(grads, self.opt_state, self.params)
        params = optax.apply_updates(self.params, updates)
        return self.replace(step=self.step + 1, params=params, opt_state=opt_state)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a stage is trained.

    Attributes:
      tx: the optimiser.
      learning_rate: of a step (a batch), for the record.
      has_dropout: whether a step has dropout.
    """

    tx: optax.GradientTransformation
    learning_rate: Callable[[int], float]
    has_dropout: Callable[[int], bool] = lambda step: True


# Other ways to train than the one in this file: functions that return a `Recipe`.
RECIPES: Registry[Callable[..., Recipe]] = Registry("recipe", "elq_jax.training.optimizer")


def create_learning_rate_schedule(
    schedule: str, learning_rate: float, num_updates: int, warmup_fraction: float
) -> optax.Schedule:
    """Linear warm-up from 0 to `learning_rate`, then decay to 0 at `num_updates`.

    Args:
      schedule: "linear", "cosine" or "constant" (no decay).
      learning_rate: the peak.
      num_updates: updates of the whole run (steps / accumulation).
      warmup_fraction: of `num_updates`.

    Raises:
      ElqError: unknown schedule.
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
    """AdamW with clipping by global norm; no decay on biases, norms and the scale.

    Args:
      learning_rate: of the pretrained parameters.
      new_module_factor: times the learning rate for `NEW_MODULES`.
      weight_decay: decoupled, multiplied by the learning rate.
      max_grad_norm: global L2 norm that gradients are clipped to.
      accumulate_steps: batches whose gradients are averaged for one update.
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


def create_train_state(params: Any, tx: optax.GradientTransformation) -> TrainState:
    """A state at step 0."""
    params = jax.tree.map(jnp.asarray, params)
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), tx)


def _is_decayed(params: Mapping[str, Any]) -> Any:
    """True for matrices: kernels and embeddings."""
    return traverse_util.path_aware_map(lambda path, _: path[-1] in ("kernel", "embedding"), params)


def _is_new(params: Mapping[str, Any]) -> Any:
    return traverse_util.path_aware_map(
        lambda path, _: any(name in NEW_MODULES for name in path), params
    )
