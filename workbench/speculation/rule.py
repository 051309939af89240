"""Which drafted tokens the target accepts, and what that is worth: speculative sampling and its theory.

Leviathan et al. (2023), *Fast Inference from Transformers via Speculative Decoding*: the output is the
target's own, greedy token for token, sampled in distribution.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.generation.sampling import drawn


class Verdict(NamedTuple):
    """What the target makes of a round of drafted tokens.

    Attributes:
        accepted: ``[row]`` how many of the drafted tokens are taken, from the first on.
        following: ``[row, 1]`` the target's own token after them.
    """

    accepted: Tensor
    following: Tensor


def judge(
    drafted: Tensor,
    logits: Tensor,
    *,
    proposed: Tensor | None = None,
    uniforms: Tensor | None = None,
    temperature: float = 0.0,
    forced: float | None = None,
) -> Verdict:
    """Say how many drafted tokens are accepted, and what the target says next.

    Greedy: a token is accepted when it is the target's own choice. With a temperature it is accepted with
    probability min(1, p/q), and after the first refused one the next is drawn from max(p - q, 0), normalised.

    Args:
        drafted: ``[row, k]`` tokens.
        logits: the target's, ``[row, k + 1, vocabulary]``: at the last known token and at each drafted one.
        proposed: with a temperature the draft's probabilities, ``[row, k, vocabulary]``.
        uniforms: ``[row, k + 1]`` in [0, 1): one for each drafted token, and one for the next token.
        temperature: 0 for greedy.
        forced: accept each token with this probability, whatever it is: to measure the mechanics.
    """
    rows, k = drafted.shape
    if temperature:
        assert uniforms is not None
        target = torch.softmax(logits.double() / temperature, dim=-1)
        left = target
        if k:
            assert proposed is not None
            of_target = target[:, :-1].gather(2, drafted[..., None])[..., 0]
            of_draft = proposed.gather(2, drafted[..., None])[..., 0]
            fine = uniforms[:, :k] * of_draft < of_target
            left = torch.cat([(target[:, :-1] - proposed).clamp(min=0), target[:, -1:]], dim=1)
    else:
        chosen = logits.argmax(dim=-1)
        fine = drafted == chosen[:, :k]
    if forced is not None and k:
        assert uniforms is not None
        fine = uniforms[:, :k] < forced
    zero = torch.zeros(rows, dtype=torch.long, device=logits.device)
    accepted = fine.long().cumprod(dim=1).sum(dim=1) if k else zero
    place = accepted[:, None]
    if not temperature:
        return Verdict(accepted, chosen.gather(1, place))
    assert uniforms is not None
    weights = left.gather(1, place[..., None].expand(rows, 1, left.shape[-1]))[:, 0]
    return Verdict(accepted, drawn(weights, uniforms[:, -1:]))


def tokens_per_call(rate: Any, draft_length: Any) -> Any:
    """Return the expected new tokens of one target call, each drafted token being accepted at a rate.

    (1 - a^(k + 1)) / (1 - a), between 1 and k + 1 (Leviathan et al., equation 1).

    Args:
        rate: acceptance rate a in [0, 1].
        draft_length: drafted tokens k.

    Raises:
        ValueError: for a rate outside of [0, 1], a length below 0.

    >>> float(tokens_per_call(0.8, 4).round(3)), float(tokens_per_call(1.0, 4))
    (3.362, 5.0)
    """
    rate, k = _numbers(rate, "rate", 1), _numbers(draft_length, "draft_length")
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (1 - rate ** (k + 1)) / (1 - rate)
    return np.where(rate >= 1, k + 1.0, found)


def theory_speed_up(tokens: Any, draft_length: Any, cost: Any, verify: Any = 1.0) -> Any:
    """Return the speed-up over plain decoding for so many new tokens a target call.

    tokens / (k c + v): k draft steps at c target steps each, and one call that reads k + 1 tokens at v
    (Leviathan et al., theorem 3.8, with v = 1 there).

    Args:
        tokens: new tokens of a target call, by measurement or ``tokens_per_call``.
        draft_length: drafted tokens k.
        cost: of a draft step, in steps of the target.
        verify: cost of the call that reads k + 1 tokens, in steps of the target.

    Raises:
        ValueError: for a number below 0.

    >>> float(theory_speed_up(tokens_per_call(0.8, 4), 4, 0.25).round(2))
    1.68
    """
    k, each = _numbers(draft_length, "draft_length"), _numbers(cost, "cost")
    return _numbers(tokens, "tokens") / (k * each + _numbers(verify, "verify"))


def _numbers(value: Any, name: str, most: float = np.inf) -> Any:
    """Return numbers as an array; NaN stays NaN, as a frame has it where nothing was drafted.

    Raises:
        ValueError: for what is no number, or out of range.
    """
    found = np.asarray(value)
    if found.dtype.kind not in "fiu":
        raise ValueError(f"{name} must be numbers, got {value!r:.80}")
    if (wrong := (found < 0) | (found > most)).any():
        allowed = "at least 0" if most == np.inf else f"from 0 to {most}"
        raise ValueError(f"{name} must be {allowed}, got {found[wrong].flat[0]}")
    return found.astype(float)
