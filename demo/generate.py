"""Writes train.jsonl and dev.jsonl of the demo from the hand-edited files of this folder.

    python demo/generate.py

Sources:

* ``catalogue.jsonl``: the entities;
* ``questions.txt``: questions written by hand, mentions marked ``[[surface|Title]]``;
* ``names.tsv``: for each entity its kind, the names that fit the templates of that kind, and
  ``dev`` for the held-out entities, which are never the gold of a training question;
* ``facts.tsv``: pairs of entities for the templates with two mentions.

Every choice is made by hashing instead of a random number generator, so the output is the same byte
for byte everywhere, and an added question changes few other lines. A question that mentions a
held-out entity goes to dev. Dev is then filled up with questions about the other entities until
exactly half of its mentions link to entities never seen in training. Templates are for either
train or dev, never both.
"""

import hashlib
import json
import pathlib
import re
from collections import Counter
from typing import NamedTuple, TypeVar

HERE = pathlib.Path(__file__).resolve().parent
MARK = re.compile(r"\[\[([^|\]]+)\|([^\]]+)\]\]")
TEMPLATES_PER_ENTITY = 2  # in train

# {x} is the name; kinds as in names.tsv. Each template fits every entity of its kind and, where
# a name is shared (the planet and the metal, the film and the ship), tells which one is meant.
TRAIN_TEMPLATES: dict[str, tuple[str, ...]] = {
    "actor": (
        "What movies did {x} star in?",
        "Who was {x} married to?",
        "What was the first film of {x}?",
        "Which awards has the actor {x} won?",
        "How tall is {x} the movie star?",
        "What is the best film with {x} in it?",
    ),
    "album": (
        "How many songs are on the album {x}?",
        "Who produced the record {x}?",
        "What year was the album {x} released?",
    ),
    "ancient_city": ("Where are the ruins of {x}?", "Which king ruled {x}?"),
    "animal": (
        "How long does a {x} live?",
        "What does a {x} eat?",
        "Where does the {x} live in the wild?",
        "How fast can a {x} run?",
    ),
    "artist": (
        "What are the most famous paintings by {x}?",
        "Where was {x} born?",
        "Who taught {x} to paint?",
        "Which museum has the most pictures by {x}?",
        "How much does a drawing by {x} cost?",
    ),
    "athlete": (
        "What is {x} famous for in sport?",
        "When did {x} win his first title?",
        "How much money did {x} earn as an athlete?",
        "Who was the coach of {x}?",
        "What records does {x} hold?",
        "How old was {x} when he turned professional?",
    ),
    "author": (
        "What books did {x} write?",
        "What is the best novel or story by {x}?",
        "In which house did the writer {x} live?",
        "Which writers influenced {x}?",
        "What was the last work of {x}?",
        "When did {x} start writing?",
        "Who was the publisher of {x}?",
    ),
    "band": (
        "What instruments do the members of {x} play?",
        "What is the best song by {x}?",
        "When did the members of {x} first meet?",
        "How many albums did {x} release?",
        "What kind of music do {x} play?",
        "Where did {x} give their first concert?",
        "Are {x} still touring?",
    ),
    "book": (
        "Who is the author of {x}?",
        "What is the book {x} about?",
        "How many chapters does the book {x} have?",
        "How long does it take to read {x}?",
        "Who are the main characters in the book {x}?",
        "When was {x} first published?",
        "What is the first sentence of the book {x}?",
    ),
    "businessperson": (
        "How did {x} get rich?",
        "What companies did {x} start?",
        "How much money does {x} have?",
        "What is a good biography of {x}?",
        "Where did the businessman {x} grow up?",
    ),
    "character": (
        "Who created {x}?",
        "Which actor was the best {x}?",
        "Who is the best friend of {x}?",
        "Where does {x} live in the stories?",
        "When did {x} first appear?",
    ),
    "city": (
        "What is the population of {x}?",
        "What are the best things to do in {x}?",
        "What time is it in {x}?",
        "Who is the mayor of {x}?",
        "What airport do I fly into for {x}?",
        "How is the weather in {x} in May?",
        "Where should I stay in {x}?",
        "What river runs through {x}?",
        "Is {x} a safe city?",
    ),
    "company": (
        "Who owns {x}?",
        "How many people work at {x}?",
        "What is the stock price of {x}?",
        "Where is the head office of {x}?",
        "Who founded the company {x}?",
        "How do I apply for a job at {x}?",
        "What was the profit of {x} last year?",
    ),
    "composer": (
        "What is the most famous piece by {x}?",
        "Where was the composer {x} born?",
        "What music did {x} compose?",
        "Who taught {x} music?",
    ),
    "country": (
        "What is the population of {x}?",
        "What currency do they use in {x}?",
        "What languages are spoken in {x}?",
        "What is the capital city of {x}?",
        "What is the biggest city in {x}?",
        "Do I need a visa to travel to {x}?",
        "What is the national dish of {x}?",
        "Who is the leader of {x} now?",
        "What religion do most people in {x} have?",
        "When is the best time to visit {x}?",
    ),
    "director": (
        "What films did {x} direct?",
        "Which actors does {x} like to work with?",
        "Has {x} ever won an Oscar?",
        "What was the first movie directed by {x}?",
        "What is the next film by {x}?",
    ),
    "element": (
        "What is the chemical symbol of {x}?",
        "What is the atomic number of {x}?",
        "Is {x} heavier than water?",
        "How is {x} produced?",
        "What is the melting point of {x}?",
    ),
    "empire": (
        "How long did {x} last?",
        "What was the capital of {x}?",
        "Which languages were spoken in {x}?",
    ),
    "event": (
        "When does {x} start this year?",
        "Who won {x} last time?",
        "How do I get tickets for {x}?",
        "In which city was {x} held last time?",
    ),
    "explorer": (
        "What did {x} discover?",
        "Where did {x} travel to?",
        "When was {x} born?",
        "What is {x} remembered for?",
    ),
    "film": (
        "Who directed the movie {x}?",
        "What year did the film {x} come out?",
        "How long is the movie {x}?",
        "Who plays the main character in the movie {x}?",
        "Where can I watch the film {x}?",
        "Who wrote the screenplay of {x}?",
        "What happens at the end of the film {x}?",
        "How many Oscars did the movie {x} win?",
    ),
    "food": (
        "How many calories are in {x}?",
        "Is {x} good for you?",
        "Which country is {x} from?",
        "How is {x} made?",
        "Can dogs have {x}?",
    ),
    "game": ("What are the rules of {x}?", "Who invented {x}?", "How do I get better at {x}?"),
    "god": (
        "What is {x} the god of?",
        "What are the symbols of {x}?",
        "What are the best known myths about {x}?",
        "Who are the parents of {x} in myth?",
    ),
    "greek_hero": (
        "How did {x} die in Greek myth?",
        "Who was the father of the hero {x}?",
        "What monsters did {x} fight?",
    ),
    "invention": ("How does {x} work?", "When was {x} invented?"),
    "island": (
        "What is the highest mountain on the island of {x}?",
        "What are the beaches like on the island of {x}?",
        "How big is the island of {x}?",
        "What animals live on the island of {x}?",
    ),
    "landmark": (
        "How old is {x}?",
        "Who designed {x}?",
        "How much does it cost to visit {x}?",
        "When was {x} built?",
        "What are the opening hours of {x}?",
    ),
    "language": (
        "How do you say thank you in {x}?",
        "What are the most useful phrases in {x}?",
        "Is {x} hard to learn?",
        "How do you count to ten in {x}?",
    ),
    "mountain": ("How high is {x}?", "How long does it take to climb {x}?"),
    "musical": (
        "How much are tickets for the musical {x}?",
        "Who is in the cast of the musical {x}?",
        "What is the musical {x} about?",
    ),
    "musician": (
        "What is the most popular song by {x}?",
        "What songs did {x} sing?",
        "When was the singer {x} born?",
        "How many records did {x} sell?",
        "What was the first album of {x}?",
        "Which awards did {x} win for music?",
        "Where did {x} grow up?",
        "Who wrote the songs of {x}?",
    ),
    "nature": (
        "Where is {x}?",
        "What is the best time of the year to see {x}?",
        "How was {x} formed?",
        "How big is {x}?",
    ),
    "organisation": ("How do I get a job at {x}?", "Who is the head of {x}?"),
    "painting": (
        "Who painted {x}?",
        "Where is the painting {x} now?",
        "What is so special about the painting {x}?",
    ),
    "philosopher": (
        "What did {x} believe?",
        "What is a famous quote by {x}?",
        "Who were the students of {x}?",
        "When did the philosopher {x} live?",
    ),
    "planet": (
        "How far is {x} from the earth?",
        "What is the temperature on the surface of {x}?",
        "How big is {x} compared to the earth?",
        "How long is a day on {x}?",
        "When can I see {x} in the night sky?",
        "Has a probe ever landed on {x}?",
    ),
    "play": (
        "Who wrote the play {x}?",
        "What is the plot of {x}?",
        "How many acts does the play {x} have?",
        "Which film version of the play {x} is the best?",
    ),
    "politician": (
        "What did {x} do for his country?",
        "When was {x} born?",
        "What political party was {x} in?",
        "Who was {x} married to?",
        "What is a famous speech by {x}?",
        "Where did {x} go to school?",
        "How did {x} become a leader?",
    ),
    "programming_language": (
        "How do I print a string in {x}?",
        "What does a class look like in {x}?",
        "Which editor is best for writing {x} code?",
        "How do I catch an exception in {x}?",
    ),
    "religion": (
        "Where did {x} begin?",
        "What do people believe in {x}?",
        "What are the main holidays of {x}?",
    ),
    "river": (
        "How long is {x}?",
        "Which countries or states does {x} flow through?",
        "Where does {x} begin?",
        "Can you swim in {x}?",
        "How deep is {x}?",
    ),
    "ruler": (
        "When did {x} come to power?",
        "Who were the children of {x}?",
        "What did {x} look like?",
        "Who ruled after {x}?",
        "How old was {x} at the start of the reign?",
    ),
    "science": ("What is {x} in simple words?", "How was {x} discovered?"),
    "scientist": (
        "What did {x} discover or invent?",
        "Where did {x} study?",
        "What are the most important works of {x}?",
        "Why is the scientist {x} famous?",
        "Which prizes did {x} get?",
        "Who worked together with {x}?",
    ),
    "ship": ("How long was {x} in metres?", "Who built the ship {x}?"),
    "song": ("Who sings {x}?", "What are the lyrics of {x}?", "When was the song {x} recorded?"),
    "spaceflight": ("Who were the astronauts of {x}?", "When was {x} launched?"),
    "sport": (
        "How many players are there in {x}?",
        "What are the basic rules of {x}?",
        "Where was {x} invented?",
        "Who are the best {x} players ever?",
    ),
    "team": (
        "Who is the coach of {x}?",
        "What stadium or arena do {x} play in?",
        "When did {x} last win a championship?",
        "Who owns {x}?",
        "What is the score of {x} tonight?",
        "Which players have left {x} this season?",
    ),
    "town": (
        "How many people live in {x}?",
        "What are the schools like in {x}?",
        "What is there to see in {x}?",
        "What are good restaurants in {x}?",
    ),
    "tv": (
        "How many episodes of {x} are there?",
        "Who made the series {x}?",
        "Where can I watch {x}?",
        "Which channel shows {x}?",
    ),
    "university": (
        "How many students go to {x}?",
        "What do you need to get into {x}?",
        "Who founded {x}?",
        "Which famous people studied at {x}?",
    ),
    "us_state": (
        "Who is the governor of {x}?",
        "What cities are in {x}?",
        "What is the state bird of {x}?",
        "How many counties does {x} have?",
    ),
    "war": (
        "What were the causes of {x}?",
        "When did {x} take place?",
        "Which films are about {x}?",
        "How did {x} begin?",
    ),
}

