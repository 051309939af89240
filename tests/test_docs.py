"""The documentation site: built from what the checkout holds, and opened from disk without a network."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import nbformat
import plotly.graph_objects as go
import pytest
from mkdocs.config import load_config
from mkdocs.structure.files import Files

import workbench
from workbench.runs.pages import PLOTLY, SCRIPT, write_page

PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture(scope="module")
def hooks(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", root / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(root: Path, runs: Path, out: Path) -> None:
    """Build the site with warnings as errors."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    variables = os.environ | {"WORKBENCH_RUNS": str(runs), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=root, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


@pytest.fixture(scope="module")
def site(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a site built where the first notebook was executed."""
    folder = tmp_path_factory.mktemp("full")
    notebooks = folder / "runs" / "demo" / "notebooks"
    notebooks.mkdir(parents=True)
    drawing = json.loads(go.Figure(go.Bar(y=[1, 2])).to_json())
    shown = nbformat.v4.new_output("display_data", {PLOTLY: drawing, "image/png": PICTURE})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("figure", outputs=[shown])])
    nbformat.write(notebook, notebooks / "00_start_here.ipynb")
    write_page(notebook, notebooks / "00_start_here.html", script=notebooks.parent / SCRIPT)
    build(root, folder / "runs", folder / "site")
    return folder / "site"


class Page(HTMLParser):
    """What a page fetches when it is opened, what it links to, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.fetched: list[str] = []
        self.linked: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self.fetched += [values["src"]] if "src" in values else []
        if "href" in values:
            (self.fetched if tag == "link" else self.linked).append(values["href"])


@cache
def pages(site: Path) -> list[Page]:
    """Return the pages of a site; 404.html, which only a server shows, is none of them."""
    return [Page(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"]


def test_without_executed_notebooks_the_site_says_what_is_missing(hooks, root, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path))
    caplog.set_level("INFO", "mkdocs.hooks.pages")
    config = load_config(str(root / "mkdocs.yml"))
    config.plugins._current_plugin = "hooks"  # as in a build
    files = hooks.on_files(Files([]), config)
    assert caplog.text.count("run `make demo`, then `make docs`") == 1
    text = files.get_file_from_path("notebooks.md").content_string
    assert "not executed in this checkout" in text
    assert all(f"{{#{path.stem}}}" in text for path in (root / "notebooks").glob("[0-9]*.ipynb"))
    assert not [file for file in files if file.src_uri.startswith("notebooks/")]


def test_executed_notebooks_are_there_with_their_pictures(site, root):
    text = (site / "notebooks.html").read_text()
    assert "not executed in this checkout" not in text
    assert 'href="notebooks/00_start_here.html"' in text and 'src="notebooks/00_start_here-1.png"' in text
    assert (site / "notebooks" / "00_start_here-1.png").read_bytes() == base64.b64decode(PICTURE)
    assert "Plotly.newPlot" in (site / "notebooks" / "00_start_here.html").read_text()
    assert all(f'id="{path.stem}"' in text for path in (root / "notebooks").glob("[0-9]*.ipynb"))


def test_no_page_fetches_a_script_a_font_or_a_style_from_the_network(site):
    assert len(pages(site)) > 20
    for page in pages(site):
        away = [url for url in page.fetched if re.match(r"(https?:)?//", url)]
        assert not away, f"{page.path.name} fetches {away}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", sheet.read_text()), sheet.name


def test_every_link_inside_the_site_leads_somewhere(site):
    known = {page.path: page.anchors for page in pages(site)}
    for page in pages(site):
        if page.path.parent.name == "notebooks":
            continue
        for url in page.fetched + page.linked:
            parts = urlsplit(url)
            if parts.scheme in ("http", "https", "data"):
                continue
            target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
            assert target.exists(), f"{page.path.name} leads to {url}"
            assert not parts.fragment or target not in known or unquote(parts.fragment) in known[target], url


def test_the_home_page_is_readme_with_its_picture_and_its_links(site, root):
    page = Page(site / "index.html")
    assert "data/demo/pictures/distance_and_damage.png" in page.fetched
    assert {"changelog.html", "contributing.html", "records.html", "LICENSE"} <= set(page.linked)
    assert "notebooks.html#00_start_here" in page.linked
    assert (site / "LICENSE").read_bytes() == (root / "LICENSE").read_bytes()


def test_every_public_name_is_on_the_page_of_its_room(site):
    anchors = {page.path.stem: page.anchors for page in pages(site / "api")}
    for module, names in workbench._PUBLIC.items():
        missing = {f"workbench.{module}.{name}" for name in names.split()} - anchors[module.partition(".")[0]]
        assert not missing


def test_the_page_of_a_room_has_its_map(site, root):
    for room in (path.parent for path in (root / "workbench").glob("*/__init__.py")):
        text = (site / "api" / f"{room.name}.html").read_text()
        first = re.match(r'"""(.*?)[.\n]', (room / "__init__.py").read_text()).group(1)
        assert first.split("'")[0] in text


def test_a_new_room_has_a_page_by_itself(hooks, tmp_path, monkeypatch):
    room = tmp_path / "workbench" / "recovery"
    room.mkdir(parents=True)
    (room / "__init__.py").touch()
    public = workbench._PUBLIC | {"recovery.loss": "recovery_loss"}
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    assert "recovery" in hooks.rooms() and "statistics" in hooks.rooms()
    assert "workbench.recovery\n" in hooks.room_page("recovery")
    monkeypatch.setattr(workbench, "_PUBLIC", public)
    assert hooks.rooms().count("recovery") == 1
    assert "members: [recovery_loss]" in hooks.room_page("recovery")


def test_every_record_is_in_the_table(site, root):
    text = (site / "records.html").read_text()
    for path in (root / "benchmarks" / "records").glob("*.json"):
        record = json.loads(path.read_text())
        assert f'href="#{record["benchmark"]}-{record["date"][:10]}"' in text
    assert "16,115 (&gt;= 15000, met)" in text and "H200" in text


def test_figures_of_a_record_keep_their_names_and_leave_series_out(hooks):
    results = {"plain": {"seconds": 1.5, "losses": [1.0, 2.0]}, "none": None}
    assert list(hooks.figures(results)) == [("plain / seconds", 1.5)]
    assert list(hooks.figures([{"case": "short", "pairs": 3}])) == [("short / pairs", 3)]


@pytest.mark.browser
def test_pages_opened_from_disk_ask_the_network_for_nothing_and_can_be_searched(site, chromium):
    asked: list[str] = []
    wrong: list[str] = []
    page = chromium.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    for name in ("notebooks/00_start_here", "records", "api/distances", "index"):
        page.goto((site / f"{name}.html").as_uri())
    page.locator(".md-search__input").click()
    page.keyboard.type("rank_agreement", delay=20)
    page.locator(".md-search-result__item a").first.wait_for()
    assert "rank_agreement" in page.locator(".md-search-result__list").inner_text()
    assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]
    assert not wrong


def test_doctests_are_examples_on_the_page_and_no_quotations(site):
    text = (site / "api" / "data.html").read_text()
    assert "Examples:" in text
    for page in (site / "api").glob("*.html"):
        assert "<blockquote>" not in page.read_text(), page.name
