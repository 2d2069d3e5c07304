"""Decoding against the original's results and against an explicit loop."""

import dataclasses
import json
import time

import numpy as np
import pytest
from scipy.special import log_expit, log_softmax

from elq_jax.core.errors import ElqError
from elq_jax.linking import decoding
from elq_jax.linking.decoding import FIRST, INSIDE, LAST, MEANINGFUL, Joint, trim_ends
from elq_jax.linking.links import ScoredSpans
from elq_jax.linking.settings import LinkingSettings
from elq_jax.original.decoding import THRESHOLD_TYPES, Original, triples
from elq_jax.text.tokenization import EncodedQuestion

JOINT, TOP, THRESHOLDED = THRESHOLD_TYPES


def question_of(length, words=None):
    """[CLS], tokens of a letter each, [SEP]; each a word unless `words` are given."""
    offsets = np.zeros((length, 2), np.int32)
    offsets[1:-1] = [(i, i + 1) for i in range(length - 2)]
    words = np.array([-1, *(words or range(length - 2)), -1], np.int32)
    return EncodedQuestion(np.arange(length, dtype=np.int32), offsets, words, None)


def spans_of(questions, length=14):
    """One question after the other: (logits [n], bounds [n, 2], scores [n, C], rows [n, C])."""
    counts = [len(logits) for logits, *_ in questions]
    columns = [
        np.concatenate([np.asarray(part) for part in column])
        for column in zip(*questions, strict=True)
    ]
    texts = ["x" * (length - 2)] * len(questions)
    encoded = [question_of(length)] * len(questions)
    number = np.repeat(np.arange(len(questions)), counts)
    logits, bounds, scores, rows = columns
    logits, scores = logits.astype(np.float32), scores.astype(np.float32)
    return ScoredSpans(texts, encoded, number, number, bounds, logits, scores, rows, -np.inf)


def random_question(rng, spans, candidates=5, tokens=14):
    start = rng.integers(1, tokens - 1, spans)
    end = np.minimum(start + rng.integers(0, 4, spans), tokens - 2)
    return (
        rng.normal(0, 3, spans).astype(np.float32),
        np.stack([start, end], -1),
        -np.sort(-rng.normal(0, 3, (spans, candidates)).astype(np.float32), -1),
        rng.integers(0, 99, (spans, candidates)),
    )


def slow_decode(logits, bounds, scores, rows, threshold, kind, mention_threshold):
    """One question, one mention at a time, with a set of taken tokens."""
    found = []
    for k in range(len(logits)):
        start, end = bounds[k]
        joint = log_softmax(scores[k].astype(float))[0] + log_expit(float(logits[k]))
        value = joint if kind == JOINT else scores[k][0]
        if kind == JOINT:
            ok = joint > threshold
        else:
            ok = logits[k] > mention_threshold and (kind == TOP or value > threshold)
        if ok:
            found.append((value, start, end, rows[k][0]))
    found.sort(key=lambda x: -x[0])
    taken, result = set(), []
    for value, start, end, row in found:
        tokens = set(range(start, end + 1))
        if kind == TOP or not taken & tokens:
            taken |= tokens
            result.append((start, end, row, value))
    return result


def assert_decoded(decoded, number, expected):
    """(start, end, row, score) of one question's mentions."""
    own = decoded.of(number)
    bounds, rows = decoded.bounds[own].tolist(), decoded.rows[own, 0].tolist()
    found = [(*span, row) for span, row in zip(bounds, rows, strict=True)]
    assert found == [x[:3] for x in expected]
    np.testing.assert_allclose(decoded.scores[own], [x[3] for x in expected], atol=1e-6)


# Which stored arrays (they exist for settings 0, 1 and 3) contain what a setting needs.
SOURCE = {0: 0, 1: 1, 2: 0, 3: 3, 5: 1, 6: 0, 7: 1, 8: 0, 9: 1}


