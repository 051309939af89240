"""A model as the harness asks it: how far it is, which processes share its items, what memory allows."""

from __future__ import annotations

import gc
import warnings
from threading import current_thread
from typing import Any

import torch

from workbench.bars import tqdm
from workbench.evaluation.launching import Launcher
from workbench.evaluation.reading import Reading
from workbench.models.hooks import not_finite
from workbench.models.processes import everyones, place


class Asking(Reading):
    """The harness's Hugging Face model around a model object, without what answers.

    Attributes:
        truncated: (task, item) of every prompt that lost its beginning because the context is too short.
        own: the samples of this process's items, by task, while there are several processes.
        most: prompts at once at most; None for as many as fit.
        launcher: what gives a device its work.
        thread: the one that the bar belongs to.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, batch_size: int | str, progress: bool = False, **settings: Any
    ) -> None:
        """Put the harness around a model; ``settings`` are its own, and ``thinking`` and ``template``."""
        super().__init__(model, tokenizer, **settings)
        self.truncated: set[tuple[str, int]] = set()
        self.own: dict[str, Any] = {}
        self.most = None if batch_size == "auto" else int(batch_size)
        self.launcher = Launcher(self.device, self._busy, self._show)
        self.answered = 0
        self.thread = current_thread()
        self.bar = tqdm(total=0, desc="evaluation", unit="request", leave=False, disable=not progress)
        self.cache_hook = self  # the harness reports each finished request to it

    def add_partial(self, *_: Any) -> None:
        """One request is answered."""
        self.tell(1)

    def tell(self, n: int) -> None:
        """Count requests that are answered; the bar moves in the thread that it belongs to."""
        self.answered += n
        if current_thread() is self.thread:
            self._show()

    def _expect(self, n: int) -> None:
        self.bar.total += n
        self.bar.refresh()

    def _note(self, request: Any, too_long: bool) -> None:
        if too_long:
            self.truncated.add((request.task_name, request.doc_id))

    def _busy(self) -> bool:
        """Say whether a pass is left to a GPU."""
        return False

    def _show(self) -> None:
        self.bar.update(self.answered - self.bar.n)

    def share_items(self, shared: bool) -> None:
        """Say whether each process of a launcher is asked items of its own, or all are asked the same."""
        self._rank, self._world_size = place() if shared else (0, 1)

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Say that all processes have as many requests as this one: none is asked more to be even."""
        return tensor.repeat(self.world_size)

    def gather_object(self, obj: dict[str, Any], dst: int = 0) -> list[Any]:
        """Return the scores of all processes; what is measured is taken from them afterwards.

        Prompts and documents, which are most of a sample, stay where they are.
        """
        if any(isinstance(found, dict) for found in obj.values()):
            return [obj]
        self.own = obj
        return everyones({name: [_scores(one) for one in samples] for name, samples in obj.items()})

    def barrier(self) -> None:
        """Wait for nobody: the processes meet when they are asked."""

    def _of_all(self, mine: list[Any], *bounds: float) -> tuple[list[Any], slice, list[float]]:
        """Return what is asked in all processes, where this one's part of it is, and the least bounds."""
        told = everyones((mine if self.world_size > 1 else [], bounds))
        parts = [part for part, _ in told] if self.world_size > 1 else [mine]
        start = sum(map(len, parts[: self.rank]))
        least = [min(values) for values in zip(*(theirs for _, theirs in told), strict=True)]
        return [one for part in parts for one in part], slice(start, start + len(mine)), least

    def take_less(self, rows: int, error: BaseException) -> None:
        """Take half as many prompts at once from now on.

        Raises:
            ValueError: when it was one.
        """
        if rows == 1:
            raise ValueError(f"max_length must be below {self.max_length} to fit into memory") from error
        self.most = rows // 2
        warnings.warn(f"{rows} prompts do not fit into memory; now {self.most}", stacklevel=2)
        gc.unfreeze()  # what an evaluation lets the collector pass over may hold a model that nobody wants
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def not_finite(self, ids: torch.Tensor) -> ValueError:
        """Return the error of logits that are no numbers, which says where they begin."""
        return not_finite(self.model, ids=ids)

    def mixed(self) -> Any:
        """Return the context in which the harness runs the model."""
        kind = self.mixed_precision_dtype
        return torch.autocast(device_type=self.device.type, dtype=kind, enabled=kind is not None)


def _scores(sample: dict[str, Any]) -> dict[str, Any]:
    return {key: sample[key] for key in ("doc_id", "filter", "metrics", *sample["metrics"])}
