"""Public sets saved as jsonl: their rows brought to the form that the packaged tasks read, with no network.

``suites.LOCAL_SETS`` says which file belongs to which task. The packaged tasks run unchanged: while they are
built, the one call by which the harness reads data, ``datasets.load_dataset``, is answered from the files.
Whatever is read from disk is known by its content, so a file that was replaced is read anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

from workbench.data.files import read_rows
from workbench.evaluation.dependencies import digest_of_all, named_files
from workbench.evaluation.index import leaves, packaged
from workbench.evaluation.suites import LOCAL_SETS, LocalSet
from workbench.runs.content import content_of, files_below

#: (dataset_path, dataset_name) as a task file names its data -> the splits, by name
Answers = Mapping[tuple[str, str | None], Mapping[str, Any]]


class OnDisk(NamedTuple):
    """What is on disk of the tasks under a name.

    Attributes:
        answers: the splits that each task of the set reads.
        absent: the tasks that have no rows, such as languages of XNLI.
    """

    answers: Answers
    absent: list[str]


def set_of(name: str) -> str | None:
    """Return the set of ``LOCAL_SETS`` that a task or group may read, None for none.

    >>> set_of("mmlu_anatomy"), set_of("triviaqa")
    ('mmlu', None)
    """
    keys = [key for key in LOCAL_SETS if name == key or name.startswith(f"{key}_")]
    return max(keys, key=len, default=None)


def local_files(names: Iterable[str], data: str | Path) -> list[Path]:
    """Return the files in the folder ``data`` that these tasks and groups read."""
    keys = {key for name in names if (key := set_of(name))}
    files = {Path(data).expanduser() / file for key in keys for file in LOCAL_SETS[key].files.values()}
    return sorted(file for file in files if file.is_file())


def served(key: str, data: str | Path | None) -> bool:
    """Return whether the folder ``data`` holds the split of a set that is scored."""
    local = LOCAL_SETS[key]
    return data is not None and (Path(data).expanduser() / local.files[local.needed]).is_file()


def check_folder(data: str | Path) -> None:
    """Refuse a folder ``data`` that is none, or holds no file of any set, with a ``ValueError``."""
    if not local_files(LOCAL_SETS, data):
        known = sorted({file for local in LOCAL_SETS.values() for file in local.files.values()})
        raise ValueError(f"data must be a folder with public sets as jsonl, but {data} holds none of {known}")


def on_disk(name: str, data: str | Path | None) -> OnDisk | None:
    """Return what the folder ``data`` holds for a task, group or tag; None where it has no rows of it.

    Raises:
        ValueError: rows lack a column.
    """
    key = set_of(name)
    if data is None or key is None or not served(key, data):
        return None
    local, index, folder = LOCAL_SETS[key], packaged(key).task_index, Path(data).expanduser().resolve()
    if name not in index:
        return None
    path = folder / local.files[local.needed]
    if not (parts := _rows(str(path), content_of(path), key)):
        raise ValueError(f"{path} has no items")
    stated = {task: index[task].cfg for task in index if leaves(task, index) == {task}}
    sources = {task: (cfg.get("dataset_path"), cfg.get("dataset_name")) for task, cfg in stated.items()}
    if not local.part:  # the other tasks on the same rows, such as chain-of-thought GSM8K
        sources = {task: source for task, source in sources.items() if source == sources[key]}
    part_of = {task: part if local.part else "" for task, (_, part) in sources.items()}
    here = {task for task, part in part_of.items() if part in parts}
    under = leaves(name, index)
    if not under & here:
        return None
    # a task without rows is built on those of another, and taken out by ``without``
    read = {task: part_of[task if task in here else min(here)] for task in sources}
    answers = {sources[task]: Splits(key, folder, part) for task, part in read.items()}
    return OnDisk(answers, sorted(under - here))


def without(loaded: dict[str, Any], absent: Iterable[str]) -> dict[str, Any]:
    """Return what the harness loaded without some tasks, and without groups that are empty then.

    A group averages what its tasks measure: those of chain-of-thought MMLU ask for ``acc``, which none of
    their tasks has, and so would have no score.
    """
    tasks = {name: task for name, task in loaded["tasks"].items() if name not in absent}
    groups = {
        name: group
        for name, group in loaded["groups"].items()
        if any(task.task_name in tasks for task in group.get_all_tasks())
    }
    measured = [entry["metric"] for task in tasks.values() for entry in task.config.metric_list or ()]
    for group in groups.values():
        for gone in (*absent, *(loaded["groups"].keys() - groups.keys())):
            group.pop(gone)
        for average in group.aggregate_metric_list or []:
            average.metric = average.metric if average.metric in measured else measured[0]
    members = {name: group.child_names for name, group in groups.items()}
    return {"tasks": tasks, "groups": groups, "group_map": members}


class Splits(dict[str, Any]):
    """The splits of one task as data sets, read when they are asked for; empty where there is no file."""

    def __init__(self, key: str, folder: Path, part: str) -> None:
        self.key, self.folder, self.part = key, folder, part

    def __missing__(self, split: str) -> Any:
        from datasets import Dataset
        from datasets.table import InMemoryTable

        path = self.folder / LOCAL_SETS[self.key].files.get(split, "")
        content = content_of(path) if path.is_file() else ""
        rows = _rows(str(path), content, self.key).get(self.part, []) if content else []
        columns = {name: [row.get(name) for row in rows] for name in (rows[0] if rows else ())}
        # without a fingerprint the library makes one of all rows, which took most of loading MMLU
        made_of = hashlib.sha256(f"{content} {self.key} {self.part}".encode()).hexdigest()[:16]
        self[split] = Dataset(InMemoryTable.from_pydict(columns), fingerprint=made_of)
        return self[split]


@contextmanager
def rows_from_disk(answers: Answers) -> Iterator[None]:
    """Answer the harness's call for data while tasks are built: from ``answers``, or by its own library.

    A library's cache knows a local file by its path and time stamp; here it gets a folder named for the
    content, so that a file replaced under the same time stamp is read anew.
    """
    import lm_eval.api.task as harness

    library = harness.datasets

    def load_dataset(path: str, name: str | None = None, **settings: Any) -> Any:
        if (path, name) in answers:
            return answers[path, name]
        named = [Path(file) for file in named_files(settings.get("data_files"))]
        for place in map(Path, (path, settings.get("data_dir") or "")):
            named += files_below(place) if place.is_absolute() and place.is_dir() else []
        if {"dataset_dict.json", "state.json"} & {file.name for file in named if file.parent == Path(path)}:
            saved = library.load_from_disk(path)
            return saved if isinstance(saved, dict) else {str(saved.split): saved}
        if files := {str(file): file for file in named if file.is_file()}:
            cache = Path(library.config.HF_DATASETS_CACHE) / digest_of_all(files)
            settings = {"cache_dir": str(cache)} | settings
        return library.load_dataset(path=path, name=name, **settings)

    with patch.object(harness, "datasets", SimpleNamespace(**vars(library) | {"load_dataset": load_dataset})):
        yield


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
            raise ValueError(f"boolq: row {number} needs label 0 or 1 or answer true or false, got {label!r}")
    return [{**row, "label": int(bool(label))} for row, label in zip(rows, labels, strict=True)]


def _race(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The packaged task asks the last question of a "high" article, after the others with their answers."""
    articles: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["example_id"].startswith("high"):
            entry = articles.setdefault(row["example_id"], {"article": row["article"], "problems": []})
            entry["problems"].append({name: row[name] for name in ("question", "answer", "options")})
    return [entry | {"problems": repr(entry["problems"])} for entry in articles.values()]


def _qmsum(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The query stands before the transcript; rows of one id are one item with several references."""
    items: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(rows):
        question, gap, text = row["input"].partition("\n\n")
        if not gap:
            raise ValueError(f"qmsum: row {number}: input must be a query, an empty line and a transcript")
        item = {"id": row["id"], "question": question, "text": text, "outputs": []}
        items.setdefault(row["id"], item)["outputs"].append(row["output"])
    return list(items.values())


FORMS = {"boolq": _boolq, "race": _race, "qmsum": _qmsum}
FORMS["wikitext"] = lambda rows: [{"page": page} for page in wikitext_pages(row["text"] for row in rows)]


@lru_cache(maxsize=16)
def _rows(path: str, _content: str, key: str) -> dict[str, list[dict[str, Any]]]:
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
        if not isinstance(row, dict):
            raise ValueError(f"{path}: row {number} must be an object with columns, got {type(row).__name__}")
        if gap := next((column for column in local.columns.split() if row.get(column) is None), ""):
            raise ValueError(f"{path}: column {gap!r} has no value in row {number}, which has {sorted(row)}")
