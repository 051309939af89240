"""The demo's notebooks executed as `make demo` executes them, and what every executed copy must show."""

from __future__ import annotations

from pathlib import Path

import nbformat

from workbench.runs import notebooks as runner
from workbench.runs.pages import PLOTLY
from workbench.runs.run import Run

NOTEBOOKS = runner.numbered_notebooks()
#: those that read nothing which another notebook writes: a run of their own, beside the others'
APART = [path for path in NOTEBOOKS if path.stem[:2] in ("00", "07")]
CHAIN = [path for path in NOTEBOOKS if path not in APART]


def assert_shows_its_figures(run: Run, path: Path) -> None:
    """Hold that a notebook warned of nothing and shows its figures, as pictures too."""
    copy = run.folder / "notebooks" / path.name
    cells = nbformat.read(copy, as_version=4).cells
    shown = [output for cell in cells for output in cell.get("outputs", ())]
    assert not [output["text"] for output in shown if output.get("name") == "stderr"]
    figures = [output["data"] for output in shown if PLOTLY in output.get("data", {})]
    assert figures, "a notebook shows at least one figure"
    assert all("image/png" in bundle for bundle in figures)
    assert copy.stat().st_size < 5_000_000
    assert copy.with_suffix(".html").is_file()


def assert_no_stage_is_computed_again(run: Run, paths: list[Path], summary: str) -> None:
    """Run the cells of notebooks once more, in one kernel and without a browser for figures.

    Hold that what is stored was not made again.
    """
    made = {name: run.provenance(name)["created"] for name in run.files() if "code" in run.provenance(name)}
    before = run.path(summary).read_bytes()
    assert len(made) >= 8
    cells = [cell for path in paths for cell in nbformat.read(path, as_version=4).cells]
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"
    runner.execute(nbformat.v4.new_notebook(cells=cells), run.folder / "notebooks" / "again.ipynb", run)
    assert {name: run.provenance(name)["created"] for name in made} == made
    assert run.path(summary).read_bytes() == before
