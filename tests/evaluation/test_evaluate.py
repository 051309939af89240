"""Scores in memory equal the harness's own on the saved model, and nothing is left changed."""

from __future__ import annotations

import json
import logging
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scoring import CHOICE, GENERATE, assert_equal, flat, load_manager, rows, write_jsonl
from tiny import tiny_model, tiny_tokenizer

from workbench.evaluation import tasks as task_module
from workbench.evaluation.evaluate import evaluate
from workbench.evaluation.perplexity import perplexity
from workbench.evaluation.scores import read_items
from workbench.evaluation.suites import SUITES
from workbench.evaluation.tasks import load_tasks, plan_tasks, task_fingerprint, task_names
from workbench.pruning.removal import prune_, without_layers

TEXTS = """
task: toy_texts
dataset_path: json
dataset_kwargs: {data_files: {test: toys/tasks/test.jsonl}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{text}}"
num_fewshot: 0
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
"""
GROUP = """
group: toy_choices
task: [toy_choice, toy_choice_again]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""
TASKS = ["toy_sums", "toy_choices", "toy_texts"]


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Path:
    """A project with a task folder, whose data paths are relative to the project's root."""
    root = tmp_path_factory.mktemp("project")
    folder = root / "toys" / "tasks"
    folder.mkdir(parents=True)
    for name, text in {
        "sums": GENERATE,
        "choice": CHOICE.format(name="", data="toys/tasks/test.jsonl"),
        "again": CHOICE.format(name="_again", data="toys/tasks/test.jsonl"),
        "texts": TEXTS,
        "group": GROUP,
    }.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    write_jsonl(folder / "train.jsonl", rows(9, seed=1))
    write_jsonl(folder / "test.jsonl", rows(13, seed=2))
    return root


@pytest.fixture(scope="session")
def folder(project) -> Path:
    return project / "toys" / "tasks"


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def model():
    return tiny_model()


@pytest.fixture(scope="session")
def scored(model, tokenizer, folder, tmp_path_factory) -> tuple[pd.DataFrame, pd.DataFrame]:
    path = tmp_path_factory.mktemp("items") / "items.jsonl"
    frame = evaluate(
        model, tokenizer, TASKS, n_shot=None, include=folder, items=path, batch_size=4, progress=False
    )
    return frame, read_items(path)


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


