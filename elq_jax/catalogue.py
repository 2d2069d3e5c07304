"""Adds, changes and removes entities of a linker, without training.

    python -m elq_jax.catalogue --linker my_linker add new.jsonl
    python -m elq_jax.catalogue --linker my_linker update changed.jsonl
    python -m elq_jax.catalogue --linker my_linker remove Q190192 product-17
    python -m elq_jax.catalogue --linker my_linker sync all.jsonl --dry_run
    python -m elq_jax.catalogue --linker my_linker list > all.jsonl
    python -m elq_jax.catalogue --linker my_linker stats
    python -m elq_jax.catalogue --linker my_linker compact

A line of new.jsonl is an entity, {"title": "Dune: Part Two", "text": "Film of 2024 by ...",
"aliases": ["Dune 2"], "id": "dune-2"}. An id is the entity's own and never changes; without one, it
is the Wikidata id, or derived from title and text. A line of changed.jsonl has the id of an entity
and the fields that change, such as {"id": "dune-2", "aliases": ["Dune 2", "Part Two"]}. Only new
entities, and those with another title or text, are encoded.

sync makes the catalogue equal to a file of all its entities: it adds, updates and removes what
differs. compact writes everything as one segment again, which makes linking a little faster after
many changes. One process changes a catalogue at a time, while any number of others link. Killing it
loses nothing: the same command does the rest. docs/living-catalogue.md says more.
"""

from __future__ import annotations

import sys

import msgspec
from absl import flags

from elq_jax.cli.run import define_path, run, start_jax
from elq_jax.core.errors import ElqError

_LINKER = define_path("linker", "Linker directory whose catalogue is changed.", required=True)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Whether sync only says what it would change.")
_RETIRE = flags.DEFINE_bool(
    "retire", True, "Whether sync removes entities that are not in the file; otherwise they stay."
)
_WITH_FILE = ("add", "update", "sync")
_ALONE = ("list", "stats", "compact")


def main(arguments: list[str]) -> None:
    """Does what the first argument says, and prints what has changed."""
    command, *rest = arguments[1:] or [""]
    _check(command, rest)
    if command in (*_WITH_FILE, "compact"):
        start_jax()
    from elq_jax.linking.changes import CatalogueEditor
    from elq_jax.storage.files import user_path
    from elq_jax.storage.lines import read_jsonl

    editor = CatalogueEditor(_LINKER.value)
    if command == "remove":
        print(editor.remove(rest).summary(), file=sys.stderr)
    elif command == "sync":
        changes = editor.sync(
            user_path(rest[0]),
            retire=_RETIRE.value,
            dry_run=_DRY_RUN.value,
            report=lambda changes: print(changes.preview(), file=sys.stderr, flush=True),
        )
        done = (
            "nothing was changed, since this is a dry run" if _DRY_RUN.value else changes.summary()
        )
        print(done, file=sys.stderr)
    elif command in _WITH_FILE:
        path = user_path(rest[0])
        entities = (record for _, record in read_jsonl(path))
        changes = getattr(editor, command)(entities, str(path))
        for own in (*changes.added, *changes.updated):
            print(own)
        print(changes.summary(), file=sys.stderr)
    elif command == "list":
        for entity in editor.entities():
            print(msgspec.json.encode(entity).decode())
    else:
        if command == "compact":
            editor.compact()
        print(editor.segments().summary())


def _check(command: str, rest: list[str]) -> None:
    """Raises an ElqError unless the arguments are those of a command."""
    if command in _WITH_FILE:
        expected, fits = "one file of JSON lines", len(rest) == 1
    elif command == "remove":
        expected, fits = "the ids of entities", bool(rest)
    elif command in _ALONE:
        expected, fits = "nothing", not rest
    else:
        commands = ", ".join((*_WITH_FILE, "remove", *_ALONE))
        raise ElqError(f"{command or 'no command'}: expected one of {commands}; see --help")
    if not fits:
        found = " ".join(rest) or "nothing"
        raise ElqError(f"{command}: found {found} after it, expected {expected}")
    for flag in (_DRY_RUN, _RETIRE):
        if flag.present and command != "sync":
            raise ElqError(f"--{flag.name}: of no use with {command}; leave it out")


if __name__ == "__main__":
    run(main, takes_arguments=True, is_resumable=lambda: True)
