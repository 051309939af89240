from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from healed import make_examples
from interrupts import Interrupt, traced
from skipping import TEXTS, raw_states
from tiny import CONFIGS, tiny_model, tiny_tokenizer
from torch._dynamo.utils import counters
from transformers import AutoConfig, AutoModelForCausalLM

from workbench.distances.angular import angular_distances
from workbench.distances.damage import block_damage
from workbench.distances.influence import block_influence
from workbench.evaluation.answers import _chosen
from workbench.evaluation.perplexity import perplexity
from workbench.generation.responses import generate_responses
from workbench.healing.config import HealingConfig
from workbench.healing.heal import heal
from workbench.healing.restoring import checkpointing, same_cache
from workbench.models.hooks import (
    check_finite,
    compiled_layers,
    compiling_pays,
    inference,
    replaced_forwards,
    watch_states,
)
from workbench.models.layers import decoder_layers
from workbench.recovery.attention import attention_watched


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.mark.parametrize("architecture", list(CONFIGS))
def test_states_are_those_of_transformers_and_the_last_is_before_the_norm(architecture, tokenizer):
    model = tiny_model(architecture)
    ids = tokenizer(TEXTS[1], return_tensors="pt").input_ids
    seen: dict[int, torch.Tensor] = {}
    with torch.no_grad(), watch_states(model, seen.__setitem__):
        model(ids, use_cache=False)
    expected = raw_states(model, ids)
    assert list(seen) == list(range(len(expected)))
    for number, state in enumerate(expected):
        torch.testing.assert_close(seen[number], state)


def test_states_of_layers_that_give_lists_are_read_too():
    sizes = {"vocab_size": 97, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("openai-gpt", **sizes)).eval()
    ids, seen = torch.arange(9)[None] + 5, {}
    with torch.no_grad(), watch_states(model, seen.__setitem__):
        states = model(ids, output_hidden_states=True).hidden_states
    assert all(torch.equal(seen[number], state) for number, state in enumerate(states))


def test_layers_with_several_streams_are_refused_in_one_line(tokenizer):
    with pytest.raises(ValueError, match=r"one state .*Gemma3n.* passes on several streams") as caught:
        angular_distances(tiny_model("gemma3n"), tokenizer, ["Anna has 12 apples."], progress=False)
    assert "\n" not in str(caught.value)


def test_inference_asks_for_no_logits_of_routers_and_gives_the_setting_back():
    model = tiny_model("qwen3-moe", output_router_logits=True)
    with inference(model):
        assert model(torch.arange(5)[None]).router_logits is None
    assert model.config.output_router_logits
    assert len(model(torch.arange(5)[None]).router_logits) == 7


