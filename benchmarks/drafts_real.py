"""Merges and drafts of a small real model: acceptance with intervals, the merging path with scores.

    python benchmarks/drafts_real.py --model PATH --data FOLDER --out OUT --seconds 480
    python benchmarks/drafts_real.py --model PATH --data FOLDER --out OUT --part 24 --seed 0
    python benchmarks/drafts_real.py --model PATH --data FOLDER --out OUT --part 24 --seed 0 --late
    python benchmarks/drafts_real.py --out OUT --collect     # all parts into benchmarks/records

A part is one depth (24 or 16 of 30 layers are left, the block that angular distance on C4 picks) and one
seed: three trainings on the same number of rows (SFT on Alpaca, self-distilled on Alpaca, self-distilled on
GSM8K), SLERP between the two self-distilled ones (SDD D), a recovery by IteRABRe's distillation on C4, and
what the whole model accepts of each as a draft. `--late` does what was added last alone: the recovered draft,
and with `--speed` the wall-clock. `--part all` starts all parts as processes of their own on the GPUs and
stops them when the seconds are over; each writes its frames as it goes. `--shape small` is a trial on a CPU.
Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from parts import Part, collect, is_done, part_arguments

import workbench as wb
from workbench.recovery.recover import recover

TASKS = ["arc_easy", "hellaswag", "piqa", "boolq"]
PARTS = [(24, 0), (16, 0), (24, 1), (24, 2), (16, 1), (16, 2)]
CODE = r"(?i)\b(?:code|program|function|script|sql|python|html|css|java|javascript|regex|algorithm)\b"


@dataclass(frozen=True)
class Shape:
    """How much is measured."""

    texts: int = 64
    length: int = 1024
    rows: int = 2000
    epochs: float = 3.0
    micro: int = 64
    rewrite: int = 256  # tokens of a rewrite
    recovery: int = 512  # tokens of a text that recovery reads
    prompts: int = 80  # of each kind
    new: int = 128
    limit: int = 250  # items of a task
    timed: int = 3  # prompts of each kind that are timed


SHAPES = {"full": Shape(), "small": Shape(6, 64, 8, 1.0, 4, 24, 32, 3, 16, 4, 1)}


class Depth(Part):
    """One depth and seed: its model, its run, its frames."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(
            options, f"{options.part}-{options.seed}", SHAPES[options.shape], device=options.device
        )
        self.labels = {"layers_left": int(options.part), "seed": options.seed}
        self.run = wb.open_run("run", root=self.folder / ".work")

    def about(self) -> dict[str, Any]:
        return {**self.labels, "removed": getattr(self, "removed", [])}

    def work(self) -> None:
        """All of the part, the most telling first."""
        with self.timed("block"):
            self.removed = self.kept("block", self.block)
        pruned = self.variant("pruned")
        left = len(wb.kept_layers(self.model)) - len(self.removed)
        early = wb.early_exit(self.model, left)
        if self.options.late and not self.options.speed:
            return self.late([])
        with self.timed("rewriting Alpaca"):
            alpaca = self.kept("alpaca", lambda: self.distilled("alpaca"))
        distilled = self.healed("self-distilled", alpaca, "response")
        if self.options.late:
            return self.late([pruned, distilled, early])
        sft = self.healed("sft", alpaca, "reference")
        drafts = [pruned, sft, distilled, early]
        self.rounds(drafts)
        with self.timed("rewriting GSM8K"):
            maths = self.kept("maths", lambda: self.distilled("gsm8k_train"))
        of_maths = self.healed("self-distilled-maths", maths, "response")
        with self.timed("merging"):
            path = (0.25, 0.5, 0.75)
            merges = wb.merge_variants(self.model, distilled, of_maths, path, run=self.run)
            both = wb.merge_variants(self.model, sft, distilled, [0.5], run=self.run, name="merged-sft")
            frames = [
                self.run.read(f"{one.adapter}.csv").assign(variant=one.name) for one in (*merges, *both)
            ]
            self.write("angles", pd.concat(frames, ignore_index=True))
        drafts += [of_maths, *merges, *both]
        self.rounds(drafts)
        self.path([self.variant("base"), pruned, distilled, of_maths, sft, *merges, *both], merges)
        self.late([pruned, distilled, early])
        self.done()

    def late(self, others: list[Any]) -> None:
        """The recovered draft, and with it the wall-clock."""
        recovered = self.recovered()
        self.rounds([recovered], "rounds-recovered")
        if self.options.speed:
            self.speed([*others, recovered])

    def recovered(self) -> Any:
        """The pruned model after an epoch of IteRABRe's recovery on C4."""
        texts = wb.load_texts(self.data / "c4.jsonl", n=None, seed=0)[: self.shape.rows]
        settings: Any = {"max_length": self.shape.recovery, "batch_size": 32, "epochs": 1.0}
        settings |= {"seed": self.options.seed, "micro_batch_size": min(32, self.micro())}
        with self.timed("recovery"):
            made = recover(
                self.model,
                self.tokenizer,
                texts,
                removed=self.removed,
                config=wb.HealingConfig.preset("iterabre", **settings),
                out=self.run.path("adapters/recovered"),
                progress=False,
            )
            self.write("training-recovered", made.log.assign(variant="recovered"))
        return self.variant("recovered", "adapters/recovered")

    def block(self) -> list[int]:
        texts = wb.load_texts(self.data / "c4.jsonl", n=self.shape.texts, seed=0)
        settings: Any = {"max_length": self.shape.length, "progress": False}
        distances = wb.angular_distances(self.model, self.tokenizer, texts, **settings)
        size = wb.number_of_layers(self.model)
        row = wb.best_blocks(distances, [size - int(self.options.part)]).iloc[0]
        return list(range(int(row["start"]), int(row["start"] + row["size"])))

    def variant(self, name: str, adapter: str | None = None) -> Any:
        removed = [] if name == "base" else self.removed
        return self.run.save_variant(wb.Variant(name, self.source(), removed=removed, adapter=adapter))

    def source(self) -> str:
        return str(self.options.model)

    def distilled(self, name: str) -> pd.DataFrame:
        """The rows of a seed, rewritten by the whole model; the file's last rows are kept for prompts."""
        pool = wb.load_instructions(self.data / f"{name}.jsonl").iloc[: -4 * self.shape.prompts]
        rows = pool.sample(self.shape.rows, random_state=self.options.seed).reset_index(drop=True)
        return wb.self_distill(
            self.model,
            self.tokenizer,
            rows,
            max_new_tokens=self.shape.rewrite,
            batch_size=self.batch(256),
            progress=False,
        )

    def healed(self, name: str, rows: pd.DataFrame, column: str) -> Any:
        config = wb.HealingConfig.preset(
            "sdd", epochs=self.shape.epochs, seed=self.options.seed, micro_batch_size=self.micro()
        )
        with self.timed(f"healing, {name}"), wb.without_layers(self.model, self.removed):
            made = wb.heal(
                self.model,
                self.tokenizer,
                rows,
                response=column,
                config=config,
                out=self.run.path(f"adapters/{name}"),
                progress=False,
            )
            self.write(f"training-{name}", made.log.assign(variant=name))
        return self.variant(name, f"adapters/{name}")

    def prompts(self) -> dict[str, list[str]]:
        """Prompts that nothing was trained on, by kind."""
        n, found = self.shape.prompts, {}
        alpaca = wb.load_instructions(self.data / "alpaca.jsonl").iloc[-4 * n :]
        code = alpaca["instruction"].str.contains(CODE)
        sets = {
            "maths (GSM8K)": wb.load_instructions(self.data / "gsm8k_test.jsonl", n=n, seed=0),
            "instructions (Alpaca)": alpaca[~code].head(n),
            "open questions (Dolly)": wb.load_instructions(self.data / "dolly.jsonl", n=4 * n, seed=0),
            "code (Alpaca)": alpaca[code].head(n),
        }
        for kind, rows in sets.items():
            turns = [wb.conversation(row) for row in rows.to_dict("records")]
            texts = [wb.render_chat(self.tokenizer, one) for one in turns]
            found[kind] = [text for text in texts if len(self.tokenizer(text)["input_ids"]) <= 384][:n]
        return {kind: texts for kind, texts in found.items() if texts}

    def rounds(self, drafts: list[Any], name: str = "rounds") -> None:
        with self.timed(f"acceptance of {len(drafts)} drafts"):
            settings: Any = {
                "max_new_tokens": self.shape.new,
                "batch_size": self.batch(64),
                "progress": False,
            }
            asked = (self.model, self.tokenizer, drafts, self.prompts())
            made = partial(wb.draft_rounds, *asked, run=self.run, **settings)
            self.write(name, self.kept(f"{name}-{len(drafts)}", made))

    def path(self, variants: list[Any], merges: list[Any]) -> None:
        """Scores along the path, one variant after the other."""
        scores, items = [], []
        for variant in variants:
            with self.timed(f"scores, {variant.name}"):
                found = wb.evaluate_variants(
                    self.model,
                    self.tokenizer,
                    [variant],
                    TASKS,
                    run=self.run,
                    limit=self.shape.limit,
                    data=self.data,
                    max_length=min(1024, self.model.config.max_position_embeddings),
                    batch_size=self.options.batch or "auto",
                    progress=False,
                    n_shot=0,
                )
            scores.append(found.scores)
            items.append(found.items)
            self.write("scores", pd.concat(scores, ignore_index=True))
            kept = pd.concat(items, ignore_index=True)[
                ["variant", "task", "n_shot", "item", "metric", "value"]
            ]
            self.write("items", kept[kept["metric"].isin(["acc", "acc_norm"])])

    def speed(self, drafts: list[Any]) -> None:
        """Wall-clock beside theory."""
        with self.timed("speed"):
            few = {kind: texts[: self.shape.timed] for kind, texts in self.prompts().items()}
            settings: Any = {"run": self.run, "max_new_tokens": self.shape.new, "draft_lengths": (1, 2, 4, 8)}
            made = partial(wb.draft_speed, self.model, self.tokenizer, drafts, few, **settings)
            self.write("speed", self.kept("speed", made))


