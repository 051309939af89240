"""Surgery is exact, whatever the architecture: in memory, with a cache, reloaded; and it is taken back."""

from __future__ import annotations

import copy
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from skipping import skipping
from tiny import CONFIGS, LAYERS, MORE, tiny_model, tiny_tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from workbench.models.layers import decoder_layers, kept_layers, layer_container, number_of_layers, unwrap
from workbench.pruning import removal as pruning
from workbench.pruning.removal import check_prunable, prune_, without_layers
from workbench.pruning.saving import save_pruned

TOKENIZER = tiny_tokenizer()
TEXTS = ["The dog and the cat went home by the river, and then they all went to town again.", "Anna has 12"]
CUTS = [(2, 3), (0, 4, 6)]  # a block, and a scattered set with the first and the last layer
NEW_TOKENS = 6


def batch(side: str = "left") -> dict[str, Tensor]:
    return dict(TOKENIZER(TEXTS, return_tensors="pt", padding=True, padding_side=side))


@torch.no_grad()
def logits(model: nn.Module, *, use_cache: bool = False, side: str = "left") -> Tensor:
    inputs = batch(side)
    return model(**inputs, use_cache=use_cache).logits[inputs["attention_mask"].bool()]


@torch.no_grad()
def logits_in_two_parts(model: nn.Module) -> Tensor:
    inputs = batch()
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    first = model(input_ids=ids[:, :-5], attention_mask=mask[:, :-5], use_cache=True)
    rest = model(
        input_ids=ids[:, -5:], attention_mask=mask, past_key_values=first.past_key_values, use_cache=True
    )
    return torch.cat([first.logits, rest.logits], dim=1)[mask.bool()]


def generated(model: Any, **options: Any) -> Tensor:
    options = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS} | options
    return model.generate(**batch(), pad_token_id=0, **options)[:, -NEW_TOKENS:]


