"""Kill every kind of long stage at random moments, start it again, and compare with one that was left alone.

    python benchmarks/kills.py --kills 20
    python benchmarks/kills.py --kills 20 --out RECORD heal tune    # only these, into a record that is there

Each stage runs in a process that is forked from one with the demo model loaded, and ends by SIGKILL, SIGINT
or SIGTERM in turn. Every row and every adapter must be those of the run that was never stopped, to the bit,
and nothing hidden may be left behind. What a stage imports is imported before the fork, so that the moments
fall into its work.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from measuring import commit, write_record

import workbench as wb
from workbench.runs.files import sha256_of, write_text_atomic

SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
Stage = Callable[[Path], pd.DataFrame]


def stages() -> dict[str, Stage]:
    """Return the stages by name: each takes a folder and returns the frame that must always be the same."""
    model, tokenizer = wb.load_model("demo")
    both = (model, tokenizer)
    texts = wb.load_texts("demo-stories", n=24)
    examples = wb.load_instructions("demo-math", n=48)
    config = wb.HealingConfig(rank=4, max_steps=10, batch_size=8, learning_rate=1e-3, save_steps=2)
    grid = {"rank": [2, 4], "learning_rate": [1e-3, 3e-3]}
    variants = [wb.Variant("base", "demo"), wb.Variant("pruned", "demo", removed=(7, 8))]
    quick = {"progress": False, "batch_size": 8}

    def healed(folder: Path) -> pd.DataFrame:
        with wb.without_layers(model, [7, 8]):
            found = wb.heal(*both, examples, config=config, out=folder / "adapter", progress=False)
        digest = hashlib.sha256((found.adapter / "adapter_model.safetensors").read_bytes()).hexdigest()
        return pd.DataFrame({"loss": found.log["loss"], "adapter": digest})

    def tuned(folder: Path) -> pd.DataFrame:
        short = wb.HealingConfig(rank=4, max_steps=3, batch_size=8, learning_rate=1e-3)
        where = {"out": folder / "study", "grid": grid, "config": short, "progress": False}
        found = wb.tune(*both, examples[:40], examples[40:], **where).trials
        found = found.sort_values(["rank", "learning_rate"], ignore_index=True)
        return found[["rank", "learning_rate", "loss"]]

    def scored(folder: Path) -> pd.DataFrame:
        run = wb.open_run("kills", root=folder)
        tasks = ["demo_pairs", "demo_yes_no", "demo_facts"]
        found = wb.evaluate_variants(*both, variants, tasks, run=run, limit=40, **quick)
        return found.scores[["variant", "task", "metric", "value", "n"]]

    def angles(folder: Path) -> pd.DataFrame:
        return wb.open_run("kills", root=folder).frame("angles.csv", wb.block_angles, *both, texts, **quick)

    def distilled(folder: Path) -> pd.DataFrame:
        return wb.self_distill(*both, examples, out=folder / "rows.jsonl", max_new_tokens=128, **quick)

    def answered(temperature: float, folder: Path) -> pd.DataFrame:
        out = folder / "answers.jsonl"
        return wb.respond(*both, examples, out=out, temperature=temperature, max_new_tokens=96, **quick)

    def iterated(folder: Path) -> pd.DataFrame:
        short = wb.HealingConfig.preset(
            "iterabre", batch_size=4, max_length=64, rank=2, max_steps=4, save_steps=2
        )
        where = {"out": folder / "iterate", "config": short, "target_layers": 14, "progress": False}
        return wb.iterate(*both, texts[:8], calibration=texts[8:12], **where)

    def merged(folder: Path) -> pd.DataFrame:
        run, ends = wb.open_run("kills", root=folder), []
        short = wb.HealingConfig(rank=2, max_steps=2, batch_size=4, learning_rate=1e-3, max_length=64)
        for name in ("one", "two"):
            ends.append(wb.Variant(name, "demo", removed=(7, 8), adapter=name))
            if not any(variant.name == name for variant in run.variants()):
                seeded = replace(short, seed=len(ends))
                with wb.without_layers(model, [7, 8]):
                    wb.heal(*both, examples[:8], config=seeded, out=run.path(name), progress=False)
                run.save_variant(ends[-1])
        found = wb.merge_variants(model, *ends, ts=(0.25, 0.5), run=run)
        return pd.DataFrame(
            {"name": [one.name for one in found], "sha256": [*map(tensors, found, [run] * 2)]}
        )

    def tensors(variant: wb.Variant, run: Any) -> str:
        return run.digest(f"{variant.adapter}/tensors.safetensors")

    def drafted(folder: Path) -> pd.DataFrame:
        asked = [wb.chat_prompt(tokenizer, text) for text in examples["instruction"][:6]]
        short = {"draft_lengths": (2, 4), "max_new_tokens": 48, "progress": False}
        run, drafts = wb.open_run("kills", root=folder), [wb.early_exit(model, 8), variants[1]]
        return run.frame("draft_rounds.jsonl", wb.draft_rounds, *both, drafts, asked, **short)

    def saved(folder: Path) -> pd.DataFrame:
        whole = copy.deepcopy(model)
        wb.prune_(whole, [7, 8])
        place = wb.save_pruned(whole, tokenizer, folder / "saved")
        names = sorted(one.name for one in place.iterdir() if one.name not in ("README.md", "pruning.json"))
        return pd.DataFrame({"file": names, "sha256": [sha256_of(place / name) for name in names]})

    def drawn(folder: Path) -> pd.DataFrame:
        run = wb.open_run("kills", root=folder)
        table = run.frame("angles.csv", wb.block_angles, *both, texts[:8], **quick)
        run.write("distances.csv", wb.mean_distances(table))
        told = wb.paper_figures(run, out=folder / "paper", formats=["csv", "html"])
        there = sorted((folder / "paper").rglob("*.csv"))
        return pd.DataFrame({"file": [one.name for one in there], "sha256": [*map(sha256_of, there)]}).assign(
            n=len(told)
        )

    return {
        "iterate": iterated,
        "merge_variants": merged,
        "draft_rounds": drafted,
        "save_pruned": saved,
        "paper_figures": drawn,
        "self_distill": distilled,
        "heal": healed,
        "generate (greedy)": partial(answered, 0.0),
        "generate (sampled)": partial(answered, 1.0),
        "run.frame(block_angles)": angles,
        "tune": tuned,
        "evaluate_variants": scored,
    }


def start(stage: Stage, folder: Path) -> int:
    """Fork a process that runs the stage and writes its frame; return its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, signal.default_int_handler)
        sys.stdout = sys.stderr = open(folder.with_suffix(".log"), "a")  # noqa: SIM115
        found = stage(folder).to_json(orient="split", double_precision=15)
        write_text_atomic(folder.with_suffix(".modules"), "\n".join(list(sys.modules)))
        write_text_atomic(folder.with_suffix(".result"), found)
        code = 0
    except KeyboardInterrupt:
        pass
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        code = 3
    os._exit(code)


