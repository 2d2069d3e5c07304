"""Whole runs: stopped, killed, resumed, refused."""

import copy
import json
import math
import os
import pathlib
import re
import shutil
import signal

import jax
import numpy as np
import pytest
from flax import traverse_util
from tiny import write_demo_part, write_tiny_bert

from configs import default
from elq_jax.core.errors import ElqError
from elq_jax.linking.candidates import CandidateWeights
from elq_jax.linking.linker import EntityLinker
from elq_jax.model.bundle import Model, read_description
from elq_jax.questions.held_out import is_held_out
from elq_jax.storage.remote import Workdir
from elq_jax.training import candidates, checkpoints, confidence, configuration, loop, preemption
from elq_jax.training.metrics import MetricsWriter
from elq_jax.training.optimizer import (
    create_learning_rate_schedule,
    create_optimizer,
    create_train_state,
)


def test_decay_and_learning_rate_by_parameter():
    """One AdamW step by hand: biases, norms and the scale do not decay; new modules go faster."""
    one = np.ones(2, np.float32)
    params = {
        "bert": {"query": {"kernel": one, "bias": one}, "norm": {"scale": one}},
        "mention_head": {"kernel": one, "bias": one},
        "log_scale": one[0],
    }
    grads = jax.tree.map(lambda x: 1e-3 * np.ones_like(x), params)
    tx = create_optimizer(0.1, new_module_factor=3.0, weight_decay=0.5, max_grad_norm=1.0)
    state = create_train_state(params, tx).apply_gradients(grads)
    adam = 1e-3 / (1e-3 + 1e-8)
    expected = {
        ("bert", "query", "kernel"): 1 - 0.1 * (adam + 0.5),
        ("bert", "query", "bias"): 1 - 0.1 * adam,
        ("bert", "norm", "scale"): 1 - 0.1 * adam,
        ("mention_head", "kernel"): 1 - 0.3 * (adam + 0.5),
        ("mention_head", "bias"): 1 - 0.3 * adam,
        ("log_scale",): 1 - 0.3 * adam,
    }
    for path, value in traverse_util.flatten_dict(state.params).items():
        np.testing.assert_allclose(value, expected[path], rtol=1e-5, err_msg=str(path))


@pytest.mark.parametrize("warmup_fraction", [0.0, 0.25])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_learning_rates(schedule, warmup_fraction):
    """Up in a straight line from 0, then along the curve to 0 at the last update; by formula."""
    peak, updates = 3e-4, 40
    warmup = round(updates * warmup_fraction)
    rate = create_learning_rate_schedule(schedule, peak, updates, warmup_fraction)
    for update in range(updates + 3):
        done = min((update - warmup) / (updates - warmup), 1.0)
        decay = {
            "linear": 1 - done,
            "cosine": (1 + math.cos(math.pi * done)) / 2,
            "constant": 1.0,
        }[schedule]
        expected = peak * update / warmup if update < warmup else peak * decay
        assert float(rate(update)) == pytest.approx(expected, rel=1e-5, abs=1e-10), update


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory):
    """A checkpoint folder, without dropout: it compiles in a third of the time."""
    folder = tmp_path_factory.mktemp("bert")
    write_tiny_bert(folder, layers=1, dropout=0.0, words=3000)
    return folder


@pytest.fixture
def config(tiny_bert, tmp_path):
    return make_config(tiny_bert, tmp_path)


def make_config(bert, folder):
    """A short run of the demo's questions, which are written to the folder."""
    write_demo_part(folder)
    config = default.get_config()
    config.question_encoder = str(bert)
    config.model.max_question_tokens = 16  # One length, so one program to compile.
    config.model.max_entity_tokens = 16
    config.num_devices = 1
    config.held_out_share = 0.0
    config.catalogue = str(folder / "catalogue.jsonl")
    config.train_files = (str(folder / "train.jsonl"),)
    config.dev_files = (str(folder / "dev.jsonl"),)
    for stage in (config.bi_encoder, config.joint):
        stage.batch_size = 8
        stage.num_steps = 6
        stage.log_every = 2
        stage.checkpoint_every = 2
    config.joint.eval_every = 3
    config.bi_encoder.mine_every = 3
    return config


