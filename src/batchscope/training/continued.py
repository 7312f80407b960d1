"""What do the weights become if training goes on, or goes otherwise? Causal runs, from given weights.

    warm start         training goes on from a trial's early weights at another batch size (Keskar et al. 2016, fig. 5)
    noise injected     the large batch, with the gradient noise that a smaller one would have, and nothing else changed

Noise of batch size b in batches of n examples. The batch is cut into k parts of at most b, of u_j of its u units, with
mean losses l_j, gradients g_j = G + e_j and Cov(e_j) = Sigma / u_j, independent. With p_j = u_j / u, the plain gradient
is sum p_j g_j, of covariance Sigma / u. The step takes the gradient of sum_j a_j l_j instead, with

    a_j = p_j + d_j xi_j - p_j sum_i d_i xi_i,      d_j^2 = p_j (n / b - 1) / (k - 1),      xi_j standard normal.

The a_j sum to 1 and have means p_j, so that its mean over xi is the plain gradient. Beyond that it has the term
sum_j d_j xi_j (g_j - sum_i p_i g_i), uncorrelated with it, as E xi = 0; and as Cov(g_j - sum_i p_i g_i) =
Sigma (1 / u_j - 1 / u) and sum_j p_j (1 / u_j - 1 / u) = (k - 1) / u, their covariances add up to

    Sigma / u + (n / b - 1) Sigma / u = (n / b) Sigma / u:      that of b of the n examples, exactly.

Equal parts of B = k b: a_j = 1 / k + (xi_j - mean xi) / sqrt(k), and Sigma / b. A last part that is not full changes
nothing; a batch of at most b examples is left as it is. Where a batch is drawn without replacement from N, the same
holds with Sigma (1 / b - 1 / N) N / (N - 1), that of such a batch of b. What is not that of batch size b is how the
noise of one step goes with that of another in its epoch, and its form: given the batch, it is normal. (Random weights
on the parts' losses: J. Wu et al. 2020, On the Noisy Gradient Descent that Generalizes as SGD, arXiv 1906.07405.)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Subset

from batchscope.errors import CannotAnswer
from batchscope.records import Arm, Evaluation, StopRule, TrialResult, TrialSpec
from batchscope.task import Batch, Task
from batchscope.training.batches import examples_in, split, units_in
from batchscope.training.loop import Evaluator, steps_within, train
from batchscope.training.seeding import drawing_from, mix
from batchscope.training.step import evaluation_of, make_model
from batchscope.training.weights import Snapshot, Weights, on_host

NOISE_STREAM = 4_000_000  # of xi, beside a run's seed: no epoch's order is drawn from it


@dataclass(frozen=True)
class Ended:
    """Where training ended that began at given weights."""

    result: TrialResult  # its trace; distances from where it began
    best: Snapshot  # at the lowest validation loss; step and examples count from where it began
    last: Snapshot
    notes: tuple[str, ...] = ()


def continue_from(
    task: Task,
    state: Mapping[str, Any],
    *,
    batch_size: int,
    lr: float,
    examples: int,
    seed: int,
    device: torch.device,
    cadence: int,
    precision: str = "fp32",
    patience_epochs: float | None = None,
    noise_of: int | None = None,
    evaluator: Evaluator | None = None,
    tell: Callable[[Evaluation], None] | None = None,
) -> Ended:
    """Train from these weights, with a fresh optimiser and a schedule that ends at `examples`.

    Args:
        state: the model's `state_dict`; nothing of it is changed.
        examples: the most that are used; `cadence`: between evaluations.
        seed: of the order of examples, which begins anew, of dropout and of injected noise.
        patience_epochs: without a lower validation loss, after which it ends.
        noise_of: the batch size whose gradient noise is injected; None, or at least `batch_size`: none is.
        tell: hears of every evaluation.

    Raises CannotAnswer where the training fails; a run that diverges has ended.
    """
    trained, notes = task, ()
    if noise_of is not None and noise_of < batch_size:
        trained, notes = noisy(task, noise_of, seed), _notes(task, noise_of)
    spec = TrialSpec(Arm(batch_size, lr, precision=precision), seed, StopRule(examples, cadence, patience_epochs))
    result, found = _trained(trained, spec, device, evaluator or Evaluator(task, device), start=state, tell=tell)
    return Ended(result, found.best, found.last, notes)


def early_states(task: Task, spec: TrialSpec, epochs: Sequence[float], *, device: torch.device) -> tuple[Snapshot, ...]:
    """The weights of a trial after so many epochs, at the first step boundary at or past each; 0: as it began.

    The trial is trained again from its seed up to the last of them, with the plain engine on one device, and nothing
    is evaluated on the way: bit for bit what a trial on the same machine and engine went through. Its examples:
    those of the longest. Raises CannotAnswer where the training fails, or an epoch lies beyond the trial's budget.
    """
    size, batch, stop = task.train_size, spec.arm.batch_size, spec.stop
    wanted = [round(e * size) for e in epochs]
    last = max(wanted, default=0)
    if min(wanted, default=0) < 0 or last > stop.budget_examples:
        raise CannotAnswer(
            f"expected epochs from 0 to {stop.budget_examples / size:g}, the trial's budget, got {list(epochs)}: "
            "leave the others out"
        )
    steps = [steps_within(n, size, batch) for n in wanted]
    seen: dict[int, Snapshot] = {}

    def optimizer(model: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
        made, done = task.optimizer(model, lr), 0

        def look(*_: Any) -> None:
            nonlocal done
            if done in steps:
                whole, rest = divmod(done, math.ceil(size / batch))
                seen[done] = Snapshot(done, whole * size + rest * batch, on_host(model.state_dict()))
            done += 1

        look()
        made.register_step_post_hook(look)
        return made

    rule = StopRule(stop.budget_examples, max(1, last), cap_examples=max(1, last))
    watched = dataclasses.replace(task, optimizer=optimizer, metrics={}, goal=None)
    _trained(watched, dataclasses.replace(spec, stop=rule), device, _one_example(task, device))
    return tuple(seen[step] for step in steps)


def _trained(
    task: Task,
    spec: TrialSpec,
    device: torch.device,
    evaluator: Evaluator,
    start: Mapping[str, Any] | None = None,
    tell: Callable[[Evaluation], None] | None = None,
) -> tuple[TrialResult, Weights]:
    """The trial and its weights; raises CannotAnswer where it fails."""
    kept: list[Weights] = []
    result = train(task, spec, device=device, evaluator=evaluator, start=start, keep=kept.append, on_evaluation=tell)
    if not kept:
        raise CannotAnswer(
            f"task {task.name!r}: expected training to go on at batch size {spec.arm.batch_size}, it failed: "
            f"{result.reason}"
        )
    return result, kept[0]


def _one_example(task: Task, device: torch.device) -> Evaluator:
    """Evaluations that cost next to nothing, for a run of which only the weights are wanted."""
    valid = task.valid
    one = tuple(t[:1] for t in valid) if isinstance(valid, (tuple, list)) else Subset(valid, [0])
    return Evaluator(dataclasses.replace(task, valid=one, test=None), device)


# --- noise ---


def noisy(task: Task, size: int, seed: int) -> Task:
    """The same task, whose batches have the gradient noise of batches of `size`. It is evaluated as before.

    Each time it is trained, the noise goes on where the last time left it: make it anew for every run.
    """
    generator = torch.Generator().manual_seed(mix(seed, NOISE_STREAM))

    def step(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        if (examples := examples_in(batch)) <= size:
            return task.batch_loss(model, batch)
        parts = [(units, part) for part in split(batch, size) if (units := units_in(task, part))]
        weights = part_weights([units for units, _ in parts], examples / size, generator)
        losses = (a * task.batch_loss(model, part) for a, (_, part) in zip(weights, parts, strict=True))
        return torch.stack(list(losses)).sum() if parts else task.batch_loss(model, batch)

    return dataclasses.replace(task, step=step, evaluate=evaluation_of(task))


def part_weights(units: Sequence[int], times: float, generator: torch.Generator) -> list[float]:
    """a_j (k,) of parts with so many units each, such that the noise is `times` = n / b that of the batch.

    A single part has nothing to weigh against: its weight is 1.
    """
    if len(units) < 2:
        return [1.0] * len(units)
    share = torch.tensor(units, dtype=torch.float64) / sum(units)
    drawn = torch.randn(len(units), generator=generator, dtype=torch.float64)
    pushed = (share * (times - 1) / (len(units) - 1)).sqrt() * drawn
    return (share + pushed - share * pushed.sum()).tolist()


def _notes(task: Task, size: int) -> tuple[str, ...]:
    """What injected noise means for this model."""
    with drawing_from(0):
        model = make_model(task, torch.device("cpu"))
    if not any(isinstance(module, _BatchNorm) and module.training for module in model.modules()):
        return ()
    return (
        f"Batch norm takes the statistics of parts of {size} examples where noise is injected, as it would at batch "
        f"size {size}: it is not the gradient's noise alone that changes.",
    )
