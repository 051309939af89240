"""The command line: what it prints, what it refuses, and how it stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from workbench.__main__ import main
from workbench.runs import notebooks as runner
from workbench.runs.run import Run, open_run

PARAMETERS = 'run_name = "demo"\nrows = 3\nmodel_name = "demo"'
OPEN = "import pandas as pd\nfrom workbench.runs.run import open_run\nrun = open_run(run_name)"
FIRST = 'run.frame("one.csv", lambda rows: pd.DataFrame({"row": range(rows)}), rows=rows)'
SECOND = 'one = run.read("one.csv")\nrun.frame("summary.csv", lambda one: one * 2, one=one)'
WAIT = """import os, time, pathlib
pathlib.Path(run.folder / "started").write_text(str(os.getpid()))
time.sleep(100)"""


def write(path: Path, *cells: str) -> None:
    """Write a notebook whose first cell is tagged as parameters."""
    new = nbformat.v4
    tagged = new.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    nbformat.write(new.new_notebook(cells=[tagged, *(new.new_code_cell(cell) for cell in cells)]), path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """Return a folder of two notebooks that takes the place of the checkout's own."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    write(folder / "00_first.ipynb", OPEN, FIRST)
    write(folder / "01_second.ipynb", OPEN, SECOND)
    monkeypatch.setattr(runner, "NOTEBOOKS", folder)
    return folder


@pytest.fixture(autouse=True)
def _keep_signal_handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_demo_prints_what_will_run_and_the_summary(folder: Path, tmp_path: Path, capsys):
    assert main(["demo", "--root", str(tmp_path / "runs"), "--set", "rows=2"]) == 0
    first, *_, printed = capsys.readouterr().out.partition("\n")
    assert first.startswith("2 notebooks, ")
    assert "[2/2] 01_second" in printed
    assert "row\n   0\n   2\n" in printed
    assert "(2 files" in printed
    assert open_run("demo", root=tmp_path / "runs").files() == ["one.csv", "summary.csv"]


def test_an_own_run_takes_chosen_notebooks(folder: Path, tmp_path: Path, capsys):
    arguments = ["run", "other", "00", "--root", str(tmp_path), "--set", "model_name=a/b", "--set", "rows=1"]
    assert main(arguments) == 0
    assert "[1/1] 00_first" in capsys.readouterr().out
    assert open_run("other", root=tmp_path).files() == ["one.csv"]


def test_notebooks_may_stand_behind_options(folder: Path, tmp_path: Path, capsys):
    assert main(["run", "other", "--root", str(tmp_path), "--set", "rows=1", "00", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "00_first" in told and "01_second" not in told
    for wrong in (["run", "other", "--sett", "rows=1"], ["figures", "other", "00"]):
        with pytest.raises(SystemExit) as stopped:
            main(wrong)
        assert stopped.value.code == 2 and "unrecognized arguments" in capsys.readouterr().err


def test_an_error_is_no_order_to_the_terminal(folder: Path, tmp_path: Path, capsys):
    write(folder / "00_first.ipynb", "raise ValueError('\\x1b]0;x\\x07red')")
    assert main(["run", "other", "00", "--root", str(tmp_path)]) == 1
    assert "ValueError: \\x1b]0;x\\x07red" in capsys.readouterr().err
    assert main(["run", "other", "\x1b[31m00", "--root", str(tmp_path)]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_a_failing_notebook_gives_its_message_and_no_traceback(folder: Path, tmp_path: Path, capsys):
    write(folder / "00_first.ipynb", "1 / 0")
    assert main(["run", "other", "--root", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert told.err.startswith(
        "\n00_first failed in cell 3 with ZeroDivisionError: division by zero\n    1 / 0\n"
    )
    assert "Traceback" not in told.err + told.out
    assert "01_second" not in told.err + told.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "../x"], "run name must be"),
        (["run", "x", "07"], "notebook must be one of 00_first, 01_second"),
        (
            ["run", "x", "--set", "row=2"],
            "parameters must be among ['model_name', 'rows', 'run_name'], got ['row']",
        ),
        (["run", "x", "--set", "rows={1: 2}"], "parameter rows must be a text"),
        (["heal", "--plan", "nowhere/plan.json"], "plan must be a plan.json"),
    ],
)
def test_wrong_use_gives_one_line(folder: Path, tmp_path: Path, capsys, monkeypatch, arguments, message):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"workbench: {message}")
    assert told.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "value"),
    [("a=1", 1), ("a=x/y", "x/y"), ("a=", ""), ("a=[1, 'b']", [1, "b"]), ("a=1,2", [1, 2]), ("a=None", None)],
)
def test_settings_are_literals_or_texts(text: str, value: object):
    from workbench.__main__ import _setting

    assert _setting(text) == ("a", value)
    assert _setting(f"01.{text}") == ("01.a", value)


def test_a_relative_path_is_that_of_the_caller(tmp_path: Path, monkeypatch):
    from workbench.__main__ import _setting

    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c4.jsonl").write_text("")
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    here = str(tmp_path / "sub" / "c4.jsonl")
    assert _setting("a=c4.jsonl") == ("a", here)
    assert _setting("a=['demo', '../sub/c4.jsonl']") == ("a", ["demo", here])
    assert _setting("a={'C4': './c4.jsonl'}") == ("a", {"C4": here})
    assert _setting("a=../demo") == ("a", str(tmp_path / "demo"))
    monkeypatch.chdir(tmp_path)
    assert _setting("a=demo") == ("a", "demo")  # a set of that name, whatever folder is here
    assert _setting("a=org/name") == ("a", "org/name")


def test_a_dry_run_prints_parameters_and_times_and_does_nothing(folder: Path, tmp_path: Path, capsys):
    arguments = ["run", "x", "--root", str(tmp_path / "runs"), "--set", "rows=5", "--set", "01.rows=6"]
    assert main([*arguments, "--dry-run"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "00_first: as long as the settings take"
    assert lines[:3] == ["  * run_name = 'x'", "  * rows = 5", "    model_name = 'demo'"]
    assert lines[5] == "  * rows = 6"
    assert not (tmp_path / "runs").exists()
    assert main(arguments) == 0
    capsys.readouterr()
    assert main([*arguments, "--dry-run"]) == 0
    assert " s as last time" in capsys.readouterr().out.splitlines()[0]


def test_jupyterlab_opens_on_copies_and_that_is_said(folder: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr("workbench.runs.lab.sys.executable", "true")  # of the machine: does nothing, well
    assert main(["lab", "x", "--root", str(tmp_path), "--set", "rows=5"]) == 0
    said = capsys.readouterr().out
    assert "copies for the run 'x', yours to change" in said
    assert "rows = 5" in (tmp_path / "x" / "lab" / "00_first.ipynb").read_text()


@pytest.mark.parametrize("text", ["a", "=1", "1a=2", ".a=1", "00.=1", "00.1a=2"])
def test_other_settings_are_refused(text: str, capsys):
    with pytest.raises(SystemExit):
        main(["demo", "--set", text])
    assert f"must be NAME=VALUE or NN.NAME=VALUE, got {text!r}" in capsys.readouterr().err


def alive(process: int) -> bool:
    """Return whether a process runs (one that ended and waits for its parent does not)."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def wait_until(condition, process: subprocess.Popen | None = None, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for the kernel in /proc")
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)]
)
def test_a_stopped_run_goes_on_where_it_was(folder: Path, run: Run, root: Path, number, status):
    write(folder / "01_second.ipynb", OPEN, SECOND, WAIT)
    command = ["run", run.name, "--root", str(run.folder.parent)]
    script = (
        "import pathlib, sys\nfrom workbench import __main__\nfrom workbench.runs import notebooks\n"
        f"notebooks.NOTEBOOKS = pathlib.Path({str(folder)!r})\nsys.exit(__main__.main({command!r}))"
    )
    environment = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE, text=True
    )
    wait_until((run.folder / "started").exists, process)
    wait_until((run.folder / "started").read_text, process)
    kernel = int((run.folder / "started").read_text())
    assert alive(kernel)
    process.send_signal(number)
    _, told = process.communicate(timeout=30)
    assert process.returncode == status, told
    if number != signal.SIGKILL:
        stopped = "Stopped. The same command goes on from here: what is stored is not computed again."
        assert told == f"\n{stopped}\n"
        assert not alive(kernel)
    wait_until(lambda: not alive(kernel), seconds=30)
    assert sorted(path.name for path in (run.folder / "notebooks").glob("01*")) == []
    made = run.provenance("summary.csv")["created"]
    write(folder / "01_second.ipynb", OPEN, SECOND)
    assert main(command) == 0
    assert run.provenance("summary.csv")["created"] == made


def test_the_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert all(command in printed for command in ("demo", "run", "lab", "heal"))


def test_the_examples_of_the_help_are_right(tmp_path: Path, capsys, monkeypatch):
    from workbench.__main__ import _parser

    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path))
    monkeypatch.setattr("workbench.runs.lab.sys.executable", "true")
    lines = [line.split("workbench ")[1].split() for line in str(_parser().epilog).splitlines()[1:]]
    for words in lines:
        assert main([*words, *([] if words[0] == "lab" or "--dry-run" in words else ["--dry-run"])]) == 0
    assert "* instructions = 'my_rows.jsonl'" in capsys.readouterr().out
    assert len(lines) == 4
