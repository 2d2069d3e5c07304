"""The index of words against a Counter over strings; spellings against a textbook distance."""

import collections
import itertools
import json
import unicodedata

import numpy as np
import pytest

from elq_jax.core.errors import ElqError
from elq_jax.entities import word_index
from elq_jax.entities.build import build_catalogue
from elq_jax.entities.catalogue import Catalogue
from elq_jax.entities.spellings import spelled, spellings
from elq_jax.entities.word_index import NAME_WEIGHT, Counts, WordIndex, word_keys

ENTITIES = [
    ("Dune (novel)", ["Dune, the Novel", "dune"], "A novel of 1965 by Frank Herbert. A novel!"),
    ("Frank Herbert", ["Herbert", "Frank P. Herbert"], "Frank Herbert wrote Dune."),
    ("Łódź", ["Lodz", "Промышленный Лодзь"], "Łódź is a city (pop. 700,000)."),
    ("Beyoncé Knowles-Carter", [], ""),
    ("C++", [], "C++ is a language; 7even isn't."),
    ("हिन्दी", [], ""),
]


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    lines = [{"title": t, "text": text, "aliases": aliases} for t, aliases, text in ENTITIES]
    source = folder / "entities.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    build_catalogue(source, folder / "catalogue.arrow")
    return Catalogue.open(folder / "catalogue.arrow")


@pytest.fixture(scope="module")
def words(catalogue):
    return WordIndex.build(catalogue)


def slow_words(text):
    """Words of a text, a character at a time; a leading "the" or "a" is none, as in names."""
    letters = [c for c in unicodedata.normalize("NFKD", text) if not 0x300 <= ord(c) <= 0x36F]
    letters = ["l" if c in "łŁ" else c.lower() for c in letters]
    kept = [c if unicodedata.category(c)[0] in "LM" else " " for c in letters]
    found = "".join(kept).split()
    return found[1:] if found[:1] and found[0] in ("the", "a", "an") and found[1:] else found


def test_counts_are_those_of_a_loop(words):
    expected = collections.Counter()
    for title, aliases, text in ENTITIES:
        for name in [title, *aliases]:
            own = slow_words(name)
            for word in own:
                expected[word] += NAME_WEIGHT
            expected.update(f"{a} {b}" for a, b in itertools.pairwise(own))
        expected.update(slow_words(text))
    assert {"frank herbert", "knowles carter", "lodz", "промышленныи лодзь"} <= set(expected)
    asked = [*expected, "herbert frank", "arrakis", "", "dune novel dune"]
    counts = words.counts(word_keys(asked))
    assert counts.tolist() == [expected[word] for word in asked]
    assert len(words) == len(expected)
    assert words.total == sum(len(slow_words(text)) for *_, text in ENTITIES)


def test_parts_are_merged(words, catalogue, monkeypatch):
    monkeypatch.setattr(word_index, "_MERGED_AT", 3)
    again = WordIndex.build(catalogue)
    for array, other in zip(words.counts, again.counts, strict=True):
        np.testing.assert_array_equal(array, other)


@pytest.mark.parametrize("size", [0, 1, 7, 1000])
def test_counts_of_many_keys_are_those_of_a_dict(size):
    rng = np.random.default_rng(size)
    hashes = rng.integers(2**64, size=size, dtype=np.uint64).tolist()
    known = {key: count for count, key in enumerate(hashes, 1)}
    keys = np.array(sorted(known), np.uint64)
    counts = Counts.of(keys, np.array([known[key] for key in sorted(known)], np.uint32))
    near = [key ^ 1 << bit for key in known for bit in (0, 20, 50, 63)]
    asked = np.array([0, 2**64 - 1, *known, *near], np.uint64)
    assert counts(asked).tolist() == [known.get(key, 0) for key in asked.tolist()]
    assert counts(asked[:0]).tolist() == []
    others = rng.integers(2**64, size=4000, dtype=np.uint64)
    places = others >> np.uint64(64 - 3 - int(np.log2(len(counts.bits))))
    passed = counts.bits[places >> np.uint64(3)] >> (places & np.uint64(7)).astype(np.uint8) & 1
    assert passed.mean() < 1 / 12


def test_the_alphabet_holds_letters_of_many_words(tmp_path):
    names = ["".join(letters) for letters in itertools.product("abcdeяжшщы", repeat=3)]
    lines = [{"title": name, "text": ""} for name in [*names, "東京"]]
    (tmp_path / "entities.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    build_catalogue(tmp_path / "entities.jsonl", tmp_path / "catalogue.arrow")
    words = WordIndex.build(Catalogue.open(tmp_path / "catalogue.arrow"))
    assert words.alphabet == "abcdeжшщыя"


def distance(a, b):
    """Damerau-Levenshtein (optimal string alignment), as in textbooks."""
    table = {(i, -1): i + 1 for i in range(-1, len(a))}
    table |= {(-1, j): j + 1 for j in range(-1, len(b))}
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            steps = [table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (x != y)]
            if i and j and x == b[j - 1] and a[i - 1] == y:
                steps.append(table[i - 2, j - 2] + 1)
            table[i, j] = min(steps)
    return table[len(a) - 1, len(b) - 1]


@pytest.mark.parametrize("words", [["aba", "語é語"], ["abé語", "語baé"], ["bb"]])
def test_spellings_are_all_words_of_distance_1(words):
    alphabet = "abé語"
    ways = spellings(np.array([[*map(alphabet.index, word)] for word in words]), alphabet)
    for word, keys in zip(words, ways.keys, strict=True):
        columns = zip(ways.edits.tolist(), ways.places.tolist(), ways.letters.tolist(), strict=True)
        written = [spelled(word, edit, place, alphabet[letter]) for edit, place, letter in columns]
        np.testing.assert_array_equal(keys, word_keys(written))
        sizes = range(1, len(word) + 2)
        every = {"".join(w) for size in sizes for w in itertools.product(alphabet, repeat=size)}
        near = {other for other in every if other[0] == word[0] and distance(word, other) <= 1}
        assert set(written) == near


def test_files(words, catalogue, tmp_path):
    words.save(tmp_path / "words")
    opened = WordIndex.open(tmp_path / "words", catalogue.fingerprint)
    assert (opened.total, opened.alphabet) == (words.total, words.alphabet)
    assert opened.folder == tmp_path / "words"
    keys = word_keys(["dune", "frank herbert", "no"])
    assert opened.counts(keys).tolist() == words.counts(keys).tolist()
    with pytest.raises(ElqError, match="words of another catalogue"):
        WordIndex.open(tmp_path / "words", "0" * 64)
    path = tmp_path / "words" / "counts.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ElqError, match="damaged"):
        WordIndex.open(tmp_path / "words")
    path.write_bytes(content[:-8])
    with pytest.raises(ElqError, match=r"WordIndex\.build"):
        WordIndex.open(tmp_path / "words")
    (tmp_path / "words" / "words.json").unlink()
    with pytest.raises(ElqError, match=r"words\.json is missing"):
        WordIndex.open(tmp_path / "words")
