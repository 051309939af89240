"""Tiny models of architectures in which more flows than one state a layer, or not from left to right only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import LAYERS, MORE, SIZES, VOCABULARY, randomise_
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

_ENDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
_GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 5}
_MIXTURE = {
    "n_routed_experts": 5,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
}
_LATENT = {"num_key_value_heads": 6, "q_lora_rank": 12, "kv_lora_rank": 10, "qk_rope_head_dim": 4}
_LATENT |= {"qk_nope_head_dim": 6, "v_head_dim": 8, "n_group": 1, "topk_group": 1, "n_shared_experts": 1}
_LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 21.0}
_LONG |= {"short_factor": [1.0] * 3, "long_factor": [4.0] * 3, "original_max_position_embeddings": 12}
_VISION = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
_VISION |= {"image_size": 16, "patch_size": 8, "model_type": "siglip_vision_model"}

#: name -> (model type, configuration entries)
FLOWS: dict[str, tuple[str, dict[str, Any]]] = {
    # keys and values of some layers are those of others
    "gemma4-shared": (
        "gemma4_text",
        MORE["gemma4"][1]
        | {"num_kv_shared_layers": 3, "hidden_size_per_layer_input": 4}
        | {"vocab_size_per_layer_input": VOCABULARY},
    ),
    "gemma4": MORE["gemma4"],
    # states of block boundaries are given to all later layers
    "inkling2": ("inkling2_text", SIZES | {"head_dim": 8}),
    # layers return a tuple of two, of three, a list
    "bamba": (
        "bamba",
        SIZES
        | {"attn_layer_indices": [2, 5], "mamba_n_heads": 6, "mamba_d_head": 12, "mamba_n_groups": 1}
        | {"mamba_d_state": 4, "mamba_chunk_size": 8, "mamba_expand": 2},
    ),
    "rwkv": MORE["rwkv"],
    "openai-gpt": (
        "openai-gpt",
        _ENDS | {"n_embd": 36, "n_layer": LAYERS, "n_head": 6, "n_positions": 256},
    ),
    # the router is asked for logits of layers that do not run
    "mixtral": (
        "mixtral",
        SIZES | {"num_local_experts": 5, "num_experts_per_tok": 2, "output_router_logits": True},
    ),
    # several streams of states
    "gemma3n": MORE["gemma3n"],
    "deepseek-v4": ("deepseek_v4", SIZES | _MIXTURE | _LATENT),
    # attention that looks ahead
    "gemma3-bidirectional": (
        "gemma3_text",
        SIZES
        | _GEMMA
        | {"use_bidirectional_attention": True}
        | {"layer_types": (["sliding_attention", "sliding_attention", "full_attention"] * 3)[:LAYERS]},
    ),
    "paligemma": (
        "paligemma",
        {"text_config": SIZES | {"model_type": "gemma", "head_dim": 8}, "vision_config": _VISION}
        | {"image_token_index": 330, "projection_dim": 36},
    ),
    # rotary tables that follow the length of the batch
    "phi3-longrope": (
        "phi3",
        SIZES | {"original_max_position_embeddings": 12, "rope_parameters": _LONG},
    ),
}


def flow_model(name: str) -> Any:
    """Return such a model with random weights in float32; skip where transformers does not have it."""
    kind, entries = FLOWS[name]
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"transformers has no {kind}")
    torch.manual_seed(0)
    factory = AutoModelForImageTextToText if name == "paligemma" else AutoModelForCausalLM
    model = factory.from_config(AutoConfig.for_model(kind, **entries), dtype=torch.float32)
    randomise_(model)
    return model.eval()
