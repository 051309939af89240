"""Inputs that begin alike share their computation, and every answer is that of the harness's own model."""

from __future__ import annotations

import itertools
from itertools import product

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tiny import tiny_model, tiny_tokenizer

from workbench.evaluation import layout, prefixes
from workbench.evaluation.in_memory import InMemory
from workbench.evaluation.layout import plan

SHOTS = "Question: What is the capital of the land? Answer: the town by the river. " * 2
QUESTIONS = ["How many apples are left?", "Where is the old house?", "Is the dog quick?", "Who sells shells?"]
CHOICES = [" a", " b", " the town by the river", " by the sea shore and the old house", " Ben"]


def asked_of(shots: str = SHOTS, questions=QUESTIONS, choices=CHOICES) -> list[Instance]:
    """Few-shot questions with choices of one and of several tokens, and one asked of nothing."""
    pairs = [(f"{shots}{q}\nAnswer:", choice) for q, choice in product(questions, choices)]
    pairs += [("", "The quick brown fox"), (f"{shots}{questions[0]} ", "x"), (shots + questions[0], " a b a")]
    return [Instance("loglikelihood", {}, pair, k, metadata=("t", k, 1)) for k, pair in enumerate(pairs)]


def theirs(model, requests, max_length=None):
    lm = HFLM(pretrained=model, tokenizer=tiny_tokenizer(), batch_size=1, max_length=max_length)
    return lm.loglikelihood(requests, disable_tqdm=True)


def ours(model, requests, max_length=None, batch_size="auto"):
    lm = InMemory(model, tiny_tokenizer(), batch_size=batch_size, max_length=max_length)
    return lm.loglikelihood(requests)


def assert_same(found, wanted):
    np.testing.assert_allclose([total for total, _ in found], [total for total, _ in wanted], rtol=1e-5)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]


@pytest.fixture
def tokens(monkeypatch):
    """How many tokens a model computes."""

    def watched(model):
        counts: list[int] = []
        hook = lambda module, args: counts.append(args[0].numel())  # noqa: E731
        model.get_input_embeddings().register_forward_pre_hook(hook)
        return counts

    return watched


SHARING = ["llama", "gpt-neox", "qwen3", "gemma3", "gpt2", "mistral", "qwen3-moe"]


@pytest.mark.parametrize("architecture", SHARING)
def test_answers_equal_the_harness_for_a_third_of_the_tokens(architecture, tokens):
    model, requests = tiny_model(architecture), asked_of()
    wanted = theirs(model, requests)
    assert prefixes.can_share(model)
    counts = tokens(model)
    assert_same(ours(model, requests), wanted)
    mine, counts[:] = sum(counts), []
    theirs(model, requests)
    assert mine < sum(counts) / 3


@pytest.fixture
def blocks_together(monkeypatch):
    """Some requests behind three blocks of their own, not all of one length."""
    monkeypatch.setattr(prefixes, "_FEW", 30)
    monkeypatch.setattr(layout, "_TOGETHER", 9)
    monkeypatch.setattr(layout, "_ROW", 50)
    shots = (SHOTS, f"Ben sells shells. {SHOTS}", "The house is old. " + SHOTS[:-25])
    return [request for k, some in enumerate(shots) for request in asked_of(some, QUESTIONS[k % 2 :])]


@pytest.mark.parametrize("architecture", SHARING)
def test_rows_behind_blocks_of_several_lengths_are_computed_together(architecture, blocks_together):
    model, requests = tiny_model(architecture), blocks_together
    wanted = theirs(model, requests)
    assert prefixes.can_share(model)
    shapes = []
    hook = lambda module, args: shapes.append(tuple(args[0].shape))  # noqa: E731
    model.get_input_embeddings().register_forward_pre_hook(hook)
    assert_same(ours(model, requests), wanted)
    assert [shape[0] for shape in shapes][:2] == [1, 3], "what stands alone, and the three blocks in one pass"
    assert max(length for _, length in shapes[2:]) < shapes[1][1], "rows without their blocks"
    assert max(rows for rows, _ in shapes[2:]) > 3, "rows behind several blocks in one pass"


def test_blocks_are_computed_one_by_one_where_memory_does_not_suffice(blocks_together):
    model, requests = tiny_model(), blocks_together
    wanted = theirs(model, requests)
    prefixes.can_share(model)
    blocks = []

    def little_memory(module, args, kwargs):
        if kwargs.get("use_cache") and "position_ids" not in kwargs:
            blocks.append(len(args[0]))
            if len(args[0]) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_pre_hook(little_memory, with_kwargs=True)
    assert_same(ours(model, requests), wanted)
    assert blocks == [3, 1, 1, 1]


