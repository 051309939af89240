"""LoRA layers, norms and rotations in fewer kernels, for models whose time is the start of kernels.

The same numbers to rounding: a LoRA layer is one function with its own gradient, three products on the way
and five back; a root mean square norm is torch's own kernel; a rotation takes three kernels instead of five.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm

from workbench.models.hooks import replaced_forwards
from workbench.models.layers import decoder_layers

#: what transformers' files of models call the function that rotates queries and keys
_ROTATE = "apply_rotary_pos_emb"


@contextmanager
def fused_layers(model: nn.Module) -> Iterator[None]:
    """Run the model's LoRA layers, norms and rotations in fewer kernels, until leaving.

    What computes anything else (DoRA, dropout, quantized weights, another norm or rotation) runs as it is.

    Args:
        model: a peft model that is trained, its norms frozen.
    """
    modules = [*model.modules()]
    with torch.no_grad():
        norms = [module for module in modules if _is_rms_norm(module)]
        files = {
            sys.modules[type(one).__module__] for layer in decoder_layers(model) for one in layer.modules()
        }
        rotating = [file for file in files if _rotates(getattr(file, _ROTATE, None))]
    with ExitStack() as stack:
        stack.enter_context(replaced_forwards(filter(_is_plain_lora, modules), _lora_forward))
        stack.enter_context(replaced_forwards(norms, _norm_forward))
        for file in rotating:
            stack.enter_context(patch.object(file, _ROTATE, _rotation(getattr(file, _ROTATE))))
        yield


def _is_plain_lora(module: nn.Module) -> bool:
    """Say whether a module is a linear layer with one adapter that adds a scaled B A x and nothing else."""
    if not isinstance(module, LoraLinear) or type(module.base_layer) is not nn.Linear:
        return False
    names = list(module.active_adapters)
    plain = len(names) == 1 and not (module.merged or module.disable_adapters or module.lora_variant)
    plain = plain and not any(module.lora_bias.values())
    return plain and isinstance(module.lora_dropout[names[0]], nn.Identity)


def _lora_forward(module: Any) -> Callable[..., Tensor]:
    (name,), own, base = module.active_adapters, module.forward, module.base_layer
    down, up, scale = module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]
    low_rank: Callable[..., Tensor] = _LowRank.apply

    def forward(x: Tensor, *args: Any, **settings: Any) -> Tensor:
        kind = x.device.type
        mixed = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        if args or settings or not x.dtype == base.weight.dtype == mixed:
            result: Tensor = own(x, *args, **settings)
            return result
        with torch.autocast(kind, enabled=False):
            return low_rank(x, base.weight, base.bias, down, up, scale)

    return forward


class _LowRank(torch.autograd.Function):
    """W x + b + scale B A x, with the gradients of x, A and B; A and B are rounded to the type of x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        flat, down, up = x.flatten(0, -2), down.to(x.dtype), up.to(x.dtype)
        inner = _scaled(flat, down.t(), scale)
        ctx.save_for_backward(flat, weight, down, up, inner)
        ctx.scale, ctx.shape = scale, x.shape
        out: Tensor = linear(flat, weight, bias).addmm_(inner, up.t()).unflatten(0, x.shape[:-1])
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, Tensor, Tensor, None]:
        flat, weight, down, up, inner = ctx.saved_tensors
        gradient = gradient.flatten(0, -2)
        back = _scaled(gradient, up, ctx.scale)
        of_input = (gradient @ weight).addmm_(back, down).view(ctx.shape)
        return of_input, None, None, back.t() @ flat, gradient.t() @ inner, None


def _scaled(one: Tensor, other: Tensor, scale: float) -> Tensor:
    """Return scale times a product, in one kernel."""
    return torch.addmm(one.new_empty(()), one, other, beta=0, alpha=scale)


def _is_rms_norm(module: nn.Module) -> bool:
    """Say whether a module does to a few random states what torch's norm does, to rounding."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or not type(module).__name__.endswith("RMSNorm"):
        return False
    if weight.requires_grad:
        return False
    states = _random(4, *weight.shape).to(weight)
    try:
        return _same([module(states)], [_norm_forward(module)(states)])
    except Exception:  # of whatever a norm of that name takes
        return False


def _norm_forward(module: Any) -> Callable[[Tensor], Any]:
    weight, epsilon = module.weight, getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return lambda states: rms_norm(states, weight.shape, weight, epsilon)


def _rotates(own: Any) -> bool:
    """Say whether a function turns the halves of random queries and keys as most models do."""
    queries, keys, cos, sin = _random(1, 3, 5, 8), _random(1, 2, 5, 8), _random(1, 5, 8), _random(2, 5, 8)[:1]
    try:
        return _same(own(queries, keys, cos, sin), _rotation(own)(queries, keys, cos, sin))
    except Exception:  # of whatever else has that name
        return False


def _rotation(own: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    turned: Callable[..., Tensor] = _Turned.apply

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **settings: Any) -> Any:
        alike = q.dtype == k.dtype == cos.dtype == sin.dtype and q.shape[-1] == cos.shape[-1]
        if args or settings or not alike:
            return own(q, k, cos, sin, *args, **settings)
        turn = (cos[:, None], sin[:, None])
        return turned(q, *turn), turned(k, *turn)

    return rotate


class _Turned(torch.autograd.Function):
    """x cos + (-second half of x, first half of x) sin."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        (one, other), (sin_one, sin_other), turned = x.chunk(2, -1), sin.chunk(2, -1), x * cos
        first, second = turned.chunk(2, -1)
        first.addcmul_(other, sin_one, value=-1)
        second.addcmul_(one, sin_other)
        return turned

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        (one, other), (sin_one, sin_other), turned = gradient.chunk(2, -1), sin.chunk(2, -1), gradient * cos
        first, second = turned.chunk(2, -1)
        first.addcmul_(other, sin_other)
        second.addcmul_(one, sin_one, value=-1)
        return turned, None, None


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _same(wanted: Any, found: Any) -> bool:
    """Say whether results are equal to the rounding of their type."""
    near = 2 * torch.finfo(wanted[0].dtype).eps
    pairs = zip(wanted, found, strict=True)
    return all(bool((a - b).float().norm() <= near * a.float().norm()) for a, b in pairs)
