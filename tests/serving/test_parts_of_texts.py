"""Texts that are linked in parts, against the linking of each part alone."""

import itertools

import jax
import pytest
from tiny import tiny_linker_directory

from elq_jax import EntityLinker
from elq_jax.serving.long_texts import link_mentions, link_parts, parts_of

SENTENCES = ["Who is Obama?", "Paris, in Ohio: a playwright's hometown!", "Was it 2011?"]
LONG = "obama and paris in ohio speak in 2011 of unquestionably many more playwrights " * 3


@pytest.fixture(scope="module")
def linker(tmp_path_factory):
    folder = tiny_linker_directory(
        tmp_path_factory.mktemp("linker"), threshold=-9.0, max_question_tokens=16
    )
    return EntityLinker.from_pretrained(folder, devices=jax.devices()[:1])


def sentences_of(text):
    starts = [text.index(sentence) for sentence in SENTENCES]
    return [(start, start + len(part)) for start, part in zip(starts, SENTENCES, strict=True)]


def test_a_text_that_fits_is_one_part(linker):
    for text in ("", "who is obama", " \n", SENTENCES[0]):
        assert parts_of(linker, text) == [(0, len(text))]
        assert link_parts(linker, [text], [[(0, len(text))]]) == [linker(text)]


def test_links_of_sentences_are_those_of_each_alone(linker):
    text = "  ".join(SENTENCES)
    sentences = sentences_of(text)
    assert parts_of(linker, text, sentences) == sentences
    assert len(parts_of(linker, text)) == 3
    texts = [text, "who is obama"]
    links, short = link_parts(linker, texts, [sentences, [(0, 12)]], batch_size=2)
    expected = [
        (link.start + start, link.end + start, link.row)
        for sentence, (start, _) in zip(SENTENCES, sentences, strict=True)
        for link in linker(sentence)
    ]
    assert len(expected) > 2
    assert [(link.start, link.end, link.row) for link in links] == expected
    assert all(text[link.start : link.end] == link.mention for link in links)
    assert [link.row for link in short] == [link.row for link in linker(texts[1])]


def test_a_long_sentence_is_read_to_its_end(linker):
    text = f"{SENTENCES[0]} {LONG}"
    parts = parts_of(linker, text, [(0, 13), (14, len(text))])
    assert len(parts) > 4
    assert parts[0] == (0, 13)
    assert "".join(text[start:end] for start, end in parts[1:]) == LONG
    assert all(e.truncated_at is None for e in linker.encode([text[a:b] for a, b in parts]))
    [links] = link_parts(linker, [text], [parts])
    assert links[-1].end > len(text) - 20
    assert all(link.end <= after.start for link, after in itertools.pairwise(links))


def test_mentions_in_long_texts_and_inside_tokens(linker):
    inside, name = LONG.rindex("unquestionably") + 2, LONG.index("more play", 90)
    mentions = [(inside, inside + 4), (name, name + 16), (0, len(LONG)), (5, 6)]
    parts = parts_of(linker, LONG, mentions=mentions[:2])
    [[part, whole, too_long, blank]] = link_mentions(linker, [LONG], [parts], [mentions])
    assert (too_long, blank) == (None, None)
    assert (part.start, part.end, part.mention) == (*mentions[0], LONG[inside : inside + 4])
    [(start, end)] = [(a, b) for a, b in parts if a <= name < b]
    assert name + 16 <= end
    [alone] = linker.disambiguate(LONG[start:end], [(name - start, name + 16 - start)])
    assert (whole.start, whole.end, whole.row) == (*mentions[1], alone.row)
    assert link_mentions(linker, [], [], []) == []
    assert link_mentions(linker, ["x"], [[(0, 1)]], [[]]) == [[]]
