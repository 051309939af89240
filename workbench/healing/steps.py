"""An update of a small model as blocks of fixed shape, each shape captured once as a CUDA graph.

A small model waits for Python: a pass launches thousands of kernels that are done at once. A captured pass
launches them all together. That needs shapes that repeat, so short samples share rows of a few lengths
without seeing each other, and rows come in blocks of two sizes. The update's loss is the same sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workbench.healing.arguments import tokens_at_once
from workbench.healing.config import HealingConfig
from workbench.healing.samples import Sample, in_rows
from workbench.models.costs import EXPERTS
from workbench.models.layers import decoder_layers, on_one_device, unwrap
from workbench.models.masks import as_attention_mask, readers, why_no_masks
from workbench.models.probes import reads_apart

#: tokens of the shortest rows; each longer kind of rows is twice as long
ROW = 512
#: tokens of a block at most
TOKENS = 8192
#: parameters of the layers up to which a captured step pays, where an update takes as long to launch as to
#: compute, and tokens of the mean sample: longer rows are faster without a mask
_LARGEST, _LONGEST = 1.5e9, 768


def captures(model: Any, config: HealingConfig, lengths: list[int], *, processes: int) -> bool:
    """Say whether a training runs in blocks of fixed shape: as asked, or where that pays and is exact.

    Args:
        model: a causal language model.
        config: whose ``captured`` decides, unless it is None.
        lengths: tokens of each sample.
        processes: that train together.

    Raises:
        ValueError: when it is asked for and cannot be.
    """
    if config.captured is False or not (config.captured or _pays(model, config, lengths)):
        return False
    reason = _why_not(model, config, processes)
    if config.captured and reason:
        raise ValueError(f"captured must be None or False here: {reason}")
    return reason is None


def _pays(model: Any, config: HealingConfig, lengths: list[int]) -> bool:
    parameters = [*decoder_layers(model).parameters()]
    small = sum(p.numel() for p in parameters) <= _LARGEST
    wanted = config.micro_batch_size is None and parameters[0].is_cuda
    return wanted and small and sum(lengths) <= _LONGEST * len(lengths)


def _why_not(model: Any, config: HealingConfig, processes: int) -> str | None:
    base = unwrap(model)
    text = base.config.get_text_config(decoder=True)
    checks = {
        "several processes train together": processes == 1,
        "dropout draws anew for each shape": config.dropout == 0 and not _drops_out(base),
        "gradient checkpointing computes passes again": not config.gradient_checkpointing,
        "deterministic kernels are asked for": not config.deterministic,
        "its experts are chosen as it runs": not any(getattr(text, name, None) for name in EXPERTS),
        "its weights are quantized": not getattr(base, "is_quantized", False),
        "it is on more than one device": on_one_device(base),
    }
    failed = next((reason for reason, fine in checks.items() if not fine), None)
    return failed or why_no_masks(model) or (None if _apart(base) else "samples in a row see each other")


def _drops_out(model: Any) -> bool:
    """Say whether a model draws at random while it trains."""
    text = model.config.get_text_config(decoder=True)
    inside = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    return inside or bool(getattr(text, "attention_dropout", 0) or getattr(text, "attn_pdrop", 0))


def _apart(base: Any) -> bool:
    """Say whether two samples in one row are read as each alone."""
    vocabulary = base.get_input_embeddings().weight.shape[0]
    draw = np.random.default_rng(0)
    samples = [Sample(draw.integers(vocabulary, size=n).tolist(), 1) for n in (11, 7)]
    reading = read_block(base, torch.from_numpy(_block([samples], 1, 20)).to(base.device))
    return reads_apart(base, reading.pop("input_ids"), [11, 7], **reading)


def collate_blocks(rows: list[tuple[Sample, float]], *, tokens: int = TOKENS) -> dict[str, Any]:
    """Lay the samples of an update out in blocks of few shapes.

    Args:
        rows: samples, each with the weight of the update.
        tokens: of a block at most, unless one row has more.

    Returns:
        ``blocks``: each ``[4, row, token]``, of the tokens, their positions, for each the place behind its
        sample, and the token to predict there (-100 where nothing is learned); ``weight``, what the summed
        loss is multiplied by; ``input_ids``, those of the first block.
    """
    classes: dict[int, list[Sample]] = {}
    for sample, _ in rows:
        length = ROW
        while length < len(sample.ids):
            length *= 2
        classes.setdefault(length, []).append(sample)
    blocks = [
        torch.from_numpy(_block(some, n, length))
        for length, samples in sorted(classes.items())
        for n, some in _divided(in_rows(samples, length), max(1, tokens // length))
    ]
    return {"input_ids": blocks[0][0], "blocks": blocks, "weight": torch.tensor(rows[0][1])}


def _divided(rows: list[list[Sample]], most: int) -> Iterator[tuple[int, list[list[Sample]]]]:
    """Give blocks of ``most`` rows or a quarter of them: (rows of the block, those that are filled)."""
    few, start = max(1, most // 4), 0
    while start < len(rows):
        left = len(rows) - start
        size = most if left > 2 * few else few
        yield size, rows[start : start + size]
        start += size


def _block(rows: list[list[Sample]], n: int, length: int) -> np.ndarray:
    block = np.zeros((4, n, length), dtype=np.int64)
    block[2] = np.arange(1, length + 1)  # what fills a row is read by nothing but itself
    block[3] = -100
    for number, samples in enumerate(rows):
        start = 0
        for sample in samples:
            end = start + len(sample.ids)
            block[0, number, start:end] = sample.ids
            block[1, number, start:end] = np.arange(len(sample.ids))
            block[2, number, start:end] = end
            block[3, number, start + sample.n_prompt - 1 : end - 1] = sample.ids[sample.n_prompt :]
            start = end
    return block


def read_block(model: Any, block: Tensor) -> dict[str, Any]:
    """Return what the decoder is called with for a block."""
    ids, positions, ends, _ = block
    mask = as_attention_mask(model, readers(ends), positions)
    return {"input_ids": ids, "position_ids": positions, "attention_mask": mask}


def block_tokens(model: Any) -> int:
    """Return how many tokens a block holds: as many as fit into memory, up to ``TOKENS``."""
    return max(ROW, min(TOKENS, tokens_at_once(unwrap(model))))


class FixedSteps:
    """Adds up loss and gradient of an update's blocks; on a GPU each shape is captured when it comes again.

    Where capturing fails, the blocks run as they are.
    """

    def __init__(self, model: Any) -> None:
        """Take the model that is trained, inside ``summing_loss`` with gaps."""
        self.base = unwrap(model)
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.device = self.trained[0].device
        self.gradients: list[Tensor] = []
        self.total = torch.zeros((), device=self.device)
        self.weight = torch.zeros((), device=self.device)
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.graphs: dict[tuple[int, ...], tuple[Any, Tensor]] = {}
        self.seen: set[tuple[int, ...]] = set()
        self.pool: Any = None
        self.can_capture = self.stream is not None
        self.failure: Exception | None = None

    def __call__(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Return the loss of an update, its gradient added to the parameters'.

        Args:
            model: as the Trainer calls it.
            inputs: of ``collate_blocks``, on the device.
        """
        with self._aside(inputs):
            self._begin(inputs["weight"])
            for block in inputs["blocks"]:
                self._run(model, block)
            return self.total.clone()

    @contextmanager
    def _aside(self, inputs: dict[str, Any]) -> Iterator[None]:
        """Work in a stream of its own, which capturing needs, after what was asked before."""
        if self.stream is None:
            yield
            return
        here = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(here)
        for tensor in (*inputs["blocks"], inputs["weight"]):
            tensor.record_stream(self.stream)
        with torch.cuda.stream(self.stream):
            yield
        here.wait_stream(self.stream)

    def _begin(self, weight: Tensor) -> None:
        """Give the parameters zeros to add to, always the same: a captured pass adds where it did first."""
        self.total.zero_()
        self.weight.copy_(weight)
        if not self.gradients:
            self.gradients = [torch.zeros_like(p) for p in self.trained]
        torch._foreach_zero_(self.gradients)
        for parameter, gradient in zip(self.trained, self.gradients, strict=True):
            parameter.grad = gradient

    def _run(self, model: Any, block: Tensor) -> None:
        shape = tuple(block.shape)
        if self.can_capture and shape in self.seen and shape not in self.graphs:
            self._capture(model, block)
        if shape in self.graphs:
            graph, taken = self.graphs[shape]
            taken.copy_(block)
            graph.replay()
        else:
            self._add(model, block)
            self.seen.add(shape)

    def _add(self, model: Any, block: Tensor) -> None:
        asked = read_block(self.base, block)
        loss = model(**asked, positions=None, targets=block[3].flatten()) * self.weight
        loss.backward()
        self.total.add_(loss.detach())

    def _capture(self, model: Any, block: Tensor) -> None:
        taken, graph = block.clone(), torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(
                graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
            ):
                self._add(model, taken)
        except Exception as error:  # of whatever cannot be captured
            self.can_capture, self.failure = False, error
            return
        self.pool = graph.pool()
        self.graphs[tuple(block.shape)] = graph, taken
