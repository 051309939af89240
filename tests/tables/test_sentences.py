"""The parts of readings: shown as Markdown, nothing from data written into it."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from workbench.tables import sentences, shifts


def test_say_shows_markdown(capsys):
    pytest.importorskip("IPython")
    sentences.say("**x**")
    assert "Markdown" in capsys.readouterr().out


def test_names_from_data_cannot_write_markdown():
    nasty = "<b>*x*</b>_y_ |`z`| $1\n# head"
    frame = pd.DataFrame({"variant": [nasty], "agrees_for": [1], "n_tokens": [1]})
    shown = shifts.divergence_reading(frame)
    assert "\n" not in shown
    assert not re.search(r"(?<![\\*])[<>_|`$#]", shown)
