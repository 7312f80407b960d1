"""From this checkpoint on, how many times larger could the batch be? Go on with k times the batch, and see.

    answer = branches(model, optimizer, loader, loss, batch_size=64, window=100_000)

Every branch begins at the same model, optimiser state and random numbers, sees the same data in the same order, and
trains at the batch size k B with the learning rate f(k) eta; betas, eps, momentum and weight decay stay as they are.
Its losses are those of its own batches, before each step: nothing else is evaluated. Afterwards, an exception included,
everything is bit for bit what it was. What the losses say is `analysis/branching.py` (Merrill et al. 2025).

It takes a copy of the weights and one of the optimiser's state more memory than training does.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from batchscope.analysis.branching import branch_answer
from batchscope.errors import CannotAnswer, UnsupportedTask, UsageError
from batchscope.measure.branch_batches import Count, Order, Reshuffled, count_of, order_of
from batchscope.measure.coupling import batch_norms
from batchscope.measure.sources import data_parallel_group, unwrapped
from batchscope.records.branching import BRANCH_RULES, Branch, BranchAnswer
from batchscope.task import Batch
from batchscope.training.batches import examples_in, split, to_device
from batchscope.training.device import is_out_of_memory
from batchscope.training.seeding import drawing_from, mix, torch_drawing_from

KS = (0.5, 1, 2, 4, 8)  # about those of Merrill et al. 2025, app. B
SEEDS = (0, 1, 2)  # data orders: the fewest that the house gives intervals for
TOLERANCE = 0.01  # of a loss in nats: Merrill et al. 2025
RAGGED = 2.0  # times the others' mean, at most, are the units of the first batch where examples differ (a guess)
LEAST_STEPS = 8  # of the largest branch: its average then weighs what lies before the window at 2^-8 (a guess)

Loss = Callable[[nn.Module, Batch], torch.Tensor]


def branches(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Order | DataLoader | Dataset | Sequence[torch.Tensor],
    loss: Loss,
    *,
    batch_size: int,
    window: int,
    ks: Sequence[float] = KS,
    unit: str = "examples",
    rule: str | None = None,
    tolerance: float = TOLERANCE,
    seeds: Sequence[int] = SEEDS,
    count: Count | None = None,
    micro_batch_size: int | None = None,
    clip_norm: float | None = None,
    seconds: Mapping[int, float] | None = None,
    device: torch.device | str | None = None,
) -> BranchAnswer:
    """Up to which multiple of the batch size does the loss recover from here?

    Takes len(ks) windows of training for every seed, and one of forward passes alone: the checkpoint's own loss.

    Args:
        model, optimizer: at the checkpoint; at the end they are so again.
        batches: a DataLoader, map-style Dataset or tuple of tensors, reshuffled by seed; or (batch size, seed) -> an
            iterable of batches of so many examples, in an order of examples that follows from the seed alone.
        loss: (model, batch) -> the mean loss of a batch on the model's device, a scalar with gradient.
        batch_size: examples of a step today, where k = 1; k = 1 always runs.
        window: units of each branch; branches end at the first step at or past it.
        rule: of the learning rate, "sqrt" or "linear" in k; None: "sqrt" for optimisers that normalise by past
            gradients (betas or eps in their groups), else "linear".
        seeds: data orders; with one there is no interval, and no batch size is resolved.
        count: batch -> units that its mean loss averages over; default: examples, or targets other than -100.
        micro_batch_size: most examples in a pass; default: `batch_size`, which is known to fit.
        clip_norm: largest global gradient norm, if the training clips.
        seconds: per step, by batch size, measured elsewhere: gives ratios of time.
        device: where batches are sent; default: the model's.

    Raises UsageError for a malformed call, UnsupportedTask for sharded or data-parallel models and closures, and
    CannotAnswer where memory or the batches run out.
    """
    sizes = _sizes(ks, batch_size)
    _check_numbers(window, unit, rule, tolerance, seeds, micro_batch_size, clip_norm)
    _check_trained(model, optimizer)
    micro, rule = micro_batch_size or batch_size, rule or scaling_rule(optimizer)
    where = torch.device(device) if device is not None else next(model.parameters()).device
    order, counted = order_of(batches, max(sizes.values())), count or count_of(unit)
    training = _Training(model, optimizer, loss, counted, micro, clip_norm, where, window, max(sizes.values()))
    checkpoint, found = _Checkpoint(model, optimizer), []
    try:
        with _fitting(micro):
            for seed, (k, size) in itertools.product(seeds, [(0.0, batch_size), *sizes.items()]):
                checkpoint.rewind()
                found.append(training.branch(order, k, size, seed, k if rule == "linear" else math.sqrt(k)))
                _check_orders(found, order)
    finally:
        checkpoint.put_back()
    return branch_answer(
        found,
        batch_size=batch_size,
        window=window,
        unit=unit,
        rule=rule,
        tolerance=tolerance,
        micro_batch_size=micro,
        seconds=seconds,
        notes=_notes(model, rule, micro),
    )


@contextlib.contextmanager
def _fitting(micro: int) -> Generator[None]:
    """Inside, running out of memory is a sentence."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise CannotAnswer(
            f"expected passes of {micro} examples to fit beside a copy of the weights and of the optimiser's state, "
            f"ran out of memory: write micro_batch_size={max(1, micro // 2)}"
        ) from error


