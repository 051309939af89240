"""Final answers: found where a reader would find them, and nothing else taken for them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from workbench.data.answers import final_answer, without_calculator_marks, without_thoughts
from workbench.data.files import read_rows
from workbench.data.quantities import parse_number, same_answer, same_number


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("She has <<48/2=24>>24 clips.\n#### 72", "72"),
        ("#### 1,080\n", "1,080"),
        ("#### -5", "-5"),
        ("18+54=72; 72/2=36 #### 36", "36"),
        (r"so $\boxed{\frac{1}{2}}$ it is, not 7", r"\frac{1}{2}"),
        (r"First \boxed{3}, then \boxed{4}.", "4"),
        ("It rang 4 + 18 = 22 times.\n\\boxed{22}", "22"),
        ("It rang 22 times. $\\boxed{22}$", "22"),
        ("She tapped 4 times\n$$\\boxed{4}$$", "4"),
        ("He does it twice.\n$$\n\\boxed{4}\n$$", "4"),
        ("It is 2 times \\boxed{9}", "not 9"),
        ("The answer is not\n\\[ \\boxed{5} \\]", "not 5"),
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
        ("55-3", None),  # a sum that is not worked out, and not minus three
        ("It is −3 degrees.", "-3"),
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
    rows = read_rows(shared_data / "gsm8k_train.jsonl")[::4]
    answers = [final_answer(row["answer"]) for row in rows]
    assert all(parse_number(answer) is not None for answer in answers)
    # without the mark, the last number of the worked solution nearly always is the answer (GSM8K ends on it)
    without = [final_answer(row["answer"].split("####")[0]) for row in rows]
    agree = sum(map(same_number, answers, without)) / len(rows)
    assert 0.98 < agree < 1


# --- a table of decisions -----------------------------------------------------------------------------------


def test_the_table_of_decisions_has_no_wrong_keep_and_few_wrong_refusals(capsys):
    text = Path(__file__).with_name("answers.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.split("\n") if line]
    assert len(rows) >= 300 and len({(row["text"], row["reference"]) for row in rows}) == len(rows)
    wrong = [row for row in rows if same_answer(final_answer(row["text"]), row["reference"]) != row["same"]]
    kept = [(row["text"], row["reference"]) for row in wrong if not row["same"]]
    refused = [(row["text"], row["reference"]) for row in wrong if row["same"]]
    with capsys.disabled():
        print(f"\n{len(rows)} decisions: {len(kept)} wrong keeps, {len(refused)} wrong refusals")
    assert kept == []
    assert len(refused) <= 0.02 * sum(row["same"] for row in rows), refused


FORMS = {
    "headings": "#### Step 1\n{work}\n#### Step 2\nThat is it.\nThe answer is {n}.",
    "final heading and box": "{work}\n#### Final Answer\n$\\boxed{{{n}}}$",
    "heading and line": "{work}\n\n**Final Answer:**\n{n}",
    "sentence": "{work}\nThe answer is: she has {n} clips in 2 months.",
    "offer": "{work}\nTotal: {n}. Let me know if you need help with 1 more problem!",
    "plain": "{work}\nThe answer is {n}.",
    "mark": "{work}\n#### {n}",
    "box": "{work}\nSo it is $\\boxed{{{n}}}$.",
    "aside": "{work}\nThe answer is ${n} per day, for 2 people.",
    "run on": "{work}\n#### {n}\n\nQuestion: Tom has 3 cows and 99 hens. How many?\nAnswer: 102\n#### 102",
}


def test_right_solutions_of_real_problems_are_kept_in_every_form_and_wrong_ones_are_not(shared_data):
    rows = read_rows(shared_data / "gsm8k_train.jsonl")[:200]
    halves = [without_calculator_marks(row["answer"]).split("####") for row in rows]
    for name, form in FORMS.items():
        said = [final_answer(form.format(work=work.strip(), n=n.strip())) for work, n in halves]
        shares = [sum(map(same_answer, said, (n.strip() + end for _, n in halves))) for end in ("", "7")]
        assert shares[0] >= 0.99 * len(rows), name
        assert shares[1] == 0, name
    bare = [same_answer(final_answer(work.strip()), n.strip()) for work, n in halves]
    assert sum(bare) >= 0.97 * len(rows)


# --- thoughts, and inputs that no model should write --------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<think>5?</think>\n\nIt is 6.", "It is 6."),
        ("5, or\n</think>\nIt is 6.", "It is 6."),  # the prompt opened the thought
        ("<thinking>a</thinking> b <thinking>c</thinking> d", "d"),
        ("It is 6. <think>Or 7", "It is 6."),
        ("<think>Or 7", ""),
        ("a < b and b > c ", "a < b and b > c "),
    ],
)
def test_thoughts_are_taken_off(text, said):
    assert without_thoughts(text) == said


PIECES = [
    *["9", "1,", "111,", "- ", "<<1", "answer ", "answer is ", "\\boxed{", "\\frac{1}{", "{", "}"],
    *["####", "#### ", "####1\n", "\n#", "\x00", "\ud800", "1e9", "(", ")", "$", "5 or ", "not "],
    *["\nQ: 1\n", "half a ", "5 hours ", "one hundred and ", "10^", "√", "<think>", "</think>", "="],
    *["1=1 ", "1/", "1.", "B) ", "\\text{", "\\sqrt{", "x = ", "let me know ", "wait, ", "½", "。"],
    *[
        "4 July 2023 ",
        "May ",
        "the 1990s ",
        "2-3/",
        "negative: ",
        "over ",
        "\\begin{cases}",
        "5? no ",
        "__",
        "<b>",
    ],
    *["答案是", "5-", "5 x ", "minus ", "\n", "*", " ", "\t", "_", "\\", "about ", "the answer is 5 "],
]


def test_no_text_is_too_long_or_too_odd_to_be_judged():
    for piece in PIECES:
        many = piece * (30_000 // len(piece))
        for text in (many, f"The answer is {many}.", f"{many}\n#### 5", f"\\boxed{{{many}}}"):
            assert not same_answer(final_answer(text), "no such answer")
        assert same_answer(many, many) or not many.strip(" \n\t")


def test_random_texts_of_odd_pieces_are_judged_without_an_error():
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choices(PIECES, k=draw.randrange(1, 40)))
        answer = final_answer(text)
        assert answer is None or (answer and same_answer(answer, "5") == same_answer("5", answer))


#: what answers of a small model are made of: steps within a line, labels, numbers cut off, odd signs
_PIECES = [
    "1",
    "2.",
    "3.5",
    "12",
    "$",
    "-",
    "=",
    "%",
    "\n",
    ". ",
    "! ",
    "? ",
    "Multiply",
    "the answer is",
    "or",
    "and",
]
_PIECES += [
    "because",
    "since",
    "*",
    "#",
    "(",
    ")",
    "\\boxed{",
    "}",
    "Step ",
    "No. ",
    "5,000",
    "1/2",
    "¾",
    "٣",
    "twenty",
]
_PIECES += ["e.g.", "B)", "yes", "no", ":", "—", "×", "not", "in", "1e5", "²", "...", "7 or 8", "2. Multiply"]


def test_steps_counted_within_a_line_are_no_answers():
    assert final_answer("The total is 12. 2. Multiply") == "12"
    assert final_answer("It is done. 2. Multiply") is None
    assert final_answer("She has 4 apples. 2. Add 3 pears. 3. Sum") == "3"


def test_texts_put_together_from_what_models_write_are_judged_without_an_error():
    rng = random.Random(0)
    for _ in range(4000):
        said = "".join(rng.choice(_PIECES) + rng.choice(["", " "]) for _ in range(rng.randint(1, 12)))
        assert isinstance(final_answer(said), str | None), said


def test_what_is_no_text_has_an_answer_only_where_it_is_a_number():
    assert final_answer(5) == "5" and final_answer(float("nan")) is None
