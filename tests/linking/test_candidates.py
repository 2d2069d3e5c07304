"""Candidate scoring against loops over strings and brute force over all entities."""

import json
import math
import re
import shutil

import jax
import numpy as np
import pyarrow as pa
import pytest
from tiny import tiny_linker_directory

from elq_jax import EntityLinker, LinkingSettings
from elq_jax.core.errors import ElqError
from elq_jax.entities.build import build_catalogue
from elq_jax.entities.catalogue import Catalogue
from elq_jax.entities.name_index import NameIndex
from elq_jax.entities.names import normal_names
from elq_jax.linking import directory
from elq_jax.linking.candidates import (
    FEATURES,
    CandidateScorer,
    CandidateWeights,
    best_candidates,
)
from elq_jax.model.bundle import Model

ENTITIES = [
    ("Dune (novel)", ["Dune, the Novel", "dune"]),
    ("Dune", []),
    ("Dune (film)", ["Dune"]),
    ("Dune Messiah", ["Dune 2"]),
    ("Frank Herbert", ["Herbert", "Frank P. Herbert"]),
    ("Herbert Hoover", ["Hoover"]),
    ("New York City", ["New York", "NYC", "Big Apple"]),
    ("New York (state)", ["NY"]),
    ("York", []),
    ("E.T. the Extra-Terrestrial", ["ET"]),
    ("Duran Duran", []),
    ("!!!", []),
]
MENTIONS = ["dune", "The New York", "herbert frank", "big-apple", "Duran duran", "e. t.", "?", ""]
WEIGHTS = CandidateWeights(weights=dict.fromkeys(FEATURES, 0.0) | {"product": 0.5, "title": 2.0})
C, D = 3, 6


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    folder = tmp_path_factory.mktemp("candidates")
    lines = [{"title": t, "text": "", "aliases": aliases} for t, aliases in ENTITIES]
    (folder / "entities.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    build_catalogue(folder / "entities.jsonl", folder / "catalogue.arrow")
    return NameIndex.build(Catalogue.open(folder / "catalogue.arrow"))


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(0).normal(0, 2, (len(ENTITIES), D)).astype(np.float32)


@pytest.fixture(scope="module")
def search(vectors):
    """Mention vectors, and the products and rows of an exact search; one row is not full."""
    mentions = np.random.default_rng(1).normal(0, 1, (len(MENTIONS), D)).astype(np.float32)
    products = mentions @ vectors.T
    rows = np.argsort(-products, axis=1)[:, :C].astype(np.int32)
    products = np.take_along_axis(products, rows, axis=1)
    rows[3, 2], products[3, 2] = -1, -np.inf
    return mentions, products, rows


def words(text):
    [normal] = normal_names(pa.array([text])).to_pylist()
    return set(normal.split())


def key(text):
    [normal] = normal_names(pa.array([text])).to_pylist()
    return normal.replace(" ", "")


def slow_features(mention, row, product, best):
    """The features of one candidate, from strings."""
    title, aliases = ENTITIES[row]
    name = re.sub(r" \([^()]+\)$", "", title)
    own = [
        ("title", title),
        *([("name", name)] * (name != title)),
        *(("alias", a) for a in aliases),
    ]
    kinds = [kind for kind, text in own if key(text) == key(mention)]
    total = 0
    for other, more in ENTITIES:
        stripped = re.sub(r" \([^()]+\)$", "", other)
        texts = [other, *([stripped] * (stripped != other)), *more]
        total += sum(key(text) == key(mention) for text in texts)
    a, b = words(mention), words(name)
    return {
        "product": product - best,
        "named_product": product - best if kinds else 0.0,
        "title": kinds[:1] == ["title"],
        "name": kinds[:1] == ["name"],
        "alias": kinds[:1] == ["alias"],
        "namesakes": math.log(total) if kinds else 0.0,
        "jaccard": len(a & b) / max(len(a | b), 1),
        "mention_in_title": bool(a) and a <= b,
        "title_in_mention": bool(b) and b <= a,
        "qualified": name != title,
        "aliases": math.log(1 + len(aliases)),
    }


def test_candidates_and_features_are_those_of_a_loop(names, vectors, search):
    mentions, _, rows = search
    found = CandidateScorer(WEIGHTS, names, vectors).candidates(MENTIONS, *search)
    added = 0
    for number, mention in enumerate(MENTIONS):
        searched = [row for row in rows[number].tolist() if row >= 0]
        named = {
            row
            for row, (title, aliases) in enumerate(ENTITIES)
            if key(mention) in map(key, [title, re.sub(r" \([^()]+\)$", "", title), *aliases])
        }
        own = found.mentions == number
        assert found.rows[own].tolist()[: len(searched)] == searched
        assert set(found.rows[own].tolist()) == set(searched) | named
        assert own.sum() == len(set(searched) | named)
        added += own.sum() - len(searched)
        expected = {row: float(mentions[number] @ vectors[row]) for row in found.rows[own].tolist()}
        np.testing.assert_allclose(found.products[own], [*expected.values()], rtol=1e-5)
        best = max(expected.values())
        for row, features in zip(found.rows[own].tolist(), found.features[own], strict=True):
            slow = slow_features(mention, row, expected[row], best)
            assert list(slow) == list(FEATURES)
            np.testing.assert_allclose(features, [float(v) for v in slow.values()], atol=1e-5)
    assert added > 3


def test_scores_are_the_best_of_a_brute_force(names, vectors, search):
    rng = np.random.default_rng(2)
    weights = CandidateWeights(weights={name: rng.normal() for name in FEATURES})
    scorer = CandidateScorer(weights, names, vectors)
    found = scorer.candidates(MENTIONS, *search)
    scores, rows = scorer(MENTIONS, *search)
    assert (scores.dtype, rows.dtype) == (np.float32, np.int32)
    for number in range(len(MENTIONS)):
        own = found.mentions == number
        known = [
            (sum(weights.weights[n] * f[i] for i, n in enumerate(FEATURES)), row)
            for f, row in zip(found.features[own], found.rows[own].tolist(), strict=True)
        ]
        known = sorted(known, reverse=True)[:C]
        count = len(known)
        assert rows[number, :count].tolist() == [row for _, row in known]
        np.testing.assert_allclose(scores[number, :count], [s for s, _ in known], rtol=1e-5)
        assert (rows[number, count:] == -1).all()
        assert np.isneginf(scores[number, count:]).all()
        assert np.exp(scores[number, :count] - np.logaddexp.reduce(scores[number])).sum() == (
            pytest.approx(1, abs=1e-5)
        )


def test_products_alone_keep_the_search(names, vectors, search):
    """With weight 1 of the product and no other, nothing changes but a constant per mention."""
    _, products, rows = search
    scorer = CandidateScorer(CandidateWeights(weights={"product": 1.0}), names, vectors)
    scores, found = scorer(MENTIONS, *search)
    full = [0, 1, 2, 4, 5, 6, 7]  # the search was exact for all but one
    np.testing.assert_array_equal(found[full], rows[full])
    np.testing.assert_allclose(scores[full], products[full] - products[full, :1], atol=1e-5)


def test_no_mentions_and_no_candidates(names, vectors):
    scorer = CandidateScorer(WEIGHTS, names, vectors)
    scores, rows = scorer(
        [], *(np.zeros((0, n), np.float32) for n in (D, C)), np.zeros((0, C), int)
    )
    assert scores.shape == rows.shape == (0, C)
    scores, rows = scorer(
        ["?"], np.ones((1, D), np.float32), np.full((1, C), -np.inf), np.full((1, C), -1)
    )
    assert (rows == -1).all()


def test_equal_scores_keep_their_order():
    scores, rows = best_candidates(
        np.array([0, 0, 0, 2]), np.array([7, 8, 9, 5]), np.array([1.0, 2.0, 1.0, 0.0]), (3, 2)
    )
    assert rows.tolist() == [[8, 7], [-1, -1], [5, -1]]
    assert scores.tolist() == [[2, 1], [-np.inf, -np.inf], [0, -np.inf]]


def test_weights_are_read_as_they_were_written(tmp_path):
    weights = CandidateWeights(weights={"product": 0.1, "alias": -3.0}, fitted_on=7)
    weights.write(tmp_path / "candidates.json")
    assert CandidateWeights.read(tmp_path / "candidates.json") == weights
    assert weights.vector.tolist() == [0.1, 0, 0, 0, -3, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"weights": {"height": 1.0}}', "'height' is 1.0, expected finite weights of product"),
        ('{"weights": {"product": 1e999}}', "candidates.json"),
        ('{"weights": {"product": "x"}}', "candidates.json"),
        ('{"format_version": 2, "weights": {}}', "candidates.json"),
        ("{", "not JSON"),
    ],
)
def test_damaged_weights_are_refused(tmp_path, content, message):
    (tmp_path / "candidates.json").write_text(content)
    with pytest.raises(ElqError, match=message):
        CandidateWeights.read(tmp_path / "candidates.json")


