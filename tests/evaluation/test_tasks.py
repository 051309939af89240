"""Which questions are asked: found, named when wrong, and known by all they are made of."""

from __future__ import annotations

import os
import shutil

import pytest
from scoring import CHOICE, load_manager, read_jsonl, rows, write_jsonl
from tiny import tiny_model

from workbench.evaluation import tasks as task_module
from workbench.evaluation.evaluate import evaluate
from workbench.evaluation.index import task_manager
from workbench.evaluation.suites import SUITES
from workbench.evaluation.tasks import load_tasks, plan_tasks, task_fingerprint
from workbench.places import demo_path


def test_it_works_from_any_directory_and_leaves_the_task_folder_alone(
    model, tokenizer, folder, tmp_path, monkeypatch
):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.chdir(tmp_path)
    evaluate(model, tokenizer, ["toy_sums", "toy_choice"], include=folder, limit=2, progress=False)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert not list(tmp_path.iterdir())


def test_data_may_lie_beside_the_task_file(model, tokenizer, folder, tmp_path):
    (tmp_path / "choice.yaml").write_text(CHOICE.format(name="", data="test.jsonl"), encoding="utf-8")
    (tmp_path / "test.jsonl").write_bytes((folder / "test.jsonl").read_bytes())
    beside = evaluate(model, tokenizer, "toy_choice", include=tmp_path, limit=4, progress=False)
    assert list(beside["n"]) == [4, 4]


def test_an_unknown_task_names_its_neighbours(model, tokenizer, folder, monkeypatch):
    monkeypatch.setattr(task_module, "packaged_tasks", lambda: load_manager(folder))
    with pytest.raises(ValueError, match=r"'toy_sum'; near: toy_sums"):
        evaluate(model, tokenizer, "toy_sum", include=folder, progress=False)
    monkeypatch.setattr(
        task_module, "packaged_tasks", None
    )  # a slip in a demo task must not cost the 10 s index
    with pytest.raises(ValueError, match=r"'demo_maths'"):
        evaluate(model, tokenizer, "demo_maths", include=folder, progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.pop("question"), "question"),
        (lambda row: row.pop("label"), "doc_to_target asks for column 'label'"),
        (
            lambda row: row.update(label=None if row["label"] == 2 else row["label"]),
            "column 'label' is empty in",
        ),
        (None, "has no items"),
        ("missing", "is neither near"),
        ("broken", "could not be read"),
    ],
)
def test_bad_task_data_are_named(model, tokenizer, tmp_path, change, message):
    (tmp_path / "choice.yaml").write_text(CHOICE.format(name="", data="test.jsonl"), encoding="utf-8")
    entries = rows(6, seed=3)
    if callable(change):
        for row in entries:
            change(row)
    if change == "broken":
        (tmp_path / "test.jsonl").write_text('{"question": ', encoding="utf-8")
    elif change != "missing":
        write_jsonl(tmp_path / "test.jsonl", entries if change else [])
    with pytest.raises(ValueError, match=message) as error:
        evaluate(model, tokenizer, "toy_choice", include=tmp_path, progress=False)
    assert "toy_choice" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_without_tasks_is_named(tmp_path):
    with pytest.raises(ValueError, match="names a task"):
        load_tasks(["toy"], include=tmp_path)


def test_suites_are_opened_and_grouped_by_their_shots():
    assert plan_tasks("sdd") == {25: ["arc_challenge"], 5: ["gsm8k", "mmlu"]}
    assert plan_tasks("gro") == {0: ["mmlu", "boolq"], 5: ["mmlu"]}
    assert plan_tasks("gro-c5") == {
        0: ["hellaswag", "boolq", "scrolls_qmsum"],
        None: ["gsm8k", "mmlu_flan_cot_fewshot"],
    }
    assert plan_tasks(["sdd", "toy"], n_shot=1) == {1: ["arc_challenge", "gsm8k", "mmlu", "toy"]}
    assert plan_tasks("toy") == {None: ["toy"]}
    assert SUITES["iterabre"].max_length == 1024


