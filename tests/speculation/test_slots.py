"""The cache with a place for each row: what a refused token left is never seen."""

from __future__ import annotations

import torch
from tiny import tiny_model

from workbench.speculation.decoder import DraftDecoder, Drafting
from workbench.speculation.slots import seen


def test_a_token_sees_itself_and_those_before():
    places = torch.tensor([[2, 3], [0, 1]])
    assert seen(places, 4).long()[:, 0].tolist() == [
        [[1, 1, 1, 0], [1, 1, 1, 1]],
        [[1, 0, 0, 0], [1, 1, 0, 0]],
    ]


@torch.no_grad()
def test_rows_go_on_from_different_places_over_what_was_refused():
    model = tiny_model("llama")
    rows = [[5, 9, 7, 3, 8], [4, 6, 2]]
    with DraftDecoder(model, None, Drafting(0)).ready() as decoder:
        decoder._prepare(2, 12, 2)
        decoder._begin(rows, [0, 1])
        side, places = decoder.target, torch.tensor([[4, 5, 6], [2, 3, 4]])
        side.logits(torch.tensor([[8, 300, 301], [2, 302, 303]]), places)  # two tokens each are refused
        found = side.logits(torch.tensor([[8, 11], [2, 12]]), places[:, :2])
    for place, row in enumerate(([*rows[0], 11], [*rows[1], 12])):
        wanted = model(input_ids=torch.tensor([row])).logits[0, -2:]
        torch.testing.assert_close(found[place], wanted, atol=1e-5, rtol=1e-4)
