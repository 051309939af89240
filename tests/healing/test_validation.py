"""Held-out examples while a training runs: their loss in the log, the best adapter, a stop in time."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from healed import QUICK, make_examples, run, same_weights, stop_at
from tiny import tiny_model

from workbench.healing import heal as heal_module
from workbench.healing.adapters import with_adapter
from workbench.healing.config import HealingConfig
from workbench.healing.losses import response_loss
from workbench.healing.validation import Validation, best_step
from workbench.plots.healing import loss_curve
from workbench.widgets.live import LiveLoss

HELD = make_examples(32)[20:]


@pytest.fixture
def model():
    return tiny_model("llama", num_hidden_layers=3)


def measured(log):
    return log.dropna(subset="held_out_loss").set_index("step")["held_out_loss"]


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_the_held_out_loss_is_that_of_the_adapter_and_changes_no_training(architecture, tokenizer, tmp_path):
    model, examples = tiny_model(architecture, num_hidden_layers=3), make_examples()
    config = HealingConfig(**{**QUICK.__dict__, "dropout": 0.1})
    plain = run(model, tokenizer, examples, tmp_path / "plain", config=config)
    found = run(model, tokenizer, examples, tmp_path / "a", config=config, held_out=HELD, evaluate_every=2)
    assert same_weights(plain.adapter, found.adapter)
    assert found.log["loss"].equals(plain.log["loss"])
    assert "held_out_loss" not in plain.log
    assert measured(found.log).index.tolist() == [2, 4, 5]
    with with_adapter(model, found.adapter):
        expected = response_loss(model, tokenizer, HELD, max_length=128)
    assert measured(found.log)[5] == pytest.approx(expected, rel=1e-6)
    lines = (found.adapter / "log.jsonl").read_text().splitlines()
    assert json.loads(lines[0], parse_constant=pytest.fail)["held_out_loss"] is None
    again = run(model, tokenizer, examples, tmp_path / "a", config=config, held_out=HELD, evaluate_every=2)
    pd.testing.assert_frame_equal(again.log, found.log)
    assert again.log.attrs["kept_step"] == 5
    with pytest.raises(ValueError, match="another held_out"):
        run(model, tokenizer, examples, tmp_path / "a", config=config)
    with pytest.raises(ValueError, match="another held_out"):
        run(model, tokenizer, examples, tmp_path / "a", config=config, held_out=HELD[:5], evaluate_every=2)


def test_without_a_number_of_updates_it_is_measured_once_an_epoch(model, tokenizer, tmp_path):
    config = HealingConfig(rank=4, epochs=2.5, batch_size=8, max_length=128)  # 20 rows: 50 places, 7 updates
    log = run(model, tokenizer, make_examples(), tmp_path / "a", config=config, held_out=HELD).log
    assert measured(log).index.tolist() == [3, 5, 7]


def overfitting(model, tokenizer, out, **options):
    """Learn one response by heart at a rate that spoils the others."""
    config = HealingConfig(
        rank=8, learning_rate=3e-2, max_steps=8, batch_size=4, max_length=128, save_steps=1
    )
    rows = make_examples(4).assign(reference="dog fox dog fox")
    return run(model, tokenizer, rows, out, config=config, held_out=HELD, evaluate_every=1, **options)


def test_the_best_adapter_comes_out_and_the_training_stops_in_time(model, tokenizer, tmp_path):
    last = overfitting(model, tokenizer, tmp_path / "last").log
    best, log = overfitting(model, tokenizer, tmp_path / "best", keep="best")
    assert log["loss"].equals(last["loss"])
    least = int(measured(log).idxmin())
    assert log.attrs["kept_step"] == least < 8
    with with_adapter(model, best):
        found = response_loss(model, tokenizer, HELD, max_length=128)
    assert found == pytest.approx(measured(log).min(), rel=1e-6)
    stopped = overfitting(model, tokenizer, tmp_path / "early", keep="best", patience=2)
    assert stopped.log["step"].iloc[-1] == least + 2
    assert same_weights(stopped.adapter, best)
    assert not (tmp_path / "early.unfinished").exists()


def test_an_early_stop_is_one_also_after_a_kill(model, tokenizer, tmp_path, monkeypatch):
    expected = overfitting(model, tokenizer, tmp_path / "whole", keep="best", patience=2)
    least, end = expected.log.attrs["kept_step"], len(expected.log)
    for step in (1, end - 1):
        with pytest.raises(KeyboardInterrupt):
            overfitting(model, tokenizer, tmp_path / "a", keep="best", patience=2,
                        progress=stop_at(step, KeyboardInterrupt))  # fmt: skip

    def killed(*_):
        raise MemoryError

    store = heal_module.folders.store
    monkeypatch.setattr(heal_module.folders, "store", killed)
    with pytest.raises(MemoryError):
        overfitting(model, tokenizer, tmp_path / "a", keep="best", patience=2)
    monkeypatch.setattr(heal_module.folders, "store", store)
    rows = []
    found = overfitting(model, tokenizer, tmp_path / "a", keep="best", patience=2, progress=rows.append)
    assert rows == []
    assert found.log.attrs["kept_step"] == least
    assert found.log["held_out_loss"].equals(expected.log["held_out_loss"])
    assert same_weights(found.adapter, expected.adapter)


def test_held_out_rows_that_are_learned_are_told(model, tokenizer, tmp_path):
    examples = make_examples()
    config = HealingConfig(**{**QUICK.__dict__, "max_steps": 1})
    # another response makes no other question
    with pytest.raises(ValueError, match="3 of 3 are among them"):
        run(model, tokenizer, examples, tmp_path / "a", held_out=examples[:3].assign(reference="so"))
    with pytest.warns(UserWarning, match="2 of 14 are among them, and make the held-out loss too low"):
        run(
            model,
            tokenizer,
            examples,
            tmp_path / "a",
            config=config,
            held_out=pd.concat([examples[:2], HELD]),
        )
    with pytest.raises(ValueError, match="1 of 1 are among them"):
        run(model, tokenizer, ["A story.", "Another."], tmp_path / "b", held_out=["A story. "])


def test_plain_texts_are_held_out_too(model, tokenizer, tmp_path):
    config = HealingConfig(rank=4, max_steps=2, batch_size=2, max_length=30)
    texts = [f"Story {i}. The dog went home." for i in range(8)]
    log = run(model, tokenizer, texts, tmp_path / "a", config=config, held_out=["A tale of a fox."]).log
    assert measured(log).index.tolist() == [2]


def test_the_figures_take_such_a_log(model, tokenizer, tmp_path):
    live = LiveLoss()
    log = run(
        model, tokenizer, make_examples(), tmp_path / "a", held_out=HELD, progress=live.watch("sft")
    ).log
    assert "held_out_loss" in live.log()
    assert live.figure().data
    drawn = loss_curve(log.assign(variant="sft"), value="held_out_loss").data[-1]
    assert len(drawn.x) == log["held_out_loss"].notna().sum()
    assert f"held-out loss {log['held_out_loss'].iloc[-1]:.3f}" in live.status("sft", live.rows["sft"])


def test_of_equal_losses_the_first_is_the_best():
    rows = [{"step": k, "held_out_loss": loss} for k, loss in enumerate([3.0, None, 2.0, 2.0, 2.5], 1)]
    assert best_step(rows) == 3
    assert best_step(rows[1:2]) is None
    assert [Validation([], patience=k).is_over(rows) for k in (1, 2, 3, None)] == [True, True, False, False]
