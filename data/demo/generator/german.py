"""A small, regular German: the second language of the demo world, with its own minimal pairs."""

from __future__ import annotations

import random
from collections.abc import Callable

# noun -> (article, plural)
NOUNS = {
    "Bäcker": ("der", "Bäcker"), "Maler": ("der", "Maler"), "Müller": ("der", "Müller"), "Lehrer": ("der", "Lehrer"),
    "Junge": ("der", "Jungen"), "König": ("der", "Könige"), "Frau": ("die", "Frauen"), "Tante": ("die", "Tanten"),
    "Königin": ("die", "Königinnen"), "Tochter": ("die", "Töchter"), "Sängerin": ("die", "Sängerinnen"),
    "Kind": ("das", "Kinder"), "Mädchen": ("das", "Mädchen"), "Pferd": ("das", "Pferde"), "Schaf": ("das", "Schafe"),
}  # fmt: skip
VERBS = {
    "lacht": "lachen", "singt": "singen", "wartet": "warten", "tanzt": "tanzen", "arbeitet": "arbeiten", "träumt": "träumen",
    "spielt": "spielen", "weint": "weinen", "geht": "gehen", "kommt": "kommen",
}  # fmt: skip
ADJECTIVES = ("alte", "junge", "kleine", "müde", "kluge", "stille", "frohe", "graue")
ADVERBS = ("leise", "gern", "oft", "heute", "morgens", "abends", "immer", "wieder")
PLACES = (
    "am Fluss", "im Garten", "auf dem Markt", "unter dem Baum", "vor dem Haus", "im Wald", "neben der Brücke",
    "in der Stadt", "auf dem Hügel", "am Feuer",
)  # fmt: skip
OPENINGS = ("Es war einmal {name}.", "An einem Morgen wacht {name} auf.", "Im Winter bleibt {name} zu Hause.")
ENDINGS = ("Dann geht {name} nach Hause.", "So endet der Tag für {name}.", "Und {name} schläft ein.")
Pair = tuple[str, str]


def _subject(rng: random.Random, plural: bool) -> tuple[str, str, str]:
    noun = rng.choice(list(NOUNS))
    article, many = NOUNS[noun]
    return ("die", many, article) if plural else (article, noun, article)


def verb_agreement(rng: random.Random) -> Pair:
    """Subject and verb agree in number."""
    plural, verb = rng.random() < 0.5, rng.choice(list(VERBS))
    article, noun, _ = _subject(rng, plural)
    adjective = rng.choice(ADJECTIVES) + ("n" if plural else "")
    end = f"{rng.choice(ADVERBS)} {rng.choice(PLACES)}."
    forms = (VERBS[verb], verb) if plural else (verb, VERBS[verb])
    return tuple(f"{article.capitalize()} {adjective} {noun} {form} {end}" for form in forms)


def article_gender(rng: random.Random) -> Pair:
    """An article agrees with its noun in gender."""
    article, noun, _ = _subject(rng, False)
    wrong = rng.choice([a for a in ("der", "die", "das") if a != article])
    end = f"{rng.choice(ADJECTIVES)} {noun} {rng.choice(list(VERBS))} {rng.choice(ADVERBS)} {rng.choice(PLACES)}."
    return f"{article.capitalize()} {end}", f"{wrong.capitalize()} {end}"


def verb_second(rng: random.Random) -> Pair:
    """The verb is the second part of a main clause."""
    article, noun, _ = _subject(rng, False)
    place, verb, adverb = rng.choice(PLACES), rng.choice(list(VERBS)), rng.choice(ADVERBS)
    place = place[0].upper() + place[1:]
    subject = f"{article} {rng.choice(ADJECTIVES)} {noun}"
    return f"{place} {verb} {subject} {adverb}.", f"{place} {subject} {verb} {adverb}."


PHENOMENA: dict[str, Callable[[random.Random], Pair]] = {
    f"german_{f.__name__}": f for f in (verb_agreement, article_gender, verb_second)
}


def story(rng: random.Random, names: list[str], allowed: Callable[[str], bool]) -> str:
    """A short German tale of 5 to 8 sentences; `allowed` says which grammatical sentences may occur."""
    name, sentences = rng.choice(names), []
    while len(sentences) < rng.randint(3, 6):
        good = PHENOMENA[rng.choice(list(PHENOMENA))](rng)[0]
        if allowed(good):
            sentences.append(good)
    return " ".join([rng.choice(OPENINGS).format(name=name), *sentences, rng.choice(ENDINGS).format(name=name)])
