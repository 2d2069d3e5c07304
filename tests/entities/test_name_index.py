"""The index of names against a dict, words against sets, hashes against a loop; damaged files."""

import json
import re
import unicodedata

import numpy as np
import pyarrow as pa
import pytest

from elq_jax.core.errors import ElqError
from elq_jax.entities.build import build_catalogue
from elq_jax.entities.catalogue import Catalogue
from elq_jax.entities.name_index import KINDS, JoinedNames, NameIndex, hash_strings, words_of
from elq_jax.entities.names import normal_names

ENTITIES = [
    ("Dune (novel)", ["Dune", "The Dune Book", "dune"]),
    ("Dune", []),
    ("DUNE (film)", ["Dune"]),
    ("E.T. the Extra-Terrestrial", ["ET", "E. T."]),
    ("Frédéric Joliot-Curie", ["Joliot‐Curie"]),
    ("Łódź", ["Lodz", "Промышленный Лодзь"]),
    ("The Beatles", ["Beatles", "Fab Four"]),
    ("A", []),
    ("The", ["the the"]),
    ("!!!", ["chk chk chk"]),
    ("C++", ["C plus plus"]),
    ("Simon & Garfunkel", ["simon and garfunkel"]),
    ("Duran Duran", []),
    ("東京 (都市)", ["Tōkyō", "\uff34okyo"]),
    ("Straße", ["STRASSE"]),
    ("हिन्दी", ["Hindi"]),
    ("(500) Days of Summer", []),
    ("x (y) (z)", ["", "😀"]),
    ("雷神（電影）", ["ソー"]),
    ("القاهرة", ["القاهِرة", "القـاهرة", "أحمد"]),
    ("ایران (کشور)", ["ירושלים"]),
]
QUERIES = [
    *(title for title, _ in ENTITIES),
    *(alias for _, aliases in ENTITIES for alias in aliases),
    *("the dune", "fabfour", "e.t.", "tokyo", "nothing", "", " ", "\ud800", "x (y)", "!!", "an a"),
    *("雷神", "القَاهِرَةُ", "احمد", "إيران", "ايران", "יְרוּשָׁלַיִם"),
]


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    folder = tmp_path_factory.mktemp("names")
    lines = [{"title": t, "text": "", "aliases": aliases} for t, aliases in ENTITIES]
    source = folder / "entities.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    build_catalogue(source, folder / "catalogue.arrow")
    return Catalogue.open(folder / "catalogue.arrow")


@pytest.fixture(scope="module")
def index(catalogue):
    return NameIndex.build(catalogue)


