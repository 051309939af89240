"""The notebook runner: in order, every time, never stale, and clear when a cell fails."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest

import workbench
from workbench.runs import notebooks as runner
from workbench.runs.pages import PLOTLY
from workbench.runs.run import Run, open_run

PARAMETERS = 'run_name = "demo"\nrows = 3\nmodel = "demo"'
OPEN = """import pandas as pd
import plotly.graph_objects as go
from workbench.runs.run import open_run
run = open_run(run_name)"""
FIRST = 'run.frame("one.csv", lambda rows: pd.DataFrame({"row": range(rows)}), rows=rows)'
SECOND = 'one = run.read("one.csv")\nrun.frame("summary.csv", lambda one: one * 2, one=one)'
FIGURE = 'go.Figure(go.Bar(x=["<b>a</b>", "b"], y=[1, 2]), {"title": "A bar <script>"})'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """Return a folder of two notebooks that takes the place of the checkout's own."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    write(folder / "00_first.ipynb", PARAMETERS, OPEN, FIRST)
    write(folder / "01_second.ipynb", PARAMETERS, OPEN, SECOND)
    write(folder / "draft.ipynb", "raise SystemExit")
    monkeypatch.setattr(runner, "NOTEBOOKS", folder)
    return folder


@pytest.fixture
def go(folder: Path, run: Run):
    """Return a function that runs all notebooks, or those named."""

    def _go(*names, **parameters) -> list[Path]:
        chosen = runner.numbered_notebooks(names, folder=folder)
        return runner.run_notebooks(runner.prepared(chosen, run, parameters), run)

    return _go


def write(path: Path, parameters: str, *cells: str) -> None:
    """Write a notebook with a parameters cell; cells that begin with # are prose."""
    new = nbformat.v4
    tagged = new.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    others = [new.new_markdown_cell(c) if c.startswith("# ") else new.new_code_cell(c) for c in cells]
    nbformat.write(new.new_notebook(cells=[new.new_markdown_cell("# Title"), tagged, *others]), path)


def outputs(path: Path) -> list[dict]:
    cells = nbformat.read(path, as_version=4).cells
    return [output for cell in cells for output in cell.get("outputs", ())]


def times(copies: list[Path]) -> list[str]:
    """Return when each copy was executed."""
    return [nbformat.read(copy, as_version=4).metadata.papermill.start_time for copy in copies]


def test_notebooks_run_in_order_and_say_so(go, run: Run, folder: Path, capsys):
    copies = go(rows=3)
    assert copies == [run.folder / "notebooks" / name for name in ("00_first.ipynb", "01_second.ipynb")]
    assert run.read("summary.csv")["row"].tolist() == [0, 2, 4]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("2 notebooks, ")
    assert printed[0].endswith(f"results in {run.folder}")
    lines = [line.split() for line in printed[1:]]
    assert [line[:2] for line in lines] == [["[1/2]", "00_first"]] * 2 + [["[2/2]", "01_second"]] * 2
    assert lines[0][2:7] == ["cell", "2", "of", "5", "Title"]  # one line for the only section
    assert all(line.endswith(" s") for line in printed[1:])
    assert not outputs(folder / "00_first.ipynb")
    assert run.provenance("summary.csv")["command"] == "notebook 01_second.ipynb"


def test_every_notebook_is_executed_every_time_and_its_stages_are_not(go, run: Run):
    first = times(go())
    made = run.provenance("one.csv")["created"]
    second = times(go())
    assert all(later > sooner for sooner, later in zip(first, second, strict=True))
    assert run.provenance("one.csv")["created"] == made


