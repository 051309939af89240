"""What a shift foretells: counts by hand, no correlation that is arithmetic or rests on too little."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

import workbench as wb
from workbench.forgetting import shift as module
from workbench.forgetting.shift import loss_against_similarity, shift_agreement


def items(values: list[float], responses: list[str], task: str = "math") -> pd.DataFrame:
    n = len(values)
    return pd.DataFrame(
        {
            "task": task,
            "n_shot": 0,
            "item": range(n),
            "metric": "acc",
            "value": values,
            "prompt": [f"{task} {i}?" for i in range(n)],
            "target": "t",
            "response": responses,
        }
    )


@pytest.fixture(scope="module")
def losses() -> pd.DataFrame:
    near = [f"There are {i} red apples in the bowl of the miller." for i in range(6)]
    far = [*near[:3], "quantum chromodynamics", "zwei Hunde", "#### 7"]
    base = pd.concat([items([1, 1, 1, 1, 1, 0], near), items([1] * 6, near, "facts")])
    other = pd.concat([items([1, 1, 1, 0, 0, 0], far), items([1] * 6, near, "facts")])
    perplexities = items([-3.2] * 6, [""] * 6, "stories")
    return loss_against_similarity(pd.concat([base, perplexities]), {"sft": pd.concat([other, perplexities])})


def test_what_was_lost_stands_beside_how_far_the_answers_moved(losses):
    assert list(losses["task"]) == ["facts", "math"]  # perplexities are no accuracy
    math = losses.set_index("task").loc["math"]
    assert math["lost"] == pytest.approx(2 / 6)
    assert math["lost_low"] <= math["lost"] <= math["lost_high"]
    assert math["n_right"] == 5
    assert math["similarity_low"] < math["similarity"] < math["similarity_high"] < 1
    facts = losses.set_index("task").loc["facts"]
    assert (facts["lost"], facts["similarity"]) == (0, pytest.approx(1))
    assert np.isnan(facts["spearman"])


def answers(other: list[float], similarity: list[float], **columns) -> pd.DataFrame:
    """Return pairs of one task in which every answer changed, with the similarities given."""
    frame = pd.DataFrame({"base": 1.0, "other": other, "similarity": similarity, "unseen": False})
    return frame.assign(base_response="a", other_response="b").assign(**columns)


def test_item_by_item_the_correlation_is_that_of_scipy():
    rng = np.random.default_rng(0)
    wrong, near = rng.random(40) < 0.4, rng.random(40)
    row = module._task_row(answers(list(1.0 - wrong), list(near)))
    assert row["spearman"] == pytest.approx(spearmanr(-near, wrong).statistic)
    assert row["rho_low"] < row["spearman"] < row["rho_high"]
    assert (row["changed"], row["n_wrong"], row["changed_is_wrong"]) == (1, wrong.sum(), False)


@pytest.mark.parametrize("turned", [0, 1, 2, 4, 76, 79, 80])
def test_few_events_on_either_side_support_no_correlation(turned):
    """One wrong answer of eighty, at random similarities, is no finding."""
    near = np.random.default_rng(turned).random(80)
    row = module._task_row(answers([0.0] * turned + [1.0] * (80 - turned), list(near)))
    assert np.isnan([row["spearman"], row["rho_low"], row["rho_high"]]).all()
    assert row["n_wrong"] == turned


def test_the_interval_within_a_task_covers_no_agreement_where_there_is_none():
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        row = module._task_row(answers([0.0] * 6 + [1.0] * 74, list(rng.random(80))))
        covered += row["rho_low"] <= 0 <= row["rho_high"]
    assert covered >= 180


def choices(values: list[float], variant: str = "") -> pd.DataFrame:
    said = ["yes" if value else "no" for value in values]
    return items(values, said, "choice").assign(target="yes")


def test_where_a_changed_answer_is_a_wrong_one_that_is_said_and_not_correlated():
    lost = loss_against_similarity(choices([1] * 30), {"cut": choices([0] * 9 + [1] * 21)}).iloc[0]
    assert lost["changed_is_wrong"]
    assert lost["changed"] == pytest.approx(0.3) == lost["lost"]
    assert np.isnan(lost["spearman"])
    # also where the base is not always right
    mixed = loss_against_similarity(choices([1] * 20 + [0] * 10), {"cut": choices([0] * 9 + [1] * 21)}).iloc[
        0
    ]
    assert mixed["changed_is_wrong"] and mixed["changed"] == pytest.approx(19 / 30)


def test_each_number_of_shots_is_a_row_of_its_own():
    sides = [
        pd.concat([choices(v).assign(n_shot=0), choices(v[::-1]).assign(n_shot=5)])
        for v in ([1] * 8, [0, *[1] * 7])
    ]
    found = loss_against_similarity(sides[0], {"cut": sides[1]})
    assert found[["task", "n_shot", "n"]].values.tolist() == [["choice", 0, 8], ["choice", 5, 8]]


def grid(n_tasks: int, seed: int = 0, **columns) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    tasks = [f"t{k}" for k in range(n_tasks) for _ in range(3)]
    rows = pd.DataFrame(
        {"variant": ["a", "b", "c"] * n_tasks, "task": tasks, "similarity": rng.random(3 * n_tasks)}
    )
    return rows.assign(lost=1 - rows["similarity"] + rng.normal(0, 0.2, len(rows)), **columns)


def test_agreement_over_variants_and_tasks():
    rows = grid(12)
    rows["changed"] = 1 - rows["similarity"] ** 2
    found = shift_agreement(rows)
    assert (found["n"], found["n_points"], found["note"]) == (36, 12, "")
    assert found["spearman"] == pytest.approx(spearmanr(-rows["similarity"], rows["lost"]).statistic)
    assert found["changed_spearman"] == pytest.approx(found["spearman"])
    assert found["ci_low"] < found["spearman"] < found["ci_high"]


def test_tasks_are_resampled_and_not_rows():
    """Three variants that lie on each other are one point, so their interval is that of one of them."""
    one = grid(16, seed=3).drop_duplicates("task")
    copies = pd.concat([one.assign(variant=name) for name in "abc"])
    alone, tripled = shift_agreement(one), shift_agreement(copies)
    assert tripled["spearman"] == pytest.approx(alone["spearman"])
    assert tripled["ci_high"] - tripled["ci_low"] == pytest.approx(
        alone["ci_high"] - alone["ci_low"], abs=0.02
    )


@pytest.mark.parametrize(
    ("losses", "note"),
    [
        (grid(7), "no correlation from 7 tasks, fewer than 10"),
        (grid(1), "no correlation from 1 task, fewer than 10"),
        (grid(3).drop(columns="task"), "no correlation from 9 independent points, fewer than 10"),
        (grid(12).assign(lost=0.0), "no correlation: all similarities, or all losses, are equal"),
    ],
)
def test_too_little_gives_no_correlation_but_words(losses, note):
    found = shift_agreement(losses)
    assert np.isnan([found[name] for name in ("spearman", "ci_low", "ci_high", "changed_spearman")]).all()
    assert found["note"] == note


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wb.loss_against_similarity(items([1], ["x"]), {}), "others must be a mapping of names to"),
        (
            lambda: loss_against_similarity(items([1], ["x"]), {"v": items([1], ["x"], "facts")}),
            "same items with the same prompts",
        ),
        (
            lambda: loss_against_similarity(items([0.5], ["x"]), {"v": items([0.5], ["x"])}),
            "right or wrong and have an answer",
        ),
        (
            lambda: loss_against_similarity(items([1], [""]), {"v": items([1], [" "])}),
            "right or wrong and have an answer",
        ),
    ],
)
def test_bad_input_is_one_clear_line(call, message, monkeypatch):
    monkeypatch.setattr(module, "response_similarity", None)
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
