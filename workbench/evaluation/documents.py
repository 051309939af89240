"""A task's sets of items: each processed once, and of its rows those that are asked for, many at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from datasets import Dataset
from lm_eval.api.task import Task

#: rows that are read together
_ROWS = 256
#: the harness's own way through a task's items; whoever has put another in its place has it
_HARNESS = Task.doc_iterator


def process_once(task: Any) -> None:
    """Let a task process each of its sets once, not whenever the harness goes through one."""
    process = task.config.process_docs
    if process is None or hasattr(process, "processed"):
        return
    split = task.config.test_split if task.has_test_docs() else task.config.validation_split
    asked = task.dataset[split]
    found: dict[int, tuple[Any, Any]] = {id(asked): (asked, task.task_docs)}  # as it was loaded

    @wraps(process)
    def once(docs: Any) -> Any:
        if id(docs) not in found:
            found[id(docs)] = docs, process(docs)  # kept with its result, so that no other takes its number
        return found[id(docs)][1]

    once.processed = found  # type: ignore[attr-defined]
    task.config.process_docs = once


def own_rows(task: Any) -> Callable[..., Iterator[tuple[int, Any]]]:
    """Return a task's ``doc_iterator`` that reads the rows of one process alone, and many at once.

    The harness reads one after the other, those of other processes as well; of a row of HellaSwag that takes
    0.1 ms, for each of the two times that it goes through them.
    """
    iterate: Callable[..., Iterator[tuple[int, Any]]] = task.doc_iterator

    @wraps(iterate)
    def doc_iterator(
        *, rank: int = 0, limit: int | None = None, world_size: int = 1, samples: Any = None
    ) -> Iterator[tuple[int, Any]]:
        docs = task.eval_docs
        plain = isinstance(docs, Dataset) and docs.format["type"] is None and docs.format["columns"]
        if samples or not plain or getattr(iterate, "__func__", None) is not _HARNESS:
            yield from iterate(rank=rank, limit=limit, world_size=world_size, samples=samples)
            return
        wanted = range(len(docs))[int(rank) : int(limit) if limit else None : int(world_size)]
        for first in range(0, len(wanted), _ROWS):
            some = wanted[first : first + _ROWS]
            columns = docs[some]
            rows = zip(*columns.values(), strict=True)
            yield from zip(some, (dict(zip(columns, row, strict=True)) for row in rows), strict=True)

    return doc_iterator
