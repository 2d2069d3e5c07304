"""Shows reports to people: tables, curves, error files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from elq_jax.evaluation.calibration import BINS, coverage_curve, reliability
from elq_jax.evaluation.matching import Metric
from elq_jax.evaluation.sweep import Sweep
from elq_jax.retrieval.measure import how_many
from elq_jax.storage.files import atomic_write

if TYPE_CHECKING:
    import rich.console
    import rich.table

COLOURS = ("#0072B2", "#D55E00")
LABELS = {
    "in_catalogue": "in catalogue",
    "catalogue_mentions": "mentions in catalogue",
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
    if len(report.get("sets", ())) > 1:
        _print_sets(console, report)
    else:
        _print_scores(console, report)
        if report["disambiguation"]:
            _print_disambiguation(console, report["disambiguation"])
    if report["nil"]["predicted"]:
        _print_nil(console, report)
    _print_calibration(console, report)
    if against := report.get("against"):
        _print_differences(console, against)
    if perturb := report.get("perturb"):
        _print_perturbations(console, perturb)
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


def _table(title: str, *columns: str, folded: int = 1) -> rich.table.Table:
    """Makes a table; its first columns hold names, which fold where there is no room."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
        caption_justify="left",
    )  # fmt: skip
    for number, name in enumerate(columns):
        folds = number < folded
        table.add_column(
            name, justify="left" if folds else "right", no_wrap=not folds, overflow="fold"
        )
    return table


def _print_scores(console: rich.console.Console, report: dict[str, Any]) -> None:
    scores = _table(
        f"Links with a score above {report['threshold']:.3f}",
        *("", "questions", "gold", "predicted", "match", "P", "R", "F1"),
    )
    for key in ("in_catalogue", "catalogue_mentions", "all", "mention_detection"):
        part = report[key]
        if key == "catalogue_mentions" and part["gold"] == report["in_catalogue"]["gold"]:
            continue  # No question has mentions of both kinds.
        sizes = (str(part[name]) for name in ("questions", "gold", "predicted"))
        first_cells = [LABELS[key], *sizes]
        for metric in ("weak", "strong"):
            values = part[metric]
            cells = [_number(values["precision"]), _number(values["recall"]), _f1_cell(values)]
            if "f1_interval" in values:
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


