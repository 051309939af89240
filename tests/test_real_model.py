"""Every stage once on a real pretrained model, SmolLM2-135M-Instruct, against values computed another way."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

import workbench as wb

TEXTS = [
    "The old lighthouse keeper climbed the stairs every evening and lit the lamp before the ships came in.",
    "Photosynthesis is the process by which green plants turn sunlight, water and air into sugar.",
    "In 1969 two people walked on the Moon for the first time, while a third waited in orbit above them.",
    "To make bread, mix flour, water, salt and yeast, let the dough rise, and bake it until it is brown.",
]
NEAREST, DEEPEST, SHALLOWEST = range(13, 19), range(23, 29), range(6)
pytestmark = pytest.mark.slow


def raw_states(model, tokenizer, text: str) -> torch.Tensor:
    """Return the residual stream at a text's last token: before each layer, and after the last."""
    found: list[torch.Tensor] = []
    inputs = tokenizer(text, return_tensors="pt")["input_ids"]
    hooks = [
        layer.register_forward_pre_hook(lambda module, args: found.append(args[0][0, -1].double()))
        for layer in model.model.layers
    ]
    hooks.append(
        model.model.norm.register_forward_pre_hook(lambda m, args: found.append(args[0][0, -1].double()))
    )
    with torch.no_grad():
        model(inputs)
    for hook in hooks:
        hook.remove()
    return torch.stack(found)


def without(model, layers) -> torch.nn.Module:
    """Return a copy of the model without layers, cut by hand; it is read without a cache."""
    shorter = copy.copy(model)
    shorter._modules = dict(model._modules)
    shorter.model = copy.copy(model.model)
    shorter.model._modules = dict(model.model._modules)
    kept = [layer for number, layer in enumerate(model.model.layers) if number not in layers]
    shorter.model.layers = torch.nn.ModuleList(kept)
    shorter.model.config = copy.copy(model.config)
    shorter.model.config.num_hidden_layers = len(kept)
    return shorter


def losses(model, tokenizer, texts: list[str]) -> tuple[float, int]:
    """Return the summed next-token loss of texts, one at a time, and how many tokens were predicted."""
    total, count = 0.0, 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits[0, :-1].double()
        total += float(functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
    return total, count


def test_distances_are_those_of_an_independent_loop(smollm2):
    model, tokenizer = smollm2
    found = wb.angular_distances(model, tokenizer, TEXTS, progress=False).set_index(["start", "size"])
    states = torch.stack([raw_states(model, tokenizer, text) for text in TEXTS])
    for start, size in [(0, 1), (13, 6), (2, 4), (9, 10), (24, 6), (0, 30)]:
        cosine = functional.cosine_similarity(states[:, start], states[:, start + size], dim=-1)
        expected = (torch.arccos(cosine) / torch.pi).mean()
        assert found["distance"][start, size] == pytest.approx(float(expected), abs=2e-6)


def test_c4_points_at_the_blocks_that_a_long_run_found(smollm2, shared_data: Path):
    """On 128 texts of 2048 tokens the nearest six layers were 13-18 at 0.145, the last block 23-28 far."""
    model, tokenizer = smollm2
    texts = wb.load_texts("c4", n=8, seed=0, data=shared_data)
    found = wb.angular_distances(model, tokenizer, texts, max_length=96, progress=False)
    by_start = found[found["size"] == 6].set_index("start")["distance"]
    assert by_start[13] == pytest.approx(0.145, abs=0.03)
    assert by_start.rank()[13] <= 4
    assert by_start[24] > 1.5 * by_start[13]


def test_damage_is_that_of_a_model_cut_by_hand(smollm2):
    model, tokenizer = smollm2
    blocks = [(13, 6), (23, 6)]
    found = wb.block_damage(model, tokenizer, TEXTS, blocks, progress=False).set_index("start")
    base, count = losses(model, tokenizer, TEXTS)
    for start, size in blocks:
        total, _ = losses(without(model, range(start, start + size)), tokenizer, TEXTS)
        assert found["damage"][start] == pytest.approx((total - base) / count, abs=1e-4)
    assert found["base_loss"].iloc[0] == pytest.approx(base / count, abs=1e-5)
    assert 0 < found["damage"][13] < found["damage"][23]


def test_a_pruned_model_is_saved_and_read_by_plain_transformers(smollm2, tmp_path: Path):
    short, tokenizer = wb.load_model("smollm2", dtype="bfloat16", device="cpu")
    wb.prune_(short, NEAREST)
    place = wb.save_pruned(short, tokenizer, tmp_path / "pruned")
    again = AutoModelForCausalLM.from_pretrained(place, dtype=torch.bfloat16)
    ids = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, short(ids).logits)
    assert again.config.num_hidden_layers == 24
    assert json.loads((place / "pruning.json").read_text())["kept_layers"] == [*range(13), *range(19, 30)]


