"""Merged variants: the ends to the bit, only touched tensors, saved, reloaded, evaluated like any other."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from healed import logits, make_examples, same_state, state
from healed import run as heal_run
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_tokenizer

from workbench.healing.adapters import as_variant, merge_adapter_
from workbench.healing.config import HealingConfig
from workbench.merging.slerp import merged_pair
from workbench.merging.variants import merge_variants
from workbench.pruning.removal import prune_, without_layers
from workbench.pruning.saving import save_pruned
from workbench.runs.variant import Variant

REMOVED = [2, 3]


def healed_ends(model, run, targets=("all-linear", "all-linear"), removed=REMOVED):
    """Train two adapters of the pruned model, on other words and from other seeds."""
    names = ("sft", "distilled")
    with without_layers(model, removed):
        for seed, name in enumerate(names):
            config = HealingConfig(
                rank=3, learning_rate=5e-2, max_steps=2, batch_size=4, max_length=64, seed=seed,
                targets=targets[seed],
            )  # fmt: skip
            options = {"config": config, "response": ["reference", "response"][seed]}
            heal_run(model, tiny_tokenizer(), make_examples(8), run.path(f"adapters/{name}"), **options)
    return [
        run.save_variant(Variant(name, "tiny", removed=removed, adapter=f"adapters/{name}")) for name in names
    ]


def merged_whole(model, run, variant):
    """Return the variant's state dict after merging its adapter for good."""
    return merge_adapter_(
        prune_(copy.deepcopy(model), variant.removed), run.path(variant.adapter)
    ).state_dict()


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3", "gpt2", "gpt-neox"])
def test_a_merge_is_slerp_of_the_whole_tensors_and_the_ends_are_the_ends(architecture, run):
    model = tiny_model(architecture)
    before = state(model)
    first, second = healed_ends(model, run)
    merges = merge_variants(model, first, second, [0, 0.3, 1], run=run)
    assert same_state(model, before)
    ends = [merged_whole(model, run, one) for one in (first, second)]
    for merge, t in zip(merges, (0, 0.3, 1), strict=True):
        with as_variant(model, merge, run=run):
            found = state(model)
        for name, tensor in found.items():
            a, b = ends[0][name], ends[1][name]
            if t in (0, 1) or torch.equal(a, b):
                assert torch.equal(tensor, b if t == 1 else a), name
            else:
                torch.testing.assert_close(tensor, merged_pair(a, b, t).tensor, atol=1e-6, rtol=1e-5)
    assert same_state(model, before)
    touched = load_file(run.path(merges[1].adapter) / "tensors.safetensors")
    changed = {name for name in ends[0] if not torch.equal(ends[0][name], prune_state(model)[name])}
    assert set(touched) == changed & set(touched) and len(touched) < len(ends[0])
    frame = run.read("merged/merged-slerp-0.3.csv")
    assert set(frame["tensor"]) == set(touched)
    name = frame["tensor"].iloc[0]
    a, b = (end[name].double().numpy().ravel() for end in ends)
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert frame["angle"].iloc[0] == pytest.approx(np.degrees(np.arccos(cosine)), abs=1e-3)
    assert frame["linear"].iloc[0] == (cosine > 0.9995)


def prune_state(model):
    return prune_(copy.deepcopy(model), REMOVED).state_dict()


