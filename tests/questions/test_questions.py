"""Reading labelled questions, finding their gold in a catalogue, keeping them as array_record."""

import gzip
import json
import subprocess
import sys

import pytest

from elq_jax.core.errors import DataError, ElqError
from elq_jax.entities.build import build_catalogue
from elq_jax.entities.catalogue import Catalogue
from elq_jax.questions.prepared import prepare
from elq_jax.questions.read import read_questions
from elq_jax.questions.records import Mention, Question
from elq_jax.questions.rows import open_rows

ENTITIES = [
    ("Dune (novel)", "Q190192"),
    ("Paris", "Q90"),
    ("Paris (mythology)", "Q167646"),
    ("Amazon", None),
    ("Paris", "Q830149"),
    ("Am\u00e9lie", None),
]


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    folder = tmp_path_factory.mktemp("catalogue")
    lines = [json.dumps({"title": t, "text": "", "wikidata_id": w}) for t, w in ENTITIES]
    (folder / "entities.jsonl").write_text("\n".join(lines))
    build_catalogue(folder / "entities.jsonl", folder / "catalogue.arrow")
    return Catalogue.open(folder / "catalogue.arrow")


@pytest.fixture
def write(tmp_path):
    def write(*rows, name="questions.jsonl"):
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(line + "\n" for line in lines))
        return path

    return write


def dune(**changes):
    row = {"id": "a", "text": "who wrote dune?", "mentions": [[10, 14]], "label_id": [0]}
    return {key: value for key, value in {**row, **changes}.items() if value is not ...}


def el4qa(**changes):
    row = {
        "id": 7,
        "text": "who wrote dune?",
        "mentions": [[10, 14]],
        "tokenized_text_ids": [2040, 2626, 22708, 1029],
        "tokenized_mention_idxs": [[2, 3]],
        "label_id": [0],
        "wikidata_id": ["Q190192"],
        "entity": ["Dune (novel)"],
        "label": ["A novel."],
    }
    return {key: value for key, value in {**row, **changes}.items() if value is not ...}


def test_both_forms(write):
    path = write(dune(), el4qa())
    questions, report = read_questions(path)
    assert questions == [
        Question("a", "who wrote dune?", (Mention(10, 14, 0),)),
        Question(
            "7",
            "who wrote dune?",
            (Mention(10, 14, 0, "Dune (novel)", "Q190192"),),
            token_ids=(2040, 2626, 22708, 1029),
            token_mentions=((2, 3),),
        ),
    ]
    assert report.questions == report.mentions == 2
    assert report.counts == {"row": 2}


def test_published_form_of_the_original(fixtures):
    path = fixtures / "labelled.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    questions, report = read_questions(path, allow_overlaps=True)
    assert [q.id for q in questions] == [str(row["id"]) for row in rows]
    for question, row in zip(questions, rows, strict=True):
        assert list(question.token_ids) == row["tokenized_text_ids"]
        assert list(map(list, question.token_mentions)) == row["tokenized_mention_idxs"]
        assert [m.row for m in question.mentions] == row["label_id"]
    outside = [
        len(row["mentions"])
        for row in rows
        if not all(0 <= start < end <= len(row["text"]) for start, end in row["mentions"])
    ]
    assert report.counts["no_offsets"] == sum(outside)


def test_offsets_that_cannot_be_are_unknown(write):
    """The published files repeat [0, 1) for mentions whose tokens are apart."""
    two = {name: el4qa()[name] * 2 for name in ("label_id", "wikidata_id", "entity", "label")}
    path = write(el4qa(mentions=[[0, 1]] * 2, tokenized_mention_idxs=[[0, 1], [2, 3]], **two))
    [question], report = read_questions(path)
    assert [(m.start, m.end, m.row) for m in question.mentions] == [(-1, -1, 0)] * 2
    assert question.token_mentions == ((0, 1), (2, 3))
    assert report.counts["no_offsets"] == 2


