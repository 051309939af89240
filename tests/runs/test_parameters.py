"""Values for the notebooks' parameters: for all that have the name, or for one."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from workbench.runs.notebooks import numbered_notebooks
from workbench.runs.parameters import parameters_of, values_for


def notebook(parameters: str) -> nbformat.NotebookNode:
    cell = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    return nbformat.v4.new_notebook(cells=[cell])


@pytest.fixture
def sources() -> dict[Path, nbformat.NotebookNode]:
    """Two notebooks that share a name."""
    first, second = 'run_name = "demo"\nn_texts = 64', 'run_name = "demo"\nn_texts = 128\nsets = ["a"]'
    return {Path("00_first.ipynb"): notebook(first), Path("01_second.ipynb"): notebook(second)}


def values(sources, **parameters) -> list[dict]:
    found = values_for(sources, "r", parameters).values()
    return [{name: one[name] for name in one if name != "run_name"} for one in found]


def test_a_name_is_for_every_notebook_that_has_it_or_for_one(sources):
    assert values(sources, n_texts=3) == [{"n_texts": 3}] * 2
    own = {"01.n_texts": 4, "n_texts": 3}
    first, second = values_for(sources, "r", own).values()
    assert (first["n_texts"], second["n_texts"]) == (3, 4)
    alone = values_for(sources, "r", {"00_first.n_texts": 5})
    assert [one.get("n_texts") for one in alone.values()] == [5, None]
    assert {one["run_name"] for one in alone.values()} == {"r"}


def test_what_is_given_where_it_is_known_comes_last(sources):
    found = values_for(sources, "r", {"n_texts": 3}, {"n_texts": 9, "sets": ["b"], "other": 1}).values()
    assert list(found) == [{"n_texts": 3, "run_name": "r"}, {"n_texts": 3, "sets": ["b"], "run_name": "r"}]


def test_a_list_of_sets_may_be_a_dict_with_labels(sources):
    assert values(sources, sets={"C4": "c4.jsonl"})[1] == {"sets": {"C4": "c4.jsonl"}}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("07.n_texts", r"NN.n_texts with one of the notebooks \['00_first', '01_second'\], got '07'"),
        ("n_text", r"'sets'\], got \['n_text'\] \(did you mean n_texts\?\)"),
        ("00.sets", r"parameters of 00 must be among \['n_texts', 'run_name'\], got \['sets'\]"),
        ("other", r"parameters must be among \['n_texts', 'run_name', 'sets'\], got \['other'\]"),
    ],
)
def test_a_name_that_is_not_there_is_refused(sources, name, message):
    with pytest.raises(ValueError, match=message):
        values_for(sources, "r", {name: 3})


def test_a_name_of_another_notebook_is_said_to_be_that(sources, tmp_path):
    path, damaged = tmp_path / "05_fifth.ipynb", tmp_path / "06_sixth.ipynb"
    nbformat.write(notebook('run_name = "demo"\nlimit = 5'), path)
    damaged.write_text("no notebook")
    with pytest.raises(ValueError, match=r"got \['limit'\]; limit is one of notebook 05$"):
        values_for(sources, "r", {"limit": 3}, others=[damaged, path])


def test_every_notebook_of_the_checkout_has_parameters_that_can_be_told():
    for path in numbered_notebooks():
        told = parameters_of(path, nbformat.read(path, as_version=4))
        assert told["run_name"].value == "demo"
        assert all(one.source for one in told.values())
