"""Figures of iterative recovery: the stack over iterations, the phases, the loss by its terms. No torch."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from workbench.checks import checked
from workbench.evaluation.scores import score_intervals, task_names
from workbench.plots import axes, style
from workbench.tables.markup import task_label

#: of the loss, as a log names them; ``recovery.loss`` would bring torch
TERMS = ("hidden", "attention", "logits", "kl", "lm")
_PHASES = {"P": style.Style("#8b9199", "dot", "square"), "P+R": style.Style("#0072b2")}
#: a layer that is there, that goes, that is gone
STATES = ("#3b6ea5", "#d55e00", "#edeff2")


def stack_over_iterations(
    iterations: pd.DataFrame, n_layers: int | None = None, *, title: str | None = "Which layer went when"
) -> go.Figure:
    """Draw the stack of layers over the iterations: there, going in this iteration, gone (ITR figure 8).

    Args:
        iterations: of ``iterate`` (or ``read_iterations``): ``iteration, phase, layer, layers_left, order``.
        n_layers: of the whole model; None for what the frame says.
        title: of the figure.

    Raises:
        ValueError: for missing columns, or a frame without a removal.
    """
    needed = ["iteration", "phase", "layer", "layers_left", "order"]
    frame = checked(iterations, needed, "iterations")
    frame = checked(frame[frame["phase"] == "P"], needed, "iterations of phase P")
    depth = n_layers or int(frame["layers_left"].iloc[0]) + len(str(frame["order"].iloc[0]).split())
    last = int(frame["iteration"].max())
    went = dict(zip(frame["layer"].astype(int), frame["iteration"], strict=True))
    at, gone = np.arange(last + 1), np.array([went.get(layer, last + 1) for layer in range(depth)])[:, None]
    states = (gone <= at).astype(int) + (gone < at)
    words = np.array(["there", "goes", "gone"])[states].tolist()
    colours = [(k / 3 + e / 3, colour) for k, colour in enumerate(STATES) for e in (0, 1)]
    layout = style.current_template().layout
    low = 0.7 * layout.height / depth < style.small()  # a row of a deep model is lower than a number
    look = {"zmin": 0, "zmax": 2, "colorscale": colours, "showscale": False}
    trace = go.Heatmap(z=states.tolist(), customdata=words, xgap=2, ygap=0 if low else 1, **look)
    trace.update(hovertemplate="iteration %{x}: layer %{y} %{customdata}<extra></extra>")
    fig = style.new_figure(title, trace)
    for layer, iteration in {} if low else went.items():
        label = {"text": str(layer), "showarrow": False, "font": {"color": "white", "size": 11}}
        fig.add_annotation(x=int(iteration), y=layer, **label)
    fig.update_xaxes(title="iteration (0: the whole model)", **axes.layer_axis(last + 1))
    named = frame.astype({"layer": int}).astype({"layer": str}).groupby("iteration")["layer"].agg(",".join)
    if low:  # the layers stand under the iterations, under every few where there are many
        widest = 0.6 * layout.font.size * (2 + max(map(len, named)))
        room = 0.8 * layout.width / widest
        every = next(step for step in (1, 2, 5, 10, 20, 50) if (last + 1) / step <= room or step == 50)
        shown = [0, *named.index[named.index % every == 0]]
        texts = [f"{one}<br>({named[one]})" if one in named.index else "0" for one in shown]
        fig.update_xaxes(
            title="iteration (layer that went)", tickmode="array", tickvals=shown, ticktext=texts
        )
    return fig.update_yaxes(title="layer", **axes.layer_axis(depth))


def loss_terms(log: pd.DataFrame, *, title: str | None = "Recovery: loss by its terms") -> go.Figure:
    """Draw each term of the loss of recovery over its updates, on a logarithmic axis.

    Args:
        log: of ``recover``, or rows of ``iterate(progress=...)``: ``step`` and a column for each term; with
            ``iteration``, the iterations follow one another.
        title: of the figure.

    Raises:
        ValueError: for missing columns, or a log without a term.
    """
    frame = checked(log, ["step"], "log")
    terms = [name for name in TERMS if name in frame]
    if not terms:
        raise ValueError(f"log must have a column of a term such as hidden, got {list(frame)}")
    frame = frame.assign(update=range(1, len(frame) + 1))
    rows = frame.melt(["update"], terms, "term", "value")
    rows = rows[rows["value"] > 0]
    shown = {"hover": "%{fullData.name} %{y:.3g}", "title": title}
    fig = style.draw(px.line, rows, "update", "value", style.variant_styles(terms), "term", **shown)
    if "iteration" in frame:
        for first in frame.groupby("iteration")["update"].min().iloc[1:]:
            fig.add_vline(x=first - 0.5, line={"color": "#c4c9cf", "dash": "dot", "width": 1})
    fig.update_xaxes(title="update")
    return style.legend_above(fig.update_yaxes(title="mean squared difference", type="log"))


def recovery_progress(
    log: pd.DataFrame, n_layers: int, *, title: str | None = "Iterative recovery"
) -> go.Figure:
    """Draw the loss by its terms beside the stack of layers, as far as an ``iterate`` has come.

    Args:
        log: rows of ``iterate(progress=...)``, with ``iteration`` and ``order``.
        n_layers: of the whole model.
        title: of the figure.

    Raises:
        ValueError: for missing columns.
    """
    orders = checked(log, ["iteration", "order"], "log").groupby("iteration")["order"].last()
    gone, rows = 0, []
    for iteration, order in orders.items():
        layers = str(order).split()
        rows += [(iteration, "P", int(one), n_layers - len(layers), order) for one in layers[gone:]]
        gone = len(layers)
    stack = pd.DataFrame(rows, columns=["iteration", "phase", "layer", "layers_left", "order"])
    fig = style.new_panels(title, 1, 2, column_widths=[0.62, 0.38], horizontal_spacing=0.12)
    style.add_panel(fig, loss_terms(log, title=None), 1)
    style.add_panel(fig, stack_over_iterations(stack, n_layers, title=None), 2)
    fig.update_yaxes(type="log", title="mean squared difference", col=1).update_xaxes(title="update", col=1)
    fig.update_yaxes(title="layer", **axes.layer_axis(n_layers), col=2)
    return style.legend_above(fig.update_xaxes(title="iteration", **axes.layer_axis(len(orders) + 1), col=2))


def phase_lines(
    scores: pd.DataFrame,
    *,
    by: str = "task",
    columns: int = 3,
    title: str | None = "Scores by iteration, before (P) and after recovery (P+R)",
) -> go.Figure:
    """Draw scores over the iterations, dotted before and solid after recovery (ITR figures 2 to 5).

    Args:
        scores: of ``phase_scores``: ``iteration, phase, value``, the column ``by``, and an interval as
            ``low, high`` or as ``stderr`` where there is one.
        by: what has a panel each: ``task`` (figure 2), ``category`` (figure 3), or the groups of BLiMP and
            MMLU under a column of theirs (figures 4 and 5).
        columns: panels beside each other.
        title: of the figure.

    Raises:
        ValueError: for missing columns, or two values at one place.
    """
    frame = checked(scores, ["iteration", "phase", "value", by], "scores")
    frame = frame.assign(task=task_names(frame)) if by == "task" else frame
    frame = checked(frame, [], "scores", unique=(by, "phase", "iteration"))
    frame = score_intervals(frame) if "low" not in frame and "stderr" in frame else frame
    ends = {end: frame.get(end, frame["value"]).fillna(frame["value"]) for end in ("low", "high")}
    named = frame[by].astype(str).map(task_label)
    if "metric" in frame:
        named += frame["metric"].astype(str).str.contains("perplexity").map({True: ", perplexity", False: ""})
    frame = frame.assign(**ends, **{by: named})
    frame = style.escaped(frame, by, "phase").sort_values("iteration", kind="stable")
    panels = list(dict.fromkeys(frame[by]))
    across = max(1, min(columns, len(panels)))
    down = -(-len(panels) // across)
    asked = {"facet_col": by, "facet_col_wrap": across, "category_orders": {by: panels}, "markers": True}
    asked |= {"facet_col_spacing": 0.16 if style.narrow() else 0.06, "facet_row_spacing": 0.3 / down}
    shown = {"hover": "%{fullData.name}, iteration %{x}: %{y:.3f}", "error_y": ("low", "high")}
    fig = style.draw(px.line, frame, "iteration", "value", _PHASES, "phase", title=title, **asked, **shown)
    fig.update_traces(error_y={"thickness": 1, "width": 2})
    fig.update_yaxes(matches=None, showticklabels=True, title="")
    ticks = axes.layer_axis(int(frame["iteration"].max()) + 1, ticks=20 // across)["dtick"]
    fig.update_xaxes(dtick=ticks, showticklabels=True)
    axes.title_below(fig, "iteration", len(panels), across)
    height = 110 + down * 0.55 * style.current_template().layout.height
    return style.legend_below(style.facet_titles(fig).update_layout(height=height))


def phase_changes(
    changes: pd.DataFrame, iterations: pd.DataFrame, *, title: str | None = "What each phase changed"
) -> go.Figure:
    """Draw what pruning and recovery changed in each iteration, task by task (ITR figure 8).

    Args:
        changes: of ``phase_change``: ``iteration, phase, task, change``, scores where more is better.
        iterations: of ``iterate``, which name the layers that went.
        title: of the figure.

    Raises:
        ValueError: for missing columns, or two changes at one place.
    """
    where = ("task", "phase", "iteration")
    frame = checked(changes, [*where, "change"], "changes")
    frame = checked(frame.assign(task=task_names(frame)), [], "changes", unique=where)
    gone = checked(iterations, ["iteration", "phase", "layer"], "iterations")
    cut = gone[gone["phase"] == "P"].astype({"layer": int}).astype({"layer": str})
    layers = cut.groupby("iteration")["layer"].agg(",".join)
    frame = style.escaped(frame.assign(task=frame["task"].map(task_label)), "task")
    frame = frame.sort_values(["iteration", "phase"], kind="stable")
    named = [
        f"{row.iteration} P ({layers[row.iteration]})" if row.phase == "P" else f"{row.iteration} R"
        for row in frame.itertuples()
    ]
    wide = frame.assign(at=named).pivot(index="task", columns="at", values="change")
    wide = wide.reindex(columns=list(dict.fromkeys(named)), index=list(dict.fromkeys(frame["task"])))
    most = float(frame["change"].abs().max()) or 1.0  # a scale also where nothing changed
    trace = go.Heatmap(
        z=wide.to_numpy(),
        x=list(wide.columns),
        y=list(wide.index),
        colorscale="RdBu",
        zmin=-most,
        zmax=most,
        texttemplate=None if style.narrow() or len(wide.columns) > 20 else "%{z:+.2f}",  # 7 pt need room
        colorbar={"title": "change"},
        hovertemplate="%{y}, %{x}: %{z:+.3f}<extra></extra>",
    )
    fig = style.new_figure(title, trace)
    fig.update_yaxes(title="", autorange="reversed", showgrid=False, automargin=True)
    first = [name for name in wide.columns if " P" in name]
    room = 10 if style.narrow() else 20  # labels that fit beside each other
    every = -(-len(first) // (8 if style.narrow() else 16))
    ticks = wide.columns if len(wide.columns) <= room else first[::every]
    shown = {"tickvals": list(ticks), "tickangle": -40, "showgrid": False}
    return fig.update_xaxes(title="iteration and phase (layer that went)", **shown)
