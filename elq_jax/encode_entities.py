"""Turns a catalogue of entities into entity vectors.

    python -m elq_jax.encode_entities --catalogue entities.jsonl --encoder minilm \\
        --pooling mean --normalize --output catalogue/

reads one JSON object per line, such as

    {"title": "Dune (novel)", "text": "Dune is a 1965 novel by ...", "wikidata_id": "Q190192"}

(wikidata_id and aliases are optional; the published entity.jsonl of the original ELQ can be read
too), and writes

    catalogue/catalogue.arrow   the entities; an entity is known by its row, counted from 0
    catalogue/embeddings/       their vectors, in shards

If a run is stopped, the same command resumes it with the missing shards. Several hosts that are
started together (see elq_jax/train.py) encode different shards; --output is then on gs:// or on a
disk that all of them see. A run may be resumed with another number of hosts.
"""

from __future__ import annotations

import sys

from elq_jax.cli.flags import SettingsFlags
from elq_jax.cli.run import define_path, run, start_jax
from elq_jax.entities.settings import EncodingSettings
from elq_jax.storage.files import user_address

_CATALOGUE = define_path(
    "catalogue",
    "File of the entities: .jsonl, .jsonl.gz, or a catalogue.arrow that was made of one.",
    required=True,
)
_OUTPUT = define_path(
    "output",
    "Folder for catalogue.arrow and embeddings/; may be on gs://.",
    parse=user_address,
    required=True,
)
_SETTINGS = SettingsFlags.define(EncodingSettings, "encoding")


def main(arguments: list[str]) -> None:
    """Builds the catalogue if it does not exist, then encodes the missing entities."""
    del arguments
    start_jax(several_processes=True)
    from elq_jax.core.devices import say_dtype
    from elq_jax.entities.encode import encode_entities, open_encoder

    settings = _SETTINGS.value()
    say_dtype(settings.dtype)
    encoder = open_encoder(settings)
    embeddings = encode_entities(encoder, _CATALOGUE.value, _OUTPUT.value, settings)
    rows, width = embeddings.shape
    print(f"{rows:,} entities, width {width}, {embeddings.dtype}: {_OUTPUT.value}", file=sys.stderr)


if __name__ == "__main__":
    run(main, is_resumable=lambda: True)
