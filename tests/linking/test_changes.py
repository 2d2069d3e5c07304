"""A catalogue that changes: against one that is built at once, killed writers, a full disk."""

import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from tiny import tiny_linker_directory, tiny_model

from elq_jax import EntityLinker
from elq_jax.core.errors import DataError, DiskFullError, ElqError
from elq_jax.entities import segments as segments_lib
from elq_jax.entities.build import build_catalogue
from elq_jax.entities.catalogue import Catalogue, derived_id
from elq_jax.entities.encode import CatalogueEncoder
from elq_jax.entities.name_index import NameIndex
from elq_jax.entities.segments import open_segments, plain_folder
from elq_jax.entities.word_index import WordIndex
from elq_jax.linking import changes, directory
from elq_jax.linking.candidates import CandidateScorer, CandidateWeights
from elq_jax.linking.changes import CatalogueEditor
from elq_jax.model.bundle import Model
from elq_jax.storage import files

ROWS = 40
QUESTIONS = ["was Wounded using socio at hillsborough ?", "was zorblax nine born in ouagadougou"]
WEIGHTS = CandidateWeights(weights={"product": 1.0, "title": 60.0, "mention_in_title": 4.0})


def vector(title, text):
    """Stands for the entity encoder."""
    seed = int(derived_id(title, text)[1:9], 16)
    return np.random.default_rng(seed).standard_normal(64, np.float32)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    tiny_linker_directory(folder, entities=ROWS, max_mentions=99, threshold=-100.0)
    return folder / "linker"


def write(folder, catalogue, vectors):
    """A linker with names and words, of a catalogue and its vectors."""
    scorer = CandidateScorer(WEIGHTS, NameIndex.build(catalogue), vectors)
    settings = {"max_mentions": 99, "threshold": -100.0, "spelling": True}
    directory.write_linker(
        folder,
        tiny_model(),
        settings,
        catalogue.path,
        vectors,
        candidate_scorer=scorer,
        words=WordIndex.build(catalogue),
    )
    return folder


@pytest.fixture(scope="module")
def scored(plain, tmp_path_factory):
    parts = open_segments(plain)
    folder = tmp_path_factory.mktemp("scored") / "linker"
    return write(folder, parts.catalogue, parts.embeddings[:])


@pytest.fixture
def folder(scored, tmp_path):
    shutil.copytree(scored, tmp_path / "linker")
    return tmp_path / "linker"


@pytest.fixture
def encoded(monkeypatch):
    """What is encoded; the vectors are random."""
    titles = []

    def encode(editor, entities):
        titles.extend(entity["title"] for entity in entities)
        return np.stack([vector(entity["title"], entity["text"]) for entity in entities])

    monkeypatch.setattr(CatalogueEditor, "_encode", encode)
    monkeypatch.setattr(CatalogueEditor, "_check_encoder", lambda editor: None)
    return titles


def entity(title, text="", **fields):
    return {"title": title, "text": text, **fields}


def contents(folder):
    """All living entities of a directory by id, without rows; with their vectors."""
    parts = open_segments(folder)
    rows = [row for rows, _ in parts.catalogue.living_batches() for row in rows.tolist()]
    return {
        each.id: (each.title, each.text, each.wikidata_id, each.aliases, tuple(vector.tolist()))
        for each, vector in zip(
            parts.catalogue.entities(rows), parts.embeddings.rows(np.array(rows)), strict=True
        )
    }


def opened(folder):
    return EntityLinker.from_pretrained(folder, devices=jax.devices()[:1])


def without_rows(links):
    """Links as far as they do not depend on rows; products differ in the last digit."""
    return [
        [
            (link.start, link.end, link.id, link.title, pytest.approx(link.score, abs=1e-3))
            for link in of_question
        ]
        for of_question in links
    ]


