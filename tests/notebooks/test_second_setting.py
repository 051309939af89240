"""The notebooks on another model and data by path, without size 1: in JupyterLab by hand, then as a command.

A person goes through the first ones with Shift-Enter and a click; the command goes on in the same run with
those that nobody went through, all of them where there is no browser.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from live_lab import PICKER, ROOT, Tab, click_cell, running_own_lab
from second_setting import LAYERS, World, make_world, unexpected

from workbench.__main__ import main
from workbench.runs.pages import PLOTLY
from workbench.runs.run import Run, open_run

pytestmark = pytest.mark.slow

#: the demo in 00, as small as it goes; the notebooks after it on the second setting
SMALL = ["00.model_name='demo'", "00.n_story_texts=8", "00.n_story_examples=48", "00.n_items=4"]
BY_HAND = (
    *("00_start_here", "01_angular_distance", "02_pick_blocks", "03_self_distillation", "04_healing"),
    *("05_evaluation", "06_forgetting"),
)
NAMES = ("01", "02", "03", "04", "05", "06", "07", "08", "09")
STATE = """() => {
    const shown = window.jupyterapp.shell.currentWidget, content = shown.content;
    const boxes = [...shown.node.querySelectorAll(".js-plotly-plot")].filter(one => one.layout);
    return {
        cells: content.widgets.length,
        heights: boxes.map(one => [
            one.layout.title?.text, one.layout.height, one.getBoundingClientRect().height]),
        sideways: boxes.map(one => one.scrollWidth - one.clientWidth),
        loss: shown.node.querySelector(".live-loss .live-status")?.textContent,
        line: shown.node.querySelector(".live-loss .live-line")?.getAttribute("points"),
    };
}"""
OPEN = """async (path) => {
    const { commands, shell } = window.jupyterapp, before = [...shell.widgets("main")];
    await commands.execute("docmanager:open", { path });
    before.forEach((one) => one.dispose());
}"""
OUTPUTS = """() => window.jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells
    .flatMap(cell => cell.outputs ?? [])"""
STOP = "() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()"
SAVE = "() => window.jupyterapp.shell.currentWidget.context.save()"
GO_TO = "(at) => { window.jupyterapp.shell.currentWidget.content.activeCellIndex = at; }"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def test_a_notebook_without_those_before_it_says_which(world: World, capsys, monkeypatch):
    """A person who opens the second one first, or whose kernel was restarted, is told what is missing."""
    monkeypatch.chdir(world.folder)
    assert main(["run", "empty", "02", "--root", "runs", "--set", "model_name=./tiny-neox"]) == 1
    assert "distances.csv is not in run 'empty'" in (told := capsys.readouterr().err)
    assert "run notebook 01_angular_distance for this run" in told


@pytest.fixture(scope="module")
def opened(chromium, world: World) -> Iterator[tuple[Tab, Run]]:
    """Start `workbench lab` in a folder of one's own data; return a tab with it, and the run."""
    with running_own_lab(world.folder, "second", [*world.settings, *SMALL], world.home) as lab:
        context = chromium.new_context(viewport={"width": 1300, "height": 1100})
        context.set_default_timeout(120_000)
        tab = Tab(context.new_page(), lab.url)
        tab.page.goto(f"{lab.url}/lab?token={lab.token}")
        tab.page.wait_for_function("() => window.jupyterapp?.restored.then(() => true)")
        yield tab, open_run("second", root=world.folder / "runs")
        context.close()


def step(tab: Tab, at: int) -> list[dict]:
    """Press Shift-Enter on a cell; return what was seen until it was done."""
    tab.page.evaluate(GO_TO, at)
    tab.page.keyboard.press("Shift+Enter")
    seen, cell = [], f"window.jupyterapp.shell.currentWidget.content.widgets[{at}]"
    busy = f"() => {cell}.model.type === 'code' && {cell}.model.executionCount === null"
    until = time.monotonic() + 400
    while tab.page.evaluate(busy):
        assert time.monotonic() < until, f"cell {at} does not end"
        seen.append(tab.page.evaluate(STATE))
        tab.page.wait_for_timeout(200)
    tab.page.wait_for_timeout(50)
    return [*seen, tab.page.evaluate(STATE)]


