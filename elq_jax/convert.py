"""Turns models of the original ELQ and BLINK into a linker directory, and back.

    python -m elq_jax.convert --checkpoint elq_wiki_large.bin --params elq_large_params.txt \\
        --catalogue entity.jsonl --embeddings all_entities_large.t7 --storage_dtype int8 \\
        --tokenizer bert-large-uncased --output elq_wiki

writes a folder that `EntityLinker.from_pretrained("elq_wiki")` opens. Without --embeddings, compute
them afterwards with encode_entities. Without --catalogue, the result is a model for encode_entities
and train. Torch need not be installed, and its files of any age can be read. The entity vectors are
read in parts, so memory does not depend on their number. If a run is stopped or the disk is full,
the same command resumes; after any other error nothing is left behind.

With --entity_checkpoint and without --checkpoint, BLINK's bi-encoder becomes a model for
encode_entities and train; the part that finds mentions starts at random.

    python -m elq_jax.convert --linker elq_wiki --to_torch elq.bin

writes a checkpoint that the original ELQ can load, and its parameter file elq_params.txt. Every
step is described in docs/migrating-from-elq.md.
"""

from __future__ import annotations

import sys

from absl import flags

from elq_jax.cli.flags import SettingsFlags
from elq_jax.cli.run import define_path, run, start_jax
from elq_jax.core.errors import ElqError
from elq_jax.original.conversion import Conversion
from elq_jax.storage import layout
from elq_jax.storage.files import output_file

_CONVERSION = SettingsFlags.define(Conversion, "convert")
_LINKER = define_path("linker", "Linker directory that is written to --to_torch.")
_TO_TORCH = define_path(
    "to_torch", "File for a checkpoint that the original ELQ can load: elq.bin.", parse=output_file
)


def main(arguments: list[str]) -> None:
    """Converts to a linker directory, or from one to files of torch."""
    del arguments
    if _TO_TORCH.value or _LINKER.value:
        _to_torch()
    else:
        _from_torch()


def _from_torch() -> None:
    conversion = _CONVERSION.value()
    conversion.check()
    start_jax()
    from elq_jax.original.convert import convert

    output = convert(conversion)
    if conversion.catalogue and not conversion.embeddings:
        print(
            f"no embeddings yet; make them: python -m elq_jax.encode_entities --encoder {output} "
            f"--catalogue {output / layout.CATALOGUE} --output {output}",
            file=sys.stderr,
        )
    print(output)


def _to_torch() -> None:
    for flag in (_LINKER, _TO_TORCH):
        if not flag.value:
            raise ElqError(f"--{flag.name}: missing; give both --linker and --to_torch")
    for name in _CONVERSION.names.values():
        if flags.FLAGS[name].present:
            raise ElqError(f"--{name}: cannot be combined with --to_torch and --linker")
    from elq_jax.original.checkpoint import write_original

    print(*write_original(_LINKER.value, _TO_TORCH.value), sep="\n")


if __name__ == "__main__":
    run(main, is_resumable=lambda: bool(_CONVERSION.value().output))
