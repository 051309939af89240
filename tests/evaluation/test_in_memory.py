"""A model as the harness asks it: begin marks, bounded memory, numbers that are none, chats."""

from __future__ import annotations

import json
import math
import re

import lm_eval
import numpy as np
import pytest
import torch
from lm_eval.tasks import TaskManager
from peft import LoraConfig, get_peft_model
from scoring import GENERATE, TASKS, assert_equal, flat, write_jsonl
from scoring import rows as rows_of_sums
from tiny import LAYERS, tiny_model, tiny_tokenizer
from tokenizers.processors import TemplateProcessing

from workbench.evaluation import generating, in_memory
from workbench.evaluation.evaluate import evaluate
from workbench.evaluation.items import compare_items, read_items
from workbench.evaluation.perplexity import perplexity
from workbench.generation.prompts import chat_prompt

MARK = 4
LONG = "Anna gives 12 apples to Ben by the river. " * 4


def marked_tokenizer():
    """A tokenizer that begins every text with a mark, as those of Llama and Gemma do."""
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<|system|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|system|> $A", special_tokens=[("<|system|>", MARK)]
    )
    return tokenizer


@pytest.fixture
def rows():
    """The rows that a model reads, without what pads them."""
    seen: list[list[int]] = []

    def watched(model):
        def see(module, args):
            seen.extend(row.tolist() for row in args[0])

        model.get_input_embeddings().register_forward_pre_hook(see)
        return model, seen

    return watched


def loss_by_hand(model, windows: list[tuple[list[int], list[int]]]) -> float:
    total = 0.0
    with torch.no_grad():
        for head, predicted in windows:
            logits = model(torch.tensor([[*head, *predicted][:-1]])).logits[0].log_softmax(-1)
            places = range(len(head) - 1, len(head) + len(predicted) - 1)
            total -= sum(logits[place, token].item() for place, token in zip(places, predicted, strict=True))
    return total


@pytest.mark.parametrize("architecture", ["gemma2", "llama"])
@pytest.mark.parametrize("written", [False, True])
def test_every_window_begins_with_one_mark_that_is_not_scored(architecture, written, rows):
    tokenizer, length = marked_tokenizer(), 12
    model, seen = rows(tiny_model(architecture))
    text = "<|system|>" * written + LONG
    options = {"max_length": length, "batch_size": 3, "progress": False}
    values = perplexity(model, tokenizer, [text], **options).set_index("metric")["value"]
    assert all(row[0] == MARK and row.count(MARK) == 1 for row in seen)
    ids = tokenizer(LONG)["input_ids"][1:]
    assert len(seen) >= 2 * len(ids) // length
    tokens, words, place = [], [], 0
    while place < len(ids):
        lead = [MARK, *ids[place - 1 : place]] if place else [MARK]
        rest = ids[place : place + length + 1 - len(lead)]
        full = [MARK, *ids[place + len(rest) - length : place]] if place else lead
        tokens.append((lead, rest))
        words.append((full, rest))
        place += len(rest)
    assert values["loss"] == pytest.approx(loss_by_hand(model, tokens) / len(ids), rel=1e-5)
    n_words = len(text.split(" "))
    assert math.log(values["word_perplexity"]) == pytest.approx(
        loss_by_hand(model, words) / n_words, rel=1e-5
    )


def test_a_task_of_texts_has_the_mark_in_every_window(folder, rows):
    model, seen = rows(tiny_model("gemma2"))
    options = {"include": folder, "max_length": 10, "limit": 4, "progress": False}
    evaluate(model, marked_tokenizer(), "toy_texts", **options)
    assert len(seen) > 8
    assert all(row[0] == MARK and row.count(MARK) == 1 for row in seen)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_windows_without_a_mark_equal_the_harness(architecture, tmp_path, project, folder, monkeypatch):
    model, tokenizer = tiny_model(architecture), tiny_tokenizer()
    monkeypatch.chdir(project)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    theirs = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tmp_path), "dtype": "float32", "max_length": 24},
        tasks=TASKS,
        device="cpu",
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    )
    for size in (4, "auto"):
        options = {"include": folder, "max_length": 24, "batch_size": size, "progress": False}
        assert_equal(evaluate(model, tokenizer, TASKS, **options), flat(theirs["results"]))


