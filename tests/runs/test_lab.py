"""JupyterLab opens copies: the checkout stays as it is, and what a user wrote stays too."""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
import pytest

from workbench.runs.lab import ORIGINS, lab_command, lab_copies
from workbench.runs.notebooks import NOTEBOOKS, prepared, run_notebooks
from workbench.runs.run import Run

PARAMETERS = 'run_name = "demo"\nrows = 3'


def write(path: Path, *cells: str) -> None:
    """Write a notebook whose first cell is tagged as parameters."""
    new = nbformat.v4
    tagged = new.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    nbformat.write(new.new_notebook(cells=[tagged, *(new.new_code_cell(cell) for cell in cells)]), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    write(folder / "00_first.ipynb", "rows")
    write(folder / "01_second.ipynb", "rows + 1")
    return folder


def code(path: Path) -> list[str]:
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def execute(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[-1].outputs = [nbformat.v4.new_output("stream", text="3")]
    nbformat.write(notebook, path)


def has_outputs(path: Path) -> bool:
    return bool(nbformat.read(path, as_version=4).cells[-1].outputs)


def edit(path: Path, text: str) -> None:
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[-1].source = text
    nbformat.write(notebook, path)


def test_copies_are_for_their_run_and_say_so(folder: Path, run: Run):
    copies, lines = lab_copies(run, {"01.rows": 7}, folder=folder)
    assert copies == run.folder / "lab" and lines == []
    first, second = copies / "00_first.ipynb", copies / "01_second.ipynb"
    scope: dict[str, object] = {}
    exec("\n".join(code(first)[:2]), scope)
    assert (scope["run_name"], scope["rows"]) == (run.name, 3)
    exec("\n".join(code(second)[:2]), scope)
    assert scope["rows"] == 7
    said = nbformat.read(first, as_version=4).cells[0].source
    assert f"copy for the run `{run.name}`" in said and str(run.folder) in said


def test_an_unedited_copy_follows_the_checkout_and_an_edited_one_stays(folder: Path, run: Run):
    copies, _ = lab_copies(run, folder=folder)
    edit(copies / "00_first.ipynb", "my own words")
    write(folder / "00_first.ipynb", "rows * 2")
    write(folder / "01_second.ipynb", "rows * 3")
    _, lines = lab_copies(run, folder=folder)
    assert code(copies / "00_first.ipynb")[-1] == "my own words"
    assert code(copies / "00_first.new.ipynb")[-1] == "rows * 2"
    assert code(copies / "01_second.ipynb")[-1] == "rows * 3"
    (line,) = lines
    assert line.startswith("your 00_first.ipynb stays") and line.endswith("00_first.new.ipynb")


def test_edits_in_a_newer_copy_stay_too(folder: Path, run: Run):
    copies, _ = lab_copies(run, folder=folder)
    edit(copies / "00_first.ipynb", "my own words")
    write(folder / "00_first.ipynb", "rows * 2")
    lab_copies(run, folder=folder)
    write(folder / "00_first.ipynb", "rows * 3")
    lab_copies(run, folder=folder)
    assert code(copies / "00_first.new.ipynb")[-1] == "rows * 3"
    edit(copies / "00_first.new.ipynb", "more of my own words")
    assert lab_copies(run, folder=folder)[1][0].endswith("00_first.new.ipynb")
    write(folder / "00_first.ipynb", "rows * 4")
    assert lab_copies(run, folder=folder)[1][0].endswith("00_first.new2.ipynb")
    assert code(copies / "00_first.new.ipynb")[-1] == "more of my own words"
    assert code(copies / "00_first.new2.ipynb")[-1] == "rows * 4"


def test_an_edit_stays_while_the_checkout_does_and_a_deleted_copy_comes_back(folder: Path, run: Run):
    copies, _ = lab_copies(run, folder=folder)
    edit(copies / "00_first.ipynb", "my own words")
    (copies / "01_second.ipynb").unlink()
    assert lab_copies(run, folder=folder)[1] == []
    assert code(copies / "00_first.ipynb")[-1] == "my own words"
    assert not (copies / "00_first.new.ipynb").exists()
    assert code(copies / "01_second.ipynb")[-1] == "rows + 1"


def test_outputs_stay_until_the_notebook_changes_and_then_beside_it(folder: Path, run: Run):
    copies, _ = lab_copies(run, {"rows": 12}, folder=folder)
    execute(copies / "00_first.ipynb")
    assert lab_copies(run, folder=folder)[1] == []
    assert "rows = 12" in code(copies / "00_first.ipynb")[1]
    assert "rows = 12" in code(copies / "01_second.ipynb")[1]
    assert has_outputs(copies / "00_first.ipynb")
    write(folder / "00_first.ipynb", "rows * 2")
    assert len(lab_copies(run, folder=folder)[1]) == 1
    assert has_outputs(copies / "00_first.ipynb")
    assert code(copies / "00_first.new.ipynb")[1:] == [code(copies / "00_first.ipynb")[1], "rows * 2"]


def test_values_given_anew_go_before_those_of_before(folder: Path, run: Run):
    copies, _ = lab_copies(run, {"rows": 12}, folder=folder)
    execute(copies / "00_first.ipynb")
    assert len(lab_copies(run, {"rows": 20}, folder=folder)[1]) == 1
    assert has_outputs(copies / "00_first.ipynb") and "rows = 12" in code(copies / "00_first.ipynb")[1]
    assert "rows = 20" in code(copies / "00_first.new.ipynb")[1]
    assert "rows = 20" in code(copies / "01_second.ipynb")[1]
    run_notebooks(prepared([folder / "01_second.ipynb"], run, {"rows": 9}), run)
    lab_copies(run, folder=folder)
    assert "rows = 9" in code(copies / "01_second.ipynb")[1]


def test_what_a_user_writes_among_the_values_is_no_error(folder: Path, run: Run):
    copies, _ = lab_copies(run, {"rows": 12}, folder=folder)
    notebook = nbformat.read(copies / "00_first.ipynb", as_version=4)
    notebook.cells[2].source += "\nprint(rows)\nfirst, second = 1, 2\nrows = len('no literal')"
    nbformat.write(notebook, copies / "00_first.ipynb")
    (copies / ORIGINS).unlink()
    lab_copies(run, folder=folder)
    assert "print(rows)" in code(copies / "00_first.ipynb")[1]
    assert "rows = 12" in code(copies / "01_second.ipynb")[1]


def test_a_run_is_opened_with_the_values_that_it_was_made_with(folder: Path, run: Run):
    run_notebooks(prepared([folder / "00_first.ipynb"], run, {"rows": 9}), run)
    copies, _ = lab_copies(run, folder=folder)
    assert "rows = 9" in code(copies / "00_first.ipynb")[1]
    assert "rows" not in code(copies / "01_second.ipynb")[1]


def test_the_command_asks_the_network_for_nothing(folder: Path, run: Run):
    lab_copies(run, folder=folder)
    command, environment = lab_command(run, ["--no-browser"])
    assert command[:3] == [sys.executable, "-m", "jupyterlab"]
    assert f"--ServerApp.root_dir={run.folder / 'lab'}" in command
    assert "--LabApp.default_url=/lab/tree/00_first.ipynb" in command
    assert {"--LabApp.news_url=None", "--no-browser"} <= set(command)
    assert any("NeverCheckForUpdate" in word for word in command)
    assert environment["WORKBENCH_RUNS"] == str(run.folder.parent)


def test_links_between_copies_lead_somewhere(run: Run):
    copies, _ = lab_copies(run)
    assert {path.name for path in copies.glob("*.ipynb")} == {
        path.name for path in NOTEBOOKS.glob("[0-9]*.ipynb")
    }
