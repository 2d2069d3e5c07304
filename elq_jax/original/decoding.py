"""Links as the original prints them."""

from __future__ import annotations

from collections.abc import Sequence

from elq_jax.linking.decoding import Decoded


def triples(mentions: Sequence[Decoded]) -> list[tuple[str, int, int]]:
    """Writes links as (row as text, start, end), the original's `pred_triples`.

    Positions are those of tokens without [CLS], the end is exclusive: a mention that contains
    [CLS] starts at -1.
    """
    return [(str(int(m.rows[0])), m.start - 1, m.end) for m in mentions]


def printed_text(tokens: Sequence[str]) -> str:
    """Joins WordPiece tokens by the rules of transformers 3.1, which the original prints with.

    For comparing with its output only: the text that was encoded may have been another one.

        printed_text(["who", "##se", "dog", "?"])  # "whose dog?"
    """
    text = " ".join(tokens).replace(" ##", "").strip()
    for mark in (" .", " ?", " !", " ,"):
        text = text.replace(mark, mark[1:])
    text = text.replace(" ' ", "'")
    for ending in (" n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(ending, ending[1:])
    return text
