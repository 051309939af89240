"""Iterations: which layers go, where each begins, kills, several processes, bad input."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from healed import logits, same_state, same_weights, state
from tiny import tiny_model, tiny_tokenizer
from tokenizers import normalizers

from workbench.distances.influence import removal_similarity
from workbench.healing.adapters import as_variant, with_adapter
from workbench.healing.config import HealingConfig
from workbench.models.loading import load_model
from workbench.pruning.removal import prune_, without_layers
from workbench.recovery.iterate import CALIBRATION as CALIBRATION_OF_THE_PAPER
from workbench.recovery.iterate import (
    iterate,
    iteration_variants,
    read_iterations,
    recovery_log,
    removal_order,
)

TOKENIZER = tiny_tokenizer()
TEXTS = [f"The quick brown fox number {k} jumps over the dog {7 * k} times." for k in range(24)]
CALIBRATION = ["A small dog runs.", "Anna has 12 apples and a lemon.", "The old house by the river."]
QUICK = HealingConfig.preset(
    "iterabre",
    batch_size=4,
    micro_batch_size=2,
    max_length=24,
    rank=4,
    learning_rate=1e-2,
    max_steps=3,
    save_steps=1,
)


def run(model, out, texts=TEXTS, **options):
    settings = {"target_layers": 4, "calibration": CALIBRATION, "config": QUICK, "progress": False, **options}
    return iterate(model, TOKENIZER, texts, out=out, **settings)


def last_states_of(model):
    rows = [TOKENIZER(text, return_tensors="pt")["input_ids"] for text in CALIBRATION]
    with torch.no_grad():
        return [model.get_decoder()(input_ids=ids).last_hidden_state.flatten().double() for ids in rows]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Return a run from 7 to 4 layers, its model and its folder."""
    model, folder = tiny_model("llama"), tmp_path_factory.mktemp("iterate")
    before = state(model)
    frame = run(model, folder / "run")
    assert same_state(model, before)
    return frame, model, folder


def test_the_calibration_is_the_paper_s_ten_sentences():
    assert len(CALIBRATION_OF_THE_PAPER) == 10
    assert CALIBRATION_OF_THE_PAPER[0] == " = There 's Got to Be a Way = "


def test_every_iteration_removes_the_layer_whose_removal_keeps_the_original_state_best(done):
    frame, model, folder = done
    original, gone, adapter = last_states_of(model), [], None
    for row in frame[frame["phase"] == "P"].itertuples():
        alike = {}
        for layer in set(range(7)) - set(gone):
            with without_layers(model, gone):
                if adapter is None:
                    with without_layers(model, [layer]):
                        states = last_states_of(model)
                else:
                    with with_adapter(model, adapter), without_layers(model, [layer]):
                        states = last_states_of(model)
            pairs = zip(states, original, strict=True)
            alike[layer] = sum(float(torch.cosine_similarity(a, b, dim=0)) for a, b in pairs) / len(original)
        assert row.layer == max(alike, key=alike.get)
        assert row.similarity == pytest.approx(alike[row.layer], abs=1e-5)
        gone.append(int(row.layer))
        adapter = folder / "run" / f"iteration-{row.iteration:02d}" / "recovered"


def test_the_frame_says_what_went_and_what_is_left(done):
    frame, _, folder = done
    assert list(frame["phase"]) == ["P", "P+R"] * 3
    assert list(frame["layers_left"]) == [6, 6, 5, 5, 4, 4]
    order = removal_order(frame)
    assert list(frame["order"].iloc[-1].split()) == [str(layer) for layer in order]
    pd.testing.assert_frame_equal(read_iterations(folder / "run"), frame)


def test_an_iteration_begins_exactly_where_the_last_one_ended(done):
    frame, model, folder = done
    first, second, *_ = removal_order(frame)
    adapter = with_adapter(model, folder / "run/iteration-01/recovered")
    with without_layers(model, [first]), adapter, without_layers(model, [second]):
        wanted = logits(model)
    variants = {one.name: one for one in iteration_variants(frame, model="tiny", folder="run")}
    assert list(variants) == ["6-P", "6-P+R", "5-P", "5-P+R", "4-P", "4-P+R"]
    with as_variant(model, variants["5-P"], run=folder):
        assert torch.equal(logits(model), wanted)
    with as_variant(model, variants["5-P+R"], run=folder):
        assert not torch.equal(logits(model), wanted)
    record = json.loads((folder / "run/iteration-02/recovered/healing.json").read_text())
    begun = json.loads((folder / "run/iteration-02/pruned/healing.json").read_text())
    assert record["objective"]["start"] == begun["sha256"]["adapter_model.safetensors"]


