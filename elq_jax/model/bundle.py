"""Opens and saves a model: configuration, parameters of both encoders, tokenizer."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import msgspec
import numpy as np
import safetensors

from elq_jax.core.errors import DataError, ElqError
from elq_jax.model.config import BertConfig, ElqConfig
from elq_jax.model.huggingface import load_bert_checkpoint
from elq_jax.model.parameters import flattened, nested, parameter_shapes, params_from_huggingface
from elq_jax.storage.checksums import Sha256, are_cheap, check_digest, read_json
from elq_jax.storage.files import check_not_a_pointer, make_folder, write_json
from elq_jax.storage.hub import resolve_encoder
from elq_jax.storage.layout import CONFIG, ORIGINAL_PARAMETERS, PARAMETERS, TOKENIZER
from elq_jax.storage.resume import digest
from elq_jax.storage.safetensors_files import write_safetensors
from elq_jax.text.tokenization import Tokenizer

FORMAT = "elq_jax linker, version 2"
_WITHOUT_CHECKSUMS = "elq_jax linker, version 1"  # older, in which they may be missing
PARTS = ("question", "entity")


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A question encoder and an entity encoder that share a tokenizer.

        model = Model.from_encoders("minilm", entity_pooling="mean")
        vectors = model.entity_apply(model.params["entity"], input_ids, mask)  # [B, D]
        model.save("my_linker")
        model = Model.open("my_linker", parts=("question",))

    Attributes:
      config: description of what the model computes.
      params: {"question": tree, "entity": tree} of float32 arrays, or one of the two.
      tokenizer: tokenizer of questions and entities.
      recorded_fingerprint: `entity_fingerprint` of a model whose entity encoder was not read; ""
        where it is not known.
    """

    config: ElqConfig
    params: Mapping[str, Any]
    tokenizer: Tokenizer
    recorded_fingerprint: str = dataclasses.field(default="", repr=False)

    @classmethod
    def from_encoders(
        cls,
        question_encoder: str | os.PathLike[str],
        entity_encoder: str | os.PathLike[str] | None = None,
        *,
        seed: int = 0,
        symbols_apart: bool = True,
        **settings: Any,
    ) -> Model:
        """Builds a model from published BERT encoders; all other parameters start at random.

        Args:
          question_encoder: name of the encoder: "minilm", a folder, or a hub name.
          entity_encoder: name of the encoder; the question encoder's by default.
          seed: seed of the new parameters.
          symbols_apart: whether emoji and other symbols glued to a word are set apart from it, in
            questions and entities; see `Tokenizer.with_symbols_apart`.
          **settings: further fields of `ElqConfig`.

        Raises:
          ElqError: a checkpoint cannot be read, or the encoders have different vocabularies.
        """
        folders = {"question": resolve_encoder(question_encoder)}
        folders["entity"] = resolve_encoder(entity_encoder or question_encoder)
        tokenizers = {part: Tokenizer.from_pretrained(folder) for part, folder in folders.items()}
        if tokenizers["question"].fingerprint != tokenizers["entity"].fingerprint:
            raise ElqError(
                f"question_encoder, entity_encoder: the tokenizers of {question_encoder} and "
                f"{entity_encoder} differ; choose encoders with the same tokenizer"
            )
        with_pooler = settings.get("entity_pooling") == "pooler_linear"
        bert_configs, berts = {}, {}
        for part, folder in folders.items():
            bert, berts[part] = _read_bert(
                folder, with_pooler and part == "entity", tokenizers[part]
            )
            bert_configs[f"{part}_bert"] = dataclasses.asdict(bert)
        try:
            config = ElqConfig.from_dict(bert_configs | settings)
        except ValueError as error:
            raise ElqError(str(error)) from error
        heads = jax.device_get(_initialise(config, seed, heads_only=True))
        params = {part: {"bert": berts[part]} | heads[part] for part in PARTS}
        tokenizer = tokenizers["question"]
        return cls(config, params, tokenizer.with_symbols_apart() if symbols_apart else tokenizer)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], parts: Sequence[str] = PARTS) -> Model:
        """Reads a model from a linker directory.

        Args:
          folder: path of a folder that `save` wrote.
          parts: encoders whose parameters are read from disk.

        Raises:
          ElqError: a file is missing or damaged, lacks a part, does not belong to the model in
            config.json, or holds NaN or infinity.
        """
        described = read_description(folder)
        tokenizer = Tokenizer.from_pretrained(folder)
        path = pathlib.Path(folder) / PARAMETERS
        flat = _read_params(path, parts)
        described.check_files(folder, cheap_only=True)
        _check_params(flat, described.model, parts, path)
        params = nested(flat)
        return cls(described.model, params, tokenizer, described.entity_encoder)

    def save(
        self,
        folder: str | os.PathLike[str],
        linking: Mapping[str, Any] | None = None,
        other_digests: Mapping[str, str] | None = None,
    ) -> None:
        """Writes config.json, model.safetensors and tokenizer.json.

        Parameters may be in memory, on devices or mapped from files; they are copied one at a time.

        Args:
          folder: path of the folder, which is made if it does not exist.
          linking: defaults of `EntityLinker` (threshold and so on).
          other_digests: SHA-256 of further files in the folder, by name.
        """
        folder = pathlib.Path(folder)
        make_folder(folder)
        self.tokenizer.save(folder)
        flat = {"/".join(path): array for path, array in flattened(self.params).items()}
        shapes = {name: np.shape(array) for name, array in flat.items()}
        parameters = write_safetensors(
            folder / PARAMETERS, shapes, lambda name: jax.device_get(flat[name])
        )
        digests = {PARAMETERS: parameters, TOKENIZER: digest(folder / TOKENIZER)}
        digests |= other_digests or {}
        Description(self.config, linking or {}, self.entity_fingerprint, digests).write(folder)

    def replace(self, **changes: Any) -> Model:
        """Returns the model with other fields, such as `params`.

        If the entity encoder is the same, or is left out of the new parameters, its fingerprint
        stays known: a model by `replace(params={"question": tree})` still finds its entity vectors.
        """
        changed = dataclasses.replace(self, **{"recorded_fingerprint": ""} | changes)
        entity = changed.params.get("entity")
        if (
            changed.tokenizer is self.tokenizer
            and _entity_settings(changed.config) == _entity_settings(self.config)
            and (entity is None or entity is self.params.get("entity"))
        ):
            changed.__dict__["entity_fingerprint"] = self.entity_fingerprint
        return changed

    def question_apply(self, params: Mapping[str, Any], *arrays: Any, **arguments: Any) -> Any:
        """Runs the question encoder; see `elq.question_apply` for the arguments."""
        from elq_jax.model import elq

        return elq.question_apply(self.config, params, *arrays, **arguments)

    def entity_apply(self, params: Mapping[str, Any], *arrays: Any, **arguments: Any) -> jax.Array:
        """Encodes entities; see `elq.entity_apply` for the arguments."""
        from elq_jax.model import elq

        return elq.entity_apply(self.config, params, *arrays, **arguments)

    @functools.cached_property
    def entity_fingerprint(self) -> str:
        """Returns the SHA-256 of all that entity vectors depend on, except the catalogue itself.

        It is computed once, on the host. If the entity encoder was not read, it is taken from
        config.json; "" if it is not recorded there, and then any embeddings are accepted.
        """
        if "entity" not in self.params:
            return self.recorded_fingerprint
        whole = hashlib.sha256()
        described = [_entity_settings(self.config), self.tokenizer.fingerprint]
        whole.update(json.dumps(described, sort_keys=True).encode())
        flat = {"/".join(p): array for p, array in flattened(self.params["entity"]).items()}
        for name in sorted(flat):
            whole.update(name.encode())
            whole.update(np.ascontiguousarray(jax.device_get(flat[name]), np.float32).data)
        return whole.hexdigest()


