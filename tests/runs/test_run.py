"""The run folder: whole files, exact frames, no stage twice and none stale."""

from __future__ import annotations

import functools
import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import workbench
from workbench.runs import files, provenance
from workbench.runs.files import write_text_atomic
from workbench.runs.run import Run, open_run
from workbench.runs.variant import Variant

SIZES = pd.DataFrame({"start": [0, 1], "distance": [0.1, 0.2]})


class Counter:
    """A stage that counts its calls (an object, so that it is no plain input itself)."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> pd.DataFrame:
        self.calls += 1
        return SIZES.assign(call=self.calls)


@pytest.mark.parametrize(
    ("name", "frame", "message"),
    [
        ("x.csv", pd.DataFrame({"layers": [[3, 4]]}), r"column 'layers' .* would change .*\.jsonl"),
        ("../x.csv", SIZES, "inside the run"),
        ("/tmp/x.csv", SIZES, "inside the run"),
        ("a\\b.csv", SIZES, "inside the run"),
        (".x.csv", SIZES, "inside the run"),
    ],
)
def test_what_cannot_be_stored_is_refused_and_nothing_written(run: Run, name, frame, message):
    with pytest.raises(ValueError, match=message):
        run.write(name, frame)
    assert run.files() == []


def test_a_stage_runs_once_for_the_same_inputs(run: Run):
    stage = Counter()
    first = run.frame("x.csv", stage, seed=0, texts=["a", "b"])
    again = open_run("test", root=run.folder.parent).frame("x.csv", stage, texts=["a", "b"], seed=0)
    assert stage.calls == 1
    pd.testing.assert_frame_equal(first, again, check_exact=True)


@pytest.mark.parametrize(
    "changed",
    [{"seed": 1}, {"texts": ["a", "c"]}, {"texts": ["b", "a"]}, {"extra": None}, {"frame": SIZES + 1e-16}],
)
def test_a_stage_runs_again_when_an_input_changes(run: Run, changed):
    stage = Counter()
    inputs = {"seed": 0, "texts": ["a", "b"], "frame": SIZES}
    run.frame("x.csv", stage, **inputs)
    assert run.frame("x.csv", stage, **{**inputs, **changed})["call"].tolist() == [2, 2]
    assert run.frame("x.csv", stage, **inputs)["call"].tolist() == [3, 3]


def test_long_lists_and_frames_are_followed_to_the_last_item(run: Run):
    stage = Counter()
    texts = [str(n) for n in range(1000)]
    run.frame("x.csv", stage, texts=texts)
    run.frame("x.csv", stage, texts=[*texts[:-1], "other"])
    assert stage.calls == 2
    assert run.provenance("x.csv")["inputs"]["texts"]["items"] == 1000


def scaled(value: float) -> float:
    return value * FACTOR


FACTOR = 1


def test_numbers_that_the_stage_reads_from_its_surroundings_are_inputs(run: Run, monkeypatch):
    assert run.frame("x.csv", lambda: SIZES * FACTOR)["distance"].tolist() == [0.1, 0.2]
    assert run.frame("y.csv", lambda: SIZES.map(scaled))["distance"].tolist() == [0.1, 0.2]
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 2)
    assert run.frame("x.csv", lambda: SIZES * FACTOR)["distance"].tolist() == [0.2, 0.4]
    assert run.frame("y.csv", lambda: SIZES.map(scaled))["distance"].tolist() == [0.2, 0.4]


def test_an_edited_stage_runs_again_and_an_unedited_one_does_not():
    first, same, other = (
        eval(text) for text in ("lambda: f(size=1)", "lambda: f(size=1)", "lambda: f(size=2)")
    )
    assert provenance.code_inputs(first) == provenance.code_inputs(same)
    assert provenance.code_inputs(first) != provenance.code_inputs(other)


def test_a_partial_counts_with_every_plain_argument():
    def stage(*_, **__):
        return SIZES

    def inputs(*arguments, **keywords):
        return provenance.code_inputs(
            functools.partial(stage, object(), *arguments, model=object(), **keywords)
        )

    assert inputs(SIZES, limit=1) == inputs(SIZES, limit=1)
    assert inputs(SIZES, limit=1) != inputs(SIZES, limit=2)
    assert inputs(SIZES, limit=1) != inputs(SIZES + 1, limit=1)
    package = provenance.code_inputs(functools.partial(files.encode_frame, "x.csv"))
    assert set(package["modules"]) == {"workbench"}
    assert package["values"] == {"stage(0)": "x.csv"}


def test_what_a_function_is_bound_to_counts_wherever_it_is_bound():
    def inputs(limit: int, name: str):
        score = functools.partial(files.decode_frame, object(), limit=limit)
        return provenance.code_inputs(lambda name=name: score(name))

    assert inputs(1, "a") == inputs(1, "a")
    assert inputs(1, "a") != inputs(2, "a")
    assert inputs(1, "a") != inputs(1, "b")
    assert set(inputs(1, "a")["modules"]) == {"workbench"}


@pytest.mark.parametrize("damage", ["edit", "truncate", "delete", "sidecar", "garbage sidecar"])
def test_a_damaged_file_is_never_served(run: Run, damage: str):
    stage = Counter()
    run.frame("x.csv", stage)
    path, sidecar = run.path("x.csv"), run.path("x.csv.meta.json")
    if damage == "edit":
        path.write_text(path.read_text().replace("0.1", "0.3"))
    elif damage == "truncate":
        path.write_bytes(path.read_bytes()[:-4])
    elif damage == "delete":
        path.unlink()
    elif damage == "sidecar":
        sidecar.unlink()
    else:
        sidecar.write_text("{")
    with pytest.raises(ValueError, match=r"x\.csv"):
        run.read("x.csv")
    assert run.frame("x.csv", stage)["call"].tolist() == [2, 2]
    assert run.read("x.csv")["distance"].tolist() == [0.1, 0.2]


def test_a_stage_that_fails_leaves_the_old_result(run: Run):
    run.frame("x.csv", lambda: SIZES, seed=0)

    def broken():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        run.frame("x.csv", broken, seed=1)
    pd.testing.assert_frame_equal(run.read("x.csv"), SIZES)


def test_a_stage_runs_again_when_what_it_makes_besides_is_gone_or_altered(run: Run):
    counter, weights = Counter(), run.path("adapters/sft/weights")

    def stage():
        write_text_atomic(weights, "w")
        return counter()

    for expected, harm in (
        (1, lambda: None),
        (1, weights.unlink),
        (2, lambda: weights.write_text("other")),
        (3, None),
    ):
        assert run.frame("log.csv", stage, makes=["adapters/sft"])["call"].tolist() == [expected] * 2
        if harm:
            harm()
    with pytest.raises(ValueError, match="'adapters/none', but computing"):
        run.frame("log.csv", stage, makes=["adapters/none"], seed=1)


@pytest.mark.parametrize("value", [print, object(), np.random.default_rng(0)])
def test_an_input_without_plain_content_is_refused(run: Run, value):
    with pytest.raises(ValueError, match=r"inputs\['model'\] must be plain data .* describe_model"):
        run.frame("x.csv", Counter(), model=value)


def test_provenance_tells_where_a_result_came_from(run: Run):
    run.frame("x.csv", Counter(), model={"id": "demo"}, seed=np.int64(3), folder=Path("a/b"))
    told = run.provenance("x.csv")
    assert told["inputs"] == {"model": {"id": "demo"}, "seed": 3, "folder": "a/b"}
    assert told["versions"]["workbench"] == workbench.__version__
    assert {"torch", "transformers", "peft", "pandas"} <= set(told["versions"])
    assert told["created"].endswith("+00:00")
    assert told["sha256"] == files.sha256_of(run.path("x.csv"))
    assert {"python", "platform", "commit", "uncommitted_changes", "command"} <= set(told)


def test_the_commit_is_that_of_the_checkout(run: Run, root: Path):
    head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
    expected = head.stdout.strip() if head.returncode == 0 else None
    run.write_json("x.json", [1])
    assert run.provenance("x.json")["commit"] == expected


def test_reading_what_is_not_there_names_its_notebook_and_what_is(run: Run, root: Path, monkeypatch):
    run.write("distances.csv", SIZES)
    notebooks = run.folder / "notebooks"
    notebooks.mkdir()
    cell = {
        "cell_type": "code",
        "source": ["scores = run.frame(\n", "    'scores.csv', lambda: evaluate(model))"],
    }
    (notebooks / "05_evaluation.ipynb").write_text(json.dumps({"cells": [cell]}))
    monkeypatch.setattr("workbench.runs.run.NOTEBOOKS", run.folder / "notebooks")
    with pytest.raises(ValueError, match=r"scores\.csv is not in run 'test' .*05_evaluation.*distances\.csv"):
        run.read("scores.csv")
    with pytest.raises(ValueError, match="no notebook writes it"):
        run.read("other.csv")


def test_json_round_trip(run: Run):
    value = {"layers": [3, 4], "note": "ü", "nothing": None}
    run.write_json("selection.json", value)
    assert run.read_json("selection.json") == value
    with pytest.raises(ValueError, match=r"must end in \.json"):
        run.write_json("selection.txt", value)


@pytest.mark.parametrize("name", ["", "..", "a/b", "/tmp", ".hidden", "a b", "a\0", "x" * 101, None, 3])
def test_run_names_cannot_leave_the_folder(tmp_path, name):
    with pytest.raises(ValueError, match="run name must be"):
        open_run(name, root=tmp_path)


def test_variants_come_back_in_the_order_they_were_made(run: Run):
    base = Variant("base", "demo")
    healed = Variant("pruned-sft", "demo", removed=[4, 3], adapter="adapters/sft", note="2 of 16")
    run.save_variant(healed)
    run.save_variant(base)
    assert run.variants() == [healed, base]
    assert run.variant("pruned-sft").removed == (3, 4)
    with pytest.raises(ValueError, match=r"one of \['pruned-sft', 'base'\].*got 'merged'"):
        run.variant("merged")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "../x"}, "variant name must be"),
        ({"removed": (3, 3)}, "different layer indices"),
        ({"removed": (-1,)}, "different layer indices"),
        ({"adapter": "/tmp/adapter"}, "adapter must be a path inside the run"),
    ],
)
def test_variants_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        Variant(**{"name": "x", "model": "demo", **arguments})


def _write_often(root: Path, value: int) -> None:
    run = open_run("test", root=root)
    for _ in range(20):
        run.write("x.csv", pd.DataFrame({"x": np.full(2000, value)}), value=value)


def test_writers_at_the_same_time_never_tear_a_file(run: Run):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_often, args=(run.folder.parent, value)) for value in (1, 2)]
    run.write("x.csv", pd.DataFrame({"x": np.full(2000, 1)}), value=1)
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert run.read("x.csv")["x"].nunique() == 1
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert run.read("x.csv")["x"].tolist() == [run.provenance("x.csv")["inputs"]["value"]] * 2000


def test_a_kill_between_file_and_sidecar_makes_the_stage_run_again(run: Run):
    run.frame("x.csv", Counter(), seed=0)
    script = f"""
import os, sys
import pandas as pd
import workbench.runs.run as runs
write = runs.write_text_atomic
runs.write_text_atomic = lambda *_: os._exit(9)
runs.open_run("test", root={str(run.folder.parent)!r}).write("x.csv", pd.DataFrame({{"start": [9]}}))
"""
    assert (
        subprocess.run([sys.executable, "-c", script], cwd=Path(workbench.__file__).parents[1]).returncode
        == 9
    )
    with pytest.raises(ValueError, match="altered or not finished"):
        run.read("x.csv")
    stage = Counter()
    assert run.frame("x.csv", stage, seed=0)["start"].tolist() == [0, 1]
    assert stage.calls == 1
