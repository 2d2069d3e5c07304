"""Lists the thresholds and settings that the original's models were published with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from elq_jax.core.errors import ElqError


@dataclasses.dataclass(frozen=True)
class Preset:
    """Settings of one of the original's commands; the fields are those of `LinkingSettings`.

    Attributes:
      threshold: score that links must exceed.
      max_mentions: largest number K of mentions searched for in a question.
      num_candidates: number C of entities retrieved for a mention.
      max_question_tokens: largest number T of tokens of a question; None: that of the model.
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
    """Returns the preset of a name.

    Raises:
      ElqError: no preset has this name.
    """
    if name not in PRESETS:
        raise ElqError(f"preset: {name!r}; expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


def with_preset(name: str | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Completes settings with those of a preset.

    The result has all settings of the preset, so that none of those that a linker was saved with
    remains. In particular max_question_tokens=None stands for the length of the model.

    Args:
      name: name of the preset; None: nothing is added.
      settings: settings by name, which take precedence; None means that a setting is not chosen.

    Returns:
      settings for `EntityLinker.from_pretrained`.

    Raises:
      ElqError: no preset has this name.
    """
    preset = dataclasses.asdict(get_preset(name)) if name else {}
    chosen = {key: value for key, value in settings.items() if value is not None}
    return preset | chosen
