"""Run the numbered notebooks in order, each only when something it depends on has changed."""

from __future__ import annotations

import ast
import asyncio
import hashlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode
from traitlets.config import Config

from workbench.places import DEMO, NOTEBOOKS, PACKAGE, ROOT
from workbench.runs.files import sha256_of, write_text_atomic
from workbench.runs.pages import add_pictures, drop_dead_widgets, offline_page
from workbench.runs.provenance import library_versions
from workbench.runs.run import Run

RUN_PARAMETER = "run_name"


class NotebookFailed(Exception):
    """A cell of a notebook raised an error; the message says which and where the partial copy is."""


def numbered_notebooks(names: Iterable[str] = (), *, folder: str | Path | None = None) -> list[Path]:
    """Return the notebooks ``NN_topic.ipynb`` of a folder in order, or those of the given names or numbers.

    Args:
        names: such as ``"01"``, ``"01_angular_distance"`` or a path; none means all.
        folder: where they are; None means the checkout's ``notebooks``.

    Raises:
        ValueError: for a name that is none of them, and when there are none.
    """
    folder = Path(folder or NOTEBOOKS)
    found = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise ValueError(f"{folder} must hold notebooks named NN_topic.ipynb, found none")
    wanted = []
    for name in names:
        stem = Path(name).stem
        matching = [path for path in found if path.stem == stem or path.stem.split("_")[0] == stem]
        if not matching:
            known = ", ".join(path.stem for path in found)
            raise ValueError(f"notebook must be one of {known} in {folder}, or its number, got {name!r}")
        wanted += matching
    return sorted(set(wanted)) if wanted else found


def run_notebooks(
    notebooks: Iterable[str | Path], run: Run, parameters: Mapping[str, Any] | None = None
) -> list[Path]:
    """Execute notebooks in order for one run, and leave executed copies in ``<run>/notebooks``.

    A notebook is skipped when it finished before and nothing it depends on has changed since: its source, its
    parameters, the package, the installed libraries, the demo world, and every result it read or made.

    Args:
        notebooks: paths, in the order in which they build on each other.
        run: where results go.
        parameters: values for names that the notebooks' parameters cells assign.

    Returns:
        The executed copies (each with an HTML page of the same name beside it).

    Raises:
        NotebookFailed: when a cell raises; the partial copy is kept as ``<name>.failed.ipynb``.
        ValueError: for a parameter that none of the notebooks has.
    """
    sources = {Path(path): _with_parameters(Path(path), run, parameters or {}) for path in notebooks}
    _check_all_used(parameters or {}, sources)
    width = max((len(path.stem) for path in sources), default=0)
    copies = []
    for number, (path, (notebook, values)) in enumerate(sources.items(), 1):
        label = f"[{number}/{len(sources)}] {path.stem:<{width}}"
        copy = run.folder / "notebooks" / path.name
        fingerprint = _fingerprint(notebook, values)
        if _finished(copy, fingerprint, run):
            print(f"{label}  unchanged", flush=True)
        else:
            _execute_and_keep(notebook, copy, fingerprint, run, label)
        copies.append(copy)
    return copies


def execute(notebook: NotebookNode, run: Run, name: str, *, label: str = "") -> dict[str, str]:
    """Execute a notebook in place in a fresh kernel of this Python.

    Args:
        notebook: what to run; its outputs are filled in.
        run: where its results go.
        name: of the notebook, for the provenance of its results.
        label: what to show on a terminal while it runs; "" shows nothing.

    Returns:
        The digest of each result of the run that the notebook made or read, as it was at the last touch.

    Raises:
        KeyboardInterrupt: when it was stopped by Ctrl-C or by a polite kill.
    """
    with tempfile.TemporaryDirectory() as temporary:
        trace = Path(temporary) / "trace"
        trace.touch()
        stop = _Stop()
        client = NotebookClient(
            notebook,
            kernel_manager_class=_ThisPython,
            config=_local_sockets(Path(temporary)),
            startup_timeout=300,
            store_widget_state=False,
            shutdown_kernel="immediate",
            timeout=None,
            resources={"metadata": {"path": str(NOTEBOOKS)}},
            on_notebook_start=stop,
            on_cell_execute=_Progress(label, notebook),
        )
        try:
            _run_alone(client.async_execute(env=_kernel_environment(run, trace, name)))
        except (asyncio.CancelledError, DeadKernelError):
            if stop.asked:
                raise KeyboardInterrupt from None
            raise
        lines = [json.loads(line) for line in trace.read_text(encoding="utf-8").splitlines()]
    return {name: digest for where, name, digest in lines if where == str(run.folder)}


