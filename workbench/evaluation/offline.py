"""Public sets saved as jsonl: their rows brought to the form that the packaged tasks read, with no network.

``suites.LOCAL_SETS`` says which file belongs to which task. For each task that is asked for, a small task
file is written that includes the packaged one (prompt, few-shot rule, filters and metrics stay the harness's
own) and replaces nothing but where the rows come from.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from workbench.data.sources import read_rows
from workbench.evaluation.suites import LOCAL_SETS, LocalSet

_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


def set_of(name: str) -> str | None:
    """Return the set of ``LOCAL_SETS`` that a task or group may read, None for none: mmlu_anatomy -> mmlu."""
    keys = [key for key in LOCAL_SETS if name == key or name.startswith(f"{key}_")]
    return max(keys, key=len, default=None)


def local_files(names: Iterable[str], data: str | Path) -> list[Path]:
    """Return the files in the folder ``data`` that these tasks and groups read."""
    keys = {key for name in names if (key := set_of(name))}
    files = {Path(data) / file for key in keys for file in LOCAL_SETS[key].files.values()}
    return sorted(file for file in files if file.is_file())


def write_task_files(names: Iterable[str], data: str | Path, overlay: Path) -> dict[str, list[str]]:
    """Write task files for what the folder ``data`` holds of these tasks and groups.

    Args:
        names: tasks, groups and tags.
        data: folder with jsonl files.
        overlay: folder to write to.

    Returns:
        For each name whose set is there: the tasks under it that have no rows, such as languages of XNLI.

    Raises:
        ValueError: ``data`` is no folder, or holds no file of any set; rows lack a column.
    """
    folder = Path(data).expanduser().resolve()
    known = {file for local in LOCAL_SETS.values() for file in local.files.values()}
    if not any((folder / file).is_file() for file in known):
        raise ValueError(
            f"data must be a folder with public sets as jsonl, but {data} holds none of {sorted(known)}"
        )
    missing: dict[str, list[str]] = {}
    for key in sorted({key for name in names if (key := set_of(name))}):
        local = LOCAL_SETS[key]
        if not (folder / local.files[local.needed]).is_file():
            continue
        configs = packaged_configs(local.packaged)
        parts = _parts(folder / local.files[local.needed], key)
        here = {
            task for task in _tasks(configs) if not local.part or configs[task][1]["dataset_name"] in parts
        }
        for task in here:
            _write(overlay / f"local-{task}.yaml", *_task_file(local, key, folder, task, *configs[task]))
        for group in configs.keys() - _tasks(configs):
            if members := _resolvable(configs[group][1]["task"], configs, here):
                entries = _measured(configs[group][1] | {"task": members}, _metric(configs))
                _write(overlay / f"local-{group}.yaml", entries, {})
        for name in names:
            leaves = _leaves(name, configs)
            if set_of(name) == key and leaves & here:
                missing[name] = sorted(leaves - here)
    return missing


def local_dataset(*, local: str, folder: str, part: str, **_: Any) -> dict[str, Any]:
    """Return the splits of one task as data sets; the harness calls it where it would read the hub.

    Raises:
        ValueError: a row lacks a column or is empty there, or the split that is scored has no rows.
    """
    from datasets import Dataset

    entry = LOCAL_SETS[local]
    splits = {}
    for split, file in entry.files.items():
        if (path := Path(folder) / file).is_file():
            rows = _rows(str(path), path.stat().st_mtime_ns, local)
            splits[split] = Dataset.from_list(rows.get(part, []))
    if not len(splits[entry.needed]):
        raise ValueError(f"{Path(folder) / entry.files[entry.needed]} has no items for {part or local!r}")
    return splits


@lru_cache(maxsize=16)
def packaged_configs(packaged: str) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Return path and entries (functions by name) of a packaged task file, or of all in a folder, by name."""
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    place = Path(lm_eval.tasks.__file__).parent / packaged
    files = sorted(place.glob("*.yaml")) if place.is_dir() else [place]
    loaded = [(file, load_yaml(file, resolve_func=False)) for file in files]
    return {
        entries.get("task") if _is_task(entries) else entries["group"]: (f, entries) for f, entries in loaded
    }


def wikitext_pages(lines: Iterable[str]) -> list[str]:
    """Join WikiText's lines to articles as the set that the harness reads does (wikitext_document_level).

    A line " = Title = " begins an article; " = = Section = = " does not. The raw file's empty lines hold one
    space, which the usual one-row-a-line copies drop: it is put back.
    """
    pages: list[str] = []
    page: list[str] = []
    for line in "".join(line or " \n" for line in lines).split("\n"):
        mark = line.replace("= = =", "===").replace("= =", "==").strip()
        if mark.startswith("= ") and mark.endswith(" ="):
            pages.append("\n".join(page))
            page = []
        page.append(line)
    return [text for text in (*pages, "\n".join(page)) if text.strip()]


def _boolq(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The set as its authors published it names the label ``answer`` (true or false); the hub, ``label``."""
    labels = [row.get("label", row.get("answer")) for row in rows]
    for number, label in enumerate(labels):
        if label not in (0, 1):
            raise ValueError(
                f"boolq: row {number} needs label 0 or 1, or answer true or false, got {label!r}"
            )
    return [{**row, "label": int(bool(label))} for row, label in zip(rows, labels, strict=True)]


def _race(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The packaged task asks the last question of a "high" article, after the others with their answers."""
    articles: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["example_id"].startswith("high"):
            entry = articles.setdefault(row["example_id"], {"article": row["article"], "problems": []})
            entry["problems"].append({name: row[name] for name in ("question", "answer", "options")})
    return [entry | {"problems": repr(entry["problems"])} for entry in articles.values()]


def _wikitext(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"page": page} for page in wikitext_pages(row["text"] for row in rows)]


