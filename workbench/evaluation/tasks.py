"""Which questions are asked: suites, packaged harness tasks, and tasks whose data lie on disk.

Everything here ends in task objects of EleutherAI's lm-evaluation-harness; prompts, few-shot examples, answer
filters and metrics are the harness's own. What it adds is finding things: the papers' suites by name, a
folder of task files with paths that work from any directory, and public sets saved as jsonl instead of on the
hub.
"""

from __future__ import annotations

import difflib
import hashlib
import tempfile
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from workbench.evaluation.offline import local_files, set_of, write_task_files
from workbench.evaluation.suites import LOCAL_SETS, SUITES
from workbench.places import demo_path, in_checkout
from workbench.runs.files import sha256_of


def plan_tasks(tasks: str | Sequence[str], n_shot: int | None = None) -> dict[int | None, list[str]]:
    """Suites opened and tasks grouped by their number of few-shot examples: {n_shot: [names]}.

    Args:
        tasks: a suite of ``SUITES``, or names of tasks, groups and tags; one or several.
        n_shot: replaces the number of few-shot examples of every task; None keeps the suite's or the task's
            own.

    Raises:
        ValueError: no task is named, or ``n_shot`` is negative.
    """
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    if not names:
        raise ValueError("tasks must name at least one task, group or suite, got none")
    if n_shot is not None and (not isinstance(n_shot, int) or n_shot < 0):
        raise ValueError(f"n_shot must be a whole number of at least 0, or None, got {n_shot!r}")
    plan: dict[int | None, list[str]] = {}
    for name in names:
        for task, shots in SUITES[name].tasks if name in SUITES else ((name, None),):
            group = plan.setdefault(shots if n_shot is None else n_shot, [])
            if task not in group:
                group.append(task)
    return plan


def task_names(include: str | Path | None = None, *, packaged: bool = False) -> list[str]:
    """Names that ``evaluate`` accepts: suites, tasks and groups of a folder, and packaged ones.

    Args:
        include: a folder of task files; None takes the demo tasks.
        packaged: also the thousands of tasks that the harness carries (reading their index takes about 10 s).
    """
    names = {*SUITES, *_index(_folder(include))}
    return sorted(names | set(_packaged().all_tasks) if packaged else names)


def task_fingerprint(
    tasks: str | Sequence[str], *, include: str | Path | None = None, data: str | Path | None = None
) -> dict[str, str]:
    """What the questions depend on, as an input of a stored stage: harness version, task files, local data.

    Args:
        tasks: as for ``evaluate``.
        include: as for ``evaluate``.
        data: as for ``evaluate``.
    """
    names = {name for part in plan_tasks(tasks).values() for name in part}
    parts = {"lm_eval": version("lm_eval")}
    if (folder := _folder(include)) and names & set(_index(folder)):
        files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        parts["include"] = _digest(files)
    if data is not None:
        parts["data"] = _digest(local_files(names, data))
    return parts


def _digest(files: Iterable[Path]) -> str:
    lines = sorted(f"{path.name} {sha256_of(path)}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def load_tasks(
    names: Sequence[str],
    *,
    include: str | Path | None = None,
    data: str | Path | None = None,
    missing: str = "error",
) -> dict:
    """The named tasks, ready to run, as the harness's dict of ``tasks``, ``groups`` and ``group_map``.

    The index of packaged tasks (about 10 s) is built only if a name is found neither in the folder nor in
    ``data``.

    Args:
        names: tasks, groups or tags.
        include: a folder of task files (YAML); None takes the demo tasks. Relative ``data_files`` in it are
            looked for next to the task file, then in each folder above it (the project's root), then where
            Python runs.
        data: a folder with public sets as jsonl (``LOCAL_SETS``); those found there are read from it, not the
            hub.
        missing: as for ``evaluate``.

    Raises:
        ValueError: as for ``load_plan``.
    """
    return load_plan({None: list(names)}, include=include, data=data, missing=missing).tasks[None]


class Loaded(NamedTuple):
    """Tasks of a plan, ready to run.

    Attributes:
        tasks: {n_shot: the harness's dict of tasks, groups and group_map}.
        left: (name, n_shot) of what was loaded.
        skipped: {name: why} of what was left out, whole or in part.
    """

    tasks: dict[int | None, dict]
    left: list[tuple[str, int | None]]
    skipped: dict[str, str]


