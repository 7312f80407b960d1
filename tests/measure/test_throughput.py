"""Timings of a model whose seconds are known: it sleeps per step and per example."""

import multiprocessing
import statistics
import time

import pytest
import torch
from torch import nn

from batchscope.measure import engines, throughput
from batchscope.measure.engines import fastest_engine
from batchscope.measure.throughput import StepClock, fastest_threads, time_splits, time_steps
from batchscope.records import Conditions, Engine
from toys import CPU, SIZE, Augmented, toy

PER_STEP, PER_EXAMPLE = 2e-3, 1e-4


class Sleeper(nn.Module):
    """A linear model of known speed."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, x):
        time.sleep(PER_STEP + PER_EXAMPLE * len(x))
        return self.linear(x)


@pytest.fixture
def short_windows(monkeypatch):
    monkeypatch.setattr(throughput, "WINDOW_SECONDS", 0.02)


def check_record(timing, sizes, rounds, conditions):
    """What every pass must hold, whatever the machine."""
    assert (timing.reference_batch_size, timing.conditions) == (8, conditions)
    assert [t.batch_size for t in timing.timings] == list(sizes)
    assert all(len(t.seconds_per_step) == len(t.reference) == rounds for t in timing.timings)
    by_round = [statistics.median(t.reference[r] for t in timing.timings) for r in range(rounds)]
    assert timing.drift == (max(by_round) - min(by_round)) / statistics.median(by_round)


def test_seconds_per_step_are_recovered(monkeypatch):
    """In made-up time, which passes only where the model sleeps: exact. Data of odd sizes, steps chosen as in life."""
    clock = [0.0]
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    monkeypatch.setattr(throughput, "now", lambda device: clock[0])
    sizes, conditions = (1, 7, 16, SIZE), Conditions(threads=1)
    timing = time_steps(toy(model=Sleeper), sizes, CPU, conditions, rounds=3)
    check_record(timing, sizes, 3, conditions)
    for t in timing.timings:
        step = PER_STEP + PER_EXAMPLE * t.batch_size
        assert t.seconds_per_step == pytest.approx([step] * 3)
        assert t.reference == pytest.approx([PER_STEP + PER_EXAMPLE * 8] * 3)
        assert t.steps_per_window == round(throughput.WINDOW_SECONDS / step)
    assert timing.drift == pytest.approx(0, abs=1e-9)


def test_real_time_is_never_less_than_the_sleep(short_windows):
    """And, on whatever machine, less than twice the sleep plus 5 ms at its best (a guess)."""
    sizes, conditions = (1, SIZE), Conditions(threads=1)
    timing = time_steps(toy(model=Sleeper), sizes, CPU, conditions, rounds=3)
    check_record(timing, sizes, 3, conditions)
    for t in timing.timings:
        sleep = PER_STEP + PER_EXAMPLE * t.batch_size
        assert sleep <= min(t.seconds_per_step) <= 2 * sleep + 5e-3


def test_drift_shows_a_machine_that_slows_down_and_ratios_do_not(monkeypatch):
    """A made-up clock: every window is slower than the one before, by 1 % of the first; a step of b costs b seconds."""
    windows = []

    class Clock:
        def __init__(self, *_):
            pass

        def steps_for(self, batch_size):
            return 100 // batch_size

        def window(self, batch_size, steps):
            windows.append((batch_size, steps))
            return batch_size * (1 + 0.01 * (len(windows) - 1))

        def spent(self):
            return {}

    monkeypatch.setattr(throughput, "StepClock", Clock)
    timing = time_steps(toy(), (2, 20), CPU, Conditions(), rounds=3)
    order = [2, 20, 20, 2, 2, 20]  # up, down, up; the reference before each
    assert windows == [window for size in order for window in ((8, 12), (size, 100 // size))]
    references = [8 * (1 + 0.01 * k) for k in (1, 5, 9)]  # of each round: the mean of its two windows
    assert timing.drift == pytest.approx((references[2] - references[0]) / references[1])
    for t in timing.timings:
        ratios = [s / r for s, r in zip(t.seconds_per_step, t.reference, strict=True)]
        assert ratios == pytest.approx([t.batch_size / 8] * 3, rel=0.011)


def test_only_full_batches_are_timed_and_the_weights_hardly_move(short_windows):
    seen = []
    task = toy(loss=lambda o, y: seen.append(len(y)) or nn.functional.cross_entropy(o, y))
    clock = StepClock(task, CPU, "fp32")
    clock.window(20, 7)
    assert seen == [20] * 7
    clock.window(SIZE, 3)
    assert seen[7:] == [SIZE] * 3
    assert clock.steps_for(20) >= 1


def test_loader_workers_start_empty_handed_and_are_gone_afterwards(short_windows):
    steps = []
    task = toy(train=Augmented(), num_workers=1, loss=lambda o, y: steps.append(1) or nn.functional.cross_entropy(o, y))
    clock = StepClock(task, CPU, "fp32")
    clock.window(8, 3)
    assert len(steps) == 3 + throughput.PREFETCHED  # what the worker had prepared is not timed
    del clock
    assert multiprocessing.active_children() == []


def test_the_threads_that_get_most_done_are_found_and_the_setting_restored(monkeypatch):
    """Made-up seconds: two threads take 0.6 of one's time, four a half. 4 x 1 thread does most; ties go to fewer."""
    before = torch.get_num_threads()
    cost = {1: 1.0, 2: 0.6, 4: 0.5}
    monkeypatch.setattr(StepClock, "steps_for", lambda *_: 1)
    monkeypatch.setattr(StepClock, "window", lambda *_: cost[torch.get_num_threads()])
    best, work = fastest_threads(toy(), (8, 16), CPU, 4)
    assert (best, work) == (1, pytest.approx({1: 1.0, 2: 2 / 0.6 / 4, 4: 1 / 0.5 / 4}))
    cost.update({1: 1.0, 2: 0.4, 4: 0.3})
    assert fastest_threads(toy(), (8,), CPU, 4)[0] == 2
    cost.update({1: 1.0, 2: 0.49, 4: 0.244})  # all within 5 %
    assert fastest_threads(toy(), (8,), CPU, 4)[0] == 1
    assert torch.get_num_threads() == before
    del cost[4]
    with pytest.raises(KeyError):
        fastest_threads(toy(), (8,), CPU, 4)
    assert torch.get_num_threads() == before


