"""The tables of a paper: names a reader understands, decisive columns, intervals, bold, and that they fit."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace

import pandas as pd
import pytest
from printed import printed_run

import workbench as wb
from workbench.tables.paper import attempted, readable, reader_name, sheets


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
    assert all(len(re.findall(r"\d \{\[\}\d+\.\d, \d+\.\d\{\]\}", row)) == 4 for row in rows)
    assert "pruned + self-distilled" in tables["tasks"]["tex"]
    assert "-0.000" not in "".join(forms["tex"] for forms in tables.values())


def test_an_interval_is_told_by_its_ends_and_stays_within_what_can_be(tmp_path):
    run = printed_run(tmp_path)
    damage = run.read("damage.csv")
    run.write("damage.csv", damage.assign(ci_low=damage["damage"] - 0.049, ci_high=damage["damage"] + 0.307))
    tables = {sheet.name: sheet.forms(run)["tex"] for sheet in sheets(run)}
    assert not any(r"\pm" in text for text in tables.values())
    least = damage.loc[damage.query("size == 1")["damage"].idxmin(), "damage"]
    assert f"{least:.3f} {{[}}{least - 0.049:.3f}, {least + 0.307:.3f}{{]}}" in tables["blocks"]
    ends = re.findall(r"\{\[\}(-?[\d.]+), (-?[\d.]+)\{\]\}", tables["similarity"] + tables["scores"])
    assert ends and all(-1 <= float(low) <= float(high) <= 1 for low, high in ends)


def test_no_clear_difference_is_said_and_no_error(tmp_path):
    run = printed_run(tmp_path)
    run.write("comparisons.csv", run.read("comparisons.csv").assign(p_adjusted=0.5))
    (sheet,) = (sheet for sheet in sheets(run) if sheet.name == "differences")
    with pytest.raises(ValueError, match="no difference is clear"):
        sheet.forms(run)


def test_the_shares_saved_are_those_of_the_variants_whatever_is_in_use_now(tmp_path):
    run = printed_run(tmp_path)
    notes = wb.variant_notes(run.variants()[:4], {"total": 1000, "layers": [50] * 16})
    run.write("variant_notes.csv", notes, variants=run.variants()[:4])
    run.write_json("selection.json", {"layers": [11, 12], "start": 11, "size": 2, "parameters_saved": 0.2})
    (sheet,) = (sheet for sheet in sheets(run) if sheet.name == "results")
    assert r"10.0\%" in sheet.forms(run)["tex"]


def test_scores_of_earlier_variants_are_refused_and_the_notebook_is_named(tmp_path):
    run = printed_run(tmp_path)
    for name in ("scores.csv", "items.jsonl"):
        run.write(name, run.read(name), variants=run.variants())
    before = {sheet.name for sheet in sheets(run) if attempted(sheet.forms, sheet.needs, run)[0]}
    run.save_variant(replace(run.variant("pruned"), removed=(11, 12)))
    told = {sheet.name: attempted(sheet.forms, sheet.needs, run)[1] for sheet in sheets(run)}
    refused = {name for name, why in told.items() if why}
    assert before >= {"results", "tasks", "scores"} == refused
    assert all("[7, 8] out, [11, 12] now" in told[name] and "05_evaluation" in told[name] for name in refused)


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
