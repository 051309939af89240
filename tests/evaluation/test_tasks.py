"""Which questions are asked: found, named when wrong, and known by all they are made of."""

from __future__ import annotations

import gzip
import os
import shutil

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict
from scoring import CHOICE, load_manager, read_jsonl, rows, write_jsonl
from tiny import tiny_model

from workbench.evaluation import tasks as task_module
from workbench.evaluation.evaluate import evaluate
from workbench.evaluation.index import task_manager
from workbench.evaluation.suites import SUITES
from workbench.evaluation.tasks import load_plan, load_tasks, plan_tasks, task_fingerprint
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


def test_the_name_of_a_near_task_is_no_order_to_the_terminal(model, tokenizer, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(task_module, "packaged_tasks", lambda: load_manager(folder))
    named = CHOICE.format(name="", data="test.jsonl").replace("toy_choice", '"toy_choice\\e[31m"')
    (tmp_path / "choice.yaml").write_text(named, encoding="utf-8")
    with pytest.raises(ValueError, match=r"near: .*toy_choice\\x1b\[31m") as error:
        evaluate(model, tokenizer, "toy_choic", include=tmp_path)
    assert str(error.value).isprintable()


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
            "column 'label' is empty, first in item 0",
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


def written(kind: str, folder, entries: list[dict]) -> str:
    """Write rows of toy choices as some kind of file or folder; return what a task file says of them."""
    data = folder.parent / "data"
    data.mkdir(exist_ok=True)
    flat = [{**entry, "choices": str(entry["choices"])} for entry in entries]
    path, kwargs = "json", "data_files: {test: data/q.jsonl}"
    if kind == "parquet":
        pd.DataFrame(entries).to_parquet(data / "q.parquet")
        path, kwargs = "parquet", "data_files: {test: data/q.parquet}"
    elif kind == "csv":
        pd.DataFrame(flat).to_csv(data / "q.csv", index=False)
        path, kwargs = "csv", "data_files: {test: data/q.csv}"
    elif kind == "gz":
        write_jsonl(data / "q.jsonl", entries)
        (data / "q.jsonl.gz").write_bytes(gzip.compress((data / "q.jsonl").read_bytes()))
        kwargs = "data_files: {test: data/q.jsonl.gz}"
    elif kind == "glob":
        for number, part in enumerate((entries[:3], entries[3:])):
            write_jsonl(data / f"q-{number}.jsonl", part)
        kwargs = "data_files: {test: data/*.jsonl}"
    elif kind in ("data_dir", "folder"):
        pd.DataFrame(entries).to_parquet(data / "test-0.parquet")
        path, kwargs = ("data", "") if kind == "folder" else ("parquet", "data_dir: data")
    elif kind == "saved":
        DatasetDict({"test": Dataset.from_list(entries)}).save_to_disk(data)
        path, kwargs = "./data", ""
    text = CHOICE.format(name="", data="?").replace("dataset_path: json", f"dataset_path: {path}")
    text = text.replace(
        "dataset_kwargs: {data_files: {test: ?}}", f"dataset_kwargs: {{{kwargs}}}" if kwargs else ""
    )
    (folder / "choice.yaml").write_text(text, encoding="utf-8")
    return text


@pytest.mark.parametrize("kind", ["parquet", "csv", "gz", "glob", "data_dir", "folder", "saved"])
def test_data_of_any_kind_are_found_near_the_task_file_and_known_by_content(
    kind, model, tokenizer, tmp_path, monkeypatch
):
    folder, entries = tmp_path / "project" / "tasks", rows(6, seed=3)
    folder.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    written(kind, folder, entries)
    before = task_fingerprint("toy_choice", include=folder)
    frame = evaluate(model, tokenizer, "toy_choice", include=folder, progress=False)
    plain = tmp_path / "plain"
    plain.mkdir()
    write_jsonl(plain / "q.jsonl", entries)
    (plain / "choice.yaml").write_text(CHOICE.format(name="", data="q.jsonl"), encoding="utf-8")
    expected = evaluate(model, tokenizer, "toy_choice", include=plain, progress=False)
    pd.testing.assert_frame_equal(frame, expected)
    assert labels(include=folder) == [entry["label"] for entry in entries]
    shutil.rmtree(folder.parent / "data")
    written(kind, folder, flipped(entries))
    assert task_fingerprint("toy_choice", include=folder) != before
    assert labels(include=folder) == [entry["label"] for entry in flipped(entries)]


def test_a_folder_of_tasks_named_like_its_set_is_no_data(tmp_path):
    from workbench.evaluation.dependencies import placed

    folder = tmp_path / "piqa" / "more"
    folder.mkdir(parents=True)
    (folder / "utils.py").write_text("", encoding="utf-8")
    for name in ("piqa", "more", "org/set"):
        assert placed({"dataset_path": name}, folder / "task.yaml", "t") == {}
    with pytest.raises(ValueError, match="task 't': its data_dir 'nowhere' holds no data near"):
        placed({"dataset_path": "csv", "dataset_kwargs": {"data_dir": "nowhere"}}, folder / "task.yaml", "t")


@pytest.fixture
def mixed(tmp_path):
    """A group of an own task and packaged ones, and public sets on disk."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    write_jsonl(folder / "q.jsonl", rows(5, seed=3))
    (folder / "choice.yaml").write_text(CHOICE.format(name="", data="q.jsonl"), encoding="utf-8")
    group = "group: mine\ntask: [toy_choice, piqa, {task: copa}]\naggregate_metric_list: [{metric: acc}]\n"
    (folder / "group.yaml").write_text(group, encoding="utf-8")
    piqa = [{"goal": f"g {k}", "sol1": "the dog", "sol2": "a fox", "label": k % 2} for k in range(4)]
    write_jsonl(tmp_path / "piqa_validation.jsonl", piqa)
    copa = {"premise": "it rained.", "choice1": "It is wet.", "choice2": "It is dry.", "question": "effect"}
    write_jsonl(tmp_path / "copa_validation.jsonl", [{**copa, "label": 0}, {**copa, "label": 1}])
    return folder, tmp_path


def test_a_group_holds_own_and_packaged_tasks(model, tokenizer, mixed):
    folder, data = mixed
    options = {"include": folder, "data": data, "progress": False}
    frame = evaluate(model, tokenizer, "mine", **options)
    assert set(frame["task"]) == {"mine", "toy_choice", "piqa", "copa"}
    counts = frame[frame["metric"] == "acc"].set_index("task")
    assert counts["n"].to_dict() == {"mine": 11, "toy_choice": 5, "piqa": 4, "copa": 2}
    assert counts["parent"].to_dict() == {"mine": "", "toy_choice": "mine", "piqa": "mine", "copa": "mine"}
    apart = evaluate(model, tokenizer, ["toy_choice", "piqa", "copa"], **options).set_index(
        ["task", "metric"]
    )
    for row in frame[frame["task"] != "mine"].itertuples():
        assert row.value == apart.loc[(row.task, row.metric), "value"]
    before = task_fingerprint("mine", include=folder, data=data)
    write_jsonl(data / "piqa_validation.jsonl", [{"goal": "g", "sol1": "a", "sol2": "b", "label": 1}])
    assert task_fingerprint("mine", include=folder, data=data) != before


def test_a_group_whose_packaged_part_has_no_data_says_so(model, tokenizer, mixed):
    folder, data = mixed
    (data / "copa_validation.jsonl").unlink()
    with pytest.raises(
        ValueError, match=r"no data for 1 of the tasks: 'mine' \(.*copa_validation.jsonl"
    ) as error:
        evaluate(model, tokenizer, "mine", include=folder, data=data, progress=False)
    assert "piqa_validation" not in str(error.value)
    assert "\n" not in str(error.value)


def test_other_tasks_on_the_rows_of_a_public_set_read_them(model, tokenizer, tmp_path):
    for split in ("train", "test"):
        entries = [{"question": f"{k} apples?", "answer": f"so it is\n#### {k}"} for k in range(3)]
        write_jsonl(tmp_path / f"gsm8k_{split}.jsonl", entries)
    options = {"data": tmp_path, "max_length": 250, "max_new_tokens": 4, "progress": False}
    frame = evaluate(model, tokenizer, ["gsm8k", "gsm8k_cot"], n_shot=1, limit=2, **options)
    assert set(frame["task"]) == {"gsm8k", "gsm8k_cot"}
    assert set(frame["n"]) == {2}
    for task in ("gsm8k", "gsm8k_cot"):  # both ways of reading an answer
        found = set(frame[frame["task"] == task]["metric"])
        assert found == {"exact_match,strict-match", "exact_match,flexible-extract"}


ATTACKS = {
    "function": ("doc_to_text: !function payload.text", "names Python functions; allow_code=True"),
    "quoted": ('doc_to_text: !function "payload.text"', "names Python functions"),
    "verbatim": ("doc_to_text: !<!function> payload.text", "names Python functions"),
    "template": (
        "doc_to_text: \"{{ cycler.__init__.__globals__.os.system('touch RAN') }}\"",
        "a template of a task is refused: .*; allow_code=True",
    ),
    "later": (
        "doc_to_text: \"{% if question != first %}{{ cycler.__init__.__globals__.os.system('touch RAN') }}"
        '{% endif %}{{question}}"',
        "a template of a task is refused",
    ),
    "description": (
        "doc_to_text: question\ndescription: \"{{ ''.__class__.__mro__ }}\"",
        "a template of a task is refused",
    ),
    "metric": (
        "doc_to_text: question\nmetric_list: [{metric: ./payload.py}]",
        "of another library; allow_code=True",
    ),
    "override": ("doc_to_text: question", "of another library; allow_code=True"),
}


@pytest.mark.parametrize("kind", [*ATTACKS, "included", "group"])
def test_a_folder_of_tasks_runs_no_code_unless_it_may(kind, model, tokenizer, tmp_path, monkeypatch):
    from workbench.evaluation.contamination import evaluation_prompts

    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "tasks"
    folder.mkdir()
    entries = [{**row, "first": "0"} for row in rows(3, seed=3)]
    entries[0]["first"] = entries[0]["question"]
    write_jsonl(folder / "q.jsonl", entries)
    payload = "from pathlib import Path\nPath('RAN').touch()\ndef text(doc): return doc['question']\n"
    (folder / "payload.py").write_text(payload, encoding="utf-8")
    line, message = ATTACKS.get(kind, ATTACKS["function"])
    text = CHOICE.format(name="", data="q.jsonl").replace('doc_to_text: "{{question}}"', line)
    if kind == "metric":
        text = text[: text.index("metric_list:\n")]
    (folder / "choice.yaml").write_text(text, encoding="utf-8")
    name = "toy_choice"
    if kind == "included":
        (tmp_path / "payload.py").write_text(payload, encoding="utf-8")
        (tmp_path / "outside.yaml").write_text(text, encoding="utf-8")
        (folder / "choice.yaml").write_text("include: ../outside.yaml\n", encoding="utf-8")
    if kind in ("group", "override"):
        member = (
            "{task: toy_choice, metric_list: [{metric: ./payload.py}]}"
            if kind == "override"
            else "toy_choice"
        )
        (folder / "group.yaml").write_text(f"group: mine\ntask: [{member}]\n", encoding="utf-8")
        name = "mine"
    ran = tmp_path / "RAN"
    options = {"include": folder, "progress": False}
    task_fingerprint(name, include=folder)
    with pytest.raises(ValueError, match=message) as error:
        evaluate(model, tokenizer, name, **options)
    assert "\n" not in str(error.value)
    if kind != "description":
        with pytest.raises(ValueError, match=message):
            evaluation_prompts(name, include=folder)
    assert not ran.exists()
    if kind not in ("metric", "override"):
        evaluate(model, tokenizer, name, allow_code=True, **options)
        assert ran.exists() == (kind != "description")


def test_the_demo_tasks_are_trusted_by_content_alone(tmp_path):
    shutil.copytree(demo_path("tasks"), tmp_path / "tasks")
    assert set(load_tasks(["demo_facts"], include=tmp_path / "tasks")["tasks"]) == {"demo_facts"}
    with (tmp_path / "tasks" / "utils.py").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    with pytest.raises(ValueError, match=r"demo_facts.yaml names Python functions"):
        load_tasks(["demo_facts"], include=tmp_path / "tasks")
    assert set(load_tasks(["demo_math"], include=tmp_path / "tasks")["tasks"]) == {"demo_math"}


def test_a_package_that_is_missing_is_named_in_one_line(tmp_path):
    (tmp_path / "needs.py").write_text("import langdetect_of_nowhere\n", encoding="utf-8")
    write_jsonl(tmp_path / "q.jsonl", rows(2, seed=3))
    text = CHOICE.format(name="", data="q.jsonl") + "process_docs: !function needs.all\n"
    (tmp_path / "choice.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"needs a package that is not there: No module named 'langdetect"):
        load_plan({None: ["toy_choice"]}, include=tmp_path, allow_code=True)
