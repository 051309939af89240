"""The picture of the picker, for where no kernel runs."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pandas as pd
import pytest
from frames import damage_frame, distance_frame

from workbench.widgets.picker import BlockPicker
from workbench.widgets.picture import SCALE, limits, shade


def picker(n_layers: int = 12, **settings) -> BlockPicker:
    distances = distance_frame(n_layers)
    return BlockPicker(distances, damage_frame(distances, sizes=(1, 2, 3)), **settings)


def cells(svg: str) -> list[tuple[float, float]]:
    """Return x and width, in cells of the first heatmap, of every stroke."""
    return [(float(x), float(width)) for x, _, width in re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)", svg)]


def test_the_picture_is_plain_small_and_holds_every_block_and_the_choice():
    one = picker(start=3, size=2)
    one.choose_layers([3, 4, 9])
    svg = one.picture()
    root = ET.fromstring(svg)
    assert "removes layers 3-4,9" in root.attrib["aria-label"]
    tags = {node.tag.split("}")[1] for node in root.iter()}
    assert tags <= {"svg", "g", "rect", "path", "circle", "text"}
    wide = 400 / 12
    blocks = 12 * 13 // 2 - 1 + 12 + 11 + 10  # of the distances, then of the damage
    assert sum(width for _, width in cells(svg)) / wide == pytest.approx(blocks, abs=1)
    assert svg.count('fill="#d6006c"') == 3  # the boxes of the layers
    # 3-4 is framed on both heatmaps, 9 too
    assert svg.count('stroke="#d6006c"') == 4
    assert len(picker(80).picture()) < 80_000


def test_a_title_is_text():
    svg = picker(title="<script>alert(1)</script> & more").picture()
    assert "<script" not in svg
    ET.fromstring(svg)


def test_colours_tell_the_lower_three_quarters_apart():
    values = pd.Series([*range(100), 10_000.0])
    low, high = limits(values)
    assert (low, high) == (0, 75)
    assert limits(pd.Series([2.0, 2.0])) == (2, 2)
    assert (shade(0), shade(1), shade(2)) == (SCALE[0], SCALE[-1], SCALE[-1])
