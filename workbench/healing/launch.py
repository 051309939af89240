"""Healing on several GPUs or machines: a notebook writes the plan, a launcher runs it in several processes.

The plan is a folder with everything the training needs, so it can be copied to a cluster; the adapter goes
into it. Its result is read back by ``run_plan``, or by ``heal`` with the same arguments: a finished adapter
is not trained again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.checks import checked, one_of, read_whole, told, whole_number
from workbench.healing.config import HealingConfig
from workbench.places import short_name
from workbench.runs.files import locked, sha256_of, write_bytes_atomic, write_text_atomic

PLAN, EXAMPLES, HELD_OUT = "plan.json", "examples.jsonl", "held_out.jsonl"
_PARTS = {"model", "layers", "response", "config", "out", "files"}
_FSDP = (
    "--use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP "
    "--fsdp_state_dict_type FULL_STATE_DICT --fsdp_cpu_ram_efficient_loading false"
)


def plan_training(
    folder: str | Path,
    model: str,
    examples: pd.DataFrame | Sequence[str],
    *,
    out: str | Path | None = None,
    layers: Sequence[int] = (),
    response: str = "reference",
    config: HealingConfig | None = None,
    revision: str | None = None,
    dtype: str | None = None,
    quantization: str | None = None,
    held_out: pd.DataFrame | Sequence[str] | None = None,
) -> Path:
    """Write what a training needs into a folder: ``plan.json``, ``examples.jsonl``, ``held_out.jsonl``.

    Args:
        folder: of the plan, for example ``run.path("plans/pruned-sft")``: new, empty, or of an earlier plan,
            whose files are replaced; adapters and checkpoints in it stay.
        model: as for ``load_model``, with ``revision``, ``dtype`` and ``quantization``.
        examples: as for ``heal``, with ``response`` and ``config``.
        out: folder of the adapter, inside the plan's folder; None for ``<folder>/adapter``.
        layers: original indices of the layers left out.
        response: the column to learn.
        config: None for ``HealingConfig.preset("sdd")``.
        revision: of the model.
        dtype: of the model.
        quantization: of the model.
        held_out: as for ``heal``: rows whose loss is measured at the end of each epoch.

    Returns:
        The path of ``plan.json``.

    Raises:
        ValueError: for a folder with other content, an ``out`` outside it, examples without texts in the
            columns that are learned from, and settings that ``load_model`` or ``heal`` would refuse; nothing
            is written then.
    """
    folder, config = Path(folder), config or HealingConfig.preset("sdd")
    out = os.path.relpath(folder / "adapter" if out is None else out, folder)
    _check_inside(folder, out)
    left_out = sorted({whole_number(layer, "layers", 0) for layer in layers})
    one_of(dtype, ("float32", "bfloat16", "float16", None), "dtype")
    one_of(quantization, ("nf4", None), "quantization")
    tables = {EXAMPLES: _learnable(examples, response)}
    if held_out is not None:
        tables[HELD_OUT] = _learnable(held_out, response)
    there = Path(model).expanduser()
    named = {"name": str(model), "path": os.path.abspath(there) if there.is_dir() else None}
    lines = {"orient": "records", "lines": True, "force_ascii": False}
    files = {name: table.to_json(**lines).encode() for name, table in tables.items()}
    plan = {
        "model": {**named, "revision": revision, "dtype": dtype, "quantization": quantization},
        "layers": left_out,
        "response": response if isinstance(examples, pd.DataFrame) else None,
        "config": config.written(),
        "out": out,
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    with locked(folder):
        _check_folder(folder)
        written = write_text_atomic(folder / PLAN, json.dumps(plan, indent=1) + "\n")  # first: it marks ours
        for name, data in files.items():
            write_bytes_atomic(folder / name, data)
    return written


def launch_command(
    plan: str | Path, *, processes: int = 2, machines: int = 1, fsdp: bool = False, cpu: bool = False
) -> str:
    """Return the shell command that runs a plan in several processes, from whatever folder it is given in.

    Args:
        plan: path of ``plan.json``.
        processes: in all, one a GPU.
        machines: that take part; the command is run on each, with ``--machine_rank`` and
            ``--main_process_ip`` added as accelerate's documentation says.
        fsdp: spread the weights over the GPUs (FSDP) instead of one copy on each (DDP): for models too large
            for one GPU. Every layer's weights then travel at every pass, so a small model is slower so than
            on one GPU, where DDP is faster.
        cpu: without GPUs, on one machine.

    Raises:
        ValueError: for numbers below 1, processes that cannot be shared evenly among the machines or share
            the plan's batches evenly, FSDP or several machines without GPUs.

    >>> launch_command("plan.json", processes=4).partition("--")[0]
    'python -m accelerate.commands.launch '
    >>> launch_command("plan.json", cpu=True).partition("--")[0]
    'python -m torch.distributed.run '
    """
    if cpu and (fsdp or machines > 1):
        raise ValueError("fsdp must be False and machines 1 without GPUs: FSDP spreads weights over GPUs")
    if processes % machines:
        raise ValueError(f"processes must be a multiple of machines={machines}, got {processes}")
    if Path(plan).is_file():
        _check_batches(_config(Path(plan)), processes)
    if cpu:  # accelerate would start one process, whatever it is asked for
        words = f"python -m torch.distributed.run --standalone --nproc_per_node {processes}"
    else:
        kind = _FSDP if fsdp else "--multi_gpu" if processes > 1 else ""
        words = f"python -m accelerate.commands.launch --num_processes {processes} --num_machines {machines}"
        words = f"{words} --mixed_precision no --dynamo_backend no {kind}".strip()
    place = shlex.quote(os.path.abspath(plan))
    return f"{words} -m workbench heal --plan {place}{' --cpu' * cpu}"


def sharded() -> bool:
    """Return whether accelerate spreads the weights of this process over several GPUs (FSDP)."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def is_main() -> bool:
    """Return whether this is the first of a launcher's processes, or the only one."""
    from workbench.models.processes import world_size

    return world_size() == 1 or os.environ["RANK"] == "0"


