"""What was measured, under which conditions? Frozen facts, with their units in the names.

Everything that travels between the parts of Batchscope is one of these: the loop makes evaluations, the
store keeps trials, the analysis reads them, the report draws them. Nothing here imports torch or any
other part of Batchscope, so a store can be opened and a report drawn on a laptop without torch.

Words (one each, see docs/design.md): a *trial* is one training run; an *arm* is the trials that share
everything but the seed; batch sizes are global and in examples.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any

OUTCOMES = ("reached", "not_reached", "diverged", "failed")
ENDINGS = ("goal", "patience", "cap", "budget", "divergence", "failure")
POLICIES = ("held", "tuned")


@dataclass(frozen=True)
class Measured:
    """A value with its interval: what every number that Batchscope reports looks like in JSON.

    `estimate` is null where no seed gave the value; then `low` is the bound that was reached (the budget) and
    `high` is null. `n` counts seeds (or repeats), `censored` those of them that only gave a bound.
    `interval` names the method and its degrees of freedom, or says why there is none.
    """

    estimate: float | None
    low: float | None
    high: float | None
    n: int
    censored: int = 0
    interval: str = ""

    def to_json(self) -> dict[str, Any]:
        """A plain dict; non-finite numbers become null, which JSON can hold."""
        return {k: finite(v) for k, v in dataclasses.asdict(self).items()}


@dataclass(frozen=True)
class Goal:
    """A validation metric and the value that counts as trained.

    `Goal("loss", at_most=0.36)` or `Goal("accuracy", at_least=0.9)`: exactly one bound, a finite number.
    """

    metric: str = "loss"
    at_most: float | None = None
    at_least: float | None = None

    def __post_init__(self) -> None:
        bounds = [b for b in (self.at_most, self.at_least) if b is not None]
        if len(bounds) != 1 or not isinstance(bounds[0], (int, float)) or not math.isfinite(bounds[0]):
            raise ValueError(
                f"a Goal needs exactly one finite bound, got at_most={self.at_most!r}, at_least={self.at_least!r}: "
                'write Goal("loss", at_most=0.3) or Goal("accuracy", at_least=0.9)'
            )

    @property
    def value(self) -> float:
        """The bound itself."""
        (bound,) = (b for b in (self.at_most, self.at_least) if b is not None)  # __post_init__: exactly one
        return float(bound)

    @property
    def falls(self) -> bool:
        """Whether lower is better."""
        return self.at_most is not None

    def met(self, value: float) -> bool:
        """Whether one evaluation's value satisfies the goal (NaN never does)."""
        return value <= self.value if self.falls else value >= self.value

    def __str__(self) -> str:
        return f"validation {self.metric} {'<=' if self.falls else '>='} {self.value:.6g}"


@dataclass(frozen=True)
class Conditions:
    """Where and how something was measured. Two measurements compare only where these agree."""

    device: str = "cpu"  # "cpu" or "cuda"
    device_name: str = ""  # the processor's or the card's own name
    precision: str = "fp32"
    threads: int = 1
    world_size: int = 1
    deterministic: bool = True
    allocator: str = "default"
    platform: str = ""
    versions: dict[str, str] = field(default_factory=dict)  # torch, python, batchscope


@dataclass(frozen=True)
class Arm:
    """Everything that defines a trial but its seed."""

    batch_size: int  # global, examples
    learning_rate: float
    micro_batch_size: int | None = None  # None: the whole batch in one pass
    replicas: int = 1
    precision: str = "fp32"
    remedy: str = "none"


@dataclass(frozen=True)
class StopRule:
    """When a trial ends. Everything is counted in examples or epochs, never in seconds."""

    budget_examples: int  # the trial ends at the first step boundary at or past this; schedules follow it
    cadence_examples: int  # evaluations at the first step boundary at or past each multiple of this
    patience_epochs: float | None = None  # epochs without a lower validation loss (minimum improvement 0)
    goal: Goal | None = None  # end once this goal is crossed (it held at three evaluations running)
    cap_examples: int | None = None  # end here, schedule unchanged: past it a search trial can no longer win


