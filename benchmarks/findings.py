"""What the papers' method does to a small real model: distances, strategies, healing; one part a process.

    python benchmarks/findings.py --model PATH --data FOLDER --out OUT --gpus 2 --seconds 480
    python benchmarks/findings.py --model PATH --data FOLDER --out OUT --part healing --set alpaca --seed 0
    python benchmarks/findings.py --model PATH --data FOLDER --out OUT --shape small   # minutes on a CPU
    python benchmarks/findings.py --out OUT --collect     # frames of all parts into benchmarks/records

`--part all` starts the others as processes of their own, several on a GPU (a small model is bound by
launches, not by arithmetic), the most telling first, and stops them when the seconds are over: each part
writes its frames as it goes, so that a cut loses only what was running. `--shape small` is a trial on a CPU:
few rows, few items.

The data folder holds c4, redpajama, wikitext2_v1_valid, alpaca, dolly, gsm8k_train, gsm8k_test and the
zero-shot sets as jsonl. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
import traceback
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
from findings_frames import summed_up
from parts import Part, collect, is_done, part_arguments

import workbench as wb

SIZES = [2, 4, 6, 8, 10]
TRAINED = {"alpaca": "alpaca", "dolly": "dolly", "gsm8k": "gsm8k_train"}
SINGLE = ("arc_easy", "arc_challenge", "hellaswag", "piqa", "winogrande", "copa", "boolq")
GROUPS = ("blimp", "mmlu")
#: for every strategy and size: the sets on which this model is clearly above a guess
TELLING = ("arc_easy", "hellaswag", "piqa")
#: the block that distance and damage agree on, six of thirty layers: what is healed
HEALED = 6


@dataclass(frozen=True)
class Shape:
    """How much is measured."""

    texts: int = 128  # calibration texts a set
    length: int = 2048
    held_out: int = 48  # texts for the damage
    damage_length: int = 512
    damage_sizes: tuple[int, ...] = (1, 2, 4, 6, 8, 10)
    draws: int = 3  # random sets of layers a size
    limit: int = 600  # items of a set
    part: int = 10  # items of a paradigm of BLiMP, of a subject of MMLU
    few: int = 300  # items of a set for every strategy
    prompts: int = 100  # held out, of each kind
    new: int = 256
    epochs: float = 5.0
    micro: int = 64
    rows: int | None = None  # None: as asked
    single: tuple[str, ...] = SINGLE
    groups: tuple[str, ...] = GROUPS


SHAPES = {
    "full": Shape(),
    "small": Shape(12, 128, 4, 48, (1, 6), 1, 6, 1, 6, 4, 24, 1.0, 8, 16, ("arc_easy", "copa"), ()),
}


class Study(Part):
    """One model, one folder of data, one folder for the frames of a part."""

    def __init__(self, options: argparse.Namespace, name: str) -> None:
        super().__init__(options, name, SHAPES[options.shape], device=options.device)
        self.encoder = options.encoder or "all-MiniLM-L6-v2"

    def texts(self, name: str, n: int, skip: int = 0) -> list[str]:
        return wb.load_texts(self.data / f"{name}.jsonl", n=n, seed=0, skip=skip)

    def scores(self, variant: str, limit: int, tasks: tuple[str, ...]) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Score the model as it stands, and return its items without their texts; once."""
        found: tuple[pd.DataFrame, pd.DataFrame] = self.kept(
            f"scores-{variant}", lambda: self._scored(variant, limit, tasks)
        )
        return found

    def _scored(self, variant: str, limit: int, tasks: tuple[str, ...]) -> tuple[pd.DataFrame, pd.DataFrame]:
        parts, items = [], []
        for names, most in ((tasks, limit), (self.shape.groups, self.shape.part)):
            if not names:
                continue
            place = self.folder / f".items-{variant}.jsonl"
            parts.append(
                wb.evaluate(
                    self.model,
                    self.tokenizer,
                    list(names),
                    limit=most,
                    data=self.data,
                    items=place,
                    max_length=min(1024, self.model.config.max_position_embeddings),
                    batch_size=self.options.batch or "auto",
                    progress=False,
                )
            )
            items.append(wb.read_items(place))
            place.unlink()
        found = pd.concat(items, ignore_index=True)
        found["prompt"] = [hashlib.sha256(prompt.encode()).hexdigest()[:8] for prompt in found["prompt"]]
        found = found[found["metric"].isin(["acc", "acc_norm"])]
        return pd.concat(parts, ignore_index=True), found[
            ["task", "n_shot", "item", "metric", "value", "prompt"]
        ]


