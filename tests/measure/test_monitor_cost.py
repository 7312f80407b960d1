"""Does a monitor take no more time than it promises? On a made-up clock the price of measuring is known."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from monitored import FIRST, batch, mlp, train
from small_models import CLASSES, WIDTH, cross_entropy, hooks
from torch import nn

from batchscope.measure import readings
from batchscope.measure.monitor import COMPARED, WARM_UP, NoiseMonitor


class Clock:
    """A plain step takes a second; one in which the model has hooks a price more."""

    def __init__(self, price: float) -> None:
        self.price, self.seconds, self.extra = price, 0.0, 0.0

    def passes(self, measured: bool) -> None:
        self.seconds += 1.0 + self.price * measured
        self.extra += self.price * measured

    def __call__(self) -> float:
        return self.seconds


@pytest.mark.parametrize(("price", "every"), [(0.29, 25), (0.01, 1), (1.7, 142), (0.0, 1), (-0.1, 1)])
def test_how_often_it_measures_is_chosen_from_what_it_costs(price: float, every: int) -> None:
    """Under 2 % of the time, the calibration included, as soon as that is worked off; and not much under it."""
    model, clock, steps = mlp(), Clock(price), 300
    monitor = NoiseMonitor(model, clock=clock)
    counted = 1 + COMPARED  # the first and those that were compared
    for step in range(steps):
        clock.passes(hooks(model) > 0)
        model.zero_grad()
        cross_entropy(model, *batch(step % 7)).backward()
        monitor.step()
        if step + 1 >= max(every * counted, WARM_UP + 2 + 2 * COMPARED) and price > 0:
            assert clock.extra / (step + 1) < 0.02
    report = monitor.report()
    assert report.every == every
    assert report.overhead == pytest.approx(max(price, 0.0) / every, rel=1e-6)
    if every * counted < steps:
        assert len(report.measurements) >= steps // every - 1 - (WARM_UP + COMPARED if every == 1 else 0)


class Late(nn.Module):
    """Turns out not to be covered at a late step, when it first uses a layer by its weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.late, self.used = nn.Linear(WIDTH, CLASSES), nn.Linear(CLASSES, CLASSES), False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(self.body(x), self.late.weight) + self.late(x[:, :CLASSES]) if self.used else self.body(x)


@pytest.mark.parametrize("late", [FIRST + 2 * COMPARED - 1, FIRST + 2 * COMPARED, 200])
def test_another_source_has_another_price(late: int) -> None:
    """Wherever the source changes, the last compared step included: measured again, and never at every step since."""
    model, clock, steps = Late(), Clock(0.29), 600
    monitor = NoiseMonitor(model, clock=clock)
    for step in range(steps):
        model.used = step >= late
        clock.passes(hooks(model) > 0)
        model.zero_grad()
        cross_entropy(model, *batch(step % 7)).backward()
        monitor.step()
    report = monitor.report()
    assert (report.source, report.every) == ("parts", 25)
    assert clock.extra / steps < 0.02


def test_a_clock_that_stands_still() -> None:
    assert train(mlp(), 40, every=None, clock=lambda: 0.0).report().every == 1


def test_a_step_that_is_not_measured_has_no_hooks() -> None:
    model, seen = mlp(), []
    train(model, 40, every=10, before=lambda step: seen.append(hooks(model)))
    assert [step for step, count in enumerate(seen) if count] == [WARM_UP, FIRST, FIRST + 10, FIRST + 20, FIRST + 30]


def test_a_long_run_is_measured_half_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readings, "MOST", 10)
    monkeypatch.setattr(readings, "TOGETHER", 1)
    report = train(mlp(), 80, every=1).report()
    steps = [m.step for m in report.measurements]
    assert len(steps) <= 10
    assert report.every > 1
    assert len({b - a for a, b in itertools.pairwise(steps)}) <= 2
