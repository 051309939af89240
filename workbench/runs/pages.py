"""Executed notebooks that show their figures anywhere: with a PNG beside each, and as an HTML page."""

from __future__ import annotations

import base64
import copy
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from workbench.bars import BAR
from workbench.runs.files import write_text_atomic

PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
#: plotly itself, one file that all pages and figures of a run share
SCRIPT = "plotly.min.js"
#: of a figure without a width of its own: as wide as its place, and neither stretched nor squashed
WIDTH = "clamp(560px, 100%, 860px)"

# $$a block$$ or $inline$; "$5 and $6" is none, since a formula ends right before its sign
_FORMULA = re.compile(
    r"\$\$(?P<block>.+?)\$\$|(?<![\\\w$])\$(?P<inline>[^\s$](?:[^$\n]*[^\s$\\])?)\$(?![\w$])", re.DOTALL
)
# a link to a notebook beside this one
_LINK = re.compile(r'(<a href="[^":/]+)\.ipynb')


def drop_dead_widgets(notebook: NotebookNode) -> None:
    """Take out what only a running kernel can show: progress bars whole, of other widgets the live part."""
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if not _only_a_widget(output)]
    for bundle in _bundles(notebook):
        bundle.pop(WIDGET, None)


def add_pictures(notebook: NotebookNode) -> int:
    """Put a PNG beside every plotly figure among the outputs, for viewers that do not draw plotly.

    Needs a Chrome or Chromium; without one the notebook stays as it is.

    Returns:
        How many pictures were added.
    """
    import plotly.graph_objects as go

    from workbench.runs.figures import browser_found, save_figure

    bundles = [bundle for bundle in _bundles(notebook) if PLOTLY in bundle and "image/png" not in bundle]
    if not bundles or not browser_found():
        return 0
    with tempfile.TemporaryDirectory() as folder:
        for bundle in bundles:
            figure = go.Figure(_drawing(bundle), skip_invalid=True)
            (picture,) = save_figure(figure, Path(folder) / "picture.png", scale=1.5)
            bundle["image/png"] = base64.b64encode(picture.read_bytes()).decode("ascii")
    return len(bundles)


def write_page(notebook: NotebookNode, path: Path, *, script: Path | None = None) -> None:
    """Write an executed notebook as an HTML page that asks the network for nothing.

    Its figures are live: plotly lies in one file that pages and figures share. Links to other notebooks lead
    to their pages.

    Args:
        notebook: executed; it stays as it is.
        path: of the page.
        script: where plotly lies, or is to be written; None means beside the page.
    """
    from jinja2 import FileSystemLoader
    from nbconvert import HTMLExporter

    from workbench.runs.figures import shared_script

    page = copy.deepcopy(notebook)
    for bundle in _bundles(page):
        if PLOTLY in bundle:
            html = figure_html(_drawing(bundle), False)
            bundle.clear()
            bundle["text/html"] = html
    here = FileSystemLoader(Path(__file__).parent)
    exporter = HTMLExporter(template_file="page.html.j2", extra_loaders=[here])
    for cell in page.cells:
        if cell.cell_type == "markdown":
            cell.source = _with_drawn_formulas(cell.source)
    source = shared_script(script or path.with_name(SCRIPT), path)
    resources = {"metadata": {"name": path.stem}, "plotly_script": source}
    html, _ = exporter.from_notebook_node(page, resources=resources)
    write_text_atomic(path, _LINK.sub(r"\1.html", html))


def figure_html(figure: dict[str, Any], script: str | bool) -> str:
    """Return a figure (which changes) as HTML, as wide as its place unless it names a width of its own.

    Args:
        figure: ``data`` and ``layout``.
        script: address of plotly, for a whole page; False for a part of one that loads it.
    """
    import plotly.io as pio

    if "width" not in figure["layout"]:
        figure["layout"].get("template", {}).get("layout", {}).pop("width", None)
    shown = {"include_plotlyjs": script, "full_html": bool(script), "default_width": WIDTH}
    return str(pio.to_html(figure, validate=False, **shown))


def _with_drawn_formulas(markdown: str) -> str:
    """Return Markdown with its LaTeX formulas as MathML, which browsers draw without a script."""
    from latex2mathml.converter import convert

    def drawn(found: re.Match[str]) -> str:
        return convert(found["block"] or found["inline"], display="block" if found["block"] else "inline")

    return _FORMULA.sub(drawn, markdown)


def _only_a_widget(output: NotebookNode) -> bool:
    data = output.get("data", {})
    is_bar = f'class="{BAR}"' in data.get("text/html", "")
    return is_bar or (WIDGET in data and set(data) <= {WIDGET, "text/plain"})


def _bundles(notebook: NotebookNode) -> Iterator[dict[str, Any]]:
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if "data" in output:
                yield output["data"]


def _drawing(bundle: dict[str, Any]) -> dict[str, Any]:
    """Return the figure of an output as plain dicts (notebook nodes confuse plotly's validators)."""
    figure = json.loads(json.dumps(bundle[PLOTLY]))
    return {key: figure[key] for key in ("data", "layout") if key in figure}
