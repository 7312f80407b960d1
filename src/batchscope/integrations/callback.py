"""What do noise callbacks of all frameworks share? A `NoiseMonitor` that is made when training starts."""

from __future__ import annotations

from typing import Any

from torch import nn

from batchscope.errors import CannotAnswer
from batchscope.measure.monitor import NoiseMonitor
from batchscope.records import NoiseReport


class HoldsMonitor:
    """`monitor`: of the run that is on, or of the last one; None before the first."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.monitor: NoiseMonitor | None = None

    def start(self, model: nn.Module, **found: Any) -> NoiseMonitor:
        """A monitor for a run that starts; what the user gave in `options` comes before what the framework says."""
        self.remove()
        self.monitor = NoiseMonitor(model, **{**found, **self.options})
        return self.monitor

    def remove(self) -> None:
        """Take every hook out of the model; what was measured stays."""
        if self.monitor is not None:
            self.monitor.remove()

    def report(self, **options: Any) -> NoiseReport:
        """As `NoiseMonitor.report`. Raises CannotAnswer before this process has trained."""
        if self.monitor is None:
            raise CannotAnswer(
                "expected a training run before `report`, got none in this process: call it after training, in a "
                "process that trained"
            )
        return self.monitor.report(**options)
