"""Is the gradient noise of a watched trial in its record, and the trial itself the same, run or read?"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from batchscope.records import Engine, TrialRecord
from batchscope.store.sqlite import open_store
from batchscope.sweep.executors.inline import InlineExecutor
from batchscope.sweep.jobs import Workbench, trial_job
from batchscope.task import load_task

from .small_runs import NEVER, SMALL, facts, runner, spec


def run(path: Path, watch: bool) -> TrialRecord:
    with open_store(path) as store:
        executor = InlineExecutor(load_task(f"{SMALL}:task"))
        (record,) = runner(store, executor, checkpoint_seconds=NEVER).run({"held": [spec()]}, watch=watch)["held"]
    return record


def test_a_watched_trial_is_the_same_trial_with_its_noise_scale(tmp_path: Path) -> None:
    plain, watched = run(tmp_path / "a.db", watch=False), run(tmp_path / "b.db", watch=True)
    assert plain.result.noise_scale is None
    scale = watched.result.noise_scale
    assert scale is not None
    assert scale.low is not None
    assert scale.low > 0
    bare = dataclasses.replace(watched, result=dataclasses.replace(watched.result, noise_scale=None))
    assert facts(bare) == facts(plain)


@pytest.mark.parametrize("watched_first", [False, True])
def test_a_stored_trial_is_not_run_again_for_its_noise(tmp_path: Path, watched_first: bool) -> None:
    first = run(tmp_path / "a.db", watch=watched_first)
    again = run(tmp_path / "a.db", watch=not watched_first)
    assert facts(again) == facts(first)
    assert (again.result.noise_scale is not None) == watched_first


def test_it_is_kept_by_the_store_and_one_run_s_watch_is_not_the_next_one_s(tmp_path: Path) -> None:
    with open_store(tmp_path / "a.db") as store:
        run_ = runner(store, InlineExecutor(load_task(f"{SMALL}:task")), checkpoint_seconds=NEVER)
        (watched,) = run_.run({"reference": [spec()]}, watch=True)["reference"]
        (plain,) = run_.run({"tuning": [spec(seed=1)]})["tuning"]
        (read,) = run_.run({"reference": [spec()]})["reference"]
    assert plain.result.noise_scale is None
    assert watched.result.noise_scale is not None
    assert read.result.noise_scale == watched.result.noise_scale


def test_steps_that_call_no_hook_are_not_watched() -> None:
    """A compiled or graphed step is replayed past the hooks: no scale is better than one of a few steps."""
    bench = Workbench(load_task(f"{SMALL}:task"))
    job = trial_job("1", spec(), None, 1, "fp32", None, NEVER, Engine(graphed=True), watch=True)
    assert job.details["watch"]
    assert bench.do(job, lambda line: None)["noise_scale"] is None