def _qmsum(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The query stands before the transcript; rows of one id are one item with several references."""
    items: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(rows):
        question, gap, text = row["input"].partition("\n\n")
        if not gap:
            raise ValueError(f"qmsum: row {number}: input must be a query, an empty line and a transcript")
        entry = items.setdefault(
            row["id"], {"id": row["id"], "question": question, "text": text, "outputs": []}
        )
        entry["outputs"].append(row["output"])
    return list(items.values())


FORMS = {"boolq": _boolq, "race": _race, "wikitext": _wikitext, "qmsum": _qmsum}


@lru_cache(maxsize=16)
def _rows(path: str, _modified: int, key: str) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of a file by part, in the packaged task's form; read once for all tasks of a set."""
    local = LOCAL_SETS[key]
    rows = read_rows(path)
    _check_columns(rows, local, path)
    if local.form:
        rows = FORMS[local.form](rows)
    parts: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        parts.setdefault(str(row[local.part]) if local.part else "", []).append(row)
    return parts


def _check_columns(rows: list[Any], local: LocalSet, path: str) -> None:
    """Refuse rows with a gap: the harness would render it as the word "None"."""
    for number, row in enumerate(rows):
        for column in local.columns:
            if not isinstance(row, dict) or row.get(column) is None:
                there = sorted(row) if isinstance(row, dict) else type(row).__name__
                state = "empty" if isinstance(row, dict) and column in row else "missing"
                raise ValueError(f"{path}: column {column!r} is {state} in row {number}, which has {there}")


def _parts(path: Path, key: str) -> set[str]:
    """Return which tasks of a folder the rows of a file belong to."""
    parts = set(_rows(str(path), path.stat().st_mtime_ns, key))
    if not parts:
        raise ValueError(f"{path} has no items")
    return parts


def _task_file(
    local: LocalSet, key: str, folder: Path, task: str, path: Path, entries: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return entries and functions of the task file that includes a packaged one and reads local rows."""
    here = {split for split, file in local.files.items() if (folder / file).is_file()}
    part = entries["dataset_name"] if local.part else ""
    config: dict[str, Any] = {
        "task": task,
        "dataset_kwargs": {"local": key, "folder": str(folder), "part": part},
        "metadata": dict(entries.get("metadata") or {}),
    }
    shots = entries.get("fewshot_split") or entries.get("training_split")
    if shots and shots not in here and not (entries.get("fewshot_config") or {}).get("samples"):
        config["metadata"]["few_shot_file"] = local.files.get(shots, f"{key}_{shots}.jsonl")
    if local.python:
        return config, {"class": local.python}
    config |= {"include": str(path)} | {
        entry: None for entry in _SPLITS if entries.get(entry) and entries[entry] not in here
    }
    if not local.part:
        config["tag"] = None
    return config, {"custom_dataset": "workbench.evaluation.offline.local_dataset"}


def _write(path: Path, config: dict[str, Any], functions: dict[str, str]) -> None:
    import yaml

    lines = [f"{entry}: !function {function}\n" for entry, function in functions.items()]
    path.write_text(yaml.safe_dump(config) + "".join(lines), encoding="utf-8")


def _is_task(entries: dict[str, Any]) -> bool:
    return "class" in entries or "group" not in entries


def _tasks(configs: dict[str, tuple[Path, dict[str, Any]]]) -> set[str]:
    return {name for name, (_, entries) in configs.items() if _is_task(entries)}


def _leaves(item: Any, configs: dict[str, tuple[Path, dict[str, Any]]]) -> set[str]:
    """Return the tasks under a task, group, tag or inline group."""
    if isinstance(item, dict):
        return {leaf for member in item["task"] for leaf in _leaves(member, configs)}
    if item in _tasks(configs):
        return {item}
    if item in configs:
        return _leaves({"task": configs[item][1]["task"]}, configs)
    return {task for task in _tasks(configs) if item in _tags(configs[task][1])}


def _metric(configs: dict[str, tuple[Path, dict[str, Any]]]) -> list[str]:
    """Return what the tasks of a folder measure."""
    first = configs[min(_tasks(configs))][1]
    return [entry["metric"] for entry in first["metric_list"]]


def _measured(group: dict[str, Any], metrics: list[str]) -> dict[str, Any]:
    """Let a group average what its tasks measure.

    Those of chain-of-thought MMLU ask for ``acc``, which none of their tasks has, and so would have no score.
    """
    average = [
        entry if entry["metric"] in metrics else entry | {"metric": metrics[0]}
        for entry in group["aggregate_metric_list"]
    ]
    inside = [_measured(member, metrics) if isinstance(member, dict) else member for member in group["task"]]
    return group | {"aggregate_metric_list": average, "task": inside}


def _tags(entries: dict[str, Any]) -> list[str]:
    tags = entries.get("tag") or []
    return [tags] if isinstance(tags, str) else tags


def _resolvable(
    members: list[Any], configs: dict[str, tuple[Path, dict[str, Any]]], here: set[str]
) -> list[Any]:
    """Return what is left of a group when only the tasks ``here`` have rows."""
    kept = [member for member in members if _leaves(member, configs) & here]
    return [
        {**member, "task": _resolvable(member["task"], configs, here)} if isinstance(member, dict) else member
        for member in kept
    ]