@pytest.fixture(scope="module")
def unbroken(tiny_bert, tmp_path_factory):
    """The configuration and the folder of a run of both stages, with dropout of questions."""
    folder = tmp_path_factory.mktemp("unbroken")
    (folder / "bert").mkdir()
    write_tiny_bert(folder / "bert", layers=1, words=3000)
    config = make_config(folder / "bert", folder)
    config.entity_encoder = str(tiny_bert)
    config.stages = ("bi_encoder", "joint")
    config.held_out_share = 0.3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "LEAST_MENTIONS", 5)
        patch.setattr(confidence, "LEAST_LINKS", 0)
        loop.train_and_evaluate(config, folder / "run", profile_steps=2)
        yield config, folder / "run"


def parameters(linker):
    return traverse_util.flatten_dict(Model.open(linker).params, sep="/")


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_killed_runs_end_with_the_parameters_of_an_unbroken_one(unbroken, tmp_path, monkeypatch):
    config, whole_run = unbroken
    expected = parameters(whole_run / "linker")

    class Killed(BaseException):
        pass

    write = MetricsWriter.write
    kills = {"bi_encoder": 5, "joint": 4}  # Steps, after mining and after an evaluation.

    def write_or_die(self, step, values):
        stage = self._path.parent.name
        if step >= kills.get(stage, math.inf):
            del kills[stage]
            raise Killed
        write(self, step, values)

    monkeypatch.setattr(MetricsWriter, "write", write_or_die)
    for _ in range(2):
        with pytest.raises(Killed):
            loop.train_and_evaluate(config, tmp_path / "broken")
    linker = loop.train_and_evaluate(config, tmp_path / "broken")
    assert not kills
    found = parameters(linker)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    for stage in ("bi_encoder", "joint"):
        steps = [row["step"] for row in lines_of(tmp_path / "broken" / stage / "metrics.jsonl")]
        assert steps == sorted(steps)
        assert steps[-1] == 6
    assert (tmp_path / "broken" / "joint" / "curves.png").read_bytes().startswith(b"\x89PNG")
    for name in (
        "candidates.json",
        "names/keys.npy",
        "words/keys.npy",
        "confidence.json",
        "config.json",
    ):
        found = tmp_path / "broken" / "linker" / name
        assert found.read_bytes() == (whole_run / "linker" / name).read_bytes()
    settings = json.loads((tmp_path / "broken" / "linker" / "config.json").read_text())["linking"]
    best = json.loads((tmp_path / "broken" / "joint" / "best" / "config.json").read_text())
    assert settings["decoder"] == "confidence"
    assert settings["threshold"] == settings["thresholds"]["confidence"]
    plain = settings["thresholds"]["joint, candidates as searched"]
    assert plain == best["linking"]["threshold"]
    weights = CandidateWeights.read(tmp_path / "broken" / "linker" / "candidates.json")
    held_out = [
        line
        for line in lines_of(pathlib.Path(config.train_files[0]))
        if is_held_out(line["text"], config.held_out_share)
    ]
    assert 5 <= weights.fitted_on <= sum(len(line["mentions"]) for line in held_out)
    counts = np.load(tmp_path / "broken" / "data" / "examples" / "train_0" / "mention_counts.npy")
    assert len(counts) == 60 - len(held_out)


def test_scorers_are_fitted_to_a_trained_linker_as_training_fits_them(unbroken, tmp_path):
    """The held-out questions in a file of their own, without a stage, give the same linker."""
    config, whole_run = unbroken
    held_out = [
        json.dumps(line) + "\n"
        for line in lines_of(pathlib.Path(config.train_files[0]))
        if is_held_out(line["text"], config.held_out_share)
    ]
    (tmp_path / "fit.jsonl").write_text("".join(held_out))
    bare = tmp_path / "bare"
    shutil.copytree(whole_run / "linker", bare)
    for name in ("candidates.json", "confidence.json"):
        (bare / name).unlink()
    config = config.copy_and_resolve_references()
    config.stages, config.train_files, config.train_repeats = (), (), ()
    config.catalogue = config.init_from = str(bare)
    config.fit_files = (str(tmp_path / "fit.jsonl"),)
    loop.train_and_evaluate(config, tmp_path / "run")
    found, expected = (parameters(folder / "linker") for folder in (tmp_path / "run", whole_run))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    for name in ("candidates.json", "confidence.json"):
        found, expected = (folder / "linker" / name for folder in (tmp_path / "run", whole_run))
        assert found.read_bytes() == expected.read_bytes(), name
    found, expected = (
        json.loads((folder / "linker" / "config.json").read_text())["linking"]
        for folder in (tmp_path / "run", whole_run)
    )
    assert found == expected


