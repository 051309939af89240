"""The run folder: whole files, exact frames, no stage twice and none stale."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import workbench
from workbench.runs import files
from workbench.runs.files import write_text_atomic
from workbench.runs.run import Run, open_run
from workbench.runs.variant import Variant

SIZES = pd.DataFrame({"start": [0, 1], "distance": [0.1, 0.2]})


class Counter:
    """Counts its calls in a file: what it held itself would be a part of what the stage depends on."""

    def __init__(self, log: Path) -> None:
        self.log = log

    @property
    def calls(self) -> int:
        return len(self.log.read_text()) if self.log.exists() else 0

    def __call__(self, **inputs: object) -> pd.DataFrame:
        calls = self.calls
        self.log.write_text("x" * (calls + 1))
        return SIZES.assign(call=calls + 1)


@pytest.fixture
def stage(tmp_path: Path):
    """Return a stage of the user's own and, as its attribute ``counted``, how often it ran."""
    counted = Counter(tmp_path / "calls")

    def function(**inputs):
        return getattr(function, "counted")()  # noqa: B009 - an attribute is no part of the code

    function.counted = counted
    return function


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


def test_a_stage_runs_once_for_the_same_inputs(run: Run, stage):
    first = run.frame("x.csv", stage, seed=0, texts=["a", "b"])
    again = open_run("test", root=run.folder.parent).frame("x.csv", stage, texts=["a", "b"], seed=0)
    assert stage.counted.calls == 1
    pd.testing.assert_frame_equal(first, again, check_exact=True)


@pytest.mark.parametrize(
    "changed",
    [{"seed": 1}, {"texts": ["a", "c"]}, {"texts": ["b", "a"]}, {"extra": None}, {"frame": SIZES + 1e-16}],
)
def test_a_stage_runs_again_when_an_input_changes(run: Run, stage, changed, capsys):
    inputs = {"seed": 0, "texts": ["a", "b"], "frame": SIZES}
    run.frame("x.csv", stage, **inputs)
    assert run.frame("x.csv", stage, **{**inputs, **changed})["call"].tolist() == [2, 2]
    assert capsys.readouterr().out == f"x.csv: computed again; another {next(iter(changed))}\n"
    assert run.frame("x.csv", stage, **inputs)["call"].tolist() == [3, 3]


def test_long_lists_and_frames_are_followed_to_the_last_item(run: Run, stage):
    texts = [str(n) for n in range(1000)]
    run.frame("x.csv", stage, texts=texts)
    run.frame("x.csv", stage, texts=[*texts[:-1], "other"])
    assert stage.counted.calls == 2
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


@pytest.mark.parametrize("damage", ["edit", "truncate", "delete", "sidecar", "{", "{}", "[]", "null", "\x00"])
def test_a_damaged_file_is_never_served(run: Run, stage, damage: str):
    run.frame("x.csv", stage)
    path, sidecar = run.path("x.csv"), run.path("x.csv.meta.json")
    if damage == "edit":
        path.write_text(path.read_text().replace("0.1", "0.3"))
    elif damage == "truncate":
        path.write_bytes(path.read_bytes()[:-4])
    elif damage == "delete":
        path.unlink()
    elif damage == "sidecar":  # as a kill before it was written leaves it
        sidecar.rename(run.path("x.csv").with_name(".x.csv.begun"))
    else:
        sidecar.write_text(damage)
    with pytest.raises(ValueError, match=r"x\.csv"):
        run.read("x.csv")
    assert run.frame("x.csv", stage)["call"].tolist() == [2, 2]
    assert run.read("x.csv")["distance"].tolist() == [0.1, 0.2]


def test_a_stage_that_fails_leaves_the_old_result(run: Run):
    run.frame("x.csv", lambda seed: SIZES, seed=0)

    def broken(seed):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        run.frame("x.csv", broken, seed=1)
    pd.testing.assert_frame_equal(run.read("x.csv"), SIZES)


def test_a_stage_runs_again_when_what_it_makes_besides_is_gone_or_altered(run: Run, stage):
    weights = run.path("adapters/sft/weights")

    def trained(out, **settings):
        write_text_atomic(out / "weights", "w")
        return stage(**settings)

    for expected, harm in (
        (1, lambda: None),
        (1, weights.unlink),
        (2, lambda: weights.write_text("other")),
        (3, None),
    ):
        frame = run.frame("log.csv", trained, out=run.path("adapters/sft"))
        assert frame["call"].tolist() == [expected] * 2
        if harm:
            harm()
    with pytest.raises(ValueError, match="'adapters/none', but computing"):
        run.frame("other.csv", trained, run.path("adapters/other"), makes=["adapters/none"])


