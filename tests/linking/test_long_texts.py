"""Texts of any length, against reading their windows one by one."""

import itertools
import json
import re
import warnings

import jax
import numpy as np
import pytest
from tiny import tiny_linker_directory

from elq_jax import EntityLinker
from elq_jax.core.errors import ElqError
from elq_jax.linking import parts as parts_module
from elq_jax.linking import rows as rows_module
from elq_jax.linking.arguments import whole_tokens
from elq_jax.linking.output import open_output
from elq_jax.linking.rows import link_file, link_rows
from elq_jax.linking.scoring import Search, windows_of
from elq_jax.questions.rows import open_rows
from elq_jax.text.tokenization import EncodedQuestion
from elq_jax.text.windows import text_parts, text_windows

WORDS = (
    *("who", "wrote", "the", "amazonian", "song", "of", "lisztomania", "in", "ohio", "and"),
    *("dune", ".", "paris", "texas"),
)
LONGEST = 24


@pytest.fixture(scope="module")
def linker(tmp_path_factory):
    folder = tiny_linker_directory(
        tmp_path_factory.mktemp("linker"), threshold=-9.0, max_question_tokens=LONGEST
    )
    return EntityLinker.from_pretrained(folder, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, size)) for size in (90, 3, 41, 7)]


@pytest.mark.parametrize("overlap_tokens", [None, 2])
def test_spans_are_those_of_the_windows(linker, texts, overlap_tokens):
    """Each window as a question of its own; of its spans, those that no other window owns."""
    linker = linker.with_settings(max_mentions=1000, overlap_tokens=overlap_tokens)
    encoded = linker.encode(texts)
    overlap = overlap_tokens or linker.config.max_mention_width - 1
    lengths = [len(question.ids) for question in encoded]
    windows = text_windows(lengths, [q.sentences for q in encoded], LONGEST, overlap)
    assert len(windows) > len(texts) + 3
    expected = []
    for window in windows:
        question = encoded[window.text]
        part = slice(window.start, window.stop)
        ids = [question.ids[0], *question.ids[part], question.ids[-1]]
        words = [-1, *question.words[part], -1]
        piece = EncodedQuestion(np.array(ids, np.int32), None, np.array(words), None)
        search = Search.of([piece], linker.settings, linker.tokenizer.unk_id)
        # A word that is cut by the window is no whole word there.
        if question.words[window.stop] == question.words[window.stop - 1]:
            search.roles[0][-2] &= 255 - 4
        if question.words[window.start] == question.words[window.start - 1]:
            search.roles[0][1] &= 255 - 2
        [(found, _)] = linker.scorer([piece], LONGEST, 1, search)
        for bounds, logit in zip(found.bounds + window.start - 1, found.logits, strict=True):
            if window.low < sum(bounds) <= window.high:
                expected.append((window.text, *bounds.tolist(), float(logit)))
    scored = linker.score_batch(texts)
    rows = zip(scored.question.tolist(), *scored.bounds.T.tolist(), strict=True)
    assert [*rows] == sorted(row[:3] for row in expected)
    logits = {row[:3]: row[3] for row in expected}
    rows = zip(scored.question.tolist(), *scored.bounds.T.tolist(), strict=True)
    np.testing.assert_allclose(scored.logits, [logits[row] for row in rows], atol=2e-5)


def test_a_mention_at_every_place_of_a_seam_is_scored_once(linker):
    width = linker.config.max_mention_width
    for size in (1, width):
        texts = ["who " * (words + size) + " who" * 25 for words in range(2 * LONGEST)]
        encoded = linker.encode(texts)
        search = Search.of(encoded, linker.settings, linker.tokenizer.unk_id)
        windows = windows_of(encoded, LONGEST, width - 1, search)
        for words, question in enumerate(encoded):
            assert len(question.ids) == words + size + 27
            owners = []
            for window in (w for w in windows if w.question == words):
                first, last = words + 1 - window.shift, words + size - window.shift
                if window.limits[0] < first + last <= window.limits[1]:
                    owners.append(window)
                    assert 1 <= first <= last <= len(window.ids) - 2
                    assert window.roles[first : last + 1].all()
            assert len(owners) == 1