@pytest.fixture(scope="session")
def saved(model, tokenizer, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


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
def test_scores_equal_the_command_line(scored, saved, project, folder, tmp_path):
    arguments = (
        f"--model hf --model_args pretrained={saved},dtype=float32 --tasks {','.join(TASKS)} --device cpu"
    )
    arguments += f" --include_path {folder} --batch_size 5 --output_path {tmp_path}"
    subprocess.run(
        [sys.executable, "-m", "lm_eval", "run", *arguments.split()],
        cwd=project,
        check=True,
        capture_output=True,
    )
    results = json.loads(next(tmp_path.rglob("results*.json")).read_text(encoding="utf-8"))["results"]
    assert_equal(scored[0], flat(results))


def test_rows_are_tidy(scored):
    frame = scored[0].set_index(["task", "metric"])
    assert len(frame) == 2 + 1 + 2 * 2 + 3
    assert frame.loc[("toy_choices", "acc"), "n"] == 26
    assert frame.loc[("toy_choice", "acc"), "parent"] == "toy_choices"
    assert frame.loc[("toy_choices", "acc"), "parent"] == ""
    assert not frame.loc[("toy_texts", "word_perplexity"), "higher_is_better"]
    assert frame.loc[("toy_sums", "exact_match,number"), "higher_is_better"]
    assert (frame["truncated"] == 0).all()
    assert frame["stderr"].notna().all()


def test_items_add_up_to_the_scores(scored):
    frame, items = scored
    means = items.groupby(["task", "metric"])["value"].agg(["mean", "count"])
    for row in frame[frame["higher_is_better"] & (frame["task"] != "toy_choices")].itertuples():
        assert means.loc[(row.task, row.metric), "mean"] == pytest.approx(row.value)
        assert means.loc[(row.task, row.metric), "count"] == row.n == 13
    choice = items[(items["task"] == "toy_choice") & (items["metric"] == "acc")]
    assert ((choice["target"] == choice["response"]) == (choice["value"] == 1)).all()


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


def test_it_works_from_any_directory_and_leaves_the_task_folder_alone(
    model, tokenizer, folder, tmp_path, monkeypatch
):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.chdir(tmp_path)
    evaluate(model, tokenizer, ["toy_sums", "toy_choice"], include=folder, limit=2, progress=False)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert not list(tmp_path.iterdir())


def test_data_may_lie_beside_the_task_file(model, tokenizer, folder, tmp_path):
    (tmp_path / "choice.yaml").write_text(CHOICE.format(name="", data="test.jsonl"), encoding="utf-8")
    (tmp_path / "test.jsonl").write_bytes((folder / "test.jsonl").read_bytes())
    beside = evaluate(model, tokenizer, "toy_choice", include=tmp_path, limit=4, progress=False)
    assert list(beside["n"]) == [4, 4]


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_put_back(folder, fails, capfd):
    import lm_eval.api.task

    model, tokenizer = tiny_model(), tiny_tokenizer()
    tokenizer.padding_side, tokenizer.pad_token = "right", None
    model.train()
    model.lm_head.eval()
    level, bar = logging.getLogger("lm_eval").level, lm_eval.api.task.tqdm
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    if fails:
        handle = model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, tokenizer, TASKS, include=folder, limit=2, progress=False)
        handle.remove()
    else:
        evaluate(model, tokenizer, TASKS, include=folder, limit=2, progress=False)
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("right", None)
    assert model.training
    assert model.model.layers[0].training
    assert not model.lm_head.training
    now = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert now == states
    assert (logging.getLogger("lm_eval").level, lm_eval.api.task.tqdm) == (level, bar)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_one_bar_and_nothing_else(model, tokenizer, folder, capfd):
    evaluate(model, tokenizer, TASKS, include=folder, limit=3)
    out, err = capfd.readouterr()
    assert out == ""
    assert {part.split(":")[0] for part in err.replace("\n", "\r").split("\r") if part.strip()} == {
        "evaluation"
    }


def test_truncation_is_counted_and_marked(model, tokenizer, folder, tmp_path):
    frame = evaluate(
        model, tokenizer, ["toy_sums", "toy_choice"], include=folder, max_length=24, progress=False,
        items=tmp_path / "items.jsonl",
    )  # fmt: skip
    rows_ = [json.loads(line) for line in (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    sums = [len(tokenizer(f"Question: {row['question']}\nAnswer:")["input_ids"]) > 24 - 6 for row in rows_]
    longest = [
        max(len(tokenizer(f"{row['question']} {c}")["input_ids"]) for c in row["choices"]) > 25
        for row in rows_
    ]
    assert sum(sums) > 0
    assert 0 < sum(longest) < 13
    counts = frame.groupby("task")["truncated"].first()
    assert (counts["toy_sums"], counts["toy_choice"]) == (sum(sums), sum(longest))
    items = read_items(tmp_path / "items.jsonl")
    marked = items[(items["task"] == "toy_choice") & (items["metric"] == "acc")]["truncated"]
    assert list(marked) == longest


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": []}, "at least one task"),
        ({"limit": 0}, "limit must be"),
        ({"limit": 2.5}, "limit must be"),
        ({"n_shot": -1}, "n_shot must be"),
        ({"n_shot": 10}, "'toy_sums' must be at most 9"),
        ({"tasks": "toy_texts", "n_shot": 2}, "fixed at 0"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"max_length": 257}, "between 2 and the model's 256"),
        ({"max_length": 6}, "above the 6 tokens"),
        ({"include": "nowhere"}, "include must be a folder"),
        ({"data": "/"}, "data must be a folder with public sets"),
        ({"missing": "ignore"}, "missing must be 'error' or 'skip'"),
        ({"shot_order": 1}, "shot_order of task 'toy_sums' must be below 1"),
        ({"shot_order": 2, "n_shot": 2}, "must be below 2, the orders of its 2 few-shot examples, got 2"),
    ],
)
def test_settings_out_of_range_are_refused_before_any_pass(tokenizer, folder, settings, message):
    model = tiny_model()
    model.forward = None
    with pytest.raises(ValueError, match=message) as error:
        evaluate(model, tokenizer, **{"tasks": "toy_sums", "include": folder, "progress": False} | settings)
    assert "\n" not in str(error.value)


