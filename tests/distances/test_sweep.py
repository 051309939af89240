"""Candidates that share a pass end where each would end alone."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from skipping import TEXTS, raw_states, skipping
from tiny import CONFIGS, tiny_model, tiny_tokenizer

from workbench.distances import sweep
from workbench.distances.influence import removal_similarity
from workbench.distances.sweep import Replay, positions_of
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
        with pytest.raises(ValueError, match=f"one of the model's 5 layers \\(0,3-6\\), got {wrong}"):
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