def _entity_settings(config: ElqConfig) -> dict[str, Any]:
    """Returns the settings that entity vectors depend on besides parameters and tokenizer."""
    settings = {name: value for name, value in config.to_dict().items() if "entity" in name}
    if not config.normalize_entities:  # left out where it is on, as in older embeddings
        settings["normalize_entities"] = False
    for name in ("dropout_rate", "attention_dropout_rate"):
        del settings["entity_bert"][name]
    return settings


def _read_bert(
    folder: pathlib.Path, with_pooler: bool, tokenizer: Tokenizer
) -> tuple[BertConfig, dict[str, Any]]:
    """Reads sizes and parameters of a published BERT, with the vocabulary of its tokenizer."""
    values, tensors = load_bert_checkpoint(folder)
    try:
        config = BertConfig.from_huggingface(values)
        params = params_from_huggingface(tensors, config, with_pooler)
    except (ValueError, KeyError) as error:
        raise DataError(str(error), folder) from error
    if tokenizer.vocab_size > config.vocab_size:
        raise ElqError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size:,} tokens, but the encoder only "
            f"{config.vocab_size:,}; give a folder whose tokenizer belongs to its encoder"
        )
    return config, params


def initial_params(config: ElqConfig, seed: int = 0) -> dict[str, Any]:
    """Draws random parameters of both encoders: {"question": tree, "entity": tree}."""
    return _initialise(config, seed)


