"""Which trials does a study run? Batch sizes, learning rates, seeds and stop rules, from a few numbers alone.

Everything here is a pure function of the task's sizes and what was found so far, and reads no clock, so that the same
study asks for the same trials on every machine, interrupted or not.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from batchscope.analysis.target import HOLDS_FOR, crossing
from batchscope.records import Arm, Goal, StopRule, TrialRecord, TrialSpec, TunedChoice

MOST_SIZES = 8  # by default
SMALLEST = 8  # the default grid's smallest batch size; smaller ones can be asked for
EVALUATIONS_PER_EPOCH = 4  # the cadence: a compromise between its cost and a fine crossing (a guess)
LEAST_EVALUATIONS = 60  # ... and at least so many in a budget
ROUNDS = ((0,), (-1, 1), (-2, 2))  # of the search: powers of two around each batch size's centre, the centre first
MOST_EXTENSIONS = 4  # each way, when an optimum lies on the edge
FIRST_RATES = sum(map(len, ROUNDS))  # learning rates of every batch size before any extension
MOST_RATES = FIRST_RATES + 2 * MOST_EXTENSIONS
TUNING_SEED = 900  # added to the study's seed block: seeds that choose are never reported
SEED_BLOCK = 1000  # seeds of one study seed; studies with different seeds share none
TUNING_SEEDS = SEED_BLOCK - TUNING_SEED  # that a study seed has


def default_batch_sizes(train_size: int, devices: int = 1) -> tuple[int, ...]:
    """At most eight powers of two from 8 to a quarter of the data: each, or if need be every second, third ... one.

    On several devices from an example a device up; all of the data where a quarter of it is less than that.
    """
    top = max(1, train_size // 4).bit_length() - 1  # the largest power of two that fits
    least = (devices - 1).bit_length()
    smallest = max(min(SMALLEST.bit_length() - 1, top), least)
    if smallest > top:
        return (min(2**smallest, train_size),)
    apart = (top - smallest) // MOST_SIZES + 1
    return tuple(2**k for k in range(smallest, top + 1, apart))


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
    replicas: int = 1,
) -> list[TrialSpec]:
    """Trials of every batch size and seed, at one learning rate or at one for each size; seeds outermost."""
    rate = learning_rate if isinstance(learning_rate, Mapping) else dict.fromkeys(batch_sizes, learning_rate)
    arms = [Arm(b, rate[b], replicas=replicas, precision=precision) for b in batch_sizes if b in rate]
    return [TrialSpec(arm, s, stop) for s in seeds for arm in arms]


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
        replicas: int = 1,
    ) -> None:
        self.sizes, self.seeds, self.replicas = tuple(batch_sizes), tuple(seeds), replicas
        self.own_lr, self.stop, self.goal, self.precision = own_lr, stop, goal, precision
        self.centre = {b: round(0.5 * math.log2(b / own_batch)) for b in self.sizes}
        self.results: dict[tuple[int, int], list[TrialRecord]] = {}  # (batch size, offset from its centre)
        self._rounds: list[Sequence[int]] = list(ROUNDS)

    def next_round(self) -> dict[TrialSpec, tuple[int, int]]:
        """The next round's trials, each with its cell; empty when every optimum lies inside its grid."""
        offsets = self._rounds.pop(0) if self._rounds else self._extension()
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
        rate = self.rate(batch_size, offset)
        arm = Arm(batch_size, rate, replicas=self.replicas, precision=self.precision)
        return [TrialSpec(arm, seed, self._capped(batch_size)) for seed in self.seeds]

    def _capped(self, batch_size: int) -> StopRule:
        """The stop rule: the goal, the budget, or where the best so far can no longer be beaten.

        All learning rates of a batch size are evaluated after the same steps. A trial that crosses the goal before the
        best one, which crossed at evaluation k, crosses at k or earlier, and that is confirmed by k + 2 at the latest:
        where the best one was confirmed. With several seeds their mean decides and one slow seed may be made up for:
        no cap.
        """
        confirmed = [
            r.result.trace[found.index + HOLDS_FOR - 1].examples
            for (b, _), records in self.results.items()
            for r in records
            if b == batch_size and (found := crossing(r.result.trace, self.goal)) is not None
        ]
        cap = min(confirmed, default=None) if len(self.seeds) == 1 else None
        if cap is not None and cap >= self.stop.budget_examples:
            cap = None
        return dataclasses.replace(self.stop, goal=self.goal, cap_examples=cap)

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

    def _extension(self) -> list[int]:
        """One more offset on each side on which some batch size has its optimum; none when all lie inside."""
        offsets = sorted({o for _, o in self.results})
        best = {min(offsets, key=lambda o: self._score(b, o)) for b in self.sizes}
        lowest, highest = (limit(o for offsets in ROUNDS for o in offsets) for limit in (min, max))
        wanted = []
        if offsets[0] in best and offsets[0] > lowest - MOST_EXTENSIONS:
            wanted.append(offsets[0] - 1)
        if offsets[-1] in best and offsets[-1] < highest + MOST_EXTENSIONS:
            wanted.append(offsets[-1] + 1)
        return wanted
