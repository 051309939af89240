"""The folders of a training: those of others are never replaced, and what is done is known in any type."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from healed import QUICK, make_examples, run, stop_at
from tiny import tiny_model, tiny_tokenizer

import workbench as wb
from workbench.healing.adapters import with_adapter
from workbench.healing.config import HealingConfig
from workbench.healing.folders import values_digest

ONE = HealingConfig(**{**QUICK.__dict__, "max_steps": 1})


@pytest.fixture
def model():
    return tiny_model("llama", num_hidden_layers=3)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """Return the folder of a finished adapter; copy it before changing anything."""
    out = tmp_path_factory.mktemp("healed") / "a"
    return run(
        tiny_model("llama", num_hidden_layers=3), tiny_tokenizer(), make_examples(), out, config=ONE
    ).adapter


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def make_foreign(folder, kind, adapter):
    folder.mkdir()
    if kind == "thesis":
        (folder / "thesis.txt").write_text("years of work")
    elif kind == "adapters inside":
        shutil.copytree(adapter, folder / "one")
    elif kind == "adapter of another trainer":
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(adapter / name, folder / name)
    elif kind == "subfolder":
        (folder / "empty").mkdir()


KINDS = ["thesis", "adapters inside", "adapter of another trainer", "subfolder"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["out", "unfinished"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_that_heal_did_not_make_is_never_touched(
    kind, place, overwrite, model, tokenizer, adapter, tmp_path
):
    folder = tmp_path / ("a" if place == "out" else "a.unfinished")
    make_foreign(folder, kind, adapter)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"holds .* and no .*json: heal did not make it; give"):
        run(model, tokenizer, make_examples(), tmp_path / "a", config=ONE, overwrite=overwrite)
    assert contents(tmp_path) == before
    assert folder.is_dir()


@pytest.mark.parametrize("place", ["a", "a.unfinished"])
def test_files_of_others_in_a_folder_of_heal_s_are_not_lost_either(
    place, model, tokenizer, adapter, tmp_path
):
    out = tmp_path / "a"
    if place == "a":
        shutil.copytree(adapter, out)
    else:
        with pytest.raises(KeyboardInterrupt):
            run(model, tokenizer, make_examples(), out, progress=stop_at(1, KeyboardInterrupt))
    (tmp_path / place / "notes.md").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"holds notes.md and a .*json: heal did not make it"):
        run(model, tokenizer, make_examples(), out, config=ONE, response="response", overwrite=True)
    assert contents(tmp_path) == before
    if place == "a":  # to be read, it may hold what it will
        run(model, tokenizer, make_examples(), out, config=ONE, progress=stop_at(1, RuntimeError))


def test_no_path_and_files_in_the_way_are_refused_in_one_line(model, tokenizer, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.chdir(tmp_path)
    for out in (None, ""):
        with pytest.raises(ValueError, match=f"out must be a name or a path, got {out!r}"):
            wb.heal(model, tokenizer, make_examples(), out=out, config=ONE)
    for out, words in [
        (".", "holds file and no healing.json: heal did not make it"),
        (tmp_path / "file", "file is a file"),
        (tmp_path / "file" / "a", "file is a file"),
    ]:
        with pytest.raises(ValueError, match=words) as error:
            run(model, tokenizer, make_examples(), out, config=ONE, overwrite=True)
        assert "\n" not in str(error.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_kill_while_unfinished_work_is_deleted_leaves_a_folder_of_heal_s(
    model, tokenizer, tmp_path, monkeypatch
):
    out, deleted, remove = tmp_path / "a", [], shutil.rmtree

    def killed(path, **options):
        remove(path, **options)
        deleted.append(path)
        if out.exists():
            raise MemoryError

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(MemoryError):
        run(model, tokenizer, make_examples(), out, config=ONE)
    monkeypatch.setattr(shutil, "rmtree", remove)
    assert (out.with_name("a.unfinished") / "work.json").is_file()
    run(model, tokenizer, make_examples(), out, config=ONE, progress=stop_at(1, RuntimeError))
    run(model, tokenizer, make_examples(), out, config=ONE, response="response", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_empty_folder_and_a_link_to_one_are_filled(model, tokenizer, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    run(model, tokenizer, make_examples(), tmp_path / "link", config=ONE)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "adapter_model.safetensors").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"real", "link"}


@pytest.mark.parametrize("damage", ["missing weights", "altered weights", "torn record"])
def test_a_damaged_adapter_is_not_done(damage, model, tokenizer, adapter, tmp_path):
    out = tmp_path / "a"
    shutil.copytree(adapter, out)
    part = out / ("healing.json" if damage == "torn record" else "adapter_model.safetensors")
    part.unlink() if damage == "missing weights" else part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"has no adapter_model|was altered|damaged"):
        run(model, tokenizer, make_examples(), out, config=ONE)
    run(model, tokenizer, make_examples(), out, config=ONE, overwrite=True)
    assert contents(out).keys() == contents(adapter).keys()
    with with_adapter(model, out):
        pass


def in_type(dtype, seed=0, **options):
    """Return the model as it is read in a type from one checkpoint in bfloat16."""
    return tiny_model("llama", seed=seed, num_hidden_layers=3, **options).to(torch.bfloat16).to(dtype)


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("types", [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_an_adapter_done_in_another_type_is_done(types, overwrite, tokenizer, tmp_path):
    there, here = (in_type(getattr(torch, name)) for name in types)
    options = {"config": ONE, "overwrite": overwrite}
    out = run(there, tokenizer, make_examples(), tmp_path / "a", **options).adapter
    before = contents(out)
    with pytest.warns(UserWarning, match=f"was trained in {types[0]}, the model is in {types[1]}"):
        log = run(here, tokenizer, make_examples(), out, progress=stop_at(1, RuntimeError), **options).log
    assert contents(out) == before
    assert log.attrs["dtype"] == types[0]


def test_other_weights_in_another_type_are_other_weights(tokenizer, tmp_path):
    out = run(in_type(torch.bfloat16), tokenizer, make_examples(), tmp_path / "a", config=ONE).adapter
    for other in (in_type(torch.float32, seed=1), in_type(torch.float32, rms_norm_eps=1e-3)):
        with pytest.raises(ValueError, match=r"another model \(trained in bfloat16, the model is float32\)"):
            run(other, tokenizer, make_examples(), out, config=ONE)


def test_a_model_that_was_moved_is_the_same_model(model, tokenizer, adapter, tmp_path):
    out = tmp_path / "a"
    shutil.copytree(adapter, out)
    model.config._name_or_path = "elsewhere/llama"
    model.generation_config.max_new_tokens = 7  # and neither does this change what is trained
    run(model, tokenizer, make_examples(), out, config=ONE, progress=stop_at(1, RuntimeError))


def test_weights_have_one_digest_in_both_types():
    plain = tiny_model("qwen3")
    digest = values_digest(plain)
    rounded = tiny_model("qwen3").to(torch.bfloat16)
    assert values_digest(rounded) == digest
    assert values_digest(rounded.to(torch.float32)) == digest
    with torch.no_grad():
        plain.model.layers[2].mlp.up_proj.weight[0, 0] += 0.1
    assert values_digest(plain) != digest


def test_the_record_of_a_folder_is_whole_json(adapter):
    record = json.loads((adapter / "healing.json").read_text(), parse_constant=pytest.fail)
    assert record["model"]["dtype"] == "float32"
    assert len(record["values"]) == 16
