"""Every notebook runs from top to bottom at demo size, as `make demo` runs it, and warns of nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest
from demo_pages import CHAIN, NOTEBOOKS, assert_no_stage_is_computed_again, assert_shows_its_figures

from workbench.runs.notebooks import prepared, run_notebooks
from workbench.runs.run import Run, open_run

BY_NAME = {"argvalues": NOTEBOOKS, "ids": [path.stem for path in NOTEBOOKS]}
VARIANTS = {"base", "pruned", "pruned-self-distilled", "pruned-sft"}
PLUMBING = r"\b(?:partial|lambda|identity|overwrite|digest|fingerprint|def|class)\b"


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory) -> Run:
    """Run those that build on each other; the two that do not run beside them (``test_notebooks_apart``)."""
    run = open_run("demo", root=tmp_path_factory.mktemp("runs"))
    run_notebooks(prepared(CHAIN, run), run)
    return run


def sources(path: Path, kind: str) -> list[str]:
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


@pytest.mark.parametrize("path", **BY_NAME)
def test_a_page_shows_work_and_no_plumbing(path: Path):
    code = sources(path, "code")
    lines = [
        line for source in code for line in source.split("\n") if line.strip() and line.strip()[0] != "#"
    ]
    assert len(lines) <= 160
    assert max(source.count("\n") + 1 for source in code) <= 45
    assert not re.search(PLUMBING, "\n".join(code))
    assert "\n".join(code).count("describe_model") <= 2  # before and after, where a reader is told so
    assert not re.search(r"from workbench[. ]", "\n".join(code))


@pytest.mark.parametrize("path", **BY_NAME)
def test_a_page_gives_its_question_its_method_and_where_it_ran(path: Path):
    first, *rest = sources(path, "markdown")
    assert re.search(r"^\*\*.+\?\*\*$", first, re.MULTILINE), "a question in bold"
    assert "**Method.**" in first and first.count("$$") == 2
    assert re.search(r"\]\(https://arxiv\.org/abs/\d{4}\.\d{5}\)[^\n]*(?:section|table|figure)", first)
    assert re.search(r"\*About \d+ s in all on two CPU cores", first)
    code = sources(path, "code")
    of_model = any("load_model" in source for source in code)
    assert sum("wb.about(model)" in source for source in code) == of_model
    assert re.search(r"\]\(\d\d_\w+\.ipynb\)", rest[-1]), "what to open next"


@pytest.mark.parametrize("path", **BY_NAME)
def test_links_between_pages_lead_somewhere(path: Path):
    for target in re.findall(r"\]\((\d\d_\w+\.ipynb)\)", "\n".join(sources(path, "markdown"))):
        assert (path.parent / target).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("path", CHAIN, ids=[path.stem for path in CHAIN])
def test_it_runs_and_shows_its_figures(path: Path, demo_run: Run):
    assert_shows_its_figures(demo_run, path)


@pytest.mark.slow
def test_the_summary_compares_the_four_variants(demo_run: Run):
    summary = demo_run.read("summary.csv")
    assert {"variant", "reasoning", "knowledge", "language", "similarity"} <= set(summary.columns)
    assert len(summary) >= 4
    assert summary["similarity"].max() <= 1 + 1e-6


@pytest.mark.slow
def test_a_second_run_computes_no_stage_again(demo_run: Run, monkeypatch):
    assert {one.name for one in demo_run.variants()} == VARIANTS  # later notebooks add none to score again
    monkeypatch.setenv("BROWSER_PATH", "none")  # the figures are of the first run
    of_stages = [path for path in CHAIN[:6] if path.stem != "02_pick_blocks"]  # which keeps none
    assert_no_stage_is_computed_again(demo_run, of_stages, "summary.csv")


@pytest.mark.slow
def test_every_result_tells_where_it_came_from(demo_run: Run):
    for name in demo_run.files():
        told = demo_run.provenance(name)
        assert told["command"].startswith("notebook "), name
        assert json.dumps(told["inputs"]) != "null", name