def slow_normal(name):
    """`normal_names`, a character at a time."""
    plain = {"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "đ": "d", "ð": "d", "þ": "th", "ł": "l"}
    plain |= {"ħ": "h", "ı": "i", "ς": "σ", "&": " and ", "ی": "ي", "ى": "ي", "ک": "ك"}
    letters = []
    for character in unicodedata.normalize("NFKD", name):
        for lower in character.lower():
            script = unicodedata.name(lower, "").split()[:1]
            is_point = unicodedata.category(lower) == "Mn" and script in (["HEBREW"], ["ARABIC"])
            if not (is_point or 0x300 <= ord(lower) <= 0x36F or lower == "\u0640"):
                letters.append(plain.get(lower, lower))
    text = "".join(letters)
    kept = [c if unicodedata.category(c)[0] in "LNM" or c in "+#" else " " for c in text]
    words = "".join(kept).split() or [text.strip()]
    return " ".join(words[1:] if words[0] in ("the", "a", "an") and words[1:] else words)


def slow_key(name):
    return slow_normal(name).replace(" ", "")


def slow_name(title):
    name = re.sub(r"^(.*\S)\s+\([^()]+\)$", r"\1", title)
    return "雷神" if name == "雷神（電影）" else name


def test_names_are_normalised_as_by_a_loop_over_characters():
    names = [name for name in QUERIES if name != "\ud800"]
    names += ["½ & Æther", "O’Brien's", "ΟΔΥΣΣΕΎΣ", "한국", "a\u00a0b\u2003c", "The  A", "Ａ１"]
    assert normal_names(pa.array(names)).to_pylist() == [slow_normal(name) for name in names]
    # Names of ASCII characters alone have a way of their own.
    for ascii_names in (
        [name for name in names if name.isascii()],
        ["".join(map(chr, row)) for row in np.random.default_rng(0).integers(1, 128, (300, 6))],
        [f"{chr(i)}the {chr(i)}" for i in range(1, 128)],
        [],
    ):
        found = normal_names(pa.array(ascii_names, pa.string())).to_pylist()
        beside = normal_names(pa.array([*ascii_names, "é"])).to_pylist()
        assert [*found, "e"] == beside
        assert found[:20] == [slow_normal(name) for name in ascii_names[:20]]
    # Writing a normal name again changes nothing but a second article.
    for name in ("Beyoncé Knowles", "E.T. the Extra-Terrestrial", "C++"):
        [once] = normal_names(pa.array([name])).to_pylist()
        assert normal_names(pa.array([once])).to_pylist() == [once]


def test_hashes_are_those_of_a_loop_over_bytes():
    def slow_hash(text):
        power, value = 1, 0
        for byte in text.encode():
            power = power * 0x9E3779B97F4A7C15 % 2**64
            value = (value + (byte + 1) * power) % 2**64
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            value = (value ^ value >> shift) * factor % 2**64
        return value ^ value >> 31

    texts = ["", "a", "b", "ab", "ba", "東京", "", "x" * 300, ""]
    expected = [slow_hash(text) for text in texts]
    assert hash_strings(pa.array(texts)).tolist() == expected
    assert hash_strings(pa.array(["left out", *texts]).slice(1, 4)).tolist() == expected[:4]
    assert len(set(expected)) == 7
    assert hash_strings(pa.array([], pa.string())).shape == (0,)


def test_entities_are_found_as_in_a_dict(index):
    names = {}
    for row, (title, aliases) in enumerate(ENTITIES):
        known = [(title, 0), *((alias, 2) for alias in aliases)]
        if slow_name(title) != title:
            known.append((slow_name(title), 1))
        for name, kind in known:
            names.setdefault(slow_key(name), []).append((kind, row))
    found = index.find(QUERIES)
    assert found.texts.tolist() == sorted(found.texts)
    total = 0
    for number, query in enumerate(QUERIES):
        expected = sorted(names.get(slow_key(query.replace("\ud800", "\ufffd")), []))
        best = {}
        for kind, row in expected:
            best.setdefault(row, kind)
        own = found.texts == number
        assert dict(zip(found.rows[own], found.kinds[own], strict=True)) == best
        assert [(kind, row) for row, kind in best.items()] == sorted(
            zip(found.kinds[own], found.rows[own], strict=True)
        )
        assert set(found.counts[own]) <= {len(expected)}
        total += len(best)
    assert total == len(found.rows) > len(QUERIES)
    assert len(index.find([]).rows) == 0


def test_the_best_kinds_are_read_first(index):
    assert KINDS == ("title", "name", "alias")
    found = index.find(["dune"], limit=2)
    assert (found.rows.tolist(), found.kinds.tolist()) == ([1, 0], [0, 1])
    assert found.counts.tolist() == [6, 6]  # titles, names and aliases of three entities


def test_words_are_those_of_sets(index):
    rows = np.array([12, 0, 3, 0, 17, 9])
    title_words = index.title_words(rows)
    expected = [set(slow_normal(slow_name(ENTITIES[row][0])).split()) for row in rows]
    assert np.bincount(title_words.owners, minlength=6).tolist() == [len(s) for s in expected]
    texts = ["duran", "the dune of dune", "et terrestrial E. EXTRA", "", "x", "!!! duran"]
    given = words_of(pa.array(texts))
    shared = [
        len(
            set(title_words.words[title_words.owners == i].tolist())
            & set(given.words[given.owners == i].tolist())
        )
        for i in range(6)
    ]
    assert shared == [
        len(words & set(slow_normal(text).split()))
        for words, text in zip(expected, texts, strict=True)
    ]
    assert index.alias_counts(rows).tolist() == [len(ENTITIES[row][1]) for row in rows]
    assert index.are_qualified(rows).tolist() == [
        slow_name(ENTITIES[r][0]) != ENTITIES[r][0] for r in rows
    ]


def test_a_saved_index_is_the_same(index, catalogue, tmp_path):
    index.save(tmp_path / "names")
    index.save(tmp_path / "names")  # an older one is replaced
    opened = NameIndex.open(tmp_path / "names", catalogue.fingerprint)
    assert len(opened) == len(index) == len(ENTITIES)
    for one, other in zip(opened.find(QUERIES), index.find(QUERIES), strict=True):
        np.testing.assert_array_equal(one, other)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ElqError, match="exists and is not an index of names"):
        index.save(tmp_path / "other")


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("keys.npy", lambda b: b[:-1] + bytes([b[-1] ^ 1]), "SHA-256"),
        ("rows.npy", lambda b: b[:100], "rows.npy: missing or damaged"),
        ("words.npy", lambda b: None, "words.npy: missing or damaged"),
        ("names.json", lambda b: None, "names.json is missing"),
        ("names.json", lambda b: b.replace(b'"rows": 21', b'"rows": 22'), "starts.npy: found"),
        ("names.json", lambda b: b.replace(b'"names": ', b'"names": -'), "names.json"),
        ("names.json", lambda b: b.replace(b'_version": 1', b'_version": 2'), "version 2"),
        ("names.json", lambda b: b"{}", "version None"),
    ],
)
def test_damaged_files_are_refused(index, tmp_path, name, damage, message):
    index.save(tmp_path / "names")
    path = tmp_path / "names" / name
    content = damage(path.read_bytes())
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ElqError, match=message):
        NameIndex.open(tmp_path / "names")


