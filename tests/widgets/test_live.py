"""The live loss curve follows its trainings."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest

from workbench.runs.pages import PLOTLY
from workbench.widgets.live import RIGHT, LiveLoss, live_drawing

CELL = """
import time
import pandas as pd
from workbench.widgets.live import LiveLoss
live = LiveLoss(every=0.05)
for name in ("sft", "distilled"):
    see = live.watch(name)
    for k in range(1, 6):
        see({"step": k, "steps": 5, "loss": 1 / k, "tokens_per_second": 1.0, "seconds_left": 5 - k})
        time.sleep(0.06)
    live.add(name, pd.DataFrame(live.rows[name]))
"""


def rows(n, steps=20):
    return [
        {"step": k, "steps": steps, "loss": 5 / k, "tokens_per_second": 3050.4, "seconds_left": 74.6}
        for k in range(1, n + 1)
    ]


def test_the_curve_grows_with_every_row_and_forgets_what_is_trained_again():
    live = LiveLoss()
    with pytest.raises(ValueError, match="it has seen none"):
        live.figure()
    see = live.watch("pruned-sft")
    for row in rows(8):
        see(row)
    fig = live.figure()
    assert list(fig.data[-1].x) == list(range(1, 9))
    assert fig.layout.xaxis.range == pytest.approx((0, 20.2))
    for row in rows(6)[4:]:  # back to step 5
        see(row)
    assert live.log()["step"].tolist() == [1, 2, 3, 4, 5, 6]
    live.add("pruned-self-distilled", pd.DataFrame(rows(20)).drop(columns="steps"))
    fig = live.figure("pruned-sft: <b>")
    assert {trace.name for trace in fig.data if trace.showlegend is not False} == {
        "pruned-sft",
        "pruned-self-distilled",
    }
    assert fig.layout.title.subtitle.text == "pruned-sft: &lt;b&gt;"


def numbers(values):
    """Return a list that plotly may have packed."""
    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), dtype=values["dtype"]).tolist()
    return list(values)


def test_a_front_end_without_comms_sees_it_move_and_keeps_the_whole(told):
    first, *moves = told(CELL)
    assert first["type"] == "display_data"
    assert {one["type"] for one in moves} == {"update_display_data"}
    assert {one["transient"]["display_id"] for one in moves} == {first["transient"]["display_id"]}
    drawn = [one["data"]["text/html"] for one in (first, *moves) if PLOTLY not in one["data"]]
    said = [parts(one, "live-status")[0].text or "" for one in drawn]
    steps = [int(one.split("step ")[1].split(" of")[0]) for one in said if one.startswith("sft")]
    assert steps == sorted(steps) and {1, 5} <= set(steps)
    last = moves[-1]["data"]
    assert [trace["name"] for trace in last[PLOTLY]["data"]] == ["sft", "distilled"]
    assert [numbers(trace["x"]) for trace in last[PLOTLY]["data"]] == [[1, 2, 3, 4, 5]] * 2
    assert "subtitle" not in last[PLOTLY]["layout"]["title"]
    lines = parts(last["image/svg+xml"], "live-line")  # where no plotly is drawn
    assert [len(line.get("points").split()) for line in lines] == [5, 5]


def test_drawing_takes_a_twentieth_of_the_time_at_most(monkeypatch):
    drawn, clock = [], iter(range(1000))  # every look at the clock is a second later
    monkeypatch.setattr("workbench.widgets.live.time.monotonic", lambda: float(next(clock)))
    monkeypatch.setattr("IPython.core.getipython.get_ipython", object)
    monkeypatch.setattr(LiveLoss, "_display", lambda self, bundle: drawn.append(bundle))
    see = LiveLoss(every=0.5).watch("pruned-sft")
    for row in rows(10):  # a row a second; drawing takes one, so the next is drawn twenty seconds later
        see(row)
    assert len(drawn) == 1
    see(rows(20)[-1])  # but the last one in any case
    assert "step 20 of 20" in drawn[-1]["text/html"]


def parts(drawing: str, name: str) -> list[ET.Element]:
    return [one for one in ET.fromstring(drawing).iter() if one.get("class") == name]


def test_the_drawing_holds_every_line_and_what_is_held_out():
    seen = {"pruned-sft <b>": rows(20), "pruned-self-distilled": rows(7)}
    seen["pruned-sft <b>"][9] |= {"held_out_loss": 2.5}
    drawing = live_drawing(seen, "Loss", "step 7 & more")
    first, second = (one.get("points").split() for one in parts(drawing, "live-line"))
    assert (len(first), len(second)) == (20, 7)
    x, y = ([float(point.split(",")[axis]) for point in first] for axis in (0, 1))
    assert np.allclose(np.diff(x), np.diff(x)[0], atol=0.11)  # a step is as wide as any other
    (mark,) = parts(drawing, "live-held-out")
    at = [float(value) for value in re.findall(r"[\d.]+", mark.get("transform"))[:2]]
    assert at[0] == x[9]
    assert np.interp(at[1], y, [row["loss"] for row in rows(20)]) == pytest.approx(2.5, abs=0.02)
    assert [one.text for one in parts(drawing, "live-status")] == ["step 7 & more"]
    assert "pruned-sft <b> (diamonds: held out)" in [one.text for one in parts(drawing, "live-text")]


def test_a_long_training_stays_small_and_keeps_its_last_step():
    drawing = live_drawing({"a": rows(20_000, steps=20_000)}, "Loss", "")
    (line,) = parts(drawing, "live-line")
    assert len(drawing) < 20_000
    assert float(line.get("points").split()[-1].split(",")[0]) == RIGHT


def test_a_loss_that_is_no_number_is_left_out():
    seen = rows(5)
    seen[2]["loss"] = float("nan")
    (line,) = parts(live_drawing({"a": seen}, "Loss", ""), "live-line")
    assert len(line.get("points").split()) == 4