@pytest.mark.filterwarnings("error")
def test_a_block_that_does_not_fit_into_memory_alone_is_an_error_in_words(blocks_together):
    model, requests = tiny_model(), blocks_together
    prefixes.can_share(model)
    blocks = []

    def no_memory(module, args, kwargs):
        if kwargs.get("use_cache") and "position_ids" not in kwargs:
            blocks.append(len(args[0]))
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_pre_hook(no_memory, with_kwargs=True)
    with pytest.raises(ValueError, match=r"max_length must be below \d+ to fit into memory"):
        ours(model, requests)
    assert blocks == [3, 1]


@pytest.mark.parametrize("shots", [SHOTS, ""])
def test_requests_that_ask_other_tokens_of_one_row_each_get_their_own(shots):
    pairs = [
        (f"{shots}Who?\nAnswer:", " a b a"),
        (f"{shots}Who?\nAnswer: a b", " a"),
        (f"{shots}Why?", " Ben"),
    ]
    requests = [Instance("loglikelihood", {}, pair, k, metadata=("t", k, 1)) for k, pair in enumerate(pairs)]
    model = tiny_model("llama")
    # asked together, the harness 0.4.13 gives the second the first place of the first
    assert_same(ours(model, requests), [theirs(model, [one])[0] for one in requests])


@pytest.mark.parametrize("architecture", ["bloom", "gpt-neo", "llama4", "rwkv", "minimax"])
def test_models_that_cannot_share_answer_as_the_harness(architecture):
    model, requests = tiny_model(architecture), asked_of()
    assert_same(ours(model, requests), theirs(model, requests))


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("length", [8, 40])
def test_what_is_too_long_loses_its_beginning_as_in_the_harness(architecture, length):
    model, requests = tiny_model(architecture), asked_of()
    requests = [one for one in requests if len(tiny_tokenizer()(one.args[1])["input_ids"]) <= length]
    assert_same(ours(model, requests, length), theirs(model, requests, length))


def test_sharing_is_not_taken_where_a_mask_is_not_heeded(monkeypatch):
    model, requests = tiny_model(), asked_of()
    wanted = theirs(model, requests)
    monkeypatch.setattr(prefixes, "as_attention_mask", lambda model, seen, *_: seen[:, None] | True)
    assert not prefixes.can_share(model)
    assert_same(ours(model, requests), wanted)


def test_sharing_is_not_taken_where_the_end_of_a_shorter_block_is_read(monkeypatch):
    model, requests = tiny_model(), asked_of()
    wanted, masks = theirs(model, requests), prefixes.as_attention_mask

    def all_of_the_blocks(model, seen, positions, before):
        seen[:, :, :before] = True
        return masks(model, seen, positions, before)

    monkeypatch.setattr(prefixes, "as_attention_mask", all_of_the_blocks)
    assert not prefixes.can_share(model)
    assert_same(ours(model, requests), wanted)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_either_kind_of_attention_takes_the_masks(implementation):
    model, requests = tiny_model("gemma3", attn_implementation=implementation), asked_of()
    assert prefixes.can_share(model)
    assert_same(ours(model, requests), theirs(model, requests))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_answers_do_not_depend_on_the_batch(batch_size):
    model, requests = tiny_model("qwen3"), asked_of()
    assert_same(ours(model, requests, batch_size=batch_size), theirs(model, requests))


def test_a_plan_holds_each_input_once_with_what_it_reads(monkeypatch):
    monkeypatch.setattr(layout, "_ROW", 70)
    draw = np.random.default_rng(0)
    blocks = [draw.integers(9, size=50) for _ in range(2)]
    items = [np.concatenate([block, draw.integers(9, size=12)]) for block in blocks for _ in range(5)]
    inputs = [np.concatenate([item, draw.integers(9, size=n)]) for item in items for n in (1, 3, 4)]
    inputs.append(draw.integers(9, size=5))
    asked = [4] * len(inputs)
    batches = plan(inputs, asked, rows=3, tokens=90, places=30, sharing=True)
    seen = []
    for batch in batches:
        assert len(batch.rows) <= 3
        assert len(batch.rows) == 1 or len(batch.rows) * batch.length <= 96
        for row in batch.rows:
            for number, slots in zip(row.inputs, row.slots, strict=True):
                last = slots[-1]
                read = [at for at in range(last + 1) if row.ends[at] > last]
                block = batch.blocks[row.block] if batch.blocks else ()
                text = [*block, *(row.ids[at] for at in read)]
                assert text == inputs[number].tolist()
                at_own = [*range(len(block)), *(row.positions[at] for at in read)]
                assert at_own == list(range(len(text)))
                assert slots == read[-4:]
                seen.append(number)
    assert sorted(seen) == list(range(len(inputs)))
    assert {block for batch in batches for block in batch.blocks} == {
        tuple(block.tolist()) for block in blocks
    }
    assert {len(batch.rows) for batch in plan(inputs, asked, rows=3, tokens=9, places=9, sharing=False)} == {
        1
    }


