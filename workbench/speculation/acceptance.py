"""What the target accepts of each draft: by draft length, by position, by kind of prompt, with intervals.

Greedy output is the target's own, whatever the draft. So the target writes once, each draft reads that once,
and every round of every draft length follows from where the draft's own choice is the target's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn.utils.rnn import pad_sequence

from workbench.bars import tqdm
from workbench.checks import checked, whole_number
from workbench.generation.decoder import Prompts
from workbench.generation.engines import by_length
from workbench.generation.prompts import end_tokens
from workbench.models.hooks import inference, not_finite
from workbench.models.layers import unwrap
from workbench.runs.run import Run
from workbench.runs.variant import Variant
from workbench.speculation.cached import draft_decoder
from workbench.speculation.decoder import Drafted, Drafting, counted
from workbench.speculation.inputs import (
    Asked,
    check_sampling,
    checked_drafts,
    checked_lengths,
    opened,
    read_prompts,
)
from workbench.statistics import bootstrap_interval

#: draft lengths that are reported
LENGTHS = tuple(range(1, 9))
_KEYS = ["draft", "kind", "draft_length"]


def draft_rounds(
    model: Any,
    tokenizer: Any,
    drafts: Sequence[Variant] | Mapping[str, Any],
    prompts: Sequence[str] | Mapping[str, Sequence[str]],
    *,
    run: Run | str | Path | None = None,
    draft_lengths: Iterable[int] = LENGTHS,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 32,
    engine: str = "auto",
    progress: bool = True,
    **sampling: Any,
) -> pd.DataFrame:
    """Let each draft write ahead of the model, and keep how many tokens were accepted in every round.

    Greedy, one pass of each draft over the model's own responses gives all draft lengths. With a temperature
    every length is decoded, by speculative sampling (Leviathan et al. 2023).

    Args:
        model: the target, whole.
        tokenizer: its tokenizer.
        drafts: variants of the model, or {name: a model of the same vocabulary}.
        prompts: final texts (see ``chat_prompt``), or {kind: texts}.
        run: where the variants' adapters are.
        draft_lengths: tokens a round.
        max_new_tokens: of a response, at least 1.
        temperature: 0 for greedy.
        seed: of the sampling.
        batch_size: prompts at once.
        engine: ``"static"``, ``"transformers"`` or ``"auto"``, as for ``generate_responses``.
        progress: one bar.
        **sampling: there is no other setting: the rejection rule knows a temperature alone.

    Returns:
        draft, kind, prompt (its number), draft_length, n_tokens (of the response, EOS counted), accepted
        and proposed: drafted tokens of each round up to the end of the response, as text ("3 0 4"); one
        target call a round.

    Raises:
        ValueError: for no prompts or an empty one, another vocabulary, a draft deeper than the model, a
            sampling setting besides the temperature, no room in the context.
    """
    check_sampling(temperature, sampling)
    lengths = checked_lengths(draft_lengths)
    asked = read_prompts(model, tokenizer, prompts, whole_number(max_new_tokens, "max_new_tokens"))
    named = checked_drafts(model, drafts)
    ends = end_tokens(unwrap(model), tokenizer)
    common: Any = {"temperature": float(temperature), "ends": ends, "seed": whole_number(seed, "seed", 0)}
    slots = max(map(len, asked.ids)) + max_new_tokens

    def decoded(draft: Any, k: int) -> list[Drafted]:
        made = draft_decoder(model, draft, Drafting(k, **common), slots=slots, engine=engine)
        with made.ready() as decoder:
            return _decoded(decoder, asked.ids, max_new_tokens, batch_size)

    said = None if temperature else [one.tokens for one in decoded(None, 0)]
    rows = []
    for name, draft in tqdm(list(named.items()), desc="draft", unit="draft", disable=not progress):
        with opened(model, name, draft, run) as opened_draft:
            if said is not None:
                found = _by_reading(opened_draft, asked.ids, said, lengths, ends, batch_size)
            else:
                found = {k: decoded(opened_draft, k) for k in lengths}
        rows += [_row(name, asked, k, index, one) for k in lengths for index, one in enumerate(found[k])]
    return pd.DataFrame(rows)


def acceptance(
    rounds: pd.DataFrame, *, by_kind: bool = False, confidence: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """Sum up the rounds of each draft and draft length, with intervals over prompts.

    Args:
        rounds: frame of ``draft_rounds``.
        by_kind: a row for each kind of prompt; else all together.
        confidence: coverage of the intervals.
        seed: of the resampling.

    Returns:
        draft, kind where asked, draft_length, n (prompts), acceptance (accepted of the proposed tokens,
        0..1), accepted_length (accepted tokens a target call), target_calls_per_token, tokens_per_call; each
        of the first three with ``_low`` and ``_high``.

    Raises:
        ValueError: for missing columns, no rows, or a prompt that stands there twice.

    >>> rounds = pd.DataFrame({"draft": "a", "kind": "", "prompt": [0, 1], "draft_length": 2, "n_tokens": 4})
    >>> rounds = rounds.assign(accepted=["2 0", "1 1"], proposed=["2 1", "2 2"])
    >>> acceptance(rounds)[["acceptance", "accepted_length"]].round(3).values.tolist()
    [[0.571, 1.0]]
    """
    needed = [*_KEYS, "prompt", "n_tokens", "accepted", "proposed"]
    frame = summed_up(checked(rounds, needed, "rounds", unique=[*_KEYS, "prompt"]))
    keys = _KEYS if by_kind else ["draft", "draft_length"]
    rows = []
    for values, part in frame.groupby(keys, sort=False):
        row = dict(zip(keys, values, strict=True)) | {"n": len(part)}
        for name, over, of in _SHARES:
            most = part["draft_length"].max() if name == "accepted_length" else 1.0
            row |= share(name, part[over], part[of], confidence, seed, most)
        rows.append(row | {"tokens_per_call": 1 / row["target_calls_per_token"]})
    return pd.DataFrame(rows)


#: what is reported: name, and the two counts whose ratio it is
_SHARES = (
    ("acceptance", "accepted", "proposed"),
    ("accepted_length", "accepted", "calls"),
    ("target_calls_per_token", "calls", "n_tokens"),
)


def acceptance_by_position(
    rounds: pd.DataFrame, *, draft_length: int | None = None, confidence: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """Say how often the token at each position of a round is accepted, once those before it are.

    Args:
        rounds: frame of ``draft_rounds``.
        draft_length: which rounds; None for the longest.
        confidence: coverage of the intervals.
        seed: of the resampling.

    Returns:
        draft, position (1 = first drafted token), n (times it came to that), acceptance with ``_low`` and
        ``_high`` (over prompts).

    Raises:
        ValueError: no rounds of that length.
    """
    checked(rounds, [*_KEYS, "accepted", "proposed"], "rounds")
    k = int(rounds["draft_length"].max()) if draft_length is None else draft_length
    if not (rounds["draft_length"] == k).any():
        there = sorted(map(int, rounds["draft_length"].unique()))
        raise ValueError(f"draft_length must be one of {there}, got {draft_length!r}")
    rows = []
    for draft, part in rounds[rounds["draft_length"] == k].groupby("draft", sort=False):
        pairs = [(_numbers(a), _numbers(p)) for a, p in zip(part["accepted"], part["proposed"], strict=True)]
        for place in range(1, k + 1):
            tried = np.array([((a >= place - 1) & (p >= place)).sum() for a, p in pairs])
            taken = np.array([(a >= place).sum() for a, _ in pairs])
            told = {"draft": draft, "position": place, "n": int(tried.sum())}
            rows.append(told | share("acceptance", taken, tried, confidence, seed))
    return pd.DataFrame(rows)


def _decoded(decoder: Any, ids: Prompts, room: int, batch_size: int) -> list[Drafted]:
    """Return what each prompt gave, in the order asked."""
    found: dict[int, Drafted] = {}
    for batch in by_length([len(row) for row in ids], batch_size):
        rows = decoder([ids[index] for index in batch], room, batch)
        found |= dict(zip(batch, rows, strict=True))
    return [found[index] for index in range(len(ids))]


@torch.no_grad()
def _by_reading(
    draft: Any, prompts: Prompts, said: Prompts, lengths: list[int], ends: list[int], batch_size: int
) -> dict[int, list[Drafted]]:
    """Return the rounds of every draft length from one pass of the draft over the target's responses."""
    same: dict[int, list[bool]] = {}
    rows = [torch.tensor([*prompt, *new]) for prompt, new in zip(prompts, said, strict=True)]
    with inference(draft):
        for batch in by_length([len(row) for row in rows], batch_size):
            ids = pad_sequence([rows[index] for index in batch], batch_first=True)
            mask = pad_sequence([torch.ones_like(rows[index]) for index in batch], batch_first=True)
            inputs = {"input_ids": ids.to(draft.device), "attention_mask": mask.to(draft.device)}
            best, chosen = (one.cpu() for one in draft(**inputs, use_cache=False).logits.max(dim=-1))
            if not (best.isfinite() | (mask == 0)).all():
                raise not_finite(draft, "the draft's")
            for own, index in zip(chosen.tolist(), batch, strict=True):
                begin = len(prompts[index]) - 1
                pairs = zip(own[begin : len(rows[index]) - 1], said[index], strict=True)
                same[index] = [one == other for one, other in pairs]
    every = [(list(new), same[index]) for index, new in enumerate(said)]
    return {k: [counted(new, rounds_of(alike, k), k, set(ends)) for new, alike in every] for k in lengths}


