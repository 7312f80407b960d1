"""Which batch size should be used? What `recommend` was asked and measured, and the advice that comes of it.

Measured and stored: `AdviceData`, the trials in the order they ran, seconds per step, the noise scale. Computed from
it: `Advice`, the answer. Nothing in the answer is measured anywhere else, so that it can be computed again.

Every interval of an `Advice` is a 90 % one (a central posterior interval), and says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from batchscope.records.hardware import ProfileData
from batchscope.records.scaling import ScalingPass
from batchscope.records.studies import Spent
from batchscope.records.trials import Conditions
from batchscope.records.values import Goal, Measured

OBJECTIVES = ("time", "cost", "examples", "energy")
LIMITS = ("memory", "knee", "noise", "data set", "devices", "smallest size", "none")
TRIED_ROLES = ("reference", "search", "verification")


@dataclass(frozen=True)
class AdviceQuestion:
    """What was asked: equal questions of the same task have the same answer in a store."""

    budget: float  # reference runs, never passed
    objective: str = "time"  # one of OBJECTIVES
    price: float | None = None  # of one device for an hour
    memory_limit: int | None = None  # bytes
    devices: int = 1  # at most
    seed: int = 0
    best_in_seconds: float | None = None  # instead of a goal: the lowest validation loss in this time
    best_in_examples: int | None = None  # ... or in this many examples


@dataclass(frozen=True)
class Tried:
    """One training run as the advice reads it."""

    role: str  # one of TRIED_ROLES
    batch_size: int
    learning_rate: float
    seed: int
    reached: float | None  # examples at the crossing of the goal; None: not reached
    bound: float  # examples that it needs more than, where it was not reached
    provisional: float | None  # examples at the crossing of the provisional goal; None: not reached, or there is none
    lowest_loss: float | None  # validation loss, held at three evaluations running; None: never finite
    outcome: str  # as of a trial: "reached", "not_reached", "diverged", "failed"
    examples: int  # that it used
    steps: int
    ended_by: str = ""  # as of a trial: "goal", "cap", "budget", "patience", "divergence", "failure"


@dataclass(frozen=True)
class AdviceData:
    """Everything that one `recommend` rests on: what the store keeps."""

    task: str
    fingerprint: str
    train_size: int
    goal: Goal | None  # None with `best_in_*`
    own_batch_size: int
    own_learning_rate: float
    unit: str
    conditions: Conditions
    question: AdviceQuestion
    profile: ProfileData  # seconds per step and memory
    trials: tuple[Tried, ...]
    reference_examples: float  # all that the own run used to reach its goal; the task's budget where it did not
    reference_reached: bool
    budget_examples: int  # of the task: the most that a trial may use
    cadence_examples: int
    noise: Measured | None = None  # B_simple along the reference run
    provisional_goal: Goal | None = None  # compared at while no run has reached the goal: what the own point reached
    coupled: bool = False  # the model mixes the examples of a batch (batch norm): its micro-batch is part of a trial
    workers: int = 1  # as chosen for trials
    scaling: ScalingPass | None = None  # seconds on several devices, where they were asked for
    ended: str = ""  # why no more was tried: "firm", "budget", "nothing left"
    examples: int = 0  # of the training runs: what `--budget` counts
    steps: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    measured_at: str = ""  # UTC, ISO 8601


@dataclass(frozen=True)
class Candidate:
    """One batch size with the learning rate that is best for it as far as is known, on `devices` devices."""

    batch_size: int
    learning_rate: float
    micro_batch_size: int
    accumulation: int
    devices: int
    steps_to_goal: Measured
    examples_to_goal: Measured
    seconds_per_step: Measured
    seconds_to_goal: Measured
    cost: Measured  # price of a device for an hour x devices x hours; device hours where no price was given
    joules: Measured | None
    lowest_loss: Measured | None  # with `best_in_*`, instead of the to-goal values
    p_best: float  # that no other candidate is better, by the objective
    p_good: float  # that it lies within the 5 % band of the best
    trials: int  # that were run at this very batch size and learning rate
    reached: int  # of them
    extrapolated: bool  # no run reached the goal at this batch size
    over_own: Measured | None = None  # the objective over that of the user's own point: a ratio
    p_lost: float = 0.0  # that a run there diverges, or does not get to the goal within the task's budget


@dataclass(frozen=True)
class LearningRateCurve:
    """The best learning rate against batch size: eta(B) = A / ((K/B)^rise + (B/K)^fall), K the knee.

    `shape` names what it does over the batch sizes tried, with the posterior probabilities of the alternatives:
    "linear", "square root", "saturating", "falling", "constant", or "not resolved".
    """

    shape: str
    probabilities: dict[str, float]
    rise: Measured
    fall: Measured
    batch_sizes: tuple[int, ...]
    learning_rates: tuple[Measured, ...]


@dataclass(frozen=True)
class Curves:
    """What the page draws and computes with; (low, median, high) of the posterior, 90 %.

    `draws_log_examples[d][c]`: log examples to goal of candidate c in draw d; draws are equally likely, and a draw's
    values belong together. `draws_log_seconds[d][t]`: log seconds per step at `sizes_timed[t]`, independent of them.
    `draws_log_charge[d][c]`: what a comparison adds for the chance that a run of the candidate is lost.
    """

    batch_sizes: tuple[float, ...]  # a fine grid over the candidates
    steps: tuple[tuple[float, float, float], ...]  # at the best learning rate, by law and learning-rate curve
    sizes_timed: tuple[int, ...]
    seconds_per_step: tuple[tuple[float, float, float], ...]  # at sizes_timed, in the fastest split that fits
    draws_log_examples: tuple[tuple[float, ...], ...] = ()
    draws_log_seconds: tuple[tuple[float, ...], ...] = ()
    draws_log_charge: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class Unverified:
    """The candidate that is predicted to be the best where it could not be run to goal inside the budget."""

    candidate: Candidate
    reference_runs: float  # what running it once to goal would take


@dataclass(frozen=True)
class ParetoPoint:
    """No candidate is both faster and cheaper than this one."""

    batch_size: int
    devices: int
    seconds_to_goal: float
    cost: float
    predicted: bool  # a device count that was not measured: without a pass over any, communication is taken to be free


@dataclass(frozen=True)
class Advice:
    """The answer of `recommend`: what `bs.recommend` returns, `--json` prints and the report draws."""

    task: str
    fingerprint: str
    question: AdviceQuestion
    answered: bool  # False: no batch size reaches the goal; then `chosen` is None and `sentences` say so
    chosen: Candidate | None
    verified: bool  # a run with a seed that did not choose reached the goal at the chosen point
    candidates: tuple[Candidate, ...]  # ascending in batch size
    good_batch_sizes: tuple[int, ...]
    binding_limit: str  # one of LIMITS
    binding_why: str  # one sentence
    critical_batch_size: Measured
    s_min: Measured  # steps, of the law S(B) = s_min (1 + critical_batch_size / B)
    knee: Measured
    largest_micro_batch_size: int | None
    learning_rate_curve: LearningRateCurve | None
    law_holds: bool
    law_misfit: float | None  # typical relative distance between measured points and law + learning-rate curve
    curves: Curves | None
    better: Unverified | None
    pareto: tuple[ParetoPoint, ...]
    sentences: tuple[str, ...]  # what to use; how sure; neighbours; what was not measured and would change the advice
    snippet: str
    evidence: str  # "trials to goal", "trials of a given length", "throughput and noise scale", "branches"
    spent: Spent
    data: AdviceData
    notes: tuple[str, ...] = ()
    report: str | None = None
