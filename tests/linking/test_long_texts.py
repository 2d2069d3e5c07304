"""Texts of any length, against reading their windows one by one."""

import itertools
import warnings

import jax
import numpy as np
import pytest
from tiny import tiny_linker_directory

from elq_jax import EntityLinker
from elq_jax.linking.scoring import Search
from elq_jax.text.tokenization import EncodedQuestion
from elq_jax.text.windows import text_windows

WORDS = (
    *("who", "wrote", "the", "amazonian", "song", "of", "lisztomania", "in", "ohio", "and"),
    *("dune", ".", "paris", "texas"),
)
LONGEST = 24


@pytest.fixture(scope="module")
def linkers(tmp_path_factory):
    """The linker, with and without the setting `long_texts`."""
    folder = tiny_linker_directory(
        tmp_path_factory.mktemp("linker"), threshold=-9.0, max_question_tokens=LONGEST
    )
    cutting = EntityLinker.from_pretrained(folder, devices=jax.devices()[:1])
    return cutting.with_settings(long_texts=True), cutting


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, size)) for size in (90, 3, 41, 7)]


def test_spans_are_those_of_the_windows(linkers, texts):
    """Each window as a question of its own; of its spans, those that no other window owns."""
    linker, cutting = linkers
    linker = linker.with_settings(max_mentions=1000)
    encoded = linker.encode(texts)
    overlap = linker.config.max_mention_width - 1
    lengths = [len(question.ids) for question in encoded]
    windows = text_windows(lengths, [q.sentences for q in encoded], LONGEST, overlap)
    assert len(windows) > len(texts) + 3
    expected = []
    for window in windows:
        question = encoded[window.text]
        part = slice(window.start, window.stop)
        ids = [question.ids[0], *question.ids[part], question.ids[-1]]
        words = [-1, *question.words[part], -1]
        piece = EncodedQuestion(np.array(ids, np.int32), None, np.array(words), None)
        search = Search.of([piece], linker.settings, linker.tokenizer.unk_id)
        # A word that is cut by the window is no whole word there.
        if question.words[window.stop] == question.words[window.stop - 1]:
            search.roles[0][-2] &= 255 - 4
        if question.words[window.start] == question.words[window.start - 1]:
            search.roles[0][1] &= 255 - 2
        [(found, _)] = cutting.scorer([piece], LONGEST, 1, search)
        for bounds, logit in zip(found.bounds + window.start - 1, found.logits, strict=True):
            if window.low < sum(bounds) <= window.high:
                expected.append((window.text, *bounds.tolist(), float(logit)))
    scored = linker.score_batch(texts)
    rows = zip(scored.question.tolist(), *scored.bounds.T.tolist(), strict=True)
    assert [*rows] == sorted(row[:3] for row in expected)
    logits = {row[:3]: row[3] for row in expected}
    rows = zip(scored.question.tolist(), *scored.bounds.T.tolist(), strict=True)
    np.testing.assert_allclose(scored.logits, [logits[row] for row in rows], atol=2e-5)


def facts(links):
    """What does not depend on how windows are put in batches."""
    return [
        [(link.start, link.end, link.row, round(link.score, 3)) for link in own] for own in links
    ]


def test_a_text_is_linked_to_its_end(linkers, texts):
    linker, cutting = linkers
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        links = linker(texts)
        assert facts(linker.pipe(texts, batch_size=2)) == facts(links)
    assert facts(map(linker, texts)) == facts(links)
    for text, own in zip(texts, links, strict=True):
        assert all(text[link.start : link.end] == link.mention for link in own)
        assert all(a.end <= b.start for a, b in itertools.pairwise(own))
    assert links[0][-1].start > len(texts[0]) - 60
    with pytest.warns(UserWarning, match="only the first"):
        cut = cutting(texts)
    assert facts(cut)[1::2] == facts(links)[1::2]


def test_known_mentions_of_a_long_text(linkers, texts):
    linker, _ = linkers
    links = linker(texts)
    spans = [[(link.start, link.end) for link in own] for own in links]
    order = np.random.default_rng(1).permutation(len(spans[0]))
    spans[0] = [spans[0][i] for i in order]
    known = linker.disambiguate(texts, spans)
    assert [[(link.start, link.end) for link in own] for own in known] == spans
    rows = {(link.start, link.end): link.row for link in links[0]}
    assert [link.row for link in known[0]] == [rows[span] for span in spans[0]]