def test_label_ids_are_checked_by_title_or_trusted(fixtures, tmp_path):
    build_catalogue(fixtures / "entity.jsonl", tmp_path / "catalogue.arrow")
    catalogue = Catalogue.open(tmp_path / "catalogue.arrow")
    path = fixtures / "labelled.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    titles = [
        json.loads(line)["title"] for line in (fixtures / "entity.jsonl").read_text().splitlines()
    ]
    wrong = sum(
        label >= 0 and titles[label] != title
        for row in rows
        for label, title in zip(row["label_id"], row["entity"], strict=True)
    )
    checked = read_questions(path, catalogue, allow_overlaps=True)[1]
    assert checked.counts["row_refused"] == wrong
    questions, trusted = read_questions(path, catalogue, trust_rows=True, allow_overlaps=True)
    assert [m.row for q in questions for m in q.mentions] == [
        i for r in rows for i in r["label_id"]
    ]
    out = trusted.counts["out_of_catalogue"]
    assert trusted.counts["row"] + out == trusted.mentions


@pytest.mark.parametrize(
    ("gold", "row", "how"),
    [
        ({"label_id": [1], "entity": ["Paris"]}, 1, "row"),
        ({"label_id": [4], "entity": ["Paris"]}, 4, "row"),
        ({"label_id": [2]}, 2, "row"),
        ({"label_id": [2], "entity": ["Dune (novel)"]}, 0, "title"),
        ({"label_id": [2], "entity": ["Dune"], "wikidata_id": ["Q90"]}, 1, "wikidata_id"),
        ({"label_id": [99], "entity": ["Amazon"]}, 3, "title"),
        ({"label_id": [99]}, -1, "unresolved"),
        ({"label_id": [-1], "entity": ["Paris"]}, -1, "out_of_catalogue"),
        ({"label_id": [None], "entity": ["Paris"]}, 1, "title"),
        ({"wikidata_id": ["Q167646"], "entity": ["Amazon"]}, 2, "wikidata_id"),
        ({"wikidata_id": ["Q1"], "entity": ["Amazon"]}, 3, "title"),
        ({"wikidata_id": [None], "entity": ["amazon"]}, 3, "title_normalised"),
        ({"wikidata_id": [None], "entity": ["AMAZON"]}, -1, "unresolved"),
        ({"title": ["Paris_(mythology)"]}, 2, "title_normalised"),
        ({"title": ["Ame\u0301lie"]}, 5, "title_normalised"),
        ({"wikidata_id": ["https://www.wikidata.org/wiki/Q90"]}, 1, "wikidata_id_normalised"),
        ({"wikidata_id": ["q90"], "title": ["dune (novel)"]}, 1, "wikidata_id_normalised"),
        ({"wikidata_id": ["q90"], "title": ["Amazon"]}, 3, "title"),
        ({"wikidata_id": [""], "entity": [None]}, -1, "unresolved"),
        ({"row": [1], "title": ["Paris"]}, 1, "row"),
        ({"row": [2], "title": ["Dune (novel)"]}, 0, "title"),
        ({"row": [None], "title": [""], "wikidata_id": ["Q90"]}, 1, "wikidata_id"),
        ({"label_id": [2], "title": "a field of somebody's own"}, 2, "row"),
    ],
)
def test_gold_is_found_in_the_catalogue(write, catalogue, gold, row, how):
    path = write(dune(**{"label_id": ..., **gold}))
    [question], report = read_questions(path, catalogue)
    assert question.mentions[0].row == row
    assert report.counts[how] == report.mentions == 1
    ambiguous = how == "title" and question.mentions[0].title == "Paris"  # two entities have it
    assert report.counts["ambiguous_title"] == ambiguous
    refused = how not in ("row", "out_of_catalogue") and any(
        row is not None for name in ("row", "label_id") for row in gold.get(name, [])
    )
    assert report.counts["row_refused"] == refused
    assert len(report.unresolved) == (how == "unresolved")
    if report.unresolved:
        assert "line 1, question a, mention 'dune'" in report.unresolved[0]
        assert report.unresolved[0].endswith((": not in the catalogue", ": no entity is named"))
        assert "None" not in report.unresolved[0]
        assert report.unresolved[0] in report.summary()


