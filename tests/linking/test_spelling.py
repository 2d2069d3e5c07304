"""Corrected questions: which words, against loops over strings, and what links make of them."""

import collections
import itertools
import json
import math
import shutil

import jax
import numpy as np
import pytest
from tiny import tiny_linker_directory

from elq_jax import EntityLinker, LinkingSettings
from elq_jax.core.errors import ElqError
from elq_jax.entities.build import build_catalogue
from elq_jax.entities.catalogue import Catalogue
from elq_jax.entities.word_index import NAME_WEIGHT, WordIndex
from elq_jax.linking import directory, spelling
from elq_jax.linking.candidates import _texts_of
from elq_jax.linking.spelling import Speller
from elq_jax.questions.noise import NEIGHBOURS, typo
from elq_jax.questions.words import FUNCTION_WORDS
from elq_jax.text.corrections import Correction, corrected, glued_symbols, original_offsets
from elq_jax.text.tokenization import Tokenizer

NAMES = {
    "Napoleon Bonaparte": 40,
    "Kurt Vonnegut": 30,
    "Honduras": 60,
    "Tegucigalpa": 50,
    "Zoroaster": 12,
    "Zoroastre": 1,
    "Kvothe": 3,
    "New York City": 90,
    "Xanthippe Xenophon": 2,
    "Gandalf": 25,
}
ALPHABET = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spelling")
    lines = [{"title": name, "text": f"{name} is. " * n} for name, n in NAMES.items()]
    (folder / "entities.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    build_catalogue(folder / "entities.jsonl", folder / "catalogue.arrow")
    index = WordIndex.build(Catalogue.open(folder / "catalogue.arrow"))
    return WordIndex(index.counts, index.total, ALPHABET, index.catalogue_fingerprint)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_pretrained("minilm")


@pytest.fixture(scope="module")
def speller(words, tokenizer):
    return Speller(words, tokenizer)


def read(speller, text):
    [corrections] = speller([text])
    return corrected(text, corrections)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("where is hondurras?", "where is honduras?"),
        ("where is hoduras?", "where is honduras?"),
        ("where is hindurss?", "where is hindurss?"),  # two slips
        ("who was napoleon bonapatre", "who was napoleon bonaparte"),
        ("who was NAPOLEON BONAPATRE", "who was NAPOLEON BONAPARTE"),
        ("WHO WAS NAPOLEON BONAPATRE", "WHO WAS NAPOLEON BONAPARTE"),
        ("Tegucgialpa, where's that?", "Tegucigalpa, where's that?"),
        ("whcih books did kurt vonnegutt wriet?", "which books did kurt vonnegut wriet?"),
        ("what is teh capital of new yrok", "what is teh capital of new york"),
        ("hondurás and hondurra\u0301s", "hondurás and honduras"),
        ("", ""),
        ("\ud800 hondurras \ud800", "\ud800 honduras \ud800"),
        ("7hondurras hondurras_x", "7hondurras hondurras_x"),
    ],
)
def test_misspelt_words_are_read_as_they_were_meant(speller, text, expected):
    if text.startswith("who was NAPOLEON"):
        expected = text  # One word in capitals may be an acronym.
    assert read(speller, text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "who are gandalfs friends and wheres kvothes",  # apostrophes left out
        "ive seen it, theyre gone, didnt you",
        "the NHODURAS act of HONDURRAS",
        "zoroastre",  # is a name itself
        "who is gendalf",  # no usual slip, and not sure enough
        "honduran hondurans",
        "xenaphon",  # no usual slip
        "кто написал dune",
    ],
)
def test_other_words_stay(speller, text):
    assert read(speller, text) == text


def near(a, b):
    """Whether one slip makes a word of another one, by trying all slips on the pair."""
    if a == b or abs(len(a) - len(b)) > 1:
        return None
    for i in range(1, max(len(a), len(b))):
        if a[:i] + a[i + 1 :] == b:
            return "extra", i
        if a == b[:i] + b[i + 1 :]:
            return "left out", i
        if a[:i] + a[i + 1 : i + 2] + a[i : i + 1] + a[i + 2 :] == b:
            return "swapped", i
        if len(a) == len(b) and a[:i] + b[i] + a[i + 1 :] == b:
            return "replaced", i
    return None


