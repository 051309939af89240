"""The lm-evaluation-harness around a model in memory: quiet, counting what it truncates, leaving no trace."""

from __future__ import annotations

import json
import logging
import math
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import datasets
import lm_eval.api.task
import numpy as np
import torch
from lm_eval.evaluator import evaluate as run_harness
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm.auto import tqdm

from workbench.checks import whole_number
from workbench.evaluation.offline import set_of
from workbench.evaluation.suites import CATEGORIES
from workbench.models.hooks import inference

# for the standard errors that have no formula
_RESAMPLES = 1000


class InMemory(HFLM):  # type: ignore[misc, unused-ignore]  # lm_eval carries no types
    """The harness's Hugging Face model around a model object: one progress bar, truncated prompts counted.

    Attributes:
        truncated: (task, item) of every prompt that lost its beginning because the context is too short.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, batch_size: int, max_length: int | None, progress: bool
    ) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=max_length)
        self.truncated: set[tuple[str, int]] = set()
        self.bar = tqdm(total=0, desc="evaluation", unit="request", leave=False, disable=not progress)
        self.cache_hook = self  # the harness reports each finished request to it

    def add_partial(self, *_: Any) -> None:
        """One request is answered."""
        self.bar.update()

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
        """As in the harness; notes which items are truncated."""
        self._expect(requests)
        answers = super().loglikelihood(requests, disable_tqdm=True)
        for request, length in zip(requests, self._lengths, strict=True):
            self._note(request, length > self.max_length + 1)
        return answers

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> Any:
        self._lengths = [len(context) + len(continuation) for _, context, continuation in requests]
        if (longest := max(len(continuation) for *_, continuation in requests)) > self.max_length:
            raise ValueError(
                f"max_length must be at least {longest}, the longest answer in tokens, got {self.max_length}"
            )
        return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
        """As in the harness; a long text is scored window by window, so nothing is truncated."""
        self._expect(requests)
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
        """As in the harness; notes which items are truncated to leave room for the answer."""
        self._expect(requests)
        for request in requests:
            prompt, settings = request.args
            self._note(request, len(self.tok_encode(prompt)) > self.max_length - self.answer_length(settings))
        return super().generate_until(requests, disable_tqdm=True)

    def answer_length(self, settings: dict[str, Any] | None) -> int:
        """Return how many tokens a task generates with these settings."""
        return int(normalize_gen_kwargs(dict(settings or {}), self.max_gen_toks)["max_gen_toks"])

    def _expect(self, requests: list[Any]) -> None:
        self.bar.total += len(requests)
        self.bar.refresh()

    def _note(self, request: Any, too_long: bool) -> None:
        if too_long:
            self.truncated.add((request.task_name, request.doc_id))


def run_tasks(
    lm: InMemory, tasks: dict[str, Any], *, limit: int | float | None, chat_template: bool
) -> tuple[dict[str, Any], set[tuple[str, int]]]:
    """The harness's own results of loaded tasks with every sample, and the truncated (task, item) pairs."""
    lm.truncated.clear()
    random.seed(0)  # as the command line sets them
    np.random.seed(1234)
    torch.manual_seed(1234)
    results = run_harness(
        lm,
        tasks,
        limit=limit,
        bootstrap_iters=_RESAMPLES,
        apply_chat_template=chat_template,
        fewshot_as_multiturn=chat_template,
    )
    return results, set(lm.truncated)


def check_lengths(lm: InMemory, tasks: dict[str, Any]) -> None:
    """Refuses a task that generates as many tokens as the context holds, which leaves none for its prompt.

    Raises:
        ValueError: naming the task and its answers' length.
    """
    for name, task in tasks.items():
        if task.OUTPUT_TYPE != "generate_until":
            continue
        if (answer := lm.answer_length(task.config.generation_kwargs)) >= lm.max_length:
            raise ValueError(
                f"max_length must be above the {answer} tokens that task {name!r} generates, "
                f"got {lm.max_length}"
            )


