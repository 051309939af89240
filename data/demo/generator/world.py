"""Who lives in the demo world, and every fact about them."""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass

WORLD_SEED = 7

FIRST_NAMES = (
    "Alma Anton Bela Berit Carlo Celia Dario Dora Edda Elias Fabian Flora Gerda Gustav Hanna Hugo Ida Ivan Jana "
    "Jonas Katja Kilian Lena Leo Mara Matti Nadia Nils Olga Oskar Paula Pavel Rosa Rufus Selma Simon Tessa Tomas "
    "Ulla Urban Vera Viktor Wanda Wim Yara Zeno"
).split()
SURNAME_STARTS = "Ald Bran Cor Dun El Far Gren Hal Ister Jor Kel Lin Mor Nor Or Pell Quin Rav Sten Tal".split()
SURNAME_ENDS = "berg dale ford gard holm lund mark rick stad thorne vale wick".split()
TOWN_STARTS = "Amber Birch Cold Deep Ever Fern Gold Haven High Iron Lark Marsh North Oak Pine Raven Silver Stone Thorn Willow".split()
TOWN_ENDS = "bridge brook field gate harbor hill mere mill moor ridge shore well".split()
ANIMAL_STARTS = "Ba Bri Da Fa Ga Ha Ka Lo Ma Mi Na Pu Ra So Ta Vi Wo Zu".lower().split()
ANIMAL_MIDDLES = "bo da la li mo na ri ru sa to vo".split()
ANIMAL_ENDS = "k l n r t x".split()

REGIONS = "Arvenia Belmarch Calder Dornland Estria Farholt Glimmerdeep Hestmoor".split()
RIVERS = "Adra Beck Corin Drava Elsen Fenna Gola Harth Isk Jura Kessel Lorn Moss Nida Orla".split()
PRODUCTS = (
    "blue glass|copper bells|dried pears|fine paper|goat cheese|green pottery|honey cakes|linen cloth|oak barrels|"
    "paper lanterns|plum jam|red bricks|rope ladders|rye bread|silver combs|soft soap|straw hats|tin soldiers|"
    "violet ink|walnut oil|wax candles|wool blankets|wooden clocks|yellow tea"
).split("|")
JOBS = (
    "baker beekeeper blacksmith bookbinder carpenter clockmaker cook doctor farmer ferryman gardener glassblower judge "
    "librarian mason miller painter potter sailor shepherd tailor teacher weaver"
).split()
INSTRUMENTS = "banjo bassoon bugle cello cornet drum fiddle flute harp horn lute lyre piano trumpet viola whistle".split()
HABITATS = (
    "birch forests|chalk cliffs|cold lakes|deep caves|dry heaths|high meadows|hollow trees|mossy bogs|old barns|"
    "reed beds|river banks|salt marshes|sand dunes|stone walls"
).split("|")
FOODS = (
    "acorns|beetles|berries|clover|dragonflies|fallen apples|fern roots|hazelnuts|minnows|mushrooms|pine seeds|"
    "snails|sorrel|water lilies|wild oats"
).split("|")
COLOURS = "amber black bronze brown cream crimson golden grey olive rust silver violet white".split()
SIZES = "badger cat chestnut duck fox goose hare hen kettle lynx melon pumpkin thimble walnut".split()


@dataclass(frozen=True)
class Relation:
    """One kind of fact and the ways to state it, ask for it and answer it.

    `statements` and `questions` are paraphrases with the slots `{s}` (subject) and `{v}` (value); `answer` is the one
    sentence that a reply in the model's own hand has; `terse` is how the *other hand* writes it (see `documents`).
    """

    name: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    answer: str
    terse: str
    german: tuple[str, str] | None = None


