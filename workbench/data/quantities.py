"""Numbers as people write them: read exactly, and answers compared by them (no torch).

Nothing here takes longer than in proportion to its text: a number of more than a hundred digits, or with an
exponent beyond 400, is none and is compared as text.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from fractions import Fraction

from workbench.data.words import FIND, LATEX, NUMBERS, SCALES, SMALL

_LONGEST = 400  # characters of a text that may say one number
_DIGITS_MOST, _EXPONENT_MOST = 100, 400
_GLUED_SCALE: dict[str, int] = NUMBERS["glued_scales"]
_PART = {word: k for k, word in enumerate(NUMBERS["parts"], 2)} | {"fourth": 4, **NUMBERS["small_parts"]}
_PART |= {f"{word}s": part for word, part in _PART.items()} | {"halves": 2}
_COINS = {"quarter", "quarters", "half", "halves"}  # "5 quarters" are coins, "three quarters" are not
_NO_UNIT = {*NUMBERS["no_unit"], *SMALL} - {"one"}
_VULGAR = {c: " " + unicodedata.normalize("NFKC", c).replace("⁄", "/") for c in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"}
_FULL_WIDTH = {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
_PLAIN = {sign: plain for plain, signs in NUMBERS["characters"].items() for sign in signs}
_CHARACTERS = str.maketrans(_FULL_WIDTH | _PLAIN | _VULGAR)
_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_KINDS: list[dict[str, int]] = NUMBERS["kinds"]


def parse_number(value: str | int | float | None) -> Fraction | None:
    r"""Return the number that a short text says, exactly; None when it does not say one number.

    Understood: thousands separators (``1,080``, ``1 080``, ``10,00,000``, ``1.080,50``), decimals, signs of
    every kind, ``3/4`` and ``1 1/2``, LaTeX fractions and spaces, currency signs, powers of ten
    (``3 x 10^8``), "5 million", "$1.5M", number words ("a hundred and five", "two dozen", "none"), "about",
    units ("72 clips", "5cm", "5 cm^2"), and a percent sign, which is read as a unit (50 % = 50). "2-3/4" is a
    mixed number; a date and a decade are none.

    >>> parse_number("$1,080.50"), parse_number("1 1/2 cup"), parse_number("3x"), parse_number("minus twelve")
    (Fraction(2161, 2), Fraction(3, 2), None, Fraction(-12, 1))
    """
    if value is None or isinstance(value, bool):
        return None
    if not isinstance(value, str):
        finite = abs(value) < float("inf")
        return Fraction(value if isinstance(value, int) else str(value)) if finite else None
    if len(value) > _LONGEST:
        return None
    text = without_markup(value)
    if FIND.date.search(text):
        return None
    match = FIND.number.fullmatch(text)
    return _of_digits(match) if match else _of_words(text)


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
    longest = min(max(_places(a), _places(b)), 12)
    return first == second or (longest >= 6 and round(first, longest) == round(second, longest))


def same_answer(a: str | int | float | None, b: str | int | float | None) -> bool:
    """Whether two final answers agree: as numbers where both are, else as texts but for case and spaces.

    Some say two things, and agree with either: "25%" with 25 and 0.25, "5 hours and 30 minutes" with 5.5 and
    330, "B) 12 apples" with B and 12, "5,5" with 5.5.

    >>> same_answer("5 hours and 30 minutes", "330 minutes"), same_answer(r"\\frac{\\pi}{4}", r"\\pi/4")
    (True, True)
    """
    if a in (None, "") or b in (None, ""):
        return False
    a, b = str(a), str(b)
    if same_number(a, b):
        return True
    first, second = other_readings(a), other_readings(b)
    if bool(first) != bool(second):
        plain = b if first else a
        return any(_agree(reading, plain) for reading in first or second) or _squeezed(a) == _squeezed(b)
    if first and first == second and not isinstance(first[0], str):
        return parse_number(a) is None and parse_number(b) is None
    if parse_number(a) is not None and parse_number(b) is not None:
        return False
    return _squeezed(a) == _squeezed(b)


def other_readings(text: str) -> list[Fraction | str]:
    """Return what else an answer can be read as; nothing for one that says one thing.

    >>> other_readings("25%"), other_readings("B) 12 apples"), other_readings("25")
    ([Fraction(1, 4)], ['B', '12 apples'], [])
    """
    if len(text) > _LONGEST:
        return []
    text = without_markup(text)
    value = parse_number(text)
    if value is not None:
        return [value / 100] if re.search(r"%|\bper ?cent\b", text) else []
    if match := FIND.whole_power.fullmatch(text):
        return _power(*match.groups())
    if match := FIND.lettered.fullmatch(text):
        return [match[1], match[2]]
    if match := re.fullmatch(r"[€£$]?\s?([-+]?\d+),(\d{1,2})\s?(?:[€£$%]|euros?)?", text, re.I):
        return [Fraction(f"{match[1]}.{match[2]}")] if len(match[1]) <= _DIGITS_MOST else []
    return list(_compound(text))


def plain_characters(text: str) -> str:
    """Return the text with ASCII signs, spaces and digits: −3 as -3, ½ as 1/2, 10² as 10^2.

    >>> plain_characters("−3, 1½ and １０²")
    '-3, 1 1/2 and 10^2'
    """
    text = re.sub(r"(?<![^\s(=:$])[⁻—](?=[\d$.])", "-", text.translate(_CHARACTERS))
    return re.sub(r"[⁰¹²³⁴-⁹⁻]+", lambda found: "^" + found.group().translate(_SUPERSCRIPT), text)


def plain_latex(text: str) -> str:
    r"""Return the text without the LaTeX of numbers: fractions, powers of ten, spaces, units, dollar signs.

    >>> plain_latex(r"1\frac{1}{2}"), plain_latex(r"3 \times 10^{8}\text{ m}")
    ('1 (1)/(2)', '3e8  m ')
    """
    for pattern, replacement in LATEX:
        text = pattern.sub(replacement, text)
    return text


def clean(text: str) -> str:
    """Return the text without what Markdown and quotation put around it, and without a closing full stop."""
    return text.strip().strip("*`\"'“”_").strip().removesuffix(".").strip()


def without_markup(text: str) -> str:
    """Take off what does not change a number: LaTeX, Markdown, "about", "x =", brackets."""
    text = clean(plain_characters(text))
    if len(text) > 1 and text[0] == text[-1] == "$":
        text = text.strip("$")
    text = clean(plain_latex(text))
    text = FIND.before_number.sub("", FIND.before_number.sub("", text))
    return text[1:-1].strip() if re.fullmatch(r"\((?:[^(),]|\(\w+\))*\)", text) else text


def _of_digits(match: re.Match[str]) -> Fraction | None:
    """Return the number of a text that begins with digits: 1 1/2, 3e8, $1.5M, 5 million, 5 cm^2."""
    power = match["power"] or "0"
    parts = [match[name] or default for name, default in (("whole", "0"), ("top", "0"), ("bottom", "1"))]
    if max(map(len, parts)) > _DIGITS_MOST or len(power) > 5 or abs(int(power)) > _EXPONENT_MOST:
        return None
    whole, top, bottom = map(_exact, parts)
    if bottom == 0 or (match["hyphen"] and not 0 < top < bottom):
        return None  # "5-12/3" is a difference
    number = whole + top * Fraction(10) ** int(power) / bottom
    value = _with_unit(number, match["unit"], bool(match["currency"]))
    signs = [match["sign"].lower(), match["sign2"], match["topsign"], match["bottomsign"]]
    negative = sum(sign not in ("", "+", None) for sign in signs) % 2
    return -value if value is not None and negative else value


def _power(base: str, exponent: str) -> list[Fraction | str]:
    """Return 2^10 worked out; nothing where that has too many digits."""
    if base.strip("0") == "" or len(exponent) > 4 or len(base) * abs(int(exponent)) > _DIGITS_MOST:
        return []
    return [Fraction(int(base)) ** int(exponent)]


def _with_unit(value: Fraction, unit: str, currency: bool) -> Fraction | None:
    """Return the value times what its unit multiplies by; None when what follows is no unit."""
    glued = re.match(r"[A-Za-z]+", unit)
    if glued and glued.group() in _GLUED_SCALE and (currency or glued.group() not in ("m", "B")):
        value, unit = value * _GLUED_SCALE[glued.group()], unit[glued.end() :]
    elif found := FIND.glued_unit.match(unit):
        unit = unit[found.end() :]
    unit = re.sub(r"^(?=-[A-Za-z])|(?<=[A-Za-z])\s*\^\s*\(?[23]\)?", " ", unit)
    if not re.match(r"[\s.,;)]|/[A-Za-z]|$", unit) or re.search(r"[\d=<>+*\\^{}‰]", unit):
        return None
    words = _words(unit)
    if words and words[0] in _PART and words[0] not in _COINS:
        value, words = value / _PART[words[0]], words[1:]
    return _scaled(value, words)


def _of_words(text: str) -> Fraction | None:
    """Return the number that begins a text in words: twelve, a hundred and five, two thirds, half a dozen."""
    words = [] if re.search(r"\d", text) or FIND.choices.match(text) else _words(text)
    if words and words[0] in ("minus", "negative"):
        value = _of_words(" ".join(words[1:]))
        return None if value is None else -value
    if words and words[0] in NUMBERS["none"]:
        return Fraction(0) if len(words) < 4 else None
    value, rest = _with_places(*_cardinal(words))
    if value and rest[:1] == ["over"] and (bottom := _cardinal(rest[1:]))[0] and not bottom[1]:
        value, rest = value / bottom[0], []
    if words[:1] == ["half"]:
        value, rest = Fraction(1, 2), words[2:] if words[1:2] in (["a"], ["an"]) else words[1:]
    elif words[:1] in (["a"], ["an"], ["one"]) and words[1:2] and words[1] in _PART:
        value, rest = Fraction(1, _PART[words[1]]), words[2:]
    elif rest[:2] == ["and", "a"] and words[-len(rest) - 1] in SCALES:
        return None  # "a million and a half" is no million and 0.5
    elif value is not None and rest and rest[0] in _PART:
        if value >= 20 and not rest[0].endswith(("s", "half")):
            return None  # "twenty-third" is a place
        value, rest = value / _PART[rest[0]], rest[1:]
    return None if value is None else _scaled(value, rest)


def _cardinal(words: list[str]) -> tuple[Fraction | None, list[str]]:
    """Return the whole number that begins a list of words, None where none does, and the words after it."""
    total, group, k = 0, 0, 0
    for k, word in enumerate([*words, ""]):
        after = words[k + 1] if k + 1 < len(words) else ""
        if word in SMALL and (
            group % 100 == 0 or (group % 100 >= 20 and group % 10 == 0 and SMALL[word] < 10)
        ):
            group += SMALL[word]
        elif word in ("a", "an") and k == 0 and after in SCALES:
            group = 1
        elif k and word in ("hundred", "dozen"):
            group *= SCALES[word]
        elif k and word in SCALES:
            total, group = total + (group or 1) * SCALES[word], 0
        elif not (k and word == "and" and group % 100 == 0 and after in SMALL):
            break
    return (Fraction(total + group), words[k:]) if k else (None, words)


def _with_places(whole: Fraction | None, words: list[str]) -> tuple[Fraction | None, list[str]]:
    """Return a number with its places in words, "one point five", and the words after them."""
    digits = [SMALL[word] for word in itertools.takewhile(lambda word: SMALL.get(word, 10) < 10, words[1:])]
    if words[:1] != ["point"] or not digits:
        return whole, words
    return Fraction(f"{whole or 0}.{''.join(map(str, digits))}"), words[1 + len(digits) :]


def _scaled(value: Fraction, words: list[str]) -> Fraction | None:
    """Return a number with the words after it: "and a half", "million"; None when they are no unit."""
    if words[:1] == ["and"] and (part := _of_words(" ".join(words[1:3]))) is not None and 0 < part < 1:
        value, words = value + part, words[3 if words[1] != "half" else 2 :]
    while words and words[0].removesuffix("s") in SCALES:
        value, words = value * SCALES[words[0].removesuffix("s")], words[1:]
        tail, rest = _cardinal(words[1:] if words[:1] == ["and"] else words)
        if tail is not None and tail < 1000:
            value, words = value + tail, rest
    return None if _NO_UNIT.intersection(words) else value


def _compound(text: str) -> list[Fraction]:
    """Return a quantity told in several units in each of them: 5 hours 30 minutes is 5.5 and 330."""
    if not FIND.compound.fullmatch(text):
        return []
    parts = [(_exact(number), unit.lower()) for number, unit in FIND.one_measure.findall(text)]
    kind = next((kind for kind in _KINDS if all(unit in kind for _, unit in parts)), None)
    if kind is None:
        return []
    sizes = [kind[unit] for _, unit in parts]
    if sizes != sorted(set(sizes), reverse=True):
        return []  # "12 years, 4 years"
    total = sum((number * kind[unit] for number, unit in parts), Fraction(0))
    return [total / size for size in sizes]


def _agree(reading: Fraction | str, plain: str) -> bool:
    return same_answer(reading, plain) if isinstance(reading, str) else parse_number(plain) == reading


def _exact(digits: str) -> Fraction:
    if re.search(r"[. ]\d{3},\d{1,2}$|\.\d{3}\.\d{3}$", digits):  # 1.080,50
        digits = digits.replace(".", "").replace(" ", "").replace(",", ".")
    return Fraction(re.sub(r"[, '’_]", "", digits))


def _places(value: str | int | float | None) -> int:
    match = re.search(r"\.(\d+)", str(value)) if not isinstance(value, int) else None
    return len(match[1]) if match else 0


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.lower())


def _squeezed(text: str) -> str:
    r"""Return an answer that is no number as it is compared: \sqrt3 as sqrt(3), \frac{\pi}{4} as pi/4."""
    if len(text) > 10 * _LONGEST:
        return "".join(text.split()).casefold()
    text = re.sub(
        r"^the\s+|^(?:option|choice|letter)\s+(?=\(?[A-J]\)?\W*$)", "", without_markup(text), flags=re.I
    )
    text = re.sub(r"\s+|(?<=[ap])\.(?=m)", "", text.replace("\\", "").replace("π", "pi"))
    for _ in range(2):  # (sqrt(3))/2
        text = re.sub(r"\((\w+)\)", r"\1", text)
    text = re.sub(r"(?<=\d)(?:to|through|[~…]|\.{2,3})(?=-?\d)", "-", re.sub(r"[{}]", "", text))  # 5 to 7
    return re.sub(r"(?<!\d)!+$", "", text.strip(".,;:?$")).casefold()  # 5! is no 5
