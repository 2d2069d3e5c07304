"""Tokenization against the original's output, and offsets against a slow normalizer."""

import json
import pathlib
import shutil
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import tokenizers

from elq_jax.core.errors import ElqError
from elq_jax.storage.hub import resolve_encoder
from elq_jax.text.tokenization import Tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_pretrained("minilm")


@pytest.fixture(scope="module")
def original(fixtures):
    return json.loads((fixtures / "tokenization.json").read_text())


def encode(tokenizer, text, max_length=512, **options):
    [encoded] = tokenizer.encode_questions([text], max_length, **options)
    return encoded


def pieces(tokenizer, text):
    """(token, the part of the text its offsets quote) without [CLS] and [SEP]."""
    encoded = encode(tokenizer, text)
    return [
        (token, text[start:end])
        for token, (start, end) in zip(tokenizer.tokens(encoded.ids), encoded.offsets, strict=True)
    ][1:-1]


def slow_normalize(text):
    """Lower case without accents and control characters, character by character."""
    kept = []
    for character in unicodedata.normalize("NFD", text.lower()):
        category = unicodedata.category(character)
        if category != "Mn" and not category.startswith("C") and character != "\ufffd":
            kept.append(character)
    return "".join(kept)


def test_questions_equal_the_original(tokenizer, original):
    texts = [question["text"] for question in original["questions"]]
    encoded = tokenizer.encode_questions(texts, 32, special_tokens_in_text=True)
    for question, found in zip(original["questions"], encoded, strict=True):
        assert found.ids.tolist() == question["model_input_32"], question["text"]
        assert found.ids.dtype == found.offsets.dtype == np.int32
        assert found.offsets.shape == (len(found.ids), 2)


def test_questions_without_truncation_equal_the_original(tokenizer, original):
    texts = [question["text"] for question in original["questions"]]
    encoded = tokenizer.encode_questions(texts, 512, special_tokens_in_text=True)
    for question, found in zip(original["questions"], encoded, strict=True):
        assert found.ids.tolist()[1:-1] == question["encode"], question["text"]
        assert found.truncated_at is None


def test_entities_equal_the_original(tokenizer, original):
    for entity in original["entities"]:
        [found] = tokenizer.encode_entities([entity["title"]], [entity["text"]], entity["max_len"])
        assert found.dtype == np.int32
        assert found.tolist() == entity["ids"][: len(found)]
        assert not any(entity["ids"][len(found) :])


def test_special_ids_equal_the_original(tokenizer, original):
    special = original["special"]
    assert tokenizer.cls_id == special["cls"]
    assert tokenizer.sep_id == special["sep"]
    assert tokenizer.pad_id == special["pad"]
    assert tokenizer.entity_tag_id == special["ent_title"]
    assert tokenizer.unk_id == 100
    assert tokenizer.vocab_size == 30522


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("who is Zoë?", ["who", "is", "Zoë", "?"]),
        ("cafe\u0301 noir", ["cafe\u0301", "noir"]),
        ("e\u0301\u0302 x", ["e\u0301\u0302", "x"]),
        ("東京 tower", ["東", "京", "tower"]),
        ("😀 emoji 😀thor", ["😀", "em", "oj", "i", "😀thor"]),
        ("👩\u200d👧 love", ["👩\u200d👧", "love"]),
        ("❤\ufe0f dune", ["❤\ufe0f", "dune"]),
        ("a\x00b\x07 c", ["a\x00b", "c"]),
        ("\ufeffwho", ["who"]),
        ("ﬁ fine", ["ﬁ", "fine"]),
        ("İstanbul", ["İstanbul"]),
        ("x\ud800 y", ["x", "y"]),
        ("one\u2028two\u3000three", ["one", "two", "three"]),
    ],
)
def test_offsets_index_the_original_string(tokenizer, text, expected):
    found = pieces(tokenizer, text)
    assert [quoted for _, quoted in found] == expected
    for token, quoted in found:
        if token != "[UNK]":
            assert slow_normalize(quoted) == token.removeprefix("##")


