"""Does a monitor leave no trace? The same bits with and without it, and no hooks afterwards."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from monitored import FIRST, Positions, batch, expected, mlp, pairs, sgd, train, with_state
from naive_gradients import examples
from small_models import cross_entropy, hooks
from torch import nn

from batchscope.measure.monitor import WARM_UP, NoiseMonitor


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    moments = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [t.clone() for t in [*model.state_dict().values(), *moments, *gradients, torch.get_rng_state()]]


@pytest.mark.parametrize("settings", [{}, {"every": 1}, {"every": 3}, {"source": "parts", "every": 1}], ids=str)
@pytest.mark.parametrize("make", [mlp, with_state, Positions])
@pytest.mark.parametrize("pieces", [1, 2])
def test_training_is_the_same_bit_for_bit(make: Callable[[], nn.Module], settings: dict[str, Any], pieces: int) -> None:
    given: dict[str, Any] = settings | ({"source": "micro-batches"} if pieces == 2 and "source" in settings else {})
    ends = []
    for monitored in (False, True):
        model = make()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        monitor = NoiseMonitor(model, **given) if monitored else None
        for step in range(26):
            optimizer.zero_grad()
            for x, y in zip(*(t.chunk(pieces) for t in batch(step)), strict=True):
                (cross_entropy(model, x, y) / pieces).backward()
            if monitor is not None:
                monitor.step()
            optimizer.step()
        if monitor is not None:
            assert monitor.report().measurements
            monitor.remove()
            assert hooks(model) == 0
        ends.append(state(model, optimizer))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_removed_it_does_nothing_more() -> None:
    model = mlp()
    monitor = train(model, 12)
    assert hooks(model) > 0  # the next step would be measured
    monitor.remove()
    assert hooks(model) == 0
    found = monitor.report()
    for step in range(12, 20):
        cross_entropy(model, *batch(step)).backward()
        monitor.step()
        assert hooks(model) == 0
    assert monitor.report().measurements == found.measurements
    assert copy.deepcopy(model)(batch(0)[0]).shape == pickle.loads(pickle.dumps(model))(batch(0)[0]).shape


@pytest.mark.parametrize("at", [WARM_UP, FIRST, FIRST + 3])
@pytest.mark.parametrize("when", ["forward", "backward", "after"])
def test_an_error_within_a_step_leaves_no_hooks(at: int, when: str) -> None:
    model = mlp()

    def fail(*args: Any) -> None:
        raise ZeroDivisionError

    def loop(monitor: NoiseMonitor) -> None:
        for step in range(20):
            output = model(batch(step)[0])
            if step == at:
                fail() if when == "forward" else output.register_hook(fail) if when == "backward" else None
            output.square().mean().backward()
            if step == at:
                fail()
            monitor.step()

    def watched() -> None:
        with NoiseMonitor(model, every=1) as monitor:
            loop(monitor)

    with pytest.raises(ZeroDivisionError):
        watched()
    assert hooks(model) == 0


def test_a_step_that_broke_off_does_not_spoil_the_next() -> None:
    """A loop that skips a batch after an error (out of memory, say) goes on being measured."""
    model, weights = mlp(), []
    optimizer = sgd(model)
    monitor = NoiseMonitor(model, every=1)
    for step in range(20):
        optimizer.zero_grad()
        if step == 12:
            model(batch(99)[0])  # and then the backward pass fails
        weights.append(copy.deepcopy(model))
        cross_entropy(model, *batch(step)).backward()
        monitor.step()
        optimizer.step()
    found = monitor.report().measurements
    assert pairs(found) == expected(weights, found, examples)
    assert len(found) >= 20 - FIRST - 1


def test_a_model_may_be_copied_and_pickled_while_it_is_measured() -> None:
    model = mlp()
    monitor = train(model, 12)
    others = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for other in others:
        cross_entropy(other, *batch(3)).backward()
    cross_entropy(model, *batch(12)).backward()
    monitor.step()
    assert len(monitor.report().measurements) == 13 - FIRST
