"""Runs a program: parses flags, prints errors in one line, copes with closed streams."""

from __future__ import annotations

import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging

from elq_jax.core import machine
from elq_jax.core.errors import ElqError
from elq_jax.storage.files import user_path

# Flags defined here are shown by the --help of the program that asked for them.
flags.disclaim_key_flags()


def run(
    main: Callable[[list[str]], int | None],
    *,
    takes_arguments: bool = False,
    is_resumable: Callable[[], bool] = lambda: False,
) -> None:
    """Runs a program: parses its flags, and prints errors of the user as one line.

    The exit status is 2 after such an error, and 130 after Ctrl-C. Closed streams do not stop a
    program: what it prints on a closed stdout or stderr is discarded, and `sys.stdin` is None where
    stdin is closed.

    Args:
      main: function of those arguments in `sys.argv` that are not flags, as UTF-8 in any locale.
      takes_arguments: whether there may be arguments besides the program's name.
      is_resumable: function that says, with the flags parsed, whether the same command resumes an
        interrupted run.
    """

    # JAX reports at a lower level which kinds of accelerators are missing; that is no news.
    logging.set_verbosity(logging.WARNING)

    def guarded(arguments: list[str]) -> int | None:
        try:
            if len(arguments) > 1 and not takes_arguments:
                raise ElqError(
                    f"{arguments[1]}: unexpected argument; expected only flags such as "
                    "--name=value, which --help lists"
                )
            return main([_utf8(argument) for argument in arguments])
        except KeyboardInterrupt:
            hint = "; the same command resumes where it stopped" if is_resumable() else ""
            print(f"interrupted{hint}", file=sys.stderr)
            return 130
        except Exception as error:
            message = describe_error(error)
            if message is None:
                raise
            if isinstance(error, BrokenPipeError):
                # Nothing is left to be written at exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            print(f"error: {message}", file=sys.stderr)
            return 2

    open_closed_streams()
    warnings.formatwarning = _format_warning
    sys.stdout.reconfigure(errors="backslashreplace")
    # In place: ml_collections looks for --config.NAME there.
    sys.argv = [_with_underscores(argument) for argument in sys.argv]
    app.run(guarded, flags_parser=_parse_flags)


