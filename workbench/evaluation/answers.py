"""Log-likelihoods of continuations, batch after batch: only the logits that are asked for are ever made."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.evaluation.layout import Batch, flat_places
from workbench.evaluation.prefixes import block_cache, joined, on_device, tensors
from workbench.models.hooks import hooked
from workbench.models.layers import unwrap

#: by number of the request: summed log-likelihood, and whether it is the greedy answer
Found = dict[int, tuple[float, bool]]
#: batches that a GPU is given before the oldest is waited for
_AT_WORK = 4


class Pending(NamedTuple):
    """What a device may still be computing for a batch.

    Attributes:
        answers: whose it is.
        ids: its tokens.
        values: log-probability of every token that is asked for, whether each is the likeliest, and whether
            all logits are numbers, ``[2 n + 1]`` on the CPU once the copy is done.
        copied: what says when that is; None where it is.
        numbers: the request of each of these tokens.
        dtype: in which the log-probabilities were computed.
    """

    answers: Answers
    ids: Tensor
    values: Tensor
    copied: torch.cuda.Event | None
    numbers: list[int]
    dtype: torch.dtype


class Answers:
    """What a model gives to the requests behind some inputs."""

    def __init__(self, lm: Any, continuations: Sequence[np.ndarray], users: Sequence[Sequence[int]]) -> None:
        """Keep what is asked.

        Args:
            lm: the model as the harness asks it; what it has begun of all answers is in ``lm.pending``.
            continuations: tokens of each request's continuation.
            users: for each input, the requests that it answers.
        """
        self.lm, self.continuations, self.users = lm, continuations, users
        self.found: Found = {}

    def begin(self, batches: Sequence[Batch], own: Sequence[bool]) -> None:
        """Begin this process's own batches; a GPU may be at work for a while after."""
        blocks: tuple[tuple[int, ...], ...] = ()
        cache = None
        for batch, mine in zip(batches, own, strict=True):
            if self.lm.launcher.stopped:
                return
            if not mine:
                self.lm.tell(sum(len(self.users[k]) for row in batch.rows for k in row.inputs))
                continue
            if batch.blocks != blocks:
                blocks, cache = batch.blocks, None  # the old one is freed first
                cache = self._cached(blocks) if blocks else None
            self._begin(batch, cache)

    def _cached(self, blocks: tuple[tuple[int, ...], ...]) -> Any:
        """Return the keys and values of blocks, one after the other where memory does not suffice.

        Raises:
            ValueError: when one alone does not fit.
        """
        with torch.no_grad(), self.lm.mixed(), _chosen(self.lm.model, torch.tensor([0])):
            try:
                return block_cache(self.lm.model, blocks)
            except torch.OutOfMemoryError as error:
                if len(blocks) == 1:
                    self.lm.take_less(1, error)
        return joined([self._cached((block,)) for block in blocks])

    def _begin(self, batch: Batch, cache: Any) -> None:
        """Begin a batch, in halves where memory does not suffice."""
        if not self.lm.most or len(batch.rows) <= self.lm.most:
            try:
                self.lm.launched = self._scored(batch, cache)
                self.lm.pending.append(self.lm.launched)
            except torch.OutOfMemoryError as error:
                self.lm.take_less(len(batch.rows), error)
            else:
                end(self.lm.pending, _AT_WORK if self.lm.pending[-1].copied else 0)
                return
        for half in batch.in_halves():
            self._begin(half, cache)

    def keep(self, done: Pending) -> None:
        """Keep what a batch gave."""
        logs, right = done.values[:-1].numpy().reshape(2, -1)
        if not done.values[-1]:
            raise self.lm.not_finite(done.ids)
        starts = np.flatnonzero(np.diff(done.numbers, prepend=-1))
        sums = torch.from_numpy(np.add.reduceat(logs, starts)).to(done.dtype).tolist()
        greedy = np.logical_and.reduceat(right > 0, starts).tolist()
        found = zip((done.numbers[at] for at in starts), zip(sums, greedy, strict=True), strict=True)
        self.found |= found
        self.lm.tell(len(starts))

    def _scored(self, batch: Batch, cache: Any) -> Pending:
        where, length = flat_places(batch), batch.length  # it counts anew whenever it is asked
        kept_at = {int(flat): k for k, flat in enumerate(where)}
        numbers: list[int] = []
        rows: list[int] = []
        tokens: list[int] = []
        for line, row in enumerate(batch.rows):
            for k, slots in zip(row.inputs, row.slots, strict=True):
                places = [kept_at[line * length + slot] for slot in slots]
                for number in self.users[k]:
                    answer = self.continuations[number]
                    numbers += [number] * len(answer)
                    rows += places[-len(answer) :]
                    tokens += answer.tolist()
        asked = tensors(self.lm.model, batch, cache)
        ids = asked["input_ids"]
        logits = self._logits(asked, where)
        # in an argmax, the first of several that are no numbers wins
        finite = torch.isfinite(logits.amax(-1)).all().double()
        index, answers = (on_device(values, logits.device) for values in (rows, tokens))
        scores = logits.log_softmax(-1, dtype=self.lm.softmax_dtype)
        right = scores.argmax(-1)[index] == answers
        values, copied = _copy_begun(
            torch.cat([scores[index, answers].double(), right.double(), finite[None]])
        )
        return Pending(self, ids, values, copied, numbers, scores.dtype)

    def _logits(self, asked: dict[str, Any], where: Tensor) -> Any:
        """Return the logits ``[n, vocabulary]`` of some places in the flattened batch."""
        ids = asked.pop("input_ids")
        with torch.no_grad(), self.lm.mixed(), _chosen(self.lm.model, where) as fired:
            logits = self.lm.model(ids, **asked).logits.flatten(0, -2)
        return logits if fired else logits.index_select(0, on_device(where, logits.device))


def end(pending: deque[Pending], rest: int = 0) -> None:
    """Wait for the oldest of what was begun until not more than some are left, and keep what they gave."""
    while len(pending) > rest:
        done = pending.popleft()
        if done.copied is not None:
            done.copied.synchronize()
        done.answers.keep(done)


def _copy_begun(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Return values on the CPU, and what says when they are there: a plain copy waits for all before it."""
    if values.device.type != "cuda":
        return values.cpu(), None
    kept = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    kept.copy_(values, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(values.device))
    return kept, copied


@contextmanager
def _chosen(model: Any, where: torch.Tensor) -> Iterator[list[bool]]:
    """Let the head see some places of the flattened batch alone; what is given says whether it did."""
    head, fired = unwrap(model).get_output_embeddings(), []

    def choose(module: Any, args: tuple[Any, ...]) -> Any:
        states = args[0].flatten(0, -2)
        fired.append(True)
        return (states.index_select(0, on_device(where, states.device))[None], *args[1:])

    with hooked() as handles:
        if head is not None:
            handles.append(head.register_forward_pre_hook(choose))
        yield fired
