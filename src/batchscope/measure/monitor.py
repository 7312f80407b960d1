"""How noisy are the gradients in the loop that the user really trains in? Three lines of it, and nearly no time.

    monitor = NoiseMonitor(model)                  # once
    ...
    loss.backward()
    monitor.step(loss)                             # after the last backward, before clipping and the optimiser's step
    ...
    print(monitor.report())                        # any time

A step that is not measured costs a comparison. A measured one has hooks in the model, from the end of the step before;
what it costs is found out during the first steps (`COMPARED` pairs of a plain and a measured step), and `every` is
chosen so that measuring takes less than `overhead` of the training's time, those first steps included: until their
price is worked off, nothing more is measured. `every=` fixes it.

Nothing is drawn at random, no gradient is changed, and `remove` takes every hook out of the model.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import nn

from batchscope.errors import CannotAnswer, UnsupportedTask, UsageError
from batchscope.measure.accumulated import Buckets, Hook, MicroBatches
from batchscope.measure.coupling import batch_norms, compares_examples
from batchscope.measure.gradients import Counts, Source
from batchscope.measure.halves import Halves
from batchscope.measure.proxies import proxies_of
from batchscope.measure.readings import Readings
from batchscope.measure.sources import Candidates, data_parallel_group, unwrapped
from batchscope.records import NoiseReport

WARM_UP = 5  # first steps that are left alone: memory grows, kernels are searched (a guess)
COMPARED = 7  # pairs of a plain and a measured step whose medians give the price of measuring (a guess)
OVERHEAD = 0.02  # of the training's time
RESOLUTION = 1e-9  # seconds, of the clock
AIM = 0.6  # of the overhead: among plain steps a measured one is colder, and dearer by up to a half (MLP at batch 32)


class NoiseMonitor:
    """Measures the gradient noise scale B_simple = tr(Sigma) / |G|^2 of a model while somebody else trains it.

    Args:
        model: the module whose `forward` the loop calls, with the examples along the first dimension of its first
            tensor (a sequence-first batch is taken for one of positions); DistributedDataParallel is seen through.
        every: steps from one measurement to the next; default: chosen, see above.
        source: "examples", "parts", "micro-batches", "replicas"; default: the cheapest that works (`sources.py`).
        optimizer: gives the learning rate of each measurement, the parameter groups, and the second moments for
            `proxies`.
        data_size: examples in the training set: then G is the training set's own gradient, and sampling without
            replacement is accounted for. None: as if it had no end.
        scaler: the `torch.amp.GradScaler` in use; its scale is divided out. `step` comes before `unscale_`.
        proxies: also in the metrics of Adam and of signs; takes an optimizer, and the source "parts".
        before_clipping: copy gradients as the backward pass leaves them, for a framework that only calls after it has
            clipped or unscaled them; in a single process.
        overhead: most of the training's time that measuring may take.
        clock: returns seconds.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int | None = None,
        source: str | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        data_size: int | None = None,
        scaler: Any = None,
        proxies: bool = False,
        before_clipping: bool = False,
        overhead: float = OVERHEAD,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if every is not None and (not isinstance(every, int) or every < 1):
            raise UsageError(f"expected `every` in steps from 1 up, got {every!r}: write every=100, or leave it out")
        if not overhead > 0:
            raise UsageError(
                f"expected `overhead` as a positive share of the time, got {overhead!r}: write overhead=0.02"
            )
        if proxies and optimizer is None:
            raise UsageError("expected an optimizer for proxies, got none: write NoiseMonitor(model, optimizer=...)")
        self.model, self.group = unwrapped(model), data_parallel_group(model)
        if before_clipping and self.group is not None:
            raise UsageError(
                "expected gradients that are not clipped before `step` under data parallelism, got before_clipping: "
                "turn clipping off in the framework (Transformers: max_grad_norm=0)"
            )
        self.every, self.overhead, self._copying = every, overhead, before_clipping
        self.optimizer, self.scaler, self._clock = optimizer, scaler, clock
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        own = proxies_of(optimizer, trainable) if proxies and optimizer is not None else None
        self._candidates = Candidates(self.model, self.group, source, own)
        self._look = MicroBatches(self.model)
        self._source: Source | None = None
        self._passes, self._compares = 1, False
        self._trained, self._since = self._trainable(), 0  # step since when these are trained
        self._buckets: Buckets | None = None
        self._readings = Readings(data_size)
        self.steps = self._examples = self._attempts = 0
        # what the coming steps are for; after the last of them, one is measured every so many
        self._compared = ["plain", "measured"] * COMPARED if every is None else []
        self._planned = deque([*["left alone"] * WARM_UP, "look", "first", *self._compared])
        self._kind, self._due, self._why_not = "", 1.0, ""
        self._seconds: dict[str, list[float]] = {"plain": [], "measured": []}
        self._began = 0.0
        self._next()

    # --- in the loop ---

    def step(
        self, loss: torch.Tensor | float | None = None, *, examples: int | None = None, counts: Counts = None
    ) -> None:
        """A step's gradient is complete: call after its last backward pass, before clipping and `optimizer.step`.

        Args:
            loss: of the (last) batch: recorded beside the norms, and looked at, if it has a graph, for a comparison of
                examples.
            examples: in this step, of all processes; default: those of the measured steps. Only dates measurements.
            counts: units that the loss averages over, where its parts are not equal: counted tokens of each example,
                or of each micro-batch.
        """
        self.steps += 1
        if examples is not None:
            self._examples += examples
        if self.steps >= self._due:
            self._finish(loss, counts, examples or 0)
            self._next()

    def remove(self) -> None:
        """Take every hook out of the model; what was measured stays. (A communication hook cannot be taken out.)"""
        self._look.disarm()
        if self._source is not None:
            self._source.disarm()
        self._due = math.inf

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def communication_hook(self, inner: Hook | None = None) -> Hook:
        """For `ddp.register_comm_hook(None, ...)`: norms per bucket instead of per parameter; cheaper, and no layers.

        `inner`: the hook that would have been there otherwise; default: torch's averaging one.
        """
        if self.group is None:
            raise UsageError("expected data-parallel processes for a communication hook, got one: leave it out")
        self._buckets = Buckets(self.model, self.group)
        return self._buckets.hook_around(inner)

    def report(self, *, precision: float = 0.2, last: int | None = None) -> NoiseReport:
        """The noise scale over what was measured so far (the last so many measurements), with its interval.

        Raises CannotAnswer where nothing could be measured: a sentence says why. Waits for the device.
        """
        if self._compares:
            raise UnsupportedTask(
                "expected a loss that is a mean over examples, got one that compares the examples of a batch with each "
                "other (a contrastive loss): it has no gradient noise scale in examples, and nothing was measured"
            )
        if self._source is None or not self._readings.count:
            raise CannotAnswer(self._why_nothing())
        return self._readings.report(
            names=self._source.names,
            groups=self._groups(),
            source=self._source.name,
            every=self.every or 0,
            overhead=self._overhead(),
            steps=self.steps,
            precision=precision,
            last=last,
            notes=tuple(self._notes()),
        )

    # --- what each step is for ---

    def _next(self) -> None:
        """Decide what the coming step is for, and put its hooks in; nothing after `remove`."""
        if math.isinf(self._due):
            return
        if self._planned:
            self._kind, gap = self._planned.popleft(), 1
        elif self._kind == "waited for":
            self._kind, gap = "measured", 1
        else:
            gap = max(self.every or 1, self._worked_off() - self.steps)
            self._kind = "measured" if gap == 1 else "waited for"
        self._due = self.steps + max(1, gap - 1)
        self._began = self._now() if self.every is None and self._kind in self._seconds else 0.0
        if self._kind == "look":
            self._look.arm()
        elif self._kind in ("first", "measured") and self._source is not None:
            if self._readings.full:
                self._readings.thin()
                self.every = 2 * (self.every or 1)
            if self._trainable() != self._trained:
                self._begin_again()
            self._source.copying = self._copying
            self._source.arm()

    def _trainable(self) -> list[bool]:
        return [p.requires_grad for p in self.model.parameters()]

    def _begin_again(self) -> None:
        """Parameters were frozen or thawed: what was measured is of another gradient, and is dropped."""
        self._trained, self._since = self._trainable(), self.steps
        self._readings = Readings(self._readings.data_size)
        self._kind = "first"
        self._source = self._buckets or self._candidates.first(self._passes)

    def _finish(self, loss: torch.Tensor | float | None, counts: Counts, examples: int) -> None:
        """Take from the step that just ended what it was for."""
        if self._kind == "look":
            self._passes = self._look.backward_passes()
            self._look.disarm()
            try:
                self._source = self._buckets or self._candidates.first(self._passes)
            except UnsupportedTask:
                self.remove()
                raise
        elif self._kind in ("first", "measured"):
            self._measure(loss, counts, examples)
        if self.every is None and self._kind in self._seconds and "first" not in self._planned:
            self._seconds[self._kind].append(self._now() - self._began)
            if not self._planned:
                self.every = self._chosen()

    def _measure(self, loss: torch.Tensor | float | None, counts: Counts, examples: int) -> None:
        """Read the source; where the first measured step shows nothing, try the next source."""
        source = self._source
        if source is None:
            return
        self._attempts += 1
        m = source.examples[-1] if source.examples else 0
        if self._kind == "first" and isinstance(loss, torch.Tensor) and compares_examples(loss, m):
            self.remove()
            self._compares = True  # the training goes on; `report` refuses
            return
        reading = source.read(counts)
        if reading is not None:
            scale = float(self.scaler.get_scale()) if self.scaler is not None else 1.0
            replicas = dist.get_world_size(self.group) if self.group is not None else 1
            before = self._examples - examples if self._examples else (self.steps - 1) * sum(source.examples) * replicas
            self._readings.add(self.steps - 1, before, reading, loss, self._learning_rate(), scale)
            return
        self._why_not = source.why_not
        following = self._candidates.after(source)
        if following is None and self._readings.count:
            return  # it has worked before
        if following is None:
            self._source = None
            self.remove()
        elif following is not source:  # another source has another price
            self._source, self._planned = following, deque(["first", *self._compared])
            self._seconds = {"plain": [], "measured": []}
            self.every = None if self._compared else self.every

    def _chosen(self) -> int:
        """Steps between measurements, from the medians of the compared steps; the same in all processes."""
        every = max(1, math.ceil(self._price() / (AIM * self.overhead)))
        if self.group is not None:
            device = next(self.model.parameters()).device
            together = torch.tensor([every], device=device)
            dist.all_reduce(together, op=dist.ReduceOp.MAX, group=self.group)
            every = int(together)
        return every

    def _price(self) -> float:
        """Of measuring one step, in plain steps."""
        plain, measured = (statistics.median(self._seconds[kind]) for kind in ("plain", "measured"))
        return max(0.0, measured - plain) / max(plain, RESOLUTION)

    def _worked_off(self) -> int:
        """The first step that may be measured: so many measurements are then within the overhead. 0 with `every=`."""
        return (self.every or 1) * self._attempts if self._seconds["measured"] else 0

    def _overhead(self) -> float | None:
        """What measuring every so many steps costs, as a share; None where it was not compared."""
        if not self._seconds["measured"] or self.every is None:
            return None
        return self._price() / self.every

    # --- beside the steps ---

    def _now(self) -> float:
        """The clock; while steps are compared the device is waited for."""
        device = next(self.model.parameters()).device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return self._clock()

    def _learning_rate(self) -> float | None:
        return None if self.optimizer is None else float(self.optimizer.param_groups[0]["lr"])

    def _groups(self) -> dict[str, list[str]]:
        """Names of the parameters in each of the optimiser's groups, where there are several."""
        groups = self.optimizer.param_groups if self.optimizer is not None else []
        if len(groups) < 2:
            return {}
        names = {id(p): n for n, p in self.model.named_parameters()}
        return {f"group {i}": [names[id(p)] for p in g["params"] if id(p) in names] for i, g in enumerate(groups)}

    def _notes(self) -> list[str]:
        """What a reader of the numbers must know."""
        notes = [f"Source {name!r} was not used: {why}." for name, why in self._candidates.refused.items()]
        if isinstance(self._source, Halves) and self._source.penalised:
            notes.append(
                "The loss holds something that does not come through the model's output (a penalty on the weights?): "
                "it is taken to be the same for all examples."
            )
        if self._since:
            notes.append(f"Parameters were frozen or thawed: measured from step {self._since} on.")
        norms = batch_norms(self.model)
        if norms:
            notes.append(
                f"Batch norm ({norms[0]}) mixes the examples of a batch: parts see its statistics, not their own, and "
                "the scale holds for micro-batches of the size that was measured."
            )
        return notes

    def _why_nothing(self) -> str:
        """One sentence: what was expected, and what to do."""
        reasons = "; ".join(f"{name}: {why}" for name, why in self._candidates.refused.items())
        if reasons:
            return (
                f"expected a source of squared norms that works for this model, got none ({reasons}): accumulate "
                "gradients over two micro-batches, which always works"
            )
        why = f" ({self._why_not})" if self._why_not else ""
        return (
            f"expected measured steps, got none in {self.steps}{why}: call `step` after each step's last backward "
            "pass, and train on"
        )
