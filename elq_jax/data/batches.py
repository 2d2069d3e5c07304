"""Questions -> padded arrays, in few distinct shapes, in an order that a step number decides.

Every distinct shape costs a compilation, so lengths and batch sizes are rounded up to buckets.
Axes: B questions, T tokens ([CLS] and [SEP] included), M gold mentions.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np

from elq_jax.errors import ElqError, check_count

if TYPE_CHECKING:
    from elq_jax.data.questions import Question
    from elq_jax.data.tokenization import EncodedQuestion, Tokenizer

LENGTH_BUCKETS = (12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
BATCH_BUCKETS = (1, 4, 16, 64)
_NO_LIMIT = 2**31
_SHOWN = 5


def bucket(n: int, sizes: Sequence[int]) -> int:
    """Smallest of the ascending `sizes` that is at least `n`; ElqError if none is."""
    for size in sizes:
        if size >= n:
            return size
    raise ElqError(f"found size {n}, the largest that is prepared for is {sizes[-1]}")


def pad_tokens(
    token_ids: Sequence[np.ndarray], length: int, batch: int, pad_id: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Pads rows of token ids to one array.

    Args:
      token_ids: at most `batch` arrays of at most `length` ids.
      length: T of the result.
      batch: B of the result; rows without a question have no real token.
      pad_id: id to fill with.

    Returns:
      ids [B, T] int32 and mask [B, T] bool, True = a token of the question, whatever its id.

    Raises:
      ElqError: too many rows, or one that is too long.
    """
    if len(token_ids) > batch:
        raise ElqError(f"found {len(token_ids)} rows for a batch of {batch}")
    ids = np.full((batch, length), pad_id, np.int32)
    mask = np.zeros((batch, length), bool)
    for row, tokens in enumerate(token_ids):
        if len(tokens) > length:
            raise ElqError(f"row {row} has {len(tokens)} tokens, more than length {length}")
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = True
    return ids, mask


@dataclass(frozen=True, slots=True)
class EvaluationBatch:
    """Questions to encode together.

    Attributes:
      indices: [n] int64, which questions; n <= size.
      size: B to pad to.
      length: T to pad to.
    """

    indices: np.ndarray
    size: int
    length: int


def length_sorted_batches(
    lengths: Sequence[int],
    batch_size: int,
    length_buckets: Sequence[int] = LENGTH_BUCKETS,
    batch_buckets: Sequence[int] = BATCH_BUCKETS,
) -> list[EvaluationBatch]:
    """Groups questions of one length bucket into batches, shortest first.

    Every question is in exactly one batch. Only the last batch of a length bucket can be partial;
    it is padded to a batch bucket.

    Args:
      lengths: number of tokens of each question.
      batch_size: B of full batches.
      length_buckets: T to choose from.
      batch_buckets: B to choose from for partial batches; those above `batch_size` are not used.

    Raises:
      ElqError: a question is longer than the largest bucket, or `batch_size` is below 1.
    """
    check_count("batch_size", batch_size)
    sizes = [*(size for size in batch_buckets if size < batch_size), batch_size]
    members = defaultdict(list)
    for index in np.argsort(np.asarray(lengths, np.int64), kind="stable").tolist():
        members[bucket(int(lengths[index]), length_buckets)].append(index)
    return [
        EvaluationBatch(np.array(chosen, np.int64), bucket(len(chosen), sizes), length)
        for length, indices in members.items()
        for start in range(0, len(indices), batch_size)
        if (chosen := indices[start : start + batch_size])
    ]


@dataclass(frozen=True, slots=True)
class MentionProblem:
    """A gold mention that the tokens of its question cannot express.

    Attributes:
      kind: "misaligned" (a bound lies inside a token), "empty" (no token in it), "cut" (beyond
        the part of the question that is kept), "no_offsets" (character offsets unknown); or of one
        that stays in the gold: "shortened" (only its beginning is kept), "too_wide" (of more tokens
        than a mention that can be found).
      question_id: of the question.
      mention: number of the mention in the question.
      message: all of it for a person.
    """

    kind: Literal["misaligned", "empty", "cut", "no_offsets", "shortened", "too_wide"]
    question_id: str
    mention: int
    message: str

    @property
    def is_left_out(self) -> bool:
        """Whether the mention is missing from the gold."""
        return self.kind not in ("shortened", "too_wide")


