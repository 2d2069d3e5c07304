"""Scores a look-up without a model: mentions are compared with titles and aliases of entities.

    python -m benchmarks.floors --catalogue runs/catalogue/catalogue.arrow \\
        --train data/questions/webqsp/train.jsonl --questions data/questions/webqsp/test.jsonl

"Title match" is the share of gold mentions whose text is a title and whose gold entity is the first
entity with that title. "Title or alias recall" is the share whose text is the title or an alias of
the gold entity. Case is ignored.
"""

from __future__ import annotations

from absl import flags

from elq_jax.cli.run import run
from elq_jax.entities.catalogue import Catalogue
from elq_jax.questions.read import read_questions

_CATALOGUE = flags.DEFINE_string("catalogue", None, "Path of catalogue.arrow.", required=True)
_TRAIN = flags.DEFINE_string("train", None, "Path of the training questions.", required=True)
_QUESTIONS = flags.DEFINE_string("questions", None, "Path of the test questions.", required=True)


def main(arguments: list[str]) -> None:
    """Prints the scores."""
    del arguments
    catalogue = Catalogue.open(_CATALOGUE.value)
    train, _ = read_questions(_TRAIN.value, catalogue)
    questions, _ = read_questions(_QUESTIONS.value, catalogue)
    seen = {mention.row for question in train for mention in question.mentions}
    first_of_title: dict[str, int] = {}
    for row, title in enumerate(catalogue.titles(range(len(catalogue)))):
        first_of_title.setdefault(title.lower(), row)
    total = titles = recalled = unseen = 0
    for question in questions:
        for mention in question.mentions:
            surface = question.text[mention.start : mention.end].lower()
            entity = catalogue[mention.row]
            total += 1
            titles += first_of_title.get(surface) == mention.row
            names = {name.lower() for name in (entity.title, *entity.aliases)}
            recalled += surface in names
            unseen += mention.row not in seen
    print(f"{total} gold mentions; title match {titles / total:.3f}")
    print(f"title or alias recall {recalled / total:.3f}")
    print(f"entities unseen in training {unseen / total:.3f}")


if __name__ == "__main__":
    run(main)
