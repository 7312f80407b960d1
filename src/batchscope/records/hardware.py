"""What do steps cost on this hardware? Seconds and bytes against batch size: what `profile` measures and answers.

Measured and stored: `TimingPass` and `SplitTiming` (seconds, window by window), `MemoryProfile` (bytes, probe by
probe), `FlopCount`; together `ProfileData`. Computed from it: `ProfileResult`, the answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from batchscope.records.trials import Conditions
from batchscope.records.values import Measured

MEMORY_OUTCOMES = ("fits", "fits_with_retries", "out_of_memory", "crashed", "timed_out")
OWN_LOOP = "batchscope"  # whose loop seconds belong to, unless a meter in somebody else's loop says otherwise

# --- seconds, as measured ---


@dataclass(frozen=True)
class StepTiming:
    """Seconds of whole training steps at one batch size, measured alone on the machine.

    `seconds_per_step[i]` is round i's window (seconds over steps in it), `reference[i]` the seconds per
    step of the reference size just before it in the same round: their ratio is free of slow drift.

    `phases` holds windows of parts of the step, of the same rounds, each a tuple as long as `seconds_per_step`:

        "data"      only taking batches from the source, on the device: reading, collating, copying
        "copy"      only copying a batch from the host to the device (absent where data are there already)
        "resident"  whole steps on one batch that stays on the device: the step without its data
        "backward"  zero, forward and backward on that batch: the step without data, clipping and optimiser
    """

    batch_size: int
    steps_per_window: int
    seconds_per_step: tuple[float, ...]
    reference: tuple[float, ...]
    phases: dict[str, tuple[float, ...]] = field(default_factory=dict)
    joules_per_step: tuple[float, ...] = ()  # empty: not measured


@dataclass(frozen=True)
class TimingPass:
    """All sizes' timings of one interleaved pass, with the drift of its reference step."""

    reference_batch_size: int
    timings: tuple[StepTiming, ...]
    conditions: Conditions
    drift: float = 0.0  # (largest - smallest) / median of the reference windows
    loop: str = OWN_LOOP  # whose loop was timed


@dataclass(frozen=True)
class SplitTiming:
    """Seconds of whole steps of `batch_size` examples in micro-batches, beside the reference as in `StepTiming`."""

    batch_size: int
    micro_batch_size: int
    seconds_per_step: tuple[float, ...]
    reference: tuple[float, ...]


@dataclass(frozen=True)
class FlopCount:
    """Floating-point operations of one training step per example: matrix products and convolutions, 2 per
    multiply-add, forward and backward, counted once by torch's own counter. `peak_per_second` is the device's
    data-sheet figure at the precision used, None where it is not known."""

    per_example: float
    batch_size: int  # the batch that was counted
    peak_per_second: float | None = None
    peak_source: str = ""


# --- bytes, as measured ---


@dataclass(frozen=True)
class MemoryParts:
    """What the peak of a probe's training steps was made of, in bytes; the sum is the peak.

    `process` is what was resident before the model was made: the interpreter, torch, the task's data.
    Weights, gradients and optimiser state are counted tensor by tensor. `activations` is all the rest at the
    peak: activations, work space, batches, and what the allocator holds.
    """

    process: int
    weights: int
    gradients: int
    optimizer_state: int
    activations: int


@dataclass(frozen=True)
class MemoryProbe:
    """One training step (several, one evaluation, one checkpoint) at one micro-batch size in a process of its own."""

    micro_batch_size: int
    outcome: str  # one of MEMORY_OUTCOMES
    reason: str = ""  # one sentence; empty where it fits
    peak_bytes: int | None = None  # the highest seen, also where it did not fit; None where nothing was seen
    training_bytes: int | None = None
    evaluation_bytes: int | None = None
    checkpoint_bytes: int | None = None
    parts: MemoryParts | None = None
    saved_bytes_per_example: float | None = None  # tensors that autograd keeps for the backward pass, counted
    steps: int = 0  # optimiser steps that really ran
    alloc_retries: int = 0
    seconds: float = 0.0

    @property
    def fits(self) -> bool:
        """Whether training, evaluation and checkpoint ran to their end below the limit."""
        return self.outcome in ("fits", "fits_with_retries")


@dataclass(frozen=True)
class MemoryFit:
    """peak(b) = fixed_bytes + bytes_per_example * b, over the probes that ran to their end."""

    fixed_bytes: Measured
    bytes_per_example: Measured
    largest_residual: float  # relative to the measured peak
    micro_batch_sizes: tuple[int, ...]


