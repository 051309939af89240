"""Rows written as they are made: none lost, none torn, never of two works."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.runs.journal import Journal

HEADER = {"model": {"layers": 4}, "seed": 0}
ROWS = [{"row": n, "text": text} for n, text in enumerate(["é\n", "", 'a "b"', "\u2028"])]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a journal that holds four rows."""
    path = tmp_path / "new" / "rows.jsonl"
    journal = Journal(path, HEADER)
    assert journal.rows() == []
    journal.append(ROWS[:1])
    journal.append(row for row in ROWS[1:])
    return path


def test_rows_come_back(path: Path):
    assert Journal(path, dict(reversed(HEADER.items()))).rows() == ROWS


def test_a_cut_anywhere_loses_only_what_was_cut(path: Path):
    data = path.read_bytes()
    for cut in range(data.index(b"\n") + 1, len(data)):
        path.write_bytes(data[:cut])
        journal = Journal(path, HEADER)
        rows = journal.rows()
        assert rows == ROWS[: len(rows)]
        journal.append(ROWS[len(rows) :])
        assert path.read_bytes() == data


def test_other_work_is_refused_or_begins_again(path: Path):
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"written with another model, another seed; .*overwrite=True"):
        Journal(path, {"model": {"layers": 3}})
    assert path.read_bytes() == before
    assert Journal(path, {"seed": 1}, overwrite=True).rows() == []


def test_two_works_are_never_mixed(path: Path):
    first = Journal(path, HEADER)
    second = Journal(path, {"seed": 1}, overwrite=True)
    second.append(ROWS[:2])
    with pytest.raises(ValueError, match="begun again by other work"):
        first.append(ROWS[2:])
    assert second.rows() == ROWS[:2]


def test_an_empty_file_is_begun(tmp_path: Path):
    (tmp_path / "rows.jsonl").touch()
    assert Journal(tmp_path / "rows.jsonl", HEADER).rows() == []


@pytest.mark.parametrize("content", ['{"text": "mine"}\n', "[1]\n", "mine", '{"journal": 3}\n', b"\xff\n"])
def test_another_file_is_left_alone(tmp_path: Path, content: str | bytes):
    path = tmp_path / "precious.jsonl"
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(data)
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"precious\.jsonl is not a journal"):
            Journal(path, HEADER, overwrite=overwrite)
    assert path.read_bytes() == data


@pytest.mark.parametrize("line", [b'{"row": ', b"\xff", b"3", b'{"row": 9, "text": "", "sum": 1}'])
def test_a_damaged_line_is_dropped_and_made_again(path: Path, line: bytes):
    data = path.read_bytes()
    lines = data.split(b"\n")
    path.write_bytes(b"\n".join([*lines[:2], line, *lines[3:]]))
    with pytest.warns(UserWarning, match=r"1 damaged lines of .*rows\.jsonl are dropped"):
        assert Journal(path, HEADER).rows() == [ROWS[0], *ROWS[2:]]
    assert Journal(path, HEADER).rows() == [ROWS[0], *ROWS[2:]]  # without a warning: the line is gone
    Journal(path, HEADER).append(ROWS[1:2])
    assert sorted(path.read_bytes().split(b"\n")) == sorted(lines)


def test_no_flipped_bit_gives_another_row(path: Path, monkeypatch):
    monkeypatch.setattr("workbench.runs.journal.warnings.warn", lambda *_, **__: None)  # thousands of them
    data = path.read_bytes()
    begin = data.index(b"\n") + 1
    for place in range(8 * begin, 8 * len(data)):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        assert all(row in ROWS for row in Journal(path, HEADER).rows()), place


@pytest.mark.parametrize("cut", [0, 3, 14, 30])
def test_a_damaged_header_begins_again_only_when_asked_and_only_ours(path: Path, cut: int):
    path.write_bytes(path.read_bytes()[:cut])
    if 0 < cut < 13:  # nothing shows that this was ours
        for overwrite in (False, True):
            with pytest.raises(ValueError, match="is not a journal"):
                Journal(path, HEADER, overwrite=overwrite)
        return
    if cut:
        with pytest.raises(ValueError, match="first line is damaged"):
            Journal(path, HEADER)
    assert Journal(path, HEADER, overwrite=True).rows() == []


def test_a_folder_is_refused_in_words(tmp_path: Path):
    with pytest.raises(ValueError, match="is a folder, a pipe or a device; give the path of a file"):
        Journal(tmp_path, HEADER)
