"""Do prompts that will be trained on occur in an evaluation set? Looked at before healing; no torch."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.checks import checked
from workbench.runs.keys import reads

_FEWEST = 5  # words of an evaluation prompt that is looked for in training prompts


def check_contamination(
    examples: pd.DataFrame, evaluation: pd.DataFrame, *, column: str = "instruction", n_words: int = 13
) -> pd.DataFrame:
    """Look for every training prompt in every evaluation set.

    Texts are compared as words: case, punctuation and spacing do not count. A prompt *occurs* when all its
    words stand in a row in one evaluation prompt, or all words of an evaluation prompt in it: a copy behind
    an introduction of its own is one. What the prompts of a task all begin and end with ("Question: ...
    Answer:") does not count for that, and one of fewer than five words does not either. *Overlap* is the
    share of its runs of ``n_words`` words that stand somewhere in the set; 13 is what the GPT-3 report
    (appendix C) used.

    Args:
        examples: frame with id and ``column``, as of ``load_instructions``.
        evaluation: frame with task, item and text, as of ``evaluation_prompts``.
        column: the training prompt, ``"reference"`` to look for the answers, or ``"context"`` for the
            passages that prompts come with; rows without a context are passed over.
        n_words: length of a run, at least 1.

    Returns:
        Frame with id, task, occurs, overlap (0..1; of a prompt shorter than ``n_words``, 1 where it stands
        whole in the set and else 0), item (of the first place it occurs; None where it does not), one row a
        prompt and task. ``attrs["empty"]``: how many rows had no context.

    Raises:
        ValueError: for missing columns, no row, a prompt without a word, no row with a context, or
            ``n_words`` below 1.

    >>> examples = pd.DataFrame({"id": [1], "instruction": ["What is two plus two?"]})
    >>> exam = pd.DataFrame({"task": ["exam"], "item": [0], "text": ["Q: what is TWO plus two"]})
    >>> check_contamination(examples, exam)[["occurs", "overlap", "item"]].values.tolist()
    [[True, 1.0, 0]]
    """
    checked(examples, ("id", column), "examples")
    checked(evaluation, ("task", "item", "text"), "evaluation")
    named = [(name, _words(text)) for name, text in zip(examples["id"], examples[column], strict=True)]
    full = [(name, words) for name, words in named if words]
    if not full or (len(full) < len(named) and column != "context"):
        first = next(name for name, words in named if not words)
        every = "one row at least" if column == "context" else "every row"
        raise ValueError(f"column {column} must hold a text with words in {every}; row {first!r} has none")
    names, prompts = zip(*full, strict=True)
    rows: list[dict[str, Any]] = []
    for task, part in evaluation.groupby("task", sort=False):
        found = zip(names, _looked_up(prompts, part, n_words), strict=True)
        rows += [{"id": name, "task": task, **one} for name, one in found]
    frame = pd.DataFrame(rows)
    frame["item"] = pd.Series([row["item"] for row in rows], dtype=object)  # whole numbers stay so
    frame.attrs["empty"] = len(named) - len(full)
    return frame


def contamination_summary(found: pd.DataFrame, *, overlap: float = 0.5) -> pd.DataFrame:
    """Return how many training prompts occur in each evaluation set.

    Args:
        found: frame of ``check_contamination``.
        overlap: a prompt with more than this share of its runs in the set counts as overlapping, 0..1.

    Returns:
        Frame with task, n (prompts), occurring, overlapping (both numbers of prompts), share_occurring,
        share_overlapping (0..1).

    Raises:
        ValueError: for an ``overlap`` outside of 0..1.

    >>> found = pd.DataFrame({"id": [1, 2], "task": "exam", "occurs": [True, False], "overlap": [1.0, 0.2]})
    >>> contamination_summary(found)[["n", "occurring", "share_overlapping"]].values.tolist()
    [[2.0, 1.0, 0.5]]
    """
    if not 0 <= overlap <= 1:
        raise ValueError(f"overlap must be between 0 and 1, got {overlap!r}")
    marked = found.assign(overlapping=found["overlap"] > overlap)
    counted = {"n": ("id", "size"), "occurring": ("occurs", "sum"), "overlapping": ("overlapping", "sum")}
    summary = marked.groupby("task", sort=False).agg(**counted)
    shares = summary[["occurring", "overlapping"]].div(summary["n"], axis=0).add_prefix("share_")
    return summary.join(shares).reset_index()


def _files_of(tasks: Any, include: Any = None, data: Any = None) -> dict[str, str]:
    """Return digests of the task files and data, for the key of ``evaluation_prompts`` in a run."""
    from workbench.evaluation.evaluate import questions

    return questions(tasks, include, data)


@reads(_files_of, instead_of=("include", "data"))
def evaluation_prompts(
    tasks: str | Sequence[str], *, include: str | Path | None = None, data: str | Path | None = None
) -> pd.DataFrame:
    """Return the questions of evaluation tasks, without few-shot examples and without answers.

    Args:
        tasks: names of tasks, groups or suites, as for ``evaluate``.
        include: as for ``evaluate``.
        data: as for ``evaluate``.

    Returns:
        Frame with task, item (its number in the task), text.

    Raises:
        ValueError: as ``evaluate`` raises it for tasks.
    """
    from workbench.evaluation.harness import quiet
    from workbench.evaluation.tasks import load_tasks, plan_tasks

    names = list(dict.fromkeys(name for part in plan_tasks(tasks).values() for name in part))
    with quiet():
        loaded = load_tasks(names, include=include, data=data)["tasks"]
        docs = [(name, k, doc) for name, task in loaded.items() for k, doc in enumerate(task.eval_docs)]
        rows = [(name, k, _question(loaded[name], doc)) for name, k, doc in docs]
    return pd.DataFrame(rows, columns=["task", "item", "text"])


def _question(task: Any, doc: dict[str, Any]) -> str:
    text = task.doc_to_text(doc)
    if isinstance(text, str) and text.strip():
        return text
    # tasks that compare whole sentences (Winogrande, BLiMP) ask nothing: the sentences are the question
    choices = task.doc_to_choice(doc) if task.config.doc_to_choice else []
    return " ".join([*map(str, choices), str(task.doc_to_target(doc))])


def _looked_up(prompts: Sequence[list[str]], part: pd.DataFrame, n_words: int) -> Iterator[dict[str, Any]]:
    items = part["item"].tolist()
    texts = [_words(text) for text in part["text"]]
    lines = [_line(words) for words in texts]
    cores = [_line(words) for words in _cores(texts)]
    begins = _index([words[:_FEWEST] for words in _cores(texts)], _FEWEST)  # none of a shorter one
    index = lru_cache(maxsize=None)(partial(_index, texts))
    for words in prompts:
        length, whole = min(n_words, len(words)), _line(words)
        known, own = index(length), list(_runs(words, length))
        places = [k for k in known.get(own[0], ()) if whole in lines[k]]
        places += [k for run in _runs(words, _FEWEST) for k in begins.get(run, ()) if cores[k] in whole]
        overlap = sum(run in known for run in own) / len(own)
        yield {"occurs": bool(places), "overlap": overlap, "item": items[min(places)] if places else None}


def _cores(texts: list[list[str]]) -> list[list[str]]:
    """Return the texts without the words that all of them begin and end with ("question ... answer")."""
    if len(texts) < 2:
        return texts
    begin = _shared(texts)
    rest = [words[begin:] for words in texts]
    end = _shared([words[::-1] for words in rest])
    return [words[: len(words) - end] for words in rest]


def _shared(texts: list[list[str]]) -> int:
    """Return with how many words all texts begin."""
    return sum(1 for _ in takewhile(lambda words: len(set(words)) == 1, zip(*texts, strict=False)))


def _line(words: list[str]) -> str:
    return f" {' '.join(words)} "


def _index(texts: list[list[str]], length: int) -> dict[str, list[int]]:
    """Return in which texts each run of words stands."""
    index: dict[str, list[int]] = defaultdict(list)
    for run, number in ((run, k) for k, words in enumerate(texts) for run in set(_runs(words, length))):
        index[run].append(number)
    return index


def _runs(words: list[str], length: int) -> Iterator[str]:
    return (" ".join(words[start : start + length]) for start in range(len(words) - length + 1))


def _words(text: Any) -> list[str]:
    return re.findall(r"\w+", str(text).lower()) if isinstance(text, str) or pd.notna(text) else []