DEV_TEMPLATES: dict[str, tuple[str, ...]] = {
    "actor": ("Is there a film about the life of {x}?", "What was the last role of {x}?"),
    "album": ("Is the album {x} worth listening to?",),
    "animal": ("How heavy is a {x} when it is born?", "Is the {x} an endangered animal?"),
    "artist": ("What style did {x} paint in?", "How did the painter {x} die?"),
    "athlete": (
        "How many championships did {x} win?",
        "Why did {x} stop competing?",
        "Which sport made {x} a star?",
    ),
    "author": (
        "Which work by {x} should I read first?",
        "What are the themes of the stories of {x}?",
    ),
    "band": ("How did {x} find a name for their band?", "Which singers and players have left {x}?"),
    "book": (
        "Is the book {x} suitable for children?",
        "What is a good summary of the novel {x}?",
        "Why is {x} considered great literature?",
    ),
    "businessperson": ("What was the first business of {x}?", "Is {x} a self-made man?"),
    "character": ("What does {x} look like?", "What makes {x} so popular?"),
    "city": (
        "How do I get around in {x} without a car?",
        "What food should I try in {x}?",
        "Which neighbourhood of {x} is the nicest?",
    ),
    "company": ("What products does {x} make?", "Is it a good idea to buy shares of {x}?"),
    "composer": ("Which pieces by {x} are good for beginners?",),
    "country": (
        "What are the neighbours of {x}?",
        "What does the flag of {x} look like?",
        "How do people in {x} celebrate the new year?",
    ),
    "director": ("Which movies by {x} should I see?", "Where did {x} learn to make films?"),
    "element": ("What is {x} used for in industry?", "Who was the first to isolate {x} in a lab?"),
    "empire": ("Which wars ended {x}?",),
    "event": ("How many people watch {x} on television?",),
    "explorer": ("Was {x} ever married?", "Which journeys made {x} famous?"),
    "film": (
        "Who composed the music for the movie {x}?",
        "What is the film {x} about?",
        "How much did it cost to make the movie {x}?",
    ),
    "food": ("How should I store {x}?", "Why do people love {x} so much?"),
    "god": ("How did people worship {x}?",),
    "greek_hero": ("Which ancient poets tell of {x}?",),
    "island": ("What is the climate like on the island of {x}?",),
    "landmark": ("How many tourists go to {x} every year?", "Is {x} a world heritage site?"),
    "language": ("Which alphabet is used for {x}?",),
    "musician": (
        "Which tour of {x} was the biggest?",
        "Who discovered the singer {x}?",
        "What did {x} do before becoming famous?",
    ),
    "nature": ("Why is {x} so famous?",),
    "painting": ("When was {x} painted?",),
    "philosopher": ("Which books about {x} are easy to read?",),
    "planet": ("Could humans live on {x}?", "Who was the first to look at {x} with a telescope?"),
    "play": ("How long does a performance of {x} last?", "What are the best known lines of {x}?"),
    "politician": (
        "What were the biggest mistakes of {x} in office?",
        "Which books are there about the life of {x}?",
        "What was the youth of {x} like?",
    ),
    "programming_language": ("How do I compare two strings in {x}?", "Which jobs need {x} skills?"),
    "river": ("Which cities lie on {x}?",),
    "ruler": ("Was {x} a good ruler?", "In which palace did {x} live?"),
    "scientist": ("How did {x} change science?", "What was the childhood of {x} like?"),
    "song": ("Is the song {x} hard to sing?",),
    "sport": ("How long does a match of {x} take?",),
    "team": ("Who is the best player of {x} ever?", "What colours do {x} wear?"),
    "town": ("Is {x} a nice place to live?", "What is the history of {x}?"),
    "tv": ("How old are the fans of {x}?",),
    "university": ("What is the campus of {x} like?",),
    "us_state": ("How high are the taxes in {x}?",),
    "war": ("How many people took part in {x}?",),
}

