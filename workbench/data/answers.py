"""Final answers: found where a reader would find them in a response (no torch).

What a single sentence states is in ``statements.py``, how answers are read as numbers in ``quantities.py``.
"""

from __future__ import annotations

import re
from typing import Any

from workbench.data.quantities import clean, other_readings, parse_number, plain_characters, plain_latex
from workbench.data.statements import left_open, main_number, numbers_in, plain_text, stated
from workbench.data.words import FIND

_LONGEST, _TAIL = 20_000, 600  # characters from the end that are looked at; of a statement


def final_answer(text: Any) -> str | None:
    r"""Return the final answer that a response states, None when it states none.

    Looked for in this order: GSM8K's ``#### 72`` (a heading ``#### Step 1`` is none); ``\boxed{72}``; "the
    answer is 72" (with a colon, as a heading, in a dozen languages); the last number of the text. The last
    occurrence of each counts, but what follows a new question does not, nor thoughts (``<think>``),
    calculator marks ``<<48/2=24>>`` and closing words ("let me know ..."). A statement that leaves it open
    ("5 or 6", "not 5", "5, no wait, 6", "5+3") is returned whole, which is no number; so is a date ("4 July
    2023"), a quarter or a decade, and a name with a number ("Route 66"). What is asked ("is the answer 5?")
    is not said.

    Args:
        text: a response or a reference; None, NaN and texts that state no answer give None. Of a text
            without any digit "yes", "no", a letter of a choice and number words count.

    Returns:
        The answer as it is written (``"1,080"``, ``"\frac{3}{4}"``, ``"yes"``), without a closing full stop,
        signs and digits in ASCII.

    >>> final_answer("She has <<48/2=24>>24 clips.\n#### 72"), final_answer(r"So it is \boxed{\frac{3}{4}}.")
    ('72', '\\frac{3}{4}')
    """
    if text is None or text != text:
        return None
    shown = re.sub(r"(?:<\|\w{1,30}\|>|</s>)\s*$", "", without_thoughts(str(text))[-_LONGEST:])
    shown = re.sub(r"__|</?(?:b|i|u|em|strong|code)>", "**", shown)
    shown = _until_new_question(plain_characters(without_calculator_marks(shown)))
    if tagged := FIND.tagged.findall(shown):
        shown = tagged[-1][len("<answer>") : -len("</answer>")]
    return _first_found(shown, _after_marks, _boxed, _after_statement, _last_number, _without_digits)


def without_calculator_marks(text: str) -> str:
    """Return the text without GSM8K's calculator marks ``<<48/2=24>>``."""
    return re.sub(r"<<[^<>]*>>", "", text)


def without_thoughts(text: str) -> str:
    """Return what a model says after thinking aloud; of thoughts that were cut off nothing stays.

    >>> without_thoughts("<think>5?</think> It is 6."), without_thoughts("Well. <think>5 or")
    ('It is 6.', 'Well.')
    """
    begun = FIND.thought_end.split(text)[-1]
    said = FIND.thought.split(begun)[0]
    return text if said == text else said.rstrip()


def _first_found(text: str, *finders: Any) -> str | None:
    return next(filter(None, (find(text) for find in finders)), None)


def _until_new_question(text: str) -> str:
    """Cut the text where a model went on with the next question, its own answered."""
    for match, _ in zip(FIND.new_question.finditer(text), range(3), strict=False):
        head = text[: match.start()]
        if _first_found(head, _after_marks, _boxed, _after_statement):
            return head
    return text


def _after_marks(text: str) -> str | None:
    """Return what follows the last ``####`` that is no heading: a number, or the words of the last line."""
    for found in list(re.finditer(r"(?<!#)#{4,}[ \t]*([^\n#]+)", text))[:-20:-1]:
        mark = clean(found[1])
        short = re.fullmatch(r"[^A-Za-z]*|(?:\$|Rs)?[^A-Za-z]*(?:[a-z]\S*\s*){,3}", mark)
        if short and parse_number(mark) is not None:
            return None if FIND.taken.search(text, found.end()) else mark
    _, mark, said = text.rstrip().rpartition("\n")[2].rpartition("####")
    heading = FIND.statement.search(said) or FIND.heading.match(f"{said}\n") or FIND.step.match(said)
    return clean(said) if mark and not heading and "boxed" not in said else None


