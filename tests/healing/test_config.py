"""Settings: the papers', and what cannot be trained with."""

from __future__ import annotations

import pytest

from workbench.healing.config import HealingConfig


def test_presets_are_the_papers():
    sdd, gro = HealingConfig.preset("sdd"), HealingConfig.preset("gro")
    assert (sdd.rank, sdd.epochs, sdd.batch_size, sdd.learning_rate) == (8, 5, 64, 1e-4)
    assert (gro.rank, gro.alpha, gro.dropout, gro.targets) == (64, 64, 0.05, "ffn")
    assert (gro.max_steps, gro.batch_size, gro.max_length, gro.warmup_steps) == (5000, 16, 2048, 100)
    assert (gro.learning_rate, gro.schedule, gro.deterministic) == (3e-4, "cosine", True)
    mistral = HealingConfig.preset("gro", model="mistralai/Mistral-7B-v0.1")
    assert (mistral.rank, mistral.alpha, mistral.learning_rate) == (4, 4, 3e-6)
    large = HealingConfig.preset("gro", model="meta-llama/Llama-2-70b-hf")
    assert (large.rank, large.max_length, large.learning_rate) == (8, 4096, 3e-5)
    assert HealingConfig.preset("demo", seed=4).seed == 4
    with pytest.raises(ValueError, match=r"preset must be one of sdd, gro, demo, got 'x'"):
        HealingConfig.preset("x")
    with pytest.raises(ValueError, match="ranks is no field"):
        HealingConfig.preset("sdd", ranks=4)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rank": 0}, "rank must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"loss_chunk": 0}, "loss_chunk must be"),
        ({"batch_size": 8, "micro_batch_size": 3}, "micro_batch_size must divide batch_size=8"),
        ({"learning_rate": 0}, "learning_rate must be between 0 and 10"),
        ({"learning_rate": float("nan")}, "learning_rate must be"),
        ({"epochs": -1}, "epochs must be"),
        ({"dropout": 1.5}, "dropout must be"),
        ({"schedule": "step"}, "schedule must be one of cosine"),
    ],
)
def test_bad_settings_give_one_clear_line(fields, words):
    with pytest.raises(ValueError, match=words):
        HealingConfig(**fields)
