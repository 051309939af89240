"""Loading: what is there loads as it is; what is not whole is refused in one line, before any long work."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import edit, refused
from safetensors.torch import load_file, save_file
from tiny import LAYERS, SIZES, tiny_model, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

import workbench as wb
from workbench.models.identity import describe_model
from workbench.models.loading import load_model
from workbench.pruning.removal import prune_
from workbench.pruning.saving import save_pruned

# what is there --------------------------------------------------------------------------------------------


def test_the_folder_that_one_is_in_is_a_name(tmp_path, monkeypatch):
    tiny_model("llama").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in (".", Path()):
        assert describe_model(wb.load_model(name)[0])["id"] == str(tmp_path)


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
    refused("the tokenizer is not the model's: it has 330 entries .* the model knows 300", copied)


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
    refused("weights are missing or of another shape, such as", tmp_path)
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


@pytest.mark.parametrize("kind", [torch.int8, torch.bool, torch.uint8, torch.float8_e4m3fn], ids=str)
def test_whole_numbers_without_a_scale_are_no_weights(copied: Path, kind: torch.dtype) -> None:
    file = copied / "model.safetensors"
    key = "model.layers.2.mlp.up_proj.weight"
    tensors = load_file(file)
    save_file({**tensors, key: tensors[key].to(kind)}, file, metadata={"format": "pt"})
    refused(rf"{key} is stored as \w+, and config.json has no quantization_config", copied)


def test_whole_numbers_that_are_no_weights_are_fine(tmp_path: Path) -> None:
    """Masks that old checkpoints keep beside their weights."""
    tiny_model("gpt2").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    mask = {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool)}
    save_file(load_file(file) | mask, file, metadata={"format": "pt"})
    load_model(tmp_path, device="cpu")


def test_more_layers_in_the_files_than_in_the_configuration(copied: Path) -> None:
    edit(copied / "config.json", num_hidden_layers=5)
    refused("the files hold more layers than the 5 of the configuration, such as model.layers.5", copied)


def test_fewer_layers_in_the_files_than_in_the_configuration(copied: Path) -> None:
    edit(copied / "config.json", num_hidden_layers=9)
    refused("are missing or of another shape", copied)


def test_plain_transformers_reads_what_load_model_reads(saved: Path) -> None:
    ours, theirs = load_model(saved, device="cpu")[0], AutoModelForCausalLM.from_pretrained(saved)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


# configurations that no model can have --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers must be from 1 to 10000, got 0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers must be from 1 to 10000, got -1"),
        (
            {"num_hidden_layers": "16"},
            "config.json cannot be used: .*'num_hidden_layers' expected int, got str",
        ),
        (
            {"num_hidden_layers": 1.5},
            "config.json cannot be used: .*'num_hidden_layers' expected int, got float",
        ),
        ({"hidden_size": 7}, r"cannot be used: .*hidden size \(7\) is not a multiple of the number of att"),
        ({"num_attention_heads": 0}, "cannot be used: ZeroDivisionError"),
        ({"hidden_act": "foo"}, "no model can be built of its config.json: KeyError: 'foo'"),
        (
            {"rope_parameters": {"rope_type": "foo"}},
            "no model can be built of its config.json: KeyError: 'foo'",
        ),
        ({"rope_scaling": "x"}, "config.json cannot be used: .*'rope_parameters'"),
        (
            {"num_key_value_heads": 2},
            r"are missing or of another shape, such as .*k_proj.bias \[18\], not \[12\]",
        ),
        ({"num_hidden_layers": 10**9}, "from 1 to 10000, got 1000000000"),
        ({"vocab_size": 10**13}, "cannot be loaded: RuntimeError: "),
        ({"pad_token_id": 10**6}, "no model can be built of its config.json: AssertionError: Padding_idx"),
        ({"architectures": 5}, "architectures must be a list of names, got 5"),
        ({"architectures": [5]}, r"architectures must be a list of names, got \[5\]"),
        ({"architectures": "x"}, "is a x, which has no language-model head"),
        ({"dtype": "floaty"}, "config.json cannot be used: .*floaty"),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            "needs a package that is not here: .*GPTQ",
        ),
        (
            {"quantization_config": {"quant_method": "awq", "bits": 4}},
            "needs a package that is not here: .*AWQ",
        ),
    ],
    ids=str,
)
def test_a_configuration_that_no_model_can_have(copied: Path, entries: dict[str, Any], message: str) -> None:
    edit(copied / "config.json", **entries)
    refused(message, copied, device="cpu")


@pytest.mark.parametrize("content", ["[1]", "5", "null", "", '"text"'])
def test_a_configuration_that_is_no_object(copied: Path, content: str) -> None:
    (copied / "config.json").write_text(content)
    refused("config.json cannot be used", copied)


@pytest.mark.parametrize("content", ["{}", "[]", '{"metadata": {}, "weight_map": [1]}', "{ not json"])
def test_a_broken_index_of_shards(tmp_path: Path, content: str) -> None:
    shard(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(content)
    refused("is no index of weight files: download it again", tmp_path)


@pytest.mark.parametrize("name", ["../weights.safetensors", "{tmp}/weights.safetensors", "x.bin", 5, None])
def test_weights_are_never_read_from_another_place_or_a_pickle(tmp_path: Path, name: Any) -> None:
    folder = tmp_path / "model"
    shard(folder)
    shutil.copy(next(folder.glob("*.safetensors")), tmp_path / "weights.safetensors")
    torch.save({}, folder / "x.bin")
    index = folder / "model.safetensors.index.json"
    named = name.format(tmp=tmp_path) if isinstance(name, str) else name
    edit(index, weight_map=dict.fromkeys(json.loads(index.read_text())["weight_map"], named))
    refused("weights are read from safetensors files of the folder only", folder)


def test_files_too_deep_to_be_read_are_named(copied: Path) -> None:
    before = (copied / "generation_config.json").read_text()
    (copied / "generation_config.json").write_text("[" * 100_000)
    refused("no model can be built of its config.json: RecursionError", copied)
    (copied / "generation_config.json").write_text(before)
    (copied / "model.safetensors.index.json").write_text("[" * 100_000)
    refused("is no index of weight files: download it again", copied)


def test_a_broken_chat_template(copied: Path) -> None:
    (copied / "chat_template.jinja").write_text("{% if %}")
    refused("its chat template cannot be used: TemplateSyntaxError: Expected an expression", copied)


@pytest.mark.parametrize(
    "place", ["cpu", {"": "cpu"}, {"": torch.device("cpu")}, torch.device("cpu")], ids=str
)
def test_a_device_map_of_one_device_is_that_device(place: Any) -> None:
    assert load_model("demo", device_map=place)[0].device.type == "cpu"


@pytest.mark.parametrize(
    "place",
    ["auto", "balanced", {"": "auto"}, {}, {"model.norm": "cpu", "lm_head": "disk"}, ["cpu"]],
    ids=str,
)
def test_a_device_map_of_several_devices_is_refused(place: Any) -> None:
    refused(r"^device_map must be one device such as 'cpu' .*, got .*$", "demo", device_map=place)
    refused("^device_map must be one device .* with device=None", "demo", device_map="cpu", device="cpu")


@pytest.mark.parametrize("device", ["meta", "mps", "xpu", [1]], ids=str)
def test_devices_that_are_not_here(device: Any) -> None:
    refused(
        r"device '(meta|mps|xpu)' (is not here|holds no weights)|device must be None", "demo", device=device
    )


@pytest.mark.parametrize("architecture", ["gpt2", "bloom", "falcon", "opt", "gpt-neox"])
def test_layers_beyond_the_configuration_whatever_the_list_is_called(
    architecture: str, tmp_path: Path
) -> None:
    tiny_model(architecture).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    names = {"gpt2": "n_layer", "bloom": "n_layer"}
    edit(tmp_path / "config.json", **{names.get(architecture, "num_hidden_layers"): 5})
    refused(
        r"the files hold more layers than the 5 of the configuration, such as .*\.5\.", tmp_path, device="cpu"
    )


LATENT = {
    "q_lora_rank": 12,
    "kv_lora_rank": 10,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 8,
}
LATENT |= {"n_routed_experts": 4, "moe_topk": 2, "zero_expert_num": 1}


def test_a_model_whose_layers_cannot_be_told_is_refused_by_its_class(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "longcat_flash",
        **SIZES | LATENT | {"num_layers": 3, "ffn_hidden_size": 20, "expert_ffn_hidden_size": 8},
    )
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match=r"LongcatFlashForCausalLM has \d") as caught:
        prune_(model, [0])
    assert "\n" not in str(caught.value)


# code of a repository -------------------------------------------------------------------------------------

PAYLOAD = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({marker!r}).write_text("ran")


class OtherConfig(LlamaConfig):
    model_type = "llama"


class OtherModel(LlamaForCausalLM):
    config_class = OtherConfig
"""
NATIVE = {"AutoModelForCausalLM": "payload.OtherModel"}


