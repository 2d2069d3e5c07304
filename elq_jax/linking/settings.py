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
    from elq_jax.model.config import ElqConfig

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
      max_mentions: K, largest number of mentions searched for in a question, or in each window of a
        longer text.
      num_candidates: C, number of entities retrieved for a mention; the linking softmax runs over
        them.
      max_question_tokens: largest T, [CLS] and [SEP] included; None: the model's own. A text of
        more tokens is read in windows of that many, unless the decoder cuts it.
      overlap_tokens: number of tokens that two windows of a text share, at least, up to half a
        window; None: as many as the widest mention has, less one, so that every mention is whole in
        some window. With more, mentions have more context, and long texts take longer.
      decoder: name in `decoding.DECODERS` of the decoder, which chooses among scored spans.
      decoder_settings: settings of the decoder, by name.
      candidate_scoring: whether candidates are rescored by their names, in a linker that has the
        weights for it; for others it changes nothing.
      spelling: whether the spelling of questions is corrected, in a linker that has the words of
        its catalogue; for others it changes nothing.
      thresholds: best thresholds by `way` of linking; another way begins with its own.
    """

    threshold: float = -4.5
    max_mentions: int = 10
    num_candidates: int = 10
    max_question_tokens: int | None = None
    overlap_tokens: int | None = None
    decoder: str = "joint"
    decoder_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    candidate_scoring: bool = True
    spelling: bool = True
    thresholds: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        _check_number("threshold", self.threshold)
        for way, threshold in self.thresholds.items():
            _check_number(f"thresholds[{way!r}]", threshold)
        for name in ("candidate_scoring", "spelling"):
            if not isinstance(value := getattr(self, name), bool):
                raise ElqError(f"{name}: {value!r}; expected true or false")
        if self.decoding.needs_confidence and not self.candidate_scoring:
            raise ElqError(
                f"decoder: {self.decoder!r} needs candidate scoring; turn candidate_scoring on, or "
                "give decoder='joint'"
            )
        check_count("max_mentions", self.max_mentions)
        check_count("num_candidates", self.num_candidates)
        if self.max_question_tokens is not None:
            check_count("max_question_tokens", self.max_question_tokens, least=3)
        if self.overlap_tokens is not None:
            check_count("overlap_tokens", self.overlap_tokens, least=0)
        if self.decoding.log_probabilities and 0 <= self.threshold < math.inf:
            raise ElqError(
                f"threshold: {self.threshold:g}; scores are log-probabilities, below 0, so nothing "
                "would be linked; give a negative number such as -4.5 (-0.69 is a probability of "
                "0.5), or a min_probability"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LinkingSettings:
        """Reads the "linking" part of config.json, or settings given by name.

        Files written before decoders had names are read too.

        Raises:
          ElqError: a setting is unknown or out of range.
        """
        old = {name: value for name, value in values.items() if name in _OLD}
        ignored = {*_OLD, "long_texts"}
        values = {name: value for name, value in values.items() if name not in ignored}
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
            decoder starts with its default settings, and another `way` with the threshold that was
            chosen for it. "min_probability" stands for a threshold: the probability that links must
            have. Without `candidate_scoring` there are no probabilities, so a decoder that needs
            them gives way to "joint".

        Raises:
          ElqError: a setting is unknown or out of range, or two of them decide the threshold.
        """
        changes = {name: _written(value) for name, value in changes.items()}
        name = changes.get("decoder", self.decoder)
        scoring = changes.get("candidate_scoring", self.candidate_scoring)
        if scoring is False and "decoder" not in changes and DECODERS.get(name).needs_confidence:
            name = changes["decoder"] = "joint"
        if (probability := changes.pop("min_probability", None)) is not None:
            if "threshold" in changes:
                raise ElqError("threshold, min_probability: both decide; give one of them")
            if not DECODERS.get(name).needs_confidence:
                raise ElqError(
                    f"min_probability: links of the decoder {name!r} have no probability; give a "
                    "threshold"
                )
            changes["threshold"] = threshold_of(probability)
        way = way_of(name, scoring)
        if way != self.way and way in self.thresholds:
            thresholds = {**self.thresholds, self.way: self.threshold}
            changes = {"threshold": self.thresholds[way], "thresholds": thresholds} | changes
        settings = self.decoder_settings if name == self.decoder else {}
        settings = {**settings, **changes.pop("decoder_settings", {})}
        known = [field.name for field in dataclasses.fields(self)]
        settings |= {key: changes.pop(key) for key in set(changes) - set(known)}
        return dataclasses.replace(self, **changes, decoder_settings=settings)

    def at(
        self, threshold: float | None = None, min_probability: float | None = None
    ) -> LinkingSettings:
        """Returns the settings with another threshold; None: as they are.

        Args:
          threshold: score that links must exceed.
          min_probability: probability that links must have, instead of a threshold.

        Raises:
          ElqError: both are given, one is out of range, or links have no probability.
        """
        if min_probability is None and threshold in (None, self.threshold):
            return self  # with the decoder that it has made already
        values = {"threshold": threshold, "min_probability": min_probability}
        changes = {name: value for name, value in values.items() if value is not None}
        return self.replace(**changes) if changes else self

    @property
    def way(self) -> str:
        """Returns a name for what the scores of these settings mean, a key of `thresholds`."""
        return way_of(self.decoder, self.candidate_scoring)

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
        decoder_names = _fields_of(kind)
        for name in self.decoder_settings:
            if name not in decoder_names:
                owners = [key for key in DECODERS.names if name in _fields_of(DECODERS.get(key))]
                if owners:
                    raise ElqError(
                        f"setting {name!r}: a setting of the decoder {owners[0]!r}, found decoder "
                        f"{self.decoder!r}; leave it out, or use a linker with that decoder"
                    )
                names = _fields_of(type(self)) + decoder_names
                raise ElqError(f"setting {name!r}: unknown; expected one of {', '.join(names)}")
        return make_settings(kind, self.decoder_settings)


def _fields_of(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def way_of(decoder: str, candidate_scoring: bool) -> str:
    """Returns the `LinkingSettings.way` of a decoder with or without candidate scoring."""
    return decoder if candidate_scoring else f"{decoder}, candidates as searched"


def threshold_of(probability: float) -> float:
    """Returns the threshold that links of at least this probability exceed.

    Raises:
      ElqError: it is not a number from 0 to 1.
    """
    _check_number("min_probability", probability)
    if not 0 <= probability <= 1:
        raise ElqError(f"min_probability: {probability:g}; expected a number from 0 to 1")
    return math.nextafter(math.log(probability), -math.inf) if probability else -math.inf


def _written(value: Any) -> Any:
    """Returns a setting as it was before `write_json` wrote infinite numbers as text."""
    if isinstance(value, Mapping):
        return {name: _written(part) for name, part in value.items()}
    return float(value) if value in ("inf", "-inf") else value


def _check_number(name: str, value: Any) -> None:
    """Raises an ElqError unless a value is a real number, infinite or not."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or value != value:
        raise ElqError(f"{name}: {value!r}; expected a number")
