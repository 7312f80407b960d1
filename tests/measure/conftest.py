"""A made-up clock for each test of the meter."""

from __future__ import annotations

import pytest
from made_up_clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()
