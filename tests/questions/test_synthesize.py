"""Questions made from a catalogue and patterns, against exact search, slow loops and themselves."""

import collections
import dataclasses
import gzip
import json
import pathlib
import random
import re
import tomllib
import types
import unicodedata

import numpy as np
import pytest

from elq_jax.core.errors import ElqError
from elq_jax.entities.build import build_catalogue
from elq_jax.entities.catalogue import Catalogue
from elq_jax.entities.embeddings import Embeddings, EmbeddingsWriter
from elq_jax.questions import shapes, synthesize
from elq_jax.questions.kinds import kinds_of_rows, nearest_queries, nearest_rows
from elq_jax.questions.patterns import (
    Pattern,
    PatternEntities,
    Slot,
    entity_files,
    pattern_files,
    read_pattern_entities,
    read_patterns,
    shipped_folder,
)
from elq_jax.questions.read import read_questions
from elq_jax.questions.settings import SynthesisSettings
from elq_jax.questions.shapes import Piece

DEMO = pathlib.Path(__file__).parent.parent.parent / "demo"
RNG = np.random.default_rng(5)


def write_embeddings(folder, vectors, fingerprint="c", shard_rows=100):
    rows, width = vectors.shape
    writer = EmbeddingsWriter(
        folder,
        rows=rows,
        width=width,
        dtype="float32",
        shard_rows=shard_rows,
        catalogue_fingerprint=fingerprint,
        encoder_fingerprint="e",
    )
    for shard in writer.missing_shards():
        writer.write_shard(shard, vectors[slice(*writer.shard_range(shard))])
    return writer.finish()


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    """A folder as encode_entities writes it: the demo's entities, by kinds near each other."""
    folder = tmp_path_factory.mktemp("catalogue")
    build_catalogue(DEMO / "catalogue.jsonl", folder / "catalogue.arrow")
    entities = [json.loads(line) for line in (DEMO / "catalogue.jsonl").read_text().splitlines()]
    kinds = sorted({entity.get("kind", "") for entity in entities})
    centres = RNG.normal(size=(len(kinds), 24))
    places = [kinds.index(entity.get("kind", "")) for entity in entities]
    vectors = centres[places] + 0.2 * RNG.normal(size=(len(entities), 24))
    fingerprint = Catalogue.open(folder / "catalogue.arrow").fingerprint
    write_embeddings(folder / "embeddings", vectors.astype(np.float32), fingerprint)
    return folder


def entities_of(folder):
    catalogue = Catalogue.open(folder / "catalogue.arrow")
    return [catalogue[row] for row in range(len(catalogue))]


# --- entities of the same kind


@pytest.mark.parametrize(("shard_rows", "at_once"), [(500, 8192), (70, 8192), (70, 32)])
def test_nearest_rows_are_those_of_an_exact_search(tmp_path, monkeypatch, shard_rows, at_once):
    """In whole numbers, sorted by cosine and row; many entities have the same vector."""
    monkeypatch.setattr("elq_jax.questions.kinds._ROWS_AT_ONCE", at_once)
    vectors = RNG.normal(size=(260, 12)).astype(np.float32)
    vectors[100:180] = vectors[3]
    vectors[200] = 0
    embeddings = write_embeddings(tmp_path / "embeddings", vectors, shard_rows=shard_rows)
    queries = np.concatenate([vectors[:40], 7 * RNG.normal(size=(9, 12))]).astype(np.float32)

    def whole(x):
        lengths = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
        return np.rint(4000 * x / np.maximum(lengths, 1e-30)).astype(np.int64)

    cosines = whole(queries) @ whole(vectors).T
    order = [np.lexsort((np.arange(260), -own)) for own in cosines]
    for count in (1, 30, 260):
        found = nearest_rows(embeddings, queries, count)
        np.testing.assert_array_equal(found, [own[:count] for own in order])
    one_by_one = [nearest_rows(embeddings, query[None], 30)[0] for query in queries]
    np.testing.assert_array_equal(one_by_one, nearest_rows(embeddings, queries, 30))
    np.testing.assert_array_equal(nearest_queries(embeddings, queries), cosines.argmax(axis=0))


