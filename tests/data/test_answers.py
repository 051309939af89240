"""Final answers: found where a reader would find them, and compared as numbers."""

from __future__ import annotations

from fractions import Fraction

import pytest

from workbench.data.answers import final_answer, parse_number, same_answer, same_number
from workbench.data.sources import read_rows

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


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("She has <<48/2=24>>24 clips.\n#### 72", "72"),
        ("#### 1,080\n", "1,080"),
        ("#### -5", "-5"),
        ("18+54=72; 72/2=36 #### 36", "36"),
        (r"so $\boxed{\frac{1}{2}}$ it is, not 7", r"\frac{1}{2}"),
        (r"First \boxed{3}, then \boxed{4}.", "4"),
        (r"\boxed{5", "5"),  # cut off inside the box: the last number
        ("The answer is 72 clips.", "72 clips"),
        ("The answer is 72. That is more than 5.", "72"),
        ("The answer is 3.5.", "3.5"),
        ("The answer is therefore 3 + 5 = 8.", "8"),
        ("The answer is 8 apples out of 10.", "8"),
        ("The answer is 3. No: the answer is 4.", "4"),
        ("**Answer: 42**", "42"),
        ("Die Antwort ist 12.", "12"),
        ("The answer is B.", "B"),
        ("The answer is yes", "yes"),
        ("Together they have 5 - 3 = 2 apples.", "2"),
        ("55-3", "3"),  # an operation, not minus three
        ("It was -4 degrees.", "-4"),
        ("It costs $1,234.50.", "$1,234.50"),
        ("nothing to see", None),
        ("water is H2O", None),
        ("", None),
        (None, None),
        ("only a mark <<1+1=2>>", None),
    ],
)
def test_the_final_answer_is_found(text, answer):
    assert final_answer(text) == answer


def test_answers_that_are_no_numbers_agree_as_texts():
    assert same_answer("Yes", "yes.")
    assert same_answer(r"x^2 + 1", "x^2+1")
    assert not same_answer("yes", "no")
    assert not same_answer("", "")
    assert not same_answer("5", "yes")


def test_every_gsm8k_reference_has_a_number_and_its_text_agrees(shared_data):
    rows = read_rows(shared_data / "gsm8k_train.jsonl")
    answers = [final_answer(row["answer"]) for row in rows]
    assert all(parse_number(answer) is not None for answer in answers)
    # without the mark, the last number of the worked solution nearly always is the answer (GSM8K ends on it)
    without = [final_answer(row["answer"].split("####")[0]) for row in rows]
    agree = sum(map(same_number, answers, without)) / len(rows)
    assert 0.96 < agree < 1