def _run_alone(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Run a coroutine to its end; beside a loop that is running already, as in a notebook, in a thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(coroutine)
        return
    with ThreadPoolExecutor(max_workers=1) as pool:
        pool.submit(asyncio.run, coroutine).result()


def _execute_and_keep(notebook: NotebookNode, copy: Path, fingerprint: str, run: Run, label: str) -> None:
    """Execute, then write picture, page and state; the state last, so that a kill before it means again."""
    failed = copy.with_suffix(".failed.ipynb")
    started = time.perf_counter()
    try:
        used = execute(notebook, run, copy.name, label=label)
    except (CellExecutionError, DeadKernelError) as error:
        write_text_atomic(failed, nbformat.writes(notebook))
        raise NotebookFailed(f"{copy.stem} {_why(error, notebook)}\n  partial copy: {failed}") from None
    drop_dead_widgets(notebook)
    add_pictures(notebook)
    write_text_atomic(copy, nbformat.writes(notebook))
    write_text_atomic(copy.with_suffix(".html"), offline_page(notebook, copy.stem))
    failed.unlink(missing_ok=True)
    seconds = time.perf_counter() - started
    state = {"fingerprint": fingerprint, "results": used, "seconds": round(seconds, 1)}
    write_text_atomic(_state_path(copy), json.dumps(state, indent=1) + "\n")
    over = "\r" if sys.stdout.isatty() else ""
    print(f"{over}{label}  {seconds:6.1f} s{' ' * 8 if over else ''}", flush=True)


def _with_parameters(
    path: Path, run: Run, parameters: Mapping[str, Any]
) -> tuple[NotebookNode, dict[str, Any]]:
    """Return the notebook with our values in a cell below its own parameters, and all values it then has."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    tagged = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())]
    if len(tagged) != 1:
        raise ValueError(f"{path.name} must have exactly one cell tagged 'parameters', found {len(tagged)}")
    values = _assigned(notebook.cells[tagged[0]].source)
    if RUN_PARAMETER not in values:
        raise ValueError(
            f"the parameters cell of {path.name} must assign {RUN_PARAMETER}, it has {list(values)}"
        )
    ours = {name: value for name, value in {**parameters, RUN_PARAMETER: run.name}.items() if name in values}
    if any(values[name] != value for name, value in ours.items()):
        source = "\n".join(f"{name} = {value!r}" for name, value in ours.items())
        cell = nbformat.v4.new_code_cell(source, id="injected", metadata={"tags": ["injected-parameters"]})
        notebook.cells.insert(tagged[0] + 1, cell)
    return notebook, {**values, **ours}


def _assigned(source: str) -> dict[str, Any]:
    """Return the names that a parameters cell assigns, with their values (None for no plain literal)."""
    values = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            values.update({t.id: _literal(node.value) for t in targets if isinstance(t, ast.Name)})
    return values


def _literal(node: ast.expr | None) -> Any:
    try:
        return ast.literal_eval(node) if node is not None else None
    except ValueError:
        return None


def _check_all_used(
    parameters: Mapping[str, Any], sources: Mapping[Path, tuple[NotebookNode, dict[str, Any]]]
) -> None:
    known = {name for _, values in sources.values() for name in values}
    if unknown := set(parameters) - known:
        raise ValueError(f"parameters must be among {sorted(known)}, got {sorted(unknown)}")


def _fingerprint(notebook: NotebookNode, values: Mapping[str, Any]) -> str:
    """Return a digest of what a notebook depends on besides the results that it reads from the run."""
    parts = {
        "cells": [[cell.cell_type, cell.source] for cell in notebook.cells],
        "values": {name: repr(value) for name, value in values.items()},
        "files": {name: _stamp(value) for name, value in values.items() if _stamp(value)},
        "surroundings": surroundings(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def surroundings() -> dict[str, Any]:
    """Return what every notebook depends on: the package, the libraries, the Python and the demo world."""
    return {
        "package": {
            path.relative_to(PACKAGE).as_posix(): sha256_of(path) for path in sorted(PACKAGE.rglob("*.*[!c]"))
        },
        "libraries": library_versions(),
        "python": sys.version,
        "demo": _stamp(str(DEMO)),
    }


def _stamp(value: Any) -> list[Any]:
    """Return name, size and time of the files behind a parameter that is a path, [] for any other."""
    if not isinstance(value, str) or not value or not (path := NOTEBOOKS / value).exists():
        return []
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files if p.suffix != ".pyc"]


def _finished(copy: Path, fingerprint: str, run: Run) -> bool:
    if not (copy.is_file() and copy.with_suffix(".html").is_file() and _state_path(copy).is_file()):
        return False
    state = json.loads(_state_path(copy).read_text(encoding="utf-8"))
    unchanged = all(run.digest(name) == digest for name, digest in state["results"].items())
    return unchanged and state["fingerprint"] == fingerprint


def _state_path(copy: Path) -> Path:
    return copy.with_name(f".{copy.stem}.state.json")


def _why(error: CellExecutionError | DeadKernelError, notebook: NotebookNode) -> str:
    """Return the error of a notebook with the number and the first lines of the cell that raised it."""
    if isinstance(error, DeadKernelError):
        return "lost its kernel, which was killed or ran out of memory"
    failed = [any(o.output_type == "error" for o in cell.get("outputs", ())) for cell in notebook.cells]
    number = failed.index(True)
    lines = notebook.cells[number].source.strip().split("\n")
    shown = [*lines[:6], "..."] if len(lines) > 6 else lines
    return "\n    ".join([f"failed in cell {number + 1} with {error.ename}: {error.evalue}", *shown])


def _kernel_environment(run: Run, trace: Path, name: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads make a busy machine five to ten times slower
        **os.environ,
        "PYTHONPATH": path,
        "WORKBENCH_RUNS": str(run.folder.parent),
        "WORKBENCH_TRACE": str(trace),
        "JPY_SESSION_NAME": name,
        "TQDM_DISABLE": "1",  # of bars that are text; widgets are dropped afterwards
        "TOKENIZERS_PARALLELISM": "false",
    }


def _local_sockets(folder: Path) -> Config:
    """Let kernel and client talk through files of this user, not through ports that others could read."""
    transport = "tcp" if sys.platform == "win32" else "ipc"
    return Config(KernelManager={"transport": transport, "connection_file": str(folder / "kernel.json")})


class _ThisPython(AsyncKernelManager):
    """A kernel of the Python that is running, whatever kernels the user has installed under the same name."""

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python")


class _Progress:
    """Show which cell runs, on a terminal only."""

    def __init__(self, label: str, notebook: NotebookNode) -> None:
        self.label = label
        self.cells = len(notebook.cells)

    def __call__(self, cell: NotebookNode, cell_index: int) -> None:
        if self.label and sys.stdout.isatty():
            print(f"\r{self.label}  cell {cell_index + 1} of {self.cells} ", end="", flush=True)


class _Stop:
    """Let Ctrl-C and a polite kill end the execution at once, and remember that it was one of them.

    nbclient's own handler stops the kernel and waits on; cancelled, it says that the kernel died.
    """

    asked = False

    def __call__(self, **_: Any) -> None:
        self.task = asyncio.current_task()
        if sys.platform != "win32" and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, self._stop)

    def _stop(self) -> None:
        self.asked = True
        if self.task is not None:
            self.task.cancel()
