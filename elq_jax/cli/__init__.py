"""What the programs share: errors and the compilation cache."""

from __future__ import annotations

import sys
from collections.abc import Callable

from absl import app, logging
from absl import flags as absl_flags  # `flags` is a module of this package

from elq_jax.core.errors import ElqError


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
        return absl_flags.FLAGS(arguments)
    except absl_flags.Error as error:
        print(f"error: {error}\n--help shows all flags", file=sys.stderr)
        sys.exit(2)


def _with_underscores(argument: str) -> str:
    """`--max-mentions=3` as `--max_mentions=3`: flags have underscores, people type dashes."""
    name, equals, value = argument.partition("=")
    if not name.startswith("--") or " " in name:
        return argument
    return "--" + name[2:].replace("-", "_") + equals + value


def use_compilation_cache() -> None:
    """As `devices.use_compilation_cache`; here, so that flags are parsed before JAX is imported."""
    from elq_jax.core import devices

    devices.use_compilation_cache()
