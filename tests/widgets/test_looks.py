"""Looks: whose they are, which are forgotten, and what is compared on the same texts."""

from __future__ import annotations

import threading

import pytest
import torch
from frames import damage_frame, distance_frame
from tiny import tiny_model, tiny_tokenizer

from workbench.distances.damage import block_damage
from workbench.models.layers import number_of_layers
from workbench.widgets.look import looking
from workbench.widgets.picker import BlockPicker

TEXTS = ["the cat sat on the mat", "a dog and a cat met in the long street", "no dog sat"]


@pytest.fixture
def model():
    return tiny_model("llama")


@pytest.fixture
def picker(model) -> BlockPicker:
    return BlockPicker(distance_frame(number_of_layers(model)), start=2, size=2)


def look_of(loss: float):
    return lambda layers, cancelled: {
        "base_loss": 1.0, "loss": loss, "prompt": "p", "base_text": "a", "text": "b"
    }  # fmt: skip


def test_another_look_forgets_what_the_last_one_saw(picker):
    picker.keep()
    picker.look_with(look_of(2.0)).look().result(timeout=10)
    assert picker.kept["loss"].tolist() == [2.0]
    picker.look_with(look_of(5.0))
    assert "loss" not in picker.kept
    assert picker._look == {}
    assert picker.look().result(timeout=10)["loss"] == 5.0
    assert picker.kept["loss"].tolist() == [5.0]


def test_training_in_place_is_seen_by_loss_and_answer(picker, model):
    picker.look_with(looking(model, tiny_tokenizer(), TEXTS, "who sat", max_new_tokens=6))
    before = picker.look().result(timeout=60)
    assert picker.look().result(timeout=60) is before
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    after = picker.look().result(timeout=60)
    fresh = looking(model, tiny_tokenizer(), TEXTS, "who sat", max_new_tokens=6)((2, 3), lambda: False)
    for name in ("base_loss", "loss", "base_text", "text"):
        assert after[name] == fresh[name]
    assert after["base_loss"] != before["base_loss"]


def test_compare_looks_at_every_kept_set_on_the_same_texts(picker, model):
    picker.look_with(looking(model, tiny_tokenizer(), TEXTS, "who", max_new_tokens=2))
    picker.keep([1, 4])
    looks = picker.compare(picker.layers, (0,))
    assert looks["removed"].tolist() == ["1,4", "2-3", "0"]
    assert looks["start"].isna().tolist() == [True, False, False]
    sets = [(1, 4), (2, 3), (0,)]
    damage = block_damage(model, tiny_tokenizer(), TEXTS, layer_sets=sets, progress=False)
    assert looks["loss"].tolist() == pytest.approx(damage["loss"].tolist())
    assert looks["added_low"].tolist() == pytest.approx(damage["ci_low"].tolist())
    assert (looks["loss"] - looks["base_loss"]).between(looks["added_low"], looks["added_high"]).all()
    assert not any(name.startswith("loss_") for name in looks)  # they are no ends of a loss
    assert picker.layers == (2, 3)
    assert picker.look([1, 4]).result(timeout=10)["removed"] == "1,4"


def test_a_comparison_goes_on_when_another_block_is_chosen_until_cancelled(picker):
    going, wait = threading.Event(), threading.Event()

    def look(layers, cancelled):
        going.set()
        while not wait.wait(0.01):
            if cancelled():
                return None
        return look_of(2.0)(layers, cancelled)

    picker.look_with(look)
    picker.keep([1])
    picker.keep([5])
    picker._handle_custom_msg({"do": "look_kept", "id": 1}, [])
    assert going.wait(10)
    picker.choose(0, 1)
    assert picker._look["state"] == "running"
    assert picker._look["of"] == 2
    future = picker._looking._running[1]
    picker._handle_custom_msg({"do": "cancel", "id": 2}, [])
    assert picker._look["state"] == "cancelled"
    assert future.result(timeout=10) is None
    wait.set()
    picker._handle_custom_msg({"do": "look_kept", "id": 3}, [])
    picker._looking._running[1].result(timeout=10)
    assert picker.kept["loss"].tolist() == [2.0, 2.0]


def test_every_message_is_answered_also_one_that_fails(picker):
    sent = []
    picker.send = sent.append
    for content in (
        {"do": "ping", "id": 1},
        {"do": "keep", "layers": [4], "id": 2},
        {"do": "look", "layers": [4], "id": 3},
        {"do": "keep", "layers": [99], "id": 4},
        {"do": "picture", "id": 5},
    ):
        picker._handle_custom_msg(content, [])
    assert [answer["heard"] for answer in sent] == [1, 2, 3, 4, 5]
    assert [answer.get("why", "")[:30] for answer in sent[:2]] == ["", ""]
    assert "look_with" in sent[2]["why"] and "got 99" in sent[3]["why"]
    assert sent[4]["picture"].startswith("<svg")
    assert picker.kept["removed"].tolist() == ["4"]


def test_the_kept_table_has_the_damage_of_the_frame_and_of_the_look(model):
    distances = distance_frame(number_of_layers(model))
    picker = BlockPicker(distances, damage_frame(distances, sizes=(2,)), start=2, size=2)
    picker.look_with(look_of(1.25)).compare()
    row = picker.kept.iloc[0]
    assert row["loss"] - row["base_loss"] == 0.25
    assert row["damage"] == damage_frame(distances, sizes=(2,)).query("start == 2")["damage"].item()
