"""Reading residual states as a model runs: hooks on its layers, and what a clean pass needs around them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workbench.models.layers import decoder_forward, decoder_layers, on_one_device, unwrap

#: Work from which compiling the layers pays, in floating-point operations. On an H200 it took 6 to 10 s and
#: saved 16 % of the time (470 TFLOP/s), so one pass breaks even between 2e16 and 3e16. Ask for it
#: (``compiled=True``) where a process makes several passes: later ones save it all.
COMPILE_FROM = 3e16

#: model types whose layers take [token, row, width]
TOKENS_FIRST = ("xlnet",)


@contextmanager
def at_the_end(restore: Callable[[], object]) -> Iterator[None]:
    """Restore when the body ends, however it does, and again where an interrupt falls into that.

    What is to be restored is changed inside the body, so that an interrupt on the way there is covered too.
    """
    left = [restore]

    def at_first() -> None:
        restore()
        left.clear()

    with ExitStack() as last, ExitStack() as first:
        last.callback(lambda: [again() for again in left])
        first.callback(at_first)
        yield


def state_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the residual state among the arguments of a decoder layer."""
    state: Tensor = args[0] if args else kwargs["hidden_states"]
    return state


def state_out(output: Any) -> Tensor:
    """Return the residual state from the output of a decoder layer: a bare tensor, or the first of several.

    ``output[0]`` alone would silently take the first *row* of the bare tensor that most layers return.
    """
    state: Tensor = output[0] if isinstance(output, tuple | list) else output
    return state


def one_stream(model: nn.Module, state: Tensor) -> Tensor:
    """Return a residual state ``[row, token, width]`` after a check that it is one.

    Raises:
        ValueError: for an architecture with several streams of states (Gemma3n, DeepSeek-V4).
    """
    if state.ndim != 3:
        got = f"{type(unwrap(model)).__name__} passes on several streams ({list(state.shape)})"
        raise ValueError(f"model must hand one state [row, token, width] from layer to layer; {got}")
    return state


