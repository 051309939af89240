"""The tasks under a name, by the harness's own index."""

from __future__ import annotations

from workbench.evaluation.index import leaves, packaged, task_manager


def test_groups_tags_and_names_open_to_their_tasks(folder):
    index = task_manager(folder).task_index
    assert leaves("toy_choices", index) == {"toy_choice", "toy_choice_again"}
    assert leaves("toy_sums", index) == {"toy_sums"}
    assert leaves({"group": "inline", "task": ["toy_choices", {"task": "toy_sums"}]}, index) == {
        *("toy_choice", "toy_choice_again", "toy_sums")
    }
    assert leaves("unknown", index) == {"unknown"}


def test_a_packaged_folder_is_the_harness_own():
    index = packaged("mmlu").task_index
    assert len(leaves("mmlu", index)) == 57
    assert leaves("mmlu_stem_tasks", index) == leaves("mmlu_stem", index)
