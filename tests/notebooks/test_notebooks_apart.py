"""The notebooks that read nothing of the others, in a run of their own: 00, and 07 with fewer items."""

from __future__ import annotations

from pathlib import Path

import pytest
from demo_pages import APART, assert_no_stage_is_computed_again, assert_shows_its_figures

from workbench.runs.notebooks import prepared, run_notebooks
from workbench.runs.run import Run, open_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def apart(tmp_path_factory) -> Run:
    run = open_run("demo", root=tmp_path_factory.mktemp("runs"))
    run_notebooks(prepared(APART, run, {"07.limit": 6}), run)
    return run


@pytest.mark.parametrize("path", APART, ids=[path.stem for path in APART])
def test_it_runs_alone_and_shows_its_figures(path: Path, apart: Run):
    assert_shows_its_figures(apart, path)


def test_iterating_ends_at_the_depth_asked_for_and_adds_no_variant(apart: Run):
    assert apart.read("iterations.csv")["layers_left"].iloc[-1] == 14
    assert apart.read("start_here/summary.csv")["variant"].is_unique
    assert not apart.variants()


def test_a_second_run_of_the_first_computes_no_stage_again(apart: Run, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", "none")
    assert_no_stage_is_computed_again(apart, APART[:1], "start_here/summary.csv")
