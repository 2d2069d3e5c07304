"""Experiment records: what they may hold, and that their smoke variants run end to end."""

import ast
import functools
import importlib
import pathlib

import pytest
from absl import flags
from ml_collections import config_flags
from tiny import write_tiny_bert

from elq_jax.linking.linker import EntityLinker
from elq_jax.model import bundle
from elq_jax.training import loop

# Of ml_collections, on Python 3.11.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted(path for path in (ROOT / "configs").glob("*.py") if path.name != "__init__.py")
OF_THE_ORIGINAL_RECIPE = ("original.", "bi_encoder.mask_duplicates")


def load(path, variant=""):
    """A configuration as `--config` of a program reads it."""
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", flag_values=values)
    values(["program", f"--config={path}" + (f":{variant}" if variant else "")])
    return config.value


@functools.cache
def flat(name, variant=""):
    get_config = importlib.import_module(f"configs.{name}").get_config
    config = get_config(variant) if variant else get_config()
    return flatten(config.to_dict())


def flatten(tree, prefix=""):
    """Nested settings as {"joint.batch_size": 64, ...}."""
    values = {}
    for name, value in tree.items():
        nested = flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {}
        values |= nested or {prefix + name: value}
    return values


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_config_is_a_record_with_the_fields_of_the_default(path):
    fields = set(flat(path.stem))
    if path.stem == "original_recipe":
        fields = {name for name in fields if not name.startswith(OF_THE_ORIGINAL_RECIPE)}
    assert fields == set(flat("default"))
    tree = ast.parse(path.read_text())
    for word in ("Purpose:", "Hardware:", "Time", "core", "Command:"):
        assert word in ast.get_docstring(tree), word
    imported = [
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    ]
    assert {name.split(".")[0] for name in imported} <= {"ml_collections", "configs"}


def with_smoke(paths):
    """Names of the configurations that have variants."""
    return [path.stem for path in paths if "variant: str" in path.read_text()]


def paths_through_the_program():
    """One configuration of each combination of stages, losses, number formats and recipe."""
    kinds = {}
    for name in with_smoke(FILES):
        values = flat(name, "smoke")
        stages = values["stages"]
        names = [f"{stage}.{key}" for stage in stages for key in ("linking_loss", "dtype")]
        kinds.setdefault((stages, values["recipe"], *map(values.get, names)), name)
    return sorted(kinds.values())


def test_variants():
    assert {"tpu_v3", "tpu_v3_pod", "wikipedia_pretrain", "webqsp_finetune", "gpu", "colab"} <= set(
        with_smoke(FILES)
    )
    config = load(ROOT / "configs" / "tpu_v3.py", "smoke")
    assert config.question_encoder == "minilm"
    assert config.joint.num_steps == 4
    assert config.joint.dtype == "bfloat16"
    assert load(ROOT / "configs" / "tpu_v3.py").joint.batch_size == 128
    with pytest.raises(flags.IllegalFlagValueError, match="variant 'smok'; expected none, or"):
        load(ROOT / "configs" / "tpu_v3.py", "smok")


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    write_tiny_bert(folder, layers=1, dropout=0.0, words=3000)
    return folder


@pytest.mark.parametrize("name", paths_through_the_program())
def test_smoke_variants_train_end_to_end(name, tiny_bert, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load(ROOT / "configs" / f"{name}.py", "smoke")
    config.question_encoder = str(tiny_bert)  # Smaller than MiniLM, and quicker to compile.
    config.num_devices = 2
    folder = loop.train_and_evaluate(config, tmp_path)
    linking = bundle.read_description(folder).linking
    assert linking["max_mentions"] == config.linking.max_mentions
    linked = EntityLinker.from_pretrained(folder)(["who wrote dune?"], threshold=-100.0)
    assert linked[0]
    for stage in config.stages:
        assert (tmp_path / stage / "metrics.jsonl").read_text().count("span_loss") == 2
