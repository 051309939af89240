"""What most tests of healing begin with: a tokenizer, a fresh tiny model, a few examples."""

from __future__ import annotations

import pytest
from healed import make_examples
from tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def model():
    return tiny_model("llama")


@pytest.fixture
def examples():
    return make_examples()