def run_all(options: argparse.Namespace) -> int:
    """Start the parts as processes, and stop them when the time is over."""
    begun, running = time.perf_counter(), []
    options.out.mkdir(parents=True, exist_ok=True)
    for number, (part, seed) in enumerate(PARTS[: options.parts]):
        command = [sys.executable, __file__, "--part", str(part), "--seed", str(seed)]
        for name in ("model", "data", "out", "shape", "device", "micro", "batch"):
            if getattr(options, name) is not None:
                command += [f"--{name}", str(getattr(options, name))]
        command += ["--speed"] if options.speed else []
        seen = {"CUDA_VISIBLE_DEVICES": str(number % options.gpus)} if options.device == "cuda" else {}
        threads = {"OMP_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "false"}
        log = (options.out / f"{part}-{seed}.log").open("w")
        environment = {**os.environ, **threads, **seen}
        running.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment))
        time.sleep(options.stagger)
    while any(one.poll() is None for one in running) and time.perf_counter() - begun < options.seconds:
        time.sleep(1)
    late = [one for one in running if one.poll() is None]
    for one in late:
        one.terminate()
    for log in sorted(options.out.glob("*.log")):
        print(f"--- {log.name}\n" + "\n".join(log.read_text().splitlines()[-25:]), flush=True)
    print(f"{len(running) - len(late)} of {len(running)} parts came to an end", flush=True)
    return int(any(one.returncode not in (0, -15) for one in running))


