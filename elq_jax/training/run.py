"""Opens the data and the model of a training run, and writes the files of its workdir."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from elq_jax.core import devices as devices_lib
from elq_jax.core.errors import ElqError
from elq_jax.entities import build, encode
from elq_jax.entities.catalogue import Catalogue
from elq_jax.entities.embeddings import Embeddings
from elq_jax.entities.segments import plain_folder
from elq_jax.entities.word_index import WordIndex
from elq_jax.evaluation.sets import set_names
from elq_jax.linking import directory
from elq_jax.linking.candidates import CandidateScorer
from elq_jax.linking.confidence import LinkScorer
from elq_jax.linking.settings import LinkingSettings
from elq_jax.model.bundle import PARTS, Model, is_linker_directory, read_description
from elq_jax.questions.held_out import QuestionPart
from elq_jax.questions.neutral import NeutralNames
from elq_jax.questions.prepared import QuestionSource, prepare
from elq_jax.questions.records import Question
from elq_jax.questions.stored import StoredExamples, store_examples
from elq_jax.storage import layout
from elq_jax.storage.progress import progress
from elq_jax.storage.remote import Workdir
from elq_jax.training import configuration, mining
from elq_jax.training.hooks import say
from elq_jax.training.stages import Batch, Stage


class Run:
    """Holds a training run: configuration, workdir, data and the model as trained so far.

    Args:
      config: configuration, already checked.
      workdir: folder of the run, held by this process.

    Attributes:
      config, workdir: arguments of the run.
      folder: folder of the workdir's files on this machine.
      devices: devices of all processes.
      model: model as trained so far, its parameters on the host.
      linking: settings of `EntityLinker`; the threshold comes from dev.
      catalogue: catalogue of entities.
      questions: labelled questions by split: "train_0", ..., "dev_0", ..., "fit_0", ....
      examples: tokenised questions of each training file, without the held-out ones.
      candidate_scorer: what rescores the candidates of mentions, once it is fitted.
      link_scorer: what says how probably a link is right, once it is fitted.

    Raises:
      ElqError: the workdir is of another run, or an input cannot be used.
    """

    def __init__(self, config: ml_collections.ConfigDict, workdir: Workdir):
        self.config, self.workdir, self.folder = config, workdir, workdir.path
        workdir.fetch("config.json", again=True)
        workdir.fetch("inputs.json", again=True)
        records = [configuration.check_recorded(config, workdir)]
        self.devices = devices_lib.all_devices(config.num_devices)
        self.model = initial_model(config)
        self.linking = LinkingSettings.from_dict(config.linking).to_dict()
        source = _fetch_catalogue(config)
        source = workdir.made_by_one(plain_folder, source, self.folder)
        self.catalogue = workdir.made_by_one(_open_catalogue, source, self.folder, config.on_error)
        self._source_embeddings = source / layout.EMBEDDINGS
        records.append(
            configuration.check_inputs(
                config, workdir, self.catalogue.fingerprint, self._source_embeddings
            )
        )
        self.questions = workdir.made_by_one(self._read_questions)
        self.examples = workdir.made_by_one(self._open_examples)
        self._embeddings: Embeddings | None = None
        self.candidate_scorer: CandidateScorer | None = None
        self.link_scorer: LinkScorer | None = None
        # Everything could be read: from here on the workdir is this run's.
        if devices_lib.is_main():
            for record in records:
                record.write()
                workdir.publish(record.path.name)

    def params_of(self, stage: Stage) -> Any:
        """Returns the tree of parameters that a stage trains."""
        return self.model.params[stage.part] if stage.part else self.model.params

    def has_result(self, stage: Stage) -> bool:
        """Returns whether a stage that keeps its last parameters is done."""
        self.workdir.fetch(stage.result, again=True)
        return not stage.keeps_best and is_linker_directory(self.folder / stage.result)

    def save_result(self, stage: Stage, params: Any, threshold: float | None = None) -> None:
        """Writes the trained parameters of a stage, and no others.

        Args:
          stage: stage whose result this is.
          params: tree that it trains.
          threshold: threshold of linking that is best for them, if known.
        """
        if devices_lib.is_main():
            linking = self.linking if threshold is None else self.linking | {"threshold": threshold}
            params = {stage.part: params} if stage.part else params
            folder = self.folder / stage.result
            self.model.replace(params=params).save(folder, linking)
            self.workdir.publish(stage.result)
        devices_lib.wait_for_all(f"{stage.result} is saved")

    def take_result(self, stage: Stage) -> None:
        """Reads the result of a stage into the model: parameters and linking settings."""
        if not devices_lib.is_main():
            self.workdir.fetch(stage.result, again=True)
        folder = self.folder / stage.result
        parts = (stage.part,) if stage.part else PARTS
        trained = Model.open(folder, parts)
        self.model = self.model.replace(params={**self.model.params, **trained.params})
        self.linking = read_description(folder).linking
        if "entity" in parts:
            self._embeddings = None

    def write_linker(self) -> str:
        """Writes the linker directory; returns its address."""
        embeddings, settings = self.embeddings(), LinkingSettings.from_dict(self.linking)
        if devices_lib.is_main():
            directory.write_linker(
                self.folder / "linker",
                self.model,
                self.linking,
                self.catalogue.path,
                embeddings.folder,
                candidate_scorer=self.candidate_scorer,
                link_scorer=self.link_scorer,
                words=WordIndex.build(self.catalogue) if settings.spelling else None,
            )
            self.workdir.publish("linker")
        devices_lib.wait_for_all("the linker is written")
        return f"{self.workdir.address}/linker"

    def dev_sets(self) -> dict[str, list[Question]]:
        """Reads the questions of each dev file, by the name of the set."""
        most, splits = self.config.eval.max_questions, _splits(self.config, "dev")
        names = set_names(self.config.dev_files)
        return {
            name: list(self.questions[split])[:most]
            for name, split in zip(names, splits, strict=True)
        }

    def questions_to_train(self) -> list[Sequence[Question]]:
        """Returns the questions of each training file, without those that are held out."""
        files = [self.questions[name] for name in _splits(self.config, "train")]
        share = 0.0 if self.config.fit_files else self.config.held_out_share
        return [QuestionPart(file, share, held_out=False) if share else file for file in files]

    def questions_to_fit(self) -> list[tuple[Sequence[Question], float]]:
        """Returns what scorers are fitted on, which no step has seen, and what a question counts.

        These are the questions of `fit_files`, or else those held out of each training file; none
        where `held_out_share` is 0.
        """
        if self.config.fit_files:
            return [(self.questions[name], 1.0) for name in _splits(self.config, "fit")]
        if not (share := self.config.held_out_share):
            return []
        files = [self.questions[name] for name in _splits(self.config, "train")]
        parts = [QuestionPart(questions, share, held_out=True) for questions in files]
        return list(zip(parts, self.config.train_repeats or [1.0] * len(parts), strict=True))

    def fitted_on(self) -> str:
        """Returns words for `questions_to_fit`, with the setting that says which these are."""
        if self.config.fit_files:
            return f"the questions of --config.fit_files={','.join(self.config.fit_files)}"
        return f"held-out questions (--config.held_out_share={self.config.held_out_share})"

    def embeddings(self) -> Embeddings:
        """Opens the vectors of the current entity encoder beside the catalogue, or encodes them."""
        if self._embeddings is None:
            self._embeddings = self._open_source_embeddings() or self.encode_catalogue(
                self.model, layout.EMBEDDINGS
            )
        return self._embeddings

    def _open_source_embeddings(self) -> Embeddings | None:
        """Opens the vectors beside the catalogue; None unless the current entity encoder's."""
        folder = self._source_embeddings
        if not folder.is_dir():
            return None
        embeddings = Embeddings.open(folder, self.catalogue.fingerprint)
        if embeddings.encoder_fingerprint == self.model.entity_fingerprint:
            return embeddings
        say(
            f"{folder}: these vectors are of another entity encoder than this run's; the catalogue "
            "is encoded again"
        )
        return None

    def encode_catalogue(self, model: Model, name: str) -> Embeddings:
        """Encodes the catalogue into a folder of the workdir; all processes together.

        Args:
          model: model whose entity encoder is used.
          name: name of the folder.
        """
        settings = self.config.encode
        encoder = encode.CatalogueEncoder(
            model,
            batch_size=settings.batch_size,
            dtype=settings.dtype,
            devices=devices_lib.local(self.devices),
        )
        with progress("encoding the catalogue", len(self.catalogue), "entities") as advance:
            return encode.encode_catalogue(
                encoder,
                self.catalogue,
                self.folder / name,
                storage_dtype=settings.storage_dtype,
                progress=advance if devices_lib.is_main() else None,
                exchange=lambda: self.workdir.exchange(name),
            )

    def with_entity_tokens(self, batch: Batch) -> Batch:
        """Adds the tokens of its entities to a batch; see `mining.with_entity_tokens`."""
        return mining.with_entity_tokens(batch, self.catalogue, self.model)

    def _read_questions(self) -> Mapping[str, QuestionSource]:
        files = {
            split: path
            for part in ("train", "dev", "fit")
            for split, path in zip(
                _splits(self.config, part), self.config[f"{part}_files"], strict=True
            )
        }
        builder = prepare(
            "questions",
            files,
            self.folder / "data",
            self.catalogue,
            on_error=self.config.on_error,
        )
        for report in builder.reports.values():
            say(report.summary())
        for split in _splits(self.config, "dev"):
            self._check_dev(builder.reports[split].path, builder.open_split(split))
        return {split: builder.open_split(split) for split in files}

    def _check_dev(self, path: str, questions: QuestionSource) -> None:
        """Raises an ElqError where no F1 can be measured on dev; warns where it can only be 0."""
        most = min(self.config.eval.max_questions or len(questions), len(questions))
        mentions = [mention for i in range(most) for mention in questions[i].mentions]
        if not mentions:
            raise ElqError(
                f"dev_files: {path}: no gold mention in its first {most:,} questions, by which "
                "parameters and threshold are chosen; expected labelled questions"
            )
        if all(mention.row < 0 for mention in mentions):
            say(
                f"warning: dev_files: {path}: no gold entity of its first {most:,} questions is in "
                f"the catalogue {self.config.catalogue}; F1 will be 0 after every step"
            )

    def _open_examples(self) -> list[StoredExamples]:
        """Opens the tokenised examples of the training files, or makes them."""
        config, sets = self.model.config, []
        names = NeutralNames(self.catalogue, self.config.neutral_single_words)
        splits, parts = _splits(self.config, "train"), self.questions_to_train()
        is_partial = self.config.partially_labelled or [False] * len(splits)
        for name, questions, has_neutral_names in zip(splits, parts, is_partial, strict=True):
            examples = store_examples(
                questions,
                self.folder / "data" / "examples" / name,
                self.model.tokenizer,
                config.max_question_tokens,
                config.max_mention_width,
                source=questions.fingerprint,
                neutral_names=names if has_neutral_names else None,
            )
            say(f"{name}: {examples.report.summary()}")
            sets.append(examples)
        if self.config.stages and not any(examples.report.linked for examples in sets):
            files = ", ".join(self.config.train_files)
            raise ElqError(
                f"train_files {files}: no mention to learn from; expected gold mentions of whole "
                f"words whose entities are in the catalogue {self.config.catalogue}"
            )
        return sets


