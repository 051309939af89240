"""Final answers: found where a reader would find them in a response (no torch).

How answers are read as numbers and compared is in ``quantities.py``.
"""

from __future__ import annotations

import itertools
import math
import re
import tomllib
from pathlib import Path
from typing import Any

from workbench.data.quantities import (
    COMPOUND,
    CURRENCY,
    DIGITS,
    GLUED_UNIT,
    SCALES,
    SIGN,
    SMALL,
    clean,
    other_readings,
    parse_number,
    plain_characters,
    plain_latex,
    same_answer,
    same_number,
)

__all__ = [
    "final_answer",
    "parse_number",
    "same_answer",
    "same_number",
    "without_calculator_marks",
    "without_thoughts",
]

_LONGEST, _TAIL = 20_000, 600  # characters from the end that are looked at; of a statement
_LISTS = tomllib.loads(Path(__file__).with_name("answers.toml").read_text(encoding="utf-8"))
_WORDS = {name: f"(?:{'|'.join(words)})" for name, words in _LISTS.items() if name != "numbers"}
_THOUGHT = r"(?:think|thinking|thought|reasoning)>"
_STATEMENT = re.compile(
    rf"(?<!to )(?<!can )\b{_WORDS['answer']}\b(?!\s+(?:choices|options|the|this)\b)"
    rf"(?:[^\n:=.]{{0,40}}?\b{_WORDS['is']}(?![\w'’])\s*:?|[^\n:=.,]{{0,24}}?[:=：])"
    r"|(?:答案|答え|答|정답|답)(?:应该|并|不)*\s*(?:是|为|は|은|[:：=])[:：]?",
    re.I,
)
_DENIED = re.compile(r"\b(?:not|cannot|never|no|nicht)\b|不", re.I)  # "the answer cannot be 5"
_HEADING = re.compile(r"^\W{0,20}(?:the )?(?:final )?(?:answer|antwort)\W{0,20}\n", re.I | re.M)
_STEP = re.compile(r"\s*(?:step\b|conclusion|\d+[.):])", re.I)  # as a heading
_NEXT_TASK = re.compile(
    rf"\n\s{{0,9}}(?:[#*]{{1,9}}\s{{0,9}})?(?:(?:(?:new|next) )?{_WORDS['next_task']}\s?\d{{0,9}}\s?:"
    r"|<\|?(?:user|im_start))",
    re.I,
)
_GOODBYE = re.compile(rf"(?<!\w){_WORDS['goodbye']}", re.I)
_TAKEN_BACK = re.compile(rf"\b{_WORDS['taken_back']}\b|[.!;,]\s+(?:actually\b|no, )", re.I)
_SENTENCE_END = re.compile(r"(?<!\bi\.e)(?<!\be\.g)(?<!\bvs)(?<!\bapprox)[.!?](?=[\s)*\"”]|$)|[。！？\n]")
_ABBREVIATION = re.compile(r"\b(Rs|[Nn]o|[Nn]r)\.\s*(?=[-$]?\d)")  # its full stop ends no sentence
_BREAK = re.compile(rf"[,;:](?=\s)|\s*(?:≈|\\approx)|\s[-—]\s|\s\(|\s{_WORDS['explained']}\s", re.I)
_NOT_YET = re.compile(
    rf"\b{_WORDS['not_yet']}\b(?:\s+(?:be|equal to|necessarily|exactly|just))*\s*\W{{0,3}}$", re.I
)
_ASIDE = re.compile(rf"(?:\b{_WORDS['aside']}\s+(?:{_WORDS['aside_more']}\s+)*|(?:[≈~]|\\approx)\s*)$", re.I)
_LABEL = re.compile(rf"\b{_WORDS['label']}\s+#?$", re.I)
_THAN = re.compile(  # after a number: it is a difference
    r"\s*(?:\w+\s+)?(?:more|less|fewer|older|younger|taller|shorter|longer|higher|lower|bigger|smaller) than\b"
)
_CLAUSE = re.compile(r"[,;](?=\s)|\b(?:so|which|thus|therefore|hence)\b", re.I)
_IN_ALL = re.compile(r"\b(?:total|altogether|in all)\b", re.I)
_REASON = re.compile(r"\s(?:because|since)\s", re.I)
_SYMBOL = r"(?:[-+*/×÷^±]|\\times|\\cdot|\\div|% of\b)"
_OPERATOR = rf"\b{_WORDS['operator']}\b"
_COMPARED = r"(?:[<>≤≥≠]|\\(?:le|ge|lt|gt|ne)q?\b)"
_OPERAND = r"(?:\d|sqrt|\\?pi\b|[b-z]\b)"
_SUM = re.compile(rf"\s*(?:(?:{_SYMBOL}|{_OPERATOR})\s*\(?{_OPERAND}|{_COMPARED})")
_LETTER = r"[^\W\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]"  # East Asian scripts put no space beside a number
_IN_TEXT = re.compile(
    rf"(?<!{_LETTER})(?<!\d:)(?<![.,/^√±|])(?<![\^_]\()(?<!\w\()"
    rf"(?:(?<![\w)\]])(?:[-+]|(?=[a-z]){SIGN}\s))?(?:{CURRENCY}\s?)?[-+]?"
    rf"(?:\d+\s+\(?\d+\)?/\(?\d+\)?|\(?{DIGITS}\)?/\(?{DIGITS}\)?|{DIGITS}(?:[eE][-+]?\d+)?)"
    rf"(?:[kKM]\b|[mb]n\b|{GLUED_UNIT})?(?!{_LETTER}|\(|[.,:]\d|\s?\^)"
    rf"(?:\s+(?:{'|'.join(SCALES)})\b)*(?:\s?%)?"
)
_NUMBER_WORD = rf"(?:{'|'.join([*SMALL, *SCALES, 'none'])})"
_SPELLED = re.compile(rf"(?:\ban?\s)?\b(?:{_NUMBER_WORD}\b(?:\s?-?(?:and\s)?)?)+", re.I)
_MORE = re.compile(  # after a number: it is not all
    r"\s*(?:(?:squared|cubed|factorial|or (?:more|less|fewer|so)|if|(?:more|less|fewer) than \d+)\b"
    r"|in \d{1,3}\b(?!\s+\w))",
    re.I,
)
_LIST = re.compile(  # after a number: another that counts as much
    rf"\s*(?:,|(?:\w+\s*)?,?\s*(?:\b(?:and|to|{_WORDS['either']})\b|&)(?:\s+(?:maybe|perhaps|even))?|-)"
    rf"\s*{SIGN}?\s*{CURRENCY}?\s*(?:{DIGITS}|{_NUMBER_WORD}\b)(?!\s+(?:in|of|from|for|more|less|each|is|are|were)\b)",
    re.I,
)
_YES_NO = re.compile(rf"({_WORDS['yes_no']})(?=$|[,.;:!]|\s[-—(]|\s(?:because|since|as)\b)", re.I)
_CHOICE = re.compile(
    r"(?:option|choice|letter)?\s*\(?([A-J])(?=\)?[,;](?!\s*\(?[A-J]\b)|\)?\s(?:because|since|as)\b)"
)
Number = tuple[int, int, str]  # start, end and text of a number in running text


