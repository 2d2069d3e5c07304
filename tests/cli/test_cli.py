"""What all programs share: flags that are wrong, arguments that none takes, Ctrl-C."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
PROGRAMS = {
    "train": ["--config=configs/demo.py", "--workdir=no/where"],
    "encode_entities": ["--catalogue=none.jsonl", "--output=no/where"],
    "evaluate": ["--linker=no/linker", "--questions=none.jsonl"],
    "build_index": ["--linker=no/linker"],
    "convert": ["--linker=no/linker"],
}


def run(*command):
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=os.environ | {"ELQ_JAX_CACHE": "", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("program", PROGRAMS)
def test_arguments_without_dashes(program):
    done = run("-m", f"elq_jax.{program}", *PROGRAMS[program], "config.joint.num_steps=5")
    assert done.returncode == 2
    assert done.stderr == (
        "error: config.joint.num_steps=5: unexpected; everything is given with flags, which begin "
        "with -- (--help shows all)\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config=configs/demo.py", "--config.joint.num_step=3"],
            "--config=configs/demo.py: --config.joint.num_step: no such setting; did you mean "
            "num_steps?",
        ),
        (
            ["--config", "configs/demo.py", "--config.join.num-steps=3"],
            "--config=configs/demo.py: --config.join.num_steps: no such setting; did you mean "
            "joint?",
        ),
        (
            ["--config=configs/demo.py", "--config.joint.num_steps.x=3"],
            "--config=configs/demo.py: --config.joint.num_steps.x: no such setting; "
            "configs/default.py lists them all",
        ),
        (
            ["--config=configs/demo.py", "--config.joint.num-steps=x"],
            "--config.joint.num_steps=x: invalid literal for int() with base 10: 'x'",
        ),
        (
            ["--config=configs/demo.py:smoke"],
            "--config=configs/demo.py:smoke: TypeError: get_config() takes 0 positional arguments "
            "but 1 was given (variant 'smoke')",
        ),
        (
            ["--config=configs/tpu_v3.py:smok"],
            "--config=configs/tpu_v3.py:smok: ValueError: configuration variant 'smok'; expected "
            "none, or 'smoke'",
        ),
        (
            ["--config=configs/none.py", "--config.joint.num_steps=3"],
            "--config=configs/none.py: no such file; expected one such as configs/default.py",
        ),
    ],
)
def test_configurations_that_cannot_be_used(arguments, message):
    done = run("-m", "elq_jax.train", "--workdir=no/where", *arguments)
    assert done.returncode == 2
    assert done.stderr == f"error: flag {message}\n--help shows all flags\n"


INTERRUPTED = """
import runpy, sys
from elq_jax import cli

def interrupt():
    raise KeyboardInterrupt

cli.use_compilation_cache = interrupt
program, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(f"elq_jax.{program}", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("program", "arguments", "goes_on"),
    [
        ("evaluate", PROGRAMS["evaluate"], False),
        ("build_index", PROGRAMS["build_index"], False),
        ("encode_entities", PROGRAMS["encode_entities"], True),
        ("link", ["--linker=no/linker", "who wrote dune?"], False),
        ("link", ["--linker=no/linker", "--output=none.jsonl", "who wrote dune?"], True),
    ],
)
def test_interrupted(program, arguments, goes_on):
    done = run("-c", INTERRUPTED, program, *arguments)
    assert done.returncode == 130
    hint = "; the same command goes on where it stopped" if goes_on else ""
    assert done.stderr == f"interrupted{hint}\n"