def test_names_and_vectors_of_different_catalogues(names, vectors):
    with pytest.raises(ElqError, match="12 entities, the embeddings 11"):
        CandidateScorer(WEIGHTS, names, vectors[1:])


QUESTIONS = ["was Wounded using socio at hillsborough ?", "was 👩‍👩‍👧 obama 🇨🇮 born", ""]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tiny_linker_directory(tmp_path_factory.mktemp("plain"), max_mentions=99)
    return EntityLinker.from_pretrained(folder, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def scored_folder(plain, tmp_path_factory):
    """A linker directory with a scorer that likes titles."""
    folder = tmp_path_factory.mktemp("scored") / "linker"
    weights = CandidateWeights(weights={"product": 1.0, "title": 20.0, "mention_in_title": 4.0})
    names = NameIndex.build(plain.catalogue)
    scorer = CandidateScorer(weights, names, plain.embeddings)
    settings = plain.settings.replace(thresholds={"joint, candidates as searched": -3.0})
    EntityLinker(
        Model.open(plain.folder),
        plain.catalogue,
        plain.index,
        settings,
        embeddings=plain.embeddings,
        candidate_scorer=scorer,
        devices=jax.devices()[:1],
    ).save_pretrained(folder)
    return folder


def columns(links):
    return [[link.to_dict() for link in of_question] for of_question in links]


def test_a_linker_rescores_and_one_flag_turns_it_off(plain, scored_folder):
    linker = EntityLinker.from_pretrained(scored_folder, devices=jax.devices()[:1])
    spans = plain.score_batch(QUESTIONS, -np.inf)
    rescored = linker.score_batch(QUESTIONS, -np.inf)
    assert len(spans.rows) == len(rescored.rows) > 3
    np.testing.assert_array_equal(spans.bounds, rescored.bounds)
    np.testing.assert_array_equal(spans.logits, rescored.logits)
    assert (spans.rows != rescored.rows).any()
    for number, question in enumerate(rescored.question.tolist()):
        # The first candidate is the best by hand among those of the search.
        (start, end), text = rescored.bounds[number], QUESTIONS[question]
        offsets = rescored.encoded[question].offsets
        mention = text[offsets[start][0] : offsets[end][1]]
        titles = plain.catalogue.titles(spans.rows[number])
        by_hand = [
            product + 20.0 * (key(mention) == key(title)) + 4.0 * (words(mention) <= words(title))
            for product, title in zip(spans.scores[number].tolist(), titles, strict=True)
        ]
        shift = spans.scores[number, 0]
        assert rescored.scores[number, 0] >= max(by_hand) - shift - 1e-4
    off = linker.with_settings(candidate_scoring=False)
    assert off.settings.threshold == -3.0  # the other one's
    links = off(QUESTIONS, threshold=-np.inf)
    assert columns(links) == columns(plain(QUESTIONS, threshold=-np.inf))
    on = off.with_settings(candidate_scoring=True)
    assert on.settings.threshold == linker.settings.threshold
    assert columns(on(QUESTIONS)) == columns(linker(QUESTIONS))
    [known] = linker.disambiguate(QUESTIONS[0], [(27, 39)])
    assert (known.mention, known.title) == ("hillsborough", "Hillsborough")
    assert np.exp([c.score for c in known.candidates]).sum() == pytest.approx(1, abs=1e-5)


def test_the_files_of_a_scorer_are_verified(scored_folder, tmp_path):
    found = directory.verify(scored_folder)
    assert found["names"] == "names of 500 entities, checksums agree"
    assert found["candidates.json"] == "3 weights, can be read"
    folder = shutil.copytree(scored_folder, tmp_path / "linker")
    shutil.rmtree(folder / "names")
    with pytest.raises(ElqError, match=r"names: missing, but candidates\.json needs it"):
        directory.verify(folder)
    with pytest.raises(ElqError, match=r"names.json is missing"):
        EntityLinker.from_pretrained(folder, devices=jax.devices()[:1])
    names = NameIndex.open(scored_folder / "names")
    NameIndex(names._arrays, "0" * 64).save(folder / "names")
    for check in (directory.verify, EntityLinker.from_pretrained):
        with pytest.raises(ElqError, match="names of another catalogue"):
            check(folder)


def test_each_way_of_scoring_has_its_threshold():
    other = LinkingSettings(candidate_scoring=False).way
    settings = LinkingSettings(threshold=-2.0, thresholds={other: -1.0, "joint": -2.0})
    off = settings.replace(candidate_scoring=False)
    assert off.threshold == -1.0
    assert LinkingSettings.from_dict(off.to_dict()) == off
    assert off.replace(candidate_scoring=False) == off
    assert off.replace(candidate_scoring=True) == settings
    assert settings.replace(candidate_scoring=False, threshold=-3.0).threshold == -3.0
    assert LinkingSettings().replace(candidate_scoring=False).threshold == -4.5
    with pytest.raises(ElqError, match="candidate_scoring: 1; expected true or false"):
        LinkingSettings(candidate_scoring=1)