def final_answer(text: Any) -> str | None:
    r"""Return the final answer that a response states, None when it states none.

    Looked for in this order: GSM8K's ``#### 72`` (a heading ``#### Step 1`` is none); ``\boxed{72}``; "the
    answer is 72" (with a colon, as a heading, in a dozen languages); the last number of the text. The last
    occurrence of each counts, but what follows a new question does not, nor thoughts (``<think>``),
    calculator marks ``<<48/2=24>>`` and closing words ("let me know ..."). A statement that leaves it open
    ("5 or 6", "not 5", "5, no wait, 6", "5+3") is returned whole, which is no number.

    Args:
        text: a response or a reference; None, NaN and texts without a number give None.

    Returns:
        The answer as it is written (``"1,080"``, ``"\frac{3}{4}"``, ``"yes"``), without a closing full stop,
        signs and digits in ASCII.

    >>> final_answer("She has <<48/2=24>>24 clips.\n#### 72"), final_answer(r"So it is \boxed{\frac{3}{4}}.")
    ('72', '\\frac{3}{4}')
    """
    if text is None or (isinstance(text, float) and math.isnan(text)):
        return None
    shown = re.sub(r"(?:<\|\w{1,30}\|>|</s>)\s*$", "", without_thoughts(str(text))[-_LONGEST:])
    shown = _until_new_question(plain_characters(without_calculator_marks(shown)))
    return _first_found(shown, _after_marks, _boxed, _after_statement, _last_number, _without_digits)


def without_calculator_marks(text: str) -> str:
    """Return the text without GSM8K's calculator marks ``<<48/2=24>>``."""
    return re.sub(r"<<[^<>]*>>", "", text)


def without_thoughts(text: str) -> str:
    """Return what a model says after thinking aloud; of thoughts that were cut off nothing stays.

    >>> without_thoughts("<think>5?</think> It is 6."), without_thoughts("Well. <think>5 or")
    ('It is 6.', 'Well.')
    """
    begun = re.split(rf"</{_THOUGHT}\s*", text)[-1]
    said = re.split(rf"<{_THOUGHT}", begun)[0]
    return text if said == text else said.rstrip()


