"""Two processes with four devices each, as two hosts would be, against one with eight."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import xla_flags
from flax import traverse_util
from tiny import write_demo_part, write_tiny_bert

from configs import default
from elq_jax.entities.catalogue import Catalogue
from elq_jax.entities.embeddings import Embeddings
from elq_jax.model.bundle import Model
from elq_jax.training import loop
from elq_jax.training.preemption import EXIT_CODE

ROOT = pathlib.Path(__file__).parent.parent.parent
STEPS = 6
TIMEOUT = 300  # seconds


class Hosts:
    """A program started once per host."""

    def __init__(self, folder, *arguments):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        self._logs = [folder / f"host_{i}.log" for i in range(2)]
        self.processes = []
        for i, log in enumerate(self._logs):
            environment = os.environ | {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(i),
                "XLA_FLAGS": xla_flags(4),
            }
            with log.open("wb") as file:
                process = subprocess.Popen(
                    [sys.executable, "-m", *arguments],
                    env=environment,
                    cwd=ROOT,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            self.processes.append(process)

    def wait(self):
        """Exit statuses and outputs. A host that waits for one that failed is killed."""
        deadline = time.monotonic() + TIMEOUT
        while None in (statuses := [process.poll() for process in self.processes]):
            if set(statuses) - {None, 0, EXIT_CODE} or time.monotonic() > deadline:
                self.kill()
            time.sleep(0.05)
        return statuses, [log.read_text() for log in self._logs]

    def kill(self):
        for process in self.processes:
            process.kill()

    def wait_for(self, path, step):
        """Returns when a metrics.jsonl has a line of this step."""
        deadline = time.monotonic() + TIMEOUT
        while not (path.exists() and f'{{"step": {step},' in path.read_text()):
            stopped = [process.poll() for process in self.processes] != [None, None]
            if stopped or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(self.wait())
            time.sleep(0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    # Gradients of words are most of what hosts exchange, and dropout of what is compiled.
    for name, dropout in (("bert", 0.1), ("entity_bert", 0.0)):
        (folder / name).mkdir()
        write_tiny_bert(folder / name, layers=1, dropout=dropout, words=3000)
    write_demo_part(folder)
    return folder


@pytest.fixture(scope="module")
def settings(folder):
    stages = {
        f"{stage}.{name}": value
        for stage in ("bi_encoder", "joint")
        for name, value in {
            "batch_size": 16,  # Two of a device, so both draw the same dropout; 60 end unevenly.
            "num_steps": STEPS,
            "log_every": 1,
            "checkpoint_every": 2,
            "num_negatives": 2,
        }.items()
    }
    return stages | {
        "question_encoder": str(folder / "bert"),
        "entity_encoder": str(folder / "entity_bert"),
        "catalogue": str(folder / "catalogue.jsonl"),
        "train_files": (str(folder / "train.jsonl"),),
        "held_out_share": 0.0,
        "dev_files": (str(folder / "dev.jsonl"),),
        "stages": ("bi_encoder", "joint"),
        "length_buckets": (),
        "model.max_question_tokens": 24,
        "model.max_entity_tokens": 16,
        "bi_encoder.mine_every": 4,
        "joint.eval_every": 3,
        "joint.linking_loss": "hard_negatives",
    }


@pytest.fixture(scope="module")
def alone(folder, settings):
    """The run of one process."""
    config = default.get_config()
    config.update_from_flattened_dict(settings)
    loop.train_and_evaluate(config, folder / "alone")
    return folder / "alone"


@pytest.fixture(scope="module")
def together(folder, settings):
    """The run of two, stopped, killed and resumed."""
    arguments = [f"--config.{name}={value}" for name, value in settings.items()]
    # It is in no file: parsing it imports JAX, before the hosts have found each other.
    arguments.append("--config.model.symbols_apart=true")
    run = folder / "together"
    command = ["elq_jax.train", "--config=configs/default.py", f"--workdir={run}", *arguments]

    hosts = Hosts(folder, *command)
    hosts.wait_for(run / "bi_encoder" / "metrics.jsonl", 1)
    hosts.processes[1].send_signal(signal.SIGTERM)
    statuses, outputs = hosts.wait()
    assert statuses == [EXIT_CODE, EXIT_CODE], outputs
    saved = [output[output.index("bi_encoder: saved at step") :] for output in outputs]
    assert saved[0] == saved[1]
    step = re.match(r"bi_encoder: saved at step (\d)", saved[0])[1]

    hosts = Hosts(folder, *command)
    hosts.wait_for(run / "joint" / "metrics.jsonl", 3)
    hosts.kill()
    _, outputs = hosts.wait()
    assert f"bi_encoder: resumes at step {step} of 6" in outputs[0]

    statuses, outputs = Hosts(folder, *command).wait()
    assert statuses == [0, 0], outputs
    assert "joint: resumes at step 2 of 6" in outputs[0]
    assert "joint: step" not in outputs[1]  # One talks.
    return run


def test_training(alone, together):
    for stage in ("bi_encoder", "joint"):
        rows = [
            [json.loads(line) for line in (run / stage / "metrics.jsonl").read_text().splitlines()]
            for run in (alone, together)
        ]
        assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
        for one, two in zip(*rows, strict=True):
            for name in (name for name in one if "per_" not in name):
                np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-5, err_msg=name)
    params = [
        traverse_util.flatten_dict(Model.open(run / "linker").params, sep="/")
        for run in (alone, together)
    ]
    for name, value in params[0].items():
        # Where a gradient is nearly zero its sign is chance, and Adam goes by the sign.
        assert np.abs(params[1][name] - value).mean() < 1e-5, name


def test_encoding(alone, folder):
    """Each host its shards, with the result of one; one host alone goes on where two left off."""
    command = [
        "elq_jax.encode_entities",
        f"--catalogue={folder / 'catalogue.jsonl'}",
        f"--encoder={alone / 'linker'}",
        "--shard_rows=16",
        f"--output={folder / 'encoded'}",
    ]
    statuses, outputs = Hosts(folder, *command).wait()
    assert statuses == [0, 0], outputs
    shards = sorted((folder / "encoded" / "embeddings").glob("shard-*"))
    assert len(shards) == 6
    kept = {path: path.stat().st_mtime_ns for path in shards if path != shards[3]}
    shards[3].unlink()
    subprocess.run([sys.executable, "-m", *command], check=True, cwd=ROOT)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept

    expected = Embeddings.open(alone / "embeddings")
    catalogue = Catalogue.open(folder / "encoded" / "catalogue.arrow")
    found = Embeddings.open(folder / "encoded" / "embeddings", catalogue.fingerprint)
    assert found.encoder_fingerprint == expected.encoder_fingerprint
    np.testing.assert_allclose(found[:], expected[:], atol=1e-6)


def test_evaluation(alone, folder):
    """The same counts, by a sharded search of all devices."""
    reports = []
    for name, run in (("one", None), ("two", Hosts)):
        command = [
            "elq_jax.evaluate",
            f"--linker={alone / 'linker'}",
            f"--questions={folder / 'dev.jsonl'}",
            "--threshold=-6",
            "--index=exact",
            f"--output={folder / name}",
        ]
        if run:
            statuses, outputs = Hosts(folder, *command).wait()
            assert statuses == [0, 0], outputs
            assert "weak" in outputs[0]
            assert "weak" not in outputs[1]
        else:
            subprocess.run([sys.executable, "-m", *command], check=True, cwd=ROOT)
        reports.append(json.loads((folder / name / "report.json").read_text()))
    varying = {"speed", "peak_memory_bytes", "machine", "curve", "index"}
    assert reports[0].keys() == reports[1].keys()
    used = [(report["index_asked"], report["index"]) for report in reports]
    assert used == [("exact", "exact"), ("exact", "sharded")]
    for name in reports[0].keys() - varying:
        assert reports[0][name] == reports[1][name], name