def facts(links):
    """What does not depend on how windows are put in batches."""
    return [
        [(link.start, link.end, link.row, round(link.score, 3)) for link in own] for own in links
    ]


def test_a_text_is_linked_to_its_end(linker, texts):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        links = linker(texts)
        assert facts(linker.pipe(texts, batch_size=2)) == facts(links)
    assert facts(map(linker, texts)) == facts(links)
    for text, own in zip(texts, links, strict=True):
        assert all(text[link.start : link.end] == link.mention for link in own)
        assert all(a.end <= b.start for a, b in itertools.pairwise(own))
    assert links[0][-1].start > len(texts[0]) - 60
    # Texts that fit are encoded, scored and decoded as they are.
    short = texts[1::2]
    assert linker(short) == linker.decode(linker.score_batch(short))


def test_known_mentions_of_a_long_text(linker, texts):
    links = linker(texts)
    spans = [[(link.start, link.end) for link in own] for own in links]
    order = np.random.default_rng(1).permutation(len(spans[0]))
    spans[0] = [spans[0][i] for i in order]
    known = linker.disambiguate(texts, spans)
    assert [[(link.start, link.end) for link in own] for own in known] == spans
    rows = {(link.start, link.end): link.row for link in links[0]}
    assert [link.row for link in known[0]] == [rows[span] for span in spans[0]]


def test_known_mentions_wider_than_windows_share(linker, texts):
    """The vector of each is the mean over what its window has of it; too wide ones are refused."""
    text, tokens = texts[0], linker.encode(texts[:1])[0]
    offsets = tokens.offsets
    spans = [(int(offsets[i, 0]), int(offsets[i + 20, 1])) for i in (1, 5, 9, 31, 60)]
    links = linker.disambiguate(text, spans)
    assert [(link.start, link.end) for link in links] == spans
    [alone] = linker.disambiguate(text[: spans[0][1]], spans[:1])
    assert links[0].row == alone.row
    start, end = offsets[2].tolist()
    places = [*spans, (0, len(text)), (2, 2), (start + 1, start + 2)]
    expected = [*spans, None, None, (start, end)]
    assert whole_tokens(tokens, places, LONGEST) == expected
    with pytest.raises(ElqError, match=r"question 0, mention 1: 23 tokens; expected at most 22"):
        linker.disambiguate(text, [spans[0], (0, int(offsets[23, 1]))])


def test_only_windows_with_known_mentions_are_read(linker, texts):
    encoded = linker.encode(texts)
    bounds = [
        np.array([[50, 51]]),
        np.zeros((0, 2), int),
        np.zeros((0, 2), int),
        np.array([[1, 1]]),
    ]
    windows = windows_of(encoded, LONGEST, 9, None, bounds)
    assert [window.question for window in windows] == [0, 1, 3]
    assert len(windows_of(encoded, LONGEST, 9, None, None)) == 2  # those that fit


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(parts_module, "PART_CHARACTERS", 2100)
    monkeypatch.setattr(rows_module, "_AT_ONCE", 3000)


