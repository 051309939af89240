"""The figures of a run for a paper, from its frames: no model is loaded.

``captions.toml`` is the list: for each the frames that it needs and what its caption says; ``DRAWN`` says how
it is drawn. A figure whose frames are not there yet is left out, and the notebook that writes them is named.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from workbench.checks import checked
from workbench.evaluation.items import flip_counts
from workbench.evaluation.scores import category_scores, headline
from workbench.forgetting.changes import response_changes
from workbench.plots import blocks, drafts, forgetting, healing, heatmaps, merging, recovery, scores, style
from workbench.runs.run import Run
from workbench.tables.paper import readable

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
    listed, sets = tomllib.loads(CAPTIONS.read_text(encoding="utf-8")), _prompt_sets(run)
    found = []
    for name, told in listed.items():
        of_set = {f"{name}_{one}": one for one in sets if name in OF_PROMPTS} or {name: ""}
        for own, prompts in of_set.items():
            draw = partial(DRAWN[name], prompts=prompts) if prompts else DRAWN[name]
            beside = f" Prompts: {prompts}." if len(of_set) > 1 else ""
            found.append(Picture(own, tuple(told["needs"]), draw, told["caption"] + beside))
    return found


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
    files = {one.name: f"responses-{one.name}.jsonl" for one in run.variants()}
    responses = {name: run.read(file) for name, file in files.items() if file in run.files()}
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


def _iterations(run: Run, draw: Callable[..., go.Figure]) -> go.Figure:
    from workbench.recovery.phases import phase_scores

    iterations, base = run.read("iterations.csv"), _base(run)
    phases = phase_scores(run.read("iterative-scores.csv"), iterations, base=base, prefix="iterate-")
    chosen = headline(phases, prefer="acc")
    words = phases[phases["metric"] == "word_perplexity"]
    return draw(pd.concat([chosen[chosen["metric"] != "word_perplexity"], words]), iterations)


def _phases(run: Run) -> go.Figure:
    return _iterations(run, lambda shown, _: recovery.phase_lines(shown, columns=2, title=None))


def _changes(run: Run) -> go.Figure:
    from workbench.recovery.phases import phase_change

    def draw(shown: pd.DataFrame, iterations: pd.DataFrame) -> go.Figure:
        changed = phase_change(shown[shown["metric"] != "word_perplexity"])
        return recovery.phase_changes(changed, iterations, title=None)

    return _iterations(run, draw)


def _path(run: Run) -> go.Figure:
    along = checked(run.read("merging_recovery.csv"), ["t", "recovery"], "merging_recovery.csv")
    along = along.dropna(subset="t")
    return merging.merging_path(along, title=None)


def _drafts(run: Run, name: str) -> pd.DataFrame:
    """Return a frame with its drafts under the names that a reader understands."""
    named = readable(run.read(name).rename(columns={"draft": "variant"}))
    return named.rename(columns={"variant": "draft"})


def _accepted(run: Run, *, by_position: bool) -> go.Figure:
    from workbench.speculation.acceptance import acceptance, acceptance_by_position  # it brings torch

    rounds = _drafts(run, "draft_rounds.jsonl")
    if by_position:
        return drafts.acceptance_by_place(acceptance_by_position(rounds), title=None)
    return drafts.acceptance_by_length(acceptance(rounds), title=None)


def _speed(run: Run) -> go.Figure:
    from workbench.speculation.speed import speed_ups  # it brings torch

    return drafts.speed_against_theory(speed_ups(_drafts(run, "draft_speed.csv")), title=None)


#: name -> how it is drawn
DRAWN: dict[str, Callable[..., go.Figure]] = {
    "01_distances": lambda run: heatmaps.distance_heatmap(run.read("distances.csv"), title=None),
    "01_lines": lambda run: blocks.distance_lines(run.read("distances.csv"), title=None),
    "01_calibration": _calibration,
    "01_damage": _distance_and_damage,
    "01_metrics": _metrics,
    "01_agreement": _agreement,
    "02_chosen": _chosen,
    "03_kept": _kept,
    "04_healing": _healing,
    "04_tuning": lambda run: healing.tuning_figure(run.read("tuning.csv"), title=None),
    "05_scores": lambda run: scores.score_bars(read(run, "scores.csv"), title=None),
    "05_categories": lambda run: scores.category_bars(
        readable(category_scores(run.read("scores.csv"), prefer=None)), title=None
    ),
    "05_flips": _flips,
    "05_depth": partial(_depth, draw=scores.score_vs_fraction),
    "05_loss": partial(_depth, draw=scores.loss_vs_fraction),
    "06_forms": _forms,
    "06_similarity": _similarity,
    "06_pairs": lambda run: forgetting.similarity_pairs(read(run, "similarity.csv"), title=None),
    "06_map": _map,
    "06_divergence": _divergence,
    "06_lost": lambda run: forgetting.loss_similarity(read(run, "loss_similarity.csv"), title=None),
    "07_stack": lambda run: recovery.stack_over_iterations(run.read("iterations.csv"), title=None),
    "07_phases": _phases,
    "07_changes": _changes,
    "08_path": _path,
    "09_by_length": partial(_accepted, by_position=False),
    "09_by_position": partial(_accepted, by_position=True),
    "09_speed": _speed,
}
