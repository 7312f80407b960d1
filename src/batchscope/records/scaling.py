"""What do more devices buy? Seconds per step against batch size and device count, and what is computed from them.

Measured and stored: `ScalingPass` (windows of steps and of all-reduces), in a `ScalingData`. Computed from it and from
a study's steps: `ScalingResult`, the answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from batchscope.records.hardware import TimingPass
from batchscope.records.studies import Claim
from batchscope.records.trials import Conditions
from batchscope.records.values import Goal, Measured

# --- as measured ---


@dataclass(frozen=True)
class AllReduceTiming:
    """Seconds of one all-reduce of so many bytes over so many devices, a window for each round."""

    devices: int
    bytes: int
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class ScalingPass:
    """One interleaved pass over device counts and global batch sizes.

    `passes` has a `TimingPass` for each device count (its conditions' `world_size`), counts ascending. A window is that
    of the slowest rank. Reference windows are all of the task's own batch on one device, so that drift between device
    counts divides out. With several devices, phase "alone" is the same steps without averaging the gradients.
    """

    passes: tuple[TimingPass, ...]
    all_reduces: tuple[AllReduceTiming, ...]
    gradient_bytes: int  # of one step, all parameters that are trained
    buckets: tuple[int, ...]  # bytes of the pieces in which they are averaged


@dataclass(frozen=True)
class Network:
    """A link as its user describes it: seconds until the first byte comes, and bytes a second."""

    latency: float
    bandwidth: float


@dataclass(frozen=True)
class ScalingQuestion:
    """What `scale` was asked."""

    device_counts: tuple[int, ...]  # to be measured
    batch_sizes: tuple[int, ...]  # global
    network: Network | None = None  # to predict for instead of the one measured
    largest: int = 1024  # device count that is predicted for
    seed: int = 0


@dataclass(frozen=True)
class ScalingData:
    """Everything that one `scale` measured, and the study whose steps it is joined with: what the store keeps."""

    task: str
    fingerprint: str
    train_size: int
    own_batch_size: int
    own_learning_rate: float
    question: ScalingQuestion
    conditions: Conditions  # of one device
    timing: ScalingPass
    study_id: str | None = None
    unit: str = "examples"
    coupled: bool = False  # batch norm: replicas change the mathematics
    examples: int = 0  # what it took, warm-up included
    steps: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    measured_at: str = ""  # UTC, ISO 8601


# --- as answered ---


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
    """t(B, n) = ((d + k_n c(B / n))^g + (h + r(n))^g)^(1/g): see `analysis.scaling`."""

    slowdown: dict[str, Measured]  # k_n: computing on n devices over computing on one, by device count
    wrapper: Measured  # d, seconds: what a replica's step takes more, averaging or not
    added: Measured  # h, seconds: what averaging costs beside the network
    overlap: Measured  # g: 1 none, 10 nearly all
    residual_sd: float  # of log seconds per step
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
