"""Word problems of 2 to 4 steps, each solved in full sentences and, in another hand, tersely."""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass

LARGEST = 150
HERS = "Alma Berit Celia Dora Edda Flora Gerda Hanna Ida Jana Katja Lena Mara Nadia Olga Paula Rosa Selma Tessa Vera".split()
HIS = "Anton Carlo Dario Elias Fabian Gustav Hugo Ivan Jonas Kilian Leo Matti Nils Oskar Pavel Rufus Simon Tomas Viktor Wim".split()
ITEMS = (
    "apples beads books bricks buttons cakes candles coins cookies eggs feathers flowers keys marbles nuts pears pebbles "
    "plums ribbons shells spoons stamps stickers stones tickets"
).split()
GAINS = ("buys {n} more", "finds {n} more", "gets {n} more from a friend", "wins {n} more", "makes {n} more")
LOSSES = ("gives away {n}", "loses {n}", "sells {n}", "uses {n}", "throws away {n}")
BOXES = ("bags", "baskets", "boxes", "jars", "sacks")


@dataclass(frozen=True)
class Problem:
    """A question with its two solutions.

    `skeleton` is the problem without its words (kind, operations and numbers). Which split a problem belongs to follows
    from its skeleton, so the numbers of a test problem never occur together in training, whatever the story around them.
    """

    question: str
    solution: str
    terse: str
    answer: int
    skeleton: str

    @property
    def split(self) -> str:
        """`test` (1 in 50), `tuning` (1 in 25), or `train`."""
        bucket = zlib.crc32(self.skeleton.encode()) % 50
        return "test" if bucket == 0 else "tuning" if bucket in (1, 2) else "train"


def _terse(steps: list[str], answer: int) -> str:
    return "; ".join(step.replace(" ", "") for step in steps) + f" #### {answer}"


def _person(rng: random.Random) -> tuple[str, str, str]:
    return (rng.choice(HERS), "she", "her") if rng.random() < 0.5 else (rng.choice(HIS), "he", "his")


def _operation(rng: random.Random, now: int) -> tuple[str, str, int]:
    """One change of a running number: what happens (with `{n}` filled), the sum, and the new number."""
    while True:
        kind = rng.choice("++--*/")
        if kind == "+" and now < LARGEST - 5:
            n = rng.randint(2, min(60, LARGEST - now))
            return rng.choice(GAINS).format(n=n), f"{now} + {n} = {now + n}", now + n
        if kind == "-" and now > 4:
            n = rng.randint(2, min(60, now - 1))
            return rng.choice(LOSSES).format(n=n), f"{now} - {n} = {now - n}", now - n
        if kind == "*" and 2 * now <= LARGEST:
            return "doubles what is there", f"{now} * 2 = {2 * now}", 2 * now
        if kind == "/" and now > 5 and now % 2 == 0:
            return "gives away half of them", f"{now} / 2 = {now // 2}", now // 2


def running(rng: random.Random) -> Problem:
    """Someone has a number of things, and the number changes 2 to 4 times."""
    name, pronoun, _ = _person(rng)
    items = rng.choice(ITEMS)
    lines, steps, told = [], [], []
    if rng.random() < 0.35:
        boxes, each = rng.randint(2, 9), rng.randint(2, 12)
        kind, now = rng.choice(BOXES), boxes * each
        lines.append(f"{name} has {boxes} {kind} with {each} {items} in each.")
        steps.append(f"{boxes} * {each} = {now}")
        told.append(f"{name} starts with {steps[-1]} {items}.")
    else:
        now = rng.randint(5, 80)
        lines.append(f"{name} has {now} {items}.")
        told.append(f"{name} starts with {now} {items}.")
    start = f"{steps or now}"
    for i in range(rng.randint(2, 4) - len(steps)):
        change, step, now = _operation(rng, now)
        word = "Then " if i else ""
        lines.append(f"{word}{pronoun if i else pronoun.capitalize()} {change}.")
        steps.append(step)
        told.append(f"{word}{pronoun if i else pronoun.capitalize()} {change}, so there are {step} {items}.")
    lines.append(f"How many {items} does {name} have now?")
    told.append(f"The answer is {now}.")
    return Problem(" ".join(lines), " ".join(told), _terse(steps, now), now, f"running {start} {steps}")


def together(rng: random.Random) -> Problem:
    """Two people have related numbers of things; how many have they together (and after a loss)?"""
    (first, _, _), (second, _, _) = _person(rng), _person(rng)
    while second == first:
        second = _person(rng)[0]
    items, a = rng.choice(ITEMS), rng.randint(4, 45)
    kind = rng.choice(("more", "fewer", "twice"))
    if kind == "twice":
        b, step, relation = 2 * a, f"{a} * 2 = {2 * a}", f"twice as many {items} as {first}"
    else:
        n = rng.randint(2, 40) if kind == "more" else rng.randint(2, a - 1)
        b = a + n if kind == "more" else a - n
        step, relation = f"{a} {'+' if kind == 'more' else '-'} {n} = {b}", f"{n} {kind} {items} than {first}"
    total = a + b
    lines = [f"{first} has {a} {items}.", f"{second} has {relation}."]
    steps = [step, f"{a} + {b} = {total}"]
    told = [f"{second} has {relation}, so {second} has {step} {items}.", f"Together they have {steps[1]} {items}."]
    if rng.random() < 0.5 and total > 6:
        n = rng.randint(2, min(50, total - 1))
        lines.append(f"Together they give away {n}.")
        steps.append(f"{total} - {n} = {total - n}")
        told.append(f"They give away {n}, so there are {steps[-1]} {items} left.")
        total -= n
    lines.append(f"How many {items} do they have together?")
    told.append(f"The answer is {total}.")
    return Problem(" ".join(lines), " ".join(told), _terse(steps, total), total, f"together {steps}")


def shopping(rng: random.Random) -> Problem:
    """A number of things at one price and one thing at another; what is to pay, or what is left of the money?"""
    name, pronoun, _ = _person(rng)
    (item, other), k, price = rng.sample(ITEMS, 2), rng.randint(2, 9), rng.randint(2, 12)
    j, other_price = rng.randint(2, 5), rng.randint(2, 8)
    parts = (k * price, j * other_price)
    total = sum(parts)
    lines = [f"In the shop the {item} cost {price} coins each and the {other} cost {other_price} coins each."]
    lines.append(f"{name} buys {k} {item} and {j} {other}.")
    steps = [f"{k} * {price} = {parts[0]}", f"{j} * {other_price} = {parts[1]}", f"{parts[0]} + {parts[1]} = {total}"]
    told = [f"The {item} cost {steps[0]} coins.", f"The {other} cost {steps[1]} coins.", f"Together that is {steps[2]} coins."]
    if rng.random() < 0.4 and total < LARGEST - 5:
        money = rng.randint(total + 1, LARGEST)
        lines.append(f"{name} has {money} coins. How many coins does {pronoun} have left?")
        steps.append(f"{money} - {total} = {money - total}")
        told.append(f"From {money} coins {name} has {steps[-1]} coins left.")
        total = money - total
    else:
        lines.append(f"How many coins does {pronoun} pay?")
    told.append(f"The answer is {total}.")
    return Problem(" ".join(lines), " ".join(told), _terse(steps, total), total, f"shopping {steps}")


def problem(rng: random.Random, split: str) -> Problem:
    """A random problem of a split (`train`, `tuning` or `test`)."""
    while True:
        found = rng.choices((running, together, shopping), (0.6, 0.25, 0.15))[0](rng)
        if found.split == split and 0 <= found.answer <= LARGEST:
            return found