def _rows_of(report: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Returns the names and reports of the rows of a table: the sets, or all questions."""
    sets = report.get("sets", ())
    if len(sets) < 2:
        return [("all questions", report)]
    return [(part["name"], part) for part in sets]


def _print_sets(console: rich.console.Console, report: dict[str, Any]) -> None:
    """Prints a row for each set, the mean over them, and all questions together."""
    cut = max(map(int, _recall(report) or ("10",)))
    cut = "10" if cut >= 10 else str(cut)
    table = _table(
        f"Links with a score above {report['threshold']:.3f}",
        *("", "weak\nP", "\nR", "\nF1", "strong\nF1", "gold\nspans", f"\nR@{cut}", "span\nF1"),
    )
    table.caption = (
        "±: half the width of the 95% bootstrap interval; gold spans: accuracy of entities there, "
        "and recall among the candidates; span F1: weak, whatever the entities. Gold outside the "
        "catalogue is a miss."
    )
    for name, part in [*_rows_of(report), ("mean", report["mean"]), ("pooled", report)]:
        if name == "mean":
            table.add_section()
        weak, strong = part["all"]["weak"], part["all"]["strong"]
        accuracy = _recall(part).get("1"), _recall(part).get(cut)
        mentions = part["mention_detection"]["weak"]["f1"]
        cells = (_number(weak["precision"]), _number(weak["recall"]), _f1_cell(weak))
        table.add_row(name, *cells, *map(_number, (strong["f1"], *accuracy, mentions)))
    console.print(table)


def _recall(report: dict[str, Any]) -> dict[str, float]:
    """Returns the recall at the gold spans by number of candidates; {} where it is not known."""
    return report["disambiguation"]["all"]["recall"] if report["disambiguation"] else {}


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _f1_cell(values: dict[str, Any]) -> str:
    cell = _number(values["f1"])
    if interval := values.get("f1_interval"):
        cell += f" ±{(interval[1] - interval[0]) / 2:.3f}"
    return cell


def _print_nil(console: rich.console.Console, report: dict[str, Any]) -> None:
    table = _table(
        "Mentions of something outside the catalogue (NIL)",
        *("", "gold", "predicted", "weak P", "R", "F1", "strong F1"),
    )
    for name, part in _rows_of(report):
        nil = part["nil"]
        scores = (_number(nil["weak"][key]) for key in ("precision", "recall"))
        cells = (*scores, _f1_cell(nil["weak"]), _number(nil["strong"]["f1"]))
        table.add_row(name, str(nil["gold"]), str(nil["predicted"]), *cells)
    console.print(table)


def _print_calibration(console: rich.console.Console, report: dict[str, Any]) -> None:
    columns = ("links", "mean p", "right", "ECE", "by chance", "fixed", "at 50%")
    table = _table("Probabilities of links", "", *columns)
    rows = _rows_of(report)
    for name, part in [*rows, *([("mean", report["mean"])] if len(rows) > 1 else [])]:
        weak = part["calibration"]["weak"]
        values = (weak.get("mean_probability"), weak.get("accuracy"))
        ece = weak["ece"]["equal_mass"], weak.get("ece_by_chance"), weak["ece"]["fixed"]
        half = weak.get("accuracy_at", {}).get("0.5")
        table.add_row(name, str(weak.get("links", "")), *map(_number, (*values, *ece, half)))
    table.caption = (
        f"right: weakly; ECE: expected calibration error in {BINS} bins of equally many links; by "
        "chance: the ECE to expect of this many links if all probabilities were exactly right; "
        f"fixed: ECE in {BINS} fixed bins of equal width; at 50%: share of right links in the more "
        "probable half"
    )
    console.print(table)


def _print_differences(console: rich.console.Console, report: dict[str, Any]) -> None:
    table = _table(
        f"Difference from {report['path']}",
        *("", "match", "F1", "there", "change", "95% interval", "p"),
    )
    rows = [*report["sets"].items()]
    for name, part in [*rows, *([("mean", report["mean"])] if len(rows) > 1 else [])]:
        for metric, values in part.items():
            low, high = values["interval"]
            cells = (_number(values["f1"]), _number(values["other_f1"]))
            cells += (f"{values['difference']:+.3f}", f"{low:+.3f} to {high:+.3f}")
            p_value = values["p_value"]
            cells += (_number(p_value) if p_value >= 0.001 else "<0.001",)
            table.add_row(name if metric == "weak" else "", metric, *cells)
    table.caption = "paired bootstrap: the same questions are drawn for both runs"
    console.print(table)


def _print_perturbations(console: rich.console.Console, report: dict[str, Any]) -> None:
    table = _table(
        "Perturbed questions: what each costs, in points of F1",
        *("", "", "changed", "weak F1", "cost", "strong F1", "cost"),
        folded=2,
    )
    for name, part in report["perturbations"].items():
        rows = [*part["sets"].items()]
        label = name.replace("_", " ")
        for set_name, values in [*rows, *([("mean", part["mean"])] if len(rows) > 1 else [])]:
            cells = [
                text
                for metric in ("weak", "strong")
                for text in (_number(values[metric]["f1"]), f"{values[metric]['cost']:+.1f}")
            ]
            table.add_row(label, set_name, str(values["changed"]), *cells)
            label = ""
        table.add_section()
    table.caption = f"changed: number of questions whose text is another; seed {report['seed']}"
    console.print(table)


def plot_calibration(
    path: str | os.PathLike[str],
    probabilities: np.ndarray,
    right: Mapping[Metric, np.ndarray],
    gold: int,
) -> None:
    """Draws how often links are right by their probability, and by how many of them are kept.

    Args:
      path: path of a PNG.
      probabilities: [n] float, probability of each link.
      right: "weak" and "strong", [n] bool each: whether the link is right.
      gold: number of gold mentions, for the recall of the kept links.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    bins, coverage = figure.subplots(1, 2)
    bins.plot([0, 1], [0, 1], color="0.85", linewidth=0.8)
    for (metric, mask), colour in zip(right.items(), COLOURS, strict=True):
        part, curve = reliability(probabilities, mask), coverage_curve(probabilities, mask)
        label = f"{metric}: ECE {part.error:.3f}"
        means = part.probabilities / part.links, part.correct / part.links
        bins.plot(*means, "o-", color=colour, label=label, markersize=5)
        half = curve.accuracy_at(0.5)
        label = metric if half is None else f"{metric}: {half:.3f} at 50%"
        coverage.plot(curve.coverage(), curve.accuracy(), color=colour, label=label)
        recall = curve.correct / max(gold, 1)
        coverage.plot(curve.coverage(), recall, ":", color=colour, label=f"{metric}, recall")
    bins.set(xlabel="Probability of links (bins of equally many)", ylabel="Share that is right")
    coverage.set(xlabel="Share of the links kept, most probable first", ylabel="Share right")
    for axes in (bins, coverage):
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="best", edgecolor="white", framealpha=1)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)


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
    for metric, colour in zip(("weak", "strong"), COLOURS, strict=True):
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