def test_links_are_those_of_a_catalogue_built_at_once(folder, encoded, tmp_path):
    linker, other = opened(folder), opened(folder)
    before = linker(QUESTIONS)
    assert not other.refresh()
    added = linker.add_entities(
        [
            entity("Zorblax Nine", "A film.", aliases=["Zorblax 9"]),
            entity("Ouagadougou", "A town.", wikidata_id="Q3777"),
        ]
    )
    assert added.added == [derived_id("Zorblax Nine", "A film."), "Q3777"]
    assert linker.catalogue[ROWS + 1].title == "Ouagadougou"
    linker.add_entities([entity("Hillsborough disaster", "A crush.", id="own 1")])
    [gone, renamed] = linker.catalogue.ids([3, 7])
    linker.remove_entities([gone])
    linker.update_entities([{"id": renamed, "aliases": ["Zorblax"]}])
    linker.update_entities([{"id": "own 1", "title": "Hillsborough"}])
    assert linker(QUESTIONS) != before
    assert other(QUESTIONS) == before
    assert other.refresh()
    assert other(QUESTIONS) == linker(QUESTIONS) == opened(folder)(QUESTIONS)
    titles = [link.title for link in linker(QUESTIONS[1])]
    assert "Zorblax Nine" in titles
    assert encoded == ["Zorblax Nine", "Ouagadougou", "Hillsborough disaster", "Hillsborough"]

    rows = np.concatenate([rows for rows, _ in linker.catalogue.living_batches()])
    lines = [
        entity(each.title, each.text, aliases=each.aliases, id=each.id)
        for each in linker.catalogue.entities(rows)
    ]
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, lines)))
    build_catalogue(tmp_path / "all.jsonl", tmp_path / "all.arrow")
    catalogue = Catalogue.open(tmp_path / "all.arrow")
    built = write(tmp_path / "built", catalogue, linker.embeddings[rows])
    assert without_rows(linker(QUESTIONS)) == without_rows(opened(built)(QUESTIONS))

    links, whole = linker(QUESTIONS), contents(folder)
    copy = plain_folder(folder, tmp_path)
    assert contents(copy) == whole
    assert plain_folder(folder, tmp_path) == copy
    assert plain_folder(copy) == copy
    with pytest.raises(ElqError, match="compact"):
        plain_folder(folder)
    linker.save_pretrained(tmp_path / "saved")
    copied = linker.with_params(linker.model.params["question"])
    copied.save_pretrained(tmp_path / "in_memory")
    linker.compact()
    assert without_rows(linker(QUESTIONS)) == without_rows(links)
    assert contents(folder) == contents(tmp_path / "saved") == whole
    assert contents(tmp_path / "in_memory") == whole
    assert other.refresh()
    assert other(QUESTIONS) == linker(QUESTIONS)
    for path in (folder, tmp_path / "saved"):
        assert "catalogue.json" in directory.verify(path)
    assert not (folder / "catalogue.arrow").exists()
    assert plain_folder(folder) == folder / "segments" / "000006"
    assert sorted(path.name for path in (folder / "segments").iterdir()) == ["000006"]


def test_the_vectors_are_those_of_the_entity_encoder(folder):
    linker = opened(folder)
    new = [entity(f"title {i}", "some text " * i) for i in range(3)]
    linker.add_entities(new)
    expected = CatalogueEncoder(Model.open(folder), devices=jax.devices()[:1]).encode(
        [each["title"] for each in new], [each["text"] for each in new]
    )
    np.testing.assert_allclose(linker.embeddings[ROWS:], expected, atol=1e-5)


def test_adding_again_and_other_content(folder, encoded):
    editor = CatalogueEditor(folder)
    new = [entity("a", id="1"), entity("b", id=2)]
    assert editor.add([*new, new[0]]).added == ["1", "2"]
    before = segments_lib.read_stamp(folder)
    again = editor.add(new)
    assert (again.unchanged, again.added) == (2, [])
    assert editor.update([{"id": "1", "title": "a"}]).unchanged == 1
    assert segments_lib.read_stamp(folder) == before
    with pytest.raises(DataError, match=r"entities:2: the catalogue has .* '2' and other content"):
        editor.add([entity("c"), entity("B", id="2")])
    with pytest.raises(DataError, match="entities:2: the id '3' is there twice"):
        editor.add([entity("c", id="3"), entity("d", id="3")])
    with pytest.raises(DataError, match="entities:1: no entity has the id '3'; use add"):
        editor.update([{"id": "3", "title": "c"}])
    with pytest.raises(DataError, match="entities:1: field 'id': missing"):
        editor.update([{"title": "c"}])
    with pytest.raises(DataError, match="entities:1: field 'aliases': found"):
        editor.update([{"id": "1", "aliases": "c"}])
    with pytest.raises(ElqError, match="no entity has the id '3'"):
        editor.remove(["1", "3"])
    with pytest.raises(ElqError, match="no entity would be left"):
        editor.remove([*contents(folder)])
    for wrong in (entity("c"), ["c"]):
        with pytest.raises(ElqError, match="entities"):
            editor.add(wrong)
    with pytest.raises(ElqError, match="found one string"):
        editor.remove("1")
    assert segments_lib.read_stamp(folder) == before