def test_sigterm_saves_and_the_run_goes_on(unbroken, tmp_path, monkeypatch):
    """On object storage (file:// stands for it), on another machine; it begins between stages."""
    config, whole_run = unbroken
    bucket = tmp_path / "bucket" / "run"
    later = "joint", "candidates", "confidence", "linker"
    shutil.copytree(whole_run, bucket, ignore=shutil.ignore_patterns(*later))
    write = MetricsWriter.write

    def write_and_signal(self, step, values):
        write(self, step, values)
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    address = f"file://{bucket}"
    monkeypatch.setenv("ELQ_JAX_SCRATCH", str(tmp_path / "machine"))
    with monkeypatch.context() as patch:
        patch.setattr(MetricsWriter, "write", write_and_signal)
        with pytest.raises(SystemExit) as stopped:
            loop.train_and_evaluate(config, address)
    assert stopped.value.code == preemption.EXIT_CODE
    monkeypatch.setenv("ELQ_JAX_SCRATCH", str(tmp_path / "another_machine"))
    assert loop.train_and_evaluate(config, address) == f"{address}/linker"
    found = parameters(bucket / "linker")
    for name, value in parameters(whole_run / "linker").items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    rows = lines_of(bucket / "joint" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 3, 3, 4, 5, 6, 6]


def test_steps_are_traced(unbroken):
    _, run = unbroken
    for stage in ("bi_encoder", "joint"):
        assert list((run / stage / "profile").rglob("*.xplane.pb"))


MARGIN_LOSS = '''
import dataclasses

import jax
import jax.numpy as jnp

from elq_jax.losses import LINKING_LOSSES, LinkingLoss


@LINKING_LOSSES.register("margin")
@dataclasses.dataclass(frozen=True)
class Margin(LinkingLoss):
    """The best wrong entity is to score less than the right one by a margin."""

    margin: float = 0.2
    num_negatives: int = 3

    def __call__(self, mentions, entities):
        gold = jnp.sum(mentions.vectors * entities.gold(mentions), axis=-1)
        vectors, rows = entities.negatives(mentions, self.num_negatives)
        scores = jnp.einsum("qd,qnd->qn", mentions.vectors, vectors)
        wrong_mask = (rows >= 0) & (rows != mentions.rows[:, None])
        worst = jnp.max(scores, axis=1, where=wrong_mask, initial=-1e9)
        losses = jax.nn.relu(self.margin + worst - gold)
        return jnp.sum(losses, where=mentions.mask), jnp.sum(mentions.mask).astype(jnp.float32)
'''


def test_a_linking_loss_is_one_file(config, tmp_path, monkeypatch):
    """Named in the configuration, with a setting of its own; both stages train with it."""
    (tmp_path / "margin_loss.py").write_text(MARGIN_LOSS)
    monkeypatch.syspath_prepend(tmp_path)
    config.stages = ("bi_encoder", "joint")
    for stage in (config.bi_encoder, config.joint):
        stage.linking_loss = "margin_loss:margin"
        stage.learning_rate = 0.0
        stage.margin = 1000.0  # Far above any score, so that the loss is about this.
    linker = loop.train_and_evaluate(config, tmp_path / "run")
    assert read_description(linker).linking["threshold"] < 0
    for name in ("bi_encoder", "joint"):
        rows = lines_of(tmp_path / "run" / name / "metrics.jsonl")
        losses = {row["step"]: row["linking_loss"] for row in rows if "loss" in row}
        if name == "bi_encoder":
            assert losses.pop(2) == 0  # There are no negatives before the first are mined.
            assert losses.pop(4) < 900  # In one of the two steps.
        assert all(900 < loss < 1100 for loss in losses.values()), losses
    config.joint.margn = 0.5
    with pytest.raises(ElqError, match=r"joint\.margn: no such setting; did you mean margin\?"):
        loop.train_and_evaluate(config, tmp_path / "misspelt")


