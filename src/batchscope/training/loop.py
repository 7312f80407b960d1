"""How is one trial trained? The whole loop, top to bottom: the first file to read.

    for every epoch:                            the order of examples follows from (seed, epoch) alone
        for every batch cut from that order:    the last one may be short, and is kept
            step                                zero, forward, backward, clip, step, schedule
            at each multiple of the cadence     evaluate, perhaps checkpoint, perhaps stop

Everything is counted in examples, so that trials at different batch sizes are evaluated and stopped alike. No
decision reads a clock. The loss is looked at only at evaluations: looking is a synchronisation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from batchscope.errors import BatchscopeError, CannotAnswer, UsageError
from batchscope.records import Engine, Evaluation, Goal, StopRule, TrialResult, TrialSpec
from batchscope.task import Batch, Task
from batchscope.training.batches import FixedBatches, fixed_subset, make_source, mapped
from batchscope.training.checkpoint import Checkpoint, Position
from batchscope.training.connection import is_of_connection
from batchscope.training.control import Controlled, MakeControl
from batchscope.training.device import is_out_of_memory
from batchscope.training.distributed import Replicas, refuse
from batchscope.training.engine import PLAIN
from batchscope.training.seeding import seed_everything, seed_rank
from batchscope.training.sharding import norm_of
from batchscope.training.step import (
    SharedStep,
    evaluate,
    make_model,
    make_shared_model,
    make_shared_step,
    make_step,
)
from batchscope.training.weights import Snapshot, Weights, on_host

Crossed = Callable[[Sequence[Evaluation], Goal], bool]
Watch = Callable[[torch.nn.Module, torch.optim.Optimizer], Callable[[Batch], None]]

TRAIN_SUBSET = 4096  # examples of the fixed subset that measures the training loss (at most the validation set's size)
DIVERGED_FACTOR = 10.0  # a training loss above this many times its initial value, at
DIVERGED_EVALUATIONS = 3  # so many evaluations running, counts as diverged (both guesses; non-finite counts at once)


class Evaluator:
    """Validation set, fixed training subset and test set of a task, ready on the device; shared by its trials."""

    def __init__(self, task: Task, device: torch.device) -> None:
        self.task = task
        self.valid = FixedBatches(task, task.valid, None, device)
        wanted = min(task.train_size, self.valid.size, TRAIN_SUBSET)
        self.train = FixedBatches(task, task.train, fixed_subset(task.train_size, wanted), device)
        self.test = FixedBatches(task, task.test, None, device) if task.test is not None else None


def train(
    task: Task,
    spec: TrialSpec,
    *,
    device: torch.device,
    evaluator: Evaluator | None = None,
    goal: Goal | None = None,
    crossed: Crossed | None = None,
    checkpoint: Checkpoint | None = None,
    on_evaluation: Callable[[Evaluation], None] | None = None,
    engine: Engine = PLAIN,
    watch: Watch | None = None,
    replicas: Replicas | None = None,
    start: Mapping[str, Any] | None = None,
    keep: Callable[[Weights], None] | None = None,
    control: MakeControl | None = None,
) -> TrialResult:
    """Train one trial to its end, from its checkpoint where there is one.

    Args:
        goal: what the outcome `reached` refers to; it ends the trial only where `spec.stop.goal` is set.
        crossed: (trace, goal) -> bool, whether the goal was crossed for good; needed where there is a goal.
        on_evaluation: called with every new line of the trace.
        engine: how steps are computed; the same for a trial's whole life, its checkpoints included.
        watch: (model, optimizer) -> what is called with each batch when its gradient is complete, before clipping. It
            must leave weights, gradients and generators as they are; with a graphed engine it is not called.
        replicas: this process among those that train the trial together; all of them call this, with the same spec.
            Rank 0 evaluates (all do where weights are sharded), writes the checkpoint and reports; the others get the
            same trace. Not with `watch`.
        start: the `state_dict` that the model begins with; None: as the task makes it from the seed. Distances are
            from where it begins.
        keep: called with the weights of a trial that did not fail, at its end, on rank 0; not with sharded weights.
        control: makes what decides on batch sizes and schedule during the trial; None: the arm's, and one step of the
            schedule for each of the optimiser's. Not with replicas, `watch` or a graphed engine.

    Returns: the outcome and the trace. An exception in the user's code, or a control that cannot go on, is the outcome
    `failed`, with its text; a lost connection to other replicas is no outcome, and is raised.
    """
    started = time.monotonic()
    position = Position()
    try:
        evaluator = evaluator or Evaluator(task, device)
        how = (engine, crossed, watch, replicas, start, keep is not None, control)
        trial = _Trial(task, spec, position, device, evaluator, *how)
        ended_by = trial.run(checkpoint, on_evaluation)
        found = trial.found() if keep is not None and trial.leads else None
        initial_norm, test, reason = norm_of_difference(trial.initial, None), trial.test(), ""
        if keep is not None and found is not None:
            keep(found)
    except Exception as error:
        decided = control is not None and isinstance(error, CannotAnswer)  # it cannot go on: a failed trial as any
        if (isinstance(error, BatchscopeError) and not decided) or (replicas is not None and is_of_connection(error)):
            raise
        ended_by, initial_norm, test = "failure", math.nan, None
        reason = "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {error}".split("\n")[0][:300]
    outcome = {"failure": "failed", "divergence": "diverged"}.get(ended_by, "not_reached")
    goal = goal or spec.stop.goal
    if outcome != "failed" and goal is not None and crossed is not None and crossed(position.trace, goal):
        outcome = "reached"
    return TrialResult(
        outcome=outcome,
        ended_by=ended_by,
        reason=reason,
        steps=position.step,
        examples=position.examples,
        trace=tuple(position.trace),
        initial_norm=initial_norm,
        test=test,
        seconds=time.monotonic() - started,
    )


class _Trial:
    """What a trial trains with, made from its seed; `run` is the loop itself."""

    def __init__(
        self,
        task: Task,
        spec: TrialSpec,
        position: Position,
        device: torch.device,
        evaluator: Evaluator,
        engine: Engine,
        crossed: Crossed | None,
        watch: Watch | None = None,
        replicas: Replicas | None = None,
        start: Mapping[str, Any] | None = None,
        keeps: bool = False,
        control: MakeControl | None = None,
    ) -> None:
        self.task, self.spec, self.position, self.evaluator, self.crossed = task, spec, position, evaluator, crossed
        self.replicas, self.leads, arm = replicas, replicas is None or replicas.leads, spec.arm
        self.keeps_best = keeps or evaluator.test is not None
        if replicas is not None:
            refuse(task, min(arm.batch_size, task.train_size), replicas.size, engine, watch is not None)
        if control is not None and (replicas is not None or watch is not None or engine.graphed):
            raise UsageError(
                f"remedy {arm.remedy!r}: expected one device and plain steps, as it decides during the trial, got "
                "several devices, a watch, or replayed steps: use --devices 1, or another remedy"
            )
        seed_everything(spec.seed)
        if replicas is None:
            self.model = make_model(task, device, engine)
        else:
            self.model = make_shared_model(task, device, engine, replicas)
        if start is not None:
            self.model.load_state_dict(start)
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.names, self.weights = list(trained), list(trained.values())
        self.initial = [p.detach().clone() for p in self.weights]
        optimizer = task.optimizer(self.model, arm.learning_rate)
        part = replicas.part if replicas is not None else None
        self.source = make_source(task, spec.seed, device, engine, part=part)
        budget = spec.stop.budget_examples
        self.control, self.scheduler = None, None
        if control is not None:
            self.control = control(Controlled(task, self.model, optimizer, arm.batch_size, budget, spec.seed))
        elif task.schedule is not None:
            self.scheduler = task.schedule(optimizer, steps_within(budget, self.source.size, arm.batch_size))
        how = {"micro_batch_size": arm.micro_batch_size, "precision": arm.precision, "engine": engine}
        if replicas is None:
            whole = min(arm.batch_size, self.source.size)
            hears = watch(self.model, optimizer) if watch is not None else None
            hears = hears if self.control is None else self.control.complete
            alone = make_step(task, self.model, optimizer, batch_size=whole, watch=hears, **how)
            self.step: SharedStep = lambda batch, whole: alone(batch)
        else:
            self.step = make_shared_step(task, self.model, optimizer, replicas, **how)
            seed_rank(spec.seed, replicas.rank)
        self.parts: dict[str, Any] = {"model": self.model, "optimizer": optimizer}
        if self.scheduler is not None:
            self.parts["scheduler"] = self.scheduler
        if self.control is not None:
            self.parts["control"] = self.control

    def run(self, checkpoint: Checkpoint | None, on_evaluation: Callable[[Evaluation], None] | None) -> str:
        """Train from the checkpoint, or from the start, to the end; advances the position. Returns why it ended."""
        position, stop, step, weights = self.position, self.spec.stop, self.step, self.weights
        if checkpoint is not None:
            resumed = checkpoint.load(self.spec, self.parts, self.replicas, self.keeps_best)
            position.__dict__.update(vars(resumed or position))
        ended_by = self.why_ended() if position.trace else self.look(math.nan, on_evaluation)
        last = min(stop.budget_examples, stop.cap_examples or stop.budget_examples)
        next_look = (position.examples // stop.cadence_examples + 1) * stop.cadence_examples
        while ended_by is None:
            for batch, whole in self.rest_of_epoch():
                examples = position.examples + whole
                looking = examples >= min(next_look, last)
                before = [p.detach().clone() for p in weights] if looking else None
                step(batch, whole)
                self.advance(whole)
                position.step += 1
                position.batch += 1
                position.examples = examples
                if before is not None:
                    if self.replicas is not None:
                        self.replicas.settle()
                    ended_by = self.look(norm_of_difference(weights, before), on_evaluation)
                    next_look = (examples // stop.cadence_examples + 1) * stop.cadence_examples
                    if checkpoint is not None and self.to_be_saved(checkpoint, ended_by):
                        checkpoint.save(self.spec, position, self.parts, self.replicas)
                    if ended_by is not None:
                        break
            else:
                position.epoch, position.batch = position.epoch + 1, 0
        return ended_by

    def rest_of_epoch(self) -> Iterator[tuple[Batch, int]]:
        """(this replica's part of a batch, examples of the whole batch), from the position to the epoch's end."""
        position, source, control = self.position, self.source, self.control
        if control is None:
            size = self.spec.arm.batch_size
            for batch in source.epoch(position.epoch, size, position.batch):
                yield batch, min(size, source.size - position.batch * size)
            return
        while (used := position.examples - position.epoch * source.size) < source.size:
            size, left = control.batch_size, source.size - used
            if left == size + 1 and size > 1:  # a single example would be left, of which batch norm knows no variance
                size = left
            for k, batch in enumerate(source.epoch(position.epoch, size, used=used)):
                if control.batch_size != size and k > 0:
                    break
                yield batch, min(size, left - k * size)
                if left - (k + 1) * size == size + 1:
                    break  # to begin again, with the last two together

    def advance(self, examples: int) -> None:
        """The optimiser has made a step: the schedule's turn."""
        if self.control is not None:
            self.control.stepped(examples)
        elif self.scheduler is not None:
            self.scheduler.step()

    def to_be_saved(self, checkpoint: Checkpoint, ended_by: str | None) -> bool:
        """Where a trial goes on, from time to time; and where it was capped, if it may go on under another cap."""
        if ended_by is None:
            return checkpoint.due(self.replicas)
        return ended_by == "cap" and checkpoint.at_cap

    def look(self, update_norm: float, on_evaluation: Callable[[Evaluation], None] | None) -> str | None:
        """Evaluate, add a line to the trace, and say why the trial ends here, if it does."""
        position = self.position
        needed = self.leads or self.task.shard
        if self.replicas is None:
            line = self.evaluated(update_norm)
        else:
            line = self.replicas.from_lead(self.evaluated(update_norm) if needed else None)
        position.trace.append(line)
        if on_evaluation is not None and self.leads:
            on_evaluation(line)
        if self.control is not None and position.step > 0:
            self.control.looked(line.validation["loss"])
        if self.keeps_best and needed and _best(position.trace) is line:
            position.best_state = mapped(self.model.state_dict(), torch.clone)
        return self.why_ended()

    def evaluated(self, update_norm: float) -> Evaluation:
        """What is known here."""
        return Evaluation(
            step=self.position.step,
            examples=self.position.examples,
            train=self.metrics(self.evaluator.train),
            validation=self.metrics(self.evaluator.valid),
            distance=norm_of_difference(self.weights, self.initial),
            update_norm=update_norm,
        )

    def metrics(self, batches: FixedBatches) -> dict[str, float]:
        """Loss and metrics over these examples; with replicas every chunk is a sign that this one goes on."""
        chunks = batches if self.replicas is None else self.replicas.counting(batches)
        return evaluate(self.task, self.model, chunks, self.spec.arm.precision)

    def why_ended(self) -> str | None:
        """Why the trial ends at its last evaluation, if it does."""
        return ending(self.position.trace, self.spec.stop, self.source.size, self.crossed)

    def found(self) -> Weights:
        """The weights that the trial began with, had at its best evaluation, and has now."""
        position, best = self.position, _best(self.position.trace)
        return Weights(
            initial=on_host(dict(zip(self.names, self.initial, strict=True))),
            best=Snapshot(best.step, best.examples, on_host(position.best_state or {})),
            last=Snapshot(position.step, position.examples, on_host(self.model.state_dict())),
        )

    def test(self) -> dict[str, float] | None:
        """The test metrics at the best validation loss; None for a task without a test set."""
        if self.evaluator.test is None or self.position.best_state is None:
            return None
        self.model.load_state_dict(self.position.best_state)
        return self.metrics(self.evaluator.test)


def steps_within(examples: int, train_size: int, batch_size: int) -> int:
    """Steps until a trial has used that many examples: ceil(N / B) in a whole epoch, the last short batch included."""
    epochs, rest = divmod(examples, train_size)
    return epochs * math.ceil(train_size / batch_size) + math.ceil(rest / batch_size)


def ending(trace: Sequence[Evaluation], stop: StopRule, train_size: int, crossed: Crossed | None) -> str | None:
    """Why a trial with this trace ends at its last evaluation, or None where it goes on.

    In this order: divergence, the goal (only where the stop rule has one), patience (epochs since the lowest
    validation loss; any decrease counts as one), budget, cap.
    """
    last = trace[-1]
    losses = last.train["loss"], last.validation["loss"]
    limit = DIVERGED_FACTOR * abs(trace[0].train["loss"])
    recent = trace[-DIVERGED_EVALUATIONS:]
    if not all(map(math.isfinite, losses)):
        return "divergence"
    if len(trace) > DIVERGED_EVALUATIONS and all(line.train["loss"] > limit for line in recent):
        return "divergence"
    if stop.goal is not None and crossed is not None and crossed(trace, stop.goal):
        return "goal"
    if stop.patience_epochs is not None and last.examples - _best(trace).examples >= stop.patience_epochs * train_size:
        return "patience"
    if last.examples >= stop.budget_examples:
        return "budget"
    return "cap" if stop.cap_examples is not None and last.examples >= stop.cap_examples else None


def _best(trace: Sequence[Evaluation]) -> Evaluation:
    """The evaluation with the lowest validation loss, the first of equals."""
    return min(trace, key=lambda line: line.validation["loss"])


def norm_of_difference(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor] | None) -> float:
    """|a - b|_2 over all tensors (|a|_2 where b is None), in double precision; if sharded, every rank calls this."""
    return norm_of(a if b is None else [x - y for x, y in zip(a, b, strict=True)])
