"""What is no decoder-only model is refused in one line, before any weight is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import edit, refused
from tiny import tiny_model
from transformers import AutoConfig

from workbench.models import checkpoints


def test_a_folder_and_the_demo_model_are_located(saved: Path) -> None:
    assert checkpoints.locate(str(saved)) == checkpoints.locate(saved) == str(saved)
    assert checkpoints.locate("demo").endswith("data/demo/model")


@pytest.mark.parametrize(
    "name", ["./no/such/folder", "/no/such/folder", "~/no-such-folder", Path("none"), "a/b/c"]
)
def test_a_missing_folder(name: Any) -> None:
    refused(
        "name must be 'demo', 'smollm2', an existing folder, a .gguf file or a hub id .* there is no folder",
        name,
    )


def test_a_hub_id_that_cannot_be_had_is_refused_at_once() -> None:
    refused(
        "'no-such-org/no-such-model' is no folder here and the hub did not give it",
        "no-such-org/no-such-model",
    )


def test_names_that_are_no_names() -> None:
    refused(
        "'demo', 'smollm2', an existing folder, a .gguf file or a hub id such as 'org/model', got None",
        None,
    )
    refused(r"'smolm2' \(did you mean smollm2\?\) is no folder here and the hub did not give it", "smolm2")
    refused("'my model' is no folder here and the hub did not give it", "my model")
    refused(
        "'demo', 'smollm2', an existing folder, a .gguf file or a hub id such as 'org/model', got ''",
        "",
    )
    refused("is no folder here and the hub did not give it", "x" * 300)
    refused("there is no folder", "./" + "x" * 300)


def test_the_demo_model_says_how_to_make_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checkpoints, "demo_path", lambda part: tmp_path)
    refused("make it with `python data/demo/train.py`", "demo")
    refused("make it with `python data/demo/train.py`")


def test_a_file_an_empty_folder_an_adapter(tmp_path: Path, saved: Path) -> None:
    refused("is a file", saved / "config.json")
    refused("it has no config.json", tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    refused("no config.json; it is an adapter: load its base model, then with_adapter", tmp_path)


def test_gguf_weights_are_named(copied: Path, tmp_path: Path) -> None:
    (copied / "model.safetensors").rename(copied / "model-q4.gguf")
    refused("has no safetensors weights; it has GGUF weights: give that file itself, .*model-q4.gguf", copied)
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "m.gguf").write_bytes(b"GGUF")
    refused("no config.json; it has GGUF weights: give that file itself, .*m.gguf", tmp_path / "only")


def test_a_revision_is_for_the_hub(saved: Path) -> None:
    refused("revision must be None for a model on disk, got 'main'", saved, revision="main")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "is an encoder .bert."),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "is an encoder-decoder .t5."),
        ({"model_type": "bart", "architectures": ["BartForCausalLM"]}, "is an encoder-decoder .bart."),
        ({"model_type": "vit", "architectures": ["ViTModel"]}, "no language model that transformers knows"),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            "is a LlamaForSequenceClassification, which has no language-model head",
        ),
        ({"architectures": ["LlamaModel"]}, "is a LlamaModel, which has no language-model head"),
        ({"model_type": "no-such-type"}, "its config.json cannot be used"),
    ],
)
def test_what_is_no_decoder_only_model(copied: Path, entries: dict[str, Any], message: str) -> None:
    config = entries if entries.get("model_type") in ("bert", "t5", "bart", "vit") else None
    if config:
        (copied / "config.json").write_text(json.dumps(config))
    else:
        edit(copied / "config.json", **entries)
    refused(message, copied)


def test_every_encoder_and_encoder_decoder_is_told_from_a_decoder() -> None:
    refused_types = {"bert", "roberta", "electra", "xlm-roberta", "t5", "bart", "whisper", "marian"}
    for kind in sorted(refused_types):
        with pytest.raises(ValueError, match="name must be a decoder-only language model"):
            checkpoints.check_decoder_only(AutoConfig.for_model(kind), kind)
    for kind in ("gpt_neox", "gpt2", "llama", "gemma3", "qwen2_vl", "llava", "opt"):
        checkpoints.check_decoder_only(AutoConfig.for_model(kind), kind)
    decoder = AutoConfig.for_model("bert", is_decoder=True, architectures=["BertLMHeadModel"])
    checkpoints.check_decoder_only(decoder, "a BERT trained as a decoder")


def test_no_tokenizer(copied: Path) -> None:
    (copied / "tokenizer.json").unlink()
    refused("has no tokenizer .none of tokenizer.json", copied)
    (copied / "tokenizer.json").write_text("{}")
    refused("has no tokenizer that can be loaded", copied)


def test_pickled_weights(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    torch.save(tiny_model("llama").state_dict(), copied / "pytorch_model.bin")
    refused("has pickled weights, which can run code .pytorch_model.bin.", copied)
