"""One step of recovery against two separate models with everything materialised: seconds and memory.

    python benchmarks/recovery.py --device cuda --shape llama-8b   # one H200: about 90 seconds
    python benchmarks/recovery.py --device cpu --shape tiny        # two CPU cores: some seconds

Random weights made on the device, a quarter of the layers left out, LoRA of rank 32 on every linear layer,
the paper's loss on ``batch x length`` random tokens, forward and backward. The plain way beside it is what
one would write: a teacher and a student each with weights of its own, eager attention, every hidden state
(the last one after the norm, as transformers gives it), every attention matrix and all logits kept. The
targets are the project's own: memory at most 1.3 x the weights plus what one forward and backward of the
student alone needs, time at most 0.6 x the plain way's.
"""

from __future__ import annotations

import copy
import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from healing import build
from measuring import LLAMA_8B, TINY, arguments, write_record
from peft import get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch.nn.functional import mse_loss

from workbench.healing.adapters import new_adapter
from workbench.healing.config import HealingConfig
from workbench.healing.heal import lora_config
from workbench.healing.losses import summing_loss
from workbench.healing.restoring import deprecations_muted
from workbench.models.hooks import compiled_layers
from workbench.models.layers import kept_layers
from workbench.pruning.removal import removal_changes, two_states
from workbench.recovery.attention import Seen, attention_error, error_and_gradients, probabilities
from workbench.recovery.loss import PAPER, Distillation


@dataclass(frozen=True)
class Shape:
    """A model and the sizes of the work."""

    model: dict[str, int]
    batch: int
    length: int
    removed: int
    rank: int
    steps: int


SHAPES = {
    "llama-8b": Shape(LLAMA_8B, batch=4, length=512, removed=8, rank=32, steps=4),
    "tiny": Shape(
        TINY | {"num_hidden_layers": 8},
        batch=2,
        length=64,
        removed=2,
        rank=4,
        steps=2,
    ),
}


