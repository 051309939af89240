"""What depends on a layer's place follows, or the cut is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cutting import TOKENIZER, assert_exact, assert_same, greedy_without_cache, logits, settings, state
from skipping import skipping
from tiny import CONFIGS, LAYERS, MORE, tiny_config, tiny_model
from transformers import AutoModelForCausalLM

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
        ("gemma3n", {}, [6], "hidden_size_per_layer_input=4"),
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