def distances(study: Study) -> None:
    """Where the sets pick, what block influence says, and what skipping really costs."""
    model, tokenizer, shape = study.model, study.tokenizer, study.shape
    sets = {"C4": "c4", "RedPajama": "redpajama", "WikiText-2": "wikitext2_v1_valid"}
    found = {}
    for name, file in sets.items():
        with study.timed(f"distances, {name}"):
            texts = study.texts(file, shape.texts)
            settings: Any = {"max_length": shape.length, "progress": False}
            made = partial(wb.block_angles, model, tokenizer, texts, **settings)
            angles = study.kept(f"angles-{name}", made)
            found[name] = wb.mean_distances(angles)
            study.write(f"distances-{name}", found[name].copy(), calibration=name)
            study.write(f"stability-{name}", wb.pick_stability(angles, SIZES), calibration=name)
    study.write("calibration", wb.calibration_ablation(found, SIZES))
    texts = study.texts("c4", shape.texts)
    with study.timed("influence and removal similarity"):
        influence = wb.block_influence(model, tokenizer, texts, max_length=shape.length, progress=False)
        study.write("influence", influence.copy())
        settings = {"max_length": shape.damage_length, "progress": False}
        removal = wb.removal_similarity(model, tokenizer, texts[:10], **settings)
        study.write("removal", removal.copy())
    held_out = study.texts("c4", shape.held_out, skip=shape.texts)
    with study.timed("damage"):
        damage = wb.block_damage(model, tokenizer, held_out, sizes=shape.damage_sizes, **settings)
        study.write("damage", damage.copy())
        metrics = {"angular distance": found["C4"], "block influence": influence}
        metrics |= {"removal similarity": removal, "damage": damage}
        study.write("agreement", wb.rank_agreement(metrics))
    with study.timed("least harmful"):
        least = wb.least_harmful(
            model, tokenizer, held_out, [s for s in SIZES if s in shape.damage_sizes], **settings
        )
        study.write("least_harmful", least)


def choices(study: Study, size: int) -> pd.DataFrame:
    """Return what each strategy would remove: distance, damage, influence, deepest, shallowest, random."""
    model, tokenizer, shape = study.model, study.tokenizer, study.shape
    texts = study.texts("c4", shape.texts)
    found = wb.angular_distances(model, tokenizer, texts, max_length=shape.length, progress=False)
    rows = wb.removal_strategies(found, [size], n_draws=shape.draws, seed=0)
    rows = rows[rows["strategy"] != "deepest with last"]
    rows["strategy"] = rows["strategy"].replace({"best": "distance"})
    influence = wb.block_influence(model, tokenizer, texts, max_length=shape.length, progress=False)
    chosen = study.texts("c4", shape.held_out, skip=shape.texts)
    every = wb.block_damage(
        model, tokenizer, chosen, sizes=[size], max_length=shape.damage_length, progress=False
    )
    least = wb.best_blocks(every[["start", "size", "damage"]], [size])
    parts = [
        wb.greedy_layers(influence, [size], strategy="influence"),
        least.assign(strategy="damage")[["strategy", "size", "start", "removed"]],
    ]
    return pd.concat([rows, *parts], ignore_index=True).fillna({"draw": 0}).drop(columns=["order"])


