"""Self-data distillation: what is asked, what is kept and why, and nothing lost to a kill."""

from __future__ import annotations

import json
import sys
import warnings

import pandas as pd
import pytest
from tiny import tiny_model, tiny_tokenizer
from tokenizers import normalizers

from workbench.data.instructions import FIELDS, load_instructions
from workbench.generation.prompts import chat_prompt, token_ids
from workbench.generation.responses import generate_responses
from workbench.healing import distillation
from workbench.healing.distillation import (
    RewriteTemplate,
    kept_shares,
    rewrite_message,
    rewrite_template,
    self_distill,
)
from workbench.models.loading import load_model

SHORT = RewriteTemplate(math="Q: {instruction} R: {reference}", open="Q: {instruction} R: {reference}")


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
    for content in ("not json", "5", "[" * 100_000, '{"math": 5}', '{"math": null}'):
        (tmp_path / "distillation_template.json").write_text(content)
        with pytest.raises(ValueError, match="holds no templates") as error:
            rewrite_template(model)
        assert "\n" not in str(error.value)


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
        ("generation", (model, tokenizer, examples), {"max_new_tokens": 7}),
    ]:
        with pytest.raises(
            ValueError, match=rf"journal\.jsonl was written with another {name};.*overwrite=True"
        ):
            distill(*arguments, out=out, **options)
        assert out.read_bytes() == before
    again = distill(model, tokenizer, changed, out=out, overwrite=True)
    assert again.loc[10, "reference"] == "something else"
    assert len(out.read_text().splitlines()) == 12


def test_another_tokenizer_is_other_work(model, tokenizer, examples, tmp_path):
    distill(model, tokenizer, examples, out=tmp_path / "journal.jsonl")
    other = tiny_tokenizer()
    other.backend_tokenizer.normalizer = normalizers.Replace("plus", "and then")
    with pytest.raises(ValueError, match="was written with another tokenizer"):
        distill(model, other, examples, out=tmp_path / "journal.jsonl")


def test_a_model_s_own_template_is_an_input_of_a_stage(
    model, tokenizer, examples, tmp_path, monkeypatch, run
):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    loaded, tokenizer = load_model("model")
    monkeypatch.chdir(tmp_path / "model")  # the folder is where it was
    asked = {"template": None, "max_new_tokens": 8, "rule": keep_even, "progress": False}

    def rewrites():
        return run.frame("d.jsonl", self_distill, loaded, tokenizer, examples, **asked)["rewrite"].tolist()

    first = rewrites()
    template = {"open": "{reference} or {instruction}", "math": "{reference} and {instruction}"}
    (tmp_path / "model" / "distillation_template.json").write_text(json.dumps(template))
    assert rewrite_template(loaded) == RewriteTemplate(**template)
    assert rewrites() != first
    asked["template"] = RewriteTemplate(**template)  # the same, spelled out
    written = run.path("d.jsonl").stat().st_mtime_ns
    rewrites()
    assert run.path("d.jsonl").stat().st_mtime_ns == written


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
    with pytest.warns(UserWarning, match=r"1 damaged lines of .* are dropped"):
        again = distill(model, tokenizer, examples, out=tmp_path / "journal.jsonl")
    pd.testing.assert_frame_equal(again, whole)


@pytest.mark.parametrize(("temperature", "ends"), [(0.0, 60), (1.0, 25)])
def test_with_more_tokens_only_what_was_cut_off_is_rewritten_again(
    model, tokenizer, examples, tmp_path, monkeypatch, temperature, ends
):
    from workbench.generation import responses

    def room(row):
        prompt = chat_prompt(tokenizer, rewrite_message(SHORT, row))
        return 256 - len(token_ids(tokenizer, [prompt])[0])

    while room(examples.loc[3].to_dict()) >= 16:  # fits with 8 new tokens, not with 16
        examples.loc[3, "instruction"] += " a"
    monkeypatch.setattr(model.generation_config, "eos_token_id", list(range(5, ends)))
    options = {"temperature": temperature, "seed": 4}
    whole = distill(model, tokenizer, examples, max_new_tokens=16, **options)
    out, asked = tmp_path / "journal.jsonl", []
    short = distill(model, tokenizer, examples, out=out, **options)
    finished = [json.loads(line)["finished"] for line in out.read_text().splitlines()[1:]]
    assert 0 < sum(finished) < len(finished)
    generate = responses.response_batches

    def counted(*arguments, done, **settings):
        asked.append(len(done))
        return generate(*arguments, done=done, **settings)

    monkeypatch.setattr(responses, "response_batches", counted)
    assert distill(model, tokenizer, examples, out=out, max_new_tokens=16, **options).equals(whole)
    assert 0 < asked[0] <= sum(finished)
    assert short.loc[3, "reason"] != "prompt too long" and whole.loc[3, "reason"] == "prompt too long"
    assert [path.name for path in tmp_path.iterdir()] == ["journal.jsonl"]


def test_a_model_that_is_not_whole_is_refused_before_any_work(model, tokenizer, examples, monkeypatch):
    from peft import LoraConfig

    from workbench.healing.adapters import new_adapter
    from workbench.pruning.removal import without_layers

    last = len(model.model.layers) - 1
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "generate", None)
        for removed in ([0], [last]):
            with (
                without_layers(model, removed),
                pytest.raises(ValueError, match=r"whole, .*, it lacks layers"),
            ):
                distill(model, tokenizer, examples, engine="transformers")
        with (
            new_adapter(model, LoraConfig(r=2, target_modules=["model.layers.0.self_attn.q_proj"]), 0),
            pytest.raises(ValueError, match=r"adapter .*, it has one"),
        ):
            distill(model, tokenizer, examples, engine="transformers")
    with without_layers(model, [last]):
        assert len(distill(model, tokenizer, examples, any_model=True)) == 11
    assert len(distill(model, tokenizer, examples)) == 11  # whole again


