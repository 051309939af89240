"""Public sets on disk: items and prompts are the harness's own, gaps are named before any work."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch
from scoring import PACKAGED, assert_equal, flat, packaged_task, prompts, read_jsonl, write_jsonl
from tiny import tiny_model

from workbench.evaluation.evaluate import evaluate
from workbench.evaluation.items import read_items
from workbench.evaluation.offline import wikitext_pages
from workbench.evaluation.scores import headline
from workbench.evaluation.suites import LOCAL_SETS
from workbench.evaluation.tasks import load_plan, load_tasks

SINGLE = {  # task -> file in the harness, files of its splits, few-shot examples of the papers
    "arc_challenge": ("arc/arc_challenge.yaml", {"train", "validation", "test"}, 25),
    "arc_easy": ("arc/arc_easy.yaml", {"train", "validation", "test"}, 3),
    "gsm8k": ("gsm8k/gsm8k.yaml", {"train", "test"}, 5),
    "hellaswag": ("hellaswag/hellaswag.yaml", {"validation"}, 0),
    "piqa": ("piqa/piqa.yaml", {"validation"}, 0),
    "copa": ("super_glue/copa/default.yaml", {"validation"}, 0),
    "winogrande": ("winogrande/default.yaml", {"validation"}, 0),
}


FOLDERS = {  # group -> folder in the harness, prefix of its files, column of the part, items looked at
    "blimp": ("blimp", "", "UID", 3),
    "xwinograd": ("xwinograd", "xwinograd_", "language", 15),
    "xnli": ("xnli", "xnli_", "language", 30),
}


def count(path) -> int:
    return sum(1 for line in path.read_text(encoding="utf-8").split("\n") if line.strip())


@pytest.mark.parametrize("name", SINGLE)
def test_items_and_prompts_equal_the_packaged_task(shared_data, name):
    file, splits, shots = SINGLE[name]
    ours = load_tasks([name], data=shared_data)["tasks"][name]
    paths = {split: shared_data / LOCAL_SETS[name].files[split] for split in splits}
    theirs = packaged_task(file, {split: read_jsonl(path) for split, path in paths.items()})
    assert len(ours.eval_docs) == len(theirs.eval_docs) == count(paths[LOCAL_SETS[name].needed])
    assert prompts(ours, 0, 150) == prompts(theirs, 0, 150)
    if shots:
        assert prompts(ours, shots, 15) == prompts(theirs, shots, 15)
    assert [str(f.name) for f in ours._filters] == [str(f.name) for f in theirs._filters]
    assert ours.config.metric_list == theirs.config.metric_list


def test_boolq_equals_the_packaged_task_on_the_hubs_form(shared_data):
    ours = load_tasks(["boolq"], data=shared_data)["tasks"]["boolq"]
    rows = read_jsonl(shared_data / "boolq_validation.jsonl")
    hub = [
        {"question": row["question"], "passage": row["passage"], "idx": i, "label": 1 if row["answer"] else 0}
        for i, row in enumerate(rows)
    ]
    theirs = packaged_task("super_glue/boolq/default.yaml", {"validation": hub})
    assert len(ours.eval_docs) == len(theirs.eval_docs) == 2312
    assert prompts(ours, 0, 200) == prompts(theirs, 0, 200)
    targets = [[task.doc_to_target(doc) for doc in task.eval_docs] for task in (ours, theirs)]
    assert targets[0] == targets[1]
    assert 0 < sum(targets[0]) < 2312


def test_mmlu_equals_the_packaged_tasks_in_all_subjects(shared_data):
    loaded = load_tasks(["mmlu"], data=shared_data)
    rows = {split: read_jsonl(shared_data / f"mmlu_{split}.jsonl") for split in ("dev", "test")}
    assert len(loaded["tasks"]) == 57
    assert set(loaded["groups"]) == {
        "mmlu",
        *(f"mmlu_{g}" for g in ("stem", "humanities", "social_sciences", "other")),
    }
    assert sum(len(task.eval_docs) for task in loaded["tasks"].values()) == len(rows["test"])
    sizes = {name: len(group.get_all_tasks()) for name, group in loaded["groups"].items()}
    assert sizes == {
        "mmlu": 57,
        "mmlu_stem": 19,
        "mmlu_humanities": 13,
        "mmlu_social_sciences": 12,
        "mmlu_other": 13,
    }
    for name, ours in loaded["tasks"].items():
        subject = name.removeprefix("mmlu_")
        of_subject = {s: [row for row in part if row["subject"] == subject] for s, part in rows.items()}
        theirs = packaged_task(f"mmlu/default/{name}.yaml", of_subject)
        assert prompts(ours, 5, 2) == prompts(theirs, 5, 2)
        assert prompts(ours, 0, 2) == prompts(theirs, 0, 2)
        assert [ours.doc_to_target(d) for d in ours.eval_docs] == [
            row["answer"] for row in of_subject["test"]
        ]


@pytest.mark.parametrize("name", FOLDERS)
def test_sets_of_many_tasks_equal_the_packaged_ones(shared_data, name):
    folder, prefix, column, limit = FOLDERS[name]
    local = LOCAL_SETS[name]
    rows = read_jsonl(shared_data / local.files[local.needed])
    loaded = load_tasks([name], data=shared_data, missing="skip")
    for task, ours in loaded["tasks"].items():
        part = task.removeprefix(f"{name}_")
        of_part = [row for row in rows if row[column] == part]
        theirs = packaged_task(f"{folder}/{prefix}{part}.yaml", {local.needed: of_part})
        assert len(ours.eval_docs) == len(theirs.eval_docs) == len(of_part) > 0
        assert prompts(ours, 0, limit) == prompts(theirs, 0, limit)
        assert [ours.doc_to_target(d) for d in ours.eval_docs] == [
            theirs.doc_to_target(d) for d in theirs.eval_docs
        ]
    wanted = {"blimp": 67, "xwinograd": 6, "xnli": 3}[name]
    assert len(loaded["tasks"]) == len(loaded["group_map"][name]) == wanted


def test_race_asks_the_last_question_of_high_school_articles(shared_data, tmp_path):
    ours = load_tasks(["race"], data=shared_data)["tasks"]["race"]
    rows = [row for row in read_jsonl(shared_data / "race.jsonl") if row["example_id"].startswith("high")]
    hub = [
        {"article": row["article"], "problems": str([{k: row[k] for k in ("question", "answer", "options")}])}
        for row in rows
    ]
    theirs = packaged_task("race/race.yaml", {"test": hub})
    assert len(ours.eval_docs) == len(theirs.eval_docs) == 500
    assert prompts(ours, 0, None) == prompts(theirs, 0, None)
    article = {
        "example_id": "high1.txt",
        "article": "Anna has a dog.",
        "options": ["dog", "cat", "cow", "hen"],
    }
    questions = [("Anna has a  _  .", "A"), ("What is it not?", "B"), ("Who has it?", "C")]
    write_jsonl(tmp_path / "race.jsonl", [article | {"question": q, "answer": a} for q, a in questions])
    task = load_tasks(["race"], data=tmp_path)["tasks"]["race"]
    assert len(task.eval_docs) == 1
    assert task.doc_to_text(task.eval_docs[0]) == (
        "Article: Anna has a dog.\n\nAnna has a dog\nQuestion: What is it not?\nAnswer: cat\nWho has it?"
    )


def test_wikitext_is_the_harness_set_of_articles(shared_data):
    lines = [row["text"] for row in read_jsonl(shared_data / "wikitext2_raw_test.jsonl")]
    task = load_tasks(["wikitext"], data=shared_data)["tasks"]["wikitext"]
    pages = list(task.eval_docs["page"])
    assert len(pages) == 62  # as wikitext_document_level counts its test split
    assert all(page.startswith(" = ") and not page.startswith(" = = ") for page in pages)
    assert "\n".join(pages).split() == "".join(lines).split()
    theirs = packaged_task("wikitext/wikitext.yaml", {"test": [{"page": page} for page in pages]})
    assert prompts(task, 0, None) == prompts(theirs, 0, None)
    assert "@-@" in pages[0]
    assert "@-@" not in task.doc_to_target(task.eval_docs[0])
    words = [task.process_results(doc, (-1.0,))["word_perplexity"][1] for doc in task.eval_docs]
    assert words == [len(re.split(r"\s+", page)) for page in pages]


def test_a_section_does_not_begin_an_article():
    lines = ["", " = One = \n", "", " text \n", " = = Part = = \n", " more \n", "", " = Two = \n", " end \n"]
    assert wikitext_pages(lines) == [
        " = One = \n \n text \n = = Part = = \n more \n ",
        " = Two = \n end \n",
    ]


def test_chain_of_thought_mmlu_is_the_harness_own(shared_data):
    for name, split, shots in (("zeroshot", "validation", 0), ("fewshot", "test", 4)):
        task = f"mmlu_flan_cot_{name}_anatomy"
        ours = load_tasks([task], data=shared_data)["tasks"][task]
        rows = [r for r in read_jsonl(shared_data / f"mmlu_{split}.jsonl") if r["subject"] == "anatomy"]
        theirs = packaged_task(f"mmlu/flan_cot_{name}/mmlu_anatomy.yaml", {split: rows})
        assert len(ours.eval_docs) == len(rows)
        assert prompts(ours, shots, 5) == prompts(theirs, shots, 5)
        assert prompts(ours, shots, 1)[0][2][0].count("Let's think step by step.") == shots + 1
        assert ours.config.num_fewshot == shots


@pytest.fixture(scope="module")
def small(shared_data, tmp_path_factory):
    """Two MMLU subjects of unequal size, three BLiMP paradigms, one with two pairs of equal sentences."""
    folder = tmp_path_factory.mktemp("small")
    sizes = {"abstract_algebra": 3, "philosophy": 7}
    rows = read_jsonl(shared_data / "mmlu_test.jsonl")
    test = [row for name, n in sizes.items() for row in [r for r in rows if r["subject"] == name][:n]]
    write_jsonl(folder / "mmlu_test.jsonl", test)
    write_jsonl(
        folder / "mmlu_dev.jsonl",
        [r for r in read_jsonl(shared_data / "mmlu_dev.jsonl") if r["subject"] in sizes],
    )
    pairs = read_jsonl(shared_data / "blimp.jsonl")
    kept = [
        row
        for name in ("npi_present_1", "passive_1", "wh_island")
        for row in [r for r in pairs if r["UID"] == name][:6]
    ]
    for row in kept[-2:]:
        row["sentence_bad"] = row["sentence_good"]
    write_jsonl(folder / "blimp.jsonl", kept)
    return folder


@pytest.fixture(scope="module")
def their_tasks(small, tmp_path_factory):
    """The same rows by the harness alone: its own task files, its own reader of jsonl, its own groups."""
    folder = tmp_path_factory.mktemp("theirs")
    for group, column, where in (
        ("mmlu", "subject", "mmlu/default/{}.yaml"),
        ("blimp", "UID", "blimp/{}.yaml"),
    ):
        files = {"mmlu": {"test": "mmlu_test", "dev": "mmlu_dev"}, "blimp": {"train": "blimp"}}[group]
        rows = {split: read_jsonl(small / f"{file}.jsonl") for split, file in files.items()}
        names = list(dict.fromkeys(row[column] for row in next(iter(rows.values()))))
        for name in names:
            paths = {split: folder / f"{name}-{split}.jsonl" for split in rows}
            for split, path in paths.items():
                write_jsonl(path, [row for row in rows[split] if row[column] == name])
            config = {
                "include": str(PACKAGED / where.format(f"mmlu_{name}" if group == "mmlu" else name)),
                "task": f"{group}_{name}",
                "tag": None,
                "dataset_path": "json",
                "dataset_name": None,
                "dataset_kwargs": {"data_files": {split: str(path) for split, path in paths.items()}},
            }
            (folder / f"{name}.yaml").write_text(json.dumps(config), encoding="utf-8")
        members = {"group": group, "task": [f"{group}_{name}" for name in names]}
        config = {"include": str(PACKAGED / where.format(f"_{group}"))} | members
        (folder / f"_{group}.yaml").write_text(json.dumps(config), encoding="utf-8")
    return folder


def their_scores(model, tokenizer, folder, tasks, n_shot, tmp_path):
    import lm_eval
    from lm_eval.tasks import TaskManager

    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    arguments = {"pretrained": str(tmp_path / "model"), "dtype": "float32"}
    results = lm_eval.simple_evaluate(
        model="hf",
        model_args=arguments,
        tasks=tasks,
        num_fewshot=n_shot,
        batch_size=4,
        device="cpu",
        task_manager=manager,
    )
    return flat(results["results"])


@pytest.mark.parametrize(("task", "n_shot"), [("mmlu", 5), ("mmlu", 0), ("blimp", 0)])
def test_scores_of_many_tasks_equal_the_harness(small, their_tasks, tokenizer, tmp_path, task, n_shot):
    model = tiny_model(max_position_embeddings=3000)
    ours = evaluate(model, tokenizer, task, n_shot=n_shot, data=small, missing="skip", progress=False)
    expected = their_scores(model, tokenizer, their_tasks, [task], n_shot, tmp_path)
    subgroups = {
        "mmlu_stem",
        "mmlu_humanities",
    }  # the harness was not asked for these
    assert_equal(ours[~ours["task"].isin(subgroups)], expected)
    by_task = ours.set_index("task")
    if task == "mmlu":  # weighted by size
        parts = by_task.loc[["mmlu_abstract_algebra", "mmlu_philosophy"]]
        assert by_task.loc["mmlu", "value"] == pytest.approx((parts["value"] * [3, 7]).sum() / 10)
        assert by_task.loc["mmlu_stem", "value"] == by_task.loc["mmlu_abstract_algebra", "value"]
        assert set(by_task["category"]) == {"knowledge"}
    assert (by_task["n_shot"] == n_shot).all()


def test_chain_of_thought_subjects_are_counted_once(small, tokenizer):
    model = tiny_model(max_position_embeddings=2500, num_hidden_layers=1)
    options = {"data": small, "limit": 1, "missing": "skip", "progress": False}
    frame = evaluate(model, tokenizer, "mmlu_flan_cot_fewshot", **options)
    parents = frame.set_index("task")["parent"].to_dict()
    group = "mmlu_flan_cot_fewshot"
    assert parents == {
        f"{group}_abstract_algebra": f"{group}::stem",
        f"{group}_philosophy": f"{group}::humanities",
        f"{group}::stem": group,
        f"{group}::humanities": group,
        group: "",
    }
    assert list(headline(frame)["task"]) == [group]
    assert set(frame["metric"]) == {"exact_match,get-answer"}
    assert set(frame["n_shot"]) == {4}


@pytest.mark.slow
def test_the_demo_models_scores_equal_the_command_line(small, their_tasks, demo_model, root, tmp_path):

    model, tokenizer = demo_model
    ours = evaluate(model, tokenizer, ["mmlu", "blimp"], n_shot=0, data=small, missing="skip", progress=False)
    arguments = f"--model hf --model_args pretrained={root}/data/demo/model,dtype=float32 --tasks mmlu,blimp"
    arguments += f" --device cpu --num_fewshot 0 --include_path {their_tasks} --output_path {tmp_path}"
    subprocess.run(
        [sys.executable, "-m", "lm_eval", "run", *arguments.split()], check=True, capture_output=True
    )
    results = json.loads(next(tmp_path.rglob("results*.json")).read_text(encoding="utf-8"))["results"]
    assert_equal(ours[~ours["task"].isin({"mmlu_stem", "mmlu_humanities"})], flat(results))


def test_a_tie_counts_as_right_as_in_the_harness(small, tokenizer, tmp_path):
    model = tiny_model()
    evaluate(model, tokenizer, "blimp_wh_island", data=small, items=tmp_path / "items.jsonl", progress=False)
    values = read_items(tmp_path / "items.jsonl")["value"].tolist()
    assert values[-2:] == [1.0, 1.0]  # equal sentences: argmax takes the first, the good one
    torch.nn.init.zeros_(model.lm_head.weight)  # every token as likely: sentences of equal length tie as well
    ties = evaluate(model, tokenizer, "blimp_wh_island", data=small, progress=False)
    assert ties["value"].iloc[0] >= 2 / 6


def test_all_that_is_missing_is_named_at_once(shared_data, tokenizer):
    model = tiny_model()
    model.forward = None
    with pytest.raises(ValueError, match="no data for 3 of the tasks") as error:
        evaluate(model, tokenizer, "openllm-v1", data=shared_data, progress=False)
    for word in ("truthfulqa_mc2", "hellaswag_train.jsonl", "winogrande_xl_train.jsonl", "missing='skip'"):
        assert word in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no data for 2 of the tasks") as error:
        evaluate(model, tokenizer, "iterabre-multilingual", data=shared_data, progress=False)
    for word in ("xstorycloze", "no rows of xnli_ar, xnli_bg", "xnli_zh"):
        assert word in str(error.value)


def test_what_is_skipped_is_told_and_the_average_is_over_the_rest(shared_data, tokenizer):
    model = tiny_model(max_position_embeddings=1200)
    frame = evaluate(
        model, tokenizer, "iterabre-multilingual", data=shared_data, limit=2, missing="skip", progress=False
    )
    assert set(frame.attrs["skipped"]) == {"xnli", "xstorycloze"}
    assert set(frame["task"]) == {
        *("xnli", "xnli_en", "xnli_sw", "xnli_ur", "xwinograd"),
        *(f"xwinograd_{language}" for language in ("en", "fr", "jp", "pt", "ru", "zh")),
    }
    values = frame.set_index("task")["value"]
    assert values["xnli"] == pytest.approx(values[["xnli_en", "xnli_sw", "xnli_ur"]].mean())
    assert set(frame["category"]) == {"multilingual"}
    with pytest.raises(ValueError, match="no data for 1 of the tasks: 'xstorycloze'"):
        evaluate(model, tokenizer, "xstorycloze", data=shared_data, missing="skip", progress=False)


def test_few_shot_examples_come_from_a_train_file_where_there_is_one(shared_data, tmp_path):
    rows = read_jsonl(shared_data / "winogrande_xl_validation.jsonl")
    write_jsonl(tmp_path / "winogrande_xl_validation.jsonl", rows[:10])
    with pytest.raises(
        ValueError, match=r"'winogrande' \(5 few-shot examples come from a split that is not there"
    ):
        load_plan({5: ["winogrande"]}, data=tmp_path)
    write_jsonl(tmp_path / "winogrande_xl_train.jsonl", rows[10:40])
    ours = load_plan({5: ["winogrande"]}, data=tmp_path).tasks[5]["tasks"]["winogrande"]
    theirs = packaged_task("winogrande/default.yaml", {"train": rows[10:40], "validation": rows[:10]})
    assert prompts(ours, 5, None) == prompts(theirs, 5, None)


def test_sets_that_are_not_here_are_read_in_their_hub_form(tmp_path):
    story = {f"input_sentence_{i}": f"Sentence {i}." for i in range(1, 5)} | {
        "story_id": "a",
        "answer_right_ending": 2,
    }
    story |= {"sentence_quiz1": "Bad end.", "sentence_quiz2": "Good end."}
    languages = ["ar", "en", "es", "eu", "hi", "id", "my", "ru", "sw", "te", "zh"]
    write_jsonl(tmp_path / "xstorycloze_eval.jsonl", [story | {"language": name} for name in languages])
    choices = {"choices": ["Yes.", "No.", "Maybe."], "labels": [1, 0, 1]}
    write_jsonl(
        tmp_path / "truthfulqa_validation.jsonl",
        [{"question": "Is it?", "mc1_targets": choices, "mc2_targets": choices}],
    )
    tasks = load_tasks(["xstorycloze", "truthfulqa_mc2"], data=tmp_path)["tasks"]
    assert len(tasks) == 12
    theirs = packaged_task("xstorycloze/default_en.yaml", {"eval": [story]})
    assert prompts(tasks["xstorycloze_en"], 0, None) == prompts(theirs, 0, None)
    theirs = packaged_task(
        "truthfulqa/truthfulqa_mc2.yaml",
        {"validation": [{"question": "Is it?", "mc1_targets": choices, "mc2_targets": choices}]},
    )
    assert prompts(tasks["truthfulqa_mc2"], 0, None) == prompts(theirs, 0, None)


BOOLQ = {"question": "is it", "passage": "p", "answer": True}


COPA = {"premise": "p", "choice1": "a", "choice2": None, "question": "effect", "label": 0}


RACE = {"example_id": "middle1.txt", "article": "a", "question": "q", "options": ["a"] * 4, "answer": "A"}


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("boolq", [BOOLQ, {"question": "q", "answer": True}], "column 'passage' has no value in row 1"),
        ("boolq", [BOOLQ | {"answer": "yes"}], "row 0 needs label 0 or 1"),
        ("copa", [COPA], "column 'choice2' has no value in row 0"),
        ("piqa", [{"goal": "g", "sol1": "a", "sol2": "b"}], "column 'label' has no value in row 0"),
        ("blimp", [{"sentence_good": "a b", "UID": "wh_island"}], "column 'sentence_bad' has no value"),
        ("piqa", [], "has no items"),
        ("blimp", [], "has no items"),
        ("race", [RACE], "has no items"),
        ("scrolls_qmsum", [{"id": "1", "input": "no empty line", "output": "x"}], "must be a query"),
        ("piqa", "{", "line 1 of"),
    ],
)
def test_bad_rows_are_one_clear_line(tmp_path, name, rows, message):
    local = LOCAL_SETS[name]
    path = tmp_path / local.files[local.needed]
    path.write_text(rows, encoding="utf-8") if isinstance(rows, str) else write_jsonl(path, rows)
    with pytest.raises(ValueError, match=message) as error:
        load_tasks([name], data=tmp_path)
    assert "\n" not in str(error.value)


def test_a_public_set_on_disk_runs_with_its_official_shots_and_filters(shared_data, tokenizer, tmp_path):
    model = tiny_model(max_position_embeddings=6000)
    frame = evaluate(
        model, tokenizer, "gsm8k", data=shared_data, limit=2, items=tmp_path / "items.jsonl", progress=False
    )
    assert set(frame["metric"]) == {"exact_match,strict-match", "exact_match,flexible-extract"}
    assert set(frame["n_shot"]) == {5}
    prompt = read_items(tmp_path / "items.jsonl")["prompt"].iloc[0]
    assert prompt.count("Question: ") == 6
    assert prompt.count("#### ") == 5
