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
from workbench.models.layers import decoder_layers, layer_container, longest_context, types_of_torch_, unwrap

DEFAULT_CONTEXT = 4096
#: names that configurations give the number of routed experts, and of those that a token meets
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_ROUTED = ("num_experts_per_tok", "top_k_experts", "moe_topk", "moe_k")
#: kinds of layers that attend, beside those that say so in their name
_ATTENDING = ("global", "local", "hybrid", "minimax_m3_sparse")
#: weights by two dimensions that are no matrices: scales and skips of heads, segments that nobody marks
_NO_PRODUCT = (".scale", ".D", "seg_embed")


def parameter_counts(model_or_config: Any) -> dict[str, Any]:
    """Count the parameters of a model or of a transformers configuration; tied weights count once.

    An adapter does not count, and a quantized model counts as the full-precision model that it stands for.

    Returns:
        `total`, `layers` (a list, one number for each decoder layer, with its part of embeddings by layer)
        and `outside` (embedding, norms, head, the vision part of a multimodal model, and weights that several
        layers share, as in Zamba): total = sum(layers) + outside.
    """
    skeleton, layers = _skeleton(model_or_config)
    share = sum(p.numel() for p in _parts_by_layer(skeleton)) // len(layers)
    users = _users(layers)
    counts = [
        sum(parameter.numel() for parameter in layer.parameters() if len(users[id(parameter)]) == 1) + share
        for layer in layers
    ]
    total = sum(parameter.numel() for parameter in skeleton.parameters())
    return {"total": total, "layers": counts, "outside": total - sum(counts)}


