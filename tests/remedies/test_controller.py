"""Do batch size, accumulation, learning rate and schedule move together?"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from controlled import SCHEDULES, TOTAL, Doubling, X, Y, controlled, rates
from torch.optim import lr_scheduler

import batchscope as bs
from batchscope.errors import UsageError
from batchscope.records import Conditions, Measured, MemoryProfile, MicroBatch, NoiseScale, ProfileResult
from batchscope.remedies.growing import OnPlateau, PowerOfSteps, WithNoiseScale
from batchscope.tasks import noisy_quadratic
from batchscope.tasks.noisy_quadratic_truth import built_in
from toys import mlp

# --- batch size and accumulation ---


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [(8, 8, 1), (16, 16, 1), (32, 32, 1), (64, 64, 1)]),
        ({"micro_batch_size": 4}, [(8, 4, 2), (16, 4, 4), (32, 4, 8), (64, 4, 16)]),
        ({"micro_batch_size": 4, "replicas": 2}, [(8, 4, 1), (16, 4, 2), (32, 4, 4), (64, 4, 8)]),
        ({"largest_micro_batch": 16}, [(8, 8, 1), (16, 16, 1), (32, 16, 2), (64, 16, 4)]),
        ({"largest_micro_batch": 12, "replicas": 2}, [(8, 4, 1), (16, 8, 1), (32, 8, 2), (66, 11, 3)]),
        ({"micro_batch_size": 8, "most": 44}, [(8, 8, 1), (16, 8, 2), (32, 8, 4), (40, 8, 5)]),
        ({"largest_micro_batch": 16, "most": 44}, [(8, 8, 1), (16, 16, 1), (32, 16, 2), (42, 14, 3)]),
    ],
)
def test_sizes(settings: dict[str, Any], expected: list[tuple[int, int, int]]) -> None:
    controller, seen = controlled(Doubling(2), **settings), []
    for step in range(8):
        if step % 2 == 0:
            seen.append((controller.batch_size, controller.micro_batch_size, controller.accumulation))
            assert np.prod(seen[-1][1:]) * controller.replicas == controller.batch_size
        before = controller.batch_size
        assert controller.step() == (controller.batch_size != before)
    assert seen == expected
    assert controller.examples == sum(2 * size for size, *_ in expected)


def test_any_ceiling_cuts_evenly() -> None:
    for ceiling in range(1, 14):
        controller = controlled(PowerOfSteps(1, 1), batch_size=1, largest_micro_batch=ceiling)
        for _ in range(150):
            controller.step()
            assert controller.micro_batch_size * controller.accumulation == controller.batch_size
            assert controller.micro_batch_size <= ceiling


def test_ceiling_that_was_measured() -> None:
    """It bounds the micro-batch, and leaves the batch size alone."""
    profile = functools.partial(MemoryProfile, 1, "", "", "", (), binding="memory", reason="", conditions=Conditions())
    memory = profile(largest_micro_batch_size=12)
    found = MicroBatch(8, 1, 8, 1, 1, largest_micro_batch_size=12, memory=memory)
    rest = Measured(None, None, None, 0), (), memory, None, "", Conditions(), None
    for given in (found, ProfileResult("", "", "", "", (), None, *rest)):
        controller = controlled(Doubling(1), largest_micro_batch=given)
        controller.step()
        assert (controller.batch_size, controller.micro_batch_size, controller.accumulation) == (16, 8, 2)
    with pytest.raises(UsageError, match="largest micro-batch that fits, got one without"):
        controlled(Doubling(1), largest_micro_batch=dataclasses.replace(given, memory=None))


@pytest.mark.parametrize("accumulation", [1, 4, 16])
def test_accumulated_gradient_is_the_big_batchs(accumulation: int) -> None:
    torch.manual_seed(0)
    model = mlp()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    controller = bs.BatchSizeController(sgd, batch_size=16 * accumulation, micro_batch_size=16, rule=OnPlateau())
    assert controller.accumulation == accumulation
    for k in range(controller.accumulation):
        part = slice(k * controller.micro_batch_size, (k + 1) * controller.micro_batch_size)
        (F.cross_entropy(model(X[part]), Y[part]) / controller.accumulation).backward()
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    F.cross_entropy(model(X[: controller.batch_size]), Y[: controller.batch_size]).backward()
    for a, p in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-5, atol=1e-7)


# --- learning rate and schedule ---


def plain(name: str) -> list[list[float]]:
    """The learning rates of both groups after each of the schedule's own steps."""
    controller = controlled(OnPlateau())
    scheduler, seen = SCHEDULES[name](controller.optimizer), [rates(controller)]
    for _ in range(TOTAL):
        controller.optimizer.step()
        scheduler.step()
        seen.append(rates(controller))
    return seen


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize(("scale", "power"), [("linear", 1.0), ("square root", 0.5), ("held", 0.0)])
def test_schedule_goes_on_at_the_right_place(name: str, scale: str, power: float) -> None:
    """At 8, 16, 32 examples a step: lr = schedule(E / 8) (B / 8)^power, up to the schedule's end."""
    expected, controller = plain(name), controlled(Doubling(8), scale=scale, most=32, schedule=SCHEDULES[name])
    while controller.examples < TOTAL * 8:
        controller.optimizer.step()
        controller.step()
        unscaled = expected[controller.examples // 8]
        assert rates(controller) == pytest.approx([lr * (controller.batch_size / 8) ** power for lr in unscaled])
    assert controller.steps == 8 + 8 + 10  # 64 + 128 + 320 examples
    assert controller.changes[0].learning_rate == pytest.approx(expected[8][0] * 2**power)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_without_growth_the_schedule_is_its_own(name: str) -> None:
    expected, controller = plain(name), controlled(OnPlateau(), schedule=SCHEDULES[name])
    for t in range(TOTAL):
        controller.optimizer.step()
        controller.step()
        assert rates(controller) == expected[t + 1]


def test_short_batches_count_as_what_they_are() -> None:
    controller = controlled(PowerOfSteps(1e9), schedule=SCHEDULES["lambda"])
    for taken, position in ((8, 1), (3, 1), (5, 2), (20, 4)):
        controller.optimizer.step()
        controller.step(examples=taken)
        assert rates(controller)[0] == pytest.approx(0.1 / (1 + position))
    assert (controller.examples, controller.steps) == (36, 4)


def test_what_others_do_to_the_learning_rate_is_kept() -> None:
    controller = controlled(Doubling(1), scale="linear")
    controller.step()
    assert rates(controller) == pytest.approx([0.2, 0.6])
    for group in controller.optimizer.param_groups:
        group["lr"] /= 10
    controller.step()
    assert rates(controller) == pytest.approx([0.04, 0.12])


def test_learning_rates_that_are_tensors() -> None:
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=torch.tensor(0.1))
    held = optimizer.param_groups[0]["lr"]
    bs.BatchSizeController(optimizer, batch_size=8, rule=Doubling(1), scale="linear").step()
    assert optimizer.param_groups[0]["lr"] is held
    assert float(held) == pytest.approx(0.2)