def test_recoveries_of_fewer_updates_than_an_epoch_learn_other_examples_each_time(tmp_path):
    texts = ["dog " * 2**k for k in range(7)]
    config = replace(QUICK, batch_size=2, micro_batch_size=2, max_steps=2, max_length=None, concatenate=False)
    run(tiny_model("llama"), tmp_path / "run", texts, target_layers=5, config=config)
    log = recovery_log(tmp_path / "run")
    sizes = [len(TOKENIZER(text)["input_ids"]) for text in texts]
    learned = [
        next(some for some in itertools.combinations(range(7), 4) if sum(sizes[k] for k in some) == tokens)
        for tokens in log.groupby("iteration")["tokens"].last()
    ]
    assert len(learned) == 2 and learned[0] != learned[1]


def test_a_run_that_is_done_goes_on_to_fewer_layers_and_is_not_done_again(done, tmp_path):
    frame, model, folder = done
    times = {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*") if path.is_file()}
    again = run(model, folder / "run")
    pd.testing.assert_frame_equal(again, frame)
    further = run(model, folder / "run", target_layers=3)
    assert removal_order(further)[:3] == removal_order(frame)
    assert all(path.stat().st_mtime_ns == told for path, told in times.items())
    with pytest.raises(ValueError, match="was made from another config"):
        run(model, folder / "run", config=HealingConfig(**{**vars(QUICK), "seed": 1}))
    pd.testing.assert_frame_equal(run(model, folder / "run"), frame)


def test_direct_is_all_at_once_and_without_texts_nothing_is_recovered(tmp_path):
    model = tiny_model("qwen3")
    direct = run(model, tmp_path / "direct", per_iteration=3)
    bare = run(model, tmp_path / "bare", texts=None)
    assert list(direct["phase"]) == ["P", "P", "P", "P+R"] and list(bare["phase"]) == ["P"] * 3
    assert removal_order(direct) == removal_order(bare)
    gone = []
    for layer in removal_order(bare):
        scores = removal_similarity(model, TOKENIZER, CALIBRATION, removed=gone, progress=False)
        assert scores.loc[scores["similarity"].idxmax(), "layer"] == layer
        gone.append(layer)


SCRIPT = """
import sys
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
from recovery.test_iterate import run
from tiny import tiny_model
print("begin", flush=True)
def see(row):
    print(row["iteration"], row["step"], flush=True)
frame = run(tiny_model("llama"), {out!r}, target_layers=5, progress=see)
print(frame["similarity"].round(5).tolist())
print("end", flush=True)
"""


def start(out, *launcher):
    tests = Path(__file__).resolve().parents[1]
    script = out.parent / f"{out.name}.py"
    script.write_text(SCRIPT.format(paths=[str(tests.parent), str(tests)], out=str(out)))
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(script)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        cwd=tests.parent,
    )


