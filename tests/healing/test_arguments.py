"""What the Trainer is told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny import tiny_model

from workbench.healing.arguments import training_arguments
from workbench.healing.config import HealingConfig


def test_a_warm_up_as_long_as_the_training_is_refused_before_it_begins(tmp_path):
    model = tiny_model("llama", num_hidden_layers=3)
    config = HealingConfig(batch_size=8, warmup_steps=3)
    assert training_arguments(config, 25, tmp_path, model).max_steps == 4
    with pytest.raises(ValueError, match="warmup_steps must be below the 3 updates, got 3"):
        training_arguments(config, 24, tmp_path, model)


def test_a_warm_up_of_a_preset_fits_itself_to_few_updates_and_one_that_is_given_does_not(tmp_path):
    model, demo = tiny_model("llama", num_hidden_layers=3), HealingConfig.preset("demo")
    warmups = {n: training_arguments(demo, 16 * n, tmp_path, model).warmup_steps for n in (1, 3, 7, 8, 24)}
    assert warmups == {1: 0, 3: 1, 7: 3, 8: 4, 24: 4}
    changed = replace(demo, learning_rate=1e-3, max_steps=2)
    assert training_arguments(changed, 32, tmp_path, model).warmup_steps == 1
    for given in (HealingConfig.preset("demo", warmup_steps=4), replace(demo, warmup_steps=4)):
        with pytest.raises(ValueError, match="warmup_steps must be below the 3 updates, got 4"):
            training_arguments(given, 48, tmp_path, model)


@pytest.mark.parametrize("left", [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": ""}, {"LOCAL_RANK": "1"}])
def test_what_a_launcher_left_behind_is_no_launcher(left, tmp_path, monkeypatch):
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    arguments = training_arguments(HealingConfig(batch_size=8), 8, tmp_path, tiny_model(num_hidden_layers=3))
    assert arguments.world_size == 1


@pytest.mark.parametrize(("batch_size", "micro"), [(64, 16), (20, 10), (7, 7), (17, 1)])
def test_micro_batches_divide_the_batch(batch_size, micro, tmp_path):
    arguments = training_arguments(
        HealingConfig(batch_size=batch_size), 100, tmp_path, tiny_model("llama", num_hidden_layers=3)
    )
    assert arguments.per_device_train_batch_size == micro
    assert arguments.gradient_accumulation_steps * micro == batch_size


def test_a_tracker_that_is_not_installed_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"report_to .* must be one of .*got 'diary'"):
        training_arguments(HealingConfig(), 64, tmp_path, tiny_model("llama", num_hidden_layers=3), ["diary"])
