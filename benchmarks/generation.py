"""New tokens a second: the static decoder against ``generate``, and batches against one prompt at a time.

On a GPU: a random model of the Llama-3.1-8B shape in bfloat16, 256 prompts of 128 tokens, 128 new ones, no
early end. On the CPU: the demo model rewrites its own word problems.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

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

from workbench.generation.decoder import StaticDecoder, why_not_static
from workbench.models.hooks import COMPILE_FROM

SHAPES: dict[str, dict[str, Any]] = {
    "llama-8b": {
        "model": LLAMA_8B,
        "rows": 256,
        "prompt": 128,
        "new": 128,
        "wanted": 15000,
    },
    "tiny": {
        "model": {
            "vocab_size": 311,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        "rows": 8,
        "prompt": 12,
        "new": 16,
        "wanted": None,
    },
}
#: of the CPU part: prompts, prompts a batch, new tokens, which prompts are also asked alone, wanted ratio
CPU = {"prompts": 256, "batch": 128, "new": 96, "alone_every": 8, "wanted": 15}


class Bench:
    """One random model, and what it generates in how long."""

    def __init__(self, shape: dict[str, Any], device: str) -> None:
        self.shape, self.device, self.checks = shape, device, Checks()
        self.model = random_llama(shape["model"], device)

    def prompts(self, ragged: bool = False) -> list[list[int]]:
        numbers = torch.Generator().manual_seed(1)
        full = self.shape["prompt"]
        lengths = [full - (row * 7 % (full // 2) if ragged else 0) for row in range(self.shape["rows"])]
        vocabulary = self.shape["model"]["vocab_size"]
        return [torch.randint(vocabulary, (length,), generator=numbers).tolist() for length in lengths]

    @torch.no_grad()
    def plain(self, rows: list[list[int]], new: int) -> list[list[int]]:
        ids = torch.tensor(rows, device=self.device)
        output = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        return output[:, ids.shape[1] :].tolist()

    def speed(self) -> dict[str, Any]:
        """All engines on the same prompts; the first call of each, which prepares, is timed by itself."""
        new, rows = self.shape["new"], self.prompts()
        found: dict[str, Any] = {"why not": why_not_static(self.model, self.shape["prompt"] + new)}
        answers: dict[str, list[list[int]]] = {}
        tokens = len(rows) * new
        for name, compiled in (("static", False), ("static, layers compiled", True)):
            decoder = StaticDecoder(self.model, ends=[], pad=0, compiled=compiled)
            with decoder.ready():
                first = measured(lambda d=decoder: d(rows, new))
                again = side_by_side({name: lambda d=decoder: d(rows, new)}, repeats=3)[name]
                uneven = self.prompts(ragged=True)
                decoder(uneven, new)  # compiles once more, for any length
                ragged = measured(lambda d=decoder, rows=uneven: d(rows, new))
            answers[name] = again["result"]
            found[name] = numbers(again) | {
                "first_seconds": first["seconds"],
                "tokens_per_second": tokens / again["seconds"],
                "ragged_tokens_per_second": tokens / ragged["seconds"],
            }
        plain = measured(lambda: self.plain(rows, new))
        answers["generate"] = plain["result"]
        found["generate"] = numbers(plain) | {"tokens_per_second": tokens / plain["seconds"]}
        best = found["static, layers compiled"]["tokens_per_second"]
        if self.shape["wanted"]:
            self.checks.add("new tokens a second, layers compiled", best, self.shape["wanted"], most=False)
        found["compared with generate"] = best / found["generate"]["tokens_per_second"]
        found["same first tokens"] = {name: _same(answers[name], answers["generate"]) for name in answers}
        return found

    def exactness(self) -> dict[str, Any]:
        """Teacher-forced: how far the logits of the decoder's own tokens are from the plain forward's."""
        new, rows = min(16, self.shape["new"]), self.prompts()[:32]
        answers = self.plain(rows, new)
        gaps = {"generate": max(self._regret(row, answer) for row, answer in zip(rows, answers, strict=True))}
        for name, compiled in (("static", False), ("static, layers compiled", True)):
            decoder = StaticDecoder(self.model, ends=[], pad=0, compiled=compiled)
            with decoder.ready():
                answers = decoder(rows, new)
            gaps[name] = max(self._regret(row, answer) for row, answer in zip(rows, answers, strict=True))
        # rounding decides near ties: generate, in a batch, differs from one row alone just so
        worst = max(gaps[name] for name in ("static", "static, layers compiled"))
        self.checks.add("largest regret of a chosen token, in logits", worst, 2 * gaps["generate"])
        return gaps

    @torch.no_grad()
    def _regret(self, row: list[int], answer: list[int]) -> float:
        """Return by how many logits the plain forward prefers its own choice to the decoder's, at most."""
        ids = torch.tensor([row + answer], device=self.device)
        logits = self.model(input_ids=ids).logits[0, len(row) - 1 : -1].float()
        chosen = logits.gather(1, torch.tensor(answer, device=self.device)[:, None])[:, 0]
        return float((logits.max(dim=1).values - chosen).max())


