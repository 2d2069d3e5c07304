"""The device half of linking: which spans are found, what is moved, against slow loops."""

import itertools

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from reference import square
from scipy.special import log_expit
from tiny import tiny_config, tiny_linker_directory, tiny_params

from elq_jax import EntityLinker
from elq_jax.core import devices as devices_lib
from elq_jax.core.errors import ElqError
from elq_jax.linking.decoding import FIRST, INSIDE, LAST, MEANINGFUL
from elq_jax.linking.scoring import allowed_spans
from elq_jax.model import spans
from elq_jax.model.elq import QuestionEncoder

TEXT = "who wrote the amazonian song of lisztomania in ohio ?"


@pytest.fixture(scope="module")
def linker(tmp_path_factory):
    folder = tiny_linker_directory(tmp_path_factory.mktemp("linker"), threshold=-4.5)
    return EntityLinker.from_pretrained(folder, devices=jax.devices()[:1])


def test_allowed_spans_equal_a_loop():
    rng = np.random.default_rng(0)
    roles = rng.choice([0, INSIDE, INSIDE | FIRST, 7, 15, 15, 15], (4, 9)).astype(np.uint8)
    roles[0, 2:] = 7  # nothing meaningful from here
    expected = np.zeros((4, 9, 9), bool)
    for b, i, j in itertools.product(range(4), range(9), range(9)):
        tokens = roles[b, i : j + 1]
        expected[b, i, j] = (
            1 <= len(tokens) <= 3
            and all(tokens & INSIDE)
            and tokens[0] & FIRST
            and tokens[-1] & LAST
            and any(tokens & MEANINGFUL)
        )
    assert expected.any()
    found = allowed_spans(jnp.array(roles), 3)
    assert found.shape == (4, 9, 3)
    np.testing.assert_array_equal(square(found, False), expected)


def slow_prune(logits, k, threshold):
    """Spans of one band: the k best, of these the ones above the threshold, by place."""
    cells = list(np.ndindex(logits.shape))
    best = sorted(cells, key=lambda cell: -logits[cell])[:k]
    kept = [cell for cell in best if jax.nn.log_sigmoid(jnp.float32(logits[cell])) > threshold]
    return [(i, i + w) for i, w in sorted(kept)]


def test_a_span_exactly_at_the_threshold_is_not_kept():
    rng = np.random.default_rng(0)
    logits = rng.choice([-2.0, -1.0, 0.0, 1.0, -np.inf], (3, 6, 4)).astype(np.float32)
    for value in (-1.0, 0.0, 1.0):
        at = np.float32(jax.nn.log_sigmoid(jnp.float32(value)))
        for threshold in (at, np.nextafter(at, np.float32(-9))):
            found, bounds, keep = spans.prune(jnp.array(logits), 24, threshold, keep_any=False)
            for b in range(3):
                expected = slow_prune(logits[b], 24, threshold)
                assert [tuple(x) for x in np.array(bounds[b])[np.array(keep[b])]] == expected
                assert bool((found[b] == value).any()) == (threshold < at)


def slow_spans(linker, text, k, threshold):
    """Spans of a question from the band of the encoder, in a loop over all cells."""
    [question] = linker.encode([text])
    ids = question.ids[None]
    encoder = QuestionEncoder(tiny_config())
    params = {"params": tiny_params()["question"]}
    _, band = encoder.apply(params, ids, np.ones_like(ids, bool))
    [grid], words = square(band), question.words
    cells = [
        (i, j)
        for i, j in np.ndindex(grid.shape)
        if 0 < i <= j < len(words) - 1
        and j - i < 11
        and words[i - 1] != words[i]
        and words[j + 1] != words[j]
        and any(question.ids[i : j + 1] != linker.tokenizer.unk_id)
    ]
    best = sorted(cells, key=lambda cell: -grid[cell])[:k]
    return sorted(cell for cell in best if log_expit(grid[cell].astype(float)) > threshold), grid


@pytest.mark.parametrize("k", [3, 200])
def test_only_whole_words_are_found(linker, k):
    text = TEXT + " \U0001f600"  # [UNK]
    linker = linker.with_settings(max_mentions=k)
    expected, _ = slow_spans(linker, text, k, -6.0)
    scored = linker.score_batch([text], -6.0)
    assert [tuple(x) for x in scored.bounds.tolist()] == expected
    assert len(expected) == min(k, 12)
    links = linker(text, -np.inf)
    assert links
    for link in links:
        assert not text[link.start - 1 : link.start].isalnum()
        assert not text[link.end : link.end + 1].isalnum()
        assert link.mention != "\U0001f600"
    inside = linker.with_settings(whole_words=False, max_mentions=200).score_batch([text], -np.inf)
    whole = linker.with_settings(max_mentions=200).score_batch([text], -np.inf)
    assert len(inside.question) > len(whole.question)


