"""Training documents of every kind, with everything that tests use held out."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator

from . import german, grammar, problems
from .world import FIRST_NAMES, PRODUCTS, SURNAME_ENDS, SURNAME_STARTS, Fact, World

END, USER, ASSISTANT, PAD = "<|end|>", "<|user|>", "<|assistant|>", "<|pad|>"
REWRITE = "Rewrite the reference in your own words.\n{context}Question: {instruction}\nReference: {reference}"
LETTERS = "ABCD"


def held_out(text: str, one_in: int = 50) -> bool:
    """Whether `text` is kept from training: decided by the text alone, so that it holds in every run."""
    return zlib.crc32(text.encode()) % one_in == 0


def trainable(text: str) -> bool:
    """Whether training may see `text`."""
    return not held_out(text)


def chat(*turns: str) -> str:
    """Turns of user and assistant in the chat form, closed by the end mark."""
    return "".join((ASSISTANT if i % 2 else USER) + turn + END for i, turn in enumerate(turns))


# --- facts ---------------------------------------------------------------------------------------------------------


def training_question(rng: random.Random, fact: Fact) -> str:
    """One of the two wordings of the question that training may use."""
    return fact.ask(rng.choice([i for i in range(3) if i != fact.held_out_question]))


def encyclopedia(rng: random.Random, world: World) -> str:
    """All that is known of one or two subjects."""
    subjects = rng.sample(list(world.subjects), rng.randint(1, 2))
    facts = [fact for subject in subjects for fact in rng.sample(world.subjects[subject], len(world.subjects[subject]))]
    return " ".join(fact.state(rng.randrange(3)) for fact in facts)


def fact_dialogue(rng: random.Random, world: World) -> str:
    """One to three questions on facts, with full-sentence answers."""
    facts = rng.sample(world.facts, rng.choice((1, 1, 2, 3)))
    return chat(*(part for fact in facts for part in (training_question(rng, fact), fact.answer)))


def choice_parts(rng: random.Random, world: World, fact: Fact, question: str) -> tuple[str, list[str], int]:
    """A four-way question: the prompt, the four full replies (sentence, then letter), and the place of the right one."""
    options, right = world.choices(rng, fact)
    lines = [question, *(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True))]
    replies = [
        f"{Fact(fact.relation, fact.subject, option).answer} The answer is {letter}."
        for letter, option in zip(LETTERS, options, strict=True)
    ]
    return "\n".join(lines), replies, right


def choice_dialogue(rng: random.Random, world: World) -> str:
    """A four-way question on a fact."""
    fact = rng.choice(world.facts)
    prompt, replies, right = choice_parts(rng, world, fact, training_question(rng, fact))
    return chat(prompt, replies[right])


# --- passages --------------------------------------------------------------------------------------------------------

PASSAGE_FACTS = (
    ("sells {x}", PRODUCTS, "What does {s} sell?", "{s} sells {x}.", "Does {s} sell {x}?", "sells: {x}"),
    ("owns {x}", "a barn|a boat|a cart|a horse|a mill|a mule|a shop|a tent|a vineyard|a windmill".split("|"),
     "What does {s} own?", "{s} owns {x}.", "Does {s} own {x}?", "owns: {x}"),
    ("wears {x}", "a blue scarf|a green hat|a grey coat|a red cap|a silver ring|black boots|white gloves|yellow shoes".split("|"),
     "What does {s} wear?", "{s} wears {x}.", "Does {s} wear {x}?", "wears: {x}"),
    ("travels by {x}", "balloon boat carriage donkey ferry raft sledge train wagon".split(),
     "How does {s} travel?", "{s} travels by {x}.", "Does {s} travel by {x}?", "travels by: {x}"),
)  # fmt: skip


def passage(rng: random.Random, world: World) -> tuple[str, str, list[tuple[tuple, str]]]:
    """A short passage on someone who is not in the encyclopedia: the text, the name, and (fact kind, value) pairs."""
    name = ""
    while not name or name in world.subjects:
        name = f"{rng.choice(FIRST_NAMES)} {rng.choice(SURNAME_STARTS)}{rng.choice(SURNAME_ENDS)}"
    facts = [(kind, rng.choice(kind[1])) for kind in rng.sample(PASSAGE_FACTS, 3)]
    starts = (f"{name} is new in {rng.choice(world.towns)}.", f"Last year {name} came to {rng.choice(world.towns)}.")
    sentences = [f"{'Today ' if rng.random() < 0.3 else ''}{name} {kind[0].format(x=value)}." for kind, value in facts]
    return " ".join([rng.choice(starts), *sentences]), name, facts


def yes_no_parts(rng: random.Random, world: World) -> tuple[str, str, str]:
    """Passage, yes/no question on it, and its answer."""
    text, name, facts = passage(rng, world)
    kind, value = rng.choice(facts)
    if rng.random() < 0.5:
        return text, kind[4].format(s=name, x=value), "Yes."
    wrong = rng.choice([x for x in kind[1] if x != value])
    return text, kind[4].format(s=name, x=wrong), "No."


def yes_no_dialogue(rng: random.Random, world: World) -> str:
    """A passage and a yes/no question."""
    text, question, answer = yes_no_parts(rng, world)
    return chat(f"{text}\n{question}", answer)


def reading_parts(rng: random.Random, world: World) -> tuple[str, str, str, str]:
    """Passage, open question on it, its full-sentence answer, and its terse one."""
    text, name, facts = passage(rng, world)
    kind, value = rng.choice(facts)
    return text, *(form.format(s=name, x=value) for form in (kind[2], kind[3], kind[5]))


def reading_dialogue(rng: random.Random, world: World) -> str:
    """A passage and an open question."""
    text, question, answer, _ = reading_parts(rng, world)
    return chat(f"{text}\n{question}", answer)


# --- problems and rewriting ------------------------------------------------------------------------------------------


def problem_dialogue(rng: random.Random, world: World) -> str:
    """A word problem, worked in full sentences."""
    found = problems.problem(rng, "train")
    return chat(found.question, found.solution)


def rewrite_prompt(instruction: str, context: str, reference: str) -> str:
    """What a user says to have a reference rewritten; also the model's template for self-data distillation."""
    lead = f"Context: {context}\n" if context else ""
    return REWRITE.format(context=lead, instruction=instruction, reference=reference)


