"""What scores say: recovery, categories, spreads."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from frames import score_frame

from workbench.evaluation.recovery import average_recovery
from workbench.evaluation.scores import (
    category_scores,
    headline,
    score_intervals,
    score_spread,
    task_categories,
)
from workbench.evaluation.suites import CATEGORIES, CHANCE


def scores(**variants: dict[str, float]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"variant": variant, "task": task, "metric": "acc", "n_shot": 0, "value": value}
            | {"higher_is_better": True, "parent": ""}
            for variant, tasks in variants.items()
            for task, value in tasks.items()
        ]
    )


def test_recovery_gives_the_papers_numbers():
    # SDD table 8: the unpruned model, and block size 6 self-distilled on OpenMathInstruct
    table = scores(
        base={"arc_challenge": 58.70, "gsm8k": 63.15, "mmlu": 67.40},
        distilled={"arc_challenge": 50.00, "gsm8k": 66.64, "mmlu": 64.96},
    )
    result = average_recovery(table).set_index("variant")
    assert result.loc["base", "average"] == pytest.approx(63.08, abs=0.005)
    assert result.loc["distilled", "average"] == pytest.approx(60.53, abs=0.005)
    assert result.loc["distilled", "recovery"] == pytest.approx(0.9596, abs=0.00005)
    assert result.loc["base", "recovery"] == 1
    assert list(result["n_tasks"]) == [3, 3]


def test_recovery_keeps_the_order_of_the_variants_and_leaves_perplexities_out():
    table = scores(pruned={"a": 0.2, "b": 0.4}, base={"a": 0.5, "b": 0.7})
    worse = pd.DataFrame(
        [
            {"variant": variant, "task": "stories", "metric": "word_perplexity", "n_shot": 0, "value": value}
            | {"higher_is_better": False, "parent": ""}
            for variant, value in (("pruned", 900.0), ("base", 4.0))
        ]
    )
    result = average_recovery(pd.concat([table, worse], ignore_index=True))
    assert list(result["variant"]) == ["pruned", "base"]
    assert list(result["recovery"]) == pytest.approx([0.5, 1])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (scores(pruned={"a": 0.5}), "base must be one of pruned, got 'base'"),
        (scores(base={"a": 0.5, "b": 0.5}, pruned={"a": 0.5}), "'pruned' lacks b"),
        (scores(base={"a": 0.0}, pruned={"a": 0.5}), "scores 0"),
        (pd.concat([scores(base={"a": 0.5})] * 2), "one score a task"),
    ],
)
def test_recovery_refuses_what_would_give_a_plausible_wrong_number(table, message):
    with pytest.raises(ValueError, match=message):
        average_recovery(table)


def test_headline_takes_the_metric_that_papers_report_and_no_part_of_a_group_twice():
    rows = [
        ("arc_challenge", "acc", ""),
        ("arc_challenge", "acc_norm", ""),
        ("gsm8k", "exact_match,flexible-extract", ""),
        ("gsm8k", "exact_match,strict-match", ""),
        ("mmlu", "acc", ""),
        ("mmlu_anatomy", "acc", "mmlu"),
        ("toy", "acc_norm", ""),
        ("toy", "acc", ""),
        ("odd", "f1", ""),
    ]
    table = pd.DataFrame(rows, columns=["task", "metric", "parent"]).assign(value=0.5)
    chosen = headline(table).set_index("task")["metric"]
    assert chosen.to_dict() == {
        "arc_challenge": "acc_norm",
        "gsm8k": "exact_match,strict-match",
        "mmlu": "acc",
        "toy": "acc",
        "odd": "f1",
    }


def test_headline_reads_an_empty_parent_back_from_csv(tmp_path):
    scores(base={"a": 0.5}).to_csv(tmp_path / "scores.csv", index=False)
    assert len(headline(pd.read_csv(tmp_path / "scores.csv"))) == 1


@pytest.mark.parametrize(("value", "n"), [(0.0, 20), (1.0, 20), (0.987, 400), (0.5, 30)])
def test_right_or_wrong_scores_have_wilson_intervals(value, n):
    from scipy.stats import binomtest

    stderr = np.sqrt(value * (1 - value) / (n - 1))
    found = score_intervals(pd.DataFrame({"value": [value], "stderr": [stderr], "n": [n]})).iloc[0]
    if (value * n).is_integer():
        expected = binomtest(int(value * n), n).proportion_ci(method="wilson")
        assert (found["low"], found["high"]) == pytest.approx(tuple(expected), abs=1e-6)
    assert 0 <= found["low"] < found["high"] <= 1
    assert found["low"] <= value <= found["high"]


def test_other_scores_have_normal_intervals_or_none():
    frame = pd.DataFrame({"value": [4.2, 4.2], "stderr": [0.1, np.nan], "n": [50, 50]})
    found = score_intervals(frame)
    assert found["high"][0] == pytest.approx(4.2 + 1.96 * 0.1, abs=1e-4)
    assert np.isnan(found["low"][1])


def test_scores_need_no_torch():
    rooms = ("evaluation.scores", "evaluation.tasks", "evaluation.evaluate", "forgetting.similarity")
    modules = ", ".join(f"workbench.{room}" for room in rooms)
    code = f"import sys, {modules}; assert not {{'torch', 'lm_eval', 'peft'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_category_is_the_mean_of_its_tasks_with_independent_errors():
    scores = score_frame()
    categories = {"demo_math": "reasoning", "demo_facts": "knowledge", "demo_pairs": "knowledge"}
    scores = scores.assign(category=scores["task"].map(categories).fillna("language"))
    found = category_scores(scores.sample(frac=1, random_state=0)).set_index(["variant", "category"])
    assert list(dict.fromkeys(category for _, category in found.index)) == ["reasoning", "knowledge"]
    row = found.loc[("pruned + SFT", "knowledge")]
    assert row["value"] == pytest.approx((0.007 + 1) / 2)
    tasks = score_intervals(scores).query("variant == 'pruned + SFT' and category == 'knowledge'")
    below = np.sqrt(((tasks["value"] - tasks["low"]) ** 2).sum()) / 2
    assert row["low"] == pytest.approx(row["value"] - below)
    assert row["low"] < row["value"] < row["high"] <= 1
    assert row["n_tasks"] == 2


@pytest.mark.parametrize(("metric", "value"), [("mcc", -0.2), ("acc", 40.0)])
def test_an_interval_of_a_category_holds_its_mean_whatever_the_unit(metric, value):
    rows = [{"variant": "base", "task": task, "metric": metric, "value": value} for task in "ab"]
    found = category_scores(pd.DataFrame(rows).assign(stderr=0.02, category="knowledge"), prefer=None)
    assert found.eval("low < value and value < high").all()


def test_categories_of_different_tasks_are_refused():
    scores = score_frame().assign(category="reasoning")
    gap = scores[~((scores["variant"] == "pruned") & (scores["task"] == "demo_math"))]
    with pytest.raises(ValueError, match="'pruned' lacks demo_math"):
        category_scores(gap)
    with pytest.raises(ValueError, match="where higher is better"):
        category_scores(scores.assign(higher_is_better=False))
    with pytest.raises(ValueError, match=r"missing \['category'\]"):
        category_scores(score_frame())


def test_unknown_errors_give_no_interval():
    found = category_scores(score_frame().assign(category="", stderr=np.nan))
    assert set(found["category"]) == {"other"}
    assert found[["low", "high"]].isna().all(axis=None)


def test_the_chance_of_choices_is_that_of_their_number(shared_data):
    first = pd.read_json(shared_data / "hellaswag.jsonl", lines=True, nrows=50)
    assert (first["endings"].map(len) == 1 / CHANCE["hellaswag"]).all()
    questions = pd.read_json(shared_data / "mmlu_test.jsonl", lines=True, nrows=50)
    assert (questions["choices"].map(len) == 1 / CHANCE["mmlu"]).all()


def test_every_task_of_the_papers_with_choices_has_a_chance():
    names = ("arc_challenge", "arc_easy", "hellaswag", "copa", "piqa", "gsm8k", "blimp", "race", "winogrande")
    names += ("boolq", "mmlu", "xwinograd", "xstorycloze", "xnli")
    assert set(names) <= set(CHANCE)
    assert set(names) <= set(CATEGORIES)


def test_a_spread_over_what_is_not_there_is_refused():
    frame = pd.DataFrame({"task": ["a", "a"], "metric": "acc", "n_shot": 0, "value": [0.1, 0.2], "order": 0})
    with pytest.raises(ValueError, match="over, a column of scores, must be one of task, metric"):
        score_spread(frame, "seed")
    with pytest.raises(ValueError, match=r"scores must hold each \(task, metric, n_shot, order\) once"):
        score_spread(frame, "order")


def test_categories_hold_each_task_once_and_no_perplexity():
    table = scores(base={"x": 1.0, "y": 0.5}, other={"x": 0.5, "y": 0.5})
    table["category"] = table["task"].map({"x": "knowledge", "y": "reasoning"})
    stories = table.head(1).assign(task="z", metric="word_perplexity", higher_is_better=False)
    assert task_categories(pd.concat([table, stories])) == {"knowledge": ["x"], "reasoning": ["y"]}


def matches(strict: float, flexible: float, variant: str = "base") -> pd.DataFrame:
    rows = {
        "metric": ["exact_match,strict-match", "exact_match,flexible-extract"],
        "value": [strict, flexible],
    }
    about = {
        "variant": variant,
        "task": "gsm8k",
        "n_shot": 5,
        "parent": "",
        "higher_is_better": True,
        "n": 100,
    }
    return pd.DataFrame(rows).assign(**about, stderr=0.05, category="reasoning")


def normed(acc: float, acc_norm: float, variant: str = "base", task: str = "arc_challenge") -> pd.DataFrame:
    about = {"variant": variant, "task": task, "n_shot": 25, "parent": "", "higher_is_better": True, "n": 100}
    rows = {"metric": ["acc", "acc_norm"], "value": [acc, acc_norm]}
    return pd.DataFrame(rows).assign(**about, stderr=0.05, category="reasoning")


@pytest.mark.parametrize(
    ("prefer", "chosen"),
    [
        (None, ["exact_match,strict-match", "acc_norm"]),
        ("strict", ["exact_match,strict-match", "acc_norm"]),
        ("flexible", ["exact_match,flexible-extract", "acc_norm"]),
        ("acc", ["exact_match,strict-match", "acc"]),
        ("exact_match,flexible-extract", ["exact_match,flexible-extract", "acc_norm"]),
        ({"gsm8k": "flexible"}, ["exact_match,flexible-extract", "acc_norm"]),
        ({"arc_challenge": "acc"}, ["exact_match,strict-match", "acc"]),
    ],
)
def test_which_metric_stands_for_a_task_can_be_said(prefer, chosen):
    both = pd.concat([matches(0.0, 0.7), normed(0.5, 0.6)])
    assert headline(both, prefer=prefer)["metric"].tolist() == chosen


@pytest.mark.parametrize(
    ("prefer", "message"),
    [
        ("loose", "prefer must be one of acc, acc_norm, .*got 'loose'"),
        ({"gsm8k": "acc"}, r"\['exact_match,flexible-extract', .*\] of 'gsm8k', got 'acc'"),
        ({"gsm9k": "strict"}, r"\[\] of 'gsm9k', got 'strict'"),
    ],
)
def test_a_preference_that_changes_nothing_is_refused(prefer, message):
    with pytest.raises(ValueError, match=message):
        headline(pd.concat([matches(0.0, 0.7), normed(0.5, 0.6)]), prefer=prefer)


def test_categories_and_the_table_of_itr_take_the_same_accuracy():
    from workbench.tables.iterabre import iterabre_table

    rows = normed(0.6, 0.8)
    notes = pd.DataFrame({"variant": ["base"], "model": "m", "approach": "x", "layers": 4})
    for options, expected in (({}, 0.6), ({"prefer": None}, 0.8), ({"prefer": "acc_norm"}, 0.8)):
        assert category_scores(rows, **options)["value"].item() == expected
        assert iterabre_table(rows, notes, **options)["Reasoning", "ARC-C"].item() == pytest.approx(
            100 * expected
        )


@pytest.mark.parametrize("nothing", ["", None, np.nan])
def test_tasks_without_a_category_are_other_wherever_categories_are(nothing):
    from workbench.tables.findings import recovery_reading
    from workbench.tables.iterabre import iterabre_table
    from workbench.tables.layouts import summary_table

    rows = pd.concat([normed(0.6, 0.6), normed(0.3, 0.3, "cut")]).assign(category=nothing)
    groups = task_categories(rows)
    assert groups == {"other": ["arc_challenge"]}
    assert list(summary_table(rows, groups)) == ["variant", "other"]
    assert set(category_scores(rows)["category"]) == {"other"}
    assert "most in *other*" in recovery_reading(rows)
    notes = pd.DataFrame({"variant": ["base"], "model": "m", "approach": "x", "layers": 4})
    assert ("Other", "ARC-C") in iterabre_table(rows, notes)


def test_a_task_with_two_numbers_of_shots_counts_twice_in_every_mean():
    from workbench.tables.layouts import summary_table

    none, five = (normed(value, value, task="mmlu").assign(n_shot=n) for value, n in ((0.2, 0), (0.6, 5)))
    rows = pd.concat([none, five, normed(0.7, 0.7, task="boolq")])
    assert average_recovery(rows)["average"].item() == pytest.approx(0.5)
    assert category_scores(rows)["value"].item() == pytest.approx(0.5)
    table = summary_table(rows, task_categories(rows))
    assert table["reasoning"].item() == pytest.approx(0.5)
    gap = pd.concat([rows, pd.concat([none, rows.tail(2)]).assign(variant="cut")])
    with pytest.raises(ValueError, match=r"group 'reasoning' needs one score of each .* variant 'cut' has"):
        summary_table(gap, task_categories(gap))


def test_a_table_with_one_column_a_task_says_which_shots_to_choose():
    from workbench.tables.iterabre import iterabre_table

    rows = pd.concat([normed(0.2, 0.2, task="mmlu").assign(n_shot=n) for n in (0, 5)])
    notes = pd.DataFrame({"variant": ["base"], "model": "m", "approach": "x", "layers": 4})
    with pytest.raises(ValueError, match=r"two for 'base', 'mmlu' \(0 and 5 shots: give the rows of one\)"):
        iterabre_table(rows, notes)
    assert iterabre_table(rows[rows["n_shot"] == 5], notes)["Reasoning", "MMLU"].item() == pytest.approx(20)


def test_an_average_is_of_shares_alone():
    rows = [("base", "sums", "acc", 0.8), ("pruned", "sums", "acc", 0.4)]
    rows += [("base", "texts", "bleu", 24.0), ("pruned", "texts", "bleu", 12.0)]
    scores = pd.DataFrame(rows, columns=["variant", "task", "metric", "value"])
    found = average_recovery(scores)
    assert found["average"].tolist() == pytest.approx([0.52, 0.26])
    assert found["recovery"].tolist() == pytest.approx([1.0, 0.5])  # raw, BLEU would outweigh all else
    with pytest.raises(ValueError, match=r"share a unit to be averaged, 'texts' \(points\) reaches 24"):
        average_recovery(scores.replace({"metric": {"bleu": "points"}}))
