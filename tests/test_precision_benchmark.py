"""benchmarks/precision.py, and the work of benchmarks/cpu.py on questions, with a tiny linker."""

import numpy as np
import pytest
from serving_tools import QUESTIONS
from tiny import tiny_linker_directory

from benchmarks import cpu, precision
from elq_jax.evaluation.sets import QuestionSet
from elq_jax.linking.linker import EntityLinker
from elq_jax.questions.records import Mention, Question


@pytest.fixture(scope="module")
def linkers(tmp_path_factory):
    folder = tiny_linker_directory(tmp_path_factory.mktemp("linker"), threshold=-30.0)
    return [
        EntityLinker.from_pretrained(folder, index="exact", dtype=dtype)
        for dtype in precision.DTYPES
    ]


def test_what_changes(linkers):
    questions = [
        Question("a", QUESTIONS[0], (Mention(10, 14, 0),)),
        Question("b", QUESTIONS[2], (Mention(9, 24, 1), Mention(25, 29, 2))),
    ]
    links = [
        {(i, link.start, link.end, link.row) for i in (0, 1) for link in linker(questions[i].text)}
        for linker in linkers
    ]
    both = precision.compare(linkers, QuestionSet("set", questions, ()))
    assert both.links == len(links[0]) > 0
    assert both.changed == max(len(links[0] - links[1]), len(links[1] - links[0]))
    assert both.cosines.shape == (3,)
    assert 0.99 < both.cosines.min() < both.cosines.max() < 1
    # One against itself, with gold that is what it finds.
    found = [
        Question(
            str(i), question.text, tuple(Mention(s, e, row) for j, s, e, row in links[0] if i == j)
        )
        for i, question in enumerate(questions)
    ]
    same = precision.compare(linkers[:1] * 2, QuestionSet("set", found, ()))
    assert (same.changed, same.weak, same.strong) == (0, (1, 1), (1, 1))
    np.testing.assert_allclose(same.cosines, 1, atol=1e-6)


def test_encoding_of_questions(linkers, monkeypatch):
    monkeypatch.setattr(cpu, "_has", lambda package: False)
    work = cpu.real_texts(linkers[0], QUESTIONS)
    assert (work.count, list(work.ways)) == (len(QUESTIONS), list(precision.DTYPES))
    rows = cpu.measure(work, 1, cpu.product((8, 8, 8)))
    assert all(row.rate == pytest.approx(len(QUESTIONS) / row.seconds) for row in rows)
