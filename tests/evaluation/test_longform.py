"""QMSum as GRO scores it."""

from __future__ import annotations

import pytest
from scoring import PACKAGED, write_jsonl
from tiny import tiny_model

from workbench.evaluation.evaluate import evaluate
from workbench.evaluation.items import read_items
from workbench.evaluation.longform import rouge


def test_qmsum_is_scored_by_rouge_2(tokenizer, tmp_path):
    scores = rouge("the cat sat on the mat", ["the cat lay on the mat", "dogs bark"])
    assert scores["rouge2"] == pytest.approx(3 / 5)  # "the cat", "on the", "the mat" of five each
    assert scores["rouge1"] == pytest.approx(5 / 6)
    assert rouge("running", ["runs"])["rouge1"] == 0  # no stemming
    with pytest.raises(ValueError, match="at least one text"):
        rouge("a", [])
    text = "Anna: we keep the plan.\n\nBen: yes."
    rows = [
        {"id": f"m{i}", "pid": f"m{i}", "input": f"What is decided?\n\n{text}", "output": "Keep the plan."}
        for i in range(2)
    ]
    write_jsonl(
        tmp_path / "qmsum_validation.jsonl", [*rows, rows[0] | {"pid": "m0b", "output": "They keep it."}]
    )
    model = tiny_model(max_position_embeddings=400)
    frame = evaluate(
        model, tokenizer, "scrolls_qmsum", data=tmp_path, items=tmp_path / "items.jsonl", progress=False
    )
    assert list(frame["metric"]) == ["rouge1", "rouge2", "rougeL"]
    assert set(frame["n"]) == {2}
    items = read_items(tmp_path / "items.jsonl")
    assert items["prompt"].iloc[0] == f"{text}\n\nQuestion: What is decided?\nAnswer:"
    source = (PACKAGED / "scrolls" / "task.py").read_text(encoding="utf-8")
    assert "f\"{doc['text']}\\n\\nQuestion: {doc['question']}\\nAnswer:\"" in source  # the packaged prompt
    assert items["target"].iloc[0] == "Keep the plan., They keep it."
    for item, references in ((0, ["Keep the plan.", "They keep it."]), (1, ["Keep the plan."])):
        rows_ = items[items["item"] == item].set_index("metric")
        assert rows_.loc["rouge2", "value"] == rouge(rows_["response"].iloc[0], references)["rouge2"]
    with pytest.raises(ValueError, match="fixed at 0"):
        evaluate(model, tokenizer, "scrolls_qmsum", n_shot=2, data=tmp_path, progress=False)
