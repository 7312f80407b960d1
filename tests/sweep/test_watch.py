"""Is a rank that stands still found, and no other taken for one, from what ranks say of themselves?"""

from __future__ import annotations

from typing import Any

import pytest

from batchscope.sweep.watch import IDLE_SHARE, LOADING, MEETING, WORKING, Watch

STALL, JOIN = 20.0, 120.0


class Ranks:
    """Two ranks that were told to begin, and a clock that stands until it is moved on."""

    def __init__(self, phase: str = WORKING) -> None:
        self.now = 100.0
        self.watch = Watch(2, STALL, JOIN, lambda: self.now)
        for rank in (0, 1):
            self.watch.began(rank)
            self.say(rank, phase=phase)

    def say(self, rank: int, **other: Any) -> None:
        plain = {"phase": WORKING, "done": 5, "cpu": 10.0, "waits": False, "marked": False, "at": f"r{rank}.py:1 (f)"}
        self.watch.beat(rank, plain | other)

    def after(self, seconds: float, *beats: dict[str, Any]) -> str:
        """The verdict so much later, when each has said this."""
        self.now += seconds
        for rank, beat in enumerate(beats):
            self.say(rank, **beat)
        return self.watch.verdict()


WAITS = {"waits": True}
BUSY = {"cpu": 10.0 + 2 * IDLE_SHARE * STALL}
PHRASE = "no rank came further for 21 s: "


@pytest.mark.parametrize(
    ("beats", "told"),
    [
        (({"waits": True}, {}), "rank 1 of 2 at r1.py:1 (f)"),  # it sleeps
        (({}, {}), "rank 0 of 2 at r0.py:1 (f); rank 1 of 2 at r1.py:1 (f)"),
        ((WAITS, BUSY), None),  # it computes
        ((WAITS | BUSY, {}), "rank 1 of 2 at r1.py:1 (f)"),  # who waits does not count beside one that does not
        ((WAITS, WAITS | BUSY), None),  # in a backward pass of its own
        ((WAITS, WAITS), "rank 0 of 2 at r0.py:1 (f); rank 1 of 2 at r1.py:1 (f)"),
        ((WAITS | BUSY | {"marked": True}, WAITS), "rank 0 of 2 at r0.py:1 (f); rank 1 of 2 at r1.py:1 (f)"),
        ((WAITS | BUSY | {"marked": True}, {}), "rank 1 of 2 at r1.py:1 (f)"),  # NCCL's wait spins
    ],
)
def test_who_stands_still_while_all_train(beats: tuple[dict[str, Any], ...], told: str | None) -> None:
    ranks = Ranks()
    assert ranks.after(STALL - 1.0, *beats) == ""
    assert ranks.after(2.0, *beats) == ("" if told is None else PHRASE + told)


def test_of_ranks_that_all_wait_those_are_named_that_are_behind() -> None:
    ranks = Ranks()
    ranks.say(0, done=6)
    assert ranks.after(STALL + 1.0, WAITS | {"done": 6}, WAITS) == PHRASE + "rank 1 of 2 at r1.py:1 (f)"


def test_anything_done_on_any_rank_is_progress() -> None:
    """A chunk of an evaluation on rank 0, for which rank 1 waits."""
    ranks = Ranks()
    for chunk in range(5):
        assert ranks.after(STALL - 1.0, {"done": 6 + chunk}, WAITS) == ""
    assert ranks.after(STALL + 1.0, {"done": 10}, WAITS) != ""


@pytest.mark.parametrize("phase", [LOADING, MEETING])
def test_before_all_have_met_there_is_more_patience(phase: str) -> None:
    ranks = Ranks(phase)
    beats = {"phase": MEETING, "waits": True}, {"phase": phase}
    assert ranks.after(0.0, *beats) == ""
    assert ranks.after(JOIN - 1.0, *beats) == ""
    assert ranks.after(2.0, *beats) == f"no rank came further for 121 s: rank 1 of 2 at r1.py:1 (f), {phase}"


def test_a_rank_that_loads_for_long_and_computes_is_let_be() -> None:
    ranks = Ranks(LOADING)
    beats = {"phase": LOADING}, {"phase": LOADING, "cpu": 10.0 + 2 * IDLE_SHARE * JOIN}
    assert ranks.after(JOIN + 1.0, *beats) == ""


def test_a_rank_that_was_told_to_begin_and_says_nothing_is_named() -> None:
    ranks = Ranks()
    ranks.watch.began(1)
    assert ranks.after(JOIN - 1.0, WAITS) == ""
    assert ranks.after(2.0, WAITS) == "no rank came further for 121 s: rank 1 of 2, which has said nothing"


def test_one_that_is_stuck_at_the_end_is_found_among_those_without_a_result() -> None:
    ranks = Ranks()
    ranks.watch.ended(0)
    ranks.say(0, done=99)  # said before it ended, and late
    assert ranks.after(STALL - 1.0) == ""
    assert ranks.after(2.0) == PHRASE + "rank 1 of 2 at r1.py:1 (f)"
    ranks.watch.ended(1)
    assert ranks.after(1000.0) == ""
