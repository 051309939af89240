"""The loss of recovery: how far the pruned student is from the whole model, term by term (ITR 3.2).

Every term is a mean over one sequence: *hidden* over its real tokens and the width of the state; *attention*
over heads and pairs of real tokens of which one can see the other; *logits* over tokens and vocabulary; *kl*
over tokens; *lm* over learned tokens. Hidden and attention are summed over the student's layers, as in the
paper. An update is the mean over its sequences, each weighted by its tokens, so that neither padding nor the
size of a micro-batch changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from transformers.modeling_layers import GradientCheckpointingLayer

from workbench.checks import one_of
from workbench.healing.config import HealingConfig
from workbench.healing.launch import sharded
from workbench.healing.losses import Head, Objective, head_of
from workbench.healing.records import WEIGHTS
from workbench.healing.samples import Sample
from workbench.models.hooks import attribute_kept, inference, replaced_forwards, watch_states
from workbench.models.layers import decoder_forward, unwrap
from workbench.recovery.attention import (
    Seen,
    attention_error,
    attention_watched,
    check_attention,
    error_and_gradients,
    told,
)

#: ITR 3.2
PAPER = {"hidden": 1.0, "attention": 1.0, "logits": 1.0}
TERMS = ("hidden", "attention", "logits", "kl", "lm")
_OF_LOGITS = ("logits", "kl", "lm")


def checked_loss(loss: Mapping[str, float] | None) -> dict[str, float]:
    """Return the weights of the terms that count, in the order of ``TERMS``; None for the paper's.

    Raises:
        ValueError: for a name that is no term, a weight that is no number from 0 on, or none above 0.
    """
    given = PAPER if loss is None else loss
    for name, weight in given.items():
        one_of(name, TERMS, "loss")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise ValueError(f"loss: the weight of {name} must be a number >= 0, got {weight!r}")
    weights = {name: float(given[name]) for name in TERMS if given.get(name)}
    if not weights:
        raise ValueError(f"loss must weigh at least one of {', '.join(TERMS)} above 0, got {dict(given)}")
    return weights


def checked_temperature(temperature: float) -> float:
    """Return the temperature of ``kl``.

    Raises:
        ValueError: unless it is a finite number above 0.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be a number above 0, got {temperature!r}")
    return temperature


class Taught(NamedTuple):
    """What the whole model made of a batch, for the layers that the student has too.

    Attributes:
        states: the state behind each layer ``[row, token, width]``.
        attention: what each layer's matrices are computed from.
        last: the state that the head reads.
    """

    states: list[Tensor]
    attention: list[Seen]
    last: Tensor


class Distillation(Objective):
    """Teacher and student in one model: the student as it stands, the teacher whole with the adapter off.

    Args:
        model: the student, without an adapter yet.
        whole: gives the teacher, inside the context it returns.
        kept: which layers of the teacher the student has: ``map(l)`` of ITR's appendix E.
        weights: of the terms, by name.
        temperature: of ``kl``.
        start: folder of an adapter of the same layers to begin with.
        told_of: what else decides the result, for the record.
    """

    whole = True
    capturable = False

    def __init__(
        self,
        model: Any,
        whole: Callable[[], AbstractContextManager[None]],
        kept: Sequence[int],
        *,
        weights: Mapping[str, float],
        temperature: float = 1.0,
        start: str | Path | None = None,
        told_of: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.names = tuple(weights)
        self.weights, self.temperature, self.start = dict(weights), temperature, start
        self.teacher, self.kept, self.told_of = whole, list(kept), dict(told_of or {})
        self.head: Any = head_of(model) if self.names_of(_OF_LOGITS) else None
        self.work: Any = error_and_gradients

    def names_of(self, some: Sequence[str]) -> list[str]:
        """Return which of some terms count."""
        return [name for name in some if name in self.weights]

    def settings(self) -> dict[str, Any]:
        """Return what decides the adapter besides data and training."""
        return {"objective": {"loss": self.weights, "temperature": self.temperature, **self.told_of}}

    def check(self, samples: list[Sample], config: HealingConfig) -> None:
        """Refuse what this loss cannot be computed for."""
        check_batch(len(samples), config)
        if config.packing:
            raise ValueError("packing must be False for recovery: the terms are means over a sequence")
        if sharded():
            raise ValueError("recovery runs on several GPUs by DDP; FSDP would spread the teacher's layers")
        if self.names_of(_OF_LOGITS) and self.head is None:
            raise ValueError("loss: logits, kl and lm need a head that is one linear layer; leave them out")

    def begin(self, model: Any) -> None:
        """Begin with the weights of ``start``."""
        super().begin(model)
        if self.start is not None:
            from peft import set_peft_model_state_dict
            from safetensors.torch import load_file

            set_peft_model_state_dict(model, load_file(Path(self.start) / WEIGHTS))

    @contextmanager
    def acts(self, model: Any, *, chunk: int, compiled: bool, gaps: bool = False) -> Iterator[None]:
        """Let the model return the loss of a batch in place of logits, until leaving."""
        base = unwrap(model)
        if "attention" in self.weights:
            with self.teacher():
                check_attention(base)
        self.work = torch.compile(error_and_gradients, dynamic=True) if compiled else error_and_gradients
        adapted = [m for m in base.modules() if hasattr(m, "_disable_adapters")]
        own = _own_modules(base)

        def loss(**batch: Tensor) -> Tensor:
            for module in own:  # what the model draws at random is no difference of the two
                module.training = False
            taught = self.teach(base, batch["input_ids"], adapted)
            parts = self.parts(base, taught, batch, chunk)
            self.seen.append(torch.stack([parts[name].detach() for name in self.names]))
            return torch.stack([self.weights[name] * parts[name] for name in self.names]).sum()

        with attention_watched(base), replaced_forwards([base], lambda _: loss):
            yield

    def teach(self, base: Any, input_ids: Tensor, adapted: Sequence[Any]) -> Taught:
        """Run the whole model without its adapter; no gradient."""
        states: dict[int, Tensor] = {}
        seen: dict[int, Seen] = {}
        kept = set(self.kept) if "hidden" in self.weights else set()

        def see(number: int, state: Tensor) -> None:
            if number - 1 in kept:
                states[number - 1] = state

        def look(place: int, one: Seen, *_: Any) -> None:
            if "attention" in self.weights and place in self.kept:
                seen[place] = one

        with self.teacher(), inference(base), _off(adapted), watch_states(base, see), told(base, look):
            last = decoder_forward(base)(input_ids=input_ids, use_cache=False).last_hidden_state
        return Taught([states[k] for k in sorted(states)], [seen[k] for k in sorted(seen)], last)

    def parts(self, base: Any, taught: Taught, batch: Mapping[str, Tensor], chunk: int) -> dict[str, Tensor]:
        """Run the student; return each term of the batch, times tokens and summed over its rows."""
        input_ids, lengths = batch["input_ids"], batch["lengths"]
        real = torch.arange(input_ids.shape[1], device=lengths.device) < lengths[:, None]
        rows = lengths.tolist() if "attention" in self.weights else []
        layers: dict[str, list[Tensor]] = {"hidden": [], "attention": []}

        def see(number: int, state: Tensor) -> None:
            if number and "hidden" in self.weights:
                layers["hidden"].append(hidden_error(state, taught.states[number - 1], real))

        def compare(place: int, one: Seen, *_: Any) -> Tensor:
            return attention_error(one, taught.attention[place], rows, self.work)

        def look(place: int, one: Seen, *_: Any) -> None:
            layers["attention"].append(compare(place, one))

        attends = "attention" in self.weights
        again = compare if attends and getattr(base, "is_gradient_checkpointing", False) else None
        with watch_states(base, see), told(base, look if attends else None, again):
            last = decoder_forward(base)(input_ids=input_ids, use_cache=False).last_hidden_state
        found = {name: torch.stack(errors).sum() for name, errors in layers.items() if errors}
        if of_logits := self.names_of(_OF_LOGITS):
            each = _Positions.of(taught.last, real, batch)
            states = last.flatten(0, 1).index_select(0, each.places)
            work = partial(logit_terms, self.head, of_logits, self.temperature)
            error: Callable[..., Tensor] = _Chunked.apply
            found |= dict(zip(of_logits, error(states, each, work, chunk).unbind(), strict=True))
        return found


class _Positions(NamedTuple):
    """The real tokens of a batch: where they are, the teacher's states there, which token comes next."""

    places: Tensor
    teacher: Tensor
    targets: Tensor
    learned: Tensor

    @classmethod
    def of(cls, last: Tensor, real: Tensor, batch: Mapping[str, Tensor]) -> _Positions:
        """Return them; ``learned`` weighs each token so that a row's learned ones make up its tokens."""
        lengths, targets = batch["lengths"], batch["targets"]
        places = real.flatten().nonzero()[:, 0]
        following = torch.full((real.numel(),), -100, device=targets.device)
        following[batch["positions"]] = targets
        learns = (following != -100).view(real.shape)
        weight = learns * (lengths / learns.sum(1).clamp(min=1))[:, None]
        teacher = last.flatten(0, 1).index_select(0, places)
        return cls(places, teacher, following[places], weight.flatten()[places])

    def part(self, chosen: slice) -> _Positions:
        """Return some of them."""
        return _Positions(*(values[chosen] for values in self))


def logit_terms(
    head: Head, names: Sequence[str], temperature: float, states: Tensor, each: _Positions
) -> Tensor:
    """Return the terms on logits, summed over some positions, in the order of ``names``."""
    ours = head.logits(states)
    found: list[Tensor] = []
    with torch.no_grad():
        theirs = head.logits(each.teacher) if names != ["lm"] else ours  # which "lm" does not read
    for name in names:
        if name == "logits":
            found.append((ours - theirs).square().mean(-1).sum())
        elif name == "kl":
            mine, wanted = (log_softmax(logits / temperature, -1) for logits in (ours, theirs))
            found.append(kl_div(mine, wanted, reduction="sum", log_target=True) * temperature**2)
        else:
            targets = each.targets
            found.append((cross_entropy(ours, targets, reduction="none") * each.learned).sum())
    return torch.stack(found)


class _Chunked(torch.autograd.Function):
    """Terms of logits chunk after chunk, each with its gradient, so that a chunk's logits are freed."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, each: _Positions, work: Any, chunk: int) -> Tensor:
        totals: list[Tensor] = []
        gradients: list[Tensor] = []
        for start in range(0, len(states), chunk):
            part = slice(start, start + chunk)
            with torch.enable_grad():
                inside = states[part].detach().requires_grad_()
                terms = work(inside, each.part(part))
                each_one = [torch.autograd.grad(t, inside, retain_graph=True)[0] for t in terms.unbind()]
            totals.append(terms.detach())
            gradients.append(torch.stack(each_one))
        ctx.save_for_backward(torch.cat(gradients, dim=1))
        return torch.stack(totals).sum(0)

    @staticmethod
    def backward(ctx: Any, scales: Tensor) -> tuple[Any, ...]:
        (gradients,) = ctx.saved_tensors
        return (gradients * scales[:, None, None].to(gradients)).sum(0), None, None, None


def hidden_error(student: Tensor, teacher: Tensor, real: Tensor) -> Tensor:
    """Return the squared difference of states, its mean over the width, summed over real tokens.

    Args:
        student: ``[row, token, width]``; gradients reach it.
        teacher: of the same shape.
        real: ``[row, token]``, False at padding.
    """
    error: Callable[..., Tensor] = _HiddenError.apply
    return error(student, teacher.to(student.device), real.to(student.device))


class _HiddenError(torch.autograd.Function):
    """Keeps the two states, which are there anyway, and no difference of them in float32."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, real: Tensor) -> Tensor:
        ctx.save_for_backward(student, teacher, real)
        errors = (student.float() - teacher.float()).square().mean(-1)
        return torch.where(real, errors, 0).sum()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Any, ...]:
        student, teacher, real = ctx.saved_tensors
        gradient = (student.float() - teacher.float()) * (real[..., None] * (2 * scale / student.shape[-1]))
        return gradient.to(student.dtype), None, None


def _own_modules(base: Any) -> list[Any]:
    """Return the modules that draw at random while they train, but for the adapter's own dropout.

    A layer that is computed again in the backward pass must train for that; of what it draws by itself, which
    few architectures do, the terms are then not free.
    """
    modules = [module for name, module in base.named_modules() if "lora_" not in name]
    again = getattr(base, "is_gradient_checkpointing", False)
    return [one for one in modules if not (again and isinstance(one, GradientCheckpointingLayer))]


@contextmanager
def _off(adapted: Sequence[Any]) -> Iterator[None]:
    """Let the adapters' modules pass on what the model's own weights make."""
    with attribute_kept(adapted, "_disable_adapters"):
        for module in adapted:
            module._disable_adapters = True
        yield


def check_batch(n_samples: int, config: HealingConfig) -> None:
    """Refuse fewer sequences than one update takes.

    Raises:
        ValueError: says both numbers.
    """
    if n_samples < config.batch_size:
        least = f"batch_size={config.batch_size} sequences"
        raise ValueError(f"examples must make at least {least}, got {n_samples}")
