"""How does a batch grow in Lightning's Trainer? `accumulate_grad_batches` is set anew for each optimiser step.

    growing = GrowingBatchCallback("with the noise scale", noise=noise, most=4096)     # of integrations.lightning
    trainer = lightning.Trainer(callbacks=[noise, growing], accumulate_grad_batches=4, max_epochs=10)
    trainer.fit(...)
    print(*growing.controller.changes, sep="\\n")

The first batch size is the loader's micro-batch x `accumulate_grad_batches` x replicas; the micro-batch stays.

*Where a step ends.* Trainer steps where the epoch's number of batches is a multiple of `accumulate_grad_batches`: after
a change in mid-epoch that would come too early, and the loss, divided by `accumulate_grad_batches`, too small. Trainer
is therefore given a number whose remainders count from the step's first batch. It steps at an epoch's end, whatever has
been accumulated: that last step is divided by the batches that are left, and keeps its learning rate. So a batch is at
most an epoch. (Where a loader has no length, nobody knows what is left: the epoch's last gradient is then too small, as
it is without us.)

*Learning rate.* The schedule of `configure_optimizers` with interval "step" is made for steps of the first batch size
(`trainer.estimated_stepping_batches` is that) and moved by the controller, in examples; Trainer only stores it. One
that is moved every epoch is right as it is where the learning rate is held; else it would undo the scale: refused.
`ReduceLROnPlateau` stays with Trainer. A run ends with its epochs or, with `examples=`, with its examples.

*Checkpoints* hold the controller: from the end of an epoch, or within one where the loader can be resumed, training
goes on bit for bit. Not so what a NoiseCallback has measured: it begins again, the rule's average does not. Batches of
a step that was not complete are lost with their gradients, and count for nothing: the step begins again.

Each change is logged where Lightning logs, with its reason, and to the Trainer's loggers as `batch_size`.
"""

from __future__ import annotations

import copy
import logging
import sys
from typing import Any

from batchscope.errors import UnsupportedTask, UsageError
from batchscope.integrations.callback import HoldsMonitor
from batchscope.remedies.controller import BatchSizeController
from batchscope.remedies.growing import OnPlateau, Rule, WithNoiseScale
from batchscope.training.batches import examples_in

THEIRS = ("GradientAccumulationScheduler", "StochasticWeightAveraging")  # callbacks that set the accumulation too
NEVER = sys.maxsize  # a schedule's `frequency`, in steps


class MicroBatches(int):
    """So many micro-batches, whose remainders are counted from the step's first: `(first + k) % this` is `k % this`.

    Trainer asks for two, in an epoch: does (batches before this one) % this == 0 begin a step, and (with it) end one?
    """

    first: int

    def __new__(cls, number: int, first: int = 0) -> MicroBatches:
        made = super().__new__(cls, number)
        made.first = first
        return made

    def __rmod__(self, batches: int, /) -> int:
        return (batches - self.first) % int(self)


