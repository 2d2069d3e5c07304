"""Sets a share of labelled questions apart, by their texts, which is never trained on."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from elq_jax.core.strings import made_whole

if TYPE_CHECKING:
    from elq_jax.questions.prepared import QuestionSource
    from elq_jax.questions.records import Question


def is_held_out(text: str, share: float) -> bool:
    """Decides by a hash of its text whether a question is held out, so in every file the same way.

    Args:
      text: text of the question.
      share: share of all texts that are held out, 0 to 1.
    """
    digest = hashlib.sha256(made_whole(text).encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


class QuestionPart(Sequence["Question"]):
    """The held-out questions of a source, or all others, in the order of the source.

    If none would remain to be trained on, none is held out.

    Args:
      questions: source of questions.
      share: share of questions that are held out.
      held_out: whether this is the held-out part.

    Attributes:
      fingerprint: string that identifies the questions and their gold.
    """

    def __init__(self, questions: QuestionSource, share: float, held_out: bool):
        self._questions, self._share, self._held_out = questions, share, held_out
        part = "held out of" if held_out else "left by"
        self.fingerprint = f"{questions.fingerprint}, {part} {share}"

    @functools.cached_property
    def _numbers(self) -> np.ndarray:
        """Numbers of the questions in the source; all texts are read once, when they are needed."""
        texts = (question.text for question in self._questions)
        held_out = np.array([is_held_out(text, self._share) for text in texts], bool)
        held_out &= not held_out.all()
        return np.flatnonzero(held_out == self._held_out)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: int) -> Question:
        return self._questions[int(self._numbers[number])]
