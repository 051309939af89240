"""Next-token divergence: 0 against itself, a ten-line reference, nothing paired or padded wrongly."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig
from tiny import breaks_at, tiny_model, tiny_tokenizer

from workbench.forgetting import divergence as module
from workbench.forgetting.changes import divergence_by_response
from workbench.forgetting.divergence import token_divergence, token_texts
from workbench.healing.adapters import lora_targets, new_adapter
from workbench.healing.records import RECORD
from workbench.models.layers import kept_layers
from workbench.pruning.removal import without_layers
from workbench.runs.variant import Variant

ANSWERS = ["The answer is 7.", "She sells 12 sea shells, and then 5 more: 17.", "Ja."]
PRUNED = Variant("pruned", "tiny", removed=(2, 4))


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def responses(**columns) -> pd.DataFrame:
    prompts = ["<|user|>How many?<|end|><|assistant|>", "<|user|>Tell me more.<|end|><|assistant|>", "Wo?"]
    frame = pd.DataFrame({"id": ["a", "b", "c"], "prompt": prompts, "response": ANSWERS})
    return frame.assign(finished=[True, False, True], **columns)


def measured(model, tokenizer, frame=None, variants=(PRUNED,), **options) -> pd.DataFrame:
    frame = responses() if frame is None else frame
    return token_divergence(model, tokenizer, frame, variants, progress=False, **options)


def reference(model, tokenizer, row, removed) -> np.ndarray:
    """KL and log-probabilities of one response, without batches, without padding, in float64."""
    prompt = tokenizer(row.prompt, add_special_tokens=False)["input_ids"]
    answer = tokenizer(row.response, add_special_tokens=False)["input_ids"] + [1] * row.finished
    ids, logs = torch.tensor([prompt + answer]), []
    for layers in ([], removed):
        with without_layers(model, layers), torch.no_grad():
            logits = model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        logs.append(logits.double().log_softmax(-1))
    p, q = logs
    own = [log[range(len(answer)), answer] for log in logs]
    return torch.stack([(p.exp() * (p - q)).sum(-1), *own]).numpy()


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "granite"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_it_is_the_reference_at_every_token_whatever_the_padding(architecture, side, tokenizer):
    model, tokenizer = tiny_model(architecture), tiny_tokenizer()
    tokenizer.padding_side = side
    found = measured(model, tokenizer)
    for row in responses().itertuples():
        part = found[found["id"] == row.id]
        expected = reference(model, tokenizer, row, PRUNED.removed)
        assert list(part["position"]) == list(range(expected.shape[1]))
        values = part[["kl", "base_logprob", "logprob"]].to_numpy().T
        assert np.abs(values - expected).max() < 2e-5
    assert found["kl"].max() > 0.01
    assert not found["same_choice"].all()


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "qwen3"])
def test_the_base_against_itself_is_exactly_zero(architecture, tokenizer):
    found = measured(tiny_model(architecture), tokenizer, variants=[Variant("base", "tiny")])
    assert (found["kl"] == 0).all()
    assert (found["base_logprob"] == found["logprob"]).all()
    assert found["same_choice"].all()


def test_batches_change_nothing_and_logits_stay_few(tokenizer, monkeypatch):
    model = tiny_model()
    whole = measured(model, tokenizer)
    pd.testing.assert_frame_equal(measured(model, tokenizer, max_tokens=1), whole, atol=1e-5, rtol=0)
    most = []
    original = module._one_text
    monkeypatch.setattr(module, "LOGITS", 60 * 331)
    monkeypatch.setattr(module, "_one_text", lambda *a: most.append(a[0].numel()) or original(*a))
    measured(model, tokenizer)
    assert max(most) <= 60 * 331


def test_low_precision_is_compared_in_float32(tokenizer):
    model = tiny_model().to(torch.bfloat16)
    found = measured(model, tokenizer, variants=[Variant("base", "tiny"), PRUNED])
    assert (found.query("variant == 'base'")["kl"] == 0).all()
    assert np.isfinite(found["kl"]).all()


def test_tokens_are_the_response_and_the_end_mark(tokenizer):
    found = measured(tiny_model(), tokenizer)
    texts = found.groupby("id")["token"].agg("".join)
    assert texts.to_dict() == {"a": ANSWERS[0] + "<|end|>", "b": ANSWERS[1], "c": ANSWERS[2] + "<|end|>"}


@pytest.mark.parametrize(("change", "other"), [([0, 0, 0], 0), ([0, 1, 0], 1), ([2, -1, 3], 3)])
def test_responses_that_are_tokenised_otherwise_than_they_were_generated_are_counted(
    tokenizer, change, other
):
    lengths = np.array([len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ANSWERS])
    found = measured(tiny_model(), tokenizer, responses(n_tokens=lengths + change))
    assert found.attrs["tokenised_again"] == {"responses": 3, "other_lengths": other}
    assert divergence_by_response(found).attrs == found.attrs


def test_lengths_that_are_not_known_are_not_said_to_agree(tokenizer):
    assert measured(tiny_model(), tokenizer).attrs["tokenised_again"]["other_lengths"] is None


@pytest.mark.parametrize("text", ["naïve café", "日本語 🙂 ok", "a  b\n\tc", "<|user|>x", "<script>", ""])
def test_token_texts_join_to_the_text(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = token_texts(tokenizer, ids)
    assert "".join(pieces) == text
    assert len(pieces) == len(ids)


def test_several_variants_share_the_weights_and_leave_them(tokenizer, tmp_path):
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    healed = healed_variant(model, tmp_path)
    found = measured(model, tokenizer, variants=[PRUNED, healed], run=tmp_path)
    assert list(dict.fromkeys(found["variant"])) == ["pruned", "healed"]
    both = found.groupby("variant")["kl"].mean()
    assert both["pruned"] != both["healed"]
    pd.testing.assert_frame_equal(measured(model, tokenizer), found.query("variant == 'pruned'"))
    assert kept_layers(model) == tuple(range(7))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def healed_variant(model, folder) -> Variant:
    """Return a variant with a random adapter in the form that heal writes it."""
    with without_layers(model, PRUNED.removed):
        config = LoraConfig(r=2, init_lora_weights=False, **lora_targets(model, "ffn"))
        with new_adapter(model, config, seed=0) as wrapper:
            wrapper.save_pretrained(str(folder / "sft"))
        record = {"kept_layers": list(kept_layers(model))}
    (folder / "sft" / RECORD).write_text(json.dumps(record))
    return Variant("healed", "tiny", removed=PRUNED.removed, adapter="sft")


def test_an_adapter_of_other_layers_is_refused_before_any_pass(tokenizer, tmp_path, monkeypatch):
    model = tiny_model()
    healed_variant(model, tmp_path)
    wrong = Variant("wrong", "tiny", removed=(1,), adapter="sft")
    monkeypatch.setattr(module, "_last_states", None)
    with pytest.raises(ValueError, match=r"trained on \[0, 1, 3, 5, 6\], the model has"):
        measured(model, tokenizer, variants=[wrong], run=tmp_path)
    with pytest.raises(ValueError, match="not an adapter that heal wrote"):
        measured(model, tokenizer, variants=[Variant("none", "tiny", adapter="nowhere")], run=tmp_path)


@pytest.mark.parametrize(
    ("change", "variants", "message"),
    [
        (lambda f: f.drop(columns="prompt"), (PRUNED,), r"missing \['prompt'\]"),
        (lambda f: f.head(0), (PRUNED,), "at least one row"),
        (lambda f: f.assign(id="a"), (PRUNED,), "each id once, got 'a' again"),
        (
            lambda f: f.assign(response=["x", None, "y"]),
            (PRUNED,),
            "a text for every id, 'b' has none",
        ),
        (lambda f: f.assign(response="", finished=False), (PRUNED,), "id 'a' has none"),
        (lambda f: f.assign(response="long " * 300), (PRUNED,), "must fit into the model's 256 tokens"),
        (lambda f: f.assign(prompt=" "), (PRUNED,), "prompts must be texts that are not empty"),
        (lambda f: f, (), "variants must have at least one"),
        (lambda f: f, (PRUNED, PRUNED), "each name once, got 'pruned' again"),
    ],
)
def test_bad_input_is_one_clear_line(tokenizer, change, variants, message, monkeypatch):
    monkeypatch.setattr(module, "_last_states", None)
    with pytest.raises(ValueError, match=message) as error:
        measured(tiny_model(), tokenizer, change(responses()), variants)
    assert "\n" not in str(error.value)


def test_responses_are_summed_up_one_by_one():
    tokens = pd.DataFrame(
        {
            "variant": ["v"] * 5,
            "id": ["a", "a", "a", "b", "b"],
            "position": [0, 2, 1, 0, 1],
            "kl": [0.0, 3.0, 0.3, 1.0, 2.0],
            "same_choice": [True, True, False, False, True],
        }
    )
    found = divergence_by_response(tokens).set_index("id")
    assert found["kl"].to_dict() == pytest.approx({"a": 1.1, "b": 1.5})
    assert found["largest"].to_dict() == {"a": 3.0, "b": 2.0}
    assert found["agrees_for"].to_dict() == {"a": 1, "b": 0}
    assert found["n_tokens"].to_dict() == {"a": 3, "b": 2}
    with pytest.raises(ValueError, match=r"missing \['kl'\]"):
        divergence_by_response(tokens.drop(columns="kl"))
    with pytest.raises(ValueError, match="at least one row"):
        divergence_by_response(tokens.head(0))


def test_logits_that_are_no_numbers_are_no_divergence(tokenizer):
    token = tokenizer(ANSWERS[1])["input_ids"][-1]
    with pytest.raises(ValueError, match="logits are not finite on these texts: its weight"):
        measured(breaks_at(tiny_model("llama"), token), tokenizer)
