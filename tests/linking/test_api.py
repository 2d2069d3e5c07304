"""What people do with a linker besides linking: streams, given spans, threads, copies, the hub."""

import copy
import os
import pathlib
import pickle
import subprocess
import sys
import threading
import warnings

import huggingface_hub
import jax
import numpy as np
import pytest
from conftest import xla_flags
from tiny import arrays, tiny_params

from elq_jax import EntityLinker
from elq_jax.core.errors import ElqError
from elq_jax.model.bundle import Model
from elq_jax.retrieval.exact import ExactIndex

THRESHOLD = -9.0
TEXTS = ["who is obama", "", "paris in ohio 2011", "spoken in Côte d'Ivoire?"]


def test_a_link_as_json_values(linker):
    [link, *_] = linker(TEXTS[0])
    values = link.to_dict()
    assert tuple(values) == link.__struct_fields__
    assert values["row"] == link.row
    assert values["id"] == linker.catalogue[link.row].id
    assert values["candidates"][1] == {
        name: getattr(link.candidates[1], name)
        for name in ("row", "title", "wikidata_id", "score", "id")
    }


def places(links):
    """What does not depend on how questions are put in batches."""
    return [(link.start, link.end, link.row) for link in links]


def test_a_stream_is_read_as_it_is_linked(linker):
    taken = []

    def stream():
        for number in range(100):
            taken.append(number)
            yield TEXTS[number % 4]

    expected = linker(TEXTS)
    piped = linker.pipe(stream(), batch_size=1)
    assert taken == []
    assert places(next(piped)) == places(expected[0])
    assert taken == [0]
    for number, links in enumerate(linker.pipe(stream(), batch_size=2)):
        assert places(links) == places(expected[number % 4])
    assert number == 99
    assert list(linker.pipe([])) == []
    with pytest.raises(ElqError, match="texts: found one string"):
        linker.pipe("who is obama")
    with pytest.raises(ElqError, match="batch_size: -1; expected an integer, at least 1"):
        linker.pipe([], batch_size=-1)
    with pytest.raises(ElqError, match=r"spans: found NoneType, expected a list of \(start, end\)"):
        linker.disambiguate("who is obama", None)


def test_one_warning_that_names_the_caller(linker):
    texts = ["x " * 200] * 200
    linker = linker.with_settings(decoder="elq_jax.original.decoding:original")
    for link in (
        lambda: linker(texts),
        lambda: linker(texts[0]),
        lambda: list(linker.pipe(texts, batch_size=8)),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            link()
        [warning] = caught
        assert warning.filename == __file__
        assert "only the first 252 of 400 characters are linked" in str(warning.message)
    with pytest.warns(UserWarning, match=r"\(and 199 more texts are cut\)"):
        linker(texts)


def test_given_spans(linker):
    text = TEXTS[3]
    spans = [(20, 23), (10, 24), (0, 6), (3, 9)]
    with pytest.raises(ElqError, match=r"question 0, mention 3 \[3, 9\) .*inside a token"):
        linker.disambiguate(text, spans)
    spans = [(10, 24), (0, 6), (7, 10)]  # one with a blank at its end
    spans[2] = (6, 10)
    links = linker.disambiguate(text, spans)
    assert [(link.start, link.end) for link in links] == spans
    encoded = linker.encode([text])
    for link in links:
        assert link.mention == text[link.start : link.end]
        assert link.mention_score == 0
        assert link.score == link.candidates[0].score
        scores = np.array([candidate.score for candidate in link.candidates])
        assert np.exp(scores).sum() == pytest.approx(1)
        # The same candidates as a search with the vector of its tokens finds.
        offsets = encoded[0].offsets
        inside = (offsets[:, 0] < link.end) & (offsets[:, 1] > link.start)
        tokens = np.flatnonzero(inside)
        bounds = [[[tokens[0], tokens[-1]]]]
        _, scored = linker.score_encoded([text], encoded, bounds=bounds)
        assert [candidate.row for candidate in link.candidates] == scored.rows[0].tolist()
        assert link.title == linker.catalogue[link.row].title
    # Where linking finds the span too, its candidates are the same but for the mention's share.
    [found] = linker(text, -np.inf)[:1]
    [given] = linker.disambiguate(text, [(found.start, found.end)])
    assert given.row == found.row
    assert given.score == pytest.approx(found.score - found.mention_score, abs=1e-5)
    several = linker.disambiguate([TEXTS[0], "", text], [[(7, 12)], [], spans])
    assert [len(links) for links in several] == [1, 0, 3]
    assert [link.row for link in several[2]] == [link.row for link in links]
    assert linker.disambiguate([], []) == []


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ((5, 5), r"mention 0: \(5, 5\); expected \(start, end\), characters .* end <= 12"),
        ((7, 13), r"mention 0: \(7, 13\)"),
        ((-5, 12), r"mention 0: \(-5, 12\)"),
        ((7, 12.0), r"mention 0: \(7, 12\.0\)"),
        ("ab", "mention 0: 'ab'"),
        (7, "mention 0: 7; expected"),
        ((3, 4), r"mention 0 \[3, 4\) ' ': no token lies in it"),
    ],
)
def test_spans_that_cannot_be(linker, span, message):
    with pytest.raises(ElqError, match="question 0, " + message):
        linker.disambiguate("who is obama", [span])


