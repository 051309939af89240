"""The picker in a real JupyterLab: clicks, drags, keys, cells run after it, a reload, and no kernel."""

from __future__ import annotations

import json
import re

import pytest
from live_lab import PICKER, click_cell, place_of

pytestmark = pytest.mark.browser

SETUP = """
from frames import damage_frame, distance_frame, savings_frame
from workbench.runs.run import open_run
from workbench.widgets.picker import BlockPicker
title = "<img src=x onerror='window.harmed = true'> a title from data"
frame = distance_frame(16)
damage = damage_frame(frame, sizes=(1, 2, 3, 4))
run = open_run("mine", root="runs")
picker = BlockPicker(
    frame, damage, savings=savings_frame(16), presets={"IteRABRe": (3, 9)}, run=run, title=title, size=3
)
heard = []
picker.observe(lambda change: heard.append(change["new"]), "layers")
picker
"""
#: two heatmaps in each of two views
DRAWN = f"() => document.querySelectorAll('{PICKER} .bp-cells').length === 4"
NEXT = "print('settled on', picker.settle())"
STILLS = "[...document.querySelectorAll('figure[class^=bp-still] img')]"
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
picker.look_with(slow_look)
"""

#: writes down what the page says to the server, and when it hears of a changed state
OVERHEAR = """() => {
    window.talk = [];
    const text = (data) => (typeof data === "string" ? data : new TextDecoder().decode(data));
    const note = (which, words) => (data) =>
        words.forEach((one) => text(data).includes(`"${one}"`) && talk.push(`${which} ${one}`));
    const [says, hears] = [note("says", ["_chosen", "ping"]), note("hears", ["echo_update", "update"])];
    const send = WebSocket.prototype.send;
    WebSocket.prototype.send = function (data) {
        if (!this.overheard) this.addEventListener("message", ({ data }) => hears(data));
        this.overheard = true;
        says(data);
        return send.call(this, data);
    };
}"""


@pytest.fixture(scope="module")
def opened(lab, new_tab):
    tab = new_tab()
    tab.open(lab.notebook("picker.ipynb", SETUP, "picker", NEXT))
    return tab


@pytest.fixture
def tab(opened):
    """A fresh picker in two views; nothing may have left the machine or gone wrong when the test is over."""
    opened.page.set_viewport_size({"width": 1300, "height": 1100})
    opened.page.evaluate(
        """async () => {
            const notebook = window.jupyterapp.shell.currentWidget.content;
            for (const place of [0, 1]) {
                notebook.activeCellIndex = place;
                notebook.deselectAll();
                await window.jupyterapp.commands.execute("notebook:run-cell");
            }
        }"""
    )
    opened.page.wait_for_function(DRAWN)
    opened.page.mouse.move(5, 5)
    yield opened
    assert opened.strangers == []
    assert opened.errors == []


def box_of(tab, layer: int) -> tuple[float, float]:
    box = tab.page.locator(f"{PICKER} .bp-box").nth(layer).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def drag(tab, first: int, last: int) -> None:
    tab.page.locator(f"{PICKER} .bp-strip").first.scroll_into_view_if_needed()
    tab.page.mouse.move(*box_of(tab, first))
    tab.page.mouse.down()
    tab.page.mouse.move(*box_of(tab, last), steps=4)
    tab.page.mouse.up()


def hears(tab, state: list) -> None:
    """Wait until the kernel has a choice: a change of the page may arrive after what is run next."""
    for _ in range(50):
        found = json.loads(tab.run(STATE))
        if found == state:
            return
        tab.page.wait_for_timeout(100)
    assert found == state


def says(tab, text: str, view: int = 0, where: str = ".bp-now") -> None:
    tab.page.locator(f"{PICKER} {where}").nth(view).get_by_text(text, exact=False).first.wait_for()


def test_a_click_on_either_heatmap_chooses_in_the_kernel_and_in_every_view(tab):
    click_cell(tab, 3, 2)
    says(tab, "removes layers 3-4 (start 3, size 2)")
    hears(tab, [3, 2, [3, 4]])
    says(tab, "removes layers 3-4", view=1)
    click_cell(tab, 5, 4, view=1, heatmap=1)
    says(tab, "removes layers 5-8")
    damage = tab.run("f = damage.set_index(['start', 'size']).damage; print(f'{f.loc[(5, 4)]:.3f}')")
    says(tab, f"damage (nats per token) {damage.replace('-', '−')}")
    tab.run("picker.choose(5, 1)")
    for view in (0, 1):
        says(tab, "removes layer 5 ", view=view)
        assert tab.page.locator(f"{PICKER} .bp-bar").nth(view).get_by_label("start").input_value() == "5"
    assert tab.run("print(heard)") == "[(3, 4), (5, 6, 7, 8), (5,)]"


def test_the_page_speaks_again_when_the_kernel_begins_so_that_its_answer_does_not_wait_for_a_packet(tab):
    tab.page.wait_for_timeout(600)  # what was asked of a picker just drawn is answered
    tab.page.evaluate(OVERHEAR)
    heard = []
    for start in (3, 5, 7, 9):  # on a busy machine both answers may lie there before the page reads the first
        tab.page.evaluate("() => (window.talk.length = 0)")
        click_cell(tab, start, 2)
        hears(tab, [start, 2, [start, start + 1]])
        tab.page.wait_for_timeout(600)
        heard.append(tab.page.evaluate("() => window.talk")[:2])
    assert ["says _chosen", "says ping"] in heard, heard


def test_a_click_stands_when_the_next_cell_is_run_and_use_writes_it(tab):
    click_cell(tab, 9, 2)
    says(tab, "removes layers 9-10")
    tab.page.keyboard.press("u")
    says(tab, "In use: layers 9-10, written to selection.json", where=".bp-used")
    click_cell(tab, 2, 3)
    says(tab, "removes layers 2-4")
    says(tab, "In use: layers 9-10", where=".bp-used")
    tab.page.evaluate("() => (window.jupyterapp.shell.currentWidget.content.activeCellIndex = 2)")
    tab.page.locator(".jp-Notebook-cell").nth(2).locator(".cm-content").click()
    tab.page.keyboard.press("Shift+Enter")
    tab.page.get_by_text("settled on (9, 10)").wait_for()
    says(tab, "removes layers 2-4")
    assert tab.run("print(run.read_json('selection.json')['layers'])") == "[9, 10]"
    assert "**Layers 9-10** are used" in tab.run("print(picker.reading())")


def test_the_layers_can_be_dragged_clicked_undone_and_taken_from_ready_choices(tab):
    drag(tab, 3, 6)
    says(tab, "removes layers 3-6 (start 3, size 4)")
    drag(tab, 9, 9)
    says(tab, "removes layers 3-6,9 (5 layers, no block of the heatmap)")
    drag(tab, 4, 4)
    says(tab, "removes layers 3,5-6,9")
    hears(tab, [None, 4, [3, 5, 6, 9]])
    gone = tab.page.locator(f"{PICKER} .bp-strip").nth(1).locator("[aria-checked=true]")
    said = gone.evaluate_all("boxes => boxes.map((box) => box.ariaLabel)")
    assert [one.split(",")[0] for one in said] == [f"layer {layer}" for layer in (3, 5, 6, 9)]
    alone = tab.run("f = frame.set_index(['start', 'size']).distance; print(f'{f.loc[(3, 1)]:.4f}')")
    assert f"angular distance {alone}" in said[0] and "damage (nats per token) " in said[0]
    tab.page.keyboard.press("Control+z")
    says(tab, "removes layers 3-6,9")
    tab.page.locator(f"{PICKER} .bp-bar").first.get_by_role("button", name="Undo").click()
    says(tab, "removes layers 3-6 (start 3")
    tab.page.keyboard.press("Control+Shift+z")
    says(tab, "removes layers 3-6,9")
    ready = tab.page.locator(f"{PICKER}").first.get_by_label("ready choices")
    ready.select_option("IteRABRe: 3,9")
    says(tab, "removes layers 3,9 ")
    ready.select_option("deepest (keeping the last)")
    says(tab, "removes layers 13-14")
    best = tab.run("print(damage.query('size == 4').sort_values('damage').start.iloc[0])")
    table = tab.page.locator(f"{PICKER} .bp-body").first
    table.locator("tr", has=tab.page.get_by_text(re.compile("^4$"))).locator("td").nth(2).locator(
        "button"
    ).click()
    says(tab, f"(start {best}, size 4)")


def test_the_keyboard_does_what_the_mouse_does(tab):
    tab.run("picker.choose(3, 2)")
    says(tab, "removes layers 3-4")
    assert tab.page.get_by_role("group", name="a title from data").count() == 2  # what it is called aloud
    tab.page.locator(f"{PICKER} svg").first.focus()
    active = "() => window.jupyterapp.shell.currentWidget.content.activeCellIndex"
    before = tab.page.evaluate(active)
    for key, expected in (
        ("ArrowRight", "4-5"),
        ("ArrowUp", "4-6"),
        ("End", "13-15"),
        ("ArrowDown", "13-14"),
        ("Home", "0-1"),
        ("Shift+ArrowRight", "5-6"),
        ("ArrowUp", "5-7"),
        ("b", "8-10"),
    ):
        tab.page.keyboard.press(key)
        says(tab, f"removes layers {expected}")
    tab.page.keyboard.press("End")
    tab.page.keyboard.press("ArrowUp")
    says(tab, "4 layers from 13 on do not fit: the model ends at layer 15", where=".bp-why")
    hears(tab, [13, 3, [13, 14, 15]])
    tab.page.keyboard.press("k")
    tab.page.locator(f"{PICKER} .bp-body").nth(1).get_by_text("13-15").wait_for()
    assert tab.run("print(picker.kept['removed'].tolist())") == "['13-15']"
    tab.page.locator(f"{PICKER} .bp-box").nth(13).focus()
    for key in ("ArrowLeft", "Space"):
        tab.page.keyboard.press(key)
    says(tab, "removes layers 12-15")
    assert tab.page.evaluate(active) == before
    plot = tab.page.locator(f"{PICKER} svg").first
    assert "16 layers, 15 block sizes. Arrow keys choose." in plot.get_attribute("aria-label")
    readout = tab.page.locator(f"{PICKER} .bp-now").first
    assert readout.get_attribute("aria-live") == "polite"
    assert plot.get_attribute("aria-describedby") == readout.get_attribute("id")


def test_what_is_out_of_range_is_refused_in_words_and_nothing_moves(tab):
    tab.run("picker.choose(13, 2); heard.clear()")
    says(tab, "removes layers 13-14")
    bar = tab.page.locator(f"{PICKER} .bp-bar").first
    for name, value, words in (
        ("size", "99", "no block of size 99: sizes are 1-15"),
        ("size", "5", "size 5 from layer 13 on does not fit: the last start is 11"),
        ("size", "2.5", "size must be a whole number, got 2.5"),
        ("start", "-1", "no layer -1: the layers are 0-15"),
        ("layers", "3,x", "layers must look like 24-25 or 3,9-10, got 3,x"),
        ("layers", "0-15", "not all layers can go: something has to stay"),
    ):
        field = bar.locator(f"input[name={name}]")
        field.fill(value)
        field.press("Enter")
        says(tab, words, where=".bp-why")
        assert bar.locator("input[name=size]").input_value() == "2"
    start = bar.locator("input[name=start]")
    start.press_sequentially("")
    start.fill("")
    start.press_sequentially("12")
    assert tab.run("print(heard)") == "[]"
    start.press("Enter")
    says(tab, "removes layers 12-13")
    assert tab.run("print(heard)") == "[(12, 13)]"


def test_the_pointer_is_followed_in_both_heatmaps_without_covering_them(tab):
    page = tab.page
    before = page.locator(f"{PICKER}").first.bounding_box()["height"]
    page.mouse.move(*place_of(tab, 6, 3))
    under = page.locator(f"{PICKER} .bp-under").first
    distance = tab.run("f = frame.set_index(['start', 'size']).distance; print(f'{f.loc[(6, 3)]:.4f}')")
    assert f"layers 6-8 (start 6, size 3) · angular distance {distance}" in under.inner_text()
    marks = page.locator(f"{PICKER}").first.locator("g[visibility=visible] > .bp-hover.bp-inner")
    assert marks.count() == 2
    assert page.locator(f"{PICKER}").first.locator(".bp-pointed").count() == 3
    maps = [page.locator(f"{PICKER} svg").nth(i).bounding_box() for i in (0, 1)]
    assert maps[0]["y"] == maps[1]["y"]
    assert under.bounding_box()["y"] >= maps[0]["y"] + maps[0]["height"]
    assert page.locator(f"{PICKER}").first.bounding_box()["height"] == before


def test_pointer_and_choice_stand_out_from_every_colour(tab):
    tab.page.mouse.move(*place_of(tab, 6, 3))
    least = tab.page.locator(PICKER).first.evaluate(
        """root => {
            const light = (colour) => {
                const [r, g, b] = colour.match(/\\d+/g).map((one) => one / 255).map(
                    (one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const contrast = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            const cells = [...root.querySelectorAll(".bp-cells path[fill]")].map(
                (one) => light(one.getAttribute("fill")));
            return [".bp-hover", ".bp-chosen"].map((kind) => {
                const strokes = [...root.querySelectorAll(kind)].map((one) => getComputedStyle(one).stroke)
                    .filter((one) => one !== "none").map(light);
                const most = (cell) => Math.max(...strokes.map((one) => contrast(one, cell)));
                return Math.min(...cells.map(most));
            });
        }"""
    )
    assert min(least) >= 3


def test_a_look_blocks_nothing_is_cancelled_and_shows_text_as_text(tab):
    tab.run(LOOK)
    tab.run("picker.choose(3, 2)")
    says(tab, "removes layers 3-4")
    look = tab.page.locator(f"{PICKER} .bp-body").nth(2)
    bar = tab.page.locator(f"{PICKER} .bp-bar").first
    height = tab.page.locator(PICKER).first.bounding_box()["height"]
    bar.get_by_role("button", name="Look").click()
    look.get_by_text("looking at the model without 3-4").wait_for()
    assert tab.run("print(40 + 2)") == "42"
    click_cell(tab, 8, 3)
    look.get_by_text("the look at 3-4 was cancelled").wait_for()
    tab.page.keyboard.press("l")
    look.get_by_text("looking at the model without 8-10").wait_for()
    bar.get_by_role("button", name="Cancel").click()
    look.get_by_text("the look at 8-10 was cancelled").wait_for()
    bar.get_by_role("button", name="Look").click()
    look.get_by_text("looking at the model without 8-10").wait_for()
    tab.run("let_go.set()")
    look.get_by_text("held-out loss 1.000 → 1.500").wait_for()
    assert tab.run("print(calls, cancellations)") == "[(3, 4), (8, 9, 10), (8, 9, 10)] [(3, 4), (8, 9, 10)]"
    shown = look.locator("pre").nth(1)
    assert shown.inner_text().startswith("<script>window.harmed")
    assert look.locator("code").inner_text() == "<b>2+2</b>"
    assert tab.page.locator(f"{PICKER} .bp-title").first.inner_text().startswith("<img src=x")
    assert tab.page.evaluate("() => window.harmed") is None
    assert tab.page.locator(f"{PICKER} script, {PICKER} img, {PICKER} b").count() == 0
    assert tab.page.locator(PICKER).first.bounding_box()["height"] == height


@pytest.mark.parametrize(("width", "beside"), [(1300, True), (600, False)])
def test_it_fits_a_narrow_window_with_text_one_can_read(tab, width, beside):
    tab.page.set_viewport_size({"width": width, "height": 1100})
    tab.page.evaluate("() => window.jupyterapp.shell.collapseLeft()")
    tab.run("picker.keep()")
    tab.page.locator(f"{PICKER} .bp-body td button[aria-label^=drop]").first.wait_for()
    tab.page.wait_for_timeout(300)
    found = tab.page.locator(PICKER).first.evaluate(
        """root => {
            const frame = root.getBoundingClientRect();
            const inside = (node) => node.getBoundingClientRect().right <= frame.right + 1;
            const parts = [...root.querySelectorAll("svg, .bp-bar *, .bp-foot *, .bp-box-of, .bp-strip")];
            const texts = [...root.querySelectorAll("svg text")];
            const kinds = "button, select, input[type=text], .bp-auto, summary, .bp-strip";
            const targets = [...root.querySelectorAll(kinds)].filter((one) => one.offsetParent)
                .map((one) => [one.getBoundingClientRect(), one.outerHTML]);
            const [a, b] = [...root.querySelectorAll("svg")].map((svg) => svg.getBoundingClientRect());
            return {
                inside: parts.every(inside),
                beside: a.top === b.top,
                small: targets.filter(([box]) => box.height < 24 || box.width < 24).map(([, text]) => text),
                least: Math.min(...texts.map((one) => one.getBoundingClientRect().height)),
            };
        }"""
    )
    assert found["inside"]
    assert found["small"] == []  # a target of 24 px can be met by a finger
    assert found["beside"] == beside
    assert found["least"] > 10


def test_a_reload_finds_the_choice_in_the_live_kernel(tab):
    click_cell(tab, 6, 4)
    says(tab, "removes layers 6-9")
    hears(tab, [6, 4, [6, 7, 8, 9]])  # else the choice before it may be what is kept
    tab.run("picker.keep()")
    tab.page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    tab.page.wait_for_function("() => !window.jupyterapp.shell.currentWidget.context.model.dirty")
    tab.page.reload()
    tab.ready()
    tab.page.wait_for_function(DRAWN)  # both views: one that is drawn later moves the other
    for view in (0, 1):
        says(tab, "removes layers 6-9", view=view)
    tab.page.locator(f"{PICKER} .bp-body").nth(1).get_by_text("6-9").wait_for()
    click_cell(tab, 2, 1)
    says(tab, "removes layer 2 ")
    hears(tab, [2, 1, [2]])


def test_a_busy_kernel_and_none_at_all_are_shown(tab):
    # a cell that runs is no hindrance where the kernel hears widgets beside it, so the answer itself is late
    tab.run("import time; do = picker._do; picker._do = lambda content: (time.sleep(2), do(content))[1]")
    click_cell(tab, 3, 2)
    tab.page.keyboard.press("k")
    status = tab.page.locator(f"{PICKER} .bp-status").first
    status.get_by_text("Kernel busy, or gone; waiting: keep").wait_for()
    tab.page.locator(f"{PICKER} .bp-body").nth(1).get_by_text("3-4").wait_for()
    tab.page.wait_for_function(f"() => document.querySelector('{PICKER} .bp-status').textContent === ''")
    tab.page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    status.get_by_text("No kernel").wait_for()
    tab.page.keyboard.press("l")
    says(tab, "nothing to look with", where=".bp-why")
    tab.page.keyboard.press("k")
    status.get_by_text("No kernel, not heard: keep. Run the picker's cell again.").wait_for()


def test_opened_again_without_its_kernel_the_notebook_shows_the_picture_of_the_last_choice(tab):
    pictures = tab.page.locator("figure[class^=bp-still]")
    click_cell(tab, 5, 4)
    says(tab, "removes layers 5-8")
    tab.page.wait_for_function(f"() => ({STILLS}).every((one) => one.alt === 'removes 5-8 of 16 layers')")
    assert pictures.count() == 2 and not any(one.is_visible() for one in pictures.all())
    tab.page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    tab.page.wait_for_function("() => !window.jupyterapp.shell.currentWidget.context.model.dirty")
    tab.page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    tab.page.reload()
    tab.ready()
    lost = tab.page.get_by_text("model not found")
    lost.first.wait_for(state="attached")
    assert not any(one.is_visible() for one in lost.all())
    for one in pictures.all():
        one.scroll_into_view_if_needed()
        assert one.is_visible() and one.locator("img").evaluate("image => image.naturalWidth > 500")
    tab.errors.clear()