def scaling_rule(optimizer: torch.optim.Optimizer) -> str:
    """By the square root where steps are normalised by past gradients (Malladi 2022), else linear (Goyal 2017).

    Told by betas or eps in a parameter group: Adam and its kin, RMSprop, Adagrad, Lion have one; SGD has neither.
    """
    return "sqrt" if any("betas" in g or "eps" in g for g in optimizer.param_groups) else "linear"


class _Checkpoint:
    """Model, optimiser and gradients as they are now: `rewind` goes back to them, `put_back` for good.

    Branches train the model's own tensors and copies of the optimiser's state; the state itself waits aside, untouched.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.modules = optimizer, list(model.modules())
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        self.parameters = list({id(p): p for p in (*model.parameters(), *trained)}.values())
        self.gradients = [p.grad for p in self.parameters]
        self.buffers = [dict(m._buffers) for m in self.modules]
        held = [b for own in self.buffers for b in own.values() if b is not None]
        self.tensors = [(t, t.detach().clone()) for t in (*self.parameters, *held)]
        self.modes = [m.training for m in self.modules]
        keeping = [m for m in self.modules if type(m).get_extra_state is not nn.Module.get_extra_state]
        self.extra = [(m, copy.deepcopy(m.get_extra_state())) for m in keeping]
        self.state, self.groups = dict(optimizer.state), [dict(g) for g in optimizer.param_groups]

    def rewind(self) -> None:
        """To the checkpoint, for another branch: no gradients, a fresh copy of the optimiser's state."""
        self._model()
        for p in self.parameters:
            p.grad = None
        _fill(self.optimizer.state, {p: copy.deepcopy(state) for p, state in self.state.items()})
        for group, before in zip(self.optimizer.param_groups, self.groups, strict=True):
            _fill(group, {name: v if name == "params" else copy.deepcopy(v) for name, v in before.items()})

    def put_back(self) -> None:
        """Everything as it was, the same objects included."""
        self._model()
        for p, gradient in zip(self.parameters, self.gradients, strict=True):
            p.grad = gradient
        _fill(self.optimizer.state, self.state)
        for group, before in zip(self.optimizer.param_groups, self.groups, strict=True):
            _fill(group, before)

    @torch.no_grad()
    def _model(self) -> None:
        for tensor, before in self.tensors:
            tensor.copy_(before)
        for module, buffers, mode in zip(self.modules, self.buffers, self.modes, strict=True):
            _fill(module._buffers, buffers)
            module.training = mode
        for module, extra in self.extra:
            module.set_extra_state(copy.deepcopy(extra))


