"""Examples for other trainers: what is written reads back, by another library, as what was said."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from tiny import tiny_tokenizer

from workbench.data.export import export_chat
from workbench.data.instructions import user_message
from workbench.generation.prompts import chat_prompt

STRANGE = 'Grüße "quoted",\nnew line\u2028and 数学 $x<5$ \\frac{1}{2}\t<|end|>'


@pytest.fixture
def distilled() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "id": ["a", "b", "c"],
            "instruction": ["Add 2 and 3.", STRANGE, "Name it."],
            "context": ["", "A passage.", None],
            "reference": ["5", "R", "It"],
            "response": ["It is 5.", STRANGE + "!", "That."],
            "kept": [True, False, True],
        }
    )


def read(path, tmp_path):
    """Read a file back with the library that trainers use."""
    import datasets

    datasets.disable_progress_bars()
    return datasets.load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )


@pytest.mark.parametrize("column", ["response", "reference"])
def test_messages_read_back_and_render_as_what_healing_learns(distilled, tmp_path, column):
    path = export_chat(distilled, tmp_path / "new" / "chat.jsonl", column=column)
    back = read(path, tmp_path)
    assert back.column_names == ["messages"]
    tokenizer = tiny_tokenizer()
    for row, messages in zip(distilled.fillna("").to_dict("records"), back["messages"], strict=True):
        asked = user_message(row["instruction"], row["context"])
        assert messages == [{"role": "user", "content": asked}, {"role": "assistant", "content": row[column]}]
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        assert whole.startswith(chat_prompt(tokenizer, asked) + row[column])


def test_llama_factorys_forms_read_back_with_their_list(distilled, tmp_path):
    (tmp_path / "dataset_info.json").write_text('{"theirs": {"file_name": "x.json"}}')
    alpaca = read(export_chat(distilled, tmp_path / "sdd.json", "alpaca"), tmp_path)
    share = read(export_chat(distilled, tmp_path / "sdd_chat.json", "sharegpt"), tmp_path)
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    assert set(info) == {"theirs", "sdd", "sdd_chat"}
    # as LLaMA-Factory reads them: by the names that the list gives to the columns
    entry = info["sdd"]["columns"]
    for row, found in zip(distilled.fillna("").to_dict("records"), alpaca, strict=True):
        context = row["context"]
        told = [found[entry[part]] for part in ("prompt", "query", "response", "system")]
        assert told == [row["instruction"], context, row["response"], ""]
        assert not found[entry["history"]]
    entry = info["sdd_chat"]
    assert entry["formatting"] == "sharegpt" and entry["file_name"] == "sdd_chat.json"
    for row, found in zip(distilled.fillna("").to_dict("records"), share, strict=True):
        asked = user_message(row["instruction"], row["context"])
        told = found[entry["columns"]["messages"]]
        assert told == [{"from": "human", "value": asked}, {"from": "gpt", "value": row["response"]}]


@pytest.mark.parametrize("as_json", [True, False])
def test_a_system_prompt_and_earlier_turns_go_along(distilled, tmp_path, as_json):
    turns = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
    ]
    frame = distilled.assign(history=[json.dumps(turns) if as_json else turns, "", None])
    first = json.loads(export_chat(frame, tmp_path / "m.jsonl").read_text().split("\n")[0])["messages"]
    assert first[:3] == turns and [turn["role"] for turn in first[3:]] == ["user", "assistant"]
    alpaca = json.loads(export_chat(frame, tmp_path / "a.json", "alpaca").read_text())
    assert alpaca[0]["system"] == "Be short." and alpaca[0]["history"] == [["Hello", "Hi"]]
    assert alpaca[1]["system"] == "" and alpaca[1]["history"] == []
    share = json.loads(export_chat(frame, tmp_path / "s.json", "sharegpt").read_text())
    assert share[0]["system"] == "Be short."
    assert [turn["from"] for turn in share[0]["conversations"]] == ["human", "gpt"] * 2


def test_what_cannot_be_exported_is_refused_and_the_old_file_stays(distilled, tmp_path):
    old = export_chat(distilled, tmp_path / "chat.jsonl").read_bytes()
    odd = [[{"role": "assistant", "content": "Hi"}], None, None]
    for frame, options, words in [
        (distilled, {"form": "openai"}, "form must be one of messages, sharegpt, alpaca, got 'openai'"),
        (distilled, {"form": "alpaca"}, "path must end in .json for the form 'alpaca'"),
        (distilled, {"column": "rewrite"}, "rewrite"),
        (distilled.assign(response=["a", "", "b"]), {}, "a text in every response; row 1 has ''"),
        (distilled.assign(response=[1, 2, 3]), {}, "a text in every response; row 0 has 1"),
        (distilled.iloc[:0], {}, "at least one row"),
        (distilled.assign(history=odd), {}, "history must be turns of user and assistant"),
    ]:
        with pytest.raises(ValueError, match=words) as error:
            export_chat(frame, tmp_path / "chat.jsonl", **options)
        assert "\n" not in str(error.value)
    assert (tmp_path / "chat.jsonl").read_bytes() == old
    (tmp_path / "dataset_info.json").write_text('{"chat": {"file_name": "other.json"}}')
    with pytest.raises(ValueError, match="has 'chat' for another file already"):
        export_chat(distilled, tmp_path / "chat.json", "alpaca")
    (tmp_path / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match=r"dataset_info\.json is damaged"):
        export_chat(distilled, tmp_path / "chat.json", "alpaca")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chat.jsonl", "dataset_info.json"]
