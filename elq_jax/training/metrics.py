"""Writes metrics.jsonl and draws curves.png of a run."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from elq_jax.core import devices as devices_lib
from elq_jax.storage.files import atomic_write
from elq_jax.storage.lines import read_jsonl


class MetricsWriter:
    """Appends one JSON object per line to metrics.jsonl; a resumed run drops lines of later steps.

    Of several processes only the first writes.

    Args:
      path: path of metrics.jsonl.
      step: number of steps taken before this start; lines of later steps are from a run that was
        cut off.
    """

    def __init__(self, path: str | os.PathLike[str], step: int):
        self._path = pathlib.Path(path)
        self._writes = devices_lib.is_main()
        if not self._writes:
            return
        lines = _whole_lines(self._path) if self._path.exists() else []
        with atomic_write(self._path, "w") as file:
            file.writelines(f"{line}\n" for line in lines if json.loads(line)["step"] <= step)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds a line and flushes it to disk."""
        if not self._writes:
            return
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


def _whole_lines(path: pathlib.Path) -> list[str]:
    """Returns the lines of a file, without an unfinished last one that a killed run left."""
    text = path.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()


def plot_curves(metrics: str | os.PathLike[str], output: str | os.PathLike[str]) -> None:
    """Draws losses and dev scores of a metrics.jsonl over the steps, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for _, row in read_jsonl(metrics)]
    panels = (
        ("Training loss", {"linking_loss": "linking", "span_loss": "span"}, "log"),
        ("F1 on dev", {"dev_weak_f1": "weak", "dev_strong_f1": "strong"}, "linear"),
    )
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, names, scale) in zip(figure.subplots(1, 2), panels, strict=True):
        for (name, label), colour in zip(names.items(), ("#0072B2", "#D55E00"), strict=True):
            points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            if points:
                marker = "o" if scale == "linear" else None
                axes.plot(*zip(*points, strict=True), color=colour, label=label, marker=marker)
        axes.set(title=title, xlabel="step", yscale=scale)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend(frameon=False)
    with atomic_write(output) as file:
        figure.savefig(file, format="png", dpi=130)