def _initialise(config: ElqConfig, seed: int, heads_only: bool = False) -> dict[str, Any]:
    from elq_jax.model import elq

    @jax.jit
    def initialise() -> dict[str, Any]:
        params = elq.initialise(config, jax.random.key(seed))
        if heads_only:  # What is not returned is not computed either.
            for tree in params.values():
                del tree["bert"]
        return params

    return initialise()


@dataclasses.dataclass(frozen=True)
class Description:
    """The content of config.json of a linker directory.

    Attributes:
      model: description of what the model computes.
      linking: defaults of `EntityLinker`.
      entity_encoder: fingerprint of the entity encoder; "" where it is not recorded.
      sha256: checksums of model.safetensors, tokenizer.json and, if it is there,
        original.safetensors; None in folders of version 1, which may have none.
    """

    model: ElqConfig
    linking: Mapping[str, Any]
    entity_encoder: str = ""
    sha256: Mapping[str, str] | None = None

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Writes config.json."""
        settings = {
            "format": _WITHOUT_CHECKSUMS if self.sha256 is None else FORMAT,
            "model": self.model.to_dict(),
            "entity_encoder": self.entity_encoder,
            "linking": dict(self.linking),
        }
        if self.sha256 is not None:
            settings["sha256"] = dict(self.sha256)
        write_json(pathlib.Path(folder) / CONFIG, settings)

    def check_files(self, folder: str | os.PathLike[str], cheap_only: bool = False) -> bool:
        """Compares the files that have checksums with them.

        Args:
          folder: linker directory.
          cheap_only: whether the comparison is left out if it would take long.

        Returns:
          whether the files were compared.

        Raises:
          DataError: a file is missing or damaged, or original.safetensors has no checksum.
        """
        if self.sha256 is None:
            return False
        path = pathlib.Path(folder) / ORIGINAL_PARAMETERS
        if ORIGINAL_PARAMETERS not in self.sha256 and os.path.lexists(path):
            message = f'"sha256" in {CONFIG} has no checksum of it; convert again, or remove it'
            raise DataError(message, path)
        paths = {name: pathlib.Path(folder) / name for name in self.sha256}
        if cheap_only and not are_cheap(path for path in paths.values() if path.exists()):
            return False
        for name, path in paths.items():
            check_digest(path, self.sha256[name], "copy the linker directory again")
        return True


def is_linker_directory(folder: str | os.PathLike[str]) -> bool:
    """Returns whether `folder` has a config.json of this library."""
    path = pathlib.Path(folder) / CONFIG
    return path.is_file() and b'"elq_jax linker' in path.read_bytes()


def read_description(folder: str | os.PathLike[str]) -> Description:
    """Reads config.json of a linker directory.

    Raises:
      ElqError: the folder is not a linker directory of this version.
    """
    path = pathlib.Path(folder) / CONFIG
    if not path.is_file():
        raise ElqError(f"{folder}: no config.json here; expected a linker directory")
    advice = "not the configuration of a linker; expected one that train wrote"
    content = read_json(path, dict[str, Any], advice)
    if content.get("format") not in (FORMAT, _WITHOUT_CHECKSUMS):
        _check_is_no_workdir(path.parent, content)
        found = content.get("format")
        expected = f"expected {FORMAT!r}, as train and save_pretrained write it"
        raise DataError(f'"format" is {found!r}; {expected}', path)
    may_lack = content["format"] == _WITHOUT_CHECKSUMS
    file = read_json(path, _ConfigFile if may_lack else _ConfigFileWithChecksums, advice)
    _check_names_of_digests(file.sha256, path)
    try:
        config = ElqConfig.from_dict(file.model)
    except ValueError as error:
        raise DataError(f'"model": {error}; {advice}', path) from error
    digests = None if file.sha256 is msgspec.UNSET else file.sha256
    return Description(config, file.linking, file.entity_encoder, digests)


def _check_is_no_workdir(folder: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Raises an ElqError that says where the linker of a training run is."""
    linker = folder / "linker"
    if is_linker_directory(linker):
        raise ElqError(
            f"{folder}: is the workdir of a training run; give the linker in it, {linker}"
        )
    if "stages" in content:
        raise ElqError(
            f"{folder}: is the workdir of an unfinished training run; resume it with the same "
            f"train command, which writes {linker}"
        )


