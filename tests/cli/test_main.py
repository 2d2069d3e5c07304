"""The command elq-jax finds every program and runs it as `python -m` does."""

import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

from elq_jax.cli import main as module
from elq_jax.entities.build import build_catalogue

ROOT = pathlib.Path(__file__).parent.parent.parent
PROGRAMS = sorted(path.stem for path in (ROOT / "elq_jax").glob("[a-z]*.py"))


def run(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def elq_jax(*arguments):
    return run("-m", "elq_jax.cli.main", *arguments)


def test_what_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"elq-jax": f"{module.__name__}:main"}


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_every_program_is_listed(arguments, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["elq-jax", *arguments])
    module.main()
    listed = capsys.readouterr().out
    assert re.findall(r"^  (\w+) +[A-Z].*\.$", listed, re.MULTILINE) == PROGRAMS


@pytest.mark.parametrize("name", ["train", "encode-entities"])
def test_help_is_that_of_the_program(name):
    found = elq_jax(name, "--help")
    expected = run("-m", f"elq_jax.{name.replace('-', '_')}", "--help")
    assert found.stdout == expected.stdout
    assert found.returncode == expected.returncode == 0


def test_help_does_not_wait_for_jax():
    for name in ("link", "train", "evaluate", "encode_entities"):
        done = run("-X", "importtime", "-m", "elq_jax.cli.main", name, "--help")
        assert "\nflags:\n" in done.stdout
        assert not re.search(r"\| +jax$", done.stderr, re.MULTILINE), name


def test_flags_and_arguments_reach_the_program():
    done = elq_jax("train", "--workdir=no/where", "--config=configs/demo.py", "extra")
    assert done.returncode == 2
    assert done.stderr.startswith("error: extra: unexpected argument; expected only flags")


def test_modules_of_the_folder_are_found(tmp_path):
    """As with `python -m`, where an installed command would look in its own folder alone."""
    (tmp_path / "my_losses.py").write_text("raise ImportError('found, but broken')")
    code = f"import sys; sys.path[0] = '/nowhere'; sys.path.append({str(ROOT)!r}); "
    code += "from elq_jax.cli.main import main; main()"
    own = "--config.joint.linking_loss=my_losses:margin"
    arguments = ["train", f"--config={ROOT}/configs/default.py", own, "--config.joint.margin=1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "'my_losses:margin': found, but broken" in done.stderr


def test_programs_that_are_not_there():
    done = elq_jax("lnik", "--linker=x")
    assert (done.returncode, done.stderr) == (
        2,
        "error: lnik: no such program; did you mean link?\n",
    )
    assert "expected one of build_index, catalogue, " in elq_jax("qqq").stderr


def test_verify(tmp_path):
    """The program itself; what it finds is tested with the linker directory."""
    (tmp_path / "entities.jsonl").write_text('{"title": "a", "text": ""}\n')
    build_catalogue(tmp_path / "entities.jsonl", tmp_path / "catalogue.arrow")
    command = [sys.executable, "-m", "elq_jax.verify"]
    found = subprocess.run([*command, tmp_path], capture_output=True, text=True, check=True)
    path = tmp_path / "catalogue.arrow"
    assert found.stdout == f"{path}: 1 entities, checksum and fingerprint agree\n"
    path.write_bytes(path.read_bytes().replace(b"title", b"titel", 1))
    for arguments, message in (([tmp_path], f"error: {path}: "), ([], "error: no folder is given")):
        found = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        assert (found.returncode, found.stdout) == (2, "")
        assert message in found.stderr
