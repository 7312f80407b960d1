"""How noisy is a batch's gradient? Squared norms as measured, and the gradient noise scale that comes of them.

Measured and stored: `GradientNorms`, one line per measured step, and the `Deviations` of the principle's picture;
together `NoiseRun`. Computed from it: `NoiseScale`, and `NoiseResult`, the answer of `noise`.

Symbols: g_i the gradient of part i of a batch (a micro-batch, a replica's share, one example), w_i its weight in the
batch gradient g = sum_i w_i g_i (the weights sum to 1; shares of the examples, or of the counted tokens), m_i its
examples, G the full gradient, Sigma the covariance of one example's gradient, N the examples of the data set.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from batchscope.records.trials import Conditions, Evaluation
from batchscope.records.values import Goal, Measured

NOISE_OUTCOMES = ("resolved", "at_least", "not_enough")
NOISE_SOURCES = ("examples", "micro-batches", "replicas", "parts")
NOISE_METRICS = ("euclidean", "adam", "sign")  # the last two are proxies


@dataclass(frozen=True)
class GradientNorms:
    """One measurement: squared norms of a batch's gradient and of its parts, at the same weights, before clipping.

        mean_squared   |g|^2                                 = |G|^2 + tr(Sigma) / batch_size   in expectation
        parts_squared  sum_i w_i^2 |g_i|^2 / sum_i w_i^2     = |G|^2 + tr(Sigma) / part_size    in expectation
        batch_size     1 / sum_i w_i^2 / m_i                 equal parts: their number times their size
        part_size      sum_i w_i^2 / sum_i w_i^2 / m_i       equal parts: their size

    Both norms are of the mean loss: a mixed-precision loss scale is divided out.
    """

    step: int  # optimiser steps made before this one
    examples: int  # used before this step
    parts: int
    part_size: float
    batch_size: float
    mean_squared: float
    parts_squared: float
    loss: float | None = None  # of this very batch
    learning_rate: float | None = None
    steps: int | None = None  # of the run that it stands for in an average; None: as many as every other


@dataclass(frozen=True)
class NoiseScale:
    """B_simple = tr(Sigma) / |G|^2 over a set of measurements, in units of `GradientNorms.batch_size`.

    `resolved`: all three have an interval. `at_least`: |G|^2 is not distinguishable from 0, so `b_simple` is a lower
    bound (`estimate` and `high` null). `not_enough`: too few measurements for an interval; `reason` says what to do.
    """

    outcome: str  # one of NOISE_OUTCOMES
    b_simple: Measured
    trace: Measured  # tr(Sigma), of one unit
    squared_gradient: Measured  # |G|^2; its estimate may be negative
    measurements: int
    effective_measurements: float  # independent ones that would be as precise
    negative_share: float  # of single measurements whose estimate of |G|^2 is negative
    precision: float = 0.2  # asked for: half the interval over the estimate, on the log scale
    needed: int | None = None  # further measurements to that precision; None: cannot be told
    discarded: int = 0  # steps whose gradient was not finite
    metric: str = "euclidean"  # one of NOISE_METRICS
    reason: str = ""


@dataclass(frozen=True)
class NoisePoint:
    """The noise scale over one window of a run's steps."""

    first_step: int
    last_step: int
    examples: float  # used before the window's middle step
    loss: float | None  # training loss at the middle, fixed subset, eval mode, interpolated between evaluations
    scale: NoiseScale


@dataclass(frozen=True)
class Deviations:
    """At one checkpoint: |g_B - G|^2 for random batches of each size, drawn without replacement, and |G|^2 itself.

    `squared[i]` are the draws at `batch_sizes[i]`; batches of one size do not overlap, those of different sizes may.
    """

    step: int
    examples: int
    loss: float  # of the whole training set, as it is trained on
    data_size: int
    squared_gradient: float  # |G|^2, G the gradient of the whole training set
    batch_sizes: tuple[int, ...]
    squared: tuple[tuple[float, ...], ...]
    norms: tuple[GradientNorms, ...] = ()  # measurements at these very weights, on batches drawn apart


