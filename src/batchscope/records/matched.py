"""What did a `match` find? A verdict for each remedy at each batch size, and the largest batch that matches."""

from __future__ import annotations

from dataclasses import dataclass, field

from batchscope.records.matching import CannotApply, MatchQuestion, RaceRound
from batchscope.records.studies import Spent
from batchscope.records.trials import Conditions
from batchscope.records.values import Goal, Measured

VERDICTS = ("matches", "narrows", "does not", "dropped")


@dataclass(frozen=True)
class MatchRow:
    """A remedy at a batch size (or the baseline, or the large batch untuned), over the seeds that confirm.

    excess = (its lowest validation loss - the baseline's) / the baseline's, paired by seed; `bound` is its one-sided
    95 % upper bound, `room` what that has to stay below to match.
    """

    batch_size: int
    remedy: str
    role: str  # "baseline", "untuned", "confirmed", or "race" for one dropped there
    learning_rate: float
    seeds: int
    reached: int  # seeds that reached the goal
    diverged: int
    min_validation_loss: Measured
    excess: Measured
    bound: float | None  # one-sided 95 % upper bound of the excess
    room: float | None
    verdict: str  # one of VERDICTS; empty for baseline and untuned
    resolved: bool  # False: more seeds may turn "narrows" or "does not" into "matches"
    why: str  # one sentence
    validation: dict[str, Measured] = field(default_factory=dict)  # metrics at the lowest loss
    test: dict[str, Measured] | None = None
    steps_to_goal: Measured | None = None
    examples_to_goal: Measured | None = None
    fewer_steps: Measured | None = None  # the baseline's steps to its own loss (within 1 %) / the row's to that loss
    saves_steps: bool = False  # known to take fewer than the baseline: what a large batch is for
    steps: int = 0  # of the whole run
    examples: int = 0
    seconds_per_step: Measured | None = None  # on one device of this machine
    seconds_to_goal: dict[int, Measured] = field(default_factory=dict)  # by device count
    seeds_wanted: int | None = None  # about so many would settle it, where it is not resolved
    changes: str = ""
    cost: str = ""
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gap:
    """What there is to close at a batch size: the untuned large batch's excess over the baseline."""

    batch_size: int
    untuned: Measured  # excess, paired by seed
    exists: bool  # its 95 % interval lies above 0
    room: float  # a quarter of it or 1 % of the baseline's loss, whichever is less (1 % alone where there is no gap)


@dataclass(frozen=True)
class RaceCost:
    """What a race cost beside running all its candidates to the end."""

    batch_size: int
    candidates: int
    examples: int  # used, each run counted once
    to_the_end: int  # what running every candidate to the end would have used

    @property
    def share(self) -> float:
        """examples / to_the_end."""
        return self.examples / self.to_the_end


@dataclass(frozen=True)
class Largest:
    """The largest batch size at which a remedy matches in fewer steps than the baseline takes, and what that buys.

    (A batch that never grows, or a run as many times as long, matches and buys nothing.)
    """

    batch_size: int
    remedy: str
    learning_rate: float
    fewer_steps: Measured  # baseline's steps to its own loss (within 1 %) / the remedy's to that loss
    faster: dict[int, Measured] = field(default_factory=dict)  # device count -> the same in seconds
    tested_beyond: int | None = None  # the next larger batch size, where nothing matched; None: none was tried


@dataclass(frozen=True)
class MatchCurve:
    """The lowest validation loss so far against examples, of one run: what the page draws."""

    batch_size: int
    remedy: str
    role: str  # one of MATCH_ROLES
    learning_rate: float
    seed: int
    lowest: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class MatchResult:
    """The answer of `match`: what `bs.match` returns, `--json` prints and the report draws."""

    task: str
    fingerprint: str
    goal: Goal
    question: MatchQuestion
    conditions: Conditions
    baseline: MatchRow
    untuned: tuple[MatchRow, ...]  # one for each batch size
    rows: tuple[MatchRow, ...]  # by batch size, best first
    gaps: tuple[Gap, ...]
    rounds: tuple[RaceRound, ...]
    races: tuple[RaceCost, ...]
    cannot_apply: tuple[CannotApply, ...]
    largest: Largest | None  # None: nothing matches in fewer steps at any batch size tried
    answer: str = ""  # one sentence
    configuration: str = ""  # Python to paste; empty where nothing matches
    curves: tuple[MatchCurve, ...] = ()
    spent: Spent | None = None
    notes: tuple[str, ...] = ()
    measured_at: str = ""
    report: str | None = None
