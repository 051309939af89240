"""Frames as the package makes them, from small random data, to feed plots, tables and widgets."""

from __future__ import annotations

import numpy as np
import pandas as pd


def distance_frame(n_layers: int = 7, n_texts: int = 24, seed: int = 0) -> pd.DataFrame:
    """Distances between the states of random walks that slow down in the middle, as a trained model's do."""
    rng = np.random.default_rng(seed)
    depth = (np.arange(n_layers) + 0.5) / n_layers
    stride = 0.25 + 3.2 * (depth - 0.6) ** 2 + (depth > 1 - 1.2 / n_layers) * 0.8
    steps = rng.normal(size=(n_texts, n_layers, 48)) * (stride * 16 / n_layers)[None, :, None]
    states = np.concatenate([rng.normal(size=(n_texts, 1, 48)), steps], axis=1).cumsum(axis=1)
    states /= np.linalg.norm(states, axis=-1, keepdims=True)
    rows = []
    for size in range(1, n_layers + 1):
        for start in range(n_layers - size + 1):
            u, v = states[:, start], states[:, start + size]
            d = 2 * np.arctan2(np.linalg.norm(u - v, axis=-1), np.linalg.norm(u + v, axis=-1)) / np.pi
            half = 1.96 * d.std(ddof=1) / np.sqrt(n_texts)
            rows.append((start, size, d.mean(), d.std(ddof=1), d.mean() - half, d.mean() + half, n_texts))
    return pd.DataFrame(rows, columns=["start", "size", "distance", "std", "ci_low", "ci_high", "n_texts"])


def random_distances(n_layers: int = 8, seed: int = 0) -> pd.DataFrame:
    """Distances of every block, drawn at random."""
    rng = np.random.default_rng(seed)
    rows = [(start, size) for size in range(1, n_layers + 1) for start in range(n_layers - size + 1)]
    frame = pd.DataFrame(rows, columns=["start", "size"])
    return frame.assign(distance=rng.random(len(frame)), n_texts=5)


def damage_frame(distances: pd.DataFrame, sizes: tuple[int, ...] = (1, 2, 4), seed: int = 0) -> pd.DataFrame:
    """Losses that rise with the distance, with noise."""
    rng = np.random.default_rng(seed)
    frame = distances.loc[distances["size"].isin(sizes), ["start", "size", "distance"]].reset_index(drop=True)
    damage = 9 * frame.pop("distance") ** 1.5 * rng.lognormal(0, 0.35, len(frame)) - 0.02
    return frame.assign(base_loss=1.44, loss=1.44 + damage, damage=damage)


def savings_frame(n_layers: int = 7) -> pd.DataFrame:
    """Parameters and FLOPs of equal layers of 0.2M between embeddings of 1M."""
    blocks = [(start, size) for size in range(1, n_layers + 1) for start in range(n_layers - size + 1)]
    frame = pd.DataFrame(blocks, columns=["start", "size"])
    total, flops = 1_000_000 + 200_000 * n_layers, 2_000_000 + 400_000 * n_layers
    frame = frame[frame["size"] < n_layers].reset_index(drop=True)
    for name, whole, each in (("parameters", total, 200_000), ("flops", flops, 400_000)):
        frame[name] = each * frame["size"]
        frame[f"{name}_left"] = whole - frame[name]
        frame[f"{name}_saved"] = frame[name] / whole
    return frame


def score_frame() -> pd.DataFrame:
    """Scores of four variants, as in a trial of the demo model: three shares, one perplexity."""
    shares = {
        "base": (0.988, 1.0, 1.0, 4.24),
        "pruned": (0.487, 0.988, 1.0, 4.25),
        "pruned + SFT": (0.99, 0.007, 1.0, 4.26),
        "pruned + self-distilled": (0.985, 0.986, 1.0, 4.25),
    }
    tasks = ("demo_math", "demo_facts", "demo_pairs", "demo_stories")
    rows = []
    for variant, values in shares.items():
        for task, value in zip(tasks, values, strict=True):
            share = task != "demo_stories"
            rows.append(
                {
                    "variant": variant,
                    "task": task,
                    "metric": "exact_match" if share else "word_perplexity",
                    "n_shot": 0,
                    "value": value,
                    "stderr": float(np.sqrt(value * (1 - value) / 399)) if share else np.nan,
                    "n": 400,
                    "higher_is_better": share,
                    "parent": "",
                }
            )
    return pd.DataFrame(rows)


def similarity_frame(n: int = 200, seed: int = 0) -> pd.DataFrame:
    """Similarities that pile up at 1, as those of near copies do."""
    rng = np.random.default_rng(seed)
    parts = {"pruned": (3, 1.2), "pruned + SFT": (2, 2), "pruned + self-distilled": (9, 0.8)}
    frames = [
        pd.DataFrame(
            {"variant": name, "id": np.arange(n), "similarity": np.minimum(rng.beta(a, b, n) + 0.05, 1)}
        )
        for name, (a, b) in parts.items()
    ]
    return pd.concat(frames, ignore_index=True)


