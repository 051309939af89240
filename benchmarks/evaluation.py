"""Evaluation against the harness's own HFLM, side by side: seconds, and how far the answers are apart.

    python benchmarks/evaluation.py --shape llama-8b --data FOLDER --tokenizer FOLDER   # one H200: 110 s
    python benchmarks/evaluation.py --shape smollm2 --data FOLDER --model FOLDER        # one H200: 60 s
    python benchmarks/evaluation.py --device cpu --shape tiny --data FOLDER             # two CPU cores

Weights are random unless ``--model`` names a folder. The tasks are loaded once, so the clock sees prompts
being built, read and computed, on both sides. HFLM counts at its best batch size. The record is written after
every part.
"""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from measuring import LLAMA_8B, ROOT, SMOLLM2, Parts, arguments, random_llama, synchronise, write_record
from transformers import AutoModelForCausalLM, AutoTokenizer

from workbench.evaluation import harness
from workbench.evaluation.evaluate import evaluate, prepared
from workbench.evaluation.in_memory import InMemory
from workbench.evaluation.tasks import plan_tasks

SUBJECTS = ["high_school_biology", "professional_law", "philosophy", "marketing", "astronomy"]
TINY = {"vocab_size": 4096, "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 4}
TINY |= {"num_attention_heads": 6, "num_key_value_heads": 3}


@dataclass(frozen=True)
class Asked:
    """Tasks, how many items of each, examples in a prompt, HFLM's batch sizes, and the ratio aimed for."""

    tasks: list[str]
    limit: int
    shots: int
    sizes: tuple[int, ...]
    target: float


MMLU = Asked([f"mmlu_{name}" for name in SUBJECTS], 40, 5, (16, 32), 3.0)
ALL_57 = Asked(["mmlu"], 4, 5, (16,), 1.0)
HELLASWAG = Asked(["hellaswag"], 200, 0, (32, 64, 128), 1.7)
ARC = Asked(["arc_challenge"], 200, 25, (16,), 2.5)
#: SmolLM2's nine, about 600 items each
NINE = {"arc_easy": 600, "arc_challenge": 600, "hellaswag": 600, "piqa": 600, "winogrande": 600, "copa": 100}
NINE |= {"boolq": 600, "blimp": 9, "mmlu": 11}
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Asked]]] = {
    "llama-8b": (
        LLAMA_8B,
        {
            "MMLU 5-shot": MMLU,
            "HellaSwag": HELLASWAG,
            "ARC-Challenge 25-shot": ARC,
            "MMLU, all subjects": ALL_57,
        },
    ),
    "smollm2": (
        SMOLLM2 | {"tie_word_embeddings": True},
        {name: Asked([name], n, 0, (64,), 1.0) for name, n in NINE.items()},
    ),
    "tiny": (
        TINY,
        {
            "MMLU 5-shot": Asked(MMLU.tasks[:2], 10, 5, (16,), 3.0),
            "HellaSwag": Asked(["hellaswag"], 20, 0, (16,), 1.7),
            "ARC-Challenge 25-shot": Asked(["arc_challenge"], 4, 25, (4,), 2.5),
        },
    ),
}


def build(options: Any) -> tuple[Any, Any]:
    """Return model and tokenizer: of a folder, or of a shape with random weights made on the device."""
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer or options.model or ROOT / "data/demo/model")
    if options.model:
        kind = torch.bfloat16 if options.device.startswith("cuda") else torch.float32
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=kind)
        return model.to(options.device).eval(), tokenizer
    shape = dict(SHAPES[options.shape][0])
    shape["vocab_size"] = max(shape["vocab_size"], len(tokenizer))
    return random_llama(shape, options.device, max_position_embeddings=8192), tokenizer