def set_shots(tasks: dict[str, Any], n_shot: int | None, seed: int, order: int = 0) -> None:
    """Sets the number, the draw and the order of few-shot examples, as the harness's command line does.

    Args:
        tasks: loaded tasks.
        n_shot: number of examples; None keeps each task's own.
        seed: of the draw.
        order: 0 leaves the examples in the harness's order; k puts them in the k-th of other orders.

    Raises:
        ValueError: a task that its authors fix at zero-shot is asked for more, has too few examples to draw
            from, or fewer orders of them than ``order``.
    """
    for name, task in tasks.items():
        fixed = task.get_config("num_fewshot")
        if n_shot and fixed == 0:
            raise ValueError(
                f"n_shot of task {name!r} is fixed at 0, got {n_shot}; ask for it apart, without n_shot"
            )
        shots = fixed or 0 if n_shot is None else n_shot
        available = len(task.sampler.df) if hasattr(task, "sampler") else 0
        whole_number(shots, f"n_shot of task {name!r}, which has {available} examples,", 0, available)
        orders = math.factorial(shots)
        whole_number(order, f"shot_order of task {name!r} with {shots} examples", 0, orders - 1)
        task.set_config("num_fewshot", shots)
        task.set_fewshot_seed(seed)
        if order:
            places = shot_order(shots, order)
            task.sampler.sample = partial(_in_order, task.sampler.sample, places)


def shot_order(n: int, order: int) -> list[int]:
    """Return the ``order``-th of the orders of ``n`` examples: 0 as they are, then distinct random ones."""
    draw, orders = random.Random(0), [list(range(n))]
    while len(orders) <= order:
        places = draw.sample(range(n), n)
        if places not in orders:
            orders.append(places)
    return orders[order]


def _in_order(sample: Callable[..., Any], places: list[int], *args: Any, **keywords: Any) -> list[Any]:
    drawn = sample(*args, **keywords)
    return [drawn[place] for place in places]


def score_rows(
    results: dict[str, Any], loaded: dict[str, dict[str, Any]], truncated: set[tuple[str, int]]
) -> list[dict[str, Any]]:
    """The harness's nested results as rows; groups carry the counts of the tasks under them."""
    groups, tasks = loaded["groups"], loaded["tasks"]
    leaves = {name: {task.task_name for task in group.get_all_tasks()} for name, group in groups.items()}
    above = {child: name for name, group in groups.items() for child in group.child_names}
    counted = {name for name in groups if _metrics(results["results"][name])}
    rows = []
    for name, values in results["results"].items():
        under = leaves.get(name, {name})
        cut = sum(task in under for task, _ in truncated)
        # the harness leaves the number out for groups of groups
        shots = max((results["n-shot"].get(task) or 0 for task in under), default=0)
        for key in _metrics(values):
            metric, filter_name = key.split(",", 1)
            if (error := values.get(f"{metric}_stderr,{filter_name}", "N/A")) == "N/A":
                error = _perplexity_error(metric, results["samples"].get(name, []))
            rows.append(
                {
                    "task": name,
                    "metric": key.removesuffix(",none"),
                    "n_shot": shots,
                    "value": float(values[key]),
                    "stderr": float(error),
                    "n": int(values["sample_len"]),
                    "truncated": cut,
                    "higher_is_better": results["higher_is_better"].get(name, {}).get(metric) is not False,
                    "parent": _parent(name, above, counted),
                    "category": _category(name, tasks.get(name), loaded["group_map"]),
                }
            )
    return rows


def _parent(name: str, above: dict[str, str], counted: set[str]) -> str:
    """Return the nearest group above that has scores of its own, "" for none."""
    while (name := above.get(name, "")) and name not in counted:
        pass
    return name


def _category(name: str, task: Any, members: dict[str, list[str]]) -> str:
    """What a task file states, or what its name or a group above it is listed under."""
    stated = (task.get_config("metadata") or {}).get("category", "") if task else ""
    if found := CATEGORIES.get(name) or str(stated) or CATEGORIES.get(set_of(name) or ""):
        return found
    above = (_category(group, None, members) for group, inside in members.items() if name in inside)
    return next(filter(None, above), "")