@torch.no_grad()
def greedy_without_cache(model: nn.Module) -> Tensor:
    """Generate the slow way: one whole forward pass a token."""
    inputs = batch()
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    takes_positions = "position_ids" in inspect.signature(unwrap(model).forward).parameters
    for _ in range(NEW_TOKENS):
        positions = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if takes_positions else {}
        last = model(input_ids=ids, attention_mask=mask, use_cache=False, **positions).logits[:, -1].float()
        last[:, TOKENIZER.eos_token_id] = -torch.inf
        ids = torch.cat([ids, last.argmax(-1, keepdim=True)], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return ids[:, -NEW_TOKENS:]


def settings(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the plain attributes of every module, indices of layers among them."""
    plain = (bool, int, float, str, list, tuple)
    return {
        name: {
            k: v
            for k, v in vars(module).items()
            if isinstance(v, plain) and k[0] != "_" and k != "name_or_path"
        }
        for name, module in model.named_modules()
    }


def state(model: nn.Module) -> dict[str, Any]:
    """Return all that surgery could leave behind: weights, configuration, indices, settings, module tree."""
    weights = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}
    return {"settings": settings(model), "weights": weights, "config": copy.deepcopy(vars(model.config))}


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before["settings"] == after["settings"]
    assert {**before["config"]} == {**after["config"]}
    assert list(before["weights"]) == list(after["weights"])
    for name, (address, tensor) in before["weights"].items():
        assert after["weights"][name][0] == address, f"{name} was copied"
        assert torch.equal(after["weights"][name][1], tensor), f"{name} changed"


# exactness ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_cut_is_exact_in_memory_with_cache_and_reloaded(
    architecture: str, cut: tuple[int, ...], tmp_path: Path
) -> None:
    model = tiny_model(architecture)
    with skipping(model, cut):
        expected, expected_tokens = logits(model), greedy_without_cache(model)
        expected_right = logits(model, side="right")
    before, whole = state(model), logits(model)
    assert not torch.allclose(expected, whole, atol=1e-2), "the layers must matter, or the test sees nothing"

    with without_layers(model, cut):
        assert number_of_layers(model) == LAYERS - len(cut)
        assert_exact(model, expected, expected_tokens)
        assert torch.equal(logits(model, side="right"), expected_right)
    assert_same(before, state(model))
    assert torch.equal(logits(model), whole)

    prune_(model, cut)
    assert_exact(model, expected, expected_tokens)
    model.save_pretrained(tmp_path / "plain")
    TOKENIZER.save_pretrained(tmp_path / "plain")
    # the tokenizer class that transformers picks for this architecture, as load_model does
    saved = save_pruned(model, AutoTokenizer.from_pretrained(tmp_path / "plain"), tmp_path / "saved")
    reloaded = AutoModelForCausalLM.from_pretrained(saved)
    assert_exact(reloaded, expected, expected_tokens)
    assert settings(model) == settings(reloaded)
    kept = tuple(sorted(set(range(LAYERS)) - set(cut)))
    assert kept_layers(model) == kept_layers(reloaded) == kept


def assert_exact(model: Any, expected: Tensor, expected_tokens: Tensor) -> None:
    assert torch.equal(logits(model), expected)
    assert torch.equal(logits(model, use_cache=True), expected)
    torch.testing.assert_close(logits_in_two_parts(model), expected, rtol=0, atol=2e-5)
    assert torch.equal(generated(model), expected_tokens)


def test_every_architecture_that_is_trusted_is_tested_here() -> None:
    tested = {layer_container(tiny_model(name))[0].config.model_type for name in CONFIGS}
    assert tested == pruning.VERIFIED


@pytest.mark.parametrize("architecture", ["deepseek-v3", "ernie-moe", "gpt-neo", "llama4", "gemma4"])
@pytest.mark.parametrize("cut", [(0, 2), (3,)], ids=str)
def test_places_of_layers_are_followed_where_the_configuration_can_say_them(
    architecture: str, cut: tuple[int, ...], tmp_path: Path
) -> None:
    model = tiny_model(architecture)
    with skipping(model, cut):
        expected, expected_tokens = logits(model), greedy_without_cache(model)
    with without_layers(model, cut):
        assert_exact(model, expected, expected_tokens)
        reloaded = AutoModelForCausalLM.from_pretrained(save_pruned(model, TOKENIZER, tmp_path / "saved"))
        assert settings(model) == settings(reloaded)
    assert_exact(reloaded, expected, expected_tokens)


@pytest.mark.parametrize(
    ("architecture", "overrides", "cut", "named"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, [1], "scale_attn_by_inverse_layer_idx=True"),
        ("gemma3n", {}, [6], "hidden_size_per_layer_input=4"),
        ("gemma3n", {}, [3], "num_kv_shared_layers=3"),
        ("minimax", {}, [0], "num_hidden_layers"),
        ("jamba", {}, [3], "attn_layer_period=3"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name_before_anything_changes(
    architecture: str, overrides: dict[str, Any], cut: list[int], named: str
) -> None:
    model = tiny_model(architecture, **overrides)
    before = state(model)
    for refuse in (
        lambda: prune_(model, cut),
        lambda: check_prunable(model, cut),
        lambda: without_layers(model, cut).__enter__(),
    ):
        with pytest.raises(ValueError, match=f"(?s)cannot be removed exactly.*{named}.*nothing was changed"):
            refuse()
    assert_same(before, state(model))


def test_an_unknown_forward_pass_that_counts_layers_is_found_by_trying_it_out() -> None:
    model = tiny_model("rwkv")  # rescales its states at every sixth layer, which no module shows
    with pytest.raises(ValueError, match="computes something else than with these layers passing on"):
        prune_(model, [3])
    assert number_of_layers(model) == LAYERS


def test_trying_out_leaves_no_trace() -> None:
    model = tiny_model("gpt-neo")
    model.train()
    before = state(model)
    with without_layers(model, [2]):
        pass
    assert_same(before, state(model))
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("architecture", "kind"), [("gemma3", "full_attention"), ("gemma2", "sliding_attention")]
)
def test_all_layers_of_one_kind_can_go(architecture: str, kind: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    cut = [i for i, name in enumerate(model.config.layer_types) if name == kind]
    with skipping(model, cut):
        expected, expected_tokens = logits(model), greedy_without_cache(model)
    prune_(model, cut)
    assert_exact(model, expected, expected_tokens)
    assert kind not in model.config.layer_types
    reloaded = AutoModelForCausalLM.from_pretrained(save_pruned(model, TOKENIZER, tmp_path / "saved"))
    assert_exact(reloaded, expected, expected_tokens)


def test_a_static_cache_follows() -> None:
    model = tiny_model("gemma3")
    options = {"cache_implementation": "static", "disable_compile": True}
    whole = generated(model, **options)
    with skipping(model, (2, 4)):
        expected = greedy_without_cache(model)
    with without_layers(model, [2, 4]):
        assert torch.equal(generated(model, **options), expected)
    assert torch.equal(generated(model, **options), whole)


def test_bfloat16_is_exact_too(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "whole")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.bfloat16)
    with skipping(model, (1, 2)):
        expected = logits(model)
    prune_(model, [1, 2])
    reloaded = AutoModelForCausalLM.from_pretrained(save_pruned(model, TOKENIZER, tmp_path / "saved"))
    assert reloaded.dtype == torch.bfloat16
    assert torch.equal(logits(reloaded), expected)


# taking back ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accident", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_the_model_is_whole_again_whatever_happened_inside(accident: type[BaseException]) -> None:
    model = tiny_model("gemma3")
    before, whole = state(model), logits(model)
    with pytest.raises(accident):
        look_and_fail(model, accident)
    assert_same(before, state(model))
    assert torch.equal(logits(model), whole)


def look_and_fail(model: nn.Module, accident: type[BaseException]) -> None:
    with without_layers(model, [1, 5]):
        logits(model, use_cache=True)
        raise accident


class Interrupted(dict):
    """A dictionary in which an interrupt falls when it is written to for the nth time."""

    def __init__(self, *args: Any, after: int) -> None:
        super().__init__(*args)
        self.left = after

    def __setitem__(self, key: str, value: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        super().__setitem__(key, value)


@pytest.mark.parametrize("after", range(1, 7))
def test_an_interrupt_between_two_changes_leaves_nothing_half_done(after: int) -> None:
    entries = Interrupted({"a": 1, "b": 2}, after=after)
    changes = [(entries, "a", 10), (entries, "b", 20), (entries, "c", 30)]
    try:
        with pruning._applied(changes):
            assert entries == {"a": 10, "b": 20, "c": 30}
    except KeyboardInterrupt:
        pass
    else:
        assert after == 6, "writing three entries and taking back two of them are five writes"
    assert entries == {"a": 1, "b": 2}


def test_uses_nest_and_go_by_original_index() -> None:
    model = tiny_model("qwen3")
    before = state(model)
    with skipping(model, (1, 2, 5)):
        expected = logits(model)
    with without_layers(model, [1, 2]):
        assert kept_layers(model) == (0, 3, 4, 5, 6)
        with without_layers(model, [5]):
            assert kept_layers(model) == (0, 3, 4, 6)
            assert torch.equal(logits(model, use_cache=True), expected)
            with pytest.raises(ValueError, match=r"by original index \(0, 3-4, 6\), got 5"):
                check_prunable(model, [5])
        assert kept_layers(model) == (0, 3, 4, 5, 6)
        with without_layers(model, []):
            assert kept_layers(model) == (0, 3, 4, 5, 6)
    assert_same(before, state(model))


def test_cutting_twice_is_cutting_once(tmp_path: Path) -> None:
    once, twice = prune_(tiny_model("gemma3"), [1, 2, 5]), prune_(tiny_model("gemma3"), [2, 5])
    saved = save_pruned(twice, TOKENIZER, tmp_path / "first")
    twice = prune_(AutoModelForCausalLM.from_pretrained(saved).eval(), [1])
    assert kept_layers(once) == kept_layers(twice) == (0, 3, 4, 6)
    assert twice.config.original_num_hidden_layers == LAYERS
    assert twice.config.layer_types == once.config.layer_types
    assert torch.equal(logits(once), logits(twice))
    with pytest.raises(ValueError, match=r"\(0, 3-4, 6\), got 1"):
        prune_(twice, [1])


def test_no_weight_is_copied() -> None:
    model = tiny_model("llama")
    parameters = {id(parameter) for parameter in model.parameters()}
    with without_layers(model, [3]):
        assert {id(parameter) for parameter in model.parameters()} < parameters


def test_prune_inside_a_look_is_refused() -> None:
    model = tiny_model("llama")
    with without_layers(model, [3]), pytest.raises(ValueError, match="must not be inside without_layers"):
        prune_(model, [4])
    prune_(model, [4])
    assert number_of_layers(model) == LAYERS - 1


def test_a_mode_set_inside_reaches_the_absent_layers() -> None:
    model = tiny_model("gpt2", resid_pdrop=0.5).train()
    with without_layers(model, [3]):
        model.eval()
    assert not any(module.training for module in model.modules())
    assert torch.equal(logits(model), logits(model)), "an absent layer kept its dropout"


def test_an_adapter_stays_on_its_layers() -> None:
    import peft

    model = tiny_model("llama")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear"))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    wrapped.eval()
    with skipping(wrapped, (2, 3)):
        expected, expected_tokens = logits(wrapped), greedy_without_cache(wrapped)
    before, whole = state(wrapped), logits(wrapped)
    with without_layers(wrapped, [2, 3]):
        assert_exact(wrapped, expected, expected_tokens)
    assert_same(before, state(wrapped))
    assert torch.equal(logits(wrapped), whole)


def test_an_adapter_trained_inside_does_not_reach_the_absent_layers() -> None:
    import peft

    model = tiny_model("llama")
    whole = logits(model)
    with without_layers(model, [2, 3]):
        wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
        assert sum("lora_A" in name for name, _ in wrapped.named_parameters()) == LAYERS - 2
        wrapped.unload()
    assert torch.equal(logits(model), whole)


# bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([7], r"layers must be among the 7 layers in the model, by original index \(0-6\), got 7"),
        ([-1, 2], r"\(0-6\), got -1"),
        ([3, 3], r"layers must name each layer once, got \[3, 3\]"),
        (range(7), "layers must leave at least one of the 7 layers, got all of them"),
        ([1.5], r"layers must be a list of layer indices such as \[3, 4\], got \[1.5\]"),
        (3, r"layers must be a list of layer indices such as \[3, 4\], got 3"),
        ("34", "layers must be a list of layer indices"),
    ],
)
def test_bad_layers_are_refused_in_one_line(layers: Any, message: str) -> None:
    model = tiny_model("llama")
    for refuse in (prune_, check_prunable, lambda m, cut: without_layers(m, cut).__enter__()):
        with pytest.raises(ValueError, match=message) as caught:
            refuse(model, layers)
        assert "\n" not in str(caught.value)
    assert number_of_layers(model) == LAYERS


def test_check_prunable_without_layers_tries_the_first_and_the_last() -> None:
    check_prunable(tiny_model("gemma3"))
    with pytest.raises(ValueError, match="scale_attn_by_inverse_layer_idx"):
        check_prunable(tiny_model("gpt2", scale_attn_by_inverse_layer_idx=True))


# saving ---------------------------------------------------------------------------------------------------


def test_a_saved_folder_says_where_it_comes_from(tmp_path: Path) -> None:
    model = prune_(tiny_model("llama"), [2, 3])
    folder = save_pruned(model, TOKENIZER, tmp_path / "new" / "saved")
    provenance = json.loads((folder / "pruning.json").read_text())
    assert provenance["kept_layers"] == [0, 1, 4, 5, 6]
    assert provenance["removed_layers"] == [2, 3]
    assert provenance["original_layers"] == LAYERS
    assert provenance["parameters"] == sum(p.numel() for p in model.parameters())
    assert provenance["reload_check"]["largest_logit_difference_in_std"] == 0
    assert "without 2 of its" in (folder / "README.md").read_text()
    assert json.loads((folder / "config.json").read_text())["kept_layers"] == [0, 1, 4, 5, 6]
    assert not list(folder.glob("*.bin"))
    assert [path.name for path in folder.parent.iterdir()] == ["saved"], "a temporary folder is left"


def test_saving_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = tiny_model("llama").train()
    before = state(model)
    with without_layers(model, [2, 3]):
        save_pruned(model, TOKENIZER, tmp_path / "saved")
    assert_same(before, state(model))
    assert model.training


def test_an_own_folder_is_replaced_and_a_foreign_one_is_not(tmp_path: Path) -> None:
    model = prune_(tiny_model("llama"), [2])
    (tmp_path / "empty").mkdir()
    save_pruned(model, TOKENIZER, tmp_path / "empty")
    save_pruned(prune_(model, [3]), TOKENIZER, tmp_path / "empty")
    assert kept_layers(AutoModelForCausalLM.from_pretrained(tmp_path / "empty")) == (0, 1, 4, 5, 6)

    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    for path in (tmp_path / "thesis", tmp_path / "thesis" / "chapter.txt"):
        with pytest.raises(ValueError, match="path must be"):
            save_pruned(model, TOKENIZER, path)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


def unfaithful_models() -> dict[str, tuple[nn.Module, str]]:
    scaled = tiny_model("llama")
    decoder_layers(scaled)[1].self_attn.scaling *= 2
    by_hand = tiny_model("llama")
    by_hand.model.layers = by_hand.model.layers[:4]
    by_hand.config.num_hidden_layers = 4
    by_hand.config.kept_layers = [0, 1, 2]
    not_finite = tiny_model("llama")
    with torch.no_grad():
        not_finite.lm_head.weight[3, 3] = torch.inf
    return {
        "a setting that the configuration does not hold": (scaled, "is another function"),
        "kept layers that are not those of the model": (by_hand, "kept_layers in the model's configuration"),
        "logits that are not finite": (not_finite, "logits are not finite"),
        "frequencies rounded in memory only": (tiny_model("llama").bfloat16(), "has another dtype in memory"),
        "no weights": (tiny_model("llama").to("meta"), "must have its weights in memory"),
    }


@pytest.mark.parametrize("case", list(unfaithful_models()))
def test_what_does_not_reload_as_the_same_function_is_not_saved(case: str, tmp_path: Path) -> None:
    model, message = unfaithful_models()[case]
    with pytest.raises(ValueError, match=message):
        save_pruned(model, TOKENIZER, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_reads_otherwise_after_a_reload_is_not_saved(tmp_path: Path) -> None:
    # transformers gives every Qwen2 model the Qwen2 way of splitting words, whatever tokenizer was saved
    with pytest.raises(ValueError, match="tokenizer reads a text in other tokens"):
        save_pruned(tiny_model("qwen2"), TOKENIZER, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_an_adapter_is_not_saved(tmp_path: Path) -> None:
    import peft

    model = tiny_model("llama")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    for one in (wrapped, model):
        with pytest.raises(ValueError, match="must have no adapter on it"):
            save_pruned(one, TOKENIZER, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_more_architectures_are_kept_apart() -> None:
    assert not set(MORE) & set(CONFIGS)


def test_the_demo_model_is_cut_exactly_and_comes_back(demo_model: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = demo_model
    ids = tokenizer("The old miller", return_tensors="pt").input_ids
    with torch.no_grad():
        whole = model(ids).logits
        with skipping(model, (3, 4)):
            expected = model(ids, use_cache=False).logits
        with without_layers(model, [3, 4]):
            assert torch.equal(model(ids).logits, expected)
            saved = save_pruned(model, tokenizer, tmp_path / "saved")
        assert torch.equal(model(ids).logits, whole)
        assert torch.equal(AutoModelForCausalLM.from_pretrained(saved)(ids).logits, expected)
