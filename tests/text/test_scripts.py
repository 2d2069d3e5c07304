"""Other languages than English, with small vocabularies: tokens, mentions, windows, words.

Texts have their mentions in brackets: "[Rēzekne] i [Ludza]".
"""

import json
import re
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from elq_jax.dumps.passages import make_passages
from elq_jax.dumps.settings import WikipediaSettings
from elq_jax.dumps.wikitext import Block
from elq_jax.entities.build import build_catalogue
from elq_jax.entities.catalogue import Catalogue
from elq_jax.entities.names import QUALIFIED, normal_names
from elq_jax.entities.word_index import WordIndex
from elq_jax.linking.decoding import FIRST, LAST, Joint, character_span
from elq_jax.linking.spelling import Speller
from elq_jax.questions.align import align_mentions
from elq_jax.questions.examples import iter_examples
from elq_jax.questions.neutral import name_spans
from elq_jax.questions.records import Mention, Question
from elq_jax.questions.words import WORD
from elq_jax.text.corrections import corrected
from elq_jax.text.tokenization import Tokenizer
from elq_jax.text.windows import sentence_starts, text_parts

TEXTS = {
    "Cyrillic": "[Йосип Броз Тито] родился в [Кумровце]. Где умер [Пётр І]?",
    "Latgalian": "[Rēzekne] i [Daugavpiļs] ir [Latgolys] piļsātys! [Ludza] ari.",
    "decomposed": unicodedata.normalize("NFD", "[Rēzekne] i [Daugavpiļs] ir [Latgolys] piļsātys."),
    "Chinese": "[雷神]（電影）在[北京]上映。[托尔]是谁？",
    "Japanese": "[東京タワー]は[アメリカ]人が[つくば]で見た。[ゴジラ]",
    "Arabic": "[القاهِرة] عاصمة [مِصر]؟ نعم، [نهر النيل] فيها.",
    "Persian": "کجاست [می\u200cناب]؟ در [ایران].",
    "Hindi": "[नई दिल्ली] [भारत] की राजधानी है। [हिन्दी] क्या है?",
    "Thai": "[กรุงเทพ]เป็นเมืองหลวงของ[ไทย]",
    "Korean": "[서울]은 [대한민국]의 수도",
    "Georgian": "[თბილისი] არის [საქართველოს] დედაქალაქი",
}
VOCABULARIES = [(True, True), (True, False), (False, False), (False, True)]


def unmarked(text):
    """Returns a text without its brackets, and the half-open offsets of its mentions."""
    plain, spans = "", []
    for before, mention in re.findall(r"([^\[]*)(?:\[([^\]]*)\])?", text):
        start = len(plain) + len(before)
        plain += before + mention
        if mention:
            spans.append((start, start + len(mention)))
    return plain, spans


def wordpiece(text, lowercase, strip_accents, words=()):
    """A tokenizer for one text, without [unused2]: its characters and some words."""
    forms = [unicodedata.normalize(f, t) for f in ("NFC", "NFD") for t in (text, text.lower())]
    letters = sorted({letter for form in forms for letter in form if not letter.isspace()})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words, *letters, *("##" + x for x in letters)]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=strip_accents
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return Tokenizer(backend).with_symbols_apart()


