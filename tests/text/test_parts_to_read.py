"""Parts of long texts that the encoder reads."""

import random
import re

import pytest

from elq_jax.text.windows import parts_to_read, sentences_of


def reader(characters):
    return lambda text: characters if len(text) > characters else None


def words_reader(words):
    """Reads a number of words, as an encoder does; a word begins at its first letter."""

    def read(text):
        starts = [match.start() for match in re.finditer(r"\S+", text)]
        return starts[words] if len(starts) > words else None

    return read


@pytest.mark.parametrize(
    ("text", "read", "expected"),
    [
        ("", reader(8), []),
        ("Dune. By Herbert.", reader(17), ["Dune. By Herbert."]),
        ("Dune. By Herbert.", reader(8), ["Dune. ", "By ", "Herbert."]),
        ("One two. Three four! Five", words_reader(3), ["One two. ", "Three four! Five"]),
        ("a b\nc d e f", words_reader(3), ["a b\n", "c d e ", "f"]),
        ('He said "no." Then left.', words_reader(4), ['He said "no." ', "Then left."]),
        ("abcdefgh", reader(3), ["abc", "def", "gh"]),
        ("     x", reader(2), ["  ", "  ", " x"]),
    ],
)
def test_where_a_text_is_cut(text, read, expected):
    assert [text[a:b] for a, b in parts_to_read(text, read, longest=100)] == expected


def test_a_mention_is_whole():
    text = "See St. Louis and New York City now"
    whole = [(4, 13), (18, 31)]
    parts = parts_to_read(text, words_reader(5), longest=100, whole=whole)
    assert [text[a:b] for a, b in parts] == ["See St. Louis and ", "New York City now"]
    # One that is longer than what is read is cut where it would be without it.
    parts = parts_to_read(text, words_reader(2), longest=100, whole=[(4, 35)])
    assert [text[a:b] for a, b in parts][:3] == ["See ", "St. ", "Louis and "]


def test_random_texts_are_covered_by_parts_that_are_read_to_their_ends():
    generator = random.Random(1)
    for _ in range(300):
        text = "".join(generator.choices("ab .\n!", k=generator.randrange(60)))
        count, longest = generator.randrange(1, 5), generator.randrange(1, 30)
        spans = [sorted(generator.sample(range(61), 2)) for _ in range(3)]
        whole = [(a, b) for a, b in spans if b <= len(text)]
        read = words_reader(count)
        parts = parts_to_read(text, read, longest=longest, whole=whole)
        assert "".join(text[a:b] for a, b in parts) == text
        for a, b in parts:
            assert 0 < b - a <= longest
            assert read(text[a:b]) is None
            # Only where every break is inside of a mention that fits, a mention is cut.
            end = a + (read(text[a : a + longest]) or longest)
            own = [span for span in whole if a < span[0] < end or (span[0] == a and span[1] <= end)]
            if cuts(b, own) and b < len(text):
                breaks = [a + match.end() for match in re.finditer(r"\s+", text[a:b])]
                breaks += [first for first, last in own if a < first < b < last]
                assert all(cuts(place, own) for place in breaks)


def cuts(place, whole):
    return any(first < place < last for first, last in whole)


def test_the_work_is_linear_in_the_text():
    seen = []

    def read(text):
        seen.append(len(text))
        return words_reader(50)(text)

    text = "word and word. " * 4000
    parts = parts_to_read(text, read, longest=500)
    assert sum(seen) < 4 * len(text)
    assert len(parts) == len(seen)


@pytest.mark.parametrize(
    ("text", "whole", "expected"),
    [
        ("", [], []),
        ("Who is it? Ada.", [], ["Who is it? ", "Ada."]),
        ('A "b." C!\n\nD e.g', [], ['A "b." ', "C!\n\n", "D e.g"]),
        ("In St. Louis. Yes", [(3, 12)], ["In St. Louis. ", "Yes"]),
    ],
)
def test_sentences(text, whole, expected):
    assert [text[a:b] for a, b in sentences_of(text, whole)] == expected
