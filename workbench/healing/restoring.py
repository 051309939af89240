"""What peft and training change in a model or a process is given back, also after an interrupt."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from transformers import logging as transformers_logging

from workbench.models.hooks import at_the_end, attribute_kept
from workbench.models.layers import unwrap


@contextmanager
def deprecations_muted() -> Iterator[None]:
    """Keep the libraries' notes on their own deprecations off the screen."""
    with ExitStack() as stack:
        stack.callback(transformers_logging.set_verbosity, transformers_logging.get_verbosity())
        transformers_logging.set_verbosity_error()
        stack.enter_context(warnings.catch_warnings(action="ignore", category=FutureWarning))
        yield


@contextmanager
def restored(model: Any) -> Iterator[None]:
    """Give back what peft and training change in a model, also half done: modules, gradients, the mode."""
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modules = [(module, module.training, dict(module._modules)) for module in model.modules()]
    attributes = dict(vars(model))

    def restore() -> None:
        for module, training, children in modules:
            module.training = training
            module._modules.clear()
            module._modules.update(children)
        for name in vars(model).keys() - attributes.keys():
            delattr(model, name)
        if "name_or_path" in attributes:
            model.name_or_path = attributes["name_or_path"]
        for parameter, gradient in wanted:
            parameter.requires_grad_(gradient)
            parameter.grad = None

    with at_the_end(restore):
        yield


@contextmanager
def weights_kept(model: Any, *, after_errors_only: bool = False) -> Iterator[None]:
    """Give the parameters their tensors back, where other ones took their place."""
    # 4-bit weights are never merged into, and bitsandbytes repacks them where it computes on a CPU
    quantized = getattr(unwrap(model), "is_quantized", False)
    held = [] if quantized else [(parameter, parameter.data) for parameter in model.parameters()]
    done = False

    def restore() -> None:
        for parameter, data in () if done and after_errors_only else held:
            parameter.data = data

    with at_the_end(restore):
        yield
        done = True


@contextmanager
def same_randomness(device: torch.device) -> Iterator[None]:
    """Leave the random states and the choice of kernels as they were: the Trainer sets them all."""
    cudnn: Any = torch.backends.cudnn
    with ExitStack() as stack:
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        stack.callback(torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled())
        for name in ("deterministic", "benchmark"):
            stack.callback(setattr, cudnn, name, getattr(cudnn, name))
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        yield


@contextmanager
def same_cache(model: Any) -> Iterator[None]:
    """Leave the model's setting whether to cache as it was: the Trainer switches it off for good."""
    configs = {id(one): one for one in (model.config, model.config.get_text_config(decoder=True))}.values()
    with attribute_kept(configs, "use_cache"):
        yield


@contextmanager
def checkpointing(model: Any) -> Iterator[None]:
    """Compute activations again in the backward pass instead of keeping them, until leaving."""
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    hooked = hasattr(model, "_require_grads_hook")

    def restore() -> None:
        getattr(model, f"{name}_checkpointing_disable")()
        if not hooked and hasattr(model, "_require_grads_hook"):  # transformers leaves it on the embeddings
            model.disable_input_require_grads()

    with at_the_end(restore):
        getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
        yield
