"""Drafting and verifying on static caches; on a GPU a whole round is one captured graph.

A round: the draft writes k tokens one by one, the target reads them at once and says how many stand, and
both go on behind those. Nothing waits for the host in between, also not to know how many were accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import StaticCache

from workbench.generation.cache import ATTENTION
from workbench.generation.decoder import CHECK_EVERY, Prompts, recorded
from workbench.generation.sampling import drawn
from workbench.models.hooks import any_shape, not_finite
from workbench.models.layers import decoder_forward, decoder_layers, unwrap
from workbench.speculation.rule import Verdict, judge
from workbench.speculation.slots import Places, RowSlots, seen

#: the draft's logits ``[row, vocabulary]`` at a step, by the token before
Following = Callable[[int, Tensor | None], Tensor]


@dataclass(frozen=True)
class Drafted:
    """What decoding with a draft gave for one prompt.

    Attributes:
        tokens: the new tokens, an end token included, at most as many as were asked for.
        accepted: drafted tokens that entered the output, round by round; one target call each.
        proposed: drafted tokens that could have entered it (fewer in the last round).
    """

    tokens: list[int]
    accepted: list[int]
    proposed: list[int]


@dataclass(frozen=True)
class Drafting:
    """How tokens are drafted and accepted.

    Attributes:
        draft_length: tokens a round; 0 decodes plainly.
        temperature: 0 for greedy.
        forced: accept each token with this probability, whatever it is.
        ends: tokens that end a response.
        seed: of the random numbers; each prompt has its own.
    """

    draft_length: int
    temperature: float = 0.0
    forced: float | None = None
    ends: Sequence[int] = ()
    seed: int = 0

    @property
    def random(self) -> bool:
        """Whether random numbers are needed."""
        return bool(self.temperature) or self.forced is not None

    def uniforms(self, indices: Sequence[int], rounds: int) -> Tensor:
        """Return the numbers in [0, 1) of prompts, ``[prompt, round, 2 k + 1]``."""
        width = 2 * self.draft_length + 1
        rows = [np.random.default_rng([self.seed, index]).random((rounds, width)) for index in indices]
        return torch.from_numpy(np.stack(rows))

    def drafted(self, following: Following, numbers: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return k drafted tokens ``[row, k]``, and with a temperature their whole distributions.

        Args:
            following: called with the step and the token before it (None at first): the draft's logits.
            numbers: ``[row, k or more]``, those that choose by a temperature.
        """
        found: list[Tensor] = []
        chances: list[Tensor] = []
        for step in range(self.draft_length):
            logits = following(step, found[-1] if found else None)
            if self.temperature:
                assert numbers is not None
                chances.append(torch.softmax(logits.double() / self.temperature, dim=-1))
                found.append(drawn(chances[-1], numbers[:, step : step + 1]))
            else:
                found.append(logits.argmax(dim=-1, keepdim=True))
        return torch.cat(found, dim=1), torch.stack(chances, dim=1) if chances else None

    def judged(self, drafted: Tensor, logits: Tensor, proposed: Tensor | None, numbers: Any) -> Verdict:
        """Return what the target's logits make of a round; see ``judge``."""
        numbers = None if numbers is None else numbers[:, self.draft_length :].to(logits.device)
        how: Any = {"temperature": self.temperature, "forced": self.forced}
        return judge(drafted, logits, proposed=proposed, uniforms=numbers, **how)


class _Side:
    """One of the two models with its cache."""

    def __init__(self, model: Any) -> None:
        self.model, self.places = unwrap(model), Places()

    def prepare(self, rows: int, slots: int) -> None:
        self.cache = StaticCache(config=self.model.config, max_cache_len=slots)
        self.cache.layers = [RowSlots(rows, slots, self.places) for _ in decoder_layers(self.model)]
        self.slots = slots

    def read(self, ids: Tensor) -> None:
        """Read prompts, padded on the right, into the cache."""
        self.places.at = None
        with any_shape():
            decoder_forward(self.model)(input_ids=ids, past_key_values=self.cache, use_cache=True)

    def logits(self, ids: Tensor, places: Tensor) -> Tensor:
        """Return the logits at tokens that go to these places, ``[row, token, vocabulary]``."""
        self.places.at = places
        inputs = {"input_ids": ids, "position_ids": places, "attention_mask": seen(places, self.slots)}
        found: Tensor = self.model(**inputs, past_key_values=self.cache, use_cache=True).logits
        return found


