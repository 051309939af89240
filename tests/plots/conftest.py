"""Fixtures of all figures: small frames, and the template of the screen after each test."""

from __future__ import annotations

import pandas as pd
import pytest
from drawn import kept_frame, log_frame
from frames import damage_frame, distance_frame

from workbench.plots import style


@pytest.fixture(scope="module")
def distances() -> pd.DataFrame:
    return distance_frame(7)


@pytest.fixture(scope="module")
def damage(distances) -> pd.DataFrame:
    return damage_frame(distances)


@pytest.fixture(scope="module")
def kept() -> pd.DataFrame:
    return kept_frame()


@pytest.fixture(scope="module")
def log() -> pd.DataFrame:
    return log_frame()


@pytest.fixture(autouse=True)
def screen():
    yield
    style.use_template("screen")
