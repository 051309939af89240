"""Checks that every room shares name the argument, what is allowed and what came."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from workbench.checks import checked, first_line, is_whole, near, one_of, printable, told, whole_number


def test_whole_numbers_are_those_of_python_and_numpy_and_no_truth_values():
    assert [is_whole(value) for value in (3, np.int64(3), True, np.True_, 3.0, "3", None)] == [True] * 2 + [
        False
    ] * 5


def test_a_whole_number_is_returned_as_pythons_own():
    number = whole_number(np.int64(3), "n")
    assert (number, type(number)) == (3, int)
    assert whole_number(0, "n", least=0) == 0


@pytest.mark.parametrize(
    ("value", "bounds", "message"),
    [
        (0, {}, "n must be a whole number >= 1, got 0"),
        (True, {}, "n must be a whole number >= 1, got True"),
        ("3", {}, "n must be a whole number >= 1, got '3'"),
        (9, {"least": 2, "most": 8}, "n must be a whole number from 2 to 8, got 9"),
    ],
)
def test_what_is_no_whole_number_within_its_bounds(value, bounds, message):
    with pytest.raises(ValueError, match=message):
        whole_number(value, "n", **bounds)


def test_what_a_terminal_would_act_on_is_spelled():
    assert printable("a\x1b]0;x\x07\nb\x9b2J\u202e") == "a\\x1b]0;x\\x07\nb\\x9b2J\\u202e"
    assert printable("übung, 日本語") == "übung, 日本語"
    with pytest.raises(ValueError, match=r"^x: \\x1b\[31mred$"), told("x", ValueError):
        raise ValueError("\x1b[31mred")


def test_a_slip_is_asked_about():
    assert near("n_text", ["seed", "n_texts"]) == " (did you mean n_texts?)"
    assert near("x", ["seed", "n_texts"]) == near("seed", []) == ""


def test_one_of_several():
    assert one_of(None, ["a", None], "kind") is None
    with pytest.raises(ValueError, match="kind must be one of a, None, got 'b'"):
        one_of("b", ["a", None], "kind")


def test_a_frame_is_checked_for_columns_rows_and_unique_values():
    frame = pd.DataFrame({"id": ["x", "y", "x"], "value": [1, 2, 3]})
    assert checked(frame, ["id"], "scores") is frame
    for wrong, options, message in (
        ([1], {}, "scores must be a pandas DataFrame, got list"),
        (frame, {"columns": ["id", "n"]}, r"scores needs the columns \['id', 'n'\]; missing \['n'\], got"),
        (frame[:0], {}, "scores must have at least one row, got an empty frame"),
        (frame, {"unique": "id"}, "scores must hold each id once, got 'x' again"),
    ):
        with pytest.raises(ValueError, match=message):
            checked(wrong, **({"columns": ["id"], "what": "scores"} | options))


def test_the_first_line_of_an_error_or_else_its_kind():
    assert first_line(ValueError("\n  one \ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"
