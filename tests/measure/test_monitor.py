"""Do three lines in somebody's loop give the noise scale? Held to naive sums at every measured step's weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monitored import FIRST, M, batch, expected, mlp, pairs, sgd, train
from naive_gradients import examples, halves
from small_models import cross_entropy
from torch import nn

from batchscope.measure.monitor import NoiseMonitor
from batchscope.records import NoiseReport


@pytest.mark.parametrize(
    ("settings", "cut", "source", "parts"),
    [
        ({}, examples, "examples", M),
        ({"source": "parts"}, halves, "parts", 2),
        ({"pieces": 2}, halves, "micro-batches", 2),
        ({"before_clipping": True}, examples, "examples", M),
    ],
    ids=["examples", "parts", "micro-batches", "copies"],
)
def test_every_measured_step_is_the_naive_one(settings: dict[str, Any], cut: Any, source: str, parts: int) -> None:
    weights: list[nn.Module] = []
    report = train(mlp(), weights=weights, **settings).report()
    assert (report.source, report.parts, report.steps, report.batch_size) == (source, parts, 12, pytest.approx(M))
    assert [n.step for n in report.measurements] == list(range(FIRST, 12))
    assert [n.examples for n in report.measurements] == [M * n.step for n in report.measurements]
    assert pairs(report.measurements) == expected(weights, report.measurements, cut)
    for n in report.measurements:
        x, y = batch(n.step)
        last = slice(M // 2, None) if "pieces" in settings else slice(None)
        loss = cross_entropy(weights[n.step], x[last], y[last]).item()
        assert (n.loss, n.learning_rate) == (pytest.approx(loss), 0.1)


def test_the_report() -> None:
    report = train(mlp(), 60).report()
    assert report.scale.outcome in ("resolved", "at_least")
    assert report.scale.measurements == 60 - FIRST
    assert report.latest.measurements == (60 - FIRST) // 4
    assert set(report.layers) == {"0", "2"}
    assert (report.groups, report.proxies, report.notes, report.overhead) == ({}, {}, (), None)
    assert f"{60 - FIRST} of 60 steps measured, source examples" in str(report)


def test_the_last_measurements_only() -> None:
    monitor = train(mlp(), 60)
    assert monitor.report(last=20).measurements == monitor.report().measurements[-20:]
    assert monitor.report(precision=0.05).scale.precision == 0.05


@pytest.mark.parametrize("every", [1, 2, 5])
def test_every_so_many_steps(every: int) -> None:
    report = train(mlp(), 40, every=every).report()
    steps = [n.step for n in report.measurements]
    assert steps == list(range(FIRST, 40, every))
    assert report.every == every


def test_parameter_groups_and_learning_rates() -> None:
    model = mlp()
    groups = [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[2].parameters(), "lr": 0.1}]
    optimizer = torch.optim.SGD(groups)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    monitor = NoiseMonitor(model, every=1, optimizer=optimizer)
    for step in range(16):
        optimizer.zero_grad()
        cross_entropy(model, *batch(step)).backward()
        monitor.step()
        optimizer.step()
        schedule.step()
    report = monitor.report()
    assert set(report.groups) == {"group 0", "group 1"}
    assert report.groups["group 0"].trace == report.layers["0"].trace
    assert [n.learning_rate for n in report.measurements] == [0.5 * 0.5**n.step for n in report.measurements]
    assert all(n.loss is None for n in report.measurements)


def test_examples_as_the_loop_counts_them() -> None:
    model, optimizer = mlp(), sgd(mlp())
    monitor = NoiseMonitor(model, every=1, optimizer=optimizer)
    for step in range(12):
        model.zero_grad()
        loss = cross_entropy(model, *batch(step, 4 + step))
        loss.backward()
        monitor.step(loss.item(), examples=4 + step)
    for n in monitor.report().measurements:
        assert n.examples == sum(4 + s for s in range(n.step))
        assert n.batch_size == 4 + n.step


def test_counted_units() -> None:
    model = mlp()
    monitor = NoiseMonitor(model, every=1)
    counts = torch.arange(M) + 1.0
    for step in range(12):
        model.zero_grad()
        x, y = batch(step)
        (F.cross_entropy(model(x), y, reduction="none") * counts).sum().div(counts.sum()).backward()
        monitor.step(counts=counts)
    for n in monitor.report().measurements:
        assert (n.part_size, n.batch_size) == (1.0, pytest.approx(36**2 / sum(k * k for k in range(1, M + 1))))


def test_proxies() -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    monitor = NoiseMonitor(model, every=1, optimizer=optimizer, proxies=True)
    for step in range(20):
        optimizer.zero_grad()
        cross_entropy(model, *batch(step)).backward()
        monitor.step()
        optimizer.step()
    report = monitor.report()
    assert report.source == "parts"
    assert {name: scale.metric for name, scale in report.proxies.items()} == {"sign": "sign", "adam": "adam"}
    assert report.proxies["adam"].measurements == 20 - FIRST


class Ragged(nn.Module):
    """A parameter whose gradient for example i is G + a draw of its own, however many tokens it counts."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(200, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def test_ragged_counts_leave_the_gradient_unbiased() -> None:
    """Tokens of one example are not independent: its gradient is as noisy with 40 of them as with 2."""
    torch.manual_seed(0)
    model, m = Ragged(), 16
    monitor = NoiseMonitor(model, every=1)
    mean = torch.full((200,), 200**-0.5)  # |G|^2 = 1; tr(Sigma) = 200
    for _ in range(400):
        model.zero_grad()
        counts = torch.distributions.Geometric(0.05).sample((m,)) + 1
        x = mean + torch.randn(m, 200)
        (model(x)[:, 0] * counts).sum().div(counts.sum()).backward()
        monitor.step(counts=counts)
    scale = monitor.report().scale
    low, high = scale.squared_gradient.low, scale.squared_gradient.high
    assert low is not None
    assert high is not None
    assert low < 1 < high
    assert scale.trace.estimate == pytest.approx(200, rel=0.02)


