"""Benchmark files of ELEVANT as labelled questions."""

import json
import re

import pytest

from elq_jax.core.errors import DataError
from elq_jax.questions.read import read_questions

TEXT = "Ada, Countess of Lovelace, and Babbage met in 1833. She wrote to Zaphod of Kopernik."


def span(part):
    start = TEXT.index(part)
    return [start, start + len(part)]


def label(number, part, entity="Q7259", **others):
    values = {"id": number, "span": span(part), "entity_id": entity, "name": part, "type": "Q5"}
    return values | others


LABELS = [
    label(0, "Ada, Countess of Lovelace", children=[1, 2], coref=False),
    label(1, "Ada", parent=0),
    label(2, "Countess of Lovelace", parent=0, children=[3]),
    label(3, "Lovelace", parent=2),
    label(4, "Babbage", "Q46633"),
    label(5, "1833", "DATETIME", type="DATETIME"),
    label(6, "She", coref=True),
    label(7, "Zaphod of Kopernik", desc=True, children=[8, 9]),
    label(8, "Zaphod", "<NIL>", name="Unknown", parent=7),
    label(9, "Kopernik", "Q619", parent=7, optional=True),
]


@pytest.fixture
def read(tmp_path):
    def read(labels=LABELS, catalogue=None, on_error="stop", **row):
        path = tmp_path / "benchmark.jsonl"
        path.write_text(json.dumps({"id": 12, "text": TEXT, "title": "x", "labels": labels} | row))
        questions, report = read_questions(path, catalogue, on_error)
        return questions[0], report

    return read


def quoted(question):
    return [TEXT[m.start : m.end] for m in question.mentions]


def test_gold_and_neutral_spans(read):
    question, report = read()
    assert quoted(question) == ["Ada, Countess of Lovelace", "Babbage", "Zaphod"]
    assert [TEXT[a:b] for a, b in question.neutral] == [
        "Ada", "Countess of Lovelace", "Lovelace", "1833", "She", "Zaphod of Kopernik", "Kopernik"
    ]  # fmt: skip
    assert [m.wikidata_id for m in question.mentions] == ["Q7259", "Q46633", None]
    assert question.mentions[2].row == -1
    assert report.left_out == {"nested": 3, "optional": 3, "coreference": 1}
    assert report.counts["out_of_catalogue"] == 1
    assert "7 labels are no gold mentions: nested 3, optional 3, coreference 1" in report.summary()
    assert question.id == "12"


def test_what_is_outside_of_the_evaluation_span_is_neutral(read):
    start, end = span("Babbage met in 1833")
    question, report = read(evaluation_span=[start, end])
    assert quoted(question) == ["Babbage"]
    assert set(question.neutral) == {tuple(span("1833")), (0, start), (end, len(TEXT))}
    assert question.evaluation_span == (start, end)
    assert report.left_out == {"outside the evaluation span": 8, "optional": 1}
    question, _ = read(evaluation_span=[0, len(TEXT)])
    assert (0, 0) not in question.neutral
    assert len(question.neutral) == 7


def test_an_unknown_name_is_not_looked_up(read):
    """Labels of unknown entities all have the name "Unknown", which may be a title."""

    class Catalogue:
        def find(self, values, normalised=False):
            raise AssertionError(values)

        find_titles = find_wikidata_ids = find_ids = find

        def are_living(self, rows):
            return [True] * len(rows)

        def titles(self, rows):
            return [""] * len(rows)

        ids = titles

        def __len__(self):
            return 1

    for entity in ("<NIL>", "<NO_MAPPING>", "Unknown3", "", "NIL"):
        question, _ = read([label(0, "Zaphod", entity, name="Unknown")], Catalogue())
        assert question.mentions[0].row == -1


def test_other_lines_may_have_labels_too(tmp_path):
    path = tmp_path / "questions.jsonl"
    row = {"text": TEXT, "mentions": [span("Ada")], "row": [3], "labels": ["spam"]}
    path.write_text(json.dumps(row | {"evaluation_span": [0, 3]}))
    [question], _ = read_questions(path)
    assert [m.row for m in question.mentions] == [3]
    assert question.neutral == ((3, len(TEXT)),)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"labels": [{"span": [0, 3]}]}, "field 'labels[0].entity_id': missing"),
        ({"labels": [label(0, "Ada", span=[0, 300])]}, "labels[0] = [0, 300) is out of range"),
        ({"labels": [label(0, "Ada", span=[0])]}, "field 'labels[0].span'"),
        ({"labels": [label(0, "Ada", parent=5)]}, "label 0: its parent 5 is not there"),
        ({"labels": [label(0, "Ada", parent=0, coref=None)]}, "or is nested in it"),
        ({"labels": [label(0, "Ada"), label(1, "Ada, Count")]}, "labels that are gold: [0, 3) and"),
        ({"labels": 3}, "field 'labels': found 3"),
        ({"evaluation_span": [3, 1]}, "evaluation_span = [3, 1): the text has"),
        ({"evaluation_span": [0, 3000]}, "evaluation_span = [0, 3000): the text has"),
        ({"evaluation_span": [0]}, "field 'evaluation_span': found '[0]', expected [start, end)"),
    ],
)
def test_lines_that_cannot_be_used(read, changes, expected):
    with pytest.raises(DataError, match=re.escape(expected)) as error:
        read(**changes)
    assert ":1: " in str(error.value)
