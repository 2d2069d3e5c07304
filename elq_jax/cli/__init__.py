"""What the programs share: errors, the flags of a linker, the compilation cache."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from absl import app, flags, logging

from elq_jax.core.errors import ElqError
from elq_jax.original.presets import PRESETS, with_preset

if TYPE_CHECKING:
    import jax

    from elq_jax.linking.linker import EntityLinker

# Flags defined here are shown by the --help of the program that asked for them.
flags.disclaim_key_flags()


def run(
    main: Callable[[list[str]], int | None],
    *,
    takes_arguments: bool = False,
    goes_on: Callable[[], bool] = lambda: False,
) -> None:
    """Runs a program: flags parsed, user errors printed as one line (exit 2), Ctrl-C exits 130.

    Args:
      main: gets what `sys.argv` would hold without the flags.
      takes_arguments: whether that may be more than the program's name.
      goes_on: says, with the flags parsed, whether a second run goes on where one was interrupted.
    """

    # Whether each kind of accelerator is there is not news; JAX says it at this level.
    logging.set_verbosity(logging.WARNING)

    def guarded(arguments: list[str]) -> int | None:
        try:
            if len(arguments) > 1 and not takes_arguments:
                raise ElqError(
                    f"{arguments[1]}: unexpected; everything is given with flags, which begin "
                    "with -- (--help shows all)"
                )
            return main(arguments)
        except ElqError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except OSError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            hint = "; the same command goes on where it stopped" if goes_on() else ""
            print(f"interrupted{hint}", file=sys.stderr)
            return 130

    sys.stdout.reconfigure(errors="backslashreplace")
    # In place: ml_collections looks for --config.NAME there.
    sys.argv = [_with_underscores(argument) for argument in sys.argv]
    app.run(guarded, flags_parser=_parse_flags)


def _parse_flags(arguments: list[str]) -> list[str]:
    try:
        return flags.FLAGS(arguments)
    except flags.Error as error:
        print(f"error: {error}\n--help shows all flags", file=sys.stderr)
        sys.exit(2)


def _with_underscores(argument: str) -> str:
    """`--max-mentions=3` as `--max_mentions=3`: flags have underscores, people type dashes."""
    name, equals, value = argument.partition("=")
    if not name.startswith("--") or " " in name:
        return argument
    return "--" + name[2:].replace("-", "_") + equals + value


@dataclasses.dataclass(frozen=True)
class LinkerFlags:
    """The flags of a program that opens a linker; made by `define`, once per process."""

    linker: flags.FlagHolder[str]
    preset: flags.FlagHolder[str | None]
    threshold: flags.FlagHolder[float | None]
    max_mentions: flags.FlagHolder[int | None]
    candidates: flags.FlagHolder[int | None]
    index: flags.FlagHolder[str]
    dtype: flags.FlagHolder[str]
    batch_size: flags.FlagHolder[int]

    @classmethod
    def define(cls) -> LinkerFlags:
        """Defines them for the module that calls."""
        return cls(
            linker=flags.DEFINE_string("linker", None, "Linker directory.", required=True),
            preset=flags.DEFINE_enum(
                "preset",
                None,
                tuple(PRESETS),
                "Settings that the original ELQ was published with; --threshold, --max_mentions "
                "and --candidates win over them.",
            ),
            threshold=flags.DEFINE_float(
                "threshold", None, "Keep links with a higher score; by default the linker's own."
            ),
            max_mentions=flags.DEFINE_integer(
                "max_mentions",
                None,
                "Mentions considered in a question; by default the linker's own.",
                lower_bound=1,
            ),
            candidates=flags.DEFINE_integer(
                "candidates",
                None,
                "Entities retrieved for a mention, among which its probability is shared out; by "
                "default the linker's own.",
                lower_bound=1,
            ),
            index=flags.DEFINE_enum(
                "index",
                "auto",
                ("auto", "exact", "scann"),
                "How entities are searched; auto: with ScaNN if such an index was built.",
            ),
            dtype=flags.DEFINE_enum(
                "dtype", "float32", ("float32", "bfloat16"), "Matrix products of the encoder."
            ),
            batch_size=flags.DEFINE_integer(
                "batch_size", 64, "Questions encoded at a time.", lower_bound=1
            ),
        )

    def open(self, devices: Sequence[jax.Device] | None = None) -> EntityLinker:
        """The linker that the command line asks for; `devices` as in `from_pretrained`."""
        use_compilation_cache()
        from elq_jax.linking.linker import EntityLinker

        settings = {
            "threshold": self.threshold.value,
            "max_mentions": self.max_mentions.value,
            "num_candidates": self.candidates.value,
        }
        return EntityLinker.from_pretrained(
            self.linker.value,
            index=self.index.value,
            dtype=self.dtype.value,
            devices=devices,
            **with_preset(self.preset.value, settings),
        )


def use_compilation_cache() -> None:
    """As `devices.use_compilation_cache`; here, so that flags are parsed before JAX is imported."""
    from elq_jax.core import devices

    devices.use_compilation_cache()
