"""A kernel, and what a front end without widgets hears of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from jupyter_client.manager import start_new_kernel

ROOT = Path(__file__).resolve().parents[2]
SHOWN = ("display_data", "update_display_data", "execute_result")


@pytest.fixture(scope="session")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[dict[str, Any]]]]:
    """Return a function that runs code in a kernel and returns the displays that it was told of, in order."""
    folder = tmp_path_factory.mktemp("kernel")
    manager, client = start_new_kernel(cwd=str(folder))

    def run(code: str, *, updated_within: float = 0) -> list[dict[str, Any]]:
        heard: list[dict[str, Any]] = []
        reply = client.execute_interactive(code, timeout=120, output_hook=heard.append)
        assert reply["content"]["status"] == "ok", reply["content"]
        until = time.monotonic() + updated_within
        while any(one["msg_type"] == "update_display_data" for one in heard) < bool(updated_within):
            assert time.monotonic() < until, "no display was updated"
            with suppress(Empty):
                heard.append(client.get_iopub_msg(timeout=0.5))
        shown = [one for one in heard if one["msg_type"] in SHOWN]
        return [{"type": one["msg_type"], **one["content"]} for one in shown]

    paths = [str(ROOT), str(ROOT / "tests")]
    run(f"import sys; sys.path[:0] = {paths!r}")
    yield run
    client.stop_channels()
    manager.shutdown_kernel(now=True)