def test_training_learns_and_keeps_the_best(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ELQ_JAX_DTYPE", "bfloat16")
    config.joint.dtype = "auto"
    config.joint.num_steps = 60
    config.joint.learning_rate = 2e-3
    config.joint.new_module_factor = 1.0
    config.joint.eval_every = 20
    config.joint.log_every = 10
    config.dev_files = (*config.train_files, *config.dev_files)
    linker = loop.train_and_evaluate(config, tmp_path / "run")
    parts = re.findall(r"^joint: 60 steps, .*$", capsys.readouterr().err, re.MULTILINE)
    assert all(name in parts[0] for name in ("steps ", "waiting for batches ", "dev ", "checkp"))
    rows = lines_of(tmp_path / "run" / "joint" / "metrics.jsonl")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0] / 2
    scores = {row["step"]: row for row in rows if "dev_weak_f1" in row}
    best = max(scores.values(), key=lambda row: row["dev_weak_f1"])
    linking = read_description(linker).linking
    assert linking["threshold"] == best["dev_threshold"]
    for row in scores.values():  # Each set counts as much, whatever its size.
        for kind in ("weak", "strong"):
            of_sets = [row[f"dev_{kind}_f1/{name}"] for name in ("train", "dev")]
            assert row[f"dev_{kind}_f1"] == pytest.approx(np.mean(of_sets))


def test_a_single_dev_file_of_before_is_read(config, capsys):
    """It is the only one, as where it was set over those of another configuration."""
    config.dev_file = "mine.jsonl"
    config.lock()
    changed = configuration.with_dev_files(config)
    assert changed.dev_files == ("mine.jsonl",)
    assert "dev_file" not in changed
    assert config.dev_file == "mine.jsonl"
    assert f"{config.dev_files[0]} of dev_files left out" in capsys.readouterr().err
    assert configuration.with_dev_files(changed) is changed


def test_a_loss_that_is_not_finite_stops_the_run(config, tmp_path):
    config.joint.learning_rate = 1e30
    config.joint.warmup_fraction = 0.0
    with pytest.raises(ElqError, match=r"loss is nan.*Lower learning_rate"):
        loop.train_and_evaluate(config, tmp_path / "run")


