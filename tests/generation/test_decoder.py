"""The static decoder: the tokens of ``generate``, for every architecture it says it can run."""

from __future__ import annotations

import pytest
import torch
from tiny import CONFIGS, MORE, tiny_model

from workbench.generation.decoder import StaticDecoder, why_not_static
from workbench.models.layers import decoder_forward, decoder_layers
from workbench.pruning.removal import without_layers

LENGTHS = (7, 1, 12, 5)
NEW = 10
#: what the configuration rules out; everything else must come out exact
REFUSED = {
    "bloom": "static cache",
    "falcon": "static cache",
    "gemma2": "eager",
    "gemma3": "window",
    "gemma3-multimodal": "window",
    "gemma3n": "window",
    "gemma4": "window",
    "gpt-neo": "static cache",
    "gpt2": "rotary",
    "jamba": "static cache",
    "llama4": "chunked_attention",
    "minimax": "static cache",
    "mistral": "window",
    "opt": "rotary",
    "qwen2-sliding": "window",
    "rwkv": "static cache",
}


def prompts_for(model, lengths=LENGTHS):
    vocabulary = model.get_input_embeddings().num_embeddings
    numbers = torch.Generator().manual_seed(1)
    return [torch.randint(vocabulary, (length,), generator=numbers).tolist() for length in lengths]


def generated(model, prompt, new=NEW):
    ids = torch.tensor([prompt])
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return output[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", sorted(CONFIGS | MORE))
def test_exact_or_refused_by_name(name):
    model = tiny_model(name)
    reason = why_not_static(model, 40)
    if name in REFUSED:
        assert reason is not None and REFUSED[name] in reason
        return
    assert reason is None
    prompts = prompts_for(model)
    wanted = [generated(model, prompt) for prompt in prompts]
    decoder = StaticDecoder(model, ends=[], pad=0)
    with decoder.ready():
        assert decoder(prompts, NEW) == wanted
        # what was prepared for one batch serves the next, shorter one
        assert decoder(prompts[::-1][:3], NEW) == wanted[::-1][:3]
        assert decoder([prompts[1]], NEW) == [wanted[1]]


def test_window_wide_enough_is_no_obstacle():
    model = tiny_model("mistral", sliding_window=64)
    assert why_not_static(model, 40) is None
    assert "window of 64" in (why_not_static(model, 65) or "")


def test_a_model_whose_cached_step_differs_is_refused():
    model = tiny_model("llama")
    layer = decoder_layers(model)[2]

    def off(module, args, kwargs, output):
        return output * 1.5 if output.shape[1] == 1 else output  # as wrong positions in a step would be

    handle = layer.register_forward_hook(off, with_kwargs=True)
    assert "are off by" in (why_not_static(model, 40) or "")
    handle.remove()
    assert why_not_static(model, 40) is None


def test_the_model_is_left_as_it_was():
    model = tiny_model("llama")
    forwards = [layer.forward for layer in decoder_layers(model)]
    before = model(input_ids=torch.arange(9)[None]).logits
    decoder = StaticDecoder(model, ends=[], pad=0)
    with decoder.ready():
        decoder(prompts_for(model), 3)
    with pytest.raises(RuntimeError, match="stop"), decoder.ready():
        raise RuntimeError("stop")
    assert decoder_forward(model).config._attn_implementation == "sdpa"
    assert [layer.forward for layer in decoder_layers(model)] == forwards
    assert torch.equal(model(input_ids=torch.arange(9)[None]).logits, before)
    assert not hasattr(decoder, "cache")


def test_layers_out_stay_out():
    model = tiny_model("qwen3")
    prompts = prompts_for(model)
    with without_layers(model, [2, 3]):
        wanted = [generated(model, prompt) for prompt in prompts]
        decoder = StaticDecoder(model, ends=[], pad=0)
        with decoder.ready():
            assert decoder(prompts, NEW) == wanted


def test_responses_end_and_are_padded_after_it():
    model = tiny_model("llama", seed=4)
    prompts = prompts_for(model)
    new = 30
    free = [generated(model, prompt, new) for prompt in prompts]
    # rows that end early, in the middle and never: those that have ended are dropped on the way
    ends = [free[0][3], free[2][17]]
    decoder = StaticDecoder(model, ends=ends, pad=0)
    with decoder.ready():
        found = decoder(prompts, new)
        assert decoder.rows < len(prompts)
        assert decoder(prompts, new) == found
    for tokens, wanted in zip(found, free, strict=True):
        place = next((k for k, token in enumerate(wanted) if token in ends), new)
        assert tokens[: place + 1] == wanted[: place + 1]
        assert set(tokens[place + 1 :]) <= {0}
