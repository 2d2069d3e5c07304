"""Makes labelled passages from the text of a page and what its links lead to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from elq_jax.dumps.settings import WikipediaSettings
from elq_jax.dumps.wikitext import Block
from elq_jax.entities.names import QUALIFIED
from elq_jax.text.scripts import BETWEEN_WORDS, MARKS

# Outcome and title of a link's target, by the target.
Answers = Mapping[str, tuple[str, str]]

ENTITY = "entity"

# Where a name may begin and end.
_BEGIN = re.compile(rf"(?<![\w{MARKS}])|{BETWEEN_WORDS}")
_END = re.compile(rf"(?![\w{MARKS}])|{BETWEEN_WORDS}")


def make_passages(
    page_id: int, title: str, blocks: Sequence[Block], answers: Answers, settings: WikipediaSettings
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Makes the passages of a page in the labelled form (`elq_jax.questions.records`).

    Links to entities are mentions. Other links to articles (red links, disambiguation pages) are
    `neutral`: something is mentioned there that the catalogue does not have.

    Args:
      page_id: id of the page.
      title: title of the page.
      blocks: text of the page.
      answers: what the links lead to.
      settings: which blocks become passages.

    Returns:
      the passages, and the number of blocks by what became of them.
    """
    names: dict[str, str | None] = {}
    if settings.repeat_mentions:
        answer = answers.get(title)
        names[_own_name(title)] = answer[1] if answer and answer[0] == ENTITY else title
    rows, outcomes = [], Counter[str]()
    for number, block in enumerate(blocks):
        if (block.kind == "list" and not settings.lists) or (
            block.kind == "caption" and not settings.captions
        ):
            outcomes[f"{block.kind} left out"] += 1
            continue
        mentions, neutral = [], []
        for start, end, target in block.links:
            if start == end:
                continue
            outcome, entity = answers[target]
            if outcome == ENTITY:
                mentions.append((start, end, entity, "link"))
            elif outcome == "red" and settings.red_links:
                mentions.append((start, end, entity, "red_link"))
            else:
                neutral.append((start, end))
        mentions = _without_overlaps(mentions)
        if settings.repeat_mentions:
            mentions = _with_repeats(block.text, mentions, neutral, names, _own_name(title))
        if len(block.text) < settings.passage_characters:
            outcomes["too short"] += 1
        elif len(mentions) < settings.passage_mentions:
            outcomes["too few mentions"] += 1
        else:
            outcomes[block.kind] += 1
            rows.append(
                {
                    "id": f"{page_id}-{number}",
                    "text": block.text,
                    "mentions": [mention[:2] for mention in mentions],
                    "title": [mention[2] for mention in mentions],
                    "source": [mention[3] for mention in mentions],
                    "neutral": neutral,
                    "kind": block.kind,
                    "page": title,
                    "section": block.section,
                }
            )
    return rows, outcomes


def _own_name(title: str) -> str:
    """Returns the title of a page without what tells it from others of the same name."""
    return re.sub(QUALIFIED, r"\1", title)


_Mention = tuple[int, int, str, str]


def _without_overlaps(mentions: list[_Mention]) -> list[_Mention]:
    """Returns mentions in their order; of links inside others, the first is kept."""
    result: list[_Mention] = []
    for mention in sorted(mentions):
        if not result or mention[0] >= result[-1][1]:
            result.append(mention)
    return result


def _with_repeats(
    text: str,
    mentions: list[_Mention],
    neutral: Sequence[tuple[int, int]],
    names: dict[str, str | None],
    own_name: str,
) -> list[_Mention]:
    """Adds mentions of names that were linked earlier on the page; updates these names."""
    taken = [*(mention[:2] for mention in mentions), *neutral]
    for start, end, entity, _ in mentions:
        name = text[start:end]
        if len(name) > 1 and name != own_name:
            # A name of two entities on one page tells nothing.
            names[name] = entity if names.get(name, entity) == entity else None
    known = [name for name, entity in names.items() if entity is not None and name in text]
    if not known:
        return mentions
    repeats = []
    for start, end in _whole_names(text, known):
        if not any(s < end and start < e for s, e in taken):
            name = text[start:end]
            source = "own_title" if name == own_name else "repeat"
            repeats.append((start, end, str(names[name]), source))
    return sorted([*mentions, *repeats])


def _whole_names(text: str, names: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yields where names stand in a text between words, the longest first; none overlap."""
    longest_first = sorted(names, key=len, reverse=True)
    pattern, end = re.compile("|".join(map(re.escape, longest_first))), 0
    while match := pattern.search(text, end):
        start, end = match.start(), match.start() + 1
        if not _BEGIN.match(text, start):
            continue
        for name in longest_first:
            if text.startswith(name, start) and _END.match(text, start + len(name)):
                end = start + len(name)
                yield start, end
                break
