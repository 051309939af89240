"""Scores of several variants on one copy of the weights, each kept in the run and measured once."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from workbench.evaluation import check_settings, evaluate, suite_length
from workbench.runs import Run, Variant
from workbench.scores import read_items
from workbench.tasks import load_plan, plan_tasks, task_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Evaluated", "evaluate_variants"]

_SETTINGS = ("limit", "max_length", "include", "data", "missing", "chat_template", "seed", "shot_order")


class Evaluated(NamedTuple):
    """What ``evaluate_variants`` gives.

    Attributes:
        scores: variant and the columns of ``evaluate``.
        items: variant and the columns of ``read_items``.
    """

    scores: pd.DataFrame
    items: pd.DataFrame

    def of(self, variant: str) -> pd.DataFrame:
        """Return the items of one variant, for ``compare_items`` and ``flips``.

        Raises:
            ValueError: there is no such variant.
        """
        if variant not in (known := list(dict.fromkeys(self.items["variant"]))):
            raise ValueError(f"variant must be one of {known}, got {variant!r}")
        return self.items[self.items["variant"] == variant].drop(columns="variant").reset_index(drop=True)


def evaluate_variants(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    variants: Sequence[Variant],
    tasks: str | Sequence[str],
    *,
    run: Run,
    n_shot: int | None = None,
    batch_size: int = 32,
    progress: bool = True,
    **settings: Any,
) -> Evaluated:
    """Scores of each variant, the model loaded once: layers left out, adapter on, everything put back after.

    Each variant's result of each task is kept in the run (``evaluations/<variant>/<task>-<n>shot.csv`` and
    ``.jsonl``) with what it depends on: weights, layers, the adapter's bytes, task files and data, settings,
    code. What has changed in any of these is measured again, the rest is read. ``batch_size`` is not among
    them: it changes rounding alone.

    Args:
        model: the whole model; unchanged afterwards.
        tokenizer: its tokenizer.
        variants: such as ``run.variants()``.
        tasks: as for ``evaluate``; all must be had before the first is run.
        run: where adapters are and results are kept.
        n_shot: as for ``evaluate``.
        batch_size: as for ``evaluate``.
        progress: one bar for each task that is run.
        settings: ``limit``, ``max_length``, ``include``, ``data``, ``missing``, ``chat_template``, ``seed``
            and ``shot_order`` of ``evaluate``.

    Returns:
        Scores and items of all variants.

    Raises:
        ValueError: no variant, two of one name, an unknown setting, an adapter of other layers; and as
            ``evaluate``, before anything is run.
    """
    names = [variant.name for variant in variants]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"variants must be at least one, with different names, got {names}")
    if unknown := settings.keys() - set(_SETTINGS):
        raise ValueError(f"settings must be some of {', '.join(_SETTINGS)}, got {sorted(unknown)}")
    settings["max_length"] = settings.get("max_length") or suite_length(tasks, model)
    check_settings(model, settings.get("limit"), batch_size, settings["max_length"])
    plan, skipped = _what_is_there(tasks, n_shot, settings)
    from workbench.adapters import as_variant
    from workbench.models import describe_model

    identity, scores, items = describe_model(model), [], []
    measure = partial(evaluate, model, tokenizer, batch_size=batch_size, progress=progress, **settings)
    for variant in variants:
        adapter = run.digest(variant.adapter) if variant.adapter else None
        inputs = {"model": identity, "removed": variant.removed, "adapter": adapter}
        with as_variant(model, variant, run=run):
            for task, shots in plan:
                place = f"evaluations/{variant.name}/{_file_name(task, shots)}"
                frame = _kept(run, place, measure, task, shots, inputs | _questions(task, settings))
                scores.append(frame.assign(variant=variant.name))
                items.append(read_items(run.path(f"{place}.jsonl")).assign(variant=variant.name))
    joined = _joined(scores)
    joined.attrs["skipped"] = skipped
    return Evaluated(joined, _joined(items))


def _what_is_there(
    tasks: str | Sequence[str], n_shot: int | None, settings: dict[str, Any]
) -> tuple[list[tuple[str, int | None]], dict[str, str]]:
    """Load every task once, so that all that is wrong or missing is said before the first is run."""
    from workbench.harness import quiet, set_shots

    given = {name: settings[name] for name in ("include", "data", "missing") if name in settings}
    with quiet():
        loaded = load_plan(plan_tasks(tasks, n_shot), **given)
    for shots, part in loaded.tasks.items():
        set_shots(part["tasks"], shots, settings.get("seed", 1234), settings.get("shot_order", 0))
    return loaded.left, loaded.skipped


def _kept(
    run: Run,
    place: str,
    measure: Callable[..., pd.DataFrame],
    task: str,
    shots: int | None,
    inputs: dict[str, Any],
) -> pd.DataFrame:
    """Return the scores kept in the run, measured anew when anything they depend on is another."""
    items = f"{place}.jsonl"
    # a function of this module: the run follows its sources, and of its values only what is named as an input
    return run.frame(
        f"{place}.csv",
        lambda: measure(task, n_shot=shots, items=run.path(items)),
        makes=[items],
        task=task,
        n_shot=shots,
        **inputs,
    )


def _questions(task: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what the answers depend on besides the model; files by what they hold, not where they lie."""
    files = {name: settings.get(name) for name in ("include", "data")}
    others = {name: value for name, value in settings.items() if name not in files}
    return {"questions": task_fingerprint(task, **files), "settings": others}


def _file_name(task: str, shots: int | None) -> str:
    safe = re.sub(r"[^A-Za-z0-9._-]", "-", task)
    return safe if shots is None else f"{safe}-{shots}shot"


def _joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """Stack frames, ``variant`` first."""
    joined = pd.concat(frames, ignore_index=True)
    return joined[["variant", *(column for column in joined if column != "variant")]]
