"""Run the numbered notebooks in order; each leaves an executed copy and an HTML page in the run folder.

Every notebook is executed every time: what is not computed twice are the stages inside it (``Run.frame``).
"""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import papermill
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from papermill.execute import remove_error_markers
from traitlets import Dict
from traitlets.config import Config

from workbench.places import NOTEBOOKS, ROOT
from workbench.runs.files import write_text_atomic
from workbench.runs.pages import SCRIPT, add_pictures, drop_dead_widgets, write_page
from workbench.runs.parameters import parameters_of, values_for
from workbench.runs.progress import Times, altogether, say_line, times_of, told
from workbench.runs.run import Run

#: a path of a Unix socket has at most 103 bytes, 107 on Linux; this leaves room for the file's name
_LONGEST_SOCKET_FOLDER = 85
#: papermill logs what is printed here already
logging.getLogger("papermill").setLevel(logging.CRITICAL)


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
    chosen: set[Path] = set()
    for name in names:
        named = {path for path in found if Path(name).stem in (path.stem, path.stem[:2])}
        if not named:
            known = ", ".join(path.stem for path in found)
            raise ValueError(f"notebook must be one of {known} in {folder}, or its number, got {name!r}")
        chosen |= named
    return sorted(chosen) or found


#: each notebook with its executed copy's path, its values, and how long it may take
Prepared = list[tuple[NotebookNode, Path, dict[str, Any], Times]]


def prepared(
    notebooks: Iterable[str | Path],
    run: Run,
    parameters: Mapping[str, Any] | None = None,
    where_known: Mapping[str, Any] | None = None,
) -> Prepared:
    """Read notebooks to be executed for a run.

    Args:
        notebooks: paths, in the order in which they build on each other.
        run: where results go.
        parameters: values for names that the notebooks' parameters cells assign; ``"01.n_texts"`` is for that
            notebook alone.
        where_known: further values, for those notebooks that have such a parameter.

    Raises:
        ValueError: for a parameter that none of the notebooks has, or a value that no cell can assign.
    """
    sources = {Path(path): nbformat.read(path, as_version=4) for path in notebooks}
    others = {path for one in sources for path in one.parent.glob("[0-9][0-9]_*.ipynb")} - {*sources}
    values = values_for(sources, run.name, parameters or {}, where_known, others)
    copies = {path: run.folder / "notebooks" / path.name for path in sources}
    return [
        (notebook, copies[path], values[path], times_of(notebook, copies[path]))
        for path, notebook in sources.items()
    ]


def run_notebooks(notebooks: Prepared, run: Run) -> list[Path]:
    """Execute notebooks in order for one run, and leave executed copies in ``<run>/notebooks``.

    Returns:
        The executed copies (each with an HTML page of the same name beside it).

    Raises:
        NotebookFailed: when a cell raises; the partial copy is kept as ``<name>.failed.ipynb``.
    """
    what = f"{len(notebooks)} notebook{'s' * (len(notebooks) != 1)}"
    whole = altogether(times for *_, times in notebooks)
    say_line(f"{what}, {whole}; what is stored already is not computed again; results in {run.folder}")
    width = max((len(copy.stem) for _, copy, *_ in notebooks), default=0)
    pages = []
    with ThreadPoolExecutor(1) as behind:  # a page is written while the next kernel starts
        for number, (notebook, copy, values, _) in enumerate(notebooks, 1):
            label, started = f"[{number}/{len(notebooks)}] {copy.stem:<{width}}", time.perf_counter()
            try:
                executed = execute(notebook, copy, run, values, label=label)
            except NotebookFailed as error:
                error.args = (f"{error}{_of_several(str(error), values, copy, notebooks)}",)
                raise
            pages.append(behind.submit(_leave, executed, copy, run))
            say_line(f"{label}  {time.perf_counter() - started:6.1f} s")
    return [page.result() for page in pages]


def _of_several(message: str, values: Mapping[str, Any], copy: Path, notebooks: Prepared) -> str:
    """Return a hint where what a cell refuses was given to other notebooks as well."""
    name = next((name for name in values if re.search(rf"Error: {name} must ", message)), None)
    others = [one.stem[:2] for _, one, given, _ in notebooks if one != copy and name in given]
    if name is None or not others:
        return ""
    alone = f"{others[0]}.{name}={values[name]!r}"
    return f"\n  {name} was given to {', '.join(others)} too; --set {alone} gives it to one notebook alone"


def planned(notebooks: Prepared, run: Run) -> Iterator[str]:
    """Yield the lines that say what ``run_notebooks`` would do: each notebook's time and parameters.

    What was given for them has a star.
    """
    for notebook, copy, values, times in notebooks:
        yield f"{copy.stem}: {times}"
        for name, assigned in parameters_of(copy, notebook).items():
            star, value = ("*", repr(values[name])) if name in values else (" ", assigned.source)
            yield f"  {star} {name} = {value}"
    yield f"all: {altogether(times for *_, times in notebooks)}; results would go to {run.folder}; * set here"


