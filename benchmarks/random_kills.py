"""Kills training at random moments and compares the result with that of an unbroken run.

    python -m benchmarks.random_kills --kills 20 --folder runs/kills

trains MiniLM on the demo's data twice. One run is unbroken. The other is ended at random moments by
SIGKILL and SIGTERM in turn (while it starts, compiles, encodes, trains, evaluates or saves) and
resumed. Meanwhile --load busy processes use the same cores. Exits with 1 unless all parameters are
equal bit for bit.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from absl import app, flags

from elq_jax.core.errors import ElqError

_FOLDER = flags.DEFINE_string("folder", None, "Folder of the runs; removed first.", required=True)
_KILLS = flags.DEFINE_integer("kills", 20, "Number of kills.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 60, "Number of steps of the run.", lower_bound=2)
_LOAD = flags.DEFINE_integer("load", 2, "Number of busy processes.", lower_bound=0)
_LONGEST = flags.DEFINE_float(
    "longest", 30.0, "Largest number of seconds between a start and its kill."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the moments of the kills.")


def main(arguments: list[str]) -> int:
    """Trains both runs, kills one of them, and compares their parameters."""
    del arguments
    folder = pathlib.Path(_FOLDER.value)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    moments = random.Random(_SEED.value)
    statuses: dict[int, int] = {}
    with _load(_LOAD.value), (folder / "log.txt").open("wb") as log:
        _start(folder / "unbroken", log).wait()
        for kill in range(_KILLS.value):
            process = _start(folder / "broken", log)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(moments.uniform(0, _LONGEST.value))
            if process.poll() is None:
                process.send_signal((signal.SIGKILL, signal.SIGTERM)[kill % 2])
            status = process.wait()
            statuses[status] = statuses.get(status, 0) + 1
            print(f"start {kill + 1}: status {status}", file=sys.stderr, flush=True)
            if status == 0:
                raise ElqError(
                    f"the run ended after {kill} kills; give --steps above {_STEPS.value}"
                )
        last = _start(folder / "broken", log).wait()
    same, total = _compare(folder / "unbroken" / "linker", folder / "broken" / "linker")
    shown = ", ".join(f"{count} with status {status}" for status, count in statuses.items())
    print(
        f"{_KILLS.value} starts ended early ({shown}); the last start ended with status {last}: "
        f"{same} of {total} parameter arrays identical"
    )
    return int(last != 0 or same != total)


def _start(workdir: pathlib.Path, log: object) -> subprocess.Popen[bytes]:
    command = [
        *(sys.executable, "-m", "elq_jax.train", "--config=configs/webqsp.py:smoke"),
        f"--workdir={workdir}",
        f"--config.joint.num_steps={_STEPS.value}",
        "--config.joint.eval_every=10",
        "--config.joint.checkpoint_every=3",
    ]
    return subprocess.Popen(command, stdout=log, stderr=log)  # type: ignore[call-overload]


def _compare(one: pathlib.Path, two: pathlib.Path) -> tuple[int, int]:
    """Counts the arrays that are equal bit for bit in two linkers, and all arrays."""
    from safetensors.numpy import load_file

    arrays = [load_file(folder / "model.safetensors") for folder in (one, two)]
    names = arrays[0].keys() | arrays[1].keys()
    same = [
        name
        for name in names
        if all(name in found for found in arrays)
        and arrays[0][name].tobytes() == arrays[1][name].tobytes()
    ]
    return len(same), len(names)


@contextlib.contextmanager
def _load(count: int) -> Iterator[None]:
    processes = [multiprocessing.Process(target=_busy, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    yield
    for process in processes:
        process.kill()


def _busy() -> None:
    while True:
        time.perf_counter()


if __name__ == "__main__":
    app.run(main)