@pytest.mark.parametrize("setting", SOURCE)
def test_original_pipeline(fixtures, setting):
    arrays = np.load(fixtures / "pipeline.npz")
    run = json.loads((fixtures / "pipeline.json").read_text())["runs"][setting]
    kind = run["settings"].get("threshold_type", JOINT)
    threshold = float(run["settings"].get("threshold", -4.5))
    decoder = Original(kind, run["settings"].get("mention_threshold"))
    pruning = decoder.prune_threshold(threshold)
    questions = []
    for number in range(len(run["results"])):
        names = ("mscores", "bounds", "cscores", "nns")
        stored = [arrays[f"{SOURCE[setting]}|{number}|{name}"] for name in names]
        keep = log_expit(stored[0]) > pruning
        keep |= not keep.any()
        questions.append([array[keep] for array in stored])
    decoded = decoder(spans_of(questions, 64), threshold)
    for number, expected in enumerate(run["results"]):
        expected_triples = [tuple(triple) for triple in expected["pred_triples"]]
        assert triples(decoded, number) == expected_triples
        scores = decoded.scores[decoded.of(number)]
        np.testing.assert_allclose(scores, expected["scores"], atol=1e-4)


@pytest.mark.parametrize("setting", [0, 1, 3])
def test_original_joint_scores(fixtures, setting):
    arrays = np.load(fixtures / "pipeline.npz")
    samples = json.loads((fixtures / "pipeline.json").read_text())["samples"]
    for question in range(len(samples)):
        logits, bounds, scores, rows, expected = (
            arrays[f"{setting}|{question}|{name}"]
            for name in ("mscores", "bounds", "cscores", "nns", "dists")
        )
        decoder = Original(allow_overlaps=True)
        found = decoder(spans_of([(logits, bounds, scores, rows)], 64), -np.inf)
        assert len(found.question) == len(logits)
        spans = [tuple(bound) for bound in bounds.tolist()]
        places = [spans.index(tuple(bound)) for bound in found.bounds.tolist()]
        np.testing.assert_allclose(found.candidate_scores, expected[places], atol=1e-4)
        np.testing.assert_array_equal(found.rows, rows[places])
        np.testing.assert_allclose(found.mention_scores, log_expit(logits[places]), atol=1e-6)


@pytest.mark.parametrize("kind", THRESHOLD_TYPES)
def test_many_questions_equal_an_explicit_loop(kind):
    rng = np.random.default_rng(0)
    for threshold in (-4.5, -2.0, 0.0, -np.inf):
        questions = [random_question(rng, n, tokens=8) for n in (12, 0, 5, 1, 30)]
        spans = spans_of(questions, 8)
        decoders = [Original(kind, -1.0)]
        if kind == JOINT:  # here a token is a character, so ours does the same
            decoders.append(Joint())
        for decoder in decoders:
            decoded = decoder(spans, threshold)
            for number, arrays in enumerate(questions):
                assert_decoded(decoded, number, slow_decode(*arrays, threshold, kind, -1.0))
            np.testing.assert_array_equal(decoded.characters, np.add(decoded.bounds, [-1, 0]))


@pytest.mark.parametrize("decoder", [Joint(), Original(), Original(allow_overlaps=True)])
def test_filtering_by_score_equals_decoding_again(decoder):
    """Greedy resolution at a higher threshold is a prefix of the one at a lower threshold."""
    assert decoder.threshold_filters
    assert not any(Original(kind, -1.0).threshold_filters for kind in (TOP, THRESHOLDED))
    rng = np.random.default_rng(0)
    for _ in range(50):
        spans = spans_of([random_question(rng, 15, 4)])
        low = decoder(spans, -6.0)
        for threshold in (-6.0, *low.scores, -1.234):
            high = decoder(spans, threshold)
            assert high.bounds.tolist() == low.bounds[low.scores > threshold].tolist()


