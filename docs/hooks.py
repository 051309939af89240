"""The pages of the site, made at every build from what the checkout holds; nothing is written twice.

Home, Changelog, Contributing, Log and Security are the files of those names; the pages of the package are its
docstrings and public names, so a new room appears by itself; the records are those of ``benchmarks/records``;
the notebooks are those that ``make demo`` executed.
"""

from __future__ import annotations

import base64
import json
import logging
import posixpath
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import workbench
from workbench.places import runs_folder
from workbench.runs.pages import SCRIPT

ROOT = Path(__file__).resolve().parents[1]
#: files of the checkout that are pages, and folders that have one
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "LOG.md": "log.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "unmeasured.md",
    "data/demo/README.md": "demo/world.md",
    "data/demo/model/README.md": "demo/model.md",
}
FOLDERS = {"notebooks": "notebooks.md", "benchmarks": "records.md", "benchmarks/records": "records.md"}
NOT_EXECUTED = "The notebooks are not executed in this checkout yet: run `make demo`, then `make docs`."
_FENCES = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r'(\]\(|(?:src|href)=")([^)#"\s]+)')

log = logging.getLogger("mkdocs.hooks.pages")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Lay out the menu: what is not fixed in it is the list of rooms."""
    project = {"Changelog": "changelog.md", "Contributing": "contributing.md", "Log": "log.md"}
    project |= {"Security": "security.md"}
    demo = {"The demo world": "demo/world.md", "The demo model": "demo/model.md"}
    config.nav = [
        {"Home": "index.md"},
        {"Notebooks": "notebooks.md"},
        {"API": [{room: f"api/{room}.md"} for room in rooms()]},
        *([{"Findings": "findings.md"}] if (ROOT / "docs" / "findings.md").is_file() else []),
        {"Records": "records.md"},
        {"Still to be measured": "unmeasured.md"},
        {"Demo": [{title: page} for title, page in demo.items()]},
        {"Project": [{title: page} for title, page in project.items()]},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, and the files that they show or lead to."""
    if not executed_pages():
        log.info(NOT_EXECUTED)
    made: dict[str, str | bytes] = {}
    for source, page in PAGES.items():
        made[page], linked = relinked(source)
        made |= {file: (ROOT / file).read_bytes() for file in linked}
    made |= {f"api/{room}.md": room_page(room) for room in rooms()}
    made |= {"records.md": records_page(), **notebook_files()}
    for uri, content in made.items():
        files.append(File.generated(config, uri, content=content))
    return files


def relinked(source: str) -> tuple[str, set[str]]:
    """Return a Markdown file with its links leading into the site, and the files that they lead to."""
    page, linked = PAGES[source], set()

    def lead(match: re.Match[str]) -> str:
        before, target = match.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if "://" in target or target.startswith("mailto:") or not (ROOT / path).exists():
            return match[0]  # a link to nothing stays, and the build warns of it
        there = page_of(path)
        if not there.partition("#")[0].endswith(".md"):
            linked.add(path)
        return before + posixpath.relpath(there, posixpath.dirname(page) or ".")

    parts = _FENCES.split((ROOT / source).read_text(encoding="utf-8"))
    parts[::2] = [_LINK.sub(lead, _without_front_matter(part)) for part in parts[::2]]
    return "".join(parts), linked


def page_of(path: str) -> str:
    """Return where a file or folder of the checkout is in the site."""
    if path in PAGES or path in FOLDERS:
        return PAGES.get(path) or FOLDERS[path]
    if path.startswith("docs/") and path.endswith(".md"):
        return path.removeprefix("docs/")
    if path.startswith("notebooks/"):
        return f"notebooks.md#{Path(path).stem}"
    return PAGES.get(f"{path}/README.md", path)


def rooms() -> list[str]:
    """Return the rooms of the package and its single modules with public names, in the order of its face."""
    named = dict.fromkeys(module.partition(".")[0] for module in workbench._PUBLIC)
    folders = sorted(path.parent.name for path in (ROOT / "workbench").glob("*/__init__.py"))
    return list(named | dict.fromkeys(folders))


def room_page(room: str) -> str:
    """Return the page of a room: its map, then the public names of each file."""
    page = f"# {room}\n\n::: workbench.{room}\n    options:\n      members: false\n"
    for module, names in workbench._PUBLIC.items():
        if module == room:
            return f"# {room}\n\n{_documented(module, names)}"
        if module.startswith(f"{room}."):
            page += f"\n## `workbench.{module}`\n\n{_documented(module, names)}"
    return page


def _documented(module: str, names: str) -> str:
    return f"::: workbench.{module}\n    options:\n      members: [{', '.join(names.split())}]\n"