def depth_frame() -> pd.DataFrame:
    """Scores and losses of blocks left out and not healed, and of a healed line of two block sizes."""
    tasks = {"mmlu": (0.66, 0.25), "demo_math": (0.9, 0.0), "texts": (0.3, 1.0)}
    rows = []
    for series, healed, fractions in (
        ("pruned, not healed", False, (0.0, 0.1, 0.2, 0.4)),
        ("SFT", True, (0.1, 0.2)),
        ("base", False, (0.0,)),
    ):
        for fraction in fractions:
            for task, (first, last) in tasks.items():
                share = task != "texts"
                value = first + (last - first) * min(1.0, fraction * (1.5 if healed else 2.5))
                rows.append(
                    {
                        "series": series,
                        "healed": healed,
                        "removed": f"3-{int(3 + 10 * fraction)}" if fraction else "",
                        "fraction": fraction,
                        "task": task,
                        "metric": "acc" if share else "normalized_loss",
                        "n_shot": 5,
                        "value": value,
                        "stderr": float(np.sqrt(value * (1 - value) / 99)) if share else np.nan,
                        "n": 100,
                        "higher_is_better": share,
                        "parent": "",
                    }
                )
    return pd.DataFrame(rows)


def category_frame() -> pd.DataFrame:
    """Scores of two variants in two categories."""
    rows = [
        ("base", "reasoning", 0.9, 0.85, 0.94, 2),
        ("base", "language", 0.8, 0.7, 0.88, 1),
        ("pruned", "reasoning", 0.3, 0.22, 0.4, 2),
        ("pruned", "language", 0.79, 0.7, 0.86, 1),
    ]
    return pd.DataFrame(rows, columns=["variant", "category", "value", "low", "high", "n_tasks"])


def flip_frame() -> pd.DataFrame:
    """Items that turned, of two variants and two tasks."""
    rows = [("pruned", "math", 50, 20, 1), ("pruned", "facts", 80, 0, 0), ("SFT", "math", 50, 2, 3)]
    columns = ["variant", "task", "n", "right_to_wrong", "wrong_to_right"]
    return pd.DataFrame([*rows, ("SFT", "facts", 80, 60, 0)], columns=columns)


def change_frame() -> pd.DataFrame:
    """Length and form of the responses of a base, of a variant like it, and of one that writes otherwise."""
    forms = ["the answer is 7"] * 6 + ["no number"] * 4
    rows = {"id": range(10), "base_length": range(20, 30), "base_form": forms, "finished": True}
    base = pd.DataFrame(rows).assign(
        length=range(20, 30), form=forms, has_answer=True, same_answer=True, same_text=True
    )
    terse = base.assign(length=base["length"] // 2, form=["#### 7"] * 9 + ["a last number"], same_text=False)
    parts = {"base": base, "pruned": base, "pruned + SFT": terse}
    return pd.concat(parts, names=["variant"]).reset_index("variant")


def divergence_frame(n: int = 30, seed: int = 0) -> pd.DataFrame:
    """Divergences that span decades, some of them 0."""
    rng = np.random.default_rng(seed)
    frames = [
        pd.DataFrame(
            {
                "variant": name,
                "id": np.arange(n),
                "kl": np.where(np.arange(n) < 3, 0, 10 ** rng.normal(level, 1, n)),
                "n_tokens": rng.integers(5, 60, n),
            }
        )
        for name, level in (("pruned", -1.5), ("pruned + SFT", 0), ("pruned + self-distilled", -3))
    ]
    return pd.concat(frames, ignore_index=True)


def map_frame(n: int = 12, seed: int = 0) -> pd.DataFrame:
    """Points in a plane: a base, a variant near it and one far away."""
    rng = np.random.default_rng(seed)
    home = rng.normal(size=(n, 2))
    frames = [
        pd.DataFrame({"variant": name, "id": np.arange(n), "x": points[:, 0], "y": points[:, 1]})
        for name, points in (
            ("base", home),
            ("pruned", home + 0.01),
            ("pruned + SFT", home + np.array([3, -2])),
        )
    ]
    return pd.concat(frames, ignore_index=True).assign(x_share=0.31, y_share=0.12)


def loss_frame() -> pd.DataFrame:
    """Accuracy lost beside similarity for two variants and three tasks."""
    similarity, lost = [0.99, 0.95, 0.97, 0.1, 0.45, 0.9], [0.0, 0.3, 0.01, 0.9, 0.05, -0.02]
    frame = pd.DataFrame({"variant": ["pruned"] * 3 + ["SFT"] * 3, "task": ["a", "b", "c"] * 2})
    frame["similarity"], frame["lost"] = similarity, lost
    for name in ("similarity", "lost"):
        frame[f"{name}_low"], frame[f"{name}_high"] = frame[name] - 0.02, frame[name] + 0.02
    return frame
