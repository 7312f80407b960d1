"""What does a study run, hold and answer? Its settings, its data, and the rows, claims and law that come of them."""

from __future__ import annotations

from dataclasses import dataclass

from batchscope.records.hardware import ProfileData, TimingPass
from batchscope.records.scaling import ScalingData
from batchscope.records.trials import Conditions, TrialRecord
from batchscope.records.values import Goal, Measured


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
    profile: ProfileData | None = None  # the newest of the same task under the same conditions
    scaling: ScalingData | None = None  # the newest of the same task on several devices


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
    devices: int = 1  # that trained each trial together


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