def strategies(study: Study, size: int) -> None:
    """What each strategy's choice of one size costs: loss on texts that chose nothing, and scores."""
    model, tokenizer, shape = study.model, study.tokenizer, study.shape
    with study.timed("what each strategy removes"):
        rows = study.kept("choices", lambda: choices(study, size))
    rows["name"] = [f"{row.strategy}-{row.draw:.0f}" for row in rows.itertuples()]
    fresh = study.texts("c4", shape.held_out, skip=shape.texts + shape.held_out)
    settings: dict[str, Any] = {"max_length": shape.damage_length, "progress": False}
    with study.timed("damage on fresh texts"):
        damage = wb.block_damage(model, tokenizer, fresh, rows, **settings)
        study.write("damage", rows.drop(columns="start").merge(damage.drop(columns="size"), on="removed"))
    study.write("choices", rows)
    # what healing is compared with gets all nine sets, with all items
    whole = ("base-0", "distance-0", "deepest-0", "shallowest-0") if size == HEALED else ()
    told: dict[str, tuple[pd.DataFrame, pd.DataFrame]] = {}
    asked = [("base-0", "")] if whole else []
    asked += [(row.name, row.removed) for row in rows.itertuples(index=False)]
    same: dict[str, str] = {}
    for name, removed in asked:
        tasks, limit = (shape.single, shape.limit) if name in whole else (TELLING, shape.few)
        with (
            study.timed(f"scores, {name} ({removed})"),
            wb.without_layers(model, parsed(removed)) if removed else nullcontext(),
        ):
            told[name] = told[same[removed]] if removed in same else study.scores(name, limit, tasks)
            same.setdefault(removed, name)
        for kind, number in (("scores", 0), ("items", 1)):
            frames = {name: pair[number] for name, pair in told.items()}
            study.write(kind, pd.concat(frames, names=["variant"]).reset_index("variant").assign(size=size))


def parsed(removed: str) -> list[int]:
    """Return the layers of a text such as "3-5,9"."""
    ends = [part.partition("-") for part in str(removed).split(",")]
    return [layer for first, _, last in ends for layer in range(int(first), int(last or first) + 1)]


def healing(study: Study, name: str, seed: int, rows: int) -> None:
    """SFT against self-distilled data on the same rows: rewriting, training, scores, responses."""
    model, tokenizer, shape = study.model, study.tokenizer, study.shape
    every = wb.load_instructions(study.data / f"{TRAINED[name]}.jsonl")
    pool = every.iloc[: -shape.prompts]
    examples = pool.sample(min(shape.rows or rows, len(pool)), random_state=seed).reset_index(drop=True)
    labels = {"data": name, "rows": len(examples), "seed": seed}  # a set may have fewer than were asked for
    with study.timed("rewriting"):
        room = min(shape.new, wb.response_room(model, tokenizer, list(examples["reference"])))
        settings: Any = {"max_new_tokens": max(room, 32), "batch_size": study.batch(256), "progress": False}
        distilled = study.kept("rewrites", partial(wb.self_distill, model, tokenizer, examples, **settings))
        study.write("kept", wb.kept_shares(distilled), **labels)
    with study.timed("what the two data sets are to the base"):
        study.write("premise", study.kept("premise", lambda: premise(study, distilled)), **labels)
    layers = study.kept("block", lambda: removed_block(study))
    config = wb.HealingConfig.preset("sdd", epochs=shape.epochs, seed=seed, micro_batch_size=study.micro())
    config = replace(config, learning_rate=study.options.learning_rate)
    columns = {"sft": "reference", "self-distilled": "response"}
    prompts, answers, told = asked(study), {}, {}
    with study.timed("responses, base"):
        answers["base"] = study.kept("answers-base", lambda: answered(study, prompts))
    for variant in ("pruned", *columns):
        with wb.without_layers(model, layers):
            adapter = study.folder / f"adapter-{variant}"
            if variant in columns:
                with study.timed(f"training, {variant}"):
                    healed = wb.heal(
                        model,
                        tokenizer,
                        distilled,
                        response=columns[variant],
                        config=config,
                        out=adapter,
                        progress=False,
                    )
                    study.write(f"training-{variant}", healed.log, variant=variant, **labels)
            with wb.with_adapter(model, adapter) if variant in columns else nullcontext():
                with study.timed(f"responses, {variant}"):
                    answers[variant] = study.kept(f"answers-{variant}", lambda: answered(study, prompts))
                    compared(study, prompts, answers, labels)
                if variant in columns:
                    with study.timed(f"scores, {variant}"):
                        told[variant] = study.scores(variant, shape.limit, shape.single)
        for kind, number in (("scores", 0), ("items", 1)):
            if told:
                frames = {one: pair[number] for one, pair in told.items()}
                whole = pd.concat(frames, names=["variant"]).reset_index("variant")
                study.write(kind, whole.assign(**labels))
    with study.timed("divergence"):
        variants = [wb.Variant("pruned", study.options.model, removed=layers)]
        for variant in columns:
            of_it = {"removed": layers, "adapter": f"adapter-{variant}"}
            variants.append(wb.Variant(variant, study.options.model, **of_it))
        tokens = wb.token_divergence(
            model, tokenizer, answers["base"], variants, run=str(study.folder), progress=False
        )
        by_response = wb.divergence_by_response(tokens).merge(prompts[["id", "prompts"]], on="id")
        study.write("divergence", by_response, **labels)
    for variant in columns:
        shutil.rmtree(study.folder / f"adapter-{variant}", ignore_errors=True)


