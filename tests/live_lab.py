"""A real JupyterLab on this machine and a real Chromium in front of it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).resolve().parents[1]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PICKER = ".bp"


@dataclass
class Lab:
    """A running JupyterLab: its address, its folder, what its server wrote."""

    url: str
    token: str
    folder: Path

    def notebook(self, name: str, *cells: str) -> str:
        """Write a notebook of these code cells and return the address that opens it."""
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        notebook.metadata["kernelspec"] = {
            "name": "python3",
            "display_name": "Python 3",
            "language": "python",
        }
        nbformat.write(notebook, self.folder / name)
        return f"{self.url}/lab/workspaces/{Path(name).stem}/tree/{name}?token={self.token}"


@dataclass
class Tab:
    """A page with everything that must not happen on it written down."""

    page: Any
    origin: str
    errors: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self._request(request.url))
        self.page.on("websocket", lambda socket: self._request(socket.url))

    def _request(self, url: str) -> None:
        own = (self.origin, self.origin.replace("http", "ws"), "data:", "blob:")
        if not url.startswith(own):
            self.strangers.append(url)

    def open(self, url: str) -> None:
        """Open a notebook, run it and wait until its picker is drawn."""
        self.page.goto(url)
        self.ready()
        self.run_all()
        self.drawn()

    def run_all(self) -> None:
        """Run every cell again and wait for it."""
        self.page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")

    def ready(self) -> None:
        """Wait until the notebook is there with an idle kernel."""
        self.page.wait_for_function(
            """() => {
                const shown = window.jupyterapp?.shell?.currentWidget;
                const kernel = shown?.sessionContext?.session?.kernel;
                return shown?.content?.widgets?.length > 0 && kernel?.status === "idle";
            }"""
        )

    def drawn(self) -> None:
        """Wait until the picker is drawn."""
        self.page.wait_for_selector(f"{PICKER} .bp-cells path", state="attached")

    def run(self, code: str) -> str:
        """Run code in the notebook's kernel, as another cell would, and return what it printed."""
        return self.page.evaluate(
            """async (code) => {
                const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
                let printed = "";
                const future = kernel.requestExecute({ code, store_history: false });
                future.onIOPub = (message) => {
                    if (message.header.msg_type === "stream") printed += message.content.text;
                    if (message.header.msg_type === "error") printed += message.content.evalue;
                };
                await future.done;
                return printed.trim();
            }""",
            code,
        )


def place_of(tab: Tab, at: int, size: int, view: int = 0, heatmap: int = 0) -> tuple[float, float]:
    """Return where on the screen a cell lies, by its first layer and size, from the ticks of the axes."""
    return (
        tab.page.locator(f"{PICKER}")
        .nth(view)
        .locator("svg")
        .nth(heatmap)
        .evaluate(
            """(svg, [at, size]) => {
            svg.scrollIntoView({ block: "center" });
            const middle = (node) => {
                const box = node.getBoundingClientRect();
                return [box.x + box.width / 2, box.y + box.height / 2];
            };
            const ticks = [...svg.querySelectorAll("text")].filter((one) => /^\\d+$/.test(one.textContent));
            const across = ticks.filter((one) => one.getAttribute("text-anchor") === "middle").map(
                (one) => [Number(one.textContent), middle(one)[0]]);
            const up = ticks.filter((one) => one.getAttribute("text-anchor") === "end").map(
                (one) => [Number(one.textContent), middle(one)[1]]);
            const along = (points, value) => {
                const [[a, x], [b, y]] = [points[0], points.at(-1)];
                return x + ((value - a) / (b - a)) * (y - x);
            };
            return [along(across, at), along(up, size)];
        }""",
            [at, size],
        )
    )


def click_cell(tab: Tab, at: int, size: int, view: int = 0, heatmap: int = 0) -> None:
    tab.page.mouse.click(*place_of(tab, at, size, view, heatmap))


def find_chromium() -> str | None:
    """Return a Chrome or Chromium of this machine, as the figures' export finds it."""
    from choreographer.browsers.chromium import Chromium

    return os.environ.get("BROWSER_PATH") or Chromium.find_browser(skip_local=False)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _settings(folder: Path) -> None:
    """Ask for no news and no updates: neither may leave the machine, and the toast covers the page."""
    place = folder / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}))


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(300):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=5)
            return
        if server.poll() is not None:
            break
        time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()}")


@contextlib.contextmanager
def running_own_lab(base: Path, run: str, settings: list[str], home: Path) -> Iterator[Lab]:
    """Start `python -m workbench lab RUN` in a folder, as its user would type it, and stop it on leaving.

    Its kernels find no browser to draw figures as pictures with: the tests look at those on the screen.

    Args:
        base: the user's working folder; runs go to ``runs`` in it.
        run: name of the run.
        settings: NAME=VALUE of the notebooks' parameters.
        home: the user's home folder.
    """
    port, token, log = _free_port(), secrets.token_hex(16), base / "lab.log"
    places = {f"JUPYTER_{name}_DIR": str(base / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    told = {"expose_app_in_browser": True, "user_settings_dir": str(base / "settings")}
    (base / "config").mkdir()
    told["workspaces_dir"] = str(base / "workspaces")
    (base / "config" / "jupyter_lab_config.json").write_text(json.dumps({"LabApp": told}))
    command = [sys.executable, "-m", "workbench", "lab", run, "--no-browser", f"--port={port}", "--root=runs"]
    command += [word for setting in settings for word in ("--set", setting)]
    environment = {**os.environ, **places, "PYTHONPATH": str(ROOT), "HOME": str(home), "JUPYTER_TOKEN": token}
    environment["BROWSER_PATH"] = "none"
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, cwd=base, env=environment)
        try:
            _wait_for(f"http://127.0.0.1:{port}/api?token={token}", server, log)
            yield Lab(f"http://127.0.0.1:{port}", token, base / "runs" / run / "lab")
        finally:
            server.terminate()
            server.wait(timeout=30)


@contextlib.contextmanager
def running_lab(base: Path) -> Iterator[Lab]:
    """Start JupyterLab on a folder of its own and stop it on leaving."""
    folder, settings, log = base / "work", base / "settings", base / "lab.log"
    folder.mkdir()
    _settings(settings)
    port, token = _free_port(), secrets.token_hex(16)
    places = {f"JUPYTER_{name}_DIR": str(base / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "HOME": str(base)}
    command = [
        *(
            sys.executable,
            "-m",
            "jupyterlab",
            "--no-browser",
            "--ip=127.0.0.1",
            f"--port={port}",
            "--allow-root",
        ),
        *(f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}", "--expose-app-in-browser"),
        *("--LabApp.extension_manager=readonly", f"--LabApp.user_settings_dir={settings}"),
        f"--LabApp.workspaces_dir={base / 'workspaces'}",
    ]
    with log.open("wb") as out:
        environment = {**os.environ, **places, **paths}
        server = subprocess.Popen(command, stdout=out, stderr=out, cwd=folder, env=environment)
        try:
            _wait_for(f"http://127.0.0.1:{port}/api?token={token}", server, log)
            yield Lab(f"http://127.0.0.1:{port}", token, folder)
        finally:
            server.terminate()
            server.wait(timeout=30)
