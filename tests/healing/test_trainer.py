"""The training loop: the loss of the learned tokens, a log, and a stop that loses nothing."""

from __future__ import annotations

import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from healed import (
    logits,
    make_examples,
    run,
    same_weights,
    stop_at,
)
from safetensors.torch import load_file
from tiny import tiny_model, tiny_tokenizer
from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from workbench.healing.adapters import with_adapter
from workbench.healing.config import HealingConfig
from workbench.healing.folders import last_checkpoint
from workbench.healing.samples import read_samples
from workbench.healing.trainer import LOG_COLUMNS
from workbench.pruning.removal import without_layers


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "granite", "opt", "bloom"])
def test_the_first_loss_is_the_mean_over_the_learned_tokens(architecture, tokenizer, examples, tmp_path):
    model = tiny_model(
        architecture,
        **({} if architecture != "gpt2" else {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}),
    )
    if architecture == "opt":
        model.config.dropout = 0.0
        for module in model.modules():
            if hasattr(module, "dropout") and isinstance(module.dropout, float):
                module.dropout = 0.0
    config = HealingConfig(rank=4, epochs=1, batch_size=20, micro_batch_size=4, max_length=128)
    found = run(model, tokenizer, examples, tmp_path / "a", config=config).log
    total = count = 0.0
    for sample in read_samples(model, tokenizer, examples, "reference", 128)[0]:
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([sample.ids])).logits[0].log_softmax(-1)
        for place in range(sample.n_prompt, len(sample.ids)):
            total -= scores[place - 1, sample.ids[place]].item()
            count += 1
    assert len(found) == 1
    assert found.loc[0, "loss"] == pytest.approx(total / count, rel=1e-5)


def test_accumulated_micro_batches_are_one_batch(model, tokenizer, examples, tmp_path):
    logs = [
        run(model, tokenizer, examples, tmp_path / str(micro), config=HealingConfig(
            rank=4, learning_rate=1e-2, epochs=2, batch_size=8, micro_batch_size=micro, max_length=128)).log
        for micro in (8, 2)
    ]  # fmt: skip
    assert len(logs[0]) == 5
    np.testing.assert_allclose(logs[0]["loss"], logs[1]["loss"], rtol=1e-5)
    assert logs[0]["tokens"].tolist() == logs[1]["tokens"].tolist()


def test_healing_learns_and_the_log_says_how(model, tokenizer, examples, tmp_path):
    config = HealingConfig(
        rank=8, learning_rate=2e-2, epochs=12, batch_size=8, max_length=128, warmup_steps=2
    )
    adapter, log = run(model, tokenizer, examples, tmp_path / "a", config=config, response="response")
    assert list(log.columns) == LOG_COLUMNS
    assert log["step"].tolist() == list(range(1, 31))
    assert log["epoch"].iloc[-1] == 12
    assert log["loss"].iloc[-1] < 0.5 * log["loss"].iloc[0]
    assert log["learning_rate"].max() == pytest.approx(2e-2)
    assert log["learning_rate"].iloc[-1] < 1e-3
    lengths = [len(s.ids) for s in read_samples(model, tokenizer, examples, "response", 128)[0]]
    assert log["tokens"].iloc[-1] == 12 * sum(lengths)
    assert log["seconds"].is_monotonic_increasing
    assert adapter == tmp_path / "a"


def test_the_learning_rate_of_a_row_is_the_one_that_made_its_update(model, tokenizer, examples, tmp_path):
    settings = {"rank": 4, "learning_rate": 8e-3, "max_steps": 6, "batch_size": 8, "max_length": 128}
    config = HealingConfig(**settings, warmup_steps=2, schedule="linear")
    log = run(model, tokenizer, examples, tmp_path / "a", config=config).log
    np.testing.assert_allclose(log["learning_rate"], [0, 4e-3, 8e-3, 6e-3, 4e-3, 2e-3])
    # and so it is in fact: with a rate of 0 nothing is learned by the first update
    rate = replace(config, warmup_steps=0, max_steps=2)
    log = run(model, tokenizer, examples, tmp_path / "b", config=rate).log
    np.testing.assert_allclose(log["learning_rate"], [8e-3, 4e-3])


