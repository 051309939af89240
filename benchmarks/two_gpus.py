"""Healing by one process, by two (DDP) and by two that share the weights (FSDP): the same losses, how fast.

    python benchmarks/two_gpus.py                 # two GPUs: about two minutes
    python benchmarks/two_gpus.py --device cpu    # a tiny model, two processes without a GPU, no FSDP

A random Llama is written to a temporary folder; each way runs the command that a notebook prints.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from measuring import ROOT, arguments, write_record
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from workbench.healing.config import HealingConfig
from workbench.healing.launch import launch_command, plan_training

SHAPES = {
    "llama-1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 20},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 5},
}
WORDS = ["the", "a", "dog", "cat", "river", "house", "child", "walks", "sees", "finds", "red", "and", "then"]


def write_model(folder: Path, shape: dict[str, int], dtype: torch.dtype) -> None:
    """A random Llama with the demo model's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data" / "demo" / "model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_attention_heads=16, num_key_value_heads=8, **shape, eos_token_id=0
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_examples(n: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "instruction": [" ".join(rng.choice(WORDS, rng.integers(20, 60))) for _ in range(n)],
            "reference": [" ".join(rng.choice(WORDS, rng.integers(40, 200))) for _ in range(n)],
        }
    )


def run(command: str) -> float:
    """Run what the notebook prints, with this Python; return the seconds it took."""
    words = [sys.executable, *shlex.split(command)[1:]]
    started = time.perf_counter()
    done = subprocess.run(
        words,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - started
    print(f"$ {command}\n  {seconds:.0f} s, exit {done.returncode}: {done.stdout.strip()[-200:]}", flush=True)
    if done.returncode:
        print(done.stderr[-6000:], flush=True)
    return seconds


def main() -> int:
    """Run every way and compare."""
    parser = arguments(__doc__.splitlines()[0], list(SHAPES))
    parser.add_argument("--ways", nargs="*", help="only the first, and those named so")
    options = parser.parse_args()
    cpu = options.device == "cpu"
    shape = "tiny" if cpu else options.shape
    config = HealingConfig(
        rank=8, learning_rate=1e-3, max_steps=12, batch_size=16, micro_batch_size=4, max_length=512
    )
    ways: dict[str, dict[str, Any]] = {
        "one process": {"processes": 1},
        "one process, other micro-batches": {"processes": 1, "micro": 8},
        "two processes (DDP)": {"processes": 2},
    }
    if not cpu:
        ways["two processes (FSDP)"] = {"processes": 2, "fsdp": True}
    if options.ways:
        ways = {
            name: way
            for name, way in ways.items()
            if name == "one process" or any(word.lower() in name.lower() for word in options.ways)
        }
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_model(folder / "model", SHAPES[shape], torch.float32 if cpu else torch.bfloat16)
        examples = write_examples(96)
        for name, way in ways.items():
            plan = plan_training(
                folder / "plans" / name.replace(" ", "-"),
                str(folder / "model"),
                examples,
                layers=[2, 3],
                config=replace(config, micro_batch_size=way.pop("micro", 4)),
            )
            out = plan.parent / "adapter"
            seconds = run(launch_command(plan, cpu=cpu, **way))
            if (out / "log.jsonl").is_file():
                log = pd.read_json(out / "log.jsonl", lines=True)
                late = log.iloc[[2, -1]][["tokens", "seconds"]].diff().iloc[-1]
                found[name] = {
                    "losses": log["loss"].tolist(),
                    "tokens_per_second": late["tokens"] / late["seconds"],
                    "seconds_in_all": seconds,
                    "adapter": load_file(out / "adapter_model.safetensors"),
                }
    first = found["one process"]
    print(f"\n{'way':36} {'tokens/s':>9} {'largest gap of a loss':>22} {'of the adapter':>15}")
    for name, way in found.items():
        gaps = np.abs(np.array(way["losses"]) - np.array(first["losses"]))
        norm = max(float((tensor - first["adapter"][key]).norm()) for key, tensor in way["adapter"].items())
        size = max(float(tensor.norm()) for tensor in first["adapter"].values())
        way |= {"loss_gap": float(gaps.max()), "adapter_gap": norm / size}
        print(f"{name:36} {way['tokens_per_second']:9.0f} {gaps.max():22.6f} {norm / size:15.6f}")
    results = {name: {k: v for k, v in way.items() if k != "adapter"} for name, way in found.items()}
    missing = sorted(set(ways) - set(found))
    path = write_record(
        f"two-gpus-{shape}", options.out, config=vars(config), results=results, failed=missing
    )
    print(f"record: {path}" + (f"; failed: {', '.join(missing)}" if missing else ""))
    return 1 if missing else 0


if __name__ == "__main__":
    raise SystemExit(main())
