"""What a value holds: equal content gives one identity, whatever carries it; other content another."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from workbench.healing.config import HealingConfig
from workbench.runs.content import content_of, files_below, identity
from workbench.runs.files import write_text_atomic

FRAME = pd.DataFrame({"x": [0.1, np.nan], "n": [1, 2], "text": ["a", None], "layers": [[1], [2, 3]]})


@dataclass
class Settings:
    rank: int = 8
    layers: tuple[int, ...] = (1, 2)


@pytest.mark.parametrize(
    ("value", "held"),
    [
        (None, None),
        (True, True),
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        ((1, "a"), [1, "a"]),
        (range(3), [0, 1, 2]),
        ({"b", "a"}, ["a", "b"]),
        ({1: [2.5]}, [[1, [2.5]]]),
        ({"b": 1, "a": 2}, [["b", 1], ["a", 2]]),
        (Settings(), {"rank": 8, "layers": [1, 2]}),
        (torch.bfloat16, "torch.bfloat16"),
        (Path("no/such/file"), "no/such/file"),
        ("a text with a / in it\nand a line", "a text with a / in it\nand a line"),
        ("x\0y", "x\0y"),
        ("~no-such-user/file", "~no-such-user/file"),
    ],
)
def test_plain_values(value, held):
    assert identity(value) == held


def test_a_dataclass_counts_by_what_it_says_decides():
    config = HealingConfig(rank=4)
    same = HealingConfig(rank=4, compiled=True, loss_chunk=7, save_steps=3)
    assert identity({"config": same}) == identity({"config": config}) == {"config": config.deciding()}
    assert identity(HealingConfig(rank=5)) != identity(config)
    assert identity(HealingConfig(rank=4, targets=["q_proj"])) != identity(config)


@pytest.mark.parametrize(
    "change",
    [
        lambda frame: frame.assign(x=[0.1 + 1e-16, np.nan]),
        lambda frame: frame.assign(x=[0.1, 0.0]),
        lambda frame: frame.assign(text=["a", ""]),
        lambda frame: frame.assign(layers=[[1], [3, 2]]),
        lambda frame: frame.astype({"n": "int32"}),
        lambda frame: frame.rename(columns={"n": "m"}),
        lambda frame: frame.iloc[::-1],
        lambda frame: frame.iloc[:1],
        lambda frame: frame.set_index(pd.Index(["a", "b"])),
        lambda frame: frame.rename_axis("layer"),
        lambda frame: frame.rename_axis("layer", axis=1),
    ],
)
def test_frames_by_every_cell_name_and_type(change):
    assert identity(FRAME) == identity(FRAME.copy())
    assert identity(change(FRAME)) != identity(FRAME)


def test_frames_by_the_order_of_categories():
    orders = [(["a", "b"], False), (["b", "a"], False), (["a", "b"], True)]
    kinds = [pd.CategoricalDtype(names, ordered) for names, ordered in orders]
    assert len({str(identity(pd.DataFrame({"x": ["a", "b"]}, dtype=kind))) for kind in kinds}) == 3


@pytest.mark.parametrize("place", ["a cell", "attrs", "a name"])
def test_frames_by_every_element_of_an_array_in_them_and_the_name_of_a_series(place):
    def told(last: float) -> object:
        values = np.append(np.zeros(3000), [last, *np.zeros(3000)])
        frame = pd.DataFrame({"x": [values if place == "a cell" else 0]})
        frame.attrs = {"x": values} if place == "attrs" else {}
        return identity(pd.Series([1], name=str(last)) if place == "a name" else frame)

    assert told(1.0) == told(1.0) != told(2.0)


def test_frames_count_with_what_they_say_of_themselves_but_not_where_files_lay():
    def told(place: str, weights: str) -> object:
        frame = FRAME.copy()
        frame.attrs = {"model": {"weights": weights}, "source": place}
        return identity(frame)

    assert told("/here/c4.jsonl", "a") == told("/there/c4.jsonl", "a")
    assert told("/here/c4.jsonl", "a") != told("/here/c4.jsonl", "b")


def test_arrays_and_tensors_by_shape_type_and_every_element():
    values = np.arange(6.0)
    assert identity(values) == identity(values.copy())
    assert (
        len(
            {
                str(identity(v))
                for v in (values, values.reshape(2, 3), values.astype("float32"), values + 1e-15)
            }
        )
        == 4
    )
    tensor = torch.arange(6.0)
    others = (tensor, tensor.reshape(2, 3), tensor.double(), tensor.flip(0))
    assert len({identity(one) for one in others}) == 4
    assert identity(tensor) == identity(tensor.clone())


def test_a_file_is_read_again_only_when_it_changed(tmp_path, monkeypatch):
    file = tmp_path / "a"
    file.write_text("one")
    first = content_of(file)
    monkeypatch.setattr(
        "workbench.runs.content.sha256_of", lambda path: pytest.fail(f"{path} was read again")
    )
    assert content_of(file) == first
    monkeypatch.undo()
    before = file.stat()
    file.write_text("two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert content_of(file) != first


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """Return a folder with a file, a sub-folder and a link to a folder elsewhere."""
    for name in ("adapter/weights", "adapter/part/config", "elsewhere/more/weights"):
        write_text_atomic(tmp_path / name, name)
    (tmp_path / "adapter" / "linked").symlink_to(tmp_path / "elsewhere")
    return tmp_path / "adapter"


@pytest.mark.parametrize("name", ["weights", "part/config", "linked/more/weights"])
def test_a_digest_sees_every_file(adapter: Path, name: str):
    before = content_of(adapter)
    assert content_of(adapter) == before
    text = (adapter / name).read_text()
    (adapter / name).write_text("other")
    assert content_of(adapter) != before
    (adapter / name).write_text(text)
    assert content_of(adapter) == before
    (adapter / name).rename(adapter / "renamed")
    assert content_of(adapter) != before


def test_a_digest_is_that_of_a_folder_without_links(adapter: Path, tmp_path: Path):
    import shutil

    shutil.copytree(adapter, tmp_path / "copied")
    assert content_of(tmp_path / "copied") == content_of(adapter)
    (adapter / "linked").unlink()
    assert content_of(tmp_path / "copied") != content_of(adapter)


def test_links_in_a_circle_end(adapter: Path):
    (adapter / "part" / "up").symlink_to(adapter)
    (adapter / "itself").symlink_to(adapter / "itself")
    (adapter / "linked" / "more" / "back").symlink_to(adapter / "part")
    before = content_of(adapter)
    (adapter / "linked" / "more" / "weights").write_text("other")
    assert content_of(adapter) != before


def test_files_below_a_folder_are_found_once_also_behind_links(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "gone").symlink_to(tmp_path / "nothing")
    assert list(files_below(tmp_path / "a")) == [tmp_path / "a" / "b" / "file"]


@pytest.mark.parametrize("value", [object(), iter([1]), open, np.array([object()])])
def test_what_cannot_be_followed_is_refused_by_its_place(value):
    with pytest.raises(ValueError, match=r"inputs\['a'\].* must be plain data"):
        identity({"a": value}, "inputs")
