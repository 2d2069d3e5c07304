"""Describes models: sizes of a BERT encoder, and what the two encoders of ELQ compute."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from elq_jax.core import typed

MENTION_HEADS = ("linear", "mlp")
MENTION_AGGREGATIONS = ("all_avg", "fl_avg", "all_avg_linear", "fl_linear")
ENTITY_POOLINGS = ("cls", "mean", "pooler_linear")


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Sizes of a BERT encoder.

    Attributes:
      vocab_size: number of rows of the word embedding.
      hidden_size: width D of the hidden states.
      num_layers: number of transformer layers.
      num_heads: number of attention heads; divides `hidden_size`.
      intermediate_size: width of the feed-forward layer.
      max_positions: largest T.
      num_token_types: number of rows of the segment embedding; only row 0 is used.
      layer_norm_eps: number added to the variance in layer norms.
      dropout_rate: rate of dropout on hidden states.
      attention_dropout_rate: rate of dropout on attention weights.
    """

    # The bounds are far above any BERT: a file that says more is damaged, and is refused before
    # anything of such a size is allocated or looped over.
    vocab_size: Annotated[int, msgspec.Meta(ge=1, le=2**24)] = 30522
    hidden_size: Annotated[int, msgspec.Meta(ge=1, le=2**16)] = 768
    num_layers: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 12
    num_heads: Annotated[int, msgspec.Meta(ge=1, le=2**16)] = 12
    intermediate_size: Annotated[int, msgspec.Meta(ge=1, le=2**20)] = 3072
    max_positions: Annotated[int, msgspec.Meta(ge=3, le=2**20)] = 512
    num_token_types: Annotated[int, msgspec.Meta(ge=1, le=2**16)] = 2
    layer_norm_eps: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 1e-12
    dropout_rate: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.1
    attention_dropout_rate: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.1

    def __post_init__(self):
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"num_heads: {self.num_heads}; expected a divisor of hidden_size, "
                f"{self.hidden_size}"
            )

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any]) -> BertConfig:
        """Reads the `config.json` of a published BERT.

        Raises:
          ValueError: the checkpoint is not a BERT that this module computes.
        """
        expected = {
            "model_type": ("bert", None),
            "hidden_act": ("gelu", None),
            "position_embedding_type": ("absolute", None),
        }
        for key, allowed in expected.items():
            if config.get(key) not in allowed:
                raise ValueError(f"config.json: {key} is {config[key]!r}; expected {allowed[0]!r}")
        values = {ours: config[name] for name, ours in _REQUIRED.items()}
        values |= {ours: config[name] for name, ours in _OPTIONAL.items() if name in config}
        try:
            return msgspec.convert(values, cls)
        except msgspec.ValidationError as error:
            message = str(error.__cause__ or typed.explain(error, values))
            for name, ours in {**_REQUIRED, **_OPTIONAL}.items():
                message = re.sub(rf"\b{ours}\b", name, message)
            raise ValueError(f"config.json: {message}") from error


# Names in the config.json of a published BERT -> fields of `BertConfig`.
_REQUIRED = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_size",
    "max_position_embeddings": "max_positions",
}
_OPTIONAL = {  # as in transformers, the defaults of `BertConfig` hold where one is left out
    "type_vocab_size": "num_token_types",
    "layer_norm_eps": "layer_norm_eps",
    "hidden_dropout_prob": "dropout_rate",
    "attention_probs_dropout_prob": "attention_dropout_rate",
}


@dataclasses.dataclass(frozen=True)
class ElqConfig:
    """Settings of what the model computes; the "model" part of a linker directory's config.json.

    Attributes:
      question_bert: sizes of the question encoder.
      entity_bert: sizes of the entity encoder.
      mention_head: kind of head, "linear" (the original's qa_linear) or "mlp" (qa_mlp).
      max_mention_width: largest number of tokens of a mention (the original's
        max_mention_length + 1).
      mention_aggregation: mean of all tokens ("all_avg") or of the two ends ("fl_avg"), either
        followed by a learned linear map to the entity width (starting as the identity where the
        widths agree).
      normalize_mentions: whether mention vectors are scaled to unit length.
      score_scale: initial value of a learned factor on the inner product; None for none.
      entity_pooling: way from hidden states to the entity vector: "cls", "mean" over real tokens,
        or "pooler_linear" (the original's add_linear).
      entity_width: width of the entity vectors; the encoder's, but for "pooler_linear".
      normalize_entities: whether entity vectors are scaled to unit length.
      max_question_tokens: largest T, [CLS] and [SEP] included.
      max_entity_tokens: number of tokens read of `title [unused2] text`, [CLS] and [SEP] included.
    """

    question_bert: BertConfig
    entity_bert: BertConfig
    mention_head: str = "linear"
    max_mention_width: Annotated[int, msgspec.Meta(le=2**20)] = 11
    mention_aggregation: str = "all_avg"
    normalize_mentions: bool = False
    score_scale: Annotated[float, msgspec.Meta(gt=0)] | None = None
    entity_pooling: str = "cls"
    entity_width: Annotated[int, msgspec.Meta(ge=1, le=2**16)] | None = None
    normalize_entities: bool = False
    max_question_tokens: int = 128
    max_entity_tokens: int = 128

    def __post_init__(self):
        choices = {
            "mention_head": MENTION_HEADS,
            "mention_aggregation": MENTION_AGGREGATIONS,
            "entity_pooling": ENTITY_POOLINGS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}: {getattr(self, name)!r}; expected one of {', '.join(allowed)}"
                )
        if self.entity_pooling != "pooler_linear" and self.entity_width is not None:
            raise ValueError(
                f"entity_width: {self.entity_width}; expected only with entity_pooling = "
                "'pooler_linear'; leave it out"
            )
        widths = self.question_bert.hidden_size, self.vector_width
        if not self.mention_aggregation.endswith("_linear") and widths[0] != widths[1]:
            raise ValueError(
                f"mention_aggregation: {self.mention_aggregation!r} gives vectors of width "
                f"{widths[0]}, but entity vectors have width {widths[1]}; choose one that ends in "
                "_linear"
            )
        if self.max_mention_width < 1:
            raise ValueError(f"max_mention_width: {self.max_mention_width}; expected at least 1")
        for name, bert in (("question", self.question_bert), ("entity", self.entity_bert)):
            limit = getattr(self, f"max_{name}_tokens")
            if not 3 <= limit <= bert.max_positions:
                raise ValueError(
                    f"max_{name}_tokens: {limit}; expected 3 to {bert.max_positions} "
                    "(the number of positions of the encoder)"
                )

    @property
    def vector_width(self) -> int:
        """Returns D, the width of mention and entity vectors."""
        return self.entity_width or self.entity_bert.hidden_size

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ElqConfig:
        """Makes the settings from JSON values, the inverse of `to_dict`.

        Raises:
          ValueError: a setting is unknown, of another type, or out of range.
        """
        berts = [(name, values.get(name), BertConfig) for name in ("question_bert", "entity_bert")]
        for place, part, kind in [("", values, cls), *berts]:
            known = [field.name for field in dataclasses.fields(kind)]
            for name in part if isinstance(part, Mapping) else ():
                if name not in known:
                    place = f"{place}." if place else ""
                    raise ValueError(f"{place}{name}: no such setting; expected one of {known}")
        try:
            return msgspec.convert(dict(values), cls)
        except msgspec.ValidationError as error:
            raise ValueError(str(error).replace("$.", "")) from error