def flop_counts(model_or_config: Any, *, context: int | None = None) -> dict[str, Any]:
    """Count the floating-point operations of one forward pass for one token.

    A multiplication and an addition count as two. Counted are all matrix products: 2 x the weights that one
    token meets (of a mixture of experts those it is routed to), the head included, and in each attention
    layer the products of the query with the keys and of the attention with the values, 2 x heads x (query
    size + value size) x attended tokens, and those of an indexer that chooses these tokens. Norms,
    activations, softmax, position codes and embedding look-ups are left out, as usual: they are below one
    per cent. So is a vision part, and what `left_out` names: the recurrent state of layers that compute it in
    chunks, which each implementation cuts in its own way (Mamba 1 has none, there it is counted).

    Args:
        model_or_config: a model or a transformers configuration.
        context: tokens that the counted token attends to, itself included, >= 1; a sliding-window layer
            attends to at most its window. None for 4096, or the longest context of the model when that is
            shorter.

    Returns:
        `total`, `layers` (a list, one number for each decoder layer), `outside` (the head), `context`, and
        `left_out`, one line on what the numbers lack, empty where they lack nothing.

    Raises:
        ValueError: for a context below 1.
    """
    skeleton, layers = _skeleton(model_or_config)
    config = skeleton.config.get_text_config(decoder=True)
    context = context or min(DEFAULT_CONTEXT, longest_context(config) or DEFAULT_CONTEXT)
    beside = 2 * sum(p.numel() for p in _parts_by_layer(skeleton, nn.Linear))
    products = [_weight_flops(layer, config) + beside // len(layers) for layer in layers]
    counts = [
        flops + _attention_flops(config, i, context) + _position_flops(layers[i], context)
        for i, flops in enumerate(products)
    ]
    outside = _outside_flops(skeleton) - beside
    found = {"total": sum(counts) + outside, "layers": counts, "outside": outside, "context": context}
    return found | {"left_out": _left_out(layers, config)}


def block_savings(
    model_or_config: Any, sizes: int | Iterable[int] | None = None, *, context: int | None = None
) -> pd.DataFrame:
    """Count what removing each block of layers saves, in parameters and in FLOPs per token.

    Args:
        model_or_config: a model as it stands or a configuration; layers of a pruned one keep their original
            numbers, and a block is `size` of those that it has, in a row from `start`.
        sizes: block sizes, each 1..L-1; None for all of them.
        context: tokens that a token attends to, see `flop_counts`.

    Returns:
        One row a block: start, size, parameters (in the block), parameters_left, parameters_saved (share of
        the whole, 0..1), and the same for flops (forward, per token). `attrs` has the context, `kept_layers`
        (the original numbers of the model's layers), and what is `left_out` of the flops.

    Raises:
        ValueError: for a size outside 1..L-1.
    """
    parameters = parameter_counts(model_or_config)
    flops = flop_counts(model_or_config, context=context)
    config = _config(model_or_config).get_text_config(decoder=True)
    kept = list(getattr(config, "kept_layers", None) or range(len(parameters["layers"])))
    pairs = [(at, size) for size in _sizes(sizes, len(kept)) for at in range(len(kept) - size + 1)]
    frame = pd.DataFrame(pairs, columns=["start", "size"])
    for name, counts in (("parameters", parameters), ("flops", flops)):
        ends = np.concatenate([[0], np.cumsum(counts["layers"], dtype=np.int64)])
        frame[name] = ends[frame["start"] + frame["size"]] - ends[frame["start"]]
        if name == "parameters":  # what several layers share goes with the last of them
            for first, last, n in _shared(model_or_config):
                frame[name] += n * ((frame["start"] <= first) & (frame["start"] + frame["size"] > last))
        frame[f"{name}_left"] = counts["total"] - frame[name]
        frame[f"{name}_saved"] = frame[name] / counts["total"]
    frame["start"] = np.array(kept)[frame["start"]]
    frame.attrs |= {"context": flops["context"], "kept_layers": kept}
    frame.attrs |= {"left_out": flops["left_out"]} if flops["left_out"] else {}
    return frame


def _users(layers: nn.ModuleList) -> dict[int, list[int]]:
    """Return the places of the layers that have each parameter, by its id."""
    found: dict[int, list[int]] = {}
    for place, layer in enumerate(layers):
        for parameter in layer.parameters():
            found.setdefault(id(parameter), []).append(place)
    return found


def _shared(model_or_config: Any) -> list[tuple[int, int, int]]:
    """Return the weights that several layers share: the first and last place, and how many they are."""
    _, layers = _skeleton(model_or_config)
    sizes = {id(parameter): parameter.numel() for parameter in layers.parameters()}
    several = [(places, sizes[key]) for key, places in _users(layers).items() if len(places) > 1]
    return [(min(places), max(places), n) for places, n in several]


def attends(config: Any, layer: int) -> bool:
    """Return whether a layer of a text configuration has attention, alone or beside a state space."""
    return _attended(config, _kind(config, layer), 1) > 0


def _sizes(sizes: int | Iterable[int] | None, depth: int) -> list[int]:
    chosen = range(1, depth) if sizes is None else [sizes] if isinstance(sizes, int) else sizes
    return [whole_number(size, "sizes", most=depth - 1) for size in chosen]


def _skeleton(model_or_config: Any) -> tuple[Any, nn.ModuleList]:
    """Build the model that the configuration describes, without memory for its weights."""
    base, config = unwrap(model_or_config), copy.deepcopy(_config(model_or_config))
    types_of_torch_(config)
    config._attn_implementation = "eager"  # has the same weights, and needs no package that may be missing
    with torch.device("meta"):
        known = isinstance(base, nn.Module)
        skeleton = type(base)(config) if known else auto_class(config).from_config(config)
    return skeleton, decoder_layers(skeleton)


def _config(model_or_config: Any) -> Any:
    return getattr(unwrap(model_or_config), "config", model_or_config)


def _weight_flops(module: nn.Module, config: Any) -> int:
    named = module.named_parameters()
    matrices = [(name, p) for name, p in named if p.ndim >= 2 and not name.endswith("bias")]
    matrices = [(name, p) for name, p in matrices if p.ndim == 2 or p.numel() > max(p.shape)]
    matrices = [(name, p) for name, p in matrices if not name.endswith(_NO_PRODUCT)]
    return round(sum(2 * p.numel() * _share_met(name, p, config) for name, p in matrices))


def _parts_by_layer(skeleton: nn.Module, kind: type[nn.Module] = nn.Module) -> list[nn.Parameter]:
    """Return the weights outside the layers that hold a part for each of them (Gemma 3n, Gemma 4)."""
    names = ("embed_tokens_per_layer", "per_layer_model_projection")
    modules = [(path.rpartition(".")[2], module) for path, module in skeleton.named_modules()]
    return [m.weight for name, m in modules if name in names and isinstance(m, kind)]  # type: ignore[misc]


def _share_met(name: str, parameter: nn.Parameter, config: Any) -> float:
    """Return the share of a weight that one token meets: of routed experts, those that it is routed to."""
    experts = _first_of(config, *EXPERTS)
    stacked = experts is not None and parameter.ndim == 3 and parameter.shape[0] == experts
    if "shared" in name or "router" in name or not (stacked or ".experts." in f".{name}"):
        return 1.0
    return float(_first_of(config, *_ROUTED) / experts)


def _attention_flops(config: Any, layer: int, context: int) -> int:
    own = config.per_layer_config[layer] if hasattr(config, "per_layer_config") else config
    kind = _kind(own, layer)
    prefix = "swa_" if "sliding" in kind and hasattr(own, "swa_num_attention_heads") else ""
    heads = getattr(own, f"{prefix}num_attention_heads", None)
    if not heads:  # a state-space or recurrent model
        return 0
    head = getattr(own, f"{prefix}head_dim", None) or own.hidden_size // heads
    # diffllama attends twice, to half the values
    query = head * (2 if own.model_type == "diffllama" else 1)
    value = getattr(own, f"{prefix}v_head_dim", None) or getattr(own, "v_head_dim", None) or query
    if getattr(own, "qk_nope_head_dim", None):  # multi-head latent attention (DeepSeek)
        query, value = own.qk_nope_head_dim + own.qk_rope_head_dim, own.v_head_dim
    attended = _attended(own, kind, context)
    chosen = min(attended, getattr(own, "index_topk", None) or attended)
    return int(2 * heads * (query + value) * chosen) + _indexer_flops(own, layer, attended)


def _position_flops(layer: nn.Module, context: int) -> int:
    """Count products with positions: profiles that each head mixes (Inkling), places as keys (XLNet)."""
    count = 0
    for module in layer.modules():
        profiles = getattr(module, "rel_logits_proj", None)
        if profiles is not None:  # once is among the weights
            count += 2 * profiles.proj.numel() * (getattr(module, "num_heads") - 1)  # noqa: B009
        if hasattr(module, "r_r_bias"):  # the places before and behind each token
            count += 2 * module.r.numel() + 2 * module.r_r_bias.numel() * 2 * context  # type: ignore[operator]
    return int(count)


def _indexer_flops(config: Any, layer: int, attended: int) -> int:
    """Count what chooses the tokens to attend to (DeepSeek 3.2): its own heads, which see all of them."""
    kinds = getattr(config, "indexer_types", None)
    if not getattr(config, "index_n_heads", None) or (kinds and kinds[layer] == "shared"):
        return 0
    return int(2 * config.index_n_heads * (config.index_head_dim + 1) * attended)


def _kind(config: Any, layer: int) -> str:
    kinds = _first_of(config, "layer_types", "layers_block_type", "attention_layers")
    window = _first_of(config, "sliding_window", "window_size")
    return str(kinds[layer]) if kinds else "sliding_attention" if window else "full_attention"


def _attended(config: Any, kind: str, context: int) -> int:
    """Return how many tokens a token attends to in a layer: none where there is no attention."""
    window = _first_of(config, "sliding_window", "window_size")
    if kind.startswith("linear") or not ("attention" in kind or kind.startswith(_ATTENDING)):
        return 0
    if kind.startswith("chunked"):
        window = config.attention_chunk_size
    elif not ("sliding" in kind or kind.startswith("local")):
        window = None
    return min(context, window or context)


def _left_out(layers: Iterable[nn.Module], config: Any) -> str:
    """Say of how many layers the recurrent state is not counted, and the sparse attention counted in full."""
    kinds = [_kind(config, place) for place, _ in enumerate(layers)]
    chunked = sum(map(_chunked, layers, kinds))
    compressed = sum("compressed" in kind or kind.endswith("_sparse") for kind in kinds)
    said = [f"the recurrent state of {chunked} of the layers is not counted"] if chunked else []
    said += [f"the compressed attention of {compressed} of them is counted as full"] if compressed else []
    return "; ".join(said)


def _chunked(layer: nn.Module, kind: str) -> bool:
    """Return whether a layer has a state in chunks: Mamba 2, gated delta nets, linear attention, xLSTM."""
    decays = [p for name, p in layer.named_parameters() if name.rpartition(".")[2] == "A_log"]
    names = {type(module).__name__ for module in layer.modules()}
    by_head = any(p.numel() == max(p.shape) for p in decays)  # Mamba 1 has one for each entry of its state
    linear = kind.startswith("linear") and not decays and any("Attention" in name for name in names)
    return by_head or linear or any("LSTM" in name for name in names)


def _outside_flops(skeleton: Any) -> int:
    """Count the head, and the projections beside the layers that some architectures have (OPT, Gemma3n)."""
    stack, name = layer_container(skeleton)
    head, layers = skeleton.get_output_embeddings(), {id(m) for m in getattr(stack, name).modules()}
    texts_alone = skeleton.config.get_text_config(decoder=True) is skeleton.config
    around = skeleton if texts_alone else stack  # not what looks at images
    linear = [m for m in around.modules() if isinstance(m, nn.Linear) and id(m) not in layers]
    return sum(2 * module.weight.numel() for module in {id(m): m for m in [head, *linear]}.values())


def _first_of(config: Any, *names: str) -> Any:
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if value is not None), None)
