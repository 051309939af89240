"""Loading: what is there loads as it is; what is not whole is refused in one line, before any long work."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import edit, refused
from safetensors.torch import load_file, save_file
from tiny import LAYERS, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from workbench.models.identity import describe_model
from workbench.models.loading import load_model
from workbench.pruning.removal import prune_
from workbench.pruning.saving import save_pruned

# what is there --------------------------------------------------------------------------------------------


def test_a_model_loads_ready_to_use(saved: Path) -> None:
    model, tokenizer = load_model(saved, device="cpu")
    assert not model.training
    assert model.dtype == torch.float32
    assert tokenizer.padding_side == "left"
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id == 0
    ids = tokenizer("Anna has 12", return_tensors="pt").input_ids
    expected = tiny_model("llama")(ids).logits
    assert torch.equal(model(ids).logits, expected)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16, "torch.bfloat16"], ids=str)
def test_dtype(saved: Path, dtype: Any) -> None:
    model, _ = load_model(str(saved), dtype=dtype, device="cpu")
    assert model.dtype == torch.bfloat16
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_a_missing_padding_token_is_the_end_token(copied: Path) -> None:
    edit(copied / "tokenizer_config.json", pad_token=None)
    _, tokenizer = load_model(copied, device="cpu")
    assert tokenizer.pad_token == tokenizer.eos_token == "<|end|>"


def test_the_text_part_of_a_multimodal_model_is_found(tmp_path: Path) -> None:
    tiny_model("gemma3-multimodal").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model, _ = load_model(tmp_path, device="cpu")
    assert describe_model(model)["n_layers"] == LAYERS
    assert describe_model(model)["architecture"] == "Gemma3ForConditionalGeneration"


def test_a_pruned_folder_keeps_its_original_indices(tmp_path: Path) -> None:
    save_pruned(prune_(tiny_model("llama"), [2, 3]), tiny_tokenizer(), tmp_path / "pruned")
    model, _ = load_model(tmp_path / "pruned", device="cpu")
    assert describe_model(model)["kept_layers"] == [0, 1, 4, 5, 6]
    assert describe_model(prune_(model, [4]))["kept_layers"] == [0, 1, 5, 6]


def test_sharded_weights_load(tmp_path: Path) -> None:
    shard(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    model, _ = load_model(tmp_path, device="cpu")
    assert torch.equal(model.lm_head.weight, tiny_model("llama").lm_head.weight)


def shard(folder: Path) -> None:
    tiny_model("llama").save_pretrained(folder, max_shard_size="100KB")
    tiny_tokenizer().save_pretrained(folder)


# what is not there ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float8"}, "dtype must be one of float32, bfloat16, float16, None, got 'float8'"),
        ({"dtype": torch.int8}, "dtype must be one of"),
        ({"device": "gpu"}, "device must be None, 'cpu', 'cuda'"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not here: torch sees"),
        ({"quantization": "int3"}, "quantization must be one of nf4, None, got 'int3'"),
    ],
)
def test_bad_options_are_refused_before_the_name_is_looked_at(options: dict[str, Any], message: str) -> None:
    refused(message, "no-such-org/no-such-model", **options)


def test_a_broken_configuration(copied: Path) -> None:
    (copied / "config.json").write_text("{ not json")
    refused("its config.json cannot be used", copied)


def test_a_tokenizer_of_another_model(copied: Path) -> None:
    tiny_model("llama", vocab_size=300).save_pretrained(copied)
    refused("the tokenizer is not the model's: it has 330 entries .* the model knows 300 tokens", copied)


@pytest.mark.parametrize("content", ["half", "pointer", "nothing"])
def test_a_half_downloaded_file(copied: Path, content: str) -> None:
    file = copied / "model.safetensors"
    whole = file.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    file.write_bytes({"half": whole[: len(whole) // 2], "pointer": pointer, "nothing": b""}[content])
    refused("its weights are not all there, or not whole: .*; download or save them again", copied)


def test_missing_and_exchanged_shards(tmp_path: Path) -> None:
    shard(tmp_path)
    files = sorted(tmp_path.glob("model-*.safetensors"))
    shutil.copy(files[0], files[1])
    refused("weights that the configuration asks for are missing or of another shape, such as", tmp_path)
    files[1].unlink()
    refused(f"its weights are not all there, or not whole: No such file .*{files[1].name}", tmp_path)


def test_no_weights(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    refused("its weights are not all there, or not whole: .* no file named model.safetensors", copied)


def test_a_missing_weight_is_never_random(copied: Path) -> None:
    file = copied / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    refused(
        r"1 weights .* missing .* such as model.layers.2.mlp.up_proj.weight; they would be random", copied
    )


def test_more_layers_in_the_files_than_in_the_configuration(copied: Path) -> None:
    edit(copied / "config.json", num_hidden_layers=5)
    refused("the files hold more layers than the 5 of the configuration, such as model.layers.5", copied)


def test_fewer_layers_in_the_files_than_in_the_configuration(copied: Path) -> None:
    edit(copied / "config.json", num_hidden_layers=9)
    refused("weights that the configuration asks for are missing", copied)


def test_plain_transformers_reads_what_load_model_reads(saved: Path) -> None:
    ours, theirs = load_model(saved, device="cpu")[0], AutoModelForCausalLM.from_pretrained(saved)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