class _ConfigFile(msgspec.Struct, kw_only=True):
    """The fields of the file config.json of version 1."""

    format: str
    model: dict[str, Any]
    linking: dict[str, Any]
    entity_encoder: str = ""
    sha256: dict[str, Sha256] | msgspec.UnsetType = msgspec.UNSET


class _ConfigFileWithChecksums(_ConfigFile, kw_only=True):
    """The fields of the file config.json of version 2."""

    entity_encoder: str
    sha256: dict[str, Sha256]


def _check_names_of_digests(
    digests: Mapping[str, str] | msgspec.UnsetType, path: pathlib.Path
) -> None:
    """Raises a DataError unless config.json has checksums of the files that it should have."""
    needed = {PARAMETERS, TOKENIZER}
    if digests is not msgspec.UNSET and digests.keys() - {ORIGINAL_PARAMETERS} != needed:
        found = ", ".join(sorted(digests)) or "nothing"
        message = f'"sha256" is of {found}; expected {PARAMETERS} and {TOKENIZER}; copy it again'
        raise DataError(message, path)


def _read_params(path: pathlib.Path, parts: Sequence[str]) -> dict[tuple[str, ...], np.ndarray]:
    """Reads the parameters of the wanted encoders from a safetensors file, by their paths."""
    if not path.is_file():
        raise ElqError(f"{path}: no such file; expected a linker directory with its parameters")
    check_not_a_pointer(path)
    flat: dict[tuple[str, ...], np.ndarray] = {}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                if name.split("/")[0] in parts:
                    flat[tuple(name.split("/"))] = file.get_tensor(name)
    except safetensors.SafetensorError as error:
        raise DataError(f"not a whole safetensors file ({error})", path) from error
    for part in parts:
        if not any(name[0] == part for name in flat):
            raise DataError(f"holds no parameters of the {part} encoder", path)
    return flat


def _check_params(
    flat: Mapping[tuple[str, ...], np.ndarray],
    config: ElqConfig,
    parts: Sequence[str],
    path: pathlib.Path,
) -> None:
    """Raises a DataError unless these are the parameters that config.json describes, all finite."""
    shapes = parameter_shapes(config)
    for name, array in flat.items():
        if array.dtype != np.float32:
            raise DataError(f"{'/'.join(name)}: found {array.dtype}, expected float32", path)
    expected = {name: shape for name, shape in shapes.items() if name[0] in parts}
    for name in sorted({*expected, *flat}):
        found = flat[name].shape if name in flat else "nothing"
        if found != expected.get(name):
            raise DataError(
                f"{'/'.join(name)}: found {found}, config.json says {expected.get(name, 'nothing')}"
                "; the two files are of different models",
                path,
            )
        with np.errstate(all="ignore"):  # a sum keeps NaN and infinity
            if not np.isfinite(flat[name].sum()) and not np.isfinite(flat[name]).all():
                raise DataError(f"{'/'.join(name)}: holds NaN or infinity; train again", path)
