"""The notebook runner: in order, once, never stale, and clear when a cell fails."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from workbench.__main__ import main
from workbench.runs import notebooks as runner
from workbench.runs.pages import PLOTLY
from workbench.runs.run import Run, open_run

PARAMETERS = 'run_name = "demo"\nrows = 3\nmodel = "demo"'
OPEN = """import pandas as pd
import plotly.graph_objects as go
from workbench.runs.run import open_run
run = open_run(run_name)"""
FIRST = 'run.frame("one.csv", lambda: pd.DataFrame({"row": range(rows)}), rows=rows)'
SECOND = 'one = run.read("one.csv")\nrun.frame("summary.csv", lambda: one * 2, one=one)'
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
    monkeypatch.setattr(runner, "surroundings", dict)  # so that editing the package meanwhile changes nothing
    return folder


@pytest.fixture
def go(folder: Path, run: Run, capsys):
    """Return a function that runs all notebooks and gives the names of those that were executed."""

    def _go(**parameters) -> list[str]:
        capsys.readouterr()
        runner.run_notebooks(runner.numbered_notebooks(folder=folder), run, parameters)
        lines = capsys.readouterr().out.strip().splitlines()
        return [line.split()[1] for line in lines if "unchanged" not in line]

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


def test_notebooks_run_in_order_and_once(go, run: Run, folder: Path):
    assert go() == ["00_first", "01_second"]
    assert run.read("summary.csv")["row"].tolist() == [0, 2, 4]
    assert go() == []
    assert "rows = 3" in (folder / "00_first.ipynb").read_text()
    assert not outputs(folder / "00_first.ipynb")
    assert run.provenance("summary.csv")["command"] == "notebook 01_second.ipynb"


def test_notebooks_run_beside_a_loop_that_is_running(go):
    async def inside() -> list[str]:
        return go()

    assert asyncio.run(inside()) == ["00_first", "01_second"]


def test_what_changed_runs_again_and_only_that(go, run: Run, folder: Path):
    go()
    write(folder / "00_first.ipynb", PARAMETERS, OPEN, "# prose", FIRST)
    assert go() == ["00_first"]
    assert go(rows=4) == ["00_first", "01_second"]
    assert len(run.read("summary.csv")) == 4
    run.path("summary.csv").unlink()
    assert go(rows=4) == ["01_second"]
    run.path("one.csv").write_text("row\n7\n")
    assert go(rows=4) == ["00_first"]  # which made the same file again, so what was read from it still holds
    assert run.read("one.csv")["row"].tolist() == [0, 1, 2, 3]
    assert run.read("summary.csv")["row"].tolist() == [0, 2, 4, 6]
    (run.folder / "notebooks" / "00_first.ipynb").unlink()
    assert go(rows=4) == ["00_first"]


def test_files_named_by_a_parameter_are_followed(go, tmp_path):
    data = tmp_path / "texts.txt"
    data.write_text("one")
    assert len(go(model=str(data))) == 2
    assert len(go(model=str(data))) == 0
    data.write_text("two, longer")
    assert len(go(model=str(data))) == 2


def test_a_change_of_the_surroundings_runs_everything_again(go, monkeypatch):
    go()
    monkeypatch.setattr(runner, "surroundings", lambda: {"libraries": {"torch": "0"}})
    assert len(go()) == 2


def test_the_executed_copy_shows_its_figure_in_any_viewer(go, run: Run, folder: Path):
    from workbench.runs.figures import browser_found

    bar = "from tqdm.auto import trange\nfrom tqdm import trange as text\n_ = [*trange(2), *text(2)]"
    write(folder / "00_first.ipynb", PARAMETERS, OPEN, FIRST, bar, FIGURE)
    go()
    copy = run.folder / "notebooks" / "00_first.ipynb"
    _, figure = outputs(copy)
    bundle = figure["data"]
    assert PLOTLY in bundle
    assert ("image/png" in bundle) == browser_found()
    assert copy.stat().st_size < 300_000
    page = copy.with_suffix(".html").read_text()
    assert page.count("Plotly.newPlot(") >= 1
    assert "plotly.js v" in page
    loaded = [part.split('"')[0] for part in page.split('<script src="')[1:]]
    assert all("mathjax" in source.lower() for source in loaded), loaded


def test_a_failing_cell_is_named_and_its_partial_copy_kept(go, run: Run, folder: Path):
    write(folder / "01_second.ipynb", PARAMETERS, OPEN, "print('so far')", "1 / 0")
    with pytest.raises(
        runner.NotebookFailed, match=r"01_second failed in cell 6 with ZeroDivisionError"
    ) as caught:
        go()
    assert "1 / 0" in str(caught.value)
    partial = run.folder / "notebooks" / "01_second.failed.ipynb"
    assert any("so far" in output.get("text", "") for output in outputs(partial))
    assert not (run.folder / "notebooks" / "01_second.ipynb").exists()
    write(folder / "01_second.ipynb", PARAMETERS, OPEN, SECOND)
    assert go() == ["01_second"]
    assert not partial.exists()


def test_a_dead_kernel_is_named(go, folder: Path):
    write(folder / "01_second.ipynb", PARAMETERS, "import os\nos._exit(1)")
    with pytest.raises(runner.NotebookFailed, match="01_second lost its kernel"):
        go()


@pytest.mark.parametrize(
    ("cell", "parameters", "message"),
    [
        (PARAMETERS, {"sise": 2}, r"among \['model', 'rows', 'run_name'\], got \['sise'\]"),
        ("rows = 3", {}, r"02_third\.ipynb must assign run_name, it has \['rows'\]"),
    ],
)
def test_parameters_are_checked_before_anything_runs(go, run, folder, cell, parameters, message):
    write(folder / "02_third.ipynb", cell, OPEN)
    with pytest.raises(ValueError, match=message):
        go(**parameters)
    assert run.files() == []


def test_notebooks_are_chosen_by_number_or_name(folder: Path):
    def names(*wanted):
        return [path.stem for path in runner.numbered_notebooks(wanted, folder=folder)]

    assert names() == ["00_first", "01_second"]
    assert names("01") == names("01_second.ipynb") == names("notebooks/01_second.ipynb") == ["01_second"]
    with pytest.raises(ValueError, match=r"one of 00_first, 01_second .*got '07'"):
        names("07")


def test_the_command_line_prints_the_summary(folder: Path, tmp_path: Path, capsys):
    assert main(["demo", "--root", str(tmp_path / "runs"), "--set", "rows=2"]) == 0
    printed = capsys.readouterr().out
    assert "row\n   0\n   2\n" in printed
    assert "(2 files" in printed
    assert main(["run", "other", "00", "--root", str(tmp_path / "runs"), "--set", "model=a/b"]) == 0
    assert open_run("other", root=tmp_path / "runs").files() == ["one.csv"]
    assert main(["run", "../x"]) == 2
    assert "run name must be" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)]
)
def test_a_stopped_run_goes_on_where_it_was(go, run: Run, folder: Path, root: Path, number, status):
    slow = "import time, pathlib\npathlib.Path(run.path('started')).touch()\ntime.sleep(60)"
    write(
        folder / "01_second.ipynb",
        PARAMETERS,
        OPEN,
        'run.frame("made.csv", lambda: pd.DataFrame({"x": [1]}))',
        slow,
    )
    script = (
        "import pathlib, sys\nfrom workbench import __main__\nfrom workbench.runs import notebooks\n"
        f"notebooks.NOTEBOOKS = pathlib.Path({str(folder)!r})\nnotebooks.surroundings = dict\n"
        f"sys.exit(__main__.main(['run', {run.name!r}, '--root', {str(run.folder.parent)!r}]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 120
    while not run.path("started").exists():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(number)
    _, told = process.communicate(timeout=30)
    assert process.returncode == status, told
    assert number == signal.SIGKILL or "Stopped." in told
    assert "Traceback" not in told
    made = run.provenance("made.csv")["created"]
    write(
        folder / "01_second.ipynb",
        PARAMETERS,
        OPEN,
        'run.frame("made.csv", lambda: pd.DataFrame({"x": [1]}))',
    )
    assert go() == ["01_second"]
    assert run.provenance("made.csv")["created"] == made
    shutil.rmtree(run.folder)
