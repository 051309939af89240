"""How fast decoding with a draft is, against plain decoding by the same decoder, and what theory expects."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from workbench.checks import checked, whole_number
from workbench.generation.prompts import end_tokens
from workbench.models.layers import unwrap
from workbench.runs.run import Run
from workbench.runs.variant import Variant
from workbench.speculation.acceptance import share
from workbench.speculation.cached import draft_decoder
from workbench.speculation.decoder import Drafted, Drafting
from workbench.speculation.inputs import Asked, checked_drafts, checked_lengths, opened, read_prompts
from workbench.speculation.rule import theory_speed_up

_COUNTS = ("accepted", "proposed")


def draft_speed(
    model: Any,
    tokenizer: Any,
    drafts: Sequence[Variant] | Mapping[str, Any],
    prompts: Sequence[str] | Mapping[str, Sequence[str]],
    *,
    run: Run | str | Path | None = None,
    draft_lengths: Iterable[int] = (1, 2, 4, 8),
    max_new_tokens: int = 64,
    rows: int = 1,
    forced: float | None = None,
    ends: bool = True,
    seed: int = 0,
    engine: str = "auto",
    **sampling: Any,
) -> pd.DataFrame:
    """Time greedy decoding with each draft and draft length, and plain decoding.

    Args:
        model: the target, whole.
        tokenizer: its tokenizer.
        drafts: as for ``draft_rounds``.
        prompts: as for ``draft_rounds``.
        run: where the variants' adapters are.
        draft_lengths: tokens a round.
        max_new_tokens: of a response.
        rows: prompts decoded at once.
        forced: accept each drafted token with this probability, whatever it is; the output is then not the
            target's, and what is measured is the mechanics.
        ends: whether an end token ends a response.
        seed: of the forced acceptance.
        engine: as for ``draft_rounds``.
        **sampling: there is none: what is timed is greedy.

    Returns:
        draft, draft_length, batch (its first prompt), rows, tokens, rounds (target calls of the slowest row),
        accepted and proposed, seconds; plain_seconds, plain_tokens and plain_rounds of the same prompts,
        decoded in turns; and the seconds of a single step, over all prompts: target_step, draft_step and
        verify_step (k + 1 tokens).

    Raises:
        ValueError: as ``draft_rounds``; for ``forced`` outside of [0, 1].
    """
    if sampling:
        raise ValueError(f"draft_speed times greedy decoding and takes no {', '.join(sorted(sampling))}")
    if forced is not None and not 0 <= forced <= 1:
        raise ValueError(f"forced must be between 0 and 1, got {forced!r}")
    lengths = checked_lengths(draft_lengths)
    asked = read_prompts(model, tokenizer, prompts, whole_number(max_new_tokens, "max_new_tokens"))
    named = checked_drafts(model, drafts)
    stop = end_tokens(unwrap(model), tokenizer) if ends else []
    bench = _Bench(asked, max_new_tokens, whole_number(rows, "rows"), engine)
    plain = Drafting(0, ends=stop)
    step = bench.step(model, plain)
    verify = {k: bench.step(model, Drafting(k, forced=0.0, ends=stop)) for k in lengths}
    found = []
    for name, draft in named.items():
        with opened(model, name, draft, run) as view:
            alone = bench.step(view, plain)
            for k in lengths:
                how = Drafting(k, forced=forced, ends=stop, seed=seed)
                steps = {"target_step": step, "draft_step": alone, "verify_step": verify[k]}
                told = {"draft": name, "draft_length": k}
                for other, one in zip(*bench.timed((model, None, plain), (model, view, how)), strict=True):
                    plainly = {f"plain_{name}": other[name] for name in ("seconds", "tokens", "rounds")}
                    found.append(told | one | plainly | steps)
    return pd.DataFrame(found)


def speed_ups(speed: pd.DataFrame, *, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """Set the measured speed-up of each draft and draft length beside what theory gives.

    Args:
        speed: frame of ``draft_speed``.
        confidence: coverage of the interval.
        seed: of the resampling.

    Returns:
        draft, draft_length, n (batches), speed_up with ``_low`` and ``_high`` (over batches of prompts),
        theory: tokens a round / (k c + v), with c = ``cost`` of a draft step and v = ``verify``, both
        measured in steps of the target; theory_ideal: the same with v = 1; ratio (measured / theory),
        acceptance, and tokens_per_call, for each that plain decoding gives.

    Raises:
        ValueError: for missing columns or no rows.
    """
    columns = ["draft", "draft_length", "tokens", "rounds", "seconds", "target_step", "draft_step"]
    columns += ["plain_seconds", "plain_tokens", "plain_rounds", "verify_step", *_COUNTS]
    frame = checked(speed, columns, "speed")
    rows = []
    for (draft, k), part in frame.groupby(["draft", "draft_length"], sort=False):
        per_token = part["plain_seconds"] / part["plain_tokens"]
        row = {"draft": draft, "draft_length": k, "n": len(part)}
        row |= share("speed_up", per_token * part["tokens"], part["seconds"], confidence, seed, np.inf)
        each = part["tokens"].sum() / part["rounds"].sum()
        tokens = each / (part["plain_tokens"].sum() / part["plain_rounds"].sum())
        steps = part[["draft_step", "verify_step"]].iloc[0] / part["target_step"].iloc[0]
        cost, verify = steps.tolist()
        theory = float(theory_speed_up(tokens, k, cost, verify))
        row |= {"theory": theory, "theory_ideal": float(theory_speed_up(tokens, k, cost))}
        row |= {"ratio": row["speed_up"] / theory, "cost": cost, "verify": verify}
        row |= {"acceptance": part["accepted"].sum() / part["proposed"].sum(), "tokens_per_call": tokens}
        rows.append(row)
    return pd.DataFrame(rows)


class _Bench:
    """Prompts in batches, decoded and timed."""

    def __init__(self, asked: Asked, room: int, rows: int, engine: str) -> None:
        self.ids, self.room = asked.ids, room
        self.make: Any = {"slots": max(map(len, asked.ids)) + room, "engine": engine, "at_once": True}
        every = range(len(asked.ids))
        self.batches = [list(every[start : start + rows]) for start in range(0, len(asked.ids), rows)]

    def timed(self, *decoders: tuple[Any, Any, Drafting]) -> list[list[dict[str, Any]]]:
        """Return tokens, rounds and seconds of each batch for each (target, draft, way), taking turns.

        What a decoder prepares for a number of rows (on a GPU a captured round) is not timed: the first batch
        of that many is run once before.
        """
        rows, turns = 0, []
        made = [draft_decoder(*one, **self.make) for one in decoders]  # a ready one changes the attention
        with ExitStack() as stack:
            ready = [stack.enter_context(decoder.ready()) for decoder in made]
            for batch in self.batches:
                for decoder in ready if len(batch) != rows else ():
                    self._one(decoder, batch)
                rows = len(batch)
                turns.append([self._one(decoder, batch) for decoder in ready])
        return [list(column) for column in zip(*turns, strict=True)]

    def step(self, model: Any, how: Drafting) -> float:
        """Return the seconds of a round without a draft."""
        (timed,) = self.timed((model, None, how))
        return float(sum(one["seconds"] for one in timed) / sum(one["rounds"] for one in timed))

    def _one(self, decoder: Any, batch: list[int]) -> dict[str, Any]:
        prompts = [self.ids[index] for index in batch]
        _wait()
        start = time.perf_counter()
        found: list[Drafted] = decoder(prompts, self.room, batch)
        _wait()
        told = {"batch": batch[0], "rows": len(batch), "seconds": time.perf_counter() - start}
        told |= {"tokens": sum(len(one.tokens) for one in found)}
        told |= {"rounds": max(len(one.accepted) for one in found)}
        return told | {name: sum(sum(getattr(one, name)) for one in found) for name in _COUNTS}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
