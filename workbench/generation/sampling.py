"""The next token of each row, from its logits and one uniform number: the same for every way to decode."""

from __future__ import annotations

import torch
from torch import Tensor


def sampled(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Return the token of each row that its uniform number chooses.

    Args:
        logits: ``[row, vocabulary]``.
        uniform: ``[row, 1]`` in [0, 1).
        temperature: above 0.

    >>> sampled(torch.zeros(2, 4), torch.tensor([[0.1], [0.9]]), temperature=1.0).tolist()
    [[0], [3]]
    """
    return drawn(torch.softmax(logits.double() / temperature, dim=-1), uniform)


def drawn(weights: Tensor, uniform: Tensor) -> Tensor:
    """Return the token of each row that its uniform number chooses, with probability by weight.

    Args:
        weights: ``[row, vocabulary]``, not negative, float64.
        uniform: ``[row, 1]`` in [0, 1).

    >>> drawn(torch.tensor([[1.0, 0.0, 3.0]]).double(), torch.tensor([[0.5]])).tolist()
    [[2]]
    """
    below = weights.cumsum(dim=-1)
    target = uniform.to(below.device) * below[:, -1:]
    return (below <= target).sum(dim=-1, keepdim=True).clamp(max=weights.shape[-1] - 1)
