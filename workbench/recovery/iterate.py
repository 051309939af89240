"""IteRABRe: score every layer, remove one, recover, again, down to a number of layers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from workbench.checks import check_writable, checked, one_of, told, whole_number
from workbench.data.texts import fingerprint
from workbench.distances.blocks import format_layers
from workbench.distances.influence import last_states, removal_similarity
from workbench.healing.adapters import with_adapter
from workbench.healing.config import HealingConfig
from workbench.healing.folders import LOG, same_work
from workbench.healing.launch import is_main
from workbench.healing.records import RECORD
from workbench.healing.samples import digest, read_examples, sequence_limit
from workbench.models.batches import read_tokens
from workbench.models.identity import describe_model
from workbench.models.layers import number_of_layers
from workbench.models.processes import world_size
from workbench.places import toml_beside
from workbench.pruning.removal import check_prunable, without_layers
from workbench.recovery.baselines import layers_to_go
from workbench.recovery.loss import check_batch, checked_loss, checked_temperature
from workbench.recovery.recover import carry_adapter, check_teacher, recover
from workbench.runs.files import locked, write_text_atomic
from workbench.runs.variant import Variant

#: the ten sentences of ITR's appendix A
CALIBRATION = tuple(toml_beside(__file__, "calibration")["sentences"])
#: before and after recovery, as ITR writes them
PHASES = ("P", "P+R")
WORK, ROWS = "iterate.json", "rows.json"


def iterate(
    model: Any,
    tokenizer: Any,
    examples: pd.DataFrame | Sequence[str] | None = None,
    *,
    target_layers: int,
    per_iteration: int = 1,
    calibration: Sequence[str] = CALIBRATION,
    loss: Mapping[str, float] | None = None,
    temperature: float = 1.0,
    response: str = "reference",
    config: HealingConfig | None = None,
    out: str | Path,
    overwrite: bool = False,
    progress: bool | Callable[[dict[str, Any]], None] = True,
) -> pd.DataFrame:
    """Remove layers one by one, recovering after each, down to ``target_layers`` (IteRABRe, ITR 3).

    Every iteration scores all layers that are left, as the model stands (its adapter on), by how alike the
    last state stays to that of the *original* model without them; the layer whose removal keeps it highest
    goes; ``recover`` follows, and its adapter goes on into the next iteration: exactly, but for the layer
    that goes. Its optimiser begins anew. ``direct`` pruning (table 2) is
    ``per_iteration=number_of_layers(model) - target_layers``; without ``examples`` nothing is recovered.

    Args:
        model: the whole model; afterwards as before, bit by bit.
        tokenizer: its tokenizer.
        examples: what is recovered on, as for ``recover``; None for pruning alone.
        target_layers: how many stay, from 1 to the depth less 1.
        per_iteration: layers that go before each recovery, scored again after each.
        calibration: texts for the scores; the paper's ten sentences by default.
        loss: weight of each term, as for ``recover``.
        temperature: as for ``recover``.
        response: as for ``recover``.
        config: as for ``recover``; its seed grows by one an iteration, so that recoveries of fewer updates
            than an epoch do not learn the same examples each time.
        out: folder of the run: an adapter and the scores for each iteration. Every step is kept as it is
            done; the same call after a kill goes on, with the same layers and, on the CPU, the same weights.
            It belongs to one call: a second one waits, says so, and goes on from what is there then.
        overwrite: begin again where ``out`` was made from other things.
        progress: show bars; or a function called with each row of each recovery's log, with ``iteration``,
            ``removed`` and ``order``.

    Returns:
        Frame ``iteration, phase, layer, similarity, layers_left, removed, order, adapter``: for every layer
        that goes a row of phase ``P``, for every recovery one of ``P+R`` (without layer and similarity).
        ``removed`` are all layers gone by then as text, ``order`` as they went, ``adapter`` the folder of the
        adapter that is on at the end of the phase, relative to ``out`` ("" for none).
        ``read_iterations(out)`` gives what there is of one that was stopped.

    Raises:
        ValueError: before any work: for a target out of range, a model that is pruned already, calibration
            texts without a token, fewer sequences than a batch, attention matrices that cannot be had, an
            ``out`` of other work.
        KeyboardInterrupt: when stopped, as ``heal``; what was done is kept.
    """
    config, weights = config or HealingConfig.preset("iterabre"), checked_loss(loss)
    depth, to_go = number_of_layers(model), layers_to_go(model, target_layers)
    whole_number(per_iteration, "per_iteration")
    checked_temperature(temperature)
    check_teacher(model, weights if examples is not None else {})
    check_prunable(model)
    read = read_tokens(model, tokenizer, calibration, config.max_length or 512)
    settings: Any = {"loss": weights, "temperature": temperature, "response": response, "config": config}
    asked = fingerprint([ids.tolist() for ids in read])  # the tokens: another tokenizer reads others
    work: dict[str, Any] = {"model": describe_model(model), "calibration": asked}
    work |= {"examples": _data(model, tokenizer, examples, response, config), "config": config.deciding()}
    work |= {"loss": weights, "temperature": temperature, "per_iteration": per_iteration}
    out = Path(out)
    _is_begun(out, work, overwrite)  # other work is refused without waiting for it
    score = partial(_scores, model, tokenizer, calibration, max_length=config.max_length or 512)
    with locked(out.resolve(), str(out)) if is_main() else nullcontext():  # a second one waits, and goes on
        with _one_first():
            if not _is_begun(out, work, overwrite):
                _begin(out, work)
        steps = _Steps(out, depth, progress)
        while left := to_go - len(steps.order):
            with _one_first():
                steps.prune(model, score, min(per_iteration, left))
            if examples is not None:
                steps.recover(model, tokenizer, examples, overwrite=overwrite, **settings)
    frame = steps.frame()
    frame.attrs = {"depth": depth, "target_layers": target_layers}
    return frame


class _Steps:
    """What was done so far, on disk; each step is done once."""

    def __init__(self, out: Path, depth: int, progress: Any = False) -> None:
        self.out, self.depth, self.progress, self.iteration = out, depth, progress, 0
        self.rows: list[dict[str, Any]] = []
        self.order: list[int] = []
        self.adapter = ""

    @property
    def folder(self) -> Path:
        """Where the iteration is kept."""
        return self.out / f"iteration-{self.iteration:02d}"

    def prune(self, model: Any, score: Any, count: int) -> None:
        """Remove layers, or read which were; the adapter stays on those that stay."""
        self.iteration += 1
        before = self.out / self.adapter if self.adapter else None
        if not (self.folder / ROWS).is_file():
            check_writable("out", self.folder / ROWS)
            chosen: list[tuple[int, float]] = []
            for _ in range(count):
                chosen.append(_best(score(self.order, [layer for layer, _ in chosen], before)))
            write_text_atomic(self.folder / ROWS, json.dumps(chosen))
        if (gone := self.pruned()) != count:
            got = f"iteration {self.iteration} in {self.out} removed {gone} layers, not {count}"
            raise ValueError(f"target_layers: {got}; give another out, or overwrite=True")
        if before and not (self.out / self.adapter).is_dir():
            carry_adapter(model, before, self.order, self.out / self.adapter)

    def recover(self, model: Any, tokenizer: Any, examples: Any, **settings: Any) -> None:
        """Recover, or read that it was done."""
        start = self.out / self.adapter if self.adapter else None
        told = {"iteration": self.iteration, **self._gone()}
        watch = self.progress
        if callable(watch):
            watch = lambda row: self.progress(row | told)  # noqa: E731
        config = settings.pop("config")
        config = replace(config, seed=config.seed + self.iteration - 1)
        where: Any = {"removed": self.order, "start": start, "out": self.folder / "recovered"}
        recover(model, tokenizer, examples, config=config, **where, **settings, progress=watch)
        self.recovered()

    def pruned(self) -> int:
        """Take up the layers that went in this iteration; return how many."""
        self.adapter = f"{self.folder.name}/pruned" if self.adapter else ""
        what = f"{self.folder / ROWS} is damaged; remove it, and that iteration chooses again"
        with told(what, ValueError, TypeError):
            rows = json.loads((self.folder / ROWS).read_text(encoding="utf-8"))
            gone = [(int(layer), float(similarity)) for layer, similarity in rows]
        for layer, similarity in gone:
            self.order.append(layer)
            self._row("P", layer, similarity)
        return len(gone)

    def recovered(self) -> None:
        """Take up the recovery of this iteration."""
        self.adapter = f"{self.folder.name}/recovered"
        self._row("P+R", None, None)

    def _gone(self) -> dict[str, str]:
        return {"removed": format_layers(self.order), "order": " ".join(map(str, self.order))}

    def _row(self, phase: str, layer: int | None, similarity: float | None) -> None:
        row = {"iteration": self.iteration, "phase": phase, "layer": layer, "similarity": similarity}
        left = {"layers_left": self.depth - len(self.order)}
        self.rows.append({**row, **left, **self._gone(), "adapter": self.adapter})

    def frame(self) -> pd.DataFrame:
        """Return the rows."""
        columns = ["iteration", "phase", "layer", "similarity", "layers_left", "removed", "order", "adapter"]
        return pd.DataFrame(self.rows, columns=columns).astype({"layer": "Int64", "similarity": float})


def read_iterations(out: str | Path) -> pd.DataFrame:
    """Return the rows of an ``iterate`` that is done, or of the iterations that one that was stopped did.

    Args:
        out: its folder.

    Raises:
        ValueError: for a folder that ``iterate`` did not write.
    """
    out = Path(out)
    if not (out / WORK).is_file():
        raise ValueError(f"out must be a folder of iterate, {out} has no {WORK}")
    with told(f"{out / WORK} is damaged", ValueError, LookupError, TypeError):
        depth = int(json.loads((out / WORK).read_text(encoding="utf-8"))["model"]["n_layers"])
    steps = _Steps(out, depth)
    for _ in out.glob(f"iteration-*/{ROWS}"):
        steps.iteration += 1
        steps.pruned()
        if (steps.folder / "recovered" / RECORD).is_file():
            steps.recovered()
    return steps.frame()


def recovery_log(out: str | Path) -> pd.DataFrame:
    """Return the logs of all recoveries of an ``iterate`` that are done: ``iteration, order`` and their rows.

    Args:
        out: its folder.

    Raises:
        ValueError: for a folder that ``iterate`` did not write.
    """
    rows, logs = read_iterations(out), [pd.DataFrame(columns=["iteration", "order", "step"])]
    for row in rows[rows["phase"] == "P+R"].itertuples():
        log = pd.read_json(Path(out) / str(row.adapter) / LOG, lines=True)
        logs.append(log.assign(iteration=row.iteration, order=row.order))
    return pd.concat(logs[1:] or logs, ignore_index=True)


def removal_order(iterations: pd.DataFrame) -> tuple[int, ...]:
    """Return the layers of an ``iterate`` frame in the order in which they went.

    Raises:
        ValueError: for missing columns.
    """
    frame = checked(iterations, ["phase", "layer"], "iterations")
    return tuple(int(layer) for layer in frame.loc[frame["phase"] == "P", "layer"])


def iteration_variants(
    iterations: pd.DataFrame, *, model: str, folder: str, phases: Sequence[str] = PHASES, prefix: str = ""
) -> list[Variant]:
    """Return a variant for each state that an ``iterate`` frame tells of, for ``evaluate_variants``.

    Args:
        iterations: of ``iterate``.
        model: name of the whole model, as given to ``load_model``.
        folder: of ``iterate``, relative to the run.
        phases: ``P`` (before recovery), ``P+R`` (after it).
        prefix: before the names, which are ``<layers left>-P`` and ``<layers left>-P+R``.

    Raises:
        ValueError: for another phase, or missing columns.
    """
    for phase in phases:
        one_of(phase, PHASES, "phases")
    columns = ["iteration", "phase", "removed", "order", "adapter", "layers_left"]
    frame = checked(iterations, columns, "iterations")
    last = frame.groupby(["iteration", "phase"], sort=False).tail(1)
    return [
        Variant(
            name=f"{prefix}{row.layers_left}-{row.phase}",
            model=model,
            removed=tuple(int(layer) for layer in str(row.order).split()),
            adapter=f"{folder}/{row.adapter}" if row.adapter else None,
            note=f"iteration {row.iteration}, {row.phase}",
        )
        for row in last.itertuples()
        if row.phase in phases
    ]


def _data(model: Any, tokenizer: Any, examples: Any, response: str, config: HealingConfig) -> str | None:
    if examples is None:
        return None
    limit = sequence_limit(model, config.max_length)
    samples, _ = read_examples(model, tokenizer, examples, response, limit, concatenate=config.concatenate)
    check_batch(len(samples), config)
    return digest(samples)


def _is_begun(out: Path, work: dict[str, Any], overwrite: bool) -> bool:
    """Return whether a folder holds this very work; other work is an error unless it may be lost."""
    return (out / WORK).is_file() and same_work(out / WORK, work, overwrite)


def _begin(out: Path, work: dict[str, Any]) -> None:
    """Begin a folder, without the scores of other work; adapters are overwritten as they are made."""
    check_writable("out", out)
    others = {path.name for path in out.iterdir()} if out.is_dir() else set()
    others = {name for name in others if not (name.startswith(".") and name.endswith(".tmp"))}  # of a kill
    if others and WORK not in others:
        raise ValueError(f"out: {out} holds {sorted(others)[0]} and no {WORK}; give a folder of its own")
    for folder in out.glob("iteration-*"):
        (folder / ROWS).unlink(missing_ok=True)
        shutil.rmtree(folder / "pruned", ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    write_text_atomic(out / WORK, json.dumps(work, indent=1))


def _one_first() -> AbstractContextManager[None]:
    """Of several processes of a launcher, let the first one do the work that the others then read."""
    if world_size() == 1:
        return nullcontext()
    from accelerate import PartialState

    first: AbstractContextManager[None] = PartialState(cpu=not torch.cuda.is_available()).main_process_first()
    return first


def _scores(
    model: Any,
    tokenizer: Any,
    calibration: Sequence[str],
    gone: Sequence[int],
    chosen: Sequence[int],
    adapter: Path | None,
    *,
    max_length: int,
) -> pd.DataFrame:
    """Score each layer left against the original model, with the adapter of the last iteration on."""
    original = last_states(model, tokenizer, calibration, max_length=max_length)
    asked: Any = {"removed": chosen, "original": original, "max_length": max_length, "progress": False}
    with without_layers(model, gone), nullcontext() if adapter is None else with_adapter(model, adapter):
        return removal_similarity(model, tokenizer, calibration, **asked)


def _best(scores: pd.DataFrame) -> tuple[int, float]:
    row = scores.loc[scores["similarity"].idxmax()]
    return int(row["layer"]), float(row["similarity"])
