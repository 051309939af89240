"""The grid search: every combination once, over stops and workers, and the best by held-out loss."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from healed import logits, make_examples, same_state, state
from tiny import tiny_model

import workbench as wb
from workbench.healing.adapters import with_adapter
from workbench.healing.config import HealingConfig
from workbench.healing.heal import heal
from workbench.healing.losses import response_loss
from workbench.healing.search import SDD_GRID, _claimed, read_trials, tune
from workbench.healing.study import enqueue, open_study
from workbench.plots.healing import tuning_figure
from workbench.runs.files import decode_frame, encode_frame

BASE = HealingConfig(max_steps=3, max_length=128, batch_size=4, dropout=0.1)
GRID = {"rank": [2, 4], "learning_rate": [1e-3, 3e-2]}


@pytest.fixture
def model():
    return tiny_model("llama", num_hidden_layers=3)


@pytest.fixture(scope="module")
def sets():
    rows = make_examples(24)
    return rows[:16], rows[16:].reset_index(drop=True)


def search(model, tokenizer, sets, out, by=tune, **options):
    options = {"grid": GRID, "config": BASE, "progress": False, **options}
    return by(model, tokenizer, *sets, out=out, **options)


def test_the_grid_is_the_papers():
    assert [len(values) for values in SDD_GRID.values()] == [4, 4, 5, 5]
    assert SDD_GRID["learning_rate"][0] == 2e-5
    assert SDD_GRID["learning_rate"][-1] == 1e-4
    np.testing.assert_allclose(np.diff(SDD_GRID["learning_rate"]), 2e-5)


def test_every_combination_once_and_the_best_by_held_out_loss(model, tokenizer, sets, tmp_path, monkeypatch):
    before = state(model)
    trials, best = search(model, tokenizer, sets, tmp_path / "a")
    assert same_state(model, before)
    assert sorted(zip(trials["rank"], trials["learning_rate"], strict=True)) == [
        (2, 1e-3), (2, 3e-2), (4, 1e-3), (4, 3e-2)]  # fmt: skip
    assert set(trials["state"]) == {"complete"}
    row = trials.loc[trials["loss"].idxmin()]
    assert (best.rank, best.learning_rate) == (row["rank"], row["learning_rate"])
    assert best == HealingConfig(**{**BASE.__dict__, "rank": best.rank, "learning_rate": best.learning_rate})
    assert isinstance(best.rank, int)
    # the same by hand
    adapter, log = heal(model, tokenizer, sets[0], config=best, out=tmp_path / "by hand", progress=False)
    with with_adapter(model, adapter):
        assert response_loss(model, tokenizer, sets[1]) == pytest.approx(row["loss"], rel=1e-6)
    assert log["tokens"].iloc[-1] == row["tokens"]
    assert not any((tmp_path / "a" / "trials").glob("*"))
    # nothing is done again
    monkeypatch.setattr("workbench.healing.search.heal", pytest.fail)
    again = search(model, tokenizer, sets, tmp_path / "a")
    assert again.best == best
    pd.testing.assert_frame_equal(again.trials, trials)
    pd.testing.assert_frame_equal(read_trials(tmp_path / "a"), trials)


def test_some_of_the_grid_now_and_the_rest_later(model, tokenizer, sets, tmp_path):
    first = search(model, tokenizer, sets, tmp_path / "a", n_trials=2, keep_adapters=True).trials
    assert len(first) == 2
    assert len(list((tmp_path / "a" / "trials").glob("*/adapter_model.safetensors"))) == 2
    rest = search(model, tokenizer, sets, tmp_path / "a").trials
    pd.testing.assert_frame_equal(rest[:2], first)
    assert not rest.duplicated(["rank", "learning_rate"]).any()
    assert len(rest) == 4


def test_the_estimator_also_ends_with_every_combination(model, tokenizer, sets, tmp_path):
    trials, best = search(model, tokenizer, sets, tmp_path / "a", search="tpe")
    assert len(trials) == 4
    assert not trials.duplicated(["rank", "learning_rate"]).any()
    assert best is not None


def test_a_training_that_diverges_is_recorded_and_the_search_goes_on(model, tokenizer, sets, tmp_path):
    handle = model.lm_head.register_forward_hook(
        lambda module, args, output: output * float("nan") if broken() else None
    )
    adapted = model.model.layers[0].mlp.up_proj

    def broken():
        here = model.model.layers[0].mlp.up_proj
        return here is not adapted and here.r["default"] == 4 and model.training

    trials, best = search(model, tokenizer, sets, tmp_path / "a")
    handle.remove()
    assert trials.groupby("rank")["state"].unique().str[0].to_dict() == {2: "complete", 4: "diverged"}
    assert trials.loc[trials["rank"] == 4, "loss"].isna().all()
    assert best.rank == 2


WORKER = """
import sys
sys.path[:0] = {paths!r}
import time
import torch
torch.set_num_threads(1)
import workbench.healing.study
import workbench.healing.trainer as trainer
workbench.healing.study.HEARTBEAT, workbench.healing.study.GRACE = 1, 3
from test_search import *
from tiny import tiny_tokenizer
report = trainer._ResponseTrainer._report
def slow(self, update):
    report(self, update)
    time.sleep({pause})
