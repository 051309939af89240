"""Where a result came from: the commit, the versions, the command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from workbench.runs import provenance
from workbench.runs.run import Run


def test_the_commit_is_that_of_the_checkout(run: Run, root: Path):
    head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
    expected = head.stdout.strip() if head.returncode == 0 else None
    run.write_json("x.json", [1])
    assert run.provenance("x.json")["commit"] == expected


def test_a_notebook_is_named_as_the_command(monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "/somewhere/05_evaluation.ipynb")
    assert provenance.command() == "notebook 05_evaluation.ipynb"
    monkeypatch.delenv("JPY_SESSION_NAME")
    monkeypatch.setattr(sys, "argv", ["train.py", "--name", "two words"])
    assert provenance.command() == "train.py --name 'two words'"


def test_a_library_that_is_not_there_is_said_to_be_missing(monkeypatch):
    monkeypatch.setattr(provenance, "_LIBRARIES", ("torch", "no-such-library"))
    versions = provenance.library_versions()
    assert versions["no-such-library"] == "not installed"
    assert versions["torch"][0].isdigit()
