"""How noisy are a trial's gradients just now? Measured inside it, for whoever decides on what its next steps are.

`NoiseMonitor` is for anybody's loop: it weighs its own price, by a clock. A decision that reads a clock would not be
the same twice, so here it is told which steps to measure, and what it needs to go on is a part of the trial's state:
one that resumes decides as one that was never stopped.

Parts are the two halves of a batch, by one more backward pass (`halves.py`), or the micro-batches of a step that has
several. Batches are the trial's own, drawn without replacement from N examples: |G|^2 comes out too large by a share
of order tr(Sigma) / N. With Adam and its like both are in Adam's metric (`proxies.py`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from batchscope.analysis.noise_scale import draw
from batchscope.errors import CannotAnswer, UnsupportedTask
from batchscope.measure.accumulated import MicroBatches
from batchscope.measure.coupling import compares_examples
from batchscope.measure.gradients import Reading
from batchscope.measure.halves import Halves
from batchscope.measure.proxies import proxies_of
from batchscope.records import GradientNorms
from batchscope.task import Batch, Task
from batchscope.training.batches import FixedBatches, examples_in, fixed_subset, split, units_in
from batchscope.training.seeding import drawing_from
from batchscope.training.step import make_model

CPU = torch.device("cpu")
ADAM = (torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam)  # with Adam's second moment
EVERY = 4  # steps from one measurement to the next (a guess: a measured step takes 1.4 to 2.4 plain ones)
LAST = 64  # measurements that count (a guess)
LEAST = 16  # before anything is said of their ratio, which few of them make far too large now and then (a guess)
TRIED = 8  # examples of the step that shows whether a task can be measured


class HalvesOfSteps:
    """tr(Sigma) and |G|^2 from single steps, in Adam's metric where the optimiser is Adam.

    The first step that it is armed for tells how many backward passes one has: with several, their micro-batches are
    the parts; with one, halves are, from the next step on.
    """

    def __init__(self, task: Task, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.task, self.model, self.optimizer = task, model, optimizer
        self.adam = isinstance(optimizer, ADAM)
        self.source: MicroBatches | Halves = MicroBatches(model)
        self.worked = False  # it has shown something

    def arm(self) -> None:
        """The coming step is measured: hooks in."""
        self.source.arm()

    def read(self, batch: Batch) -> tuple[float, float] | None:
        """(tr(Sigma) of one example, |G|^2), unbiased, of either sign; hooks out. None: not to be had from this step.

        Raises CannotAnswer where no step will show anything.
        """
        if not self.source.armed:
            return None
        if isinstance(self.source, MicroBatches) and self.source.backward_passes() < 2:
            self.source.disarm()
            self.source = self._halves()
            return None
        if isinstance(self.source, MicroBatches) and self.adam:
            raise CannotAnswer(
                "expected a batch in one pass, to take norms in Adam's metric inside a trial, got micro-batches: leave "
                "the micro-batch out, or the remedy"
            )
        reading = self.source.read(self._counts(batch))
        if reading is None and (self.source.lasting or not self.worked):
            raise CannotAnswer(
                f"expected steps that can be measured in parts inside a trial, got {self.source.why_not}: leave the "
                "remedy out"
            )
        self.worked = self.worked or reading is not None
        squares = self._squares(reading) if reading is not None else None
        return None if reading is None or squares is None else draw(_norms(reading, *squares))

    def _halves(self) -> Halves:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return Halves(self.model, proxies_of(self.optimizer, trained) if self.adam else None)

    def _squares(self, reading: Reading) -> tuple[float, float] | None:
        """The parts' squared norms and the batch's; none in Adam's metric before Adam has made a step."""
        found = (reading.parts_squared, reading.mean_squared)
        if self.adam:
            if "adam" not in reading.proxies:
                return None
            found = reading.proxies["adam"]
        parts, mean = torch.stack([t.double().sum() for t in found]).tolist()
        return parts, mean

    def _counts(self, batch: Batch) -> list[float] | None:
        """Units of each micro-batch; or of each example, where they differ: those of a half, spread evenly over it."""
        if isinstance(self.source, MicroBatches):
            parts = split(batch, self.source.examples[0])
            return [float(n) for part in parts if (n := units_in(self.task, part)) > 0]
        if self.task.count is None and self.task.unit != "tokens":
            return None
        m = self.source.examples[-1]
        half = m // 2
        first, *rest = (units_in(self.task, part) for part in split(batch, half))
        return [first / half] * half + [sum(rest) / (m - half)] * (m - half)

    def state_dict(self) -> dict[str, Any]:
        """Which parts are measured, and what was found out about the loss."""
        penalised = self.source.penalised if isinstance(self.source, Halves) else None
        return {"source": self.source.name, "penalised": penalised, "worked": self.worked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave; not armed."""
        self.source.disarm()
        self.source = self._halves() if state["source"] == Halves.name else MicroBatches(self.model)
        if isinstance(self.source, Halves):
            self.source.penalised = state["penalised"]
        self.worked = state["worked"]


def _norms(reading: Reading, parts: float, mean: float) -> GradientNorms:
    return GradientNorms(
        step=0,
        examples=0,
        parts=reading.parts,
        part_size=float(reading.part_size),
        batch_size=float(reading.batch_size),
        mean_squared=mean,
        parts_squared=parts,
    )


def why_not_measured(task: Task) -> str | None:
    """Why a step of this task cannot be measured in halves; seen on a few examples, by a model that is thrown away."""
    few = fixed_subset(task.train_size, min(TRIED, task.train_size))
    with drawing_from(0):
        model = make_model(task, CPU)
        batch = next(iter(FixedBatches(task, task.train, few, CPU)))
        source = Halves(model)
        source.arm()
        loss = task.batch_loss(model, batch)
        if compares_examples(loss, len(few)):
            return "a loss that compares the examples of a batch with each other"
        try:
            loss.backward()
            reading = source.read()
        except (CannotAnswer, UnsupportedTask) as error:
            return str(error)
    return None if reading is not None else source.why_not


class TrialNoise:
    """B_simple over the latest measurements, one every so many steps.

    Args:
        task, model, optimizer: of the trial.
        every: steps from one measurement to the next.
        last: measurements that are kept.
    """

    def __init__(
        self, task: Task, model: nn.Module, optimizer: torch.optim.Optimizer, every: int = EVERY, last: int = LAST
    ) -> None:
        self.measuring, self.every, self.last = HalvesOfSteps(task, model, optimizer), every, last
        self.steps = 0
        self.found: list[tuple[float, float]] = []  # (tr(Sigma), |G|^2), oldest first
        self.measuring.arm()

    def step(self, batch: Batch) -> bool:
        """The gradient of a step is complete, not yet clipped. Returns whether it was measured."""
        if examples_in(batch) < 2:  # an epoch's last one: nothing to compare
            self.measuring.source.disarm()
        found = self.measuring.read(batch)
        self.steps += 1
        if found is not None and all(map(math.isfinite, found)):
            self.found = [*self.found, found][-self.last :]
        self.arm()
        return found is not None

    def arm(self) -> None:
        """Put hooks in if the coming step is to be measured; what passes an evaluation made is forgotten."""
        if self.steps % self.every == 0 or not self.measuring.worked:
            self.measuring.arm()

    @property
    def averages(self) -> tuple[float, float] | None:
        """(tr(Sigma) of one example, |G|^2): means of unbiased draws, either of which may be negative; None: none."""
        if not self.found:
            return None
        variances, squares = zip(*self.found, strict=True)
        return sum(variances) / len(variances), sum(squares) / len(squares)

    @property
    def scale(self) -> float | None:
        """B_simple in examples: mean tr(Sigma) / mean |G|^2 over what is kept; None where too little is known.

        inf where the mean |G|^2 is not positive: more noise than can be told.
        """
        if len(self.found) < min(LEAST, self.last):
            return None
        variance, square = self.averages or (0.0, 0.0)
        if variance <= 0:
            return None
        return variance / square if square > 0 else math.inf

    def state_dict(self) -> dict[str, Any]:
        """The measurements that are kept, and what they go on from, in plain numbers."""
        found = [list(pair) for pair in self.found]
        return {"steps": self.steps, "found": found, "measuring": self.measuring.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.steps, self.found = state["steps"], [(float(v), float(s)) for v, s in state["found"]]
        self.measuring.load_state_dict(state["measuring"])
        self.arm()