# --- the rules, in a loop ---


def test_batch_follows_the_exact_noise_scale() -> None:
    """SGD on the noisy quadratic: the size is that of tr(Sigma) / |H w|^2 at the weights, to the next multiple of 4."""
    torch.manual_seed(0)
    model, rows, truth = noisy_quadratic.Quadratic(), noisy_quadratic.noise_rows(), built_in()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    rule = WithNoiseScale(smoothing=0)
    controller = bs.BatchSizeController(sgd, batch_size=4, micro_batch_size=4, most=200, rule=rule, scale="held")
    generator, largest = torch.Generator().manual_seed(0), 4
    for _ in range(150):
        sgd.zero_grad()
        drawn = torch.randint(len(rows), (controller.batch_size,), generator=generator)
        model(rows[drawn]).mean().backward()
        sgd.step()
        exact = truth.noise_scale(model.w.detach().double().numpy())
        controller.step(noise_scale=exact)
        largest = min(200, max(largest, 4 * int(exact / 4 + 0.5)))
        assert controller.batch_size == largest
    assert controller.batch_size > 40
    assert all(c.after > c.before and "noise scale" in c.reason for c in controller.changes)


def test_batch_follows_a_monitor() -> None:
    """tr(Sigma) over the mean |G|^2 of the last 64 measured steps: the harmonic mean of the exact noise scale there."""
    torch.manual_seed(0)
    model, rows, truth = noisy_quadratic.Quadratic(), noisy_quadratic.noise_rows(), built_in()
    sgd = torch.optim.SGD(model.parameters(), lr=0.05)
    rule = WithNoiseScale(smoothing=0)
    controller = bs.BatchSizeController(sgd, batch_size=16, rule=rule, scale="held")
    monitor, generator = bs.NoiseMonitor(model, every=1), torch.Generator().manual_seed(0)
    exact: list[float] = []
    for _ in range(100):
        sgd.zero_grad()
        drawn = torch.randint(len(rows), (controller.batch_size,), generator=generator)
        exact.append(truth.noise_scale(model.w.detach().double().numpy()))
        loss = model(rows[drawn]).mean()
        loss.backward()
        monitor.step(loss)
        sgd.step()
        controller.step(noise_scale=monitor)
    measured = len(monitor.report().measurements)
    assert [(change.step, change.before) for change in controller.changes] == [
        (50, 16),
        (100, controller.changes[0].after),
    ]
    for change, part in zip(controller.changes, (exact[100 - measured : 50], exact[-64:]), strict=True):
        assert change.after == pytest.approx(statistics.harmonic_mean(part), rel=0.1)