def _boxed(text: str) -> str | None:
    r"""Return what the last \boxed{...} or \fbox{...} holds, braces balanced; of two alternatives both."""
    boxes = _boxes(text)
    if not boxes:
        return None
    start, end, said = boxes[-1]
    if FIND.taken.search(text, end):
        return None
    if len(boxes) > 1 and re.fullmatch(r"[\s$,.*]{0,9}(?:or|and|,)[\s$*]{0,9}", text[boxes[-2][1] : start]):
        return f"{boxes[-2][2]} or {said}"
    before = text[max(0, start - 40) : start]
    line = before.rpartition("\n")[2]  # "22 times" ends its line, "is not" goes on in the next
    if FIND.not_this.search(line) or FIND.not_before.search(before):
        return f"not {said}"
    words = plain_latex(said)
    if worked_out := re.fullmatch(r"(?:[\d\s.,+*/()×·^-]|\\times|\\cdot|\\div)+=([^=]+)", words):
        return clean(worked_out[1])
    if FIND.statement.search(words):
        return _after_statement(words)
    mixed = re.search(r"\\text\s*\{[^{}]*\}", said) and not re.fullmatch(r"\\text\s*\{[^{}]*\}", said)
    return stated(words) if mixed else clean(said)


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """Return start, end and content of the last two boxes that are closed."""
    found: list[tuple[int, int, str]] = []
    for match in list(re.finditer(r"\\(?:boxed|fbox)\s*\{", text))[-2:]:
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
    heads = [match for pattern in (FIND.statement, FIND.heading) for match in pattern.finditer(text)]
    for head in sorted(heads, key=lambda match: match.end())[:-6:-1]:
        tail = text[head.end() : head.end() + _TAIL].lstrip(" *_:")
        if FIND.denied.search(head.group()):
            return f"not {clean(tail)}"
        if tail.strip():
            line = FIND.abbreviation.sub(r"\1 ", tail.lstrip().partition("\n")[0])
            end = FIND.sentence_end.search(line)
            if end and end.group() == "?":
                continue  # asked, not said
            return clean(line) if FIND.taken.search(tail) else stated(line[: end.start()] if end else line)
    return None


def _last_number(text: str) -> str | None:
    """Return the number of the last sentence that has one; None where that leaves it open."""
    if match := FIND.closing.search(text, max(0, len(text) - _TAIL)):
        text = text[: match.start()] if re.search(r"\d", text[: match.start()]) else text
    text = plain_text(text[-4 * _TAIL :])
    numbers = numbers_in(text)
    if not numbers or FIND.in_table.search(text, 0, numbers[-1][0]):
        return None
    begin = max((match.end() for match in FIND.sentence_end.finditer(text, 0, numbers[-1][0])), default=0)
    if (end := FIND.sentence_end.search(text, numbers[-1][1])) and end.group() == "?":
        return None  # asked, not said
    sentence = text[begin:]
    if not numbers_in(sentence):
        return _last_number(text[:begin])  # "It is 12. 2. Multiply": read alone, that number counts a step
    if (reason := FIND.reason.search(sentence)) and numbers_in(sentence[: reason.start()]):
        sentence = sentence[: reason.start()]
    numbers = numbers_in(sentence)
    told = [match.group() for match in FIND.compound.finditer(sentence[-_TAIL:])]
    compound = [quantity for quantity in told if other_readings(quantity)]
    if compound or left_open(sentence, numbers):
        return compound[-1] if compound else None
    return main_number(sentence, numbers)


def _without_digits(text: str) -> str | None:
    """Return the answer of a text without a number in digits: yes, B, or the last number in words."""
    if re.search(r"\d", text):
        return None
    if match := FIND.yes_or_no.match(text.strip(" *_\n")) or re.fullmatch(r"\W*([A-J])\W*", text):
        return match[1]
    text = text[-_TAIL:]
    if (match := FIND.choices.search(text)) and not FIND.spelled.search(text, match.end()):
        return str(match.group())
    found = [one for one in FIND.spelled.finditer(text) if parse_number(clean(one.group())) is not None]
    if found and FIND.another_before.search(text, 0, found[-1].start()):
        return None  # plus or minus five
    if len(found) > 1 and FIND.tied.fullmatch(text, found[-2].end(), found[-1].start()):
        return None
    words = clean(found[-1].group()) if found else ""
    return words if words.lower() not in ("", "one") else None
