"""Instruction sets by name or from a file: id, instruction, context, reference, answer (no torch)."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.checks import checked, told
from workbench.data import sources
from workbench.data.answers import final_answer, without_calculator_marks
from workbench.data.chats import alpaca_history, asked_and_answered, chat_turns, joined
from workbench.data.files import at_home
from workbench.data.sources import INSTRUCTION_SETS, Draw, HubSet, open_source
from workbench.places import demo_path

FIELDS = ["id", "instruction", "context", "reference", "answer"]
#: columns that a frame has where one of its rows has something in them
EXTRAS = ["history", "form"]
#: how instruction and context make up the user's message
FORM = "{instruction}\n{context}"
DEMO_INSTRUCTIONS = ("demo-math", "demo-open", "demo-math-test")
# set -> field -> column, for sets that are recognised by instruction and reference: the first that has both
KNOWN_COLUMNS: dict[str, dict[str, str]] = sources.TABLES["columns"]
#: fields that ``columns`` may map, beside those of the frame
CHAT_FIELDS = ("messages", "system", "history")
#: how a reference of GSM8K ends, and one of MATH
_STATED = re.compile(r"####[ \t]*[^\n#]+\s*$|\\(?:boxed|fbox)\s*\{(?s:.){1,300}$")
#: what annotators wrote where there is no context
_NO_CONTEXT = re.compile("".join(sources.TABLES["no_context"]["pattern"]), re.IGNORECASE)


def load_instructions(
    name: str | Path,
    *,
    n: int | None = None,
    seed: int = 0,
    skip: int = 0,
    columns: Mapping[str, str] | None = None,
    system: str | None = None,
    split: str = "train",
    location: str | Path | None = None,
    data: str | Path | None = None,
) -> pd.DataFrame:
    r"""Load an instruction set in one tidy form, sampled like ``load_texts``.

    SDD (A.4) takes 8,000 samples of GSM8K, Alpaca Cleaned and OpenMathInstruct, all 15,000 of Dolly, and
    for its largest runs 50,000 of Alpaca Cleaned and OpenMathInstruct.

    Args:
        name: ``demo-math``, ``demo-open``, ``gsm8k``, ``gsm8k-test``, ``alpaca``, ``alpaca-cleaned``,
            ``dolly``, ``openmathinstruct`` (its correct solutions), the path of a file whose form is
            recognised by its columns, or with ``columns`` any file or hub set (``owner/name`` or
            ``owner/name:configuration``). Chats (``messages``, ShareGPT's ``conversations``, ``prompt`` and
            ``completion``) are read: the last answer is the reference, the question before it the
            instruction.
        n: number of rows; None for all, in the order of the set.
        seed: of the sample, 0 or more.
        skip: rows at the sample's beginning to leave out.
        columns: for any other form, field -> column, at least ``instruction`` and ``reference``, or
            ``messages``; further fields are context, answer, id, and ``system`` and ``history`` (earlier
            turns, as LLaMA-Factory has them).
        system: system prompt of the rows that have none of their own.
        split: of a hub set.
        location: a local copy of the hub repository to read instead of the hub.
        data: a folder with public sets as jsonl (``gsm8k_train.jsonl``, ``alpaca.jsonl``, ...): a hub set
            that it holds is read from there.

    Returns:
        Frame with id, instruction, context, reference, answer, all texts; ``context`` and ``answer`` are
        ``""`` where there is none, also where the set says so in words ("No input", "N/A"). ``answer`` is the
        final answer of the reference: GSM8K's ``#### n``, MATH's ``\boxed{n}`` near the end,
        OpenMathInstruct's ``expected_answer``. The reference has no calculator marks (``<<48/2=24>>``), which
        no model should learn. Only where a row has some, ``history`` holds the system and earlier turns as
        JSON; only where a set has its own, ``form`` that of ``user_message``.
        ``attrs["source"]`` says where the rows came from (``revision`` of a hub set), how many without an
        instruction or a reference were passed over, and how many occur again (``duplicates``).

    Raises:
        ValueError: for an unknown name or form, ``n`` below 1 or above what there is, ids that are not
            unique, a damaged file, a field that is no text; files and rows are named.
    """
    draw = Draw(n, seed, skip)
    source = _opened(name, draw, columns, split=split, location=location, data=data)
    label = source.name
    prefix = Path(label).name.split(".")[0] if at_home(label).is_file() else label
    prefix = prefix.encode("utf-8", "replace").decode()  # of a file whose name is no text
    seen: Counter[str] = Counter()

    def usable(index: int, raw: Any) -> dict[str, str] | None:
        row = _tidy(sources.named_columns(raw, label, index), columns, f"row {index + 1} of {label}", system)
        kind = "usable" if row["instruction"].strip() and row["reference"].strip() else "skipped"
        seen[kind] += 1
        return row | {"id": row["id"] or f"{prefix}-{index}"} if kind == "usable" else None

    found = source.sample(usable, draw, lambda: f"{seen['skipped']} have no instruction or no reference")
    frame = checked(pd.DataFrame(found, columns=[*FIELDS, *EXTRAS]), FIELDS, label, unique="id")
    frame["form"] = sources.TABLES["forms"].get(label, frame["form"])
    frame = frame.drop(columns=[name for name in EXTRAS if not frame[name].any()])
    counts = {"skipped": seen["skipped"], "duplicates": int(frame.drop(columns="id").duplicated().sum())}
    told = {"name": label, "n": len(frame), "seed": seed, "skip": skip, "revision": source.revision}
    frame.attrs["source"] = told | counts
    return frame


def user_message(instruction: str, context: str = "", *, form: str = FORM) -> str:
    """Return what the user says: the instruction and, if there is one, below it the context.

    That is the order of Alpaca and of LLaMA-Factory, with which SDD was trained. Another ``form`` has
    ``{instruction}`` and ``{context}`` where they go.

    >>> user_message("Who came?", "A tale.")
    'Who came?\\nA tale.'
    """
    fields = {"instruction": instruction, "context": context}
    # in one pass, so that braces inside the data stay what they are
    return re.sub(r"\{(instruction|context)\}", lambda m: fields[m[1]], form) if context else instruction


def conversation(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the turns that a row asks with: system and earlier turns, and the user's message.

    Args:
        row: ``instruction``, and where there are any ``context``, ``form`` (of ``user_message``) and
            ``history`` (the turns before, as JSON or a list of ``role`` and ``content``), as of
            ``load_instructions``.

    Raises:
        ValueError: for a field that is not text, an empty instruction, a ``history`` that is no JSON, naming
            it and the row's id.

    >>> conversation({"instruction": "Who came?", "history": '[{"role": "system", "content": "Be brief."}]'})
    [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Who came?'}]
    """
    history = row.get("history")
    if not isinstance(history, list | tuple):
        with told(f"history of row {row.get('id', '?')} must be turns as JSON", ValueError):
            history = json.loads(field_text(row, "history") or "[]")
    texts = [field_text(row, name) for name in ("instruction", "context")]
    if not texts[0].strip():
        raise ValueError(f"instruction must hold a text, row {row.get('id', '?')} has none")
    message = user_message(*texts, form=field_text(row, "form") or FORM)
    return [*history, {"role": "user", "content": message}]


