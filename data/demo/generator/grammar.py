"""Story sentences that exercise grammar, and the same sentences broken in one place (minimal pairs, as in BLiMP)."""

from __future__ import annotations

import random
from collections.abc import Callable

WOMEN = {"woman": "women", "girl": "girls", "aunt": "aunts", "queen": "queens", "daughter": "daughters", "nurse": "nurses"}
MEN = {"man": "men", "boy": "boys", "uncle": "uncles", "king": "kings", "son": "sons", "monk": "monks"}
ANYONE = {
    "baker": "bakers", "farmer": "farmers", "miller": "millers", "painter": "painters", "pilot": "pilots",
    "sailor": "sailors", "singer": "singers", "teacher": "teachers", "traveller": "travellers", "weaver": "weavers",
}  # fmt: skip
PEOPLE = WOMEN | MEN | ANYONE
THINGS = {
    "basket": "baskets", "bell": "bells", "boat": "boats", "book": "books", "bridge": "bridges", "candle": "candles",
    "chair": "chairs", "clock": "clocks", "door": "doors", "garden": "gardens", "gate": "gates", "kettle": "kettles",
    "ladder": "ladders", "lantern": "lanterns", "letter": "letters", "mirror": "mirrors", "tower": "towers",
    "wagon": "wagons", "wall": "walls", "window": "windows",
}  # fmt: skip
INTRANSITIVE = {
    "dances": "dance", "laughs": "laugh", "listens": "listen", "rests": "rest", "sings": "sing", "sleeps": "sleep",
    "smiles": "smile", "waits": "wait", "walks": "walk", "whistles": "whistle", "works": "work", "wonders": "wonder",
}  # fmt: skip
TRANSITIVE = {
    "admires": "admire", "calls": "call", "follows": "follow", "greets": "greet", "helps": "help", "knows": "know",
    "likes": "like", "remembers": "remember", "thanks": "thank", "trusts": "trust", "visits": "visit",
}  # fmt: skip
PAST_ON_THING = ("admired", "bought", "carried", "cleaned", "fixed", "found", "moved", "painted", "sold", "touched")
PARTICIPLES = {
    "broken": "broke", "drawn": "drew", "forgotten": "forgot", "given away": "gave away", "hidden": "hid",
    "stolen": "stole", "taken": "took", "written about": "wrote about",
}  # fmt: skip
REFLEXIVE_PAST = ("admired", "blamed", "calmed", "dressed", "hid", "hurt", "praised", "saw", "taught", "warmed", "washed")
ADVERBS = ("calmly", "carefully", "gently", "gladly", "loudly", "proudly", "quickly", "quietly", "slowly", "softly")
ADJECTIVES = ("bright", "broken", "clean", "cold", "dusty", "heavy", "large", "new", "old", "small", "strange", "warm")
PLACES = (
    "after the rain", "at noon", "before breakfast", "behind the mill", "by the fire", "in the garden", "in the morning",
    "in the old town", "near the bridge", "near the market", "on the hill", "under the apple tree",
)  # fmt: skip
Pair = tuple[str, str]


def _noun(rng: random.Random, table: dict[str, str], plural: bool) -> str:
    singular = rng.choice(list(table))
    return table[singular] if plural else singular


def _verb(table: dict[str, str], singular: str, plural: bool) -> str:
    return table[singular] if plural else singular


def agreement(rng: random.Random) -> Pair:
    """Subject and verb stand side by side."""
    plural, verb, place = rng.random() < 0.5, rng.choice(list(INTRANSITIVE)), rng.choice(PLACES)
    start = f"The {rng.choice(('kind', 'old', 'tall', 'young'))} {_noun(rng, PEOPLE, plural)}"
    return tuple(f"{start} {_verb(INTRANSITIVE, verb, p)} {place}." for p in (plural, not plural))


def agreement_across_relative(rng: random.Random) -> Pair:
    """A relative clause with a noun of the other number stands between subject and verb."""
    plural, verb, inner = rng.random() < 0.5, rng.choice(list(INTRANSITIVE)), rng.choice(list(TRANSITIVE))
    other = f"the {_noun(rng, PEOPLE, not plural)} {_verb(TRANSITIVE, inner, not plural)}"
    start = f"The {_noun(rng, PEOPLE, plural)} that {other}"
    adverb = rng.choice(ADVERBS)
    return tuple(f"{start} {_verb(INTRANSITIVE, verb, p)} {adverb}." for p in (plural, not plural))


def agreement_across_phrase(rng: random.Random) -> Pair:
    """A prepositional phrase with a noun of the other number stands between subject and verb."""
    plural, near = rng.random() < 0.5, rng.choice(("near", "behind", "beside", "under"))
    start = f"The {_noun(rng, THINGS, plural)} {near} the {_noun(rng, THINGS, not plural)}"
    end = f"very {rng.choice(ADJECTIVES)}."
    return tuple(f"{start} {'are' if p else 'is'} {end}" for p in (plural, not plural))


