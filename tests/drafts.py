"""What the tests of speculation share: prompts, the target's own output, drafts of it."""

from __future__ import annotations

import torch

from workbench.runs.variant import Variant

NEW = 24
LENGTHS = (7, 1, 12, 5)


def prompts_of(lengths=LENGTHS, vocabulary=331, seed=1):
    numbers = torch.Generator().manual_seed(seed)
    return [torch.randint(vocabulary, (length,), generator=numbers).tolist() for length in lengths]


def generated(model, prompt, new=NEW):
    """Return what the model's own ``generate`` makes of a prompt, greedily, without an end."""
    ids = torch.tensor([prompt])
    settings = {"max_new_tokens": new, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
    return output[0, ids.shape[1] :].tolist()


def without(*layers, name="pruned"):
    return Variant(name, "tiny", removed=layers)
