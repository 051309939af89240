"""What a description says of a model, and what changes it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tiny import LAYERS, tiny_model

from workbench.models.identity import describe_model
from workbench.models.loading import load_model
from workbench.places import ROOT
from workbench.pruning.removal import without_layers


def test_a_description_is_plain_and_the_same_after_a_reload(saved: Path) -> None:
    first, second = (describe_model(load_model(saved, device="cpu")[0]) for _ in range(2))
    assert first == second == json.loads(json.dumps(first))
    assert first["id"] == str(saved)
    assert first | {"id": "", "weights": "", "settings": ""} == {
        "id": "",
        "revision": None,
        "architecture": "LlamaForCausalLM",
        "dtype": "float32",
        "n_layers": LAYERS,
        "kept_layers": list(range(LAYERS)),
        "weights": "",
        "settings": "",
    }


def test_a_description_tells_other_weights_under_the_same_name() -> None:
    model = tiny_model("llama")
    before = describe_model(model)
    with torch.no_grad():
        model.model.layers[3].mlp.up_proj.weight.mul_(1.001)
    after = describe_model(model)
    assert before["weights"] != after["weights"]
    assert before | {"weights": ""} == after | {"weights": ""}


def test_a_description_follows_a_look_and_an_adapter() -> None:
    import peft

    model = tiny_model("llama")
    whole = describe_model(model)
    with without_layers(model, [1]):
        assert describe_model(model)["kept_layers"] == [0, 2, 3, 4, 5, 6]
    assert describe_model(model) == whole
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    assert describe_model(wrapped)["weights"] != whole["weights"]
    assert describe_model(wrapped)["architecture"] == "LlamaForCausalLM"


def test_a_folder_in_the_checkout_is_named_by_its_place_there() -> None:
    model = tiny_model("llama")
    model.config._name_or_path = str(ROOT / "data" / "runs" / "demo" / "pruned")
    assert describe_model(model)["id"] == "data/runs/demo/pruned"


def test_a_description_tells_another_activation_and_hooks() -> None:
    model = tiny_model("llama")
    found = [describe_model(model)["settings"]]
    model.model.layers[3].mlp.act_fn = torch.nn.ReLU()
    found.append(describe_model(model)["settings"])
    handle = model.model.layers[3].register_forward_hook(lambda module, given, output: output * 2.0)
    found.append(describe_model(model)["settings"])
    handle.remove()
    assert describe_model(model)["settings"] == found[1]
    assert len(set(found)) == 3