@dataclass(frozen=True)
class TrialSpec:
    """What to run: an arm, a seed and a stop rule. Its key names it in the store."""

    arm: Arm
    seed: int
    stop: StopRule

    def key(self) -> str:
        """16 hex digits that name this specification: equal for equal specifications, on any machine."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Evaluation:
    """One line of a trial's trace: what was known after `step` steps and `examples` examples."""

    step: int
    examples: int
    train: dict[str, float]  # loss and metrics, eval mode, no augmentation, fixed subset
    validation: dict[str, float]  # loss and metrics, eval mode, the whole validation set
    distance: float  # |w - w0|_2 over trainable parameters, w0 as initialised (or loaded)
    update_norm: float  # |w_t - w_(t-1)|_2 of the step just before; nan at step 0


@dataclass(frozen=True)
class TrialResult:
    """What a finished training run says: how it ended, its trace, and what it cost."""

    outcome: str  # one of OUTCOMES
    ended_by: str  # one of ENDINGS
    reason: str  # one sentence; empty where the outcome says it all
    steps: int
    examples: int
    trace: tuple[Evaluation, ...]
    initial_norm: float = 0.0  # |w0|_2
    test: dict[str, float] | None = None  # at the best-validation weights; reported, never selected on
    seconds: float = 0.0  # a clock reading, shared machine: progress only, never a timing


@dataclass(frozen=True)
class TrialRecord:
    """One stored trial: what was asked, what came of it, where, and at which attempt."""

    spec: TrialSpec
    result: TrialResult
    conditions: Conditions
    attempts: int = 1


@dataclass(frozen=True)
class StepTiming:
    """Seconds of whole training steps at one batch size, measured alone on the machine.

    `seconds_per_step[i]` is round i's window (seconds over steps in it), `reference[i]` the seconds per
    step of the reference size just before it in the same round: their ratio is free of slow drift.
    """

    batch_size: int
    steps_per_window: int
    seconds_per_step: tuple[float, ...]
    reference: tuple[float, ...]


@dataclass(frozen=True)
class TimingPass:
    """All sizes' timings of one interleaved pass, with the drift of its reference step."""

    reference_batch_size: int
    timings: tuple[StepTiming, ...]
    conditions: Conditions
    drift: float = 0.0  # (largest - smallest) / median of the reference windows


@dataclass(frozen=True)
class StudySettings:
    """What a study runs, chosen once and stored with it; equal settings resume the same study."""

    task: str  # the task's name
    fingerprint: str
    train_size: int
    goal: Goal
    own_batch_size: int
    own_learning_rate: float
    batch_sizes: tuple[int, ...]
    policies: tuple[str, ...]
    seeds: tuple[int, ...]  # the seeds that are reported
    tuning_seeds: tuple[int, ...]  # the seeds that choose learning rates; never reported
    budget_examples: int
    cadence_examples: int
    patience_epochs: float
    workers: int
    conditions: Conditions
    unit: str = "examples"
    metrics: tuple[str, ...] = ("loss",)
    targets: tuple[float, ...] = ()


@dataclass(frozen=True)
class TunedChoice:
    """The learning rate chosen for one batch size, and the search it came from."""

    batch_size: int
    learning_rate: float
    criterion: str  # "examples to goal" or "validation loss"
    tried: tuple[tuple[float, float | None], ...]  # (learning rate, examples to goal; None: not reached)


@dataclass(frozen=True)
class StudyData:
    """Everything measured for one study: what the analysis and the report read, from the store alone."""

    settings: StudySettings
    held: tuple[TrialRecord, ...]
    tuned: tuple[TrialRecord, ...]  # fresh seeds at the chosen learning rates
    tuning: tuple[TrialRecord, ...]  # the search
    choices: tuple[TunedChoice, ...]
    timing: TimingPass | None
    reference_examples: float  # examples of the reference run (the budget if it never reached)
    reference_reached: bool
    notes: tuple[str, ...] = ()
    reference: tuple[TrialRecord, ...] = ()  # the reference run itself


@dataclass(frozen=True)
class Row:
    """One line of the study's table: a batch size under a policy."""

    batch_size: int
    policy: str
    learning_rate: float | None
    tuning_trials: int
    seeds: int
    reached: int
    diverged: int
    epochs_to_converge: Measured
    steps_to_goal: Measured
    examples_to_goal: Measured
    seconds_per_epoch: Measured
    seconds_to_converge: Measured
    seconds_to_goal: Measured
    min_validation_loss: Measured
    train_loss: Measured
    generalization_gap: Measured
    distance_from_init: Measured
    error_gap: Measured | None = None  # validation minus training error, where the task has an accuracy
    test: dict[str, Measured] | None = None


@dataclass(frozen=True)
class Effect:
    """How large a claimed effect is: a ratio, largest batch size over smallest, unless `what` says otherwise."""

    what: str
    ratio: Measured
    slope_per_doubling: Measured | None  # of the logarithm, as a ratio per doubling of the batch size
    monotone: bool | None


@dataclass(frozen=True)
class Claim:
    """One classic claim, judged in one policy ("both" for a claim across policies)."""

    number: int
    claim: str
    policy: str
    verdict: str  # "holds", "does not hold", "not resolved"
    effect: Effect
    why: str  # one sentence, from what was measured


@dataclass(frozen=True)
class LawFit:
    """S(B) = s_min (1 + critical_batch_size / B), fitted to the tuned policy's steps to goal."""

    s_min: Measured
    critical_batch_size: Measured
    residual_sd: float | None  # of log steps, between batch sizes
    batch_sizes: tuple[int, ...]
    effective_batch_sizes: tuple[float, ...]  # examples per step averaged over an epoch, last short batch included
    log_steps: tuple[float | None, ...]  # mean log steps per batch size; None where censored
    reason: str = ""  # why there is no fit, or what limits it; empty where nothing does
    joint_covariance: tuple[tuple[float, float], tuple[float, float]] | None = None  # of (log s_min, log B_crit)


@dataclass(frozen=True)
class Target:
    """A further goal value of the task, read from the same trials; learning rates were tuned for the goal itself."""

    goal: Goal
    rows: tuple[Row, ...]
    law: LawFit


@dataclass(frozen=True)
class Spent:
    """What the study cost, abandoned trials included."""

    examples: int
    steps: int
    seconds: float
    trials: int
    reference_runs: float


@dataclass(frozen=True)
class StudyResult:
    """The study's answer: what `bs.study` returns, `--json` prints and the report draws."""

    task: str
    fingerprint: str
    goal: Goal
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]
    law: LawFit
    settings: StudySettings
    spent: Spent
    timing: TimingPass | None
    notes: tuple[str, ...] = ()
    report: str | None = None
    targets: tuple[Target, ...] = ()


def finite(value: Any) -> Any:
    """`value`, or None where it is a number that JSON cannot hold (nan, inf)."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_plain(record: Any) -> Any:
    """A record as dicts, lists and numbers, for JSON; exact: floats survive a round trip through `json`."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {f.name: to_plain(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if isinstance(record, dict):
        return {str(k): to_plain(v) for k, v in record.items()}
    if isinstance(record, (list, tuple)):
        return [to_plain(v) for v in record]
    return record


_hints = functools.cache(typing.get_type_hints)


def json_safe(value: Any) -> Any:
    """Plain data with every nan and inf as null."""
    if isinstance(value, dict):
        return {k: json_safe(v) for k, v in value.items()}
    if isinstance(value, list):
        return [json_safe(v) for v in value]
    return finite(value)


def from_plain(kind: Any, value: Any) -> Any:
    """The inverse of `to_plain`: builds `kind` (a record class or a type such as tuple[Evaluation, ...]) again."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if value is None or kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return from_plain(next(a for a in args if a is not type(None)), value)
    if origin is tuple:
        parts = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else args
        return tuple(from_plain(a, v) for a, v in zip(parts, value, strict=True))
    if origin is dict:
        return {k: from_plain(args[1], v) for k, v in value.items()}
    if dataclasses.is_dataclass(kind):
        hints = _hints(kind)
        known = {f.name for f in dataclasses.fields(kind)}  # fields that a newer version added are ignored
        return kind(**{k: from_plain(hints[k], v) for k, v in value.items() if k in known})
    return float(value) if kind is float else value
