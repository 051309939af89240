"""Scores of a model in memory: tasks of the lm-evaluation-harness, perplexity, normalised loss.

All task scores are the harness's own, number for number. This module hands it the model as it stands (pruned,
inside ``without_layers``, with an adapter on), keeps every item's result, counts the prompts that did not fit
into the context, and puts everything back as it was. Importing it does not import torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.checks import check_writable, is_whole
from workbench.evaluation.suites import SUITES
from workbench.evaluation.tasks import Loaded, load_plan, plan_tasks, task_fingerprint
from workbench.runs.files import write_text_atomic
from workbench.runs.keys import reads

#: whether the other processes of a launcher wait to be called to an evaluation
_calls: ContextVar[bool] = ContextVar("calls", default=False)


@contextmanager
def calling_others() -> Iterator[None]:
    """Let the first process of a launcher call the others to each evaluation, until leaving."""
    token = _calls.set(True)
    try:
        yield
    finally:
        _calls.reset(token)


def questions(tasks: Any, include: Any = None, data: Any = None) -> dict[str, str]:
    """Return digests of the task files and data behind arguments of ``evaluate``, for its key in a run."""
    return task_fingerprint(tasks, include=include, data=data) if tasks else {}


@reads(questions, instead_of=("include", "data"))
def evaluate(
    model: Any,
    tokenizer: Any,
    tasks: str | Sequence[str],
    *,
    limit: int | float | None = None,
    n_shot: int | None = None,
    batch_size: int | str = "auto",
    max_length: int | None = None,
    items: str | Path | None = None,
    include: str | Path | None = None,
    data: str | Path | None = None,
    missing: str = "error",
    chat_template: bool | str = False,
    thinking: bool = False,
    system_instruction: str | None = None,
    max_new_tokens: int | None = None,
    gen_kwargs: Mapping[str, Any] | None = None,
    seed: int = 1234,
    shot_order: int = 0,
    allow_code: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Scores of lm-evaluation-harness tasks, run on the model in memory as it stands.

    The values equal those of the ``lm_eval`` command line on the saved model, but for two things. Where a
    tokenizer begins texts with a mark, every window of a long text begins with it and none is scored; the
    harness scores the first and leaves the others without. Chat prompts are those of ``chat_prompt``.

    What prompts have in common is computed once: the choices of an item share its context, the items of an
    MMLU subject their few-shot examples; for models that cannot (see ``prefixes.can_share``) each is computed
    whole, as in the harness. Under ``accelerate launch`` the processes share items and batches and get the
    same scores, to the bit those of one process; all must call this, and an error in one is raised in all.

    A prompt longer than the context loses its beginning, as in the harness; the column ``truncated`` counts
    these items.

    A folder of task files can hold code. Files that name Python functions (``!function``) or metrics of other
    libraries are refused, and templates run in jinja's sandbox, unless ``allow_code=True``; the demo tasks
    and those of the harness are trusted.

    Args:
        model: any decoder-only model, pruned or not, with an adapter or not; unchanged afterwards.
        tokenizer: the model's tokenizer; unchanged afterwards.
        tasks: names of tasks, groups or tags of the harness or of the folder ``include``, or a suite of
            ``workbench.evaluation.suites.SUITES`` ("sdd", "openllm-v1", "gro", "gro-c5", "iterabre",
            "iterabre-multilingual"); one or several.
        limit: only the first ``limit`` items of every task, or that share of them when below 1.
        n_shot: few-shot examples in the prompt; None keeps the suite's or the task's own number.
        batch_size: rows of tokens at once at most; the choices of an item share a row. "auto" takes as many
            as free memory holds and keep a GPU busy. Fewer where their logits would take more than 1 GiB (in
            16 bits); half as many where memory does not suffice after all.
        max_length: context in tokens; None takes the suite's where it has one and the model's reaches it,
            otherwise the model's.
        items: a .jsonl path for every item's prompt, answer and scores; ``read_items`` reads it. The score of
            an item is what the metric says of it alone, null where it says nothing. No other file is replaced
            than one of items.
        include: a folder of task files; None takes the demo tasks. Its data files may be of any kind that
            ``datasets`` reads; relative paths in it are looked for near the task file.
        data: a folder with public sets as jsonl; tasks found there
            (``workbench.evaluation.suites.LOCAL_SETS``) need no network. Items and prompts are those of the
            harness on the same rows; a file that holds a sample gives the scores of that sample.
        missing: what happens to tasks, or parts of a group, whose data cannot be had: "error" names all of
            them in one message; "skip" leaves them out and says so in ``attrs["skipped"]``. A group's average
            is then over the parts that are there.
        chat_template: wraps each prompt in the tokenizer's chat template, few-shot examples as earlier turns;
            or the name of another of its templates, or a template itself. A template that refuses a system
            turn has the task's description in front of the first question.
        thinking: lets a model that can think aloud do so, and scores what stands behind its thoughts; off,
            as in ``chat_prompt`` and healing.
        system_instruction: a text in front of the task's description.
        max_new_tokens: length of generated answers, for all tasks; None keeps each task's own.
        gen_kwargs: further settings of the generation, put over each task's own.
        seed: draws the few-shot examples; 1234 is the harness's own.
        shot_order: 0 leaves the few-shot examples in the harness's order; 1, 2, ... put the same examples in
            other orders (``workbench.evaluation.variants``).
        allow_code: runs the Python that the task files of ``include`` name, templates without a sandbox, and
            tasks that run what a model writes.
        progress: one bar for the whole call.

    Returns:
        One row a task, group and metric: task, metric, n_shot, value, stderr, n (items), truncated (items),
        higher_is_better, parent, category. ``metric`` carries the answer filter after a comma where it has a
        name ("exact_match,strict-match"). ``stderr`` is the harness's, for perplexities that of the ratio of
        sums with items as the sampling unit; NaN where neither is known. ``parent`` names the group in whose
        average the row is already counted; it is empty for what stands on its own. ``category`` is reasoning,
        language, knowledge, multilingual (``workbench.evaluation.suites.CATEGORIES``, or what a task file
        states), or empty. ``attrs["skipped"]`` is {name: why} of what was left out; ``chat_template`` and
        ``thinking`` stand there as they were. A group's score is the harness's: MMLU is the mean over all its
        questions, not over its 57 subjects.

    Raises:
        ValueError: before the first forward pass, for an unknown task (near ones are named), tasks without
            data (all are named), a task without items or with missing columns, task files with code, and an
            argument out of range; during it, for logits that are not finite, naming where they begin.
    """
    plan = plan_tasks(tasks, n_shot)
    max_length = suite_length(tasks, model) if max_length is None else max_length
    check_settings(model, batch_size, max_length, items)
    chat = check_chat(tokenizer, chat_template, thinking)
    from workbench.evaluation import harness
    from workbench.evaluation.in_memory import InMemory
    from workbench.evaluation.samples import told
    from workbench.models.identity import in_common
    from workbench.models.processes import agree, by_the_first, everyones, failing_together, place

    if _calls.get():
        everyones(())
    rows: list[dict[str, Any]] = []
    lines: list[str] = []
    asked: dict[str, Any] = {"system_instruction": system_instruction, "confirm_run_unsafe_code": allow_code}
    quiet = harness.quiet(allow_code=allow_code)
    with failing_together(), harness.untouched(model, tokenizer), quiet:
        drawn: dict[str, Any] = {"seed": seed, "shot_order": shot_order, "allow_code": allow_code}
        drawn |= {"max_new_tokens": max_new_tokens, "gen_kwargs": gen_kwargs}
        loaded = prepared(plan, include=include, data=data, missing=missing, **drawn)
        if place()[1] > 1:
            same = {"tasks": loaded.left, "limit": limit, "batch_size": batch_size, "max_length": max_length}
            same |= {"items": items is not None, **asked, **chat, **drawn}
            agree(**same, **in_common(model, tokenizer))
        chat |= {"batch_size": batch_size, "max_length": max_length, "progress": progress and place()[0] == 0}
        lm = InMemory(model, tokenizer, **chat)
        with lm.bar:
            for part in loaded.tasks.values():
                harness.check_lengths(lm, part["tasks"])
            for part in loaded.tasks.values():
                asked["tell"] = partial(told, tasks=part["tasks"], lines=items is not None)
                results, cut = harness.run_tasks(lm, part, limit=limit, chat=bool(chat_template), **asked)
                rows += by_the_first(partial(_told, results, part, cut, lines))
    if items is not None:
        path, text = items, "".join(lines)
        by_the_first(lambda: write_text_atomic(path, text))
    scores = pd.DataFrame(rows)
    scores.attrs |= {"skipped": loaded.skipped, "chat_template": chat_template, "thinking": thinking}
    return scores


