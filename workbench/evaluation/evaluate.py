"""Scores of a model in memory: tasks of the lm-evaluation-harness, perplexity, normalised loss.

All task scores are the harness's own, number for number. This module hands it the model as it stands (pruned,
inside ``without_layers``, with an adapter on), keeps every item's result, counts the prompts that did not fit
into the context, and puts everything back as it was. Importing it does not import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.checks import whole_number
from workbench.evaluation.suites import SUITES
from workbench.evaluation.tasks import load_plan, plan_tasks, task_fingerprint
from workbench.runs.files import write_text_atomic
from workbench.runs.keys import reads

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def questions(tasks: Any, include: Any = None, data: Any = None) -> dict[str, str]:
    """Return digests of the task files and data behind arguments of ``evaluate``, for its key in a run."""
    return task_fingerprint(tasks, include=include, data=data) if tasks else {}


@reads(questions, instead_of=("include", "data"))
def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: str | Sequence[str],
    *,
    limit: int | float | None = None,
    n_shot: int | None = None,
    batch_size: int = 32,
    max_length: int | None = None,
    items: str | Path | None = None,
    include: str | Path | None = None,
    data: str | Path | None = None,
    missing: str = "error",
    chat_template: bool = False,
    seed: int = 1234,
    shot_order: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Scores of lm-evaluation-harness tasks, run on the model in memory as it stands.

    The values equal those of the ``lm_eval`` command line on the saved model. A prompt longer than the
    context loses its beginning, as in the harness; the column ``truncated`` counts these items.

    Args:
        model: any decoder-only model, pruned or not, with an adapter or not; unchanged afterwards.
        tokenizer: the model's tokenizer; unchanged afterwards.
        tasks: names of tasks, groups or tags of the harness or of the folder ``include``, or a suite of
            ``workbench.suites.SUITES`` ("sdd", "openllm-v1", "gro", "gro-c5", "iterabre",
            "iterabre-multilingual"); one or several.
        limit: only the first ``limit`` items of every task, or that share of them when below 1.
        n_shot: few-shot examples in the prompt; None keeps the suite's or the task's own number.
        batch_size: prompts in a batch.
        max_length: context in tokens; None takes the suite's where it has one and the model's reaches it,
            otherwise the model's.
        items: a .jsonl path for every item's prompt, answer and scores; ``read_items`` reads it.
        include: a folder of task files; None takes the demo tasks.
        data: a folder with public sets as jsonl; tasks found there (``workbench.suites.LOCAL_SETS``) need no
            network. Items and prompts are those of the harness on the same rows; a file that holds a sample
            gives the scores of that sample.
        missing: what happens to tasks, or parts of a group, whose data cannot be had: "error" names all of
            them in one message; "skip" leaves them out and says so in ``attrs["skipped"]``. A group's average
            is then over the parts that are there.
        chat_template: wraps each prompt in the tokenizer's chat template, few-shot examples as earlier turns.
        seed: draws the few-shot examples; 1234 is the harness's own.
        shot_order: 0 leaves the few-shot examples in the harness's order; 1, 2, ... put the same examples in
            other orders (``workbench.evaluation.variants``).
        progress: one bar for the whole call.

    Returns:
        One row a task, group and metric: task, metric, n_shot, value, stderr, n (items), truncated (items),
        higher_is_better, parent, category. ``metric`` carries the answer filter after a comma where it has a
        name ("exact_match,strict-match"). ``stderr`` is the harness's, for perplexities that of the ratio of
        sums with items as the sampling unit; NaN where neither is known. ``parent`` names the group in whose
        average the row is already counted; it is empty for what stands on its own. ``category`` is reasoning,
        language, knowledge, multilingual (``workbench.suites.CATEGORIES``, or what a task file states), or
        empty. ``attrs["skipped"]`` is {name: why} of what was left out.

    Raises:
        ValueError: before the first forward pass, for an unknown task (near ones are named), tasks without
            data (all are named), a task without items or with missing columns, and a ``limit``, ``n_shot``,
            ``shot_order``, ``batch_size`` or ``max_length`` out of range.
    """
    plan = plan_tasks(tasks, n_shot)
    max_length = max_length or suite_length(tasks, model)
    check_settings(model, limit, batch_size, max_length)
    from workbench.evaluation import harness

    rows: list[dict[str, Any]] = []
    lines: list[str] = []
    with harness.untouched(model, tokenizer), harness.quiet():
        loaded, _, skipped = load_plan(plan, include=include, data=data, missing=missing)
        for shots, part in loaded.items():
            harness.set_shots(part["tasks"], shots, seed, shot_order)
        lm = harness.InMemory(
            model, tokenizer, batch_size=batch_size, max_length=max_length, progress=progress
        )
        with lm.bar:
            for part in loaded.values():
                harness.check_lengths(lm, part["tasks"])
            for part in loaded.values():
                results, truncated = harness.run_tasks(lm, part, limit=limit, chat_template=chat_template)
                rows += harness.score_rows(results, part, truncated)
                lines += harness.item_lines(results, part["tasks"], truncated)
    if items is not None:
        write_text_atomic(items, "".join(line + "\n" for line in lines))
    scores = pd.DataFrame(rows)
    scores.attrs["skipped"] = skipped
    return scores


def suite_length(tasks: str | Sequence[str], model: Any) -> int | None:
    """Return the context length that a suite among the tasks is run at, None for the model's own.

    A model whose context is shorter is run at its own; ``truncated`` then tells what did not fit.

    Raises:
        ValueError: suites of different lengths.
    """
    names = [tasks] if isinstance(tasks, str) else tasks
    lengths = {SUITES[name].max_length for name in names if name in SUITES}
    if len(lengths) > 1:
        raise ValueError(
            f"tasks must not mix suites of different context lengths, got {names}; run them one by one"
        )
    from workbench.generation.responses import context_length

    length, context = lengths.pop() if lengths else None, context_length(model)
    return min(length, context) if length and context else length


def check_settings(model: Any, limit: int | float | None, batch_size: int, max_length: int | None) -> None:
    """Refuse settings of ``evaluate`` that are out of range for the model, with a ``ValueError``."""
    if limit is not None and (limit <= 0 or (limit >= 1 and limit != int(limit))):
        raise ValueError(
            f"limit must be a whole number of at least 1, a share between 0 and 1, or None, got {limit}"
        )
    whole_number(batch_size, "batch_size")
    from workbench.generation.responses import context_length

    context = context_length(model)
    if max_length is not None and not 2 <= max_length <= (context or max_length):
        raise ValueError(f"max_length must be between 2 and the model's {context} tokens, got {max_length}")
