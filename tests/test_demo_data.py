"""The demo's catalogue and questions are well formed, apart, and what the generator writes."""

import importlib.util
import json
import pathlib
import re
from collections import Counter, defaultdict

import pytest

DEMO = pathlib.Path(__file__).resolve().parent.parent / "demo"
UNSEEN_MENTIONS = 301  # of dev; as many mentions are of entities seen in train
UNSEEN_ENTITIES = 82


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (DEMO / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def catalogue() -> list[dict]:
    return read("catalogue.jsonl")


@pytest.fixture(scope="module")
def train() -> list[dict]:
    return read("train.jsonl")


@pytest.fixture(scope="module")
def dev() -> list[dict]:
    return read("dev.jsonl")


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("demo_generate", DEMO / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gold_titles(questions: list[dict]) -> list[str]:
    return [title for question in questions for title in question["title"]]


def without_parentheses(title: str) -> str:
    return re.sub(r" \([^)]*\)$", "", title)


def test_catalogue_is_well_formed(catalogue):
    assert len(catalogue) >= 300
    titles = [entity["title"] for entity in catalogue]
    assert len(set(titles)) == len(titles)
    ids = [entity["wikidata_id"] for entity in catalogue if entity["wikidata_id"] is not None]
    assert len(set(ids)) == len(ids)
    assert len(ids) >= 300
    assert all(re.fullmatch(r"Q[1-9]\d*", identifier) for identifier in ids)
    for entity in catalogue:
        assert set(entity) - {"kind"} == {"title", "text", "wikidata_id", "aliases"}
        assert 20 < len(entity["text"]) < 400, entity["title"]
        assert entity["text"].endswith("."), entity["title"]
        assert len(set(entity["aliases"])) == len(entity["aliases"]), entity["title"]
        assert entity["title"] not in entity["aliases"]
        for text in (entity["title"], entity["text"], *entity["aliases"]):
            assert text == text.strip()
            assert text


def test_names_are_shared(catalogue):
    meanings = defaultdict(set)
    for entity in catalogue:
        for name in (entity["title"], without_parentheses(entity["title"]), *entity["aliases"]):
            meanings[name.casefold()].add(entity["title"])
    for name, least in {
        "michael jordan": 3,
        "jordan": 3,
        "paris": 4,
        "amazon": 4,
        "apple": 3,
        "mercury": 4,
        "chicago": 4,
        "titanic": 2,
        "dune": 3,
        "washington": 4,
        "georgia": 2,
        "turkey": 2,
        "java": 2,
        "python": 2,
        "cambridge": 3,
        "victoria": 3,
        "phoenix": 3,
        "lincoln": 3,
        "the shining": 2,
        "nirvana": 2,
    }.items():
        assert len(meanings[name]) >= least, (name, meanings[name])


@pytest.mark.parametrize("name", ["train", "dev"])
def test_questions_are_well_formed(name, catalogue, request):
    questions = request.getfixturevalue(name)
    identifiers = {entity["title"]: entity["wikidata_id"] for entity in catalogue}
    names = {
        entity["title"]: {
            other.casefold().replace(",", "").replace(".", "")
            for other in (
                entity["title"],
                without_parentheses(entity["title"]),
                *entity["aliases"],
            )
        }
        for entity in catalogue
    }
    assert len({question["id"] for question in questions}) == len(questions)
    for question in questions:
        assert set(question) == {"id", "text", "mentions", "title", "wikidata_id"}
        text, mentions, titles = question["text"], question["mentions"], question["title"]
        assert text == text.strip()
        assert "  " not in text
        assert not re.search(r"[\[\]{}|]", text), text
        assert len(mentions) == len(titles) == len(question["wikidata_id"])
        assert question["wikidata_id"] == [identifiers[title] for title in titles]
        last = 0
        for (start, end), title in zip(mentions, titles, strict=True):
            assert last <= start < end <= len(text), text
            last = end
            surface = text[start:end]
            assert surface.casefold().replace(",", "").replace(".", "") in names[title], text
            assert start == 0 or not text[start - 1].isalnum(), text
            assert end == len(text) or not text[end].isalnum(), text
            assert surface == surface.strip()


def test_sizes_and_variety(train, dev):
    assert len(train) >= 1300
    assert len(dev) >= 220
    for questions, written, empty, several in ((train, 500, 20, 100), (dev, 120, 5, 30)):
        assert sum(question["id"].startswith("written-") for question in questions) >= written
        assert sum(not question["mentions"] for question in questions) >= empty
        assert sum(len(question["mentions"]) > 1 for question in questions) >= several


def test_train_and_dev_are_apart(train, dev, generate):
    plain = Counter(question["text"].casefold().rstrip("?") for question in train + dev)
    assert [text for text, count in plain.items() if count > 1] == []
    new = (DEMO / "new_questions.txt").read_text(encoding="utf-8").splitlines()
    assert len(new) == 10
    assert not {text.casefold().rstrip("?") for text in new} & set(plain)
    for kind, templates in generate.DEV_TEMPLATES.items():
        assert not set(templates) & set(generate.TRAIN_TEMPLATES[kind]), kind
    for relation, templates in generate.DEV_FACT_TEMPLATES.items():
        assert not set(templates) & set(generate.TRAIN_FACT_TEMPLATES[relation]), relation


def test_half_of_the_dev_mentions_are_of_unseen_entities(train, dev):
    seen = set(gold_titles(train))
    unseen = [title not in seen for title in gold_titles(dev)]
    assert sum(unseen) == UNSEEN_MENTIONS
    assert len(unseen) == 2 * UNSEEN_MENTIONS
    assert len(set(gold_titles(dev)) - seen) == UNSEEN_ENTITIES


def test_every_entity_is_asked_for(catalogue, train, dev):
    assert set(gold_titles(train + dev)) == {entity["title"] for entity in catalogue}


def test_generator_writes_the_same_bytes(generate):
    for name, content in generate.build().items():
        assert (DEMO / name).read_bytes() == content, f"run python demo/generate.py ({name})"


def test_names_in_templates_are_never_ambiguous_within_a_kind(generate):
    owners = defaultdict(set)
    for title, entity in generate.read_names().items():
        for name in entity.names:
            owners[entity.kind, name.casefold()].add(title)
    assert {key: titles for key, titles in owners.items() if len(titles) > 1} == {}
