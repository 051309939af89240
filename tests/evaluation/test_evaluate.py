"""Scores in memory equal the harness's own on the saved model, and nothing is left changed."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scoring import TASKS, assert_equal, flat
from tiny import tiny_model

import workbench as wb
from workbench.evaluation.evaluate import evaluate
from workbench.pruning.removal import prune_, without_layers


def harness_scores(path: Path, folder: Path, *, n_shot: int | None = None) -> dict[tuple[str, str], float]:
    """The harness's own way: the model loaded from its folder, data relative to the working directory."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    results = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(path), "dtype": "float32"},
        tasks=TASKS if n_shot is None else ["toy_sums"],
        num_fewshot=n_shot,
        batch_size=3,
        device="cpu",
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    )
    return flat(results["results"])


def test_scores_equal_the_harness_on_the_saved_model(scored, saved, project, folder, monkeypatch):
    monkeypatch.chdir(project)
    expected = harness_scores(saved, folder)
    assert len({value for key, value in expected.items() if "_stderr" not in key[1]}) > 3
    assert_equal(scored[0], expected)


def test_few_shot_prompts_equal_the_harness(model, tokenizer, saved, project, folder, monkeypatch):
    ours = evaluate(model, tokenizer, "toy_sums", n_shot=3, include=folder, progress=False)
    monkeypatch.chdir(project)
    assert_equal(ours, harness_scores(saved, folder, n_shot=3))
    assert set(ours["n_shot"]) == {3}


@pytest.mark.slow
def test_scores_equal_the_command_line(scored, saved, project, folder, tmp_path, monkeypatch):
    from lm_eval._cli import HarnessCLI

    arguments = f"run --model hf --model_args pretrained={saved},dtype=float32 --tasks {','.join(TASKS)}"
    arguments += f" --device cpu --include_path {folder} --batch_size 5 --output_path {tmp_path}"
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "argv", ["lm_eval", *arguments.split()])
    HarnessCLI().execute(HarnessCLI().parse_args())
    results = json.loads(next(tmp_path.rglob("results*.json")).read_text(encoding="utf-8"))["results"]
    assert_equal(scored[0], flat(results))


