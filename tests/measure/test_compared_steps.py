"""Steps with a remedy beside plain ones: the seconds of models that sleep are found, each beside its own reference."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from typing import Any

import pytest
import torch
from torch import nn

from batchscope.measure import throughput
from batchscope.measure.compared_steps import time_compared
from batchscope.records import Conditions
from batchscope.remedies.base import Case, by_name
from batchscope.task import Task
from toys import CPU, SIZE, toy

ROUNDS = 3


class Sleeper(nn.Module):
    """A linear model whose forward pass takes so long, and a tenth of it per example."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.linear, self.seconds = nn.Linear(5, 3), seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds * (1 + 0.1 * len(x)))
        return self.linear(x)


def sleeping(seconds: float, **changes: Any) -> Task:
    return toy(model=lambda: Sleeper(seconds), **changes)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Made-up time, which passes only where a model sleeps; windows of 20 ms."""
    passed = [0.0]
    monkeypatch.setattr(time, "sleep", lambda seconds: passed.__setitem__(0, passed[0] + seconds))
    monkeypatch.setattr(throughput, "now", lambda device: passed[0])
    monkeypatch.setattr(throughput, "WINDOW_SECONDS", 0.02)
    return passed


def test_seconds_are_exact_and_every_window_has_a_plain_one_beside_it(clock: list[float]) -> None:
    plain, slow = sleeping(1e-3), sleeping(3e-3)
    lines: list[dict[str, Any]] = []
    passes = time_compared(
        plain, {"none": (plain, [8, 16]), "slow": (slow, [16])}, CPU, Conditions(threads=1), ROUNDS, tell=lines.append
    )
    assert list(passes) == ["none", "slow"]
    for name, per_step in (("none", 1e-3), ("slow", 3e-3)):
        timing = passes[name]
        assert (timing.reference_batch_size, timing.conditions) == (8, Conditions(threads=1))
        assert timing.drift == pytest.approx(0, abs=1e-9)
        for t in timing.timings:
            assert t.seconds_per_step == pytest.approx([per_step * (1 + 0.1 * t.batch_size)] * ROUNDS)
            assert t.reference == pytest.approx([1e-3 * 1.8] * ROUNDS)
    assert [t.batch_size for t in passes["none"].timings] == [8, 16]
    assert sum(line["examples"] for line in lines) > 0


def test_a_drift_of_the_machine_divides_out(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each window takes 1 % longer than the one before; beside its reference, within that, the ratio is 3 to 1.8."""
    windows = [0]
    window = throughput.StepClock.window

    def slower(self: throughput.StepClock, size: int, steps: int, micro: int | None = None) -> float:
        windows[0] += 1
        return window(self, size, steps, micro) * 1.01 ** windows[0]

    monkeypatch.setattr(throughput.StepClock, "window", slower)
    plain = sleeping(1e-3)
    passes = time_compared(plain, {"none": (plain, [20])}, CPU, Conditions(threads=1), ROUNDS)
    (timing,) = passes["none"].timings
    ratios = [a / b for a, b in zip(timing.seconds_per_step, timing.reference, strict=True)]
    assert ratios == pytest.approx([1.01 * 3 / 1.8] * ROUNDS)
    by_round = [timing.reference[r] for r in range(ROUNDS)]
    assert passes["none"].drift == pytest.approx((max(by_round) - min(by_round)) / statistics.median(by_round))
    assert passes["none"].drift > 0.03


def test_turns_are_up_and_down(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, other = sleeping(1e-3), sleeping(3e-3)
    seen: list[tuple[str, int]] = []
    steps_for, window = throughput.StepClock.steps_for, throughput.StepClock.window
    warming = [False]

    def warm(self: throughput.StepClock, size: int, seconds: float = 0.02) -> int:
        warming[0] = True
        steps = steps_for(self, size, seconds)
        warming[0] = False
        return steps

    def noted(self: throughput.StepClock, size: int, steps: int, micro: int | None = None) -> float:
        if not warming[0]:
            seen.append((self.task.name, size))
        return window(self, size, steps, micro)

    monkeypatch.setattr(throughput.StepClock, "steps_for", warm)
    monkeypatch.setattr(throughput.StepClock, "window", noted)
    tasks = {n: dataclasses.replace(t, name=n) for n, t in (("plain", plain), ("a", plain), ("b", other))}
    time_compared(tasks["plain"], {"a": (tasks["a"], [8, 16]), "b": (tasks["b"], [16])}, CPU, Conditions(threads=1), 2)
    up, beside = [("a", 8), ("a", 16), ("b", 16)], ("plain", 8)
    assert seen == [turn for one in (*up, *reversed(up)) for turn in (beside, one)]


@pytest.mark.parametrize(
    ("remedy", "passes_per_step"), [("none", 1), ("linear scaling", 1), ("SAM", 2), ("weight averaging", 1)]
)
def test_what_a_remedy_adds_to_a_step_is_timed(clock: list[float], remedy: str, passes_per_step: int) -> None:
    """SAM's two passes take twice as long."""
    plain = sleeping(1e-3)
    case = Case(SIZE // 2, plain.batch_size, plain.lr, plain.train_size)
    treated = by_name(remedy).apply(plain, case)
    passes = time_compared(plain, {remedy: (treated, [case.batch_size])}, CPU, Conditions(threads=1), ROUNDS)
    (timing,) = passes[remedy].timings
    each = passes_per_step * 1e-3 * (1 + 0.1 * case.batch_size)
    assert timing.seconds_per_step == pytest.approx([each] * ROUNDS)
    assert all(map(math.isfinite, timing.reference))
