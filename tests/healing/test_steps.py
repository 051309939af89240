"""Updates in blocks of fixed shape: the same losses and adapter, whatever shares a row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from healed import make_examples, run, weights
from tiny import tiny_model, tiny_tokenizer

from workbench.healing import steps
from workbench.healing.config import HealingConfig
from workbench.healing.samples import Sample
from workbench.healing.steps import collate_blocks

NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
CONFIG = HealingConfig(rank=4, epochs=1.5, batch_size=16, max_length=128, learning_rate=1e-2)


@pytest.fixture(autouse=True)
def short_rows(monkeypatch):
    """Rows as short as the samples of a test, so that they are of several kinds and blocks."""
    monkeypatch.setattr(steps, "ROW", 32)
    monkeypatch.setattr(steps, "TOKENS", 512)


def test_blocks_hold_every_sample_once_apart_from_the_others():
    draw = np.random.default_rng(0)
    sizes = [3, 9, 30, 31, 32, 33, 64, 65, 100, 7, 7, 7, 200]
    samples = [Sample(draw.integers(1, 300, size=n).tolist(), int(draw.integers(1, n))) for n in sizes]
    batch = collate_blocks([(sample, 0.25) for sample in samples], tokens=128)
    assert batch["weight"] == 0.25
    shapes = {tuple(block.shape[1:]) for block in batch["blocks"]}
    assert shapes <= {(4, 32), (1, 32), (2, 64), (1, 64), (1, 128), (1, 256)}
    found, learned = [], []
    for ids, positions, ends, targets in batch["blocks"]:
        for row in range(len(ids)):
            starts = [k for k in range(len(ids[row])) if positions[row, k] == 0 and ids[row, k] > 0]
            for start in starts:
                end = int(ends[row, start])
                found.append(ids[row, start:end].tolist())
                learned.append(targets[row, start:end].tolist())
                assert ends[row, start:end].tolist() == [end] * (end - start)
                assert positions[row, start:end].tolist() == list(range(end - start))
            assert sum(int(ends[row, k]) - k for k in starts) == int((ids[row] > 0).sum())
    wanted = {tuple(sample.ids): sample for sample in samples}
    assert sorted(map(tuple, found)) == sorted(wanted)
    for ids, targets in zip(found, learned, strict=True):
        n = wanted[tuple(ids)].n_prompt
        assert targets == [-100] * (n - 1) + ids[n:] + [-100]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "granite"])
def test_losses_and_adapter_are_those_of_micro_batches(architecture, tmp_path):
    tokenizer, examples = tiny_tokenizer(), make_examples()
    found = {}
    for captured in (True, False):
        model = tiny_model(architecture, **NO_DROPOUT if architecture == "gpt2" else {})
        out = tmp_path / str(captured)
        config = HealingConfig(**vars(CONFIG) | {"captured": captured})
        adapter, log = run(model, tokenizer, examples, out, config=config)
        found[captured] = weights(adapter), log
    (fixed, log), (plain, wanted) = found[True], found[False]
    np.testing.assert_allclose(log["loss"], wanted["loss"], rtol=2e-5)
    assert log["tokens"].tolist() == wanted["tokens"].tolist()
    for name, tensor in plain.items():
        assert (fixed[name] - tensor).norm() <= 2e-3 * tensor.norm() + 1e-6, name


def test_held_out_loss_and_a_last_smaller_update(tmp_path):
    examples, found = make_examples(), []
    for captured in (True, False):
        config = HealingConfig(**vars(CONFIG) | {"captured": captured, "epochs": 1.0, "batch_size": 7})
        settings = {"config": config, "held_out": examples.iloc[-4:]}
        _, log = run(tiny_model(), tiny_tokenizer(), examples.iloc[:-4], tmp_path / str(captured), **settings)
        found.append(log)
    np.testing.assert_allclose(found[0]["held_out_loss"], found[1]["held_out_loss"], rtol=2e-5)
    np.testing.assert_allclose(found[0]["loss"], found[1]["loss"], rtol=2e-5)


def test_short_of_memory_it_goes_on_in_micro_batches(tmp_path, monkeypatch):
    def too_much(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(steps.FixedSteps, "_run", too_much)
    config = HealingConfig(**vars(CONFIG) | {"captured": True})
    with pytest.warns(UserWarning, match="micro_batch_size=8"):
        _, log = run(tiny_model(), tiny_tokenizer(), make_examples(), tmp_path / "a", config=config)
    monkeypatch.undo()
    plain = HealingConfig(**vars(CONFIG) | {"captured": False})
    _, wanted = run(tiny_model(), tiny_tokenizer(), make_examples(), tmp_path / "b", config=plain)
    np.testing.assert_allclose(log["loss"], wanted["loss"], rtol=2e-5)


@pytest.mark.parametrize(
    ("architecture", "changes", "reason"),
    [
        ("llama", {"dropout": 0.1}, "dropout"),
        ("gpt2", {}, "dropout"),
        ("llama", {"deterministic": True}, "deterministic"),
        ("llama", {"gradient_checkpointing": True}, "checkpointing"),
        ("qwen3-moe", {}, "experts"),
        ("bloom", {}, "its own attention"),
    ],
)
def test_what_cannot_be_captured_is_refused_when_asked_for(architecture, changes, reason, tmp_path):
    config = HealingConfig(**vars(CONFIG) | {"captured": True} | changes)
    with pytest.raises(ValueError, match=f"captured must be None or False here: .*{reason}"):
        run(tiny_model(architecture), tiny_tokenizer(), make_examples(), tmp_path / "a", config=config)


def test_on_a_cpu_nothing_is_captured_by_itself():
    assert not steps.captures(tiny_model(), HealingConfig(), [9], processes=1)
    assert steps.captures(tiny_model(), HealingConfig(captured=True), [9], processes=1)
