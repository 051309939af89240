"""Self-data distillation: what is asked, what is kept and why, and nothing lost to a kill."""

from __future__ import annotations

import json
import sys

import pandas as pd
import pytest
from tiny import tiny_model, tiny_tokenizer

from workbench.data.instructions import FIELDS, load_instructions
from workbench.generation.responses import chat_prompt, generate_responses
from workbench.healing.distillation import (
    KEPT_ANSWER,
    KEPT_OPEN,
    RewriteTemplate,
    judge,
    kept_shares,
    rewrite_message,
    rewrite_template,
    self_distill,
)

SHORT = RewriteTemplate(math="Q: {instruction} R: {reference}", open="Q: {instruction} R: {reference}")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture
def examples():
    rows = [
        {
            "id": f"row-{i}",
            "instruction": f"What is {i} plus {i}?" + " Think." * (i % 4),
            "context": "" if i % 3 else "A passage.",
            "reference": f"{i}+{i} #### {2 * i}",
            "answer": str(2 * i) if i % 2 else "",
        }
        for i in range(11)
    ]
    return pd.DataFrame(rows, columns=FIELDS)


def distill(model, tokenizer, examples, **options):
    settings = {"template": SHORT, "max_new_tokens": 8, "batch_size": 3, "rule": keep_even, "progress": False}
    return self_distill(model, tokenizer, examples, **{**settings, **options})


def keep_even(row):
    return int(row["id"].split("-")[1]) % 2 == 0, "even" if int(row["id"].split("-")[1]) % 2 == 0 else "odd"


# --- what is asked ------------------------------------------------------------------------------------------


def test_the_template_of_the_demo_world_is_met_exactly(root):
    sys.path.insert(0, str(root / "data" / "demo"))
    try:
        from generator.documents import rewrite_prompt
    finally:
        sys.path.pop(0)
    text = "Rewrite the reference in your own words.\nQuestion: {instruction}\nReference: {reference}"
    template = RewriteTemplate(math=text, open=text)
    for row in load_instructions("demo-open", n=40).to_dict("records"):
        asked = rewrite_message(template, row)
        assert asked == rewrite_prompt(row["instruction"], row["context"], row["reference"])


def test_a_line_for_the_context_is_there_only_with_a_context():
    template = RewriteTemplate(open="A\nContext: {context}\nDo: {instruction}\nLike: {reference}")
    row = {"instruction": "sing", "context": "", "reference": "la", "answer": ""}
    assert rewrite_message(template, row) == "A\nDo: sing\nLike: la"
    assert rewrite_message(template, row | {"context": "x\ny"}) == "A\nContext: x\ny\nDo: sing\nLike: la"


def test_braces_in_the_data_stay_what_they_are():
    row = {"instruction": "{reference} {context} \\1", "context": "", "reference": "{x}", "answer": "1"}
    assert rewrite_message(SHORT, row) == "Q: {reference} {context} \\1 R: {x}"


def test_a_template_must_show_instruction_and_reference():
    row = {"instruction": "i", "context": "", "reference": "r", "answer": ""}
    with pytest.raises(ValueError, match=r"template must contain \{reference\}"):
        rewrite_message(RewriteTemplate(open="{instruction}"), row)


def test_the_general_template_fits_its_own_rules():
    row = {"instruction": "i", "context": "c", "reference": "r", "answer": ""}
    for answer in ("", "1"):
        text = rewrite_message(RewriteTemplate(), row | {"answer": answer})
        assert all(value in text for value in ("Context: c", ": i", ": r"))
        assert any(phrase in text.lower() for phrase in RewriteTemplate.leaks)


def test_a_model_folder_brings_its_own_template(tmp_path):
    model = tiny_model("llama")
    model.config._name_or_path = str(tmp_path)
    assert rewrite_template(model) == rewrite_template() == RewriteTemplate()
    (tmp_path / "distillation_template.json").write_text(json.dumps({"open": "{instruction}{reference}"}))
    assert rewrite_template(model).open == "{instruction}{reference}"
    assert rewrite_template(model).math == RewriteTemplate.math


# --- what is kept -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rewrite", "verdict"),
    [
        ("Two and two is 4. The answer is 4.", (True, KEPT_ANSWER)),
        ("So $\\boxed{4.0}$ it is.", (True, KEPT_ANSWER)),
        ("#### 4", (True, KEPT_ANSWER)),
        ("The answer is 5.", (False, "another final answer")),
        ("I do not know.", (False, "no final answer")),
        ("  \n", (False, "empty")),
    ],
)
def test_a_math_rewrite_is_kept_for_its_final_answer(rewrite, verdict):
    row = {"instruction": "2+2?", "context": "", "reference": "2+2 #### 4", "answer": "4", "finished": True}
    assert judge(row | {"rewrite": rewrite}) == verdict


