"""How scores become links."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping
from typing import Any

from elq_jax.core.errors import ElqError, check_count
from elq_jax.linking.decoding import THRESHOLD_TYPES


@dataclasses.dataclass(frozen=True)
class LinkingSettings:
    """How scores become links; the "linking" part of config.json.

    Attributes:
      threshold: keep links with score > threshold.
      max_mentions: K, mentions searched for at most in a question.
      num_candidates: C, entities retrieved for a mention; the linking softmax runs over them.
      threshold_type: "joint", or one of the original's two others (see `decode_batch`).
      mention_threshold: of the other two types.
      max_question_tokens: T at most, [CLS] and [SEP] included; None: the model's own.
      allow_special_tokens: let mentions contain [CLS] or [SEP], as the original does.
      special_tokens_in_text: read a literal "[SEP]" in a question as the token, as the original
        does, and not as text.
    """

    threshold: float = -4.5
    max_mentions: int = 10
    num_candidates: int = 10
    threshold_type: str = "joint"
    mention_threshold: float | None = None
    max_question_tokens: int | None = None
    allow_special_tokens: bool = False
    special_tokens_in_text: bool = False

    def __post_init__(self):
        _check_number("threshold", self.threshold)
        check_count("max_mentions", self.max_mentions)
        check_count("num_candidates", self.num_candidates)
        if self.threshold_type not in THRESHOLD_TYPES:
            raise ElqError(
                f"threshold_type: {self.threshold_type!r}; expected one of {THRESHOLD_TYPES}"
            )
        if self.mention_threshold is not None:
            _check_number("mention_threshold", self.mention_threshold)
        if self.max_question_tokens is not None:
            check_count("max_question_tokens", self.max_question_tokens, least=3)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LinkingSettings:
        """Reads the "linking" part of config.json, or settings given by name.

        Raises:
          ElqError: a setting is unknown or out of range.
        """
        return cls().replace(**values)

    def to_dict(self) -> dict[str, Any]:
        """The inverse of `from_dict`."""
        return dataclasses.asdict(self)

    def replace(self, **changes: Any) -> LinkingSettings:
        """The same with other values; raises an ElqError as `from_dict` does."""
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise ElqError(f"setting {name!r}: unknown; expected one of {', '.join(known)}")
        for name in ("threshold", "mention_threshold"):
            if changes.get(name) in ("inf", "-inf"):  # as `write_json` writes them
                changes[name] = float(changes[name])
        return dataclasses.replace(self, **changes)

    @property
    def prune_threshold(self) -> float:
        """log p(mention) must be above this for the mention to be searched for.

        For "joint" nothing is lost: a joint score is never above log p(mention).
        """
        if self.threshold_type == "top_entity_by_mention":
            return self.threshold if self.mention_threshold is None else self.mention_threshold
        return self.threshold


def _check_number(name: str, value: Any) -> None:
    """A real number, infinite or not."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or value != value:
        raise ElqError(f"{name}: {value!r}; expected a number")
