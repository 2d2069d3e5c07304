"""Noise in questions: offsets against a text in which every character carries its own mark."""

import unicodedata

import numpy as np
import pytest

from elq_jax.core.errors import ElqError
from elq_jax.questions import noise

NOISES = (
    noise.upper_case,
    noise.lower_case,
    noise.drop_question_mark,
    noise.drop_apostrophes,
    noise.glue_emoji,
    noise.glue_symbols,
    noise.typo,
)
TEXT = "who's the Straße's o'neil in men's ´ world ??"


def random_edits(rng, size, spans):
    """Edits apart from one another that no border of a span lies inside of."""
    edits, place = [], 0
    while place <= size:
        start = place + int(rng.integers(0, 3))
        end = start + int(rng.integers(0, 3))
        inside = any(start < border < end for span in spans for border in span)
        if end <= size and not inside and (not edits or start > edits[-1][1] or end > start):
            edits.append((start, end, "xyz"[: rng.integers(0, 4)]))
        place = end + 1
    return edits


def random_spans(rng, size):
    spans = [sorted(rng.choice(size + 1, 2, replace=False).tolist()) for _ in range(4)]
    return [tuple(span) for span in spans]


def slow_edits(text, spans, edits):
    """A list of (character, place it comes from); a replacement is of the places it replaces."""
    pieces, place = [], 0
    for start, end, replacement in edits:
        pieces += [(text[i], i) for i in range(place, start)]
        pieces += [(c, start if start < end else None) for c in replacement]
        place = end
    pieces += [(text[i], i) for i in range(place, len(text))]
    new = "".join(c for c, _ in pieces)
    inserted = [i for i, (_, origin) in enumerate(pieces) if origin is None]
    for start, end in spans:
        inside = [i for i, (_, o) in enumerate(pieces) if o is not None and start <= o < end]
        if inside:  # Else everything in the span was dropped.
            assert set(range(inside[0], inside[-1] + 1)) <= {*inside, *inserted}
        yield new, (inside[0], inside[-1] + 1) if inside else None


def test_edits_equal_marked_characters():
    rng = np.random.default_rng(0)
    checked = 0
    for _ in range(500):
        text = "".join(rng.choice(list("abcdefgh "), 12))
        spans = random_spans(rng, len(text))
        edits = random_edits(rng, len(text), spans)
        new, moved = noise.apply_edits(text, spans, edits)
        for span, (wanted, where) in zip(moved, slow_edits(text, spans, edits), strict=True):
            assert new == wanted
            if where is not None:
                checked += 1
                # Insertions inside of a span that end beside dropped characters belong to it.
                assert span[0] <= where[0]
                assert span[1] >= where[1]
                outside = new[span[0] : where[0]] + new[where[1] : span[1]]
                assert set(outside) <= set("xyz")
            else:
                assert set(new[slice(*span)]) <= set("xyz")
    assert checked > 1000


def test_insertions_at_borders_stay_outside():
    assert noise.apply_edits("ab cd", [(3, 5)], [(1, 1, "x"), (3, 4, "C!")]) == (
        "axb C!d",
        [(4, 7)],
    )
    edits = [(1, 1, "<"), (2, 2, "|"), (3, 3, ">")]
    assert noise.apply_edits("abcd", [(1, 2), (2, 3), (1, 3)], edits) == (
        "a<b|c>d",
        [(2, 3), (4, 5), (2, 5)],
    )


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([(1, 3, "x")], r"edit \[1, 3\): a span begins or ends inside of it, 2"),
        ([(0, 2, ""), (1, 3, "")], r"edit \[1, 3\): it overlaps the edit before"),
    ],
)
def test_edits_that_cannot_be_applied(edits, message):
    with pytest.raises(ElqError, match=message):
        noise.apply_edits("abcd", [(2, 4)], edits)


