"""What a score depends on besides the model: task files, functions and data, all by content."""

from __future__ import annotations

import glob
import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

from workbench.checks import told
from workbench.digests import digest
from workbench.evaluation.index import below
from workbench.models.templates import LimitedTemplate
from workbench.runs.content import content_of, files_below

#: endings of files that hold rows
_DATA = {".arrow", ".csv", ".json", ".jsonl", ".parquet", ".tsv", ".txt"}


def digest_of_all(files: Mapping[str, str | Path]) -> str:
    """Return the SHA-256 of several files' labels and contents; where they lie does not count."""
    return digest({label: content_of(file) for label, file in files.items()})


def own_files(names: set[str], folder: Path, index: Mapping[str, Any]) -> dict[str, Path]:
    """Return all files of a task folder, and those anywhere that the named tasks depend on, by a label."""
    found = {file.relative_to(folder).as_posix(): file for file in _files_under(folder)}
    for name, path in _stated(names, index).items():
        named = _named_by(name, path, index[name].cfg)
        found |= {f"{name} {number}": file for number, file in enumerate(named)}
    return found


def _stated(names: Iterable[str], index: Mapping[str, Any]) -> dict[str, Path]:
    """Return the task files of the names, and of those below them, that have one."""
    every = {name for given in names for name in below(given, index) if name in index}
    return {name: Path(path).resolve() for name in sorted(every) if (path := index[name].yaml_path)}


def check_code(names: Iterable[str], index: Mapping[str, Any], trusted: Path | None) -> None:
    """Refuse task files that name Python, with what they include, but for copies of files that are trusted.

    Args:
        names: of tasks, groups and tags.
        index: of the folder they are in.
        trusted: a folder whose task files and functions may run.

    Raises:
        ValueError: naming the file.
    """
    import lm_eval.tasks
    from lm_eval.api.registry import metric_registry

    packaged = Path(lm_eval.tasks.__file__).resolve().parent
    known = {content_of(file) for file in _files_under(trusted)} if trusted else set()
    for name, path in _stated(names, index).items():
        for file in _task_files(path):
            events = yaml.parse(file.read_text(encoding="utf-8"))
            if not any(getattr(event, "tag", None) == "!function" for event in events):
                continue
            made_of = {content_of(file), *map(content_of, _function_files(file))}
            if not file.is_relative_to(packaged) and not made_of <= known:
                raise ValueError(f"{file} names Python functions; allow_code=True runs them")
        for entry in _measured(index[name].cfg):
            if entry.get("hf_evaluate") or entry.get("metric") not in metric_registry:
                foreign = f"metric {entry.get('metric')!r} of another library"
                raise ValueError(f"task {name!r} takes {foreign}; allow_code=True runs it")


def _measured(cfg: Any) -> Iterator[dict[str, Any]]:
    """Yield the metrics that a task, or one that a group states, takes by name."""
    inside = cfg.values() if isinstance(cfg, Mapping) else cfg if isinstance(cfg, list) else ()
    for part in inside:
        yield from _measured(part)
    if isinstance(cfg, Mapping) and not cfg.get("process_results"):
        yield from cfg.get("metric_list") or []


@contextmanager
def sandbox(allow_code: bool = False) -> Iterator[None]:
    """Let the harness render templates, each compiled once, in a sandbox unless they may reach for Python.

    Raises:
        ValueError: a template reaches for Python.
    """
    import lm_eval.utils
    from jinja2.exceptions import SecurityError

    free = lm_eval.utils.env
    used: Any = free.overlay()
    if not allow_code:
        bounds = {"undefined": free.undefined, "keep_trailing_newline": True, "filters": free.filters}
        used.from_string = partial(LimitedTemplate, **bounds)
    # the harness has each template compiled again for every item, which took most of an evaluation's time
    used.from_string = lru_cache(maxsize=512)(used.from_string)
    reached = told("a template of a task is refused", SecurityError, hint="; allow_code=True lets it run")
    with patch.object(lm_eval.utils, "env", used), reached:
        yield


def _named_by(task: str, path: Path, cfg: dict[str, Any]) -> Iterator[Path]:
    """Yield what a task is made of: its task file, what that includes, functions and data."""
    for file in _task_files(path):
        yield file
        yield from _function_files(file)
    found = placed(cfg, path, task)
    settings = found.get("dataset_kwargs", {})
    yield from filter(Path.is_file, map(Path, named_files(settings.get("data_files"))))
    for place in filter(None, (found.get("dataset_path"), settings.get("data_dir"))):
        yield from _files_under(Path(place))