def with_payload(folder: Path, marker: Path, auto_map: dict[str, str]) -> Path:
    """Let a folder's configuration name code that leaves a marker when it runs."""
    edit(folder / "config.json", auto_map=auto_map)
    (folder / "payload.py").write_text(PAYLOAD.format(marker=str(marker)))
    return folder


@pytest.mark.parametrize(
    "auto_map",
    [
        NATIVE,
        NATIVE | {"AutoConfig": "payload.OtherConfig"},
        {"AutoModel": "payload.OtherModel"},
        {"AutoModelForCausalLM": "no_such_file.OtherModel"},
    ],
    ids=str,
)
def test_code_of_a_repository_runs_neither_at_load_nor_when_saved(
    copied: Path, tmp_path: Path, auto_map: dict[str, str]
) -> None:
    marker = tmp_path / "marker"
    model, tokenizer = load_model(with_payload(copied, marker, auto_map), device="cpu")
    assert type(model) is LlamaForCausalLM
    before = dict(vars(model.config))
    folder = save_pruned(prune_(model, [3]), tokenizer, tmp_path / "pruned")
    assert "auto_map" not in (folder / "config.json").read_text()
    assert model.config.auto_map == before["auto_map"], "the model in memory keeps what it had"
    again, _ = load_model(folder, device="cpu")
    assert type(again) is LlamaForCausalLM
    assert not marker.exists()


