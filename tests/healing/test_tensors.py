"""Whole tensors in an adapter's place: put on and taken off bit by bit, refused where they do not fit."""

from __future__ import annotations

import pytest
import torch
from healed import logits, same_state, state
from tiny import tiny_model

from workbench.healing.adapters import merge_adapter_, with_adapter
from workbench.healing.tensors import holds_tensors, put_tensors, write_tensors
from workbench.models.layers import kept_layers
from workbench.pruning.removal import without_layers

NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def model():
    return tiny_model("llama")


def folder_of(model, path, tensors):
    path.mkdir()
    write_tensors(path, tensors, {"kept_layers": list(kept_layers(model)), "model": {}})
    return path


def test_they_take_the_weights_place_and_everything_comes_back(model, tmp_path):
    before, whole = state(model), logits(model)
    new = torch.randn_like(model.state_dict()[NAME])
    folder = folder_of(model, tmp_path / "a", {NAME: new})
    assert holds_tensors(folder) and not holds_tensors(tmp_path)
    with with_adapter(model, folder):
        assert torch.equal(model.state_dict()[NAME], new)
        assert not torch.equal(logits(model), whole)
    assert same_state(model, before)
    with pytest.raises(RuntimeError, match="stop"), with_adapter(model, folder):
        raise RuntimeError("stop")
    assert same_state(model, before)
    assert merge_adapter_(model, folder) is model
    assert torch.equal(model.state_dict()[NAME], new)


def test_what_does_not_fit_is_refused_and_leaves_the_model_alone(model, tmp_path):
    before = state(model)
    good = torch.ones_like(before[NAME])
    cases = {
        "which the model has not": {NAME: good, "nothing.weight": good.clone()},
        "have shapes": {NAME: good[:2]},
        "finite numbers": {NAME: good * torch.nan},
    }
    for number, (message, tensors) in enumerate(cases.items()):
        folder = folder_of(model, tmp_path / str(number), tensors)
        with pytest.raises(ValueError, match=message), with_adapter(model, folder):
            pass
        with pytest.raises(ValueError, match=message):
            merge_adapter_(model, folder)
        assert same_state(model, before)
    folder = folder_of(model, tmp_path / "good", {NAME: good})
    with without_layers(model, [5]), pytest.raises(ValueError, match="trained on other layers"):
        put_tensors(model, folder)
    with pytest.raises(ValueError, match="layers must be those that"):
        put_tensors(model, folder, [0, 1])
    with (folder / "tensors.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match="was altered"):
        put_tensors(model, folder)
