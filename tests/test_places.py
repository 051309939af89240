"""What the package finds where it was installed without its checkout, asked of a real process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from workbench.places import DEMO, PACKAGE, ROOT, demo_path, in_checkout, runs_folder, short_name

REPORT = """
import json, sys
import workbench as wb

def said(function, name):
    try:
        function(name)
    except ValueError as error:
        return str(error)

print(json.dumps({
    "package": wb.__file__,
    "model": said(wb.load_model, "demo"),
    "texts": said(wb.load_texts, "demo"),
    "instructions": said(wb.load_instructions, "demo-math"),
    "run": str(wb.open_run("x").folder),
    "picker": hasattr(wb.BlockPicker, "_esm"),
}))
"""


@pytest.fixture(scope="module")
def installed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that holds the package as a wheel unpacks it."""
    wheels = tmp_path_factory.mktemp("wheels")
    # from a copy: building leaves folders in the project
    project = tmp_path_factory.mktemp("project")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (project / name).write_bytes((root / name).read_bytes())
    for file in (root / "workbench").rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            copy = project / file.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, "."]
    subprocess.run(build, cwd=project, check=True, capture_output=True)
    (wheel,) = wheels.glob("workbench-*.whl")
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def report(installed: Path, cwd: Path, **environment: str) -> dict:
    """Return what the installed package says in a process of its own, started in a folder."""
    variables = {name: value for name, value in os.environ.items() if name != "WORKBENCH_RUNS"}
    variables |= {"PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"} | environment
    command = [sys.executable, "-c", REPORT]
    done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_without_the_checkout_demo_says_so_and_runs_go_to_the_working_folder(
    installed: Path, tmp_path: Path
) -> None:
    found = report(installed, tmp_path)
    assert Path(found["package"]).is_relative_to(installed)
    for part in ("model", "texts", "instructions"):
        assert "'demo' needs a checkout" in found[part]
        assert "\n" not in found[part]
    assert Path(found["run"]) == tmp_path / "data" / "runs" / "x"
    assert found["picker"]


def test_the_folder_of_runs_can_be_chosen(installed: Path, tmp_path: Path) -> None:
    found = report(installed, tmp_path, WORKBENCH_RUNS=str(tmp_path / "elsewhere"))
    assert Path(found["run"]) == tmp_path / "elsewhere" / "x"


def test_the_wheel_holds_every_file_of_the_package(installed: Path) -> None:
    def files(folder: Path) -> set[str]:
        found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        return {path.as_posix() for path in found if "__pycache__" not in path.parts}

    assert files(installed / "workbench") == files(PACKAGE)
    assert {"py.typed", "widgets/static/block_picker.js", "evaluation/suites.toml"} <= files(PACKAGE)


def test_in_the_checkout_everything_has_its_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert in_checkout()
    assert demo_path("tasks") == DEMO / "tasks"
    monkeypatch.delenv("WORKBENCH_RUNS", raising=False)
    assert runs_folder() == ROOT / "data" / "runs"
    monkeypatch.setenv("WORKBENCH_RUNS", "~/runs")
    assert runs_folder() == Path.home() / "runs"


def test_a_path_in_the_checkout_is_named_by_its_place_there(tmp_path: Path) -> None:
    assert short_name(ROOT / "data" / "runs" / "x") == "data/runs/x"
    assert short_name(tmp_path) == str(tmp_path)
    assert short_name("org/model") == "org/model"
