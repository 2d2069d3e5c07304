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
    "synthesize": ["--catalogue=no/where", "--output=no/questions.jsonl"],
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
        "error: config.joint.num_steps=5: unexpected argument; expected only flags such as "
        "--name=value, which --help lists\n"
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


@pytest.mark.parametrize(
    ("program", "flag", "reason"),
    [
        ("link", "--linker=", "'': expected the path of a file or folder; give one"),
        ("evaluate", "--questions=a.jsonl,", "'': expected the path of a file or folder; give one"),
        ("build_index", "--embeddings=", "'': expected the path of a file or folder; give one"),
        ("encode_entities", "--encoder=", "found nothing; give a value, or leave the flag out"),
        ("convert", "--catalogue=", "found nothing; give a value, or leave the flag out"),
        ("encode_entities", "--max_tokens=2", "expected `int` >= 3"),
    ],
)
def test_an_empty_path_is_not_the_current_folder(program, flag, reason):
    done = run("-m", f"elq_jax.{program}", *PROGRAMS.get(program, ()), flag)
    assert done.returncode == 2
    assert done.stderr == f"error: flag {flag}: {reason}\n--help shows all flags\n"


INTERRUPTED = """
import runpy, sys
from elq_jax.core import devices

def interrupt():
    raise KeyboardInterrupt

devices.use_compilation_cache = interrupt
program, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(f"elq_jax.{program}", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("program", "arguments", "is_resumable"),
    [
        ("evaluate", PROGRAMS["evaluate"], False),
        ("build_index", PROGRAMS["build_index"], False),
        ("encode_entities", PROGRAMS["encode_entities"], True),
        ("link", ["--linker=no/linker", "who wrote dune?"], False),
        ("link", ["--linker=no/linker", "--output=none.jsonl", "who wrote dune?"], True),
    ],
)
def test_interrupted(program, arguments, is_resumable):
    done = run("-c", INTERRUPTED, program, *arguments)
    assert done.returncode == 130
    hint = "; the same command resumes where it stopped" if is_resumable else ""
    assert done.stderr == f"interrupted{hint}\n"


SHOWN = """
import sys
from absl import flags
from elq_jax.cli.run import define_path, define_path_sets, run
from elq_jax.core.machine import is_closed
from elq_jax.storage.files import output_file, user_address

PATH = define_path("path", "A path.", default="~/default")
OUTPUT = define_path("output", "A file.", parse=output_file)
ADDRESS = define_path("address", "A folder.", parse=user_address)
PATHS = define_path_sets("paths", "Files.")

def main(arguments):
    with open({out!r}, "w", encoding="utf-8", errors="surrogateescape") as file:
        shown = PATH.value, OUTPUT.value, ADDRESS.value, PATHS.value, arguments[1:]
        streams = [is_closed(s) for s in (sys.stdin, sys.stdout, sys.stderr)]
        print(*map(str, shown), streams, file.fileno() > 2, sep="\\n", file=file)
    print("shown")
    print("told", file=sys.stderr)
    {then}

run(main, takes_arguments=True)
"""


def show(tmp_path, *arguments, then="pass", closed="", **environment):
    out = tmp_path / "out.txt"
    code = SHOWN.format(out=str(out), then=then)
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=os.environ | {"HOME": "/home/ada"} | environment,
        capture_output=True,
        timeout=60,
        check=False,
    )
    lines = out.read_text("utf-8", "surrogateescape").splitlines() if out.exists() else []
    return done.returncode, done.stdout.decode(), done.stderr.decode(), lines


def test_paths_of_flags(tmp_path):
    (tmp_path / "c+d").touch()
    status, _, _, lines = show(
        tmp_path,
        "--output=~/x.jsonl",
        "--address=gs://bucket/run",
        f"--paths=a,~/b+{tmp_path}/d",
        f"--paths={tmp_path}/c+d",
    )
    assert status == 0
    assert lines[:3] == ["/home/ada/default", "/home/ada/x.jsonl", "gs://bucket/run"]
    sets = (["a"], ["/home/ada/b", tmp_path / "d"], [tmp_path / "c+d"])
    assert lines[3] == str([tuple(map(pathlib.Path, paths)) for paths in sets])
    status, _, errors, lines = show(tmp_path / "no", "--output=new/")
    assert (status, lines) == (2, [])
    assert errors.startswith("error: flag --output=new/: new/: ends in /; expected the name of a")


@pytest.mark.parametrize(
    ("closed", "streams", "printed"),
    [
        ("", [False, False, False], ("shown\n", "told\n")),
        (">&-", [False, True, False], ("", "told\n")),
        ("2>&-", [False, False, True], ("shown\n", "")),
        ("<&- >&- 2>&-", [True, True, True], ("", "")),
    ],
)
def test_closed_streams(tmp_path, closed, streams, printed):
    status, output, errors, lines = show(tmp_path, closed=closed)
    assert status == 0
    assert (output, errors) == printed
    assert lines[5:] == [str(streams), "True"]


def test_arguments_in_a_locale_that_cannot_say_them(tmp_path):
    status, _, _, lines = show(
        tmp_path, "beyoncé", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"
    )
    assert status == 0
    assert lines[4] == "['beyoncé']"


@pytest.mark.parametrize(
    ("then", "message"),
    [
        ("raise MemoryError", "out of memory (MemoryError); give a smaller batch size"),
        ("open('/no/where')", "/no/where: No such file or directory"),
        (
            "import jax; raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: 3 GiB\\n...')",
            "out of memory (RESOURCE_EXHAUSTED: 3 GiB); give a smaller batch size",
        ),
    ],
)
def test_errors_in_one_line(tmp_path, then, message):
    status, _, errors, _ = show(tmp_path, then=then)
    assert status == 2
    assert errors.startswith(f"told\nerror: {message}")
    assert errors.count("\n") == 2


def test_faults_of_the_program_have_a_traceback(tmp_path):
    status, _, errors, _ = show(tmp_path, then="raise RuntimeError('ours')")
    assert status == 1
    assert "Traceback" in errors


@pytest.mark.parametrize("platform", ["tpu", "cuda", "none"])
def test_an_accelerator_that_is_not_here(tmp_path, platform):
    then = "from elq_jax.cli.run import start_jax; start_jax()"
    status, _, errors, _ = show(tmp_path, then=then, JAX_PLATFORMS=platform)
    assert status == 2
    assert "Traceback" not in errors
    assert f"JAX_PLATFORMS is '{platform}'; set it to cpu" in errors.splitlines()[-1]


def test_a_limit_on_memory_that_no_library_gets_along_with(tmp_path):
    then = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (10**9, 10**9)); "
        "from elq_jax.cli.run import start_jax; start_jax()"
    )
    status, _, errors, _ = show(tmp_path, then=then)
    assert status == 2
    assert errors.splitlines()[1].startswith("error: out of memory: this process may use 0.93 GiB")