def test_an_unknown_task_names_its_neighbours(model, tokenizer, folder, monkeypatch):
    monkeypatch.setattr(task_module, "packaged_tasks", lambda: load_manager(folder))
    with pytest.raises(ValueError, match=r"'toy_sum'; near: toy_sums"):
        evaluate(model, tokenizer, "toy_sum", include=folder, progress=False)
    monkeypatch.setattr(task_module, "packaged_tasks", None)  # a slip in a demo task must not cost the 10 s index
    with pytest.raises(ValueError, match=r"'demo_maths'"):
        evaluate(model, tokenizer, "demo_maths", include=folder, progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.pop("question"), "question"),
        (lambda row: row.pop("label"), "doc_to_target asks for column 'label'"),
        (
            lambda row: row.update(label=None if row["label"] == 2 else row["label"]),
            "column 'label' is empty in",
        ),
        (None, "has no items"),
        ("missing", "is neither near"),
        ("broken", "could not be read"),
    ],
)
def test_bad_task_data_are_named(model, tokenizer, tmp_path, change, message):
    (tmp_path / "choice.yaml").write_text(CHOICE.format(name="", data="test.jsonl"), encoding="utf-8")
    entries = rows(6, seed=3)
    if callable(change):
        for row in entries:
            change(row)
    if change == "broken":
        (tmp_path / "test.jsonl").write_text('{"question": ', encoding="utf-8")
    elif change != "missing":
        write_jsonl(tmp_path / "test.jsonl", entries if change else [])
    with pytest.raises(ValueError, match=message) as error:
        evaluate(model, tokenizer, "toy_choice", include=tmp_path, progress=False)
    assert "toy_choice" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_without_tasks_is_named(tmp_path):
    with pytest.raises(ValueError, match="names a task"):
        load_tasks(["toy"], include=tmp_path)


def test_suites_are_opened_and_grouped_by_their_shots():
    assert plan_tasks("sdd") == {25: ["arc_challenge"], 5: ["gsm8k", "mmlu"]}
    assert plan_tasks("gro") == {0: ["mmlu", "boolq"], 5: ["mmlu"]}
    assert plan_tasks("gro-c5") == {
        0: ["hellaswag", "boolq", "scrolls_qmsum"],
        None: ["gsm8k", "mmlu_flan_cot_fewshot"],
    }
    assert plan_tasks(["sdd", "toy"], n_shot=1) == {1: ["arc_challenge", "gsm8k", "mmlu", "toy"]}
    assert plan_tasks("toy") == {None: ["toy"]}
    assert set(SUITES) <= set(task_names())
    assert SUITES["iterabre"].max_length == 1024


def test_a_fingerprint_changes_with_the_questions_and_nothing_else(folder, tmp_path):
    (tmp_path / "choice.yaml").write_text(CHOICE.format(name="", data="test.jsonl"), encoding="utf-8")
    write_jsonl(tmp_path / "test.jsonl", rows(3, seed=3))
    before = task_fingerprint("toy_choice", include=tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "utils.pyc").write_bytes(b"compiled")
    assert task_fingerprint(["toy_choice"], include=tmp_path) == before
    assert "include" not in task_fingerprint("gsm8k", include=tmp_path)
    write_jsonl(tmp_path / "test.jsonl", rows(3, seed=4))
    assert task_fingerprint("toy_choice", include=tmp_path) != before


def test_the_demo_tasks_load_and_state_their_category(tokenizer):
    frame = evaluate(tiny_model(max_position_embeddings=512), tokenizer, "demo", limit=2, progress=False)
    found = dict(zip(frame["task"], frame["category"], strict=True))
    assert set(found) == set(task_names()) - set(SUITES) - {"demo"}
    assert set(found.values()) == {"reasoning", "knowledge", "language", "multilingual"}


