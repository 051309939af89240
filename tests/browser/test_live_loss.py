"""The loss of a training moves on the screen of a real JupyterLab, and the saved copy ends with all of it."""

from __future__ import annotations

import json

import nbformat
import numpy as np
import pytest

from workbench.runs.pages import PLOTLY

pytestmark = pytest.mark.browser

# a real training; so small that it has to be slowed down to be looked at
TRAINING = """
import time
import pandas as pd
from tiny import tiny_model, tiny_tokenizer
import workbench as wb

model, tokenizer = tiny_model(), tiny_tokenizer()
rows = pd.DataFrame({"id": range(24), "instruction": [f"How much is {k} and 1?" for k in range(24)]})
rows["reference"] = [f"The answer is {k + 1}." for k in range(24)]
config = wb.HealingConfig(rank=2, batch_size=4, micro_batch_size=4, epochs=4, max_length=64)
live = wb.LiveLoss(every=0.05)
"""
TRAIN = """
for name in ("sft", "distilled"):
    see = live.watch(name)
    def slowly(row):
        see(row)
        time.sleep(0.15)
    out = f"adapters/{name}"
    made = wb.heal(
        model, tokenizer, rows[:20], config=config, held_out=rows[20:], out=out, progress=slowly
    )
    live.add(name, made.log)
"""
STATUS, LINE = ".live-loss .live-status", ".live-loss .live-line"
SEEN = """() => {
    const said = document.querySelector(".live-loss .live-status");
    const lines = [...document.querySelectorAll(".live-loss .live-line")];
    const ends = lines.map(line => line.getAttribute("points").trim().split(" ").length);
    return said && [said.textContent, ends, document.querySelectorAll(".live-held-out").length];
}"""
RUNNING = "() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'busy'"


@pytest.fixture(scope="module")
def watched(lab, new_tab):
    """Run the training in a tab; return the tab and what was on the screen while it went."""
    tab = new_tab()
    tab.page.goto(lab.notebook("live.ipynb", TRAINING, TRAIN))
    tab.ready()
    tab.page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
    tab.page.wait_for_selector(STATUS)
    seen = []
    while tab.page.evaluate(RUNNING):
        seen.append(tab.page.evaluate(SEEN))
        tab.page.wait_for_timeout(60)
    tab.page.wait_for_selector(".js-plotly-plot .main-svg")
    return tab, [one for one in seen if one]


def test_step_and_curve_move_while_it_trains(watched):
    tab, seen = watched
    steps = [int(said.split("step ")[1].split(" of")[0]) for said, *_ in seen if said.startswith("sft: ")]
    assert len(set(steps)) >= 5
    assert steps == sorted(steps)
    points = [ends[0] for said, ends, _ in seen if said.startswith("sft: ")]
    assert points == steps  # a point of the line for each step that is said
    assert any(len(ends) == 2 for _, ends, _ in seen)  # the first one stays while the second one goes
    said = [said for said, *_ in seen if "held-out loss" in said]
    assert said and all(part in said[-1] for part in ("loss ", "tokens/s", " left"))
    assert seen[-1][2] > 0  # a mark for each held-out loss
    assert tab.errors == []
    assert tab.strangers == []


def test_what_stays_on_the_screen_and_in_the_file_is_the_whole_figure(watched, lab):
    tab, _ = watched
    assert tab.page.locator(".live-loss").count() == 0
    assert tab.page.locator(".js-plotly-plot").count() == 1
    drawn = tab.page.locator(".js-plotly-plot .main-svg").first.bounding_box()
    tab.page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    tab.page.wait_for_function("() => !window.jupyterapp.shell.currentWidget.context.model.dirty")
    (output,) = nbformat.read(lab.folder / "live.ipynb", as_version=4).cells[1].outputs
    height = output["data"][PLOTLY]["layout"]["height"]
    assert drawn["height"] == pytest.approx(height, abs=2) and height >= 480  # not squashed
    lines = {trace["name"]: trace for trace in output["data"][PLOTLY]["data"]}
    steps = int(tab.run("print(live.log()['step'].max())"))
    assert {"sft", "distilled"} <= set(lines)
    assert [np.max(_numbers(lines[name]["x"])) for name in ("sft", "distilled")] == [steps] * 2


def _numbers(values):
    """Return a list that plotly may have packed."""
    if not isinstance(values, dict):
        return values
    return json.loads(str(np.frombuffer(_bytes(values["bdata"]), dtype=values["dtype"]).tolist()))


def _bytes(text: str) -> bytes:
    import base64

    return base64.b64decode(text)
