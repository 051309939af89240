"""SLERP of weights: laws, an independent numpy reference with mergekit's rules, and what is refused."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from tiny import tiny_model

from workbench.merging.slerp import checked_t, merged_pair, place_of, slerp
from workbench.pruning.removal import prune_


def reference(t, v0, v1, threshold=0.9995, norms="mergekit"):
    """SLERP as mergekit does it: the angle from unit vectors, the weights on the vectors as they are."""
    v0, v1 = (np.asarray(v, dtype=np.float64) for v in (v0, v1))
    n0, n1 = np.linalg.norm(v0), np.linalg.norm(v1)
    dot = np.sum((v0 / n0) * (v1 / n1))
    if abs(dot) > threshold:
        return (1 - t) * v0 + t * v1
    theta = np.arccos(dot)
    s0, s1 = np.sin(theta - theta * t) / np.sin(theta), np.sin(theta * t) / np.sin(theta)
    if norms == "mergekit":
        return s0 * v0 + s1 * v1
    return ((1 - t) * n0 + t * n1) * (s0 * v0 / n0 + s1 * v1 / n1)


def pair(angle, lengths=(1.0, 1.0), shape=(12, 7), seed=0):
    """Return two random tensors at an angle, of given lengths."""
    rng = np.random.default_rng(seed)
    u, w = rng.normal(size=(2, np.prod(shape)))
    u /= np.linalg.norm(u)
    w -= (w @ u) * u
    w /= np.linalg.norm(w)
    v = np.cos(angle) * u + np.sin(angle) * w
    return tuple(torch.tensor(x * n).float().reshape(shape) for x, n in zip((u, v), lengths, strict=True))


@pytest.mark.parametrize("angle", [0.0, 0.01, 0.031, 0.0317, 0.4, 1.5, 3.0, np.pi - 0.01])
@pytest.mark.parametrize("norms", ["linear", "mergekit"])
def test_agrees_with_the_reference(angle, norms):
    a, b = pair(angle, (3.0, 5.0))
    for t in (0.1, 0.5, 0.9):
        found = slerp(a, b, t, norms=norms).numpy()
        np.testing.assert_allclose(found, reference(t, a, b, norms=norms), atol=2e-6, rtol=2e-5)


def test_the_two_conventions_are_one_where_both_are_equally_long_and_differ_elsewhere():
    a, b = pair(1.0, (2.0, 2.0))
    torch.testing.assert_close(slerp(a, b, 0.3), slerp(a, b, 0.3, norms="mergekit"), atol=1e-6, rtol=1e-5)
    a, b = pair(1.0, (1.0, 4.0))
    assert float(slerp(a, b, 0.5).norm()) == pytest.approx(2.5, rel=1e-5)
    assert float(slerp(a, b, 0.5, norms="mergekit").norm()) != pytest.approx(2.5, rel=1e-2)


def test_the_angle_to_the_first_end_grows_linearly():
    a, b = pair(1.2, (1.0, 2.0))
    for t in (0.25, 0.5, 0.75):
        mixed = slerp(a, b, t)
        cosine = float((mixed * a).sum() / mixed.norm() / a.norm())
        assert np.arccos(cosine) == pytest.approx(1.2 * t, abs=1e-4)
    found = merged_pair(a, b, 0.5)
    assert found.angle == pytest.approx(np.degrees(1.2), abs=1e-3) and not found.linear
    assert merged_pair(a, a + 1e-5, 0.5).linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_ends_are_the_ends_to_the_bit(dtype):
    a, b = (one.to(dtype) for one in pair(0.7, (1.0, 9.0)))
    for t, end in ((0, a), (0.0, a), (1, b), (1.0, b)):
        found = slerp(a, b, t)
        assert torch.equal(found, end) and found.dtype == dtype and found.data_ptr() != end.data_ptr()
    zero = torch.zeros_like(a)
    torch.testing.assert_close(slerp(zero, b, 0.5), b / 2)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3", "gpt2", "gpt-neox"])
def test_state_dicts_models_and_folders_give_the_same_tensor_by_tensor(architecture, tmp_path):
    first, second = (prune_(tiny_model(architecture, seed=seed), [2, 3]) for seed in (0, 1))
    for name, model in (("a", first), ("b", second)):
        model.save_pretrained(tmp_path / name)
    a, b = first.state_dict(), second.state_dict()
    found = slerp(a, b, 0.25)
    assert found.keys() == a.keys()
    for name, tensor in found.items():
        if tensor.is_floating_point() and tensor.abs().sum():
            wanted = reference(0.25, a[name], b[name], norms="linear")
            np.testing.assert_allclose(tensor.numpy(), wanted, atol=1e-6, rtol=1e-4)
    of_models = slerp(first, second, 0.25)
    assert all(torch.equal(found[name], of_models[name]) for name in found)
    of_files = slerp(str(tmp_path / "a"), str(tmp_path / "b"), 0.25)
    same = found.keys() & of_files.keys()  # GPT-NeoX writes its head under another name
    assert len(same) >= len(of_files) - 1
    assert all(torch.equal(found[name], of_files[name]) for name in same)
    merged = copy.deepcopy(first)
    merged.load_state_dict(found)
    ids = torch.arange(9)[None]
    for t, end in ((0, first), (1, second)):
        merged.load_state_dict(slerp(first, second, t))
        assert torch.equal(merged(input_ids=ids).logits, end(input_ids=ids).logits)


def test_a_list_of_t_goes_over_the_layers():
    model, other = tiny_model("llama"), tiny_model("llama", seed=1)
    found = slerp(model, other, [0.0, 1.0])
    a, b = model.state_dict(), other.state_dict()
    for name in ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"):
        assert torch.equal(found[name], a[name])
    for name in ("model.layers.6.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"):
        assert torch.equal(found[name], b[name])
    name = "model.layers.3.mlp.up_proj.weight"
    torch.testing.assert_close(found[name], slerp(a[name], b[name], 0.5))
    assert place_of("transformer.h.6.mlp.c_fc.weight", 7) == 1.0
    assert place_of("embed_out.weight", 7) == 1.0 and place_of("gpt_neox.embed_in.weight", 7) == 0.0
    assert checked_t([0.2])(0.9) == 0.2
    tied = slerp(tiny_model("llama-tied"), tiny_model("llama-tied", seed=1), [0.0, 1.0])
    assert torch.equal(tied["lm_head.weight"], tied["model.embed_tokens.weight"])


@pytest.mark.parametrize("t", [-0.1, 1.1, float("nan"), "half", True, [], [0.5, 2], None])
def test_another_t_is_refused(t):
    with pytest.raises(ValueError, match=r"t must be a number in \[0, 1\]"):
        slerp(torch.ones(2), torch.ones(2), t)


def test_what_does_not_match_is_named():
    a = {"x": torch.ones(2), "y": torch.ones(3)}
    with pytest.raises(ValueError, match="y is in one alone"):
        slerp(a, {"x": torch.ones(2)})
    with pytest.raises(ValueError, match=r"y must have one shape in both, it has \(3,\) and \(4,\)"):
        slerp(a, a | {"y": torch.ones(4)})
    with pytest.raises(ValueError, match="y of the second must hold finite numbers"):
        slerp(a, a | {"y": torch.full((3,), torch.nan)})
    with pytest.raises(ValueError, match="whole numbers that differ"):
        slerp({"x": torch.arange(3)}, {"x": torch.arange(3) + 1})
    with pytest.raises(ValueError, match=r"one pruning, they keep layers \[0, 1, 4, 5, 6\]"):
        slerp(prune_(tiny_model(), [2, 3]), prune_(tiny_model(), [3, 4]))
    with pytest.raises(ValueError, match="norms must be"):
        slerp(torch.ones(2), torch.ones(2), norms="none")
    with pytest.raises(ValueError, match="got int"):
        slerp(1, 2)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_a_tensor_in_many_pieces_is_the_tensor_in_one(monkeypatch, t):
    a, b = torch.randn(7, 11), torch.randn(7, 11)
    whole = slerp(a, b, t)
    monkeypatch.setattr("workbench.merging.slerp._PIECE", 8)
    torch.testing.assert_close(slerp(a, b, t), whole, rtol=1e-6, atol=1e-6)
    assert slerp(a.T, b.T, t).shape == (11, 7)


def test_a_tensor_that_is_zero_stands_at_a_right_angle_as_in_mergekit():
    b = torch.tensor([3.0, 4.0])
    found = slerp(torch.zeros(2), b, 0.25, norms="mergekit")
    torch.testing.assert_close(found, b * math.sin(math.pi / 8))
    torch.testing.assert_close(slerp(torch.zeros(2), b, 0.25), b * 0.25)
