"""Settings: the papers', and what cannot be trained with."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, fields, replace

import numpy as np
import pytest

from workbench.healing.config import HealingConfig

LISTED = "meta-llama/Llama-2-13b-hf"


def test_presets_are_the_papers():
    sdd, gro = HealingConfig.preset("sdd"), HealingConfig.preset("gro", model=LISTED)
    assert (sdd.rank, sdd.epochs, sdd.batch_size, sdd.learning_rate) == (8, 5, 64, 1e-4)
    assert (gro.rank, gro.alpha, gro.dropout, gro.targets) == (64, 64, 0.05, "ffn")
    assert (gro.max_steps, gro.batch_size, gro.max_length, gro.warmup_steps) == (5000, 16, 4096, 100)
    assert (gro.learning_rate, gro.schedule, gro.deterministic) == (3e-4, "cosine", True)
    mistral = HealingConfig.preset("gro", model="mistralai/Mistral-7B-v0.1")
    assert (mistral.rank, mistral.alpha, mistral.learning_rate) == (4, 4, 3e-6)
    large = HealingConfig.preset("gro", model="meta-llama/Llama-2-70b-hf")
    assert (large.rank, large.max_length, large.learning_rate) == (8, 4096, 3e-5)
    assert HealingConfig.preset("gro", model="models/llama-2-7b-hf/").rank == 2
    assert HealingConfig.preset("demo", seed=4).seed == 4
    with pytest.raises(ValueError, match=r"preset must be one of sdd, gro, demo, iterabre, got 'x'"):
        HealingConfig.preset("x")


def test_gro_without_its_model_is_refused_and_another_model_is_said():
    with pytest.raises(ValueError, match=r"sets rank, learning_rate, max_length by the model: give model="):
        HealingConfig.preset("gro")
    with pytest.raises(ValueError, match=r"or give learning_rate, max_length$"):
        HealingConfig.preset("gro", rank=4)
    given = {"rank": 2, "learning_rate": 1e-4, "max_length": 512}
    assert HealingConfig.preset("gro", **given).alpha == 2
    with pytest.warns(UserWarning, match=r"does not list 'acme/llama', so rank, learning_rate, max_length"):
        assert HealingConfig.preset("gro", model="acme/llama").rank == 64


def test_alpha_follows_the_rank_where_it_is_the_rank():
    gro = HealingConfig.preset("gro", model=LISTED, rank=4)
    assert gro.alpha == 4
    for copied in (replace(gro, rank=16), replace(copy.deepcopy(gro), rank=16)):
        assert copied.alpha == 16
    assert replace(gro, alpha=8, rank=2).alpha == 8
    assert HealingConfig.preset("gro", model=LISTED, alpha=5).alpha == 5
    assert json.loads(json.dumps(asdict(gro)))["alpha"] == 4
    assert HealingConfig(alpha="rank", rank=3).alpha == 3
    assert HealingConfig().alpha is None


def test_a_warm_up_that_fits_itself_stays_so_when_written_and_copied():
    demo = HealingConfig.preset("demo")
    read = HealingConfig(**json.loads(json.dumps(demo.written())))
    for config in (demo, read, copy.deepcopy(demo), replace(read, seed=1)):
        assert (config.warmup_steps, config.warmup(3), config.warmup(100)) == (4, 1, 4)
    assert read == demo and json.dumps(read.deciding()) == json.dumps(demo.deciding())
    assert HealingConfig(warmup_steps=4).written()["warmup_steps"] == 4
    assert json.loads(json.dumps(demo.deciding()))["warmup_steps"] == 4


WRONG = {
    "rank": (0, 1e9, True, "8", None),
    "alpha": (0, -8, float("nan"), float("inf"), True, "8"),
    "dropout": (-0.1, 1, 1.5, float("nan"), True, "0"),
    "targets": ([], "attn", "", [1], None, [""], {"q_proj"}),
    "learning_rate": (0, -1, 10, float("nan"), "1e-4", None, True),
    "epochs": (0, -1, float("nan"), float("inf"), "3", None),
    "max_steps": (0, 1.5, True, "3"),
    "batch_size": (0, 2.0, None),
    "micro_batch_size": (0, 3, "1"),
    "max_length": (0, -1, 1e3),
    "warmup_steps": (-5, 0.1, None, True, "up to x", "4"),
    "schedule": ("step", "cos", None, ["cosine"]),
    "weight_decay": (-1, float("nan"), float("inf"), "0", None),
    "max_grad_norm": (-1, float("nan"), float("inf"), "1", None),
    "seed": (-1, 1.5, "0", 2**32, 2**40, True, None),
    "gradient_checkpointing": ("no", 1, None),
    "deterministic": ("True", 0),
    "save_steps": (0, 0.5),
    "packing": ("no", 1),
    "loss_chunk": (0, None),
    "compiled": ("yes", 0),
    "captured": ("yes", 0),
    "dora": ("no", 1, None),
    "rslora": (0,),
    "concatenate": (None, "yes"),
}


def test_every_setting_refuses_what_is_none_of_its_values_in_one_line():
    assert WRONG.keys() == {field.name for field in fields(HealingConfig)}
    for name, values in WRONG.items():
        for value in values:
            with pytest.raises(ValueError, match=rf"^{name} must .*got ") as error:
                HealingConfig(**{name: value})
            assert "\n" not in str(error.value)
            with pytest.raises(ValueError, match=f"^{name} must"):
                replace(HealingConfig(), **{name: value})


@pytest.mark.parametrize("make", [HealingConfig, lambda **f: HealingConfig.preset("sdd", **f),
                                  lambda **f: replace(HealingConfig(), **f)])  # fmt: skip
def test_a_name_that_is_no_setting_is_refused_with_those_that_are(make):
    with pytest.raises(ValueError, match=r"^lr, ranks is no field of HealingConfig: rank, alpha, .*seed"):
        make(ranks=4, lr=1)


def test_numbers_of_other_libraries_are_taken_as_python_s():
    config = HealingConfig(
        rank=np.int64(4), epochs=np.float32(2), packing=np.bool_(True), targets=("q_proj",)
    )
    assert config == HealingConfig(rank=4, epochs=2, packing=True, targets=["q_proj"])
    assert json.loads(json.dumps(asdict(config)))["packing"] is True


def test_what_only_costs_memory_or_time_makes_no_other_training():
    plain = HealingConfig(max_steps=5)
    other = replace(plain, micro_batch_size=1, gradient_checkpointing=True, deterministic=True, epochs=2)
    assert other.deciding() == plain.deciding()
    assert HealingConfig(epochs=2).deciding() != HealingConfig(epochs=3).deciding()
    for change in ({"seed": 1}, {"dora": True}, {"rslora": True}, {"packing": True}, {"concatenate": False}):
        assert replace(plain, **change).deciding() != plain.deciding()
