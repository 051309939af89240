"""Short names for data sets: what stands in legends, tables and file names instead of a path."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
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
    several: Any = sets if hasattr(sets, "__iter__") and not isinstance(sets, str) else [sets]
    given = list(several.values() if isinstance(sets, Mapping) else several)
    for one in given:
        if not isinstance(one, str | Path) or not str(one).strip():
            raise ValueError(f"sets must be names or paths, got {one!r}")
    if not given:
        raise ValueError("sets must be at least one name or path, got none")
    short = [_label(one) for one in given]
    own = [_label(one, 2) if short.count(name) > 1 else name for one, name in zip(given, short, strict=True)]
    found = dict(zip(sets if isinstance(sets, Mapping) else own, given, strict=True))
    if len(found) < len(given):
        raise ValueError(f"sets must differ in their names, or have labels, {{'mine': path}}; got {given}")
    for label in found:
        if not isinstance(label, str) or not _ALLOWED.fullmatch(label):
            raise ValueError(f"a label must be letters, digits and . _ + = -, got {label!r}")
    return found


def _label(name: str | Path, parts: int = 1) -> str:
    """Return the name of a set, of a file its last parts without the ending."""
    path = Path(name)
    ending = max(filter(path.name.lower().endswith, ENDINGS), key=len, default="")
    if not ending and len(path.parts) == 1:
        return str(name)
    words = [*path.parts[-parts:-1], path.name[: len(path.name) - len(ending)]]
    return re.sub(r"[^A-Za-z0-9_.+=]+", "-", "-".join(words)).strip("-.") or "texts"
