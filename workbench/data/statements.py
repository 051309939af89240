"""What a sentence states: which of its numbers is meant, and whether it leaves that open."""

from __future__ import annotations

import itertools
import re

from workbench.data.quantities import clean, other_readings, parse_number, plain_latex, same_answer
from workbench.data.words import FIND

Number = tuple[int, int, str]  # start, end and text of a number in running text


def stated(sentence: str) -> str | None:
    """Return the answer of a statement; the whole of it where it leaves the answer open.

    >>> stated("72 clips in 2 months"), stated("5 or 6"), stated("yes, they can")
    ('72', '5 or 6', 'yes')
    """
    said = clean(sentence)
    if _says_one_thing(said) or _says_several(said):
        return said
    one, *others = re.split(r",?\s+or\s+", said)
    if others and all(_says_one_thing(part) and same_answer(one, part) for part in others):
        return one
    lead = FIND.pause.split(said)[0]
    if _says_one_thing(lead):
        rest = said[len(lead.rstrip()) :]
        breakdown = FIND.in_all.search(lead) and re.match(r",\s*\d", rest)  # "12 in total, 5 red and 7 green"
        return lead if breakdown or not _goes_on(rest) else said
    for pattern in (FIND.yes_or_no, FIND.choice):
        if match := pattern.match(said):
            return str(match[1])
    plain = plain_text(said)
    if "=" in plain:
        return stated(plain.rpartition("=")[2])
    numbers = numbers_in(plain)
    first = numbers[:1] if numbers and numbers[0][0] == 0 else numbers
    if not numbers or left_open(plain, first):
        return said or None
    return main_number(plain, first)


def _goes_on(rest: str) -> bool:
    """Whether what follows a number makes another of it: "or 6", "or more", "squared", "in 4"."""
    return bool(FIND.another.match(rest) or FIND.more.match(rest) or FIND.sum.match(rest))


def _says_one_thing(text: str) -> bool:
    return parse_number(text) is not None or bool(other_readings(text))


def plain_text(text: str) -> str:
    """Return running text without LaTeX, dollar signs of formulas, and space between minus and number."""
    text = re.sub(r"n['’]t\b", " not", text)
    return re.sub(r"(?<=[=(:])[ \t]*-[ \t]+(?=\d)", " -", re.sub(r"\$(?!\s?[-.\d])", "", plain_latex(text)))


def _says_several(text: str) -> bool:
    """Whether it is a pair, an interval, a bound or several unknowns: (1, 2), [5, 7], over 4, x=4 and y=5."""
    pair = re.fullmatch(r"[\[({][^\[\](){}]*,[^\[\](){}]*[\])}]", text)
    return bool(pair or "\\begin{" in text or FIND.bounded.match(text) or FIND.unknowns.search(text))


def numbers_in(text: str) -> list[Number]:
    """Return start, end and text of the numbers in running text; a minus after a number is an operation."""
    found, dates = [], [match.span() for match in FIND.date.finditer(text)]
    for match in FIND.number_in_text.finditer(text):
        if FIND.labelled.search(text[max(0, match.start() - 12) : match.start()]) or _listed(text, match):
            continue
        if any(begin < match.end() and match.start() < end for begin, end in dates):
            continue
        number = match.group().strip().strip("()")
        before = text[max(0, match.start() - 8) : match.start()].rstrip()
        if before and (before[-1].isdigit() or before[-1] in ")]"):
            number = number.lstrip("-+ ")
        found.append((match.start(), match.end(), number))
    return found


def _listed(text: str, match: re.Match[str]) -> bool:
    """Whether a number begins a line as an item of a list does: "2. Multiply"."""
    begins = text[: match.start()].rpartition("\n")[2].strip(" *#-") == ""
    return begins and re.match(r"[.)]\**[ \t]+[^\W\d]", text[match.end() :]) is not None


def left_open(text: str, numbers: list[Number]) -> bool:
    """Whether the last number is one of several, denied, or part of a sum that is not worked out."""
    start, end, found = numbers[-1]
    before, after = text[max(0, start - 60) : start], text[end : end + 60]
    several, sum_ = FIND.another_before.search(before), FIND.sum_before.search(before)
    odds = re.search(r"\d\s+in\s*$", before) and not re.match(r"\s+\w", after)  # 1 in 4
    share = found.endswith("%") and bool(re.match(r"\s*of\s+\W?\d", after))  # 10% of 50
    operand = FIND.sign.match(found) and re.search(r"[\d)\]]\s*$", before)
    return (
        bool(several or odds or sum_ or operand or FIND.not_this.search(before)) or _goes_on(after) or share
    )


def _in_passing(text: str, start: int, end: int) -> bool:
    """Whether a number only says when, for how many, about how much or by how much more."""
    before = text[:start]
    inside = before.rfind("(") > before.rfind(")") and text[start : start + 1] != "("
    return inside or bool(FIND.passing.search(before, start - 60) or FIND.difference.match(text, end))


def main_number(text: str, numbers: list[Number]) -> str:
    """Return the number that a sentence comes to: not one said in passing ("72 clips in 2 months").

    Of several clauses the last with such a number counts; in it what follows the last equals sign, else the
    last number.
    """
    begins = [0, *(match.end() for match in FIND.clause.finditer(text)), len(text)]
    for begin, end in reversed(list(itertools.pairwise(begins))):
        inside = [number for number in numbers if begin <= number[0] < end]
        equals = text.rfind("=", begin, end)
        results = [found for start, _, found in inside if start >= equals >= begin]
        stands_alone = [found for start, stop, found in inside if not _in_passing(text, start, stop)]
        if results or stands_alone:
            return results[0] if results else stands_alone[-1]
    return numbers[-1][2]
