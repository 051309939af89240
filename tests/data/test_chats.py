"""Rows that hold a chat: the last answer is the reference, what comes before it is asked."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from folders import write_jsonl

from workbench.data.chats import alpaca_history, asked_and_answered, chat_turns, joined
from workbench.data.instructions import FIELDS, conversation, load_instructions


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


CHAT = [turn("system", "Be brief."), turn("user", "Hi"), turn("assistant", "Hello"), turn("user", "Who?")]
ANSWER = turn("assistant", "Anna.")
SHAREGPT = [{"from": name, "value": text} for name, text in (("human", "Hi"), ("gpt", "Hello"))]
LAST = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Anna."}]
FORMS = {
    "messages": {"messages": [*CHAT, ANSWER], "prompt": "Hi"},
    "conversations": {
        "conversations": [{"from": "system", "value": "Be brief."}, *SHAREGPT, *LAST]
    },
    "system beside": {
        "system": "Be brief.",
        "conversations": [*SHAREGPT, *LAST],
    },
    "parts": {"messages": [*CHAT, {"role": "assistant", "content": [{"type": "text", "text": "Anna."}]}]},
    "open end": {"messages": [*CHAT, ANSWER, turn("user", "And then?")]},
    "turns in two": {"messages": [*CHAT[:3], turn("user", "Now"), turn("user", "Who?"), ANSWER]},
    "prompt as turns": {"prompt": CHAT, "completion": [ANSWER]},
    "prompt and text": {"prompt": CHAT, "completion": "Anna."},
    "alpaca": {
        "instruction": "Who?", "input": "", "output": "Anna.",
        "system": "Be brief.", "history": [["Hi", "Hello"]],
    },
}  # fmt: skip


@pytest.mark.parametrize("row", FORMS.values(), ids=FORMS)
def test_every_form_of_a_chat_is_asked_turn_by_turn(tmp_path, row):
    asked = "Now\n\nWho?" if row is FORMS["turns in two"] else "Who?"
    frame = load_instructions(write_jsonl(tmp_path / "a.jsonl", [row]))
    assert list(frame.columns) == [*FIELDS, "history"]
    found = frame.to_dict("records")[0]
    assert (found["instruction"], found["context"], found["reference"]) == (asked, "", "Anna.")
    assert conversation(found) == [*CHAT[:3], turn("user", asked)]
    # and after it was written and read again
    frame.to_csv(tmp_path / "b.csv", index=False)
    pd.testing.assert_frame_equal(load_instructions(tmp_path / "b.csv"), frame)


def test_a_single_question_has_no_history(tmp_path):
    rows = [{"messages": [turn("user", "Who?"), ANSWER]}, {"prompt": "Who?", "completion": "Anna."}]
    for row in rows:
        frame = load_instructions(write_jsonl(tmp_path / "a.jsonl", [row]))
        assert list(frame.columns) == FIELDS
        assert frame.loc[0, ["instruction", "reference"]].tolist() == ["Who?", "Anna."]


def test_the_turns_of_another_column_are_read_by_its_name(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"talk": [*CHAT, ANSWER], "key": "k-1"}])
    frame = load_instructions(path, columns={"messages": "talk", "id": "key"})
    assert frame.loc[0, ["id", "instruction"]].tolist() == ["k-1", "Who?"]


def test_chats_without_an_answer_are_passed_over(tmp_path):
    rows = [{"messages": talk} for talk in ([*CHAT, ANSWER], CHAT[:2], [], [ANSWER], [*CHAT[:1], ANSWER])]
    frame = load_instructions(write_jsonl(tmp_path / "a.jsonl", rows))
    assert len(frame) == 1 and frame.attrs["source"]["skipped"] == 4


@pytest.mark.parametrize(
    ("talk", "words"),
    [
        ([*CHAT, {"role": "tool", "content": "4"}, ANSWER], "a turn must be of system.*'tool'"),
        ([*CHAT, {"role": "assistant", "content": None}], "a turn must be of"),
        ([turn("user", "x"), "Anna."], "a turn must be of"),
        ([{"role": "user", "content": [{"type": "image"}]}, ANSWER], "have a text alone"),
        ([*CHAT, ANSWER | {"reasoning_content": "Who? Anna."}], "beside its text, got reasoning_content"),
        ([*CHAT, ANSWER | {"tool_calls": [{"name": "look"}]}], "beside its text, got tool_calls"),
    ],
)
def test_turns_of_another_kind_are_refused_by_their_row(tmp_path, talk, words):
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": [*CHAT, ANSWER]}, {"messages": talk}])
    with pytest.raises(ValueError, match=rf"row 2 of .*a\.jsonl: .*{words}") as error:
        load_instructions(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("history", ["[[1, 2]]", [["a"]], 5, [["a", "b", "c"]]])
def test_a_history_of_another_form_is_refused(tmp_path, history):
    row = {"instruction": "Who?", "input": "", "output": "Anna.", "history": history}
    with pytest.raises(ValueError, match=r"row 1 of .*: history must hold"):
        load_instructions(write_jsonl(tmp_path / "a.jsonl", [row]))


def test_the_pieces_of_a_chat():
    assert chat_turns({"text": "x"}) is None and chat_turns({"prompt": "x", "completion": 5}) is None
    assert joined([turn("system", " "), turn("user", "a"), turn("user", "b")]) == [turn("user", "a\n\nb")]
    assert alpaca_history({"history": None}) == []
    assert alpaca_history({"history": json.dumps([turn("user", "a")])}) == [turn("user", "a")]
    assert asked_and_answered(CHAT)["instruction"] == "Hi"


def test_a_system_prompt_can_be_given(tmp_path):
    rows = [FORMS["messages"], {"messages": [turn("user", "Who?"), ANSWER]}]
    frame = load_instructions(write_jsonl(tmp_path / "a.jsonl", rows), system="Answer in rhymes.")
    first, second = (conversation(row)[0] for row in frame.to_dict("records"))
    assert first == CHAT[0] and second == turn("system", "Answer in rhymes.")
