"""Which of a job's ranks stands still? Told from what they say of themselves (`ranks.py`), while no result has come.

A rank comes further by a batch, a pass, a chunk of an evaluation, or from one phase of its life to the next. A job
stands still once no rank has come further for `stall` seconds and none that counts has computed meanwhile:

    where some rank does not wait for others    those that do not wait count: they keep the others
    where all of them wait                      all count: one may be in a long backward pass of its own

While ranks still load the task or meet, `join` seconds are allowed in place of `stall`; a rank that was told to begin
and says nothing is taken for one that does not compute. (One that computes for ever is not found.)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

STALL_SECONDS = 20.0  # a trial is to end within 30 s of a rank that hangs
JOIN_SECONDS = 120.0  # for a rank that neither computes nor comes further before all have met (a guess)
IDLE_SHARE = 0.05  # of a core: below it a rank does not compute (a guess)
LOADING, MEETING, WORKING = "loading the task", "meeting the others", "working"  # the phases of a rank

Beat = dict[str, Any]


class Watch:
    """What is known of the ranks of one job; `clock` in seconds."""

    def __init__(
        self, ranks: int, stall: float, join: float = JOIN_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.ranks, self.stall, self.join, self.clock = ranks, stall, join, clock
        self.beats: dict[int, Beat | None] = {}  # the newest, of ranks that were told to begin and have not ended
        self._still: dict[int, Beat | None] = {}  # those when a rank last came further
        self._since = clock()

    def began(self, rank: int) -> None:
        """It was told to begin."""
        self.beats[rank] = None
        self.went_on()

    def beat(self, rank: int, beat: Beat) -> None:
        """It said how far it is: `phase`, `done`, `cpu` seconds; `waits`, `marked` as a wait of our own; where `at`."""
        if rank not in self.beats:
            return
        before = self._still.get(rank)
        self.beats[rank] = beat
        if before is None or (beat["phase"], beat["done"]) != (before["phase"], before["done"]):
            self.went_on()

    def ended(self, rank: int) -> None:
        """It has a result."""
        self.beats.pop(rank, None)
        self.went_on()

    def went_on(self) -> None:
        """The job came further."""
        self._still, self._since = dict(self.beats), self.clock()

    def verdict(self) -> str:
        """Who stands still and where; "" while the job goes on."""
        waited, heard = self.clock() - self._since, {r: beat for r, beat in self.beats.items() if beat is not None}
        together = all(beat is not None and beat["phase"] == WORKING for beat in self.beats.values())
        if not self.beats or waited < (self.stall if together else self.join):
            return ""
        standing = [r for r, beat in self.beats.items() if beat is None or not beat["waits"]]
        counting = standing or [r for r, beat in heard.items() if not beat["marked"]]
        if any(self._computed(r) > IDLE_SHARE * waited for r in counting):
            return ""
        least = min((beat["done"] for beat in heard.values()), default=0)
        blamed = standing or [r for r, beat in heard.items() if beat["done"] == least]
        return f"no rank came further for {waited:.0f} s: {'; '.join(map(self._told, blamed))}"

    def _computed(self, rank: int) -> float:
        """Seconds of a processor since a rank last came further."""
        now, then = self.beats.get(rank), self._still.get(rank)
        return now["cpu"] - then["cpu"] if now is not None and then is not None else 0.0

    def _told(self, rank: int) -> str:
        who, beat = f"rank {rank} of {self.ranks}", self.beats[rank]
        if beat is None:
            return f"{who}, which has said nothing"
        return f"{who} at {beat['at']}" + (f", {beat['phase']}" if beat["phase"] != WORKING else "")