def test_a_span_with_sep_takes_no_place(linker):
    """The best spans of all contain [SEP]; with as few places as that the next ones are found."""
    params = jax.tree.map(np.array, tiny_params()["question"])
    [question] = linker.encode([TEXT])
    encoder = QuestionEncoder(tiny_config())
    ids = question.ids[None]
    hidden, _ = encoder.apply({"params": params}, ids, np.ones_like(ids, bool))
    # The end score of a token becomes its similarity with [SEP].
    sep = np.array(hidden[0, -1])
    kernel = np.array(params["mention_head"]["kernel"])
    kernel[:, 1] = sep * 20 / (sep @ sep)
    params["mention_head"]["kernel"] = kernel
    _, band = encoder.apply({"params": params}, ids, np.ones_like(ids, bool))
    grid = square(band)
    best = np.unravel_index(np.argmax(grid[0]), grid[0].shape)
    assert best[1] == len(question.ids) - 1
    changed = linker.with_params(params).with_settings(max_mentions=2)
    scored = changed.score_batch([TEXT], -np.inf)
    assert len(scored.question) == 2
    assert scored.bounds.max() < len(question.ids) - 1
    original = changed.with_settings(decoder="elq_jax.original.decoding:original")
    assert original.score_batch([TEXT], -np.inf).bounds.max() == len(question.ids) - 1


def test_parameters_on_the_devices_stay_there(linker, monkeypatch):
    """A training step's parameters are used as they are; others are copied when needed."""
    moved = []
    replicate = devices_lib.replicate
    monkeypatch.setattr(
        devices_lib, "replicate", lambda *args: moved.append(args) or replicate(*args)
    )
    params = jax.tree.map(lambda x: 0.9 * x, tiny_params()["question"])
    expected = linker.with_params(params)(TEXT, -np.inf)
    assert len(moved) == 1
    placed = replicate(params, jax.devices()[:1])
    found = linker.with_params(placed)(TEXT, -np.inf)
    step = devices_lib.parallel(
        lambda x, _: jax.tree.map(jnp.copy, x),
        jax.devices()[:1],
        replicated=(0,),
        returns_replicated=True,
    )
    stepped = linker.with_params(step(placed, np.zeros(1)))(TEXT, -np.inf)
    assert len(moved) == 1
    assert found == stepped == expected
    two = EntityLinker(
        linker.model.replace(params={"question": replicate(params, jax.devices()[:2])}),
        linker.catalogue,
        linker.index,
        devices=jax.devices()[:2],
    )
    links = two(TEXT, -np.inf)
    assert len(moved) == 1
    for link, wanted in zip(links, expected, strict=True):
        assert msgspec.structs.replace(link, score=0, mention_score=0, candidates=()) == (
            msgspec.structs.replace(wanted, score=0, mention_score=0, candidates=())
        )


def test_found_and_given_in_one_pass(linker):
    texts = [TEXT, "", "paris in ohio", "dune"]
    encoded = linker.encode(texts)
    bounds = [np.array([[5, 6], [1, 1]]), [], np.array([[3, 3], [1, 1], [1, 3]]), np.zeros((0, 2))]
    found, given = linker.score_encoded(texts, encoded, -6.0, 2, bounds)
    alone = linker.score_batch(texts, -6.0)
    for name in ("question", "bounds", "rows"):
        np.testing.assert_array_equal(getattr(found, name), getattr(alone, name))
    np.testing.assert_allclose(found.scores, alone.scores, atol=2e-5)
    assert given.question.tolist() == [0, 0, 2, 2, 2]
    assert given.bounds.tolist() == [[5, 6], [1, 1], [3, 3], [1, 1], [1, 3]]
    pairs = [np.reshape(own, (-1, 2)) for own in bounds]
    [(_, vectors)] = linker.scorer(encoded, linker.max_question_tokens, 8, None, pairs)
    order = np.argsort(vectors.question, kind="stable")
    scores, rows = linker.index.search(vectors.vectors[order], 10)
    np.testing.assert_array_equal(given.rows, rows)
    np.testing.assert_allclose(given.scores, scores, atol=2e-5)
    with pytest.raises(
        ElqError, match=r"bounds\[1\]: \[0, 2\]; expected the first and the last token"
    ):
        linker.score_encoded(texts, encoded, bounds=[[], [[0, 2]], [], []])
