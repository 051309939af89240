"""What depends on a layer's place follows, or the cut is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cutting import TOKENIZER, assert_exact, assert_same, greedy_without_cache, logits, settings, state
from skipping import skipping
from tiny import CONFIGS, LAYERS, MORE, SIZES, VOCABULARY, tiny_config, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from workbench.models.costs import parameter_counts
from workbench.pruning.removal import check_prunable, prune_, without_layers
from workbench.pruning.saving import save_pruned
from workbench.pruning.surgery import config_without


def test_more_architectures_are_kept_apart() -> None:
    assert not set(MORE) & set(CONFIGS)


def test_a_configuration_is_cut_by_layer_and_remembers_where_its_layers_come_from() -> None:
    config = tiny_config("gemma3")
    cut = config_without(config, [0, 2, 5])
    assert cut.layer_types == [config.layer_types[old] for old in (0, 2, 5)]
    assert (cut.num_hidden_layers, cut.kept_layers) == (3, [0, 2, 5])
    again = config_without(cut, [0, 2])
    assert (again.kept_layers, again.original_num_hidden_layers) == ([0, 5], LAYERS)
    assert config.num_hidden_layers == LAYERS


#: embeddings by layer, of which each layer has a part
BY_LAYER = {"hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": VOCABULARY}


@pytest.mark.parametrize(
    ("architecture", "overrides"),
    [("gemma3n", {}), ("gemma3n", {"num_kv_shared_layers": 0}), ("gemma4", BY_LAYER)],
    ids=str,
)
@pytest.mark.parametrize("cut", [(0,), (0, 6), (5,)], ids=str)
def test_embeddings_by_layer_are_cut_with_their_layers(
    architecture: str, overrides: dict[str, Any], cut: tuple[int, ...], tmp_path: Path
) -> None:
    model = tiny_model(architecture, **overrides)
    with skipping(model, cut):
        expected = logits(model)
    before, counts = state(model), parameter_counts(model)
    with without_layers(model, cut):
        assert torch.equal(logits(model), expected)
        assert torch.equal(logits(model, use_cache=True), expected)
        folder = save_pruned(model, TOKENIZER, tmp_path / "saved")
        left = sum(parameter.numel() for parameter in model.parameters())
    assert_same(before, state(model))
    assert counts["total"] - sum(counts["layers"][layer] for layer in cut) == left
    assert parameter_counts(prune_(model, cut))["total"] == left
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder)), expected)


def test_an_adapter_on_weights_that_are_cut_by_layer_is_refused() -> None:
    import peft

    model = tiny_model("gemma4", **BY_LAYER)
    settings = peft.LoraConfig(r=2, target_modules=["per_layer_model_projection"])
    with pytest.raises(ValueError, match=r"per_layer_model_projection.weight is .*, not "):
        check_prunable(peft.get_peft_model(model, settings), [0])


HYBRIDS: dict[str, dict[str, Any]] = {
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "conv"]},
    "granitemoehybrid": {
        "layer_types": ["mamba", "full_attention", "mamba", "full_attention"],
        **{"mamba_n_heads": 6, "mamba_d_head": 12, "mamba_n_groups": 1, "mamba_d_state": 8},
        **{"mamba_chunk_size": 4, "num_local_experts": 3, "num_experts_per_tok": 2},
        "shared_intermediate_size": 16,
    },
}


@pytest.mark.parametrize(
    ("kind", "cut", "named"), [("lfm2", [1], "of 1"), ("granitemoehybrid", [1, 3], "of 1,3")]
)
def test_a_cut_that_takes_the_only_attention_is_refused_in_our_words(
    kind: str, cut: list[int], named: str
) -> None:
    sizes = SIZES | {"num_hidden_layers": 4} | HYBRIDS[kind]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).eval()
    before = state(model)
    for refuse in (prune_, check_prunable):
        with pytest.raises(ValueError, match=f"no attention layer would be left .{named}.") as caught:
            refuse(model, cut)
        assert "\n" not in str(caught.value)
    assert_same(before, state(model))
    check_prunable(model, [0])


@pytest.mark.parametrize("architecture", ["deepseek-v3", "ernie-moe", "gpt-neo", "llama4", "gemma4"])
@pytest.mark.parametrize("cut", [(0, 2), (3,)], ids=str)
def test_places_of_layers_are_followed_where_the_configuration_can_say_them(
    architecture: str, cut: tuple[int, ...], tmp_path: Path
) -> None:
    model = tiny_model(architecture)
    with skipping(model, cut):
        expected, expected_tokens = logits(model), greedy_without_cache(model)
    with without_layers(model, cut):
        assert_exact(model, expected, expected_tokens)
        reloaded = AutoModelForCausalLM.from_pretrained(save_pruned(model, TOKENIZER, tmp_path / "saved"))
        assert settings(model) == settings(reloaded)
    assert_exact(reloaded, expected, expected_tokens)


@pytest.mark.parametrize(
    ("architecture", "overrides", "cut", "named"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, [1], "scale_attn_by_inverse_layer_idx=True"),
        ("gemma3n", {}, [3], "num_kv_shared_layers=3"),
        ("minimax", {}, [0], "num_hidden_layers"),
        ("jamba", {}, [3], "attn_layer_period=3"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name_before_anything_changes(
    architecture: str, overrides: dict[str, Any], cut: list[int], named: str
) -> None:
    model = tiny_model(architecture, **overrides)
    before = state(model)
    for refuse in (
        lambda: prune_(model, cut),
        lambda: check_prunable(model, cut),
        lambda: without_layers(model, cut).__enter__(),
    ):
        with pytest.raises(ValueError, match=f"(?s)cannot be removed exactly.*{named}.*nothing was changed"):
            refuse()
    assert_same(before, state(model))