# {a} and {b}: subject and object of a line of facts.tsv.
TRAIN_FACT_TEMPLATES: dict[str, tuple[str, ...]] = {
    "wrote": ("When did {a} write {b}?", "Why did {a} write {b}?", "Did {a} really write {b}?"),
    "directed": ("Did {a} direct {b}?", "What did {a} change in the script of {b}?"),
    "acted in": ("Who does {a} play in {b}?", "How old was {a} in {b}?"),
    "was a member of": ("What did {a} play in {b}?", "When did {a} join {b}?"),
    "played for": ("When did {a} play for {b}?", "Why did {a} leave {b}?"),
    "painted": ("When did {a} paint {b}?", "How long did {a} work on {b}?"),
    "founded": ("How did {a} start {b}?", "When did {a} found {b}?"),
    "lies in": ("What part of {b} is {a} in?", "How do I get to {a} in {b}?"),
    "stands in": ("Where exactly is {a} in {b}?", "Who put up {a} in {b}?"),
    "borders": (
        "How long is the border of {a} with {b}?",
        "Do I need a passport to go from {a} to {b}?",
    ),
    "may be larger than": ("Is {a} bigger than {b}?", "Which is larger, {a} or {b}?"),
    "is spoken in": ("Do people speak {a} in {b}?", "Why do they speak {a} in {b}?"),
    "ruled": ("How long did {a} rule {b}?", "When was {a} in power in {b}?"),
    "led": ("When was {a} the leader of {b}?", "What did {a} change in {b}?"),
    "fought in": ("Was {a} in {b}?", "How did {b} change {a}?"),
    "is like": ("Which is worth more, {a} or {b}?", "Does {a} earn more than {b}?"),
    "plays against": ("How often did {a} beat {b}?", "Who won the last game of {a} against {b}?"),
    "met": ("Did {a} ever meet {b}?", "Did {a} and {b} know each other?"),
}

