"""Prepares labelled questions as a TFDS data set; imports tensorflow-datasets."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import absl.logging
import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from elq_jax.core.errors import ElqError
from elq_jax.entities.catalogue import Catalogue
from elq_jax.questions.read import iter_questions
from elq_jax.questions.records import Mention, Question
from elq_jax.questions.resolve import ResolutionReport
from elq_jax.storage.files import full_disk
from elq_jax.storage.progress import progress
from elq_jax.storage.resume import digest


@dataclasses.dataclass
class LabelledQuestionsConfig(tfds.core.BuilderConfig):
    """Holds the sources and settings of a data set.

    Attributes:
      splits: path of the source file for each name of a split.
      catalogue: catalogue in which gold is looked up.
      on_error: action at a row that cannot be used, "stop" or "skip".
      trust_rows: whether rows are taken unchecked, see `iter_questions`.
    """

    splits: Mapping[str, str] = dataclasses.field(default_factory=dict)
    catalogue: Catalogue | None = None
    on_error: Literal["stop", "skip"] = "stop"
    trust_rows: bool = False


class LabelledQuestions(tfds.core.GeneratorBasedBuilder):
    """Holds questions with gold mentions, in the order of their files; `prepare` makes it."""

    VERSION = tfds.core.Version("1.2.0")
    # Without it TFDS 4.9.10 asks importlib_resources, which it does not install.
    code_path = epath.Path(__file__)
    RELEASE_NOTES = {  # noqa: RUF012 (as TFDS declares it)
        "1.0.0": "First version.",
        "1.1.0": "Neutral spans.",
        "1.2.0": "Evaluation spans.",
    }

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "id": tfds.features.Text(),
            "text": tfds.features.Text(),
            # [M, 2], [M] and M strings; "" stands for None.
            "mentions": tfds.features.Tensor(shape=(None, 2), dtype=np.int32),
            "rows": tfds.features.Tensor(shape=(None,), dtype=np.int32),
            "titles": tfds.features.Sequence(tfds.features.Text()),
            "wikidata_ids": tfds.features.Sequence(tfds.features.Text()),
            # EL4QA form; no token ids in the plain form.
            "token_ids": tfds.features.Tensor(shape=(None,), dtype=np.int32),
            "token_mentions": tfds.features.Tensor(shape=(None, 2), dtype=np.int32),
            "neutral": tfds.features.Tensor(shape=(None, 2), dtype=np.int32),
            # None or one.
            "evaluation_span": tfds.features.Tensor(shape=(None, 2), dtype=np.int32),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Questions with gold mentions linked to a catalogue of entities.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        del dl_manager
        return {name: self._generate_examples(name) for name in self.builder_config.splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        config = self.builder_config
        report = ResolutionReport(config.splits[split])
        questions = iter_questions(
            config.splits[split],
            config.catalogue,
            config.on_error,
            trust_rows=config.trust_rows,
            report=report,
        )
        with progress(f"reading {report.path}", None, "questions") as advance:
            for number, question in enumerate(questions):
                yield number, _record(question)
                advance(1)
        self.info.metadata[split] = {**vars(report), "counts": dict(report.counts)}

    @property
    def reports(self) -> dict[str, ResolutionReport]:
        """Returns, for each split, the report of how its gold was resolved."""
        return {
            split: ResolutionReport(**{**report, "counts": Counter(report["counts"])})
            for split, report in self.info.metadata.items()
        }

    def open_split(self, split: str) -> QuestionSource:
        """Opens a split for random access; a question is loaded when it is used."""
        if split not in self.info.splits:
            raise ElqError(f"no split {split!r}; there are {', '.join(sorted(self.info.splits))}")
        return QuestionSource(self.as_data_source(split), f"{self.builder_config.name}/{split}")


class QuestionSource(Sequence[Question]):
    """Gives random access to the questions of a prepared split, also as a source for grain.

    Attributes:
      fingerprint: string that identifies the questions and their gold.
    """

    def __init__(self, records: Sequence[Mapping[str, Any]], fingerprint: str):
        """Wraps a TFDS data source."""
        self._records, self.fingerprint = records, fingerprint

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, number: int) -> Question:
        if not -len(self) <= number < len(self):
            raise IndexError(f"question {number} of {len(self)}")
        return _question(self._records[int(number) % len(self)])

    def __repr__(self) -> str:
        return f"QuestionSource({len(self):,} questions)"


def prepare(
    name: str,
    splits: Mapping[str, str | os.PathLike[str]],
    data_dir: str | os.PathLike[str],
    catalogue: Catalogue | None = None,
    on_error: Literal["stop", "skip"] = "stop",
    trust_rows: bool = False,
) -> LabelledQuestions:
    """Writes labelled questions as a TFDS data set of array_record files; needs no TensorFlow.

    A second call with the same files and the same catalogue opens what the first one wrote. The
    folder in `data_dir` is named by a hash of them, so that changed files never meet old records.

    Args:
      name: name of the data set, for instance "webqsp".
      splits: path of a .jsonl or .jsonl.gz file for each name of a split, see `iter_questions`.
      data_dir: folder that holds prepared data sets.
      catalogue: catalogue in which gold is looked up.
      on_error: action at a row that cannot be used: "stop" or "skip".
      trust_rows: whether rows are taken unchecked, see `iter_questions`.

    Returns:
      A TFDS builder: `builder.open_split("train")` is a random access source of `Question`s,
      `builder.reports["train"]` its `ResolutionReport`.

    Raises:
      ElqError: a file or one of its rows cannot be used; nothing is left behind.
    """
    sources = {split: os.fspath(path) for split, path in splits.items()}
    inputs = {
        "splits": {split: _file_digest(path) for split, path in sorted(sources.items())},
        "catalogue": catalogue.fingerprint if catalogue is not None else None,
        "on_error": on_error,
        "trust_rows": trust_rows,
    }
    fingerprint = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()

    def builder() -> LabelledQuestions:
        config = LabelledQuestionsConfig(
            name=f"{name}-{fingerprint[:16]}",
            description=json.dumps(inputs),
            splits=sources,
            catalogue=catalogue,
            on_error=on_error,
            trust_rows=trust_rows,
        )
        folder = os.fspath(data_dir)
        return LabelledQuestions(data_dir=folder, config=config, file_format="array_record")

    with _quiet():
        prepared = builder()
        if not prepared.data_path.exists():
            try:
                with full_disk(prepared.data_path):
                    prepared.download_and_prepare(file_format="array_record")
            except (OSError, RuntimeError):
                if not prepared.data_path.exists():  # else another process was faster
                    raise
            prepared = builder()
    return prepared


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides the output of TFDS on stdout, its progress bars and its warnings."""
    tfds.disable_progress_bar()
    verbosity = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl.logging.set_verbosity(verbosity)


