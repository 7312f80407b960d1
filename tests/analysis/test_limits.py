"""Is the limit that is named the one that binds? One made-up machine for each."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from tests.analysis.made_up_studies import EACH, OVERHEAD, TRAIN_SIZE, advice_data, profile

from batchscope.analysis.limits import binding_limit
from batchscope.analysis.surface import Parameters
from batchscope.records import LIMITS, Candidate, Measured, ProfileResult

SIZES = tuple(2**k for k in range(3, 14))
NOTHING = Measured(None, None, None, 0)


def candidate(size: int, seconds: float) -> Candidate:
    """With nothing but its size and seconds per step."""
    return Candidate(
        batch_size=size,
        learning_rate=0.1,
        micro_batch_size=size,
        accumulation=1,
        devices=1,
        steps_to_goal=NOTHING,
        examples_to_goal=NOTHING,
        seconds_per_step=Measured(seconds, None, None, 1),
        seconds_to_goal=NOTHING,
        cost=NOTHING,
        joules=None,
        lowest_loss=None,
        p_best=0.0,
        p_good=0.0,
        trials=0,
        reached=0,
        extrapolated=True,
    )


def bound(size: int, b_crit: float = 200.0, step: Any = None, **changes: Any) -> tuple[str, str]:
    """What binds at a batch size, where log B_crit is known to a third."""
    found = [candidate(b, step(b) if step is not None else (OVERHEAD + b) * EACH) for b in SIZES]
    draws = np.log(b_crit) + 0.3 * np.random.default_rng(0).standard_normal((500, 1))
    law = cast(Parameters, SimpleNamespace(log_b_crit=draws))
    data = dataclasses.replace(advice_data(()), **changes)
    chosen = next(c for c in found if c.batch_size == size)
    limit, why = binding_limit(chosen, found, cast(ProfileResult, None), data, law)
    assert limit in LIMITS
    assert why.endswith(".")
    return limit, why


def flat(size: float) -> float:
    """A device that is never full."""
    return 1e-3 + 1e-9 * size


def test_past_the_critical_batch_size_the_noise_binds() -> None:
    limit, why = bound(1024)
    assert limit == "noise"
    assert "more than 99 %" in why


def test_before_it_the_knee_binds() -> None:
    limit, why = bound(64)
    assert limit == "knee"
    assert "more than 99 %" in why


def test_memory_binds_where_steps_at_the_ceiling_still_gain() -> None:
    """Micro-batches above 512 do not fit; where the device is full below them, more memory would not help."""
    ceiling = {"profile": profile(largest=512)}
    limit, why = bound(512, 10_000.0, flat, **ceiling)
    assert limit == "memory"
    assert "512" in why
    assert bound(1024, 10_000.0, flat, **ceiling)[0] == "memory"  # accumulated
    assert bound(256, 10_000.0, flat, **ceiling)[0] == "knee"  # below the ceiling
    assert bound(512, 10_000.0, lambda b: b * EACH, **ceiling)[0] == "knee"


def test_a_ceiling_above_the_data_is_none() -> None:
    assert bound(1024, profile=profile(largest=TRAIN_SIZE))[0] == "noise"


def test_the_data_set_binds_at_the_largest_size_that_it_allows() -> None:
    limit, why = bound(8192, 1e6)
    assert limit == "data set"
    assert f"{TRAIN_SIZE:,}" in why
    assert bound(8192, 1e6, train_size=20_000)[0] == "knee"  # 16,384 would be allowed


def test_the_smallest_size_that_was_timed_binds() -> None:
    assert bound(8)[0] == "smallest size"


def test_examples_alone_are_bound_by_the_noise() -> None:
    question = dataclasses.replace(advice_data(()).question, objective="examples")
    limit, why = bound(64, question=question)
    assert limit == "noise"
    assert "example" in why


@pytest.mark.parametrize("size", SIZES)
def test_some_limit_always_binds(size: int) -> None:
    assert bound(size)[0] != "none"
