"""Files that are whole or not there, frames that read back exactly, digests that see everything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from workbench.runs.files import (
    atomic_folder,
    check_room,
    decode_frame,
    encode_frame,
    sha256_of,
    write_bytes_atomic,
    write_text_atomic,
)

SIZES = pd.DataFrame({"start": [0, 1], "distance": [0.1, 0.2]})
TEXTS = [
    "",
    "x",
    None,
    "NA",
    '"quoted", comma',
    "two\nlines",
    "a\r\nb",
    "a\rb",
    "é\u2028ü",
    " padded ",
    "1",
    "nan",
]


def there_and_back(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    return decode_frame(name, *encode_frame(name, frame))


def frames() -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(0)
    return {
        "tiny and huge floats": pd.DataFrame(
            {"x": rng.normal(size=200) * 10.0 ** rng.integers(-300, 300, 200)}
        ),
        "special floats": pd.DataFrame({"x": [np.nan, np.inf, -np.inf, -0.0, 0.1], "y": range(5)}),
        "float32": pd.DataFrame({"x": rng.normal(size=50).astype("float32")}),
        "integers": pd.DataFrame({"a": np.arange(3, dtype="int32"), "b": [2**63 - 1, -(2**63), 0]}),
        "booleans": pd.DataFrame({"x": [True, False]}),
        "nullable": pd.DataFrame(
            {"a": pd.array([1, None], dtype="Int64"), "b": pd.array([True, None], dtype="boolean")}
        ),
        "texts": pd.DataFrame({"id": range(len(TEXTS)), "text": TEXTS}),
        "one column of texts": pd.DataFrame({"text": TEXTS}),
        "all missing": pd.DataFrame({"x": [None, None], "y": [1.5, np.nan]}),
        "no rows": pd.DataFrame({"x": pd.Series(dtype="float64"), "n": pd.Series(dtype="int64")}),
        "odd column names": pd.DataFrame({"a,b": [1], ' "q" ': [2], "é\n": [3]}),
    }


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
@pytest.mark.parametrize("kind", frames())
def test_frames_read_back_exactly(kind: str, ending: str):
    frame = frames()[kind]
    back = there_and_back(f"frame{ending}", frame)
    pd.testing.assert_frame_equal(back, frame, check_exact=True, check_index_type=False)
    for column in frame.select_dtypes("float"):
        assert back[column].to_numpy().tobytes() == frame[column].to_numpy().tobytes()


def test_none_and_empty_text_stay_different():
    for name in ("a.csv", "a.jsonl"):
        back = there_and_back(name, pd.DataFrame({"text": ["", None]}))
        assert back["text"].isna().tolist() == [False, True]


def test_jsonl_keeps_nested_values_and_attrs():
    frame = pd.DataFrame({"layers": [[3, 4], []], "scores": [{"a": None}, {"b": [1.5]}]})
    frame.attrs = {"model": "demo", "kept_layers": [0, 1]}
    back = there_and_back("nested.jsonl", frame)
    assert back.to_dict("records") == frame.to_dict("records")
    assert back.attrs == frame.attrs


@pytest.mark.parametrize(
    ("name", "frame", "message"),
    [
        ("x.csv", pd.DataFrame({"layers": [[3, 4]]}), r"column 'layers' .* would change .*\.jsonl"),
        ("x.csv", pd.DataFrame({"mixed": [1, "a"]}), r"column 'mixed' .* would change"),
        ("x.jsonl", pd.DataFrame({"layers": [(3, 4)]}), r"column 'layers' .* would change"),
        ("x.jsonl", pd.DataFrame({"x": [object()]}), "can hold texts, numbers, lists and dicts"),
        ("x.csv", SIZES.set_index("start"), r"reset_index\(\) keeps \['start'\]"),
        ("x.csv", pd.DataFrame({0: [1]}), "column names must be strings"),
        ("x.csv", pd.DataFrame(index=range(3)), "at least one column"),
        ("x.parquet", SIZES, r"must end in \.csv .* got 'x.parquet'"),
        ("x.csv", {"start": [1]}, "DataFrame, got dict"),
    ],
)
def test_what_would_change_is_refused(name, frame, message):
    with pytest.raises(ValueError, match=message):
        encode_frame(name, frame)


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = write_text_atomic(tmp_path / "a" / "x.txt", "old")

    def full_disk(_):
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(ValueError, match=r"x\.txt cannot be written: no space"):
        write_bytes_atomic(path, b"new")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["x.txt"]


def test_an_atomic_folder_is_replaced_whole_or_not_at_all(tmp_path):
    for text in ("one", "two"):
        with atomic_folder(tmp_path / "adapter") as folder:
            (folder / text).write_text(text)
    assert [p.name for p in (tmp_path / "adapter").iterdir()] == ["two"]
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "adapter") as folder:
        (folder / "missing" / "three").write_text("half")
    assert [p.name for p in (tmp_path / "adapter").iterdir()] == ["two"]
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_the_digest_of_a_file_is_the_usual_one(tmp_path: Path):
    path = write_bytes_atomic(tmp_path / "x", b"abc")
    assert sha256_of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_what_a_killed_write_left_is_cleaned_and_nothing_else(tmp_path: Path):
    script = (
        "import os, signal, sys\n"
        "from workbench.runs.files import atomic_folder\n"
        "with atomic_folder(sys.argv[1]) as folder:\n"
        "    (folder / 'weights').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    out = tmp_path / "model"
    subprocess.run([sys.executable, "-c", script, str(out)], check=False)
    (left,) = tmp_path.iterdir()
    mine, alive = (
        tmp_path / ".model.notes.tmp",
        tmp_path / left.name.replace(left.name.split("-")[1], str(os.getpid())),
    )
    mine.write_text("not a write of ours")
    alive.mkdir()  # a write that is going on in a running process
    with atomic_folder(out) as folder:
        (folder / "weights").write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == {"model", mine.name, alive.name}


def test_a_result_that_does_not_fit_is_refused_before_the_work(tmp_path: Path):
    check_room(tmp_path / "new" / "file", 1000)
    with pytest.raises(ValueError, match=r"GiB are needed at .*new/file, [\d,.]+ GiB are free; make room"):
        check_room(tmp_path / "new" / "file", 2**60)


def test_a_full_disk_is_said_in_one_line_and_leaves_the_old_file(tmp_path: Path):
    """In a process of its own, for all that writes; with room the same call goes on to the same result."""
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


FULL = """
import resource, signal, sys
from dataclasses import replace
from pathlib import Path
import pandas as pd
import workbench as wb
from tests.tiny import tiny_model, tiny_tokenizer
from workbench.healing.records import adapter_digests
folder = Path(sys.argv[1])
run, frame = wb.open_run("r", root=folder), pd.DataFrame({"x": range(3)})
run.write("x.csv", frame)
model, tokenizer = tiny_model("llama"), tiny_tokenizer()
config = wb.HealingConfig(rank=2, max_steps=2, batch_size=2, max_length=32)
examples = pd.DataFrame({"instruction": list("abcdef"), "response": list("ghijkl")})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def refused(call, limit=4000, **settings):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        call(**settings)
    except ValueError as error:
        assert "no room on the disk for " + str(folder) in str(error) and chr(10) not in str(error), error
    else:
        raise AssertionError("it was served")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert not list(folder.rglob("*.tmp"))


