"""The grid search of SDD A.5 as an Optuna study in a folder: resumable, and any number of workers join it.

The study is a SQLite database. A worker claims a combination by beginning its trial, and shows with a
heartbeat that it is alive; a combination that another worker has is given up. The trial of a worker that was
killed fails after ``GRACE`` seconds; its combination is then tried again, and healing goes on from its
checkpoint.
"""

from __future__ import annotations

import itertools
import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
import pandas as pd
from filelock import FileLock
from tqdm.auto import tqdm

from workbench.checks import one_of
from workbench.healing.adapters import with_adapter
from workbench.healing.config import HealingConfig
from workbench.healing.heal import Healed, heal, same_work
from workbench.healing.losses import response_loss
from workbench.healing.samples import digest, read_examples, sequence_limit
from workbench.healing.trainer import Diverged
from workbench.models.identity import describe_model
from workbench.runs.files import write_text_atomic

#: SDD A.5: 400 trainings
SDD_GRID: dict[str, tuple[Any, ...]] = {
    "rank": (4, 8, 16, 32),
    "epochs": (3, 5, 7, 10),
    "learning_rate": (2e-5, 4e-5, 6e-5, 8e-5, 1e-4),
    "batch_size": (8, 16, 32, 64, 128),
}
STUDY, DATABASE = "study.json", "study.db"
#: seconds between two heartbeats, and without any until a worker counts as killed
HEARTBEAT, GRACE = 10, 60
_MEASURED = ("train_loss", "steps", "tokens", "seconds")


class Tuned(NamedTuple):
    """What a search found.

    Attributes:
        trials: frame with trial, state (complete, running, diverged), the searched settings, loss (held-out,
            nats a token), train_loss (mean of the last tenth), steps, tokens, seconds; one row a training.
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
        held_out: what to measure the loss on; examples that are not among those learned.
        out: folder of the study.
        response: the column to learn and to predict.
        grid: field of ``HealingConfig`` -> values to try; None for ``SDD_GRID``.
        config: the other settings; None for ``HealingConfig.preset("sdd")``.
        search: ``"grid"``: every combination once, in an order of the seed; ``"tpe"``: Optuna's
            tree-structured Parzen estimator chooses the next among them from those that are done.
        n_trials: trainings in all, over all workers; None for every combination.
        seed: of the order, or of the estimator.
        keep_adapters: keep every trial's adapter (under ``<out>/trials``), not only its numbers.
        overwrite: begin again when ``out`` holds another search.
        progress: show a progress bar.

    Raises:
        ValueError: for a grid that ``HealingConfig`` refuses, an ``out`` of another search, bad examples.
    """
    out, config = Path(out), config or HealingConfig.preset("sdd")
    grid = {name: tuple(values) for name, values in (SDD_GRID if grid is None else grid).items()}
    one_of(search, ("grid", "tpe"), "search")
    combinations = _combinations(grid, config)
    np.random.default_rng(seed).shuffle(combinations)
    total = min(n_trials or len(combinations), len(combinations))
    limit = sequence_limit(model, config.max_length)
    sets = {"data": examples, "held_out": held_out}
    samples = {name: read_examples(model, tokenizer, rows, response, limit)[0] for name, rows in sets.items()}
    work = {name: digest(tokens) for name, tokens in samples.items()}
    others = {name: value for name, value in asdict(config).items() if name not in grid}
    _begin(out, {**work, "model": describe_model(model), "config": others, "grid": grid}, overwrite)
    train = partial(heal, model, tokenizer, examples, response=response, progress=False)
    measure = partial(response_loss, model, tokenizer, held_out, response=response, max_length=limit)

    def objective(trial: Any) -> float:
        params = _claimed(trial, grid, total)
        healed = _healed(trial, train, config=replace(config, **params), out=_folder(out, params))
        with with_adapter(model, healed.adapter):
            return measure()

    callbacks = [] if keep_adapters else [partial(_remove_adapter, out)]
    with _study(out, seed) as study:
        rounds = iter(partial(_left, study, combinations, total), [])
        for left in tqdm(rounds, total=total, desc="tune", disable=not progress):
            _enqueue(study, left, grid, tries=20 if search == "tpe" else 0)
            study.optimize(objective, n_trials=1, catch=(Diverged,), callbacks=callbacks)
        trials = _frame(study, list(grid))
    return Tuned(trials, _best(trials, config, list(grid)))


def read_trials(out: str | Path) -> pd.DataFrame:
    """Return the trials of a search so far, as ``tune`` does, without joining it.

    Raises:
        ValueError: for a folder without a search.
    """
    if not (Path(out) / STUDY).is_file():
        raise ValueError(f"out must be the folder of a search that tune began, {out} is none")
    grid = json.loads((Path(out) / STUDY).read_text(encoding="utf-8"))["grid"]
    with _study(Path(out)) as study:
        return _frame(study, list(grid))


def _claimed(trial: Any, grid: Mapping[str, Sequence[Any]], total: int) -> dict[str, Any]:
    """Return a trial's settings; give it up when another trial has them, or all trainings are given out."""
    params = {name: trial.suggest_categorical(name, values) for name, values in grid.items()}
    trial.set_user_attr("combination", _name(params))
    trainings = _trainings(trial.study)
    others = [one.user_attrs["combination"] for one in trainings if one.number != trial.number]
    # two that start at once may both give up: the combination is then left, and taken up again
    if _name(params) in others or len(others) >= total:
        raise optuna.TrialPruned
    return params


