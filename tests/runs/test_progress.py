"""What is printed while notebooks run, on a terminal and elsewhere, and how long they are said to take."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from workbench.runs.notebooks import numbered_notebooks
from workbench.runs.progress import Times, altogether, say_line, times_of, told

new = nbformat.v4


def notebook(*, timed: float | None = None) -> nbformat.NotebookNode:
    """Return a notebook of two sections; ``timed`` as papermill leaves it, with this many seconds a cell."""
    cells = [
        new.new_markdown_cell("# 01 · Title\n\n*About 38 s in all on two CPU cores (demo).*"),
        new.new_code_cell("first"),
        new.new_markdown_cell("## Slow part\n\n*About 14 s on two CPU cores (demo).*"),
        new.new_code_cell("second"),
        new.new_code_cell("third"),
    ]
    made = new.new_notebook(cells=cells)
    if timed is not None:
        made.metadata["papermill"] = {"duration": 3 * timed}
        for cell in made.cells:
            if cell.cell_type == "code":
                cell.metadata["papermill"] = {"duration": timed}
    return made


def test_times_are_those_of_the_text_or_of_the_last_execution(tmp_path: Path):
    copy = tmp_path / "copy.ipynb"
    said = times_of(notebook(), copy)
    assert str(said) == "about 38 s for the demo on two CPU cores"
    assert said.of_cell("second") == "about 14 s for the demo on two CPU cores"
    assert said.of_cell("first") == said.of_cell("third") == ""
    nbformat.write(notebook(timed=50.0), copy)
    last = times_of(notebook(), copy)
    assert str(last) == "about 2.5 min as last time"
    assert last.of_cell("third") == "about 50 s as last time"
    assert last.of_cell("a cell that was changed") == ""
    assert altogether([said, last]) == "about 3.1 min for the demo on two CPU cores and as last time"
    assert altogether([said, Times()]) == "as long as the settings take"


@pytest.mark.parametrize("path", numbered_notebooks(), ids=lambda path: path.stem)
def test_every_notebook_says_how_long_it_takes(path: Path, tmp_path: Path):
    times = times_of(nbformat.read(path, as_version=4), tmp_path / "none.ipynb")
    assert times.seconds is not None and times.seconds >= 2


def go_through(label: str, made: nbformat.NotebookNode) -> None:
    with told(label, len(made.cells), times_of(made, Path("none"))) as cell_starts:
        for index, cell in enumerate(made.cells):
            cell_starts(cell=cell, cell_index=index)


def test_without_a_terminal_each_section_is_a_line(capsys):
    go_through("[1/2] 01_title", notebook())
    lines = [line.rsplit("  ", 1)[0].rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "[1/2] 01_title  cell 2 of 5  01 · Title",
        "[1/2] 01_title  cell 4 of 5  Slow part, about 14 s for the demo on two CPU cores",
    ]


def test_on_a_terminal_one_line_follows(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    go_through("[1/2] 01_title", notebook())
    say_line("done")
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and printed.endswith("\rdone\x1b[K\n")
    assert [part.split("  ")[1] for part in printed.split("\r")[1:4]] == [f"cell {n} of 5" for n in (2, 4, 5)]


def test_without_a_label_nothing_is_printed(capsys):
    go_through("", notebook())
    assert capsys.readouterr().out == ""
