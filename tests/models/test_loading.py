"""Loading: what is there loads as it is; what is not whole is refused in one line, before any long work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import LAYERS, tiny_config, tiny_model, tiny_tokenizer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from workbench.models import checkpoints
from workbench.models.identity import describe_model
from workbench.models.loading import load_model
from workbench.places import ROOT
from workbench.pruning.removal import prune_, without_layers
from workbench.pruning.saving import save_pruned


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a whole tiny model; tests that spoil it take a copy."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "model")


def edit(file: Path, **entries: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


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


# what is described ----------------------------------------------------------------------------------------


def test_a_description_is_plain_and_the_same_after_a_reload(saved: Path) -> None:
    first, second = (describe_model(load_model(saved, device="cpu")[0]) for _ in range(2))
    assert first == second == json.loads(json.dumps(first))
    assert first["id"] == str(saved)
    assert first | {"id": "", "weights": ""} == {
        "id": "",
        "revision": None,
        "architecture": "LlamaForCausalLM",
        "dtype": "float32",
        "n_layers": LAYERS,
        "kept_layers": list(range(LAYERS)),
        "weights": "",
    }


def test_a_description_tells_other_weights_under_the_same_name() -> None:
    model = tiny_model("llama")
    before = describe_model(model)
    with torch.no_grad():
        model.model.layers[3].mlp.up_proj.weight.mul_(1.001)
    after = describe_model(model)
    assert before["weights"] != after["weights"]
    assert before | {"weights": ""} == after | {"weights": ""}


def test_a_description_follows_a_look_and_an_adapter() -> None:
    import peft

    model = tiny_model("llama")
    whole = describe_model(model)
    with without_layers(model, [1]):
        assert describe_model(model)["kept_layers"] == [0, 2, 3, 4, 5, 6]
    assert describe_model(model) == whole
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    assert describe_model(wrapped)["weights"] != whole["weights"]
    assert describe_model(wrapped)["architecture"] == "LlamaForCausalLM"


def test_a_folder_in_the_checkout_is_named_by_its_place_there() -> None:
    model = tiny_model("llama")
    model.config._name_or_path = str(ROOT / "data" / "runs" / "demo" / "pruned")
    assert describe_model(model)["id"] == "data/runs/demo/pruned"


# what is not there ----------------------------------------------------------------------------------------


def refused(message: str, *args: Any, **options: Any) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_model(*args, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["./no/such/folder", "/no/such/folder", "~/no-such-folder", Path("none"), "a/b/c"]
)
def test_a_missing_folder(name: Any) -> None:
    refused("name must be 'demo', an existing folder or a hub id .* there is no folder", name)


def test_a_hub_id_that_cannot_be_had_is_refused_at_once() -> None:
    refused(
        "'no-such-org/no-such-model' is no folder here and the hub did not give it",
        "no-such-org/no-such-model",
    )


def test_names_that_are_no_names() -> None:
    refused("name must be text or a path, got NoneType", None)
    refused("'my model' is no folder here and the hub did not give it", "my model")
    refused("is not a model folder", "")


def test_the_demo_model_says_how_to_make_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checkpoints, "demo_path", lambda part: tmp_path)
    refused("make it with `python data/demo/train.py`", "demo")
    refused("make it with `python data/demo/train.py`")


def test_a_file_an_empty_folder_an_adapter(tmp_path: Path, saved: Path) -> None:
    refused("is a file", saved / "config.json")
    refused("no config.json; it is empty", tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    refused("no config.json; it is an adapter: load its base model, then with_adapter", tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float8"}, "dtype must be one of float32, bfloat16, float16 or None, got 'float8'"),
        ({"dtype": torch.int8}, "dtype must be one of"),
        ({"device": "gpu"}, "device must be None, 'cpu', 'cuda'"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not here: torch sees"),
        ({"quantization": "int3"}, "quantization must be 'nf4' or None, got 'int3'"),
    ],
)
def test_bad_options_are_refused_before_the_name_is_looked_at(options: dict[str, Any], message: str) -> None:
    refused(message, "no-such-org/no-such-model", **options)


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


def test_a_broken_configuration(copied: Path) -> None:
    (copied / "config.json").write_text("{ not json")
    refused("its config.json cannot be used", copied)


def test_no_tokenizer(copied: Path) -> None:
    (copied / "tokenizer.json").unlink()
    refused("has no tokenizer .none of tokenizer.json", copied)
    (copied / "tokenizer.json").write_text("{}")
    refused("has no tokenizer that can be loaded", copied)


def test_a_tokenizer_of_another_model(copied: Path) -> None:
    tiny_model("llama", vocab_size=300).save_pretrained(copied)
    refused("the tokenizer is not the model's: it has 330 entries .* the model knows 300 tokens", copied)


def test_no_weights_and_pickled_weights(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    refused("has no weights: model.safetensors is missing; it holds", copied)
    torch.save(tiny_model("llama").state_dict(), copied / "pytorch_model.bin")
    refused("has only pickled weights .pytorch_model.bin., which can run code", copied)


@pytest.mark.parametrize("content", ["half", "pointer", "nothing"])
def test_a_half_downloaded_file(copied: Path, content: str) -> None:
    file = copied / "model.safetensors"
    whole = file.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    file.write_bytes({"half": whole[: len(whole) // 2], "pointer": pointer, "nothing": b""}[content])
    refused("model.safetensors is not a whole safetensors file", copied)


def test_missing_and_exchanged_shards(tmp_path: Path) -> None:
    shard(tmp_path)
    files = sorted(tmp_path.glob("model-*.safetensors"))
    shutil.copy(files[0], files[1])
    refused(f"{files[1].name} lacks .* tensors of the index", tmp_path)
    files[1].unlink()
    files[2].unlink()
    refused(f"is only half there: 2 of {len(files)} weight files are missing .{files[1].name}, ", tmp_path)


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


def test_kept_layers_that_do_not_fit(copied: Path) -> None:
    edit(copied / "config.json", kept_layers=[0, 1, 2])
    model, _ = load_model(copied, device="cpu")
    with pytest.raises(ValueError, match="kept_layers in the model's configuration must be 7 rising numbers"):
        describe_model(model)


def test_a_model_whose_layers_were_deleted_by_hand() -> None:
    model = tiny_model("llama")
    model.model.layers = model.model.layers[:4]
    with pytest.raises(
        ValueError, match=r"one list as long as its configuration says .7.; .* has 0 such lists"
    ):
        prune_(model, [0])
    with pytest.raises(ValueError, match="model must be a transformers model, got Linear"):
        prune_(nn.Linear(2, 2), [0])


def test_equal_depths_of_vision_and_text_do_not_confuse(tmp_path: Path) -> None:
    config = tiny_config("gemma3-multimodal")
    config.vision_config.num_hidden_layers = LAYERS
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_config(config)
    prune_(model, [0])
    assert len(model.model.language_model.layers) == LAYERS - 1
    assert model.config.vision_config.num_hidden_layers == LAYERS


def test_plain_transformers_reads_what_load_model_reads(saved: Path) -> None:
    ours, theirs = load_model(saved, device="cpu")[0], AutoModelForCausalLM.from_pretrained(saved)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
