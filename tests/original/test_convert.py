"""Files of the original through `convert`, and the way back; test_parity has the answers."""

import collections
import errno
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import types
import zipfile

import jax
import ml_collections
import numpy as np
import pytest
from conftest import OWN_FIXTURES
from tiny import arrays, tiny_config, tiny_params

from elq_jax.core.errors import ElqError
from elq_jax.entities.catalogue import Catalogue
from elq_jax.entities.embeddings import Embeddings, EmbeddingsWriter
from elq_jax.entities.encode import CatalogueEncoder
from elq_jax.linking.linker import EntityLinker
from elq_jax.model.bundle import Model, initial_params
from elq_jax.model.config import BertConfig
from elq_jax.original import checkpoint as original
from elq_jax.original import convert as conversion
from elq_jax.original import torch_files
from elq_jax.original.conversion import Conversion
from elq_jax.original.names import params_from_state_dict
from elq_jax.original.presets import PRESETS, get_preset, with_preset
from elq_jax.original.torch_files import open_torch_file, write_torch_file
from elq_jax.retrieval import open_index
from elq_jax.retrieval.scann import ScannIndex
from elq_jax.storage.files import atomic_write
from elq_jax.text.tokenization import Tokenizer
from elq_jax.training import run

FIXTURE = json.loads((OWN_FIXTURES / "params.json").read_text())
HEAD = "classification_heads.mention_scores.bound_classifier."
LINEAR = "classification_heads.get_context_embeds.mention_agg_linear."

try:
    import torch
except ImportError:
    torch = None
needs_torch = pytest.mark.skipif(torch is None, reason="torch is not installed")


def save_zip(path, tensors):
    """The zip format, as torch lays it out, without torch."""
    storages, file = {}, io.BytesIO()
    state = {name: torch_files._Tensor(array, storages) for name, array in tensors.items()}
    torch_files._TensorPickler(file, protocol=2).dump(collections.OrderedDict(state))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("elq/data.pkl", file.getvalue())
        archive.writestr("elq/byteorder", "little")
        for key, array in storages.items():
            archive.writestr(f"elq/data/{key}", array.tobytes())


def save_with_torch(path, tensors, new_format):
    state = {name: torch.from_numpy(array) for name, array in tensors.items()}
    state = collections.OrderedDict(state)
    state._metadata = {"": {"version": 1}}  # as that of a module
    torch.save(state, path, _use_new_zipfile_serialization=new_format)


WRITERS = {
    "legacy": write_torch_file,
    "zip": save_zip,
    "torch legacy": lambda path, tensors: save_with_torch(path, tensors, False),
    "torch zip": lambda path, tensors: save_with_torch(path, tensors, True),
}
FORMATS = [pytest.param(name, marks=needs_torch if "torch" in name else ()) for name in WRITERS]


@pytest.fixture(scope="session")
def minilm():
    return Tokenizer.from_pretrained("minilm")


class Release:
    """Files of a published model, and `convert` of them."""

    def __init__(self, folder):
        self.folder, self.output = folder, folder / "linker"
        self.parameters = dict(FIXTURE["params"])
        self.tensors = dict(arrays("state_dict"))
        self.files = {
            "checkpoint": folder / "elq.bin",
            "params": folder / "params.txt",
            "tokenizer": "minilm",
            "bert_config": folder / "bert.json",
        }

    def write(self, save=write_torch_file):
        save(self.files["checkpoint"], self.tensors)
        self.files["params"].write_text(str(self.parameters))
        (self.folder / "bert.json").write_text(json.dumps(FIXTURE["config"]))
        return self

    def write_entities(self, count=500, vectors=None):
        vectors = arrays("kb")["entity_encodings"] if vectors is None else vectors
        lines = (OWN_FIXTURES / "entity.jsonl").read_text().splitlines(keepends=True)[:count]
        ids = arrays("kb")["entity_token_ids"][:count]
        self.files |= {
            "catalogue": self.folder / "entity.jsonl",
            "embeddings": self.folder / "all.t7",
            "token_ids": self.folder / "ids.t7",
        }
        self.files["catalogue"].write_text("".join(lines))
        write_torch_file(self.files["embeddings"], vectors[:count])
        write_torch_file(self.files["token_ids"], np.pad(ids, [(0, 0), (0, 128 - ids.shape[1])]))
        return self

    def convert(self, **options):
        given = self.files | {"preset": "interactive", "output": self.output} | options
        return conversion.convert(Conversion(**given))

    def load(self):
        return original.load_model(
            self.files["checkpoint"],
            self.files["params"],
            self.files.get("entity_checkpoint"),
            self.files.get("bert_config"),
            self.files.get("entity_bert_config"),
        )

    def use_blink(self, save=write_torch_file):
        """Without heads, and without options of a mention head: another file's entity encoder."""
        heads = {k: v for k, v in self.tensors.items() if k.startswith(original._HEADS)}
        blink = {k: v for k, v in self.tensors.items() if k not in heads}
        self.files["entity_checkpoint"] = self.folder / "biencoder.bin"
        self.files["entity_bert_config"] = self.folder / "bert.json"
        save(self.files["entity_checkpoint"], blink)
        return blink


