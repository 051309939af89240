"""Layers merged into one: the paper's equation by hand, the published code's way, what is restored."""

import pytest
import torch
from healed import logits, same_state, state
from tiny import tiny_model, tiny_tokenizer

from workbench.models.layers import decoder_layers, kept_layers
from workbench.models.loading import load_model
from workbench.pruning.collapse import collapse_, collapsed_layers, layers_merged_away
from workbench.pruning.removal import without_layers
from workbench.pruning.saving import save_pruned


def numbered(architecture="llama"):
    """Return a model whose layer k holds the number 2**k in every place: sums of layers can be read off."""
    model = tiny_model(architecture)
    for place, layer in enumerate(decoder_layers(model)):
        for parameter in layer.parameters():
            parameter.data.fill_(2.0**place)
    return model


def values(model):
    return [
        (layer.mlp.up_proj.weight.unique().item(), layer.input_layernorm.weight.unique().item())
        for layer in decoder_layers(model)
    ]


def test_the_equation_adds_the_difference_of_each_layer_to_the_first():
    with collapsed_layers(numbered(), [(3, 2)]) as model:
        # layers 1 2 4 8 16 32 64: the fourth becomes 8 + (16 - 8) + (32 - 8) = 40, norms too
        assert values(model) == [(1, 1), (2, 2), (4, 4), (40, 40), (64, 64)]
        assert kept_layers(model) == (0, 1, 2, 3, 6)


def test_a_second_merge_takes_what_the_first_one_made():
    with collapsed_layers(numbered(), [(3, 2), (1, 2)]) as model:
        # 2 + (4 - 2) + (40 - 2) = 42
        assert values(model) == [(1, 1), (42, 42), (64, 64)]


def test_the_published_code_leaves_the_last_matrix_and_the_first_norm():
    with collapsed_layers(numbered(), [(3, 2), (1, 2)], merging="published") as model:
        assert values(model) == [(1, 1), (32, 2), (64, 64)]


@pytest.mark.parametrize("merging", ["equation", "published"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_it_is_restored_to_the_bit_and_for_good_it_saves_and_reloads(tmp_path, family, merging):
    model = tiny_model(family)
    before, said = state(model), logits(model)
    with collapsed_layers(model, [(2, 2)], merging=merging):
        merged = logits(model)
    assert same_state(model, before) and torch.equal(logits(model), said)
    with without_layers(model, [3, 4]):
        assert not torch.equal(logits(model), merged)
    collapse_(model, [(2, 2)], merging=merging)
    assert torch.equal(logits(model), merged)
    save_pruned(model, tiny_tokenizer(), tmp_path / "saved")
    again, _ = load_model(str(tmp_path / "saved"), dtype="float32")
    assert torch.allclose(logits(again), merged, atol=1e-5) and kept_layers(again) == (0, 1, 2, 5, 6)


@pytest.mark.parametrize(
    ("merges", "words"),
    [([(5, 2)], "2 layers behind 5 are asked for, there are 1"), ([(2, 1), (3, 1)], "layer 3 is not among")],
)
def test_merges_that_cannot_be_are_refused(merges, words):
    with pytest.raises(ValueError, match=words):
        layers_merged_away(range(7), merges)


def test_layers_of_different_form_are_refused():
    one = collapsed_layers(tiny_model("qwen3-moe-mixed"), [(0, 1)])
    with pytest.raises(ValueError, match="layers of different form"), one:
        pass