def _file_digest(path: str) -> str:
    if os.path.exists(path) and not os.path.isfile(path):
        raise ElqError(
            f"{path}: not a regular file; expected one, since training reads it again when it is "
            "resumed"
        )
    return digest(path)


def _record(question: Question) -> dict[str, Any]:
    mentions = question.mentions
    return {
        "id": question.id,
        "text": question.text,
        "mentions": np.array([(m.start, m.end) for m in mentions], np.int32).reshape(-1, 2),
        "rows": np.array([m.row for m in mentions], np.int32),
        "titles": [m.title or "" for m in mentions],
        "wikidata_ids": [m.wikidata_id or "" for m in mentions],
        "token_ids": np.array(question.token_ids or (), np.int32),
        "token_mentions": np.array(question.token_mentions or (), np.int32).reshape(-1, 2),
        "neutral": np.array(question.neutral, np.int32).reshape(-1, 2),
        "evaluation_span": np.array(question.evaluation_span or (), np.int32).reshape(-1, 2),
    }


def _question(record: Mapping[str, Any]) -> Question:
    mentions = tuple(
        Mention(start, end, row, title.decode() or None, wikidata_id.decode() or None)
        for (start, end), row, title, wikidata_id in zip(
            record["mentions"].tolist(),
            record["rows"].tolist(),
            record["titles"],
            record["wikidata_ids"],
            strict=True,
        )
    )
    token_ids = tuple(record["token_ids"].tolist()) or None
    token_mentions = tuple(map(tuple, record["token_mentions"].tolist()))
    return Question(
        id=record["id"].decode(),
        text=record["text"].decode(),
        mentions=mentions,
        token_ids=token_ids,
        token_mentions=token_mentions if token_ids else None,
        neutral=tuple(map(tuple, record["neutral"].tolist())),
        evaluation_span=next(map(tuple, record["evaluation_span"].tolist()), None),
    )
