"""Does the meter measure what it says? On a made-up clock every window is known exactly."""

from __future__ import annotations

import math
import random
import re

import pytest
from made_up_clock import TICK, Clock, take

from batchscope.errors import CannotAnswer, UsageError
from batchscope.measure.meter import AFTER_BREAK, GIVE_UP, KEPT, MIN_STEPS, WARM_UP, WINDOWS, StepMeter
from batchscope.measure.throughput import WINDOW_SECONDS


def steps_missing(meter: StepMeter) -> tuple[bool, int]:
    """Whether the number is exact, and the number, as the error says them."""
    with pytest.raises(CannotAnswer) as error:
        meter.report()
    found = re.search(r"run (at least )?(\d+) more steps", str(error.value))
    assert found
    return found[1] is None, int(found[2])


# --- a second implementation, from the recorded timeline of all steps ---


class Step:
    """One step as it happened; `broken` if anything but the next step of its size came after its beginning."""

    def __init__(self, begin: float, end: float, size: int, broken: bool) -> None:
        self.begin, self.end, self.size, self.broken = begin, end, size, broken


def runs_of(steps: list[Step]) -> list[list[Step]]:
    """Steps that followed each other directly, with one batch size."""
    runs: list[list[Step]] = []
    for before, step in zip([None, *steps], steps, strict=False):
        if before is None or before.broken or before.size != step.size:
            runs.append([])
        runs[-1].append(step)
    return runs


def naive(steps: list[Step]) -> tuple[dict[int, tuple[int, list[float], list[float]]], int]:
    """Per batch size (steps per window, seconds per step, waits per step), and how many windows were broken."""
    runs, found, discarded = runs_of(steps), {}, 0
    for size in {s.size for s in steps}:
        n, chosen, windows, broken, warm_up = MIN_STEPS, False, [], [], WARM_UP
        for run in runs:
            if run[0].size != size:
                continue
            left, warm_up = run[warm_up:], max(AFTER_BREAK, warm_up - len(run))
            while len(left) > n:
                spent, waited = left[n].begin - left[0].begin, sum(left[i + 1].begin - left[i].end for i in range(n))
                left, broken = left[n:], []
                if chosen:
                    windows.append((spent / n, waited / n))
                elif spent < WINDOW_SECONDS / 4:
                    n *= 2
                else:
                    n, chosen = max(MIN_STEPS, math.ceil(n * WINDOW_SECONDS / spent)), True
            if left and (run is not runs[-1] or run[-1].broken):
                discarded, broken = discarded + 1, [*broken, len(left) - 1]
            if len(broken) == GIVE_UP and not windows:
                n, chosen, broken = max(MIN_STEPS, max(broken)), True, []
        found[size] = (n, [w[0] for w in windows], [w[1] for w in windows])
    return found, discarded


def at_random(meter: StepMeter, clock: Clock, rng: random.Random, epochs: int) -> list[Step]:
    """Epochs of two batch sizes with short last batches, pauses in and between steps, exceptions; and what happened."""
    steps: list[Step] = []
    ticks = rng.choice([(0, 2), (1, 20), (10, 60)])
    for _ in range(epochs):
        main, count = rng.choice([8, 8, 8, 32]), rng.choice([6, 13, 40, 120])
        for number in range(count + 1):
            size = main if number < count else 3
            clock.passes(rng.randint(*ticks) * TICK)
            event, begin = rng.random(), clock()
            try:
                with meter.step(size):
                    clock.passes(rng.randint(*ticks) * TICK)
                    if event < 0.01:
                        raise ArithmeticError
                    if event < 0.02:
                        with meter.pause():
                            clock.passes(5.0)
            except ArithmeticError:
                pass
            steps.append(Step(begin, clock(), size, event < 0.02))
            if 0.02 < event < 0.04:
                with meter.pause():
                    clock.passes(3.0)
                    take(meter, clock, 2)  # training that is not to be timed
                steps[-1].broken = True
    return steps


