"""Defines the settings of linking, which are the "linking" part of config.json."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from elq_jax.core.errors import ElqError, check_count
from elq_jax.core.settings import make_settings
from elq_jax.linking.decoding import DECODERS, Decoder

if TYPE_CHECKING:
    from elq_jax.model.elq import ElqConfig

# Older files have these beside the other settings; the values are their defaults.
_OLD = {
    "threshold_type": "joint",
    "mention_threshold": None,
    "allow_special_tokens": False,
    "special_tokens_in_text": False,
}
_OLD_DECODER = "elq_jax.original.decoding:original"


@dataclasses.dataclass(frozen=True)
class LinkingSettings:
    """Holds the settings that decide how scores become links.

    Attributes:
      threshold: score that links must exceed: a log-probability, so a number below 0.
      max_mentions: K, largest number of mentions searched for in a question.
      num_candidates: C, number of entities retrieved for a mention; the linking softmax runs over
        them.
      max_question_tokens: largest T, [CLS] and [SEP] included; None: the model's own.
      decoder: name in `decoding.DECODERS` of the decoder, which chooses among scored spans.
      decoder_settings: settings of the decoder, by name.
      candidate_scoring: whether candidates are rescored by their names, in a linker that has the
        weights for it; for others it changes nothing.
      other_threshold: best threshold for the opposite of `candidate_scoring`; the two thresholds
        change places when `candidate_scoring` is changed and no threshold is given with it.
    """

    threshold: float = -4.5
    max_mentions: int = 10
    num_candidates: int = 10
    max_question_tokens: int | None = None
    decoder: str = "joint"
    decoder_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    candidate_scoring: bool = True
    other_threshold: float | None = None

    def __post_init__(self):
        _check_number("threshold", self.threshold)
        if self.other_threshold is not None:
            _check_number("other_threshold", self.other_threshold)
        if not isinstance(self.candidate_scoring, bool):
            raise ElqError(f"candidate_scoring: {self.candidate_scoring!r}; expected true or false")
        check_count("max_mentions", self.max_mentions)
        check_count("num_candidates", self.num_candidates)
        if self.max_question_tokens is not None:
            check_count("max_question_tokens", self.max_question_tokens, least=3)
        if self.decoding.log_probabilities and 0 <= self.threshold < math.inf:
            raise ElqError(
                f"threshold: {self.threshold:g}; scores are log-probabilities, below 0, so nothing "
                "would be linked; give a negative number such as -4.5 (-0.69 is a probability of "
                "0.5)"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LinkingSettings:
        """Reads the "linking" part of config.json, or settings given by name.

        Files written before decoders had names are read too.

        Raises:
          ElqError: a setting is unknown or out of range.
        """
        old = {name: value for name, value in values.items() if name in _OLD}
        values = {name: value for name, value in values.items() if name not in _OLD}
        if old and "decoder" not in values and _OLD | old != _OLD:
            values |= {"decoder": _OLD_DECODER} | _OLD | old
        return cls().replace(**values)

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as JSON values, the inverse of `from_dict`."""
        return dataclasses.asdict(self)

    def replace(self, **changes: Any) -> LinkingSettings:
        """Returns the same settings with other values.

        Args:
          **changes: fields of this class, or settings of the decoder by their own names. Another
            decoder starts with its default settings, and another `candidate_scoring` with the
            threshold that was chosen for it.

        Raises:
          ElqError: a setting is unknown or out of range.
        """
        changes = {
            name: float(value) if value in ("inf", "-inf") else value  # as `write_json` writes them
            for name, value in changes.items()
        }
        scoring = changes.get("candidate_scoring", self.candidate_scoring)
        if scoring != self.candidate_scoring and self.other_threshold is not None:
            thresholds = {"threshold": self.other_threshold, "other_threshold": self.threshold}
            changes = thresholds | changes
        name = changes.get("decoder", self.decoder)
        settings = self.decoder_settings if name == self.decoder else {}
        settings = {**settings, **changes.pop("decoder_settings", {})}
        known = [field.name for field in dataclasses.fields(self)]
        settings |= {key: changes.pop(key) for key in set(changes) - set(known)}
        return dataclasses.replace(self, **changes, decoder_settings=settings)

    def at(self, threshold: float | None) -> LinkingSettings:
        """Returns the settings with another threshold; None: as they are."""
        return self if threshold is None else self.replace(threshold=threshold)

    def question_tokens(self, config: ElqConfig) -> int:
        """Returns the largest T of questions for a model: that of the settings, or the model's.

        Raises:
          ElqError: the encoder has fewer positions.
        """
        size, positions = self.max_question_tokens, config.question_bert.max_positions
        if size is None:
            return config.max_question_tokens
        if size > positions:
            raise ElqError(
                f"max_question_tokens: {size}; expected 3 to {positions} (the encoder's positions)"
            )
        return size

    @functools.cached_property
    def decoding(self) -> Decoder:
        """Makes the decoder of these settings.

        Raises:
          ElqError: the decoder, or one of its settings, is unknown or of another type.
        """
        kind = DECODERS.get(self.decoder)
        decoder_names = [field.name for field in dataclasses.fields(kind)]
        for name in self.decoder_settings:
            if name not in decoder_names:
                names = [field.name for field in dataclasses.fields(self)] + decoder_names
                raise ElqError(f"setting {name!r}: unknown; expected one of {', '.join(names)}")
        return make_settings(kind, self.decoder_settings)


def _check_number(name: str, value: Any) -> None:
    """Raises an ElqError unless a value is a real number, infinite or not."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or value != value:
        raise ElqError(f"{name}: {value!r}; expected a number")