def _perplexity_error(metric: str, samples: list[dict[str, Any]]) -> float:
    """Standard error of a metric taken from sums of log-likelihoods and of units; NaN for others."""
    pairs = [sample[metric] for sample in samples if isinstance(sample.get(metric), tuple)]
    if not pairs:
        return math.nan
    totals, units = np.array(pairs).T
    ratio, error = ratio_of_sums(-totals, units)
    return error / math.log(2) if metric == "bits_per_byte" else math.exp(ratio) * error


def _metrics(values: dict[str, Any]) -> list[str]:
    """Return the "metric,filter" of a task's results."""
    return [key for key in values if "," in key and "_stderr," not in key]


def item_lines(results: dict[str, Any], tasks: dict[str, Any], truncated: set[tuple[str, int]]) -> list[str]:
    """One JSON line an item; the answers of several filters share it."""
    lines = []
    for name, samples in results["samples"].items():
        entries: dict[int, dict[str, Any]] = {}
        for sample in samples:
            entry = entries.setdefault(sample["doc_id"], _item(sample, tasks[name]))
            for metric in sample["metrics"]:
                value = sample[metric]
                score = value[0] / value[1] if isinstance(value, tuple) else float(value)
                entry["scores"][f"{metric},{sample['filter']}".removesuffix(",none")] = score
        for item, entry in entries.items():
            entry = {"task": name, "n_shot": results["n-shot"].get(name, 0), "item": item} | entry
            lines.append(json.dumps(entry | {"truncated": (name, item) in truncated}, ensure_ascii=False))
    return lines


def _item(sample: dict[str, Any], task: Any) -> dict[str, Any]:
    """Prompt, target and response of one item, choices as their texts."""
    target, arguments, answers = sample["target"], sample["arguments"], sample["resps"]
    response = ""
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = [context if task.multiple_input else choice for context, choice in arguments]
        response = choices[int(np.argmax([answer[0][0] for answer in answers]))].strip()
        target = choices[target].strip() if isinstance(target, int) and not task.multiple_input else target
    elif task.OUTPUT_TYPE == "generate_until":
        response = answers[0][0]
    return {"prompt": arguments[0][0], "target": str(target).strip(), "response": response, "scores": {}}


def ratio_of_sums(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Sum / count over all texts, and its standard error with texts as sampling unit (linearised)."""
    ratio, n = float(sums.sum() / counts.sum()), len(sums)
    if n == 1:
        return ratio, math.nan
    residuals = sums - ratio * counts
    return ratio, float(np.sqrt(n / (n - 1) * (residuals**2).sum()) / counts.sum())


@contextmanager
def untouched(model: torch.nn.Module, tokenizer: Any) -> Iterator[None]:
    """Put back what the harness sets: the model's modes, the tokenizer's padding, the random generators."""
    settings = {name: getattr(tokenizer, name) for name in ("padding_side", "truncation_side", "pad_token")}
    python, legacy = random.getstate(), np.random.get_state()
    with inference(model), torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)
            for name, value in settings.items():
                if getattr(tokenizer, name) != value:
                    setattr(tokenizer, name, value)


@contextmanager
def quiet() -> Iterator[None]:
    """Only errors are logged, and only our own bar is drawn."""
    with ExitStack() as stack:
        for name in ("lm_eval", "lm-eval", "transformers", "huggingface_hub"):  # long prompts are counted
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        if datasets.is_progress_bar_enabled():
            stack.callback(datasets.enable_progress_bars)
            datasets.disable_progress_bars()
        # The bar over prompts being built has no switch of its own.
        stack.callback(setattr, lm_eval.api.task, "tqdm", lm_eval.api.task.tqdm)
        lm_eval.api.task.tqdm = partial(tqdm, disable=True)
        yield
