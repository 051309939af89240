"""LoRA layers, norms and rotations in fewer kernels: the loss and gradients of the layers as they are."""

from __future__ import annotations

import sys
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from peft.tuners.lora.layer import Linear
from tiny import tiny_model
from transformers import CohereConfig, CohereForCausalLM

from workbench.healing.adapters import lora_targets
from workbench.healing.fused import fused_layers


def cohere():
    """Return a model that turns neighbours, not halves."""
    sizes = {"hidden_size": 36, "intermediate_size": 52, "num_hidden_layers": 3, "vocab_size": 331}
    torch.manual_seed(0)
    return CohereForCausalLM(CohereConfig(**sizes, num_attention_heads=6, pad_token_id=0))


def adapted(architecture: str, **changes):
    model = cohere() if architecture == "cohere" else tiny_model(architecture)
    targets = lora_targets(model, "all-linear")["target_modules"]
    settings = {"r": 4, "lora_alpha": 12, "target_modules": targets, "task_type": "CAUSAL_LM"}
    peft = get_peft_model(model, LoraConfig(**settings | changes))
    draw = torch.Generator().manual_seed(0)
    for name, parameter in peft.named_parameters():
        if parameter.requires_grad:  # B begins at 0, where A has no gradient
            parameter.data = torch.randn(parameter.shape, generator=draw) * (0.1 if "lora" in name else 1)
    return peft.train()


def passed(peft, *, fused: bool, mixed: bool = False):
    peft.zero_grad()
    ids = torch.arange(36).reshape(2, 18) * 7 % 300
    with fused_layers(peft) if fused else nullcontext():
        how = torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext()
        with how, disable_input_dtype_casting(peft, active=mixed):
            loss = peft(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in peft.named_parameters() if p.requires_grad}


def own_forwards(peft):
    return [m for m in peft.modules() if "forward" in vars(m)]


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        *(
            (name, {})
            for name in ("llama", "qwen3", "gemma3", "phi3", "olmo2", "gpt-neox", "cohere", "smollm3")
        ),
        ("llama", {"use_rslora": True, "r": 5}),
        ("llama", {"use_dora": True}),
    ],
)
def test_loss_and_gradients_are_those_of_the_layers_as_they_are(architecture, changes):
    peft = adapted(architecture, **changes)
    before = len(own_forwards(peft))
    wanted, gradients = passed(peft, fused=False)
    found, fused = passed(peft, fused=True)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)
    for name, gradient in gradients.items():
        assert (fused[name] - gradient).norm() <= 2e-5 * gradient.norm() + 1e-8, name
    assert len(own_forwards(peft)) == before


def test_in_mixed_precision_it_is_as_near_to_float32():
    peft = adapted("llama")
    exact = passed(peft, fused=False)[1]
    peft.get_base_model().to(torch.bfloat16)
    for parameter in peft.parameters():
        parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
    far = {}
    for fused in (False, True):
        gradients = passed(peft, fused=fused, mixed=True)[1]
        assert all(gradient.dtype == torch.float32 for gradient in gradients.values())
        far[fused] = sum((gradients[name] - exact[name]).norm() for name in exact)
    assert far[True] <= 1.1 * far[False]


@pytest.mark.parametrize(
    ("architecture", "lora", "norm", "turned"),
    [
        ("llama", True, True, True),
        ("gemma3", True, False, True),  # adds 1 to the weight of its norms, in float32
        ("cohere", True, False, False),
    ],
)
def test_only_what_computes_the_same_is_replaced(architecture, lora, norm, turned):
    peft = adapted(architecture)
    file = sys.modules[type(peft.get_base_model()).__module__]
    own = file.apply_rotary_pos_emb
    with fused_layers(peft):
        there = own_forwards(peft)
        assert any(isinstance(module, Linear) for module in there) is lora
        assert any("Norm" in type(module).__name__ for module in there) is norm
        assert (file.apply_rotary_pos_emb is not own) is turned
    assert file.apply_rotary_pos_emb is own


def test_dropout_and_dora_run_as_they_are():
    for changes in ({"use_dora": True}, {"lora_dropout": 0.1}):
        with fused_layers(peft := adapted("llama", **changes)):
            assert not [module for module in own_forwards(peft) if isinstance(module, Linear)]