def test_a_workdir_of_other_inputs_is_refused(config, tmp_path):
    config.joint.num_steps = 1
    own_bert = tmp_path / "bert"
    shutil.copytree(config.question_encoder, own_bert)
    config.question_encoder = str(own_bert)
    run = tmp_path / "run"
    linker = pathlib.Path(loop.train_and_evaluate(config, run))
    trained = (linker / "model.safetensors").read_bytes()

    changed = copy.deepcopy(config)
    changed.joint.learning_rate = 3e-4
    message = r"another configuration: joint.learning_rate \(found 0.0001, now 0.0003\); use its"
    with pytest.raises(ElqError, match=message):
        loop.train_and_evaluate(changed, run)

    [train_file] = map(pathlib.Path, config.train_files)
    for setting, path in (
        ("train_files", train_file),
        ("dev_files", pathlib.Path(config.dev_files[0])),
        ("question_encoder", own_bert / "config.json"),
    ):
        content = path.read_bytes()
        path.write_bytes(content.replace(b"}", b" }", 1))
        with pytest.raises(ElqError, match=rf"{setting}.* in .*{path.name}.*another workdir"):
            loop.train_and_evaluate(config, run)
        path.write_bytes(content)  # The same content at another time is the same.

    (run / "inputs.json").unlink()  # As in a workdir of before inputs were recorded.
    assert loop.train_and_evaluate(config, run) == str(linker)
    assert (linker / "model.safetensors").read_bytes() == trained
    assert (run / "inputs.json").exists()

    # The workdir given where its linker is meant.
    with pytest.raises(
        ElqError, match=f"workdir of a training run; give the linker in it, {linker}"
    ):
        EntityLinker.from_pretrained(run)
    shutil.rmtree(linker)
    with pytest.raises(
        ElqError, match=f"unfinished training run; resume .*, which writes {linker}"
    ):
        EntityLinker.from_pretrained(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": ("warmup",)}, "stages: .*expected some of"),
        ({"dev_files": ()}, "--config.dev_files is not set"),
        ({"dev_files": ("a.jsonl", "./a.jsonl")}, "a.jsonl is given twice"),
        ({"joint.linking_loss": "triplet"}, "linking_loss: 'triplet'; expected one of"),
        (
            {"joint.linking_loss": "hard_negatives_bce"},
            "'hard_negatives_bce' is named elq_jax.original.loss:hard_negatives_bce now",
        ),
        ({"recipe": "original"}, "recipe: 'original' is named elq_jax.original.recipe:original"),
        (
            {"stages": ("bi_encoder",), "bi_encoder.linking_loss": "full_catalogue"},
            "bi_encoder.linking_loss: 'full_catalogue' needs the vectors of all entities",
        ),
        (
            {"stages": ("bi_encoder",), "bi_encoder.linking_loss": "in_batch"},
            "bi_encoder.mine_every: 3, but the linking loss in_batch uses no negatives",
        ),
        ({"joint.schedule": "steps"}, "schedule: 'steps'; expected one of"),
        ({"num_devices": 100}, "num_devices: 100; expected 1 to"),
        ({"model.mention_head": "svm"}, "mention_head: 'svm'; expected one of"),
        ({"joint.eval_every": 0}, "joint.eval_every: 0; expected an integer, at least 1"),
        ({"joint.log_every": 0}, "joint.log_every: 0; expected an integer"),
        ({"joint.checkpoint_every": 0}, "joint.checkpoint_every: 0; expected an integer"),
        ({"joint.accumulate_steps": 0}, "joint.accumulate_steps: 0; expected an integer"),
        ({"seed": -1}, "seed: -1; expected an integer, at least 0"),
        ({"eval.max_questions": 0}, "eval.max_questions: 0; expected an integer, at least 1"),
        ({"joint.num_steps": 0, "joint.num_epochs": 0.0}, "both are 0; give one of them"),
        ({"joint.dtype": "fp16"}, "joint.dtype: 'fp16'; expected one of auto, float32, bfloat16"),
        ({"joint.table_dtype": "int4"}, "joint.table_dtype: 'int4'; expected one of"),
        ({"encode.batch_size": 0}, "encode.batch_size: 0; expected an integer"),
        ({"eval.metric": "best"}, "eval.metric: 'best'; expected one of weak, strong"),
        ({"linking.max_mentions": 0}, "max_mentions: 0; expected an integer"),
        ({"train_files": (2024,)}, "train_files: 2024; expected paths of files"),
        ({"fit_files": (2024,)}, "fit_files: 2024; expected paths of files"),
        ({"stages": ()}, "config.init_from is not set, and stages is empty"),
        ({"train_repeats": ("twice",)}, "train_repeats: 'twice'; expected numbers"),
        ({"joint.learning_rate": -1e-4}, "joint.learning_rate: -0.0001; expected a number, at"),
        ({"joint.max_grad_norm": math.nan}, "joint.max_grad_norm: nan; expected a number, at"),
        ({"joint.warmup_fraction": 10.0}, "joint.warmup_fraction: 10.0; expected a share, 0 to 1"),
        ({"partially_labelled": ("a.jsonl",)}, "partially_labelled: 'a.jsonl'; expected True or"),
        ({"partially_labelled": (True, True)}, "partially_labelled: 2 .*; expected none, or one"),
        ({"neutral_single_words": "no"}, "neutral_single_words: 'no'; expected one of never"),
        ({"train_repeats": (1.0, 2.0)}, "train_repeats: 2 numbers; expected none, or one for each"),
    ],
)
def test_settings_that_cannot_be_used(config, tmp_path, change, message):
    config.update_from_flattened_dict(change)
    with pytest.raises(ElqError, match=message):
        loop.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (
            {"joint.learning_rte": 99.0, "joint.num_epoch": 1, "linkng": 1},
            [
                "joint.learning_rte: no such setting; did you mean learning_rate?",
                "joint.num_epoch: no such setting; did you mean num_epochs?",
                "linkng: no such setting; did you mean linking?",
            ],
        ),
        (
            {"model.mention_hed": "mlp"},
            ["model.mention_hed: no such setting; did you mean mention"],
        ),
        ({"linking.maxmentions": 3}, ["did you mean max_mentions?"]),
        ({"eval.quux": 3}, ["eval.quux: no such setting; configs/default.py lists them all"]),
        ({"encode.table_dtype": "int8"}, ["it is named encode.storage_dtype now"]),
        ({"joint.remat": None}, ["joint.remat: missing; begin with configs/default.py"]),
        ({"eval": None}, ["eval: missing; begin with configs/default.py"]),
    ],
)
def test_names_of_settings_are_checked(config, tmp_path, change, messages):
    """As on the command line, in a configuration file or a notebook; None: left out."""
    for name, value in change.items():
        *sections, last = name.split(".")
        section = config[sections[0]] if sections else config
        if value is None:
            del section[last]
        else:
            section[last] = value
    with pytest.raises(ElqError) as raised:
        loop.train_and_evaluate(config, tmp_path / "run")
    for message in messages:
        assert message in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_start_that_failed_does_not_claim_the_workdir(config, tmp_path):
    config.joint.num_steps = 1
    right, config.catalogue = config.catalogue, "typo.jsonl"
    with pytest.raises(ElqError, match=r"typo\.jsonl: no such file"):
        loop.train_and_evaluate(config, tmp_path / "run")
    config.catalogue = right
    assert loop.train_and_evaluate(config, tmp_path / "run")


