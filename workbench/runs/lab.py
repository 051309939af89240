"""The notebooks in JupyterLab: a copy for each run, so that working in them never changes the checkout."""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import chain, count
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from workbench.checks import told
from workbench.digests import digest
from workbench.places import short_name
from workbench.runs.files import write_text_atomic
from workbench.runs.notebooks import kernel_environment, numbered_notebooks
from workbench.runs.parameters import parameters_of, values_for
from workbench.runs.run import Run

#: beside the copies: a digest of what each was when it was made
ORIGINS = ".origins.json"
#: settings of JupyterLab, beside a user's own
_SETTINGS = Path(__file__).with_name("jupyter")
#: asks the network for nothing: no news, no updates, no list of extensions
_QUIET = (
    "--LabApp.news_url=None",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    "--LabApp.extension_manager=readonly",
)


def lab_copies(
    run: Run, parameters: Mapping[str, Any] | None = None, *, folder: str | Path | None = None
) -> tuple[Path, list[str]]:
    """Put a copy of each numbered notebook into ``<run>/lab``, for that run; what a user made of one stays.

    A copy without edits and outputs follows the checkout and the values. One with either stays; where the
    checkout's notebook or the values are others than those it was made from, a copy made from these lies
    beside it as ``NN_topic.new.ipynb`` (``.new2`` where that has edits or outputs too, and so on).

    Args:
        run: whose name the copies' ``run_name`` gets, with the values that it was last executed with, or that
            were given here before.
        parameters: further values, as ``notebooks.prepared`` takes them; they go before the others.
        folder: where the notebooks are; None means the checkout's ``notebooks``.

    Returns:
        The folder of the copies, and a line for each that stays although there is a newer one.

    Raises:
        ValueError: as ``notebooks.prepared``, and for a damaged copy.
    """
    copies = run.folder / "lab"
    record = copies / ORIGINS
    with told(f"{record} is damaged; remove it", ValueError, TypeError):
        origins: dict[str, dict[str, str]] = dict(json.loads(record.read_text()) if record.is_file() else {})
    sources = {path: nbformat.read(path, as_version=4) for path in numbered_notebooks(folder=folder)}
    given = values_for(sources, run.name, parameters or {})
    kept = []
    for path, notebook in sources.items():
        copy, executed = copies / path.name, run.folder / "notebooks" / path.name
        ran, known = _given_to(executed), origins.get(path.name, {})
        before = _given_in(known["values"]) if "values" in known else _given_to(copy)
        values = before | ran if _is_newer(executed, record) else ran | before
        names = parameters_of(path, notebook)
        values = {name: value for name, value in values.items() if name in names} | given[path]
        lines = "".join(f"\n{name} = {value!r}" for name, value in values.items())
        made = _put(copy, _for_run(notebook, run, lines), lines, origins)
        if made != copy:
            stays = f"your {copy.name} stays, with its edits and outputs"
            kept.append(f"{stays}; from the notebook and the values of now: {made.name}")
    write_text_atomic(record, json.dumps(origins, indent=1))
    return copies, kept


def _put(copy: Path, wanted: NotebookNode, values: str, origins: dict[str, dict[str, str]]) -> Path:
    """Write a copy, unless its file was made from the same, in the first place that holds no user's work."""
    origin, further = _digest(wanted), (f".new{n}.ipynb" for n in count(2))
    for ending in chain([".ipynb", ".new.ipynb"], further):
        place = copy.with_suffix(ending)
        with told(f"{place} is no notebook; move it away", ValueError):
            there = nbformat.read(place, as_version=4) if place.is_file() else None
        known = origins.get(place.name, {}).get("origin")
        if there is not None and origin in (known, _digest(there)):
            break
        if there is None or (_digest(there) == known and not any(c.get("outputs") for c in there.cells)):
            write_text_atomic(place, nbformat.writes(wanted))
            break
    origins[place.name] = {"origin": origin, "values": values}
    return place


def _is_newer(path: Path, other: Path) -> bool:
    return path.is_file() and other.is_file() and path.stat().st_mtime_ns > other.stat().st_mtime_ns


def _given_to(notebook: Path) -> dict[str, Any]:
    """Return the values that a notebook was executed or copied with, from the cell below its parameters."""
    cells = nbformat.read(notebook, as_version=4).cells if notebook.is_file() else []
    found = [cell.source for cell in cells if "injected-parameters" in cell.metadata.get("tags", ())]
    return _given_in("\n".join(found))


def _given_in(lines: str) -> dict[str, Any]:
    """Return the literals that lines of Python assign, up to one that does something else."""
    given: dict[str, Any] = {}
    with suppress(SyntaxError, ValueError):
        for line in ast.parse(lines).body:
            if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
                given[line.targets[0].id] = ast.literal_eval(line.value)
    return given


def lab_command(run: Run, options: list[str] | None = None) -> tuple[list[str], dict[str, str]]:
    """Return the command that opens JupyterLab on the copies of a run, and its environment.

    Args:
        run: the run.
        options: of JupyterLab, behind ours.
    """
    folder = (run.folder / "lab").absolute()
    first = min(path.name for path in folder.glob("[0-9][0-9]_*.ipynb"))
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={folder}", *_QUIET]
    root = getattr(os, "geteuid", lambda: 1)() == 0
    command += [f"--LabApp.default_url=/lab/tree/{first}", *["--allow-root"] * root, *(options or [])]
    # what it reads there turns off the question whether one wants Jupyter's news, which news_url does not
    settings = os.pathsep.join(filter(None, [str(_SETTINGS), os.environ.get("JUPYTER_CONFIG_PATH")]))
    places = {"JUPYTER_CONFIG_PATH": settings, "JUPYTER_PREFER_ENV_PATH": "1"}
    return command, {**os.environ, **kernel_environment(run), **places}


def _for_run(notebook: NotebookNode, run: Run, lines: str) -> NotebookNode:
    """Return a notebook with the run's values below its parameters, and a text above that says what it is."""
    place = next(n for n, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", ()))
    own = _tagged(nbformat.v4.new_code_cell, f"# of this run{lines}", "injected-parameters")
    folder = run.folder.absolute()
    told = (
        f"*A copy for the run `{run.name}`, in `{short_name(folder / 'lab')}`: change it as you like, the "
        f"notebook it was made from stays as it is. Results go to `{short_name(folder)}`. After a restart "
        "of the kernel run it from the top: what the run holds is read, not computed again.*"
    )
    notebook.cells.insert(place + 1, own)
    notebook.cells.insert(0, _tagged(nbformat.v4.new_markdown_cell, told, "copy"))
    return notebook


def _tagged(new_cell: Callable[..., NotebookNode], source: str, tag: str) -> NotebookNode:
    return new_cell(source, id=tag, metadata={"tags": [tag]})


def _digest(notebook: NotebookNode) -> str:
    """Return what changes with an edit: the cells' text, not their outputs."""
    return digest([[cell.cell_type, cell.source] for cell in notebook.cells])
