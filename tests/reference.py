"""Numbers that the original produced, and the model that it produced them with."""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Any

import numpy as np
from conftest import FIXTURES

from elq_jax.model.bundle import Model
from elq_jax.model.config import BertConfig, ElqConfig
from elq_jax.original.names import params_from_state_dict
from elq_jax.text.tokenization import Tokenizer


class FixtureSet:
    """A folder of reference numbers, and the model that they were made with.

    Args:
      folder: what the fixtures' README describes.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def json(self, name: str) -> Any:
        """Content of one .json file."""
        return json.loads((self.folder / f"{name}.json").read_text())

    @functools.cache  # noqa: B019 (sets live as long as the tests)
    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """All arrays of one .npz file."""
        with np.load(self.folder / f"{name}.npz") as file:
            return dict(file)

    @functools.cache  # noqa: B019 (sets live as long as the tests)
    def config(self, **changes) -> ElqConfig:
        """What the model computes."""
        params = self.json("params")
        bert = BertConfig.from_huggingface(params["config"])
        width = params["params"].get("max_mention_length", 10) + 1
        return ElqConfig(bert, bert, **{"max_mention_width": width} | changes)

    @functools.cache  # noqa: B019 (sets live as long as the tests)
    def params(self) -> dict:
        """{"question": tree, "entity": tree} of the model."""
        return params_from_state_dict(self.arrays("state_dict"), self.config())

    def model(self, **changes) -> Model:
        """The model; `changes` are of its configuration."""
        return Model(self.config(**changes), self.params(), Tokenizer.from_pretrained("minilm"))


# The numbers that parity tests compare with: another set, where one is given (see conftest).
_GIVEN = FixtureSet(FIXTURES)
arrays, config, params, model = _GIVEN.arrays, _GIVEN.config, _GIVEN.params, _GIVEN.model


def enumerated(band: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Values of spans [B, T, W] in the original's enumeration [B, n]."""
    return square(band)[:, bounds[:, 0], bounds[:, 1]]


def square(band: np.ndarray, empty: float | bool = -np.inf) -> np.ndarray:
    """Values of spans [B, T, W] by first and last token [B, T, T], `empty` where there is none."""
    batch, length, width = np.shape(band)
    grid = np.full((batch, length, length), empty)
    for i in range(length):
        for w in range(min(width, length - i)):
            grid[:, i, i + w] = np.asarray(band)[:, i, w]
    return grid


def band_of(grid: np.ndarray, empty: float | bool = -np.inf) -> np.ndarray:
    """The inverse of `square`, with W = T."""
    batch, length, _ = np.shape(grid)
    band = np.full((batch, length, length), empty, np.asarray(grid).dtype)
    for i in range(length):
        band[:, i, : length - i] = np.asarray(grid)[:, i, i:]
    return band
