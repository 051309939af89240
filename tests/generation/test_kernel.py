"""The Triton kernel is attention (on a GPU only)."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("size", [16, 64, 128])
def test_the_kernel_is_attention(size):
    from workbench.generation.kernel import decode_attention

    numbers = torch.Generator("cuda").manual_seed(0)
    query = torch.randn(3, 6, 1, size, generator=numbers, device="cuda").bfloat16()
    keys, values = torch.randn(2, 3, 2, 150, size, generator=numbers, device="cuda").bfloat16()
    bounds = torch.tensor([[0, 149], [70, 70], [63, 129]], dtype=torch.int32, device="cuda")
    got = decode_attention(query, keys, values, bounds, size**-0.5).float()
    for row, (first, last) in enumerate(bounds.tolist()):
        k, v = (part[row, :, first : last + 1].repeat_interleave(3, 0).float() for part in (keys, values))
        weights = torch.softmax(query[row].float() @ k.transpose(1, 2) * size**-0.5, dim=-1)
        assert torch.allclose(got[row, 0], (weights @ v)[:, 0], atol=2e-2)
