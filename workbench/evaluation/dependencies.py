"""What a score depends on besides the model: task files, functions and data, all by content."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from workbench.digests import digest
from workbench.evaluation.index import leaves
from workbench.runs.content import content_of, files_below


def digest_of_all(files: Mapping[str, str | Path]) -> str:
    """Return the SHA-256 of several files' labels and contents; where they lie does not count."""
    return digest({label: content_of(file) for label, file in files.items()})


def own_files(names: set[str], folder: Path, index: Mapping[str, Any]) -> dict[str, Path]:
    """Return all files of a task folder, and those anywhere that the named tasks depend on, by a label."""
    found = {file.relative_to(folder).as_posix(): file for file in _files_under(folder)}
    for name in names.union(*(leaves(name, index) for name in names)):
        if name in index and index[name].yaml_path is not None:
            named = _named_by(name, Path(index[name].yaml_path).resolve(), index[name].cfg)
            found |= {f"{name} {number}": file for number, file in enumerate(named)}
    return found


def _named_by(task: str, path: Path, cfg: dict[str, Any]) -> Iterator[Path]:
    """Yield what a task is made of: its task file, what that includes, functions and data."""
    for file in _task_files(path):
        yield file
        yield from _function_files(file)
    settings = cfg.get("dataset_kwargs") or {}
    files = map(Path, named_files(absolute_files(settings.get("data_files") or [], path, task)))
    yield from (file for file in files if file.is_file())
    for place in (cfg.get("dataset_path"), settings.get("data_dir")):
        if place and (folder := Path(place).expanduser()).is_dir():
            yield from _files_under(folder)


def _files_under(place: Path) -> list[Path]:
    """Return the files of a folder and of folders that are linked into it."""
    found = files_below(place)
    return [file for file in found if "__pycache__" not in file.relative_to(place).parts]


def _task_files(path: Path) -> Iterator[Path]:
    """Yield a task file and all that it includes, wherever they lie."""
    from lm_eval.tasks._yaml_loader import load_yaml

    yield path
    included = load_yaml(path, resolve_func=False, recursive=False).get("include") or []
    for other in [included] if isinstance(included, str) else included:
        yield from _task_files((path.parent / other).resolve())


def _function_files(path: Path) -> Iterator[Path]:
    """Yield the Python files whose functions a task file names."""
    for module in re.findall(r"!function\s+[\"']?([\w./]+)\.\w+", path.read_text(encoding="utf-8")):
        beside = path.parent / f"{module.replace('.', '/')}.py"
        if beside.is_file():
            yield beside
            continue
        with suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(module)
            if spec and spec.origin and Path(spec.origin).is_file():
                yield Path(spec.origin)


def hub_commits() -> dict[str, str]:
    """Return {data set: its commits}, of all sets that the hub's cache on this disk holds."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    found: dict[str, list[str]] = {}
    for ref in sorted(cache.glob("datasets--*/refs/**/*")):
        if ref.is_file():
            folder, _, *revision = ref.relative_to(cache).parts
            name = folder.removeprefix("datasets--").replace("--", "/")
            found.setdefault(name, []).append(f"{'/'.join(revision)} {ref.read_text(encoding='utf-8')}")
    return {name: ", ".join(commits) for name, commits in found.items()}


def named_files(data_files: Any) -> list[str]:
    """Return the files that ``data_files`` of a task names: one, a list, or a list or one for each split.

    >>> named_files({"train": ["a.jsonl", "b.jsonl"], "test": "c.jsonl"})
    ['a.jsonl', 'b.jsonl', 'c.jsonl']
    """
    if isinstance(data_files, Mapping):
        return named_files(list(data_files.values()))
    if isinstance(data_files, list | tuple):
        return [file for part in data_files for file in named_files(part)]
    return [str(data_files)] if data_files else []


def absolute_files(files: Any, task_file: Path, task: str) -> Any:
    """Return ``data_files`` of a task with absolute paths: found near the task file, above it, or here.

    Raises:
        ValueError: a file is not there, or empty.
    """
    if isinstance(files, dict):
        return {split: absolute_files(file, task_file, task) for split, file in files.items()}
    if isinstance(files, list):
        return [absolute_files(file, task_file, task) for file in files]
    if "://" in str(files):
        return files
    for folder in (*task_file.parents, Path.cwd()):
        if (found := folder / Path(files).expanduser()).is_file():
            if not found.read_bytes().strip():
                raise ValueError(f"task {task!r}: its data file {found} has no items")
            return str(found)
    raise ValueError(
        f"task {task!r}: its data file {files!r} is neither near {task_file} nor in {Path.cwd()}"
    )
