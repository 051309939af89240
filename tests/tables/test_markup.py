"""Tables as text: rounded, aligned, and every text in them escaped."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from workbench.tables.markup import latex_text, text_table, to_html, to_latex, to_markdown

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


TEXTS = [
    *(
        "[INST] hi",
        "[3, 4]",
        "*",
        "* x",
        "(x)",
        "",
        " ",
        "\\\\",
        "{",
        "}",
        "\\begin{x}",
        "\\%",
        "^^M",
        "$5 and $6",
    ),
    *(
        "\x00\x1b[31m\x7f",
        "\u202eright\u202c",
        "zero\u200bwidth\ufeff",
        "a\r\nb\rc\td\u2028e",
        "soft\u00adhyphen",
    ),
    *(
        "≤ ≥ → ← Δ Σ λ ∞ ± × ° ½",
        "日本語 한국어 हिन्दी አማርኛ العربية",
        "😀 👩‍👩‍👧 🇩🇪",
        "naïve Straße ğ ő č ñ ş ż Ṽ q̃",
        "ﬁ Å Å",
    ),
    *(
        "a--b --- ,, '' `` ?` !` \"x\" << >>",
        "“quoted” „so“ ‘x’ – — … « »",
        "\U0010ffff\ue000",
        "a&b&c \\\\ \\hline",
    ),
]


def undone(latex: str) -> str:
    """Return what is left of a cell without commands, formulas and groups: plain characters only."""
    latex = re.sub(r"\\[&%$#_{}]", "x", latex)
    latex = re.sub(r"\$[^$]*\$", "x", latex)
    latex = re.sub(r"\\(?:[a-zA-Z]+|[`'^~=.\",])(?=[{\\ 0-9]|$)[0-9]*", "x", latex)
    while (less := re.sub(r"\{[^{}]*\}", "x", latex)) != latex:
        latex = less
    return latex


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_is_plain_in_latex(text):
    """No sign is left that LaTeX reads as another one, and none that its fonts lack."""
    for latex in (
        latex_text(text),
        *re.findall(r"(?m)^(.*) & 0 ", to_latex(pd.DataFrame({text: [text], "n": [0]}))),
    ):
        assert latex.isascii() and latex.isprintable()
        assert not set(undone(latex)) & set('\\{}[]*&%$#_^~"`<>|'), undone(latex)
        assert not re.search(r"--|''|,,", latex.replace("$''$", ""))


def test_signs_are_the_ones_of_latex():
    assert latex_text("é ñ č ß ≤ Δ") == r"\'{e} \~{n} \v{c} \ss{} $\leq$ $\Delta$"
    assert latex_text("e\u0301") == latex_text("é")
    assert latex_text("日\u202e\x1b") == r"\texttt{U+65E5}\texttt{U+202E}\texttt{U+001B}"
    assert latex_text("a\r\nb") == "a  b"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_pdflatex_sets_any_text(tmp_path):
    table = pd.DataFrame({"[a] *": TEXTS, "b": TEXTS[::-1], "≤": 1.5})
    wide = pd.DataFrame([[1, "["]], columns=pd.MultiIndex.from_tuples([("[", "(a"), ("*", "[")]))
    signs = [latex_text("".join(map(chr, range(start, start + 64)))) for start in range(0x20, 0x3000, 64)]
    body = [to_latex(table, caption=" ".join(TEXTS), label="t", group=1), to_latex(wide), *signs]
    page = [r"\documentclass{article}\usepackage{booktabs}\begin{document}", *body, r"\end{document}"]
    (tmp_path / "page.tex").write_text("\n\n".join(page))
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-800:]
    assert b"Missing character" not in (tmp_path / "page.log").read_bytes()


def test_the_best_is_bold_within_its_group_and_a_group_of_one_has_none():
    rows = {
        "size": ["0", "2", "2", "2"],
        "score": [9.0, 1.0, 3.0, 3.0],
        "Wiki ↓": ["9", "8 [7, 9]", "7", "x"],
    }
    text = to_latex(pd.DataFrame(rows), group=1, digits=1, best=["score", "Wiki ↓"])
    assert [line.count(r"\textbf") for line in text.splitlines() if "&" in line] == [0, 0, 0, 2, 1]
    assert r" & \textbf{3.0} & \textbf{7} \\" in text
    whole = to_latex(pd.DataFrame(rows), best=["score"])
    assert r"\textbf{9.000}" in whole and whole.count(r"\textbf") == 1
    with pytest.raises(ValueError, match="best must be one of size, score, Wiki ↓, got 'n'"):
        to_latex(pd.DataFrame(rows), best=["n"])


def test_a_table_says_its_note_and_its_digits_in_every_form():
    table = pd.DataFrame({"a": [0.12345]})
    table.attrs |= {"note": "First 5 items | of each.", "digits": 1}
    assert "0.1 \\\\" in to_latex(
        table
    ) and r"\caption{Scores. First 5 items \textbar{} of each.}" in to_latex(table, caption="Scores.")
    assert to_markdown(table).endswith("| 0.1 |\n\nFirst 5 items \\| of each.\n")
    assert "<caption>First 5 items | of each.</caption>" in to_html(table)
    assert "| 0.12 |" in to_markdown(table, digits=2)


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n", "\v", "\f", "\x85", "\u2028", "\u2029"])
def test_no_line_end_breaks_a_row_of_markdown(end):
    lines = to_markdown(pd.DataFrame({"text": [f"a{end}b"]})).splitlines()
    assert lines[2:] == ["| a<br>b |"]


def test_markdown_shows_no_formula_from_the_data():
    text = to_markdown(pd.DataFrame({"text": [r"$5 and $6, \(x\), \[y\], ~~z~~"]})).splitlines()[2]
    assert not re.search(r"(?<!\\)[$~]", text) and "\\\\(" not in text and "\\\\[" not in text


HELD = [["<script>x</script>"], {"k": "<img onerror=x>"}, {"<b>"}, ("<i>",), np.array(["<u>", "&"]), b"<s>"]


@pytest.mark.parametrize(
    "shown", [to_html, lambda frame: text_table(frame).to_html()], ids=["html", "text_table"]
)
def test_what_a_cell_holds_is_escaped_whatever_it_is(shown):
    frame = pd.DataFrame({"text": [*HELD, "<em>", pd.NaT, None, 1.25, float("inf")]}, dtype=object)
    text = shown(frame)
    assert not re.search(r"<(?:script|img|b|i|u|s|em)\b", text)
    assert text.count("&lt;") == 8 and text.count(">–</td>") == 2 and "1.250" in text


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"a": ["x", "y"]}, index=[0, 0]),
        pd.DataFrame([["x", 1.0], ["y", 2.0]], columns=["a", "a"]),
        pd.DataFrame([["x", "y"]], columns=pd.MultiIndex.from_tuples([("<a>", "b"), ("<a>", "b")])),
        pd.DataFrame({"a": ["x"]}, index=pd.MultiIndex.from_tuples([(0, 1)], names=["i", "j"])).iloc[[0, 0]],
        pd.DataFrame({0: ["x"], 1.5: ["y"]}),
        pd.DataFrame({"a": []}),
        pd.DataFrame(),
    ],
    ids=["index", "columns", "levels", "both", "numbers", "rows", "nothing"],
)
def test_any_frame_is_shown_in_every_form(frame):
    page = text_table(frame).to_html()
    assert page.count("<td") == to_html(frame).count("<td") == frame.size
    assert page.count("<th") == 1 * frame.shape[1] + page.count("<thead")
    assert to_markdown(frame).count("\n") == len(frame) + 2
    assert to_latex(frame).count(r"\begin{tabular}") == 1
    assert "<a>" not in page


def test_dollars_in_a_text_are_no_formula_in_a_notebook():
    assert re.search(
        r'<table [^>]*class="[^"]*mathjax_ignore', text_table(pd.DataFrame({"a": ["$5 and $6"]})).to_html()
    )


def test_what_rounds_to_nothing_has_no_sign():
    table = pd.DataFrame({"difference": [-0.001, -0.5]})
    assert to_markdown(table, digits=2).splitlines()[2:] == ["| 0.00 |", "| -0.50 |"]


def test_a_notebook_names_columns_in_words_and_an_interval_stands_in_one():
    frame = pd.DataFrame({"variant": ["a", "b"], "n_texts": [3, 4], "ci_low": [0.1, np.nan]})
    frame = frame.assign(ci_high=[0.25, np.nan], same_form=[True, False], p_adjusted=[1e-9, 0.5], note="x")
    frame = frame.assign(task=["arc_easy", "demo_math"])
    page = text_table(frame.assign(**{"50 %": [1.0, -0.0001]})).to_html()
    heads, *rows = re.findall(r"(?s)<tr>(.*?)</tr>", page)
    cells = [re.findall(r"<t[hd][^>]*>([^<]*)<", row) for row in (heads, *rows)]
    assert cells == [
        ["variant", "texts", "95 % interval", "same form", "p (Holm)", "note", "task", "50 %"],
        ["a", "3", "0.100 to 0.250", "yes", "&lt; 0.001", "x", "ARC-E", "1.000"],
        ["b", "4", "–", "no", "0.500", "x", "demo math", "0.000"],
    ]
    right = re.findall(r"td\.col(\d) {\s*text-align: right", page)
    assert right == ["1", "2", "4", "7"]  # numbers, and texts that are numbers
    several = text_table(frame.assign(lost_low=0.0, lost_high=1.0)).to_html()
    assert "95 % interval, ci<" in several and "95 % interval, lost<" in several


@pytest.mark.parametrize(("rows", "scrolls"), [(25, False), (26, True)])
def test_the_head_of_a_long_table_stays_in_sight(rows, scrolls):
    page = text_table(pd.DataFrame({"n": range(rows)})).to_html()
    assert ("max-height" in page) == scrolls and re.search(r"th {[^}]*position: sticky;\s*top: 0", page)
