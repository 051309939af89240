"""Examples as files that other trainers read: TRL's messages, LLaMA-Factory's sharegpt and alpaca."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.checks import checked, one_of
from workbench.data.instructions import user_message
from workbench.runs.files import write_text_atomic

#: form -> ending of its file
FORMS = {"messages": ".jsonl", "sharegpt": ".json", "alpaca": ".json"}
#: LLaMA-Factory's list of the sets in a folder
DATASET_INFO = "dataset_info.json"
_SPEAKERS = {"user": "human", "assistant": "gpt"}


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
    told = [_told(number, row, column) for number, row in enumerate(rows)]
    if form == "messages":
        lines = [{"messages": [*before, *_last(row, column)]} for row, before in told]
        return write_text_atomic(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    info = _with_entry(path, form)
    made = [(_alpaca if form == "alpaca" else _sharegpt)(row, before, column) for row, before in told]
    write_text_atomic(path, json.dumps(made, ensure_ascii=False, indent=1) + "\n")
    write_text_atomic(path.with_name(DATASET_INFO), json.dumps(info, ensure_ascii=False, indent=2) + "\n")
    return path


def _told(number: int, row: dict[Any, Any], column: str) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Return a row with texts in its columns, and the turns before it."""
    for name in ("instruction", column):
        if not isinstance(row[name], str) or not row[name].strip():
            raise ValueError(
                f"distilled must hold a text in every {name}; row {number} has {row[name]!r:.60}"
            )
    context = row.get("context")
    before = row.get("history")
    if isinstance(before, str) and before:
        before = json.loads(before)
    turns = [dict(turn) for turn in before] if isinstance(before, list) else []
    roles = [turn.get("role") for turn in turns]
    if roles[:1] == ["system"]:
        roles = roles[1:]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise ValueError(f"history must be turns of user and assistant in turn, row {number} has {roles}")
    return {**row, "context": context if isinstance(context, str) else ""}, turns


def _last(row: Mapping[str, Any], column: str) -> list[dict[str, str]]:
    """Return the turns of a row itself: what the user says, and the reply."""
    user = {"role": "user", "content": user_message(row["instruction"], row["context"])}
    return [user, {"role": "assistant", "content": row[column]}]


def _system(turns: list[dict[str, str]]) -> tuple[str, list[dict[str, str]]]:
    first = bool(turns) and turns[0]["role"] == "system"
    return (turns[0]["content"], turns[1:]) if first else ("", turns)


def _sharegpt(row: Mapping[str, Any], before: list[dict[str, str]], column: str) -> dict[str, Any]:
    system, turns = _system([*before, *_last(row, column)])
    said = [{"from": _SPEAKERS[turn["role"]], "value": turn["content"]} for turn in turns]
    return {"conversations": said, "system": system}


def _alpaca(row: Mapping[str, Any], before: list[dict[str, str]], column: str) -> dict[str, Any]:
    system, turns = _system(before)
    said = [turn["content"] for turn in turns]
    history = [list(pair) for pair in zip(said[::2], said[1::2], strict=True)]
    own = {"instruction": row["instruction"], "input": row["context"], "output": row[column]}
    return {**own, "system": system, "history": history}


def _with_entry(path: Path, form: str) -> dict[str, Any]:
    """Return LLaMA-Factory's list of the folder with this file in it."""
    place = path.with_name(DATASET_INFO)
    try:
        info: dict[str, Any] = dict(json.loads(place.read_text(encoding="utf-8"))) if place.exists() else {}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{place} is damaged; remove it, or give a path in another folder") from error
    if info.get(path.stem, {}).get("file_name", path.name) != path.name:
        raise ValueError(f"{place} has {path.stem!r} for another file already; give the file another name")
    columns = {"messages": "conversations", "system": "system"}
    if form == "alpaca":
        columns = {"prompt": "instruction", "query": "input", "response": "output"}
        columns |= {"system": "system", "history": "history"}
    return {**info, path.stem: {"file_name": path.name, "formatting": form, "columns": columns}}
