"""What the Trainer is told."""

from __future__ import annotations

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
