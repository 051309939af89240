"""Attention matrices compared layer by layer, never more than one layer's in memory.

A model that attends by ``scaled_dot_product_attention`` makes no matrix, and asked for it gives none, without
an error. So queries and keys are taken where every attention layer hands them on, after rotary embeddings and
norms, and the matrices are computed from them: the student's and the teacher's of one layer, their squared
difference and its gradient with respect to query and key, at once. What stays for the backward pass grows
with the number of tokens, not with its square.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from workbench.models.hooks import at_the_end, attribute_kept, inference
from workbench.models.layers import decoder_forward, decoder_layers, unwrap
from workbench.models.probes import input_device

#: under which name transformers finds the function that takes queries and keys
NAME = "workbench-watched"
#: numbers of matrices that are computed together at most
TOGETHER = 2**25
_PROBE = 9


class Seen(NamedTuple):
    """What one attention layer computes its matrix from.

    Attributes:
        query: ``[row, head, token, width]``.
        key: ``[row, group, token, width]``; each group serves several heads.
        scale: what their products are multiplied by.
        cap: scores become ``cap * tanh(score / cap)``; None for never.
        mask: ``[row or 1, head or 1, token, token]``, True (or 0) where one sees another; None for causal.
    """

    query: Tensor
    key: Tensor
    scale: float
    cap: float | None
    mask: Tensor | None

    def rows(self, first: int, last: int, length: int) -> Seen:
        """Return some rows, the first so many tokens of each."""
        mask = self.mask
        if mask is not None:
            mask = (mask if len(mask) == 1 else mask[first:last])[..., :length, :length]
        query, key = (states[first:last, :, :length] for states in (self.query, self.key))
        return self._replace(query=query, key=key, mask=mask)


#: called with an attention module, its place in the model, what it saw, its values and its output
See = Callable[[int, Seen, Tensor, Tensor], Any]


class _Watch:
    """Who is told of attention layers now (of one model at a time)."""

    see: See | None = None
    places: dict[int, int] = {}  # noqa: RUF012 - replaced, never changed
    own = "sdpa"


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _watched(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
    """Attend as the model does, and tell of it; a compiled layer is left and entered again for it."""
    own = sys.modules[type(module).__module__]
    attend: Any = (
        own.eager_attention_forward if _Watch.own == "eager" else ALL_ATTENTION_FUNCTIONS[_Watch.own]
    )
    output = attend(module, query, key, value, mask, **options)
    if _Watch.see is not None and id(module) in _Watch.places:
        scale = options.get("scaling")
        scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
        seen = Seen(query, key, scale, options.get("softcap"), mask if isinstance(mask, Tensor) else None)
        _Watch.see(_Watch.places[id(module)], seen, value, output[0])
    return output


@contextmanager
def attention_watched(model: nn.Module) -> Iterator[None]:
    """Let every attention layer of the model go by a function that ``told`` can listen to."""
    stack = decoder_forward(model)
    configs = {id(m.config): m.config for m in stack.modules() if hasattr(m, "config")}.values()
    _Watch.own = "eager" if stack.config._attn_implementation == "eager" else "sdpa"
    ALL_ATTENTION_FUNCTIONS.register(NAME, _watched)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS[_Watch.own])
    held = attribute_kept(configs, "_attn_implementation_internal")
    with at_the_end(lambda: setattr(_Watch, "see", None)), held:
        for config in configs:
            config._attn_implementation_internal = NAME
        yield


@contextmanager
def told(model: nn.Module, see: See | None, after: See | None = None) -> Iterator[None]:
    """Call ``see(layer, what it saw, values, output)`` for each attention layer that runs, by its place.

    ``after`` is called in its place from then on: layers run again for the backward pass (checkpointing).
    """
    layers = enumerate(decoder_layers(model))
    _Watch.places = {id(part): place for place, layer in layers for part in layer.modules()}
    _Watch.see = see
    try:
        yield
    finally:
        _Watch.see = after


def check_attention(model: nn.Module) -> None:
    """Look whether the matrices can be had: on a few tokens, times the values they must be what comes out.

    Raises:
        ValueError: where a layer has none (no attention, or one that is computed in another way).
    """
    wrong = f"{type(unwrap(model)).__name__} hands over no attention matrix in layer"
    away: dict[int, bool] = {}

    def see(place: int, seen: Seen, value: Tensor, output: Tensor) -> None:
        ours = (probabilities(seen) @ _heads(value.float(), seen.query)).transpose(1, 2)
        ours, theirs = ours.reshape(-1), output.float().reshape(-1)
        gap = 1e-4 if value.dtype == torch.float32 else 0.05
        same = ours.shape == theirs.shape and (ours - theirs).abs().max() <= gap * theirs.abs().max()
        away[place] = bool(same)
        if not theirs.isfinite().all():
            raise ValueError(f"layer {place} must give finite numbers, it gives others: look at its weights")

    ids = (torch.arange(_PROBE, device=input_device(model)) * 7 + 3)[None]
    ids = ids % unwrap(model).config.get_text_config(decoder=True).vocab_size
    with inference(model), attention_watched(model), told(model, see):
        decoder_forward(model)(input_ids=ids, use_cache=False)
    if missing := [place for place in range(len(decoder_layers(model))) if not away.get(place)]:
        raise ValueError(f"loss: {wrong} {missing[0]}; leave it out, loss={{'hidden': 1, 'logits': 1}}")


def probabilities(seen: Seen) -> Tensor:
    """Return the attention matrices ``[row, head, token, token]`` in float32; each row of them sums to 1."""
    return torch.softmax(_scores(seen), dim=-1)


def attention_error(student: Seen, teacher: Seen, lengths: list[int], work: Any = None) -> Tensor:
    """Return the mean squared difference of the matrices of one layer, times the tokens, summed over rows.

    The mean of a row is over its heads and over the pairs of real tokens of which one can see the other:
    padding, and the zeros above the diagonal or outside of a window, do not make it small.

    Args:
        student: gradients reach its query and key.
        teacher: of the same texts; none reach it.
        lengths: real tokens of each row, which come first.
        work: ``error_and_gradients``, maybe compiled.
    """
    error: Callable[..., Tensor] = _AttentionError.apply
    return error(student.query, student.key, student, teacher, lengths, work or error_and_gradients)


class _AttentionError(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, student: Seen, teacher: Seen, lengths: list[int], work: Any
    ) -> Tensor:
        by_query, by_key = torch.zeros_like(query), torch.zeros_like(key)
        student = student._replace(query=query.detach(), key=key.detach())
        total = torch.zeros((), dtype=torch.float32, device=query.device)
        for first, last, length in _alike(lengths, query.shape[1]):
            pair = (one.rows(first, last, length) for one in (student, teacher))
            part, of_query, of_key = work(*pair)
            total += part
            by_query[first:last, :, :length] = of_query
            by_key[first:last, :, :length] = of_key
        ctx.save_for_backward(by_query, by_key)
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Any, ...]:
        by_query, by_key = ctx.saved_tensors
        return by_query * scale, by_key * scale, None, None, None, None


def error_and_gradients(student: Seen, teacher: Seen) -> tuple[Tensor, Tensor, Tensor]:
    """Return the error of rows without padding, and its gradients with respect to query and key."""
    scores = _scores(student)
    ours = torch.softmax(scores, dim=-1)
    difference = ours - probabilities(teacher)
    rows, heads, length, _ = ours.shape
    pairs = _pairs(scores, student.mask)
    weight = length / (heads * pairs)
    gradient = 2 * weight * difference
    gradient = ours * (gradient - (gradient * ours).sum(-1, keepdim=True))
    if student.cap is not None:
        gradient = gradient * (1 - (scores.nan_to_num(neginf=0.0) / student.cap).square())
    gradient = (gradient * student.scale).to(student.query.dtype)
    of_query = gradient @ _heads(student.key, student.query)
    of_key = gradient.transpose(2, 3) @ student.query
    groups = student.key.shape[1]
    of_key = of_key.view(rows, groups, heads // groups, length, -1).sum(2)
    return (weight * difference.square()).sum(), of_query, of_key


def _scores(seen: Seen) -> Tensor:
    """Return what the softmax is taken of, -inf (or nearly) where a token does not see another."""
    scores = (seen.query @ _heads(seen.key, seen.query).transpose(2, 3)).float() * seen.scale
    if seen.cap is not None:
        scores = seen.cap * torch.tanh(scores / seen.cap)
    if seen.mask is not None and seen.mask.dtype != torch.bool:
        scores = scores + seen.mask
        return scores.masked_fill(seen.mask < -1e4, -torch.inf)
    return scores.masked_fill(~_allowed(scores, seen.mask), -torch.inf)


def _allowed(scores: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    return mask if mask.dtype == torch.bool else mask >= -1e4


def _pairs(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Return how many pairs of tokens there are in each row ``[row or 1, 1, 1, 1]``."""
    allowed = _allowed(scores, mask)
    return allowed[(None,) * (4 - allowed.ndim)][:, :1].sum(dim=(1, 2, 3), keepdim=True)


def _heads(states: Tensor, query: Tensor) -> Tensor:
    """Return keys or values for every head of the queries."""
    return states.repeat_interleave(query.shape[1] // states.shape[1], dim=1)


def _alike(lengths: list[int], heads: int) -> Iterator[tuple[int, int, int]]:
    """Yield runs of rows of one length whose matrices are computed together: first, last, length."""
    first = 0
    while first < len(lengths):
        length, last = lengths[first], first + 1
        room = TOGETHER // max(1, heads * length**2)
        while last < len(lengths) and lengths[last] == length and last - first < room:
            last += 1
        if length:
            yield first, last, length
        first = last
