"""Windows over long texts, against a slow choice of the window of every span."""

import numpy as np
import pytest

from elq_jax.text.windows import sentence_starts, text_parts, text_windows


@pytest.mark.parametrize("seed", range(20))
def test_every_span_is_scored_where_its_shorter_context_is_longest(seed):
    rng = np.random.default_rng(seed)
    longest, overlap = int(rng.integers(6, 30)), int(rng.integers(1, 9))
    lengths = [int(n) for n in (*rng.integers(2, 150, 5), longest, longest + 1)]
    breaks = [np.flatnonzero(rng.random(n) < rng.choice([0.0, 0.1, 0.5])) + 2 for n in lengths]
    windows = text_windows(lengths, breaks, longest, overlap)
    shared = min(overlap, (longest - 3) // 2)
    for text, length in enumerate(lengths):
        own = [window for window in windows if window.text == text]
        assert (own[0].start, own[-1].stop) == (1, length - 1)
        assert all(window.stop - window.start <= longest - 2 for window in own)
        assert (len(own) == 1) == (length <= longest)
        for i in range(1, length - 1):
            for j in range(i, min(i + shared + 1, length - 1)):
                whole = [w for w in own if w.start <= i and j < w.stop]
                best = max(whole, key=lambda w: min(i - w.start, w.stop - 1 - j))
                [scored] = [w for w in own if w.low < i + j <= w.high]
                assert scored in whole
                contexts = [min(i - w.start, w.stop - 1 - j) for w in (scored, best)]
                assert contexts[0] == contexts[1]


def test_windows_end_with_sentences_where_there_are_some():
    windows = text_windows([40], [np.array([14, 27])], 18, 2)
    assert [(window.start, window.stop) for window in windows] == [(1, 14), (12, 27), (25, 39)]
    windows = text_windows([40], [np.zeros(0, int)], 18, 2)
    assert [(window.start, window.stop) for window in windows] == [(1, 17), (15, 31), (29, 39)]


def test_sentence_starts():
    text = "Dune. By Herbert!  A novel\nof 1965 (U.S.) "
    words = ["Dune", ".", "By", "Herbert", "!", "A", "novel", "of", "1965", "(", "U", ".", "S"]
    offsets, place = [(0, 0)], 0
    for word in words:
        place = text.index(word, place)
        offsets.append((place, place + len(word)))
    offsets = np.array([*offsets, (0, 0)])
    assert [words[n - 1] for n in sentence_starts(text, offsets)] == ["By", "A", "of"]
    assert sentence_starts("", np.zeros((2, 2), int)).tolist() == []


@pytest.mark.parametrize("seed", range(20))
def test_every_link_counts_in_the_part_where_its_shorter_context_is_longest(seed):
    rng = np.random.default_rng(seed)
    letters = rng.choice(
        [*"ab .\n", "。"], int(rng.integers(0, 400)), p=[0.4, 0.3, 0.2, 0.04, 0.03, 0.03]
    )
    text, longest, overlap = "".join(letters), int(rng.integers(20, 60)), 4
    parts = text_parts(text, longest, overlap)
    assert (parts[0].start, parts[-1].stop) == (0, len(text))
    assert (len(parts) == 1) == (len(text) <= longest)
    for i in range(len(text)):
        for j in range(i + 1, min(i + overlap, len(text)) + 1):
            whole = [part for part in parts if part.start <= i and j <= part.stop]
            [counting] = [part for part in parts if part.low < i + j <= part.high]
            assert counting in whole
            contexts = [min(i - part.start, part.stop - j) for part in whole]
            assert min(i - counting.start, counting.stop - j) == max(contexts)
    for part in parts[:-1]:
        within = text[part.start + longest // 2 + 1 : part.start + longest]
        ends = [".", "\n", "。", "\n"]
        assert part.stop - part.start <= longest
        if "\n" in within[:-1]:
            assert text[: part.stop].rstrip(" ")[-1:] in ends
        elif " " in within[:-1]:
            assert text[part.stop - 1] in " \n。"


def test_text_parts():
    text = "Who is it? " + "a" * 30 + " b c d"
    assert [text[part.start : part.stop] for part in text_parts(text, 20, 3)] == [
        "Who is it? ",
        "it? aaaaaaaaaaaaaaaa",
        "aaaaaaaaaaaaaaaaa b ",
        " b c d",
    ]
    assert [part.start for part in text_parts("", 20)] == [0]
