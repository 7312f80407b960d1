"""How far does a large batch's step get, in steps of the small one? AdaScale: its gain, and the learning rate by it.

With S = B / B_0, sigma^2 = tr(Sigma) / B_0 the variance of the small batch's gradient, and mu^2 = |G|^2, the gain is

    r = (sigma^2 + mu^2) / (sigma^2 / S + mu^2) = E|g_small|^2 / E|g_large|^2,      1 <= r <= S.

A step is made at the learning rate r lr, and counts as r steps of the small batch: the *progress*, by which the
schedule of lr moves. Where noise dominates, r = S, which is linear scaling; without noise r = 1, and nothing is gained
(Johnson et al. 2020, for SGD). For Adam the rate is sqrt(r) lr, with norms in Adam's metric: a heuristic (AdamScale;
Qiao et al. 2021, whose metric differs: `measure/proxies.py`).

Averages of sigma^2 and mu^2, each by itself, as in their appendix B.3: the mean of what was seen in the first
1 / (1 - theta) steps, then exponential with theta = max(1 - S / 1000, 0) per step. Unlike theirs, single estimates are
never clipped (|G|^2 is often negative), and r is bounded instead. A reading stands for the steps since the one before.

Batches are drawn without replacement from N examples: what is taken for |G|^2 is then |G|^2 - tr(Sigma) / (N - 1),
which leaves r the ratio of the two E|g|^2. The weights have just learnt from the epoch's other batches, not from this
one, which lengthens |G|^2 by some tr(Sigma) / N (`measure/readings.py`). On noisy-quadratic the two nearly cancel: r is
within 1 % of what the exact |G|^2 gives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from batchscope.analysis.noise_scale import draw
from batchscope.errors import CannotAnswer, UsageError
from batchscope.measure.in_trial import ADAM
from batchscope.measure.monitor import NoiseMonitor
from batchscope.remedies.scaling import put_rates

MEMORY = 1000.0  # theta = max(1 - S / MEMORY, 0): steps of the small batch that an average covers (their appendix B.3)
READINGS = 16  # within what an average covers, where not every step is measured (a guess; theirs measures every one)
ASKED = 10  # steps from one look at a monitor to the next (a guess: a report takes milliseconds)
LAST = 64  # of its measurements that a look takes in: more than there are in between


def gain(variance: float, squared: float, times: float) -> float:
    """r: steps of the small batch that one of a batch `times` as large stands for, between 1 and `times`.

    Args:
        variance: sigma^2 = tr(Sigma) / B_0, averaged; not positive: no noise was seen, r = 1.
        squared: mu^2 = |G|^2, averaged; so negative that r has no meaning: all noise, r = S.
        times: S = B / B_0; below 1 for an epoch's last, short batch.
    """
    if variance <= 0:
        return 1.0
    large = variance / times + squared
    if large <= 0:
        return times
    return min(max((variance + squared) / large, min(1.0, times)), max(1.0, times))


def power_of(optimizer: torch.optim.Optimizer) -> float | None:
    """By which power of r the learning rate grows: 1 for torch's SGD, 1/2 for Adam and its like; None for others."""
    if isinstance(optimizer, torch.optim.SGD):
        return 1.0
    return 0.5 if isinstance(optimizer, ADAM) else None