def field_text(row: Mapping[str, Any], name: str) -> str:
    """Return a field of a row as text, ``""`` where it is missing (None, NaN).

    Raises:
        ValueError: for what is no text, naming the field and the row's id.

    >>> field_text({"id": "a-1", "context": float("nan")}, "context")
    ''
    """
    value = row.get(name)
    if value is None or value is pd.NA or (isinstance(value, float) and value != value):
        return ""
    if not isinstance(value, str):
        raise ValueError(f"column {name} must hold texts, got {value!r:.80} in row {row.get('id', '?')}")
    return value


def _opened(name: str | Path, draw: Draw, columns: Mapping[str, str] | None, **place: Any) -> sources.Source:
    hub = None
    if columns is not None:
        _check_mapping(columns)
        repo, _, config = str(name).partition(":")
        hub = HubSet(repo, config or None) if str(name).count("/") == 1 else None
    folder = demo_path("instructions")
    files = {one: [folder / f"{one.removeprefix('demo-')}.jsonl"] for one in DEMO_INSTRUCTIONS}
    other = "with columns= a hub set owner/name"
    return open_source(name, INSTRUCTION_SETS, files, draw, other=other, hub=hub, **place)


def _tidy(
    raw: Mapping[str, Any], columns: Mapping[str, str] | None, where: str, system: str | None
) -> dict[str, str]:
    """Bring one row into the five fields, its history and its form."""
    with told(where, ValueError):
        mapping = _known_columns(raw) if columns is None else _checked_columns(columns, raw)
        earlier = alpaca_history({name: raw.get(mapping.get(name, name)) for name in ("system", "history")})
        values: dict[str, Any] = {}
        if "messages" in mapping or not mapping:
            values = asked_and_answered(joined(earlier + (chat_turns(raw, mapping.get("messages")) or [])))
            earlier = values.pop("history")
    for field in [*FIELDS, "form"]:
        column = mapping.get(field, "form" if field == "form" else "")
        values[field] = sources.as_text(values.get(field, raw.get(column)), f"{column or field} of {where}")
    values["reference"] = without_calculator_marks(values["reference"])
    if not mapping.get("answer") and _STATED.search(values["reference"]):
        values["answer"] = final_answer(values["reference"]) or ""
    if _NO_CONTEXT.fullmatch(values["context"]):
        values["context"] = ""
    if system and not any(turn["role"] == "system" for turn in earlier):
        earlier = [{"role": "system", "content": system}, *earlier]
    return values | {"history": json.dumps(earlier, ensure_ascii=False) if earlier else ""}


def _known_columns(raw: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the columns of the form that a row has, none for a chat."""
    for mapping in KNOWN_COLUMNS.values():
        if mapping["instruction"] in raw and mapping["reference"] in raw:
            return {"context": "context", **mapping}
    if chat_turns(raw) is not None:
        return {}
    hint = "pass columns={'instruction': ..., 'reference': ...} with the names of its columns, which are"
    forms, known = ", ".join(KNOWN_COLUMNS), ", ".join(map(str, raw))
    raise ValueError(f"it has none of the forms {forms}, messages; {hint} {known}")


def _check_mapping(columns: Mapping[str, str]) -> None:
    fields = [*FIELDS, *CHAT_FIELDS]
    enough = {"instruction", "reference"} <= columns.keys() or "messages" in columns
    if not enough or columns.keys() - fields or not all(isinstance(one, str) for one in columns.values()):
        raise ValueError(f"columns must map some of {', '.join(fields)} to columns, got {columns!r:.80}")


def _checked_columns(columns: Mapping[str, str], raw: Mapping[str, Any]) -> Mapping[str, str]:
    if missing := [column for column in columns.values() if column not in raw]:
        raise ValueError(f"columns must map fields to its columns, {', '.join(map(str, raw))}; got {missing}")
    return columns
