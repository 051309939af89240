"""Which questions are asked: suites, packaged harness tasks, and tasks whose data lie on disk.

Everything here ends in task objects of EleutherAI's lm-evaluation-harness; prompts, few-shot examples, answer
filters and metrics are the harness's own. What it adds is finding things: the papers' suites by name, a
folder of task files with paths that work from any directory, and public sets saved as jsonl instead of on the
hub.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from workbench.checks import first_line, one_of, printable, told
from workbench.evaluation import dependencies, offline
from workbench.evaluation.columns import check_columns
from workbench.evaluation.index import leaves, packaged, packaged_tasks, task_manager
from workbench.evaluation.offline import OnDisk, set_of
from workbench.evaluation.suites import LOCAL_SETS, SUITES
from workbench.places import demo_path, in_checkout

_NO_PACKAGE = "needs a package that is not there"


def plan_tasks(tasks: str | Sequence[str], n_shot: int | None = None) -> dict[int | None, list[str]]:
    """Suites opened and tasks grouped by their number of few-shot examples: {n_shot: [names]}.

    Args:
        tasks: a suite of ``SUITES``, or names of tasks, groups and tags; one or several.
        n_shot: replaces the number of few-shot examples of every task; None keeps the suite's or the task's
            own.

    Raises:
        ValueError: no task is named.

    >>> plan_tasks("sdd")
    {25: ['arc_challenge'], 5: ['gsm8k', 'mmlu']}
    """
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    if not names:
        raise ValueError("tasks must name at least one task, group or suite, got none")
    plan: dict[int | None, dict[str, None]] = {}
    for name in names:
        for task, shots in SUITES[name].tasks if name in SUITES else ((name, None),):
            plan.setdefault(shots if n_shot is None else n_shot, {})[task] = None
    return {shots: list(group) for shots, group in plan.items()}


def task_fingerprint(
    tasks: str | Sequence[str], *, include: str | Path | None = None, data: str | Path | None = None
) -> dict[str, str]:
    """What the questions depend on, as an input of a stored stage, all by content and not by place.

    Args:
        tasks: as for ``evaluate``.
        include: as for ``evaluate``.
        data: as for ``evaluate``.

    Returns:
        The harness's version (``lm_eval``), and where they enter the digests of a task folder with the task
        files, functions and data outside it that its tasks name (``include``), of public sets on disk
        (``data``), and of the commits of sets in the hub's local cache (``hub``).

    Raises:
        ValueError: for no task, or an ``include`` that holds no task files.
    """
    names = {name for part in plan_tasks(tasks).values() for name in part}
    parts = {"lm_eval": version("lm_eval")}
    folder = _folder(include)
    index = task_manager(folder).task_index
    if folder and (own := names & index.keys()):
        parts["include"] = dependencies.digest_of_all(dependencies.own_files(own, folder, index))
        names |= {leaf for name in own for leaf in leaves(name, index)}
    if data is not None:
        files = {file.name: file for file in offline.local_files(names, data)}
        parts["data"] = dependencies.digest_of_all(files)
    if commits := dependencies.hub_commits():
        read = sorted(_hub_sets(names, index, data) & commits.keys())
        parts |= {"hub": "; ".join(f"{name} {commits[name]}" for name in read)} if read else {}
    return parts


def _hub_sets(names: Iterable[str], own: dict[str, Any], data: str | Path | None) -> set[str]:
    """Return the names on the hub of the sets that tasks read, without those that lie on disk."""
    found = set()
    for name in names:
        key = set_of(name)
        if name in own or not key or not offline.served(key, data):
            index = own if name in own else (packaged(key) if key else packaged_tasks()).task_index
            found |= {index[leaf].cfg.get("dataset_path") for leaf in leaves(name, index) if leaf in index}
    return found - {None}


def load_tasks(names: Sequence[str], **sources: Any) -> dict[str, Any]:
    """The named tasks, ready to run, as the harness's dict of ``tasks``, ``groups`` and ``group_map``.

    The index of packaged tasks (about 10 s) is built only if a name is found neither in the folder nor in
    ``data``.

    Args:
        names: tasks, groups or tags.
        **sources: ``include``, ``data`` and ``missing`` of ``load_plan``.

    Raises:
        ValueError: as for ``load_plan``.
    """
    return load_plan({None: list(names)}, **sources).tasks[None]


class Loaded(NamedTuple):
    """Tasks of a plan, ready to run.

    Attributes:
        tasks: {n_shot: the harness's dict of tasks, groups and group_map}.
        left: (name, n_shot) of what was loaded.
        skipped: {name: why} of what was left out, whole or in part.
    """

    tasks: dict[int | None, dict[str, Any]]
    left: list[tuple[str, int | None]]
    skipped: dict[str, str]


def load_plan(
    plan: dict[int | None, list[str]],
    *,
    include: str | Path | None = None,
    data: str | Path | None = None,
    missing: str = "error",
    allow_code: bool = False,
) -> Loaded:
    """All tasks of a plan, and what could not be had: everything that is missing is found before any work.

    Args:
        plan: {n_shot: names}, of ``plan_tasks``.
        include: a folder of task files (YAML); None takes the demo tasks. Relative ``data_files`` in it are
            looked for next to the task file, then in each folder above it (the project's root), then where
            Python runs.
        data: a folder with public sets as jsonl (``LOCAL_SETS``); those found there are read from it, not the
            hub.
        missing: "error", or "skip" to leave out what has no data.
        allow_code: as for ``evaluate``.

    Raises:
        ValueError: unknown name (near ones are named), data file missing or without items, missing column,
            task files with code; no data for some names (all are named at once, unless ``missing="skip"``).
    """
    one_of(missing, ("error", "skip"), "missing")
    if data is not None:
        offline.check_folder(data)
    names = list(dict.fromkeys(name for part in plan.values() for name in part))
    manager = task_manager(_folder(include))
    own = set(manager.task_index)
    if not allow_code:
        trusted = demo_path("tasks") if in_checkout() else None
        dependencies.check_code(own.intersection(names), manager.task_index, trusted)
    _place_data(names, manager.task_index)
    sources = {name: manager if name in own else _packaged_or_error(name, own) for name in names}
    others = {name: _packaged_in(name, own, manager) if name in own else [name] for name in names}
    local = {name: [offline.on_disk(other, data) for other in others[name]] for name in names}
    gaps = {name: f"no rows of {', '.join(lost)}" for name in names if (lost := _absent(local[name]))}
    found = Loaded({}, [], gaps)
    for shots, name in [(shots, name) for shots, part in plan.items() for name in part]:
        with dependencies.sandbox(allow_code):
            tasks, why = _one(sources[name], name, shots, local[name], own)
        if why:
            gaps[name] = f"{gaps[name]}; {why}" if name in gaps else why
            continue
        into = found.tasks.setdefault(shots, {"tasks": {}, "groups": {}, "group_map": {}})
        for kind, entries in tasks.items():
            into[kind].update(entries)
        found.left.append((name, shots))
    if gaps and (missing == "error" or not found.left):
        raise ValueError(_what_is_missing(gaps, data, {part for name in gaps for part in others[name]}))
    return found


def _packaged_in(name: str, own: Iterable[str], manager: Any) -> list[str]:
    """Return the packaged tasks that a folder's own group names, and make them known to its manager."""
    others = sorted(leaves(name, manager.task_index) - set(own))
    for other in others:
        known = _packaged_or_error(other, own).task_index
        manager.task_index.update({one: known[one] for one in known.keys() - manager.task_index.keys()})
    return others


def _one(
    source: Any, name: str, shots: int | None, parts: list[OnDisk | None], own: set[str]
) -> tuple[dict[str, Any], str]:
    """Return what the harness loads for one name, but for tasks without rows, and why it cannot be had."""
    answers = {place: splits for part in parts if part for place, splits in part.answers.items()}
    with offline.rows_from_disk(answers):
        found, why = _load(source, name, on_disk=all(parts))
    if any(parts) and not why:
        found = offline.without(found, _absent(parts))
        why = _no_examples({task: found["tasks"][task] for task in found["tasks"].keys() - own}, shots)
    for task in own.intersection(found["tasks"]):
        check_columns(task, found["tasks"][task])
    return found, why


def _absent(parts: Iterable[OnDisk | None]) -> list[str]:
    return [task for part in parts if part for task in part.absent]


def _what_is_missing(gaps: dict[str, str], data: str | Path | None, names: Iterable[str]) -> str:
    keys = sorted({key for name in names if (key := set_of(name))})
    files = [file for key in keys for file in LOCAL_SETS[key].files.values()]
    files = [file for file in files if data is None or not (Path(data).expanduser() / file).is_file()]
    where = "data= (a folder with public sets as jsonl)" if data is None else f"{data} (data=)"
    hint = f"; files that {where} may hold: {', '.join(dict.fromkeys(files))}" if files else ""
    lost = "; ".join(f"{name!r} ({why})" for name, why in gaps.items())
    return f"no data for {len(gaps)} of the tasks: {lost}{hint}; missing='skip' leaves them out"


def _no_examples(tasks: dict[str, Any], shots: int | None) -> str:
    """Why few-shot examples cannot be drawn as officially: the split they come from is not on disk."""
    for name, task in tasks.items():
        wanted = (task.get_config("num_fewshot") or 0) if shots is None else shots
        if wanted and not len(task.sampler.df):
            key = set_of(name) or name
            split = task.get_config("fewshot_split") or task.get_config("training_split")
            file = LOCAL_SETS[key].files.get(split, f"{key}_{split}.jsonl")
            why = f"{wanted} few-shot examples come from a split that is not there ({file})"
            return f"{why}; n_shot=0 needs none"
    return ""


def _folder(include: str | Path | None) -> Path | None:
    if include is None:
        return demo_path("tasks") if in_checkout() else None
    folder = Path(include).expanduser()
    if not folder.is_dir():
        raise ValueError(f"include must be a folder of task files (*.yaml), {str(include)!r} is none")
    if strange := [file for file in folder.rglob("*.yaml") if not file.is_file()]:
        raise ValueError(f"include must be a folder of task files, {strange[0]} is no file")
    if not task_manager(folder).task_index:
        raise ValueError(f"include must be a folder of task files, but no *.yaml in {folder} names a task")
    return folder


def _packaged_or_error(name: str, own: Iterable[str]) -> Any:
    """Return a manager that knows a packaged task: that of its folder where its name says which."""
    known = {*own, *SUITES}
    if (key := set_of(name)) and name in packaged(key).task_index:
        return packaged(key)
    if not name.startswith("demo"):  # demo tasks are never packaged: a slip there should not cost 10 s
        if name in packaged_tasks().task_index:
            return packaged_tasks()
        known |= set(packaged_tasks().task_index)
    near = difflib.get_close_matches(name, sorted(known), n=5, cutoff=0.6) or sorted({*own, *SUITES})
    raise ValueError(
        f"no task, group or suite is called {name!r}; near: {printable(', '.join(near)) or 'none'}"
    )


def _place_data(names: Iterable[str], index: dict[str, Any]) -> None:
    """Give the named tasks of a folder their data files with absolute paths.

    The harness resolves relative ``data_files`` against the working directory, so that a task folder works
    from one place only. The task files stay as they are, and usable by the ``lm_eval`` command line.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    for name in set().union(*(leaves(name, index) for name in names)) & index.keys():
        path = Path(index[name].yaml_path).resolve()
        if found := dependencies.placed(index[name].cfg, path, name):
            with told(f"task {name!r} {_NO_PACKAGE}", ImportError):
                index[name] = replace(index[name], yaml_path=None, cfg=load_yaml(path) | found)


def _load(manager: Any, name: str, *, on_disk: bool) -> tuple[dict[str, Any], str]:
    """Load one name, turning the harness's many ways to fail on its data into one line.

    Returns:
        The harness's dict and "", or an empty one and why the data of a packaged task could not be reached.
    """
    import datasets
    import jinja2

    lacks = f"task {name!r}: its data lack a column or split that it asks for"
    try:
        with told(f"task {name!r} {_NO_PACKAGE}", ImportError), told(lacks, jinja2.UndefinedError, KeyError):
            return manager.load([name]), ""
    except IndexError as error:
        raise ValueError(f"task {name!r} has no items") from error
    except (OSError, datasets.exceptions.DatasetsError, datasets.exceptions.DatasetGenerationError) as error:
        reason = first_line(error)
        if not on_disk:
            return {"tasks": {}}, f"could not be read from the hub: {reason}"
        raise ValueError(f"task {name!r}: its data could not be read ({reason})") from error