refused(lambda: run.write("x.csv", pd.DataFrame({"x": range(3000)})))
assert run.read("x.csv").equals(frame)
heal = {"model": model, "tokenizer": tokenizer, "examples": examples, "response": "response"}
heal |= {"progress": False}
refused(wb.heal, **heal, config=config, out=folder / "adapter")
refused(wb.heal, limit=60_000, **heal, config=config, out=folder / "adapter")
adapter = wb.heal(**heal, config=config, out=folder / "adapter").adapter
assert adapter_digests(adapter) == adapter_digests(wb.heal(**heal, config=config, out=folder / "b").adapter)
tuning = {**heal, "examples": examples[:4], "held_out": examples[4:], "grid": {"rank": [32, 1]}}
tuning |= {"config": replace(config, max_steps=1), "out": folder / "search"}
refused(wb.tune, limit=250_000, **tuning)  # the study fits, an adapter does not
tuned, whole = (wb.tune(**{**tuning, "out": folder / name}).trials for name in ("search", "whole"))
assert tuned.set_index("rank")["loss"].equals(whole.set_index("rank")["loss"]), (tuned, whole)
asked = {"model": model, "tokenizer": tokenizer, "progress": False, "max_new_tokens": 40, "batch_size": 1}
asked |= {"asked": examples[["instruction"]]}
refused(wb.respond, limit=1200, **asked, out=folder / "said.jsonl")
assert wb.respond(**asked, out=folder / "said.jsonl").equals(wb.respond(**asked))
refused(wb.save_pruned, model=model, tokenizer=tokenizer, path=folder / "saved")
plan = {"folder": folder / "plan", "model": "demo", "examples": examples, "response": "response"}
refused(wb.plan_training, limit=100, **plan)
one, two = (wb.Variant(name, "tiny", adapter="adapter" if name == "one" else None) for name in ("one", "two"))
adapter.rename(run.path("adapter"))
refused(wb.merge_variants, model=model, first=one, second=two, ts=[0.5], run=run)
assert not (folder / "saved").exists() and not run.path("merged/merged-slerp-0.5").exists()
"""


HOLDER = """
import sys, time
from pathlib import Path
from workbench.runs.files import locked
for _ in range(60):
    with locked(Path(sys.argv[1])):
        counter = Path(sys.argv[2])
        seen = int(counter.read_text())
        time.sleep(0.001)
        counter.write_text(str(seen + 1))
"""


def test_a_lock_that_goes_when_it_is_let_go_still_lets_one_in_at_a_time(tmp_path, root):
    counter = tmp_path / "counter"
    counter.write_text("0")
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "held"), str(counter)]
    holders = [subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL) for _ in range(4)]
    assert [holder.wait(timeout=120) for holder in holders] == [0] * 4
    assert counter.read_text() == "240"
    assert os.listdir(tmp_path) == ["counter"]
