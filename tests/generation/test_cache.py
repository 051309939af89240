"""The cache of one layer: prompts aligned right, then one slot a step; and the attention over it."""

from __future__ import annotations

import pytest
import torch

from workbench.generation.cache import NotExactError, Slots, _attention


def states(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_prompts_are_moved_along_and_a_step_fills_the_next_slot():
    at = torch.tensor([3])
    part = Slots(2, 6, at, [0, 6])
    keys, values = states(2, 3, 3, 4), states(2, 3, 3, 5, seed=1)
    shift = torch.tensor([0, 2])  # the second prompt has one token, padded on the right
    part.fill(0, (torch.arange(3) - shift[:, None]) % 3)
    seen = part.update(keys, values)
    assert seen[0] is keys and seen[1] is values
    assert torch.equal(part.keys[0, :, :3], keys[0])
    assert torch.equal(part.keys[1, :, 2], keys[1, :, 0])
    assert torch.equal(part.values[1, :, 2], values[1, :, 0])
    part.filling = False
    step = states(2, 3, 1, 4, seed=2), states(2, 3, 1, 5, seed=3)
    held, _ = part.update(*step)
    assert held.shape == (2, 3, 6, 4)
    assert torch.equal(held[:, :, 3:4], step[0])
    assert not held[:, :, 4:].any()
    part.shown[:] = [2, 4]
    assert part.update(*step)[0].shape == (2, 3, 2, 4)


def test_a_step_is_attention_over_the_slots_that_a_row_sees():
    query, keys, values = states(2, 6, 1, 4), states(2, 3, 5, 4, seed=1), states(2, 3, 5, 4, seed=2)
    mask = torch.tensor([[1, 1, 1, 1, 0], [0, 0, 1, 1, 0]]).bool()
    found, _ = _attention(None, query, keys, values, mask[:, None, None])
    for row in range(2):
        k, v = (part[row][:, mask[row]].repeat_interleave(2, 0) for part in (keys, values))
        weights = torch.softmax(query[row] @ k.transpose(1, 2) * 4**-0.5, dim=-1)
        torch.testing.assert_close(found[row, 0], (weights @ v)[:, 0])


def test_attention_with_a_part_of_its_own_is_refused_by_name():
    query = states(1, 2, 1, 4)
    with pytest.raises(NotExactError, match="its attention has softcap"):
        _attention(None, query, query, query, None, softcap=30.0)
