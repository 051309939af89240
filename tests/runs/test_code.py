"""Whose code a stage runs: the room and those below, a user's own functions, the versions of libraries."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

import workbench as wb
from workbench.runs import code
from workbench.runs.run import Run

TEXTS = ["One two three four."]


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """Return a copy of the package's sources that the store looks at."""
    copy = tmp_path / "workbench"
    shutil.copytree(code.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code, "PACKAGE", copy)
    code._room_digest.cache_clear()
    yield copy
    code._room_digest.cache_clear()


def edited(package: Path, file: str) -> None:
    place = package / file
    place.write_text(place.read_text() + "\n# a comment\n")
    code._room_digest.cache_clear()


ABOVE = ["evaluation/harness.py", "data/texts.py"]
SHOWING = ["plots/heatmaps.py", "plots/style.py", "tables/markup.py", "widgets/picker.py", "runs/pages.py"]


@pytest.mark.parametrize(
    ("function", "file", "again"),
    [
        *((wb.evaluate, file, False) for file in SHOWING),
        *(
            (wb.angular_distances, file, False)
            for file in [*SHOWING, "evaluation/harness.py", "data/texts.py"]
        ),
        (wb.angular_distances, "distances/angular.py", True),
        (wb.angular_distances, "models/hooks.py", True),
        (wb.angular_distances, "statistics.py", True),
        (wb.evaluate, "evaluation/harness.py", True),
        (wb.evaluate, "evaluation/suites.toml", True),
        (wb.angular_distances, "evaluation/suites.toml", False),
        (wb.evaluate, "pruning/surgery.py", True),
        (wb.evaluate, "data/sources.toml", True),
        (wb.token_divergence, "healing/adapters.py", True),
        (wb.summary_table, "evaluation/scores.py", True),
        (wb.summary_table, "plots/scores.py", False),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_room_and_those_below_count_and_never_those_that_show(package, function, file, again):
    before = code.code_of(function)
    edited(package, file)
    assert (code.code_of(function) != before) == again


def test_a_users_function_counts_with_the_rooms_that_it_calls(package):
    def mine(model, tokenizer):
        return wb.angular_distances(model, tokenizer, TEXTS)

    before = code.code_of(mine)
    edited(package, "plots/heatmaps.py")
    assert code.code_of(mine) == before
    edited(package, "distances/angular.py")
    assert code.code_of(mine) != before


def test_the_storeys_of_the_store_are_those_that_lint_holds(root):
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    declared = {room.strip(): place for place, row in enumerate(reversed(layers)) for room in row.split("|")}
    ours = {room: place for place, storey in enumerate(code.STOREYS) for room in storey}
    idle = {"__main__", "arguments", "bars", "defaults", "places", "runs"}  # compute nothing that is kept
    assert set(declared) - set(ours) == idle
    for one in ours:
        for other in ours:
            assert declared[one] >= declared[other] or ours[one] <= ours[other], f"{one} stands below {other}"


@pytest.fixture
def mymetrics(tmp_path, monkeypatch) -> Callable[[str], ModuleType]:
    """Return a function that writes the user's own module, and loads it again."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    helper = tmp_path / "myhelper.py"
    helper.write_text("def scale(x):\n    return x * 1\n")

    def written(text: str, more: str = "") -> ModuleType:
        (tmp_path / "mymetrics.py").write_text("import pandas as pd\nfrom myhelper import scale\n" + text)
        if more:
            helper.write_text(more)
        importlib.invalidate_caches()
        for name in ("mymetrics", "myhelper"):
            sys.modules.pop(name, None)
        return importlib.import_module("mymetrics")

    yield written
    for name in ("mymetrics", "myhelper"):
        sys.modules.pop(name, None)


SCORE = "def score():\n    return pd.DataFrame({'x': [scale(1.0)]})\n"


@pytest.mark.parametrize("way", ["passed", "through the module", "by name"])
def test_a_users_function_in_another_file_counts_with_all_it_calls(run: Run, mymetrics, way):
    def stage(mine: ModuleType) -> Callable[[], pd.DataFrame]:
        score = mine.score
        return {"passed": score, "through the module": lambda: mine.score(), "by name": lambda: score()}[way]

    assert run.frame("a.csv", stage(mymetrics(SCORE)))["x"].tolist() == [1.0]
    assert run.frame("a.csv", stage(mymetrics(SCORE.replace("1.0", "2.0"))))["x"].tolist() == [2.0]
    scaled = "def scale(x):\n    return x * 10\n"
    assert run.frame("a.csv", stage(mymetrics(SCORE.replace("1.0", "2.0"), scaled)))["x"].tolist() == [20.0]


def test_a_constant_of_the_users_module_counts(run: Run, mymetrics):
    text = "FACTOR = {}\ndef score():\n    return pd.DataFrame({{'x': [FACTOR]}})\n"
    for value in (1, 2):
        assert run.frame("a.csv", mymetrics(text.format(value)).score)["x"].tolist() == [value]


FORMS = {
    "method": """
        class Scorer:
            def __init__(self):
                self.x = VALUE
            def score(self):
                return frame(self.x)
        score = Scorer().score""",
    "object": """
        class Scorer:
            def __call__(self):
                return frame(VALUE)
        score = Scorer()""",
    "cached": """
        @functools.lru_cache
        def value():
            return VALUE
        def score():
            return frame(value())""",
    "partial": """
        def of(x, y):
            return frame(x)
        score = functools.partial(of, VALUE, y=1)""",
    "decorated": """
        def twice(f):
            @functools.wraps(f)
            def g():
                return f() * VALUE
            return g
        @twice
        def score():
            return frame(1)""",
    "table": """
        TABLE = {"a": VALUE}
        def score():
            return frame(TABLE["a"])""",
    "default": """
        def score(x=VALUE):
            return frame(x)""",
    "static method": """
        class K:
            @staticmethod
            def f():
                return VALUE
        def score():
            return frame(K.f())""",
    "property, inherited": """
        class Base:
            @property
            def x(self):
                return VALUE
        class Heir(Base):
            pass
        heir = Heir()
        def score():
            return frame(heir.x)""",
    "cached method behind an operator": """
        class K:
            @functools.lru_cache
            def x(self):
                return VALUE
            def __getitem__(self, name):
                return self.x()
        held = K()
        def score():
            return frame(held["x"])""",
    "member of an enumeration": """
        import enum
        class Kind(enum.Enum):
            ONE = 1
            TWO = 2
        KIND = Kind(VALUE)
        def score():
            return frame(KIND.value)""",
    "default of a dataclass, by a factory": """
        import dataclasses
        @dataclasses.dataclass
        class K:
            x: list = dataclasses.field(default_factory=lambda: VALUE)
        def score():
            return frame(K().x)""",
    "dispatched by type": """
        @functools.singledispatch
        def of(x):
            return 0
        @of.register
        def _(x: int):
            return VALUE
        def score():
            return frame(of(1))""",
    "frame of a module, imported at work": """
        TABLE = pd.DataFrame({"x": [VALUE]})
        def score():
            import mymetrics
            return mymetrics.TABLE""",
}


@pytest.mark.parametrize("form", FORMS)
def test_whatever_form_the_users_code_has_it_is_followed(run: Run, mymetrics, form):
    text = "import functools\ndef frame(x):\n    return pd.DataFrame({'x': [x]})\n" + textwrap.dedent(
        FORMS[form]
    )
    for value in (1, 2):
        stage = mymetrics(text.replace("VALUE", str(value))).score
        assert run.frame("a.csv", stage)["x"].tolist() == [value]
        assert run.frame("a.csv", stage)["x"].tolist() == [value]


def test_the_code_of_a_class_counts_where_an_argument_holds_one(run: Run, mymetrics):
    text = """
from dataclasses import dataclass
@dataclass
class Scale:
    by: int = 1
    def of(self, x):
        return x * self.by * VALUE
def score(scales):
    return pd.DataFrame({"x": [scales["a"][0].of(1)]})
"""
    for value in (1, 2):
        mine = mymetrics(text.replace("VALUE", str(value)))
        assert run.frame("a.csv", mine.score, {"a": [mine.Scale()]})["x"].tolist() == [value]


def test_a_file_named_in_the_code_counts_by_what_it_holds(run: Run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in (1, 2):
        Path("mine.csv").write_text(f"x\n{value}\n")
        assert run.frame("a.csv", lambda: pd.read_csv("mine.csv"))["x"].tolist() == [value]


def test_code_is_the_same_in_every_process():
    asked = "(lambda x: x in {'a', 'bb', 'c'}).__code__"
    program = f"from workbench.digests import code_parts; print(code_parts({asked}))"
    environments = [os.environ | {"PYTHONHASHSEED": seed} for seed in ("1", "3", "4")]
    told = {subprocess.check_output([sys.executable, "-c", program], env=env) for env in environments}
    assert len(told) == 1


def test_a_stage_that_reads_from_the_run_behind_its_back_is_refused(run: Run):
    run.write("a.csv", pd.DataFrame({"x": [1]}))
    with pytest.raises(ValueError, match=r"must not read from the run .* read it first and pass that"):
        run.frame("b.csv", lambda: run.read("a.csv"))


@pytest.mark.parametrize(
    ("function", "library", "counts"),
    [
        (wb.evaluate, "lm-eval", True),
        (wb.evaluate, "torch", True),
        (wb.evaluate, "peft", True),
        (wb.angular_distances, "transformers", True),
        (wb.angular_distances, "lm-eval", False),
        (wb.response_similarity, "sentence-transformers", True),
        (lambda: wb.nothing, "peft", True),
        (wb.evaluate, "plotly", False),
    ],
)
def test_the_version_of_a_library_counts_where_it_computes(monkeypatch, function, library, counts):
    before, known = code.code_of(function), metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "9.9.9" if name == library else known(name))
    assert (code.code_of(function) != before) == counts


def test_which_build_of_torch_does_not_count(monkeypatch):
    before, known = code.code_of(wb.angular_distances), metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: known(name).partition("+")[0] + "+cu130")
    assert code.code_of(wb.angular_distances) == before