def test_rows_stay_until_the_catalogue_is_compacted(folder, encoded, monkeypatch):
    """Small segments are merged, so that there are few; so are the batches of their rows."""
    monkeypatch.setattr(segments_lib, "ROWS_PER_BATCH", 12)
    editor = CatalogueEditor(folder)
    for number in range(20):
        editor.add([entity(f"new {number}", id=f"n{number}")])
        if number == 11:
            editor.remove(["n5"])
    parts = editor.segments()
    assert [len(part.catalogue) for part in parts.parts] == [ROWS, 16, 4]
    batches = [[batch.num_rows for batch in part.catalogue.batches()] for part in parts.parts[1:]]
    assert batches == [[12, 4], [4]]
    assert parts.summary() == (
        "entities      59\n"
        "segments      3, of 40 + 16 + 4 rows\n"
        "deleted rows  1\n"
        "changes       21 since the catalogue was built\n"
        "vectors       64 x float32\n"
        "compact       makes linking faster"
    )
    assert parts.catalogue.titles(range(ROWS, ROWS + 20)) == [f"new {i}" for i in range(20)]
    assert parts.deleted.tolist() == [ROWS + 5]
    assert parts.catalogue.find_titles(["new 5", "new 6"]).rows.tolist() == [-1, ROWS + 6]
    assert parts.catalogue.search_titles("new 5").count == 0
    assert len(list((folder / "segments").iterdir())) == 3


def test_without_an_entity_encoder(folder, tmp_path):
    model = Model.open(folder)
    model.replace(params={"question": model.params["question"]}).save(folder)
    linker = opened(folder)
    [own, other] = linker.catalogue.ids([0, 1])
    with pytest.raises(ElqError, match="no parameters of the entity encoder; so nothing new can"):
        linker.add_entities([entity("new")])
    linker.update_entities([{"id": own, "aliases": ["a name"], "wikidata_id": "Q1"}])
    linker.remove_entities([other])
    assert linker.catalogue[ROWS].aliases == ("a name",)
    assert linker.catalogue[ROWS].id == own
    in_memory = EntityLinker(linker.model, linker.catalogue, linker.index)
    with pytest.raises(ElqError, match="put together in memory"):
        in_memory.add_entities([entity("new")])


def test_two_writers(folder, encoded):
    with files.folder_lock(folder), pytest.raises(ElqError, match="is changing its catalogue"):
        CatalogueEditor(folder).add([entity("new")])
    CatalogueEditor(folder).add([entity("new")])


def test_a_damaged_list(folder, encoded):
    CatalogueEditor(folder).add([entity("new")])
    CatalogueEditor(folder).remove(open_segments(folder).catalogue.ids([3]))
    path = folder / "catalogue.json"
    whole = json.loads(path.read_text())
    for change, message in (
        ({"format": "2"}, "format"),
        ({"segments": []}, "segments"),
        ({"segments": [whole["segments"][1] | {"folder": "../x"}]}, "folder"),
        ({"segments": [whole["segments"][0] | {"rows": 3}]}, "another catalogue"),
        ({"segments": whole["segments"][1:]}, "not the rows of a catalogue of 1"),
        ({"deleted": whole["deleted"] | {"sha256": "0" * 64}}, "damaged"),
    ):
        path.write_text(json.dumps(whole | change))
        with pytest.raises(ElqError, match=message):
            open_segments(folder)