def test_kinds_of_rows_are_those_of_a_slow_loop(tmp_path):
    """The nearest example and the nearest mean disagree where an example lies among others."""
    names = ["film", None, "book", "film", "book", "film"]
    examples = RNG.normal(size=(6, 12)).astype(np.float32)
    vectors = RNG.normal(size=(150, 12)).astype(np.float32)
    vectors[:6] = examples * RNG.uniform(0.999, 1.001, size=(6, 12)).astype(np.float32)
    kinds = kinds_of_rows(write_embeddings(tmp_path / "embeddings", vectors), examples, names)

    def nearest(vector, others):
        cosines = [
            vector @ other / np.linalg.norm(vector) / np.linalg.norm(other) for other in others
        ]
        return int(np.argmax(cosines))

    unit = [example / np.linalg.norm(example) for example in examples]
    means = [unit[2] + unit[4], unit[0] + unit[3] + unit[5]]
    expected = [
        (names[nearest(vector, examples)], ["book", "film"][nearest(vector, means)])
        for vector in vectors
    ]
    expected[:6] = [(name, name) for name in names]  # The examples themselves.
    assert kinds.tolist() == [list(pair) for pair in expected]
    assert {("film", "book"), ("book", "film"), ("film", "film"), (None, "book")} <= {*expected}


@pytest.mark.parametrize("names", [[], [None, None]])
def test_without_known_kinds_no_row_has_one(tmp_path, names):
    vectors = RNG.normal(size=(5, 12)).astype(np.float32)
    embeddings = write_embeddings(tmp_path / "embeddings", vectors)
    assert kinds_of_rows(embeddings, vectors[: len(names)], names).tolist() == [[None, None]] * 5


# --- patterns


def pattern_entities(*kinds):
    return PatternEntities([*map(str, range(len(kinds)))], [""] * len(kinds), [*kinds])


def read(path, entities, catalogue=(), others=None):
    return read_patterns(path, catalogue, others, entities)[0]


