"""Final answers: find them in a response, and compare them as numbers (no torch)."""

from __future__ import annotations

import re
from fractions import Fraction

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_SIGNED = rf"[-+]?\s?[$€£¥]?\s?[-+]?(?:{_DIGITS})(?:[eE][-+]?\d+)?"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*(?:US)?[$€£¥]?\s*(?P<sign2>[-+]?)"
    rf"(?:(?P<whole>\d+)\s+(?P<top2>\d+)\s*/\s*(?P<bottom2>\d+)"
    rf"|\(?(?P<top>{_DIGITS})(?P<power>[eE][-+]?\d+)?\)?(?:\s*/\s*\(?(?P<bottom>{_DIGITS})\)?)?)"
    rf"(?P<unit>.*)",
    re.DOTALL,
)
# glued to a number these are units; any other letter there ("3x", "2ab") may be algebra
_GLUED_UNIT = re.compile(r"(%|°\s?[CF]?|[€$£¥¢]|cm|mm|km|kg|mg|ml|min|hrs?|am|pm|st|nd|rd|th)(?![A-Za-z])")
_SCALES = {"hundred": 100, "thousand": 1_000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_IN_TEXT = re.compile(rf"(?<![\w.,/:^])(?:{_SIGNED})(?:\s?/\s?(?:{_DIGITS}))?(?!\w|:\d)\s?%?")
_ANSWER_IS = re.compile(
    r"\b(?:answer|antwort)\b[^\n:=]{0,24}?(?:\b(?:is|ist)\b\s*:?|:|=)\s*(?P<tail>(?:(?!\b(?:answer|antwort)\b)[^\n])+)",
    re.I,
)
_LATEX = (
    (re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"(\1)/(\2)"),
    (re.compile(r"\\[dt]?frac\s*(\d)\s*(\d)"), r"\1/\2"),
    (re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\s*(?:\\times|\\cdot|×)\s*10\s*\^\s*\{?\s*(-?\d+)\s*\}?"), r"e\1"),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree"), "°"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[,!;: ]|\\left|\\right|\\displaystyle"), ""),
    (re.compile(r"\\([$%#&])"), r"\1"),
    (re.compile(r"\\[()\[\]]"), ""),
)


def final_answer(text: str | None) -> str | None:
    r"""Return the final answer that a response states, None when it states none.

    Looked for in this order, the last occurrence of each: GSM8K's ``#### 72``; ``\boxed{72}``; "the answer
    is 72" (also German, also with a colon); the last number of the text. Calculator marks ``<<48/2=24>>``
    do not count.

    Args:
        text: a response or a reference; None and texts without a number give None.

    Returns:
        The answer as it is written (``"1,080"``, ``"\frac{3}{4}"``, ``"yes"``), without a closing full stop.

    >>> final_answer("She has <<48/2=24>>24 clips.\n#### 72"), final_answer(r"So it is \boxed{\frac{3}{4}}.")
    ('72', '\\frac{3}{4}')
    """
    text = without_calculator_marks(text or "")
    found = (find(text) for find in (_after_marks, _boxed, _after_answer_is, _last_number))
    return next(filter(None, found), None)


def parse_number(value: str | int | float | None) -> Fraction | None:
    r"""Return the number that a short text says, exactly; None when it does not say one number.

    Understood: thousands commas, decimals, signs, ``3/4`` and ``1 1/2``, LaTeX fractions and spaces,
    currency signs, powers of ten, "5 million", units ("72 clips", "5cm"), and a percent sign, which is read
    as a unit (50 % = 50).

    >>> parse_number("$1,080.50"), parse_number("1 1/2 cups"), parse_number("3x")
    (Fraction(2161, 2), Fraction(3, 2), None)
    """
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return Fraction(str(value)) if value == value and abs(value) != float("inf") else None
    match = _NUMBER.fullmatch(_without_markup(value))
    scale = match and _unit_scale(match["unit"])
    if not match or scale is None:
        return None
    top = _exact(match["top"] or match["top2"]) * Fraction(10) ** int((match["power"] or "e0")[1:])
    bottom = _exact(match["bottom"] or match["bottom2"] or "1")
    if bottom == 0:
        return None
    magnitude = (_exact(match["whole"] or "0") + top / bottom) * scale
    return -magnitude if (match["sign"] + match["sign2"]).count("-") == 1 else magnitude


def same_number(a: str | int | float | None, b: str | int | float | None) -> bool:
    """Whether two texts say the same number: 1,000 = 1000 = 1000.0, 1/2 = 0.5, $18 = 18 dollars, 50 % = 50.

    Compared exactly, but for decimals with six or more places, which are taken as rounded (0.333333 = 1/3).
    False when one of them is not a number.

    >>> same_number("1,000", "1000.0"), same_number("1/3", "0.333333"), same_number("3x", "3x")
    (True, True, False)
    """
    first, second = parse_number(a), parse_number(b)
    if first is None or second is None:
        return False
    places = [_places(value) for value in (a, b)]
    longest = min(max(places), 12)
    return first == second or (longest >= 6 and round(first, longest) == round(second, longest))


def same_answer(a: str | None, b: str | None) -> bool:
    """Whether two final answers agree: as numbers where both are, else as texts but for case and spaces."""
    if not a or not b:
        return False
    texts = parse_number(a) is None or parse_number(b) is None
    return _squeezed(a) == _squeezed(b) if texts else same_number(a, b)


def without_calculator_marks(text: str) -> str:
    """Return the text without GSM8K's calculator marks ``<<48/2=24>>``."""
    return re.sub(r"<<[^<>]*>>", "", text)


def _after_marks(text: str) -> str | None:
    return _clean(text.rpartition("####")[2].strip().partition("\n")[0]) if "####" in text else None


def _boxed(text: str) -> str | None:
    r"""Return what the last \boxed{...} or \fbox{...} holds, braces balanced."""
    start = max(text.rfind(r"\boxed{"), text.rfind(r"\fbox{"))
    if start < 0:
        return None
    begin = text.index("{", start)
    depth = 0
    for end in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return _clean(text[begin + 1 : end])
    return None  # cut off inside the box


def _after_answer_is(text: str) -> str | None:
    matches = list(_ANSWER_IS.finditer(text))
    if not matches:
        return None
    sentence = re.split(r"[.!?](?:\s|$)", matches[-1]["tail"].strip())[0]
    tail = _clean(sentence.rpartition("=")[2])
    if parse_number(tail) is not None:
        return tail
    numbers = list(_IN_TEXT.finditer(tail))
    if not numbers:
        return tail or None
    return _number_at(tail, numbers[0] if numbers[0].start() == 0 else numbers[-1])


def _last_number(text: str) -> str | None:
    matches = list(_IN_TEXT.finditer(text))
    return _number_at(text, matches[-1]) if matches else None


def _number_at(text: str, match: re.Match[str]) -> str:
    """Return a number found in running text; a minus after another number is an operation, not a sign."""
    found = match.group().strip()
    before = text[: match.start()].rstrip()
    return found.lstrip("-+ ") if before and (before[-1].isdigit() or before[-1] in ")]") else found


def _clean(text: str) -> str:
    return text.strip().strip("*`\"'“”").strip().removesuffix(".").strip()


def _without_markup(text: str) -> str:
    """Take LaTeX and Markdown off a number: fractions, spaces, units, degree and dollar signs."""
    text = text.replace("−", "-").replace("\u00a0", " ").replace("\u202f", " ").strip()
    if len(text) > 1 and text[0] == text[-1] == "$":
        text = text.strip("$")
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    text = re.sub(r"^[A-Za-z]\w{0,2}\s*=\s*", "", _clean(text))
    return text[1:-1] if re.fullmatch(r"\([^()]*\)", text) else text


def _unit_scale(unit: str) -> int | None:
    """Return what a unit multiplies by (1, a thousand, a million, ...); None when it is not just a unit."""
    glued = _GLUED_UNIT.match(unit)
    rest = unit[glued.end() :] if glued else unit
    if (rest and not rest[0].isspace() and rest[0] not in ".,;!)") or re.search(r"[\d=<>+*\\^{}]", rest):
        return None
    words = rest.split()
    return _SCALES.get(words[0].lower().strip(".,"), 1) if words else 1


def _exact(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))


def _places(value: str | int | float | None) -> int:
    match = re.search(r"\.(\d+)", str(value))
    return len(match.group(1)) if match else 0


def _squeezed(text: str) -> str:
    return re.sub(r"\s+", "", _without_markup(text)).strip(".,;:!?$").casefold()