trainer._ResponseTrainer._report = slow
rows = make_examples(24)
sets = rows[:16], rows[16:].reset_index(drop=True)
search(tiny_model("llama", num_hidden_layers=3), tiny_tokenizer(), sets, {out!r})
"""


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("workbench.healing.study.HEARTBEAT", 1)
    monkeypatch.setattr("workbench.healing.study.GRACE", 3)


def worker(root, out, pause):
    code = WORKER.format(
        paths=[str(root / "tests"), str(root / "tests" / "healing"), str(root)], out=str(out), pause=pause
    )
    return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})


def wait_for(path, condition, process):
    deadline = time.monotonic() + 120
    while not (path.exists() and condition()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None, "the worker ended before it could be stopped"


@pytest.mark.slow
def test_killed_it_goes_on_and_a_finished_trial_is_not_done_again(
    model, tokenizer, sets, tmp_path, root, impatient
):
    out = tmp_path / "a"
    process = worker(root, out, 0.4)
    wait_for(out / "study.db", lambda: (read_trials(out)["state"] == "complete").any(), process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    begun = read_trials(out)
    trials, best = search(model, tokenizer, sets, out)
    done = begun[begun["state"] == "complete"]
    pd.testing.assert_frame_equal(trials[trials["trial"].isin(done["trial"])], done, check_dtype=False)
    assert sorted(trials["state"]) == ["complete"] * 4
    expected = search(model, tokenizer, sets, tmp_path / "whole")
    columns = ["rank", "learning_rate", "loss", "train_loss", "tokens"]
    order = ["rank", "learning_rate"]
    pd.testing.assert_frame_equal(
        trials[columns].sort_values(order, ignore_index=True),
        expected.trials[columns].sort_values(order, ignore_index=True),
    )
    assert best == expected.best


@pytest.mark.slow
def test_two_workers_share_the_work(model, tokenizer, sets, tmp_path, root, impatient, monkeypatch):
    out = tmp_path / "a"
    process = worker(root, out, 0.3)
    wait_for(out / "study.db", lambda: len(read_trials(out)) > 0, process)
    here = []

    def counted(*args, **options):
        here.append(options["out"])
        return heal(*args, **options)

    monkeypatch.setattr("workbench.healing.search.heal", counted)
    search(model, tokenizer, sets, out)
    assert process.wait(timeout=120) == 0
    trials = read_trials(out)
    assert sorted(trials["state"]) == ["complete"] * 4
    assert not trials.duplicated(["rank", "learning_rate"]).any()
    assert 0 < len(here) < 4  # the other worker did the rest


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_trials": 0}, "n_trials must be a whole number >= 1, got 0"),
        ({"n_trials": -1}, "n_trials must be a whole number >= 1, got -1"),
        ({"n_trials": 1.5}, "n_trials must be a whole number >= 1, got 1.5"),
        ({"n_trials": True}, "n_trials must be a whole number >= 1, got True"),
        ({"grid": {"ranks": [2]}}, "grid must give values for fields such as rank, epochs"),
        ({"grid": {"rank": []}}, "grid must give values"),
        ({"grid": {"rank": [0]}}, "rank must be a whole number >= 1, got 0"),
        ({"search": "best"}, "search must be one of grid, tpe, got 'best'"),
        ({"response": "rewrite"}, r"needs the columns \['instruction', 'rewrite'\]"),
    ],
)
def test_bad_searches_give_one_line_before_any_work(model, tokenizer, sets, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        search(model, tokenizer, sets, tmp_path / "a", by=wb.tune, **options)
    assert not (tmp_path / "a").exists()


def test_another_search_is_never_mixed_in(model, tokenizer, sets, tmp_path):
    whole = logits(model)
    search(model, tokenizer, sets, tmp_path / "a", n_trials=1)
    for name, options in [
        ("grid", {"grid": {"rank": [2]}}),
        ("config", {"config": HealingConfig(max_steps=2)}),
        ("held_out", {"response": "response"}),
    ]:
        with pytest.raises(ValueError, match=f"was made from another .*{name}"):
            search(model, tokenizer, sets, tmp_path / "a", **options)
    with pytest.raises(ValueError, match="another model"):
        search(tiny_model("llama", num_hidden_layers=3, seed=1), tokenizer, sets, tmp_path / "a")
    small = {"grid": {"rank": [2]}, "config": HealingConfig(max_steps=1, max_length=128)}
    trials = search(model, tokenizer, sets, tmp_path / "a", overwrite=True, **small).trials
    assert trials[["trial", "rank", "steps"]].to_numpy().tolist() == [[0, 2, 1]]
    with pytest.raises(ValueError, match="out must be the folder of a search"):
        read_trials(tmp_path)
    assert torch.equal(logits(model), whole)


def test_held_out_rows_that_are_learned_are_refused(model, tokenizer, sets, tmp_path):
    learned, held_out = sets
    shared = pd.concat([held_out, learned.iloc[[3]]], ignore_index=True)
    reworded = learned.assign(reference=learned["reference"] + " indeed")  # same prompts, other answers
    texts = learned["instruction"].tolist()
    for one, other, told in [
        (learned, learned, "16 do, such as 0"),
        (learned, shared, "1 do, such as 8"),
        (learned, reworded, "16 do"),
        (texts, ["Some other text.", texts[0]], "1 do, such as 1"),
    ]:
        with pytest.raises(ValueError, match=f"held_out must share no prompt .*{told}") as error:
            search(model, tokenizer, (one, other), tmp_path / "a")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "a").exists()


def test_a_training_that_is_refused_is_told_and_the_search_goes_on(
    model, tokenizer, sets, tmp_path, capsys, monkeypatch
):
    grid = {"targets": [["q_proj", "v_proj"], ["no_such_proj"], "all-linear"], "rank": [2]}
    trials, best = search(model, tokenizer, sets, tmp_path / "a", grid=grid)
    states = trials.set_index("targets")["state"].to_dict()
    assert states == {
        '["q_proj", "v_proj"]': "complete", '["no_such_proj"]': "failed", "all-linear": "complete"
    }  # fmt: skip
    failed = trials[trials["state"] == "failed"].iloc[0]
    assert "targets must be 'all-linear', 'ffn' or some of" in failed["error"]
    assert np.isnan(failed["loss"]) and (trials["error"] != "").sum() == 1
    assert f"trial {failed['trial']} failed: targets must be" in capsys.readouterr().out
    row = trials.loc[trials["loss"].idxmin()]
    assert best.targets == (["q_proj", "v_proj"] if row["targets"].startswith("[") else "all-linear")
    assert not any((tmp_path / "a" / "trials").glob("*"))
    # neither done again nor told again, and it can be kept as CSV and drawn
    monkeypatch.setattr("workbench.healing.search.heal", pytest.fail)
    again = search(model, tokenizer, sets, tmp_path / "a", grid=grid)
    pd.testing.assert_frame_equal(again.trials, trials)
    assert again.best == best
    data, schema = encode_frame("tuning.csv", trials)
    pd.testing.assert_frame_equal(decode_frame("tuning.csv", data, schema), trials)
    assert len(tuning_figure(trials).data) >= 3


def test_a_trial_killed_before_a_heartbeat_is_tried_again(model, tokenizer, sets, tmp_path, impatient):
    out = tmp_path / "a"
    search(model, tokenizer, sets, out, n_trials=2)
    with open_study(out) as study:
        enqueue(study, [{"rank": 4, "learning_rate": 3e-2}], GRID, tries=0)
        _claimed(study.ask(), GRID, 4)  # here its process was killed
        assert sum(read_trials(out)["state"] == "running") == 1
    trials = search(model, tokenizer, sets, out).trials
    assert sorted(trials["state"]) == ["complete"] * 4
    assert not trials.duplicated(["rank", "learning_rate"]).any()
