"""QLoRA: a model of 4-bit weights heals as the full-precision model of the same rounded weights does."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from healed import QUICK, make_examples, run, same_state, state
from tiny import tiny_model, tiny_tokenizer

from workbench.healing.adapters import merge_adapter_, with_adapter
from workbench.healing.config import HealingConfig
from workbench.models.identity import describe_model
from workbench.models.loading import load_model
from workbench.pruning.removal import prune_, without_layers
from workbench.pruning.saving import save_pruned

bitsandbytes = pytest.importorskip("bitsandbytes", reason="4-bit weights need bitsandbytes")

IDS = torch.arange(24).reshape(2, 12) * 7 % 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def quantized(folder):
    return load_model(folder, quantization="nf4", device="cpu")


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def unpacked(quantized):
    """The full-precision model of the same rounded weights."""
    twin = tiny_model("llama")
    for name, module in quantized.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            twin.get_submodule(name).weight.data = weight.float()
    return twin


def test_every_linear_layer_of_the_decoder_has_four_bits(quantized):
    model, tokenizer = quantized
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    assert {kind for name, kind in kinds.items() if name.endswith("_proj")} == {"Linear4bit"}
    assert kinds["lm_head"] == "Linear"
    assert model.model.layers[0].mlp.up_proj.weight.quant_state.quant_type == "nf4"
    assert tokenizer.pad_token_id == 0
    assert describe_model(model)["weights"]
    torch.testing.assert_close(logits(unpacked(model)), logits(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_it_heals_as_its_full_precision_twin(quantized, tmp_path, checkpointed):
    model, tokenizer = quantized
    twin, examples = unpacked(model), make_examples()
    logits(model)  # a forward pass must not repack the weights for inference: gradients would be lost
    before = state(model)
    config = HealingConfig(**{**QUICK.__dict__, "gradient_checkpointing": checkpointed})
    losses, healed = [], []
    for number, each in enumerate((model, twin)):
        with without_layers(each, [2, 3]):
            bare = logits(each)
            adapter, log = run(each, tokenizer, examples, tmp_path / str(number), config=config)
            assert torch.equal(logits(each), bare)
            with with_adapter(each, adapter):
                healed.append(logits(each))
        assert not torch.allclose(healed[-1], bare, atol=1e-3)
        losses.append(log["loss"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    torch.testing.assert_close(healed[0], healed[1], rtol=1e-3, atol=1e-3)
    assert same_state(model, before)


def test_an_adapter_is_not_merged_into_four_bits(quantized, tmp_path):
    model, tokenizer = quantized
    prune_(model, [1])
    adapter, _ = run(model, tokenizer, make_examples(8), tmp_path / "a")
    with pytest.raises(ValueError, match=r"must have full weights to be merged into, it is quantized.*None"):
        merge_adapter_(model, adapter)
    with pytest.raises(ValueError, match="model must have full weights"):
        save_pruned(model, tokenizer, tmp_path / "saved")
    with with_adapter(model, adapter):
        healed = logits(model)
    # the way out that the error names
    whole = prune_(copy.deepcopy(tiny_model("llama")), [1])
    merge_adapter_(whole, adapter)
    assert healed.shape == logits(whole).shape


def test_weights_packed_for_inference_are_refused(quantized, tmp_path):
    model, tokenizer = quantized
    model.model.layers[2].mlp.up_proj.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ValueError, match=r"4-bit weights as they were loaded, these were packed"):
        run(model, tokenizer, make_examples(4), tmp_path / "a")
