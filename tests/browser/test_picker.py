"""The picker in a real JupyterLab: clicks, keys, a reload, a second view, and what never happens."""

from __future__ import annotations

import json
import re

import pytest
from live_lab import PICKER

pytestmark = pytest.mark.browser

SETUP = """
from frames import distance_frame, savings_frame
from workbench.widgets.picker import BlockPicker
title = "<img src=x onerror='window.harmed = true'> a title from data"
picker = BlockPicker(distance_frame(16), savings=savings_frame(16), title=title)
heard = []
picker.observe(lambda change: heard.append(change["new"]), "layers")
picker
"""
STATE = "import json; print(json.dumps([picker.start, picker.size, list(picker.layers)]))"
LOOK = """
import threading
calls, cancellations, let_go = [], [], threading.Event()
def slow_look(layers, cancelled):
    calls.append(layers)
    while not let_go.wait(0.02):
        if cancelled():
            cancellations.append(layers)
            return None
    return {"base_loss": 1.0, "loss": 1.5, "prompt": "<b>2+2</b>", "base_text": "4",
            "text": "<script>window.harmed = true</script><img src=x onerror='window.harmed = true'>"}
picker.look_with(slow_look, auto=False)
"""


@pytest.fixture(scope="module")
def opened(lab, new_tab):
    tab = new_tab()
    tab.open(lab.notebook("picker.ipynb", SETUP, "picker"))
    return tab


@pytest.fixture
def tab(opened):
    """A fresh picker in two views; nothing may have left the machine or gone wrong when the test is over."""
    opened.run_all()
    opened.page.wait_for_function(f"() => document.querySelectorAll('{PICKER}').length === 2")
    opened.page.mouse.move(5, 5)
    yield opened
    assert opened.strangers == []
    assert opened.errors == []


def click_cell(tab, at: int, row: int, view: int = 0) -> None:
    """Click a cell by its place among the 16 first layers and 15 sizes."""
    plot = tab.page.locator(f"{PICKER} .bp-plot svg").nth(view)
    box = (
        tab.page.locator(f"{PICKER} .bp-cells")
        .nth(view)
        .evaluate("cells => { const {x, y, width, height} = cells.getBBox(); return {x, y, width, height}; }")
    )
    scale = plot.bounding_box()["width"] / 760
    x = scale * (box["x"] + (at + 0.5) * box["width"] / 16)
    y = scale * (box["y"] + box["height"] - (row + 0.5) * box["height"] / 15)
    plot.click(position={"x": x, "y": y})


def kernel_state(tab) -> list:
    return json.loads(tab.run(STATE))


def says(tab, text: str, view: int = 0) -> None:
    tab.page.locator(f"{PICKER} .bp-readout").nth(view).get_by_text(text, exact=False).first.wait_for()


def test_a_click_chooses_in_the_kernel_and_in_every_view(tab):
    click_cell(tab, 3, 1)
    says(tab, "removes layers 3-4 (start 3, size 2)")
    assert kernel_state(tab) == [3, 2, [3, 4]]
    says(tab, "removes layers 3-4", view=1)
    click_cell(tab, 0, 9, view=1)
    says(tab, "removes layers 0-9")
    assert kernel_state(tab) == [0, 10, list(range(10))]
    tab.run("picker.choose(5, 1)")
    for view in (0, 1):
        says(tab, "removes layer 5 ", view=view)
        assert tab.page.locator(f"{PICKER} .bp-bar").nth(view).get_by_label("start").input_value() == "5"
    assert tab.run("print(heard)") == "[(3, 4), (0, 1, 2, 3, 4, 5, 6, 7, 8, 9), (5,)]"


def test_the_keyboard_does_what_the_mouse_does(tab):
    tab.run("picker.choose(3, 2)")
    says(tab, "removes layers 3-4")
    tab.page.locator(f"{PICKER} .bp-bar button").first.focus()
    for _ in range(2):
        tab.page.keyboard.press("Tab")
    assert tab.page.evaluate("() => document.activeElement.tagName") == "svg"
    active = "() => window.jupyterapp.shell.currentWidget.content.activeCellIndex"
    before = tab.page.evaluate(active)
    for key, expected in (
        ("ArrowRight", "4-5"),
        ("ArrowUp", "4-6"),
        ("End", "13-15"),
        ("ArrowUp", "12-15"),
        ("ArrowRight", "12-15"),
        ("Home", "0-3"),
        ("ArrowDown", "0-2"),
        ("b", "8-10"),
    ):
        tab.page.keyboard.press(key)
        says(tab, f"removes layers {expected}")
    tab.page.keyboard.press("k")
    tab.page.locator(f"{PICKER} .bp-kept td").first.get_by_text("8-10").wait_for()
    assert tab.run("print(picker.kept['removed'].tolist())") == "['8-10']"
    assert tab.page.evaluate(active) == before
    plot = tab.page.locator(f"{PICKER} svg").first
    assert "16 layers, 15 block sizes. Arrow keys choose." in plot.get_attribute("aria-label")
    readout = tab.page.locator(f"{PICKER} .bp-readout").first
    assert readout.get_attribute("aria-live") == "polite"
    assert plot.get_attribute("aria-describedby") == readout.get_attribute("id")


