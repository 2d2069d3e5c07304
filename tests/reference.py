"""The tiny model of the fixtures, with the parameters that the original saved."""

from __future__ import annotations

import functools
import json

import numpy as np
from conftest import FIXTURES

from elq_jax.model.bert import BertConfig
from elq_jax.model.elq import ElqConfig, params_from_original


@functools.cache
def arrays(name: str) -> dict[str, np.ndarray]:
    """All arrays of one .npz fixture."""
    with np.load(FIXTURES / f"{name}.npz") as file:
        return dict(file)


@functools.cache
def tiny_config(**changes) -> ElqConfig:
    """Configuration of the fixtures' model (X = 10, so 11 tokens)."""
    huggingface = json.loads((FIXTURES / "params.json").read_text())["config"]
    bert = BertConfig.from_huggingface(huggingface)
    return ElqConfig(bert, bert, **changes)


@functools.cache
def tiny_params() -> dict:
    """{"question": ..., "entity": ...} of the fixtures' model."""
    return params_from_original(arrays("state_dict"), tiny_config())


def enumerated(grid: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Grid values [B, T, T] in the original's enumeration [B, n]."""
    return np.asarray(grid)[:, bounds[:, 0], bounds[:, 1]]
