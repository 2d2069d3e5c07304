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

from elq_jax.cli.flags import SettingsFlags
from elq_jax.cli.run import define_path, run, start_jax
from elq_jax.entities.settings import EncodingSettings
from elq_jax.storage.files import user_address

_CATALOGUE = define_path(
    "catalogue", "Catalogue: .jsonl, .jsonl.gz, or a catalogue.arrow.", required=True
)
_OUTPUT = define_path(
    "output", "Folder to write; may be on gs://.", parse=user_address, required=True
)
_SETTINGS = SettingsFlags.define(EncodingSettings, "encoding")


def main(arguments: list[str]) -> None:
    """Builds the catalogue if it does not exist, then encodes the missing entities."""
    del arguments
    start_jax(several_processes=True)
    from elq_jax.entities.encode import encode_entities, open_encoder

    settings = _SETTINGS.value()
    encoder = open_encoder(settings)
    embeddings = encode_entities(encoder, _CATALOGUE.value, _OUTPUT.value, settings)
    rows, width = embeddings.shape
    print(f"{rows:,} entities, width {width}, {embeddings.dtype}: {_OUTPUT.value}", file=sys.stderr)


if __name__ == "__main__":
    run(main, is_resumable=lambda: True)
