"""Writes lines of JSON, long ones piece by piece."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from elq_jax.linking.rows import Linked


def json_line(values: Mapping[str, Any]) -> bytes:
    """Returns an object as a line of .jsonl."""
    return _json(values) + b"\n"


def line_piece(
    linked: Linked, head: Mapping[str, Any], name: str, items: Sequence[Any], **tail: Any
) -> bytes:
    """Returns the line of a row, or of a long row the next piece of its line.

    Args:
      linked: row with its next links.
      head: first fields of the line.
      name: name of the field that lists something of the links.
      items: values of this field for `linked.links`.
      **tail: last fields of the line; those that are None are left out.
    """
    pieces = []
    if linked.is_first:
        pieces += [_json(head)[:-1], b", ", _json(name), b": ["]
    if items:
        pieces += [b", " if linked.links_before else b"", _json(items)[1:-1]]
    if linked.is_last:
        fields = {name: value for name, value in tail.items() if value is not None}
        pieces += [b"]", b", " if fields else b"", _json(fields)[1:-1], b"}\n"]
    return b"".join(pieces)


def _json(value: Any) -> bytes:
    # As `json` writes it, several times as fast: with blanks, and not escaped.
    return msgspec.json.format(msgspec.json.encode(value), indent=0)
