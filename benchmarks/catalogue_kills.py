"""Kills a process that changes a catalogue at random moments, and looks at what is left.

    python -m benchmarks.catalogue_kills --linker runs/demo/linker

A child process adds, updates and removes entities of a copy of the linker, synchronises it with a
file, and compacts it, one change after the other, and says when each begins and is done. It is
ended by SIGKILL at a random moment of a change, of each kind in turn. The catalogue must then be
what it was after the last change that was acknowledged, or after the one that was under way; the
next child resumes there. Exits with 1 if it is anything else.
"""

from __future__ import annotations

import collections
import json
import os
import pathlib
import random
import re
import signal
import sys
import tempfile
import time
import warnings
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks.options import LINKER
from elq_jax.entities.catalogue import derived_id
from elq_jax.entities.encode import CatalogueEncoder
from elq_jax.entities.segments import open_segments
from elq_jax.linking import directory
from elq_jax.linking.changes import CatalogueEditor
from elq_jax.model.bundle import Model
from elq_jax.storage.files import link_or_copy

_KILLS = flags.DEFINE_integer("catalogue_kills", 100, "Number of kills.", lower_bound=1)
_RANDOM = flags.DEFINE_bool("kills_random_vectors", False, "Whether vectors are not encoded.")
_SEED = flags.DEFINE_integer("kills_seed", 0, "Seed of the changes and of the moments.")

_KINDS = ("add", "update", "remove", "sync", "compact")

State = dict[str, tuple[str, str, tuple[str, ...]]]  # title, text and aliases by id


def main(arguments: list[str]) -> int:
    """Kills children, and compares the catalogue with the changes that they acknowledged."""
    del arguments
    warnings.filterwarnings("ignore", message=r".*os\.fork\(\)")
    moments = random.Random(_SEED.value)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary) / "linker"
        link_or_copy(LINKER.value, folder)
        state, number, torn = _read(folder), 0, 0
        kinds: collections.Counter[str] = collections.Counter(dict.fromkeys(_KINDS, 0))
        longest = dict.fromkeys(_KINDS, 0.1)  # seconds that a change of each kind took
        for kill in range(_KILLS.value):
            log = pathlib.Path(temporary) / f"log-{kill}"
            child = os.fork()
            if not child:
                _change(folder, state, number, log)
            rarest = min(kinds, key=lambda kind: kinds[kind])
            _wait_for(rarest, log)
            time.sleep(moments.uniform(0, longest[rarest]))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            if not os.WIFSIGNALED(status):
                print(f"kill {kill + 1}: the child failed by itself", file=sys.stderr)
                return 1
            for done, seconds in re.findall(r"^done (\w+) ([\d.]+)$", log.read_text(), re.M):
                longest[done] = float(seconds)
                _, state = _step(number, state)
                number += 1
            kind, after = _step(number, state)
            found = _read(folder)
            if found == after and found != state:
                state, number = after, number + 1
            elif found != state:
                torn += 1
                message = f"kill {kill + 1}: during {kind}, neither before nor after it"
                print(message, file=sys.stderr)
                state = found
            kinds[kind] += 1
        directory.verify(folder)
        _check_vectors(folder)
    during = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
    print(
        f"{_KILLS.value} kills during {during}; {number:,} changes made; {torn} times the "
        "catalogue was neither as before nor as after the change"
    )
    return int(torn > 0)


