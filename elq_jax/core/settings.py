"""Checks the values of settings dataclasses, and reads the documentation of their fields.

A part that is chosen by name (an index, a decoder, a loss) declares its settings as a dataclass.
The types of the fields say what is allowed, and its docstring describes them; flags, files and
errors all come from there.

    @dataclasses.dataclass(frozen=True)
    class Settings:
        \"\"\"How the tree is built.

        Attributes:
          num_leaves: number of leaves; None: chosen by the number of rows.
          dtype: storage of the vectors.
        \"\"\"

        num_leaves: Annotated[int, msgspec.Meta(ge=1)] | None = None
        dtype: Literal["float32", "int8"] = "float32"
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from elq_jax.core.errors import ElqError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Setting:
    """One field of a settings dataclass.

    Attributes:
      name: name of the field.
      type: annotation of the field, such as `int | None`.
      default: default of the field.
      help: text about the field in the docstring of the dataclass, "" where there is none.
    """

    name: str
    type: Any
    default: Any
    help: str

    @property
    def choices(self) -> tuple[Any, ...]:
        """Returns the values of a `Literal`; empty for other types."""
        return typing.get_args(self.type) if typing.get_origin(self.type) is typing.Literal else ()


def fields_of(cls: type) -> dict[str, Setting]:
    """Lists the fields of a settings dataclass by name, in their order.

    Raises:
      TypeError: a field has no default.
    """
    types = typing.get_type_hints(cls, include_extras=True)
    texts = _attributes(inspect.getdoc(cls) or "")
    settings = {}
    for field in dataclasses.fields(cls):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if default is dataclasses.MISSING:
            raise TypeError(f"{cls.__qualname__}.{field.name}: a setting needs a default")
        settings[field.name] = Setting(
            field.name, types[field.name], default, texts.get(field.name, "")
        )
    return settings


def make_settings(cls: type[T], values: Mapping[str, Any]) -> T:
    """Makes a settings dataclass from values by name, for instance from a JSON object.

        make_settings(Settings, {"num_leaves": 0})
        # ElqError: num_leaves: 0; expected `int` >= 1

    Args:
      cls: dataclass whose fields all have defaults.
      values: values by name; other fields keep their defaults.

    Raises:
      ElqError: a name is not a setting, or a value is of another type or out of range.
    """
    known = fields_of(cls)
    checked = {}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
            raise ElqError(f"{name}: no such setting; {hint}")
        try:
            checked[name] = msgspec.convert(value, known[name].type)
        except msgspec.ValidationError as error:
            if choices := known[name].choices:
                expected = f"expected one of {', '.join(map(str, choices))}"
            else:
                expected = str(error).replace("Expected", "expected", 1)
            raise ElqError(f"{name}: {value!r}; {expected}") from error
    return cls(**checked)


def check_settings(settings: Any) -> None:
    """Raises an ElqError unless every field of a settings dataclass has a value of its type."""
    make_settings(type(settings), vars(settings))


def _attributes(docstring: str) -> dict[str, str]:
    """Returns the texts under "Attributes:" of a docstring by name, each as one line."""
    _, _, section = docstring.partition("\nAttributes:\n")
    texts: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if not line.startswith("  "):
            break
        if entry := re.match(r"  (\w+): (.*)", line):
            name, texts[entry[1]] = entry[1], entry[2]
        elif name:
            texts[name] += f" {line.strip()}"
    return texts
