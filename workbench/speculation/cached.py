"""Drafting and verifying for any decoder with a key-value cache: one prompt at a time, caches cut back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from workbench.checks import one_of
from workbench.generation.decoder import Prompts, why_not_static
from workbench.generation.engines import ENGINES
from workbench.models.hooks import inference, not_finite
from workbench.models.layers import unwrap
from workbench.speculation.decoder import DraftDecoder, Drafted, Drafting, counted


class CachedDecoder:
    """Does what ``DraftDecoder`` does, with the growing cache of transformers, for any attention.

    The cache keeps all tokens of sliding layers too (masks hide them), so that it can be cut back where a
    token is refused.

    Args:
        target: the model whose output it is.
        draft: another model of the same vocabulary, or None as for ``DraftDecoder``.
        how: draft length, temperature and ends.

    Raises:
        ValueError: for a model that keeps a state which cannot be taken back (recurrent layers).
    """

    def __init__(self, target: Any, draft: Any, how: Drafting) -> None:
        self.target, self.draft, self.how = unwrap(target), draft and unwrap(draft), how
        self.k = how.draft_length
        if getattr(self.target, "_is_stateful", False):
            raise ValueError(
                f"model must have a key-value cache that can be cut back; {type(self.target).__name__} has "
                "recurrent layers"
            )

    @contextmanager
    def ready(self) -> Iterator[CachedDecoder]:
        """Return a context in which both models are in evaluation mode."""
        with inference(self.target):
            yield self

    @torch.no_grad()
    def __call__(
        self, prompts: Prompts, max_new_tokens: int, indices: Sequence[int] | None = None
    ) -> list[Drafted]:
        """Return what each prompt gave; arguments as of ``DraftDecoder``."""
        numbers = indices or range(len(prompts))
        return [
            self._one(list(row), max_new_tokens, index) for row, index in zip(prompts, numbers, strict=True)
        ]

    def _one(self, prompt: list[int], room: int, index: int) -> Drafted:
        uniforms = self.how.uniforms([index], room)[0] if self.how.random else None
        caches = {side: DynamicCache() for side in ("target", "draft")}
        rounds: list[Any] = []
        tokens, ends = list(prompt), set(self.how.ends)
        while len(tokens) < len(prompt) + room and ends.isdisjoint(tokens[len(prompt) :]):
            numbers = None if uniforms is None else uniforms[len(rounds)][None]
            drafted, proposed = self._drafted(tokens, caches["draft"], numbers)
            read = [*tokens[caches["target"].get_seq_length() :], *drafted[0].tolist()]
            logits = self._logits("target", read, caches["target"])[:, -self.k - 1 :]
            verdict = self.how.judged(drafted, logits, proposed, numbers)
            rounds.append(int(verdict.accepted))
            tokens += [*drafted[0, : rounds[-1]].tolist(), int(verdict.following)]
            for cache in caches.values():
                _cut_back(cache, len(tokens) - 1)
        return counted(tokens[len(prompt) :][:room], rounds, self.k, ends)

    def _drafted(
        self, tokens: list[int], cache: DynamicCache, numbers: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if self.draft is None or not self.k:
            return self._tensor([0] * self.k), None

        def following(step: int, token: Tensor | None) -> Tensor:
            ids = tokens[cache.get_seq_length() :] if token is None else [int(token)]
            return self._logits("draft", ids, cache)[:, -1]

        return self.how.drafted(following, numbers)

    def _logits(self, side: str, ids: list[int], cache: DynamicCache) -> Tensor:
        model = getattr(self, side)
        found: Tensor = model(input_ids=self._tensor(ids), past_key_values=cache, use_cache=True).logits
        if not found[:, -self.k - 1 :].amax(dim=-1).isfinite().all():
            raise not_finite(model, f"the {side}'s")
        return found

    def _tensor(self, ids: list[int]) -> Tensor:
        return torch.tensor([ids], dtype=torch.long, device=self.target.device)


def _cut_back(cache: Any, tokens: int) -> None:
    """Let a cache know the first tokens alone (what ``crop`` takes differs between versions)."""
    for layer in cache.layers:
        if layer.is_initialized:
            layer.keys, layer.values = layer.keys[..., :tokens, :], layer.values[..., :tokens, :]


def draft_decoder(
    target: Any, draft: Any, how: Drafting, *, slots: int, engine: str = "auto", at_once: bool = False
) -> DraftDecoder | CachedDecoder:
    """Return the decoder for two models: static caches where they are exact for the target.

    Args:
        target: the model whose output it is.
        draft: the draft, or None.
        how: draft length, temperature and ends.
        slots: tokens of the longest prompt with its response.
        engine: ``"auto"``, ``"static"`` or ``"transformers"``.
        at_once: prepare for so many slots at once, whatever is decoded first.

    Raises:
        ValueError: for another engine; for ``"static"`` where it is not exact, by the reason.
    """
    one_of(engine, ENGINES, "engine")
    reason = "" if engine == "transformers" else why_not_static(target, slots)
    if reason is None:
        return DraftDecoder(target, draft, how, slots if at_once else 0)
    if engine == "static":
        raise ValueError(f"engine='static' cannot run this model: {reason}; take 'transformers' or 'auto'")
    return CachedDecoder(target, draft, how)