def test_rewrites_are_asked_to_end_as_their_references_do_and_do():
    row = {"instruction": "i", "context": "", "reference": "1+1=2 #### 2", "answer": "2"}
    assert 'End with a line "####" and' in rewrite_message(RewriteTemplate(), row)
    assert 'line "The answer is" and' in rewrite_message(RewriteTemplate(), row | {"reference": "It is 2."})


def said(model, tokenizer, monkeypatch, text, examples, **options):
    """Distil with a model that says one text, whatever it is asked; the journal and the rest are real."""
    from workbench.generation import responses

    def speak(model, tokenizer, ids, out, work, **options):
        return [responses.Response(k, text, 9, True) for k in range(len(ids))]

    monkeypatch.setattr(responses, "journaled_responses", speak)
    return distill(model, tokenizer, examples, rule="auto", **options)


def test_kept_rewrites_share_the_closing_line_of_their_references(model, tokenizer, monkeypatch):
    reference = "3+4=7 #### 7"
    rows = pd.DataFrame(
        [
            dict.fromkeys(FIELDS, "")
            | {"id": "a", "instruction": "3+4?", "reference": reference, "answer": "7"}
        ]
    )
    text = "Three and four.\nThe answer is 7."
    general = said(
        model,
        tokenizer,
        monkeypatch,
        text,
        rows,
        template=RewriteTemplate(math="{instruction}{reference}{closing}"),
    )
    assert general.loc[0, "rewrite"] == text and general.loc[0, "response"] == "Three and four.\n#### 7"
    assert general.attrs["closing"] == 1
    own = said(
        model, tokenizer, monkeypatch, text, rows
    )  # a template that does not ask for it, as the demo's
    assert own.loc[0, "response"] == text and own.attrs["closing"] == 0


@pytest.mark.parametrize(
    ("text", "opened", "rewrite", "reason"),
    [
        (
            "<think>Or 8?</think>Three and four. The answer is 7.",
            False,
            "Three and four. The answer is 7.",
            "same final answer",
        ),
        (
            "Or 8?</think>\nThree and four. The answer is 7.",
            True,
            "Three and four. The answer is 7.",
            "same final answer",
        ),
        ("<think>The answer is 7", False, "", "cut off"),
        # the prompt closes the thought that the template opens, so this is no thought
        ("Three and four. The answer is 7.", True, "Three and four. The answer is 7.", "same final answer"),
    ],
)
def test_thoughts_never_stay_in_a_response(model, monkeypatch, text, opened, rewrite, reason):
    tokenizer = tiny_tokenizer()
    if opened:
        tokenizer.chat_template += "{% if add_generation_prompt %}<think>\n{% endif %}"
    rows = pd.DataFrame(
        [dict.fromkeys(FIELDS, "") | {"id": "a", "instruction": "3+4?", "reference": "7", "answer": "7"}]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # every one was refused
        frame = said(model, tokenizer, monkeypatch, text, rows)
    assert frame.loc[0, ["rewrite", "reason"]].tolist() == [rewrite, reason]
    assert "think" not in frame.loc[0, "response"]


def test_system_and_earlier_turns_are_shown_to_the_rewriter_and_kept(model, tokenizer, monkeypatch):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "And of France?"}]
    turns.append({"role": "assistant", "content": "Paris."})
    row = {
        "id": "a",
        "instruction": "And of Spain?",
        "context": float("nan"),
        "reference": "Madrid.",
        "answer": "",
    }
    rows = pd.DataFrame([row | {"history": json.dumps(turns)}])
    asked = []
    take = distillation.responses.journaled_responses

    def kept(model, tokenizer, ids, *rest, **options):
        asked.extend(ids)
        return take(model, tokenizer, ids, *rest, **options)

    monkeypatch.setattr(distillation.responses, "journaled_responses", kept)
    frame = self_distill(model, tokenizer, rows, rule=lambda row: True, max_new_tokens=4, progress=False)
    text = tokenizer.decode(asked[0])
    assert [text.count(part) for part in ("Be brief.", "And of France?", "Paris.", "And of Spain?")] == [
        1
    ] * 4
    assert "nan" not in text
    assert json.loads(frame.loc[0, "history"]) == turns


def test_a_rule_that_fails_is_said_before_anything_is_generated(model, tokenizer, examples, monkeypatch):
    monkeypatch.setattr(type(model), "generate", None)
    for rule, words in [
        (lambda row: 1 / 0, "rule fails on row 'row-0': ZeroDivisionError"),
        (lambda row: row["nothing"], "rule fails on row 'row-0': KeyError"),
        (lambda row: (True, "a", "b"), "rule must return whether to keep a row"),
    ]:
        with pytest.raises(ValueError, match=words):
            distill(model, tokenizer, examples, rule=rule, engine="transformers")


@pytest.mark.parametrize(
    ("spoil", "options", "words"),
    [
        (lambda frame: frame.drop(columns="context"), {}, r"missing \['context'\]"),
        (lambda frame: frame[:0], {}, "at least one row"),
        (lambda frame: frame.assign(id="x"), {}, "each id once, got 'x' again"),
        (lambda frame: ["a", "b"], {}, "must be a pandas DataFrame, got list"),
        (lambda frame: frame, {"rule": "strict"}, "rule must be 'auto' or a function"),
        (
            lambda frame: frame.assign(instruction=float("nan")),
            {},
            "instruction must hold a text, row row-0 has none",
        ),
        (lambda frame: frame.assign(answer=5), {}, "column answer must hold texts, got 5 in row row-0"),
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