def test_logits_at_once_are_bounded_and_scores_are_the_same(scored, model, tokenizer, folder, monkeypatch):
    sizes: list[int] = []
    handle = model.lm_head.register_forward_hook(lambda module, args, out: sizes.append(out.numel()))
    monkeypatch.setattr(in_memory, "_LOGITS", 331 * 100)
    options = {"include": folder, "batch_size": "auto", "max_length": 256, "progress": False}
    found = evaluate(model, tokenizer, ["toy_choices", "toy_texts"], **options)
    perplexity(model, tokenizer, [LONG, "by the river"] * 3, max_length=40, batch_size="auto", progress=False)
    handle.remove()
    assert max(sizes) <= 331 * 100
    assert max(sizes) > 331 * 50
    whole = scored[0][scored[0]["task"] != "toy_sums"].reset_index(drop=True)
    np.testing.assert_allclose(found["value"], whole["value"], rtol=1e-5)


@pytest.mark.parametrize(
    ("names", "sizes"), [(TASKS, {4}), (["toy_sums"], {13, 6})], ids=["all", "generated"]
)
def test_a_batch_that_does_not_fit_into_memory_is_halved(names, sizes, scored, tokenizer, folder):
    model, tried = tiny_model(), []

    def little_memory(module, args, kwargs):
        tried.append(len(args[0] if args else kwargs["input_ids"]))
        if tried[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_pre_hook(little_memory, with_kwargs=True)
    with pytest.warns(UserWarning, match=r"prompts do not fit into memory; now \d"):
        found = evaluate(model, tokenizer, names, include=folder, batch_size=13, progress=False)
    whole = scored[0][scored[0]["task"].isin(found["task"])]
    np.testing.assert_allclose(found["value"], whole["value"], rtol=1e-5)
    assert {size for size in tried if size > 3} == sizes


def test_a_batch_of_one_that_does_not_fit_into_memory_is_an_error(tokenizer, folder):
    def no_memory(module, args, kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = tiny_model()
    model.register_forward_pre_hook(no_memory, with_kwargs=True)
    with (
        pytest.raises(ValueError, match="max_length must be below 256 to fit into memory"),
        pytest.warns(UserWarning, match="fit into memory"),
    ):
        evaluate(model, tokenizer, "toy_texts", include=folder, batch_size=2, progress=False)


@torch.no_grad()
def broken(kind: str, architecture: str):
    """A model with numbers that are none, and what should be said of it."""
    model = tiny_model(architecture)
    if kind == "adapter":
        targets = {"target_modules": ["c_attn"], "fan_in_fan_out": True} if architecture == "gpt2" else {}
        targets = targets or {"target_modules": "all-linear"}
        model = get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, **targets))
        name = next(name for name, _ in model.named_parameters() if "lora_B" in name and ".2." in name)
        model.get_parameter(name)[0, 0] = math.nan
        return model.eval(), f"its weight {name} is not"
    name = [name for name, tensor in model.named_parameters() if f".{LAYERS // 2}." in name][-1]
    if kind == "weights":
        model.get_parameter(name).view(-1)[0] = math.inf
        return model, f"its weight {name} is not"
    from workbench.models.layers import decoder_layers

    decoder_layers(model)[2].register_forward_hook(
        lambda module, args, out: (out[0] if isinstance(out, tuple) else out).mul_(math.inf)
    )
    return model, r"its weights are, but layer 2 gives others \(torch.float32 overflows\)"


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["adapter", "weights", "states"])
def test_logits_that_are_no_numbers_are_refused_and_their_origin_named(kind, architecture, tokenizer, folder):
    model, message = broken(kind, architecture)
    for task in TASKS:
        with pytest.raises(ValueError, match=f"logits are not finite on these texts: {message}"):
            evaluate(model, tokenizer, task, include=folder, limit=2, progress=False)
    with pytest.raises(ValueError, match=message):
        perplexity(model, tokenizer, [LONG], progress=False)


