"""Training prompts in evaluation sets: found whatever the case and spacing, and not where they are not."""

from __future__ import annotations

import pandas as pd
import pytest

from workbench.data.instructions import load_instructions
from workbench.evaluation.contamination import check_contamination, contamination_summary, evaluation_prompts

LONG = "Anna has 12 apples and gives 5 of them to her friend Ben. How many apples are left for Anna?"


def frame(*texts, **columns):
    return pd.DataFrame({"id": [f"t{k}" for k in range(len(texts))], "instruction": texts} | columns)


def questions(*texts, task="exam"):
    return pd.DataFrame({"task": task, "item": range(len(texts)), "text": texts})


def test_a_prompt_is_found_inside_a_longer_one_whatever_its_case_and_punctuation():
    found = check_contamination(
        frame(LONG), questions("nothing here", f"Question: {LONG.upper()}  \n\nAnswer:")
    )
    (row,) = found.to_dict("records")
    assert row == {"id": "t0", "task": "exam", "occurs": True, "overlap": 1.0, "item": 1}


def test_a_changed_number_overlaps_but_does_not_occur():
    changed = LONG.replace("12", "13")
    (row,) = check_contamination(frame(changed), questions(LONG)).to_dict("records")
    words = len(LONG.split())
    runs = words - 13 + 1
    assert not row["occurs"] and row["item"] is None
    # every run that holds the third word is gone
    assert row["overlap"] == pytest.approx((runs - 3) / runs)


def test_words_must_stand_whole_and_in_one_prompt():
    found = check_contamination(frame("an apple", "apple pie"), questions("pan apple", "apple", "pie"))
    assert not found["occurs"].any() and (found["overlap"] == 0).all()


def test_a_run_over_two_evaluation_prompts_is_none():
    words = LONG.split()
    halves = questions(" ".join(words[:10]), " ".join(words[10:]))
    assert check_contamination(frame(LONG), halves)["overlap"].item() == 0


def test_each_set_is_reported_by_itself():
    both = pd.concat([questions(LONG, task="exam"), questions("What is it?", task="quiz")])
    summary = contamination_summary(check_contamination(frame(LONG, "What is it?", "Why?"), both))
    assert summary["task"].tolist() == ["exam", "quiz"]
    assert summary["n"].tolist() == [3, 3]
    assert summary["occurring"].tolist() == [1, 1]
    assert summary["share_overlapping"].tolist() == pytest.approx([1 / 3, 1 / 3])


def test_demo_training_sets_do_not_occur_in_demo_tasks():
    asked = evaluation_prompts(["demo_math", "demo_facts"])
    assert set(asked["task"]) == {"demo_math", "demo_facts"} and asked["text"].str.len().gt(10).all()
    for name in ("demo-math", "demo-open"):
        assert not check_contamination(load_instructions(name), asked)["occurs"].any()


def test_the_test_problems_of_a_task_are_found_in_it(shared_data):
    asked = evaluation_prompts("gsm8k", data=shared_data)
    assert len(asked) == 1319
    test = load_instructions(str(shared_data / "gsm8k_test.jsonl"), n=50, seed=0)
    train = load_instructions(str(shared_data / "gsm8k_train.jsonl"), n=200, seed=0)
    assert check_contamination(test, asked)["occurs"].all()
    assert contamination_summary(check_contamination(train, asked))["share_occurring"].item() < 0.02


@pytest.mark.parametrize(
    ("examples", "evaluation", "options", "message"),
    [
        (
            frame(LONG).drop(columns="instruction"),
            questions(LONG),
            {},
            r"examples needs the columns .* missing \['instruction'\]",
        ),
        (frame(LONG), questions(LONG)[:0], {}, "evaluation must have at least one row"),
        (frame(LONG, " ... "), questions(LONG), {}, "row 't1' has none"),
        (frame(LONG), questions(LONG), {"n_words": 0}, "n_words must be a whole number >= 1, got 0"),
    ],
)
def test_bad_input_is_one_clear_line(examples, evaluation, options, message):
    with pytest.raises(ValueError, match=message):
        check_contamination(examples, evaluation, **options)
