"""Tasks of the harness asked by several processes, and answered while further tasks are built."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

from lm_eval.api.samplers import FirstNSampler
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.evaluator_utils import get_sample_size

from workbench.evaluation.in_memory import InMemory

#: items that are begun together while more are built: first, and twice as many each time up to the most
_FIRST, _MOST = 50, 400


def shareable(task: Any, limit: int | float | None, n: int) -> bool:
    """Say whether each process can ask every n-th item: there are enough, and none is scored by chance."""
    if type(task) is not ConfigurableTask or min(len(task.eval_docs), get_sample_size(task, limit) or n) < n:
        return False
    scores = (task.config.process_results, *task._metric_fn_list.values(), *task.aggregation().values())
    return not any(callable(score) and _may_draw(score) for score in scores)


def _may_draw(score: Callable[..., Any]) -> bool:
    """Say whether a function that scores may do so by chance: of a person's own, its file says so."""
    if (getattr(score, "__module__", None) or "").startswith("lm_eval.api."):
        return False
    try:
        return "random" in Path(score.__code__.co_filename).read_text(encoding="utf-8")
    except (AttributeError, OSError, UnicodeDecodeError):
        return True


def builds_item_by_item(task: Any) -> bool:
    """Say whether a task's requests are final once constructed; a class of its own may change them."""
    return getattr(type(task), "build_all_requests", None) is Task.build_all_requests


class Ahead:
    """Lets the model begin with requests while others still are built; all processes at the same items."""

    def __init__(self, lm: InMemory) -> None:
        self.lm, self.items, self.enough, self.left = lm, 0, _FIRST, 0
        self.requests: list[Any] = []

    def follow(self, task: Any) -> None:
        """Take a task's requests as it builds them; those behind the last task's are begun without more."""
        if task.OUTPUT_TYPE not in ("loglikelihood", "multiple_choice"):
            return
        build, construct = task.build_all_requests, task.construct_requests
        self.left += 1

        @wraps(build)
        def build_and_begin(*, limit: int | None, **settings: Any) -> None:
            items = min(len(task.eval_docs), limit or math.inf)
            if builds_item_by_item(task):
                ends = self._ends(items)

                def construct_and_take(*args: Any, **more: Any) -> Any:
                    item = more["metadata"][1]
                    while ends and item >= ends[0]:
                        ends.popleft()
                        self._begin()
                    self.lm.launcher.let_launch()
                    made = construct(*args, **more)
                    if item % self.lm.world_size == self.lm.rank:
                        self._take(made if isinstance(made, list) else [made])
                    return made

                with patch.object(task, "construct_requests", construct_and_take):
                    build(limit=limit, **settings)
                for _ in ends:  # in which this process has no item
                    self._begin()
            else:
                build(limit=limit, **settings)
                self.items += int(items)
                self._take(task.instances)
            self.left -= 1
            if self.items >= self.enough or not self.left:
                self.items = 0
                self._begin()

        task.build_all_requests = build_and_begin

    def _ends(self, items: float) -> deque[int]:
        """Count a task's items, and return before which of them a part ends; none where few would be left."""
        ends: deque[int] = deque()
        first, enough = -self.items, self.enough
        while items - first > 2 * enough:
            first += enough
            ends.append(first)
            enough = min(2 * enough, _MOST)
        self.items = int(items) - first
        return ends

    def _take(self, made: list[Any]) -> None:
        self.requests += [one for one in made if one.request_type == "loglikelihood"]

    def _begin(self) -> None:
        asked, self.requests = self.requests, []
        self.enough = min(2 * self.enough, _MOST)
        self.lm.ask_ahead(asked)


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
    if sampler is None or type(sampler).sample is FirstNSampler.sample:  # which draws none by chance
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