class AlignedMentions(NamedTuple):
    """Gold mentions as token positions.

    Attributes:
      bounds: [M, 2] int32, first and last token, both inclusive, [CLS] = 0.
      rows: [M] int32, rows of the catalogue, -1 = not in there.
      problems: one for each mention that is missing from `bounds`, or too wide.
    """

    bounds: np.ndarray
    rows: np.ndarray
    problems: list[MentionProblem]


def align_mentions(
    question: Question, encoded: EncodedQuestion, max_width: int | None = None
) -> AlignedMentions:
    """Finds the tokens of each mention from its character offsets, in the order of the question.

    A mention is aligned if every token that touches it lies inside it, so blanks at its ends do no
    harm. Nothing is snapped to the next token: a mention that is not aligned becomes a problem.

    Args:
      question: with character offsets of its mentions.
      encoded: its tokens.
      max_width: report mentions of more tokens; None: do not.
    """
    starts, ends = encoded.offsets[:, 0], encoded.offsets[:, 1]
    cut_at = math.inf if encoded.truncated_at is None else encoded.truncated_at
    bounds, rows, problems = [], [], []

    def report(number: int, kind: str, reason: str) -> None:
        mention = question.mentions[number]
        quoted = question.text[mention.start : mention.end] if mention.start >= 0 else ""
        place = f"mention {number} [{mention.start}, {mention.end}) {quoted[:60]!r}"
        message = f"question {question.id}, {place}: {reason}"
        problems.append(MentionProblem(kind, question.id, number, message))

    for number, mention in enumerate(question.mentions):
        touching = np.flatnonzero((starts < mention.end) & (ends > mention.start) & (ends > starts))
        if mention.start < 0:
            report(number, "no_offsets", "its character offsets are unknown")
        elif mention.end > cut_at:
            report(number, "cut", f"the question is cut at character {cut_at}")
        elif not touching.size:
            report(number, "empty", "it has no token")
        elif starts[touching[0]] < mention.start or ends[touching[-1]] > mention.end:
            report(number, "misaligned", "it begins or ends inside of a token")
        else:
            bounds.append((touching[0], touching[-1]))
            rows.append(mention.row)
            if max_width is not None and len(touching) > max_width:
                report(number, "too_wide", _too_wide(len(touching), max_width))
    return AlignedMentions(
        np.array(bounds, np.int32).reshape(-1, 2), np.array(rows, np.int32), problems
    )


def _too_wide(width: int, max_width: int) -> str:
    return f"its {width} tokens are more than max_mention_width = {max_width}: never found"


class QuestionWindow(NamedTuple):
    """The part of a labelled question that the encoder sees.

    Attributes:
      ids: [T] int32, [CLS] ... [SEP], not padded.
      bounds: [M, 2] int32, first and last token of the mentions that are left, inclusive.
      order: [M] int64, which of the given mentions these are; sorted by their positions.
      offset: number of tokens cut off on the left.
    """

    ids: np.ndarray
    bounds: np.ndarray
    order: np.ndarray
    offset: int


def question_window(
    token_ids: Sequence[int] | np.ndarray,
    mentions: Sequence[tuple[int, int]] | np.ndarray,
    max_length: int,
    cls_id: int = 101,
    sep_id: int = 102,
) -> QuestionWindow:
    """Cuts a tokenized question to `max_length` around its mentions, as the original does.

    From the last one on, mentions are dropped until the rest fits; one that is too long by itself
    loses its end. What room is left goes to the left and the right context in equal parts, and
    what one side does not need, to the other.

    Args:
      token_ids: without [CLS] and [SEP].
      mentions: half-open positions in `token_ids`, in any order. None at all: the window is the
        beginning of the question.
      max_length: largest T, with [CLS] and [SEP].
      cls_id: id of [CLS].
      sep_id: id of [SEP].

    Raises:
      ElqError: `max_length` is below 3.
    """
    if max_length < 3:
        raise ElqError(f"max_length is {max_length}; give 3 or more ([CLS], a token, [SEP])")
    room = max_length - 2
    spans = np.asarray(mentions, np.int64).reshape(-1, 2)
    order = np.lexsort((spans[:, 1], spans[:, 0]))
    while len(order) > 1 and spans[order[-1], 1] - spans[order[0], 0] > room:
        order = order[:-1]
    spans = spans[order]
    if len(order) == 1:
        spans[0, 1] = min(spans[0, 1], spans[0, 0] + room)
    first, last = (int(spans[0, 0]), int(spans[-1, 1])) if len(order) else (0, 0)

    left, right = first, len(token_ids) - last
    left_room = (max_length - (last - first)) // 2 - 1
    right_room = room - (last - first) - left_room
    if left <= left_room and right > right_room:
        right_room += left_room - left
    elif left > left_room and right <= right_room:
        left_room += right_room - right
    begin = first - min(left, max(left_room, 0))
    end = last + min(right, max(right_room, 0))

    ids = np.array([cls_id, *token_ids[begin:end], sep_id], np.int32)
    bounds = spans - begin + [1, 0]  # 1 for [CLS]; the end becomes inclusive
    bounds = np.minimum(bounds, max_length - 1).astype(np.int32)
    return QuestionWindow(ids, bounds, order, begin)