def test_a_fingerprint_changes_with_the_questions_and_nothing_else(folder, tmp_path):
    (tmp_path / "choice.yaml").write_text(CHOICE.format(name="", data="test.jsonl"), encoding="utf-8")
    write_jsonl(tmp_path / "test.jsonl", rows(3, seed=3))
    before = task_fingerprint("toy_choice", include=tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "utils.pyc").write_bytes(b"compiled")
    assert task_fingerprint(["toy_choice"], include=tmp_path) == before
    assert "include" not in task_fingerprint("gsm8k", include=tmp_path)
    write_jsonl(tmp_path / "test.jsonl", rows(3, seed=4))
    assert task_fingerprint("toy_choice", include=tmp_path) != before


def test_the_demo_tasks_load_and_state_their_category(tokenizer):
    frame = evaluate(tiny_model(max_position_embeddings=512), tokenizer, "demo", limit=2, progress=False)
    found = dict(zip(frame["task"], frame["category"], strict=True))
    assert set(found) == set(task_manager(demo_path("tasks")).task_index) - {"demo"}
    assert set(found.values()) == {"reasoning", "knowledge", "language", "multilingual"}


def test_a_fingerprint_follows_the_files_of_the_task_alone(shared_data, tmp_path):
    rows = read_jsonl(shared_data / "piqa_validation.jsonl")
    write_jsonl(tmp_path / "piqa_validation.jsonl", rows[:5])
    write_jsonl(tmp_path / "blimp.jsonl", read_jsonl(shared_data / "blimp.jsonl")[:5])
    before = task_fingerprint("blimp_wh_island", data=tmp_path)
    write_jsonl(tmp_path / "piqa_validation.jsonl", rows[:6])
    assert task_fingerprint("blimp_wh_island", data=tmp_path) == before
    write_jsonl(tmp_path / "blimp.jsonl", read_jsonl(shared_data / "blimp.jsonl")[:6])
    assert task_fingerprint("blimp_wh_island", data=tmp_path) != before


@pytest.fixture
def project_of_one(tmp_path):
    """A task folder whose data lie outside: (the folder, the data file, the rows)."""
    folder = tmp_path / "project" / "tasks"
    folder.mkdir(parents=True)
    entries = rows(5, seed=3)
    (folder / "choice.yaml").write_text(CHOICE.format(name="", data="toys/q.jsonl"), encoding="utf-8")
    data = tmp_path / "project" / "toys" / "q.jsonl"
    data.parent.mkdir()
    write_jsonl(data, entries)
    return folder, data, entries


def flipped(entries: list[dict]) -> list[dict]:
    return [entry | {"label": (entry["label"] + 1) % 3} for entry in entries]


def replace_unseen(path, entries: list[dict]) -> None:
    """Replace a file by another of the same size and time stamp."""
    state = path.stat()
    write_jsonl(path, entries)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)


def labels(name: str = "toy_choice", **places) -> list[int]:
    task = load_tasks([name], **places)["tasks"][name]
    return [int(doc["label"]) for doc in task.eval_docs]


def test_a_fingerprint_sees_labels_flipped_outside_the_task_folder(project_of_one):
    folder, data, entries = project_of_one
    before = task_fingerprint("toy_choice", include=folder)
    write_jsonl(data, flipped(entries))
    assert task_fingerprint("toy_choice", include=folder) != before
    write_jsonl(data, entries)
    assert task_fingerprint("toy_choice", include=folder) == before


def test_a_file_replaced_under_the_same_time_stamp_is_read_anew(project_of_one):
    folder, data, entries = project_of_one
    before = task_fingerprint("toy_choice", include=folder)
    assert labels(include=folder) == [entry["label"] for entry in entries]
    replace_unseen(data, flipped(entries))
    assert task_fingerprint("toy_choice", include=folder) != before
    assert labels(include=folder) == [entry["label"] for entry in flipped(entries)]


def test_a_public_set_replaced_under_the_same_time_stamp_is_read_anew(tmp_path):
    entries = [{"goal": f"g {k}", "sol1": "a", "sol2": "b", "label": k % 2} for k in range(4)]
    path = tmp_path / "piqa_validation.jsonl"
    write_jsonl(path, entries)
    before = task_fingerprint("piqa", data=tmp_path)
    assert labels("piqa", data=tmp_path) == [0, 1, 0, 1]
    replace_unseen(path, [entry | {"label": 1 - entry["label"]} for entry in entries])
    assert task_fingerprint("piqa", data=tmp_path) != before
    assert labels("piqa", data=tmp_path) == [1, 0, 1, 0]


