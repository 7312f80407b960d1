"""Are trials the same on Ray's actors, and does a lost worker, actor or rank cost no more than on worker processes?"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

import batchscope as bs
from batchscope.errors import CannotAnswer, UsageError
from batchscope.records import Conditions, StopRule
from batchscope.store.sqlite import open_store
from batchscope.sweep.executors import ray as ours
from batchscope.sweep.executors.base import Died, Done, Executor, Line
from batchscope.sweep.executors.cluster import QUIET, STORE_BYTES
from batchscope.sweep.executors.group import GroupExecutor
from batchscope.sweep.executors.local import LocalExecutor
from batchscope.sweep.executors.ray import RayExecutor, RayWorker
from batchscope.sweep.executors.seat import interface_of
from batchscope.sweep.jobs import TaskReference, trial_job
from batchscope.task import load_task
from batchscope.testing.examples import bits
from batchscope.testing.executor_contract import ENDLESS, ExecutorContract
from batchscope.training.fingerprint import fingerprint

from .processes import gone_within
from .small_runs import NEVER, SMALL, ends, facts, run, runner, spec, trial, workers
from .test_group import TASK as RANKED
from .test_group import end, job, result, tell

os.environ |= QUIET
ray = pytest.importorskip("ray", reason="Ray is an extra: pip install batchscope[ray]")
pytestmark = pytest.mark.processes


@pytest.fixture(scope="module", autouse=True)
def connected() -> Generator[None]:
    """One Ray for all tests, with more cores than the machine may have: two executors fit beside each other."""
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=STORE_BYTES)
    yield
    ray.shutdown()


def on_ray(reference: str, slots: int, **options: Any) -> RayExecutor:
    return RayExecutor(TaskReference.here(reference, fingerprint(load_task(reference))[0]), slots, **options)


def worker_of(executor: Executor, name: str) -> RayWorker:
    """The one that does this job."""
    assert isinstance(executor, RayExecutor)
    (worker,) = [w for crew in executor._crews for w in crew.group._workers if w.job == name]
    assert isinstance(worker, RayWorker)
    return worker


class TestRayContract(ExecutorContract):
    def open(self, reference: str) -> RayExecutor:
        return on_ray(reference, 2)

    has_workers = True

    def kill_worker(self, executor: Executor, job: str) -> None:
        os.kill(worker_of(executor, job).pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def pair(shared_folder: Path) -> Generator[RayExecutor]:
    """Two slots for the small task."""
    with on_ray(f"{SMALL}:odd", 2) as executor:
        yield executor


def test_a_study_has_the_same_bits_as_on_worker_processes(tmp_path: Path, pair: RayExecutor) -> None:
    specs = [spec(seed, b) for seed in (0, 1) for b in (8, 16, 64)]
    with workers("odd") as executor:
        assert isinstance(executor, LocalExecutor)
        here = run(tmp_path / "here.db", executor, specs)
    assert run(tmp_path / "there.db", pair, specs) == here


def test_a_worker_killed_in_mid_study_loses_nothing(tmp_path: Path, pair: RayExecutor) -> None:
    """Neither the trials of the others nor its own: that is tried again from its checkpoint, with the same bits."""
    specs = [spec(seed, 8, stop=StopRule(10 * 256, 64)) for seed in range(3)]
    whole = run(tmp_path / "whole.db", pair, specs)
    lines: dict[int, int] = {}
    killed: list[int] = []

    def listen(kind: str, details: dict) -> None:
        lines[details.get("trial", 0)] = lines.get(details.get("trial", 0), 0) + (kind == "line")
        if kind == "line" and lines[details["trial"]] == 10 and not killed:
            killed.append(details["trial"])
            os.kill(worker_of(pair, str(details["trial"])).pid, signal.SIGKILL)

    with open_store(tmp_path / "killed.db") as store:
        found = runner(store, pair, listen).run({"held": specs})["held"]
        (tried,) = [r for r in found if r.attempts > 1]
        assert [a.how for a in store.attempts(killed[0])] == ["died", "finished"]
    assert tried.attempts == 2
    assert [facts(record) for record in found] == whole


def test_a_lost_actor_ends_its_job_and_its_process_and_its_slot_is_used_again(pair: RayExecutor) -> None:
    pair.start(trial_job("lost", spec(stop=ENDLESS), None, 1, "fp32", None, NEVER))
    while not any(isinstance(event, Line) for event in pair.events(1.0)):
        pass
    pair.start(trial("other"))
    worker = worker_of(pair, "lost")
    actor = ray.get(worker._seat.__ray_call__.remote(lambda seat: os.getpid()))
    os.kill(actor, signal.SIGKILL)
    found = {}
    while len(found) < 2:
        found |= {event.job: event for event in ends(pair)}
    assert isinstance(found["other"], Done)
    died = found["lost"]
    assert isinstance(died, Died)
    assert died.reason.startswith("the worker's Ray actor was lost: ")
    assert "worker process has died" in died.reason
    assert gone_within(5, worker.pid)
    pair.start(trial("again"))
    assert isinstance(ends(pair)[0], Done)


def test_a_trial_on_two_ranks_has_the_same_bits_and_its_ranks_end_together(shared_folder: Path) -> None:
    """Jobs on one actor and on two take turns; a rank that raises or is killed is named, and the next trial is well."""
    with GroupExecutor(TaskReference.here(RANKED, fingerprint(load_task(RANKED))[0]), 2) as group:
        group.start(job("here"))
        here = result(end(group))
    with on_ray(RANKED, 1) as executor:
        executor.start(job("there"))
        assert bits(result(end(executor))) == bits(here)
        ranks = executor.processes
        tell("raise")
        executor.start(job("raises"))
        assert result(end(executor)).reason == "rank 1 of 2: ValueError: the eleventh is too much"
        assert gone_within(5, *ranks)
        executor.start(job("killed", 96 * 3000))
        while not any(isinstance(event, Line) for event in executor.events(1.0)):
            pass
        os.kill(executor.processes[1], signal.SIGKILL)
        event = end(executor)
        assert isinstance(event, Died)
        assert event.reason.startswith("rank 1 of 2: the worker process was ended by SIGKILL")
        executor.start(job("again"))
        assert bits(result(end(executor))) == bits(here)


def test_slots_are_what_the_cluster_has_room_for() -> None:
    with on_ray("noisy-quadratic", 1) as executor:
        found = []
        for threads, devices in ((1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (1, 3)):
            executor.open_slots(2, Conditions(threads=threads, world_size=devices))
            found.append(executor.slots)
        assert found == [4, 2, 1, 2, 1, 1]
        wide = trial("wide")
        wide.details["threads"] = 5
        with pytest.raises(CannotAnswer, match="room for 1 actors of 5 cores each, it has less"):
            executor.start(wide)
        with pytest.raises(CannotAnswer, match="room for 3 actors of 2 cores each, it has less"):
            executor.open_slots(2, Conditions(threads=2, world_size=3))
        assert not executor.processes


def test_jobs_that_wait_for_a_node_in_vain_go_to_actors_that_have_become_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """More slots than nodes have room for, as where others use the cluster too."""
    monkeypatch.setattr(ours, "NODE_SECONDS", 0.0)
    with on_ray("noisy-quadratic", 3) as executor:
        for name in "abc":
            wide = trial(name, 64)
            wide.details["threads"] = 2
            executor.start(wide)
        found = {}
        while len(found) < 3:
            found |= {event.job: event for event in ends(executor)}
        assert all(isinstance(event, Done) for event in found.values())
        assert len(executor.processes) in (1, 2)


def test_the_interface_that_ranks_meet_at_is_that_of_the_nodes_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.1") is None


def test_a_study_on_ray_answers_and_one_on_worker_processes_uses_its_trials(tmp_path: Path) -> None:
    asked = {"policy": "held", "batch_sizes": [64], "seeds": 1, "store": tmp_path / "a.db", "draw": False}
    first = bs.study(f"{SMALL}:task", on="ray", **asked)
    assert [(r.batch_size, r.seeds, r.reached) for r in first.rows] == [(64, 1, 1)]
    assert first.rows[0].seconds_per_epoch.estimate > 0
    heard: list[str] = []
    assert bs.study(f"{SMALL}:task", listen=lambda kind, details: heard.append(kind), **asked).rows == first.rows
    assert "stored" in heard
    assert "started" not in heard


def test_a_task_object_and_what_names_no_ray_are_refused_before_anything_runs(tmp_path: Path) -> None:
    store = tmp_path / "a.db"
    with pytest.raises(UsageError, match="expected a reference to the task for --on ray, got a Task object"):
        bs.study(load_task("noisy-quadratic"), on="ray", store=store)
    with pytest.raises(UsageError, match="expected --on as a Ray cluster, got 'slurm'"):
        bs.recommend("noisy-quadratic", on="slurm", store=store)
    assert not store.exists()
