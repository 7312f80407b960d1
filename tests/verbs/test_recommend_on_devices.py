"""Does `recommend --devices` use as many devices as pay, at the seconds that a pass over them measured?"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import batchscope as bs
from batchscope.analysis.advice import analyse_advice, options_in
from batchscope.errors import CannotAnswer, UsageError
from batchscope.records import Advice, Conditions, ScalingData, ScalingPass, ScalingQuestion, StepTiming, TimingPass
from batchscope.task import Task, load_task
from batchscope.verbs import profile as profiling
from batchscope.verbs import recommend as verb
from batchscope.verbs import scale as scaling
from batchscope.verbs.recommend import timed_elsewhere

from .conftest import SMALL
from .hard_tasks import made_up_timing

REFERENCE = f"{SMALL}:task"
HALF, TWICE = 0.5, 2.0


def made_up_scaling(timing: TimingPass, factor: float) -> ScalingPass:
    """Steps on one device as timed, and on two `factor` times as long."""

    def on(devices: int) -> TimingPass:
        scale = 1.0 if devices == 1 else factor
        timings = [
            StepTiming(
                t.batch_size,
                t.steps_per_window,
                tuple(scale * s for s in t.seconds_per_step),
                t.reference,
                {} if devices == 1 else {"alone": tuple(scale * s for s in t.seconds_per_step)},
            )
            for t in timing.timings
        ]
        return TimingPass(timing.reference_batch_size, tuple(timings), Conditions(world_size=devices))

    return ScalingPass((on(1), on(2)), (), 100, (100,))


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> Advice:
    """Advice with made-up seconds: two devices take half as long as one."""
    task = load_task(REFERENCE)
    timing = dataclasses.replace(made_up_timing(task), loop="batchscope")
    question, steps = ScalingQuestion((1, 2), (16,)), made_up_scaling(timing, HALF)
    data = ScalingData("small", "f", 256, 16, 0.4, question, Conditions(), steps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verb, "check_devices", lambda task, devices: None)
        patch.setattr(scaling, "ask", lambda *_: None)
        patch.setattr(scaling, "found_or_measured", lambda *_: (data, ""))
        patch.setattr(profiling, "found_or_measured", lambda _, task, *rest: (timed_elsewhere(task, timing), ""))
        store = tmp_path_factory.mktemp("devices") / "a.db"
        return bs.recommend(REFERENCE, devices=2, budget=3.0, store=store, draw=False)


def devices_of(advice: Advice, factor: float, objective: str) -> set[int]:
    """What the options would be if two devices took `factor` times as long."""
    timing = advice.data.profile.timing
    assert timing is not None
    question = dataclasses.replace(advice.question, objective=objective)
    asked = dataclasses.replace(advice.data, scaling=made_up_scaling(timing, factor), question=question)
    return {option.devices for option in options_in(asked).values()}


def test_devices_that_pay_are_used_and_their_seconds_are_those_measured(halved: Advice) -> None:
    chosen = halved.chosen
    assert chosen is not None
    assert chosen.devices == 2
    alone = options_in(dataclasses.replace(halved.data, scaling=None))[chosen.batch_size]
    assert chosen.seconds_per_step.estimate == pytest.approx(HALF * (alone.seconds.estimate or 0.0))
    assert (chosen.micro_batch_size, chosen.accumulation) == (-(-chosen.batch_size // 2), 1)
    assert "2 devices" in halved.sentences[0]
    assert "DistributedDataParallel" in halved.snippet
    assert all(p.devices == 1 or not p.predicted for p in halved.pareto if p.devices <= 2)


def test_devices_that_do_not_pay_are_left(halved: Advice) -> None:
    """Half the seconds at twice the price is no gain, and the fewer devices stay."""
    assert devices_of(halved, HALF, "time") == {2}
    assert devices_of(halved, TWICE, "time") == {1}
    assert devices_of(halved, 0.6, "cost") == {1}
    assert devices_of(halved, 0.4, "cost") == {2}
    assert devices_of(halved, 0.4, "examples") == {1}


def test_the_answer_follows_from_what_is_stored(halved: Advice) -> None:
    again = analyse_advice(halved.data)
    assert again.chosen == halved.chosen
    assert again.pareto == halved.pareto


def test_batch_norm_is_refused_since_it_would_be_other_training(tmp_path: Path, path: Path) -> None:
    file = tmp_path / "normed.py"
    file.write_text(
        "import dataclasses, sys, torch\n"
        f"sys.path.insert(0, {str(SMALL.parent)!r})\n"
        "import small_task\n"
        "def task():\n"
        "    return dataclasses.replace(small_task.task(), name='normed', model=lambda: torch.nn.Sequential(\n"
        "        torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.Linear(16, 3)))\n"
    )
    request = profiling.ask(f"{file}:task")
    question = verb._question(**(verb.ASKED | {"devices": 2}))
    with pytest.raises(
        CannotAnswer, match=r"without batch norm for several devices, it has 1 such layers.*leave --devices out"
    ):
        verb._scaling(None, request, question, timed_elsewhere(request, made_up_timing(request.task)), lambda *_: None)


def test_a_loops_own_seconds_do_not_go_with_several_devices(small: Task, path: Path) -> None:
    with pytest.raises(UsageError, match="expected no timing of your own loop with several devices"):
        bs.recommend(REFERENCE, devices=2, timing=made_up_timing(small), store=path, draw=False)
