"""Which notebook writes a result: the true one, or none is claimed."""

from __future__ import annotations

import json

import pytest

from workbench.runs.writers import notebook_that_writes


@pytest.mark.parametrize(
    ("name", "notebook"),
    [
        ("selection.json", "02_pick_blocks"),
        ("healing-pruned-sft.csv", "04_healing"),
        ("variants/base.json", "04_healing"),
        ("losses-*.csv", "05_evaluation"),
        ("scores.csv", "05_evaluation"),
        ("recovery-nothing.csv", "07_iterative_recovery"),
        ("nobody-knows.csv", None),
    ],
)
def test_the_notebooks_of_the_checkout(name, notebook):
    assert notebook_that_writes(name) == notebook


def test_a_name_as_it_stands_goes_before_one_that_is_filled_in(tmp_path, monkeypatch):
    calls = {
        "01_any": 'run.frame(f"{anything}.csv", f)',
        "02_parts": "run.write(\n    f'angles-{name}.csv', frame)",
        "03_whole": 'run.frame("angles-points.csv", f)',
    }
    for notebook, code in calls.items():
        cells = [{"cell_type": "markdown", "source": ['run.write("told.csv")']}]
        cells += [{"cell_type": "code", "source": code.splitlines(keepends=True)}]
        (tmp_path / f"{notebook}.ipynb").write_text(json.dumps({"cells": cells}))
    monkeypatch.setattr("workbench.runs.writers.NOTEBOOKS", tmp_path)
    assert notebook_that_writes("angles-points.csv") == "03_whole"
    assert notebook_that_writes("angles-c4.csv") == "02_parts"
    assert notebook_that_writes("angles-*.csv") == "02_parts"
    assert notebook_that_writes("told.csv") is None