@pytest.fixture
def release(tmp_path):
    return Release(tmp_path)


@pytest.mark.parametrize("file_format", FORMATS)
def test_checkpoint_formats(file_format, release):
    release.write(WRITERS[file_format])
    jax.tree.map(np.testing.assert_array_equal, release.load().params, dict(tiny_params()))


def variant(aggregation, head):
    """Parameters and state dict of a fixture's variant."""
    tensors = {k: v for k, v in arrays("state_dict").items() if not k.startswith("classific")}
    prefix = f"{aggregation}|{head}|w|"
    heads = arrays("variants")
    tensors |= {k.removeprefix(prefix): v for k, v in heads.items() if k.startswith(prefix)}
    return {"mention_aggregation_type": aggregation, "mention_scoring_method": head}, tensors


@pytest.mark.parametrize("head", ["qa_linear", "qa_mlp"])
@pytest.mark.parametrize("aggregation", ["all_avg", "fl_avg", "fl_linear", "all_avg_linear"])
def test_round_trip(aggregation, head, release, minilm):
    """Every variant comes back bit by bit, poolers included, with its parameters."""
    changes, release.tensors = variant(aggregation, head)
    release.parameters |= changes
    release.write()
    model = release.load()
    expected = params_from_state_dict(release.tensors, model.config)
    jax.tree.map(np.testing.assert_array_equal, model.params, expected)
    original.save_model(release.output, model, minilm, {})
    tensors, parameters = original.state_dict(release.output)
    assert tensors.keys() == release.tensors.keys()
    for name, tensor in release.tensors.items():
        assert tensors[name].dtype == tensor.dtype
        np.testing.assert_array_equal(tensors[name], tensor)
    assert parameters == release.parameters


def test_program_round_trip(release):
    """The program, both ways; a JSON parameter file; torch reads the result where it is.

    What a preset says of lengths is a setting of linking, which another preset takes back.
    """
    release.parameters |= {"max_context_length": 128, "max_mention_length": None}
    release.write().write_entities()
    release.files["params"].write_text(json.dumps(release.parameters))
    names = {"params": "params"}
    command = [f"--{names.get(name, name)}={path}" for name, path in release.files.items()]
    run_program(*command, f"--output={release.output}", "--preset=webqsp", "--storage_dtype=int8")
    settings = json.loads((release.output / "config.json").read_text())
    assert settings["linking"]["threshold"] == -2.9
    unused = release.output / "original.safetensors"
    assert settings["sha256"][unused.name] == hashlib.sha256(unused.read_bytes()).hexdigest()
    content = unused.read_bytes()
    unused.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ElqError, match=r"original\.safetensors: damaged: its SHA-256 is"):
        Model.open(release.output)
    unused.write_bytes(content)
    less = settings | {"sha256": {k: v for k, v in settings["sha256"].items() if k != unused.name}}
    (release.output / "config.json").write_text(json.dumps(less))
    with pytest.raises(ElqError, match=r"original\.safetensors: \"sha256\" in config\.json has no"):
        Model.open(release.output)
    (release.output / "config.json").write_text(json.dumps(settings))
    device = jax.devices()[:1]
    for preset, length in ((None, 32), ("library", 128), ("webqsp", 32)):
        changes = with_preset(preset, {})
        linker = EntityLinker.from_pretrained(release.output, devices=device, **changes)
        assert linker.max_question_tokens == length
    back = release.folder / "back.bin"
    printed = run_program(f"--linker={release.output}", f"--to_torch={back}")
    assert printed.split() == [str(back), str(release.folder / "back_params.txt")]
    shapes = {name: tuple(shape) for name, shape in FIXTURE["state_dict_shapes"].items()}
    found = open_torch_file(back)
    assert {name: tensor.shape for name, tensor in found.items()} == shapes
    for name, tensor in release.tensors.items():
        np.testing.assert_array_equal(found[name].map(), tensor)
    assert original.read_parameters(release.folder / "back_params.txt") == release.parameters
    if torch:
        state = torch.load(back, weights_only=True)
        for name, tensor in release.tensors.items():
            np.testing.assert_array_equal(state[name].numpy(), tensor)


