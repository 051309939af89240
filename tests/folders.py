"""Files and folders that tests write, and what a refusal to load a model must look like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workbench.models.loading import load_model


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """Write rows as lines of JSON, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def edit(file: Path, **entries: Any) -> None:
    """Change entries of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def refused(message: str, *args: Any, **options: Any) -> None:
    """Hold that loading is refused with this message, in one line."""
    with pytest.raises(ValueError, match=message) as caught:
        load_model(*args, **options)
    assert "\n" not in str(caught.value)
