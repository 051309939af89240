"""The figures of a run for a paper, from its frames: no model is loaded.

``captions.toml`` is the list: for each the frames that it needs, what its caption says, and the public
function that draws these frames as they are; ``DRAWN`` says how any other is drawn. A figure whose frames are
not there yet is left out, and the notebook that writes them is named.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

import workbench
from workbench.checks import checked
from workbench.distances.blocks import format_layers
from workbench.evaluation.items import flip_counts
from workbench.evaluation.scores import category_scores, headline
from workbench.forgetting.changes import divergence_by_response, response_changes
from workbench.plots import blocks, drafts, forgetting, healing, heatmaps, merging, recovery, scores, style
from workbench.runs.figures import figure_frame
from workbench.runs.run import Run
from workbench.tables.paper import base_name, healing_logs, matching, readable

CAPTIONS = Path(__file__).with_name("captions.toml")
#: figures of which there is one a set of prompts
OF_PROMPTS = ("06_forms", "06_similarity")


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
    draw: Callable[[Run], go.Figure]
    caption: str

    def drawn(self, run: Run) -> go.Figure:
        """Return the figure, as wide as what is drawn now.

        Raises:
            ValueError: where no point of it has a number.
        """
        fig = style.fitted(self.draw(run))
        points = figure_frame(fig)
        if not points[["x", "y"]].notna().all(axis=1).any():  # of a heatmap only cells with a number
            raise ValueError(f"{', '.join(self.needs)}: no number to draw")
        return fig


def pictures(run: Run) -> list[Picture]:
    """Return the figures that the frames of a run allow, in the order of the notebooks."""
    return [picture for picture in _all(run) if not missing(run, picture)]


def left_out(run: Run) -> list[tuple[Picture, list[str]]]:
    """Return the figures that a run has no frames for yet, each with those frames."""
    lacking = ((one, missing(run, one)) for one in _all(run))
    return [(one, frames) for one, frames in lacking if frames]


def missing(run: Run, picture: Picture) -> list[str]:
    """Return the frames of a figure that a run does not hold."""
    return [need for need in picture.needs if not matching(run, need)]


def _all(run: Run) -> list[Picture]:
    sets, found = _prompt_sets(run), []
    for name, told in tomllib.loads(CAPTIONS.read_text(encoding="utf-8")).items():
        draw = DRAWN.get(name) or partial(_of_frames, told["figure"], told["needs"])
        picture = Picture(name, tuple(told["needs"]), draw, told["caption"])
        for one in sets if name in OF_PROMPTS else []:
            caption = told["caption"] + (f" Prompts: {one}." if len(sets) > 1 else "")
            of_set = partial(draw, prompts=one)
            found.append(replace(picture, name=f"{name}_{one}", draw=of_set, caption=caption))
        found += [] if sets and name in OF_PROMPTS else [picture]
    return found


def _prompt_sets(run: Run) -> list[str]:
    there = [
        name for name in matching(run, "responses-*.jsonl") if "/" not in name and not run.outdated(name)
    ]
    asked = run.read(there[0]) if there else pd.DataFrame()
    return [str(name) for name in asked["prompts"].unique()] if "prompts" in asked else []


def _of_frames(figure: str, names: list[str], run: Run) -> go.Figure:
    """Draw the frames that a figure needs, in their order, with names that a reader understands."""
    draw: Callable[..., go.Figure] = getattr(workbench, figure)
    return draw(*(readable(run.read(name)) for name in names), title=None)


def _chosen(run: Run) -> go.Figure:
    """Draw what was removed, by the variants: what is in use now may not have been removed yet."""
    removed = next((variant.removed for variant in run.variants() if variant.removed), ())
    layers = removed or run.read_json("selection.json")["layers"]
    if list(layers) != list(range(layers[0], layers[0] + len(layers))):
        raise ValueError(f"layers {format_layers(layers)} were removed, which is no one block to frame")
    return heatmaps.distance_heatmap(run.read("distances.csv"), chosen=(layers[0], len(layers)), title=None)


def _metrics(run: Run) -> go.Figure:
    names = {"angular distance": "distances", "block influence": "influence"}
    names |= {"removal similarity": "removal_similarity", "damage": "damage"}
    metrics = {label: run.read(f"{name}.csv") for label, name in names.items()}
    return blocks.metric_comparison(metrics, title=None)


def _agreement(run: Run) -> go.Figure:
    damage = run.read("damage.csv")
    sizes = style.sizes_to_draw(damage, None)
    return blocks.distance_vs_damage(run.read("distances.csv"), damage, sizes=sizes, title=None)


def _calibration(run: Run) -> go.Figure:
    return blocks.calibration_comparison(run.read("calibration.csv"), n_layers=_n_layers(run), title=None)


def _kept(run: Run) -> go.Figure:
    return healing.kept_reasons(run.read("distilled.jsonl")).update_layout(title_text=None)


def _categories(run: Run) -> go.Figure:
    frame = category_scores(run.read("scores.csv"), prefer=None)
    return scores.category_bars(readable(frame), title=None)


def _flips(run: Run) -> go.Figure:
    items = dict(list(run.read("items.jsonl").groupby("variant", sort=False)))
    base = items.pop(base_name(run))
    return scores.flip_bars(readable(flip_counts(base, items, scores=run.read("scores.csv"))), title=None)


def _n_layers(run: Run) -> int:
    distances = run.read("distances.csv")
    return int((distances["start"] + distances["size"]).max())


def _depth(run: Run, draw: Callable[..., go.Figure]) -> go.Figure:
    from workbench.evaluation.depth import at_fractions  # it brings torch

    depth = run.read("depth.csv")
    placed = at_fractions(run.read("scores.csv"), run.variants(), _n_layers(run))
    placed = placed[placed["healed"] | (placed["variant"] == base_name(run))]
    both = pd.concat([depth, placed[placed["task"].isin(depth["task"])]], ignore_index=True)
    return draw(readable(both), title=None)


def _of_set(run: Run, frame: pd.DataFrame, prompts: str) -> pd.DataFrame:
    asked = run.read(f"responses-{base_name(run)}.jsonl")
    return frame[frame["id"].isin(asked.loc[asked["prompts"] == prompts, "id"])]


def _forms(run: Run, prompts: str) -> go.Figure:
    base = base_name(run)
    files = {one.name: f"responses-{one.name}.jsonl" for one in run.variants()}
    responses = {name: run.read(file) for name, file in files.items() if file in run.files()}
    changes = response_changes(responses.pop(base), responses, base_name=base)
    return forgetting.answer_forms(readable(_of_set(run, changes, prompts)), title=None)


def _similarity(run: Run, prompts: str) -> go.Figure:
    frame = _of_set(run, readable(run.read("similarity.csv")), prompts)
    return forgetting.similarity_distribution(frame, title=None)


def _map(run: Run) -> go.Figure:
    return forgetting.similarity_map(readable(run.read("map.csv")), base=base_name(run), title=None)


def _divergence(run: Run) -> go.Figure:
    frame = divergence_by_response(run.read("divergence.jsonl"))
    return forgetting.divergence_distribution(readable(frame), title=None)


def _phase_scores(run: Run) -> pd.DataFrame:
    from workbench.recovery.phases import phase_scores

    scores, iterations = run.read("iterative-scores.csv"), run.read("iterations.csv")
    phases = phase_scores(scores, iterations, base=base_name(run), prefix="iterate-")
    chosen, words = headline(phases, prefer="acc"), phases["metric"] == "word_perplexity"
    return pd.concat([chosen[chosen["metric"] != "word_perplexity"], phases[words]])


def _phases(run: Run) -> go.Figure:
    return recovery.phase_lines(_phase_scores(run), columns=2, title=None)


def _changes(run: Run) -> go.Figure:
    from workbench.recovery.phases import phase_change

    shown = _phase_scores(run)
    changed = phase_change(shown[shown["metric"] != "word_perplexity"])
    return recovery.phase_changes(changed, run.read("iterations.csv"), title=None)


def _path(run: Run) -> go.Figure:
    along = checked(run.read("merging_recovery.csv"), ["t", "recovery"], "merging_recovery.csv")
    return merging.merging_path(readable(along.dropna(subset="t")), title=None)


def _drafts(run: Run, name: str) -> pd.DataFrame:
    """Return a frame with its drafts under the names that a reader understands."""
    named = readable(run.read(name).rename(columns={"draft": "variant"}))
    return named.rename(columns={"variant": "draft"})


def _by_length(run: Run) -> go.Figure:
    from workbench.speculation.acceptance import acceptance  # it brings torch

    return drafts.acceptance_by_length(acceptance(_drafts(run, "draft_rounds.jsonl")), title=None)


def _by_position(run: Run) -> go.Figure:
    from workbench.speculation.acceptance import acceptance_by_position  # it brings torch

    rounds = acceptance_by_position(_drafts(run, "draft_rounds.jsonl"))
    return drafts.acceptance_by_place(rounds, title=None)


def _speed(run: Run) -> go.Figure:
    from workbench.speculation.speed import speed_ups  # it brings torch

    return drafts.speed_against_theory(speed_ups(_drafts(run, "draft_speed.csv")), title=None)


#: name -> how a figure is drawn that takes more than its frames as they are
DRAWN: dict[str, Callable[..., go.Figure]] = {
    "01_calibration": _calibration,
    "01_metrics": _metrics,
    "01_agreement": _agreement,
    "02_chosen": _chosen,
    "03_kept": _kept,
    "04_healing": lambda run: healing.loss_curve(healing_logs(run), title=None),
    "05_categories": _categories,
    "05_flips": _flips,
    "05_depth": partial(_depth, draw=scores.score_vs_fraction),
    "05_loss": partial(_depth, draw=scores.loss_vs_fraction),
    "06_forms": _forms,
    "06_similarity": _similarity,
    "06_map": _map,
    "06_divergence": _divergence,
    "07_phases": _phases,
    "07_changes": _changes,
    "08_path": _path,
    "09_by_length": _by_length,
    "09_by_position": _by_position,
    "09_speed": _speed,
}
