"""Plans of healing: the same adapter by one process and by two under accelerate launch; read back by heal."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from healed import make_examples, stop_at
from safetensors.torch import load_file
from tiny import tiny_model, tiny_tokenizer

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


def planned(model_folder, tmp_path, examples, out="adapters/a", **options):
    return plan_training(
        tmp_path / "plans" / "a",
        str(model_folder),
        examples,
        out=tmp_path / out,
        **{"layers": [2, 3], "config": CONFIG, **options},
    )


def launched(plan, root, **options):
    """Run what the command line says, with this Python."""
    words = shlex.split(launch_command(plan, **options))
    assert words[0] == "python"
    environment = {**os.environ, "PYTHONPATH": str(root), "MASTER_ADDR": "127.0.0.1"}
    return subprocess.run(
        [sys.executable, *words[1:]],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_two_processes_end_with_the_adapter_of_one(model_folder, tmp_path, root):
    examples = make_examples(19)  # 28 places: the last update has 4 samples, and one process none of them
    plan = planned(model_folder, tmp_path, examples)
    done = launched(plan, root, processes=2, cpu=True)
    assert done.returncode == 0, done.stderr
    two = tmp_path / "adapters" / "a"
    assert f"{len(pd.read_json(two / 'log.jsonl', lines=True))} steps" in done.stdout
    assert done.stdout.count("last loss") == 1
    one = planned(model_folder, tmp_path, examples, out="adapters/one")
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


def test_a_plan_runs_from_the_command_line_and_can_be_moved(model_folder, tmp_path, capsys):
    config = HealingConfig(rank=2, max_steps=2, batch_size=2, max_length=32)
    texts = ["A story about a dog.", "Another about a cat."]
    plan = planned(model_folder, tmp_path, texts, config=config)
    told = json.loads(plan.read_text())
    assert told["layers"] == [2, 3]
    assert told["out"] == "../../adapters/a"
    shutil.move(tmp_path / "plans", tmp_path / "elsewhere")
    assert main(["heal", "--plan", str(tmp_path / "elsewhere" / "a" / "plan.json")]) == 0
    assert "2 steps, last loss" in capsys.readouterr().out
    assert (tmp_path / "adapters" / "a" / "adapter_model.safetensors").is_file()


def test_a_plan_sees_the_rows_in_the_order_that_the_call_sees_them(model_folder, tmp_path):
    examples = make_examples().assign(
        reference=[f"{k * 7 % 20} words" + " more" * (k * 7 % 20) for k in range(20)]
    )
    plan = planned(model_folder, tmp_path, examples, response="response", layers=[])
    run_plan(plan, progress=False)
    model, tokenizer = load_model(str(model_folder))
    out, stop = tmp_path / "adapters/a", stop_at(1, RuntimeError)
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
    with pytest.raises(ValueError, match="at least one row"):
        planned(model_folder, tmp_path, [])
    with pytest.raises(ValueError, match="processes must be a whole number >= 1, got 0"):
        launch_command(plan, processes=0)
    with pytest.raises(ValueError, match="fsdp must be False without GPUs"):
        launch_command(plan, fsdp=True, cpu=True)


@pytest.mark.parametrize("options", [{}, {"fsdp": True}, {"cpu": True}, {"processes": 1}, {"machines": 2}])
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
    assert parsed.use_cpu == options.get("cpu", False)
    assert parsed.mixed_precision == "no"
    if parsed.use_fsdp:
        assert (parsed.fsdp_version, parsed.fsdp_state_dict_type) == ("2", "FULL_STATE_DICT")