def test_the_fields_follow_and_a_size_that_does_not_fit_moves_the_start(tab):
    tab.run("picker.choose(13, 2); heard.clear()")
    says(tab, "removes layers 13-14")
    size = tab.page.locator(f"{PICKER} .bp-bar").first.get_by_label("size")
    size.fill("5")
    says(tab, "removes layers 11-15")
    assert tab.page.locator(f"{PICKER} .bp-bar").first.get_by_label("start").input_value() == "11"
    size.fill("99")
    size.blur()
    says(tab, "removes layers 1-15")
    assert size.input_value() == "15"
    assert kernel_state(tab)[:2] == [1, 15]
    assert tab.run("print(len(heard))") == "2"


def test_hovering_tells_what_a_block_costs_and_saves(tab):
    tab.page.locator(f"{PICKER} .bp-plot svg").first.hover(position={"x": 300, "y": 330})
    tip = tab.page.locator(f"{PICKER} .bp-tip").first.inner_text()
    block = re.search(r"start (\d+), size (\d+)", tip)
    distance = tab.run(
        "f = distance_frame(16).set_index(['start', 'size'])"
        f".loc[({block[1]}, {block[2]})]; print(f'{{f.distance:.4f}} [{{f.ci_low:.4f}}, {{f.ci_high:.4f}}]')"
    )
    assert f"angular distance {distance}" in tip
    share = 100 * 0.2 * int(block[2]) / (1 + 0.2 * 16)
    assert f"saves {share:.2f} % of the parameters ({1 + 0.2 * (16 - int(block[2])):.2f}M left)" in tip
    assert "of the FLOPs per token" in tip


def test_a_reload_finds_the_choice_in_the_live_kernel(tab):
    click_cell(tab, 6, 3)
    says(tab, "removes layers 6-9")
    tab.run("picker.keep()")
    kernel = "() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.id"
    before = tab.page.evaluate(kernel)
    tab.page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    tab.page.wait_for_function("() => !window.jupyterapp.shell.currentWidget.context.model.dirty")
    tab.page.reload()
    tab.ready()
    tab.drawn()
    assert tab.page.evaluate(kernel) == before
    says(tab, "removes layers 6-9")
    tab.page.locator(f"{PICKER} .bp-kept td").first.get_by_text("6-9").wait_for()
    click_cell(tab, 2, 0)
    says(tab, "removes layer 2 ")
    assert kernel_state(tab) == [2, 1, [2]]


def test_a_look_blocks_nothing_is_cancelled_by_a_choice_and_shows_text_as_text(tab):
    tab.run(LOOK)
    tab.run("picker.choose(3, 2)")
    look = tab.page.locator(f"{PICKER} .bp-look").first
    tab.page.locator(PICKER).first.get_by_role("button", name="Look").click()
    look.get_by_text("looking at the model without 3-4").wait_for()
    assert tab.run("print(40 + 2)") == "42"
    click_cell(tab, 8, 2)
    look.get_by_text("the look at 3-4 was cancelled").wait_for()
    tab.page.keyboard.press("l")
    look.get_by_text("looking at the model without 8-10").wait_for()
    tab.run("let_go.set()")
    look.get_by_text("held-out loss 1.000 → 1.500").wait_for()
    assert tab.run("print(calls, cancellations)") == "[(3, 4), (8, 9, 10)] [(3, 4)]"
    shown = look.locator("pre").nth(1)
    assert shown.inner_text().startswith("<script>window.harmed")
    assert look.locator("pre").first.inner_text() == "4"
    assert look.locator("code").inner_text() == "<b>2+2</b>"
    assert tab.page.evaluate("() => window.harmed") is None
    assert tab.page.locator(f"{PICKER} script, {PICKER} img, {PICKER} b").count() == 0


def test_a_title_from_data_is_text_too(tab):
    title = "<img src=x onerror='window.harmed = true'> a title from data"
    assert tab.page.locator(f"{PICKER} .bp-title").first.inner_text() == title
    assert tab.page.evaluate("() => window.harmed") is None