def test_a_loss_too_large_for_a_perplexity_is_infinite(tokenizer, folder, tmp_path):
    model, path = tiny_model(), tmp_path / "items.jsonl"
    with torch.no_grad():
        model.lm_head.weight.mul_(1e4)
    frame = evaluate(model, tokenizer, "toy_texts", include=folder, limit=3, items=path, progress=False)
    values = frame.set_index("metric")["value"]
    assert values["word_perplexity"] == math.inf
    assert math.isfinite(values["bits_per_byte"])
    assert "Infinity" not in path.read_text(encoding="utf-8")
    values = perplexity(model, tokenizer, [LONG], progress=False).set_index("metric")["value"]
    assert values["token_perplexity"] == values["word_perplexity"] == math.inf
    assert math.isfinite(values["loss"])


def test_the_loss_of_every_text_is_kept_for_pairs(model, tokenizer, tmp_path):
    texts, other = [LONG, "by the river", "the quick brown fox"], tiny_model(seed=1)
    frames = []
    for number, one in enumerate((model, other)):
        path = tmp_path / f"{number}.jsonl"
        scores = perplexity(one, tokenizer, texts, items=path, max_length=20, progress=False)
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        weights = [line["tokens"] for line in lines]
        mean = np.average([line["scores"]["loss"] for line in lines], weights=weights)
        assert mean == pytest.approx(scores.set_index("metric")["value"]["loss"], rel=1e-6)
        assert sum(weights) == sum(len(tokenizer(text)["input_ids"]) - 1 for text in texts)
        frames.append(read_items(path))
    assert list(frames[0]["prompt"]) == texts
    compared = compare_items(*frames, metric="loss")
    differences = frames[1]["value"] - frames[0]["value"]  # each text weighs as many tokens as it has
    assert compared["n"].tolist() == [3]
    assert compared["difference"].tolist() == pytest.approx([np.average(differences, weights=weights)])


