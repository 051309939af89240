"""What turns prompts into new tokens, ``generate`` or our static cache, and batches that fit into memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import LogitsProcessorList

from workbench.generation.decoder import StaticDecoder, Tell, quiet, why_not_static
from workbench.generation.sampling import sampled
from workbench.models.hooks import compiling_pays, not_finite

#: what runs the model: the fastest that is exact for it; our static cache; ``generate``
ENGINES = ("auto", "static", "transformers")
#: tokens, read and written, from which "auto" checks whether a static cache will do
WORTH_PREPARING = 4096
#: tokens of new responses for a batch of prompts: (prompts, uniforms) -> one list a prompt
Decode = Callable[[list[Sequence[int]], "torch.Tensor | None"], list[list[int]]]


@contextmanager
def decoder_of(
    engine: str, model: Any, temperature: float, *, longest: int, new: int, total: int, tell: Tell = quiet
) -> Iterator[Decode]:
    """Give what turns prompts into new tokens, by the engine that was asked for.

    Args:
        engine: one of ``ENGINES``.
        model: a causal language model.
        temperature: 0 for greedy.
        longest: tokens of the longest prompt.
        new: tokens of the longest response.
        total: tokens of all prompts and responses at most.
        tell: called now and then with the tokens that a batch has by then.
    """
    plain = engine == "transformers" or (engine == "auto" and total < WORTH_PREPARING)
    reason = "" if plain else why_not_static(model, longest + new)
    if engine == "static" and reason:
        raise ValueError(f"engine='static' cannot run this model: {reason}; take 'transformers' or 'auto'")
    if reason is not None:
        yield lambda rows, uniforms: _generate(model, rows, temperature, uniforms, tell)
        return
    marks = {"ends": model.generation_config.eos_token_id or [], "pad": model.generation_config.pad_token_id}
    how: dict[str, Any] = {"temperature": temperature, "compiled": compiling_pays(model, total), "tell": tell}
    decoder = StaticDecoder(model, **marks, **how)
    with decoder.ready():
        yield lambda rows, uniforms: decoder(rows, new, uniforms)


def by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Return the indices in batches, the longest first: memory peaks at once, and little is padding.

    >>> by_length([3, 9, 5, 9], 3)
    [[1, 3, 2], [0]]
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def in_halves(decode: Decode, rows: list[Sequence[int]], uniforms: torch.Tensor | None) -> list[list[int]]:
    """Decode a batch, in halves where memory does not suffice for all of it."""
    try:
        return decode(rows, uniforms)
    except torch.OutOfMemoryError:
        if len(rows) == 1:
            raise
    half = -(-len(rows) // 2)
    warnings.warn(f"{len(rows)} prompts at once do not fit into memory; going on with {half}", stacklevel=2)
    torch.cuda.empty_cache()
    shares = (None, None) if uniforms is None else uniforms.split(half)
    return in_halves(decode, rows[:half], shares[0]) + in_halves(decode, rows[half:], shares[1])


@torch.no_grad()
def _generate(
    model: Any, rows: list[Sequence[int]], temperature: float, uniforms: torch.Tensor | None, tell: Tell
) -> list[list[int]]:
    """Return the new tokens of one batch of prompts by the model's own ``generate``."""
    length = max(map(len, rows))
    pad = model.generation_config.pad_token_id
    inputs = torch.tensor([[pad] * (length - len(row)) + list(row) for row in rows], device=model.device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=model.device)

    sound = torch.ones((), dtype=torch.bool, device=model.device)

    def watched(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Note whether logits are finite: an argmax would take the first that is no number."""
        tell(input_ids.shape[1] - length)
        sound.logical_and_(scores.amax(dim=-1).isfinite().all().to(sound.device))
        return scores

    def only_chosen(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Leave only the token that each row's own uniform number chooses."""
        assert uniforms is not None
        step = input_ids.shape[1] - length
        chosen = sampled(scores, uniforms[:, step : step + 1], temperature)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)

    processors = LogitsProcessorList([watched] if uniforms is None else [watched, only_chosen])
    output = model.generate(input_ids=inputs, attention_mask=mask, logits_processor=processors)
    if not sound:
        raise not_finite(model)
    new: list[list[int]] = output[:, length:].tolist()
    return new
