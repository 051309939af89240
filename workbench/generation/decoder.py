"""Fast decoding: a cache of fixed size, and on a GPU every step one captured graph.

``generate`` launches a thousand small kernels a step from Python: on an H200 a step of an 8B model takes 30
to 70 ms, whatever the batch, where reading the weights takes 4. Here the step is recorded once and replayed.
Prompts are aligned right in the cache, so that all rows write to the same slot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from transformers import StaticCache

from workbench.generation.cache import ATTENTION, NotExactError, Slots
from workbench.generation.sampling import sampled
from workbench.models.hooks import any_shape, not_finite, replaced_forwards
from workbench.models.layers import decoder_forward, decoder_layers, on_one_device, unwrap
from workbench.models.masks import KINDS

#: rope that follows the longest position asks the GPU for it in every step
MOVING_ROPE = ("dynamic", "longrope")
#: tokens that go through the prefill at once: bounds its memory
PREFILL_TOKENS = 65536
#: the decoder's buffers with one row a prompt
_BY_ROW = ("token", "position", "out", "first", "uniforms", "finished")
#: steps between checks whether all rows are finished
CHECK_EVERY = 8


#: tokens of each prompt
Prompts = Sequence[Sequence[int]]
#: hears now and then how many tokens the rows of a batch have
Tell = Callable[[int], None]


def quiet(_: int) -> None:
    """Hear nothing."""


class StaticDecoder:
    """Decodes batches of prompts of one model; what it prepared for a batch serves the next ones.

    Args:
        model: a model that ``why_not_static`` has nothing against; in evaluation mode.
        ends: tokens that end a response.
        pad: token that fills rows that have ended.
        temperature: 0 for greedy.
        compiled: also compile the decoder layers (seconds, once; then about a fifth faster).
        tell: called now and then with the tokens that a batch has by then.
    """

    def __init__(
        self,
        model: Any,
        *,
        ends: Sequence[int],
        pad: int,
        temperature: float = 0.0,
        compiled: bool = False,
        tell: Tell = quiet,
    ) -> None:
        self.model, self.pad, self.temperature, self.compiled = unwrap(model), pad, temperature, compiled
        self.device, self.on_gpu = self.model.device, self.model.device.type == "cuda"
        self.ends = torch.tensor(sorted(ends), dtype=torch.long, device=self.device)
        self.layers = list(decoder_layers(self.model))
        self.bounds_only = _kernel_fits(self.model)
        self.rows = self.slots = self.room = 0
        self.tell = tell
        self.replay: Any = None

    @contextmanager
    def ready(self) -> Iterator[StaticDecoder]:
        """Return a context in which the model runs with this decoder's attention; undone on leaving."""
        config = decoder_forward(self.model).config
        with ExitStack() as stack:
            stack.callback(setattr, config, "_attn_implementation", config._attn_implementation)
            config._attn_implementation = ATTENTION
            if self.compiled:
                from torch._inductor import config as inductor

                stack.enter_context(inductor.patch(compile_threads=1))
            stack.enter_context(replaced_forwards(self.layers, self._with_own_cache))
            stack.callback(self._forget)
            yield self

    @torch.no_grad()
    def __call__(
        self, prompts: Prompts, max_new_tokens: int, uniforms: Tensor | None = None
    ) -> list[list[int]]:
        """Return the new tokens of each prompt, up to ``max_new_tokens``, filled with ``pad`` after an end.

        Args:
            prompts: tokens, at least one each.
            max_new_tokens: at least 1.
            uniforms: ``[row, step]`` numbers in [0, 1) to sample by, for a temperature.
        """
        try:
            return self._decoded(prompts, max_new_tokens, uniforms)[: len(prompts)]
        except torch.OutOfMemoryError:
            self._forget()
            raise

    def _decoded(self, prompts: Prompts, max_new_tokens: int, uniforms: Tensor | None) -> list[list[int]]:
        longest = max(map(len, prompts))
        if self.rows < 2 * len(prompts) and len(prompts) < self.rows:
            prompts = [*prompts, *[prompts[-1]] * (self.rows - len(prompts))]  # what is prepared serves
        self._prepare(len(prompts), longest + max_new_tokens, max_new_tokens)
        self._reset(prompts, longest, uniforms)
        self._prefill(prompts, longest)
        self._capture()
        found = torch.full((len(prompts), max_new_tokens), self.pad, device=self.device)
        rows = torch.arange(len(prompts), device=self.device)  # whose buffers these are
        for step in range(max_new_tokens):
            if not self.on_gpu:  # a captured step has one size for ever, another sees only slots in use
                self.shown[:] = [int(self.first.min()), longest + step]
            self.replay()
            if step % CHECK_EVERY < CHECK_EVERY - 1:
                continue
            self.tell(step + 1)
            if bool(self.finished.all()):
                break
            if not self.on_gpu and self.finished.sum() * 4 >= len(rows):
                found[rows] = self.out[:, :max_new_tokens]
                rows = self._go_on_without_finished(rows)
        found[rows] = self.out[:, :max_new_tokens]
        if not self.sound:
            raise not_finite(self.model)
        return found.tolist()

    def _go_on_without_finished(self, rows: Tensor) -> Tensor:
        """Drop the rows that have ended from all buffers; a captured step could not do without them."""
        going = ~self.finished
        for name in _BY_ROW:
            setattr(self, name, getattr(self, name)[going])
        for part in self.parts:
            part.keys, part.values = part.keys[going], part.values[going]
        self.rows = int(going.sum())
        return rows[going]

    def _with_own_cache(self, layer: Any) -> Any:
        """Give a layer its own part of the cache, so that compiled code need not know its number."""
        number = self.layers.index(layer)
        run = torch.compile(layer.forward) if self.compiled else layer.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            return run(*args, **{**kwargs, "past_key_values": self.parts[number]})

        return forward

    def _prepare(self, rows: int, slots: int, room: int) -> None:
        """Make the buffers for a batch, unless those that are there do (they may be up to twice as long)."""
        if rows == self.rows and slots <= self.slots <= 2 * slots and room <= self.room:
            return
        self._forget()
        self.rows, self.slots, self.room = rows, -(-slots // 64) * 64, room
        new = {"device": self.device, "dtype": torch.long}
        self.cache = StaticCache(config=self.model.config, max_cache_len=self.slots)
        self.at = torch.zeros(1, **new)  # the slot that the next token goes to
        self.shown = [0, self.slots]
        self.parts = [Slots(rows, self.slots, self.at, self.shown) for _ in self.layers]
        self.cache.layers = list(self.parts)
        self.token, self.position = torch.zeros(rows, 1, **new), torch.zeros(rows, 1, **new)
        self.step, self.out = torch.zeros(1, **new), torch.zeros(rows, room, **new)
        self.finished = torch.zeros(rows, dtype=torch.bool, device=self.device)
        self.sound = torch.ones(1, dtype=torch.bool, device=self.device)  # all logits so far are finite
        self.first = torch.zeros(rows, 1, **new)  # the first slot that each row sees
        self.uniforms = torch.zeros(rows, room, dtype=torch.float64, device=self.device)

    def _forget(self) -> None:
        """Let go of buffers and graph, so that their memory is free."""
        self.rows, self.replay = 0, None
        for name in ("cache", "parts", "step", "sound", *_BY_ROW):
            self.__dict__.pop(name, None)

    def _reset(self, prompts: Prompts, longest: int, uniforms: Tensor | None) -> None:
        lengths = torch.tensor([len(row) for row in prompts])[:, None]
        # the last token of each prompt is the first step's input
        self.token.copy_(torch.tensor([row[-1] for row in prompts])[:, None])
        self.position.copy_(lengths - 1)
        self.first.copy_(longest - lengths)
        self.at.fill_(longest - 1)
        self.step.zero_()
        self.out.fill_(self.pad)
        self.finished.zero_()
        self.sound.fill_(True)
        if uniforms is not None:
            self.uniforms[: len(uniforms), : uniforms.shape[1]] = uniforms.to(self.device)

    def _prefill(self, prompts: Prompts, longest: int) -> None:
        """Fill the cache with all tokens of the prompts but the last, padded on the right: no mask needed."""
        width = longest - 1
        if not width:
            return
        together = max(1, PREFILL_TOKENS // width)
        for start in range(0, self.rows, together):
            rows = prompts[start : start + together]
            shift = torch.tensor([longest - len(row) for row in rows], device=self.device)
            ids = torch.tensor([[*row[:-1], *[self.pad] * (longest - len(row))] for row in rows])
            index = (torch.arange(width, device=self.device) - shift[:, None]) % width
            uneven = any(len(row) != longest for row in rows)
            for part in self.parts:
                part.fill(start, index if uneven else None)
            with any_shape():
                decoder_forward(self.model)(
                    input_ids=ids.to(self.device), past_key_values=self.cache, use_cache=True
                )
        for part in self.parts:
            part.filling = False

    def _capture(self) -> None:
        """Record a step once, on CUDA; elsewhere a step runs as it is."""
        if self.replay is None:
            state = [self.token, self.position, self.at, self.step, self.out, self.finished, self.sound]
            self.replay = recorded(self._take_step, state)

    def _take_step(self) -> None:
        logits = self._logits().float()
        chosen = self._chosen(logits)
        # an argmax takes what is no number first, so its own logit tells
        telling = logits.amax(dim=-1, keepdim=True) if self.temperature else logits.gather(-1, chosen)
        self.sound.logical_and_((telling.isfinite() | self.finished[:, None]).all())
        chosen = chosen.masked_fill(self.finished[:, None], self.pad)
        self.out.index_copy_(1, self.step, chosen)
        self.finished.logical_or_(torch.isin(chosen, self.ends).squeeze(1))
        self.token.copy_(chosen)
        for counter in (self.position, self.at, self.step):
            counter.add_(1)

    def _logits(self) -> Tensor:
        """Return the logits ``[row, vocabulary]`` after the current token, which enters the cache."""
        inputs = {"input_ids": self.token, "attention_mask": self._seen(), "position_ids": self.position}
        logits: Tensor = self.model(**inputs, past_key_values=self.cache, use_cache=True).logits[:, -1]
        return logits

    def _seen(self) -> Tensor:
        """Say which slots each row sees: a mask, or for the kernel the first and last slot, as four axes."""
        if self.bounds_only:
            bounds = torch.cat([self.first, self.at.expand(self.rows, 1)], dim=1)
            return bounds.int()[:, None, None]
        slots = torch.arange(*self.shown, device=self.device)
        return ((slots >= self.first) & (slots <= self.at))[:, None, None]

    def _chosen(self, logits: Tensor) -> Tensor:
        if not self.temperature:
            return logits.argmax(dim=-1, keepdim=True)
        return sampled(logits, self.uniforms.index_select(1, self.step), self.temperature)


def recorded(step: Callable[[], None], state: Sequence[Tensor]) -> Callable[[], None]:
    """Return what replays a step that was recorded once, on CUDA; elsewhere the step as it is.

    Args:
        step: reads and writes tensors in their places.
        state: the tensors that it writes; afterwards they are as before.
    """
    device = state[0].device
    if device.type != "cuda":
        return step
    before = [tensor.clone() for tensor in state]
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):  # libraries set themselves up, kernels compile
        for _ in range(2):
            step()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for tensor, value in zip(state, before, strict=True):
        tensor.copy_(value)
    replay: Callable[[], None] = graph.replay
    return replay


def why_not_static(model: Any, slots: int) -> str | None:
    """Say why a model cannot decode with a static cache, None when it can.

    The configuration is checked first; then two short prompts are decoded and compared with the
    model's own uncached forward pass.

    Args:
        model: a causal language model.
        slots: tokens that the cache would hold.
    """
    base = unwrap(model)
    text = base.config.get_text_config(decoder=True)
    kinds = set(getattr(text, "layer_types", None) or ()) - KINDS
    window = getattr(text, "sliding_window", None) or slots
    checks = {
        "its class does not support a static cache": getattr(base, "_can_compile_fullgraph", False)
        and getattr(base, "_supports_attention_backend", False),
        f"its attention is {text._attn_implementation}, not sdpa": text._attn_implementation == "sdpa",
        f"it has {', '.join(sorted(kinds))} layers": not kinds,
        f"its window of {window} is shorter than the {slots} tokens": window >= slots,
        "its positions are not rotary": bool(_rope_types(text)),
        "its rope follows the longest position": not _rope_types(text) & set(MOVING_ROPE),
        "its weights are quantized": not getattr(base, "is_quantized", False),
        "it is on more than one device": on_one_device(base),
    }
    failed = next((reason for reason, fine in checks.items() if not fine), None)
    return failed or _disagreement(base)


@torch.no_grad()
def _disagreement(model: Any) -> str | None:
    vocabulary = model.get_input_embeddings().num_embeddings
    numbers = torch.Generator().manual_seed(0)
    prompts = [torch.randint(vocabulary, (n,), generator=numbers).tolist() for n in (9, 4)]
    decoder = StaticDecoder(model, ends=[], pad=0)
    try:
        with decoder.ready():
            decoder._prepare(2, 12, 2)
            decoder._reset(prompts, 9, None)
            decoder._prefill(prompts, 9)
            found = []
            for _ in range(2):
                found.append(decoder._logits())
                decoder.token.fill_(1)
                decoder.position.add_(1)
                decoder.at.add_(1)
    except NotExactError as error:
        return str(error)
    own = [model(input_ids=torch.tensor([[*row, 1]], device=model.device)).logits[0, -2:] for row in prompts]
    wanted, got = torch.stack(own).float(), torch.stack(found, dim=1).float()
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-9}.get(model.dtype, 0.04)
    gap = float((wanted - got).norm() / wanted.norm())
    return None if gap <= tolerance else f"its logits with a static cache are off by {gap:.2g} of their size"


def _kernel_fits(model: Any) -> bool:
    if model.device.type != "cuda" or find_spec("triton") is None:
        return False
    from workbench.generation.kernel import HEAD_SIZES

    text = model.config.get_text_config(decoder=True)
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return size in HEAD_SIZES and model.dtype in (torch.bfloat16, torch.float16)


def _rope_types(text: Any) -> set[str]:
    found = getattr(text, "rope_parameters", None) or {}
    nested = [found, *(value for value in found.values() if isinstance(value, dict))]
    return {one["rope_type"] for one in nested if "rope_type" in one}
