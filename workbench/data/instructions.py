"""Instruction sets by name or from a file: id, instruction, context, reference, answer (no torch)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.data.answers import final_answer
from workbench.data.sources import ENDINGS, INSTRUCTION_SETS, HubSet, _plain, hub_rows, permuted, read_rows
from workbench.data.texts import _check_enough, _check_file, _check_n, _until
from workbench.places import demo_path

FIELDS = ["id", "instruction", "context", "reference", "answer"]
DEMO_INSTRUCTIONS = {"demo-math": "math", "demo-open": "open", "demo-math-test": "math-test"}
# field -> column, for each form that is recognised by its columns; the first one whose columns are all there
FORMS: dict[str, dict[str, str]] = {
    "workbench": {name: name for name in FIELDS},
    "openmathinstruct": {
        "instruction": "question",
        "reference": "generated_solution",
        "answer": "expected_answer",
    },
    "gsm8k": {"instruction": "question", "reference": "answer"},
    "dolly": {"instruction": "instruction", "context": "context", "reference": "response"},
    "alpaca": {"instruction": "instruction", "context": "input", "reference": "output"},
}


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
        ``""`` where there is none. ``answer`` is the final answer of the reference: GSM8K's ``#### n``,
        OpenMathInstruct's ``expected_answer``. The reference keeps its calculator marks.
        ``attrs["source"]`` says where the rows came from and how many without an instruction or a reference
        were passed over.

    Raises:
        ValueError: for an unknown name or form, ``n`` below 1 or above what there is, ids that are not
            unique.
    """
    _check_n(n)
    label = str(name)
    prefix = Path(label).name.split(".")[0] if Path(label).is_file() else label
    found: list[dict[str, str]] = []
    skipped = 0
    for index, raw in _until(_instruction_rows(label, n, seed, columns, split, location), found, n):
        row = _tidy(raw, f"{prefix}-{index}", columns, label)
        if row["instruction"].strip() and row["reference"].strip():
            found.append(row)
        else:
            skipped += 1
    _check_enough(label, n, len(found), f"{skipped} have no instruction or no reference")
    frame = pd.DataFrame(found, columns=FIELDS)
    if not frame["id"].is_unique:
        twice = frame["id"][frame["id"].duplicated()].iloc[0]
        raise ValueError(f"ids must be unique, {twice!r} occurs twice in {label}; leave id out of columns")
    frame.attrs["source"] = {"name": label, "n": len(frame), "seed": seed, "skipped": skipped}
    return frame


def user_message(instruction: str, context: str = "") -> str:
    """Return what the user says: the context, if there is one, and below it the instruction."""
    return f"{context}\n{instruction}" if context else instruction


def _instruction_rows(
    label: str,
    n: int | None,
    seed: int,
    columns: Mapping[str, str] | None,
    split: str,
    location: str | Path | None,
) -> Iterator[tuple[int, Any]]:
    if label in INSTRUCTION_SETS:
        return hub_rows(label, INSTRUCTION_SETS[label], n, seed, split, location)
    if columns and label.count("/") == 1 and not label.endswith(ENDINGS) and not Path(label).exists():
        repo, _, config = label.partition(":")
        return hub_rows(label, HubSet(repo, config or None), n, seed, split, location)
    if label in DEMO_INSTRUCTIONS:
        label = str(demo_path("instructions") / f"{DEMO_INSTRUCTIONS[label]}.jsonl")
    _check_file(label, [*DEMO_INSTRUCTIONS, *INSTRUCTION_SETS], "with columns= a hub set owner/name")
    return permuted(read_rows(label), None if n is None else seed)


def _tidy(raw: Any, made_id: str, columns: Mapping[str, str] | None, label: str) -> dict[str, str]:
    """Bring one row into the five fields."""
    if not isinstance(raw, Mapping):
        raise ValueError(f"{label} must hold rows with named columns, got a row {raw!r}")
    mapping = _form_of(raw, label) if columns is None else columns
    _check_columns(mapping, raw, label, partly=columns is None)
    values = {field: _plain(raw.get(mapping.get(field, ""))) for field in FIELDS}
    if not mapping.get("answer") and "####" in values["reference"]:
        values["answer"] = final_answer(values["reference"]) or ""
    return values | {"id": values["id"] or made_id}


def _form_of(raw: Mapping[str, Any], label: str) -> Mapping[str, str]:
    for form, mapping in FORMS.items():
        needed = ("instruction", "reference") if form == "workbench" else mapping.values()
        if all(column in raw for column in needed):
            return mapping
    raise ValueError(
        f"{label} has none of the forms {', '.join(FORMS)}; pass columns={{'instruction': ..., "
        f"'reference': ...}} with the names of its columns, which are {', '.join(raw)}"
    )


def _check_columns(mapping: Mapping[str, str], raw: Mapping[str, Any], label: str, *, partly: bool) -> None:
    wrong = [f for f in mapping if f not in FIELDS] + [
        f for f in ("instruction", "reference") if f not in mapping
    ]
    if wrong or not (partly or all(column in raw for column in mapping.values())):
        raise ValueError(
            f"columns must map fields of {', '.join(FIELDS)} (instruction and reference at least) to columns "
            f"of {label}, which are {', '.join(raw)}; got {dict(mapping)}"
        )
