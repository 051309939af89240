"""What the benchmark scripts share: time and memory of a call, the machine it ran on, a dated record."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benchmarks" / "records"
sys.path.insert(0, str(ROOT))  # benchmarks run from a checkout, with or without the package installed
#: what the shape "llama-8b" of the benchmarks is: Llama-3.1-8B's
LLAMA_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
PACKAGES = ("torch", "transformers", "peft", "accelerate", "triton", "numpy", "pandas")


def measured(function: Callable[[], Any]) -> dict[str, Any]:
    """Run a function once: seconds, what it returned, and on CUDA the GiB it needed beyond what was there."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    start, cpu = time.perf_counter(), time.process_time()
    result = function()
    if cuda:
        torch.cuda.synchronize()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    extra = (torch.cuda.max_memory_allocated() - before) / 2**30 if cuda else None
    return {"seconds": seconds, "cpu_seconds": cpu, "extra_gib": extra, "result": result}


def side_by_side(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, Any]]:
    """Run functions in turns, so that a slow spell of the machine hits all; keep each one's least time."""
    best: dict[str, dict[str, Any]] = {}
    for _ in range(repeats):
        for name, function in functions.items():
            run = measured(function)
            if name not in best or run["seconds"] < best[name]["seconds"]:
                best[name] = run
    return best


def numbers(run: dict[str, Any]) -> dict[str, Any]:
    """Return a run without its result, for the record."""
    return {name: value for name, value in run.items() if name != "result" and value is not None}


def machine() -> dict[str, Any]:
    """Describe the hardware without naming the machine."""
    found: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "gpu_gib": round(properties.total_memory / 2**30, 1)}
        found |= {"gpus": torch.cuda.device_count(), "cuda": torch.version.cuda}
    return found


def versions() -> dict[str, str]:
    """Return the versions that decide speed and numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def run_sections(sections: dict[str, Callable[[], dict[str, Any]]]) -> tuple[dict[str, Any], list[str]]:
    """Run every section even when one fails; return the results and the names of those that failed."""
    results: dict[str, Any] = {}
    failed = []
    for name, section in sections.items():
        start = time.perf_counter()
        try:
            results[name] = section()
        except Exception:  # the others' numbers must not be lost; the caller exits with an error
            results[name] = {"error": traceback.format_exc()}
            failed.append(name)
            traceback.print_exc()
        results[name]["section_seconds"] = round(time.perf_counter() - start, 1)
        print(f"[{name}] {results[name]['section_seconds']} s", flush=True)
    return results, failed


def write_record(name: str, out: Path | None, **parts: Any) -> Path:
    """Write a dated JSON record, to ``out`` or into ``benchmarks/records``."""
    now = datetime.now(UTC)
    path = out or RECORDS / f"{now:%Y-%m-%d}-{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"benchmark": name, "date": now.isoformat(timespec="seconds"), "commit": _commit()}
    record |= {"machine": machine(), "versions": versions(), **parts}
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def arguments(description: str, shapes: list[str]) -> argparse.ArgumentParser:
    """Return the command line that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--shape", choices=shapes, default=shapes[0])
    parser.add_argument("--out", type=Path, help="file for the record (default: benchmarks/records/)")
    return parser


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    if found.returncode:
        return None
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=ROOT, check=False).returncode
    return found.stdout.strip() + (" and changes" if changed else "")