@pytest.mark.parametrize(("lowercase", "strip_accents"), VOCABULARIES)
@pytest.mark.parametrize("language", TEXTS)
def test_offsets_are_exact(language, lowercase, strip_accents):
    """From the tokens to the mention, and back to its text; no token is unknown."""
    text, spans = unmarked(TEXTS[language])
    tokenizer = wordpiece(text, lowercase, strip_accents)
    [encoded] = tokenizer.encode_questions([text], None)
    for token, (start, end) in zip(
        tokenizer.tokens(encoded.ids[1:-1]), encoded.offsets[1:-1].tolist(), strict=True
    ):
        written = text[start:end].lower() if lowercase else text[start:end]
        if strip_accents:
            written = unicodedata.normalize("NFD", written)
            written = "".join(c for c in written if unicodedata.category(c) != "Mn")
            assert token.removeprefix("##") in written  # which is several letters in Hangul
        else:
            assert token.removeprefix("##") == unicodedata.normalize("NFC", written)
    mentions = [Mention(start, end, number) for number, (start, end) in enumerate(spans)]
    question = Question("q", text, tuple(mentions))
    bounds, _, problems = align_mentions(question, encoded)
    assert not problems
    roles = Joint().roles([encoded], tokenizer.unk_id)
    for (first, last), (start, end) in zip(bounds.tolist(), spans, strict=True):
        assert character_span(first, last, encoded.offsets, text) == (start, end)
        if language != "Korean":  # whose particles have no blank before them
            assert roles[first] & FIRST
            assert roles[last] & LAST
    assert bool(roles[bounds[:, 1]].min() & LAST) == (language != "Korean")
    # Tokens that the windows of a long text have are those of the whole one.
    width = int((bounds[:, 1] - bounds[:, 0]).max()) + 1
    seen = set()
    for example in iter_examples([question], tokenizer, 2 * width + 3, width):
        for first, last in example.bounds.tolist():
            seen.add(tuple(example.ids[first : last + 1].tolist()))
    assert seen == {tuple(encoded.ids[first : last + 1].tolist()) for first, last in bounds}


def test_decomposed_text_is_read_like_composed():
    """With a vocabulary of composed letters; offsets are those in the text as it is written."""
    text = "Ré ēz 가 각 को কো"
    tokenizer = wordpiece(text, False, False, text.split())
    decomposed = unicodedata.normalize("NFD", text)
    [composed_tokens, tokens] = tokenizer.encode_questions([text, decomposed], None)
    assert tokens.ids.tolist() == composed_tokens.ids.tolist()
    quoted = [decomposed[start:end] for start, end in tokens.offsets[1:-1]]
    assert quoted == decomposed.split()
    [entity] = tokenizer.encode_entities([decomposed], [""], 16)
    assert entity[1:-2].tolist() == tokens.ids[1:-1].tolist()


def test_a_vocabulary_without_the_tag():
    """Title and text then have [SEP] between them, as the two parts of a BERT input have."""
    tokenizer = wordpiece("Rēzekne", False, False)
    [entity] = tokenizer.encode_entities(["Rē"], ["ze"], 16)
    assert tokenizer.tokens(entity) == ["[CLS]", "R", "##ē", "[SEP]", "z", "##e", "[SEP]"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("من هو؟ لا أعرف۔ نعم. لا", ["لا", "نعم", "لا"]),
        ("वह है। कौन है।।नाम", ["कौन", "नाम"]),
        ("誰？「彼だ。」そう", ["「彼", "そう"]),
        ("ማን ነው። እሱ", ["እሱ"]),
        ("Kas tys? «Es!» A", ["«", "A"]),
    ],
)
def test_ends_of_sentences(text, expected):
    [encoded] = wordpiece(text, False, False).encode_questions([text], None)
    starts = encoded.offsets[sentence_starts(text, encoded.offsets), 0].tolist()
    assert len(starts) == len(expected)
    assert all(text[place:].startswith(e) for place, e in zip(starts, expected, strict=True))
    parts = text_parts(text * 9, 3 * len(text), 1)
    assert all(len((text * 9)[part.start : part.stop]) <= 3 * len(text) for part in parts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("नई दिल्ली, क्या।", ["नई", "दिल्ली", "क्या"]),
        ("is 東京タワー・x", ["is", "東", "京", "タ", "ワ", "ー", "x"]),
        ("กรุงเทพ", ["ก", "รุ", "ง", "เ", "ท", "พ"]),
        ("می\u200cناب o'brien, (at&t) ❤\ufe0f", ["می\u200cناب", "o'brien", "at&t"]),
    ],
)
def test_words(text, expected):
    assert WORD.findall(text) == expected


