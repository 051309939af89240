"""IteRABRe and what it is compared with on a real model: SmolLM2-135M-Instruct, from 30 to 20 layers.

    python benchmarks/iterate_real.py --model FOLDER --data FOLDER --out FOLDER --method iterate --seed 0
    python benchmarks/iterate_real.py --out FOLDER --collect
    python benchmarks/iterate_real.py --model FOLDER --data FOLDER --out FOLDER --small   # minutes on a CPU

Each method and seed is a process of its own, so that several share one GPU (``--micro`` and ``--eval-batch``
bound what each takes of it); frames are written whole as they are made, and a process that is cut or started
again goes on. ``--data`` holds the public sets as jsonl files and
``c4.jsonl``. Recovery reads C4, since the training split of WikiText-2 is not in the folder, and never the
test split that perplexity is measured on. All methods see the same texts, in the same order for a seed; the
layers are chosen on the paper's ten sentences (block influence, distances and damage too).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from measuring import RECORDS, commit, machine, versions

import workbench as wb
from workbench.distances.blocks import format_layers
from workbench.healing.adapters import as_variant
from workbench.healing.config import HealingConfig
from workbench.recovery.baselines import choose_layers, laco_for
from workbench.recovery.iterate import CALIBRATION, iterate, iteration_variants
from workbench.recovery.recover import recover
from workbench.runs.variant import Variant

METHODS = (
    "base",
    "iterate",
    "direct",
    "direct-long",
    "shortgpt",
    "gro",
    "damage",
    "laco-equation",
    "laco-published",
)
SUITES = [
    "arc_challenge",
    "arc_easy",
    "hellaswag",
    "copa",
    "piqa",
    "blimp",
    "race",
    "winogrande",
    "boolq",
    "mmlu",
]
MULTILINGUAL = ["xwinograd", "xnli"]
#: tasks whose subtasks the figures show, and the items of each that they are scored on
GROUPS = ["blimp", "mmlu"]

#: settings of a trial without a GPU
SMALL = {"rows": 8, "updates": 1, "batch": 4, "micro": 2, "length": 32, "limit": 4, "quick": 2, "articles": 1}
SMALL |= {"reserve": 1.0, "eval_batch": 8}


class Study:
    """One method and seed: its model, texts, and the frames it writes."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.end = given, time.monotonic() + given.seconds
        self.folder = given.out / f"{given.method}-{given.seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        dtype = "bfloat16" if given.device == "cuda" else "float32"
        self.model, self.tokenizer = wb.load_model(str(given.model), dtype=dtype, device=given.device)
        self.name = self.model._source["id"] if hasattr(self.model, "_source") else str(given.model)
        self.depth = wb.number_of_layers(self.model)
        if given.small:
            given.target, given.depths = self.depth - 2, [self.depth - 2]
        self.context = min(1024, self.model.config.max_position_embeddings)
        told = {"machine": machine(), "versions": versions(), "commit": commit()}
        told |= {"config": {name: str(value) for name, value in sorted(vars(given).items())}}
        (self.folder / "about.json").write_text(json.dumps(told, indent=1) + "\n")
        self.texts = wb.load_texts(given.data / given.texts, n=None, seed=0)[: given.rows]
        self.config = HealingConfig.preset(
            "iterabre",
            seed=given.seed,
            max_length=given.length,
            max_steps=given.updates,
            batch_size=given.batch,
            micro_batch_size=min(given.micro or given.batch, given.batch),
            save_steps=10**6,
            compiled=False,
        )

    def left(self) -> float:
        """Return the seconds left."""
        return self.end - time.monotonic()

    def note(self, **told: Any) -> None:
        """Write what was done into the folder, a line each."""
        told |= {"method": self.given.method, "seed": self.given.seed, "left": round(self.left())}
        print(json.dumps(told), flush=True)
        with (self.folder / "notes.jsonl").open("a") as file:
            file.write(json.dumps(told) + "\n")

    def score(self, variant: Variant, phase: str, *, full: bool) -> None:
        """Measure one state, once: perplexity, then the suites while there is time."""
        about = {
            "method": self.given.method,
            "seed": self.given.seed,
            "phase": phase,
            "layers": self.depth - len(variant.removed),
            "removed": format_layers(variant.removed),
        }
        limit = self.given.limit if full else self.given.quick
        suites = [*SUITES, *MULTILINGUAL] if full else SUITES
        for task in ["wikitext2", *(suites if limit else [])]:
            items = 0 if task == "wikitext2" else max(1, limit // 20) if task in GROUPS else limit
            path = self.folder / f"{about['layers']}-{phase}-{task}-{items}.csv"
            if path.is_file() or self.left() < 0:
                continue
            begun = time.monotonic()
            with as_variant(self.model, variant, run=self.folder):
                found = self._measured(task, items)
            if len(found):
                took = time.monotonic() - begun
                whole(path, found.assign(**about, limit=items, seconds=took))

    def _measured(self, task: str, limit: int) -> pd.DataFrame:
        asked: Any = {"data": self.given.data, "progress": False, "batch_size": self.given.eval_batch}
        if task == "wikitext2":
            return wb.corpus_perplexity(self.model, self.tokenizer, n=self.given.articles, **asked)
        try:
            asked |= {"n_shot": 0, "limit": limit, "max_length": self.context, "missing": "skip"}
            return wb.evaluate(self.model, self.tokenizer, [task], **asked)
        except ValueError as error:
            self.note(failed=task, error=str(error)[:200])
            return pd.DataFrame()

    def recovered(self, name: str, removed: Any, config: HealingConfig, **how: Any) -> str:
        """Recover a state, and return its adapter's folder."""
        healed = recover(
            self.model,
            self.tokenizer,
            self.texts,
            removed=removed,
            config=config,
            out=self.folder / name,
            progress=False,
            **how,
        )
        whole(self.folder / f"{name}.log.csv", healed.log)
        row = healed.log.iloc[-1]
        self.note(recovered=name, tokens=int(row["tokens"]), train_seconds=float(row["seconds"]))
        return name

    def run(self) -> None:
        """Do what the method says."""
        method = self.given.method
        if method == "base":
            self.score(Variant("base", self.name), "base", full=True)
        elif method == "iterate":
            self.iterate()
        elif method.startswith("laco"):
            self.laco(method.partition("-")[2])
        else:
            depths = self.given.depths if method in ("direct", "direct-long") else self.given.depths[:1]
            for depth in depths:
                self.at_once(method, depth)

    def iterate(self) -> None:
        """Score the paper's depth first, then every state as long as there is time."""
        target, out = self.given.target, self.folder / "iterate"
        done = pd.DataFrame()
        for depth in range(self.depth - 1, target - 1, -1):
            if (
                self.left() < self.given.reserve
                and not (out / f"iteration-{self.depth - depth:02d}").is_dir()
            ):
                self.note(stopped_before=depth)
                break
            asked: Any = {"target_layers": depth, "config": self.config, "out": out, "progress": False}
            done = iterate(self.model, self.tokenizer, self.texts, **asked)
            whole(self.folder / "iterations.csv", done)
            whole(self.folder / "iterate.log.csv", wb.recovery_log(out))  # of iterations before a cut too
            self.note(layers=depth, order=str(done["order"].iloc[-1]))
            for variant in iteration_variants(done, model=self.name, folder="iterate")[-2:]:
                phase = variant.name.partition("-")[2]
                variant = replace(variant, name=f"v{variant.name}")
                self.quickly(variant, phase)
        variants = iteration_variants(done, model=self.name, folder="iterate")
        asked_depth = self.given.depths[0]
        for variant in variants:
            if variant.name == f"{asked_depth}-P+R":
                self.score(variant, "P+R", full=True)
        if self.given.seed == 0:
            for variant in variants:
                self.score(variant, variant.name.partition("-")[2], full=False)

    def quickly(self, variant: Variant, phase: str) -> None:
        """Measure the perplexity of one state."""
        kept, self.given.quick = self.given.quick, 0
        self.score(variant, phase, full=False)
        self.given.quick = kept

    def at_once(self, method: str, depth: int) -> None:
        """Remove layers at once, measure, recover once, measure."""
        chosen = "similarity" if method.startswith("direct") else method
        texts = list(CALIBRATION)
        removed = choose_layers(self.model, self.tokenizer, texts, target_layers=depth, method=chosen)
        self.note(chosen=chosen, layers=depth, order=" ".join(map(str, removed)))
        config = self.config
        if method == "direct-long":
            config = replace(config, max_steps=self.given.updates * (self.depth - depth))
        name = f"at-{depth}"
        adapter = self.recovered(name, removed, config)
        full = depth == self.given.depths[0]
        self.score(Variant(f"{name}-R", self.name, removed=removed, adapter=adapter), "P+R", full=full)
        if self.given.seed == 0 and method != "direct-long":
            self.score(Variant(name, self.name, removed=removed), "P", full=full)

    def laco(self, merging: str) -> None:
        """Search LaCo's settings for the depth, measure, recover, measure."""
        held_out = self.texts[:16]
        asked: Any = {"target_layers": self.given.depths[0], "merging": merging, "held_out": held_out}
        one = kept(
            self.given.out / f"laco-{merging}.pkl",  # the search is the same for every seed
            lambda: laco_for(self.model, self.tokenizer, list(CALIBRATION), **asked),
        )
        self.note(merges=str(one.merges), layers=self.depth - len(one.removed))
        whole(self.folder / "steps.csv", one.steps)
        how: Any = {"merges": one.merges, "merging": merging}
        adapter = self.recovered("recovered", one.removed, self.config, **how)
        self.score(one.variant("laco-R", model=self.name, adapter=adapter), "P+R", full=True)
        if self.given.seed == 0:
            self.score(one.variant("laco", model=self.name), "P", full=True)


def whole(path: Path, frame: pd.DataFrame) -> None:
    """Write a frame whole or not at all, so that a cut process does not take a half for done."""
    temporary = path.with_name(f".{path.name}")
    frame.to_csv(temporary, index=False)
    os.replace(temporary, path)


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """Return what is kept in a file of our own, or make and keep it."""
    if not path.is_file():
        pd.to_pickle(make(), temporary := path.with_name(f".{path.name}"))
        os.replace(temporary, path)
    return pd.read_pickle(path)


def collect(out: Path, folder: Path | None) -> None:
    """Merge what every method and seed wrote into a dated folder of the records."""
    found = [pd.read_csv(path) for path in sorted(out.glob("*-*/[0-9]*-*-*.csv"))]
    if not found:
        raise SystemExit(f"{out} holds no scores yet")
    scores = pd.concat(found, ignore_index=True)
    scores = scores[scores["parent"].isna() & scores["metric"].isin(["word_perplexity", "acc", "acc_norm"])]
    keys = ["method", "seed", "phase", "layers", "task", "metric"]
    scores = scores.sort_values("limit").drop_duplicates(keys, keep="last").sort_values(keys)
    folder = folder or RECORDS / f"{datetime.now(UTC):%Y-%m-%d}-iterate-smollm2"
    folder.mkdir(parents=True, exist_ok=True)
    columns = [*keys, "value", "stderr", "n", "limit", "removed"]
    scores[columns].to_csv(folder / "scores.csv", index=False, float_format="%.6g")
    steps = [json.loads(line) for path in sorted(out.glob("*/notes.jsonl")) for line in path.open()]
    steps = [{name: value for name, value in step.items() if name != "left"} for step in steps]
    place = folder / "record.json"  # notes on what it lacks are written by hand, and stay
    kept_notes = json.loads(place.read_text()).get("notes", []) if place.is_file() else []
    about = [json.loads(path.read_text()) for path in sorted(out.glob("*/about.json"))]
    told = {"benchmark": "iterate", "notes": kept_notes, "steps": steps, "about": about[:1]}
    place.write_text(json.dumps(told, indent=1) + "\n")
    print(f"{folder}: {len(scores)} scores")


def main() -> None:
    """Run one method and seed, or merge what is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--method", choices=METHODS, default="iterate")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="one after the other")
    parser.add_argument("--collect", action="store_true")
    parser.add_argument("--record", type=Path, help="folder of the record")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=480.0, help="no part begins after so many")
    parser.add_argument("--reserve", type=float, default=90.0, help="seconds kept for the scores of iterate")
    parser.add_argument("--texts", default="c4.jsonl", help="of the data folder")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--updates", type=int, default=30, help="of one recovery; 61: an epoch of 2,000 rows")
    parser.add_argument("--batch", type=int, default=32, help="sequences an update")
    parser.add_argument("--micro", type=int, help="sequences at once, where processes share a GPU")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--target", type=int, default=20)
    parser.add_argument("--depths", type=int, nargs="+", default=[22, 26, 20], help="the first: all suites")
    parser.add_argument(
        "--limit", type=int, default=600, help="items of a suite; of a group a twentieth each"
    )
    parser.add_argument("--quick", type=int, default=100, help="the same for each state of iterate, or 0")
    parser.add_argument("--articles", type=int, help="of WikiText-2 test; all by default")
    parser.add_argument("--eval-batch", type=int, default=32)
    parser.add_argument("--small", action="store_true", help="one layer, few rows and items: a trial")
    given = parser.parse_args()
    if given.small:
        vars(given).update(SMALL)
    if given.collect:
        collect(given.out, given.record)
        return
    for seed in given.seed:
        Study(argparse.Namespace(**vars(given) | {"seed": seed})).run()


if __name__ == "__main__":
    main()
