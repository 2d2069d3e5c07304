"""Reads rules of one wiki: which of its templates print text, which titles are lists."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from elq_jax.core.errors import DataError
from elq_jax.core.typed import explain

_FOLDER = pathlib.Path(__file__).parent / "rules"

Alternative = tuple[str, str, str]


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    r"""Rules of a wiki, as a JSON file.

        {"printing_templates": {"Lang": "{text|2}", "Convert": [["2", "to|and", "{1} {2} {3} {4}"],
         ["1", ".*", "{1} {2}"]]}, "list_titles": "^Lists? of "}

    Attributes:
      printing_templates: text that a template prints, by its name. "{text|2}" stands for the
        argument text, or else the second. A list has alternatives: the first one counts whose
        argument fits the regular expression. What is not named here prints nothing.
      disambiguation_templates: names of templates that mark a disambiguation page.
      short_description_templates: names of templates whose first argument describes the page.
      list_titles: regular expression for the titles of lists, which are no entities.
      link_trail: regular expression for letters that belong to a link when they follow it; "": as
        the siteinfo file says.
    """

    printing_templates: dict[str, str | list[Alternative]] = {}
    disambiguation_templates: list[str] = []
    short_description_templates: list[str] = []
    list_titles: str = ""
    link_trail: str = ""


def read_rules(language: str, path: str | os.PathLike[str] | None = None) -> Rules:
    """Reads the rules of a file, or those that come with this package for a language.

    Args:
      language: code of the wiki's language.
      path: path of a JSON file of rules; None: those of the language, or no rules.

    Raises:
      DataError: the file cannot be read.
    """
    own = _FOLDER / f"{language}.json"
    if path is None and not (re.fullmatch(r"[a-z-]+", language) and own.is_file()):
        return Rules()
    path = own if path is None else pathlib.Path(path)
    try:
        value: Any = msgspec.json.decode(path.read_bytes())
        rules = msgspec.convert(value, Rules)
    except msgspec.ValidationError as error:
        raise DataError(explain(error, value), path) from None
    except msgspec.DecodeError as error:
        raise DataError(f"not JSON ({error}); expected rules of a wiki", path) from None
    alternatives = [
        a
        for forms in rules.printing_templates.values()
        if not isinstance(forms, str)
        for a in forms
    ]
    for pattern in (rules.list_titles, rules.link_trail, *(a[1] for a in alternatives)):
        try:
            re.compile(pattern)
        except re.error as error:
            message = f"found {pattern!r}, expected a regular expression ({error})"
            raise DataError(message, path) from None
    return rules


def printed(forms: str | list[Alternative], arguments: Mapping[str, str]) -> list[tuple[str, bool]]:
    """Returns what a template prints: (text, False) as it is, or (name of an argument, True).

        printed("c. {1|2}", {"2": "1900"})  # [("c. ", False), ("2", True)]

    Args:
      forms: entry of `printing_templates`.
      arguments: texts of the arguments by their names or numbers.
    """
    if not isinstance(forms, str):
        fitting = (
            form
            for name, pattern, form in forms
            if re.fullmatch(pattern, arguments.get(name, ""), re.DOTALL)
        )
        forms = next(fitting, "")
    parts = []
    for text, names in re.findall(r"([^{]*)(?:\{([^}]*)\})?", forms):
        if text:
            parts.append((text, False))
        present = [name for name in names.split("|") if arguments.get(name)]
        if present:
            parts.append((present[0], True))
    return parts
