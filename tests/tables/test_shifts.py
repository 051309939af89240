"""What responses say: the frame's own numbers, computed here another way; ties are ties."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from frames import loss_frame
from scipy.stats import spearmanr

from workbench.tables import shifts

SIMILARITIES = {"near": [1.0, 0.9, 1.0, 0.8], "far": [0.2, 0.9, 0.1, 0.4], "tied": [1.0, 0.3, 0.2, 0.1]}


@pytest.fixture
def similarity() -> pd.DataFrame:
    parts = {name: pd.DataFrame({"id": range(4), "similarity": v}) for name, v in SIMILARITIES.items()}
    return pd.concat(parts, names=["variant"]).reset_index("variant")


def drawn(**means: float) -> pd.DataFrame:
    """Return similarities of forty prompts around these means."""
    rng = np.random.default_rng(0)
    parts = {name: np.clip(rng.normal(mean, 0.05, 40), 0, 1) for name, mean in means.items()}
    frames = {name: pd.DataFrame({"id": range(40), "similarity": values}) for name, values in parts.items()}
    return pd.concat(frames, names=["variant"]).reset_index("variant")


def test_similarities_are_compared_on_the_same_prompts():
    frame = drawn(near=0.9, far=0.3)
    text = shifts.similarity_reading(frame)
    means = frame.groupby("variant")["similarity"].mean()
    assert text.startswith(
        f"- closest to the unpruned model **near** (mean {means['near']:.3f}), "
        f"farthest **far** (mean {means['far']:.3f})"
    )
    assert f"on the same 40 prompts they differ by {means['near'] - means['far']:.3f} (95 % interval" in text
    assert shifts.similarity_reading(frame.assign(prompts="s*")).startswith(r"- *s\**: closest")


def test_variants_that_the_prompts_do_not_tell_apart_are_named_together():
    frame = drawn(near=0.9, far=0.3)
    copy = frame[frame["variant"] == "near"]
    rng = np.random.default_rng(1)
    for other in (copy, copy.assign(similarity=copy["similarity"] + rng.normal(0, 0.001, 40))):
        text = shifts.similarity_reading(pd.concat([frame, other.assign(variant="twin")]))
        assert (
            "closest to the unpruned model **near** and **twin** (means" in text
            or "**twin** and **near** (means" in text
        )
        assert "not told apart), farthest **far** (mean" in text
    same = pd.concat([copy, copy.assign(variant="twin")])
    assert shifts.similarity_reading(same).startswith("- no variant is clearly the closest: **near** (mean")
    assert "has mean" in shifts.similarity_reading(copy)


def test_prompts_with_a_response_that_the_encoder_cannot_read_are_left_out_and_counted():
    frame = drawn(near=0.9, far=0.3).assign(unseen=False)
    frame.loc[(frame["id"] == 3) & (frame["variant"] == "far"), ["similarity", "unseen"]] = [1.0, True]
    for reading in (shifts.similarity_reading, shifts.closest_reading):
        assert "39 prompts" in reading(
            frame
        ) and "(1 prompt left out: the encoder cannot read a response)" in reading(frame)
        assert "othing to compare (40 prompts left out" in reading(frame.assign(unseen=True))


def test_the_closest_share_counts_ties(similarity):
    text = shifts.closest_reading(similarity)
    assert "**near** on 100 %, **far** on 25 %, **tied** on 25 % of 4 prompts; on 2 of them" in text


def test_divergence_tells_where_a_variant_would_leave():
    rows = {"variant": ["a", "a", "a", "b"], "agrees_for": [2, 7, 9, 9], "n_tokens": 9}
    lines = shifts.divergence_reading(pd.DataFrame(rows)).splitlines()
    assert lines[0].endswith("in 2 of 3 responses, in the median after 4.5 tokens.")
    assert lines[1] == "- **b** would choose another next token in 0 of 1 response."


def test_texts_that_were_tokenised_otherwise_are_told():
    rows = pd.DataFrame({"variant": ["a"], "agrees_for": [2], "n_tokens": 9})
    assert "again" not in shifts.divergence_reading(rows)
    rows.attrs["tokenised_again"] = {"responses": 40, "other_lengths": 3}
    assert shifts.divergence_reading(rows).endswith(
        "again, 3 of 40 into another number of tokens than were generated."
    )


def test_the_shift_is_ranked_against_the_loss_where_there_are_tasks_enough():
    frame = loss_frame()
    lines = shifts.shift_reading(frame).splitlines()
    assert lines[0] == "- No correlation from 3 tasks, fewer than 10."
    assert "**SFT** on *b*, similarity 0.45, lost +0.05" in lines[1]
    assert "**pruned** on *b*, similarity 0.95, lost +0.30" in lines[2]
    many = pd.concat([frame.assign(task=frame["task"] + str(k)) for k in range(4)])
    many = many.assign(changed=1 - many["similarity"], changed_is_wrong=many["task"] == "b0")
    # where nothing changed there is nothing that could be wrong
    many.loc[many["task"] == "c1", ["changed", "changed_is_wrong"]] = [0.0, True]
    lines = shifts.shift_reading(many).splitlines()
    rho = spearmanr(1 - many["similarity"], many["lost"]).statistic
    assert f"over 24 points of 12 tasks: {rho:.2f} (95 % interval" in lines[0]
    changed = spearmanr(many["changed"], many["lost"]).statistic
    assert lines[1] == f"- That of the share of changed answers, without any embedding: {changed:.2f}."
    assert lines[2].startswith("- Arithmetic, no finding:") and "on *b0* (" in lines[2]
    assert "similarity 0.45, 55 % of the answers changed, lost +0.05" in lines[3]


def test_shifts_of_a_task_with_two_numbers_of_shots_are_told_apart():
    frame = pd.concat(
        [loss_frame().assign(n_shot=0), loss_frame().assign(n_shot=5, lost=0.0, similarity=0.99)]
    )
    assert "**SFT** on *b, 0-shot*" in shifts.shift_reading(frame)
