"""The command line: the numbered notebooks, executed or in JupyterLab; figures for a paper; healing."""

from __future__ import annotations

import argparse
import ast
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.checks import printable
from workbench.places import toml_beside
from workbench.runs.run import Run, open_run

#: the whole run's summary; before its last notebook has run, the one of notebook 00
SUMMARIES = ("summary.csv", "start_here/summary.csv")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when done, 1 for a failed notebook, 2 for wrong use, 130 when stopped."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "notebooks") or any(one.startswith("-") for one in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse takes none behind an option
        options.notebooks = [*options.notebooks, *rest]
    try:
        return int(options.command(options))
    except KeyboardInterrupt as stopped:
        told = "Stopped. The same command goes on from here: what is stored is not computed again."
        print(f"\n{str(stopped) or told}", file=sys.stderr)
        return 130
    except ValueError as error:
        print(f"workbench: {printable(error)}", file=sys.stderr)
        return 2


def _notebooks(options: argparse.Namespace) -> int:
    """Run notebooks; imports what a cluster that only heals does not need."""
    from workbench.runs.notebooks import NotebookFailed, numbered_notebooks, planned, prepared, run_notebooks

    stated = {}
    if options.preset is not None:
        from workbench.defaults import preset_parameters

        stated = preset_parameters(options.preset)
    for number in (signal.SIGINT, signal.SIGTERM):  # Python raises at none of them in a background job
        signal.signal(number, signal.default_int_handler)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # a stop leaves tasks of the kernel's client
    run = open_run(options.run, root=options.root)
    notebooks = prepared(numbered_notebooks(options.notebooks), run, dict(options.set), stated)
    if options.dry_run:
        print("\n".join(planned(notebooks, run)))
        return 0
    try:
        run_notebooks(notebooks, run)
    except NotebookFailed as error:
        print(f"\n{printable(error)}", file=sys.stderr)
        return 1
    _report(run)
    return 0


def _lab(options: argparse.Namespace) -> int:
    """Open JupyterLab on copies of the notebooks; it answers Ctrl-C itself."""
    from workbench.runs.lab import lab_command, lab_copies

    run = open_run(options.run, root=options.root)
    folder, lines = lab_copies(run, dict(options.set))
    chosen = [*(["--no-browser"] * options.no_browser), *([f"--port={options.port}"] if options.port else [])]
    command, environment = lab_command(run, chosen)
    print(f"notebooks  {Path(os.path.relpath(folder))}: copies for the run {run.name!r}, yours to change")
    print("\n".join([*lines, f"results    {Path(os.path.relpath(run.folder))}"]), flush=True)
    server = subprocess.Popen(command, env=environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    return server.wait()


def _figures(options: argparse.Namespace) -> int:
    """Write the figures and tables of a run; those that it has no frames for are named."""
    from workbench.plots.portfolio import paper_figures

    run = open_run(options.run, root=options.root)
    formats = options.formats.split(",")
    files = paper_figures(run, options.out, columns=options.columns or (1, 2), formats=formats)
    for name, why in files.attrs["left_out"].items():
        print(f"left out   {name}: {why}")
    folder = Path(os.path.relpath(options.out or run.folder))
    drawn = files[files["columns"] > 0]
    print(f"figures    {drawn['name'].nunique()}, in {folder / 'figures'}")
    print(f"tables     {files[files['columns'] == 0]['name'].nunique()}, in {folder / 'tables'}")
    print(f"all        {folder / 'index.html'}")
    return 0


def _heal(options: argparse.Namespace) -> int:
    from workbench.healing.launch import is_main, run_plan
    from workbench.models.processes import world_size

    if options.cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    try:
        healed = run_plan(options.plan, overwrite=options.overwrite)
    except ValueError as error:  # in the words of this surface
        told = str(error).replace("give another out", "plan it with another out")
        raise ValueError(told.replace("overwrite=True", "--overwrite")) from error
    if is_main():
        done = f"{len(healed.log)} steps, last loss {healed.log['loss'].iloc[-1]:.4f}"
        number = world_size()
        print(f"{healed.adapter}: {done}, in {number} process{'es' if number > 1 else ''}")
    return 0


def _parser() -> argparse.ArgumentParser:
    table = toml_beside(__file__, "commands")
    looks: Any = {"formatter_class": argparse.RawDescriptionHelpFormatter, "epilog": table["examples"]}
    parser = argparse.ArgumentParser(prog="python -m workbench", description=__doc__, **looks)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    does = {"demo": _notebooks, "run": _notebooks, "lab": _lab, "figures": _figures, "heal": _heal}
    types = {"int": int, "setting": _setting}
    for name, told in table["commands"].items():
        command = commands.add_parser(name, help=told["help"])
        command.set_defaults(command=does[name])
        for option in told["takes"]:
            given = dict(told.get(option) or table["options"][option])
            given |= {"type": types[given["type"]]} if "type" in given else {}
            command.add_argument(option, **given)
    return parser


def _setting(text: str) -> tuple[str, Any]:
    """Return the name and the value of ``NAME=VALUE``; what is no Python literal is text, ``1,2`` a list."""
    name, equals, value = text.partition("=")
    notebook, dot, own = name.rpartition(".")
    if not equals or not own.isidentifier() or bool(dot) != bool(notebook):
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE or NN.NAME=VALUE, got {text!r}")
    try:
        literal = ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        literal = value
    return name, _from_here(list(literal) if isinstance(literal, tuple) else literal)


def _from_here(value: Any) -> Any:
    """Return a value with the files and folders that it names by relative paths in full.

    Notebooks run in a folder of their own. A single word stays as it is: it may be the name of a set.
    """
    if isinstance(value, dict):
        return {name: _from_here(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_from_here(one) for one in value]
    if isinstance(value, str) and ("/" in value or Path(value).suffix) and Path(value).exists():
        return os.path.abspath(value)
    return value


def _report(run: Run) -> None:
    """Print the summary table and where everything lies."""
    from workbench.runs.figures import browser_found

    if summaries := [name for name in SUMMARIES if name in run.files() and not run.outdated(name)]:
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