@torch.no_grad()
def test_choices_equal_an_independent_reference(scored, model, tokenizer, folder):
    def log_likelihood(question: str, choice: str) -> float:
        context, whole = tokenizer(question)["input_ids"], tokenizer(f"{question} {choice}")["input_ids"]
        logits = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        return sum(logits[i - 1, whole[i]].item() for i in range(len(context), len(whole)))

    right = []
    for line in (folder / "test.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        scores = [log_likelihood(row["question"], choice) for choice in row["choices"]]
        right.append(int(np.argmax(scores)) == row["label"])
    items = scored[1]
    chosen = items[(items["task"] == "toy_choice") & (items["metric"] == "acc")]
    assert list(chosen["value"]) == right


@torch.no_grad()
def test_word_perplexity_equals_an_independent_reference(scored, model, tokenizer, folder):
    texts = [
        json.loads(line)["text"] for line in (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    total = 0.0
    for text in texts:
        tokens = torch.tensor(
            [[tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]]
        )  # no bos: eos comes first
        total += model(tokens[:, :-1]).logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).sum().item()
    words = sum(len(text.split(" ")) for text in texts)
    frame = scored[0].set_index(["task", "metric"])["value"]
    assert frame["toy_texts", "word_perplexity"] == pytest.approx(math.exp(-total / words), rel=1e-5)


def test_inside_without_layers_equals_the_pruned_model(tokenizer, folder):
    whole, pruned = tiny_model(), prune_(tiny_model(), [2, 3])
    with without_layers(whole, [2, 3]):
        inside = evaluate(whole, tokenizer, TASKS, include=folder, limit=5, progress=False)
    pd.testing.assert_frame_equal(
        inside, evaluate(pruned, tokenizer, TASKS, include=folder, limit=5, progress=False), check_exact=True
    )
    outside = evaluate(whole, tokenizer, TASKS, include=folder, limit=5, progress=False)
    assert not outside["value"].equals(inside["value"])


def test_with_an_adapter_equals_the_merged_model(tokenizer, folder):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(
        tiny_model(), LoraConfig(r=3, target_modules="all-linear", init_lora_weights=False)
    ).eval()
    inside = evaluate(adapted, tokenizer, "toy_texts", include=folder, limit=5, progress=False)
    with adapted.disable_adapter():
        bare = evaluate(adapted, tokenizer, "toy_texts", include=folder, limit=5, progress=False)
    merged = evaluate(
        adapted.merge_and_unload(), tokenizer, "toy_texts", include=folder, limit=5, progress=False
    )
    assert list(inside["value"]) == pytest.approx(list(merged["value"]), rel=1e-4)
    assert abs(bare["value"][0] / inside["value"][0] - 1) > 0.01


def test_batches_do_not_change_scores(scored, model, tokenizer, folder):
    alone = evaluate(model, tokenizer, TASKS, include=folder, batch_size=1, progress=False)
    pd.testing.assert_frame_equal(scored[0], alone, rtol=1e-5)


@pytest.mark.parametrize("content", [b'{"instruction": "mine"}\n', b"[1]\n", b"no json", b"\xff\xfe"])
def test_no_other_file_is_replaced_than_one_of_items(tokenizer, folder, tmp_path, content):
    model, items = tiny_model(), tmp_path / "train.jsonl"
    asked = {"tasks": "toy_sums", "include": folder, "limit": 1, "items": items, "progress": False}
    wb.evaluate(model, tokenizer, **asked)
    wb.evaluate(model, tokenizer, **asked)
    items.write_bytes(content)
    model.forward = None
    with pytest.raises(ValueError, match=f"items must be a new file .*{items} holds something else"):
        wb.evaluate(model, tokenizer, **asked)
    assert items.read_bytes() == content


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": []}, "at least one task"),
        ({"tasks": None}, "tasks must be a text or a list of texts, got None"),
        ({"tasks": ["toy_sums", 3]}, r"tasks must be .* list of texts, got \['toy_sums', 3\]"),
        *(
            ({"limit": limit}, f"limit must be a whole number .*, got {re.escape(repr(limit))}")
            for limit in (0, -1, 2.5, "5", True, math.nan, math.inf, -0.5)
        ),
        ({"n_shot": -1}, "n_shot must be"),
        ({"n_shot": True}, "n_shot must be a whole number >= 0, got True"),
        ({"n_shot": "2"}, "n_shot must be a whole number >= 0, got '2'"),
        ({"n_shot": 10}, "'toy_sums', which has 9 examples, must be a whole number from 0 to 9, got 10"),
        ({"tasks": "toy_texts", "n_shot": 2}, "fixed at 0"),
        *(
            ({"batch_size": size}, f"batch_size must be a whole number .*, got {size!r}")
            for size in (0, "4", 1.5, True, None)
        ),
        ({"max_length": 0}, "max_length must be a whole number >= 1, got 0"),
        ({"max_length": 1}, "max_length must be between 2 and the model's 256 tokens, got 1"),
        ({"max_length": "20"}, "max_length must be a whole number .*, got '20'"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number >= 1, got 0"),
        ({"max_new_tokens": 256}, "above the 256 tokens that task 'toy_sums' generates, got 256"),
        ({"gen_kwargs": "temperature=0"}, "gen_kwargs must be a mapping .*, got 'temperature=0'"),
        ({"seed": "x"}, "seed must be a whole number >= 0, got 'x'"),
        ({"shot_order": -1}, "shot_order must be a whole number >= 0, got -1"),
        ({"chat_template": 1}, "chat_template must be True or False or a text, got 1"),
        ({"chat_template": "{{ oh"}, "template"),
        ({"thinking": True}, "thinking needs chat_template"),
        ({"items": "/etc/hostname/x.jsonl"}, "items cannot be written at /etc/hostname/x.jsonl"),
        ({"items": "/dev/null"}, "items must be a new file or one that evaluate wrote, /dev/null holds"),
        ({"items": "/etc"}, "items must be the path of a file that can be written, got '/etc'"),
        ({"max_length": 257}, "between 2 and the model's 256"),
        ({"max_length": 6}, "above the 6 tokens"),
        ({"include": "nowhere"}, "include must be a folder"),
        ({"data": "/"}, "data must be a folder with public sets"),
        ({"missing": "ignore"}, "missing must be one of error, skip"),
        (
            {"shot_order": 1},
            "shot_order of task 'toy_sums' with 0 examples must be a whole number from 0 to 0",
        ),
        ({"shot_order": 2, "n_shot": 2}, "with 2 examples must be a whole number from 0 to 1, got 2"),
    ],
)
def test_settings_out_of_range_are_refused_before_any_pass(tokenizer, folder, settings, message):
    model = tiny_model()
    model.forward = None
    with pytest.raises(ValueError, match=message) as error:
        wb.evaluate(
            model, tokenizer, **{"tasks": "toy_sums", "include": folder, "progress": False} | settings
        )
    assert "\n" not in str(error.value)