def initial_model(config: ml_collections.ConfigDict) -> Model:
    """Makes the initial model of a run, from `init_from` or from published encoders."""
    if config.init_from:
        return Model.open(config.init_from)
    return Model.from_encoders(
        config.question_encoder, config.entity_encoder, seed=config.seed, **config.model
    )


def _fetch_catalogue(config: ml_collections.ConfigDict) -> pathlib.Path:
    """Returns the catalogue on this host: the one that the configuration names, or a copy."""
    if "://" not in config.catalogue:
        return pathlib.Path(config.catalogue)
    folder, _, name = config.catalogue.rpartition("/")
    source = Workdir(folder)
    source.fetch(name)
    return source.path / name


def _open_catalogue(source: pathlib.Path, folder: pathlib.Path, on_error: str) -> Catalogue:
    """Opens the catalogue in the folder `source`, or builds the one of the file `source`."""
    if source.is_dir():
        return Catalogue.open(source / layout.CATALOGUE)
    return build.open_or_build_catalogue(source, folder / layout.CATALOGUE, on_error)


def _splits(config: ml_collections.ConfigDict, part: str) -> list[str]:
    """Returns the names of the splits of the files of a part: "train", "dev" or "fit"."""
    return [f"{part}_{i}" for i in range(len(config[f"{part}_files"]))]
