"""Names, shapes and number formats of the parameters of both encoders, without their modules.

A linker is opened with these alone: modules are imported where a program is traced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elq_jax.model.config import BertConfig, ElqConfig

Shapes = dict[tuple[str, ...], tuple[int, ...]]


def flattened(tree: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """Lists the arrays of a nested dictionary by their paths: {"a": {"b": x}}: {("a", "b"): x}."""
    flat: dict[tuple[str, ...], Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= {(name, *path): array for path, array in flattened(value).items()}
        else:
            flat[(name,)] = value
    return flat


def nested(flat: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Makes a nested dictionary of arrays by their paths, the inverse of `flattened`."""
    tree: dict[str, Any] = {}
    for path, array in flat.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = array
    return tree


def parameter_shapes(config: ElqConfig) -> Shapes:
    """Returns the shape of every parameter by its path in {"question": tree, "entity": tree}.

    Paths are sorted, as JAX sorts the leaves of trees.
    """
    width, vector_width = config.question_bert.hidden_size, config.vector_width
    has_pooler = config.entity_pooling == "pooler_linear"
    question, entity = (
        {("bert", *path): shape for path, shape in bert_shapes(bert, with_pooler).items()}
        for bert, with_pooler in ((config.question_bert, False), (config.entity_bert, has_pooler))
    )
    if config.mention_head == "mlp":
        question |= _dense("mention_hidden", width, width)
    question |= _dense("mention_head", width, 3)
    if config.mention_aggregation.endswith("_linear"):
        inputs = 2 * width if config.mention_aggregation == "fl_linear" else width
        question |= _dense("mention_linear", inputs, vector_width)
    if config.score_scale is not None:
        question["log_scale",] = ()
    if has_pooler:
        entity |= _dense("pooler_linear", config.entity_bert.hidden_size, vector_width)
    parts = {"question": question, "entity": entity}
    return dict(sorted(((p, *path), shape) for p in parts for path, shape in parts[p].items()))


def bert_shapes(config: BertConfig, with_pooler: bool = False) -> Shapes:
    """Returns the shape of every parameter of `BertEncoder`, by its path."""
    width, inner = config.hidden_size, config.intermediate_size
    shapes: Shapes = {
        ("word", "embedding"): (config.vocab_size, width),
        ("position", "embedding"): (config.max_positions, width),
        ("token_type", "embedding"): (config.num_token_types, width),
        **_norm("embedding_norm", width),
    }
    layer = {
        **_dense("query", width, width),
        **_dense("key", width, width),
        **_dense("value", width, width),
        **_dense("attention_output", width, width),
        **_norm("attention_norm", width),
        **_dense("intermediate", width, inner),
        **_dense("output", inner, width),
        **_norm("output_norm", width),
    }
    for i in range(config.num_layers):
        shapes |= {(f"layers_{i}", *path): shape for path, shape in layer.items()}
    return shapes | (_dense("pooler", width, width) if with_pooler else {})


def _dense(name: str, inputs: int, outputs: int) -> Shapes:
    return {(name, "kernel"): (inputs, outputs), (name, "bias"): (outputs,)}


def _norm(name: str, width: int) -> Shapes:
    return {(name, "scale"): (width,), (name, "bias"): (width,)}


_ATTENTION = ("query", "key", "value")
_TOGETHER = "query_key_value"


def cast_frozen(params: Mapping[str, Any], dtype: str) -> Mapping[str, Any]:
    """Prepares parameters that do not change any more for products in `dtype`.

    Kernels of layers, which products would round at every call, are rounded. On CPUs they are also
    arranged as products read them fastest, see `is_arranged`.

    Args:
      params: tree with the parameters of a `BertEncoder` in it, arrays of the host.
      dtype: type of the matrix products, "float32" or "bfloat16".
    """
    if dtype == "float32":
        return params
    prepare = _arranged if jax.default_backend() == "cpu" else _rounded

    def prepared(name: str, part: Any) -> Any:
        if name.startswith("layers_"):
            return prepare(part, jnp.dtype(dtype))
        return {n: prepared(n, p) for n, p in part.items()} if isinstance(part, Mapping) else part

    return prepared("", params)


