"""Converts JSON values to declared types by msgspec, with errors for people."""

from __future__ import annotations

import math
import re
from typing import Any, TypeVar

import msgspec

from elq_jax.core.errors import ElqError

T = TypeVar("T")

_NAMES = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "an object {...}",
    "null": "null",
}
_PLACE = re.compile(r" - at `(key in )?\$(?P<path>.*)`$")
_STEP = re.compile(r"\.(?P<name>[^.\[\]]+)|\[(?P<number>\d+)\]")


def convert(value: Any, kind: type[T]) -> T:
    """Turns plain JSON values (dict, list, str, ...) into a msgspec Struct or a dataclass.

    Nothing is coerced: true is not a number, 1.0 is not an integer.

    Args:
      value: value that `json.loads` returns.
      kind: type to expect.

    Raises:
      ElqError: a value is of another type or out of its range; the message names it, what was
        found and what was expected, as in "field 'links[0].start': found 1.5, expected an integer".
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ElqError(explain(error, value)) from None


def explain(error: msgspec.ValidationError, value: Any) -> str:
    """Returns a message for an error of msgspec: the place, what was found and expected there.

    Args:
      error: error that msgspec raised.
      value: plain JSON value that it raised the error for.
    """
    message = str(error)
    place = _PLACE.search(message)
    path = place["path"] if place else ""
    message = _PLACE.sub("", message)
    for step in _STEP.finditer(path):
        try:
            value = value[step["name"] if step["number"] is None else int(step["number"])]
        except (KeyError, IndexError, TypeError):  # a key that was not a string
            break
    for problem, words in (
        ("Object missing required field", "missing"),
        ("Object contains unknown field", "no such field"),
    ):
        if named := re.fullmatch(f"{problem} `(.*)`", message):
            field = f"{path}.{named[1]}".removeprefix(".")
            return f"field {field!r}: {words}"
    found = f"found {_shown(value)}, "
    expected = re.sub(r"^Expected ", "expected ", message)
    expected = re.sub(r", got `[^`]*`$", "", expected)
    expected = re.sub(r"`([^`]*)`", lambda match: _readable(match[1]), expected, count=1)
    field = path.removeprefix(".")
    return f"field {field!r}: {found}{expected}" if field else f"{found}{expected}"


def _readable(types: str) -> str:
    """Writes "int | null" as "an integer or null"."""
    return " or ".join(_NAMES.get(name, name) for name in types.split(" | "))


def _shown(value: Any) -> str:
    if isinstance(value, dict) and value:
        return "an object {...}"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no word for it.
    text = msgspec.json.encode(value).decode(errors="replace")
    return text if len(text) <= 60 else f"{text[:60]}..."
