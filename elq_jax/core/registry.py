"""Registries, which find losses, indexes, decoders and recipes by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Generic, TypeVar

from elq_jax.core.errors import ElqError

T = TypeVar("T")


class Registry(Generic[T]):
    """A table of classes or functions by name, to which any module can add its own.

        LINKING_LOSSES = Registry("linking_loss", "elq_jax.losses")

        @LINKING_LOSSES.register("margin")
        class Margin(LinkingLoss): ...

    A name of the form "package.module:name", such as "my_losses:margin", imports that module first,
    so that code outside this library can be used by its name.

    Args:
      setting: name of the setting whose values these names are, for error messages.
      home: package of the entries that come with this library.
      imports: module whose import registers them; None: the package itself.
    """

    def __init__(self, setting: str, home: str, imports: str | None = None):
        self._setting, self._home, self._imports = setting, home, imports or home
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Adds a class or a function under `name`, as a decorator.

        Raises:
          ElqError: something else has that name.
        """

        def add(entry: T) -> T:
            if self._entries.setdefault(name, entry) is not entry:
                raise ElqError(f"{self._setting} {name!r}: registered twice; choose another name")
            return entry

        return add

    @property
    def names(self) -> tuple[str, ...]:
        """Returns all names so far, of this library and of others, in the order of adding."""
        importlib.import_module(self._imports)
        return tuple(self._entries)

    def get(self, name: str) -> T:
        """Finds the entry of `name`, or of "package.module:name".

        Raises:
          ElqError: there is no such name, or the module cannot be imported.
        """
        module, separator, short = name.rpartition(":")
        try:
            if separator or short not in self._entries:
                importlib.import_module(module if separator else self._imports)
        except ImportError as error:
            raise ElqError(f"{self._setting} {name!r}: {error}") from error
        if short not in self._entries:
            importlib.import_module(self._imports)  # so that our own names are told
            known = ", ".join(sorted(map(self.name_of, self._entries.values())))
            raise ElqError(
                f"{self._setting}: {name!r}; expected one of {known}, or package.module:name of "
                "your own"
            )
        return self._entries[short]

    def is_known(self, name: str) -> bool:
        """Returns whether `get` finds a name without importing another module."""
        importlib.import_module(self._imports)
        return any(name == self.name_of(entry) for entry in self._entries.values())

    def name_of(self, entry: T) -> str:
        """Returns the name by which `get` finds an entry: "package.module:name" if from outside.

        Raises:
          ElqError: the entry is not registered.
        """
        for name, registered in self._entries.items():
            if registered is entry:
                module = entry.__module__
                is_home = module == self._home or module.startswith(f"{self._home}.")
                return name if is_home else f"{module}:{name}"
        raise ElqError(f"{self._setting}: {entry!r} has no name; register it with @register(...)")
