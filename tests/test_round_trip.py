"""What link writes is labelled data: it is read back, trained on, and evaluated against itself."""

import json

import jax
import numpy as np
from tiny import tiny_linker_directory

from configs import default
from elq_jax import EntityLinker
from elq_jax.evaluation.predict import predict
from elq_jax.linking.rows import link_file
from elq_jax.model.bundle import Model
from elq_jax.questions.read import read_questions
from elq_jax.questions.rows import Row
from elq_jax.training import loop

WORDS = ("obama", "cote", "paris", "ohio", "café", "dune")


def test_links_train_and_evaluate_the_linker(tmp_path):
    (tmp_path / "first").mkdir()
    folder = tiny_linker_directory(tmp_path / "first", threshold=-6.0)
    linker = EntityLinker.from_pretrained(folder, devices=jax.devices()[:1])
    texts = [f"who is {one} in {two}" for one in WORDS for two in WORDS]
    links = tmp_path / "links.jsonl"
    rows = [Row(number, text) for number, text in enumerate(texts)]
    link_file(linker, rows, links, {}, batch_size=64)

    questions, report = read_questions(links, linker.catalogue)
    found = linker(texts)
    assert [[(m.start, m.end, m.row) for m in question.mentions] for question in questions] == [
        [(link.start, link.end, link.row) for link in linked] for linked in found
    ]
    assert report.counts == {"row": sum(map(len, found))}
    assert report.mentions > len(texts) / 2

    scores = predict(linker, questions, linker.settings.threshold).report(linker.settings.threshold)
    assert scores["all"]["gold"] == report.mentions
    assert scores["all"]["weak"]["f1"] == scores["all"]["strong"]["f1"] == 1

    config = default.get_config()
    config.init_from = config.catalogue = str(folder)
    config.train_files = config.dev_files = (str(links),)
    config.stages, config.num_devices = ("joint",), 1
    config.joint.batch_size, config.joint.num_steps, config.joint.warmup_fraction = 32, 1, 0.0
    trained = loop.train_and_evaluate(config, tmp_path / "run")
    before, after = (Model.open(path).params["question"] for path in (folder, trained))
    changed = jax.tree.map(lambda one, two: float(np.abs(one - two).max()), before, after)
    assert max(jax.tree.leaves(changed)) > 0
    [step] = [
        row
        for row in map(json.loads, (tmp_path / "run/joint/metrics.jsonl").read_text().splitlines())
        if "loss" in row
    ]
    assert step["step"] == 1
    assert np.isfinite(step["linking_loss"])
    assert step["linking_loss"] > 0
