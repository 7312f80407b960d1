"""What was measured on several devices? Windows of steps and of all-reduces, against batch size and device count.

Stored as a `ScalingData`. What is computed from it, and from a study's steps, is in `scaled.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from batchscope.records.hardware import TimingPass
from batchscope.records.trials import Conditions


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
