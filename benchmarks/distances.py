"""Time, memory and numbers of the distance measures against the plain way, side by side in one run.

    python benchmarks/distances.py --device cuda --shape llama-8b   # one H200: about three minutes
    python benchmarks/distances.py --device cpu --shape demo        # two CPU cores: about a minute

Weights and tokens are random and made on the device, so nothing is downloaded. The targets are the project's
own; the table at the end is also in the record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from measuring import (
    LLAMA_8B,
    Checks,
    arguments,
    measured,
    numbers,
    random_llama,
    run_and_record,
    side_by_side,
)

from workbench.distances.angular import angular_distances, block_angles
from workbench.distances.influence import removal_similarity
from workbench.distances.stability import mean_distances
from workbench.models.layers import decoder_forward
from workbench.pruning.removal import without_layers


@dataclass(frozen=True)
class Shape:
    """A model and the sizes of the work."""

    model: dict[str, int]  # of the configuration
    texts: int
    length: int
    batch: int
    few: tuple[int, int]  # texts x tokens where compiling would not pay
    removal: tuple[tuple[int, int, float | None], ...]  # texts x tokens, wanted speed-up
    scaling_length: int
    scaling_texts: tuple[int, int, int]


SHAPES = {
    "llama-8b": Shape(
        model=LLAMA_8B,
        texts=128,
        length=4096,
        batch=4,
        few=(32, 1024),
        removal=((10, 32, 4.5), (16, 512, 1.9)),
        scaling_length=2048,
        scaling_texts=(8, 16, 32),
    ),
    "demo": Shape(
        model={
            "vocab_size": 2048,
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 16,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
        },
        texts=32,
        length=256,
        batch=8,
        few=(16, 256),
        removal=((10, 32, None), (16, 64, None)),
        scaling_length=128,
        scaling_texts=(8, 16, 32),
    ),
}


class Bench:
    """One random model and what is measured on it."""

    def __init__(self, shape: Shape, device: str) -> None:
        self.shape, self.device = shape, device
        self.model = build(shape, device)
        self.checks = Checks()

    def tokens(self, texts: int, length: int, seed: int = 0) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return list(torch.randint(self.shape.model["vocab_size"], (texts, length), generator=generator))

    @torch.no_grad()
    def bare(self, texts: list[torch.Tensor], batch: int) -> None:
        """The plain eager decoder forward over the same batches: no head, no hook."""
        decoder = decoder_forward(self.model)
        for first in range(0, len(texts), batch):
            decoder(input_ids=torch.stack(texts[first : first + batch]).to(self.device), use_cache=False)

    def angles(self, texts: list[torch.Tensor], batch: int, compiled: bool | None = False) -> pd.DataFrame:
        return block_angles(self.model, None, texts, batch_size=batch, compiled=compiled, progress=False)

    def full_pass(self) -> dict[str, Any]:
        """All pairs over the whole calibration set: eager, compiled the first time, compiled again."""
        shape = self.shape
        texts = self.tokens(shape.texts, shape.length)
        self.bare(texts[: shape.batch], shape.batch)
        self.angles(texts[: shape.batch], shape.batch)
        runs = {"bare": measured(lambda: self.bare(texts, shape.batch))}
        runs["eager"] = measured(lambda: self.angles(texts, shape.batch))
        if self.device == "cuda":
            runs["compiled, first call"] = measured(lambda: self.angles(texts, shape.batch, True))
            runs["bare again"] = measured(lambda: self.bare(texts, shape.batch))
            runs["compiled, second call"] = measured(lambda: self.angles(texts, shape.batch, True))
        bare = min(run["seconds"] for name, run in runs.items() if name.startswith("bare"))
        found: dict[str, Any] = {
            name: numbers(run) | {"ratio": run["seconds"] / bare} for name, run in runs.items()
        }
        self.checks.add("all pairs, eager / bare forward", found["eager"]["ratio"], 1.02)
        if self.device == "cuda":
            fast, first = runs["compiled, second call"], runs["compiled, first call"]
            memory = fast["extra_gib"] / runs["bare"]["extra_gib"]
            found["differences"] = self.differences(runs["eager"]["result"], fast["result"], texts)
            self.checks.add("all pairs, compiled / bare forward", fast["seconds"] / bare, 0.85)
            self.checks.add("the same with compilation", first["seconds"] / bare, 1.0)
            self.checks.add("extra memory, compiled / bare forward", memory, 1.1)
            gap = found["differences"]["compiled"]["distance_max"]
            self.checks.add("largest difference of a distance, compiled - eager", gap, 0.001)
        return found

    def differences(
        self, eager: pd.DataFrame, fast: pd.DataFrame, texts: list[torch.Tensor]
    ) -> dict[str, Any]:
        """How far compiled numbers are from eager ones, beside what another batch size alone changes."""
        some = min(16, len(texts))
        other = self.angles(texts[:some], max(1, self.shape.batch // 2))
        return {
            "compiled": difference(eager, fast),
            "eager_other_batch": difference(eager[eager["text"] < some].reset_index(drop=True), other)
            | {"texts": some, "batch": max(1, self.shape.batch // 2)},
        }

    def few_texts(self) -> dict[str, Any]:
        """A small calibration set, where compiling does not pay and must not happen."""
        count, length = self.shape.few
        texts = self.tokens(count, length)
        options: dict[str, Any] = {"batch_size": self.shape.batch, "progress": False}
        runs = side_by_side(
            {
                "bare": lambda: self.bare(texts, self.shape.batch),
                "pass": lambda: block_angles(self.model, None, texts, **options),
                "call": lambda: angular_distances(self.model, None, texts, **options),
            },
            repeats=5,
        )
        found = {
            name: numbers(run) | {"ratio": run["seconds"] / runs["bare"]["seconds"]}
            for name, run in runs.items()
        }
        self.checks.add(
            f"few texts ({count} x {length}), the pass / bare forward", found["pass"]["ratio"], 1.02
        )
        return found

    @torch.no_grad()
    def one_forward_each(self, texts: list[torch.Tensor]) -> np.ndarray:
        """Removal similarity the plain way: one forward pass of the whole batch for each candidate."""
        ids = torch.stack(texts).to(self.device)
        decoder = decoder_forward(self.model)
        whole = decoder.layers
        base = decoder(input_ids=ids, use_cache=False)[0].float().flatten(1)
        values = []
        try:
            for left_out in range(len(whole)):
                decoder.layers = torch.nn.ModuleList(layer for i, layer in enumerate(whole) if i != left_out)
                state = decoder(input_ids=ids, use_cache=False)[0].float().flatten(1)
                values.append(torch.cosine_similarity(base, state).double().mean().item())
        finally:
            decoder.layers = whole
        return np.array(values)

    def removal(self, count: int, length: int, wanted: float | None) -> dict[str, Any]:
        """Removal similarity: candidates that share their prefix against one forward each."""
        texts = self.tokens(count, length)

        def ours(max_tokens: int = 16384) -> np.ndarray:
            frame = removal_similarity(
                self.model, None, texts, max_length=length, max_tokens=max_tokens, progress=False
            )
            return frame["similarity"].to_numpy()

        ours()
        self.one_forward_each(texts[:1])
        runs = side_by_side(
            {"one forward each": lambda: self.one_forward_each(texts), "shared": ours},
            repeats=3 if count * length < 2000 else 2,
        )
        one_by_one = np.mean([self.one_forward_each([text]) for text in texts[:4]], axis=0)
        first_four = removal_similarity(self.model, None, texts[:4], max_length=length, progress=False)
        gap = np.abs(runs["shared"]["result"] - runs["one forward each"]["result"]).max()
        noise = np.abs(one_by_one - self.one_forward_each(texts[:4])).max()
        ratio = runs["one forward each"]["seconds"] / runs["shared"]["seconds"]
        name = f"removal similarity {count} x {length}"
        if wanted:
            self.checks.add(f"{name}: one forward each / shared", ratio, wanted, most=False)
        self.checks.add(f"{name}: largest difference of a similarity", gap, 5e-4)
        memory = {}
        if self.device == "cuda" and count * length > 4096:
            memory = {str(bound): numbers(measured(lambda b=bound: ours(b))) for bound in (8192, 32768)}
        return {name: numbers(run) for name, run in runs.items()} | {
            "speed_up": ratio,
            "largest_difference": float(gap),
            "noise_of_batching": float(noise),
            "difference_first_four": float(np.abs(first_four["similarity"] - one_by_one).max()),
            "memory_by_max_tokens": memory,
        }

    def scaling(self) -> dict[str, Any]:
        """Time against the number of texts and of layers; straight lines expected."""
        shape = self.shape
        most, depth = max(shape.scaling_texts), shape.model["num_hidden_layers"]
        texts = self.tokens(most, shape.scaling_length)

        def seconds(count: int, layers: int) -> float:
            def run() -> Any:
                return self.angles(texts[:count], shape.batch)

            with without_layers(self.model, range(layers, depth)):
                return side_by_side({"run": run}, repeats=3)["run"]["seconds"]

        by_texts = {count: seconds(count, depth) for count in shape.scaling_texts}
        depths = (depth // 4, depth // 2, depth)
        by_layers = {layers: seconds(min(16, most), layers) for layers in depths}
        found = {"texts": line(by_texts), "layers": line(by_layers)}
        for name, fit in found.items():
            self.checks.add(
                f"time against {name}: distance from a straight line", fit["worst_relative_residual"], 0.05
            )
        return found


def build(shape: Shape, device: str) -> Any:
    """Make the model on the device."""
    return random_llama(shape.model, device, max_position_embeddings=8192, attn_implementation="sdpa")


def difference(first: pd.DataFrame, second: pd.DataFrame) -> dict[str, float]:
    """Return the largest difference of single angles and of distances averaged over texts."""
    assert first[["text", "start", "size"]].equals(second[["text", "start", "size"]])
    one, two = mean_distances(first), mean_distances(second)
    return {
        "angle_max": float((first["angle"] - second["angle"]).abs().max()),
        "distance_max": float((one["distance"] - two["distance"]).abs().max()),
        "distance_mean": float(one["distance"].mean()),
    }


def line(seconds: dict[int, float]) -> dict[str, Any]:
    """Fit a straight line and say how far the worst point is from it, as a share of its time."""
    x, y = np.array(list(seconds)), np.array(list(seconds.values()))
    slope, offset = np.polyfit(x, y, 1)
    worst = float(np.abs((slope * x + offset) / y - 1).max())
    return {"seconds": seconds, "slope": slope, "offset": offset, "worst_relative_residual": worst}


def main() -> int:
    """Run the benchmark and write its record."""
    options = arguments(__doc__.splitlines()[0], list(SHAPES)).parse_args()
    shape = SHAPES[options.shape]
    bench = Bench(shape, options.device)
    sections: dict[str, Callable[[], dict[str, Any]]] = {
        "full pass": bench.full_pass,
        "few texts": bench.few_texts,
        **{
            f"removal similarity {count} x {length}": lambda c=count, n=length, w=wanted: bench.removal(
                c, n, w
            )
            for count, length, wanted in shape.removal
        },
        "scaling": bench.scaling,
    }
    name = f"distances-{options.shape}-{options.device}"
    config = {"device": options.device, "shape": options.shape, **asdict(shape)}
    return run_and_record(name, options, sections, bench.checks, config=config)


if __name__ == "__main__":
    raise SystemExit(main())