def run_plan(plan: str | Path, *, overwrite: bool = False, progress: bool = True) -> Any:
    """Run a plan, or read its result back where it has been run; by a launcher's processes or alone.

    Args:
        plan: path of ``plan.json``.
        overwrite: as for ``heal``.
        progress: show a progress bar, in the first process.

    Returns:
        What ``heal`` returns.

    Raises:
        ValueError: for a file that is no plan, a plan whose adapter would lie outside its folder or whose
            examples are not those it was written with, and as ``load_model``, ``without_layers`` and
            ``heal``.
    """
    from workbench.healing.heal import heal
    from workbench.models.loading import load_model
    from workbench.pruning.removal import without_layers

    plan = Path(plan)
    if not plan.is_file():
        raise ValueError(f"plan must be a plan.json that plan_training wrote, there is none at {plan}")
    planned = _read_plan(plan)
    config = HealingConfig(**planned["config"])
    _check_inside(plan.parent, planned["out"])
    rows = {name: _read_rows(plan.parent / name, known, planned) for name, known in planned["files"].items()}
    named = planned["model"]
    options = {key: named[key] for key in ("revision", "quantization")}
    model, tokenizer = load_model(named["path"] or named["name"], **options, **_place(named["dtype"]))
    model._source["id"] = short_name(named["name"])  # as it was called where the plan was written
    given: dict[str, Any] = {"response": planned["response"] or "reference", "config": config}
    given |= {"out": plan.parent / planned["out"], "held_out": rows.get(HELD_OUT), "overwrite": overwrite}
    with without_layers(model, planned["layers"]):
        return heal(model, tokenizer, rows[EXAMPLES], progress=progress and is_main(), **given)


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds something, and no plan."""
    if folder.is_file():
        raise ValueError(f"folder must be a folder, {folder} is a file")
    if folder.is_dir() and any(folder.iterdir()):
        try:
            _read_plan(folder / PLAN)
        except ValueError:
            wanted = "new, empty or that of an earlier plan"
            raise ValueError(f"folder must be {wanted}; {folder} holds other files") from None


def _check_inside(folder: Path, out: str) -> None:
    """Refuse a result outside the plan's folder, which may come from anywhere, also through a link."""
    with told("out must be a folder inside the plan's folder", ValueError, OSError):
        home, place = folder.resolve(), (folder / out).resolve()
        file = place.is_file()
    if place == home or not place.is_relative_to(home) or file:
        raise ValueError(f"out must be a folder inside the plan's folder {folder}, got {out!r}")


