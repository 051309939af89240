"""The loss that healing minimises, without the logits of all positions ever in memory at once.

With a vocabulary of 128,256, the logits of 8 x 512 tokens and what their cross-entropy keeps for its gradient
take about 10 GiB. Healing never changes the head, so loss and gradient of a chunk of positions are computed
at once and its logits are freed before the next chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from workbench.generation.engines import by_length
from workbench.healing.config import HealingConfig
from workbench.healing.samples import Sample, collate, read_examples
from workbench.models.hooks import inference, not_finite, replaced_forwards
from workbench.models.layers import decoder_forward, unwrap

ChunkLoss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Head:
    """How a model makes logits of its last states: a linear layer, a scale (Granite, Cohere), a cap (Gemma).

    Attributes:
        linear: the output embedding.
        scale: what its output is multiplied by.
        cap: logits become ``cap * tanh(logits / cap)``; None for never.
    """

    linear: nn.Linear
    scale: float = 1.0
    cap: float | None = None

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits ``[..., vocabulary]`` of states ``[..., width]`` in float32."""
        logits = self.linear(states).float()
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def head_of(model: Any) -> Head | None:
    """Return the model's head where it is one of the kinds above, None where it is anything else.

    Not decided by the model's name: the head's logits are compared with the model's own on a few tokens.
    """
    base = unwrap(model)
    linear = base.get_output_embeddings()
    if not isinstance(linear, nn.Linear):
        return None
    config = base.config.get_text_config(decoder=True)
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    head = Head(linear, scale, getattr(config, "final_logit_softcapping", None))
    ids = torch.arange(10, device=linear.weight.device).reshape(2, 5) % config.vocab_size
    with inference(base):
        own = base(input_ids=ids, use_cache=False).logits.float()
        ours = head.logits(decoder_forward(base)(input_ids=ids, use_cache=False).last_hidden_state)
    tolerance = 1e-5 if linear.weight.dtype == torch.float32 else 0.02
    same = own.shape == ours.shape and (own - ours).abs().max() <= tolerance * own.abs().max()
    return head if same else None


