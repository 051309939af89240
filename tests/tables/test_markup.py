"""Tables print the frame's own numbers, average only what is complete, and escape every text."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from frames import distance_frame, score_frame, similarity_frame

from workbench.distances.stability import calibration_ablation
from workbench.statistics import bootstrap_interval
from workbench.tables.layouts import calibration_table, recovery_table, summary_table
from workbench.tables.markup import to_html, to_latex, to_markdown

GROUPS = {"reasoning": ["demo_math"], "knowledge": ["demo_facts"], "language": ["demo_pairs"]}
# SDD table 8: rows whose printed average and recovery follow from their printed scores
TABLE_8 = {
    "base": ((58.70, 63.15, 67.40), 63.08, 100.00),
    "2 removed": ((55.20, 67.79, 56.18), 59.72, 94.67),
    "2 removed + self-distilled OpenMathInstruct": ((56.43, 69.97, 66.17), 64.19, 101.76),
    "8 removed": ((44.71, 0.00, 65.57), 36.76, 58.27),
    "6 removed + self-distilled OpenMathInstruct": ((50.00, 66.64, 64.96), 60.53, 95.96),
}
NASTY = r"<b>50%</b> & a_b|c \x {y} $z$ #1 ~ ^"


@pytest.fixture(scope="module")
def table_8() -> pd.DataFrame:
    tasks = (("arc_challenge", 25, "acc_norm"), ("gsm8k", 5, "exact_match,strict-match"), ("mmlu", 5, "acc"))
    rows = [
        {"variant": variant, "task": task, "n_shot": shots, "metric": metric, "value": score / 100}
        for variant, (scores, *_) in TABLE_8.items()
        for (task, shots, metric), score in zip(tasks, scores, strict=True)
    ]
    return pd.DataFrame(rows)


def test_averages_and_recoveries_are_those_of_sdd_table_8(table_8):
    table = recovery_table(table_8)
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


def test_what_is_known_of_the_variants_is_printed_before_their_scores(table_8):
    notes = pd.DataFrame({"variant": [*TABLE_8], "Block size": [0, 2, 2, 8, 6]})
    table = recovery_table(table_8, notes)
    assert list(table.columns[:2]) == ["Block size", "arc_challenge (25-shot)"]
    with pytest.raises(ValueError, match="variants must name each scored variant once"):
        recovery_table(table_8, notes.head(2))


def test_an_average_over_other_tasks_is_refused(table_8):
    with pytest.raises(ValueError, match=r"8 removed.*lacks gsm8k"):
        recovery_table(table_8[~((table_8["variant"] == "8 removed") & (table_8["task"] == "gsm8k"))])
    with pytest.raises(ValueError, match="base must be one of"):
        recovery_table(table_8, base="unpruned")


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


def test_latex_is_booktabs_and_escaped():
    table = pd.DataFrame({NASTY: [NASTY], "score": [0.12345]})
    text = to_latex(table, caption="50 % & more", label="tab:a b}", digits=2)
    escaped = (
        r"\textless{}b\textgreater{}50\%\textless{}/b\textgreater{} \& a\_b\textbar{}c \textbackslash{}x "
        r"\{y\} \$z\$ \#1 \textasciitilde{} \textasciicircum{}"
    )
    assert text == (
        "\\begin{table}[t]\n\\centering\n\\caption{50 \\% \\& more}\n\\label{tab:a-b-}\n"
        "\\begin{tabular}{lr}\n\\toprule\n"
        f"{escaped} & score \\\\\n\\midrule\n{escaped} & 0.12 \\\\\n"
        "\\bottomrule\n\\end{tabular}\n\\end{table}\n"
    )


def test_markdown_cells_stay_in_their_columns():
    table = pd.DataFrame({"text": ["a|b\nc", "<script>x</script>", "[l](u)"], "n": [1, 2, 3]})
    lines = to_markdown(table).splitlines()
    assert lines[:2] == ["| text | n |", "| --- | ---: |"]
    assert lines[2] == r"| a\|b<br>c | 1 |"
    assert lines[3] == "| &lt;script&gt;x&lt;/script&gt; | 2 |"
    assert lines[4] == r"| \[l\](u) | 3 |"


def test_html_holds_no_tag_from_the_data():
    class Tags(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.seen: set[str] = set()
            self.text = ""

        def handle_starttag(self, tag, attrs):
            self.seen.add(tag)

        def handle_data(self, data):
            self.text += data

    parser = Tags()
    parser.feed(to_html(pd.DataFrame({"<i>": ["<script>x</script>", NASTY]}), caption="<b>"))
    assert parser.seen == {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert parser.text.strip() == f"<b><i><script>x</script>{NASTY}"


def test_missing_values_are_a_dash_and_whole_numbers_stay_whole():
    table = pd.DataFrame({"a": [1.5, np.nan], "b": [2, 3], "c": [None, "x"]})
    assert to_markdown(table, digits=1).splitlines()[2:] == ["| 1.5 | 2 | – |", "| – | 3 | x |"]
