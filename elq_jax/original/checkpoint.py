"""Reads models of the original ELQ into a linker directory, and writes them back.

The original is github.com/facebookresearch/BLINK, folder elq. A model of it is a checkpoint (a
state dict saved by torch) and a parameter file (the training options as a dictionary).
"""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import pathlib
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from elq_jax.core.errors import DataError, ElqError
from elq_jax.model.bundle import Model
from elq_jax.model.config import MENTION_AGGREGATIONS, BertConfig, ElqConfig
from elq_jax.model.parameters import parameter_shapes
from elq_jax.original.names import params_from_state_dict, tensor_names
from elq_jax.original.torch_files import StoredTensor, open_torch_file, write_torch_file
from elq_jax.storage import layout
from elq_jax.storage.files import atomic_write, is_stream, make_folder
from elq_jax.storage.resume import digest
from elq_jax.text.tokenization import Tokenizer

_MENTION_HEADS = {"qa_linear": "linear", "qa_mlp": "mlp", "qa": "mlp"}
_UNUSED_FILE = layout.ORIGINAL_PARAMETERS
_PUBLISHED_SIZES = {"base": (12, 768), "large": (24, 1024)}  # layers, width
_VOCABULARIES = {True: 30522, False: 28996}  # by whether the BERT is uncased
_GOOGLE_LAYERS, _GOOGLE_WIDTHS = (2, 4, 6, 8, 10, 12), (128, 256, 512, 768)
_PUBLISHED_WIDTHS = (*_GOOGLE_WIDTHS, 1024)  # of the BERTs whose heads are 64 wide
_SPECIAL_IDS = (101, 102, 0)  # [CLS], [SEP], [PAD]: numbers in the original's code
_HEADS = "classification_heads."
_EXPECTED_PARAMETERS = (
    "expected a dictionary in Python's syntax, or a JSON object; give the model's parameter file, "
    "such as elq_large_params.txt"
)
# Parameters for a model of BLINK, which has no mention head.
_UNTRAINED_HEADS = {"mention_aggregation_type": "all_avg", "mention_scoring_method": "qa_linear"}
UNNAMED_BERT = "folder-of-the-bert"  # the name of a BERT that no published one equals in size


@dataclasses.dataclass(frozen=True)
class OriginalModel:
    """A model of the original, opened; its tensors are still in the files.

    Attributes:
      config: description of what the model computes.
      tensors: state dict of the model.
      parameters: content of the parameter file.
      untrained: random tensors of the mention head, if the files are of a model without one;
        otherwise empty.
    """

    config: ElqConfig
    tensors: dict[str, StoredTensor]
    parameters: dict[str, Any]
    untrained: dict[str, np.ndarray]

    @property
    def params(self) -> dict[str, Any]:
        """Returns the parameters as {"question": tree, "entity": tree}, memory-mapped."""
        arrays = {name: tensor.map() for name, tensor in self.tensors.items()}
        return params_from_state_dict(arrays | self.untrained, self.config)

    @property
    def has_poolers(self) -> bool:
        """Returns whether the files hold the poolers, which the original loads but never uses."""
        return self.tensors.keys() >= _unused_tensor_shapes(self.config).keys()


