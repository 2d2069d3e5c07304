"""Measures what long texts cost, and whether links depend on where windows end.

    python -m benchmarks.long_text --linker my_linker --questions articles.jsonl
    python -m benchmarks.long_text --linker my_linker --questions labelled_articles.jsonl --seams

The first command repeats the texts of a file up to each number of tokens, links them as `link`
does, each number in a process of its own, and prints time and memory. Beside these it prints the
memory that the scores of all spans take, on the band of tokens times widths and on the square grid
of tokens times tokens.

The second command takes each labelled mention with the sentences around it, puts words in front so
that it moves over all places of a window, and compares its link with that without these words.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks import options
from elq_jax.cli.run import run
from elq_jax.core import machine
from elq_jax.core.errors import ElqError
from elq_jax.linking.linker import EntityLinker
from elq_jax.linking.links import Link
from elq_jax.linking.rows import link_file
from elq_jax.model import spans
from elq_jax.questions.read import read_questions
from elq_jax.questions.records import Question
from elq_jax.questions.rows import Row, open_rows

_TOKENS = flags.DEFINE_integer("text_tokens", None, "Number of tokens to link, in this process.", 1)
_MOST = flags.DEFINE_integer("most", 1_000_000, "Largest number of tokens.", 1)
_SEAMS = flags.DEFINE_bool("seams", False, "Move mentions over the ends of windows instead.")
_MENTIONS = flags.DEFINE_integer("mentions", 100, "Number of mentions that are moved.", 1)
_STEP = flags.DEFINE_integer("step", 1, "Number of words that each move adds.", 1)

_AROUND = 600  # characters around a mention that is moved
_WORD = "so "
_LARGEST_GRID = 1 << 30  # bytes
_COMPILED_WITH = 10_000  # tokens, at most, that are linked once before the time is taken


class Cost(NamedTuple):
    """What linking a text took.

    Attributes:
      tokens: number of tokens.
      links: number of links.
      seconds: time.
      processor: time of all cores.
      memory: peak memory of the process, in MiB.
    """

    tokens: int
    links: int
    seconds: float
    processor: float
    memory: float


def text_of(linker: EntityLinker, texts: Sequence[str], tokens: int) -> str:
    """Returns a text of a number of tokens: the texts one after the other, again and again."""
    pieces, count = [], 0
    lengths = [len(question.ids) - 2 for question in linker.encode(texts)]
    if not sum(lengths):
        raise ElqError("--questions: the texts have no tokens")
    while count < tokens:
        for text, length in zip(texts, lengths, strict=True):
            if count + length >= tokens:
                [question] = linker.encode([text])
                pieces.append(text[: int(question.offsets[tokens - count, 1])])
                return "\n".join(pieces)
            pieces.append(text)
            count += length
    return "\n".join(pieces)


def cost_of(linker: EntityLinker, text: str, tokens: int) -> Cost:
    """Links a text as `link` does, without keeping the links."""
    counts = []
    start, processor = time.perf_counter(), time.process_time()
    link_file(
        linker,
        [Row("text", text)],
        "/dev/null",
        {},
        ahead=2,
        progress=lambda rows, linked: counts.append(sum(len(part.links) for part in linked or ())),
    )
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    return Cost(tokens, sum(counts), seconds, processor, machine.peak_memory() / 2**20)


def grid_bytes(tokens: int, width: int) -> tuple[int, int]:
    """Returns the bytes of the scores of all spans of a text: of the band and of the square."""
    return 4 * tokens * min(width, tokens), 4 * tokens**2


def square_scores(start: jax.Array, end: jax.Array, inside: jax.Array, width: int) -> jax.Array:
    """Returns span logits [T, T] of token scores [T], -inf where a span is too wide."""
    total = jnp.cumsum(inside)
    scores = start[:, None] + end[None, :] + total[None, :] - (total - inside)[:, None]
    places = jnp.arange(len(start))
    widths = places[None, :] - places[:, None]
    return jnp.where((widths >= 0) & (widths < width), scores, -jnp.inf)


def grid_seconds(tokens: int, width: int) -> tuple[float, float | None]:
    """Measures scoring and choosing spans on the band and on the square, if that is not too large.

    Returns:
      seconds of the band, and of the square.
    """
    keys = jax.random.split(jax.random.key(0), 3)
    scores = [jax.random.normal(key, (tokens,)) for key in keys]
    count = max(1, tokens // 6)

    def band(start: jax.Array, end: jax.Array, inside: jax.Array) -> Any:
        token_logits = jnp.stack([start, end, inside], axis=-1)[None]
        logits = spans.span_logits(token_logits, jnp.ones((1, tokens), bool), width)
        return jax.lax.top_k(logits.reshape(-1), count)

    def square(start: jax.Array, end: jax.Array, inside: jax.Array) -> Any:
        return jax.lax.top_k(square_scores(start, end, inside, width).reshape(-1), count)

    is_small = grid_bytes(tokens, width)[1] <= _LARGEST_GRID
    times = [_seconds(function, scores) for function in (band, *([square] if is_small else []))]
    return times[0], times[1] if is_small else None


def _seconds(function: Any, arguments: Sequence[jax.Array]) -> float:
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*arguments))
    start = time.perf_counter()
    jax.block_until_ready(compiled(*arguments))
    return time.perf_counter() - start


def print_costs(costs: Sequence[Cost], width: int) -> None:
    """Prints a table of costs."""
    print(
        f"{'tokens':>9} {'links':>7} {'s':>8} {'tokens/s':>9} {'s/1,000':>8} {'cpu s/1,000':>12} "
        f"{'peak MiB':>9} {'band MiB':>9} {'square MiB':>11} {'band ms':>8} {'square ms':>10}"
    )
    for cost in costs:
        thousands = cost.tokens / 1000
        band, square = grid_bytes(cost.tokens, width)
        band_time, square_time = grid_seconds(cost.tokens, width)
        shown = "-" if square_time is None else f"{1000 * square_time:.1f}"
        print(
            f"{cost.tokens:9,} {cost.links:7,} {cost.seconds:8.2f} "
            f"{cost.tokens / cost.seconds:9,.0f} {cost.seconds / thousands:8.3f} "
            f"{cost.processor / thousands:12.3f} {cost.memory:9,.0f} {band / 2**20:9,.1f} "
            f"{square / 2**20:11,.1f} {1000 * band_time:8.1f} {shown:>10}"
        )


def _costs(linker: EntityLinker, texts: Sequence[str], sizes: Sequence[int]) -> Iterator[Cost]:
    """Yields the cost of each number of tokens, each in a process of its own unless `--small`."""
    for tokens in sizes:
        if options.SMALL.value:
            yield cost_of(linker, text_of(linker, texts, tokens), tokens)
            continue
        flag_values = (f"--linker={options.LINKER.value}", f"--questions={options.QUESTIONS.value}")
        command = [
            sys.executable,
            "-m",
            "benchmarks.long_text",
            *flag_values,
            f"--text_tokens={tokens}",
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        yield Cost(**json.loads(done.stdout))


class Moved(NamedTuple):
    """A mention whose link is another one behind a number of words.

    Attributes:
      question: id of the text.
      mention: mention.
      words: number of words in front.
      before: what it is linked to without them: (start, end, title) of each link.
      after: what it is linked to behind them.
    """

    question: str
    mention: str
    words: int
    before: list[tuple[int, int, str | None]]
    after: list[tuple[int, int, str | None]]


def seams(
    linker: EntityLinker, questions: Sequence[Question], most: int, step: int
) -> tuple[int, list[Moved]]:
    """Moves mentions over the places of a window.

    Args:
      linker: linker.
      questions: labelled texts.
      most: number of mentions, evenly taken from all.
      step: number of words that each move adds.

    Returns:
      the number of cases, and those whose links changed.
    """
    mentions = [(question, mention) for question in questions for mention in question.mentions]
    mentions = mentions[:: max(1, len(mentions) // most)][:most]
    moves = range(step, linker.max_question_tokens - 1, step)
    cases, changed = 0, []
    for question, mention in mentions:
        first = question.text.rfind("\n", 0, max(mention.start - _AROUND, 0)) + 1
        text = question.text[first : mention.end + _AROUND]
        span = mention.start - first, mention.end - first
        plain, *others = linker([text, *(_WORD * words + "\n" + text for words in moves)])
        before = _links_at(plain, span, 0)
        for words, links in zip(moves, others, strict=True):
            after = _links_at(links, span, len(_WORD) * words + 1)
            cases += 1
            if after != before:
                name = text[slice(*span)]
                changed.append(Moved(question.id, name, words, before, after))
    return cases, changed


def _links_at(
    links: Sequence[Link], span: tuple[int, int], offset: int
) -> list[tuple[int, int, str | None]]:
    """Returns the links that share a character with a span, with offsets before the words."""
    return [
        (link.start - offset, link.end - offset, link.title)
        for link in links
        if link.start - offset < span[1] and span[0] < link.end - offset
    ]


def _print_seams(linker: EntityLinker) -> None:
    questions, _ = read_questions(options.QUESTIONS.value, linker.catalogue)
    most = 2 if options.SMALL.value else _MENTIONS.value
    cases, changed = seams(linker, questions, most, 20 if options.SMALL.value else _STEP.value)
    for case in changed:
        print(f"{case.question}: {case.mention!r} behind {case.words} words:", end=" ")
        print(f"{case.before} became {case.after}")
    print(
        f"{cases - len(changed):,} of {cases:,} links are the same: {1 - len(changed) / cases:.2%}"
    )


def main(arguments: list[str]) -> None:
    """Prints the costs, or what became of mentions that were moved."""
    del arguments
    if not options.LINKER.value or not options.QUESTIONS.value:
        raise ElqError("--linker, --questions: both are needed")
    linker = EntityLinker.from_pretrained(options.LINKER.value)
    if _SEAMS.value:
        _print_seams(linker)
        return
    with open_rows(options.QUESTIONS.value, with_mentions=False) as (rows, _):
        texts = [row.text for row in rows]
    if tokens := _TOKENS.value:
        size = min(tokens, _COMPILED_WITH)
        cost_of(linker, text_of(linker, texts, size), size)
        cost = cost_of(linker, text_of(linker, texts, tokens), tokens)
        print(json.dumps(cost._asdict()))
        return
    sizes = [100, 1000] if options.SMALL.value else [10**power for power in range(2, 7)]
    costs = list(_costs(linker, texts, [size for size in sizes if size <= _MOST.value]))
    print(f"{machine.describe_machine()['cpu']}; {len(linker.catalogue):,} entities")
    print_costs(costs, linker.config.max_mention_width)


if __name__ == "__main__":
    run(main)