def _told(results: Any, part: dict[str, Any], cut: set[tuple[str, int]], lines: list[str]) -> Any:
    """Return the rows of scores, put those of items behind ``lines``, and warn of strange targets."""
    from workbench.evaluation import harness
    from workbench.evaluation.columns import tell_strange_targets

    for name, samples in results["samples"].items():
        of_items = results["told"][name]
        tell_strange_targets(name, of_items.strange, len({sample["doc_id"] for sample in samples}))
        lines += of_items.lines.values()
    return harness.score_rows(results, part, cut)


def prepared(
    plan: dict[int | None, list[str]],
    *,
    seed: int = 1234,
    shot_order: int = 0,
    max_new_tokens: int | None = None,
    gen_kwargs: Mapping[str, Any] | None = None,
    allow_code: bool = False,
    **sources: Any,
) -> Loaded:
    """Load all tasks of a plan as they are asked, so that what is wrong is said before anything is run."""
    from workbench.evaluation import harness

    settings = dict(gen_kwargs or {}) | ({"max_gen_toks": max_new_tokens} if max_new_tokens else {})
    with harness.quiet(allow_code=allow_code):
        loaded = load_plan(plan, allow_code=allow_code, **sources)
    for shots, part in loaded.tasks.items():
        harness.set_shots(part["tasks"], shots, seed, shot_order)
        harness.set_generation(part["tasks"], settings)
    return loaded


