"""What the tests of healing share: a small training, and whether a model came back as it was."""

from __future__ import annotations

import pandas as pd
import torch
from safetensors.torch import load_file

from workbench.healing.config import HealingConfig
from workbench.healing.heal import heal

QUICK = HealingConfig(rank=4, learning_rate=1e-2, epochs=2, batch_size=8, max_length=128, save_steps=2)


def make_examples(n=20):
    return pd.DataFrame(
        {
            "id": [f"row-{i}" for i in range(n)],
            "instruction": [f"What is {i} plus {i}?" + " Think." * (i % 5) for i in range(n)],
            "context": ["" if i % 2 else "A passage." for i in range(n)],
            "reference": [f"{i}+{i}={2 * i}" + " done" * (i % 4) for i in range(n)],
            "response": [f"It is {2 * i}." for i in range(n)],
        }
    )


def run(model, tokenizer, examples, out, **options):
    return heal(model, tokenizer, examples, out=out, **{"config": QUICK, "progress": False, **options})


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same_state(model, before):
    after = model.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def logits(model, length=12):
    ids = (torch.arange(2 * length).reshape(2, length) * 7 + 11) % 300
    with torch.no_grad():
        return model(input_ids=ids).logits


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def same_weights(one, other):
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def stop_at(step, error):
    def on_step(row):
        if row["step"] == step:
            raise error

    return on_step