@pytest.mark.parametrize("seed", range(12))
def test_as_a_slow_twin_finds_from_the_whole_timeline(clock: Clock, seed: int) -> None:
    meter, rng = StepMeter(clock=clock), random.Random(seed)
    expected, discarded = naive(at_random(meter, clock, rng, epochs=40))
    answerable = {size for size, (_, seconds, _) in expected.items() if len(seconds) >= WINDOWS}
    assert answerable, "the made-up run must be long enough"
    timing = meter.report()
    assert {t.batch_size for t in timing.timings} == answerable
    for t in timing.timings:
        assert (t.steps_per_window, list(t.seconds_per_step), list(t.phases["data"])) == expected[t.batch_size]
    assert meter.discarded == discarded


# --- closed forms ---


def test_windows_are_exact_from_beginning_to_beginning_with_the_wait(clock: Clock) -> None:
    meter = StepMeter(clock=clock, loop="by hand", precision="bf16")
    take(meter, clock, 100, size=8, step=12 * TICK, wait=4 * TICK)
    timing = meter.report()
    (t,) = timing.timings
    n = math.ceil(WINDOW_SECONDS / (16 * TICK))
    assert t.steps_per_window == max(MIN_STEPS, n)
    assert set(t.seconds_per_step) == {16 * TICK}
    assert t.phases == {"data": (4 * TICK,) * len(t.seconds_per_step)}
    assert len(t.seconds_per_step) == (100 - WARM_UP - 1 - MIN_STEPS) // t.steps_per_window
    assert (timing.reference_batch_size, timing.loop, timing.drift, t.reference) == (8, "by hand", 0.0, ())
    assert timing.conditions.precision == "bf16"
    assert meter.discarded == 0


def test_quick_steps_make_windows_of_their_full_length(clock: Clock) -> None:
    meter = StepMeter(clock=clock)
    take(meter, clock, 1000, step=TICK)
    (t,) = meter.report().timings
    assert t.steps_per_window == math.ceil(WINDOW_SECONDS / TICK)
    assert set(t.seconds_per_step) == {TICK}


def test_a_clock_that_does_not_move_makes_no_windows(clock: Clock) -> None:
    meter = StepMeter(clock=clock)
    take(meter, clock, 1000, step=0.0)
    assert not steps_missing(meter)[0]


def test_warm_up_is_not_counted_also_that_of_a_new_batch_size(clock: Clock) -> None:
    meter = StepMeter(clock=clock)
    for size in (8, 32):
        take(meter, clock, WARM_UP, size, step=100.0)
        take(meter, clock, 60, size)
    assert [set(t.seconds_per_step) for t in meter.report().timings] == [{16 * TICK}] * 2


def test_pauses_and_the_steps_next_to_them_are_not_counted(clock: Clock) -> None:
    """Every 31 steps, an evaluation; right after it the loader's queue is full, so that steps do not wait."""
    meter = StepMeter(8, clock=clock)
    for _ in range(10):
        take(meter, clock, AFTER_BREAK, wait=0.0)
        take(meter, clock, 29, wait=4 * TICK)
        with meter.pause():
            clock.passes(7.0)
            with meter.pause():
                take(meter, clock, 1)
            take(meter, clock, 40, step=1.0)
    (t,) = meter.report().timings
    assert set(t.seconds_per_step) == {20 * TICK}
    assert len(t.seconds_per_step) == (30 - WARM_UP) // 5 - 1 + 9 * (28 // 5)
    assert meter.discarded == 10


def test_the_short_last_batch_of_an_epoch_does_not_pollute(clock: Clock) -> None:
    meter = StepMeter(clock=clock)
    for _ in range(15):
        take(meter, clock, 23, size=8)
        take(meter, clock, 1, size=3, step=TICK, wait=50.0)
    (t,) = meter.report().timings
    assert (t.batch_size, set(t.seconds_per_step)) == (8, {16 * TICK})


def test_a_size_known_only_at_the_end_of_the_step_breaks_the_window(clock: Clock) -> None:
    meter = StepMeter(clock=clock)
    for number in range(200):
        meter.begin(8)
        clock.passes(TICK if number % 20 == 19 else 16 * TICK)
        meter.end(3 if number % 20 == 19 else 8)
    (t,) = meter.report().timings
    assert (t.batch_size, set(t.seconds_per_step)) == (8, {16 * TICK})
    assert meter.discarded == 10  # each epoch's last


