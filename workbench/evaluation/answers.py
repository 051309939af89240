"""Log-likelihoods of continuations, batch after batch: only the logits that are asked for are ever made."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.evaluation.prefixes import Batch, block_cache, flat_places, joined, on_device, tensors
from workbench.models.hooks import hooked
from workbench.models.layers import unwrap
from workbench.models.processes import place, shares

#: by number of the request: summed log-likelihood, and whether it is the greedy answer
Found = dict[int, tuple[float, bool]]
#: batches that a GPU is given before the oldest is waited for
_AT_WORK = 8


class Pending(NamedTuple):
    """What a device may still be computing for a batch.

    Attributes:
        ids: its tokens.
        finite: whether its logits are numbers.
        picked: log-probability of every token that is asked for, and whether it is the likeliest, ``[2, n]``.
        numbers: the request of each of these tokens.
        dtype: in which the log-probabilities were computed.
    """

    ids: Tensor
    finite: Tensor
    picked: Tensor
    numbers: list[int]
    dtype: torch.dtype


class Answers:
    """What a model gives to the requests behind some inputs."""

    def __init__(self, lm: Any, continuations: Sequence[np.ndarray], users: Sequence[Sequence[int]]) -> None:
        """Keep what is asked.

        Args:
            lm: the model as the harness asks it.
            continuations: tokens of each request's continuation.
            users: for each input, the requests that it answers.
        """
        self.lm, self.continuations, self.users = lm, continuations, users
        self.found: Found = {}
        self.pending: deque[Pending] = deque()

    def begin(self, batches: Sequence[Batch], loads: list[float]) -> None:
        """Begin batches, each in one of the processes there are; a GPU may be at work for a while after."""
        costs = [len(batch.rows) * batch.length for batch in batches]
        groups = [batch.blocks or k for k, batch in enumerate(batches)]
        owners = shares(costs, groups, [len(batch.blocks) * batch.before for batch in batches], loads)
        blocks: tuple[tuple[int, ...], ...] = ()
        cache = None
        for batch, owner in zip(batches, owners, strict=True):
            if owner != place()[0]:
                self.lm.bar.update(sum(len(self.users[k]) for row in batch.rows for k in row.inputs))
                continue
            with self.lm.at_work():
                if batch.blocks != blocks:
                    blocks, cache = batch.blocks, None  # the old one is freed first
                    cache = self._cached(blocks) if blocks else None
                self._begin(batch, cache)

    def mine(self) -> Found:
        """Return the answers that this process was to find, once all are there."""
        with self.lm.at_work():
            while self.pending:
                self._end()
        return self.found

    def _cached(self, blocks: tuple[tuple[int, ...], ...]) -> Any:
        """Return the keys and values of blocks, one after the other where memory does not suffice."""
        with torch.no_grad(), self.lm.mixed(), _chosen(self.lm.model, torch.tensor([0])):
            try:
                return block_cache(self.lm.model, blocks)
            except torch.OutOfMemoryError:
                if len(blocks) == 1:
                    raise
            return joined([block_cache(self.lm.model, [block]) for block in blocks])

    def _begin(self, batch: Batch, cache: Any) -> None:
        """Begin a batch, in halves where memory does not suffice."""
        if not self.lm.most or len(batch.rows) <= self.lm.most:
            try:
                self.pending.append(self._scored(batch, cache))
            except torch.OutOfMemoryError as error:
                self.lm.take_less(len(batch.rows), error)
            else:
                if len(self.pending) > (_AT_WORK if self.lm.device.type == "cuda" else 0):
                    while self.pending:  # a copy waits for all that was begun before, so once for many
                        self._end()
                return
        for half in batch.in_halves():
            self._begin(half, cache)

    def _end(self) -> None:
        """Wait for the oldest batch, and keep what it gave."""
        ids, finite, picked, numbers, dtype = self.pending.popleft()
        if not finite:
            raise self.lm.not_finite(ids)
        logs, right = picked.cpu().numpy()
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        sums = torch.from_numpy(np.add.reduceat(logs, starts)).to(dtype).tolist()
        greedy = np.logical_and.reduceat(right > 0, starts).tolist()
        self.found |= {numbers[at]: one for at, *one in zip(starts, sums, greedy, strict=True)}  # type: ignore
        self.lm.bar.update(len(starts))

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
        finite = torch.isfinite(logits.amax(-1)).all()
        index, answers = (on_device(values, logits.device) for values in (rows, tokens))
        scores = logits.log_softmax(-1, dtype=self.lm.softmax_dtype)
        right = scores.argmax(-1)[index] == answers
        picked = torch.stack([scores[index, answers].double(), right.double()])
        return Pending(ids, finite, picked, numbers, scores.dtype)

    def _logits(self, asked: dict[str, Any], where: Tensor) -> Any:
        """Return the logits ``[n, vocabulary]`` of some places in the flattened batch."""
        ids = asked.pop("input_ids")
        with torch.no_grad(), self.lm.mixed(), _chosen(self.lm.model, where) as fired:
            logits = self.lm.model(ids, **asked).logits.flatten(0, -2)
        return logits if fired else logits.index_select(0, on_device(where, logits.device))


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