DEV_FACT_TEMPLATES: dict[str, tuple[str, ...]] = {
    "wrote": ("How old was {a} when {b} was written?",),
    "directed": ("What do critics say about {b} by {a}?",),
    "acted in": ("How did {a} get the part in {b}?",),
    "played for": ("How many goals did {a} score for {b}?",),
    "painted": ("What did {a} want to say with {b}?",),
    "lies in": ("Is {a} one of the largest cities of {b}?",),
    "stands in": ("Is {a} the most visited sight of {b}?",),
    "borders": ("Which has more mountains, {a} or {b}?",),
    "is spoken in": ("How many people in {b} have {a} as their mother tongue?",),
    "ruled": ("How did {a} come to the throne of {b}?",),
    "led": ("Which problems did {b} have under {a}?",),
    "is like": ("Which brand is better known, {a} or {b}?",),
    "plays against": ("Why are {a} and {b} rivals?",),
    "met": ("What did {a} think of {b}?",),
}

Item = TypeVar("Item")


class Question(NamedTuple):
    """A question with its gold mentions ``(start, end, title)`` in half-open character offsets."""

    id: str
    text: str
    mentions: tuple[tuple[int, int, str], ...]

    @property
    def titles(self) -> set[str]:
        """Returns the titles of the mentioned entities."""
        return {title for _, _, title in self.mentions}