def test_a_home_folder_is_opened_wherever_it_is_named(project_of_one, monkeypatch, tmp_path):
    folder, data, entries = project_of_one
    monkeypatch.setenv("HOME", str(tmp_path))
    pairs = [{"goal": "g", "sol1": "a", "sol2": "b", "label": label} for label in (0, 1)]
    write_jsonl(tmp_path / "project" / "piqa_validation.jsonl", pairs)
    before = task_fingerprint("piqa", data="~/project")
    assert labels("piqa", data="~/project") == [0, 1]
    write_jsonl(tmp_path / "project" / "piqa_validation.jsonl", pairs[::-1])
    assert task_fingerprint("piqa", data="~/project") != before
    (folder / "choice.yaml").write_text(CHOICE.format(name="", data="~/project/toys/q.jsonl"))
    before = task_fingerprint("toy_choice", include="~/project/tasks")
    assert labels(include="~/project/tasks") == [entry["label"] for entry in entries]
    write_jsonl(data, flipped(entries))
    assert task_fingerprint("toy_choice", include="~/project/tasks") != before


def test_a_fingerprint_follows_included_task_files_and_functions(project_of_one, tmp_path):
    folder, _, _ = project_of_one
    shared = tmp_path / "elsewhere" / "shared.yaml"
    shared.parent.mkdir()
    shared.write_text(CHOICE.format(name="", data="toys/q.jsonl"), encoding="utf-8")
    (folder / "choice.yaml").write_text(f"include: {shared}\n", encoding="utf-8")
    known = [task_fingerprint("toy_choice", include=folder)]
    text = shared.read_text(encoding="utf-8")
    shared.write_text(text.replace('"{{question}}"', '"Q: {{question}}"'), encoding="utf-8")
    known.append(task_fingerprint("toy_choice", include=folder))
    shared.write_text(text + "process_docs: !function helpers.all_of\n", encoding="utf-8")
    for code in ("def all_of(docs): return docs\n", "def all_of(docs): return docs.select([0])\n"):
        (shared.parent / "helpers.py").write_text(code, encoding="utf-8")
        known.append(task_fingerprint("toy_choice", include=folder))
    assert len({print_["include"] for print_ in known}) == 4


def test_a_fingerprint_follows_a_linked_folder(project_of_one, tmp_path):
    folder, _, entries = project_of_one
    (tmp_path / "real").mkdir()
    write_jsonl(tmp_path / "real" / "q.jsonl", entries)
    (folder / "linked").symlink_to(tmp_path / "real", target_is_directory=True)
    (folder / "linked" / "back").symlink_to(folder, target_is_directory=True)  # a circle ends
    (folder / "choice.yaml").write_text(CHOICE.format(name="", data="linked/q.jsonl"), encoding="utf-8")
    before = task_fingerprint("toy_choice", include=folder)
    write_jsonl(tmp_path / "real" / "q.jsonl", flipped(entries))
    assert task_fingerprint("toy_choice", include=folder) != before


def test_a_fingerprint_does_not_depend_on_where_a_project_lies(project_of_one, tmp_path):
    folder, _, _ = project_of_one
    shutil.copytree(folder.parent, tmp_path / "copy")
    there = task_fingerprint("toy_choice", include=tmp_path / "copy" / "tasks")
    assert there == task_fingerprint("toy_choice", include=folder)


def test_a_fingerprint_tells_the_commit_of_a_set_in_the_hubs_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert "hub" not in task_fingerprint("gsm8k")
    for name in ("openai--gsm8k", "other--set"):
        refs = tmp_path / "hub" / f"datasets--{name}" / "refs"
        refs.mkdir(parents=True)
        (refs / "main").write_text("abc", encoding="utf-8")
    assert task_fingerprint("gsm8k")["hub"] == "openai/gsm8k main abc"
    write_jsonl(tmp_path / "gsm8k_test.jsonl", [{"question": "q", "answer": "#### 1"}])
    assert "hub" not in task_fingerprint("gsm8k", data=tmp_path)