def test_changes_are_logged() -> None:
    controller = controlled("on plateau", micro_batch_size=8, scale="linear")
    assert [controller.step(loss=1.0) for _ in range(6)] == [False] * 5 + [True]
    (change,) = controller.changes
    assert str(change) == (
        "step 6 (48 examples): batch size 8 -> 16, accumulation 2, lr 0.2: the loss has not been below 1 for 5 looks"
    )


def test_losses_may_be_tensors() -> None:
    controller = controlled(OnPlateau(patience=1))
    loss = torch.ones((), requires_grad=True)
    assert [controller.step(loss=2 * loss), controller.step(loss=2 * loss)] == [False, True]


@pytest.mark.parametrize(
    ("outcome", "values", "size"),
    [
        ("resolved", (100.0, 80.0, 120.0), 100),
        ("at_least", (None, 80.0, None), 80),
        ("not_enough", (100.0, 0.0, 1e9), 8),
    ],
)
def test_records_are_heard(outcome: str, values: tuple[float | None, ...], size: int) -> None:
    estimate, low, high = values
    b = Measured(estimate=estimate, low=low, high=high, n=9)
    controller = controlled(WithNoiseScale())
    controller.step(noise_scale=NoiseScale(outcome, b, b, b, 9, 9.0, 0.0))
    assert controller.batch_size == size


# --- what is refused ---


@pytest.mark.parametrize(
    ("rule", "settings", "says"),
    [
        ("at noon", {}, "got 'at noon': choose one"),
        ("power of the steps", {}, r"write PowerOfSteps\(t0=1000\)"),
        ("on plateau", {"scale": "cubic"}, "a scale of linear, square root, held, got 'cubic'"),
        ("on plateau", {"micro_batch_size": 3}, r"\(3 x 1 = 3\), got 8: write 9"),
        ("on plateau", {"replicas": 3}, r"\(1 x 3 = 3\), got 8"),
        ("on plateau", {"most": 4}, r"at least the batch size \(8\), got 4"),
        ("on plateau", {"batch_size": 0}, "batch_size as a whole number"),
        ("on plateau", {"micro_batch_size": 4, "largest_micro_batch": 4}, "got both"),
        ("on plateau", {"schedule": lr_scheduler.ReduceLROnPlateau}, "got ReduceLROnPlateau"),
    ],
)
def test_refusals(rule: str, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        controlled(rule, **settings)