def _files_under(place: Path) -> list[Path]:
    """Return the files of a folder and of folders that are linked into it."""
    return [file for file in files_below(place) if "__pycache__" not in file.relative_to(place).parts]


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
        top, *inside = module.split(".")
        with suppress(ImportError, ValueError):  # that of the topmost package alone imports nothing
            spec = importlib.util.find_spec(top)
            places = [Path(place, *inside) for place in (spec and spec.submodule_search_locations) or ()]
            files = [place / "__init__.py" for place in places] + [Path(f"{place}.py") for place in places]
            origin = [Path(spec.origin)] if spec and spec.origin and not inside else []
            yield from filter(Path.is_file, dict.fromkeys(origin + files))


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


def placed(cfg: Mapping[str, Any], task_file: Path, task: str) -> dict[str, Any]:
    """Return what a task file says of where its data lie, with absolute paths; nothing of sets on the hub.

    Args:
        cfg: of the task: ``dataset_path`` is a kind of file ("json", "csv", "parquet"), with ``data_files``
            or a folder ``data_dir``, or itself a folder: a copy of a hub set, or what ``save_to_disk`` wrote.
        task_file: where the search begins; it goes on in each folder above, then where Python runs.
        task: its name, for errors.

    Raises:
        ValueError: a file or folder is not there, or a file is empty.
    """
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    path, settings = str(cfg.get("dataset_path") or ""), dict(cfg.get("dataset_kwargs") or {})
    if path not in _PACKAGED_DATASETS_MODULES:
        found = _data_folder(path, task_file) if path and "://" not in path else None
        return {"dataset_path": str(found)} if found else {}
    if (folder := settings.get("data_dir")) and "://" not in str(folder):
        if (found := _data_folder(folder, task_file)) is None:
            raise ValueError(f"task {task!r}: its data_dir {folder!r} holds no data near {task_file}")
        settings["data_dir"], task_file = str(found), found / task_file.name
    if "data_files" in settings:
        settings["data_files"] = absolute_files(settings["data_files"], task_file, task)
    return {"dataset_kwargs": settings} if settings else {}


def absolute_files(files: Any, task_file: Path, task: str) -> Any:
    """Return ``data_files`` of a task with absolute paths: found near the task file, above it, or here.

    A pattern (``*.parquet``) becomes the list of files that it stands for.

    Raises:
        ValueError: a file is not there, or empty.
    """
    if isinstance(files, dict):
        return {split: absolute_files(file, task_file, task) for split, file in files.items()}
    if isinstance(files, list):
        return [file for part in files for file in named_files(absolute_files(part, task_file, task))]
    if "://" in str(files):
        return files
    found = next(filter(None, (_files_at(folder, files) for folder in _folders(task_file))), [])
    if not found:
        raise ValueError(f"task {task!r}: its data file {files!r} is neither near {task_file} nor here")
    for file in found:
        if file.stat().st_size < 64 and not file.read_bytes().strip():
            raise ValueError(f"task {task!r}: its data file {file} has no items")
    return str(found[0]) if len(found) == 1 else [str(file) for file in found]


def _folders(task_file: Path) -> tuple[Path, ...]:
    """Return where what a task file names may lie: beside it, in a folder above, where Python runs."""
    return (*task_file.parents, Path.cwd())


def _files_at(folder: Path, name: Any) -> list[Path]:
    """Return the files that a name or a pattern stands for in a folder."""
    found = glob.glob(str(Path(name).expanduser()), root_dir=folder, recursive=True)
    literal = folder / Path(name).expanduser()
    return [literal] if literal.is_file() else sorted(filter(Path.is_file, (folder / one for one in found)))


def _data_folder(name: Any, task_file: Path) -> Path | None:
    """Return the nearest folder of a name with data in it; a folder of tasks is named like their set, too."""
    places = (folder / Path(name).expanduser() for folder in _folders(task_file))
    found = (place for place in places if place.is_dir() and place not in task_file.parents)
    return next(
        (place for place in found if any(_DATA & {*file.suffixes} for file in files_below(place))), None
    )