def suite_length(tasks: str | Sequence[str], model: Any) -> int | None:
    """Return the context length that a suite among the tasks is run at, None for the model's own.

    A model whose context is shorter is run at its own; ``truncated`` then tells what did not fit.

    Raises:
        ValueError: suites of different lengths.
    """
    names = [tasks] if isinstance(tasks, str) else tasks
    lengths = {SUITES[name].max_length for name in names if name in SUITES}
    if len(lengths) > 1:
        raise ValueError(f"tasks must be suites of one context length, got {names}; run them one by one")
    from workbench.generation.prompts import context_length

    length, context = lengths.pop() if lengths else None, context_length(model)
    return min(length, context) if length and context else length


def check_settings(
    model: Any, batch_size: int | str, max_length: int | None, items: str | Path | None = None
) -> None:
    """Refuse settings of ``evaluate`` that are out of range for the model, with a ``ValueError``."""
    if batch_size != "auto" and not is_whole(batch_size):
        raise ValueError(f"batch_size must be a whole number >= 1, or 'auto', got {batch_size!r}")
    from workbench.generation.prompts import context_length

    context = context_length(model)
    if max_length is not None and not 2 <= max_length <= (context or max_length):
        raise ValueError(f"max_length must be between 2 and the model's {context} tokens, got {max_length!r}")
    if items is not None:
        _check_items(Path(items))


def _check_items(path: Path) -> None:
    """Refuse a path where items cannot be written, or where something else lies than items."""
    if path.is_dir():
        raise ValueError(f"items must be the path of a file that can be written, got {str(path)!r}")
    check_writable("items", path)
    if path.exists() and not _holds_items(path):
        raise ValueError(f"items must be a new file or one that evaluate wrote, {path} holds something else")


def _holds_items(path: Path) -> bool:
    """Return whether a file is empty, or begins with an item."""
    if not path.is_file():  # a pipe would never end
        return False
    with suppress(ValueError, OSError, AttributeError), path.open(encoding="utf-8") as file:
        return not (line := file.readline()) or {"task", "item", "scores"} <= json.loads(line).keys()
    return False


def check_chat(tokenizer: Any, chat_template: bool | str, thinking: bool) -> dict[str, Any]:
    """Return what ``InMemory`` takes of ``chat_template`` and ``thinking``, after a chat of one turn.

    Raises:
        ValueError: a template that is not there, or fails; thinking without a template.
    """
    if thinking and not chat_template:
        raise ValueError("thinking needs chat_template=True or a template, got False")
    template = chat_template if isinstance(chat_template, str) else None
    chat: dict[str, Any] = {"thinking": thinking, "template": template}
    if chat_template:
        from workbench.models.chat import render_chat

        render_chat(tokenizer, [{"role": "user", "content": "?"}], **chat)
    return chat
