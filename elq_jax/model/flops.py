"""Floating-point operations of the model, for model FLOP utilisation (MFU).

A product of [n, d] and [d, m] counts 2 n d m. Nothing but such products is counted, not what a
program computes a second time (`recomputed` adds that), and padding counts as what it pads
(Chowdhery et al., 2022, appendix B). Norms, softmaxes, dropout and Adam are 5 to 10% on top.
"""

from __future__ import annotations

from elq_jax.model.bert import BertConfig
from elq_jax.model.elq import ElqConfig


def bert_flops(bert: BertConfig, batch_size: int, tokens: int) -> float:
    """The forward pass of an encoder over [B, T] tokens."""
    width = bert.hidden_size
    dense = 2 * (4 * width * width + 2 * width * bert.intermediate_size)
    attention = 4 * tokens * width  # Logits, and the mean of the values.
    return float(batch_size * tokens * bert.num_layers * (dense + attention))


def entity_flops(config: ElqConfig, entities: int, tokens: int) -> float:
    """The forward pass of the entity encoder over [entities, tokens]."""
    width = config.entity_bert.hidden_size
    pooling = {"cls": 0, "mean": 2 * tokens * width}.get(
        config.entity_pooling, 2 * width * (width + config.vector_width)
    )
    return bert_flops(config.entity_bert, entities, tokens) + float(entities * pooling)


def question_flops(config: ElqConfig, batch_size: int, tokens: int, mentions: int) -> float:
    """The forward pass of the question encoder: [B, T] tokens and the vectors of given spans.

    Args:
      config: what is computed.
      batch_size: B.
      tokens: T.
      mentions: spans of all questions together.
    """
    width = config.question_bert.hidden_size
    head = 2 * width * 3 + (2 * width * width if config.mention_head == "mlp" else 0)
    vector = 2 * tokens * width if config.mention_aggregation.startswith("all_avg") else 0
    if config.mention_aggregation.endswith("_linear"):
        inputs = 2 * width if config.mention_aggregation == "fl_linear" else width
        vector += 2 * inputs * config.vector_width
    forward = bert_flops(config.question_bert, batch_size, tokens)
    return forward + float(batch_size * tokens * head + mentions * vector)


def linking_flops(
    linking_loss: str,
    mentions: int,
    num_entities: int,
    width: int,
    num_negatives: int = 0,
    recomputed: bool = False,
) -> float:
    """A linking loss against frozen entity vectors, and its gradient for the mention vectors.

    Args:
      linking_loss: one of `step.LINKING_LOSSES`.
      mentions: Q, over all devices.
      num_entities: rows of the catalogue that the Q are scored on.
      width: D.
      num_negatives: N; finding them costs one pass over the catalogue.
      recomputed: the logits of full_catalogue are computed again in the backward pass.
    """
    catalogue = 2.0 * mentions * num_entities * width
    if linking_loss == "full_catalogue":
        return catalogue * (3 if recomputed else 2)
    in_batch = 0.0 if linking_loss == "hard_negatives_bce" else 4.0 * mentions**2 * width
    if linking_loss == "in_batch":
        return in_batch
    return catalogue + in_batch + 4.0 * mentions * num_negatives * width


def train_step_flops(
    config: ElqConfig,
    batch_size: int,
    tokens: int,
    mentions: int,
    num_entities: int,
    linking_loss: str = "full_catalogue",
    num_negatives: int = 0,
) -> float:
    """A step of the joint stage (`step.joint_train_step`), over all devices.

    Args:
      config: what is computed.
      batch_size: B.
      tokens: T.
      mentions: Q, gold mentions (with their padding) of the batch.
      num_entities: E.
      linking_loss: one of `step.LINKING_LOSSES`.
      num_negatives: N, mined per mention by the hard-negative losses.

    Returns:
      floating-point operations of the forward and the backward pass.
    """
    linking = linking_flops(
        linking_loss, mentions, num_entities, config.vector_width, num_negatives
    )
    return 3 * question_flops(config, batch_size, tokens, mentions) + linking


def bi_encoder_step_flops(
    config: ElqConfig,
    batch_size: int,
    tokens: int,
    mentions: int,
    entity_tokens: int,
    num_negatives: int = 0,
) -> float:
    """A step of the bi-encoder stage (`step.bi_encoder_train_step`), over all devices.

    Args:
      config: what is computed.
      batch_size: B.
      tokens: T of the questions.
      mentions: Q, gold mentions (with their padding) of the batch.
      entity_tokens: T of the entities.
      num_negatives: N, entities encoded for each mention besides its gold one.
    """
    encoders = question_flops(config, batch_size, tokens, mentions)
    encoders += entity_flops(config, mentions * (1 + num_negatives), entity_tokens)
    scores = 2.0 * mentions * (mentions + num_negatives) * config.vector_width
    return 3 * (encoders + scores)
