"""Makes a catalogue and linked passages from a Wikipedia dump, in any language.

    python -m elq_jax.wikipedia --dump simplewiki-latest-pages-articles-multistream.xml.bz2 \\
        --page_props simplewiki-latest-page_props.sql.gz --output simplewiki/

writes

    simplewiki/entities.jsonl.gz    the catalogue: title, text, Wikidata id, aliases, popularity;
                                    encode_entities reads it
    simplewiki/passages/            paragraphs with linked mentions, to train on; a line is
                                    {"text": "...", "mentions": [[0, 4]], "title": ["..."], ...}
    simplewiki/anchors.jsonl.gz     how often a text links to an entity
    simplewiki/report.json          what became of all pages and links
    simplewiki/given_up.jsonl       pages that could not be read, each with the reason

All processors work. If the program is stopped, the same command resumes it. Options of Apache Beam,
such as --runner=FlinkRunner, are given after --; see docs/wikipedia.md.
"""

from __future__ import annotations

import sys

from elq_jax.cli.flags import SettingsFlags
from elq_jax.cli.run import define_path, run
from elq_jax.core.errors import ElqError
from elq_jax.dumps.settings import WikipediaSettings

_DUMP = define_path(
    "dump",
    "Dump of the pages, pages-articles.xml: plain, .gz or .bz2. The multistream form is read by "
    "several processes at once.",
    required=True,
)
_OUTPUT = define_path("output", "Folder to write; it appears when it is whole.", required=True)
_INDEX = define_path("index", "Index of a multistream dump. Without it, streams are looked for.")
_SITEINFO = define_path(
    "siteinfo", "siteinfo-namespaces.json.gz of the dump: aliases of namespaces, link trail."
)
_PAGE_PROPS = define_path(
    "page_props", "page_props.sql.gz of the dump: Wikidata ids, short descriptions, disambiguation."
)
_ITEMS = define_path(
    "items_per_site", "wb_items_per_site.sql.gz of Wikidata: ids that page_props lacks."
)
_RULES = define_path(
    "rules",
    "JSON file of the wiki's templates. By default that of its language, where there is one.",
)
_SETTINGS = SettingsFlags.define(WikipediaSettings, "wikipedia")


def main(arguments: list[str]) -> None:
    """Reads the dump, then prints how many pages, entities and mentions there are."""
    from elq_jax.dumps.pipeline import Inputs, read_wikipedia

    for argument in arguments[1:]:
        if not argument.startswith("--"):
            message = f"{argument}: unexpected argument; expected flags such as --dump=NAME and"
            raise ElqError(f"{message}, after --, options of Apache Beam")
    inputs = Inputs(
        dump=_DUMP.value,
        index=_INDEX.value,
        siteinfo=_SITEINFO.value,
        page_props=_PAGE_PROPS.value,
        items_per_site=_ITEMS.value,
        rules=_RULES.value,
    )
    report = read_wikipedia(inputs, _OUTPUT.value, _SETTINGS.value(), arguments[1:])
    for problem in report["input_problems"]:
        print(f"warning: {problem}; the pages before and after it were read", file=sys.stderr)
    pages = sum(sum(outcomes.values()) for outcomes in report["pages"].values())
    print(
        f"{_OUTPUT.value}: {pages:,} pages, {report['entities']:,} entities, "
        f"{report['mentions']:,} mentions in passages, {report['given_up']:,} given up",
        file=sys.stderr,
    )


if __name__ == "__main__":
    run(main, takes_arguments=True, is_resumable=lambda: True)
