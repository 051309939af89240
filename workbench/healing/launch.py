"""Healing on several GPUs or machines: a notebook writes the plan, ``accelerate launch`` runs it.

The plan is a folder with everything the training needs, so it can be copied to a cluster. Its result is read
back by ``run_plan``, or by ``heal`` with the same arguments: a finished adapter is not trained again.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.checks import checked, whole_number
from workbench.healing.config import HealingConfig
from workbench.runs.files import atomic_folder

PLAN, EXAMPLES = "plan.json", "examples.jsonl"
_FSDP = (
    "--use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP "
    "--fsdp_state_dict_type FULL_STATE_DICT --fsdp_cpu_ram_efficient_loading false"
)


def plan_training(
    folder: str | Path,
    model: str,
    examples: pd.DataFrame | Sequence[str],
    *,
    out: str | Path,
    layers: Sequence[int] = (),
    response: str = "reference",
    config: HealingConfig | None = None,
    revision: str | None = None,
    dtype: str | None = None,
    quantization: str | None = None,
) -> Path:
    """Write what a training needs into a folder: ``plan.json`` and ``examples.jsonl``.

    Args:
        folder: of the plan, for example ``run.path("plans/pruned-sft")``; replaced when it is there.
        model: as for ``load_model``, with ``revision``, ``dtype`` and ``quantization``.
        examples: as for ``heal``, with ``response`` and ``config``.
        out: folder of the adapter; kept relative to the plan where it can be.
        layers: original indices of the layers left out.
        response: the column to learn.
        config: None for ``HealingConfig.preset("sdd")``.
        revision: of the model.
        dtype: of the model.
        quantization: of the model.

    Returns:
        The path of ``plan.json``.
    """
    folder, config = Path(folder), config or HealingConfig.preset("sdd")
    frame = isinstance(examples, pd.DataFrame)
    table = checked(examples if frame else pd.DataFrame({"text": list(examples)}), (), "examples")
    columns = ("id", "instruction", "context", response) if frame else ("text",)
    plan = {
        "model": {"name": model, "revision": revision, "dtype": dtype, "quantization": quantization},
        "layers": list(map(int, layers)),
        "response": response if frame else None,
        "config": asdict(config),
        "out": os.path.relpath(out, folder),
    }
    with atomic_folder(folder) as place:
        kept = table[[name for name in columns if name in table]]
        kept.to_json(place / EXAMPLES, orient="records", lines=True, force_ascii=False)
        (place / PLAN).write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
    return folder / PLAN


def launch_command(
    plan: str | Path, *, processes: int = 2, machines: int = 1, fsdp: bool = False, cpu: bool = False
) -> str:
    """Return the shell command that runs a plan with ``accelerate launch``.

    Args:
        plan: path of ``plan.json``.
        processes: in all, one a GPU.
        machines: that take part; the command is run on each, with ``--machine_rank`` and
            ``--main_process_ip`` added as accelerate's documentation says.
        fsdp: spread the weights over the GPUs (FSDP) instead of one copy on each (DDP): for models too large
            for one GPU. Every layer's weights then travel at every pass, so a small model is slower so than
            on one GPU, where DDP is faster.
        cpu: without GPUs.

    Raises:
        ValueError: for numbers below 1, or FSDP without GPUs.

    >>> launch_command("plan.json", processes=4).partition("--")[0]
    'python -m accelerate.commands.launch '
    >>> launch_command("plan.json").split()[-5:]
    ['-m', 'workbench', 'heal', '--plan', 'plan.json']
    """
    whole_number(processes, "processes")
    whole_number(machines, "machines")
    if fsdp and cpu:
        raise ValueError("fsdp must be False without GPUs: FSDP spreads weights over GPUs")
    kind = _FSDP if fsdp else "--cpu" if cpu else "--multi_gpu" if processes > 1 else ""
    words = f"--num_processes {processes} --num_machines {machines} --mixed_precision no --dynamo_backend no"
    words = f"python -m accelerate.commands.launch {words} {kind} -m workbench heal --plan"
    return shlex.join([*words.split(), os.path.relpath(plan)])


def sharded() -> bool:
    """Return whether accelerate spreads the weights of this process over several GPUs (FSDP)."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def run_plan(plan: str | Path, *, progress: bool = True) -> Any:
    """Run a plan, or read its result back where it has been run; under ``accelerate launch`` or alone.

    Args:
        plan: path of ``plan.json``.
        progress: show a progress bar, in the first process.

    Returns:
        What ``heal`` returns.

    Raises:
        ValueError: for a file that is no plan, and as ``load_model``, ``without_layers`` and ``heal``.
    """
    from workbench.healing.heal import heal
    from workbench.models.loading import load_model
    from workbench.pruning.removal import without_layers

    plan = Path(plan)
    if not plan.is_file():
        raise ValueError(f"plan must be a plan.json that plan_training wrote, there is none at {plan}")
    planned = json.loads(plan.read_text(encoding="utf-8"))
    examples = pd.read_json(plan.parent / EXAMPLES, orient="records", lines=True, dtype=False)
    model, tokenizer = load_model(**{**planned["model"], **_place(planned["model"]["dtype"])})
    with without_layers(model, planned["layers"]):
        return heal(
            model,
            tokenizer,
            examples if planned["response"] else examples["text"].tolist(),
            response=planned["response"] or "reference",
            config=HealingConfig(**planned["config"]),
            out=plan.parent / planned["out"],
            progress=progress and os.environ.get("RANK", "0") == "0",
        )


def _place(dtype: str | None) -> dict[str, Any]:
    """Return device and dtype for this process: its own GPU; for FSDP main memory, from where it spreads."""
    import torch

    if not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        return {"device": "cpu", "dtype": dtype}
    if sharded():
        return {"device": "cpu", "dtype": dtype or "bfloat16"}
    return {"device": f"cuda:{os.environ.get('LOCAL_RANK', '0')}", "dtype": dtype}