def test_the_log_counts_no_more_seconds_than_have_passed(model, tokenizer, examples, tmp_path):
    began = time.perf_counter()
    log = run(model, tokenizer, examples, tmp_path / "a", progress=lambda row: time.sleep(0.05)).log
    passed = time.perf_counter() - began
    assert 0.05 * (len(log) - 1) <= log["seconds"].iloc[-1] <= passed
    spent = log["tokens"].diff().fillna(log["tokens"]) / log["tokens_per_second"]
    assert spent.sum() == pytest.approx(log["seconds"].iloc[-1])
    assert log["tokens"].iloc[-1] / passed <= log["tokens"].iloc[-1] / log["seconds"].iloc[-1]


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors"]
)
@pytest.mark.parametrize("torn", [True, False])
def test_a_checkpoint_with_a_part_missing_or_torn_is_passed_over(tmp_path, checkpoints, name, torn):
    folder = tmp_path / "checkpoints"
    shutil.copytree(checkpoints, folder)
    newest = Path(last_checkpoint(folder))
    part = newest / name
    if torn and name.endswith("safetensors"):
        part = newest / "trainer_state.json"
    if torn:
        part.write_bytes(part.read_bytes()[:-20])
    else:
        part.unlink()
    assert last_checkpoint(folder) not in (None, str(newest))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    out = tmp_path_factory.mktemp("stopped") / "a"
    with pytest.raises(RuntimeError):
        run(tiny_model("llama"), tiny_tokenizer(), make_examples(), out, progress=stop_at(5, RuntimeError))
    return out.with_name("a.unfinished") / "checkpoints"


def test_trackers_get_every_row_under_its_step(model, tokenizer, examples, tmp_path, monkeypatch):
    seen = []

    class Diary(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            seen.append((state.global_step, logs))

    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "tensorboard", Diary)
    monkeypatch.setattr(
        "workbench.healing.arguments.get_available_reporting_integrations", lambda: ["tensorboard"]
    )
    held_out = make_examples(26)[20:]
    log = run(model, tokenizer, examples, tmp_path / "a", held_out=held_out, report_to="tensorboard").log
    rows = [(step, told) for step, told in seen if "tokens_per_second" in told]
    assert [step for step, _ in rows] == log["step"].tolist()
    assert [told["loss"] for _, told in rows] == log["loss"].tolist()
    measured = [told["held_out_loss"] for _, told in rows if "held_out_loss" in told]
    assert measured == log["held_out_loss"].dropna().tolist()


def test_an_interrupted_training_goes_on_to_the_same_end(model, tokenizer, examples, tmp_path):
    fields = {"rank": 4, "dropout": 0.1, "epochs": 2, "batch_size": 8, "micro_batch_size": 4, "save_steps": 2}
    config = HealingConfig(**fields, max_length=128)
    whole, log = run(model, tokenizer, examples, tmp_path / "whole", config=config)
    for stopped in (1, 3, 5):
        out, steps = tmp_path / f"stopped-{stopped}", []
        stop = stop_at(stopped, KeyboardInterrupt)
        words = (
            rf"after step {stopped} of 5; the same call goes on.*{out.name}.unfinished.*checkpoint-{stopped}"
        )
        with pytest.raises(KeyboardInterrupt, match=words):
            run(model, tokenizer, examples, out, config=config, progress=stop)
        assert not out.exists()
        adapter, rest = run(model, tokenizer, examples, out, config=config, progress=steps.append)
        assert [row["step"] for row in steps] == list(range(stopped + 1, 6))
        assert same_weights(whole, adapter)
        columns = ["step", "epoch", "loss", "learning_rate", "tokens"]
        assert rest[columns].equals(log[columns])
        assert rest["seconds"].is_monotonic_increasing
        assert not out.with_name(f"{out.name}.unfinished").exists()