class Names(NamedTuple):
    """One line of names.tsv."""

    kind: str
    held_out: bool
    names: tuple[str, ...]


def draw(*parts: str) -> int:
    """Returns a number that depends on the strings alone."""
    return int.from_bytes(hashlib.sha256("\t".join(parts).encode()).digest()[:8], "big")


def pick(items: tuple[Item, ...], *parts: str, count: int = 1) -> list[Item]:
    """Chooses ``count`` different items, or all if there are fewer, by a hash of ``parts``."""
    return sorted(items, key=lambda item: draw(repr(item), *parts))[:count]


def parse(identifier: str, marked: str) -> Question:
    """Turns ``who wrote [[dune|Dune (novel)]]`` into a question with character offsets."""
    text, mentions, position = "", [], 0
    for match in MARK.finditer(marked):
        text += marked[position : match.start()]
        mentions.append((len(text), len(text) + len(match[1]), match[2]))
        text += match[1]
        position = match.end()
    return Question(identifier, text + marked[position:], tuple(mentions))


def styled(question: Question) -> Question:
    """Types a template question as people do: mostly in lower case without a question mark."""
    choice = draw("style", question.text) % 10
    if choice < 8:
        question = question._replace(text=question.text.lower())
    if choice < 7:
        question = question._replace(text=question.text.removesuffix("?"))
    return question


