"""Folders of models: how a test spoils one, and what a refusal to load it must look like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workbench.models.loading import load_model


def edit(file: Path, **entries: Any) -> None:
    """Change entries of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def refused(message: str, *args: Any, **options: Any) -> None:
    """Hold that loading is refused with this message, in one line."""
    with pytest.raises(ValueError, match=message) as caught:
        load_model(*args, **options)
    assert "\n" not in str(caught.value)