def _wait_for(kind: str, log: pathlib.Path) -> None:
    """Waits until a child begins a change of a kind."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if log.exists() and re.search(rf"begin {kind}\n\Z", log.read_text()):
            return
        time.sleep(0.0005)


def _read(folder: pathlib.Path) -> State:
    """Reads all entities, and checks that each has the vector of its title and text."""
    segments = open_segments(folder)
    state = {}
    for rows, _ in segments.catalogue.living_batches():
        vectors = segments.embeddings.rows(rows)
        for entity, vector in zip(segments.catalogue.entities(rows), vectors, strict=True):
            state[entity.id] = entity.title, entity.text, entity.aliases
            if _RANDOM.value and entity.title.startswith("entity "):
                np.testing.assert_array_equal(vector, _vector(entity.title, entity.text, vector))
    return state


def _check_vectors(folder: pathlib.Path) -> None:
    """Compares the vectors of the new entities with those that the encoder computes now."""
    segments = open_segments(folder)
    rows = np.concatenate([rows for rows, _ in segments.catalogue.living_batches()])
    entities = segments.catalogue.entities(rows)
    new = [entity for entity in entities if entity.title.startswith("entity ")]
    if _RANDOM.value or not new:
        return
    vectors = segments.embeddings.rows(np.array([entity.row for entity in new]))
    encoder = CatalogueEncoder(Model.open(folder, ("entity",)))
    expected = encoder.encode([each.title for each in new], [each.text for each in new])
    error = np.linalg.norm(vectors - expected, axis=1) / np.linalg.norm(expected, axis=1)
    print(f"vectors of {len(new)} new entities differ by {error.max():.1%} at most")
    np.testing.assert_array_less(error, 0.05)  # bfloat16 products, in batches of other sizes


def _vector(title: str, text: str, like: np.ndarray) -> np.ndarray:
    seed = int(derived_id(title, text)[1:9], 16)
    return np.random.default_rng(seed).standard_normal(like.shape[-1], np.float32)


def _step(number: int, state: State) -> tuple[str, State]:
    """Returns the kind of a change, and the state after it."""
    kind, changed, gone = _plan(number, state)
    return kind, {own: value for own, value in (state | changed).items() if own not in gone}


def _plan(number: int, state: State) -> tuple[str, State, set[str]]:
    """Draws a change: its kind, entities with new content, and ids that are removed."""
    draw = random.Random(f"{_SEED.value} {number}")
    kind = draw.choice(_KINDS)
    own = sorted(name for name in state if name.startswith("own-"))
    if kind in ("update", "remove") and not own:
        kind = "add"
    if kind == "compact":
        return kind, {}, set()
    if kind == "remove":
        return kind, {}, {draw.choice(own)}
    if kind == "update":
        name = draw.choice(own)
        title, text, _ = state[name]
        return kind, {name: (title, text + draw.choice(["", " more"]), (f"name {number}",))}, set()
    new = {
        f"own-{number}-{i}": (f"entity {number} {i}", "a text", ())
        for i in range(draw.randint(1, 3))
    }
    return kind, new, {draw.choice(own)} if kind == "sync" and own else set()


def _change(folder: pathlib.Path, state: State, number: int, log: pathlib.Path) -> None:
    """Makes changes until the process is killed, and says on disk when each is done."""
    try:
        editor = CatalogueEditor(folder)
        if _RANDOM.value:
            width = open_segments(folder).embeddings.shape[1:]
            editor._encode = lambda entities: np.stack(  # type: ignore[method-assign]
                [_vector(e["title"], e["text"], np.empty(width)) for e in entities]
            )
        with open(log, "w") as file:
            if not _RANDOM.value:
                editor._encode([{"title": "the encoder is open now", "text": ""}])
            while True:
                plan, started = _plan(number, state), time.monotonic()
                print("begin", plan[0], file=file, flush=True)
                _make(editor, *plan, state)
                print(f"done {plan[0]} {time.monotonic() - started:.4f}", file=file, flush=True)
                _, state = _step(number, state)
                number += 1
    except BaseException as error:
        print(f"change {number}: {error!r}", file=sys.stderr, flush=True)
    finally:
        os._exit(1)


def _make(editor: CatalogueEditor, kind: str, changed: State, gone: set[str], state: State) -> None:
    names = ("title", "text", "aliases")
    lines: list[dict[str, Any]] = [
        {"id": own, **dict(zip(names, value, strict=True))} for own, value in changed.items()
    ]
    lines = json.loads(json.dumps(lines))
    if kind == "compact":
        editor.compact()
    elif kind == "remove":
        editor.remove([*gone])
    elif kind == "sync":
        whole = [line for line in editor.entities() if line["id"] not in gone]
        path = editor.folder.parent / "all.jsonl"
        path.write_text("\n".join(json.dumps(line) for line in [*whole, *lines]))
        editor.sync(path)
    else:
        getattr(editor, kind)(lines)


if __name__ == "__main__":
    app.run(main)
