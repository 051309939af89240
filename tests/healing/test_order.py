"""The order of a training: every epoch a permutation, no update with an example twice, little padding."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from workbench.healing.order import training_order

SHAPES = [
    (n, batch, epochs)
    for n in (1, 2, 3, 5, 8, 16, 33, 48, 65, 100, 127, 300)
    for batch in (1, 2, 3, 4, 8, 16, 64)
    for epochs in (1, 2, 3, 5)
]


@pytest.mark.parametrize("grouped", [True, False])
def test_every_epoch_is_a_permutation_and_no_update_holds_an_example_twice(grouped):
    rng = np.random.default_rng(0)
    for n, batch, epochs in SHAPES:
        lengths = rng.integers(3, 12, n).tolist()  # many of the same length, as copies of one are
        order = training_order(lengths, n * epochs, batch, seed=n, grouped=grouped)
        for start in range(0, n * epochs, n):
            assert sorted(order[start : start + n]) == list(range(n)), (n, batch, epochs)
        most = max(max(Counter(order[k : k + batch]).values()) for k in range(0, n * epochs, batch))
        assert most == 1 if n >= batch else most <= -(-batch // n) + 1, (n, batch, epochs)


@pytest.mark.parametrize("grouped", [True, False])
def test_a_part_of_an_epoch_is_drawn_at_random_and_holds_no_example_twice(grouped):
    seen = Counter()
    for seed in range(200):
        order = training_order(list(range(20)), 27, 6, seed, grouped=grouped)
        assert sorted(order[:20]) == list(range(20))
        assert len(set(order[20:])) == 7
        assert all(len(set(order[k : k + 6])) == len(order[k : k + 6]) for k in range(0, 27, 6))
        seen.update(order[20:])
    # 200 x 7 of 20: 70 each; neither short nor long ones are preferred
    assert len(seen) == 20
    assert 40 < min(seen.values()) <= max(seen.values()) < 105


def test_the_order_has_each_example_once_an_epoch_with_little_padding():
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 200, 500).tolist()
    order = training_order(lengths, 1000, 16, seed=3)
    assert Counter(order) == Counter(list(range(500)) * 2)
    assert order == training_order(lengths, 1000, 16, seed=3)
    assert order != training_order(lengths, 1000, 16, seed=4)
    batches = [[lengths[k] for k in order[i : i + 16]] for i in range(0, 1000, 16)]
    padding = sum(max(batch) * len(batch) for batch in batches) / sum(map(sum, batches))
    assert padding < 1.06
    assert np.corrcoef(np.arange(62), [max(batch) for batch in batches[:62]])[0, 1] < 0.3  # not a curriculum
    assert Counter(training_order([5] * 3, 7, 2, seed=0)).most_common(1)[0][1] == 3