def linked(**changes):
    """A line as the link program writes it."""
    link = {"start": 10, "end": 14, "mention": "dune", "title": "Dune (novel)", "row": 0}
    link |= {"wikidata_id": "Q190192", "score": -0.5, "mention_score": -0.1, "candidates": []}
    row = {"id": 1.5, "text": "who wrote dune?", "links": [link | changes]}
    return row


def test_links_are_gold(write, catalogue):
    """What is linked is read as labelled; rows of another catalogue are found by id or title."""
    nothing = linked() | {"links": []}
    rows = [linked(), linked(row=1), linked(row=1, wikidata_id=""), linked(row=-1), nothing]
    questions, report = read_questions(write(*rows), catalogue)
    assert [q.id for q in questions] == ["1.5"] * 5
    assert [[m.row for m in q.mentions] for q in questions] == [[0], [0], [0], [-1], []]
    assert questions[0].mentions == (Mention(10, 14, 0, "Dune (novel)", "Q190192"),)
    assert report.counts == {
        "row": 1, "wikidata_id": 1, "title": 1, "out_of_catalogue": 1, "row_refused": 2
    }  # fmt: skip
    assert read_questions(write(linked(title=None, wikidata_id=None)))[0][0].mentions[0].row == 0


def test_links_to_entities_that_were_renamed_or_moved(write, catalogue):
    """The id of a link says which entity is meant, whatever its row and title have become."""
    changes = {"title": "an older title", "wikidata_id": None}
    rows = [
        linked(id="Q190192", row=1, **changes),
        linked(id="Q190192", row=1, title=catalogue.titles([1])[0], wikidata_id=None),
        linked(id="nothing", row=0),
    ]
    questions, report = read_questions(write(*rows), catalogue)
    assert [question.mentions[0].row for question in questions] == [0, 0, 0]
    assert report.counts == {"id": 2, "wikidata_id": 1, "row_refused": 3}
    assert catalogue.find_ids(["Q190192", None, "nothing"]).counts.tolist() == [1, 0, 0]


def test_a_link_to_nothing_is_gold_outside_the_catalogue(write, catalogue):
    nil = linked(row=None, title=None, wikidata_id=None)
    questions, report = read_questions(write(nil, linked(row=None)), catalogue)
    assert [q.mentions[0].row for q in questions] == [-1, 0]
    assert report.counts == {"out_of_catalogue": 1, "wikidata_id": 1}


def test_rows_go_to_their_own_mentions(write, catalogue):
    first = {"text": "amazon and paris", "mentions": [[11, 16], [0, 6]]}
    first["entity"] = ["Paris (mythology)", "Amazon"]
    second = {"text": "nothing", "mentions": [], "entity": []}
    third = {"text": "dune, dune", "mentions": [[6, 10]], "wikidata_id": ["Q190192"]}
    questions, report = read_questions(write(first, second, third), catalogue)
    assert [q.id for q in questions] == ["1", "2", "3"]
    assert [[m.row for m in q.mentions] for q in questions] == [[2, 3], [], [0]]
    assert [m.start for m in questions[0].mentions] == [11, 0]
    assert report.counts == {"title": 2, "wikidata_id": 1}


