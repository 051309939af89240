"""Folders of adapters: whole, unaltered, in safetensors, and refused in one line where they are not."""

from __future__ import annotations

import json

import pytest
import torch
from healed import logits, make_examples, run, same_state, state
from safetensors.torch import load_file, save_file
from tiny import tiny_model

from workbench.healing.adapters import merge_adapter_, with_adapter
from workbench.healing.config import HealingConfig
from workbench.healing.records import RECORD, SETTINGS, WEIGHTS, checked_adapter, read_record, write_record

CONFIG = HealingConfig(rank=2, max_steps=1, batch_size=2, max_length=64, learning_rate=1e-2)


def drop_tensor(folder):
    rewrite(folder, lambda tensors: tensors.pop(sorted(tensors)[0]))


def add_tensor(folder):
    rewrite(folder, lambda tensors: tensors.update({"base_model.model.more.lora_A.weight": torch.ones(2, 3)}))


def widen_tensor(folder):
    rewrite(folder, lambda tensors: tensors.update({sorted(tensors)[0]: torch.ones(3, 41)}))


def break_number(folder):
    rewrite(folder, lambda tensors: tensors[sorted(tensors)[0]].fill_(float("nan")))


def rewrite(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def tear(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:200])


def empty(folder):
    (folder / WEIGHTS).write_bytes(b"")


def pickle(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


def set_in(name, **entries):
    def change(folder):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**settings, **entries}))

    return change


def cut(name):
    def change(folder):
        (folder / name).write_bytes((folder / name).read_bytes()[:40])

    return change


def deep(name):
    def change(folder):
        (folder / name).write_text("[" * 100_000)

    return change


DAMAGE = {
    "a tensor is missing": (drop_tensor, "does not fit: it lacks"),
    "a tensor too many": (add_tensor, "it alone has .*more"),
    "a tensor of another size": (widen_tensor, "cannot be put on the model"),
    "a number that is none": (break_number, "must hold finite numbers"),
    "a torn file": (tear, "cannot be put on the model"),
    "an empty file": (empty, "cannot be put on the model"),
    "a pickle": (pickle, "safetensors only"),
    "torn settings": (cut(SETTINGS), f"{SETTINGS} is missing or damaged"),
    "a torn record": (cut(RECORD), f"{RECORD} is missing or damaged"),
    "another kind": (set_in(SETTINGS, peft_type="IA3"), "must be a LoRA adapter"),
    "trained biases": (set_in(SETTINGS, bias="all"), "must be a LoRA adapter with bias 'none'"),
    "a beginning that changes the model": (
        set_in(SETTINGS, init_lora_weights="olora"),
        "plain LoRA matrices",
    ),
    "layers of its own": (set_in(SETTINGS, layer_replication=[[0, 2], [0, 2]]), "plain LoRA matrices alone"),
    "matrices for some tokens": (set_in(SETTINGS, alora_invocation_tokens=[1]), "plain LoRA matrices alone"),
    "a scale that is no number": (set_in(SETTINGS, lora_alpha=float("nan")), "must have a finite lora_alpha"),
    "a pattern without an end": (set_in(SETTINGS, target_modules="([a-z_.0-9]+)+!"), "may take for ever"),
    "a pattern of ranks": (set_in(SETTINGS, rank_pattern={"([a-z_.0-9]+)+!": 2}), "may take for ever"),
    "settings too deep": (deep(SETTINGS), f"{SETTINGS} is missing or damaged"),
    "a record too deep": (deep(RECORD), f"{RECORD} is missing or damaged"),
    "a record of nothing": (set_in(RECORD, kept_layers=None), "is damaged: it names no layers"),
    "a record without a model": (set_in(RECORD, model=None), "is damaged: it names no layers"),
    "digests that are none": (set_in(RECORD, sha256=[1]), "is damaged: it names no layers"),
    "another rank": (set_in(SETTINGS, r=5), "cannot be put on the model"),
}


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def healed(request, tokenizer, tmp_path_factory):
    model = tiny_model(request.param, num_hidden_layers=3)
    adapter, _ = run(model, tokenizer, make_examples(4), tmp_path_factory.mktemp("a") / "a", config=CONFIG)
    return model, {path.name: path.read_bytes() for path in adapter.iterdir()}


@pytest.fixture
def adapter(healed, tmp_path):
    for name, data in healed[1].items():
        (tmp_path / name).write_bytes(data)
    record = read_record(tmp_path)
    record.pop("sha256", None)
    (tmp_path / RECORD).write_text(json.dumps(record))
    return tmp_path


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_adapter_is_refused_and_leaves_no_trace(healed, adapter, damage):
    model, before, whole = healed[0], state(healed[0]), logits(healed[0])
    attributes = set(vars(model))
    change, words = DAMAGE[damage]
    change(adapter)
    with pytest.raises(ValueError, match=words) as error, with_adapter(model, adapter):
        pass
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=words):
        merge_adapter_(model, adapter)
    assert same_state(model, before)
    assert torch.equal(logits(model), whole)
    assert set(vars(model)) == attributes


@pytest.mark.parametrize("name", [SETTINGS, WEIGHTS])
def test_a_file_that_was_altered_after_training_is_refused(healed, adapter, name):
    write_record(adapter, read_record(adapter))
    with with_adapter(healed[0], adapter):
        pass
    if name == SETTINGS:  # a thousand times the scale: it would load, and ruin every answer
        set_in(SETTINGS, lora_alpha=4000)(adapter)
    else:
        rewrite(adapter, lambda tensors: tensors[sorted(tensors)[1]].mul_(-1))
    refused = pytest.raises(ValueError, match=rf"{name} was altered since the adapter was written")
    with refused, with_adapter(healed[0], adapter):
        pass


def test_the_record_keeps_what_it_was_given_and_the_digests(adapter):
    before = read_record(adapter)
    write_record(adapter, before)
    after = read_record(adapter)
    assert set(after.pop("sha256")) == {SETTINGS, WEIGHTS}
    assert after == before
    assert checked_adapter(adapter) == before["kept_layers"] == [0, 1, 2]


@pytest.mark.parametrize("layers", [[0, 1], [0, 1, 3], ["a"], [True, 1, 2]])
def test_a_word_that_contradicts_the_record_is_refused(adapter, layers):
    with pytest.raises(ValueError, match="layers must be"):
        checked_adapter(adapter, layers)