class AdaScale:
    """Scales the learning rate in anybody's loop by the gain, and moves the schedule by the progress.

        adascale = AdaScale(optimizer, batch_size=1024, small_batch_size=64, scheduler=scheduler, total_steps=90_000)
        while adascale.progress < 90_000:
            ...
            loss.backward()
            monitor.step(loss)                         # a bs.NoiseMonitor, every=1 for what the paper does
            optimizer.step()
            adascale.step(noise_scale=monitor)         # instead of scheduler.step()

    Args:
        optimizer: its learning rates are those of the small batch.
        batch_size: examples of a step, global.
        small_batch_size: that the learning rates and the schedule were made for.
        scheduler: made for steps of the small batch, and stepped here: it stands at floor(progress). None: there is
            none, or it is stepped elsewhere; what others do to the learning rate is kept.
        total_steps: of the schedule, beyond which it is not moved.
        power: the learning rate grows as r^power; None: `power_of` the optimiser.

    The first step is made at r = 1, as nothing is known yet. With replicas every rank calls this alike, with numbers
    that all ranks know (a monitor's are). From `state_dict` training goes on bit for bit where it is given numbers; a
    monitor's readings are not in it.

    Raises UsageError for sizes that are not positive, and an optimiser without a known power.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        batch_size: int,
        small_batch_size: int,
        scheduler: Any = None,
        total_steps: int | None = None,
        power: float | None = None,
    ) -> None:
        for name, size in (("batch_size", batch_size), ("small_batch_size", small_batch_size)):
            if not isinstance(size, int) or size < 1:
                raise UsageError(f"expected {name} as a whole number from 1 up, got {size!r}: write {name}=64")
        found = power_of(optimizer) if power is None else power
        if found is None or not found > 0:
            got = f"power={power!r}" if power is not None else type(optimizer).__name__
            raise UsageError(f"expected SGD, Adam or a positive power of the gain, got {got}: write power=1.0")
        self.power = found
        self.optimizer, self.scheduler, self.total_steps = optimizer, scheduler, total_steps
        self.batch_size, self.small_batch_size = batch_size, small_batch_size
        self.gain, self.progress, self.steps = 1.0, 0.0, 0
        self.trace: float | None = None  # average tr(Sigma) of one example; None: no reading yet
        self.squared_gradient: float | None = None  # average |G|^2
        self._read = -1  # the step of the last reading, counted from 0
        self._scheduled = 0  # steps that the schedule has made
        self._unscaled = self._set = self._rates()  # as the schedule has them, and as they were put in

    # --- how much is remembered ---

    @property
    def smoothing(self) -> float:
        """theta, per step."""
        return max(1 - self.batch_size / self.small_batch_size / MEMORY, 0.0)

    @property
    def due(self) -> bool:
        """Whether the coming step should be measured: READINGS times within the steps that the averages cover."""
        covered = min(self.steps, 1 / (1 - self.smoothing))
        return self.steps - self._read >= max(1, int(covered / READINGS))

    # --- in the loop ---

    def step(
        self,
        *,
        noise_scale: NoiseMonitor | None = None,
        trace: float | None = None,
        squared_gradient: float | None = None,
        following: int | None = None,
    ) -> float:
        """An optimiser step has been made; returns the gain of the coming one.

        Args:
            noise_scale: a monitor, whose `step` was called once a step; it is asked every ASKED steps.
            trace: or: tr(Sigma) of one example, estimated from the step just made, of either sign.
            squared_gradient: |G|^2 likewise; both or neither. None: the step was not measured.
            following: examples of the coming step, where it has others than `batch_size`.
        """
        if (trace is None) != (squared_gradient is None):
            raise UsageError("expected trace and squared_gradient of a measured step, got one of them: give both")
        self.progress += self.gain
        self.steps += 1
        if trace is not None and squared_gradient is not None:
            self._hear(self.steps - 1, trace, squared_gradient)
        elif noise_scale is not None and self.steps % ASKED == 0:
            self._ask(noise_scale)
        self._move((self.batch_size if following is None else following) / self.small_batch_size)
        return self.gain

    def _ask(self, monitor: NoiseMonitor) -> None:
        """What a monitor has measured since the last reading; its steps may be counted from elsewhere."""
        try:
            measured = monitor.report(last=LAST).measurements
        except CannotAnswer:  # nothing yet
            return
        for norms in measured:
            if (at := norms.step + self.steps - monitor.steps) > self._read:
                self._hear(at, *draw(norms))

    def _hear(self, at: int, trace: float, squared: float) -> None:
        """A reading of that step: m <- m + a (x - m), a of all steps since the reading before; an overflow is not one.

        With a reading at every step a = max(1 - theta, 1 / t): the mean while t < 1 / (1 - theta).
        """
        if not (math.isfinite(trace) and math.isfinite(squared)):
            return
        since = at - self._read
        share = max(1 - self.smoothing**since, since / (at + 1))
        self.trace = trace if self.trace is None else self.trace + share * (trace - self.trace)
        old = squared if self.squared_gradient is None else self.squared_gradient
        self.squared_gradient, self._read = old + share * (squared - old), at

    def _move(self, times: float) -> None:
        """The schedule to where the progress is, the learning rates to the gain of a batch `times` the small one."""
        factor, rates = self.gain**self.power, self._rates()
        if rates != self._set:  # somebody else has changed them
            pairs = zip(rates, self._set, self._unscaled, strict=True)
            self._unscaled = [own if now == put else now / factor for now, put, own in pairs]
        wanted = math.floor(self.progress) if self.scheduler is not None else 0
        due = (wanted if self.total_steps is None else min(wanted, self.total_steps)) - self._scheduled
        if due > 0:
            put_rates(self.optimizer, self._unscaled)
            for _ in range(due):
                self.scheduler.step()
            self._scheduled += due
            self._unscaled = self._rates()
        if self.trace is not None and self.squared_gradient is not None:
            self.gain = gain(self.trace / self.small_batch_size, self.squared_gradient, times)
        self._put([rate * self.gain**self.power for rate in self._unscaled])

    def _rates(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def _put(self, rates: Sequence[float]) -> None:
        put_rates(self.optimizer, rates)
        self._set = self._rates()

    # --- checkpoints ---

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on, in plain numbers; optimiser and schedule have their own."""
        return {
            "sizes": [self.batch_size, self.small_batch_size],
            "gain": self.gain,
            "progress": self.progress,
            "steps": self.steps,
            "trace": self.trace,
            "squared_gradient": self.squared_gradient,
            "read": self._read,
            "scheduled": self._scheduled,
            "unscaled": list(self._unscaled),
            "set": list(self._set),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave. Raises UsageError, with everything as it was, for other batch sizes."""
        sizes = [self.batch_size, self.small_batch_size]
        if list(state["sizes"]) != sizes:
            raise UsageError(f"expected the batch sizes {state['sizes']} that were saved, got {sizes}: use those")
        self.gain, self.progress, self.steps = state["gain"], state["progress"], state["steps"]
        self.trace, self.squared_gradient = state["trace"], state["squared_gradient"]
        self._read, self._scheduled = state["read"], state["scheduled"]
        self._unscaled = list(state["unscaled"])
        self._put(state["set"])
