"""What a paper prints: sizes on paper, one embedded font, nothing cut off, small files, captions, a page."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from operator import itemgetter

import numpy as np
import pandas as pd
import pytest
from frames import distance_frame
from live_lab import FLAGS, find_chromium
from printed import printed_run

import workbench as wb
from workbench.plots import paper, portfolio, style
from workbench.runs import figures as export
from workbench.runs.files import write_text_atomic
from workbench.runs.run import open_run
from workbench.tables.paper import attempted, matching, sheets

#: every figure of a whole run; the divergence needs a frame of tokens, which only a model makes
NAMES = [
    "01_distances", "01_lines", "01_calibration", "01_damage", "01_metrics", "01_agreement", "02_chosen",
    "03_kept", "04_healing", "04_tuning", "05_scores", "05_categories", "05_flips", "05_depth", "05_loss",
    "06_forms_math", "06_forms_open", "06_similarity_math", "06_similarity_open", "06_pairs", "06_map",
    "06_lost", "07_stack", "08_path",
]  # fmt: skip
SEVEN_POINTS = 7 * 96 / 72


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return printed_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def printed(run, tmp_path_factory):
    """Return the folder and the list of a column's figures, as SVG and PDF."""
    if not export.browser_found():
        pytest.skip("no Chrome or Chromium on this machine; plotly_get_chrome installs one")
    out = tmp_path_factory.mktemp("paper")
    return out, wb.paper_figures(run, out, columns=1, formats=["svg", "pdf"])


def test_every_figure_of_a_run_is_listed_and_what_it_lacks_is_named(run, tmp_path):
    assert [picture.name for picture in paper.pictures(run)] == NAMES
    lacking = {one.name: frames for one, frames in paper.left_out(run)}
    assert lacking.pop("06_divergence") == ["divergence.jsonl"]
    assert {name: needs[-1] for name, needs in lacking.items()} == {
        "07_phases": "iterative-scores.csv",
        "07_changes": "iterative-scores.csv",
        "09_by_length": "draft_rounds.jsonl",
        "09_by_position": "draft_rounds.jsonl",
        "09_speed": "draft_speed.csv",
    }
    empty = open_run("empty", root=tmp_path)
    assert {one.name for one, _ in paper.left_out(empty)} >= {"01_distances", "06_forms"}
    with pytest.raises(
        ValueError, match=r"run 'empty' .* holds no frames to draw; run notebook 01_angular_distance first"
    ):
        wb.paper_figures(empty)
    with pytest.raises(ValueError, match=r"columns must be some of 1, 2, got \[3\]"):
        wb.paper_figures(run, columns=3)
    with pytest.raises(ValueError, match=r"formats must be some of .*got \['gif'\]"):
        wb.paper_figures(run, formats="gif")


THIN = {
    "empty": lambda frame: frame.head(0),
    "one row": lambda frame: frame.head(1),
    "NaN": lambda frame: frame.assign(**dict.fromkeys(frame.select_dtypes("float"), np.nan)),
}


@pytest.mark.parametrize("thinned", THIN)
def test_frames_that_hold_too_little_give_a_figure_or_table_or_why_not(run, monkeypatch, thinned):
    read, made = type(run).read, [*paper.pictures(run), *sheets(run)]
    for need in sorted({need for one in made for need in one.needs if not need.endswith(".json")}):
        names = matching(run, need)

        def thin(self, name, names=names):
            frame = read(self, name)
            return THIN[thinned](frame) if name in names else frame

        monkeypatch.setattr(type(run), "read", thin)
        for one in made:
            if need in one.needs:
                got, why = attempted(getattr(one, "drawn", None) or one.forms, one.needs, run)
                assert (got is None) == bool(why), one.name
                assert got is None or not isinstance(got, dict) or "nan" not in got["md"].lower(), one.name
                assert "Error" not in why and "\n" not in why, (one.name, need, why)
                assert thinned != "empty" or why.endswith("has no rows"), (one.name, need)


def test_a_table_without_a_row_is_named_with_the_reason_and_nothing_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(portfolio, "browser_found", lambda: False)
    some = [one for one in paper.pictures(printed_run(tmp_path)) if one.name in ("05_scores", "06_lost")]
    monkeypatch.setattr(portfolio, "pictures", lambda _: some)
    thin = printed_run(tmp_path, name="thin")
    thin.write("comparisons.csv", thin.read("comparisons.csv").assign(p_adjusted=0.5))
    thin.write("loss_similarity.csv", thin.read("loss_similarity.csv").head(0))
    stale = [
        thin.folder / "tables" / f"{name}.{end}" for name in ("differences", "mine") for end in ("tex", "md")
    ]
    old = thin.folder / "figures" / "one-column" / "06_lost.html"
    for path in (*stale, old):
        write_text_atomic(path, "0.123")
    with pytest.warns(UserWarning, match="plotly_get_chrome"):
        listed = wb.paper_figures(thin, columns=1)
    assert stale[0].read_text().startswith("% Paired differences of scores: no difference is clear")
    assert ["0.123" in path.read_text() for path in stale] == [False, False, True, True]  # the others' own
    assert not old.exists() and old.with_name("06_lost.before.html").is_file()
    left = listed.attrs["left_out"]
    assert left["differences"].startswith("Paired differences of scores: no difference is clear")
    assert left["06_lost"].endswith(": loss_similarity.csv has no rows")
    assert left["09_speed"].endswith(": run notebook 09_speculative_decoding")
    assert not {"differences", "06_lost"} & set(listed["name"]) and "results" in set(listed["name"])
    for page in ("index.html", "figures/captions.tex"):
        assert "06_lost" not in (thin.folder / page).read_text()


def test_a_table_without_a_row_is_left_out_and_every_reason_is_in_words(tmp_path, monkeypatch):
    monkeypatch.setattr(portfolio, "browser_found", lambda: False)
    small = open_run("small", root=tmp_path)
    small.write("distances.csv", distance_frame(8, n_texts=3))
    unclear = {"variant": "a", "against": "b", "task": "t", "metric": "acc", "n": 9, "difference": 0.0}
    unclear |= {"ci_low": -0.1, "ci_high": 0.1, "p_value": 1.0, "p_adjusted": 1.0}
    small.write("comparisons.csv", pd.DataFrame([unclear]))
    with pytest.warns(UserWarning, match="plotly_get_chrome"):
        listed = wb.paper_figures(small, columns=1)
    left = listed.attrs["left_out"]
    assert not (small.folder / "tables").exists()
    assert left["differences"].startswith("Paired differences of scores: no difference is clear")
    assert left["04_healing"] == "Loss while the pruned model is fine-tuned: run notebook 04_healing"
    assert left["06_forms"] == "How the responses state their final answer: run notebook 06_forgetting"
    assert not any("*" in why or ".csv" in why for why in left.values())


def test_files_of_others_are_not_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(portfolio, "browser_found", lambda: False)
    small, mine = open_run("small", root=tmp_path), tmp_path / "paper" / "figures" / "captions.tex"
    small.write("distances.csv", distance_frame(8, n_texts=3))
    write_text_atomic(mine, "my captions")
    with pytest.raises(
        ValueError, match=f"out must be a folder that is new, .*{tmp_path / 'paper'} holds other"
    ):
        wb.paper_figures(small, tmp_path / "paper", columns=1)
    assert mine.read_text() == "my captions" and len([*mine.parent.iterdir()]) == 1
    captions = tmp_path / "new" / "figures" / "captions.tex"
    for _ in range(2):
        with pytest.warns(UserWarning, match="plotly_get_chrome"):
            wb.paper_figures(small, tmp_path / "new", columns=1)
        assert "stale" not in captions.read_text()
        captions.write_text("stale")


@pytest.mark.parametrize("template", style.TEMPLATES)
def test_no_figure_is_without_its_size_and_none_in_print_has_a_title(run, template):
    style.use_template(template)
    for picture in paper.pictures(run):
        fig = picture.draw(run)
        width = {"screen": None, "paper": 6.75 * 96, "column": 3.25 * 96}[template]
        assert fig.layout.width == width, picture.name
        assert 60 < fig.layout.height < (1200 if template == "screen" else 6 * 96), picture.name
        assert not fig.layout.title.text, picture.name
        assert not any(getattr(trace.marker.pattern, "shape", None) for trace in fig.select_traces("bar"))


def names_of(listed, ending):
    return [file for file in listed["file"] if file.endswith(ending)]


@pytest.mark.browser
def test_text_is_of_7_points_at_least_in_the_shipped_font(printed):
    out, listed = printed
    assert len(names_of(listed, ".svg")) == len(NAMES)
    for file in names_of(listed, ".svg"):
        tree = ElementTree.fromstring((out / file).read_bytes())
        assert tree.get("width") == "312"
        texts = [node for node in tree.iter() if node.tag.endswith(("}text", "}tspan")) and node.get("style")]
        assert texts, file
        for node in texts:
            look = node.get("style")
            sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", look)]
            assert min(sizes, default=99) >= SEVEN_POINTS - 0.01, (file, node.text, look)
            assert "font-family" not in look or "Workbench Sans" in look
        assert "@font-face" in (out / file).read_text()


