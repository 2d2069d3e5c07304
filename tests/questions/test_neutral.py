"""Neutral spans: names of the catalogue in questions of which not all mentions are labelled."""

import dataclasses
import itertools
import json

import pytest

from elq_jax.entities.build import build_catalogue
from elq_jax.entities.catalogue import Catalogue
from elq_jax.questions.neutral import NeutralNames, name_spans
from elq_jax.questions.records import Mention, Question
from elq_jax.questions.stored import store_examples
from elq_jax.text.tokenization import Tokenizer

ENTITIES = [
    {"title": "Frank Herbert", "text": "", "aliases": ["Frank Patrick Herbert"]},
    {"title": "Dune (1984 film)", "text": ""},
    {"title": "David Lynch", "text": ""},
    {"title": "The Who", "text": "", "aliases": ["who is"]},
    {"title": "Language", "text": ""},
    {"title": "Paris, Texas", "text": ""},
    {"title": "AT&T", "text": ""},
    {"title": "The Currency", "text": ""},
]


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    folder = tmp_path_factory.mktemp("catalogue")
    source = folder / "entities.jsonl"
    source.write_text("".join(json.dumps(entity) + "\n" for entity in ENTITIES))
    build_catalogue(source, folder / "catalogue.arrow")
    return Catalogue.open(folder / "catalogue.arrow")


def question(text, gold=""):
    start = text.index(gold)
    mentions = (Mention(start, start + len(gold), 0),) if gold else ()
    return Question("q", text, mentions)


def neutral(catalogue, question, single_words="never"):
    [result] = NeutralNames(catalogue, single_words).add_to([question])
    return [result.text[start:end] for start, end in result.neutral]


@pytest.mark.parametrize(
    ("text", "gold", "single_words", "expected"),
    [
        ("who is frank herbert?", "", "never", ["frank herbert"]),
        ("did david lynch's film follow frank  patrick herbert", "", "never", None),
        ("did Frank Herbert meet david lynch", "Frank", "never", ["david lynch"]),
        ("did frank herbert meet david lynch", "david lynch", "never", ["frank herbert"]),
        # An article is no second word; names of single words, by the setting.
        ("what is the currency, Language or Dune", "", "never", []),
        (
            "Language is a Language or Dune or at&t",
            "",
            "capitalised",
            ["a Language", "Language", "Dune"],
        ),
        ("is language in dune from AT&T?", "", "always", ["language", "dune", "AT&T"]),
        # Half of a title is no name, nor are function words though an alias says so.
        ("who is in paris", "", "always", []),
        ("trains to paris, texas!", "", "never", ["paris, texas"]),
    ],
)
def test_names_become_neutral(catalogue, text, gold, single_words, expected):
    if expected is None:
        expected = ["david lynch", "frank  patrick herbert"]
    assert neutral(catalogue, question(text, gold), single_words) == expected


def test_spans_of_the_file_stay(catalogue):
    text = "what film did david lynch make"
    labelled = dataclasses.replace(question(text), neutral=((5, 9), (14, 25)))
    assert neutral(catalogue, labelled) == ["film", "david lynch"]


def test_questions_given_as_tokens_stay(catalogue):
    tokens = Question("q", "david lynch", (), (1, 2), ())
    assert list(NeutralNames(catalogue, "always").add_to([tokens])) == [tokens]


def test_candidates_against_a_slow_loop():
    """A word is what white space separates, without the punctuation around it."""
    text = "Who's the king of Bahrain's (old) at&t, o'brien & son? the end is a new one by far ok"
    words, place = [], 0
    for word in text.split():
        place = text.index(word, place)
        inner = word.strip("(),?&")
        if inner:
            words.append((place + word.index(inner), inner))
        place += len(word)
    expected = []
    for first, last in itertools.combinations_with_replacement(range(len(words)), 2):
        part = [word.lower() for _, word in words[first : last + 1]]
        content = [w for w in part if w not in ("who's", "the", "of", "is", "a", "one", "by")]
        if len(content) >= 2 and len(part) <= 8:
            start, end = words[first][0], words[last][0] + len(words[last][1])
            expected += [(start, end)]
            if part[-1].endswith("'s"):
                expected += [(start, end - 2)]
    assert sorted(name_spans(text)) == sorted(expected)


def test_examples_follow_names_and_setting(catalogue, tmp_path):
    questions = [
        question("did Frank Herbert read a Language book by david lynch?", "Frank Herbert")
    ]

    def stored(*arguments):
        names = NeutralNames(*arguments) if arguments else None
        folder = tmp_path / "train"
        return store_examples(
            questions,
            folder,
            Tokenizer.from_pretrained("minilm"),
            32,
            source="a",
            neutral_names=names,
        )

    for _ in range(2):
        assert [stored().report.neutral, stored(catalogue).report.neutral] == [0, 1]
        assert stored(catalogue, "capitalised").report.neutral == 3
    written = (tmp_path / "train" / "inputs.json").stat().st_mtime_ns
    stored(catalogue, "capitalised")
    assert (tmp_path / "train" / "inputs.json").stat().st_mtime_ns == written
