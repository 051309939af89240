"""The study of a search outlives a damaged database, and names a damaged record."""

from __future__ import annotations

import pandas as pd
import pytest
from healed import make_examples
from tiny import tiny_model

from workbench.healing.config import HealingConfig
from workbench.healing.search import read_trials, tune

CONFIG = HealingConfig(max_steps=1, max_length=64, batch_size=4)


@pytest.fixture
def model():
    return tiny_model("llama", num_hidden_layers=3)


@pytest.fixture(scope="module")
def sets():
    rows = make_examples(12)
    return rows[:8], rows[8:].reset_index(drop=True)


def search(model, tokenizer, sets, out, **options):
    options = {"grid": {"rank": [2, 4]}, "config": CONFIG, "progress": False, **options}
    return tune(model, tokenizer, *sets, out=out, **options)


@pytest.mark.parametrize("name", ["a?b", "a%20b", "{a}", "50% #1"])
def test_a_search_lives_in_a_folder_of_any_name(model, tokenizer, sets, tmp_path, name):
    out = tmp_path / name / "tuning"
    trials = search(model, tokenizer, sets, out, grid={"rank": [2]}).trials
    assert (out / "study.db").is_file() and [path.name for path in tmp_path.iterdir()] == [name]
    pd.testing.assert_frame_equal(read_trials(out), trials)


@pytest.mark.parametrize("damage", ["cut", "emptied", "garbled", "lost"])
def test_finished_trainings_outlive_a_damaged_database(model, tokenizer, sets, tmp_path, monkeypatch, damage):
    grid = {"rank": [2, 4], "targets": [["q_proj"]]}
    out = tmp_path / "a"
    trials, best = search(model, tokenizer, sets, out, grid=grid)
    database = out / "study.db"
    data = database.read_bytes()
    if damage == "lost":
        database.unlink()
    else:
        middle = len(data) // 2
        kept = {"cut": data[:middle], "emptied": b"", "garbled": b"x" * 100 + data[100:]}
        database.write_bytes(kept[damage])
    monkeypatch.setattr("workbench.healing.search.heal", pytest.fail)
    columns = [name for name in trials if name != "trial"]
    order = {"by": "rank", "ignore_index": True}
    for found in (read_trials(out), search(model, tokenizer, sets, out, grid=grid).trials):
        pd.testing.assert_frame_equal(
            found[columns].sort_values(**order), trials[columns].sort_values(**order)
        )
    assert search(model, tokenizer, sets, out, grid=grid).best == best


def test_a_damaged_record_of_a_search_is_named_and_can_be_begun_again(model, tokenizer, sets, tmp_path):
    search(model, tokenizer, sets, tmp_path / "a", n_trials=1)
    (tmp_path / "a" / "study.json").write_text('{"grid": {"ra')
    for read in (lambda: read_trials(tmp_path / "a"), lambda: search(model, tokenizer, sets, tmp_path / "a")):
        with pytest.raises(ValueError, match=r"study.json is damaged; overwrite=True begins"):
            read()
    assert len(search(model, tokenizer, sets, tmp_path / "a", n_trials=1, overwrite=True).trials) == 1