def _healed(trial: Any, train: Callable[..., Healed], **options: Any) -> Healed:
    """Train, and note in the trial what came of it."""
    try:
        healed = train(**options)
    except Diverged as error:
        trial.set_user_attr("diverged", str(error))
        raise
    last, tail = healed.log.iloc[-1], healed.log["loss"].tail(max(1, len(healed.log) // 10))
    numbers = (float(tail.mean()), int(last["step"]), int(last["tokens"]), float(last["seconds"]))
    trial.set_user_attr("measured", dict(zip(_MEASURED, numbers, strict=True)))
    return healed


def _combinations(grid: Mapping[str, Sequence[Any]], config: HealingConfig) -> list[dict[str, Any]]:
    unknown = set(grid) - {field.name for field in fields(HealingConfig)}
    if unknown or not grid or not all(grid.values()):
        raise ValueError(
            f"grid must give values for fields of HealingConfig such as {', '.join(SDD_GRID)}; got {grid}"
        )
    found = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    for combination in found:
        replace(config, **combination)  # refuses what cannot be trained with
    return found


def _begin(out: Path, work: dict[str, Any], overwrite: bool) -> None:
    """Refuse a folder with another search, or empty it."""
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / ".lock"):
        if (out / STUDY).is_file() and not same_work(out / STUDY, work, overwrite):
            shutil.rmtree(out / "trials", ignore_errors=True)
            (out / DATABASE).unlink(missing_ok=True)
        write_text_atomic(out / STUDY, json.dumps(work, indent=1) + "\n")


@contextmanager
def _study(out: Path, seed: int = 0) -> Iterator[Any]:
    """Open the study; Optuna logs nothing meanwhile."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    url = f"sqlite:///{out / DATABASE}"
    alive: dict[str, Any] = {"heartbeat_interval": HEARTBEAT, "grace_period": GRACE}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats
        warnings.filterwarnings("ignore", "Heartbeat of storage")  # the estimator is asked without a training
        with FileLock(out / ".lock"):  # two workers would make the same tables
            storage = optuna.storages.RDBStorage(url, {"connect_args": {"timeout": 60}}, **alive)
            sampler = optuna.samplers.TPESampler(seed=seed)  # for "tpe"; the queue of a grid asks none
            named: dict[str, Any] = {"study_name": "healing", "load_if_exists": True}
            study = optuna.create_study(storage=storage, sampler=sampler, **named)
        try:
            yield study
        finally:
            storage.engine.dispose()
            optuna.logging.set_verbosity(before)


def _left(study: Any, combinations: list[dict[str, Any]], total: int) -> list[dict[str, Any]]:
    """Return the combinations to try; waits where a running trial may be that of a killed worker."""
    for _ in range(GRACE // HEARTBEAT + 2):
        optuna.storages.fail_stale_trials(study)
        trainings = _trainings(study)
        if len(trainings) < total:
            taken = {trial.user_attrs["combination"] for trial in trainings}
            return [combination for combination in combinations if _name(combination) not in taken]
        if not any(trial.state.name == "RUNNING" for trial in trainings):
            break
        time.sleep(HEARTBEAT)
    return []


def _enqueue(
    study: Any, left: list[dict[str, Any]], grid: Mapping[str, Sequence[Any]], *, tries: int
) -> None:
    """Put the next combination into the study's queue: of the estimator's choice, or the first left."""
    chosen = left[0]
    kinds = {name: optuna.distributions.CategoricalDistribution(values) for name, values in grid.items()}
    for _ in range(tries):
        proposed = study.ask(kinds)
        study.tell(proposed, state=optuna.trial.TrialState.FAIL)
        if proposed.params in left:
            chosen = proposed.params
            break
    study.enqueue_trial(chosen)


def _is_training(trial: Any) -> bool:
    """Whether a trial is a training, done or under way: no proposal, failure or duplicate."""
    counts = trial.state.name in ("COMPLETE", "RUNNING") or "diverged" in trial.user_attrs
    return counts and "combination" in trial.user_attrs


def _trainings(study: Any) -> list[Any]:
    return list(filter(_is_training, study.get_trials(deepcopy=False)))


def _remove_adapter(out: Path, study: Any, trial: Any) -> None:
    if _is_training(trial):
        shutil.rmtree(_folder(out, trial.params), ignore_errors=True)


def _folder(out: Path, params: Mapping[str, Any]) -> Path:
    return out / "trials" / _name(params)


def _name(params: Mapping[str, Any]) -> str:
    return "_".join(f"{name}={params[name]}" for name in sorted(params)).replace("/", "-")


def _frame(study: Any, names: list[str]) -> pd.DataFrame:
    rows = []
    for trial in _trainings(study):
        state = "diverged" if "diverged" in trial.user_attrs else trial.state.name.lower()
        loss = trial.value if trial.state.name == "COMPLETE" else float("nan")
        measured = dict.fromkeys(_MEASURED, float("nan")) | trial.user_attrs.get("measured", {})
        settings = {name: trial.params[name] for name in names}
        rows.append({"trial": trial.number, "state": state, **settings, "loss": loss, **measured})
    return pd.DataFrame(rows, columns=["trial", "state", *names, "loss", *_MEASURED])


def _best(trials: pd.DataFrame, config: HealingConfig, names: list[str]) -> HealingConfig | None:
    complete = trials[trials["loss"].notna()]
    if complete.empty:
        return None
    best = complete["loss"].idxmin()
    return replace(config, **{name: complete[name].astype(object)[best] for name in names})
