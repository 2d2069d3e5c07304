"""benchmarks/long_text.py: sizes, the square grid against a loop, and mentions moved over seams."""

import jax
import numpy as np
import pytest
from tiny import tiny_linker_directory

from benchmarks import long_text
from elq_jax import EntityLinker
from elq_jax.questions.records import Mention, Question

TEXTS = ["who is obama, of paris in ohio? ", "dune is a novel by herbert. obama has read it."]


@pytest.fixture(scope="module")
def linker(tmp_path_factory):
    folder = tiny_linker_directory(
        tmp_path_factory.mktemp("linker"), threshold=-9.0, max_question_tokens=24
    )
    return EntityLinker.from_pretrained(folder, devices=jax.devices()[:1])


def test_texts_have_the_number_of_tokens(linker):
    for tokens in (1, 7, 8, 100):
        text = long_text.text_of(linker, TEXTS, tokens)
        assert len(linker.encode([text])[0].ids) == tokens + 2
        assert TEXTS[0].startswith(text[:30])


def test_the_table(linker, capsys):
    cost = long_text.cost_of(linker, long_text.text_of(linker, TEXTS, 200), 200)
    assert cost.links > 20
    long_text.print_costs([cost, cost._replace(tokens=20_000)], 10)
    head, small, large = capsys.readouterr().out.splitlines()
    assert len(head.split()) > 11
    assert small.split()[:2] == ["200", str(cost.links)]
    assert large.split()[-1] == "-"  # 1.5 GiB


def test_the_square_has_the_scores_of_spans():
    start, end, inside = np.random.default_rng(0).normal(size=(3, 9)).astype(np.float32)
    scores = np.asarray(long_text.square_scores(start, end, inside, 4))
    for i in range(9):
        for j in range(9):
            expected = start[i] + end[j] + inside[i : j + 1].sum() if i <= j < i + 4 else -np.inf
            assert scores[i, j] == pytest.approx(expected, abs=1e-5)


def test_mentions_are_moved_over_every_place_of_a_window(linker):
    text = "who wrote about obama and of whom was it?"
    question = Question("7", text, (Mention(16, 21, 3),))
    cases, changed = long_text.seams(linker, [question], 5, 4)
    assert cases == 5
    before = [(link.start, link.end, link.title) for link in linker(text) if link.start == 16]
    for case in changed:
        assert (case.question, case.mention, case.before) == ("7", "obama", before)
        links = linker("so " * case.words + "\n" + text)
        offset = 3 * case.words + 1
        found = [(link.start - offset, link.end - offset, link.title) for link in links]
        assert case.after == [link for link in found if link[0] < 21 and link[1] > 16]
        assert case.after != before
