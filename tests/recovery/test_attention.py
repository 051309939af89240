"""Attention matrices of one layer at a time: what they are, and how much memory they take."""

import pytest
import torch
from tiny import tiny_model

from workbench.recovery.attention import (
    NAME,
    Seen,
    attention_error,
    attention_watched,
    check_attention,
    probabilities,
    told,
)


@pytest.mark.parametrize(
    "family", ["llama", "mistral", "qwen3", "phi3", "gemma2", "gemma3", "gpt2", "gpt-neox", "opt"]
)
def test_the_matrices_are_those_of_eager_attention(family):
    model = tiny_model(family)
    ids = (torch.arange(26).reshape(2, 13) * 7 + 11) % 300
    model.set_attn_implementation("eager")
    with torch.no_grad():
        wanted = model(input_ids=ids, output_attentions=True).attentions
    if family != "gemma2":  # its scores are capped, which only eager attention does
        model.set_attn_implementation("sdpa")
    seen = {}
    with torch.no_grad(), attention_watched(model), told(model, lambda k, one, *_: seen.__setitem__(k, one)):
        model(input_ids=ids)
    assert sorted(seen) == list(range(len(wanted)))
    for place, matrix in enumerate(wanted):
        assert torch.allclose(probabilities(seen[place]), matrix, atol=2e-6)
    assert model.config._attn_implementation != NAME


@pytest.mark.parametrize("family", ["bloom", "falcon"])
def test_an_architecture_without_matrices_is_refused_by_name_with_the_way_out(family):
    with pytest.raises(ValueError, match=r"hands over no attention matrix in layer 0; leave it out, loss="):
        check_attention(tiny_model(family))


def test_what_is_kept_for_the_backward_pass_does_not_grow_with_the_square_of_the_length():
    def kept_at(length):
        kept = 0

        def pack(tensor):
            nonlocal kept
            kept += tensor.numel()
            return tensor

        torch.manual_seed(0)
        two = [
            Seen(torch.randn(1, 4, length, 8), torch.randn(1, 2, length, 8), 0.3, None, None)
            for _ in range(2)
        ]
        two[0].query.requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            attention_error(two[0], two[1], [length]).backward()
        return kept

    assert kept_at(64) == 2 * kept_at(32) > 0


def test_rows_together_or_one_by_one_are_the_same(monkeypatch):
    def error():
        torch.manual_seed(0)
        two = [Seen(torch.randn(4, 4, 9, 8), torch.randn(4, 2, 9, 8), 0.3, 5.0, None) for _ in range(2)]
        two[0].key.requires_grad_()
        value = attention_error(two[0], two[1], [9, 9, 6, 0])
        value.backward()
        return value.item(), two[0].key.grad

    together = error()
    monkeypatch.setattr("workbench.recovery.attention.TOGETHER", 1)
    apart = error()
    assert together[0] == pytest.approx(apart[0], rel=1e-6)
    assert torch.allclose(together[1], apart[1], atol=1e-7)
    assert not together[1][3].any() and not together[1][2, :, 6:].any()