@dataclass(frozen=True, slots=True, eq=False)
class TrainingExample:
    """One question to learn from.

    Attributes:
      ids: [T] int32, [CLS] ... [SEP], not padded.
      bounds: [M, 2] int32, gold mentions, inclusive.
      rows: [M] int32, their rows of the catalogue, -1 = not in there.
      negatives: [M, N] int32, rows of wrong entities mined for each mention (-1: none); None where
        none were mined. All examples of a run have the same N.
    """

    ids: np.ndarray
    bounds: np.ndarray
    rows: np.ndarray
    negatives: np.ndarray | None = None


@dataclass
class AlignmentReport:
    """What `make_examples` could not take as it was.

    Attributes:
      examples: number of examples made.
      mentions: number of gold mentions in them.
      problems: one for each mention that is missing from them, shortened or too wide.
      left_out: ids of questions that have mentions, of which none could be used.
    """

    examples: int = 0
    mentions: int = 0
    problems: list[MentionProblem] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def counts(self) -> Counter[str]:
        """Number of problems of each kind."""
        return Counter(problem.kind for problem in self.problems)

    def summary(self) -> str:
        """A few lines for a person to read."""
        lines = [f"{self.examples:,} examples, {self.mentions:,} mentions"]
        for kind, number in sorted(self.counts.items()):
            lines.append(f"  {number:,} {kind}:")
            messages = [problem.message for problem in self.problems if problem.kind == kind]
            lines += [f"    {message}" for message in messages[:_SHOWN]]
            if number > _SHOWN:
                lines.append(f"    ... and {number - _SHOWN:,} more")
        if self.left_out:
            lines.append(f"  {len(self.left_out):,} questions left out, no mention could be used")
        return "\n".join(lines)


def make_examples(
    questions: Sequence[Question],
    tokenizer: Tokenizer,
    max_length: int,
    max_mention_width: int | None = None,
) -> tuple[list[TrainingExample], AlignmentReport]:
    """Tokenizes labelled questions and cuts them to windows around their mentions.

    The token ids of the EL4QA form are used as they are. A question none of whose mentions can be
    used is left out: it would teach that its mentions are none.

    Args:
      questions: see `read_questions`.
      tokenizer: of the question encoder.
      max_length: largest T, see `question_window`.
      max_mention_width: report mentions of more tokens, from which only linking is learned; None:
        do not.

    Raises:
      ElqError: token ids that are not of this vocabulary; `max_length` below 3.
    """
    report = AlignmentReport()
    plain = [question for question in questions if question.token_ids is None]
    encoded = iter(tokenizer.encode_questions([q.text for q in plain], _NO_LIMIT))
    examples = []
    for question in questions:
        if question.token_ids is None:
            tokens = next(encoded)
            token_ids = tokens.ids[1:-1]
            aligned = align_mentions(question, tokens)
            refused = {problem.mention for problem in aligned.problems}
            numbers = [n for n in range(len(question.mentions)) if n not in refused]
            spans = aligned.bounds - [1, 0]  # half-open, without [CLS]
            report.problems += aligned.problems
        else:
            token_ids = np.array(question.token_ids, np.int32)
            if token_ids.max() >= tokenizer.vocab_size:
                raise ElqError(
                    f"question {question.id}: token id {token_ids.max()} in 'tokenized_text_ids', "
                    f"but the vocabulary has {tokenizer.vocab_size}; use the tokenizer the file "
                    "was made with, or remove the tokenized fields"
                )
            numbers = list(range(len(question.mentions)))
            spans = np.array(question.token_mentions, np.int64).reshape(-1, 2)

        window = question_window(
            token_ids, spans, max_length, cls_id=tokenizer.cls_id, sep_id=tokenizer.sep_id
        )
        kept = [numbers[place] for place in window.order]
        report.problems += _window_problems(
            question, numbers, spans, window, max_length, max_mention_width
        )
        if question.mentions and not kept:
            report.left_out.append(question.id)
            continue
        rows = np.array([question.mentions[number].row for number in kept], np.int32)
        examples.append(TrainingExample(window.ids, window.bounds, rows))
        report.mentions += len(kept)
    report.examples = len(examples)
    return examples, report


