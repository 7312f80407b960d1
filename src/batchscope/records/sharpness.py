"""How flat, and how far from the start, is what a trial found? Measured at stored weights: points, and pictures.

Together `SharpnessData`, what the store keeps. What is computed from it is in `flatness.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from batchscope.records.trials import Conditions
from batchscope.records.values import Measured

SPACES = ("full", "subspace")


@dataclass(frozen=True)
class BoxSharpness:
    """Keskar et al. 2016, metric 2.1: 100 (max f - f) / (1 + f) over the box of `epsilon`, by L-BFGS-B."""

    space: str  # one of SPACES
    epsilon: float
    percent: float
    iterations: int
    evaluations: int  # of f and its gradient
    converged: bool  # else it was stopped after `iterations`: a lower bound of the maximum
    examples: int  # that f is the mean over


@dataclass(frozen=True)
class LayerDistance:
    """One parameter tensor: |w - w0|, |w0| and |w|."""

    name: str
    distance: float
    initial_norm: float
    norm: float


@dataclass(frozen=True)
class Density:
    """Stochastic Lanczos quadrature: for each random start its nodes (eigenvalues) and weights, which sum to 1."""

    nodes: tuple[tuple[float, ...], ...]
    weights: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class PointSharpness:
    """Everything measured at one set of weights. What was not asked for, or failed, is None; `notes` say why."""

    label: str
    batch_size: int | None = None  # of its trial; None: weights that came as a file
    policy: str = ""
    seed: int | None = None
    learning_rate: float | None = None
    trial_key: str = ""
    step: int = 0
    examples: int = 0  # that its training used
    loss: float = 0.0  # f, the function that is measured
    metrics: dict[str, float] = field(default_factory=dict)  # in the same mode, over the same examples
    validation: dict[str, float] = field(default_factory=dict)  # in eval mode, as in the trial's trace
    test: dict[str, float] | None = None
    gradient_norm: float = 0.0
    boxes: tuple[BoxSharpness, ...] = ()
    subset_boxes: tuple[BoxSharpness, ...] = ()  # on few examples: after as many iterations, and at convergence
    largest_eigenvalue: Measured | None = None
    smallest_eigenvalue: Measured | None = None
    trace: Measured | None = None
    trace_again: Measured | None = None  # by Hutch++, at the points that are pictured: one estimator beside the other
    density: Density | None = None
    adaptive_sharpness: float | None = None  # ASAM: the loss's largest increase within the scaled ball
    adaptive_eigenvalue: Measured | None = None  # largest of T H T, T = diag(|w| + eta)
    batch_sharpness: Measured | None = None  # E g'Hg / |g|^2 over batches of the trial's own size
    distance: float = 0.0  # |w - w0| over all trainable parameters
    initial_norm: float = 0.0
    layers: tuple[LayerDistance, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0  # shared machine: progress only


@dataclass(frozen=True)
class Line:
    """Loss and metrics along a path between two points, or through one; the same places for both data sets."""

    kind: str  # "straight", "curved" (between two) or "slice" (filter-normalised, through one)
    labels: tuple[str, ...]  # of the points: at 0 and at 1, or of the one at 0
    places: tuple[float, ...]
    train: dict[str, tuple[float, ...]]  # metric -> values
    validation: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Slice:
    """The training loss on a grid of two filter-normalised directions around a point: losses[i][j] at (a_i, b_j)."""

    label: str
    places: tuple[float, ...]
    losses: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Landscape:
    """What `bs.landscape` returns."""

    lines: tuple[Line, ...]
    slices: tuple[Slice, ...]
    examples: int  # of the training data that the losses are means over
    normed: tuple[str, ...] = ()  # batch norm layers, which take each chunk's statistics
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Continued:
    """A causal run: training that goes on, or goes otherwise, and the sharpness where it ends.

    kind "warm start": from weights after `from_epochs` epochs at `from_batch_size`, which are `share` of what that took
    to its lowest validation loss; "noise injected": batches of `batch_size` whose gradient got the noise of
    `from_batch_size`, from the beginning.
    """

    kind: str
    batch_size: int
    from_batch_size: int
    from_epochs: float
    seed: int
    point: PointSharpness
    reached_loss: float  # lowest validation loss
    share: float = 0.0  # 0 to 1; of a kind of run the same for every seed, while its epochs differ
    epochs_after: float = 0.0  # from the switch (or the beginning) to the weights that were measured


@dataclass(frozen=True)
class SharpnessQuestion:
    """What `sharpness` was asked."""

    study_id: str | None  # None: checkpoints
    labels: tuple[str, ...]  # of the points
    at: str = "best"  # weights at the lowest validation loss, or "last"
    examples: int | None = None  # of the training data; None: all
    epsilons: tuple[float, ...] = (1e-3, 5e-4)
    pictures: bool = True
    causes: bool = False
    seed: int = 0


@dataclass(frozen=True)
class SharpnessData:
    """Everything that one `sharpness` measured: what the store keeps."""

    task: str
    fingerprint: str
    question: SharpnessQuestion
    conditions: Conditions
    points: tuple[PointSharpness, ...]
    parameters: int  # trainable
    examples: int  # that f is the mean over
    chunk: int
    normed: tuple[str, ...] = ()  # batch norm layers, which take each chunk's statistics
    double: bool = False
    lines: tuple[Line, ...] = ()
    slices: tuple[Slice, ...] = ()
    continued: tuple[Continued, ...] = ()
    sample_sizes: tuple[tuple[int, Measured], ...] = ()  # (examples, largest eigenvalue) at one point
    settings: dict[str, float] = field(default_factory=dict)  # of the estimators: probes, radius, draws
    study_id: str | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    measured_at: str = ""  # UTC, ISO 8601