def test_a_run_that_failed_before_it_trained_does_not_claim_the_workdir(
    config, tmp_path, monkeypatch
):
    """As for want of memory in the first step: the corrected command works in the same workdir."""
    config.joint.num_steps = 1

    def full(*arguments):
        raise MemoryError("RESOURCE_EXHAUSTED")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "parallel_train_step", full)
        with pytest.raises(MemoryError):
            loop.train_and_evaluate(config, tmp_path / "run")
    assert (tmp_path / "run" / "config.json").exists()
    config.joint.batch_size = 4
    dev = pathlib.Path(config.dev_files[0])
    dev.write_text(dev.read_text().replace("}", " }", 1))
    loop.train_and_evaluate(config, tmp_path / "run")
    assert json.loads((tmp_path / "run/config.json").read_text())["joint"]["batch_size"] == 4


def test_dev_without_gold(config, tmp_path, monkeypatch, capsys):
    """Without any, the best parameters cannot be told; outside the catalogue, F1 stays 0."""
    dev = pathlib.Path(config.dev_files[0])
    dev.write_text('{"text": "who", "mentions": []}\n')
    with pytest.raises(ElqError, match=r"dev_files: .*dev\.jsonl: no gold mention in its first"):
        loop.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()
    dev.write_text('{"text": "who is nobody", "mentions": [[7, 13]], "title": ["Nobody"]}\n')
    monkeypatch.setattr(loop, "train_stage", lambda *arguments: exit("enough"))
    with pytest.raises(SystemExit):
        loop.train_and_evaluate(config, tmp_path / "run")
    assert "F1 will be 0 after every step" in capsys.readouterr().err


def test_training_data_without_a_mention_to_learn_from(config, tmp_path):
    """Gold outside the catalogue, inside of words or absent: said before anything is trained."""
    rows = (
        {"text": "who is nobody", "mentions": [[7, 13]], "title": ["Nobody at all"]},
        {"text": "who is world", "mentions": [[8, 10]], "row": [3]},
        {"text": "who", "mentions": []},
    )
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    pathlib.Path(config.train_files[0]).write_text(lines)
    with pytest.raises(ElqError, match=r"train_files .*: no mention to learn from; expected gold"):
        loop.train_and_evaluate(config, tmp_path / "run")


def test_a_workdir_whose_name_is_not_utf8(config, tmp_path):
    """array_record and TensorStore write nothing there; said before anything is made."""
    with pytest.raises(ElqError, match="this name is not UTF-8"):
        loop.train_and_evaluate(config, tmp_path / "caf\udce9")
    assert not (tmp_path / "caf\udce9").exists()


def test_two_runs_in_one_workdir(config, tmp_path):
    with (
        Workdir(tmp_path / "run").lock(),
        pytest.raises(ElqError, match="another process is working in it"),
    ):
        loop.train_and_evaluate(config, tmp_path / "run")


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    params = {"kernel": np.zeros((2, 2), np.float32)}
    state = create_train_state(params, create_optimizer(1e-3))
    kept = checkpoints.Checkpoints(tmp_path)

    def full(*arguments, **settings):
        raise ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(kept._manager, "save", full)
        with pytest.raises(ElqError, match="disk is full; free some space"):
            kept.save(state, {})
    kept.save(state, {"seed": 7})
    kept.close()
    assert checkpoints.Checkpoints(tmp_path).restore(state)[1] == {"seed": 7}
