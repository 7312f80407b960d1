"""What do more devices buy? Rows, fits and predictions, computed from a `ScalingData` and from a study's steps."""

from __future__ import annotations

from dataclasses import dataclass

from batchscope.records.scaling import ScalingData
from batchscope.records.studies import Claim
from batchscope.records.values import Goal, Measured


@dataclass(frozen=True)
class ScalingRow:
    """One global batch size on so many devices, as measured."""

    devices: int
    batch_size: int
    seconds_per_step: Measured
    exposed: Measured  # seconds of a step that averaging the gradients adds; 0 on one device
    seconds_per_epoch: Measured
    examples_per_second: Measured
    strong_speedup: Measured | None  # over one device at this very batch size
    weak_efficiency: Measured | None  # one device at this batch per device / these devices


@dataclass(frozen=True)
class NetworkFit:
    """Seconds of an all-reduce of m bytes over n devices as a ring: 2 (n - 1) (latency + m / (n bandwidth))."""

    latency: Measured
    bandwidth: Measured  # bytes per second
    residual_sd: float  # of log seconds
    points: tuple[tuple[int, int, float], ...]  # (devices, bytes, median seconds)
    reason: str = ""


@dataclass(frozen=True)
class ScalingFit:
    """t(B, n) = ((d + k_n c(B / n))^g + (f r(n))^g)^(1/g): see `analysis.scaling`."""

    slowdown: dict[str, Measured]  # k_n: computing on n devices over computing on one, by device count
    wrapper: Measured  # d, seconds: what a replica's step takes more, averaging or not
    factor: Measured  # f: averaging in a step over the same all-reduces by themselves
    overlap: Measured  # g: 1 none, 10 nearly all
    residual_sd: float  # of log seconds per step; nan where as many parameters as places leave none
    residuals: tuple[tuple[int, int, float], ...]  # (devices, batch size, relative)
    reason: str = ""


@dataclass(frozen=True)
class ScalingPrediction:
    """Seconds per step at a device count that was not measured, or over a link that is not here."""

    devices: int
    batch_size: int
    seconds_per_step: Measured
    how: str


@dataclass(frozen=True)
class DeviceChoice:
    """The best batch size on so many devices, and what it takes to the goal."""

    devices: int
    batch_size: int
    measured: bool  # seconds per step; False: predicted
    extrapolated: bool  # steps to goal, beyond the batch sizes that were trained
    seconds_per_step: Measured
    steps_to_goal: Measured
    seconds_to_goal: Measured
    speedup: Measured  # over one device at its own best batch size
    device_seconds: Measured  # devices x seconds: what it costs


@dataclass(frozen=True)
class ScalingResult:
    """What `bs.scale` returns, `--json` prints and the page draws."""

    task: str
    data: ScalingData
    rows: tuple[ScalingRow, ...]
    network: NetworkFit
    fit: ScalingFit
    predictions: tuple[ScalingPrediction, ...]
    choices: tuple[DeviceChoice, ...]  # by device count, ascending; empty without a study
    most_useful: int | None  # devices: more gain less than 5 %; None where not known
    critical_batch_size: Measured | None
    claims: tuple[Claim, ...]
    sentences: tuple[str, ...]
    notes: tuple[str, ...] = ()
    report: str | None = None
    goal: Goal | None = None  # of the study
