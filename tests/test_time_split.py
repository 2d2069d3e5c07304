"""What `benchmarks.time_split` writes, against a choice by hand."""

import json

import pytest
from tiny import tiny_linker_directory

from benchmarks import time_split
from elq_jax.core.errors import ElqError
from elq_jax.entities.segments import open_segments


def test_later_entities_and_what_mentions_them_are_taken_out(tmp_path):
    tiny_linker_directory(tmp_path, entities=40)
    linker = tmp_path / "linker"
    entities = list(time_split.CatalogueEditor(linker).entities())
    later = [time_split.is_later(entity["id"], 0.5) for entity in entities]
    assert 10 < sum(later) < 30
    gone, other = entities[later.index(True)]["title"], entities[later.index(False)]["title"]

    def line(*titles):
        mentions = [[2 * i, 2 * i + 1] for i in range(len(titles))]
        return json.dumps({"text": "a b", "mentions": mentions, "title": titles}) + "\n"

    lines = [line(other), line(other, gone), line("nobody"), line(gone)]
    (tmp_path / "train.jsonl").write_text("".join(lines))
    (tmp_path / "dev.jsonl").write_text("".join(lines))
    output = tmp_path / "split"
    arguments = linker, [tmp_path / "train.jsonl"], [tmp_path / "dev.jsonl"], 0.5, output
    time_split.split(*arguments)

    assert (output / "train" / "train.jsonl").read_text() == lines[0] + lines[2]
    assert (output / "other" / "dev.jsonl").read_text() == lines[0] + lines[2]
    assert (output / "later" / "dev.jsonl").read_text() == lines[1] + lines[3]
    rows = (output / "later.jsonl").read_text().splitlines()
    written = [json.loads(row)["id"] for row in rows]
    assert written == [e["id"] for e, is_later in zip(entities, later, strict=True) if is_later]
    living = open_segments(output / "linker", (), None).catalogue
    assert living.rows_of_ids(written)[1].tolist() == []
    assert len(open_segments(linker, (), None).catalogue.rows_of_ids(written)[1]) == len(written)
    with pytest.raises(ElqError, match="split: exists; give another folder"):
        time_split.split(*arguments)