def removed_block(study: Study) -> list[int]:
    """Return the six layers of least distance on C4."""
    shape = study.shape
    texts = study.texts("c4", shape.texts)
    found = wb.angular_distances(study.model, study.tokenizer, texts, max_length=shape.length, progress=False)
    row = wb.best_blocks(found, [HEALED]).iloc[0]
    return list(wb.layers_of(int(row["start"]), HEALED))


def asked(study: Study) -> pd.DataFrame:
    """Return prompts that no part trains on: of each training set its last rows, of GSM8K its test set."""
    n, parts = study.shape.prompts, {}
    for name in ("alpaca", "dolly", "gsm8k_test"):
        rows = wb.load_instructions(study.data / f"{name}.jsonl")
        parts[name] = rows.iloc[-n:]
    frame = pd.concat(parts, names=["prompts"]).reset_index("prompts")
    return frame.drop(columns=["reference", "answer"]).reset_index(drop=True)


def answered(study: Study, prompts: pd.DataFrame) -> pd.DataFrame:
    return wb.respond(
        study.model,
        study.tokenizer,
        prompts,
        max_new_tokens=study.shape.new,
        batch_size=study.batch(300),
        progress=False,
    )


def compared(
    study: Study, prompts: pd.DataFrame, answers: dict[str, pd.DataFrame], labels: dict[str, Any]
) -> None:
    """Write how similar the responses are to the base's, how long, in which form."""
    base, others = answers["base"], {name: frame for name, frame in answers.items() if name != "base"}
    similarity = wb.response_similarity(base, others, encoder=study.encoder)
    study.write("similarity", similarity.merge(prompts[["id", "prompts"]], on="id"), **labels)
    changes = wb.response_changes(base, others).merge(prompts[["id", "prompts"]], on="id")
    study.write("changes", changes.drop(columns=["response"], errors="ignore"), **labels)
    if len(others) == 3:
        told = [frame[["prompts", "id", "response"]].assign(variant=name) for name, frame in answers.items()]
        sample = pd.concat(told).groupby(["variant", "prompts"]).head(5)
        study.write("responses", sample, **labels)


def premise(study: Study, distilled: pd.DataFrame) -> pd.DataFrame:
    """Is a rewrite nearer to what the base itself would answer than the reference is? In loss and embedding.

    Self-data distillation rests on it. `own` is the base's own answer to the prompt, without any reference.
    """
    model, tokenizer = study.model, study.tokenizer
    few = distilled.head(2 * study.shape.prompts).reset_index(drop=True)
    own = wb.respond(
        model,
        tokenizer,
        few[["id", "instruction", "context"]],
        max_new_tokens=study.shape.new,
        batch_size=study.batch(300),
        progress=False,
    )
    texts = {"reference": few["reference"], "rewrite": few["rewrite"], "response": few["response"]}
    others = {name: own.assign(response=list(column), finished=True) for name, column in texts.items()}
    similar = wb.response_similarity(own, others, encoder=study.encoder)
    rows = []
    for name, column in texts.items():
        there = few[column.str.strip() != ""]
        loss = wb.response_loss(model, tokenizer, there, response=name, batch_size=32)
        words = column.str.split().str.len()
        near = similar[similar["variant"] == name]["similarity"]
        row = {"text": name, "loss": loss, "words": words.mean(), "similarity": near.mean(), "n": len(there)}
        rows.append(row | {"similarity_std": near.std(), "kept": few["kept"].mean()})
    lengths = own["response"].str.split().str.len()
    rows.append(
        {"text": "own", "words": lengths.mean(), "cut_off": 1 - own["finished"].mean(), "n": len(own)}
    )
    return pd.DataFrame(rows)