def _first_found(text: str, *finders: Any) -> str | None:
    return next(filter(None, (find(text) for find in finders)), None)


def _until_new_question(text: str) -> str:
    """Cut the text where a model went on with the next question, its own answered."""
    for match, _ in zip(_NEXT_TASK.finditer(text), range(3), strict=False):
        head = text[: match.start()]
        if _first_found(head, _after_marks, _boxed, _after_statement):
            return head
    return text


def _after_marks(text: str) -> str | None:
    """Return what follows the last ``####`` that is no heading: a number, or the words of the last line."""
    for found in list(re.finditer(r"(?<!#)#{4,}[ \t]*([^\n#]+)", text))[:-20:-1]:
        mark = clean(found[1])
        if (
            re.fullmatch(r"[^A-Za-z]*|(?:\$|Rs)?[^A-Za-z]*(?:[a-z]\S*\s*){,3}", mark)
            and parse_number(mark) is not None
        ):
            return None if _TAKEN_BACK.search(text, found.end()) else mark
    _, mark, said = text.rstrip().rpartition("\n")[2].rpartition("####")
    heading = _STATEMENT.search(said) or _HEADING.match(f"{said}\n") or _STEP.match(said) or "boxed" in said
    return clean(said) if mark and not heading else None


def _boxed(text: str) -> str | None:
    r"""Return what the last \boxed{...} or \fbox{...} holds, braces balanced; of two alternatives both."""
    boxes = _boxes(text)
    if not boxes:
        return None
    start, end, said = boxes[-1]
    if _TAKEN_BACK.search(text, end):
        return None
    if len(boxes) > 1 and re.fullmatch(r"[\s$,.*]{0,9}(?:or|and|,)[\s$*]{0,9}", text[boxes[-2][1] : start]):
        return f"{boxes[-2][2]} or {said}"
    if _NOT_YET.search(text[max(0, start - 40) : start]):
        return f"not {said}"
    words = plain_latex(said)
    if worked_out := re.fullmatch(r"(?:[\d\s.,+*/()×·^-]|\\times|\\cdot|\\div)+=([^=]+)", words):
        return clean(worked_out[1])
    if _STATEMENT.search(words):
        return _after_statement(words)
    mixed = re.search(r"\\text\s*\{[^{}]*\}", said) and not re.fullmatch(r"\\text\s*\{[^{}]*\}", said)
    return _stated(words) if mixed else clean(said)


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """Return start, end and content of the last two boxes that are closed."""
    found: list[tuple[int, int, str]] = []
    for match in list(re.finditer(r"\\f?boxed\s*\{", text))[-2:]:
        depth = 1
        for end in range(match.end(), min(len(text), match.end() + _TAIL)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                found.append((match.start(), end + 1, clean(text[match.end() : end])))
                break
    return found


def _after_statement(text: str) -> str | None:
    """Return what the last "the answer is ..." states."""
    text = re.sub(r"n['’]t\b", " not", text)
    heads = [match for pattern in (_STATEMENT, _HEADING) for match in pattern.finditer(text)]
    for head in sorted(heads, key=lambda match: match.end())[:-6:-1]:
        tail = text[head.end() : head.end() + _TAIL].lstrip(" *_:")
        if _DENIED.search(head.group()):
            return f"not {clean(tail)}"
        if tail.strip():
            line = _ABBREVIATION.sub(r"\1 ", tail.lstrip().partition("\n")[0])
            return clean(line) if _TAKEN_BACK.search(tail) else _stated(_SENTENCE_END.split(line)[0])
    return None


def _stated(sentence: str) -> str | None:
    """Return the answer of a statement; the whole of it where it leaves the answer open."""
    said = clean(sentence)
    if _says_one_thing(said):
        return said
    one, *others = re.split(r",?\s+or\s+", said)
    if others and all(_says_one_thing(part) and same_answer(one, part) for part in others):
        return one
    lead = _BREAK.split(said)[0]
    if _says_one_thing(lead):
        rest = said[len(lead) :]
        breakdown = _IN_ALL.search(lead) and re.match(r",\s*\d", rest)  # "12 in total, 5 red and 7 green"
        return lead if breakdown or not _goes_on(rest) else said
    for pattern in (_YES_NO, _CHOICE):
        if match := pattern.match(said):
            return match[1]
    plain = _plain(said)
    if "=" in plain:
        return _stated(plain.rpartition("=")[2])
    numbers = _numbers(plain)
    first = numbers[:1] if numbers and numbers[0][0] == 0 else numbers
    if not numbers or _left_open(plain, first):
        return said or None
    return _main(plain, first)


def _goes_on(rest: str) -> bool:
    """Whether what follows a number makes another of it: "or 6", "or more", "squared", "in 4"."""
    return bool(_LIST.match(rest) or _MORE.match(rest) or _SUM.match(rest))


def _says_one_thing(text: str) -> bool:
    return parse_number(text) is not None or bool(other_readings(text))


def _last_number(text: str) -> str | None:
    """Return the number of the last sentence that has one; None where that leaves it open."""
    if match := _GOODBYE.search(text, max(0, len(text) - _TAIL)):
        text = text[: match.start()] if re.search(r"\d", text[: match.start()]) else text
    text = _plain(text[-4 * _TAIL :])
    numbers = _numbers(text)
    if not numbers:
        return None
    begin = max((match.end() for match in _SENTENCE_END.finditer(text, 0, numbers[-1][0])), default=0)
    if (end := _SENTENCE_END.search(text, numbers[-1][1])) and end.group() == "?":
        return None  # asked, not said
    sentence = text[begin:]
    if (reason := _REASON.search(sentence)) and _numbers(sentence[: reason.start()]):
        sentence = sentence[: reason.start()]
    numbers = _numbers(sentence)
    told = [match.group() for match in COMPOUND.finditer(sentence[-_TAIL:])]
    compound = [quantity for quantity in told if other_readings(quantity)]
    if compound or _left_open(sentence, numbers):
        return compound[-1] if compound else None
    return _main(sentence, numbers)


def _without_digits(text: str) -> str | None:
    """Return the answer of a text without a number in digits: yes, B, or the last number in words."""
    if re.search(r"\d", text):
        return None
    if match := _YES_NO.match(text.strip(" *_\n")) or re.fullmatch(r"\W*([A-J])\W*", text):
        return match[1]
    found = list(_SPELLED.finditer(text[-_TAIL:]))
    words = clean(found[-1].group()) if found else ""
    return words if words.lower() != "one" and parse_number(words) is not None else None


def _plain(text: str) -> str:
    """Return running text without LaTeX, dollar signs of formulas, and space between minus and number."""
    text = re.sub(r"n['’]t\b", " not", text)
    return re.sub(r"(?<=[=(:])[ \t]*-[ \t]+(?=\d)", " -", re.sub(r"\$(?!\s?[-.\d])", "", plain_latex(text)))


def _numbers(text: str) -> list[Number]:
    """Return start, end and text of the numbers in running text; a minus after a number is an operation."""
    found = []
    for match in _IN_TEXT.finditer(text):
        if _LABEL.search(text[max(0, match.start() - 12) : match.start()]) or _listed(text, match):
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


def _left_open(text: str, numbers: list[Number]) -> bool:
    """Whether the last number is one of several, denied, or part of a sum that is not worked out."""
    start, end, found = numbers[-1]
    before, after = text[max(0, start - 60) : start], text[end : end + 60]
    several = re.search(
        rf"{DIGITS}(?:\s+\w+)?\s*,?\s*\b(?:to|and|{_WORDS['either']})\s*(?:\w\s*=\s*)?\W?$", before
    )
    sum_ = re.search(rf"[\w)]\s*{_SYMBOL}\s*$|\d\s*{_OPERATOR}\s*$|{_COMPARED}\s*$", before)
    odds = re.search(r"\d\s+in\s*$", before) and not re.match(r"\s+\w", after)  # 1 in 4
    operand = re.match(SIGN, found) and re.search(r"[\d)\]]\s*$", before)
    return bool(several or odds or sum_ or operand or _NOT_YET.search(before)) or _goes_on(after)


def _in_passing(text: str, start: int, end: int) -> bool:
    """Whether a number only says when, for how many, about how much or by how much more."""
    before = text[:start]
    inside = before.rfind("(") > before.rfind(")") and text[start : start + 1] != "("
    return inside or bool(_ASIDE.search(before, start - 60) or _THAN.match(text, end))


def _main(text: str, numbers: list[Number]) -> str:
    """Return the number that a sentence comes to: not one said in passing ("72 clips in 2 months").

    Of several clauses the last with such a number counts; in it what follows the last equals sign, else the
    last number.
    """
    begins = [0, *(match.end() for match in _CLAUSE.finditer(text)), len(text)]
    for begin, end in reversed(list(itertools.pairwise(begins))):
        inside = [number for number in numbers if begin <= number[0] < end]
        equals = text.rfind("=", begin, end)
        results = [found for start, _, found in inside if start >= equals >= begin]
        stands_alone = [found for start, stop, found in inside if not _in_passing(text, start, stop)]
        if results or stands_alone:
            return results[0] if results else stands_alone[-1]
    return numbers[-1][2]
