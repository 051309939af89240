"""The loss of healing: in chunks it is the plain loss, packed it is the unpacked one, compiled too."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from healed import make_examples
from tiny import CONFIGS, MORE, breaks_at, tiny_model, tiny_tokenizer
from torch.nn.functional import cross_entropy

from workbench.healing.losses import Head, head_of, response_loss, summed_loss, summing_loss
from workbench.healing.losses import loss_and_gradient as chunk_loss
from workbench.healing.samples import Sample, check_packing, collate, read_samples

#: whose samples see each other in a row: no masks by position, or a state that runs on
NOT_PACKED = {"opt", "falcon", "bloom", "minimax", "jamba", "rwkv"}
EXACT = {"rtol": 1e-5, "atol": 1e-6}


def samples(seed=0, lengths=(9, 4, 12, 5, 3)):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randint(5, 300, (length,), generator=generator).tolist() for length in lengths]
    return [Sample(ids, 1 + k % 2) for k, ids in enumerate(made)]


def frozen(architecture, **overrides):
    """A model whose head is frozen, and an inner weight that is trained."""
    model = tiny_model(architecture, **overrides)
    model.requires_grad_(False)
    weight = next(p for name, p in model.named_parameters() if ".3." in name and p.ndim == 2)
    return model, weight.requires_grad_(True)


def by_hand(model, rows):
    """The sum over every learned token of a sample, one sample at a time."""
    total = 0.0
    for sample in rows:
        logits = model(input_ids=torch.tensor([sample.ids]), use_cache=False).logits[0]
        targets = torch.tensor(sample.ids)
        for place in range(sample.n_prompt, len(sample.ids)):
            total = total + cross_entropy(logits[place - 1], targets[place])
    return total


def loss_and_gradient(model, weight, rows, packed=False, **options):
    weight.grad = None
    batch = collate([(sample, 1.0) for sample in rows], packed=packed)
    batch.pop("weight")
    with summing_loss(model, **{"chunk": 4, **options}):
        loss = model(**batch)
    loss.backward()
    return loss.detach(), weight.grad.clone()


@pytest.mark.parametrize(
    "architecture", ["llama", "llama-tied", "gemma2", "gemma3", "granite", "gpt2", "opt", "falcon", "gemma3n"]
)
def test_in_chunks_loss_and_gradient_are_those_of_one_token_at_a_time(architecture):
    model, weight = frozen(architecture)
    rows = samples()
    expected = by_hand(model, rows)
    expected.backward()
    gradient = weight.grad.clone()
    for chunk in (1, 4, 1000):
        loss, found = loss_and_gradient(model, weight, rows, chunk=chunk)
        torch.testing.assert_close(loss, expected.detach(), **EXACT)
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=2e-6)
    assert "forward" not in vars(model)
    assert model(input_ids=torch.tensor([[7, 8]])).logits.shape == (
        1,
        2,
        model.get_input_embeddings().num_embeddings,
    )


@pytest.mark.parametrize("architecture", [*CONFIGS, *MORE])
def test_every_tiny_architecture_has_a_head_that_is_understood(architecture):
    head = head_of(tiny_model(architecture))
    assert head is not None
    assert head.scale == (0.5 if architecture == "granite" else 1.0)
    assert head.cap == (30.0 if architecture in ("gemma2", "gemma3n") else None)


@pytest.mark.parametrize(
    ("architecture", "entry", "without"),
    [("granite", "logits_scaling", 1.0), ("gemma2", "final_logit_softcapping", None)],
)
def test_a_head_that_the_configuration_does_not_tell_of_is_left_to_the_model(architecture, entry, without):
    model, weight = frozen(architecture)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # so that the cap bites
    loss, gradient = loss_and_gradient(model, weight, samples())
    own, value = model.forward, getattr(model.config, entry)

    def knows(**arguments):
        setattr(model.config, entry, value)
        try:
            return own(**arguments)
        finally:
            setattr(model.config, entry, without)

    model.forward = knows
    setattr(model.config, entry, without)
    assert head_of(model) is None
    again, same = loss_and_gradient(model, weight, samples())
    torch.testing.assert_close(again, loss, **EXACT)
    torch.testing.assert_close(same, gradient, rtol=1e-4, atol=5e-5)
    assert model.forward is knows


def test_a_head_that_is_trained_gets_its_gradient():
    model = tiny_model("llama")
    weight = model.lm_head.weight
    _, found = loss_and_gradient(model, weight, samples())
    weight.grad = None
    by_hand(model, samples()).backward()
    torch.testing.assert_close(found, weight.grad, rtol=1e-4, atol=1e-6)


def test_no_more_logits_at_once_than_asked_for():
    model, weight = frozen("llama")
    seen = []
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape[:-1].numel()))
    rows = samples()
    n = sum(sample.learned for sample in rows)
    loss_and_gradient(model, weight, rows, chunk=4)
    assert max(seen[2:]) <= 4  # the first two compare the head with the model's own
    assert sum(seen[2:]) == n


def test_nothing_to_learn_is_a_loss_of_zero_with_a_gradient():
    states = torch.randn(0, 6, requires_grad=True)
    loss = summed_loss(states, torch.empty(0, dtype=torch.long), lambda *_: None, 4)
    loss.backward()
    assert loss == 0
    assert states.grad.shape == (0, 6)


@pytest.mark.parametrize("architecture", [*CONFIGS, *MORE])
def test_packed_rows_give_the_loss_of_unpacked_ones_or_are_refused(architecture):
    model, weight = frozen(architecture)
    if architecture in NOT_PACKED:
        with pytest.raises(ValueError, match=r"packing must be False for \w+ \(\w+ attention\)"):
            check_packing(model)
        return
    check_packing(model)
    rows = samples(lengths=(12, 5, 7, 4, 3, 3))
    packed = collate([(sample, 1.0) for sample in rows], packed=True)
    assert packed["input_ids"].shape == (3, 12)
    plain, gradient = loss_and_gradient(model, weight, rows)
    loss, found = loss_and_gradient(model, weight, rows, packed=True)
    torch.testing.assert_close(loss, plain, **EXACT)
    torch.testing.assert_close(found, gradient, rtol=1e-4, atol=5e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # read by torch.compile
def test_compiled_it_is_the_same():
    model, weight = frozen("gemma2")
    plain = loss_and_gradient(model, weight, samples())
    compiled = loss_and_gradient(model, weight, samples(), compiled=True)
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=2e-6)


def test_response_loss_is_the_mean_over_learned_tokens():
    model, tokenizer = tiny_model("llama", num_hidden_layers=3), tiny_tokenizer()
    rows = make_examples(24)[16:].reset_index(drop=True)
    total = count = 0.0
    for sample in read_samples(model, tokenizer, rows, "response", 128)[0]:
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([sample.ids])).logits[0].log_softmax(-1)
        for place in range(sample.n_prompt, len(sample.ids)):
            total -= scores[place - 1, sample.ids[place]].item()
            count += 1
    model.train()
    for batch_size in (1, 3, 100):
        found = response_loss(model, tokenizer, rows, response="response", batch_size=batch_size)
        assert found == pytest.approx(total / count, rel=1e-5)
    assert model.training
    assert response_loss(model, tokenizer, ["A story.", "Another story of a dog."]) > 0
    with pytest.raises(ValueError, match=r"needs the columns \['instruction', 'rewrite'\]"):
        response_loss(model, tokenizer, rows, response="rewrite")


@pytest.mark.skipif(not hasattr(torch.nn.functional, "linear_cross_entropy"), reason="torch 2.13 brings it")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_chunks_it_is_the_linear_cross_entropy_of_torch(dtype):
    from torch.nn.functional import linear_cross_entropy

    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(24, 301, bias=False, dtype=dtype).requires_grad_(False)
    linear.weight.copy_(torch.randn(301, 24, generator=generator))
    states = torch.randn(50, 24, generator=generator).to(dtype)
    targets = torch.randint(301, (50,), generator=generator)
    ours, theirs = states.clone().requires_grad_(), states.clone().requires_grad_()
    loss = summed_loss(ours, targets, partial(chunk_loss, Head(linear)), 8)
    expected = linear_cross_entropy(theirs, linear.weight, targets, reduction="sum")
    (loss / 50).backward()
    (expected / 50).backward()
    close = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    torch.testing.assert_close(loss, expected.float(), **close)
    torch.testing.assert_close(ours.grad, theirs.grad, **close)


def test_a_loss_that_is_no_number_is_refused():
    tokenizer, examples = tiny_tokenizer(), make_examples(4)
    token = tokenizer(examples["reference"].iloc[-1])["input_ids"][0]
    with pytest.raises(ValueError, match="logits are not finite on these texts: its weight"):
        response_loss(breaks_at(tiny_model("llama"), token), tokenizer, examples)
