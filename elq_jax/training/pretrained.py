"""A model from published BERT encoders, before any training of ours."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from elq_jax.data.pretrained import load_bert_checkpoint, resolve_encoder
from elq_jax.data.tokenization import Tokenizer
from elq_jax.errors import DataError, ElqError
from elq_jax.model.bert import BertConfig, params_from_huggingface
from elq_jax.model.elq import ElqConfig, EntityEncoder, QuestionEncoder


def load_pretrained(
    question_encoder: str | os.PathLike[str],
    entity_encoder: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    **settings: Any,
) -> tuple[ElqConfig, dict[str, Any], Tokenizer]:
    """Builds both encoders from BERT checkpoints; new heads start at random.

    Args:
      question_encoder: "minilm", a folder, or a hub name.
      entity_encoder: likewise; the question encoder's by default.
      seed: of the new parameters.
      **settings: further fields of `ElqConfig`.

    Returns:
      configuration, {"question": tree, "entity": tree} of float32 parameters, and the tokenizer,
      which both encoders share.

    Raises:
      ElqError: a checkpoint cannot be read, or the encoders have different vocabularies.
    """
    folders = {"question": resolve_encoder(question_encoder)}
    folders["entity"] = resolve_encoder(entity_encoder) if entity_encoder else folders["question"]
    tokenizers = {part: Tokenizer.from_pretrained(folder) for part, folder in folders.items()}
    if tokenizers["question"].fingerprint != tokenizers["entity"].fingerprint:
        raise ElqError(
            f"{question_encoder} and {entity_encoder} split text differently; "
            "choose encoders with the same vocabulary and tokenizer"
        )
    configs, berts = {}, {}
    for part, folder in folders.items():
        values, tensors = load_bert_checkpoint(folder)
        with_pooler = part == "entity" and settings.get("entity_pooling") == "pooler_linear"
        try:
            configs[part] = BertConfig.from_huggingface(values)
            berts[part] = params_from_huggingface(tensors, configs[part], with_pooler)
        except (ValueError, KeyError) as error:
            raise DataError(str(error), folder) from error
    for part, bert in configs.items():
        if tokenizers[part].vocab_size > bert.vocab_size:
            raise ElqError(
                f"{folders[part]}: the tokenizer has {tokenizers[part].vocab_size:,} tokens, the "
                f"encoder {bert.vocab_size:,}; they are not of one model"
            )
    try:
        config = ElqConfig(configs["question"], configs["entity"], **settings)
    except ValueError as error:
        raise ElqError(str(error)) from error
    params = initial_params(config, seed)
    for part, bert in berts.items():
        params[part]["bert"] = bert
    return config, params, tokenizers["question"]


def initial_params(config: ElqConfig, seed: int = 0) -> dict[str, Any]:
    """Random parameters of both encoders: {"question": tree, "entity": tree}."""
    question_key, entity_key = jax.random.split(jax.random.key(seed))
    ids, mask = jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool)
    bounds = jnp.zeros((1, 1, 2), jnp.int32)

    @jax.jit
    def initialise() -> Mapping[str, Any]:
        question = QuestionEncoder(config)
        variables = question.init(question_key, ids, mask, bounds, method="encode_mentions")
        entity = EntityEncoder(config).init(entity_key, ids, mask)
        return {"question": variables["params"], "entity": entity["params"]}

    return dict(initialise())
