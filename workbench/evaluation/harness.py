"""The lm-evaluation-harness run on tasks: quiet, its results as tidy rows, everything put back as it was."""

from __future__ import annotations

import gc
import logging
import math
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import datasets
import lm_eval.api.task
import lm_eval.evaluator
import numpy as np
import torch
from lm_eval.api import metrics
from lm_eval.evaluator import evaluate as run_harness

from workbench.bars import tqdm
from workbench.checks import whole_number
from workbench.evaluation.dependencies import sandbox
from workbench.evaluation.documents import own_rows, process_once
from workbench.evaluation.in_memory import InMemory
from workbench.evaluation.offline import set_of
from workbench.evaluation.samples import Told, of_all_processes
from workbench.evaluation.sharing import Ahead, as_one_process, build_own, shareable
from workbench.evaluation.suites import CATEGORIES
from workbench.models.hooks import any_shape, at_the_end, inference
from workbench.models.processes import everyones, failing_together, place

#: objects that an interpreter itself may keep from the collector
_OWN_FROZEN = 10_000
# for the standard errors that have no formula
_RESAMPLES = 1000
#: metrics that are taken from sums of log-likelihoods and of units
_RATIOS = {"word_perplexity", "byte_perplexity", "bits_per_byte"}


def run_tasks(
    lm: InMemory,
    tasks: dict[str, Any],
    *,
    limit: int | float | None,
    chat: bool,
    tell: Callable[..., dict[str, Told]] | None = None,
    **settings: Any,
) -> tuple[dict[str, Any], set[tuple[str, int]]]:
    """The harness's own results of loaded tasks with every sample, and the truncated (task, item) pairs.

    Of several processes each asks and scores every n-th item, by the harness's own means, and the first gets
    all results, of every sample the scores; the others get none. Where a task has too few items for that, all
    do everything. What ``tell`` makes of the samples, each process of its own, is in ``results["told"]``.
    """
    lm.truncated.clear()
    for task in tasks["tasks"].values():
        process_once(task)
    random.seed(0)  # as the command line sets them
    np.random.seed(1234)
    torch.manual_seed(1234)
    settings |= {"apply_chat_template": chat, "fewshot_as_multiturn": chat, "bootstrap_iters": _RESAMPLES}
    ahead, (_, n) = Ahead(lm), place()
    with failing_together(), lm.asked_ahead():
        if n > 1:
            lm.share_items(all(shareable(task, limit, n) for task in tasks["tasks"].values()))
        with ExitStack() as stack:
            for task in tasks["tasks"].values():  # as they were afterwards
                stack.enter_context(patch.object(task, "build_all_requests", task.build_all_requests))
                stack.enter_context(patch.object(task, "doc_iterator", own_rows(task)))
                if lm.world_size > 1:
                    build_own(task)
                ahead.follow(task)
            if lm.world_size > 1:
                average = as_one_process(lm_eval.evaluator._process_results)
                stack.enter_context(patch.object(lm_eval.evaluator, "_process_results", average))
            results = run_harness(lm, tasks, limit=limit, **settings)
        own, lm.own = lm.own if lm.world_size > 1 else results["samples"], {}
        mine = tell(own, truncated=lm.truncated) if tell and (lm.world_size > 1 or place()[0] == 0) else {}
        cuts, parts = zip(*everyones((lm.truncated, mine)), strict=True)
        if results is not None:
            results["told"] = of_all_processes([part for part in parts if part])
        return results, set().union(*cuts)


def set_generation(tasks: dict[str, Any], settings: dict[str, Any]) -> None:
    """Put settings of the generation over those that the tasks state, as the harness's command line does."""
    for task in tasks.values():
        if task.OUTPUT_TYPE == "generate_until":
            task.set_config("generation_kwargs", settings, update=True)


