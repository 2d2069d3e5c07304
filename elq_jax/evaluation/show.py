"""Shows reports to people: tables, curves, error files."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from elq_jax.evaluation.sweep import Sweep
from elq_jax.retrieval.measure import how_many
from elq_jax.storage.files import atomic_write

if TYPE_CHECKING:
    import rich.console
    import rich.table

LABELS = {
    "in_catalogue": "in catalogue",
    "all": "all questions",
    "mention_detection": "mentions only",
}


def write_errors(path: str | os.PathLike[str], errors: Sequence[dict[str, Any]]) -> None:
    """Writes the records of `Evaluation.errors` as .jsonl; the file appears only when whole."""
    with atomic_write(path, "w") as file:
        for error in errors:
            file.write(json.dumps(error, ensure_ascii=False) + "\n")


def print_report(console: rich.console.Console, report: dict[str, Any]) -> None:
    """Prints the dict of `Evaluation.report`, or of `evaluate`, as tables.

    Args:
      console: console to print on.
      report: report of `Evaluation.report`, or of `evaluate` with speed, machine and more.
    """
    _print_scores(console, report)
    if report["disambiguation"]:
        _print_disambiguation(console, report["disambiguation"])
    kinds = (f"{number} {kind.replace('_', ' ')}" for kind, number in report["errors"].items())
    console.print("Errors: " + ", ".join(kinds))
    if speed := report.get("speed"):
        console.print(
            f"{speed['questions_per_second']:,.1f} questions/s from text to links (second of two "
            f"passes, {speed['questions']:,} questions)",
            highlight=False,
        )
    if machine := report.get("machine"):
        where = f"{machine['cpu']}, {machine['cores']} cores"
        if machine["device"] != "cpu":
            where += f", {machine['num_devices']} x {machine['device']}"
        if "index" in report:
            where += f"; {report['index']} index of {report['entities']:,} entities"
        console.print(
            f"{where}; batch {report['batch_size']}; peak memory "
            f"{report['peak_memory_bytes'] / 2**30:.2f} GiB",
            highlight=False,
        )


def _table(title: str, *columns: str) -> rich.table.Table:
    from rich import box
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
        caption_justify="left",
    )  # fmt: skip
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    return table


def _print_scores(console: rich.console.Console, report: dict[str, Any]) -> None:
    scores = _table(
        f"Links with a score above {report['threshold']:.3f}",
        *("", "questions", "gold", "predicted", "match", "P", "R", "F1"),
    )
    for key in ("in_catalogue", "all", "mention_detection"):
        part = report[key]
        sizes = (str(part[name]) for name in ("questions", "gold", "predicted"))
        first_cells = [LABELS[key], *sizes]
        for metric in ("weak", "strong"):
            values = part[metric]
            cells = [f"{values[name]:.3f}" for name in ("precision", "recall", "f1")]
            if interval := values.get("f1_interval"):
                cells[-1] += f" ±{(interval[1] - interval[0]) / 2:.3f}"
                scores.caption = "±: half the width of the 95% bootstrap interval"
            scores.add_row(*first_cells, metric, *cells)
            first_cells = [""] * 4
        scores.add_section()
    console.print(scores)


def _print_disambiguation(console: rich.console.Console, report: dict[str, Any]) -> None:
    cuts = [c for c in report["all"]["recall"] if c != "1"]
    recalls = (f"recall@{c}" for c in cuts)
    ranking = _table("Entities at the gold spans", "", "gold", "accuracy", *recalls)
    for key, part in report.items():
        values = (part["accuracy"], *(part["recall"].get(c, 0.0) for c in cuts))
        ranking.add_row(LABELS[key], str(part["total"]), *(f"{v:.3f}" for v in values))
    console.print(ranking)


def plot_precision_recall(
    path: str | os.PathLike[str], sweep: Sweep, threshold: float, title: str = ""
) -> None:
    """Draws weak and strong precision against recall over all thresholds, as a PNG.

    Thin lines join points of equal F1; the dots mark `threshold`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for f1 in np.arange(0.1, 1.0, 0.1):
        recall = np.linspace(f1 / (2 - f1), 1, 200)
        axes.plot(recall, f1 * recall / (2 * recall - f1), color="0.85", linewidth=0.8, zorder=1)
        label = f"F1 {f1:.1f}" if f1 > 0.85 else f"{f1:.1f}"
        axes.annotate(
            label, (1, f1 / (2 - f1)), (3, 0), textcoords="offset points",
            va="center", fontsize=8, color="0.5", annotation_clip=False,
        )  # fmt: skip
    point = sweep.index(threshold)
    for metric, colour in (("weak", "#0072B2"), ("strong", "#D55E00")):
        precision, recall = sweep.precision(metric), sweep.recall(metric)
        axes.plot(recall[1:], precision[1:], color=colour, linewidth=1.8, label=metric, zorder=2)
        axes.plot(
            recall[point], precision[point], "o", color=colour, markersize=7, zorder=3,
            markeredgecolor="white",
            label=f"{metric} at {threshold:.2f}: F1 {sweep.f1(metric)[point]:.3f}",
        )  # fmt: skip
    axes.set(xlabel="Recall", ylabel="Precision", xlim=(0, 1), ylim=(0, 1.02), title=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="best", edgecolor="white", framealpha=1)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)


def print_comparison(report: dict[str, Any], index: str) -> None:
    """Prints the dict of `retrieval.measure.compare` as a table.

    Args:
      report: report that also has "queries" (where the queries are from) and "machine" (from
        `describe_machine`).
      index: name of the index that was compared with exact search.
    """
    from rich.console import Console
    from rich.table import Table

    machine = report["machine"]
    table = Table(
        title=f"{report['rows']:,} entities, width {report['width']}, {report['dtype']}",
        caption=f"queries: {report['queries']}\n{machine['cpu']}, {machine['cores']} cores, "
        f"{machine['device']}",
    )
    table.add_column("")
    columns = [report[name] for name in dict.fromkeys(("exact", index))]
    table.add_column("exact", justify="right")
    if len(columns) > 1:
        method = report[index]["settings"].get("method", "")
        table.add_column(f"{index} {method}".strip(), justify="right")
    for k in report["exact"]["recall"]:
        table.add_row(f"recall@{k}", *(f"{column['recall'][k]:.4f}" for column in columns))
    for size in reversed(report["exact"]["queries_per_second"]):
        values = (column["queries_per_second"][size] for column in columns)
        table.add_row(f"queries/s, {how_many(int(size))}", *(f"{value:,.0f}" for value in values))
    for label, key, form in (
        ("seconds to open", "open_seconds", "{:.2f}"),
        ("seconds to build", "build_seconds", "{:.1f}"),
    ):
        table.add_row(label, *(form.format(c[key]) if key in c else "-" for c in columns))
    table.add_row(
        "size on disk", *(f"{c['bytes'] / 1e6:,.1f} MB" if "bytes" in c else "-" for c in columns)
    )
    Console().print(table)
