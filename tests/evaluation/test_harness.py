"""The harness around a model in memory: tidy rows, truncation counted, everything put back."""

from __future__ import annotations

import gc
import json
import logging
import random
import warnings

import numpy as np
import pytest
import torch
from scoring import TASKS, assert_equal, flat, write_jsonl
from tiny import tiny_model, tiny_tokenizer

from workbench.evaluation import harness, samples, sharing
from workbench.evaluation.documents import process_once
from workbench.evaluation.evaluate import evaluate, prepared
from workbench.evaluation.harness import shot_order
from workbench.evaluation.in_memory import InMemory
from workbench.evaluation.items import read_items
from workbench.evaluation.tasks import load_tasks


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


def test_orders_are_distinct_permutations_and_the_first_is_as_drawn():
    orders = [shot_order(3, k) for k in range(6)]
    assert orders[0] == [0, 1, 2]
    assert len({tuple(order) for order in orders}) == 6
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    assert orders == [shot_order(3, k) for k in range(6)]


LABELS = """
task: toy_labels
dataset_path: json
dataset_kwargs: {data_files: {test: labels.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_target: label
doc_to_choice: ["no", "yes"]
metric_list: [{metric: acc}, {metric: f1}, {metric: mcc}, {metric: acc_mutual_info}, {metric: brier_score}]
"""
TRANSLATIONS = """
task: toy_translations
dataset_path: json
dataset_kwargs: {data_files: {test: labels.jsonl}}
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{reference}}"
generation_kwargs: {until: ["zz"], max_gen_toks: 8}
metric_list: [{metric: bleu}, {metric: ter}, {metric: chrf}]
"""
CLOZE = """
task: toy_cloze
dataset_path: json
dataset_kwargs: {data_files: {test: labels.jsonl}}
output_type: loglikelihood
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{reference}}"
metric_list: [{metric: perplexity}, {metric: acc}]
"""


def refuse(literal: str):
    raise AssertionError(f"{literal} is no JSON")


@pytest.fixture
def sets(tmp_path):
    """Tasks whose metrics exist over the whole set only."""
    for name, text in {"labels": LABELS, "translations": TRANSLATIONS, "cloze": CLOZE}.items():
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    questions = ["the quick fox", "by the river", "Anna gives apples", "a lazy dog", "the dog", "to Ben"]
    entries = [
        {"question": question, "label": number % 2, "reference": f"the {question} and 12 apples"}
        for number, question in enumerate(questions)
    ]
    write_jsonl(tmp_path / "labels.jsonl", entries)
    return tmp_path


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_an_item_has_what_a_metric_of_the_set_says_of_it_alone(
    architecture, sets, tmp_path, capfd, monkeypatch
):
    import lm_eval
    import sacrebleu
    from lm_eval.tasks import TaskManager

    model, tokenizer, path = tiny_model(architecture), tiny_tokenizer(), tmp_path / "items.jsonl"
    names = ["toy_labels", "toy_translations", "toy_cloze"]
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    monkeypatch.setattr(harness, "_RESAMPLES", 10)
    frame = evaluate(model, tokenizer, names, include=sets, items=path, progress=False)
    assert capfd.readouterr().out == ""
    lines = path.read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line, parse_constant=refuse) for line in lines]
    assert [entry["item"] for entry in entries] == list(range(6)) * 3
    for entry in entries[:6]:
        right = float(entry["response"] == entry["target"])
        assert [entry["scores"][metric] for metric in ("acc", "f1", "mcc")] == [right] * 3
        assert 0 <= entry["scores"]["brier_score"] <= 2
    assert len({entry["response"] for entry in entries[:6]} | {e["scores"]["acc"] for e in entries[:6]}) > 2
    for entry in entries[6:12]:
        alone = [[entry["response"]], [[entry["target"]]]]
        for name in ("bleu", "ter", "chrf"):
            expected = getattr(sacrebleu, f"corpus_{name}")(*alone).score
            assert entry["scores"][name] == pytest.approx(expected)
    values = frame.set_index(["task", "metric"])["value"]
    logs = np.log([entry["scores"]["perplexity"] for entry in entries[12:]])
    assert np.exp(logs.mean()) == pytest.approx(values["toy_cloze", "perplexity"], rel=1e-6)
    if architecture != "llama":
        return
    frame = frame[frame["task"] != "toy_translations"]
    warnings.simplefilter("ignore")  # those of the harness's resampling
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "saved")
    monkeypatch.chdir(sets)
    theirs = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tmp_path / "saved"), "dtype": "float32"},
        tasks=["toy_labels", "toy_cloze"],
        device="cpu",
        bootstrap_iters=10,
        task_manager=TaskManager(include_path=str(sets), include_defaults=False),
    )
    assert_equal(frame, flat(theirs["results"]))
    items = read_items(path)
    assert items["value"].dtype == float


