"""What comes in by a public name is checked first, in one line that names the argument."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import workbench as wb
from tests.frames import damage_frame, distance_frame, score_frame
from tests.tiny import tiny_model, tiny_tokenizer
from workbench import arguments

DISTANCES = distance_frame()


def looked_at(**annotations: str) -> Any:
    """Return a checked function with arguments of those kinds."""

    def function(*args: Any, **settings: Any) -> str:
        return "ran"

    kinds = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind)
        for name, kind in annotations.items()
    ]
    function.__signature__ = inspect.Signature(kinds)  # type: ignore[attr-defined]
    return arguments.looked_at(function)


@pytest.mark.parametrize(
    ("name", "kind", "bad", "good"),
    [
        ("batch_size", "int", [0, -1, 1.5, "3", True, float("nan"), None, [3]], [1, np.int64(3)]),
        ("n", "int | None", [1.5, "3", True], [3, None]),
        ("seed", "int", [-1, "0", 0.0], [0, 2**70]),
        ("confidence", "float", [0, 1, 5, "95", float("nan"), True, None], [0.95, np.float64(0.5)]),
        ("threshold", "float", ["1", float("nan"), True], [1, 0.5]),
        ("overwrite", "bool", ["yes", 1, None], [True, False]),
        ("title", "str | None", [5, b"x"], ["x", None]),
        ("out", "str | Path", [5, "", ".", Path("."), "a\0b", "x" * 300, None], ["here.jsonl"]),
        ("data", "str | Path | None", [5, "", "a\0b"], [".", "..", "./", Path("."), None]),
        (
            "sizes",
            "Iterable[int] | None",
            [5, "12", [1.5], ["2"], [True], {"a": 1}],
            [[1, 2], range(3), None],
        ),
        ("thresholds", "Sequence[float]", [5, "0.5", ["0.5"], [None], [float("nan")]], [[0.5, 1], ()]),
        ("tasks", "str | Sequence[str]", [5, None, [5], {"a": 1}], ["demo", ["demo"]]),
        ("frame", "pd.DataFrame", [None, 5, [], {}, pd.DataFrame()], [DISTANCES]),
        (
            "others",
            "Mapping[str, pd.DataFrame]",
            [None, {}, {"a": 5}, {"a": pd.DataFrame()}],
            [{"a": DISTANCES}],
        ),
        ("texts", "Any", [["a\ud800b"]], [["ok", "漢字"], None]),
    ],
)
def test_a_value_of_another_kind_is_refused_by_its_name(name, kind, bad, good, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function = looked_at(**{name: kind})
    for value in good:
        assert function(**{name: value}) == "ran"
    for value in bad:
        with pytest.raises(ValueError, match=rf"^{name}(\[.*\])? .*") as error:
            function(**{name: value})
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())  # nothing was made by looking


def test_methods_and_classes_check_what_they_are_given_too(tmp_path):
    """Before a training, not in the middle of it; and nothing is written."""
    run, log = wb.open_run("r", root=tmp_path), pd.DataFrame({"step": [1], "loss": [1.0]})
    both = (tiny_model("llama"), tiny_tokenizer())
    cases = {
        "every must be above 0, got -1": lambda: wb.LiveLoss(every=-1),
        "every must be a number": lambda: wb.LiveRecovery(4, every="3"),
        "name must be a text": lambda: wb.LiveLoss().watch(5),
        "log needs the columns": lambda: wb.LiveLoss().add("a", log[["step"]]),
        "math and open must be texts": lambda: wb.RewriteTemplate(math=None),
        "leaks a tuple of texts": lambda: wb.RewriteTemplate(leaks="leak"),
        "variant must be a Variant, got 'base'": lambda: run.save_variant("base"),
        "fig must be a plotly figure": lambda: run.figure("figure", "name"),
        "name must be a text, got 5": lambda: run.figure(wb.distance_heatmap(DISTANCES), 5),
        "function must be one that returns a frame": lambda: run.frame("x.csv", "block_angles"),
        "must be given a pandas DataFrame": lambda: run.frame("x.csv", lambda: None),
        "makes must be a list": lambda: run.frame("x.csv", DISTANCES.head, makes="x"),
        "name must be a path inside the run": lambda: run.frame("x.csv", DISTANCES.head, makes=["../x"]),
        "x.json must be plain data": lambda: run.write_json("x.json", {"a": object()}),
        "name must end in .csv": lambda: run.read(5),
        "look must be a function": lambda: wb.BlockPicker(DISTANCES).look_with("look"),
        "run must be a run of open_run": lambda: wb.BlockPicker(DISTANCES).save("run"),
        "score, or what it returns, must be a": lambda: wb.greedy_layers(None, [1]),
        "limit must be a whole number or": lambda: wb.shot_ablation(*both, ["a"], limit=True),
        "a mapping of names to lists of texts": lambda: wb.state_scores(
            *both, [wb.Variant("a", "b")], ["t"], {"a": []}, run=run
        ),
    }
    for words, call in cases.items():
        with pytest.raises(ValueError, match=words) as error:
            call()
        assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.rglob("*.*")] == [".x.csv.begun"]  # of the function that ran


def test_a_model_and_a_tokenizer_are_such():
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    assert wb.number_of_layers(model) == 7
    for bad in (None, "demo", object()):
        with pytest.raises(ValueError, match="model must be a language model, as load_model returns it, got"):
            wb.angular_distances(bad, tokenizer, ["a"])
    with pytest.raises(
        ValueError, match="tokenizer must be a tokenizer, as load_model returns it, got 'demo'"
    ):
        wb.angular_distances(model, "demo", ["a"])


@pytest.mark.parametrize("column", ["start", "size", "distance"])
def test_a_column_that_is_missing_or_holds_words_is_named(column: str):
    for function in (wb.distance_heatmap, wb.best_blocks, wb.distance_lines):
        with pytest.raises(ValueError, match=f"{column}") as error:
            function(DISTANCES.drop(columns=column))
        assert "\n" not in str(error.value)
        with pytest.raises(ValueError, match=f"distances: column '{column}' must hold numbers, got 'many'"):
            function(DISTANCES.assign(**{column: "many"}))


def test_settings_that_are_handed_on_are_looked_at():
    with pytest.raises(ValueError, match="batch_size must be a whole number >= 1, got '3'"):
        wb.respond(tiny_model("llama"), tiny_tokenizer(), DISTANCES, batch_size="3")


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"path cannot be written at .*: .*file is no folder"):
        wb.save_figure(wb.distance_heatmap(DISTANCES), tmp_path / "file" / "figure")


def test_an_error_of_the_package_that_is_no_bad_column_stays_what_it_is(monkeypatch):
    def broken(frame: pd.DataFrame) -> None:
        raise KeyError("another thing entirely", 3)

    with pytest.raises(KeyError, match="another thing"):
        arguments.looked_at(broken)(DISTANCES)
    with pytest.raises(TypeError, match="frames"):
        wb.best_blocks(DISTANCES, frames=3)  # Python's own error for an argument that does not exist


def test_public_names_stay_what_they_are():
    from workbench.distances.blocks import best_blocks

    assert inspect.unwrap(wb.best_blocks) is best_blocks
    assert inspect.signature(wb.best_blocks) == inspect.signature(best_blocks)
    assert wb.best_blocks.__doc__ == best_blocks.__doc__
    assert pickle.loads(pickle.dumps(wb.best_blocks)) is wb.best_blocks
    pd.testing.assert_frame_equal(wb.best_blocks(DISTANCES), best_blocks(DISTANCES))


def test_frames_of_the_package_pass(tmp_path: Path):
    """The columns that must hold numbers do, in frames as the package makes them."""
    scores, damage = score_frame(), damage_frame(DISTANCES)
    assert wb.headline(scores) is not None
    assert wb.distance_beside_damage(DISTANCES, damage) is not None
    assert wb.to_markdown(pd.DataFrame({"value": ["any text"], "start": ["x"]}))
