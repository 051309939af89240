"""What a stage depends on: nothing that changes a result goes unseen, nothing else is measured again.

Models here are real ones; each case was served stale, or thrown away, by the store before this one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

import workbench as wb
from workbench.runs.files import write_text_atomic
from workbench.runs.keys import stage_key
from workbench.runs.run import Run, open_run

TEXTS = ["One two three four.", "Mara has 3 plums and 4 more."]


@pytest.fixture
def model():
    return tiny_model("llama")


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


def key(function: Callable, *arguments, **settings) -> str:
    return stage_key(function, arguments, settings).fingerprint


# --- models and tokenizers --------------------------------------------------------------------------


def one_element(model):
    model.model.layers[2].mlp.down_proj.weight.data[3, 5] += 1e-3


def one_row_of_the_embedding(model):
    model.get_input_embeddings().weight.data[17] *= 1.5


def one_head(model):
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[:, 8:16] = 0


def half_of_the_neurons(model):
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.data[:, ::2] = 0


def two_elements_exchanged(model):
    weight = model.model.layers[0].mlp.up_proj.weight.data
    weight[0, 0], weight[0, 1] = weight[0, 1].clone(), weight[0, 0].clone()


def norm_epsilon(model):
    model.config.rms_norm_eps *= 2


def rotary_base(model):
    model.model.rotary_emb.inv_freq.mul_(0.5)


def a_hook(model):
    model.model.layers[0].register_forward_hook(lambda module, inputs, output: output * 0.5)


def generation_settings(model):
    model.generation_config.repetition_penalty = 1.3


def an_activation(model):
    model.model.layers[0].mlp.act_fn = torch.nn.ReLU()


def a_number_of_a_module(model):
    model.model.layers[1].self_attn.scaling *= 3


def another_forward(model):
    model.model.layers[2].mlp.forward = lambda states: states * 0.5


CHANGES = [
    *(one_element, one_row_of_the_embedding, one_head, half_of_the_neurons, two_elements_exchanged),
    *(norm_epsilon, rotary_base, a_hook, generation_settings),
    *(an_activation, a_number_of_a_module, another_forward),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_whatever_changes_in_a_model_is_measured_again(run: Run, model, tokenizer, change):
    measure = partial(run.frame, "distances.csv", wb.angular_distances, model, tokenizer, TEXTS)
    first = measure()
    created = run.provenance("distances.csv")["created"]
    measure()
    assert run.provenance("distances.csv")["created"] == created
    change(model)
    again = measure()
    assert run.provenance("distances.csv")["created"] > created
    unseen = (
        norm_epsilon,
        generation_settings,
        one_element,
        one_row_of_the_embedding,
        two_elements_exchanged,
    )
    if change not in unseen:  # so stale would have been wrong
        assert not np.allclose(first["distance"], again["distance"], atol=1e-6)


def test_a_hook_counts_with_its_numbers(model, tokenizer):
    def times(factor):
        return lambda module, inputs, output: output * factor

    found = set()
    for hook in (times(2.0), times(3.0), lambda *given: given[2] * 2.0, lambda *given: given[2] * 3.0):
        handle = model.model.layers[0].register_forward_hook(hook)
        found.add(key(wb.angular_distances, model, tokenizer, TEXTS))
        handle.remove()
    assert len(found) == 4


def test_what_is_set_for_all_of_torch_counts(model, tokenizer):
    usual = key(wb.angular_distances, model, tokenizer, TEXTS)
    torch.set_default_dtype(torch.float64)
    try:
        assert key(wb.angular_distances, model, tokenizer, TEXTS) != usual
    finally:
        torch.set_default_dtype(torch.float32)
    assert key(wb.angular_distances, model, tokenizer, TEXTS) == usual


def test_the_same_model_loaded_again_is_served(run: Run, tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    made = []
    for _ in range(2):
        model, tokenizer = wb.load_model(tmp_path / "m")
        run.frame("distances.csv", wb.angular_distances, model, tokenizer, TEXTS)
        made.append(run.provenance("distances.csv")["created"])
    assert made[0] == made[1]


def test_layers_left_out_and_put_back(model, tokenizer):
    whole = key(wb.angular_distances, model, tokenizer, TEXTS)
    with wb.without_layers(model, [2]):
        assert key(wb.angular_distances, model, tokenizer, TEXTS) != whole
    assert key(wb.angular_distances, model, tokenizer, TEXTS) == whole


def chat_template(tokenizer):
    tokenizer.chat_template += " "


def padding_side(tokenizer):
    tokenizer.padding_side = "right"


def another_token(tokenizer):
    tokenizer.add_tokens(["<new>"])


def a_rule(tokenizer):
    from tokenizers.normalizers import Lowercase

    tokenizer.backend_tokenizer.normalizer = Lowercase()


def end_token(tokenizer):
    tokenizer.eos_token = "<|user|>"


def control_tokens_as_text(tokenizer):
    tokenizer.split_special_tokens = True


TOKENIZERS = [chat_template, padding_side, another_token, a_rule, end_token, control_tokens_as_text]


@pytest.mark.parametrize("change", TOKENIZERS)
def test_whatever_changes_in_a_tokenizer_counts(model, tokenizer, change):
    before = key(wb.generate_responses, model, tokenizer, TEXTS)
    tokenizer(TEXTS, padding=True, truncation=True, max_length=8)  # which sets both in the fast tokenizer
    assert key(wb.generate_responses, model, tokenizer, TEXTS) == before
    change(tokenizer)
    assert key(wb.generate_responses, model, tokenizer, TEXTS) != before


def test_an_adapter_counts_with_its_weights_its_strength_and_whether_it_acts(model, tokenizer):
    from peft import LoraConfig, get_peft_model

    bare = key(wb.perplexity, model, tokenizer, TEXTS)
    with_adapter = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    found = {bare, key(wb.perplexity, with_adapter, tokenizer, TEXTS)}
    with with_adapter.disable_adapter():
        found.add(key(wb.perplexity, with_adapter, tokenizer, TEXTS))
    layer = with_adapter.base_model.model.model.layers[0].self_attn.q_proj
    layer.scaling["default"] *= 1000
    found.add(key(wb.perplexity, with_adapter, tokenizer, TEXTS))
    layer.lora_B["default"].weight.data[0, 0] += 1
    found.add(key(wb.perplexity, with_adapter, tokenizer, TEXTS))
    assert len(found) == 5


def test_an_adapter_file_counts_through_the_variant_that_names_it(run: Run, tmp_path):
    place = run.path("adapters/sft")
    place.mkdir(parents=True)
    (place / "adapter_model.safetensors").write_bytes(b"one")
    variant = wb.Variant("sft", "demo", removed=(3,), adapter="adapters/sft")

    def measured(variants):
        return pd.DataFrame({"x": [1]})

    before = stage_key(measured, [[variant]], {}, run.folder).fingerprint
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(run.folder, elsewhere)
    assert stage_key(measured, [[variant]], {}, elsewhere).fingerprint == before
    (place / "adapter_model.safetensors").write_bytes(b"two")
    assert stage_key(measured, [[variant]], {}, run.folder).fingerprint != before


# --- files ------------------------------------------------------------------------------------------


def lines_of(path) -> pd.DataFrame:
    return pd.DataFrame({"line": Path(path).expanduser().read_text().splitlines()})


@pytest.mark.parametrize("way", ["absolute", "relative", "home", "path", "in a list"])
def test_a_file_counts_by_what_it_holds_also_with_an_equal_time(run: Run, tmp_path, monkeypatch, way):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "st.jsonl"
    ways = {"absolute": str(file), "relative": "st.jsonl", "home": "~/st.jsonl", "path": file}

    def read(path):
        return lines_of(path[0] if isinstance(path, list) else path)

    for text in ("one", "two"):
        file.write_text(text)
        os.utime(file, ns=(10**18, 10**18))
        assert run.frame("x.csv", read, ways.get(way, [str(file)]))["line"].tolist() == [text]


def test_a_folder_counts_with_what_lies_behind_its_links(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "rows").write_text("one")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "other")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    before = key(lines_of, tmp_path / "data")
    (tmp_path / "other" / "rows").write_text("two")
    assert key(lines_of, tmp_path / "data") != before


def test_where_a_file_lies_does_not_count(tmp_path):
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "a.txt").write_text("same")
    assert key(lines_of, tmp_path / "here" / "a.txt") == key(lines_of, str(tmp_path / "there" / "a.txt"))


def test_a_bare_word_is_a_name_whatever_folders_lie_around(tmp_path, monkeypatch):
    before = key(lines_of, "demo")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert key(lines_of, "demo") == before


def test_a_bare_word_is_a_folder_where_the_annotation_takes_a_path(tmp_path, monkeypatch):
    def measured(data: str | Path | None = None, name: str | Path = "demo") -> pd.DataFrame:
        return pd.DataFrame({"x": [1]})

    words = [key(measured, "sets"), key(measured, name="sets")]
    monkeypatch.chdir(tmp_path)
    assert [key(measured, "sets"), key(measured, name="sets")] == words  # no folder, so a word
    write_text_atomic(tmp_path / "sets" / "rows.jsonl", "one")
    first = key(measured, "sets")
    assert first == key(measured, tmp_path / "sets") != words[0]
    write_text_atomic(tmp_path / "sets" / "rows.jsonl", "two")
    assert key(measured, "sets") != first
    assert key(measured, name="sets") == words[1]


def test_texts_count_alike_in_whatever_they_come(model, tokenizer):
    ways = [TEXTS, tuple(TEXTS), np.array(TEXTS), pd.Series(TEXTS, name="text")]
    for measure in (wb.perplexity, wb.block_influence):
        assert len({key(measure, model, tokenizer, texts) for texts in ways}) == 1


def test_what_changed_is_named_and_nothing_else(run: Run):
    def measured(parts, t, share) -> pd.DataFrame:
        return pd.DataFrame({"x": [1]})

    merged = wb.Variant("merged", "demo", merges=((3, 2),))
    given = {"parts": [merged], "share": float("nan")}
    run.frame("x.csv", measured, t=0.5, **given)
    assert stage_key(measured, (), {"t": 0.6, **given}).changed(run.provenance("x.csv")) == ["t"]


def test_a_run_moved_to_another_folder_is_served(run: Run, model, tokenizer, tmp_path):
    measure = partial(wb.angular_distances, model, tokenizer, TEXTS)
    run.frame("distances.csv", measure)
    shutil.move(run.folder, tmp_path / "elsewhere" / "test")
    moved = open_run("test", root=tmp_path / "elsewhere")
    created = moved.provenance("distances.csv")["created"]
    moved.frame("distances.csv", measure)
    assert moved.provenance("distances.csv")["created"] == created


# --- settings ---------------------------------------------------------------------------------------


def test_settings_that_cannot_change_a_result_do_not_count_and_defaults_are_settings(model, tokenizer):
    before = key(wb.angular_distances, model, tokenizer, TEXTS)
    assert key(wb.angular_distances, model, tokenizer, TEXTS, batch_size=3, progress=False) == before
    assert key(wb.angular_distances, model, tokenizer, TEXTS, compiled=False) == before
    assert key(wb.angular_distances, model, tokenizer, TEXTS, max_length=4096) == before
    assert key(partial(wb.angular_distances, model, max_length=4096), tokenizer, texts=TEXTS) == before
    assert key(wb.angular_distances, model, tokenizer, TEXTS, max_length=8) != before


def test_the_batch_of_a_training_counts_though_that_of_a_measurement_does_not(model, tokenizer):
    rows = pd.DataFrame({"id": ["a"], "instruction": ["x"], "context": [""], "reference": ["y"]})
    small, large = (wb.HealingConfig(batch_size=size) for size in (8, 16))
    trained = partial(wb.heal, model, tokenizer, rows, out="nowhere")
    assert key(trained, config=small) != key(trained, config=large)


def test_names_of_our_settings_count_in_a_users_own_function():
    def mine(batch_size=1, items=None):
        return pd.DataFrame({"x": [batch_size]})

    assert len({key(mine), key(mine, batch_size=2), key(mine, items=[1]), key(mine, items=[2])}) == 4


def test_items_that_are_read_and_not_written_count(run: Run):
    scores = pd.DataFrame({"variant": ["base", "pruned"], "task": "a", "metric": "acc", "value": [1.0, 0.5]})
    items = pd.DataFrame({"item": [*range(20)] * 2, "variant": ["base"] * 20 + ["pruned"] * 20})
    items = items.assign(task="a", n_shot=0, metric="acc", value=[1.0] * 20 + [1.0, 0.0] * 10)
    turned = items.assign(value=[1.0] * 20 + [0.0] * 5 + [1.0] * 10 + [0.0] * 5)
    keys = [stage_key(wb.average_recovery, (scores,), {"items": one}) for one in (items, turned)]
    assert keys[0].fingerprint != keys[1].fingerprint and not keys[0].outputs
    assert run.frame("a.csv", wb.average_recovery, scores, items=items)["ci_low"].notna().sum() == 1


def test_functions_given_as_arguments_count_by_their_code(model, tokenizer):
    def measured(score):
        return pd.DataFrame({"x": [score()]})

    assert key(measured, lambda: 1) == key(measured, lambda: 1)
    assert key(measured, lambda: 1) != key(measured, lambda: 2)


# --- what it costs, and several processes ---------------------------------------------------------


def test_the_weights_are_read_once_a_load(monkeypatch, model, tokenizer):
    from workbench import digests

    monkeypatch.setattr(digests, "SMALL", 0)
    key(wb.angular_distances, model, tokenizer, TEXTS)
    monkeypatch.setattr(digests, "_sums", lambda tensor: pytest.fail("a tensor was read again"))
    key(wb.angular_distances, model, tokenizer, TEXTS)
    with wb.without_layers(model, [1]):
        key(wb.angular_distances, model, tokenizer, TEXTS)


PROCESS = """
import sys, time
sys.path[:0] = {paths!r}
from pathlib import Path
import workbench as wb
from tiny import tiny_model, tiny_tokenizer
run = wb.open_run("test", root={root!r})
model, tokenizer = tiny_model("llama"), tiny_tokenizer()
Path({ready!r} + str({limit})).touch()
while not Path({ready!r} + "go").exists():
    time.sleep(0.01)
for _ in range({times}):
    base, settings = [wb.Variant("base", "tiny")], {{"run": run, "limit": {limit}, "progress": False}}
    found = wb.evaluate_variants(model, tokenizer, base, "demo_yes_no", **settings)
    n = len(found.of("base")["item"].unique())
    assert n == {limit} == found.scores["n"].iloc[0], (n, found.scores["n"].iloc[0], {limit})
"""


@pytest.mark.slow
def test_two_processes_in_one_run_never_mix_their_results(run: Run, root, tmp_path):
    ready = str(tmp_path / "ready-")
    paths = [str(root / "tests"), str(root)]
    told = {"paths": paths, "root": str(run.folder.parent), "ready": ready, "times": 4}
    scripts = [PROCESS.format(limit=limit, **told) for limit in (3, 5)]
    started = [subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE) for script in scripts]
    deadline = time.monotonic() + 120
    while not all(Path(f"{ready}{limit}").exists() for limit in (3, 5)) and time.monotonic() < deadline:
        time.sleep(0.05)
    Path(f"{ready}go").touch()
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()[-2000:]
