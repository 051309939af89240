"""One small figure of each kind, from frames as the package makes them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from frames import (
    category_frame,
    change_frame,
    depth_frame,
    distance_frame,
    divergence_frame,
    flip_frame,
    loss_frame,
    map_frame,
    score_frame,
    similarity_frame,
)

import workbench as plots
from workbench.distances.stability import calibration_ablation

SCRIPT = "<script>alert(1)</script>"
#: figure -> its frame, and a name in it that may be replaced by any text
FIGURES = {
    "score_vs_fraction": (depth_frame, "SFT"),
    "loss_vs_fraction": (depth_frame, "SFT"),
    "category_bars": (category_frame, "pruned"),
    "flip_bars": (flip_frame, "pruned"),
    "similarity_pairs": (lambda: similarity_frame(20), "pruned"),
    "similarity_map": (map_frame, "pruned"),
    "answer_forms": (change_frame, "pruned"),
    "divergence_distribution": (divergence_frame, "pruned"),
    "loss_similarity": (loss_frame, "pruned"),
}


def kept_frame() -> pd.DataFrame:
    """Rewrites that were kept, and others that were not for two reasons."""
    return pd.DataFrame(
        {"kept": [True] * 5 + [False] * 3, "reason": ["same"] * 5 + ["cut off", "cut off", SCRIPT]}
    )


def log_frame() -> pd.DataFrame:
    """Logs of two trainings."""
    one = pd.DataFrame({"step": range(1, 61), "loss": np.linspace(3, 1, 60) + 0.2 * (np.arange(60) % 2)})
    return pd.concat([one.assign(variant="SFT"), one.assign(variant=SCRIPT, loss=one["loss"] / 2)])


def ablation_frame(n_layers: int = 9) -> pd.DataFrame:
    """The nearest blocks by two calibration sets."""
    return calibration_ablation(
        {"C4": distance_frame(n_layers), SCRIPT: distance_frame(n_layers, seed=1)}, [2, 4]
    )


def every_figure(distances, damage, kept, log) -> dict[str, go.Figure]:
    """Draw each figure that takes other frames, or more of them, than those of FIGURES do."""
    return {
        "distance_heatmap": plots.distance_heatmap(distances),
        "damage_heatmap": plots.damage_heatmap(damage),
        "distance_beside_damage": plots.distance_beside_damage(distances, damage),
        "distance_lines": plots.distance_lines(distances),
        "metric_comparison": plots.metric_comparison({"distance": distances, SCRIPT: damage}),
        "distance_vs_damage": plots.distance_vs_damage(distances, damage),
        "calibration_comparison": plots.calibration_comparison(ablation_frame()),
        "kept_reasons": plots.kept_reasons(kept),
        "loss_curve": plots.loss_curve(log),
        "score_bars": plots.score_bars(score_frame().replace("base", SCRIPT)),
        "similarity_distribution": plots.similarity_distribution(
            similarity_frame(30).replace("pruned", SCRIPT)
        ),
    }