def _learnable(examples: Any, response: str) -> pd.DataFrame:
    """Return the columns that are learned from, all of them texts."""
    if not isinstance(examples, pd.DataFrame):
        examples, columns, texts = pd.DataFrame({"text": list(examples)}), ["text"], ["text"]
    else:
        # all that makes a prompt; and the reference decides the order, whichever column is learned
        prompt = ("id", "instruction", "context", "form", "history")
        columns, texts = list(dict.fromkeys((*prompt, "reference", response))), ["instruction", response]
    table = checked(examples, texts, "examples")
    for name in texts:
        empty = [k for k, text in enumerate(table[name]) if not isinstance(text, str) or not text.strip()]
        if empty:
            raise ValueError(f"examples must hold a text in every {name}; row {empty[0]} has none")
    return table[[name for name in columns if name in table]]


def _read_plan(path: Path) -> dict[str, Any]:
    with told(f"{path} is no plan that plan_training wrote, or it is damaged; plan it again", Exception):
        plan = dict(json.loads(read_whole(path)))
        if missing := _PARTS - plan.keys():
            raise ValueError(f"it has no {', '.join(sorted(missing))}")
        if not _is_sound(plan):
            raise ValueError("its parts are not of the kinds that a plan has")
    return plan


def _is_sound(plan: dict[str, Any]) -> bool:
    """Return whether the parts of a plan are of the kinds that plan_training writes."""
    named, rows = plan["model"], plan["files"]
    kinds = {"model": dict, "layers": list, "response": str | None, "config": dict, "out": str, "files": dict}
    return (
        all(isinstance(plan[part], kind) for part, kind in kinds.items())
        and isinstance(named.get("name"), str)
        and all(isinstance(named.get(key), str | None) for key in ("path", "revision", "dtype"))
        and EXAMPLES in rows
        and rows.keys() <= {EXAMPLES, HELD_OUT}
    )


def _read_rows(path: Path, known: str, planned: dict[str, Any]) -> pd.DataFrame | list[str]:
    """Return the examples of a file of the plan, as ``heal`` takes them."""
    if not path.is_file() or known != sha256_of(path):
        raise ValueError(f"{path} is not the file that the plan was written with; plan it again")
    with told(f"{path} holds no rows of a plan; plan it again", ValueError, LookupError, AttributeError):
        rows = pd.read_json(path, orient="records", lines=True, dtype=False)
        return rows if planned["response"] else rows["text"].tolist()


def _config(path: Path) -> HealingConfig:
    with told(f"{path} is a plan of another version", TypeError, hint="; plan it again"):
        return HealingConfig(**_read_plan(path)["config"])


def _check_batches(config: HealingConfig, processes: int) -> None:
    batch, micro = config.batch_size, config.micro_batch_size or 1
    if batch % (micro * processes):
        raise ValueError(f"processes must divide batch_size / micro = {batch} / {micro}, got {processes}")


def _place(dtype: str | None) -> dict[str, Any]:
    """Return device and dtype for this process: its own GPU; for FSDP main memory, from where it spreads."""
    import torch

    if not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        return {"device": "cpu", "dtype": dtype}
    if sharded():
        return {"device": "cpu", "dtype": dtype or "bfloat16"}
    return {"device": f"cuda:{os.environ.get('LOCAL_RANK', '0')}", "dtype": dtype}