def is_usual(written, meant, slip, i):
    """What `_are_usual` says, from strings; of a slip whose place is not unique, its first one."""
    if slip == "extra":
        return written[i] in (written[i - 1], written[i + 1 : i + 2])
    if slip == "left out":
        return meant not in (f"{written}s", f"{written}d")
    is_form = meant[:-1] == written[:-1] and {written[-1], meant[-1]} == {"s", "d"}
    return slip == "swapped" or (meant[i] in NEIGHBOURS[written[i]] and not is_form)


def slow_reading(text, expected):
    """The reading of a text of small letters and single blanks.

    Args:
      text: the text.
      expected: how often words of the vocabulary are expected.
    """
    counts = collections.Counter()
    for name, n in NAMES.items():
        own = name.lower().split()
        for word in own:
            counts[word] += NAME_WEIGHT + n
        counts.update(f"{a} {b}" for a, b in itertools.pairwise(own))
        counts["is"] += n
    total = sum(n * (1 + len(name.split())) for name, n in NAMES.items())
    scale = math.sqrt(1e7 / total)
    counts = collections.defaultdict(int, {word: n * scale for word, n in counts.items()})
    words, read = text.split(), []
    for place, word in enumerate(words):
        read.append(word)
        beside = [words[place - 1] if place else "", *words[place + 1 : place + 2], ""][:2]

        def pairs(w, beside=beside):
            return counts[f"{beside[0]} {w}"], counts[f"{w} {beside[1]}"]

        if len(word) < 3 or word in expected or any(pairs(word)):
            continue
        if word.endswith("s") and word[-2] != "s" and word[:-1] in expected:
            continue
        scores, must_stay = {}, set()
        for other in {*counts, *expected}:
            if other[0] != word[0] or (slip := near(word, other)) is None:
                continue
            if not set(other) <= set(ALPHABET):
                continue
            count = max(counts[other], expected.get(other, 0))
            scores[other] = spelling._COUNT * math.log10(1 + count)
            scores[other] += spelling._UNUSUAL * (not is_usual(word, other, *slip))
            content = [len(w) > 1 and w not in FUNCTION_WORDS for w in beside]
            if any(n and c for n, c in zip(pairs(other), content, strict=True)):
                scores[other] += spelling._NAME
            else:
                scores[other] += spelling._APART * sum(content)
                if len(word) == 3 or any(word in name.lower().split() for name in NAMES):
                    must_stay.add(other)
        stay = spelling._NO_SLIP + spelling._SMALLER * math.log10(1e7 / total)
        stay += spelling._KNOWN * math.log10(1 + counts[word])
        stay += spelling._LETTER * min(len(word), 12)
        if scores:
            best = max(scores, key=scores.get)
            odds = math.exp(stay) + sum(map(math.exp, scores.values()))
            if math.exp(scores[best]) > spelling._SURE * odds and best not in must_stay:
                read[-1] = best
    return " ".join(read)


def test_readings_are_those_of_a_loop_over_all_words(speller, tokenizer):
    rng = np.random.default_rng(0)
    texts = ["honduras cat", "zoroastr", "hondura", "gandald", "the bandd of honduraz", "zoroastre"]
    texts += ["xenophon kvothe", "new yrok city", "new yok city", "yok is"]
    for name in [*NAMES, "which country is beside", "their capital", "some recent politicians"]:
        texts += [typo(f"who knows {name.lower()}", [], rng)[0] for _ in range(2)]
        text = texts[-1]
        place = int(rng.integers(11, len(text)))
        texts.append(text[:place] + ALPHABET[rng.integers(26)] + text[place + 1 :])
    vocabulary = {word: 6e5 / (rank + 3) for rank, word in enumerate(tokenizer.whole_words())}
    expected = [slow_reading(text, vocabulary) for text in texts]
    assert [read(speller, text) for text in texts] == expected
    changed = sum(a != b for a, b in zip(texts, expected, strict=True))
    assert 10 < changed < len(texts) - 10


