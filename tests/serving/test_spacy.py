"""The spaCy component: the same links as `EntityLinker`, in documents of spaCy."""

import importlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import warnings

import jax
import pytest
from tiny import tiny_linker_directory

spacy = pytest.importorskip("spacy", reason="needs pip install 'elq_jax[spacy]'")
from spacy.tokens import Doc, DocBin, Span  # noqa: E402

import elq_jax.serving.spacy as component_module  # noqa: E402
from elq_jax import EntityLinker  # noqa: E402
from elq_jax.core.errors import ElqError  # noqa: E402
from elq_jax.core.settings import fields_of  # noqa: E402
from elq_jax.serving.spacy import SpacySettings  # noqa: E402

ROOT = pathlib.Path(__file__).parent.parent.parent
TEXTS = ["who is obama", "", "paris in ohio 2011", " ", "spoken in Côte Ivoire", "thor"]
SETTINGS = {"threshold": -9.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_linker_directory(tmp_path_factory.mktemp("linker"))


@pytest.fixture(scope="module")
def linker(folder):
    return EntityLinker.from_pretrained(folder, devices=jax.devices()[:1], **SETTINGS)


def pipeline(folder, linker=None, ruler=None, **config):
    """A pipeline with the component, which has `linker` already if it is given."""
    nlp = spacy.blank("en")
    if ruler is not None:
        nlp.add_pipe("entity_ruler").add_patterns(ruler)
    config = {"linker": str(folder), "settings": SETTINGS} | config
    nlp.add_pipe("elq_jax", config=config)._linker = linker
    return nlp


def places(spans):
    return [(span.start_char, span.end_char) for span in spans]


def identity(links):
    return [(link.start, link.end, link.row) for link in links]


def test_the_same_links_as_the_linker(folder, linker):
    nlp = pipeline(folder)  # which opens the linker itself
    nlp.get_pipe("elq_jax").settings.settings["devices"] = "cpu"
    for text in TEXTS:
        doc, links = nlp(text), linker(text)
        assert doc._.elq == tuple(links)
        assert places(doc.ents) == [(link.start, link.end) for link in links]
        assert [entity._.elq for entity in doc.ents] == links
        assert [entity.label_ for entity in doc.ents] == ["ENTITY"] * len(links)
        for entity, link in zip(doc.ents, links, strict=True):
            assert entity.kb_id_ == (link.wikidata_id or link.title)
            assert entity[0].ent_kb_id_ == entity.kb_id_
    assert sum(len(links) for links in linker(TEXTS)) > 3
    assert nlp("who is obama")[0:2]._.elq is None
    assert Doc(nlp.vocab, ["obama"])._.elq == ()


@pytest.mark.parametrize(("size", "calls"), [(1, 6), (4, 2), (100, 1)])
def test_one_batch_of_spacy_is_linked_at_once(folder, linker, monkeypatch, size, calls):
    batches = []

    def scored(self, texts, *arguments):
        batches.append(len(texts))
        return score_batch(self, texts, *arguments)

    score_batch = EntityLinker.score_batch
    monkeypatch.setattr(EntityLinker, "score_batch", scored)
    nlp, expected = pipeline(folder, linker), linker(TEXTS)
    batches.clear()
    docs = list(nlp.pipe(TEXTS, batch_size=size))
    assert [identity(doc._.elq) for doc in docs] == [identity(links) for links in expected]
    assert len(batches) == calls
    assert sum(batches) == len(TEXTS)


def test_ids(folder, linker):
    text = TEXTS[0]
    links = linker(text)
    for kind, expected in (
        ("wikidata", [link.wikidata_id or "" for link in links]),
        ("title", [link.title for link in links]),
        ("row", [str(link.row) for link in links]),
    ):
        entities = pipeline(folder, linker, kb_id=kind, label="THING")(text).ents
        assert [entity.kb_id_ for entity in entities] == expected
        assert {entity.label_ for entity in entities} == {"THING"}
    component = pipeline(folder, linker).get_pipe("elq_jax")
    link = links[0]
    nothing = type(link)(0, 1, "x", None, None, None, -1.0, -1.0, ())
    assert component._kb_id(nothing) == "NIL"
    no_id = type(link)(0, 1, "x", "A title", None, 3, -1.0, -1.0, ())
    assert component._kb_id(no_id) == "A title"


RULER = [
    {"label": "PERSON", "pattern": "obama", "id": "the-id"},
    {"label": "PLACE", "pattern": "ohio 2011"},
    {"label": "LANGUAGE", "pattern": "spoken"},
]


def test_existing_entities_are_kept(folder, linker):
    nlp = pipeline(folder, linker, RULER)
    links = linker(TEXTS[0])
    [known] = [link for link in links if link.mention == "obama"]
    doc = nlp(TEXTS[0])
    assert places(doc.ents) == identity_places(links)
    [entity] = [entity for entity in doc.ents if entity.label_ == "PERSON"]
    assert entity.kb_id_ == (known.wikidata_id or known.title)
    assert entity.ent_id_ == "the-id"
    assert entity._.elq == known
    # "ohio 2011" stays, and a link that overlaps with it has no span.
    links = linker(TEXTS[2])
    left_out = [link for link in links if link.end > 9 and (link.start, link.end) != (9, 18)]
    assert left_out
    component = nlp.get_pipe("elq_jax")
    with pytest.warns(UserWarning, match=r"another entity stands there.*left_out.*doc\._\.elq"):
        doc = nlp(TEXTS[2])
    assert component.left_out == len(left_out)
    assert "ohio 2011" in [entity.text for entity in doc.ents]
    assert identity(doc._.elq) == identity(links)
    assert all(entity._.elq not in left_out for entity in doc.ents)
    nlp(TEXTS[2])  # without another warning
    assert component.left_out == 2 * len(left_out)


def identity_places(links):
    return [(link.start, link.end) for link in links]


def test_existing_entities_are_linked(folder, linker):
    nlp = pipeline(folder, linker, RULER, existing="link")
    docs = list(nlp.pipe(TEXTS, batch_size=4))
    for doc in docs:
        own = [
            (match.start(), match.end(), label)
            for label, word in (("PERSON", "obama"), ("PLACE", "ohio 2011"), ("LANGUAGE", "spoken"))
            for match in re.finditer(word, doc.text)
        ]
        assert [
            (*place, e.label_) for place, e in zip(places(doc.ents), doc.ents, strict=True)
        ] == own
        expected = linker.disambiguate(doc.text, places(doc.ents))
        assert identity(doc._.elq) == identity(expected)
        for entity, link in zip(doc.ents, expected, strict=True):
            assert entity.kb_id_ == (link.wikidata_id or link.title)
            assert entity._.elq.score == pytest.approx(link.score, abs=1e-5)
    assert docs[0].ents[0].ent_id_ == "the-id"
    some = pipeline(folder, linker, RULER, existing="link", labels=["PLACE"])
    assert [[e.kb_id_ != "" for e in doc.ents] for doc in some.pipe(TEXTS[:3])] == [
        [False],
        [],
        [True],
    ]
    sure = pipeline(folder, linker, RULER, existing="link", min_probability=1.0)
    assert [e.kb_id_ for e in sure(TEXTS[0]).ents] == [""]
    # spaCy's tokens need not be tokens of the model.
    doc = Doc(nlp.vocab, ["playwr", "ights", "\a"], spaces=[False, True, False])
    doc.set_ents([Span(doc, 0, 1, label="X"), Span(doc, 2, 3, label="X")])
    with pytest.warns(UserWarning, match="longer than the model reads, or blank"):
        doc = nlp.get_pipe("elq_jax")(doc)
    [link] = doc._.elq
    assert (link.start, link.end, link.mention) == (0, 6, "playwr")
    assert doc[0:1]._.elq == link
    assert nlp.get_pipe("elq_jax").left_out == 1


def test_existing_entities_are_replaced(folder, linker):
    nlp = pipeline(folder, linker, RULER, existing="replace")
    for doc, links in zip(nlp.pipe(TEXTS), linker(TEXTS), strict=True):
        assert places(doc.ents) == identity_places(links)
        assert {entity.label_ for entity in doc.ents} <= {"ENTITY"}


def test_a_span_group(folder, linker):
    nlp = pipeline(folder, linker, RULER, span_group="links")
    doc = nlp(TEXTS[2])
    links = linker(TEXTS[2])
    assert [entity.text for entity in doc.ents] == ["ohio 2011"]
    assert doc.ents[0].kb_id_ == ""
    assert places(doc.spans["links"]) == identity_places(links)
    assert [span._.elq for span in doc.spans["links"]] == list(doc._.elq)
    again = nlp.get_pipe("elq_jax")(doc)  # finds the spans that it made
    assert places(again.spans["links"]) == identity_places(links)
    assert nlp.get_pipe("elq_jax").left_out == 0
    # Spans of another component in the group are linked; they may overlap.
    nlp = pipeline(folder, linker, span_group="sc", existing="link")
    doc = nlp.make_doc(TEXTS[2])
    doc.spans["sc"] = [Span(doc, 0, 3, label="A"), Span(doc, 2, 4, label="B")]
    first, second = nlp.get_pipe("elq_jax")(doc).spans["sc"]
    assert [first.label_, second.label_] == ["A", "B"]
    expected = linker.disambiguate(TEXTS[2], places([first, second]))
    assert identity([first._.elq, second._.elq]) == identity(expected)
    assert first.kb_id_ == (expected[0].wikidata_id or expected[0].title)
    assert doc.ents == ()


def test_links_inside_tokens_of_spacy(folder, linker):
    text = "(obama) paris"
    links = linker(text)
    inside = [link for link in links if link.end <= 7]
    best = max(inside, key=lambda link: link.score)
    assert len(inside) > 1

    def doc_of(**config):
        nlp = pipeline(folder, linker, **config)
        nlp.tokenizer = lambda text: Doc(nlp.vocab, ["(obama)", "paris"])
        return nlp.get_pipe("elq_jax"), nlp(text)

    with pytest.warns(UserWarning, match="has no span in the document: another entity"):
        component, doc = doc_of()
    assert component.left_out == len(inside) - 1
    assert [entity.text for entity in doc.ents] == ["(obama)", "paris"]
    assert doc.ents[0]._.elq == best  # with its own offsets
    assert identity(doc._.elq) == identity(links)
    for mode in ("strict", "contract"):
        with pytest.warns(UserWarning, match="has no span in the document: it has no whole token"):
            component, doc = doc_of(alignment=mode)
        assert component.left_out == len(inside)
        assert [entity.text for entity in doc.ents] == ["paris"]
        assert identity(doc._.elq) == identity(links)


def test_long_documents(folder, linker):
    linker = linker.with_settings(max_question_tokens=16)
    sentences = ["Who is Obama, in 2011?", "Paris is in Ohio.", "It is spoken in Côte Ivoire."]
    text = " ".join(sentences)
    nlp = pipeline(folder, linker)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        doc = nlp(text)
    assert places(doc.ents) == identity_places(doc._.elq)
    assert identity(doc._.elq) == identity(linker(text))
    assert doc.ents[-1].start_char > text.index(sentences[2])


def test_documents_are_stored_with_their_links(folder, linker):
    nlp = pipeline(folder, linker)
    docs = list(nlp.pipe(TEXTS))
    stored = DocBin(store_user_data=True, docs=docs).to_bytes()
    for doc, again in zip(docs, DocBin().from_bytes(stored).get_docs(nlp.vocab), strict=True):
        assert again._.elq == doc._.elq
        assert [e._.elq for e in again.ents] == [e._.elq for e in doc.ents]
        assert [e.kb_id_ for e in again.ents] == [e.kb_id_ for e in doc.ents]


def test_two_components_in_one_pipeline(folder, linker):
    nlp = pipeline(folder, linker)
    nlp.get_pipe("elq_jax")._linker = linker.with_settings(max_mentions=1)
    config = {"linker": str(folder), "span_group": "all"}
    nlp.add_pipe("elq_jax", name="second", config=config)
    nlp.get_pipe("second")._linker = linker
    doc = nlp(TEXTS[2])
    assert len(doc.spans["all"]) > len(doc.ents) > 0
    assert all(span._.elq is not None for span in [*doc.ents, *doc.spans["all"]])


def test_a_pipeline_names_its_linker(folder, linker, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    nlp = pipeline("linker", linker)
    expected = [entity.kb_id_ for entity in nlp(TEXTS[0]).ents]
    nlp.to_disk(tmp_path / "stored")
    data = nlp.to_bytes()
    monkeypatch.chdir(tmp_path)  # The relative path leads nowhere from here.
    for again in (spacy.load("stored"), pipeline("linker").from_bytes(data)):
        component = again.get_pipe("elq_jax")
        assert component._linker is None
        assert [entity.kb_id_ for entity in again(TEXTS[0]).ents] == expected
        assert component.linker.folder == folder
        assert component.settings.settings == SETTINGS
    other = spacy.load("stored", config={"components.elq_jax.linker": "elsewhere"})
    with pytest.raises(ElqError, match=r"component 'elq_jax': .*elsewhere: no config\.json here"):
        other(TEXTS[0])
    (tmp_path / "stored/elq_jax/linker.json").write_text(
        '{"configured": "linker", "linker": "/gone"}'
    )
    with pytest.raises(ElqError, match=r"/gone.*spacy\.load\(folder, config=.*elq_jax\.linker"):
        spacy.load("stored")(TEXTS[0])
    (tmp_path / "stored/elq_jax/linker.json").write_text('{"configured": 3}')
    with pytest.raises(ElqError, match=r"elq_jax/linker\.json: .*; store the pipeline again"):
        spacy.load("stored")


def test_a_pipeline_takes_its_linker_along(folder, linker, tmp_path):
    nlp = pipeline(folder, save_linker=True)
    expected = [entity.kb_id_ for entity in nlp(TEXTS[0]).ents]
    nlp.to_disk(tmp_path / "stored")
    nlp.to_disk(tmp_path / "stored")
    shutil.move(tmp_path / "stored", tmp_path / "moved")
    again = spacy.load(tmp_path / "moved")
    assert [entity.kb_id_ for entity in again(TEXTS[0]).ents] == expected
    assert again.get_pipe("elq_jax").linker.folder == tmp_path / "moved/elq_jax/linker"
    again.to_disk(tmp_path / "moved")
    assert spacy.load(tmp_path / "moved")(TEXTS[0]).ents


@pytest.mark.filterwarnings("ignore:os.fork.*:RuntimeWarning")
def test_forked_processes_say_so(folder, linker):
    nlp = pipeline(folder, linker)
    with pytest.raises(ValueError, match=r"n_process=\.\.\.\) forked this process.*n_process=1"):
        list(nlp.pipe(TEXTS, n_process=2))
    assert list(nlp.pipe(TEXTS[:1], n_process=1))


def test_errors_go_to_the_handler_of_the_pipeline(folder, linker, monkeypatch):
    nlp = pipeline(folder, linker)

    def failing(self, texts, *arguments, **options):
        if "thor" in texts:
            raise ElqError("thor is not welcome")
        return call(self, texts, *arguments, **options)

    call = EntityLinker.__call__
    monkeypatch.setattr(EntityLinker, "__call__", failing)
    with pytest.raises(ElqError, match="thor is not welcome"):
        list(nlp.pipe(TEXTS))
    failed = []
    nlp.set_error_handler(lambda name, component, docs, error: failed.append((name, len(docs))))
    assert [doc.text for doc in nlp.pipe(TEXTS, batch_size=4)] == TEXTS[:4]
    assert failed == [("elq_jax", 2)]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "component 'elq_jax': linker: ''; expected `str` of length >= 1"),
        ({"linker": "x", "existing": "drop"}, "existing: 'drop'; expected one of keep, link"),
        ({"linker": "x", "batch_size": 0}, "batch_size: 0; expected `int` >= 1"),
        ({"linker": "x", "min_probability": 2}, "min_probability: 2; expected"),
        ({"linker": "x", "linkr": "y"}, "unexpected argument: 'linkr'"),
    ],
)
def test_wrong_settings(config, message):
    with pytest.raises(ValueError, match=message):
        spacy.blank("en").add_pipe("elq_jax", config=config)


def test_no_linker_is_an_error_with_the_first_text(tmp_path):
    nlp = pipeline(tmp_path / "none")
    with pytest.raises(ElqError, match=r"component 'elq_jax': .*none: no config\.json here"):
        nlp("who")


def test_the_entry_point_names_the_factory():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["spacy_factories"]["elq_jax"].partition(":")
    assert getattr(importlib.import_module(module), name) is component_module.make_component
    assert any(line.startswith("spacy") for line in project["optional-dependencies"]["spacy"])


def test_the_documentation_lists_all_settings():
    text = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
    section = text.partition("| setting |")[2].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| .*?`([^`]*)`", section, re.MULTILINE))
    defaults = {field.name: field.default for field in fields_of(SpacySettings).values()}
    assert rows.keys() | {"linker"} == defaults.keys()
    for name in ("existing", "span_group", "kb_id", "label", "batch_size", "save_linker"):
        assert rows[name].replace('"', "") == str(defaults[name])


def test_importing_it_is_cheap_and_shadows_nothing():
    """spaCy imports entry points with every pipeline."""
    code = (
        "import elq_jax.serving.spacy, spacy, sys;"
        "print(spacy.blank('en').has_factory('elq_jax'), {'jax', 'mcp'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout == "True set()\n"
