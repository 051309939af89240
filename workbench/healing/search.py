"""The grid search of SDD A.5 as an Optuna study in a folder: resumable, and any number of workers join it.

A worker claims a trial under a lock, and holds a lock of the trial as long as it lives. A trial that says it
is running while nobody holds its lock was killed: it is tried again, and healing goes on from its checkpoint.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from workbench.generation.responses import context_length
from workbench.healing.adapters import with_adapter
from workbench.healing.config import HealingConfig
from workbench.healing.heal import heal
from workbench.healing.losses import response_loss
from workbench.healing.samples import digest, read_examples
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
STUDY, NAME = "study.json", "healing"
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
    config = config or HealingConfig.preset("sdd")
    grid = {name: tuple(values) for name, values in (SDD_GRID if grid is None else grid).items()}
    combinations = _combinations(grid, config, search)
    np.random.default_rng(seed).shuffle(combinations)
    limit = min(config.max_length or 2048, context_length(model) or 2**31)
    sets = {"data": examples, "held_out": held_out}
    work = {name: _digest(model, tokenizer, rows, response, limit) for name, rows in sets.items()}
    others = {name: value for name, value in asdict(config).items() if name not in grid}
    whole = {**work, "model": describe_model(model), "config": others, "grid": grid}
    _check_same(Path(out), whole, overwrite)
    objective = partial(_held_out_loss, model, tokenizer, examples, held_out, response, config, limit, out)
    total = min(n_trials or len(combinations), len(combinations))
    with _study(Path(out), search, seed) as study:
        claimed = iter(lambda: _claim(study, Path(out), combinations, grid, total), None)
        for trial, lock in tqdm(claimed, total=total, desc="tune", disable=not progress):
            _run_trial(study, trial, lock, objective)
            if not keep_adapters:
                shutil.rmtree(_folder(out, trial), ignore_errors=True)
        trials = _frame(study, list(grid))
    return Tuned(trials, _best(trials, config, list(grid)))


def _held_out_loss(
    model: Any,
    tokenizer: Any,
    examples: Any,
    held_out: Any,
    response: str,
    config: HealingConfig,
    limit: int,
    out: str | Path,
    trial: Any,
) -> float:
    """Heal as the trial says, and measure."""
    tried, folder = replace(config, **trial.params), _folder(out, trial)
    healed = heal(model, tokenizer, examples, response=response, config=tried, out=folder, progress=False)
    with with_adapter(model, healed.adapter):
        loss = response_loss(model, tokenizer, held_out, response=response, max_length=limit)
    for name, value in _measured(healed.log).items():
        trial.set_user_attr(name, value)
    return loss


def _run_trial(study: Any, trial: Any, lock: FileLock, objective: Callable[[Any], float]) -> None:
    """Run a claimed trial; one that is stopped stays running, but its lock is free then."""
    try:
        study.tell(trial, objective(trial))
    except Diverged as error:
        trial.set_user_attr("diverged", str(error))
        study.tell(trial, state=_state("FAIL"))
    finally:
        lock.release()


def read_trials(out: str | Path) -> pd.DataFrame:
    """Return the trials of a search so far, as ``tune`` does, without joining it.

    Raises:
        ValueError: for a folder without a search.
    """
    if not (Path(out) / STUDY).is_file():
        raise ValueError(f"out must be the folder of a search that tune began, {out} is none")
    grid = json.loads((Path(out) / STUDY).read_text(encoding="utf-8"))["grid"]
    with _study(Path(out), "grid", 0) as study:
        return _frame(study, list(grid))


def _combinations(
    grid: Mapping[str, Sequence[Any]], config: HealingConfig, search: str
) -> list[dict[str, Any]]:
    unknown = set(grid) - {field.name for field in fields(HealingConfig)}
    if unknown or not grid or not all(grid.values()):
        raise ValueError(
            f"grid must give values for fields of HealingConfig such as {', '.join(SDD_GRID)}; got {grid}"
        )
    if search not in ("grid", "tpe"):
        raise ValueError(f"search must be 'grid' or 'tpe', got {search!r}")
    found = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    for combination in found:
        replace(config, **combination)  # refuses what cannot be trained with
    return found


def _digest(model: Any, tokenizer: Any, rows: Any, response: str, limit: int) -> str:
    return digest(read_examples(model, tokenizer, rows, response, limit)[0])


def _check_same(out: Path, work: dict[str, Any], overwrite: bool) -> None:
    """Refuse a folder with another search, or empty it."""
    work = json.loads(json.dumps(work))
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / ".lock"):
        found = json.loads((out / STUDY).read_text(encoding="utf-8")) if (out / STUDY).is_file() else work
        differ = [name for name in work if found.get(name) != work[name]]
        if differ and not overwrite:
            raise ValueError(
                f"out: {out} holds a search with another {', another '.join(differ)}; give another out, or "
                "overwrite=True to begin again"
            )
        if differ:
            for name in ("trials", "locks"):
                shutil.rmtree(out / name, ignore_errors=True)
            (out / "journal.log").unlink(missing_ok=True)
        write_text_atomic(out / STUDY, json.dumps(work, indent=1) + "\n")


@contextmanager
def _study(out: Path, search: str, seed: int) -> Iterator[Any]:
    """Open the study; Optuna logs nothing meanwhile."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        samplers = {"tpe": optuna.samplers.TPESampler, "grid": optuna.samplers.RandomSampler}
        sampler = samplers[search](seed=seed)
        storage = JournalStorage(JournalFileBackend(str(out / "journal.log")))
        yield optuna.create_study(storage=storage, study_name=NAME, sampler=sampler, load_if_exists=True)
    finally:
        optuna.logging.set_verbosity(before)


