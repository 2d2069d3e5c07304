"""The division of questions by whether training has seen their entities."""

import json

import pytest

from benchmarks import seen_entities
from elq_jax.core.errors import ElqError
from elq_jax.entities.build import build_catalogue
from elq_jax.entities.catalogue import Catalogue


def test_questions_are_divided_by_their_entities(tmp_path):
    def write(name, lines):
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return tmp_path / name

    source = write("entities.jsonl", [{"title": title, "text": title} for title in "ABC"])
    build_catalogue(source, tmp_path / "catalogue.arrow")
    catalogue = Catalogue.open(tmp_path / "catalogue.arrow")

    def question(*titles):
        return {
            "text": " ".join(titles),
            "mentions": [[2 * i, 2 * i + 1] for i in range(len(titles))],
            "title": [*titles],
        }

    train = write("train.jsonl", [question("A"), question("A", "B")])
    dev = write("dev.jsonl", [question("C"), question("B"), question("A", "C")])
    counts = seen_entities.divide(catalogue, [train], [dev], tmp_path / "parts")
    assert counts == {"dev_seen.jsonl": 1, "dev_unseen.jsonl": 2}
    lines = dev.read_text().splitlines(keepends=True)
    assert (tmp_path / "parts" / "dev_seen.jsonl").read_text() == lines[1]
    assert (tmp_path / "parts" / "dev_unseen.jsonl").read_text() == lines[0] + lines[2]
    with pytest.raises(ElqError, match="parts: exists; give another folder"):
        seen_entities.divide(catalogue, [train], [dev], tmp_path / "parts")
