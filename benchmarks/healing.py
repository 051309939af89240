"""Healing against the plain Trainer, side by side in one run: tokens a second, peak memory, losses.

    python benchmarks/healing.py --device cuda --shape llama-8b   # one H200: about three minutes
    python benchmarks/healing.py --device cpu --shape tiny        # two CPU cores: half a minute

LoRA of rank 8 on every linear layer, the same batches, the same first weights, every step logged. Weights and
tokens are random and made on the device, so nothing is downloaded; the texts use few of the tokens, so there
is something to learn. The targets are the project's own.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import LLAMA_8B, TINY, Checks, arguments, random_llama, run_and_record
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from workbench.healing.adapters import lora_targets, new_adapter
from workbench.healing.config import HealingConfig
from workbench.healing.heal import heal
from workbench.healing.order import training_order
from workbench.healing.restoring import deprecations_muted


@dataclass(frozen=True)
class Shape:
    """A model and the sizes of the work."""

    model: dict[str, int]  # of the configuration
    batch: int
    length: int
    steps: int
    warm_up: int  # steps before the clock starts
    rounds: int
    compared: int  # steps whose losses are compared with those of float32


SHAPES = {
    "llama-8b": Shape(
        model=LLAMA_8B,
        batch=8,
        length=512,
        steps=16,
        warm_up=5,
        rounds=2,
        compared=10,
    ),
    "tiny": Shape(
        model=TINY,
        batch=8,
        length=64,
        steps=10,
        warm_up=3,
        rounds=1,
        compared=8,
    ),
}


def numbers_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose words are the numbers of its tokens."""
    words = WordLevel({str(token): token for token in range(vocabulary)}, unk_token="0")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="0")


def random_text(number: int, vocabulary: int, length: int) -> str:
    """Return a text of random tokens, of few kinds."""
    few = np.random.default_rng(0).choice(vocabulary, 200, replace=False)
    return " ".join(map(str, np.random.default_rng(number).choice(few, length)))


