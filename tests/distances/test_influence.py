from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from skipping import TEXTS, raw_states, skipping
from tiny import CONFIGS, breaks_at, tiny_model, tiny_tokenizer

from workbench.distances.influence import block_influence, last_states, removal_similarity
from workbench.models.layers import decoder_forward, decoder_layers
from workbench.pruning.removal import prune_, without_layers


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def token_ids(tokenizer, texts=TEXTS):
    return [tokenizer(text, return_tensors="pt").input_ids for text in texts]


def cosines(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    u, v = u.double(), v.double()
    return (u * v).sum(-1) / (u.norm(dim=-1) * v.norm(dim=-1))


@torch.no_grad()
def one_forward_each(model, ids, layers, final_norm=True, removed=()) -> np.ndarray:
    """LaCo's published way: a forward pass for each candidate, one cosine of all states of a text."""

    def last_state(text):
        if final_norm:
            return decoder_forward(model)(text, use_cache=False)[0].flatten()
        states: list[torch.Tensor] = []
        handle = decoder_layers(model)[-1].register_forward_hook(lambda m, a, out: states.append(out))
        decoder_forward(model)(text, use_cache=False)
        handle.remove()
        return (states[0][0] if isinstance(states[0], tuple) else states[0]).flatten()

    values = []
    for text in ids:
        base = last_state(text)
        row = []
        for layer in layers:
            with skipping(model, [*removed, layer]):
                row.append(cosines(base, last_state(text)).item())
        values.append(row)
    return np.array(values)


class TestBlockInfluence:
    def test_agrees_with_the_definition_over_all_real_tokens(self, model, tokenizer):
        similar, count = np.zeros(7), 0
        for ids in token_ids(tokenizer):
            states = raw_states(model, ids)
            similar += [cosines(states[i], states[i + 1]).sum().item() for i in range(7)]
            count += ids.numel()
        frame = block_influence(model, tokenizer, TEXTS, progress=False)
        np.testing.assert_allclose(frame["influence"], 1 - similar / count, atol=1e-6)
        assert frame["layer"].tolist() == list(range(7))
        assert (frame["n_tokens"] == count).all()
        assert (frame["ci_low"] <= frame["influence"]).all()
        assert (frame["influence"] <= frame["ci_high"]).all()

    @pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
    def test_neither_padding_nor_batches_change_a_number(self, model, tokenizer, batch_size):
        expected = block_influence(model, tokenizer, TEXTS, batch_size=1, progress=False)
        frame = block_influence(model, tokenizer, TEXTS, batch_size=batch_size, progress=False)
        pd.testing.assert_frame_equal(frame, expected, atol=1e-5, rtol=0)

    def test_a_layer_that_does_nothing_has_no_influence(self, tokenizer):
        model = tiny_model("qwen2")
        with torch.no_grad():
            for linear in (
                decoder_layers(model)[3].self_attn.o_proj,
                decoder_layers(model)[3].mlp.down_proj,
            ):
                linear.weight.zero_()
        influence = block_influence(model, tokenizer, TEXTS, progress=False)["influence"]
        assert influence[3] == pytest.approx(0, abs=1e-6)
        assert influence.drop(3).min() > 0.01

    def test_float16_with_large_states(self, tokenizer):
        model = tiny_model("llama")
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(3000)  # a norm whose square float16 cannot hold
        expected = block_influence(model, tokenizer, TEXTS, progress=False)
        frame = block_influence(model.half(), tokenizer, TEXTS, progress=False)
        np.testing.assert_allclose(frame["influence"], expected["influence"], atol=2e-3)


class TestRemovalSimilarity:
    @pytest.mark.parametrize("architecture", list(CONFIGS))
    def test_agrees_with_one_forward_for_each_candidate(self, architecture, tokenizer):
        model = tiny_model(architecture)
        expected = one_forward_each(model, token_ids(tokenizer, TEXTS[:4]), range(7))
        frame = removal_similarity(model, tokenizer, TEXTS[:4], progress=False)
        np.testing.assert_allclose(frame["similarity"], expected.mean(axis=0), atol=2e-6)
        np.testing.assert_allclose(frame["std"], expected.std(axis=0, ddof=1), atol=2e-6)

    @pytest.mark.parametrize("architecture", ["llama", "gemma3", "bloom", "falcon", "gpt2"])
    @pytest.mark.parametrize("max_tokens", [1, 30, 77, 200])
    def test_no_memory_bound_changes_a_number(self, architecture, max_tokens, tokenizer):
        model = tiny_model(architecture)
        expected = removal_similarity(model, tokenizer, TEXTS, progress=False)
        frame = removal_similarity(model, tokenizer, TEXTS, max_tokens=max_tokens, progress=False)
        pd.testing.assert_frame_equal(frame, expected, atol=2e-6, rtol=0)

    def test_before_the_final_norm(self, model, tokenizer):
        expected = one_forward_each(model, token_ids(tokenizer), range(7), final_norm=False).mean(axis=0)
        frame = removal_similarity(model, tokenizer, TEXTS, final_norm=False, progress=False)
        np.testing.assert_allclose(frame["similarity"], expected, atol=2e-6)
        assert (
            abs(frame["similarity"] - removal_similarity(model, tokenizer, TEXTS)["similarity"]).max() > 1e-3
        )

    def test_besides_layers_already_removed(self, model, tokenizer):
        left = [0, 1, 3, 5, 6]
        expected = one_forward_each(model, token_ids(tokenizer), left, removed=[2, 4]).mean(axis=0)
        frame = removal_similarity(model, tokenizer, TEXTS, removed=(4, 2), progress=False)
        assert frame["layer"].tolist() == left
        np.testing.assert_allclose(frame["similarity"], expected, atol=2e-6)

    def test_a_layer_that_does_nothing_keeps_everything(self, tokenizer):
        model = tiny_model("qwen2")
        with torch.no_grad():
            decoder_layers(model)[3].self_attn.o_proj.weight.zero_()
            decoder_layers(model)[3].mlp.down_proj.weight.zero_()
        frame = removal_similarity(model, tokenizer, TEXTS, progress=False)
        assert frame.loc[3, "similarity"] == pytest.approx(1, abs=1e-6)
        assert frame["similarity"].idxmax() == 3

    @pytest.mark.parametrize("layer", [5, 6])
    def test_hooks_of_others_act_on_candidates_too_and_once(self, model, tokenizer, layer):
        steer = torch.linspace(-1, 1, 36)
        handle = decoder_layers(model)[layer].register_forward_hook(lambda m, args, output: output + steer)
        others = [
            i for i in range(7) if i != layer
        ]  # skipped, the reference would leave out the steering alone
        expected = one_forward_each(model, token_ids(tokenizer), others).mean(axis=0)
        frame = removal_similarity(model, tokenizer, TEXTS, progress=False).drop(layer)
        handle.remove()
        np.testing.assert_allclose(frame["similarity"], expected, atol=2e-6)

    def test_model_is_left_as_it_was(self, model, tokenizer):
        ids = token_ids(tokenizer)[1]
        before, hooks = model(ids).logits, [len(layer._forward_hooks) for layer in decoder_layers(model)]
        removal_similarity(model, tokenizer, TEXTS, progress=False)
        assert model(ids).logits.equal(before)
        assert [len(layer._forward_hooks) for layer in decoder_layers(model)] == hooks
        assert not any("forward" in layer.__dict__ for layer in decoder_layers(model))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"removed": [7]}, r"layer must be one of the model's layers 0-6, got 7"),
            ({"removed": range(6)}, "removed must leave at least two layers to choose from, got 6 removed"),
            ({"max_tokens": 0}, "max_tokens must be a whole number >= 1, got 0"),
            ({"texts": []}, "at least one text"),
        ],
    )
    def test_errors(self, model, tokenizer, options, message):
        with pytest.raises(ValueError, match=message):
            removal_similarity(model, tokenizer, **({"texts": TEXTS} | options))


