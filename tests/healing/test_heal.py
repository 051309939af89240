"""Healing: the same seed ends with the same adapter, a stop loses nothing, other work is never mixed in."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from four_bits import load_quantized, unpacked
from healed import (
    QUICK,
    logits,
    make_examples,
    run,
    same_state,
    same_weights,
    state,
    stop_at,
    weights,
)
from tiny import tiny_model, tiny_tokenizer

import workbench as wb
from workbench.healing.adapters import merge_adapter_, with_adapter
from workbench.healing.config import HealingConfig
from workbench.pruning.removal import prune_, without_layers


def test_the_same_seed_gives_the_same_adapter(model, tokenizer, examples, tmp_path):
    config = HealingConfig(rank=4, dropout=0.1, epochs=2, batch_size=8, max_length=128, learning_rate=1e-2)
    one, log = run(model, tokenizer, examples, tmp_path / "a", config=config)
    torch.manual_seed(99)
    other, again = run(model, tokenizer, examples, tmp_path / "b", config=config)
    assert same_weights(one, other)
    assert log["loss"].equals(again["loss"])
    third, _ = run(model, tokenizer, examples, tmp_path / "c", config=HealingConfig(
        rank=4, dropout=0.1, epochs=2, batch_size=8, max_length=128, learning_rate=1e-2, seed=1))  # fmt: skip
    assert not same_weights(one, third)


KILLED = """
import sys
sys.path[:0] = {paths!r}
from healed import QUICK, heal, make_examples
from tiny import tiny_model, tiny_tokenizer
import time
heal(tiny_model("llama"), tiny_tokenizer(), make_examples(), out={out!r}, config=QUICK,
     progress=lambda row: time.sleep(0.5 if row["step"] > 2 else 0))