def test_no_two_links_on_one_character():
    """Decomposed Hangul: two tokens of one letter each have the offsets of the letter."""
    encoded = EncodedQuestion(
        np.arange(5, dtype=np.int32),
        np.array([(0, 0), (0, 1), (0, 1), (2, 7), (0, 0)], np.int32),
        np.array([-1, 0, 0, 1, -1], np.int32),
        None,
    )
    arrays = [[1.0, 2.0, 0.0], [[1, 1], [2, 2], [3, 3]], [[1.0]] * 3, [[5], [6], [7]]]
    spans = dataclasses.replace(spans_of([arrays]), texts=["\ud30c paris"], encoded=[encoded])
    decoded = Joint()(spans, -9.0)
    assert decoded.characters.tolist() == [[0, 1], [2, 7]]
    assert decoded.rows[:, 0].tolist() == [6, 7]
    assert len(Original()(spans, -9.0).question) == 3  # the original knows tokens only


def test_nan_missing_candidates_and_ties():
    nan, inf = np.nan, np.inf
    scores = [[nan, nan], [2.0, 1.0], [3.0, 2.0], [-inf, -inf], [2.0, 1.0]]
    rows = [[1, 2], [3, 4], [5, -1], [-1, -1], [6, 7]]
    bounds = [[i, i] for i in range(1, 6)]
    for decoder in (Joint(), Original()):
        found = decoder(spans_of([([0.0] * 5, bounds, scores, rows)]), -inf)
        assert found.bounds[:, 0].tolist() == [3, 2, 5]
        assert found.rows[:, 0].tolist() == [5, 3, 6]
        # A missing candidate takes no probability: the only real one has log-probability 0.
        np.testing.assert_allclose(found.candidate_scores[0], [np.log(0.5), -inf])


def test_nothing_to_decode():
    rng = np.random.default_rng(0)
    spans = spans_of([random_question(rng, 0), random_question(rng, 0)])
    for decoder in (Joint(), Original()):
        decoded = decoder(spans, -1.0)
        assert decoded.of(0) == decoded.of(1) == slice(0, 0)
        assert decoded.characters.shape == (0, 2)


def test_roles():
    """[CLS], [SEP] are in no mention, and [UNK] (id 3) alone is none; the original takes all."""
    question = question_of(6)
    inside = INSIDE | FIRST | LAST
    all_of = inside | MEANINGFUL
    assert Joint().roles([question], 3).tolist() == [0, all_of, all_of, inside, all_of, 0]
    assert Original().roles([question], 3).tolist() == [all_of] * 6
    # Tokens 1, 2 and 3 are one word, 4 is another.
    question = question_of(6, words=[0, 0, 0, 1])
    middle, end = INSIDE | MEANINGFUL, INSIDE | MEANINGFUL | LAST
    expected = [0, middle | FIRST, middle, end & ~MEANINGFUL, all_of, 0]
    assert Joint().roles([question], 3).tolist() == expected
    assert Joint(whole_words=False).roles([question], 3).tolist() == [
        0,
        *[all_of] * 2,
        inside,
        all_of,
        0,
    ]
    both = [question_of(6), question, question_of(3)]
    for decoder in (Joint(), Original(allow_special_tokens=False)):
        alone = [decoder.roles([one], 3) for one in both]
        np.testing.assert_array_equal(decoder.roles(both, 3), np.concatenate(alone))
        assert decoder.roles([], 3).shape == (0,)
    strict = Original(allow_special_tokens=False)
    assert strict.roles([question], 3).tolist() == [0, *[all_of] * 4, 0]


OLD = {
    "threshold": -2.9,
    "max_mentions": 50,
    "num_candidates": 10,
    "threshold_type": "joint",
    "mention_threshold": None,
    "max_question_tokens": 32,
    "allow_special_tokens": False,
    "special_tokens_in_text": False,
}


