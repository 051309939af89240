"""The decoder for any attention: caches are cut back exactly, also past a sliding window."""

from __future__ import annotations

import pytest
from drafts import generated, prompts_of, without
from tiny import tiny_model

from workbench.speculation.cached import CachedDecoder
from workbench.speculation.decoder import Drafting
from workbench.speculation.views import draft_view


@pytest.mark.parametrize("architecture", ["gemma3", "mistral", "qwen2-sliding"])
def test_far_past_the_window_the_output_is_the_target_s_own(architecture):
    model, (prompt,) = tiny_model(architecture), prompts_of((23,))  # windows of 5 and 6 tokens
    wanted = generated(model, prompt, 40)
    with draft_view(model, without(1)) as draft, CachedDecoder(model, draft, Drafting(4)).ready() as decoder:
        (found,) = decoder([prompt], 40)
    assert found.tokens == wanted
    assert sum(found.accepted) > 0 or architecture != "gemma3"
