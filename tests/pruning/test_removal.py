"""Removal is exact, whatever the architecture: in memory, with a cache, reloaded; and it is taken back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cutting import (
    TOKENIZER,
    assert_exact,
    assert_same,
    generated,
    greedy_without_cache,
    logits,
    settings,
    state,
)
from skipping import skipping
from tiny import CONFIGS, LAYERS, tiny_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from workbench.models.layers import kept_layers, layer_container, number_of_layers
from workbench.pruning import removal
from workbench.pruning.removal import check_prunable, prune_, without_layers
from workbench.pruning.saving import save_pruned

CUTS = [(2, 3), (0, 4, 6)]  # a block, and a scattered set with the first and the last layer


# exactness ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_cut_is_exact_in_memory_with_cache_and_reloaded(
    architecture: str, cut: tuple[int, ...], tmp_path: Path
) -> None:
    model = tiny_model(architecture)
    with skipping(model, cut):
        expected, expected_tokens = logits(model), greedy_without_cache(model)
        expected_right = logits(model, side="right")
    before, whole = state(model), logits(model)
    assert not torch.allclose(expected, whole, atol=1e-2), "the layers must matter, or the test sees nothing"

    with without_layers(model, cut):
        assert number_of_layers(model) == LAYERS - len(cut)
        assert_exact(model, expected, expected_tokens)
        assert torch.equal(logits(model, side="right"), expected_right)
    assert_same(before, state(model))
    assert torch.equal(logits(model), whole)

    prune_(model, cut)
    assert_exact(model, expected, expected_tokens)
    model.save_pretrained(tmp_path / "plain")
    TOKENIZER.save_pretrained(tmp_path / "plain")
    # the tokenizer class that transformers picks for this architecture, as load_model does
    saved = save_pruned(model, AutoTokenizer.from_pretrained(tmp_path / "plain"), tmp_path / "saved")
    reloaded = AutoModelForCausalLM.from_pretrained(saved)
    assert_exact(reloaded, expected, expected_tokens)
    assert settings(model) == settings(reloaded)
    kept = tuple(sorted(set(range(LAYERS)) - set(cut)))
    assert kept_layers(model) == kept_layers(reloaded) == kept


def test_every_architecture_that_is_trusted_is_tested_here() -> None:
    tested = {layer_container(tiny_model(name))[0].config.model_type for name in CONFIGS}
    assert tested == removal.VERIFIED


def test_an_unknown_forward_pass_that_counts_layers_is_found_by_trying_it_out() -> None:
    model = tiny_model("rwkv")  # rescales its states at every sixth layer, which no module shows
    with pytest.raises(ValueError, match="computes something else than with these passing on"):
        prune_(model, [3])
    assert number_of_layers(model) == LAYERS


def test_trying_out_leaves_no_trace() -> None:
    model = tiny_model("gpt-neo")
    model.train()
    before = state(model)
    with without_layers(model, [2]):
        pass
    assert_same(before, state(model))
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("architecture", "kind"), [("gemma3", "full_attention"), ("gemma2", "sliding_attention")]
)
def test_all_layers_of_one_kind_can_go(architecture: str, kind: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    cut = [i for i, name in enumerate(model.config.layer_types) if name == kind]
    with skipping(model, cut):
        expected, expected_tokens = logits(model), greedy_without_cache(model)
    prune_(model, cut)
    assert_exact(model, expected, expected_tokens)
    assert kind not in model.config.layer_types
    reloaded = AutoModelForCausalLM.from_pretrained(save_pruned(model, TOKENIZER, tmp_path / "saved"))
    assert_exact(reloaded, expected, expected_tokens)


def test_a_static_cache_follows() -> None:
    model = tiny_model("gemma3")
    options = {"cache_implementation": "static", "disable_compile": True}
    whole = generated(model, **options)
    with skipping(model, (2, 4)):
        expected = greedy_without_cache(model)
    with without_layers(model, [2, 4]):
        assert torch.equal(generated(model, **options), expected)
    assert torch.equal(generated(model, **options), whole)


def test_bfloat16_is_exact_too(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "whole")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.bfloat16)
    with skipping(model, (1, 2)):
        expected = logits(model)
    prune_(model, [1, 2])
    reloaded = AutoModelForCausalLM.from_pretrained(save_pruned(model, TOKENIZER, tmp_path / "saved"))
    assert reloaded.dtype == torch.bfloat16
    assert torch.equal(logits(reloaded), expected)


# taking back ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accident", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_the_model_is_whole_again_whatever_happened_inside(accident: type[BaseException]) -> None:
    model = tiny_model("gemma3")
    before, whole = state(model), logits(model)
    with pytest.raises(accident):
        look_and_fail(model, accident)
    assert_same(before, state(model))
    assert torch.equal(logits(model), whole)


def look_and_fail(model: nn.Module, accident: type[BaseException]) -> None:
    with without_layers(model, [1, 5]):
        logits(model, use_cache=True)
        raise accident


class Interrupted(dict):
    """A dictionary in which an interrupt falls when it is written to for the nth time."""

    def __init__(self, *args: Any, after: int) -> None:
        super().__init__(*args)
        self.left = after

    def __setitem__(self, key: str, value: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        super().__setitem__(key, value)


@pytest.mark.parametrize("after", range(1, 7))
def test_an_interrupt_between_two_changes_leaves_nothing_half_done(after: int) -> None:
    entries = Interrupted({"a": 1, "b": 2}, after=after)
    changes = [(entries, "a", 10), (entries, "b", 20), (entries, "c", 30)]
    try:
        with removal._applied(changes):
            assert entries == {"a": 10, "b": 20, "c": 30}
    except KeyboardInterrupt:
        pass
    else:
        assert after == 6, "writing three entries and taking back two of them are five writes"
    assert entries == {"a": 1, "b": 2}


def test_uses_nest_and_go_by_original_index() -> None:
    model = tiny_model("qwen3")
    before = state(model)
    with skipping(model, (1, 2, 5)):
        expected = logits(model)
    with without_layers(model, [1, 2]):
        assert kept_layers(model) == (0, 3, 4, 5, 6)
        with without_layers(model, [5]):
            assert kept_layers(model) == (0, 3, 4, 6)
            assert torch.equal(logits(model, use_cache=True), expected)
            with pytest.raises(ValueError, match=r"the model's layers 0,3-4,6, got 5"):
                check_prunable(model, [5])
        assert kept_layers(model) == (0, 3, 4, 5, 6)
        with without_layers(model, []):
            assert kept_layers(model) == (0, 3, 4, 5, 6)
    assert_same(before, state(model))


def test_cutting_twice_is_cutting_once(tmp_path: Path) -> None:
    once, twice = prune_(tiny_model("gemma3"), [1, 2, 5]), prune_(tiny_model("gemma3"), [2, 5])
    saved = save_pruned(twice, TOKENIZER, tmp_path / "first")
    twice = prune_(AutoModelForCausalLM.from_pretrained(saved).eval(), [1])
    assert kept_layers(once) == kept_layers(twice) == (0, 3, 4, 6)
    assert twice.config.original_num_hidden_layers == LAYERS
    assert twice.config.layer_types == once.config.layer_types
    assert torch.equal(logits(once), logits(twice))
    with pytest.raises(ValueError, match="layers 0,3-4,6, got 1"):
        prune_(twice, [1])


def test_no_weight_is_copied() -> None:
    model = tiny_model("llama")
    parameters = {id(parameter) for parameter in model.parameters()}
    with without_layers(model, [3]):
        assert {id(parameter) for parameter in model.parameters()} < parameters


def test_prune_inside_a_look_is_refused() -> None:
    model = tiny_model("llama")
    with without_layers(model, [3]), pytest.raises(ValueError, match="must not be inside without_layers"):
        prune_(model, [4])
    prune_(model, [4])
    assert number_of_layers(model) == LAYERS - 1


def test_a_mode_set_inside_reaches_the_absent_layers() -> None:
    model = tiny_model("gpt2", resid_pdrop=0.5).train()
    with without_layers(model, [3]):
        model.eval()
    assert not any(module.training for module in model.modules())
    assert torch.equal(logits(model), logits(model)), "an absent layer kept its dropout"


def test_an_adapter_stays_on_its_layers() -> None:
    import peft

    model = tiny_model("llama")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear"))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    wrapped.eval()
    with skipping(wrapped, (2, 3)):
        expected, expected_tokens = logits(wrapped), greedy_without_cache(wrapped)
    before, whole = state(wrapped), logits(wrapped)
    with without_layers(wrapped, [2, 3]):
        assert_exact(wrapped, expected, expected_tokens)
    assert_same(before, state(wrapped))
    assert torch.equal(logits(wrapped), whole)


def test_an_adapter_trained_inside_does_not_reach_the_absent_layers() -> None:
    import peft

    model = tiny_model("llama")
    whole = logits(model)
    with without_layers(model, [2, 3]):
        wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
        assert sum("lora_A" in name for name, _ in wrapped.named_parameters()) == LAYERS - 2
        wrapped.unload()
    assert torch.equal(logits(model), whole)


# bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([7], r"layers must be among the model's layers 0-6, got 7"),
        ([-1, 2], "layers 0-6, got -1"),
        ([3, 3], r"layers must name each layer once, got \[3, 3\]"),
        (range(7), "something has to stay"),
        ([1.5], r"layers must be among the model's layers 0-6, got 1.5"),
        (3, r"layers must be among the model's layers 0-6, got 3"),
        ("34", "layers must be among the model's layers 0-6, got"),
        ([True], r"layers must be among the model's layers 0-6, got True"),
        (["3"], "layers must be among the model's layers 0-6, got"),
        ([None], "layers must be among the model's layers 0-6, got"),
        ({"3": 1}, "layers must be among the model's layers 0-6, got"),
        (np.array([1.0, 2.0]), "layers must be among the model's layers 0-6, got"),
    ],
)
def test_bad_layers_are_refused_in_one_line(layers: Any, message: str) -> None:
    model = tiny_model("llama")
    for refuse in (prune_, check_prunable, lambda m, cut: without_layers(m, cut).__enter__()):
        with pytest.raises(ValueError, match=message) as caught:
            refuse(model, layers)
        assert "\n" not in str(caught.value)
    assert number_of_layers(model) == LAYERS


def test_whole_numbers_of_numpy_are_layers() -> None:
    model = tiny_model("llama")
    with without_layers(model, np.array([2, 4])):
        assert kept_layers(model) == (0, 1, 3, 5, 6)
    assert kept_layers(prune_(model, (layer for layer in [np.int64(3)]))) == (0, 1, 2, 4, 5, 6)


def test_check_prunable_without_layers_tries_the_first_and_the_last() -> None:
    check_prunable(tiny_model("gemma3"))
    with pytest.raises(ValueError, match="scale_attn_by_inverse_layer_idx"):
        check_prunable(tiny_model("gpt2", scale_attn_by_inverse_layer_idx=True))


def test_the_demo_model_is_cut_exactly_and_comes_back(demo_model: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = demo_model
    ids = tokenizer("The old miller", return_tensors="pt").input_ids
    with torch.no_grad():
        whole = model(ids).logits
        with skipping(model, (3, 4)):
            expected = model(ids, use_cache=False).logits
        with without_layers(model, [3, 4]):
            assert torch.equal(model(ids).logits, expected)
            saved = save_pruned(model, tokenizer, tmp_path / "saved")
        assert torch.equal(model(ids).logits, whole)
        assert torch.equal(AutoModelForCausalLM.from_pretrained(saved)(ids).logits, expected)