@pytest.mark.parametrize(
    ("rewrite", "verdict"),
    [
        ("A fine reply to the question.", (True, KEPT_OPEN)),
        ("Here is my response: a fine reply.", (False, "shows the prompt")),
        ("The Reference Answer says so.", (False, "shows the prompt")),
        ("Tell them about books. " * 10, (False, "repeats itself")),
        ("", (False, "empty")),
    ],
)
def test_an_open_rewrite_is_kept_by_plain_quality_rules(rewrite, verdict):
    row = {"instruction": "Tell", "context": "", "reference": "A reply.", "answer": "", "finished": True}
    assert judge(row | {"rewrite": rewrite}) == verdict
    assert judge(row | {"rewrite": rewrite or "x", "finished": False}) == (False, "cut off")


def test_words_of_the_row_itself_are_no_leak_and_its_own_repetition_is_allowed():
    row = {"instruction": "What is a reference answer?", "context": "", "answer": "", "finished": True}
    assert judge(row | {"reference": "It is.", "rewrite": "A reference answer is this."})[0]
    song = "la la la la " * 8
    assert judge(row | {"reference": song, "rewrite": song})[0]
    assert not judge(row | {"reference": "a song", "rewrite": song})[0]


def test_good_rewrites_of_a_real_model_are_kept(shared_data):
    text = (shared_data / "sdft_alpaca_pairs.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.split("\n") if line]
    verdicts = [
        judge(
            {
                "instruction": row["instruction"],
                "context": row["input"],
                "reference": row["output"],
                "answer": "",
                "rewrite": row["distilled_output"],
                "finished": True,
            }
        )[0]
        for row in rows
    ]
    assert 0.99 < sum(verdicts) / len(verdicts) < 1


# --- the whole ----------------------------------------------------------------------------------------------


def test_every_row_keeps_rewrite_decision_reason_and_response(model, tokenizer, examples):
    frame = distill(model, tokenizer, examples)
    assert list(frame.columns) == [*FIELDS, "rewrite", "kept", "reason", "response"]
    assert frame[FIELDS].equals(examples)
    prompts = [chat_prompt(tokenizer, rewrite_message(SHORT, row)) for row in examples.to_dict("records")]
    asked = generate_responses(model, tokenizer, prompts, max_new_tokens=8, progress=False)
    assert frame["rewrite"].tolist() == [text.strip() for text in asked["response"]]
    assert frame["kept"].tolist() == [i % 2 == 0 for i in range(11)]
    assert frame["response"].tolist() == frame["rewrite"].where(frame["kept"], frame["reference"]).tolist()
    shares = kept_shares(frame)
    assert shares["reason"].tolist() == ["even", "odd"]
    assert shares["n"].tolist() == [6, 5]
    assert shares["share"].sum() == pytest.approx(1)


def test_a_rule_sees_the_row_and_may_return_a_bare_verdict(model, tokenizer, examples):
    seen = []

    def rule(row):
        seen.append(set(row))
        return row["answer"] == ""

    frame = distill(model, tokenizer, examples, rule=rule)
    assert seen[0] == {*FIELDS, "rewrite", "finished"}
    assert frame["kept"].tolist() == (examples["answer"] == "").tolist()
    assert set(frame["reason"]) == {"kept by the rule", "refused by the rule"}


def test_when_every_rewrite_is_refused_it_says_so_and_the_references_stay(model, tokenizer, examples):
    with pytest.warns(UserWarning, match=r"every one of 11 rewrites was refused: cut off \(\d+\)"):
        frame = distill(model, tokenizer, examples, rule="auto")
    assert frame["response"].tolist() == examples["reference"].tolist()


def test_a_prompt_that_does_not_fit_keeps_its_reference(model, tokenizer, examples):
    examples.loc[4, "instruction"] = "word " * 300
    frame = distill(model, tokenizer, examples)
    assert frame.loc[4, ["rewrite", "kept", "reason"]].tolist() == ["", False, "prompt too long"]
    assert frame.loc[4, "response"] == examples.loc[4, "reference"]
    assert frame["kept"].sum() == 5
    examples["instruction"] = "word " * 300
    with pytest.raises(ValueError, match=r"no prompt fits the context of 256 tokens with max_new_tokens=8"):
        distill(model, tokenizer, examples)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_killed_at_any_moment_it_ends_with_the_same_frame(model, tokenizer, examples, tmp_path, temperature):
    whole = distill(model, tokenizer, examples, temperature=temperature)
    out = tmp_path / "journal.jsonl"
    assert distill(model, tokenizer, examples, out=out, temperature=temperature).equals(whole)
    data = out.read_bytes()
    lines = data.split(b"\n")
    begin = len(lines[0]) + 1
    cuts = [begin, begin + 1, begin + len(lines[1]), begin + len(lines[1]) + 1, len(data) // 2, len(data) - 1]
    for cut in cuts:
        out.write_bytes(data[:cut])
        assert distill(model, tokenizer, examples, out=out, temperature=temperature).equals(whole)
        rows = [json.loads(line)["prompt_index"] for line in out.read_text().splitlines()[1:]]
        assert sorted(rows) == list(range(11))  # none lost, none twice


def test_an_interrupt_loses_nothing_that_was_written(model, tokenizer, examples, tmp_path, monkeypatch):
    from workbench.runs.journal import Journal

    whole, written = distill(model, tokenizer, examples), []
    append = Journal.append

    def append_and_stop(self, rows):
        append(self, rows)
        written.extend(rows)
        if len(written) >= 6:
            raise KeyboardInterrupt

    out = tmp_path / "journal.jsonl"
    monkeypatch.setattr(Journal, "append", append_and_stop)
    with pytest.raises(KeyboardInterrupt):
        distill(model, tokenizer, examples, out=out)
    monkeypatch.setattr(Journal, "append", append)
    before = out.read_bytes()
    assert distill(model, tokenizer, examples, out=out).equals(whole)
    assert out.read_bytes().startswith(before)
    assert not model.training


def test_a_finished_journal_is_not_generated_again(model, tokenizer, examples, tmp_path, monkeypatch):
    out = tmp_path / "journal.jsonl"
    whole = distill(model, tokenizer, examples, out=out)
    monkeypatch.setattr(type(model), "generate", None)
    assert distill(model, tokenizer, examples, out=out).equals(whole)
    everything = distill(
        model, tokenizer, examples, out=out, rule=lambda row: True
    )  # a new rule: no new rewrites
    assert everything["kept"].all()


def test_other_work_is_never_mixed_into_a_journal(model, tokenizer, examples, tmp_path):
    out = tmp_path / "journal.jsonl"
    distill(model, tokenizer, examples, out=out)
    before = out.read_bytes()
    longer = RewriteTemplate(math=SHORT.math + " Now.", open=SHORT.open)
    changed = examples.assign(reference=[*examples["reference"][:-1], "something else"])
    for name, arguments, options in [
        ("model", (tiny_model("llama", seed=1), tokenizer, examples), {}),
        ("template", (model, tokenizer, examples), {"template": longer}),
        ("data", (model, tokenizer, changed), {}),
        ("generation", (model, tokenizer, examples), {"max_new_tokens": 9}),
    ]:
        with pytest.raises(
            ValueError, match=rf"journal\.jsonl was written with another {name};.*overwrite=True"
        ):
            distill(*arguments, out=out, **options)
        assert out.read_bytes() == before
    again = distill(model, tokenizer, changed, out=out, overwrite=True)
    assert again.loc[10, "reference"] == "something else"
    assert len(out.read_text().splitlines()) == 12


def test_a_file_of_something_else_is_left_alone(model, tokenizer, examples, tmp_path):
    out = tmp_path / "precious.jsonl"
    out.write_text('{"text": "mine"}\n')
    with pytest.raises(ValueError, match="is not a journal"):
        distill(model, tokenizer, examples, out=out, overwrite=True)
    assert out.read_text() == '{"text": "mine"}\n'


def test_a_damaged_row_of_the_journal_is_rewritten_again(model, tokenizer, examples, tmp_path):
    whole = distill(model, tokenizer, examples, out=tmp_path / "journal.jsonl")
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    (tmp_path / "journal.jsonl").write_text("\n".join([lines[0], lines[1][:9], *lines[2:]]) + "\n")
    with pytest.warns(UserWarning, match=r"1 damaged lines of .* were dropped"):
        again = distill(model, tokenizer, examples, out=tmp_path / "journal.jsonl")
    pd.testing.assert_frame_equal(again, whole)


@pytest.mark.parametrize(
    ("spoil", "options", "words"),
    [
        (lambda frame: frame.drop(columns="context"), {}, r"missing \['context'\]"),
        (lambda frame: frame[:0], {}, "at least one row"),
        (lambda frame: frame.assign(id="x"), {}, "each id once, got 'x' again"),
        (lambda frame: ["a", "b"], {}, "must be a pandas DataFrame, got list"),
        (lambda frame: frame, {"rule": "strict"}, "rule must be 'auto' or a function"),
    ],
)
def test_bad_examples_give_one_clear_line(model, tokenizer, examples, spoil, options, words):
    with pytest.raises(ValueError, match=words) as error:
        distill(model, tokenizer, spoil(examples), **options)
    assert "\n" not in str(error.value)


def test_the_demo_model_rewrites_in_its_own_words(demo_model):
    model, tokenizer = demo_model
    assert rewrite_template(model) != RewriteTemplate()
    both = [load_instructions(name, n=12, seed=1) for name in ("demo-math", "demo-open")]
    frame = self_distill(
        model, tokenizer, pd.concat(both, ignore_index=True), max_new_tokens=128, progress=False
    )
    assert frame["kept"].mean() > 0.9
    assert (frame["rewrite"] != frame["reference"]).all()
    assert (frame["rewrite"].str.len() > frame["reference"].str.len()).mean() > 0.9  # full sentences