def test_spans_that_are_cut(linker):
    text = "x " * 200
    linker = linker.with_settings(decoder="elq_jax.original.decoding:original")
    with pytest.raises(ElqError, match=r"\[300, 301\) 'x': the question is cut at character 252"):
        linker.disambiguate(text, [(0, 1), (300, 301)])
    with pytest.raises(ElqError, match="spans: found 1, expected a list of spans for each of 2"):
        linker.disambiguate([text, text], [[(0, 1)]])


def test_many_threads(linker):
    expected = linker(TEXTS)
    found = {}

    def link(number):
        for _ in range(3):
            found.setdefault(number, []).append(linker(TEXTS))

    threads = [threading.Thread(target=link, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert all(links == expected for results in found.values() for links in results)


def test_pickles_and_copies_are_opened_again(linker):
    changed = linker.with_settings(threshold=-3.0, num_candidates=2)
    for again in (pickle.loads(pickle.dumps(changed)), copy.deepcopy(changed)):
        assert again is not changed
        assert again.settings == changed.settings
        assert again(TEXTS) == changed(TEXTS)
    assert copy.copy(changed).index is changed.index
    with pytest.raises(ElqError, match="put together in memory and cannot be pickled"):
        pickle.dumps(linker.with_params(tiny_params()["question"]))


FORK = """
import os, sys
from elq_jax import EntityLinker

linker = EntityLinker.from_pretrained(sys.argv[1])
linker("who is obama")
for attempt in (lambda: linker("who"), lambda: EntityLinker.from_pretrained(sys.argv[1]),
                lambda: linker.encode(["who"])):
    child = os.fork()
    if not child:
        try:
            attempt()
        except BaseException as error:
            print(type(error).__name__, error, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
print(len(linker("who is obama")))
"""


def test_a_forked_child_says_so(folder):
    environment = os.environ | {"XLA_FLAGS": xla_flags(1), "ELQ_JAX_CACHE": ""}
    command = [sys.executable, "-W", "ignore", "-c", FORK, folder]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=100, check=True
    )
    *errors, links = done.stdout.splitlines()
    assert len(errors) == 3
    assert all("ElqError this process was forked from one that had op" in x for x in errors)
    assert int(links) > 0


def test_devices_by_name(folder, linker):
    assert EntityLinker.from_pretrained(folder, devices="cpu")(TEXTS[0])
    for devices, message in (
        ("abacus", "devices: 'abacus'; expected a platform that JAX has here, such as 'cpu'"),
        ([], r"devices: \[\]; expected a platform's name, or a list of devices"),
        ([0], r"devices: \[0\]; expected"),
    ):
        with pytest.raises(ElqError, match=message):
            EntityLinker.from_pretrained(folder, devices=devices)


def test_home_and_hub(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    linker = EntityLinker.from_pretrained("~/linker")
    asked = []

    def download(name, **options):
        asked.append((name, options["allow_patterns"]))
        if name == "someone/nothing":
            raise ConnectionError("no network")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert EntityLinker.from_pretrained("someone/linker")(TEXTS) == linker(TEXTS)
    assert asked == [("someone/linker", None)]
    with pytest.raises(ElqError, match="linker 'someone/nothing': no such folder here, and it"):
        EntityLinker.from_pretrained("someone/nothing")
    with pytest.raises(ElqError, match="'': expected the path of a file or folder"):
        EntityLinker.from_pretrained("")
    for path in ("nothing", tmp_path / "a" / "b", "./a/b", "/no/linker"):
        with pytest.raises(ElqError, match=r"no config\.json here"):
            EntityLinker.from_pretrained(path)
    assert len(asked) == 2
    linker.with_settings(threshold=-1.0).save_pretrained("~/saved")
    assert (folder.parent / "saved" / "config.json").is_file()


def test_a_linker_made_in_memory_is_saved(folder, linker, tmp_path):
    model = Model.open(folder)
    vectors = arrays("kb")["entity_encodings"]
    made = EntityLinker(
        model,
        linker.catalogue,
        ExactIndex(vectors),
        linker.settings,
        embeddings=vectors,
        devices=jax.devices()[:1],
    )
    made.save_pretrained(tmp_path / "made")
    again = EntityLinker.from_pretrained(tmp_path / "made", devices=jax.devices()[:1])
    assert again.settings == linker.settings
    assert again(TEXTS) == made(TEXTS) == linker(TEXTS)
    assert Model.open(tmp_path / "made").entity_fingerprint == model.entity_fingerprint
    bare = EntityLinker(model, linker.catalogue, ExactIndex(vectors))
    with pytest.raises(ElqError, match="embeddings: this linker was put together without them"):
        bare.save_pretrained(tmp_path / "bare")
    assert not pathlib.Path(tmp_path / "bare").exists()


def test_changed_parameters_are_saved(folder, linker, tmp_path):
    params = jax.tree.map(lambda x: 0.9 * x, tiny_params()["question"])
    changed = linker.with_params(params)
    expected = changed(TEXTS)
    changed.save_pretrained(tmp_path / "changed")
    again = EntityLinker.from_pretrained(tmp_path / "changed", devices=jax.devices()[:1])
    assert again(TEXTS) == expected != linker(TEXTS)
    found = Model.open(tmp_path / "changed")
    jax.tree.map(np.testing.assert_array_equal, found.params["question"], params)
    jax.tree.map(np.testing.assert_array_equal, found.params["entity"], tiny_params()["entity"])
