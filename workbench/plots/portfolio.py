"""Every figure and table of a run as files for a paper, with captions and a page that shows them all."""

from __future__ import annotations

import html
import re
import shlex
import warnings
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import pandas as pd

from workbench.checks import some_of
from workbench.plots import style
from workbench.plots.paper import Picture, left_out, pictures
from workbench.runs.figures import FORMATS, browser_found, save_figure
from workbench.runs.files import template, write_text_atomic
from workbench.runs.run import Run
from workbench.runs.writers import notebook_that_writes
from workbench.tables.markup import latex_text
from workbench.tables.paper import attempted, every_sheet, sheets

#: columns of a page -> the template of its figures, its folder, its width in inches
COLUMNS = {1: ("column", "one-column", 3.25), 2: ("paper", "two-columns", 6.75)}
#: pixels of a PNG per pixel of a figure: 192 dots an inch
_SCALE = 2
#: a page of figures says so
_MADE_BY = "python -m workbench figures"
_PAGE = template(Path(__file__).with_name("portfolio.html.j2"))


def paper_figures(
    run: Run,
    out: str | Path | None = None,
    *,
    columns: int | Iterable[int] = (1, 2),
    formats: str | Iterable[str] = ("pdf", "png"),
) -> pd.DataFrame:
    """Write every figure and table that the frames of a run allow, as a paper prints them, without a model.

    Figures are 3.25 in (one column) and 6.75 in (two) wide, their text 8 pt, labels inside 7, in one embedded
    font, without a title: what a title would say is in ``figures/captions.tex``. Tables are LaTeX for
    ``booktabs``, Markdown and HTML. ``index.html`` shows everything.

    Args:
        run: whose notebooks have run; what is missing for a figure leaves that figure out.
        out: folder for ``figures/``, ``tables/`` and ``index.html``: new, empty, or one that was made so
            before; None means that of the run.
        columns: widths to draw: 1, 2 or both.
        formats: as for ``save_figure``. Without a Chrome or Chromium they become HTML and CSV.

    Returns:
        A row a file: name, columns (0 for a table), file (relative to ``out``), width_in, kilobytes.
        ``attrs["left_out"]`` names the figures and tables left out, each with what it shows and why: which
        notebook writes what it needs, or what its frames hold too little of.

    Raises:
        ValueError: for other columns or formats, an ``out`` with other files, or a run that has no frame for
            any figure.
    """
    wanted, endings = some_of(columns, COLUMNS, "columns"), some_of(formats, FORMATS, "formats")
    folder = Path(out if out is not None else run.folder)
    _check_folder(folder, run)
    drawn = pictures(run)
    if not drawn:
        first = _writer(left_out(run)[0][1])
        raise ValueError(f"run {run.name!r} ({run.folder}) holds no frames to draw; {first} first")
    if not browser_found():
        endings, instead = ["html", "csv"], "figures are HTML and CSV (`plotly_get_chrome` installs one)"
        warnings.warn(f"No Chrome or Chromium starts here: {instead}", stacklevel=2)
    if not (page := folder / "index.html").exists():  # first: it marks the folder as ours
        write_text_atomic(page, _index(run, [], {}, wanted, endings))
    left = {one.name: _told(one.caption, _writer(frames)) for one, frames in left_out(run)}
    rows: list[tuple[str, int, Path]] = []
    for one in wanted:
        rows += _write_figures(run, drawn, folder, one, endings, left)
    drawn = [picture for picture in drawn if picture.name not in left]
    made = [(sheet, *attempted(sheet.forms, sheet.needs, run)) for sheet in sheets(run)]
    tables = {sheet.name: forms for sheet, forms, why in made if not why}
    left |= {sheet.name: _told(sheet.caption, why) for sheet, _, why in made if why}
    for name, forms in tables.items():
        for ending, text in forms.items():
            rows.append((name, 0, write_text_atomic(folder / "tables" / f"{name}.{ending}", text)))
    _mark_stale(folder, tables, left)
    write_text_atomic(folder / "figures" / "captions.tex", _captions(drawn, wanted))
    shown = {name: forms["html"] for name, forms in tables.items()}
    write_text_atomic(folder / "index.html", _index(run, drawn, shown, wanted, endings))
    return _listed(rows, folder, left)


def _check_folder(folder: Path, run: Run) -> None:
    """Refuse a folder, other than the run's, that is neither new nor empty nor was filled here before."""
    if folder.is_file():
        raise ValueError(f"out must be a folder, {folder} is a file")
    page = folder / "index.html"
    ours = page.is_file() and _MADE_BY in page.read_text(encoding="utf-8", errors="replace")
    if not folder.is_dir() or ours or (folder.resolve() == run.folder.resolve() and not page.exists()):
        return
    if any(folder.iterdir()):
        wanted = "new, empty, or one that figures were written to before"
        raise ValueError(f"out must be a folder that is {wanted}; {folder} holds other files")


def _mark_stale(folder: Path, made: Iterable[str], left: dict[str, str]) -> None:
    """Put the reason in the place of a table that was written before, and take a figure out of its place."""
    for sheet in every_sheet():
        why = left.get(sheet.name, _told(sheet.caption, "its frames are not in the run"))
        texts = {"tex": f"% {why}\n", "md": f"{why}\n", "html": f"<p>{html.escape(why)}</p>\n"}
        for ending, text in [] if sheet.name in made else texts.items():
            if (path := folder / "tables" / f"{sheet.name}.{ending}").is_file():
                write_text_atomic(path, text)
    for name, (_, place, _), ending in product(left, COLUMNS.values(), FORMATS):
        path = folder / "figures" / place / f"{name}.{ending}"
        if path.is_file():
            path.replace(path.with_name(f"{name}.before.{ending}"))


def _write_figures(
    run: Run, drawn: list[Picture], folder: Path, columns: int, endings: list[str], left: dict[str, str]
) -> list[tuple[str, int, Path]]:
    """Write the figures at one width; of which the frames hold too little is added to what is left out."""
    template, place, _ = COLUMNS[columns]
    before, rows = style.current_name(), []
    style.use_template(template)
    try:
        for picture in drawn:
            fig, why = attempted(picture.drawn, picture.needs, run)
            if fig is None:
                left[picture.name] = _told(picture.caption, why)
                continue
            fig.update_layout(meta={"title": f"{picture.name}: {picture.caption}"})
            paths = save_figure(fig, folder / "figures" / place / picture.name, endings, scale=_SCALE)
            rows += [(picture.name, columns, path) for path in paths]
    finally:
        style.use_template(before)
    return rows


def _listed(rows: list[tuple[str, int, Path]], folder: Path, left: dict[str, str]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["name", "columns", "file"])
    paths = frame.pop("file")
    frame["file"] = [path.relative_to(folder).as_posix() for path in paths]
    frame["width_in"] = frame["columns"].map({one: width for one, (*_, width) in COLUMNS.items()})
    frame["kilobytes"] = [round(path.stat().st_size / 1000, 1) for path in paths]
    frame.attrs["left_out"] = left
    return frame


def _writer(frames: list[str]) -> str:
    """Return how to get the first of some frames."""
    notebook = notebook_that_writes(frames[0])
    return f"run notebook {notebook}" if notebook else f"{frames[0]} is not there"


def _told(caption: str, why: str) -> str:
    """Return what a caption begins with, and why it is not shown."""
    return f"{re.split(r'[.,;:(]', caption)[0].strip()}: {why}"


def _captions(drawn: list[Picture], columns: list[int]) -> str:
    """Return an environment a figure: LaTeX takes it as it stands, for the narrowest width that was drawn."""
    one = min(columns)
    _, place, width = COLUMNS[one]
    star = "" if one == 1 else "*"
    parts = ["% \\usepackage{graphicx}\n"]
    for picture in drawn:
        label = re.sub(r"[^A-Za-z0-9:._-]", "-", picture.name)
        parts.append(
            f"\\begin{{figure{star}}}[t]\n\\centering\n"
            f"\\includegraphics[width={width}in]{{{place}/{picture.name}.pdf}}\n"
            f"\\caption{{{latex_text(picture.caption)}}}\n\\label{{fig:{label}}}\n\\end{{figure{star}}}\n"
        )
    return "\n".join(parts)


def _index(
    run: Run, drawn: list[Picture], tables: dict[str, str], columns: list[int], endings: list[str]
) -> str:
    told = {
        "title": f"Figures and tables of the run {run.name}",
        "command": f"{_MADE_BY} {shlex.quote(run.name)}",
        "widths": [{"place": COLUMNS[one][1], "inches": COLUMNS[one][2]} for one in columns],
        "image": next((one for one in ("png", "svg") if one in endings), None),
    }
    return _PAGE.render(**told, pictures=drawn, tables=tables, endings=endings)