def whole(stage: Stage, folder: Path) -> tuple[str, float]:
    """Run a stage undisturbed; return its result and the seconds."""
    folder.mkdir(parents=True)
    began = time.perf_counter()
    if os.waitstatus_to_exitcode(os.waitpid(start(stage, folder), 0)[1]) != 0:
        raise RuntimeError(f"the stage failed by itself: {folder.with_suffix('.log').read_text()[-2000:]}")
    return folder.with_suffix(".result").read_text(), time.perf_counter() - began


def import_like(folder: Path) -> None:
    """Import what a whole run had imported."""
    for name in folder.with_suffix(".modules").read_text().splitlines():
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def round_of(stage: Stage, folder: Path, seconds: float, kills: int, draw: random.Random) -> tuple[str, int]:
    """Start and kill at random moments, then let it end; return the result and how many kills there were."""
    folder.mkdir(parents=True)
    done = 0
    while done < kills:
        process = start(stage, folder)
        time.sleep(draw.uniform(0.02, seconds))
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            if os.waitstatus_to_exitcode(status) == 0:
                break
            return f"failed: {folder.with_suffix('.log').read_text()[-1500:]}", done
        os.kill(process, SIGNALS[done % len(SIGNALS)])
        os.waitpid(process, 0)
        done += 1
    else:
        process = start(stage, folder)
        if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) != 0:
            return f"failed: {folder.with_suffix('.log').read_text()[-1500:]}", done
    return folder.with_suffix(".result").read_text(), done


def record(table: list[dict[str, Any]], out: Path | None) -> None:
    """Write the stages so far; those of a record that is there stay, with the commit they are of."""
    kept: list[dict[str, Any]] = []
    if out and out.exists():
        before = json.loads(out.read_text())
        done = {row["stage"] for row in table}
        kept = [{"commit": before["commit"]} | row for row in before["results"]["stages"]]
        kept = [row for row in kept if row["stage"] not in done]
    write_record("kills-cpu", out, results={"stages": [*kept, *table]})


def main() -> int:
    """Run all stages, print a table, write a record; 1 when a result differed or a stage failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="of each stage, at least")
    parser.add_argument("--out", type=Path, default=None, help="a record; its other stages are kept")
    parser.add_argument("only", nargs="*", help="stages; default all")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    draw, place, table = random.Random(0), Path(tempfile.mkdtemp(prefix="kills-")), []
    there = stages()
    for name in options.only or there:
        stage = there[name]
        first, _ = whole(stage, place / name / "first")
        import_like(place / name / "first")
        expected, seconds = whole(stage, place / name / "whole")
        if first != expected:
            raise RuntimeError(f"{name} does not give the same twice, even when nothing stops it")
        row: dict[str, Any] = {"stage": name, "rounds": 0, "kills": 0, "same": 0, "different": 0, "failed": 0}
        while row["kills"] < options.kills:
            folder = place / name / str(row["rounds"])
            found, kills = round_of(stage, folder, seconds, 4, draw)
            kind = "failed" if found.startswith("failed") else "same" if found == expected else "different"
            if kind != "same":
                print(f"{name}, round {row['rounds']}: {kind}: {found[:1500]}")
            row |= {"rounds": row["rounds"] + 1, "kills": row["kills"] + kills, kind: row[kind] + 1}
        left = list((place / name).rglob(".*.tmp"))
        told = {"left_behind": len(left), "seconds": round(seconds, 2), "commit": commit()}
        table.append(row | told)
        print(pd.DataFrame(table[-1:]).to_string(index=False, header=len(table) == 1), flush=True)
        if options.out or not options.only:
            record(table, options.out)
    shutil.rmtree(place)
    return int(any(row["different"] or row["failed"] for row in table))


if __name__ == "__main__":
    sys.exit(main())