def load_plan(
    plan: dict[int | None, list[str]],
    *,
    include: str | Path | None = None,
    data: str | Path | None = None,
    missing: str = "error",
) -> Loaded:
    """All tasks of a plan, and what could not be had: everything that is missing is found before any work.

    Args:
        plan: {n_shot: names}, of ``plan_tasks``.
        include: as for ``load_tasks``.
        data: as for ``load_tasks``.
        missing: "error", or "skip" to leave out what has no data.

    Raises:
        ValueError: unknown name (near ones are named), data file missing or without items, missing column;
            no data for some names (all are named at once, unless ``missing="skip"``).
    """
    if missing not in ("error", "skip"):
        raise ValueError(f"missing must be 'error' or 'skip', got {missing!r}")
    from lm_eval.tasks import TaskManager

    names = list(dict.fromkeys(name for part in plan.values() for name in part))
    loaded: dict[int | None, dict] = {}
    left: list[tuple[str, int | None]] = []
    with tempfile.TemporaryDirectory() as overlay:
        own = _offline_files(_folder(include), Path(overlay))
        parts = write_task_files(names, data, Path(overlay)) if data is not None else {}
        manager = TaskManager(include_path=overlay, include_defaults=False)
        known = manager.all_tasks
        sources = {name: manager if name in known else _packaged_or_error(name, known) for name in names}
        gaps = {name: f"no rows of {', '.join(absent)}" for name, absent in parts.items() if absent}
        for shots, name in [(shots, name) for shots, part in plan.items() for name in part]:
            found, why = _load(sources[name], name, local=name in own or name in parts)
            why = why or _no_examples(found, shots)
            if why:
                gaps[name] = f"{gaps[name]}; {why}" if name in gaps else why
                continue
            _check_all_columns(found["tasks"], own)
            into = loaded.setdefault(shots, {"tasks": {}, "groups": {}, "group_map": {}})
            for part, entries in found.items():
                into[part].update(entries)
            left.append((name, shots))
    if gaps and (missing == "error" or not left):
        raise ValueError(_what_is_missing(gaps, data))
    return Loaded(loaded, left, gaps)


def _what_is_missing(gaps: dict[str, str], data: str | Path | None) -> str:
    files = [file for name in gaps if (key := set_of(name)) for file in LOCAL_SETS[key].files.values()]
    where = "data= (a folder with public sets as jsonl)" if data is None else f"{data} (data=)"
    hint = f"; files that {where} may hold: {', '.join(dict.fromkeys(files))}" if files else ""
    return (
        f"no data for {len(gaps)} of the tasks: "
        + "; ".join(f"{name!r} ({why})" for name, why in gaps.items())
        + f"{hint}; missing='skip' leaves them out"
    )


def _no_examples(found: dict, shots: int | None) -> str:
    """Why few-shot examples cannot be drawn as officially: the split they come from is not on disk."""
    for task in found["tasks"].values() if shots else ():
        if file := (task.get_config("metadata") or {}).get("few_shot_file"):
            return (
                f"{shots} few-shot examples come from a split that is not there ({file}); n_shot=0 needs none"
            )
    return ""


def _folder(include: str | Path | None) -> Path | None:
    if include is None:
        return demo_path("tasks") if in_checkout() else None
    folder = Path(include).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"include must be a folder of task files (*.yaml), got {str(include)!r}, which is none"
        )
    if not _index(folder):
        raise ValueError(f"include must be a folder of task files, but no *.yaml in {folder} names a task")
    return folder


def _index(folder: Path | None) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folder, include_defaults=False).task_index if folder else {}


@lru_cache(maxsize=1)
def _packaged() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


@lru_cache(maxsize=32)
def _packaged_part(packaged: str) -> Any:
    """The packaged tasks of one folder: no need to index thousands for a name that says where it lies."""
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    place = Path(lm_eval.tasks.__file__).parent / packaged
    return TaskManager(include_path=place if place.is_dir() else place.parent, include_defaults=False)


