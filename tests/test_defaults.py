"""Parameters that fit the model: the demo's sets for the demo, public ones for any other."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch

import workbench as wb
from tests.tiny import tiny_model, tiny_tokenizer
from workbench import defaults
from workbench.__main__ import _parser
from workbench.data.instructions import DEMO_INSTRUCTIONS
from workbench.data.texts import DEMO_TEXTS
from workbench.runs import notebooks as runner
from workbench.runs.parameters import parameters_of, values_for

NOTEBOOKS = [path for path in runner.numbered_notebooks() if path.stem[:2] < "10"]
EVERY = [name for name in defaults._TABLES["public"] if name != "changes"]
DEMO = {*DEMO_TEXTS, *DEMO_INSTRUCTIONS}


def parameters(path: Path) -> dict:
    return {name: one.value for name, one in parameters_of(path, nbformat.read(path, as_version=4)).items()}


def named(values: dict) -> set[str]:
    """Return every text among values, those in lists too."""
    flat = [one for value in values.values() for one in (value if isinstance(value, list) else [value])]
    return {one for one in flat if isinstance(one, str)}


@pytest.fixture(scope="module")
def other():
    return tiny_model("llama", max_position_embeddings=131072)


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """Return a folder with public sets, in the form they have on the hub, of our own few rows."""
    mmlu = [
        {"question": f"{n} plus {n}?", "subject": subject, "choices": ["1", "2", "4", "6"], "answer": 1}
        for subject in ("anatomy", "virology")
        for n in range(1, 9)
    ]
    boolq = [{"question": "is it so", "passage": f"It is {n}.", "answer": True, "label": 1} for n in range(4)]
    sets = {
        "c4": [{"text": f"A page about {n} boats on the river."} for n in range(80)],
        "gsm8k_test": [
            {"question": f"{n} and 1?", "answer": f"It is {n + 1}.\n#### {n + 1}"} for n in range(9)
        ],
        "dolly": [{"instruction": f"Say {n}", "context": "", "response": str(n)} for n in range(9)],
        "mmlu_test": mmlu,
        "mmlu_dev": mmlu,
        "boolq_validation": boolq,
    }
    for name, rows in sets.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_another_model_gets_no_set_of_the_demo(other, demo_model, capsys):
    found = vars(wb.fitting(other, **dict.fromkeys(EVERY)))
    assert not named(found) & DEMO
    assert not any(one.startswith("demo") for one in named(found))
    assert "calibration_sets = ['c4', 'redpajama', 'wikitext2']" in capsys.readouterr().out
    of_demo = vars(wb.fitting(demo_model[0], **dict.fromkeys(EVERY)))
    assert {"demo-stories", "demo-math", "demo", "demo-math-test", "demo_math"} <= named(of_demo)


def test_sizes_and_lengths_follow_the_model(other):
    found = wb.fitting(other, sizes=None, block_size=None, max_length=None, loss_length=None)
    assert max(found.sizes) < 7 and found.block_size < 7
    assert found.max_length <= 2048 and found.loss_length <= 2048  # not its context of 131,072
    short = wb.fitting(tiny_model("llama", max_position_embeddings=64), max_length=None, loss_length=None)
    assert (short.max_length, short.loss_length) == (64, 64)
    deep = SimpleNamespace(config=SimpleNamespace(num_hidden_layers=32))
    assert [max(1, round(share * deep.config.num_hidden_layers)) for share in defaults._SHARES] == [
        2,
        4,
        6,
        8,
        10,
    ]


def test_a_gpu_takes_more_than_a_cpu(other, monkeypatch):
    asked = ("n_texts", "max_length", "n_examples", "limit")
    small = vars(wb.fitting(other, **dict.fromkeys(asked)))
    monkeypatch.setattr(defaults, "_on_cpu", lambda model: False)
    large = vars(wb.fitting(other, **dict.fromkeys(asked)))
    assert all(large[name] > small[name] for name in asked)


def test_the_folder_decides_which_public_sets(other, public: Path, capsys):
    asked = dict.fromkeys(["calibration_sets", "instructions", "prompt_sets", "depth_tasks", "n_texts"])
    tasks = {"tasks": ["mmlu", "boolq"]}
    with pytest.raises(ValueError, match=r"sets for depth_tasks, .* has none of"):
        wb.fitting(other, data=public, **asked, **tasks)
    del asked["depth_tasks"]
    found = wb.fitting(other, data=public, **asked, **tasks)
    assert (found.calibration_sets, found.instructions) == (["c4"], "dolly")
    assert (found.prompt_sets, found.tasks) == (["gsm8k-test", "dolly"], ["mmlu", "boolq"])
    assert "tasks" not in capsys.readouterr().out  # only what was chosen is printed
    assert len(wb.load_texts("c4", n=found.n_texts, data=public)) == found.n_texts
    assert wb.load_instructions("gsm8k-test", data=public)["answer"].tolist() == [
        str(n + 1) for n in range(9)
    ]


def test_a_folder_that_is_none_is_told_before_anything(other, tmp_path: Path):
    with pytest.raises(ValueError, match="data must be a folder"):
        wb.fitting(other, data=tmp_path / "gone", calibration_sets=None)
    with pytest.raises(ValueError, match="data must be a folder"):
        wb.load_texts("c4", data=tmp_path / "gone")


def test_what_is_given_stays_and_a_demo_set_is_taken_by_name_only(other, capsys):
    found = wb.fitting(other, tasks=["demo"], instructions="demo-math", limit=7)
    assert (found.tasks, found.instructions, found.limit) == (["demo"], "demo-math", 7)
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "demo-math, demo" in out.replace("demo, demo-math", "demo-math, demo")
    assert wb.fitting(other, limit="all").limit is None


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("limit", ["x", "5", -3, 0, True, [5], float("nan"), 2.5, -0.5, 0.0], [5, 5.0, 0.5, "all"]),
        ("depth_limit", ["x", 0, {}], [5, "all"]),
        ("layers_left", ["half", 0, -2, True, 2.5], [3]),
        ("n_texts", ["x", "12", 0, -1, 1.5, True, [3]], [12, "all"]),
        ("n_held_out", ["x", -1, "all"], [0, 6]),
        ("max_length", ["long", 0, 1.5], [64, "all"]),
        ("sizes", ["few", 4, [1.5], ["2"]], [[1, 2], range(1, 3)]),
        ("changes", ["rank=4", 4, [("rank", 4)]], [{}, {"rank": 4}]),
        ("quantization", [4, True], ["nf4"]),
        ("preset", [4], ["sdd"]),
        ("tasks", [4, [4], {"a": "b"}], ["gro", ["arc_easy"]]),
    ],
)
def test_a_value_of_a_parameters_cell_is_refused_before_anything_runs(name, bad, good, other):
    for value in good:
        assert getattr(wb.fitting(other, **{name: value}), name) == (None if value == "all" else value)
    for value in bad:
        with pytest.raises(ValueError, match=rf"^{name} must be ") as error:
            wb.fitting(other, **{name: value})
        assert "\n" not in str(error.value)


def test_a_parameter_that_has_no_default_is_refused(other):
    with pytest.raises(ValueError, match="parameter"):
        wb.fitting(other, nonsense=None)


def test_notebook_00_says_that_it_is_the_demos_story(capsys):
    assert wb.story_model("some/model", None) == "demo"
    assert re.fullmatch(r"Notebook 00 tells the demo model's story; .*\n", capsys.readouterr().out)
    assert wb.story_model("some/model", "sets") == "some/model"
    assert wb.story_model("demo", None) == "demo"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_no_parameters_cell_names_a_demo_set(path: Path):
    values = parameters(path)
    values.pop("run_name"), values.pop("model_name", None)
    assert not [one for one in named(values) if one in DEMO or one.startswith("demo")]


def test_what_papers_need_is_in_the_parameters_cells():
    of_05 = parameters(next(path for path in NOTEBOOKS if path.stem.startswith("05")))
    assert {"n_shot", "chat_template", "include", "max_length", "quantization", "data"} <= set(of_05)
    for path in NOTEBOOKS[1:]:
        assert "quantization" in parameters(path), path.stem


def test_the_readmes_command_for_an_own_model_names_parameters_that_there_are(root: Path):
    text = (root / "README.md").read_text()
    commands = re.findall(r"^\$ (?:\S*python )-m workbench (run .*)$", text, re.MULTILINE)
    assert commands
    known = {name for path in NOTEBOOKS for name in parameters(path)}
    for command in commands:
        options = _parser().parse_args(shlex.split(command.split("#")[0]))
        assert {name for name, _ in options.set} <= known
        assert options.preset in (None, *defaults.PRESETS)
        assert not named(dict(options.set)) & DEMO


@pytest.mark.parametrize("name", defaults.PRESETS)
def test_a_preset_sets_parameters_that_notebooks_have(name: str, run):
    sources = {path: nbformat.read(path, as_version=4) for path in NOTEBOOKS}
    known = {one for path in NOTEBOOKS for one in parameters(path)}
    values = wb.preset_parameters(name)
    assert set(values) <= known
    given = values_for(sources, run.name, {"limit": 5}, values)
    of_05 = given[NOTEBOOKS[5]]
    assert of_05["limit"] == 5 and of_05["tasks"] == values["tasks"]
    assert not named(values) & DEMO


def test_the_work_ahead_is_told_in_one_line(other, capsys, monkeypatch):
    monkeypatch.setattr(defaults, "tokens_per_second", lambda model: 100.0)
    wb.work_ahead(other, "Damage", rows=24, tokens=500, passes=60)
    assert capsys.readouterr().out.startswith(
        "Damage: 24 rows of about 500 tokens x 60 passes, roughly 120 min"
    )
    wb.work_ahead(other, "Damage", texts=["four" * 500, "four" * 100], tokens=300, passes=60)
    assert capsys.readouterr().out.startswith("Damage: 2 rows of about 200 tokens x 60 passes, roughly 4 min")
    wb.work_ahead(other, "Damage", rows=1, tokens=500)
    assert capsys.readouterr().out == ""


def test_the_speed_is_measured_and_leaves_the_model_alone(other):
    before = wb.describe_model(other)
    assert defaults.tokens_per_second(other) > 0
    assert wb.describe_model(other) == before
    assert torch.is_grad_enabled()


def test_gro_asks_mmlu_twice_and_no_table_breaks(public: Path, run):
    model, tokenizer = tiny_model("llama", max_position_embeddings=160), tiny_tokenizer()
    model._source = {"id": "tiny", "revision": None}
    variants = [wb.Variant("base", "tiny"), wb.Variant("pruned", "tiny", removed=[2, 3])]
    settings = {"data": public, "limit": 3, "progress": False, "missing": "skip"}
    found = wb.evaluate_variants(model, tokenizer, variants, "gro", run=run, **settings)
    tops = found.scores[(found.scores["parent"] == "") & (found.scores["metric"] == "acc")]
    asked = sorted(zip(tops["variant"], tops["task"], tops["n_shot"], strict=True))
    assert asked == sorted(
        (v, t, n) for v in ("base", "pruned") for t, n in [("mmlu", 0), ("mmlu", 5), ("boolq", 0)]
    )
    # every item once, with 0 and with 5 examples, none of a group counted again
    once = found.items.drop_duplicates(["variant", "task", "n_shot", "item"])
    assert once.groupby("variant").size().tolist() == [15, 15]
    cut = found.items.groupby(["variant", "task", "n_shot", "item"])["truncated"].max()
    assert once["truncated"].sum() == cut.sum() > 0
    comparisons = wb.compare_items(found.items, scores=found.scores)
    assert sorted(zip(comparisons["task"], comparisons["n_shot"], strict=True)) == [
        ("boolq", 0),
        ("mmlu", 0),
        ("mmlu", 5),
    ]
    flips = wb.flip_counts(found.of("base"), {"pruned": found.of("pruned")}, scores=found.scores)
    assert len(flips) == 3 and flips["n"].sum() == 15
    summary = wb.summary_table(found.scores, wb.task_categories(found.scores))
    assert list(summary) == ["variant", "knowledge"] and summary["variant"].tolist() == ["base", "pruned"]
    assert "over 3 tasks, 15 items" in wb.recovery_reading(found.scores)


@pytest.mark.parametrize("part", defaults.PARTS)
def test_the_later_notebooks_take_what_fits_too(part: str, other, demo_model, public: Path):
    asked = dict.fromkeys(name for kind in defaults._TABLES["parts"][part].values() for name in kind)
    found = vars(wb.fitting(other, part=part, **asked))
    flat = {**found, **{k: list(v.values()) for k, v in found.items() if isinstance(v, dict)}}
    assert not named(flat) & DEMO and not any(one.startswith("demo") for one in named(flat))
    of_demo = vars(wb.fitting(demo_model[0], part=part, **asked))
    assert "demo" in json.dumps(of_demo)
    if part == "recovery":
        assert found["layers_left"] == len(other.model.layers) - 1
        assert of_demo["layers_left"] == 14
    with pytest.raises(ValueError, match="part must be"):
        wb.fitting(other, part="dessert", limit=None)


def test_labelled_sets_are_those_that_the_folder_has(other, public: Path):
    asked = {"held_out": None, "recovery_texts": None, "calibration": None}
    found = wb.fitting(other, data=public, part="recovery", **asked)
    assert found.held_out == {"C4": "c4"}  # WikiText-2 is not there
    assert (found.recovery_texts, found.calibration) == ("c4", "c4")
    drafts = wb.fitting(other, data=public, part="drafts", prompt_sets=None)
    assert drafts.prompt_sets == {"maths": "gsm8k-test", "open-questions": "dolly"}
    (public / "gsm8k_test.jsonl").unlink()
    assert wb.fitting(other, data=public, part="merging", prompt_set=None).prompt_set == "dolly"
    named_by_me = wb.fitting(other, data=public, held_out={"Mine": "demo-stories"})
    assert named_by_me.held_out == {"Mine": "demo-stories"}


def test_layers_that_stay_are_a_number_or_a_share_of_the_depth(other):
    depth = len(other.model.layers)
    kept = [wb.fitting(other, layers_left=one).layers_left for one in (2, 0.5, 0.01, 0.99)]
    assert kept == [2, round(0.5 * depth), 1, depth - 1]
