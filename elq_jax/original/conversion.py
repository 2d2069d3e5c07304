"""Declares the settings of `convert`, from which its flags are made."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import msgspec

from elq_jax.core.errors import ElqError
from elq_jax.original.presets import PRESETS

_Path = Annotated[str, msgspec.Meta(min_length=1)]


@dataclasses.dataclass(frozen=True)
class Conversion:
    """Files of the original, and how they are made into a linker directory.

    Attributes:
      checkpoint: path of the ELQ model, a state dict saved by torch, such as elq_wiki_large.bin.
      params: path of the model's parameter file: elq_large_params.txt, training_params.txt, or
        BLINK's biencoder_wiki_large.json.
      entity_checkpoint: path of another model from which the entity encoder is taken, such as
        BLINK's biencoder_wiki_large.bin; without a checkpoint, both encoders are taken from it.
      bert_config: path of config.json of the BERT that the model was trained from; needed only if
        that is not bert-base, bert-large or one of the smaller BERTs published with them, because
        the model's files do not tell the number of attention heads.
      entity_bert_config: path of config.json of the entity encoder's BERT, if that is another one;
        none: the file of bert_config, unless checkpoint and entity_checkpoint are both given.
      tokenizer: folder with tokenizer.json or vocab.txt of that BERT, or its name on the hub.
      catalogue: path of entity.jsonl (or .jsonl.gz, or a catalogue.arrow); none: the result is a
        model to encode or train with.
      wikidata_ids: path of a table of Wikidata ids by title, for entities without kb_idx: a JSON
        object, or lines title<TAB>id.
      embeddings: path of the entity vectors in the order of the catalogue, such as
        all_entities_large.t7; none: encode_entities computes them later.
      token_ids: path of entity_token_ids_128.t7; it only serves to check that catalogue and
        tokenizer are the right ones.
      storage_dtype: type of the vectors on disk; int8 has a scale for each row.
      index: name of an index to build as well, such as scann; exact search needs no index, and
        build_index can build one later, with more choices.
      preset: name of published settings to link with by default.
      max_question_tokens: number of tokens of a question to link with by default, [CLS] and [SEP]
        included; none: that of the preset or of the model.
      output: path of the linker directory to write; it must not exist, or be empty.
    """

    checkpoint: _Path | None = None
    params: _Path | None = None
    entity_checkpoint: _Path | None = None
    bert_config: _Path | None = None
    entity_bert_config: _Path | None = None
    tokenizer: _Path | None = None
    catalogue: _Path | None = None
    wikidata_ids: _Path | None = None
    embeddings: _Path | None = None
    token_ids: _Path | None = None
    storage_dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    index: str = "exact"
    preset: Literal[tuple(PRESETS)] = "interactive"
    max_question_tokens: Annotated[int, msgspec.Meta(ge=3)] | None = None
    output: _Path | None = None

    def check(self) -> None:
        """Raises an ElqError if a setting is missing or needs another one."""
        only_entity = self.entity_checkpoint and not self.checkpoint
        model = "entity_checkpoint" if only_entity else "checkpoint"
        required = (model, "params", "tokenizer", "output")
        for name in required:
            if not getattr(self, name):
                raise ElqError(f"--{name}: missing; give all of --{', --'.join(required)}")
        for name in ("wikidata_ids", "embeddings", "token_ids"):
            if getattr(self, name) and not self.catalogue:
                raise ElqError(
                    f"--{name}: needs a catalogue, because its rows belong to the catalogue's "
                    "entities; give --catalogue too"
                )
        if self.index != "exact" and not self.embeddings:
            raise ElqError(
                f"--index: {self.index!r} is built from embeddings; give --embeddings too, or "
                "leave --index out and run build_index later"
            )