def execute(
    notebook: NotebookNode,
    copy: Path,
    run: Run,
    parameters: Mapping[str, Any] | None = None,
    *,
    label: str = "",
) -> NotebookNode:
    """Execute a notebook in a fresh kernel of this Python.

    Args:
        notebook: what to run; it stays as it is.
        copy: the file for the executed copy, which is not written here; its name goes to the provenance of
            the results.
        run: where the results go.
        parameters: values for a cell below the parameters cell.
        label: what to print while it runs, with the cell, its section and the time gone by: on a terminal
            one line that follows, elsewhere a line for each section; "" prints nothing.

    Returns:
        The executed notebook.

    Raises:
        NotebookFailed: when a cell raises or the kernel dies; the partial copy is ``<name>.failed.ipynb``.
    """
    lost = False
    progress = told(label, len(notebook.cells) + bool(parameters), times_of(notebook, copy))
    with tempfile.TemporaryDirectory() as temporary, progress as cell_starts:
        output = Path(temporary) / "notebook.ipynb"
        try:
            papermill.execute_notebook(
                notebook,
                output,
                dict(parameters or {}),
                kernel_name="python3",
                language="python",
                progress_bar=False,
                start_timeout=300,
                kernel_manager_class=_ThisPython,
                config=_kernel_settings(run, copy.name, temporary),
                store_widget_state=False,
                shutdown_kernel="immediate",
                resources={"metadata": {"path": str(NOTEBOOKS)}},
                on_cell_start=cell_starts,
            )
        except PapermillExecutionError:
            pass  # told below, with what papermill lets pass: a cell that left by SystemExit
        except RuntimeError:
            lost = True
        executed: NotebookNode = remove_error_markers(nbformat.read(output, as_version=4))
    for absolute_path in ("input_path", "output_path"):
        executed.metadata.papermill.pop(absolute_path, None)
    failed = copy.with_suffix(".failed.ipynb")
    if lost or executed.metadata.papermill.exception:
        write_text_atomic(failed, nbformat.writes(executed))
        raise NotebookFailed(f"{copy.stem} {_why(executed, lost)}\n  partial copy: {failed}")
    return executed


def _leave(executed: NotebookNode, copy: Path, run: Run) -> Path:
    """Write the executed copy, with pictures of its figures, and its page."""
    drop_dead_widgets(executed)
    add_pictures(executed)
    write_text_atomic(copy, nbformat.writes(executed))
    write_page(executed, copy.with_suffix(".html"), script=run.path(SCRIPT))
    copy.with_suffix(".failed.ipynb").unlink(missing_ok=True)
    return copy


def _why(executed: NotebookNode, lost: bool) -> str:
    """Return which cell ended the notebook, how, and the first lines of the cell."""
    number = sum(bool(cell.metadata.papermill.start_time) for cell in executed.cells)
    if not number:
        return "could not start its kernel"
    cell = executed.cells[number - 1]
    errors = [output for output in cell.get("outputs", ()) if output.output_type == "error"]
    shown = f"{errors[-1].ename}: {errors[-1].evalue}" if errors else "an error that it does not show"
    how = f"failed in cell {number} with {shown}"
    if lost:
        how = f"lost its kernel, which was killed or ran out of memory, in cell {number}"
    lines = cell.source.strip().split("\n")
    return "\n    ".join([how, *lines[:6], *["..."][: len(lines) - 6]])


def kernel_environment(run: Run) -> dict[str, str]:
    """Return what the kernel of a notebook needs of its environment: this package, the folder of runs."""
    return {
        # threads that wait by spinning make a busy machine five to ten times slower
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "WORKBENCH_RUNS": str(run.folder.parent.absolute()),
        "TOKENIZERS_PARALLELISM": "false",
    }


def _kernel_settings(run: Run, name: str, folder: str) -> Config:
    """Let kernel and client talk through files of this user where it can be; tell the kernel our paths."""
    sockets = os.name == "posix" and len(os.fsencode(folder)) <= _LONGEST_SOCKET_FOLDER
    # no bars that are text; widgets are dropped afterwards
    environment = {**kernel_environment(run), "JPY_SESSION_NAME": name, "TQDM_DISABLE": "1"}
    talk = {"transport": "ipc" if sockets else "tcp", "connection_file": str(Path(folder) / "kernel.json")}
    return Config(KernelManager={"environment": environment, **talk})


class _ThisPython(AsyncKernelManager):
    """A kernel of the Python that is running, whatever kernels the user has installed under the same name."""

    environment = Dict().tag(config=True)

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
        environment = {name: value.replace("$", "$$") for name, value in self.environment.items()}
        return KernelSpec(argv=argv, env=environment, display_name="Python 3", language="python")
