"""Probabilities of links: features against a loop, the decoder, files, and links to nothing."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from scipy.special import log_expit, log_softmax
from test_decoding import question_of
from tiny import tiny_linker_directory

from elq_jax import EntityLinker, LinkingSettings
from elq_jax.core.errors import DataError, ElqError
from elq_jax.entities.name_index import NameIndex
from elq_jax.linking import directory
from elq_jax.linking.candidates import FEATURES as CANDIDATE_FEATURES
from elq_jax.linking.candidates import Candidates, CandidateScorer, CandidateWeights
from elq_jax.linking.confidence import (
    FEATURES,
    LinkScorer,
    LinkWeights,
    span_features,
)
from elq_jax.linking.decoding import Confident, pairs_within
from elq_jax.linking.links import Confidence, ScoredSpans
from elq_jax.linking.rows import Linked, Row, to_line
from elq_jax.linking.settings import threshold_of
from elq_jax.model.bundle import Model
from elq_jax.questions.read import read_questions

QUESTIONS = ["what river flows through hillsborough ohio?", "obama and the berkshire mountains"]


def spans_with_candidates(seed=0, questions=6, columns=3):
    """Scored spans, their candidates with more than C each, and the candidates of each span."""
    rng = np.random.default_rng(seed)
    words = [[0, 1, 1, 2, 3, 4, 4, 5], [0, 0, 1, 2, 3, 4, 5, 6]]
    encoded = [question_of(10, words[number % 2]) for number in range(questions)]
    counts = rng.integers(0, 6, questions)
    question = np.repeat(np.arange(questions, dtype=np.int32), counts)
    start = rng.integers(1, 8, len(question))
    bounds = np.stack([start, np.minimum(start + rng.integers(0, 3, len(start)), 8)], 1)
    logits = rng.normal(-2, 3, len(question)).astype(np.float32)
    sizes = rng.integers(1, 6, len(question))
    sizes[1] = 1
    mentions = np.repeat(np.arange(len(question)), sizes)
    rows = np.concatenate([rng.permutation(8)[:size] for size in sizes])
    features = rng.normal(0, 1, (len(rows), len(CANDIDATE_FEATURES)))
    for name in ("title", "name", "alias", "title_in_mention"):
        place = list(CANDIDATE_FEATURES).index(name)
        features[:, place] = rng.random(len(rows)) < 0.2
    candidates = Candidates(mentions, rows, rng.normal(5, 2, len(rows)), features)
    best = np.full((len(question), columns), -1, np.int32)
    scores = np.full((len(question), columns), -np.inf, np.float32)
    for span in range(len(question)):
        own = rows[mentions == span][:columns]
        best[span, : len(own)] = own
        scores[span, : len(own)] = -np.sort(-rng.normal(0, 2, len(own)))
    texts = ["x" * 8] * questions
    spans = ScoredSpans(texts, encoded, question, question, bounds, logits, scores, best, -np.inf)
    return spans, candidates


def without_candidates(spans, candidates, numbers):
    """The same, with no candidate for some spans."""
    scores, rows = spans.scores.copy(), spans.rows.copy()
    scores[numbers], rows[numbers] = -np.inf, -1
    kept = ~np.isin(candidates.mentions, numbers)
    fields = dataclasses.fields(candidates)
    fewer = Candidates(*(getattr(candidates, field.name)[kept] for field in fields))
    return dataclasses.replace(spans, scores=scores, rows=rows), fewer


def slow_features(spans, candidates, number):
    """The features of one span, from everything that was found in its question."""
    names = list(CANDIDATE_FEATURES)

    def joint_of(span):
        mention = log_expit(float(spans.logits[span]))
        if spans.rows[span, 0] < 0:
            return [mention]
        return mention + log_softmax(spans.scores[span].astype(np.float64))

    def is_named(place):
        kinds = ("title", "name", "alias")
        return any(candidates.features[place, names.index(kind)] for kind in kinds)

    def is_name(span):
        return any(is_named(place) for place in np.flatnonzero(candidates.mentions == span))

    first, last = spans.bounds[number]
    others = [i for i in np.flatnonzero(spans.question == spans.question[number]) if i != number]
    overlapping = [
        i for i in others if set(range(first, last + 1)) & set(range(*spans.bounds[i] + [0, 1]))
    ]
    longer = [i for i in overlapping if np.ptp(spans.bounds[i]) > last - first]
    apart = [i for i in others if i not in overlapping]
    entity = log_softmax(spans.scores[number].astype(np.float64))
    joint = joint_of(number)[0]
    [best] = [
        place
        for place in np.flatnonzero(candidates.mentions == number)
        if candidates.rows[place] == spans.rows[number, 0]
    ]
    rival = max((joint_of(i)[0] for i in overlapping), default=-np.inf)
    own_words = spans.encoded[spans.question[number]].words[first : last + 1]
    return {
        "logit": spans.logits[number],
        "mention": log_expit(float(spans.logits[number])),
        "entity": entity[0],
        "margin": min(entity[0] - entity[1], 6),
        "product": candidates.products[best],
        "words": len(set(own_words.tolist())),
        "is_name": is_name(number),
        "is_its_name": is_named(best),
        "title_in_span": candidates.features[best, names.index("title_in_mention")],
        "in_longer_name": any(is_name(i) for i in longer),
        "in_longer_mention": any(spans.rows[i, 0] == spans.rows[number, 0] for i in longer),
        "rival": min(max(joint - rival, -6), 6),
        "others": max([-6, *(joint_of(i)[0] for i in apart)]),
    }


@pytest.mark.parametrize("seed", range(4))
def test_features_are_those_of_a_loop(seed):
    spans, candidates = spans_with_candidates(seed)
    if seed % 2:
        numbers = np.arange(2, len(spans.question), 3)
        spans, candidates = without_candidates(spans, candidates, numbers)
    found = span_features(spans, candidates)
    assert found.shape == (len(spans.question), len(FEATURES))
    for number in range(len(spans.question)):
        if spans.rows[number, 0] < 0:
            assert np.isnan(found[number]).any()
            continue
        expected = slow_features(spans, candidates, number)
        assert list(expected) == list(FEATURES)
        np.testing.assert_allclose(
            found[number], [float(value) for value in expected.values()], rtol=1e-6, atol=1e-9
        )


def test_no_spans_and_spans_without_candidates():
    spans, candidates = spans_with_candidates()
    empty = dataclasses.replace(
        spans,
        **{name: getattr(spans, name)[:0] for name in ("question", "window", "bounds", "logits")},
        scores=spans.scores[:0],
        rows=spans.rows[:0],
    )
    nothing = Candidates(*(getattr(candidates, f.name)[:0] for f in dataclasses.fields(candidates)))
    assert span_features(empty, nothing).shape == (0, len(FEATURES))
    spans, fewer = without_candidates(spans, candidates, [0])
    confidence = LinkScorer(LinkWeights(mention={"entity": 1.0}, link={"entity": 1.0}))
    spans = dataclasses.replace(spans, confidence=confidence(spans, fewer))
    assert np.isnan(spans.confidence.links[0])
    decoded = Confident()(spans, -np.inf)
    assert (decoded.rows[:, 0] >= 0).all()


def test_pairs_within_groups():
    groups = [0, 0, 2, 5, 5, 5]
    left, right = pairs_within(groups)
    expected = [(i, j) for i in range(6) for j in range(6) if i != j and groups[i] == groups[j]]
    assert list(zip(left.tolist(), right.tolist(), strict=True)) == expected


@pytest.mark.parametrize("seed", range(3))
def test_searched_spans_are_those_of_a_loop(seed):
    spans, _ = spans_with_candidates(seed)
    decoder = Confident(search_floor=-2.5, search_margin=1.5)
    found = decoder.searches(spans.question, spans.bounds, spans.logits)
    scores = log_expit(spans.logits.astype(np.float64))
    expected = []
    for i, (question, (first, last)) in enumerate(zip(spans.question, spans.bounds, strict=True)):
        is_beaten = any(
            spans.question[j] == question
            and spans.bounds[j, 0] <= last
            and spans.bounds[j, 1] >= first
            and scores[j] >= scores[i] + 1.5
            for j in range(len(scores))
        )
        expected.append(scores[i] > -2.5 and not is_beaten)
    assert found.tolist() == expected
    assert len(set(expected)) == 2
    everything = Confident(search_floor=-np.inf, search_margin=np.inf)
    assert everything.searches(spans.question, spans.bounds, spans.logits).all()
    assert decoder.searches(spans.question[:0], spans.bounds[:0], spans.logits[:0]).shape == (0,)


def random_confidence(count, seed=0):
    rng = np.random.default_rng(seed)
    links, nil = np.log(rng.random(count)), np.log(rng.random(count))
    return Confidence(rng.normal(0, 2, count), links, nil, rng.random(count) < 0.3)


def slow_decode(spans, threshold, nil):
    """Mentions one at a time, as (question, start, end, score, is_nil)."""
    found = []
    for question in range(len(spans.texts)):
        own = np.flatnonzero(spans.question == question).tolist()
        taken, chosen = set(), []
        for i in sorted(own, key=lambda i: -spans.confidence.mentions[i]):
            tokens = set(range(spans.bounds[i, 0], spans.bounds[i, 1] + 1))
            if taken & tokens:
                continue
            taken |= tokens
            is_nil = nil and bool(spans.confidence.is_nil[i])
            score = (spans.confidence.nil if is_nil else spans.confidence.links)[i]
            if score > threshold:
                start, end = spans.bounds[i].tolist()
                chosen.append((question, start - 1, end, score, is_nil))
        found += sorted(chosen, key=lambda link: -link[3])
    return found


@pytest.mark.parametrize("nil", [False, True])
def test_decoding_is_that_of_a_loop_and_a_higher_threshold_only_cuts(nil):
    spans, _ = spans_with_candidates(3)
    spans = dataclasses.replace(spans, confidence=random_confidence(len(spans.question)))
    decoder, before = Confident(nil=nil), None
    assert decoder.threshold_filters
    for threshold in (-np.inf, -2.0, -0.7, -0.1):
        decoded = decoder(spans, threshold)
        found = list(
            zip(
                decoded.question.tolist(),
                *decoded.characters.T.tolist(),
                decoded.scores.tolist(),
                decoded.is_nil.tolist(),
                strict=True,
            )
        )
        assert found == slow_decode(spans, threshold, nil)
        np.testing.assert_allclose(decoded.probabilities, np.exp(decoded.scores))
        assert before is None or set(found) <= set(before)
        before = found


def weights(**parts):
    link = {"entity": 1.0, "mention": 0.5, "bias": 1.0}
    return LinkWeights(**{"mention": {"logit": 1.0, "words": 0.3}, "link": link} | parts)


def test_files_are_read_as_written_and_damaged_ones_refused(tmp_path):
    path = tmp_path / "confidence.json"
    written = weights(nil={"is_name": -2.0}, nil_threshold=0.25, fitted_on=7)
    written.write(path)
    assert LinkWeights.read(path) == written
    values = json.loads(path.read_text())
    for change, message in (
        ({"link": {"entitty": 1.0}}, "\"link\": 'entitty' is 1.0, expected finite weights of"),
        ({"nil": {"bias": 1e999}}, "out of range"),
        ({"mention": 3}, "mention"),
        ({"nil_threshold": 2.0}, "nil_threshold"),
        ({"format_version": 9}, "format_version"),
    ):
        path.write_text(json.dumps(values | change).replace("Infinity", "1e999"))
        with pytest.raises(DataError, match=message) as raised:
            LinkWeights.read(path)
        assert str(path) in str(raised.value)
    path.write_text(json.dumps(values)[:-9])
    with pytest.raises(DataError):
        LinkWeights.read(path)


def test_a_probability_stands_for_a_threshold():
    settings = LinkingSettings(decoder="confidence")
    assert settings.at(min_probability=0.7).threshold == pytest.approx(math.log(0.7))
    assert math.exp(settings.at(min_probability=0.7).threshold) < 0.7 * (1 + 1e-12)
    assert math.log(0.7) > threshold_of(0.7)
    assert settings.at(min_probability=0).threshold == -math.inf
    assert settings.at(min_probability=1).threshold < 0
    assert settings.at() is settings
    for arguments, message in (
        ({"threshold": -1.0, "min_probability": 0.5}, "both decide; give one of them"),
        ({"min_probability": 1.5}, "min_probability: 1.5; expected a number from 0 to 1"),
        ({"min_probability": "high"}, "min_probability: 'high'; expected a number"),
        ({"threshold": 0.5}, "or a min_probability"),
    ):
        with pytest.raises(ElqError, match=message):
            settings.at(**arguments)
    with pytest.raises(ElqError, match="links of the decoder 'joint' have no probability"):
        LinkingSettings().at(min_probability=0.5)
    with pytest.raises(ElqError, match="'nil': a setting of the decoder 'confidence'"):
        LinkingSettings().replace(nil=True)


def test_each_way_of_linking_has_its_threshold():
    searched = LinkingSettings(candidate_scoring=False).way
    thresholds = {"joint": -2.0, searched: -1.0, "confidence": -0.9}
    settings = LinkingSettings(-0.9, decoder="confidence", thresholds=thresholds)
    assert settings.replace(decoder="joint").threshold == -2.0
    plain = settings.replace(candidate_scoring=False)
    assert (plain.decoder, plain.threshold) == ("joint", -1.0)
    assert plain.replace(candidate_scoring=True, decoder="confidence").threshold == -0.9
    assert LinkingSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    with pytest.raises(ElqError, match="'confidence' needs candidate scoring"):
        LinkingSettings(decoder="confidence", candidate_scoring=False)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tiny_linker_directory(tmp_path_factory.mktemp("plain"), max_mentions=99)
    return EntityLinker.from_pretrained(folder, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def linker(plain, tmp_path_factory):
    """A linker with probabilities, which takes long spans that are no name for unknown things."""
    folder = tmp_path_factory.mktemp("confident") / "linker"
    scorer = CandidateScorer(
        CandidateWeights(weights={"product": 1.0, "title": 20.0}),
        NameIndex.build(plain.catalogue),
        plain.embeddings,
    )
    nil = {"is_name": -9.0, "words": 0.5}
    everything = {"floor": -30.0, "search_floor": -30.0, "search_margin": 30.0}
    EntityLinker(
        Model.open(plain.folder),
        plain.catalogue,
        plain.index,
        plain.settings.replace(decoder="confidence", threshold=-8.0, **everything),
        embeddings=plain.embeddings,
        candidate_scorer=scorer,
        link_scorer=LinkScorer(weights(nil=nil, nil_threshold=0.7)),
        devices=jax.devices()[:1],
    ).save_pretrained(folder)
    return EntityLinker.from_pretrained(folder, devices=jax.devices()[:1])


def columns(links):
    return [[link.to_dict() for link in of_question] for of_question in links]


def test_links_have_probabilities_and_joint_linking_is_as_before(plain, linker):
    links = [link for own in linker(QUESTIONS) for link in own]
    assert len(links) > 2
    for link in links:
        assert link.probability == pytest.approx(math.exp(link.score))
        assert link.to_dict()["probability"] == link.probability
    middle = sorted(link.probability for link in links)[1]
    some = linker(QUESTIONS, min_probability=middle)
    assert some == [
        [link for link in own if link.probability >= middle] for own in linker(QUESTIONS)
    ]
    assert list(linker.pipe(QUESTIONS, min_probability=middle)) == some
    off = linker.with_settings(candidate_scoring=False)
    expected = plain(QUESTIONS, threshold=-np.inf)
    assert columns(off(QUESTIONS, threshold=-np.inf)) == columns(expected)
    assert all(link.probability is None for own in expected for link in own)
    [known] = linker.disambiguate(QUESTIONS[0], [(25, 37)])
    assert known.probability == pytest.approx(math.exp(known.score))
    assert 0 < known.probability <= 1
    with pytest.raises(ElqError, match="threshold, min_probability: both decide"):
        linker(QUESTIONS, -1.0, min_probability=0.5)
    with pytest.raises(ElqError, match=r"this linker has no confidence\.json"):
        plain.with_settings(decoder="confidence")
    assert directory.verify(linker.folder)["confidence.json"] == "can be read"


def test_the_threshold_does_not_change_which_spans_are_searched_for(linker):
    scored = [linker.score_batch(QUESTIONS, threshold) for threshold in (-20.0, -0.5)]
    np.testing.assert_array_equal(*(spans.bounds for spans in scored))
    np.testing.assert_array_equal(*(spans.confidence.links for spans in scored))


def test_spans_that_are_not_searched_for_have_candidates_by_name(linker, monkeypatch):
    searched = linker.score_batch(QUESTIONS)
    queries, search = [], linker.index.search

    def counting(vectors, count):
        queries.append(len(vectors))
        return search(vectors, count)

    monkeypatch.setattr(linker.index, "search", counting)
    none = linker.with_settings(search_floor=0.0).score_batch(QUESTIONS)
    assert not queries
    some = linker.with_settings(search_margin=0.5).score_batch(QUESTIONS)
    np.testing.assert_array_equal(searched.bounds, some.bounds)
    is_searched = linker.with_settings(search_margin=0.5).settings.decoding.searches(
        some.question, some.bounds, some.logits
    )
    assert queries == [is_searched.sum()]
    assert 0 < queries[0] < len(is_searched)
    np.testing.assert_array_equal(some.rows[is_searched], searched.rows[is_searched])
    np.testing.assert_array_equal(some.rows[~is_searched], none.rows[~is_searched])
    for number, (start, end), rows in zip(none.question, none.bounds, none.rows, strict=True):
        offsets = none.encoded[number].offsets
        text = none.texts[number][offsets[start, 0] : offsets[end, 1]]
        names = linker.candidate_scorer.names.find([text])
        assert set(rows[rows >= 0]) == set(names.rows)
    assert (none.rows[:, 0] >= 0).any()
    assert np.isnan(none.confidence.links[none.rows[:, 0] < 0]).all()
    linked = linker.with_settings(search_floor=0.0)(QUESTIONS)
    assert [[link.title for link in own] for own in linked] == [["Hillsborough"], []]


def test_mentions_of_nothing_in_the_catalogue(linker, plain, tmp_path):
    links = linker.with_settings(nil=True)(QUESTIONS)
    nil = [link for own in links for link in own if link.row is None]
    assert nil
    assert len(nil) < sum(map(len, links))
    for link in nil:
        assert link.title is None
        assert link.wikidata_id is None
        assert link.candidates
        assert link.probability > 0.7
    for own, without in zip(links, linker(QUESTIONS), strict=True):
        assert all(link in without for link in own if link.row is not None)
    path = tmp_path / "links.jsonl"
    rows = [Row(number, text) for number, text in enumerate(QUESTIONS, 1)]
    path.write_bytes(b"".join(to_line(Linked(*pair)) for pair in zip(rows, links, strict=True)))
    assert b'"title": null, "wikidata_id": null, "row": null' in path.read_bytes()
    questions, _ = read_questions(path, linker.catalogue)
    expected = [[-1 if link.row is None else link.row for link in own] for own in links]
    assert [[mention.row for mention in question.mentions] for question in questions] == expected
    scorer = LinkScorer(weights())
    with pytest.raises(ElqError, match="nil: this linker cannot tell"):
        directory.check_confidence(linker.settings.replace(nil=True), scorer)
