"""What is saved reloads as the same function, or nothing is left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cutting import TOKENIZER, assert_same, logits, state
from folders import edit
from skipping import skipping
from tiny import LAYERS, SIZES, VISION, randomise_, tiny_model, tiny_tokenizer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

import workbench as wb
from workbench.distances.damage import block_damage
from workbench.models.layers import decoder_layers, kept_layers
from workbench.models.loading import load_model
from workbench.pruning.removal import prune_, without_layers
from workbench.pruning.saving import outputs, save_pruned


def test_a_pass_in_two_parts_gives_what_one_pass_gives() -> None:
    model = tiny_model("llama")
    ids = torch.arange(9)[None] + 5
    with torch.no_grad():
        whole = outputs(model, "logits", ids, cached=False)
        torch.testing.assert_close(outputs(model, "logits", ids, cached=True), whole)
        recurrent = tiny_model("rwkv")  # has no cache to go on from
        whole = outputs(recurrent, "logits", ids, cached=False)
        assert torch.equal(outputs(recurrent, "logits", ids, cached=True), whole)


def test_a_saved_folder_says_where_it_comes_from(tmp_path: Path) -> None:
    model = prune_(tiny_model("llama"), [2, 3])
    folder = save_pruned(model, TOKENIZER, tmp_path / "new" / "saved")
    provenance = json.loads((folder / "pruning.json").read_text())
    assert provenance["kept_layers"] == [0, 1, 4, 5, 6]
    assert provenance["removed_layers"] == [2, 3]
    assert provenance["original_layers"] == LAYERS
    assert provenance["parameters"] == sum(p.numel() for p in model.parameters())
    assert provenance["reload_check"]["largest_logit_difference_in_std"] == 0
    assert "without 2 of its" in (folder / "README.md").read_text()
    assert json.loads((folder / "config.json").read_text())["kept_layers"] == [0, 1, 4, 5, 6]
    assert not list(folder.glob("*.bin"))
    assert [path.name for path in folder.parent.iterdir()] == ["saved"], "a temporary folder is left"


def test_saving_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = tiny_model("llama").train()
    before = state(model)
    with without_layers(model, [2, 3]):
        save_pruned(model, TOKENIZER, tmp_path / "saved")
    assert_same(before, state(model))
    assert model.training


def test_an_own_folder_is_replaced_and_a_foreign_one_is_not(tmp_path: Path) -> None:
    model = prune_(tiny_model("llama"), [2])
    (tmp_path / "empty").mkdir()
    save_pruned(model, TOKENIZER, tmp_path / "empty")
    save_pruned(prune_(model, [3]), TOKENIZER, tmp_path / "empty")
    assert kept_layers(AutoModelForCausalLM.from_pretrained(tmp_path / "empty")) == (0, 1, 4, 5, 6)

    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    for path in (tmp_path / "thesis", tmp_path / "thesis" / "chapter.txt"):
        with pytest.raises(ValueError, match="path must be"):
            save_pruned(model, TOKENIZER, path)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    "name", ["notes.md", "model-00003-of-00003.safetensors", "checkpoints/step-1.pt", "a.py"]
)
def test_files_that_someone_added_to_an_own_folder_are_not_deleted(name: str, tmp_path: Path) -> None:
    model = prune_(tiny_model("llama"), [2])
    folder = save_pruned(model, TOKENIZER, tmp_path / "saved")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("years of work")
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match=rf"nobody added to; .* holds other files \({name.split('/')[0]}\)"):
        save_pruned(model, TOKENIZER, folder)
    assert sorted(folder.rglob("*")) == before
    assert (folder / name).read_text() == "years of work"


@pytest.mark.parametrize("content", ["{}", "[1]", "no json", '{"my": "plan"}'])
def test_a_record_of_someone_else_makes_no_folder_ours(content: str, tmp_path: Path) -> None:
    (tmp_path / "pruning.json").write_text(content)
    with pytest.raises(ValueError, match=r"holds other files .pruning.json."):
        save_pruned(tiny_model("llama"), TOKENIZER, tmp_path)
    assert (tmp_path / "pruning.json").read_text() == content


def unfaithful_models() -> dict[str, tuple[nn.Module, str]]:
    scaled = tiny_model("llama")
    decoder_layers(scaled)[1].self_attn.scaling *= 2
    by_hand = tiny_model("llama")
    by_hand.model.layers = by_hand.model.layers[:4]
    by_hand.config.num_hidden_layers = 4
    by_hand.config.kept_layers = [0, 1, 2]
    not_finite = tiny_model("llama")
    with torch.no_grad():
        not_finite.lm_head.weight[3, 3] = torch.inf
    return {
        "a setting that the configuration does not hold": (scaled, "is another function"),
        "kept layers that are not those of the model": (by_hand, "kept_layers must be 4 rising numbers"),
        "logits that are not finite": (not_finite, "logits are not finite"),
        "frequencies rounded in memory only": (tiny_model("llama").bfloat16(), "reloads in another dtype"),
        "no weights": (tiny_model("llama").to("meta"), "must have its weights in memory"),
    }


@pytest.mark.parametrize("case", list(unfaithful_models()))
def test_what_does_not_reload_as_the_same_function_is_not_saved(case: str, tmp_path: Path) -> None:
    model, message = unfaithful_models()[case]
    with pytest.raises(ValueError, match=message):
        save_pruned(model, TOKENIZER, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_reads_otherwise_after_a_reload_is_not_saved(tmp_path: Path) -> None:
    # transformers gives every Qwen2 model the Qwen2 way of splitting words, whatever tokenizer was saved
    with pytest.raises(ValueError, match="the tokenizer reads other tokens"):
        save_pruned(tiny_model("qwen2"), TOKENIZER, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


# models of images and texts ------------------------------------------------------------------------------

_IMAGES = {"image_token_id": 330, "image_token_index": 330}
_MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
_PATCHES = {"depth": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 20, "out_hidden_size": 36}
_MARKS = {"video_token_id": 329, "vision_start_token_id": 328, "vision_end_token_id": 327}


def wrapped(text: str, vision: str | None, **extra: Any) -> dict[str, Any]:
    """Return the entries of a model that wraps a language model and a vision model."""
    parts = {"text_config": SIZES | {"model_type": text, "head_dim": 8}, "vision_config": dict(VISION)}
    parts["vision_config"] |= {"model_type": vision} if vision else {}
    return parts | _IMAGES | extra


WRAPPERS = {
    "llava": wrapped("llama", "clip_vision_model"),
    "mistral3": wrapped("mistral", "pixtral"),
    "smolvlm": wrapped("llama", None),
    "paligemma": wrapped("gemma", "siglip_vision_model", projection_dim=36),
    "qwen3_vl": _IMAGES
    | _MARKS
    | {
        "text_config": SIZES | {"head_dim": 8, "rope_parameters": _MROPE},
        "vision_config": _PATCHES | {"deepstack_visual_indexes": [0]},
    },
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_model_of_images_and_texts_reloads_as_its_own_class(kind: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(kind, **WRAPPERS[kind])
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    randomise_(model)
    with skipping(model, (2, 5)):
        expected = logits(model)
    folder = save_pruned(prune_(model, [2, 5]), TOKENIZER, tmp_path / "saved")
    again = AutoModelForImageTextToText.from_pretrained(folder)
    assert type(again) is type(model)
    assert torch.equal(logits(again), expected)
    assert torch.equal(logits(load_model(folder, device="cpu")[0]), expected)
    assert kept_layers(again) == (0, 1, 3, 4, 6)
    assert "import AutoModelForImageTextToText, AutoTokenizer" in (folder / "README.md").read_text()


# what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tokenizer", [None, "demo", 3, lambda text: text], ids=["None", "name", "number", "function"]
)
def test_what_is_no_tokenizer_is_refused_before_anything_is_written(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tokenizer must be the model's tokenizer, got"):
        save_pruned(tiny_model("llama"), tokenizer, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_a_pad_token_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD2]"})
    model = tiny_model("llama", vocab_size=330)
    with pytest.raises(ValueError, match=r"one of the model's 330 tokens, '\[PAD2\]' is 330; set"):
        save_pruned(model, tokenizer, tmp_path / "saved")
    tokenizer.pad_token = tokenizer.eos_token
    save_pruned(model, tokenizer, tmp_path / "saved")


@pytest.mark.parametrize("path", [None, 3, [], b"saved"], ids=str)
def test_what_is_no_path(path: Any) -> None:
    with pytest.raises(ValueError, match="path must be a name or a path, got"):
        wb.save_pruned(tiny_model("llama"), TOKENIZER, path)


def test_a_model_without_its_head_is_refused(tmp_path: Path) -> None:
    for model in (tiny_model("llama").model, nn.Linear(2, 2)):
        with pytest.raises(
            ValueError, match=r"model must be a (language model with its head|transformers model)"
        ):
            save_pruned(model, TOKENIZER, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("way", ["cpu_offload", "disk_offload"])
def test_an_offloaded_model_is_refused(way: str, tmp_path: Path) -> None:
    import accelerate

    model = tiny_model("llama")
    where = {"offload_dir": tmp_path / "disk"} if way == "disk_offload" else {}
    getattr(accelerate, way)(model, execution_device=torch.device("cpu"), **where)
    with pytest.raises(ValueError, match="must have its weights in memory, some are on the meta device"):
        save_pruned(model, TOKENIZER, tmp_path / "saved")
    with pytest.raises(ValueError, match="must have its weights in memory, some are on the meta device"):
        wb.heal(model, TOKENIZER, ["one two three"] * 4, out=tmp_path / "saved")
    with pytest.raises(ValueError, match="must have its weights in memory, some are on the meta device"):
        wb.collapse_(model, [(3, 2)])
    assert not (tmp_path / "saved").exists()


def test_router_logits_that_are_asked_for_do_no_harm(tmp_path: Path) -> None:
    plain, asked = tiny_model("qwen3-moe"), tiny_model("qwen3-moe", output_router_logits=True)
    with skipping(plain, (1, 2)):
        expected = logits(plain)
    folder = save_pruned(prune_(asked, [1, 2]), TOKENIZER, tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(folder)
    assert asked.config.output_router_logits is again.config.output_router_logits is True
    assert torch.equal(logits(again), expected)
    texts = ["Anna has 12 apples.", "The dog went home."]
    both = [tiny_model("qwen3-moe", output_router_logits=on) for on in (False, True)]
    frames = [block_damage(model, TOKENIZER, texts, sizes=[1], progress=False) for model in both]
    assert frames[0]["damage"].tolist() == frames[1]["damage"].tolist()


@pytest.mark.parametrize("settings", [{"temperature": 1e-6}, {"top_p": 0.9, "top_k": 5}], ids=str)
def test_sampling_settings_of_the_files_are_kept(settings: dict[str, float], tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "whole")
    TOKENIZER.save_pretrained(tmp_path / "whole")
    edit(tmp_path / "whole" / "generation_config.json", **settings)
    model, tokenizer = load_model(tmp_path / "whole", device="cpu")
    folder = save_pruned(prune_(model, [3]), tokenizer, tmp_path / "saved")
    kept = json.loads((folder / "generation_config.json").read_text())
    assert {key: kept[key] for key in settings} == settings


def test_a_model_with_an_adapter_is_not_saved(tmp_path: Path) -> None:
    import peft

    model = tiny_model("llama")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    for one in (wrapped, model):
        with pytest.raises(ValueError, match="must have no adapter on it"):
            save_pruned(one, TOKENIZER, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []
