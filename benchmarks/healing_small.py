"""Healing a small model against the plain Trainer: tokens a second over host time, and what each part brings.

    python benchmarks/healing_small.py --device cuda --shape smollm2   # one H200: about 100 seconds
    python benchmarks/healing_small.py --device cpu --shape tiny       # two CPU cores: about a minute

LoRA of rank 8 on every linear layer, batch 64, rows of the lengths of Alpaca's, the same rows in the same
order on both sides. Weights are random unless ``--model`` names a folder; texts are random and use few words,
unless ``--data`` names a folder with Alpaca as jsonl, which is then read with the model's own tokenizer.
The record is written after every part, so that a cut loses nothing: the same command with the same ``--out``
goes on. ``--micro 16 32`` sets the micro-batches of the plain loop and of TRL, where processes share a GPU.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from healing import Clock, InOrder, exact_weights, largest_gap, numbers_tokenizer, peak
from measuring import SMOLLM2, TINY, Parts, arguments, random_llama, synchronise, write_record
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainingArguments

from workbench.data.instructions import load_instructions
from workbench.healing import steps as fixed_steps
from workbench.healing.adapters import lora_targets, new_adapter
from workbench.healing.config import HealingConfig
from workbench.healing.heal import heal
from workbench.healing.restoring import deprecations_muted
from workbench.healing.samples import OrderedSamples, read_samples
from workbench.models.hooks import any_shape


@dataclass(frozen=True)
class Shape:
    """A model, and how many updates are run."""

    model: dict[str, int]
    rows: int
    batch: int
    steps: int  # of a comparison
    warm_up: int
    slow_steps: int  # of what is slow and only for its losses or a smaller micro-batch
    micro: tuple[int, ...]


SHAPES = {
    "smollm2": Shape(
        model=SMOLLM2,
        rows=2000,
        batch=64,
        steps=16,
        warm_up=3,
        slow_steps=8,
        micro=(64, 32, 16),
    ),
    "tiny": Shape(
        model=TINY,
        rows=64,
        batch=16,
        steps=4,
        warm_up=1,
        slow_steps=3,
        micro=(16, 8),
    ),
}


def random_rows(n: int, vocabulary: int) -> pd.DataFrame:
    """Rows of random words as long as Alpaca's: 20 to 500 tokens, 165 on average, half of them learned."""
    rng = np.random.default_rng(0)
    words = rng.choice(vocabulary, 200, replace=False)

    def texts(middle: float, spread: float, most: int) -> list[str]:
        lengths = np.clip(rng.lognormal(np.log(middle), spread, n), 4, most).astype(int)
        return [" ".join(map(str, rng.choice(words, length))) for length in lengths]

    frame = {"id": [f"row-{k}" for k in range(n)], "instruction": texts(50, 0.5, 180), "context": [""] * n}
    return pd.DataFrame(frame | {"reference": texts(60, 0.9, 400)})


