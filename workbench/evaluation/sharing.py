"""Tasks of the harness asked by several processes, and answered while further tasks are built."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator_utils import get_sample_size

from workbench.evaluation.in_memory import InMemory

#: items that are begun together while more are built: first, and twice as many each time up to the most
_FIRST, _MOST = 50, 400


def shareable(task: Any, limit: int | float | None, n: int) -> bool:
    """Say whether each process can ask every n-th item: there are enough, and none is scored by chance."""
    if type(task) is not ConfigurableTask or min(len(task.eval_docs), get_sample_size(task, limit) or n) < n:
        return False
    score = task.config.process_results
    if not callable(score):
        return True
    try:
        return "random" not in Path(score.__code__.co_filename).read_text(encoding="utf-8")
    except (AttributeError, OSError, UnicodeDecodeError):
        return False


class Ahead:
    """Lets the model begin with the requests of tasks that are built while others still are."""

    def __init__(self, lm: InMemory) -> None:
        self.lm, self.items = lm, 0.0
        self.requests: list[Any] = []
        self.any = False  # so far; the same in every process
        self.enough, self.left = _FIRST, 0

    def follow(self, task: Any) -> None:
        """Take a task's requests once it has built them; every process begins after the same task."""
        build = task.build_all_requests
        self.left += 1

        @wraps(build)
        def build_and_begin(*, limit: int | None, **settings: Any) -> None:
            build(limit=limit, **settings)
            self.requests += [one for one in task.instances if one.request_type == "loglikelihood"]
            self.items += min(len(task.eval_docs), limit or math.inf)
            self.any |= task.OUTPUT_TYPE in ("loglikelihood", "multiple_choice")
            self.left -= 1
            if self.any and (self.items >= self.enough or not self.left):
                self.lm.ask_ahead(self.requests)
                self.requests, self.items, self.any = [], 0.0, False
                self.enough = min(2 * self.enough, _MOST)
            else:
                self.lm.go_on()

        task.build_all_requests = build_and_begin


def build_own(task: Any) -> None:
    """Let a task build the requests of every n-th item, with the few-shot examples that one process draws."""
    build = task.build_all_requests

    @wraps(build)
    def build_own(*, rank: int, world_size: int, **settings: Any) -> None:
        if _by_templates(task):
            with _drawn_for_all(task, rank, world_size):
                build(rank=rank, world_size=world_size, **settings)
            return
        build(rank=0, world_size=1, **settings)  # its functions may draw as well
        task._instances = [one for one in task.instances if one.doc_id % world_size == rank]

    task.build_all_requests = build_own


def _by_templates(task: Any) -> bool:
    """Say whether prompts of a task are made by templates alone, without chance."""
    names = ("doc_to_text", "doc_to_target", "doc_to_choice", "description", "gen_prefix")
    fields = [getattr(place, name, None) for place in (task.config, task.fewshot_cfg) for name in names]
    return not any(callable(field) or "random" in str(field) for field in fields)


@contextmanager
def _drawn_for_all(task: Any, rank: int, n: int) -> Iterator[None]:
    """Draw the few-shot examples of other processes' items as well, each in its turn."""
    sampler = getattr(task, "sampler", None)
    if sampler is None:
        yield
        return
    sample, drawn, docs = sampler.sample, itertools.count(), task.eval_docs

    def sample_in_turn(*args: Any, eval_doc: Any = None, **settings: Any) -> Any:
        while (number := next(drawn)) % n != rank:
            sample(*args, eval_doc=None if eval_doc is None else docs[number], **settings)
        return sample(*args, eval_doc=eval_doc, **settings)

    with patch.object(sampler, "sample", sample_in_turn):
        yield


def as_one_process(average: Callable[..., Any]) -> Callable[..., Any]:
    """Let the harness average what all processes found in the order of one, so that all sums are the same."""

    def averaged(found: dict[str, Any], *args: Any, **settings: Any) -> Any:
        for entry in found.values():
            samples = entry["logged_samples"]
            filters = [*dict.fromkeys(sample["filter"] for sample in samples)]
            samples.sort(key=lambda sample: (filters.index(sample["filter"]), sample["doc_id"]))
            measured: dict[tuple[str, str], list[Any]] = {}
            for sample in samples:
                for metric in sample["metrics"]:
                    measured.setdefault((metric, sample["filter"]), []).append(sample[metric])
            entry["raw_metrics"] = measured
        return average(found, *args, **settings)

    return averaged
