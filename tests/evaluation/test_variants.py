"""Many variants on one copy of the weights: each measured once, and again only when it changed."""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from scoring import CHOICE, GENERATE, load_manager, rows, write_jsonl
from tiny import tiny_model
from transformers import AutoModelForCausalLM

import workbench as wb
from workbench.evaluation import evaluate as module
from workbench.evaluation.evaluate import evaluate
from workbench.evaluation.harness import shot_order
from workbench.evaluation.items import compare_items, read_items
from workbench.evaluation.scores import score_spread
from workbench.evaluation.variants import evaluate_variants, seed_ablation, shot_ablation
from workbench.healing.adapters import as_variant
from workbench.healing.config import HealingConfig
from workbench.healing.heal import heal
from workbench.healing.records import read_record, write_record
from workbench.pruning.removal import without_layers
from workbench.runs.variant import Variant

TASKS = ["toy_sums", "toy_choice"]


QUICK = HealingConfig(rank=2, learning_rate=1e-2, max_steps=2, batch_size=4, max_length=64)


TEXTS = [
    "the quick brown fox jumps over a lazy dog",
    "Anna gives 12 apples to Ben",
    "by the river",
    "the dog",
]


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "toys" / "tasks"
    path.mkdir(parents=True)
    (path / "sums.yaml").write_text(GENERATE, encoding="utf-8")
    (path / "choice.yaml").write_text(CHOICE.format(name="", data="toys/tasks/test.jsonl"), encoding="utf-8")
    write_jsonl(path / "train.jsonl", rows(9, seed=1))
    write_jsonl(path / "test.jsonl", rows(6, seed=2))
    return path


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def variants(model, tokenizer, run):
    """The whole model, a pruned one, and two that were healed."""
    found = [Variant("base", "tiny"), Variant("pruned", "tiny", removed=(2, 3))]
    for seed in (0, 1):
        heal_one(model, tokenizer, run, seed)
        found.append(Variant(f"healed-{seed}", "tiny", removed=(2, 3), adapter=f"adapters/{seed}"))
    return found


def heal_one(model, tokenizer, run, seed, texts=TEXTS):
    with without_layers(model, [2, 3]):
        out = run.path(f"adapters/{seed}")
        heal(model, tokenizer, texts, config=QUICK, out=out, overwrite=True, progress=False)


@pytest.fixture
def calls(monkeypatch):
    """The task of every evaluation that is really run."""
    seen, plan = [], module.plan_tasks

    def counted(tasks, n_shot):
        seen.append(tasks)
        return plan(tasks, n_shot)

    monkeypatch.setattr(module, "plan_tasks", counted)  # the first thing that an evaluation does
    return seen


def test_scores_equal_those_of_each_variant_alone(model, tokenizer, folder, run, variants, monkeypatch):
    def no_loading(*_, **__):
        raise AssertionError("the base model is loaded once, by the caller")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", no_loading)
    where = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scores, items = evaluate_variants(
        model, tokenizer, variants, TASKS, run=run, include=folder, progress=False
    )
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == where
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert list(dict.fromkeys(scores["variant"])) == ["base", "pruned", "healed-0", "healed-1"]
    for variant in variants:
        with as_variant(model, variant, run=run):
            alone = evaluate(model, tokenizer, TASKS, include=folder, progress=False)
        ours = scores[scores["variant"] == variant.name].drop(columns="variant").reset_index(drop=True)
        key = ["task", "metric"]
        pd.testing.assert_frame_equal(
            ours.sort_values(key, ignore_index=True), alone.sort_values(key, ignore_index=True)
        )
    assert set(items.groupby("variant")["item"].nunique()) == {6}


def test_a_task_of_any_name_has_a_file_of_its_own(model, tokenizer, folder, run):
    names = ["_mine", "übung", "a b", "a/b", "a-b", "x" * 120, "\x1b[31mred", "plain.task"]
    task = yaml.safe_load((folder / "sums.yaml").read_text(encoding="utf-8"))
    for number, name in enumerate(names):
        text = yaml.safe_dump({**task, "task": name})
        (folder / f"named-{number}.yaml").write_text(text, encoding="utf-8")
    asked = {"run": run, "include": folder, "limit": 2, "progress": False}
    scores = evaluate_variants(model, tokenizer, [Variant("base", "tiny")], names, **asked).scores
    assert list(dict.fromkeys(scores["task"])) == names
    files = {name.removeprefix("evaluations/base/") for name in run.files()}
    assert len(files) == len(names) and {"a-b-2items.csv", "plain.task-2items.csv"} < files