def test_a_run_that_is_killed_goes_on_to_the_same_layers_and_weights(tmp_path):
    model = tiny_model("llama")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = run(model, tmp_path / "whole", target_layers=5)
    finally:
        torch.set_num_threads(threads)
    with start(tmp_path / "killed") as process:
        for line in process.stdout:
            if line.startswith("2 2"):  # in the second recovery
                os.kill(process.pid, signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    so_far = read_iterations(tmp_path / "killed")
    assert list(so_far["phase"]) == ["P", "P+R", "P"]
    process = start(tmp_path / "killed")
    said = process.communicate()[0].splitlines()
    assert process.returncode == 0 and not any(line.startswith("1 ") for line in said)
    pd.testing.assert_frame_equal(read_iterations(tmp_path / "killed"), whole)
    for row in whole["adapter"][whole["adapter"] != ""]:
        assert same_weights(tmp_path / "killed" / row, tmp_path / "whole" / row)


def test_a_second_call_waits_for_the_folder_and_neither_gets_layers_of_the_other(tmp_path, capsys):
    model, other = tiny_model("llama"), replace(QUICK, rank=2, learning_rate=1e-1)
    settings = [{"config": QUICK}, {"config": other, "overwrite": True}]
    alone = [run(model, tmp_path / f"{n}", target_layers=5, **one) for n, one in enumerate(settings)]
    process = start(tmp_path / "both")
    assert any(line.startswith("1 1") for line in process.stdout)  # in its first recovery
    with pytest.raises(ValueError, match="was made from another config"):
        run(model, tmp_path / "both", target_layers=5, config=other)
    second = run(model, tmp_path / "both", target_layers=5, **settings[1])
    said = process.communicate()[0].splitlines()
    assert process.returncode == 0 and "another process is at it; waiting" in capsys.readouterr().out
    assert json.loads(said[-2].replace("nan", "NaN")) == pytest.approx(
        alone[0]["similarity"].tolist(), abs=1e-4, nan_ok=True
    )
    pd.testing.assert_frame_equal(second, alone[1], atol=1e-4)


def test_a_tokenizer_that_reads_the_calibration_otherwise_is_other_work(tmp_path):
    model, other = tiny_model("llama"), tiny_tokenizer()
    other.backend_tokenizer.normalizer = normalizers.Replace("dog", "an old house")
    settings = {"target_layers": 6, "calibration": CALIBRATION, "out": tmp_path / "run", "progress": False}
    iterate(model, TOKENIZER, **settings)
    with pytest.raises(ValueError, match="was made from another calibration"):
        iterate(model, other, **settings)


def test_a_damaged_step_or_record_is_named(done, tmp_path):
    folder = shutil.copytree(done[2] / "run", tmp_path / "run")
    for file in (folder / "iteration-01" / "rows.json", folder / "iterate.json"):
        for content in ("", "5", "[[1]]", "[" * 100_000, '[["a", 1]]'):
            file.write_text(content)
            with pytest.raises(ValueError, match=f"{file.name} is damaged") as error:
                read_iterations(folder)
            assert "\n" not in str(error.value)
        shutil.copy(done[2] / "run" / file.relative_to(folder), file)


def test_two_processes_of_a_launcher_do_what_one_does(tmp_path):
    one = run(tiny_model("llama"), tmp_path / "one", target_layers=5)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    process = start(tmp_path / "two", *launcher)
    said = process.communicate()[0]
    assert process.returncode == 0 and said.count("end") == 2
    two = read_iterations(tmp_path / "two")
    columns = ["iteration", "phase", "layer", "removed", "adapter"]
    pd.testing.assert_frame_equal(two[columns], one[columns])
    logs = [
        pd.read_json(tmp_path / name / "iteration-02/recovered/log.jsonl", lines=True)
        for name in ("one", "two")
    ]
    for name in ("loss", "hidden", "attention", "logits"):
        assert logs[0][name].to_numpy() == pytest.approx(logs[1][name].to_numpy(), rel=2e-2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target_layers": 7}, "target_layers must be from 1 to 6, below the depth, got 7"),
        ({"target_layers": 0}, "target_layers must be"),
        ({"per_iteration": 0}, "per_iteration must be"),
        ({"calibration": ["a dog", ""]}, "empty"),
        ({"texts": TEXTS[:1]}, "at least batch_size=4 sequences"),
        ({"loss": {"hidden": 0}}, "must weigh at least one"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_any_work(tmp_path, options, words):
    with pytest.raises(ValueError, match=words) as error:
        run(tiny_model("llama"), tmp_path / "a", **options)
    assert "\n" not in str(error.value) and not any(tmp_path.iterdir())


def test_a_model_that_is_pruned_already_is_refused(tmp_path):
    with pytest.raises(ValueError, match="pruned already"):
        run(prune_(tiny_model("llama"), [2]), tmp_path / "a")


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds mine.txt and no iterate.json"):
        run(tiny_model("llama"), tmp_path / "a")
    assert (tmp_path / "a" / "mine.txt").read_text() == "mine"


@pytest.mark.slow
def test_one_iteration_of_a_real_model(tmp_path, root):
    folder = root / "data" / "models" / "smollm2-135m-instruct"
    if not folder.is_dir():
        pytest.skip("the real model is not in data/models")
    model, tokenizer = load_model(str(folder), dtype="float32", device="cpu")
    config = HealingConfig.preset("iterabre", batch_size=2, micro_batch_size=2, max_length=48, max_steps=2)
    frame = iterate(
        model, tokenizer, TEXTS, target_layers=29, config=config, out=tmp_path / "run", progress=False
    )
    assert list(frame["phase"]) == ["P", "P+R"] and frame["similarity"].iloc[0] > 0.9
