"""Plans of healing: the same adapter by one process and by two under accelerate launch; read back by heal."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from healed import make_examples, stop_at
from safetensors.torch import load_file
from tiny import tiny_model, tiny_tokenizer

import workbench as wb
from workbench.__main__ import main
from workbench.healing.config import HealingConfig
from workbench.healing.heal import heal
from workbench.healing.launch import launch_command, plan_training, run_plan
from workbench.models.loading import load_model
from workbench.pruning.removal import without_layers

CONFIG = HealingConfig(
    rank=4, learning_rate=1e-2, epochs=1.5, batch_size=8, micro_batch_size=2, max_length=128, save_steps=2
)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def planned(model_folder, tmp_path, examples, name="a", **options):
    options = {"layers": [2, 3], "config": CONFIG, **options}
    return wb.plan_training(tmp_path / "plans" / name, str(model_folder), examples, **options)


def launched(plan, root, cwd, **options):
    """Run what the command line says, with this Python, from some other folder."""
    words = shlex.split(launch_command(plan, **options))
    assert words[0] == "python"
    environment = {**os.environ, "PYTHONPATH": str(root), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *words[1:]], env=environment, cwd=cwd, **pipes)


def states_of_processes(process, unfinished):
    """Return the names of the random states beside the checkpoints, one a process, while a training runs."""
    seen = set()
    while process.poll() is None:
        seen |= {path.name for path in unfinished.glob("checkpoints/checkpoint-*/rng_state*")}
        time.sleep(0.02)
    return seen


@pytest.mark.slow
def test_two_processes_end_with_the_adapter_of_one(model_folder, tmp_path, root):
    examples = make_examples(19)  # 28 places: the last update has 4 samples, and one process none of them
    plan = planned(model_folder, tmp_path, examples)
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    two = plan.parent / "adapter"
    process = launched(plan, root, elsewhere, processes=2, cpu=True)
    states = states_of_processes(process, two.with_name("adapter.unfinished"))
    told, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert states == {"rng_state_0.pth", "rng_state_1.pth"}
    assert f"{len(pd.read_json(two / 'log.jsonl', lines=True))} steps" in told
    assert told.count("last loss") == 1 and told.rstrip().endswith("in 2 processes")
    one = planned(model_folder, tmp_path, examples, "one")
    alone = run_plan(one, progress=False)
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (alone.adapter, two))
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-5)
    again = pd.read_json(two / "log.jsonl", lines=True)
    np.testing.assert_allclose(again["loss"], alone.log["loss"], rtol=1e-5)
    assert again["tokens"].tolist() == alone.log["tokens"].tolist()
    # read back: nothing is trained, whoever asks
    model, tokenizer = load_model(model_folder)
    with without_layers(model, [2, 3]):
        read = heal(model, tokenizer, examples, config=CONFIG, out=two, progress=pytest.fail)
    pd.testing.assert_frame_equal(read.log, again, check_dtype=False)


TEXTS = ["A story about a dog.", "Another about a cat."]
SHORT = HealingConfig(rank=2, max_steps=2, batch_size=2, max_length=32)


def test_a_plan_runs_from_the_command_line_and_can_be_moved(model_folder, tmp_path, capsys):
    plan = planned(model_folder, tmp_path, TEXTS, config=SHORT)
    told = json.loads(plan.read_text())
    assert told["layers"] == [2, 3]
    assert told["out"] == "adapter"
    shutil.move(tmp_path / "plans", tmp_path / "elsewhere")
    moved = tmp_path / "elsewhere" / "a"
    assert main(["heal", "--plan", str(moved / "plan.json")]) == 0
    assert "2 steps, last loss" in capsys.readouterr().out
    assert (moved / "adapter" / "adapter_model.safetensors").is_file()
    assert main(["heal", "--plan", str(moved / "plan.json")]) == 0
    # planned again with other settings: nothing that was trained is lost, until it is asked for
    checkpoint = moved / "adapter.unfinished" / "checkpoints" / "checkpoint-1" / "mine.txt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("here")
    before = (moved / "adapter" / "adapter_model.safetensors").read_bytes()
    plan_training(moved, str(model_folder), TEXTS, layers=[2, 3], config=replace(SHORT, max_steps=1))
    assert checkpoint.read_text() == "here"
    shutil.rmtree(moved / "adapter.unfinished")
    capsys.readouterr()
    assert main(["heal", "--plan", str(moved / "plan.json")]) == 2
    told = capsys.readouterr().err.rstrip("\n").rpartition("\n")[2]
    assert "another config; plan it with another out, or --overwrite" in told
    assert told.startswith("workbench: out: ") and "=True" not in told
    assert (moved / "adapter" / "adapter_model.safetensors").read_bytes() == before
    assert main(["heal", "--overwrite", "--plan", str(moved / "plan.json")]) == 0
    assert "1 steps, last loss" in capsys.readouterr().out


def test_a_model_named_from_here_is_found_from_elsewhere_and_read_back(model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(model_folder.parent)
    plan = plan_training(tmp_path / "plan", model_folder.name, TEXTS, config=SHORT)
    model, tokenizer = load_model(model_folder.name, device="cpu")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    words = shlex.split(launch_command(os.path.relpath(plan)))
    monkeypatch.chdir(tmp_path)
    done = run_plan(words[-1], progress=False)
    read = heal(model, tokenizer, TEXTS, config=SHORT, out=done.adapter, progress=pytest.fail)
    assert len(read.log) == 2


def test_a_plan_sees_the_rows_in_the_order_that_the_call_sees_them(model_folder, tmp_path):
    examples = make_examples().assign(
        reference=[f"{k * 7 % 20} words" + " more" * (k * 7 % 20) for k in range(20)]
    )
    plan = planned(model_folder, tmp_path, examples, response="response", layers=[])
    run_plan(plan, progress=False)
    model, tokenizer = load_model(str(model_folder))
    out, stop = plan.parent / "adapter", stop_at(1, RuntimeError)
    heal(model, tokenizer, examples, response="response", config=CONFIG, out=out, progress=stop)
    with pytest.raises(ValueError, match="another data"):
        heal(
            model, tokenizer, examples.drop(columns="reference"), response="response", config=CONFIG, out=out
        )


def test_wrong_plans_give_one_line(model_folder, tmp_path, capsys):
    assert main(["heal", "--plan", str(tmp_path / "none.json")]) == 2
    told = "plan must be a plan.json that plan_training wrote, there is none at"
    assert capsys.readouterr().err == f"workbench: {told} {tmp_path}/none.json\n"
    plan = planned(model_folder, tmp_path, make_examples(4), layers=[9])
    assert main(["heal", "--plan", str(plan)]) == 2
    for options, words in [
        ({"processes": 0}, "processes must be a whole number >= 1, got 0"),
        ({"fsdp": True, "cpu": True}, "fsdp must be False and machines 1 without GPUs"),
        ({"machines": 2, "cpu": True}, "fsdp must be False and machines 1 without GPUs"),
        ({"processes": 3, "machines": 2}, "processes must be a multiple of machines=2, got 3"),
        ({"processes": 8}, "processes must divide batch_size / micro = 8 / 2, got 8"),
    ]:
        with pytest.raises(ValueError, match=words):
            wb.launch_command(plan, **options)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"layers": []}', '{"meals": 3}'])
def test_a_file_that_is_no_plan_is_refused_and_its_folder_kept(model_folder, tmp_path, content):
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(ValueError, match="is no plan that plan_training wrote, or it is damaged"):
        run_plan(tmp_path / "plan.json")
    with pytest.raises(ValueError, match="folder must be new, empty or that of an earlier plan"):
        plan_training(tmp_path, str(model_folder), TEXTS)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    "parts",
    [{"out": 5}, {"out": None}, {"out": ["a"]}, {"files": []}, {"files": {}}, {"files": {"../x": "y"}},
     {"model": "demo"}, {"model": {}}, {"model": {"name": 5}}, {"config": None}, {"layers": "34"},
     {"response": 5}],
    ids=str,
)  # fmt: skip
def test_a_plan_whose_parts_are_of_other_kinds_is_damaged(model_folder, tmp_path, parts):
    plan = planned(model_folder, tmp_path, TEXTS, config=SHORT)
    plan.write_text(json.dumps(json.loads(plan.read_text()) | parts))
    for call in (run_plan, wb.launch_command):
        with pytest.raises(ValueError, match="is no plan that plan_training wrote, or it is damaged"):
            call(plan)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"out": "a\0b"}, "out must be a folder inside the plan's folder: embedded null byte"),
        ({"out": "x" * 5000}, "out must be a folder inside the plan's folder: .*too long"),
        ({"config": {"batch_size": "x"}}, "batch_size must be a whole number >= 1, got 'x'"),
        ({"config": {"no_such": 1}}, "no_such is no field of HealingConfig"),
    ],
    ids=str,
)
def test_a_value_that_a_plan_cannot_have_is_named(model_folder, tmp_path, parts, words):
    plan = planned(model_folder, tmp_path, TEXTS, config=SHORT)
    plan.write_text(json.dumps(json.loads(plan.read_text()) | parts))
    with pytest.raises(ValueError, match=words) as error:
        run_plan(plan)
    assert "\n" not in str(error.value)
    if "config" in parts:
        with pytest.raises(ValueError, match=words):
            wb.launch_command(plan)


@pytest.mark.parametrize("rows", ["{", "[" * 5000, '{"a": 1}\n', "5\n"])
def test_rows_that_are_none_are_named_though_their_digest_is_right(model_folder, tmp_path, rows):
    plan = planned(model_folder, tmp_path, TEXTS, config=SHORT)
    plan.with_name("examples.jsonl").write_text(rows)
    digest = hashlib.sha256(rows.encode()).hexdigest()
    plan.write_text(json.dumps(json.loads(plan.read_text()) | {"files": {"examples.jsonl": digest}}))
    with pytest.raises(ValueError, match="holds no rows of a plan; plan it again") as error:
        run_plan(plan)
    assert "\n" not in str(error.value)


BAD = {
    "no such column": ({"response": "nope"}, "nope"),
    "an empty response": (
        {"examples": make_examples(3).assign(reference=["a", " ", "b"])},
        "every reference; row 1",
    ),
    "a number as response": (
        {"examples": make_examples(3).assign(reference=[1, 2, 3])},
        "every reference; row 0",
    ),
    "no rows": ({"examples": []}, "at least one row"),
    "one text": ({"examples": "a story"}, "must be a pandas DataFrame or a list of texts"),
    "no texts": ({"examples": [1, 2]}, "a list of texts, got"),
    "a negative layer": ({"layers": [-1]}, "layers must be a whole number >= 0, got -1"),
    "half a layer": ({"layers": [1.5]}, "layers must be whole numbers"),
    "a preset's name": ({"config": "sdd"}, "config must be a HealingConfig"),
    "another type": ({"dtype": "float8"}, "dtype must be one of"),
    "other bits": ({"quantization": "int8"}, "quantization must be one of"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_could_not_be_trained_is_refused_before_anything_is_written(model_folder, tmp_path, kind):
    options, words = BAD[kind]
    options = {"examples": make_examples(3), **options}
    with pytest.raises(ValueError, match=words) as error:
        planned(model_folder, tmp_path, options.pop("examples"), **options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "plans").exists()


def test_a_plan_that_was_stopped_half_written_is_written_again(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    asked = {"folder": tmp_path / "plan", "model": "demo", "examples": TEXTS, "layers": [2]}
    with monkeypatch.context() as stopped:
        stopped.setattr("workbench.healing.launch.write_bytes_atomic", stop)
        with pytest.raises(KeyboardInterrupt):
            plan_training(**asked)
    with pytest.raises(ValueError, match=r"examples\.jsonl"):
        run_plan(tmp_path / "plan" / "plan.json")
    written = plan_training(**asked).parent
    assert sorted(path.name for path in written.iterdir()) == ["examples.jsonl", "plan.json"]


def test_a_folder_with_other_files_is_never_touched(model_folder, tmp_path):
    folder = tmp_path / "plans" / "a"
    (folder / "adapters").mkdir(parents=True)
    (folder / "precious.csv").write_text("1")
    with pytest.raises(ValueError, match="holds other files"):
        planned(model_folder, tmp_path, TEXTS)
    assert sorted(path.name for path in folder.iterdir()) == ["adapters", "precious.csv"]
    with pytest.raises(ValueError, match="is a file"):
        plan_training(folder / "precious.csv", str(model_folder), TEXTS)


@pytest.mark.parametrize("out", ["../x", "..", ".", "{absolute}/x", "link/x", "a/../../x", "examples.jsonl"])
def test_an_adapter_outside_the_plan_is_refused_when_planned_and_when_run(model_folder, tmp_path, out):
    plan = planned(model_folder, tmp_path, TEXTS, config=SHORT)
    (plan.parent / "link").symlink_to(tmp_path, target_is_directory=True)
    out = out.format(absolute=tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="out must be a folder inside the plan's folder"):
        planned(model_folder, tmp_path, TEXTS, out=plan.parent / out)
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "out": out}))
    with pytest.raises(ValueError, match="out must be a folder inside the plan's folder"):
        run_plan(plan, progress=False)
    assert sorted(tmp_path.rglob("*")) == before


def test_examples_of_another_plan_are_not_trained_on(model_folder, tmp_path):
    plan = planned(model_folder, tmp_path, TEXTS, config=SHORT)
    plan.with_name("examples.jsonl").write_text('{"text":"Something else."}\n')
    with pytest.raises(ValueError, match="is not the file that the plan was written with"):
        run_plan(plan, progress=False)


@pytest.mark.parametrize("options", [{}, {"fsdp": True}, {"processes": 1}, {"machines": 2}])
def test_accelerate_understands_the_command(tmp_path, options, monkeypatch):
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    words = shlex.split(launch_command(tmp_path / "plan.json", **options))
    parsed, *_ = _validate_launch_command(launch_command_parser().parse_args(words[3:]))
    assert parsed.module
    assert parsed.training_script == "workbench"
    assert parsed.training_script_args[:2] == ["heal", "--plan"]
    assert parsed.num_processes == options.get("processes", 2)
    assert parsed.num_machines == options.get("machines", 1)
    assert parsed.use_fsdp == options.get("fsdp", False)
    assert parsed.mixed_precision == "no"
    if parsed.use_fsdp:
        assert (parsed.fsdp_version, parsed.fsdp_state_dict_type) == ("2", "FULL_STATE_DICT")
