"""Training as the original trains, against what its own training printed and saved."""

import dataclasses
import functools
import json

import jax
import numpy as np
import optax
import pytest
import reference
from conftest import FIXTURES, OWN_FIXTURES
from flax import traverse_util
from reference import arrays
from tiny import make_examples, tiny_config

from configs import original_recipe, webqsp
from elq_jax.core import devices
from elq_jax.core.errors import ElqError
from elq_jax.entities.build import build_catalogue
from elq_jax.entities.catalogue import Catalogue
from elq_jax.entities.embeddings import EmbeddingsWriter
from elq_jax.linking.linker import EntityLinker
from elq_jax.losses import InBatch
from elq_jax.model.bundle import initial_params
from elq_jax.model.elq import EntityEncoder, QuestionEncoder
from elq_jax.original import evaluation
from elq_jax.original import recipe as original
from elq_jax.original.names import tensor_names
from elq_jax.questions.batches import TrainingBatches
from elq_jax.questions.read import read_questions
from elq_jax.retrieval.table import Table
from elq_jax.storage import layout
from elq_jax.text.padding import pad_tokens
from elq_jax.text.tokenization import Tokenizer
from elq_jax.training import checkpoints, loop, stages
from elq_jax.training import optimizer as state
from elq_jax.training.configuration import check
from elq_jax.training.metrics import MetricsWriter
from elq_jax.training.step import Objective, parallel_train_step

OPTIM = json.loads((FIXTURES / "optim.json").read_text())
SETTINGS = json.loads((FIXTURES / "train_inbatch.json").read_text())["settings"]
LONGEST = SETTINGS["max_context_length"]


def test_a_toy_parameter_moves_as_the_originals():
    toy = OPTIM["toy"]
    warmup = toy["warmup_steps"] / toy["t_total"]
    schedule = state.create_learning_rate_schedule("linear", toy["lr"], toy["t_total"], warmup)
    updates = original.Updates(steps_per_epoch=5, accumulate_steps=1)
    tx = original.create_optimizer(
        schedule, {"w": True}, updates, toy["weight_decay"], max_grad_norm=1e9, eps=toy["eps"]
    )
    found = state.create_train_state({"w": np.array(toy["init"], np.float32)}, tx)
    for row in toy["trace"]:
        assert float(schedule(updates.before(row["step"]))) == pytest.approx(row["lr"], abs=1e-9)
        found = found.apply_gradients({"w": np.array(row["grad"], np.float32)})
        np.testing.assert_allclose(found.params["w"], row["param"], rtol=1e-6)


def test_the_data_is_that_of_webqsp():
    ours, theirs = original_recipe.get_config(), webqsp.get_config(made_questions=False)
    for name in ("catalogue", "train_files", "train_repeats", "dev_files"):
        assert ours[name] == theirs[name]


@pytest.mark.parametrize("group", OPTIM["groups"], ids=lambda group: group["type"])
def test_parameters_that_learn(group):
    config = reference.config()
    names = {"/".join(path): name for name, (path, _) in tensor_names(config).items()}
    learning = original.learning_parameters(config, group["type"])
    for decays, expected in ((True, "decay"), (False, "no_decay")):
        assert {names[name] for name, found in learning.items() if found is decays} == set(
            group[expected]
        )


@pytest.mark.parametrize(
    ("type_optimization", "layers"), [("top_layer", {11}), ("top4_layers", {8, 9, 10, 11})]
)
def test_top_layers_are_those_of_bert_base(type_optimization, layers):
    bert = dataclasses.replace(reference.config().question_bert, num_layers=24)
    config = dataclasses.replace(reference.config(), question_bert=bert, entity_bert=bert)
    learning = original.learning_parameters(config, type_optimization, "question")
    assert {name.split("/")[1] for name in learning} == {f"layers_{i}" for i in layers}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The fixtures' model with the vectors that its training searched, as if it had made them."""
    folder = tmp_path_factory.mktemp("start")
    model = reference.model(max_question_tokens=LONGEST)
    model.save(folder)
    build_catalogue(FIXTURES / "entity.jsonl", folder / layout.CATALOGUE)
    vectors = arrays("kb")["entity_encodings"]
    writer = EmbeddingsWriter(
        folder / layout.EMBEDDINGS,
        *vectors.shape,
        catalogue_fingerprint=Catalogue.open(folder / layout.CATALOGUE).fingerprint,
        encoder_fingerprint=model.entity_fingerprint,
    )
    writer.write_shard(0, vectors)
    return folder


