"""What did a `match` run? Training runs in short, the rounds of its races, and what a step costs.

Together `MatchData`, what the store keeps. What is computed from it is in `matched.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from batchscope.records.hardware import TimingPass
from batchscope.records.scaling import ScalingData
from batchscope.records.trials import Conditions
from batchscope.records.values import Goal

NO_REMEDY = "none"  # the remedy that is none: `Arm.remedy`'s default
MATCH_ROLES = ("baseline race", "baseline", "untuned", "race", "confirmed")


@dataclass(frozen=True)
class MatchQuestion:
    """What `match` was asked. Every run may use as many examples, and is evaluated after as many."""

    batch_sizes: tuple[int, ...]  # the large ones, raced one by one in this order
    own_batch_size: int  # the baseline's
    own_learning_rate: float  # the user's own, about which the baseline's is searched
    remedies: tuple[str, ...]  # `Remedy.name` of each, NO_REMEDY among them
    seeds: tuple[int, ...]  # that confirm; fresh
    race_seeds: tuple[int, ...]  # that choose; never reported
    budget_examples: int  # of a run (a remedy that trains longer multiplies it)
    cadence_examples: int  # at least the largest batch size: all runs are evaluated equally often
    confirm: int | None = None  # remedies confirmed at each batch size, the plain one besides; None: all
    ladder: bool = True  # also look for the largest batch size that matches
    devices: tuple[int, ...] = (1,)  # that seconds are wanted for
    budget: float | None = None  # of the whole command, in reference runs


@dataclass(frozen=True)
class MatchRun:
    """One training run in short. The whole of it is the stored trial of this key, where there is one."""

    role: str  # one of MATCH_ROLES
    batch_size: int
    remedy: str
    learning_rate: float
    seed: int
    outcome: str  # one of OUTCOMES
    ended_by: str  # one of ENDINGS; "cap": dropped from its race
    steps: int
    examples: int  # that it used
    losses: tuple[tuple[int, float], ...]  # (examples, validation loss) at its evaluations, the first before training
    lowest_at: int = 0  # examples at the lowest validation loss
    validation: dict[str, float] = field(default_factory=dict)  # loss and metrics there
    test: dict[str, float] | None = None  # there
    steps_to_goal: float | None = None  # None: not reached
    examples_to_goal: float | None = None
    steps_to_loss: float | None = None  # to within 1 % of the baseline's lowest loss with this seed; None: not reached
    examples_to_loss: float | None = None
    reason: str = ""
    trial_key: str = ""

    @property
    def lost(self) -> bool:
        """Whether it diverged or failed, be it after it had reached the goal."""
        return self.outcome in ("diverged", "failed") or self.ended_by in ("divergence", "failure")

    @property
    def lowest_loss(self) -> float:
        """The lowest validation loss; inf for a run that diverged or failed, or has none."""
        return float("inf") if self.lost else self.validation.get("loss", float("inf"))


@dataclass(frozen=True)
class Racer:
    """A remedy at a learning rate."""

    remedy: str
    learning_rate: float


@dataclass(frozen=True)
class RaceRound:
    """One round: who ran up to so many examples, with which score (lowest validation loss), and who was kept."""

    batch_size: int
    examples: int
    raced: tuple[Racer, ...]
    scores: tuple[float, ...]  # of each; inf for one that diverged or failed
    kept: tuple[Racer, ...]


@dataclass(frozen=True)
class CannotApply:
    """A remedy that was not raced, and why, in a sentence."""

    batch_size: int
    remedy: str
    reason: str


@dataclass(frozen=True)
class RemedyTiming:
    """Whole steps of one remedy, timed alone on one device; reference windows are the plain task's own batch."""

    remedy: str
    timing: TimingPass  # at the batch sizes at which it was confirmed; of NO_REMEDY also at the baseline's


@dataclass(frozen=True)
class MatchData:
    """Everything that one `match` measured."""

    task: str
    fingerprint: str
    question: MatchQuestion
    conditions: Conditions
    goal: Goal  # the task's own, or what the baseline reaches
    train_size: int
    baseline_learning_rate: float  # tuned
    runs: tuple[MatchRun, ...]
    rounds: tuple[RaceRound, ...]
    cannot_apply: tuple[CannotApply, ...] = ()
    chosen: tuple[tuple[int, Racer], ...] = ()  # (batch size, remedy at its best learning rate), best first
    timings: tuple[RemedyTiming, ...] = ()
    scaling: ScalingData | None = None  # the newest of the same task on several devices: seconds on more than one
    costs: dict[str, str] = field(default_factory=dict)  # remedy -> what it costs, a sentence
    titles: dict[str, str] = field(default_factory=dict)  # remedy -> what it changes, a sentence
    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)  # remedy -> keys of its papers
    lengths: tuple[tuple[int, str, float], ...] = ()  # batch size, remedy, times the budget of its runs, if not once
    reference_examples: float = 0.0  # of a reference run; 0: not known, and the budget stands for it
    metrics: tuple[str, ...] = ("loss",)
    unit: str = "examples"
    notes: tuple[str, ...] = ()
    seconds: float = 0.0  # shared machine: progress only
    measured_at: str = ""  # UTC, ISO 8601
