"""Speed: what is timed is the same output, and theory is set beside it from the same run."""

from __future__ import annotations

import pytest
from drafts import without
from tiny import tiny_model, tiny_tokenizer

import workbench as wb
from workbench.speculation import decoder
from workbench.speculation import speed as speed_module
from workbench.speculation.rule import theory_speed_up
from workbench.speculation.speed import draft_speed, speed_ups


def test_counts_and_theory_of_the_frame():
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    prompts = ["Anna has 12 apples.", "Ein Hund", "The answer"]
    settings = {"draft_lengths": [1, 3], "max_new_tokens": 20, "ends": False}
    speed = draft_speed(model, tokenizer, [without(2)], prompts, rows=2, **settings)
    assert speed[["draft_length", "rows"]].values.tolist() == [[1, 2], [1, 1], [3, 2], [3, 1]]
    assert (speed["tokens"] == 20 * speed["rows"]).all() and (speed["plain_rounds"] == 20).all()
    assert (speed[["seconds", "plain_seconds", "target_step", "draft_step", "verify_step"]] > 0).all(
        axis=None
    )
    found = speed_ups(speed)
    for row in found.itertuples():
        part = speed[speed["draft_length"] == row.draft_length]
        plain, own = part["plain_seconds"].sum(), part["seconds"].sum()
        assert row.speed_up == pytest.approx(plain / own, rel=0.2)
        assert row.tokens_per_call == pytest.approx(part["tokens"].sum() / part["rounds"].sum() / 1.5)
        assert row.theory == pytest.approx(
            float(theory_speed_up(row.tokens_per_call, row.draft_length, row.cost, row.verify))
        )
        assert row.ratio == pytest.approx(row.speed_up / row.theory)
    forced = draft_speed(model, tokenizer, [without(1, 2, 3)], prompts, forced=1.0, **settings)
    assert (forced["accepted"] == forced["proposed"]).all()
    with pytest.raises(ValueError, match="forced must be between 0 and 1"):
        draft_speed(model, tokenizer, [without(2)], prompts, forced=1.5)


@pytest.mark.parametrize("sampling", [{"top_p": 0.9}, {"top_k": 5}, {"temperature": 0.7}, {"min_p": 0.1}])
def test_what_is_timed_is_greedy_and_takes_no_sampling(sampling):
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    with pytest.raises(ValueError, match=f"times greedy decoding and takes no {next(iter(sampling))}"):
        wb.draft_speed(model, tokenizer, [without(2)], ["Anna"], **sampling)


def test_both_sides_run_on_the_same_decoder_and_nothing_is_prepared_while_it_is_timed(monkeypatch):
    """A prompt longer than the first, and a last batch of fewer rows, would have a round captured anew."""
    made, kinds, own, once = [], set(), decoder.recorded, speed_module._Bench._one
    monkeypatch.setattr(decoder, "recorded", lambda *args: made.append(args) or own(*args))

    def counted(bench, one, batch):
        kinds.add(type(one))
        before = len(made)
        told = once(bench, one, batch)
        return told | {"made": len(made) - before}

    monkeypatch.setattr(speed_module._Bench, "_one", counted)
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    prompts = ["Anna", "a dog " * 60, "Anna has 12 apples.", "Ein Hund " * 20, "The answer"]
    settings = {"draft_lengths": [2], "max_new_tokens": 6, "ends": False}
    for rows in (1, 2):
        speed = draft_speed(model, tokenizer, [without(2)], prompts, rows=rows, **settings)
        assert kinds == {decoder.DraftDecoder} and made and not speed["made"].any()