def test_tokens_of_one_hangul_syllable_share_its_offsets(tokenizer):
    encoded = encode(tokenizer, "한국 a")
    assert encoded.offsets.tolist()[1:-1] == [[0, 1]] * 3 + [[1, 2]] * 3 + [[3, 4]]


def test_offsets_of_random_text_quote_the_tokens(tokenizer):
    alphabet = list("abcXYZ 0.,?'é東😀ﬁñ\u0301\u200d\x01\t\xa0ßΩжÅ")
    random = np.random.default_rng(0)
    for _ in range(200):
        text = "".join(random.choice(alphabet, random.integers(0, 30)))
        encoded = encode(tokenizer, text)
        offsets = encoded.offsets[1:-1]
        assert (offsets[:, 0] < offsets[:, 1]).all()
        assert (offsets[1:, 0] >= offsets[:-1, 1]).all()
        assert not len(offsets) or offsets.max() <= len(text)
        for token, quoted in pieces(tokenizer, text):
            if token != "[UNK]":
                assert slow_normalize(quoted) == token.removeprefix("##"), ascii(text)


def test_literal_special_tokens_are_ordinary_text(tokenizer):
    text = "what is [PAD] and [SEP] and [unused2]"
    ids = encode(tokenizer, text).ids.tolist()
    assert ids.count(tokenizer.pad_id) == 0
    assert ids.count(tokenizer.sep_id) == 1
    assert ids.count(tokenizer.entity_tag_id) == 0
    assert "".join(quoted for _, quoted in pieces(tokenizer, text)) == text.replace(" ", "")
    assert encode(tokenizer, text, special_tokens_in_text=True).ids.tolist().count(0) == 1
    assert encode(tokenizer, text).ids.tolist() == ids  # the one mode does not leak into the other
    [entity] = tokenizer.encode_entities(["[SEP]"], ["[CLS] [PAD]"], 32)
    assert entity.tolist().count(tokenizer.sep_id) == 1
    assert tokenizer.pad_id not in entity


@pytest.mark.parametrize("text", ["", " ", "\t \n", "\u200b", "\x00"])
def test_text_without_content_is_cls_sep(tokenizer, text):
    for special_tokens_in_text in (False, True):
        encoded = encode(tokenizer, text, special_tokens_in_text=special_tokens_in_text)
        assert encoded.ids.tolist() == [tokenizer.cls_id, tokenizer.sep_id]
        assert encoded.offsets.tolist() == [[0, 0], [0, 0]]
        assert encoded.truncated_at is None


def test_ten_thousand_characters_are_cut_and_say_where(tokenizer):
    text = "dune " * 2000
    encoded = encode(tokenizer, text, 32)
    assert len(encoded.ids) == 32
    assert encoded.truncated_at == 30 * len("dune ")
    assert encoded.offsets[-2].tolist() == [145, 149]
    whole = encode(tokenizer, text, 2002)
    assert whole.truncated_at is None
    assert encode(tokenizer, text, 2001).truncated_at == 1999 * len("dune ")


def slow_words(text, offsets):
    """Numbers of words, from the text alone: a blank, punctuation, Chinese or kana ends a word."""
    numbers, number, previous = [], -1, None
    for start, end in offsets:
        first = text[start]
        apart = unicodedata.category(first)[0] == "P" or "\u4e00" <= first <= "\u9fff"
        apart |= "\u3041" <= first <= "\u3096"
        if previous is None or text[previous[1] : start] or apart or previous[2]:
            number += 1
        numbers.append(number)
        previous = start, end, apart
    return numbers