def test_names_between_other_words():
    assert [text for text in ("東京都", "नई दिल्ली") for _ in name_spans(text)] == [
        *["東京都"] * 3,  # 東京, 京都 and all
        "नई दिल्ली",
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Пётр Чайковский", "петр чаиковскии"),
        ("القاهِرة", "القـاهرة"),
        ("إيران", "ایران"),
        ("יְרוּשָׁלַיִם", "ירושלים"),
        ("Rēzekne", "rezekne"),
        ("ﾄｳｷｮｳ", "トウキョウ"),
        ("Ἀθῆναι", "αθηναι"),
    ],
)
def test_ways_to_write_a_name(one, other):
    first, second = normal_names(pa.array([one, other])).to_pylist()
    assert first == second


@pytest.mark.parametrize(
    ("one", "other"), [("दिल", "दिल्ली"), ("क", "कि"), ("か", "が"), ("กา", "กี"), ("서울", "서을")]
)
def test_names_that_differ(one, other):
    first, second = normal_names(pa.array([one, other])).to_pylist()
    assert first != second


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("雷神（電影）", "雷神"),
        ("雷神 (電影)", "雷神"),
        ("ثور (فيلم)", "ثور"),
        ("（電影）", "（電影）"),
        ("Iron(III)", "Iron(III)"),
    ],
)
def test_qualifiers_of_titles(title, name):
    assert re.sub(QUALIFIED, r"\1", title) == name


def test_repeated_mentions_stand_between_words():
    def repeats(text, name):
        first = Block("paragraph", "", f"{name}.", [(0, len(name), "A")])
        block = Block("paragraph", "", text, [(0, 0, "A")])
        settings = WikipediaSettings(repeat_mentions=True, passage_characters=1)
        answers = {"A": ("entity", "A"), "P": ("entity", "P")}
        rows, _ = make_passages(1, "P", [first, block], answers, settings)
        return [tuple(place) for row in rows[1:] for place in row["mentions"]]

    assert repeats("दिल दिल्ली दिल", "दिल") == [(0, 3), (11, 14)]
    assert repeats("大北京市", "北京") == [(1, 3)]
    assert repeats("в Киеве, Киев", "Киев") == [(9, 13)]


def speller_of(folder, title, tokenizer):
    source = folder / "entities.jsonl"
    source.write_text(json.dumps({"title": title, "text": f"{title} " * 200}) + "\n")
    build_catalogue(source, folder / "catalogue.arrow")
    return Speller(WordIndex.build(Catalogue.open(folder / "catalogue.arrow")), tokenizer)


@pytest.mark.parametrize(
    ("title", "text", "keeping", "stripping"),
    [
        ("Гондурас", "где гондуррас", "где гондурас", "где гондурас"),
        ("Rēzekne", "kur ir rēzeknne", "kur ir rēzeknne", "kur ir rezekne"),
        ("Rēzekne", "kur ir rezeknne", "kur ir rezekne", "kur ir rezekne"),
        ("दिल्ली", "दिल्लली", "दिल्ली", "दिल्ली"),
        ("アメリカ", "アメリリカ", "アメリリカ", "アメリリカ"),
    ],
)
def test_corrections_keep_what_the_encoder_reads(tmp_path, title, text, keeping, stripping):
    for strips, expected in ((False, keeping), (True, stripping)):
        speller = speller_of(tmp_path, title, wordpiece(text, True, strips))
        [corrections] = speller([text])
        assert corrected(text, corrections) == expected


def test_whole_words_have_marks():
    tokenizer = wordpiece("x", False, False, ["हिन्दी", "##हिन्दी", "thor", "a1", "रु"])
    assert tokenizer.whole_words() == ["हिन्दी", "thor", "रु"]
    assert tokenizer.is_whole_word("हिन्दी")
    assert not np.any([tokenizer.is_whole_word(word) for word in ("a1", "x", "##हिन्दी")])
