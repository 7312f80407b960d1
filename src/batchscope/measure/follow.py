"""How noisy are the gradients along one training run of a task? The run itself is the plain one, watched.

The gradient is measured on batches of its own, drawn at random from the whole training set: at first at every step, on
as many examples as a step takes, later every two, four, up to `PASSES` steps on as many times more, since a run changes
most at its beginning. A measurement stands for the steps until the next one. At a few checkpoints batches' gradients
are compared with the full one. Watching changes no bit of the run.

Why not on the batches that are trained on? Within an epoch they are drawn without replacement, and the weights have
just learnt from those that were drawn before: what is left to draw has, given these weights, another mean gradient than
the whole training set, one that is longer. On `noisy-quadratic` that lifted |G|^2 by 9 to 19 % (its B_simple is a
twelfth of its data set; the effect is of order tr(Sigma) / N). A draw that does not depend on the weights is unbiased.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from batchscope.analysis.target import crossing
from batchscope.errors import CannotAnswer, UnsupportedTask
from batchscope.measure.accumulated import MicroBatches
from batchscope.measure.coupling import batch_norms, separable
from batchscope.measure.deviation import cost_of, deviations
from batchscope.measure.gradients import Reading, Source
from batchscope.measure.per_example import PerExample
from batchscope.measure.proxies import Proxies, proxies_of
from batchscope.measure.readings import Readings
from batchscope.measure.sources import why_uncovered
from batchscope.records import Deviations, Goal, GradientNorms, NoiseScale, TrialResult, TrialSpec
from batchscope.task import Batch, Task
from batchscope.training.batches import IGNORED_TARGET, examples_in, make_source, units_in
from batchscope.training.loop import train
from batchscope.training.seeding import mix, torch_drawing_from

PASSES = 8  # most batches of the run's size in a measurement: more resolve |G|^2, fewer see it change (a guess)
DENSE = 64  # steps that are all measured; then as many measurements at each lower density (a guess)
EPOCH = 2_000_000  # plus the step: the epoch number of the order that a measurement is drawn from
EARLY = 32  # steps before the first checkpoint: some measurements lie on either side (a guess)
EPOCHS = (0.5, 4.0)  # of the checkpoints between the early one and the end
AT_CHECKPOINT = 16  # measurements at a checkpoint's weights, which predict how far batches deviate (a guess)
CHECKPOINT_EPOCH = 3_000_000  # as EPOCH, plus AT_CHECKPOINT times the step
TELL_EVERY = 50  # steps


@dataclass(frozen=True)
class Followed:
    """What was seen of the run."""

    result: TrialResult
    source: str
    measurements: tuple[GradientNorms, ...]
    layers: dict[str, NoiseScale]
    proxies: dict[str, NoiseScale]
    deviations: tuple[Deviations, ...]
    discarded: int
    crossed_at: float | None
    examples: int  # that measurements and checkpoints took
    notes: tuple[str, ...] = field(default_factory=tuple)


def follow(
    task: Task,
    spec: TrialSpec,
    *,
    device: torch.device,
    goal: Goal | None,
    every: int,
    checkpoints: int,
    tell: Callable[[dict[str, Any]], None] = lambda line: None,
) -> Followed:
    """Train one trial and measure its gradients every so many steps, and at so many checkpoints, the last at the end.

    Raises UnsupportedTask where examples have no gradients of their own, CannotAnswer where the training fails.
    """
    watcher = _Watcher(task, spec, device, every, checkpoints, tell)
    result = train(
        task,
        spec,
        device=device,
        goal=goal,
        crossed=lambda trace, wanted: crossing(trace, wanted) is not None,
        on_evaluation=lambda line: tell({"phase": "noise", "examples": line.examples, "loss": line.train["loss"]}),
        watch=watcher.begin,
    )
    if result.outcome == "failed":
        raise CannotAnswer(f"task {task.name!r}: expected its own point to train, it failed: {result.reason}")
    found = crossing(result.trace, goal) if goal is not None else None
    return watcher.end(result, found.examples if found is not None else None)


class _Watcher:
    """Called with every batch of a trial whose gradient is complete."""

    def __init__(
        self,
        task: Task,
        spec: TrialSpec,
        device: torch.device,
        every: int,
        checkpoints: int,
        tell: Callable[[dict[str, Any]], None],
    ) -> None:
        self.task, self.spec, self.device, self.every, self.tell = task, spec, device, every, tell
        self.steps = self.examples = self.extra = self.due = 0
        self.readings = Readings(task.train_size)
        self.deviations: list[Deviations] = []
        between = [round(e * task.train_size) for e in EPOCHS]
        self.waiting = sorted([EARLY * spec.arm.batch_size, *between])[: max(0, checkpoints - 1)]
        self.at_the_end = checkpoints > 0
        self.notes: list[str] = []
        self.data = make_source(replace(task, num_workers=0), mix(spec.seed, EPOCH), device)
        self.size = max(1, min(spec.arm.batch_size, task.train_size // PASSES))

    def begin(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[Batch], None]:
        """Choose the source: per-example norms where the model's layers give them, else the passes themselves."""
        self.model, self.optimizer = model, optimizer
        self.weights = [p for p in model.parameters() if p.requires_grad]
        adaptive = any("betas" in group for group in optimizer.param_groups)
        self.proxies: Proxies | None = proxies_of(optimizer, self.weights) if adaptive else None
        norms = batch_norms(model)
        self.coupled = bool(norms)
        if norms:
            self.notes.append(
                f"Batch norm ({norms[0]}) mixes the examples of a batch: the scale holds for batches of {self.size}, "
                "and batches of other sizes are not compared with the full gradient."
            )
            self.waiting, self.at_the_end = [], False
        by_example = PerExample(model)
        ragged = self.task.unit == "tokens" and self.task.count is not None  # counted by batches, not by examples
        usable = not norms and not by_example.uncovered and not ragged
        self.source: Source = by_example if usable else MicroBatches(model)
        if by_example.uncovered:
            self.notes.append(f"Source 'examples' was not used: {why_uncovered(by_example)}.")
        return self.seen

    def seen(self, batch: Batch) -> None:
        """The gradient of this batch is complete, at the weights after `steps` steps."""
        if self.steps == 0 and not separable(self.task, self.model, batch):
            raise UnsupportedTask(
                f"task {self.task.name!r}: expected a loss that is a mean over examples, got one that is not the mean "
                "of its halves (a contrastive loss?): it has no gradient noise scale in examples"
            )
        if self.steps == self.due:
            gap = gap_at(self.steps, self.every)
            self._measure(EPOCH + self.steps, self.readings, gap)
            self.due += gap
        if self.waiting and self.examples >= self.waiting[0]:
            self.waiting = [at for at in self.waiting if at > self.examples]
            self._compare()
        self.steps += 1
        self.examples += examples_in(batch)
        if self.steps % TELL_EVERY == 0:
            self.tell({"phase": "noise", "steps": self.steps})

    def _measure(self, epoch: int, readings: Readings, steps: int) -> None:
        """One measurement, for so many steps of the run; the training's own gradients, statistics and random numbers
        are put back after it.

        `epoch` numbers the order of examples that its batches are the first of.
        """
        passes, size = min(steps, PASSES), self.size
        if passes == 1 and not (isinstance(self.source, PerExample) and self.proxies is None):
            passes, size = 2, size if self.coupled else max(1, size // 2)
        gradients = [p.grad for p in self.weights]
        buffers = [(b, b.detach().clone()) for b in self.model.buffers()]
        batches = list(itertools.islice(self.data.epoch(epoch, size), passes))
        self.extra += sum(map(examples_in, batches))
        try:
            with torch_drawing_from(mix(self.spec.seed, epoch), self.device):
                reading = self._passes(batches)
                if reading is None and isinstance(self.source, PerExample) and self.source.uncovered:
                    self.notes.append(f"Source 'examples' was not used: {why_uncovered(self.source)}.")
                    self.source = MicroBatches(self.model)
                    reading = self._passes(batches)
        finally:
            self.source.disarm()
            for parameter, gradient in zip(self.weights, gradients, strict=True):
                parameter.grad = gradient
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
        if reading is None:
            readings.discarded += 1
            return
        rate = float(self.optimizer.param_groups[0]["lr"])
        readings.add(self.steps, self.examples, reading, None, rate, steps=steps)

    def _passes(self, batches: Sequence[Batch]) -> Reading | None:
        """Gradients of the batches, accumulated into that of their union, with a source listening."""
        for parameter in self.weights:
            parameter.grad = None
        units = [float(units_in(self.task, batch)) for batch in batches]
        first: list[torch.Tensor] = []
        self.source.arm()
        for i, (batch, n) in enumerate(zip(batches, units, strict=True)):
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.spec.arm.precision == "bf16"):
                loss = self.task.batch_loss(self.model, batch)
            (loss * (n / sum(units))).backward()
            if self.proxies is not None and i + 1 == len(batches) // 2:
                first = [self._gradient(p).clone() for p in self.weights]
        by_example = isinstance(self.source, PerExample)
        m = sum(map(examples_in, batches))
        counts = counts_of(self.task, batches) if by_example else units
        reading = self.source.read(counts)
        if reading is None or self.proxies is None or not first:
            return reading
        share = sum(units[: len(batches) // 2]) / sum(units)
        return replace(reading, proxies=self._in_other_metrics(first, share, m))

    def _in_other_metrics(self, first: list[torch.Tensor], share: float, m: int) -> dict[str, Any]:
        """Squared norms in the proxies' metrics, from the two halves of the passes, written for the reading's sizes."""
        assert self.proxies is not None
        whole = [self._gradient(p) for p in self.weights]
        halves = [
            [a / share for a in first],
            [(g - a) / (1 - share) for g, a in zip(whole, first, strict=True)],
        ]
        return self.proxies(whole, halves, [share, 1 - share], [share * m, (1 - share) * m])

    @staticmethod
    def _gradient(parameter: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach().to_dense()

    def _compare(self) -> None:
        """A checkpoint: batches' gradients against the full one, at the weights after so many steps."""
        self.tell({"phase": "noise", "steps": self.steps, "checkpoint": True})
        precision, seed = self.spec.arm.precision, self.spec.seed
        at = {"step": self.steps, "examples": self.examples, "precision": precision, "seed": seed}
        here = Readings(self.task.train_size)
        for i in range(AT_CHECKPOINT):
            self._measure(CHECKPOINT_EPOCH + AT_CHECKPOINT * self.steps + i, here, PASSES)
        found = deviations(self.task, self.model, self.device, **at)
        self.extra += cost_of(self.task.train_size)
        self.deviations.append(replace(found, norms=tuple(here.totals())))

    def end(self, result: TrialResult, crossed_at: float | None) -> Followed:
        """Everything, as plain records."""
        if self.at_the_end and result.outcome != "diverged":
            self._compare()
        measurements = self.readings.totals()

        def before(norms: GradientNorms) -> bool:
            return crossed_at is None or norms.examples < crossed_at

        return Followed(
            result=result,
            source=self.source.name,
            measurements=tuple(measurements),
            layers=self.readings.layers(self.source.names, before),
            proxies=self.readings.proxies(before),
            deviations=tuple(self.deviations),
            discarded=self.readings.discarded,
            crossed_at=crossed_at,
            examples=self.extra,
            notes=tuple(self.notes),
        )


def gap_at(step: int, every: int) -> int:
    """Steps until the next measurement: 1 for the first `DENSE` steps, 2 for the next 128, 4 for 256, up to `every`."""
    return min(every, 2 ** int(math.log2(step / DENSE + 1)))


def watched(steps: int, every: int) -> int:
    """Batches that so many steps take, those of their measurements included."""
    return _schedule(lambda done, taken: done >= steps, every)[1]


def steps_for(batches: float, every: int) -> int:
    """The most steps that take no more than so many batches, measurements included."""
    return _schedule(lambda done, taken: taken > batches, every)[0] - 1


def _schedule(over: Callable[[int, int], bool], every: int) -> tuple[int, int]:
    """(steps, batches taken) when it is over."""
    steps = taken = due = 0
    while not over(steps, taken):
        if steps == due:
            gap = gap_at(steps, every)
            taken, due = taken + min(gap, PASSES), due + gap
        steps, taken = steps + 1, taken + 1
    return steps, taken


def checkpoint_cost(train_size: int, batch_size: int) -> int:
    """Examples that one checkpoint takes, at most."""
    return cost_of(train_size) + AT_CHECKPOINT * PASSES * max(1, min(batch_size, train_size // PASSES))


def counts_of(task: Task, batches: Sequence[Batch]) -> torch.Tensor | None:
    """(m,): counted tokens of each example, where they differ."""
    if task.unit != "tokens" or task.count is not None:
        return None
    targets = [b["labels"] if isinstance(b, dict) and "labels" in b else b[1] for b in batches]
    if any(target.dim() < 2 for target in targets):
        return None
    counts = torch.cat([(target != IGNORED_TARGET).flatten(1).sum(1) for target in targets])
    return None if bool((counts == counts[0]).all()) else counts
