"""The mechanics of drafting and merging at the Llama-3.1-8B shape, random weights, bfloat16.

Drafting: the acceptance is forced (seeded), so that what is measured is the decoder and not the draft. Each
speed-up stands beside theory: tokens a round / (k c + v), with the cost c of a draft step and v of a call
that reads k + 1 tokens measured in the same run; and beside transformers' assisted generation. Merging:
seconds and memory of SLERP over two state dicts, and over two rank-8 adapters of all linear layers.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from typing import Any

import torch
from measuring import LLAMA_8B, Checks, arguments, measured, numbers, random_llama, write_record

import workbench as wb
from workbench.generation.decoder import StaticDecoder, why_not_static
from workbench.merging.slerp import merged_pair
from workbench.merging.variants import ends_of as of_variant
from workbench.models.layers import decoder_layers
from workbench.runs.run import open_run
from workbench.runs.variant import Variant
from workbench.speculation.decoder import DraftDecoder, Drafting
from workbench.speculation.rule import theory_speed_up, tokens_per_call

TINY = {
    "vocab_size": 311,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SHAPES: dict[str, dict[str, Any]] = {
    # layers of the drafts; (rows, draft length) of what is measured, the most telling first
    "llama-8b": {
        "model": LLAMA_8B,
        "drafts": (8, 26),
        "prompt": 32,
        "new": 192,
        "cases": ((1, 3), (1, 5), (8, 3), (1, 1), (1, 8), (32, 3), (8, 5)),
    },
    "tiny": {"model": TINY, "drafts": (2, 6), "prompt": 8, "new": 24, "cases": ((1, 3), (4, 2))},
}
FORCED = 0.8


class Bench:
    """One random model, its drafts, and a clock."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.shape, self.device = SHAPES[options.shape], options.device
        self.options, self.begun = options, time.perf_counter()
        self.checks = Checks()
        self.results: dict[str, Any] = {}
        self.model = random_llama(self.shape["model"], self.device)
        self.depth = self.shape["model"]["num_hidden_layers"]

    def left(self) -> float:
        return float(self.options.seconds - (time.perf_counter() - self.begun))

    def keep(self, name: str, value: dict[str, Any]) -> None:
        """Keep a result, on disk too, as soon as it is there."""
        self.results[name] = value
        shown = {key: round(one, 4) if isinstance(one, float) else one for key, one in value.items()}
        print(f"[{time.perf_counter() - self.begun:5.1f} s] {name}: {shown}", flush=True)
        write_record(
            f"speculation-{self.options.shape}-{self.device}", self.options.out, forced=FORCED,
            config=self.shape, results=self.results, checks=self.checks,
        )  # fmt: skip

    def prompts(self, rows: int) -> list[list[int]]:
        made = torch.Generator().manual_seed(1)
        vocabulary = self.shape["model"]["vocab_size"]
        return [
            torch.randint(vocabulary, (self.shape["prompt"],), generator=made).tolist() for _ in range(rows)
        ]

    def draft(self, layers: int) -> Any:
        """Return what gives the draft of the first so many layers, on the same weights."""
        variant = Variant(f"first-{layers}", "random", removed=range(layers, self.depth))
        return wb.draft_view(self.model, variant)

    def timed(self, target: Any, draft: Any, how: Drafting, rows: int) -> dict[str, float]:
        """Return seconds, rounds and tokens of a batch; set up by a first call."""
        prompts, new = self.prompts(rows), self.shape["new"]
        with DraftDecoder(target, draft, how).ready() as decoder:
            first = measured(lambda: decoder(prompts, new))
            run = measured(lambda: decoder(prompts, new))
        found = run["result"]
        rounds = max(len(one.accepted) for one in found)
        return {
            "seconds": run["seconds"],
            "set_up_seconds": first["seconds"] - run["seconds"],
            "tokens": sum(len(one.tokens) for one in found),
            "rounds": rounds,
            "accepted": sum(map(sum, (one.accepted for one in found))),
            "proposed": sum(map(sum, (one.proposed for one in found))),
            "per_round": run["seconds"] / rounds,
        }

    def mechanics(self) -> None:
        """Each case: plain decoding, reading k + 1 tokens, and each draft, against theory."""
        self.keep("why not static", {"reason": why_not_static(self.model, 400)})
        plain: dict[int, dict[str, float]] = {}
        alone: dict[tuple[int, int], dict[str, float]] = {}
        for rows, k in self.shape["cases"]:
            if self.left() < 12:
                self.keep(f"batch {rows}, draft length {k}", {"left_out": "no time"})
                continue
            if rows not in plain:
                plain[rows] = self.timed(self.model, None, Drafting(0), rows)
                self.keep(f"plain, batch {rows}", plain[rows] | self.fast_plain(rows))
            verify = self.timed(self.model, None, Drafting(k, forced=0.0), rows)
            for layers in self.shape["drafts"]:
                with self.draft(layers) as draft:
                    if (rows, layers) not in alone:
                        alone[rows, layers] = self.timed(draft, None, Drafting(0), rows)
                    run = self.timed(self.model, draft, Drafting(k, forced=FORCED, seed=1), rows)
                self.compared(rows, k, layers, plain[rows], verify, alone[rows, layers], run)

    def compared(self, rows: int, k: int, layers: int, plain: Any, verify: Any, alone: Any, run: Any) -> None:
        step = plain["per_round"]
        cost, reading = alone["per_round"] / step, verify["per_round"] / step
        per_round = run["tokens"] / rows / run["rounds"]
        speed = plain["seconds"] / plain["tokens"] * run["tokens"] / run["seconds"]
        theory = float(theory_speed_up(per_round, k, cost, reading))
        name = f"{layers} of {self.depth} layers, batch {rows}, draft length {k}"
        ideal = float(theory_speed_up(tokens_per_call(FORCED, k), k, cost))
        ratio = speed / theory
        met = 0.9 <= ratio <= 1.1
        self.checks.append({"what": name, "value": ratio, "target": "0.9 to 1.1", "met": met})
        self.keep(
            name,
            {"speed_up": speed, "theory": theory, "measured / theory": ratio, "leviathan": ideal}
            | {"cost": cost, "verify": reading, "tokens_per_round": per_round, "target_step_ms": step * 1e3}
            | {"expected_tokens_per_round": float(tokens_per_call(FORCED, k))}
            | {name: run[name] for name in ("seconds", "tokens", "rounds", "set_up_seconds")},
        )

    def fast_plain(self, rows: int) -> dict[str, float]:
        """The decoder of ``generate_responses`` on the same prompts."""
        prompts, new = self.prompts(rows), self.shape["new"]
        decoder = StaticDecoder(self.model, ends=[], pad=0)
        with decoder.ready():
            decoder(prompts, new)
            run = measured(lambda: decoder(prompts, new))
        return {"static_decoder_seconds": run["seconds"]}

    @torch.no_grad()
    def assisted(self) -> None:
        """transformers: plain ``generate``, and assisted by a draft that is the target: it accepts all."""
        ids = torch.tensor(self.prompts(1), device=self.device)
        new = self.shape["new"] // 4
        settings: Any = {"attention_mask": torch.ones_like(ids), "max_new_tokens": new, "do_sample": False}
        settings |= {"min_new_tokens": new, "pad_token_id": 0}
        self.model.generation_config.eos_token_id = None
        self.model.generate(input_ids=ids, **settings | {"max_new_tokens": 4, "min_new_tokens": 4})
        plain = measured(lambda: self.model.generate(input_ids=ids, **settings))
        ours = self.timed(self.model, None, Drafting(0), 1)
        found = {"generate_seconds": plain["seconds"], "tokens": new}
        found["ours_plain_tokens_per_second"] = ours["tokens"] / ours["seconds"]
        for layers in (*self.shape["drafts"], self.depth):
            with self.draft(layers) as draft:
                draft.generation_config.eos_token_id = None
                draft.generation_config.num_assistant_tokens = 3
                draft.generation_config.num_assistant_tokens_schedule = "constant"
                draft.generation_config.assistant_confidence_threshold = 0.0
                run = measured(lambda d=draft: self.model.generate(ids, assistant_model=d, **settings))
                with DraftDecoder(self.model, draft, Drafting(3)).ready() as decoder:
                    decoder(ids.tolist(), new)
                    own = measured(lambda d=decoder: d(ids.tolist(), new))
            done = own["result"][0]
            found[f"assisted_{layers}_seconds"] = run["seconds"]
            found[f"ours_{layers}_seconds"] = own["seconds"]
            found[f"ours_{layers}_accepted"] = sum(done.accepted) / max(1, sum(done.proposed))
            found[f"same_output_{layers}"] = run["result"][0, ids.shape[1] :].tolist() == done.tokens
        self.keep("assisted generation of transformers, batch 1, draft length 3", found)

    @torch.no_grad()
    def merging(self) -> None:
        """SLERP of two whole state dicts, and of two adapters on one base."""
        first = {name: one.detach() for name, one in self.model.state_dict().items()}
        made = torch.Generator(self.device).manual_seed(2)
        second = {
            name: one + 0.02 * torch.randn(one.shape, generator=made, device=one.device, dtype=one.dtype)
            for name, one in first.items()
        }
        run = measured(lambda one=first, other=second: wb.slerp(one, other, 0.5))
        size = sum(one.numel() * one.element_size() for one in first.values()) / 2**30
        self.keep("slerp of two state dicts", numbers(run) | {"gib_of_one": size})
        del second, run
        if self.left() < 12:
            return
        with tempfile.TemporaryDirectory() as folder:
            runs = open_run("bench", root=folder)
            removed = range(24 * self.depth // 32, 30 * self.depth // 32)
            for targets, write in (("all-linear", False), (["q_proj", "v_proj"], True)):
                told = {"targets": str(targets), "removed": str(list(removed))}
                ends = [self._adapter(runs, seed, removed, targets) for seed in (0, 1)]
                merge = self._written if write else self._merged
                run = measured(lambda merge=merge, ends=ends, runs=runs: merge(runs, ends))
                name = f"merge of two rank-8 adapters, {'written' if write else 'not written'}"
                self.keep(name, numbers(run) | told | run["result"])

    def _written(self, runs: Any, ends: list[Variant]) -> dict[str, Any]:
        wb.merge_variants(self.model, *ends, [0.5], run=runs)
        frame = runs.read("merged/merged-slerp-0.5.csv")
        files = runs.folder.rglob("tensors.safetensors")
        written = sum(file.stat().st_size for file in files) / 2**30
        return {"tensors": len(frame), "linear": int(frame["linear"].sum()), "gib": written}

    def _merged(self, runs: Any, ends: list[Variant]) -> dict[str, Any]:
        """Compute every merged tensor and let go of it."""
        with wb.without_layers(self.model, ends[0].removed):
            sides = [of_variant(self.model, end, runs) for end in ends]
            numbers = 0
            for name in sides[0]:
                pair = [side[name](torch.float32) for side in sides]
                numbers += merged_pair(*pair, 0.5).tensor.bfloat16().numel()
        return {"tensors": len(sides[0]), "gib": 2 * numbers / 2**30}

    def _adapter(self, runs: Any, seed: int, removed: Any, which: Any) -> Variant:
        """Write an adapter as a training would, its matrices random."""
        from peft import LoraConfig

        from workbench.healing.adapters import lora_targets, new_adapter
        from workbench.healing.records import write_record as write_adapter_record
        from workbench.models.identity import describe_model

        name = f"adapter-{seed}"
        folder = runs.path(f"adapters/{name}")
        with wb.without_layers(self.model, removed):
            here = describe_model(self.model)
            targets = lora_targets(self.model, which)
            with new_adapter(self.model, LoraConfig(r=8, **targets), seed) as wrapper:
                torch.manual_seed(seed)
                for key, parameter in wrapper.named_parameters():
                    if "lora_B" in key:
                        parameter.data.normal_(std=0.02)
                wrapper.save_pretrained(str(folder))
            kept = list(wb.kept_layers(self.model))
        write_adapter_record(folder, {"kept_layers": kept, "model": here})
        return runs.save_variant(Variant(name, "random", removed=removed, adapter=f"adapters/{name}"))


def main(options: argparse.Namespace) -> int:
    """Measure, print and record."""
    bench = Bench(options)
    bench.model._source = {"id": "random"}
    assert len(decoder_layers(bench.model)) == bench.depth
    for part in options.parts:
        getattr(bench, part)()
    bench.checks.show()
    return 0


if __name__ == "__main__":
    parser = arguments(__doc__ or "", list(SHAPES))
    parser.add_argument("--seconds", type=float, default=100, help="begin nothing new after so long")
    parser.add_argument("--parts", nargs="+", default=["assisted", "merging", "mechanics"])
    sys.exit(main(parser.parse_args()))