def test_files_from_before_decoders_had_names():
    settings = LinkingSettings.from_dict(OLD)
    assert settings == LinkingSettings(-2.9, 50, 10, 32)
    assert settings.decoding == Joint()
    settings = LinkingSettings.from_dict(OLD | {"allow_special_tokens": True})
    assert settings.decoding == Original(allow_special_tokens=True, special_tokens_in_text=False)
    assert LinkingSettings.from_dict(settings.to_dict()) == settings
    settings = LinkingSettings.from_dict({"threshold_type": TOP, "mention_threshold": -0.5})
    assert settings.decoding == Original(TOP, -0.5, False, False)


def test_settings_of_a_decoder():
    name = "elq_jax.original.decoding:original"
    settings = LinkingSettings().replace(decoder=name, threshold_type=TOP, mention_threshold=-1)
    assert settings.decoding == Original(TOP, -1)
    assert settings.replace(threshold=3.0).replace(mention_threshold=0).decoding == Original(TOP, 0)
    assert settings.replace(decoder="joint").decoder_settings == {}
    for changes, message in (
        ({"decoder": "best"}, "decoder: 'best'; expected one of .*joint, or package.module:name"),
        ({"decoder": "no_such_module:best"}, "decoder 'no_such_module:best': No module named"),
        ({"threshold_type": "both"}, "threshold_type: 'both'; expected one of joint, top"),
        ({"mention_threshold": None}, "mention_threshold: missing; .*give a number"),
        ({"mention_threshold": "x"}, "mention_threshold: 'x'; expected `float"),
        ({"allow_overlaps": 1}, "allow_overlaps: 1; expected `bool`"),
        ({"allow_overlap": True}, "setting 'allow_overlap': unknown; expected one of threshold"),
    ):
        with pytest.raises(ElqError, match=message):
            settings.replace(**changes)


@pytest.mark.parametrize("threshold", [0, 0.5, 3])
def test_probabilities_are_no_thresholds(threshold):
    """Nothing would ever be linked; only scores that can be positive may have such thresholds."""
    with pytest.raises(ElqError, match=r"log-probabilities, below 0.*-0\.69 is a probability"):
        LinkingSettings(threshold=threshold)
    products = LinkingSettings(
        threshold,
        decoder="elq_jax.original.decoding:original",
        decoder_settings={"threshold_type": THRESHOLDED},
    )
    assert products.threshold == threshold
    assert LinkingSettings(np.inf).threshold == np.inf  # said on purpose: no links


def test_thousands_of_questions_per_second():
    rng = np.random.default_rng(1)
    spans = spans_of([random_question(rng, 10, 10) for _ in range(512)])
    start = time.process_time()
    Joint()(spans, -4.5)
    assert 512 / (time.process_time() - start) > 2000


def tokens_of(text, *pieces):
    """Offsets as a tokenizer gives them: [CLS], then each piece where it is found, then [SEP]."""
    offsets, place = [(0, 0)], 0
    for piece in pieces:
        place = text.index(piece, place)
        offsets.append((place, place + len(piece)))
        place += len(piece)
    return np.array([*offsets, (0, 0)], np.int32)


@pytest.mark.parametrize(
    ("text", "pieces", "start", "end", "expected"),
    [
        ("who wrote dune?", ("who", "wrote", "dune", "?"), 3, 3, "dune"),
        ("who wrote dune?", ("who", "wrote", "dune", "?"), 1, 3, "who wrote dune"),
        ("who wrote dune?", ("who", "wrote", "dune", "?"), 0, 1, "who"),
        ("who wrote dune?", ("who", "wrote", "dune", "?"), 4, 5, "?"),
        ("who wrote dune?", ("who", "wrote", "dune", "?"), 0, 0, ""),
        ("who wrote dune?", ("who", "wrote", "dune", "?"), 5, 5, ""),
        ("cafe\u0301 noir", ("cafe", "noir"), 1, 1, "cafe\u0301"),
        ("e\u0301e\u0301", ("e", "e"), 1, 1, "e\u0301"),
        ("e\u0301e", ("e", "\u0301", "e"), 1, 1, "e"),  # the mark is a token of its own
        ("a 👍🏽 b", ("a", "👍🏽", "b"), 2, 2, "👍🏽"),
        ("go [SEP] now", ("go", "[SEP] ", "now"), 1, 2, "go [SEP]"),
    ],
)
def test_character_span(text, pieces, start, end, expected):
    first, last = decoding.character_span(start, end, tokens_of(text, *pieces), text)
    assert text[first:last] == expected