TEXTS = [
    "who was the mayor of hillsborouggh in 1990?",
    "is hillsboruogh's mayor from hillsborough",
    "who wrote Hillsborough",
    "hillsborouhg\U0001f600 and café\u0301 hillsborouhg",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny_linker_directory(tmp_path_factory.mktemp("spelling"), threshold=-20.0)
    WordIndex.build(Catalogue.open(folder / "catalogue.arrow")).save(folder / "words")
    return folder


@pytest.fixture(scope="module")
def linker(folder):
    return EntityLinker.from_pretrained(folder, devices=jax.devices()[:1])


def test_tokens_are_those_of_the_correction_and_stand_where_the_word_stands(linker):
    encoded = linker.encode(TEXTS)
    readings = [corrected(text, q.corrections) for text, q in zip(TEXTS, encoded, strict=True)]
    assert [len(question.corrections) for question in encoded] == [1, 1, 0, 3]
    plain = linker.tokenizer.encode_questions(readings, linker.max_question_tokens)
    for text, reading, question, other in zip(TEXTS, readings, encoded, plain, strict=True):
        np.testing.assert_array_equal(question.ids, other.ids)
        np.testing.assert_array_equal(question.words, other.words)
        places = []  # For each character of the reading, the part of the text that it stands for.
        end = 0
        for correction in [*question.corrections, Correction(len(text), len(text), "")]:
            places += [(i, i + 1) for i in range(end, correction.start)]
            end = correction.end
            places += [(correction.start, end)] * len(correction.text)
        assert len(places) == len(reading)
        for token, (first, last) in zip(question.offsets.tolist(), other.offsets, strict=True):
            expected = [places[first][0], places[last - 1][1]] if first < last else [0, 0]
            assert token == expected


def test_mentions_are_text_as_it_is_written_and_names_are_read_corrected(linker):
    scored = linker.score_batch(TEXTS)
    names = set(_texts_of(scored))
    assert "hillsborough" in names
    assert "hillsborouggh" not in names
    for text, links in zip(TEXTS, linker(TEXTS), strict=True):
        for link in links:
            assert link.mention == text[link.start : link.end]
            before, after = text[: link.start][-1:], text[link.end :][:1]
            assert not before.isalpha(), link
            assert not after.isalpha(), link
    start = TEXTS[0].index("hillsborouggh")
    known, right = linker.disambiguate(
        [TEXTS[0], "who was the mayor of hillsborough in 1990?"],
        [[(start, start + 13)], [(start, start + 12)]],
    )
    assert known[0].mention == "hillsborouggh"
    assert [c.row for c in known[0].candidates] == [c.row for c in right[0].candidates]
    assert known[0].score == pytest.approx(right[0].score, abs=1e-5)


def test_without_correction_links_are_those_of_a_linker_without_words(linker, folder, tmp_path):
    plain = shutil.copytree(folder, tmp_path / "linker", ignore=lambda *_: ["words"])
    plain = EntityLinker.from_pretrained(plain, devices=jax.devices()[:1])
    off = linker.with_settings(spelling=False)
    assert plain.speller is None
    assert off.speller is not None
    expected = [[link.to_dict() for link in links] for links in plain(TEXTS)]
    assert [[link.to_dict() for link in links] for links in off(TEXTS)] == expected
    assert not any(question.corrections for question in off.encode(TEXTS))
    assert [[link.to_dict() for link in links] for links in linker(TEXTS)] != expected


def test_the_words_are_saved_with_the_linker(linker, folder, tmp_path):
    linker.with_settings(spelling=False).save_pretrained(tmp_path / "linker")
    copy = EntityLinker.from_pretrained(tmp_path / "linker", devices=jax.devices()[:1])
    assert not copy.settings.spelling
    assert copy.with_settings(spelling=True).encode(TEXTS)[0].corrections
    assert directory.verify(folder)["words"].endswith("words, checksums agree")
    other = WordIndex(linker.speller.words.counts, 9, "abc", "0" * 64)
    shutil.rmtree(tmp_path / "linker" / "words")
    other.save(tmp_path / "linker" / "words")
    for check in (directory.verify, EntityLinker.from_pretrained):
        with pytest.raises(ElqError, match="words of another catalogue"):
            check(tmp_path / "linker")
    parts = linker.model, linker.catalogue, linker.index
    with pytest.raises(ElqError, match=r"words: of another catalogue .* WordIndex\.build"):
        EntityLinker(*parts, words=other)
    with pytest.raises(ElqError, match="spelling: 1; expected true or false"):
        LinkingSettings(spelling=1)
    assert LinkingSettings.from_dict({"threshold": -2.0}).spelling


def test_the_place_of_a_cut_is_one_in_the_text(linker):
    text = "the hillsborouggh " * 3 + "is cut here"
    cutting = {"decoder": "elq_jax.original.decoding:original", "max_question_tokens": 7}
    short = linker.with_settings(**cutting)
    [question], [whole] = short.encode([text]), linker.encode([text])
    assert len(whole.corrections) == 3
    assert question.truncated_at == whole.offsets[len(question.ids) - 1, 0]
    assert text[: question.truncated_at].endswith(" ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("who founded lego™?", "who founded lego?"),
        ("who founded lego→", "who founded lego"),
        ("paris😀❤\ufe0f, malcolm x★ and (genre)®!", "paris, malcolm x and (genre)!"),
        ("about 👨\u200d👩\u200d👧 and us👨\u200d👩\u200d👧", "about 👨\u200d👩\u200d👧 and us"),
        ("M★A★S★H in C++ and C♯ at 20°, I ♥ NY", "M★A★S★H in C++ and C♯ at 20°, I ♥ NY"),
        ("lego° 😀", "lego 😀"),
        ("^caret` می\u200cخواهم é", "^caret` می\u200cخواهم é"),
    ],
)
def test_symbols_glued_to_a_word_are_left_out(speller, text, expected):
    corrections = list(glued_symbols(text))
    assert corrected(text, corrections) == expected
    assert speller([text]) == [tuple(corrections)]