def test_a_replaced_data_file_is_read_again(go, run: Run, folder: Path, tmp_path: Path):
    """The file is named in a list, and its time and size stay the same."""
    data = tmp_path / "texts.txt"
    data.write_text("one")
    read = 'run.frame("one.csv", lambda texts: texts, texts=frame)'
    frame = "frame = pd.DataFrame({'text': [open(path).read() for path in files]})"
    write(folder / "00_first.ipynb", PARAMETERS + "\nfiles = []", OPEN, frame, read)
    go("00", files=[str(data)])
    stamp = data.stat()
    data.write_text("two")
    os.utime(data, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    go("00", files=[str(data)])
    assert run.read("one.csv")["text"].tolist() == ["two"]


def test_notebooks_run_beside_a_loop_that_is_running(go):
    async def inside() -> list[Path]:
        return go()

    assert [copy.stem for copy in asyncio.run(inside())] == ["00_first", "01_second"]


def test_values_reach_the_notebook_as_they_are(go, folder: Path):
    values = {"text": "a \"b\" 'c' \\n\n{x} $HOME é", "number": 1e-5, "nested": {"a": [None, True, [2, -3]]}}
    names = "\n".join(f"{name} = None" for name in values)
    write(folder / "00_first.ipynb", f"{PARAMETERS}\n{names}", "[text, number, nested]")
    (copy,) = go("00", **values)
    (shown,) = outputs(copy)
    assert ast.literal_eval(shown["data"]["text/plain"]) == list(values.values())


def test_the_kernel_is_this_python_with_this_package_and_run(
    go, run: Run, folder: Path, monkeypatch, tmp_path
):
    monkeypatch.setenv("WORKBENCH_RUNS", "elsewhere")
    monkeypatch.setenv("SOME_PATH", "$HOME")
    cell = """import os, sys, workbench
[sys.executable, workbench.__file__, os.environ["WORKBENCH_RUNS"], os.environ["SOME_PATH"], os.getcwd()]"""
    write(folder / "00_first.ipynb", PARAMETERS, cell)
    dollar = open_run("a", root=tmp_path / "$HOME runs")
    (copy,) = runner.run_notebooks(
        runner.prepared(runner.numbered_notebooks(["00"], folder=folder), dollar), dollar
    )
    here = [sys.executable, workbench.__file__, str(dollar.folder.parent), "$HOME", str(folder)]
    assert ast.literal_eval(outputs(copy)[0]["data"]["text/plain"]) == here


def test_a_long_temporary_folder_is_no_obstacle(go, tmp_path: Path, monkeypatch):
    long = tmp_path / ("long" * 25)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert len(go()) == 2


def test_the_executed_copy_is_small_and_shows_its_figure_in_any_viewer(go, run: Run, folder: Path):
    from workbench.runs.figures import browser_found

    bar = "from tqdm.auto import trange\nfrom tqdm import trange as text\n_ = [*trange(2), *text(2)]"
    write(folder / "00_first.ipynb", PARAMETERS, OPEN, FIRST, bar, FIGURE)
    copy, _ = go()
    _, figure = outputs(copy)
    assert PLOTLY in figure["data"]
    assert ("image/png" in figure["data"]) == browser_found()
    assert copy.stat().st_size < 300_000
    assert "Plotly.newPlot(" in copy.with_suffix(".html").read_text()
    notebook = nbformat.read(copy, as_version=4)
    assert "widgets" not in notebook.metadata
    assert str(copy.parent) not in json.dumps(notebook.metadata)
    assert tempfile.gettempdir() not in json.dumps(notebook.metadata)
    assert {path.name for path in copy.parent.iterdir()} == {
        "00_first.ipynb",
        "00_first.html",
        "01_second.ipynb",
        "01_second.html",
    }
    assert [path.parent.name for path in run.folder.rglob("plotly.min.js")] == [run.name]  # one for all


def test_a_failing_cell_is_named_and_its_partial_copy_kept(go, run: Run, folder: Path):
    long = "\n".join(f"x{n} = 1" for n in range(9))
    write(folder / "01_second.ipynb", PARAMETERS, OPEN, "print('so far')", f"1 / 0\n{long}", "print('after')")
    with pytest.raises(runner.NotebookFailed) as caught:
        go()
    partial = run.folder / "notebooks" / "01_second.failed.ipynb"
    shown = ["1 / 0", "x0 = 1", "x1 = 1", "x2 = 1", "x3 = 1", "x4 = 1", "..."]
    how = "01_second failed in cell 6 with ZeroDivisionError: division by zero"
    assert str(caught.value) == "\n    ".join([how, *shown]) + f"\n  partial copy: {partial}"
    assert caught.value.__context__ is None
    assert [output.get("text") or output["ename"] for output in outputs(partial)] == [
        "so far\n",
        "ZeroDivisionError",
    ]
    assert "1 / 0" in nbformat.read(partial, as_version=4).cells[5].source
    assert (run.folder / "notebooks" / "00_first.ipynb").is_file()
    assert not (run.folder / "notebooks" / "01_second.ipynb").exists()
    write(folder / "01_second.ipynb", PARAMETERS, OPEN, SECOND)
    go()
    assert not partial.exists()


def test_a_value_that_another_notebook_refuses_is_said_to_be_given_to_both(go, folder: Path):
    refusal = "raise ValueError(f'rows must be above 5, got {rows}')"
    write(folder / "01_second.ipynb", PARAMETERS, refusal)
    with pytest.raises(
        runner.NotebookFailed, match=r"\n  rows was given to 00 too; --set 00.rows=4 gives it"
    ):
        go(rows=4)
    with pytest.raises(runner.NotebookFailed) as caught:
        go(**{"01.rows": 4})
    assert "too;" not in str(caught.value)


SHOWN = """class Odd:
    def _repr_html_(self):
        raise KeyError("not unique")
Odd()"""


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("import os\nos._exit(1)", "01_second lost its kernel, which was killed .* in cell 4\n    import os"),
        ("import sys\nsys.exit()", "01_second failed in cell 4 with SystemExit: \n    import sys"),
        (SHOWN, "01_second failed in cell 4 with KeyError: 'not unique'"),
    ],
)
def test_other_ends_of_a_notebook_are_told_apart(go, folder: Path, capfd, cell: str, message: str):
    write(folder / "01_second.ipynb", PARAMETERS, cell, "print('after')")
    with pytest.raises(runner.NotebookFailed, match=message):
        go()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("cell", "parameters", "message"),
    [
        (PARAMETERS, {"sise": 2}, r"among \['model', 'rows', 'run_name'\], got \['sise'\]"),
        (PARAMETERS, {"rows": float("nan")}, "parameter rows must be a text, .* got nan"),
        (PARAMETERS, {"rows": {1: 2}}, r"parameter rows must be a text, .* got \{1: 2\}"),
        (PARAMETERS, {"rows": Path("x")}, "parameter rows must be a text, .* got PosixPath"),
        (PARAMETERS, {"rows": (1, 2)}, r"parameter rows must be a text, .* got \(1, 2\)"),
        (PARAMETERS, {"rows": "many"}, "rows of 00_first must be like 3, got 'many'"),
        (PARAMETERS, {"rows": True}, "rows of 00_first must be like 3, got True"),
        (PARAMETERS, {"model": 5}, "model of 00_first must be like 'demo', got 5"),
        (f"{PARAMETERS}\nsizes = [1]", {"sizes": 5}, r"sizes of 02_third must be like \[1\], got 5"),
        (f"{PARAMETERS}\nonly: bool = False", {"only": 1}, "only of 02_third must be like False, got 1"),
        ("rows = 3", {}, r"02_third\.ipynb must have run_name, they are \['rows'\]"),
        ("rows =", {}, r"parameters cell of 02_third\.ipynb must be plain Python"),
    ],
)
def test_parameters_are_checked_before_anything_runs(go, run, folder, cell, parameters, message):
    write(folder / "02_third.ipynb", cell, OPEN)
    with pytest.raises(ValueError, match=message):
        go(**parameters)
    assert run.files() == []


def test_a_notebook_needs_one_parameters_cell(go, folder: Path):
    nbformat.write(nbformat.v4.new_notebook(), folder / "02_third.ipynb")
    with pytest.raises(ValueError, match=r"02_third\.ipynb must have exactly one cell tagged .* found 0"):
        go()


def test_notebooks_are_chosen_by_number_or_name(folder: Path):
    def names(*wanted):
        return [path.stem for path in runner.numbered_notebooks(wanted, folder=folder)]

    assert names() == ["00_first", "01_second"]
    assert names("01") == names("01_second.ipynb") == names("notebooks/01_second.ipynb") == ["01_second"]
    assert names("01", "00", "01_second") == ["00_first", "01_second"]
    with pytest.raises(ValueError, match=r"one of 00_first, 01_second .*got '07'"):
        names("07")
