"""Drafting changes the speed and never the output: greedy token for token, sampled in distribution."""

from __future__ import annotations

import pytest
import torch
from drafts import LENGTHS, NEW, generated, prompts_of, without
from scipy.stats import chisquare
from tiny import tiny_model

from workbench.generation.prompts import context_length
from workbench.models.layers import decoder_forward
from workbench.speculation.cached import CachedDecoder, draft_decoder
from workbench.speculation.decoder import DraftDecoder, Drafting, counted
from workbench.speculation.views import draft_view, early_exit

STATIC = ["llama", "llama-tied", "qwen3", "gpt-neox", "olmo2"]
#: windows of 5 and 6 tokens, positions that are learned, softcapped attention
CACHED = ["gemma3", "mistral", "gemma2", "gpt2", "opt"]


@pytest.mark.parametrize("architecture", STATIC + CACHED)
def test_greedy_output_is_the_target_s_own(architecture):
    model, prompts = tiny_model(architecture), prompts_of()
    wanted = [generated(model, prompt) for prompt in prompts]
    kind = DraftDecoder if architecture in STATIC else CachedDecoder
    drafts = [without(2), early_exit(model, 4)] if architecture in ("llama", "gemma3") else [without(2)]
    for variant in drafts:
        with draft_view(model, variant) as draft:
            for k in (1, 3, 8):
                decoder = draft_decoder(model, draft, Drafting(k), slots=40)
                assert type(decoder) is kind
                with decoder.ready():
                    found = decoder(prompts, NEW)
                    assert [one.tokens for one in found] == wanted
                    # in another order and number, on what was prepared
                    assert [one.tokens for one in decoder(prompts[::-1], NEW)] == wanted[::-1]
                    assert decoder(prompts[2:3], NEW)[0].tokens == wanted[2]
                for one in found:
                    assert len(one.accepted) + sum(one.accepted) >= NEW
                    assert all(0 <= a <= p <= k for a, p in zip(one.accepted, one.proposed, strict=True))


def test_both_engines_count_the_same_and_the_target_as_its_own_draft_is_always_accepted():
    model, prompts = tiny_model("qwen3"), prompts_of()
    with draft_view(model, without(2)) as draft:
        for engine in (DraftDecoder, CachedDecoder):
            with engine(model, draft, Drafting(3)).ready() as decoder:
                found = decoder(prompts, NEW)
            if engine is DraftDecoder:
                first = found
    assert found == first
    with DraftDecoder(model, model, Drafting(4)).ready() as decoder:
        for one in decoder(prompts, NEW):
            assert one.accepted == one.proposed == [4, 4, 4, 4, 4]


def test_plain_decoding_and_blank_drafts_are_one_token_a_call():
    model, prompts = tiny_model("llama"), prompts_of()
    wanted = [generated(model, prompt) for prompt in prompts]
    for engine in (DraftDecoder, CachedDecoder):
        for how in (Drafting(0), Drafting(4, forced=0.0)):
            with engine(model, None, how).ready() as decoder:
                found = decoder(prompts, NEW)
            assert [one.tokens for one in found] == wanted
            assert all(one.accepted == [0] * NEW for one in found)


def test_an_end_token_ends_a_row_and_the_others_go_on():
    model, prompts = tiny_model("llama"), prompts_of()
    whole = [generated(model, prompt) for prompt in prompts]
    end = whole[0][5]
    wanted = [row[: row.index(end) + 1] if end in row else row for row in whole]
    assert len({len(row) for row in wanted}) > 1
    with draft_view(model, without(2)) as draft:
        for engine in (DraftDecoder, CachedDecoder):
            with engine(model, draft, Drafting(5, ends=[end])).ready() as decoder:
                assert [one.tokens for one in decoder(prompts, NEW)] == wanted
    assert counted([4, 5, 9, 7], [1, 1], 2, {9}).accepted == [1, 1]
    assert counted([4, 9, 9, 7], [3], 3, {9}).proposed == [2]


def test_a_rate_can_be_forced_seeded_by_prompt():
    model, prompts = tiny_model("llama"), prompts_of((5,) * 40)
    with draft_view(model, without(1, 2, 3)) as draft:
        how = Drafting(4, forced=0.8, seed=3)
        with DraftDecoder(model, draft, how).ready() as decoder:
            found = decoder(prompts, 60)
            assert decoder(prompts[7:9], 60, [7, 8]) == found[7:9]
        with CachedDecoder(model, draft, how).ready() as cached:
            assert [one.accepted for one in cached(prompts[:2], 60)] == [one.accepted for one in found[:2]]
    tried = sum(min(a + 1, p) for one in found for a, p in zip(one.accepted, one.proposed, strict=True))
    assert sum(sum(one.accepted) for one in found) / tried == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("engine", [DraftDecoder, CachedDecoder])
def test_sampled_output_has_the_target_s_distribution(engine):
    """The joint distribution of three tokens of a vocabulary of five, against all 125 computed exactly."""
    model = tiny_model("llama", vocab_size=5, pad_token_id=0, eos_token_id=1)
    prompt, temperature = [3, 1, 4], 1.3
    texts = [[a, b, c] for a in range(5) for b in range(5) for c in range(5)]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *text] for text in texts])).logits.double()
    chances = torch.log_softmax(logits[:, 2:5] / temperature, dim=-1)
    exact = chances.gather(2, torch.tensor(texts)[..., None]).sum(dim=(1, 2)).exp()
    assert float(exact.sum()) == pytest.approx(1)
    n = 6000 if engine is DraftDecoder else 700
    how = Drafting(2, temperature=temperature, seed=5)
    with draft_view(model, without(1, 2)) as draft, engine(model, draft, how).ready() as decoder:
        found = decoder([prompt] * n, 3)
    accepted = sum(sum(one.accepted) for one in found) / sum(sum(one.proposed) for one in found)
    assert 0.1 < accepted < 0.95  # both branches of the rule were taken
    seen = torch.zeros(125)
    for one in found:
        seen[texts.index(one.tokens)] += 1
    order = exact.argsort()
    bins = (exact[order].cumsum(0) * 20).long().clamp(max=19)  # of about equal chance
    observed = torch.zeros(20).index_add_(0, bins, seen[order])
    expected = torch.zeros(20).double().index_add_(0, bins, exact[order]) * n
    there = expected > 0
    assert chisquare(observed[there], expected[there]).pvalue > 0.001


def test_models_are_left_as_they_were_and_buffers_let_go():
    model = tiny_model("llama")
    before = model(input_ids=torch.arange(9)[None]).logits
    with draft_view(model, without(2)) as draft:
        decoder = DraftDecoder(model, draft, Drafting(2))
        with decoder.ready():
            decoder(prompts_of(LENGTHS), 4)
    assert decoder_forward(model).config._attn_implementation == "sdpa"
    assert torch.equal(model(input_ids=torch.arange(9)[None]).logits, before)
    assert not hasattr(decoder, "tokens") and not hasattr(decoder.target, "cache")


def test_a_model_that_cannot_is_refused_by_the_reason():
    model = tiny_model("gemma3")
    with pytest.raises(ValueError, match="window"):
        draft_decoder(model, None, Drafting(0), slots=40, engine="static")
    assert context_length(model) == 256
    with pytest.raises(ValueError, match="recurrent layers"):
        CachedDecoder(tiny_model("rwkv"), None, Drafting(0))