def test_patterns_of_a_text_file(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text(
        "# a remark\nwho directed {film}?\n\n## web search\n{film|book} Cast\nno name\n{any}\n"
    )
    styles = read(path, pattern_entities("film", None, "book", "film"), range(100))
    assert styles == {
        "mine": [Pattern("mine:2", ("who directed ", "?"), (Slot((100, 103), True),))],
        "web search": [
            Pattern("web search:5", ("", " Cast"), (Slot((100, 102, 103), False),)),
            Pattern("web search:6", ("no name",), ()),
            Pattern("web search:7", ("", ""), (Slot((), True),)),
        ],
    }
    path.write_text("x\nwho is {actor}?\n")
    with pytest.raises(ElqError, match=r"mine.txt:2: \{actor\}: no pattern entity is of kind 'act"):
        read(path, pattern_entities("film"))


def test_patterns_of_labelled_questions(catalogue, tmp_path):
    """Gold of the catalogue, of the pattern entities, of neither; overlapping surfaces in order."""
    entities = tmp_path / "others.jsonl"
    entities.write_text('{"title": "Zog", "text": "A king.", "kind": "king"}\n')
    others, known = read_pattern_entities([entities])
    assert known == PatternEntities(["Zog"], ["A king."], ["king"])
    lines = [
        ("Did zog meet Elvis?", [[13, 18], [4, 7]], ["Elvis Presley", "Zog"]),
        ("who is nobody", [[7, 13]], ["Nobody Known"]),
        ("when", [], []),
    ]
    path = tmp_path / "set" / "train.jsonl"
    path.parent.mkdir()
    rows = [{"text": text, "mentions": m, "title": title} for text, m, title in lines]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    here = Catalogue.open(catalogue / "catalogue.arrow")
    styles, left_out = read_patterns(path, here, others, known)
    elvis = here.rows_of_titles(["Elvis Presley"])[0]
    first, last = styles["set/train"]
    assert first == Pattern(
        "set:1", ("Did ", " meet ", "?"), (Slot((len(here),), True), Slot((elvis,), False))
    )
    assert (last, left_out) == (Pattern("set:3", ("when",), ()), 1)


def test_the_patterns_of_the_project_can_be_read(catalogue):
    here = Catalogue.open(catalogue / "catalogue.arrow")
    others, known = read_pattern_entities(entity_files([pathlib.Path("shipped")]))
    assert len({*known.titles}) == len(known.titles) == len(others)
    texts = [path for path in pattern_files([pathlib.Path("shipped")]) if path.suffix == ".txt"]
    styles = [pair for path in texts for pair in read(path, known, here, others).items()]
    assert len(dict(styles)) == len(styles) >= 12
    patterns = [pattern for _, own in styles for pattern in own]
    assert len(patterns) > 450
    assert len({(pattern.texts, pattern.slots) for pattern in patterns}) == len(patterns)
    assert all(pattern.slots == () for pattern in dict(styles)["nothing"])
    classes = {"music_genre", "film_genre", "profession", "position", "instrument", "time_zone"}
    shown = {
        known.kinds[k - len(here)] for own in patterns for slot in own.slots for k in slot.kinds
    }
    assert classes <= shown
    assert min(known.kinds.count(kind) for kind in classes) >= 5


def test_entities_of_several_files_are_numbered_in_their_order(tmp_path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text('{"title": "Zog", "text": "A king.", "kind": "king"}\n')
    second.write_text('{"title": "Ufa", "text": ""}\n{"title": "É", "text": "", "kind": "x"}\n')
    others, known = read_pattern_entities([first, second])
    assert known == PatternEntities(["Zog", "Ufa", "É"], ["A king.", "", ""], ["king", None, "x"])
    assert others.rows_of_titles(["É", "Zog"]).tolist() == [2, 0]
    second.write_text('{"title": "Ufa", "text": ""}\n{"title": "É", "text": "", "kind": "x y"}\n')
    with pytest.raises(ElqError, match=r"b.jsonl:2: field 'kind': 'x y'"):
        read_pattern_entities([first, second])
    second.write_text('{"title": "Ufa"}\n')
    with pytest.raises(ElqError, match=r"b.jsonl:1: "):
        read_pattern_entities([first, second])


def test_an_installed_package_has_the_files_of_the_patterns():
    project = tomllib.loads((DEMO.parent / "pyproject.toml").read_text())
    packaged = project["tool"]["setuptools"]["package-data"]["elq_jax.demo"]
    files = [*pattern_files([pathlib.Path("shipped")]), *entity_files([pathlib.Path("shipped")])]
    assert sorted(packaged) == sorted(path.name for path in files)
    assert all(path.is_file() and path.parent == shipped_folder() for path in files)
    with pytest.raises(ElqError, match=r"no such file of pattern entities; give a .jsonl, or ship"):
        entity_files([pathlib.Path("no.jsonl")])


# --- shapes

NAMES = ["The Beatles", "O'Brien", "paris, texas", "é́tude", "C++", "perez hilton", "İzmir", "a"]
PATTERN = Pattern("p", ("Who's the son of ", " and is ", "'s wife?"), (Slot((), False),) * 2)


@pytest.mark.parametrize("shape", [*dict.fromkeys(shapes.QUERIES), shapes.full, shapes.several,
                                   shapes.chat, shapes.fragment])  # fmt: skip
@pytest.mark.parametrize("with_typos", [False, True])
def test_spans_are_the_names_that_were_inserted(shape, with_typos):
    """Whatever the shape and the noise: the spans are apart, and each holds its name."""
    plain = re.compile(r"[\s'’]|^the ", re.IGNORECASE)

    def known(name):
        return plain.sub("", unicodedata.normalize("NFC", name.lower()))

    for seed in range(300):
        rng = random.Random(seed)
        own = [[Piece(NAMES[row], row) for row in rng.sample(range(len(NAMES)), 3)] for _ in "12"]
        share = rng.choice((0.0, 0.5, 1.0))
        settings = SynthesisSettings(
            no_capitals=share,
            no_question_mark=share,
            no_apostrophes=share,
            typos=float(with_typos),
            symbols=share,
        )
        text, spans, rows = shapes.joined(shape(PATTERN, own, rng))
        text, spans, _ = synthesize.with_noise(text, spans, settings, rng)
        assert text == text.strip()
        assert len(spans) == len(rows) >= 1
        position = 0
        for (start, end), row in zip(spans, rows, strict=True):
            assert position <= start < end <= len(text)
            position = end
            surface = text[start:end]
            assert surface == surface.strip()
            if not with_typos:
                assert known(surface) == known(NAMES[row])


def test_each_shape_by_an_example():
    rng = random.Random(0)
    names = [[Piece("jaws", 1), Piece("et", 2)], [Piece("lynch", 3), Piece("nolan", 4)]]

    def texts(shape):
        return {shapes.joined(shape(PATTERN, names, rng))[0] for _ in range(200)}

    assert texts(shapes.full) == {"Who's the son of jaws and is lynch's wife?"}
    assert texts(shapes.name_alone) == {"jaws", "lynch"}
    assert {"jaws son", "wife lynch"} <= texts(shapes.name_and_word)
    assert texts(shapes.keywords) == {"son jaws lynch wife", "jaws lynch son wife"}
    assert {"jaws lynch", "jaws and lynch", "jaws vs lynch"} <= texts(shapes.two_names)
    assert "Who's the son of jaws and et and is lynch's wife?" in texts(shapes.several)
    assert all("who's the son of jaws and is lynch's wife?" in text for text in texts(shapes.chat))
    assert "Who's son jaws and lynch's wife?" in texts(shapes.fragment)


# --- questions


SETTINGS = SynthesisSettings(questions=200, dev_questions=20, neighbours=15)


def open_synthesizer(folder, settings=SETTINGS):
    """All shapes, from the patterns of the project; kinds are those of the demo's entities."""
    catalogue = Catalogue.open(folder / "catalogue.arrow")
    embeddings = Embeddings.open(folder / "embeddings")
    others, known = read_pattern_entities([DEMO / "catalogue.jsonl"])
    styles = read(DEMO / "patterns.txt", known, catalogue, others)
    vectors = embeddings.rows(np.arange(len(catalogue)))
    return synthesize.Synthesizer(catalogue, embeddings, vectors, known.kinds, styles, settings)


def test_a_question_depends_on_seed_and_number_alone(catalogue):
    together = open_synthesizer(catalogue).questions(range(60))
    apart = open_synthesizer(catalogue)
    one_by_one = [apart.questions([number])[0] for number in reversed(range(60))]
    assert together == one_by_one[::-1]
    other = open_synthesizer(catalogue, dataclasses.replace(SETTINGS, seed=1)).questions(range(60))
    assert sum(a == b for a, b in zip(together, other, strict=True)) < 5
    dev = apart.questions(range(60), "dev")
    fit = apart.questions(range(60), "fit")
    parts = (together, dev, fit)
    patterns = [{line["source"]["pattern"] for line in lines} for lines in parts]
    assert not patterns[0] & (patterns[1] | patterns[2])
    assert sum(a["text"] == b["text"] for a, b in zip(dev, fit, strict=True)) < 5


def test_entities_are_drawn_whose_both_kinds_are_the_wanted_one(catalogue):
    """Against the exact search, with rows whose nearest mean is of another kind."""
    synthesizer = open_synthesizer(catalogue)
    total = len(synthesizer.catalogue)
    _, known = read_pattern_entities([DEMO / "catalogue.jsonl"])
    films = [row for row, kind in enumerate(known.kinds) if kind == "film"]
    plan = types.SimpleNamespace(kinds=[total + films[3]])
    [usual] = synthesizer._nearest([plan]).values()
    assert films[3] in usual
    assert {*usual.tolist()} <= {*films}
    for number, other in ((0, "book"), (1, "book"), (1, None)):
        synthesizer = open_synthesizer(catalogue)
        synthesizer._kinds_of[usual[1], number] = other
        [rows] = synthesizer._nearest([plan]).values()
        assert rows.tolist() == np.delete(usual, 1).tolist()


def test_names_say_which_entity_is_meant(catalogue):
    """By a search of all names: nobody else has it, or has it first, or is of the same kind."""

    def plain(text):
        text = unicodedata.normalize("NFKD", text.lower())
        text = "".join(c for c in text if not unicodedata.combining(c))
        return re.sub(r"\W|_", "", re.sub(r"^(the|an?) ", "", re.sub(r"\W+", " ", text).strip()))

    entities = entities_of(catalogue)
    lines = (DEMO / "catalogue.jsonl").read_text().splitlines()
    kinds = [json.loads(line).get("kind") for line in lines]
    owners = collections.defaultdict(set)
    names = []
    for entity in entities:
        own = {re.sub(r" \([^()]*\)$", "", entity.title), *entity.aliases}
        names.append({plain(name) for name in own})
        for name in names[-1]:
            owners[name].add(entity.row)
    settings = dataclasses.replace(SETTINGS, typos=0.0, no_apostrophes=0.0)
    lines = open_synthesizer(catalogue, settings).questions(range(1200))
    shapes_seen = collections.Counter()
    for line in lines:
        shapes_seen[line["source"]["shape"]] += 1
        for (start, end), row, title in zip(
            line["mentions"], line["row"], line["title"], strict=True
        ):
            name = plain(line["text"][start:end])
            assert title == entities[row].title
            assert name in names[row], line
            others = owners[name] - {row}
            is_first = plain(title) == name and "(" not in title
            if not is_first and others:
                assert line["source"]["shape"] not in ("name_alone", "name_and_word", "two_names")
                assert all(kinds[other] != kinds[row] for other in others), line
    shares = {shape: count / len(lines) for shape, count in shapes_seen.items()}
    assert 0.4 < shares["full"] < 0.65
    assert 0.03 < shares["several"] < 0.13
    assert 0.15 < sum(shares[shape.__name__] for shape in set(shapes.QUERIES)) < 0.3


def test_casing_is_that_of_the_pattern(catalogue):
    settings = dataclasses.replace(SETTINGS, no_capitals=0.0, symbols=0.0)
    lines = open_synthesizer(catalogue, settings).questions(range(300))
    for line in lines:
        capitals = [text for text in line["text"].split() if text != text.lower()]
        number = int(line["source"]["pattern"].rpartition(":")[2])
        pattern = (DEMO / "patterns.txt").read_text().splitlines()[number - 1]
        if pattern == pattern.lower():
            assert not capitals, line


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Labelled questions as patterns."""
    path = tmp_path_factory.mktemp("patterns") / "train.jsonl"
    path.write_text("".join((DEMO / "train.jsonl").read_text().splitlines(keepends=True)[:80]))
    return path


def write(folder, output, patterns, **settings):
    settings = dataclasses.replace(SETTINGS, **settings)
    return synthesize.synthesize(folder, output, settings, [patterns])


def test_a_killed_run_resumes_with_the_same_lines(catalogue, labelled, tmp_path, monkeypatch):
    monkeypatch.setattr(synthesize, "_AT_ONCE", 64)
    counts = write(catalogue, tmp_path / "whole.jsonl", labelled)
    whole = (tmp_path / "whole.jsonl").read_bytes()
    assert counts.total() == whole.count(b"\n") == 200

    class Killed(BaseException):
        pass

    make = synthesize.Synthesizer.questions

    def make_or_die(self, numbers, part):
        if numbers[0] >= 64:
            raise Killed
        return make(self, numbers, part)

    output = tmp_path / "questions.jsonl"
    monkeypatch.setattr(synthesize.Synthesizer, "questions", make_or_die)
    with pytest.raises(Killed):
        write(catalogue, output, labelled)
    monkeypatch.setattr(synthesize.Synthesizer, "questions", make)
    part = tmp_path / "questions.jsonl.part"
    assert part.read_bytes() == whole[: len(part.read_bytes())]
    assert not output.exists()
    part.write_bytes(part.read_bytes()[:-70])  # In the middle of a line.
    with pytest.raises(ElqError, match=r"differs from this one \(settings.seed \(found 0, now 3"):
        write(catalogue, output, labelled, seed=3)
    monkeypatch.setattr(synthesize, "_AT_ONCE", 50)
    assert write(catalogue, output, labelled) == counts
    assert output.read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["questions.jsonl", "whole.jsonl"]
    write(catalogue, tmp_path / "questions.jsonl.gz", labelled)
    assert gzip.decompress((tmp_path / "questions.jsonl.gz").read_bytes()) == whole


def test_the_output_is_what_train_reads(catalogue, labelled, tmp_path):
    here = Catalogue.open(catalogue / "catalogue.arrow")
    write(catalogue, tmp_path / "questions.jsonl", labelled, questions=100)
    questions, report = read_questions(tmp_path / "questions.jsonl", here)
    assert len(questions) == 100
    assert report.counts == {"row": sum(len(question.mentions) for question in questions)}


def test_vectors_of_another_encoder_are_refused(catalogue, tmp_path, monkeypatch):
    other = types.SimpleNamespace(entity_fingerprint="f")
    monkeypatch.setattr(synthesize, "open_encoder", lambda settings: other)
    with pytest.raises(ElqError, match="vectors of another entity encoder than --encoder=minilm"):
        write(catalogue, tmp_path / "questions.jsonl", DEMO / "patterns.txt")
    assert not [*tmp_path.iterdir()]


def test_no_input_is_overwritten(catalogue, labelled, tmp_path):
    link = tmp_path / "link.jsonl"
    link.symlink_to(labelled)
    content = labelled.read_bytes()
    with pytest.raises(ElqError, match=r"link.jsonl: writing it would overwrite .*train.jsonl"):
        write(catalogue, link, labelled)
    twice = tmp_path / "questions.jsonl"
    with pytest.raises(ElqError, match="would overwrite"):
        synthesize.synthesize(catalogue, twice, SETTINGS, [labelled], dev_output=twice)
    others = {"dev_output": tmp_path / "dev.jsonl", "fit_output": tmp_path / "dev.jsonl"}
    with pytest.raises(ElqError, match="would overwrite"):
        synthesize.synthesize(catalogue, twice, SETTINGS, [labelled], **others)
    assert labelled.read_bytes() == content


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"queries": 0.9, "chats": 0.2}, "shares that add up to 1.2"), ({"queries": 1.0}, None)],
)
def test_shares_of_shapes(settings, message):
    if message is None:
        SynthesisSettings(several=0.0, chats=0.0, fragments=0.0, **settings)
        return
    with pytest.raises(ElqError, match=message):
        SynthesisSettings(**settings)
