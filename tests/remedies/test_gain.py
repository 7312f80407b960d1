"""The gain against its closed form, averages against a naive twin, schedules against ones stepped by hand."""

from __future__ import annotations

import io
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from controlled import SCHEDULES, TOTAL
from torch.nn.parallel import DistributedDataParallel

import batchscope as bs
from batchscope.analysis.noise_scale import draw
from batchscope.errors import UsageError
from batchscope.measure.halves import Halves
from batchscope.records import GradientNorms
from batchscope.remedies.gain import ASKED, AdaScale, gain, power_of
from batchscope.tasks import noisy_quadratic
from batchscope.training.distributed import Replicas
from ranks import on_ranks
from toys import examples, mlp


def optimizer(lr: float = 0.1) -> torch.optim.Optimizer:
    """With two groups."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr * k} for k in (1, 3)]
    return torch.optim.SGD(groups)


def rates(made: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in made.param_groups]


# --- the gain ---


def test_limits() -> None:
    assert gain(1.0, 0.0, 16) == 16
    assert gain(0.0, 1.0, 16) == 1
    assert gain(1.0, 1.0, 16) == pytest.approx(2 / (1 / 16 + 1))
    assert gain(3.0, -0.01, 16) == 16  # above S
    assert gain(3.0, -0.5, 16) == 16  # a negative denominator: all noise
    assert gain(-1.0, 2.0, 16) == gain(-1.0, -2.0, 16) == 1
    assert gain(5.0, 0.3, 1) == 1
    assert gain(1.0, 0.0, 0.5) == 0.5
    assert 0.5 < gain(1.0, 1.0, 0.5) < 1


def test_it_is_the_ratio_of_the_two_batches_squared_gradients() -> None:
    """Every batch of 2, and of 4, of 6 examples: without replacement too, with what `draw` takes for |G|^2."""
    g = np.random.default_rng(0).normal(size=(6, 3)) + 1
    small, large = (np.mean([np.square(g[list(c)].mean(0)).sum() for c in _batches(size)]) for size in (2, 4))
    draws = []
    for c in itertools.permutations(range(6), 4):
        halves = [g[list(c[:2])].mean(0), g[list(c[2:])].mean(0)]
        parts = float(np.mean([np.square(half).sum() for half in halves]))
        draws.append(draw(GradientNorms(0, 0, 2, 2.0, 4.0, float(np.square(g[list(c)].mean(0)).sum()), parts)))
    trace, squared = np.mean(draws, axis=0)
    assert gain(trace / 2, squared, 2) == pytest.approx(small / large)


def _batches(size: int) -> list[tuple[int, ...]]:
    return list(itertools.combinations(range(6), size))


def test_it_averages_to_the_closed_form_on_the_noisy_quadratic() -> None:
    """At w0: G = H w, tr(Sigma) = 5; batches of 256 without replacement from N, small ones of 16."""
    task, b, b0, n, k = noisy_quadratic.task(), 256, 16, noisy_quadratic.TRAIN, 200
    torch.manual_seed(0)
    model = task.model()
    source, draws = Halves(model), []
    for _ in range(k):
        rows = torch.randperm(n)[:b]
        model.zero_grad()
        source.arm()
        task.batch_loss(model, (task.train[0][rows], task.train[1][rows])).backward()
        reading = source.read()
        assert reading is not None
        whole, parts = float(reading.mean_squared), float(reading.parts_squared)
        draws.append(draw(GradientNorms(0, 0, 2, float(reading.part_size), float(b), whole, parts)))
    spread = noisy_quadratic.NOISE_TRACE * n / (n - 1)
    square = float((noisy_quadratic.curvature() * noisy_quadratic.start()).square().sum()) - spread / n
    mean, error = np.mean(draws, 0), np.std(draws, 0, ddof=1) / math.sqrt(k)
    assert abs(mean[0] - spread) < 3 * error[0]
    assert abs(mean[1] - square) < 3 * error[1]
    assert error[0] < 0.02 * spread
    assert gain(mean[0] / b0, mean[1], b / b0) == pytest.approx(gain(spread / b0, square, b / b0), rel=0.03)


# --- averages ---


def fed(readings: list[tuple[float, float] | None], times: int = 100) -> AdaScale:
    made = AdaScale(optimizer(), batch_size=8 * times, small_batch_size=8)
    for reading in readings:
        trace, squared = reading or (None, None)
        made.step(trace=trace, squared_gradient=squared)
    return made


def test_averages_are_the_naive_ones() -> None:
    """theta = 0.9: the mean of the first ten, then exponential; nothing is clipped on the way."""
    x = np.random.default_rng(1).normal(0.5, 1.0, (40, 2))
    mean: Any = 0.0
    for t in range(40):
        mean = x[: t + 1].mean(0) if t < 10 else 0.9 * mean + 0.1 * x[t]
        made = fed([(float(a), float(b)) for a, b in x[: t + 1]])
        assert (made.trace, made.squared_gradient) == pytest.approx(tuple(mean))
        assert made.gain == gain(made.trace / 8, made.squared_gradient, 100)
    assert x.min() < 0


@pytest.mark.parametrize("before", [2, 30])
def test_a_reading_stands_for_the_steps_since_the_last_one(before: int) -> None:
    first = [(1.0, 2.0)] * before
    seldom, often = fed([*first, None, None, (5.0, -1.0)]), fed([*first, *[(5.0, -1.0)] * 3])
    assert seldom.trace == pytest.approx(often.trace)
    assert seldom.squared_gradient == pytest.approx(often.squared_gradient)


def test_what_is_not_finite_is_no_reading() -> None:
    assert fed([(1.0, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, 1.0)]).trace == 1.0


def test_when_a_step_is_due() -> None:
    """Every one of the first 32, then ever fewer, until 16 fall into the 125 steps that the average covers."""
    made, due = AdaScale(optimizer(), batch_size=64, small_batch_size=8), []
    for step in range(400):
        due.append(made.due)
        reading = (1.0, 1.0) if due[-1] else (None, None)
        made.step(trace=reading[0], squared_gradient=reading[1])
        assert made.steps == step + 1
    at = [step for step, now in enumerate(due) if now]
    gaps = np.diff(at)
    assert at[:32] == list(range(32))
    assert list(gaps) == sorted(gaps)
    assert gaps[-1] == 125 // 16
    assert 1 - made.smoothing == pytest.approx(1 / 125)


# --- learning rate and schedule ---


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_schedule_stands_at_the_progress(name: str) -> None:
    """Rates are those of a schedule stepped floor(progress) times by hand, times the gain of the coming step."""
    make = SCHEDULES[name]
    ours, theirs = optimizer(), optimizer()
    made = AdaScale(ours, batch_size=64, small_batch_size=8, scheduler=make(ours), total_steps=TOTAL)
    by_hand, progress, stepped, r = make(theirs), 0.0, 0, 1.0
    for step in range(40):
        ours.step()
        theirs.step()
        squared = 0.02 * (step % 7) ** 2
        progress += r
        r = made.step(trace=8.0, squared_gradient=squared, following=40 if step % 5 == 4 else None)
        assert r == gain((made.trace or 0) / 8, made.squared_gradient or 0, 5 if step % 5 == 4 else 8)
        while stepped < min(math.floor(progress), TOTAL):
            by_hand.step()
            stepped += 1
        assert made.progress == progress
        assert rates(ours) == [r * rate for rate in rates(theirs)]
    assert stepped == TOTAL


def test_the_first_step_is_one_of_the_small_batch() -> None:
    made = AdaScale(opt := optimizer(), batch_size=64, small_batch_size=8)
    assert rates(opt) == [0.1, pytest.approx(0.3)]
    assert made.due
    made.step(trace=1.0, squared_gradient=0.0)
    assert made.progress == 1
    assert made.gain == 8


def test_what_others_do_to_the_rate_is_kept() -> None:
    made = AdaScale(opt := optimizer(), batch_size=64, small_batch_size=8)
    made.step(trace=1.0, squared_gradient=0.0)
    opt.param_groups[0]["lr"] *= 0.5
    made.step(trace=1.0, squared_gradient=1.0)
    assert rates(opt) == pytest.approx([0.05 * made.gain, 0.3 * made.gain])


def test_adams_rate_grows_as_the_root() -> None:
    opt = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=torch.tensor(0.1))
    made = AdaScale(opt, batch_size=64, small_batch_size=8)
    made.step(trace=1.0, squared_gradient=0.0)
    assert float(opt.param_groups[0]["lr"]) == pytest.approx(0.1 * math.sqrt(8))
    assert isinstance(opt.param_groups[0]["lr"], torch.Tensor)
    made.step(trace=1.0, squared_gradient=0.0)
    assert made.progress == 9
    assert power_of(torch.optim.Adagrad(mlp().parameters())) is None


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="got Adagrad"):
        AdaScale(torch.optim.Adagrad(mlp().parameters()), batch_size=64, small_batch_size=8)
    with pytest.raises(UsageError, match="power=-1"):
        AdaScale(optimizer(), batch_size=64, small_batch_size=8, power=-1)
    with pytest.raises(UsageError, match="small_batch_size"):
        AdaScale(optimizer(), batch_size=64, small_batch_size=0)
    with pytest.raises(UsageError, match="give both"):
        fed([]).step(trace=1.0)
    with pytest.raises(UsageError, match=r"\[80, 8\] that were saved"):
        fed([]).load_state_dict(fed([], times=10).state_dict())


# --- in somebody's loop ---


def test_a_monitor_is_asked_now_and_then() -> None:
    """What it measured since the last time is averaged, each measurement at its own step."""
    x, y = examples(512)
    torch.manual_seed(0)
    model = mlp()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor, made = bs.NoiseMonitor(model, every=2), AdaScale(opt, batch_size=64, small_batch_size=8)
    for step in range(3 * ASKED):
        rows = slice(64 * (step % 8), 64 * (step % 8 + 1))
        opt.zero_grad()
        loss = F.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        monitor.step(loss)
        opt.step()
        made.step(noise_scale=monitor)
        assert (made.trace is None) == (step < ASKED - 1)
    twin = AdaScale(optimizer(), batch_size=64, small_batch_size=8)
    measured = {m.step: draw(m) for m in monitor.report().measurements}
    for step in range(3 * ASKED):
        trace, squared = measured.get(step, (None, None))
        twin.step(trace=trace, squared_gradient=squared)
    assert (made.trace, made.squared_gradient) == pytest.approx((twin.trace, twin.squared_gradient))
    assert 1 < made.gain < 8


@pytest.mark.parametrize("name", SCHEDULES)
def test_goes_on_bit_for_bit(name: str) -> None:
    x = np.random.default_rng(2).normal(0.5, 1.0, (30, 2)).tolist()
    opt, seen = [optimizer() for _ in range(3)], []
    made = [
        AdaScale(o, batch_size=64, small_batch_size=8, scheduler=SCHEDULES[name](o), total_steps=TOTAL) for o in opt
    ]
    for o in opt:
        o.step()
    for a, b in x:
        made[0].step(trace=a, squared_gradient=b)
        seen.append(rates(opt[0]))
    for a, b in x[:11]:
        made[1].step(trace=a, squared_gradient=b)
    file = io.BytesIO()
    torch.save([opt[1].state_dict(), made[1].scheduler.state_dict(), made[1].state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    for part, state in zip((opt[2], made[2].scheduler, made[2]), saved, strict=True):
        part.load_state_dict(state)
    for k, (a, b) in enumerate(x[11:], 11):
        made[2].step(trace=a, squared_gradient=b)
        assert rates(opt[2]) == seen[k]
    assert made[2].state_dict() == made[0].state_dict()


# --- on several ranks ---


def monitored(replicas: Replicas | None) -> list[float]:
    """The gains of 22 steps: on two ranks their parts are what is compared, alone two micro-batches."""
    x, y = examples(512)
    torch.manual_seed(0)
    model = mlp() if replicas is None else DistributedDataParallel(mlp())
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor, made = bs.NoiseMonitor(model, every=1), AdaScale(opt, batch_size=64, small_batch_size=8)
    gains = []
    for step in range(22):
        rows = torch.arange(64) + 64 * (step % 8)
        opt.zero_grad()
        for part in rows.chunk(2) if replicas is None else [rows.chunk(2)[replicas.rank]]:
            (F.cross_entropy(model(x[part]), y[part]) / (2 if replicas is None else 1)).backward()
        monitor.step()
        opt.step()
        gains.append(made.step(noise_scale=monitor))
    return gains


@pytest.mark.processes
def test_two_ranks_go_as_one_process_does() -> None:
    alone, (first, second) = monitored(None), on_ranks(2, monitored)
    assert first == second
    assert first == pytest.approx(alone, rel=1e-4)
    assert 1 < alone[-1] < 8
