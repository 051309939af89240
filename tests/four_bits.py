"""A tiny model of 4-bit weights, and the full-precision model of the same rounded weights."""

from __future__ import annotations

import pytest
from tiny import tiny_model, tiny_tokenizer

from workbench.models.loading import load_model


def load_quantized(folder):
    """Return a model of 4-bit weights and its tokenizer, by way of a folder."""
    pytest.importorskip("bitsandbytes", reason="4-bit weights need bitsandbytes")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return load_model(folder, quantization="nf4", device="cpu")


def unpacked(quantized):
    """Return the full-precision model of the same rounded weights."""
    import bitsandbytes

    twin = tiny_model("llama")
    for name, module in quantized.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            twin.get_submodule(name).weight.data = weight.float()
    return twin
