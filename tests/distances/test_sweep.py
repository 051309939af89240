"""Candidates that share a pass end where each would end alone."""

from __future__ import annotations

import copy
from collections import UserDict
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from flows import flow_model
from skipping import TEXTS, raw_states, skipping
from tiny import CONFIGS, tiny_model, tiny_tokenizer
from transformers import DynamicCache

from workbench.distances import sweep
from workbench.distances.angular import angular_distances
from workbench.distances.damage import block_damage
from workbench.distances.influence import block_influence, removal_similarity
from workbench.distances.sweep import Replay, _repeat, _row_axis, check_shared, positions_of
from workbench.models.hooks import inference
from workbench.models.layers import decoder_forward, decoder_layers
from workbench.pruning.removal import prune_

REMOVALS = [(5, 6), (0,), (5,), (2, 3, 4), (0, 6)]


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def found(model, ids, max_tokens=10**6):
    """Return the states of each removal, with how often it came, and the object that made them."""
    states: dict[tuple[int, ...], list[torch.Tensor]] = {}
    with inference(model):
        replay = Replay(model, ids, max_tokens=max_tokens)
        for names, packed in replay.packs(REMOVALS):
            for name, one in zip(names, packed.split(len(ids)), strict=True):
                states.setdefault(name, []).append(one)
    return states, replay


@pytest.mark.parametrize("architecture", list(CONFIGS))
def test_states_norm_and_logits_are_those_of_one_pass_each(architecture, tokenizer):
    model = tiny_model(architecture)
    ids = tokenizer(TEXTS[1], return_tensors="pt").input_ids.repeat(2, 1)
    states, replay = found(model, ids)
    assert set(states) == {(), *REMOVALS}
    with torch.no_grad():
        for removal, (state,) in states.items():
            with skipping(model, removal):
                normed = decoder_forward(model)(ids, use_cache=False)[0]
                logits = model(ids, use_cache=False).logits
            torch.testing.assert_close(replay.normed(state), normed, atol=2e-5, rtol=0)
            torch.testing.assert_close(replay.logits(state), logits, atol=2e-5, rtol=0)
        torch.testing.assert_close(states[()][0], raw_states(model, ids)[-1], atol=2e-5, rtol=0)
    assert replay.vocabulary == logits.shape[-1]


def test_each_wave_brings_the_model_itself_first(model, tokenizer, monkeypatch):
    ids = tokenizer(TEXTS[1], return_tensors="pt").input_ids
    monkeypatch.setattr(sweep, "HELD", 2)
    states, replay = found(model, ids, max_tokens=ids.numel())
    assert replay.held == 2
    assert len(states.pop(())) == 3
    assert all(len(one) == 1 for one in states.values())
    with inference(model):
        first = next(iter(replay.packs(REMOVALS)))
    assert first.removals == [()]


def test_layers_are_found_by_their_original_numbers():
    model = prune_(tiny_model("llama"), [1, 2])
    assert positions_of(model, [6, 0, 3]) == (0, 1, 4)
    for wrong in (1, 7, True, 0.5):
        with pytest.raises(ValueError, match=f"one of the model's layers 0,3-6, got {wrong}"):
            positions_of(model, [wrong])


def test_a_layer_call_sees_no_more_tokens_than_allowed(model, tokenizer):
    seen: list[int] = []
    handles = [
        layer.mlp.register_forward_hook(lambda m, args, output: seen.append(output[..., 0].numel()))
        for layer in decoder_layers(model)
    ]
    removal_similarity(model, tokenizer, TEXTS, max_tokens=100, progress=False)
    for handle in handles:
        handle.remove()
    assert max(seen) <= 100


def test_several_waves_when_few_states_may_wait(model, tokenizer, monkeypatch):
    expected = removal_similarity(model, tokenizer, TEXTS, progress=False)
    monkeypatch.setattr("workbench.distances.sweep.HELD", 2)
    frame = removal_similarity(model, tokenizer, TEXTS, max_tokens=40, progress=False)
    pd.testing.assert_frame_equal(frame, expected, atol=2e-6, rtol=0)


@torch.no_grad()
def one_by_one(model, texts, removals):
    """Return the mean loss and the last normed state, a text and removal at a time, without any sharing."""
    losses, states = [], []
    for removal in removals:
        with skipping(model, removal):
            rows = [torch.tensor([ids]) for ids in texts]
            sums = [model(ids, labels=ids, use_cache=False).loss * (ids.shape[1] - 1) for ids in rows]
            states.append([decoder_forward(model)(ids, use_cache=False)[0][0] for ids in rows])
        losses.append(float(sum(sums) / sum(ids.shape[1] - 1 for ids in rows)))
    similar = [
        np.mean(
            [torch.cosine_similarity(a.flatten(), b.flatten(), 0) for a, b in zip(s, states[0], strict=True)]
        )
        for s in states
    ]
    return np.array(losses), np.array(similar)