def run_program(*arguments, status=0, errors=False):
    done = subprocess.run(
        [sys.executable, "-m", "elq_jax.convert", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "ELQ_JAX_CACHE": ""},
        timeout=120,
    )
    assert done.returncode == status, done.stderr
    return done.stderr if status or errors else done.stdout


def test_program_errors(release):
    error = run_program("--checkpoint=elq.bin", status=2)
    assert error.startswith("error: --params: missing; give all of --checkpoint, --params, ")
    error = run_program("--entity_checkpoint=blink.bin", status=2)
    assert error.startswith("error: --params: missing; give all of --entity_checkpoint, --params, ")


def test_to_torch_takes_nothing_else():
    """Not a flag of the other direction is silently ignored, though it has a default."""
    given = ("entity_checkpoint=x", "tokenizer=x", "token_ids=x", "index=scann", "output=x")
    given += ("preset=webqsp", "max_question_tokens=32", "wikidata_ids=x", "storage_dtype=int8")
    program = """
import sys
from absl import flags
from elq_jax import convert
for argument in sys.argv[1:]:
    flags.FLAGS(["convert", "--linker=a", "--to_torch=b.bin", argument])
    try:
        convert._to_torch()
    except convert.ElqError as error:
        print(error)
    for name in flags.FLAGS:
        flags.FLAGS[name].present = 0
"""
    command = [sys.executable, "-c", program, *(f"--{argument}" for argument in given)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    message = "cannot be combined with --to_torch and --linker"
    names = [argument.split("=")[0].removeprefix("no") for argument in given]
    assert done.stdout.splitlines() == [f"--{name}: {message}" for name in names]


def test_blink_entity_encoder(release, minilm):
    """cand_encoder of a bi-encoder without heads, and embeddings that it made."""
    release.use_blink()
    release.tensors = {k: v for k, v in release.tensors.items() if not k.startswith("cand_encoder")}
    release.write().write_entities(64, arrays("kb")["encoded_first64"])
    folder = release.convert()
    model = Model.open(folder)
    jax.tree.map(np.testing.assert_array_equal, model.params, dict(tiny_params()))
    encoder = CatalogueEncoder(model)
    catalogue = Catalogue.open(folder / "catalogue.arrow")
    vectors = encoder.encode(catalogue.titles(range(64)), catalogue.texts(range(64)))
    np.testing.assert_allclose(vectors, arrays("kb")["encoded_first64"], rtol=0, atol=2e-5)
    embeddings = Embeddings.open(folder / "embeddings", catalogue.fingerprint)
    assert embeddings.encoder_fingerprint == model.entity_fingerprint


def test_other_embeddings_are_not_said_to_be_the_encoders(release, capsys):
    release.write().write_entities()
    folder = release.convert()
    assert "gives the catalogue's entities other vectors" in capsys.readouterr().err
    assert Embeddings.open(folder / "embeddings").encoder_fingerprint == ""


def test_blink_alone(release, minilm, capsys):
    """Both encoders of BLINK, with a head at random: what encoding and training start from."""
    release.tensors = release.use_blink()
    mention_options = ("mention_aggregation_type", "mention_scoring_method", "max_mention_length")
    for name in mention_options:
        del release.parameters[name]
    release.write().write_entities(64, arrays("kb")["encoded_first64"])
    del release.files["checkpoint"]
    folder = release.convert(checkpoint=None)
    assert "biencoder.bin: has no mention head, so the head" in capsys.readouterr().err
    encoder = Model.open(folder, ("entity",)).params["entity"]
    jax.tree.map(np.testing.assert_array_equal, encoder, tiny_params()["entity"])
    config = ml_collections.ConfigDict({"init_from": str(folder)})
    model = run.initial_model(config)  # Has checked names and shapes.
    params, model = model.params, model.config
    jax.tree.map(
        np.testing.assert_array_equal, params["question"]["bert"], tiny_params()["question"]["bert"]
    )
    assert (model.mention_head, model.mention_aggregation) == ("linear", "all_avg")
    assert model.max_mention_width == 11
    head = params["question"]["mention_head"]
    assert 0 < np.abs(head["kernel"]).max() < 0.1
    assert not head["bias"].any()
    linker = EntityLinker.from_pretrained(folder, devices=jax.devices()[:1])
    assert linker.max_question_tokens == release.parameters["max_context_length"]
    tensors, parameters = original.state_dict(folder)
    assert tensors.keys() == arrays("state_dict").keys()
    assert parameters["mention_scoring_method"] == "qa_linear"
    release.output = release.folder / "again"
    again = Model.open(release.convert(checkpoint=None)).params
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_neither_model(release):
    release.write()
    with pytest.raises(ElqError, match="--checkpoint: missing; give all of --checkpoint, --params"):
        release.convert(checkpoint=None)


def test_heads_of_each_encoder(release):
    """--bert_config is of the file that --checkpoint names, and of no other."""
    release.write().use_blink()
    path = release.files["entity_bert_config"] = release.folder / "entity.json"
    path.write_text(json.dumps(FIXTURE["config"] | {"num_attention_heads": 8}))
    config = release.load().config
    assert (config.question_bert.num_heads, config.entity_bert.num_heads) == (4, 8)
    del release.files["entity_bert_config"]
    with pytest.raises(ElqError, match=r"biencoder\.bin: .*with --entity_bert_config"):
        release.load()
    del release.files["entity_checkpoint"]
    config = release.load().config
    assert (config.question_bert.num_heads, config.entity_bert.num_heads) == (4, 4)


def test_without_poolers(release, capsys):
    release.tensors = {k: v for k, v in release.tensors.items() if ".pooler." not in k}
    folder = release.write().convert()
    assert "elq.bin: has no poolers" in capsys.readouterr().err
    tensors, _ = original.state_dict(folder)
    assert not tensors["cand_encoder.bert_model.pooler.dense.weight"].any()


def test_additional_linear(release, minilm):
    """add_linear: linear(pooler([CLS])), against NumPy."""
    rng = np.random.default_rng(0)
    tensors = release.tensors
    for encoder in ("context_encoder", "cand_encoder"):
        name = f"{encoder}.additional_linear"
        tensors[f"{name}.weight"] = rng.normal(size=(64, 64)).astype(np.float32)
        tensors[f"{name}.bias"] = rng.normal(size=64).astype(np.float32)
    release.parameters |= {"add_linear": True, "out_dim": 64}
    release.write()
    model = release.load()
    titles, texts = ["Ohio", "Paris"], ["a state", "a city of France"]
    whole = Model(model.config, model.params, minilm)
    found = CatalogueEncoder(whole).encode(titles, texts)
    cls = CatalogueEncoder(Model(tiny_config(), tiny_params(), minilm)).encode(titles, texts)

    def linear(name, x):
        name = f"cand_encoder.{name}"
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    pooled = np.tanh(linear("bert_model.pooler.dense", cls))
    np.testing.assert_allclose(found, linear("additional_linear", pooled), rtol=0, atol=1e-4)
    original.save_model(release.output, model, minilm, {})
    back, parameters = original.state_dict(release.output)
    assert back.keys() == tensors.keys()
    for name in tensors:
        np.testing.assert_array_equal(back[name], tensors[name])
    assert parameters == release.parameters


@pytest.mark.parametrize(
    ("given", "width"),
    [
        ({}, 11),
        ({"max_mention_length": 4}, 5),
        ({"max_mention_length": 0}, 1),
        ({"max_mention_length": None}, 512),  # No limit, whatever the length of questions.
    ],
)
def test_mention_length(given, width, release, minilm):
    del release.parameters["max_mention_length"]
    release.parameters |= given
    model = release.write().load()
    assert model.config.max_mention_width == width
    back = original._parameters(model.config, {}, minilm)
    assert back["max_mention_length"] == given.get("max_mention_length", 10)


@pytest.mark.parametrize(
    ("name", "layers", "width", "heads"),
    [
        ("bert-base-uncased", 12, 768, 12),
        ("bert-large-uncased", 24, 1024, 16),
        ("google/bert_uncased_L-2_H-128_A-2", 2, 128, 2),
        ("experiments/my_bert", 4, 256, 4),
    ],
)
def test_sizes_of_published_encoders(name, layers, width, heads):
    """Of these no config.json is needed."""
    tensors = {}
    for key, shape in FIXTURE["state_dict_shapes"].items():
        shape = [{64: width, 256: 4 * width}.get(n, n) for n in shape]
        for layer in range(layers):
            layer_key = key.replace(".layer.0.", f".layer.{layer}.")
            tensors[layer_key] = types.SimpleNamespace(shape=tuple(shape))
    bert = original._bert_config(tensors, "cand_encoder", "elq.bin", name, "")
    sizes = bert.num_layers, bert.hidden_size, bert.num_heads, bert.intermediate_size
    assert sizes == (layers, width, heads, 4 * width)
    assert (bert.vocab_size, bert.max_positions, bert.num_token_types) == (30522, 512, 2)


def remove(name):
    return lambda release: release.tensors.pop(name)


def rename(old, new):
    return lambda release: release.tensors.update({new: release.tensors.pop(old)})


def parameter(**changes):
    return lambda release: release.parameters.update(changes)


def cut(name, size):
    """Cuts a file to `size` bytes, or by -`size`."""

    def change(release):
        path = release.files[name]
        os.truncate(path, size if size > 0 else path.stat().st_size + size)

    return change


def overwrite(name, content):
    return lambda release: release.files[name].write_bytes(content)


def bert_config(**changes):
    content = json.dumps(FIXTURE["config"] | changes)
    return lambda release: release.files["bert_config"].write_text(content)


def matrix(name, change):
    def change_file(release):
        path = release.files[name]
        write_torch_file(path, change(open_torch_file(path).map()))

    return change_file


def with_nan(x):
    x = x.copy()
    x[321, 5] = np.nan
    return x


QUERY = "context_encoder.bert_model.encoder.layer.1.attention.self.query.weight"
# Wrong models: changed before the files are written.
MODEL_ERRORS = {
    "missing": (remove(QUERY), rf"elq\.bin: tensor '{QUERY}' is missing \(1 in all\)"),
    "no head": (remove(f"{HEAD}bias"), rf"elq\.bin: tensor '{HEAD}bias' is missing"),
    "unexpected": (
        rename("cand_encoder.bert_model.pooler.dense.bias", "cand_encoder.what"),
        r"elq\.bin: tensor 'cand_encoder\.what' is unexpected",
    ),
    "head of another kind": (
        parameter(mention_scoring_method="qa_mlp"),
        rf"elq\.bin: tensor '{HEAD}0\.weight' is missing",
    ),
    "aggregation of another kind": (
        parameter(mention_aggregation_type="all_avg_linear"),
        rf"elq\.bin: tensor '{LINEAR}weight' is missing",
    ),
    "shape": (
        lambda r: r.tensors.update({QUERY: np.zeros((64, 63), np.float32)}),
        rf"tensor '{QUERY}' has shape \(64, 63\); expected \(64, 64\), as .*params\.txt",
    ),
    "old system": (
        parameter(mention_aggregation_type=None),
        r"params\.txt: mention_aggregation_type: None; expected one of all_avg",
    ),
    "unknown aggregation": (
        parameter(mention_aggregation_type="all_mlp"),
        r"params\.txt: mention_aggregation_type: 'all_mlp'",
    ),
    "length": (parameter(max_cand_length="128"), r"params\.txt: max_cand_length: '128'"),
    "head as a list": (
        parameter(mention_scoring_method=["qa_linear"]),
        r"params\.txt: mention_scoring_method: \['qa_linear'\]; expected one of qa_linear",
    ),
    "aggregation as a dictionary": (
        parameter(mention_aggregation_type={}),
        r"params\.txt: mention_aggregation_type: \{\}; expected one of all_avg",
    ),
    "no name": (parameter(bert_model=None), r"params\.txt: bert_model: None; expected the name"),
    "number as name": (parameter(bert_model=3), r"params\.txt: bert_model: 3; expected the name"),
    "too long": (parameter(max_context_length=999), r"params\.txt: max_question_tokens: 999"),
    "cased": (parameter(lowercase=False), r"minilm: is an uncased tokenizer"),
    "heads unknown": (
        lambda r: r.files.update(bert_config=None),
        r"elq\.bin: holds an encoder of width 64 .*--bert_config",
    ),
    "other BERT": (
        lambda r: [
            r.files.update(bert_config=None),
            r.parameters.update(bert_model="bert-large-uncased"),
        ],
        r"params\.txt: bert_model is 'bert-large-uncased' \(24 layers, .* has 2 layers",
    ),
}
# Wrong files: changed afterwards.
FILE_ERRORS = {
    "checkpoint cut": (cut("checkpoint", -5), r"elq\.bin: not a whole file .*expected at least"),
    "checkpoint header cut": (cut("checkpoint", 900), r"elq\.bin: not a whole file"),
    "no torch file": (overwrite("checkpoint", b"{}"), r"elq\.bin: not a file of torch\.save"),
    "other pickle": (
        overwrite("checkpoint", pickle.dumps({"a": 1})),
        r"elq\.bin: not a file of torch\.save",
    ),
    "no tensors": (
        matrix("embeddings", lambda x: {"a": x}),
        r"all\.t7: holds a state dict; expected a float",
    ),
    "a matrix as checkpoint": (
        lambda r: r.files.update(checkpoint=r.files["embeddings"]),
        r"all\.t7: holds a single tensor; expected a state dict",
    ),
    "number as key": (
        lambda r: write_torch_file(r.files["checkpoint"], {3: np.zeros(2, np.float32)}),
        r"elq\.bin: holds the key 3; expected a state dict",
    ),
    "no parameters": (overwrite("params", b"hello ="), r"params\.txt: found 'hello ='"),
    "binary parameters": (overwrite("params", b"\x80\x02"), r"params\.txt: found '.*'"),
    "list as key": (overwrite("params", b"{[1]: 2}"), r"params\.txt: found '\{\[1\]: 2\}'"),
    "set as value": (overwrite("params", b"{'a': {1}}"), r"params\.txt: found "),
    "no heads": (bert_config(num_attention_heads=0), r"_heads': found 0, expected an integer"),
    "heads": (bert_config(num_attention_heads=5), r"num_attention_heads: 5; expected a divisor"),
    "text as heads": (
        bert_config(num_attention_heads="4"),
        r"_heads': found \"4\", expected",
    ),
    "null as heads": (bert_config(num_attention_heads=None), r"bert\.json: .*_heads': found null"),
    "text as epsilon": (bert_config(layer_norm_eps="1e-12"), r"bert\.json: .*_eps': found \"1e-12"),
    "no dictionary": (overwrite("params", b"[1]"), r"params\.txt: found a list"),
    "embeddings cut": (cut("embeddings", -1), r"all\.t7: not a whole file"),
    "fewer embeddings": (
        matrix("embeddings", lambda x: x[:499]),
        r"all\.t7: has 499 rows, but .*entity\.jsonl has 500 entities",
    ),
    "width": (
        matrix("embeddings", lambda x: x[:, :32]),
        r"all\.t7: holds vectors of width 32; expected 64",
    ),
    "NaN": (matrix("embeddings", with_nan), r"row 321 holds NaN"),
    "integers": (matrix("embeddings", lambda x: x.astype(np.int64)), r"all\.t7: holds int64"),
    "fewer token ids": (matrix("token_ids", lambda x: x[1:]), r"ids\.t7: has 499 rows"),
    "other token ids": (
        matrix("token_ids", lambda x: np.roll(x, 1, 0)),
        r"ids\.t7: \d+ of 500 compared rows are not the token ids .*: row 0 begins",
    ),
    "no embeddings": (
        lambda r: r.files.update(embeddings=r.folder / "none.t7"),
        r"none\.t7: no such file",
    ),
    "catalogue": (overwrite("catalogue", b'{"title": 3}\n'), r"entity\.jsonl:1: "),
}


@pytest.mark.parametrize("name", [*MODEL_ERRORS, *FILE_ERRORS])
def test_errors_leave_nothing(name, release):
    """Whatever is wrong is named, and there is neither an output nor a half of one."""
    change, message = (MODEL_ERRORS | FILE_ERRORS)[name]
    release.write_entities()
    if name in MODEL_ERRORS:
        change(release)
    release.write()
    if name in FILE_ERRORS:
        change(release)
    with pytest.raises(ElqError, match=message):
        release.convert()
    assert not release.output.exists()
    assert not list(release.folder.glob("*.partial"))


def test_only_some_files(release):
    """A model alone; what cannot stand alone; an output that exists."""
    release.write()
    with pytest.raises(ElqError, match="max_question_tokens: 1000; expected 3 to 512"):
        release.convert(max_question_tokens=1000)
    with pytest.raises(ElqError, match="embeddings: needs a catalogue"):
        release.convert(embeddings=release.files["checkpoint"])
    folder = release.convert()
    assert not (folder / "catalogue.arrow").exists()
    with pytest.raises(ElqError, match="linker: exists; give another name"):
        release.convert()
    assert (folder / "config.json").exists()


def test_index(release):
    release.write().write_entities()
    folder = release.convert(index="scann", storage_dtype="int8")
    embeddings = Embeddings.open(folder / "embeddings")
    index = open_index(folder / "index", embeddings)
    assert index.name == "scann"
    _, rows = index.search(embeddings[:20], 1)
    _, expected = open_index(folder / "index", embeddings, "exact").search(embeddings[:20], 1)
    np.testing.assert_array_equal(rows, expected)


class Killed(BaseException):
    pass


def test_interrupted(release, monkeypatch, capsys):
    """A second call resumes with the shards that are missing; the result is the same."""
    release.write().write_entities()
    whole = Embeddings.open(release.convert() / "embeddings")
    monkeypatch.setattr(conversion, "_SHARD_BYTES", 4 * 64 * 100)  # five shards
    release.output = release.folder / "again"
    write_shard, written = EmbeddingsWriter.write_shard, []

    def write_some(self, shard, values):
        if len(written) == 2:
            raise Killed
        written.append(shard)
        write_shard(self, shard, values)

    monkeypatch.setattr(EmbeddingsWriter, "write_shard", write_some)
    with pytest.raises(Killed):
        release.convert()
    assert not release.output.exists()
    written[:] = ["resumed"]
    monkeypatch.setattr(
        EmbeddingsWriter, "write_shard", lambda *x: written.append(x[1]) or write_shard(*x)
    )
    again = Embeddings.open(release.convert() / "embeddings")
    assert written == ["resumed", 2, 3, 4]
    assert not list(release.folder.glob("*.partial"))
    np.testing.assert_array_equal(again[:], whole[:])
    assert "resuming with what is there" in capsys.readouterr().err


def test_to_torch_writes_files_only(release, tmp_path):
    Model(tiny_config(), tiny_params(), Tokenizer.from_pretrained("minilm")).save(
        tmp_path / "model"
    )
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ElqError, match="pipe: is a pipe or a device; give the name of a file"):
        original.write_original(tmp_path / "model", tmp_path / "pipe")