@dataclass(frozen=True)
class MemoryProfile:
    """What fits: the probes in the order they ran, and the largest micro-batch size that ran below the limit."""

    limit_bytes: int
    limit_is: str  # where the limit comes from, in words
    measured_as: str  # what "peak" is on this device, in words
    sample_is: str  # which example was used, in words
    probes: tuple[MemoryProbe, ...]
    largest_micro_batch_size: int | None  # was run; None: not even `smallest_tried`
    binding: str  # "memory", "data set", "batch size asked for", "crash", "time", "probes"
    reason: str  # one sentence
    conditions: Conditions
    fit: MemoryFit | None = None


# --- what is stored, and what is answered ---


@dataclass(frozen=True)
class ProfileData:
    """Everything that one `profile` measured: what the store keeps."""

    task: str
    fingerprint: str
    train_size: int
    own_batch_size: int
    conditions: Conditions
    unit: str = "examples"
    units_per_example: float = 1.0
    batch_sizes: tuple[int, ...] | None = None  # as asked for; None: chosen
    memory_limit: int | None = None  # as asked for, bytes; None: chosen
    seed: int = 0
    workers: int | None = None  # as chosen for trials; None: conditions were given
    timing: TimingPass | None = None
    splits: tuple[SplitTiming, ...] = ()
    memory: MemoryProfile | None = None
    flops: FlopCount | None = None
    energy_is: str = "not measured"
    examples: int = 0  # what it took, probes and warm-up included
    steps: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    measured_at: str = ""  # UTC, ISO 8601


@dataclass(frozen=True)
class ThroughputRow:
    """One micro-batch size. Phases are seconds per step; None where they were not measured."""

    micro_batch_size: int
    seconds_per_step: Measured
    examples_per_second: Measured
    units_per_second: Measured  # the task's unit: examples or tokens
    data_wait: Measured | None  # whole step minus the step on a resident batch: what a free loader would save
    copy: Measured | None  # host to device, measured alone; 0 where the data are on the device
    compute: Measured | None  # forward and backward
    optimizer: Measured | None  # clipping and optimiser step: resident step minus forward and backward
    bound_by: str  # "data", "compute", "optimizer"; "" where phases were not measured
    flops_utilization: Measured | None  # model FLOPs per second over the device's peak
    joules_per_example: Measured | None
    peak_bytes: int | None  # measured by a probe at this very size
    predicted_peak_bytes: int | None


@dataclass(frozen=True)
class StepTimeFit:
    """t(b) = overhead + seconds_per_example * (b^4 + saturation^4)^(1/4): flat, then affine."""

    overhead_seconds: Measured
    seconds_per_example: Measured
    saturation_batch_size: Measured
    residuals: tuple[float, ...]  # relative, per batch size
    batch_sizes: tuple[int, ...]
    reason: str = ""  # why there is no fit, or what limits it


@dataclass(frozen=True)
class Split:
    """A global batch size as accumulation steps of a micro-batch size."""

    batch_size: int
    micro_batch_size: int
    accumulation: int
    seconds_per_step: Measured
    measured: bool  # False: predicted from the micro-batch's own timing
    over_whole: Measured | None  # seconds over those of the whole batch in one pass; None where that was not run


@dataclass(frozen=True)
class ProfileResult:
    """The answer of `profile`: what `bs.profile` returns, `--json` prints and the report draws."""

    task: str
    fingerprint: str
    unit: str
    loop: str  # whose loop the seconds belong to
    rows: tuple[ThroughputRow, ...]
    step_time: StepTimeFit | None
    knee: Measured  # the smallest micro-batch size with 95 % of the highest throughput measured below the ceiling
    splits: tuple[Split, ...]
    memory: MemoryProfile | None
    flops: FlopCount | None
    energy_is: str
    conditions: Conditions
    data: ProfileData
    notes: tuple[str, ...] = ()
    report: str | None = None


@dataclass(frozen=True)
class MicroBatch:
    """What `largest_micro_batch` answers: train `batch_size` examples as `accumulation` micro-batches of this size.

    The last micro-batch may be shorter. `peak_bytes` was measured at this micro-batch size.
    """

    micro_batch_size: int
    accumulation: int
    batch_size: int
    peak_bytes: int
    limit_bytes: int
    largest_micro_batch_size: int
    memory: MemoryProfile
