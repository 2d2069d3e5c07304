"""Defines flags that several programs share: of a linker, of an index, of a settings dataclass.

Flags defined here are shown by the --help of the program that asked for them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar, get_args, get_origin

import msgspec
from absl import flags

from elq_jax.cli.run import define_path, start_jax
from elq_jax.core.errors import ElqError
from elq_jax.core.registry import Registry
from elq_jax.core.settings import Setting, fields_of, make_settings
from elq_jax.original.presets import PRESETS, with_preset
from elq_jax.storage.checksums import begin_digests
from elq_jax.storage.files import user_path

if TYPE_CHECKING:
    import jax

    from elq_jax.linking.linker import EntityLinker

flags.disclaim_key_flags()

T = TypeVar("T")
_INDEX_HELP = {
    "auto": "Index that finds the entities: exact compares with all of them; scann is approximate "
    "and faster, and build_index makes it; package.module:name is an index of your own. auto takes "
    "the index that was saved with the linker, or exact if there is none.",
    "scann": "Kind of index to build: scann, or package.module:name for an index of your own. "
    "exact builds nothing and only measures the speed of exact search.",
}


def define_index(default: str) -> flags.FlagHolder[str]:
    """Defines --index, a name in `INDEXES`, as a flag of the calling module.

    Args:
      default: value without the flag: "scann", or "auto", which is an allowed value only then.
    """

    def registry() -> Registry[Any]:
        from elq_jax.retrieval.base import INDEXES  # Not for the default: looking up imports JAX.

        return INDEXES

    return flags.DEFINE(_NameParser(registry, default), "index", default, _INDEX_HELP[default])


def on_command_line(name: str, default: str) -> str:
    """Returns the value of a flag before flags are parsed, since it decides which others exist."""
    value = default
    for argument, following in zip(sys.argv[1:], [*sys.argv[2:], ""], strict=False):
        if argument == "--":
            break
        flag, equals, text = argument.lstrip("-").partition("=")
        if argument.startswith("-") and flag == name:
            value = text if equals else following
    return value


class _NameParser(flags.ArgumentParser):
    """Accepts the default and the names of a registry, which is only imported for other names."""

    syntactic_help = "a name"

    def __init__(self, registry: Callable[[], Registry[Any]], default: str):
        self._registry, self._default = registry, default

    def parse(self, argument: str) -> str:
        if argument != self._default:
            self._registry().get(argument)
        return argument


class _ValueParser(flags.ArgumentParser):
    """Parses text as a value of a type; "none" is None where the type allows it."""

    def __init__(self, setting: Setting):
        self._setting = setting
        self.syntactic_help = _in_words(setting.type)

    def parse(self, argument: Any) -> Any:
        if not isinstance(argument, str):
            return argument
        if self._setting.choices and argument not in self._setting.choices:
            raise ValueError(f"expected one of {', '.join(map(str, self._setting.choices))}")
        text = "null" if argument.lower() == "none" else argument
        try:
            return msgspec.convert(text, self._setting.type, strict=False)
        except msgspec.ValidationError as error:
            if not argument:
                raise ValueError("found nothing; give a value, or leave the flag out") from error
            raise ValueError(str(error).replace("Expected", "expected", 1)) from error


def _in_words(annotation: Any) -> str:
    """Returns words for the numbers that a type allows, as absl has; "" for other types.

    _in_words(Annotated[int, msgspec.Meta(ge=1)] | None)  # "a positive integer"
    """
    lowest = None
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    if get_origin(annotation) is not Annotated and len(kinds) == 1:
        [annotation] = kinds
    if get_origin(annotation) is Annotated:
        annotation, *metas = get_args(annotation)
        lowest = next((meta.ge for meta in metas if isinstance(meta, msgspec.Meta)), None)
    if annotation is float:
        return "a number" if lowest is None else f"number >= {lowest}"
    if annotation is not int:
        return ""
    if lowest is None:
        return "an integer"
    return "a positive integer" if lowest == 1 else f"integer >= {lowest}"


@dataclasses.dataclass(frozen=True)
class SettingsFlags(Generic[T]):
    """Holds flags that were made from the fields of a settings dataclass; see `define`."""

    settings: type[T]
    names: Mapping[str, str]  # names of flags by names of fields
    own: Mapping[str, flags.FlagHolder[Any]]  # flags that the program defined itself

    @classmethod
    def define(
        cls, settings: type[T], prefix: str, **own: flags.FlagHolder[Any]
    ) -> SettingsFlags[T]:
        """Defines one flag for each field, as flags of the calling module.

        Args:
          settings: settings dataclass, see `core.settings`.
          prefix: text put before the name of a field if the program already has a flag of that
            name: the setting seed of an index becomes --index_seed.
          **own: flags that the program has defined already, by the name of their field.
        """
        names = {}
        for name, setting in fields_of(settings).items():
            if name in own:
                continue
            names[name] = flag = f"{prefix}_{name}" if name in flags.FLAGS else name
            text = setting.help[:1].upper() + setting.help[1:]
            if setting.choices:
                text = f"<{'|'.join(map(str, setting.choices))}>: {text}"  # as of flags.DEFINE_enum
            if setting.type is bool:
                flags.DEFINE_bool(flag, setting.default, text)
            else:
                flags.DEFINE(_ValueParser(setting), flag, setting.default, text)
        return cls(settings, names, own)

    def value(self) -> T:
        """Returns the settings of the command line."""
        values = {name: flags.FLAGS[flag].value for name, flag in self.names.items()}
        own = {name: flag.value for name, flag in self.own.items()}
        return dataclasses.replace(make_settings(self.settings, values), **own)


def define_settings_of(registry: Registry[Any], flag: str, default: str) -> SettingsFlags[Any]:
    """Defines flags for the `Settings` of the entry that another flag names on the command line.

    If that name is not in the registry, the flags are those of the default; the parser of the other
    flag refuses the name later.

    Args:
      registry: registry of classes with an attribute `Settings`.
      flag: name of that other flag.
      default: default of that other flag.
    """
    try:
        entry = registry.get(on_command_line(flag, default))
    except ElqError:
        entry = registry.get(default)
    return SettingsFlags.define(entry.Settings, flag)


_PROBABILITY = (
    "Probability of being right that a link must have, 0 to 1, in place of --threshold. Needs a "
    "linker that was trained with probabilities."
)
_DECODER = (
    "Way to choose and score mentions. confidence: by probabilities, in a linker trained for it. "
    "joint: by log p(mention) + log p(entity | mention). package.module:name: by a decoder of your "
    "own. By default the linker's own."
)
_NIL = (
    "Whether mentions of something that is not in the catalogue are reported too, as links whose "
    "row and title are null. Needs a linker that was trained with probabilities and with questions "
    "that have such mentions."
)
_WHOLE_WORDS = (
    "Whether a mention must consist of whole words, so that beatles is no mention in "
    "beatlesmania. By default the linker's own."
)
_SCORING = (
    "Whether candidates are compared with the mention by their names too. Only a linker that was "
    "trained for it can do so; it has one threshold for each of the two. By default the linker's "
    "own."
)
_SPELLING = (
    "Whether a misspelt word of a question is read as the word of the catalogue that was probably "
    "meant. Only a linker that has these words can do so. By default the linker's own."
)


@dataclasses.dataclass(frozen=True)
class LinkerFlags:
    """Holds the flags of a program that opens a linker; `define` makes them, once per process."""

    linker: flags.FlagHolder[str]
    preset: flags.FlagHolder[str | None]
    threshold: flags.FlagHolder[float | None]
    min_probability: flags.FlagHolder[float | None]
    max_mentions: flags.FlagHolder[int | None]
    candidates: flags.FlagHolder[int | None]
    candidate_scoring: flags.FlagHolder[bool | None]
    spelling: flags.FlagHolder[bool | None]
    decoder: flags.FlagHolder[str | None]
    nil: flags.FlagHolder[bool | None]
    whole_words: flags.FlagHolder[bool | None]
    index: flags.FlagHolder[str]
    dtype: flags.FlagHolder[str]
    batch_size: flags.FlagHolder[int]

    @classmethod
    def define(cls) -> LinkerFlags:
        """Defines the flags for the calling module."""
        return cls(
            linker=define_path(
                "linker",
                "Linker to use: a linker directory, as train and convert write it, or the name of "
                "one on the Hugging Face hub, owner/name.",
                parse=_linker_name,
                required=True,
            ),
            preset=flags.DEFINE_enum(
                "preset",
                None,
                tuple(PRESETS),
                "Name of settings that the original ELQ was published with. --threshold, "
                "--max_mentions and --candidates take precedence over them.",
            ),
            threshold=flags.DEFINE_float(
                "threshold",
                None,
                "Score that a link must exceed: a log-probability, so a number below 0. A lower "
                "threshold gives more links, and more wrong ones. By default the linker's own.",
            ),
            min_probability=flags.DEFINE_float(
                "min_probability", None, _PROBABILITY, lower_bound=0, upper_bound=1
            ),
            max_mentions=flags.DEFINE_integer(
                "max_mentions",
                None,
                "Largest number of mentions that are looked for in a question. By default the "
                "linker's own.",
                lower_bound=1,
            ),
            candidates=flags.DEFINE_integer(
                "candidates",
                None,
                "Number of candidate entities that are looked up and compared for each mention. "
                "The score of a link is its probability among these, so another number changes "
                "scores a little. By default the linker's own.",
                lower_bound=1,
            ),
            candidate_scoring=flags.DEFINE_bool("candidate_scoring", None, _SCORING),
            spelling=flags.DEFINE_bool("spelling", None, _SPELLING),
            decoder=flags.DEFINE_string("decoder", None, _DECODER),
            nil=flags.DEFINE_bool("nil", None, _NIL),
            whole_words=flags.DEFINE_bool("whole_words", None, _WHOLE_WORDS),
            index=define_index("auto"),
            dtype=flags.DEFINE_enum(
                "dtype",
                "auto",
                ("auto", "float32", "bfloat16"),
                "Number format in which the question encoder computes. bfloat16 is faster on GPUs, "
                "TPUs and some CPUs, and changes scores slightly. auto takes what this machine is "
                "fast in.",
            ),
            batch_size=flags.DEFINE_integer(
                "batch_size",
                64,
                "Number of questions encoded at a time. More need more memory.",
                lower_bound=1,
            ),
        )

    def asked(self) -> dict[str, Any]:
        """Returns the linker, index and origin of the threshold that the command line asks for."""
        flags_of_threshold = (self.threshold, self.min_probability, self.preset)
        deciding = [f"--{f.name}" for f in flags_of_threshold if f.value is not None]
        return {
            "linker": self.linker.value,
            "index_asked": self.index.value,
            "threshold_from": deciding[0] if deciding else "linker",
        }

    def open(self, devices: Sequence[jax.Device] | None = None) -> EntityLinker:
        """Opens the linker that the command line names; `devices` as in `from_pretrained`."""
        begin_digests(self.linker.value)
        settings = {
            "threshold": self.threshold.value,
            "max_mentions": self.max_mentions.value,
            "num_candidates": self.candidates.value,
            "candidate_scoring": self.candidate_scoring.value,
            "spelling": self.spelling.value,
            "min_probability": self.min_probability.value,
            "decoder": self.decoder.value,
            "nil": self.nil.value,
            "whole_words": self.whole_words.value,
        }
        settings = with_preset(self.preset.value, settings)
        with _nothing_collected():
            start_jax()
            from elq_jax.core.devices import say_dtype
            from elq_jax.linking.linker import EntityLinker

            linker = EntityLinker.from_pretrained(
                self.linker.value,
                index=self.index.value,
                dtype=self.dtype.value,
                devices=devices,
                **settings,
            )
        say_dtype(self.dtype.value, devices)
        return linker


@contextlib.contextmanager
def _nothing_collected() -> Iterator[None]:
    """Pauses the search for unreachable objects, which takes a tenth of the time of imports.

    What has been imported stays, so it is left out of later searches too.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _linker_name(text: str) -> str:
    """Returns a path or a name on the hub as typed, unless it cannot be either."""
    user_path(text)
    return text