def test_what_a_killed_run_leaves(release, monkeypatch):
    """Half-written files and an index that is not asked for again are no part of the result."""
    release.write().write_entities()

    def killed_while_it_writes(self, folder):
        folder.mkdir()
        (folder / "index.json").touch()
        (folder.parent / ".index.1234").mkdir()
        (folder.parent / ".index.1234" / "part").touch()
        (folder.parent / "embeddings" / ".shard-00000-of-00001.npy.abcd").touch()
        raise Killed

    monkeypatch.setattr(ScannIndex, "save", killed_while_it_writes)
    with pytest.raises(Killed):
        release.convert(index="scann")
    names = sorted(path.name for path in release.convert().rglob("*"))
    release.output = release.folder / "unbroken"
    assert names == sorted(path.name for path in release.convert().rglob("*"))


def test_full_disk(release, monkeypatch, capsys):
    """What was written stays, to go on with when there is room."""
    release.write().write_entities()
    write_shard = EmbeddingsWriter.write_shard

    def out_of_space(self, shard, values):
        with atomic_write(release.folder / "any"):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(EmbeddingsWriter, "write_shard", out_of_space)
    with pytest.raises(ElqError, match="any: not written, the disk is full"):
        release.convert()
    assert (release.folder / "linker.partial" / "model.safetensors").exists()
    monkeypatch.setattr(EmbeddingsWriter, "write_shard", write_shard)
    assert len(Embeddings.open(release.convert() / "embeddings")) == 500
    assert "resuming with what is there" in capsys.readouterr().err


