"""Where a result came from: versions, platform, commit, command and time."""

from __future__ import annotations

import functools
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import workbench
from workbench.places import PACKAGE, toml_beside

_TABLE = toml_beside(__file__)
_LIBRARIES: list[str] = _TABLE["libraries"]
_SECRET_NAME, _SECRET, _WITHIN = (re.compile(_TABLE["secrets"][of]) for of in ("name", "anywhere", "within"))


def environment() -> dict[str, Any]:
    """Return versions, platform, commit, command and time (UTC): the part of provenance no input tells."""
    commit = _git("rev-parse", "HEAD")
    return {
        "versions": library_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "commit": commit,
        "uncommitted_changes": bool(_git("status", "--porcelain")) if commit else None,
        "command": command(),
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
    }


def library_versions() -> dict[str, str]:
    """Return the installed versions of the libraries that results depend on, without importing them."""
    installed = {name: installed_version(name) or "not installed" for name in _LIBRARIES}
    return {"workbench": workbench.__version__, **installed}


def installed_version(library: str) -> str | None:
    """Return the version of an installed library, None for one that is not there; each is asked once."""
    return _asked_version(metadata.version, library)


@functools.lru_cache
def _asked_version(version: Callable[[str], str], library: str) -> str | None:
    try:
        return version(library)
    except metadata.PackageNotFoundError:
        return None


def command() -> str:
    """Return the notebook (in a Jupyter kernel) or the command line that is running."""
    notebook = os.environ.get("JPY_SESSION_NAME")
    return f"notebook {Path(notebook).name}" if notebook else shlex.join(without_secrets(sys.argv))


def without_secrets(words: Iterable[str]) -> list[str]:
    """Return the words of a command line with dots instead of tokens, keys and passwords.

    >>> without_secrets(["train.py", "--hf-token", "abc", "--seed=1", "api_key=xyz", "hf_0123456789"])
    ['train.py', '--hf-token', '...', '--seed=1', 'api_key=...', '...']
    """
    shown, hide = [], False
    for word in words:
        name, equals, _ = word.partition("=")
        secret = _SECRET_NAME.search(name) is not None
        if hide and not word.startswith("--"):
            shown.append("...")
        elif secret and equals:
            shown.append(f"{name}=...")
        else:
            shown.append(_WITHIN.sub(r"\1...", _SECRET.sub("...", word)))
        hide = secret and not equals and word.startswith("-")
    return shown


def _git(*arguments: str) -> str | None:
    """Return what git says about the checkout this package lies in, None outside one or without git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
