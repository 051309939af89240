"""How far scores move with what should not matter: order and number of few-shot examples, training seed.

GRO C.1 reorders the few-shot examples of MMLU and changes their number; GRO C.2 heals again from another
seed. Each call gives one row a measurement; ``scores.score_spread`` gives mean, standard deviation and
number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from math import factorial
from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.evaluation import evaluate
from workbench.runs import Run, Variant
from workbench.scores import score_spread
from workbench.variants import evaluate_variants

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["score_spread", "seed_ablation", "shot_ablation"]


def shot_ablation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: str | Sequence[str],
    *,
    shots: Sequence[int] = (0, 1, 5),
    orders: int = 3,
    **settings: Any,
) -> pd.DataFrame:
    """Scores for each number of few-shot examples, and for several orders of the same examples (GRO C.1).

    Order 0 is the harness's; the others are random permutations of it, the same for every item and every
    model. With 0 examples or 1 there is one order, with 2 there are two.

    Args:
        model: as for ``evaluate``.
        tokenizer: as for ``evaluate``.
        tasks: as for ``evaluate``; GRO takes "mmlu".
        shots: numbers of examples.
        orders: how many orders of them.
        settings: what else ``evaluate`` takes (``data=``, ``limit=``), not ``n_shot``, ``shot_order``,
            ``items``.

    Returns:
        The columns of ``evaluate`` and ``order``. ``score_spread(frame, over="order")`` gives their spread.

    Raises:
        ValueError: ``shots`` or ``orders`` out of range; and as ``evaluate``.
    """
    if not len(shots) or any(not isinstance(n, int) or n < 0 for n in shots) or len(set(shots)) < len(shots):
        raise ValueError(f"shots must be different whole numbers of at least 0, got {list(shots)}")
    if not isinstance(orders, int) or orders < 1:
        raise ValueError(f"orders must be a whole number of at least 1, got {orders!r}")
    if given := {"n_shot", "shot_order", "items"} & settings.keys():
        raise ValueError(f"settings must not hold {sorted(given)}: shots and orders say it")
    frames = [
        evaluate(model, tokenizer, tasks, n_shot=n, shot_order=order, **settings).assign(order=order)
        for n in shots
        for order in range(min(orders, factorial(n)))
    ]
    return pd.concat(frames, ignore_index=True)


def seed_ablation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    variants: Mapping[str, Mapping[int, Variant]],
    tasks: str | Sequence[str],
    *,
    run: Run,
    **settings: Any,
) -> pd.DataFrame:
    """Scores of the same healing from several training seeds (GRO C.2).

    Args:
        model: the whole model; each variant is seen on it in turn, as in ``evaluate_variants``.
        tokenizer: its tokenizer.
        variants: {method: {seed: variant}}, such as ``{"sft": {0: run.variant("sft"), 1: ...}}``.
        tasks: as for ``evaluate``.
        run: where the adapters are and the scores are kept.
        settings: what else ``evaluate_variants`` takes.

    Returns:
        method, seed, variant and the columns of ``evaluate``. ``score_spread(frame, over="seed")`` gives
        mean, standard deviation and number of seeds a method and task.

    Raises:
        ValueError: no variant, or one that stands under two seeds; and as ``evaluate_variants``.
    """
    every = list(chain.from_iterable(seeds.values() for seeds in variants.values()))
    names = [variant.name for variant in every]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"variants must be at least one, each under one method and seed, got {names}")
    scores = evaluate_variants(model, tokenizer, every, tasks, run=run, **settings).scores
    places = [(v.name, method, seed) for method, seeds in variants.items() for seed, v in seeds.items()]
    where = pd.DataFrame(places, columns=["variant", "method", "seed"])
    merged = where.merge(scores, on="variant", how="right")
    return merged[["method", "seed", *scores.columns]]