def test_tokens_loss_equals_an_independent_reference(model, tokenizer):
    texts = ["the quick brown fox", "Anna gives 12 apples to Ben. " * 30, "by the river"]
    with torch.no_grad():
        losses, counts = [], []
        for text in texts:
            tokens = torch.tensor([tokenizer(text)["input_ids"]])
            logits = torch.cat(
                [model(tokens[:, s : s + 50]).logits for s in range(0, tokens.shape[1] - 1, 50)], 1
            )
            picked = logits[:, : tokens.shape[1] - 1].log_softmax(-1).gather(-1, tokens[:, 1:, None])
            losses.append(-picked.sum().item())
            counts.append(tokens.shape[1] - 1)
    loss = sum(losses) / sum(counts)
    frames = [
        perplexity(model, tokenizer, texts, max_length=50, batch_size=b, progress=False) for b in (1, 2, 64)
    ]
    for frame in frames:
        values = frame.set_index("metric")["value"]
        assert values["loss"] == pytest.approx(loss, rel=1e-5)
        assert values["token_perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
        assert values["normalized_loss"] == pytest.approx(loss / math.log(331), rel=1e-5)
        assert values["word_perplexity"] == pytest.approx(
            frames[0].set_index("metric")["value"]["word_perplexity"]
        )
    assert set(frame.columns) == set(evaluate_columns())


def evaluate_columns() -> list[str]:
    return "task metric n_shot value stderr n truncated higher_is_better parent category".split()  # noqa: SIM905


def test_words_equal_the_harness_task_and_its_error_the_bootstrap(scored, model, tokenizer, folder):
    texts = [
        json.loads(line)["text"] for line in (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    ours = (
        perplexity(model, tokenizer, texts, task="toy_texts", progress=False)
        .set_index("metric")
        .loc["word_perplexity"]
    )
    task = scored[0].set_index(["task", "metric"]).loc[("toy_texts", "word_perplexity")]
    assert ours["value"] == pytest.approx(task["value"], rel=1e-6)
    assert ours["stderr"] == pytest.approx(task["stderr"], rel=1e-4)
    items = scored[1]
    words = np.array([len(text.split(" ")) for text in texts])
    sums = items[items["metric"] == "word_perplexity"]["value"].to_numpy() * words
    draws = np.random.default_rng(0).integers(len(texts), size=(20000, len(texts)))
    resampled = np.exp(-sums[draws].sum(1) / words[draws].sum(1))
    assert task["stderr"] == pytest.approx(resampled.std(), rel=0.15)


def test_uniform_guessing_has_normalised_loss_one(tokenizer):
    model = tiny_model()
    torch.nn.init.zeros_(model.lm_head.weight)
    values = perplexity(model, tokenizer, ["the quick brown fox", "a lazy dog"], progress=False).set_index(
        "metric"
    )
    assert values.loc["normalized_loss", "value"] == pytest.approx(1, abs=1e-6)
    assert values.loc["token_perplexity", "value"] == pytest.approx(331, rel=1e-5)


@pytest.mark.parametrize("texts", [[], "one text", ["fine text", ""], ["fine text", "a"]])
def test_texts_that_cannot_be_scored_are_refused(model, tokenizer, texts):
    with pytest.raises(ValueError, match="text"):
        perplexity(model, tokenizer, texts, progress=False)


def test_a_public_set_on_disk_runs_with_its_official_shots_and_filters(shared_data, tokenizer, tmp_path):
    model = tiny_model(max_position_embeddings=6000)
    frame = evaluate(
        model, tokenizer, "gsm8k", data=shared_data, limit=2, items=tmp_path / "items.jsonl", progress=False
    )
    assert set(frame["metric"]) == {"exact_match,strict-match", "exact_match,flexible-extract"}
    assert set(frame["n_shot"]) == {5}
    prompt = read_items(tmp_path / "items.jsonl")["prompt"].iloc[0]
    assert prompt.count("Question: ") == 6
    assert prompt.count("#### ") == 5
