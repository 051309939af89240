"""Items of two variants: paired, compared, their flips counted."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import workbench as wb
from workbench.evaluation.items import (
    compare_items,
    flip_counts,
    flip_examples,
    flips,
    paired_items,
    read_items,
)


def items(
    values: list[float], *, task: str = "toy", metric: str = "acc", prompt: str = "Question {}"
) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "task": task,
                "n_shot": 0,
                "item": number,
                "metric": metric,
                "value": value,
                "prompt": prompt.format(number),
                "target": "yes",
                "response": "yes" if value else "no",
                "truncated": False,
            }
            for number, value in enumerate(values)
        ]
    )


def test_items_are_paired_by_number_and_differences_are_tested_exactly():
    base, other = (
        items([1, 1, 1, 1, 1, 1, 0, 0]),
        items([0, 0, 0, 0, 0, 1, 0, 1]).sample(frac=1, random_state=0),
    )
    row = compare_items(base, other).iloc[0]
    assert row["difference"] == pytest.approx(-0.5)
    assert (row["lower"], row["higher"], row["ties"]) == (5, 1, 2)
    assert row["p_value"] == pytest.approx(2 * (1 + 6) / 64)  # binomial(6, 1/2): at most 1 or at least 5
    assert row["ci_low"] <= row["difference"] <= row["ci_high"]
    assert list(flips(base, other)["item"]) == [0, 1, 2, 3, 4, 7]
    assert list(flips(base, other)["flip"]) == ["right to wrong"] * 5 + ["wrong to right"]
    assert {"prompt", "target", "base_response", "other_response"} <= set(flips(base, other).columns)


def test_each_task_is_compared_by_its_own_metric():
    base = pd.concat([items([1, 0]), items([-2.0, -3.0], task="stories", metric="word_perplexity")])
    other = pd.concat([items([1, 1]), items([-2.5, -3.5], task="stories", metric="word_perplexity")])
    result = compare_items(base, other).set_index("task")
    assert result.loc["toy", "difference"] == 0.5
    assert result.loc["stories", "difference"] == -0.5
    assert list(flips(base, other)["task"]) == ["toy"]  # a log-likelihood is neither right nor wrong


@pytest.mark.parametrize(
    "other", [items([1, 0, 1]), items([1, 0], task="another"), items([1, 0], prompt="Otherwise {}")]
)
def test_different_items_are_not_paired(other):
    with pytest.raises(ValueError, match="same items with the same prompts"):
        paired_items(items([1, 0]), other)


def test_an_unknown_metric_and_a_missing_file_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"metric must be one of \['acc'\], got 'f1'"):
        paired_items(items([1]), items([1]), metric="f1")
    with pytest.raises(ValueError, match="no such file"):
        read_items(tmp_path / "items.jsonl")
    for line in ("5", "{}", "not json", "[" * 100_000, '{"scores": 5}'):
        (tmp_path / "items.jsonl").write_text(f"{line}\n")
        with pytest.raises(ValueError, match="is no items file of evaluate, or damaged") as error:
            read_items(tmp_path / "items.jsonl")
        assert "\n" not in str(error.value)


def test_tasks_of_a_group_are_compared_together():
    base = pd.concat([items([1, 1], task="mmlu_a"), items([1, 0], task="mmlu_b"), items([0])])
    other = pd.concat([items([0, 1], task="mmlu_a"), items([0, 0], task="mmlu_b"), items([1])])
    parents = {"mmlu_a": "mmlu_stem", "mmlu_b": "mmlu_other", "mmlu_stem": "mmlu", "mmlu_other": "mmlu"}
    parents |= {"mmlu": "", "toy": ""}
    table = pd.DataFrame({"task": list(parents), "parent": list(parents.values())})
    result = compare_items(base, other, scores=table).set_index("task")
    assert set(result.index) == {"mmlu", "toy"}
    assert (result.loc["mmlu", "n"], result.loc["mmlu", "lower"]) == (4, 2)
    assert result.loc["mmlu", "difference"] == -0.5
    with pytest.raises(ValueError, match="scores must hold every task of the items, 'toy'"):
        compare_items(base, other, scores=table[table["task"] != "toy"])


def test_items_are_read_one_row_a_metric(tmp_path):
    entry = {"task": "toy", "n_shot": 2, "item": 0, "prompt": "A\u2028B", "target": "t", "response": "r"}
    line = json.dumps(
        entry | {"scores": {"acc": 1.0, "acc_norm": 0.0}, "truncated": True}, ensure_ascii=False
    )
    (tmp_path / "items.jsonl").write_text(line + "\n", encoding="utf-8")
    frame = read_items(tmp_path / "items.jsonl")
    assert frame[["metric", "value"]].to_numpy().tolist() == [["acc", 1.0], ["acc_norm", 0.0]]
    assert frame["prompt"].iloc[0] == "A\u2028B"
    assert frame["truncated"].all()


def few_items(values: list[float], task: str = "math") -> pd.DataFrame:
    n = len(values)
    rows = {"task": task, "n_shot": 0, "item": range(n), "metric": "acc", "value": values}
    return pd.DataFrame(rows).assign(prompt="p", target="t", response="r")


def test_flips_are_counted_also_where_nothing_turned():
    base = pd.concat([few_items([1, 1, 0, 0]), few_items([1, 0], "facts"), few_items([-3.2], "stories")])
    other = pd.concat([few_items([0, 0, 1, 0]), few_items([1, 0], "facts"), few_items([-4.2], "stories")])
    found = flip_counts(base, {"pruned": other, "same": base})
    assert found.to_dict("list") == {
        "variant": ["pruned", "pruned", "same", "same"],
        "task": ["facts", "math", "facts", "math"],
        "n_shot": [0, 0, 0, 0],
        "n": [2, 4, 2, 4],
        "right_to_wrong": [0, 2, 0, 0],
        "wrong_to_right": [0, 1, 0, 0],
    }
    with pytest.raises(ValueError, match="right or wrong"):
        flip_counts(few_items([-3.2]), {"v": few_items([-3.1])})
    with pytest.raises(ValueError, match=r"others must be a mapping of names to pandas DataFrames, got {}"):
        wb.flip_counts(base, {})
    with pytest.raises(ValueError, match="same items with the same prompts"):
        flip_counts(base, {"v": few_items([1])})


def test_the_example_of_a_variant_is_of_the_task_where_it_lost_most():
    base = pd.concat([items([1, 1, 1], task="a"), items([1, 1], task="b")])
    worse = pd.concat([items([1, 1, 0], task="a"), items([0, 0], task="b")])
    found = flip_examples(base, {"same": base, "worse": worse})
    assert found[["variant", "task", "prompt"]].to_numpy().tolist() == [["worse", "b", "Question 0"]]
    assert (found["base_response"].item(), found["other_response"].item()) == ("yes", "no")


THREE = {
    "base": items([1, 1, 1, 1, 1, 1, 1, 1, 0, 0]),
    "sft": items([0, 0, 0, 0, 0, 0, 1, 1, 1, 0]),
    "own": items([1, 1, 1, 1, 1, 1, 1, 1, 0, 0]),
}


def test_variants_are_compared_with_each_other_and_not_only_with_the_base():
    found = compare_items(THREE, between=[("sft", "own"), ("base", "sft")])
    assert found[["variant", "against"]].to_numpy().tolist() == [["own", "sft"], ["sft", "base"]]
    alone = compare_items(THREE["sft"], THREE["own"]).iloc[0]
    for column in ("n", "difference", "ci_low", "ci_high", "higher", "lower", "p_value"):
        assert found[column].iloc[0] == alone[column]
    assert found["difference"].tolist() == pytest.approx([0.5, -0.5])
    every = compare_items(THREE)
    pairs = [("sft", "base"), ("own", "base"), ("own", "sft")]
    assert list(zip(every["variant"], every["against"], strict=True)) == pairs
    stacked = pd.concat([part.assign(variant=name) for name, part in THREE.items()])
    pd.testing.assert_frame_equal(compare_items(stacked), every)


def test_p_values_are_corrected_for_all_rows_of_the_frame():
    from scipy.stats import binomtest

    two = {name: pd.concat([part, part.assign(task="again")]) for name, part in THREE.items()}
    found = compare_items(two)
    exact = [
        binomtest(row.higher, row.higher + row.lower).pvalue if row.higher + row.lower else 1.0
        for row in found.itertuples()
    ]
    assert found["p_value"].tolist() == pytest.approx(exact)
    order = sorted(range(len(found)), key=lambda row: exact[row])
    least = 0.0
    for rank, row in enumerate(order):  # Holm's method, step by step
        least = max(least, min(1.0, (len(found) - rank) * exact[row]))
        assert found["p_adjusted"][row] == pytest.approx(least)
    assert (found["p_adjusted"] > found["p_value"])[found["p_value"] < 0.2].all()


def test_items_that_all_tie_are_no_difference_and_have_an_honest_interval():
    same = compare_items(THREE["base"], THREE["own"]).iloc[0]
    assert (same["difference"], same["p_value"], same["p_adjusted"]) == (0, 1, 1)
    assert same["ci_low"] < 0 < same["ci_high"]
    losses = [items([-2.0, -3.0], task="stories", metric="word_perplexity")] * 2
    assert compare_items(*losses)[["ci_low", "ci_high"]].isna().all(axis=None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: compare_items(THREE, between=[("sft", "nobody")]),
            "between must be one of base, sft, own, got 'nobody'",
        ),
        (lambda: compare_items(THREE, between=[("sft", "sft")]), "pairs of two different variants"),
        (lambda: compare_items(THREE, between=[]), "at least one pair"),
        (lambda: compare_items({"base": THREE["base"]}), r"at least two variants to compare, got \['base'\]"),
        (lambda: compare_items(THREE["base"]), r"give other=.*missing \['variant'\]"),
    ],
)
def test_what_cannot_be_compared_is_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def shots(part: pd.DataFrame, n_shot: int) -> pd.DataFrame:
    return part.assign(n_shot=n_shot, prompt=part["prompt"] + f" after {n_shot}")


def test_a_task_with_two_numbers_of_shots_is_counted_apart():
    base = pd.concat([shots(items([1, 1, 1]), 0), shots(items([1, 1, 1]), 5)])
    other = pd.concat([shots(items([0, 0, 1]), 0), shots(items([1, 1, 0]), 5)])
    found = flip_counts(base, {"cut": other})
    assert found[["task", "n_shot", "n", "right_to_wrong"]].values.tolist() == [
        ["toy", 0, 3, 2],
        ["toy", 5, 3, 1],
    ]
    assert flip_examples(base, {"cut": other})["prompt"].tolist() == ["Question 0 after 0"]
    assert compare_items(base, other)["n"].tolist() == [3, 3]


def test_flips_of_a_group_are_counted_once():
    base = pd.concat([items([1, 1], task="mmlu_a"), items([1, 0], task="mmlu_b"), items([0])])
    other = pd.concat([items([0, 1], task="mmlu_a"), items([0, 0], task="mmlu_b"), items([1])])
    table = pd.DataFrame({"task": ["mmlu", "mmlu_stem", "mmlu_a", "mmlu_b", "toy"]})
    table["parent"] = [None, "mmlu", "mmlu_stem", "mmlu", None]
    found = flip_counts(base, {"cut": other}, scores=table)
    assert found[["task", "n", "right_to_wrong", "wrong_to_right"]].values.tolist() == [
        ["mmlu", 4, 2, 0],
        ["toy", 1, 0, 1],
    ]


def test_examples_of_variants_that_lost_the_same_item_can_be_shown():
    from workbench.tables.markup import text_table

    lost = items([0, 1])
    found = flip_examples(items([1, 1]), {"a": lost, "b": lost, "none": items([1, 1])})
    assert found["variant"].tolist() == ["a", "b"]
    assert text_table(found).to_html().count("Question 0") == 2
    assert flip_examples(items([1, 1]), {"none": items([1, 1])}).empty


def losses(values: list[float], tokens: list[int]) -> pd.DataFrame:
    return items(values, task="texts", metric="loss").assign(tokens=tokens)


def test_losses_of_texts_are_compared_token_by_token_and_lower_is_better():
    rng = np.random.default_rng(0)
    tokens, before = rng.integers(5, 200, 40), rng.normal(2, 0.5, 40)
    after = before + 0.1 + rng.normal(0, 0.05, 40)
    found = compare_items(losses(list(before), list(tokens)), losses(list(after), list(tokens))).iloc[0]
    sums = [float(tokens @ values / tokens.sum()) for values in (before, after)]
    assert found["difference"] == pytest.approx(sums[1] - sums[0])
    drawn = rng.integers(40, size=(3000, 40))
    means = [tokens[one] @ (after - before)[one] / tokens[one].sum() for one in drawn]
    assert (found["ci_low"], found["ci_high"]) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.006)
    unpaired = np.hypot(before.std(), after.std()) / np.sqrt(40)
    assert found["ci_high"] - found["ci_low"] < unpaired
    from workbench.tables.findings import comparison_reading

    both = {"base": losses(list(before), list(tokens)), "cut": losses(list(after), list(tokens))}
    told = comparison_reading(compare_items(both))
    assert "clearly worse on *texts* (+0." in told and "1 for the worse" in told


def test_equal_losses_are_no_difference():
    same = losses([2.0, 3.0, 2.5], [10, 20, 30])
    found = compare_items(same, same).iloc[0]
    assert (found["difference"], found["p_value"], found["ties"]) == (0, 1, 3)
    assert np.isnan(found["ci_low"]) and np.isnan(found["ci_high"])


def test_items_without_a_value_of_their_own_are_left_out(tmp_path):
    entries = [
        {
            "task": task,
            "n_shot": 0,
            "item": n,
            "prompt": "p",
            "target": "t",
            "response": "r",
            "truncated": False,
        }
        | {"scores": {"f1": None if task == "whole" else float(n)}}
        for task in ("whole", "each")
        for n in range(2)
    ]
    entries.append(entries[-1] | {"task": "texts", "scores": {"loss": 2.0}, "tokens": 7})
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    found = read_items(tmp_path / "items.jsonl")
    assert found["value"].isna().tolist() == [True, True, False, False, False]
    assert found["tokens"].iloc[-1] == 7
    assert compare_items(found, found)["task"].tolist() == ["each", "texts"]
    with pytest.raises(ValueError, match="a value for each item, got none"):
        compare_items(found.query("task == 'whole'"), found.query("task == 'whole'"))


def test_items_are_compared_by_the_metric_that_is_preferred():
    def both(strict: list[float], flexible: list[float]) -> pd.DataFrame:
        kinds = {"strict-match": strict, "flexible-extract": flexible}
        return pd.concat([items(v, task="gsm8k", metric=f"exact_match,{kind}") for kind, v in kinds.items()])

    base, sft = both([1] * 6, [1] * 6), both([0] * 6, [1] * 5 + [0])
    assert compare_items(base, sft)["difference"].item() == -1
    assert compare_items(base, sft, prefer="flexible")["difference"].item() == pytest.approx(-1 / 6)
    assert flip_counts(base, {"sft": sft}, prefer="flexible")["right_to_wrong"].item() == 1


def test_copies_of_a_text_are_one_and_the_p_value_is_of_the_loss_a_token():
    rng = np.random.default_rng(5)
    before, after, tokens = rng.normal(2, 0.5, 6), rng.normal(2, 0.5, 6), rng.integers(5, 200, 6)
    alone = compare_items(losses(list(before), list(tokens)), losses(list(after), list(tokens))).iloc[0]
    sides = []
    for values in (before, after):
        copies = losses(list(np.repeat(values, 15)), list(np.repeat(tokens, 15)))
        sides.append(copies.assign(prompt=np.repeat([f"text {k}" for k in range(6)], 15)))
    found = compare_items(*sides).iloc[0]
    assert found["n"] == 6
    for name in ("difference", "ci_low", "ci_high", "p_value", "higher", "lower"):
        assert found[name] == pytest.approx(alone[name]), name
    unnamed = compare_items(*(side.assign(prompt="") for side in sides)).iloc[0]
    assert unnamed["n"] == 90  # nothing says which are copies
