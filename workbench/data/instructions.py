"""Instruction sets by name or from a file: id, instruction, context, reference, answer (no torch)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.checks import checked, whole_number
from workbench.data import sources
from workbench.data.answers import final_answer
from workbench.data.sources import INSTRUCTION_SETS, HubSet
from workbench.places import demo_path

FIELDS = ["id", "instruction", "context", "reference", "answer"]
#: how instruction and context make up the user's message
FORM = "{instruction}\n{context}"
DEMO_INSTRUCTIONS = ("demo-math", "demo-open", "demo-math-test")
# set -> field -> column, for sets that are recognised by their columns: the first whose columns are all there
KNOWN_COLUMNS: dict[str, dict[str, str]] = sources.TABLES["columns"]


def load_instructions(
    name: str | Path,
    *,
    n: int | None = None,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    location: str | Path | None = None,
) -> pd.DataFrame:
    """Load an instruction set in one tidy form, sampled like ``load_texts``.

    SDD (A.4) takes 8,000 samples of GSM8K, Alpaca Cleaned and OpenMathInstruct, all 15,000 of Dolly, and
    for its largest runs 50,000 of Alpaca Cleaned and OpenMathInstruct.

    Args:
        name: ``demo-math``, ``demo-open``, ``gsm8k``, ``alpaca``, ``alpaca-cleaned``, ``dolly``,
            ``openmathinstruct`` (its correct solutions), the path of a file whose form is recognised by its
            columns, or with ``columns`` any file or hub set (``owner/name`` or
            ``owner/name:configuration``).
        n: number of rows; None for all, in the order of the set.
        seed: of the sample.
        columns: for any other form, field -> column, at least ``instruction`` and ``reference``.
        split: of a hub set.
        location: a local copy of the hub repository to read instead of the hub.

    Returns:
        Frame with id, instruction, context, reference, answer, all texts; ``context`` and ``answer`` are
        ``""`` where there is none; ``form`` (of ``user_message``) too where a set has its own. ``answer`` is
        the final answer of the reference: GSM8K's ``#### n``, OpenMathInstruct's ``expected_answer``. The
        reference keeps its calculator marks.
        ``attrs["source"]`` says where the rows came from and how many without an instruction or a reference
        were passed over.

    Raises:
        ValueError: for an unknown name or form, ``n`` below 1 or above what there is, ids that are not
            unique.
    """
    if n is not None:
        whole_number(n, "n")
    label = str(name)
    prefix = Path(label).name.split(".")[0] if Path(label).is_file() else label
    skipped: list[str] = []

    def usable(index: int, raw: Any) -> dict[str, str] | None:
        row = _tidy(raw, f"{prefix}-{index}", columns, label)
        if row["instruction"].strip() and row["reference"].strip():
            return row
        skipped.append(row["id"])
        return None

    source = _source(label, columns)
    found = sources.sample(source, usable, name=label, n=n, seed=seed, split=split, location=location)
    sources.check_enough(label, n, len(found), f"{len(skipped)} have no instruction or no reference")
    frame = checked(pd.DataFrame(found, columns=FIELDS), FIELDS, label, unique="id")
    if form := sources.TABLES["forms"].get(label):
        frame["form"] = form
    frame.attrs["source"] = {"name": label, "n": len(frame), "seed": seed, "skipped": len(skipped)}
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
        ValueError: for a field that is not text, naming it and the row's id.

    >>> conversation({"instruction": "Who came?", "history": '[{"role": "system", "content": "Be brief."}]'})
    [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Who came?'}]
    """
    history = row.get("history")
    if not isinstance(history, list | tuple):
        history = json.loads(field_text(row, "history") or "[]")
    texts = [field_text(row, name) for name in ("instruction", "context")]
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


def _source(label: str, columns: Mapping[str, str] | None) -> HubSet | list[Any]:
    if label in INSTRUCTION_SETS:
        return INSTRUCTION_SETS[label]
    local = label.endswith(sources.ENDINGS) or Path(label).exists()
    if columns and label.count("/") == 1 and not local:
        repo, _, config = label.partition(":")
        return HubSet(repo, config or None)
    if label in DEMO_INSTRUCTIONS:
        label = str(demo_path("instructions") / f"{label.removeprefix('demo-')}.jsonl")
    sources.check_file(label, [*DEMO_INSTRUCTIONS, *INSTRUCTION_SETS], "with columns= a hub set owner/name")
    return sources.read_rows(label)


def _tidy(raw: Any, made_id: str, columns: Mapping[str, str] | None, label: str) -> dict[str, str]:
    """Bring one row into the five fields."""
    if not isinstance(raw, Mapping):
        raise ValueError(f"{label} must hold rows with named columns, got a row {raw!r}")
    mapping = _known_columns(raw, label) if columns is None else _checked_columns(columns, raw, label)
    values = {field: sources.as_text(raw.get(mapping.get(field, ""))) for field in FIELDS}
    if not mapping.get("answer") and "####" in values["reference"]:
        values["answer"] = final_answer(values["reference"]) or ""
    return values | {"id": values["id"] or made_id}


def _known_columns(raw: Mapping[str, Any], label: str) -> Mapping[str, str]:
    for known, mapping in KNOWN_COLUMNS.items():
        needed = ("instruction", "reference") if known == "workbench" else mapping.values()
        if all(column in raw for column in needed):
            return mapping
    raise ValueError(
        f"{label} has none of the forms {', '.join(KNOWN_COLUMNS)}; pass columns={{'instruction': ..., "
        f"'reference': ...}} with the names of its columns, which are {', '.join(raw)}"
    )


def _checked_columns(columns: Mapping[str, str], raw: Mapping[str, Any], label: str) -> Mapping[str, str]:
    if {"instruction", "reference"} <= set(columns) <= set(FIELDS) and set(columns.values()) <= set(raw):
        return columns
    raise ValueError(
        f"columns must map fields of {', '.join(FIELDS)} (instruction and reference at least) to columns "
        f"of {label}, which are {', '.join(raw)}; got {dict(columns)}"
    )