def loss_and_gradient(
    head: Head, states: Tensor, targets: Tensor, *, gaps: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy of one chunk, and its gradient with respect to the states.

    Args:
        head: the frozen head.
        states: after the final norm ``[position, width]``.
        targets: the token to predict at each ``[position]``.
        gaps: whether some targets are below 0, which count for nothing.
    """
    kept, targets = ((targets >= 0)[:, None], targets.clamp(min=0)) if gaps else (None, targets)
    logits, weight = head.logits(states), head.linear.weight
    chances = torch.log_softmax(logits, -1)
    picked = chances.gather(1, targets[:, None])
    gradient = chances.exp_().scatter_(1, targets[:, None], torch.exp(picked) - 1)
    if head.scale != 1:
        gradient = gradient * head.scale
    if head.cap is not None:
        gradient = gradient * (1 - (logits / head.cap).square())
    losses, of_states = -picked, gradient.to(states.dtype) @ weight.to(states.dtype)
    if kept is not None:  # a row of the states' size is quicker to clear than one of logits
        losses, of_states = losses * kept, of_states * kept
    return losses.sum(), of_states


def summed_loss(states: Tensor, targets: Tensor, chunk_loss: ChunkLoss, chunk: int) -> Tensor:
    """Return the cross-entropy summed over positions, chunk after chunk; the gradient reaches the states.

    Args:
        states: after the final norm ``[position, width]``.
        targets: the token to predict at each ``[position]``.
        chunk_loss: ``loss_and_gradient`` of a head.
        chunk: positions of a chunk at most.
    """
    summed: Callable[..., Tensor] = _SummedLoss.apply
    return summed(states, targets, chunk_loss, chunk)


class _SummedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, targets: Tensor, chunk_loss: ChunkLoss, chunk: int) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        gradient = torch.empty_like(states)
        for start in range(0, len(states), chunk):
            part = slice(start, start + chunk)
            loss, gradient[part] = chunk_loss(states[part], targets[part])
            total += loss
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * scale, None, None, None


def response_loss(
    model: Any,
    tokenizer: Any,
    examples: Any,
    *,
    response: str = "reference",
    max_length: int = 2048,
    batch_size: int = 16,
) -> float:
    """Return the mean loss over the tokens that healing would learn, such as those of held-out examples.

    Args:
        model: as it stands, with its adapter on if it has one.
        tokenizer: its tokenizer.
        examples: as for ``heal``, with ``response`` and ``max_length``; of plain texts each is a row.
        response: the column that is predicted.
        max_length: tokens of an example at most.
        batch_size: examples at once.

    Returns:
        Nats a token.

    Raises:
        ValueError: for bad examples, as ``heal``; for logits that are not finite.
    """
    samples, _ = read_examples(model, tokenizer, examples, response, max_length)
    with summing_loss(model, chunk=1024):
        loss = mean_loss(model, samples, batch_size)
    if not math.isfinite(loss):
        raise not_finite(model)
    return loss


def mean_loss(model: Any, samples: list[Sample], batch_size: int) -> float:
    """Return the mean loss over the learned tokens of samples, of a model inside ``summing_loss``."""
    device, total = next(model.parameters()).device, 0.0
    with inference(model):
        for indices in by_length([len(sample.ids) for sample in samples], batch_size):
            batch = collate([(samples[index], 1.0) for index in indices])
            del batch["weight"]
            total += model(**{name: values.to(device) for name, values in batch.items()}).item()
    return total / sum(sample.learned for sample in samples)


@contextmanager
def summing_loss(model: Any, *, chunk: int, compiled: bool = False, gaps: bool = False) -> Iterator[None]:
    """Let the model return the summed loss of chosen positions instead of logits, until leaving.

    It then takes ``input_ids`` [row, token], ``positions`` [n] (places in the flattened rows, None for all),
    ``targets`` [n] and maybe ``position_ids``. The model is called as ever, so wrappers around it (peft,
    mixed precision, DDP, FSDP) do their work.

    Args:
        model: a causal language model, with or without an adapter on.
        chunk: positions whose logits are in memory at once.
        compiled: compile the chunk's work.
        gaps: whether some targets are -100, which count for nothing.
    """
    base, head = unwrap(model), head_of(model)
    if head is not None and head.linear.weight.requires_grad:
        head = None  # its own gradient would be missing
    own, decoder = base.forward, decoder_forward(base)

    work = torch.compile(loss_and_gradient, dynamic=True) if compiled else loss_and_gradient
    work = partial(work, gaps=True) if gaps else work

    def loss(input_ids: Tensor, positions: Tensor | None, targets: Tensor, **others: Any) -> Tensor:
        # peft passes every argument it knows, as None
        given = {name: value for name, value in others.items() if value is not None}
        given |= {"input_ids": input_ids, "use_cache": False}
        if head is not None:
            states = _chosen(decoder(**given).last_hidden_state, positions)
            return summed_loss(states, targets, partial(work, head), chunk)
        if base.config.model_type == "gemma3" and hasattr(base.config, "vision_config"):
            # refuses to train without them; elsewhere (GPT-2) they would be added to the embedding
            given["token_type_ids"] = torch.zeros_like(input_ids)
        logits = _chosen(own(**given).logits, positions)
        return cross_entropy(logits.float(), targets, reduction="sum")

    with replaced_forwards([base], lambda _: loss):
        yield


def _chosen(values: Tensor, positions: Tensor | None) -> Tensor:
    """Return the values ``[n, size]`` at some positions of the flattened rows, or at all."""
    flat = values.flatten(0, 1)
    return flat if positions is None else flat.index_select(0, positions)


class Objective:
    """The summed cross-entropy of the learned tokens: SFT, self-data distillation, plain texts.

    Attributes:
        names: parts of the loss that are logged on their own, each a column.
        whole: every token of a sequence counts, not the learned ones alone.
        capturable: an update can be captured once and replayed (``steps.FixedSteps``).
    """

    names: tuple[str, ...] = ()
    whole = False
    capturable = True

    def __init__(self) -> None:
        self.seen: list[Tensor] = []
        self.totals: Tensor | None = None

    def settings(self) -> dict[str, Any]:
        """Return what of it decides the adapter, as plain values."""
        return {}

    def check(self, samples: list[Sample], config: HealingConfig) -> None:
        """Refuse what cannot be learned so."""

    def begin(self, model: Any) -> None:
        """Give a fresh adapter its first weights; what was seen before an error does not count."""
        self.seen.clear()
        self.totals = None

    def acts(
        self, model: Any, *, chunk: int, compiled: bool, gaps: bool = False
    ) -> AbstractContextManager[None]:
        """Let the model return the summed loss of a batch, until leaving."""
        return summing_loss(model, chunk=chunk, compiled=compiled, gaps=gaps)

    def weigh(self, weight: Any) -> None:
        """Add the parts of the batches since the last call to those of the update."""
        for parts in self.seen:
            weighted = parts * weight
            self.totals = weighted if self.totals is None else self.totals + weighted
        self.seen.clear()

    def take(self, like: Tensor) -> Tensor:
        """Return the parts of the update, one number a name, and begin with the next."""
        totals = torch.zeros(len(self.names)) if self.totals is None else self.totals
        self.totals = None
        return totals.to(like)
