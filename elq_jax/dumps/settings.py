"""Settings of the pipeline, from which the flags of `wikipedia` are made."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import msgspec

_Count = Annotated[int, msgspec.Meta(ge=1)]


@dataclasses.dataclass(frozen=True)
class WikipediaSettings:
    """Settings of the pipeline say what is taken from a dump, and with which limits.

    Attributes:
      alias_count: number of times that a text must link to an entity to become an alias of it.
      text_characters: number of characters of an entity's description and first paragraph, at most.
      passage_characters: number of characters that a passage has at least.
      passage_mentions: number of mentions that a passage has at least.
      lists: whether entries of lists become passages, too.
      captions: whether captions of pictures become passages, too.
      repeat_mentions: whether later occurrences of the text of a link, and of the page's own title,
        are mentions too; they are marked in the field `source`.
      red_links: whether links to pages that the dump lacks are mentions too, marked in the field
        `source`: for a part of a dump, whose entities another catalogue has.
      page_seconds: seconds of processor time in which a page must be read, or it is given up.
      page_megabytes: megabytes of memory in which a page must be read, or it is given up.
      page_bytes: number of bytes of a page's wikitext above which it is given up.
      shard_megabytes: megabytes of the dump on disk that one task reads, for plain XML and
        multistream files; of decompressed text for others.
    """

    alias_count: _Count = 3
    text_characters: _Count = 1000
    passage_characters: _Count = 20
    passage_mentions: _Count = 1
    lists: bool = True
    captions: bool = True
    repeat_mentions: bool = False
    red_links: bool = False
    page_seconds: _Count = 20
    page_megabytes: Annotated[int, msgspec.Meta(ge=256)] = 1024
    page_bytes: _Count = 2 << 20
    shard_megabytes: Annotated[float, msgspec.Meta(gt=0)] = 8
