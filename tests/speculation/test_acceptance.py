"""Acceptance: from one reading what decoding counts, ratios with intervals, and what is refused."""

from __future__ import annotations

from functools import partial

import pandas as pd
import pytest
from drafts import without
from tiny import breaks_at, tiny_model, tiny_tokenizer

from workbench.generation.prompts import end_tokens
from workbench.speculation.acceptance import acceptance, acceptance_by_position, draft_rounds
from workbench.speculation.cached import CachedDecoder
from workbench.speculation.decoder import Drafting
from workbench.speculation.inputs import read_prompts

PROMPTS = {"maths": ["Anna has 12 apples and gives 5 to Ben.", "The answer is"], "open": ["Ein kleiner Hund"]}


@pytest.fixture(scope="module")
def model():
    return tiny_model("qwen3")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def rounds(model, tokenizer):
    drafts = [without(2), without(4, 5, 6, name="first-4")]
    return draft_rounds(model, tokenizer, drafts, PROMPTS, max_new_tokens=30, progress=False)


def test_reading_gives_what_decoding_with_every_draft_and_length_counts(model, tokenizer, rounds):
    from workbench.speculation.views import draft_view

    asked = read_prompts(model, tokenizer, PROMPTS, 30)
    assert list(asked.kinds) == ["maths", "maths", "open"]
    with draft_view(model, without(2)) as draft:
        for k in (1, 2, 5, 8):
            how = Drafting(k, ends=end_tokens(model, tokenizer))
            with CachedDecoder(model, draft, how).ready() as decoder:
                found = decoder(asked.ids, 30)
            rows = rounds.query("draft == 'pruned' and draft_length == @k")
            assert rows["n_tokens"].tolist() == [len(one.tokens) for one in found]
            for name in ("accepted", "proposed"):
                assert rows[name].tolist() == [" ".join(map(str, getattr(one, name))) for one in found]


def test_ratios_are_over_all_prompts_with_intervals_around_them(rounds):
    table = acceptance(rounds)
    assert len(table) == 2 * 8 and (table["n"] == 3).all()
    for row in table.itertuples():
        part = rounds.query("draft == @row.draft and draft_length == @row.draft_length")
        sums = {
            name: sum(sum(map(int, text.split())) for text in part[name]) for name in ("accepted", "proposed")
        }
        calls = sum(len(text.split()) for text in part["accepted"])
        assert row.acceptance == pytest.approx(sums["accepted"] / sums["proposed"])
        assert row.accepted_length == pytest.approx(sums["accepted"] / calls)
        assert row.target_calls_per_token == pytest.approx(calls / part["n_tokens"].sum())
        assert row.tokens_per_call == pytest.approx(1 / row.target_calls_per_token)
        assert row.acceptance_low <= row.acceptance <= row.acceptance_high
    kinds = acceptance(rounds, by_kind=True)
    assert len(kinds) == 2 * 8 * 2 and kinds.groupby("kind")["n"].first().to_dict() == {"maths": 2, "open": 1}


def test_by_position_what_was_tried_and_taken():
    rounds = pd.DataFrame({"draft": "a", "kind": "", "prompt": [0, 1], "draft_length": 3, "n_tokens": 9})
    rounds = rounds.assign(accepted=["3 0 1", "2 2"], proposed=["3 3 3", "3 2"])
    found = acceptance_by_position(rounds)
    assert found["n"].tolist() == [5, 4, 2]
    assert found["acceptance"].tolist() == [pytest.approx(x) for x in (4 / 5, 3 / 4, 1 / 2)]
    with pytest.raises(ValueError, match="draft_length must be one of"):
        acceptance_by_position(rounds, draft_length=8)


def test_a_temperature_is_decoded_and_a_seed_repeats_it(model, tokenizer):
    options = {"max_new_tokens": 20, "temperature": 0.8, "draft_lengths": [2], "progress": False}
    first, again, other = (
        draft_rounds(model, tokenizer, [without(2)], PROMPTS, seed=seed, **options) for seed in (0, 0, 1)
    )
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)


@pytest.mark.parametrize("engine", ["static", "transformers"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_far_into_a_prompt_are_no_acceptance(
    engine, temperature, model, tokenizer
):
    broken, ids = breaks_at(tiny_model("qwen3"), 330), [[*range(45, 85), 330, 7]]
    settings = {"max_new_tokens": 3, "draft_lengths": [2], "engine": engine, "temperature": temperature}
    ask = partial(draft_rounds, progress=False, **settings)
    assert len(ask(broken, tokenizer, [without(2)], [list(range(5, 45))])) == 1
    with pytest.raises(ValueError, match="logits are not finite"):
        ask(broken, tokenizer, [without(2)], ids)
    with pytest.raises(ValueError, match="the draft's logits are not finite"):
        ask(model, tokenizer, {"other": broken}, ids)
