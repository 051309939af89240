"""Evaluation and generation by one process and by two, each with a GPU: seconds, and whether all is equal.

    python benchmarks/launched.py --data FOLDER --tokenizer FOLDER         # two H200: about thirteen minutes
    python benchmarks/launched.py --data FOLDER --tokenizer FOLDER --parts short                # two minutes
    python benchmarks/launched.py --device cpu --shape tiny --data FOLDER   # two processes on a CPU

Each way starts the processes as ``accelerate launch`` does; every one makes the same random model. Everything
is done ``--repeats`` times, after a few items of each task; medians are compared, and all are in the record.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from evaluation import SHAPES, build
from measuring import ROOT, arguments, write_record

from workbench.evaluation.evaluate import evaluate
from workbench.evaluation.items import read_items
from workbench.generation.responses import generate_responses
from workbench.models.processes import everyones, place

#: tasks with their examples, each evaluated by itself: quick ones, and those of the papers' tables
PARTS: dict[str, list[tuple[str, int | None]]] = {
    "short": [("mmlu", 5), ("hellaswag", 0)],
    "few-shot": [("arc_challenge", 25)],
    "papers": [("iterabre", None)],
    "generation": [],
}
#: items of a task, prompts that are answered, and new tokens of each
LIMIT, PROMPTS, NEW = {"tiny": 4}, {"tiny": 24}, {"tiny": 8}


def work(options: Any) -> None:
    """Do everything in this process, with the others there are, and let the first write what came out."""
    rank, n = place()
    if options.device == "cuda":
        options.device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(options.device)
    model, tokenizer = build(options)
    folder = Path(options.worker)
    found: dict[str, Any] = {"processes": n}
    settings: dict[str, Any] = {
        "data": options.data,
        "missing": "skip",
        "progress": False,
        "batch_size": "auto",
    }
    for task, shots in (("hellaswag", 0), ("mmlu", 5)):  # what is done once
        evaluate(model, tokenizer, task, n_shot=shots, limit=4, **settings)
    settings["limit"] = LIMIT.get(options.shape)
    for task, shots in [asked for name in options.parts for asked in PARTS[name]]:
        key = task if shots is None else f"{task} {shots}-shot"
        more = settings | {"n_shot": shots, "items": folder / f"{key}-{n}.jsonl"}
        found[key] = timed(partial(evaluate, model, tokenizer, task, **more), options.repeats)
    if "generation" in options.parts:
        draw = np.random.default_rng(0)
        size = min(len(tokenizer), 4000)
        lengths = draw.integers(20, 200, size=PROMPTS.get(options.shape, 2048))
        prompts = [draw.integers(5, size, size=length).tolist() for length in lengths]
        said: list[Any] = []

        def generate(n_new: int = NEW.get(options.shape, 128), some: int | None = None) -> None:
            more: dict[str, Any] = {"max_new_tokens": n_new, "batch_size": 64, "progress": False}
            said[:] = [generate_responses(model, tokenizer, prompts[:some], **more)]

        generate(2, 64)  # kernels are compiled, and kept on disk
        found["generation"] = timed(generate, options.repeats)
        if rank == 0:
            said[0].to_json(folder / f"generation-{n}.json")
    if rank == 0:
        (folder / f"found-{n}.json").write_text(json.dumps(found))


def timed(what: Any, repeats: int) -> list[float]:
    """Return the seconds of each time, until all processes are done."""
    seconds = []
    for _ in range(repeats):
        everyones(None)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        began = time.perf_counter()
        what()
        everyones(None)
        seconds.append(time.perf_counter() - began)
    return seconds


def launched(n: int, options: Any, folder: Path) -> float:
    """Start n processes of this script; return the seconds that they took in all."""
    cpu = options.device == "cpu"
    accelerate = f"-m accelerate.commands.launch --num_processes {n} --num_machines 1 --mixed_precision no"
    launcher = f"{accelerate} --dynamo_backend no{' --multi_gpu' if n > 1 else ''}"
    if cpu:  # accelerate would start one process, whatever it is asked for
        launcher = f"-m torch.distributed.run --standalone --nproc_per_node {n}"
    words = [sys.executable, *launcher.split(), __file__, "--worker", str(folder)]
    words += ["--device", options.device, "--shape", options.shape, "--data", str(options.data.resolve())]
    words += ["--parts", *options.parts, "--repeats", str(options.repeats)]
    for name in ("model", "tokenizer"):
        if getattr(options, name):
            words += [f"--{name}", str(getattr(options, name).resolve())]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"PYTHONPATH": paths} | ({"ACCELERATE_USE_CPU": "true"} if cpu else {})
    began = time.perf_counter()
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout[-1000:], done.stderr[-4000:], flush=True)
    return time.perf_counter() - began


def compared(folder: Path, found: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """How much faster two are, and whether they gave the same to the bit."""
    result: dict[str, Any] = {}
    for name in [key for key in found[1] if key not in ("processes", "in_all")]:
        one, two = (found[n][name] for n in (1, 2))
        result[name] = {"seconds": {1: median(one), 2: median(two)}, "ratio": median(one) / median(two)}
        result[name]["ratio_of_the_first_time"] = one[0] / two[0]
        if name == "generation":
            texts = [(folder / f"generation-{n}.json").read_bytes() for n in (1, 2)]
            result[name]["equal"] = texts[0] == texts[1]
            continue
        values = [read_items(folder / f"{name}-{n}.jsonl")["value"].to_numpy() for n in (1, 2)]
        files = [(folder / f"{name}-{n}.jsonl").read_bytes() for n in (1, 2)]
        result[name] |= {"equal": files[0] == files[1], "equal_scores": bool(np.array_equal(*values))}
    return result


def main() -> int:
    """Run with one process and with two, compare, and write the record."""
    parser = arguments(__doc__.splitlines()[0], list(SHAPES))
    parser.add_argument("--data", type=Path, required=True, help="folder with public sets as jsonl")
    parser.add_argument("--model", type=Path, help="folder of a model instead of random weights")
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer; the demo's without one")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="what is done")
    parser.add_argument("--repeats", type=int, default=3, help="how often each part is done")
    parser.add_argument("--worker", help="what the started processes are told")
    options = parser.parse_args()
    if options.worker:
        work(options)
        return 0
    found: dict[int, dict[str, Any]] = {}
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for n in (2, 1):
            seconds = launched(n, options, folder)
            path = folder / f"found-{n}.json"
            if path.is_file():
                found[n] = json.loads(path.read_text()) | {"in_all": seconds}
                print(f"{n} processes: {found[n]}", flush=True)
            results |= {"runs": found}
            write_record(f"launched-{options.shape}-{options.device}", options.out, results=results)
        if len(found) == 2:
            results["compared"] = compared(folder, found)
            print(results["compared"], flush=True)
    path = write_record(f"launched-{options.shape}-{options.device}", options.out, results=results)
    print(f"record: {path}")
    return 0 if len(found) == 2 else 1


if __name__ == "__main__":
    raise SystemExit(main())