def test_a_block_must_save_what_it_costs(monkeypatch):
    monkeypatch.setattr(layout, "_ROW", 70)
    draw = np.random.default_rng(0)
    block = draw.integers(9, size=50)
    inputs = [np.concatenate([block, draw.integers(9, size=60)]) for _ in range(3)]
    for least, blocks in ((100, 1), (101, 0)):
        batches = plan(inputs, [1] * 3, rows=9, tokens=999, places=9, sharing=True, least=least)
        assert sum(bool(batch.blocks) for batch in batches) == blocks


def test_blocks_are_put_together_while_padding_and_their_tokens_stay_few(monkeypatch):
    monkeypatch.setattr(layout, "_TOGETHER", 5)
    lengths = lambda blocks, **most: [  # noqa: E731
        [len(block) for block, _ in group]
        for group in layout._together([(range(n), []) for n in blocks], **most)
    ]
    assert lengths([40, 90, 100, 79, 95], tokens=1000, least=20) == [[100], [95], [90], [79], [40]]
    assert lengths([40, 90, 100, 79, 95], tokens=1000, least=60) == [[100, 95, 90], [79, 40]]
    assert lengths([40, 90, 100, 79, 95], tokens=200, least=60) == [[100, 95], [90, 79], [40]]
    assert lengths([40, 90, 100, 79, 95], tokens=9999, least=99) == [[100, 95, 90, 79], [40]]
    monkeypatch.setattr(layout, "_TOGETHER", 50)
    assert lengths([40, 90, 100, 79, 95], tokens=9999, least=20) == [[100, 95, 90], [79], [40]]


def test_on_a_cpu_rows_of_a_batch_are_about_as_long_and_little_is_padding():
    inputs = [np.arange(n) + n for n in (798, 420, 266, 127, 120, 90, 80, 30, 20)]
    least = prefixes.least_saved(tiny_model("llama"))
    batches = plan(inputs, [1] * 9, rows=9, tokens=4096, places=99, sharing=False, least=least)
    lengths = [[len(row.ids) for row in batch.rows] for batch in batches]
    assert lengths == [[798], [420], [266], [127, 120], [90, 80], [30, 20]]
    together = plan(inputs, [1] * 9, rows=9, tokens=9999, places=99, sharing=False, least=1e9)
    assert [len(batch.rows) for batch in together] == [9]


def test_padding_and_passes_cost_least_of_all_ways_to_part_the_rows():
    draw = np.random.default_rng(0)
    for _ in range(20):
        lengths = draw.integers(1, 40, size=8)
        inputs = [np.arange(n) + 100 * k for k, n in enumerate(lengths)]
        limits = {"rows": int(draw.integers(2, 8)), "tokens": int(draw.integers(60, 200)), "places": 9}
        least = int(draw.integers(0, 30))
        batches = plan(inputs, [1] * 8, sharing=False, least=least, **limits)
        assert sorted(k for batch in batches for row in batch.rows for k in row.inputs) == list(range(8))
        ordered = sorted(lengths.tolist(), reverse=True)
        every = []
        for cuts in itertools.product([False, True], repeat=7):
            ends = [0, *(k + 1 for k, cut in enumerate(cuts) if cut), 8]
            parts = [ordered[a:b] for a, b in itertools.pairwise(ends)]
            if all(len(p) <= limits["rows"] and p[0] * len(p) <= limits["tokens"] for p in parts if p[1:]):
                every.append(sum(part[0] * len(part) + least for part in parts))
        assert sum(len(batch.rows) * batch.length + least for batch in batches) == min(every)


@pytest.mark.filterwarnings("ignore:3 prompts do not fit")
def test_halves_are_taken_where_memory_does_not_suffice(monkeypatch):
    monkeypatch.setattr(layout, "_ROW", 8)
    monkeypatch.setattr(prefixes, "_FEW", 10**6)
    model, requests = tiny_model(), asked_of()
    wanted = theirs(model, requests)
    prefixes.can_share(model)
    sizes = []

    def little_memory(module, args, kwargs):
        sizes.append(len(args[0]))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_pre_hook(little_memory, with_kwargs=True)
    with pytest.warns(UserWarning, match="7 prompts do not fit into memory; now 3"):
        assert_same(ours(model, requests), wanted)
    assert max(sizes) == 7
