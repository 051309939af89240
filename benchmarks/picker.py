"""How fast a click in the block picker answers, and how much the picker sends, beside a plotly FigureWidget.

    python benchmarks/picker.py    # needs a Chrome or Chromium; about a minute

JupyterLab runs on this machine with Chromium in front of it. A click on a cell is timed in the page, from the
event to the first frame that shows the picker's own text (readout), and to the first frame that shows a label
which the kernel sets when it hears of the choice (kernel). The picker holds three measures of every block,
with their intervals; two are drawn.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import ROOT, arguments, run_sections, write_record

sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "browser")]
from live_lab import FLAGS, Lab, Tab, find_chromium, running_lab  # noqa: E402
from playwright.sync_api import Browser, sync_playwright  # noqa: E402

SHAPES = {"demo": 16, "llama-8b": 32, "llama-70b": 80}
CLICKS = 20
SETUP = """
import ipywidgets, json
from frames import distance_frame, savings_frame
from anywidget._util import remove_buffers
label = ipywidgets.Label("none")
label.add_class("heard")
def payload(widget):
    state, _, buffers = remove_buffers(widget.get_state())
    return len(json.dumps(state, default=str)) + sum(map(len, buffers))
"""
PICKER = """
from workbench.widgets.picker import BlockPicker
frame = distance_frame({layers})
damage, other = (frame.rename(columns={{"distance": name}}) for name in ("damage", "value"))
shown = BlockPicker(frame, damage, frames={{"other": other}}, savings=savings_frame({layers}))
shown.observe(lambda change: setattr(label, "value", str(change["new"])), "layers")
display(label, shown)
"""
FIGURE_WIDGET = """
import plotly.graph_objects as go
from workbench.plots.heatmaps import distance_heatmap
figure = distance_heatmap(distance_frame({layers}), mark_best=False)
shown = go.FigureWidget(figure)
shown.data[0].on_click(lambda trace, points, state: setattr(label, "value", str(points.point_inds)))
display(label, shown)
"""
BOX = "node => { const {x, y, width, height} = node.getBoundingClientRect(); return {x, y, width, height}; }"
# resolves when the element's text has changed since the next click and the browser has drawn it
WATCH = """selector => {
    const element = document.querySelector(selector);
    window.timed = new Promise((resolve, reject) => {
        setTimeout(() => reject(new Error("no answer to a click")), 20000);
        let clicked = null;
        const note = () => (clicked = performance.now());
        document.addEventListener("pointerdown", note, { capture: true, once: true });
        const seen = new MutationObserver(() => {
            seen.disconnect();
            requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - clicked)));
        });
        seen.observe(element, { childList: true, characterData: true, subtree: true });
    });
}"""


def cells(tab: Tab, heatmap: str, columns: int, rows: int) -> list[tuple[float, float]]:
    """Return the centres on the page of one cell a click, no two the same in a row."""
    box, before = tab.page.locator(heatmap).first.evaluate(BOX), None
    while box != before:  # until the page has settled
        tab.page.wait_for_timeout(500)
        box, before = tab.page.locator(heatmap).first.evaluate(BOX), box
    places = [((3 * i + 1) % 8, (5 * i + 2) % 7) for i in range(CLICKS)]
    return [
        (box["x"] + (at + 0.5) * box["width"] / columns, box["y"] + (rows - row - 0.5) * box["height"] / rows)
        for at, row in places
    ]


def milliseconds(tab: Tab, places: list[tuple[float, float]], text: str) -> dict[str, Any]:
    """Click cell after cell and time each until the text that answers is drawn."""
    taken = []
    for x, y in places:
        tab.page.mouse.move(x, y)
        tab.page.wait_for_timeout(150)  # a person points before a click; plotly hears no click without it
        tab.page.evaluate(WATCH, text)
        tab.page.mouse.click(x, y)
        taken.append(tab.page.evaluate("() => window.timed"))
        tab.page.wait_for_timeout(100)
    return {"median_ms": statistics.median(taken), "worst_ms": max(taken), "clicks": len(taken)}


def measure(
    lab: Lab,
    browser: Browser,
    name: str,
    code: str,
    heatmap: tuple[str, int, int],
    texts: dict[str, str],
) -> dict[str, Any]:
    """Open a notebook with one widget and measure it; ``heatmap`` is its selector, columns and rows."""
    context = browser.new_context(viewport={"width": 1300, "height": 1100})
    tab = Tab(context.new_page(), lab.url)
    tab.page.goto(lab.notebook(f"{name}.ipynb", SETUP, code))
    tab.ready()
    tab.run_all()
    tab.page.wait_for_selector(heatmap[0], state="attached")
    tab.page.wait_for_timeout(1500)
    places = cells(tab, *heatmap)
    result: dict[str, Any] = {label: milliseconds(tab, places, text) for label, text in texts.items()}
    result["payload_bytes"] = int(tab.run("print(payload(shown))"))
    result["left_the_machine"] = tab.strangers
    context.close()
    return result


def main() -> int:
    """Run the benchmark and write its record."""
    options = arguments(__doc__.splitlines()[0], list(SHAPES)).parse_args()
    own = {"readout": ".bp-now", "kernel": ".heard"}
    with (
        tempfile.TemporaryDirectory() as folder,
        running_lab(Path(folder)) as lab,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        sections = {
            f"picker, {layers} layers": lambda n=layers: measure(
                lab, browser, f"picker{n}", PICKER.format(layers=n), (".bp-cells", n, n - 1), own
            )
            for layers in SHAPES.values()
        }
        sections["FigureWidget, 16 layers"] = lambda: measure(
            lab,
            browser,
            "figure",
            FIGURE_WIDGET.format(layers=16),
            (".nsewdrag", 16, 16),
            {"kernel": ".heard"},
        )
        results, failed = run_sections(sections)
        browser.close()
    path = write_record(
        "picker",
        options.out,
        config={"clicks": CLICKS, "load": os.getloadavg()},
        results=results,
        failed=failed,
    )
    print(json.dumps(results, indent=1))
    print(f"record: {path}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
