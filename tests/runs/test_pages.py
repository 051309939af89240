"""Executed notebooks as pages: live figures, working links, and nothing asked from the network."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import plotly.graph_objects as go
import pytest
from live_lab import FLAGS, find_chromium

from workbench.plots.style import new_figure
from workbench.runs.pages import (
    PLOTLY,
    SCRIPT,
    WIDGET,
    _with_drawn_formulas,
    add_pictures,
    drop_dead_widgets,
    write_page,
)

FIGURE = new_figure("A bar <script>", go.Bar(x=["<b>a</b>", "b"], y=[1, 2]))
#: how wide the figure is drawn, by how much its place scrolls sideways, the size of its letters
WIDE = """() => {
    const [drawn, place] = [".main-svg", ".jp-OutputArea-output"].map((one) => document.querySelector(one));
    const letters = parseFloat(getComputedStyle(drawn.querySelector(".xtick text")).fontSize);
    return [Math.round(drawn.getBoundingClientRect().width), place.scrollWidth - place.clientWidth, letters];
}"""
PROSE = "[next](01_next.ipynb) [part](01_next.ipynb#part) [far](https://example.org/a.ipynb) costs $1 or $2"


def notebook(*bundles: dict) -> nbformat.NotebookNode:
    """Return a notebook of prose and one cell with these outputs."""
    new = nbformat.v4
    shown = [new.new_output("display_data", data=bundle) for bundle in bundles]
    code = new.new_code_cell(
        "'<a href=\"own.ipynb\">'", outputs=[*shown, new.new_output("stream", text="said")]
    )
    return new.new_notebook(cells=[new.new_markdown_cell(PROSE), code])


def figure() -> dict:
    return {PLOTLY: json.loads(FIGURE.to_json()), "text/html": "old"}


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "00_first.html"
    whole = notebook(figure())
    before = nbformat.writes(whole)
    write_page(whole, path)
    assert nbformat.writes(whole) == before
    return path


def test_the_page_loads_plotly_from_beside_it_and_nothing_else(page: Path):
    html = page.read_text()
    loaded = re.findall(r"<(?:script|link|img)[^>]*?(?:src|href)=[\"']([^\"']+)", html)
    assert loaded == [SCRIPT]
    assert "plotly.js v" in (page.parent / SCRIPT).read_text()[:500]
    assert len(html) < 1_000_000
    assert html.count("Plotly.newPlot(") == 1
    assert "A bar <script>" not in html
    assert {path.name for path in page.parent.iterdir()} == {page.name, SCRIPT}


def test_links_lead_to_pages(page: Path):
    html = page.read_text()
    assert 'href="01_next.html"' in html
    assert 'href="01_next.html#part"' in html
    assert 'href="https://example.org/a.ipynb"' in html
    assert "own.ipynb" in html


@pytest.mark.browser
def test_the_figure_is_drawn_with_no_network(page: Path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = find_chromium()
    if path is None:
        pytest.skip("no Chrome or Chromium on this machine; plotly_get_chrome installs one")
    asked: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=FLAGS)
        tab = browser.new_page()
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page.as_uri())
        tab.wait_for_selector(".main-svg")
        wide = []
        for width in (1400, 980, 700):
            tab.set_viewport_size({"width": width, "height": 900})
            tab.wait_for_timeout(400)
            wide.append(tab.evaluate(WIDE))
        browser.close()
    assert wide[0] == [860, 0, 14] and 640 < wide[2][0] < wide[1][0] < 860, wide
    assert all(one[1:] == [0, 14] for one in wide), wide  # nothing scrolls sideways, no letter shrinks
    assert page.with_name(SCRIPT).as_uri() in asked
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked), asked


def test_what_needs_a_kernel_is_taken_out():
    bar = {WIDGET: {"model_id": "1"}, "text/plain": "HBox"}
    html = {"text/html": '<div class="workbench-bar">3 of 4</div>'}
    both = {WIDGET: {"model_id": "2"}, "text/plain": "Figure", PLOTLY: {}}
    whole = notebook(bar, html, both)
    drop_dead_widgets(whole)
    first, second = whole.cells[1].outputs
    assert set(first["data"]) == {"text/plain", PLOTLY}
    assert second.text == "said"


def test_every_figure_gets_a_picture_once():
    from workbench.runs.figures import browser_found

    whole = notebook(figure(), {"text/plain": "3"})
    assert add_pictures(whole) == int(browser_found())
    assert ("image/png" in whole.cells[1].outputs[0]["data"]) == browser_found()
    assert add_pictures(whole) == 0


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("it is $a_1$ here", 1),
        ("$$\\frac{1}{\\pi}\n x$$ and $y$", 2),
        ("it costs $5 and $6 more", 0),
        ("5$ or 6$", 0),
        (r"an escaped \$a\$", 0),
        ("no formula", 0),
    ],
)
def test_formulas_are_drawn_without_a_script_and_prices_are_left(text, drawn):
    assert _with_drawn_formulas(text).count("<math") == drawn
