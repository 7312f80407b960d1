"""How noisy are the gradients of a trial, measured beside it, on its own batches, for nearly nothing?

`follow` draws batches apart, which doubles the run's price, because batches drawn without replacement make B_simple too
small by a share of order tr(Sigma) / N (a tenth to a fifth on the built-in tasks). As a first guess of B_crit, which it
misses by factors of 0.3 to 6, that does not matter: here the batches that are trained on serve.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from batchscope.errors import CannotAnswer
from batchscope.measure.monitor import NoiseMonitor
from batchscope.records import Measured, TrialSpec
from batchscope.task import Batch, Task
from batchscope.training.loop import steps_within

MOST_MEASUREMENTS = 500  # of a run of its whole budget (a guess): an interval within a factor of two is enough


class NoiseBeside:
    """`train(watch=...)`: measures every so many steps; `scale` says what was found, None where nothing can be."""

    def __init__(self, task: Task, spec: TrialSpec) -> None:
        steps = steps_within(spec.stop.budget_examples, task.train_size, spec.arm.batch_size)
        self.task, self.every = task, max(1, steps // MOST_MEASUREMENTS)
        self._monitor: NoiseMonitor | None = None

    def __call__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[Batch], None]:
        """Put the monitor into a trial's model."""
        monitor = NoiseMonitor(model, every=self.every, optimizer=optimizer, data_size=self.task.train_size)
        self._monitor = monitor
        return lambda batch: monitor.step()

    def scale(self) -> Measured | None:
        """B_simple over what was measured, in examples; None where it has no meaning or too little was seen."""
        if self._monitor is None:
            return None
        self._monitor.remove()
        try:
            return self._monitor.report().scale.b_simple
        except CannotAnswer:
            return None
