"""Examples as files that other trainers read: TRL's messages, LLaMA-Factory's sharegpt and alpaca."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.checks import checked, one_of, read_whole, told
from workbench.data.instructions import conversation, field_text
from workbench.data.sources import TABLES
from workbench.runs.files import write_text_atomic

#: form -> ending of its file
FORMS = {"messages": ".jsonl", "sharegpt": ".json", "alpaca": ".json"}
#: LLaMA-Factory's list of the sets in a folder
DATASET_INFO = "dataset_info.json"
_SPEAKERS = {"user": "human", "assistant": "gpt"}
#: what LLaMA-Factory's list says of the columns of a form
_COLUMNS = TABLES["llama_factory"]


def export_chat(
    distilled: pd.DataFrame, path: str | Path, form: str = "messages", *, column: str = "response"
) -> Path:
    """Write examples as a file of conversations that other trainers read.

    ``messages``: one conversation a line, ``{"messages": [{"role": "user", "content": ...}, ...]}``, as TRL's
    ``SFTTrainer`` and ``datasets`` read it. ``sharegpt`` and ``alpaca``: LLaMA-Factory's two forms, with an
    entry in ``dataset_info.json`` beside the file under the file's name.

    Args:
        distilled: frame of ``self_distill`` or ``load_instructions``: instruction, the ``column``, and where
            there are any context and ``history`` (the turns before, a list or JSON of role and content).
        path: file ending in ``.jsonl`` (messages) or ``.json`` (the others); replaced when it is there.
        form: ``"messages"``, ``"sharegpt"`` or ``"alpaca"``.
        column: what the assistant says: ``"response"``, or ``"reference"`` for the set's own.

    Returns:
        The path written.

    Raises:
        ValueError: for another form or ending, missing columns, a row without a text, a ``history`` that is
            none, or a ``dataset_info.json`` that is damaged or names another file so.
    """
    path = Path(path)
    one_of(form, FORMS, "form")
    if path.suffix != FORMS[form]:
        raise ValueError(f"path must end in {FORMS[form]} for the form {form!r}, got {path.name!r}")
    rows = checked(distilled, ["instruction", column], "distilled").to_dict("records")
    chats = [_chat(number, row, column) for number, row in enumerate(rows)]
    if form == "messages":
        lines = [json.dumps({"messages": chat}, ensure_ascii=False) + "\n" for chat in chats]
        return write_text_atomic(path, "".join(lines))
    info = _with_entry(path, form)
    made = [_in_form(form, row, chat, column) for row, chat in zip(rows, chats, strict=True)]
    write_text_atomic(path, json.dumps(made, ensure_ascii=False, indent=1) + "\n")
    write_text_atomic(path.with_name(DATASET_INFO), json.dumps(info, ensure_ascii=False, indent=2) + "\n")
    return path


def _chat(number: int, row: dict[Any, Any], column: str) -> list[dict[str, str]]:
    """Return what a row asks with, and the reply."""
    for name in ("instruction", column):
        if not isinstance(row[name], str) or not row[name].strip():
            raise ValueError(f"distilled needs a text in every {name}; row {number} has {row[name]!r:.60}")
    turns = [*conversation(row), {"role": "assistant", "content": row[column]}]
    roles = [turn["role"] for turn in _without_system(turns)]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise ValueError(f"history must be turns of user and assistant in turn, row {number} has {roles}")
    return turns


def _without_system(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    return turns[turns[0]["role"] == "system" :]


def _in_form(form: str, row: Mapping[Any, Any], chat: list[dict[str, str]], column: str) -> dict[str, Any]:
    """Return a chat in one of LLaMA-Factory's forms."""
    turns = _without_system(chat)
    system = {"system": "" if len(turns) == len(chat) else chat[0]["content"]}
    if form == "sharegpt":
        said = [{"from": _SPEAKERS[turn["role"]], "value": turn["content"]} for turn in turns]
        return {"conversations": said} | system
    before = [turn["content"] for turn in turns[:-2]]
    history = {"history": [list(pair) for pair in zip(before[::2], before[1::2], strict=True)]}
    own = {"instruction": row["instruction"], "input": field_text(row, "context"), "output": row[column]}
    return own | system | history


def _with_entry(path: Path, form: str) -> dict[str, Any]:
    """Return LLaMA-Factory's list of the folder with this file in it."""
    place = path.with_name(DATASET_INFO)
    info: dict[str, Any] = {}
    if place.exists():
        damaged = f"{place} is damaged; remove it, or give a path in another folder"
        with told(damaged, OSError, ValueError, TypeError):
            info = dict(json.loads(read_whole(place)))
    if info.get(path.stem, {}).get("file_name", path.name) != path.name:
        raise ValueError(f"{place} has {path.stem!r} for another file already; give the file another name")
    return {**info, path.stem: {"file_name": path.name, "formatting": form, "columns": _COLUMNS[form]}}
