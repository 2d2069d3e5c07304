"""Thresholds and settings that the original's models were published with, by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from elq_jax.core.errors import ElqError


@dataclasses.dataclass(frozen=True)
class Preset:
    """Settings of one of the original's commands: fields of `LinkingSettings`.

    Attributes:
      threshold: keep links with a joint score above it.
      max_mentions: K, mentions searched for at most in a question.
      num_candidates: C, entities retrieved for a mention.
      max_question_tokens: T at most; None: the model's own.
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
    """The preset of a name.

    Raises:
      ElqError: there is none.
    """
    if name not in PRESETS:
        raise ElqError(f"preset: {name!r}; expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


def with_preset(name: str | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings for `EntityLinker.from_pretrained`: those given, and for the rest a preset's.

    A preset has all of its settings, so that nothing is left of the one that a linker was saved
    with: max_question_tokens=None is the model's own length.

    Args:
      name: of the preset, or None.
      settings: None where one is not given.
    """
    preset = dataclasses.asdict(get_preset(name)) if name else {}
    given = {key: value for key, value in settings.items() if value is not None}
    return preset | given
