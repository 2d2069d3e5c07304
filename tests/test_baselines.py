"""Look-ups of names, on counts that can be made by hand."""

import math

import pytest

from benchmarks import baselines
from elq_jax.entities.build import build_catalogue
from elq_jax.entities.catalogue import Catalogue
from elq_jax.entities.name_index import NameIndex
from elq_jax.questions.records import Mention, Question

TITLES = ["Paris", "Paris, Texas", "France", "Texas", "Dune (novel)", "Dune"]


def passage(page, text, links):
    mentions, place = [], 0
    for surface, _ in links:
        place = text.index(surface, place)
        mentions.append([place, place + len(surface)])
        place += len(surface)
    return {"page": page, "text": text, "mentions": mentions, "title": [t for _, t in links]}


PASSAGES = [
    passage("A", "Paris is in France.", [("Paris", "Paris"), ("France", "France")]),
    passage("B", "France and paris: Paris", [("France", "France"), ("paris", "Paris")]),
    passage("C", "Paris lies in Texas", [("Paris", "Paris, Texas"), ("Texas", "Texas")]),
    passage("D", "In Texas nobody read Dune.", [("Texas", "Texas"), ("Dune", "Gone")]),
    passage("E", "Paris, in Paris", [("Paris", "Paris")]),
]


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    folder = tmp_path_factory.mktemp("baselines")
    lines = "".join(f'{{"title": "{title}", "text": "x"}}\n' for title in TITLES)
    (folder / "entities.jsonl").write_text(lines)
    build_catalogue(folder / "entities.jsonl", folder / "catalogue.arrow")
    return Catalogue.open(folder / "catalogue.arrow")


@pytest.fixture(scope="module")
def statistics(catalogue):
    return baselines.Statistics(PASSAGES, catalogue)


def test_counts(statistics):
    assert statistics.num_pages == 5
    assert statistics.linked["paris"] == {0: 3, 1: 1}
    assert statistics.linked["dune"] == {-1: 1}
    assert statistics.occurrences["paris"] == 6
    assert statistics.link_probability("PARIS") == 4 / 6
    assert statistics.commonness("Paris", 1) == 1 / 4
    assert statistics.link_probability("nobody") == 0
    assert statistics.pages[0] == {"A", "B", "E"}
    # Two of the pages that link to Paris, and all of those that link to France, are the same.
    distance = (math.log(3) - math.log(2)) / (math.log(5) - math.log(2))
    assert statistics.relatedness(0, 2) == pytest.approx(1 - distance)
    assert statistics.relatedness(0, 3) == 0


def test_spans():
    assert baselines.spans_of("o'hara's x.") == [(0, 8), (0, 10), (9, 10)]
    words = " ".join("abcdefghijkl")
    assert len(baselines.spans_of(words)) == sum(12 - n for n in range(baselines.MOST_WORDS))


@pytest.mark.parametrize(
    ("name", "text", "links"),
    [
        ("longest name", "paris, texas or dune", [("paris, texas", 1), ("dune", 5)]),
        ("popularity", "paris", [("paris", 0)]),
        ("commonness", "paris", [("paris", 0)]),
        ("TAGME", "paris and france", [("paris", 0), ("france", 2)]),
        ("TAGME", "paris and texas", [("paris", 1), ("texas", 3)]),
    ],
)
def test_links(catalogue, statistics, name, text, links):
    names = NameIndex.build(catalogue)
    gold = [Mention(text.index(s), text.index(s) + len(s), row) for s, row in links]
    questions = [Question("q", text, tuple(gold))]
    evaluation = baselines.look_up(name, questions, names, statistics)
    counts = evaluation.counts(-math.inf)
    assert (counts.strong, counts.predicted) == (len(links), len(links))
    assert evaluation.disambiguation().accuracy == 1


def test_scores_of_tagme(catalogue, statistics):
    names = NameIndex.build(catalogue)
    text = "paris and texas"
    candidates = baselines.candidates_of(text, names, statistics)
    assert candidates == {(0, 5): [0, 1], (10, 15): [3]}
    scores = baselines.tagme(text, candidates, statistics)
    related = statistics.relatedness(1, 3)
    assert scores[0, 5][0] == (pytest.approx((4 / 6 + related) / 2), 1)
    assert scores[10, 15] == [(pytest.approx((1 + related) / 2), 3)]