class GrowingEvents:
    """The hooks of Lightning's `Callback` that a growing batch needs to hear.

    Attributes:
        controller: of the run that is on, or of the last one; None before the first.
    """

    def __init__(
        self,
        rule: Rule | str,
        noise: HoldsMonitor | None,
        monitor: str | None,
        most: int | None,
        scale: str,
        micro_batch_size: int | None,
        examples: int | None,
    ) -> None:
        self.rule, self.noise, self.monitor, self.most, self.scale = rule, noise, monitor, most, scale
        self.micro_batch_size, self.examples = micro_batch_size, examples
        self.controller: BatchSizeController | None = None
        self._saved: dict[str, Any] = {}  # from a checkpoint, until training starts
        self._own = 1  # accumulation as Trainer was made with it
        self._loss: float | None = None  # looked at since the last step
        self._steps = self._passes = self._used = 0  # Trainer's at the step's beginning; its micro-batches and examples
        _check_heard(rule, noise, monitor)

    # --- a run ---

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        _check(trainer, pl_module, self.noise)
        self._own, self._passes, self._used, self._loss = trainer.accumulate_grad_batches, 0, 0, None
        micro, replicas, batches = self._micro(trainer), replicas_of(trainer), trainer.num_training_batches
        first, most = self._own, self.most
        if batches != float("inf"):  # Trainer accumulates no longer than an epoch
            first = min(first, batches)
            most = min(batches * micro * replicas, sys.maxsize if most is None else most)
        self.controller = BatchSizeController(
            trainer.optimizers[0],
            batch_size=micro * first * replicas,
            micro_batch_size=micro,
            most=most,
            rule=copy.deepcopy(self.rule),  # each run begins without what another has heard
            scale=self.scale,
            scheduler=_schedule(trainer, self.scale),
            replicas=replicas,
        )
        if self._saved:
            self.controller.load_state_dict(self._saved["controller"])
            self._loss = self._saved["loss"]
            self._resume(trainer, self._saved["passes"] > 0)
            self._saved = {}

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._passes = self._used = 0  # a step that the module broke off

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._passes == 0:
            self._steps = trainer.global_step
            self._begin(trainer, batch_idx)
        self._passes += 1
        self._used += self._examples_in(batch) * replicas_of(trainer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        controller = self.controller
        if controller is None or trainer.global_step == self._steps:
            return
        if self._passes != trainer.accumulate_grad_batches and not trainer.is_last_batch:
            raise UsageError(
                f"expected {int(trainer.accumulate_grad_batches)} micro-batches in an optimizer step, got "
                f"{self._passes}: leave out what else sets accumulate_grad_batches"
            )
        scale = self.noise.monitor if self.noise is not None else None
        changed = controller.step(loss=self._loss, noise_scale=scale, examples=self._used)
        self._loss, self._passes, self._used = None, 0, 0
        self._begin(trainer, batch_idx + 1)
        if changed:
            self._tell(trainer, controller)
        if self.examples is not None and controller.examples >= self.examples:
            trainer.should_stop = True

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if self.monitor is None or trainer.sanity_checking or self.controller is None:
            return
        if self.monitor not in trainer.callback_metrics:
            names = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise UsageError(
                f"expected a metric {self.monitor!r} that validation logs, got {names}: log it, or name another"
            )
        self._loss = float(trainer.callback_metrics[self.monitor])

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.accumulate_grad_batches = self._own

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if self.controller is not None:
            trainer.accumulate_grad_batches = self._own

    # --- checkpoints ---

    def state_dict(self) -> dict[str, Any]:
        if self.controller is None:
            return self._saved
        return {"controller": self.controller.state_dict(), "loss": self._loss, "passes": self._passes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._saved = state

    # --- parts of it ---

    def _begin(self, trainer: Any, first: int) -> None:
        """The next step's micro-batches, from the epoch's batch of this index on."""
        passes = self.controller.accumulation if self.controller is not None else self._own
        left = trainer.num_training_batches - first
        trainer.accumulate_grad_batches = MicroBatches(min(passes, left) if left > 0 else passes, first)

    def _resume(self, trainer: Any, within: bool) -> None:
        """What Trainer asks before the first batch: was the checkpoint's last batch a step's, and an epoch's?

        By the first it counts its loggers' steps. From the second it concludes whether the loader had to be resumable,
        as if all steps had been alike: `ceil(batches / accumulation)` steps in an epoch.
        """
        batch = trainer.fit_loop.batch_idx + 1
        whole = batch in (0, trainer.num_training_batches)
        number = trainer.num_training_batches if whole else 1 + within
        trainer.accumulate_grad_batches = MicroBatches(number, batch - within)

    def _micro(self, trainer: Any) -> int:
        """Examples of a micro-batch, from the loader where the user does not say."""
        if self.micro_batch_size is not None:
            return self.micro_batch_size
        loader = trainer.train_dataloader
        size = getattr(loader, "batch_size", None) or getattr(
            getattr(loader, "batch_sampler", None), "batch_size", None
        )
        if size is None:
            raise UsageError(
                f"expected a train loader with a batch_size, got {type(loader).__name__} without one: write "
                "GrowingBatchCallback(..., micro_batch_size=32)"
            )
        return size

    def _examples_in(self, batch: Any) -> int:
        if self.micro_batch_size is not None:
            return self.micro_batch_size
        micro = self.controller.micro_batch_size if self.controller is not None else sys.maxsize
        found = examples_in(batch)
        if found > micro:
            raise UsageError(
                f"expected micro-batches of up to {micro} examples, the loader's batch_size, got one of {found}: write "
                "what counts as its examples, GrowingBatchCallback(..., micro_batch_size=32)"
            )
        return found

    def _tell(self, trainer: Any, controller: BatchSizeController) -> None:
        if trainer.is_global_zero:
            logging.getLogger(type(trainer).__module__).info("%s", controller.changes[-1])
        for logger in trainer.loggers:
            logger.log_metrics({"batch_size": controller.batch_size}, step=trainer.global_step)


def replicas_of(trainer: Any) -> int:
    """Processes that work on batches of their own at the same time."""
    return (trainer.distributed_sampler_kwargs or {}).get("num_replicas", 1)


# --- what is refused ---


def _check_heard(rule: Rule | str, noise: HoldsMonitor | None, monitor: str | None) -> None:
    """Raise UsageError where the rule would never hear what it decides by."""
    name = rule if isinstance(rule, str) else rule.name
    if name == WithNoiseScale.name and noise is None:
        raise UsageError(
            "expected the NoiseCallback that measures the noise scale, got none: write noise=NoiseCallback(), and give "
            "Trainer both"
        )
    if name == OnPlateau.name and monitor is None:
        raise UsageError('expected the name of a metric that validation logs, got none: write monitor="val_loss"')


def _check(trainer: Any, pl_module: Any, noise: HoldsMonitor | None) -> None:
    """Refuse a Trainer whose steps cannot be set from here."""
    if not pl_module.automatic_optimization:
        raise UnsupportedTask(
            "expected automatic optimization, got manual: leave GrowingBatchCallback out and call a "
            "BatchSizeController in training_step"
        )
    if trainer.strategy.handles_gradient_accumulation:
        raise UnsupportedTask(
            f"expected a strategy that leaves accumulation to Trainer, got {type(trainer.strategy).__name__}: use ddp "
            "or fsdp"
        )
    others = [type(c).__name__ for c in trainer.callbacks if {t.__name__ for t in type(c).__mro__} & {*THEIRS}]
    if others:
        raise UsageError(
            f"expected nobody else who sets accumulate_grad_batches, got {others[0]}: leave one of the two out"
        )
    if noise is not None and noise not in trainer.callbacks:
        raise UsageError(
            "expected the NoiseCallback among the Trainer's callbacks, got one that hears nothing: give Trainer both"
        )


def _schedule(trainer: Any, scale: str) -> Any:
    """The scheduler that is moved at every step, which Trainer leaves alone from now on; None where there is none."""
    taken = []
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau:
            continue
        if config.interval == "step" and config.frequency in (1, NEVER):
            taken.append(config)
        elif scale != "held":
            raise UsageError(
                f"expected a schedule with interval 'step' and frequency 1, got {config.interval!r} and "
                f'{config.frequency}: write {{"scheduler": ..., "interval": "step"}}, or scale="held"'
            )
    if len(taken) > 1:
        raise UsageError(f"expected at most one schedule, got {len(taken)}: chain them in one, as SequentialLR does")
    if taken and trainer.max_steps != -1:
        raise UsageError(
            f"expected a run that ends with its epochs or examples, as its schedule does, got max_steps="
            f"{trainer.max_steps}, of batches that grow: write max_epochs, or max_epochs=-1 and "
            "GrowingBatchCallback(..., examples=1_000_000)"
        )
    for config in taken:
        config.frequency = NEVER
    return taken[0].scheduler if taken else None
