"""The grid search of SDD A.5 as an Optuna study in a folder: resumable, and any number of workers join it.

The study is a SQLite database (``study.py``). A worker claims a combination by beginning its trial; one that
another worker has is given up. The combination of a worker that was killed is tried again, and healing goes
on from its checkpoint.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
import pandas as pd

from workbench.bars import tqdm
from workbench.checks import check_writable, first_line, is_full, one_of, whole_number
from workbench.healing import study as studies
from workbench.healing.adapters import with_adapter
from workbench.healing.config import HealingConfig
from workbench.healing.heal import Healed, heal
from workbench.healing.losses import response_loss
from workbench.healing.samples import Sample, digest, read_examples, sequence_limit
from workbench.healing.trainer import Diverged
from workbench.models.identity import describe_model
from workbench.places import toml_beside

#: SDD A.5: 400 trainings
SDD_GRID: dict[str, tuple[Any, ...]] = {
    name: tuple(values) for name, values in toml_beside(__file__, "limits")["sdd_grid"].items()
}
_MEASURED = ("train_loss", "steps", "tokens", "seconds")


class _Failed(Exception):
    """A training that failed by its settings; the search goes on."""


class Tuned(NamedTuple):
    """What a search found.

    Attributes:
        trials: frame with trial, state (complete, running, diverged, failed), the searched settings, loss
            (held-out, nats a token), train_loss (mean of the last tenth), steps, tokens, seconds, error (what
            was said of one that diverged or failed, else ""); one row a training.
        best: the config of least held-out loss; None while no trial is complete.
    """

    trials: pd.DataFrame
    best: HealingConfig | None

    def to_frame(self) -> pd.DataFrame:
        """Return ``trials``: what a run keeps as the frame of this stage."""
        return self.trials


def tune(
    model: Any,
    tokenizer: Any,
    examples: Any,
    held_out: Any,
    *,
    out: str | Path,
    response: str = "reference",
    grid: Mapping[str, Sequence[Any]] | None = None,
    config: HealingConfig | None = None,
    search: str = "grid",
    n_trials: int | None = None,
    seed: int = 0,
    keep_adapters: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Tuned:
    """Heal with different settings and say which leave the least loss on held-out examples (SDD A.5).

    The same call in another process joins the search; after a stop it goes on. No finished training is done
    again.

    Args:
        model: as for ``heal``; left as it was.
        tokenizer: its tokenizer.
        examples: what to learn from, as for ``heal``, with ``response``.
        held_out: what to measure the loss on; examples whose prompts are not among those learned.
        out: folder of the study.
        response: the column to learn and to predict.
        grid: field of ``HealingConfig`` -> values to try; None for ``SDD_GRID``.
        config: the other settings; None for ``HealingConfig.preset("sdd")``.
        search: ``"grid"``: every combination once, in an order of the seed; ``"tpe"``: Optuna's
            tree-structured Parzen estimator chooses the next among them from those that are done.
        n_trials: trainings in all, over all workers, at least 1; None for every combination.
        seed: of the order, or of the estimator.
        keep_adapters: keep every trial's adapter (under ``<out>/trials``), not only its numbers.
        overwrite: begin again when ``out`` holds another search.
        progress: show a progress bar.

    Returns:
        ``trials``, a row a training, and ``best``, the config of least held-out loss (see ``Tuned``).

    Raises:
        ValueError: for a grid that ``HealingConfig`` refuses, an ``out`` of another search, bad examples, or
            held-out ones that are learned too. What is wrong with one training alone is told in its row.
    """
    out, config = Path(out), config or HealingConfig.preset("sdd")
    grid = {name: tuple(values) for name, values in (SDD_GRID if grid is None else grid).items()}
    one_of(search, ("grid", "tpe"), "search")
    whole_number(seed, "seed", 0, 2**32 - 1)
    combinations = _combinations(grid, config)
    np.random.default_rng(seed).shuffle(combinations)
    most = n_trials or len(combinations)
    total = min(most, len(combinations))
    limit = sequence_limit(model, config.max_length)
    read = partial(read_examples, model, tokenizer, response=response, max_length=limit)
    others = {name: value for name, value in asdict(config).items() if name not in grid}
    work = _digests(read(examples)[0], read(held_out)[0])
    work |= {"model": describe_model(model), "config": others, "grid": grid}
    studies.begin_study(out, work, overwrite)
    train = partial(heal, model, tokenizer, examples, response=response, progress=False)
    measure = partial(response_loss, model, tokenizer, held_out, response=response, max_length=limit)

    def objective(trial: Any) -> float:
        params = _claimed(trial, grid, total)
        with _failures_told(trial):
            healed = train(config=replace(config, **params), out=out / "trials" / studies.name_of(params))
            trial.set_user_attr("measured", _measured(healed))
            with with_adapter(model, healed.adapter):
                return measure()

    callbacks = [partial(studies.keep_result, out)]
    callbacks += [] if keep_adapters else [partial(_remove_adapter, out)]
    with studies.open_study(out, seed) as study:
        rounds = iter(partial(studies.combinations_left, study, combinations, total), [])
        for left in tqdm(rounds, total=total, desc="tune", disable=not progress):
            check_writable("out", out)
            studies.enqueue(study, left, grid, tries=20 if search == "tpe" else 0)
            study.optimize(objective, n_trials=1, catch=(_Failed,), callbacks=callbacks)
        trials, best = _frame(study, list(grid)), _best(study, grid, config)
    return Tuned(trials, best)


def read_trials(out: str | Path) -> pd.DataFrame:
    """Return the trials of a search so far, as ``tune`` does, without joining it.

    Raises:
        ValueError: for a folder without a search.
    """
    if not (Path(out) / studies.STUDY).is_file():
        raise ValueError(f"out must be the folder of a search that tune began, {out} is none")
    grid = studies.begun_with(Path(out))["grid"]
    with studies.open_study(Path(out)) as study:
        return _frame(study, list(grid))


def _claimed(trial: Any, grid: Mapping[str, Sequence[Any]], total: int) -> dict[str, Any]:
    """Return a trial's settings; give it up when another trial has them, or all trainings are given out."""
    chosen = {name: trial.suggest_categorical(name, studies.choices(values)) for name, values in grid.items()}
    params = studies.values_of(chosen, grid)
    # Optuna's own first heartbeat may come later; a trial without any would count as alive for ever
    trial.study._storage.record_heartbeat(trial._trial_id)
    trial.set_user_attr("combination", studies.name_of(params))
    others = [one for one in studies.trainings(trial.study) if one.number != trial.number]
    # two that start at once may both give up: the combination is then left, and taken up again
    taken = {one.user_attrs["combination"] for one in others}
    if studies.name_of(params) in taken or len(others) >= total:
        raise optuna.TrialPruned
    return params