def read_parameters(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a parameter file (elq_large_params.txt, training_params.txt).

    Args:
      path: path of the file.

    Returns:
      training options by name.

    Raises:
      ElqError: there is no such file, or it holds neither a JSON object nor a Python dictionary.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ElqError(f"{path}: no such file; expected the model's parameter file")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8").strip()
        try:
            parameters = json.loads(text)
        except ValueError:
            parameters = ast.literal_eval(text)
        json.dumps(parameters)  # raises if the linker directory could not keep them as JSON
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        beginning = content[:40].decode("utf-8", "replace")
        message = f"found {beginning!r}..., {_EXPECTED_PARAMETERS}"
        raise DataError(message, path) from error
    if not isinstance(parameters, dict):
        raise DataError(f"found a {type(parameters).__name__}, {_EXPECTED_PARAMETERS}", path)
    return parameters


def load_model(
    checkpoint: str | os.PathLike[str] | None,
    parameter_file: str | os.PathLike[str],
    entity_checkpoint: str | os.PathLike[str] | None = None,
    bert_config: str | os.PathLike[str] | None = None,
    entity_bert_config: str | os.PathLike[str] | None = None,
) -> OriginalModel:
    """Opens a model of the original; only headers are read.

    Args:
      checkpoint: path of a state dict, such as elq_wiki_large.bin. None: both encoders come from
        `entity_checkpoint`, whose context encoder then encodes questions; if it has no mention
        head, the head starts with random numbers.
      parameter_file: path of the parameter file, such as elq_large_params.txt or BLINK's
        biencoder_wiki_large.json.
      entity_checkpoint: path of another state dict from which the entity encoder (`cand_encoder`)
        is taken, such as BLINK's biencoder_wiki_large.bin. None: it is taken from `checkpoint`.
      bert_config: path of config.json of the BERT; not needed for bert-base, bert-large and the
        smaller BERTs published with them, whose attention heads are 64 wide.
      entity_bert_config: path of config.json of the entity encoder's BERT; `bert_config` by
        default, unless there are two state dicts.

    Returns:
      the model; its tensors are read when they are used.

    Raises:
      ElqError: a file is missing, damaged or of another kind; a tensor is missing, unexpected or of
        another shape than the parameters say; or the parameters describe a model that cannot be
        converted.
    """
    parameters = read_parameters(parameter_file)
    two_files = bool(checkpoint and entity_checkpoint)
    question_source = checkpoint or entity_checkpoint
    entity_source = entity_checkpoint or checkpoint
    if not question_source:
        raise ElqError("checkpoint: missing; give checkpoint, entity_checkpoint or both")
    tensors = _open_state_dict(question_source)
    if two_files:
        others = _open_state_dict(entity_source)
        tensors = {name: x for name, x in tensors.items() if not name.startswith("cand_encoder.")}
        tensors |= {name: x for name, x in others.items() if name.startswith("cand_encoder.")}
    else:
        entity_bert_config = entity_bert_config or bert_config
    without_head = not checkpoint and not any(name.startswith(_HEADS) for name in tensors)
    if without_head:
        parameters = _UNTRAINED_HEADS | parameters

    def source(name: str) -> str | os.PathLike[str]:
        return entity_source if name.startswith("cand_encoder.") else question_source

    def bert(encoder: str, config: str | os.PathLike[str] | None, name: str) -> BertConfig:
        if config:
            return _read_bert_config(config)
        return _bert_config(tensors, encoder, source(f"{encoder}."), name, parameter_file)

    name = parameters.get("bert_model", "")
    if not isinstance(name, str):
        raise DataError(
            f"bert_model: {name!r}; expected the name of a BERT, such as 'bert-large-uncased'",
            parameter_file,
        )
    question_bert = bert("context_encoder", bert_config, name)
    entity_bert = bert("cand_encoder", entity_bert_config, "" if two_files else name)
    config = _config(parameters, parameter_file, question_bert, entity_bert)
    untrained = _random_heads(tensor_shapes(config)) if without_head else {}
    _check_tensors(OriginalModel(config, tensors, parameters, untrained), parameter_file, source)
    known = tensor_shapes(config) | _unused_tensor_shapes(config)
    tensors = {name: tensor for name, tensor in tensors.items() if name in known}
    return OriginalModel(config, tensors, parameters, untrained)


def _check_tensors(
    model: OriginalModel,
    parameter_file: str | os.PathLike[str],
    source: Callable[[str], str | os.PathLike[str]],
) -> None:
    """Checks that a model has the tensors that its parameters describe, and no others.

    Args:
      model: model to check.
      parameter_file: path of its parameter file, for error messages.
      source: function from the name of a tensor to the path of its file.

    Raises:
      DataError: a tensor is missing, unexpected or of another shape.
    """
    expected, unused = tensor_shapes(model.config), _unused_tensor_shapes(model.config)
    for name in expected:
        if name not in model.tensors and name not in model.untrained:
            count = len(expected.keys() - model.tensors.keys() - model.untrained.keys())
            message = (
                f"tensor {name!r} is missing ({count} in all); expected a model of "
                f"{model.config.question_bert.num_layers} layers as {parameter_file} describes it; "
                "give the two files of one model"
            )
            raise DataError(message, source(name))
    for name, tensor in model.tensors.items():
        shape = expected.get(name, unused.get(name))
        if shape is None:
            if name.endswith(".embeddings.position_ids"):
                continue  # Checkpoints of newer libraries have it; it holds 0, 1, 2, ...
            message = (
                f"tensor {name!r} is unexpected in a model with mention_aggregation_type "
                f"{model.parameters['mention_aggregation_type']!r} and mention_scoring_method "
                f"{model.parameters['mention_scoring_method']!r}; check {parameter_file}"
            )
            raise DataError(message, source(name))
        if tensor.shape != shape:
            message = (
                f"tensor {name!r} has shape {tensor.shape}; expected {shape}, as {parameter_file} "
                "describes it; give the two files of one model"
            )
            raise DataError(message, source(name))


def _random_heads(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Draws the tensors of the mention head at random; their biases are 0."""
    rng = np.random.default_rng(0)
    scales = {"weight": 0.02, "bias": 0.0}
    return {
        name: rng.normal(scale=scales[name.split(".")[-1]], size=shape).astype(np.float32)
        for name, shape in shapes.items()
        if name.startswith(_HEADS)
    }


def _open_state_dict(path: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """Opens a file of float tensors by name; raises a DataError if it holds something else."""
    tensors = open_torch_file(path)
    expected = "expected a state dict (float tensors by name); give a model's checkpoint"
    if isinstance(tensors, StoredTensor):
        raise DataError(f"holds a single tensor; {expected}", path)
    if not isinstance(tensors, dict) or not tensors:
        content = "an empty dict" if isinstance(tensors, dict) else f"a {type(tensors).__name__}"
        raise DataError(f"holds {content}; {expected}", path)
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise DataError(f"holds the key {name!r}; {expected}", path)
        if not isinstance(tensor, StoredTensor) or tensor.dtype.kind not in "fV":
            if name.endswith(".embeddings.position_ids"):
                continue
            kind = tensor.dtype if isinstance(tensor, StoredTensor) else type(tensor).__name__
            raise DataError(f"holds {name!r} of type {kind}; {expected}", path)
    return tensors


def _read_bert_config(path: str | os.PathLike[str]) -> BertConfig:
    try:
        return BertConfig.from_huggingface(json.loads(pathlib.Path(path).read_text("utf-8")))
    except FileNotFoundError as error:
        raise ElqError(f"{path}: no such file; give the config.json of the BERT") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"is not the configuration of a BERT ({error}); give the BERT's config.json"
        raise DataError(message, path) from error


def _bert_config(
    tensors: Mapping[str, StoredTensor],
    encoder: str,
    path: str | os.PathLike[str],
    bert_model: str,
    parameter_file: str | os.PathLike[str],
) -> BertConfig:
    """Reads the sizes of a BERT from its tensors, and the number of heads from its name or width.

    Raises:
      DataError: the sizes are not those of the named BERT, or the number of heads is unknown.
    """

    def shape(name: str) -> tuple[int, ...]:
        name = f"{encoder}.bert_model.{name}"
        if name not in tensors:
            message = f"tensor {name!r} is missing; expected the state dict of an ELQ model"
            raise DataError(message, path)
        if len(tensors[name].shape) != 2:
            message = f"tensor {name!r} has shape {tensors[name].shape}; expected a matrix"
            raise DataError(message, path)
        return tensors[name].shape

    vocab_size, width = shape("embeddings.word_embeddings.weight")
    inner = shape("encoder.layer.0.intermediate.dense.weight")[0]
    pattern = re.compile(rf"{encoder}\.bert_model\.encoder\.layer\.(\d+)\.")
    layers = len({match[1] for name in tensors if (match := pattern.match(name))})
    google = re.search(r"uncased_L-(\d+)_H-(\d+)_A-(\d+)", bert_model)
    named = re.search(r"bert-(base|large)-(un)?cased", bert_model)
    expected = (layers, width)
    if google:
        expected = (int(google[1]), int(google[2]))
    elif named:
        expected = _PUBLISHED_SIZES[named[1]]
    if expected != (layers, width):
        raise DataError(
            f"bert_model is {bert_model!r} ({expected[0]} layers, width {expected[1]}), but {path} "
            f"has {layers} layers of width {width}; give the parameter file of this checkpoint",
            parameter_file,
        )
    if not google and (width not in _PUBLISHED_WIDTHS or inner != 4 * width):
        flag = "bert_config" if encoder == "context_encoder" else "entity_bert_config"
        raise DataError(
            f"holds an encoder of width {width} whose number of attention heads is unknown; give "
            f"the config.json of its BERT with --{flag}",
            path,
        )
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_layers=layers,
        num_heads=int(google[3]) if google else width // 64,
        intermediate_size=inner,
        max_positions=shape("embeddings.position_embeddings.weight")[0],
        num_token_types=shape("embeddings.token_type_embeddings.weight")[0],
    )


def _config(
    parameters: Mapping[str, Any],
    path: str | os.PathLike[str],
    question_bert: BertConfig,
    entity_bert: BertConfig,
) -> ElqConfig:
    """Reads what a model computes from its parameters; raises a DataError for other models."""

    def choice(name: str, allowed: Mapping[str, str]) -> str:
        value = parameters.get(name)
        if not isinstance(value, str) or value not in allowed:
            shown = "missing" if name not in parameters else repr(value)
            message = (
                f"{name}: {shown}; expected one of {', '.join(allowed)}; other models cannot be "
                "converted"
            )
            raise DataError(message, path)
        return allowed[value]

    def number(name: str, default: int, least: int = 1) -> int:
        value = parameters.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise DataError(f"{name}: {value!r}; expected an integer, at least {least}", path)
        return value

    if parameters.get("max_mention_length", 10) is None:
        max_mention_width = question_bert.max_positions  # no limit
    else:
        max_mention_width = number("max_mention_length", 10, least=0) + 1
    pooling = {"entity_pooling": "cls"}
    if parameters.get("add_linear"):
        pooling = {"entity_pooling": "pooler_linear", "entity_width": number("out_dim", 1)}
    try:
        return ElqConfig(
            question_bert,
            entity_bert,
            mention_head=choice("mention_scoring_method", _MENTION_HEADS),
            mention_aggregation=choice(
                "mention_aggregation_type", {name: name for name in MENTION_AGGREGATIONS}
            ),
            max_mention_width=max_mention_width,
            max_question_tokens=number("max_context_length", 128),
            max_entity_tokens=number("max_cand_length", 128),
            **pooling,
        )
    except ValueError as error:
        if isinstance(error, ElqError):
            raise
        raise DataError(str(error), path) from error


def tensor_shapes(config: ElqConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors that a model of the original computes with, by name."""
    shapes = parameter_shapes(config)
    return {
        name: shapes[path][::-1] if transposed else shapes[path]
        for name, (path, transposed) in tensor_names(config).items()
    }


def _unused_tensor_shapes(config: ElqConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors that the original loads but never uses, by name."""
    shapes = {}

    def dense(prefix: str, inputs: int, outputs: int) -> None:
        shapes[f"{prefix}.weight"] = (outputs, inputs)
        shapes[f"{prefix}.bias"] = (outputs,)

    width, entity_width = config.question_bert.hidden_size, config.entity_bert.hidden_size
    dense("context_encoder.bert_model.pooler.dense", width, width)
    if config.entity_pooling == "pooler_linear":
        dense("context_encoder.additional_linear", width, config.vector_width)
    else:
        dense("cand_encoder.bert_model.pooler.dense", entity_width, entity_width)
    return shapes


def check_tokenizer(tokenizer: Tokenizer, model: OriginalModel, source: str) -> None:
    """Raises an ElqError unless a tokenizer fits a model in its vocabulary and its case."""
    for bert in (model.config.question_bert, model.config.entity_bert):
        if tokenizer.vocab_size != bert.vocab_size:
            raise ElqError(
                f"{source}: the vocabulary has {tokenizer.vocab_size:,} tokens, but the model has "
                f"{bert.vocab_size:,}; give the tokenizer of the BERT that it was trained from"
            )
    lowercase = bool(model.parameters.get("lowercase", True))
    if _is_uncased(tokenizer) != lowercase:
        kinds = {True: "an uncased", False: "a cased"}
        raise ElqError(
            f"{source}: is {kinds[not lowercase]} tokenizer, but the parameter file says lowercase "
            f"= {lowercase}; give {kinds[lowercase]} one"
        )


def _is_uncased(tokenizer: Tokenizer) -> bool:
    upper, lower = tokenizer.encode_questions(["Paris", "paris"], 8)
    return upper.ids.tolist() == lower.ids.tolist()


def save_model(
    folder: str | os.PathLike[str],
    model: OriginalModel,
    tokenizer: Tokenizer,
    linking: Mapping[str, Any],
) -> None:
    """Writes a model as a linker directory, without catalogue and embeddings.

    Tensors are copied one at a time from their files. The file original.safetensors, which other
    linkers do not have, keeps what only `state_dict` needs.

    Args:
      folder: path of the linker directory.
      model: model to write.
      tokenizer: tokenizer of the model.
      linking: settings of `EntityLinker` to link with by default.
    """
    folder = pathlib.Path(folder)
    unused = {
        name: np.array(model.tensors[name].map(), np.float32, order="C")
        for name in _unused_tensor_shapes(model.config)
        if name in model.tensors
    }
    metadata = {"parameters": json.dumps(model.parameters)}
    make_folder(folder)
    with atomic_write(folder / _UNUSED_FILE) as file:
        file.write(safetensors.numpy.save(unused, metadata))
    saved = Model(model.config, model.params, tokenizer)
    saved.save(folder, linking, {_UNUSED_FILE: digest(folder / _UNUSED_FILE)})


def write_original(
    folder: str | os.PathLike[str], output: pathlib.Path
) -> tuple[pathlib.Path, pathlib.Path]:
    """Writes a linker's model as files of the original.

    Args:
      folder: path of the linker directory.
      output: path of the state dict; the parameter file of `x.bin` is `x_params.txt` beside it.

    Returns:
      paths of the state dict and of the parameter file.

    Raises:
      ElqError: `folder` is not a linker directory, the original cannot compute its model, or
        `output` is a pipe or a device.
    """
    if is_stream(output):
        raise ElqError(f"{output}: is a pipe or a device; give the name of a file to write")
    tensors, parameters = state_dict(folder)
    write_torch_file(output, tensors)
    path = output.with_name(f"{output.stem}_params.txt")
    with atomic_write(path, "w") as file:
        file.write(f"{json.dumps(parameters)}\n")
    if parameters["bert_model"] == UNNAMED_BERT:
        print(
            f'warning: {path}: no published BERT has these sizes; set "bert_model" to a folder '
            "with config.json, pytorch_model.bin and vocab.txt of the BERT it was trained from",
            file=sys.stderr,
        )
    return output, path


def state_dict(
    folder: str | os.PathLike[str],
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns a linker's model as a state dict and parameters of the original.

    The original also loads tensors that it never uses: the question encoder's pooler, and the
    entity encoder's unless its output is pooled. They come from original.safetensors, which
    `save_model` wrote; if a linker does not have this file, they are zeros.

    Args:
      folder: path of a linker directory.

    Returns:
      state dict, which the original's strict loading accepts, and content of the parameter file.

    Raises:
      ElqError: `folder` is not a linker directory, or the original cannot compute its model.
    """
    model = Model.open(folder)
    config, tokenizer = model.config, model.tokenizer
    _check_writable(config, tokenizer, folder)
    flat = traverse_util.flatten_dict(model.params)
    unused, parameters = _read_unused(folder)
    tensors = {
        name: np.ascontiguousarray(flat[path].T if transposed else flat[path])
        for name, (path, transposed) in tensor_names(config).items()
    }
    for name, shape in _unused_tensor_shapes(config).items():
        tensors[name] = unused.get(name, np.zeros(shape, np.float32))
    return tensors, _parameters(config, parameters, tokenizer)


def _check_writable(
    config: ElqConfig, tokenizer: Tokenizer, folder: str | os.PathLike[str]
) -> None:
    """Raises an ElqError unless the original can compute a model of this configuration."""
    allowed = {
        "normalize_mentions": (False,),
        "normalize_entities": (False,),
        "score_scale": (None,),
        "entity_pooling": ("cls", "pooler_linear"),
    }
    for name, values in allowed.items():
        if (value := getattr(config, name)) not in values:
            raise ElqError(
                f"{folder}: the original ELQ cannot compute {name} = {value!r}; only models with "
                f"{' or '.join(map(repr, values))} can be written for it"
            )
    sizes = [
        dataclasses.replace(bert, dropout_rate=0.0, attention_dropout_rate=0.0)
        for bert in (config.question_bert, config.entity_bert)
    ]
    if sizes[0] != sizes[1]:
        raise ElqError(
            f"{folder}: the two encoders differ in size; expected equal sizes, since the "
            "original builds both from one BERT"
        )
    width = config.entity_bert.hidden_size
    if config.vector_width != width:
        raise ElqError(
            f"{folder}: the entity vectors have width {config.vector_width}, but their encoder has "
            f"width {width}; the original can only compute vectors of the encoder's width"
        )
    special = (tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id)
    if special != _SPECIAL_IDS:
        raise ElqError(
            f"{folder}: [CLS], [SEP] and [PAD] have the ids {special}; the original always uses "
            f"{_SPECIAL_IDS}, whatever the vocabulary, so it cannot read this model"
        )


def _read_unused(
    folder: str | os.PathLike[str],
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    path = pathlib.Path(folder) / _UNUSED_FILE
    if not path.is_file():
        return {}, {}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, json.loads(file.metadata()["parameters"])
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        message = (
            f"is not the file that convert wrote ({error}); copy it again, or remove it to get "
            "zeros for the tensors that the original never uses"
        )
        raise DataError(message, path) from error


def _parameters(
    config: ElqConfig, original: Mapping[str, Any], tokenizer: Tokenizer
) -> dict[str, Any]:
    """Returns the content of a model's parameter file, with every key that the original needs.

    Args:
      config: description of what the model computes.
      original: content of the parameter file that it was converted from; empty: there is none.
      tokenizer: tokenizer of the model.
    """
    lowercase = _is_uncased(tokenizer)
    unlimited = config.max_mention_width >= config.question_bert.max_positions
    heads = {ours: theirs for theirs, ours in reversed(_MENTION_HEADS.items())}
    defaults = {
        "bert_model": _bert_name(config.question_bert, lowercase),
        "pull_from_layer": -1,
        "lowercase": lowercase,
        "out_dim": 1,
        "no_mention_bounds": True,
        "debug": False,
        "silent": False,
        "data_parallel": False,
        "no_cuda": True,
    }
    of_model = {
        "add_linear": config.entity_pooling == "pooler_linear",
        "mention_aggregation_type": config.mention_aggregation,
        "mention_scoring_method": heads[config.mention_head],
        "max_mention_length": None if unlimited else config.max_mention_width - 1,
        "max_context_length": config.max_question_tokens,
        "max_cand_length": config.max_entity_tokens,
    }
    if config.entity_width:
        of_model["out_dim"] = config.entity_width
    return {**defaults, **original, **of_model}


def _bert_name(bert: BertConfig, lowercase: bool) -> str:
    """Returns the name of the published BERT of these sizes; `UNNAMED_BERT` if there is none."""
    layers, width = size = bert.num_layers, bert.hidden_size
    published = dataclasses.replace(
        bert,
        vocab_size=_VOCABULARIES[lowercase],
        num_heads=width // 64,
        intermediate_size=4 * width,
        max_positions=BertConfig.max_positions,
        num_token_types=BertConfig.num_token_types,
        layer_norm_eps=BertConfig.layer_norm_eps,
    )
    names = {
        value: f"bert-{key}-{'un' * lowercase}cased" for key, value in _PUBLISHED_SIZES.items()
    }
    if bert == published and size in names:
        return names[size]
    if bert == published and lowercase and layers in _GOOGLE_LAYERS and width in _GOOGLE_WIDTHS:
        return f"google/bert_uncased_L-{layers}_H-{width}_A-{bert.num_heads}"
    return UNNAMED_BERT