class TestPrunedModels:
    """A pruned model's layers keep their original numbers, so that what a frame says can be removed."""

    def test_layers_are_named_by_their_original_numbers(self, tokenizer):
        model = prune_(tiny_model("llama"), [1, 2])
        assert block_influence(model, tokenizer, TEXTS)["layer"].tolist() == [0, 3, 4, 5, 6]
        frame = removal_similarity(model, tokenizer, TEXTS, removed=[4])
        assert frame["layer"].tolist() == [0, 3, 5, 6]
        with pytest.raises(ValueError, match="layer must be one of the model's layers 0,3-6"):
            removal_similarity(model, tokenizer, TEXTS, removed=[1])

    def test_inside_without_layers(self, model, tokenizer):
        with without_layers(model, [3]):
            frame = removal_similarity(model, tokenizer, TEXTS, progress=False)
            expected = one_forward_each(model, token_ids(tokenizer), range(6)).mean(axis=0)
        assert frame["layer"].tolist() == [0, 1, 2, 4, 5, 6]
        np.testing.assert_allclose(frame["similarity"], expected, atol=2e-6)


def test_states_that_are_no_numbers_far_into_a_text_are_refused():
    model, texts = breaks_at(tiny_model("llama"), 330), [list(range(5, 45)), [*range(45, 85), 330, 7]]
    assert len(last_states(model, None, texts[:1])) == 1
    with pytest.raises(ValueError, match="1 of 2 texts"):
        last_states(model, None, texts)