BAD_ROWS = [
    ('{"text": "x"', "invalid JSON"),
    ("[1]", "expected a JSON object"),
    (dune(text=...), "field 'text': missing"),
    ({"id": 3, "error": "f.txt:3: not UTF-8"}, "'text': missing .the line says: f.txt:3: not UTF"),
    (dune(text=5), "field 'text': found 5, expected a string"),
    (dune(text="\ud83d who wrote dune"), "surrogate"),
    (dune(id=[1]), "field 'id': found .1., expected an integer or a number or a string or null"),
    (dune(mentions=...), "field 'mentions': missing"),
    (dune(mentions="10-14"), "field 'mentions': found \"10-14\", expected a list"),
    (dune(mentions=[[10]]), r"'mentions\[0\]': found \[10\], expected a list of length 2"),
    (dune(mentions=[[10.0, 14]]), r"'mentions\[0\]\[0\]': found 10.0, expected an integer"),
    (dune(mentions=[[14, 10]]), r"\[14, 10\) is reversed"),
    (dune(mentions=[[10, 16]]), r"\[10, 16\) is out of range: the text has 15 characters"),
    (dune(mentions=[[-1, 3]]), r"\[-1, 3\) is out of range"),
    (dune(mentions=[[3, 3]]), r"\[3, 3\) is empty"),
    (dune(mentions=[[10, 14], [4, 11]], label_id=[0, 0]), r"\[4, 11\) and \[10, 14\) overlap"),
    (dune(label_id=...), "the gold entities are missing; give 'title', 'wikidata_id' or 'row'"),
    (dune(label_id=[0, 1]), "'label_id': found a list of 2, expected a list of 1"),
    (dune(label_id=0), "'label_id': found int, expected a list of 1"),
    (dune(entity=[]), "'entity': found a list of 0, expected a list of 1"),
    (dune(label_id=["0"]), r"'label_id\[0\]': found \"0\", expected an integer or null"),
    (dune(label_id=[-2]), r"'label_id\[0\]': found -2"),
    (dune(label_id=[True]), r"'label_id\[0\]': found true"),
    (dune(entity=[7]), r"'entity\[0\]': found 7, expected a string or null"),
    (dune(row=[1]), "both 'row' and 'label_id', its former name"),
    (linked(start="10"), r"'links\[0\].start': found \"10\", expected an integer"),
    (linked(end=16), r"links\[0\] = \[10, 16\) is out of range"),
    (linked(start=9), r"links\[0\]: 'mention' is 'dune', but the text has ' dune' at \[9, 14\)"),
    (
        linked() | {"links": [{"start": 10, "end": 14}]},
        r"links\[0\]: the gold entities are missing",
    ),
    (linked() | {"mentions": []}, "found both 'mentions' and 'links'"),
    (el4qa(tokenized_text_ids=[]), "field 'tokenized_text_ids'"),
    (el4qa(tokenized_text_ids=["who"]), "field 'tokenized_text_ids'"),
    (el4qa(tokenized_mention_idxs=...), "field 'tokenized_mention_idxs': missing"),
    (el4qa(tokenized_mention_idxs=[[2, 5]]), "out of range: the text has 4 tokens"),
    (el4qa(tokenized_mention_idxs=[[3, 2]]), "reversed"),
    (el4qa(mentions=[]), "'mentions': found a list of 0, expected a list of 1"),
    (el4qa(wikidata_id=[]), "'wikidata_id': found a list of 0, expected a list of 1"),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
def test_bad_rows_stop_or_are_listed(write, row, message):
    path = write(dune(), dune(), row, el4qa())
    with pytest.raises(DataError, match=message) as caught:
        read_questions(path)
    assert caught.value.line == 3
    assert str(caught.value).startswith(f"{path}:3: ")

    questions, report = read_questions(path, on_error="skip")
    assert [q.id for q in questions] == ["a", "a", "7"]
    assert report.skipped == [str(caught.value)]
    assert report.skipped[0] in report.summary()


def test_offsets_count_unicode_characters(write):
    text = "🎬 who directed amélie\u0301 🇫🇷?"
    start = text.index("amélie")
    row = dune(text=text, mentions=[[start, start + 7]])
    escaped = json.dumps(row)  # as pairs of \\u surrogates
    literal = json.dumps(row, ensure_ascii=False)
    questions, _ = read_questions(write(escaped, literal))
    assert questions[0] == questions[1]
    [mention] = questions[0].mentions
    assert questions[0].text[mention.start : mention.end] == "amélie\u0301"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"id": 1e400, "text": "who", "mentions": []}', "field 'id': inf; expected a finite"),
        ('{"id": NaN, "text": "who", "mentions": []}', "field 'id': nan; expected a finite"),
        (
            '{"text": "who", "mentions": [[0, 3]], "row": [1e400]}',
            r"'row\[0\]': found inf, expected",
        ),
    ],
)
def test_numbers_that_are_none(tmp_path, row, message):
    (tmp_path / "q.jsonl").write_text(row)
    with pytest.raises(DataError, match=rf"q\.jsonl:1: .*{message}"):
        read_questions(tmp_path / "q.jsonl")


