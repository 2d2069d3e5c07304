"""Turns models of the original ELQ and BLINK into a linker directory, and back.

    python -m elq_jax.convert --checkpoint elq_wiki_large.bin --params elq_large_params.txt \\
        --catalogue entity.jsonl --embeddings all_entities_large.t7 --dtype int8 \\
        --tokenizer bert-large-uncased --output elq_wiki

writes what `EntityLinker.from_pretrained("elq_wiki")` opens. Without --embeddings, encode_entities
computes them; without --catalogue, the result is a model to encode or train with. Files of torch of
any age are read and written without torch, which need not be installed; the matrix in parts, so
that memory does not depend on its size. Stopped at any moment, or by a full disk, the same command
goes on; after any other error nothing is left behind.

With --entity_checkpoint instead of --checkpoint, BLINK's bi-encoder becomes a model to encode and
train with; its mention head is at random.

    python -m elq_jax.convert --linker elq_wiki --to_torch elq.bin

writes a state dict that the original loads, and its parameter file elq_params.txt.

docs/migrating-from-elq.md has the rest.
"""

from __future__ import annotations

import json
import pathlib
import sys

from absl import flags

from elq_jax import cli
from elq_jax.core.errors import ElqError
from elq_jax.original.presets import PRESETS
from elq_jax.storage import layout

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "ELQ model: elq_wiki_large.bin, ...")
_PARAMS = flags.DEFINE_string(
    "params", None, "Its parameter file: elq_large_params.txt, training_params.txt."
)
_ENTITY_CHECKPOINT = flags.DEFINE_string(
    "entity_checkpoint",
    None,
    "Take the entity encoder of this model instead: BLINK's biencoder_wiki_large.bin, ...; without "
    "--checkpoint, both encoders.",
)
_BERT_CONFIG = flags.DEFINE_string(
    "bert_config",
    None,
    "config.json of the BERT that it was trained from; needed where the number of attention heads "
    "is not known: anything but bert-base, bert-large and the smaller ones published with them.",
)
_ENTITY_BERT_CONFIG = flags.DEFINE_string(
    "entity_bert_config",
    None,
    "The same of the entity encoder, where it is another; by default --bert_config, unless "
    "--checkpoint and --entity_checkpoint are two files.",
)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "Folder with tokenizer.json or vocab.txt of that BERT, or its hub name."
)
_CATALOGUE = flags.DEFINE_string(
    "catalogue", None, "entity.jsonl (or .jsonl.gz, or a catalogue.arrow)."
)
_WIKIDATA_IDS = flags.DEFINE_string(
    "wikidata_ids",
    None,
    "Table title -> Wikidata id for entities without kb_idx: a JSON object, or lines title<TAB>id.",
)
_EMBEDDINGS = flags.DEFINE_string(
    "embeddings", None, "Entity vectors in the order of the catalogue: all_entities_large.t7."
)
_TOKEN_IDS = flags.DEFINE_string(
    "token_ids",
    None,
    "entity_token_ids_128.t7, to check catalogue and tokenizer with; not needed for anything else.",
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ("float32", "bfloat16", "int8"), "Vectors on disk; int8 has a row scale."
)
_INDEX = flags.DEFINE_bool(
    "index",
    False,
    "Build a ScaNN index too; build_index does so later, with more choices.",
)
_PRESET = flags.DEFINE_enum(
    "preset", "interactive", tuple(PRESETS), "Published settings to link with by default."
)
_MAX_QUESTION_TOKENS = flags.DEFINE_integer(
    "max_question_tokens",
    None,
    "Tokens of a question to link with by default, [CLS] and [SEP] included, instead of the "
    "preset's or the model's.",
    lower_bound=3,
)
_OUTPUT = flags.DEFINE_string("output", None, "Linker directory to write.")
_LINKER = flags.DEFINE_string("linker", None, "Linker directory to write --to_torch.")
_TO_TORCH = flags.DEFINE_string("to_torch", None, "State dict to write: OUT.bin.")
_OF_CONVERT = (
    *(_CHECKPOINT, _PARAMS, _ENTITY_CHECKPOINT, _BERT_CONFIG, _ENTITY_BERT_CONFIG, _TOKENIZER),
    *(_CATALOGUE, _WIKIDATA_IDS, _EMBEDDINGS, _TOKEN_IDS, _DTYPE, _INDEX, _PRESET),
    *(_MAX_QUESTION_TOKENS, _OUTPUT),
)


def main(arguments: list[str]) -> None:
    """Converts in one direction or the other."""
    del arguments
    cli.start_jax()
    if _TO_TORCH.value or _LINKER.value:
        _to_torch()
    else:
        _convert()


def _convert() -> None:
    model = _CHECKPOINT if _CHECKPOINT.value or not _ENTITY_CHECKPOINT.value else _ENTITY_CHECKPOINT
    _check_given(model, _PARAMS, _TOKENIZER, _OUTPUT)
    from elq_jax.original import convert as conversion

    output = _OUTPUT.value
    conversion.convert(
        output,
        _CHECKPOINT.value,
        _PARAMS.value,
        _TOKENIZER.value,
        entity_checkpoint=_ENTITY_CHECKPOINT.value,
        bert_config=_BERT_CONFIG.value,
        entity_bert_config=_ENTITY_BERT_CONFIG.value,
        catalogue=_CATALOGUE.value,
        wikidata_ids=_WIKIDATA_IDS.value,
        embeddings=_EMBEDDINGS.value,
        token_ids=_TOKEN_IDS.value,
        dtype=_DTYPE.value,
        preset=_PRESET.value,
        max_question_tokens=_MAX_QUESTION_TOKENS.value,
        index=_INDEX.value,
    )
    if _CATALOGUE.value and not _EMBEDDINGS.value:
        print(
            f"no embeddings yet: python -m elq_jax.encode_entities --encoder {output} "
            f"--catalogue {pathlib.Path(output) / layout.CATALOGUE} --output {output}",
            file=sys.stderr,
        )
    print(output)


def _to_torch() -> None:
    _check_given(_LINKER, _TO_TORCH)
    for flag in _OF_CONVERT:
        if flag.present:
            raise ElqError(f"--{flag.name}: cannot be combined with --to_torch and --linker")
    from elq_jax.original import checkpoint as original
    from elq_jax.original.torch_files import write_torch_file
    from elq_jax.storage.files import atomic_write

    output = pathlib.Path(_TO_TORCH.value)
    tensors, parameters = original.state_dict(_LINKER.value)
    write_torch_file(output, tensors)
    path = output.with_name(f"{output.stem}_params.txt")
    with atomic_write(path, "w") as file:
        json.dump(parameters, file)
        file.write("\n")
    if parameters["bert_model"] == original.UNNAMED_BERT:
        print(
            f'warning: {path}: no published BERT has these sizes; set "bert_model" to a folder '
            "with config.json, pytorch_model.bin and vocab.txt of the BERT it was trained from",
            file=sys.stderr,
        )
    print(f"{output}\n{path}")


def _check_given(*needed: flags.FlagHolder) -> None:
    for flag in needed:
        if not flag.value:
            names = ", ".join(f"--{flag.name}" for flag in needed)
            raise ElqError(f"--{flag.name}: missing; needed are {names}")


if __name__ == "__main__":
    cli.run(main, is_resumable=lambda: bool(_OUTPUT.value))
