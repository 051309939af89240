"""Train the demo model: tokenizer, data and weights, all from the seed. About 4 minutes on one H200.

    python data/demo/train.py --out data/demo/model

Needs a CUDA GPU, torch and transformers; nothing is read but the generator beside this file.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from generator.documents import ASSISTANT, END, PAD, USER, documents, rewrite_prompt  # noqa: E402

ROW = 256
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|assistant|>' if message['role'] == 'assistant' else '<|user|>' }}"
    "{{ message['content'] }}{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(
    vocabulary: int = 2048, n_documents: int = 30_000
) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that splits digits, trained on the world itself."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"\d|[^\d]+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(islice(documents(seed=0), n_documents), trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _rows(job: tuple[str, int, int]) -> np.ndarray:
    """Token rows of one worker. Every row begins with a new document, and holds documents until it is full."""
    path, seed, n = job
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = Tokenizer.from_file(path)
    end, rows, row = tokenizer.token_to_id(END), [], []
    stream = documents(seed)
    while len(rows) < n:
        for encoding in tokenizer.encode_batch(list(islice(stream, 1000))):
            ids = encoding.ids
            row += ids if ids[-1] == end else [*ids, end]
            if len(row) >= ROW:
                rows.append(row[:ROW])
                row = []
    return np.array(rows[:n], dtype=np.uint16)


def training_rows(
    tokenizer: transformers.PreTrainedTokenizerFast, n: int, seed: int, workers: int
) -> torch.Tensor:
    """`n` rows of tokens, shape (n, ROW); the same for a seed whatever the number of workers."""
    shards = 64
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/tokenizer.json"
        tokenizer.backend_tokenizer.save(path)
        jobs = [(path, 1000 * (seed + 1) + i, math.ceil(n / shards)) for i in range(shards)]
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            rows = np.concatenate(pool.map(_rows, jobs, chunksize=1))
    return torch.from_numpy(rows[:n].astype(np.int64))


def new_model(
    args: argparse.Namespace, tokenizer: transformers.PreTrainedTokenizerFast
) -> transformers.LlamaForCausalLM:
    """A Llama with random weights."""
    torch.manual_seed(args.seed)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=args.width,
        intermediate_size=args.ffn,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.heads // 2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return transformers.LlamaForCausalLM(config)


def fit(
    model: transformers.LlamaForCausalLM, rows: torch.Tensor, args: argparse.Namespace, started: float
) -> list[dict]:
    """Train on random batches of the rows; cosine schedule with 100 warm-up steps."""
    model.cuda().train()
    rows = rows.to(torch.int32).cuda()
    generator = torch.Generator().manual_seed(args.seed)
    epochs = args.steps * args.batch // len(rows) + 1
    order = torch.cat([torch.randperm(len(rows), generator=generator) for _ in range(epochs)])
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    lr = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1, (s + 1) / 100) * (0.02 + 0.49 * (1 + math.cos(math.pi * s / args.steps)))
    )
    decoder, head = torch.compile(model.model), model.lm_head
    loss_of = torch.compile(
        lambda h, y: torch.nn.functional.cross_entropy(head(h).float().flatten(0, 1), y.flatten())
    )
    log = []
    for step in range(args.steps):
        batch = rows[order[step * args.batch : (step + 1) * args.batch].cuda()].long()
        with torch.autocast("cuda", torch.bfloat16):
            loss = loss_of(decoder(input_ids=batch, use_cache=False).last_hidden_state[:, :-1], batch[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        lr.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 200 == 0 or step == args.steps - 1:
            log.append(
                {"step": step, "loss": round(loss.item(), 4), "seconds": round(time.time() - started, 1)}
            )
            print(log[-1], flush=True)
    return log


def save(
    model: transformers.LlamaForCausalLM, tokenizer: transformers.PreTrainedTokenizerFast, out: Path
) -> None:
    """Write weights (bf16 safetensors), tokenizer, and the template of self-data distillation."""
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    message = rewrite_prompt("{instruction}", "", "{reference}")
    template = {"math": message, "open": message}
    (out / "distillation_template.json").write_text(json.dumps(template, indent=2) + "\n")


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--ffn", type=int, default=512)
    parser.add_argument("--steps", type=int, default=4600)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--rows", type=int, default=400_000, help="distinct rows of 256 tokens")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit(
            "train.py needs a CUDA GPU (about 4 minutes on one H200); to use the shipped model none is needed"
        )
    started = time.time()
    torch.set_float32_matmul_precision("high")
    tokenizer = train_tokenizer()
    rows = training_rows(tokenizer, args.rows, args.seed, workers=min(16, os.cpu_count() or 1))
    print(f"{len(tokenizer)} tokens, {len(rows)} rows, {time.time() - started:.0f} s", flush=True)
    model = new_model(args, tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    log = fit(model, rows, args, started)
    save(model, tokenizer, args.out)
    record = {name: value for name, value in vars(args).items() if name != "out"}
    record |= {
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(time.time() - started),
    }
    record |= {"tokens": args.steps * args.batch * ROW, "gpu": torch.cuda.get_device_name(), "log": log}
    record |= {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
    (args.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