def test_words_of_tokens(tokenizer):
    texts = [
        "d'Ivoire unbelievably, jordanovski",
        "東京 は한국 café's naïve",
        "(un)believable e-mail 3.14",
        "",
    ]
    for text in texts:
        encoded = encode(tokenizer, text)
        assert encoded.words.dtype == np.int32
        assert len(encoded.words) == len(encoded.ids)
        assert encoded.words[[0, -1]].tolist() == [-1, -1]
        found = encoded.words[1:-1].tolist()
        assert found == slow_words(text, encoded.offsets[1:-1].tolist()), text


@pytest.mark.parametrize("max_length", range(3, 14))
def test_no_part_of_a_word_is_left_by_a_cut(tokenizer, max_length):
    """As many whole words as there is room for; of a first word that is longer, its beginning."""
    text = "unbelievably so is michael jordanovski"
    whole = encode(tokenizer, text)
    encoded = encode(tokenizer, text, max_length)
    room, words = max_length - 2, whole.words[1:-1]
    fitting = [n for n in range(len(words) + 1) if n <= room and not {*words[:n]} & {*words[n:]}]
    expected = max(fitting) or room
    assert encoded.ids[1:-1].tolist() == whole.ids[1 : 1 + expected].tolist()
    cut = None if expected == len(words) else whole.offsets[1 + expected, 0]
    assert encoded.truncated_at == cut
    if cut is not None and max(fitting):
        assert text[cut - 1] == " "
    assert len(encode(tokenizer, text, max_length, special_tokens_in_text=True).ids) == min(
        max_length, len(whole.ids)
    )


def test_symbols_are_set_apart(tokenizer, tmp_path):
    apart = tokenizer.with_symbols_apart()
    assert apart.has_symbols_apart
    assert not tokenizer.has_symbols_apart
    assert apart.with_symbols_apart() is apart
    assert apart.fingerprint != tokenizer.fingerprint
    apart.save(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path)
    assert again.has_symbols_apart
    paris, unk = tokenizer.encode_questions(["paris"], 8)[0].ids[1], tokenizer.unk_id
    for text, symbols in {
        "paris😀": 1,
        "paris\u2764\ufe0f": 1,
        "paris\u2713": 1,
        "paris\U0001f44d\U0001f3fd": 2,  # with a skin tone (Sk)
        "paris\u0378": 1,  # not assigned (Cn)
    }.items():
        assert encode(tokenizer, text).ids.tolist()[1:-1] == [unk]
        for one in (apart, again):
            encoded = encode(one, text)
            assert encoded.ids.tolist()[1:-1] == [paris] + [unk] * symbols
            assert encoded.offsets[1].tolist() == [0, 5]
            assert encoded.words.tolist()[1:-1] == list(range(1 + symbols))
    [entity] = apart.encode_entities(["paris😀"], [""], 8)
    assert entity[1] == paris


def test_text_without_symbols_stays_as_it_was(tokenizer, original):
    apart = tokenizer.with_symbols_apart()
    texts = [question["text"] for question in original["questions"]]
    texts = [t for t in texts if not {"So", "Sk", "Cn", "Cs"} & {*map(unicodedata.category, t)}]
    texts += (pathlib.Path(__file__).parents[2] / "demo/dev.jsonl").read_text().splitlines()
    for text in texts:
        assert encode(apart, text).ids.tolist() == encode(tokenizer, text).ids.tolist()


def test_a_combining_mark_behind_the_cut_stays_with_its_letter(tokenizer):
    encoded = encode(tokenizer, "cafe\u0301 noir", 3)
    assert encoded.offsets.tolist() == [[0, 0], [0, 5], [0, 0]]
    assert encoded.truncated_at == 6