@pytest.mark.parametrize("change", NOISES)
def test_spans_stay_exact(change):
    """A span quotes what it quoted, changed alone; spans keep their order, and none is empty."""
    rng = np.random.default_rng(1)
    for seed in range(200):
        spans = [tuple(span) for span in random_spans(rng, len(TEXT))]
        new, moved = change(TEXT, spans, np.random.default_rng(seed))
        assert (new, moved) == change(TEXT, spans, np.random.default_rng(seed))
        assert noise.apply_edits(TEXT, spans, []) == (TEXT, spans)
        for (start, end), (new_start, new_end) in zip(spans, moved, strict=True):
            assert new_start < new_end
            old_parts = TEXT[:start], TEXT[start:end], TEXT[end:]
            new_parts = new[:new_start], new[new_start:new_end], new[new_end:]
            changed = [a != b for a, b in zip(old_parts, new_parts, strict=True)]
            if change is noise.typo:
                assert changed.count(True) <= 1
            elif change in (noise.upper_case, noise.lower_case):
                convert = str.upper if change is noise.upper_case else str.lower
                assert new_parts == tuple(map(convert, old_parts))
            elif change is noise.drop_apostrophes:
                assert [p.replace("'", "").replace("´", "") for p in old_parts] == [
                    p.replace("'", "").replace("´", "") for p in new_parts
                ]
            elif change is noise.drop_question_mark:
                assert new in (TEXT, TEXT[:-3])
                assert [p.rstrip(" ?") for p in old_parts] == [p.rstrip(" ?") for p in new_parts]
            else:
                assert [letters(p) for p in old_parts] == [letters(p) for p in new_parts]


def letters(text):
    """The text without what may be glued to it."""
    for sign in (*noise.EMOJI, *noise.SYMBOLS):
        text = text.replace(sign, "")
    return text


def test_examples():
    rng = np.random.default_rng(0)
    text = "Who's wrote Dune ?"
    assert noise.drop_question_mark(text, [(12, 16)], rng) == ("Who's wrote Dune", [(12, 16)])
    assert noise.drop_question_mark("dune", [(0, 4)], rng) == ("dune", [(0, 4)])
    assert noise.drop_question_mark("who is ?", [(7, 8)], rng) == ("who is ?", [(7, 8)])
    assert noise.drop_question_mark("who is ? ", [], rng) == ("who is ", [])
    assert noise.drop_apostrophes(text, [(12, 16)], rng) == ("Whos wrote Dune ?", [(11, 15)])
    assert noise.drop_apostrophes("what is ' for?", [(8, 9)], rng) == ("what is ' for?", [(8, 9)])
    assert noise.upper_case("die straße?", [(4, 10)], rng) == ("DIE STRASSE?", [(4, 11)])
    for change, signs in ((noise.glue_emoji, noise.EMOJI), (noise.glue_symbols, noise.SYMBOLS)):
        assert change(text, [(12, 16)], rng)[0] in {f"Who's wrote Dune{s} ?" for s in signs}
        assert change("who is it?", [], rng)[0] in {f"who is it{s}?" for s in signs}
        assert change("?!", [], rng) == ("?!", [])


def test_a_typo_is_one_edit():
    """Against the definition of the distance of Damerau; all kinds and all long words occur."""
    text, kinds, places = "who is Barack obama at it", set(), set()
    for seed in range(400):
        new, [(start, end)] = noise.typo(text, [(7, 19)], np.random.default_rng(seed))
        assert (start, text[:7], text[19:]) == (7, new[:7], new[end:])  # Only long words here.
        kinds.add(len(new) - len(text) if sorted(new) != sorted(text) else "exchanged")
        place = next(i for i in range(len(text)) if new[i : i + 1] != text[i])
        places.add(place)
        distance_one = (
            {text[:i] + text[i + 1 :] for i in range(len(text))}
            | {text[:i] + c + text[i:] for i in range(len(text)) for c in set(text)}
            | {text[:i] + text[i : i + 2][::-1] + text[i + 2 :] for i in range(len(text))}
            | {
                text[:i] + c + text[i + 1 :]
                for i in range(len(text))
                for c in "abcdefghijklmnopqrstuvwxyz"
            }
        )
        assert new in distance_one - {text}
    assert kinds == {-1, 0, 1, "exchanged"}
    assert places == {*range(8, 14), *range(15, 20)}  # 14 and 19: the last letter was doubled
    assert noise.typo("who is it at", [], np.random.default_rng(0)) == ("who is it at", [])


def test_symbols_are_symbols():
    assert {unicodedata.category(sign[0])[0] for sign in (*noise.EMOJI, *noise.SYMBOLS)} == {"S"}
