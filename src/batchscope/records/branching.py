"""How far can the batch grow from here? A checkpoint's branches, and the local critical batch size that comes of them.

Measured: `Branch`, one continuation of the checkpoint with k times the batch size on one order of the data. Computed
from them: `BranchPoint`, one k over all data orders, and `BranchAnswer`. Batch sizes are in examples; `units` and
`window` in the answer's unit, examples or tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from batchscope.records.values import Measured

BRANCH_RULES = ("sqrt", "linear")
BRANCH_OUTCOMES = ("bracketed", "at_least", "below", "not_resolved")
RECOVERED = ("yes", "no", "not resolved")


@dataclass(frozen=True)
class Branch:
    """The checkpoint, continued with k times the batch size on the data order `seed`, up to the window's end.

    A loss is that of a step's batch before the step; only steps whose loss was finite are listed. With k = 0 no step
    was made: the checkpoint's own loss on the base's batches.
    """

    k: float
    seed: int
    batch_size: int
    learning_rate: float  # of the first parameter group, scaled; held over the window
    losses: tuple[float, ...]
    units: tuple[float, ...]  # that each of these losses averages over
    diverged: bool = False  # ended before its window by a loss that was not finite


@dataclass(frozen=True)
class BranchPoint:
    """One k: its smoothed loss at the end of the window, and whether that is back at the smaller batches' losses."""

    k: float
    batch_size: int
    learning_rate: float
    steps: float  # of a branch, mean over the data orders
    units: float  # of a branch, mean over the data orders
    loss: Measured
    excess: Measured  # the loss minus that of k = 1, paired by data order
    recovered: str  # one of RECOVERED: at most the tolerance above every smaller k
    diverged: bool  # on any data order
    reason: str  # one sentence: what `recovered` rests on
    time_ratio: Measured | None = None  # seconds for the same data, over those of k = 1; None: not given


@dataclass(frozen=True)
class BranchAnswer:
    """The local critical batch size at a checkpoint, as a bracket.

    `recovered_up_to`, a batch size: `low` is the largest that recovered for sure, `high` the next above that did not
    for sure, `estimate` the largest whose mean loss did (null where that is the smallest or the largest that ran: then
    it is a bound). Outcomes: `bracketed` has both ends, `at_least` the lower, `below` the upper, `not_resolved` none.
    """

    outcome: str  # one of BRANCH_OUTCOMES
    recovered_up_to: Measured
    steps_saved: Measured  # 1 - 1/k: the share of the base's steps that the batch size `recovered_up_to` would save
    learned: Measured  # the checkpoint's own loss minus that of k = 1 at the window's end, paired by data order
    points: tuple[BranchPoint, ...]  # k ascending
    batch_size: int  # of k = 1
    unit: str
    window: float  # of each branch, in units
    smoothing: float  # time constant of the losses' moving average, in units
    rule: str  # one of BRANCH_RULES: how the learning rate follows k
    tolerance: float  # of a recovered loss
    micro_batch_size: int
    evidence: str
    branches: tuple[Branch, ...]  # k = 0 among them
    spent: float  # units, of all branches
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        b, orders = self.recovered_up_to, len({branch.seed for branch in self.branches})
        said = {
            "bracketed": f"recovers up to {b.low or 0:,.6g} and no longer at {b.high or 0:,.6g}",
            "at_least": f"recovers up to {b.low or 0:,.6g}, and no larger one was shown not to",
            "below": f"does not recover at {b.high or 0:,.6g}, and no smaller one was shown to",
            "not_resolved": "recovers up to a batch size that these branches do not resolve",
        }[self.outcome]
        best = f"; by the mean losses, up to {b.estimate:,.6g}" if b.estimate not in (None, b.low) else ""
        return (
            f"batch size {self.batch_size:,} x k for {self.window:,.6g} {self.unit}: the loss {said}{best} "
            f"({orders} data order{'s' * (orders != 1)}, tolerance {self.tolerance:g})"
        )
