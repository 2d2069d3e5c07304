"""Runs the command `elq-jax`: `elq-jax link ...` is `python -m elq_jax.link ...`, and so on.

Nothing heavy is imported before the program itself does.
"""

from __future__ import annotations

import ast
import difflib
import os
import pathlib
import runpy
import sys

_PROGRAMS = pathlib.Path(__file__).parent.parent


def programs() -> dict[str, str]:
    """Returns the first line of each program's description, by the program's name."""
    descriptions = {}
    for path in sorted(_PROGRAMS.glob("*.py")):
        if not path.name.startswith("_"):
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            descriptions[path.stem] = text.partition("\n")[0]
    return descriptions


def main() -> None:
    """Runs the program that the first argument names, with the other arguments."""
    name, *arguments = sys.argv[1:] or ["--help"]
    descriptions = programs()
    program = name.replace("-", "_")
    if program in descriptions:
        # As `python -m` does, so that my_losses:margin is found in my_losses.py of this folder.
        if not sys.flags.safe_path and not {"", os.getcwd()} & {*sys.path}:
            sys.path.insert(0, os.getcwd())
        sys.argv = [name, *arguments]  # The first is replaced by the path of the program.
        runpy.run_module(f"elq_jax.{program}", run_name="__main__", alter_sys=True)
        return
    if name in ("-h", "--help", "help"):
        width = max(map(len, descriptions))
        lines = [f"  {program:{width}}  {text}" for program, text in descriptions.items()]
        print(
            "elq-jax PROGRAM [--FLAG=VALUE ...]; elq-jax PROGRAM --help shows its flags",
            *lines,
            sep="\n",
        )
        return
    nearest = difflib.get_close_matches(program, descriptions, 1)
    names = ", ".join(descriptions)
    hint = f"did you mean {nearest[0]}?" if nearest else f"expected one of {names}"
    print(f"error: {name}: no such program; {hint}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
