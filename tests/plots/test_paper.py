"""Which figures a run has: each is listed and drawn one way, and variants go by names that a reader knows."""

from __future__ import annotations

import tomllib

import pandas as pd
import pytest
from printed import printed_run

import workbench as wb
from workbench.plots import paper
from workbench.runs.run import open_run
from workbench.tables.paper import attempted


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return printed_run(tmp_path_factory.mktemp("runs"))


def test_every_caption_has_one_drawing_and_every_drawing_a_caption():
    listed = tomllib.loads(paper.CAPTIONS.read_text(encoding="utf-8"))
    as_they_are = {name: told["figure"] for name, told in listed.items() if "figure" in told}
    assert not paper.DRAWN.keys() & as_they_are.keys()
    assert paper.DRAWN.keys() | as_they_are.keys() == listed.keys()
    assert set(as_they_are.values()) <= set(wb.__all__)
    assert set(paper.OF_PROMPTS) <= listed.keys()


def test_a_figure_of_several_sets_of_prompts_is_one_a_set_and_says_which(run):
    captions = {one.name: one.caption for one in paper.pictures(run)}
    assert captions["06_forms_math"].endswith(" Prompts: math.")
    assert captions["06_similarity_open"].endswith(" Prompts: open.")
    assert "Prompts" not in captions["06_pairs"]


def test_a_star_stands_for_any_name(tmp_path):
    run = open_run("one", root=tmp_path)
    (picture,) = [one for one in paper._all(run) if one.name == "04_healing"]
    assert paper.missing(run, picture) == ["healing-*.csv"]
    run.write("healing-pruned-sft.csv", pd.DataFrame({"step": [1, 2], "loss": [2.0, 1.0]}))
    assert paper.missing(run, picture) == []
    fig = picture.draw(run)
    assert not fig.layout.title.text
    assert [list(trace.y) for trace in fig.data] == [[2.0, 1.0]]


def test_variants_go_by_names_that_a_reader_understands(run):
    drawn = {one.name: one.draw for one in paper.pictures(run)}
    for name in ("04_healing", "05_scores", "05_flips", "06_similarity_math", "06_pairs"):
        text = drawn[name](run).to_json()
        assert "pruned + S" in text or "pruned + s" in text, name
        assert "pruned-s" not in text, name


def test_the_frame_is_what_was_removed_not_what_is_in_use_now(tmp_path):
    run = printed_run(tmp_path, name="frames")
    (picture,) = [one for one in paper.pictures(run) if one.name == "02_chosen"]
    framed = picture.draw(run).to_json()
    run.write_json("selection.json", {"layers": [11, 12], "start": 11, "size": 2})
    assert picture.draw(run).to_json() == framed
    run.save_variant(wb.Variant("pruned", "tiny", removed=(3, 9)))
    for healed in ("pruned-sft", "pruned-self-distilled"):
        run.save_variant(wb.Variant(healed, "tiny", removed=(3, 9)))
    (run.folder / "variants" / "merged.json.meta.json").unlink()
    with pytest.raises(ValueError, match="layers 3,9 were removed, which is no one block"):
        picture.draw(run)


def test_a_figure_of_earlier_variants_is_left_out_and_the_notebook_named(tmp_path):
    run = printed_run(tmp_path, name="earlier")
    run.write("scores.csv", run.read("scores.csv"), variants=run.variants())
    drawn = {one.name: one for one in paper.pictures(run)}
    for cut in ("pruned", "pruned-sft"):
        run.save_variant(wb.Variant(cut, "tiny", removed=(11, 12)))
    for name in ("05_scores", "05_categories", "05_depth", "05_loss"):
        fig, why = attempted(drawn[name].drawn, drawn[name].needs, run)
        assert fig is None and "earlier 'pruned" in why and "run notebook 05_evaluation again" in why
