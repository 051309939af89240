"""A token by a uniform number: over all numbers as often as its probability says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workbench.generation.sampling import drawn, sampled


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_over_all_numbers_a_token_is_chosen_as_often_as_its_probability_says(temperature):
    logits = torch.tensor([1.5, -2.0, 0.0, 3.0, 2.9])
    numbers = torch.linspace(0, 1, 40_001)[:-1, None]
    tokens = sampled(logits.expand(len(numbers), -1), numbers, temperature).flatten()
    weights = np.exp(logits.double().numpy() / temperature)
    shares = np.bincount(tokens, minlength=5) / len(tokens)
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=1e-4)


def test_a_token_without_weight_is_never_drawn():
    weights = torch.tensor([[0.0, 2.0, 0.0, 1.0, 0.0]]).double()
    for number in (0.0, 0.3, 0.66, 0.67, 1 - 2**-24):  # the last: the highest of torch.rand
        assert drawn(weights, torch.tensor([[number]]).double()).item() in (1, 3)
