"""The columns of its data that a task shows: all there, and no gap where a prompt would show it."""

from __future__ import annotations

import warnings
from typing import Any


def check_columns(name: str, task: Any) -> None:
    """Refuse a task unless every column that its prompt, answer and choices name is there, and none is empty.

    The harness renders a null as the word "None", and a misspelt ``doc_to_target: lable`` as that very word.
    A template may have a case for an empty column.

    Raises:
        ValueError: naming the column and the first item.
    """
    columns, docs = set(task.features), task.eval_docs
    for entry in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        wanted = _columns_of(getattr(task.config, entry))
        if missing := sorted(wanted - columns):
            told = f"asks for column {missing[0]!r}; its data have {sorted(columns)}"
            raise ValueError(f"task {name!r}: {entry} {told}")
        for column in sorted(wanted):
            gaps = [row for row, value in enumerate(docs[column]) if _has_gap(value)]
            if empty := [row for row in gaps if _shows_gap(getattr(task, entry), docs[row], column)]:
                raise ValueError(f"task {name!r}: column {column!r} is empty, first in item {empty[0]}")


def _has_gap(value: Any) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return value is None or any(map(_has_gap, inside))


def _shows_gap(render: Any, doc: dict[str, Any], column: str) -> bool:
    """Return whether an empty value stands in a text as "None"; a template may have a case for it."""
    counts = []
    for value in (doc[column], ""):
        try:
            counts.append(str(render({**doc, column: value})).count("None"))
        except (LookupError, SyntaxError, TypeError, ValueError):
            counts.append(0 if counts else 1)
    return counts[0] > counts[1]


def _columns_of(template: Any) -> set[str]:
    """Return the columns that a template reads; a bare word counts as a column's name."""
    from jinja2 import meta
    from lm_eval.utils import env

    if not isinstance(template, str):
        return set()
    if template.isidentifier():
        return {template}
    return meta.find_undeclared_variables(env.parse(template))


def is_choice(target: Any, n: int) -> bool:
    """Return whether a target is the number of one of ``n`` choices."""
    return isinstance(target, int) and 0 <= target < n


def strange_targets(samples: list[dict[str, Any]], task: Any) -> dict[int, Any]:
    """Return by item the targets that are none of their choices."""
    if task.OUTPUT_TYPE != "multiple_choice" or task.multiple_input:
        return {}
    return {one["doc_id"]: one["target"] for one in samples if not _has_target(one, task)}


def tell_strange_targets(name: str, strange: dict[int, Any], of: int) -> None:
    """Warn of a task's items whose target is none of their choices: the harness counts them as wrong."""
    if strange:
        told = f"task {name!r}: the target of {len(strange)} of {of} items is none of their choices, such as"
        warnings.warn(f"{told} {next(iter(strange.values()))!r}; they count as wrong", stacklevel=3)


def _has_target(sample: dict[str, Any], task: Any) -> bool:
    choices, target = task.doc_to_choice(sample["doc"]), sample["target"]
    targets = target if isinstance(target, list | tuple) else [target]
    return all(one in choices if isinstance(one, str) else is_choice(one, len(choices)) for one in targets)
