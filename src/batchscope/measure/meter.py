"""How many seconds does a step take in the loop that the user really trains in? A meter to put around its step.

    meter = StepMeter()
    for batch in loader:
        with meter.step(batch_size=64):
            ...                          # forward, backward, optimiser: everything that is not fetching the batch
    timing = meter.report()

The seconds of a step are the wall time from its beginning to the beginning of the next one, waiting for data
included. They are taken over *windows* of n steps of one batch size that follow each other directly:

    t = (beginning of step i + n  -  beginning of step i) / n            for i the first step of a window

Where a window ends the next one begins. On CUDA the device is synchronised there and nowhere else, so that inside a
window the host runs ahead of the device as it does without a meter. A window is discarded, and counted as such, when
anything else came in between: a pause (evaluation, a checkpoint), a step of another batch size (the short last batch
of an epoch), an exception. What an epoch costs at its edges (loader workers starting) counts where nothing is paused.

The meter costs a step 0.9 to 1.3 us (`begin` and `end`: 0.4 to 0.7 us), the best of nine times 20,000 empty steps,
twice, on a busy core of an AMD EPYC, Python 3.11, CPU. What synchronising costs on a GPU was not measured.
"""

from __future__ import annotations

import math
import platform
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import TracebackType

import torch

import batchscope
from batchscope.errors import CannotAnswer, UsageError
from batchscope.measure.throughput import WINDOW_SECONDS
from batchscope.records import Conditions, StepTiming, TimingPass
from batchscope.training.device import device_name

WARM_UP = 10  # first steps at a batch size that are not timed: compilation, kernel search, growing memory (a guess)
AFTER_BREAK = 2  # steps not timed after a break: DataLoader's default prefetch_factor, what a worker has ready by then
MIN_STEPS = 5  # in a window, however long they take: logging and garbage collection happen in single steps (a guess)
WINDOWS = 6  # that a batch size needs: the fewest whose extremes hold the median with 95 %, 1 - 2 (1/2)^6 = 0.97
KEPT = 1000  # latest windows of a batch size that are kept: 50 s of steps; a long run must not fill the memory
GIVE_UP = 3  # windows broken in a row, none completed, until windows are made as short as the loop's runs (a guess)


class _BatchSize:
    """One batch size's windows: how many steps they take, and seconds and waits per step of the completed ones.

    The first windows choose the number of steps and are not kept: it is doubled until a window takes a quarter of
    `WINDOW_SECONDS`, then set to what takes all of it. A loop that never runs that many steps without a break gets
    windows as long as its longest run.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size, self.untimed = batch_size, WARM_UP
        self.steps_per_window, self.chosen = MIN_STEPS, False
        self.seconds: deque[float] = deque(maxlen=KEPT)
        self.waits: deque[float] = deque(maxlen=KEPT)
        self._broken: list[int] = []

    def completed(self, seconds: float, waited: float) -> None:
        """A whole window took this long, of which the host waited for data so long."""
        self._broken.clear()
        n = self.steps_per_window
        if self.chosen:
            self.seconds.append(seconds / n)
            self.waits.append(waited / n)
        elif seconds < WINDOW_SECONDS / 4:
            self.steps_per_window = 2 * n
        else:
            self.steps_per_window, self.chosen = max(MIN_STEPS, math.ceil(n * WINDOW_SECONDS / seconds)), True

    def broken(self, steps: int) -> None:
        """A window ended after this many whole steps."""
        self._broken.append(steps)
        if not self.seconds and len(self._broken) == GIVE_UP:
            self.steps_per_window, self.chosen = max(MIN_STEPS, *self._broken), True
            self._broken.clear()

    def missing(self, steps: int | None) -> int:
        """Steps to begin, one after the other, until there are `WINDOWS`; the fewest possible where none was chosen.

        `steps` are the whole ones in the open window, None where none is open: one more step opens it.
        """
        n = self.steps_per_window
        windows = WINDOWS - len(self.seconds) if self.chosen else 1
        later = 0 if self.chosen else WINDOWS * MIN_STEPS
        return self.untimed + (1 if steps is None else -steps) + windows * n + later


class _Step:
    """`with meter.step():`, the same object for every step. An exception breaks the window, and propagates."""

    def __init__(self, meter: StepMeter) -> None:
        self.meter = meter
        self.batch_size: int | None = None

    def __enter__(self) -> None:
        self.meter.begin(self.batch_size)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.meter.discard_window()
        self.meter.end()


class StepMeter:
    """Seconds per step of a loop that is not ours, per batch size.

    `batch_size` (examples, global: of all processes together) where it is always the same; `device` to synchronise,
    by default CUDA's current one if the process uses CUDA, else none; `loop` and `precision` are what the record
    calls them. `discarded` counts the windows that were broken. `clock` returns seconds.
    """

    def __init__(
        self,
        batch_size: int | None = None,
        *,
        device: torch.device | str | None = None,
        loop: str = "own loop",
        precision: str = "fp32",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.batch_size, self.loop, self.precision, self.discarded = batch_size, loop, precision, 0
        self._device = None if device is None else torch.device(device)
        if self._device is not None and self._device.type not in ("cpu", "cuda"):
            raise UsageError(f"expected a device of type cpu or cuda, got {device}: leave `device` out, or name one")
        self._clock, self._context = clock, _Step(self)
        self._sizes: dict[int, _BatchSize] = {}
        self._current = _BatchSize(0)  # of no step
        self._inside, self._pauses = False, 0
        self._steps: int | None = None  # whole ones in the open window; None where none is open
        self._opened = self._ended = self._waited = 0.0

    def step(self, batch_size: int | None = None) -> _Step:
        """One optimiser step of `batch_size` examples, as a context; fetching its batch stays outside."""
        self._context.batch_size = batch_size
        return self._context

    def begin(self, batch_size: int | None = None) -> None:
        """A step begins, for loops that call back: `step` in two halves."""
        if self._pauses:
            return
        now = self._clock()
        batch_size = self.batch_size if batch_size is None else batch_size
        if batch_size != self._current.batch_size or self._inside or not self._sizes:
            self._change(batch_size)
        self._inside, current = True, self._current
        if current.untimed:
            current.untimed -= 1
            return
        if self._steps is not None:
            self._steps += 1
            self._waited += now - self._ended
            if self._steps < current.steps_per_window:
                return
        if self._where().type == "cuda":
            torch.cuda.synchronize(self._where())
            now = self._clock()
        if self._steps is not None:
            current.completed(now - self._opened, self._waited)
        self._opened, self._steps, self._waited = now, 0, 0.0

    def end(self, batch_size: int | None = None) -> None:
        """The step ends. `batch_size`: what it turned out to be, where that was not known for sure at its beginning."""
        if self._pauses:
            return
        if not self._inside:
            raise UsageError("expected a step to have begun, got the end of one: call `begin` first")
        self._inside = False
        if batch_size is not None and batch_size != self._current.batch_size:
            self.discard_window()
        self._ended = self._clock()

    @contextmanager
    def pause(self) -> Generator[None, None, None]:
        """What happens here is no part of a step: evaluation, a checkpoint, training that is not to be timed."""
        self.discard_window()
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1

    def discard_window(self) -> None:
        """The time since the last step's beginning is not a step's: go on at the next one, `AFTER_BREAK` later."""
        if self._steps is not None:
            self.discarded += 1
            self._current.broken(self._steps)
            self._steps = None
        self._current.untimed = max(self._current.untimed, AFTER_BREAK)

    def report(self) -> TimingPass:
        """The windows per batch size that has at least `WINDOWS` of them, with the process' conditions as they are.

        `phases["data"]` holds, per window, seconds per step between the end of a step and the beginning of the next,
        by the host's clock. On CUDA that is what waiting costs the host: the device may have been busy meanwhile.
        There are no windows of a reference in between, so `reference` is empty and `drift` 0, not measured;
        `reference_batch_size` is the one that most was seen of. Raises CannotAnswer after too few steps.
        """
        enough = [size for _, size in sorted(self._sizes.items()) if len(size.seconds) >= WINDOWS]
        if not enough:
            raise CannotAnswer(self._too_few())
        timings = tuple(
            StepTiming(s.batch_size, s.steps_per_window, tuple(s.seconds), (), {"data": tuple(s.waits)}) for s in enough
        )
        most = max(enough, key=lambda s: len(s.seconds) * s.steps_per_window)
        return TimingPass(most.batch_size, timings, self._conditions(), loop=self.loop)

    def _change(self, batch_size: int | None) -> None:
        """Steps of another batch size begin, or the last one never ended, or this is the first."""
        if batch_size is None or batch_size < 1:
            raise UsageError(
                f"expected a batch size of at least 1 example, got {batch_size}: write `meter.step(batch_size=...)`, "
                "or `StepMeter(batch_size=...)` where it never changes"
            )
        self.discard_window()
        self._current = self._sizes.setdefault(int(batch_size), _BatchSize(int(batch_size)))

    def _where(self) -> torch.device:
        """The device to synchronise."""
        return self._device or torch.device("cuda" if torch.cuda.is_initialized() else "cpu")

    def _too_few(self) -> str:
        """What is missing, in one sentence: for the batch size that misses least."""
        best = min(self._sizes.values(), key=self._missing, default=_BatchSize(self.batch_size or 0))
        windows = f"expected {WINDOWS} windows of at least {MIN_STEPS} steps at one batch size"
        came = f"{len(best.seconds)} at batch size {best.batch_size}" if self._sizes else "no step at all"
        broken = f" and {self.discarded} broken by a pause or another batch size" if self.discarded else ""
        more = f"{'' if best.chosen else 'at least '}{self._missing(best)} more steps"
        return f"{windows}, got {came}{broken}: run {more} of one batch size without a pause in between"

    def _missing(self, size: _BatchSize) -> int:
        return size.missing(self._steps if size is self._current else None)

    def _conditions(self) -> Conditions:
        """The process as it is; nothing is set up. Threads are torch's, the allocator is taken for the default one."""
        device, parallel = self._where(), torch.distributed.is_available() and torch.distributed.is_initialized()
        return Conditions(
            device=device.type,
            device_name=device_name(device),
            precision=self.precision,
            threads=torch.get_num_threads(),
            world_size=torch.distributed.get_world_size() if parallel else 1,
            deterministic=device.type == "cpu",
            platform=f"{platform.system()} {platform.machine()}",
            versions={
                "batchscope": batchscope.__version__,
                "torch": str(torch.__version__),
                "python": platform.python_version(),
            },
        )