def test_code_that_points_elsewhere_does_not_run(copied: Path, saved: Path, tmp_path: Path) -> None:
    other, marker = tmp_path / "other", tmp_path / "marker"
    with_payload(shutil.copytree(saved, other), marker, NATIVE)
    edit(copied / "config.json", auto_map={"AutoModelForCausalLM": f"{other}--payload.OtherModel"})
    model, tokenizer = load_model(copied, device="cpu")
    save_pruned(model, tokenizer, tmp_path / "pruned")
    assert not marker.exists()


def test_code_that_was_trusted_runs_and_stays(copied: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    with_payload(copied, marker, NATIVE | {"AutoConfig": "payload.OtherConfig"})
    model, tokenizer = load_model(copied, device="cpu", trust_remote_code=True)
    assert marker.exists()
    assert type(model).__name__ == "OtherModel"
    folder = save_pruned(prune_(model, [3]), tokenizer, tmp_path / "pruned")
    assert json.loads((folder / "config.json").read_text())["auto_map"]["AutoModelForCausalLM"]


# tokenizers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "gpt2", "gemma2"])
def test_a_tokenizer_reads_what_its_file_says(architecture: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    tiny_model(architecture).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    _, tokenizer = load_model(tmp_path, device="cpu")
    file = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("Anna has 12 apples, and she'll eat 3.", "über  zwei\n\nZeilen", "<|user|>Hi<|end|>"):
        assert tokenizer(text)["input_ids"] == file.encode(text).ids
    assert (tokenizer.padding_side, tokenizer.pad_token_id) == ("left", 0)
    assert tokenizer.chat_template


# the hub --------------------------------------------------------------------------------------------------


def in_the_cache(cache: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a model into a cache of the hub as acme/tiny, and let no socket reach anything."""
    repository = cache / "models--acme--tiny"
    shutil.copytree(saved, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def blocked(*_: Any, **__: Any) -> None:
        raise OSError("no network here")

    monkeypatch.setattr("socket.socket.connect", blocked)
    monkeypatch.setattr("socket.getaddrinfo", blocked)


COMMIT = "a" * 40


def test_a_model_of_the_hub_loads_from_the_cache_without_network_and_at_once(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_cache(tmp_path, saved, monkeypatch)
    begun = time.monotonic()
    model, _ = load_model("acme/tiny", device="cpu")
    assert time.monotonic() - begun < 20
    described = describe_model(model)
    assert (described["id"], described["revision"]) == ("acme/tiny", COMMIT)
    assert describe_model(load_model("acme/tiny", revision=COMMIT, device="cpu")[0])["revision"] == COMMIT
    refused("'acme/tiny' is no folder here and the hub did not give it", "acme/tiny", revision="b" * 40)
    refused("'acme/other' is no folder here and the hub did not give it", "acme/other")


def test_a_half_downloaded_cache_is_named(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_cache(tmp_path, saved, monkeypatch)
    snapshot = tmp_path / "models--acme--tiny" / "snapshots" / COMMIT
    (snapshot / "model.safetensors").unlink()
    refused("name 'acme/tiny': its weights are not all there", "acme/tiny")


@pytest.mark.parametrize("name", ["chat_template.jinja", "generation_config.json", "tokenizer.json"])
@pytest.mark.parametrize("kind", ["pipe", "broken link", "device"])
def test_what_is_no_file_in_a_model_folder_is_refused(copied: Path, name: str, kind: str) -> None:
    (copied / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(copied / name)
    else:
        (copied / name).symlink_to("/dev/zero" if kind == "device" else copied / "nowhere")
    with pytest.raises(ValueError, match=f"not a whole model folder: {name} is no file"):
        load_model(copied, device="cpu")


def test_a_tokenizer_that_makes_its_library_give_up_is_refused(copied: Path) -> None:
    file = json.loads((copied / "tokenizer.json").read_text())
    endless = {"Regex": "(a+)+$"}
    file["pre_tokenizer"] = {"type": "Split", "pattern": endless, "behavior": "Isolated", "invert": False}
    (copied / "tokenizer.json").write_text(json.dumps(file))
    model, tokenizer = load_model(copied, device="cpu")
    with pytest.raises(ValueError, match=r"the tokenizer cannot read a text: .*retry-limit-in-match"):
        wb.perplexity(model, tokenizer, ["a" * 40 + "!"], progress=False)


@pytest.mark.parametrize(("part", "inside"), [("normalizer", "normalizers"), ("decoder", "decoders")])
def test_a_tokenizer_whose_rules_multiply_a_text_is_refused(copied: Path, part: str, inside: str) -> None:
    file = json.loads((copied / "tokenizer.json").read_text())
    rule = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 50}
    whole = dict(file)
    for rules, allowed in (([rule], True), ([rule] * 3, False)):
        file[part] = {"type": "Sequence", inside: [{"type": "Sequence", inside: rules}]}
        (copied / "tokenizer.json").write_text(json.dumps(whole | {part: file[part]}))
        if allowed:
            load_model(copied, device="cpu")
        else:
            refused(f"the {part} of tokenizer.json must make a text at most 1000 times as long", copied)


def test_a_token_that_ends_responses_must_be_a_number(copied: Path) -> None:
    edit(copied / "generation_config.json", eos_token_id=["end"])
    with pytest.raises(ValueError, match=r"eos_token_id must be the number of a token, got .'end'."):
        load_model(copied, device="cpu")


def test_a_model_that_would_return_other_things_than_it_is_asked_for_runs(copied: Path) -> None:
    edit(copied / "config.json", return_dict=False, output_hidden_states=True)
    model, _ = load_model(copied, device="cpu")
    found = model(torch.tensor([[5, 6]]))
    assert found.logits.shape[1] == 2 and found.hidden_states is None


@pytest.mark.parametrize("said", ["Bert\x1b[31mForMaskedLM", "x\x1b]0;y\x07ForThings"])
def test_what_a_checkpoint_spells_is_no_order_to_the_terminal(copied: Path, said: str) -> None:
    config = json.loads((copied / "config.json").read_text())
    weights = load_file(copied / "model.safetensors")
    for name, value in {"architectures": [said], "model_type": said, "dtype": said}.items():
        (copied / "config.json").write_text(json.dumps({**config, name: value}))
        with pytest.raises(ValueError, match="name") as error:
            load_model(copied)
        assert str(error.value).isprintable()
    (copied / "config.json").write_text(json.dumps(config))
    weights[f"model.layers.99.{said}.weight"] = next(iter(weights.values())).clone()
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="more layers than") as error:
        load_model(copied)
    assert str(error.value).isprintable()
