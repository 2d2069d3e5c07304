"""Reads every file of a linker directory and compares it with its checksum.

    python -m elq_jax.verify my_linker

Every program that opens a linker checks its JSON files, that its parts belong together, and the
checksums of files up to 256 MiB. This program also checks larger files, every row of the catalogue
and every entity vector. It takes folders that encode_entities wrote, too. If something is damaged,
it names the file and exits with status 2.
"""

from __future__ import annotations

import sys

from elq_jax.cli.run import run
from elq_jax.core.errors import ElqError


def main(arguments: list[str]) -> None:
    """Verifies the folders of the command line and prints a line for each part."""
    if len(arguments) < 2:
        raise ElqError(
            "no folder is given; give one or more, as in: python -m elq_jax.verify my_linker"
        )
    from elq_jax.linking import directory
    from elq_jax.storage.files import user_path

    for folder in map(user_path, arguments[1:]):
        for name, finding in directory.verify(folder).items():
            print(f"{folder / name.partition(',')[0]}: {finding}", flush=True)
    print("nothing is damaged", file=sys.stderr)


if __name__ == "__main__":
    run(main, takes_arguments=True)