def is_arranged(layer: Mapping[str, Any]) -> bool:
    """Returns whether `cast_frozen` has arranged the parameters of a layer for a CPU.

    Each kernel [n, m] is then "rows" [m, n], and those of query, key and value are one array.
    """
    return _TOGETHER in layer


def _rounded(layer: Mapping[str, Any], dtype: np.dtype) -> dict[str, Any]:
    flat = flattened(layer)
    return nested(
        {
            path: np.asarray(x).astype(dtype) if path[-1] == "kernel" else x
            for path, x in flat.items()
        }
    )


def _arranged(layer: Mapping[str, Any], dtype: np.dtype) -> dict[str, Any]:
    def joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        rows = [np.asarray(part["kernel"]).T.astype(dtype) for part in parts]
        return {"rows": np.concatenate(rows), "bias": np.concatenate([p["bias"] for p in parts])}

    others = {name: part for name, part in layer.items() if name not in _ATTENTION}
    return {
        _TOGETHER: joined([layer[name] for name in _ATTENTION]),
        **{name: joined([p]) if "kernel" in p else dict(p) for name, p in others.items()},
    }


_EMBEDDINGS = {
    "embeddings.word_embeddings.weight": ("word", "embedding"),
    "embeddings.position_embeddings.weight": ("position", "embedding"),
    "embeddings.token_type_embeddings.weight": ("token_type", "embedding"),
    "embeddings.LayerNorm.weight": ("embedding_norm", "scale"),
    "embeddings.LayerNorm.bias": ("embedding_norm", "bias"),
}
_LAYER_DENSE = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "attention_output",
    "intermediate.dense": "intermediate",
    "output.dense": "output",
}
_LAYER_NORM = {"attention.output.LayerNorm": "attention_norm", "output.LayerNorm": "output_norm"}


def huggingface_names(
    config: BertConfig, with_pooler: bool = False
) -> dict[str, tuple[tuple[str, ...], bool]]:
    """Maps each published tensor name to (path in our parameters, whether it is transposed)."""
    names = {name: (path, False) for name, path in _EMBEDDINGS.items()}
    for i in range(config.num_layers):
        for theirs, ours in _LAYER_DENSE.items():
            prefix = f"encoder.layer.{i}.{theirs}"
            names[f"{prefix}.weight"] = ((f"layers_{i}", ours, "kernel"), True)
            names[f"{prefix}.bias"] = ((f"layers_{i}", ours, "bias"), False)
        for theirs, ours in _LAYER_NORM.items():
            prefix = f"encoder.layer.{i}.{theirs}"
            names[f"{prefix}.weight"] = ((f"layers_{i}", ours, "scale"), False)
            names[f"{prefix}.bias"] = ((f"layers_{i}", ours, "bias"), False)
    if with_pooler:
        names["pooler.dense.weight"] = (("pooler", "kernel"), True)
        names["pooler.dense.bias"] = (("pooler", "bias"), False)
    return names


def params_from_huggingface(
    tensors: Mapping[str, np.ndarray], config: BertConfig, with_pooler: bool = False
) -> dict[str, Any]:
    """Turns published BERT tensors into parameters of `BertEncoder`.

    Args:
      tensors: arrays by the names of the `bert` checkpoint (no prefix). Tensors that the encoder
        does not use (pooler, language-model head, position ids) are ignored.
      config: sizes to expect.
      with_pooler: whether the pooler is read too.

    Returns:
      nested dict of float32 arrays.

    Raises:
      ValueError: a tensor is missing or its shape does not fit `config`.
    """
    params: dict[tuple[str, ...], np.ndarray] = {}
    shapes = bert_shapes(config, with_pooler)
    for name, (path, transposed) in huggingface_names(config, with_pooler).items():
        if name not in tensors:
            raise ValueError(f"checkpoint: tensor {name!r} is missing; expected a BERT encoder")
        value = np.asarray(tensors[name], np.float32)
        value = value.T if transposed else value
        if value.shape != shapes[path]:
            raise ValueError(
                f"checkpoint: tensor {name!r} has shape {value.shape}; expected {shapes[path]}, "
                "as config.json describes it"
            )
        params[path] = value
    return nested(params)
