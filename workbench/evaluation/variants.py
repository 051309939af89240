"""Scores of several variants on one copy of the weights, each kept in the run and measured once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import factorial
from typing import Any, NamedTuple

import pandas as pd

from workbench.checks import is_whole, one_of
from workbench.digests import digest
from workbench.evaluation.evaluate import (
    calling_others,
    check_chat,
    check_settings,
    evaluate,
    prepared,
    suite_length,
)
from workbench.evaluation.items import read_items
from workbench.evaluation.tasks import plan_tasks
from workbench.runs.run import Run
from workbench.runs.variant import Variant

#: settings of ``evaluate`` that say which questions are asked, and the others
_SOURCES = ("include", "data", "missing", "allow_code")
_QUESTIONS = (*_SOURCES, "seed", "shot_order", "max_new_tokens", "gen_kwargs")
_SETTINGS = ("limit", "max_length", "chat_template", "thinking", "system_instruction", *_QUESTIONS)


#: letters of a file's name without its ending
_LONGEST = 94


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
        one_of(variant, dict.fromkeys(self.items["variant"]), "variant")
        return self.items[self.items["variant"] == variant].drop(columns="variant").reset_index(drop=True)


def evaluate_variants(
    model: Any,
    tokenizer: Any,
    variants: Sequence[Variant],
    tasks: str | Sequence[str],
    *,
    run: Run,
    n_shot: int | None = None,
    batch_size: int | str = "auto",
    progress: bool = True,
    **settings: Any,
) -> Evaluated:
    """Scores of each variant, the model loaded once: layers left out, adapter on, everything put back after.

    Each variant's result of each task is kept in the run, for each number of examples and of items
    (``evaluations/<variant>/<task>-<n>shot-<limit>items.csv`` and ``.jsonl``), with what it depends on (see
    ``Run.frame``): weights, layers, adapter, tokenizer, task files and data, settings, code, versions. What
    has changed in any of these is measured again, the rest is read.
    ``batch_size`` is not among them: it changes rounding alone.

    Args:
        model: the whole model; unchanged afterwards.
        tokenizer: its tokenizer.
        variants: such as ``run.variants()``.
        tasks: as for ``evaluate``; all must be had before the first is run.
        run: where adapters are and results are kept.
        n_shot: as for ``evaluate``.
        batch_size: as for ``evaluate``.
        progress: one bar for each task that is run.
        settings: ``limit``, ``max_length``, ``include``, ``data``, ``missing``, ``chat_template``,
            ``thinking``, ``system_instruction``, ``max_new_tokens``, ``gen_kwargs``, ``seed``, ``shot_order``
            and ``allow_code`` of ``evaluate``.

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
    plan = plan_tasks(tasks, n_shot)
    settings["max_length"] = settings.get("max_length") or suite_length(tasks, model)
    check_settings(model, batch_size, settings["max_length"])
    check_chat(tokenizer, settings.get("chat_template", False), settings.get("thinking", False))
    loaded = prepared(plan, **{name: settings[name] for name in _QUESTIONS if name in settings})
    from workbench.evaluation.reading import texts_remembered
    from workbench.healing.adapters import as_variant

    settings |= {"batch_size": batch_size, "progress": progress}
    kept: list[tuple[pd.DataFrame, pd.DataFrame]] = []
    with texts_remembered():  # all are asked the same
        for variant in variants:
            with as_variant(model, variant, run=run):
                for task, shots in loaded.left:
                    place = f"evaluations/{variant.name}/{_file_name(task, shots, settings.get('limit'))}"
                    stated = settings | {"n_shot": shots, "items": run.path(f"{place}.jsonl")}
                    kept.append(_kept(run, place, model, tokenizer, task, stated))
                    for frame in kept[-1]:
                        frame.insert(0, "variant", variant.name)
    evaluated = Evaluated(*(pd.concat(frames, ignore_index=True) for frames in zip(*kept, strict=True)))
    evaluated.scores.attrs |= kept[-1][0].attrs | {"skipped": loaded.skipped}
    return evaluated


def _kept(
    run: Run, place: str, model: Any, tokenizer: Any, task: str, settings: dict[str, Any]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return scores and items as the run keeps them, measured where it does not, by all processes together.

    The first process alone reads and writes the run; it calls the others where there is something to measure.
    """
    from workbench.models.processes import everyones
    from workbench.models.processes import place as process

    kept: Any = ()
    if process()[0]:
        while not (kept := everyones(None)[0]):
            evaluate(model, tokenizer, task, **settings)
        return kept[0], kept[1]
    with run.lock(place), calling_others():  # scores and items are of the same call
        found = run.frame(f"{place}.csv", evaluate, model, tokenizer, task, **settings)
        kept = found, read_items(settings["items"])
    return everyones(kept)[0] if process()[1] > 1 else kept  # type: ignore[no-any-return]


def _file_name(task: str, shots: int | None, limit: int | None) -> str:
    """Return the file's name: with that of the task where a file can have it, else with a digest of it."""
    rest = [f"{shots}shot"] * (shots is not None) + [f"{limit}items"] * bool(limit)
    if (
        re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", plain := "-".join([task, *rest]))
        and len(plain) <= _LONGEST
    ):
        return plain
    letters = re.sub(r"[^A-Za-z0-9]+", "-", task)[:20].strip("-")
    return "-".join(filter(None, ["task", letters, digest(task)[:12], *rest]))


def shot_ablation(
    model: Any,
    tokenizer: Any,
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
    if not len(shots) or not all(is_whole(n) and n >= 0 for n in shots) or len(set(shots)) < len(shots):
        raise ValueError(f"shots must be different whole numbers of at least 0, got {list(shots)}")
    if given := {"n_shot", "shot_order", "items"} & settings.keys():
        raise ValueError(f"settings must not hold {sorted(given)}: shots and orders say it")
    frames = [
        evaluate(model, tokenizer, tasks, n_shot=n, shot_order=order, **settings).assign(order=order)
        for n in shots
        for order in range(min(orders, factorial(n)))
    ]
    return pd.concat(frames, ignore_index=True)


def seed_ablation(
    model: Any,
    tokenizer: Any,
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
    every = [(v, method, seed) for method, seeds in variants.items() for seed, v in seeds.items()]
    scores = evaluate_variants(model, tokenizer, [v for v, *_ in every], tasks, run=run, **settings).scores
    told = {v.name: {"method": method, "seed": seed} for v, method, seed in every}
    return pd.concat([pd.DataFrame([told[name] for name in scores["variant"]]), scores], axis=1)
