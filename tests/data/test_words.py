"""The table of words and patterns: every piece is filled in, and a pattern finds what it is named after."""

from __future__ import annotations

import re

import pytest

from workbench.data.words import FIND, LATEX, NUMBERS


def test_no_pattern_names_a_piece_that_is_not_filled_in():
    patterns = [*vars(FIND).values(), *(pattern for pattern, _ in LATEX)]
    assert not [one.pattern for one in patterns if re.search(r"\{[a-z_]+\}", one.pattern)]


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("statement", "So the final ANSWER is: 5", "ANSWER is:"),
        ("number_in_text", "about $1,080.50 a day", "$1,080.50"),
        ("compound", "in 5 hours and 30 minutes", "5 hours and 30 minutes"),
        ("spelled", "that is twenty-one apples", "twenty-one "),
        ("taken", "5, no wait, 6", "wait"),
        ("sum", " + 3", " + 3"),
    ],
)
def test_a_pattern_finds_what_it_is_named_after(name, text, found):
    assert getattr(FIND, name).search(text).group() == found


def test_units_of_one_kind_are_told_in_the_smallest():
    assert all(min(kind.values()) == 1 for kind in NUMBERS["kinds"])