def test_parts_give_the_links_of_the_whole(linker, small_parts):
    """Windows begin in other places, so a few links differ."""
    rng = np.random.default_rng(2)
    text = " ".join(rng.choice(WORDS, 1200))
    whole = linker.decode(linker.score_batch([text]))[0]
    places = text_parts(text, 2100)
    assert len(places) > 3
    [links, short] = linker([text, "paris texas"])
    assert all(text[link.start : link.end] == link.mention for link in links)
    assert all(a.end <= b.start for a, b in itertools.pairwise(links))
    seams = [(part.high // 2) for part in places[:-1]]
    for kind in (whole, links):
        near = [any(abs(link.start - seam) < 300 for seam in seams) for link in kind]
        assert sum(near) > 10
    same = {(link.start, link.end) for link in links} & {(link.start, link.end) for link in whole}
    assert len(same) > 0.9 * max(len(whole), len(links))
    assert facts([short]) == facts([linker("paris texas")])
    assert facts(linker.pipe([text, "paris texas"])) == facts([links, short])


def test_long_rows_are_written_piece_by_piece(linker, small_parts, tmp_path):
    rng = np.random.default_rng(3)
    texts = [" ".join(rng.choice(WORDS, size)) for size in (5, 1500, 7, 900)]
    (tmp_path / "in/b").mkdir(parents=True)
    for name, text in zip(("1.txt", "2.txt", "b/3.TXT", "c.txt"), texts, strict=True):
        (tmp_path / "in" / name).write_text(text)
    (tmp_path / "in/other.md").write_text("no document")
    with open_rows(tmp_path / "in") as (rows, total):
        rows = list(rows)
    assert (total, [row.id for row in rows]) == (4, ["1.txt", "2.txt", "b/3.TXT", "c.txt"])
    whole = link_rows(linker, rows, 8)
    pieces = []
    for form in ("json", "simple-jsonl"):
        output = tmp_path / f"{form}.jsonl"
        link_file(
            linker, rows, output, {}, form=form, batch_size=8, ahead=2,
            progress=lambda chunk, linked: pieces.append((len(chunk), len(linked))),
        )  # fmt: skip
        lines = output.read_bytes().splitlines(keepends=True)
        assert [json.loads(line)["text"] for line in lines] == texts
        for line, linked in zip(map(json.loads, lines), whole, strict=True):
            names = ("links", "start", "end") if form == "json" else (
                "predictions", "start_char", "end_char")  # fmt: skip
            found = [(link[names[1]], link[names[2]]) for link in line[names[0]]]
            assert found == [(link.start, link.end) for link in linked.links]
    assert [json.loads(line) for line in lines][1]["predictions"]
    assert sum(count for count, _ in pieces) == 2 * len(rows)
    assert len(pieces) > 2 * len(rows)
    advances = []
    tally = rows_module.Tally(advances.append)
    link_file(linker, rows, tmp_path / "t.jsonl", {}, batch_size=8, progress=tally.add)
    assert len(advances) > len(rows)
    done = np.cumsum(advances).round(9)
    finished = np.cumsum([count for count, _ in pieces[: len(pieces) // 2]])
    assert np.floor(done).tolist() == finished.tolist()
    assert len(set((done - finished).tolist())) > 3  # Shares of long rows are told.
    # A run that was stopped inside a long row resumes before it, and the file is the same.
    content = output.read_bytes()
    cut = content.index(b"\n") + 2000
    link_part(linker, rows, tmp_path / "again.jsonl", content[:cut])
    assert (tmp_path / "again.jsonl").read_bytes() == content


def link_part(linker, rows, output, written):
    """Links rows to a file of which an interrupted run wrote some."""
    settings = {"batch_size": 8, "form": "simple-jsonl"}
    with open_output(output, settings) as lines:
        lines.write([written])
    link_file(linker, rows, output, {}, form="simple-jsonl", batch_size=8)


@pytest.mark.parametrize(
    "text",
    [
        "x" * 100_000 + " paris",
        " \t" * 3000,
        "\n" * 1_000_000,
        "who\0 wrote dune\0" * 40,
        "paris \ud800 in ohio\udfff. " * 40,
        "東京にparisがあるkнига " * 200,
        "dune." + "!" * 3000 + "(" * 3000,
    ],
    ids=["one word", "blanks", "newlines", "NUL", "surrogates", "scripts", "marks"],
)
def test_bad_input(linker, text):
    links = linker(text)
    assert all(text[link.start : link.end] == link.mention.strip() != "" for link in links)
    assert bool(links) == bool(re.search("paris|dune", text))