def test_character_spans_of_all_spans_at_once():
    texts = [("who wrote dune?", ("who", "wrote", "dune", "?")), ("", ())]
    texts += [("cafe\u0301 noir", ("cafe", "noir")), ("go [SEP] now", ("go", "[SEP] ", "now"))]
    texts += [("a\x1c\tb c", ("a\x1c\t", "b", "c"))]
    encoded = [
        EncodedQuestion(np.zeros(len(offsets)), offsets, np.zeros(len(offsets)), None)
        for offsets in (tokens_of(text, *pieces) for text, pieces in texts)
    ]
    places = [
        (number, start, end)
        for number, question in enumerate(encoded)
        for start in range(len(question.ids))
        for end in range(start, len(question.ids))
    ]
    question, *bounds = np.array(places).T
    none = np.zeros((len(places), 1))
    spans = ScoredSpans(
        [text for text, _ in texts],
        encoded,
        question,
        question,
        np.stack(bounds, 1),
        none,
        none,
        none,
        0.0,
    )
    order = np.random.default_rng(0).permutation(len(places))
    expected = [
        decoding.character_span(start, end, encoded[number].offsets, texts[number][0])
        for number, start, end in (places[i] for i in order)
    ]
    found = decoding.character_spans(spans, order)
    assert found.dtype == np.int64
    assert [*map(tuple, found.tolist())] == expected


@pytest.mark.parametrize("symbol", ["🎉", "❤️", "👍🏽", "🇫🇷", "👨‍👩‍👧", "™", "® ", "°"])
def test_symbols_at_the_ends_of_a_mention_are_left_out(symbol):
    text = f"who wrote {symbol}dune {symbol} two{symbol}?"
    start, end = trim_ends(text, 10, len(text) - 1)
    assert text[start:end] == f"dune {symbol} two"
    assert trim_ends(text, 0, 9) == (0, 9)
    assert trim_ends(text, 10, 10 + len(symbol)) == (10, 10 + len(symbol))
    assert trim_ends("c++ ke$ha", 0, 3) == (0, 3)


@pytest.mark.parametrize(
    ("text", "mention", "rest"),
    [
        ("played by Jake Wood) in", "Jake Wood)", "Jake Wood"),
        ("as (will.i.am), who", "will.i.am),", "will.i.am"),
        ("the bassist of Prince (musician), who", "Prince (musician),", "Prince (musician)"),
        ('called "Alive"; it', '"Alive";', '"Alive"'),
        ('called "Alive" it', 'Alive"', "Alive"),
        ("the Saints' coach", "Saints'", "Saints"),
        ("von «Die Welt» und", "Die Welt»", "Die Welt"),
        ("看《红楼梦》吗", "红楼梦》", "红楼梦"),
        ("in Washington, D.C. and", "Washington, D.C.", "Washington, D.C."),
        ("Rock 'n' Roll", "'n'", "'n'"),
        ('a "(" b', '"("', '"("'),
        ("f(x);", "(", "("),
        ("في القاهرة، مصر", "القاهرة،", "القاهرة"),
        ("去北京、上海", "北京、", "北京"),
        ("नई दिल्ली है", "नई दिल्ली", "नई दिल्ली"),
    ],
)
def test_unpaired_brackets_and_commas_at_the_ends_of_a_mention_are_left_out(text, mention, rest):
    start = text.index(mention)
    start, end = trim_ends(text, start, start + len(mention))
    assert text[start:end] == rest
