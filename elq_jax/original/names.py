"""Maps the names of the original's tensors to the parameters of our model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from elq_jax.model.config import ElqConfig
from elq_jax.model.parameters import huggingface_names

_HEADS = {
    # Our module -> its place in the original's nn.Sequential; "" where that is one nn.Linear.
    "linear": {"mention_head": ""},
    "mlp": {"mention_hidden": "0.", "mention_head": "3."},
}


def tensor_names(config: ElqConfig) -> dict[str, tuple[tuple[str, ...], bool]]:
    """Maps each tensor that a model of the original computes with to one of our parameters.

    The original's files also hold the question encoder's pooler, which is never used and therefore
    left out.

    Args:
      config: description of what the model computes.

    Returns:
      name in the state dict -> (path in {"question": tree, "entity": tree}, whether the tensor is
      transposed).
    """
    names = {}
    for encoder, prefix in (("question", "context_encoder"), ("entity", "cand_encoder")):
        with_pooler = encoder == "entity" and config.entity_pooling == "pooler_linear"
        bert = getattr(config, f"{encoder}_bert")
        for name, (path, transposed) in huggingface_names(bert, with_pooler).items():
            names[f"{prefix}.bert_model.{name}"] = ((encoder, "bert", *path), transposed)

    def dense(module: tuple[str, ...], prefix: str) -> None:
        names[f"{prefix}weight"] = ((*module, "kernel"), True)
        names[f"{prefix}bias"] = ((*module, "bias"), False)

    for module, index in _HEADS[config.mention_head].items():
        head = f"classification_heads.mention_scores.bound_classifier.{index}"
        dense(("question", module), head)
    if config.mention_aggregation.endswith("_linear"):
        head = "classification_heads.get_context_embeds.mention_agg_linear."
        dense(("question", "mention_linear"), head)
    if config.entity_pooling == "pooler_linear":
        dense(("entity", "pooler_linear"), "cand_encoder.additional_linear.")
    return names


def params_from_state_dict(tensors: Mapping[str, np.ndarray], config: ElqConfig) -> dict[str, Any]:
    """Converts the state dict of an original model to {"question": tree, "entity": tree}.

    Args:
      tensors: arrays by the original's names; those that are not needed are ignored.
      config: description of what the model computes.

    Returns:
      parameters of both encoders, float32 arrays.

    Raises:
      ValueError: a tensor is missing.
    """
    params: dict[str, Any] = {}
    for name, (path, transposed) in tensor_names(config).items():
        if name not in tensors:
            raise ValueError(f"checkpoint: tensor {name!r} is missing; expected an ELQ model")
        node = params
        for key in path[:-1]:
            node = node.setdefault(key, {})
        value = np.asarray(tensors[name], np.float32)
        node[path[-1]] = value.T if transposed else value
    return params