@dataclass(frozen=True)
class PrinciplePoint:
    """E|g_B - G|^2 / |G|^2 at one batch size, measured, beside (B_simple / B) (N - B) / (N - 1)."""

    batch_size: int
    deviation: Measured
    predicted: Measured  # from measurements at the checkpoint on batches drawn apart


@dataclass(frozen=True)
class Principle:
    """How far a batch's gradient is from the full one, at one checkpoint of the run."""

    step: int
    examples: int
    loss: float
    squared_gradient: float
    scale: NoiseScale  # of the measurements at the checkpoint that `predicted` rests on
    points: tuple[PrinciplePoint, ...]


@dataclass(frozen=True)
class NoiseRun:
    """Everything that one `noise` measured: what the store keeps."""

    task: str
    fingerprint: str
    train_size: int
    goal: Goal | None
    batch_size: int
    learning_rate: float
    conditions: Conditions
    seed: int = 0
    budget: float | None = None  # reference runs, as asked for
    unit: str = "examples"
    source: str = "examples"  # one of NOISE_SOURCES
    every: int = 1  # most optimiser steps from one measurement to the next; fewer at its beginning
    measurements: tuple[GradientNorms, ...] = ()
    discarded: int = 0
    layers: dict[str, NoiseScale] = field(default_factory=dict)  # over the whole run up to the crossing
    proxies: dict[str, NoiseScale] = field(default_factory=dict)  # by metric, as `layers`
    trace: tuple[Evaluation, ...] = ()
    outcome: str = "not_reached"  # of the run, one of OUTCOMES
    crossed_at: float | None = None  # examples at which the goal was crossed
    deviations: tuple[Deviations, ...] = ()
    examples: int = 0  # what it took, the principle's passes included
    steps: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    measured_at: str = ""  # UTC, ISO 8601
    checkpoints: int = 0  # as asked for


@dataclass(frozen=True)
class NoiseAgainstSweep:
    """The run-averaged B_simple beside the critical batch size that a tuned study of the same task measured."""

    study: str  # its id
    critical_batch_size: Measured
    factor: Measured  # B_simple / B_crit


@dataclass(frozen=True)
class NoiseResult:
    """The answer of `noise`: what `bs.noise` returns, `--json` prints and the report draws."""

    task: str
    fingerprint: str
    unit: str
    source: str
    every: int
    run_average: NoiseScale  # averaged tr(Sigma) over averaged |G|^2, by steps, up to the crossing
    points: tuple[NoisePoint, ...]
    layers: dict[str, NoiseScale]
    proxies: dict[str, NoiseScale]
    principles: tuple[Principle, ...]
    against_sweep: NoiseAgainstSweep | None
    data: NoiseRun
    notes: tuple[str, ...] = ()
    report: str | None = None


@dataclass(frozen=True)
class NoiseReport:
    """What a `NoiseMonitor` saw in somebody's own loop."""

    scale: NoiseScale  # over everything that was measured
    latest: NoiseScale  # over the last quarter of it
    layers: dict[str, NoiseScale]  # by module; empty where the source sees no layers
    groups: dict[str, NoiseScale]  # by the optimiser's parameter groups, where it has several
    proxies: dict[str, NoiseScale]  # by metric
    source: str  # one of NOISE_SOURCES
    parts: int  # that a batch is compared in
    batch_size: float  # of a measured step, in the same unit as the scale
    every: int  # steps from one measurement to the next
    overhead: float | None  # share of the training's time that measuring takes; None: not measured
    steps: int
    measurements: tuple[GradientNorms, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        b = self.scale.b_simple
        if self.scale.outcome == "not_enough" or b.low is None:
            return f"gradient noise scale: not enough yet ({self.scale.reason})"
        how = f"{self.scale.measurements} of {self.steps} steps measured, source {self.source}"
        if b.estimate is None or b.high is None:
            return f"gradient noise scale: at least {b.low:,.4g} ({how})"
        return f"gradient noise scale: {b.estimate:,.4g} [{b.low:,.4g}-{b.high:,.4g}] ({how})"
