"""Where things lie: the checkout, the demo world in it, the folders of runs and of fetched models."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
#: holds ``notebooks/`` and ``data/demo/`` in a checkout; site-packages for an installed package
ROOT = PACKAGE.parent
DEMO = ROOT / "data" / "demo"
NOTEBOOKS = ROOT / "notebooks"


def toml_beside(module: str, name: str = "") -> dict[str, Any]:
    """Return the content of a TOML file beside a module, called as the module is or by another name."""
    path = Path(module)
    return tomllib.loads(path.with_name(f"{name or path.stem}.toml").read_text(encoding="utf-8"))


def in_checkout() -> bool:
    """Return whether the package runs from a checkout, which holds the notebooks and the demo world."""
    return DEMO.is_dir() and NOTEBOOKS.is_dir()


def demo_path(part: str) -> Path:
    """Return the path of a part of the demo world, such as ``"model"`` or ``"tasks"``.

    Raises:
        ValueError: when the package was installed without the checkout that holds it.
    """
    if not DEMO.is_dir():
        raise ValueError(f"'demo' needs a checkout, installed with `pip install -e .`; {PACKAGE} is none")
    return DEMO / part


def runs_folder() -> Path:
    """Return the folder of all runs: ``$WORKBENCH_RUNS``, or ``data/runs`` of the checkout, else of here."""
    if chosen := os.environ.get("WORKBENCH_RUNS"):
        return Path(chosen).expanduser()
    return (ROOT if in_checkout() else Path.cwd()) / "data" / "runs"


def models_folder() -> Path:
    """Return the folder of models that were fetched: ``data/models`` of the checkout, else of here."""
    return (ROOT if in_checkout() else Path.cwd()) / "data" / "models"


def short_name(name: str | Path) -> str:
    """Name a path inside the checkout by its place there, the same on every machine; others stay."""
    path = Path(name)
    inside = in_checkout() and path.is_absolute() and path.is_relative_to(ROOT)
    return path.relative_to(ROOT).as_posix() if inside else str(name)
