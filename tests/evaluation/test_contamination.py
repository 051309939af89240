"""Training prompts in evaluation sets: found whatever the case and spacing, and not where they are not."""

from __future__ import annotations

import json

import pandas as pd
import pytest

import workbench as wb
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


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Solve this problem: ", ""),
        ("You are a helpful tutor.\n\nProblem:\n", "\nThink step by step."),
        ("", " Give the number alone."),
    ],
)
def test_words_around_a_copy_do_not_hide_it(before, after):
    others = ["Why is the sky so blue today?", "Who came to the party last night?"]
    asked = questions(*(f"Question: {text}\nAnswer:" for text in [*others, LONG]))
    found = check_contamination(frame(before + LONG + after, f"{before}Who is it?{after}"), asked)
    assert found["occurs"].tolist() == [True, False] and found["item"].tolist() == [2, None]
    alone = check_contamination(
        frame(before + LONG + after), questions(LONG)
    )  # a set of one prompt, no template
    assert alone["occurs"].all()


def test_a_short_evaluation_prompt_is_no_copy_by_chance():
    asked = questions("Question: Who came?\nAnswer:", "Question: What for?\nAnswer:", "Question: \nAnswer:")
    assert not check_contamination(frame("Say who came and what for, in one line."), asked)["occurs"].any()
    same = check_contamination(frame("Who came?"), asked)
    assert same["occurs"].all()  # but the prompt itself is found, however short


def test_passages_that_prompts_come_with_are_looked_for_and_rows_without_one_passed_over():
    examples = frame("Who?", "What?", "When?", "Where?", context=["", LONG, None, float("nan")])
    found = check_contamination(
        examples, questions(f"{LONG}\nQuestion: is it so?\nAnswer:"), column="context"
    )
    assert found[["id", "occurs", "overlap", "item"]].values.tolist() == [["t1", True, 1.0, 0]]
    assert found.attrs["empty"] == 3
    assert contamination_summary(found)["n"].tolist() == [1]
    with pytest.raises(ValueError, match="column context must hold a text with words in one row at least"):
        check_contamination(examples.assign(context=""), questions(LONG), column="context")


def test_a_fixed_introduction_hides_no_problem_of_a_real_set(shared_data):
    asked = evaluation_prompts("gsm8k", data=shared_data)
    test = load_instructions(str(shared_data / "gsm8k_test.jsonl"), n=50, seed=0)
    train = load_instructions(str(shared_data / "gsm8k_train.jsonl"), n=200, seed=0)
    for rows, share in ((test, 1), (train, 0)):
        rows = rows.assign(instruction="Solve the following problem step by step.\n" + rows["instruction"])
        assert check_contamination(rows, asked)["occurs"].mean() == share


def test_prompts_are_read_again_when_data_above_the_task_folder_were_replaced(tmp_path, run):
    tasks = tmp_path / "project" / "tasks"
    tasks.mkdir(parents=True)
    task = {"task": "mine", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}}}
    task |= {"test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{q}}"}
    task |= {"doc_to_choice": "{{c}}", "doc_to_target": "a", "metric_list": [{"metric": "acc"}]}
    (tasks / "mine.yaml").write_text(json.dumps(task))  # which is YAML too
    for word in ("old", "new"):
        row = json.dumps({"q": f"{word} question", "c": ["a", "b"], "a": 0})
        (tmp_path / "project" / "rows.jsonl").write_text(f"{row}\n")
        asked = run.frame("asked.jsonl", evaluation_prompts, ["mine"], include=tasks)
        assert asked["text"].tolist() == [f"{word} question"]


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
        wb.check_contamination(examples, evaluation, **options)