def click_another_block(tab: Tab) -> list[int]:
    """Click a cell of the picker that is not the chosen one; return the layers that the kernel then has."""
    tab.drawn()
    before = json.loads(tab.run("print(list(picker.layers))"))
    start = 0 if before[0] > 0 else 1
    click_cell(tab, start, 2)
    for _ in range(50):
        if (now := json.loads(tab.run("print(list(picker.layers))"))) != before:
            assert now == [start, start + 1]
            return now
        tab.page.wait_for_timeout(100)
    raise AssertionError(f"the click chose nothing else than {before}")


@pytest.mark.browser
@pytest.mark.parametrize("name", BY_HAND)
def test_a_person_goes_through_a_notebook(opened, name: str):
    tab, run = opened
    tab.page.evaluate(OPEN, f"{name}.ipynb")
    tab.ready()
    tab.page.locator(".jp-Notebook .jp-Cell").first.click()
    tab.page.keyboard.press("Escape")
    cells = tab.page.evaluate(STATE)["cells"]
    seen, clicked = [], None
    for at in range(cells):
        seen += step(tab, at)
        if name == "02_pick_blocks" and clicked is None and tab.page.locator(PICKER).count():
            clicked = click_another_block(tab)
    tab.page.evaluate(SAVE)
    shown = tab.page.evaluate(OUTPUTS)
    assert unexpected(shown) == []
    assert tab.page.locator(".Toastify__toast").all_inner_texts() == []  # nobody is asked anything
    assert any(PLOTLY in one.get("data", {}) for one in shown)
    heights = [figure for one in seen for figure in one["heights"]]
    asked: dict[str, set[float]] = {}  # JupyterLab forgets the height when it resizes
    for title, height, _ in heights:
        asked.setdefault(title, set()).update([height] if height else [])
    assert heights and all(drawn > (0 if asked[title] else 200) for title, _, drawn in heights)
    assert {
        (title, drawn)
        for title, _, drawn in heights
        if asked[title] and min(abs(drawn - height) for height in asked[title]) > 2
    } == set()
    assert not any(wide for one in seen for wide in one["sideways"])
    assert tab.errors == []
    assert tab.strangers == []
    if name == "02_pick_blocks":
        assert clicked and run.read_json("selection.json")["layers"] == clicked
    if name in ("00_start_here", "04_healing"):
        assert len({one["loss"] for one in seen} - {None}) >= 2
        assert len({one["line"] for one in seen} - {None}) >= 2
    tab.page.evaluate(STOP)
    assert "copy for the run `second`" in tab.page.evaluate(
        "() => window.jupyterapp.shell.currentWidget.content.model.sharedModel.cells[0].source"
    )


@pytest.mark.browser
def test_the_checkout_stays_as_it_was(opened, root):
    _, run = opened
    for name in BY_HAND:
        assert (run.folder / "lab" / f"{name}.ipynb").is_file()
        assert '"outputs": []' in (root / "notebooks" / f"{name}.ipynb").read_text()


@pytest.fixture(scope="module")
def second_run(world: World) -> Run:
    """Run the notebooks that no person went through, as one types it in the folder of the data."""
    run = open_run("second", root=world.folder / "runs")
    gone_through = by_hand(run)
    left = [name for name in NAMES if name not in gone_through]
    of_left = [one for one in world.settings if one[:2] not in gone_through]
    command = [sys.executable, "-m", "workbench", "run", "second", *left, "--root", "runs"]
    command += [word for setting in of_left for word in ("--set", setting)]
    places = {"PYTHONPATH": str(ROOT), "HOME": str(world.home), "BROWSER_PATH": "none"}
    assert subprocess.run(command, cwd=world.folder, env={**os.environ, **places}).returncode == 0
    return run


def by_hand(run: Run) -> dict[str, Path]:
    """Return the copies in JupyterLab that somebody ran to the end, by number."""
    copies = {path.stem[:2]: path for path in (run.folder / "lab").glob("0[1-9]_*.ipynb")}
    last = {}
    for name, path in copies.items():
        cells = nbformat.read(path, as_version=4).cells
        last[name] = [cell for cell in cells if cell.cell_type == "code" and cell.source][-1]
    return {name: copies[name] for name, cell in last.items() if cell.execution_count}


def executed(run: Run) -> dict[str, nbformat.NotebookNode]:
    copies = {path.stem[:2]: path for path in (run.folder / "notebooks").glob("*.ipynb")}
    both = sorted((by_hand(run) | copies).items())
    return {name: nbformat.read(path, as_version=4) for name, path in both}


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
    figures = {path.name for path in (second_run.folder / "figures").glob("06_*.html")}
    assert {"06_forms_other-sums.html", "06_similarity_other-sums.html"} <= figures
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
