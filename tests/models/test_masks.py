"""Masks: what a token reads in a row that texts share, against one token at a time and each text alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import VOCABULARY, tiny_model
from transformers import DynamicCache

from workbench.models.masks import as_attention_mask, readers, why_no_masks

#: parent of each token of a row, in depth-first order: a beginning of 3 tokens, two endings, another text
PARENTS = [-1, 0, 1, 2, 3, 2, 5, 6, -1, 8]
#: position of each: how many tokens stand before it on its own way
POSITIONS = [0, 1, 2, 3, 4, 3, 4, 5, 0, 1]


def way_to(token: int) -> list[int]:
    """Return the tokens from the beginning of a token's text to itself."""
    return [] if token < 0 else [*way_to(PARENTS[token]), token]


def ends() -> list[int]:
    """Return the place behind the last token that reads each one, found by looking at every way."""
    return [max(k for k in range(len(PARENTS)) if token in way_to(k)) + 1 for token in range(len(PARENTS))]


def test_a_token_reads_what_is_on_its_own_way():
    seen = readers(torch.tensor([ends(), [1] * 10]))
    expected = np.array([[key in way_to(token) for key in range(10)] for token in range(10)])
    np.testing.assert_array_equal(seen[0].numpy(), expected)
    # a token that none but itself may read, though it stands in front of all others
    assert seen[1].nonzero().tolist() == [[0, 0]]


def test_every_token_reads_what_is_in_the_cache():
    ends_ = torch.tensor([ends()])
    seen = readers(ends_, before=4)
    assert seen.shape == (1, 10, 14)
    assert seen[:, :, :4].all() and torch.equal(seen[:, :, 4:], readers(ends_))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3", "qwen2-sliding", "gpt-neox"])
def test_states_in_a_shared_row_are_those_of_each_text_alone(architecture, attention):
    model = tiny_model(architecture)
    model.set_attn_implementation(attention)
    assert why_no_masks(model) is None
    ids = torch.randint(5, VOCABULARY, (len(PARENTS),), generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([POSITIONS])
    mask = as_attention_mask(model, readers(torch.tensor([ends()])), positions)
    with torch.no_grad():
        shared = model(ids[None], attention_mask=mask, position_ids=positions, use_cache=False).logits[0]
        for last in (4, 7, 9):  # of each text
            way = way_to(last)
            alone = model(ids[way][None], use_cache=False).logits[0]
            torch.testing.assert_close(shared[way], alone, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3"])
def test_a_row_goes_on_from_a_cache_as_if_it_had_been_read_at_once(architecture):
    model = tiny_model(architecture)
    ids = torch.randint(5, VOCABULARY, (1, 12), generator=torch.Generator().manual_seed(1))
    # two texts with the first 8 tokens in common, of which they differ in the last two
    row = torch.cat([ids[:, 8:10], ids[:, 10:]], dim=1)
    positions = torch.tensor([[8, 9, 8, 9]])
    seen = readers(torch.tensor([[2, 2, 4, 4]]), before=8)
    mask = as_attention_mask(model, seen, positions, before=8)
    with torch.no_grad():
        cache = DynamicCache()  # of all tokens, also where a window would do
        model(ids[:, :8], past_key_values=cache, use_cache=True)
        found = model(row, attention_mask=mask, position_ids=positions, past_key_values=cache).logits[0]
        for places in ([0, 1], [2, 3]):
            whole = torch.cat([ids[:, :8], row[:, places]], dim=1)
            alone = model(whole, use_cache=False).logits[0, 8:]
            torch.testing.assert_close(found[places], alone, atol=2e-4, rtol=1e-4)


def test_each_kind_of_attention_gets_the_form_that_it_takes():
    seen, positions = readers(torch.tensor([[6] * 6])), torch.arange(6)[None]
    plain = as_attention_mask(tiny_model("llama"), seen, positions)
    assert plain.dtype == torch.bool and plain.shape == (1, 1, 6, 6)
    model = tiny_model("llama")
    model.set_attn_implementation("eager")
    added = as_attention_mask(model, seen, positions)
    assert torch.equal(added == 0, plain) and (added[~plain] == torch.finfo(torch.float32).min).all()
    both = as_attention_mask(tiny_model("gemma3"), seen, positions)  # a window of 5
    assert set(both) == {"full_attention", "sliding_attention"}
    near = np.subtract.outer(np.arange(6), np.arange(6)) < 5
    np.testing.assert_array_equal(both["sliding_attention"][0, 0].numpy(), plain[0, 0].numpy() & near)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("bloom", "its class brings its own attention"),
        ("gemma3-multimodal", "it reads images"),
        ("minimax", "its layers are full_attention, linear_attention"),
    ],
)
def test_what_cannot_be_given_masks_says_why(architecture, reason):
    assert why_no_masks(tiny_model(architecture)) == reason


def test_another_implementation_of_attention_is_named():
    model = tiny_model("llama")
    model.config._attn_implementation = "flex_attention"
    assert why_no_masks(model) == "its attention is flex_attention"
