"""Which rewrites are kept and why: the final answer, and what no training text should hold."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from workbench.healing.judging import (
    KEPT_ANSWER,
    KEPT_OPEN,
    KEPT_SAME,
    LEAKS,
    closing_words,
    judge,
    with_closing,
)


@pytest.mark.parametrize(
    ("rewrite", "verdict"),
    [
        ("Two and two is 4. The answer is 4.", (True, KEPT_ANSWER)),
        ("So $\\boxed{4.0}$ it is.", (True, KEPT_ANSWER)),
        ("#### 4", (True, KEPT_ANSWER)),
        ("The answer is 5.", (False, "another final answer")),
        ("I do not know.", (False, "no final answer")),
        ("  \n", (False, "empty")),
    ],
)
def test_a_math_rewrite_is_kept_for_its_final_answer(rewrite, verdict):
    row = {"instruction": "2+2?", "context": "", "reference": "2+2 #### 4", "answer": "4", "finished": True}
    assert judge(row | {"rewrite": rewrite}) == verdict


@pytest.mark.parametrize(
    ("rewrite", "verdict"),
    [
        ("A fine reply to the question.", (True, KEPT_OPEN)),
        ("Here is my response: a fine reply.", (False, "shows the prompt")),
        ("The Reference Answer says so.", (False, "shows the prompt")),
        ("Tell them about books. " * 10, (False, "repeats itself")),
        ("", (False, "empty")),
    ],
)
def test_an_open_rewrite_is_kept_by_plain_quality_rules(rewrite, verdict):
    row = {"instruction": "Tell", "context": "", "reference": "A reply.", "answer": "", "finished": True}
    assert judge(row | {"rewrite": rewrite}) == verdict
    assert judge(row | {"rewrite": rewrite or "x", "finished": False}) == (False, "cut off")


def test_words_of_the_row_itself_are_no_leak_and_its_own_repetition_is_allowed():
    row = {"instruction": "What is a reference answer?", "context": "", "answer": "", "finished": True}
    assert judge(row | {"reference": "It is.", "rewrite": "A reference answer is this."})[0]
    song = "la la la la " * 8
    assert judge(row | {"reference": song, "rewrite": song})[0]
    assert not judge(row | {"reference": "a song", "rewrite": song})[0]


WORKED = "She sold 48/2 = 24 clips in May. Altogether she sold 48 + 24 = 72 clips. #### 72"
MATHS = {
    "instruction": "How many clips?",
    "context": "",
    "reference": WORKED,
    "answer": "72",
    "finished": True,
}
OPEN = {
    "instruction": "Name a fruit.",
    "context": "",
    "reference": "An apple.",
    "answer": "",
    "finished": True,
}


@pytest.mark.parametrize(
    ("rewrite", "reason"),
    [
        ("As the reference solution shows, 48 + 24 = 72. The answer is 72.", "shows the prompt"),
        ("I get 70, but the reference says 72. The answer is 72.", "shows the prompt"),
        ("Based on the provided answer, 48 + 24 = 72. The answer is 72.", "shows the prompt"),
        ("48+24=72. " * 60, "repeats itself"),
        ("72", "no reasoning"),
        ("The answer is 72.", "no reasoning"),
        ("#### 72", "no reasoning"),
        ("\\boxed{72}", "no reasoning"),
        ("The answer is 5 or 72.", "another final answer"),
        ("48 + 24 = 72 clips. The answer is −72.", "another final answer"),
        ("I'm sorry, but I can't help with 72 clips, whatever the question may be.", "refuses to answer"),
    ],
)
def test_a_right_final_answer_is_not_enough_for_a_math_rewrite(rewrite, reason):
    assert judge(MATHS | {"rewrite": rewrite}) == (False, reason)


def test_a_short_working_out_is_one_and_so_is_a_bare_answer_to_a_bare_reference():
    assert judge(MATHS | {"rewrite": "48 + 24 = 72"}) == (True, KEPT_ANSWER)
    assert judge(MATHS | {"reference": "#### 72", "rewrite": "72"}) == (True, KEPT_ANSWER)


@pytest.mark.parametrize("row", [MATHS, OPEN])
def test_the_reference_itself_is_kept_and_counted_apart(row):
    for text in (
        row["reference"],
        row["reference"].replace(". ", ".\n"),
        row["reference"].replace("= ", "= <<1=1>>"),
    ):
        assert judge(row | {"rewrite": text}) == (True, KEPT_SAME)


@pytest.mark.parametrize(
    ("rewrite", "reason"),
    [
        ("I'm sorry, but I can't help with that.", "refuses to answer"),
        ("I’m sorry, but I cannot name one.", "refuses to answer"),
        ("I cannot answer this question.", "refuses to answer"),
        ("Unfortunately, I can't do that.", "refuses to answer"),
        ("I'm afraid I can't assist with that request.", "refuses to answer"),
        ("As an AI language model, I can not eat fruit.", "refuses to answer"),
        ("An apple. Now it's your turn: name one.", "shows the prompt"),
        ("Your turn! Name a fruit.", "shows the prompt"),
        ("Based on the provided answer, it is an apple.", "shows the prompt"),
        ("...", "says nothing"),
        ("?!", "says nothing"),
        ("a" * 400, "repeats itself"),
        ("An apple. " + "a" * 400, "repeats itself"),
        ("苹果很好吃。" * 20, "repeats itself"),
        ("Apple " * 14, "repeats itself"),
        ("AppleAppleAppleAppleAppleApple", "repeats itself"),
        ("no " * 9, "repeats itself"),
    ],
)
def test_what_no_open_response_should_be_is_refused_with_its_reason(rewrite, reason):
    assert judge(OPEN | {"rewrite": rewrite}) == (False, reason)


@pytest.mark.parametrize(
    "rewrite",
    [
        "Apple",
        "A pear is a fruit, and so is an apple.",
        "苹果是一种常见的水果，味道很甜，可以生吃，也可以做成果汁。",
        "I can name one: the pear.",
        "Sorry to keep you waiting: a pear.",
        "I can't believe it: a pear!",
        "Unfortunately, the apple is the only fruit that I like.",
        "Pneumonoultramicroscopicsilicovolcanoconiosis",
        "1. apple\n2. pear\n3. plum\n4. fig\n5. kiwi",
    ],
)
def test_good_open_responses_are_kept(rewrite):
    assert judge(OPEN | {"rewrite": rewrite}) == (True, KEPT_OPEN)


def test_a_refusal_that_the_reference_makes_is_no_flaw():
    row = OPEN | {"reference": "I'm sorry, but I can't do that."}
    assert judge(row | {"rewrite": "I'm sorry, but I can't, as I have no hands."})[0]


def test_the_phrases_are_in_lower_case_with_plain_apostrophes():
    assert all(phrase == phrase.lower().replace("’", "'") for phrase in LEAKS)


@pytest.mark.parametrize(
    ("rewrite", "response"),
    [
        ("48 + 24 = 72\nThe answer is 72.", "48 + 24 = 72\n#### 72"),
        ("48 + 24 = 72\n\n**Answer: 72 clips**", "48 + 24 = 72\n#### 72"),
        ("48 + 24 = 72\n#### $72.00", "48 + 24 = 72\n#### 72"),
        ("48 + 24 = 72\n#### 72", "48 + 24 = 72\n#### 72"),
        ("48 + 24 = 72 clips.", "48 + 24 = 72 clips.\n#### 72"),
        ("She has 48 and 24. The answer is 72.", "She has 48 and 24. The answer is 72.\n#### 72"),
        ("The answer is 72.", "The answer is 72.\n#### 72"),
        ("48 + 24 = 71\nThe answer is 71.", "48 + 24 = 71\nThe answer is 71."),
    ],
)
def test_a_rewrite_is_given_the_closing_line_of_its_reference(rewrite, response):
    assert with_closing(rewrite, MATHS) == response
    assert with_closing(rewrite, MATHS | {"reference": "She sold 72."}) == rewrite


@pytest.mark.parametrize(
    ("rewrite", "response"),
    [
        ("Half of 3/2.\nThe answer is 3/4.", "Half of 3/2.\nThe answer is $\\boxed{\\frac34}$."),
        ("Half of 3/2 is 0.75.", "Half of 3/2 is 0.75.\nThe answer is $\\boxed{\\frac34}$."),
        ("It is \\boxed{0.75}.", "It is \\boxed{0.75}."),
        ("Half of 3/2.\nThe answer is 3/5.", "Half of 3/2.\nThe answer is 3/5."),
    ],
)
def test_a_reference_in_a_box_is_asked_for_and_closed_by_a_box(rewrite, response):
    row = {"reference": "So it is $\\boxed{\\frac34}$.", "answer": "\\frac34"}
    assert with_closing(rewrite, row) == response
    assert closing_words(row["reference"]) == "\\boxed{...}"


def test_good_rewrites_of_a_real_model_are_kept(shared_data):
    text = (shared_data / "sdft_alpaca_pairs.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.split("\n") if line]
    reasons = Counter(
        judge(
            {
                "instruction": row["instruction"],
                "context": row["input"],
                "reference": row["output"],
                "answer": "",
                "rewrite": row["distilled_output"],
                "finished": True,
            }
        )
        for row in rows
    )
    assert sum(n for (kept, _), n in reasons.items() if not kept) <= 10, reasons
    assert 300 < reasons[True, KEPT_SAME] < 400  # counted, not hidden among the good ones
