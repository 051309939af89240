"""Where the decoder layers of a transformers model are, and which layers of the original they are.

Works on a transformers model, with or without a PEFT adapter around it, and on the text part of a
multimodal model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from workbench.checks import is_whole


def unwrap(model: nn.Module) -> Any:
    """Return the transformers model inside torch.compile, data-parallel and PEFT wrappers."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod  # type: ignore[assignment]
        elif isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif hasattr(model, "get_base_model"):
            model = model.get_base_model()  # type: ignore[operator]
        else:
            return model


def layer_container(model: nn.Module) -> tuple[Any, str]:
    """Return the module that runs the decoder layers, and the name under which it holds them.

    Raises:
        ValueError: when no list of modules is as long as the configuration says, or several are.
    """
    base = unwrap(model)
    if not hasattr(getattr(base, "config", None), "get_text_config"):
        raise ValueError(f"model must be a transformers model, got {type(base).__name__}")
    depth = base.config.get_text_config(decoder=True).num_hidden_layers
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else base
    found = _lists_of(decoder, depth) or [pair for part in base.modules() for pair in _lists_of(part, depth)]
    if len(found) != 1:
        got = f"{type(base).__name__} has {len(found)}"
        raise ValueError(f"model must be a decoder with one list of {depth} layers, as configured; {got}")
    return found[0]


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the decoder layers that the model runs now, first to last."""
    stack, name = layer_container(model)
    layers: nn.ModuleList = getattr(stack, name)
    return layers


def number_of_layers(model: nn.Module) -> int:
    """Return how many decoder layers the model runs now."""
    return len(decoder_layers(model))


def decoder_forward(model: nn.Module) -> Any:
    """Return the inner module that runs embedding and layers without the head, for passes without logits.

    It takes `input_ids`, `attention_mask` and the like; its `last_hidden_state` is **after** the final norm,
    so read raw states with hooks on `decoder_layers`.
    """
    return layer_container(model)[0]


def kept_layers(model: nn.Module) -> tuple[int, ...]:
    """Return the original indices of the layers now in the model, in order; 0..L-1 when it is whole.

    Original means: in the model that was first pruned, also after saving, reloading and pruning again.

    Raises:
        ValueError: for a model without one list of decoder layers, or a configuration whose ``kept_layers``
            are not those of the layers that are there.
    """
    stack, name = layer_container(model)
    kept = getattr(stack.config, "kept_layers", None)
    depth = len(getattr(stack, name))
    if kept is None:
        return tuple(range(depth))
    whole = isinstance(kept, list | tuple) and all(map(is_whole, kept))
    if not whole or len(kept) != depth or list(kept) != sorted({*kept}) or kept[0] < 0:
        raise ValueError(f"kept_layers must be {depth} rising numbers in the configuration, got {kept!r:.80}")
    original = getattr(stack.config, "original_num_hidden_layers", kept[-1] + 1)
    if not is_whole(original) or original <= kept[-1]:
        raise ValueError(f"original_num_hidden_layers must be above {kept[-1]}, got {original!r:.60}")
    return tuple(kept)


def on_one_device(model: nn.Module) -> bool:
    """Return whether all weights lie on one device, none offloaded by accelerate."""
    one = len({parameter.device for parameter in model.parameters()}) == 1
    return one and not any(hasattr(module, "_hf_hook") for module in model.modules())


def check_in_memory(model: nn.Module) -> None:
    """Refuse a model whose weights wait on the disk or in main memory: they can be read, not changed."""
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("model must have its weights in memory, some are on the meta device (offloaded)")


def _lists_of(module: nn.Module, depth: int) -> list[tuple[nn.Module, str]]:
    named = module.named_children()
    return [(module, name) for name, one in named if isinstance(one, nn.ModuleList) and len(one) == depth]


def longest_context(config: Any) -> int | None:
    """Return how many tokens a configuration has positions for, None for no limit (XLNet says -1)."""
    longest = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None) or 0
    return int(longest) if longest > 0 else None


def of_its_positions(config: Any) -> str:
    """Say why a model's positions are a limit though its rope stretches them: dynamic NTK, else nothing."""
    rope = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    if rope.get("rope_type") != "dynamic":
        return ""
    return "; beyond them its dynamic NTK rope places every token by the longest text read with it"


def types_of_torch_(config: Any) -> None:
    """Set the dtypes that a configuration names in words, as after a `save_pretrained`, to torch's.

    Some architectures (Apertus) hand theirs on to torch as it is when they are built.
    """
    for part in (config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", ()))):
        if isinstance(getattr(part, "dtype", None), str):
            part.dtype = getattr(torch, part.dtype)
