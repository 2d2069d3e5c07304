"""Alignment and windows against the original, batches against plain lists."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
from tiny import make_examples

from elq_jax.core.errors import ElqError
from elq_jax.questions.align import align_mentions
from elq_jax.questions.batches import TrainingBatches
from elq_jax.questions.examples import ExamplesWithNegatives, TrainingExample
from elq_jax.questions.read import read_questions
from elq_jax.questions.records import Mention, Question
from elq_jax.questions.stored import store_examples
from elq_jax.text import padding
from elq_jax.text.padding import (
    cheapest_batches,
    few_shapes,
    length_sorted_batches,
    pad_tokens,
)
from elq_jax.text.tokenization import Tokenizer
from elq_jax.text.windows import question_window


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_pretrained("minilm")


def ask(text, *quotes, rows=None):
    """A question whose mentions are the given parts of its text."""
    rows = rows or range(len(quotes))
    starts = [text.index(quote) for quote in quotes]
    mentions = [Mention(s, s + len(q), r) for s, q, r in zip(starts, quotes, rows, strict=True)]
    return Question("q", text, tuple(mentions))


# --- buckets and padding


def test_bucket():
    assert [padding.bucket(n, (4, 8)) for n in (0, 1, 4, 5, 8)] == [4, 4, 4, 8, 8]
    with pytest.raises(ElqError, match="found size 9, expected at most 8"):
        padding.bucket(9, (4, 8))


def test_pad_tokens():
    ids, mask = pad_tokens([np.array([5, 0, 7]), np.array([9])], length=4, batch=3)
    assert ids.tolist() == [[5, 0, 7, 0], [9, 0, 0, 0], [0, 0, 0, 0]]
    assert mask.tolist() == [[True] * 3 + [False], [True] + [False] * 3, [False] * 4]
    assert (ids.dtype, mask.dtype) == (np.int32, bool)
    with pytest.raises(ElqError, match="row 0 has 3 tokens"):
        pad_tokens([np.arange(3)], length=2, batch=1)
    with pytest.raises(ElqError, match="found 2 rows, expected at most 1, the batch size"):
        pad_tokens([np.arange(3)] * 2, length=3, batch=1)


@pytest.mark.parametrize("batch_size", [1, 3, 8, 64, 100])
def test_length_sorted_batches(batch_size):
    lengths = np.random.default_rng(0).integers(2, 60, 333)
    planned = length_sorted_batches(lengths, batch_size, 60)
    seen = np.concatenate([batch.indices for batch in planned])
    assert sorted(seen) == list(range(333))
    assert [*lengths[seen]] == sorted(lengths)
    for batch in planned:
        assert len(batch.indices) <= batch.size <= batch_size
        assert batch.size in (*padding.BATCH_BUCKETS, batch_size)
        longest = lengths[batch.indices].max()
        assert longest <= max(16, 2 * lengths[batch.indices].min())
        if len(batch.indices) == batch_size >= 32:
            assert batch.length == longest + longest % (2 if longest < 32 else 4)
        else:
            assert batch.length == min(b for b in (*padding.LENGTH_BUCKETS, 60) if b >= longest)
    classes = Counter(
        int(lengths[b.indices].max() - 1) // 16 for b in planned if b.size < batch_size
    )
    assert max(classes.values(), default=0) <= 3


def test_sizes_of_batches_that_are_not_full():
    def sizes(count):
        return [batch.size for batch in length_sorted_batches([9] * count, 64)]

    assert {count: sizes(count) for count in (1, 2, 6, 9, 20, 22, 44, 50, 64, 66, 130)} == {
        1: [1],
        2: [4],
        6: [4, 4],
        9: [16],
        20: [16, 4],
        22: [16, 4, 4],
        44: [32, 16],
        50: [64],
        64: [64],
        66: [4, 64],
        130: [4, 64, 64],
    }


def test_padding_of_real_lengths():
    """Of webqsp/test: 1,467 questions, 5 to 18 tokens."""
    counts = dict(enumerate((4, 45, 191, 310, 344, 270, 162, 89, 22, 18, 7, 4, 1), 6))
    lengths = np.repeat(list(counts), list(counts.values()))
    batches = length_sorted_batches(lengths, 64)
    assert sum(batch.size * batch.length for batch in batches) < 1.12 * lengths.sum()
    assert len({(batch.size, batch.length) for batch in batches}) <= 8


def test_few_shapes():
    lengths = np.random.default_rng(0).integers(2, 41, 300).tolist()
    batches = cheapest_batches(lengths, few_shapes(40))
    assert sorted(i for batch in batches for i in batch.indices) == list(range(300))
    assert {batch.size for batch in batches} == {64}
    assert {batch.length for batch in batches} <= {12, 16, 24, 32, 40}
    for batch in batches:
        assert max(lengths[i] for i in batch.indices) <= batch.length


def test_cheapest_batches_cost_no_more_than_any_other():
    """Compared with all ways to cut the sorted questions and to choose a shape for each part."""
    shapes = [(1, 12), (1, 64), (2, 20), (4, 12), (4, 16), (8, 10)]

    def cheapest(lengths):
        if not lengths:
            return 0
        return min(
            size * length + 30 + cheapest(lengths[count:])
            for count in range(1, len(lengths) + 1)
            for size, length in shapes
            if count <= size and lengths[count - 1] <= length
        )

    draw = np.random.default_rng(0)
    for count in range(1, 10):
        lengths = draw.integers(2, draw.choice([11, 17, 40]), count)
        batches = cheapest_batches(lengths, shapes)
        seen = np.concatenate([batch.indices for batch in batches])
        assert sorted(seen) == list(range(count))
        assert [*lengths[seen]] == sorted(lengths)
        for batch in batches:
            assert (batch.size, batch.length) in shapes
            assert len(batch.indices) <= batch.size
            assert lengths[batch.indices].max() <= batch.length
        cost = sum(batch.size * batch.length + 30 for batch in batches)
        assert cost == cheapest(sorted(lengths.tolist()))
    assert cheapest_batches([], shapes) == []
    with pytest.raises(ElqError, match="a question of 65 tokens, expected at most 64"):
        cheapest_batches([3, 65], shapes)


def test_length_sorted_batches_of_nothing_and_too_long():
    assert length_sorted_batches([], 8) == []
    with pytest.raises(ElqError, match="found size 513"):
        length_sorted_batches([10, 513], 8)
    with pytest.raises(ElqError, match="batch_size: 0; expected an integer, at least 1"):
        length_sorted_batches([10], 0)


# --- alignment


def test_aligned_mentions_quote_the_text(tokenizer):
    text = "🎬🎬 did Amélie\u0301 Poulain, of the Deux Moulins, visit   東京?"
    quotes = ["Amélie\u0301 Poulain", "Deux Moulins", "  東京", "東"]
    [encoded] = tokenizer.encode_questions([text], 64)
    aligned = align_mentions(ask(text, *quotes, rows=[5, -1, 7, 8]), encoded)
    assert not aligned.problems
    assert aligned.rows.tolist() == [5, -1, 7, 8]
    quoted = [text[encoded.offsets[i, 0] : encoded.offsets[j, 1]] for i, j in aligned.bounds]
    assert quoted == [quote.strip() for quote in quotes]
    assert (aligned.bounds.dtype, aligned.rows.dtype) == (np.int32, np.int32)


@pytest.mark.parametrize(
    ("quote", "kind", "reason"),
    [
        ("wro", "misaligned", "inside a token"),
        ("rote dune", "misaligned", "inside a token"),
        ("wrote dun", "misaligned", "inside a token"),
        ("  ", "empty", "no token lies in it"),
        ("asimov", "cut", "the question is cut at character 16"),
        ("dune  or asimov", "cut", "the question is cut at character 16"),
    ],
)
def test_each_problem_has_its_own_report(tokenizer, quote, kind, reason):
    text = "who wrote dune  or asimov"
    [encoded] = tokenizer.encode_questions([text], 5 if kind == "cut" else 32)
    question = ask(text, "who", quote)
    aligned = align_mentions(question, encoded)
    assert aligned.bounds.tolist() == [[1, 1]]
    assert aligned.rows.tolist() == [0]
    [problem] = aligned.problems
    assert (problem.kind, problem.question_id, problem.mention) == (kind, "q", 1)
    assert f"question q, mention 1 [{text.index(quote)}, " in problem.message
    assert repr(quote) in problem.message
    assert reason in problem.message


def test_unknown_offsets_are_a_problem_of_their_own(tokenizer):
    [encoded] = tokenizer.encode_questions(["who"], 8)
    aligned = align_mentions(Question("q", "who", (Mention(-1, -1, 0),)), encoded)
    assert [problem.kind for problem in aligned.problems] == ["no_offsets"]
    assert aligned.bounds.shape == (0, 2)


# --- windows


def test_windows_are_the_original_s(fixtures, tokenizer):
    path = fixtures / "labelled.jsonl"
    questions, _ = read_questions(path, allow_overlaps=True)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for expected in json.loads((fixtures / "windows.json").read_text()):
        max_length, most = expected["max_context_length"], len(expected["mention_mask"][0])
        examples, report = make_examples(questions, tokenizer, max_length)
        made = {"context": [], "label_idx": [], "mention_idxs": [], "mention_mask": []}
        for example in examples:
            [ids], _ = pad_tokens([example.ids], max_length, 1)
            missing = most - len(example.rows)
            made["context"].append(ids.tolist())
            made["label_idx"].append(example.rows.tolist() + [-1] * missing)
            made["mention_idxs"].append(example.bounds.tolist() + [[0, 1]] * missing)
            made["mention_mask"].append([True] * len(example.rows) + [False] * missing)
        assert made == {key: expected[key] for key in made}

        for number, row in enumerate(rows):
            cut, shortened = slow_problems(row, *(expected[name][number] for name in made))
            kinds = [p.kind for p in report.problems if p.question_id == str(row["id"])]
            assert (kinds.count("cut"), kinds.count("shortened")) == (cut, shortened), row["id"]


def slow_problems(row, context, labels, bounds, mask):
    """How many mentions of a row its window has lost, and how many lost their end."""
    tokens, kept = row["tokenized_text_ids"], context[1 : context.index(102)]
    [offset, *_] = [i for i in range(len(tokens)) if tokens[i : i + len(kept)] == kept]
    spans = zip(row["label_id"], row["tokenized_mention_idxs"], strict=True)
    gold = [(label, start, end - 1) for label, (start, end) in spans]
    shortened = 0
    for label, (first, last), real in zip(labels, bounds, mask, strict=True):
        shortened += real and (label, first + offset - 1, last + offset - 1) not in gold
    return len(gold) - sum(mask), shortened


def test_windows_hold_as_much_as_fits():
    """For one mention: all of the text that fits, and the mention where it was."""
    rng = np.random.default_rng(1)
    for _ in range(300):
        size, max_length = rng.integers(1, 40), rng.integers(3, 30)
        start = rng.integers(0, size)
        end = rng.integers(start + 1, size + 1)
        tokens = np.arange(1000, 1000 + size)
        window = question_window(tokens, [(start, end)], max_length)
        assert len(window.ids) == min(size + 2, max_length)
        assert window.ids[0] == 101
        assert window.ids[-1] == 102
        [(first, last)] = window.bounds
        kept = min(end, start + max_length - 2)
        assert window.ids[first : last + 1].tolist() == tokens[start:kept].tolist()
        assert window.ids[1] == tokens[window.offset]


def test_window_without_mentions_is_the_beginning():
    window = question_window(range(50, 80), [], 12)
    assert window.ids.tolist() == [101, *range(50, 60), 102]
    assert window.bounds.shape == (0, 2)
    assert question_window([], [], 12).ids.tolist() == [101, 102]
    with pytest.raises(ElqError, match="max_length: 2; expected an integer, at least 3"):
        question_window([5], [], 2)


# --- examples


def test_examples_of_plain_questions(tokenizer):
    long = "x " * 4990 + "who wrote dune?"
    questions = [
        ask("who wrote dune?", "dune", rows=[4]),
        ask(long, "dune", rows=[-1]),
        ask("who wrote dune?", "who", "dun", rows=[1, 2]),
        ask("who wrote dune?", "un"),
        Question("none", "who wrote?"),
    ]
    assert len(long) > 9_990
    examples, report = make_examples(questions, tokenizer, 16)
    [dune] = tokenizer.encode_questions(["dune"], 8)
    assert [len(example.ids) for example in examples][::2] == [6, 6]
    assert 6 < len(examples[1].ids) <= 16
    assert len(examples[3].ids) == 5
    assert [example.rows.tolist() for example in examples] == [[4], [-1], [1], []]
    for example in examples[:2]:
        [(first, last)] = example.bounds
        assert first == last
        assert example.ids[first] == dune.ids[1]
    assert (report.examples, report.mentions) == (4, 3)
    assert report.counts == {"misaligned": 2}
    assert report.left_out == ["q"]
    assert "2 misaligned" in report.summary()
    assert "1 questions left out" in report.summary()


@pytest.mark.parametrize("seed", range(8))
def test_windows_of_a_long_text_have_all_mentions_in_their_places(tokenizer, seed):
    """Against the tokens of a text of words with one token each, in a loop over all windows."""
    rng = np.random.default_rng(seed)
    words = [*rng.choice(["who", "wrote", "dune", ".", "in"], 90)]
    starts = np.cumsum([0, *(len(word) + 1 for word in words)]).tolist()
    text, longest, width = " ".join(words), 20, 4
    places = sorted(rng.choice(range(0, 88, 3), 12, replace=False).tolist())
    ends = [place + int(rng.integers(1, 4)) for place in places]
    mentions = tuple(
        Mention(starts[i], starts[j] - 1, row)
        for row, (i, j) in enumerate(zip(places, ends, strict=True))
    )
    first, last = (0, 90) if seed % 2 else (11, 71)
    question = Question("q", text, mentions, neutral=((starts[30], starts[31] - 1),))
    if not seed % 2:
        question = dataclasses.replace(question, evaluation_span=(starts[first], starts[last] - 1))
    [encoded] = tokenizer.encode_questions([text], None)
    assert len(encoded.ids) == 92
    examples, report = make_examples([question], tokenizer, longest, width)
    seen = set()
    inside = [n for n in range(12) if first <= places[n] and ends[n] <= last]
    for example in examples:
        ids = example.ids[1:-1].tolist()
        offsets = [
            k
            for k in range(first, last - len(ids) + 1)
            if encoded.ids[k + 1 : k + 1 + len(ids)].tolist() == ids
            and [places[row] + 1 - k for row in example.rows] == example.bounds[:, 0].tolist()
        ]
        assert len(ids) <= longest - 2
        [offset] = offsets
        stop = offset + len(ids)
        assert example.rows.tolist() == [
            n for n in inside if offset <= places[n] and ends[n] <= stop
        ]
        assert (example.bounds[:, 1] + offset).tolist() == [ends[row] for row in example.rows]
        assert example.neutral.tolist() == [[31 - offset] * 2] * (offset <= 30 < stop)
        seen |= {*example.rows.tolist()}
    assert sorted(seen) == inside
    assert {problem.mention for problem in report.problems} == {*range(12)} - {*inside}


def test_mentions_that_are_too_wide_are_named_and_stay(tokenizer):
    """In the plain form and in the one with token ids; four tokens are not too many."""
    question = ask("who is a b c d e f", "a b c d", "e f", rows=[1, 2])
    [encoded] = tokenizer.encode_questions([question.text], 64)
    ids = tuple(encoded.ids[1:-1].tolist())
    tokenized = dataclasses.replace(question, token_ids=ids, token_mentions=((2, 6), (6, 8)))
    for one in (question, tokenized):
        [example], report = make_examples([one], tokenizer, 64, 3)
        assert example.rows.tolist() == [1, 2]
        [problem] = report.problems
        assert (problem.kind, problem.mention, problem.is_left_out) == ("too_wide", 0, False)
        assert "it has 4 tokens, more than max_mention_width = 3" in problem.message
        assert not make_examples([one], tokenizer, 64, 4)[1].problems
    aligned = align_mentions(question, encoded, 3)
    assert aligned.rows.tolist() == [1, 2]
    assert [problem.kind for problem in aligned.problems] == ["too_wide"]


def test_foreign_token_ids_are_refused(tokenizer):
    question = Question("q", "who", (), token_ids=(1, 30522), token_mentions=())
    with pytest.raises(ElqError, match=r"token id 30522 .* the vocabulary has 30522"):
        make_examples([question], tokenizer, 16)


# --- examples on disk


def many_questions(count):
    """Questions of many lengths, of which some have no mention, some none that can be used."""
    rng = np.random.default_rng(0)
    questions = []
    for number in range(count):
        text = " ".join(["who", *rng.choice(["wrote", "dune", "asimov"], rng.integers(1, 40))])
        quotes = [["who"], [], ["who", text.split()[1]], ["ho"]][number % 4]
        rows = rng.integers(-1, 9, len(quotes)).tolist()
        neutral = ((0, 3), (4, len(text)), (1, 2))[: number % 4]  # the last has no token of its own
        question = dataclasses.replace(ask(text, *quotes, rows=rows), id=str(number))
        questions.append(dataclasses.replace(question, neutral=neutral))
    return questions


def assert_same_example(one, two):
    for field in ("ids", "bounds", "rows", "neutral"):
        np.testing.assert_array_equal(getattr(one, field), getattr(two, field), strict=True)


def test_stored_examples_are_those_of_a_list(tokenizer, tmp_path):
    questions = many_questions(2500)  # more than are tokenised together
    expected, report = make_examples(questions, tokenizer, 20, 3)
    stored = store_examples(questions, tmp_path / "train", tokenizer, 20, 3, source="a")
    assert len(stored) == len(expected) == report.examples >= 1875  # Some are several windows.
    assert stored.mention_counts.tolist() == [len(example.rows) for example in expected]
    for number in (0, 1, 1023, 1024, 1874, -1):
        assert_same_example(stored[number], expected[number])
    with pytest.raises(IndexError):
        stored[len(expected)]
    assert stored.report == report
    assert (report.num_left_out, len(report.left_out)) == (625, 100)
    assert report.counts["misaligned"] == 625
    assert sum(problem.kind == "misaligned" for problem in report.problems) == 100
    assert "625 questions left out" in report.summary()
    linked = sum(int((example.rows >= 0).sum()) for example in expected)
    assert 0 < report.linked == linked < report.mentions
    assert stored.neutral_counts.tolist() == [len(example.neutral) for example in expected]
    assert 0 < report.neutral == sum(stored.neutral_counts)
    batches = [TrainingBatches(one, batch_size=64, seed=1) for one in (expected, stored)]
    for step in (0, 7, 100):
        assert_same(batches[0][step], batches[1][step])


def test_neutral_spans_are_tokens_of_the_window(tokenizer):
    """Against the tokens, decoded: those of a span that the window holds, whole, and no others."""
    text = "did isaac asimov and frank herbert ever meet ray bradbury"
    question = ask(text, "frank herbert", rows=[3])
    quotes = ["isaac asimov", "asimov and frank", "frank", "ray bradbury", "rank"]
    spans = tuple((text.index(quote), text.index(quote) + len(quote)) for quote in quotes)
    question = dataclasses.replace(question, neutral=spans)
    expected = {64: quotes[:4], 8: ["frank"]}
    for length, inside in expected.items():
        [example], report = make_examples([question], tokenizer, length)
        tokens = [example.ids[first : last + 1].tolist() for first, last in example.neutral]
        encoded = tokenizer.encode_questions(inside, 64)
        assert tokens == [question.ids[1:-1].tolist() for question in encoded]
        assert report.neutral == len(inside)
        [problem] = report.problems
        assert (problem.kind, problem.mention) == ("neutral_left_out", 4)
        assert "neutral span 4 [22, 26) 'rank': it begins or ends inside a token" in str(problem)
    assert "1 neutral spans" in report.summary()


def test_examples_of_an_older_version_are_made_again(tokenizer, tmp_path, monkeypatch):
    """Their records had no neutral spans, so their numbers would be read as others."""
    folder, questions = tmp_path / "train", many_questions(8)
    expected, _ = make_examples(questions, tokenizer, 20)

    def record(example):
        parts = ([len(example.rows)], example.bounds.ravel(), example.rows, example.ids)
        return np.concatenate(parts).astype("<i4").tobytes()

    monkeypatch.setattr("elq_jax.questions.stored._FORMAT", 1)
    monkeypatch.setattr("elq_jax.questions.stored._record", record)
    store_examples(questions, folder, tokenizer, 20, source="a")
    (folder / "neutral_counts.npy").unlink()
    monkeypatch.undo()
    stored = store_examples(questions, folder, tokenizer, 20, source="a")
    for one, two in zip(stored, expected, strict=True):
        assert_same_example(one, two)


def test_stored_examples_follow_what_they_are_made_of(tokenizer, tmp_path, monkeypatch):
    folder, questions = tmp_path / "train", many_questions(8)

    def store(questions=questions, max_length=20, source="a"):
        return store_examples(questions, folder, tokenizer, max_length, source=source)

    store()
    written = (folder / "examples.array_record").stat().st_mtime_ns
    assert len(store([])) == 6  # nothing is read again
    assert (folder / "examples.array_record").stat().st_mtime_ns == written
    assert max(len(example.ids) for example in store(max_length=8)) == 8
    assert len(store(questions[:4], source="b")) == 3
    assert len(store(questions[3:4], source="none that can be used")) == 0

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("elq_jax.questions.stored._record", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store(source="c")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["train"]
    assert len(store(source="none that can be used")) == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ElqError, match="exists and is not tokenised examples"):
        store_examples(questions, tmp_path / "mine", tokenizer, 20, source="a")


def test_negatives_stand_beside_their_mentions(tokenizer, tmp_path):
    questions = many_questions(40)
    stored = store_examples(questions, tmp_path / "train", tokenizer, 20, source="a")
    mentions = int(stored.mention_counts.sum())
    negatives = np.arange(3 * mentions, dtype=np.int32).reshape(-1, 3)
    for examples in (stored, list(stored)):
        mined = ExamplesWithNegatives(examples, negatives)
        np.testing.assert_array_equal(np.concatenate([e.negatives for e in mined]), negatives)
        assert all(len(e.negatives) == len(e.rows) for e in mined)
        assert_same_example(mined[5], stored[5])
    with pytest.raises(ElqError, match=f"found negatives for 2 mentions, expected {mentions}"):
        ExamplesWithNegatives(stored, negatives[:2])
    batch = TrainingBatches(mined, batch_size=8, shuffle=False)[0]
    found = batch["negative_rows"][batch["gold_mask"]]
    np.testing.assert_array_equal(found, negatives[: len(found)])


# --- training batches


def toy_examples(count, first=0):
    """Example i starts with token 1000 + first + i, so that it is known again."""
    rng = np.random.default_rng(first)
    examples = []
    for number in range(first, first + count):
        ids = rng.integers(5, 999, rng.integers(3, 30)).astype(np.int32)
        ids[0] = 1000 + number
        mentions = int(rng.integers(0, 4))
        bounds = np.sort(rng.integers(0, len(ids), (mentions, 2)), axis=1).astype(np.int32)
        examples.append(TrainingExample(ids, bounds, rng.integers(-1, 9, mentions, np.int32)))
    return examples


def numbers(batch):
    """Which examples a batch holds."""
    return (batch["input_ids"][batch["example_mask"], 0] - 1000).tolist()


def assert_same(one, two):
    assert one.keys() == two.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], two[key], strict=True)


def test_batches_hold_the_examples():
    examples = toy_examples(21)
    data = TrainingBatches(examples, batch_size=8, seed=3)
    assert (data.steps_per_epoch, data.examples_per_epoch, data.max_mentions) == (3, 21, 4)
    for step in range(6):
        batch = data[step]
        assert batch["example_mask"].tolist() == [True] * (8 if step % 3 < 2 else 5) + [False] * (
            0 if step % 3 < 2 else 3
        )
        chosen = [examples[number] for number in numbers(batch)]
        longest = max(len(example.ids) for example in chosen)
        assert batch["input_ids"].shape[1] == min(b for b in padding.LENGTH_BUCKETS if b >= longest)
        for row, example in enumerate(chosen):
            real = batch["mask"][row]
            assert batch["input_ids"][row, real].tolist() == example.ids.tolist()
            gold = batch["gold_mask"][row]
            assert batch["gold_bounds"][row, gold].tolist() == example.bounds.tolist()
            assert batch["gold_rows"][row, gold].tolist() == example.rows.tolist()
        empty = ~batch["gold_mask"]
        assert (batch["gold_bounds"][empty] == [0, 1]).all()
        assert (batch["gold_rows"][empty] == -1).all()
        assert not batch["mask"][~batch["example_mask"]].any()
        assert {key: value.dtype.name for key, value in batch.items()} == {
            "input_ids": "int32",
            "mask": "bool",
            "gold_bounds": "int32",
            "gold_rows": "int32",
            "gold_mask": "bool",
            "example_mask": "bool",
            "mention_counts": "int32",
        }
        counts = [len(example.rows) for example in chosen]
        assert batch["mention_counts"].tolist() == counts + [0] * (8 - len(counts))


def test_batches_hold_neutral_spans_where_there_are_some():
    examples = toy_examples(11)
    spans = np.array([[1, 2], [0, 1], [2, 2]], np.int32)
    examples[4] = dataclasses.replace(examples[4], neutral=spans)
    data = TrainingBatches(examples, batch_size=6, seed=3)
    for step in range(2):
        batch = data[step]
        assert batch["neutral_bounds"].shape == (6, 4, 2)
        assert batch["neutral_bounds"].dtype == np.int32
        for row, number in enumerate(numbers(batch)):
            found = batch["neutral_bounds"][row, batch["neutral_mask"][row]]
            assert found.tolist() == examples[number].neutral.tolist()
        assert (batch["neutral_bounds"][~batch["neutral_mask"]] == [0, 1]).all()
        assert not batch["neutral_mask"][~batch["example_mask"]].any()


def test_every_epoch_has_all_examples_in_its_own_order():
    data = TrainingBatches(toy_examples(50), batch_size=16, seed=0)
    epochs = [[n for s in range(4) for n in numbers(data[4 * e + s])] for e in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, range(50)]}) == 4


def test_same_seed_same_order_whenever_asked():
    examples = toy_examples(50)
    data = TrainingBatches(examples, batch_size=16, seed=11)
    again = TrainingBatches(examples, batch_size=16, seed=11)
    for step in (9, 0, 5, 123_456, 9):
        assert_same(data[step], again[step])
    other = TrainingBatches(examples, batch_size=16, seed=12)
    assert numbers(data[0]) != numbers(other[0])


def test_resumed_in_the_middle_of_an_epoch_is_unbroken():
    examples = toy_examples(21)
    data = TrainingBatches(examples, batch_size=8, seed=5)
    unbroken = [batch for batch, _ in zip(data, range(8), strict=False)]
    for step, batch in enumerate(unbroken):
        assert_same(batch, data[step])
    resumed = TrainingBatches(examples, batch_size=8, seed=5).iterate(start=4)
    for step in range(4, 8):
        assert_same(next(resumed), unbroken[step])
    assert resumed.get_state() == {"next_index": 8}


def test_without_shuffling_the_order_is_the_given_one():
    data = TrainingBatches(toy_examples(10), batch_size=4, shuffle=False)
    assert [numbers(data[s]) for s in range(4)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
        [0, 1, 2, 3],
    ]
    dropped = TrainingBatches(toy_examples(10), batch_size=4, shuffle=False, drop_last=True)
    assert dropped.steps_per_epoch == 2
    assert [numbers(dropped[s]) for s in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_global_batch(hosts):
    examples = toy_examples(21)
    whole = TrainingBatches(examples, batch_size=8, seed=2)
    shares = [
        TrainingBatches(examples, batch_size=8, seed=2, process_index=h, process_count=hosts)
        for h in range(hosts)
    ]
    assert {share.steps_per_epoch for share in shares} == {whole.steps_per_epoch}
    for step in range(6):
        parts = [share[step] for share in shares]
        counts = [part.pop("mention_counts") for part in parts]
        joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        # All know how full the batch is everywhere, so that they compile for the same sizes.
        assert_same(joined | {"mention_counts": counts[0]}, whole[step])
        assert all(np.array_equal(one, counts[0]) for one in counts)


def test_mixture_repeats_each_set():
    examples = toy_examples(10), toy_examples(40, first=100)
    data = TrainingBatches(examples, batch_size=16, seed=1, repeats=[2.5, 0.5])
    assert data.examples_per_epoch == 25 + 20
    assert data.steps_per_epoch == 3
    extra, orders = [], []
    for epoch in range(4):
        drawn = [n for s in range(3) for n in numbers(data[3 * epoch + s])]
        counts = Counter(drawn)
        few = [counts[n] for n in range(10)]
        assert sorted(few) == [2] * 5 + [3] * 5
        assert sorted(counts[n] for n in range(100, 140)) == [0] * 20 + [1] * 20
        extra.append(tuple(few))
        orders.append(tuple(n >= 100 for n in drawn))
    assert len(set(extra)) > 1  # other halves in other epochs
    assert all(any(order[:16]) and not all(order[:16]) for order in orders)  # mixed


def test_one_example_is_enough():
    data = TrainingBatches(toy_examples(1), batch_size=4)
    assert [numbers(data[step]) for step in range(3)] == [[0]] * 3


def test_shapes_are_few():
    data = TrainingBatches(toy_examples(200), batch_size=16, length_buckets=(32,), max_mentions=6)
    shapes = {
        (b["input_ids"].shape, b["gold_rows"].shape) for b in map(data.__getitem__, range(30))
    }
    assert shapes == {((16, 32), (16, 6))}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"examples": []}, "set without examples"),
        ({"repeats": [1.0, 1.0]}, "repeats: 2 numbers; expected one for each of the 3 sets"),
        ({"repeats": [1.0, 0.0, 1.0]}, "expected finite numbers above 0"),
        ({"seed": -1}, "seed: -1; expected 0 to"),
        ({"batch_size": 3, "process_count": 2}, "multiple of the number of processes, 2"),
        ({"process_index": 2, "process_count": 2}, "process_index: 2; expected 0 to 1"),
        ({"batch_size": 4, "drop_last": True}, "batch_size: 4, but an epoch has only 3 examples"),
    ],
)
def test_wrong_arguments(options, message):
    examples = toy_examples(3)
    if "repeats" in options:
        examples = [examples] * 3
    with pytest.raises(ElqError, match=message):
        TrainingBatches(**{"examples": examples, "batch_size": 2, **options})


def test_too_many_mentions_for_the_shape():
    crowded = TrainingExample(np.arange(9), np.tile([[1, 2]], (5, 1)), np.arange(5))
    data = TrainingBatches([crowded], batch_size=1, max_mentions=4)
    with pytest.raises(ElqError, match="max_mentions: 4, but an example has 5 mentions"):
        data[0]