"""


@pytest.mark.slow
def test_killed_for_real_it_goes_on_to_the_same_end(model, tokenizer, examples, tmp_path, root):
    out = tmp_path / "a"
    code = KILLED.format(paths=[str(root / "tests"), str(root)], out=str(out))
    process = subprocess.Popen([sys.executable, "-c", code])
    marker = tmp_path / "a.unfinished" / "checkpoints" / "checkpoint-2" / "trainer_state.json"
    deadline = time.monotonic() + 120
    while not marker.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    adapter, log = run(model, tokenizer, examples, out)
    whole, expected = run(model, tokenizer, examples, tmp_path / "whole")
    assert same_weights(whole, adapter)
    assert log["loss"].equals(expected["loss"])


def test_a_finished_adapter_is_not_trained_again_and_other_work_never_mixed_in(
    model, tokenizer, examples, tmp_path
):
    out = tmp_path / "a"
    first, log = run(model, tokenizer, examples, out)
    stamp = (out / "adapter_model.safetensors").stat().st_mtime_ns
    again, same = run(model, tokenizer, examples, out, progress=stop_at(1, RuntimeError))
    pd.testing.assert_frame_equal(log, same)
    assert again == first
    assert (out / "adapter_model.safetensors").stat().st_mtime_ns == stamp
    for name, options in [
        ("config", {"config": HealingConfig(rank=2, max_steps=1, batch_size=4)}),
        ("data", {"response": "response"}),
        ("model", {"model": tiny_model("llama", seed=1)}),
    ]:
        with pytest.raises(ValueError, match=rf"was made from another {name};.*overwrite=True"):
            run(**{"model": model, "tokenizer": tokenizer, "examples": examples, "out": out, **options})
    with without_layers(model, [1]), pytest.raises(ValueError, match="another model"):
        run(model, tokenizer, examples, out)
    with pytest.raises(KeyboardInterrupt):
        run(
            model,
            tokenizer,
            examples,
            out,
            response="response",
            overwrite=True,
            progress=stop_at(3, KeyboardInterrupt),
        )
    # the old one stays until the new one is whole
    assert (out / "adapter_model.safetensors").stat().st_mtime_ns == stamp
    steps = []
    run(model, tokenizer, examples, out, response="response", overwrite=True, progress=steps.append)
    assert steps[0]["step"] == 4
    assert (out / "adapter_model.safetensors").stat().st_mtime_ns != stamp
    assert len(list(tmp_path.iterdir())) == 1


class Hungry:
    """A layer that needs more memory than there is when more than so many rows come at once."""

    def __init__(self, model, rows, from_call=0):
        self.rows, self.from_call, self.seen = rows, from_call, []
        self.handle = model.model.layers[3].register_forward_pre_hook(self)

    def __call__(self, module, args):
        if module.training:
            self.seen.append(len(args[0]))
            if len(args[0]) > self.rows and len(self.seen) > self.from_call:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("from_call", [0, 2])
def test_out_of_memory_halves_the_micro_batch_and_keeps_the_batch(
    model, tokenizer, examples, tmp_path, from_call
):
    config = HealingConfig(**{**QUICK.__dict__, "dropout": 0.0, "batch_size": 12})
    expected = run(model, tokenizer, examples, tmp_path / "whole", config=config)
    before = state(model)
    hungry = Hungry(model, 4, from_call)
    with pytest.warns(UserWarning, match=r"out of memory with \d+ examples at a time") as told:
        found = run(model, tokenizer, examples, tmp_path / "a", config=config)
    hungry.handle.remove()
    assert [str(one.message).partition(":")[2] for one in told if "out of memory" in str(one.message)] == [
        f" now with micro_batch_size={micro}, and batch_size stays 12" for micro in (6, 3)
    ]
    assert hungry.seen[-1] <= 4
    columns = ["step", "epoch", "learning_rate", "tokens"]
    assert found.log[columns].equals(expected.log[columns])
    np.testing.assert_allclose(found.log["loss"], expected.log["loss"], rtol=1e-4)
    assert same_state(model, before)
    assert not (tmp_path / "a.unfinished").exists()


def test_no_memory_for_one_example_is_said_in_one_line(model, tokenizer, examples, tmp_path):
    hungry = Hungry(model, 0)
    with (
        pytest.warns(UserWarning, match="out of memory with . examples") as told,
        pytest.raises(ValueError, match=r"out of memory with one example at a time; try gradient_checkpoint"),
    ):
        run(model, tokenizer, examples, tmp_path / "a")
    hungry.handle.remove()
    assert hungry.seen == [8, 4, 2, 1]
    assert "micro_batch_size=1," in str(told[-1].message)


def test_packed_healing_learns_the_same_tokens(model, tokenizer, examples, tmp_path):
    options = {"rank": 4, "learning_rate": 1e-2, "epochs": 2, "batch_size": 10, "max_length": 128}
    log = run(model, tokenizer, examples, tmp_path / "a", config=HealingConfig(**options, packing=True)).log
    grouped = run(model, tokenizer, examples, tmp_path / "b", config=HealingConfig(**options)).log
    assert log["tokens"].iloc[-1] == grouped["tokens"].iloc[-1]
    assert log["loss"].iloc[-1] < log["loss"].iloc[0]
    with pytest.raises(ValueError, match="packing must be False for BloomForCausalLM"):
        run(tiny_model("bloom"), tokenizer, examples, tmp_path / "c", config=HealingConfig(packing=True))
    assert not (tmp_path / "c.unfinished").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # read by torch.compile
def test_compiled_healing_is_the_same_and_leaves_no_trace(tokenizer, examples, tmp_path):
    model = tiny_model(num_hidden_layers=1)  # compiling each kind of layer takes ten seconds
    before, attributes = state(model), set(vars(model))
    config = HealingConfig(**{**QUICK.__dict__, "compiled": False})
    plain = run(model, tokenizer, examples, tmp_path / "a", config=config).log
    config = HealingConfig(**{**QUICK.__dict__, "compiled": True, "loss_chunk": 16})
    compiled = run(model, tokenizer, examples, tmp_path / "b", config=config).log
    np.testing.assert_allclose(compiled["loss"], plain["loss"], rtol=1e-4)
    assert same_state(model, before)
    assert set(vars(model)) == attributes
    assert not any("forward" in vars(layer) for layer in model.model.layers)
    # neither decides which adapter comes out, so the other's is taken
    again = run(model, tokenizer, examples, tmp_path / "a", config=config, progress=stop_at(1, RuntimeError))
    assert again.log["loss"].equals(plain["loss"])


def test_healing_on_plain_texts_is_the_same_call(model, tokenizer, tmp_path):
    texts = [f"Story {i}. " + "The dog went home. " * (i % 4 + 1) for i in range(12)]
    config = HealingConfig.preset(
        "gro", max_steps=3, batch_size=4, max_length=40, rank=4, learning_rate=3e-4, warmup_steps=1
    )
    before = torch.are_deterministic_algorithms_enabled()
    adapter, log = run(model, tokenizer, texts, tmp_path / "a", config=config)
    assert len(log) == 3
    assert torch.are_deterministic_algorithms_enabled() == before
    assert all("mlp" in name for name in weights(adapter))
    assert (log["tokens"].diff().iloc[1:] == 4 * 40).all()  # every row is full


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"examples": make_examples(0)}, "at least one row"),
        ({"examples": []}, "at least one text"),
        ({"examples": "one text"}, "a list of at least one text"),
        ({"examples": ["fine", " "]}, "number 1"),
        ({"response": "rewrite"}, r"needs the columns \['instruction', 'rewrite'\]"),
        ({"examples": make_examples(3).assign(reference=["a", "", "b"])}, "'row-1' has none"),
        ({"config": HealingConfig(max_length=4)}, "max_length must be above .*, got 4"),
        ({"config": HealingConfig(targets=["w9"])}, "targets must be"),
        ({"config": HealingConfig(max_steps=4, warmup_steps=4)}, "warmup_steps must be below the 4 updates"),
        ({"config": HealingConfig(epochs=1e-3)}, "epochs=0.001 of 3 examples is not one"),
        ({"examples": make_examples(3).assign(reference=[5, 2, 7])}, "column reference.*got 5 in row row-0"),
        ({"examples": make_examples(3).assign(instruction=[1, 2, 3])}, "column instruction.*in row row-0"),
        (
            {"examples": make_examples(3).assign(context=[None, 2.5, ""])},
            "column context.*got 2.5 in row row-1",
        ),
        ({"report_to": "diary"}, "report_to .* must be one of"),
        ({"keep": "best"}, "keep='best' needs held_out"),
        ({"patience": 2}, "patience needs held_out"),
        ({"evaluate_every": 2}, "evaluate_every needs held_out"),
        ({"keep": "least", "held_out": make_examples(5)}, "keep must be one of last, best, got 'least'"),
        ({"held_out": make_examples(2)}, "held_out must hold other examples.*2 of 2 are among them"),
        ({"held_out": make_examples(5).assign(reference="")[3:]}, "held_out: column reference must hold"),
    ],
)
def test_bad_input_gives_one_clear_line(model, tokenizer, tmp_path, change, words):
    arguments = {"model": model, "tokenizer": tokenizer, "examples": make_examples(3), "out": tmp_path / "a"}
    with pytest.raises(ValueError, match=words) as error:
        run(**{**arguments, **change})
    assert "\n" not in str(error.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config": {"rank": 4}}, "config must be a HealingConfig or None, got"),
        ({"patience": 0}, "patience must be a whole number >= 1, got 0"),
        ({"evaluate_every": 1.5}, "evaluate_every must be a whole number >= 1, got 1.5"),
    ],
)
def test_settings_of_another_kind_are_refused_by_name(model, tokenizer, tmp_path, change, words):
    options = {"held_out": make_examples(5), "out": tmp_path / "a", **change}
    with pytest.raises(ValueError, match=words):
        wb.heal(model, tokenizer, make_examples(3), **options)
    assert not any(tmp_path.iterdir())


def test_a_tokenizer_without_pad_token_and_chat_template_will_do(model, examples, tmp_path):
    bare = tiny_tokenizer(chat_template=False)
    bare.pad_token = None
    found = run(model, bare, examples, tmp_path / "a").log
    expected = run(model, tiny_tokenizer(chat_template=False), examples, tmp_path / "b").log
    assert found["loss"].equals(expected["loss"])


def test_gradient_checkpointing_changes_memory_not_losses(model, tokenizer, examples, tmp_path):
    plain = run(model, tokenizer, examples, tmp_path / "a").log
    config = HealingConfig(**{**QUICK.__dict__, "gradient_checkpointing": True})
    saved = run(model, tokenizer, examples, tmp_path / "b", config=config).log
    np.testing.assert_allclose(plain["loss"], saved["loss"], rtol=1e-6)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["dora", "rslora"])
def test_other_kinds_of_lora_are_trained_put_on_and_merged_exactly(architecture, kind, tokenizer, tmp_path):
    examples, model = make_examples(), tiny_model(architecture)
    config = HealingConfig(**{**QUICK.__dict__, "max_steps": 3, "alpha": 6, kind: True})
    before, bare = state(model), logits(model)
    with without_layers(model, [2, 3]):
        adapter, _ = run(model, tokenizer, examples, tmp_path / "a", config=config)
        with with_adapter(model, adapter):
            healed = logits(model)
    assert torch.equal(logits(model), bare)
    assert same_state(model, before)
    told = json.loads((adapter / "adapter_config.json").read_text())
    assert [told["use_dora"], told["use_rslora"]] == [kind == "dora", kind == "rslora"]
    prune_(model, [2, 3])
    assert not torch.allclose(logits(model), healed, atol=1e-3)
    merge_adapter_(model, adapter)
    torch.testing.assert_close(logits(model), healed, rtol=1e-4, atol=1e-4)


def test_rslora_scales_by_the_root_of_the_rank(model, tokenizer, examples, tmp_path):
    # the first updates are alike when alpha / sqrt(4) is what alpha / 4 was
    plain = HealingConfig(**{**QUICK.__dict__, "alpha": 8})
    stable = HealingConfig(**{**QUICK.__dict__, "alpha": 4, "rslora": True})
    logs = [run(model, tokenizer, examples, tmp_path / str(c.rslora), config=c).log for c in (plain, stable)]
    np.testing.assert_allclose(logs[0]["loss"], logs[1]["loss"], rtol=1e-6)


def test_the_model_s_settings_are_as_before(model, tokenizer, examples, tmp_path):
    assert model.config.use_cache
    run(
        model, tokenizer, examples, tmp_path / "a", config=HealingConfig(**{**QUICK.__dict__, "max_steps": 1})
    )
    assert model.config.use_cache
    assert model(torch.tensor([[5, 6]])).past_key_values is not None


def test_a_stopped_training_goes_on_with_less_memory(model, tokenizer, examples, tmp_path):
    config = HealingConfig(**{**QUICK.__dict__, "micro_batch_size": 4})
    whole = run(model, tokenizer, examples, tmp_path / "whole", config=config)
    with pytest.raises(KeyboardInterrupt):
        run(model, tokenizer, examples, tmp_path / "a", config=config, progress=stop_at(2, KeyboardInterrupt))
    other = {"micro_batch_size": 2, "gradient_checkpointing": True, "save_steps": 1}
    less, steps = HealingConfig(**{**QUICK.__dict__, **other}), []
    found = run(model, tokenizer, examples, tmp_path / "a", config=less, progress=steps.append)
    assert steps[0]["step"] == 3
    np.testing.assert_allclose(found.log["loss"], whole.log["loss"], rtol=1e-4)


def test_nothing_is_printed(model, tokenizer, examples, tmp_path, capfd, recwarn):
    adapter, _ = run(model, tokenizer, examples, tmp_path / "a")
    with with_adapter(model, adapter):
        pass
    printed = capfd.readouterr()
    assert printed.out == printed.err == ""
    assert [str(warning.message) for warning in recwarn] == []
    run(model, tokenizer, examples, tmp_path / "b", progress=True)
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "heal" in printed.err
    assert "loss=" in printed.err


@pytest.fixture
def quantized(tmp_path):
    return load_quantized(tmp_path / "model")


@pytest.mark.parametrize("checkpointed", [False, True])
def test_it_heals_as_its_full_precision_twin(quantized, tmp_path, checkpointed):
    model, tokenizer = quantized
    twin, examples = unpacked(model), make_examples()
    logits(model)  # a forward pass must not repack the weights for inference: gradients would be lost
    before = state(model)
    config = HealingConfig(**{**QUICK.__dict__, "gradient_checkpointing": checkpointed})
    losses, healed = [], []
    for number, each in enumerate((model, twin)):
        with without_layers(each, [2, 3]):
            bare = logits(each)
            adapter, log = run(each, tokenizer, examples, tmp_path / str(number), config=config)
            assert torch.equal(logits(each), bare)
            with with_adapter(each, adapter):
                healed.append(logits(each))
        assert not torch.allclose(healed[-1], bare, atol=1e-3)
        losses.append(log["loss"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    torch.testing.assert_close(healed[0], healed[1], rtol=1e-3, atol=1e-3)
    assert same_state(model, before)


SECOND = """
import sys
sys.path[:0] = {paths!r}
from healed import make_examples
from tiny import tiny_model, tiny_tokenizer
from workbench.healing.config import HealingConfig
from workbench.healing.heal import heal
config = HealingConfig(max_steps=6, max_length=128, batch_size=4)
model, options = tiny_model("llama"), dict(config=config, out={out!r}, progress=print)
healed = heal(model, tiny_tokenizer(), make_examples(24), **options)
print("adapter", healed.log["loss"].sum())
"""


def test_two_that_heal_into_one_folder_at_once_train_once(root, tmp_path):
    paths = [str(root / "tests"), str(root / "tests" / "healing"), str(root)]
    command = [sys.executable, "-c", SECOND.format(paths=paths, out=str(tmp_path / "a"))]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("'step': 6" in text for text in told) == 1
    assert sum("another process is at it" in text for text in told) <= 1
    assert len({text.splitlines()[-1] for text in told}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_training_too_large_for_the_disk_does_not_begin(model, tokenizer, examples, tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(ValueError, match="MiB are needed at"):
        run(model, tokenizer, examples, tmp_path / "a", progress=pytest.fail)


def test_what_is_done_is_read_where_nobody_may_write_and_the_rest_refused_before_the_work(
    model, tokenizer, examples, tmp_path, monkeypatch
):
    grid = {"grid": {"rank": [1]}, "held_out": examples[8:], "response": "reference"}
    shared = {"model": model, "tokenizer": tokenizer, "examples": examples[:8], "progress": False}
    shared |= {"config": HealingConfig(rank=2, max_steps=1, batch_size=4, max_length=64)}
    asked = {"model": model, "tokenizer": tokenizer, "asked": examples[:2], "progress": False}

    def all_of_them(where, tokens=3, **changes):
        yield partial(wb.heal, **shared | changes, out=where / "adapter"), "log"
        yield partial(wb.tune, **shared | grid | changes, out=where / "search"), "trials"
        yield partial(wb.respond, **asked, max_new_tokens=tokens, out=where / "said.jsonl"), "response"

    before = [getattr(call(), name) for call, name in all_of_them(tmp_path)]
    there = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK or str(tmp_path) not in str(path))
    for (call, name), first in zip(all_of_them(tmp_path), before, strict=True):
        assert getattr(call(), name).equals(first)
    monkeypatch.setattr(type(model), "forward", None)  # no pass is made
    for call, _ in all_of_them(tmp_path / "new"):
        with pytest.raises(ValueError, match=r"out cannot be written at .*new.*: .* may not be written to"):
            call()
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == there


@pytest.mark.parametrize(("known", "kind"), [("the dog", "held-out example"), ("a", "example")])
def test_tokens_that_the_model_does_not_know_are_refused(tokenizer, tmp_path, known, kind):
    small = tiny_model(vocab_size=1 + max(tokenizer(known)["input_ids"]))
    asked = {"config": HealingConfig(max_steps=1, batch_size=2), "held_out": ["the quick brown fox jumps"]}
    with pytest.raises(ValueError, match=f"token ids must be from 0 to .*, {kind} 0 has"):
        wb.heal(small, tokenizer, ["the dog"], out=tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()
