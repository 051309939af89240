"""The tables of SDD, made from the paper's own numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from frames import distance_frame, score_frame
from paper_numbers import SDD_TABLE_8, SDD_TABLE_8_MISPRINTS
from transformers import LlamaConfig

from workbench.distances.stability import calibration_ablation
from workbench.models.costs import parameter_counts
from workbench.runs.variant import Variant
from workbench.tables.markup import to_html, to_latex, to_markdown
from workbench.tables.sdd import calibration_table, recovery_table, sdd_table, variant_notes

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
    assert list(notes["method"]) == ["No FT", "No FT", "SFT"]
    assert list(notes["left"]) == [1000, 900, 900]
    with pytest.raises(ValueError, match="parameters are of 2 layers, variant 'cut' removes 4"):
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
    with pytest.raises(ValueError, match="variants must name each of"):
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


def test_strict_and_flexible_matches_stand_side_by_side():
    about = {"task": "gsm8k", "n_shot": 5, "parent": "", "higher_is_better": True}
    rows = [
        {"variant": name, "metric": f"exact_match,{kind}", "value": value} | about
        for name, *values in (("base", 0.6, 0.7), ("sft", 0.0, 0.69))
        for kind, value in zip(("strict-match", "flexible-extract"), values, strict=True)
    ]
    scores = pd.DataFrame(rows)
    table = recovery_table(scores).set_index("variant")
    heads = ["gsm8k (5-shot, strict)", "gsm8k (5-shot, flexible)"]
    assert list(table)[:2] == heads
    assert table.loc["sft", heads].tolist() == pytest.approx([0, 69])
    assert table.loc["sft", "Avg. recovery (%)"] == 0
    kinder = recovery_table(scores, prefer="flexible").set_index("variant")
    assert list(kinder)[:2] == heads[::-1]
    assert kinder.loc["sft", "Avg. recovery (%)"] == pytest.approx(100 * 0.69 / 0.7)


def answered_8() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return scores and items of three variants on 80 items of two tasks."""
    rng = np.random.default_rng(0)
    items = [
        pd.DataFrame({"variant": name, "task": task, "item": range(80), "value": rng.random(80) < share})
        for name, share in (("base", 0.9), ("cut", 0.5), ("cut-self-distilled", 0.8))
        for task in ("arc_challenge", "gsm8k")
    ]
    items = pd.concat(items).assign(n_shot=5, metric="acc").astype({"value": float})
    scores = items.groupby(["variant", "task", "n_shot", "metric"], as_index=False)["value"].mean()
    return scores.assign(n=80, parent="", higher_is_better=True), items


NOTES = variant_notes(
    [
        Variant("base", "m"),
        Variant("cut", "m", removed=(3, 4)),
        Variant("cut-self-distilled", "m", removed=(3, 4), adapter="a"),
    ],
    {"total": 1000, "layers": [50] * 8},
    datasets={"cut-self-distilled": "GSM8k"},
)


def test_recovery_stands_with_its_items_its_interval_and_its_limit():
    scores, items = answered_8()
    table = sdd_table(scores, NOTES, items=items, limit=80)
    assert list(table)[4:] == [
        *("arc_challenge (5-shot, first 80)", "gsm8k (5-shot, first 80)"),
        *("Avg. score", "Avg. recovery (%)", "95 % interval", "Items"),
    ]
    assert table["Items"].tolist() == [160, 160, 160]
    assert table["95 % interval"].iloc[0] == "–"
    low, high = map(float, table["95 % interval"].iloc[1].split(" to "))
    assert low < table["Avg. recovery (%)"].iloc[1] < high
    for form in (to_markdown(table), to_html(table), to_latex(table, caption="Scores.")):
        assert "limit=80" in form and "160 items" in form and "first 80" in form
    share = recovery_table(scores, limit=0.25)
    assert "gsm8k (5-shot, first 25 %)" in share and "limit=0.25" in share.attrs["note"]
    assert "first" not in str(recovery_table(scores).attrs["note"])
    scores.attrs["limit"] = 80
    assert "gsm8k (5-shot, first 80)" in recovery_table(scores)


def test_the_narrow_table_begins_with_what_decides():
    scores, items = answered_8()
    wide, narrow = (sdd_table(scores, NOTES, items=items, narrow=narrow) for narrow in (False, True))
    assert list(narrow) == ["Block", "Saved", "Method", "Recovery (%)", "Avg. score", "ARC-C", "GSM8k"]
    assert narrow["Method"].tolist() == ["No FT", "No FT", "Self-distilled (GSM8k)"]
    assert narrow["Block"].tolist() == ["Baseline", "2", "2"] and narrow["Saved"].tolist() == [
        "-",
        "10.0%",
        "10.0%",
    ]
    row = wide.iloc[1]
    assert narrow["Recovery (%)"][1] == f"{row['Avg. recovery (%)']:.1f} ({row['95 % interval']})"
    assert narrow["Recovery (%)"][0] == "100.0"
    lines = to_latex(narrow, group=2, best=["Recovery (%)"]).splitlines()
    bold = [line for line in lines if r"\textbf" in line]
    assert len(bold) == 1 and "Self-distilled" in bold[0]
    assert "." in bold[0] and not any(
        len(number.split(".")[1]) > 2
        for number in bold[0].split()
        if number.replace(".", "").isdigit() and "." in number
    )


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("pruned-sft", "SFT"),
        ("pruned-self-distilled", "Self-distilled"),
        ("sft-4", "SFT"),
        ("distilled", "Self-distilled"),
        ("shifted", "shifted"),
        ("soft", "soft"),
        ("my-run", "my-run"),
    ],
)
def test_methods_are_words_that_a_reader_knows(name, method):
    notes = variant_notes([Variant(name, "m", removed=(1,), adapter="a")], {"total": 100, "layers": [5] * 4})
    assert notes["method"].item() == method