def _window_problems(
    question: Question,
    numbers: list[int],
    spans: np.ndarray,
    window: QuestionWindow,
    max_length: int,
    max_width: int | None,
) -> list[MentionProblem]:
    kept = dict(zip(window.order.tolist(), window.bounds.tolist(), strict=True))
    problems = []
    for place, number in enumerate(numbers):
        start, end = spans[place].tolist()
        if place not in kept:
            kind, reason = "cut", f"it does not fit {max_length} tokens with the ones before it"
        elif kept[place][1] - kept[place][0] + 1 < end - start:
            kind, reason = "shortened", f"its {end - start} tokens do not fit {max_length}"
        elif max_width is not None and end - start > max_width:
            kind, reason = "too_wide", _too_wide(end - start, max_width)
        else:
            continue
        message = f"question {question.id}, mention {number}: {reason}"
        problems.append(MentionProblem(kind, question.id, number, message))
    return problems


class Examples(Protocol):
    """Random access to training examples: a list, or something that reads them from disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> TrainingExample: ...


class TrainingBatches:
    """Batches by step number: `batches[step]` is the same whenever and wherever it is asked for.

    So the position of a run in its data is the number of its step, and a run goes on after any
    step as if it had not stopped. Every epoch has its own order, decided by the seed and the epoch.

    A batch is a dict of the rows of this process:
      input_ids [B, T] int32, mask [B, T] bool: questions, padded;
      gold_bounds [B, M, 2] int32: first and last token of gold mentions (padding [0, 1]);
      gold_rows [B, M] int32: their rows of the catalogue (not in there: -1; padding: -1);
      gold_mask [B, M] bool: True = a gold mention;
      example_mask [B] bool: False = no question (end of an epoch). Its mask is False throughout;
      negative_rows [B, M, N] int32, only if the examples have mined negatives (padding: -1);
      mention_counts [batch_size] int32: gold mentions of each question of the global batch, the
        same in all processes (padding: 0).
    M is one number for all batches. T is the length bucket of the longest question of the global
    batch, so all processes agree on it.

    Attributes:
      steps_per_epoch: number of batches of an epoch.
      examples_per_epoch: number of examples of an epoch, the repeated ones counted each time.
      max_mentions: M.
    """

    def __init__(
        self,
        examples: Examples | Sequence[Examples],
        batch_size: int,
        seed: int = 0,
        *,
        shuffle: bool = True,
        repeats: Sequence[float] | None = None,
        drop_last: bool = False,
        process_index: int = 0,
        process_count: int = 1,
        length_buckets: Sequence[int] = LENGTH_BUCKETS,
        max_mentions: int | None = None,
        pad_id: int = 0,
    ):
        """Plans the order; reads no example if `max_mentions` is given.

        Args:
          examples: what to learn from; with `repeats`, several such sets.
          batch_size: number of examples of a global batch (over all processes).
          seed: decides the order; 0 <= seed < 2**32.
          shuffle: False: the order given, in every epoch.
          repeats: how often an epoch has the examples of each set. 2.5 has each of them twice, and
            half of them, others in every epoch, once more. Sets are shuffled into each other.
          drop_last: leave the rest of an epoch that fills no batch out, instead of padding it.
          process_index: number of this process.
          process_count: number of processes; each gets `batch_size / process_count` rows.
          length_buckets: T to choose from.
          max_mentions: M; None: the largest number of mentions of an example, rounded up to a
            power of two.
          pad_id: id to fill `input_ids` with.

        Raises:
          ElqError: no examples, or arguments that do not fit together.
        """
        import grain

        sets = [examples] if repeats is None else list(examples)
        repeats = [1.0] if repeats is None else list(repeats)
        _check_training_arguments(sets, repeats, batch_size, seed, process_index, process_count)

        datasets = []
        *set_seeds, epoch_seed = map(
            int, np.random.SeedSequence(seed).generate_state(len(sets) + 1)
        )
        for one, repeat, set_seed in zip(sets, repeats, set_seeds, strict=True):
            dataset = grain.MapDataset.source(one)
            if shuffle:
                dataset = dataset.shuffle(seed=set_seed)
            # Cut so that the next epoch begins with a new order of the set.
            size = max(1, round(repeat * len(one)))
            datasets.append(dataset.repeat(math.ceil(repeat))[:size])
        dataset = grain.MapDataset.concatenate(datasets)
        if shuffle:
            dataset = dataset.shuffle(seed=epoch_seed)

        self.examples_per_epoch = len(dataset)
        rounded = math.floor if drop_last else math.ceil
        self.steps_per_epoch = rounded(self.examples_per_epoch / batch_size)
        if not self.steps_per_epoch:
            raise ElqError(
                f"an epoch has {self.examples_per_epoch} examples, less than one batch of "
                f"{batch_size}; use a smaller batch or drop_last=False"
            )
        if max_mentions is None:
            most = max(len(one[index].rows) for one in sets for index in range(len(one)))
            max_mentions = 1 << max(most - 1, 0).bit_length()
        self.max_mentions = max_mentions
        self._rows = slice(
            process_index * batch_size // process_count,
            (process_index + 1) * batch_size // process_count,
        )
        self._batch_size = batch_size
        self._length_buckets = length_buckets
        self._pad_id = pad_id
        dataset = dataset.batch(batch_size, drop_remainder=drop_last, batch_fn=self._collate)
        self._dataset = dataset.repeat()

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        """The batch of a step, counted from 0 over all epochs."""
        if step < 0:
            raise IndexError(f"step {step} is negative")
        return self._dataset[int(step)]

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self.iterate()

    def iterate(self, start: int = 0, prefetch: int = 2) -> Iterator[dict[str, np.ndarray]]:
        """Yields the batches of steps `start`, `start + 1`, ... without end, made in a thread.

        Args:
          start: first step.
          prefetch: number of batches to make in advance.
        """
        import grain

        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch)
        iterator = iter(self._dataset.to_iter_dataset(options))
        iterator.set_state({"next_index": int(start)})
        return iterator

    def _collate(self, examples: Sequence[TrainingExample]) -> dict[str, np.ndarray]:
        """The rows of this process from the examples of a global batch."""
        length = bucket(max(len(example.ids) for example in examples), self._length_buckets)
        size = self._rows.stop - self._rows.start
        mine = examples[self._rows]
        input_ids, mask = pad_tokens([e.ids for e in mine], length, size, self._pad_id)
        gold_bounds = np.tile(np.array([0, 1], np.int32), (size, self.max_mentions, 1))
        gold_rows = np.full((size, self.max_mentions), -1, np.int32)
        gold_mask = np.zeros((size, self.max_mentions), bool)
        mention_counts = np.zeros(self._batch_size, np.int32)
        mention_counts[: len(examples)] = [len(example.rows) for example in examples]
        batch = {}
        if examples[0].negatives is not None:
            shape = (size, self.max_mentions, examples[0].negatives.shape[1])
            batch["negative_rows"] = np.full(shape, -1, np.int32)
        for row, example in enumerate(mine):
            mentions = len(example.rows)
            if mentions > self.max_mentions:
                raise ElqError(
                    f"an example has {mentions} mentions, more than max_mentions="
                    f"{self.max_mentions}"
                )
            gold_bounds[row, :mentions] = example.bounds
            gold_rows[row, :mentions] = example.rows
            gold_mask[row, :mentions] = True
            if batch:
                batch["negative_rows"][row, :mentions] = example.negatives
        return batch | {
            "input_ids": input_ids,
            "mask": mask,
            "gold_bounds": gold_bounds,
            "gold_rows": gold_rows,
            "gold_mask": gold_mask,
            "example_mask": np.arange(size) < len(mine),
            "mention_counts": mention_counts,
        }


def _check_training_arguments(
    sets: Sequence[Any],
    repeats: Sequence[float],
    batch_size: int,
    seed: int,
    process_index: int,
    process_count: int,
) -> None:
    if len(sets) != len(repeats):
        raise ElqError(f"found {len(sets)} sets of examples and {len(repeats)} repeats")
    if not sets or not all(len(one) for one in sets):
        raise ElqError("found a set without examples; every set to train on needs at least one")
    if not all(repeat > 0 and math.isfinite(repeat) for repeat in repeats):
        raise ElqError(f"repeats are {list(repeats)}, expected numbers above 0")
    if not 0 <= seed < 2**32:
        raise ElqError(f"seed is {seed}, expected 0 to 2**32 - 1")
    if not 0 <= process_index < process_count:
        raise ElqError(f"process_index is {process_index} of {process_count} processes")
    if batch_size < 1 or batch_size % process_count:
        raise ElqError(
            f"batch_size is {batch_size}, expected a multiple of the {process_count} processes"
        )