def test_unlabelled_questions(write):
    path = write({"text": "who?"}, dune(), el4qa(tokenized_mention_idxs=...))
    questions, _ = read_questions(path, require_mentions=False)
    assert [len(q.mentions) for q in questions] == [0, 1, 0]
    with pytest.raises(DataError, match="'mentions': missing"):
        read_questions(path)


def test_files_without_questions(write, tmp_path):
    empty = write()
    with pytest.raises(DataError, match="found no rows"):
        read_questions(empty)
    assert read_questions(empty, require_mentions=False)[0] == []
    with pytest.raises(DataError, match="found 1 rows that cannot be used"):
        read_questions(write("{"), on_error="skip")
    with pytest.raises(ElqError, match="no such file"):
        read_questions(tmp_path / "nowhere.jsonl")
    with pytest.raises(ElqError, match="on_error"):
        read_questions(empty, on_error="ignore")


def test_gzip(write, tmp_path):
    (tmp_path / "questions.jsonl.gz").write_bytes(gzip.compress(write(dune()).read_bytes()))
    assert len(read_questions(tmp_path / "questions.jsonl.gz")[0]) == 1


def test_neutral_spans(write):
    line = {"id": "a", "text": "who wrote dune?", "mentions": [[10, 14]], "row": [0]}
    neutral = [[4, 14], [10, 14], [0, 3]]
    linked = {"id": "a", "text": "who wrote dune?", "links": [], "neutral": neutral}
    (plain, without, links), _ = read_questions(write(line | {"neutral": neutral}, line, linked))
    assert plain.neutral == links.neutral == ((4, 14), (10, 14), (0, 3))
    assert without.neutral == ()
    for wrong, message in (
        ([[4, 99]], r"neutral\[0\] = \[4, 99\) is out of range: the text has 15 characters"),
        ([[4, 4]], "is empty"),
        ([7], "neutral"),
    ):
        with pytest.raises(DataError, match=f":1: .*{message}"):
            read_questions(write(line | {"neutral": wrong}))
    with pytest.raises(DataError, match="'neutral' beside 'tokenized_text_ids'"):
        read_questions(write(el4qa(neutral=[[0, 3]])))


def test_prepared_questions_come_back_as_they_were(write, tmp_path, catalogue):
    plain = dune(text="who wrote d\u0000une? 🎬", entity=["Dune (novel)"])
    rows = [
        plain,
        dune(neutral=[[0, 3], [4, 14]]),
        el4qa(),
        dune(mentions=[], label_id=[]),
        dune(text="é" * 10_000),
    ]
    rows += [dune(label_id=[-1], entity=["Dune"])] * 40
    train = write(*rows, name="train.jsonl")
    dev = write(dune(label_id=[99], entity=["Dune"]), name="dev.jsonl")
    builder = prepare("toy", {"train": train, "dev": dev}, tmp_path / "data", catalogue)
    for split, path in (("train", train), ("dev", dev)):
        questions, report = read_questions(path, catalogue)
        source = builder.open_split(split)
        assert len(source) == len(questions)
        assert [source[number] for number in range(len(source))] == questions
        assert source[-1] == questions[-1]
        assert builder.reports[split] == report
    with pytest.raises(IndexError):
        source[1]
    with pytest.raises(ElqError, match="no split 'test'; there are dev, train"):
        builder.open_split("test")