def test_inference_brings_every_modules_mode_back(model):
    decoder_layers(model)[1].train()
    with inference(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    assert [layer.training for layer in decoder_layers(model)] == [i == 1 for i in range(7)]
    model.eval()


def test_forwards_are_replaced_for_a_while(model):
    layers = decoder_layers(model)
    with replaced_forwards(layers[2:4], lambda layer: lambda *args, **kwargs: "replaced"):
        assert [layer("x") for layer in layers[2:4]] == ["replaced"] * 2
    assert not any("forward" in layer.__dict__ for layer in layers)


def _restored(model):
    """Return what must be as before, but for the weights."""
    modules = [
        (name, one.training, len(one._forward_hooks), len(one._forward_pre_hooks), "forward" in vars(one))
        for name, one in model.named_modules()
    ]
    checkpointed = [getattr(one, "gradient_checkpointing", None) for one in model.modules()]
    settings = model.config.to_dict(), model.config._attn_implementation, torch.is_grad_enabled()
    return modules, checkpointed, settings


@pytest.mark.parametrize(
    "context",
    [
        lambda model: watch_states(model, lambda number, state: None),
        inference,
        lambda model: replaced_forwards(decoder_layers(model), lambda layer: layer.forward),
        attention_watched,
        same_cache,
        checkpointing,
        lambda model: _chosen(model, torch.tensor([0])),
    ],
)
def test_an_interrupt_at_any_line_leaves_the_model_as_it_was(context):
    model = tiny_model("llama", num_hidden_layers=2)
    model.model.layers[0].train()
    before = _restored(model)

    def work() -> None:
        with context(model):
            pass

    for moment in range(traced(work, Interrupt()).lines + 1):
        told = traced(work, Interrupt(moment or None))
        assert _restored(model) == before, told.where


def test_values_that_are_not_finite_are_named_by_text():
    with pytest.raises(ValueError, match=r"1 of 3 texts \(first: text 1\) have others"):
        check_finite("states", np.array([[1.0], [np.nan], [2.0]]))
    check_finite("states", np.ones((2, 2)))


class TestCompiling:
    def test_gives_the_same_numbers_and_is_undone(self, model, tokenizer):
        ids = tokenizer(TEXTS[1], return_tensors="pt").input_ids
        expected = raw_states(model, ids)
        before = [dict(layer.__dict__) for layer in decoder_layers(model)]
        states: list[torch.Tensor] = []
        with torch.no_grad(), compiled_layers(model, dynamic=False, backend="eager"):
            assert all("forward" in layer.__dict__ for layer in decoder_layers(model))
            with watch_states(model, lambda i, h: states.append(h)):
                model(ids, use_cache=False)
        for mine, theirs in zip(states, expected, strict=True):
            torch.testing.assert_close(mine, theirs)
        after = [dict(layer.__dict__) for layer in decoder_layers(model)]
        assert [d.keys() for d in before] == [d.keys() for d in after]

    def test_all_layers_share_one_compilation(self, tokenizer):
        torch._dynamo.reset()
        counters.clear()
        model = tiny_model("qwen3")
        for _ in range(2):
            with torch.no_grad(), compiled_layers(model, dynamic=False, backend="eager"):
                model(torch.arange(20)[None], use_cache=False)
        assert counters["stats"]["unique_graphs"] == 1

    def test_is_undone_after_an_error_and_keeps_another_librarys_wrapper(self, model):
        layer = decoder_layers(model)[3]
        wrapper = layer.forward
        layer.forward = wrapper
        with pytest.raises(KeyboardInterrupt), compiled_layers(model, dynamic=False, backend="eager"):
            raise KeyboardInterrupt
        assert layer.__dict__.pop("forward") is wrapper
        assert not any("forward" in other.__dict__ for other in decoder_layers(model))

    def test_does_not_pay_on_the_cpu(self, model):
        assert not compiling_pays(model, 10**18)


@pytest.mark.parametrize(("rows", "others"), [(1, 1), (3, 1), (7, 1), (7, 0)], ids=str)
def test_states_that_lie_the_other_way_round_are_refused_also_of_square_batches(rows, others):
    sizes = {"vocab_size": 97, "d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 40}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("xlnet", **sizes)).eval()
    texts = [list(range(10, 17))] * rows + [[9] * 6] * others
    for measure in (angular_distances, block_influence, partial(block_damage, sizes=[1])):
        with pytest.raises(ValueError, match=r"must hand on states \[row, token, width\]; XLNet"):
            measure(model, None, texts, progress=False)


def test_attention_makes_no_plans_where_shapes_differ_and_keeps_them_where_they_repeat(tmp_path):
    """It plans for each new shape: looked at from inside the model, in each kind of work."""
    model, tokenizer, seen = tiny_model("llama"), tiny_tokenizer(), []
    decoder_layers(model)[0].register_forward_pre_hook(
        lambda *_: seen.append(torch.backends.cuda.cudnn_sdp_enabled())
    )

    def found(work, *args, **settings) -> set[bool]:
        seen.clear()
        work(model, tokenizer, *args, progress=False, **settings)
        assert torch.backends.cuda.cudnn_sdp_enabled()
        return set(seen)

    texts, config = ["one two three", "four five", "six"], HealingConfig(rank=2, max_steps=1, batch_size=4)
    assert found(perplexity, texts) == {False}
    # a trial of the head comes before, and steps of one shape behind
    assert False in found(heal, make_examples(9), out=tmp_path / "a", config=config)
    assert False in found(generate_responses, texts, max_new_tokens=2, engine="static")
    assert found(angular_distances, texts) == {True}
    config = replace(config, captured=True)
    assert found(heal, make_examples(9), out=tmp_path / "b", config=config) == {True}