def test_a_torn_checkpoint_is_passed_over(model, tokenizer, examples, tmp_path):
    whole, _ = run(model, tokenizer, examples, tmp_path / "whole")
    with pytest.raises(RuntimeError):
        run(model, tokenizer, examples, tmp_path / "a", progress=stop_at(5, RuntimeError))
    state_file = tmp_path / "a.unfinished" / "checkpoints" / "checkpoint-4" / "trainer_state.json"
    state_file.write_text(state_file.read_text()[:100])
    adapter, _ = run(model, tokenizer, examples, tmp_path / "a")
    assert same_weights(whole, adapter)


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(
    model, tokenizer, examples, tmp_path
):
    def spoil(row):
        if row["step"] == 3:
            with torch.no_grad():
                model.lm_head.weight[5, 5] = float("nan")

    with pytest.raises(
        ValueError, match=r"loss is nan at step 4 of 5.*checkpoint-2.*learning_rate \(it is 0.01\)"
    ):
        run(model, tokenizer, examples, tmp_path / "a", progress=spoil)
    assert not (tmp_path / "a").exists()
    kept = load_file(tmp_path / "a.unfinished" / "checkpoints" / "checkpoint-2" / "adapter_model.safetensors")
    assert all(torch.isfinite(value).all() for value in kept.values())
    with pytest.raises(ValueError, match=r"loss is nan at step 1 of 5.*none was written yet"):
        run(model, tokenizer, examples, tmp_path / "b")


@pytest.mark.parametrize("deep", [False, True])
def test_ctrl_c_keeps_what_there_is_and_the_half_trained_adapter_can_be_used(
    model, tokenizer, examples, tmp_path, deep
):
    config = HealingConfig(rank=4, dropout=0.1, epochs=2, batch_size=8, max_length=128, save_steps=100)
    whole, log = run(model, tokenizer, examples, tmp_path / "whole", config=config)
    out = tmp_path / "a"
    before, handler = logits(model), signal.getsignal(signal.SIGINT)
    calls = []

    def press(*_):
        calls.append(0)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    handle = model.model.layers[5].register_forward_hook(press if deep else lambda *_: None)
    with pytest.raises(
        KeyboardInterrupt, match=rf"stopped after step {1 if deep else 3} of 5; the same call goes on"
    ) as stop:
        run(model, tokenizer, examples, out, config=config, progress=False if deep else press)
    assert signal.getsignal(signal.SIGINT) is handler
    assert torch.equal(logits(model), before)
    checkpoint = str(stop.value).rpartition("for with_adapter: ")[2]
    with with_adapter(model, checkpoint):
        assert not torch.allclose(logits(model), before, atol=1e-4)
    with (
        without_layers(model, [1]),
        pytest.raises(ValueError, match="other layers"),
        with_adapter(model, checkpoint),
    ):
        pass
    steps = []
    adapter, rest = run(model, tokenizer, examples, out, config=config, progress=steps.append)
    handle.remove()  # not before: a hook is part of what a model computes
    assert steps[0]["step"] == int(checkpoint.rpartition("-")[2]) + 1
    assert same_weights(whole, adapter)
    assert rest["loss"].equals(log["loss"])


def test_the_progress_says_how_fast_and_how_long(model, tokenizer, examples, tmp_path):
    rows = []
    log = run(model, tokenizer, examples, tmp_path / "a", progress=rows.append).log
    assert [row["steps"] for row in rows] == [5] * 5
    assert rows[-1]["seconds_left"] == 0
    assert all(row["seconds_left"] > 0 for row in rows[:-1])
    steps = log[["tokens", "seconds"]].diff().fillna(log[["tokens", "seconds"]].iloc[:1])
    np.testing.assert_allclose(log["tokens_per_second"], steps["tokens"] / steps["seconds"])
