"""The settings of `convert`, from which its flags are made."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import msgspec

from elq_jax.core.errors import ElqError
from elq_jax.original.presets import PRESETS

_Path = Annotated[str, msgspec.Meta(min_length=1)]


@dataclasses.dataclass(frozen=True)
class Conversion:
    """A conversion turns files of the original into a linker directory.

    Attributes:
      checkpoint: path of an ELQ model, a state dict saved by torch: elq_wiki_large.bin, ...
      params: path of its parameter file: elq_large_params.txt, training_params.txt; or BLINK's
        biencoder_wiki_large.json.
      entity_checkpoint: path of the model whose entity encoder is taken instead: BLINK's
        biencoder_wiki_large.bin, ...; without a checkpoint, both encoders are taken from it.
      bert_config: path of config.json of the BERT that the model was trained from; needed where the
        number of attention heads is not known: anything but bert-base, bert-large and the smaller
        ones published with them.
      entity_bert_config: path of the same of the entity encoder, where it is another; none: that of
        bert_config, unless checkpoint and entity_checkpoint are two files.
      tokenizer: folder with tokenizer.json or vocab.txt of that BERT, or its name on the hub.
      catalogue: path of entity.jsonl (or .jsonl.gz, or a catalogue.arrow); none: the result is a
        model to encode or train with.
      wikidata_ids: path of a table title -> Wikidata id for entities without kb_idx: a JSON object,
        or lines title<TAB>id.
      embeddings: path of the entity vectors in the order of the catalogue: all_entities_large.t7;
        none: encode_entities computes them.
      token_ids: path of entity_token_ids_128.t7, to check catalogue and tokenizer with; not needed
        for anything else.
      storage_dtype: type of the vectors on disk; int8 has a scale for each row.
      index: name of the index that is built too, such as scann; exact needs none, and build_index
        builds one later, with more choices.
      preset: published settings to link with by default.
      max_question_tokens: number of tokens of a question to link with by default, [CLS] and [SEP]
        included; none: the preset's, or the model's.
      output: path of the linker directory to write; must not exist, or be empty.
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
        """Raises an ElqError that names what is missing, or cannot stand alone."""
        model = "checkpoint" if self.checkpoint or not self.entity_checkpoint else ""
        needed = (model or "entity_checkpoint", "params", "tokenizer", "output")
        for name in needed:
            if not getattr(self, name):
                raise ElqError(f"--{name}: missing; needed are --{', --'.join(needed)}")
        for name in ("wikidata_ids", "embeddings", "token_ids"):
            if getattr(self, name) and not self.catalogue:
                raise ElqError(f"{name}: needs a catalogue, whose entities its rows are")
        if self.index != "exact" and not self.embeddings:
            raise ElqError("index: needs embeddings; without them, build_index comes later")
