"""Work shared among the processes of a launcher: which of them this is, and everyone's results together."""

from __future__ import annotations

import atexit
import json
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

from workbench.digests import digest

Result = TypeVar("Result")
#: marks an error that came from another process, or was told to all
_TOLD = "_told_to_all_processes"
#: what a launcher tells each process; without one of them there is no other to meet
_NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")
_LAUNCHER = (*_NUMBERS, "MASTER_ADDR")
#: as long as the Trainer lets processes wait for each other
_PATIENCE = timedelta(minutes=30)
#: longest value that an error shows
_SHOWN = 60
#: whether an exchange has been left without its end
_interrupted: list[bool] = []


def place() -> tuple[int, int]:
    """Return this process's number and how many there are: (0, 1) without a launcher.

    Raises:
        ValueError: for variables of a launcher that are no numbers.
    """
    if world_size() < 2:
        return 0, 1
    from accelerate import PartialState

    _share_cores()
    cpu = not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    state = PartialState(cpu=cpu, timeout=_PATIENCE)  # joins the others where that is not done yet
    atexit.unregister(_leave)
    atexit.register(_leave)
    return state.process_index, state.num_processes


def world_size() -> int:
    """Return how many processes a launcher has started: 1 without all the variables that it sets.

    Raises:
        ValueError: for one of them that is no number.
    """
    asked = {name: os.environ.get(name, "").strip() for name in _LAUNCHER}
    if not all(asked.values()):
        return 1
    for name in _NUMBERS:
        if not asked[name].isdecimal():
            raise ValueError(f"{name}, a variable of a launcher, must be a whole number, got {asked[name]!r}")
    return int(asked["WORLD_SIZE"])


@contextmanager
def without_leftovers() -> Iterator[None]:
    """Take some variables of a launcher, but not all of them, out of the environment until leaving."""
    whole = all(os.environ.get(name) for name in _LAUNCHER)
    left = {} if whole else {name: os.environ.pop(name) for name in _LAUNCHER if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(left)


@cache
def _share_cores() -> None:
    """Let tokenizers use half of this process's part of the cores, unless somebody said how many.

    Each process would start a thread for every core, beside those that launch and compute. A launcher does
    the like for OpenMP. Where a batch of texts has been read already, it stays as it was.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ["WORLD_SIZE"])
    os.environ.setdefault("RAYON_NUM_THREADS", str(max(1, cores // (2 * here))))


def _leave() -> None:
    """End all groups before the interpreter ends: their threads would abort the process now and then."""
    _without_gpus.cache_clear()
    if dist.is_initialized():
        dist.destroy_process_group()


class _Failed(NamedTuple):
    """What a process gives that can give nothing more."""

    error: Exception


def everyones(mine: Any) -> list[Any]:
    """Return what every process gives, in their order; all must call it.

    Raises:
        Exception: the error of another process that works inside ``failing_together``.
        RuntimeError: after an interrupt left another exchange without its end.
    """
    _, n = place()
    if n == 1:
        return [mine]
    if _interrupted:
        raise RuntimeError("an exchange between the processes was interrupted; start all of them anew")
    found: list[Any] = [None] * n
    try:
        dist.all_gather_object(found, mine, group=_without_gpus(dist.group.WORLD))
    except KeyboardInterrupt:
        _interrupted.append(True)
        raise
    if failed := next((one for one in found if isinstance(one, _Failed)), None):
        failed.error.__dict__[_TOLD] = True
        raise failed.error
    return found


def agree(**given: Any) -> None:
    """Refuse work that the processes were given different arguments for; all must call it.

    Args:
        **given: plain values, which are compared; not what may differ, such as progress, device or places.

    Raises:
        ValueError: in all processes, naming what differs.
    """
    if place()[1] == 1:
        return
    found = everyones({name: _short(value) for name, value in given.items()})
    names = dict.fromkeys(name for one in found for name in one)
    if differing := [name for name in names if len({one.get(name) for one in found}) > 1]:
        values = "; ".join(f"{name}: {', '.join(str(one.get(name)) for one in found)}" for name in differing)
        error = ValueError(f"the processes of a launcher must be given the same arguments, got {values}")
        error.__dict__[_TOLD] = True
        raise error


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= _SHOWN else f"({digest(text)[:8]})"


@cache
def _without_gpus(world: Any) -> Any:
    """Return the group of all that exchanges what is in memory: by NCCL a GPU would wait with its process."""
    return None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")


@contextmanager
def failing_together() -> Iterator[None]:
    """Let an error in one process reach the others at their next exchange, where they would wait for ever."""
    try:
        yield
    except Exception as error:
        if place()[1] > 1 and _TOLD not in error.__dict__:
            with suppress(Exception):
                everyones(_Failed(_sendable(error)))
            error.__dict__[_TOLD] = True  # once, also where such a block is inside another
        raise


def _sendable(error: Exception) -> Exception:
    try:
        copied = pickle.loads(pickle.dumps(error))
        return error if type(copied) is type(error) else RuntimeError(str(error))
    except Exception:  # of whatever a class of errors needs to be made again
        return RuntimeError(f"{type(error).__name__}: {error}")


def by_the_first(work: Callable[[], Result]) -> Result:
    """Let the first process do something, and return in all what it gives; an error of it reaches all."""
    number, n = place()
    if n == 1:
        return work()
    found: Any = None
    if number == 0:
        try:
            found = (work(), None)
        except Exception as failure:
            found = (None, failure)
    result, error = everyones(found)[0]
    if error is not None:
        raise error
    given: Result = result
    return given


def shares(
    costs: Sequence[float],
    groups: Sequence[Any] | None = None,
    extra: Sequence[float] = (),
    loads: list[float] | None = None,
) -> list[int]:
    """Return which process does each job, so that all take about as long; the same in every process.

    Args:
        costs: of each job.
        groups: of each job; a process that does one of a group does the others for less.
        extra: what the first job of its group costs a process more.
        loads: what each process has to do already, which grows by what it is given here; None for nothing.
    """
    before = loads if loads else [0.0] * place()[1]
    named = [groups[job] if groups else job for job in range(len(costs))]
    more = extra or [0] * len(costs)
    owners, after = _filled([*zip(named, costs, more, strict=True)], before)
    whole: dict[Any, list[float]] = {}
    for group, cost, once in zip(named, costs, more, strict=True):
        whole.setdefault(group, [once])[0] += cost
    dearest = sorted(whole, key=lambda group: -whole[group][0])
    of_groups, together = _filled([(group, whole[group][0], 0) for group in dearest], before)
    if max(together) < max(after):
        after, owner_of = together, dict(zip(dearest, of_groups, strict=True))
        owners = [owner_of[group] for group in named]
    if loads is not None:
        loads[:] = after
    return owners


def _filled(
    jobs: Sequence[tuple[Any, float, float]], before: Sequence[float]
) -> tuple[list[int], list[float]]:
    """Give each (group, cost, extra) to who has least; return the owners, and what each has then."""
    loads, owners = [*before], []
    known: list[set[Any]] = [set() for _ in loads]
    for group, cost, more in jobs:
        totals = [load + cost + (0 if group in has else more) for load, has in zip(loads, known, strict=True)]
        owner = totals.index(min(totals))
        loads[owner] = totals[owner]
        known[owner].add(group)
        owners.append(owner)
    return owners, loads
