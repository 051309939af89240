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
from workbench.places import PACKAGE

_LIBRARIES: tuple[str, ...] = ("torch", "transformers", "peft", "accelerate", "datasets", "lm-eval")
_LIBRARIES += ("sentence-transformers", "numpy", "pandas", "plotly")

# the name of an option or a variable, in whatever spelling, and what keys look like wherever they stand
_SECRET_NAME = re.compile(
    r"(?i)(?:^|[-_./])(?:\w*?token|\w*?secret|pass(?:word|wd|phrase)?|pwd|\w*?key|auth(?:orization)?|bearer|credentials?)$"
)
_SECRET = re.compile(
    r"(?<![A-Za-z0-9])(?:hf|sk|pk|rk|gh[pousr]|github_pat|glpat|xox[abprs]|AKIA|ASIA|AIza|wandb_v1|nvapi)[-_]?[\w-]{8,}"
    r"|eyJ[\w-]{8,}\.[\w.-]+|(?<=://)[^/\s@]+(?=@)|(?i:(?<=bearer )\S+)"
)
# a name and its value within a word: of an address, of JSON, of an option's value
_WITHIN = re.compile(
    r"(?i)((?:^|[?&#;,{\s\"'=])[\"']?[\w.-]*(?:token|secret|password|passwd|pwd|key|sig|signature|credentials?)"
    r"[\"']?\s*[=:]\s*[\"']?)[^\s\"'&;,}]+"
)


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