SHORT = [[5, 6, 7, 8, 9, 10, 11, 12], [20, 30, 40], [50, 9, 61, 7, 88]]


@pytest.mark.parametrize(
    "name",
    ["gemma4", "bamba", "openai-gpt", "mixtral", "gemma3-bidirectional", "paligemma", "phi3-longrope"],
)
def test_odd_architectures_are_exact(name):
    model = flow_model(name)
    texts = [ids * 3 for ids in SHORT]
    model.config.get_text_config().output_router_logits = False  # transformers would add its balance loss
    removals = [(), *((layer,) for layer in range(len(decoder_layers(model))))]
    losses, similar = one_by_one(model, texts, removals)
    model.config.get_text_config().output_router_logits = name == "mixtral"
    frame = block_damage(model, None, texts, sizes=[1], progress=False)
    np.testing.assert_allclose(frame["base_loss"], losses[0], atol=1e-5)
    np.testing.assert_allclose(frame["loss"], losses[1:], atol=1e-5)
    found = removal_similarity(model, None, texts, progress=False)
    np.testing.assert_allclose(found["similarity"], similar[1:], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gemma4-shared", "Gemma4.* hands more .*attention"),
        ("inkling2", "Inkling2.* hands more .*% off"),
        ("rwkv", "Rwkv.* hands more .*% off"),
        ("gemma3n", "Gemma3n.* several streams"),
        ("deepseek-v4", "DeepseekV4.* several streams"),
    ],
)
def test_what_flows_beside_the_state_is_refused_by_name_and_at_once(name, why):
    model = flow_model(name)
    tokens = []
    decoder_layers(model)[0].register_forward_pre_hook(
        lambda m, args, kwargs: tokens.append((args[0] if args else kwargs["hidden_states"])[..., 0].numel()),
        with_kwargs=True,
    )
    for measure in (removal_similarity, partial(block_damage, sizes=[1])):
        with pytest.raises(ValueError, match=why) as error:
            measure(model, None, [ids * 30 for ids in SHORT], progress=False)
        assert "\n" not in str(error.value)
    assert max(tokens) <= 200


def test_what_passes_the_check_says_how_each_layer_gives_its_output(model):
    assert check_shared(model, torch.arange(5, 30), head=True) == [None] * 7
    assert check_shared(model, torch.tensor([5]), head=False) == [None] * 7
    assert check_shared(flow_model("bamba"), torch.arange(5, 30), head=True) == [(tuple, 2)] * 7
    assert check_shared(flow_model("openai-gpt"), torch.arange(5, 30), head=True) == [(list, 1)] * 7


@pytest.mark.parametrize("value", [{}, [], UserDict(), UserDict(a=1)])
def test_what_layers_could_write_into_is_never_the_same_twice(value):
    axis = _row_axis({}, value, copy.copy(value))
    for times in (1, 3):
        given = _repeat(value, axis, times=times)
        assert given == value
        assert given is not value
    assert _repeat(None, _row_axis({}, None, None), times=3) is None


def test_a_cache_is_refused():
    with pytest.raises(ValueError, match="its layers take a DynamicCache"):
        _row_axis({}, DynamicCache(), DynamicCache())


def test_the_head_sees_the_real_tokens_of_every_row(model, tokenizer, monkeypatch):
    seen = []
    model.model.embed_tokens.register_forward_hook(lambda m, args, output: seen.append(args[0]))
    ids = torch.arange(5, 17).reshape(3, 4)
    with inference(model):
        replay = Replay(model, ids, max_tokens=10**6)
        states = torch.randn(6, 4, 36)
        replay.logits(states[2:5], first=2)
    assert seen[-1].tolist() == ids[[2, 0, 1]].tolist()


@pytest.mark.parametrize("offload", ["cpu", "disk"])
def test_offloaded_weights_are_measured_alike(tokenizer, offload, tmp_path):
    import accelerate

    measures = [
        partial(angular_distances, progress=False),
        partial(block_influence, progress=False),
        partial(removal_similarity, progress=False),
        partial(block_damage, sizes=[1], progress=False),
    ]
    texts = [text for text in TEXTS if len(text) > 1]
    expected = [measure(tiny_model("llama"), tokenizer, texts) for measure in measures]
    away = {"execution_device": torch.device("cpu")}
    put = (
        accelerate.cpu_offload if offload == "cpu" else partial(accelerate.disk_offload, offload_dir=tmp_path)
    )
    model = put(tiny_model("llama"), **away)
    for measure, frame in zip(measures, expected, strict=True):
        pd.testing.assert_frame_equal(measure(model, tokenizer, texts), frame, atol=1e-5, rtol=0)