def rounds_of(same: Sequence[bool], k: int) -> list[int]:
    """Return the accepted tokens of each round, by where the draft's own choice is the target's.

    >>> rounds_of([True, True, True, False, True], 2)
    [2, 0, 1]
    """
    rounds, at = [], 0
    while at < len(same):
        ahead = same[at : at + k]
        rounds.append(next((place for place, one in enumerate(ahead) if not one), len(ahead)))
        at += rounds[-1] + 1
    return rounds


def _row(name: str, asked: Asked, k: int, index: int, one: Drafted) -> dict[str, Any]:
    told = {"draft": name, "kind": asked.kinds[index], "prompt": index, "draft_length": k}
    counts = {"accepted": one.accepted, "proposed": one.proposed}
    texts = {key: " ".join(map(str, values)) for key, values in counts.items()}
    return {**told, "n_tokens": len(one.tokens), **texts}


def summed_up(rounds: pd.DataFrame) -> pd.DataFrame:
    """Return rounds with their sums: calls of the target, accepted and proposed tokens."""
    calls = rounds["accepted"].str.split().str.len()
    sums = {name: [int(_numbers(text).sum()) for text in rounds[name]] for name in ("accepted", "proposed")}
    return rounds.assign(calls=calls, **sums)


def _numbers(text: str) -> Any:
    return np.array(str(text).split(), dtype=int)


def share(name: str, over: Any, of: Any, confidence: float, seed: int, most: float = 1.0) -> dict[str, float]:
    """Return a ratio of sums over prompts, with its interval."""
    over, of = np.asarray(over, dtype=float), np.asarray(of, dtype=float)
    there = of > 0
    if not there.any():
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), np.nan)
    each, weight = over[there] / of[there], of[there]
    settings: Any = {"bounds": (0.0, float(most)), "confidence": confidence, "seed": seed}
    low, high = bootstrap_interval(each, weights=weight, **settings)
    return {name: float(np.average(each, weights=weight)), f"{name}_low": low, f"{name}_high": high}
