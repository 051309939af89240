"""Progress bars: HTML in a notebook, text in a terminal, and nothing dead in what is saved."""

from __future__ import annotations

import re

import nbformat
import pytest

from workbench.bars import BAR, BRIEF, bar_html, tqdm
from workbench.runs.notebooks import execute

AGAIN = """
import tempfile
import pandas as pd
from workbench import open_run
def count(n):
    return pd.DataFrame({"n": [n]})
place = tempfile.TemporaryDirectory()
run = open_run("again", root=place.name)
for n in (1, 2):
    for name in "abc":
        run.frame(f"{name}.csv", count, n)
"""
CELL = """
import time
from workbench import bars
bars.BRIEF = 0.1
for _ in bars.tqdm(range(3), desc="a <long> stage", unit="text", disable=False):
    time.sleep(0.1)
for _ in bars.tqdm(range(3), desc="short", disable=False, leave=False):
    pass
for _ in bars.tqdm(range(3), desc="off", disable=True):
    pass
"""


def told(n: int, **more) -> dict:
    return {"prefix": "damage: ", "n": n, "total": 20, "elapsed": 4.0, "unit": "text", **more}


def test_it_says_how_far_and_how_long():
    assert re.sub("<[^>]*>", "", bar_html(told(5))).strip() == "damage: 5 of 20 texts, 0:04, about 0:12 left"
    assert 'value="5" max="20"' in bar_html(told(5))
    assert bar_html(told(0)) == '<progress  style="width:12em"></progress> damage: 0 of 20 texts'
    assert bar_html(told(20), done=True) == "damage: 20 of 20 texts, 0:04"
    assert "left" not in bar_html(told(0)) and "left" not in bar_html(told(1, total=120))
    assert "&lt;b&gt;" in bar_html(told(5, prefix="<b>"))
    assert bar_html(told(5, postfix="loss=1.000")).endswith(", loss=1.000")
    assert bar_html(told(7, total=None, elapsed=4000.0), done=True) == "damage: 7 texts, 1:06:40"


def test_in_a_terminal_it_is_text(capsys):
    for _ in tqdm(range(3), desc="stage"):
        pass
    assert "stage: 100%" in capsys.readouterr().err


@pytest.mark.slow
def test_in_a_notebook_no_widget_and_no_text_is_left(run):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in (CELL, AGAIN)])
    cell, again = execute(notebook, run.folder / "test.ipynb", run).cells
    assert [one.data["text/plain"] for one in again.outputs] == [
        "a.csv and 2 more: computed again; another n"
    ]
    outputs = cell.outputs
    assert [set(one.data) for one in outputs] == [{"text/html"}] * 2
    said = [re.sub("<[^>]*>", "", one.data["text/html"]) for one in outputs]
    assert said[0].startswith("a &lt;long&gt; stage: 3 of 3 texts") and said[1] == ""
    assert all(f'class="{BAR}"' in one.data["text/html"] for one in outputs)
    assert BRIEF >= 1
