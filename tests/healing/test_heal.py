"""Healing: the response alone is learned, a stop loses nothing, an adapter fits only its own layers."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from healed import QUICK, logits, make_examples, run, same_state, same_weights, state, weights
from safetensors.torch import load_file
from tiny import tiny_config, tiny_model, tiny_tokenizer

from workbench.generation.responses import PLAIN_PROMPT, chat_prompt
from workbench.healing.adapters import as_variant, lora_targets, merge_adapter_, read_record, with_adapter
from workbench.healing.config import HealingConfig
from workbench.healing.samples import collate, planned_order, read_samples, text_samples
from workbench.healing.trainer import LOG_COLUMNS
from workbench.pruning.removal import prune_, without_layers
from workbench.runs.variant import Variant


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def model():
    return tiny_model("llama")


@pytest.fixture
def examples():
    return make_examples()


# --- what is learned -------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [True, False])
def test_the_response_and_its_end_mark_alone_are_learned(model, examples, template):
    tokenizer = tiny_tokenizer(chat_template=template)
    samples, counts = read_samples(model, tokenizer, examples, "reference", 128)
    assert counts == {"cut": 0, "left_out": 0}
    for sample, row in zip(samples, examples.itertuples(), strict=True):
        message = f"{row.context}\n{row.instruction}" if row.context else row.instruction
        prompt = chat_prompt(tokenizer, message)
        assert template == (prompt != PLAIN_PROMPT.replace("{text}", message))
        assert tokenizer.decode(sample.ids[: sample.n_prompt]) == prompt
        assert tokenizer.decode(sample.ids[sample.n_prompt :]) == f"{row.reference}<|end|>"


@pytest.mark.parametrize("packed", [False, True])
def test_the_targets_of_a_batch_decode_to_the_responses(model, tokenizer, examples, packed):
    samples, _ = read_samples(model, tokenizer, examples, "response", 128)
    batch = collate([(sample, 0.25) for sample in samples[:6]], packed=packed)
    assert len(batch["targets"]) == sum(sample.learned for sample in samples[:6])
    # each is the token after the position whose logits are asked for
    flat = batch["input_ids"].flatten()
    assert torch.equal(flat[batch["positions"] + 1], batch["targets"])
    texts = tokenizer.decode(batch["targets"]).split("<|end|>")[:-1]
    assert (sorted if packed else list)(texts) == (sorted if packed else list)(examples["response"][:6])


def test_the_chat_templates_own_end_mark_is_learned_not_the_end_of_text(model, examples):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", "<|system|>\n")
    model.generation_config.eos_token_id = [1, tokenizer.convert_tokens_to_ids("<|system|>")]
    samples, _ = read_samples(model, tokenizer, examples, "reference", 128)
    assert tokenizer.decode(samples[0].ids).endswith(f"{examples.loc[0, 'reference']}<|system|>")


def test_long_responses_are_cut_and_long_prompts_left_out(model, tokenizer, examples, tmp_path):
    examples.loc[3, "instruction"] = "word " * 300
    examples.loc[5, "reference"] = "word " * 300
    samples, counts = read_samples(model, tokenizer, examples, "reference", 100)
    assert counts == {"cut": 1, "left_out": 1}
    assert len(samples) == 19
    assert max(len(sample.ids) for sample in samples) == 100
    healed = run(model, tokenizer, examples, tmp_path / "a")
    assert healed.log.attrs == {"cut": 1, "left_out": 1}


def test_plain_texts_are_learned_whole(tokenizer):
    texts = ["A story about a dog.", "x", "word " * 100]
    samples, counts = text_samples(tokenizer, texts, 50)
    assert [sample.n_prompt for sample in samples] == [1, 1]
    assert tokenizer.decode(samples[0].ids) == texts[0]
    assert len(samples[1].ids) == 50
    assert counts == {"cut": 1, "left_out": 1}


def test_the_plan_shows_each_example_once_an_epoch_with_little_padding():
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 200, 500).tolist()
    order = planned_order(lengths, 1000, 16, seed=3)
    assert Counter(order) == Counter(list(range(500)) * 2)
    assert order == planned_order(lengths, 1000, 16, seed=3)
    assert order != planned_order(lengths, 1000, 16, seed=4)
    batches = [[lengths[k] for k in order[i : i + 16]] for i in range(0, 1000, 16)]
    padding = sum(max(batch) * len(batch) for batch in batches) / sum(map(sum, batches))
    assert padding < 1.06
    assert np.corrcoef(np.arange(62), [max(batch) for batch in batches[:62]])[0, 1] < 0.3  # not a curriculum
    assert Counter(planned_order([5] * 3, 7, 2, seed=0)).most_common(1)[0][1] == 3


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "granite", "opt", "bloom"])
def test_the_first_loss_is_the_mean_over_the_learned_tokens(architecture, tokenizer, examples, tmp_path):
    model = tiny_model(
        architecture,
        **({} if architecture != "gpt2" else {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}),
    )
    if architecture == "opt":
        model.config.dropout = 0.0
        for module in model.modules():
            if hasattr(module, "dropout") and isinstance(module.dropout, float):
                module.dropout = 0.0
    config = HealingConfig(rank=4, epochs=1, batch_size=20, micro_batch_size=4, max_length=128)
    found = run(model, tokenizer, examples, tmp_path / "a", config=config).log
    total = count = 0.0
    for sample in read_samples(model, tokenizer, examples, "reference", 128)[0]:
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([sample.ids])).logits[0].log_softmax(-1)
        for place in range(sample.n_prompt, len(sample.ids)):
            total -= scores[place - 1, sample.ids[place]].item()
            count += 1
    assert len(found) == 1
    assert found.loc[0, "loss"] == pytest.approx(total / count, rel=1e-5)


def test_accumulated_micro_batches_are_one_batch(model, tokenizer, examples, tmp_path):
    logs = [
        run(model, tokenizer, examples, tmp_path / str(micro), config=HealingConfig(
            rank=4, learning_rate=1e-2, epochs=2, batch_size=8, micro_batch_size=micro, max_length=128)).log
        for micro in (8, 2)
    ]  # fmt: skip
    assert len(logs[0]) == 5
    np.testing.assert_allclose(logs[0]["loss"], logs[1]["loss"], rtol=1e-5)
    assert logs[0]["tokens"].tolist() == logs[1]["tokens"].tolist()


def test_healing_learns_and_the_log_says_how(model, tokenizer, examples, tmp_path):
    config = HealingConfig(
        rank=8, learning_rate=2e-2, epochs=12, batch_size=8, max_length=128, warmup_steps=2
    )
    adapter, log = run(model, tokenizer, examples, tmp_path / "a", config=config, response="response")
    assert list(log.columns) == LOG_COLUMNS
    assert log["step"].tolist() == list(range(1, 31))
    assert log["epoch"].iloc[-1] == 12
    assert log["loss"].iloc[-1] < 0.5 * log["loss"].iloc[0]
    assert log["learning_rate"].max() == pytest.approx(2e-2)
    assert log["learning_rate"].iloc[-1] < 1e-3
    lengths = [len(s.ids) for s in read_samples(model, tokenizer, examples, "response", 128)[0]]
    assert log["tokens"].iloc[-1] == 12 * sum(lengths)
    assert log["seconds"].is_monotonic_increasing
    assert adapter == tmp_path / "a"


# --- the model is left as it was -------------------------------------------------------------------


@pytest.mark.parametrize(
    "architecture", ["llama", "gpt2", "gemma3-multimodal", "qwen3-moe", "falcon", "phi3"]
)
def test_the_model_is_left_bit_equal_and_the_adapter_comes_on_and_off(
    architecture, tokenizer, examples, tmp_path
):
    model = tiny_model(architecture)
    model.get_input_embeddings().weight.requires_grad_(False)
    before, whole = state(model), logits(model)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    attributes = set(vars(model))
    random_state = torch.get_rng_state()
    with without_layers(model, [2, 3]):
        pruned = logits(model)
        config = HealingConfig(rank=3, learning_rate=1e-2, max_steps=2, batch_size=4, max_length=64)
        adapter, _ = run(model, tokenizer, examples[:8], tmp_path / "a", config=config)
        assert torch.equal(logits(model), pruned)
        with with_adapter(model, adapter) as same:
            assert same is model
            healed = logits(model)
            assert not torch.allclose(healed, pruned, atol=1e-4)
        assert torch.equal(logits(model), pruned)
        with with_adapter(model, adapter):
            assert torch.equal(logits(model), healed)
    assert torch.equal(logits(model), whole)
    assert same_state(model, before)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert set(vars(model)) == attributes
    assert not any(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random_state)
    # merged for good: the same up to rounding
    merged = prune_(copy.deepcopy(model), [2, 3])
    assert merge_adapter_(merged, adapter) is merged
    torch.testing.assert_close(logits(merged), healed, atol=2e-5, rtol=1e-4)
    assert merged.state_dict().keys() == prune_(copy.deepcopy(model), [2, 3]).state_dict().keys()


def test_an_error_inside_leaves_no_adapter_behind(model, tokenizer, examples, tmp_path):
    adapter, _ = run(model, tokenizer, examples, tmp_path / "a")
    before = logits(model)
    with pytest.raises(KeyError), with_adapter(model, adapter):
        raise KeyError
    assert torch.equal(logits(model), before)
    with pytest.raises(RuntimeError):
        run(model, tokenizer, examples, tmp_path / "b", progress=stop_at(2, RuntimeError))
    assert torch.equal(logits(model), before)


def test_a_variant_is_seen_without_a_copy(model, tokenizer, examples, run_folder):
    with without_layers(model, [4, 1]):
        run(model, tokenizer, examples, run_folder.path("adapters/sft"))
    before = logits(model)
    base = Variant("base", "tiny")
    healed = Variant("healed", "tiny", removed=(1, 4), adapter="adapters/sft")
    with as_variant(model, base):
        assert torch.equal(logits(model), before)
    with as_variant(model, healed, run=run_folder):
        seen = logits(model)
    with as_variant(model, healed, run=run_folder.folder):
        assert torch.equal(logits(model), seen)
    assert torch.equal(logits(model), before)
    by_hand = prune_(copy.deepcopy(model), [1, 4])
    with with_adapter(by_hand, run_folder.path("adapters/sft")):
        assert torch.equal(logits(by_hand), seen)
    with pytest.raises(ValueError, match="give run="), as_variant(model, healed):
        pass
    assert torch.equal(logits(model), before)


@pytest.fixture
def run_folder(tmp_path):
    from workbench.runs.run import open_run

    return open_run("test", root=tmp_path)


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


# --- an adapter fits only what it was trained on ---------------------------------------------------


def test_an_adapter_of_another_pruning_is_refused(model, tokenizer, examples, tmp_path):
    with without_layers(model, [2, 3]):
        adapter, _ = run(model, tokenizer, examples, tmp_path / "a")
    assert read_record(adapter)["kept_layers"] == [0, 1, 4, 5, 6]
    before = logits(model)
    for removed in ([], [3, 4], [2], [2, 3, 4]):
        refused = pytest.raises(ValueError, match="trained on other layers")
        with without_layers(model, removed), refused as error, with_adapter(model, adapter):
            pass
        assert "\n" not in str(error.value)
        with pytest.raises(ValueError, match=r"\[0, 1, 4, 5, 6\]"):
            merge_adapter_(model, adapter)
    assert torch.equal(logits(model), before)


def test_two_adapters_at_once_and_strange_folders_are_refused(model, tokenizer, examples, tmp_path):
    adapter, _ = run(model, tokenizer, examples, tmp_path / "a")
    with with_adapter(model, adapter):
        with pytest.raises(ValueError, match="no adapter on"), with_adapter(model, adapter):
            pass
        with pytest.raises(ValueError, match="no adapter on"):
            run(model, tokenizer, examples, tmp_path / "b")
    (adapter / "healing.json").unlink()
    with pytest.raises(ValueError, match="not an adapter that heal wrote"), with_adapter(model, adapter):
        pass


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("llama", {"gate_proj", "up_proj", "down_proj"}),  # GRO B.1
        ("mistral", {"gate_proj", "up_proj", "down_proj"}),  # GRO B.1
        ("gpt2", {"c_fc", "c_proj"}),
        ("opt", {"fc1", "fc2"}),
        ("bloom", {"dense_h_to_4h", "dense_4h_to_h"}),
        ("gpt-neox", {"dense_h_to_4h", "dense_4h_to_h"}),
        ("phi3", {"gate_up_proj", "down_proj"}),
        ("gemma3-multimodal", {"gate_proj", "up_proj", "down_proj"}),
    ],
)
def test_ffn_targets_are_found_by_structure(architecture, names):
    model = tiny_model(architecture)
    found = lora_targets(model, "ffn")["target_modules"]
    assert {name.rpartition(".")[2] for name in found} == names
    assert len(found) == 7 * len(names)
    assert not any("attn" in name or "attention" in name or "vision" in name for name in found)
    every = lora_targets(model, "all-linear")["target_modules"]
    assert set(found) < set(every)
    assert all(model.get_submodule(name) is not None for name in every)


def test_ffn_targets_of_phi2_are_the_papers():
    from transformers import AutoModelForCausalLM, PhiConfig

    sizes = tiny_config("llama")
    config = PhiConfig(
        vocab_size=331, hidden_size=36, intermediate_size=52, num_hidden_layers=3, num_attention_heads=6
    )
    assert sizes.vocab_size == config.vocab_size
    found = lora_targets(AutoModelForCausalLM.from_config(config), "ffn")["target_modules"]
    assert {name.rpartition(".")[2] for name in found} == {"fc1", "fc2"}


@pytest.mark.filterwarnings("ignore:The following")  # peft, of the targets that are then refused
def test_targets_by_name_and_experts(model, tokenizer, examples, tmp_path):
    assert len(lora_targets(model, ["q_proj"])["target_modules"]) == 7
    with pytest.raises(ValueError, match=r"targets must be .*down_proj.*got \['w1'\]"):
        lora_targets(model, ["w1"])
    with pytest.raises(ValueError, match="got 'mlp'"):
        lora_targets(model, "mlp")
    assert len(lora_targets(tiny_model("qwen3-moe"), "ffn")["target_parameters"]) == 14
    mixed = tiny_model("qwen3-moe-mixed")
    before = state(mixed)
    with pytest.raises(ValueError, match="peft cannot adapt all"):
        run(mixed, tokenizer, examples, tmp_path / "a")
    assert same_state(mixed, before)
    with pytest.raises(ValueError, match="dropout must be 0"):
        run(mixed, tokenizer, examples, tmp_path / "a", config=HealingConfig(dropout=0.1))


# --- nothing is lost, nothing is mixed -------------------------------------------------------------


def stop_at(step, error):
    def on_step(row):
        if row["step"] == step:
            raise error

    return on_step


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


def test_an_interrupted_training_goes_on_to_the_same_end(model, tokenizer, examples, tmp_path):
    fields = {"rank": 4, "dropout": 0.1, "epochs": 2, "batch_size": 8, "micro_batch_size": 4, "save_steps": 2}
    config = HealingConfig(**fields, max_length=128)
    whole, log = run(model, tokenizer, examples, tmp_path / "whole", config=config)
    for stopped in (1, 3, 5):
        out, steps = tmp_path / f"stopped-{stopped}", []
        stop = stop_at(stopped, KeyboardInterrupt)
        words = (
            rf"after step {stopped} of 5; the same call goes on.*{out.name}.unfinished.*checkpoint-{stopped}"
        )
        with pytest.raises(KeyboardInterrupt, match=words):
            run(model, tokenizer, examples, out, config=config, progress=stop)
        assert not out.exists()
        adapter, rest = run(model, tokenizer, examples, out, config=config, progress=steps.append)
        assert [row["step"] for row in steps] == list(range(stopped + 1, 6))
        assert same_weights(whole, adapter)
        columns = ["step", "epoch", "loss", "learning_rate", "tokens"]
        assert rest[columns].equals(log[columns])
        assert rest["seconds"].is_monotonic_increasing
        assert not out.with_name(f"{out.name}.unfinished").exists()


def test_a_torn_checkpoint_is_passed_over(model, tokenizer, examples, tmp_path):
    whole, _ = run(model, tokenizer, examples, tmp_path / "whole")
    with pytest.raises(RuntimeError):
        run(model, tokenizer, examples, tmp_path / "a", progress=stop_at(5, RuntimeError))
    state_file = tmp_path / "a.unfinished" / "checkpoints" / "checkpoint-4" / "trainer_state.json"
    state_file.write_text(state_file.read_text()[:100])
    adapter, _ = run(model, tokenizer, examples, tmp_path / "a")
    assert same_weights(whole, adapter)


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
        with pytest.raises(ValueError, match=rf"was trained from another {name};.*overwrite=True"):
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


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(
    model, tokenizer, examples, tmp_path
):
    def spoil(row):
        if row["step"] == 3:
            with torch.no_grad():
                model.lm_head.weight[5, 5] = float("nan")

    with pytest.raises(
        ValueError, match=r"loss is nan at step 4 of 5.*checkpoint-2.*learning_rate \(it is 0.01\)"
    ):
        run(model, tokenizer, examples, tmp_path / "a", progress=spoil)
    assert not (tmp_path / "a").exists()
    kept = load_file(tmp_path / "a.unfinished" / "checkpoints" / "checkpoint-2" / "adapter_model.safetensors")
    assert all(torch.isfinite(value).all() for value in kept.values())
    with pytest.raises(ValueError, match=r"loss is nan at step 1 of 5.*none was written yet"):
        run(model, tokenizer, examples, tmp_path / "b")


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
        f" healing goes on with micro_batch_size={micro}, and batch_size stays 12" for micro in (6, 3)
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
        pytest.warns(UserWarning, match="micro_batch_size=1,"),
        pytest.raises(ValueError, match=r"out of memory with one example at a time; try gradient_checkpoint"),
    ):
        run(model, tokenizer, examples, tmp_path / "a")
    hungry.handle.remove()
    assert hungry.seen == [8, 4, 2, 1]


@pytest.mark.parametrize("deep", [False, True])
def test_ctrl_c_keeps_what_there_is_and_the_half_trained_adapter_can_be_used(
    model, tokenizer, examples, tmp_path, deep
):
    config = HealingConfig(rank=4, dropout=0.1, epochs=2, batch_size=8, max_length=128, save_steps=100)
    whole, log = run(model, tokenizer, examples, tmp_path / "whole", config=config)
    out = tmp_path / "a"
    before, handler = logits(model), signal.getsignal(signal.SIGINT)
    calls = []

    def press(*_):
        calls.append(0)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    handle = model.model.layers[5].register_forward_hook(press if deep else lambda *_: None)
    with pytest.raises(
        KeyboardInterrupt, match=rf"stopped after step {1 if deep else 3} of 5; the same call goes on"
    ) as stop:
        run(model, tokenizer, examples, out, config=config, progress=False if deep else press)
    handle.remove()
    assert signal.getsignal(signal.SIGINT) is handler
    assert torch.equal(logits(model), before)
    checkpoint = str(stop.value).rpartition("for with_adapter: ")[2]
    with with_adapter(model, checkpoint):
        assert not torch.allclose(logits(model), before, atol=1e-4)
    with (
        without_layers(model, [1]),
        pytest.raises(ValueError, match="other layers"),
        with_adapter(model, checkpoint),
    ):
        pass
    steps = []
    adapter, rest = run(model, tokenizer, examples, out, config=config, progress=steps.append)
    assert steps[0]["step"] == int(checkpoint.rpartition("-")[2]) + 1
    assert same_weights(whole, adapter)
    assert rest["loss"].equals(log["loss"])


def test_the_progress_says_how_fast_and_how_long(model, tokenizer, examples, tmp_path):
    rows = []
    log = run(model, tokenizer, examples, tmp_path / "a", progress=rows.append).log
    assert [row["steps"] for row in rows] == [5] * 5
    assert rows[-1]["seconds_left"] == 0
    assert all(row["seconds_left"] > 0 for row in rows[:-1])
    steps = log[["tokens", "seconds"]].diff().fillna(log[["tokens", "seconds"]].iloc[:1])
    np.testing.assert_allclose(log["tokens_per_second"], steps["tokens"] / steps["seconds"])


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
def test_compiled_healing_is_the_same_and_leaves_no_trace(model, tokenizer, examples, tmp_path):
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


# --- settings and bad input ------------------------------------------------------------------------


def test_presets_are_the_papers():
    sdd, gro = HealingConfig.preset("sdd"), HealingConfig.preset("gro")
    assert (sdd.rank, sdd.epochs, sdd.batch_size, sdd.learning_rate) == (8, 5, 64, 1e-4)
    assert (gro.rank, gro.alpha, gro.dropout, gro.targets) == (64, 64, 0.05, "ffn")
    assert (gro.max_steps, gro.batch_size, gro.max_length, gro.warmup_steps) == (5000, 16, 2048, 100)
    assert (gro.learning_rate, gro.schedule, gro.deterministic) == (3e-4, "cosine", True)
    mistral = HealingConfig.preset("gro", model="mistralai/Mistral-7B-v0.1")
    assert (mistral.rank, mistral.alpha, mistral.learning_rate) == (4, 4, 3e-6)
    large = HealingConfig.preset("gro", model="meta-llama/Llama-2-70b-hf")
    assert (large.rank, large.max_length, large.learning_rate) == (8, 4096, 3e-5)
    assert HealingConfig.preset("demo", seed=4).seed == 4
    with pytest.raises(ValueError, match=r"preset must be one of sdd, gro, demo, got 'x'"):
        HealingConfig.preset("x")
    with pytest.raises(ValueError, match="ranks is no field"):
        HealingConfig.preset("sdd", ranks=4)


def test_healing_on_plain_texts_is_the_same_call(model, tokenizer, tmp_path):
    texts = [f"Story {i}. " + "The dog went home. " * (i % 4 + 1) for i in range(12)]
    config = HealingConfig.preset(
        "gro", max_steps=3, batch_size=4, max_length=40, rank=4, alpha=4, warmup_steps=1
    )
    before = torch.are_deterministic_algorithms_enabled()
    adapter, log = run(model, tokenizer, texts, tmp_path / "a", config=config)
    assert len(log) == 3
    assert torch.are_deterministic_algorithms_enabled() == before
    assert all("mlp" in name for name in weights(adapter))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"examples": make_examples(0)}, "at least one row"),
        ({"examples": []}, "at least one text"),
        ({"examples": "one text"}, "a list of at least one text"),
        ({"examples": ["fine", " "]}, "number 1"),
        ({"response": "rewrite"}, "columns instruction and rewrite"),
        ({"examples": make_examples(3).assign(reference=["a", "", "b"])}, "'row-1' has none"),
        ({"config": HealingConfig(max_length=4)}, "no prompt fits max_length=4"),
        ({"config": HealingConfig(targets=["w9"])}, "targets must be"),
    ],
)
def test_bad_input_gives_one_clear_line(model, tokenizer, tmp_path, change, words):
    arguments = {"model": model, "tokenizer": tokenizer, "examples": make_examples(3), "out": tmp_path / "a"}
    with pytest.raises(ValueError, match=words) as error:
        run(**{**arguments, **change})
    assert "\n" not in str(error.value)
    assert not any(tmp_path.iterdir())


def test_a_tokenizer_without_pad_token_and_chat_template_will_do(model, examples, tmp_path):
    bare = tiny_tokenizer(chat_template=False)
    bare.pad_token = None
    found = run(model, bare, examples, tmp_path / "a").log
    expected = run(model, tiny_tokenizer(chat_template=False), examples, tmp_path / "b").log
    assert found["loss"].equals(expected["loss"])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rank": 0}, "rank must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"loss_chunk": 0}, "loss_chunk must be"),
        ({"batch_size": 8, "micro_batch_size": 3}, "micro_batch_size must divide batch_size=8"),
        ({"learning_rate": 0}, "learning_rate must be between 0 and 10"),
        ({"learning_rate": float("nan")}, "learning_rate must be"),
        ({"epochs": -1}, "epochs must be"),
        ({"dropout": 1.5}, "dropout must be"),
        ({"schedule": "step"}, "schedule must be one of cosine"),
    ],
)
def test_bad_settings_give_one_clear_line(fields, words):
    with pytest.raises(ValueError, match=words):
        HealingConfig(**fields)


def test_gradient_checkpointing_changes_memory_not_losses(model, tokenizer, examples, tmp_path):
    plain = run(model, tokenizer, examples, tmp_path / "a").log
    config = HealingConfig(**{**QUICK.__dict__, "gradient_checkpointing": True})
    saved = run(model, tokenizer, examples, tmp_path / "b", config=config).log
    np.testing.assert_allclose(plain["loss"], saved["loss"], rtol=1e-6)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
