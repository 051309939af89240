"""The study of a search: a database that workers share, and a copy of it after each training.

A worker shows with a heartbeat that it is alive; the trial of one that was killed fails after ``GRACE``
seconds. A damaged database is set aside, and its copy taken.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock

from workbench.bars import tqdm
from workbench.checks import check_writable, told
from workbench.healing.folders import same_work
from workbench.runs.files import write_bytes_atomic, write_text_atomic

STUDY, DATABASE, COPY = "study.json", "study.db", "study.copy.db"
#: seconds between two heartbeats, and without any until a worker counts as killed
HEARTBEAT, GRACE = 10, 60


def begin_study(out: Path, work: dict[str, Any], overwrite: bool) -> None:
    """Refuse a folder with another search, or empty it."""
    with _alone(out):
        if not overwrite and (out / STUDY).is_file():
            begun_with(out)
        begun = (out / STUDY).is_file()
        if begun and same_work(out / STUDY, work, overwrite):
            return
        check_writable("out", out)
        if begun:
            shutil.rmtree(out / "trials", ignore_errors=True)
            for file in (DATABASE, COPY):
                (out / file).unlink(missing_ok=True)
        write_text_atomic(out / STUDY, json.dumps(work, indent=1) + "\n")


def begun_with(out: Path) -> dict[str, Any]:
    """Return what a search was begun with."""
    with told(f"{out / STUDY} is damaged; overwrite=True begins the search again", ValueError, TypeError):
        return dict(json.loads((out / STUDY).read_text(encoding="utf-8")))


@contextmanager
def open_study(out: Path, seed: int = 0) -> Iterator[Any]:
    """Open the study, with every finished trial in it; Optuna logs nothing meanwhile."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    alive: dict[str, Any] = {"heartbeat_interval": HEARTBEAT, "grace_period": GRACE}
    with warnings.catch_warnings(), _to_write(out) as place:
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats
        warnings.filterwarnings("ignore", "Heartbeat of storage")  # the estimator is asked without a training
        with _alone(place):  # two workers would make the same tables
            _put_back(place)
            # by its path: in a URL, which the storage also takes for a template, ?, % and {} would say more
            options: Any = {"timeout": 60, "check_same_thread": False}
            opened = {"creator": partial(sqlite3.connect, place / DATABASE, **options)}
            storage = optuna.storages.RDBStorage(f"sqlite:///{DATABASE}", opened, **alive)
            sampler = optuna.samplers.TPESampler(seed=seed)  # for "tpe"; the queue of a grid asks none
            named: dict[str, Any] = {"study_name": "healing", "load_if_exists": True}
            study = optuna.create_study(storage=storage, sampler=sampler, **named)
        try:
            yield study
        finally:
            storage.engine.dispose()
            optuna.logging.set_verbosity(before)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the folder alone; where nobody may write, nobody is waited for."""
    with told(f"out cannot be written at {out}", OSError):
        out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / ".lock") if os.access(out, os.W_OK) else nullcontext():
        yield


@contextmanager
def _to_write(out: Path) -> Iterator[Path]:
    """Give the folder, or where nobody may write there, one with copies of its databases: to be read."""
    if os.access(out, os.W_OK):
        yield out
        return
    with tempfile.TemporaryDirectory() as place:
        for file in filter(Path.is_file, (out / DATABASE, out / COPY)):
            shutil.copyfile(file, Path(place) / file.name)
        yield Path(place)


def _put_back(out: Path) -> None:
    """Put the copy in the place of a database that is lost, or that SQLite finds damaged."""
    database = out / DATABASE
    if database.is_file():
        try:
            with closing(sqlite3.connect(database, timeout=60)) as connection:
                checked = connection.execute("PRAGMA quick_check").fetchone()[0]
            found = checked if database.stat().st_size else "it is empty"
        except sqlite3.OperationalError:  # another worker writes
            raise
        except sqlite3.DatabaseError as error:
            found = str(error).splitlines()[0]
        if found == "ok":
            return
        os.replace(database, database.with_suffix(".damaged.db"))
        tqdm.write(f"{database} is damaged ({found}); begun again with the trainings that have finished")
    if (out / COPY).is_file():
        shutil.copyfile(out / COPY, database)


def keep_result(out: Path, study: Any, trial: Any) -> None:
    """Keep a copy of the database as it is when a training has finished."""
    if is_training(trial):
        with closing(sqlite3.connect(out / DATABASE, timeout=60)) as connection:
            write_bytes_atomic(out / COPY, connection.serialize())


def combinations_left(study: Any, combinations: list[dict[str, Any]], total: int) -> list[dict[str, Any]]:
    """Return the combinations to try; waits where a running trial may be that of a killed worker."""
    for _ in range(GRACE // HEARTBEAT + 3):
        optuna.storages.fail_stale_trials(study)
        known = trainings(study)
        if len(known) < total:
            taken = {trial.user_attrs["combination"] for trial in known}
            return [combination for combination in combinations if name_of(combination) not in taken]
        if not any(trial.state.name == "RUNNING" for trial in known):
            break
        time.sleep(HEARTBEAT)
    return []


def enqueue(study: Any, left: list[dict[str, Any]], grid: Mapping[str, Sequence[Any]], *, tries: int) -> None:
    """Put the next combination into the study's queue: of the estimator's choice, or the first left."""
    chosen = left[0]
    for _ in range(tries):
        proposed = study.ask(_kinds(grid))
        study.tell(proposed, state=optuna.trial.TrialState.FAIL)
        if (params := values_of(proposed.params, grid)) in left:
            chosen = params
            break
    study.enqueue_trial(dict(zip(chosen, choices([*chosen.values()]), strict=True)))


def is_training(trial: Any) -> bool:
    """Whether a trial is a training, done or under way: no proposal, failure or duplicate."""
    counts = trial.state.name in ("COMPLETE", "RUNNING") or "error" in trial.user_attrs
    return counts and "combination" in trial.user_attrs


def trainings(study: Any) -> list[Any]:
    """Return the trials of a study that are trainings."""
    return list(filter(is_training, study.get_trials(deepcopy=False)))


def choices(values: Sequence[Any]) -> list[Any]:
    """Return values as Optuna keeps them: a list, such as one of modules, as JSON."""
    return [json.dumps(value) if isinstance(value, list | tuple) else value for value in values]


def values_of(chosen: Mapping[str, Any], grid: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Return the values of the grid that Optuna's choices stand for."""
    return {name: grid[name][choices(grid[name]).index(chosen[name])] for name in grid}


def _kinds(grid: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    kind = optuna.distributions.CategoricalDistribution
    return {name: kind(choices(values)) for name, values in grid.items()}


def name_of(params: Mapping[str, Any]) -> str:
    """Return the name of a combination, also of its folder."""
    return "_".join(f"{name}={params[name]}" for name in sorted(params)).replace("/", "-")