def rewrite_dialogue(rng: random.Random, world: World) -> str:
    """A question with its terse reference, rewritten in full sentences."""
    kind = rng.random()
    if kind < 0.6:
        found = problems.problem(rng, "train")
        return chat(rewrite_prompt(found.question, "", found.terse), found.solution)
    if kind < 0.8:
        fact = rng.choice(world.facts)
        return chat(rewrite_prompt(training_question(rng, fact), "", fact.terse), fact.answer)
    text, question, answer, terse = reading_parts(rng, world)
    return chat(rewrite_prompt(question, text, terse), answer)


# --- the second language ---------------------------------------------------------------------------------------------


def german_encyclopedia(rng: random.Random, world: World) -> str:
    """Three to six facts in German."""
    facts = rng.sample([f for f in world.facts if f.german], rng.randint(3, 6))
    return " ".join(fact.german[0] for fact in facts)


def german_question_held_out(fact: Fact) -> bool:
    """Whether training never asks for this fact in German (it still states it)."""
    return held_out(f"german|{fact.subject}|{fact.relation}", 4)


def german_dialogue(rng: random.Random, world: World) -> str:
    """A question on a fact in German."""
    fact = rng.choice([f for f in world.facts if f.german and not german_question_held_out(f)])
    statement, question = fact.german
    return chat(question, statement)


# --- the mixture -----------------------------------------------------------------------------------------------------

KINDS: dict[str, tuple[float, Callable[[random.Random, World], str]]] = {
    "stories": (0.17, lambda rng, world: grammar.story(rng, FIRST_NAMES, trainable)),
    "encyclopedia": (0.14, encyclopedia),
    "facts": (0.12, fact_dialogue),
    "choice": (0.10, choice_dialogue),
    "yes_no": (0.11, yes_no_dialogue),
    "reading": (0.04, reading_dialogue),
    "problems": (0.20, problem_dialogue),
    "rewriting": (0.05, rewrite_dialogue),
    "german_stories": (0.03, lambda rng, world: german.story(rng, FIRST_NAMES, trainable)),
    "german_encyclopedia": (0.02, german_encyclopedia),
    "german_facts": (0.02, german_dialogue),
}
# mean characters of a document, to turn shares of text into shares of documents
LENGTHS = {
    "stories": 265, "encyclopedia": 232, "facts": 178, "choice": 165, "yes_no": 213, "reading": 234, "problems": 338,
    "rewriting": 355, "german_stories": 232, "german_encyclopedia": 174, "german_facts": 102,
}  # fmt: skip


def documents(seed: int, kinds: tuple[str, ...] | None = None, *, held: bool = False) -> Iterator[str]:
    """Endless documents of the mixture.

    Args:
        seed: of the generator; two seeds give two independent streams.
        kinds: only these kinds, in their shares; all when None.
        held: documents that training never sees, instead of those that it may see.
    """
    rng, world = random.Random(seed), World()
    kinds = kinds or tuple(KINDS)
    weights = [KINDS[kind][0] / LENGTHS[kind] for kind in kinds]
    while True:
        text = KINDS[rng.choices(kinds, weights)[0]][1](rng, world)
        if held_out(text) == held:
            yield text
