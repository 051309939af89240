"""Numbers as people write them: exact, the same however they are written, and nothing hangs on them."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest

from workbench.data.quantities import other_readings, parse_number, same_answer, same_number

SAME = [
    ("1,000", "1000"),
    ("1000", "1000.0"),
    ("$18", "18 dollars"),
    (r"\$18", "18"),
    ("1/2", "0.5"),
    ("1 1/2", "3/2"),
    (r"\frac{3}{4}", "0.75"),
    (r"\dfrac12", "1/2"),
    (r"$\frac{1}{2}$", ".5"),
    ("-3", "−3"),
    ("-$5", "$-5"),
    ("(-3)", "-3.00"),
    (r"72\text{ clips}", "72"),
    ("72 clips", "72."),
    ("50%", "50"),
    (r"50\%", "50 %"),
    ("5 million", "5,000,000"),
    (r"7{,}200", "7200"),
    (r"1\,000", "1000"),
    ("5cm", "5 cm"),
    ("20 km/h", "20"),
    (r"2.5 \times 10^{3}", "2500"),
    ("1e3", "1000"),
    ("x = 5", "5"),
    (r"90^\circ", "90"),
    ("0.333333", "1/3"),
    ("0.30000000000000004", "0.3"),
    ("29.0", "29"),
    ("1234567890123456789", "1,234,567,890,123,456,789"),
    (1000, "1,000"),
    (0.1, "1/10"),
]
DIFFERENT = [
    ("1000", "1001"),
    ("1,000,000", "1,000,001"),
    ("0.33", "1/3"),
    ("-5", "5"),
    ("5", "5 million"),
    ("1234567890123456789", "1234567890123456788"),
    ("0.333333", "0.333334"),
]
NO_NUMBER = [
    "", None, "abc", "3x", "2ab", "10:30", "3 and 4", "1,5", "12,34", "1234,567", "1/0", "5-3", "2 or 3",
    "H2O", float("nan"), float("inf"), True,
]  # fmt: skip


@pytest.mark.parametrize(("a", "b"), SAME)
def test_the_same_number_is_the_same_however_it_is_written(a, b):
    assert same_number(a, b)
    assert same_number(b, a)


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_different_numbers_stay_different(a, b):
    assert not same_number(a, b)


@pytest.mark.parametrize("text", NO_NUMBER)
def test_what_is_not_one_number_equals_nothing(text):
    assert parse_number(text) is None
    assert not same_number(text, text)


def test_numbers_are_exact():
    assert parse_number("0.1") == Fraction(1, 10)
    assert parse_number("4 1/2 cups") == Fraction(9, 2)


SAME_IN_WORDS = [
    ("a hundred and five", "105"),
    ("two and a half million", "2,500,000"),
    ("half a dozen", "6"),
    ("minus twenty-one", "-21"),
    ("three quarters", "0.75"),
    ("5 quarters", "5"),  # coins
    ("none", "0"),
    ("1½", "1.5"),
    (r"1\frac{1}{2}", "1.5"),
    (r"\frac{-3}{4}", r"-\frac34"),
    ("3 x 10^8", "3e8"),
    ("３ × 10⁸", "300000000"),
    ("10,00,000", "1 000 000"),
    ("1.080,50", "1,080.5"),
    ("$1.5M", "1500000"),
    ("about 15k", "15000"),
    (r"5 \text{ cm}^2", "5"),
    ("–3", "-3"),
]
MORE_THAN_A_NUMBER = [
    "5+3",
    "5^2",
    "5²",
    "√5",
    "5!",
    "5 squared",
    "5 or more",
    "5π",
    r"5 \pi",
    "±5",
    "five or six",
    "x > 5",
]


@pytest.mark.parametrize(("a", "b"), SAME_IN_WORDS)
def test_words_signs_and_separators_of_every_kind_say_their_number(a, b):
    assert same_number(a, b) and same_answer(b, a)


@pytest.mark.parametrize("text", MORE_THAN_A_NUMBER)
def test_what_says_more_than_a_number_is_not_taken_for_it(text):
    assert parse_number(text) is None
    assert not same_answer(text, "5") and same_answer(text, text)


def test_an_answer_that_says_two_things_agrees_with_either_and_not_with_a_third():
    for text, readings, other in [
        ("25%", ["25", "0.25"], "2.5"),
        ("5 hours and 30 minutes", ["5.5", "330", "5 h 30 min"], "5"),
        ("B) 12 apples", ["B", "12"], "C"),
        ("5,5", ["5.5", "5,50"], "5"),
    ]:
        assert all(same_answer(text, one) and same_answer(one, text) for one in readings)
        assert not same_answer(text, other)
    assert not same_answer("50%", "0.5%") and not same_answer("B) 12", "C) 12")
    assert other_readings("2 apples and 3 pears") == []


@pytest.mark.parametrize(
    "text",
    [
        "1e10000000",
        "1e999999999",
        r"3 \times 10^{99999999}",
        "9" * 5000,
        "1" * 5000 + "/3",
        "0." + "3" * 5000,
    ],
)
def test_numbers_too_long_to_work_with_are_compared_as_texts(text):
    assert parse_number(text) is None
    assert same_answer(text, text) and not same_answer(text, "1")


def test_numbers_themselves_are_numbers_of_any_size():
    import numpy as np

    assert parse_number(10**5000) == 10**5000 and parse_number(np.int64(7)) == 7
    assert parse_number(np.float64("nan")) is None
    assert same_answer(0, "zero") and not same_answer(5, "6") and not same_answer(None, 0)


def test_a_number_survives_every_way_of_writing_it():
    draw = random.Random(0)
    for _ in range(300):
        whole, cents = draw.randrange(-(10**7), 10**7), draw.randrange(100)
        sign = "-" if whole < 0 else ""
        text = f"{abs(whole)}.{cents:02d}"
        value = Fraction(text) * (-1 if sign else 1)
        grouped = f"{abs(whole):,}.{cents:02d}"
        for written in (
            sign + text, sign + grouped, f"{sign}${grouped}", f"{sign}{grouped.replace(',', chr(0x202F))}",
            f"\u2212{text}" if sign else f"+{text}", f"about {sign}{text} apples", f"${sign}{text}$",
            f"({sign}{text})",
        ):  # fmt: skip
            assert parse_number(written) == value, written
