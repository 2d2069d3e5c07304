"""Turns wikitext into plain text with its links, built together so that offsets always fit.

docs/wikipedia.md says what becomes of each kind of markup.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from elq_jax.dumps.rules import Rules, printed
from elq_jax.dumps.siteinfo import FILE, SiteInfo, folded
from elq_jax.dumps.titles import parse_target

# What text of these tags means nothing to a reader, or is no prose.
_HIDDEN_TAGS = {
    *("ce", "chem", "graph", "hiero", "imagemap", "includeonly", "inputbox", "mapframe", "maplink"),
    *("math", "pre", "score", "source", "syntaxhighlight", "templatedata", "templatestyles"),
    "timeline",
}
_LIST_TAGS = {"dd", "dt", "li"}
_BLOCK_TAGS = _LIST_TAGS | {
    *("blockquote", "caption", "center", "div", "dl", "h1", "h2", "h3", "h4", "h5", "h6", "hr"),
    *("ol", "p", "poem", "section", "td", "th", "tr", "ul"),
}
_LITERAL_TAGS = {"nowiki"}
_QUOTES = re.compile("'{2,}")
_SWITCHES = re.compile(r"__[^\W\d_]+__")
_TABLE_LINE = re.compile(r"\s*(?:\{\||\|\}|\||!)")
_RULE_LINE = re.compile(r"-{4,}")
_BROKEN = re.compile(r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}")
_UNPARSED = re.compile(r"\[\[([^\[\]|{}<>]+)(?:\||\]\])")
_SIZE = re.compile(r"\s*(?:\d*x)?\d+\s*px\s*|[\w-]*\s*=.*", re.DOTALL)
_HIDING = re.compile(r"display\s*:\s*none")
# What stays of brackets when a template in them prints nothing, and doubled spaces.
_SPARE = re.compile(
    r" ?[(（\[][ ,;:،、]*[)）\]]|(?<=[(（])[ ,;:]+|[ ,;:]+(?=[)）])| (?=[,.](?: |$))"
)
_DOUBLED = re.compile("(?<= ) +")


class Link(msgspec.Struct, array_like=True, frozen=True):
    """A link of a page, wherever it stands.

    Attributes:
      place: word for where it stands: "paragraph", "list", "caption", "heading", "table",
        "reference", "template", "hidden" or "broken".
      outcome: "article", or the reason why it leads to none, as `titles.Target.kind`; besides
        "empty" (it has no text), "nested" (it has other links in its text) and "unparsed" (the
        markup around it is broken).
      title: normalised title of an article; else the target as it stands in the wikitext.
      surface: text that a reader sees.
    """

    place: str
    outcome: str
    title: str
    surface: str


class Block(msgspec.Struct, array_like=True, frozen=True):
    """A stretch of plain text.

    Attributes:
      kind: "paragraph", "list" (one entry of a list), or "caption" (of a picture).
      section: heading under which it stands, "" before the first one.
      text: plain text in one line.
      links: [start, end) and title of each link to an article; `text[start:end]` is its text.
    """

    kind: str
    section: str
    text: str
    links: list[tuple[int, int, str]]


class PageText(msgspec.Struct, array_like=True):
    """What is read of a page.

    Attributes:
      blocks: text, in the order of the page.
      links: all links of the page, in about this order.
      templates: names of the templates that the page uses.
      description: short description that a template of the page holds.
    """

    blocks: list[Block] = []
    links: list[Link] = []
    templates: list[str] = []
    description: str = ""


@dataclasses.dataclass(frozen=True)
class Wiki:
    """What is known of a wiki when its pages are read.

    Attributes:
      site: namespaces, letter case and link trail.
      rules: templates that print text.
      redirects: titles of templates without their namespace, by the titles of their redirects.
    """

    site: SiteInfo
    rules: Rules
    redirects: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def template(self, name: str) -> str:
        """Returns the name of the template that a name in {{...}} stands for."""
        name = re.sub(r"[\s_]+", " ", name).strip()
        prefix, colon, rest = name.partition(":")
        if colon and self.site.namespaces.get(folded(prefix)) == 10:
            name = rest.strip()
        name = name[:1].upper() + name[1:]
        for _ in range(5):
            if name not in self.redirects:
                break
            name = self.redirects[name]
        return name


def read_wikitext(text: str, title: str, wiki: Wiki) -> PageText:
    """Reads the wikitext of a page.

    Args:
      text: wikitext.
      title: title of the page.
      wiki: namespaces, templates that print text.

    Raises:
      MemoryError, RecursionError: the page is nested too deeply. A page may also take very long,
        so pages of a dump are read in a `sandbox`.
    """
    import mwparserfromhell

    page = PageText([], [], [], "")
    walker = _Walker(page, title, wiki)
    builder = _Builder(page, "")
    # Quotes for bold and italics are removed later: unbalanced ones would hide links.
    walker.walk(mwparserfromhell.parse(text, skip_style_tags=True), builder)
    builder.flush()
    page.templates = sorted(set(page.templates))
    return page


def _quoted(quotes: re.Match[str]) -> str:
    """Returns the apostrophes that are shown of two or more: 2, 3 and 5 are italics and bold."""
    count = len(quotes[0])
    return "'" if count == 4 else "'" * max(0, count - 5)


class _Builder:
    """Collects text and the links in it until a block ends.

    Args:
      page: page that finished blocks and links are added to.
      place: place of all links; "": blocks are written, and the place is their kind.
    """

    def __init__(self, page: PageText, place: str, section: str = ""):
        self.page, self.place, self.section = page, place, section
        self.kind = "paragraph"
        self.link_outcomes: list[tuple[int, int, str, str]] = []
        self._pieces: list[str] = []
        self.size = 0
        self._has_brackets = False  # whether brackets in the text are meant as such
        self.is_at_line_start = True  # whether the line has no text yet
        self._is_seen = False  # whether something that is no text stands in the line

    def put(self, text: str) -> None:
        """Adds text of a line."""
        if text:
            self._pieces.append(text)
            self.size += len(text)
            self.is_at_line_start = self.is_at_line_start and text.isspace()

    def literal(self, text: str) -> None:
        """Adds text in which brackets are no markup."""
        self._has_brackets |= bool(_BROKEN.search(text))
        self.put(re.sub(r"\s+", " ", text))

    def skip(self) -> None:
        """Notes that the line has something which is no text."""
        self._is_seen = True

    def newline(self) -> None:
        """Ends a line: a blank one ends the paragraph, and each entry of a list is a block."""
        if self.kind != "paragraph" or (self.is_at_line_start and not self._is_seen):
            self.flush()
        else:
            self.put(" ")
        self.is_at_line_start, self._is_seen = True, False

    def text(self, text: str) -> None:
        """Adds text with line ends, as the parser leaves it between other markup."""
        text = _SWITCHES.sub("", _QUOTES.sub(_quoted, text))
        for number, line in enumerate(text.split("\n")):
            if number:
                self.newline()
            if line and self.is_at_line_start:
                if _TABLE_LINE.match(line):
                    self.flush("table")  # a table that does not end
                elif rule := _RULE_LINE.match(line):
                    self.flush()
                    line = line[rule.end() :]
            self.put(line)

    def link(self, start: int, outcome: str, title: str) -> None:
        """Notes a link whose text has just been added."""
        self.link_outcomes.append((start, self.size, outcome, title))

    def flush(self, kind: str = "paragraph") -> None:
        """Ends the block; the next one is of another kind."""
        raw = "".join(self._pieces)
        text, moved = cleaned(raw, [span[:2] for span in self.link_outcomes])
        is_broken = not self._has_brackets and _BROKEN.search(text)
        place = self.place or ("broken" if is_broken else self.kind)
        links = []
        for (start, end), (*_, outcome, title) in zip(moved, self.link_outcomes, strict=True):
            if outcome == "article" and start == end:
                outcome = "empty"
            self.page.links.append(Link(place, outcome, title, text[start:end]))
            if outcome == "article":
                links.append((start, end, title))
        for link in _UNPARSED.finditer(text) if is_broken else ():
            self.page.links.append(Link(place, "unparsed", link[1].strip(), ""))
        if text and not self.place and place != "table" and place != "broken":
            self.page.blocks.append(Block(place, self.section, text, sorted(links)))
        self.kind = kind
        self.link_outcomes, self._pieces, self.size = [], [], 0
        self.is_at_line_start, self._is_seen, self._has_brackets = True, False, False


def cleaned(raw: str, spans: Sequence[tuple[int, int]]) -> tuple[str, list[tuple[int, int]]]:
    """Removes what templates without text leave behind: double spaces, empty brackets.

        cleaned("Thor (; born  1962)", [(15, 19)])  # ("Thor (born 1962)", [(11, 15)])

    Args:
      raw: text.
      spans: half-open spans in it, which stay and lose only space at their ends.

    Returns:
      the text, and the spans in it.
    """
    if not raw or raw.isspace():
        return "", [(0, 0)] * len(spans)
    text, moved = re.sub(r"\s", " ", raw), list(spans)
    # The first leaves doubled spaces where something between them is gone.
    for pattern in (_DOUBLED, _SPARE, _DOUBLED):
        text, moved = _without(pattern, text, moved)
    left = len(text) - len(text.lstrip())
    stripped = text.strip()
    result = []
    for start, end in moved:
        start, end = (min(max(offset - left, 0), len(stripped)) for offset in (start, end))
        while start < end and stripped[start] == " ":
            start += 1
        while start < end and stripped[end - 1] == " ":
            end -= 1
        result.append((start, end))
    return stripped, result


def _without(
    pattern: re.Pattern[str], text: str, spans: list[tuple[int, int]]
) -> tuple[str, list[tuple[int, int]]]:
    """Removes what fits a pattern; in spans, only spaces. Returns the text and the spans in it."""
    kept: list[tuple[int, int]] = []
    position = 0
    for spare in pattern.finditer(text):
        start, end = spare.span()
        if spare[0].isspace() or not any(s < end and start < e for s, e in spans):
            kept.append((position, start))
            position = end
    if not kept:
        return text, spans
    kept.append((position, len(text)))
    starts = [start for start, _ in kept]
    lengths = list(itertools.accumulate((end - start for start, end in kept), initial=0))

    def moved(offset: int) -> int:
        number = bisect.bisect_right(starts, offset) - 1
        start, end = kept[number]
        return lengths[number] + min(offset, end) - start

    joined = "".join(text[start:end] for start, end in kept)
    return joined, [(moved(start), moved(end)) for start, end in spans]


class _Walker:
    """Walks the nodes of a page and gives their text to a builder."""

    def __init__(self, page: PageText, title: str, wiki: Wiki):
        self._page, self._title, self._wiki = page, title, wiki
        self._trail = re.compile(wiki.rules.link_trail or wiki.site.link_trail or "(?!)")
        self._printing = wiki.rules.printing_templates
        self._describing = {*wiki.rules.short_description_templates}

    def walk(self, code: Any, builder: _Builder) -> None:
        """Adds the text of parsed wikitext."""
        nodes = code.nodes
        taken = 0  # characters of the next text that the link before it has taken
        for number, node in enumerate(nodes):
            kind = type(node).__name__
            if kind == "Text":
                builder.text(str(node.value)[taken:])
                taken = 0
                continue
            taken = 0
            if kind == "Wikilink":
                following = nodes[number + 1] if number + 1 < len(nodes) else None
                is_text = type(following).__name__ == "Text"
                taken = self._link(node, builder, str(following.value) if is_text else "")
            elif kind == "Tag":
                self._tag(node, builder)
            elif kind == "Template":
                self._template(node, builder)
            elif kind == "HTMLEntity":
                builder.put(self._entity(node))
            elif kind == "ExternalLink":
                if not node.brackets:
                    builder.put(str(node.url))
                elif node.title is not None:
                    self.walk(node.title, builder)
            elif kind == "Heading":
                self._heading(node, builder)
            elif kind == "Argument" and node.default is not None:
                self.walk(node.default, builder)
            else:
                builder.skip()

    def _entity(self, node: Any) -> str:
        try:
            character = node.normalize()
        except (ValueError, OverflowError):
            return ""
        return " " if character.isspace() or character < " " else character

    def _heading(self, node: Any, builder: _Builder) -> None:
        builder.flush()
        heading = _Builder(self._page, "heading")
        self.walk(node.title, heading)
        builder.section = cleaned("".join(heading._pieces), [])[0]
        heading.flush()

    def _aside(self, code: Any, place: str) -> None:
        """Notes the links of something whose text is not part of the page's text."""
        if code is not None and "[[" in str(code):
            aside = _Builder(self._page, place)
            self.walk(code, aside)
            aside.flush()

    def _link(self, node: Any, builder: _Builder, following: str) -> int:
        """Adds a link; returns how many characters of the following text belong to it."""
        raw = str(node.title)
        target = parse_target(raw, self._wiki.site)
        if target.kind == "file" and not target.is_shown:
            self._note(builder, "file", raw)
            if node.text is not None:
                self._caption(node.text, builder)
            return 0
        if not target.is_shown:
            self._note(builder, target.kind, raw)
            return 0
        outcome = target.kind
        title = target.title if outcome == "article" else raw.strip()
        start, before = builder.size, len(builder.link_outcomes)
        if node.text is None:
            builder.put(self._shown(raw))
        elif str(node.text):
            self.walk(node.text, builder)
        else:
            outcome = "empty"
        if builder.size < start or any(
            link[2] not in ("file", "category") for link in builder.link_outcomes[before:]
        ):
            self._note(builder, "nested", raw)
            return 0
        trail = self._trail.match(following)
        taken = trail.end() if trail else 0
        builder.put(following[:taken])
        builder.link(start, outcome, title)
        return taken

    def _shown(self, raw: str) -> str:
        """Returns what a link without a text of its own shows."""
        import html

        return re.sub(r"\s+", " ", html.unescape(raw.strip().removeprefix(":")).strip())

    def _note(self, builder: _Builder, outcome: str, raw: str) -> None:
        """Notes a link that is not shown."""
        place = builder.place or builder.kind
        self._page.links.append(Link(place, outcome, raw.strip(), ""))
        builder.skip()

    def _caption(self, text: Any, builder: _Builder) -> None:
        """Adds the caption of a picture: its last option that is no size and has no name."""
        parts: list[list[Any]] = [[]]
        for node in text.nodes:
            if type(node).__name__ != "Text":
                parts[-1].append(node)
                continue
            first, *others = str(node.value).split("|")
            parts[-1].append(type(node)(first))
            parts.extend([type(node)(other)] for other in others)
        written = ["".join(map(str, part)) for part in parts]
        last = next((i for i in reversed(range(len(parts))) if not _SIZE.fullmatch(written[i])), -1)
        for number, part in enumerate(parts):
            is_caption = number == last and not builder.place
            caption = _Builder(
                self._page,
                builder.place or ("" if is_caption else "caption"),
                builder.section,
            )
            caption.kind = "caption"
            self.walk(type(text)(part), caption)
            while caption.size:
                caption.flush()

    def _tag(self, node: Any, builder: _Builder) -> None:
        name = str(node.tag).strip().lower()
        if node.wiki_markup in ("*", "#", ":", ";"):
            if builder.is_at_line_start:
                builder.flush("list")
            else:
                builder.put(str(node.wiki_markup))
        elif name == "ref" or name == "references":
            self._aside(node.contents, "reference")
            builder.skip()
        elif name == "table":
            builder.flush()
            self._aside(node.contents, "table")
        elif name == "br":
            builder.put(" ")
        elif name in _LITERAL_TAGS:
            builder.literal(str(node.contents or ""))
        elif name == "gallery":
            builder.flush()
            self._gallery(str(node.contents or ""), builder)
        elif name in _HIDDEN_TAGS or any(
            _HIDING.search(str(attribute.value or "")) for attribute in node.attributes
        ):
            self._aside(node.contents, "hidden")
            builder.skip()
        elif name in _BLOCK_TAGS:
            builder.flush("list" if name in _LIST_TAGS else "paragraph")
            if node.contents is not None:
                self.walk(node.contents, builder)
            builder.flush()
        elif node.contents is not None:
            self.walk(node.contents, builder)

    def _gallery(self, contents: str, builder: _Builder) -> None:
        import mwparserfromhell

        for line in contents.splitlines():
            name, bar, caption = line.partition("|")
            if name.strip():
                named = parse_target(name, self._wiki.site)
                if named.namespace in (0, FILE):
                    self._note(builder, "file", name)
            if bar:
                self._caption(mwparserfromhell.parse(caption, skip_style_tags=True), builder)

    def _template(self, node: Any, builder: _Builder) -> None:
        name = self._wiki.template(str(node.name))
        self._page.templates.append(name)
        arguments = {str(argument.name).strip(): argument.value for argument in node.params}
        if name == "PAGENAME" or name == "FULLPAGENAME":
            builder.put(self._title)
            return
        if name == "!":
            builder.put("|")
            return
        shown: set[str] = set()
        if forms := self._printing.get(name):
            texts = {key: str(value).strip() for key, value in arguments.items()}
            for text, is_argument in printed(forms, texts):
                if is_argument:
                    shown.add(text)
                    self._inline(arguments[text], builder)
                else:
                    builder.put(text)
        else:
            builder.skip()
        for key, value in arguments.items():
            if key not in shown:
                self._aside(value, "template")
        if name in self._describing and not self._page.description and "1" in arguments:
            description = _QUOTES.sub(_quoted, str(arguments["1"].strip_code())).strip()
            self._page.description = "" if description.lower() == "none" else description

    def _inline(self, code: Any, builder: _Builder) -> None:
        """Adds an argument that is printed in a line; space at its ends does not count."""
        nodes = code.nodes
        for end, number in (("lstrip", 0), ("rstrip", -1)):
            if nodes and type(nodes[number]).__name__ == "Text":
                nodes[number].value = getattr(str(nodes[number].value), end)()
        self.walk(code, builder)


def first_paragraph(blocks: Iterable[Block], least: int = 40) -> str:
    """Returns the first paragraph that has at least so many characters; else the longest one."""
    paragraphs = [block.text for block in blocks if block.kind == "paragraph"]
    return next(
        (text for text in paragraphs if len(text) >= least), max(paragraphs, key=len, default="")
    )


def count_outcomes(links: Iterable[Link]) -> Counter[tuple[str, str]]:
    """Counts links by their place and outcome."""
    return Counter((link.place, link.outcome) for link in links)
