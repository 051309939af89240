"""What is saved reloads as the same function, or nothing is left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cutting import TOKENIZER, assert_same, state
from tiny import LAYERS, tiny_model
from torch import nn
from transformers import AutoModelForCausalLM

from workbench.models.layers import decoder_layers, kept_layers
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
        "kept layers that are not those of the model": (by_hand, "kept_layers in the model's configuration"),
        "logits that are not finite": (not_finite, "logits are not finite"),
        "frequencies rounded in memory only": (tiny_model("llama").bfloat16(), "has another dtype in memory"),
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
    with pytest.raises(ValueError, match="tokenizer reads a text in other tokens"):
        save_pruned(tiny_model("qwen2"), TOKENIZER, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_an_adapter_is_not_saved(tmp_path: Path) -> None:
    import peft

    model = tiny_model("llama")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    for one in (wrapped, model):
        with pytest.raises(ValueError, match="must have no adapter on it"):
            save_pruned(one, TOKENIZER, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []
