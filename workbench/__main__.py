"""The command line: run the numbered notebooks and print what they found; figures for a paper; healing."""

from __future__ import annotations

import argparse
import ast
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.runs.run import Run, open_run

#: the whole run's summary; before its last notebook has run, the one of notebook 00
SUMMARIES = ("summary.csv", "start_here/summary.csv")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when done, 1 for a failed notebook, 2 for wrong use, 130 when stopped."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except KeyboardInterrupt as stopped:
        told = "Stopped. The same command goes on from here: what is stored is not computed again."
        print(f"\n{str(stopped) or told}", file=sys.stderr)
        return 130
    except ValueError as error:
        print(f"workbench: {error}", file=sys.stderr)
        return 2


def _notebooks(options: argparse.Namespace) -> int:
    """Run notebooks; imports what a cluster that only heals does not need."""
    from workbench.runs.notebooks import NotebookFailed, numbered_notebooks, run_notebooks

    for number in (signal.SIGINT, signal.SIGTERM):  # Python raises at none of them in a background job
        signal.signal(number, signal.default_int_handler)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # a stop leaves tasks of the kernel's client
    run = open_run(options.run, root=options.root)
    try:
        stated = _preset(options.preset)
        run_notebooks(numbered_notebooks(options.notebooks), run, dict(options.set), where_known=stated)
    except NotebookFailed as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    _report(run)
    return 0


def _preset(name: str | None) -> dict[str, Any]:
    if name is None:
        return {}
    from workbench.defaults import preset_parameters

    return preset_parameters(name)


def _figures(options: argparse.Namespace) -> int:
    """Write the figures and tables of a run; those that it has no frames for are named."""
    from workbench.plots.portfolio import paper_figures

    run = open_run(options.run, root=options.root)
    formats = options.formats.split(",")
    files = paper_figures(run, options.out, columns=options.columns or (1, 2), formats=formats)
    for name, notebook in files.attrs["left_out"].items():
        print(f"left out   {name}: run notebook {notebook} for this run")
    folder = Path(os.path.relpath(options.out or run.folder))
    drawn = files[files["columns"] > 0]
    print(f"figures    {drawn['name'].nunique()}, in {folder / 'figures'}")
    print(f"tables     {files[files['columns'] == 0]['name'].nunique()}, in {folder / 'tables'}")
    print(f"all        {folder / 'index.html'}")
    return 0


def _heal(options: argparse.Namespace) -> int:
    from workbench.healing.launch import run_plan

    if options.cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    try:
        healed = run_plan(options.plan, overwrite=options.overwrite)
    except ValueError as error:  # in the words of this surface
        told = str(error).replace("give another out", "plan it with another out")
        raise ValueError(told.replace("overwrite=True", "--overwrite")) from error
    if os.environ.get("RANK", "0") == "0":
        done = f"{len(healed.log)} steps, last loss {healed.log['loss'].iloc[-1]:.4f}"
        print(f"{healed.adapter}: {done}, in {_processes()}")
    return 0


def _processes() -> str:
    from accelerate import PartialState

    return "1 process" if PartialState().num_processes == 1 else f"{PartialState().num_processes} processes"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m workbench", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="run the notebooks on the shipped demo model")
    demo.add_argument("--run", default="demo", help="name of the run (default: demo)")
    own = commands.add_parser("run", help="run the notebooks under a name of your own")
    own.add_argument("run", metavar="NAME", help="of the run: its results go to data/runs/NAME")
    for command in (demo, own):
        command.set_defaults(command=_notebooks)
        add = command.add_argument
        add("notebooks", nargs="*", metavar="NOTEBOOK", help="number or name; default: all, in order")
        add("--root", help="folder of all runs (default: data/runs, or $WORKBENCH_RUNS)")
        told = "a value for a name in the notebooks' parameters cells, such as model_name=path/to/model"
        paper = "what a paper states, for all notebooks: sdd, gro or itr; --set goes before it"
        add("--preset", metavar="NAME", help=paper)
        add("--set", action="append", default=[], type=_setting, metavar="NAME=VALUE", help=told)
    figures = commands.add_parser("figures", help="write every figure and table of a run for a paper")
    figures.add_argument("run", metavar="NAME", help="of a run whose notebooks have run")
    figures.add_argument("--columns", type=int, choices=(1, 2), help="of the page; default: both widths")
    figures.add_argument("--out", help="folder for figures/, tables/ and index.html (default: the run's own)")
    figures.add_argument(
        "--formats", default="pdf,png", help="of pdf, png, svg, html, csv (default: pdf,png)"
    )
    figures.add_argument("--root", help="folder of all runs (default: data/runs, or $WORKBENCH_RUNS)")
    figures.set_defaults(command=_figures)
    heal = commands.add_parser("heal", help="run a plan of healing, alone or by a launcher")
    heal.add_argument("--plan", required=True, help="the plan.json that notebook 04 wrote")
    begin = "begin again what was trained from another model, data or config"
    heal.add_argument("--overwrite", action="store_true", help=begin)
    heal.add_argument("--cpu", action="store_true", help="without GPUs, also where there are some")
    heal.set_defaults(command=_heal)
    return parser


def _setting(text: str) -> tuple[str, Any]:
    """Return the name and the value of ``NAME=VALUE``; what is no Python literal is text, ``1,2`` a list."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, got {text!r}")
    try:
        literal = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
    return name, list(literal) if isinstance(literal, tuple) else literal


def _report(run: Run) -> None:
    """Print the summary table and where everything lies."""
    from workbench.runs.figures import browser_found

    if summaries := [name for name in SUMMARIES if name in run.files()]:
        table = run.read(summaries[0]).to_string(index=False, na_rep="-", float_format="{:.3f}".format)
        print(f"\n{table}\n")
    folder = Path(os.path.relpath(run.folder))
    print(f"notebooks  {folder / 'notebooks'} (.ipynb for JupyterLab, .html for any browser, both offline)")
    print(f"figures    {folder / 'figures'}")
    print(f"results    {folder} ({len(run.files())} files, each with its provenance beside it)")
    if not browser_found():
        print("missing    a Chrome or Chromium that starts: figures are HTML and CSV (see README)")


if __name__ == "__main__":
    sys.exit(main())