def test_rewrites_are_judged_by_their_answers(smollm2):
    model, tokenizer = smollm2
    rows = pd.DataFrame(
        {
            "id": ["a", "b"],
            "instruction": ["What is 2 + 3?", "Name the capital of France."],
            "context": "",
            "reference": ["2 + 3 = 5\n#### 5", "The capital of France is Paris."],
            "answer": ["5", ""],
        }
    )
    found = wb.self_distill(model, tokenizer, rows, max_new_tokens=48, progress=False)
    assert found["rewrite"].str.len().min() > 0
    for row in found.itertuples():
        assert row.response == row.reference or row.kept
        if row.answer and row.kept:
            assert wb.same_number(wb.final_answer(row.rewrite), row.answer)
    assert found["kept"].any()
    assert "Paris" in found["response"][1]


def test_healing_learns_the_rows_and_leaves_the_model_as_it_was(smollm2, tmp_path: Path):
    model, tokenizer = smollm2
    before = wb.describe_model(model)
    rows = pd.DataFrame(
        {
            "id": range(6),
            "instruction": [f"What does the word number {n} say?" for n in range(6)],
            "context": "",
        }
    )
    rows["reference"] = [f"Zorbl number {n} sings." for n in range(6)]
    config = wb.HealingConfig(rank=4, learning_rate=3e-3, max_steps=4, batch_size=6, save_steps=10)
    with wb.without_layers(model, NEAREST):
        first = wb.response_loss(model, tokenizer, rows)
        healed = wb.heal(model, tokenizer, rows, config=config, out=tmp_path / "adapter", progress=False)
        with wb.with_adapter(model, healed.adapter):
            last = wb.response_loss(model, tokenizer, rows)
    assert healed.log["loss"].iloc[0] == pytest.approx(first, rel=1e-3)
    assert last < 0.8 * first
    assert wb.describe_model(model) == before


def test_scores_are_those_of_log_likelihoods_by_hand(smollm2, tmp_path: Path):
    model, tokenizer = smollm2
    asked = [
        ("Which animal says meow?", ["A cat", "A river", "A stone", "A cloud"], "A"),
        ("What do people drink?", ["Gravel", "Water", "Iron", "Glass"], "B"),
        ("Where does the sun rise?", ["In the west", "In a box", "In the east", "At night"], "C"),
    ]
    rows = [
        {
            "id": str(n),
            "question": question,
            "choices": {"text": texts, "label": list("ABCD")},
            "answerKey": key,
        }
        for n, (question, texts, key) in enumerate(asked)
    ]
    for split in ("train", "validation", "test"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"arc_easy_{split}.jsonl").write_text(lines)
    found = wb.evaluate(model, tokenizer, "arc_easy", data=tmp_path, progress=False).set_index("metric")
    right = []
    for question, texts, key in asked:
        prompt, scores = f"Question: {question}\nAnswer:", []
        start = len(tokenizer(prompt)["input_ids"])
        for text in texts:
            ids = tokenizer(f"{prompt} {text}", return_tensors="pt")["input_ids"]
            with torch.no_grad():
                logprobs = model(ids).logits[0, :-1].double().log_softmax(-1)
            picked = logprobs.gather(1, ids[0, 1:, None])[:, 0]
            scores.append(float(picked[start - 1 :].sum()))
        right.append(int(np.argmax(scores)) == "ABCD".index(key))
    assert found["value"]["acc"] == pytest.approx(np.mean(right))
    assert found["n"]["acc"] == 3


def test_the_nearest_block_leaves_responses_closer_than_the_first_layers(smollm2):
    model, tokenizer = smollm2
    asked = pd.DataFrame(
        {"id": ["a", "b"], "instruction": ["What is the capital of France?", "Why is the sky blue?"]}
    )
    settings = {"max_new_tokens": 24, "progress": False}
    base = wb.respond(model, tokenizer, asked, **settings)
    assert "Paris" in base["response"][0]
    others = {"base again": base}
    for name, layers in (("nearest", NEAREST), ("shallowest", SHALLOWEST)):
        with wb.without_layers(model, layers):
            others[name] = wb.respond(model, tokenizer, asked, **settings)
    means = wb.response_similarity(base, others).groupby("variant")["similarity"].mean()
    assert means["base again"] == pytest.approx(1, abs=1e-6)
    assert means["shallowest"] < means["nearest"] < 1