def test_a_symbol_that_is_left_out_is_not_in_the_mention(linker):
    clean, glued = TEXTS[2], f"{TEXTS[2]}™→?"
    expected = [(link.mention, link.row) for link in linker(f"{clean}?")]
    assert "Hillsborough" in [mention for mention, _ in expected]
    assert [(link.mention, link.row) for link in linker(glued)] == expected


def test_offsets_in_the_text():
    corrections = [Correction(0, 3, "wxyz"), Correction(4, 7, "q"), Correction(9, 10, "ab")]
    text = "abc def. g h"
    assert corrected(text, corrections) == "wxyz q. ab h"
    assert corrected(text, corrections, 4, 10) == "q. ab"
    assert corrected(text, corrections, 7, 9) == ". "
    left_out = [Correction(2, 4, ""), Correction(4, 5, "xy")]  # "ab★★c d" is read as "abxy d"
    offsets = np.array([[0, 2], [2, 3], [3, 4], [5, 6]])
    assert original_offsets(offsets, left_out).tolist() == [[0, 2], [4, 5], [4, 5], [6, 7]]
    offsets = [[0, 0], [0, 2], [2, 4], [3, 6], [5, 6], [6, 7], [8, 9], [9, 10], [11, 12], [0, 0]]
    expected = [[0, 0], [0, 3], [0, 3], [0, 7], [4, 7], [7, 8], [9, 10], [9, 10], [11, 12], [0, 0]]
    assert original_offsets(np.array(offsets), corrections).tolist() == expected