@pytest.mark.browser
def test_a_pdf_is_as_wide_as_a_column_with_one_embedded_font_and_the_figures_name(printed):
    out, listed = printed
    for file in names_of(listed, ".pdf"):
        data = (out / file).read_bytes()
        assert re.search(rb"/MediaBox \[0 0 234 ", data), file  # 3.25 in
        fonts = set(re.findall(rb"/BaseFont /(?:[A-Z]{6}\+)?(\S+)", data))
        assert fonts == {b"WorkbenchSans"}, file
        assert b"/FontFile2" in data
        name = file.rpartition("/")[2].removesuffix(".pdf")
        assert name.encode() in data or name.encode("utf-16-be") in data, file  # its title
        assert b"Kaleido" not in data


@pytest.mark.browser
def test_files_are_small_and_named_in_the_list(printed):
    out, listed = printed
    assert set(listed["columns"]) == {0, 1}
    for row in listed.itertuples():
        assert (out / row.file).stat().st_size == pytest.approx(1000 * row.kilobytes, abs=60)
        assert row.kilobytes <= 200, row.file


@pytest.mark.browser
def test_no_text_leaves_the_page_or_lies_on_another_tick(printed):
    """Asked in a browser: what an SVG says of a text's place is nothing that can be read from the file."""
    out, listed = printed
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        page = browser.new_page(viewport={"width": 400, "height": 900})
        for file in names_of(listed, ".svg"):
            page.set_content(f"<body style='margin:0'>{(out / file).read_text()}</body>")
            found = page.evaluate(
                """async () => {
                    await document.fonts.ready;
                    const page = document.querySelector("svg").getBoundingClientRect();
                    const boxes = (selector) => [...document.querySelectorAll(selector)].map((one) => {
                        const box = one.getBoundingClientRect();
                        return [one.textContent, box.left, box.right, box.top, box.bottom];
                    });
                    const cut = boxes("text").filter(([, left, right, top, bottom]) =>
                        left < page.left - 1 || right > page.right + 1 || top < page.top - 1 ||
                        bottom > page.bottom + 1);
                    return {cut, across: boxes("g.xtick text"), up: boxes("g.ytick text")};
                }"""
            )
            assert not found["cut"], (file, found["cut"])
            across, up = found["across"], found["up"]
            rows = [(text, left, right, round(top)) for text, left, right, top, _ in across]
            rows += [(text, top, bottom, round(right)) for text, _, right, top, bottom in up]
            for (text, _, end, line), (other, start, _, at) in pairwise(sorted(rows, key=itemgetter(3, 1))):
                assert line != at or end <= start + 2.5, (file, text, other)
        browser.close()


@pytest.mark.browser
def test_captions_tables_and_the_page_name_every_figure(printed, run):
    out, _ = printed
    captions, page = (out / "figures" / "captions.tex").read_text(), (out / "index.html").read_text()
    for picture in paper.pictures(run):
        assert len(picture.caption) > 40 and picture.caption.endswith(".")
        assert f"includegraphics[width=3.25in]{{one-column/{picture.name}.pdf}}" in captions
        assert f'src="figures/one-column/{picture.name}.svg"' in page
    assert "python -m workbench figures printed" in page
    for target in re.findall(r'(?:href|src)="([^"]+)"', page):
        assert (out / target).is_file(), target
    assert "http" not in page.replace("http-equiv", "")
    assert captions.count(r"\begin{figure}") == len(NAMES)


def test_without_a_browser_there_are_pages_and_numbers_and_one_line(run, tmp_path, monkeypatch):
    monkeypatch.setattr(portfolio, "browser_found", lambda: False)
    with pytest.warns(UserWarning, match="plotly_get_chrome") as warned:
        listed = wb.paper_figures(run, tmp_path, columns=1)
    assert len(warned) == 1
    assert {file.rpartition(".")[2] for file in listed[listed["columns"] == 1]["file"]} == {"html", "csv"}
    assert style.current_name() == "screen"


def test_the_list_of_figures_needs_no_torch(root):
    code = "import sys, workbench.plots.portfolio; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