def _fill(mapping: Any, entries: Mapping[Any, Any]) -> None:
    """The same dict with these entries instead of its own."""
    mapping.clear()
    mapping.update(entries)


@dataclass(frozen=True)
class _Training:
    """What all branches share, and how one of them is trained."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Loss
    count: Count
    micro: int  # examples of a pass
    clip_norm: float | None
    device: torch.device
    window: int  # units
    largest: int  # batch size

    def branch(self, order: Order, k: float, size: int, seed: int, factor: float) -> Branch:
        """From where the model stands, over the window or to a loss that is not finite. With k = 0 it stays there."""
        if not self.model.training:
            self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"] * factor
        rate = float(self.optimizer.param_groups[0]["lr"])
        losses: list[float] = []
        units: list[float] = []
        used = 0.0
        with drawing_from(mix(seed)), torch_drawing_from(mix(seed), self.device):
            for number, batch in enumerate(order(size, seed)):
                if number == 0:
                    self._check_first(batch, size)
                with torch.set_grad_enabled(k > 0):
                    mean, n = self.step(batch)
                if not math.isfinite(mean):
                    return Branch(k, seed, size, rate, tuple(losses), tuple(units), diverged=True)
                if n > 0:
                    losses.append(mean)
                    units.append(n)
                    used += n
                if used >= self.window:
                    return Branch(k, seed, size, rate, tuple(losses), tuple(units))
        raise CannotAnswer(
            f"expected batches for a window of {self.window:,} units, got {used:,.0f} at batch size {size}: let "
            "`batches` go on with the next epoch, or give a shorter window"
        )

    def step(self, batch: Batch) -> tuple[float, float]:
        """(mean loss before the step, its units). In micro-batches of n_i of n units, each weighing n_i / n.

        No step, the loss alone, where gradients are switched off.
        """
        parts = split(batch, self.micro) if examples_in(batch) > self.micro else [batch]
        counts = [float(self.count(part)) for part in parts]
        total, mean = sum(counts), 0.0
        self.optimizer.zero_grad()
        for part, n in zip(parts, counts, strict=True):
            if n > 0:
                value = self.loss(self.model, to_device(part, self.device))
                _check_loss(value)
                if torch.is_grad_enabled():
                    (value * (n / total)).backward()
                mean += float(value.detach()) * n / total
        if torch.is_grad_enabled() and total > 0 and math.isfinite(mean):
            if self.clip_norm is not None:
                updated = [p for group in self.optimizer.param_groups for p in group["params"]]
                nn.utils.clip_grad_norm_(updated, self.clip_norm)
            self.optimizer.step()
        return mean, total

    def _check_first(self, batch: Batch, size: int) -> None:
        """The batch size that was asked for, something counted in it, and a window of enough such batches."""
        examples, n = examples_in(batch), float(self.count(batch))
        if examples != size:
            raise UsageError(
                f"expected batches of the {size} examples asked for, got {examples}: let batches(batch_size, seed) "
                "yield batches of batch_size"
            )
        if not n > 0:
            raise UsageError(f"expected units that the loss averages over, got {n:g} in a batch: give count=")
        least = math.ceil(LEAST_STEPS * self.largest * n / size)
        if self.window < least / (1 if n == size else RAGGED):
            raise UsageError(
                f"expected a window of {LEAST_STEPS} steps of the largest branch, got {self.window:,}: write "
                f"window={least}, or smaller ks"
            )


def _sizes(ks: Sequence[float], batch_size: int) -> dict[float, int]:
    """k -> k B, ascending, with k = 1."""
    if not isinstance(batch_size, int) or batch_size < 1:
        raise UsageError(f"expected batch_size in examples from 1 up, got {batch_size!r}: write batch_size=64")
    every = sorted({1.0, *map(float, ks)})
    sizes = [k * batch_size for k in every]
    odd = [k for k, b in zip(every, sizes, strict=True) if not 1 <= b < math.inf or not math.isclose(b, round(b))]
    if odd or len(every) < 2:
        got = f"k = {odd[0]:g} at batch_size={batch_size}" if odd else "k = 1 alone"
        raise UsageError(f"expected ks that give whole batches of other sizes, got {got}: write ks=(1, 2, 4)")
    return {k: round(k * batch_size) for k in every}


def _check_numbers(
    window: int,
    unit: str,
    rule: str | None,
    tolerance: float,
    seeds: Sequence[int],
    micro_batch_size: int | None,
    clip_norm: float | None,
) -> None:
    """UsageError for a value that means nothing."""
    rules = [
        (window > 0, "a positive window", window, "write window=100_000"),
        (unit in ("examples", "tokens"), 'unit "examples" or "tokens"', unit, 'write unit="tokens"'),
        (rule in (None, *BRANCH_RULES), f"a rule of {', '.join(BRANCH_RULES)}", rule, "or leave it out"),
        (0 < tolerance < math.inf, "a positive tolerance", tolerance, "write tolerance=0.01"),
        (len(seeds) > 0 and len(set(seeds)) == len(seeds), "different seeds", seeds, "write seeds=(0, 1, 2)"),
        (micro_batch_size is None or micro_batch_size > 0, "micro_batch_size from 1 up", micro_batch_size, "write 8"),
        (clip_norm is None or clip_norm > 0, "a positive clip_norm", clip_norm, "write clip_norm=1.0, or leave it out"),
    ]
    for good, expected, came, instead in rules:
        if not good:
            raise UsageError(f"expected {expected}, got {came!r}: {instead}")


def _check_trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One process, whole parameters, an optimiser of this very model, steps without closures."""
    inner = unwrapped(model)
    if data_parallel_group(model) is not None:
        raise UnsupportedTask("expected one process, got a data-parallel group: load the checkpoint in one process")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UnsupportedTask(
            "expected an optimiser that steps without a closure, got LBFGS: branches need plain steps"
        )
    own = {id(p) for p in inner.parameters()}
    if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise UsageError("expected an optimiser of the model's parameters, got another model's: make it of this model")
    if not all(isinstance(g.get("lr"), (float, int, torch.Tensor)) for g in optimizer.param_groups):
        raise UsageError("expected a learning rate in every parameter group, got none: give the optimiser lr=")


