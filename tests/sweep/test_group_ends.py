"""How does a trial on several ranks end, whatever order their news comes in? Workers here say what they are told to."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytest

from batchscope.sweep.control import Control
from batchscope.sweep.executors.base import Died, Done, Event, Refused
from batchscope.sweep.executors.group import DEATH_SECONDS, GroupExecutor
from batchscope.sweep.executors.launched import LOST_SECONDS, LaunchedExecutor
from batchscope.sweep.executors.workers import Hearing, Said
from batchscope.sweep.launch import Launch
from batchscope.sweep.messages import CONNECTION_LOST, Job, TaskReference
from batchscope.sweep.watch import LOADING, WORKING, Watch

RANKS, STALL, DEATH = 3, 0.3, 2.0
WELL, FAILED = {"outcome": "not_reached"}, {"outcome": "failed", "reason": "ValueError: mine"}
LOST = CONNECTION_LOST, "RuntimeError: Connection closed by peer"


class Mute:
    """A worker that does nothing."""

    host, pid = "127.0.0.1", 1

    def __init__(self, events: Hearing) -> None:
        self.job: str | None = None
        self.events, self.given, self.alive, self.placed = events, [], True, True

    def introduce(self, task: TaskReference) -> None:
        pass

    def give(self, job: Job) -> None:
        self.job = job.id
        self.given.append(job)

    def kill(self) -> None:
        self.alive = False

    def wait(self, seconds: float) -> None:
        pass


class Group(GroupExecutor):
    """Its ranks say what the test says."""

    def __init__(self) -> None:
        super().__init__(TaskReference("a", "b", (), "c"), RANKS, STALL, Mute, DEATH)

    def begin(self, name: str = "7") -> None:
        """A trial that all ranks have begun."""
        self.start(Job(name, "trial", {"spec": {"arm": {"replicas": RANKS}}}))
        self.say(0, Said(name, "port", {"port": 1}))
        assert self.events(0.0) == []
        assert [len(worker.given) for worker in self.ranked] == [1] * RANKS

    @property
    def ranked(self) -> list[Mute]:
        return [worker for worker in self._workers if isinstance(worker, Mute)]

    @property
    def watch(self) -> Watch:
        assert self._trial is not None
        return self._trial.watch

    def say(self, rank: int, news: Event | Said) -> None:
        self.ranked[rank].events.put(news)

    def beat(self, rank: int, **other: Any) -> None:
        plain = {"phase": WORKING, "done": 1, "cpu": 1.0, "waits": False, "marked": False, "at": f"r{rank}.py:1 (f)"}
        self.say(rank, Said("7", "beat", plain | other))

    def end(self) -> Event:
        """The one event that comes within a few seconds."""
        deadline = time.monotonic() + 2 * DEATH
        while not (found := self.events(0.1)):
            assert time.monotonic() < deadline
        (event,) = found
        assert not self.busy
        return event


@pytest.fixture
def group() -> Iterator[Group]:
    with Group() as executor:
        executor.begin()
        yield executor


def test_what_is_left_of_an_attempt_does_not_end_the_next_one(group: Group) -> None:
    for rank, news in enumerate((Done("7", FAILED), Died("7", "gone"), Done("7", FAILED))):
        group.say(rank, news)
    late = group.ranked[0]
    assert group.end() == Died("7", "rank 1 of 3: gone")
    group.begin()
    late.events.put(Done("7", FAILED))
    assert group.events(0.1) == []
    for rank in range(RANKS):
        group.say(rank, Done("7", WELL | {"rank": rank}))
    assert group.end() == Done("7", WELL | {"rank": 0})


CULPRITS = {
    "dead": (Died("7", "gone"), Died("7", "rank 1 of 3: gone")),
    "failed": (Done("7", FAILED), Done("7", FAILED | {"reason": "rank 1 of 3: ValueError: mine"})),
    "refused": (Refused("7", "TaskError", "no"), Refused("7", "TaskError", "rank 1 of 3: no")),
}


@pytest.mark.parametrize(("news", "told"), CULPRITS.values(), ids=CULPRITS)
def test_ranks_that_lost_the_others_are_not_blamed_for_it(group: Group, news: Event, told: Event) -> None:
    group.say(0, Refused("7", *LOST))
    group.say(2, Refused("7", *LOST))
    waited = time.monotonic()
    assert group.events(DEATH_SECONDS + 0.2) == []  # longer than for a rank that fails by itself, and than a stall
    assert time.monotonic() - waited > DEATH_SECONDS
    group.say(1, news)
    assert group.end() == told


def test_a_lost_connection_that_nobody_is_to_blame_for_is_a_death(group: Group) -> None:
    """And so is tried once more, in place of being stored."""
    group.say(2, Refused("7", *LOST))
    reason = "rank 2 of 3 lost its connection to the others: RuntimeError: Connection closed by peer"
    assert group.end() == Died("7", reason)


def test_a_rank_that_fails_by_itself_ends_the_trial_unless_another_died(group: Group) -> None:
    group.say(2, Done("7", FAILED))
    group.say(0, Refused("7", *LOST))
    begun = time.monotonic()
    assert group.end() == Done("7", FAILED | {"reason": "rank 2 of 3: ValueError: mine"})
    assert time.monotonic() - begun < DEATH
    group.begin()
    group.say(2, Done("7", FAILED))
    group.say(1, Died("7", "gone"))
    assert group.end() == Died("7", "rank 1 of 3: gone")


def test_a_rank_stuck_while_it_loads_the_task_ends_the_trial(group: Group) -> None:
    group.watch.join = 0.3
    group.beat(0, phase=LOADING, waits=True)
    group.beat(1, phase=LOADING)
    found = group.end()
    assert isinstance(found, Died)
    told = found.reason.partition(" s: ")[2]
    assert told == "rank 1 of 3 at r1.py:1 (f), loading the task; rank 2 of 3, which has said nothing"


def test_a_rank_that_waits_for_a_node_is_not_stuck(group: Group) -> None:
    group.watch.join = 0.3
    group.ranked[1].placed = False
    assert group.events(1.0) == []
    group.ranked[1].placed = True
    assert isinstance(group.end(), Died)


def test_a_rank_stuck_after_another_is_done_ends_the_trial(group: Group) -> None:
    for rank in range(RANKS):
        group.beat(rank)
    group.say(0, Done("7", WELL))
    group.say(2, Done("7", WELL))
    found = group.end()
    assert isinstance(found, Died)
    assert found.reason.endswith(" s: rank 1 of 3 at r1.py:1 (f)")


def test_a_group_of_launched_processes_waits_until_a_lost_one_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Control, "__init__", lambda self, launch: setattr(self, "launch", launch))
    assert LaunchedExecutor(Control(Launch(0, 2, 0, "here", 1))).death > LOST_SECONDS


def test_all_orders_of_a_death_and_its_echoes_name_the_dead() -> None:
    news = {0: Refused("7", *LOST), 1: Died("7", "gone"), 2: Refused("7", *LOST)}
    with Group() as group:
        for order in itertools.permutations(news):
            group.begin()
            for rank in order:
                group.say(rank, news[rank])
            assert group.end() == Died("7", "rank 1 of 3: gone")