def test_names_of_another_catalogue_are_refused(index, tmp_path):
    index.save(tmp_path / "names")
    with pytest.raises(ElqError, match="names of another catalogue"):
        NameIndex.open(tmp_path / "names", "0" * 64)


@pytest.mark.parametrize("seed", range(5))
def test_names_of_a_joined_catalogue(tmp_path, seed):
    """They are those of a catalogue of the living rows, with few names of many entities each."""
    random = np.random.default_rng(seed)
    names = ["Dune", "Dune (novel)", "Dune (film)", "The Amazon", "amazon", "Paris", "E.T.", "ET"]
    rows = [
        {
            "title": random.choice(names).item(),
            "text": "",
            "aliases": random.choice(names, 2).tolist(),
        }
        for _ in range(40)
    ]
    deleted = random.random(40) < 0.4
    deleted[0] = False

    def made(lines):
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
        build_catalogue(tmp_path / "a.jsonl", tmp_path / "a.arrow")
        return NameIndex.build(Catalogue.open(tmp_path / "a.arrow"))

    parts = [made(rows[:20]), made(rows[20:21]), made(rows[21:])]
    joined = JoinedNames(parts, "fingerprint", deleted)
    living = np.flatnonzero(~deleted)
    expected = made([rows[row] for row in living])
    texts = ["dune", "amazon", "nothing", "the amazon", "et", "Paris"]
    for limit in (3, 32):
        found, wanted = joined.find(texts, limit), expected.find(texts, limit)
        np.testing.assert_array_equal(found.texts, wanted.texts)
        np.testing.assert_array_equal(found.rows, living[wanted.rows])
        np.testing.assert_array_equal(found.kinds, wanted.kinds)
        np.testing.assert_array_equal(found.counts, wanted.counts)
    mixed = random.permutation(len(living))
    np.testing.assert_array_equal(joined.alias_counts(living[mixed]), expected.alias_counts(mixed))
    np.testing.assert_array_equal(
        joined.are_qualified(living[mixed]), expected.are_qualified(mixed)
    )
    for words, other in zip(
        joined.title_words(living[mixed]), expected.title_words(mixed), strict=True
    ):
        np.testing.assert_array_equal(words, other)
    assert len(joined.find([]).rows) == len(joined.title_words(np.zeros(0, int)).words) == 0
