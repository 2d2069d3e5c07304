"""Counts the floating-point operations of the encoders, for model FLOP utilisation (MFU).

A product of [n, d] and [d, m] counts 2 n d m. Only such products are counted; recomputation is not
counted, padding is (Chowdhery et al., 2022, appendix B). Norms, softmaxes, dropout and Adam are 5
to 10% on top.
"""

from __future__ import annotations

from elq_jax.model.config import BertConfig, ElqConfig


def bert_flops(bert: BertConfig, batch_size: int, tokens: int) -> float:
    """Counts the forward pass of an encoder over [B, T] tokens."""
    width = bert.hidden_size
    dense = 2 * (4 * width * width + 2 * width * bert.intermediate_size)
    attention = 4 * tokens * width  # Logits, and the mean of the values.
    return float(batch_size * tokens * bert.num_layers * (dense + attention))


def entity_flops(config: ElqConfig, entities: int, tokens: int) -> float:
    """Counts the forward pass of the entity encoder over [entities, tokens]."""
    width = config.entity_bert.hidden_size
    pooling = {"cls": 0, "mean": 2 * tokens * width}.get(
        config.entity_pooling, 2 * width * (width + config.vector_width)
    )
    return bert_flops(config.entity_bert, entities, tokens) + float(entities * pooling)


def question_flops(config: ElqConfig, batch_size: int, tokens: int, mentions: int) -> float:
    """Counts the forward pass of the question encoder over [B, T] tokens and mention vectors.

    Args:
      config: description of what the model computes.
      batch_size: number B of questions.
      tokens: number T of tokens of each question.
      mentions: number of spans of all questions together.
    """
    width = config.question_bert.hidden_size
    head = 2 * width * 3 + (2 * width * width if config.mention_head == "mlp" else 0)
    vector = 2 * tokens * width if config.mention_aggregation.startswith("all_avg") else 0
    if config.mention_aggregation.endswith("_linear"):
        inputs = 2 * width if config.mention_aggregation == "fl_linear" else width
        vector += 2 * inputs * config.vector_width
    forward = bert_flops(config.question_bert, batch_size, tokens)
    return forward + float(batch_size * tokens * head + mentions * vector)
