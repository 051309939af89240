"""Fixtures: one JupyterLab for the tests of a file, and tabs in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from live_lab import Lab, Tab, running_lab


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