def _packaged_or_error(name: str, offline: Iterable[str]) -> Any:
    known = {*offline, *SUITES}
    if (key := set_of(name)) and name in (part := _packaged_part(LOCAL_SETS[key].packaged)).all_tasks:
        return part
    if not name.startswith("demo"):  # demo tasks are never packaged: a slip there should not cost 10 s
        if name in _packaged().all_tasks:
            return _packaged()
        known |= set(_packaged().all_tasks)
    near = difflib.get_close_matches(name, sorted(known), n=5, cutoff=0.6) or sorted({*offline, *SUITES})
    raise ValueError(f"no task, group or suite is called {name!r}; near: {', '.join(near) or 'none'}")


def _offline_files(folder: Path | None, overlay: Path) -> set[str]:
    """Write, for each task file, one that includes it and names its data absolutely; return the tasks.

    The harness resolves relative ``data_files`` against the working directory, so that a task folder works
    from one place only. The originals stay as they are, and usable by the ``lm_eval`` command line.
    """
    names: set[str] = set()
    for name, entry in _index(folder).items():
        if entry.yaml_path is None:  # a tag: no file of its own
            continue
        config: dict[str, Any] = {"include": str(Path(entry.yaml_path).resolve())}
        keywords = entry.cfg.get("dataset_kwargs") or {}
        if "data_files" in keywords:
            files = _absolute(keywords["data_files"], Path(entry.yaml_path).resolve(), name)
            config["dataset_kwargs"] = keywords | {"data_files": files}
        _write_yaml(overlay / f"{len(names)}.yaml", config)
        names.add(name)
    return names


def _write_yaml(path: Path, config: dict[str, Any]) -> None:
    import yaml

    path.write_text(yaml.safe_dump(config), encoding="utf-8")


def _absolute(files: Any, task_file: Path, task: str) -> Any:
    if isinstance(files, dict):
        return {split: _absolute(file, task_file, task) for split, file in files.items()}
    if isinstance(files, list):
        return [_absolute(file, task_file, task) for file in files]
    if "://" in str(files):
        return files
    for folder in (*task_file.parents, Path.cwd()):
        if (found := folder / files).is_file():
            if not found.read_text(encoding="utf-8").strip():
                raise ValueError(f"task {task!r}: its data file {found} has no items")
            return str(found)
    raise ValueError(
        f"task {task!r}: its data file {files!r} is neither near {task_file} nor in {Path.cwd()}"
    )


def _load(manager: Any, name: str, *, local: bool) -> tuple[dict, str]:
    """Load one name, turning the harness's many ways to fail on its data into one line.

    Returns:
        The harness's dict and "", or an empty one and why the data of a packaged task could not be reached.
    """
    import datasets
    import jinja2

    try:
        return manager.load([name]), ""
    except (jinja2.UndefinedError, KeyError) as error:
        raise ValueError(
            f"task {name!r}: its data lack a column that its prompt asks for: {error}"
        ) from error
    except IndexError as error:
        raise ValueError(f"task {name!r} has no items") from error
    except (OSError, datasets.exceptions.DatasetsError, datasets.exceptions.DatasetGenerationError) as error:
        reason = str(error).splitlines()[0]
        if not local:
            return {"tasks": {}}, f"could not be read from the hub: {reason}"
        raise ValueError(f"task {name!r}: its data could not be read ({reason})") from error


def _check_all_columns(tasks: dict[str, Any], own: set[str]) -> None:
    for name, task in tasks.items():
        if name in own:
            _check_columns(name, task)


def _check_columns(name: str, task: Any) -> None:
    """Every column a task's prompt, answer and choices name is there and filled in every row.

    The harness renders a null as the word "None", and a misspelt ``doc_to_target: lable`` as that very word.
    """
    columns, docs = set(task.features), task.eval_docs
    for entry in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        wanted = _columns_of(getattr(task.config, entry))
        if missing := sorted(wanted - columns):
            raise ValueError(
                f"task {name!r}: {entry} asks for column {missing[0]!r}; its data have {sorted(columns)}"
            )
        for column in sorted(wanted):
            if empty := [row for row, value in enumerate(docs[column]) if value is None]:
                raise ValueError(
                    f"task {name!r}: column {column!r} is empty in {len(empty)} of {len(docs)} items, "
                    f"first in item {empty[0]}"
                )


def _columns_of(template: Any) -> set[str]:
    """The columns a template reads; a bare word counts as a column's name."""
    from jinja2 import meta
    from lm_eval.utils import env

    if not isinstance(template, str):
        return set()
    if template.isidentifier():
        return {template}
    return meta.find_undeclared_variables(env.parse(template))