def records_page() -> str:
    """Return the table of all measurements, and the figures of each."""
    records = [json.loads(path.read_text()) for path in sorted((ROOT / "benchmarks/records").glob("*.json"))]
    rows = ["| what | when | hardware | figures that were asked for |", "|---|---|---|---|"]
    for record in records:
        what = f"[{record['benchmark']}](#{_anchor(record)})"
        rows.append(f"| {what} | {_day(record)} | {_hardware(record)} | {'<br>'.join(_checks(record))} |")
    about = "Each record is what one script in `benchmarks/` measured, side by side in one run."
    return "\n\n".join(["# Records", about, "\n".join(rows), *map(_record_section, records)])


def _record_section(record: dict[str, Any]) -> str:
    commit, _, changes = record["commit"].partition(" ")
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    where = f"{_day(record)}, commit `{commit[:8]}` {changes}".strip()
    results = figures(record.get("results", record.get("cases")))
    table = ["| figure | value |", "|---|--:|", *(f"| {name} | {_shown(value)} |" for name, value in results)]
    setting = f"Configuration: `{json.dumps(record.get('config', {}))}`"
    hidden = textwrap.indent("\n".join([*table, "", setting]), "    ")
    heading = f"## {record['benchmark']} {{#{_anchor(record)}}}"
    notes = "".join(f"- {note}\n" for note in record.get("notes", []))
    about = f"{where}; {_hardware(record)}; {versions}.\n\n{notes}".rstrip()
    return f'{heading}\n\n{about}\n\n??? note "All figures"\n\n{hidden}'


def figures(results: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield the single figures of nested results with their names; series of numbers are left out."""
    if isinstance(results, list):
        results = {one["case"]: one for one in results if isinstance(one, dict) and "case" in one}
    if isinstance(results, dict):
        for name, value in results.items():
            yield from figures(value, (*path, name))
    elif path and path[-1] != "case" and results is not None:
        yield " / ".join(path), results


def _checks(record: dict[str, Any]) -> list[str]:
    checks = record.get("checks", [])
    if isinstance(checks, dict):
        return [f"{what}: {_shown(met)}" for what, met in checks.items()]
    return [
        f"{one['what']}: {_shown(one['value'])} ({one['target']}, {'met' if one['met'] else 'missed'})"
        for one in checks
    ]


def _hardware(record: dict[str, Any]) -> str:
    machine = record["machine"]
    if "gpu" in machine:
        return f"{machine.get('gpus', 1)} x {machine['gpu']}"
    return f"{machine['cores']} CPU cores ({machine['cpu']})"


def _anchor(record: dict[str, Any]) -> str:
    return f"{record['benchmark']}-{_day(record)}"


def _day(record: dict[str, Any]) -> str:
    return str(record["date"])[:10]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def executed_pages() -> list[Path]:
    """Return the pages of the demo's executed notebooks that are there."""
    return sorted((runs_folder() / "demo" / "notebooks").glob("[0-9][0-9]_*.html"))


def notebook_files() -> dict[str, str | bytes]:
    """Return the page of the notebooks, and of each executed one its own page and its pictures."""
    executed = {page.stem: page for page in executed_pages()}
    made: dict[str, str | bytes] = {}
    text = "# Notebooks\n\n"
    text += "" if executed else f"{NOT_EXECUTED}\n\n"
    for source in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        title, question = _title(source)
        text += f"## {title} {{#{source.stem}}}\n\n{question}\n\n"
        if page := executed.get(source.stem):
            made[f"notebooks/{page.name}"] = page.read_text(encoding="utf-8")
            # one for a run; pages of older runs have it beside them
            places = {SCRIPT: page.parent.with_name(SCRIPT), f"notebooks/{SCRIPT}": page.with_name(SCRIPT)}
            made |= {name: script.read_bytes() for name, script in places.items() if script.is_file()}
            drawn = {f"notebooks/{page.stem}-{n}.png": png for n, png in enumerate(pictures(page), start=1)}
            text += f"[The executed notebook](notebooks/{page.name})\n\n"
            text += "".join(f"![Figure of {title}]({name})\n\n" for name in drawn)
            made |= drawn
    return {"notebooks.md": text, **made}


def pictures(page: Path) -> list[bytes]:
    """Return the pictures that the notebook of an executed page shows."""
    copy = page.with_suffix(".ipynb")
    cells = json.loads(copy.read_text(encoding="utf-8"))["cells"] if copy.is_file() else []
    shown = [output.get("data", {}) for cell in cells for output in cell.get("outputs", ())]
    return [base64.b64decode("".join(data["image/png"])) for data in shown if "image/png" in data]


def _title(notebook: Path) -> tuple[str, str]:
    """Return the heading of a notebook and the first paragraph under it."""
    first = "".join(json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]["source"])
    heading, _, rest = first.partition("\n")
    return heading.lstrip("# "), rest.strip().partition("\n\n")[0]


def _without_front_matter(text: str) -> str:
    return re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
