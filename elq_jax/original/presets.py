"""Thresholds and settings that the original's models were published with, by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from elq_jax.core.errors import ElqError


@dataclasses.dataclass(frozen=True)
class Preset:
    """A preset holds the settings of one of the original's commands, fields of `LinkingSettings`.

    Attributes:
      threshold: score that links must exceed.
      max_mentions: K, largest number of mentions searched for in a question.
      num_candidates: C, number of entities retrieved for a mention.
      max_question_tokens: largest T; None: the model's own.
    """

    threshold: float
    max_mentions: int = 50
    num_candidates: int = 10
    max_question_tokens: int | None = None


PRESETS = {
    # `main_dense.py -i`, and the example of use as a library.
    "interactive": Preset(-4.5),
    "library": Preset(-4.5, max_mentions=10),
    # elq_wiki_large.bin on both benchmarks.
    "webqsp": Preset(-2.9, max_question_tokens=32),
    "graphquestions": Preset(-2.9, max_question_tokens=32),
    # elq_webqsp_large.bin, which was trained on WebQSP too.
    "webqsp_finetuned": Preset(-1.5, max_question_tokens=32),
    "graphquestions_finetuned": Preset(-0.9, max_question_tokens=32),
}


def get_preset(name: str) -> Preset:
    """Looks up a preset by its name.

    Raises:
      ElqError: there is none.
    """
    if name not in PRESETS:
        raise ElqError(f"preset: {name!r}; expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


def with_preset(name: str | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Fills in the settings that are not given from a preset.

    A preset has all of its settings, so that nothing is left of the one that a linker was saved
    with: max_question_tokens=None is the model's own length.

    Args:
      name: name of the preset, or None.
      settings: settings by name; None where one is not given.

    Returns:
      settings for `EntityLinker.from_pretrained`.
    """
    preset = dataclasses.asdict(get_preset(name)) if name else {}
    given = {key: value for key, value in settings.items() if value is not None}
    return preset | given
