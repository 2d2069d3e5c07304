"""Prints what `evaluate` found in several runs as one table of Markdown, for docs/quality.md.

    python -m benchmarks.quality runs/webqsp/evaluation runs/neutral/evaluation

takes folders that `evaluate --output` wrote for the same sets of questions. Each is a row: weak F1,
strong F1 and accuracy at the gold spans of each set, their means over the sets, and means of the
expected calibration error (equal mass) and of the accuracy at 50% coverage.
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from elq_jax.core.errors import ElqError


def table(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Makes a table of Markdown with a row for each report.

    Args:
      reports: contents of report.json, by the name of the run.

    Raises:
      ElqError: two reports are of other sets of questions.
    """
    rows: list[Sequence[str]] = []
    for name, report in reports.items():
        sets = [part["name"] for part in report["sets"]]
        header = ["run", *sets, "mean", "ECE", "at 50%"]
        if rows and header != rows[0]:
            raise ElqError(
                f"{name}: its sets are {', '.join(sets)}; expected {', '.join(rows[0][1:-3])}, as "
                "in the first folder; evaluate both on the same --questions"
            )
        rows = rows or [header, ["---"] * len(header)]
        calibration = report["mean"]["calibration"]["weak"]
        accuracy = calibration.get("accuracy_at", {}).get("0.5")
        cells = [_scores(part) for part in [*report["sets"], report["mean"]]]
        cells += [f"{calibration['ece']['equal_mass']:.3f}"]
        cells += ["" if accuracy is None else f"{accuracy:.3f}"]
        rows.append([name, *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _scores(part: Mapping[str, Any]) -> str:
    """Returns weak F1 / strong F1 / accuracy at the gold spans."""
    values = [part["all"][metric]["f1"] for metric in ("weak", "strong")]
    if part["disambiguation"]:
        values.append(part["disambiguation"]["all"]["accuracy"])
    return " / ".join(f"{value:.3f}" for value in values)


def main(folders: Sequence[str]) -> None:
    """Prints the table of the folders."""
    if not folders:
        sys.exit("error: expected folders that evaluate --output wrote")
    reports = {}
    for folder in folders:
        path = pathlib.Path(folder) / "report.json"
        if not path.is_file():
            sys.exit(f"error: {path}: no such file; expected a folder that evaluate --output wrote")
        reports[folder] = json.loads(path.read_text(encoding="utf-8"))
        if "sets" not in reports[folder]:
            sys.exit(f"error: {path}: it has no sets; evaluate the linker again with --output")
    try:
        print(table(reports))
    except ElqError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
