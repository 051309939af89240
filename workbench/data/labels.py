"""Short names for data sets: what stands in legends, tables and file names instead of a path."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.data.files import ENDINGS

_ALLOWED = re.compile(r"[A-Za-z0-9][\w.+=-]*", re.ASCII)


def named_sets(sets: str | Path | Iterable[str | Path] | Mapping[str, str | Path]) -> dict[str, str | Path]:
    """Return data sets by short names: yours, or of a file its name without folder and ending.

    Args:
        sets: a name or path, several, or a dict from labels to them. Names of sets stay as they are. Two
            files of one name are told apart by their folders.

    Returns:
        Label -> what ``load_texts`` or ``load_instructions`` takes, in the order given.

    Raises:
        ValueError: for none, for a label that cannot be part of a file's name, for two sets of one name.

    >>> named_sets(["c4", "../data/my texts.jsonl.gz"])
    {'c4': 'c4', 'my-texts': '../data/my texts.jsonl.gz'}
    >>> list(named_sets(["a/rows.jsonl", "b/rows.jsonl"])), list(named_sets({"C4": "~/c4.jsonl"}))
    (['a-rows', 'b-rows'], ['C4'])
    """
    if isinstance(sets, Mapping):
        found = dict(zip(sets, _checked([*sets.values()]), strict=True))
    else:
        several = [sets] if isinstance(sets, str | Path) or not hasattr(sets, "__iter__") else [*sets]
        given = _checked(several)
        short = [_label(one) for one in given]
        labels = [
            _label(one, 2) if short.count(own) > 1 else own for one, own in zip(given, short, strict=True)
        ]
        if len(set(labels)) < len(labels):
            raise ValueError(
                f"sets must differ in their names, or have labels, {{'mine': path}}; got {given}"
            )
        found = dict(zip(labels, given, strict=True))
    for label in found:
        if not isinstance(label, str) or not _ALLOWED.fullmatch(label):
            raise ValueError(f"a label must be letters, digits and . _ + = -, got {label!r}")
    if not found:
        raise ValueError("sets must be at least one name or path, got none")
    return found


def _checked(sets: Sequence[Any]) -> list[str | Path]:
    for one in sets:
        if not isinstance(one, str | Path) or not str(one).strip():
            raise ValueError(f"sets must be names or paths, got {one!r}")
    return list(sets)


def _label(name: str | Path, parts: int = 1) -> str:
    """Return the name of a set, of a file its last parts without the ending."""
    path = Path(name)
    stem = path.name
    for ending in sorted(ENDINGS, key=len, reverse=True):
        if stem.lower().endswith(ending):
            stem = stem[: -len(ending)]
            break
    else:
        if len(path.parts) == 1:
            return str(name)
    words = [*path.parts[-parts:-1], stem] if parts > 1 else [stem]
    return re.sub(r"[^A-Za-z0-9_.+=]+", "-", "-".join(words)).strip("-.") or "texts"
