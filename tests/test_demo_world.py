"""The demo world: shipped files are what the generator writes; what is held out never occurs in training."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from itertools import islice
from pathlib import Path

import pytest

from workbench.data.instructions import load_instructions
from workbench.data.texts import load_texts
from workbench.evaluation.evaluate import evaluate
from workbench.evaluation.scores import headline
from workbench.models.loading import load_model

DEMO = Path(__file__).resolve().parents[1] / "data" / "demo"
sys.path.insert(0, str(DEMO))
from generator import documents as docs  # noqa: E402
from generator import problems  # noqa: E402
from generator.world import World  # noqa: E402


def rows(name: str) -> list[dict]:
    """The rows of a shipped jsonl file."""
    return [json.loads(line) for line in (DEMO / name).read_text(encoding="utf-8").splitlines()]


def rows_of_json(name: str) -> list[dict]:
    """The rows of a shipped json file."""
    return json.loads((DEMO / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def training() -> list[str]:
    """A part of what training reads, of every kind."""
    return [text for kind in docs.KINDS for text in islice(docs.documents(seed=77, kinds=(kind,)), 1500)]


def test_build_writes_the_shipped_files(tmp_path, monkeypatch):
    """The generator and the shipped files belong together, byte by byte."""
    spec = importlib.util.spec_from_file_location("demo_build", DEMO / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    monkeypatch.setattr(build, "HERE", tmp_path)
    build.main()
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.jsonl"))
    assert made == sorted(path.relative_to(DEMO) for path in DEMO.rglob("*.jsonl"))
    for path in made:
        assert (tmp_path / path).read_bytes() == (DEMO / path).read_bytes(), path


def test_world_has_its_size():
    """150 people, 80 towns, 70 animals, 1,120 facts, each asked in three ways of which one is held out."""
    world = World()
    assert (len(world.people), len(world.towns), len(world.animals), len(world.facts)) == (150, 80, 70, 1120)
    assert len(set(world.facts)) == 1120 and len(world.subjects) == 300
    for fact in world.facts:
        assert len({fact.ask(i) for i in range(3)}) == 3 and fact.value in fact.answer


def test_held_out_documents_never_occur_in_training(training):
    """No calibration text or test story is a training document."""
    held = {
        row["text"]
        for path in sorted(DEMO.glob("texts/*.jsonl"))
        for row in rows(str(path.relative_to(DEMO)))
    }
    held |= {row["text"] for row in rows("tasks/stories.jsonl")}
    assert all(docs.held_out(text) for text in held)
    assert not held & set(training)


def test_test_questions_never_occur_in_training(training):
    """No question of a task is asked in training, in whatever document."""
    asked = "\n".join(training)
    for name in ("facts", "german_facts"):
        for row in rows(f"tasks/{name}.jsonl"):
            assert f"{docs.USER}{row['question']}{docs.END}" not in asked
    for row in rows("tasks/choice.jsonl"):
        assert row["question"] not in asked and row["question"].split("\n")[0] + "\n" not in asked
    for row in rows("tasks/yes_no.jsonl"):
        assert docs.chat(f"{row['passage']}\n{row['question']}", row["answer"]) not in asked
    for name in ("pairs", "german_pairs"):
        for row in rows(f"tasks/{name}.jsonl"):
            assert row["good"] not in asked and row["bad"] not in asked


def test_problem_splits_share_no_numbers():
    """Test, tuning and training problems never use the same operations on the same numbers."""
    rng = random.Random(5)
    skeletons = {
        s: {problems.problem(rng, s).skeleton for _ in range(300)} for s in ("train", "tuning", "test")
    }
    assert not skeletons["train"] & skeletons["test"] and not skeletons["tuning"] & skeletons["test"]
    test, tuning = rows("tasks/math.jsonl"), rows("instructions/math.jsonl")
    assert not {row["question"] for row in test} & {row["instruction"] for row in tuning}
    assert len({row["question"] for row in test}) == len(test)


def test_solutions_are_right():
    """Every step of every solution is true arithmetic, in both hands, and ends in the answer."""
    rng = random.Random(6)
    for _ in range(500):
        found = problems.problem(rng, "train")
        steps = found.terse.split(" #### ")[0].split("; ")
        for step in steps:
            left, right = step.split("=")
            assert eval(left.replace("/", "//")) == int(right)
            assert f"{right}" in found.solution
        assert found.terse.endswith(f"#### {found.answer}") and found.solution.endswith(
            f"The answer is {found.answer}."
        )


def test_shipped_sets_load():
    """The names of the notebooks give what the files hold."""
    assert len(load_texts("demo", n=128, seed=0)) == 128
    math = load_instructions("demo-math", n=5, seed=0)
    assert list(math.columns) == ["id", "instruction", "context", "reference", "answer"]
    assert len(load_instructions("demo-open")) == 1000 and len(load_instructions("demo-math-test")) == 400


def test_model_is_small_and_safe():
    """Under 20 MB, safetensors only, and nothing that would run code."""
    files = {path.name: path.stat().st_size for path in (DEMO / "model").iterdir()}
    assert sum(files.values()) < 20e6 and "model.safetensors" in files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl", ".py"))]
    assert "auto_map" not in json.loads((DEMO / "model" / "config.json").read_text())


def test_model_scores_what_its_card_says():
    """A sample of every task scores what the card says, within its noise; the card holds its file's table."""
    card = {row["task"]: row for row in rows_of_json("model/scores.json")}
    model, tokenizer = load_model("demo")
    measured = headline(evaluate(model, tokenizer, "demo", limit=24, progress=False)).set_index("task")
    assert set(measured.index) == set(card)
    for task, row in card.items():
        value = measured["value"][task]
        if "perplexity" in row["metric"]:
            assert value == pytest.approx(row["value"], rel=0.1), task
        else:
            assert row["value"] >= 0.95, task
            assert value >= row["value"] - 1.5 / 24, task
    text = (DEMO / "model" / "README.md").read_text(encoding="utf-8").replace("\\", "")
    for row in card.values():
        assert f"| {row['task']} | {row['category']} | {row['metric']} | {row['value']:.3f} |" in text
