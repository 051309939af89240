"""What the target accepts of each draft: by draft length, by position, by kind of prompt, with intervals.

Greedy output is the target's own, whatever the draft. So the target writes once, each draft reads that once,
and every round of every draft length follows from where the draft's own choice is the target's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from workbench.bars import tqdm
from workbench.checks import checked, whole_number
from workbench.generation.decoder import Prompts
from workbench.generation.engines import by_length
from workbench.generation.prompts import context_length, end_tokens, token_ids
from workbench.models.hooks import inference, not_finite
from workbench.models.layers import number_of_layers, unwrap
from workbench.pruning.removal import check_prunable
from workbench.runs.run import Run
from workbench.runs.variant import Variant
from workbench.speculation.cached import draft_decoder
from workbench.speculation.decoder import Drafted, Drafting, counted
from workbench.speculation.views import draft_view
from workbench.statistics import bootstrap_interval

#: draft lengths that are reported
LENGTHS = tuple(range(1, 9))
#: below it the logits overflow
_COLDEST = 1e-4
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
        and proposed: drafted tokens of each round, as text ("3 0 4"); one target call a round.

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
    work = _Work(model, asked, max_new_tokens, batch_size, engine)
    said = None if temperature else [one.tokens for one in work.decoded(None, Drafting(0, **common))]
    rows = []
    for name, draft in tqdm(list(named.items()), desc="draft", unit="draft", disable=not progress):
        with opened(model, name, draft, run) as opened_draft:
            if said is not None:
                found = _by_reading(opened_draft, asked.ids, said, lengths, ends, batch_size)
            else:
                found = {k: work.decoded(opened_draft, Drafting(k, **common)) for k in lengths}
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
            row |= _share(name, part[over], part[of], confidence, seed, most)
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
            share = _share("acceptance", taken, tried, confidence, seed)
            rows.append({"draft": draft, "position": place, "n": int(tried.sum()), **share})
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Asked:
    """Prompts as tokens, with the kind of each."""

    ids: Prompts
    kinds: Sequence[str]


@dataclass(frozen=True)
class _Work:
    """What is decoded again and again with another draft."""

    model: Any
    asked: Asked
    room: int
    batch_size: int
    engine: str

    def decoded(self, draft: Any, how: Drafting) -> list[Drafted]:
        """Return what each prompt gave, in the order asked."""
        longest = max(map(len, self.asked.ids)) + self.room
        found: dict[int, Drafted] = {}
        with draft_decoder(self.model, draft, how, slots=longest, engine=self.engine).ready() as decoder:
            for batch in by_length([len(row) for row in self.asked.ids], self.batch_size):
                rows = decoder([self.asked.ids[index] for index in batch], self.room, batch)
                found |= dict(zip(batch, rows, strict=True))
        return [found[index] for index in range(len(self.asked.ids))]


def read_prompts(model: Any, tokenizer: Any, prompts: Any, room: int) -> Asked:
    """Return prompts as tokens, once they are found to fit.

    Raises:
        ValueError: for none, an empty one, or no room for the response in the context.
    """
    if tokenizer is None:
        raise ValueError("tokenizer must be given for prompts, got None")
    sets = prompts if isinstance(prompts, Mapping) else {"": prompts}
    ids = [row for texts in sets.values() for row in token_ids(tokenizer, texts)]
    kinds = [str(kind) for kind, texts in sets.items() for _ in texts]
    if not ids:
        raise ValueError("prompts must hold at least one text, got none")
    size = unwrap(model).get_input_embeddings().weight.shape[0]
    if (most := max(map(max, ids))) >= size:
        raise ValueError(
            f"token ids must be between 0 and {size - 1}, prompts have {most}: another tokenizer's"
        )
    longest, context = max(map(len, ids)), context_length(model)
    if context is not None and longest + room > context:
        raise ValueError(
            f"prompts leave no room for max_new_tokens={room} in the context of {context} tokens (the "
            f"longest has {longest}); shorten them or take max_new_tokens <= {context - longest}"
        )
    return Asked(ids, kinds)


def check_sampling(temperature: Any, sampling: Mapping[str, Any]) -> None:
    """Refuse what the rejection rule does not know.

    Raises:
        ValueError: for a setting besides the temperature, or one out of range.
    """
    if sampling:
        raise ValueError(
            f"sampling must be by temperature alone, got {', '.join(sorted(sampling))}: target and draft "
            "would have to be cut alike for the output to stay the target's"
        )
    if isinstance(temperature, bool) or not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be at least 0 (0 for greedy), got {temperature!r}")
    if 0 < temperature < _COLDEST:
        raise ValueError(f"temperature must be 0 or at least {_COLDEST:g}, got {temperature!r}")


def checked_lengths(draft_lengths: Iterable[int]) -> list[int]:
    """Return draft lengths in order.

    Raises:
        ValueError: for none, or one below 1.
    """
    lengths = sorted({whole_number(k, "draft_lengths") for k in draft_lengths})
    if not lengths:
        raise ValueError("draft_lengths must hold at least one whole number, got none")
    return lengths


@contextmanager
def opened(model: Any, name: str, draft: Any, run: Any) -> Iterator[Any]:
    """Give a draft as a model.

    Raises:
        ValueError: as ``draft_view``.
    """
    if isinstance(draft, Variant):
        with draft_view(model, draft, run=run) as view:
            check_finite(view, f"draft {name!r}")
            yield view
        return
    yield draft


def checked_drafts(model: Any, drafts: Any) -> dict[str, Any]:
    """Return drafts by their names, once all are found to fit their target, before any is run.

    Raises:
        ValueError: for none, another vocabulary, more layers than the target has, layers that it has not,
            weights that are not finite.
    """
    named = _named(drafts)
    check_finite(model, "the target")
    for name, draft in named.items():
        if isinstance(draft, Variant):
            check_prunable(model, draft.removed)
        else:
            _check_fits(model, name, draft)
            check_finite(draft, f"draft {name!r}")
    return named


def check_finite(model: Any, what: str) -> None:
    """Refuse a model whose logits are not finite, by one short pass.

    Raises:
        ValueError: for NaN or infinite logits.
    """
    size = unwrap(model).get_input_embeddings().weight.shape[0]
    ids = torch.arange(3, 11, device=unwrap(model).device)[None] % size
    with inference(model), torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
    if not torch.isfinite(logits).all():
        raise ValueError(f"logits must be finite, {what} has NaN or infinite ones: look at its weights")


def _check_fits(model: Any, name: str, draft: Any) -> None:
    sizes = [one.get_output_embeddings().weight.shape[0] for one in (unwrap(draft), unwrap(model))]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"draft {name!r} must have the target's vocabulary of {sizes[1]} tokens, it has {sizes[0]}"
        )
    depths = [number_of_layers(one) for one in (draft, model)]
    if depths[0] > depths[1]:
        raise ValueError(
            f"draft {name!r} must not be deeper than its target: {depths[0]} and {depths[1]} layers"
        )


def _named(drafts: Any) -> dict[str, Any]:
    named = dict(drafts) if isinstance(drafts, Mapping) else {one.name: one for one in drafts}
    if not named or len(named) < len(drafts):
        raise ValueError(f"drafts must be at least one, with different names, got {len(drafts)}")
    for name, one in named.items():
        if not isinstance(one, Variant) and not hasattr(one, "get_output_embeddings"):
            raise ValueError(f"draft {name!r} must be a Variant or a language model, got {one!r:.80}")
    return named


@torch.no_grad()
def _by_reading(
    draft: Any, prompts: Prompts, said: Prompts, lengths: list[int], ends: list[int], batch_size: int
) -> dict[int, list[Drafted]]:
    """Return the rounds of every draft length from one pass of the draft over the target's responses."""
    found: dict[int, list[Drafted]] = {k: [None] * len(said) for k in lengths}  # type: ignore[list-item]
    rows = [[*prompt, *new] for prompt, new in zip(prompts, said, strict=True)]
    with inference(draft):
        for batch in by_length([len(row) for row in rows], batch_size):
            longest = max(len(rows[index]) for index in batch)
            ids = torch.tensor([rows[index] + [0] * (longest - len(rows[index])) for index in batch])
            mask = torch.tensor([[1] * len(rows[i]) + [0] * (longest - len(rows[i])) for i in batch])
            inputs = {"input_ids": ids.to(draft.device), "attention_mask": mask.to(draft.device)}
            best, chosen = (one.cpu() for one in draft(**inputs, use_cache=False).logits.max(dim=-1))
            if not (best.isfinite() | (mask == 0)).all():
                raise not_finite(draft, "the draft's")
            chosen = chosen.tolist()
            for place, index in enumerate(batch):
                begin = len(prompts[index])
                own = chosen[place][begin - 1 : len(rows[index]) - 1]
                same = [one == other for one, other in zip(own, said[index], strict=True)]
                for k in lengths:
                    found[k][index] = counted(list(said[index]), rounds_of(same, k), k, set(ends))
    return found


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


def _share(
    name: str, over: Any, of: Any, confidence: float, seed: int, most: float = 1.0
) -> dict[str, float]:
    """Return a ratio of sums over prompts, with its interval."""
    over, of = np.asarray(over, dtype=float), np.asarray(of, dtype=float)
    there = of > 0
    if not there.any():
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), np.nan)
    each, weight = over[there] / of[there], of[there]
    settings: Any = {"bounds": (0.0, float(most)), "confidence": confidence, "seed": seed}
    low, high = bootstrap_interval(each, weights=weight, **settings)
    return {name: float(np.average(each, weights=weight)), f"{name}_low": low, f"{name}_high": high}
