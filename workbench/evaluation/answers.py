"""Log-likelihoods of continuations, batch after batch: only the logits that are asked for are ever made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from workbench.evaluation.prefixes import Batch, block_cache, flat_places, tensors
from workbench.models.hooks import hooked
from workbench.models.layers import unwrap
from workbench.models.processes import everyones, place, shares

#: by number of the request: summed log-likelihood, and whether it is the greedy answer
Found = dict[int, tuple[float, bool]]


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

    def of(self, batches: Sequence[Batch]) -> Found:
        """Compute batches, each by one of the processes there are; all get all."""
        costs = [len(batch.rows) * batch.length for batch in batches]
        blocks = [batch.block or k for k, batch in enumerate(batches)]
        owners = shares(costs, blocks, [len(batch.block) for batch in batches])
        mine: Found = {}
        block: tuple[int, ...] = ()
        cache = None
        for batch, owner in zip(batches, owners, strict=True):
            if owner == place()[0]:
                if batch.block != block:
                    block, cache = batch.block, None  # the old one is freed first
                    cache = self._cached(block) if block else None
                mine |= self._of_batch(batch, cache)
            self.lm.bar.update(sum(len(self.users[k]) for row in batch.rows for k in row.inputs))
        return {number: answer for some in everyones(mine) for number, answer in some.items()}

    def _cached(self, block: tuple[int, ...]) -> Any:
        with torch.no_grad(), self.lm.mixed(), _chosen(self.lm.model, torch.tensor([0])):
            return block_cache(self.lm.model, block)

    def _of_batch(self, batch: Batch, cache: Any) -> Found:
        """Compute a batch, in halves where memory does not suffice."""
        if not self.lm.most or len(batch.rows) <= self.lm.most:
            try:
                return self._scored(batch, cache)
            except torch.OutOfMemoryError as error:
                self.lm.take_less(len(batch.rows), error)
        first, second = batch.in_halves()
        return self._of_batch(first, cache) | self._of_batch(second, cache)

    def _scored(self, batch: Batch, cache: Any) -> Found:
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
        logits = self._logits(tensors(self.lm.model, batch, cache), where)
        return self._summed(logits, numbers, rows, tokens)

    def _summed(self, logits: torch.Tensor, numbers: list[int], rows: list[int], tokens: list[int]) -> Found:
        """Return what is found for each request, of the tokens of all, in one copy from the device."""
        index, answer = (torch.tensor(values, device=logits.device) for values in (rows, tokens))
        scores = logits.log_softmax(-1, dtype=self.lm.softmax_dtype)
        right = scores.argmax(-1)[index] == answer
        picked = torch.stack([scores[index, answer].double(), right.double()]).cpu().numpy()
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        sums = torch.from_numpy(np.add.reduceat(picked[0], starts)).to(scores.dtype).tolist()
        greedy = np.logical_and.reduceat(picked[1] > 0, starts).tolist()
        return {numbers[at]: found for at, *found in zip(starts, sums, greedy, strict=True)}  # type: ignore

    def _logits(self, asked: dict[str, Any], where: torch.Tensor) -> Any:
        """Return the logits ``[n, vocabulary]`` of some places in the flattened batch."""
        ids = asked.pop("input_ids")
        with torch.no_grad(), self.lm.mixed(), _chosen(self.lm.model, where) as fired:
            logits = self.lm.model(ids, **asked).logits.flatten(0, -2)
        if not fired:
            logits = logits.index_select(0, where.to(logits.device))
        return self.lm.checked(ids, logits)


@contextmanager
def _chosen(model: Any, where: torch.Tensor) -> Iterator[list[bool]]:
    """Let the head see some places of the flattened batch alone; what is given says whether it did."""
    head, fired = unwrap(model).get_output_embeddings(), []

    def choose(module: Any, args: tuple[Any, ...]) -> Any:
        states = args[0].flatten(0, -2)
        fired.append(True)
        return (states.index_select(0, where.to(states.device))[None], *args[1:])

    with hooked() as handles:
        if head is not None:
            handles.append(head.register_forward_pre_hook(choose))
        yield fired
