"""Rows that hold a whole chat: its last answer is the reference, what comes before is asked (no torch)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from workbench.checks import told
from workbench.data.sources import TABLES

#: columns that hold the turns of a chat, or its beginning and its end
CHAT_COLUMNS = ("messages", "conversations", "conversation", "dialog")
PAIR = ("prompt", "completion")
#: fields of a turn that say something beside its text: thoughts and calls of tools, which are not learned
BESIDE = ("reasoning_content", "reasoning", "thinking", "tool_calls", "function_call")
#: what other libraries call a role -> the role
ROLES: dict[str, str] = TABLES["roles"]


def chat_turns(raw: Mapping[str, Any], column: str | None = None) -> list[dict[str, str]] | None:
    """Return the turns of a row's chat, None where it holds none.

    Args:
        raw: with ``messages`` or ``conversations`` (``role`` and ``content``, or ShareGPT's ``from`` and
            ``value``), or ``prompt`` and ``completion`` (texts or turns).
        column: the column of the turns, when it has another name.

    Raises:
        ValueError: for a turn of another kind.
    """
    names = [column] if column else CHAT_COLUMNS
    found = next((raw[name] for name in names if isinstance(raw.get(name), list)), None)
    if found is None and not column and all(isinstance(raw.get(name), str | list) for name in PAIR):
        asked, said = (raw[name] for name in PAIR)
        found = [{"role": "user", "content": asked}] if isinstance(asked, str) else [*asked]
        found += [{"role": "assistant", "content": said}] if isinstance(said, str) else said
    return None if found is None else joined([_turn(one) for one in found])


def alpaca_history(raw: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return system turn and earlier turns of an Alpaca row, LLaMA-Factory's ``system`` and ``history``.

    Raises:
        ValueError: for a history that is not pairs of texts.
    """
    pairs = raw.get("history") or []
    with told("history must hold earlier turns as JSON", ValueError):
        pairs = json.loads(pairs) if isinstance(pairs, str) else pairs
    turns: list[Any] = [{"role": "system", "content": raw["system"]}] if raw.get("system") else []
    if not isinstance(pairs, list | tuple):
        raise ValueError(f"history must hold earlier turns, got {pairs!r:.60}")
    for pair in pairs:
        if isinstance(pair, Mapping):
            turns.append(pair)
        elif isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(one, str) for one in pair):
            turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
        else:
            raise ValueError(f"history must hold pairs of question and answer, got {pair!r:.60}")
    return joined([_turn(turn) for turn in turns])


def asked_and_answered(turns: list[dict[str, str]]) -> dict[str, Any]:
    """Return instruction, reference and history of a chat, the first two empty where nothing is answered.

    >>> turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    >>> asked_and_answered(turns)
    {'instruction': 'Hi', 'reference': 'Hello', 'history': []}
    """
    while turns and turns[-1]["role"] != "assistant":
        turns = turns[:-1]
    begun = [turn["role"] for turn in turns if turn["role"] != "system"][:1] == ["user"]
    if len(turns) < 2 or not begun or turns[-2]["role"] != "user":
        return {"instruction": "", "reference": "", "history": []}
    *history, asked, said = turns
    return {"instruction": asked["content"], "reference": said["content"], "history": history}


def joined(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return turns without empty system ones, and those of one role in a row as one, as templates want."""
    found: list[dict[str, str]] = []
    for turn in turns:
        if found and found[-1]["role"] == turn["role"]:
            found[-1] = turn | {"content": f"{found[-1]['content']}\n\n{turn['content']}"}
        elif turn["role"] != "system" or turn["content"].strip():
            found.append(turn)
    return found


def _turn(raw: Any) -> dict[str, str]:
    told = raw if isinstance(raw, Mapping) else {}
    role, content = told.get("role", told.get("from")), told.get("content", told.get("value"))
    if isinstance(content, list) and all(isinstance(part, Mapping) and "text" in part for part in content):
        content = "".join(str(part["text"]) for part in content)
    if role not in ROLES or not isinstance(content, str):
        raise ValueError(f"a turn must be of {', '.join(ROLES)} and have a text alone, got {raw!r:.80}")
    if beside := [name for name in BESIDE if told.get(name)]:
        raise ValueError(f"a turn must have nothing beside its text, got {', '.join(beside)}")
    return {"role": ROLES[role], "content": content}
