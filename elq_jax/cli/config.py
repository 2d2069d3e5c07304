"""Defines the flag --config and loads configuration files, with errors in one line."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags, tuple_parser

from elq_jax.cli.flags import on_command_line

# --help shows the flag with the program that asked for it.
flags.disclaim_key_flags()

PACKAGE = "configs"  # Configurations that come with this library, and those that import them.


def define_config(
    default: str | None = None, flag_values: flags.FlagValues = flags.FLAGS
) -> flags.FlagHolder[ConfigDict]:
    """Defines --config and --config.NAME for each setting, as flags of the calling module.

    Args:
      default: path of the configuration file that is used without the flag.
      flag_values: flags of the program.
    """
    config_flags.register_flag_parser_for_type(tuple, _ListParser())
    holder = config_flags.DEFINE_config_file(
        "config", default, "Configuration file, such as configs/demo.py.", flag_values
    )
    flag_values["config"].parser = _ConfigParser("config")
    return holder


def own_configs() -> pathlib.Path:
    """Returns the folder of the configurations that come with this library.

    It is elq_jax/configs where the package was installed, and configs/ beside elq_jax/ in a
    checkout.
    """
    package = pathlib.Path(__file__).parent.parent
    installed = package / PACKAGE
    return installed if installed.is_dir() else package.parent / PACKAGE


def find_config(name: str) -> pathlib.Path:
    """Finds the file of a configuration; prints its path if it is not `name`.

    Args:
      name: path of a file. If there is none, and the path is configs/NAME.py, the configuration of
        that name that comes with this library is taken.

    Raises:
      ValueError: there is no such file.
    """
    path = pathlib.Path(name).expanduser()
    if path.is_file():
        return path
    own = own_configs() / path.name
    if path.parent == pathlib.Path(PACKAGE) and own.is_file():
        print(f"{name}: no such file here; using {own}, which came with elq_jax", file=sys.stderr)
        return own
    raise ValueError("no such file; expected one such as configs/default.py")


def load_config(path: pathlib.Path, variant: str | None = None) -> ConfigDict:
    """Calls `get_config` of a configuration file.

    Args:
      path: path of the file. It may import other configurations as `from configs import default`:
        from its own folder if that is named configs, then from this library.
      variant: argument of `get_config`, if any.

    Raises:
      ValueError: the file cannot be run, or does not return a ConfigDict.
    """
    _make_importable(path.absolute().parent)
    try:
        module = _import_file(path)
        config = module.get_config(*([] if variant is None else [variant]))
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        # A ValueError is about the variant; only the author of the file needs the line of others.
        place = f" (line {lines[-1]})" if lines and not isinstance(error, ValueError) else ""
        hint = f" (variant {variant!r})" if variant and variant not in str(error) else ""
        raise ValueError(f"{type(error).__name__}: {error}{place}{hint}") from error
    if not isinstance(config, ConfigDict):
        raise ValueError(f"get_config returned {type(config).__name__}; expected a ConfigDict")
    return config


def _import_file(path: pathlib.Path) -> types.ModuleType:
    """Runs a file as a module that nothing else can import."""
    loader = importlib.machinery.SourceFileLoader(f"{path.stem}_config", str(path))
    module = types.ModuleType(loader.name)
    module.__file__ = str(path)
    loader.exec_module(module)
    return module


def _make_importable(folder: pathlib.Path) -> None:
    """Lets a configuration file in `folder` import others from the package `configs`.

    They are looked for in `folder`, if it is named configs, then where Python looks by itself, and
    then in the configurations that come with this library.
    """
    package = sys.modules.get(PACKAGE)
    if package is None:
        spec = importlib.util.find_spec(PACKAGE)
        package = types.ModuleType(PACKAGE)
        package.__path__ = list(spec.submodule_search_locations or ()) if spec else []
        sys.modules[PACKAGE] = package
    beside = [str(folder)] if folder.name == PACKAGE else []
    package.__path__ = list(dict.fromkeys([*beside, *package.__path__, str(own_configs())]))


class _ListParser(tuple_parser.TupleParser):
    """Parses lists, a.jsonl,b.jsonl as well as "('a.jsonl', 'b.jsonl')"; "" is an empty list."""

    def parse(self, argument: object) -> tuple[object, ...]:
        if not isinstance(argument, str):
            return super().parse(argument)
        text = argument.strip()
        if text.startswith(("(", "[")):
            try:
                return tuple(ast.literal_eval(text))
            except (ValueError, SyntaxError, TypeError) as error:
                message = f"found {argument!r}; expected a list such as a.jsonl,b.jsonl"
                raise ValueError(message) from error
        return tuple(_literal(item.strip()) for item in text.split(",") if item.strip())


def _literal(text: str) -> object:
    """Reads a number or a quoted string as Python does; returns any other text unchanged."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, int | float | str) else text


class _ConfigParser(config_flags.ConfigFileFlagParser):
    """Parses --config, with errors in one line where ml_collections has a traceback."""

    def parse(self, path: str) -> ConfigDict:
        file, colon, variant = path.partition(":")
        config = load_config(find_config(file), variant if colon else None)
        overrides = [
            override[1]
            for argument in sys.argv[1:]
            if (override := re.match(rf"--?(?:no)?{self.name}\.([^=]*)", argument))
        ]
        if not all(_has(config, setting) for setting in overrides):
            self._add_optional(config, overrides)
        config.lock()
        return config

    def _add_optional(self, config: ConfigDict, overrides: Sequence[str]) -> None:
        """Adds the defaults of settings that only the chosen losses and recipe have.

        Raises:
          ValueError: a setting exists nowhere.
        """
        from elq_jax.training import (
            configuration,
        )  # Not at the top: it imports JAX, and --help should not wait.

        chosen = config.copy_and_resolve_references()
        for setting in overrides:  # They may choose another loss than the file does.
            if setting == "recipe" or setting.endswith(".linking_loss"):
                value = on_command_line(f"{self.name}.{setting}", "")
                chosen.update_from_flattened_dict({setting: value})
        optional = configuration.optional_settings(chosen)
        for setting in overrides:
            if _has(config, setting):
                continue
            if setting not in optional:
                known = {*config.to_dict(), *optional}
                known |= {f"{s}.{n}" for s, v in config.items() if hasattr(v, "keys") for n in v}
                hint = configuration.hint(setting, known).rstrip(".")
                raise ValueError(f"--{self.name}.{setting}: no such setting; {hint}")
            section, _, name = setting.rpartition(".")
            if section and section not in config:
                config[section] = ConfigDict()
            (config[section] if section else config)[name] = optional[setting]


def _has(config: ConfigDict, setting: str) -> bool:
    try:
        config_flags.GetValue(setting, config)
    except (LookupError, AttributeError, TypeError, ValueError):
        return False
    return True