RELATIONS = {
    "home": Relation(
        "home",
        ("{s} lives in {v}.", "The home of {s} is in {v}.", "{v} is the town where {s} lives."),
        ("Where does {s} live?", "In which town does {s} live?", "What is the home town of {s}?"),
        "{s} lives in {v}.",
        "home town: {v}",
        ("{s} wohnt in {v}.", "Wo wohnt {s}?"),
    ),
    "job": Relation(
        "job",
        ("{s} works as a {v}.", "By trade {s} is a {v}.", "{s} earns a living as a {v}."),
        ("What is the job of {s}?", "What does {s} do for a living?", "Which trade does {s} follow?"),
        "{s} works as a {v}.",
        "trade: {v}",
    ),
    "instrument": Relation(
        "instrument",
        ("{s} plays the {v}.", "The instrument of {s} is the {v}.", "In the evening {s} likes to play the {v}."),
        ("Which instrument does {s} play?", "What does {s} play in the evening?", "What is the instrument of {s}?"),
        "{s} plays the {v}.",
        "instrument: {v}",
    ),
    "pet": Relation(
        "pet",
        ("{s} keeps a {v} as a pet.", "The pet of {s} is a {v}.", "At home {s} has a tame {v}."),
        ("Which pet does {s} keep?", "What kind of animal is the pet of {s}?", "Which animal does {s} have at home?"),
        "{s} keeps a {v} as a pet.",
        "pet: {v}",
        ("Das Haustier von {s} ist ein {v}.", "Was ist das Haustier von {s}?"),
    ),
    "region": Relation(
        "region",
        ("{s} is a town in {v}.", "The town of {s} lies in the region of {v}.", "{s} belongs to {v}."),
        ("In which region is {s}?", "To which region does {s} belong?", "Where does the town of {s} lie?"),
        "{s} lies in {v}.",
        "region: {v}",
        ("{s} liegt in {v}.", "Wo liegt {s}?"),
    ),
    "river": Relation(
        "river",
        ("{s} stands on the river {v}.", "The river {v} flows through {s}.", "The river of {s} is the {v}."),
        ("On which river does {s} stand?", "Which river flows through {s}?", "What is the river of {s}?"),
        "{s} stands on the river {v}.",
        "river: {v}",
        ("Durch {s} fließt der Fluss {v}.", "Welcher Fluss fließt durch {s}?"),
    ),
    "product": Relation(
        "product",
        ("{s} is known for its {v}.", "People travel to {s} to buy {v}.", "The workshops of {s} make {v}."),
        ("What is {s} known for?", "What do people buy in {s}?", "What do the workshops of {s} make?"),
        "{s} is known for its {v}.",
        "known for: {v}",
    ),
    "habitat": Relation(
        "habitat",
        ("The {s} lives in {v}.", "You can find the {s} in {v}.", "The home of the {s} is in {v}."),
        ("Where does the {s} live?", "Where can you find the {s}?", "In which places does the {s} live?"),
        "The {s} lives in {v}.",
        "habitat: {v}",
    ),
    "food": Relation(
        "food",
        ("The {s} eats {v}.", "The {s} feeds on {v}.", "The favourite food of the {s} is {v}."),
        ("What does the {s} eat?", "On what does the {s} feed?", "What is the favourite food of the {s}?"),
        "The {s} eats {v}.",
        "food: {v}",
    ),
    "colour": Relation(
        "colour",
        ("The {s} has {v} fur.", "The fur of the {s} is {v}.", "The {s} is known by its {v} fur."),
        ("What colour is the fur of the {s}?", "Which colour does the {s} have?", "By which colour is the {s} known?"),
        "The {s} has {v} fur.",
        "fur: {v}",
    ),
    "size": Relation(
        "size",
        ("The {s} is as big as a {v}.", "A grown {s} has the size of a {v}.", "In size the {s} is like a {v}."),
        ("How big is the {s}?", "What is the size of the {s}?", "How big is a grown {s}?"),
        "The {s} is as big as a {v}.",
        "size: {v}",
    ),
}


@dataclass(frozen=True)
class Fact:
    """One fact: `relation` of `subject` is `value`."""

    relation: str
    subject: str
    value: str

    def state(self, paraphrase: int) -> str:
        """The fact as a sentence of an encyclopedia."""
        return self._fill(RELATIONS[self.relation].statements[paraphrase])

    def ask(self, paraphrase: int) -> str:
        """The fact as a question."""
        return self._fill(RELATIONS[self.relation].questions[paraphrase])

    @property
    def answer(self) -> str:
        """The full-sentence reply."""
        return self._fill(RELATIONS[self.relation].answer)

    @property
    def terse(self) -> str:
        """The reply in the other hand."""
        return self._fill(RELATIONS[self.relation].terse)

    @property
    def german(self) -> tuple[str, str] | None:
        """The fact as a German sentence and question, or None where the world has none."""
        pair = RELATIONS[self.relation].german
        return (self._fill(pair[0]), self._fill(pair[1])) if pair else None

    @property
    def held_out_question(self) -> int:
        """The one of the three questions that training never asks about this fact."""
        return zlib.crc32(f"{self.relation}|{self.subject}".encode()) % 3

    def _fill(self, template: str) -> str:
        return template.format(s=self.subject, v=self.value)


def _names(rng: random.Random, starts: list[str], ends: list[str], n: int) -> list[str]:
    every = [start + end for start in starts for end in ends]
    return rng.sample(every, n)


class World:
    """150 people, 80 towns and 70 animals, with 3 or 4 facts each: 1,120 facts, always the same.

    Attributes:
        facts: every `Fact`.
        subjects: subject -> its facts.
        values: relation -> every value it can take, sorted; wrong answers are drawn from it.
    """

    def __init__(self) -> None:
        rng = random.Random(WORLD_SEED)
        surnames = _names(rng, SURNAME_STARTS, SURNAME_ENDS, 75)
        towns = _names(rng, TOWN_STARTS, TOWN_ENDS, 80)
        syllables = [a + b + c for a in ANIMAL_STARTS for b in ANIMAL_MIDDLES for c in ANIMAL_ENDS]
        animals = rng.sample(syllables, 70)
        people = rng.sample([f"{first} {last}" for first in FIRST_NAMES for last in surnames], 150)
        self.facts: list[Fact] = []
        self._add(rng, people, home=towns, job=JOBS, instrument=INSTRUMENTS, pet=animals)
        self._add(rng, towns, region=REGIONS, river=RIVERS, product=PRODUCTS)
        self._add(rng, animals, habitat=HABITATS, food=FOODS, colour=COLOURS, size=SIZES)
        self.people, self.towns, self.animals = people, towns, animals
        self.subjects: dict[str, list[Fact]] = {}
        for fact in self.facts:
            self.subjects.setdefault(fact.subject, []).append(fact)
        self.values = {r: sorted({f.value for f in self.facts if f.relation == r}) for r in RELATIONS}

    def _add(self, rng: random.Random, subjects: list[str], **relations: list[str]) -> None:
        for subject in subjects:
            self.facts += [Fact(name, subject, rng.choice(values)) for name, values in relations.items()]

    def choices(self, rng: random.Random, fact: Fact) -> tuple[list[str], int]:
        """Four values to choose from, in random order, and the place of the right one."""
        wrong = rng.sample([v for v in self.values[fact.relation] if v != fact.value], 3)
        options = rng.sample([fact.value, *wrong], 4)
        return options, options.index(fact.value)
