"""Attention of one new token over a cache of fixed size: a Triton kernel that reads only what counts.

``scaled_dot_product_attention`` with a mask reads the whole cache and takes 120 us a layer where this takes
70 (H200, 256 rows, 32 heads on 8, 256 slots of 128). Query heads that share a key head are one tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

#: sizes of a head that the kernel takes
HEAD_SIZES = (16, 32, 64, 128, 256)
BLOCK = 64


@triton.jit
def _kernel(
    query, keys, values, out, bounds, scale,
    q_row, q_head, k_row, k_head, k_slot, v_row, v_head, v_slot, o_row, o_head,
    GROUP: tl.constexpr, TILE: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row and key head: softmax over its slots in blocks, with a running maximum."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    heads = tl.arange(0, TILE)
    dims = tl.arange(0, SIZE)
    first = tl.load(bounds + 2 * row)
    end = tl.load(bounds + 2 * row + 1) + 1
    real = heads[:, None] < GROUP
    places = (head * GROUP + heads)[:, None]
    q = tl.load(query + row * q_row + places * q_head + dims[None, :], mask=real, other=0.0)
    most = tl.full([TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    mixed = tl.zeros([TILE, SIZE], tl.float32)
    for start in range((first // BLOCK) * BLOCK, end, BLOCK):
        slots = start + tl.arange(0, BLOCK)
        seen = (slots >= first) & (slots < end)
        at_keys = keys + row * k_row + head * k_head + slots[:, None] * k_slot + dims[None, :]
        k = tl.load(at_keys, mask=seen[:, None], other=0.0)
        scores = tl.where(seen[None, :], tl.dot(q, tl.trans(k)) * scale, float("-inf"))
        higher = tl.maximum(most, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        shrink = tl.exp(most - higher)
        total = total * shrink + tl.sum(weights, 1)
        at_values = values + row * v_row + head * v_head + slots[:, None] * v_slot + dims[None, :]
        v = tl.load(at_values, mask=seen[:, None], other=0.0)
        mixed = mixed * shrink[:, None] + tl.dot(weights.to(v.dtype), v)
        most = higher
    result = (mixed / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + row * o_row + places * o_head + dims[None, :], result, mask=real)


@torch.library.custom_op("workbench::decode_attention", mutates_args=())
def decode_attention(query: Tensor, keys: Tensor, values: Tensor, bounds: Tensor, scale: float) -> Tensor:
    """Return the attention of one token a row over its part of the cache.

    Args:
        query: ``[row, head, 1, size]``, size one of ``HEAD_SIZES``, bfloat16 or float16 on CUDA.
        keys: ``[row, key head, slot, size]``; heads are a multiple of key heads.
        values: as keys.
        bounds: ``[row, 2]`` int32, contiguous: the first and the last slot that the row sees, the last not
            before the first.
        scale: of the scores.

    Returns:
        ``[row, 1, head, size]``.
    """
    rows, heads, _, size = query.shape
    shared = keys.shape[1]
    group = heads // shared
    out = query.new_empty(rows, 1, heads, size)
    _kernel[(rows, shared)](
        query, keys, values, out, bounds, scale,
        query.stride(0), query.stride(1), *keys.stride()[:3], *values.stride()[:3],
        out.stride(0), out.stride(2),
        GROUP=group, TILE=max(16, triton.next_power_of_2(group)), SIZE=size, BLOCK=BLOCK,
        num_warps=4, num_stages=3,
    )  # fmt: skip
    return out


@decode_attention.register_fake
def _(query: Tensor, keys: Tensor, values: Tensor, bounds: Tensor, scale: float) -> Tensor:
    return query.new_empty(query.shape[0], 1, query.shape[1], query.shape[3])
