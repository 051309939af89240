"""Where the layers are, whatever is wrapped around them, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from folders import edit
from tiny import CONFIGS, LAYERS, tiny_config, tiny_model
from torch import nn
from transformers import AutoModelForImageTextToText

from workbench.models.layers import (
    decoder_forward,
    decoder_layers,
    kept_layers,
    layer_container,
    number_of_layers,
    unwrap,
)
from workbench.models.loading import load_model
from workbench.pruning.removal import prune_


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_layers_of_every_architecture_are_found(architecture: str) -> None:
    model = tiny_model(architecture)
    stack, name = layer_container(model)
    assert decoder_forward(model) is stack
    assert decoder_layers(model) is getattr(stack, name)
    assert number_of_layers(model) == LAYERS
    assert kept_layers(model) == tuple(range(LAYERS))


def test_wrappers_come_off() -> None:
    import peft

    model = tiny_model("llama")
    wrapped = torch.compile(peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"])))
    assert unwrap(wrapped) is unwrap(model) is model
    assert number_of_layers(wrapped) == LAYERS


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"kept_layers": [0, 1, 2]}, "kept_layers must be 7 rising numbers"),
        ({"kept_layers": "abcdefg"}, "kept_layers must be 7 rising numbers"),
        ({"kept_layers": [-1, 0, 1, 2, 3, 4, 5]}, "kept_layers must be 7 rising numbers"),
        (
            {"kept_layers": [0, 1, 2, 3, 4, 5, 8], "original_num_hidden_layers": 8},
            "original_num_hidden_layers must be above 8",
        ),
    ],
)
def test_kept_layers_that_do_not_fit(copied: Path, entries: dict[str, Any], words: str) -> None:
    edit(copied / "config.json", **entries)
    with pytest.raises(ValueError, match=words):
        load_model(copied, device="cpu")


def test_a_model_whose_layers_were_deleted_by_hand() -> None:
    model = tiny_model("llama")
    model.model.layers = model.model.layers[:4]
    with pytest.raises(ValueError, match=r"one list of 7 layers, as configured; .* has 0"):
        prune_(model, [0])
    with pytest.raises(ValueError, match="model must be a transformers model, got Linear"):
        prune_(nn.Linear(2, 2), [0])


def test_equal_depths_of_vision_and_text_do_not_confuse(tmp_path: Path) -> None:
    config = tiny_config("gemma3-multimodal")
    config.vision_config.num_hidden_layers = LAYERS
    model = AutoModelForImageTextToText.from_config(config)
    prune_(model, [0])
    assert len(model.model.language_model.layers) == LAYERS - 1
    assert model.config.vision_config.num_hidden_layers == LAYERS
