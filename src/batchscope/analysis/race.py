"""Which remedy, at which learning rate, is worth running to the end? Successive halving, planned without a clock.

Candidates are remedies x learning rates: each remedy's first rate times 2^-2 .. 2^2. All run over a ninth of the
budget; then every remedy gets one rate more, beyond its grid where its best rate lies on the edge, else between the
best and the better neighbour, and that runs as far. Half of all candidates go on to a third of the budget, and of these
as many to the end as can be paid for. A run goes on from where it stopped. The score is the lowest validation loss so
far; infinite for a run that diverged or failed (Jamieson & Talwalkar 2016; the criterion is ours).

The baseline is what everything is measured against: its race is `whole`, every rate runs to the end, and there are more
of them while the best lies on the edge.

Cost: running all N candidates to the end takes N budgets, and the race never passes a third of that. Nobody is kept who
cannot be paid for, an overshoot of less than a batch for each run included. N / 9 + (N / 2)(1/3 - 1/9) leaves N / 9,
which takes N / 6 to the end, as many as there are remedies. Where it pays for less than two, as with one remedy alone,
the last two run as far as it does.

What early losses get wrong: with a decaying schedule large rates look bad and win late (short-horizon bias: Wu et al.
2018), with a constant one small rates do, and a remedy with a warm-up starts late. So the first drop is mild, spares
the best rate of every remedy, and comes after LEAST_EVALUATIONS evaluations. `benchmarks/race.py` measures the loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from batchscope.records import RaceCost, Racer, RaceRound

OFFSETS = (-2.0, -1.0, 0.0, 1.0, 2.0)  # powers of two around a remedy's first rate
RATES = len(OFFSETS) + 1  # of each remedy, the further one included
MOST_WHOLE = RATES + 3  # of the baseline, while its best lies on the edge
SHARES = (1 / 9, 1 / 3, 1.0)  # of the budget, where rounds end
KEPT = 1 / 2  # of all candidates, after the first round
MOST_COST = 3  # the race costs at most one part in so many of running all to the end
LEAST_EVALUATIONS = 3  # before anybody is dropped (a guess)
LEAST_GROWTH = 1.5  # a round ends so many times further than the one before, or is left out (a guess)
FINALISTS = 2  # at least so many are compared as late as can be paid for

Losses = tuple[tuple[int, float], ...]  # (examples, validation loss) at the evaluations


@dataclass(frozen=True)
class _Run:
    """How far one seed of a racer got."""

    examples: int = 0
    lowest: float = math.inf


@dataclass
class _State:
    """What is known of a racer."""

    runs: dict[int, _Run] = field(default_factory=dict)  # by seed
    round: int = 0  # the last that it ran in
    over: bool = False  # it ended before its cap: it costs nothing more

    @property
    def score(self) -> float:
        """Mean over the seeds of the lowest loss."""
        return sum(run.lowest for run in self.runs.values()) / len(self.runs) if self.runs else math.inf

    @property
    def examples(self) -> int:
        """Used, all seeds together."""
        return sum(run.examples for run in self.runs.values())


class Race:
    """A race at one batch size, a round at a time.

        race = Race({"none": 0.1, "LARS": 0.4}, budget_examples=96_000, batch_size=512, cadence_examples=1024)
        while wanted := race.next_round():
            for racer, cap_examples in wanted.items():
                race.add(racer, losses, outcome)         # of its run, from the start up to the cap

    Args:
        remedies: the first learning rate of each remedy, above 0.
        budget_examples: of a run to the end; `lengths`: times as many for a remedy that trains longer. Rounds end at
            the same share of every run.
        batch_size: examples of a step; a run may pass its cap by less than one.
        cadence_examples: between evaluations. Caps are multiples of it, or of the batch size if that is more, so that
            a run is evaluated there anyway: whether it was capped on its way does not show in it.
        seeds: runs of each racer; the score is their mean.
        whole: every run goes to the end: for the baseline.

    Attributes:
        note: a sentence where the budget holds too few evaluations to drop anybody; all then run to the end.

    Raises ValueError for no remedies, or a rate or size that is not positive.
    """

    def __init__(
        self,
        remedies: Mapping[str, float],
        budget_examples: int,
        batch_size: int,
        cadence_examples: int,
        lengths: Mapping[str, float] | None = None,
        seeds: int = 1,
        whole: bool = False,
    ) -> None:
        sizes = (budget_examples, batch_size, cadence_examples, seeds, *remedies.values())
        if not remedies or any(not 0 < value < math.inf for value in sizes):
            raise ValueError(
                f"expected remedies with rates, sizes and seeds above 0, got {dict(remedies)} and {sizes[:4]}: name one"
            )
        self.first = dict(remedies)
        self.batch_size, self.cadence_examples, self.seeds, lengths = batch_size, cadence_examples, seeds, lengths or {}
        self.budgets = {name: round(lengths.get(name, 1.0) * budget_examples) for name in remedies}
        self.budget_examples = budget_examples
        self.states: dict[Racer, _State] = {}
        self.rounds: tuple[RaceRound, ...] = ()
        self._racing: tuple[Racer, ...] = ()  # in this round
        self._wanted: dict[Racer, int] = {}  # who of them is still to be added, with the cap
        self._steps = [self._grid, self._further]  # what is asked before anybody is dropped
        self._grain = max(cadence_examples, batch_size)
        least = LEAST_EVALUATIONS * self._grain
        self.whole, self.note = whole, ""
        self._share = 1.0 if whole else max(SHARES[0], least / budget_examples)
        racers = [Racer(name, 0.0) for name in self.first for _ in range(RATES)]
        if not whole and self._price(racers, self._share) > self._allowed():
            self._share = 1.0
            self.note = (
                f"At batch size {batch_size} the budget of {budget_examples} examples is too short to drop anybody "
                f"after {LEAST_EVALUATIONS} evaluations: every candidate of the race ran to the end."
            )

    # --- what is asked, and what came ---

    def next_round(self) -> dict[Racer, int]:
        """Who runs on, and up to how many examples; empty when the race is over.

        Raises ValueError while a run that was asked for has not been added.
        """
        if self._wanted:
            raise ValueError(f"expected all runs of this round, got none of {next(iter(self._wanted))}: add it first")
        if not self._steps and self._goes_further():
            self._steps.append(self._further)
        if self._steps:
            racers = self._steps.pop(0)()
            self.states.update({racer: _State() for racer in racers})
            self._racing += racers
        else:
            racers = self._drop()
        running = [racer for racer in racers if not self.states[racer].over]
        self._wanted = {racer: self._cap(racer.remedy, self._share) for racer in running}
        self._had = dict.fromkeys(running, 0)
        return dict(self._wanted)

    def add(self, racer: Racer, losses: Losses, outcome: str = "not_reached", seed: int = 0) -> None:
        """A run that was asked for, from its start to its cap or to where it ended before.

        Raises ValueError for a racer that was not asked for, or that has been added, and for one that did not fail
        and has no losses.
        """
        lost = outcome in ("diverged", "failed") or bool(losses and not math.isfinite(losses[-1][1]))
        if racer not in self._wanted or not (losses or lost):
            raise ValueError(f"expected losses of a racer that next_round named, got {racer}, {len(losses)} losses")
        lowest = min((loss for _, loss in losses if math.isfinite(loss)), default=math.inf)
        state, examples = self.states[racer], losses[-1][0] if losses else 0
        state.runs[seed] = _Run(examples, math.inf if lost else lowest)
        state.over = state.over or lost or examples < self._wanted[racer]
        self._had[racer] += 1
        if self._had[racer] == self.seeds:
            del self._wanted[racer]

    # --- what it found ---

    def ranking(self) -> tuple[Racer, ...]:
        """Each remedy at its best rate, best first: by the round they got to, then by score; who diverged comes last.

        Scores are compared within a round only: there all have trained for the same share of a run.
        """
        best: dict[str, Racer] = {}
        for racer in sorted(self.states, key=self._rank):
            best.setdefault(racer.remedy, racer)
        return tuple(best.values())

    def score(self, racer: Racer) -> float:
        """Its lowest validation loss so far, the mean over the seeds; inf where it diverged or failed."""
        return self.states[racer].score

    def cost(self) -> RaceCost:
        """Examples that were used, and those that running every candidate to the end would have taken."""
        used = sum(state.examples for state in self.states.values())
        return RaceCost(self.batch_size, self._candidates(), used, self._to_the_end())

    # --- the plan ---

    def _grid(self) -> tuple[Racer, ...]:
        return tuple(Racer(name, rate * 2.0**o) for name, rate in self.first.items() for o in OFFSETS)

    def _further(self) -> tuple[Racer, ...]:
        """One rate more for each: beyond the edge where the best lies there, else halfway to the better neighbour."""
        return tuple(Racer(name, self._next_rate(name)) for name in self.first)

    def _next_rate(self, name: str) -> float:
        rates, scores, best = self._tried(name)
        if best in (0, len(rates) - 1):
            return rates[best] * (2.0 if best else 0.5)
        beside = best + 1 if scores[best + 1] <= scores[best - 1] else best - 1
        return math.sqrt(rates[best] * rates[beside])

    def _tried(self, name: str) -> tuple[list[float], list[float], int]:
        """(rates ascending, their scores, index of the best); the smallest is best where all diverged."""
        rates = sorted(racer.learning_rate for racer in self.states if racer.remedy == name)
        scores = [self.score(Racer(name, rate)) for rate in rates]
        return rates, scores, scores.index(min(scores))

    def _goes_further(self) -> bool:
        """Whether the baseline still has its best rate on the edge; where all diverged, that is the smallest.

        Not so among several remedies: three rates more for each, while the leader's lay on the edge, crowded out those
        that win late (digits, ten races: the winner within 1 % of the best in 8 instead of 9).
        """
        if not self.whole or self.rounds or not self._racing:
            return False
        rates, _, best = self._tried(next(iter(self.first)))
        return best in (0, len(rates) - 1) and len(rates) < MOST_WHOLE

    def _drop(self) -> tuple[Racer, ...]:
        """Who goes on; the round that has ended is noted down."""
        raced = sorted(self._racing, key=self._rank)
        alive = [racer for racer in raced if math.isfinite(self.score(racer))]
        kept, share = self._chosen(alive)
        if all(self.states[racer].over for racer in kept):  # nobody runs on: the race is over
            kept, share = [racer for racer in self.ranking() if racer in alive], self._share
            self._racing = ()
        else:
            self._racing = tuple(kept)
        if raced:
            scores = tuple(self.score(racer) for racer in raced)
            at = min(self.budget_examples, self._floor(self._share * self.budget_examples))
            self.rounds += (RaceRound(self.batch_size, at, tuple(raced), scores, tuple(kept)),)
        self._share = share
        for racer in self._racing:
            self.states[racer].round = len(self.rounds)
        return self._racing

    def _chosen(self, alive: list[Racer]) -> tuple[list[Racer], float]:
        """Who is kept of these, best first, and up to which share of a run; nobody where the race is over."""
        if self._share == 1.0 or len(alive) < 2:
            return [], self._share
        share = next((s for s in SHARES if s >= LEAST_GROWTH * self._share), 1.0)
        order = alive if self.rounds else self._in_turn(alive)
        most = len(order) if share == 1.0 else max(FINALISTS, math.floor(KEPT * self._candidates()))
        kept: list[Racer] = []
        for racer in order[:most]:
            if self._price([*kept, racer], share) <= self._left():
                kept.append(racer)
        if len(kept) >= FINALISTS:
            return kept, share
        kept = order[:FINALISTS]
        held = sum(self.budgets[racer.remedy] for racer in kept)
        used = sum(self.states[racer].examples for racer in kept)
        share = ((self._left() + used) / self.seeds - len(kept) * (self.batch_size - 1)) / held
        further = (share - self._share) * self.budget_examples >= max(self.cadence_examples, self.batch_size)
        return (kept, share) if further else ([], self._share)

    def _in_turn(self, alive: list[Racer]) -> list[Racer]:
        """First the best rate of each remedy, then all others; each by score."""
        best: dict[str, Racer] = {}
        for racer in alive:
            best.setdefault(racer.remedy, racer)
        return [*best.values(), *(racer for racer in alive if best[racer.remedy] != racer)]

    def _rank(self, racer: Racer) -> tuple[bool, int, float, str, float]:
        state = self.states[racer]
        return math.isinf(state.score), -state.round, state.score, racer.remedy, racer.learning_rate

    # --- what it costs ---

    def _floor(self, examples: float) -> int:
        return math.floor(examples / self._grain + 1e-9) * self._grain

    def _cap(self, remedy: str, share: float) -> int:
        """Examples at this share of a remedy's run, down to where it is evaluated; all of them at 1."""
        budget = self.budgets[remedy]
        return budget if share >= 1.0 else max(self._grain, self._floor(share * budget))

    def _price(self, racers: Sequence[Racer], share: float) -> int:
        """Examples that they use at most to get so far, from where they are: the last batch may pass the cap."""
        total = 0
        for racer in racers:
            state = self.states.get(racer, _State())
            if not state.over:
                total += self.seeds * (self._cap(racer.remedy, share) + self.batch_size - 1) - state.examples
        return total

    def _to_the_end(self) -> int:
        return self._candidates() // len(self.first) * self.seeds * sum(self.budgets.values())

    def _candidates(self) -> int:
        """Of every remedy as many; those still to come included."""
        return max(RATES * len(self.first), len(self.states))

    def _allowed(self) -> int:
        return self._to_the_end() // MOST_COST

    def _left(self) -> int:
        return self._allowed() - sum(state.examples for state in self.states.values())