class Bench:
    """The model, its batch, and the record that grows as parts are done."""

    def __init__(self, shape: Shape, device: str, seconds: float, out: Any) -> None:
        self.shape, self.device, self.out = shape, device, out
        self.end, self.parts = time.monotonic() + seconds, {}
        self.model = build(shape, device)
        self.removed = list(range(shape.model["num_hidden_layers"] // 2, shape.model["num_hidden_layers"]))
        self.removed = self.removed[: shape.removed]
        ids = torch.randint(shape.model["vocab_size"], (shape.batch, shape.length), device=device)
        places = torch.arange(ids.numel(), device=device).view_as(ids)[:, :-1].flatten()
        self.batch: dict[str, Any] = {
            "input_ids": ids,
            "positions": places,
            "targets": ids[:, 1:].flatten(),
            "lengths": torch.full((shape.batch,), shape.length, device=device),
        }
        self.tokens = ids.numel()

    def part(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Run a part while there is time, and write the record."""
        if time.monotonic() > self.end:
            self.parts[name] = {"skipped": "no time left"}
        else:
            begun = time.monotonic()
            try:
                self.parts[name] = work()
            except Exception as error:  # the others' numbers must not be lost
                self.parts[name] = {"error": f"{type(error).__name__}: {error}"[:400]}
            self.parts[name]["part_seconds"] = round(time.monotonic() - begun, 1)
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
        print(name, json.dumps(self.parts[name]), flush=True)
        write_record("recovery", self.out, shape=self.shape.__dict__, parts=self.parts, checks=self.checks())

    def checks(self) -> list[dict[str, Any]]:
        """Hold what is there against the targets."""
        found = []
        ours = [
            self.parts[name] for name in ("ours", "ours_compiled") if "seconds" in self.parts.get(name, {})
        ]
        plain, alone = self.parts.get("plain", {}), self.parts.get("student_alone", {})
        if ours and "seconds" in plain:
            ratio = min(one["seconds"] for one in ours) / plain["seconds"]
            found.append({"what": "step / plain step", "value": ratio, "target": 0.6, "met": ratio <= 0.6})
        if ours and alone.get("peak_gib"):
            ratio = min(one["peak_gib"] for one in ours) / alone["peak_gib"]
            found.append({"what": "peak / student alone", "value": ratio, "target": 1.3, "met": ratio <= 1.3})
        return found

    def timed(self, step: Callable[[], Any], steps: int | None = None) -> dict[str, Any]:
        """Return the least seconds of a step, its peak memory in all, and what one step gave."""
        cuda = self.device == "cuda"
        step()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(steps or self.shape.steps):
            if cuda:
                torch.cuda.synchronize()
            begun = time.perf_counter()
            value = step()
            if cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begun)
        found: dict[str, Any] = {"seconds": min(times), "all_seconds": times, "loss": float(value)}
        found["tokens_per_second"] = self.tokens / min(times)
        if cuda:
            found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return found

    def mixed(self) -> torch.autocast:
        """Return the precision that the Trainer computes in."""
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.device == "cuda")

    @contextmanager
    def student(
        self, weights: dict[str, float] | None, *, compiled: bool = False
    ) -> Iterator[Callable[[], Any]]:
        """Yield one step of the student: recovery's loss, or for None the loss on the tokens alone."""
        config = HealingConfig.preset("iterabre", rank=self.shape.rank)
        with ExitStack() as stack:
            whole = stack.enter_context(two_states(removal_changes(self.model, self.removed)))
            stack.enter_context(deprecations_muted())
            kept = kept_layers(self.model)
            lora = lora_config(self.model, config)
            if weights is not None:
                objective = Distillation(self.model, whole, kept, weights=weights)
            peft = stack.enter_context(new_adapter(self.model, lora, 0))
            if weights is None:
                stack.enter_context(summing_loss(peft, chunk=1024))
            else:
                stack.enter_context(objective.acts(peft, chunk=1024, compiled=compiled))
            stack.enter_context(disable_input_dtype_casting(peft, active=self.device == "cuda"))
            if compiled:
                stack.enter_context(compiled_layers(self.model, dynamic=False))
            peft.train()
            batch = dict(self.batch)
            if weights is None:
                del batch["lengths"]

            def step() -> Any:
                peft.zero_grad()
                with self.mixed():
                    loss = peft(**batch) / self.tokens
                loss.backward()
                if weights is not None:
                    self.terms = (objective.seen.pop() / self.tokens).tolist()
                return loss.detach()

            yield step

    def ours(self, compiled: bool) -> dict[str, Any]:
        """Return recovery's step as the package does it."""
        with self.student(dict(PAPER), compiled=compiled) as step:
            return self.timed(step) | {"terms": dict(zip(PAPER, self.terms, strict=True))}

    def alone(self) -> dict[str, Any]:
        """Return a forward and backward of the student, on the loss of its tokens."""
        with self.student(None) as step:
            return self.timed(step)

    def plain(self) -> dict[str, Any]:
        """Return the same step with two models of their own, everything kept."""
        teacher = copy.deepcopy(self.model).eval().requires_grad_(False)
        student = copy.deepcopy(self.model)
        kept = [layer for layer in range(len(student.model.layers)) if layer not in self.removed]
        student.model.layers = torch.nn.ModuleList(student.model.layers[layer] for layer in kept)
        student.config.num_hidden_layers = len(kept)
        for place, layer in enumerate(student.model.layers):
            layer.self_attn.layer_idx = place
        for model in (teacher, student):
            model.set_attn_implementation("eager")
        with deprecations_muted():
            lora = lora_config(student, HealingConfig.preset("iterabre", rank=self.shape.rank))
            torch.manual_seed(0)
            peft = get_peft_model(student, lora)
        ids = self.batch["input_ids"]
        asked = {"output_hidden_states": True, "output_attentions": True, "use_cache": False}

        def step() -> Any:
            peft.zero_grad()
            with self.mixed():
                with torch.no_grad():
                    theirs = teacher(input_ids=ids, **asked)
                ours = peft(input_ids=ids, **asked)
                loss = mse_loss(ours.logits.float(), theirs.logits.float())
                for place, layer in enumerate(kept):
                    pair = (ours.hidden_states[place + 1], theirs.hidden_states[layer + 1])
                    loss = loss + mse_loss(pair[0].float(), pair[1].float())
                    pair = (ours.attentions[place], theirs.attentions[layer])
                    loss = loss + mse_loss(pair[0].float(), pair[1].float())
            loss.backward()
            return loss.detach()

        return self.timed(step, 2)

    def attention(self, length: int, way: str) -> dict[str, Any]:
        """Return the attention term of 8 layers alone, at once, or from matrices that are all kept."""
        heads, groups = self.shape.model["num_attention_heads"], self.shape.model["num_key_value_heads"]
        width, rows = self.shape.model["hidden_size"] // heads, self.shape.batch
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float32

        def states(n: int) -> torch.Tensor:
            return torch.randn(rows, n, length, width, device=self.device, dtype=dtype)

        pairs = []
        for _ in range(8 if self.device == "cuda" else 2):
            two = [Seen(states(heads), states(groups), width**-0.5, None, None) for _ in range(2)]
            pairs.append([two[0]._replace(query=two[0].query.requires_grad_()), two[1]])
        work = torch.compile(error_and_gradients, dynamic=True) if way == "compiled" else None

        def one(student: Seen, teacher: Seen) -> torch.Tensor:
            if way != "plain":
                return attention_error(student, teacher, [length] * rows, work)
            scale = 2 * length**2 / (length * (length + 1))  # pairs that can be seen, not all
            square = (probabilities(student) - probabilities(teacher)).square()
            return square.mean(dim=(1, 2, 3)).sum() * length * scale

        def step() -> Any:
            loss = torch.stack([one(*pair) for pair in pairs]).sum()
            loss.backward()
            return loss.detach()

        before = torch.cuda.memory_allocated() / 2**30 if self.device == "cuda" else 0.0
        found = self.timed(step)
        if self.device == "cuda":
            found["extra_gib"] = found["peak_gib"] - before
        return found


def main() -> None:
    """Measure part after part; the record is whole after each."""
    parser = arguments(__doc__.splitlines()[0], list(SHAPES))
    parser.add_argument("--seconds", type=float, default=85.0, help="no part begins after so many")
    given = parser.parse_args()
    bench = Bench(SHAPES[given.shape], given.device, given.seconds, given.out)
    bench.part("student_alone", bench.alone)
    bench.part("ours", lambda: bench.ours(False))
    bench.part("plain", bench.plain)
    for way in ("fused", "plain"):
        for length in (bench.shape.length, 4 * bench.shape.length):
            bench.part(
                f"attention_{way}_{length}", lambda length=length, way=way: bench.attention(length, way)
            )
    if given.device == "cuda":
        bench.part("ours_compiled", lambda: bench.ours(True))
        bench.part("attention_compiled", lambda: bench.attention(bench.shape.length, "compiled"))


if __name__ == "__main__":
    main()
