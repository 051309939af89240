"""What one sentence states: the number that it comes to, and none where it leaves that open."""

from __future__ import annotations

import pytest

from workbench.data.statements import left_open, main_number, numbers_in, plain_text, stated


@pytest.mark.parametrize(
    ("sentence", "answer"),
    [
        ("72 clips in 2 months", "72"),
        ("that each of the 4 friends gets 12 apples", "12"),
        ("3 + 5 = 8 apples in 2 days", "8"),
        ("12, because 3 * 4 = 12", "12"),
        ("12 apples in total, 5 red and 7 green", "12 apples in total"),
        ("150 minutes or 2 hours 30 minutes", "150 minutes"),
        ("yes, they can", "yes"),
        ("B, because it is larger", "B"),
    ],
)
def test_a_statement_gives_the_answer_without_what_is_said_in_passing(sentence, answer):
    assert stated(sentence) == answer


@pytest.mark.parametrize(
    "sentence", ["5 or 6", "5, 6", "5 + 3", "5 oder 6", "not 5", "between 5 and 6", "5 if it rains"]
)
def test_a_statement_that_leaves_it_open_stays_whole(sentence):
    assert stated(sentence) == sentence
    assert left_open(sentence, numbers_in(sentence)[:1]) or left_open(sentence, numbers_in(sentence))


def test_numbers_of_running_text_are_found_with_their_sign_and_place_and_labels_are_none():
    text = "Step 2: from −3 to $1,080.50, 4 - 1 = 3 km/h (5^2).".replace("−", "-")
    found = numbers_in(text)
    assert [number for *_, number in found] == ["-3", "$1,080.50", "4", "1", "3"]
    assert all(number.strip("-") in text[start:end] for start, end, number in found)
    assert numbers_in("1. Add\n2. Multiply") == []


def test_formulas_become_plain_text():
    assert plain_text(r"$x = - 5$ isn't $\frac{1}{2}$").split() == ["x", "=", "-5", "is", "not", "(1)/(2)"]


def test_the_last_clause_with_a_number_of_its_own_counts():
    for sentence, number in [
        ("She saves $5 a week, so in 4 weeks she saves $20", "$20"),
        ("James writes 624 pages in a year (52 weeks)", "624"),
        ("120/24 = 5 hours to read 120 pages", "5"),
        ("Her age is 12 years, 4 years older than Tom", "12"),
    ]:
        assert main_number(sentence, numbers_in(sentence)) == number
