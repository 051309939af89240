"""The figures of a run for a paper, from its frames: no model is loaded.

``FIGURES`` is the list: for each the frames that it needs, how it is drawn and what its caption says. A figure whose
frames are not there yet is left out, and the notebook that writes them is named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pandas as pd
import plotly.graph_objects as go

from workbench.distances.blocks import best_blocks
from workbench.evaluation.items import flip_counts
from workbench.evaluation.scores import category_scores
from workbench.forgetting.changes import response_changes
from workbench.plots import blocks, forgetting, healing, heatmaps, scores, style
from workbench.runs.run import Run
from workbench.tables.paper import readable

#: frames -> the drawn figure
Draw = Callable[[Run], go.Figure]


@dataclass(frozen=True)
class Picture:
    """One figure of a paper.

    Attributes:
        name: of its files, without ending.
        needs: the frames of the run that it is drawn from; a ``*`` stands for any name.
        draw: draws it, without a title.
        caption: what it shows, in a sentence or two.
    """

    name: str
    needs: tuple[str, ...]
    draw: Draw
    caption: str


def pictures(run: Run) -> list[Picture]:
    """Return the figures that the frames of a run allow, in the order of the notebooks."""
    return [picture for picture in _all(run) if not missing(run, picture)]


def left_out(run: Run) -> dict[str, list[str]]:
    """Return the figures that a run has no frames for yet, each with those frames."""
    return {one.name: missing(run, one) for one in _all(run) if missing(run, one)}


def missing(run: Run, picture: Picture) -> list[str]:
    """Return the frames of a figure that a run does not hold."""
    return [need for need in picture.needs if not _matching(run, need)]


def _matching(run: Run, pattern: str) -> list[str]:
    before, star, after = pattern.partition("*")
    held = run.files()
    if not star:
        return [pattern] if pattern in held else []
    return [name for name in held if name.startswith(before) and name.endswith(after)]


def _all(run: Run) -> list[Picture]:
    pictures = [Picture(name, needs, draw, caption) for name, needs, draw, caption in FIGURES]
    sets = _prompt_sets(run)
    for name in sets:
        of_set = f" Prompts: {name}." if len(sets) > 1 else ""
        for kind, needs, draw, caption in OF_PROMPTS:
            pictures.append(Picture(f"{kind}_{name}", needs, partial(draw, prompts=name), caption + of_set))
    return sorted(pictures, key=lambda picture: ORDER.index(picture.name.split("_")[1]))


def _prompt_sets(run: Run) -> list[str]:
    there = [name for name in _matching(run, "responses-*.jsonl") if "/" not in name]
    frame = run.read(there[0]) if there else pd.DataFrame({"prompts": []})
    return [str(name) for name in frame.get("prompts", pd.Series(dtype=object)).unique()]


def read(run: Run, name: str) -> pd.DataFrame:
    """Return a frame of a run with its variants under the names that a reader understands."""
    return readable(run.read(name))


def _distance_and_damage(run: Run) -> go.Figure:
    return heatmaps.distance_beside_damage(run.read("distances.csv"), run.read("damage.csv"), title=None)


def _chosen(run: Run) -> go.Figure:
    selection = run.read_json("selection.json")
    of_block = (selection["start"], selection["size"]) if selection.get("size") else None
    return heatmaps.distance_heatmap(run.read("distances.csv"), chosen=of_block, title=None)


def _metrics(run: Run) -> go.Figure:
    names = {"angular distance": "distances", "block influence": "influence"}
    names |= {"removal similarity": "removal_similarity", "damage": "damage"}
    return blocks.metric_comparison(
        {label: run.read(f"{name}.csv") for label, name in names.items()}, title=None
    )


def _agreement(run: Run) -> go.Figure:
    damage = run.read("damage.csv")
    sizes = style.sizes_to_draw(damage, None)
    return blocks.distance_vs_damage(run.read("distances.csv"), damage, sizes=sizes, title=None)


def _calibration(run: Run) -> go.Figure:
    n_layers = _n_layers(run)
    return blocks.calibration_comparison(run.read("calibration.csv"), n_layers=n_layers, title=None)


def _kept(run: Run) -> go.Figure:
    return healing.kept_reasons(run.read("distilled.jsonl")).update_layout(title_text=None)


def _healing(run: Run) -> go.Figure:
    names = [name for name in _matching(run, "healing-*.csv") if "/" not in name]
    logs = {name.removeprefix("healing-").removesuffix(".csv"): run.read(name) for name in names}
    frame = pd.concat(logs, names=["variant"]).reset_index("variant")
    return healing.loss_curve(readable(frame), title=None)


def _flips(run: Run) -> go.Figure:
    items = dict(list(run.read("items.jsonl").groupby("variant", sort=False)))
    base = items.pop(_base(run))
    return scores.flip_bars(readable(flip_counts(base, items, scores=run.read("scores.csv"))), title=None)


def _n_layers(run: Run) -> int:
    distances = run.read("distances.csv")
    return int((distances["start"] + distances["size"]).max())


def _depth(run: Run, draw: Callable[..., go.Figure]) -> go.Figure:
    from workbench.evaluation.depth import at_fractions  # it brings torch

    depth = run.read("depth.csv")
    placed = at_fractions(run.read("scores.csv"), run.variants(), _n_layers(run))
    placed = placed[placed["healed"] | (placed["variant"] == _base(run))]
    both = pd.concat([depth, placed[placed["task"].isin(depth["task"])]], ignore_index=True)
    return draw(readable(both), title=None)


def _base(run: Run) -> str:
    """Return the name of the unpruned variant."""
    return next(variant.name for variant in run.variants() if not variant.removed and not variant.adapter)


def _of_set(run: Run, frame: pd.DataFrame, prompts: str) -> pd.DataFrame:
    asked = run.read(f"responses-{_base(run)}.jsonl")
    return frame[frame["id"].isin(asked.loc[asked["prompts"] == prompts, "id"])]


def _forms(run: Run, prompts: str) -> go.Figure:
    base = _base(run)
    responses = {one.name: run.read(f"responses-{one.name}.jsonl") for one in run.variants()}
    changes = response_changes(responses.pop(base), responses, base_name=base)
    return forgetting.answer_forms(readable(_of_set(run, changes, prompts)), title=None)


def _similarity(run: Run, prompts: str) -> go.Figure:
    frame = _of_set(run, read(run, "similarity.csv"), prompts)
    return forgetting.similarity_distribution(frame, title=None)


def _map(run: Run) -> go.Figure:
    return forgetting.similarity_map(read(run, "map.csv"), base=_base(run), title=None)


def _divergence(run: Run) -> go.Figure:
    from workbench.forgetting.divergence import divergence_by_response  # it brings torch

    frame = divergence_by_response(run.read("divergence.jsonl"))
    return forgetting.divergence_distribution(readable(frame), title=None)


def least_and_nearest(run: Run) -> pd.DataFrame:
    """Return for each measured size the nearest block and its damage: what the metric costs."""
    damage = run.read("damage.csv")
    best = best_blocks(run.read("distances.csv"), [int(size) for size in damage["size"].unique()])
    columns = ["start", "size", *(name for name in ("damage", "ci_low", "ci_high") if name in damage)]
    return best[["start", "size", "removed", "distance"]].merge(damage[columns], on=["start", "size"])


_BASE = "what the unpruned model answers"
_MARKED = "Triangles at the end of a logarithmic scale are values below it."
#: of one figure: name, the frames it needs, how it is drawn, its caption
FIGURES: list[tuple[str, tuple[str, ...], Draw, str]] = [
    (
        "01_distances",
        ("distances.csv",),
        lambda run: heatmaps.distance_heatmap(run.read("distances.csv"), title=None),
        "Angular distance between the input and the output of every block of layers, by the first removed layer "
        "and the number of layers. Light blocks change the residual stream least; a circle marks the least of "
        "each size.",
    ),
    (
        "01_lines",
        ("distances.csv",),
        lambda run: blocks.distance_lines(run.read("distances.csv"), title=None),
        "Angular distance of blocks of several sizes by their first removed layer; bands are 95 % bootstrap "
        "intervals over texts, circles the least of each size.",
    ),
    (
        "01_calibration",
        ("distances.csv", "calibration.csv"),
        _calibration,
        "The block of least angular distance by block size and calibration set (left), and its distance with "
        "the 95 % interval over texts (right).",
    ),
    (
        "01_damage",
        ("distances.csv", "damage.csv"),
        _distance_and_damage,
        "Angular distance of a block, and the increase of the loss on held-out texts when the block is skipped "
        f"(logarithmic). Circles mark the least of each size. {_MARKED}",
    ),
    (
        "01_metrics",
        ("distances.csv", "influence.csv", "removal_similarity.csv", "damage.csv"),
        _metrics,
        "What four measures say of removing one layer, with 95 % intervals over texts; the filled mark is the "
        f"layer that each would remove. All scales are logarithmic. {_MARKED}",
    ),
    (
        "01_agreement",
        ("distances.csv", "damage.csv"),
        _agreement,
        "Angular distance of a block against the increase of the loss when it is skipped, by block size, with "
        "Spearman's rank correlation within a size. Blocks of one size overlap, so that its intervals are "
        f"narrower than those of independent blocks. {_MARKED}",
    ),
    (
        "02_chosen",
        ("distances.csv", "selection.json"),
        _chosen,
        "Angular distance of every block of layers; the frame is the block that was removed.",
    ),
    (
        "03_kept",
        ("distilled.jsonl",),
        _kept,
        "Rewrites that were kept as training data and those that fell back to the reference, by reason, and how "
        "long the rewrites are beside the references.",
    ),
    (
        "04_healing",
        ("healing-*.csv",),
        _healing,
        "Loss while the pruned model is fine-tuned: thin lines are single optimizer steps, thick lines their "
        "exponential mean, diamonds the loss on held-out rows of the same data.",
    ),
    (
        "04_tuning",
        ("tuning.csv",),
        lambda run: healing.tuning_figure(run.read("tuning.csv"), title=None),
        "Held-out loss of every training of the grid search against each setting, one seed each; the ring is the "
        "best training.",
    ),
    (
        "05_scores",
        ("scores.csv",),
        lambda run: scores.score_bars(read(run, "scores.csv"), title=None),
        "Scores by task with 95 % intervals over items (Wilson's for shares). Perplexities, where there are any, "
        "are below: less is better.",
    ),
    (
        "05_categories",
        ("scores.csv",),
        lambda run: scores.category_bars(
            readable(category_scores(run.read("scores.csv"), prefer=None)), title=None
        ),
        "Mean score of the tasks of each category with 95 % intervals.",
    ),
    (
        "05_flips",
        ("items.jsonl", "scores.csv"),
        _flips,
        "Items that turned from right to wrong and from wrong to right against the unpruned model, as shares of "
        "the items of each task; numbers are counts.",
    ),
    (
        "05_depth",
        ("depth.csv", "scores.csv", "distances.csv"),
        partial(_depth, draw=scores.score_vs_fraction),
        "Score against the share of layers dropped. Dotted: the best block of each size left out, not healed; "
        "filled marks: healed. Healed models and the unpruned one may have answered more items than those along the "
        "dotted line. Bars are 95 % intervals, the dashed line is a random guess.",
    ),
    (
        "05_loss",
        ("depth.csv", "scores.csv", "distances.csv"),
        partial(_depth, draw=scores.loss_vs_fraction),
        "Loss divided by the logarithm of the vocabulary's size against the share of layers dropped, on a "
        "logarithmic scale; 1 is a uniform guess.",
    ),
    (
        "06_pairs",
        ("similarity.csv",),
        lambda run: forgetting.similarity_pairs(read(run, "similarity.csv"), title=None),
        f"Cosine similarity of each response to {_BASE}, a column a prompt, ordered by the variant that moved "
        "farthest.",
    ),
    (
        "06_map",
        ("map.csv",),
        _map,
        "Responses in the plane of the first two principal directions of their embeddings, with their shares of "
        "the variance; arrows lead from the mean of the unpruned model's to that of the variant's.",
    ),
    (
        "06_divergence",
        ("divergence.jsonl",),
        _divergence,
        "Kullback-Leibler divergence of the next-token distribution from the unpruned model's, mean over the tokens of "
        "each of its responses (dots), with the mean over all tokens and its 95 % interval (diamonds).",
    ),
    (
        "06_lost",
        ("loss_similarity.csv",),
        lambda run: forgetting.loss_similarity(read(run, "loss_similarity.csv"), title=None),
        f"Accuracy lost on each task against the mean similarity of its answers to {_BASE}, with 95 % intervals "
        "of both; the tasks that lost a tenth or more are named.",
    ),
]
#: figures of which there is one a set of prompts
OF_PROMPTS: list[tuple[str, tuple[str, ...], Callable[..., go.Figure], str]] = [
    (
        "06_forms",
        ("responses-*.jsonl",),
        _forms,
        "How the responses state their final answer (left), and how long they are against the unpruned model's, with "
        "95 % intervals (right).",
    ),
    (
        "06_similarity",
        ("similarity.csv", "responses-*.jsonl"),
        _similarity,
        f"Cosine similarity of each response to {_BASE} to the same prompt (dots), its distribution, and the mean "
        "with its 95 % interval (diamonds).",
    ),
]
_NAMES = [name.split("_")[1] for name, *_ in FIGURES]
ORDER = [*_NAMES[: _NAMES.index("pairs")], "forms", "similarity", *_NAMES[_NAMES.index("pairs") :]]
