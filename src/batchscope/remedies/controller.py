"""How does the batch grow in somebody's own loop? One object says how large it is, and moves what has to move with it.

    controller = bs.BatchSizeController(optimizer, batch_size=64, micro_batch_size=64, most=4096,
                                        rule="with the noise scale", scheduler=scheduler)
    while ...:
        for _ in range(controller.accumulation):              # micro-batches of controller.micro_batch_size
            x, y = next(batches)
            (loss_of(model(x), y) / controller.accumulation).backward()
        monitor.step()                                        # a bs.NoiseMonitor
        optimizer.step()
        optimizer.zero_grad()
        controller.step(noise_scale=monitor)                  # instead of scheduler.step()

Three things move together, at the end of a step:

    accumulation     batch size = micro-batch x accumulation x replicas; the mean loss of a micro-batch is divided by
                     `accumulation`, so that the gradient is the big batch's up to rounding (without batch norm)
    progress         the schedule was made for steps of B_0 examples: after E examples it stands at its step
                     floor(E / B_0), whatever the batch sizes on the way, and ends with the same number of examples
    learning rate    schedule(E / B_0) * f(B / B_0), f linear, the square root or 1

The schedule is stepped with the unscaled learning rate in place, so that schedules of every kind (recursive ones too)
see what they would have seen, and `f` stands beside them. torch's SGD keeps the learning rate out of its momentum: a
change needs no correction (Goyal et al. 2017, remark 2). What else counts in steps stays as it is: Adam's betas,
averages of weights, batch norm's momentum (and batch norm sees the micro-batches).

Restored from `state_dict`, beside those of model, optimiser and schedule, training goes on bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.optim.lr_scheduler import ReduceLROnPlateau

from batchscope.errors import CannotAnswer, UsageError
from batchscope.measure.monitor import NoiseMonitor
from batchscope.records import MicroBatch, NoiseReport, NoiseScale, ProfileResult
from batchscope.remedies.growing import BY_NAME, SCALES, PowerOfSteps, Rule, Seen, fitted, rate_factor
from batchscope.remedies.scaling import put_rates

EVERY = 50  # steps from one look at a monitor to the next (a guess; Naganuma et al. 2026: 100)
LAST = 64  # measurements of a monitor that a look averages (a guess)


@dataclass(frozen=True)
class Change:
    """One change of the batch size."""

    step: int  # optimiser steps made before it
    examples: int  # used before it
    before: int  # batch size, examples, global
    after: int
    accumulation: int  # from now on
    learning_rate: float  # of the next step, first parameter group
    reason: str

    def __str__(self) -> str:
        return (
            f"step {self.step:,} ({self.examples:,} examples): batch size {self.before:,} -> {self.after:,}, "
            f"accumulation {self.accumulation}, lr {self.learning_rate:.4g}: {self.reason}"
        )


class BatchSizeController:
    """Grows the global batch size during training by a rule; accumulation, learning rate and schedule move with it.

    Args:
        optimizer: whose learning rates are those of the first batch size.
        batch_size: global, to begin with.
        micro_batch_size: examples of one pass on one replica, always; batch sizes are multiples of it (times replicas).
        largest_micro_batch: or: the most that a pass on one replica may have. Passes grow with the batch up to it, and
            only then are there several. A number, or the answer of `bs.largest_micro_batch` or `bs.profile`, which
            bounds the micro-batch by the device's memory. Neither: one pass, however large the batch.
        most: the largest batch size, global; None: the rule alone decides. (No memory limit: that is of micro-batches.)
        rule: "on plateau", "with the noise scale", or a rule with parameters from `batchscope.remedies.growing`:
            OnPlateau, WithNoiseScale, PowerOfSteps, or one of your own.
        scale: of the learning rate with the batch size: "linear", "square root" or "held".
        scheduler: stepped here, in examples; made for steps of `batch_size` examples. None: there is none, or it is
            stepped elsewhere (once an epoch, or by a metric); what others do to the learning rate is kept.
        replicas: processes that share a batch; the same on all of them. Where torch.distributed is initialised, what
            the rule hears is that of rank 0 (of `group`), so that all decide alike.

    Raises UsageError for what does not fit together.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        batch_size: int,
        rule: Rule | str,
        micro_batch_size: int | None = None,
        largest_micro_batch: int | MicroBatch | ProfileResult | None = None,
        most: int | None = None,
        scale: str = "square root",
        scheduler: Any = None,
        replicas: int = 1,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.optimizer, self.scheduler, self.scale, self.most = optimizer, scheduler, scale, most
        self.replicas, self.group, self.rule = replicas, group, _rule(rule)
        self._micro, self._ceiling = micro_batch_size, _ceiling(largest_micro_batch)
        self.batch_size = self.first_batch_size = batch_size
        self.steps = self.examples = 0
        self.changes: list[Change] = []
        self._check()
        self._scheduled = 0  # steps that the schedule has made
        self._unscaled: list[float] = []  # learning rates as the schedule has them
        self._set: list[float] = []  # and as they were put into the optimiser
        self._hear_rates(1.0)

    # --- what the next step takes ---

    @property
    def accumulation(self) -> int:
        """Micro-batches of the next step, on each replica."""
        part = self.batch_size // self.replicas
        if self._micro is not None:
            return part // self._micro
        if self._ceiling is None:
            return 1
        passes = math.ceil(part / self._ceiling)
        while part % passes:
            passes += 1
        return passes

    @property
    def micro_batch_size(self) -> int:
        """Examples of each of them."""
        return self.batch_size // self.replicas // self.accumulation

    # --- in the loop ---

    def step(
        self,
        *,
        loss: torch.Tensor | float | None = None,
        noise_scale: float | NoiseScale | NoiseReport | NoiseMonitor | None = None,
        examples: int | None = None,
    ) -> bool:
        """An optimiser step has been made; returns whether the batch size is another from now on.

        Args:
            loss: for "on plateau": what it is to judge by, at steps where it was looked at; else None.
            noise_scale: B_simple in examples: a number from wherever, a record, or a monitor, which is asked every
                EVERY steps for its last LAST measurements. With replicas: of all of them.
            examples: that the step took, of all replicas; default: the batch size.

        With replicas every rank calls this alike: `loss` and `noise_scale` are given on all ranks or on none.
        """
        self.steps += 1
        self.examples += self.batch_size if examples is None else examples
        before = self.batch_size
        wanted = self.rule.wanted(self._seen(loss, noise_scale))
        if wanted is not None:
            size = self._fitted(wanted[0])
            if size > before or (size < before and self.rule.may_shrink):
                self.batch_size = size
        self._move(before)
        if wanted is None or self.batch_size == before:
            return False
        after, rate = self.batch_size, self._set[0]
        self.changes.append(Change(self.steps, self.examples, before, after, self.accumulation, rate, wanted[1]))
        return True

    def _seen(self, loss: Any, noise_scale: Any) -> Seen:
        """What the rule is told: the same on all ranks."""
        if isinstance(noise_scale, NoiseMonitor):
            noise_scale = _asked(noise_scale) if self.steps % EVERY == 0 else None
            # a look is due on all ranks or on none, also where this one has nothing to say yet
            given = loss is not None or self.steps % EVERY == 0
        else:
            given = loss is not None or noise_scale is not None
        scale, bound = _number(noise_scale)
        heard = [math.nan if loss is None else float(loss.detach() if isinstance(loss, torch.Tensor) else loss)]
        heard += [scale, float(bound)]
        if given:
            heard = self._agreed(heard)
        unit = self.replicas * (self._micro or 1)
        return Seen(self.steps, self.batch_size, self.first_batch_size, unit, heard[0], heard[1], heard[2] > 0)

    def _agreed(self, heard: list[float]) -> list[float]:
        """What rank 0 has heard, on every rank."""
        if self.replicas == 1 or not (dist.is_available() and dist.is_initialized()):
            return heard
        card = dist.get_backend(self.group) == "nccl"
        device = self.optimizer.param_groups[0]["params"][0].device if card else torch.device("cpu")
        told = torch.tensor(heard, dtype=torch.float64, device=device)
        dist.broadcast(told, src=0 if self.group is None else dist.get_global_rank(self.group, 0), group=self.group)
        return told.tolist()

    def _fitted(self, wanted: float) -> int:
        """The batch size nearest to what is wanted that can be cut evenly."""
        if self._micro is not None or self._ceiling is None:
            return fitted(wanted, unit=self.replicas * (self._micro or 1), most=self.most)
        part = fitted(wanted, unit=self.replicas, most=self.most) // self.replicas
        passes = math.ceil(part / self._ceiling)
        most = None if self.most is None else self.most // self.replicas
        return fitted(part, unit=passes, most=most) * self.replicas

    # --- learning rate and schedule ---

    def _move(self, before: int) -> None:
        """Bring the schedule to where the examples are, and the learning rates to the batch size."""
        due = self.examples // self.first_batch_size - self._scheduled if self.scheduler is not None else 0
        if due <= 0 and self.batch_size == before:
            return
        self._hear_rates(self._factor(before))
        if due > 0:
            self._put(self._unscaled)
            for _ in range(due):
                self.scheduler.step()
            self._scheduled += due
            self._unscaled = self._rates()
        factor = self._factor(self.batch_size)
        self._put([rate * factor for rate in self._unscaled])

    def _factor(self, size: int) -> float:
        return rate_factor(self.scale, size / self.first_batch_size)

    def _hear_rates(self, factor: float) -> None:
        """Unscaled learning rates; where somebody else has changed one since it was put in, from what is there now."""
        rates = self._rates()
        known = [*self._set, *[math.nan] * (len(rates) - len(self._set))]
        unscaled = [*self._unscaled, *[math.nan] * (len(rates) - len(self._unscaled))]
        self._unscaled = [
            own if now == put else now / factor for now, put, own in zip(rates, known, unscaled, strict=True)
        ]
        self._set = rates

    def _rates(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def _put(self, rates: Sequence[float]) -> None:
        put_rates(self.optimizer, rates)
        self._set = self._rates()

    # --- checkpoints ---

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on, in plain numbers; optimiser and schedule have their own."""
        self._hear_rates(self._factor(self.batch_size))
        return {
            "rule": {"name": self.rule.name, **self.rule.state_dict()},
            "scale": self.scale,
            "batch_size": self.batch_size,
            "first_batch_size": self.first_batch_size,
            "steps": self.steps,
            "examples": self.examples,
            "scheduled": self._scheduled,
            "unscaled": list(self._unscaled),
            "set": list(self._set),
            "changes": [asdict(change) for change in self.changes],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave; before or after the optimiser and the schedule are loaded.

        The number of replicas, the micro-batch and `most` may be others than they were. Raises UsageError, with
        everything as it was, for another rule or scale, and for a batch size that these micro-batches cannot make up.
        """
        for what, own in (("rule", self.rule.name), ("scale", self.scale)):
            saved = state["rule"]["name"] if what == "rule" else state["scale"]
            if saved != own:
                raise UsageError(
                    f"expected a controller with the {what} {saved!r} that was saved, got {own!r}: use that"
                )
        sizes = self.batch_size, self.first_batch_size
        self.batch_size, self.first_batch_size = state["batch_size"], state["first_batch_size"]
        try:
            self._check_cut()
        except UsageError:
            self.batch_size, self.first_batch_size = sizes
            raise
        self.rule.load_state_dict(state["rule"])
        self.steps, self.examples, self._scheduled = state["steps"], state["examples"], state["scheduled"]
        self._put(state["set"])
        self._unscaled = list(state["unscaled"])
        self.changes = [Change(**change) for change in state["changes"]]

    # --- what is refused ---

    def _check(self) -> None:
        """Raise UsageError for arguments that do not fit together."""
        for name, value in (
            ("batch_size", self.batch_size),
            ("replicas", self.replicas),
            ("micro_batch_size", 1 if self._micro is None else self._micro),
            ("largest_micro_batch", 1 if self._ceiling is None else self._ceiling),
            ("most", self.batch_size if self.most is None else self.most),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UsageError(f"expected {name} as a whole number from 1 up, got {value!r}: write {name}=64")
        if self._micro is not None and self._ceiling is not None:
            raise UsageError(
                "expected micro_batch_size, which fixes it, or largest_micro_batch, up to which it grows, got both: "
                "leave one out"
            )
        if self.scale not in SCALES:
            raise UsageError(f"expected a scale of {', '.join(SCALES)}, got {self.scale!r}: choose one of these")
        if isinstance(self.scheduler, ReduceLROnPlateau):
            raise UsageError(
                "expected a scheduler that is stepped once per optimiser step, got ReduceLROnPlateau: step it yourself "
                'and leave it out here, or write rule="on plateau"'
            )
        if self.most is not None and self.most < self.batch_size:
            raise UsageError(
                f"expected `most` of at least the batch size ({self.batch_size}), got {self.most}: leave it out"
            )
        self._check_cut()
        ranks = dist.get_world_size(self.group) if dist.is_available() and dist.is_initialized() else self.replicas
        if self.replicas not in (1, ranks):
            raise UsageError(
                f"expected as many replicas as there are ranks in the group ({ranks}), got {self.replicas}: write "
                f"replicas={ranks}, or give the group of those that share a batch"
            )

    def _check_cut(self) -> None:
        unit = self.replicas * (self._micro or 1)
        if self.batch_size % unit:
            raise UsageError(
                f"expected a batch size that is a multiple of micro-batch x replicas ({self._micro or 1} x "
                f"{self.replicas} = {unit}), got {self.batch_size}: write {fitted(self.batch_size, unit=unit)}"
            )


def _rule(rule: Rule | str) -> Rule:
    if not isinstance(rule, str):
        return rule
    if rule not in BY_NAME:
        names = ", ".join(map(repr, BY_NAME))
        raise UsageError(
            f"expected a rule ({names}, or one from batchscope.remedies.growing), got {rule!r}: "
            + (f"write {PowerOfSteps.__name__}(t0=1000)" if rule == PowerOfSteps.name else "choose one of these")
        )
    return BY_NAME[rule]()


def _ceiling(given: int | MicroBatch | ProfileResult | None) -> int | None:
    """The largest micro-batch, from whoever measured it."""
    if isinstance(given, MicroBatch):
        return given.largest_micro_batch_size
    if not isinstance(given, ProfileResult):
        return given
    found = given.memory.largest_micro_batch_size if given.memory is not None else None
    if found is None:
        raise UsageError("expected a profile with the largest micro-batch that fits, got one without: give a number")
    return found


def _asked(monitor: NoiseMonitor) -> NoiseScale | None:
    """The noise scale over a monitor's last measurements; None where it has none yet."""
    try:
        return monitor.report(last=LAST).scale
    except CannotAnswer:
        return None


def _number(noise_scale: float | NoiseScale | NoiseReport | None) -> tuple[float, bool]:
    """(B_simple, whether it is a lower bound); nan where nothing is known."""
    if isinstance(noise_scale, NoiseReport):
        noise_scale = noise_scale.scale
    if not isinstance(noise_scale, NoiseScale):
        return (math.nan if noise_scale is None else float(noise_scale)), False
    b = noise_scale.b_simple
    if noise_scale.outcome == "at_least":
        return (math.nan if b.low is None else b.low), True
    known = noise_scale.outcome == "resolved" and b.estimate is not None
    return (float(b.estimate) if known and b.estimate is not None else math.nan), False