REFUSES = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
DROPS = (
    "{% for m in messages if m['role'] != 'system' %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
THINKS = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


@pytest.fixture
def described(folder, tmp_path):
    """The toy tasks with a description."""
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for name in ("sums", "choice"):
        text = (folder / f"{name}.yaml").read_text(encoding="utf-8").replace("toys/tasks/", "")
        (tasks / f"{name}.yaml").write_text(text + 'description: "Answer with one word."\n', encoding="utf-8")
    for name in ("train", "test"):
        (tasks / f"{name}.jsonl").write_bytes((folder / f"{name}.jsonl").read_bytes())
    return tasks


def prompts_of(tokenizer, folder, path, **options) -> list[str]:
    settings = {"include": folder, "items": path / "items.jsonl", "limit": 2, "progress": False}
    names = options.pop("tasks", ["toy_sums", "toy_choice"])
    evaluate(tiny_model(), tokenizer, names, **settings, **options)
    return list(read_items(path / "items.jsonl").drop_duplicates(["task", "item"])["prompt"])


@pytest.mark.parametrize("template", [None, REFUSES, DROPS, THINKS])
def test_chat_prompts_hold_the_description_and_end_as_the_training_prompts(template, described, tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template or tokenizer.chat_template
    for n_shot in (0, 1):
        chat = {"chat_template": True, "n_shot": n_shot}
        prompts = prompts_of(tokenizer, described, tmp_path, **chat)
        assert len(prompts) == 4
        ending = chat_prompt(tokenizer, "?").partition("?")[2]
        for prompt in prompts:
            assert prompt.count("Answer with one word.") == 1
            assert prompt.endswith(ending)
            assert prompt.count("<|user|>") == 1 + n_shot
    again = tiny_tokenizer(chat_template=False)
    named = prompts_of(again, described, tmp_path, chat_template=tokenizer.chat_template, n_shot=1)
    assert named == prompts


def test_thinking_is_said_and_scored_behind_its_end(described, tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = THINKS
    prompts = prompts_of(tokenizer, described, tmp_path, tasks="toy_sums", chat_template=True, thinking=True)
    assert all(prompt.endswith("<|assistant|>\n") for prompt in prompts)
    settings = {"include": described, "limit": 1, "progress": False}
    frame = evaluate(tiny_model(), tokenizer, "toy_sums", chat_template=True, **settings)
    assert (frame.attrs["chat_template"], frame.attrs["thinking"]) == (True, False)
    with pytest.raises(ValueError, match="thinking must be False for task 'toy_choice'"):
        evaluate(tiny_model(), tokenizer, "toy_choice", chat_template=True, thinking=True, **settings)
    with pytest.raises(ValueError, match="thinking needs chat_template"):
        evaluate(tiny_model(), tokenizer, "toy_sums", thinking=True, **settings)


def test_the_beginning_of_an_answer_stands_behind_the_template(described, tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = THINKS
    path = described / "choice.yaml"
    path.write_text(path.read_text(encoding="utf-8") + 'gen_prefix: "So it is"\n', encoding="utf-8")
    prompts = prompts_of(tokenizer, described, tmp_path, tasks="toy_choice", chat_template=True)
    ending = chat_prompt(tokenizer, "?").partition("?")[2]
    assert all(prompt.endswith(f"{ending}So it is") for prompt in prompts)


def test_generation_can_be_set_for_all_tasks(described, tmp_path, tokenizer):
    path = tmp_path / "items.jsonl"
    settings = {"include": described, "items": path, "limit": 3, "progress": False}
    lengths = []
    for options in ({}, {"max_new_tokens": 2}, {"gen_kwargs": {"max_gen_toks": 2, "until": ["zz"]}}):
        evaluate(tiny_model(), tokenizer, "toy_sums", **settings, **options)
        answers = read_items(path).drop_duplicates("item")["response"]
        lengths.append(max(len(tokenizer(answer)["input_ids"]) for answer in answers))
    assert lengths[0] > 2
    assert lengths[1:] == [2, 2]
    prompts = prompts_of(tokenizer, described, tmp_path, tasks="toy_sums", system_instruction="Be brief.")
    assert all(prompt.startswith("Be brief.\n\nAnswer with one word.") for prompt in prompts)


def test_truncation_is_counted_for_each_number_of_examples(folder, tokenizer, tmp_path):
    counts = {}
    for n_shot in (0, 2):
        path = tmp_path / f"{n_shot}.jsonl"
        names, options = ["toy_sums", "toy_choices"], {"max_length": 30, "items": path, "progress": False}
        frame = evaluate(
            tiny_model(), tokenizer, names[: 2 - n_shot // 2], n_shot=n_shot, include=folder, **options
        )
        items = read_items(path).drop_duplicates(["task", "item"])
        leaves = frame[frame["task"] != "toy_choices"].drop_duplicates("task").set_index("task")["truncated"]
        assert leaves.to_dict() == items.groupby("task")["truncated"].sum().to_dict()
        group = frame[frame["task"] == "toy_choices"]["truncated"]
        assert group.empty or group.iloc[0] == leaves.drop("toy_sums").sum()
        counts[n_shot] = leaves["toy_sums"]
        assert set(frame["n_shot"]) == {n_shot}
    assert counts[0] < counts[2]


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_the_static_cache_answers_as_generate_does(architecture, tmp_path, monkeypatch):
    """Rows of several lengths that end at different steps; a model's own penalty is left to ``generate``."""
    model, tokenizer = tiny_model(architecture), tiny_tokenizer()
    ends = tokenizer.convert_ids_to_tokens([7, 9])  # common enough among what a random model says
    write_jsonl(tmp_path / "test.jsonl", rows_of_sums(13, seed=2))
    task = GENERATE.replace('["\\n\\n"]', json.dumps(ends)).replace("max_gen_toks: 6", "max_gen_toks: 40")
    folder = str(tmp_path / "test.jsonl")
    task = re.sub(r"toys/tasks/\w+\.jsonl", folder, task)
    (tmp_path / "sums.yaml").write_text(task)
    told, decoded, made = [], [], generating.StaticDecoder
    monkeypatch.setattr(
        generating, "StaticDecoder", lambda model, **how: decoded.append(how["ends"]) or made(model, **how)
    )
    for penalty, worth in ((None, 0), (None, 1 << 60), (3.0, 0), (3.0, 1 << 60)):
        model.generation_config.repetition_penalty = penalty
        monkeypatch.setattr(generating, "WORTH_PREPARING", worth)
        settings = {"include": tmp_path, "items": tmp_path / "items.jsonl", "n_shot": 0, "progress": False}
        evaluate(model, tokenizer, "toy_sums", batch_size=5, **settings)
        told.append(list(read_items(tmp_path / "items.jsonl")["response"]))
    assert told[0] == told[1] != told[2] == told[3]
    assert len({len(one) for one in told[0]}) > 3
    assert decoded == [[1, 7, 9]] * 3  # batches of 5, 5 and 3, in the first run alone
