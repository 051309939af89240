"""The harness's index of tasks and groups, and the tasks under a name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from workbench.evaluation.longform import QMSUM
from workbench.evaluation.suites import LOCAL_SETS


def task_manager(folder: Path | None) -> Any:
    """Return the harness's manager of the tasks of one folder."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folder, include_defaults=False)


@lru_cache(maxsize=1)
def packaged_tasks() -> Any:
    """Return the manager of the thousands of tasks that the harness carries (about 10 s)."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


@lru_cache(maxsize=32)
def packaged(key: str) -> Any:
    """Return the manager of the packaged folder of a set: no need to index thousands of tasks."""
    import lm_eval.tasks

    place = Path(lm_eval.tasks.__file__).parent / LOCAL_SETS[key].packaged
    manager = task_manager(place if place.is_dir() else place.parent)
    if key == QMSUM["task"]:  # the packaged one cannot be imported
        manager.task_index[key] = replace(manager.task_index[key], yaml_path=None, cfg=QMSUM)
    return manager


def below(item: Any, index: Mapping[str, Any]) -> Iterator[str]:
    """Yield a name and the names below it, groups and tags included; one that the index lacks is a task.

    A task that a group states in full, with its own data, has no name outside the group and is left out.
    """
    if isinstance(item, dict):
        inside = item.get("task", item.get("group"))
        if "dataset_path" in item and inside not in index:
            return
        for member in inside if isinstance(inside, list) else [inside]:
            yield from below(member, index)
        return
    yield item
    kind = _kind(item, index)
    if kind == "TAG":
        yield from sorted(index[item].tags)
    elif kind == "GROUP":
        yield from below({"task": index[item].cfg.get("task") or []}, index)


def leaves(item: Any, index: Mapping[str, Any]) -> set[str]:
    """Return the tasks under a task, group, tag or inline group; a name that the index lacks is a task."""
    return {name for name in below(item, index) if _kind(name, index) not in ("TAG", "GROUP")}


def _kind(name: str, index: Mapping[str, Any]) -> str:
    return index[name].kind.name if name in index else "TASK"
