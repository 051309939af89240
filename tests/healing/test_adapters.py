"""Adapters come on and off bit by bit, and fit only the layers they were trained on."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from four_bits import load_quantized, unpacked
from healed import (
    logits,
    make_examples,
    run,
    same_state,
    state,
    stop_at,
)
from tiny import tiny_config, tiny_model, tiny_tokenizer

from workbench.healing.adapters import as_variant, lora_targets, merge_adapter_, read_record, with_adapter
from workbench.healing.config import HealingConfig
from workbench.models.identity import describe_model
from workbench.models.loading import load_model
from workbench.pruning.removal import prune_, without_layers
from workbench.pruning.saving import save_pruned
from workbench.runs.variant import Variant


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def model():
    return tiny_model("llama")


@pytest.fixture
def examples():
    return make_examples()


@pytest.mark.parametrize(
    "architecture", ["llama", "gpt2", "gemma3-multimodal", "qwen3-moe", "falcon", "phi3"]
)
def test_the_model_is_left_bit_equal_and_the_adapter_comes_on_and_off(
    architecture, tokenizer, examples, tmp_path
):
    model = tiny_model(architecture)
    model.get_input_embeddings().weight.requires_grad_(False)
    before, whole = state(model), logits(model)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    attributes = set(vars(model))
    random_state = torch.get_rng_state()
    with without_layers(model, [2, 3]):
        pruned = logits(model)
        config = HealingConfig(rank=3, learning_rate=1e-2, max_steps=2, batch_size=4, max_length=64)
        adapter, _ = run(model, tokenizer, examples[:8], tmp_path / "a", config=config)
        assert torch.equal(logits(model), pruned)
        with with_adapter(model, adapter) as same:
            assert same is model
            healed = logits(model)
            assert not torch.allclose(healed, pruned, atol=1e-4)
        assert torch.equal(logits(model), pruned)
        with with_adapter(model, adapter):
            assert torch.equal(logits(model), healed)
    assert torch.equal(logits(model), whole)
    assert same_state(model, before)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert set(vars(model)) == attributes
    assert not any(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random_state)
    # merged for good: the same up to rounding
    merged = prune_(copy.deepcopy(model), [2, 3])
    assert merge_adapter_(merged, adapter) is merged
    torch.testing.assert_close(logits(merged), healed, atol=2e-5, rtol=1e-4)
    assert merged.state_dict().keys() == prune_(copy.deepcopy(model), [2, 3]).state_dict().keys()


def test_an_error_inside_leaves_no_adapter_behind(model, tokenizer, examples, tmp_path):
    adapter, _ = run(model, tokenizer, examples, tmp_path / "a")
    before = logits(model)
    with pytest.raises(KeyError), with_adapter(model, adapter):
        raise KeyError
    assert torch.equal(logits(model), before)
    with pytest.raises(RuntimeError):
        run(model, tokenizer, examples, tmp_path / "b", progress=stop_at(2, RuntimeError))
    assert torch.equal(logits(model), before)


@pytest.fixture
def run_folder(tmp_path):
    from workbench.runs.run import open_run

    return open_run("test", root=tmp_path)


def test_a_variant_is_seen_without_a_copy(model, tokenizer, examples, run_folder):
    with without_layers(model, [4, 1]):
        run(model, tokenizer, examples, run_folder.path("adapters/sft"))
    before = logits(model)
    base = Variant("base", "tiny")
    healed = Variant("healed", "tiny", removed=(1, 4), adapter="adapters/sft")
    with as_variant(model, base):
        assert torch.equal(logits(model), before)
    with as_variant(model, healed, run=run_folder):
        seen = logits(model)
    with as_variant(model, healed, run=run_folder.folder):
        assert torch.equal(logits(model), seen)
    assert torch.equal(logits(model), before)
    by_hand = prune_(copy.deepcopy(model), [1, 4])
    with with_adapter(by_hand, run_folder.path("adapters/sft")):
        assert torch.equal(logits(by_hand), seen)
    with pytest.raises(ValueError, match="give run="), as_variant(model, healed):
        pass
    assert torch.equal(logits(model), before)


def test_a_model_loaded_under_another_name_than_the_variants_is_refused(model, tokenizer, tmp_path):
    for name in ("one", "other"):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    loaded, _ = load_model(tmp_path / "one", device="cpu")
    with as_variant(loaded, Variant("base", str(tmp_path / "one"))):
        logits(loaded)
    refused = pytest.raises(ValueError, match=r"'base' is of the model '\S+other', .* loaded as '\S+one'")
    with refused as error, as_variant(loaded, Variant("base", str(tmp_path / "other"))):
        pass
    assert "\n" not in str(error.value)
    demo, _ = load_model("demo", device="cpu")
    with as_variant(demo, Variant("cut", "demo", removed=(3,))):
        logits(demo)


def test_an_adapter_of_other_weights_is_refused_as_a_variant(model, tokenizer, examples, tmp_path):
    with without_layers(model, [2, 3]):
        adapter, _ = run(model, tokenizer, examples, tmp_path / "a")
    healed = Variant("healed", "tiny", removed=(2, 3), adapter="a")
    with as_variant(model, healed, run=tmp_path):
        logits(model)
    other = tiny_model("llama", seed=1)
    before = logits(other)
    refused = pytest.raises(ValueError, match="trained on other weights than the model has")
    with refused as error, as_variant(other, healed, run=tmp_path):
        pass
    assert "\n" not in str(error.value)
    assert torch.equal(logits(other), before)
    refused = pytest.raises(ValueError, match="no adapter on")
    twice = as_variant(model, Variant("twice", "tiny", adapter="a"), run=tmp_path)
    with without_layers(model, [2, 3]), with_adapter(model, adapter), refused, twice:
        pass


@pytest.mark.parametrize("change", ["dtype", "quantized", "no digest", "offloaded"])
def test_weights_that_cannot_be_compared_are_not(change, model, tokenizer, examples, tmp_path):
    adapter, _ = run(model, tokenizer, examples, tmp_path / "a")
    record = read_record(adapter)
    assert record["quantized"] is False
    record["model"]["weights"] = "0" * 16
    if change == "dtype":  # as trained on a GPU
        record["model"]["dtype"] = "bfloat16"
    elif change == "quantized":
        record["quantized"] = True
    elif change == "no digest":
        del record["model"]["weights"]
    else:
        record["model"]["weights"] = "offloaded-012345"
    (adapter / "healing.json").write_text(json.dumps(record))
    with as_variant(model, Variant("healed", "tiny", adapter="a"), run=tmp_path):
        logits(model)


def test_an_adapter_of_another_pruning_is_refused(model, tokenizer, examples, tmp_path):
    with without_layers(model, [2, 3]):
        adapter, _ = run(model, tokenizer, examples, tmp_path / "a")
    assert read_record(adapter)["kept_layers"] == [0, 1, 4, 5, 6]
    before = logits(model)
    for removed in ([], [3, 4], [2], [2, 3, 4]):
        refused = pytest.raises(ValueError, match="trained on other layers")
        with without_layers(model, removed), refused as error, with_adapter(model, adapter):
            pass
        assert "\n" not in str(error.value)
        with pytest.raises(ValueError, match=r"\[0, 1, 4, 5, 6\]"):
            merge_adapter_(model, adapter)
    assert torch.equal(logits(model), before)


def test_two_adapters_at_once_and_strange_folders_are_refused(model, tokenizer, examples, tmp_path):
    adapter, _ = run(model, tokenizer, examples, tmp_path / "a")
    with with_adapter(model, adapter):
        with pytest.raises(ValueError, match="no adapter on"), with_adapter(model, adapter):
            pass
        with pytest.raises(ValueError, match="no adapter on"):
            run(model, tokenizer, examples, tmp_path / "b")
    (adapter / "healing.json").unlink()
    with pytest.raises(ValueError, match="not an adapter that heal wrote"), with_adapter(model, adapter):
        pass


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("llama", {"gate_proj", "up_proj", "down_proj"}),  # GRO B.1
        ("mistral", {"gate_proj", "up_proj", "down_proj"}),  # GRO B.1
        ("gpt2", {"c_fc", "c_proj"}),
        ("opt", {"fc1", "fc2"}),
        ("bloom", {"dense_h_to_4h", "dense_4h_to_h"}),
        ("gpt-neox", {"dense_h_to_4h", "dense_4h_to_h"}),
        ("phi3", {"gate_up_proj", "down_proj"}),
        ("gemma3-multimodal", {"gate_proj", "up_proj", "down_proj"}),
    ],
)
def test_ffn_targets_are_found_by_structure(architecture, names):
    model = tiny_model(architecture)
    found = lora_targets(model, "ffn")["target_modules"]
    assert {name.rpartition(".")[2] for name in found} == names
    assert len(found) == 7 * len(names)
    assert not any("attn" in name or "attention" in name or "vision" in name for name in found)
    every = lora_targets(model, "all-linear")["target_modules"]
    assert set(found) < set(every)
    assert all(model.get_submodule(name) is not None for name in every)


def test_ffn_targets_of_phi2_are_the_papers():
    from transformers import AutoModelForCausalLM, PhiConfig

    sizes = tiny_config("llama")
    config = PhiConfig(
        vocab_size=331, hidden_size=36, intermediate_size=52, num_hidden_layers=3, num_attention_heads=6
    )
    assert sizes.vocab_size == config.vocab_size
    found = lora_targets(AutoModelForCausalLM.from_config(config), "ffn")["target_modules"]
    assert {name.rpartition(".")[2] for name in found} == {"fc1", "fc2"}


@pytest.mark.filterwarnings("ignore:The following")  # peft, of the targets that are then refused
def test_targets_by_name_and_experts(model, tokenizer, examples, tmp_path):
    assert len(lora_targets(model, ["q_proj"])["target_modules"]) == 7
    with pytest.raises(ValueError, match=r"targets must be .*down_proj.*got \['w1'\]"):
        lora_targets(model, ["w1"])
    with pytest.raises(ValueError, match="got 'mlp'"):
        lora_targets(model, "mlp")
    assert len(lora_targets(tiny_model("qwen3-moe"), "ffn")["target_parameters"]) == 14
    mixed = tiny_model("qwen3-moe-mixed")
    before = state(mixed)
    with pytest.raises(ValueError, match="peft cannot adapt all"):
        run(mixed, tokenizer, examples, tmp_path / "a")
    assert same_state(mixed, before)
    with pytest.raises(ValueError, match="dropout must be 0"):
        run(mixed, tokenizer, examples, tmp_path / "a", config=HealingConfig(dropout=0.1))


@pytest.fixture
def quantized(tmp_path):
    return load_quantized(tmp_path / "model")


def test_every_linear_layer_of_the_decoder_has_four_bits(quantized):
    model, tokenizer = quantized
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    assert {kind for name, kind in kinds.items() if name.endswith("_proj")} == {"Linear4bit"}
    assert kinds["lm_head"] == "Linear"
    assert model.model.layers[0].mlp.up_proj.weight.quant_state.quant_type == "nf4"
    assert tokenizer.pad_token_id == 0
    assert describe_model(model)["weights"]
    torch.testing.assert_close(logits(unpacked(model)), logits(model), rtol=1e-4, atol=1e-5)


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
