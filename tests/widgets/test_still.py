"""The picture beside the picker, as a front end without widgets hears of it."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ET

import nbformat
import pytest

from workbench.runs.pages import WIDGET, drop_dead_widgets, write_page

PICKER = """
from frames import damage_frame, distance_frame
from workbench.widgets.picker import BlockPicker
distances = distance_frame(12)
picker = BlockPicker(distances, damage_frame(distances, sizes=(1, 2, 3)), start=3, size=2)
picker
"""


def image(shown: dict) -> str:
    """Return the SVG of the image that a display shows, which is also there by itself."""
    source = re.search(r'src="data:image/svg\+xml;base64,([^"]+)"', shown["data"]["text/html"])[1]
    svg = base64.b64decode(source).decode()
    assert svg == shown["data"]["image/svg+xml"]
    return ET.fromstring(svg).attrib["aria-label"]


@pytest.fixture(scope="module")
def displays(told) -> list[dict]:
    return told(PICKER)


def test_the_picture_comes_with_the_live_view_and_under_a_name_of_its_own(displays):
    picture, live = displays
    assert "removes layers 3-4" in image(picture)
    assert WIDGET not in picture["data"]
    assert set(live["data"]) == {WIDGET, "text/plain"}
    name = picture["transient"]["display_id"]
    assert f'<figure class="{name}"' in picture["data"]["text/html"]
    assert 'alt="removes 3-4 of 12 layers"' in picture["data"]["text/html"]
    assert "run its cell" in picture["data"]["text/html"]


def test_it_follows_the_choice_once_that_has_settled(displays, told):
    (late,) = told("picker.choose(5, 2); _ = picker.choose(6, 2)", updated_within=20)
    assert late["transient"] == displays[0]["transient"]
    assert "removes layers 6-7" in image(late)
    (at_once,) = told("picker.choose_layers([1, 4]); _ = picker.use()")
    assert "removes layers 1,4" in image(at_once)
    assert told("_ = picker.use()") == []  # it shows nothing else, so it is not drawn again


def test_a_saved_notebook_and_its_page_keep_the_picture(displays, tmp_path):
    outputs = [nbformat.v4.new_output("display_data", data=one["data"]) for one in displays]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("picker", outputs=outputs)])
    drop_dead_widgets(notebook)
    (kept,) = notebook.cells[0].outputs
    assert "removes layers 3-4" in image(kept)
    write_page(notebook, tmp_path / "page.html")
    body = (tmp_path / "page.html").read_text().split("<body", 1)[1]
    assert kept["data"]["text/html"].split("</style>")[1] in body