class Bench(Parts):
    """One model, the rows, and a record that grows."""

    def __init__(self, shape: Shape, options: Any) -> None:
        super().__init__(options)
        self.shape = shape
        self.cuda = options.device == "cuda"
        self.model = self.build()
        self.tokenizer, self.rows = self.read()
        self.config = HealingConfig(rank=8, learning_rate=1e-3, batch_size=shape.batch, save_steps=10**6)
        self.config = replace(self.config, max_steps=shape.steps, max_length=512)
        self.samples, _ = read_samples(self.model, self.tokenizer, self.rows, "reference", 512)
        self.results["samples"] = self.described()
        print(self.results["samples"], flush=True)

    def read(self) -> tuple[Any, pd.DataFrame]:
        """Return a tokenizer and rows: of random words, or Alpaca's."""
        vocabulary = self.shape.model["vocab_size"]
        if not self.options.data:
            return numbers_tokenizer(vocabulary), random_rows(self.shape.rows, vocabulary)
        rows = load_instructions(self.options.data / "alpaca.jsonl").sample(self.shape.rows, random_state=0)
        return AutoTokenizer.from_pretrained(self.options.model), rows.reset_index(drop=True)

    def described(self) -> dict[str, Any]:
        lengths = [len(sample.ids) for sample in self.samples]
        learned = sum(sample.learned for sample in self.samples) / sum(lengths)
        return {"mean": float(np.mean(lengths)), "longest": max(lengths), "learned": learned}

    def build(self) -> Any:
        device, settings = (
            self.options.device,
            {"max_position_embeddings": 8192, "attn_implementation": "sdpa"},
        )
        if not self.options.model:
            return random_llama(self.shape.model, device, tie_word_embeddings=True, **settings)
        kind = torch.bfloat16 if self.cuda else torch.float32
        return AutoModelForCausalLM.from_pretrained(self.options.model, dtype=kind).to(device)

    def write(self) -> Path:
        name = f"healing-small-{self.options.shape}-{self.options.device}"
        told = {**vars(self.shape), **vars(self.config), "model_folder": bool(self.options.model)}
        return write_record(name, self.options.out, config=told, results=self.results)

    def outcome(self, seconds: Any, losses: Any, wall: float, memory: dict[str, float]) -> dict[str, Any]:
        tokens = OrderedSamples(self.samples, self.config).tokens
        first, n = self.shape.warm_up, len(seconds)
        steady = (tokens[n - 1] - tokens[first - 1]) / (seconds[n - 1] - seconds[first - 1])
        found = {"tokens_per_second": float(steady), "with_beginning": float(tokens[n - 1] / seconds[n - 1])}
        found |= {"updates": n, "call_seconds": wall, "first_update": float(seconds[0])}
        return found | {"losses": [float(loss) for loss in losses[:24]], **memory}

    def ours(self, **changes: Any) -> dict[str, Any]:
        config = replace(self.config, **changes)
        with tempfile.TemporaryDirectory() as folder, peak() as memory, fixed_seen() as seen:
            synchronise()
            began = time.perf_counter()
            place = {"out": Path(folder) / "a", "progress": False}
            log = heal(self.model, self.tokenizer, self.rows, config=config, **place).log
            synchronise()
            wall = time.perf_counter() - began
        asked, self.config = self.config, replace(self.config, max_steps=config.max_steps)
        found = self.outcome(log["seconds"].to_numpy(), log["loss"].to_numpy(), wall, memory)
        self.config = asked
        for one in seen:
            found["captured_shapes"] = [list(shape) for shape in one.graph_shapes]
            found["capture_failed"] = None if one.failure is None else str(one.failure)[:300]
        return found

    def plain(self, micro: int, n: int, *, exact: bool = False) -> dict[str, Any]:
        """The same rows in the same order as peft and the Trainer do it by themselves."""
        from peft import LoraConfig

        ordered = OrderedSamples(self.samples, self.config)
        rows = [self.samples[k] for k in ordered.places]
        targets = lora_targets(self.model, "all-linear")["target_modules"]
        lora = LoraConfig(r=8, lora_alpha=16, task_type="CAUSAL_LM", target_modules=targets)
        clock = Clock(last=n)
        with tempfile.TemporaryDirectory() as folder, peak() as memory, deprecations_muted():
            options = TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=micro,
                gradient_accumulation_steps=self.shape.batch // micro,
                max_steps=self.shape.steps,
                learning_rate=self.config.learning_rate,
                lr_scheduler_type="cosine",
                bf16=self.cuda and not exact,
                seed=self.config.seed,
                use_cpu=not self.cuda,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                remove_unused_columns=False,
            )
            with new_adapter(self.model, lora, self.config.seed) as peft, exact_weights(self.model, exact):
                began = time.perf_counter()
                trainer = InOrder(peft, options, train_dataset=rows, data_collator=padded, callbacks=[clock])
                trainer.remove_callback(PrinterCallback)
                clock.started = time.perf_counter()
                trainer.train()
                synchronise()
                wall = time.perf_counter() - began
                del trainer
        return self.outcome(clock.seconds, clock.losses, wall, memory)

    def compared(self) -> dict[str, Any]:
        """The ratio to the Trainer at its best micro-batch, and how far losses are from those of float32."""
        speeds = {name: run.get("tokens_per_second", 0) for name, run in self.results.items()}
        plain = [name for name in speeds if name.startswith("plain, micro")]
        best = max(plain, key=lambda name: speeds[name])
        found: dict[str, Any] = {"best_plain": best, "ratio": speeds["ours"] / speeds[best]}
        exact = self.results.get("plain, float32", {}).get("losses")
        for name, run in self.results.items():
            same_order = not any(word in name for word in ("float32", "warm-up", "epochs", "packed"))
            if exact and run.get("losses") and same_order:
                found[f"losses from float32: {name}"] = largest_gap(run["losses"], exact)
        return found

    def trl(self, micro: int) -> dict[str, Any]:
        """TRL's SFTTrainer on the same rows, with Liger kernels where they are installed."""
        import datasets
        from peft import LoraConfig
        from trl import SFTConfig, SFTTrainer

        ordered = OrderedSamples(self.samples, self.config)
        rows = [self.samples[k] for k in ordered.places]
        labels = [[-100] * one.n_prompt + list(one.ids[one.n_prompt :]) for one in rows]
        table = datasets.Dataset.from_dict({"input_ids": [list(one.ids) for one in rows], "labels": labels})
        targets = lora_targets(self.model, "all-linear")["target_modules"]
        clock = Clock(last=self.shape.steps)
        with tempfile.TemporaryDirectory() as folder, peak() as memory, deprecations_muted():
            options = SFTConfig(
                output_dir=folder,
                per_device_train_batch_size=micro,
                gradient_accumulation_steps=self.shape.batch // micro,
                max_steps=self.shape.steps,
                learning_rate=self.config.learning_rate,
                bf16=self.cuda,
                use_cpu=not self.cuda,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                max_length=512,
                use_liger_kernel=find_spec("liger_kernel") is not None,
                dataset_kwargs={"skip_prepare_dataset": True},
            )
            lora = LoraConfig(r=8, lora_alpha=16, task_type="CAUSAL_LM", target_modules=targets)
            with new_adapter(self.model, lora, self.config.seed) as peft:
                asked = {"train_dataset": table, "processing_class": self.tokenizer, "callbacks": [clock]}
                trainer = SFTTrainer(peft, args=options, **asked)
                began = clock.started = time.perf_counter()
                trainer.train()
                synchronise()
                wall = time.perf_counter() - began
        return self.outcome(clock.seconds, clock.losses, wall, memory)


