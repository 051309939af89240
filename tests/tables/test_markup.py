"""Tables as text: rounded, aligned, and every text in them escaped."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pandas as pd

from workbench.tables.markup import to_html, to_latex, to_markdown

NASTY = r"<b>50%</b> & a_b|c \x {y} $z$ #1 ~ ^"


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


def test_groups_are_printed_once_with_a_rule_between_and_an_empty_table_has_none():
    table = pd.DataFrame({"size": ["2", "2", "4"], "data": ["a", "a", "a"], "n": [1, 2, 3]})
    lines = to_latex(table, group=2).splitlines()
    assert lines[3:] == [
        r"\midrule",
        r"2 & a & 1 \\",
        r" &  & 2 \\",
        r"\midrule",
        r"4 & a & 3 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    assert to_latex(table.head(0), group=2).count(r"\midrule") == 1
    assert to_markdown(table.head(0)).count("\n") == 2
    assert "<tbody></tbody>" in to_html(table.head(0))


def test_columns_of_one_name_are_all_printed():
    table = pd.DataFrame([["x", 1.0, "y"]], columns=["a", "b", "a"])
    assert r"x & 1.000 & y \\" in to_latex(table)
    assert "| x | 1.000 | y |" in to_markdown(table)
