"""The notebooks in JupyterLab: a copy for each run, so that working in them never changes the checkout."""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from workbench.checks import told
from workbench.digests import digest
from workbench.places import short_name
from workbench.runs.files import write_text_atomic
from workbench.runs.notebooks import kernel_environment, numbered_notebooks
from workbench.runs.parameters import values_for
from workbench.runs.run import Run

#: beside the copies: a digest of what each was when it was made
ORIGINS = ".origins.json"
#: asks the network for nothing: no news, no updates, no list of extensions
_QUIET = (
    "--LabApp.news_url=None",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    "--LabApp.extension_manager=readonly",
)


def lab_copies(
    run: Run, parameters: Mapping[str, Any] | None = None, *, folder: str | Path | None = None
) -> tuple[Path, list[str]]:
    """Put a copy of each numbered notebook into ``<run>/lab``, for that run; edited ones stay as they are.

    A copy that was not edited follows the checkout. One that was stays; where the checkout's notebook is
    another than the one it was made from, that lies beside it as ``NN_topic.new.ipynb``.

    Args:
        run: whose name the copies' ``run_name`` gets, with the values that it was last executed with.
        parameters: further values, as ``notebooks.prepared`` takes them.
        folder: where the notebooks are; None means the checkout's ``notebooks``.

    Returns:
        The folder of the copies, and a line for each that stays although there is a newer one.

    Raises:
        ValueError: as ``notebooks.prepared``.
    """
    copies = run.folder / "lab"
    record = copies / ORIGINS
    with told(f"{record} is damaged; remove it", ValueError, TypeError):
        origins: dict[str, dict[str, str]] = dict(json.loads(record.read_text()) if record.is_file() else {})
    sources = {path: nbformat.read(path, as_version=4) for path in numbered_notebooks(folder=folder)}
    given = values_for(sources, run.name, parameters or {})
    kept = []
    for path, notebook in sources.items():
        values = _executed_with(run.folder / "notebooks" / path.name) | given[path]
        stays = _put(copies / path.name, _for_run(notebook, run, values), origins)
        kept += [f"{path.name} has changed; your copy stays, the new one is {stays}"] if stays else []
    write_text_atomic(record, json.dumps(origins, indent=1))
    return copies, kept


def _put(copy: Path, wanted: NotebookNode, origins: dict[str, dict[str, str]]) -> str:
    """Write a copy unless it was edited; return the name of the file beside one that stays, "" for none."""
    origin, known = _digest(wanted), origins.get(copy.name, {})
    there = _digest(nbformat.read(copy, as_version=4)) if copy.is_file() else None
    if there is not None and known.get("origin") == origin:
        return ""
    if there not in (None, known.get("origin")):
        beside = copy.with_suffix(".new.ipynb")
        write_text_atomic(beside, nbformat.writes(wanted))
        return beside.name
    write_text_atomic(copy, nbformat.writes(wanted))
    origins[copy.name] = {"origin": origin}
    return ""


def _executed_with(executed: Path) -> dict[str, Any]:
    """Return the values that were given to a notebook when it was last executed for this run."""
    cells = nbformat.read(executed, as_version=4).cells if executed.is_file() else []
    found = [cell.source for cell in cells if "injected-parameters" in cell.metadata.get("tags", ())]
    lines = [line for text in found for line in ast.parse(text).body]
    return {line.targets[0].id: ast.literal_eval(line.value) for line in lines}


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
    return command, {**os.environ, **kernel_environment(run), "JUPYTER_PREFER_ENV_PATH": "1"}


def _for_run(notebook: NotebookNode, run: Run, values: dict[str, Any]) -> NotebookNode:
    """Return a notebook with the run's values below its parameters, and a line above that says what it is."""
    place = next(n for n, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", ()))
    lines = "".join(f"\n{name} = {value!r}" for name, value in values.items())
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
