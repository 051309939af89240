"""Responses by vLLM, an optional engine: it loads the model's own folder and decodes it with paged attention.

Written against vLLM's documented offline interface (``LLM``, ``SamplingParams``, ``TokensPrompt``). It runs
what is in the folder or on the hub, so a model that was changed in memory is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from workbench.models.layers import kept_layers, unwrap


@contextmanager
def vllm_decoder(
    model: Any, tokenizer: Any, settings: Any, slots: int, temperature: float
) -> Iterator[Callable[..., list[list[int]]]]:
    """Give a function from prompts (tokens) and uniforms to new tokens, run by vLLM until leaving.

    The first uniform number of a row seeds its sampling, so that a response does not depend on its batch.
    vLLM takes the share of the GPU's memory that the loaded model leaves free.

    Args:
        model: a whole model as it was loaded; says which folder or hub id and which dtype.
        tokenizer: not used: prompts are tokens.
        settings: generation settings with eos_token_id, pad_token_id and max_new_tokens.
        slots: tokens of the longest prompt and response.
        temperature: 0 for greedy.

    Raises:
        ValueError: when vLLM is not installed, or the model is not what its folder holds.
    """
    if find_spec("vllm") is None:
        raise ValueError(
            "engine='vllm' needs vLLM, which is not installed: pip install vllm, or engine='auto'"
        )
    name, revision = _source(model)
    import torch
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    free, total = torch.cuda.mem_get_info(model.device)
    llm = LLM(
        model=name,
        revision=revision,
        skip_tokenizer_init=True,
        dtype=str(model.dtype).removeprefix("torch."),
        max_model_len=slots,
        gpu_memory_utilization=0.95 * free / total,
        trust_remote_code=False,
    )

    def decode(rows: list[Sequence[int]], uniforms: Any) -> list[list[int]]:
        seeds = [None] * len(rows) if uniforms is None else [int(row[0] * 2**31) for row in uniforms.tolist()]
        wishes = [
            SamplingParams(
                temperature=temperature,
                max_tokens=settings.max_new_tokens,
                seed=seed,
                stop_token_ids=list(settings.eos_token_id or []),
                detokenize=False,
            )
            for seed in seeds
        ]
        prompts = [TokensPrompt(prompt_token_ids=list(row)) for row in rows]
        outputs = llm.generate(prompts, wishes, use_tqdm=False)
        return [_with_end(output.outputs[0], settings) for output in outputs]

    yield decode


def _source(model: Any) -> tuple[str, str | None]:
    """Return folder or hub id, and revision, of a model with the layers that are there, and no adapter."""
    base = unwrap(model)
    name, revision = base.config._name_or_path, getattr(base.config, "_commit_hash", None)
    adapted = any("lora_" in part for part, _ in base.named_parameters())
    if adapted or not name or _layers_in(name, revision) != list(kept_layers(base)):
        raise ValueError(
            "engine='vllm' runs what a folder or the hub holds, but this model was changed in memory (layers "
            "out, or an adapter on); save it with save_pruned and load that, or take engine='auto'"
        )
    return name, revision


def _layers_in(name: str, revision: str | None) -> list[int]:
    from transformers import AutoConfig

    stored = AutoConfig.from_pretrained(name, revision=revision).get_text_config(decoder=True)
    return list(getattr(stored, "kept_layers", None) or range(stored.num_hidden_layers))


def _with_end(output: Any, settings: Any) -> list[int]:
    """Return the tokens of a response, its end mark there when it stopped at one."""
    tokens, ends = list(output.token_ids), list(settings.eos_token_id or [])
    if output.finish_reason == "stop" and ends and not (tokens and tokens[-1] in ends):
        tokens.append(ends[0])
    return tokens