def _same(answers: list[list[int]], reference: list[list[int]]) -> float:
    """Return the mean share of tokens before the first that differs: bf16 noise decides near ties."""
    shares = []
    for answer, wanted in zip(answers, reference, strict=True):
        differ = [k for k, (a, b) in enumerate(zip(answer, wanted, strict=True)) if a != b]
        shares.append((differ[0] if differ else len(wanted)) / len(wanted))
    return sum(shares) / len(shares)


def on_the_cpu(checks: Checks) -> dict[str, Any]:
    """The demo model rewrites word problems: a batch by either engine, against one prompt at a time."""
    import workbench as wb

    model, tokenizer = wb.load_model("demo", device="cpu")
    examples = wb.load_instructions("demo-math", n=CPU["prompts"], seed=0)
    template = wb.rewrite_template(model)
    rows = examples.to_dict("records")
    prompts = [wb.chat_prompt(tokenizer, wb.rewrite_message(template, row)) for row in rows]

    def generated(batch: int, engine: str, every: int = 1) -> list[str]:
        settings = {"max_new_tokens": CPU["new"], "batch_size": batch, "engine": engine, "progress": False}
        return wb.generate_responses(model, tokenizer, prompts[::every], **settings)["response"].tolist()

    every = CPU["alone_every"]
    ways = {
        "one at a time": lambda: generated(1, "transformers", every),
        "batch, generate": lambda: generated(CPU["batch"], "transformers"),
        "batch, static": lambda: generated(CPU["batch"], "static"),
    }
    generated(CPU["batch"], "static")
    runs = side_by_side(ways, repeats=2)
    alone = runs.pop("one at a time")
    each = alone["seconds"] / len(alone["result"])
    found: dict[str, Any] = {"one at a time": numbers(alone) | {"prompts": len(alone["result"])}}
    for name, run in runs.items():
        same = sum(a == b for a, b in zip(run["result"][::every], alone["result"], strict=True))
        faster = each / (run["seconds"] / len(prompts))
        found[name] = numbers(run) | {"speed_up": faster, "same": same / len(alone["result"])}
    best = found["batch, static"]["speed_up"]
    checks.add("CPU: one at a time / batch", best, CPU["wanted"], most=False)
    return found


def main(options: argparse.Namespace) -> int:
    """Measure, print and record."""
    if options.device == "cuda" or options.shape == "tiny":
        bench = Bench(SHAPES[options.shape], options.device)
        checks = bench.checks
        sections = {"speed": bench.speed, "exactness": bench.exactness}
    else:
        checks = Checks()
        sections = {"demo model": lambda: on_the_cpu(checks)}
    name = f"generation-{options.shape if options.device == 'cuda' else 'demo'}-{options.device}"
    config = SHAPES[options.shape] if options.device == "cuda" else CPU
    return run_and_record(name, options, sections, checks, config=config, compile_from=COMPILE_FROM)


if __name__ == "__main__":
    sys.exit(main(arguments(__doc__ or "", list(SHAPES)).parse_args()))
