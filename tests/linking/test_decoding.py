"""Decoding against the original's results and against an explicit loop."""

import json
import time

import numpy as np
import pytest
from scipy.special import log_expit, log_softmax

from elq_jax.core.errors import ElqError
from elq_jax.linking import decoding
from elq_jax.original import decoding as original

JOINT, TOP, THRESHOLDED = decoding.THRESHOLD_TYPES


def random_batch(seed, batch=7, mentions=12, candidates=5, tokens=14):
    rng = np.random.default_rng(seed)
    start = rng.integers(0, tokens, (batch, mentions))
    end = np.minimum(start + rng.integers(0, 4, start.shape), tokens - 1)
    return {
        "mention_logits": rng.normal(0, 3, (batch, mentions)).astype(np.float32),
        "bounds": np.stack([start, end], -1),
        "keep_mask": rng.random((batch, mentions)) < 0.8,
        "candidate_scores": -np.sort(-rng.normal(0, 3, (batch, mentions, candidates)), -1),
        "candidate_rows": rng.integers(0, 99, (batch, mentions, candidates)),
    }


def slow_decode(
    logits, bounds, keep, scores, rows, threshold, kind, mention_threshold, length, special
):
    """One question, one mention at a time, with a set of taken tokens."""
    found = []
    for k in range(len(logits)):
        start, end = bounds[k]
        if not keep[k] or (not special and (start == 0 or end == length - 1)):
            continue
        joint = log_softmax(scores[k])[0] + log_expit(float(logits[k]))
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


def short(mentions):
    return [(m.start, m.end, int(m.rows[0]), m.score) for m in mentions]


# Which stored arrays (they exist for settings 0, 1 and 3) contain what a setting needs.
SOURCE = {0: 0, 1: 1, 2: 0, 3: 3, 5: 1, 6: 0, 7: 1, 8: 0, 9: 1}


@pytest.mark.parametrize("setting", SOURCE)
def test_original_pipeline(fixtures, setting):
    arrays = np.load(fixtures / "pipeline.npz")
    run = json.loads((fixtures / "pipeline.json").read_text())["runs"][setting]
    kind = run["settings"].get("threshold_type", JOINT)
    threshold = float(run["settings"].get("threshold", -4.5))
    mention_threshold = run["settings"].get("mention_threshold")
    pruning = mention_threshold if kind == TOP else threshold
    for number, expected in enumerate(run["results"]):
        names = ("mscores", "bounds", "cscores", "nns")
        logits, bounds, scores, rows = (
            arrays[f"{SOURCE[setting]}|{number}|{name}"] for name in names
        )
        keep = log_expit(logits) > pruning
        keep |= not keep.any()
        found = decoding.decode(
            logits,
            bounds,
            keep,
            scores,
            rows,
            threshold,
            kind,
            mention_threshold,
            allow_special_tokens=True,
        )
        triples = [tuple(triple) for triple in expected["pred_triples"]]
        assert original.triples(found) == triples
        np.testing.assert_allclose([m.score for m in found], expected["scores"], atol=1e-4)


@pytest.mark.parametrize("setting", [0, 1, 3])
def test_original_joint_scores(fixtures, setting):
    arrays = np.load(fixtures / "pipeline.npz")
    for question in range(12):
        logits, bounds, scores, rows, expected = (
            arrays[f"{setting}|{question}|{name}"]
            for name in ("mscores", "bounds", "cscores", "nns", "dists")
        )
        found = decoding.decode(
            logits,
            bounds,
            np.ones(len(logits), bool),
            scores,
            rows,
            -np.inf,
            allow_special_tokens=True,
            allow_overlaps=True,
        )
        assert len(found) == len(logits)
        spans = [tuple(bound) for bound in bounds.tolist()]
        for mention in found:
            place = spans.index((mention.start, mention.end))
            np.testing.assert_allclose(mention.scores, expected[place], atol=1e-4)
            np.testing.assert_array_equal(mention.rows, rows[place])
            np.testing.assert_allclose(mention.mention_score, log_expit(logits[place]), atol=1e-6)


