"""Similarity of responses: encoding every distinct string once in batches against one string at a time.

    python benchmarks/similarity.py                # two CPU cores: about two minutes
    python benchmarks/similarity.py --device cuda

Three cases on the demo's word problems: a variant that answers every prompt otherwise, with short and with
long answers, no string twice; and three variants of which 70 % answer as the unpruned model, as the demo's
pruned variants do. The project's target: at least 5 times the speed on a CPU, values equal to 1e-6.

What bounds it: the encoder's matrix products in float32, which have to be done for every word piece of every
distinct string. ``bound s`` is their time at the speed of one large product on this machine, ``loop / bound``
the ratio that a perfect implementation of the same arithmetic would reach. Where no string occurs twice that
is below 5 on a CPU: a single string of 50 word pieces already fills its units. Only strings that are encoded
once instead of several times go beyond it. (bfloat16 would be faster, with values that differ by 1e-3.)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from measuring import arguments, measured, side_by_side, write_record

from workbench.forgetting.similarity import load_encoder, response_similarity

DEMO = Path(__file__).resolve().parents[1] / "data" / "demo"
PROMPTS = 100
KEPT = 0.7


def texts(file: str, column: str) -> list[str]:
    """Return one column of a file of the demo world."""
    return [json.loads(line)[column] for line in (DEMO / file).read_text(encoding="utf-8").splitlines()]


def frame(responses: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"id": range(len(responses)), "response": responses})


def cases() -> dict[str, tuple[pd.DataFrame, dict[str, pd.DataFrame]]]:
    """Return the base's responses and the variants' for each case."""
    solutions = texts("tasks/math.jsonl", "solution")
    terse = texts("instructions/math.jsonl", "reference")[:PROMPTS]
    base, others = solutions[:PROMPTS], solutions[PROMPTS:]
    rng = np.random.default_rng(0)
    variants = {
        f"variant {n}": frame(
            [own if rng.random() < KEPT else others[rng.integers(len(others))] for own in base]
        )
        for n in range(3)
    }
    long = [" ".join(others[n : n + 3]) for n in range(PROMPTS)]
    return {
        "one variant, all different, short": (frame(terse), {"variant": frame(others[:PROMPTS])}),
        "one variant, all different, long": (frame(base), {"variant": frame(long)}),
        f"three variants, {KEPT:.0%} as the base": (frame(base), variants),
    }


def one_at_a_time(encoder: Any, base: pd.DataFrame, variants: dict[str, pd.DataFrame]) -> np.ndarray:
    """Return the similarities as a plain loop over pairs gives them."""
    values = []
    for other in variants.values():
        for first, second in zip(base["response"], other["response"], strict=True):
            u, v = (encoder.encode(text, show_progress_bar=False).astype(float) for text in (first, second))
            values.append(u @ v / np.linalg.norm(u) / np.linalg.norm(v))
    return np.array(values)


def flops(encoder: Any, texts: list[str]) -> float:
    """Return the floating-point operations of the layers' matrix products for each text once, unpadded."""
    weights = [p for p in encoder[0].auto_model.encoder.parameters() if p.ndim == 2]
    lengths = np.array([min(len(encoder.tokenizer(text)["input_ids"]), 256) for text in texts])
    width, layers = encoder[0].auto_model.config.hidden_size, len(encoder[0].auto_model.encoder.layer)
    return 2.0 * sum(p.numel() for p in weights) * lengths.sum() + 4.0 * width * layers * (lengths**2).sum()


def product_speed(device: Any) -> float:
    """Return the floating-point operations a second of one large float32 product, the best of ten."""
    one, two = torch.randn(1024, 384, device=device), torch.randn(384, 1536, device=device)
    runs = [measured(lambda: [one @ two for _ in range(20)])["seconds"] for _ in range(10)]
    return 20 * 2 * 1024 * 384 * 1536 / min(runs)


def main() -> int:
    """Measure every case, print and record; 1 when a target is missed."""
    options = arguments(__doc__ or "", ["demo"]).parse_args()
    encoder = load_encoder(device=options.device)
    speed = product_speed(encoder.device)
    rows = []
    for name, (base, variants) in cases().items():
        strings = [*base["response"], *(text for other in variants.values() for text in other["response"])]
        response_similarity(
            base.head(4), {key: other.head(4) for key, other in variants.items()}, encoder=encoder
        )
        best = side_by_side(
            {
                "loop": lambda base=base, variants=variants: one_at_a_time(encoder, base, variants),
                "ours": lambda base=base, variants=variants: response_similarity(
                    base, variants, encoder=encoder
                ),
            },
            repeats=2,
        )
        difference = np.abs(best["ours"]["result"]["similarity"].to_numpy() - best["loop"]["result"]).max()
        rows.append(
            {
                "case": name,
                "pairs": PROMPTS * len(variants),
                "distinct strings": len(set(strings)),
                "word pieces": float(
                    np.mean([len(encoder.tokenizer(text)["input_ids"]) for text in strings])
                ),
                "loop s": best["loop"]["seconds"],
                "ours s": best["ours"]["seconds"],
                "speed-up": best["loop"]["seconds"] / best["ours"]["seconds"],
                "bound s": flops(encoder, sorted(set(strings))) / speed,
                "loop / bound": best["loop"]["seconds"] * speed / flops(encoder, sorted(set(strings))),
                "largest difference": difference,
            }
        )
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format="{:.3g}".format))
    equal = bool((table["largest difference"] < 1e-6).all())
    fast = bool(table["speed-up"].iloc[-1] >= 5)
    checks = {"values equal to 1e-6": equal, "three variants: at least 5 x": fast}
    print(checks)
    print(write_record("similarity", options.out, cases=rows, product_gflops=speed / 1e9, checks=checks))
    return 0 if equal and fast else 1


if __name__ == "__main__":
    sys.exit(main())
