"""A run with small made-up frames of every figure and table, for the tests of what a paper prints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from drawn import ablation_frame, log_frame
from frames import damage_frame, depth_frame, distance_frame, loss_frame, map_frame, score_frame

from workbench.runs.run import Run, open_run
from workbench.runs.variant import Variant

VARIANTS = {"base": (), "pruned": (7, 8), "pruned-sft": (7, 8), "pruned-self-distilled": (7, 8)}


def printed_run(folder: Path, n_layers: int = 16, name: str = "printed") -> Run:
    """Return a run of a model of so many layers."""
    run, rng = open_run(name, root=folder), np.random.default_rng(0)
    distances = distance_frame(n_layers, n_texts=6)
    damage = damage_frame(distances, (1, 2, 4, 6))
    damage = damage.assign(ci_low=damage["damage"] - 0.02, ci_high=damage["damage"] + 0.02)
    single = distances[distances["size"] == 1]
    ends = {"ci_low": single["ci_low"], "ci_high": single["ci_high"]}
    influence = pd.DataFrame({"layer": single["start"], "influence": single["distance"], **ends})
    turned = {"ci_low": 1 - single["ci_high"], "ci_high": 1 - single["ci_low"]}
    similarity = pd.DataFrame({"layer": single["start"], "similarity": 1 - single["distance"], **turned})
    for frame_name, frame in {
        "distances.csv": distances,
        "damage.csv": damage,
        "influence.csv": influence,
        "removal_similarity.csv": similarity,
        "calibration.csv": ablation_frame(n_layers).replace(
            {"calibration": {"<script>alert(1)</script>": "C4 long"}}
        ),
        "distilled.jsonl": _distilled(),
        "healing-pruned-sft.csv": log_frame()
        .head(60)
        .drop(columns="variant")
        .assign(held_out_loss=[np.nan] * 59 + [1.1], tokens=range(60), seconds=np.arange(60.0)),
        "tuning.csv": pd.DataFrame(
            {"trial": range(4), "state": "complete", "rank": [4, 4, 8, 8], "learning_rate": [1e-4, 2e-5] * 2}
        ).assign(loss=[1.5, 1.3, 1.2, 1.4]),
        "map.csv": map_frame(),
        "loss_similarity.csv": loss_frame(),
        "similarity.csv": _similarities(rng),
        "iterations.csv": _iterations(),
        "merging_recovery.csv": pd.DataFrame(
            {"t": [None, 0, 0.5, 1], "recovery": [1, 0.7, 0.8, 0.9], "ci_low": 0.6, "ci_high": 1.0}
        ),
    }.items():
        run.write(frame_name, frame)
    for variant, removed in VARIANTS.items():
        adapter, data = ("adapter", "reference" if variant.endswith("sft") else "response")
        healed = "-" in variant
        run.save_variant(
            Variant(
                variant, "tiny", removed=removed, adapter=adapter if healed else None, note=f"tiny on {data}"
            )
        )
        run.write(f"responses-{variant}.jsonl", _responses(variant, rng))
    run.save_variant(Variant("merged", "tiny", removed=(3,)))  # another notebook's, without scores here
    run.write_json("selection.json", {"layers": [7, 8], "start": 7, "size": 2, "parameters_saved": 0.118})
    _write_scores(run, rng)
    return run


def _iterations() -> pd.DataFrame:
    """Return layers 3 and 5 of 16 gone, one an iteration."""
    frame = pd.DataFrame({"iteration": [1, 1, 2, 2], "phase": ["P", "P+R"] * 2, "layer": [3, 3, 5, 5]})
    return frame.assign(
        layers_left=[15, 15, 14, 14], removed=["3", "3", "3,5", "3,5"], order=["3", "3", "3 5", "3 5"]
    )


def _distilled() -> pd.DataFrame:
    frame = pd.DataFrame(
        {"kept": [True] * 30 + [False] * 6, "reason": ["same final answer"] * 30 + ["cut off"] * 6}
    )
    frame["reference"] = "one two three"
    frame["rewrite"] = [" ".join(["word"] * (3 + number % 9)) for number in range(len(frame))]
    return frame


def _similarities(rng: np.random.Generator) -> pd.DataFrame:
    parts = {
        name: pd.DataFrame(
            {"id": [f"p{n}" for n in range(40)], "similarity": np.minimum(rng.beta(9, a, 40) + 0.1, 1)}
        )
        for name, a in (("pruned", 1.0), ("pruned-sft", 6.0), ("pruned-self-distilled", 0.5))
    }
    frame = pd.concat(parts, names=["variant"]).reset_index("variant")
    return frame.assign(truncated=False, cut_off=False, empty=False, unseen=False)


def _responses(variant: str, rng: np.random.Generator) -> pd.DataFrame:
    end = "#### 7" if variant.endswith("sft") else "So the answer is 7."
    texts = [" ".join(["word"] * int(rng.integers(4, 9))) + f" {end}" for _ in range(40)]
    prompts = ["math"] * 20 + ["open"] * 20
    return pd.DataFrame({"prompts": prompts, "id": [f"p{n}" for n in range(40)], "response": texts})


def _write_scores(run: Run, rng: np.random.Generator) -> None:
    scores = score_frame().replace(
        {
            "pruned + SFT": "pruned-sft",
            "pruned + self-distilled": "pruned-self-distilled",
            "demo_facts": "arc_easy",
        }
    )
    kinds = {
        "demo_math": "reasoning",
        "arc_easy": "knowledge",
        "demo_pairs": "language",
        "demo_stories": "language",
    }
    scores["category"] = scores["task"].map(kinds)
    items = []
    for row in scores[scores["higher_is_better"]].to_dict("records"):
        right = rng.random(40) < row["value"]
        items.append(
            pd.DataFrame({"item": range(40), "value": right.astype(float)}).assign(
                variant=row["variant"],
                task=row["task"],
                metric=row["metric"],
                n_shot=0,
                prompt="?",
                target="yes",
                response=np.where(right, "yes", "no"),
            )
        )
    frame = pd.concat(items, ignore_index=True)
    means = frame.groupby(["variant", "task"])["value"].mean()
    shares = scores["higher_is_better"]
    scores.loc[shares, "value"] = [
        means[tuple(pair)] for pair in scores.loc[shares, ["variant", "task"]].to_numpy()
    ]
    values = scores.loc[shares, "value"]
    scores.loc[shares, "stderr"] = np.sqrt(values * (1 - values) / 39)
    scores.loc[shares, "n"] = 40
    run.write("scores.csv", scores)
    run.write("items.jsonl", frame)
    run.write(
        "comparisons.csv",
        pd.DataFrame(
            {
                "variant": ["pruned-sft"],
                "against": ["pruned"],
                "task": ["demo_math"],
                "metric": ["exact_match"],
            }
        ).assign(n=40, difference=0.4, ci_low=0.2, ci_high=0.6, p_value=1e-5, p_adjusted=1e-4),
    )
    depth = (
        depth_frame().query("series == 'pruned, not healed' and task != 'mmlu'").assign(n_shot=0, n_removed=1)
    )
    run.write("depth.csv", depth)
