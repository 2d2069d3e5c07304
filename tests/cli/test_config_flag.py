"""The flag --config: where its files are found, what they may import, and how lists are read."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from absl import flags

from elq_jax.cli import config as config_flag
from elq_jax.training import configuration

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture
def parse(monkeypatch):
    """A function from the arguments of a program to its configuration."""

    def parsed(*arguments):
        values = flags.FlagValues()
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        holder = config_flag.define_config(flag_values=values)
        values(sys.argv)
        return holder.value

    return parsed


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("train_files=a.jsonl", ("a.jsonl",)),
        ("train_files=/data/a.jsonl,~/b-1.jsonl.gz, c d.jsonl,", None),
        ("train_files=('a,b.jsonl', 'c.jsonl')", ("a,b.jsonl", "c.jsonl")),
        ("train_files=", ()),
        ("stages=bi_encoder,joint", ("bi_encoder", "joint")),
        ("stages=('joint',)", ("joint",)),
        ("train_repeats=2.0,0.25,1e-1", (2.0, 0.25, 0.1)),
        ("length_buckets=16,32", (16, 32)),
    ],
)
def test_lists(parse, argument, expected):
    config = parse("--config=configs/default.py", f"--config.{argument}")
    if expected is None:
        expected = ("/data/a.jsonl", "~/b-1.jsonl.gz", "c d.jsonl")
    assert config[argument.partition("=")[0]] == expected


def test_a_list_may_be_given_piece_by_piece(parse):
    arguments = ["--config.train_files=a.jsonl", "--config.train_files=b.jsonl,c.jsonl"]
    config = parse("--config=configs/default.py", *arguments)
    assert config.train_files == ("a.jsonl", "b.jsonl", "c.jsonl")


def test_a_list_that_cannot_be_read(parse):
    with pytest.raises(flags.IllegalFlagValueError, match=r"expected a list such as a\.jsonl,b"):
        parse("--config=configs/default.py", "--config.train_files=('a.jsonl',")


LOSS = """
import dataclasses

from elq_jax.losses import LINKING_LOSSES, LinkingLoss


@LINKING_LOSSES.register("{name}")
@dataclasses.dataclass(frozen=True)
class Margin(LinkingLoss):
    margin: float = 0.2
    most: int | None = None

    def __call__(self, mentions, entities): ...
"""


def test_settings_of_the_loss_that_is_chosen(parse, tmp_path, monkeypatch):
    """They need not be in the configuration file, nor need the loss be the file's."""
    (tmp_path / "flag_loss.py").write_text(LOSS.replace("{name}", "margin_of_flags"))
    monkeypatch.syspath_prepend(tmp_path)
    own = "--config.joint.linking_loss=flag_loss:margin_of_flags"
    config = parse("--config=configs/default.py", own, "--config.joint.margin=0.3")
    assert config.joint.margin == 0.3
    assert "margin" not in config.bi_encoder
    assert "most" not in config.joint  # The configuration is as it is without the flag.
    config = parse("--config=configs/default.py", own, "--config.joint.most", "3")
    assert config.joint.most == 3
    config = parse("--config=configs/default.py", "--config.linking.threshold=-2")
    assert config.linking.threshold == -2.0
    for arguments, hint in (
        ((own, "--config.joint.magrin=1"), "did you mean margin?"),
        (("--config.joint.margin=1",), "joint.margin: no such setting; configs/default.py lists"),
        (("--config.jiont.margin=1",), "did you mean joint?"),
        (("--config.joint.linking_loss=no", "--config.joint.margin=1"), "linking_loss: 'no'; exp"),
    ):
        with pytest.raises(flags.IllegalFlagValueError, match=re.escape(hint)):
            parse("--config=configs/default.py", *arguments)


def test_the_former_name_of_dev_files(parse):
    """A command line of before still says which questions choose the step and the threshold."""
    for name in ("default", "webqsp"):
        config = parse(f"--config=configs/{name}.py", "--config.dev_file=mine.jsonl")
        assert configuration.with_dev_files(config).dev_files == ("mine.jsonl",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config():\n    return 3\n", "get_config returned int; expected a ConfigDict"),
        ("def get_config():\n    return x\n", r"NameError: name 'x' is not defined \(line 2\)"),
        ("import nothing_of_this_name\n", "ModuleNotFoundError: .*nothing_of_this_name"),
        ("def get_config(:\n", "SyntaxError: "),
        ("x = 1\n", "AttributeError: .*get_config"),
        (
            "from configs import default\n\n\ndef get_config():\n"
            "    config = default.get_config()\n    config.train_files = 'a.jsonl'\n"
            "    return config\n",
            r"TypeError: .*str.*tuple.* \(line 6\)",
        ),
    ],
)
def test_a_file_that_cannot_be_run(parse, tmp_path, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(flags.IllegalFlagValueError, match=message):
        parse(f"--config={path}")


SHOW = """
import sys
from absl import app
from elq_jax.cli import config
holder = config.define_config()
app.run(lambda _: print(holder.value.joint.batch_size, holder.value.joint.num_steps))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the package as pip installs it; its configurations are elq_jax.configs."""
    folder = tmp_path_factory.mktemp("site")
    unwanted = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "elq_jax", folder / "elq_jax", ignore=unwanted)
    shutil.copytree(ROOT / "configs", folder / "elq_jax" / "configs", ignore=unwanted)
    return folder


def show(site, folder, *arguments, code=SHOW):
    """What a program of an installed package says, started in `folder`."""
    environment = os.environ | {"PYTHONPATH": str(site), "PYTHONWARNINGS": "error"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_installed_package_brings_its_configurations(installed, tmp_path):
    done = show(
        installed, tmp_path, "--config=configs/webqsp.py:smoke", "--config.joint.num_steps=3"
    )
    own = installed / "elq_jax" / "configs" / "webqsp.py"
    assert done.stdout == "8 3\n"
    assert done.stderr == (
        f"configs/webqsp.py: no such file here; using {own}, which came with elq_jax\n"
    )
    code = "from elq_jax.configs import webqsp; print(webqsp.get_config().joint.num_steps)"
    assert show(installed, tmp_path, code=code).stdout == "1300\n"


def test_own_configurations_import_those_that_came_with_the_package(installed, tmp_path):
    text = (
        "from configs import default\n\n\ndef get_config():\n    config = default.get_config()\n"
        "    config.joint.batch_size = 5\n    return config\n"
    )
    (tmp_path / "mine.py").write_text(text)
    assert show(installed, tmp_path, "--config=mine.py").stdout == "5 0\n"
    # Those beside it come first, if its folder is named configs.
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "other.py").write_text(text.replace("= 5", "+= 1"))
    (folder / "default.py").write_text(text.replace("from configs", "from elq_jax.configs"))
    assert show(installed, tmp_path, "--config=configs/other.py").stdout == "6 0\n"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = show(installed, elsewhere, f"--config={tmp_path}/configs/other.py")
    assert done.stdout == "6 0\n"
    assert done.stderr == ""
