"""Adapters come on and off bit by bit, and fit only the layers they were trained on."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from four_bits import load_quantized, unpacked
from healed import (
    logits,
    make_examples,
    run,
    same_state,
    state,
    stop_at,
)
from interrupts import Interrupt, moments, traced
from tiny import tiny_config, tiny_model, tiny_tokenizer

from workbench.healing.adapters import as_variant, lora_targets, merge_adapter_, with_adapter
from workbench.healing.config import HealingConfig
from workbench.healing.heal import heal
from workbench.healing.records import read_record
from workbench.models.identity import describe_model
from workbench.models.layers import kept_layers
from workbench.models.loading import load_model
from workbench.pruning.removal import prune_, without_layers
from workbench.pruning.saving import save_pruned
from workbench.runs.run import open_run
from workbench.runs.variant import Variant


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
    refused = pytest.raises(ValueError, match="trained on other weights")
    with refused as error, as_variant(other, healed, run=tmp_path):
        pass
    assert "\n" not in str(error.value)
    assert torch.equal(logits(other), before)
    refused = pytest.raises(ValueError, match="no adapter on")
    twice = as_variant(model, Variant("twice", "tiny", adapter="a"), run=tmp_path)
    with without_layers(model, [2, 3]), with_adapter(model, adapter), refused, twice:
        pass


def test_weights_that_are_not_in_memory_are_refused(model, tokenizer, examples, tmp_path):
    adapter, _ = run(model, tokenizer, examples, tmp_path / "a")
    offloaded = cpu_offload(tiny_model("llama"), execution_device=torch.device("cpu"))
    with pytest.raises(ValueError, match="model must have its weights in memory"):
        merge_adapter_(offloaded, adapter)
    with pytest.raises(ValueError, match="model must have its weights in memory"):
        with_adapter(offloaded, adapter).__enter__()


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
    with pytest.raises(ValueError, match="peft cannot adapt"):
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
    with pytest.raises(ValueError, match=r"must have full weights to be merged into.*None"):
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


@pytest.fixture
def plain_adapter(tmp_path):
    """Return a function that trains nothing but writes an adapter as plain peft does, with real numbers."""
    import peft

    def made(model, **settings):
        found = lora_targets(model, "all-linear")["target_modules"]
        fan = any(type(module).__name__ == "Conv1D" for module in model.modules())
        options = {
            "r": 3,
            "target_modules": found,
            "task_type": "CAUSAL_LM",
            "fan_in_fan_out": fan,
            **settings,
        }
        wrapper = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**options))
        torch.manual_seed(3)
        for name, parameter in wrapper.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.1)
        wrapper.save_pretrained(tmp_path / "plain", save_embedding_layers=False)
        return tmp_path / "plain", logits(wrapper.eval())

    return made


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_an_adapter_of_another_trainer_is_taken_by_the_users_word(architecture, settings, plain_adapter):
    model = tiny_model(architecture, num_hidden_layers=4)
    before, whole = state(model), logits(model)
    kept = [0, 3]
    with without_layers(model, [1, 2]):
        pruned = logits(model)
        folder, expected = plain_adapter(
            prune_(copy.deepcopy(tiny_model(architecture, num_hidden_layers=4)), [1, 2]), **settings
        )
        with with_adapter(model, folder, layers=kept):
            torch.testing.assert_close(logits(model), expected, atol=1e-6, rtol=1e-5)
        assert torch.equal(logits(model), pruned)
        assert not torch.allclose(expected, pruned, atol=1e-3)
        for wrong in ([0, 1], [0, 1, 2, 3], [3, 0]):
            refused = pytest.raises(ValueError, match="trained on other layers")
            with refused, with_adapter(model, folder, layers=wrong):
                pass
        refused = pytest.raises(ValueError, match="for one of another trainer give layers=")
        with refused, with_adapter(model, folder):
            pass
    merged = merge_adapter_(prune_(copy.deepcopy(model), [1, 2]), folder, layers=kept)
    torch.testing.assert_close(logits(merged), expected, atol=2e-5, rtol=1e-4)
    assert same_state(model, before)
    assert torch.equal(logits(model), whole)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"modules_to_save": ["lm_head"]}, "LoRA matrices alone, it also has modules_to_save"),
        ({"trainable_token_indices": [1, 2]}, "LoRA matrices alone, it also has trainable_token_indices"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embeddings or head cannot be merged where"),
        ({"bias": "all"}, "must be a LoRA adapter with bias 'none'"),
    ],
)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")  # peft, when the adapter is made
def test_an_adapter_that_changes_more_than_linear_layers_is_never_put_on_half(settings, words, plain_adapter):
    model = tiny_model("llama-tied", num_hidden_layers=3)
    before, whole, attributes = state(model), logits(model), set(vars(model))
    folder, _ = plain_adapter(model, **settings)
    with pytest.raises(ValueError, match=words) as error:
        merge_adapter_(model, folder, layers=[0, 1, 2])
    assert "\n" not in str(error.value)
    if "embed_tokens" not in str(settings):
        with pytest.raises(ValueError, match=words), with_adapter(model, folder, layers=[0, 1, 2]):
            pass
    assert same_state(model, before) and torch.equal(logits(model), whole)
    assert set(vars(model)) == attributes


@pytest.mark.parametrize("moment", ["half of the layers wrapped", "half of the layers merged", "loading"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_stopped_in_the_middle_the_model_is_as_before(moment, error, plain_adapter, monkeypatch):
    from peft.tuners.lora import LoraModel
    from peft.tuners.lora.layer import Linear

    model = tiny_model("llama", num_hidden_layers=3)
    before, whole, attributes = state(model), logits(model), set(vars(model))
    folder, _ = plain_adapter(model)
    owner, name = {
        "half of the layers wrapped": (LoraModel, "_create_and_replace"),
        "half of the layers merged": (Linear, "merge"),
        "loading": (__import__("peft").PeftModel, "load_adapter"),
    }[moment]
    calls, own = [], getattr(owner, name)

    def stopped(*args, **options):
        calls.append(1)
        if len(calls) == (1 if moment == "loading" else 9):
            raise error
        return own(*args, **options)

    monkeypatch.setattr(owner, name, stopped)
    with pytest.raises(error):
        merge_adapter_(model, folder, layers=[0, 1, 2])
    if moment == "half of the layers wrapped":
        calls.clear()
        with pytest.raises(error):
            run(model, tiny_tokenizer(), make_examples(4), folder.parent / "healed")
    assert len(calls) >= 1
    assert same_state(model, before)
    assert torch.equal(logits(model), whole)
    assert set(vars(model)) == attributes
    with with_adapter(model, folder, layers=[0, 1, 2]) if moment == "loading" else without_layers(model, []):
        pass


def test_an_adapter_names_no_folder_and_no_whole_model_to_be_put_on(model, tokenizer, examples, tmp_path):
    from peft import AutoPeftModelForCausalLM, PeftModel

    model.save_pretrained(tmp_path / "someone" / "whole")
    tokenizer.save_pretrained(tmp_path / "someone" / "whole")
    loaded, _ = load_model(tmp_path / "someone" / "whole", device="cpu")
    name = loaded.name_or_path
    config = HealingConfig(rank=2, learning_rate=1e-2, max_steps=2, batch_size=4, max_length=64)
    with without_layers(loaded, [2, 3]):
        adapter, _ = run(loaded, tokenizer, examples[:8], tmp_path / "a", config=config)
        with with_adapter(loaded, adapter):
            healed = logits(loaded)
    assert loaded.name_or_path == name
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] is None
    assert "someone" not in (adapter / "adapter_config.json").read_text()
    with pytest.raises((ValueError, TypeError, OSError, AttributeError)):
        AutoPeftModelForCausalLM.from_pretrained(adapter)
    # plain peft on the saved pruned model is the same function
    save_pruned(prune_(loaded, [2, 3]), tokenizer, tmp_path / "pruned")
    base, _ = load_model(tmp_path / "pruned", device="cpu")
    torch.testing.assert_close(logits(PeftModel.from_pretrained(base, adapter)), healed, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "agree"), [("float32", 1.0), ("bfloat16", 0.8)])
def test_a_merge_is_exact_in_float32_and_rounds_in_bfloat16(dtype, agree, plain_adapter):
    model = tiny_model("llama").to(getattr(torch, dtype))
    folder, _ = plain_adapter(model)
    with with_adapter(model, folder, layers=range(7)):
        on = logits(model, 100).float()
    merged = logits(merge_adapter_(model, folder, layers=range(7)), 100).float()
    same = (on.argmax(-1) == merged.argmax(-1)).float().mean().item()
    assert same >= agree
    gap = (on - merged).abs().max().item()
    assert gap < 1e-4 if dtype == "float32" else 1e-4 < gap < on.std().item()


def everything(model: Any) -> list[Any]:
    """Return what must be as before: modules, modes, hooks, each weight with its place, the configuration."""
    modules = [
        (name, type(one).__name__, one.training, len(one._forward_hooks) + len(one._forward_pre_hooks))
        for name, one in model.named_modules()
    ]
    weights = [
        (name, one.requires_grad, one.data_ptr(), one.detach().double().abs().sum().item())
        for name, one in model.named_parameters()
    ]
    return [modules, weights, model.config.to_dict(), kept_layers(model)]


@pytest.mark.slow
def test_ctrl_c_at_any_of_80_moments_leaves_the_model_bit_equal(tmp_path):
    model, tokenizer = tiny_model("llama", num_hidden_layers=3), tiny_tokenizer()
    folder = open_run("x", root=tmp_path)
    config = HealingConfig(rank=2, max_steps=1, batch_size=4)
    with without_layers(model, [2]):
        heal(model, tokenizer, make_examples(4), config=config, out=folder.path("a"), progress=False)
    variant, before = Variant("v", "tiny", removed=(2,), adapter="a"), everything(model)

    def work() -> None:
        with as_variant(model, variant, run=folder):
            pass

    for moment in moments(work, 80):
        told = traced(work, Interrupt(moment))
        assert everything(model) == before, told.where
