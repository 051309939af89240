"""Variants are data: checked when made, in one form."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.runs.variant import Variant


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "../x"}, "variant name must be"),
        ({"removed": (3, 3)}, "different layer indices"),
        ({"removed": (-1,)}, "different layer indices"),
        ({"removed": "34"}, "removed must be different layer indices >= 0, got '34'"),
        ({"removed": [3.7]}, r"different layer indices >= 0, got \[3.7\]"),
        ({"removed": [True]}, "different layer indices"),
        ({"removed": ["3"]}, "different layer indices"),
        ({"removed": 3}, "different layer indices"),
        ({"removed": None}, "different layer indices"),
        ({"adapter": "/tmp/adapter"}, "adapter must be a path inside the run"),
    ],
)
def test_variants_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        Variant(**{"name": "x", "model": "demo", **arguments})


def test_layers_are_kept_in_one_form():
    assert Variant("x", "demo", removed=np.array([4, 3])) == Variant("x", "demo", removed=(3, 4))
    assert Variant("x", "demo", removed=[4, 3]) == Variant("x", "demo", removed=(3, 4))