def fill(template: str, identifier: str, **slots: tuple[str, str]) -> Question:
    """Puts names (slot -> (name, title)) into a template; mentions leave out a leading "the"."""
    for slot, (name, title) in slots.items():
        article = "the " if name.startswith("the ") else ""
        template = template.replace(
            f"{{{slot}}}", f"{article}[[{name.removeprefix('the ')}|{title}]]"
        )
    return styled(parse(identifier, template[0].upper() + template[1:]))


def plain(text: str) -> str:
    """Returns the text in the form in which equal questions are found."""
    return text.casefold().rstrip("?")


def source_lines(name: str) -> list[str]:
    """Returns the lines of a source file without comments and blank lines."""
    lines = (HERE / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def read_names() -> dict[str, Names]:
    """Reads names.tsv: title -> kind, held out or not, names for templates."""
    table = {}
    for line in source_lines("names.tsv"):
        title, kind, split, names = line.split("\t")
        table[title] = Names(kind, split == "dev", tuple(n for n in names.split("; ") if n))
    return table


def written_questions() -> list[Question]:
    """Reads the questions written by hand."""
    lines = source_lines("questions.txt")
    return [parse(f"written-{i:04d}", line) for i, line in enumerate(lines, 1)]


def template_questions(table: dict[str, Names]) -> tuple[list[Question], list[Question]]:
    """Fills the templates and returns (questions for train, candidates for dev)."""
    train, dev = [], []
    for title, entity in table.items():
        if not entity.names:
            continue
        name = pick(entity.names, title)[0]
        other = pick(entity.names, title, count=2)[-1]
        if not entity.held_out:
            templates = TRAIN_TEMPLATES.get(entity.kind, ())
            chosen = pick(templates, "train", title, count=TEMPLATES_PER_ENTITY)
            for template, used in zip(chosen, (name, other), strict=False):
                train.append(fill(template, f"template-{len(train):04d}", x=(used, title)))
        for template in pick(DEV_TEMPLATES.get(entity.kind, ()), "dev", title):
            dev.append(fill(template, f"dev-template-{len(dev):04d}", x=(other, title)))
    for line in source_lines("facts.tsv"):
        subject, relation, thing = line.split("\t")
        slots = {
            "a": (pick(table[subject].names, line)[0], subject),
            "b": (pick(table[thing].names, line)[0], thing),
        }
        if table[subject].held_out or table[thing].held_out:
            template = pick(DEV_FACT_TEMPLATES[relation], line)[0]
            dev.append(fill(template, f"dev-fact-{len(dev):04d}", **slots))
        else:
            template = pick(TRAIN_FACT_TEMPLATES[relation], line)[0]
            train.append(fill(template, f"fact-{len(train):04d}", **slots))
    return train, dev


def split_questions() -> tuple[list[Question], list[Question]]:
    """Returns (train, dev), split by the rules at the head of this file."""
    table = read_names()
    held_out = {title for title, entity in table.items() if entity.held_out}
    written = written_questions()
    known = {plain(question.text) for question in written}
    train, dev_templates = (
        [question for question in questions if plain(question.text) not in known]
        for questions in template_questions(table)
    )

    dev, balance = [], 0  # balance: mentions in dev of held-out entities minus the others
    spare: list[Question] = []  # written questions that may go to either side
    for question in written:
        if question.titles & held_out:
            dev.append(question)
        elif question.mentions:
            spare.append(question)
        elif draw("none", question.text) % 4 == 0:
            dev.append(question)
        else:
            train.append(question)
    for question in dev_templates:
        is_fact = len(question.mentions) > 1
        if question.titles & held_out and (is_fact or draw("half", question.text) % 2):
            dev.append(question)
    for question in dev:
        for _, _, title in question.mentions:
            balance += 1 if title in held_out else -1

    # Fill up with the other entities: three written questions to one from a template, no entity
    # more than once, until both kinds of mentions are equally many.
    remaining = Counter(title for question in spare for title in question.titles)
    used: set[str] = set()
    pool = {
        "written": sorted(spare, key=lambda q: draw("fill", q.text)),
        "template": sorted(
            (q for q in dev_templates if not q.titles & held_out),
            key=lambda q: draw("fill", q.text),
        ),
    }
    turn = 0
    while balance > 0:
        source = pool["template" if turn % 4 == 3 else "written"]
        turn += 1
        for question in source:
            fits = len(question.mentions) <= balance and not question.titles & used
            if fits and all(remaining[title] > 1 for title in question.titles):
                source.remove(question)
                dev.append(question)
                used |= question.titles
                balance -= len(question.mentions)
                break
        else:
            raise RuntimeError("too few questions about entities that are not held out")
    chosen = {question.id for question in dev}
    train += [question for question in spare if question.id not in chosen]

    check(train, dev, held_out)
    return tuple(sorted(side, key=lambda q: draw("order", q.text)) for side in (train, dev))


def check(train: list[Question], dev: list[Question], held_out: set[str]) -> None:
    """Raises a ValueError unless train and dev are disjoint and complete."""
    texts = Counter(plain(question.text) for question in train + dev)
    twice = [text for text, count in texts.items() if count > 1]
    if twice:
        raise ValueError(f"questions that occur twice; keep one of each: {twice}")
    seen = set().union(*(question.titles for question in train))
    if seen & held_out:
        raise ValueError(f"held-out entities in a training question: {sorted(seen & held_out)}")
    lost = set().union(*(question.titles for question in dev)) - held_out - seen
    if lost:
        raise ValueError(f"entities of dev that are in no training question: {sorted(lost)}")


def jsonl(questions: list[Question], wikidata_ids: dict[str, str | None]) -> bytes:
    """Returns JSON lines of the questions, in the form that ``elq_jax.questions.read`` reads."""
    lines = []
    for question in questions:
        titles = [title for _, _, title in question.mentions]
        record = {
            "id": question.id,
            "text": question.text,
            "mentions": [[start, end] for start, end, _ in question.mentions],
            "title": titles,
            "wikidata_id": [wikidata_ids[title] for title in titles],
        }
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    return "".join(lines).encode()


def build() -> dict[str, bytes]:
    """Returns the contents of train.jsonl and dev.jsonl by file name."""
    with open(HERE / "catalogue.jsonl", encoding="utf-8") as file:
        entities = [json.loads(line) for line in file]
    wikidata_ids = {entity["title"]: entity["wikidata_id"] for entity in entities}
    train, dev = split_questions()
    return {"train.jsonl": jsonl(train, wikidata_ids), "dev.jsonl": jsonl(dev, wikidata_ids)}


if __name__ == "__main__":
    for file_name, content in build().items():
        (HERE / file_name).write_bytes(content)
        print(file_name, content.count(b"\n"), "questions")
