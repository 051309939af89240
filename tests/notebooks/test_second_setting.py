"""The notebooks on another model and data by path, without size 1: end to end, no path as a name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest
from second_setting import LAYERS, World, make_world, unexpected

from workbench.__main__ import main
from workbench.runs.pages import PLOTLY
from workbench.runs.run import Run, open_run

NAMES = ("01", "02", "03", "04", "05", "06", "07", "08", "09")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def second_run(world: World) -> Run:
    """Run the notebooks as they are run by hand, in the folder of the data."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world.folder)
        patch.setenv("HOME", str(world.home))
        settings = [word for setting in world.settings for word in ("--set", setting)]
        assert main(["run", "second", *NAMES, "--root", "runs", *settings]) == 0
    return open_run("second", root=world.folder / "runs")


def executed(run: Run) -> dict[str, nbformat.NotebookNode]:
    copies = sorted((run.folder / "notebooks").glob("*.ipynb"))
    return {path.stem[:2]: nbformat.read(path, as_version=4) for path in copies}


def shown(notebook: nbformat.NotebookNode) -> list[dict]:
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def test_every_notebook_ends_with_figures_and_no_warning(second_run: Run):
    notebooks = executed(second_run)
    assert tuple(notebooks) == NAMES
    for name, notebook in notebooks.items():
        outputs = shown(notebook)
        assert unexpected(outputs) == [], name
        assert any(PLOTLY in one.get("data", {}) for one in outputs), name


def test_the_frames_are_those_of_this_model(second_run: Run):
    assert len(second_run.read("distances.csv")) == LAYERS * (LAYERS + 1) // 2
    assert sorted(second_run.read("damage.csv")["size"].unique()) == [1, 2, 4]
    assert second_run.read_json("selection.json")["n_layers"] == LAYERS
    items = second_run.read("items.jsonl")
    assert items.groupby(["variant", "task"])["item"].nunique().eq(8).all()
    assert set(items["task"]) == {"own_choice", "own_sum"}
    first = items[(items["task"] == "own_choice") & (items["variant"] == "base")]
    assert first["prompt"].duplicated().sum() == 3  # the equal items are all there


def test_no_path_is_a_name(second_run: Run, world: World):
    files = [path.relative_to(second_run.folder) for path in second_run.folder.rglob("*")]
    assert not [name for name in files if re.search(r"c4|texts\.jsonl|beside\.jsonl|\.txt", str(name))]
    for label in ("my-texts", "beside", "at_home"):
        assert f"angles-{label}.csv" in second_run.files()
    figures = {path.name for path in (second_run.folder / "figures").glob("06_*.png")}
    assert {"06_forms_other-sums.png", "06_similarity_other-sums.png"} <= figures or not figures
    for name, notebook in executed(second_run).items():
        for output in shown(notebook):
            drawn = json.dumps({k: v for k, v in output.get("data", {}).items() if k != "image/png"})
            for path in ("my texts.jsonl", "beside.jsonl", "at_home.txt", "sums.jsonl", str(world.home)):
                assert path not in drawn, (name, path)


def test_the_legends_say_the_labels(second_run: Run):
    first = json.dumps(
        [one["data"][PLOTLY] for one in shown(executed(second_run)["01"]) if PLOTLY in one.get("data", {})]
    )
    assert all(label in first for label in ("my-texts", "beside", "at_home"))
    assert set(second_run.read("scores.csv").query("metric == 'loss'")["task"]) <= {"Own texts"}


def test_the_commands_and_links_lead_somewhere(second_run: Run):
    said = "".join(one.get("text", "") for one in shown(executed(second_run)["04"]))
    plans = re.findall(r"--plan '?([^'\n]+?)'?$", said, re.MULTILINE)
    assert len(plans) == 2
    assert all(Path(plan).is_absolute() and Path(plan).is_file() for plan in plans)
    pages = second_run.folder / "notebooks"
    for page in pages.glob("*.html"):
        html = page.read_text()
        assert re.findall(r'<script[^>]*src="([^"]+)"', html) == ["../plotly.min.js"]
        assert not re.search(r'href="(?!http)[^"]*\.ipynb', html)
    assert [path.parent for path in second_run.folder.rglob("plotly.min.js")] == [second_run.folder]


def test_a_notebook_without_those_before_it_says_which(world: World, capsys, monkeypatch):
    """A person who opens the second one first, or whose kernel was restarted, is told what is missing."""
    monkeypatch.chdir(world.folder)
    assert main(["run", "empty", "02", "--root", "runs", "--set", "model_name=./tiny-neox"]) == 1
    assert "distances.csv is not in run 'empty'" in (told := capsys.readouterr().err)
    assert "run notebook 01_angular_distance for this run" in told
