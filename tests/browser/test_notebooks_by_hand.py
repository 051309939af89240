"""Each notebook in JupyterLab from the first cell to the last, as a person does: Shift-Enter, and a click."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from live_lab import PICKER, Tab, click_cell, running_own_lab
from second_setting import make_world, unexpected

from workbench.runs.run import Run, open_run

pytestmark = [pytest.mark.browser, pytest.mark.slow]

#: the demo in 00, as small as it goes; the notebooks after it on the second setting
SMALL = ["00.model_name='demo'", "00.n_story_texts=8", "00.n_story_examples=48", "00.n_items=4"]
NAMES = (
    *("00_start_here", "01_angular_distance", "02_pick_blocks", "03_self_distillation", "04_healing"),
    *("05_evaluation", "06_forgetting"),
)
STATE = """() => {
    const shown = window.jupyterapp.shell.currentWidget, content = shown.content;
    const boxes = [...document.querySelectorAll(".js-plotly-plot")].filter(one => one.layout);
    return {
        cells: content.widgets.length,
        heights: boxes.map(one => [
            one.layout.title?.text, one.layout.height, one.getBoundingClientRect().height]),
        sideways: boxes.map(one => one.scrollWidth - one.clientWidth),
        loss: document.querySelector(".live-loss .live-status")?.textContent,
        line: document.querySelector(".live-loss .live-line")?.getAttribute("points"),
    };
}"""
OUTPUTS = """() => window.jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells
    .flatMap(cell => cell.outputs ?? [])"""
STOP = "() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()"
GO_TO = "(at) => { window.jupyterapp.shell.currentWidget.content.activeCellIndex = at; }"


@pytest.fixture(scope="module")
def opened(chromium, tmp_path_factory) -> Iterator[tuple[Tab, Run, str]]:
    """Start `workbench lab` in a folder of one's own data; return a tab, the run and where notebooks open."""
    world = make_world(tmp_path_factory.mktemp("world"))
    with running_own_lab(world.folder, "second", [*world.settings, *SMALL], world.home) as lab:
        context = chromium.new_context(viewport={"width": 1300, "height": 1100})
        context.set_default_timeout(120_000)
        tab = Tab(context.new_page(), lab.url)
        yield (
            tab,
            open_run("second", root=world.folder / "runs"),
            f"{lab.url}/lab/workspaces/{{0}}/tree/{{0}}.ipynb?token={lab.token}",
        )
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
        tab.page.wait_for_timeout(100)
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


@pytest.mark.parametrize("name", NAMES)
def test_a_person_goes_through_a_notebook(opened, name: str):
    tab, run, address = opened
    tab.page.goto(address.format(name))
    tab.ready()
    tab.page.locator(".jp-Notebook .jp-Cell").first.click()
    tab.page.keyboard.press("Escape")
    cells = tab.page.evaluate(STATE)["cells"]
    seen, clicked = [], None
    for at in range(cells):
        seen += step(tab, at)
        if name == "02_pick_blocks" and clicked is None and tab.page.locator(PICKER).count():
            clicked = click_another_block(tab)
    shown = tab.page.evaluate(OUTPUTS)
    assert unexpected(shown) == []
    assert any("application/vnd.plotly.v1+json" in one.get("data", {}) for one in shown)
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


def test_the_checkout_stays_as_it_was(opened, root):
    _, run, _ = opened
    for name in NAMES:
        assert (run.folder / "lab" / f"{name}.ipynb").is_file()
        assert '"outputs": []' in (root / "notebooks" / f"{name}.ipynb").read_text()