def together(parts: list[Path]) -> dict[str, pd.DataFrame]:
    """Return what all parts say, one below the other."""
    frames: dict[str, list[pd.DataFrame]] = {}
    for part in parts:
        for name, frame in summed_up(part).items():
            frames.setdefault(name, []).append(frame)
    return {name: pd.concat(pieces, ignore_index=True) for name, pieces in frames.items()}


def summed_up(part: Path) -> dict[str, pd.DataFrame]:
    """Return what a part says: acceptance, its comparisons, the path of merges, the speeds."""
    read = {file.name.removesuffix(".csv.gz"): pd.read_csv(file) for file in part.glob("[a-z]*.csv.gz")}
    found: dict[str, pd.DataFrame] = {}
    if whole := [read[name] for name in ("rounds", "rounds-recovered") if name in read]:
        rounds = pd.concat(whole, ignore_index=True)
        found["acceptance"] = wb.acceptance(rounds)
        found["acceptance_by_kind"] = wb.acceptance(rounds, by_kind=True)
        found["positions"] = wb.acceptance_by_position(rounds)
        there = set(rounds["draft"])
        pairs = [("pruned", "sft"), ("pruned", "self-distilled"), ("sft", "self-distilled")]
        pairs += [("pruned", "recovered"), ("recovered", "self-distilled")]
        pairs += [("self-distilled", "merged-slerp-0.5"), ("self-distilled-maths", "merged-slerp-0.5")]
        pairs = [pair for pair in pairs if set(pair) <= there]
        found["comparison"] = wb.compare_drafts(rounds, pairs)
        found["comparison_by_kind"] = wb.compare_drafts(rounds, pairs, by_kind=True)
    if "scores" in read:
        names = [*dict.fromkeys(read["scores"]["variant"])]
        columns = ["variant", "task", "metric", "n_shot", "value", "stderr", "n"]
        found["scores"] = read["scores"][columns]
        if "base" in names:
            found["recovery"] = wb.average_recovery(read["scores"], items=read["items"])
        merges = [name for name in names if name.startswith("merged-slerp")]
        ends = ["self-distilled", "self-distilled-maths"]
        if merges and set(ends) <= set(names):
            items = read["items"].assign(prompt="", target="", response="")
            found["gain"] = wb.merge_gain(items, ends, merges, scores=read["scores"])
    if "angles" in read:
        groups = read["angles"].groupby("variant", sort=False)
        measures = {"tensors": ("tensor", "size"), "linear": ("linear", "sum"), "most": ("angle", "max")}
        found["angles"] = groups.agg(**measures, mean=("angle", "mean")).reset_index()
    if "speed" in read:
        found["speed"] = wb.speed_ups(read["speed"])
    told = json.loads((part / "part.json").read_text())
    labels = {"layers_left": told["layers_left"], "seed": told["seed"]}
    return {name: frame.assign(**labels) for name, frame in found.items()}


def main() -> int:
    parser = part_arguments(__doc__)
    parser.add_argument("--parts", type=int, default=len(PARTS), help="how many parts at once")
    parser.add_argument(
        "--speed", action="store_true", help="wall-clock too, on a GPU that nothing else uses"
    )
    parser.add_argument("--late", action="store_true", help="the recovered draft, and --speed, alone")
    options = parser.parse_args()
    if options.collect:
        collect(options, "drafts", together)
        return 0
    if options.part == "all":
        return run_all(options)
    if not (options.speed or options.late) and is_done(options, f"{options.part}-{options.seed}"):
        return 0
    try:
        Depth(options).work()
    except Exception:  # the frames that are there stay; the driver reports the part
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
