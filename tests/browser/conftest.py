"""Fixtures: one JupyterLab and one Chromium for all browser tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from live_lab import FLAGS, Lab, Tab, find_chromium, running_lab


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Return a Chromium; tests are skipped, with the reason, where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = find_chromium()
    if path is None:
        pytest.skip("no Chrome or Chromium on this machine; plotly_get_chrome installs one")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def lab(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Return a running JupyterLab."""
    with running_lab(tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.fixture(scope="module")
def new_tab(lab: Lab, chromium: Any) -> Iterator[Callable[[], Tab]]:
    """Open tabs of one fresh profile."""
    context = chromium.new_context(viewport={"width": 1300, "height": 1100})
    context.set_default_timeout(30_000)

    def open_tab() -> Tab:
        return Tab(context.new_page(), lab.url)

    yield open_tab
    context.close()
