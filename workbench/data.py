"""Calibration texts and instruction sets, by name or from a file, sampled with a seed (no torch).

The hub is read as a stream through ``datasets``: only as many rows as the sample needs. Each hub set can
also be read from a local copy of its repository (``location=``), which is what a machine without a network
needs.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.answers import final_answer
from workbench.provenance import inputs_fingerprint
from workbench.sources import CORPORA, ENDINGS, INSTRUCTION_SETS, HubSet, hub_rows, permuted, read_rows

__all__ = ["FIELDS", "Texts", "fingerprint", "load_instructions", "load_texts", "user_message"]

FIELDS = ["id", "instruction", "context", "reference", "answer"]
DEMO = Path(__file__).resolve().parents[1] / "data" / "demo"
DEMO_CORPORA = ("stories", "encyclopedia", "dialogues", "german")
DEMO_TEXTS = {"demo": DEMO_CORPORA} | {f"demo-{name}": (name,) for name in DEMO_CORPORA}
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


class Texts(list[str]):
    """A list of texts that remembers where they came from.

    Attributes:
        source: plain values: name, seed, rows looked at, how many were empty or too short and so passed over.
    """

    source: dict[str, Any]


def load_texts(
    name: str | Path | Sequence[str] = "demo",
    *,
    n: int | None = 128,
    seed: int = 0,
    min_length: int = 0,
    tokenizer: Any = None,
    column: str = "text",
    split: str = "train",
    location: str | Path | None = None,
) -> Texts:
    """Load calibration texts: a sample without replacement, the same for the same seed.

    SDD (A.3) uses 128 texts of at most 4096 tokens. The default follows the number; the maximum length is
    cut by the function that reads the texts (``angular_distances(max_length=4096)``). From a file, a demo
    corpus or a list the sample is uniform over all rows, and a smaller ``n`` gives the beginning of a
    larger one. Of a large hub corpus only the beginning is read, eight documents for each one asked for
    (RedPajama: from each domain, in proportion to its size), and the sample is drawn from them. Empty
    documents are passed over and counted.

    Args:
        name: ``demo`` (all its corpora mixed), ``demo-stories``, ``demo-encyclopedia``, ``demo-dialogues``,
            ``demo-german``, ``c4``, ``redpajama``, ``slimpajama``, ``wikitext2`` (one text a line of the
            articles), the path of a ``.jsonl``, ``.jsonl.gz``, ``.json``, ``.parquet`` or ``.txt`` file
            (one text a line), or a list.
        n: number of texts; None for all (not of a large corpus). A list of at most ``n`` texts is taken as
            it is.
        seed: of the sample.
        min_length: shortest text to take, in tokens of ``tokenizer``, or in characters where none is given.
        tokenizer: counts ``min_length`` in its tokens, special tokens not counted.
        column: the column of a file or hub set that holds the texts.
        split: ``train``, ``validation`` or ``test`` of a hub corpus.
        location: a local copy of the hub repository to read instead of the hub.

    Returns:
        The texts, a list with an attribute ``source``: plain values that belong with a result's provenance.

    Raises:
        ValueError: for an unknown name, ``n`` below 1 or above what there is, an empty text in a list, a
            missing column, a hub that cannot be reached.
    """
    _check_n(n)
    accept = _accept(min_length, tokenizer)
    if not isinstance(name, str | Path):
        return _from_list(name, n, seed, accept)
    label = str(name)
    if label in CORPORA:
        rows = hub_rows(label, CORPORA[label], n, seed, split, location)
    else:
        rows = permuted(_local_texts(label), None if n is None else seed)
    texts = Texts()
    counts = {"looked_at": 0, "empty": 0, "too_short": 0}
    for _, row in _until(rows, texts, n):
        text = _text_of(row, column, label)
        counts["looked_at"] += 1
        if not text.strip():
            counts["empty"] += 1
        elif not accept(text):
            counts["too_short"] += 1
        else:
            texts.append(text)
    _check_enough(label, n, len(texts), f"{counts['empty']} are empty, {counts['too_short']} too short")
    texts.source = {"name": label, "n": len(texts), "seed": seed, "min_length": min_length, **counts}
    return texts


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


def fingerprint(obj: Any) -> str:
    """Return a SHA-256 of texts, a frame, or a dict of plain values: the same content, the same fingerprint.

    Raises:
        ValueError: for what no fingerprint can follow (a model, a function).
    """
    return inputs_fingerprint({"value": obj})


def user_message(instruction: str, context: str = "") -> str:
    """Return what the user says: the context, if there is one, and below it the instruction."""
    return f"{context}\n{instruction}" if context else instruction


def _check_n(n: int | None) -> None:
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
        raise ValueError(f"n must be a whole number of at least 1, or None for all, got {n!r}")


def _check_enough(label: str, n: int | None, found: int, why: str) -> None:
    if found == 0 or (n is not None and found < n):
        raise ValueError(
            f"n must be at most {found} for {label}, its usable rows ({why}), got {n}; None takes them all"
            if found
            else f"{label} has no usable row ({why})"
        )


def _until(rows: Iterable[Any], taken: list[Any], n: int | None) -> Iterator[Any]:
    """Yield rows until ``taken``, which the caller fills, holds ``n``."""
    for row in rows:
        yield row
        if len(taken) == n:
            return


def _accept(min_length: int, tokenizer: Any) -> Callable[[str], bool]:
    if tokenizer is None:
        return lambda text: len(text) >= min_length
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]) >= min_length


def _from_list(texts: Iterable[Any], n: int | None, seed: int, accept: Callable[[str], bool]) -> Texts:
    rows = list(texts)
    for index, text in enumerate(rows):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(
                f"texts must be strings that are not empty; number {index} of the list is {text!r}"
            )
    fit = [text for text in rows if accept(text)]
    _check_enough("the list", None, len(fit), f"{len(rows) - len(fit)} too short")
    result = Texts(fit if n is None or len(fit) <= n else [text for _, text in permuted(fit, seed)][:n])
    result.source = {"name": "list", "n": len(result), "seed": seed, "too_short": len(rows) - len(fit)}
    return result


def _local_texts(label: str) -> list[Any]:
    if label in DEMO_TEXTS:
        return [row for name in DEMO_TEXTS[label] for row in read_rows(DEMO / "texts" / f"{name}.jsonl")]
    _check_file(label, [*DEMO_TEXTS, *CORPORA], "a list of texts")
    return read_rows(label)


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
        label = str(DEMO / "instructions" / f"{DEMO_INSTRUCTIONS[label]}.jsonl")
    _check_file(label, [*DEMO_INSTRUCTIONS, *INSTRUCTION_SETS], "with columns= a hub set owner/name")
    return permuted(read_rows(label), None if n is None else seed)


def _check_file(label: str, names: list[str], other: str) -> None:
    if Path(label).is_file():
        return
    near = difflib.get_close_matches(label.lower(), names, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ValueError(
        f"name must be one of {', '.join(names)}, a file ending in {', '.join(ENDINGS)}, or {other}; "
        f"got {label!r}, and no such file exists{hint}"
    )


def _text_of(row: Any, column: str, label: str) -> str:
    if isinstance(row, str):
        return row
    if column not in row:
        raise ValueError(f"column must be one of {', '.join(row)} for {label}, got {column!r}")
    return _plain(row[column])


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


def _plain(value: Any) -> str:
    return "" if value is None or value != value else str(value)
