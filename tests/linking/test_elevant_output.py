"""Links as lines of ELEVANT's format simple-jsonl."""

import json
from urllib.parse import unquote

import pytest

from elq_jax.linking.elevant import is_named_by_title, reference, to_line
from elq_jax.linking.links import Candidate, Link
from elq_jax.linking.rows import LINES, Linked, Tally
from elq_jax.questions.rows import Row

DUNE = Candidate(17, "Dune (novel)", "Q190192", -0.1)
BAND = Candidate(5, "AC/DC", None, -0.9)


def link(start, end, *candidates):
    best = candidates[0] if candidates else Candidate(None, None, None, 0.0)
    entity = best.title, best.wikidata_id, best.row
    return Link(start, end, "x" * (end - start), *entity, -0.1, -0.1, candidates)


def test_a_line_of_predictions():
    linked = Linked(Row(7, "dune by 😀 ac/dc"), [link(0, 4, DUNE, BAND), link(10, 15, BAND)])
    line = to_line(linked)
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {
        "id": 7,
        "text": "dune by 😀 ac/dc",
        "predictions": [
            {
                "entity_reference": "Q190192",
                "start_char": 0,
                "end_char": 4,
                "candidates": ["Q190192", "http://en.wikipedia.org/wiki/AC%2FDC"],
            },
            {
                "entity_reference": "http://en.wikipedia.org/wiki/AC%2FDC",
                "start_char": 10,
                "end_char": 15,
                "candidates": ["http://en.wikipedia.org/wiki/AC%2FDC"],
            },
        ],
    }
    assert line == json.dumps(json.loads(line), ensure_ascii=False).encode() + b"\n"


@pytest.mark.parametrize("title", ["AC/DC", "Q5", "Émile Zola", "50% off?", "a&b#c", "C++", "😀"])
def test_the_title_can_be_taken_from_the_address(title):
    """ELEVANT takes what follows the last slash, and decodes it if there was one."""
    address = reference(Candidate(1, title, None, 0.0))
    assert "wikipedia.org/" in address
    assert unquote(address.rsplit("/", 1)[1]).replace("_", " ") == title


def test_other_references():
    assert reference(Candidate(1, "x", "http://www.wikidata.org/entity/Q7", 0.0)) == "Q7"
    nil = link(0, 3)
    assert reference(nil) is None
    assert [is_named_by_title(x) for x in (nil, link(0, 4, DUNE), link(0, 4, BAND))] == [
        False, False, True
    ]  # fmt: skip


def test_a_row_that_cannot_be_used_keeps_its_place():
    linked = Linked(Row("d", error="f.jsonl:3: missing"))
    assert json.loads(to_line(linked)) == {
        "id": "d", "error": "f.jsonl:3: missing", "predictions": []
    }  # fmt: skip


def test_links_by_title_are_counted():
    linked = [Linked(Row(1, "x" * 9), [link(0, 4, DUNE), link(5, 9, BAND)])]
    for names_by_title, expected in ((True, "1 links to entities without"), (False, "")):
        tally = Tally(names_by_title=names_by_title)
        tally.add([linked[0].row], linked)
        assert expected in tally.summary()
    assert ("without" in tally.summary()) is False
    assert set(LINES) == {"json", "simple-jsonl"}
    assert json.loads(LINES["json"](linked[0]))["links"][1]["title"] == "AC/DC"