@contextmanager
def watch_states(model: nn.Module, see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Call ``see(i, h[i])`` for every residual state ``i = 0 .. L`` as the model runs.

    States are ``[row, token, width]``. ``h[0]`` enters the first layer, ``h[L]`` leaves the last one,
    **before** the final norm: ``hidden_states[-1]`` of transformers is after it.
    """
    layers, asked = decoder_layers(model), list[Any]()
    other_way = unwrap(model).config.model_type in TOKENS_FIRST  # a square batch does not show it

    def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
        given = [*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds")]
        asked[:] = [one.shape[:2] for one in given if isinstance(one, Tensor)]

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        state = one_stream(model, state_in(args, kwargs))
        if other_way or (asked and state.shape[:2] != asked[0]):
            got = f"{type(unwrap(model)).__name__} hands on {list(state.shape)} for {asked or 'its'} tokens"
            raise ValueError(f"model must hand on states [row, token, width]; {got}")
        see(0, state)

    def after(number: int) -> Callable[..., None]:
        return lambda module, args, output: see(number, one_stream(model, state_out(output)))

    with hooked() as handles:
        handles.append(decoder_forward(model).register_forward_pre_hook(begin, with_kwargs=True))
        handles.append(layers[0].register_forward_pre_hook(before, with_kwargs=True))
        for i, layer in enumerate(layers):
            handles.append(layer.register_forward_hook(after(i + 1)))
        yield


@contextmanager
def hooked() -> Iterator[list[Any]]:
    """Give a list for the handles of hooks, which are taken off when the body ends."""
    handles: list[Any] = []
    with at_the_end(lambda: [handle.remove() for handle in handles]):
        yield handles


@contextmanager
def attribute_kept(objects: Iterable[Any], name: str) -> Iterator[None]:
    """Give an attribute its value back at the end, on each of the objects that have it."""
    before = [(one, getattr(one, name)) for one in objects if hasattr(one, name)]

    def restore() -> None:
        for one, value in before:
            setattr(one, name, value)

    with at_the_end(restore):
        yield


@contextmanager
def any_shape() -> Iterator[None]:
    """Attend without cuDNN until leaving, which plans for each new shape of a batch, half a second at times.

    Where shapes repeat its kernels are the faster ones, and torch prefers them on some GPUs.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with at_the_end(lambda: torch.backends.cuda.enable_cudnn_sdp(before)):
        torch.backends.cuda.enable_cudnn_sdp(False)
        yield


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Run the model in evaluation mode without gradients; every module's own mode comes back.

    A mixture of experts gives no logits of its routers meanwhile: they need layers that all run.
    """
    training = [module for module in model.modules() if module.training]
    configs = [getattr(module, "config", None) for module in model.modules()]
    asked = [entries for c in configs if (entries := getattr(c, "__dict__", {})).get("output_router_logits")]
    gradients = torch.is_grad_enabled()

    def restore() -> None:
        torch.set_grad_enabled(gradients)
        for entries in asked:
            entries["output_router_logits"] = True
        for module in training:
            module.training = True

    with at_the_end(restore):  # torch.no_grad() would stay on where an interrupt falls just before its end
        torch.set_grad_enabled(False)
        model.eval()
        for entries in asked:
            entries["output_router_logits"] = False
        yield


@contextmanager
def replaced_forwards(
    layers: Iterable[nn.Module], replace: Callable[[Any], Callable[..., Any]]
) -> Iterator[None]:
    """Let each layer run ``replace(layer)`` for its own forward, until leaving; hooks on it stay."""
    layers = list(layers)
    # an attribute of the instance is another library's wrapper (accelerate) and has to come back as it was
    own = [layer.__dict__.get("forward") for layer in layers]

    def restore() -> None:
        for layer, forward in zip(layers, own, strict=True):
            layer.__dict__.pop("forward", None)
            if forward is not None:
                layer.forward = forward

    with at_the_end(restore):
        for layer in layers:
            layer.forward = replace(layer)
        yield


@contextmanager
def compiled_layers(model: nn.Module, *, dynamic: bool, backend: str = "inductor") -> Iterator[None]:
    """Return a context in which every decoder layer runs compiled, each on its own; all is undone on leaving.

    The layers share one compiled graph, so this takes seconds where compiling the whole model takes minutes.
    Their ``forward`` is compiled, not the call: hooks then run as ever, outside the graph.

    Args:
        model: any model with decoder layers.
        dynamic: True when batches differ in shape, so that one compilation serves them all.
        backend: of ``torch.compile``.
    """
    from torch._inductor import config as inductor  # 1.4 s, so only here

    def compiled(layer: Any) -> Callable[..., Any]:
        return torch.compile(layer.forward, dynamic=dynamic, backend=backend)

    # one small graph needs no pool of compiler processes, which takes seconds to start
    with inductor.patch(compile_threads=1), replaced_forwards(decoder_layers(model), compiled):
        yield


def compiling_pays(model: nn.Module, n_tokens: int) -> bool:
    """Say whether a pass over so many tokens is long enough to compile, and whether the model can be."""
    parameters = [*decoder_layers(model).parameters()]
    quantized = getattr(unwrap(model), "is_quantized", False)
    floating = all(p.is_floating_point() for p in parameters) and not quantized
    compiler = any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang"))
    tools = find_spec("triton") is not None and compiler
    pays = 2 * sum(p.numel() for p in parameters) * n_tokens >= COMPILE_FROM
    return parameters[0].is_cuda and on_one_device(model) and floating and tools and pays


def not_finite(model: nn.Module, whose: str = "the model's", ids: Tensor | None = None) -> ValueError:
    """Return the error for logits that are not finite: a weight that is not, or for ``ids`` the layer."""
    named = ((name, tensor) for name, tensor in model.named_parameters() if tensor.is_floating_point())
    bad = next((name for name, tensor in named if not torch.isfinite(tensor).all()), None)
    dtype = str(getattr(model, "dtype", "its dtype")).removeprefix("torch.")
    why = f"its weight {bad} is not" if bad else f"its weights are, {dtype} overflows"
    if ids is not None and not bad:
        why = _overflowing(model, ids)
    return ValueError(f"{whose} logits are not finite on these texts: {why}")


@torch.no_grad()
def _overflowing(model: nn.Module, ids: Tensor) -> str:
    """Return which layer first gives numbers that are not finite."""
    found: list[str] = []

    def see(number: int, state: Tensor) -> None:
        if not found and not torch.isfinite(state).all():
            where = f"layer {number - 1} gives" if number else "the embedding gives"
            found.append(f"its weights are, but {where} others ({state.dtype} overflows)")

    with watch_states(model, see):
        model(ids)
    return found[0] if found else "its weights and layers are, its head is not"


def check_finite(what: str, values: np.ndarray) -> None:
    """Raise a ValueError unless every text's values ``[text, ...]`` are numbers."""
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        got = f"{int(bad.sum())} of {len(bad)} texts (first: text {int(bad.argmax())}) have others"
        raise ValueError(f"{what} must be finite and not zero, {got}; float16 overflows so: load in bfloat16")