@pytest.mark.parametrize("kind", decoding.THRESHOLD_TYPES)
@pytest.mark.parametrize("special", [False, True])
def test_batch_equals_explicit_loop(kind, special):
    for seed, threshold in enumerate((-4.5, -2.0, 0.0, -np.inf)):
        batch = random_batch(seed, tokens=8)
        lengths = np.arange(8, 15)
        found = decoding.decode_batch(
            **batch,
            threshold=threshold,
            threshold_type=kind,
            mention_threshold=-1.0,
            lengths=lengths,
            allow_special_tokens=special,
        )
        for number, mentions in enumerate(found):
            arrays = [array[number] for array in batch.values()]
            expected = slow_decode(*arrays, threshold, kind, -1.0, lengths[number], special)
            assert [m[:3] for m in short(mentions)] == [m[:3] for m in expected]
            np.testing.assert_allclose([m.score for m in mentions], [m[3] for m in expected])
            alone = decoding.decode(
                *arrays,
                threshold,
                kind,
                -1.0,
                length=lengths[number],
                allow_special_tokens=special,
            )
            assert short(alone) == short(mentions)


def test_special_tokens_shadow_nothing():
    """[CLS] + token 1 scores best; without it token 1 alone must come out."""
    arrays = ([9.0, 1.0, 8.0], [[0, 1], [1, 1], [3, 4]], [True] * 3, [[1.0]] * 3, [[5], [6], [7]])
    found = decoding.decode(*arrays, -5.0, length=5)
    assert [(m.start, m.end) for m in found] == [(1, 1)]
    found = decoding.decode(*arrays, -5.0, allow_special_tokens=True)
    assert [(m.start, m.end) for m in found] == [(0, 1), (3, 4)]


def test_nan_missing_candidates_and_ties():
    nan, inf = np.nan, np.inf
    scores = [[nan, nan], [2.0, 1.0], [3.0, 2.0], [-inf, -inf], [2.0, 1.0]]
    rows = [[1, 2], [3, 4], [5, -1], [-1, -1], [6, 7]]
    bounds = [[i, i] for i in range(5)]
    found = decoding.decode(
        [0.0] * 5, bounds, [True] * 5, scores, rows, -inf, allow_special_tokens=True
    )
    assert [(m.start, int(m.rows[0])) for m in found] == [(2, 5), (1, 3), (4, 6)]
    # A missing candidate takes no probability: the only real one has log-probability 0.
    np.testing.assert_allclose(found[0].scores, [np.log(0.5), -inf])


def test_nothing_to_decode():
    empty = decoding.decode_batch(
        np.zeros((2, 0)),
        np.zeros((2, 0, 2), int),
        np.zeros((2, 0), bool),
        np.zeros((2, 0, 3)),
        np.zeros((2, 0, 3), int),
        -1.0,
        lengths=[2, 2],
    )
    assert empty == [[], []]


def test_errors():
    arrays = list(random_batch(0).values())
    with pytest.raises(ElqError, match="threshold_type: found 'both', expected one of joint"):
        decoding.decode_batch(*arrays, -1.0, "both")
    with pytest.raises(ElqError, match="mention_threshold"):
        decoding.decode_batch(*arrays, -1.0, TOP)
    with pytest.raises(ElqError, match="lengths"):
        decoding.decode_batch(*arrays, -1.0)
    arrays[1] = arrays[1][:, :-1]
    with pytest.raises(ElqError, match=r"bounds: found shape \(7, 11, 2\), expected \(7, 12, 2\)"):
        decoding.decode_batch(*arrays, -1.0, lengths=[9] * 7)


def test_thousands_of_questions_per_second():
    batch = random_batch(1, batch=512, mentions=10, candidates=10, tokens=16)
    start = time.perf_counter()
    decoding.decode_batch(**batch, threshold=-4.5, lengths=[16] * 512)
    assert 512 / (time.perf_counter() - start) > 2000


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