def test_what_was_measured_is_read_and_what_changed_is_measured_again(
    model, tokenizer, folder, run, variants, calls
):
    variants = variants[1:]

    def again(**settings):
        calls.clear()
        options = {"run": run, "include": folder, "progress": False} | settings
        return evaluate_variants(model, tokenizer, variants, TASKS, **options)

    first = again()
    assert calls == TASKS * 3
    second = again()
    assert calls == []
    pd.testing.assert_frame_equal(first.scores, second.scores)
    pd.testing.assert_frame_equal(first.items, second.items)
    again(batch_size=3)
    assert calls == []  # rounding alone
    heal_one(model, tokenizer, run, 1, TEXTS[::-1] * 2)
    changed = again()
    assert calls == TASKS  # healed-1 alone
    assert not changed.of("healed-1").equals(first.of("healed-1"))
    assert changed.of("healed-0").equals(first.of("healed-0"))
    again(limit=3)
    assert calls == TASKS * 3
    write_jsonl(folder / "test.jsonl", rows(7, seed=5))
    assert set(again(limit=None).scores["n"]) == {7}
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    with pytest.raises(ValueError, match="trained on other weights"):
        again(limit=None)
    assert calls == TASKS  # the pruned one alone: adapters belong to the weights they were trained on
    for seed in (0, 1):
        heal_one(model, tokenizer, run, seed)
    again(limit=None)
    assert calls == TASKS * 2
    os.remove(run.path("evaluations/pruned/toy_sums.jsonl"))
    again(limit=None)
    assert calls == ["toy_sums"]


def test_items_are_paired_by_variant(model, tokenizer, folder, run, variants):
    found = evaluate_variants(model, tokenizer, variants[:2], TASKS, run=run, include=folder, progress=False)
    compared = compare_items(found.of("base"), found.of("pruned"))
    assert set(compared["task"]) == set(TASKS)
    assert (compared["n"] == 6).all()
    with pytest.raises(ValueError, match=r"variant must be one of base, pruned, got 'other'"):
        found.of("other")


def test_several_numbers_of_examples_are_kept_apart(model, tokenizer, folder, run, variants, calls):
    for shots in (0, 2, 0, 2):
        options = {"n_shot": shots, "run": run, "include": folder, "progress": False}
        evaluate_variants(model, tokenizer, variants[:1], "toy_sums", **options)
    assert len(calls) == 2
    assert run.path("evaluations/base/toy_sums-2shot.csv").is_file()