def test_prepared_questions_follow_their_files(write, tmp_path, catalogue, capfd):
    def files():
        return {f: f.stat().st_mtime_ns for f in (tmp_path / "data").rglob("*.array_record*")}

    path = write(dune(), name="train.jsonl")
    prepare("toy", {"train": path}, tmp_path / "data", catalogue)
    written = files()
    again = prepare("toy", {"train": path}, tmp_path / "data", catalogue)
    assert files() == written
    assert len(again.open_split("train")) == 1

    write(dune(), dune(id="b"), name="train.jsonl")
    changed = prepare("toy", {"train": path}, tmp_path / "data", catalogue)
    assert [changed.open_split("train")[i].id for i in range(2)] == ["a", "b"]
    other_gold = prepare("toy", {"train": path}, tmp_path / "data")
    assert other_gold.data_path != changed.data_path
    assert capfd.readouterr().out == ""


def test_a_bad_row_leaves_no_data_set(write, tmp_path, catalogue):
    path = write(dune(), dune(mentions=[[14, 10]]))
    with pytest.raises(DataError, match="reversed") as caught:
        prepare("toy", {"train": path}, tmp_path / "data", catalogue)
    assert caught.value.line == 2
    assert not list((tmp_path / "data").rglob("*.array_record*"))
    builder = prepare("toy", {"train": path}, tmp_path / "data", catalogue, on_error="skip")
    assert len(builder.open_split("train")) == 1
    assert len(builder.reports["train"].skipped) == 1


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), None])
def test_a_full_disk_leaves_no_data_set(write, tmp_path, catalogue, monkeypatch, error):
    from array_record.python.array_record_module import ArrayRecordWriter

    def full(*_):
        # As array_record says it.
        raise error or RuntimeError("write() failed: No space left on device; at byte 24576")

    path = write(dune())
    monkeypatch.setattr(ArrayRecordWriter, "write", full)
    with pytest.raises(ElqError, match="the disk is full; free some space and run again"):
        prepare("toy", {"train": path}, tmp_path / "data", catalogue)
    assert not list((tmp_path / "data").rglob("*.array_record*"))
    monkeypatch.undo()
    builder = prepare("toy", {"train": path}, tmp_path / "data", catalogue)
    assert len(builder.open_split("train")) == 1


def test_needs_no_tensorflow_and_imports_fast(write, tmp_path):
    path = write(dune())
    program = f"""
import sys
import elq_jax.questions.batches, elq_jax.questions.read
assert not {{"grain", "tensorflow_datasets", "jax"}} & set(sys.modules)
from elq_jax.questions.prepared import prepare
builder = prepare("toy", {{"train": {str(path)!r}}}, {str(tmp_path / "data")!r})
print(builder.open_split("train")[0].text)
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "who wrote dune?\n", done.stderr


def test_ids_of_questions_to_link(tmp_path):
    """An empty id is none; a number that JSON cannot write again is no id."""
    path = tmp_path / "questions.jsonl"
    ids = ('""', "null", "1e400", "NaN", "-0.5", '"a"', "99999999999999999999999")
    path.write_text("".join(f'{{"text": "x", "id": {text}}}\n' for text in ids))
    with open_rows(path, on_error="skip") as (rows, total):
        rows = list(rows)
    assert total == len(ids)
    assert [row.id for row in rows if row.error is None] == [1, 2, -0.5, "a", rows[6].id]
    wrong = [row for row in rows if row.error is not None]
    assert [row.id for row in wrong] == [3, 4]
    assert "questions.jsonl:3: field 'id': inf; expected a finite number" in wrong[0].error
    json.dumps([row.id for row in rows], allow_nan=False)
