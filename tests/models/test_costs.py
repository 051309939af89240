"""Parameters and FLOPs: the paper's numbers to the digit, real models, and what torch itself counts."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from tiny import CONFIGS, LAYERS, SIZES, tiny_config, tiny_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

import workbench as wb
from workbench.models.costs import block_savings, flop_counts, parameter_counts
from workbench.pruning.removal import prune_, without_layers

LLAMA_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=131072,
)


def test_the_savings_on_llama_8b_are_those_of_the_paper_to_the_digit() -> None:
    frame = block_savings(LLAMA_8B, [2, 4, 6, 8, 10])
    rows = frame[frame["start"] == 20][["size", "parameters_saved", "parameters_left"]].itertuples(
        index=False
    )
    printed = [(size, f"{100 * saved:.2f} %", f"{left / 1e9:.2f}B") for size, saved, left in rows]
    assert printed == [
        (2, "5.43 %", "7.59B"),
        (4, "10.86 %", "7.16B"),
        (6, "16.30 %", "6.72B"),
        (8, "21.73 %", "6.29B"),
        (10, "27.16 %", "5.85B"),
    ]
    assert parameter_counts(LLAMA_8B)["total"] == 8_030_261_248


def test_the_flops_of_llama_8b_follow_from_its_sizes() -> None:
    attention, ffn = 4096 * (4096 + 1024 + 1024 + 4096), 3 * 4096 * 14336
    for context in (1, 1000):
        counts = flop_counts(LLAMA_8B, context=context)
        assert counts["layers"] == [2 * (attention + ffn) + 4 * 4096 * context] * 32
        assert counts["outside"] == 2 * 128256 * 4096
        assert counts["total"] == sum(counts["layers"]) + counts["outside"]


@pytest.mark.parametrize("architecture", CONFIGS)
def test_counts_are_those_of_the_real_model(architecture: str) -> None:
    model = tiny_model(architecture)
    real = {id(p): p.numel() for p in model.parameters()}
    counts = parameter_counts(tiny_config(architecture))
    assert counts == parameter_counts(model)
    assert counts["total"] == sum(real.values()) == sum(counts["layers"]) + counts["outside"]
    assert len(counts["layers"]) == LAYERS
    with without_layers(model, [2, 4]):
        left = sum({id(p): p.numel() for p in model.parameters()}.values())
        assert parameter_counts(model)["total"] == left
    assert counts["total"] - counts["layers"][2] - counts["layers"][4] == left


@pytest.mark.parametrize("architecture", CONFIGS)
def test_flops_are_those_that_torch_counts(architecture: str) -> None:
    # eager attention multiplies every query with every key, so each of the tokens attends to all of them
    tokens = 5  # not more than the smallest window of the tiny models
    model = tiny_model(architecture, **({"attn_implementation": "eager"} if architecture == "falcon" else {}))
    model.set_attn_implementation("eager")
    if "moe" in architecture:
        model.set_experts_implementation("eager")  # torch does not count grouped products
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.arange(tokens)[None] + 5, use_cache=False)
    by_module = counter.get_flop_counts().items()
    position_codes = sum(sum(ops.values()) for name, ops in by_module if name.endswith("rotary_emb"))
    expected = (counter.get_total_flops() - position_codes) / tokens
    assert flop_counts(model, context=tokens)["total"] == expected


def counted(kind: str, entries: dict[str, Any], tokens: int) -> float:
    """Return what torch counts for a text in a model with eager attention, but for its position codes."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **entries)
    model: Any = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.arange(tokens)[None] % 90 + 5, use_cache=False)
    by_module = counter.get_flop_counts().items()
    return counter.get_total_flops() - sum(
        sum(ops.values()) for name, ops in by_module if name.endswith("rotary_emb")
    )


SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "pad_token_id": 0, "eos_token_id": 1}
HEADS = SMALL | {
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "n_shared_experts": 1}
LATENT = {
    "q_lora_rank": 12,
    "kv_lora_rank": 10,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 8,
}
INDEXED = {"index_topk": 64, "index_n_heads": 2, "index_head_dim": 8, "n_group": 1, "topk_group": 1}
PROFILES = {"head_dim": 8, "swa_head_dim": 6, "swa_num_attention_heads": 6, "swa_num_key_value_heads": 3}
PROFILES |= {"d_rel": 4, "rel_extent": 32, "sliding_window_size": 64}
MAMBA_2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 4,
}
ZAMBA_2 = {"layers_block_type": ["mamba", "hybrid", "mamba"], "n_mamba_heads": 8, "mamba_ngroups": 1}
ZAMBA_2 |= {"mamba_headdim": 8, "mamba_d_state": 8, "chunk_size": 4, "num_mem_blocks": 1, "adapter_rank": 4}
#: architectures without heads, with more products than one attention, or with kinds of layers of their own
EXACT: dict[str, dict[str, Any]] = {
    "mamba": SMALL | {"state_size": 8},
    "falcon_mamba": SMALL | {"state_size": 8},
    "rwkv": SMALL | {"attention_hidden_size": 32},
    "diffllama": HEADS,
    "aria_text": HEADS | {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
    "deepseek_v32": HEADS
    | ROUTED
    | LATENT
    | INDEXED
    | {"num_key_value_heads": 4, "first_k_dense_replace": 1},
    "lfm2": HEADS | {"layer_types": ["conv", "full_attention", "conv"]},
    # routers among the experts; profiles over distances and places as keys; a dense layer in the head; values
    # of another size than keys; gates by blocks
    "jetmoe": HEADS | {"kv_channels": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "inkling_text": HEADS | ROUTED | PROFILES | {"n_shared_experts": 2},
    "inkling2_text": HEADS | ROUTED | PROFILES,
    "xlnet": {"vocab_size": 97, "d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 40, "pad_token_id": 0},
    "modernbert-decoder": SMALL | {"intermediate_size": 40, "num_attention_heads": 4},
    "bert": HEADS | {"is_decoder": True},
    "mimo_v2_flash": HEADS | ROUTED | {"head_dim": 8, "v_head_dim": 12},
    "zamba": HEADS
    | {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "num_hidden_layers": 4}
    | {"n_mamba_heads": 2, "mamba_d_state": 8, "mamba_dt_rank": 4, "num_key_value_heads": 4},
    "recurrent_gemma": HEADS | {"lru_width": 32, "head_dim": 8},
}
CHUNKED: dict[str, dict[str, Any]] = {
    "falcon_h1": HEADS | MAMBA_2 | {"head_dim": 8, "mamba_d_ssm": 64},
    "zamba2": HEADS | ZAMBA_2 | {"num_key_value_heads": 4, "attention_head_dim": 16},
    "mamba2": SMALL | {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 4},
}


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("tokens", [(4, 8), (8, 24)], ids=str)
def test_flops_of_other_kinds_of_layers_are_those_that_torch_counts(
    kind: str, tokens: tuple[int, int]
) -> None:
    # the cost of further tokens, without what padding of convolutions costs a text; n attend to n, so the
    # a + 1 .. b cost as if each had attended to a + b
    config, (few, many) = AutoConfig.for_model(kind, **EXACT[kind]), tokens
    further = (counted(kind, EXACT[kind], many) - counted(kind, EXACT[kind], few)) / (many - few)
    counts = flop_counts(config, context=few + many)
    assert counts["total"] == further
    assert counts["left_out"] == ""


def left_out(kind: str, few: int, many: int) -> float:
    """Return what torch counts for each token from few to many beyond what is counted here."""
    config, entries = AutoConfig.for_model(kind, **CHUNKED[kind]), CHUNKED[kind]
    further = (counted(kind, entries, many) - counted(kind, entries, few)) / (many - few)
    return further - flop_counts(config, context=few + many)["total"]


@pytest.mark.parametrize(("kind", "attends"), [("falcon_h1", [True] * 3), ("zamba2", [False, True, False])])
def test_of_a_hybrid_the_state_alone_is_left_out_and_said(kind: str, attends: list[bool]) -> None:
    # Mamba 2 has the same state and no attention
    assert left_out(kind, 4, 8) == left_out("mamba2", 4, 8) > 0
    assert left_out(kind, 8, 24) == left_out("mamba2", 8, 24)
    config = AutoConfig.for_model(kind, **CHUNKED[kind])
    said = "the recurrent state of 3 of the layers is not counted"
    assert flop_counts(config)["left_out"] == block_savings(config).attrs["left_out"] == said
    short, long = (flop_counts(config, context=tokens)["layers"] for tokens in (4, 8))
    assert [b > a for a, b in zip(short, long, strict=True)] == attends


def test_an_indexer_bounds_what_its_layers_attend_to() -> None:
    config = AutoConfig.for_model("deepseek_v32", **EXACT["deepseek_v32"])
    short, long = (flop_counts(config, context=c)["layers"][0] for c in (64, 100))
    assert long - short == 2 * 2 * (8 + 1) * 36, "only the indexer sees the further tokens"


def test_a_window_bounds_what_a_layer_attends_to() -> None:
    short, long = (flop_counts(tiny_config("qwen2-sliding"), context=c)["layers"] for c in (5, 50))
    assert short[3:] == long[3:]
    assert [b - a for a, b in zip(short[:3], long[:3], strict=True)] == [4 * 36 * 45] * 3
    mistral = [flop_counts(tiny_config("mistral"), context=c)["total"] for c in (6, 50)]
    assert mistral[0] == mistral[1]


def test_a_token_meets_only_the_experts_it_is_routed_to() -> None:
    dense, sparse = (flop_counts(tiny_config("qwen3-moe-mixed"), context=1)["layers"][i] for i in (0, 1))
    assert dense - sparse == 2 * (3 * 36 * 52 - 2 * 3 * 36 * 20 - 36 * 5)


def test_the_context_is_the_models_own_unless_it_is_long() -> None:
    assert flop_counts(tiny_config("llama"))["context"] == 256
    assert flop_counts(LLAMA_8B)["context"] == 4096
    attrs = {"context": 7, "kept_layers": list(range(LAYERS))}
    assert block_savings(tiny_config("llama"), 2, context=7).attrs == attrs


def test_every_block_has_its_row() -> None:
    frame = block_savings(tiny_config("gemma3"))
    assert list(frame.columns) == [
        "start",
        "size",
        "parameters",
        "parameters_left",
        "parameters_saved",
        "flops",
        "flops_left",
        "flops_saved",
    ]
    assert len(frame) == sum(LAYERS - size + 1 for size in range(1, LAYERS))
    assert (frame["start"] + frame["size"]).max() == LAYERS
    parameters, flops = parameter_counts(tiny_config("gemma3")), flop_counts(tiny_config("gemma3"))
    for row in frame.itertuples():
        for name, counts in (("parameters", parameters), ("flops", flops)):
            removed = sum(counts["layers"][row.start : row.start + row.size])
            assert getattr(row, name) == removed
            assert getattr(row, f"{name}_left") == counts["total"] - removed
            assert getattr(row, f"{name}_saved") == pytest.approx(removed / counts["total"])


def test_a_pruned_model_counts_as_it_stands() -> None:
    model = prune_(tiny_model("qwen3-moe-mixed"), [0, 1])
    whole = parameter_counts(tiny_config("qwen3-moe-mixed"))
    assert parameter_counts(model)["layers"] == whole["layers"][2:]
    assert block_savings(model)["size"].max() == LAYERS - 3


def test_a_pruned_models_blocks_are_named_by_its_original_layers() -> None:
    whole, kept = parameter_counts(tiny_config("qwen3-moe-mixed"))["layers"], [0, 1, 3, 4, 6]
    model = prune_(tiny_model("qwen3-moe-mixed"), [2, 5])
    for one in (model, model.config):
        frame = block_savings(one, 2)
        assert frame["start"].tolist() == kept[:-1]
        sums = [whole[a] + whole[b] for a, b in itertools.pairwise(kept)]
        assert frame["parameters"].tolist() == sums
        assert frame.attrs["kept_layers"] == kept
    assert block_savings(tiny_model("llama"), 3)["start"].tolist() == [0, 1, 2, 3, 4]
    with without_layers(whole_model := tiny_model("llama"), [1]):
        assert block_savings(whole_model, 1)["start"].tolist() == [0, 2, 3, 4, 5, 6]


def test_an_adapter_does_not_count() -> None:
    import peft

    model = tiny_model("llama")
    expected = parameter_counts(model)
    assert (
        parameter_counts(peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"])))
        == expected
    )


@pytest.mark.parametrize("sizes", [0, 7, [2, 9], -1])
def test_sizes_out_of_range(sizes: Any) -> None:
    with pytest.raises(ValueError, match="sizes must be a whole number from 1 to 6, got"):
        block_savings(tiny_config("llama"), sizes)


def test_what_is_no_decoder_and_no_context() -> None:
    from transformers import T5Config

    with pytest.raises(
        ValueError, match="must be a decoder-only language model or its configuration, got T5Config"
    ):
        parameter_counts(T5Config())
    with pytest.raises(ValueError, match="context must be a whole number >= 1, got 0"):
        wb.block_savings(tiny_config("llama"), context=0)


def test_weights_that_layers_share_count_once_and_go_with_the_last_of_them() -> None:
    config = AutoConfig.for_model("zamba", **EXACT["zamba"])
    model = AutoModelForCausalLM.from_config(config)
    counts = parameter_counts(config)
    assert (
        counts["total"]
        == sum(p.numel() for p in model.parameters())
        == sum(counts["layers"]) + counts["outside"]
    )
    assert counts["outside"] > 0
    layers = model.model.layers
    for row in block_savings(config).itertuples():
        kept = [layers[k] for k in range(len(layers)) if not row.start <= k < row.start + row.size]
        removed = {id(p): p.numel() for p in layers.parameters()}
        for layer in kept:
            for p in layer.parameters():
                removed.pop(id(p), None)
        assert row.parameters == sum(removed.values()), (row.start, row.size)


def test_a_model_without_a_longest_context_is_counted_at_4096() -> None:
    assert flop_counts(AutoConfig.for_model("xlnet", **EXACT["xlnet"]))["context"] == 4096


@pytest.mark.parametrize("form", ["config", "model", "pruned"])
def test_a_dtype_told_in_words_counts_as_torchs(form: str) -> None:
    entries = {**SIZES, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    entries["rope_parameters"] = {"rope_type": "default", "rope_theta": 10_000.0}
    config = AutoConfig.for_model(
        "apertus", **entries
    )  # its activation is built in the configuration's dtype
    whole = parameter_counts(config)["total"]
    model = AutoModelForCausalLM.from_config(config)
    config.dtype = model.config.dtype = "float32"  # as save_pretrained leaves it
    if form == "pruned":
        prune_(model, [2])
    assert parameter_counts(config if form == "config" else model)["total"] == (
        whole if form != "pruned" else sum(p.numel() for p in model.parameters())
    )
    assert config.dtype == "float32"  # the caller's stays