def test_a_merge_is_saved_reloaded_merged_again_and_kept_once(run, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM

    model = tiny_model("qwen3")
    first, second = healed_ends(model, run, targets=(["q_proj"], ["v_proj", "q_proj"]))
    (merge,) = merge_variants(model, first, second, [0.5], run=run)
    with as_variant(model, merge, run=run):
        wanted = logits(model)
    names = set(load_file(run.path(merge.adapter) / "tensors.safetensors"))
    assert {name.split(".")[-2] for name in names} == {"q_proj", "v_proj"}
    whole = merge_adapter_(prune_(copy.deepcopy(model), REMOVED), run.path(merge.adapter))
    save_pruned(whole, tiny_tokenizer(), tmp_path / "saved")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")), wanted)
    (again,) = merge_variants(model, merge, second, [0.5], run=run, name="twice")
    with as_variant(model, again, run=run):
        assert not torch.equal(logits(model), wanted)
    stamp = run.path(merge.adapter).joinpath("tensors.safetensors").stat().st_mtime_ns
    assert merge_variants(model, first, second, [0.5], run=run) == [merge]
    assert run.path(merge.adapter).joinpath("tensors.safetensors").stat().st_mtime_ns == stamp
    assert run.variant(merge.name) == merge


def test_linear_and_the_task_vectors_are_peft_s(run):
    """Linear is adding both adapters by weight (peft's ``cat``), task arithmetic adding them in full.

    TIES of peft is a mean where each has the weight 1.
    """
    from peft import PeftModel

    model = tiny_model("llama")
    first, second = healed_ends(model, run)
    made = {
        method: load_file(
            run.path(merge_variants(model, first, second, [t], run=run, method=method)[0].adapter)
            / "tensors.safetensors"
        )
        for method, t in (("linear", 0.25), ("task_arithmetic", 0.25), ("ties", 0.5), ("dare", 0.25))
    }
    pruned = prune_(copy.deepcopy(model), REMOVED)
    base = {name: one.clone() for name, one in pruned.state_dict().items()}
    wrapper = PeftModel.from_pretrained(pruned, str(run.path(first.adapter)), adapter_name="a")
    wrapper.load_adapter(str(run.path(second.adapter)), "b")
    full = min(min(one.shape) for one in made["ties"].values())
    ways = {"linear": ([0.75, 0.25], {"combination_type": "cat"})}
    ways["task_arithmetic"] = ([1.5, 0.5], {"combination_type": "cat"})
    ways["ties"] = ([1.0, 1.0], {"combination_type": "ties_svd", "svd_rank": full, "density": 0.5})
    for method, (weights, options) in ways.items():
        wrapper.add_weighted_adapter(["a", "b"], weights, method, **options)
        for path, module in wrapper.get_base_model().named_modules():
            if hasattr(module, "lora_A"):
                delta = module.get_delta_weight(method)
                if method == "ties" and min(delta.shape) > full:
                    continue  # peft's would be cut to the rank
                name = f"{path}.weight"
                torch.testing.assert_close(made[method][name], base[name] + delta, atol=2e-5, rtol=1e-4)
    name = "model.layers.0.mlp.up_proj.weight"
    assert (made["dare"][name] == base[name]).float().mean() == pytest.approx(0.25, abs=0.08)


@pytest.mark.parametrize("t", [0, 0.25, 0.5, 1])
def test_ties_is_the_weighted_mean_of_those_that_agree_in_sign(run, t):
    """Yadav et al. 2023, written out; the change of two adapters that are one is that change."""
    model = tiny_model("llama")
    first, second = healed_ends(model, run)

    def changes(one, other, density):
        how = {"method": "ties", "density": density, "name": f"{one.name}-{other.name}-{density}"}
        (merge,) = merge_variants(model, one, other, [t], run=run, **how)
        return load_file(run.path(merge.adapter) / "tensors.safetensors")

    base = {name: one.numpy() for name, one in prune_(copy.deepcopy(model), REMOVED).state_dict().items()}
    of = {one.name: changes(one, one, 1.0) for one in (first, second)}
    merged = changes(first, second, 0.5)
    for one in (first, second):
        whole = merge_adapter_(prune_(copy.deepcopy(model), REMOVED), run.path(one.adapter)).state_dict()
        for name, tensor in of[one.name].items():
            torch.testing.assert_close(tensor, whole[name], atol=1e-6, rtol=1e-5)
    for name, found in merged.items():
        trimmed = []
        for end in of.values():
            change = end[name].numpy() - base[name]
            least = np.sort(np.abs(change), axis=None)[-int(change.size * 0.5)]
            trimmed.append(np.where(np.abs(change) >= least, change, 0))
        heavy = np.array([1 - t, t])[:, None, None] * trimmed
        sign = np.where(heavy.sum(0) >= 0, 1, -1)
        agrees = (np.sign(heavy) == sign) * np.array([1 - t, t])[:, None, None]
        total = agrees.sum(0)
        mean = (agrees * trimmed).sum(0) / np.where(total > 0, total, 1)
        np.testing.assert_allclose(found.numpy() - base[name], mean, atol=1e-6)


def test_a_list_over_many_layers_has_a_short_name_of_its_own(run):
    model = tiny_model("llama", num_hidden_layers=32)
    first, second = healed_ends(model, run)
    long = [round(0.25 + 0.01 * k, 2) for k in range(30)]
    other = [*long[:14], 0.9, *long[15:]]
    one, two = merge_variants(model, first, second, [long, other], run=run)
    assert one.name.startswith("merged-slerp-0.25_to_0.54_of_30-") and one.name[:-8] == two.name[:-8]
    assert one.name != two.name and len(one.name) < 60 and "0.25_0.26_" in one.note
    assert merge_variants(model, first, second, [long], run=run) == [one]
    assert merge_variants(model, first, second, [0.5], run=run)[0].name == "merged-slerp-0.5"


def test_what_cannot_be_merged_is_refused_before_anything_is_made(run):
    model = tiny_model("llama")
    first, second = healed_ends(model, run)
    other = Variant("other", "tiny", removed=[3, 4], adapter=second.adapter)
    with pytest.raises(ValueError, match=r"one pruning, got \(2, 3\) and \(3, 4\)"):
        merge_variants(model, first, other, run=run)
    with pytest.raises(ValueError, match="of one model"):
        merge_variants(model, first, Variant("x", "else", removed=REMOVED), run=run)
    with pytest.raises(ValueError, match=r"t must be a number in \[0, 1\]"):
        merge_variants(model, first, second, [0.5, 1.5], run=run)
    with pytest.raises(ValueError, match="method must be"):
        merge_variants(model, first, second, run=run, method="mean")
    with pytest.raises(ValueError, match="density must be"):
        merge_variants(model, first, second, run=run, method="ties", density=0)
    with pytest.raises(ValueError, match="at least one t"):
        merge_variants(model, first, second, [], run=run)
    with pytest.raises(ValueError, match="differ in their first six digits"):
        merge_variants(model, first, second, [0.1234567, 0.1234568], run=run)
    bare = [Variant(name, "tiny", removed=REMOVED) for name in "ab"]
    with pytest.raises(ValueError, match="must have adapters"):
        merge_variants(model, *bare, [0.5], run=run)
    assert not list(run.folder.glob("merged/*/tensors.safetensors"))
    poison = run.path("adapters/bad")
    copy_folder(run.path(second.adapter), poison, torch.nan)
    bad = Variant("bad", "tiny", removed=REMOVED, adapter="adapters/bad")
    with pytest.raises(ValueError, match="must hold finite numbers"):
        merge_variants(model, first, bad, [0.5], run=run)


def copy_folder(source, target, value):
    import shutil

    shutil.copytree(source, target)
    tensors = load_file(target / "adapter_model.safetensors")
    name = min(tensors)
    tensors[name][0, 0] = value
    save_file(tensors, target / "adapter_model.safetensors", {"format": "pt"})
    record = json.loads((target / "healing.json").read_text())
    record.pop("sha256")
    (target / "healing.json").write_text(json.dumps(record))