# --- clipping, scaling, evaluation ---


def test_clipping_before_the_call() -> None:
    """A framework that calls late: the same measurements, if the gradients are copied."""
    found = []
    for before_clipping in (False, True):
        model = mlp()
        optimizer = sgd(model)
        monitor = NoiseMonitor(model, every=1, before_clipping=before_clipping)
        for step in range(12):
            optimizer.zero_grad()
            cross_entropy(model, *batch(step)).backward()
            if not before_clipping:
                monitor.step()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            if before_clipping:
                monitor.step()
            optimizer.step()
        found.append(pairs(monitor.report().measurements))
    assert found[0] == found[1]


def scaled(steps: int, overflows: tuple[int, ...] = ()) -> tuple[NoiseReport, list[nn.Module]]:
    model, weights = mlp(), []
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=5)
    monitor = NoiseMonitor(model, every=1, scaler=scaler)
    for step in range(steps):
        optimizer.zero_grad()
        weights.append(copy.deepcopy(model))
        loss = cross_entropy(model, *batch(step))
        scaler.scale(loss * torch.inf if step in overflows else loss).backward()
        monitor.step(loss)
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
    return monitor.report(), weights


def test_the_scale_of_a_half_precision_loss_is_divided_out() -> None:
    report, weights = scaled(14)
    assert pairs(report.measurements) == expected(weights, report.measurements, examples)


@pytest.mark.parametrize("overflows", [(FIRST + 3,), (FIRST, FIRST + 1, FIRST + 4)])
def test_steps_that_overflow_are_dropped_and_counted(overflows: tuple[int, ...]) -> None:
    """Also where the first measured steps do, as with a scale that is still sought."""
    report, weights = scaled(24, overflows)
    assert [n.step for n in report.measurements] == [s for s in range(FIRST, 24) if s not in overflows]
    assert report.scale.discarded == len(overflows)
    assert pairs(report.measurements) == expected(weights, report.measurements, examples)


def test_evaluation_between_and_within_steps() -> None:
    plain, model = pairs(train(mlp()).report().measurements), mlp()

    def evaluate(step: int) -> None:
        model.eval()
        with torch.no_grad():
            model(batch(step, 5)[0])
        model.train()

    assert pairs(train(model, before=evaluate).report().measurements) == plain
