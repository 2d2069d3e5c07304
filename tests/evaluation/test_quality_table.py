"""The table of runs that docs/quality.md shows."""

import json

import pytest

from benchmarks import quality
from elq_jax.core.errors import ElqError
from elq_jax.evaluation.comparison import report_of_sets
from elq_jax.evaluation.matching import Gold, Predicted, QuestionResult
from elq_jax.evaluation.scores import Evaluation


def report(*shares):
    """Two sets of ten questions, of which a share is right."""
    sets = {}
    for name, share in zip("ab", shares, strict=True):
        results = [
            QuestionResult(
                str(i), "dune", (Gold(0, 4, 1),), (Predicted(0, 4, 1 + (i >= share), -0.7),), ([1],)
            )
            for i in range(10)
        ]
        sets[name] = Evaluation(results)
    return report_of_sets(sets, -1.0, resamples=0)


def test_rows_are_the_reports(tmp_path, capsys):
    for name, shares in (("one", (5, 10)), ("two", (8, 4))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(report(*shares)))
    quality.main([str(tmp_path / "one"), str(tmp_path / "two")])
    header, line, one, two = capsys.readouterr().out.splitlines()
    assert header == "| run | a | b | mean | ECE | at 50% |"
    assert line.count("---") == 6
    cells = "0.500 / 0.500 / 1.000 | 1.000 / 1.000 / 1.000 | 0.750 / 0.750 / 1.000"
    # exp(-0.7) is 0.497, so the errors are 0.003 and 0.503.
    assert one == f"| {tmp_path / 'one'} | {cells} | 0.253 | 0.750 |"
    assert "| 0.600 / 0.600 / 1.000 |" in two


def test_other_sets_are_refused(tmp_path):
    reports = {"one": report(5, 5), "two": report(5, 5)}
    reports["two"]["sets"] = reports["two"]["sets"][:1]
    with pytest.raises(ElqError, match=r"two: its sets are a; expected a, b"):
        quality.table(reports)
    with pytest.raises(SystemExit, match=r"report\.json: no such file"):
        quality.main([str(tmp_path)])