def queue(shape: str) -> list[list[str]]:
    """Return the parts, the most telling first; of 8,000 rows those that the files have."""
    parts = [["--part", "distances"], ["--part", "strategies", "--size", str(HEALED)]]
    heal = [["--part", "healing", "--set", name, "--seed", "0", "--rows", "2000"] for name in TRAINED]
    others = [["--part", "strategies", "--size", str(size)] for size in SIZES if size != HEALED]
    if shape == "small":
        return [*parts, heal[0], others[0]]
    more = [["--part", "healing", "--set", "alpaca", "--seed", "0", "--rows", "8000"]]
    for seed in ("1", "2"):
        more += [["--part", "healing", "--set", name, "--seed", seed, "--rows", "2000"] for name in TRAINED]
    more += [["--part", "healing", "--set", "gsm8k", "--seed", "0", "--rows", "8000"]]
    return [*parts, *heal, *more[:1], *others, *more[1:]]


def run_all(options: argparse.Namespace) -> int:
    """Run the parts as processes, so many at once on each GPU, until the seconds are over."""
    waiting, running, until = queue(options.shape), {}, time.monotonic() + options.seconds
    cuda = options.device == "cuda"
    slots = [gpu for _ in range(options.at_once) for gpu in range(options.gpus)]
    base = [sys.executable, __file__, "--model", options.model, "--data", str(options.data)]
    base += ["--out", str(options.out), "--shape", options.shape]
    base += ["--learning-rate", str(options.learning_rate), "--device", options.device]
    base += [
        word for name in ("micro", "batch") if (n := getattr(options, name)) for word in (f"--{name}", str(n))
    ]
    base += ["--encoder", options.encoder] if options.encoder else []
    options.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    while (waiting or running) and time.monotonic() < until:
        while waiting and slots:
            part, gpu = waiting.pop(0), slots.pop(0)
            environment = {**os.environ, "OMP_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "false"}
            environment |= {"CUDA_VISIBLE_DEVICES": str(gpu)} if cuda and options.gpus > 1 else {}
            log = (options.out / f"{'-'.join(part[1::2])}.log").open("w")
            running[subprocess.Popen([*base, *part], stdout=log, stderr=log, env=environment)] = (part, gpu)
            time.sleep(options.stagger)
        for process in [one for one in running if one.poll() is not None]:
            part, gpu = running.pop(process)
            slots.append(gpu)
            failed += process.returncode != 0
            print(f"{' '.join(part)}: {'done' if process.returncode == 0 else 'FAILED'}", flush=True)
        time.sleep(0.5)
    for process, (part, _) in running.items():
        process.terminate()
        print(f"{' '.join(part)}: cut", flush=True)
    for process in running:
        process.wait(timeout=20)
    for part in waiting:
        print(f"{' '.join(part)}: not begun", flush=True)
    return int(failed > 0)


def main() -> int:
    parser = part_arguments(__doc__, ["all", "distances", "strategies", "healing"])
    add = parser.add_argument
    add("--encoder", help="a Sentence-BERT folder (default: the package's MiniLM)")
    add("--size", type=int, default=HEALED)
    add("--set", choices=list(TRAINED), default="alpaca")
    add("--rows", type=int, default=2000)
    add("--learning-rate", type=float, default=1e-4)
    add("--at-once", type=int, default=6, help="processes on a GPU")
    options = parser.parse_args()
    if options.collect:
        collect(options, "findings", summed_up)
        return 0
    if options.part == "all":
        return run_all(options)
    work = {
        "distances": ("distances", distances, ()),
        "strategies": (f"strategies-{options.size}", strategies, (options.size,)),
        "healing": (
            f"healing-{options.set}-{options.rows}-{options.seed}",
            healing,
            (options.set, options.seed, options.rows),
        ),
    }
    name, function, arguments = work[options.part]
    if is_done(options, name):
        return 0
    try:
        function(study := Study(options, name), *arguments)
        study.done()
    except Exception:  # the frames that are there stay; the driver reports the part
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