def check_lengths(lm: InMemory, tasks: dict[str, Any]) -> None:
    """Refuses a task that generates as many tokens as the context holds, which leaves none for its prompt.

    Raises:
        ValueError: naming the task and its answers' length; a task of choices for a model that thinks first.
    """
    for name, task in tasks.items():
        if task.OUTPUT_TYPE != "generate_until":
            if lm.chat["thinking"]:
                raise ValueError(f"thinking must be False for task {name!r}, which generates no answer")
            continue
        if (answer := lm.answer_length(task.config.generation_kwargs)) >= lm.max_length:
            least = f"above the {answer} tokens that task {name!r} generates"
            raise ValueError(f"max_length must be {least}, got {lm.max_length}")


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
            fixed_at = f"n_shot of task {name!r} is fixed at 0"
            raise ValueError(f"{fixed_at}, got {n_shot}; ask for it apart, without n_shot")
        shots = fixed or 0 if n_shot is None else n_shot
        available = len(task.sampler.df) if hasattr(task, "sampler") else 0
        whole_number(shots, f"n_shot of task {name!r}, which has {available} examples,", 0, available)
        orders = math.factorial(shots)
        whole_number(order, f"shot_order of task {name!r} with {shots} examples", 0, orders - 1)
        task.set_config("num_fewshot", shots)
        task.set_fewshot_seed(seed)
        if order:
            task.sampler.sample = partial(_in_order, task.sampler.sample, shot_order(shots, order))


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
        # the harness leaves the number out for groups of groups
        shots = max((results["n-shot"].get(task) or 0 for task in under), default=0)
        cut = sum(task in under for task, _ in truncated)
        counts = {"n": int(values.get("sample_len", 0)), "truncated": cut}
        place = {"parent": _parent(name, above, counted)}
        place |= {"category": _category(name, tasks.get(name), loaded["group_map"])}
        for key in _metrics(values):
            metric, filter_name = key.split(",", 1)
            if (error := values.get(f"{metric}_stderr,{filter_name}", "N/A")) == "N/A":
                error = _perplexity_error(metric, results["samples"].get(name, []))
            row = {"task": name, "metric": key.removesuffix(",none"), "n_shot": shots}
            row |= {"value": float(values[key]), "stderr": float(error), **counts}
            better = results["higher_is_better"].get(name, {}).get(metric) is not False
            rows.append(row | {"higher_is_better": better, **place})
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
    if not pairs or metric not in _RATIOS:
        return math.nan
    totals, units = np.array(pairs).T
    ratio, error = ratio_of_sums(-totals, units)
    return error / math.log(2) if metric == "bits_per_byte" else exponential(ratio) * error


def _metrics(values: dict[str, Any]) -> list[str]:
    """Return the "metric,filter" of a task's results."""
    return [key for key in values if "," in key and "_stderr," not in key]


def exponential(value: float) -> float:
    """Return exp(value), infinite where it is too large for a number: of a model that has lost everything."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


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

    def restore() -> None:
        random.setstate(python)
        np.random.set_state(legacy)
        for name, value in settings.items():
            if getattr(tokenizer, name) != value:
                setattr(tokenizer, name, value)

    devices = range(torch.cuda.device_count())  # named, or torch warns where there are several
    with (
        inference(model),
        any_shape(),
        torch.random.fork_rng(devices),
        at_the_end(restore),
        _little_garbage(),
    ):
        yield


@contextmanager
def _little_garbage() -> Iterator[None]:
    """Let the collector pass over what is there already, such as all that was imported."""
    if gc.get_freeze_count() > _OWN_FROZEN:  # somebody's; to let it go is theirs
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def quiet(*, allow_code: bool = False) -> Iterator[None]:
    """Only errors are logged, only our own bar is drawn, and templates of tasks run in jinja's sandbox.

    Args:
        allow_code: leaves templates as the harness runs them, with all of Python in reach.

    Raises:
        ValueError: a template reaches for Python.
    """
    with ExitStack() as stack:
        stack.enter_context(sandbox(allow_code))
        for name in ("lm_eval", "lm-eval", "transformers", "huggingface_hub"):  # long prompts are counted
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        if datasets.is_progress_bar_enabled():
            stack.callback(datasets.enable_progress_bars)
            datasets.disable_progress_bars()
        # The bar over prompts being built has no switch of its own, nor has what is said of resampling.
        stack.enter_context(patch.object(lm_eval.api.task, "tqdm", partial(tqdm, disable=True)))
        stack.enter_context(patch.object(metrics, "bootstrap_stderr", _bootstrap_error))
        safe = SimpleNamespace(**vars(math) | {"exp": exponential})
        stack.enter_context(patch.object(metrics, "math", safe))
        yield


def _bootstrap_error(metric: Callable[..., float], values: Any, iters: int) -> float:
    """The harness's own error by resampling, of up to 1000 draws: without its processes, prints and bar."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a resample can hold one label alone
        return float(metrics.sample_stddev(metrics._bootstrap_internal(metric, iters)((0, values))))
