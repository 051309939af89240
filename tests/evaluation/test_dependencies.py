"""Files that scores depend on: found wherever they lie, known by what they hold."""

from __future__ import annotations

import pytest
from scoring import CHOICE, rows, write_jsonl

from workbench.evaluation.dependencies import absolute_files, digest_of_all, own_files, sandbox
from workbench.evaluation.index import task_manager
from workbench.runs.content import content_of


def test_a_digest_follows_the_content_and_the_label(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1", encoding="utf-8")
    two.write_text("2", encoding="utf-8")
    assert content_of(one) != content_of(two)
    assert digest_of_all({"a": one, "b": two}) == digest_of_all({"b": two, "a": one})
    assert digest_of_all({"a": one, "b": two}) != digest_of_all({"a": two, "b": one})
    one.write_text("2", encoding="utf-8")
    assert content_of(one) == content_of(two)


def test_files_in_and_outside_the_folder_are_named_once(tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "choice.yaml").write_text(CHOICE.format(name="", data="q.jsonl"), encoding="utf-8")
    (folder / "notes.txt").write_text("any file of the folder", encoding="utf-8")
    write_jsonl(tmp_path / "q.jsonl", rows(2, seed=0))
    found = own_files({"toy_choice"}, folder, task_manager(folder).task_index)
    assert found == {
        "choice.yaml": folder / "choice.yaml",
        "notes.txt": folder / "notes.txt",
        "toy_choice 0": folder / "choice.yaml",
        "toy_choice 1": tmp_path / "q.jsonl",
    }


def test_the_nearest_data_file_is_taken(tmp_path):
    task_file = tmp_path / "project" / "tasks" / "task.yaml"
    task_file.parent.mkdir(parents=True)
    for place in (tmp_path, tmp_path / "project"):
        write_jsonl(place / "q.jsonl", [{"question": "?"}])
    found = absolute_files({"test": ["q.jsonl"], "train": "hf://far/q.jsonl"}, task_file, "t")
    assert found == {"test": [str(tmp_path / "project" / "q.jsonl")], "train": "hf://far/q.jsonl"}
    with pytest.raises(ValueError, match=r"task 't': its data file 'no\.jsonl' is neither near"):
        absolute_files("no.jsonl", task_file, "t")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "steps"),
        ("{{ range(99999) | join('x' * 99999) }}", "characters"),
        ("{{ ''.__class__ }}", "unsafe"),
    ],
)
def test_a_template_of_a_task_that_never_ends_is_refused(template, words):
    from lm_eval import utils

    with sandbox():
        told = utils.apply_template("{{ q | default('none') }} {{ c[0] | upper }}\n", {"c": ["me"], "n": 5})
        assert told == "none ME\n"  # as the harness itself writes it
    refused = pytest.raises(ValueError, match=f"a template of a task is refused: .*{words}")
    with refused, sandbox():
        utils.apply_template(template, {"c": ["me"]})