def test_the_response_is_the_likeliest_choice_behind_the_question_and_not_one_by_itself(sets):
    asked = [(context, choice) for context in ("the dog", "") for choice in (" no", " yes")]
    found = [[(total, False)] for total in (-3.0, -2.0, -4.0, -1.0)]  # mutual information asks without it too
    sample = {"target": 1, "arguments": asked, "resps": found, "metrics": ["acc", "acc_mutual_info"]}
    task = load_tasks(["toy_labels"], include=sets)["tasks"]["toy_labels"]
    sample["doc"] = task.eval_docs[0]
    told = {"prompt": "the dog", "target": "yes", "response": "yes"}
    assert samples._item(sample, task) == told | {"responses": {"acc_mutual_info": "no"}}


UNEVEN = """
task: toy_uneven
dataset_path: json
dataset_kwargs: {data_files: {test: uneven.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_target: TARGET
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: acc_bytes}]
"""


BEGUN = """
task: begun
dataset_path: json
dataset_kwargs: {data_files: {test: PLACE/begun.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: right
doc_to_target: end
doc_to_choice: "{{[first, second]}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
TWICE = """
task: twice
dataset_path: json
dataset_kwargs: {data_files: {test: PLACE/twice.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: text
doc_to_target: right
doc_to_choice: ["yes", "no"]
filter_list:
  - {name: one, filter: [{function: take_first}]}
  - {name: two, filter: [{function: take_first}]}
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def uneven(folder, target: str):
    """Items with two choices of very different lengths, scored by a tiny model."""
    (folder / "uneven.yaml").write_text(UNEVEN.replace("TARGET", target), encoding="utf-8")
    choices = [["the dog", "an apple by the river and the old house"], ["12", "shells ä ä ä by the sea"]] * 3
    rows_ = [{"question": f"{k}?", "choices": c, "right": k // 2 % 2} for k, c in enumerate(choices)]
    rows_ = [row | {"both": [0, 1], "said": row["choices"][row["right"]] + "x"} for row in rows_]
    write_jsonl(folder / "uneven.jsonl", rows_)
    path = folder / "items.jsonl"
    settings = {"include": folder, "items": path, "progress": False}
    evaluate(tiny_model("llama"), tiny_tokenizer(), "toy_uneven", **settings)
    return read_items(path)


def test_each_metric_of_an_item_has_the_response_that_it_counted(tmp_path):
    items = uneven(tmp_path, "right")
    assert ((items["response"] == items["target"]) == (items["value"] == 1)).all()
    assert (items.pivot(index="item", columns="metric", values="response").nunique(axis=1) > 1).any()


def test_several_right_choices_are_told_as_texts(tmp_path):
    assert set(uneven(tmp_path, "both")["target"][:3]) == {
        "['the dog', 'an apple by the river and the old house']"
    }


@pytest.mark.parametrize("target", ["said", "'{{right + 1}}'"])
def test_a_target_that_is_none_of_the_choices_is_told(tmp_path, target):
    with pytest.warns(
        UserWarning, match=r"toy_uneven.*the target of [26] of 6 items is none of their choices"
    ):
        uneven(tmp_path, target)


def test_targets_behind_several_contexts_are_no_choices_and_nothing_is_told(tmp_path):
    """As in Winogrande: the choices are beginnings, and the target is how each of them goes on."""
    rows_ = [{"first": f"{k} dogs", "second": "12 cats", "end": " run.", "right": k % 2} for k in range(4)]
    write_jsonl(tmp_path / "begun.jsonl", rows_)
    (tmp_path / "begun.yaml").write_text(BEGUN.replace("PLACE", str(tmp_path)), encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = evaluate(tiny_model("llama"), tiny_tokenizer(), "begun", include=tmp_path, progress=False)
    assert found["n"].tolist() == [4]


def test_an_item_of_several_filters_is_told_once(tmp_path):
    write_jsonl(tmp_path / "twice.jsonl", [{"text": f"{k}?", "right": k} for k in range(5)])
    (tmp_path / "twice.yaml").write_text(TWICE.replace("PLACE", str(tmp_path)), encoding="utf-8")
    with pytest.warns(UserWarning, match="the target of 3 of 5 items is none of their choices, such as 2;"):
        evaluate(tiny_model("llama"), tiny_tokenizer(), "twice", include=tmp_path, progress=False)


def test_a_score_that_is_no_number_is_null(scored):
    from workbench.evaluation.samples import item_line

    line = item_line("t", 0, 3, {"a": float("nan"), "b": float("inf"), "c": np.float64(1.5)}, prompt="?")
    assert json.loads(line, parse_constant=refuse)["scores"] == {"a": None, "b": None, "c": 1.5}


def test_a_set_is_processed_as_the_harness_does_and_never_twice(shared_data):
    loaded = prepared({None: ["hellaswag"]}, include=None, data=shared_data, missing="error")
    task = loaded.tasks[None]["tasks"]["hellaswag"]
    own, calls = task.config.process_docs, []
    wanted = list(own(task.dataset["validation"]))
    task.config.process_docs = lambda docs: calls.append(len(docs)) or own(docs)
    process_once(task)
    assert list(task.eval_docs) == wanted and list(task.eval_docs) == wanted
    assert calls == []  # loading the task has processed it
    few = task.dataset["validation"].select(range(3))
    assert list(task.config.process_docs(few)) == wanted[:3] and calls == [3]


def test_loaded_tasks_are_asked_of_one_model_after_another(tokenizer, folder, monkeypatch):
    monkeypatch.setattr(sharing, "_FIRST", 1)
    (part,) = prepared({None: ["toy_choices"]}, include=folder, data=None, missing="error").tasks.values()
    passes, found = [], []
    for _ in range(2):
        model = tiny_model()
        model.register_forward_pre_hook(lambda *_: passes.append(len(found)))
        lm = InMemory(model, tokenizer, batch_size=4)
        with harness.untouched(model, tokenizer), harness.quiet():
            results, _ = harness.run_tasks(lm, part, limit=5, chat=False)
        found.append(results["results"])
    assert found[0] == found[1]
    assert passes.count(0) == passes.count(1) > 0


@pytest.fixture
def thawed():
    """The collector sees all objects; the suite itself keeps it from what was imported."""
    gc.unfreeze()
    yield
    gc.freeze()


def test_the_collector_passes_over_what_was_there_only_while_a_task_is_run(model, tokenizer, folder, thawed):
    during = []
    handle = model.register_forward_pre_hook(lambda *_: during.append(gc.get_freeze_count()))
    evaluate(model, tokenizer, "toy_choice", include=folder, limit=2, progress=False)
    handle.remove()
    assert min(during) > 10_000
    assert gc.get_freeze_count() == 0
    handle = model.register_forward_pre_hook(lambda *_: {}["broken"])
    with pytest.raises(KeyError, match="broken"):
        evaluate(model, tokenizer, "toy_choice", include=folder, limit=2, progress=False)
    handle.remove()
    assert gc.get_freeze_count() == 0
    gc.freeze()
    evaluate(model, tokenizer, "toy_choice", include=folder, limit=2, progress=False)
    assert gc.get_freeze_count() > 10_000  # somebody's own stay