def describe_error(error: Exception) -> str | None:
    """Returns one line that tells a person about an exception; None for a fault of the program.

    Besides errors in the input, these are files that cannot be read or written, and too little
    memory.
    """
    if isinstance(error, ElqError):
        return str(error)
    if isinstance(error, OSError):
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return f"{' -> '.join(names)}: {error.strerror}" if names and error.strerror else str(error)
    text = str(error).strip().partition("\n")[0]
    if (
        isinstance(error, MemoryError)
        or "failed to map segment" in text
        or (
            type(error).__name__ == "JaxRuntimeError"
            and ("RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower())
        )
    ):
        return (
            f"out of memory ({text or type(error).__name__}); give a smaller batch size or a "
            "smaller number format, such as bfloat16, or take a device with more memory"
        )
    return None


def open_closed_streams() -> None:
    """Opens /dev/null in place of closed stdin, stdout or stderr, as `>&-` and daemons leave them.

    Otherwise the next file that is opened would take the place of the stream, and what libraries
    print would be written into it. `sys.stdin` stays None, so that a program can tell.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # It gets the lowest free number, which is this one.
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def start_jax(*, several_processes: bool = False, keep_memory: bool = False) -> None:
    """Starts JAX: sets the compilation cache and checks that devices can be used.

    Programs call this after flags are parsed, so that --help does not wait for JAX.

    Args:
      several_processes: whether the program can be one of several that work together.
      keep_memory: whether freed memory is kept, see `machine.keep_freed_memory`.

    Raises:
      ElqError: a device that was asked for is missing, the other processes are not found, or there
        is too little memory to load the libraries.
    """
    machine.check_address_space()
    if keep_memory:
        machine.keep_freed_memory()
    from elq_jax.core import devices

    devices.use_compilation_cache()
    if several_processes:
        devices.initialize()
    devices.all_devices()


def define_path(
    name: str,
    help: str,
    *,
    parse: Callable[[str], Any] = user_path,
    default: str | None = None,
    required: bool = False,
) -> flags.FlagHolder[Any]:
    """Defines a flag of the calling module whose value is a `pathlib.Path`.

    Args:
      name: name of the flag.
      help: text of --help.
      parse: function from text to value: `files.user_path`, `files.output_file` for a file to be
        written, `files.user_address` for a folder that may be on object storage.
      default: text of the default value.
      required: whether the flag must be given.
    """
    return flags.DEFINE(_PathParser(parse), name, default, help, required=required)


def define_paths(name: str, help: str) -> flags.FlagHolder[list[pathlib.Path]]:
    """Defines a flag of the calling module that takes paths as `a,b` and may be repeated."""
    flag = _PathsFlag(_PathParser(user_path), None, name, [], f"{help}; several as a,b.")
    return flags.DEFINE_flag(flag)


def define_path_sets(
    name: str, help: str, *, required: bool = False
) -> flags.FlagHolder[list[tuple[pathlib.Path, ...]]]:
    """Defines a flag of the calling module that takes sets of paths as `a,b+c`.

    That is a set of one file and a set of two. A name with a + that exists is one file.
    """
    flag = _PathsFlag(_PathSetParser(), None, name, None if required else [], help)
    flag.help = f"{help}; several as a,b; files that are pooled as a+b."
    return flags.DEFINE_flag(flag, required=required)


class _PathSetParser(flags.ArgumentParser):
    syntactic_help = "one or several paths"

    def parse(self, argument: Any) -> tuple[pathlib.Path, ...]:
        whole = user_path(argument)
        parts = [argument] if whole.exists() else str(argument).split("+")
        return tuple(map(user_path, parts))

    def flag_type(self) -> str:
        return "paths"


class _PathParser(flags.ArgumentParser):
    syntactic_help = "a path"

    def __init__(self, parse: Callable[[str], Any]):
        self._parse = parse

    def parse(self, argument: Any) -> Any:
        return self._parse(argument)  # absl turns a ValueError, such as ElqError, into its own.

    def flag_type(self) -> str:
        return "path"


class _PathsFlag(flags.MultiFlag):
    def _parse(self, new_values: Any) -> list[Any]:
        texts = [new_values] if isinstance(new_values, str) else new_values
        parts = (part for text in texts for part in str(text).split(","))
        try:
            return [self.parser.parse(part) for part in parts]
        except ElqError as error:  # As absl does for flags of one value.
            message = f"flag --{self.name}={','.join(map(str, texts))}: {error}"
            raise flags.IllegalFlagValueError(message) from error


def _parse_flags(arguments: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(arguments)
    except flags.Error as error:
        print(f"error: {error}\n--help shows all flags", file=sys.stderr)
        sys.exit(2)
    except SystemExit as shown_help:  # absl exits with 1 after --help, as if it were an error.
        sys.exit(0 if shown_help.code == 1 else shown_help.code)


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, line_number: int, *_: object
) -> str:
    """Formats a warning as one line; names the source line only in warnings for programmers."""
    place = "" if category is UserWarning else f"{filename}:{line_number}: {category.__name__}: "
    return f"warning: {place}{message}\n"


def _with_underscores(argument: str) -> str:
    """Replaces dashes in flag names by underscores: `--max-mentions=3` is --max_mentions=3."""
    name, equals, value = argument.partition("=")
    if not name.startswith("--") or " " in name:
        return argument
    return "--" + name[2:].replace("-", "_") + equals + value


def _utf8(argument: str) -> str:
    """Returns an argument as UTF-8, whatever the locale decoded its bytes as."""
    return os.fsencode(argument).decode("utf-8", "surrogateescape")