def test_batch_equals_one_by_one(tokenizer, original):
    texts = [question["text"] for question in original["questions"]]
    for text, encoded in zip(texts, tokenizer.encode_questions(texts, 16), strict=True):
        alone = encode(tokenizer, text, 16)
        np.testing.assert_array_equal(encoded.ids, alone.ids)
        np.testing.assert_array_equal(encoded.offsets, alone.offsets)
    assert tokenizer.encode_questions([], 16) == []
    assert tokenizer.encode_entities([], [], 16) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.encode_questions("who", 16), "one string"),
        (lambda t: t.encode_questions(["who", 3], 16), r"texts\[1\]: found int"),
        (
            lambda t: t.encode_questions(["who"], 2),
            "max_length: 2; expected an integer, at least 3",
        ),
        (
            lambda t: t.encode_entities(["a"], [], 16),
            "titles, texts: found 1 and 0; give one text for each",
        ),
        (lambda t: t.encode_entities(["a"], [None], 16), r"texts\[0\]: found NoneType"),
    ],
)
def test_wrong_arguments(tokenizer, call, message):
    with pytest.raises(ElqError, match=message):
        call(tokenizer)


def test_saved_and_reopened(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "linker")
    again = Tokenizer.from_pretrained(tmp_path / "linker")
    assert again.fingerprint == tokenizer.fingerprint
    text = "who wrote [SEP] dune in Côte d'Ivoire?"
    assert encode(again, text).ids.tolist() == encode(tokenizer, text).ids.tolist()


def test_folder_with_vocab_txt_only(tokenizer, original, tmp_path):
    shutil.copy(resolve_encoder("minilm") / "vocab.txt", tmp_path)
    uncased = Tokenizer.from_pretrained(tmp_path)
    texts = [question["text"] for question in original["questions"]]
    found = uncased.encode_questions(texts, 32, special_tokens_in_text=True)
    for question, encoded in zip(original["questions"], found, strict=True):
        assert encoded.ids.tolist() == question["model_input_32"]
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = Tokenizer.from_pretrained(tmp_path)
    assert cased.fingerprint != uncased.fingerprint
    assert encode(cased, "Dune").ids[1] == cased.unk_id


def test_settings_of_tokenizer_json_do_not_cut_or_pad(tokenizer, tmp_path):
    backend = tokenizers.Tokenizer.from_file(str(resolve_encoder("minilm") / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    backend.save(str(tmp_path / "tokenizer.json"))
    limited = Tokenizer.from_pretrained(tmp_path)
    text = "who wrote the book dune"
    assert encode(limited, text).ids.tolist() == encode(tokenizer, text).ids.tolist()
    assert limited.fingerprint == tokenizer.fingerprint


def test_fingerprint_depends_on_the_vocabulary(tokenizer, tmp_path):
    settings = json.loads((resolve_encoder("minilm") / "tokenizer.json").read_text())
    vocabulary = settings["model"]["vocab"]
    vocabulary["dune"], vocabulary["paris"] = vocabulary["paris"], vocabulary["dune"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    assert Tokenizer.from_pretrained(tmp_path).fingerprint != tokenizer.fingerprint


def test_folder_without_a_bert_tokenizer(tmp_path):
    with pytest.raises(ElqError, match=r"neither tokenizer\.json nor vocab\.txt"):
        Tokenizer.from_pretrained(tmp_path)
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "dune": 3}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ElqError, match=r"tokenizer\.json: the vocabulary has no \[SEP\]"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ElqError, match=r"tokenizer\.json: not a tokenizer file"):
        Tokenizer.from_pretrained(tmp_path)


def test_transformers_is_not_imported():
    program = (
        "import sys; from elq_jax.text.tokenization import Tokenizer; "
        "Tokenizer.from_pretrained('minilm').encode_questions(['who'], 8); "
        "sys.exit('transformers' in sys.modules or 'jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_a_byte_order_mark_in_tokenizer_json(tmp_path):
    whole = (resolve_encoder("minilm") / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(b"\xef\xbb\xbf" + whole)
    expected = Tokenizer.from_pretrained("minilm").fingerprint
    assert Tokenizer.from_pretrained(tmp_path).fingerprint == expected