def reflexive_gender(rng: random.Random) -> Pair:
    """A reflexive agrees with its subject in gender."""
    female, verb, place = rng.random() < 0.5, rng.choice(REFLEXIVE_PAST), rng.choice(PLACES)
    start = f"The {rng.choice(list(WOMEN if female else MEN))} {rng.choice(ADVERBS)} {verb}"
    return tuple(f"{start} {'herself' if f else 'himself'} {place}." for f in (female, not female))


def reflexive_number(rng: random.Random) -> Pair:
    """A reflexive agrees with its subject in number."""
    female, plural, verb = rng.random() < 0.5, rng.random() < 0.5, rng.choice(REFLEXIVE_PAST)
    noun, place = _noun(rng, WOMEN if female else MEN, plural), rng.choice(PLACES)
    one, start = "herself" if female else "himself", f"The {noun} {rng.choice(ADVERBS)} {verb}"
    return tuple(f"{start} {'themselves' if p else one} {place}." for p in (plural, not plural))


def determiner(rng: random.Random) -> Pair:
    """A demonstrative agrees with its noun."""
    plural, close = rng.random() < 0.5, rng.random() < 0.5
    start = f"The {_noun(rng, PEOPLE, rng.random() < 0.5)} {rng.choice(PAST_ON_THING)}"
    noun, place = _noun(rng, THINGS, plural), rng.choice(PLACES)
    words = ("this", "these") if close else ("that", "those")
    return tuple(f"{start} {words[p]} {noun} {place}." for p in (plural, not plural))


def negative_polarity(rng: random.Random) -> Pair:
    """'ever' needs a negative subject."""
    noun, thing, verb = rng.choice(list(PEOPLE)), rng.choice(list(THINGS)), rng.choice(PAST_ON_THING)
    return tuple(f"{subject} {noun} has ever {verb} that {thing}." for subject in ("No", "Some"))


def adverb_place(rng: random.Random) -> Pair:
    """An adverb does not stand between a verb and its object."""
    start, adverb = f"The {_noun(rng, PEOPLE, rng.random() < 0.5)}", rng.choice(ADVERBS)
    verb, thing = rng.choice(PAST_ON_THING), f"the {rng.choice(ADJECTIVES)} {rng.choice(list(THINGS))}"
    return f"{start} {adverb} {verb} {thing}.", f"{start} {verb} {adverb} {thing}."


def existential(rng: random.Random) -> Pair:
    """'There is' and 'there are' agree with what follows."""
    plural, place = rng.random() < 0.5, rng.choice(PLACES)
    noun = f"many {_noun(rng, THINGS, True)}" if plural else f"one {rng.choice(list(THINGS))}"
    adjective = rng.choice(ADJECTIVES)
    noun = noun.replace(" ", f" {adjective} ", 1)
    return tuple(f"There {'are' if p else 'is'} {noun} {place}." for p in (plural, not plural))


def participle(rng: random.Random) -> Pair:
    """A passive takes the participle, not the past form."""
    plural, form = rng.random() < 0.5, rng.choice(list(PARTICIPLES))
    start = f"The {_noun(rng, THINGS, plural)} {'were' if plural else 'was'}"
    people, place = _noun(rng, PEOPLE, rng.random() < 0.5), rng.choice(PLACES)
    return tuple(f"{start} {word} by the {people} {place}." for word in (form, PARTICIPLES[form]))


PHENOMENA: dict[str, Callable[[random.Random], Pair]] = {
    f.__name__: f
    for f in (
        agreement, agreement_across_relative, agreement_across_phrase, reflexive_gender, reflexive_number,
        determiner, negative_polarity, adverb_place, existential, participle,
    )
}  # fmt: skip

OPENINGS = (
    "Long ago, {name} came to a quiet valley.", "One winter {name} could not sleep.",
    "{name} had a small house near the market.", "Every spring {name} walked to the sea.",
    "On a grey morning {name} opened the door.", "Nobody knew why {name} had come back.",
)  # fmt: skip
ENDINGS = (
    "At last {name} went home.", "{name} never forgot that day.", "Then {name} closed the window and slept.",
    "And so {name} found a friend.", "{name} laughed, and the story was over.",
)  # fmt: skip


def story(rng: random.Random, names: list[str], allowed: Callable[[str], bool]) -> str:
    """A short tale of 5 to 9 sentences; `allowed` says which grammatical sentences may occur."""
    name, sentences = rng.choice(names), []
    while len(sentences) < rng.randint(3, 7):
        good = PHENOMENA[rng.choice(list(PHENOMENA))](rng)[0]
        if allowed(good):
            sentences.append(good)
    return " ".join([rng.choice(OPENINGS).format(name=name), *sentences, rng.choice(ENDINGS).format(name=name)])
