"""Instruction sets: in one form, sampled as promised, refused in one line when they cannot be."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from folders import write_jsonl

import workbench as wb
from workbench.data.instructions import FIELDS, conversation, field_text, load_instructions, user_message


def test_instruction_sets_are_read_from_their_repositories(tmp_path):
    gsm = tmp_path / "gsm"
    (gsm / "main").mkdir(parents=True)
    row = {"question": "How many?", "answer": "She has <<1+1=2>>2.\n#### 2"}
    pd.DataFrame([row] * 5).to_parquet(gsm / "main" / "train-00000-of-00001.parquet")
    (gsm / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: main/train-*\n---\n"
    )
    frame = load_instructions("gsm8k", n=3, location=gsm)
    assert frame.loc[0, ["instruction", "context", "answer"]].tolist() == ["How many?", "", "2"]
    assert frame.loc[0, "reference"] == "She has 2.\n#### 2"  # without <<1+1=2>>
    alpaca = tmp_path / "alpaca"
    alpaca.mkdir()
    rows = [{"output": f"o{i}", "input": "" if i % 2 else "in", "instruction": f"do {i}"} for i in range(6)]
    (alpaca / "alpaca_data_cleaned.json").write_text(json.dumps(rows))
    frame = load_instructions("alpaca-cleaned", location=alpaca)
    assert frame["reference"].tolist() == [f"o{i}" for i in range(6)]
    assert frame["context"].tolist() == ["in", ""] * 3
    omi = {"question": "q", "expected_answer": "29", "generated_solution": r"\boxed{29}", "is_correct": True}
    write_jsonl(tmp_path / "omi" / "correct_solutions" / "train.jsonl", [omi] * 4)
    assert load_instructions("openmathinstruct", n=2, location=tmp_path / "omi")["answer"].tolist() == [
        "29",
        "29",
    ]
    other = load_instructions(
        "someone/set", columns={"instruction": "instruction", "reference": "output"}, location=alpaca
    )
    assert other["id"].tolist()[:2] == ["someone/set-0", "someone/set-1"]
    assert (other["context"] == "").all()


@pytest.mark.parametrize(
    ("name", "usable"),
    [
        ("gsm8k_train", 7473),
        ("gsm8k_test", 1319),
        ("alpaca", 9225),
        ("dolly", 2996),
        ("sdft_alpaca_pairs", 2000),
        ("openmathinstruct1_rows", 1),
    ],
)
def test_real_sets_are_recognised_by_their_columns(shared_data, name, usable):
    frame = load_instructions(shared_data / f"{name}.jsonl")
    assert list(frame.columns) == FIELDS
    assert len(frame) == usable
    assert frame["id"].is_unique
    assert frame.notna().all().all()
    assert (frame["answer"] != "").all() == ("gsm8k" in name or "math" in name)
    if usable > 100:
        sample = load_instructions(shared_data / f"{name}.jsonl", n=100, seed=1)
        assert sample.merge(frame, how="inner").shape == (100, 5)  # ids are those of the whole set
        assert (
            load_instructions(shared_data / f"{name}.jsonl", n=30, seed=1)["id"].tolist()
            == sample["id"][:30].tolist()
        )


def test_the_demo_sets_are_in_the_one_form():
    math, facts = load_instructions("demo-math"), load_instructions("demo-open", n=50)
    assert list(math.columns) == FIELDS
    assert (math["answer"] != "").all()
    assert (facts["answer"] == "").all()
    read = facts[facts["context"] != ""]
    assert len(read) and list(facts.columns) == [*FIELDS, "form"]
    for row in read.to_dict("records"):  # as the demo model was trained
        assert conversation(row)[0]["content"] == f"{row['context']}\n{row['instruction']}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "gms8k"}, ["did you mean gsm8k", "alpaca-cleaned"]),
        ({"name": "demo-math", "n": 0}, ["n must be"]),
        ({"name": "demo-math", "n": 10**6}, ["n must be at most"]),
        ({"name": "openmathinstruct"}, ["n must be a number"]),
        ({"name": "a/b", "columns": {"instruction": "x", "reference": "y"}}, ["a/b", "hub"]),
    ],
)
def test_bad_instruction_arguments_give_one_clear_line(arguments, words):
    with pytest.raises(ValueError) as error:
        wb.load_instructions(**arguments)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_other_forms_need_columns(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"q": f"q{i}", "a": f"a{i}", "key": i} for i in range(4)])
    with pytest.raises(ValueError, match=r"pass columns=.*which are q, a, key"):
        load_instructions(path)
    with pytest.raises(ValueError, match=r"columns must map fields to its columns, q, a, key; got"):
        load_instructions(path, columns={"instruction": "q", "reference": "nothing"})
    with pytest.raises(ValueError, match="columns must map some of"):
        load_instructions(path, columns={"instruction": "q", "reference": "a", "other": "a"})
    frame = load_instructions(path, columns={"instruction": "q", "reference": "a", "id": "key"})
    assert frame["id"].tolist() == ["0", "1", "2", "3"]
    write_jsonl(path, [{"id": "x", "instruction": "i", "reference": "r"}] * 2)
    with pytest.raises(ValueError, match="must hold each id once, got 'x' again"):
        load_instructions(path)


def test_a_message_puts_the_context_below_the_instruction():
    assert user_message("Who?") == "Who?"
    assert user_message("Who?", "A tale of {instruction}.") == "Who?\nA tale of {instruction}."
    assert user_message("Who?", "A tale.", form="{context}: {instruction}") == "A tale.: Who?"


def test_a_row_is_asked_with_its_system_and_earlier_turns():
    history = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    history.append({"role": "assistant", "content": "Hello"})
    for told in (history, json.dumps(history)):
        turns = conversation({"instruction": "Who?", "context": "A tale.", "history": told})
        assert turns == [*history, {"role": "user", "content": "Who?\nA tale."}]


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA, ""])
def test_a_missing_context_is_none_and_what_is_no_text_is_named(missing):
    row = {"id": "r-1", "instruction": "Who?", "context": missing, "history": missing, "form": missing}
    assert conversation(row) == [{"role": "user", "content": "Who?"}]
    for name in ("instruction", "context"):
        with pytest.raises(ValueError, match=f"column {name} must hold texts, got 5 in row r-1"):
            conversation(row | {name: 5})
    assert field_text(pd.Series({"a": "x"}), "a") == "x"
    with pytest.raises(ValueError, match="instruction must hold a text, row r-1 has none"):
        conversation(row | {"instruction": " "})
    with pytest.raises(ValueError, match="history of row r-1 must be turns as JSON"):
        conversation(row | {"history": "Hi"})


@pytest.mark.parametrize(
    "words",
    ["No input", "<noinput>", "noinput", "N/A", "No input.", "<none>", "< noinput >", "No input required.",
     "\\<noinput\\>", "[noinput]", "NoInput", "No additional input needed", "None", "n/a.", "<no input>"],
)  # fmt: skip
def test_words_for_no_context_are_none(tmp_path, words):
    rows = [{"instruction": "Say hi", "input": words, "output": "hi"}]
    rows += [
        {"instruction": "Say hi", "input": text, "output": "hi"} for text in ("Norway", "No input is good")
    ]
    frame = load_instructions(write_jsonl(tmp_path / "a.jsonl", rows))
    assert frame["context"].tolist() == ["", "Norway", "No input is good"]


def test_rows_behind_the_first_and_rows_that_occur_again():
    first, others = load_instructions("demo-math", n=30), load_instructions("demo-math", n=30, skip=30)
    assert not set(first["id"]) & set(others["id"])
    both = load_instructions("demo-math", n=60)
    assert [*first["id"], *others["id"]] == both["id"].tolist()
    assert both.attrs["source"]["duplicates"] == 0


def test_duplicates_are_counted(tmp_path):
    rows = [{"instruction": f"q{i % 3}", "input": "", "output": "a"} for i in range(7)]
    frame = load_instructions(write_jsonl(tmp_path / "a.jsonl", rows))
    assert len(frame) == 7 and frame.attrs["source"]["duplicates"] == 4


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"instruction": "q", "input": ""}, "row 3 of .*a.jsonl: it has none of the forms"),
        (
            {"instruction": [{"role": "user"}], "input": "", "output": "a"},
            "instruction of row 3 of .* must be text",
        ),
        ({"instruction": "q", "input": "\ud800", "output": "a"}, "input of row 3 of .* surrogate"),
        ([1], "named columns, got .* as row 3"),
        (None, "named columns, got None as row 3"),
    ],
)
def test_a_row_of_another_form_is_named(tmp_path, row, words):
    rows = [{"instruction": "q", "input": "", "output": "a"}] * 2 + [row]
    with pytest.raises(ValueError, match=words) as error:
        load_instructions(write_jsonl(tmp_path / "a.jsonl", rows))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "columns", ["q", {"instruction": ["q"], "reference": "a"}, {"instruction": "q"}, {}, ["q", "a"]]
)
def test_columns_are_a_map_of_names(tmp_path, columns):
    path = write_jsonl(tmp_path / "a.jsonl", [{"q": "x", "a": "y"}])
    with pytest.raises(ValueError, match=r"columns must (map some of|be a mapping of names)"):
        wb.load_instructions(path, columns=columns)


@pytest.mark.parametrize("name", [None, 5, ["demo-math"]])
def test_a_name_is_text_or_a_path(name):
    with pytest.raises(ValueError, match="name must be a name or a path, got"):
        wb.load_instructions(name)


def test_a_context_is_taken_wherever_it_stands_and_may_be_missing(tmp_path):
    rows = {
        "gsm8k": {"question": "Who?", "answer": "Anna.", "context": "A tale."},
        "dolly": {"instruction": "Who?", "response": "Anna.", "context": "A tale."},
        "alpaca": {"instruction": "Who?", "output": "Anna.", "input": "A tale."},
    }
    for name, row in rows.items():
        frame = load_instructions(write_jsonl(tmp_path / f"{name}.jsonl", [row]))
        assert frame.loc[0, ["instruction", "context", "reference"]].tolist() == ["Who?", "A tale.", "Anna."]
        bare = {key: value for key, value in row.items() if value != "A tale."}
        assert load_instructions(write_jsonl(tmp_path / "b.jsonl", [bare])).loc[0, "context"] == ""


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"So the area is $\boxed{\dfrac{3}{4}}$.", r"\dfrac{3}{4}"),
        ("Thus \\[x = \\boxed{-5}\\]\nas was asked.", "-5"),
        (r"\fbox{12} is what we wanted.", "12"),
        (r"It is in a \boxed{3} at first. " + "Then much more is said. " * 20, ""),
        ("So the area is 12.", ""),
    ],
)
def test_a_reference_that_ends_in_a_box_has_a_final_answer(solution, answer, tmp_path):
    write_jsonl(tmp_path / "maths.jsonl", [{"problem": "How much?", "solution": solution}])
    columns = {"instruction": "problem", "reference": "solution"}
    assert load_instructions(str(tmp_path / "maths.jsonl"), columns=columns).loc[0, "answer"] == answer
