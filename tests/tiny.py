"""Tiny random models and a tiny tokenizer: real architectures, seconds to build, nothing downloaded.

Freshly initialised weights hide mistakes: norm weights are all 1, biases all 0, and every layer is close to
the identity. So all parameters are drawn at a size that makes each layer matter, the layer count is odd, and
no two dimensions are equal.
"""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

LAYERS = 7
VOCABULARY = 331
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 36,
    "intermediate_size": 52,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
SLIDING = ["sliding_attention", "sliding_attention", "full_attention"]
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "norm_topk_prob": True}


def _without(sizes: dict[str, Any], *names: str, **extra: Any) -> dict[str, Any]:
    return {name: value for name, value in sizes.items() if name not in names} | extra


_GEMMA3 = SIZES | {
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": 5,
    "layer_types": (SLIDING * 3)[:LAYERS],
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}

#: architecture -> (model type, configuration entries)
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SIZES | {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("llama", SIZES | {"tie_word_embeddings": True}),
    "mistral": ("mistral", SIZES | {"sliding_window": 6}),
    "qwen2": ("qwen2", SIZES),
    "qwen2-sliding": (
        "qwen2",
        SIZES | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3},
    ),
    "qwen3": ("qwen3", SIZES | {"head_dim": 8}),
    "qwen3-moe": ("qwen3_moe", SIZES | EXPERTS | {"head_dim": 8}),
    "qwen3-moe-mixed": (
        "qwen3_moe",
        SIZES | EXPERTS | {"head_dim": 8, "decoder_sparse_step": 2, "mlp_only_layers": [3]},
    ),
    "phi3": ("phi3", SIZES),
    "smollm3": ("smollm3", SIZES | {"no_rope_layer_interval": 3}),
    "gemma2": ("gemma2", SIZES | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 5}),
    "gemma3": ("gemma3_text", _GEMMA3),
    "gemma3-multimodal": (
        "gemma3",
        {
            "text_config": _GEMMA3,
            "vision_config": VISION,
            "mm_tokens_per_image": 4,
            "image_token_index": 330,
            "boi_token_index": 329,
            "eoi_token_index": 328,
            "eos_token_id": 1,
            "pad_token_id": 0,
        },
    ),
    "olmo2": ("olmo2", SIZES),
    "granite": (
        "granite",
        SIZES | {"residual_multiplier": 0.7, "embedding_multiplier": 1.5, "logits_scaling": 2.0},
    ),
    "gpt2": (
        "gpt2",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 36,
            "n_layer": LAYERS,
            "n_head": 6,
            "n_positions": 256,
            "n_inner": 52,
            "pad_token_id": 0,
            "bos_token_id": None,
            "eos_token_id": 1,
        },
    ),
    "gpt-neox": ("gpt_neox", _without(SIZES, "num_key_value_heads", rotary_pct=0.7)),
    "opt": (
        "opt",
        _without(SIZES, "num_key_value_heads", "intermediate_size", ffn_dim=52, word_embed_proj_dim=28),
    ),
    "falcon": (
        "falcon",
        _without(
            SIZES,
            "num_key_value_heads",
            "intermediate_size",
            ffn_hidden_size=52,
            num_kv_heads=3,
            new_decoder_architecture=True,
        ),
    ),
    "bloom": (
        "bloom",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 36,
            "n_layer": LAYERS,
            "n_head": 6,
            "pad_token_id": 0,
            "bos_token_id": None,
            "eos_token_id": 1,
        },
    ),
}


_MIXTURE = SIZES | {
    "num_local_experts": 5,
    "n_routed_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
}
_LATENT = {
    "num_key_value_heads": 6,
    "q_lora_rank": 12,
    "kv_lora_rank": 10,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
}

