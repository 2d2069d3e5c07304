"""The encoders and the span grid against the original's numbers and against slow loops."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import traverse_util
from reference import arrays, enumerated

from elq_jax.losses import InBatch, Mentions, span_loss
from elq_jax.model import spans
from elq_jax.model.bert import BertEncoder
from elq_jax.model.bundle import initial_params
from elq_jax.model.config import BertConfig, ElqConfig
from elq_jax.model.elq import EntityEncoder, QuestionEncoder
from elq_jax.model.huggingface import load_bert_checkpoint
from elq_jax.model.parameters import parameter_shapes, params_from_huggingface
from elq_jax.original.loss import HardNegativesBce
from elq_jax.original.names import params_from_state_dict, tensor_names
from elq_jax.storage.hub import resolve_encoder
from elq_jax.training.step import EncodedEntities

COMPILED_AS_FOR_USERS = True

# As the fixtures' README states them.
HIDDEN = {"rtol": 0, "atol": 2e-5}
SCORE = {"rtol": 0, "atol": 1e-4}
GRADIENT_NORM = {"rtol": 1e-3, "atol": 1e-6}


def encode(core, config=None, params=None):
    config, params = config or reference.config(), params or reference.params()
    encoder = QuestionEncoder(config)
    return encoder.apply({"params": params["question"]}, core["input_ids"], core["mask"])


def test_hidden_states_of_every_layer():
    core = arrays("core")
    config = reference.config()
    states = BertEncoder(config.question_bert).apply(
        {"params": reference.params()["question"]["bert"]},
        core["input_ids"],
        core["mask"],
        method="all_hidden_states",
    )
    for state, expected in zip(states, core["hidden_states"], strict=True):
        np.testing.assert_allclose(state[core["mask"]], expected[core["mask"]], **HIDDEN)


def test_token_and_span_logits():
    core = arrays("core")
    hidden, grid = encode(core)
    token_logits = QuestionEncoder(reference.config()).apply(
        {"params": reference.params()["question"]}, hidden, method="token_logits"
    )
    mask = core["mask"]
    np.testing.assert_allclose(token_logits[mask], core["token_logits"][mask], **HIDDEN)
    logits = enumerated(grid, core["mention_bounds"])
    np.testing.assert_allclose(logits, core["mention_logits"], **SCORE)
    # Nothing valid lies outside the enumeration.
    assert np.isfinite(grid).sum() == np.isfinite(core["mention_logits"]).sum()


@pytest.mark.parametrize("longest", [1, 4, 31])
def test_max_mention_width(longest):
    expected = arrays(f"maxlen_{longest}")
    _, grid = encode(arrays("core"), reference.config(max_mention_width=longest + 1))
    logits = enumerated(grid, expected["mention_bounds"])
    np.testing.assert_allclose(logits, expected["mention_logits"], **SCORE)


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("aggregation", ["all_avg", "fl_avg", "fl_linear", "all_avg_linear"])
def test_aggregation_and_scoring_variants(aggregation, head):
    core, variants = arrays("core"), arrays("variants")
    name = f"{aggregation}|qa_{head}"
    config = reference.config(mention_aggregation=aggregation, mention_head=head)
    tensors = {k: v for k, v in arrays("state_dict").items() if "classification" not in k}
    prefix = f"{name}|w|"
    tensors |= {k.removeprefix(prefix): v for k, v in variants.items() if k.startswith(prefix)}
    params = params_from_state_dict(tensors, config)
    grid, vectors = QuestionEncoder(config).apply(
        {"params": params["question"]},
        core["input_ids"],
        core["mask"],
        core["gold_bounds"],
        method="encode_mentions",
    )
    gold = core["gold_mask"]
    np.testing.assert_allclose(vectors[gold], variants[f"{name}|reps"][gold], **SCORE)
    if f"{name}|logits" in variants:
        logits = enumerated(grid, core["mention_bounds"])
        np.testing.assert_allclose(logits, variants[f"{name}|logits"], **SCORE)


def test_entity_vectors():
    core = arrays("core")
    ids = core["cand_flat_ids"]
    vectors = EntityEncoder(reference.config()).apply(
        {"params": reference.params()["entity"]}, ids, ids != 0
    )
    np.testing.assert_allclose(vectors, core["cand_encodings"], **HIDDEN)


@pytest.mark.parametrize("setting", sorted({key.rpartition("|")[0] for key in arrays("prune")}))
def test_prune(setting):
    core, expected = arrays("core"), arrays("prune")
    k, threshold = setting.split("|")
    hidden, grid = encode(core)
    logits, bounds, mask = spans.prune(grid, int(k[1:]), float(threshold[1:]))
    width = expected[f"{setting}|mention_masks"].shape[1]
    assert not mask[:, width:].any()
    mask = np.asarray(mask)[:, :width]
    np.testing.assert_array_equal(mask, expected[f"{setting}|mention_masks"])
    np.testing.assert_array_equal(
        np.asarray(bounds)[:, :width][mask], expected[f"{setting}|mention_bounds"][mask]
    )
    np.testing.assert_allclose(
        np.asarray(logits)[:, :width][mask], expected[f"{setting}|mention_logits"][mask], **SCORE
    )
    vectors = spans.span_means(hidden, bounds[:, :width])
    np.testing.assert_allclose(vectors[mask], expected[f"{setting}|mention_reps"][mask], **SCORE)


def test_prune_may_keep_nothing():
    _, grid = encode(arrays("core"))
    *_, mask = spans.prune(grid, 10, 0.0, keep_any=False)
    assert not mask.any()


def test_span_grid_against_a_slow_loop():
    rng = np.random.default_rng(0)
    token_logits = rng.normal(size=(3, 9, 3)).astype(np.float32)
    mask = rng.random((3, 9)) < 0.8
    grid = reference.square(spans.span_logits(token_logits, mask, max_width=4))
    for b in range(3):
        for i in range(9):
            for j in range(9):
                expected = -np.inf
                if i <= j < i + 4 and mask[b, i : j + 1].all():
                    inside = token_logits[b, i : j + 1, 2].sum()
                    expected = token_logits[b, i, 0] + token_logits[b, j, 1] + inside
                np.testing.assert_allclose(grid[b, i, j], expected, rtol=1e-5, atol=1e-5)


def test_joint_loss_and_every_gradient(fixtures):
    core, golden = arrays("core"), arrays("grads_inbatch_small")
    config, gold = reference.config(), core["gold_mask"].reshape(-1)
    flat = np.flatnonzero(gold)

    def joint_loss(params):
        grid, vectors = QuestionEncoder(config).apply(
            {"params": params["question"]},
            core["input_ids"],
            core["mask"],
            core["gold_bounds"],
            method="encode_mentions",
        )
        ids = core["cand_flat_ids"]
        entities = EntityEncoder(config).apply({"params": params["entity"]}, ids, ids != 0)
        queries = vectors.reshape(-1, vectors.shape[-1])[flat]
        span = span_loss(grid, core["gold_bounds"], core["gold_mask"])
        # The rows are not given: the original does not look at them.
        rows, mask = jnp.arange(len(flat)), jnp.ones(len(flat), bool)
        mentions = Mentions(queries, rows, mask, rows, len(flat), axis_name=None)
        linking = InBatch(mask_duplicates=False)(mentions, EncodedEntities(entities[:, None], None))
        return span[0] / span[1] + linking[0] / linking[1], (span, linking, queries @ entities.T)

    (total, (span, linking, scores)), grads = jax.value_and_grad(joint_loss, has_aux=True)(
        reference.params()
    )
    np.testing.assert_allclose(scores, core["inbatch_scores"], **SCORE)
    np.testing.assert_allclose(span[0] / span[1], core["span_loss"], **SCORE)
    np.testing.assert_allclose(linking[0] / linking[1], core["ed_loss"], **SCORE)
    np.testing.assert_allclose(total, core["joint_loss"], **SCORE)

    norms = json.loads((fixtures / "grads_inbatch.json").read_text())["norms"]
    grads = traverse_util.flatten_dict(grads)
    names = tensor_names(config)
    assert {name for name, norm in norms.items() if norm is not None} == set(names)
    for name, (path, transposed) in names.items():
        grad = np.asarray(grads[path])
        np.testing.assert_allclose(np.linalg.norm(grad), norms[name], **GRADIENT_NORM, err_msg=name)
        if name in golden:
            grad = grad.T if transposed else grad
            np.testing.assert_allclose(grad, golden[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_hard_negatives_bce_against_the_original_step():
    step = arrays("train_adversarial_step0")
    # The original lays pairs out as rows of one rank; ours are [B, M, N].
    mask = step["in_gold_mention_bounds_mask"]
    batch, width = mask.shape
    positive = step["in_label_input"].reshape(-1, width)
    assert positive[:batch].all()
    queries = step["in_text_encs"][:batch]
    entities = step["in_cand_encs"][:batch]
    catalogue = arrays("kb")["entity_encodings"]
    count = step["neg_ids"].shape[1]
    rows = np.zeros((batch, width), np.int32)
    rows[mask] = [np.flatnonzero((catalogue == e).all(-1))[0] for e in entities[mask]]
    negative_rows = np.full((batch, width, count), -1, np.int32)
    negative_rows[mask] = step["neg_ids"]
    vectors = np.concatenate([entities[:, :, None], catalogue[negative_rows]], axis=2)
    mentions = Mentions(
        *(x.reshape(-1, *x.shape[2:]) for x in (queries, rows, mask)),
        np.repeat(np.arange(batch), width),
        num_questions=batch,
        axis_name=None,
    )
    negatives = EncodedEntities(
        vectors.reshape(-1, *vectors.shape[2:]), negative_rows.reshape(-1, count)
    )
    total, count = HardNegativesBce(count)(mentions, negatives)
    assert count == len(step["scores"])
    bounds, mask = step["in_gold_mention_bounds"], step["in_gold_mention_bounds_mask"]
    span = span_loss(jnp.asarray(_grid(step)), bounds, mask)
    np.testing.assert_allclose(total / count + span[0] / span[1], step["loss"], **SCORE)


def _grid(step):
    logits, bounds = step["in_mention_logits"], step["in_mention_bounds"][0]
    length = step["context_input"].shape[1]
    grid = np.full((len(logits), length, length), -np.inf, np.float32)
    grid[:, bounds[:, 0], bounds[:, 1]] = logits
    return reference.band_of(grid)


def test_minilm():
    expected = arrays("minilm")
    values, tensors = load_bert_checkpoint(resolve_encoder("minilm"))
    bert = BertConfig.from_huggingface(values)
    config = ElqConfig(bert, bert, mention_aggregation="all_avg", entity_pooling="cls")
    params = {
        "bert": params_from_huggingface(tensors, bert),
        "mention_head": {"kernel": expected["head_weight"].T, "bias": expected["head_bias"]},
    }
    ids = expected["input_ids"]
    hidden, grid = QuestionEncoder(config).apply({"params": params}, ids, ids != 0)
    np.testing.assert_allclose(hidden[ids != 0], expected["last_hidden"][ids != 0], **HIDDEN)
    logits = enumerated(grid, expected["mention_bounds"])
    np.testing.assert_allclose(logits, expected["mention_logits"], **SCORE)
    logits, bounds, mask = spans.prune(grid, 10, -4.5)
    width = expected["pruned_mask"].shape[1]
    mask = np.asarray(mask)[:, :width]
    np.testing.assert_array_equal(mask, expected["pruned_mask"])
    np.testing.assert_array_equal(
        np.asarray(bounds)[:, :width][mask], expected["pruned_bounds"][mask]
    )
    vectors = spans.span_means(hidden, bounds[:, :width])
    np.testing.assert_allclose(vectors[mask], expected["pruned_reps"][mask], **SCORE)
    ids = expected["cand_ids"]
    entity = EntityEncoder(config).apply({"params": {"bert": params["bert"]}}, ids, ids != 0)
    np.testing.assert_allclose(entity, expected["cand_encodings"], **HIDDEN)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mention_head": "mlp", "score_scale": 20.0},
        {"mention_aggregation": "fl_linear"},
        {"mention_aggregation": "all_avg_linear"},
        {
            "mention_aggregation": "all_avg_linear",
            "entity_pooling": "pooler_linear",
            "entity_width": 24,
        },
    ],
)
def test_parameter_shapes_are_those_of_the_modules(changes):
    """Encoders of different sizes, so that no width passes for another."""
    question = BertConfig(100, 64, 2, 4, 256)
    entity = BertConfig(100, 64 if not changes else 48, 1, 4, 96)
    if not changes.get("mention_aggregation", "").endswith("_linear"):
        entity = dataclasses.replace(entity, hidden_size=64)
    config = ElqConfig(question, entity, **changes)
    tree = jax.eval_shape(lambda: initial_params(config))
    expected = {name: x.shape for name, x in traverse_util.flatten_dict(tree).items()}
    assert parameter_shapes(config) == expected