@pytest.mark.parametrize(("dtype", "error"), [("bfloat16", 2**-8), ("int8", 1 / 254)])
def test_smaller_types(dtype, error, release):
    release.write().write_entities()
    found = Embeddings.open(release.convert(storage_dtype=dtype) / "embeddings")
    assert found.dtype == dtype
    expected = arrays("kb")["entity_encodings"]
    largest = np.abs(expected).max(axis=1, keepdims=True)
    assert (np.abs(found[:] - expected) <= error * largest * 1.001).all()


@pytest.mark.parametrize("name", ["table.tsv", "table.json"])
def test_wikidata_ids(name, release):
    """Filled from the table where the catalogue has none, and only there."""
    release.write().write_entities(50)
    del release.files["embeddings"], release.files["token_ids"]
    records = [json.loads(line) for line in release.files["catalogue"].read_text().splitlines()]
    table = {record["title"]: f"Q{900 + i}" for i, record in enumerate(records[:25])}
    lines = "".join(f"{title}\t{found}\n" for title, found in table.items())
    path = release.folder / name
    path.write_text(json.dumps(table) if name.endswith(".json") else lines)
    plain = Catalogue.open(release.convert() / "catalogue.arrow")
    release.output = release.folder / "filled"
    catalogue = Catalogue.open(release.convert(wikidata_ids=path) / "catalogue.arrow")
    assert catalogue.fingerprint == plain.fingerprint
    expected = [record.get("kb_idx") or table.get(record["title"]) for record in records]
    assert {None} < set(plain.wikidata_ids(range(25)))
    assert catalogue.wikidata_ids(range(50)) == expected
    path.write_text('{"Paris": 90}' if name.endswith(".json") else "Paris\tQ90\nOhio Q1397\n")
    place = "" if name.endswith(".json") else ":2"
    release.output = release.folder / "wrong"
    with pytest.raises(ElqError, match=f"{name}{place}: found"):
        release.convert(wikidata_ids=path)