def test_several_numbers_of_items_are_kept_apart(model, tokenizer, folder, run, variants, calls):
    found = {}
    for limit in (2, 3, None, 2, 3, None):
        options = {"limit": limit, "run": run, "include": folder, "progress": False}
        scores = evaluate_variants(model, tokenizer, variants[:1], "toy_sums", **options).scores
        found.setdefault(limit, set()).add(tuple(scores["n"]))
    assert len(calls) == 3
    assert {limit: {n for each in told for n in each} for limit, told in found.items()} == {
        2: {2},
        3: {3},
        None: {6},
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variants": []}, "variants must be a list of variants"),
        ({"variants": [Variant("a", "tiny"), Variant("a", "tiny")]}, "with different names"),
        ({"items": "x.jsonl"}, r"settings must be some of limit, .*, got \['items'\]"),
        ({"tasks": ["toy_sums", "toy_sum"]}, "'toy_sum'; near: toy_sums"),
        (
            {"tasks": ["toy_choice", "toy_sums"], "n_shot": 10},
            "has 6 examples, must be a whole number from 0 to 6",
        ),
        ({"limit": 0}, "limit must be"),
        ({"tasks": None}, "tasks must be a text or a list of texts"),
        ({"max_length": 1}, "max_length must be between"),
        ({"gen_kwargs": 5}, "gen_kwargs must be a mapping"),
        ({"chat_template": 5}, "chat_template must be True or False or a text"),
        ({"thinking": True}, "thinking needs chat_template"),
        ({"max_new_tokens": "6"}, "max_new_tokens must be a whole number"),
        ({"missing": "no"}, "missing must be"),
        ({"variants": [Variant("a", "tiny", removed=(2,), adapter="adapters/0")]}, "trained on other layers"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_run(
    model, tokenizer, folder, run, variants, calls, change, message, monkeypatch
):
    from workbench.evaluation import tasks

    monkeypatch.setattr(tasks, "packaged_tasks", lambda: load_manager(folder))
    settings = {"variants": variants, "tasks": TASKS, "run": run, "include": folder, "progress": False}
    with pytest.raises(ValueError, match=message):
        wb.evaluate_variants(model, tokenizer, **settings | change)
    assert calls == []


def test_variants_are_asked_the_same_chats_and_the_frame_says_which(model, tokenizer, folder, run, variants):
    options = {"run": run, "include": folder, "limit": 2, "chat_template": True, "progress": False}
    for _ in range(2):  # measured, and read again
        found = evaluate_variants(model, tokenizer, variants[:3], "toy_sums", **options)
        assert found.scores.attrs == {"chat_template": True, "thinking": False, "skipped": {}}
    prompts = found.items.groupby("item")["prompt"].unique()
    assert all(len(asked) == 1 and asked[0].startswith("<|user|>") for asked in prompts)


def test_an_adapter_of_no_numbers_has_no_score(model, tokenizer, folder, run, variants):
    path = run.path("adapters/0") / "adapter_model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "lora_B" in name)
    weights[name][0, 0] = torch.nan
    save_file(weights, path, metadata={"format": "pt"})
    for words in ("was altered since the adapter was written", "must hold finite numbers"):
        with pytest.raises(ValueError, match=words):
            evaluate_variants(model, tokenizer, variants[2:3], TASKS, run=run, include=folder, progress=False)
        write_record(path.parent, read_record(path.parent))  # as if it had been trained to this


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    path = tmp_path_factory.mktemp("project") / "toys" / "tasks"
    path.mkdir(parents=True)
    (path / "sums.yaml").write_text(GENERATE, encoding="utf-8")
    write_jsonl(path / "train.jsonl", rows(9, seed=1))
    write_jsonl(path / "test.jsonl", rows(6, seed=2))
    return path


@pytest.fixture(scope="module")
def long_model():
    return tiny_model(max_position_embeddings=512)


def test_an_order_moves_the_examples_and_nothing_else(long_model, tokenizer, sums, tmp_path):
    parts = []
    for order in (0, 1):
        items = tmp_path / f"{order}.jsonl"
        options = {"include": sums, "items": items, "progress": False}
        evaluate(long_model, tokenizer, "toy_sums", n_shot=4, shot_order=order, **options)
        prompts = read_items(items).drop_duplicates("item")["prompt"]
        parts.append([prompt.split("\n\n") for prompt in prompts])
    places = shot_order(4, 1)
    for drawn, moved in zip(*parts, strict=True):
        assert moved[:4] == [drawn[place] for place in places]
        assert moved[4] == drawn[4]
        assert moved[:4] != drawn[:4]


def test_every_number_and_order_is_one_measurement(long_model, tokenizer, sums):
    frame = shot_ablation(
        long_model, tokenizer, "toy_sums", shots=(0, 1, 2, 3), orders=3, include=sums, progress=False
    )
    counts = frame[frame["metric"] == "exact_match,whole"].groupby("n_shot")["order"].agg(list).to_dict()
    assert counts == {0: [0], 1: [0], 2: [0, 1], 3: [0, 1, 2]}
    alone = evaluate(long_model, tokenizer, "toy_sums", n_shot=3, include=sums, progress=False)
    first = frame[(frame["n_shot"] == 3) & (frame["order"] == 0)].drop(columns="order").reset_index(drop=True)
    pd.testing.assert_frame_equal(first, alone)
    spread = score_spread(frame, "order").set_index(["metric", "n_shot"])
    values = frame.query("metric == 'exact_match,number' and n_shot == 3")["value"].to_numpy()
    row = spread.loc[("exact_match,number", 3)]
    assert row["mean"] == pytest.approx(values.mean())
    assert row["std"] == pytest.approx(values.std(ddof=1))
    assert row["n"] == 3
    assert np.isnan(spread.loc[("exact_match,number", 1), "std"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shots": ()}, "shots must be different whole numbers"),
        ({"shots": (1, 1)}, "shots must be different whole numbers"),
        ({"shots": (-1,)}, "shots must be different whole numbers"),
        ({"orders": 0}, "orders must be a whole number"),
        ({"n_shot": 3}, r"settings must not hold \['n_shot'\]"),
        ({"shots": (12,)}, "which has 9 examples, must be a whole number from 0 to 9, got 12"),
    ],
)
def test_ablations_out_of_range_are_refused(long_model, tokenizer, sums, settings, message):
    with pytest.raises(ValueError, match=message):
        wb.shot_ablation(long_model, tokenizer, "toy_sums", include=sums, progress=False, **settings)


def test_seeds_are_variants_of_one_method(long_model, tokenizer, sums, run):
    variants = {
        "cut-2": {seed: Variant(f"cut-2-{seed}", "tiny", removed=(1 + seed, 2 + seed)) for seed in (0, 1, 2)},
        "cut-1": {seed: Variant(f"cut-1-{seed}", "tiny", removed=(1 + seed,)) for seed in (0, 1)},
    }
    frame = seed_ablation(
        long_model, tokenizer, variants, "toy_sums", run=run, include=sums, limit=3, progress=False
    )
    assert list(frame.columns[:4]) == ["method", "seed", "variant", "task"]
    spread = score_spread(frame, "seed")
    assert spread.groupby("method")["n"].first().to_dict() == {"cut-2": 3, "cut-1": 2}
    twice = {"a": {0: variants["cut-1"][0]}, "b": {0: variants["cut-1"][0]}}
    with pytest.raises(ValueError, match="with different names"):
        seed_ablation(long_model, tokenizer, twice, "toy_sums", run=run, include=sums, progress=False)
