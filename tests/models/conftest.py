"""Folders with a tiny model, for the tests of loading."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny model and its tokenizer; tests that spoil it take a copy."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """Return a copy of that folder."""
    return shutil.copytree(saved, tmp_path / "model")
