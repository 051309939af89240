"""What is told of every item, as a line of JSON: its prompt, what was wanted and answered, its scores."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from workbench.checks import is_whole
from workbench.evaluation.columns import is_choice, strange_targets


class Told(NamedTuple):
    """What is told of a task's items besides their scores, by item.

    Attributes:
        lines: of the items file, if asked for.
        strange: targets that are none of their choices.
    """

    lines: dict[int, str]
    strange: dict[int, Any]


def told(
    samples: dict[str, Any], tasks: dict[str, Any], truncated: set[tuple[str, int]], *, lines: bool
) -> dict[str, Told]:
    """Return what is told of the items behind the harness's samples, by task."""
    return {
        name: Told(
            _lines(name, some, tasks[name], truncated) if lines else {}, strange_targets(some, tasks[name])
        )
        for name, some in samples.items()
    }


def of_all_processes(parts: list[dict[str, Told]]) -> dict[str, Told]:
    """Return what is told of all items, in their order, from what each process tells of its own."""
    every = {}
    for name in parts[0] if parts else ():
        lines, strange = (_merged(some) for some in zip(*(part[name] for part in parts), strict=True))
        every[name] = Told(lines, strange)
    return every


def _merged(parts: Iterable[dict[int, Any]]) -> dict[int, Any]:
    return dict(sorted((item, value) for part in parts for item, value in part.items()))


def _lines(name: str, samples: list[Any], task: Any, truncated: set[tuple[str, int]]) -> dict[int, str]:
    """Return one JSON line for each item; the answers of several filters share it."""
    entries: dict[int, dict[str, Any]] = {}
    for sample in samples:
        entry = entries.setdefault(sample["doc_id"], {"scores": {}, **_item(sample, task)})
        for metric in sample["metrics"]:
            key = f"{metric},{sample['filter']}".removesuffix(",none")
            entry["scores"][key] = _of_one(metric, sample[metric], task)
    shots = task.get_config("num_fewshot") or 0
    return {
        item: item_line(name, shots, item, truncated=(name, item) in truncated, **entry)
        for item, entry in entries.items()
    }


def item_line(
    task: str, n_shot: int, item: int, scores: dict[str, float], *, truncated: bool = False, **told: Any
) -> str:
    """Return a line of an items file: JSON as every program reads it, so what is no number is null."""
    finite = {metric: float(value) if math.isfinite(value) else None for metric, value in scores.items()}
    entry = {"task": task, "n_shot": n_shot, "item": item, "prompt": "", "target": "", "response": ""}
    entry |= {"scores": finite, **told, "truncated": truncated}
    return json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n"


def _of_one(metric: str, value: Any, task: Any) -> float:
    """Return what a metric says of one item, NaN where it says nothing.

    The harness keeps what a metric over the whole set needs of each item: a pair of label and prediction, of
    reference and response, of log-likelihood and words. A pair of labels is right or wrong.
    """
    if isinstance(value, tuple) and len(value) == 2 and all(map(is_whole, value)):
        return float(value[0] == value[1])
    if value is None:
        return math.nan
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a correlation of one item
            return float(task.aggregation().get(metric, np.mean)([value]))
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError):
        return math.nan


def _item(sample: dict[str, Any], task: Any) -> dict[str, Any]:
    """Prompt, target and response of one item, choices as their texts; and what a metric chose instead."""
    target, arguments, answers = sample["target"], sample["arguments"], sample["resps"]
    response, others = "", {}
    if task.OUTPUT_TYPE == "multiple_choice":
        # mutual information asks every choice once more, without its question
        n = len(answers) // (2 if "acc_mutual_info" in sample["metrics"] else 1)
        choices = [(context if task.multiple_input else choice).strip() for context, choice in arguments[:n]]
        logs = np.array([answer[0][0] for answer in answers])
        response = choices[int(np.argmax(logs[:n]))]
        picked = {metric: choices[int(k)] for metric, k in _picks(sample, task, logs, n).items()}
        others = {metric: text for metric, text in picked.items() if text != response}
        if not task.multiple_input:
            several = isinstance(target, list | tuple)
            texts = [choices[k] if is_choice(k, n) else k for k in (target if several else [target])]
            target = texts if several else texts[0]
    elif task.OUTPUT_TYPE == "generate_until":
        response = answers[0][0]
    told = {"prompt": arguments[0][0], "target": str(target).strip(), "response": response}
    return told | ({"responses": others} if others else {})


def _picks(sample: dict[str, Any], task: Any, logs: np.ndarray, n: int) -> dict[str, Any]:
    """Return the number of the choice by each metric that has another rule than the likeliest one."""
    rules: dict[str, Callable[[], Any]] = {
        "acc_norm": lambda: logs[:n] / [len(one) for one in task.doc_to_choice(sample["doc"])],
        "acc_bytes": lambda: logs[:n] / [len(one.encode()) for one in task.doc_to_choice(sample["doc"])],
        "acc_mutual_info": lambda: logs[:n] - logs[n:],
    }
    return {metric: np.argmax(rules[metric]()) for metric in sample["metrics"] if metric in rules}
