"""Which trials does a study run? Batch sizes, learning rates, seeds and stop rules, from a few numbers alone.

Everything here is a pure function of the task's sizes and what was found so far, and reads no clock, so that the same
study asks for the same trials on every machine, interrupted or not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from batchscope.analysis.target import crossing
from batchscope.records import Arm, Goal, StopRule, TrialRecord, TrialSpec, TunedChoice

MOST_SIZES = 8  # by default
SMALLEST = 8  # the default grid's smallest batch size; smaller ones can be asked for
EVALUATIONS_PER_EPOCH = 4  # the cadence: a compromise between its cost and a fine crossing (a guess)
LEAST_EVALUATIONS = 60  # ... and at least so many in a budget
SPREAD = (0, -1, 1, -2, 2)  # first search: own learning rate's power-of-two neighbours around the centre
MOST_EXTENSIONS = 4  # each way, when an optimum lies on the edge
TUNING_SEED = 900  # added to the study's seed block: seeds that choose are never reported
SEED_BLOCK = 1000  # seeds of one study seed; studies with different seeds share none


def default_batch_sizes(train_size: int) -> tuple[int, ...]:
    """At most eight powers of two (or of four, where the data allow a wide range) from 8 to a quarter of the data."""
    top = max(1, train_size // 4)
    smallest = min(SMALLEST, 2 ** int(math.log2(top)))
    doublings = int(math.log2(top / smallest))
    factor = 2 if doublings < MOST_SIZES else 4
    return tuple(smallest * factor**k for k in range(doublings // (factor // 2) + 1))


def default_cadence(train_size: int, budget_examples: int) -> int:
    """Examples between evaluations: a quarter of an epoch, or a sixtieth of a short budget if that is less."""
    return max(1, min(train_size // EVALUATIONS_PER_EPOCH, budget_examples // LEAST_EVALUATIONS))


def seeds_of(seed: int, count: int) -> tuple[int, ...]:
    """The reported seeds of a study."""
    return tuple(seed * SEED_BLOCK + i for i in range(count))


def tuning_seeds_of(seed: int, count: int = 1) -> tuple[int, ...]:
    """The seeds of its learning-rate search."""
    return tuple(seed * SEED_BLOCK + TUNING_SEED + i for i in range(count))


def arms_of(
    batch_sizes: Sequence[int],
    learning_rate: float | Mapping[int, float],
    precision: str,
    stop: StopRule,
    seeds: Sequence[int],
) -> list[TrialSpec]:
    """Trials of every batch size and seed, at one learning rate or at one for each size; seeds outermost."""
    rate = learning_rate if isinstance(learning_rate, Mapping) else dict.fromkeys(batch_sizes, learning_rate)
    return [TrialSpec(Arm(b, rate[b], precision=precision), s, stop) for s in seeds for b in batch_sizes if b in rate]


class LearningRateSearch:
    """The search for the best learning rate of every batch size, one round at a time.

    All learning rates are powers of two of the task's own. A batch size's grid is centred on the square-root rule
    (between linear scaling, which SGD follows below the critical batch size, and the constant that it tends to above;
    science: neither holds over a wide range). Criterion: fewest examples to goal; where no learning rate reaches it,
    lowest validation loss. Every batch size gets equally many. When one's optimum lies on the edge of its grid, all
    grids are extended that way. A search trial ends where it can no longer win; that changes no choice.
    """

    def __init__(
        self,
        batch_sizes: Sequence[int],
        own_batch: int,
        own_lr: float,
        stop: StopRule,
        goal: Goal,
        precision: str,
        seeds: Sequence[int],
    ) -> None:
        self.sizes, self.own_lr, self.goal, self.precision, self.seeds = (
            tuple(batch_sizes),
            own_lr,
            goal,
            precision,
            tuple(seeds),
        )
        self.stop = stop
        self.centre = {b: round(0.5 * math.log2(b / own_batch)) for b in self.sizes}
        self.results: dict[tuple[int, int], list[TrialRecord]] = {}  # (batch size, offset from its centre)
        self._offsets: list[list[int]] = [[0], [-1, 1], [-2, 2]]

    def next_round(self) -> dict[TrialSpec, tuple[int, int]]:
        """The next round's trials, each with its cell; empty when every optimum lies inside its grid."""
        if not self._offsets:
            self._extend()
        if not self._offsets:
            return {}
        offsets = self._offsets.pop(0)
        return {spec: (b, o) for b in self.sizes for o in offsets for spec in self._specs(b, o)}

    def add(self, cell: tuple[int, int], record: TrialRecord) -> None:
        """Take in a finished trial."""
        self.results.setdefault(cell, []).append(record)

    def rate(self, batch_size: int, offset: int) -> float:
        """The learning rate of a cell."""
        return self.own_lr * 2.0 ** (self.centre[batch_size] + offset)

    def choice(self, batch_size: int) -> TunedChoice:
        """The best learning rate so far, and everything that was tried."""
        offsets = sorted(o for b, o in self.results if b == batch_size)
        best = min(offsets, key=lambda o: self._score(batch_size, o))
        reached = self._score(batch_size, best)[0] == 0
        tried = tuple((self.rate(batch_size, o), self._examples(batch_size, o)) for o in offsets)
        return TunedChoice(
            batch_size, self.rate(batch_size, best), "examples to goal" if reached else "validation loss", tried
        )

    def _specs(self, batch_size: int, offset: int) -> list[TrialSpec]:
        arm = Arm(batch_size, self.rate(batch_size, offset), precision=self.precision)
        return [TrialSpec(arm, seed, self._capped(batch_size)) for seed in self.seeds]

    def _capped(self, batch_size: int) -> StopRule:
        """The stop rule: the goal, the budget, or where the best so far can no longer be beaten."""
        examples = [e for b, o in self.results if b == batch_size and (e := self._examples(b, o)) is not None]
        cap = None
        if examples:
            cadence = self.stop.cadence_examples
            cap = (math.ceil(min(examples) / cadence) + 2) * cadence  # a crossing needs two more evaluations
            cap = cap if cap < self.stop.budget_examples else None
        return StopRule(
            self.stop.budget_examples, self.stop.cadence_examples, self.stop.patience_epochs, self.goal, cap
        )

    def _examples(self, batch_size: int, offset: int) -> float | None:
        """Geometric mean over tuning seeds of the examples to goal; None unless all reached it."""
        found = [crossing(r.result.trace, self.goal) for r in self.results[batch_size, offset]]
        if any(c is None for c in found):
            return None
        return math.exp(sum(math.log(max(c.examples, 1.0)) for c in found if c is not None) / len(found))

    def _score(self, batch_size: int, offset: int) -> tuple[int, float]:
        """Lower is better: (0, examples) where the goal was reached, (1, lowest validation loss) elsewhere."""
        examples = self._examples(batch_size, offset)
        if examples is not None:
            return 0, examples
        lowest = [
            min((e.validation["loss"] for e in r.result.trace if math.isfinite(e.validation["loss"])), default=math.inf)
            for r in self.results[batch_size, offset]
            if r.result.outcome not in ("diverged", "failed")
        ]
        return 1, max(lowest, default=math.inf) if len(lowest) == len(self.results[batch_size, offset]) else math.inf

    def _extend(self) -> None:
        """Queue one more offset on each side on which some batch size has its optimum."""
        offsets = sorted({o for _, o in self.results})
        best = {b: min(offsets, key=lambda o: self._score(b, o)) for b in self.sizes}
        wanted = []
        if offsets[0] in best.values() and offsets[0] > SPREAD[3] - MOST_EXTENSIONS:
            wanted.append(offsets[0] - 1)
        if offsets[-1] in best.values() and offsets[-1] < SPREAD[4] + MOST_EXTENSIONS:
            wanted.append(offsets[-1] + 1)
        self._offsets = [wanted] if wanted else []
