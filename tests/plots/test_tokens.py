"""The shaded view shows the frame's own tokens as text, whatever they are, in light and dark."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser

import pandas as pd
import pytest

from workbench.plots.tokens import token_view

SCRIPT = "<script>alert('&')</script>"


class Page(HTMLParser):
    """What a browser would make of the view: tags, texts, and the spans with their titles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.titles: list[str] = []
        self.styles: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        named = dict(attrs)
        if tag == "span" and "title" in named:
            self.titles.append(named["title"])
            self.styles.append(named["style"])

    def handle_data(self, data):
        self.text += data


def frame(tokens: list[str], kl: list[float], change: list[float] | None = None) -> pd.DataFrame:
    change = change or [0.0] * len(tokens)
    rows = {"id": "q1", "position": range(len(tokens)), "token": tokens, "kl": kl}
    parts = {
        name: pd.DataFrame(rows).assign(base_logprob=-0.1, logprob=[-0.1 + one for one in change])
        for name in ("pruned", "sft")
    }
    return pd.concat(parts, names=["variant"]).reset_index("variant")


def alphas(view) -> list[float]:
    return [float(re.search(r"rgba\([\d,]+,([\d.]+)\)", style)[1]) for style in Page(view.to_html()).styles]


def test_each_token_is_shaded_by_its_own_divergence():
    view = token_view(frame(["Anna", " has", " 7", "."], [0.0, 0.5, 2.0, 9.0]), "q1", variants=["pruned"])
    assert alphas(view) == pytest.approx([0, 0.1875, 0.75, 0.75], abs=1e-3)
    page = Page(view.to_html())
    assert "Anna has 7." in page.text
    assert page.titles[1].startswith("' has': KL 0.500 nats, log-probability -0.10 in the base")
    assert "mean KL 2.875 nats over 4 tokens, largest 9.00 at token 4" in page.text
    # not by colour alone: strong tokens are underlined
    assert ["border-bottom" in style for style in page.styles] == [False, False, True, True]


def test_the_scale_is_fixed_and_printed():
    small = frame(["a", "b"], [0.1, 0.2])
    assert max(alphas(token_view(small, "q1"))) == pytest.approx(0.075)
    assert max(alphas(token_view(small, "q1", most=0.2))) == pytest.approx(0.75)
    assert (
        "KL from the base, nats (2 and more have the darkest shade)"
        in Page(token_view(small, "q1").to_html()).text
    )


def test_changes_of_log_probability_have_two_hues():
    view = token_view(frame(["a", "b", "c"], [1, 1, 1], [-4, 0, 2]), "q1", shade="logprob", variants=["sft"])
    lower, same, higher = Page(view.to_html()).styles
    assert "rgba(213,94,0,0.750)" in lower
    assert ",0.000)" in same
    assert "rgba(0,114,178,0.375)" in higher
    assert 'rgba(213,94,0,0.750);border-bottom:2px solid currentColor"> -4.0 </span>' in view.to_html()
    assert 'rgba(0,114,178,0.750);border-bottom:2px solid currentColor"> 4.0 </span>' in view.to_html()
    kl = token_view(frame(["a"], [1.0]), "q1").to_html()
    assert "114,178,0.7" not in kl
    assert 'rgba(213,94,0,0.750);border-bottom:2px solid currentColor"> 2.0 </span>' in kl


@pytest.mark.parametrize(
    "text", [SCRIPT, "<|end|>", '"><img src=x onerror=1>', "&amp;", "$x$ \\input{a} 50%"]
)
def test_texts_are_never_markup(text):
    data = frame([text, " ok"], [1.0, 0.0])
    view = token_view(data, "q1", prompt=text, responses={"pruned": text, "sft": text})
    page = Page(view.to_html())
    assert set(page.tags) == {"div", "span"}
    assert page.text.count(text) == 5  # the prompt, and two tokens and two responses
    assert repr(text) in page.titles[0]
    assert view._repr_html_() == view.to_html()


def test_a_name_of_a_variant_is_text_too():
    data = frame(["a"], [1.0]).replace("pruned", SCRIPT)
    view = token_view(data, "q1", responses={SCRIPT: "x"})
    assert "script" not in Page(view.to_html()).tags
    assert "<" not in view.to_latex()


def test_latex_is_escaped_and_shaded():
    view = token_view(frame(["50%", " & {x}\n\\y"], [2.0, 0.0]), "q1", variants=["sft"], prompt="a_b")
    text = view.to_latex()
    assert r"\colorbox[rgb]{0.876,0.526,0.250}{\strut 50\%}" in text
    assert (
        r"{\strut \ \&\ \{x\}}\newline{}\colorbox[rgb]{1.000,1.000,1.000}{\strut \textbackslash{}y}" in text
    )
    assert r"\textbf{prompt}\quad a\_b\par" in text


def test_a_part_of_a_character_gives_its_shade_to_the_token_that_shows_it():
    view = token_view(frame(["x", "", "é"], [0.0, 2.0, 0.1]), "q1", variants=["sft"])
    assert alphas(view) == pytest.approx([0, 0.75])
    assert "xé" in Page(view.to_html()).text


def test_line_ends_are_seen():
    assert "a↵\n↵\nb" in Page(token_view(frame(["a", "\n\n", "b"], [0, 1, 0]), "q1").to_html()).text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"id": "q9"}, "id must be one of the 1 in tokens, got 'q9'"),
        ({"shade": "colour"}, "shade must be one of kl, logprob, got 'colour'"),
        ({"most": 0}, "most must be above 0"),
        ({"variants": ["merged"]}, r"variants must be some of pruned, sft, got \['merged'\]"),
        ({"variants": []}, "variants must be some of"),
    ],
)
def test_bad_input_is_one_clear_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        token_view(frame(["a"], [1.0]), **{"id": "q1", **options})
    assert "\n" not in str(error.value)


def test_missing_columns_are_named():
    with pytest.raises(ValueError, match=r"missing \['kl'\]"):
        token_view(frame(["a"], [1.0]).drop(columns="kl"), "q1")


def test_it_needs_no_torch(root):
    code = "import sys, workbench.plots.tokens; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