def configuration(start, settings):
    """The recipe with the options that the original was run with."""
    config = original_recipe.get_config()
    config.init_from = config.catalogue = str(start)
    config.train_files = (str(FIXTURES / "train_data/train.jsonl"),)
    config.train_repeats = ()
    config.dev_files = (str(FIXTURES / "train_data/valid.jsonl"),)
    config.num_devices = 1
    config.original.type_optimization = settings["type_optimization"]
    config.original.eval_interval = settings["eval_interval"]
    config.stages = ("joint",) if settings["freeze_cand_enc"] else ("bi_encoder",)
    stage = config[config.stages[0]]
    stage.accumulate_steps = settings["gradient_accumulation_steps"]
    stage.batch_size = settings["train_batch_size"] // stage.accumulate_steps
    stage.num_epochs = float(settings["num_train_epochs"])
    stage.learning_rate = settings["learning_rate"]
    stage.warmup_fraction = settings["warmup_proportion"]
    stage.max_grad_norm = settings["max_grad_norm"]
    stage.log_every = stage.checkpoint_every = 1
    return config


@pytest.mark.parametrize("name", ["train_inbatch", "train_inbatch_accum", "train_adversarial"])
def test_a_run_follows_the_originals(name, start, tmp_path, monkeypatch):
    """Every step, all gradients of the first update, the evaluation of each epoch, and the end.

    One run is killed and given again. The original's F1 with hard negatives is 0 throughout, since
    nothing can be learned of random entity vectors; `test_parity` has such F1s that are not.
    """
    expected = json.loads((FIXTURES / f"{name}.json").read_text())
    config = configuration(start, expected["settings"])
    states = keep_states(monkeypatch, len(expected["steps"]))
    # One program for all batches: one shape, and dropout, of which this model has none, in all.
    config.original.eval_interval = 0
    one_length = functools.partial(TrainingBatches, length_buckets=(LONGEST,))
    monkeypatch.setattr(stages, "TrainingBatches", one_length)
    monkeypatch.setattr(loop, "count_queries", lambda batch, *_: batch["gold_mask"].size)
    if name == "train_inbatch_accum":
        run_until_killed(config, tmp_path, monkeypatch, step=3 * len(expected["steps"]) // 4)
    loop.train_and_evaluate(config, tmp_path)

    (stage,) = config.stages
    lines = (tmp_path / stage / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    rows = [row for row in rows if "loss" in row]
    assert len(rows) == len(expected["steps"])
    for row, step in zip(rows, expected["steps"], strict=True):
        assert row["loss"] == pytest.approx(step["loss"], abs=1e-4), row["step"]
        if "lr" in step:  # Others end in no update.
            assert row["learning_rate"] == pytest.approx(step["lr"], abs=1e-9), row["step"]
            assert row["grad_norm"] == pytest.approx(step["grad_norm_before_clip"], rel=1e-3)

    part = "question" if stage == "joint" else None
    norms = first_gradient_norms(states[config[stage].accumulate_steps].opt_state)
    for theirs, (path, _) in tensor_names(reference.config()).items():
        wanted = expected["first_step_grad_norms"][theirs]
        if part in (None, path[0]):
            found = norms["/".join(path[1:] if part else path)]
            assert found == pytest.approx(wanted, rel=1e-3, abs=1e-4), theirs
        else:
            assert wanted is None

    sizes = {"valid": 8, "train": config[stage].batch_size}  # each as it was loaded
    evaluate = f1_of_frozen if part else in_batch_accuracy
    epochs = expected["settings"]["num_train_epochs"]
    epoch = len(rows) // epochs
    evaluated = [("valid", reference.params()[part] if part else reference.params())]
    for step in range(epoch, epochs * epoch + 1, epoch):
        evaluated += [("valid", states[step].params), ("train", states[step].params)]
    found = [evaluate(start, split, params, sizes[split]) for split, params in evaluated]
    for (low, high), score in zip(found, expected["evals"], strict=True):
        assert low * (1 - 1e-15) <= score["normalized_f1"] <= high * (1 + 1e-15)

    kind = expected["settings"]["type_optimization"]
    learning = original.learning_parameters(reference.config(), kind, part)
    params, optimizer = last_state(tmp_path / stage / "checkpoints", part, learning)
    small, before = arrays(f"{name}_final_small"), arrays("state_dict")
    for theirs, (path, transposed) in tensor_names(reference.config()).items():
        if part not in (None, path[0]):
            continue
        found = np.asarray(params["/".join(path[1:] if part else path)], np.float64)
        found = found.T if transposed else found
        wanted = expected["final"][theirs]
        assert np.linalg.norm(found) == pytest.approx(wanted["norm"], rel=1e-4), theirs
        moved = np.linalg.norm(found - before[theirs])
        assert moved == pytest.approx(wanted["delta_norm"], rel=2e-3, abs=1e-4), theirs
        np.testing.assert_allclose(found.ravel()[:6], wanted["head"], atol=1e-4, err_msg=theirs)
        if theirs in small:
            np.testing.assert_allclose(found, small[theirs], atol=1e-4, err_msg=theirs)
    if "lr" in expected["steps"][-1]:
        never = [value for key, value in optimizer.gradients.items() if key not in learning]
        norm = np.sqrt(sum(np.sum(np.asarray(value, np.float64) ** 2) for value in never))
        wanted = expected["steps"][-1]["norm_after_clip_of_never_updated"]
        assert norm == pytest.approx(wanted, rel=1e-3)


def keep_states(monkeypatch, num_steps):
    """Fills a dictionary with the states after every step; saves every third, and the last."""
    states, save = {}, checkpoints.Checkpoints.save

    def keep(self, state, record):
        step = int(state.step)
        states[step] = jax.device_get(state)
        if step % 3 == 0 or step == num_steps:
            save(self, state, record)

    monkeypatch.setattr(checkpoints.Checkpoints, "save", keep)
    return states


def first_gradient_norms(optimizer):
    """Norms of all gradients before they were clipped, from what the first update leaves."""
    clip = min(1, 1 / (float(optimizer.grad_norm) + 1e-6))
    learned = {name: mean / 0.1 for name, mean in optimizer.mean.items()}
    gradients = optimizer.gradients | learned
    return {name: float(np.linalg.norm(value)) / clip for name, value in gradients.items()}


def read_split(start, split):
    catalogue = Catalogue.open(start / layout.CATALOGUE)
    path = FIXTURES / f"train_data/{split}.jsonl"
    return read_questions(path, catalogue, allow_overlaps=True)[0]


def f1_of_frozen(start, split, params, size):
    linker = EntityLinker.from_pretrained(start, devices=jax.local_devices()[:1])
    linker = linker.with_params(params)
    counts = evaluation.count_as_in_training(linker, read_split(start, split), batch_size=size)
    assert counts.gold
    return counts.weak_f1, counts.weak_f1


def in_batch_accuracy(start, split, params, size):
    """Share of the mentions that are nearest to their own entity, of those in the same batch.

    Two mentions of one entity have it twice in the batch, and rounding alone says which of the two
    is nearer: the least and the largest share that scores of copies equal to 1e-4 allow. Scores of
    other entities are compared as they are.
    """
    tokenizer, config = Tokenizer.from_pretrained("minilm"), reference.config()
    examples, _ = make_examples(read_split(start, split), tokenizer, LONGEST)
    all_ids = arrays("kb")["entity_token_ids"][np.concatenate([e.rows for e in examples])]
    all_vectors = mention_vectors(config, params["question"], examples)
    all_entities = entity_vectors(config, params["entity"], all_ids)
    surely, perhaps = [], []
    stop = 0
    for first in range(0, len(examples), size):
        begin, stop = stop, stop + sum(len(e.rows) for e in examples[first : first + size])
        ids = all_ids[begin:stop]
        scores = all_vectors[begin:stop] @ all_entities[begin:stop].T
        own = np.diagonal(scores)
        same = (ids[:, None] == ids[None]).all(axis=-1)
        is_best = own > np.where(same, -np.inf, scores).max(axis=1)
        np.fill_diagonal(same, False)
        copies = np.where(same, scores, -np.inf).max(axis=1)
        surely += (is_best & (own > copies + 1e-4)).tolist()
        perhaps += (is_best & (own > copies - 1e-4)).tolist()
    return np.mean(surely), np.mean(perhaps)


def mention_vectors(config, params, examples):
    """Vectors [sum of mentions, D] of the mentions of all examples."""
    ids, mask = pad_tokens([example.ids for example in examples], LONGEST, len(examples))
    counts = np.array([len(example.rows) for example in examples])
    real = np.arange(counts.max()) < counts[:, None]
    bounds = np.zeros((*real.shape, 2), np.int32)
    bounds[real] = np.concatenate([example.bounds for example in examples])
    return np.asarray(encode_mentions(config, params, ids, mask, bounds))[real]


@functools.partial(jax.jit, static_argnums=0)
def encode_mentions(config, params, ids, mask, bounds):
    encoder = QuestionEncoder(config)
    return encoder.apply({"params": params}, ids, mask, bounds, method="encode_mentions")[1]


@functools.partial(jax.jit, static_argnums=0)
def encode_entities(config, params, ids):
    return EntityEncoder(config).apply({"params": params}, ids, ids != 0)


def entity_vectors(config, params, ids):
    return np.asarray(encode_entities(config, params, ids))


@pytest.mark.parametrize("name", ["train_inbatch", "train_inbatch_accum", "train_adversarial"])
def test_the_first_batch_and_its_negatives(name, start):
    """Questions in the order of the file, their mentions, and what each is scored against."""
    step, settings = arrays(f"{name}_step0"), recipe_settings(name)
    size = settings["train_batch_size"] // settings["gradient_accumulation_steps"]
    config, tokenizer = reference.config(), Tokenizer.from_pretrained("minilm")
    examples, _ = make_examples(read_split(start, "train"), tokenizer, LONGEST)
    batches = TrainingBatches(examples, size, seed=0, shuffle=False, length_buckets=(LONGEST,))
    batch = next(batches.iterate(0))
    mask = step["in_gold_mention_bounds_mask"]
    most = mask.shape[1]  # ours is a power of two, at least as large
    assert not batch["gold_mask"][:, most:].any()
    for field in ("gold_mask", "gold_bounds", "gold_rows"):
        batch[field] = batch[field][:, :most]
    np.testing.assert_array_equal(batch["input_ids"], step["context_input"])
    np.testing.assert_array_equal(batch["gold_mask"], mask)
    np.testing.assert_array_equal(batch["gold_bounds"][mask], step["in_gold_mention_bounds"][mask])

    params = reference.params()
    vectors = mention_vectors(config, params["question"], examples[:size])
    if name != "train_adversarial":
        ids = arrays("kb")["entity_token_ids"][batch["gold_rows"][mask]]
        entities = entity_vectors(config, params["entity"], ids)
        np.testing.assert_allclose(vectors @ entities.T, step["scores"], rtol=0, atol=1e-4)
        return
    np.testing.assert_allclose(vectors, step["mention_queries"], rtol=0, atol=2e-5)
    catalogue, count = arrays("kb")["entity_encodings"], step["neg_ids"].shape[1]
    table = Table(catalogue, None, len(catalogue), axis_name=None)
    scores, rows = table.nearest(vectors, count)
    np.testing.assert_array_equal(rows, step["neg_ids"])
    np.testing.assert_allclose(scores, step["neg_scores"], rtol=0, atol=1e-4)


def run_until_killed(config, workdir, monkeypatch, step):
    class Killed(BaseException):
        pass

    write = MetricsWriter.write

    def write_or_die(self, at, values):
        if at == step:
            raise Killed
        write(self, at, values)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsWriter, "write", write_or_die)
        with pytest.raises(Killed):
            loop.train_and_evaluate(config, workdir)


def last_state(folder, part, learning):
    """Flat parameters, and the optimiser's state, of a stage's last checkpoint."""
    params = reference.params()[part] if part else reference.params()
    tx = original.create_optimizer(lambda step: 0.0, learning, original.Updates(1, 1))
    found, _ = checkpoints.Checkpoints(folder).restore(state.create_train_state(params, tx))
    return traverse_util.flatten_dict(found.params, sep="/"), found.opt_state


class Batches:
    """As far as a recipe looks at `TrainingBatches`."""

    def __init__(self, examples, batch_size):
        self.examples_per_epoch = examples
        self.steps_per_epoch = -(-examples // batch_size)


def recipe_settings(name, folder=FIXTURES):
    return json.loads((folder / f"{name}.json").read_text())["settings"]


def recipe(name="train_inbatch", examples=26, epochs=2, folder=OWN_FIXTURES, **changes):
    """That of a run of the original; what it learns from are so many examples."""
    config = configuration("unused", recipe_settings(name, folder))
    config.original.update(changes)
    stage = config[config.stages[0]]
    batches = Batches(examples, stage.batch_size)
    num_steps = epochs * batches.steps_per_epoch
    return original.OriginalRecipe(config.original, stage, tiny_config(), None, batches, num_steps)


@pytest.mark.parametrize("name", ["train_inbatch", "train_inbatch_accum", "train_adversarial"])
def test_dropout_is_left_off_after_the_first_epoch(name):
    steps = json.loads((FIXTURES / f"{name}.json").read_text())["steps"]
    examples = len((FIXTURES / "train_data/train.jsonl").read_text().splitlines())
    epochs = recipe_settings(name)["num_train_epochs"]
    has_dropout = recipe(name, examples, epochs, FIXTURES).has_dropout
    found = [has_dropout(step) for step in range(len(steps))]
    assert found == [step["dropout_active"] for step in steps]


def test_dropout_comes_back_after_an_evaluation():
    """Three updates of two batches each, in epochs of ten batches."""
    has_dropout = recipe("train_inbatch_accum", examples=40, eval_interval=3).has_dropout
    assert [has_dropout(step) for step in range(20)] == [True] * 10 + [False] * 6 + [True] * 4


def test_a_deterministic_step_draws_no_dropout():
    bert = dataclasses.replace(reference.config().question_bert, num_layers=1, dropout_rate=0.5)
    config = dataclasses.replace(reference.config(), question_bert=bert)
    [device] = jax.local_devices()[:1]
    step = parallel_train_step(Objective(config, InBatch()), [device])
    batch = {
        "input_ids": np.full((1, 2, 6), 2000, np.int32),
        "mask": np.ones((1, 2, 6), bool),
        "gold_bounds": np.ones((1, 2, 1, 2), np.int32),
        "gold_rows": np.arange(2, dtype=np.int32).reshape(1, 2, 1),
        "gold_mask": np.ones((1, 2, 1), bool),
    }
    vectors = arrays("kb")["entity_encodings"][:2]
    table = Table(devices.place(vectors[None], [device]), None, 2)
    start = state.create_train_state(initial_params(config)["question"], optax.sgd(0.1))
    losses = {True: set(), False: set()}
    for deterministic, found in losses.items():
        for seed in range(2):
            number = devices.replicate(np.int32(seed), [device])
            _, metrics = step(
                devices.replicate(start, [device]), batch, table, number, 2, deterministic
            )
            found.add(float(metrics["loss"]))
    assert (len(losses[True]), len(losses[False])) == (1, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"type_optimization": "heads"}, "type_optimization: 'heads'; expected one of additional"),
        ({"type_optimization": "top_layer"}, "names no parameter of an encoder with 2 layers"),
        (
            {"schedule": "cosine"},
            r"original\.schedule: no such setting; expected one of type_optim",
        ),
        ({"examples": 7}, "an update takes 1 x 8 questions, but an epoch has only 7"),
    ],
)
def test_settings_that_cannot_be_used(arguments, message):
    with pytest.raises(ElqError, match=message):
        recipe(**arguments)


def test_settings_of_a_recipe_that_is_not_asked_for():
    """A configuration of before recipes had names would be trained in another way."""
    config = original_recipe.get_config()
    config.recipe = "standard"
    with pytest.raises(ElqError, match=r"original: .* give --config.recipe=elq_jax.original.recip"):
        state.recipe_of(config)


def test_names_of_its_settings_are_checked():
    config = original_recipe.get_config()
    check(config)
    config.original.eval_intervall = 3
    with pytest.raises(
        ElqError, match=r"original\.eval_intervall: .* did you mean eval_interval\?"
    ):
        check(config)