def test_a_file_is_synchronised(folder, encoded, tmp_path, monkeypatch):
    before = contents(folder)
    editor, path = CatalogueEditor(folder), tmp_path / "new.jsonl"
    ids = [*before]
    fields = ("title", "text", "wikidata_id", "aliases")
    lines = [
        {"id": own} | dict(zip(fields, before[own][:4], strict=True))
        for own in ids
        if own != ids[9]
    ]
    lines[0]["aliases"] = ["another name"]
    lines[1]["text"] = "another text"
    lines += [entity(f"new {i}", id=f"n{i}") for i in range(5)]
    path.write_text("\n".join(map(json.dumps, lines)))

    reported = []
    assert editor.sync(path, dry_run=True, report=reported.append) == reported[0]
    assert reported[0].preview().split("\n") == [
        "        5 to add: n0, n1, n2, n3, n4",
        f"        2 to update: {ids[0]}, {ids[1]}",
        f"        1 to remove: {ids[9]}",
        "       37 unchanged",
        "        6 to encode",
    ]
    assert contents(folder) == before
    assert not encoded
    others = [line | {"id": f"other {line['id']}"} for line in lines]
    (tmp_path / "others.jsonl").write_text("\n".join(map(json.dumps, others)))
    preview = editor.sync(tmp_path / "others.jsonl", dry_run=True).preview()
    assert "no entity of the file has an id of the catalogue" in preview
    # The second of three shards is not written, since the process is stopped.
    monkeypatch.setattr(changes, "_SHARD_ROWS", 3)
    encode = CatalogueEditor._encode

    def stop(editor, entities):
        if encoded:
            raise KeyboardInterrupt
        return encode(editor, entities)

    with monkeypatch.context() as patch:
        patch.setattr(CatalogueEditor, "_encode", stop)
        with pytest.raises(KeyboardInterrupt):
            editor.sync(path)
    assert contents(folder) == before
    done = editor.sync(path)
    assert done == reported[0]
    assert done.summary() == "5 added, 2 updated, 1 removed, 37 unchanged; 6 encoded"
    assert done.removed == [ids[9]]
    assert sorted(encoded) == sorted([lines[1]["title"], *(f"new {i}" for i in range(5))])
    after = contents(folder)
    assert after.keys() == before.keys() - {ids[9]} | {f"n{i}" for i in range(5)}
    assert after[ids[0]] == (*before[ids[0]][:3], ("another name",), before[ids[0]][4])
    assert editor.sync(path).summary() == f"{len(lines)} unchanged; 0 encoded"

    path.write_text(json.dumps(lines[3]))
    assert editor.sync(path, retire=False).removed == []
    assert contents(folder) == after
    assert len(editor.sync(path).removed) == len(after) - 1
    path.write_text("\n".join([json.dumps(entity("x", id="1")), json.dumps(entity("y", id="1"))]))
    with pytest.raises(DataError, match="the id '1' is there twice"):
        editor.sync(path)


def test_a_full_disk(folder, encoded, monkeypatch, tmp_path):
    """Wherever the disk is full, the catalogue is as before, and then takes the change."""
    before, real, room = contents(folder), os.fsync, [0]

    def fsync(descriptor):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    editor, path = CatalogueEditor(folder), tmp_path / "all.jsonl"
    lines = [*editor.entities(), entity("newer", id="2")]
    path.write_text("\n".join(map(json.dumps, lines)))
    steps = (
        lambda: editor.add([entity("new", id="1")]),
        lambda: editor.update([{"id": "1", "text": "other"}]),
        lambda: editor.remove(["1"]),
        lambda: editor.sync(path),
        lambda: editor.compact(),
    )
    for step in steps:
        before = contents(folder)
        for writes in range(20):
            room[0] = writes
            number = open_segments(folder).number
            try:
                step()
                break
            except DiskFullError:
                pass
            if open_segments(folder).number > number:  # only a name was not waited for
                break
            assert contents(folder) == before
        assert writes > 1
        assert open_segments(folder).number == number + 1


def test_killed_writers(plain):
    """Ten are ended by SIGKILL at random moments; the whole story is in the benchmark."""
    root = pathlib.Path(__file__).parent.parent.parent
    command = [sys.executable, "-m", "benchmarks.catalogue_kills", "--linker", plain]
    options = ["--catalogue_kills=10", "--kills_random_vectors"]
    done = subprocess.run([*command, *options], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "10 kills during" in done.stdout
    assert "; 0 times the catalogue was neither" in done.stdout


def test_readers_never_see_half_a_change(folder, encoded):
    """Rows shift when the catalogue is compacted; an id always has its own title."""
    linker = opened(folder)
    titles = {each.id: each.title for each in linker.catalogue.entities(range(ROWS))}
    titles |= {f"n{number}": f"Zorblax {number}" for number in range(8)}
    wrong, counts, done = [], [0, 0], threading.Event()

    def read(number):
        while not done.is_set():
            for links in linker(QUESTIONS):
                counts[number] += 1
                for each in (each for link in links for each in (link, *link.candidates)):
                    if titles[each.id] != each.title:
                        wrong.append(each)

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read, number) for number in range(2)]
        linker.remove_entities(linker.catalogue.ids([3]))
        for number in range(8):
            linker.add_entities([entity(f"Zorblax {number}", id=f"n{number}")])
            if number == 4:
                linker.compact()
        seen = list(counts)
        while not all(now > before + 2 for now, before in zip(counts, seen, strict=True)):
            if any(reader.done() for reader in readers):
                break
            time.sleep(0.01)
        done.set()
        for reader in readers:
            reader.result()
    assert not wrong