class Bench(Parts):
    """One model, what it is asked, and a record that grows."""

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.model, self.tokenizer = build(options)
        self.length = min(8192, self.model.config.max_position_embeddings)
        self.results["built_seconds"] = time.perf_counter() - self.began

    def timed(self, lm: Any, part: dict[str, Any], asked: Asked) -> dict[str, Any]:
        """Ask a model of the harness all items, the prompts built anew."""
        harness.set_shots(part["tasks"], asked.shots or None, 1234)
        synchronise()
        began = time.perf_counter()
        with harness.untouched(self.model, self.tokenizer), harness.quiet():
            results, _ = harness.run_tasks(lm, part, limit=asked.limit, chat=False)
        synchronise()
        return {"seconds": time.perf_counter() - began, "answers": answers(results)}

    def compared(self, asked: Asked) -> dict[str, Any]:
        began = time.perf_counter()
        plan = plan_tasks(asked.tasks, asked.shots or None)
        (part,) = prepared(plan, include=None, data=self.options.data, missing="skip").tasks.values()
        found: dict[str, Any] = {"loaded_seconds": time.perf_counter() - began, "hflm": {}}
        asks: dict[str, Any] = {"max_length": self.length}
        ours = self.timed(InMemory(self.model, self.tokenizer, batch_size="auto", **asks), part, asked)
        ours = self.timed(InMemory(self.model, self.tokenizer, batch_size="auto", **asks), part, asked)
        theirs: dict[str, Any] = {}
        for size in asked.sizes:
            if theirs and self.left() < 1.5 * theirs["seconds"]:
                break
            lm = HFLM(pretrained=self.model, tokenizer=self.tokenizer, batch_size=size, **asks)
            lm.truncated, lm.asked_ahead, lm.ask_ahead = set(), nullcontext, lambda requests: None
            lm.launcher = SimpleNamespace(let_launch=lambda: None)
            run = self.timed(lm, part, asked)
            found["hflm"][size] = run["seconds"]
            if not theirs or run["seconds"] < theirs["seconds"]:
                theirs = run
        gaps = np.abs(np.array(ours["answers"]) - np.array(theirs["answers"]))
        found |= {
            "ours": ours["seconds"],
            "requests": len(gaps),
            "ratio": theirs["seconds"] / ours["seconds"],
        }
        found |= {"target": asked.target, "largest_gap": float(gaps.max()), "mean_gap": float(gaps.mean())}
        return found

    def in_all(self) -> dict[str, Any]:
        """All suites by ``evaluate``, loading and writing included: what a user waits for."""
        seconds = {}
        for name, limit in NINE.items():
            synchronise()
            began = time.perf_counter()
            settings: dict[str, Any] = {"limit": limit, "data": self.options.data, "missing": "skip"}
            settings |= {"max_length": min(1024, self.length), "batch_size": "auto", "progress": False}
            evaluate(self.model, self.tokenizer, name, **settings)
            synchronise()
            seconds[name] = time.perf_counter() - began
        return {"seconds": seconds, "in_all": sum(seconds.values())}

    def write(self) -> Path:
        name = f"evaluation-{self.options.shape}-{self.options.device}"
        told = {"shape": SHAPES[self.options.shape][0], "model_folder": bool(self.options.model)}
        told |= {"asked": {name: vars(one) for name, one in SHAPES[self.options.shape][1].items()}}
        return write_record(name, self.options.out, config=told, results=self.results)


def answers(results: dict[str, Any]) -> list[float]:
    """Return every log-likelihood, in the order of tasks, items and choices."""
    found = []
    for _, samples in sorted(results["samples"].items()):
        for sample in sorted(samples, key=lambda sample: sample["doc_id"]):
            found += [float(answer[0][0]) for answer in sample["resps"]]
    return found


def main() -> int:
    """Run the parts that there is time for and write the record."""
    parser = arguments(__doc__.splitlines()[0], list(SHAPES))
    parser.add_argument("--data", type=Path, required=True, help="folder with public sets as jsonl")
    parser.add_argument("--model", type=Path, help="folder of a model instead of random weights")
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer; the demo's without one")
    parser.add_argument("--seconds", type=float, default=115, help="no part is begun later")
    options = parser.parse_args()
    for name in ("lm_eval", "lm-eval"):
        logging.getLogger(name).setLevel(logging.ERROR)
    bench = Bench(options)
    for name, asked in SHAPES[options.shape][1].items():
        bench.part(name, lambda asked=asked: bench.compared(asked), 15 if options.shape == "llama-8b" else 3)
        if options.shape == "smollm2" and name == "mmlu":
            bench.part("in all", bench.in_all, 5)
    parts = [found for found in bench.results.values() if isinstance(found, dict)]
    return int(any("error" in found for found in parts))


if __name__ == "__main__":
    raise SystemExit(main())
