"""Do small batches end in flatter minima, farther from the start? Rows and claims, computed from a `SharpnessData`."""

from __future__ import annotations

from dataclasses import dataclass, field

from batchscope.records.sharpness import SharpnessData
from batchscope.records.studies import Claim
from batchscope.records.values import Measured


@dataclass(frozen=True)
class FlatnessRow:
    """One batch size under a policy, over its seeds. `measures`: name of a measure -> its value."""

    batch_size: int | None
    policy: str
    label: str  # what tables call it
    learning_rate: float | None
    seeds: int
    measures: dict[str, Measured]


@dataclass(frozen=True)
class DistanceRow:
    """Distance from the initial weights at equal epochs, equal steps and equal training loss, from the traces."""

    batch_size: int
    policy: str
    equal: str  # "epochs", "steps" or "training loss"
    at: float  # how many of them, or which loss
    distance: Measured


@dataclass(frozen=True)
class DistanceTrace:
    """|w_t - w_0| along one trial of the study, at its evaluations after the first."""

    batch_size: int
    policy: str
    seed: int
    learning_rate: float
    steps: tuple[int, ...]
    distances: tuple[float, ...]


@dataclass(frozen=True)
class Growth:
    """|w_t - w_0| = a + b log(t), over the steps of a batch size's trials: b, and the share of variance explained."""

    batch_size: int
    policy: str
    slope: Measured  # b: distance for each factor e of the steps
    explained: float  # R^2 of the line in log(steps), mean over the trials
    explained_by_power: float  # R^2 of the power law, of the distance too
    exponent: float  # of that power


@dataclass(frozen=True)
class CauseRow:
    """Causal runs of one kind, over their seeds. `measures`: name of a measure -> its value.

    kind "warm start" or "noise injected", as in `Continued`, or "uninterrupted": the study's own trials of that batch
    size and those seeds, at the policy that the runs were under.
    """

    kind: str
    batch_size: int  # that they ended with
    from_batch_size: int  # that they began with, or whose noise they got; of uninterrupted ones their own
    share: float  # of the way to the first batch size's lowest validation loss, before the switch
    epochs: float  # which that was, mean over the seeds
    epochs_after: float  # from there to the weights that were measured, likewise; of uninterrupted ones not counted: 0
    seeds: int
    measures: dict[str, Measured]
    ratios: dict[str, Measured] = field(default_factory=dict)  # to the uninterrupted runs, paired by seed


@dataclass(frozen=True)
class SharpnessResult:
    """What `bs.sharpness` returns, `--json` prints and the page draws."""

    task: str
    data: SharpnessData
    rows: tuple[FlatnessRow, ...]
    claims: tuple[Claim, ...]  # 10 by each measure of flatness, 6 by each of distance; by policy
    distances: tuple[DistanceRow, ...]
    growth: tuple[Growth, ...]
    sentences: tuple[str, ...]
    notes: tuple[str, ...] = ()
    report: str | None = None
    traces: tuple[DistanceTrace, ...] = ()  # of the study's trials; the page draws them
    causes: tuple[CauseRow, ...] = ()