def test_parts_of_a_step_are_recovered(monkeypatch):
    """In made-up time: reading takes 1 ms a batch, forward 2 ms + 0.1 ms an example, the optimiser 5 ms."""
    clock = [0.0]
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    monkeypatch.setattr(throughput, "now", lambda device: clock[0])

    class SlowSGD(torch.optim.SGD):
        def step(self, closure=None):
            time.sleep(5e-3)
            return super().step(closure)

    class SlowData(Augmented):
        def __getitem__(self, index):
            time.sleep(1e-3 / 4)
            return super().__getitem__(index)

    def optimizer(model, lr):
        return SlowSGD(model.parameters(), lr=lr)

    told = []
    task = toy(model=Sleeper, train=SlowData(44), optimizer=optimizer, clip_norm=1.0)
    timing = time_steps(task, (4,), CPU, Conditions(), rounds=2, phases=True, tell=told.append)
    (t,) = timing.timings
    forward = PER_STEP + 4 * PER_EXAMPLE
    assert t.seconds_per_step == pytest.approx([1e-3 + forward + 5e-3] * 2)
    assert {
        name: pytest.approx([seconds] * 2)
        for name, seconds in (("data", 1e-3), ("resident", forward + 5e-3), ("backward", forward))
    } == t.phases
    assert t.joules_per_step == ()
    assert sum(line["steps"] for line in told) > 0
    assert {line["batch_size"] for line in told} == {4, 8}


def test_rounds_end_when_the_time_is_used_up(short_windows):
    timing = time_steps(toy(), (8,), CPU, Conditions(), rounds=10, most_seconds=0.0)
    assert len(timing.timings[0].seconds_per_step) == throughput.LEAST_ROUNDS


def test_splits_are_whole_steps_in_micro_batches(short_windows):
    seen = []
    task = toy(loss=lambda o, y: seen.append(len(y)) or nn.functional.cross_entropy(o, y))
    splits = time_splits(task, [(20, 20), (20, 6)], CPU, Conditions(), rounds=2)
    assert [(s.batch_size, s.micro_batch_size, len(s.seconds_per_step)) for s in splits] == [(20, 20, 2), (20, 6, 2)]
    assert set(seen) == {8, 20, 6, 2}  # the reference, the whole, and 6 + 6 + 6 + 2


def test_the_engine_is_plain_where_nothing_is_possible_or_pays(monkeypatch, short_windows):
    assert fastest_engine(toy(), (8,), CPU) == Engine()
    seconds = {Engine(): [1.0], Engine(channels_last=True): [0.5]}
    monkeypatch.setattr(engines, "available", lambda *_: Engine(channels_last=True, compiled=True))
    monkeypatch.setattr(engines, "_timed", lambda task, asked, *_: {e: seconds[e] for e in (Engine(), *asked)})
    assert fastest_engine(toy(), (8,), CPU) == Engine(channels_last=True)  # and too short a trial to compile for


def test_an_engine_that_cannot_run_the_task_is_left_out(monkeypatch, short_windows):
    monkeypatch.setattr(engines, "available", lambda *_: Engine(channels_last=True))
    clock = engines.StepClock

    def broken(task, device, precision, engine=None):
        if engine and engine.channels_last:
            raise RuntimeError("not here")
        return clock(task, device, precision, engine)

    monkeypatch.setattr(engines, "StepClock", broken)
    with pytest.raises(RuntimeError, match="not here"):
        broken(toy(), CPU, "fp32", Engine(channels_last=True))
    assert fastest_engine(toy(), (8,), CPU) == Engine()