class Bench:
    """One random model and what is measured on it."""

    def __init__(self, shape: Shape, device: str) -> None:
        self.shape, self.device = shape, device
        self.model: Any = build(shape, device)
        vocabulary = shape.model["vocab_size"]
        self.tokenizer = numbers_tokenizer(vocabulary)
        self.texts = [random_text(k, vocabulary, shape.length) for k in range(shape.batch * shape.steps)]
        self.config = HealingConfig(
            rank=8,
            learning_rate=1e-3,
            max_steps=shape.steps,
            batch_size=shape.batch,
            micro_batch_size=shape.batch,
            max_length=shape.length,
            save_steps=10**6,
            concatenate=False,
            compiled=device == "cuda",
        )
        self.checks = Checks()

    def ours(
        self, on_step: Callable[[dict[str, Any]], None] | bool = False, **changes: Any
    ) -> dict[str, Any]:
        """Heal, and say how fast and with how much memory."""
        with tempfile.TemporaryDirectory() as folder, peak() as memory:
            config = replace(self.config, **changes)
            log = heal(
                self.model,
                self.tokenizer,
                self.texts,
                config=config,
                out=Path(folder) / "a",
                progress=on_step,
            ).log
        return self.outcome(log["loss"], log["seconds"], memory)

    def plain(self, micro: int | None = None, exact: bool = False) -> dict[str, Any]:
        """The same work as the Trainer does it by itself; exact: in float32, the steps that are compared."""
        from peft import LoraConfig

        config, shape = self.config, self.shape
        micro = micro or shape.batch
        samples = [self.tokenizer(text)["input_ids"] for text in self.texts]
        order = training_order([shape.length] * len(samples), len(samples), shape.batch, config.seed)
        rows = [{"input_ids": torch.tensor(samples[k]), "labels": torch.tensor(samples[k])} for k in order]
        lora = LoraConfig(r=config.rank, lora_alpha=2 * config.rank, task_type="CAUSAL_LM", **self.targets())
        clock = Clock(last=shape.compared if exact else shape.steps)
        with tempfile.TemporaryDirectory() as folder, peak() as memory, deprecations_muted():
            options = TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=micro,
                gradient_accumulation_steps=shape.batch // micro,
                max_steps=shape.steps,
                learning_rate=config.learning_rate,
                lr_scheduler_type="cosine",
                bf16=self.device == "cuda" and not exact,
                seed=config.seed,
                use_cpu=self.device == "cpu",
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                remove_unused_columns=False,
            )
            # the first weights of the adapter are rounded like the model's, so they are made first
            with new_adapter(self.model, lora, config.seed) as peft, exact_weights(self.model, exact):
                trainer = InOrder(peft, options, train_dataset=rows, callbacks=[clock])
                trainer.remove_callback(PrinterCallback)
                trainer.train()
                del trainer
        return self.outcome(clock.losses, clock.seconds, memory)

    def targets(self) -> dict[str, Any]:
        return {"target_modules": lora_targets(self.model, "all-linear")["target_modules"]}

    def outcome(self, losses: Any, seconds: Any, memory: dict[str, float]) -> dict[str, Any]:
        first, seconds = self.shape.warm_up, np.asarray(seconds, dtype=float)
        worked = self.shape.batch * self.shape.length * (len(seconds) - first)
        steps = np.diff(seconds[first - 1 :])
        return {
            "tokens_per_second": worked / (seconds[-1] - seconds[first - 1]),
            "median_step_seconds": float(np.median(steps)),
            "first_step_seconds": float(seconds[0]),
            "losses": [float(loss) for loss in losses],
            **memory,
        }

    def speed(self) -> dict[str, Any]:
        """The Trainer and ours in turns; the best round of each counts."""
        runs: dict[str, list[dict[str, Any]]] = {"plain": [], "ours": []}
        for _ in range(self.shape.rounds):
            runs["plain"].append(self.plain())
            runs["ours"].append(self.ours())
            print({name: round(found[-1]["tokens_per_second"]) for name, found in runs.items()}, flush=True)
        best = {name: max(found, key=lambda run: run["tokens_per_second"]) for name, found in runs.items()}
        plain, ours = best["plain"], best["ours"]
        ratio = ours["tokens_per_second"] / plain["tokens_per_second"]
        if self.device == "cuda":
            self.checks.add("tokens a second, ours / plain Trainer", ratio, 1.5, most=False)
            self.checks.add("peak memory, ours / plain", ours["peak_gib"] / plain["peak_gib"], 1.0)
        return {"runs": runs, "ratio": ratio, "losses": self.losses(plain, ours)}

    def losses(self, plain: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
        """How far each is from the losses of float32: what bfloat16 costs, and whether ours costs more."""
        reference = self.plain(micro=max(1, self.shape.batch // 2), exact=True)["losses"]
        away = {
            "plain": largest_gap(plain["losses"], reference),
            "ours": largest_gap(ours["losses"], reference),
        }
        away["ours from plain"] = largest_gap(ours["losses"], plain["losses"][: self.shape.compared])
        print(f"largest difference of a loss from float32: {away}", flush=True)
        self.checks.add(
            "difference from the losses of float32, ours / plain",
            away["ours"] / max(away["plain"], 1e-5),
            1.5,
        )
        return {"float32": reference, **away}

    def parts(self) -> dict[str, Any]:
        """What each part of it brings."""
        changes: dict[str, dict[str, Any]] = {
            "not compiled": {"compiled": False},
            "chunks of 4096": {"loss_chunk": 4096},
            "gradient checkpointing": {"gradient_checkpointing": True},
        }
        found = {name: self.ours(**change) for name, change in changes.items()}
        for name, run in found.items():
            print(f"{name:24} {run['tokens_per_second']:9.0f} tokens/s, {run['peak_gib']:.1f} GiB")
            run.pop("losses")
        return found

    def where_time_goes(self) -> dict[str, Any]:
        """Kernels of two steps, and how long the GPU was idle between them."""
        from torch.profiler import ProfilerActivity, profile

        tracer = profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU])
        began = {}

        def on_step(row: dict[str, Any]) -> None:
            if row["step"] == self.shape.warm_up:
                tracer.start()
                began["at"] = time.perf_counter()
            if row["step"] == self.shape.warm_up + 3:
                began["seconds"] = time.perf_counter() - began["at"]
                tracer.stop()

        self.ours(on_step)
        kernels = [e for e in tracer.key_averages() if str(e.device_type).endswith("CUDA")]
        kernels.sort(key=lambda event: -event.self_device_time_total)
        busy = sum(event.self_device_time_total for event in kernels) / 1e6
        print(f"three steps: {began['seconds']:.3f} s, of which kernels {busy:.3f} s")
        table = [
            {"kernel": e.key[:90], "ms_a_step": e.self_device_time_total / 3e3, "calls": e.count / 3}
            for e in kernels[:30]
        ]
        for row in table:
            print(f"{row['ms_a_step']:8.2f} ms {row['calls']:7.1f} x  {row['kernel']}")
        return {"seconds_a_step": began["seconds"] / 3, "busy_a_step": busy / 3, "kernels": table}

    def four_bits(self) -> dict[str, Any]:
        """QLoRA: the same shape with 4-bit weights (nf4, double quantization)."""
        gc.collect()
        quantize_(self.model)
        fits = self.ours(gradient_checkpointing=True, compiled=False, max_steps=self.shape.warm_up + 5)
        print(f"nf4, checkpointed: {fits['tokens_per_second']:.0f} tokens/s, {fits['peak_gib']:.1f} GiB")
        if self.device == "cuda":
            self.checks.add("nf4 with gradient checkpointing: peak memory in GiB", fits["peak_gib"], 24.0)
        return fits


class InOrder(Trainer):
    """The Trainer, its rows in the order given."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Clock(TrainerCallback):
    """The loss of every step and when it was known."""

    def __init__(self, last: int) -> None:
        self.started, self.seconds, self.losses, self.last = time.perf_counter(), [], [], last

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs:
            self.seconds.append(time.perf_counter() - self.started)
            self.losses.append(logs["loss"])
            control.should_training_stop = state.global_step >= self.last


class peak:
    """How much memory was in use at most, weights included, and beyond what was there before."""

    def __enter__(self) -> dict[str, float]:
        self.found: dict[str, float] = {"peak_gib": float("nan"), "extra_gib": float("nan")}
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        return self.found

    def __exit__(self, *_: Any) -> None:
        if torch.cuda.is_available():
            most = torch.cuda.max_memory_allocated()
            self.found |= {"peak_gib": most / 2**30, "extra_gib": (most - self.before) / 2**30}


def largest_gap(one: list[float], other: list[float]) -> float:
    n = min(len(one), len(other))
    return float(np.abs(np.array(one[:n]) - np.array(other[:n])).max())


@contextmanager
def exact_weights(model: Any, wanted: bool) -> Iterator[None]:
    """Hold the same weights in float32 for a while, if wanted; the way back is exact."""
    kinds = [(parameter, parameter.dtype) for parameter in model.parameters() if wanted]
    for parameter, _ in kinds:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in kinds:
            parameter.data = parameter.data.to(dtype)


def build(shape: Shape, device: str) -> Any:
    """Make the model on the device."""
    return random_llama(shape.model, device, max_position_embeddings=8192, attn_implementation="sdpa")


def quantize_(model: Any) -> None:
    """Give every linear layer of the decoder 4-bit weights, as ``load_model(quantization="nf4")`` does."""
    import bitsandbytes as bnb

    for layer in model.model.layers:
        for name, module in list(layer.named_modules()):
            if not isinstance(module, torch.nn.Linear):
                continue
            small = bnb.nn.Linear4bit(
                module.in_features,
                module.out_features,
                bias=False,
                compute_dtype=model.dtype,
                compress_statistics=True,
                quant_type="nf4",
            )
            weight = module.weight.data
            small.weight = bnb.nn.Params4bit(
                weight, requires_grad=False, quant_type="nf4", compress_statistics=True
            )
            parent, _, last = name.rpartition(".")
            setattr(layer.get_submodule(parent), last, small.to(weight.device))
    model.is_loaded_in_4bit = True  # what peft asks for


def main() -> int:
    """Run the benchmark and write its record."""
    parser = arguments(__doc__.splitlines()[0], list(SHAPES))
    parser.add_argument(
        "--profile", action="store_true", help="also each part alone, and which kernels take the time"
    )
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    bench = Bench(shape, options.device)
    sections: dict[str, Callable[[], dict[str, Any]]] = {"speed": bench.speed}
    if options.profile:
        sections |= {"where time goes": bench.where_time_goes, "parts": bench.parts}
    if find_spec("bitsandbytes") is not None:  # not every GPU machine has it
        sections["four bits"] = bench.four_bits
    name = f"healing-{options.shape}-{options.device}"
    config = {"device": options.device, "shape": options.shape, **asdict(shape), **asdict(bench.config)}
    return run_and_record(name, options, sections, bench.checks, config=config)


if __name__ == "__main__":
    raise SystemExit(main())
