"""Shows links on a terminal as coloured text, and answers questions typed at a prompt."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.text import Text

from elq_jax.entities.catalogue import Catalogue
from elq_jax.linking.linker import EntityLinker
from elq_jax.linking.links import Link, ScoredSpans

_COLOURS = ("cyan", "yellow", "magenta", "green", "blue", "red")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_HELP = """\
Type a question to link it. Other lines:
  :t -2.0   set the threshold (a log-probability, 0 at most; lower gives more links)
            and show the last question again
  :c 3      set how many candidates of each link are shown (here 3), and show the last question
            again
  :h        this help
  an empty line, or Ctrl-D, ends"""


def print_links(
    console: Console,
    catalogue: Catalogue,
    text: str,
    links: Sequence[Link],
    candidates: int = 0,
    truncated_at: int | None = None,
) -> None:
    """Shows a question with its mentions marked, then a line for each link.

    Args:
      console: console to print on.
      catalogue: catalogue whose texts of entities are shown.
      text: text of the question.
      links: links in the order of the text.
      candidates: number of candidates shown below each link.
      truncated_at: number of the first character that was not read; None if all was read.
    """
    question = Text(_printable(text), "bold")
    for number, link in enumerate(links):
        question.stylize(f"reverse {_colour(number)}", link.start, link.end)
    if truncated_at is not None:
        question.stylize("not bold dim strike", truncated_at)
    console.print(question, soft_wrap=True)
    if truncated_at is not None:
        console.print(Text(f"  (cut: linked up to character {truncated_at:,})", "yellow"))
    if not links:
        console.print(Text("  no links", "dim"))
    for number, link in enumerate(links):
        line = Text("  ")
        line.append(_printable(link.mention), _colour(number))
        line.append(" -> ")
        if link.row is None:
            line.append(f"not in the catalogue  {link.score:.3f}", "dim")
        else:
            _entity(line, link.title, link.wikidata_id, link.score, "bold")
            line.append("  " + _printable(catalogue.texts([link.row])[0].strip()), "dim")
        console.print(line, no_wrap=True, overflow="ellipsis")
        for place, candidate in enumerate(link.candidates[:candidates], 1):
            line = Text(f"    {place:2}. ")
            _entity(line, candidate.title, candidate.wikidata_id, candidate.score, "")
            line.append("  " + _printable(catalogue.texts([candidate.row])[0].strip()), "dim")
            console.print(line, no_wrap=True, overflow="ellipsis")


def _entity(line: Text, title: str, wikidata_id: str | None, score: float, style: str) -> None:
    line.append(_printable(title), style)
    if wikidata_id:
        line.append(f" ({wikidata_id})", "dim")
    line.append(f"  {score:.3f}", "dim" if not style else "")


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _printable(text: str) -> str:
    """Replaces control characters, which a terminal would obey."""
    return _CONTROL.sub(lambda match: " " if match[0].isspace() else "\ufffd", text)


class Session:
    """Links each question that is typed at a prompt.

    A question is scored once, for all thresholds; another threshold only decodes it again.

    Args:
      linker: linker with the settings to begin with.
      console: console that answers are shown on.
      read: function from a prompt to the line typed after it; raises EOFError at the end.
    """

    def __init__(self, linker: EntityLinker, console: Console, read: Callable[[str], str] = input):
        self._linker, self._console, self._read = linker, console, read
        self._threshold = linker.settings.threshold
        self._candidates = 0
        self._last: ScoredSpans | None = None

    def run(self) -> None:
        """Answers questions until an empty line or the end of the input."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (gives `input` a history and editing keys)
        self._print(
            f"{self._linker.catalogue.num_entities:,} entities, threshold {self._threshold:g}; "
            ":h for help, an empty line to end"
        )
        while True:
            try:
                line = self._read("question> ").strip()
            except (EOFError, KeyboardInterrupt):
                self._console.print()
                return
            if not line:
                return
            if line.startswith(":"):
                self._command(line)
            else:
                # At -inf, so that any threshold can be asked for later.
                self._last = self._linker.score_batch([line], -math.inf)
                self._show()

    def _command(self, line: str) -> None:
        name, _, value = line[1:].partition(" ")
        try:
            if name == "t":
                self._threshold = _finite(value)
                self._print(f"threshold {self._threshold:g}")
            elif name == "c":
                self._candidates = max(0, int(value))
                self._print(f"{self._candidates} candidates")
            else:
                self._print(_HELP)
                return
        except ValueError:
            self._print(f"{line!r}: expected a number, as in :t -2.0 or :c 3")
            return
        self._show()

    def _show(self) -> None:
        if self._last is None:
            return
        [links] = self._linker.decode(self._last, self._threshold)
        print_links(
            self._console,
            self._linker.catalogue,
            self._last.texts[0],
            links,
            self._candidates,
            self._last.encoded[0].truncated_at,
        )

    def _print(self, message: str) -> None:
        self._console.print(Text(message, "dim"))


def _finite(value: str) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number
