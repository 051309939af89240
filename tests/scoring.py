"""Helpers for tests of scores: the harness's results as pairs, the packaged tasks on given rows."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pandas as pd
import pytest
from datasets import Dataset
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

PACKAGED = Path(lm_eval.tasks.__file__).parent
GENERATE = """
task: toy_sums
dataset_path: json
dataset_kwargs: {data_files: {train: toys/tasks/train.jsonl, test: toys/tasks/test.jsonl}}
output_type: generate_until
training_split: train
test_split: test
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
filter_list:
  - {name: whole, filter: [{function: take_first}]}
  - {name: number, filter: [{function: regex, regex_pattern: "([0-9]+)"}, {function: take_first}]}
"""
CHOICE = """
task: toy_choice{name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: label
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
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
WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "and",
    "Anna",
    "gives",
    "12",
    "apples",
    "to",
    "Ben",
    "by",
    "the",
    "river",
]


def rows(n: int, seed: int) -> list[dict]:
    draw = random.Random(seed)

    def some(k: int) -> str:
        return " ".join(draw.choices(WORDS, k=k))

    return [
        {
            "question": some(draw.randint(3, 9)),
            "answer": str(draw.randint(1, 9)),
            "choices": [some(draw.randint(1, 4)) for _ in range(3)],
            "label": draw.randint(0, 2),
            "text": some(draw.randint(5, 40)),
        }
        for _ in range(n)
    ]


def load_manager(folder: Path):
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(folder), include_defaults=False)


def write_jsonl(path: Path, entries: list[dict]) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def flat(results: dict) -> dict[tuple[str, str], float]:
    """The harness's nested results, (task, metric) -> value; "none" is no filter."""
    return {
        (task, key.removesuffix(",none")): value
        for task, values in results.items()
        for key, value in values.items()
        if "," in key and value != "N/A"
    }


def assert_equal(frame: pd.DataFrame, expected: dict[tuple[str, str], float]) -> None:
    """Our rows hold exactly the harness's metrics, with its values and standard errors."""
    ours = {(row.task, row.metric): row.value for row in frame.itertuples()}
    errors = {}
    for row in frame.itertuples():
        name, _, answer_filter = row.metric.partition(",")
        errors[row.task, f"{name}_stderr" + (f",{answer_filter}" if answer_filter else "")] = row.stderr
    values = {key: value for key, value in expected.items() if "_stderr" not in key[1]}
    assert ours.keys() == values.keys()
    for key, value in expected.items():
        # the spread of resampled perplexities magnifies the rounding of float32
        found, rel = (ours[key], 1e-6) if key in values else (errors[key], 1e-4)
        assert found == pytest.approx(value, rel=rel, abs=1e-6), key


def packaged_task(file: str, splits: dict[str, list[dict]]) -> ConfigurableTask:
    """The harness's own task, built by the harness from its own file, on rows in the hub's form."""
    config = load_yaml(PACKAGED / file, resolve_func=True)
    for entry in ("training_split", "validation_split", "test_split", "fewshot_split"):
        if config.get(entry) not in splits:
            config.pop(entry, None)
    data = {split: Dataset.from_list(rows) for split, rows in splits.items()}
    kept = {key: value for key, value in config.items() if key not in ("tag", "group")}
    return ConfigurableTask(config=kept | {"custom_dataset": lambda **_: data})


def prompts(task: Any, n_shot: int, limit: int | None) -> list[tuple]:
    """Every request of a task, as the model would be asked."""
    task.set_config("num_fewshot", n_shot)
    task.set_fewshot_seed(1234)
    task.build_all_requests(limit=limit)
    return [(request.doc_id, request.request_type, request.args) for request in task.instances]
