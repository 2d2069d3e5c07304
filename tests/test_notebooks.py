"""The notebooks, run top to bottom on a CPU with a small encoder; and what is saved in them."""

import base64
import json
import os
import pathlib
import re

import nbclient
import nbformat
import numpy as np
import pytest
from conftest import xla_flags
from tiny import write_tiny_bert

from elq_jax import EntityLinker
from elq_jax.evaluation.predict import predict
from elq_jax.questions.read import read_questions
from elq_jax.storage.lines import read_jsonl

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code(notebook):
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def images(cell):
    return [base64.b64decode(o.data["image/png"]) for o in cell.outputs if "image/png" in o.data]


def tables(cell):
    return [o.data["text/markdown"].splitlines() for o in cell.outputs]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a notebook in a folder of its own: (name, devices) -> cells by id, folder."""
    bert = tmp_path_factory.mktemp("bert")
    write_tiny_bert(bert, layers=1, dropout=0.0)

    def execute(name, num_devices):
        folder = tmp_path_factory.mktemp(name)
        environment = os.environ | {
            "ENCODER": str(bert),
            "STEPS": "4",
            "WORKDIR": str(folder / "run"),
            "REPOSITORY": "/nowhere",
            "ELQ_JAX_CACHE": "",
            "IPYTHONDIR": str(folder / "ipython"),
            "XLA_FLAGS": xla_flags(num_devices),
        }
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        # From the folder that a person opens it in.
        resources = {"metadata": {"path": str(ROOT / "notebooks")}}
        client = nbclient.NotebookClient(
            notebook, timeout=900, startup_timeout=300, resources=resources
        )
        client.execute(env=environment)
        return code(notebook), folder / "run"

    return execute


def test_quickstart(run):
    cells, folder = run("quickstart_tpu", num_devices=2)
    assert cells["devices"].outputs[0].data["text/plain"].count("Cpu") == 2
    assert not cells["install"].outputs
    for name in ("curves", "curve"):
        assert [image[:8] for image in images(cells[name])] == [b"\x89PNG\r\n\x1a\n"]

    linker = EntityLinker.from_pretrained(folder / "linker")
    report = json.loads((folder / "evaluation.json").read_text())
    questions, _ = read_questions(ROOT / "demo" / "dev.jsonl", linker.catalogue)
    assert report["all"]["questions"] == len(questions)
    counts = predict(linker, questions, -8.0).counts(linker.settings.threshold)
    assert counts.predicted > 0
    assert report["all"]["predicted"] == pytest.approx(counts.predicted, abs=2)  # Rounding.
    for match in ("weak", "strong"):
        f1 = report["all"][match]["f1"]
        assert 0 <= f1 <= 1
        assert f1 == pytest.approx(getattr(counts, f"{match}_f1"), abs=0.01)
        assert f"{f1:.3f}" in "".join(output.text for output in cells["evaluate"].outputs)

    asked = (ROOT / "demo" / "new_questions.txt").read_text().splitlines()
    [table] = tables(cells["link"])
    links = linker(asked)
    assert len(table) == 2 + sum(max(1, len(found)) for found in links)
    for found in links:
        for link in found:
            assert any(f"| {link.mention} | {link.title} |" in row for row in table)


def test_own_catalogue(run):
    cells, folder = run("own_catalogue", num_devices=1)
    titles = [row["title"] for _, row in read_jsonl(folder / "catalogue.jsonl")]
    labelled = [row for _, row in read_jsonl(folder / "train.jsonl")]
    assert len(labelled) > 30
    for row in labelled:
        assert "[" not in row["text"]
        assert set(row["title"]) <= set(titles)
        assert len(row["title"]) == len(row["mentions"])
        for (start, end), title in zip(row["mentions"], row["title"], strict=True):
            name = re.sub(r" \(.*", "", title)
            assert row["text"][start:end].lower() == name.lower()

    linker = EntityLinker.from_pretrained(folder / "linker")
    assert linker.settings.threshold == -2.0
    assert linker.index.name == "scann"
    assert linker.catalogue.titles(range(len(titles))) == titles
    [link, *_] = linker("who drove the heron?", threshold=-50.0)
    assert link.title in titles

    report = json.loads((folder / "results" / "report.json").read_text())
    assert report["all"]["questions"] == len(list(read_jsonl(folder / "test.jsonl")))
    assert report["threshold_from"] == "--tune"
    for match in ("weak", "strong"):
        assert 0 <= report["all"][match]["f1"] <= 1
    # A lower threshold only adds links.
    low, high = (len(tables(cells[f"threshold-{name}"])[0]) for name in ("low", "high"))
    assert low >= high
    width, height = np.frombuffer(images(cells["curve"])[0][16:24], ">u4")
    assert width > 300
    assert height > 300


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_saved_notebooks_are_valid_and_were_run_from_top_to_bottom_or_not_at_all(path):
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    cells = list(code(notebook).values())
    outputs = [output for cell in cells for output in cell.outputs]
    if not outputs:
        assert not any(cell.execution_count for cell in cells)
        return
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert len(outputs) > 5
    assert not [output for output in outputs if output.output_type == "error"]
    shown = [output.get("data", {"text": output.get("text")}) for output in outputs]
    text = json.dumps([{k: v for k, v in one.items() if k != "image/png"} for one in shown])
    assert not re.findall(r"(?i)/(?:home|root|tmp|work|usr)\b|warning|traceback|\\u001b", text)


def test_there_are_two_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["own_catalogue", "quickstart_tpu"]
