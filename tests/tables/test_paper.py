"""The tables of a paper: names a reader understands, decisive columns, intervals, bold, and that they fit."""

from __future__ import annotations

import re
import shutil
import subprocess

import pandas as pd
import pytest
from printed import printed_run

from workbench.tables.paper import readable, reader_name, sheets


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    run = printed_run(tmp_path_factory.mktemp("runs"))
    return {sheet.name: sheet.forms(run) for sheet in sheets(run)}


def test_names_are_words_and_stay_apart():
    assert reader_name("cut_sft") == "cut + SFT"
    assert reader_name("pruned-4+self-distilled") == "pruned-4 + self-distilled"
    assert [reader_name(name) for name in ("sft", "pruned, not healed")] == ["sft", "pruned, not healed"]
    twins = pd.DataFrame({"variant": ["pruned-sft", "pruned_sft", "base"]})
    assert readable(twins) is twins
    pair = pd.DataFrame({"variant": ["a-sft"], "against": ["a"], "series": ["a-distilled"]})
    assert readable(pair).iloc[0].tolist() == ["a + SFT", "a", "a + self-distilled"]


def test_every_table_has_every_form(tables):
    assert set(tables) == {
        "results", "tasks", "scores", "blocks", "calibration", "training", "differences", "similarity"
    }  # fmt: skip
    for name, forms in tables.items():
        assert rf"\label{{tab:{name}}}" in forms["tex"] and r"\toprule" in forms["tex"]
        assert forms["md"].startswith("| ") and forms["html"].startswith("<table")
        assert "pruned-sft" not in "".join(forms.values()), name


def test_the_results_decide_first_and_the_best_of_a_size_is_bold(tables):
    text = tables["results"]["tex"]
    assert r"Block & Saved & Method & Recovery (\%) & Avg. score \\" in text
    assert r"\textbf{" in text and "Baseline" in text
    assert not re.search(r"Baseline.*textbf", text)
    assert "SFT (references)" in text and "Self-distilled (own rewrites)" in text and r"11.8\%" in text


def test_scores_have_intervals_and_the_papers_names(tables):
    rows = [line for line in tables["tasks"]["tex"].splitlines() if line.startswith(("ARC-E", "demo math"))]
    assert len(rows) == 2
    assert all(row.count(r"$\pm$") == 4 for row in rows)
    assert "pruned + self-distilled" in tables["tasks"]["tex"]
    assert "-0.000" not in "".join(forms["tex"] for forms in tables.values())


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")
def test_latex_prints_every_table_within_the_page(tables, tmp_path):
    for name, forms in tables.items():
        (tmp_path / f"{name}.tex").write_text(forms["tex"])
    page = r"\usepackage[letterpaper,textwidth=6.75in,columnsep=0.25in]{geometry}"
    head = rf"\documentclass[twocolumn]{{article}}{page}"
    body = "".join(rf"\input{{{name}}}" for name in tables)
    (tmp_path / "all.tex").write_text(
        rf"{head}\usepackage{{booktabs}}\begin{{document}}Text.{body}\clearpage\end{{document}}"
    )
    told = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "all.tex"], cwd=tmp_path, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stdout[-2000:]
    assert "Overfull" not in told.stdout