def test_back_from_a_trained_linker(tmp_path, minilm):
    """Without what convert kept: zeros for the poolers, and parameters that say what it is."""
    Model(tiny_config(), tiny_params(), minilm).save(tmp_path)
    tensors, parameters = original.state_dict(tmp_path)
    expected = arrays("state_dict")
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        wanted = np.zeros_like(tensor) if ".pooler." in name else tensor
        np.testing.assert_array_equal(tensors[name], wanted)
    for name in ("mention_aggregation_type", "mention_scoring_method", "lowercase", "add_linear"):
        assert parameters[name] == FIXTURE["params"][name]
    assert parameters["max_mention_length"] == 10


def sizes(layers, width, **changes):
    given = {"num_heads": width // 64, "intermediate_size": 4 * width}
    return BertConfig(num_layers=layers, hidden_size=width, **given | changes)


@pytest.mark.parametrize(
    ("bert", "lowercase", "name"),
    [
        (sizes(12, 768), True, "bert-base-uncased"),
        (sizes(24, 1024, dropout_rate=0.0), True, "bert-large-uncased"),
        (sizes(12, 768, vocab_size=28996), False, "bert-base-cased"),
        (sizes(24, 1024, vocab_size=28996), False, "bert-large-cased"),
        (sizes(4, 256), True, "google/bert_uncased_L-4_H-256_A-4"),
        (sizes(6, 384, num_heads=12), True, None),  # MiniLM
        (sizes(3, 256), True, None),
        (sizes(4, 256, num_heads=8), True, None),
        (sizes(12, 768, vocab_size=28996), True, None),
        (sizes(12, 768, vocab_size=119547), False, None),
        (sizes(24, 1024, max_positions=64), True, None),
    ],
)
def test_name_of_the_bert(bert, lowercase, name):
    """Only of BERTs that were published, with the vocabulary that they have."""
    assert original._bert_name(bert, lowercase) == (name or original.UNNAMED_BERT)


def test_no_published_bert(tmp_path, minilm):
    Model(tiny_config(), tiny_params(), minilm).save(tmp_path)
    arguments = [f"--linker={tmp_path}", f"--to_torch={tmp_path / 'elq.bin'}"]
    assert 'set "bert_model" to a folder' in run_program(*arguments, errors=True)


@pytest.mark.parametrize(
    "change",
    [{"normalize_mentions": True}, {"entity_pooling": "mean"}, {"normalize_entities": True}],
)
def test_not_a_model_of_the_original(change, tmp_path, minilm):
    Model(tiny_config(**change), tiny_params(), minilm).save(tmp_path)
    with pytest.raises(ElqError, match=f"cannot compute {next(iter(change))}"):
        original.state_dict(tmp_path)


def test_not_a_width_of_the_original(tmp_path, minilm):
    config = tiny_config(
        mention_aggregation="fl_linear", entity_pooling="pooler_linear", entity_width=32
    )
    Model(config, initial_params(config), minilm).save(tmp_path)
    with pytest.raises(ElqError, match="vectors have width 32, but their encoder has width 64"):
        original.state_dict(tmp_path)


def test_not_a_vocabulary_of_the_original(tmp_path):
    words = ("[PAD]", "[unused2]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "paris")
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    Model(tiny_config(), tiny_params(), tokenizer).save(tmp_path / "linker")
    with pytest.raises(ElqError, match=r"have the ids \(3, 4, 0\); the original always uses"):
        original.state_dict(tmp_path / "linker")


def test_presets():
    """The README's table of thresholds, and 10 or 50 mentions."""
    thresholds = {
        "interactive": -4.5,
        "library": -4.5,
        "webqsp": -2.9,
        "graphquestions": -2.9,
        "webqsp_finetuned": -1.5,
        "graphquestions_finetuned": -0.9,
    }
    assert {name: preset.threshold for name, preset in PRESETS.items()} == thresholds
    assert (PRESETS["library"].max_mentions, PRESETS["interactive"].max_mentions) == (10, 50)
    with pytest.raises(ElqError, match="preset: 'wikipedia'; expected one of interactive"):
        get_preset("wikipedia")
    expected = {"threshold": -1.0, "max_mentions": 50, "num_candidates": 10}
    expected["max_question_tokens"] = None
    assert with_preset("interactive", {"threshold": -1.0, "max_mentions": None}) == expected
    expected["max_question_tokens"] = 32
    assert with_preset("graphquestions", {"threshold": -1.0}) == expected
    assert with_preset(None, {"threshold": None, "max_mentions": 3}) == {"max_mentions": 3}
    changed = with_preset("interactive", {"max_question_tokens": 20})
    assert changed["max_question_tokens"] == 20


def test_files_that_git_lfs_did_not_fetch(tmp_path):
    (tmp_path / "elq.bin").write_text("version https://git-lfs.github.com/spec/v1\n")
    settings = {"checkpoint": str(tmp_path / "elq.bin"), "params": str(tmp_path / "elq.bin")}
    settings |= {"tokenizer": "minilm", "output": str(tmp_path / "linker")}
    with pytest.raises(ElqError, match=r"elq\.bin: a git-lfs pointer.*git lfs pull"):
        conversion.convert(Conversion(**settings))