def test_epochs_shorter_than_a_window_give_windows_as_long_as_they_are(clock: Clock) -> None:
    meter = StepMeter(clock=clock)
    for _ in range(GIVE_UP + WINDOWS + 3):
        take(meter, clock, 22, step=TICK)
        with meter.pause():
            clock.passes(1.0)
    (t,) = meter.report().timings
    assert t.steps_per_window == 22 - AFTER_BREAK - 1
    assert set(t.seconds_per_step) == {TICK}


def test_an_exception_in_a_step_propagates_and_its_window_is_discarded(clock: Clock) -> None:
    meter = StepMeter(8, clock=clock)
    take(meter, clock, 50)

    def fails() -> None:
        clock.passes(99.0)
        raise ArithmeticError

    with pytest.raises(ArithmeticError), meter.step():
        fails()
    assert meter.discarded == 1
    clock.passes(99.0)
    take(meter, clock, 50)
    meter.begin()  # a framework that calls `begin` and then fails: no `end`
    clock.passes(99.0)
    take(meter, clock, 50)
    assert meter.discarded == 2
    assert set(meter.report().timings[0].seconds_per_step) == {16 * TICK}


def test_the_latest_windows_are_kept(clock: Clock) -> None:
    meter = StepMeter(8, clock=clock)
    take(meter, clock, 50)
    take(meter, clock, KEPT * MIN_STEPS + MIN_STEPS, step=20 * TICK)
    (t,) = meter.report().timings
    assert (len(t.seconds_per_step), set(t.seconds_per_step)) == (KEPT, {20 * TICK})
    assert len(t.phases["data"]) == KEPT


def test_the_reference_is_the_size_that_most_was_seen_of(clock: Clock) -> None:
    meter = StepMeter(clock=clock)
    for size, steps in ((8, 60), (64, 200), (16, 100), (32, 20)):  # the last: too few
        take(meter, clock, steps, size)
    timing = meter.report()
    assert ([t.batch_size for t in timing.timings], timing.reference_batch_size) == ([8, 16, 64], 64)


# --- too few steps ---


@pytest.mark.parametrize("before", [16, 17, 20, 21, 30, 45])
def test_it_says_exactly_how_many_more_steps_are_needed(clock: Clock, before: int) -> None:
    meter = StepMeter(clock=clock)
    take(meter, clock, before)
    exact, more = steps_missing(meter)
    assert exact
    take(meter, clock, more - 1)
    assert steps_missing(meter) == (True, 1)
    take(meter, clock, 1)
    assert len(meter.report().timings[0].seconds_per_step) == WINDOWS


def test_after_a_pause_too(clock: Clock) -> None:
    meter = StepMeter(clock=clock)
    take(meter, clock, 30)
    with meter.pause():
        pass
    exact, more = steps_missing(meter)
    assert exact
    take(meter, clock, more - 1)
    assert steps_missing(meter) == (True, 1)
    take(meter, clock, 1)
    meter.report()


def test_before_a_window_was_chosen_it_says_the_fewest(clock: Clock) -> None:
    meter = StepMeter(clock=clock)
    fewest = WARM_UP + 1 + MIN_STEPS + WINDOWS * MIN_STEPS
    with pytest.raises(CannotAnswer, match=f"got no step at all: run at least {fewest} more steps"):
        meter.report()
    take(meter, clock, 4)
    assert steps_missing(meter) == (False, fewest - 4)
    take(meter, clock, fewest - 4)  # of the length that makes the shortest windows
    meter.report()


def test_broken_windows_are_mentioned(clock: Clock) -> None:
    meter = StepMeter(clock=clock)
    for _ in range(20):
        take(meter, clock, AFTER_BREAK + 3)
        with meter.pause():
            pass
    with pytest.raises(CannotAnswer, match=r"got 0 at batch size 8 and 18 broken by a pause"):
        meter.report()


# --- malformed calls ---


def test_malformed_calls_are_refused(clock: Clock) -> None:
    meter = StepMeter(clock=clock)
    with pytest.raises(UsageError, match=r"got None: write `meter.step\(batch_size=...\)`"), meter.step():
        raise AssertionError("a step that must not begin")
    with pytest.raises(UsageError, match="at least 1 example, got 0"):
        meter.begin(0)
    with pytest.raises(UsageError, match="call `begin` first"):
        meter.end()
    with pytest.raises(UsageError, match="of type cpu or cuda, got meta"):
        StepMeter(device="meta")