def _claim(
    study: Any, out: Path, combinations: list[dict[str, Any]], grid: Mapping[str, Sequence[Any]], total: int
) -> tuple[Any, FileLock] | None:
    """Return the next trial with its lock held, None when there is nothing left to do."""
    from optuna.distributions import CategoricalDistribution

    kinds = {name: CategoricalDistribution(values) for name, values in grid.items()}
    with FileLock(out / ".lock"):
        for trial in study.get_trials(deepcopy=False, states=[_state("RUNNING")]):
            if not _alive(out, trial.number):
                study.tell(trial.number, state=_state("FAIL"))
        taken = [trial for trial in study.get_trials(deepcopy=False) if _counts(trial)]
        done = {_name(trial.params) for trial in taken}
        left = [combination for combination in combinations if _name(combination) not in done]
        if not left or len(done) >= total:
            return None
        waiting = study.get_trials(deepcopy=False, states=[_state("WAITING")])
        if not waiting and not _chooses(study, kinds, done):
            study.enqueue_trial(left[0])
        trial = study.ask(kinds)
        lock = FileLock(_lock_file(out, trial.number))
        lock.acquire()  # released by _run_trial, or by the operating system when this worker is killed
        return trial, lock


def _chooses(study: Any, kinds: dict[str, Any], done: set[str]) -> bool:
    """Whether the estimator proposed a combination that is not done yet; then it waits to be asked for."""
    from optuna.samplers import TPESampler

    if not isinstance(study.sampler, TPESampler):
        return False
    for _ in range(20):
        trial = study.ask(kinds)
        study.tell(trial, state=_state("FAIL"))
        if _name(trial.params) not in done:
            study.enqueue_trial(trial.params)
            return True
    return False


def _alive(out: Path, number: int) -> bool:
    try:
        with FileLock(_lock_file(out, number), timeout=0):
            return False
    except Timeout:
        return True


def _counts(trial: Any) -> bool:
    return trial.state.name in ("COMPLETE", "RUNNING") or "diverged" in trial.user_attrs


def _lock_file(out: Path, number: int) -> Path:
    (out / "locks").mkdir(exist_ok=True)
    return out / "locks" / str(number)


def _state(name: str) -> Any:
    from optuna.trial import TrialState

    return TrialState[name]


def _name(params: Mapping[str, Any]) -> str:
    return "_".join(f"{name}={params[name]}" for name in sorted(params)).replace("/", "-")


def _folder(out: str | Path, trial: Any) -> Path:
    return Path(out) / "trials" / _name(trial.params)


def _measured(log: pd.DataFrame) -> dict[str, float]:
    last = log.iloc[-1]
    train_loss = float(log["loss"].tail(max(1, len(log) // 10)).mean())
    values = (train_loss, int(last["step"]), int(last["tokens"]), float(last["seconds"]))
    return dict(zip(_MEASURED, values, strict=True))


def _frame(study: Any, names: list[str]) -> pd.DataFrame:
    rows = []
    for trial in filter(_counts, study.get_trials(deepcopy=False)):
        state = "diverged" if "diverged" in trial.user_attrs else trial.state.name.lower()
        loss = trial.value if trial.state.name == "COMPLETE" else float("nan")
        measured = {name: trial.user_attrs.get(name, float("nan")) for name in _MEASURED}
        settings = {name: trial.params.get(name) for name in names}
        rows.append({"trial": trial.number, "state": state, **settings, "loss": loss, **measured})
    return pd.DataFrame(rows, columns=["trial", "state", *names, "loss", *_MEASURED])


def _best(trials: pd.DataFrame, config: HealingConfig, names: list[str]) -> HealingConfig | None:
    complete = trials[trials["loss"].notna()]
    if complete.empty:
        return None
    best = complete["loss"].idxmin()
    return replace(config, **{name: complete[name].astype(object)[best] for name in names})