def _check_loss(value: Any) -> None:
    if not isinstance(value, torch.Tensor) or value.numel() != 1 or value.requires_grad != torch.is_grad_enabled():
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise UsageError(f"expected loss(model, batch) to give a scalar with gradient, got {got}: return the mean loss")


def _check_orders(found: Sequence[Branch], order: Order) -> None:
    """Another seed must give another order, or the intervals would say nothing."""
    last = found[-1]
    same = [b.seed for b in found[:-1] if b.k == last.k and b.losses == last.losses and last.losses]
    if same and not isinstance(order, Reshuffled):
        raise UsageError(
            f"expected another order of examples from another seed, got the same losses for seeds {same[0]} and "
            f"{last.seed}: let batches(batch_size, seed) shuffle by its seed"
        )


def _notes(model: nn.Module, rule: str, micro: int) -> list[str]:
    """What a reader of the numbers must know of how branches were trained."""
    how = "k" if rule == "linear" else "the square root of k"
    notes = [
        f"The learning rate is scaled by {how} and then held; betas, eps, momentum and weight decay are the "
        "checkpoint's at every k."
    ]
    norms = batch_norms(model)
    if norms:
        notes.append(f"Batch norm ({norms[0]}) sees passes of at most {micro} examples, whatever the batch size.")
    return notes
