"""Stores tokenised training examples on disk for random access; millions take little memory."""

from __future__ import annotations

import array
import json
import os
import pathlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from elq_jax.questions.align import MentionProblem
from elq_jax.questions.examples import AlignmentReport, TrainingExample, iter_examples
from elq_jax.storage.files import atomic_folder, write_json
from elq_jax.storage.progress import progress
from elq_jax.storage.resume import ResumeRecord

if TYPE_CHECKING:
    from elq_jax.questions.neutral import NeutralNames
    from elq_jax.questions.records import Question
    from elq_jax.text.tokenization import Tokenizer

_RECORDS, _REPORT = "examples.array_record", "report.json"
_COUNTS, _NEUTRAL_COUNTS = "mention_counts.npy", "neutral_counts.npy"
_INPUTS = "inputs.json"
_FORMAT = 3  # Raised when records, or the way that questions become examples, change.


class StoredExamples(Sequence[TrainingExample]):
    """Gives random access to examples that `store_examples` wrote, also as a source for grain.

    Attributes:
      mention_counts: [len] int32, number of gold mentions of each example; memory-mapped.
      neutral_counts: [len] int32, number of neutral spans of each example; memory-mapped.
      report: report of mentions and questions left out.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        """Opens a folder; an example is loaded when it is used."""
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        folder = pathlib.Path(folder)
        self._folder = folder
        self.mention_counts = np.load(folder / _COUNTS, mmap_mode="r")
        self.neutral_counts = np.load(folder / _NEUTRAL_COUNTS, mmap_mode="r")
        self.report = _read_report(folder / _REPORT)
        # array_record does not open a file without records.
        self._records = (
            ArrayRecordDataSource(os.fspath(folder / _RECORDS)) if len(self.mention_counts) else ()
        )

    def __len__(self) -> int:
        return len(self.mention_counts)

    def __getitem__(self, number: int) -> TrainingExample:
        if not -len(self) <= number < len(self):
            raise IndexError(f"example {number} of {len(self)}")
        return _example(self._records[int(number) % len(self)])

    def __repr__(self) -> str:
        return f"StoredExamples({str(self._folder)!r}, {len(self):,} examples)"


def store_examples(
    questions: Sequence[Question],
    folder: str | os.PathLike[str],
    tokenizer: Tokenizer,
    max_length: int,
    max_mention_width: int | None = None,
    *,
    source: str,
    neutral_names: NeutralNames | None = None,
) -> StoredExamples:
    """Tokenises questions into a folder, which appears when it is whole, or opens an earlier one.

    An earlier folder is used if it was made from the same questions by the same tokenizer with the
    same limits, and replaced otherwise. Progress is shown on stderr.

    Args:
      questions: questions, see `iter_examples`; read once, in order.
      folder: path of the folder.
      tokenizer: tokenizer of the question encoder.
      max_length: largest T.
      max_mention_width: number of tokens above which a mention is reported, see `iter_examples`.
      source: fingerprint that identifies the questions.
      neutral_names: names that become neutral spans of the questions; None: only the spans in the
        questions are neutral.

    Raises:
      ElqError: `folder` holds something else, the disk is full, or a question cannot be used (see
        `iter_examples`).
    """
    folder = pathlib.Path(folder)
    inputs = {
        "format": _FORMAT,
        "questions": source,
        "tokenizer": tokenizer.fingerprint,
        "max_length": max_length,
        "max_mention_width": max_mention_width,
        "neutral_names": None if neutral_names is None else neutral_names.inputs,
    }
    record = ResumeRecord(folder / _INPUTS, inputs)
    recorded = record.read()
    if recorded is None or record.changes(recorded):
        report = AlignmentReport()
        with (
            progress(f"tokenising {folder.name}", len(questions), "questions") as advance,
            atomic_folder(folder, "tokenised examples", _is_ours) as temporary,
        ):
            counted = _counted(questions, advance)
            if neutral_names is not None:
                counted = neutral_names.add_to(counted)
            examples = iter_examples(counted, tokenizer, max_length, max_mention_width, report)
            _write(temporary, examples)
            problems = [asdict(problem) for problem in report.problems]
            write_json(temporary / _REPORT, {**vars(report), "problems": problems})
            ResumeRecord(temporary / _INPUTS, inputs).write()
    return StoredExamples(folder)


def _is_ours(folder: pathlib.Path) -> bool:
    return (folder / _INPUTS).is_file() and (folder / _COUNTS).is_file()


def _counted(questions: Sequence[Question], advance: Callable[[int], None]) -> Iterator[Question]:
    """Yields questions, and advances a progress bar by each."""
    for number in range(len(questions)):
        yield questions[number]
        advance(1)


def _write(folder: pathlib.Path, examples: Iterator[TrainingExample]) -> None:
    """Writes the records of examples, and the numbers of mentions and neutral spans of each."""
    from array_record.python.array_record_module import ArrayRecordWriter

    # Groups of one: each example is read by itself.
    writer = ArrayRecordWriter(os.fspath(folder / _RECORDS), "group_size:1")
    counts, neutral_counts = array.array("i"), array.array("i")
    try:
        for example in examples:
            writer.write(_record(example))
            counts.append(len(example.rows))
            neutral_counts.append(len(example.neutral))
    finally:
        writer.close()
    np.save(folder / _COUNTS, np.frombuffer(counts, np.int32))
    np.save(folder / _NEUTRAL_COUNTS, np.frombuffer(neutral_counts, np.int32))


def _record(example: TrainingExample) -> bytes:
    """Returns an example as int32 numbers: M, U, [M, 2] and [U, 2] bounds, [M] rows, [T] ids."""
    sizes = [len(example.rows), len(example.neutral)]
    bounds = example.bounds.ravel(), example.neutral.ravel()
    return np.concatenate([sizes, *bounds, example.rows, example.ids]).astype("<i4").tobytes()


def _example(record: bytes) -> TrainingExample:
    numbers = np.frombuffer(record, "<i4")
    mentions, neutral = numbers[:2].tolist()
    ends = np.cumsum([2 * mentions, 2 * neutral, mentions])
    bounds, neutral_bounds, rows, ids = np.split(numbers[2:], ends)
    neutral_bounds = neutral_bounds.reshape(-1, 2)
    return TrainingExample(ids, bounds.reshape(-1, 2), rows, neutral=neutral_bounds)


def _read_report(path: pathlib.Path) -> AlignmentReport:
    values = json.loads(path.read_text(encoding="utf-8"))
    values["counts"] = Counter(values["counts"])
    values["problems"] = [MentionProblem(**problem) for problem in values["problems"]]
    return AlignmentReport(**values)
