"""The states of a model through its iterations, and what it is compared with: scored alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from workbench.evaluation.perplexity import perplexity
from workbench.evaluation.variants import evaluate_variants
from workbench.healing.adapters import as_variant
from workbench.runs.run import Run
from workbench.runs.variant import Variant


def state_scores(
    model: Any,
    tokenizer: Any,
    variants: Sequence[Variant],
    tasks: str | Sequence[str],
    texts: Mapping[str, Sequence[str]],
    *,
    run: Run,
    **settings: Any,
) -> pd.DataFrame:
    """Return task scores and perplexities of variants, each measured once and kept in the run (ITR 4).

    Args:
        model: the whole model that the variants are of.
        tokenizer: its tokenizer.
        variants: the states; they do not become variants of the run, which notebook 05 would score again.
        tasks: as for ``evaluate``.
        texts: name -> held-out texts, whose perplexity by words (at least 1) is a row of that task.
        run: where scores and perplexities are kept.
        **settings: of ``evaluate_variants``.

    Returns:
        Rows of ``evaluate`` with a column ``variant``.

    Raises:
        ValueError: as ``evaluate_variants`` and ``perplexity`` do.
    """
    found = [evaluate_variants(model, tokenizer, variants, tasks, run=run, **settings).scores]
    for variant in variants:
        for name, some in texts.items():
            with as_variant(model, variant, run=run):
                file = f"perplexity-{variant.name}-{name}.csv"
                row = run.frame(file, perplexity, model, tokenizer, some, task=name, progress=False)
            found.append(row.assign(variant=variant.name))
    return pd.concat(found, ignore_index=True)