def padded(samples: list[Any]) -> dict[str, torch.Tensor]:
    """Pad on the right, with a mask and labels, as data collators do."""
    length = max(len(sample.ids) for sample in samples)
    ids = torch.zeros(len(samples), length, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for row, sample in enumerate(samples):
        tokens = torch.tensor(sample.ids)
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
        labels[row, sample.n_prompt : len(tokens)] = tokens[sample.n_prompt :]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@contextmanager
def fixed_seen() -> Iterator[list[Any]]:
    """Give what ran an update in blocks of fixed shape, where that was done."""
    seen: list[Any] = []
    own, capture = fixed_steps.FixedSteps.__init__, fixed_steps.FixedSteps._capture

    def begin(self: Any, model: Any) -> None:
        own(self, model)
        self.graph_shapes = []
        seen.append(self)

    def noted(self: Any, model: Any, block: Any) -> None:
        capture(self, model, block)
        if tuple(block.shape) in self.graphs:
            self.graph_shapes.append(tuple(block.shape))

    fixed_steps.FixedSteps.__init__, fixed_steps.FixedSteps._capture = begin, noted
    try:
        yield seen
    finally:
        fixed_steps.FixedSteps.__init__, fixed_steps.FixedSteps._capture = own, capture
        gc.collect()


def main() -> int:
    """Run the parts that there is time for and write the record."""
    parser = arguments(__doc__.splitlines()[0], list(SHAPES))
    parser.add_argument("--model", type=Path, help="folder of a model instead of random weights")
    parser.add_argument("--data", type=Path, help="folder with Alpaca as jsonl instead of random words")
    parser.add_argument("--seconds", type=float, default=110, help="no part is begun that would take longer")
    parser.add_argument("--micro", type=int, nargs="+", help="micro-batches, the largest first")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    shape = replace(shape, micro=tuple(options.micro or shape.micro))
    bench = Bench(shape, options)
    n, asked = shape.steps, True if options.device == "cpu" else None
    epochs = 5 * shape.rows // shape.batch
    bench.part("warm-up of the machine", lambda: bench.plain(shape.micro[0], shape.warm_up + 1), 0)
    bench.part(f"plain, micro-batch {shape.micro[0]}", lambda: bench.plain(shape.micro[0], n), 0)
    bench.part("ours", lambda: bench.ours(captured=asked), 0)
    bench.part("ours, five epochs", lambda: bench.ours(max_steps=epochs), 25)
    bench.part("plain, float32", lambda: bench.plain(shape.micro[-1], shape.slow_steps, exact=True), 20)
    bench.part("ours, not captured", lambda: bench.ours(captured=False), 12)
    with patch("workbench.healing.heal.fused_layers", lambda _: nullcontext()):
        bench.part("ours, layers as they are", lambda: bench.ours(captured=asked), 12)
    bench.part("compared", bench.compared, 0)
    for micro in shape.micro[1:]:
        some = n if micro > 16 else shape.slow_steps
        bench.part(f"plain, micro-batch {micro}", lambda m=micro, k=some: bench.plain(m, k), 15)
    bench.part(
        "ours, not captured, micro-batch 16", lambda: bench.ours(captured=False, micro_batch_size=16), 15
    )
    bench.part("ours, not captured, packed", lambda: bench.ours(captured=False, packing=True), 12)
    if options.device == "cuda":
        with any_shape():  # cuDNN plans anew for each shape of a batch
            name = f"plain, micro-batch {shape.micro[0]}, no cuDNN"
            bench.part(name, lambda: bench.plain(shape.micro[0], n), 12)
        bench.part("ours, captured and compiled", lambda: bench.ours(captured=True, compiled=True), 35)
        bench.part("ours, compiled", lambda: bench.ours(captured=False, compiled=True), 35)
    if find_spec("trl") is not None:  # last: it leaves Liger's layers in the model
        for micro in shape.micro:
            bench.part(f"TRL, micro-batch {micro}", lambda m=micro: bench.trl(m), 12)
        with any_shape():
            name = f"TRL, micro-batch {shape.micro[0]}, no cuDNN"
            bench.part(name, lambda: bench.trl(shape.micro[0]), 12)
    bench.part("compared", bench.compared, 0)
    return 1 if "error" in bench.results.get("ours", {}) else 0


if __name__ == "__main__":
    raise SystemExit(main())
