"""The tables of SDD, made from the paper's own numbers, and the run in one table."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from frames import distance_frame, score_frame, similarity_frame
from paper_numbers import (
    SDD_TABLE_8,
    SDD_TABLE_8_MISPRINTS,
)
from transformers import LlamaConfig

from workbench.distances.stability import calibration_ablation
from workbench.models.costs import parameter_counts
from workbench.runs.variant import Variant
from workbench.statistics import bootstrap_interval
from workbench.tables.layouts import (
    calibration_table,
    recovery_table,
    sdd_table,
    summary_table,
    training_table,
    variant_notes,
)
from workbench.tables.markup import to_html, to_latex, to_markdown

LLAMA_8B = LlamaConfig(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=128256,
    tie_word_embeddings=False,
)
SAVINGS = {
    2: "5.43% (7.59B)",
    4: "10.86% (7.16B)",
    6: "16.30% (6.72B)",
    8: "21.73% (6.29B)",
    10: "27.16% (5.85B)",
}


GROUPS = {"reasoning": ["demo_math"], "knowledge": ["demo_facts"], "language": ["demo_pairs"]}
# rows whose printed average and recovery follow from their printed scores
TABLE_8 = {
    "base": ((58.70, 63.15, 67.40), 63.08, 100.00),
    "2 removed": ((55.20, 67.79, 56.18), 59.72, 94.67),
    "2 removed + self-distilled OpenMathInstruct": ((56.43, 69.97, 66.17), 64.19, 101.76),
    "8 removed": ((44.71, 0.00, 65.57), 36.76, 58.27),
    "6 removed + self-distilled OpenMathInstruct": ((50.00, 66.64, 64.96), 60.53, 95.96),
}


def named(size: int, method: str, data: str) -> str:
    return f"{method} {size} {data}".strip().replace(" ", "-") if size else "base"


@pytest.fixture(scope="module")
def table_8() -> pd.DataFrame:
    """SDD table 8 made from its own scores."""
    tasks = (("arc_challenge", 25, "acc_norm"), ("gsm8k", 5, "exact_match,strict-match"), ("mmlu", 5, "acc"))
    rows, variants, methods, data_sets = [], [], {}, {}
    for size, method, data, *numbers in SDD_TABLE_8:
        name = named(size, method, data)
        adapter = None if method == "No FT" else f"adapters/{name}"
        cut = tuple(range(31 - size, 31))
        variants.append(Variant(name, "llama", removed=cut, adapter=adapter))
        methods[name], data_sets[name] = method, data
        rows += [
            {"variant": name, "task": task, "n_shot": shots, "metric": metric, "value": score / 100}
            for (task, shots, metric), score in zip(tasks, numbers, strict=False)
        ]
    counts = parameter_counts(LLAMA_8B)
    notes = variant_notes(variants[::-1], counts, methods=methods, datasets=data_sets)
    return sdd_table(pd.DataFrame(rows), notes)


def test_table_8_of_sdd_comes_out_of_its_scores(table_8):
    assert list(table_8.columns) == [
        *("Prune block size", "Model savings", "Fine-tuning method", "Dataset"),
        *("arc_challenge (25-shot)", "gsm8k (5-shot)", "mmlu (5-shot)", "Avg. score", "Avg. recovery (%)"),
    ]
    assert len(table_8) == 46
    printed = {row[:3]: row[3:] for row in SDD_TABLE_8}
    followed = 0
    for row in table_8.itertuples(index=False):
        size = 0 if row[0] == "Baseline" else int(row[0])
        key = (size, row[2], row[3])
        *scores, average, recovery = printed[key]
        assert row[4:7] == pytest.approx(scores)
        if key in SDD_TABLE_8_MISPRINTS:
            continue
        # the paper rounds the average before it divides
        assert row[7] == pytest.approx(average, abs=0.006)
        assert row[8] == pytest.approx(recovery, abs=0.021)
        followed += 1
    assert followed == 29


def test_the_misprints_are_misprints():
    for row in SDD_TABLE_8:
        mean = sum(row[3:6]) / 3
        right = abs(mean - row[6]) < 0.006 and abs(100 * mean / (189.25 / 3) - row[7]) < 0.02
        assert right == (row[:3] not in SDD_TABLE_8_MISPRINTS)


def test_the_savings_are_the_papers_and_blocks_are_in_order(table_8):
    assert list(dict.fromkeys(table_8["Prune block size"])) == ["Baseline", "2", "4", "6", "8", "10"]
    savings = table_8.drop_duplicates("Prune block size").set_index("Prune block size")["Model savings"]
    assert savings.to_dict() == {"Baseline": "-", **{str(size): text for size, text in SAVINGS.items()}}
    lines = to_latex(table_8, group=2, digits=2).splitlines()
    first = next(line for line in lines if line.startswith("6 "))
    assert first.startswith(r"6 & 16.30\% (6.72B) & ")
    assert lines.count(r"\midrule") == 6
    assert "| 64.19 | 101.75 |" in to_markdown(table_8, digits=2)
    assert "<td>16.30% (6.72B)</td>" in to_html(table_8)


def test_notes_say_what_a_variant_is_without_being_told():
    variants = [
        Variant("base", "m"),
        Variant("cut", "m", removed=(3, 4)),
        Variant("cut-sft", "m", removed=(3, 4), adapter="a"),
    ]
    notes = variant_notes(variants, {"total": 1000, "layers": [50] * 8})
    assert list(notes["method"]) == ["No FT", "No FT", "cut-sft"]
    assert list(notes["left"]) == [1000, 900, 900]
    with pytest.raises(ValueError, match="variant 'cut' removes layer 4, but parameters are of a model of 2"):
        variant_notes(variants, {"total": 1000, "layers": [50] * 2})


@pytest.fixture(scope="module")
def scores_8() -> pd.DataFrame:
    tasks = (("arc_challenge", 25, "acc_norm"), ("gsm8k", 5, "exact_match,strict-match"), ("mmlu", 5, "acc"))
    rows = [
        {"variant": variant, "task": task, "n_shot": shots, "metric": metric, "value": score / 100}
        for variant, (scores, *_) in TABLE_8.items()
        for (task, shots, metric), score in zip(tasks, scores, strict=True)
    ]
    return pd.DataFrame(rows)


def test_averages_and_recoveries_are_those_of_sdd_table_8(scores_8):
    table = recovery_table(scores_8)
    assert list(table.columns) == [
        "variant",
        "arc_challenge (25-shot)",
        "gsm8k (5-shot)",
        "mmlu (5-shot)",
        "Avg. score",
        "Avg. recovery (%)",
    ]
    for row, (variant, (scores, average, recovery)) in zip(
        table.itertuples(index=False), TABLE_8.items(), strict=True
    ):
        assert row[0] == variant
        assert row[1:4] == pytest.approx(scores)
        # the paper rounds the average before it divides
        assert row[4] == pytest.approx(average, abs=0.006)
        assert row[5] == pytest.approx(recovery, abs=0.02)


def test_what_is_known_of_the_variants_is_printed_before_their_scores(scores_8):
    notes = pd.DataFrame({"variant": [*TABLE_8], "Block size": [0, 2, 2, 8, 6]})
    table = recovery_table(scores_8, notes)
    assert list(table.columns[:2]) == ["Block size", "arc_challenge (25-shot)"]
    with pytest.raises(ValueError, match="variants must name each scored variant once"):
        recovery_table(scores_8, notes.head(2))


def test_an_average_over_other_tasks_is_refused(scores_8):
    with pytest.raises(ValueError, match=r"8 removed.*lacks gsm8k"):
        recovery_table(scores_8[~((scores_8["variant"] == "8 removed") & (scores_8["task"] == "gsm8k"))])
    with pytest.raises(ValueError, match="base must be one of"):
        recovery_table(scores_8, base="unpruned")


def test_perplexities_stay_out_of_the_average():
    table = recovery_table(score_frame())
    assert not [column for column in table if "stories" in column]
    assert table["Avg. score"][1] == pytest.approx(100 * (0.487 + 0.988 + 1) / 3)


def test_the_summary_gives_what_was_measured():
    similarities = similarity_frame(40)
    table = summary_table(score_frame(), GROUPS, similarities=similarities).set_index("variant")
    assert list(table.columns) == [*GROUPS, "similarity"]
    assert table.loc["pruned + SFT", "knowledge"] == 0.007
    means = similarities.groupby("variant")["similarity"].mean()
    assert table.loc["pruned", "similarity"] == means["pruned"]
    assert np.isnan(table.loc["base", "similarity"])


def test_the_summary_states_intervals():
    similarities = similarity_frame(40)
    table = summary_table(score_frame(), GROUPS, similarities=similarities, intervals=True).set_index(
        "variant"
    )
    assert table.loc["pruned", "reasoning"] == "0.487 ± 0.049"
    assert table.loc["base", "language"] == "1.000 ± 0.005"
    assert table.loc["base", "similarity"] == "–"
    low, high = bootstrap_interval(similarities.query("variant == 'pruned'")["similarity"])
    assert table.loc["pruned", "similarity"].endswith(f"± {(high - low) / 2:.3f}")


def test_a_group_of_tasks_is_their_mean_with_independent_errors():
    table = summary_table(score_frame(), {"both": ["demo_math", "demo_facts"]}, intervals=True)
    assert table["both"][1] == "0.738 ± 0.025"
    with pytest.raises(
        ValueError, match=r"group 'all' needs one score of each of \['demo_math', 'nonsense'\]"
    ):
        summary_table(score_frame(), {"all": ["demo_math", "nonsense"]})
    with pytest.raises(ValueError, match="one unit"):
        summary_table(score_frame(), {"all": ["demo_math", "demo_stories"]})


def test_the_calibration_table_is_sdd_table_7():
    ablation = calibration_ablation({"C4": distance_frame(9), "RedPajama": distance_frame(9, seed=1)}, [2, 4])
    table = calibration_table(ablation)
    assert list(table.columns) == ["Block size", "Removed layers", "Dataset", "Score (avg. dist.)"]
    lines = to_latex(table, group=1).splitlines()
    first = ablation.iloc[0]
    assert f"2 & {first['removed']} & C4 & {first['distance']:.3f} \\\\" in lines
    second = ablation.iloc[1]
    assert f" & {second['removed']} & RedPajama & {second['distance']:.3f} \\\\" in lines
    assert lines.count(r"\midrule") == 2


def test_trainings_are_summed_up_in_the_order_they_ran():
    log = pd.DataFrame({"step": range(1, 21), "tokens": range(10, 210, 10), "seconds": np.arange(1.0, 21.0)})
    log["loss"] = 21.0 - log["step"]
    table = training_table(pd.concat([log.assign(variant="z"), log.head(2).assign(variant="a")]))
    assert list(table["variant"]) == ["z", "a"] and list(table["steps"]) == [20, 2]
    assert list(table["tokens/s"]) == [10.0, 10.0]
    assert list(table["final loss"]) == [(2 + 1) / 2, 19.0]  # the last two of twenty, the last of two