@contextmanager
def _failures_told(trial: Any) -> Iterator[None]:
    """Note in the trial why it failed, and say it; the next one may do better."""
    try:
        yield
    except ValueError as error:
        if is_full(error):  # no fault of the settings: the search ends here, and tries them again
            raise
        state = "diverged" if isinstance(error, Diverged) else "failed"
        trial.set_user_attr("state", state)
        trial.set_user_attr("error", first_line(error))
        tqdm.write(f"trial {trial.number} {state}: {first_line(error)}")
        raise _Failed from error


def _measured(healed: Healed) -> dict[str, float]:
    last, tail = healed.log.iloc[-1], healed.log["loss"].tail(max(1, len(healed.log) // 10))
    numbers = (float(tail.mean()), int(last["step"]), int(last["tokens"]), float(last["seconds"]))
    return dict(zip(_MEASURED, numbers, strict=True))


def _digests(learned: list[Sample], held_out: list[Sample]) -> dict[str, Any]:
    """Return digests of both; refuse held-out examples whose prompt (of a text: all) is learned from."""

    def prompt(sample: Sample) -> tuple[int, ...]:
        return tuple(sample.ids[: sample.n_prompt] if sample.n_prompt > 1 else sample.ids)

    seen = {*map(prompt, learned)}
    if both := [row for row, sample in enumerate(held_out) if prompt(sample) in seen]:
        raise ValueError(f"held_out must share no prompt with examples, {len(both)} do, such as {both[0]}")
    return {"data": digest(learned), "held_out": digest(held_out)}


def _combinations(grid: Mapping[str, Sequence[Any]], config: HealingConfig) -> list[dict[str, Any]]:
    unknown = grid.keys() - HealingConfig.__dataclass_fields__.keys()
    if unknown or not grid or not all(grid.values()):
        raise ValueError(f"grid must give values for fields such as {', '.join(SDD_GRID)}; got {grid}")
    found = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    for combination in found:
        replace(config, **combination)  # refuses what cannot be trained with
    return found


def _remove_adapter(out: Path, study: Any, trial: Any) -> None:
    if studies.is_training(trial):
        for ending in ("", ".unfinished"):
            shutil.rmtree(out / "trials" / (trial.user_attrs["combination"] + ending), ignore_errors=True)


def _frame(study: Any, names: list[str]) -> pd.DataFrame:
    rows = []
    for trial in studies.trainings(study):
        told = {"state": trial.state.name.lower(), "measured": {}, "error": "", **trial.user_attrs}
        row = {"trial": trial.number, "loss": float("nan") if trial.value is None else trial.value}
        row |= dict.fromkeys(_MEASURED, float("nan")) | told["measured"]
        rows.append(row | trial.params | {"state": told["state"], "error": told["error"]})
    return pd.DataFrame(rows, columns=["trial", "state", *names, "loss", *_MEASURED, "error"])


def _best(study: Any, grid: Mapping[str, Sequence[Any]], config: HealingConfig) -> HealingConfig | None:
    complete = [trial for trial in studies.trainings(study) if trial.state.name == "COMPLETE"]
    best = min(complete, key=lambda trial: trial.value, default=None)
    return best and replace(config, **studies.values_of(best.params, grid))
