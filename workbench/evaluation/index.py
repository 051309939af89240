"""The harness's index of tasks and groups, and the tasks under a name."""

from __future__ import annotations

from collections.abc import Mapping
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


def leaves(item: Any, index: Mapping[str, Any]) -> set[str]:
    """Return the tasks under a task, group, tag or inline group; a name that the index lacks is a task."""
    if isinstance(item, dict):
        members = item["task"] if isinstance(item["task"], list) else [item["task"]]
        return {leaf for member in members for leaf in leaves(member, index)}
    kind = index[item].kind.name if item in index else "TASK"
    if kind == "TAG":
        return set(index[item].tags)
    return leaves({"task": index[item].cfg["task"]}, index) if kind == "GROUP" else {item}
