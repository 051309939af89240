"""Length, form and map of shifted responses: laws, counts by hand, and nothing paired wrongly."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import workbench as wb
from workbench.forgetting import changes as module
from workbench.forgetting.changes import (
    answer_form,
    change_summary,
    embedding_map,
    farthest_responses,
    principal_plane,
    response_changes,
)
from workbench.forgetting.similarity import response_similarity

BASE = [
    "Anna has 12 - 5 = 7 apples. The answer is 7.",
    "He buys 9 more, so 30. The answer is 30.",
    "The town of Ern.",
]
TERSE = ["12-5=7 #### 7", "21+9=31 #### 31", "The town of Ern."]


def frame(texts: list[str], **columns) -> pd.DataFrame:
    return pd.DataFrame({"id": [f"q{n}" for n in range(len(texts))], "response": texts} | columns)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("12-5=7 #### 7", "#### 7"),
        (r"so \boxed{7}", "boxed"),
        ("The answer is 7.", "the answer is 7"),
        ("Die Antwort ist 7.", "the answer is 7"),
        ("Answer: 7", "the answer is 7"),
        ("She has 7 left", "a last number"),
        ("No idea.", "no number"),
        ("", "no number"),
    ],
)
def test_the_form_of_an_answer(text, form):
    assert answer_form(text) == form


def test_every_reference_of_gsm8k_has_its_form(shared_data):
    with (shared_data / "gsm8k_test.jsonl").open(encoding="utf-8") as file:
        forms = {answer_form(json.loads(line)["answer"]) for line in file}
    assert forms == {"#### 7"}


def test_changes_are_counted_prompt_by_prompt():
    others = {"sft": frame(TERSE).sample(frac=1, random_state=1), "same": frame(BASE)}
    changes = response_changes(frame(BASE), others)
    assert list(dict.fromkeys(changes["variant"])) == ["base", "sft", "same"]
    sft = changes[changes["variant"] == "sft"].set_index("id")
    assert list(sft["form"]) == ["#### 7", "#### 7", "no number"]
    assert list(sft["base_form"]) == ["the answer is 7", "the answer is 7", "no number"]
    assert list(sft["same_answer"]) == [True, False, False]
    assert list(sft["same_text"]) == [False, False, True]
    assert list(sft["length"]) == [3, 3, 4]
    summary = change_summary(changes).set_index("variant")
    assert summary.loc["base", ["length_ratio", "same_form", "same_text"]].tolist() == [1, 1, 1]
    assert summary.loc["same", "length_ratio"] == 1
    assert summary.loc["same", ["ci_low", "ci_high"]].isna().all()  # equal lengths have no spread
    words = sum(len(text.split()) for text in BASE)
    assert summary.loc["sft", "length_ratio"] == pytest.approx(10 / words)
    assert summary.loc["sft", "ci_low"] < 10 / words < summary.loc["sft", "ci_high"]
    assert summary.loc["sft", "has_answer"] == pytest.approx(2 / 3)
    assert summary.loc["sft", "same_form"] == pytest.approx(1 / 3)


def test_tokens_are_counted_where_every_frame_has_them():
    base = frame(BASE, n_tokens=[10, 20, 30], finished=[True, True, False])
    shorter = frame(TERSE, n_tokens=[5, 10, 15], finished=[True, False, False])
    summary = change_summary(response_changes(base, {"sft": shorter})).set_index("variant")
    assert summary.loc["sft", "length_ratio"] == 0.5
    assert summary.loc["sft", "cut_off"] == pytest.approx(2 / 3)
    words = response_changes(base, {"sft": frame(TERSE)})
    assert list(words.query("variant == 'sft'")["length"]) == [3, 3, 4]


def test_an_empty_response_has_length_0_and_one_of_the_base_no_ratio():
    summary = change_summary(response_changes(frame(BASE), {"dumb": frame(["", "", ""])}))
    assert summary.set_index("variant").loc["dumb", ["length_ratio", "has_answer"]].tolist() == [0, 0]
    none = change_summary(response_changes(frame(["", ""]), {"other": frame(["a", "b"])}))
    assert none["length_ratio"].isna().all()


def test_no_length_is_below_nothing_however_few_the_prompts():
    base = frame(["one two three four", "one two three four", "one"])
    uneven = frame(["", "", "one two three four five six seven eight nine"])
    row = change_summary(response_changes(base, {"uneven": uneven})).set_index("variant").loc["uneven"]
    assert row["ci_low"] == 0 < row["length_ratio"] < row["ci_high"]


def test_the_farthest_are_the_least_similar_with_both_texts():
    base = frame(BASE, instruction=["one?", "two?", "three?"])
    others = {"sft": frame(TERSE), "same": frame(BASE)}
    similarities = response_similarity(base, others)
    found = farthest_responses(similarities, base, others, n=2)
    assert list(found.columns) == [
        "variant",
        "similarity",
        "id",
        "instruction",
        "base response",
        "response",
    ]
    sft = found[found["variant"] == "sft"]
    lowest = similarities[similarities["variant"] == "sft"].nsmallest(2, "similarity")
    assert list(sft["id"]) == list(lowest["id"])
    for row in sft.itertuples(index=False):
        at = int(row.id[1:])
        assert (row[4], row[5]) == (BASE[at], TERSE[at])
    with pytest.raises(ValueError, match="n must be a whole number >= 1, got 0"):
        wb.farthest_responses(similarities, base, others, n=0)


def test_the_map_is_the_principal_plane_and_links_equal_texts():
    others = {"sft": frame(TERSE), "same": frame(BASE)}
    found = embedding_map(frame(BASE), others)
    assert list(dict.fromkeys(found["variant"])) == ["base", "sft", "same"]
    points = {name: part[["x", "y"]].to_numpy() for name, part in found.groupby("variant")}
    assert np.abs(points["base"] - points["same"]).max() < 1e-6
    assert np.abs(points["base"] - points["sft"]).max() > 0.1
    pd.testing.assert_frame_equal(found, embedding_map(frame(BASE), others))


def test_the_plane_is_that_of_scikit_learn():
    from sklearn.decomposition import PCA

    vectors = np.random.default_rng(0).normal(size=(40, 9)) * np.arange(1, 10)
    points, shares = principal_plane(vectors)
    reference = PCA(2, svd_solver="full").fit(vectors)
    assert shares == pytest.approx(reference.explained_variance_ratio_)
    assert np.abs(points) == pytest.approx(np.abs(reference.transform(vectors)))
    turned, _ = principal_plane(vectors[::-1])
    assert turned[::-1] == pytest.approx(points)


def test_texts_that_are_all_the_same_are_one_point():
    points, shares = principal_plane(np.ones((4, 5)))
    assert (points == 0).all() and (shares == 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wb.response_changes(frame(BASE), {}), "others must be a mapping of names to"),
        (
            lambda: response_changes(frame(BASE), {"v": frame(TERSE[:2])}),
            "ids .* are in one of them only",
        ),
        (
            lambda: response_changes(frame(BASE, prompt="a"), {"v": frame(BASE, prompt="b")}),
            "v must answer the same prompts as base, but the prompt differs under 'q0'",
        ),
        (
            lambda: embedding_map(frame(BASE, context="a"), {"v": frame(BASE, context="b")}),
            "the context differs under 'q0'",
        ),
        (lambda: embedding_map(frame([]), {"v": frame([])}), "base must have at least one row"),
        (lambda: change_summary(pd.DataFrame({"variant": []})), "missing"),
    ],
)
def test_bad_input_is_one_clear_line(call, message, monkeypatch):
    monkeypatch.setattr(module, "embed_texts", None)
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_the_same_answer_is_a_share_of_what_has_an_answer():
    base = frame(BASE)
    summary = change_summary(response_changes(base, {"same": frame(BASE), "sft": frame(TERSE)}))
    assert summary.set_index("variant")["same_answer"].tolist() == [1, 1, 0.5]
    none = frame(["The town of Ern.", "A river."])
    told = change_summary(response_changes(none, {"same": none})).set_index("variant").loc["same"]
    assert told["same_text"] == 1 and np.isnan(told["same_answer"])
