"""Parameters and FLOPs of a model and of every block of its layers, from the configuration alone.

The architecture is built without memory (on torch's meta device), so the counts are those of the real model
whatever its architecture; nothing is loaded or downloaded.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from workbench.checks import whole_number
from workbench.models.checkpoints import auto_class
from workbench.models.layers import decoder_layers, layer_container, unwrap

DEFAULT_CONTEXT = 4096


def parameter_counts(model_or_config: Any) -> dict[str, Any]:
    """Count the parameters of a model or of a transformers configuration; tied weights count once.

    An adapter does not count, and a quantized model counts as the full-precision model that it stands for.

    Returns:
        `total`, `layers` (a list, one number for each decoder layer) and `outside` (embedding, norms, head,
        and the vision part of a multimodal model): total = sum(layers) + outside.
    """
    skeleton, layers = _skeleton(model_or_config)
    counts = [sum(parameter.numel() for parameter in layer.parameters()) for layer in layers]
    total = sum(parameter.numel() for parameter in skeleton.parameters())
    return {"total": total, "layers": counts, "outside": total - sum(counts)}


def flop_counts(model_or_config: Any, *, context: int | None = None) -> dict[str, Any]:
    """Count the floating-point operations of one forward pass for one token.

    A multiplication and an addition count as two. Counted are all matrix products: 2 x the weights that one
    token meets (of a mixture of experts those it is routed to), the head included, and in each attention
    layer the products of the query with the keys and of the attention with the values, 2 x heads x (query
    size + value size) x attended tokens. Norms, activations, softmax, position codes and embedding look-ups
    are left out, as usual: they are below one per cent. So is the recurrent state of a linear-attention or
    state-space layer, and a vision part.

    Args:
        model_or_config: a model or a transformers configuration.
        context: tokens that the counted token attends to, itself included, >= 1; a sliding-window layer
            attends to at most its window. None for 4096, or the longest context of the model when that is
            shorter.

    Returns:
        `total`, `layers` (a list, one number for each decoder layer), `outside` (the head) and `context`.

    Raises:
        ValueError: for a context below 1.
    """
    skeleton, layers = _skeleton(model_or_config)
    config = skeleton.config.get_text_config(decoder=True)
    context = _context(config, context)
    products = [_weight_flops(layer, config) for layer in layers]
    counts = [flops + _attention_flops(config, i, context) for i, flops in enumerate(products)]
    outside = _outside_flops(skeleton)
    return {"total": sum(counts) + outside, "layers": counts, "outside": outside, "context": context}


def block_savings(
    model_or_config: Any, sizes: int | Iterable[int] | None = None, *, context: int | None = None
) -> pd.DataFrame:
    """Count what removing each block of layers saves, in parameters and in FLOPs per token.

    Args:
        model_or_config: a model as it stands (a pruned one counts from its own layer 0) or a configuration.
        sizes: block sizes, each 1..L-1; None for all of them.
        context: tokens that a token attends to, see `flop_counts`.

    Returns:
        One row a block: start, size, parameters (in the block), parameters_left, parameters_saved (share of
        the whole, 0..1), and the same for flops (forward, per token). `attrs["context"]` is the context.

    Raises:
        ValueError: for a size outside 1..L-1.
    """
    parameters = parameter_counts(model_or_config)
    flops = flop_counts(model_or_config, context=context)
    depth = len(parameters["layers"])
    pairs = [(start, size) for size in _sizes(sizes, depth) for start in range(depth - size + 1)]
    frame = pd.DataFrame(pairs, columns=["start", "size"])
    for name, counts in (("parameters", parameters), ("flops", flops)):
        ends = np.concatenate([[0], np.cumsum(counts["layers"], dtype=np.int64)])
        frame[name] = ends[frame["start"] + frame["size"]] - ends[frame["start"]]
        frame[f"{name}_left"] = counts["total"] - frame[name]
        frame[f"{name}_saved"] = frame[name] / counts["total"]
    frame.attrs["context"] = flops["context"]
    return frame


def _sizes(sizes: int | Iterable[int] | None, depth: int) -> list[int]:
    chosen = range(1, depth) if sizes is None else [sizes] if isinstance(sizes, int) else sizes
    return [whole_number(size, "sizes", most=depth - 1) for size in chosen]


def _context(config: Any, context: int | None) -> int:
    if context is None:
        return min(DEFAULT_CONTEXT, getattr(config, "max_position_embeddings", None) or DEFAULT_CONTEXT)
    return whole_number(context, "context")


def _skeleton(model_or_config: Any) -> tuple[Any, nn.ModuleList]:
    """Build the model that the configuration describes, without memory for its weights."""
    model = unwrap(model_or_config) if isinstance(model_or_config, nn.Module) else None
    config = copy.deepcopy(model_or_config if model is None else model.config)
    config._attn_implementation = "eager"  # has the same weights, and needs no package that may be missing
    with torch.device("meta"):
        skeleton = auto_class(config).from_config(config) if model is None else type(model)(config)
    return skeleton, decoder_layers(skeleton)


def _weight_flops(module: nn.Module, config: Any) -> int:
    named = module.named_parameters()
    matrices = [(name, p) for name, p in named if p.ndim >= 2 and not name.endswith("bias")]
    return round(sum(2 * p.numel() * _share_met(name, p, config) for name, p in matrices))


def _share_met(name: str, parameter: nn.Parameter, config: Any) -> float:
    """Return the share of a weight that one token meets: of routed experts, those that it is routed to."""
    experts = _first_of(config, "num_experts", "num_local_experts", "n_routed_experts")
    stacked = experts is not None and parameter.ndim == 3 and parameter.shape[0] == experts
    if "shared" in name or not (stacked or ".experts." in f".{name}"):
        return 1.0
    return float(_first_of(config, "num_experts_per_tok", "top_k_experts", "moe_topk") / experts)


def _attention_flops(config: Any, layer: int, context: int) -> int:
    own = config.per_layer_config[layer] if hasattr(config, "per_layer_config") else config
    heads = own.num_attention_heads
    head = getattr(own, "head_dim", None) or own.hidden_size // heads
    query, value = head, head
    if getattr(own, "qk_nope_head_dim", None):  # multi-head latent attention (DeepSeek)
        query, value = own.qk_nope_head_dim + own.qk_rope_head_dim, own.v_head_dim
    return int(2 * heads * (query + value) * _attended(own, layer, context))


def _attended(config: Any, layer: int, context: int) -> int:
    """Return how many tokens a token attends to in a layer: none where there is no attention."""
    kinds = _first_of(config, "layer_types", "layers_block_type", "attention_layers")
    window = _first_of(config, "sliding_window", "window_size")
    kind = kinds[layer] if kinds else ("sliding_attention" if window else "full_attention")
    if kind.startswith("linear") or not ("attention" in kind or kind in ("global", "local")):
        return 0
    if kind.startswith("chunked"):
        window = config.attention_chunk_size
    elif not kind.startswith(("sliding", "local")):
        window = None
    return min(context, window or context)


def _outside_flops(skeleton: Any) -> int:
    """Count the head, and the projections beside the layers that some architectures have (OPT, Gemma3n)."""
    stack, name = layer_container(skeleton)
    head = skeleton.get_output_embeddings()
    linear = [(path, m) for path, m in stack.named_modules() if isinstance(m, nn.Linear)]
    beside = [m for path, m in linear if not path.startswith(f"{name}.")]
    return sum(2 * module.weight.numel() for module in [head, *beside])


def _first_of(config: Any, *names: str) -> Any:
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if value is not None), None)
