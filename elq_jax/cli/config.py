"""The flag --config of programs that take a configuration, with errors for people."""

from __future__ import annotations

import pathlib
import re
import sys

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

# --help shows the flag with the program that asked for it.
flags.disclaim_key_flags()


def define_config(default: str | None = None) -> flags.FlagHolder[ConfigDict]:
    """Defines, for the module that calls, --config and --config.NAME for each of its settings."""
    holder = config_flags.DEFINE_config_file("config", default, "Configuration file.")
    flags.FLAGS["config"].parser = _ConfigParser("config")
    return holder


class _ConfigParser(config_flags.ConfigFileFlagParser):
    """Makes one-line errors of the flag of what ml_collections answers with a traceback."""

    def parse(self, path: str) -> ConfigDict:
        file, _, variant = path.partition(":")
        if not pathlib.Path(file).is_file():
            raise ValueError("no such file; expected one such as configs/default.py")
        try:
            config = super().parse(path)
        except (TypeError, ValueError, SyntaxError) as error:  # with a traceback in the message
            reason = str(error).rstrip().rpartition("\n")[2]
            hint = f" (variant {variant!r})" if variant not in reason else ""
            raise ValueError(reason + hint) from error
        for argument in sys.argv[1:]:
            if override := re.match(rf"--?(?:no)?{self.name}\.([^=]*)", argument):
                self._check(config, override[1])
        return config

    def _check(self, config: ConfigDict, setting: str) -> None:
        try:
            config_flags.GetValue(setting, config)
        except (LookupError, AttributeError, TypeError, ValueError) as error:
            nearest = re.search('Did you mean "(.*?)"', str(error))
            hint = f"did you mean {nearest[1]}?" if nearest else "configs/default.py lists them all"
            raise ValueError(f"--{self.name}.{setting}: no such setting; {hint}") from error
