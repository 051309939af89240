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
SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
#: for trials on a CPU
TINY = {
    "vocab_size": 2048,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
PACKAGES = ("torch", "transformers", "peft", "accelerate", "triton", "numpy", "pandas")


def random_llama(shape: dict[str, int], device: str, **settings: Any) -> Any:
    """Make a Llama with random weights on the device: bf16 on a GPU, float32 on the CPU."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device.startswith("cuda") else torch.float32)
    try:
        with torch.device(device):
            return LlamaForCausalLM(LlamaConfig(**shape, **settings)).eval()
    finally:
        torch.set_default_dtype(before)


def synchronise() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measured(function: Callable[[], Any]) -> dict[str, Any]:
    """Run a function once: seconds, what it returned, and on CUDA the GiB it needed beyond what was there."""
    cuda = torch.cuda.is_available()
    synchronise()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    start, cpu = time.perf_counter(), time.process_time()
    result = function()
    synchronise()
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


class Checks(list[dict[str, Any]]):
    """Figures that a record is held to."""

    def add(self, what: str, value: float, target: float, *, most: bool = True) -> None:
        """Note a figure and what it should be at most (or at least)."""
        met = bool(value <= target if most else value >= target)
        told = {"target": f"{'<=' if most else '>='} {target}", "met": met}
        self.append({"what": what, "value": float(value), **told})

    def show(self) -> None:
        """Print them as a table."""
        for one in self:
            met = "met" if one["met"] else "MISSED"
            print(f"{one['what']:64} {one['value']:9.4f}  {one['target']:>10} {met}")


class Parts:
    """A record that grows part by part while there is time, so that a cut loses nothing.

    Where ``--out`` is there already, the parts that it holds whole are not run again.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.began = options, time.perf_counter()
        self.earlier = earlier_parts(options.out)
        self.results: dict[str, Any] = {}

    def left(self) -> float:
        """Return the seconds that are left."""
        return float(self.options.seconds - (time.perf_counter() - self.began))

    def part(self, name: str, work: Callable[[], dict[str, Any]], least: float) -> None:
        """Run a part if there is time for it, print it and write everything so far."""
        began = time.perf_counter()
        if name in self.earlier:
            found = self.earlier.pop(name)  # a second part of the name is a new look at all of them
        elif self.left() < least:
            found = {"left_out": True}
        else:
            try:
                found = work()
            except Exception as error:  # the others' numbers must not be lost
                found = {"error": f"{type(error).__name__}: {error}"[:800]}
            found["part_seconds"] = time.perf_counter() - began
        self.results[name] = found
        print(f"{name:44} { {k: v for k, v in found.items() if k != 'losses'} }", flush=True)
        print(f"record: {self.write()}", flush=True)

    def write(self) -> Path:
        """Write the record as it stands."""
        raise NotImplementedError


def earlier_parts(out: Path | None) -> dict[str, Any]:
    """Return the parts of a record that came to their end, but for what compares them."""
    if out is None or not out.is_file():
        return {}
    results = json.loads(out.read_text()).get("results", {})
    whole = {name: one for name, one in results.items() if isinstance(one, dict) and "part_seconds" in one}
    return {name: one for name, one in whole.items() if "error" not in one and name != "compared"}


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


def run_and_record(
    name: str,
    options: argparse.Namespace,
    sections: dict[str, Callable[[], dict[str, Any]]],
    checks: Checks,
    **told: Any,
) -> int:
    """Run every section, write the record and print the checks; return 1 where a section failed."""
    results, failed = run_sections(sections)
    path = write_record(name, options.out, **told, results=results, checks=checks, failed=failed)
    checks.show()
    print(f"record: {path}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return int(bool(failed))


def write_record(name: str, out: Path | None, **parts: Any) -> Path:
    """Write a dated JSON record, to ``out`` or into ``benchmarks/records``."""
    now = datetime.now(UTC)
    path = out or RECORDS / f"{now:%Y-%m-%d}-{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"benchmark": name, "date": now.isoformat(timespec="seconds"), "commit": commit()}
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
    parser.add_argument("--out", type=_file, help="file for the record (default: benchmarks/records/)")
    return parser


def _file(text: str) -> Path:
    """Refuse a folder now, not when everything is measured."""
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"must be a file for the record, got the folder {text}")
    return Path(text)


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def commit() -> str | None:
    """Return the commit of this checkout, None outside of git."""
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
