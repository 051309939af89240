"""The rejection rule, and the theory of what it is worth, against a simulation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workbench.speculation.rule import judge, theory_speed_up, tokens_per_call


def test_greedy_takes_what_the_target_would_have_said():
    logits = torch.nn.functional.one_hot(torch.tensor([[3, 1, 4, 2], [0, 0, 0, 0]]), 5).float()
    found = judge(torch.tensor([[3, 1, 0], [1, 0, 0]]), logits)
    assert found.accepted.tolist() == [2, 0]
    assert found.following.tolist() == [[4], [0]]


def test_after_a_refusal_the_next_token_is_one_that_the_draft_says_too_seldom():
    target = torch.tensor([[[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]]).log().repeat(1000, 1, 1)
    proposed = torch.tensor([[[0.2, 0.2, 0.6]]]).double().repeat(1000, 1, 1)
    uniforms = torch.rand(1000, 2, generator=torch.Generator().manual_seed(0)).double()
    drafted = torch.full((1000, 1), 2)
    found = judge(drafted, target, proposed=proposed, uniforms=uniforms, temperature=1.0)
    assert found.accepted.float().mean() == pytest.approx(0.1 / 0.6, abs=0.03)
    refused = found.accepted == 0
    assert set(found.following[refused].ravel().tolist()) == {0}  # p - q is above 0 there alone
    assert (found.following[~refused] == 2).float().mean() > 0.6


def test_the_theory_is_the_mean_of_a_simulation():
    rng = np.random.default_rng(0)
    for rate, k in ((0.8, 4), (0.3, 2), (0.95, 8)):
        runs = (rng.random((40000, k)) < rate).cumprod(axis=1).sum(axis=1) + 1
        assert float(tokens_per_call(rate, k)) == pytest.approx(runs.mean(), rel=0.02)
    assert float(tokens_per_call(0.0, 5)) == 1 and float(tokens_per_call(1.0, 5)) == 6
    assert float(theory_speed_up(3.0, 4, 0.25, verify=1.0)) == pytest.approx(1.5)
    assert float(theory_speed_up(3.0, 4, 0.25, verify=2.0)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tokens_per_call(1.1, 2), "rate must be from 0 to 1, got 1.1"),
        (lambda: tokens_per_call("0.5", 2), "rate must be numbers"),
        (lambda: theory_speed_up(2.0, -1, 0.5), "draft_length must be at least 0, got -1"),
        (lambda: theory_speed_up(2.0, 2, None), "cost must be numbers, got None"),
    ],
)
def test_theory_takes_numbers_in_their_range(call, message):
    with pytest.raises(ValueError, match=message):
        call()