class DraftDecoder:
    """Decodes batches of prompts with a draft; what is prepared for a batch serves others of its size.

    Args:
        target: a model that ``why_not_static`` has nothing against; in evaluation mode.
        draft: another model of the same vocabulary (see ``draft_view``). None with a draft length of 0
            decodes plainly, with another one it proposes nothing but zeros: what reading them costs.
        how: draft length, temperature and ends.
        slots: tokens of the longest prompt with its response, so that nothing is prepared anew for it; 0
            prepares for each batch.
    """

    def __init__(self, target: Any, draft: Any, how: Drafting, slots: int = 0) -> None:
        self.how, self.k, self.least = how, how.draft_length, slots
        self.target = _Side(target)
        self.draft = _Side(draft) if self.k and draft is not None else None
        self.sides = [self.target] if self.draft is None else [self.target, self.draft]
        self.device = self.target.model.device
        self.ends = torch.tensor(sorted(how.ends), dtype=torch.long, device=self.device)
        self.shape: tuple[int, int, int] = (0, 0, 0)
        self.replay: Any = None

    @contextmanager
    def ready(self) -> Iterator[DraftDecoder]:
        """Return a context in which both models run with this decoder's attention; undone on leaving."""
        with ExitStack() as stack:
            for side in self.sides:
                config = decoder_forward(side.model).config
                stack.callback(setattr, config, "_attn_implementation", config._attn_implementation)
                config._attn_implementation = ATTENTION
            stack.callback(self._forget)
            yield self

    @torch.no_grad()
    def __call__(
        self, prompts: Prompts, max_new_tokens: int, indices: Sequence[int] | None = None
    ) -> list[Drafted]:
        """Return what each prompt gave.

        Args:
            prompts: tokens, at least one each.
            max_new_tokens: at least 1.
            indices: the number of each prompt, by which its random numbers are drawn; None for 0, 1, ...
        """
        slots = max(self.least, max(map(len, prompts)) + max_new_tokens) + 2 * self.k + 2
        self._prepare(len(prompts), slots, max_new_tokens)
        self._begin(prompts, indices or range(len(prompts)))
        if self.replay is None:
            state = [self.tokens, self.at, self.round, self.finished, self.sound, self.log]
            self.replay = recorded(self._take_round, state)
        for number in range(max_new_tokens):  # a round gives at least one token
            self.replay()
            near = (number + 2) * (self.k + 1) >= max_new_tokens  # all could be done
            if number % (2 if near else CHECK_EVERY) == 1 and bool(self.finished.all()):
                break
        return self._results(prompts, max_new_tokens)

    def _prepare(self, rows: int, slots: int, room: int) -> None:
        """Make the buffers for a batch, unless those that are there do."""
        slots = -(-slots // 64) * 64
        if self.shape[0] == rows and slots <= self.shape[1] <= 2 * slots and self.shape[2] == room:
            return
        self._forget()
        self.shape = (rows, slots, room)
        for side in self.sides:
            side.prepare(rows, slots)
        new = {"device": self.device, "dtype": torch.long}
        self.tokens, self.at = torch.zeros(rows, slots, **new), torch.zeros(rows, 1, **new)
        self.last, self.round = torch.zeros(rows, 1, **new), torch.zeros(1, **new)
        self.finished = torch.zeros(rows, 1, dtype=torch.bool, device=self.device)
        # whether all logits so far are finite, of the target and of the draft
        self.sound = torch.ones(2, dtype=torch.bool, device=self.device)
        self.log = torch.zeros(room, rows, **new)
        width = 2 * self.k + 1
        self.numbers = torch.zeros(rows, room, width, dtype=torch.float64, device=self.device)

    def _forget(self) -> None:
        """Let go of buffers and graph, so that their memory is free."""
        self.shape, self.replay = (0, 0, 0), None
        for side in self.sides:
            side.__dict__.pop("cache", None)
            side.places.at = None
        for name in ("tokens", "at", "last", "round", "finished", "sound", "log", "numbers"):
            self.__dict__.pop(name, None)

    def _begin(self, prompts: Prompts, indices: Sequence[int]) -> None:
        room = self.shape[2]
        longest = max(map(len, prompts))
        lengths = torch.tensor([len(row) for row in prompts])[:, None]
        self.tokens.zero_()
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in prompts])
        self.tokens[:, :longest] = ids.to(self.device)
        self.at.copy_(lengths - 1)
        self.last.copy_(lengths - 1 + room)  # where the last token asked for would be
        self.round.zero_()
        self.finished.zero_()
        self.sound.fill_(True)
        self.log.fill_(-1)
        if self.how.random:
            self.numbers.copy_(self.how.uniforms(indices, room))
        for side in self.sides:
            if longest > 1:
                side.read(self.tokens[:, : longest - 1])

    def _take_round(self) -> None:
        k, at = self.k, self.at
        numbers = self.numbers.index_select(1, self.round)[:, 0]
        drafted, proposed = self._drafted(numbers)
        steps = torch.arange(k + 1, device=self.device)
        logits = self.target.logits(torch.cat([self.tokens.gather(1, at), drafted], dim=1), at + steps)
        self._watch(0, logits)
        verdict = self.how.judged(drafted, logits, proposed, numbers)
        accepted = verdict.accepted[:, None]
        new = torch.cat([drafted, verdict.following], dim=1).scatter(1, accepted, verdict.following)
        places = at + 1 + steps
        self.tokens.scatter_(1, places, torch.where(self.finished, self.tokens.gather(1, places), new))
        step = accepted.masked_fill(self.finished, -1)
        self.log.index_copy_(0, self.round, step.T)
        self.at.add_(step + 1)
        ended = (torch.isin(new, self.ends) & (steps <= accepted)).any(dim=1, keepdim=True)
        self.finished.logical_or_(ended | (self.at >= self.last))
        self.round.add_(1).clamp_(max=self.log.shape[0] - 1)

    def _drafted(self, numbers: Tensor) -> tuple[Tensor, Tensor | None]:
        at, draft = self.at, self.draft
        if draft is None:
            return at.new_zeros(len(at), self.k), None

        def following(step: int, token: Tensor | None) -> Tensor:
            # the token before is read again: the draft has not read it where all of a round was accepted
            behind = torch.cat([(at - 1).clamp(min=0), at], dim=1)
            places = behind if token is None else at + step
            logits = draft.logits(self.tokens.gather(1, behind) if token is None else token, places)[:, -1]
            self._watch(1, logits[:, None])
            return logits

        return self.how.drafted(following, numbers)

    def _watch(self, side: int, logits: Tensor) -> None:
        """Note whether logits are finite: an argmax would take the first that is no number."""
        fine = logits.amax(dim=-1).isfinite() | self.finished
        self.sound[side].logical_and_(fine.all())

    def _results(self, prompts: Prompts, room: int) -> list[Drafted]:
        for side, whose, fine in zip(self.sides, ("target", "draft"), self.sound.tolist(), strict=False):
            if not fine:
                raise not_finite(side.model, f"the {whose}'s")
        tokens, log, ends = self.tokens.tolist(), self.log.T.tolist(), set(self.how.ends)
        rows = zip(prompts, tokens, log, strict=True)
        new = [(row[len(prompt) :][:room], [n for n in taken if n >= 0]) for prompt, row, taken in rows]
        return [counted(some, taken, self.k, ends) for some, taken in new]


def counted(tokens: list[int], rounds: list[int], k: int, ends: set[int]) -> Drafted:
    """Return the output up to its end, and what was proposed and accepted of it in each round.

    Args:
        tokens: new tokens, perhaps beyond an end token.
        rounds: drafted tokens that the target accepted, a round each.
        k: drafted tokens a round.
        ends: tokens that end a response.
    """
    kept = next((place + 1 for place, token in enumerate(tokens) if token in ends), len(tokens))
    accepted, proposed, done = [], [], 0
    for one in rounds:
        if done >= kept:
            break
        proposed.append(min(k, kept - done))
        accepted.append(min(one, kept - done))
        done += one + 1
    return Drafted(tokens[: min(kept, done)], accepted, proposed)
