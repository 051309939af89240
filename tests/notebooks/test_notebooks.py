"""Every notebook runs from top to bottom at demo size, as `make demo` runs it, and warns of nothing."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest

from workbench.runs import notebooks as runner
from workbench.runs.pages import PLOTLY
from workbench.runs.run import Run, open_run

NOTEBOOKS = runner.numbered_notebooks()

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory) -> Run:
    return open_run("demo", root=tmp_path_factory.mktemp("runs"))


def outputs(path: Path) -> list[dict]:
    return [output for cell in nbformat.read(path, as_version=4).cells for output in cell.get("outputs", ())]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_shows_its_figures(path: Path, demo_run: Run):
    (copy,) = runner.run_notebooks([path], demo_run)
    shown = outputs(copy)
    warned = [output["text"] for output in shown if output.get("name") == "stderr"]
    assert not warned
    figures = [output["data"] for output in shown if PLOTLY in output.get("data", {})]
    assert figures, "a notebook shows at least one figure"
    assert all("image/png" in bundle for bundle in figures)
    assert copy.stat().st_size < 5_000_000
    assert copy.with_suffix(".html").is_file()


def test_the_summary_compares_the_four_variants(demo_run: Run):
    summary = demo_run.read("summary.csv")
    assert {"variant", "reasoning", "knowledge", "language", "similarity"} <= set(summary.columns)
    assert len(summary) >= 4
    assert summary["similarity"].max() <= 1 + 1e-6


def test_a_second_run_computes_no_stage_again(demo_run: Run):
    made = {name: demo_run.provenance(name)["created"] for name in demo_run.files()}
    summary = demo_run.path("summary.csv").read_bytes()
    runner.run_notebooks(NOTEBOOKS, demo_run)
    staged = [name for name in made if "code" in demo_run.provenance(name)]
    assert {name: demo_run.provenance(name)["created"] for name in staged} == {n: made[n] for n in staged}
    assert demo_run.path("summary.csv").read_bytes() == summary


def test_every_result_tells_where_it_came_from(demo_run: Run):
    for name in demo_run.files():
        told = demo_run.provenance(name)
        assert told["command"].startswith("notebook 0"), name
        assert json.dumps(told["inputs"]) != "null", name
