"""What all figures share: templates, text shown as text, frames left as they are, clear errors."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from drawn import FIGURES, SCRIPT, every_figure
from live_lab import FLAGS, find_chromium

import workbench as plots
from workbench.plots import style
from workbench.plots.style import variant_styles
from workbench.runs.figures import shared_script
from workbench.runs.pages import figure_html

NO_TEXT = {
    *("distance_heatmap", "damage_heatmap", "distance_beside_damage", "distance_lines", "distance_vs_damage")
}


def _strings(value) -> list[str]:
    if isinstance(value, dict):
        return [text for part in value.values() for text in _strings(part)]
    if isinstance(value, list | tuple | np.ndarray):
        return [text for part in value for text in _strings(part)]
    return [value] if isinstance(value, str) else []


def test_text_from_data_is_never_markup(distances, damage, kept, log):
    for name, fig in every_figure(distances, damage, kept, log).items():
        texts = [text for text in _strings(fig.to_dict()) if "script" in text]
        assert texts or name in NO_TEXT, name
        assert not [text for text in texts if "<script" in text], name


def test_a_figure_is_made_without_showing_saving_or_changing_its_frame(
    distances, damage, kept, log, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    before = [frame.copy() for frame in (distances, damage, kept, log)]
    every_figure(distances, damage, kept, log)
    assert not list(tmp_path.iterdir())
    for frame, copy in zip((distances, damage, kept, log), before, strict=True):
        pd.testing.assert_frame_equal(frame, copy)


@pytest.mark.parametrize(
    ("draw", "missing"),
    [
        (lambda bad: plots.distance_heatmap(bad), "start"),
        (lambda bad: plots.damage_heatmap(bad), "damage"),
        (lambda bad: plots.distance_lines(bad), "distance"),
        (lambda bad: plots.distance_vs_damage(bad, bad), "distance"),
        (lambda bad: plots.calibration_comparison(bad), "calibration"),
        (lambda bad: plots.kept_reasons(bad), "kept"),
        (lambda bad: plots.loss_curve(bad), "step"),
        (lambda bad: plots.score_bars(bad), "variant"),
        (lambda bad: plots.similarity_distribution(bad), "similarity"),
    ],
)
def test_missing_columns_are_named(draw, missing):
    with pytest.raises(ValueError, match=f"missing .*'{missing}'.*got \\['nonsense'\\]"):
        draw(pd.DataFrame({"nonsense": [1]}))


def test_templates_are_set_once_and_by_name(distances):
    assert plots.distance_heatmap(distances).layout.template.layout.width == 860
    plots.use_template("paper")
    fig = plots.distance_heatmap(distances)
    assert (fig.layout.width, fig.layout.title.text) == (648, None)  # 6.75 in; a caption says it
    assert fig.layout.meta["title"] == "Angular distance across each block"
    plots.use_template("column")
    assert plots.distance_heatmap(distances).layout.width == 312  # 3.25 in
    with pytest.raises(ValueError, match="one of screen, paper, column, got 'poster'"):
        plots.use_template("poster")


def test_a_variant_keeps_its_colour_when_others_are_left_out():
    whole = variant_styles(["base", "pruned", "pruned + SFT", "pruned + self-distilled", "merged"])
    assert len(set(whole.values())) == 5
    for name, own_style in whole.items():
        assert variant_styles([name])[name] == own_style
    assert len(set(variant_styles(["SFT 2", "SFT 4", "SFT 6"]).values())) == 3


@pytest.mark.parametrize("name", FIGURES)
def test_each_figure_takes_its_frame_as_it_is_and_shows_text_as_text(name):
    make, variant = FIGURES[name]
    frame = make().replace(variant, SCRIPT)
    before = frame.copy()
    fig = getattr(plots, name)(frame)
    pd.testing.assert_frame_equal(frame, before)
    text = json.dumps(fig.to_plotly_json(), default=lambda value: np.asarray(value).tolist())
    assert "<script" not in text and "&lt;script&gt;" in text


@pytest.mark.parametrize("name", FIGURES)
def test_each_figure_has_every_template_and_a_title_that_can_go(name):
    frame = FIGURES[name][0]()
    assert getattr(plots, name)(frame).layout.title.text
    assert not getattr(plots, name)(frame, title=None).layout.title.text
    for template in style.TEMPLATES:
        style.use_template(template)
        fig = getattr(plots, name)(frame)
        assert fig.layout.template.layout.font.family.startswith("Workbench Sans,")
        assert bool(fig.layout.title.text) == (template == "screen")


@pytest.mark.parametrize("name", FIGURES)
def test_what_a_frame_lacks_is_named(name):
    with pytest.raises(ValueError, match=r"missing .*got \['nonsense'\]"):
        getattr(plots, name)(pd.DataFrame({"nonsense": [1]}))
    with pytest.raises(ValueError, match="at least one row"):
        getattr(plots, name)(FIGURES[name][0]().head(0))


@pytest.mark.parametrize("template", style.TEMPLATES)
def test_every_figure_carries_its_own_size_in_what_is_saved(distances, damage, kept, log, template):
    style.use_template(template)
    wanted = style.current_template().layout
    made = every_figure(distances, damage, kept, log)
    made |= {name: getattr(plots, name)(make()) for name, (make, _) in FIGURES.items()}
    for name, fig in made.items():
        saved = json.loads(fig.to_json())["layout"]
        assert saved.get("width") == (None if template == "screen" else wanted.width), name
        assert saved["height"] >= 0.4 * wanted.height, name


def test_a_title_has_room_above_a_legend_or_the_titles_of_panels(distances, damage, kept, log):
    made = every_figure(distances, damage, kept, log)
    made |= {name: getattr(plots, name)(make()) for name, (make, _) in FIGURES.items()}
    sizes = style.current_template().layout
    for name, fig in made.items():
        legend, margin = fig.layout.legend, fig.layout.margin.t or sizes.margin.t
        sides = [sizes.font.size] if (legend.y or 0) > 1 and legend.yanchor == "bottom" else []
        notes = [note for note in fig.layout.annotations if note.yref == "paper" and note.yanchor == "bottom"]
        sides += [note.font.size or sizes.font.size for note in notes if note.y >= 0.99]
        needed = 1.6 * sizes.title.font.size + 2.2 * max(sides, default=0)
        assert not fig.layout.title.text or margin >= needed, (name, margin, needed)


def test_variants_differ_without_colour_and_can_be_seen_on_white():
    """Contrast as WCAG counts it; marks that are lighter than 3:1 have a form of their own."""

    def contrast(color: str) -> float:
        parts = np.array([int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return 1.05 / (float(linear @ [0.2126, 0.7152, 0.0722]) + 0.05)

    for looks in (style.LOOK["variants"], style.LOOK["sets"]):
        assert len({look.get("symbol", "circle") for look in looks}) == len(looks)
        assert all(contrast(look["color"]) >= 1.7 for look in looks)
    names = variant_styles(["base", "pruned", "pruned + SFT", "pruned + self-distilled"])
    assert all(contrast(one.color) >= 2.2 for one in names.values())
    forms = [contrast(look["color"]) for look in style.LOOK["forms"]]  # dark to light
    assert all(dark > 1.2 * light for dark, light in pairwise(forms))


def test_a_legend_of_two_lines_leaves_the_title_its_room():
    names = ["pruned-self-distilled, held out", "pruned-sft, held out", "pruned-sft", "pruned"]
    made = [
        style.legend_above(
            go.Figure(
                [go.Scatter(x=[1], y=[1], name=name) for name in some], {"width": 860, "height": 400}
            ).update_layout(title_text="Loss")
        ).layout
        for some in (names[-1:], names)
    ]
    grown = made[1].height - made[0].height
    assert grown > 15 and made[1].margin.t - made[0].margin.t == pytest.approx(grown)


#: what is cut off, what lies on something else, and how wide it is drawn
COLLISIONS = """() => [...document.querySelectorAll(".plotly-graph-div")].map((one) => {
    const box = (node) => node.getBoundingClientRect();
    const page = box(one.querySelector(".main-svg"));
    const words = ".gtitle, .legend text, .annotation text, [class^=xtitle], [class^=ytitle]";
    const texts = [...one.querySelectorAll(words)].filter((text) => box(text).width);
    const name = (text) => text.textContent.slice(0, 40);
    const leaves = ({ left, right }) => left < page.left - 1 || right > page.right + 1;
    const cut = texts.filter((text) => leaves(box(text))).map(name);
    const before = (a, b) => a.right < b.left + 2 || a.bottom < b.top + 2;
    const meet = (a, b) => !before(a, b) && !before(b, a);
    const pairs = texts.flatMap((a, i) => texts.slice(i + 1).map((b) => [a, b]));
    const over = pairs.filter(([a, b]) => meet(box(a), box(b))).map((pair) => pair.map(name));
    return [Math.round(page.width), cut, over];
})"""


@pytest.mark.browser
def test_on_the_screen_a_figure_is_as_wide_as_its_place_and_nothing_is_cut_or_covered(
    distances, damage, kept, log, tmp_path
):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    made = every_figure(distances, damage, kept, log)
    made |= {name: getattr(plots, name)(make()) for name, (make, _) in FIGURES.items()}
    script = shared_script(tmp_path / "plotly.min.js", tmp_path / "page.html")
    parts = [figure_html(fig.to_dict(), script=False) for fig in made.values()]
    (tmp_path / "page.html").write_text(
        f'<meta charset="utf-8"><script src="{script}"></script>{"".join(parts)}'
    )
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        page = browser.new_page(viewport={"width": 640, "height": 900})
        page.goto((tmp_path / "page.html").as_uri())
        found = dict(zip(made, page.evaluate(COLLISIONS), strict=True))
        browser.close()
    assert {name: one for name, one in found.items() if one != [624, [], []]} == {}


def test_names_of_a_group_stand_below_each_other_and_take_lines():
    traces = [
        go.Scatter(x=[1], y=[1], name=f"{name}{more}", legendgroup=name)
        for name in ("a", "b")
        for more in ("", ", held out")
    ]
    size = {"width": 860, "height": 400, "title": {"text": "Loss"}}
    both, alone = (style.legend_above(go.Figure(some, size)).layout for some in (traces, traces[::2]))
    assert both.height - alone.height == pytest.approx(both.margin.t - alone.margin.t)
    assert both.height - alone.height > 15