#: architectures in which a layer depends on its place; not part of the common tests
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek-v3": ("deepseek_v3", _MIXTURE | _LATENT | {"first_k_dense_replace": 2}),
    "ernie-moe": (
        "ernie4_5_moe",
        _MIXTURE
        | {"moe_num_experts": 5, "moe_k": 2, "moe_layer_start_index": 2, "moe_num_shared_experts": 1},
    ),
    "gpt-neo": (
        "gpt_neo",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 36,
            "num_layers": LAYERS,
            "num_heads": 6,
            "intermediate_size": 52,
            "window_size": 5,
            "attention_types": [[["global", "local"], 3], [["global"], 1]],
            "max_position_embeddings": 256,
            "pad_token_id": 0,
            "bos_token_id": None,
            "eos_token_id": 1,
        },
    ),
    "llama4": (
        "llama4_text",
        _MIXTURE
        | {
            "head_dim": 6,
            "intermediate_size_mlp": 44,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 8,
            "no_rope_layer_interval": 3,
        },
    ),
    "gemma4": (
        "gemma4_text",
        SIZES
        | {
            "head_dim": 8,
            "global_head_dim": 12,
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 0,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention"] * 3 + ["full_attention"],
        },
    ),
    "gemma3n": (
        "gemma3n_text",
        _GEMMA3
        | {
            "hidden_size_per_layer_input": 4,
            "vocab_size_per_layer_input": VOCABULARY,
            "num_kv_shared_layers": 3,
            "laurel_rank": 4,
        },
    ),
    "minimax": (
        "minimax",
        _MIXTURE
        | {
            "head_dim": 6,
            "block_size": 8,
            "layer_types": ["linear_attention", "full_attention"] * 3 + ["linear_attention"],
        },
    ),
    "jamba": (
        "jamba",
        SIZES
        | {
            "num_experts": 3,
            "attn_layer_period": 3,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "mamba_d_state": 4,
            "mamba_dt_rank": 5,
        },
    ),
    "rwkv": (
        "rwkv",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 36,
            "num_hidden_layers": LAYERS,
            "attention_hidden_size": 36,
            "pad_token_id": 0,
            "bos_token_id": None,
            "eos_token_id": 1,
        },
    ),
}


def tiny_config(architecture: str = "llama", **overrides: Any) -> Any:
    """Return what `tiny_model` builds from; overrides replace entries, of the text part if there is one."""
    model_type, entries = (CONFIGS | MORE)[architecture]
    if "text_config" in entries:
        entries = entries | {"text_config": entries["text_config"] | overrides}
    else:
        entries = entries | overrides
    return AutoConfig.for_model(model_type, **entries)


def tiny_model(architecture: str = "llama", *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random model of a real architecture in float32, in evaluation mode, every parameter de-symmetrised.

    Args:
        architecture: a key of `CONFIGS`.
        seed: the same seed gives the same weights.
        **overrides: configuration entries, for example `num_hidden_layers=5`.
    """
    torch.manual_seed(seed)
    config = tiny_config(architecture, **overrides)
    if "multimodal" in architecture:
        from transformers import AutoModelForImageTextToText

        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise_(model, seed)
    return model.eval()


@torch.no_grad()
def randomise_(model: nn.Module, seed: int = 0) -> None:
    """Draw every parameter anew: matrices that keep activations near 1, vectors off their default."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if id(parameter) in embeddings:
            parameter.copy_(noise * 0.1)  # small, so that layers and not the embedding decide what comes out
        elif parameter.ndim >= 2:
            parameter.copy_(noise * parameter.shape[-1] ** -0.5)
        else:
            parameter.add_(noise * 0.3)


_SENTENCES = [
    "The quick brown fox jumps over the lazy dog. She sells sea shells by the sea shore.",
    "Anna has 12 apples and gives 5 to Ben. How many apples are left? The answer is 7.",
    "Question: What is the capital of the land? Answer: the town by the river.",
    "Ein kleiner Hund und eine Katze gehen durch den Wald zu dem alten Haus.",
]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tiny_tokenizer(*, chat_template: bool = True) -> PreTrainedTokenizerFast:
    """Return a real byte-level BPE tokenizer of 330 entries: any text round-trips, pad is 0, eos is 1."""
    specials = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=specials[2:],
        padding_side="left",
        chat_template=CHAT_TEMPLATE if chat_template else None,
    )


def breaks_at(model: PreTrainedModel, token: int) -> PreTrainedModel:
    """Return the model with an embedding that is no number: what comes before that token is sound."""
    with torch.no_grad():
        embeddings: Any = model.get_input_embeddings()
        embeddings.weight[token] = torch.nan
    return model
