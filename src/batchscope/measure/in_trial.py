"""How noisy are a trial's gradients just now? Measured inside it, for whoever decides on what its next steps are.

`NoiseMonitor` is for anybody's loop: it weighs its own price, by a clock. A decision that reads a clock would not be
the same twice, so here every so many steps are measured, whatever that costs, and the latest measurements are a part
of the trial's state: one that resumes decides as one that was never stopped.

Batches are the trial's own, drawn without replacement: |G|^2 comes out too large by a share of order tr(Sigma) / N.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from torch import nn

from batchscope.analysis.noise_scale import draw, usable
from batchscope.measure.gradients import Source
from batchscope.measure.halves import Halves
from batchscope.measure.sources import Candidates
from batchscope.records import GradientNorms

EVERY = 4  # steps from one measurement to the next (a guess: a measured step takes 1.2 to 2 plain ones)
LAST = 64  # measurements that count (a guess)
LEAST = 16  # before anything is said of their ratio, which few of them make far too large now and then (a guess)


class TrialNoise:
    """Squared norms of a batch's gradient and of its parts', every so many steps; the last so many are kept.

    Args:
        model: in training; hooks are in it while a step is measured.
        every: steps from one measurement to the next; the first step is measured.
        last: measurements that are kept.
        accumulates: whether a step has several backward passes.
        data_size: examples in the training set; None: as if it had no end.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int = EVERY,
        last: int = LAST,
        accumulates: bool = False,
        data_size: int | None = None,
    ) -> None:
        self.model, self.every, self.last, self.data_size = model, every, last, data_size
        self._accumulates, self._source_name = accumulates, ""
        self.steps = self.examples = 0
        self.norms: list[GradientNorms] = []
        self._candidates = Candidates(model, None, None, None)
        self._source: Source | None = self._candidates.first(2 if accumulates else 1)
        self._source.arm()

    def step(self, examples: int) -> bool:
        """The gradient of a step of so many examples is complete, not yet clipped. Returns whether it was measured."""
        before = self.examples
        self.steps, self.examples = self.steps + 1, before + examples
        measured = self._source is not None and self._source.armed and self._measure(self._source, before)
        if self._source is not None and self.steps % self.every == 0:
            self._source.arm()
        return measured

    @property
    def scale(self) -> float | None:
        """B_simple in examples: mean tr(Sigma) / mean |G|^2 over what is kept; None where too little is known.

        inf where the mean |G|^2 is not positive: more noise than can be told.
        """
        if len(self.norms) < min(LEAST, self.last):
            return None
        variance, square = self.averages or (0.0, 0.0)
        if variance <= 0:
            return None
        return variance / square if square > 0 else math.inf

    @property
    def averages(self) -> tuple[float, float] | None:
        """(tr(Sigma) of one example, |G|^2): means of unbiased draws, either of which may be negative; None: none."""
        if not self.norms:
            return None
        variances, squares = zip(*(draw(norms, self.data_size) for norms in self.norms), strict=True)
        return sum(variances) / len(variances), sum(squares) / len(squares)

    def _measure(self, source: Source, before: int) -> bool:
        """Read the source; where it shows nothing, go on to the next one, at the next step that is measured."""
        reading = source.read()
        if reading is None:
            self._source = self._candidates.after(source)
            return False
        parts, whole = (float(s.double().sum()) for s in (reading.parts_squared, reading.mean_squared))
        frame = GradientNorms(
            step=self.steps - 1,
            examples=before,
            parts=reading.parts,
            part_size=float(reading.part_size),
            batch_size=float(reading.batch_size),
            mean_squared=whole,
            parts_squared=parts,
        )
        if not usable(frame):  # an epoch's last batch of a single example, an overflow
            return False
        self.norms = [*self.norms, frame][-self.last :]
        return True

    def state_dict(self) -> dict[str, Any]:
        """The measurements that are kept, and which source they come from, in plain numbers."""
        name = self._source.name if self._source is not None else ""
        return {
            "steps": self.steps,
            "examples": self.examples,
            "norms": [asdict(n) for n in self.norms],
            "source": name,
            "penalised": self._source.penalised if isinstance(self._source, Halves) else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        if self._source is not None:
            self._source.disarm()
        self.steps, self.examples = state["steps"], state["examples"]
        self.norms = [GradientNorms(**n) for n in state["norms"]]
        own = state["source"]
        if not own:
            self._source = None
        elif self._source is None or self._source.name != own:
            self._candidates = Candidates(self.model, None, own, None)
            self._source = self._candidates.first(2 if self._accumulates else 1)
        if isinstance(self._source, Halves):
            self._source.penalised = state["penalised"]
        if self._source is not None and self.steps % self.every == 0:
            self._source.arm()