def test_a_file_of_the_user_is_left_alone_and_one_of_a_killed_call_is_not(run: Run, stage, monkeypatch):
    write_text_atomic(run.path("x.csv"), "my,notes\n")
    with pytest.raises(ValueError, match=r"'x\.csv': .* no x\.csv\.meta\.json beside it; rename or re"):
        run.frame("x.csv", stage)
    assert run.path("x.csv").read_text() == "my,notes\n" and stage.counted.calls == 0
    run.path("x.csv").unlink()

    def killed(path, text):
        if path.name.endswith(".meta.json"):
            raise KeyboardInterrupt
        return write_text_atomic(path, text)

    monkeypatch.setattr("workbench.runs.files.write_text_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        run.frame("x.csv", stage)
    monkeypatch.undo()
    assert run.path("x.csv").exists() and not run.files()
    assert run.frame("x.csv", stage)["call"].tolist() == [2, 2]


@pytest.mark.parametrize("way", ["elsewhere", "by a link"])
def test_an_output_elsewhere_belongs_to_the_stage_too(run: Run, stage, tmp_path, way):
    out = tmp_path / "elsewhere" / "items"
    if way == "by a link":  # the run is called by one name, its file by another
        (tmp_path / "elsewhere").mkdir()
        run.folder = tmp_path / "linked"
        run.folder.symlink_to(tmp_path / "elsewhere")

    def written(out, **settings):
        write_text_atomic(out, "rows")
        return stage(**settings)

    harms = (lambda: None, out.unlink, lambda: out.write_text("other"), None)
    for expected, harm in zip((1, 1, 2, 3), harms, strict=True):
        assert run.frame("x.csv", written, out)["call"].tolist() == [expected] * 2
        assert out.read_text() == "rows"
        if harm:
            harm()
    assert run.frame("x.csv", written, tmp_path / "another")["call"].tolist() == [4, 4]
    run.frame("y.csv", lambda out: SIZES, "a word")  # an argument of that name that is no path


def test_what_is_set_aside_keeps_its_name_but_for_its_beginning(run: Run):
    for name in ("e", "e.unfinished"):
        run.path(name).mkdir(parents=True)
    run._set_aside("e")
    assert sorted(path.name for path in run.folder.iterdir()) == ["e.before-1", "e.before-1.unfinished"]


def write_adapter(out: Path, rank: int, fails: bool = False) -> pd.DataFrame:
    """Go on from what is there, as a training does, or stop half way."""
    before = (out / "weights").read_text() if (out / "weights").exists() else ""
    write_text_atomic(out / "weights", f"{before}rank {rank};")
    if fails:
        raise KeyboardInterrupt
    return SIZES


def test_another_setting_keeps_the_finished_adapter_under_another_name(run: Run, capsys):
    out = run.path("adapters/sft")
    run.frame("log.csv", write_adapter, out, rank=8)
    run.frame("log.csv", write_adapter, out, rank=16)
    assert (out / "weights").read_text() == "rank 16;"
    assert (run.path("adapters/sft.before-1") / "weights").read_text() == "rank 8;"
    told = capsys.readouterr().out
    assert "computed again; another rank" in told and "kept as sft.before-1" in told
    run.frame("log.csv", write_adapter, out, rank=8)
    assert (run.path("adapters/sft.before-2") / "weights").read_text() == "rank 16;"


def test_a_stopped_stage_finds_its_own_beginning_and_no_other(run: Run):
    out = run.path("adapters/sft")
    with pytest.raises(KeyboardInterrupt):
        run.frame("log.csv", write_adapter, out, rank=8, fails=True)
    with pytest.raises(KeyboardInterrupt):
        run.frame("log.csv", write_adapter, out, rank=8, fails=True)
    assert (out / "weights").read_text() == "rank 8;rank 8;"
    run.frame("log.csv", write_adapter, out, rank=16)
    assert (out / "weights").read_text() == "rank 16;"
    assert (run.path("adapters/sft.before-1") / "weights").read_text() == "rank 8;rank 8;"


def test_what_was_made_elsewhere_is_found_in_its_place(run: Run):
    out = run.path("adapters/sft")
    write_text_atomic(out / "weights", "trained by a plan;")
    run.frame("log.csv", write_adapter, out, rank=8)
    assert (out / "weights").read_text() == "trained by a plan;rank 8;"


@pytest.mark.parametrize("value", [print, object(), np.random.default_rng(0), iter([1])])
def test_an_input_whose_content_cannot_be_followed_is_refused(run: Run, stage, value):
    with pytest.raises(ValueError, match=r"model must be plain data, .* a model, a tokenizer or a function"):
        run.frame("x.csv", stage, model=value)
    assert stage.counted.calls == 0


def test_arguments_that_the_function_does_not_take_are_refused_before_anything_is_done(run: Run):
    with pytest.raises(TypeError, match="write_adapter: got an unexpected keyword argument 'rang'"):
        run.frame("x.csv", write_adapter, run.path("adapters/sft"), 8, rang=8)
    assert not run.folder.exists() or not any(run.folder.iterdir())


def test_provenance_tells_where_a_result_came_from(run: Run, stage):
    run.frame("x.csv", stage, model={"id": "demo"}, seed=np.int64(3), folder=Path("a/b"))
    told = run.provenance("x.csv")
    inputs = dict(told["inputs"])
    assert inputs.pop("function").endswith("stage.<locals>.function")
    assert inputs == {"model": {"id": "demo"}, "seed": 3, "folder": "a/b"}
    assert told["versions"]["workbench"] == workbench.__version__
    assert {"torch", "transformers", "peft", "pandas"} <= set(told["versions"])
    assert told["created"].endswith("+00:00")
    assert told["sha256"] == files.sha256_of(run.path("x.csv"))
    assert {"python", "platform", "commit", "uncommitted_changes", "command"} <= set(told)


def test_reading_what_is_not_there_names_its_notebook_and_what_is(run: Run, root: Path, monkeypatch):
    run.write("distances.csv", SIZES)
    notebooks = run.folder / "notebooks"
    notebooks.mkdir()
    cell = {
        "cell_type": "code",
        "source": ["scores = run.frame(\n", "    'scores.csv', lambda: evaluate(model))"],
    }
    (notebooks / "05_evaluation.ipynb").write_text(json.dumps({"cells": [cell]}))
    monkeypatch.setattr("workbench.runs.writers.NOTEBOOKS", run.folder / "notebooks")
    with pytest.raises(ValueError, match=r"scores\.csv is not in run 'test' .*05_evaluation.*distances\.csv"):
        run.read("scores.csv")
    with pytest.raises(ValueError, match=r"other\.csv is not in run 'test' \(\S+\)\. There now: dist"):
        run.read("other.csv")  # whatever writes it, nothing false is said of it


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


def test_a_variant_that_was_deleted_or_is_none_hides_no_other(run: Run):
    first, second = (run.save_variant(Variant(name, "demo")) for name in ("first", "second"))
    run.path("variants/first.json").unlink()
    run.write_json("variants/plan.json", {"name": "plan"})
    assert run.variants() == [second]
    with pytest.raises(ValueError, match=r"one of \['second'\]"):
        run.variant(first.name)
    with pytest.raises(ValueError, match=r"variants/plan\.json of run 'test' holds no variant"):
        run.variant("plan")


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


def test_a_kill_between_file_and_sidecar_makes_the_stage_run_again(run: Run, stage):
    run.frame("x.csv", stage, seed=0)
    script = f"""
import os, sys
import pandas as pd
import workbench.runs.run as runs
write = runs.files.write_text_atomic
runs.files.write_text_atomic = lambda *_: os._exit(9)
runs.open_run("test", root={str(run.folder.parent)!r}).write("x.csv", pd.DataFrame({{"start": [9]}}))
"""
    assert (
        subprocess.run([sys.executable, "-c", script], cwd=Path(workbench.__file__).parents[1]).returncode
        == 9
    )
    with pytest.raises(ValueError, match="altered or not finished"):
        run.read("x.csv")
    assert run.frame("x.csv", stage, seed=0)["start"].tolist() == [0, 1]
    assert stage.counted.calls == 2


def test_a_stage_that_is_computed_again_says_how_long_it_took(run: Run, capsys, monkeypatch):
    def function(rows):
        return pd.DataFrame({"row": range(rows)})

    clock = iter([0.0, 83.4, 100.0, 100.1])
    monkeypatch.setattr("workbench.runs.run.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    run.frame("x.csv", function, rows=2)
    assert run.provenance("x.csv")["seconds"] == 83.4
    run.frame("x.csv", function, rows=3)
    assert capsys.readouterr().out == "x.csv: computed again; another rows; it took 83 s last time\n"


def test_a_variant_that_is_not_there_yet_names_its_notebook(run: Run):
    with pytest.raises(
        ValueError, match=r"one of \[\] in run 'test', got 'base'; run notebook 04_healing for"
    ):
        run.variant("base")


@pytest.mark.parametrize("name", ["x.csv", "x.csv.meta.json"])
def test_a_pipe_in_the_place_of_a_result_is_none(run: Run, name):
    run.write("x.csv", pd.DataFrame({"a": [1]}))
    run.path(name).unlink()
    os.mkfifo(run.path(name))
    with pytest.raises(ValueError, match=r"x\.csv is not in run|was altered"):
        run.read("x.csv")


def test_what_is_of_earlier_variants_is_refused_and_says_what_changed(run: Run, stage):
    cut = run.save_variant(Variant("pruned", "tiny", removed=(3, 9), note="for the reader"))
    healed = run.save_variant(Variant("healed", "tiny", removed=(3, 9), adapter="plans/healed"))
    write_text_atomic(run.path("plans/healed"), "weights")
    run.write("scores.csv", SIZES, variants=[cut, healed])
    run.frame("similarity.csv", stage, seed=0, of=[cut, healed])
    run.write("distances.csv", SIZES)
    run.frame("responses-pruned.jsonl", stage, seed=0, of=[cut])
    run.save_variant(Variant("merged", "tiny", removed=(5,)))  # a new one, without scores yet
    run.save_variant(Variant("pruned", "tiny", removed=(3, 9), note="another note"))
    assert not any(run.outdated(name) for name in run.files())
    write_text_atomic(run.path("plans/healed"), "other weights")
    for name in ("scores.csv", "similarity.csv"):
        with pytest.raises(ValueError, match=f"{name} is of an earlier 'healed' .*another adapter"):
            run.read(name)
    run.path("plans/healed").unlink()  # a copy of the run without adapters
    assert len(run.read("scores.csv")) == 2
    run.save_variant(Variant("pruned", "tiny", removed=(11, 12)))
    with pytest.raises(ValueError, match=r"\[3, 9\] out, \[11, 12\] now\); run notebook 05_evaluation"):
        run.read("scores.csv")
    assert run.outdated("responses-pruned.jsonl").endswith("run notebook 06_forgetting again for this run")
    assert len(run.read("distances.csv")) == 2


def test_a_frame_that_is_served_tells_of_the_variants_of_today(run: Run, stage):
    cut = run.save_variant(Variant("pruned", "tiny", removed=(3,)))
    run.frame("x.csv", stage, seed=0)
    run.frame("x.csv", stage, seed=0, of=[cut])
    assert stage.counted.calls == 1 and not run.outdated("x.csv")
    cut = run.save_variant(Variant("pruned", "tiny", removed=(4,)))
    assert run.outdated("x.csv")
    run.frame("x.csv", stage, seed=0, of=[cut])
    assert stage.counted.calls == 1 and len(run.read("x.csv")) == 2


def test_a_frame_that_tells_of_variants_is_as_old_as_its_stage(run: Run, stage):
    cut, deeper = Variant("pruned", "tiny", removed=(3, 9)), Variant("deeper", "tiny", removed=(3, 9, 10))
    run.frame("x.csv", stage, seed=0, of=[cut])
    before = run.path("x.csv.meta.json").read_bytes()
    run.frame("x.csv", stage, seed=0, of=[cut])
    assert run.path("x.csv.meta.json").read_bytes() == before
    run.frame("x.csv", stage, seed=0, of=[cut, deeper])
    told = run.provenance("x.csv")
    assert [one["name"] for one in told["of"]] == ["pruned", "deeper"]
    assert told["created"] == json.loads(before)["created"] and stage.counted.calls == 1
